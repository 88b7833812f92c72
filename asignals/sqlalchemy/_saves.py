"""`pre_save`, `post_save`, `pre_delete` and `post_delete`, and the mapper hooks that see the rows go by.

Mapper hooks are registered for the classes that have receivers only, and for all when a receiver asks for all. They
note, and deliver nothing: in the middle of a flush changes would be lost and other rows are not written yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asignals.sqlalchemy._changes import updated_attributes
from asignals.sqlalchemy._listening import ClassHooks
from asignals.sqlalchemy._signal import ModelSignal
from asignals.sqlalchemy._state import Record, existing_state

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper


def _after_insert(mapper: Mapper[Any], connection: Connection, row: InstanceState[Any]) -> None:
    del mapper, connection
    state = existing_state(row.session)
    if state is not None:
        state.records[row] = Record(row.obj(), created=True)


def _before_update(mapper: Mapper[Any], connection: Connection, row: InstanceState[Any]) -> None:
    # Now, because SQL expressions are expired once they have been sent.
    del mapper, connection
    state = existing_state(row.session)
    if state is not None:
        state.fields[row] = updated_attributes(row)


def _after_update(mapper: Mapper[Any], connection: Connection, row: InstanceState[Any]) -> None:
    del mapper, connection
    state = existing_state(row.session)
    if state is None or row in state.records:
        return
    fields = state.fields.pop(row, None)
    if fields is None:  # announced as an insert: it takes over the row of a deleted instance
        fields = updated_attributes(row)
    if fields:
        state.records[row] = Record(row.obj(), fields=fields)


def _after_delete(mapper: Mapper[Any], connection: Connection, row: InstanceState[Any]) -> None:
    del mapper, connection
    state = existing_state(row.session)
    if state is not None:
        state.records[row] = Record(row.obj(), deleted=True)


_saved = ClassHooks(raw=True, after_insert=_after_insert, before_update=_before_update, after_update=_after_update)
_deleted = ClassHooks(raw=True, after_delete=_after_delete)


def _nothing(sender: Any) -> None:
    """What is to come is found out by the flush as a whole."""
    del sender


_SAVE = ("instance", "created", "update_fields", "session")
_DELETE = ("instance", "session")

pre_save: ModelSignal = ModelSignal(
    _SAVE,
    name="pre_save",
    listen=_nothing,
    phases=("flush",),
    doc="""An instance is about to be inserted or updated by the flush that has begun.

    `created` tells which; `update_fields` is `None` for an insert, else the attributes that the UPDATE will set, as far
    as is known by then. What receivers change and add is written by the same flush, and added objects are announced
    too. An exception keeps the flush from beginning: nothing has been written, and the session is as it was.
    """,
)
post_save: ModelSignal = ModelSignal(
    _SAVE,
    name="post_save",
    listen=_saved,
    doc="""An instance has been inserted or updated.

    `created` tells which; `update_fields` is `None` for an insert, else the attributes that the UPDATE has set. An
    instance without a net change is not announced. What receivers change and add is left for the next flush, which a
    commit makes by itself. An exception makes the flush fail, and with it the transaction or savepoint.
    """,
)
pre_delete: ModelSignal = ModelSignal(
    _DELETE,
    name="pre_delete",
    listen=_nothing,
    phases=("flush",),
    doc="""An instance is about to be deleted by the flush that has begun: by request, by a cascade or as an orphan.

    An exception keeps the flush from beginning.
    """,
)
post_delete: ModelSignal = ModelSignal(
    _DELETE,
    name="post_delete",
    listen=_deleted,
    doc="""An instance has been deleted: by request, by a cascade of the ORM or as an orphan.

    Rows that the database deletes by itself (`ON DELETE CASCADE` with `passive_deletes`) are not known to the session.
    """,
)
