"""After the end of a transaction: who is told of what, and the session that each receiver finds.

Each receiver, and each callback of `on_commit`, finds an idle session and the attributes that were loaded in the flush.
What it leaves open in the session is committed when it returns, and rolled back when it raises.
"""

from __future__ import annotations

import logging
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.collections import collection_adapter
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from asignals._core import describe, is_receivers_error, log_failure
from asignals.sqlalchemy._changes import traits_of
from asignals.sqlalchemy._deliver import Event, PhaseSend, is_awaited, run_here
from asignals.sqlalchemy._errors import AsyncReceiverError
from asignals.sqlalchemy._shield import shielded
from asignals.sqlalchemy._signal import SessionSignal
from asignals.sqlalchemy._state import public_session, state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from sqlalchemy.orm import InstanceState, Session

    from asignals._core import Connection, Send
    from asignals.sqlalchemy._deliver import Phase
    from asignals.sqlalchemy._places import AllPlaces, Place
    from asignals.sqlalchemy._transactions import SignalTransaction, Waiting

_logger = logging.getLogger("asignals")


transaction_committed: SessionSignal = SessionSignal(
    ("session",),
    name="transaction_committed",
    doc="""The outermost transaction of a session has been committed, and its connection is back in the pool.

    The sender is the session as well. Sent after the receivers of what happened in the transaction; not for
    transactions that never reached the database, nor for what receivers called after the end leave to be committed.
    With several databases, all have committed. Receivers' errors are logged and change nothing. One that commits in the
    same session is called for that commit as well.
    """,
)
transaction_rolled_back: SessionSignal = SessionSignal(
    ("session",),
    name="transaction_rolled_back",
    doc="""The outermost transaction of a session has been rolled back: by request, or with flushed changes in it.

    The sender is the session as well. A session that only read, and is closed, is not reported. With several
    databases, one of them at least was not committed. Receivers' errors are logged and change nothing.
    """,
)


class Kept:
    """An event that waits for the end of its transaction, and the attributes of its instances as they are now."""

    __slots__ = ("_loaded", "event", "place", "transaction")

    def __init__(
        self,
        event: Event,
        place: Place | AllPlaces | None,
        transaction: SignalTransaction,
        loaded: list[Loaded] | None = None,
    ) -> None:
        self.event = event
        self.place = place
        self.transaction = transaction  # the outermost
        self._loaded = loaded or []

    @property
    def is_lost(self) -> bool:
        """Whether it is known already that it was rolled back."""
        return self.place is not None and self.place.is_lost

    @property
    def is_kept(self) -> bool:
        """Whether it was committed; asked after the end."""
        if self.place is None:
            return self.transaction.is_committed
        return self.place.is_kept(session_committed=self.transaction.commit_reached)

    def put_back(self) -> None:
        """Make readable what is expired and was loaded."""
        for each in self._loaded:
            each.put_back()

    def expire_again(self) -> None:
        """Undo `put_back`: whoever goes on with the session gets what the database has."""
        for each in self._loaded:
            each.expire_again()


class Snapshot:
    """The attributes that instances have loaded at the end of one flush; read once for each instance."""

    def __init__(self) -> None:
        self._known: dict[InstanceState[Any], Loaded] = {}

    def of(self, event: Event) -> list[Loaded]:
        """The attributes of the instances of an event, and of those that are loaded in their relationships."""
        arguments = event.arguments
        rows: dict[InstanceState[Any], None] = {}
        for instance in (arguments["instance"], *arguments.get("objects", ())):
            row = inspect(instance)
            rows[row] = None
            rows.update(dict.fromkeys(_related(row)))
        return [self._loaded(row) for row in rows]

    def _loaded(self, row: InstanceState[Any]) -> Loaded:
        known = self._known.get(row)
        if known is None:
            known = self._known[row] = Loaded(row)
        return known


def _related(row: InstanceState[Any]) -> Iterator[InstanceState[Any]]:
    for key in row.dict.keys() & traits_of(row.manager.mapper).relationships:
        members = _members(row.dict[key])
        for member in members if isinstance(members, list) else [members]:
            if _is_populated(row, key) and member is not None:
                yield inspect(member)


def _is_populated(row: InstanceState[Any], key: str) -> bool:
    """Whether an attribute holds what it shows: dynamic and write-only collections, and composites, do not."""
    return key in row.manager and bool(getattr(row.manager[key].impl, "supports_population", False))


def _members(value: Any) -> Any:
    """The members of a collection, which can't be used any more once it has expired; any other value as it is."""
    adapter = getattr(value, "_sa_adapter", None)
    return value if adapter is None else list(collection_adapter(value))


