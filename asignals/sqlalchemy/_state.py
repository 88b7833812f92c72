"""What model signals keep for one session: the flush under way, and what waits for its transactions to end.

Invariants:

- `frames` has one frame for each open transaction and savepoint, the outermost first; subtransactions have none.
- What happened waits in the frame it happened in. A released savepoint's frame goes up to the one around it, a
  rolled back one's goes up as lost, and nothing is delivered before the outermost has ended.
- Everything here belongs to the session and dies with it; no state is shared between sessions.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy.ext.asyncio import AsyncSession, async_session
from sqlalchemy.orm import Session

from asignals.sqlalchemy._errors import SignalsNotEnabledError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import InstanceState, SessionTransaction

    from asignals.sqlalchemy._deliver import Event

    Callback: TypeAlias = Callable[[], object]

_KEY = "_asignals_state"
_MARK = "_asignals_enabled"


class Frame:
    """One open transaction or savepoint."""

    __slots__ = ("began", "committed", "kept", "lost", "rolled_back", "transaction", "wrote")

    def __init__(self, transaction: SessionTransaction) -> None:
        self.transaction = transaction
        self.kept: list[Event | Callback] = []
        self.lost: list[Event | Callback] = []
        self.began = False  # the database has been reached
        self.wrote = False  # a flush has ended in it
        self.committed = False
        self.rolled_back = False  # by request, not merely closed

    def join(self, inner: Frame) -> None:
        """Take over what an inner frame that has ended leaves."""
        self.wrote = self.wrote or inner.wrote
        self.lost += inner.lost
        if inner.committed:
            self.kept += inner.kept
        else:
            self.lost += inner.kept


class Record:
    """One row that the flush under way has written."""

    __slots__ = ("created", "deleted", "fields", "instance")

    def __init__(
        self,
        instance: object,
        *,
        created: bool = False,
        deleted: bool = False,
        fields: frozenset[str] | None = None,
    ) -> None:
        self.instance = instance
        self.created = created
        self.deleted = deleted
        self.fields = fields


class SessionState:
    """What model signals know of one session."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.ended: list[Frame] = []
        self.waiting: list[Callback] = []  # on_commit without a transaction: for the next one
        self.records: dict[InstanceState[Any], Record] = {}
        self.fields: dict[InstanceState[Any], frozenset[str]] = {}  # what an UPDATE is about to set
        self.links: list[Event] = []
        self.heard = False  # a receiver ran, or something waits, since the outermost transaction began
        self.depth = 0  # of commit, rollback and close calling each other
        self.shielded = False
        self.torn = False  # a receiver ended a transaction that the flush around it needs
        self._receiving = 0
        self._floor = 0

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """While receivers run inside of a flush or a statement, the frames that are there now must stay."""
        floor = self._floor
        self._floor = len(self.frames)
        self.torn = self.torn and self._receiving > 0
        self._receiving += 1
        try:
            yield
        finally:
            self._receiving -= 1
            self._floor = floor

    @property
    def is_receiving(self) -> bool:
        """Whether receivers run inside of a flush or a statement."""
        return self._receiving > 0

    def is_of_receiver(self, transaction: SessionTransaction) -> bool:
        """Whether a transaction is a savepoint that the receiver which runs has begun."""
        return transaction.nested and any(frame.transaction is transaction for frame in self.frames[self._floor :])

    def may_commit(self) -> bool:
        """Whether the innermost frame may be committed now."""
        return not self.is_receiving or self.is_of_receiver(self.frames[-1].transaction)

    def left(self, depth: int) -> None:
        """Note that the frame at this depth has ended."""
        if self._receiving and depth < self._floor:
            self.torn = True

    def keep(self, entry: Event | Callback) -> None:
        """Have an entry wait for the end of the innermost frame."""
        self.heard = True
        self.frames[-1].kept.append(entry)


def existing_state(session: Session | None) -> SessionState | None:
    """The state of a session that has been used since its class was enabled."""
    return None if session is None else vars(session).get(_KEY)


def state_of(session: Session) -> SessionState:
    """The state of an enabled session."""
    found: SessionState | None = vars(session).get(_KEY)
    if found is None:
        found = vars(session)[_KEY] = SessionState()
        found.frames = [Frame(each) for each in reversed(list(open_transactions(session))) if has_frame(each)]
    return found


def open_transactions(session: Session) -> Iterator[SessionTransaction]:
    """The transactions of a session, the innermost first; more than the one being made if its class is enabled late."""
    transaction = session._transaction
    while transaction is not None:
        yield transaction
        transaction = transaction.parent


def has_frame(transaction: SessionTransaction) -> bool:
    """Whether it is the outermost or a savepoint; the others belong to flushes."""
    return transaction.parent is None or transaction.nested


def announced(session: Session) -> AsyncSession | Session:
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
    """Whether sessions of this class announce what they do."""
    return bool(getattr(session_class, _MARK, False))


def mark(session_class: type[Session], *, enabled: bool) -> None:
    """Note on the class itself, where subclasses inherit it, that it is enabled."""
    if enabled:
        setattr(session_class, _MARK, True)
    else:
        delattr(session_class, _MARK)


def marked_below(session_class: type[Session]) -> Iterator[type[Session]]:
    """The class and those below it that carry a mark of their own."""
    if _MARK in vars(session_class):
        yield session_class
    for below in session_class.__subclasses__():
        yield from marked_below(below)
