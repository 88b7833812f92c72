"""Events that every running instance hears: for websockets, caches and configuration. Nothing is kept or repeated."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asignals.masking import redacted, said
from asignals.relay._caller import Received
from asignals.relay._envelope import Envelope, EnvelopeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from asignals.relay._caller import Caller
    from asignals.relay._subscription import Subscription
    from asignals.relay._transport import Broadcasts, Delivery

logger = logging.getLogger("asignals.relay")

_BUFFER: Final = 1_000  # events that wait while receivers are slow; then the oldest are dropped


@dataclass(slots=True)
class Heard:
    """What came of broadcasts: events heard, events missed (unreadable, or receivers were too slow), and gaps."""

    heard: int = 0
    missed: int = 0
    gaps: int = 0


class Listener:
    """Calls receivers for the broadcasts of some topics, one event after the other, in the order in which they came.

    A receiver that is slow holds up neither the engine nor other instances: when too many events wait, the oldest are
    dropped, counted and logged. One that fails is logged, and is not called again.
    """

    def __init__(self, caller: Caller, is_sent_here: Callable[[Envelope, Subscription], bool]) -> None:
        self.subscriptions: dict[str, Subscription] = {}
        self.counts = Heard()
        self._caller = caller
        self._is_sent_here = is_sent_here
        self._waiting: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._is_dropping = False
        self._begun = 0

    async def run(self, transport: Broadcasts) -> None:
        """Hear and handle until cancelled."""
        self._waiting.clear()
        self._arrived = asyncio.Event()  # the event loop may be another than the last time
        self._begun = 0
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._handle_for_ever())
            await transport.listen(list(self.subscriptions), self._hear, self._begin)

    def _begin(self) -> None:
        self._begun += 1
        if self._begun > 1:
            self.counts.gaps += 1
            topics = ", ".join(self.subscriptions)
            logger.warning("broadcasts of %s were interrupted: events of that time may have been missed", topics)

    def _hear(self, delivery: Delivery) -> None:
        self._waiting.append(delivery)
        self._arrived.set()
        if len(self._waiting) > _BUFFER:
            self._waiting.popleft()
            self.counts.missed += 1
            if not self._is_dropping:
                self._is_dropping = True
                logger.warning("broadcasts come faster than the receivers of %r handle them: drops", delivery.topic)

    async def _handle_for_ever(self) -> None:
        while True:
            while self._waiting:
                await self._handle(self._waiting.popleft())
                await asyncio.sleep(0)
            self._is_dropping = False
            self._arrived.clear()
            await self._arrived.wait()

    async def _handle(self, delivery: Delivery) -> None:
        subscription = self.subscriptions[delivery.topic]
        try:
            envelope = Envelope.decode(delivery.data)
            if envelope.target is not None or self._is_sent_here(envelope, subscription):
                return  # a replay for one service; or its receivers here were called by `send` itself
            arguments = self._read(delivery, envelope, subscription)
        except Exception as error:  # noqa: BLE001  whatever is wrong with it: it ends no other
            self.counts.missed += 1
            logger.warning("a broadcast of %r cannot be read: %s", delivery.topic, said(error.__cause__ or error))
            return
        outcome = await self._caller.call(Received(delivery, envelope, subscription, arguments), (), 1)
        self.counts.heard += 1
        if outcome.error is not None and not outcome.is_called:
            logger.warning("a broadcast of %r was not handled: %s", delivery.topic, said(outcome.error))

    def _read(self, delivery: Delivery, envelope: Envelope, subscription: Subscription) -> dict[str, object]:
        if envelope.topic != delivery.topic:
            reason = f"it says that it is one of {redacted(envelope.topic)!r}"
            raise EnvelopeError(reason)
        if envelope.version > subscription.version:
            reason = f"its version {envelope.version} is newer than {subscription.version}"
            raise EnvelopeError(reason)
        return subscription.read(envelope)
