"""After the end of a transaction: who is sent what, and the session that each receiver finds.

Each receiver, and each callback of `on_commit`, finds an idle session and the attributes that were loaded in the flush.
What it leaves open in the session is committed when it returns, and rolled back when it raises.
"""

from __future__ import annotations

import logging
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from asignals._core import describe, is_receivers_error, log_failure
from asignals.sqlalchemy._captured import SessionSignal
from asignals.sqlalchemy._deliver import is_awaited, run_here
from asignals.sqlalchemy._errors import AsyncReceiverError
from asignals.sqlalchemy._event import Event, PhaseSend
from asignals.sqlalchemy._kept import Kept
from asignals.sqlalchemy._shield import shielded
from asignals.sqlalchemy._state import public_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.orm import Session

    from asignals._core import Connection, Send
    from asignals.sqlalchemy._captured import Phase
    from asignals.sqlalchemy._kept import Waiting

_logger = logging.getLogger("asignals")


transaction_committed: SessionSignal = SessionSignal(
    ("session",),
    name="transaction_committed",
    doc="""The outermost transaction of a session has been committed, and its connection is back in the pool.

    The sender is the session as well. Sent after the receivers of what happened in the transaction; not for
    transactions that never reached the database, nor for what receivers called after the end leave to be committed.
    With several databases, all have committed. Receivers' errors are logged and change nothing. One that commits in the
    same session is called for that commit as well.
    """,
)
transaction_rolled_back: SessionSignal = SessionSignal(
    ("session",),
    name="transaction_rolled_back",
    doc="""The outermost transaction of a session has been rolled back: by request, or with flushed changes in it.

    The sender is the session as well. A session that only read, and is closed, is not reported. With several
    databases, one of them at least was not committed. Receivers' errors are logged and change nothing.
    """,
)
ENDINGS = (transaction_committed, transaction_rolled_back)


def tell(session: Session, lost: Iterable[Waiting], kept: Iterable[Waiting], ending: SessionSignal | None) -> None:
    """Call whoever waited for the end of an outermost transaction, and who listens to it where `ending` is given."""

    def call_all() -> None:
        _tell(session, lost, "rollback")
        _tell(session, kept, "commit")
        if ending is not None:
            public = public_session(session)
            _Telling(session, Event(ending, public, {"session": public}), "flush").run()

    shielded(call_all)


def tell_doubt(waiting: Iterable[Waiting]) -> None:
    """Log that nobody knows whether a transaction was committed, and who would have been called otherwise."""
    names = ", ".join(dict.fromkeys(each.describe() for each in waiting))
    _logger.error(
        "a COMMIT failed and may have been carried out all the same: neither commit nor rollback is told (%s)",
        names or "nothing waited for it",
    )


def _tell(session: Session, entries: Iterable[Waiting], phase: Phase) -> None:
    for entry in entries:
        if isinstance(entry, Kept):
            try:
                _Telling(session, entry.event, phase, entry).run()
            finally:
                entry.expire_again()
        elif phase == "commit":
            _call_back(session, entry.function)


class _Telling:
    """The calls for one event."""

    def __init__(self, session: Session, event: Event, phase: Phase, kept: Kept | None = None) -> None:
        self._session = session
        self._event = event
        self._phase: Phase = phase
        self._kept = kept

    def run(self) -> None:
        links = self._event.plan(self._phase)
        if not links:
            self._event.report(self._phase)
            return
        send = PhaseSend(self._event, self._phase)
        with send:
            for link in links:
                self._call(send, link)

    def _call(self, send: Send, link: Connection) -> None:
        session = self._session
        if self._kept is not None:
            self._kept.put_back()
        was_idle = not session.in_transaction()
        is_failed = True
        try:
            self._start(send, link)
            is_failed = False
        except BaseException as error:
            if not is_receivers_error(error):
                raise
            log_failure(error, link, send.signal, send.sender)
        if was_idle:
            try:
                leave_idle(session, failed=is_failed)
            except Exception as error:  # noqa: BLE001  it is the receiver's work that fails
                log_failure(error, link, send.signal, send.sender)

    def _start(self, send: Send, link: Connection) -> None:
        def refuse() -> AsyncReceiverError:
            return AsyncReceiverError(send.signal, link.describe())

        if not is_awaited(link):
            run_here(send.to(link), refuse)
        elif in_greenlet():
            await_only(send.to(link))
        else:
            raise refuse()


def _call_back(session: Session, callback: Callable[[], object]) -> None:
    was_idle = not session.in_transaction()
    is_failed = True
    try:
        try:
            response = callback()
            if isawaitable(response):
                await_only(response)
            is_failed = False
        finally:
            if was_idle:
                leave_idle(session, failed=is_failed)
    except BaseException as error:
        if not is_receivers_error(error):
            raise
        _logger.exception("%s failed as a callback of on_commit", describe(callback))


def leave_idle(session: Session, *, failed: bool) -> None:
    """End the transaction that a receiver has begun and left open: nobody else knows of it."""
    transaction: Any = session.get_transaction()
    if transaction is None:
        return
    transaction.is_leftover = True
    if failed:
        session.rollback()
        return
    try:
        session.commit()
    except BaseException:
        session.rollback()
        raise
