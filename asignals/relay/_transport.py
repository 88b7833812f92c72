"""What a relay needs of an engine: to publish, to consume, and to keep dead letters."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from asignals._core import DocumentedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
    from contextlib import AbstractContextManager

    from asignals.relay._envelope import DeadLetter, Envelope
    from asignals.relay._inbox import Inbox


@dataclass(slots=True)  # not frozen: that takes a microsecond for each event
class Delivery:
    """One event as the engine hands it over.

    `topic` is what the engine itself says that the topic is (by subject, stream, routing key or row), whatever the
    envelope says. `data` is the bytes of the envelope. `attempt` counts how often the engine has handed the event out,
    from 1; it is no count of failures or crashes, as it also counts deliveries that no receiver was called for.
    `is_repeat` is true where an earlier delivery of it, which may have begun, cannot be ruled out. Inside
    `with park():` an event that waits for another one takes none of the places that `limit` gives.
    """

    topic: str
    data: bytes
    attempt: int = 1
    is_repeat: bool = False
    park: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Release:
    """What `handle` returns to give an event back: any instance of the service may get it, after `delay` seconds."""

    delay: float


Handle: TypeAlias = "Callable[[Delivery], Awaitable[float | Release | None]]"
"""Handles one delivery: `None` acknowledges it, a number asks for it again after that many seconds, `Release` gives it
back to the engine for whichever instance."""


def delay_of(outcome: float | Release) -> float:
    """Give the seconds after which an event is to come again."""
    return outcome.delay if isinstance(outcome, Release) else outcome


def system_of(transport: object) -> str:
    """Name an engine as OpenTelemetry does (`messaging.system`); `asignals` for one without that attribute."""
    return str(getattr(transport, "system", "asignals"))


class PublishRefusedError(DocumentedError):
    """The engine will never take some events, however often they are repeated; all others are acknowledged.

    `refused` maps their ids to the reasons.
    """

    def __init__(self, refused: Mapping[str, str]) -> None:
        super().__init__(f"{len(refused)} events were refused: {dict(list(refused.items())[:3])}")
        self.refused: dict[str, str] = dict(refused)


@runtime_checkable
class Transport(Protocol):
    """An engine that carries events at least once. Two methods; the protocols below say what may be added.

    Each service gets every event of the topics that it receives, and its instances share them. asyncio only.
    """

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when the engine has acknowledged all of them, in order as far as it has one.

        Raises what the client raises when it cannot (the caller repeats the same envelopes, and nothing is lost), and
        `PublishRefusedError` for those that can never be taken.
        """
        ...

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event of these topics until cancelled, for at most `limit` events at once.

        Instances of one service may ask for different topics: an instance is never given an event of a topic that it
        did not ask for, and one that no running instance asks for waits. An event is acknowledged only after `handle`
        has returned `None` for it, and it stays this instance's for as long as `handle` runs. Of the events of one key
        in a topic, the next is handed over, to whichever instance, only when the one before is acknowledged, in the
        order of publishing. An instance that may have lost an event with a key to another one, as it was frozen, does
        not call `handle` for it. When cancelled, events whose `handle` has not returned are given back. A lost
        connection is retried for as long as it takes; whatever else is raised, the caller calls `consume` again after a
        pause.
        """
        ...


Hear: TypeAlias = "Callable[[Delivery], object]"
"""Takes one event of a broadcast; called in the event loop, it must not wait."""


@runtime_checkable
class Broadcasts(Protocol):
    """A transport that can give every event of a topic to every running instance, beside what services share."""

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Call `hear` for each event of these topics that is published from now on, until cancelled.

        `begun` is called when the events that are published next will be heard, and again after each loss of the
        connection: whatever was published in between may have been missed. Nothing is acknowledged, kept or repeated,
        and nothing is left with the engine, also when this process is killed. Now and then an event is heard twice.
        """
        ...


@runtime_checkable
class DeadLetters(Protocol):
    """A transport that keeps dead letters in their own queues, where no trimming reaches them."""

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Keep a letter; returns when it is safe."""
        ...

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue, without reading them."""
        ...

    def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters of a queue in batches, the oldest first, without removing them.

        One that cannot be read is shown as `DeadLetter.read` shows it, and ends nothing. Close the generator.
        """
        ...

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Remove letters that `scan_dead_letters` gave; best while that is still open."""
        ...


@runtime_checkable
class Backlog(Protocol):
    """A transport that can say what waits."""

    async def backlog(self, service: str) -> int:
        """Count the events that the service has not acknowledged, of all topics that it was ever known to receive.

        Those that instances hold are included.
        """
        ...


@runtime_checkable
class Prepared(Protocol):
    """A transport with tables or streams to create once; `asignals relay init` calls it."""

    async def init(self) -> None:
        """Create what is missing; harmless when all is there."""
        ...


@runtime_checkable
class KnowsServices(Protocol):
    """A transport that keeps events for the services that it knows; `asignals relay init` makes the relay's known."""

    async def add_service(self, service: str, topics: Collection[str]) -> None:
        """Keep events of these topics for a service from now on, before its first instance has come.

        Harmless when it is known; nothing is taken away.
        """
        ...

    async def forget_service(self, service: str, topics: Collection[str] | None = None) -> None:
        """Remove what is kept for a service, of some topics or of all: it is gone, and will not come for it."""
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


class SchemaError(DocumentedError, RuntimeError):
    """Tables, or columns, that a part of the relay needs are missing in its database."""

    def __init__(self, database: str, tables: Sequence[str]) -> None:
        super().__init__(
            f"{database}: no such table, or column: {', '.join(tables)}; "
            f"run `asignals relay init package.module:relay`, or add asignals.relay.table_metadata() to Alembic"
        )
        self.database = database
        self.tables: tuple[str, ...] = tuple(tables)


@runtime_checkable
class Checked(Protocol):
    """A part that can tell at the start whether its tables are there."""

    async def check(self) -> None:
        """Raise `SchemaError` when they are not, and what the driver raises when the database is out of reach."""
        ...


def engine_name(transport: object) -> str | None:
    """Name an engine by its kind and what it calls its names by: the same in all processes, whatever its URL is.

    `None` for a `Memory` without a name and for transports that are not ours: a process that only writes may use these.
    """
    kinds = [kind.__name__ for kind in type(transport).__mro__ if kind.__module__.startswith("asignals.relay.engines.")]
    names = (getattr(transport, name, None) for name in ("name", "stream", "prefix"))
    own = next((name for name in names if isinstance(name, str)), None)
    if not kinds or (kinds[0] == "Memory" and own is None):
        return None
    return (kinds[0] if own is None else f"{kinds[0]} {own!r}")[:200]
