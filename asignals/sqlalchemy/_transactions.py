"""The transactions of enabled sessions: what waits for their end, and their end carried through.

Hooks of SQLAlchemy cannot do this, so the transactions of enabled sessions get a class that does it:

- What waits is kept by the outermost transaction, and is gone with it.
- The COMMIT is shielded from cancellation when something waits for it. Cancelled in the middle, it may have been
  carried out, and nobody could tell whether to deliver.
- Rollback and close are shielded when receivers ran, or a receiver that is cancelled would cost the connection.
- Delivery waits until the outermost of commit, rollback, close and the `with` block has done its work: the connection
  is back in the pool then, and the session may be used again.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, cast

from sqlalchemy.ext.asyncio import async_session
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.orm.session import SessionTransactionState
from sqlalchemy.util.concurrency import in_greenlet

from asignals._core import describe, is_coroutine_function
from asignals.sqlalchemy._after import ENDINGS, tell, tell_doubt, transaction_committed, transaction_rolled_back
from asignals.sqlalchemy._errors import FlushInProgressError
from asignals.sqlalchemy._kept import Callback
from asignals.sqlalchemy._places import outermost, own_places
from asignals.sqlalchemy._shield import shielded
from asignals.sqlalchemy._state import public_session, state_of, sync_session_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from sqlalchemy.orm import Session

    from asignals.sqlalchemy._kept import Waiting
    from asignals.sqlalchemy._state import SessionState


def on_commit(session: object, callback: Callable[[], object]) -> None:
    """Call `callback()` once the outermost transaction of a session has been committed; as Django's `on_commit`.

    It is called, and awaited if what it returns can be, in the order of registration among the `on="commit"` receivers,
    when the connection is back in the pool. If the transaction, or the savepoint that is open now, is rolled back or
    closed, it is dropped. Without a transaction, the session begins one, as it does for `session.add()`. The callback
    finds an idle session; what it leaves open there is committed when it returns and rolled back when it raises, and
    so a callback that it registers is called after it. Its exceptions are logged to the logger `asignals`. It runs in a
    separate task, which a cancellation of the committing task does not reach; the committing task waits for it.

    With several databases it is called when all of them have committed.

    Args:
        session: An `AsyncSession`, a sync `Session`, or a scoped session, with signals enabled.
        callback: Takes no arguments; sync or async. It is held until then.

    Raises:
        SignalsNotEnabledError: `enable_signals` has not seen the session's class.
        TypeError: the callback is not callable, or is async and the session is not.
        sqlalchemy.exc.InvalidRequestError: the session has no transaction, and may not begin one by itself.
    """
    if not callable(callback):
        raise TypeError(f"on_commit needs a callable, not {callback!r}")
    sync_session = sync_session_of(session)
    if is_coroutine_function(callback) and async_session(sync_session) is None and not in_greenlet():
        raise TypeError(f"{describe(callback)} is async, and this session is not: nothing could await it")
    keep(sync_session, Callback(callback, current_transaction(sync_session)))


class SignalTransaction(SessionTransaction):
    """The transactions, savepoints and subtransactions of enabled sessions."""

    # Defaults: instances get this class when they exist already.
    commit_reached: bool = False  # asked for, and nothing was left to be flushed
    rolled_back: bool = False  # by request, not merely closed
    wrote: bool = False  # a flush has ended in it
    is_leftover: bool = False  # a receiver called after the end of another one has left it open

    @property
    def waiting(self) -> list[Waiting]:
        """What waits for the end of this outermost transaction."""
        found: list[Waiting] = vars(self).setdefault("_asignals_waiting", [])
        return found

    @property
    def lost(self) -> list[Waiting]:
        """What waited, and has been rolled back, in that order."""
        found: list[Waiting] = vars(self).setdefault("_asignals_lost", [])
        return found

    @property
    def is_committed(self) -> bool:
        """Whether all of it has been committed; of a savepoint, whether it was released."""
        return self.commit_reached and all(
            not place.is_lost if self.nested else place.is_kept(session_committed=True) for place in own_places(self)
        )

    @property
    def is_in_doubt(self) -> bool:
        """Whether nobody knows if it was committed: COMMIT failed, and may have been carried out."""
        return any(place.is_in_doubt for place in own_places(self))

    def commit(self, _to_root: bool = False) -> None:  # noqa: FBT001, FBT002  SQLAlchemy's signature
        _refuse_receivers(self, "commit")
        if self._is_of_flush():
            super().commit(_to_root)
            return
        with _last_of(self.session) as state:
            if self._state is not SessionTransactionState.PREPARED:
                self._prepare_impl()  # flushes, and so may call receivers: these can be cancelled
            self.commit_reached = True
            own_places(self)  # to be watched
            needed = not self.nested and _is_awaited(self)
            _guard(state, partial(super().commit, _to_root), needed=needed)

    def rollback(self, _capture_exception: bool = False, _to_root: bool = False) -> None:  # noqa: FBT001, FBT002
        _refuse_receivers(self, "roll back")
        with _last_of(self.session) as state:
            own_places(self)  # to be watched
            self._boundary().rolled_back = True
            _guard(state, partial(super().rollback, _capture_exception, _to_root), needed=state.heard)

    def close(self, invalidate: bool = False) -> None:  # noqa: FBT001, FBT002
        state = state_of(self.session)
        if not state.may_end(self):
            state.torn = True
            raise FlushInProgressError(operation="close")
        if self._is_of_flush():
            super().close(invalidate)
            return
        with _last_of(self.session):
            try:
                _guard(state, partial(super().close, invalidate), needed=state.heard)
            finally:
                self._end(state)

    def _end(self, state: SessionState) -> None:
        if self.parent is None:
            if self not in state.ended:
                state.ended.append(self)
        elif self.nested and not self.is_committed:
            around = adopted(outermost(self))
            waiting = list(around.waiting)
            around.waiting.clear()
            for each in waiting:
                (around.lost if each.is_lost else around.waiting).append(each)

    def _boundary(self) -> SignalTransaction:
        return adopted(self.parent)._boundary() if self.parent is not None and not self.nested else self

    def _is_of_flush(self) -> bool:
        return self.parent is not None and not self.nested

    def __exit__(
        self, type_: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _last_of(self.session):
            super().__exit__(type_, value, traceback)


def _refuse_receivers(transaction: SessionTransaction, operation: str) -> None:
    """Receivers inside of a flush may end savepoints that they have begun, and nothing else."""
    if not state_of(transaction.session).may_end(transaction):
        raise FlushInProgressError(operation=operation)


@contextmanager
def _last_of(session: Session) -> Iterator[SessionState]:
    """Deliver what has ended when the last of the operations that call each other is through."""
    state = state_of(session)
    state.depth += 1
    try:
        yield state
    finally:
        state.depth -= 1
        while state.depth == 0 and state.ended and not _is_in_ended_block(session):
            _report(session, adopted(state.ended.pop(0)))


def _is_in_ended_block(session: Session) -> bool:
    """Whether a `with session.begin()` is to be left before the session can be used again."""
    block = session._trans_context_manager
    return block is not None and not block._transaction_is_active()


def _guard(state: SessionState, operation: Callable[[], None], *, needed: bool) -> None:
    if not needed or state.shielded:
        operation()
        return
    state.shielded = True
    try:
        shielded(operation)
    finally:
        state.shielded = False


def _is_awaited(transaction: SignalTransaction) -> bool:
    """Whether anybody is to hear of the commit of an outermost transaction."""
    if transaction.waiting or transaction.lost:
        return True
    return not transaction.is_leftover and transaction_committed.is_wanted(public_session(transaction.session))


def _report(session: Session, transaction: SignalTransaction) -> None:
    """Call whoever waited for the end of an outermost transaction, or listens to it."""
    state_of(session).heard = False
    committed, is_in_doubt = transaction.is_committed, transaction.is_in_doubt
    ending = transaction_committed if committed else transaction_rolled_back
    is_told = (
        bool(transaction._connections)
        and not transaction.is_leftover
        and (committed or transaction.rolled_back or transaction.wrote)
        and any(one.is_wanted(public_session(session)) for one in (ENDINGS if is_in_doubt else (ending,)))
    )
    if not (transaction.waiting or transaction.lost or is_told):
        return
    kept: list[Waiting] = []
    lost = list(transaction.lost)
    in_doubt: list[Waiting] = []
    for each in transaction.waiting:
        (kept if each.is_kept else in_doubt if each.is_in_doubt else lost).append(each)
    transaction.waiting.clear()
    transaction.lost.clear()
    if is_in_doubt:
        tell_doubt(in_doubt)
    tell(session, lost, kept, ending if is_told and not is_in_doubt else None)


# -- what waits --------------------------------------------------------------------------------------------------------


def keep(session: Session, waiting: Waiting) -> None:
    """Have something wait for the end of the outermost transaction."""
    state_of(session).heard = True
    outermost_of(session).waiting.append(waiting)


def outermost_of(session: Session) -> SignalTransaction:
    """The outermost transaction that is open."""
    return adopted(outermost(current_transaction(session)))


def current_transaction(session: Session) -> SignalTransaction:
    """The innermost transaction or savepoint that is open; begins one as the session does by itself."""
    adopt(session)
    begun = session._autobegin_t()  # in a flush, its subtransaction
    return adopted(session.get_nested_transaction() or session.get_transaction() or begun)


def adopted(transaction: SessionTransaction) -> SignalTransaction:
    """A transaction of an enabled session, given its class if it has not got it yet."""
    if not isinstance(transaction, SignalTransaction):
        transaction.__class__ = SignalTransaction
    return cast("SignalTransaction", transaction)


def adopt(session: Session) -> None:
    """Give the open transactions their class, also those from before their session's class was enabled."""
    transaction = session._transaction
    while transaction is not None and not isinstance(transaction, SignalTransaction):
        adopted(transaction)
        transaction = transaction.parent


def after_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    """Give a transaction its class."""
    adopt(session)
    if transaction.nested and state_of(session).is_receiving and (session.new or session.dirty or session.deleted):
        # Elsewhere begin_nested() flushes first. Here a rollback would drop what is not flushed without a word.
        transaction.close()
        raise FlushInProgressError(operation="begin a savepoint of")
