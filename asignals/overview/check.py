"""What `asignals check` finds out about one program."""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from typing import Any

from asignals import signals
from asignals.overview import findings
from asignals.overview.discovery import signals_of
from asignals.overview.findings import Finding, what_it_does
from asignals.overview.program import Program, load
from asignals.overview.watching import Watch


@dataclass(frozen=True)
class Checked:
    """What was found out about one entry point."""

    entry: str
    modules: int
    signals: int
    receivers: int
    findings: list[Finding]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """All of it, in the types of JSON."""
        return {**asdict(self), "findings": [each.as_dict() for each in self.findings]}


def check(entry: str, *, factory: bool = False) -> Checked:
    """Load a program by its entry point, and find what is missing; in a process that does nothing else.

    Raises `TargetError` where it does not load.
    """
    with Watch() as watch:
        program = load(entry, factory=factory)
        gc.collect()
        for signal in signals():  # the next use of a signal is when it warns of what it has lost
            signal.has_listeners()
            _ = signal.connections
    found = [
        *findings.not_loaded(program),
        *findings.unheard(program),
        *findings.lost(watch),
        *findings.loaded_twice(program),
        *findings.uid_taken(watch),
        *findings.relays(program),
        *findings.no_such_model(program),
        *findings.not_awaited(program),
    ]
    own = signals_of(program.modules)
    receivers = sum(len(each.signal.connections) for each in own)
    return Checked(entry, len(program.modules), len(own), receivers, found, _notes(program))


def _notes(program: Program) -> list[str]:
    notes = []
    computed = program.imports_by_computed_name()
    for missing in program.not_loaded():
        use = (missing.on_import or missing.uses)[0]
        if missing.source.is_script or missing.source.is_served:
            why = "is a separate program, and is not loaded"
        elif not missing.on_import:
            why = f"{what_it_does(missing.uses)} when {use.function} is called, and is not loaded"
        elif computed is not None:
            why = f"{what_it_does(missing.on_import)}, and may be imported by {computed}, whose imports are computed"
        else:
            continue
        notes.append(f"{missing.source.name} {why} ({use.location})")
    return notes
