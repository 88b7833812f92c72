"""Which attributes an UPDATE sets: `update_fields`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from sqlalchemy.orm import PassiveFlag

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Column, ColumnElement, FromClause
    from sqlalchemy.orm import InstanceState, Mapper


def changed_attributes(state: InstanceState[Any]) -> set[str]:
    """The mapped columns' attributes with a net change, as far as the instance itself knows; runs no SQL."""
    columns = state.mapper.column_attrs
    changed = set()
    for key in state.committed_state:
        if key in columns:
            history = state.get_history(key, PassiveFlag.PASSIVE_NO_INITIALIZE)
            if history.added or history.deleted:
                changed.add(key)
    return changed


class _Side(NamedTuple):
    """What the UPDATE statements of a mapper set beside the changes."""

    version: frozenset[str]
    onupdate: tuple[tuple[str, FromClause], ...]


_NO_SIDE = _Side(frozenset(), ())

# A cache: reading this off a mapper costs as much as all the rest for each row.
_sides: WeakKeyDictionary[Mapper[Any], _Side] = WeakKeyDictionary()


def _side(mapper: Mapper[Any]) -> _Side:
    known = _sides.get(mapper)
    if known is None:
        version = mapper.version_id_col
        is_counted = version is not None and mapper.version_id_generator is not False
        known = _sides[mapper] = _Side(
            frozenset([attribute_of(mapper, version)] if is_counted and version is not None else []),
            tuple((attribute_of(mapper, each), each.table) for each in mapper.columns if each.onupdate is not None),
        )
    return known


def written_attributes(mapper: Mapper[Any], changed: Iterable[str]) -> frozenset[str]:
    """What the UPDATE statements for these changes set: them, version counters, and columns with an `onupdate`."""
    written = frozenset(changed)
    side = _side(mapper)
    if not written or side == _NO_SIDE:
        return written
    written |= side.version
    tables = {column.table for key in written for column in mapper.column_attrs[key].columns}
    return written.union(key for key, table in side.onupdate if table in tables)


def attribute_of(mapper: Mapper[Any], column: ColumnElement[Any]) -> str:
    """The name of the attribute that a column is mapped to."""
    return mapper.get_property_by_column(cast("Column[Any]", column)).key


def updated_attributes(state: InstanceState[Any]) -> frozenset[str]:
    """What the UPDATE for this instance sets; empty when there is nothing to update."""
    return written_attributes(state.mapper, changed_attributes(state))
