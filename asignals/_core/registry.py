"""Who is connected to a signal: an index by sender, and an immutable plan for each sender, made when it is needed.

A *plan* has the connections that a send to one sender calls: those of all senders, those of this one and, with
`subclasses`, those of its base classes, in order. Plans are replaced and never changed, so a send under way keeps the
one that it began with; a connection that ends meanwhile says so itself.

Invariants:

- Every change happens under `lock` and is counted in `changes`, after it was made.
- `_plans` has the plans that are fresh, each by the senders whose connections are in it: so it keeps nothing for a
  sender that nobody is connected for. A change drops the plans that it concerns.
- `plan` is the plan of all senders when no sender has its own connections and nothing is muted; else it is `None`.
- Weak-reference callbacks run anywhere, in the middle of a locked section and in any thread: they append to `_dead`,
  and set `plan` to `None`, so that the next send comes to `plan_for` and purges.
- The lock is re-entrant, because the garbage collector may run a finalizer that connects or disconnects here. Whatever
  iterates over a dict therefore copies it first.
- Connections refer to the sender and not to the `_Sender` that has them: no reference cycle keeps a signal.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Hashable, Iterable
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from functools import cached_property, partial
from inspect import GEN_CREATED, GEN_SUSPENDED, getgeneratorstate
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import ref

from asignals._core import loops, objects
from asignals._core.connection import DEFAULTS, Connection, Connections, Options, key_of
from asignals._core.objects import Names, Place, Receiver, Reference, Shape, describe, identify, is_a, sender_key
from asignals._core.written import Loop, is_often_sent, write_loop

if TYPE_CHECKING:
    from asignals._core.signal import Signal

T_co = TypeVar("T_co", covariant=True)
F = TypeVar("F", bound=Receiver)


_BRANCHES = 8  # for the commonest shapes of a plan's receivers


class Plan:
    """The connections of one sender in order, with the loops that are written for them when they are first used."""

    # What each send reads is a slot: the cached properties below make attributes of the dict slower.
    __slots__ = ("__dict__", "connections", "loop")

    def __init__(self, connections: Connections, names: Names | None) -> None:
        self.connections: Connections = connections
        self.loop: Loop | None = None
        self._names = names

    def loop_for(self, arguments: Iterable[str]) -> Loop:
        """The loop of a send; `arguments` are the keywords that an undeclared signal sends."""
        if self._names is not None:
            self.loop = self.loop or write_loop(self._names, self._shapes)
        elif {*map(type, arguments)} <= {str} and is_often_sent(names := tuple(arguments)):  # others hash as they like
            self.loop = write_loop(names, self._shapes, "unpacking")
        else:
            return write_loop(None, self._shapes)
        return self.loop

    @cached_property
    def watched_loop(self) -> Loop:
        """The loop of a send that a monitor watches."""
        return write_loop(self._names, self._shapes, "watched")

    def values(self, arguments: dict[str, Any]) -> Iterable[Any]:
        """The arguments as the loops take them; those of a declared signal are in order."""
        return (arguments,) if self._names is None else arguments.values()

    @cached_property
    def _shapes(self) -> tuple[Shape, ...]:
        """Those that most of the receivers have."""
        shapes = Counter(each.shape for each in self.connections if each.style is not None)
        return tuple(shape for shape, _ in shapes.most_common(_BRANCHES))


class _Sender:
    """The connections of one sender."""

    def __init__(self, sender: object, on_death: Callable[[Any], object], place: Place) -> None:
        self.source = Reference(sender, on_death, place, sender_key(sender))
        self.connections: dict[Hashable, Connection] = {}


class Registry:
    """The connections of one signal. Safe to use from any thread and from finalizers."""

    lock: ClassVar[Any] = loops.lock

    def __init__(self, signal: ref[Signal[..., Any]], names: Names | None) -> None:
        self.plan: Plan | None = None
        self.changes: int = 0  # of any connection, and of what is muted
        self.mutes: frozenset[Mute] = frozenset()
        self.blocks: dict[Hashable, dict[Callable[[], object], bool]] = {}  # by the identity that they connect
        self.on_death: Callable[[Any], object] = partial(_on_death, ref(self))
        self._signal = signal
        self._names = names
        self._everyone = _Sender(None, self.on_death, (key_of.__code__, 0))  # which no statement connects
        self._senders: dict[Hashable, _Sender] = {self._everyone.source.key: self._everyone}
        self._plans: dict[tuple[_Sender, ...], Plan] = {}
        self._latest = self._latest_sent = 0  # the order of the latest connection, and of that before the latest send
        self._hears_subclasses = False
        self._dead: deque[Reference] = deque()

    # -- connecting ------------------------------------------------------------------------------------------------

    def connect(self, connection: Connection, sender: object, *, replace: bool) -> None:
        """Add a connection or, if its receiver is connected already, give that connection the new options."""
        self.purge()
        with self.lock:
            known, target = self.find(connection.key, sender)
            if known is None:
                self.add(connection, sender)
            elif identify(target) == identify(connection.target()):
                self.put_back(known, target, sender, connection.options, connection.shape)
            elif replace:
                self.add(connection, sender, known.order)

    def disconnect(self, receiver: Receiver | None, sender: object, uid: Hashable) -> bool:
        """End a connection; `False` when there was none."""
        self.purge()
        with self.lock:
            known, _ = self.find(key_of(receiver, uid), sender)
            return known is not None and self.remove(known)

    def add(self, connection: Connection, sender: object, order: int | None = None) -> None:
        """Add a connection at the end of the order, or at a place of it, and end the one that had its identity."""
        with self.lock:
            made = self._existing(sender) or _Sender(sender, self.on_death, (connection.code, connection.offset))
            entry = self._existing(sender) or made  # a finalizer may have added one meanwhile
            self._latest += 1
            connection.order = entry.source.order = self._latest if order is None else order
            connection.source, connection.is_live = entry.source, True
            replaced = entry.connections.get(connection.key)
            entry.connections[connection.key] = connection
            self._senders[entry.source.key] = entry  # a finalizer may have dropped it meanwhile
            self._changed(entry, connection.options)
            if replaced is not None and replaced is not connection:
                replaced.end()

    def find(self, key: Hashable, sender: object) -> tuple[Connection | None, Any]:
        """The connection under this identity and its receiver, if that lives: its id may be in use again."""
        entry = self._existing(sender)
        found = None if entry is None else entry.connections.get(key)
        target = None if found is None else found.target()
        return (None, None) if target is None else (found, target)

    def remove(self, connection: Connection) -> bool:
        """End a connection; `False` when it had ended before."""
        with self.lock:
            entry = self._senders.get(connection.source.key)
            if entry is None or entry.connections.get(connection.key) is not connection:
                return False
            del entry.connections[connection.key]
            if not entry.connections and entry is not self._everyone:
                del self._senders[connection.source.key]
            self._changed(entry, connection.options)
            connection.end()
            return True

    def _existing(self, sender: object) -> _Sender | None:
        entry = self._senders.get(key := sender_key(sender))
        # The id of a dead sender may be in use again.
        if entry is None or type(key) is tuple or entry.source() is sender or entry.source.target() is sender:
            return entry
        return None

    def _changed(self, entry: _Sender, options: Options = DEFAULTS) -> None:
        """Count a change that was made, and drop the plans that it concerns; finalizers may run."""
        self.changes += 1
        self.plan = None
        self._hears_subclasses |= options.subclasses
        if self._hears_subclasses or entry is self._everyone:
            self._plans.clear()
        else:
            self._plans.pop((entry,), None)

    # -- what has died ---------------------------------------------------------------------------------------------

    def purge(self) -> None:
        """Forget receivers and senders that have died, and warn of receivers whose death is a surprise."""
        while self._dead:
            with suppress(IndexError):  # another thread was faster
                thing = self._dead.popleft()
                if isinstance(thing, Connection):
                    if self.remove(thing) and thing.is_easily_lost and thing.method is None:  # not a method's object
                        self._warn_lost(thing, "died before the signal was sent")
                elif (entry := self._senders.get(thing.key)) is not None and entry.source is thing:
                    for connection in list(entry.connections.values()):
                        self.remove(connection)

    def _warn_lost(self, thing: Reference, how: str) -> None:
        """Warn, at the line that connected it, of a receiver or a sender that died before any send reached it."""
        signal, entry = self._signal(), self._senders.get(thing.key)
        what, advice, lost = "receiver", "Connect with weak=False, or keep a reference to it", thing
        if isinstance(thing, Connection):
            if thing.order <= self._latest_sent or thing.source() is None:
                return
            thing.is_easily_lost = False  # one warning is enough
        elif entry is not None:
            what, advice = "the sender of receiver", "Keep a reference to it: weak=False keeps receivers only"
            lost, *_ = *entry.connections.values(), thing
        if signal is not None and isinstance(lost, Connection):  # a sender may have none any more
            text = f"{what} {lost.describe()} of signal {signal.name!r} {how}: nothing else refers to it. {advice}"
            objects.warn_lost(text, thing.code.co_filename, thing.line)

    # -- plans -----------------------------------------------------------------------------------------------------

    def plan_for(self, sender: object) -> Plan:
        """The plan of a send to this sender, with muting applied. A connection may end or die before its turn."""
        if self._dead:
            self.purge()
        if self._latest_sent < self._latest:
            with self.lock:  # so that it never goes back, because of a slower thread
                self._latest_sent = self._latest
        plan = self._whole_plan(sender)
        if len(self._senders) == 1:
            with self.lock:  # let the next sends take it without asking, where it still holds for every sender
                if len(self._senders) == 1 and not self.mutes and plan is self._plans.get((self._everyone,)):
                    self.plan = plan
                if self._dead:  # a callback came between, and expects the next send here
                    self.plan = None
        for mute in self.mutes:
            if mute.is_everywhere or mute in _entered.get():
                plan = Plan(tuple(each for each in plan.connections if not mute.hides(each)), self._names)
        return plan

    def connections_for(self, sender: object) -> Connections:
        """The connections of a sender, in order, muted or not; not counted as a send."""
        self.purge()
        return (self.plan or self._whole_plan(sender)).connections

    def all_connections(self) -> Connections:
        """Every connection, those of all senders together in order."""
        self.purge()
        with self.lock:
            found = [each for entry in list(self._senders.values()) for each in list(entry.connections.values())]
        return _in_order(found)

    def _whole_plan(self, sender: object) -> Plan:
        changes, own = self.changes, self._existing(sender) or self._everyone
        heard: tuple[_Sender, ...] = (own,)
        if self._hears_subclasses and is_a(sender, type):
            heard += tuple(filter(None, map(self._existing, sender.__mro__[1:])))
        plan = self._plans.get(heard)
        if plan is None:
            with self.lock:
                found = {*self._everyone.connections.values(), *own.connections.values()}
                for base in heard[1:]:
                    found |= {each for each in list(base.connections.values()) if each.options.subclasses}
                plan = Plan(_in_order(found), self._names)
                if changes == self.changes:  # nothing has changed meanwhile, by a finalizer neither
                    self._plans[heard] = plan
        return plan

    # -- for the length of a block ---------------------------------------------------------------------------------

    def remember(self, receiver: Receiver, sender: object, uid: Hashable) -> Callable[[], object]:
        """Keep what is connected under an identity, or that nobody is; the result makes it so again."""
        with self.lock:
            known, target = self.find(key_of(receiver, uid), sender)
            if known is None:
                return partial(self.disconnect, receiver, sender, uid)
            return partial(self.put_back, known, target, sender, known.options, known.shape)

    def put_back(self, connection: Connection, _: object, sender: object, options: Options, shape: Shape) -> None:
        """Make a connection what it was, its place included. The one that has its identity now, if any, ends.

        `_` is the receiver: whoever keeps the arguments of this call keeps it alive.
        """
        with self.lock:
            connection.set_options(options, shape)
            self.add(connection, sender, connection.order)

    def connected(self, receiver: F, sender: object, uid: Hashable, connect: Callable[[], object]) -> Generator[F]:
        """Connect in a block, then restore what was before. Blocks may overlap and end in any order."""
        identity = key_of(receiver, uid), sender_key(sender)
        with self.lock:
            restore = self.remember(receiver, sender, uid)
            connect()
            blocks = self.blocks.setdefault(identity, {})  # in the order of entering; whether they are open
            blocks[restore] = True
        yield receiver
        with self.lock:
            blocks[restore] = False
            while blocks and not blocks[latest := next(reversed(blocks))]:
                del blocks[latest]
                latest()
            if not blocks:
                self.blocks.pop(identity, None)

    def muted(self, receivers: tuple[Receiver, ...], *, everywhere: bool) -> Generator[None]:
        """Mute receivers, or all, in a block."""
        mute = Mute(receivers, is_everywhere=everywhere)
        _entered.set(_entered.get() | {mute})
        with self.lock:
            self.mutes |= {mute}
            self._changed(self._everyone)
        yield
        _entered.set(_entered.get() - {mute})
        with self.lock:
            self.mutes -= {mute}
            self._changed(self._everyone)


class Block(AbstractContextManager[T_co]):
    """Runs a generator to its `yield`, and to its end when the block ends. For one use.

    It is no decorator: on an `async def` it would end before the body runs.
    """

    def __init__(self, steps: Generator[T_co]) -> None:
        self._steps = steps

    def __enter__(self) -> T_co:
        if getgeneratorstate(self._steps) != GEN_CREATED:
            raise RuntimeError("this block can be entered once; make another one")
        return next(self._steps)

    def __exit__(self, *_: object) -> None:
        if getgeneratorstate(self._steps) == GEN_SUSPENDED:  # it was entered
            next(self._steps, None)

    def __call__(self, function: object) -> None:
        raise TypeError(f"this is no decorator: write the `with` block inside of {describe(function)}")


class Mute:
    """Hides receivers, or all, from the plans that are made while it is in force."""

    def __init__(self, receivers: tuple[Receiver, ...], *, is_everywhere: bool) -> None:
        self.is_everywhere = is_everywhere
        self._keys = frozenset(map(identify, receivers))  # the block keeps them alive, so that their ids stay theirs

    def hides(self, connection: Connection) -> bool:
        """Whether a connection is left out of a plan."""
        return not self._keys or identify(connection.target()) in self._keys


# The mutes that the current context is inside of. Contexts are copied, so a task may keep a mute that has ended: the
# registry does not apply it any more. There are no tokens: a pytest fixture leaves its block in another context.
_entered: ContextVar[frozenset[Mute]] = ContextVar("asignals_muted", default=frozenset())


def _in_order(connections: Iterable[Connection]) -> Connections:
    alive = [each for each in connections if each.target() is not None]
    return tuple(sorted(alive, key=lambda each: (-each.options.priority, each.order)))


def _on_death(registry: ref[Registry], thing: Reference) -> None:
    """The callback of the weak references: runs in any thread, wherever the last reference is dropped."""
    home = registry()
    if home is not None and (not isinstance(thing, Connection) or thing.is_live):  # else it is not connected
        home._dead.append(thing)
        home.plan = None
        if thing.order == home._latest and objects.is_dying_at(thing.code, thing.offset):
            home._warn_lost(thing, "died in the statement that connects it")
