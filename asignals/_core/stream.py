"""Streams: the events of signals as an async iterator, with a bounded buffer.

Events are kept in one queue, in the order of the sends. A reader is only woken, and takes the first event itself; one
that is cancelled after it was woken wakes the next. A sender that finds the buffer full waits with its event in a
second queue, and whoever takes an event moves the first of these into the buffer. A lock guards both queues, because
senders may be in other threads.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Self, TypeAlias, TypeVar, cast, get_args
from weakref import ref

import anyio.lowlevel

from asignals._core.connection import DEFAULTS, Connection
from asignals._core.errors import BufferFull
from asignals._core.loops import Loop, Waker, new_lock, open_in_process
from asignals._core.references import calling_frame, name_of
from asignals._core.signatures import Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import ParamSpec  # for the default: `Event` alone is an event of any signal

    from asignals._core.signal import Signal

    P = ParamSpec("P", default=...)
else:
    from typing import ParamSpec

    P = ParamSpec("P")

X = TypeVar("X")
Overflow: TypeAlias = Literal["wait", "drop_oldest", "drop_newest", "error"]
Where: TypeAlias = "Callable[[Event[P]], object]"

STALLED_AFTER = 5.0
"""Seconds that a sender waits for capacity before the stream's reader is reported."""

_logger = logging.getLogger("asignals")

# -- events ------------------------------------------------------------------------------------------------------------


class Arguments(Mapping[str, Any]):
    """The arguments of an event by name; read-only, and hashable if the values are."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)


_set = object.__setattr__  # frozen dataclasses have no other


@dataclass(frozen=True, slots=True, init=False)
class Event(Generic[P]):
    """One send, as a stream gives it: the signal, the sender, and the arguments by name.

    An argument is read as an item, or as an attribute if no other attribute has its name. Events are equal if all
    three parts are. They can be copied, pickled if their parts can, and hashed if all values can. To type checkers it
    has the parameters of its signal: see `pass_to`.
    """

    signal: Signal[..., Any]
    sender: object
    arguments: Mapping[str, Any]

    def __init__(self, signal: Signal[..., Any], sender: object, arguments: Mapping[str, Any]) -> None:
        _set(self, "signal", signal)
        _set(self, "sender", sender)
        _set(self, "arguments", Arguments(arguments))

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and unpickling ask for special methods before there are arguments
            raise AttributeError(name)
        if name in self.arguments:
            return self.arguments[name]
        given = ", ".join(self.arguments) or "none"
        msg = f"this event of signal {self.signal.name!r} has no argument {name!r}, but {given}"
        raise AttributeError(msg, name=name, obj=self)

    def pass_to(self, function: Callable[P, X]) -> X:
        """Call a function with the sender and all arguments by name, and return what it returns.

        Type checkers hold its parameters to those that the signal declares, as `Signal.checked` does.
        """
        given: Any = self.arguments
        return cast("Callable[..., X]", function)(self.sender, **given)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: `{"signal": its name, "sender": ..., "arguments": {...}}`.

        `None`, booleans, numbers and strings stay what they are; mappings become dicts with strings as keys; lists,
        tuples and sets become lists. Any other value, the sender included, becomes `str(value)`; but callables
        (classes, too), and objects without a `__str__` or `__repr__` of their own, become `module.qualname`, the
        object's that of its class.
        """
        return {"signal": self.signal.name, "sender": _plain(self.sender), "arguments": _plain(self.arguments)}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    kind: Any = type(value)
    has_text = kind.__str__ is not object.__str__ or kind.__repr__ is not object.__repr__
    return str(value) if has_text and not callable(value) else name_of(value)


# -- the connection ----------------------------------------------------------------------------------------------------


class StreamConnection(Connection):
    """Connects a stream to one signal: a send awaits `respond` instead of calling a receiver.

    It is the weak reference to the stream, so a stream that nobody reads any more can be collected.
    """

    __slots__ = ()
    is_receiver = False

    def target(self) -> Stream | None:
        """The stream, while it exists."""
        return ref.__call__(self)

    def describe(self) -> str:
        """The stream, for messages."""
        return "a stream"

    async def respond(self, signal: Signal[..., Any], sender: object, arguments: Mapping[str, Any]) -> None:
        """Give the stream an event; waits for capacity if the stream is full and its `overflow` is "wait"."""
        stream = self.target()
        if stream is None or not self.is_live:
            return
        waiting = stream.put(Event(signal, sender, arguments))
        del stream  # a sender that waits does not keep the stream alive
        if waiting is None:
            return
        try:
            await waiting[0].wait()
        except BaseException:
            stream = self.target()
            if stream is not None:
                stream.withdraw(waiting)
            raise


