"""`pre_save`, `post_save`, `pre_delete` and `post_delete`, and what a flush has written, read off its unit of work.

No hooks on mapped classes: what the unit of work has done, and the histories, are there when it is through. So classes
nobody listens to cost nothing, and a class may be mapped, unmapped and mapped again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import inspect
from sqlalchemy.orm import lazyload

from asignals.sqlalchemy._changes import (
    NO_VALUE,
    changes_to,
    first_values,
    last_values,
    net_changes,
    queries_by_key,
    traits_of,
    values_before,
)
from asignals.sqlalchemy._deliver import Event
from asignals.sqlalchemy._signal import ModelSignal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import InstanceState, Mapper, Session, UOWTransaction

    from asignals.sqlalchemy._changes import Changes, Traits
    from asignals.sqlalchemy._signal import Hearing

    Row = InstanceState[Any]

_SAVE = ("instance", "created", "update_fields", "changes", "session")

pre_save: ModelSignal = ModelSignal(
    _SAVE,
    name="pre_save",
    phases=("flush",),
    doc="""An instance is about to be inserted or updated by the flush that has begun.

    `created` tells which; `update_fields` is `None` for an insert, else the attributes that the UPDATE will set, as far
    as is known by then; `changes` has their `(old, new)` values, with `NO_VALUE` for what is not known yet, or not
    loaded. What receivers change and add is written by the same flush, and added objects are announced too. An
    exception keeps the flush from beginning: nothing has been written, and the session is as it was.
    """,
)
post_save: ModelSignal = ModelSignal(
    _SAVE,
    name="post_save",
    doc="""An instance has been inserted or updated.

    `created` tells which; `update_fields` is `None` for an insert, else the attributes that the UPDATE has set;
    `changes` maps attributes to `(old, new)` values, also after the end of the transaction. Old values are those that
    SQLAlchemy knew: `NO_VALUE` for an insert, and where an attribute was set while it was not loaded (`active_history`
    of `column_property` loads it). Relationships are not among them, their foreign keys are. An instance without a net
    change is not announced. What receivers change and add is left for the next flush, which a commit makes by itself.
    An exception makes the flush fail, and with it the transaction or savepoint.
    """,
)
pre_delete: ModelSignal = ModelSignal(
    ("instance", "session"),
    name="pre_delete",
    phases=("flush",),
    doc="""An instance is about to be deleted by the flush that has begun: by request, by a cascade or as an orphan.

    An exception keeps the flush from beginning.
    """,
)
post_delete: ModelSignal = ModelSignal(
    ("instance", "changes", "session"),
    name="post_delete",
    doc="""An instance has been deleted: by request, by a cascade of the ORM or as an orphan.

    `changes` maps the attributes that were loaded to `(last value, NO_VALUE)`. Rows that the database deletes by itself
    (`ON DELETE CASCADE` with `passive_deletes`) are not known to the session.
    """,
)


class Written:
    """One row that the flush under way has written."""

    __slots__ = ("fields", "instance", "last", "old", "row")

    def __init__(
        self,
        row: Row,
        *,
        old: dict[str, object] | None = None,
        fields: frozenset[str] | None = None,
        last: Changes | None = None,
    ) -> None:
        self.row = row
        self.instance = row.obj()
        self.old = old or {}  # of an UPDATE
        self.fields = fields  # of an UPDATE
        self.last = last  # of a DELETE

    def told(self, session: object) -> Event:
        """The event, now that the new values are there."""
        row, instance, fields = self.row, self.instance, self.fields
        arguments: dict[str, Any] = {"instance": instance, "session": session}
        if self.last is not None:
            arguments["changes"] = self.last
            return Event(post_delete, type(instance), arguments)
        arguments["created"] = fields is None
        arguments["update_fields"] = fields
        arguments["changes"] = first_values(row, traits_of(row.mapper)) if fields is None else changes_to(row, self.old)
        return Event(post_save, type(instance), arguments)


def note_values(session: Session) -> dict[Row, dict[str, object]]:
    """Before the flush: what it will replace without a history, of rows that somebody listens to."""
    is_heard = post_save.hearing()
    if not is_heard.is_connected:
        return {}
    rows = session._dirty_states
    heard = _heard(rows, is_heard)
    found = {}
    for row in rows:
        traits = heard.get(row.manager)
        if traits is not None and (before := values_before(row, traits)):
            found[row] = before
    return found


def _heard(rows: Iterable[Row], is_heard: Hearing) -> dict[Any, Traits]:
    """The classes of these rows that somebody listens to."""
    if not is_heard.is_connected:
        return {}
    managers = {row.manager for row in rows}
    return {manager: traits_of(manager.mapper) for manager in managers if is_heard(manager.class_)}


def written_rows(session: Session, unit: UOWTransaction, before: dict[Row, dict[str, object]]) -> list[Written]:
    """After the flush, while histories are there: what it has inserted, in the order added, updated and deleted."""
    states = unit.states
    is_saved = _heard(states, post_save.hearing())
    is_deleted = _heard(states, post_delete.hearing())
    if not is_saved and not is_deleted:
        return []
    saved = [row for row, fate in states.items() if fate == (False, False) and row.manager in is_saved]
    gone = [row for row, fate in states.items() if fate == (True, False) and row.manager in is_deleted]
    new = [row for row in saved if row.key is None]
    changed = [row for row in saved if row.key is not None]
    found = []
    replaces = any(is_gone for is_gone, _ in states.values())
    for row in in_order(new):
        if not replaces or predecessor(session, row, states) is None:
            found.append(Written(row))
        else:
            changed.append(row)
    for row in in_order(changed):
        updated = _updated(row, is_saved[row.manager], before.get(row))
        if updated is not None:
            found.append(updated)
    return [*found, *(Written(row, last=last_values(row, is_deleted[row.manager])) for row in in_order(gone))]


def _updated(row: Row, traits: Traits, before: dict[str, object] | None) -> Written | None:
    old = net_changes(row, traits)
    if before:
        old.update((key, value) for key, value in before.items() if key not in traits.replaced)
    if not old:
        return None
    fields = traits.written(old)
    for key in fields & traits.replaced:
        old[key] = (before or {}).get(key, old.get(key, NO_VALUE))
    return Written(row, old=old, fields=fields)


def load_expired(session: Session, written: Iterable[Written]) -> None:
    """Load what the flush has left to the database, where it may be read without a greenlet or after the end."""
    expired: dict[Mapper[Any], list[Row]] = {}
    for each in written:
        row = each.row
        if each.last is None and row.expired_attributes & traits_of(row.manager.mapper).writable:
            expired.setdefault(row.manager.mapper, []).append(row)
    for mapper, rows in expired.items():
        event = Event(post_save, mapper.class_, {})
        if event.waits or any(link.is_async for link in event.plan("flush")):
            for query in queries_by_key(mapper, [cast("Any", row.key)[1] for row in rows]):
                session.scalars(query.options(lazyload("*"))).all()  # fills in what is expired, and nothing else


def predecessor(session: Session, row: Row, states: Any) -> Row | None:
    """The deleted instance whose row a new one with the same primary key takes over by an UPDATE."""
    if row.key is not None:
        return None
    other = session.identity_map.get(row.mapper.identity_key_from_instance(row.obj()))
    old: Row | None = None if other is None else inspect(other)
    return old if old is not None and old in states and states[old][0] else None


def in_order(rows: Iterable[Row]) -> list[Row]:
    """New instances as they were added, others by primary key where keys can be compared."""
    listed = list(rows)
    if len(listed) > 1:
        try:
            listed.sort(key=_rank)
        except TypeError:
            return listed
    return listed


def _rank(row: Row) -> tuple[Any, ...]:
    return (row.insert_order,) if row.key is None else (row.manager.class_.__name__, *row.key[1])
