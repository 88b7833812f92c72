"""The errors of model signals, built from attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asignals._core import DocumentedError

if TYPE_CHECKING:
    from asignals import Signal


class AsyncReceiverError(DocumentedError, RuntimeError):
    """An async receiver is to hear of a session that nothing can be awaited in: a sync `Session` outside a greenlet.

    Raised before the flush or statement runs any SQL. `signal` and `receiver` (its name and place) are attributes.
    """

    def __init__(self, signal: Signal[..., Any], receiver: str) -> None:
        super().__init__(
            f"{receiver}, a receiver of signal {signal.name!r}, is async, and this session is not: use AsyncSession, "
            f"or AsyncSession.run_sync, or connect a sync receiver"
        )
        self.signal = signal
        self.receiver = receiver


_INSTEAD = {
    "commit": "on_commit(session, callback) and connect(..., on='commit') run code after the commit of its owner",
    "roll back": "raise an exception, and the flush fails",
    "close": "that belongs to its owner",
    "begin a savepoint of": "changes wait to be flushed, and a rollback to the savepoint would lose them; "
    "(await session.connection()).begin_nested() is a savepoint for statements",
}


class FlushInProgressError(DocumentedError, RuntimeError):
    """A receiver did to a session what cannot be done inside the flush, or the statement, that called it.

    Receivers may query, add, change and delete objects. Commit, rollback and close belong to whoever owns the session,
    and savepoints of the session (`begin_nested`) are possible only while nothing waits to be flushed. `operation`
    names what was tried.
    """

    def __init__(self, *, operation: str, culprit: str = "a receiver") -> None:
        super().__init__(f"{culprit} cannot {operation} the session whose flush called it: {_INSTEAD[operation]}")
        self.operation = operation


class EndlessFlushError(DocumentedError, RuntimeError):
    """The receivers of `pre_save`, `pre_delete` and `m2m_changed` brought something new into each round of one flush.

    `rounds` were made, and nothing has been written.
    """

    def __init__(self, rounds: int) -> None:
        super().__init__(
            f"after {rounds} rounds of pre_save, pre_delete and m2m_changed the receivers still add, change or delete "
            f"further objects: one of them probably reacts to its own changes"
        )
        self.rounds = rounds


class SignalsNotEnabledError(DocumentedError, RuntimeError):
    """The session was made by a class or a maker that `enable_signals` has not seen."""

    def __init__(self, session: object) -> None:
        super().__init__(f"no signals are enabled for this {type(session).__name__}: call enable_signals on its maker")
        self.session = session