_Waiting: TypeAlias = tuple[Waker, Event, float]
"""A sender that waits, its event, and since when it waits."""


# -- the stream --------------------------------------------------------------------------------------------------------


class Stream(Generic[P]):
    """The events of one or several signals, from entering the `async with` block to leaving it.

    Made by `Signal.stream` and `asignals.stream`. Iterate over it, in any number of tasks: each event goes to one of
    them, in the order of the sends. Reading is a checkpoint. Iteration ends when the block is left or `aclose` was
    called, for tasks that wait for an event as well; unread events are then discarded, and waiting senders go on.

    A sender that has waited `STALLED_AFTER` seconds for capacity logs a warning, once per stream. A stream that is
    garbage, or whose event loop has ended, is closed: it makes no sender wait.

    It is entered once, and read in the event loop that entered it; senders may be in any. `dropped` counts the events
    that the policies `"drop_oldest"` and `"drop_newest"` dropped. In a forked child it is closed.

    Raises:
        RuntimeError: entered again, or read before it was entered.
    """

    _collected_at: ClassVar[float] = 0.0  # when a stalled stream last ran the garbage collector

    def __init__(
        self,
        signals: tuple[Signal[..., Any], ...],
        sender: object,
        where: Where[P] | None,
        buffer: int,
        overflow: Overflow,
    ) -> None:
        self._senders: deque[_Waiting] = deque()
        _check(where, buffer, overflow)
        self.dropped: int = 0
        origins = [signal if signal._origin is None else signal._origin for signal in signals]
        self._signals = tuple({id(signal): signal for signal in origins}.values())
        self._sender = sender
        self._where = where
        self._size = buffer
        self._overflow = overflow
        self._lock = new_lock()
        self._events: deque[Event] = deque()
        self._readers: deque[Waker] = deque()
        self._connections: list[tuple[Signal[..., Any], StreamConnection]] = []
        self._loop: Loop | None = None
        self._state: Literal["new", "open", "closed"] = "new"
        frame = calling_frame(type(self))
        self._place = frame.f_code, frame.f_lasti
        self._opened_at = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        self._next_check = 0.0
        self._has_warned = False

    async def __aenter__(self) -> Self:
        if self._state != "new":
            msg = "a stream can be entered once; make another one"
            raise RuntimeError(msg)
        self._state = "open"
        self._loop = Loop()
        open_in_process.add(self)
        for signal in self._signals:
            shape = Shape(is_async=True, wanted=None)
            registry, key = signal._registry, ("stream", id(self))
            connection = StreamConnection(self, registry.on_death, self._place, key, DEFAULTS, shape)
            registry.add(connection, self._sender)
            self._connections.append((signal, connection))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._close()

    async def aclose(self) -> None:
        """End the stream as leaving its block does, from any task; doing it again does nothing. Does not suspend."""
        self._close()

    def _close(self) -> None:
        with self._lock:
            self._state = "closed"
            self._events.clear()
            wakers = [*(waker for waker, _, _ in self._senders), *self._readers]
            self._senders.clear()
            self._readers.clear()
            connections, self._connections = self._connections, []
        for signal, connection in connections:
            signal._registry.remove(connection)
        for waker in wakers:
            waker.wake()
        open_in_process.discard(self)

    def close_in_child(self) -> None:
        """Close in a forked child: wake nobody, as the waiting tasks are the parent's."""
        self._lock = new_lock()
        self._state = "closed"
        for waiting in (self._events, self._senders, self._readers):
            waiting.clear()
        for _, connection in self._connections:
            connection.end()

    def __del__(self) -> None:
        for waker, _, _ in self._senders:
            waker.wake()

    def __repr__(self) -> str:
        names = ", ".join(repr(signal.name) for signal in self._signals)
        return f"<asignals.Stream of {names}, {self._state}, {len(self._events)} of {self._size} events kept>"

    # -- reading ---------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event[P]:
        if self._state == "new":
            msg = "enter the stream first: async with signal.stream() as events"
            raise RuntimeError(msg)
        await anyio.lowlevel.checkpoint()
        while True:
            with self._lock:
                if self._state == "closed":
                    raise StopAsyncIteration
                if self._events:
                    event: Event[Any] = self._events.popleft()
                    if self._senders:
                        self._admit_sender()
                    return event
                reader = Waker(self._loop)
                self._readers.append(reader)
                if self._events:  # a finalizer has sent meanwhile
                    self._wake_reader()
            try:
                await reader.wait()
            except BaseException:
                with self._lock:
                    if reader in self._readers:
                        self._readers.remove(reader)
                    else:
                        self._wake_reader()
                raise

    def _admit_sender(self) -> None:
        waker, event, _ = self._senders.popleft()
        self._events.append(event)
        waker.wake()
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._readers:
            self._readers.popleft().wake()

    # -- writing ---------------------------------------------------------------------------------------------------

    def put(self, event: Event[Any]) -> _Waiting | None:
        """Take an event; returns what its sender has to wait for, if anything. Raises `BufferFull`."""
        if self._where is not None and not self._where(event):
            return None
        with self._lock:
            if self._state == "closed":
                return None
            if len(self._events) < self._size and not self._senders:
                self._events.append(event)
                if self._readers:
                    self._wake_reader()
                return None
            if self._overflow == "error":
                raise BufferFull(event.signal, self._size)
            if self._overflow != "wait":
                self.dropped += 1
                if self._overflow == "drop_oldest":
                    self._events.popleft()
                    self._events.append(event)
                return None
            waiting = waker, _, now = Waker(self._loop), event, time.monotonic()
            self._senders.append(waiting)
        if waker.loop is not self._loop and self._has_ended():
            self._close()
        elif now >= self._next_check:
            self._check_later(waker.loop)
        return waiting

    def withdraw(self, waiting: _Waiting) -> None:
        """Let a sender go that does not wait any more."""
        with self._lock, suppress(ValueError):
            self._senders.remove(waiting)

    # -- senders that wait for long --------------------------------------------------------------------------------

    def _has_ended(self) -> bool:
        return self._loop is not None and self._loop.has_ended()

    def _check_later(self, loop: Loop) -> None:
        self._next_check = time.monotonic() + STALLED_AFTER / 2
        loop.call_later(STALLED_AFTER / 2 + 0.01, partial(_check_senders, ref(self), loop))


