"""What model signals keep for one session while its receivers run, and how a session is found and enabled.

Which transactions are open is asked of the session, and whether they were committed of the transactions themselves
(`_transactions`, `_places`). Everything here belongs to the session and dies with it; sessions share no state.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession, async_session
from sqlalchemy.orm import Session

from asignals.sqlalchemy._errors import SignalsNotEnabledError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import InstanceState, SessionTransaction

    from asignals.sqlalchemy._event import Event

_KEY = "_asignals_state"
_MARK = "_asignals_enabled"


class SessionState:
    """What model signals know of one session."""

    def __init__(self) -> None:
        self.before: dict[InstanceState[Any], dict[str, Any]] = {}  # values that the flush replaces without a history
        self.written: list[Event] = []  # of the rows that the flush under way has written
        self.links: list[Event] = []
        self.ended: list[SessionTransaction] = []  # outermost transactions whose receivers have not been called yet
        self.heard = False  # a receiver ran, or something waits, since the outermost transaction began
        self.depth = 0  # of commit, rollback and close calling each other
        self.shielded = False
        self.torn = False  # a receiver tried to close the session, which has lost its objects by that
        self._receiving = 0
        self._around: SessionTransaction | None = None

    @contextmanager
    def receiving(self, session: Session) -> Iterator[None]:
        """While receivers run inside of a flush or a statement, the transactions that are open now must stay."""
        around = self._around
        self._around = session._transaction
        self.torn = self.torn and self._receiving > 0
        self._receiving += 1
        try:
            yield
        finally:
            self._receiving -= 1
            self._around = around

    @property
    def is_receiving(self) -> bool:
        """Whether receivers run inside of a flush or a statement."""
        return self._receiving > 0

    def may_end(self, transaction: SessionTransaction) -> bool:
        """Whether a transaction may be ended now: receivers may end only those that they have begun."""
        if not self.is_receiving:
            return True
        if self._around is None:
            return transaction.nested
        above = transaction.parent
        while above is not None and above is not self._around:
            above = above.parent
        return above is not None


def existing_state(session: Session | None) -> SessionState | None:
    """The state of a session that has been used since its class was enabled."""
    return None if session is None else vars(session).get(_KEY)


def state_of(session: Session) -> SessionState:
    """The state of an enabled session."""
    found: SessionState | None = vars(session).get(_KEY)
    if found is None:
        found = vars(session)[_KEY] = SessionState()
    return found


def public_session(session: Session) -> AsyncSession | Session:
    """The session as receivers see it: the `AsyncSession`, or the sync one where there is no other."""
    return async_session(session) or session


def sync_session_of(session: object) -> Session:
    """The sync session behind whatever is given as a session, provided that signals are enabled for it."""
    found = getattr(session, "sync_session", session)  # AsyncSession, and async_scoped_session by proxy
    if not isinstance(found, Session) and callable(found):
        found = found()  # scoped sessions are called for the current one
        found = getattr(found, "sync_session", found)
    if not isinstance(found, Session) or not is_enabled(type(found)):
        raise SignalsNotEnabledError(session)
    return found


def is_enabled(session_class: type[Session]) -> bool:
    """Whether sessions of this class report what they do."""
    return bool(getattr(session_class, _MARK, False))


def mark(session_class: type[Session], *, enabled: bool) -> None:
    """Note on the class itself, where subclasses inherit it, that it is enabled."""
    if enabled:
        setattr(session_class, _MARK, True)
    else:
        delattr(session_class, _MARK)


def marked_below(session_class: type[Session]) -> Iterator[type[Session]]:
    """The class and those below it that carry their own mark."""
    if _MARK in vars(session_class):
        yield session_class
    for below in session_class.__subclasses__():
        yield from marked_below(below)
