"""What is known of a mapper, and what has changed in its instances: `update_fields` and `changes`."""

from __future__ import annotations

from datetime import datetime
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from weakref import ref

from sqlalchemy import Column, and_, event, or_, select
from sqlalchemy.orm import LoaderCallableStatus, Mapper, RelationshipDirection
from sqlalchemy.orm.exc import UnmappedColumnError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.orm import InstanceState

NO_VALUE = LoaderCallableStatus.NO_VALUE

Changes: TypeAlias = "dict[str, tuple[Any, Any]]"

_TRAITS = "asignals.traits"  # in `ClassManager.info`, which ends with the mapping of the class
_MOST_SETS = 256  # of changed attributes, remembered for one mapper


class Traits:
    """What is known of a mapper: a cache, because reading it off costs as much as all the rest for each row."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        self.age = _age(mapper)
        tables = {
            prop.key: frozenset(each.table for each in prop.columns if _is_written(mapper, each))
            for prop in mapper.column_attrs
        }
        self.tables = {key: of for key, of in tables.items() if of}
        self.writable = frozenset(self.tables)  # without SQL expressions
        self.left_to_load = self.writable | _loaded_expressions(mapper)  # if the flush has left them to the database
        self.primary_key = attributes_of(mapper, mapper.primary_key)
        self.relationships = frozenset(prop.key for prop in mapper.relationships if not prop.viewonly)
        self.deciding = self.relationships | self.primary_key  # of the fate of other rows
        self.may_be_orphan = any(each._delete_orphans for each in mapper.iterate_to_root())
        version = mapper.version_id_col
        is_counted = version is not None and mapper.version_id_generator is not False
        self.version = attributes_of(mapper, [version] if is_counted and version is not None else [])
        self.onupdate = {key: of for key, of in self.tables.items() if _has_onupdate(mapper, key)}
        self.replaced = self.version.union(self.onupdate)  # by the flush, without a history
        manager = mapper.class_manager
        impls = {key: manager[key].impl for key in self.writable if key in manager}
        self.is_equal = {key: impl.is_equal for key, impl in impls.items()}
        self._none_if_unset = frozenset(key for key, impl in impls.items() if impl.callable_ is None)  # not deferred
        self._mapper = ref(mapper)
        self._written: dict[frozenset[str], frozenset[str]] = {}
        self._reach: tuple[type, ...] | None = None
        self._reached: tuple[tuple[Callable[[type], bool], ...], bool] = (), False

    def written(self, changed: Iterable[str]) -> frozenset[str]:
        """What the UPDATE statements for these changes set: them, version counters, columns with an `onupdate`."""
        key = frozenset(changed)
        known = self._written.get(key)
        if known is None:
            if len(self._written) >= _MOST_SETS:
                self._written.clear()
            known = self._written[key] = self._all_written(key)
        return known

    def _all_written(self, changed: frozenset[str]) -> frozenset[str]:
        if not changed or not self.replaced:
            return changed
        written = changed | self.version
        tables = frozenset[Any]().union(*(self.tables.get(key, ()) for key in written))
        return written.union(key for key, of in self.onupdate.items() if of & tables)

    def unset(self, row: InstanceState[Any]) -> frozenset[str]:
        """The attributes that were neither set nor loaded, and that read as `None` without a query."""
        unset = self._none_if_unset - row.dict.keys()
        return unset - row.expired_attributes - row.callables.keys() if unset else unset

    def reaches(self, *heard: Callable[[type], bool]) -> bool:
        """Whether the relationships of an instance may insert, change or delete a row of a class that is heard.

        Its own class included. The answer for the same `heard` is remembered: there may be hundreds of classes.
        """
        known = self._reached
        if known[0] != heard:
            known = self._reached = heard, any(hears(model) for model in self._all_reached() for hears in heard)
        return known[1]

    def _all_reached(self) -> tuple[type, ...]:
        if self._reach is None:
            mapper = self._mapper()
            self._reach = () if mapper is None else tuple(each.class_ for each in _reach(mapper))
        return self._reach


def _reach(mapper: Mapper[Any]) -> set[Mapper[Any]]:
    reached: set[Mapper[Any]] = set()
    ahead = {mapper}
    while ahead:
        reached |= ahead
        ahead = {far for near in ahead for far in _neighbours(near)} - reached
    return reached


def _neighbours(mapper: Mapper[Any]) -> Iterator[Mapper[Any]]:
    for prop in mapper.relationships:
        is_written = prop.direction is RelationshipDirection.ONETOMANY or prop.cascade.delete
        if is_written and not prop.viewonly:
            yield from prop.mapper.self_and_descendants


def _is_written(mapper: Mapper[Any], column: ColumnElement[Any]) -> bool:
    return isinstance(column, Column) and column.table in mapper.tables


def _loaded_expressions(mapper: Mapper[Any]) -> frozenset[str]:
    """The SQL expressions that are loaded with an instance; a flush expires them."""
    is_loaded = (("deferred", False), ("instrument", True))  # a `query_expression` is not, and has another key
    return frozenset(
        prop.key
        for prop in mapper.column_attrs
        if prop.strategy_key == is_loaded and not any(isinstance(each, Column) for each in prop.columns)
    )


def _has_onupdate(mapper: Mapper[Any], key: str) -> bool:
    columns = mapper.column_attrs[key].columns
    return any(isinstance(each, Column) and each.onupdate is not None for each in columns)


_configurations = 0


@event.listens_for(Mapper, "after_configured")
def _count_configurations() -> None:
    global _configurations  # noqa: PLW0603  how often mappers may have changed each other, in this process
    _configurations += 1


def _age(mapper: Mapper[Any]) -> tuple[int, int]:
    """Changes whenever the mapper may have got other attributes."""
    return _configurations, len(mapper._props)


def traits_of(mapper: Mapper[Any]) -> Traits:
    """What is known of a mapper, read off it when it has changed."""
    known: Traits | None = mapper.class_manager.info.get(_TRAITS)
    if known is None or known.age != _age(mapper):
        known = mapper.class_manager.info[_TRAITS] = Traits(mapper)
    return known


def traits_by_class(rows: Iterable[InstanceState[Any]]) -> dict[type, Traits]:
    """What is known of the mappers of instances."""
    return {model: traits_of(row.manager.mapper) for model, row in {row.class_: row for row in rows}.items()}


def attribute_of(mapper: Mapper[Any], column: ColumnElement[Any]) -> str | None:
    """The name of the attribute that a column is mapped to; one may be left out of a mapping."""
    try:
        return mapper.get_property_by_column(cast("Column[Any]", column)).key
    except UnmappedColumnError:
        return None


def key_names(mapper: Mapper[Any]) -> list[str]:
    """The attributes of the primary key, in its order."""
    return [mapper.get_property_by_column(each).key for each in mapper.primary_key]


def attributes_of(mapper: Mapper[Any], columns: Iterable[ColumnElement[Any]]) -> frozenset[str]:
    """The names of the attributes that columns are mapped to."""
    return frozenset(name for each in columns if (name := attribute_of(mapper, each)) is not None)


_CHUNK = 500  # rows loaded by one SELECT, for databases that limit the parameters of a statement


def queries_by_key(mapper: Mapper[Any], keys: Sequence[tuple[Any, ...]]) -> Iterator[Select[Any]]:
    """Queries for the instances with these primary keys."""
    attributes = [getattr(mapper.class_, name) for name in key_names(mapper)]
    for start in range(0, len(keys), _CHUNK):
        wanted = [
            and_(*(attribute == value for attribute, value in zip(attributes, key, strict=True)))
            for key in keys[start : start + _CHUNK]
        ]
        yield select(mapper.class_).where(or_(*wanted))


# -- instances ---------------------------------------------------------------------------------------------------------

_PLAIN = frozenset({NoneType, bool, int, float, str, bytes, datetime})  # certainly no SQL expressions


def _known(value: object) -> object:
    return NO_VALUE if isinstance(value, LoaderCallableStatus) else value


def stored_value(row: InstanceState[Any], key: str) -> object:
    """The value that an attribute had before it was changed, as far as it is known."""
    return _known(row.committed_state.get(key, row.dict.get(key, NO_VALUE)))


def net_changes(row: InstanceState[Any], traits: Traits) -> dict[str, object]:
    """The old values of the attributes with a net change, as far as the instance itself knows; runs no SQL."""
    changed = {}
    values, comparing = row.dict, traits.is_equal
    for key, old in row.committed_state.items():
        is_equal = comparing.get(key)
        if is_equal is not None and is_equal(values.get(key, NO_VALUE), old) is not True:
            changed[key] = NO_VALUE if type(old) is LoaderCallableStatus else old
    return changed


def first_values(row: InstanceState[Any], traits: Traits) -> Changes:
    """The changes of a new instance."""
    values = row.dict
    return {key: (NO_VALUE, values[key]) for key in traits.writable if key in values}


def last_values(row: InstanceState[Any], traits: Traits) -> Changes:
    """The changes of a deleted instance."""
    last = {key: stored_value(row, key) for key in traits.writable}
    return {key: (value, NO_VALUE) for key, value in last.items() if value is not NO_VALUE}


def values_before(row: InstanceState[Any], traits: Traits) -> dict[str, object]:
    """The old values of what the flush replaces without a history: counters, `onupdate` columns, SQL expressions."""
    before = {key: stored_value(row, key) for key in traits.replaced} if traits.replaced else {}
    values = row.dict
    for key in row.committed_state:
        value = values.get(key)
        if type(value) not in _PLAIN and hasattr(value, "__clause_element__") and key in traits.writable:
            before[key] = stored_value(row, key)
    return before


def changes_to(row: InstanceState[Any], old: Mapping[str, object]) -> Changes:
    """Old values, and the new ones as they are now."""
    values = row.dict
    return {key: (value, values.get(key, NO_VALUE)) for key, value in old.items()}
