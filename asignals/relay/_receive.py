"""The receiving side: what becomes of one delivery.

The order of things is the guarantee. A delivery is acknowledged (`None`) only when every receiver that is to hear has
succeeded and that is remembered, or when a dead letter is safe; whatever happens before leaves it with the engine. An
event that nobody here can read or handle is given back, for another instance of the service.

An event that kills its process is found out by what is written down before its receivers are called a second time
(`Memo.begun`). All that were running then are suspects; each is tried again alone, so that only the one that does it
is found to have begun again and again without coming to an end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import anyio

from asignals._core import Send, bind, log_failure
from asignals.masking import said, without_passwords
from asignals.relay._cancel import heeding, limited, times_cancelled
from asignals.relay._connection_state import ConnectionState, jittered
from asignals.relay._current import AlreadyHandledError, Call, Delivered, calling, delivering
from asignals.relay._envelope import MAX_KEPT, DeadLetter, Envelope, EnvelopeError
from asignals.relay._export import handling
from asignals.relay._held_keys import HeldKeys
from asignals.relay._inbox import Memo
from asignals.relay._lanes import Lanes
from asignals.relay._trace import following
from asignals.relay._transport import Release
from asignals.relay._watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator

    from asignals import Signal
    from asignals._core import Connection
    from asignals.relay._identity import Identity
    from asignals.relay._inbox import Inbox
    from asignals.relay._subscription import Subscription, Target
    from asignals.relay._transport import Delivery

logger = logging.getLogger("asignals.relay")

_INBOX_TRIP: Final = 15.0  # seconds that one call of the inbox may take; the inboxes here have shorter limits
# An idle inbox is asked whether it is there, so that health shows within 10 seconds that it is not.
_LOOK: Final = 3.0  # seconds between two of these questions
_LOOK_TRIP: Final = 5.0  # seconds after which one without an answer shows
_ELSEWHERE: Final = 2.0  # seconds after which an event is offered again that this instance cannot read
_PARKED: Final = 2.0  # seconds after which an event comes again for which too many wait
_SUSPECT: Final = 1.0  # seconds after which a suspect comes again while another one is tried
_SHOWN: Final = 10.0  # seconds for which a note stays in health after it should have come again
_LOGGED: Final = 60.0  # seconds after which a note that still comes is logged once more
_KNOWN: Final = 100_000  # events of which is known here what no inbox has


_NOBODY: Final[frozenset[str]] = frozenset()
_NO_CONNECTIONS: Final[frozenset[Connection]] = frozenset()
_NOTHING: Final = Memo()
_PLAIN: Final = nullcontext()


class NotHandledError(RuntimeError):
    """An event is not done, though no receiver raised: nobody was there to handle it, or not everybody."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"an event of {topic!r} is not handled: {reason}")
        self.topic = topic
        self.reason = reason


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


class _Outcome:
    """What came of calling an event's receivers: what is wrong, and whether some that have handled it were left out."""

    __slots__ = ("error", "is_left_out", "succeeded", "unsuccessful")

    def __init__(self) -> None:
        self.succeeded: list[Target] = []
        self.unsuccessful: list[Target] = []
        self.error: BaseException | None = None
        self.is_left_out = False

    @property
    def is_called(self) -> bool:
        """Whether a receiver was called now."""
        return bool(self.succeeded or self.unsuccessful)

    @property
    def failed(self) -> set[str]:
        """Name those that failed."""
        return {target.name for target in self.unsuccessful if target.name is not None}

    @property
    def done(self) -> set[str]:
        """Name those that succeeded: of two of one name both."""
        return {target.name for target in self.succeeded if target.name is not None} - self.failed


class _Note(NamedTuple):
    """Something that does not work, until when health shows it, and when it was last logged."""

    text: str
    until: float
    logged: float


class _Recent(OrderedDict[str, Any]):
    """Facts about the last events, by id."""

    def put(self, event_id: str, fact: Any) -> None:
        self[event_id] = fact
        if len(self) > _KNOWN:
            self.popitem(last=False)


