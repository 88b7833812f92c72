"""`enable_signals`: which sessions report what they do."""

from __future__ import annotations

import types
from typing import Any, Literal, TypeVar, cast

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from asignals.sqlalchemy import _bulk, _flush, _transactions
from asignals.sqlalchemy._rows import report_rows, reports_rows
from asignals.sqlalchemy._state import is_enabled, mark, marked_below

T = TypeVar("T")

_OWN = "_asignals_own"  # marks the subclasses that are made here, to find them again

_HOOKS: dict[str, Any] = {
    "before_flush": _flush.before_flush,
    "after_flush": _flush.after_flush,
    "after_flush_postexec": _flush.after_flush_postexec,
    "after_transaction_create": _transactions.after_transaction_create,
}


def enable_signals(target: T, *, bulk: Literal["rows"] | None = None) -> T:
    """Have sessions report what they do; returns what was given, changed in place.

    Doing it again changes nothing. Sessions that exist already are not affected, unless a sync session class is given.

    Args:
        target: What makes the sessions: an `async_sessionmaker`, an `async_scoped_session` around one, a subclass of
            `AsyncSession` (SQLModel's too), or for sync sessions a `sessionmaker`, a `scoped_session` or a subclass of
            `Session`. Of an async one, the sync session class that it uses is replaced by a subclass of it. Giving
            `AsyncSession` or `Session` itself enables all that have no class of their own, in the whole process.
        bulk: `"rows"` sends `post_save` and `post_delete` also for each row of ORM-enabled INSERT, UPDATE and DELETE
            statements, whose rows are loaded for it through RETURNING. An UPDATE's old values are not known then, and
            an INSERT that updates on conflict counts as one. Where the database has no RETURNING (MariaDB for UPDATE,
            MySQL), and in sessions with shards, a warning is logged and only `pre_bulk` and `post_bulk` are sent. There
            is no `pre_save` or `pre_delete` for them.

    Raises:
        TypeError: it is none of these; a single session, for example.
        ValueError: `bulk` is something else.
    """
    if bulk not in {None, "rows"}:
        raise ValueError(f"enable_signals takes bulk='rows', or None, not {bulk!r}")
    _enable_any(target, rows=bulk == "rows")
    return target


def _enable_any(target: object, *, rows: bool) -> None:
    if isinstance(target, async_scoped_session | scoped_session):
        _enable_any(target.session_factory, rows=rows)
    elif isinstance(target, async_sessionmaker):
        used = target.kw.get("sync_session_class") or target.class_.sync_session_class
        target.configure(sync_session_class=_enabled(used, rows=rows))
    elif isinstance(target, sessionmaker):
        _enable(target.class_, rows=rows)
    elif isinstance(target, type) and issubclass(target, AsyncSession):
        target.sync_session_class = _enabled(target.sync_session_class, rows=rows)
    elif isinstance(target, type) and issubclass(target, Session):
        _enable(target, rows=rows)
    else:
        raise TypeError(
            f"enable_signals takes what makes sessions: a sessionmaker, a scoped session or a class, not {target!r}"
        )


def _enabled(used: Any, *, rows: bool) -> Any:
    """What to make sync sessions with instead of this class or maker."""
    if not isinstance(used, type):
        return enable_signals(used, bulk="rows" if rows else None)
    session_class = cast("type[Session]", used)
    if is_enabled(session_class) and (reports_rows(session_class) or not rows):
        return session_class
    for known in session_class.__subclasses__():
        if _OWN in vars(known) and reports_rows(known) is rows:
            return known
    members = {_OWN: True, "__doc__": session_class.__doc__}
    own: type[Session] = types.new_class(
        session_class.__name__, (session_class,), exec_body=lambda body: body.update(members)
    )
    _enable(own, rows=rows)
    return own


def _enable(session_class: type[Session], *, rows: bool) -> None:
    if not is_enabled(session_class):
        for below in list(marked_below(session_class)):  # they inherit the hooks from now on
            mark(below, enabled=False)
            _bulk.unlisten(below)
            for name, hook in _HOOKS.items():
                event.remove(below, name, hook)
        mark(session_class, enabled=True)
        for name, hook in _HOOKS.items():
            event.listen(session_class, name, hook)
    if rows:
        report_rows(session_class)
    if rows or _bulk.is_listened_to():
        _bulk.listen(session_class)
