"""What a flush is going to do, found out before it starts.

`session.new`, `dirty` and `deleted` tell less than half: cascades, orphans, foreign keys that a collection of another
object sets, and rows that change hands are only decided when the unit of work sorts its actions. So, where there are
changed relationships, changed primary keys, orphans or deletions that can reach a class somebody listens to, a second
unit of work is filled as `Session.flush` does it, told to sort, and discarded; sorting runs the same SELECTs that the
flush would run, and leaves what they load in place. All other rows are what they look like.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy.orm import InstanceState, PassiveFlag, RelationshipDirection, RelationshipProperty, UOWTransaction

from asignals.sqlalchemy._changes import (
    NO_VALUE,
    attribute_of,
    changes_to,
    first_values,
    net_changes,
    stored_value,
    traits_by_class,
    traits_of,
)
from asignals.sqlalchemy._saves import in_order, predecessor

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session
    from sqlalchemy.orm.attributes import History

    from asignals.sqlalchemy._changes import Changes, Traits

_UNKNOWN = object()


class Fate(NamedTuple):
    """What the flush will do to one instance."""

    row: InstanceState[Any]
    instance: object  # held: what a cascade has loaded, nobody else refers to
    deleted: bool = False
    fields: frozenset[str] | None = None  # of an UPDATE
    changes: Changes | None = None


def forecast(
    session: Session,
    instances: Sequence[Any] | None,
    is_saved: Callable[[type], bool],
    is_deleted: Callable[[type], bool],
    seen: Collection[Any],
) -> tuple[Iterable[Fate], bool]:
    """What a flush would do to the instances of models that somebody listens to, without the saved rows in `seen`.

    And whether all rows are what they look like; then a row is looked at when the iterable comes to it.
    """
    chosen = _chosen(instances)
    rows = [row for row in chain(session._new, session._dirty_states) if chosen is None or row in chosen]
    deleted = [row for row in session._deleted if chosen is None or row in chosen]
    traits = traits_by_class((*rows, *deleted))
    near = {model: each for model, each in traits.items() if each.reaches(is_saved, is_deleted)}
    if any(row.class_ in near for row in deleted) or any(
        row.class_ in near and _is_involved(row, near[row.class_]) for row in rows
    ):
        fates = _sorted_out(session, instances)
        return [fate for fate in fates if (is_deleted if fate.deleted else is_saved)(fate.row.class_)], False
    heard = {model: each for model, each in near.items() if is_saved(model)}
    return _taken_as_they_are([row for row in rows if row.class_ in heard and row not in seen], heard), True


def _chosen(instances: Sequence[Any] | None) -> set[InstanceState[Any]] | None:
    """What a flush is limited to; what is no mapped instance is left to SQLAlchemy to refuse."""
    if not instances:
        return None
    return {each._sa_instance_state for each in instances if hasattr(each, "_sa_instance_state")}


def extent(session: Session) -> tuple[int, ...]:
    """Grows when an instance is added, deleted, or changed in another attribute."""
    rows = [*session._new, *session._dirty_states]
    return len(session._deleted), len(rows), sum([len(row.committed_state) for row in rows])


def _is_involved(row: InstanceState[Any], traits: Traits) -> bool:
    """Whether a row's fate, or another's that depends on it, is not seen from its columns alone."""
    deciding = traits.relationships if row.key is None else traits.deciding
    return not deciding.isdisjoint(row.committed_state) or (traits.may_be_orphan and bool(row.mapper._is_orphan(row)))


def _taken_as_they_are(rows: list[InstanceState[Any]], traits: dict[type, Traits]) -> Iterator[Fate]:
    for row in in_order(rows):
        known = traits[row.class_]
        instance = row.obj()
        if instance is None:  # a receiver called before has expunged it
            continue
        if row.key is None:
            yield Fate(row, instance, changes=first_values(row, known))
        elif old := net_changes(row, known):
            yield _updated(row, known, old)


def _updated(row: InstanceState[Any], traits: Traits, old: dict[str, object]) -> Fate:
    fields = traits.written(old)
    changes = changes_to(row, old)
    if traits.replaced:
        changes.update((key, (stored_value(row, key), NO_VALUE)) for key in fields - changes.keys())
    return Fate(row, row.obj(), fields=fields, changes=changes)


# -- what only a unit of work tells ------------------------------------------------------------------------------------


def _sorted_out(session: Session, instances: Sequence[Any] | None) -> Iterator[Fate]:
    unit = UOWTransaction(session)
    _register(session, unit, instances)
    unit._generate_actions()  # type: ignore[no-untyped-call]  # private, but it is all that decides
    states = {row: deleted for row, (deleted, only_listed) in unit.states.items() if not only_listed}
    taken_over = {predecessor(session, row, unit.states) for row in states}
    keys = _foreign_keys(unit, states)
    for row, deleted in states.items():
        if deleted:
            if row not in taken_over:
                yield Fate(row, row.obj(), deleted=True)
            continue
        traits = traits_of(row.manager.mapper)
        new = keys.get(row, {})
        if row.key is None and predecessor(session, row, unit.states) is None:
            changes = first_values(row, traits)
            yield Fate(row, row.obj(), changes={**changes, **{key: (NO_VALUE, value) for key, value in new.items()}})
            continue
        old = {**net_changes(row, traits), **{key: stored_value(row, key) for key in new}}
        if old or row.key is None:
            fate = _updated(row, traits, old)
            changes = {**(fate.changes or {}), **{key: (stored_value(row, key), value) for key, value in new.items()}}
            yield fate._replace(changes=changes)


def _register(session: Session, unit: UOWTransaction, instances: Sequence[Any] | None) -> None:
    chosen = _chosen(instances)
    for row in [*in_order(session._new), *in_order(session._dirty_states - session._deleted.keys())]:
        if chosen is None or row in chosen:
            is_orphan = row.mapper._is_orphan(row)  # as Session.flush asks
            if not is_orphan or row.has_identity or not row._orphaned_outside_of_session:
                unit.register_object(row, isdelete=is_orphan and row.has_identity)
    for row in in_order(session._deleted):
        if chosen is None or row in chosen:
            unit.register_object(row, isdelete=True)


# -- foreign keys that relationships will set --------------------------------------------------------------------------


def _foreign_keys(
    unit: UOWTransaction, states: dict[InstanceState[Any], bool]
) -> dict[InstanceState[Any], dict[str, object]]:
    """The foreign keys that are not set yet: the flush takes them from the relationships when it comes to the row."""
    found: dict[InstanceState[Any], dict[str, object]] = {}
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
            for child, key, value in changes:
                found.setdefault(child, {})[key] = value
    return found


def _of_parent(
    unit: UOWTransaction, row: InstanceState[Any], prop: RelationshipProperty[Any]
) -> Iterator[tuple[InstanceState[Any], str, object]]:
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
) -> Iterator[tuple[InstanceState[Any], str, object]]:
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
    key = attribute_of(row.mapper, column)
    if key is not None and key in row.dict:
        return row.dict[key]
    if row.key is not None and column in row.mapper.primary_key:
        return row.key[1][row.mapper.primary_key.index(column)]
    return _UNKNOWN


def _if_new(
    row: InstanceState[Any], column: ColumnElement[Any], value: object
) -> Iterator[tuple[InstanceState[Any], str, object]]:
    key = attribute_of(row.mapper, column)
    if key is not None and (value is _UNKNOWN or row.dict.get(key, _UNKNOWN) != value):
        yield row, key, NO_VALUE if value is _UNKNOWN else value
