"""Who is connected to a signal: an index by sender, and an immutable plan for each sender, made when it is needed.

A *plan* has the connections that a send to one sender calls: those of all senders, those of this one and, with
`subclasses`, those of its base classes, in order. Plans are replaced and never changed, so a send under way keeps the
one that it began with; a connection that ends meanwhile says so itself.

Invariants:

- Every change happens under `lock` and is counted in `changes`, after it was made.
- A sender's plan is fresh while its `made_at` equals `_shared_changes`; a change of its own connections removes it.
- `plan` is the plan of all senders when no sender has connections of its own and nothing is muted; else it is `None`.
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
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from weakref import ref

from asignals._core import loops, references
from asignals._core.connection import Connection, Connections, Options, key_of
from asignals._core.references import Place, Reference, identify, is_a, sender_key
from asignals._core.signatures import Names, Receiver, Shape
from asignals._core.written import Loop, is_often_sent, write_choose, write_loop

if TYPE_CHECKING:
    from asignals._core.signal import Signal

T_co = TypeVar("T_co", covariant=True)
F = TypeVar("F", bound=Receiver)


class Plan:
    """The connections of one sender in order, with the loops that are written for them when they are first used."""

    def __init__(self, connections: Connections, names: Names | None, made_at: int) -> None:
        self.connections: Connections = connections
        self.made_at: int = made_at  # in shared changes of the registry
        self.loop: Loop | None = None
        self.robust_loop: Loop | None = None
        self._loops: dict[tuple[bool, bool], Loop] = {}  # robust or not, watched or not
        self._names = names
        styles = Counter(each.style for each in connections if each.style is not None)
        self._style = max(styles, key=styles.__getitem__, default=Shape(is_async=True, wanted=None))
        for each in connections:
            if each.style is not None and each.style.wanted != self._style.wanted:
                each.choose = write_choose(names or (), each.style.wanted)

    def write_loop(self, sent: Iterable[str] = (), *, robust: bool, watched: bool = False) -> Loop:
        """The loop of `send` or of `send_robust`, for the keywords that an undeclared signal sends."""
        known = self._loops.get((robust, watched))
        if known is not None:
            return known
        names = self._names
        if names is None and is_often_sent(plain := tuple(map(str.__str__, sent))):  # others write what they like
            names = plain
        loop = write_loop(names, self._style, robust, watched)
        if self._names is not None:
            self._loops[robust, watched] = loop
        if names is not None and not watched:
            setattr(self, "robust_loop" if robust else "loop", loop)
        return loop


class _Sender:
    """The connections of one sender, and the plan of a send to it."""

    def __init__(self, sender: object, on_death: Callable[[Any], object], place: Place) -> None:
        self.source = Reference(sender, on_death, place, sender_key(sender))
        self.connections: dict[Hashable, Connection] = {}
        self.plan: Plan | None = None


_NOWHERE: Place = (key_of.__code__, 0)  # for a sender that nobody has connected to: no statement is there


class Registry:
    """The connections of one signal. Safe to use from any thread and from finalizers."""

    lock: ClassVar[Any] = loops.lock

    def __init__(self, signal: ref[Signal[..., Any]], names: Names | None) -> None:
        self.plan: Plan | None = None
        self.changes: int = 0  # of any connection, and of what is muted
        self.mutes: dict[Mute, tuple[Receiver, ...]] = {}  # whose ids they know, so that these stay alive
        self.blocks: dict[Hashable, dict[int, Callable[[], object]]] = {}  # by the identity that they connect
        self.on_death: Callable[[Any], object] = partial(_on_death, ref(self))
        self._signal = signal
        self._names = names
        self._everyone = _Sender(None, self.on_death, _NOWHERE)
        self._senders: dict[Hashable, _Sender] = {self._everyone.source.key: self._everyone}
        self._next_order = 0
        self._sent_before = 0  # the signal was sent since all connections of a lower order were made
        self._shared_changes = 0  # those that concern the plans of more than one sender
        self._hears_subclasses = False
        self._dead: deque[Reference] = deque()

    # -- connecting ------------------------------------------------------------------------------------------------

    def connect(self, connection: Connection, sender: object, *, replace: bool) -> None:
        """Add a connection or, if its receiver is connected already, give that connection the new options."""
        self.purge()
        with self.lock:
            known, target = self.find(connection.key, sender)
            if known is not None and identify(target) == identify(connection.target()):
                self.set_options(known, connection.options, connection.shape)
            elif known is None or replace:
                self.add(connection, sender, None if known is None else known.order)

    def disconnect(self, receiver: Receiver | None, sender: object, uid: Hashable) -> bool:
        """End a connection; `False` when there was none."""
        self.purge()
        with self.lock:
            known, _ = self.find(key_of(receiver, uid), sender)
            return known is not None and self.remove(known)

    def add(self, connection: Connection, sender: object, order: int | None = None) -> None:
        """Add a connection at the end of the order, or at a place of it, and end the one that had its identity."""
        with self.lock:
            entry = self._entry_for(sender, (connection.code, connection.line))
            replaced = entry.connections.get(connection.key)
            if order is None:
                order = self._next_order
                self._next_order += 1
            connection.source, connection.order, connection.is_live = entry.source, order, True
            entry.connections[connection.key] = connection
            self._senders[entry.source.key] = entry  # a finalizer may have dropped it meanwhile
            self._changed(connection)
            if replaced is not None and replaced is not connection:
                replaced.end()

    def set_options(self, connection: Connection, options: Options, shape: Shape) -> None:
        """Give a connection new options in place."""
        with self.lock:
            self._changed(connection)
            connection.set_options(options, shape)
            self._changed(connection)

    def find(self, key: Hashable, sender: object) -> tuple[Connection | None, Any]:
        """The connection under this identity and its receiver, if that lives: its id may be in use again."""
        entry = self._existing(sender)
        found = None if entry is None else entry.connections.get(key)
        target = None if found is None else found.target()
        return (None, None) if target is None else (found, target)

    def remove(self, connection: Connection) -> bool:
        """End a connection; `False` when it had ended before."""
        with self.lock:
            was_live, entry = connection.is_live, self._senders.get(connection.source.key)
            connection.end()
            if entry is not None and entry.connections.get(connection.key) is connection:
                del entry.connections[connection.key]
                if not entry.connections and entry is not self._everyone:
                    del self._senders[connection.source.key]
                self._changed(connection)  # frees plans, so finalizers may run: they find everything changed
            return was_live

    def _existing(self, sender: object) -> _Sender | None:
        key = sender_key(sender)
        entry = self._senders.get(key)
        # The id of a dead sender may be in use again.
        if entry is None or type(key) is tuple or entry.source() is sender or entry.source.target() is sender:
            return entry
        return None

    def _entry_for(self, sender: object, place: Place) -> _Sender:
        made = self._existing(sender) or _Sender(sender, self.on_death, place)
        return self._existing(sender) or made  # a finalizer may have added one meanwhile

    def _changed(self, connection: Connection) -> None:
        self.changes += 1
        self.plan = None
        entry = self._senders.get(connection.source.key)
        if entry is not None:
            entry.plan = None
        if connection.options.subclasses or entry is self._everyone:
            self._hears_subclasses |= connection.options.subclasses
            self._shared_changes += 1

    # -- what has died ---------------------------------------------------------------------------------------------

    def purge(self) -> None:
        """Forget receivers and senders that have died, and warn of receivers whose death is a surprise."""
        while self._dead:
            with suppress(IndexError):  # another thread was faster
                thing = self._dead.popleft()
                is_lost = isinstance(thing, Connection) and thing.is_easily_lost and self.is_unheard(thing)
                if isinstance(thing, Connection):
                    self.remove(thing)
                else:
                    self._forget_sender(thing)
                if is_lost:
                    self.warn_lost(thing, "died before the signal was sent")

    def _forget_sender(self, source: Reference) -> None:
        with self.lock:
            entry = self._senders.get(source.key)
            if entry is not None and entry.source is source:
                del self._senders[source.key]
                self.changes += 1
                for connection in list(entry.connections.values()):
                    connection.end()

    def is_unheard(self, thing: Reference) -> bool:
        """Whether something that has died was connected, and no send was made since, and its sender lives on."""
        if not isinstance(thing, Connection):
            return True
        return thing.is_live and thing.order >= self._sent_before and thing.source() is not None

    def warn_lost(self, thing: Reference, how: str) -> None:
        """Warn, at the line that connected it, of a receiver or a sender that died before any send reached it."""
        name = getattr(self._signal(), "name", None)  # None where the signal has died as well
        what = "the sender of a receiver"
        if isinstance(thing, Connection):
            thing.is_easily_lost = False  # one warning is enough
            what = f"receiver {thing.describe()}"
        where = thing.code.co_filename, thing.line
        if name is not None:
            references.warn_lost(f"{what} of signal {name!r} {how}: nothing else refers to it.", *where)

    # -- plans -----------------------------------------------------------------------------------------------------

    def plan_for(self, sender: object) -> Plan:
        """The plan of a send to this sender, with muting applied. A connection may end or die before its turn."""
        if self._dead:
            self.purge()
        self._sent_before = self._next_order
        plan = self._whole_plan(sender)
        if len(self._senders) == 1:
            self._offer(plan)
        for mute in self.mutes:
            if mute.is_in_force():
                with self.lock:  # making a plan prepares its connections, which nobody may end meanwhile
                    plan = Plan(tuple(each for each in plan.connections if not mute.hides(each)), self._names, 0)
        return plan

    def connections_for(self, sender: object) -> Connections:
        """The connections of a sender, in order, muted or not; not counted as a send."""
        plan = self.plan
        if plan is None:
            self.purge()
            plan = self._whole_plan(sender)
        return plan.connections

    def all_connections(self) -> Connections:
        """Every connection, those of all senders together in order."""
        self.purge()
        with self.lock:
            return _in_order(
                each for entry in list(self._senders.values()) for each in list(entry.connections.values())
            )

    def _whole_plan(self, sender: object) -> Plan:
        entry = self._existing(sender) or self._everyone
        if entry is self._everyone and len(self._senders) > 1 and self._hears_subclasses and is_a(sender, type):
            with self.lock:  # to keep the plan in, until the class dies
                entry = self._entry_for(sender, _NOWHERE)
                self._senders[entry.source.key] = entry
        plan: Plan | None = entry.plan
        if plan is not None and plan.made_at == self._shared_changes:
            return plan
        with self.lock:
            changes, shared = self.changes, self._shared_changes
            plan = Plan(_in_order(self._gather(entry, sender)), self._names, shared)
            if changes == self.changes:  # no finalizer changed anything meanwhile
                entry.plan = plan
            return plan

    def _offer(self, plan: Plan) -> None:
        """Let the next sends take this plan without asking `plan_for`, where it holds for every sender."""
        with self.lock:
            is_fresh = self._everyone.plan is plan and plan.made_at == self._shared_changes
            if is_fresh and len(self._senders) == 1 and not self.mutes:
                self.plan = plan
            if self._dead:  # a callback came between, and expects the next send in plan_for
                self.plan = None

    def _gather(self, entry: _Sender, sender: object) -> list[Connection]:
        found = list(self._everyone.connections.values())
        if entry is not self._everyone:
            found += entry.connections.values()
        if self._hears_subclasses and is_a(sender, type):
            above = [self._existing(base) for base in sender.__mro__[1:]]
            inherited = [each for base in above if base is not None for each in list(base.connections.values())]
            found += [each for each in inherited if each.options.subclasses]
        return found

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
            self.set_options(connection, options, shape)
            self.add(connection, sender, connection.order)

    def connected(self, receiver: F, sender: object, uid: Hashable, connect: Callable[[], object]) -> Generator[F]:
        """Connect in a block, then restore what was before. Blocks may overlap and end in any order."""
        identity = key_of(receiver, uid), sender_key(sender)
        with self.lock:
            restore = self.remember(receiver, sender, uid)
            connect()
            blocks = self.blocks.setdefault(identity, {})
            number = max(blocks, default=0) + 1
            blocks[number] = restore
        yield receiver
        with self.lock:
            restore = blocks.pop(number)
            later = next((each for each in blocks if each > number), None)
            if later is not None:
                blocks[later] = restore  # the block that was entered next restores what was before this one
            else:
                if not blocks:
                    del self.blocks[identity]
                restore()

    def muted(self, receivers: tuple[Receiver, ...], *, everywhere: bool) -> Generator[None]:
        """Mute receivers, or all, in a block."""
        mute = Mute(receivers, everywhere=everywhere)
        _entered.set((*_entered.get(), mute))
        with self.lock:
            self.mutes = {**self.mutes, mute: receivers}
            self.changes += 1
            self.plan = None
        yield
        _entered.set(tuple(each for each in _entered.get() if each is not mute))
        with self.lock:
            self.mutes = {each: kept for each, kept in self.mutes.items() if each is not mute}
            self.changes += 1
            self.plan = None


class Block(AbstractContextManager[T_co]):
    """Runs a generator to its `yield`, and to its end when the block ends. For one use.

    It is no decorator: on an `async def` it would end before the body runs.
    """

    def __init__(self, steps: Generator[T_co]) -> None:
        self._steps = steps
        self._was_entered = False

    def __enter__(self) -> T_co:
        if self._was_entered:
            raise RuntimeError("this block can be entered once; make another one")
        self._was_entered = True
        return next(self._steps)

    def __exit__(self, *_: object) -> None:
        next(self._steps, None)

    def __call__(self, function: object) -> None:
        raise TypeError(f"this is no decorator: write the `with` block inside of {references.describe(function)}")


# The mutes that the current context is inside of. Contexts are copied, so a task may keep a mute that has ended: the
# registry does not apply it any more. There are no tokens: a pytest fixture leaves its block in another context.
_entered: ContextVar[tuple[Mute, ...]] = ContextVar("asignals_muted", default=())


class Mute:
    """Hides receivers, or all, from the plans that are made while it is in force."""

    def __init__(self, receivers: Iterable[Receiver], *, everywhere: bool) -> None:
        self._keys: frozenset[Hashable] = frozenset(map(identify, receivers))
        self._everywhere = everywhere

    def is_in_force(self) -> bool:
        """Whether this mute concerns the current context."""
        return self._everywhere or self in _entered.get()

    def hides(self, connection: Connection) -> bool:
        """Whether a connection is left out of a plan."""
        return not self._keys or identify(connection.target()) in self._keys


def _in_order(connections: Iterable[Connection]) -> Connections:
    return tuple(sorted(filter(is_alive, connections), key=lambda each: (-each.options.priority, each.order)))


def is_alive(connection: Connection) -> bool:
    """Whether a connection has neither ended nor lost its receiver."""
    return connection.is_live and connection.target() is not None


def _on_death(registry: ref[Registry], thing: Reference) -> None:
    """The callback of the weak references: runs in any thread, wherever the last reference is dropped."""
    home = registry()
    if home is None:
        return
    home._dead.append(thing)
    home.plan = None
    if references.is_dying_at(thing.code, thing.line) and home.is_unheard(thing):
        home.warn_lost(thing, "died in the statement that connects it")
