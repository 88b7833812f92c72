"""Who is connected to a signal: an index by sender, and an immutable plan for each sender, made when it is needed.

A *plan* has the subscribers that a send to one sender calls: those of all senders, those of this one and, with
`subclasses`, those of its base classes, in order. Plans are replaced and never changed, so a send under way keeps the
one that it began with; a subscriber that ends meanwhile says so itself.

Invariants:

- Every change happens under `lock` and is counted in `changes`, after it was made.
- A sender's plan is fresh while `made_at` equals `_shared_changes`; a change of its own subscribers sets it to `None`.
- `plan` is the plan of all senders when no sender has subscribers of its own and nothing is muted; else it is `None`.
- Weak-reference callbacks run anywhere, in the middle of a locked section and in any thread: they append to `_dead`,
  and set `plan` to `None`, so that the next send comes to `plan_for` and purges.
- The lock is re-entrant, because the garbage collector may run a finalizer that connects or disconnects here. Whatever
  iterates over a dict therefore copies it first, and what may have been added meanwhile is added by `setdefault`.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter, deque
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import ref

from asignals._core.connection import Connection, Kind, Options, Style, Subscriber, make_connection, style_of
from asignals._core.loops import new_lock
from asignals._core.references import (
    EVERYONE,
    HeldSender,
    WeakSender,
    describe,
    identify,
    is_a,
    is_running,
    refer_to_sender,
    sender_key,
    warn_lost,
)
from asignals._core.written import write_choose, write_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator
    from contextvars import Context
    from types import CodeType, FrameType

    from asignals._core.connection import Subscribers
    from asignals._core.signal import Signal
    from asignals._core.signatures import Names, Receiver, Shape
    from asignals._core.written import Loop

F = TypeVar("F", bound="Receiver")
S = TypeVar("S", bound=Subscriber)
T = TypeVar("T")


class Plan:
    """The subscribers of one sender in order, with the loops that are written for them when they are first used."""

    __slots__ = ("_names", "_style", "loop", "robust_loop", "subscribers")

    def __init__(self, subscribers: Subscribers, names: Names | None) -> None:
        self.subscribers: Subscribers = subscribers
        self.loop: Loop | None = None
        self.robust_loop: Loop | None = None
        self._names: Names = names or ()
        self._style = _most_common_style(subscribers)
        for each in subscribers:
            if each.style is not None and each.style.wanted != self._style.wanted:
                each.choose = write_choose(self._names, each.style.wanted)

    def write_loop(self) -> Loop:
        """The loop of `send`."""
        self.loop = write_loop(self._names, self._style, robust=False)
        return self.loop

    def write_robust_loop(self) -> Loop:
        """The loop of `send_robust`."""
        self.robust_loop = write_loop(self._names, self._style, robust=True)
        return self.robust_loop


_ANY_STYLE = style_of(Kind.COROUTINE_FUNCTION, None)


def _most_common_style(subscribers: Subscribers) -> Style:
    """The style of most receivers, of those that take the arguments that most of them take."""
    styles = Counter(each.style for each in subscribers if each.style is not None)
    wanted: Counter[Any] = Counter()
    for style, count in styles.items():
        wanted[style.wanted] += count
    return max(styles, key=lambda style: (wanted[style.wanted], styles[style]), default=_ANY_STYLE)


class _Sender:
    """The subscribers of one sender, and its plan with the count of shared changes that it was made at."""

    __slots__ = ("made_at", "plan", "source", "subscribers")

    def __init__(self, source: WeakSender | HeldSender) -> None:
        self.source = source
        self.subscribers: dict[Hashable, Subscriber] = {}
        self.plan: Plan | None = None
        self.made_at: int | None = None


class Snapshot(NamedTuple):
    """A connection as it was, or that there was none; keeps the receiver alive."""

    key: Hashable
    sender: object
    connection: Connection | None
    receiver: Receiver | None
    state: tuple[Options, Shape] | None

    @property
    def place(self) -> Hashable:
        """The identity, sender included; the sender lives as long as this."""
        return self.key, sender_key(self.sender)


def key_of(receiver: Receiver | None, uid: Hashable) -> Hashable:
    """The key of a connection among those of its sender."""
    return ("uid", uid) if receiver is None or uid is not None else identify(receiver)


def _rank(subscriber: Subscriber) -> tuple[float, int]:
    return -subscriber.options.priority, subscriber.order


class Registry:
    """The subscribers of one signal. Safe to use from any thread and from finalizers."""

    def __init__(self, signal: ref[Signal[..., Any]], names: Names | None) -> None:
        self.plan: Plan | None = None
        self.changes = 0  # of any subscriber, and of mutes
        self.lock: AbstractContextManager[bool] = new_lock()
        self.blocks: dict[Hashable, list[_Block]] = {}  # of `connected`, by the identity that they concern
        self.mutes: tuple[Mute, ...] = ()
        self._signal = signal
        self._names = names
        self._everyone = _Sender(EVERYONE)
        self._senders: dict[Hashable, _Sender] = {}
        self._orders = itertools.count()
        self._next_order = 0
        self._sent_before = 0  # the signal was sent since all subscribers of a lower order were connected
        self._shared_changes = 0  # those that concern the plans of more than one sender
        self._with_subclasses = 0
        self._dead: deque[Connection | WeakSender] = deque()
        self._on_death = partial(_on_death, ref(self))

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
            if known is not None and target is not None:
                is_same = identify(target) == identify(receiver)
                if is_same or not replace:
                    if is_same:
                        self.set_options(known, options, shape)
                    return known
                self.remove(known)
            connection = make_connection(receiver, options, shape, place, self._on_death)
            connection.key = key
            added = self.add(connection, sender, None if known is None else known.order)
            if added is connection:
                return added
        return self.connect(receiver, sender, uid, options, shape, place, replace=replace)

    def disconnect(self, receiver: Receiver | None, sender: object, uid: Hashable) -> bool:
        """End a connection; `False` when there was none."""
        self.purge()
        with self.lock:
            known, _ = self.find(key_of(receiver, uid), sender)
            return known is not None and self.remove(known)

    def add(self, subscriber: S, sender: object, order: int | None = None) -> S:
        """Add a subscriber at the end of the order, or at a place that it had before; returns the one connected."""
        with self.lock:
            entry = self._entry_for(sender, subscriber)
            subscriber.source = entry.source
            if order is None:
                order = next(self._orders)
                self._next_order = order + 1
            subscriber.order = order
            subscriber.is_live = True
            kept = entry.subscribers.setdefault(subscriber.key, subscriber)
            if kept is not subscriber:  # a finalizer has just connected the same
                subscriber.end()
                return kept  # type: ignore[return-value]  # one key, one kind
            self._with_subclasses += subscriber.options.subclasses
            if entry is not self._everyone:  # a finalizer may have emptied and dropped it meanwhile
                self._senders[entry.source.key] = entry
            self._changed(entry, subscriber.options.subclasses)
            return subscriber

    def set_options(self, connection: Connection, options: Options, shape: Shape) -> None:
        """Give a connection new options in place."""
        with self.lock:
            entry = self._entry_of(connection)
            were_shared = connection.options.subclasses
            connection.set_options(options, shape)
            if entry is not None and self._entry_of(connection) is None:  # a finalizer has disconnected it
                self._with_subclasses -= were_shared
                connection.end()
            elif entry is not None:
                self._with_subclasses += options.subclasses - were_shared
                self._changed(entry, were_shared or options.subclasses)

    def find(self, key: Hashable, sender: object) -> tuple[Connection | None, Receiver | None]:
        """The connection under this identity, if it is a live one, and its receiver."""
        with self.lock:
            entry = self._existing(sender)
            found = None if entry is None else entry.subscribers.get(key)
            if not isinstance(found, Connection):
                return None, None
            target = found.target()
            if target is None:  # its callback is still to come, and its id may be in use again
                self.remove(found)
                return None, None
            return found, target

    def remove(self, subscriber: Subscriber) -> bool:
        """End a subscriber; `False` when it had ended before."""
        with self.lock:
            was_live = subscriber.is_live
            subscriber.end()
            entry = self._entry_of(subscriber)
            if entry is None:
                return was_live
            del entry.subscribers[subscriber.key]
            self._with_subclasses -= subscriber.options.subclasses
            self._changed(entry, subscriber.options.subclasses)
            if not entry.subscribers:
                self._drop(entry)
            return was_live

    def _entry_of(self, subscriber: Subscriber) -> _Sender | None:
        source = subscriber.source
        entry = self._everyone if source is EVERYONE else self._senders.get(source.key)
        return entry if entry is not None and entry.subscribers.get(subscriber.key) is subscriber else None

    def _entry_for(self, sender: object, subscriber: Subscriber | None = None) -> _Sender:
        entry = self._existing(sender)
        if entry is None:
            place = (subscriber.code, subscriber.instruction) if isinstance(subscriber, Connection) else (None, 0)
            source = refer_to_sender(sender, self._on_death, *place)
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

    def _changed(self, entry: _Sender, is_shared: bool) -> None:  # noqa: FBT001  called with an option's value
        entry.made_at = None
        self.changes += 1
        if is_shared or entry is self._everyone:
            self._shared_changes += 1
        self.plan = None

    # -- what has died ---------------------------------------------------------------------------------------------

    def purge(self) -> None:
        """Forget receivers and senders that have died, and warn of receivers whose death is a surprise."""
        if not self._dead:
            return
        lost = []
        with self.lock:
            while self._dead:
                thing = self._dead.popleft()
                if isinstance(thing, WeakSender):
                    self._forget_sender(thing)
                elif (
                    self.remove(thing)
                    and isinstance(thing, Connection)
                    and thing.is_easily_lost
                    and self.is_lost(thing)
                ):
                    lost.append(thing)
        for connection in lost:
            self.warn_lost(connection, "died before the signal was sent")

    def _forget_sender(self, source: WeakSender) -> None:
        entry = self._senders.get(source.key)
        if entry is None or entry.source is not source:
            return
        self._drop(entry)
        self.changes += 1
        for subscriber in list(entry.subscribers.values()):
            subscriber.end()
            self._with_subclasses -= subscriber.options.subclasses

    def is_lost(self, thing: Connection | WeakSender) -> bool:
        """Whether the signal was not sent since something that has died was connected, and its sender lives on."""
        if isinstance(thing, WeakSender):
            return True
        return thing.order >= self._sent_before and (thing.source is EVERYONE or thing.source() is not None)

    def warn_lost(self, thing: Connection | WeakSender, how: str) -> None:
        """Warn, at the line that connected it, of a receiver or a sender that died before any send reached it."""
        signal = self._signal()
        if signal is None or thing.code is None:
            return
        if isinstance(thing, Connection):
            thing.is_easily_lost = False  # one warning is enough
            text = f"receiver {thing.describe()} of signal {signal.name!r} {how}: nothing else refers to it."
        else:
            text = f"the sender that a receiver of signal {signal.name!r} listens to {how}: nothing else refers to it."
        del signal  # a warning filter may raise, and its traceback would keep the signal
        warn_lost(text, thing.code, thing.instruction)

    # -- plans -----------------------------------------------------------------------------------------------------

    def plan_for(self, sender: object) -> Plan:
        """The plan of a send to this sender, with muting applied. A subscriber may end or die before its turn."""
        if self._dead:
            self.purge()
        self._sent_before = self._next_order
        entry = self._entry_to_plan(sender)
        plan = entry.plan
        if plan is None or entry.made_at != self._shared_changes:
            plan = self._make_plan(entry, sender)
        for mute in self.mutes:
            plan = mute.apply(plan, self._names)
        return plan

    def subscribers_for(self, sender: object) -> Subscribers:
        """The subscribers of a sender, in order, muted or not; not counted as a send."""
        self.purge()
        with self.lock:
            return _in_order(self._gather(self._entry_to_plan(sender), sender))

    def has_subscribers(self, sender: object) -> bool:
        """Whether a plan for this sender has a subscriber, muted or not."""
        if self._dead:
            self.purge()
        entry = self._entry_to_plan(sender)
        is_fresh = entry.plan is not None and entry.made_at == self._shared_changes
        subscribers = entry.plan.subscribers if is_fresh else self._gather(entry, sender)  # type: ignore[union-attr]
        return any(map(_is_alive, subscribers))

    def all_subscribers(self) -> Subscribers:
        """Every subscriber, those of all senders together in order."""
        self.purge()
        with self.lock:
            entries = [self._everyone, *self._senders.values()]
            return _in_order(each for entry in entries for each in list(entry.subscribers.values()))

    def _entry_to_plan(self, sender: object) -> _Sender:
        if not self._senders:
            return self._everyone
        entry = self._existing(sender)
        if entry is not None:
            return entry
        if self._with_subclasses and is_a(sender, type):
            with self.lock:
                return self._entry_for(sender)  # to keep the plan in, until the class dies
        return self._everyone

    def _make_plan(self, entry: _Sender, sender: object) -> Plan:
        with self.lock:
            while True:
                changes, shared = self.changes, self._shared_changes
                plan = Plan(_in_order(self._gather(entry, sender)), self._names)
                if changes == self.changes:  # no finalizer changed anything meanwhile
                    break
            entry.plan = plan
            entry.made_at = shared
            if not self._senders and not self.mutes:
                self.plan = plan
                if self._dead:  # a callback came between, and expects the next send in plan_for
                    self.plan = None
            return plan

    def _gather(self, entry: _Sender, sender: object) -> list[Subscriber]:
        with self.lock:
            found = list(self._everyone.subscribers.values())
            if entry is not self._everyone:
                found += entry.subscribers.values()
                if self._with_subclasses and is_a(sender, type):
                    found += self._inherited(sender)
            return found

    def _inherited(self, sender: type) -> list[Subscriber]:
        above = (self._existing(base) for base in sender.__mro__[1:])
        return [
            each for entry in above if entry for each in list(entry.subscribers.values()) if each.options.subclasses
        ]

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
            if was.connection is None or was.state is None:
                return
            self.set_options(was.connection, *was.state)
            if known is not was.connection:
                self.add(was.connection, was.sender, was.connection.order)

    @contextmanager
    def connected(self, receiver: F, sender: object, uid: Hashable, connect: Callable[[], object]) -> Iterator[F]:
        """Connect for a block, then restore what was before. Blocks of one identity may end in any order."""
        with self.lock:
            block = _Block(self.snapshot(receiver, sender, uid))
            connect()
            blocks = self.blocks.setdefault(block.before.place, [])
            blocks.append(block)
        try:
            yield receiver
        finally:
            with self.lock:
                index = blocks.index(block)
                del blocks[index]
                if index < len(blocks):
                    blocks[index].before = block.before  # the block entered next restores what was before this one
                else:
                    self.restore(block.before)
                if not blocks:
                    self.blocks.pop(block.before.place, None)

    @contextmanager
    def muted(self, receivers: Iterable[Receiver], *, everywhere: bool) -> Iterator[None]:
        """Apply a mute to every plan for a block."""
        mute = Mute(receivers, everywhere=everywhere)
        mute.enter()
        with self.lock:
            self._set_mutes((*self.mutes, mute))
        try:
            yield
        finally:
            self._unmute(mute)
            mute.leave()

    def keep_muted(self, context: Context) -> Callable[[], None] | None:
        """Keep what is muted now muted in another context, until the returned function is called."""
        mutes = [mute.copy_to(context) for mute in self.mutes if mute.is_in_force()]
        if not mutes:
            return None
        with self.lock:
            self._set_mutes((*self.mutes, *mutes))
        return partial(self._unmute, *mutes)

    def _unmute(self, *mutes: Mute) -> None:
        with self.lock:
            self._set_mutes(tuple(mute for mute in self.mutes if mute not in mutes))
        for mute in mutes:
            mute.clear()

    def _set_mutes(self, mutes: tuple[Mute, ...]) -> None:
        with self.lock:
            self.mutes = mutes
            self.changes += 1
            self.plan = self._everyone.made_at = None


class Scope(AbstractContextManager[T]):
    """A context manager that is refused as a decorator, which on an `async def` would end before its body runs."""

    def __init__(self, make: Callable[[], AbstractContextManager[T]]) -> None:
        self._make = make
        self._stack: list[AbstractContextManager[T]] = []

    def __enter__(self) -> T:
        block = self._make()
        entered = block.__enter__()
        self._stack.append(block)
        return entered

    def __exit__(self, *error: Any) -> None:
        self._stack.pop().__exit__(*error)

    def __call__(self, function: object) -> None:
        msg = f"not a decorator: write the `with` block inside of {describe(function)}"
        raise TypeError(msg)


class _Block:
    """One `connected` block under way."""

    __slots__ = ("before",)

    def __init__(self, before: Snapshot) -> None:
        self.before = before


# The mutes that the current context is inside of. Contexts are copied, so a task may keep a mute that has ended: the
# registry does not apply it any more. There are no tokens: a pytest fixture leaves its block in another context.
_entered: ContextVar[tuple[Mute, ...]] = ContextVar("asignals_muted", default=())


class Mute:
    """One `muted` block: hides receivers from the plans that are made inside it."""

    __slots__ = ("_everywhere", "_is_of_all", "_keys", "_receivers")

    def __init__(self, receivers: Iterable[Receiver], *, everywhere: bool) -> None:
        self._receivers = tuple(receivers)  # kept alive, because their ids are compared
        self._is_of_all = not self._receivers
        self._keys: frozenset[Hashable] = frozenset(map(identify, self._receivers))
        self._everywhere = everywhere

    def is_in_force(self) -> bool:
        """Whether this mute concerns the current context."""
        return self._everywhere or self in _entered.get()

    def apply(self, plan: Plan, names: Names | None) -> Plan:
        """What is left of a plan in the current context."""
        if not self.is_in_force():
            return plan
        left = () if self._is_of_all else plan.subscribers
        return Plan(tuple(each for each in left if identify(each.target()) not in self._keys), names)

    def enter(self) -> None:
        """Take effect in the current context."""
        _entered.set((*_entered.get(), self))

    def copy_to(self, context: Context) -> Mute:
        """A mute of the same receivers in one other context, which outlasts this one."""
        other = Mute(self._receivers, everywhere=False)
        context.run(other.enter)
        return other

    def leave(self) -> None:
        """Forget this block in the current context, if it was entered there."""
        _entered.set(tuple(mute for mute in _entered.get() if mute is not self))

    def clear(self) -> None:
        """Keep no receiver alive: copies of a context that was in the block may last long."""
        self._keys, self._receivers = frozenset(), ()


def _in_order(subscribers: Iterable[Subscriber]) -> Subscribers:
    return tuple(sorted(filter(_is_alive, subscribers), key=_rank))


def _is_alive(subscriber: Subscriber) -> bool:
    return subscriber.is_live and subscriber.target() is not None


_CALLBACKS = ("weakref", "asignals._core.connection")  # what stands between a WeakMethod and this module


def _on_death(registry: ref[Registry], thing: Connection | WeakSender) -> None:
    """The callback of the weak references: runs in any thread, wherever the last reference is dropped."""
    home = registry()
    if home is None:
        return
    home._dead.append(thing)
    home.plan = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in _CALLBACKS:
        frame = frame.f_back
    if frame is not None and is_running(frame, thing.code, thing.instruction) and home.is_lost(thing):
        home.warn_lost(thing, "died in the statement that connects it")
