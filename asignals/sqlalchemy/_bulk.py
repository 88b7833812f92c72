"""`pre_bulk` and `post_bulk`: ORM-enabled INSERT, UPDATE and DELETE statements, which bypass the unit of work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import in_greenlet

from asignals.sqlalchemy._after import Kept
from asignals.sqlalchemy._deliver import Delivery, Event, refuse_async
from asignals.sqlalchemy._places import Places
from asignals.sqlalchemy._signal import ModelSignal
from asignals.sqlalchemy._state import announced, marked_below
from asignals.sqlalchemy._transactions import keep, outermost_of

if TYPE_CHECKING:
    from sqlalchemy import Result
    from sqlalchemy.orm import ORMExecuteState


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

    `kind` is `"insert"`, `"update"` or `"delete"`; `parameters` are those given to `execute`; `rowcount` is how many rows it matched, or `None` where the database
    or the kind of result does not tell. An exception is raised from `execute`; the statement's changes are part of the
    transaction.
    """,
)


def is_listened_to() -> bool:
    """Whether classes that are enabled now need the hook."""
    return pre_bulk.is_connected or post_bulk.is_connected


def listen(session_class: type[Session]) -> None:
    """Have the statements of a session class announced."""
    if _MARK not in vars(session_class):  # event.contains() goes by ids, which dead classes leave to others
        setattr(session_class, _MARK, True)
        event.listen(session_class, "do_orm_execute", _announce)


def unlisten(session_class: type[Session]) -> None:
    """Take back `listen`."""
    if _MARK in vars(session_class):
        delattr(session_class, _MARK)
        event.remove(session_class, "do_orm_execute", _announce)


def _announce(execution: ORMExecuteState) -> Result[Any] | None:
    kind = _kind(execution)
    mapper = execution.bind_mapper
    if kind is None or mapper is None:
        return None
    model = mapper.class_
    if not (pre_bulk.hearing()(model) or post_bulk.hearing()(model)):
        return None
    if not in_greenlet():
        refuse_async(model, pre_bulk, post_bulk)
    return _run(execution, model, kind)


def _kind(execution: ORMExecuteState) -> str | None:
    if not execution.is_orm_statement:
        return None
    for kind in ("insert", "update", "delete"):
        if getattr(execution, f"is_{kind}"):
            return kind
    return None


def _run(execution: ORMExecuteState, model: type, kind: str) -> Result[Any]:
    session = execution.session
    arguments = {
        "session": announced(session),
        "statement": execution.statement,
        "parameters": execution.parameters,
        "kind": kind,
        "rowcount": None,
    }
    Delivery([Event(pre_bulk, model, arguments)], session).run()
    result = execution.invoke_statement()
    told = Event(post_bulk, model, {**arguments, "rowcount": _rowcount(result)})
    if told.waits:
        keep(session, Kept(told, Places(session).where(**execution.bind_arguments), outermost_of(session)))
    Delivery([told], session).run()
    return result


def _rowcount(result: Result[Any]) -> int | None:
    count = getattr(result, "rowcount", -1)  # results of INSERT … RETURNING of ORM entities have none
    return count if isinstance(count, int) and count >= 0 else None
