"""The receiving side: what becomes of one delivery.

The order of things is the guarantee. A delivery is acknowledged (`None`) only when every receiver that is to hear has
succeeded and that is remembered, or when a dead letter is safe; whatever happens before leaves it with the engine. An
event that nobody here can read or handle is given back, for another instance of the service.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from asignals.relay._caller import Caller, Received, Recent
from asignals.relay._connection_state import jittered
from asignals.relay._envelope import DeadLetter, Envelope, EnvelopeError
from asignals.relay._handler import Counts, EventHandler
from asignals.relay._held_keys import HeldKeys
from asignals.relay._lanes import Lanes
from asignals.relay._notes import Notes
from asignals.relay._subscription import GivenUp
from asignals.relay._transport import Release
from asignals.relay._watchdog import Watchdog
from asignals.relay._watched_inbox import WatchedInbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asignals.relay._identity import Identity
    from asignals.relay._inbox import Inbox
    from asignals.relay._subscription import Subscription
    from asignals.relay._transport import Delivery

_ELSEWHERE: Final = 2.0  # seconds after which an event is offered again that this instance cannot read
_PARKED: Final = 2.0  # seconds after which an event comes again for which too many wait


class Inbound:
    """Takes the deliveries for one service: how many at once, and what is to be handled here."""

    def __init__(  # noqa: PLR0913  parts of one relay
        self,
        identity: Identity,
        inbox: Inbox,
        put_dead_letter: Callable[[str, DeadLetter], Awaitable[None]],
        *,
        always_remember: bool,
        lease: float,
        system: str = "asignals",
    ) -> None:
        service = identity.service
        self.service = service
        self.dead_letter = f"dlq.{service}"
        self.always_remember = always_remember
        self.subscriptions: dict[str, Subscription] = {}
        self.counts = Counts()
        self.watchdog = Watchdog(lease, self._blocked)
        self.inbox = WatchedInbox(inbox, service)
        self.caller = Caller(service, system, self.inbox, self.watchdog, always_remember=always_remember)
        self._notes = Notes()
        self._handler = EventHandler(
            *(service, self.inbox, self.caller, put_dead_letter, self._notes, self.counts),
            always_remember=always_remember,
        )
        self._identity = identity
        self._own = f"{service}/"
        self._first_seen = Recent()  # of events with a newer version: when that was
        self.begin(1)

    def begin(self, limit: int) -> None:
        """Make ready to handle, in the event loop that runs now: it may not be that of the last time."""
        self.stopping = False
        self.idle = asyncio.Event()
        self.idle.set()
        self._lanes = Lanes(limit)
        self.held_keys = HeldKeys()
        self._handler.begin()

    @property
    def problems(self) -> dict[str, str]:
        """What does not work, by what it is, as far as it was noticed of late."""
        found = self._notes.problems
        if self.inbox.state.problem is not None:
            found[self.inbox.state.name] = self.inbox.state.problem
        return found | self.held_keys.problems

    async def handle(self, delivery: Delivery) -> float | Release | None:
        """Handle one delivery: `None` when it is done, else when to deliver it again."""
        try:
            envelope = Envelope.decode(delivery.data)
        except EnvelopeError as error:
            return await self._handler.give_up(self.dead_letter, delivery, error, 1)
        lanes, counts, key = self._lanes, self.counts, envelope.key
        if key is not None or not lanes.has_place():
            if lanes.is_full(key):
                return jittered(_PARKED)
            await lanes.take_place(delivery, key)
        try:
            if self.stopping:
                await asyncio.Event().wait()  # until cancelled: the engine then gives it to another instance
            counts.in_flight += 1
            self.idle.clear()
            try:
                outcome = await self._decide(delivery, envelope)
                if key is not None:
                    self.held_keys.note(envelope, outcome)
                return outcome
            finally:
                counts.in_flight -= 1
                if not counts.in_flight:
                    self.idle.set()
        finally:
            lanes.give_place(key)

    async def _decide(self, delivery: Delivery, envelope: Envelope) -> float | Release | None:
        """Handle an event that is meant for this service and that this instance can read."""
        give_up = self._handler.give_up
        if delivery.topic != envelope.topic:
            reason = f"it came as an event of {delivery.topic!r} and says that it is one of {envelope.topic!r}"
            return await give_up(self.dead_letter, delivery, GivenUp(reason), 1)
        subscription = self.subscriptions.get(envelope.topic)
        if subscription is None:  # an engine that does not keep topics apart: others may know it
            return self._release(envelope, f"this instance does not receive {envelope.topic!r}")
        if not self._is_meant(envelope, subscription):
            self.counts.ignored += 1
            return None
        if envelope.version > subscription.version:
            return await self._wait_for_newer(delivery, envelope, subscription)
        try:
            arguments = subscription.read(envelope)
        except GivenUp as refusal:
            return await give_up(subscription.dead_letter, delivery, refusal.__cause__ or refusal, 1)
        return await self._handler.handle(Received(delivery, envelope, subscription, arguments))

    def _is_meant(self, envelope: Envelope, subscription: Subscription) -> bool:
        if envelope.target is not None:
            return envelope.target == self.service
        if envelope.origin == self._identity.origin and envelope.done:
            return False  # its receivers in this process were called by `send` itself
        return subscription.include_own_service or not envelope.origin.startswith(self._own)

    # -- what this instance cannot handle ----------------------------------------------------------------------------

    async def _wait_for_newer(
        self, delivery: Delivery, envelope: Envelope, subscription: Subscription
    ) -> Release | float | None:
        """Leave an event to instances that can read it; give it up when there were none for too long."""
        known, got = subscription.version, envelope.version
        now = time.monotonic()
        since = self._first_seen.setdefault(envelope.id, now)
        self._first_seen.put(envelope.id, since)
        if now - since < subscription.newer_version_timeout:
            reason = f"schema version {got} is newer than {known}, the newest known here"
            return self._release(envelope, reason)
        reason = f"its schema version is {got}, and for {now - since:.0f} s only {known} and older was known here"
        outcome = await self._handler.give_up(subscription.dead_letter, delivery, GivenUp(reason), 1)
        if outcome is None:
            self._first_seen.pop(envelope.id, None)
        return outcome

    def _release(self, envelope: Envelope, reason: str) -> Release:
        self.counts.released += 1
        self._notes.add(f"waiting events of {envelope.topic!r}", f"{reason}; they wait for an instance that does")
        return Release(jittered(_ELSEWHERE))

    def _blocked(self, receiver: str | None, seconds: float) -> None:
        """Say who blocks the event loop; called from another thread."""
        who = receiver or "something that is no receiver of the relay"
        text = f"{who} has blocked it for {seconds:.1f} s; events are redelivered, and handled twice, when that lasts"
        self._notes.add("the event loop", f"{text}: await, or connect it with in_thread=True")
