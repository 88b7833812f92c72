"""Calling receivers from where SQLAlchemy runs its hooks: inside a greenlet, or in a plain sync session.

In the greenlet of an `AsyncSession`, sync receivers are called right there, so that they may load lazily; async ones
are awaited by the task that drives the greenlet, a run of neighbours at once, because each switch has its price. Either
way one receiver ends before the next begins, in the session's own task and context.
"""

from __future__ import annotations

import asyncio
import logging
import types
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from asignals._core import log_failure as failed
from asignals._core import Send
from asignals._core import is_watched
from asignals._core import EVERYONE
from asignals.sqlalchemy._errors import AsyncReceiverError, FlushInProgressError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterable, Iterator

    from asignals._core import Connection as Link
    from asignals._core import Connections as Plan
    from asignals.sqlalchemy._signal import ModelSignal, SessionSignal
    from asignals.sqlalchemy._state import SessionState

Phase: TypeAlias = Literal["flush", "commit", "rollback"]
PHASES: tuple[Phase, ...] = get_args(Phase)

_logger = logging.getLogger("asignals")
_WITHIN_FLUSH = (
    "the receiver ran inside of a flush, which writes what receivers add and change before it, and leaves what they "
    "add and change after it to the next flush"
)


class Event:
    """Something that happened to be told of: what a send would be given."""

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
        """Who is to hear of it in a phase, muting minded."""
        plan = self.signal.registry(phase).plan_for(self.sender).connections
        return tuple(link for link in plan if link.source is not EVERYONE) if self.named_only else plan


class Call(NamedTuple):
    """One receiver to be called for one event."""

    send: Send
    link: Link

    @property
    def is_async(self) -> bool:
        """Whether the driver is to await it; anything else gets there too, if it turns out to suspend."""
        return self.link.is_async or self.link.options.in_thread


class Delivery:
    """The calls for some events, in one phase."""

    def __init__(self, events: Iterable[Event], phase: Phase, state: SessionState, *, robust: bool = False) -> None:
        self._events = events
        self._phase: Phase = phase
        self._state = state
        self._robust = robust

    def run(self) -> None:
        """Call everybody, one after the other; what the flush phase raises ends it."""
        calls = self._calls()
        try:
            if in_greenlet():
                for is_async, run in groupby(calls, lambda call: call.is_async):
                    if is_async:
                        await_only(self._await(run))
                    else:
                        self._step(run)
            else:
                self._step(self._refusing(calls))
        except BaseException as error:
            _explain(error)
            if is_watched():
                _tell_of(error, calls)
            raise
        finally:
            calls.close()

    def _calls(self) -> Generator[Call]:
        for event in self._events:
            plan = event.plan(self._phase)
            if not plan:
                continue
            self._state.heard = True
            send = Send(event.signal, event.sender, event.arguments, robust=self._robust)
            yield from _reported(send, plan) if is_watched() else (Call(send, link) for link in plan)

    def _refusing(self, calls: Iterable[Call]) -> Iterator[Call]:
        for call in calls:
            if call.is_async and not call.link.options.in_thread:
                error = AsyncReceiverError(call.send.signal, call.link.describe())
                if not self._robust:
                    raise error
                failed(error, call.link, call.send.signal, call.send.sender)
            else:
                yield call

    async def _await(self, calls: Iterable[Call]) -> None:
        for call in calls:
            try:
                await call.send.to(call.link)
            except asyncio.CancelledError as error:
                if not self._robust or is_cancelled():
                    raise
                _log(call, error)
            self._check(call)

    def _step(self, calls: Iterable[Call]) -> None:
        for call in calls:
            try:
                run_here(call.send.to(call.link), call)
            except AsyncReceiverError as error:
                if not self._robust:
                    raise
                failed(error, call.link, call.send.signal, call.send.sender)
            except asyncio.CancelledError as error:
                if not self._robust:
                    raise
                _log(call, error)
            self._check(call)

    def _check(self, call: Call) -> None:
        if self._state.torn and not self._robust:
            culprit = f"{call.link.describe()}, a receiver of signal {call.send.signal.name!r},"
            raise FlushInProgressError(operation="close", culprit=culprit)


def _reported(send: Send, plan: Plan) -> Iterator[Call]:
    with send.watched():
        for link in plan:
            yield Call(send, link)


def _tell_of(error: BaseException, calls: Generator[Call]) -> None:
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


def _log(call: Call, error: BaseException) -> None:
    """A receiver that raises the cancellation by itself keeps the others from nothing."""
    _logger.error("%s was cancelled as a receiver of %r", call.link.describe(), call.send.signal.name, exc_info=error)


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
