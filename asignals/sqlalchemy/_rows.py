"""The rows of ORM-enabled INSERT, UPDATE and DELETE statements, through RETURNING: `enable_signals(…, bulk="rows")`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import inspect
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData

from asignals.sqlalchemy._changes import (
    NO_VALUE,
    attributes_of,
    changes_to,
    first_values,
    key_names,
    last_values,
    queries_by_key,
    traits_of,
)
from asignals.sqlalchemy._saves import delete_event, post_delete, post_save, save_event
from asignals.sqlalchemy._state import public_session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Result
    from sqlalchemy.orm import Mapper, ORMExecuteState, Session

    from asignals.sqlalchemy._event import Event
    from asignals.sqlalchemy._signal import ModelSignal

_logger = logging.getLogger("asignals")

_MARK = "_asignals_rows"


def reports_rows(session_class: type[Session]) -> bool:
    """Whether the rows of statements in sessions of this class are reported."""
    return bool(getattr(session_class, _MARK, False))


def report_rows(session_class: type[Session]) -> None:
    """Have the rows of statements in sessions of this class reported."""
    setattr(session_class, _MARK, True)


def rows_heard(session: Session, mapper: Mapper[Any], kind: str) -> ModelSignal | None:
    """The signal of a statement's rows, if it is to be sent and somebody listens."""
    if not reports_rows(type(session)):
        return None
    signal = post_delete if kind == "delete" else post_save
    is_heard = signal.hearing()
    return signal if any(is_heard(each.class_) for each in mapper.self_and_descendants) else None


class StatementResult(IteratorResult[Any]):
    """The result of a statement without its own RETURNING, as far as it is known from the rows."""

    returns_rows = False

    def __init__(self, keys: list[tuple[Any, ...]]) -> None:
        super().__init__(SimpleResultMetaData([]), iter(()))
        self.rowcount = len(keys)
        self.inserted_primary_key_rows = keys
        self.inserted_primary_key = keys[0] if len(keys) == 1 else None


def invoke(execution: ORMExecuteState, statement: Any = None) -> Result[Any]:
    """Execute the statement, or another one instead of it, as `invoke_statement` does.

    Which adds an argument to those of `get_bind`; one that is written as in SQLAlchemy's own recipes does not take it.
    """
    result: Result[Any] = execution.session._execute_internal(
        execution.statement if statement is None else statement,
        cast("Any", execution.parameters),
        execution_options=execution.local_execution_options,
        bind_arguments=execution.bind_arguments,
        _parent_execute_state=execution,
    )
    return result


def execute_with_rows(execution: ORMExecuteState, mapper: Mapper[Any], kind: str) -> tuple[Result[Any], list[Event]]:
    """Execute a statement; returns its result and the events of its rows."""
    session = execution.session
    if session.connection_callable is not None:
        _logger.warning("the rows of %s %s are not reported: the session has several shards", kind, mapper.class_)
        return invoke(execution), []
    if kind == "update" and isinstance(execution.parameters, list):
        return _update_by_key(execution, mapper, execution.parameters)
    # Connected, because some dialects learn from the server what it can.
    dialect = session.connection(bind_arguments=dict(execution.bind_arguments)).dialect
    many = "_executemany" if kind == "insert" and isinstance(execution.parameters, list) else ""
    if not getattr(dialect, f"{kind}{many}_returning"):
        _logger.warning(
            "the rows of %s %s are not reported: %s has no RETURNING for it", kind, mapper.class_, dialect.name
        )
        return invoke(execution), []
    statement: Any = execution.statement
    own = len(statement._returning)
    known = set(session.identity_map.all_states())
    result = invoke(execution, statement.returning(mapper.class_))
    keys = list(result.keys())[:-1]
    rows = result.all()
    instances = [row[-1] for row in rows]
    if kind == "delete":
        events = [_deleted(session, instance) for instance in instances]
        # What was loaded only for the events comes from rows that are gone.
        session._expunge_states([each.row for each in events if each.row not in known])
    elif kind == "insert":
        events = [_inserted(session, instance) for instance in instances]
    else:
        fields = _fields(execution, mapper)
        events = [_updated(session, instance, fields) for instance in instances]
    if own:
        return IteratorResult(SimpleResultMetaData(keys), iter([tuple(row)[:-1] for row in rows])), events
    return StatementResult([tuple(mapper.primary_key_from_instance(each)) for each in instances]), events


def _inserted(session: Session, instance: object) -> Event:
    row = inspect(instance)
    return save_event(post_save, row, None, first_values(row, traits_of(row.mapper)), public_session(session))


def _updated(session: Session, instance: object, fields: Iterable[str]) -> Event:
    row = inspect(instance)
    written = traits_of(row.mapper).written(fields)
    changes = changes_to(row, dict.fromkeys(written, NO_VALUE))
    return save_event(post_save, row, written, changes, public_session(session))


def _deleted(session: Session, instance: object) -> Event:
    row = inspect(instance)
    return delete_event(row, last_values(row, traits_of(row.mapper)), public_session(session))


def _fields(execution: ORMExecuteState, mapper: Mapper[Any]) -> frozenset[str]:
    """The attributes that an UPDATE sets."""
    statement: Any = execution.statement
    ordered = getattr(statement, "_ordered_values", None) or ()  # of SQLAlchemy 2.0
    columns = [*(statement._values or ()), *(column for column, _ in ordered)]
    parameters = execution.parameters if isinstance(execution.parameters, dict) else {}
    found = attributes_of(mapper, [each for each in columns if not isinstance(each, str)])
    named = {each for each in (*columns, *parameters) if isinstance(each, str)}
    return (found | named) & traits_of(mapper).writable


# -- UPDATE by primary key, a list of dicts ----------------------------------------------------------------------------


def _update_by_key(
    execution: ORMExecuteState, mapper: Mapper[Any], parameters: list[dict[str, Any]]
) -> tuple[Result[Any], list[Event]]:
    """Its rows are named by its parameters; RETURNING is not possible with it."""
    result = invoke(execution)
    names = key_names(mapper)
    fields = {tuple(each[name] for name in names): each.keys() - names for each in parameters}
    session = execution.session
    events = []
    for query in queries_by_key(mapper, list(fields)):
        for instance in session.scalars(query.execution_options(populate_existing=True)):
            key = tuple(mapper.primary_key_from_instance(instance))
            events.append(_updated(session, instance, fields.get(key, ())))
    return result, events