class Inbound:
    """Handles deliveries for one service."""

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
        self.service = identity.service
        self.system = system
        self.watchdog = Watchdog(lease, self._blocked)
        self.subscriptions: dict[str, Subscription] = {}
        self.counts = Counts()
        self.inbox_state: ConnectionState = ConnectionState("the inbox")
        self.dead_letter = f"dlq.{self.service}"
        self._identity = identity
        self._own = f"{self.service}/"
        self._inbox = inbox
        self._put_dead_letter = put_dead_letter
        self.always_remember = always_remember
        self._notes: dict[str, _Note] = {}
        self._first_seen = _Recent()  # of events with a newer version: when that was
        self._done_here = _Recent()  # of events that are not done: the connections that are
        self.begin(1)

    def begin(self, limit: int) -> None:
        """Make ready to handle, in the event loop that runs now: it may not be that of the last time."""
        self.stopping = False
        self.idle = asyncio.Event()
        self.idle.set()
        self._lanes = Lanes(limit)
        self.held_keys = HeldKeys()
        self._alone = asyncio.Lock()

    @property
    def problems(self) -> dict[str, str]:
        """What does not work, by what it is, as far as it was noticed of late."""
        now = time.monotonic()
        found = {what: note.text for what, note in self._notes.items() if now < note.until}
        if self.inbox_state.problem is not None:
            found[self.inbox_state.name] = self.inbox_state.problem
        return found | self.held_keys.problems

    async def handle(self, delivery: Delivery) -> float | Release | None:
        """Handle one delivery: `None` when it is done, else when to deliver it again."""
        try:
            envelope = Envelope.decode(delivery.data)
        except EnvelopeError as error:
            return await self._give_up(self.dead_letter, delivery, error, 1)
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
                outcome = await self._handle(delivery, envelope)
                if key is not None:
                    self.held_keys.note(envelope, outcome)
                return outcome
            finally:
                counts.in_flight -= 1
                if not counts.in_flight:
                    self.idle.set()
        finally:
            lanes.give_place(key)

    async def _handle(self, delivery: Delivery, envelope: Envelope) -> float | Release | None:  # noqa: PLR0911
        if delivery.topic != envelope.topic:
            reason = f"it came as an event of {delivery.topic!r} and says that it is one of {envelope.topic!r}"
            return await self._give_up(self.dead_letter, delivery, GivenUp(reason), 1)
        subscription = self.subscriptions.get(envelope.topic)
        if subscription is None:  # an engine that does not keep topics apart: others may know it
            return self._release(envelope, f"this instance does not receive {envelope.topic!r}")
        if not self._is_meant(envelope, subscription):
            self.counts.ignored += 1
            return None
        if envelope.version > subscription.version:
            return await self._wait_for_newer(delivery, envelope, subscription)
        try:
            arguments = self._read(envelope, subscription)
        except GivenUp as refusal:
            return await self._give_up(subscription.dead_letter, delivery, refusal.__cause__ or refusal, 1)
        try:
            if delivery.is_repeat or delivery.attempt != 1 or envelope.repeats is not None or self.always_remember:
                return await self._repeat(delivery, envelope, subscription, arguments)
            # Only failures are remembered, and it has had none.
            return await self._attempt(delivery, envelope, subscription, arguments, _NOTHING)
        except _InboxLostError as error:
            logger.debug("event %s of %r waits for the inbox (%s)", envelope.id, envelope.topic, said(error))
            return subscription.pause(1)

    def _is_meant(self, envelope: Envelope, subscription: Subscription) -> bool:
        if envelope.target is not None:
            return envelope.target == self.service
        if envelope.origin == self._identity.origin and envelope.done:
            return False  # its receivers in this process were called by `send` itself
        return subscription.include_own_service or not envelope.origin.startswith(self._own)

    def _read(self, envelope: Envelope, subscription: Subscription) -> dict[str, Any]:
        """Read the arguments; raises `GivenUp` when no repetition will make them readable."""
        try:
            arguments = subscription.codec.decode(envelope.body, envelope.version)
            return bind(subscription.signal, None, **arguments)[1]
        except Exception as error:
            raise GivenUp from error

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
        outcome = await self._give_up(subscription.dead_letter, delivery, GivenUp(reason), 1)
        if outcome is None:
            self._first_seen.pop(envelope.id, None)
        return outcome

    def _release(self, envelope: Envelope, reason: str) -> Release:
        self.counts.released += 1
        self._note(f"waiting events of {envelope.topic!r}", f"{reason}; they wait for an instance that does")
        return Release(jittered(_ELSEWHERE))

    def _blocked(self, receiver: str | None, seconds: float) -> None:
        """Say who blocks the event loop; called from another thread."""
        who = receiver or "something that is no receiver of the relay"
        text = f"{who} has blocked it for {seconds:.1f} s; events are redelivered, and handled twice, when that lasts"
        self._note("the event loop", f"{text}: await, or connect it with in_thread=True")

    def _note(self, what: str, text: str, again: float = 0.0) -> None:
        """Show it in health until some seconds after it comes `again`, if it does; log it when it is new."""
        now = time.monotonic()
        known = self._notes.get(what)
        logged = known.logged if known is not None and now - known.logged < _LOGGED else now
        if logged == now:
            logger.warning("%s: %s", what, text)
        self._notes[what] = _Note(text, now + again + _SHOWN, logged)

    # -- calling the receivers ---------------------------------------------------------------------------------------

    async def _repeat(
        self, delivery: Delivery, envelope: Envelope, subscription: Subscription, arguments: dict[str, Any]
    ) -> float | Release | None:
        """Attempt an event of which something may be remembered."""
        memo: Memo = await self._ask(self._inbox.recall(envelope.repeats or envelope.id, self.service))
        if not delivery.is_repeat:
            return await self._attempt(delivery, envelope, subscription, arguments, memo)
        if not memo.begun:
            return await self._guarded(delivery, envelope, subscription, arguments, memo)
        return await self._suspected(delivery, envelope, subscription, arguments, memo)

    async def _suspected(
        self,
        delivery: Delivery,
        envelope: Envelope,
        subscription: Subscription,
        arguments: dict[str, Any],
        memo: Memo,
    ) -> float | Release | None:
        """Attempt what was running when its process ended: after a pause, and no two at once."""
        if memo.begun >= max(2, subscription.retries):
            done = tuple(sorted(memo.done))
            return await self._give_up(subscription.dead_letter, delivery, CrashedError(memo.begun), memo.begun, done)
        longest = subscription.longest_pause(memo.begun)
        pause = memo.begun_at + longest - time.time()
        if pause > 0:
            return min(pause, longest)
        if self._alone.locked():
            return jittered(_SUSPECT)
        async with self._alone:
            return await self._guarded(delivery, envelope, subscription, arguments, memo)

    async def _guarded(
        self,
        delivery: Delivery,
        envelope: Envelope,
        subscription: Subscription,
        arguments: dict[str, Any],
        memo: Memo,
    ) -> float | Release | None:
        """Attempt it, having written down that it begins: only a process that dies leaves that standing."""
        event_id = envelope.repeats or envelope.id
        before = memo.copy()
        memo.begun, memo.begun_at = memo.begun + 1, time.time()
        await self._remember(event_id, memo)
        is_ended = False
        try:
            outcome = await self._attempt(delivery, envelope, subscription, arguments, memo)
            is_ended = True
            return outcome
        finally:
            if not is_ended:  # cancelled, as the instance stops: that is no crash
                await self._take_back(event_id, before)

    async def _take_back(self, event_id: str, before: Memo) -> None:
        """Note that an event has not begun after all, though the instance is being cancelled."""
        with anyio.CancelScope(shield=True):
            try:
                await limited(self._inbox.remember(event_id, self.service, before), 2.0, "the inbox")
            except Exception as error:  # noqa: BLE001  logged
                logger.warning(
                    "event %s was cancelled, and may count as a crash of this process: %s", event_id, said(error)
                )

    async def _attempt(
        self,
        delivery: Delivery,
        envelope: Envelope,
        subscription: Subscription,
        arguments: dict[str, Any],
        memo: Memo,
    ) -> float | Release | None:
        """Call the receivers that are not done, and remember what came of it."""
        event_id = envelope.repeats or envelope.id
        by_sender = self._called_by_sender(envelope)
        skipped = memo.done | by_sender if memo.done or by_sender else _NOBODY
        outcome = await self._call(envelope, subscription, arguments, skipped, memo.failures + 1)
        if memo is _NOTHING and outcome.succeeded and outcome.error is None:  # as nearly always: that is all
            if self._done_here:
                self._done_here.pop(event_id, None)
            self.counts.received += 1
            return None
        return await self._conclude(delivery, envelope, subscription, memo, outcome)

    async def _conclude(
        self, delivery: Delivery, envelope: Envelope, subscription: Subscription, memo: Memo, outcome: _Outcome
    ) -> float | Release | None:
        """Remember what came of it, and say whether it comes again."""
        event_id, by_sender = envelope.repeats or envelope.id, self._called_by_sender(envelope)
        done, failed, error = outcome.done, outcome.failed, outcome.error
        if memo.failed:
            failed = (memo.failed | failed) - done - memo.done
        if error is None and (failed or not (outcome.is_called or outcome.is_left_out)):
            error = self._what_is_missing(subscription, failed)
        if error is None:
            if memo.begun or (self.always_remember and done):
                # It has come to an end, should it be delivered once more.
                ended = time.time() if memo.begun else 0.0
                await self._remember(event_id, Memo(done, failed, begun_at=ended))
            if self._done_here:
                self._done_here.pop(event_id, None)
            if by_sender and not outcome.is_called and envelope.target is None:
                self.counts.ignored += 1
            else:
                self.counts.received += 1
            return None
        change = Memo(done, failed, memo.failures + 1)
        await self._remember(event_id, change)
        self.counts.failed += 1
        if change.failures > subscription.retries:
            known = tuple(sorted(memo.done | done | by_sender))
            return await self._give_up(subscription.dead_letter, delivery, error, change.failures, known)
        pause = subscription.pause(change.failures)
        if isinstance(error, NotHandledError):
            self._note(f"events of {envelope.topic!r} that are not handled", error.reason, pause)
            return Release(pause)  # an instance that has the receivers may be there
        return pause

    def _called_by_sender(self, envelope: Envelope) -> frozenset[str]:
        """Name the receivers that need not be called: in a replay, and of events of this very service."""
        if envelope.done and (envelope.target == self.service or envelope.origin.startswith(self._own)):
            return frozenset(envelope.done)
        return _NOBODY

    @staticmethod
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

    async def _call(
        self,
        envelope: Envelope,
        subscription: Subscription,
        arguments: dict[str, Any],
        skipped: Collection[str],
        attempt: int,
    ) -> _Outcome:
        """Call each receiver that is not to be skipped, the others too when one fails."""
        event_id = envelope.repeats or envelope.id
        token, inner = handling.set(envelope), calling.set(None)
        running, task = self.watchdog.running, asyncio.current_task()
        outcome = _Outcome()
        done_here: frozenset[Connection] = self._done_here.get(event_id, _NO_CONNECTIONS)
        try:
            with following(envelope) if envelope.traceparent or envelope.baggage else _PLAIN:
                sender = subscription.load(envelope.sender)
                if type(sender) is not str and isawaitable(sender):  # asking takes longer than all the rest
                    sender = await heeding(sender)
                targets, muted, _ = subscription.targets(sender)
                signal = subscription.signal
                if muted:
                    reason = f"{muted} receivers of signal {signal.name!r} are muted"
                    outcome.error = NotHandledError(subscription.topic, reason)
                send = Send(signal, sender, arguments)
                with _watched(send, Delivered(envelope, self.service, attempt, self.system), outcome):
                    for target in targets:
                        if target.name in skipped or target.connection in done_here:
                            outcome.is_left_out = True
                            continue
                        running[task] = target.connection
                        name = target.name if target.is_unique else None
                        calling.set(Call(envelope, self.service, attempt, self._inbox, name))
                        await _respond(send.to(target.connection), target, outcome, signal, sender)
        except Exception as error:  # noqa: BLE001  the sender could not be loaded: as if a receiver had failed
            outcome.error = error
        finally:
            running.pop(task, None)
            calling.reset(inner)
            handling.reset(token)
        if outcome.succeeded and (outcome.error is not None or self.always_remember):
            self._done_here.put(event_id, done_here | {target.connection for target in outcome.succeeded})
        return outcome

    # -- the inbox and the dead letters ------------------------------------------------------------------------------

    async def watch_inbox(self, check: Callable[[], Awaitable[None]]) -> None:
        """Ask the inbox now and then whether it is there, so that health knows before an event comes."""
        while True:
            silent = TimeoutError(f"no answer within {_LOOK_TRIP:g} s")
            late = asyncio.get_running_loop().call_later(_LOOK_TRIP, self.inbox_state.lost, silent)
            try:
                with suppress(_InboxLostError):
                    await self._ask(check())
            finally:
                late.cancel()
            await asyncio.sleep(_LOOK)

    async def _remember(self, event_id: str, change: Memo) -> None:
        await self._ask(self._inbox.remember(event_id, self.service, change))

    async def _ask(self, call: Awaitable[Any]) -> Any:
        try:
            answer = await limited(call, _INBOX_TRIP)
        except Exception as error:
            self.inbox_state.lost(error)
            raise _InboxLostError from error
        self.inbox_state.restored()
        return answer

    async def _give_up(
        self, queue: str, delivery: Delivery, error: BaseException, attempts: int, done: tuple[str, ...] = ()
    ) -> float | None:
        """Make it a dead letter; a replay of that begins to count anew."""
        text = without_passwords(f"{type(error).__name__}: {error}") if str(error) else said(error)
        letter = DeadLetter(delivery.data[:MAX_KEPT], self.service, text, attempts, done=done)
        try:
            await self._put_dead_letter(queue, letter)
        except Exception as trouble:  # noqa: BLE001  then the event stays where it is, and is tried once more
            self._note(f"dead letters for {queue!r}", f"one could not be kept yet ({said(trouble)})")
            return jittered(2.0)
        self.counts.dead += 1
        logger.error("an event went to %r after %d attempts: %s", queue, attempts, said(error)[:500])
        if (envelope := letter.envelope) is not None and (attempts > 1 or done):
            event_id = envelope.repeats or envelope.id
            self._done_here.pop(event_id, None)
            with suppress(_InboxLostError):
                await self._remember(event_id, Memo(set(done), begun_at=time.time()))
        return None


class _InboxLostError(Exception):
    """The inbox did not answer, or answered with an error; the event stays with the engine."""


@contextmanager
def _watched(send: Send, delivered: Delivered, outcome: _Outcome) -> Iterator[None]:
    """Report a send to monitors, who find there which event it is and what came of it."""
    token = delivering.set(delivered)
    with send:
        delivering.reset(token)
        try:
            yield
        finally:
            delivered.error = outcome.error


async def _respond(
    work: Awaitable[Any], target: Target, outcome: _Outcome, signal: Signal[..., Any], sender: object
) -> None:
    """Await the call of one receiver, and note what came of it."""
    try:
        if not await work and target.connection.is_receiver:
            return  # it has left meanwhile
    except AlreadyHandledError:
        pass  # and its effects are committed
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, asyncio.CancelledError) and times_cancelled():
            raise
        failure = log_failure(error, target.connection, signal, sender)[1]
        outcome.error = outcome.error or failure
        outcome.unsuccessful.append(target)
        return
    outcome.succeeded.append(target)
