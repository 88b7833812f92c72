"""What a relay needs of an engine: to publish, to consume, and to keep dead letters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from asignals.relay._envelope import DeadLetter, Envelope
    from asignals.relay._inbox import Inbox


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event as a transport hands it over: the bytes of the envelope, and how often it was delivered by now.

    `attempt` starts at 1; an engine that does not count leaves it at 1.
    """

    data: bytes
    attempt: int = 1


Handle: TypeAlias = "Callable[[Delivery], Awaitable[float | None]]"
"""Handles one delivery: `None` acknowledges it, a number asks for it again after that many seconds."""


class PublishRefusedError(Exception):
    """The engine will never take some events, however often they are repeated; all others are acknowledged.

    `refused` maps their ids to the reasons.
    """

    def __init__(self, refused: Mapping[str, str]) -> None:
        super().__init__(f"{len(refused)} events were refused: {dict(list(refused.items())[:3])}")
        self.refused: dict[str, str] = dict(refused)


@runtime_checkable
class Transport(Protocol):
    """An engine that carries events at least once. Two methods; see `DeadLetters` and `Backlog` for what may be added.

    Each service gets every event, the instances of a service share them. asyncio only.
    """

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when the engine has acknowledged all of them, in order as far as it has one.

        Raises what the client raises when it cannot (the caller repeats the same envelopes, and nothing is lost), and
        `PublishRefusedError` for those that can never be taken.
        """
        ...

    async def consume(self, service: str, instance: str, handle: Handle, *, limit: int = 100) -> None:
        """Call `handle` for each event of the service until cancelled, for at most `limit` events at once.

        An event is acknowledged only after `handle` has returned `None` for it, and the claim to it is kept for as long
        as `handle` runs. When cancelled, events whose `handle` has not returned are given back. A lost connection is
        retried for as long as it takes; whatever else is raised, the caller calls `consume` again after a pause.
        """
        ...


@runtime_checkable
class DeadLetters(Protocol):
    """A transport that keeps dead letters in queues of their own, where no trimming reaches them."""

    async def bury(self, queue: str, letter: DeadLetter) -> None:
        """Keep a letter; returns when it is safe."""
        ...

    async def letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """Show the oldest letters without removing them."""
        ...

    async def remove(self, queue: str, letter: DeadLetter) -> None:
        """Remove one of the letters that `letters` gave."""
        ...


@runtime_checkable
class Backlog(Protocol):
    """A transport that can say what waits."""

    async def backlog(self, service: str) -> int:
        """Count the events that the service has not acknowledged, those it holds included."""
        ...


@runtime_checkable
class Prepared(Protocol):
    """A transport with tables or streams to create once; `asignals relay init` calls it."""

    async def init(self) -> None:
        """Create what is missing; harmless when all is there."""
        ...


@runtime_checkable
class KnowsServices(Protocol):
    """A transport that keeps events only for services it knows; `asignals relay init` makes the relay's known."""

    async def add_service(self, service: str) -> None:
        """Keep events for a service from now on, before its first instance has come; harmless when it is known."""
        ...


@runtime_checkable
class Closing(Protocol):
    """A transport that holds connections. It opens them again when it is used again."""

    async def aclose(self) -> None:
        """Close the connections."""
        ...


@runtime_checkable
class OwnInbox(Protocol):
    """A transport whose engine can remember what was done of an event that failed, for whoever gets it next."""

    def inbox(self) -> Inbox:
        """Give an inbox in the engine itself."""
        ...
