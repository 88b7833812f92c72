"""Who is connected to a signal: an index by sender, and an immutable plan for each, made when it is first needed.

A *plan* is the tuple of links that a send to one sender walks through: what is connected for all senders, for this
one, and with `subclasses` for its base classes, in order. Plans are never changed, only replaced, so a send under way
keeps the one it started with; a link that ends meanwhile says so itself.

Invariants:

- Every change happens under `lock` and counts in `_changes`. It is announced before it is made, because Ctrl-C may
  interrupt it, and after it, because a finalizer in its middle may have sent; either way no old plan stays in use.
- A bucket's plan is fresh while `made_at` equals `_shared_changes`; a change of its own links sets it to `None`.
- `run` has the plan of all senders when no sender has links of its own and nothing is muted; else it is `None`.
  No run but `_last_run` has links of its own, so that is the one to empty when a link changes.
- Weak-reference callbacks run anywhere, in the middle of a locked section and in any thread: they only append to
  `_dead`, and set `run` to `None` so that the next send comes by and purges.
- The lock is re-entrant because the garbage collector may run a finalizer that connects or disconnects here.
  Whatever iterates over a dict therefore copies it first.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias
from weakref import ref

from asignals._connection import Connection, Options, make_connection
from asignals._refs import EVERYONE, HeldSender, WeakSender, hold_sender, identify, is_a, sender_key

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from contextlib import AbstractContextManager
    from types import CodeType

    from asignals._core.stream import Stream, StreamConnection
    from asignals._receivers import Receiver, Shape
    from asignals._scoped import Mute
    from asignals._signal import Signal


class Link(Protocol):
    """What a plan consists of: connections, and the listening ends of streams."""

    live: bool
    reached: bool
    order: int
    key: Hashable
    source: WeakSender | HeldSender

    @property
    def is_choosy(self) -> bool: ...
    @property
    def is_coroutine(self) -> bool: ...
    @property
    def is_function(self) -> bool: ...
    @property
    def is_method(self) -> bool: ...
    @property
    def is_async(self) -> bool: ...
    @property
    def options(self) -> Options: ...
    @property
    def function(self) -> ref[Any] | None: ...
    def __call__(self) -> Any: ...
    def target(self) -> Any: ...
    def describe(self) -> str: ...
    def end(self) -> None: ...
    async def respond(
        self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]
    ) -> tuple[Any, Any] | None: ...


Plan: TypeAlias = "tuple[Link, ...]"


class Run:
    """A plan, and its links once more if all are called in one way.

    A send walks along `links` without asking each whether it has ended or changed: whoever ends or changes one empties
    `links`, which ends that loop, and the send goes on with what comes `after` the last link, asking each.
    """

    __slots__ = ("is_choosy", "is_coroutine", "is_function", "is_method", "links", "plan")

    def __init__(self, plan: Plan, *, may_be_emptied: bool = False) -> None:
        self.plan: Plan = plan
        self.is_coroutine: bool = may_be_emptied and all(link.is_coroutine for link in plan)
        self.is_function: bool = may_be_emptied and all(link.is_function for link in plan)
        self.is_method: bool = may_be_emptied and all(link.is_method for link in plan)
        self.is_choosy: bool = may_be_emptied and all(link.is_choosy for link in plan)
        is_uniform = self.is_coroutine or self.is_function or self.is_method or self.is_choosy
        self.links: list[Link] = list(plan) if is_uniform else []

    def after(self, link: Link) -> Plan:
        """What comes after a link in the whole plan."""
        return self.plan[self.plan.index(link) + 1 :]


class _Bucket:
    """The links of one sender, and the last plan made for it with the count of shared changes it was made at."""

    __slots__ = ("links", "made_at", "run", "source")

    def __init__(self, source: WeakSender | HeldSender) -> None:
        self.source = source
        self.links: dict[Hashable, Link] = {}
        self.run: Run = Run(())
        self.made_at: int | None = None


class Snapshot(NamedTuple):
    """A connection as it was, or that there was none; keeps the receiver alive."""

    key: Hashable
    sender: object
    connection: Connection | None
    receiver: Receiver | None
    facts: tuple[Options, Shape] | None

    @property
    def place(self) -> Hashable:
        """The identity, sender included; the sender lives as long as this."""
        return self.key, sender_key(self.sender)


def key_of(receiver: Receiver | None, uid: Hashable) -> Hashable:
    """What a connection is filed under."""
    return ("uid", uid) if receiver is None or uid is not None else identify(receiver)


def _rank(link: Link) -> tuple[float, int]:
    return -link.options.priority, link.order


class Registry:
    """The links of one signal. Safe to use from any thread and from finalizers."""

    def __init__(self, on_lost: Callable[..., object]) -> None:
        self.run: Run | None = None
        self._last_run = Run(())
        self.lock: AbstractContextManager[bool] = threading.RLock()
        self._everyone = _Bucket(EVERYONE)
        self._buckets: dict[Hashable, _Bucket] = {}
        self._order = itertools.count()
        self._changes = 0  # of any link
        self._shared_changes = 0  # of links that concern plans of more than one sender
        self._with_subclasses = 0
        self.overlaps: dict[Hashable, Any] = {}  # of `_scoped.connected`
        self.filters: tuple[Mute, ...] = ()
        self._dead: deque[Link | WeakSender] = deque()
        self._on_lost = on_lost
        self._bury = partial(_bury, ref(self), on_lost)

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
        may_surprise: bool,
    ) -> Connection:
        """Add a connection or, where there is one already, give it the new options; returns it."""
        key = key_of(receiver, uid)
        with self.lock:
            known, target = self.find(key, sender)
            if known is not None and target is not None:
                if identify(target) == identify(receiver):
                    self.restyle(known, options, shape)
                return known
            connection = make_connection(receiver, options, shape, key, place, self._bury, may_surprise=may_surprise)
            self.add(connection, sender)
            return connection

    def disconnect(self, receiver: Receiver | None, sender: object, uid: Hashable) -> bool:
        """End a connection; `False` when there was none."""
        with self.lock:
            known, _ = self.find(key_of(receiver, uid), sender)
            return known is not None and self.remove(known)

    def snapshot(self, receiver: Receiver, sender: object, uid: Hashable) -> Snapshot:
        """What is connected under an identity, for `restore`."""
        with self.lock:
            key = key_of(receiver, uid)
            known, target = self.find(key, sender)
            return Snapshot(key, sender, known, target, None if known is None else known.facts)

    def restore(self, was: Snapshot) -> None:
        """Make a connection what it was, its place included."""
        with self.lock:
            known, _ = self.find(was.key, was.sender)
            if known is not None and known is not was.connection:
                self.remove(known)
            if was.connection is None or was.facts is None:
                return
            self.restyle(was.connection, *was.facts)
            if known is not was.connection:
                self.add(was.connection, was.sender, was.connection.order)

    def listen(self, kind: type[StreamConnection], stream: Stream, sender: object) -> StreamConnection:
        """Link a stream, by a link of its own that refers to it weakly."""
        link: Any = _stream_link(kind)(stream, self._bury)  # type: ignore[arg-type]
        link.is_live = link.reached = True
        link.key = ("stream", id(link))
        self.add(link, sender)
        connection: StreamConnection = link
        return connection

    def add(self, link: Link, sender: object, order: int | None = None) -> None:
        """Put a new link at the end of its sender's order, or at a place it had before."""
        with self.lock:
            bucket = self._bucket_for(sender)
            if link.key in bucket.links:  # a finalizer has just connected the same
                self.remove(bucket.links[link.key])
                bucket = self._bucket_for(sender)
            link.source = bucket.source
            link.order = next(self._order) if order is None else order
            self._announce(bucket, link.options.subclasses)
            self._with_subclasses += link.options.subclasses
            bucket.links[link.key] = link
            if bucket is not self._everyone:  # again, for a finalizer may have emptied and dropped it meanwhile
                self._buckets[bucket.source.key] = bucket
            self._announce(bucket, link.options.subclasses)

    def restyle(self, connection: Connection, options: Options, shape: Shape) -> None:
        """Give a connection new options in place."""
        with self.lock:
            was = connection.options.subclasses
            bucket = self._filed(connection)
            if bucket is None:
                connection.restyle(options, shape)
                return
            self._announce(bucket, was or options.subclasses)
            self._with_subclasses += options.subclasses
            connection.restyle(options, shape)
            # A finalizer of the receiver may have disconnected it.
            self._with_subclasses -= options.subclasses if self._filed(connection) is None else was
            self._announce(bucket, was or options.subclasses)

    def find(self, key: Hashable, sender: object) -> tuple[Connection | None, Receiver | None]:
        """The connection under this identity, if it still is one, and its receiver."""
        with self.lock:
            self.purge()
            bucket = self._existing(sender)
            link = None if bucket is None else bucket.links.get(key)
            if not isinstance(link, Connection):
                return None, None
            target = link.target()
            if target is None:  # its callback is still to come, and its id may be in use again
                self.remove(link)
                return None, None
            return link, target

    def remove(self, link: Link) -> bool:
        """End a link; `False` when somebody else did before."""
        with self.lock:
            was_live = link.live
            bucket = self._filed(link)
            if bucket is not None:
                self._announce(bucket, link.options.subclasses)
            link.end()
            bucket = self._filed(link)  # again, for a finalizer of the receiver may have disconnected it
            if bucket is None:
                return was_live
            del bucket.links[link.key]
            self._with_subclasses -= link.options.subclasses
            self._announce(bucket, link.options.subclasses)
            self._drop_if_empty(bucket)
            return was_live

    def _filed(self, link: Link) -> _Bucket | None:
        bucket = self._everyone if link.source is EVERYONE else self._buckets.get(link.source.key)
        return bucket if bucket is not None and bucket.links.get(link.key) is link else None

    def _bucket_for(self, sender: object) -> _Bucket:
        bucket = self._existing(sender)
        if bucket is None:
            source = hold_sender(sender, self._bury)
            bucket = self._buckets[source.key] = _Bucket(source)
        return bucket

    def _existing(self, sender: object) -> _Bucket | None:
        if sender is None:
            return self._everyone
        key = sender_key(sender)
        bucket = self._buckets.get(key)
        # The id of a dead sender may be in use again.
        return bucket if bucket is None or type(key) is tuple or bucket.source() is sender else None

    def _drop_if_empty(self, bucket: _Bucket) -> None:
        if not bucket.links and self._buckets.get(bucket.source.key) is bucket:
            self._drop(bucket)

    def _drop(self, bucket: _Bucket) -> None:
        del self._buckets[bucket.source.key]
        if not self._buckets:
            self._everyone.made_at = None  # so that its plan becomes that of all senders again

    def _announce(self, bucket: _Bucket, is_shared: bool) -> None:  # noqa: FBT001  called with an option's value
        bucket.made_at = None
        self._changes += 1
        if is_shared or bucket is self._everyone:
            self._shared_changes += 1
        self.run = None
        self._last_run.links.clear()

    # -- the dead --------------------------------------------------------------------------------------------------

    def purge(self) -> None:
        """Forget receivers and senders that have died."""
        with self.lock:
            while self._dead:
                thing = self._dead.popleft()
                if isinstance(thing, WeakSender):
                    self._forget_sender(thing)
                    continue
                was_live = thing.live
                self.remove(thing)
                if was_live and isinstance(thing, Connection):
                    self._on_lost(thing, certainly=True)

    def _forget_sender(self, source: WeakSender) -> None:
        bucket = self._buckets.get(source.key)
        if bucket is None or bucket.source is not source:
            return
        self._drop(bucket)
        self._changes += 1
        for link in list(bucket.links.values()):
            link.end()
            self._with_subclasses -= link.options.subclasses

    # -- planning --------------------------------------------------------------------------------------------------

    def plan_for(self, sender: object) -> Plan:
        """The links that a send to this sender calls, in order. Some may end or die before their turn."""
        return self.run_for(sender).plan

    def run_for(self, sender: object) -> Run:
        """The same, for the generated loop."""
        if self._dead:
            self.purge()
        bucket = self._bucket_of(sender)
        run = bucket.run if bucket.made_at == self._shared_changes else self._make_run(bucket, sender)
        for mute in self.filters:
            run = Run(mute(run.plan))
        return run

    def links_for(self, sender: object) -> Plan:
        """The same for looking only: it tells no link that a send may reach it, and minds no muting."""
        self.purge()
        return _in_order(self._gather(self._bucket_of(sender), sender))

    def has_links(self, sender: object) -> bool:
        """Whether a plan for this sender would have a link."""
        if self._dead:
            self.purge()
        bucket = self._bucket_of(sender)
        links = bucket.run.plan if bucket.made_at == self._shared_changes else self._gather(bucket, sender)
        return any(map(_is_alive, links))

    def all_links(self) -> Plan:
        """Every link, those of all senders together in order."""
        self.purge()
        with self.lock:
            buckets = [self._everyone, *self._buckets.values()]
            return _in_order(link for bucket in buckets for link in list(bucket.links.values()))

    def _bucket_of(self, sender: object) -> _Bucket:
        if not self._buckets:
            return self._everyone
        bucket = self._existing(sender)
        if bucket is not None:
            return bucket
        if self._with_subclasses and is_a(sender, type):
            with self.lock:
                return self._bucket_for(sender)  # to keep the plan in, until the class dies
        return self._everyone

    def _make_run(self, bucket: _Bucket, sender: object) -> Run:
        with self.lock:
            while True:
                changes, shared = self._changes, self._shared_changes
                plan = _in_order(self._gather(bucket, sender))
                if changes == self._changes:  # no finalizer changed anything meanwhile
                    break
            for link in plan:
                link.reached = True
            is_for_all = not self._buckets and not self.filters
            run = bucket.run = Run(plan, may_be_emptied=is_for_all)
            bucket.made_at = shared
            if is_for_all:
                self._last_run.links.clear()
                self.run = self._last_run = run
                if self._dead:  # the callback came between: this run would hide it
                    self.run = None
            return run

    def _gather(self, bucket: _Bucket, sender: object) -> list[Link]:
        with self.lock:
            links = list(self._everyone.links.values())
            if bucket is not self._everyone:
                links += bucket.links.values()
                if self._with_subclasses and is_a(sender, type):
                    links += self._inherited(sender)
            return links

    def _inherited(self, sender: type) -> list[Link]:
        above = (self._existing(base) for base in sender.__mro__[1:])
        return [link for bucket in above if bucket for link in list(bucket.links.values()) if link.options.subclasses]

    # -- muting ----------------------------------------------------------------------------------------------------

    def restrict(self, mute: Mute) -> None:
        """Pass every plan through a mute, until `unrestrict`."""
        with self.lock:
            self.filters = (*self.filters, mute)
            self.run = None

    def unrestrict(self, mute: Mute) -> None:
        """Take back one `restrict`."""
        with self.lock:
            kept = list(self.filters)
            kept.remove(mute)
            self.filters = tuple(kept)
            self._everyone.made_at = None


@functools.cache
def _stream_link(kind: type[StreamConnection]) -> Any:
    """What a stream's connection needs to be a `Link`, too."""

    class StreamLink(kind):  # type: ignore[misc, valid-type]
        __slots__ = ("reached",)
        is_coroutine = is_function = is_method = is_choosy = False
        is_async = True
        function = None

        @property
        def live(self) -> bool:
            return bool(self.is_live)

        def __call__(self) -> Any:
            return self

    return StreamLink


def _in_order(links: Iterable[Link]) -> Plan:
    return tuple(sorted(filter(_is_alive, links), key=_rank))


def _is_alive(link: Link) -> bool:
    return link.live and link.target() is not None


def _bury(registry: ref[Registry], on_lost: Callable[..., object], thing: Link | WeakSender) -> None:
    home = registry()
    if home is None:
        return
    home._dead.append(thing)
    home.run = None
    if isinstance(thing, Connection) and thing.live:
        on_lost(thing, certainly=False)
