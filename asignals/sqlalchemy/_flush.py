"""What sessions announce around a flush: before it begins, and when it has written everything."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import inspect
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import in_greenlet

from asignals.sqlalchemy._deliver import Delivery, Event, refuse_async
from asignals.sqlalchemy._errors import EndlessFlushError, FlushInProgressError
from asignals.sqlalchemy._forecast import forecast, within_reach
from asignals.sqlalchemy._links import link_events, m2m_changed
from asignals.sqlalchemy._saves import post_delete, post_save, pre_delete, pre_save
from asignals.sqlalchemy._state import announced, state_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence
    from types import FrameType

    from sqlalchemy.orm import UOWTransaction

    from asignals.sqlalchemy._forecast import Fate
    from asignals.sqlalchemy._signal import ModelSignal
    from asignals.sqlalchemy._state import Record

_ROUNDS = 100  # as many as Session.commit grants to flushes that leave something to flush

_Seen: TypeAlias = "set[Hashable]"


def before_flush(session: Session, unit: UOWTransaction, instances: Sequence[Any] | None) -> None:
    """Tell of what the flush is going to do until nothing is left that has not been told of."""
    state = state_of(session)
    state.records.clear()  # a flush that failed leaves its own
    state.fields.clear()
    state.links.clear()
    if not in_greenlet():
        _refuse_async_receivers(session, unit, instances)
    if not (is_foretold(session, pre_save, pre_delete) or m2m_changed.is_connected):
        return
    with _noting_autoflush(), state.receiving():
        seen: _Seen = set()
        for _ in range(_ROUNDS):
            events = _announcements(session, type(unit)(session), instances, seen)
            if not events:
                return
            due = (told for told in events if _is_due(session, told))  # asked when it is their turn
            Delivery(due, "flush", state).run()
        raise EndlessFlushError(_ROUNDS)


def is_foretold(session: Session, *signals: ModelSignal) -> bool:
    """Whether a flush can reach a class that somebody wants to hear of; cheap, where nobody does."""
    return any(signal.is_connected for signal in signals) and any(
        signal.has_listeners(mapper.class_) for mapper in within_reach(session) for signal in signals
    )


def _announcements(session: Session, unit: UOWTransaction, instances: Sequence[Any] | None, seen: _Seen) -> list[Event]:
    events: list[Event] = []
    key: Hashable
    if is_foretold(session, pre_save, pre_delete):
        for fate in forecast(session, unit, instances):
            key = (fate.row, fate.deleted)
            if key not in seen:
                seen.add(key)
                events.append(_foretold(session, fate))
    for told in link_events(session, "pre"):
        arguments = told.arguments
        others = tuple(map(inspect, arguments["objects"]))
        key = (told.sender, inspect(arguments["instance"]), arguments["action"], others)
        if key not in seen:
            seen.add(key)
            events.append(told)
    return events


def _is_due(session: Session, told: Event) -> bool:
    """Whether receivers called before have left the instance to its fate."""
    row = inspect(told.arguments["instance"])
    return row.session is session and (told.signal is not pre_save or row not in session._deleted)


def _foretold(session: Session, fate: Fate) -> Event:
    instance = fate.row.obj()
    sender = fate.row.mapper.class_
    arguments = {"instance": instance, "session": announced(session)}
    if fate.deleted:
        return Event(pre_delete, sender, arguments)
    return Event(pre_save, sender, {**arguments, "created": fate.created, "update_fields": fate.fields})


def after_flush(session: Session, unit: UOWTransaction) -> None:
    """Read the histories of relationships while they are there; keys are known by now."""
    del unit
    state = state_of(session)
    state.frames[-1].wrote = True
    state.links = link_events(session, "post")


def after_flush_postexec(session: Session, unit: UOWTransaction) -> None:
    """Tell of what the flush has written. Only now does a change to an instance count as one for the next flush."""
    del unit
    state = state_of(session)
    records, links = list(state.records.values()), state.links
    state.records, state.links = {}, []
    state.fields.clear()
    if not records and not links:
        return
    public = announced(session)
    events = [_told(record, public) for record in records] + links
    for told in events:
        if told.plan("commit") or told.plan("rollback"):
            state.keep(told)
    with _noting_autoflush(), state.receiving():
        Delivery(events, "flush", state).run()


def _told(record: Record, session: object) -> Event:
    instance = record.instance
    if record.deleted:
        return Event(post_delete, type(instance), {"instance": instance, "session": session})
    arguments = {
        "instance": instance,
        "created": record.created,
        "update_fields": record.fields,
        "session": session,
    }
    return Event(post_save, type(instance), arguments)


def before_commit(session: Session) -> None:
    """Keep receivers from committing the transaction of the flush that they are told of."""
    if not state_of(session).may_commit():
        raise FlushInProgressError(operation="commit")


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


def _refuse_async_receivers(session: Session, unit: UOWTransaction, instances: Sequence[Any] | None) -> None:
    """In a sync session, find receivers that would have to be awaited before anything is written."""
    saves, deletes = (pre_save, post_save), (pre_delete, post_delete)
    for instance in (*session.new, *session.dirty):
        refuse_async(type(instance), *saves)
    for instance in session.deleted:
        refuse_async(type(instance), *deletes)
    for told in link_events(session, "pre"):
        refuse_async(told.sender, m2m_changed)
    if is_foretold(session, *saves, *deletes):
        for fate in forecast(session, type(unit)(session), instances):
            refuse_async(fate.row.mapper.class_, *(deletes if fate.deleted else saves))
