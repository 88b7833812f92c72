"""The receiving side: what becomes of one delivery.

The order of things is the guarantee. A delivery is acknowledged (`None`) only when every receiver has succeeded and
that is remembered, or when a dead letter is safe; whatever happens before leaves it with the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from asignals._core import Connection, bind, registry_of
from asignals._core import Send
from asignals.relay._cancel import heeding, times_cancelled
from asignals.relay._envelope import MAX_KEPT, DeadLetter, Envelope, EnvelopeError
from asignals.relay._export import ExportUid, handling
from asignals.relay._inbox import Memo, receiver_name
from asignals.relay._link import jittered
from asignals.relay._trace import following

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from asignals import Signal
    from asignals._core import Connection as Link
    from asignals.relay._codec import Codec
    from asignals.relay._inbox import Inbox
    from asignals.relay._transport import Delivery

logger = logging.getLogger("asignals.relay")

_CRASHES = 50  # deliveries beyond the retries after which an event counts as one that kills its process


@dataclass(slots=True)
class Subscription:
    """What `Relay.receive` was told about one topic."""

    signal: Signal[..., Any]
    topic: str
    retries: int
    backoff: tuple[float, float]
    dead_letter: str
    version: int
    codec: Codec
    load: Callable[[str | None], Any]
    own: bool
    _plan: Any = None
    _links: list[tuple[Link, str]] = field(default_factory=list)

    def links(self, sender: object) -> list[tuple[Link, str]]:
        """Whom to call for a sender, in order and by name; exporting receivers are left out."""
        plan = registry_of(self.signal).plan_for(sender).connections
        if plan is not self._plan:
            taken: set[str] = set()
            links = [link for link in plan if not _is_exporter(link)]
            self._links = [(link, receiver_name(_name_of(link), taken)) for link in links]
            self._plan = plan
        return self._links

    def pause(self, failures: int) -> float:
        """Seconds to wait after that many failures."""
        first, most = self.backoff
        return jittered(min(most, first * 2.0 ** min(failures - 1, 60)))


def _is_exporter(link: Link) -> bool:
    return isinstance(link, Connection) and isinstance(link.dispatch_uid, ExportUid)


def _name_of(link: Link) -> str:
    """Name a receiver as another process of the service would name it, too."""
    if isinstance(link, Connection) and isinstance(link.dispatch_uid, str):
        return link.dispatch_uid
    receiver = link.target()
    named = receiver if hasattr(receiver, "__qualname__") else type(receiver)
    return f"{named.__module__}.{named.__qualname__}"


@dataclass(slots=True)
class Counts:
    """What the receiving side has done so far."""

    received: int = 0
    ignored: int = 0
    failed: int = 0
    dead: int = 0
    in_flight: int = 0


class GivenUp(Exception):  # noqa: N818  not raised to anyone: why an event becomes a dead letter
    """No repetition can help."""


class Inbound:
    """Handles deliveries for one service."""

    def __init__(
        self,
        service: str,
        origin: str,
        inbox: Inbox,
        bury: Callable[[str, DeadLetter], Awaitable[None]],
        *,
        always_remember: bool,
    ) -> None:
        self.service = service
        self.subscriptions: dict[str, Subscription] = {}
        self.counts = Counts()
        self.stopping = False
        self.idle = asyncio.Event()
        self.idle.set()
        self.dead_letter = f"dlq.{service}"
        self._origin = origin
        self._inbox = inbox
        self._bury = bury
        self._always_remember = always_remember
        self._keys: dict[str, asyncio.Lock] = {}
        self._queued: Counter[str] = Counter()

    def begin(self) -> None:
        """Make ready to handle, in the event loop that runs now: it may not be that of the last time."""
        self.stopping = False
        self.idle = asyncio.Event()
        self.idle.set()
        self._keys.clear()

    async def handle(self, delivery: Delivery) -> float | None:
        """Handle one delivery: `None` when it is done, else the seconds after which to deliver it again."""
        if self.stopping:
            await asyncio.Event().wait()  # until cancelled: the engine then gives it to another instance
        self.counts.in_flight += 1
        self.idle.clear()
        try:
            return await self._handle(delivery)
        finally:
            self.counts.in_flight -= 1
            if not self.counts.in_flight:
                self.idle.set()

    async def _handle(self, delivery: Delivery) -> float | None:
        try:
            envelope = Envelope.decode(delivery.data)
        except EnvelopeError as error:
            return await self._give_up(self.dead_letter, delivery, error, 1)
        subscription = self.subscriptions.get(envelope.topic)
        if subscription is None or not self._is_meant(envelope, subscription):
            self.counts.ignored += 1
            return None
        async with self._in_turn(envelope.key) if envelope.key is not None else nullcontext():
            return await self._deliver(delivery, envelope, subscription)

    def _is_meant(self, envelope: Envelope, subscription: Subscription) -> bool:
        if envelope.target is not None:
            return envelope.target == self.service
        if envelope.origin == self._origin:
            return False  # its receivers in this process were called by `send` itself
        return subscription.own or envelope.origin.partition("/")[0] != self.service

    @asynccontextmanager
    async def _in_turn(self, key: str) -> AsyncIterator[None]:
        """Let events of one key pass one after the other."""
        lock = self._keys.setdefault(key, asyncio.Lock())
        self._queued[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._queued[key] -= 1
            if not self._queued[key]:
                del self._queued[key], self._keys[key]

    async def _deliver(self, delivery: Delivery, envelope: Envelope, subscription: Subscription) -> float | None:
        try:
            arguments = self._read(envelope, subscription)
        except GivenUp as refusal:
            return await self._give_up(subscription.dead_letter, delivery, refusal.__cause__ or refusal, 1)
        event_id = envelope.repeats or envelope.id
        try:
            memo = await self._recall(event_id, envelope, delivery)
            if delivery.attempt > subscription.retries + 1 + _CRASHES:
                reason = f"delivered {delivery.attempt} times without ever being done: does it kill its process?"
                return await self._give_up(subscription.dead_letter, delivery, GivenUp(reason), delivery.attempt)
            done: set[str] = set()
            error = await self._call(envelope, subscription, arguments, memo.done, done)
            if error is None:
                if self._always_remember and done:
                    await self._inbox.remember(event_id, self.service, done)
                self.counts.received += 1
                return None
            failures = memo.failures + 1
            is_last = failures > subscription.retries
            await self._inbox.remember(event_id, self.service, done, 0 if is_last else failures)
        except Exception as trouble:  # noqa: BLE001  the inbox is out of reach; the engine keeps the event
            logger.warning("event %s of %r waits: the inbox failed (%r)", envelope.id, envelope.topic, trouble)
            return subscription.pause(1)
        self.counts.failed += 1
        if is_last:
            return await self._give_up(subscription.dead_letter, delivery, error, failures)
        return subscription.pause(failures)

    def _read(self, envelope: Envelope, subscription: Subscription) -> dict[str, Any]:
        """Read the arguments; raises `GivenUp` when no repetition will make them readable."""
        if envelope.version > subscription.version:
            msg = f"its schema version is {envelope.version}, and {subscription.version} is the newest known here"
            raise GivenUp(msg)
        try:
            arguments = subscription.codec.decode(envelope.body)
            return bind(subscription.signal, None, **arguments)[1]
        except Exception as error:
            raise GivenUp from error

    async def _recall(self, event_id: str, envelope: Envelope, delivery: Delivery) -> Memo:
        if not self._always_remember and delivery.attempt == 1 and envelope.repeats is None:
            return Memo()  # only failures are remembered, and this event has had none
        return await heeding(self._inbox.recall(event_id, self.service))

    async def _call(
        self,
        envelope: Envelope,
        subscription: Subscription,
        arguments: dict[str, Any],
        skipped: set[str],
        done: set[str],
    ) -> BaseException | None:
        """Call each receiver that is not to be skipped, the others too when one fails; gives the first error."""
        token = handling.set(envelope)
        failure: BaseException | None = None
        try:
            with following(envelope.traceparent) if envelope.traceparent else nullcontext():
                sender = subscription.load(envelope.sender)
                if isawaitable(sender):
                    sender = await heeding(sender)
                send = Send(subscription.signal, sender, arguments, robust=True)
                for link, name in subscription.links(sender):
                    if name in skipped:
                        continue
                    error = await _respond(send, link)
                    if error is None:
                        done.add(name)
                    else:
                        failure = failure or error
        except Exception as error:  # noqa: BLE001  the sender could not be loaded: as if a receiver had failed
            failure = failure or error
        finally:
            handling.reset(token)
        return failure

    async def _give_up(self, queue: str, delivery: Delivery, error: BaseException, attempts: int) -> float | None:
        letter = DeadLetter(delivery.data[:MAX_KEPT], self.service, f"{type(error).__name__}: {error}", attempts)
        try:
            await self._bury(queue, letter)
        except Exception as trouble:  # noqa: BLE001  then the event stays where it is, and is tried once more
            logger.warning("a dead letter for %r could not be kept yet (%r)", queue, trouble)
            return jittered(2.0)
        self.counts.dead += 1
        logger.error("an event went to %r after %d attempts: %s", queue, attempts, letter.error[:500])
        return None


async def _respond(send: Send, link: Link) -> BaseException | None:
    """Call one receiver; gives its error."""
    try:
        pair = await send.to(link)
    except asyncio.CancelledError as error:
        if times_cancelled():
            raise
        return error  # the receiver raised it by itself: an error like another
    return pair[1] if pair is not None and isinstance(pair[1], Exception) else None
