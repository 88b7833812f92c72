"""Calling receivers inside of a flush or a statement: inside a greenlet, or in a plain sync session.

In the greenlet of an `AsyncSession`, sync receivers are called right there, so that they may load lazily; async ones
are awaited by the task that drives the greenlet, a run of neighbours at once, because each switch has its price. Either
way one receiver ends before the next begins, in the session's own task and context.
"""

from __future__ import annotations

import types
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from asignals._core import annotate, is_watched
from asignals.sqlalchemy._captured import PHASES
from asignals.sqlalchemy._errors import AsyncReceiverError, FlushInProgressError
from asignals.sqlalchemy._event import PhaseSend
from asignals.sqlalchemy._state import state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Iterable

    from sqlalchemy.orm import Session

    from asignals._core import Connection, Connections, Plan, Send
    from asignals.sqlalchemy._captured import Captured
    from asignals.sqlalchemy._event import Event

_WITHIN_FLUSH = (
    "the receiver ran inside of a flush, which writes what receivers add and change before it, and leaves what they "
    "add and change after it to the next flush"
)


class Call:
    """One receiver to be called for one event, or all of them where they are called in one way."""

    __slots__ = ("event", "is_awaited", "links", "send")

    def __init__(self, event: Event, links: Connections, send: Send | None) -> None:
        self.event = event
        self.links = links
        self.send = send
        self.is_awaited = is_awaited(links[0])

    def start(self) -> Coroutine[Any, Any, object]:
        """What calls the receivers when it is awaited."""
        if self.send is not None:
            return self.send.to(self.links[0])
        return self.event.signal.send(self.event.sender, **self.event.arguments)

    def refuse_async(self) -> AsyncReceiverError:
        """The error of a session that is not async."""
        return AsyncReceiverError(self.event.signal, self.describe())

    def describe(self) -> str:
        """The receivers for messages."""
        return " or ".join(link.describe() for link in self.links)


class PlannedCall(Call):
    """A call of all receivers of a sender, for one of its events after the other."""

    __slots__ = ("_loop", "_names", "_plan")

    def __init__(self, event: Event, plan: Plan) -> None:
        super().__init__(event, plan.connections, None)
        self._plan, self._loop = plan, plan.loop_for(event.arguments)
        self._names = event.signal.names

    def start(self) -> Coroutine[Any, Any, object]:
        """What calls the receivers when it is awaited: the end of a `send` that has asked for the plan."""
        if is_watched():
            return super().start()
        event = self.event
        arguments = event.arguments
        values = [arguments[name] for name in self._names]
        return self._loop(self._plan, event.signal, event.sender, annotate, self.links, [], *values)


def is_awaited(link: Connection) -> bool:
    """Whether the task is to await a receiver; any other is awaited too, if it turns out to suspend."""
    return link.is_async or bool(link.options.in_thread)


class _Way:
    """How the receivers of one sender are called in the flush; for all its events, until a connection changes."""

    __slots__ = ("call", "changes", "links", "registry", "sender", "signal")

    def __init__(self, event: Event) -> None:
        self.signal = event.signal
        self.sender = event.sender
        self.registry = event.signal.registry("flush")
        self.changes = self.registry.changes
        plan = self.registry.plan_for(event.sender)
        self.links = event.among(plan.connections)
        is_uniform = not event.named_only and len(set(map(is_awaited, self.links))) == 1
        self.call = PlannedCall(event, plan) if is_uniform else None


class Delivery:
    """The calls for some events inside of a flush or a statement."""

    def __init__(self, events: Iterable[Event], session: Session) -> None:
        self._events = events
        self._session = session
        self._state = state_of(session)
        self._latest: Call | None = None

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
        way: _Way | None = None
        for event in self._events:
            if (
                way is None
                or event.sender is not way.sender  # relationships compare in SQL
                or event.signal is not way.signal
                or way.registry.changes != way.changes
            ):
                way = _Way(event)
            if not way.links:
                event.report("flush")
                continue
            self._state.heard = True
            call: Call | None = way.call
            if call is not None:
                call.event = event
                self._latest = call
                yield call
                continue
            send = PhaseSend(event, "flush")
            with send:
                for link in way.links:
                    self._latest = Call(event, (link,), send)
                    yield self._latest

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
            if is_here and not in_greenlet():  # a sync receiver has suspended, and the task has gone on with this
                break
        return call

    def _check(self, cause: Exception | None = None) -> None:
        """Fail if a receiver has tried to close the session, whatever it did with the error."""
        call = self._latest
        if self._state.torn and call is not None:
            culprit = f"{call.describe()}, a receiver of signal {call.event.signal.name!r},"
            raise FlushInProgressError(operation="close", culprit=culprit) from cause


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


def refuse_async(sender: object, *signals: Captured) -> None:
    """Raise `AsyncReceiverError` if events of this sender would reach a receiver that has to be awaited."""
    for signal in signals:
        for phase in PHASES:
            for link in signal.registry(phase).plan_for(sender).connections:
                if link.is_async:
                    raise AsyncReceiverError(signal, link.describe())