def _check_senders(reference: ref[Stream], loop: Loop) -> None:
    """Free senders that wait for nobody, and report a reader that does not read; again while senders wait."""
    stream = reference()
    if stream is None or not (waiting := tuple(stream._senders)):
        return
    if stream._has_ended():
        stream._close()
        return
    _, event, since = waiting[0]
    now = time.monotonic()
    waited = now - since
    if waited >= STALLED_AFTER and not stream._has_warned:
        stream._has_warned = True
        text = "the reader of the stream opened at %s does not read: %d senders wait, that of signal %r for %.3g s"
        _logger.warning(text, stream._opened_at, len(waiting), event.signal.name, waited)
    stream._check_later(loop)
    del stream
    # The stream may be garbage in a reference cycle: of an async generator that was left inside the block, say. One
    # collection serves all streams that have been stalled for so long.
    is_due = since > Stream._collected_at and now - Stream._collected_at >= 2 * STALLED_AFTER
    if is_due and waited >= STALLED_AFTER / 2:
        Stream._collected_at = now
        gc.collect()


def check_count(name: str, value: object, least: int, unit: str) -> None:
    """Raise `TypeError` or `ValueError` if an option is not a number of so many."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be a number of {unit}, not {value!r}"
        raise TypeError(msg)
    if value < least:
        msg = f"{name} must be at least {least}, not {value}"
        raise ValueError(msg)


def _check(where: object, buffer: object, overflow: object) -> None:
    if where is not None and (not callable(where) or iscoroutinefunction(where)):
        msg = f"where must be a sync function of an Event, not {where!r:.80}"
        raise TypeError(msg)
    check_count("buffer", buffer, 1, "events")
    if overflow not in get_args(Overflow):
        msg = f"overflow must be one of {', '.join(map(repr, get_args(Overflow)))}, not {overflow!r}"
        raise ValueError(msg)


def stream(
    *signals: Signal[..., Any],
    sender: object = None,
    where: Where | None = None,
    buffer: int = 64,
    overflow: Overflow = "wait",
) -> Stream:
    """Listen to several signals at once, in the order of their sends; otherwise as `Signal.stream`.

    A signal that is given twice is listened to once.

    Raises:
        TypeError: no signal was given, or something else.
    """
    if not signals or not all(hasattr(signal, "_registry") for signal in signals):
        msg = "stream() takes one or more signals"
        raise TypeError(msg)
    return Stream(signals, sender, where, buffer, overflow)
