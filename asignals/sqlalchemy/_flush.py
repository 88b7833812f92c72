"""What sessions report around a flush: before it begins, and when it has written everything."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import inspect
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import in_greenlet

from asignals.sqlalchemy._deliver import Delivery, refuse_async
from asignals.sqlalchemy._errors import EndlessFlushError
from asignals.sqlalchemy._event import Event
from asignals.sqlalchemy._forecast import extent, forecast
from asignals.sqlalchemy._kept import Kept, Snapshot
from asignals.sqlalchemy._links import link_events, m2m_changed
from asignals.sqlalchemy._places import Places, outermost
from asignals.sqlalchemy._saves import (
    complete,
    load_expired,
    note_values,
    post_delete,
    post_save,
    pre_delete,
    pre_save,
    save_event,
    written_rows,
)
from asignals.sqlalchemy._state import public_session, state_of
from asignals.sqlalchemy._transactions import adopted, keep, outermost_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
    from types import FrameType

    from sqlalchemy.orm import UOWTransaction

    from asignals.sqlalchemy._forecast import Fate

_ROUNDS = 100  # as many as Session.commit grants to flushes that leave something to flush

_Seen: TypeAlias = "set[Hashable]"


def before_flush(session: Session, unit: UOWTransaction, instances: Sequence[Any] | None) -> None:
    """Report what the flush is going to do until nothing is left that has not been reported."""
    del unit
    state = state_of(session)
    if not in_greenlet():
        _refuse_async_receivers(session, instances)
    if pre_save.is_connected or pre_delete.is_connected or m2m_changed.is_connected:
        _report(session, instances)
    state.before = note_values(session)


def _report(session: Session, instances: Sequence[Any] | None) -> None:
    with _noting_autoflush():
        seen: _Seen = set()
        for _ in range(_ROUNDS):
            events, is_simple = _new_events(session, instances, seen)
            if events is None:
                return
            before = extent(session)
            due = (told for told in events if _is_due(session, told))  # asked when it is their turn
            Delivery(due, session).run()
            if is_simple and extent(session) == before:
                return
        raise EndlessFlushError(_ROUNDS)


def _new_events(session: Session, instances: Sequence[Any] | None, seen: _Seen) -> tuple[Iterable[Event] | None, bool]:
    """What is new to be reported, and whether it depends on nothing but columns; `None` if there is nothing.

    What depends on nothing but columns is found out one row after the other, when it is its turn.
    """
    is_simple = not m2m_changed.is_connected
    foretold: Iterable[Event] = ()
    if pre_save.is_connected or pre_delete.is_connected:
        fates, as_they_look = forecast(session, instances, pre_save.hearing(), pre_delete.hearing(), seen)
        is_simple = is_simple and as_they_look
        foretold = _foretold(public_session(session), fates, seen)
    if is_simple:
        return foretold, True
    events = list(foretold)
    for told in link_events(session, "pre"):
        arguments = told.arguments
        others = tuple(map(inspect, arguments["objects"]))
        key = (told.sender, told.row, arguments["action"], others)
        if key not in seen:
            seen.add(key)
            events.append(told)
    return events or None, False


def _is_due(session: Session, told: Event) -> bool:
    """Whether receivers called before have left the instance to its fate."""
    row = told.row
    return row.session_id == session.hash_key and (told.signal is not pre_save or row not in session._deleted)


def _foretold(public: object, fates: Iterable[Fate], seen: _Seen) -> Iterator[Event]:
    for fate in fates:
        row = fate.row
        key = (row, "deleted") if fate.deleted else row
        if key in seen:
            continue
        seen.add(key)
        if fate.deleted:
            instance = row.obj()
            yield Event(pre_delete, type(instance), {"instance": instance, "session": public}, row)
        else:
            yield save_event(pre_save, row, fate.fields, fate.changes, public)


def after_flush(session: Session, unit: UOWTransaction) -> None:
    """Read the histories while they are there; keys are known by now."""
    state = state_of(session)
    adopted(outermost(unit.transaction)).wrote = True
    state.written = written_rows(session, unit, state.before)
    state.links = link_events(session, "post")


def after_flush_postexec(session: Session, unit: UOWTransaction) -> None:
    """Report what the flush has written. Only now does a change to an instance count as one for the next flush."""
    del unit
    state = state_of(session)
    written, links = state.written, state.links
    state.written, state.links, state.before = [], [], {}
    if not written and not links:
        return
    load_expired(session, written)
    complete(written)
    events = written + links
    _keep_waiting(session, events)
    with _noting_autoflush():
        Delivery(events, session).run()


def _keep_waiting(session: Session, events: Iterable[Event]) -> None:
    """Keep what somebody is to be told after the end of the transaction."""
    places = Places(session)
    transaction = outermost_of(session)
    snapshot = Snapshot()
    latest: Event | None = None
    waits = False
    for told in events:
        if latest is None or told.sender is not latest.sender or told.signal is not latest.signal:
            latest, waits = told, told.waits  # the same for all events of a sender, which follow each other
        if waits:
            place = places.of(told.row.mapper, told.arguments["instance"])
            keep(session, Kept(told, place, transaction, snapshot.of(told)))


@contextmanager
def _noting_autoflush() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if _is_autoflush():
            error.add_note(
                "raised by an autoflush: a query, or a lazy load, writes pending changes before it runs "
                "(session.no_autoflush keeps it from that)"
            )
        raise


def _is_autoflush() -> bool:
    # Nothing tells a flush who asked for it, so the callers are looked at; only once something has failed.
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not Session._autoflush.__code__:
        frame = frame.f_back
    return frame is not None


# -- sync sessions -----------------------------------------------------------------------------------------------------


def _refuse_async_receivers(session: Session, instances: Sequence[Any] | None) -> None:
    """In a sync session, find receivers that would have to be awaited before anything is written."""
    saves, deletes = (pre_save, post_save), (pre_delete, post_delete)
    if not any(signal.hearing().is_awaited for signal in (*saves, *deletes, m2m_changed)):
        return
    for told in link_events(session, "pre"):
        refuse_async(told.sender, m2m_changed)
    is_saved, is_deleted = _any_of(*saves), _any_of(*deletes)
    for instance in (*session.new, *session.dirty):
        refuse_async(type(instance), *saves)
    for instance in session.deleted:
        refuse_async(type(instance), *deletes)
    for fate in forecast(session, instances, is_saved, is_deleted, ())[0]:
        refuse_async(fate.row.mapper.class_, *(deletes if fate.deleted else saves))


def _any_of(*signals: Any) -> Callable[[type], bool]:
    return lambda model: any(signal.hearing()(model) for signal in signals)
