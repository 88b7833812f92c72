"""What waits for the end of a transaction: events, with the attributes that their instances had, and callbacks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from sqlalchemy import inspect
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.collections import collection_adapter

from asignals._core import describe
from asignals.sqlalchemy._changes import traits_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import InstanceState

    from asignals.sqlalchemy._event import Event
    from asignals.sqlalchemy._places import AllPlaces, Place

_logger = logging.getLogger("asignals")


class Ending(Protocol):
    """The transaction, or savepoint, of a session whose end is waited for."""

    nested: bool
    commit_reached: bool

    @property
    def parent(self) -> Any:
        """The one around it."""
        ...

    @property
    def is_committed(self) -> bool:
        """Whether all of it has been committed."""
        ...

    @property
    def is_in_doubt(self) -> bool:
        """Whether nobody knows."""
        ...

    def _transaction_is_closed(self) -> bool: ...


class Kept:
    """An event that waits for the end of its transaction, and the attributes of its instances as they are now."""

    __slots__ = ("_loaded", "event", "place", "transaction")

    def __init__(
        self,
        event: Event,
        place: Place | AllPlaces | None,
        transaction: Ending,
        loaded: list[Loaded] | None = None,
    ) -> None:
        self.event = event
        self.place = place
        self.transaction = transaction  # the outermost
        self._loaded = loaded or []

    @property
    def is_lost(self) -> bool:
        """Whether it is known already that it was rolled back."""
        return self.place is not None and self.place.is_lost

    @property
    def is_kept(self) -> bool:
        """Whether it was committed; asked after the end."""
        if self.place is None:
            return self.transaction.is_committed
        return self.place.is_kept(session_committed=self.transaction.commit_reached)

    @property
    def is_in_doubt(self) -> bool:
        """Whether nobody knows if it was committed; asked after the end."""
        if self.is_lost:
            return False
        return self.transaction.is_in_doubt if self.place is None else self.place.is_in_doubt

    def describe(self) -> str:
        """The signal and its sender, for messages."""
        sender = self.event.sender
        return f"{self.event.signal.name} of {getattr(sender, '__name__', sender)}"

    def put_back(self) -> None:
        """Make readable what is expired and was loaded."""
        for each in self._loaded:
            each.put_back()

    def expire_again(self) -> None:
        """Undo `put_back`: whoever goes on with the session gets what the database has."""
        for each in self._loaded:
            each.expire_again()


class Snapshot:
    """The attributes that instances have loaded at the end of one flush; read once for each instance."""

    def __init__(self) -> None:
        self._known: dict[InstanceState[Any], Loaded] = {}

    def of(self, event: Event) -> list[Loaded]:
        """The attributes of the instances of an event, and of those that are loaded in their relationships."""
        arguments = event.arguments
        rows: dict[InstanceState[Any], None] = {}
        for instance in (arguments["instance"], *arguments.get("objects", ())):
            row = inspect(instance)
            rows[row] = None
            rows.update(dict.fromkeys(_related(row)))
        return [self._loaded(row) for row in rows]

    def _loaded(self, row: InstanceState[Any]) -> Loaded:
        known = self._known.get(row)
        if known is None:
            known = self._known[row] = Loaded(row)
        return known


def _related(row: InstanceState[Any]) -> Iterator[InstanceState[Any]]:
    for key in row.dict.keys() & traits_of(row.manager.mapper).relationships:
        members = _members(row.dict[key])
        for member in members if isinstance(members, list) else [members]:
            if _is_populated(row, key) and member is not None:
                yield inspect(member)


def _is_populated(row: InstanceState[Any], key: str) -> bool:
    """Whether an attribute holds what it shows: dynamic and write-only collections, and composites, do not."""
    return key in row.manager and bool(getattr(row.manager[key].impl, "supports_population", False))


def _members(value: Any) -> Any:
    """The members of a collection, which can't be used any more once it has expired; any other value as it is."""
    adapter = getattr(value, "_sa_adapter", None)
    return value if adapter is None else list(collection_adapter(value))


class Loaded:
    """The attributes that an instance had loaded at some time, or that were `None` because nobody had set them."""

    __slots__ = ("_instance", "_put_back", "_row", "_unset", "_values", "_was_expired")

    def __init__(self, row: InstanceState[Any]) -> None:
        self._row = row
        self._instance = row.obj()
        self._unset = traits_of(row.manager.mapper).unset(row)
        self._values = dict.fromkeys(self._unset)
        self._values.update((key, _members(value)) for key, value in row.dict.items() if _is_populated(row, key))
        self._put_back: set[str] = set()
        self._was_expired = False

    def put_back(self) -> None:
        """Set what is expired, as if it had just been loaded."""
        row = self._row
        missing = self._values.keys() - row.dict.keys() - (self._unset - row.expired_attributes)
        if not missing:
            return
        self._was_expired = self._was_expired or row.expired
        for key in missing:
            try:
                set_committed_value(self._instance, key, self._values[key])
            except Exception:  # a collection's class is the user's, and the others are to be called all the same
                _logger.exception("receivers do not find %s.%s as it was", type(self._instance).__name__, key)
        self._put_back |= missing

    def expire_again(self) -> None:
        """Undo `put_back`, unless a receiver has changed the instance, or taken it out of the session."""
        row = self._row
        if not self._put_back or row.modified or row.session_id is None:
            return
        if self._was_expired:
            row._expire(row.dict, set() if row.session is None else row.session.identity_map._modified)
        else:
            row._expire_attributes(row.dict, self._put_back)
        self._put_back = set()


class Callback:
    """A callback of `on_commit`."""

    __slots__ = ("_transaction", "function")

    def __init__(self, function: Callable[[], object], transaction: Ending) -> None:
        self.function = function
        self._transaction: Ending | None = transaction

    @property
    def is_lost(self) -> bool:
        """Whether the savepoint that it was registered in has been rolled back."""
        within = self._transaction
        while within is not None and within.nested and within.commit_reached:
            within = within.parent
        return within is not None and within.nested and within._transaction_is_closed()

    @property
    def is_kept(self) -> bool:
        """Whether its transaction was committed; asked after the end."""
        within = self._transaction
        while within is not None:
            if not within.is_committed:
                return False
            within = within.parent
        return True

    @property
    def is_in_doubt(self) -> bool:
        """Whether nobody knows if its outermost transaction was committed; asked after the end."""
        outermost = self._transaction
        while outermost is not None and outermost.parent is not None:
            outermost = outermost.parent
        return outermost is not None and outermost.is_in_doubt and not self.is_lost

    def describe(self) -> str:
        """The callback, for messages."""
        return f"{describe(self.function)} of on_commit"


Waiting: TypeAlias = "Kept | Callback"
