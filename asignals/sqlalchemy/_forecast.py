"""What a flush is going to do, found out by asking a second unit of work before the first one starts.

`session.new`, `dirty` and `deleted` tell less than half: cascades, orphans, foreign keys that a collection of another
object sets, and rows that change hands are only decided when the unit of work sorts its actions. So one is filled as
`Session.flush` does it, told to sort, and thrown away; sorting runs the same SELECTs that the flush would run, and
leaves what they load in place.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, PassiveFlag, RelationshipDirection, RelationshipProperty
from sqlalchemy.orm.exc import UnmappedColumnError

from asignals.sqlalchemy._changes import attribute_of, changed_attributes, written_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Mapper, Session, UOWTransaction
    from sqlalchemy.orm.attributes import History

_UNKNOWN = object()


class Fate(NamedTuple):
    """What the flush will do to one instance."""

    row: InstanceState[Any]
    deleted: bool = False
    created: bool = False
    fields: frozenset[str] | None = None


def within_reach(session: Session) -> set[Mapper[Any]]:
    """All mappers that a flush of what has changed may concern, cascades included."""
    rows = chain(session._new, session._dirty_states, session._deleted)  # new, dirty and deleted make copies
    reached: set[Mapper[Any]] = set()
    ahead = {row.manager.mapper for row in rows}
    while ahead:
        reached |= ahead
        related = {prop.mapper for mapper in ahead for prop in mapper.relationships if not prop.viewonly}
        ahead = {each for mapper in related for each in mapper.self_and_descendants} - reached
    return reached


def forecast(session: Session, unit: UOWTransaction, instances: Sequence[Any] | None) -> list[Fate]:
    """The fates of all instances that a flush into this empty unit of work would insert, update or delete."""
    _register(session, unit, instances)
    unit._generate_actions()  # type: ignore[no-untyped-call]  # private, but it is all that decides
    states = {row: deleted for row, (deleted, only_listed) in unit.states.items() if not only_listed}
    taken_over = {old for row in states if (old := _predecessor(session, row, states))}
    keys = _foreign_keys(unit, states)
    fates = []
    for row, deleted in states.items():
        if deleted:
            if row not in taken_over:
                fates.append(Fate(row, deleted=True))
        elif row.key is None:
            replaces = _predecessor(session, row, states) is not None
            fields = written_attributes(row.mapper, changed_attributes(row)) if replaces else None
            fates.append(Fate(row, created=not replaces, fields=fields))
        else:
            changed = changed_attributes(row).union(keys.get(row, ()))
            if changed:
                fates.append(Fate(row, fields=written_attributes(row.mapper, changed)))
    return fates


def _register(session: Session, unit: UOWTransaction, instances: Sequence[Any] | None) -> None:
    chosen = {inspect(instance) for instance in instances} if instances else None
    rows = [*_in_order(session.new), *_in_order(session.dirty)]
    for row in rows:
        if chosen is None or row in chosen:
            is_orphan = row.mapper._is_orphan(row)  # as Session.flush asks
            if not is_orphan or row.has_identity or not row._orphaned_outside_of_session:
                unit.register_object(row, isdelete=is_orphan and row.has_identity)
    for row in _in_order(session.deleted):
        if chosen is None or row in chosen:
            unit.register_object(row, isdelete=True)


def _in_order(instances: Iterable[object]) -> list[InstanceState[Any]]:
    """New instances as they were added, others by primary key where keys can be compared."""
    rows: list[InstanceState[Any]] = [inspect(instance) for instance in instances]
    try:
        return sorted(rows, key=_rank)
    except TypeError:
        return rows


def _rank(row: InstanceState[Any]) -> tuple[Any, ...]:
    return (row.insert_order,) if row.key is None else (row.mapper.class_.__name__, *row.key[1])


def _predecessor(
    session: Session, row: InstanceState[Any], states: dict[InstanceState[Any], bool]
) -> InstanceState[Any] | None:
    """The deleted instance whose row a new one with the same primary key takes over by an UPDATE."""
    if row.key is not None or states[row]:
        return None
    other = session.identity_map.get(row.mapper.identity_key_from_instance(row.obj()))
    old = None if other is None else inspect(other)
    return old if old is not None and states.get(old) else None


# -- foreign keys that relationships will set --------------------------------------------------------------------------


def _foreign_keys(unit: UOWTransaction, states: dict[InstanceState[Any], bool]) -> dict[InstanceState[Any], set[str]]:
    """The foreign keys that are not set yet: the flush takes them from the relationships when it comes to the row."""
    found: dict[InstanceState[Any], set[str]] = {}
    for row, deleted in list(states.items()):
        for prop in row.mapper.relationships:
            if prop.viewonly or prop.direction is RelationshipDirection.MANYTOMANY:
                continue
            if prop.direction is RelationshipDirection.ONETOMANY:
                changes = _of_children(unit, states, row, prop, deleted=deleted)
            elif deleted:
                continue
            else:
                changes = _of_parent(unit, row, prop)
            for child, key in changes:
                found.setdefault(child, set()).add(key)
    return found


def _of_parent(
    unit: UOWTransaction, row: InstanceState[Any], prop: RelationshipProperty[Any]
) -> Iterator[tuple[InstanceState[Any], str]]:
    history = _history(unit, row, prop)
    if not history.added and not history.deleted:
        return
    parent = history.added[0] if history.added else None
    for remote, own in prop.synchronize_pairs:
        yield from _if_new(row, own, _value(parent, remote))


def _of_children(
    unit: UOWTransaction,
    states: dict[InstanceState[Any], bool],
    row: InstanceState[Any],
    prop: RelationshipProperty[Any],
    *,
    deleted: bool,
) -> Iterator[tuple[InstanceState[Any], str]]:
    history = _history(unit, row, prop)
    left = history.deleted
    if deleted and prop.passive_deletes != "all":
        left = (*history.deleted, *history.unchanged)
    for parent, children in ((row, () if deleted else history.added), (None, left)):
        for child in children:
            if child is not None and states.get(child) is False:
                for remote, own in prop.synchronize_pairs:
                    yield from _if_new(child, own, _value(parent, remote))


def _history(unit: UOWTransaction, row: InstanceState[Any], prop: RelationshipProperty[Any]) -> History:
    found = unit.get_attribute_history(row, prop.key, PassiveFlag.PASSIVE_NO_INITIALIZE)  # type: ignore[no-untyped-call]  # SQLAlchemy has not annotated it
    return cast("History", found)


def _value(row: InstanceState[Any] | None, column: ColumnElement[Any]) -> object:
    if row is None:
        return None
    key = _attribute(row, column)
    return _UNKNOWN if key is None else row.dict.get(key, _UNKNOWN)


def _if_new(
    row: InstanceState[Any], column: ColumnElement[Any], value: object
) -> Iterator[tuple[InstanceState[Any], str]]:
    key = _attribute(row, column)
    if key is not None and (value is _UNKNOWN or row.dict.get(key, _UNKNOWN) != value):
        yield row, key


def _attribute(row: InstanceState[Any], column: ColumnElement[Any]) -> str | None:
    """The attribute of a column; one may be left out of a mapping."""
    try:
        return attribute_of(row.mapper, column)
    except UnmappedColumnError:
        return None
