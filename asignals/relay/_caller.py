"""Calling the receivers of one event, one after the other, and noting what came of each."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

from asignals._core import Send, log_failure
from asignals.relay._cancel import heeding, times_cancelled
from asignals.relay._current import AlreadyHandledError, Call, Delivered, calling, delivering
from asignals.relay._export import handling
from asignals.relay._pool import take_back_cancellation
from asignals.relay._trace import following

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Iterator

    from asignals import Signal
    from asignals._core import Connection
    from asignals.relay._envelope import Envelope
    from asignals.relay._subscription import Subscription, Target
    from asignals.relay._transport import Delivery
    from asignals.relay._watchdog import Watchdog
    from asignals.relay._watched_inbox import WatchedInbox

_KNOWN: Final = 100_000  # events of which is known here what no inbox has
_NO_CONNECTIONS: Final[frozenset[Connection]] = frozenset()
_PLAIN: Final = nullcontext()
_ENDS: Final = (KeyboardInterrupt, SystemExit, GeneratorExit)  # of the process, or of the coroutine


class NotHandledError(RuntimeError):
    """An event is not done, though no receiver raised: nobody was there to handle it, or not everybody."""

    def __init__(self, topic: str, reason: str) -> None:
        super().__init__(f"an event of {topic!r} is not handled: {reason}")
        self.topic = topic
        self.reason = reason


@dataclass(slots=True)
class Received:
    """An event that was delivered, and can be handled."""

    delivery: Delivery
    envelope: Envelope
    subscription: Subscription
    arguments: dict[str, Any]

    @property
    def event_id(self) -> str:
        """The id of the event; of a replay that of the first event."""
        return self.envelope.repeats or self.envelope.id


class Outcome:
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


class Recent(OrderedDict[str, Any]):
    """Facts about the last events, by id."""

    def put(self, event_id: str, fact: Any) -> None:
        self[event_id] = fact
        if len(self) > _KNOWN:
            self.popitem(last=False)


class Caller:
    """Calls receivers for one service, and remembers those that have handled an event that is not done."""

    def __init__(
        self, service: str, system: str, inbox: WatchedInbox, watchdog: Watchdog, *, always_remember: bool
    ) -> None:
        self._service = service
        self._system = system
        self._inbox = inbox
        self._running = watchdog.running
        self._always_remember = always_remember
        self._done_here = Recent()  # of events that are not done: the connections that are

    def forget(self, event_id: str) -> None:
        """Forget which receivers have handled an event, as it is done, or is to be handled again."""
        if self._done_here:
            self._done_here.pop(event_id, None)

    async def call(self, event: Received, skipped: Collection[str], attempt: int) -> Outcome:
        """Call each receiver that is not to be skipped, the others too when one fails."""
        token, inner = handling.set(event.envelope), calling.set(None)
        outcome = Outcome()
        done_here: frozenset[Connection] = self._done_here.get(event.event_id, _NO_CONNECTIONS)
        try:
            with following(event.envelope) if event.envelope.traceparent or event.envelope.baggage else _PLAIN:
                await self._call(event, skipped, done_here, attempt, outcome)
        except Exception as error:  # noqa: BLE001  the sender could not be loaded: as if a receiver had failed
            outcome.error = error
        finally:
            self._running.pop(asyncio.current_task(), None)
            calling.reset(inner)
            handling.reset(token)
        if outcome.succeeded and (outcome.error is not None or self._always_remember):
            self._done_here.put(event.event_id, done_here | {target.connection for target in outcome.succeeded})
        return outcome

    async def _call(
        self,
        event: Received,
        skipped: Collection[str],
        done_here: frozenset[Connection],
        attempt: int,
        outcome: Outcome,
    ) -> None:
        subscription, signal, task = event.subscription, event.subscription.signal, asyncio.current_task()
        sender = subscription.load(event.envelope.sender)
        if type(sender) is not str and isawaitable(sender):  # asking takes longer than all the rest
            sender = await heeding(sender)
        targets, muted, _ = subscription.targets(sender)
        if muted:
            reason = f"{muted} receivers of signal {signal.name!r} are muted"
            outcome.error = NotHandledError(subscription.topic, reason)
        send = Send(signal, sender, event.arguments)
        with _watched(send, Delivered(event.envelope, self._service, attempt, self._system), outcome):
            for target in targets:
                if target.name in skipped or target.connection in done_here:
                    outcome.is_left_out = True
                    continue
                self._running[task] = target.connection
                name = target.name if target.is_unique else None
                calling.set(Call(event.envelope, self._service, attempt, self._inbox.inbox, name))
                await _respond(send.to(target.connection), target, outcome, signal, sender)


@contextmanager
def _watched(send: Send, delivered: Delivered, outcome: Outcome) -> Iterator[None]:
    """Report a send to monitors, who find there which event it is and what came of it."""
    token = delivering.set(delivered)
    with send:
        delivering.reset(token)
        try:
            yield
        finally:
            delivered.error = outcome.error


async def _respond(
    work: Awaitable[Any], target: Target, outcome: Outcome, signal: Signal[..., Any], sender: object
) -> None:
    """Await the call of one receiver, and note what came of it."""
    try:
        if not await work and target.connection.is_receiver:
            return  # it has left meanwhile
    except AlreadyHandledError:
        pass  # and its effects are committed
    except BaseException as error:
        is_cancelled = isinstance(error, asyncio.CancelledError) and times_cancelled() and not take_back_cancellation()
        if is_cancelled or isinstance(error, _ENDS):
            raise
        failure = log_failure(error, target.connection, signal, sender)[1]
        outcome.error = outcome.error or failure
        outcome.unsuccessful.append(target)
        return
    outcome.succeeded.append(target)
