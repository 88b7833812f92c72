"""Who is connected to a signal: an index by sender, and an immutable plan for each sender, made when it is needed.

A *plan* has the connections that a send to one sender calls: those of all senders, those of this one and, with
`subclasses`, those of its base classes, in order. Plans are replaced and never changed, so a send under way keeps the
one that it began with; a connection that ends meanwhile says so itself.

Invariants:

- Every change happens under `lock` and is counted in `changes`, after it was made.
- A sender's plan is fresh while `made_at` equals `_shared_changes`; a change of its own connections sets it to `None`.
- `plan` is the plan of all senders when no sender has connections of its own and nothing is muted; else it is `None`.
- Weak-reference callbacks run anywhere, in the middle of a locked section and in any thread: they append to `_dead`,
  and set `plan` to `None`, so that the next send comes to `plan_for` and purges.
- The lock is re-entrant, because the garbage collector may run a finalizer that connects or disconnects here. Whatever
  iterates over a dict therefore copies it first, and what may have been added meanwhile is added by `setdefault`.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar
from functools import partial
from types import CodeType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast
from weakref import ref

from asignals._core import references
from asignals._core.connection import Connection, Connections, Kind, Options, make_connection, style_of
from asignals._core.loops import new_lock
from asignals._core.references import EVERYONE, HeldSender, WeakSender, describe, identify, is_a, sender_key
from asignals._core.signatures import Names, Receiver, Shape
from asignals._core.written import Loop, write_choose, write_loop

if TYPE_CHECKING:
    from asignals._core.signal import Signal

C = TypeVar("C", bound=Connection)
F = TypeVar("F", bound=Receiver)


class Plan:
    """The connections of one sender in order, with the loops that are written for them when they are first used."""

    def __init__(self, connections: Connections, names: Names | None) -> None:
        self.connections: Connections = connections
        self.loop: Loop | None = None
        self.robust_loop: Loop | None = None
        self._names: Names = names or ()
        styles = Counter(each.style for each in connections if each.style is not None)
        self._style = max(styles, key=styles.__getitem__, default=style_of(Kind.COROUTINE_FUNCTION, None))
        for each in connections:
            if each.style is not None and each.is_live and each.style.wanted != self._style.wanted:
                each.choose = write_choose(self._names, each.style.wanted)

    def write_loop(self, *, robust: bool) -> Loop:
        """The loop of `send` or of `send_robust`, which is then an attribute."""
        loop = write_loop(self._names, self._style, robust)
        setattr(self, "robust_loop" if robust else "loop", loop)
        return loop


class _Sender:
    """The connections of one sender, and its plan with the count of shared changes that it was made at."""

    def __init__(self, source: WeakSender | HeldSender) -> None:
        self.source = source
        self.connections: dict[Hashable, Connection] = {}
        self.plan: Plan | None = None
        self.made_at: int | None = None


class Snapshot(NamedTuple):
    """A connection as it was, or that there was none; keeps the receiver and the sender alive."""

    key: Hashable
    sender: object
    connection: Connection | None
    receiver: Receiver | None
    state: tuple[Options, Shape] | None


def key_of(receiver: Receiver | None, uid: Hashable) -> Hashable:
    """The key of a connection among those of its sender."""
    return ("uid", uid) if receiver is None or uid is not None else identify(receiver)


class Registry:
    """The connections of one signal. Safe to use from any thread and from finalizers."""

    def __init__(self, signal: ref[Signal[..., Any]], names: Names | None) -> None:
        self.plan: Plan | None = None
        self.changes: int = 0  # of any connection, and of what is muted
        self.lock: AbstractContextManager[bool] = new_lock()
        self.blocks: dict[Hashable, list[Connected[Any]]] = {}  # by the identity that they connect
        self.mutes: tuple[Mute, ...] = ()
        self._signal = signal
        self._names = names
        self._everyone = _Sender(EVERYONE)
        self._senders: dict[Hashable, _Sender] = {}
        self._orders = itertools.count()
        self._next_order = 0
        self._sent_before = 0  # the signal was sent since all connections of a lower order were made
        self._shared_changes = 0  # those that concern the plans of more than one sender
        self._hears_subclasses = False
        self._dead: deque[Connection | WeakSender] = deque()
        self.on_death: Callable[[Any], object] = partial(_on_death, ref(self))

    # -- connecting ------------------------------------------------------------------------------------------------

    def connect(  # noqa: PLR0913, PLR0917  a connection has this many parts
        self,
        receiver: Receiver,
        sender: object,
        uid: Hashable,
        options: Options,
        shape: Shape,
        place: tuple[CodeType, int],
        *,
        replace: bool,
    ) -> Connection:
        """Add a connection or, where there is one already, give it the new options; returns it."""
        key = key_of(receiver, uid)
        self.purge()
        with self.lock:
            known, target = self.find(key, sender)
            if known is not None:
                is_same = identify(target) == identify(receiver)
                if is_same:
                    self.set_options(known, options, shape)
                if is_same or not replace:
                    return known
                self.remove(known)
            connection = make_connection(receiver, options, shape, place, self.on_death)
            connection.key = key
            if self.add(connection, sender, None if known is None else known.order) is connection:
                return connection
        return self.connect(receiver, sender, uid, options, shape, place, replace=replace)

    def disconnect(self, receiver: Receiver | None, sender: object, uid: Hashable) -> bool:
        """End a connection; `False` when there was none."""
        self.purge()
        with self.lock:
            known, _ = self.find(key_of(receiver, uid), sender)
            return known is not None and self.remove(known)

    def add(self, connection: C, sender: object, order: int | None = None) -> C:
        """Add a connection at the end of the order, or at a place that it had before.

        Returns the one that is connected: a finalizer may just have connected the same.
        """
        with self.lock:
            entry = self._entry_for(sender, connection)
            connection.source = entry.source
            if order is None:
                order = next(self._orders)
                self._next_order = order + 1
            connection.order = order
            kept = cast("C", entry.connections.setdefault(connection.key, connection))
            if kept is connection:
                if entry is not self._everyone:  # a finalizer may have emptied and dropped it meanwhile
                    self._senders[entry.source.key] = entry
                self._changed(entry, connection)
            return kept

    def set_options(self, connection: Connection, options: Options, shape: Shape) -> None:
        """Give a connection new options in place."""
        with self.lock:
            entry = self._entry_of(connection)
            self._changed(entry, connection)
            connection.set_options(options, shape)
            if entry is not None and self._entry_of(connection) is None:  # a finalizer has disconnected it
                connection.end()
            self._changed(entry, connection)

    def find(self, key: Hashable, sender: object) -> tuple[Connection | None, Any]:
        """The connection under this identity, if it is a live one, and its receiver."""
        with self.lock:
            entry = self._existing(sender)
            found = None if entry is None else entry.connections.get(key)
            target = None if found is None else found.target()
            if found is not None and target is None:  # its callback is still to come, and its id may be in use again
                self.remove(found)
                return None, None
            return found, target

    def remove(self, connection: Connection) -> bool:
        """End a connection; `False` when it had ended before."""
        with self.lock:
            was_live = connection.is_live
            connection.end()
            entry = self._entry_of(connection)
            if entry is not None:
                del entry.connections[connection.key]
                if not entry.connections:
                    self._drop(entry)
                self._changed(entry, connection)
            return was_live

    def _entry_of(self, connection: Connection) -> _Sender | None:
        source = connection.source
        entry = self._everyone if source is EVERYONE else self._senders.get(source.key)
        return entry if entry is not None and entry.connections.get(connection.key) is connection else None

    def _entry_for(self, sender: object, connection: Connection | None) -> _Sender:
        entry = self._existing(sender)
        if entry is None:
            source = references.refer_to_sender(sender, self.on_death, None if connection is None else connection.place)
            entry = self._senders[source.key] = _Sender(source)
        return entry

    def _existing(self, sender: object) -> _Sender | None:
        if sender is None:
            return self._everyone
        key = sender_key(sender)
        entry = self._senders.get(key)
        # The id of a dead sender may be in use again.
        return entry if entry is None or type(key) is tuple or entry.source() is sender else None

    def _drop(self, entry: _Sender) -> None:
        if self._senders.get(entry.source.key) is entry:
            del self._senders[entry.source.key]
        if not self._senders:
            self._everyone.made_at = None  # so that its plan becomes that of all senders again

    def _changed(self, entry: _Sender | None, connection: Connection) -> None:
        self.changes += 1
        self.plan = None
        if connection.options.subclasses or entry is self._everyone:
            self._shared_changes += 1
        self._hears_subclasses |= connection.options.subclasses
        if entry is not None:
            entry.made_at = None

    # -- what has died ---------------------------------------------------------------------------------------------

    def purge(self) -> None:
        """Forget receivers and senders that have died, and warn of receivers whose death is a surprise."""
        lost = []
        while self._dead:
            with self.lock:
                thing = self._dead.popleft() if self._dead else None
                if isinstance(thing, WeakSender):
                    self._forget_sender(thing)
                elif thing is not None and self.remove(thing) and thing.is_easily_lost and self.is_unsent(thing):
                    lost.append(thing)
        for connection in lost:
            self.warn_lost(connection, "died before the signal was sent")

    def _forget_sender(self, source: WeakSender) -> None:
        entry = self._senders.get(source.key)
        if entry is not None and entry.source is source:
            self._drop(entry)
            self.changes += 1
            for connection in list(entry.connections.values()):
                connection.end()

    def is_unsent(self, thing: Connection | WeakSender) -> bool:
        """Whether the signal was not sent since something that has died was connected, and its sender lives on."""
        if isinstance(thing, WeakSender):
            return True
        return thing.order >= self._sent_before and (thing.source is EVERYONE or thing.source() is not None)

    def warn_lost(self, thing: Connection | WeakSender, how: str) -> None:
        """Warn, at the line that connected it, of a receiver or a sender that died before any send reached it."""
        signal = self._signal()
        if signal is None or thing.place is None:
            return
        what = "the sender of a receiver"
        if isinstance(thing, Connection):
            thing.is_easily_lost = False  # one warning is enough
            what = f"receiver {thing.describe()}"
        text = f"{what} of signal {signal.name!r} {how}: nothing else refers to it."
        del signal  # a warning filter may raise, and its traceback would keep the signal
        references.warn_lost(text, *thing.place)

    # -- plans -----------------------------------------------------------------------------------------------------

    def plan_for(self, sender: object) -> Plan:
        """The plan of a send to this sender, with muting applied. A connection may end or die before its turn."""
        if self._dead:
            self.purge()
        self._sent_before = self._next_order
        plan = self._whole_plan(sender)
        if not self._senders:
            self._offer(plan)
        for mute in self.mutes:
            if mute.is_in_force():
                with self.lock:  # making a plan prepares its connections, which nobody may end meanwhile
                    plan = Plan(tuple(each for each in plan.connections if not mute.hides(each)), self._names)
        return plan

    def connections_for(self, sender: object) -> Connections:
        """The connections of a sender, in order, muted or not; not counted as a send."""
        plan = self.plan
        if plan is None:
            self.purge()
            if not self._senders and not self._everyone.connections:
                return ()
            plan = self._whole_plan(sender)
        return plan.connections

    def all_connections(self) -> Connections:
        """Every connection, those of all senders together in order."""
        self.purge()
        with self.lock:
            entries = [self._everyone, *self._senders.values()]
            return _in_order(each for entry in entries for each in list(entry.connections.values()))

    def _entry_to_plan(self, sender: object) -> _Sender:
        entry = self._existing(sender) if self._senders else self._everyone
        if entry is not None:
            return entry
        if self._hears_subclasses and is_a(sender, type):
            with self.lock:
                return self._entry_for(sender, None)  # to keep the plan in, until the class dies
        return self._everyone

    def _whole_plan(self, sender: object) -> Plan:
        entry = self._entry_to_plan(sender)
        plan = entry.plan
        return self._make_plan(entry, sender) if plan is None or entry.made_at != self._shared_changes else plan

    def _offer(self, plan: Plan) -> None:
        """Let the next sends take this plan without asking `plan_for`, where it holds for every sender."""
        with self.lock:
            everyone = self._everyone
            is_fresh = everyone.plan is plan and everyone.made_at == self._shared_changes
            if is_fresh and not self._senders and not self.mutes:
                self.plan = plan
                if self._dead:  # a callback came between, and expects the next send in plan_for
                    self.plan = None

    def _make_plan(self, entry: _Sender, sender: object) -> Plan:
        with self.lock:
            while True:
                changes, shared = self.changes, self._shared_changes
                plan = Plan(_in_order(self._gather(entry, sender)), self._names)
                if changes == self.changes:  # no finalizer changed anything meanwhile
                    break
            entry.plan, entry.made_at = plan, shared
            return plan

    def _gather(self, entry: _Sender, sender: object) -> list[Connection]:
        with self.lock:
            found = list(self._everyone.connections.values())
            if entry is not self._everyone:
                found += entry.connections.values()
                if self._hears_subclasses and is_a(sender, type):
                    above = [self._existing(base) for base in sender.__mro__[1:]]
                    inherited = [each for base in above if base for each in list(base.connections.values())]
                    found += [each for each in inherited if each.options.subclasses]
            return found

    # -- for the length of a block ---------------------------------------------------------------------------------

    def snapshot(self, receiver: Receiver, sender: object, uid: Hashable) -> Snapshot:
        """What is connected under an identity, for `restore`."""
        with self.lock:
            key = key_of(receiver, uid)
            known, target = self.find(key, sender)
            return Snapshot(key, sender, known, target, None if known is None else (known.options, known.shape))

    def restore(self, was: Snapshot) -> None:
        """Make a connection what it was, its place included."""
        with self.lock:
            known, _ = self.find(was.key, was.sender)
            if known is not None and known is not was.connection:
                self.remove(known)
            if was.connection is not None and was.state is not None:
                self.set_options(was.connection, *was.state)
                if known is not was.connection:
                    self.add(was.connection, was.sender, was.connection.order)

    def keep_muted(self, context: Context) -> Callable[[], None] | None:
        """Keep what is muted now muted in another context, until the returned function is called."""
        mutes = [Mute(self, mute.receivers, everywhere=False) for mute in self.mutes if mute.is_in_force()]
        for mute in mutes:
            context.run(mute.__enter__)
        return partial(self.unmute, *mutes) if mutes else None

    def mute(self, mute: Mute) -> None:
        """Apply a mute to every plan."""
        with self.lock:
            self._set_mutes((*self.mutes, mute))

    def unmute(self, *mutes: Mute) -> None:
        """Apply these mutes no more, and let their receivers go: a copy of their context may last long."""
        with self.lock:
            self._set_mutes(tuple(mute for mute in self.mutes if mute not in mutes))
        for mute in mutes:
            mute.receivers = ()

    def _set_mutes(self, mutes: tuple[Mute, ...]) -> None:
        self.mutes = mutes
        self.changes += 1
        self.plan = self._everyone.made_at = None


class _Block:
    """A context manager for one use, and no decorator: on an `async def` it would end before the body runs."""

    _was_entered = False

    def _enter_once(self) -> None:
        if self._was_entered:
            msg = "this block can be entered once; make another one"
            raise RuntimeError(msg)
        self._was_entered = True

    def __call__(self, function: object) -> None:
        msg = f"this is no decorator: write the `with` block inside of {describe(function)}"
        raise TypeError(msg)


class Connected(_Block, Generic[F]):
    """Connects a receiver for a block, then restores what was before. Blocks may overlap and end in any order."""

    def __init__(
        self, registry: Registry, receiver: F, sender: object, uid: Hashable, connect: Callable[[], object]
    ) -> None:
        self._registry = registry
        self._given = receiver, sender, uid
        self._connect = connect
        self._identity = key_of(receiver, uid), sender_key(sender)
        self._before: Snapshot

    def __enter__(self) -> F:
        self._enter_once()
        with self._registry.lock:
            self._before = self._registry.snapshot(*self._given)
            self._connect()
            self._registry.blocks.setdefault(self._identity, []).append(self)
        return self._given[0]

    def __exit__(self, *_: object) -> None:
        with self._registry.lock:
            blocks = self._registry.blocks[self._identity]
            index = blocks.index(self)
            del blocks[index]
            if index < len(blocks):
                blocks[index]._before = self._before  # the block entered next restores what was before this one
                return
            if not blocks:
                del self._registry.blocks[self._identity]
            self._registry.restore(self._before)


# The mutes that the current context is inside of. Contexts are copied, so a task may keep a mute that has ended: the
# registry does not apply it any more. There are no tokens: a pytest fixture leaves its block in another context.
_entered: ContextVar[tuple[Mute, ...]] = ContextVar("asignals_muted", default=())


class Mute(_Block):
    """A block that hides receivers, or all, from the plans that are made inside it."""

    def __init__(self, registry: Registry, receivers: Iterable[Receiver], *, everywhere: bool) -> None:
        self.receivers: tuple[Receiver, ...] = tuple(receivers)  # kept alive, because their ids are compared
        self._registry = registry
        self._keys: frozenset[Hashable] = frozenset(map(identify, self.receivers))
        self._everywhere = everywhere

    def is_in_force(self) -> bool:
        """Whether this mute concerns the current context."""
        return self._everywhere or self in _entered.get()

    def hides(self, connection: Connection) -> bool:
        """Whether a connection is left out of a plan."""
        return not self._keys or identify(connection.target()) in self._keys

    def __enter__(self) -> None:
        self._enter_once()
        _entered.set((*_entered.get(), self))
        self._registry.mute(self)

    def __exit__(self, *_: object) -> None:
        self._registry.unmute(self)
        _entered.set(tuple(mute for mute in _entered.get() if mute is not self))


def _rank(connection: Connection) -> tuple[float, int]:
    return -connection.options.priority, connection.order


def _in_order(connections: Iterable[Connection]) -> Connections:
    return tuple(sorted(filter(is_alive, connections), key=_rank))


def is_alive(connection: Connection) -> bool:
    """Whether a connection has neither ended nor lost its receiver."""
    return connection.is_live and connection.target() is not None


def _on_death(registry: ref[Registry], thing: Connection | WeakSender) -> None:
    """The callback of the weak references: runs in any thread, wherever the last reference is dropped."""
    home = registry()
    if home is None:
        return
    home._dead.append(thing)
    home.plan = None
    frame = sys._getframe().f_back  # None where a thread ends
    while frame is not None and frame.f_globals.get("__name__") in {"weakref", "asignals._core.connection"}:
        frame = frame.f_back  # between a WeakMethod and here
    is_in_statement = frame is not None and thing.place is not None and references.is_running(frame, *thing.place)
    has_ended = isinstance(thing, Connection) and not thing.is_live  # a plan that is out of date may still keep it
    if is_in_statement and not has_ended and home.is_unsent(thing):
        home.warn_lost(thing, "died in the statement that connects it")
