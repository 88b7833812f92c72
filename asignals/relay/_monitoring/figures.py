"""What an engine knows of a topic that a service receives, in one shape for all engines; and heartbeats."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from asignals.relay._cancel import limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._to_the_end import to_the_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable

BEAT: Final = 5.0  # seconds between two heartbeats of an instance, where the engine needs them
EXPIRY: Final = 20.0  # seconds after its last heartbeat for which an instance counts as alive
_CLOSE_TIMEOUT: Final = 2.0  # seconds that an instance that stops may take to say so


@dataclass(frozen=True, slots=True)
class TopicFigures:
    """What is known of one topic in one service; `None` is what the engine cannot tell.

    `backlog` counts the events that are not acknowledged; `in_flight` those of them that instances hold, and `retries`
    those that wait to be delivered again, for their retry or because their instance is gone. `oldest` is the age of
    the oldest of the backlog in seconds, 0 where there is none. `instances` counts those that run now.
    """

    service: str
    topic: str
    backlog: int | None = None
    oldest: float | None = None
    in_flight: int | None = None
    retries: int | None = None
    instances: int | None = None


@runtime_checkable
class Figures(Protocol):
    """A transport that can say what waits, topic by topic."""

    async def figures(self, service: str | None = None, topics: Collection[str] | None = None) -> list[TopicFigures]:
        """Give the figures of one service, or of all that the engine knows, by service and topic.

        By default of all topics that a service was ever known to receive; `topics` names some of one service.
        """
        ...


def held_of(beat: bytes) -> dict[str, int]:
    """Read what an instance says in its heartbeat: how many events it holds, by topic; nothing where it is none."""
    try:
        found = json.loads(beat)
        return {str(topic): int(count) for topic, count in found.items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def backlog_of(figures: Iterable[TopicFigures]) -> int:
    """Count what waits in all topics."""
    return sum(one.backlog or 0 for one in figures)


async def beat_for_ever(
    name: str, write: Callable[[], Awaitable[object]], remove: Callable[[], Awaitable[object]]
) -> None:
    """Say now and then that this instance is alive, until cancelled, and then that it is not."""
    attempts = Attempts(ConnectionState(f"heartbeats in {name}"))
    try:
        while True:
            async with attempts:
                await write()
            await asyncio.sleep(BEAT)
    finally:
        with suppress(Exception):  # then its last heartbeat expires
            await to_the_end(limited(remove(), _CLOSE_TIMEOUT))