class Loaded:
    """The attributes that an instance had loaded at some time, or that were `None` because nobody had set them."""

    __slots__ = ("_instance", "_put_back", "_row", "_unset", "_values", "_was_expired")

    def __init__(self, row: InstanceState[Any]) -> None:
        self._row = row
        self._instance = row.obj()
        self._unset = traits_of(row.manager.mapper).unset(row)
        self._values = dict.fromkeys(self._unset)
        self._values.update((key, _members(value)) for key, value in row.dict.items() if _is_populated(row, key))
        self._put_back: set[str] = set()
        self._was_expired = False

    def put_back(self) -> None:
        """Set what is expired, as if it had just been loaded."""
        row = self._row
        missing = self._values.keys() - row.dict.keys() - (self._unset - row.expired_attributes)
        if not missing:
            return
        self._was_expired = self._was_expired or row.expired
        for key in missing:
            try:
                set_committed_value(self._instance, key, self._values[key])
            except Exception:  # a collection's class is the user's, and the others are to be called all the same
                _logger.exception("receivers do not find %s.%s as it was", type(self._instance).__name__, key)
        self._put_back |= missing

    def expire_again(self) -> None:
        """Undo `put_back`, unless a receiver has changed the instance, or taken it out of the session."""
        row = self._row
        if not self._put_back or row.modified or row.session_id is None:
            return
        if self._was_expired:
            row._expire(row.dict, set() if row.session is None else row.session.identity_map._modified)
        else:
            row._expire_attributes(row.dict, self._put_back)
        self._put_back = set()


class Callback:
    """A callback of `on_commit`."""

    __slots__ = ("_transaction", "function")

    def __init__(self, function: Callable[[], object], transaction: SignalTransaction) -> None:
        self.function = function
        self._transaction: SignalTransaction | None = transaction

    @property
    def is_lost(self) -> bool:
        """Whether the savepoint that it was registered in has been rolled back."""
        within = self._transaction
        while within is not None and within.nested and within.commit_reached:
            within = within.parent  # type: ignore[assignment]  # all of an enabled session are of our class
        return within is not None and within.nested and within._transaction_is_closed()

    @property
    def is_kept(self) -> bool:
        """Whether its transaction was committed; asked after the end."""
        within = self._transaction
        while within is not None:
            if not within.is_committed:
                return False
            within = within.parent  # type: ignore[assignment]
        return True


# -- telling -----------------------------------------------------------------------------------------------------------


def report(session: Session, transaction: SignalTransaction) -> None:
    """Call whoever waited for the end of an outermost transaction, or listens to it."""
    state_of(session).heard = False
    committed = transaction.is_committed
    ending = transaction_committed if committed else transaction_rolled_back
    is_told = (
        bool(transaction._connections)
        and not transaction.is_leftover
        and (committed or transaction.rolled_back or transaction.wrote)
        and ending.is_wanted(public_session(session))
    )
    if not (transaction.waiting or transaction.lost or is_told):
        return
    kept: list[Waiting] = []
    lost = list(transaction.lost)
    for each in transaction.waiting:
        (kept if each.is_kept else lost).append(each)
    transaction.waiting.clear()
    transaction.lost.clear()

    def call_all() -> None:
        _tell(session, lost, "rollback")
        _tell(session, kept, "commit")
        if is_told:
            public = public_session(session)
            _Telling(session, Event(ending, public, {"session": public}), "flush").run()

    shielded(call_all)


def _tell(session: Session, entries: Iterable[Waiting], phase: Phase) -> None:
    for entry in entries:
        if isinstance(entry, Kept):
            try:
                _Telling(session, entry.event, phase, entry).run()
            finally:
                entry.expire_again()
        elif phase == "commit":
            _call_back(session, entry.function)


class _Telling:
    """The calls for one event."""

    def __init__(self, session: Session, event: Event, phase: Phase, kept: Kept | None = None) -> None:
        self._session = session
        self._event = event
        self._phase: Phase = phase
        self._kept = kept

    def run(self) -> None:
        links = self._event.plan(self._phase)
        if not links:
            self._event.report(self._phase)
            return
        send = PhaseSend(self._event, self._phase)
        with send:
            for link in links:
                self._call(send, link)

    def _call(self, send: Send, link: Connection) -> None:
        session = self._session
        if self._kept is not None:
            self._kept.put_back()
        was_idle = not session.in_transaction()
        is_failed = True
        try:
            self._start(send, link)
            is_failed = False
        except BaseException as error:
            if not is_receivers_error(error):
                raise
            log_failure(error, link, send.signal, send.sender)
        if was_idle:
            try:
                leave_idle(session, failed=is_failed)
            except Exception as error:  # noqa: BLE001  it is the receiver's work that fails
                log_failure(error, link, send.signal, send.sender)

    def _start(self, send: Send, link: Connection) -> None:
        def refuse() -> AsyncReceiverError:
            return AsyncReceiverError(send.signal, link.describe())

        if not is_awaited(link):
            run_here(send.to(link), refuse)
        elif in_greenlet():
            await_only(send.to(link))
        else:
            raise refuse()


def _call_back(session: Session, callback: Callable[[], object]) -> None:
    was_idle = not session.in_transaction()
    is_failed = True
    try:
        try:
            response = callback()
            if isawaitable(response):
                await_only(response)
            is_failed = False
        finally:
            if was_idle:
                leave_idle(session, failed=is_failed)
    except BaseException as error:
        if not is_receivers_error(error):
            raise
        _logger.exception("%s failed as a callback of on_commit", describe(callback))


def leave_idle(session: Session, *, failed: bool) -> None:
    """End the transaction that a receiver has begun and left open: nobody else knows of it."""
    transaction: Any = session.get_transaction()
    if transaction is None:
        return
    transaction.is_leftover = True
    if failed:
        session.rollback()
        return
    try:
        session.commit()
    except BaseException:
        session.rollback()
        raise
