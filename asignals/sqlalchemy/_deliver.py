"""Calling receivers inside of a flush or a statement: inside a greenlet, or in a plain sync session.

In the greenlet of an `AsyncSession`, sync receivers are called right there, so that they may load lazily; async ones
are awaited by the task that drives the greenlet, a run of neighbours at once, because each switch has its price. Either
way one receiver ends before the next begins, in the session's own task and context.
"""

from __future__ import annotations

import types
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from asignals._core import Send, is_watched
from asignals.sqlalchemy._errors import AsyncReceiverError, FlushInProgressError
from asignals.sqlalchemy._state import state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable
    from contextlib import AbstractContextManager

    from sqlalchemy.orm import Session

    from asignals._core import Connection, Connections, Plan, Signal
    from asignals.sqlalchemy._signal import ModelSignal, SessionSignal

Phase: TypeAlias = Literal["flush", "commit", "rollback"]
PHASES: tuple[Phase, ...] = get_args(Phase)

_WITHIN_FLUSH = (
    "the receiver ran inside of a flush, which writes what receivers add and change before it, and leaves what they "
    "add and change after it to the next flush"
)


class Event:
    """Something that happened: what a send would be given."""

    __slots__ = ("arguments", "named_only", "sender", "signal")

    def __init__(
        self,
        signal: ModelSignal | SessionSignal,
        sender: object,
        arguments: dict[str, Any],
        *,
        named_only: bool = False,
    ) -> None:
        self.signal = signal
        self.sender = sender
        self.arguments = arguments
        self.named_only = named_only

    def plan(self, phase: Phase) -> Connections:
        """Who is to be called for it in a phase, with muting applied."""
        return self.among(self.signal.registry(phase).plan_for(self.sender).connections)

    def among(self, plan: Connections) -> Connections:
        """Those receivers of its sender's plan who are to be called for it."""
        return tuple(link for link in plan if link.sender is not None) if self.named_only else plan

    @property
    def waits(self) -> bool:
        """Whether somebody is to be called for it after the end of the transaction."""
        return self.is_captured or bool(self.plan("commit") or self.plan("rollback"))

    @property
    def is_captured(self) -> bool:
        """Whether monitors are to see it in each phase, whoever is connected."""
        return self.signal.is_captured

    def report(self, phase: Phase) -> None:
        """Report it to monitors as a send that nobody hears."""
        if self.is_captured:
            with watching(PhaseSend(self, phase)):
                pass


class PhaseSend(Send):
    """One event as it is sent in one phase."""

    __slots__ = ("phase",)

    def __init__(self, event: Event, phase: Phase) -> None:
        super().__init__(event.signal, event.sender, event.arguments, robust=False)
        self.phase: Phase = phase


class Call:
    """One receiver to be called for one event, or all of them where they are called in one way."""

    __slots__ = ("_event", "_plan", "_send", "is_awaited", "links")

    def __init__(self, event: Event, links: Connections, plan: Plan | None, send: Send | None = None) -> None:
        self._event = event
        self._plan = plan
        self._send = send
        self.links = links
        self.is_awaited = is_awaited(links[0])

    def start(self) -> Coroutine[Any, Any, object]:
        """What calls the receivers when it is awaited."""
        event = self._event
        if self._send is not None:
            return self._send.to(self.links[0])
        if self._plan is None:
            return event.signal.send(event.sender, **event.arguments)
        # What send() comes to, once it has asked for the plan.
        loop = self._plan.loop or self._plan.write_loop(robust=False)
        arguments = event.arguments
        return loop(self.links, event.signal, event.sender, *[arguments[name] for name in event.signal.names])

    @property
    def signal(self) -> Signal[..., Any]:
        """What is sent."""
        return self._event.signal

    def refuse_async(self) -> AsyncReceiverError:
        """The error of a session that is not async."""
        return AsyncReceiverError(self.signal, self.describe())

    def describe(self) -> str:
        """The receivers for messages."""
        return " or ".join(link.describe() for link in self.links)


def is_awaited(link: Connection) -> bool:
    """Whether the task is to await a receiver; any other is awaited too, if it turns out to suspend."""
    return link.is_async or bool(link.options.in_thread)


