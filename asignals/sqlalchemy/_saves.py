"""`pre_save`, `post_save`, `pre_delete` and `post_delete`, and what a flush has written, read off its unit of work.

No hooks on mapped classes: what the unit of work has done, and the histories, are there when it is through. So classes
nobody listens to cost nothing, and a class may be mapped, unmapped and mapped again.
"""

from __future__ import annotations

from collections import defaultdict
from operator import attrgetter
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
    traits_by_class,
    traits_of,
    values_before,
)
from asignals.sqlalchemy._event import Event
from asignals.sqlalchemy._signal import ModelSignal
from asignals.sqlalchemy._state import public_session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy.orm import InstanceState, Mapper, Session, UOWTransaction

    from asignals.sqlalchemy._captured import Hearing
    from asignals.sqlalchemy._changes import Changes, Traits

    Row = InstanceState[Any]

_SAVE = ("instance", "created", "update_fields", "changes", "session")

pre_save: ModelSignal = ModelSignal(
    _SAVE,
    name="pre_save",
    phases=("flush",),
    doc="""An instance is about to be inserted or updated by the flush that has begun.

    `created` tells which; `update_fields` is `None` for an insert, else the attributes that the UPDATE will set, as far
    as is known by then; `changes` has their `(old, new)` values, with `NO_VALUE` for what is not known yet, or not
    loaded. What receivers change and add is written by the same flush, and added objects are reported too. An
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
    change is not reported. What receivers change and add is left for the next flush, which a commit makes by itself.
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


def save_event(
    signal: ModelSignal, row: Row, fields: frozenset[str] | None, changes: Mapping[str, Any] | None, session: object
) -> Event:
    """An INSERT (without `fields`) or an UPDATE."""
    instance = row.obj()
    arguments = {
        "instance": instance,
        "created": fields is None,
        "update_fields": fields,
        "changes": changes,
        "session": session,
    }
    return Event(signal, type(instance), arguments, row)


def delete_event(row: Row, last: Changes, session: object) -> Event:
    """A DELETE."""
    instance = row.obj()
    return Event(post_delete, type(instance), {"instance": instance, "changes": last, "session": session}, row)


def note_values(session: Session) -> dict[Row, dict[str, object]]:
    """Before the flush: what it will replace without a history, of rows that somebody listens to."""
    is_heard = post_save.hearing()
    if not is_heard.is_connected:
        return {}
    rows = session._dirty_states
    heard = _heard(rows, is_heard)
    found = {}
    for row in rows:
        if row.class_ in heard and (before := values_before(row, heard[row.class_])):
            found[row] = before
    return found


def _heard(rows: Iterable[Row], is_heard: Hearing) -> dict[type, Traits]:
    """The classes of these rows that somebody listens to."""
    if not is_heard.is_connected:
        return {}
    return {model: traits for model, traits in traits_by_class(rows).items() if is_heard(model)}


def written_rows(session: Session, unit: UOWTransaction, before: dict[Row, dict[str, object]]) -> list[Event]:
    """After the flush, while histories are there: what it has inserted, in the order added, updated and deleted.

    The events have the old values only; `complete` adds the new ones.
    """
    states = unit.states
    is_saved = _heard(states, post_save.hearing())
    is_deleted = _heard(states, post_delete.hearing())
    if not is_saved and not is_deleted:
        return []
    public = public_session(session)
    saved = [row for row, (gone, listed) in states.items() if not gone and not listed and row.class_ in is_saved]
    deleted = [row for row, (gone, listed) in states.items() if gone and not listed and row.class_ in is_deleted]
    replaces = any(gone for gone, _ in states.values())
    new = [row for row in saved if row.key is None and not (replaces and predecessor(session, row, states))]
    events = [save_event(post_save, row, None, None, public) for row in in_order(new)]
    inserted = set(new)
    for row in in_order(row for row in saved if row not in inserted):
        traits = is_saved[row.class_]
        old = net_changes(row, traits)
        if before or traits.replaced:
            _add_replaced(old, traits, before.get(row, {}))
        if old:
            events.append(save_event(post_save, row, traits.written(old), old, public))
    return events + [delete_event(row, last_values(row, is_deleted[row.class_]), public) for row in in_order(deleted)]


def _add_replaced(old: dict[str, object], traits: Traits, before: dict[str, object]) -> None:
    """Add to the old values of an UPDATE those of what the flush has replaced without a history."""
    old.update((key, value) for key, value in before.items() if key not in traits.replaced)
    for key in traits.written(old) & traits.replaced:
        old[key] = before.get(key, old.get(key, NO_VALUE))


def complete(events: Iterable[Event]) -> None:
    """Give the events of `written_rows` the new values, now that they are there."""
    for event in events:
        if event.signal is post_save:
            arguments, row = event.arguments, event.row
            if arguments["created"]:
                arguments["changes"] = first_values(row, traits_of(row.mapper))
            else:
                arguments["changes"] = changes_to(row, arguments["changes"])


def load_expired(session: Session, written: Iterable[Event]) -> None:
    """Load what the flush has left to the database, where it may be read without a greenlet or after the end."""
    expired: dict[Mapper[Any], list[Row]] = {}
    for each in written:
        row = each.row
        if row.expired_attributes and each.signal is post_save:
            mapper = row.manager.mapper
            if row.expired_attributes & traits_of(mapper).left_to_load:
                expired.setdefault(mapper, []).append(row)
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
    """New instances as they were added, then others by class and, where keys can be compared, by primary key."""
    new: list[Row] = []
    known: defaultdict[type, list[Row]] = defaultdict(list)
    for row in rows:
        (new if row.key is None else known[row.class_]).append(row)
    new.sort(key=attrgetter("insert_order"))
    for model in sorted(known, key=attrgetter("__name__")):
        try:
            new += sorted(known[model], key=_primary_key)
        except TypeError:
            new += known[model]
    return new


def _primary_key(row: Row) -> Any:
    return cast("Any", row.key)[1]
