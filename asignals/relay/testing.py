"""Relays in a test: several services in one process, and an engine that does what the test tells it. asyncio only.

    async def test_the_mill_grinds(relay):          # the fixture of asignals.pytest_plugin
        relay.service("shop").export(order_paid, "shop.paid")
        relay.service("mill").receive(order_received, "shop.paid")
        await order_paid.send("web", amount=42)
        await relay.deliver()

Nothing is delivered before `deliver`, and all of it is when that returns; no time passes between retries. Receivers are
tested against redelivery, and their arguments against the wire, by `await redeliver(order_paid, "web", amount=42)`.
"""

from __future__ import annotations

import asyncio
import warnings
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Self

from asignals.relay._dead_letters import Letters
from asignals.relay._envelope import Envelope, EnvelopeError
from asignals.relay._export import ExportUid
from asignals.relay._inbox import MemoryInbox
from asignals.relay._relay import Relay
from asignals.relay._transport import Delivery, Release

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Sequence
    from types import TracebackType

    from asignals import Signal
    from asignals.relay._envelope import DeadLetter
    from asignals.relay._transport import Handle

__all__ = ["ManualEngine", "RelayTest", "Waiting", "redeliver"]

_START: Final = 5.0  # seconds that relays may take to begin to consume, and outboxes to be published
_TOO_OFTEN: Final = 1_000  # deliveries of one event, after which something is wrong with its receivers or the test


@dataclass(slots=True, eq=False)
class Waiting:
    """One event that waits for one service; `attempt` counts its deliveries so far."""

    service: str
    topic: str
    data: bytes
    attempt: int = 0
    is_released: bool = False

    @property
    def envelope(self) -> Envelope | None:
        """The event; `None` where it cannot be read."""
        try:
            return Envelope.decode(self.data)
        except EnvelopeError:
            return None


class ManualEngine:
    """A transport that keeps what is published until `deliver` hands it over; one event loop at a time.

    `waiting` has the events in the order in which they are delivered; a test may read and change it.
    """

    def __init__(self) -> None:
        self.waiting: list[Waiting] = []
        self.dead: dict[str, list[DeadLetter]] = {}
        self._topics: dict[str, set[str]] = {}
        self._kept: list[Envelope] = []
        self._instances: list[_Instance] = []
        self._failures: list[Exception] = []
        self._positions = count()

    def inbox(self) -> MemoryInbox:
        """Give one that forgets with the process, as this engine does."""
        return MemoryInbox()

    # -- what a test asks for ---------------------------------------------------------------------------------------

    def fail(self, times: int = 1, error: Exception | None = None) -> None:
        """Have the next publications fail, by `ConnectionError` or another error."""
        self._failures += [error or ConnectionError("the engine is away, as the test asked") for _ in range(times)]

    async def hand_over(self, item: Waiting) -> bool:
        """Deliver one waiting event to an instance of its service; whether it is acknowledged."""
        instance = self._instance_for(item)
        item.attempt += 1
        if item.attempt > _TOO_OFTEN:
            raise AssertionError(
                f"an event of {item.topic!r} was delivered to {item.service!r} {_TOO_OFTEN} times and is not done"
            )
        instance.deliveries += 1
        outcome = await instance.handle(Delivery(item.topic, item.data, item.attempt, item.attempt > 1))
        item.is_released = isinstance(outcome, Release)
        return outcome is None

    def is_deliverable(self, item: Waiting) -> bool:
        """Whether an instance that receives the topic is there."""
        return any(each.takes(item) for each in self._instances)

    def _instance_for(self, item: Waiting) -> _Instance:
        return min((each for each in self._instances if each.takes(item)), key=lambda each: each.deliveries)

    def is_consumed_by(self, relay: Relay) -> bool:
        """Whether an instance has begun to consume."""
        return any((each.service, each.name) == (relay.service, relay.instance) for each in self._instances)

    def unknown_topics(self) -> list[str]:
        """Topics that were published and that no service receives."""
        known = set().union(*self._topics.values())
        return sorted({each.topic for each in self._kept} - known)

    # -- what a relay asks for --------------------------------------------------------------------------------------

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Keep the events for the services that receive their topics; an id is taken once."""
        if self._failures:
            raise self._failures.pop(0)
        known = {each.id for each in self._kept}
        for envelope in envelopes:
            if envelope.id not in known:
                self._kept.append(envelope)
                self._offer(envelope, [name for name, topics in self._topics.items() if envelope.topic in topics])

    def _offer(self, envelope: Envelope, services: Iterable[str]) -> None:
        self.waiting += [Waiting(service, envelope.topic, envelope.encode()) for service in services]

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Be one to whom `hand_over` delivers, until cancelled."""
        del limit
        await self.add_service(service, topics)
        one = _Instance(service, instance, frozenset(topics), handle)
        self._instances.append(one)
        try:
            await asyncio.Event().wait()
        finally:
            self._instances.remove(one)

    async def add_service(self, service: str, topics: Collection[str]) -> None:
        """Keep events of these topics for a service, those that were published before too."""
        self.know(service, topics)

    def know(self, service: str, topics: Collection[str]) -> None:
        """The same without waiting."""
        known = self._topics.setdefault(service, set())
        for topic in topics:
            if topic not in known:
                known.add(topic)
                for envelope in self._kept:
                    if envelope.topic == topic:
                        self._offer(envelope, [service])

    async def forget_service(self, service: str, topics: Collection[str] | None = None) -> None:
        """Drop what waits for a service."""
        gone = self._topics.get(service, set()) if topics is None else set(topics)
        self.waiting = [each for each in self.waiting if each.service != service or each.topic not in gone]
        self._topics[service] = self._topics.get(service, set()) - gone

    async def backlog(self, service: str) -> int:
        """Count what waits for a service."""
        return sum(each.service == service for each in self.waiting)

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Keep a letter."""
        self.dead.setdefault(queue, []).append(replace(letter, position=str(next(self._positions))))

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue."""
        return len(self.dead.get(queue, []))

    async def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters in batches, the oldest first."""
        letters = list(self.dead.get(queue, []))
        for start in range(0, len(letters), batch):
            yield letters[start : start + batch]

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Remove letters."""
        gone = {letter.position for letter in letters}
        self.dead[queue] = [letter for letter in self.dead.get(queue, []) if letter.position not in gone]


