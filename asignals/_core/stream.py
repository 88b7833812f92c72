"""Listening instead of being called: streams of events, bounded, with the sender's pace or their own.

Events and waiters change hands under a lock, as senders may be in other threads and loops. A sender that waits for
room leaves its event in the queue of those to come, and whoever makes room moves it: so a waiter that is cancelled
has nothing to pass on, and the order of events is that of the sends.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from inspect import iscoroutinefunction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_args
from weakref import ref

import anyio
import anyio.lowlevel

from asignals._core.connection import DEFAULTS, Subscriber
from asignals._core.errors import BufferFull
from asignals._core.loops import Loop, Waker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from asignals._core.signal import Signal

Overflow: TypeAlias = Literal["wait", "drop_oldest", "drop_newest", "error"]


@dataclass(frozen=True, slots=True)
class Event:
    """One send, as a stream gives it: the signal, the sender, and the arguments by name.

    An argument is read as an item, or as an attribute where no other attribute has its name.
    """

    signal: Signal[..., Any]
    sender: object
    arguments: Mapping[str, Any]

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


Where: TypeAlias = "Callable[[Event], object]"


class Listener(Subscriber):
    """The end of a stream that is connected to one signal."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __call__(self) -> Listener:
            return self

    def target(self) -> Stream | None:
        """The stream."""
        return ref.__call__(self)

    def describe(self) -> str:
        """The stream, for messages."""
        return "a stream"

    async def respond(self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]) -> None:
        """Keep an event; waits for room if that is the policy."""
        stream = self.target()
        if stream is None or not self.is_live:
            return
        waiting = stream.keep(Event(signal, sender, MappingProxyType(arguments)))
        if waiting is None:
            return
        del stream
        try:
            await waiting.wait()
        except BaseException:
            stream = self.target()
            if stream is not None:
                stream.withdraw(waiting)
            raise


class Stream:
    """The events of one or several signals, from entering the `async with` block to leaving it.

    Made by `Signal.stream` and `asignals.stream`. Iterate over it, in any number of tasks: each event goes to one of
    them, in the order of the sends. Reading is a checkpoint. Iteration ends when the block is left, for tasks that
    wait for an event as well; events still kept are then discarded, and senders that wait for room go on.

    It is entered once, and read in the event loop that entered it; senders may be in any. `dropped` counts the events
    that the policies `"drop_oldest"` and `"drop_newest"` dropped.

    Raises:
        RuntimeError: entered again, or read before it was entered.
    """

    def __init__(
        self,
        signals: tuple[Signal[..., Any], ...],
        sender: object,
        where: Where | None,
        buffer: int,
        overflow: Overflow,
    ) -> None:
        self._senders: deque[Waker] = deque()  # each with its event to come
        _check(where, buffer, overflow)
        self.dropped: int = 0
        origins = [signal if signal._origin is None else signal._origin for signal in signals]
        self._signals = tuple({id(signal): signal for signal in origins}.values())
        self._sender = sender
        self._where = where
        self._size = buffer
        self._overflow = overflow
        self._lock = threading.RLock()  # the garbage collector may run a finalizer that sends
        self._events: deque[Event] = deque()
        self._readers: deque[Waker] = deque()  # each to be given an event, or to be told that there is none
        self._listeners: list[Listener] = []
        self._loop: Loop | None = None
        self._state: Literal["new", "open", "closed"] = "new"

    async def __aenter__(self) -> Self:
        if self._state != "new":
            msg = "a stream can be entered once; make another one"
            raise RuntimeError(msg)
        self._state = "open"
        self._loop = Loop()
        for signal in self._signals:
            listener = Listener(self, signal._registry._on_death)
            listener.options, listener.style, listener.choose, listener.key = (
                DEFAULTS,
                None,
                None,
                ("stream", id(listener)),
            )
            listener.is_live = True
            self._listeners.append(signal._registry.add(listener, self._sender))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signal, listener in zip(self._signals, self._listeners, strict=True):
            signal._registry.remove(listener)
        with self._lock:
            self._state = "closed"
            self._events.clear()
            waiting = [*self._senders, *self._readers]
            self._senders.clear()
            self._readers.clear()
        for each in waiting:
            each.wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._state == "new":
            msg = "enter the stream first: async with signal.stream() as events"
            raise RuntimeError(msg)
        await anyio.lowlevel.checkpoint()
        with self._lock:
            if self._state == "closed":
                raise StopAsyncIteration
            if self._events:
                event = self._events.popleft()
                if self._senders and len(self._events) < self._size:
                    sender = self._senders.popleft()
                    self._events.append(sender.value)
                    sender.wake()
                return event
            reader = Waker(None, self._loop)
            self._readers.append(reader)
            if self._events:  # the collector has run a finalizer that sent meanwhile
                _hand(self._readers.pop(), self._events.popleft())
        try:
            await reader.wait()
        except BaseException:
            with self._lock:
                if reader.value is None:
                    _discard(self._readers, reader)
                else:
                    self._give_back(reader.value)
            raise
        given: Event | None = reader.value
        if given is None:
            raise StopAsyncIteration
        return given

    def __repr__(self) -> str:
        names = ", ".join(repr(signal.name) for signal in self._signals)
        return f"<asignals.Stream of {names}, {self._state}, {len(self._events)} of {self._size} events kept>"

    def keep(self, event: Event) -> Waker | None:
        """Take an event; returns what its sender is to wait for, if there is no room and that is the policy."""
        if self._where is not None and not self._where(event):
            return None
        with self._lock:
            if self._state == "closed":
                return None
            if self._readers:
                _hand(self._readers.popleft(), event)
            elif len(self._events) < self._size:
                self._events.append(event)
            elif self._overflow == "wait":
                sender = Waker(event, self._loop)
                self._senders.append(sender)
                return sender
            elif self._overflow == "error":
                raise BufferFull(event.signal, self._size)
            else:
                self.dropped += 1
                if self._overflow == "drop_oldest":
                    self._events.popleft()
                    self._events.append(event)
        return None

    def withdraw(self, sender: Waker) -> None:
        """Let a sender go that does not wait any more."""
        with self._lock:
            _discard(self._senders, sender)

    def __del__(self) -> None:
        for sender in self._senders:
            sender.wake()

    def _give_back(self, event: Event) -> None:
        """Put back what a cancelled reader had been given, with the lock held; that may make one too many."""
        if self._state == "closed":
            return
        if self._readers:
            _hand(self._readers.popleft(), event)
        else:
            self._events.appendleft(event)


def _hand(reader: Waker, event: Event) -> None:
    reader.value = event
    reader.wake()


def _discard(waiting: deque[Waker], one: Waker) -> None:
    with suppress(ValueError):
        waiting.remove(one)


def _check(where: object, buffer: object, overflow: object) -> None:
    if where is not None and (not callable(where) or iscoroutinefunction(where)):
        msg = f"where must be a sync function of an Event, not {where!r:.80}"
        raise TypeError(msg)
    if isinstance(buffer, bool) or not isinstance(buffer, int):
        msg = f"buffer must be a number of events, not {buffer!r}"
        raise TypeError(msg)
    if buffer < 1:
        msg = f"buffer must be at least 1, not {buffer}"
        raise ValueError(msg)
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
