"""What sessions announce when a transaction has ended, and the transaction class that sees to it.

Three things cannot be done from SQLAlchemy's hooks, so an enabled session's transactions get a class that does them
around the originals:

- The COMMIT is shielded from cancellation when something waits for it. Cancelled in the middle, it may have been
  carried out, and nobody could tell whether to deliver.
- Rollback and close are shielded when receivers ran, or a receiver that is cancelled would cost the connection.
- Delivery waits until the outermost of commit, rollback, close and the `with` block has done its work: the connection
  is back in the pool then, and the session may be used again.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from contextlib import contextmanager
from functools import partial
from inspect import isawaitable
from itertools import groupby
from typing import TYPE_CHECKING, cast

from sqlalchemy.ext.asyncio import async_session
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.orm.session import SessionTransactionState
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from asignals._core import is_coroutine_function
from asignals._core import describe
from asignals.sqlalchemy._deliver import Delivery, Event, is_cancelled
from asignals.sqlalchemy._errors import FlushInProgressError
from asignals.sqlalchemy._shield import shielded
from asignals.sqlalchemy._signal import SessionSignal
from asignals.sqlalchemy._state import Frame, announced, has_frame, open_transactions, state_of, sync_session_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from asignals.sqlalchemy._deliver import Phase
    from asignals.sqlalchemy._state import Callback, SessionState

_logger = logging.getLogger("asignals")


transaction_committed: SessionSignal = SessionSignal(
    ("session",),
    name="transaction_committed",
    doc="""The outermost transaction of a session has been committed, and its connection is back in the pool.

    The sender is the session as well. Sent after the receivers of what happened in the transaction; not for
    transactions that never reached the database. Receivers' errors are logged and change nothing. One that commits in
    the same session is told of that commit as well.
    """,
)
transaction_rolled_back: SessionSignal = SessionSignal(
    ("session",),
    name="transaction_rolled_back",
    doc="""The outermost transaction of a session has been rolled back: by request, or with flushed changes in it.

    The sender is the session as well. A session that only read, and is closed, is not announced. Receivers' errors are
    logged and change nothing.
    """,
)


def on_commit(session: object, callback: Callable[[], object]) -> None:
    """Call `callback()` once the outermost transaction of a session has been committed; as Django's `on_commit`.

    It is called, and awaited if what it returns can be, in the order of registration among the `on="commit"` receivers,
    when the connection is back in the pool. If the transaction, or the savepoint that is open now, is rolled back, it
    is dropped. Without a transaction it belongs to the next one of the session. Its exceptions are logged to the logger
    `asignals`. It runs in a task of its own, which a cancellation of the committing task does not reach; the committing
    task waits for it.

    Args:
        session: An `AsyncSession`, a sync `Session`, or a scoped session, with signals enabled.
        callback: Takes no arguments; sync or async. It is held until then.

    Raises:
        SignalsNotEnabledError: `enable_signals` has not seen the session's class.
        TypeError: the callback is not callable, or is async and the session is not.
    """
    if not callable(callback):
        msg = f"on_commit needs a callable, not {callback!r}"
        raise TypeError(msg)
    sync_session = sync_session_of(session)
    if is_coroutine_function(callback) and async_session(sync_session) is None and not in_greenlet():
        msg = f"{describe(callback)} is async, and this session is not: nothing could await it"
        raise TypeError(msg)
    state = state_of(sync_session)
    _take_over(sync_session)
    if state.frames:
        state.keep(callback)
    else:
        state.waiting.append(callback)


class SignalTransaction(SessionTransaction):
    """The transactions, savepoints and subtransactions of enabled sessions."""

    def commit(self, _to_root: bool = False) -> None:  # noqa: FBT001, FBT002  SQLAlchemy's signature
        if self._is_of_flush():
            _refuse_receivers(self, "commit")  # before_commit comes too late: this transaction would be closed
            super().commit(_to_root)
            return
        with _outermost(self.session) as state:
            if self.nested:
                super().commit(_to_root)
                return
            if self._state is not SessionTransactionState.PREPARED:
                self._prepare_impl()  # flushes, and so may call receivers: these can be cancelled
            _guard(state, partial(super().commit, _to_root), needed=_is_awaited(self.session, state))

    def rollback(self, _capture_exception: bool = False, _to_root: bool = False) -> None:  # noqa: FBT001, FBT002
        _refuse_receivers(self, "roll back")
        if self._is_of_flush() and self._state is SessionTransactionState.CLOSED:
            return  # a receiver closed the session: the flush fails with the error that says so
        with _outermost(self.session) as state:
            _guard(state, partial(super().rollback, _capture_exception, _to_root), needed=state.heard)

    def close(self, invalidate: bool = False) -> None:  # noqa: FBT001, FBT002
        with _outermost(self.session) as state:
            _guard(state, partial(super().close, invalidate), needed=state.heard)

    def _is_of_flush(self) -> bool:
        return not has_frame(self)

    def __exit__(
        self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _outermost(self.session):
            super().__exit__(type_, value, traceback)


def _refuse_receivers(transaction: SessionTransaction, operation: str) -> None:
    """Receivers inside of a flush may end savepoints that they have begun, and nothing else."""
    state = state_of(transaction.session)
    if state.is_receiving and not state.is_of_receiver(transaction):
        raise FlushInProgressError(operation=operation)


@contextmanager
def _outermost(session: Session) -> Iterator[SessionState]:
    """Deliver what has ended when the last of the operations that call each other is through."""
    state = state_of(session)
    state.depth += 1
    try:
        yield state
    finally:
        state.depth -= 1
        if state.depth == 0:
            while state.ended:
                _announce(session, state, state.ended.pop(0))


def _guard(state: SessionState, operation: Callable[[], None], *, needed: bool) -> None:
    if not needed or state.shielded:
        operation()
        return
    state.shielded = True
    try:
        shielded(operation)
    finally:
        state.shielded = False


def _is_awaited(session: Session, state: SessionState) -> bool:
    """Whether anybody is to hear of the commit of the outermost transaction."""
    outermost = state.frames[0]
    return bool(outermost.kept or outermost.lost) or transaction_committed.has_listeners(announced(session))


# -- hooks: frames come and go -----------------------------------------------------------------------------------------


def _take_over(session: Session) -> None:
    """Give the open transactions their class: the one that has just been made, and any from before it was enabled."""
    for transaction in open_transactions(session):
        transaction.__class__ = SignalTransaction


def after_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    """Give a transaction its class and, unless it is a flush's own, its frame."""
    _take_over(session)
    if not has_frame(transaction):
        return
    state = state_of(session)
    if state.is_receiving and transaction.nested and (session.new or session.dirty or session.deleted):
        # Elsewhere begin_nested() flushes first. Here a rollback would drop what is not flushed without a word.
        transaction.close()
        raise FlushInProgressError(operation="begin a savepoint of")
    if not state.frames or state.frames[-1].transaction is not transaction:
        state.frames.append(Frame(transaction))
    while state.waiting:
        state.keep(state.waiting.pop(0))


