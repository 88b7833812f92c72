"""Where in the database's transactions something was written, and whether it stays: asked of these transactions.

Hooks cannot tell: a listener that raises keeps those after it from running, though the COMMIT is through; a session
with several databases commits one after the other; and a connection's transaction or savepoint can be ended without its
session. So the transactions of SQLAlchemy's connections get a class that notes how they end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy.engine import NestedTransaction, RootTransaction, Transaction, TwoPhaseTransaction

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Mapper, Session, SessionTransaction

# `True`: COMMIT, or RELEASE, went through. `False`: rolled back. `None`: COMMIT failed, and may have been carried out.
# Absent: still open, or ended with the one around it.
_ends: WeakKeyDictionary[Transaction, bool | None] = WeakKeyDictionary()


class _Noting(Transaction):
    """Notes how a transaction of a connection ends."""

    __slots__ = ()

    def commit(self) -> None:
        try:
            super().commit()
        except BaseException:
            if self._may_be_committed():
                _ends[self] = None
            raise
        _ends[self] = True

    def _may_be_committed(self) -> bool:
        """Whether a COMMIT that failed may have been carried out."""
        return False

    def rollback(self) -> None:
        self._note_rollback()
        super().rollback()

    def close(self) -> None:
        self._note_rollback()
        super().close()

    def _note_rollback(self) -> None:
        if self.is_active:
            _ends[self] = False


class _NotingRoot(_Noting, RootTransaction):
    __slots__ = ()

    def _may_be_committed(self) -> bool:
        return self.connection.invalidated  # it was lost before the database had answered


class _NotingNested(_Noting, NestedTransaction):
    __slots__ = ()


class _NotingTwoPhase(_Noting, TwoPhaseTransaction):
    __slots__ = ()

    def _may_be_committed(self) -> bool:
        return self._is_prepared  # the database keeps it until somebody commits it or rolls it back


_NOTING: dict[type[Transaction], type[_Noting]] = {
    RootTransaction: _NotingRoot,
    NestedTransaction: _NotingNested,
    TwoPhaseTransaction: _NotingTwoPhase,
}


def _watch(transaction: Transaction) -> Transaction:
    noting = _NOTING.get(type(transaction))
    if noting is not None:
        transaction.__class__ = noting
    return transaction


class Place(NamedTuple):
    """Where something was written."""

    transactions: tuple[Transaction, ...]  # the savepoints it is in, the innermost first, and the session's own last
    is_joined: bool  # the session's own belongs to somebody else, who will end it

    @property
    def is_lost(self) -> bool:
        """Whether it has been rolled back."""
        return any(_ends.get(each) is False for each in self.transactions)

    @property
    def is_in_doubt(self) -> bool:
        """Whether nobody knows if it was committed."""
        own = self.transactions[-1]
        return not self.is_lost and own in _ends and _ends[own] is None

    def is_kept(self, *, session_committed: bool) -> bool:
        """Whether it was committed, or stays in a transaction that the session has joined."""
        if self.is_lost:
            return False
        return session_committed if self.is_joined else _ends.get(self.transactions[-1]) is True


class AllPlaces(NamedTuple):
    """The places of a statement that several databases have executed."""

    places: tuple[Place, ...]

    @property
    def is_lost(self) -> bool:
        """Whether it has been rolled back in one of them."""
        return any(each.is_lost for each in self.places)

    @property
    def is_in_doubt(self) -> bool:
        """Whether nobody knows, for one of them."""
        return any(each.is_in_doubt for each in self.places)

    def is_kept(self, *, session_committed: bool) -> bool:
        """Whether it was committed in all of them."""
        return all(each.is_kept(session_committed=session_committed) for each in self.places)


def outermost(transaction: SessionTransaction) -> SessionTransaction:
    """The transaction around all others."""
    while transaction.parent is not None:
        transaction = transaction.parent
    return transaction


def own_places(transaction: SessionTransaction) -> list[Place]:
    """The transactions, or savepoints, that a session's transaction has begun in its databases."""
    return [Place((_watch(own),), not commits) for _, own, commits, _ in set(transaction._connections.values())]


def place_on(session: Session, connection: Connection | None) -> Place | None:
    """Where a session writes on a connection now."""
    transaction = session._transaction
    if transaction is None or connection is None:
        return None
    entry = outermost(transaction)._connections.get(connection)
    if entry is None:
        return None
    _, own, commits, _ = entry
    chain: list[Transaction] = []
    nested: Any = connection.get_nested_transaction()
    while nested is not None and nested is not own:
        chain.append(_watch(nested))
        nested = nested._previous_nested
    return Place((*chain, _watch(own)), not commits)


class Places:
    """Where the rows of one flush, or statement, are written: found once for each mapper."""

    def __init__(self, session: Session) -> None:
        self._session = session
        transaction = session._transaction
        used = set() if transaction is None else {entry[0] for entry in outermost(transaction)._connections.values()}
        self._used: set[Connection] = used
        self._only = place_on(session, next(iter(used))) if len(used) == 1 else None
        self._known: dict[Any, Place | None] = {}

    def of(self, mapper: Mapper[Any], instance: object) -> Place | None:
        """Where the row of an instance is written."""
        if self._only is not None:
            return self._only
        by_instance = self._session.connection_callable  # of horizontal sharding
        if by_instance is not None:
            return place_on(self._session, by_instance(mapper, instance))
        if mapper not in self._known:
            self._known[mapper] = self.where(mapper=mapper)
        return self._known[mapper]

    def of_statement(self, **bind_arguments: Any) -> Place | AllPlaces | None:
        """Where a statement with these bind arguments was executed; with shards, in all that the session uses."""
        if self._only is None and self._session.connection_callable is not None:
            return AllPlaces(tuple(place for each in self._used if (place := place_on(self._session, each))))
        return self.where(**bind_arguments)

    def where(self, **bind_arguments: Any) -> Place | None:
        """Where rows with these bind arguments are written."""
        if self._only is not None:
            return self._only
        transaction = self._session._transaction
        if transaction is None:
            return None
        entry = outermost(transaction)._connections.get(self._session.get_bind(**bind_arguments))
        return None if entry is None else place_on(self._session, entry[0])