class Delivery:
    """The calls for some events inside of a flush or a statement."""

    def __init__(self, events: Iterable[Event], session: Session) -> None:
        self._events = events
        self._session = session
        self._state = state_of(session)
        self._latest: Call | None = None
        self._planned: tuple[tuple[object, int, int], Plan] | None = None

    def run(self) -> None:
        """Call everybody, one after the other; what a receiver raises ends it."""
        calls = self._calls()
        with self._state.receiving(self._session):
            try:
                call = next(calls, None)
                while call is not None:
                    call = self._go_on(call, calls)
            except BaseException as error:
                _explain(error)
                if isinstance(error, Exception):
                    self._check(cause=error)
                if is_watched():
                    _end_with(error, calls)
                raise
            finally:
                calls.close()

    def _calls(self) -> Generator[Call]:
        for event in self._events:
            plan = self._plan(event)
            links = event.among(plan.connections)
            if not links:
                event.report("flush")
                continue
            self._state.heard = True
            if not event.named_only and (len(links) == 1 or len(set(map(is_awaited, links))) == 1):
                self._latest = Call(event, links, None if is_watched() else plan)
                yield self._latest
                continue
            send = PhaseSend(event, "flush")
            with watching(send):
                for link in links:
                    self._latest = Call(event, (link,), None, send)
                    yield self._latest

    def _plan(self, event: Event) -> Plan:
        """The plan of an event: that of the one before, if nothing has changed."""
        registry = event.signal.registry("flush")
        at = (event.signal, id(event.sender), registry.changes)  # relationships compare in SQL
        if self._planned is None or self._planned[0] != at:
            self._planned = at, registry.plan_for(event.sender)
        return self._planned[1]

    def _go_on(self, call: Call, calls: Generator[Call]) -> Call | None:
        if not call.is_awaited:
            following: Call | None = run_here(self._run(call, calls), call.refuse_async)
        elif in_greenlet():
            following = await_only(self._run(call, calls))
        else:
            raise call.refuse_async()
        return following

    async def _run(self, call: Call | None, calls: Generator[Call]) -> Call | None:
        """Call neighbours that are called in one way; returns the first call of the other way."""
        state, is_awaited, is_here = self._state, call is not None and call.is_awaited, in_greenlet()
        while call is not None and call.is_awaited is is_awaited:
            await call.start()
            if state.torn:
                self._check()
            call = next(calls, None)
            if in_greenlet() is not is_here:  # a sync receiver has suspended, and the task has gone on with this
                break
        return call

    def _check(self, cause: Exception | None = None) -> None:
        """Fail if a receiver has tried to close the session, whatever it did with the error."""
        call = self._latest
        if self._state.torn and call is not None:
            culprit = f"{call.describe()}, a receiver of signal {call.signal.name!r},"
            raise FlushInProgressError(operation="close", culprit=culprit) from cause


_UNWATCHED = nullcontext()


def watching(send: Send) -> AbstractContextManager[object]:
    """Report a send as a whole to monitors, if there are any."""
    return send.watched() if is_watched() else _UNWATCHED


def _end_with(error: BaseException, calls: Generator[Call]) -> None:
    """End the generator of calls with the error, so that the report of the send as a whole has it."""
    traceback = error.__traceback__
    with suppress(BaseException):
        calls.throw(error)
    error.__traceback__ = traceback


def run_here(work: Coroutine[Any, Any, Any], refuse: Callable[[], AsyncReceiverError]) -> Any:
    """Run a coroutine that is not expected to suspend where we are, so that what it calls is in the greenlet."""
    try:
        yielded = work.send(None)
    except StopIteration as done:
        return done.value
    if in_greenlet():
        return await_only(_resume(work, yielded))
    work.close()
    raise refuse()


@types.coroutine
def _resume(work: Coroutine[Any, Any, Any], yielded: Any) -> Generator[Any, Any, Any]:
    """Go on with a coroutine that somebody else has started."""
    while True:
        raised: BaseException | None = None
        value: Any = None
        try:
            value = yield yielded
        except BaseException as error:  # noqa: BLE001  it is the coroutine's to handle
            raised = error
        try:
            yielded = work.send(value) if raised is None else work.throw(raised)
        except StopIteration as done:
            return done.value


def _explain(error: BaseException) -> None:
    if isinstance(error, InvalidRequestError) and "already flushing" in str(error):
        error.add_note(_WITHIN_FLUSH)


def refuse_async(sender: object, *signals: ModelSignal) -> None:
    """Raise `AsyncReceiverError` if events of this sender would reach a receiver that has to be awaited."""
    for signal in signals:
        for phase in PHASES:
            for link in signal.registry(phase).plan_for(sender).connections:
                if link.is_async:
                    raise AsyncReceiverError(signal, link.describe())
