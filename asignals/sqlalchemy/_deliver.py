"""Calling receivers inside of a flush or a statement: inside a greenlet, or in a plain sync session.

In the greenlet of an `AsyncSession`, sync receivers are called right there, so that they may load lazily; async ones
are awaited by the task that drives the greenlet, a run of neighbours at once, because each switch has its price. Either
way one receiver ends before the next begins, in the session's own task and context.
"""

from __future__ import annotations

import asyncio
import types
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from asignals._dispatch import Send
from asignals._monitor import watchers
from asignals._refs import EVERYONE
from asignals.sqlalchemy._errors import AsyncReceiverError, FlushInProgressError
from asignals.sqlalchemy._state import state_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterable
    from contextlib import AbstractContextManager

    from sqlalchemy.orm import Session

    from asignals._registry import Link, Plan
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

    def plan(self, phase: Phase) -> Plan:
        """Who is to be called for it in a phase, with muting applied."""
        plan = self.signal.registry(phase).plan_for(self.sender)
        return tuple(link for link in plan if link.source is not EVERYONE) if self.named_only else plan

    @property
    def waits(self) -> bool:
        """Whether somebody is to be called for it after the end of the transaction."""
        return bool(self.plan("commit") or self.plan("rollback"))


class Call:
    """One receiver to be called for one event."""

    __slots__ = ("is_awaited", "link", "send")

    def __init__(self, send: Send, link: Link) -> None:
        self.send = send
        self.link = link
        # Anything else is awaited too, if it turns out to suspend.
        self.is_awaited = link.is_async or link.options.in_thread


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
                    if call.is_awaited and in_greenlet():
                        call = await_only(self._await(call, calls))
                    else:
                        self._call_here(call)
                        call = next(calls, None)
            except BaseException as error:
                _explain(error)
                if isinstance(error, Exception):
                    self._check(cause=error)
                if watchers:
                    _end_with(error, calls)
                raise
            finally:
                calls.close()

    def _calls(self) -> Generator[Call]:
        for event in self._events:
            plan = event.plan("flush")
            if not plan:
                continue
            self._state.heard = True
            send = Send(event.signal, event.sender, event.arguments, robust=False)
            with watching(send):
                for link in plan:
                    self._latest = Call(send, link)
                    yield self._latest

    async def _await(self, call: Call | None, calls: Generator[Call]) -> Call | None:
        """Await a run of neighbours; returns the first call that is not to be awaited."""
        while call is not None and call.is_awaited:
            await call.send.to(call.link)
            self._check()
            call = next(calls, None)
        return call

    def _call_here(self, call: Call) -> None:
        if call.is_awaited and not call.link.options.in_thread:
            raise AsyncReceiverError(call.send.signal, call.link.describe())
        run_here(call.send.to(call.link), call)
        self._check()

    def _check(self, cause: Exception | None = None) -> None:
        """Fail if a receiver has tried to close the session, whatever it did with the error."""
        call = self._latest
        if self._state.torn and call is not None:
            culprit = f"{call.link.describe()}, a receiver of signal {call.send.signal.name!r},"
            raise FlushInProgressError(operation="close", culprit=culprit) from cause


_UNWATCHED = nullcontext()


def watching(send: Send) -> AbstractContextManager[object]:
    """Report a send as a whole to monitors, if there are any."""
    return send.watched() if watchers else _UNWATCHED


def _end_with(error: BaseException, calls: Generator[Call]) -> None:
    """End the generator of calls with the error, so that the report of the send as a whole has it."""
    traceback = error.__traceback__
    with suppress(BaseException):
        calls.throw(error)
    error.__traceback__ = traceback


def run_here(work: Coroutine[Any, Any, Any], call: Call) -> Any:
    """Run a coroutine that is not expected to suspend where we are, so that what it calls is in the greenlet."""
    try:
        yielded = work.send(None)
    except StopIteration as done:
        return done.value
    if in_greenlet():
        return await_only(_resume(work, yielded))
    work.close()
    raise AsyncReceiverError(call.send.signal, call.link.describe())


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


def is_cancelled() -> bool:
    """Whether somebody cancels the task that delivers, as when the loop shuts down."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _explain(error: BaseException) -> None:
    if isinstance(error, InvalidRequestError) and "already flushing" in str(error):
        error.add_note(_WITHIN_FLUSH)


def refuse_async(sender: object, *signals: ModelSignal) -> None:
    """Raise `AsyncReceiverError` if events of this sender would reach a receiver that has to be awaited."""
    for signal in signals:
        for phase in PHASES:
            for link in signal.registry(phase).plan_for(sender):
                if link.is_async:
                    raise AsyncReceiverError(signal, link.describe())