def after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    """Note that the database takes part."""
    del transaction, connection
    state_of(session).frames[0].began = True


def after_commit(session: Session) -> None:
    """Note that the innermost frame's transaction is committed, or its savepoint released."""
    state_of(session).frames[-1].committed = True


def after_rollback(session: Session) -> None:
    """Note that the innermost frame's transaction or savepoint was rolled back."""
    state_of(session).frames[-1].rolled_back = True


def after_transaction_end(session: Session, transaction: SessionTransaction) -> None:
    """Pass on what a frame leaves, to the frame around it or to delivery."""
    state = state_of(session)
    for depth, frame in enumerate(state.frames):
        if frame.transaction is transaction:
            del state.frames[depth:]
            state.left(depth)
            if depth:
                state.frames[depth - 1].join(frame)
            else:
                state.ended.append(frame)
            return


# -- delivery ----------------------------------------------------------------------------------------------------------


def _announce(session: Session, state: SessionState, frame: Frame) -> None:
    """Deliver what waited for the end of an outermost transaction."""
    state.heard = False
    ending = transaction_committed if frame.committed else transaction_rolled_back
    is_told = frame.began and (frame.committed or frame.rolled_back or frame.wrote)
    is_told = is_told and ending.has_listeners(announced(session))
    if not (frame.kept or frame.lost or is_told):
        return

    def announce() -> None:
        try:
            _deliver(state, frame.lost, "rollback")
            _deliver(state, frame.kept, "commit" if frame.committed else "rollback")
            if is_told:
                public = announced(session)
                _deliver(state, [Event(ending, public, {"session": public})], "flush")
        finally:
            _leave_idle(session, state)

    shielded(announce)


def _deliver(state: SessionState, entries: Iterable[Event | Callback], phase: Phase) -> None:
    for is_event, run in groupby(entries, lambda entry: isinstance(entry, Event)):
        if is_event:
            Delivery(cast("Iterable[Event]", run), phase, state, robust=True).run()
        elif phase == "commit":
            for callback in cast("Iterable[Callback]", run):
                _call(callback)


def _call(callback: Callback) -> None:
    try:
        response = callback()
        if isawaitable(response):
            await_only(response)
    except (Exception, CancelledError) as error:
        if isinstance(error, CancelledError) and is_cancelled():
            raise
        _logger.exception("%s failed as a callback of on_commit", describe(callback))


def _leave_idle(session: Session, state: SessionState) -> None:
    """End the transaction that receivers have begun and left open: nobody else knows of it."""
    transaction = session.get_transaction()
    if transaction is None:
        return
    if state.frames and state.frames[0].wrote:
        _logger.error(
            "receivers called after the end of a transaction wrote through its session and did not commit; "
            "this has been rolled back"
        )
        session.rollback()
    else:
        transaction.close()
