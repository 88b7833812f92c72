"""How a relay is, as far as its process knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asignals.masking import redacted
from asignals.relay._connection_state import ConnectionState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Health:
    """How a relay is, as far as this process knows; `problems` is empty when all is well.

    `received`, `ignored`, `failed`, `dead` and `released` count deliveries since the start: those whose receivers have
    all succeeded; those for nobody here (replays for other services, events whose receivers the sender called itself);
    those in which a receiver failed; those that became dead letters; those that were given back for other instances.
    `in_flight` are being handled. `held_keys` counts keys whose later events wait, as one of theirs waits for its retry
    here; after a minute it is a problem. `published` counts events that the engine has acknowledged.

    Of broadcasts, `heard` counts the events whose receivers were called, `missed` those that receivers were too slow
    for or that could not be read, and `gaps` the interruptions in which any number may have been missed.

    `expired` counts what was removed because it was kept for long enough: dead letters, refused events, rows of the
    inbox.
    """

    problems: dict[str, str] = field(default_factory=dict)
    published: int = 0
    received: int = 0
    ignored: int = 0
    failed: int = 0
    dead: int = 0
    released: int = 0
    in_flight: int = 0
    heard: int = 0
    missed: int = 0
    gaps: int = 0
    expired: int = 0
    held_keys: int = 0

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


def problems_of(
    parts: Iterable[object], states: Iterable[object], tasks: Iterable[asyncio.Task[Any]]
) -> dict[str, str]:
    """Collect what is wrong: with connections, with what parts say of themselves, and with tasks that have ended."""
    problems: dict[str, str] = {}
    parts = tuple(parts)
    for state in (*states, *(getattr(part, "connection_state", None) for part in parts)):
        if isinstance(state, ConnectionState) and state.problem is not None:
            problems[state.name] = state.problem
    for part in parts:
        problems.update(getattr(part, "problems", {}))
    for task in tasks:
        if task.done():
            problems["task"] = f"a part of the relay has ended: {redacted(task)}"
    return problems
