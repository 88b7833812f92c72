"""What the commands `asignals list` and `asignals graph` do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from urllib.request import urlopen

from asignals.overview.discovery import Discovery, describe, discover
from asignals.overview.graph import as_json, build, dot, mermaid
from asignals.overview.program import TargetError

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED: Final = 2
"""The exit status when a target does not import, or the picture cannot be written."""

SUFFIXES: Final = {
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
    ".dot": "dot",
    ".gv": "dot",
    ".html": "html",
    ".htm": "html",
    ".json": "json",
}


def list_signals(  # noqa: PLR0913  the options of the command
    targets: Sequence[str],
    *,
    to_json: bool,
    everything: bool,
    skip_broken: bool,
    tracebacks: bool,
    counts: str | None = None,
) -> int:
    """Print the signals of programs as a tree or as JSON; returns the exit status."""
    counted = None
    if counts is not None:
        try:
            counted = read_counts(counts)
        except (OSError, ValueError) as error:
            _complain(f"cannot read counts from {counts!r}: {error}")
            return FAILED
    found = _discover(targets, everything=everything, skip_broken=skip_broken, tracebacks=tracebacks)
    if found is None:
        return FAILED
    if to_json:
        print(json.dumps([describe(each, found.not_loaded, counted) for each in found.signals], indent=2))  # noqa: T201  a command prints
        return 0
    from rich.console import Console  # noqa: PLC0415  JSON and the other commands do without

    from asignals.overview.listing import write  # noqa: PLC0415  as above

    write(Console(), found, counted)
    if not (everything or skip_broken):
        _say_what_is_loaded(found)
    return 0


def read_counts(source: str) -> dict[str, Any]:
    """Read counts from a file, or from the address of an inspector that runs; raises `OSError`, `ValueError`."""
    if source.startswith(("http://", "https://")):
        parts = urlsplit(source)
        address = parts._replace(path=f"{parts.path.rstrip('/')}/counts").geturl()
        with urlopen(address, timeout=10) as answer:  # noqa: S310  the scheme is HTTP's
            found = json.load(answer)
    else:
        found = json.loads(Path(source).read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not all(isinstance(each, dict) and "calls" in each for each in found.values()):
        raise ValueError("these are no counts of signals")
    return found


def draw_graph(  # noqa: PLR0913  the options of the command
    targets: Sequence[str],
    *,
    form: str | None,
    output: Path | None,
    everything: bool,
    skip_broken: bool,
    tracebacks: bool,
) -> int:
    """Write the graph of programs to a file or to stdout; returns the exit status."""
    found = _discover(targets, everything=everything, skip_broken=skip_broken, tracebacks=tracebacks)
    if found is None:
        return FAILED
    if not (everything or skip_broken):
        _say_what_is_loaded(found)
    text = _draw(found, form or _form_of(output), ", ".join(targets))
    if output is None:
        sys.stdout.write(text)
        return 0
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        _complain(f"cannot write {str(output)!r}: {error.strerror}")
        return FAILED
    return 0


def _form_of(output: Path | None) -> str:
    return "mermaid" if output is None else SUFFIXES.get(output.suffix.lower(), "mermaid")


def _draw(found: Discovery, form: str, title: str) -> str:
    graph = build(found)
    if form == "html":
        from asignals.overview.graph_page import page  # noqa: PLC0415  only this form needs it

        return page(graph, title)
    if form == "json":
        return json.dumps(as_json(graph), indent=2) + "\n"
    return dot(graph) if form == "dot" else mermaid(graph)


def _discover(targets: Sequence[str], *, everything: bool, skip_broken: bool, tracebacks: bool) -> Discovery | None:
    # As `python -m` does, and not as scripts do: a program is found from its own directory.
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        found = discover(targets, everything=everything or skip_broken, skip_broken=skip_broken)
    except TargetError as error:
        _explain(error, tracebacks=tracebacks)
        return None
    for broken in found.broken:
        _explain(broken, tracebacks=tracebacks)
    return found


def _say_what_is_loaded(found: Discovery) -> None:
    """Say on stderr, where it disturbs no output, that the entry point alone was loaded, and what it leaves out."""
    _complain(f"loaded {', '.join(program.entry for program in found.programs)} alone, as a server does")
    missing = [each.source.name for each in found.not_loaded if each.on_import]
    if missing:
        _complain(f"not loaded, --all adds: {', '.join(missing)}")


def _explain(error: TargetError, *, tracebacks: bool) -> None:
    if tracebacks and error.error is not None:
        sys.stderr.write(error.traceback)
    _complain(str(error))


def _complain(text: str) -> None:
    sys.stderr.write(f"asignals: {text}\n")
