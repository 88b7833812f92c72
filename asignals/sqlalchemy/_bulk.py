"""`pre_bulk` and `post_bulk`: ORM-enabled INSERT, UPDATE and DELETE statements, which bypass the unit of work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import in_greenlet

from asignals.sqlalchemy._deliver import Delivery, refuse_async
from asignals.sqlalchemy._event import Event
from asignals.sqlalchemy._kept import Kept, Snapshot
from asignals.sqlalchemy._places import Places
from asignals.sqlalchemy._rows import execute_with_rows, invoke, rows_heard
from asignals.sqlalchemy._signal import ModelSignal
from asignals.sqlalchemy._state import marked_below, public_session
from asignals.sqlalchemy._transactions import keep, outermost_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Result
    from sqlalchemy.orm import Mapper, ORMExecuteState


class BulkSignal(ModelSignal):
    """A model signal of statements."""

    def _on_connected(self) -> None:
        # A hook on execution makes SQLAlchemy prepare each statement twice, so it is registered when it is needed.
        for session_class in marked_below(Session):
            listen(session_class)


_MARK = "_asignals_bulk"
_BULK = ("session", "statement", "parameters", "kind", "rowcount")

pre_bulk: BulkSignal = BulkSignal(
    _BULK,
    name="pre_bulk",
    phases=("flush",),
    doc="""A statement is about to insert, update or delete rows of a model without its instances.

    `kind` is `"insert"`, `"update"` or `"delete"`; `parameters` are those given to `execute`: a dict, a list of dicts
    for an executemany, or `None`; `rowcount` is `None`. An exception keeps the statement from running.
    """,
)
post_bulk: BulkSignal = BulkSignal(
    _BULK,
    name="post_bulk",
    doc="""A statement has inserted, updated or deleted rows of a model without its instances.

    `kind` is `"insert"`, `"update"` or `"delete"`; `parameters` are those given to `execute`; `rowcount` is how many
    rows it matched, or `None` where the database
    or the kind of result does not tell. An exception is raised from `execute`; the statement's changes are part of the
    transaction.
    """,
)


def is_listened_to() -> bool:
    """Whether classes that are enabled now need the hook."""
    return pre_bulk.is_connected or post_bulk.is_connected


def listen(session_class: type[Session]) -> None:
    """Have the statements of a session class reported."""
    if any(_MARK in vars(base) for base in session_class.__mro__):  # event.contains() goes by ids that may be reused
        return
    for below in _all_below(session_class):  # they inherit the hook from now on
        unlisten(below)
    setattr(session_class, _MARK, True)
    event.listen(session_class, "do_orm_execute", _report)


def _all_below(session_class: type[Session]) -> Iterator[type[Session]]:
    for below in session_class.__subclasses__():
        yield below
        yield from _all_below(below)


def unlisten(session_class: type[Session]) -> None:
    """Take back `listen`."""
    if _MARK in vars(session_class):
        delattr(session_class, _MARK)
        event.remove(session_class, "do_orm_execute", _report)


def _report(execution: ORMExecuteState) -> Result[Any] | None:
    kind = _kind(execution)
    mapper = execution.bind_mapper
    if kind is None or mapper is None:
        return None
    model = mapper.class_
    row_signal = rows_heard(execution.session, mapper, kind)
    if row_signal is None and not (pre_bulk.hearing()(model) or post_bulk.hearing()(model)):
        return None
    if not in_greenlet():
        refuse_async(model, pre_bulk, post_bulk, *([] if row_signal is None else [row_signal]))
    return _run(execution, mapper, kind, is_told_by_row=row_signal is not None)


def _kind(execution: ORMExecuteState) -> str | None:
    if not execution.is_orm_statement:
        return None
    for kind in ("insert", "update", "delete"):
        if getattr(execution, f"is_{kind}"):
            return kind
    return None


def _run(execution: ORMExecuteState, mapper: Mapper[Any], kind: str, *, is_told_by_row: bool) -> Result[Any]:
    session = execution.session
    model = mapper.class_
    arguments = {
        "session": public_session(session),
        "statement": execution.statement,
        "parameters": execution.parameters,
        "kind": kind,
        "rowcount": None,
    }
    Delivery([Event(pre_bulk, model, arguments)], session).run()
    rows: list[Event] = []
    if is_told_by_row:
        result, rows = execute_with_rows(execution, mapper, kind)
    else:
        result = invoke(execution)
    told = Event(post_bulk, model, {**arguments, "rowcount": _rowcount(result)})
    place = Places(session).of_statement(**execution.bind_arguments)
    snapshot = Snapshot()
    for each in (*rows, told):
        if each.waits:
            loaded = [] if each is told else snapshot.of(each)
            keep(session, Kept(each, place, outermost_of(session), loaded))
    Delivery([*rows, told], session).run()
    return result


def _rowcount(result: Result[Any]) -> int | None:
    count = getattr(result, "rowcount", -1)  # results of INSERT … RETURNING of ORM entities have none
    return count if isinstance(count, int) and count >= 0 else None
