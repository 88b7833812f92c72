"""What is connected to what in a program: found, checked, listed and drawn; and how values are shown.

- `values`: any value as short text; `masking`: what is secret; `objects`: what objects are made of.
- `source`: names and imports of a program, read; `uses`: what its source does with signals.
- `program`: a program as its entry point loads it, and what is not loaded.
- `discovery`: its signals, described; `listing`: the tree of `asignals list`; `graph`, `graph_page`: `asignals graph`.
- `check`, `findings`, `watching`: `asignals check`, in the process of `check_process`; `check_command`: its report.
- `counts`, `pytest_report`: who was called, and which sends reached nobody.
- `relays`: relays as services and topics.
- `commands`: what the commands do; `extras`: what is said where an extra is missing.
"""