@dataclass(slots=True, eq=False)
class _Instance:
    service: str
    name: str
    topics: frozenset[str]
    handle: Handle
    deliveries: int = 0

    def takes(self, item: Waiting) -> bool:
        return item.service == self.service and item.topic in self.topics


class RelayTest:
    """Some services whose relays share one engine, which delivers when the test says so.

    Use it as a context manager, or by the fixture `relay` of the pytest plugin: the end disconnects what the services
    export, and gives relays that `adopt` was given their own engines back.
    """

    __test__ = False  # no class of tests, whatever its name says to pytest

    def __init__(self) -> None:
        self.engine: ManualEngine = ManualEngine()
        self._relays: list[Relay] = []
        self._undo = ExitStack()

    def service(self, name: str, **options: Any) -> Relay:
        """Make a relay of a service, on this engine; `options` as for `Relay`. A second one is another instance."""
        made = Relay(self.engine, name, **{"instance": f"test-{len(self._relays) + 1}", **options})
        self._undo.callback(_stop_exporting, made)
        self._relays.append(made)
        return made

    def adopt(self, relay: Relay) -> Relay:
        """Put a relay of the application on this engine until the end of the test; it must not run."""
        if relay.health().in_flight or relay._runner.is_running:
            raise RuntimeError(f"{relay!r} runs: adopt it before it starts")
        self._undo.enter_context(_on_engine(relay, self.engine))
        self._relays.append(relay)
        return relay

    def fail(self, times: int = 1, error: Exception | None = None) -> None:
        """Have the engine refuse the next publications, by `ConnectionError` or another error.

        Without an outbox `send` raises it; with one the event stays there and is published by the next `deliver`.
        """
        self.engine.fail(times, error)

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """What was published, and not handled yet, for each service that receives it."""
        for relay in self._relays:
            self.engine.know(relay.service, relay.topics)
        return tuple(self.engine.waiting)

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """What was given up, of all services."""
        return [letter for letters in self.engine.dead.values() for letter in letters]

    async def deliver(
        self,
        *,
        repeat: int = 0,
        order: Callable[[list[Waiting]], Iterable[Waiting]] | None = None,
        where: Callable[[Waiting], object] | None = None,
        limit: int | None = None,
        dead: int = 0,
    ) -> int:
        """Hand over what waits, and what its receivers send, until nothing is left; returns how many deliveries.

        Receivers run in this task and context, so a capture sees them. What failed is tried again at once, as often as
        the relay would, without a pause. What is given back for other instances waits for the next call.

        Args:
            repeat: Deliver each event so many times more, as if the engine had lost the acknowledgements. The relay
                calls receivers once more, then it remembers that they have succeeded.
            order: Puts what waits into another order: `reversed`, or `random.Random(7).sample` through a lambda.
            where: Deliver only what this is true of; the rest is delayed until another call.
            limit: End after so many deliveries; the rest is delayed.
            dead: How many events are to become dead letters.

        Raises:
            AssertionError: another number of events became dead letters, or an event is never done.

        Warns (`UserWarning`) of topics that are published and that no service here receives.
        """
        before = len(self.dead_letters)
        async with AsyncExitStack() as stack:
            await self._start(stack)
            handled = await self._deliver_all(repeat, order, where, limit)
        for topic in self.engine.unknown_topics():
            msg = f"events of {topic!r} were published, and no service of this test receives that topic"
            warnings.warn(msg, UserWarning, stacklevel=2)
        letters = self.dead_letters[before:]
        if len(letters) != dead:
            shown = "".join(f"\n  {letter.service}: {letter.error}" for letter in letters[:10])
            raise AssertionError(
                f"expected {dead} dead letters, there were {len(letters)}{':' if letters else ''}{shown}"
            )
        return handled

    async def _start(self, stack: AsyncExitStack) -> None:
        """Run the relays that do not run yet, and wait until they consume and their outboxes are published."""
        for relay in self._relays:
            if not relay._runner.is_running:
                await stack.enter_async_context(relay)
        for relay in self._relays:
            async with asyncio.timeout(_START):
                while relay.topics and not self.engine.is_consumed_by(relay):  # noqa: ASYNC110  see below
                    await asyncio.sleep(0)  # its task has just been started
            await self._publish(relay)

    async def _publish(self, relay: Relay) -> None:
        try:
            async with asyncio.timeout(_START):
                while await relay._runner.waiting_in_outbox():  # noqa: ASYNC110  a database's rows
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(
                f"the outbox of {relay.service!r} still has events that the engine did not take, after {_START:g} s"
            ) from None

    async def _deliver_all(
        self,
        repeat: int,
        order: Callable[[list[Waiting]], Iterable[Waiting]] | None,
        where: Callable[[Waiting], object] | None,
        limit: int | None,
    ) -> int:
        handled = 0
        for item in self.engine.waiting:
            item.is_released = False
        while ready := [each for each in self.engine.waiting if self._is_ready(each, where)]:
            for item in list(ready if order is None else order(ready)):
                for _ in range(1 + repeat):
                    if handled == limit:
                        return handled
                    handled += 1
                    is_done = await self.engine.hand_over(item)
                    if not is_done:
                        break
                self.engine.waiting.remove(item)
                if not is_done:
                    self.engine.waiting.append(item)
            for relay in self._relays:
                await self._publish(relay)
        return handled

    def _is_ready(self, item: Waiting, where: Callable[[Waiting], object] | None) -> bool:
        return not item.is_released and self.engine.is_deliverable(item) and (where is None or bool(where(item)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._undo.close()


async def redeliver(signal: Signal[..., Any], sender: object = None, /, **arguments: Any) -> None:
    """Call the receivers of a signal twice, as a relay does that delivers one event again; for tests of receivers.

    The arguments cross as they would between processes, so what cannot be written as JSON, or is read as something
    else, is found too. Raises `AssertionError` with the receiver's error where one fails the first or the second time.
    """
    with RelayTest() as relays:
        source, target = relays.service("source"), relays.service("target")
        source.export(signal, "redelivered")
        target.receive(signal, "redelivered", retries=0)
        given, complete = signal._bind(sender, **arguments)
        for connection in signal.connections:
            export: Any = connection.receiver
            uid = connection.dispatch_uid
            if isinstance(uid, ExportUid) and uid.relay == id(source) and export is not None:
                await export(signal, given, **complete)
        await relays.deliver(repeat=1)


def _stop_exporting(relay: Relay) -> None:
    for signal, _ in list(relay._exported):
        relay.stop_exporting(signal)


@contextmanager
def _on_engine(relay: Relay, engine: ManualEngine) -> Iterator[None]:
    """Exchange what a relay has of its engine."""
    watched = relay._inbound.inbox
    parts = relay._parts
    before = parts.transport, parts.inbox, relay._letters, watched.inbox
    parts.transport = engine
    if not relay._inbound.always_remember:  # one that was given stays
        parts.inbox = watched.inbox = MemoryInbox()
    relay._letters = Letters(engine, relay.outbox, relay._publisher.publish)
    try:
        yield
    finally:
        parts.transport, parts.inbox, relay._letters, watched.inbox = before
