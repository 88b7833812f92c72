"""Handling an event: what is attempted, what is remembered, and when it comes again or becomes a dead letter.

An event that kills its process is found out by what is written down before its receivers are called a second time
(`Memo.begun`). All that were running then are suspects; each is tried again alone, so that only the one that does it
is found to have begun again and again without coming to an end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asignals.masking import said, without_passwords
from asignals.relay._caller import NotHandledError
from asignals.relay._connection_state import jittered
from asignals.relay._envelope import MAX_KEPT, DeadLetter
from asignals.relay._inbox import Memo
from asignals.relay._transport import Release
from asignals.relay._watched_inbox import InboxLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asignals.relay._caller import Caller, Outcome, Received
    from asignals.relay._envelope import Envelope
    from asignals.relay._notes import Notes
    from asignals.relay._subscription import Subscription
    from asignals.relay._transport import Delivery
    from asignals.relay._watched_inbox import WatchedInbox

logger = logging.getLogger("asignals.relay")

_SUSPECT: Final = 1.0  # seconds after which a suspect comes again while another one is tried
_NOT_KEPT: Final = 2.0  # seconds after which an event comes again whose dead letter could not be kept
_NOBODY: Final[frozenset[str]] = frozenset()
_NOTHING: Final = Memo()


class CrashedError(RuntimeError):
    """An event was begun again and again, alone, and never came to an end: it seems to kill its process."""

    def __init__(self, times: int) -> None:
        super().__init__(f"its receivers were called {times} times and never came to an end: does it kill its process?")
        self.times = times


class GivenUp(Exception):  # noqa: N818  not raised to anyone: why an event becomes a dead letter
    """No repetition can help."""


@dataclass(slots=True)
class Counts:
    """What the receiving side has done so far."""

    received: int = 0
    ignored: int = 0
    failed: int = 0
    dead: int = 0
    released: int = 0
    in_flight: int = 0


class EventHandler:
    """Handles the events of one service: `None` when one is done, else when to deliver it again."""

    def __init__(  # noqa: PLR0913, PLR0917  parts of the receiving side
        self,
        service: str,
        inbox: WatchedInbox,
        caller: Caller,
        put_dead_letter: Callable[[str, DeadLetter], Awaitable[None]],
        notes: Notes,
        counts: Counts,
        *,
        always_remember: bool,
    ) -> None:
        self._service = service
        self._own = f"{service}/"
        self._inbox = inbox
        self._caller = caller
        self._put_dead_letter = put_dead_letter
        self._notes = notes
        self._counts = counts
        self._always_remember = always_remember
        self.begin()

    def begin(self) -> None:
        """Make ready to handle, in the event loop that runs now: it may not be that of the last time."""
        self._alone = asyncio.Lock()

    async def handle(self, event: Received) -> float | Release | None:
        """Handle an event, which waits while the inbox does not answer."""
        delivery = event.delivery
        try:
            if delivery.is_repeat or delivery.attempt != 1 or event.envelope.repeats or self._always_remember:
                return await self._repeat(event)
            return await self._attempt(event, _NOTHING)  # only failures are remembered, and it has had none
        except InboxLostError as error:
            logger.debug("event %s of %r waits for the inbox (%s)", event.envelope.id, delivery.topic, said(error))
            return event.subscription.pause(1)

    # -- events that kill their process ------------------------------------------------------------------------------

    async def _repeat(self, event: Received) -> float | Release | None:
        """Attempt an event of which something may be remembered."""
        memo = await self._inbox.recall(event.event_id)
        if not event.delivery.is_repeat:
            return await self._attempt(event, memo)
        if not memo.begun:
            return await self._guarded(event, memo)
        return await self._suspected(event, memo)

    async def _suspected(self, event: Received, memo: Memo) -> float | Release | None:
        """Attempt what was running when its process ended: after a pause, and no two at once."""
        subscription = event.subscription
        if memo.begun >= max(2, subscription.retries):
            done = tuple(sorted(memo.done))
            crashed = CrashedError(memo.begun)
            return await self.give_up(subscription.dead_letter, event.delivery, crashed, memo.begun, done)
        longest = subscription.longest_pause(memo.begun)
        pause = memo.begun_at + longest - time.time()
        if pause > 0:
            return min(pause, longest)
        if self._alone.locked():
            return jittered(_SUSPECT)
        async with self._alone:
            return await self._guarded(event, memo)

    async def _guarded(self, event: Received, memo: Memo) -> float | Release | None:
        """Attempt it, having written down that it begins: only a process that dies leaves that standing."""
        before = memo.copy()
        memo.begun, memo.begun_at = memo.begun + 1, time.time()
        await self._inbox.remember(event.event_id, memo)
        is_ended = False
        try:
            outcome = await self._attempt(event, memo)
            is_ended = True
            return outcome
        finally:
            if not is_ended:  # cancelled, as the instance stops: that is no crash
                await self._inbox.take_back(event.event_id, before)

    # -- attempts ----------------------------------------------------------------------------------------------------

    async def _attempt(self, event: Received, memo: Memo) -> float | Release | None:
        """Call the receivers that are not done, and remember what came of it."""
        by_sender = self._called_by_sender(event.envelope)
        skipped = memo.done | by_sender if memo.done or by_sender else _NOBODY
        outcome = await self._caller.call(event, skipped, memo.failures + 1)
        if memo is _NOTHING and outcome.succeeded and outcome.error is None:  # as nearly always: that is all
            self._caller.forget(event.event_id)
            self._counts.received += 1
            return None
        return await self._conclude(event, memo, outcome)

    async def _conclude(self, event: Received, memo: Memo, outcome: Outcome) -> float | Release | None:
        """Remember what came of it, and say whether it comes again."""
        failed, error = outcome.failed, outcome.error
        if memo.failed:
            failed = (memo.failed | failed) - outcome.done - memo.done
        if error is None and (failed or not (outcome.is_called or outcome.is_left_out)):
            error = _what_is_missing(event.subscription, failed)
        if error is None:
            await self._finish(event, memo, outcome, failed)
            return None
        return await self._fail(event, memo, outcome, failed, error)

    async def _finish(self, event: Received, memo: Memo, outcome: Outcome, failed: set[str]) -> None:
        """Note that an event is done."""
        if memo.begun or (self._always_remember and outcome.done):
            # It has come to an end, should it be delivered once more.
            ended = time.time() if memo.begun else 0.0
            await self._inbox.remember(event.event_id, Memo(outcome.done, failed, begun_at=ended))
        self._caller.forget(event.event_id)
        by_sender = self._called_by_sender(event.envelope)
        if by_sender and not outcome.is_called and event.envelope.target is None:
            self._counts.ignored += 1
        else:
            self._counts.received += 1

    async def _fail(
        self, event: Received, memo: Memo, outcome: Outcome, failed: set[str], error: BaseException
    ) -> float | Release | None:
        """Remember a failure: the event comes again, or becomes a dead letter."""
        change = Memo(outcome.done, failed, memo.failures + 1)
        await self._inbox.remember(event.event_id, change)
        self._counts.failed += 1
        subscription = event.subscription
        if change.failures > subscription.retries:
            known = tuple(sorted(memo.done | outcome.done | self._called_by_sender(event.envelope)))
            return await self.give_up(subscription.dead_letter, event.delivery, error, change.failures, known)
        pause = subscription.pause(change.failures)
        if isinstance(error, NotHandledError):
            self._notes.add(f"events of {subscription.topic!r} that are not handled", error.reason, pause)
            return Release(pause)  # an instance that has the receivers may be there
        return pause

    def _called_by_sender(self, envelope: Envelope) -> frozenset[str]:
        """Name the receivers that need not be called: in a replay, and of events of this very service."""
        if envelope.done and (envelope.target == self._service or envelope.origin.startswith(self._own)):
            return frozenset(envelope.done)
        return _NOBODY

    async def give_up(
        self, queue: str, delivery: Delivery, error: BaseException, attempts: int, done: tuple[str, ...] = ()
    ) -> float | None:
        """Make it a dead letter; a replay of that counts from the beginning."""
        text = without_passwords(f"{type(error).__name__}: {error}") if str(error) else said(error)
        letter = DeadLetter(delivery.data[:MAX_KEPT], self._service, text, attempts, done=done)
        try:
            await self._put_dead_letter(queue, letter)
        except Exception as trouble:  # noqa: BLE001  then the event stays where it is, and is tried once more
            self._notes.add(f"dead letters for {queue!r}", f"one could not be kept yet ({said(trouble)})")
            return jittered(_NOT_KEPT)
        self._counts.dead += 1
        logger.error("an event went to %r after %d attempts: %s", queue, attempts, said(error)[:500])
        if (envelope := letter.envelope) is not None and (attempts > 1 or done):
            event_id = envelope.repeats or envelope.id
            self._caller.forget(event_id)
            with suppress(InboxLostError):
                await self._inbox.remember(event_id, Memo(set(done), begun_at=time.time()))
        return None


def _what_is_missing(subscription: Subscription, failed: set[str]) -> NotHandledError | None:
    if failed:
        names = ", ".join(sorted(failed))
        return NotHandledError(subscription.topic, f"{names} failed before, and is not connected any more")
    if not subscription.allow_no_receivers:
        reason = (
            f"no receiver is connected to signal {subscription.signal.name!r} for its sender "
            f"(receive it with allow_no_receivers=True where that is meant)"
        )
        return NotHandledError(subscription.topic, reason)
    return None
