"""Streams: the events of signals as an async iterator, with a bounded buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeAlias, TypeVar, cast, get_args
from weakref import ref

import anyio
import anyio.lowlevel

from asignals._core.connection import DEFAULTS, Connection
from asignals._core.errors import BufferFull, logger
from asignals._core.loops import Loop, Queue, Waker, lock
from asignals._core.objects import Shape, calling_frame, name_of

if TYPE_CHECKING:
    from typing_extensions import ParamSpec  # for the default: `Event` alone is an event of any signal

    from asignals._core.signal import Signal

    P = ParamSpec("P", default=...)
else:
    from typing import ParamSpec

    P = ParamSpec("P")

X = TypeVar("X")
Overflow: TypeAlias = Literal["wait", "drop_oldest", "drop_newest", "error"]
AnySignal: TypeAlias = "Signal[..., Any]"
Where: TypeAlias = "Callable[[Event[P]], object]"

STALLED_AFTER = 5.0
"""Seconds that a sender waits for capacity before the stream's reader is reported."""

# -- events ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event(Generic[P]):
    """One send, as a stream gives it: the signal, the sender, and the arguments by name.

    An argument is read as an item, or as an attribute if no other attribute has its name. Events are equal if all
    three parts are. They can be copied, pickled if their parts can, and hashed if all values can. To type checkers it
    has the parameters of its signal: see `pass_to`.
    """

    signal: Signal[..., Any]
    sender: object
    arguments: Mapping[str, Any]

    def __hash__(self) -> int:
        return hash((self.signal, self.sender, frozenset(self.arguments.items())))

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and unpickling ask for special methods before there are arguments
            raise AttributeError(name)
        if name in self.arguments:
            return self.arguments[name]
        given = ", ".join(self.arguments) or "none"
        text = f"this event of signal {self.signal.name!r} has no argument {name!r}, but {given}"
        raise AttributeError(text, name=name, obj=self)

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
    """Connects a stream to one signal: a send awaits `call`, and has no response of it.

    It is the weak reference to the stream, so a stream that nobody reads any more can be collected.
    """

    __slots__ = ()
    is_receiver = False

    def target(self) -> Stream | None:
        """The stream, while it is open."""
        stream: Stream | None = ref.__call__(self)
        return None if stream is None or stream._queue.is_closed else stream

    def describe(self) -> str:
        """The stream and the line that opened it, for messages."""
        return f"a stream ({self.connected_at})"

    def take(self, _: object) -> Any:
        """Returns the connection and not the stream, which a sender that waits does not keep alive."""
        return self

    async def call(self, _: object, signal: Signal[..., Any], sender: object, arguments: Mapping[str, Any]) -> None:
        """Give the stream an event; waits for capacity if the stream is full and its `overflow` is "wait"."""
        stream = self.target()
        waker = None if stream is None else stream.put(Event(signal, sender, dict(arguments)))
        if stream is None or waker is None:
            return
        queue = stream._queue
        del stream  # a sender that waits does not keep the stream alive
        try:
            for _turn in range(3):  # of the loop, in which most readers take an event: a time limit costs more
                if waker in queue.waiting:
                    await anyio.lowlevel.checkpoint()
            while waker in queue.waiting:
                with anyio.move_on_after(STALLED_AFTER):
                    await waker.wait()
                    return
                if (stream := self.target()) is not None:
                    stream.report(signal)
                del stream
        finally:
            if waker in queue.waiting:  # cancelled, or the stream has been closed
                queue.leave(waker)


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

    def __init__(
        self, signals: tuple[AnySignal, ...], sender: object, where: Where[P] | None, buffer: int, overflow: Overflow
    ) -> None:
        self._queue: Queue[Event[Any]] = Queue(buffer)
        if where is not None and (not callable(where) or iscoroutinefunction(where)):
            raise TypeError(f"where must be a sync function of an Event, not {where!r:.80}")
        check_count("buffer", buffer, 1, "events")
        if overflow not in get_args(Overflow):
            raise ValueError(f"overflow must be one of {', '.join(map(repr, get_args(Overflow)))}, not {overflow!r}")
        self.dropped: int = 0
        self._signals = {signal._registry: signal for signal in signals}
        self._sender, self._where, self._overflow = sender, where, overflow
        self._connections: list[tuple[Any, StreamConnection]] = []
        frame = calling_frame(type(self))
        self._place = frame.f_code, frame.f_lasti
        self._was_reported = False
        self._loop: Loop

    @property
    def _state(self) -> str:
        return "closed" if self._queue.is_closed else "new" if self._queue.loop is None else "open"

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError("a stream can be entered once; make another one")
        self._loop = self._queue.loop = Loop()
        for registry in self._signals:
            connection = StreamConnection(self, registry.on_death, self._place, ("stream", id(self)))
            connection.options, connection.shape = DEFAULTS, Shape(is_async=True, wanted=None)
            registry.add(connection, self._sender)
            self._connections.append((registry, connection))
        return self

    async def __aexit__(self, *error: object) -> None:
        self._close()

    async def aclose(self) -> None:
        """End the stream as leaving its block does, from any task; doing it again does nothing. Does not suspend."""
        self._close()

    def _close(self) -> None:
        for registry, connection in self._connections:
            registry.remove(connection)
        self._queue.close()

    def __del__(self) -> None:
        self._queue.close()

    def __repr__(self) -> str:
        names, queue = ", ".join(repr(signal.name) for signal in self._signals.values()), self._queue
        return f"<asignals.Stream of {names}, {self._state}, {len(queue.items)} of {queue.size} events kept>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event[P]:
        if self._state == "new":
            raise RuntimeError("enter the stream first: async with signal.stream() as events")
        await anyio.lowlevel.checkpoint()
        if (event := await self._queue.next()) is None:
            raise StopAsyncIteration
        return event

    def put(self, event: Event[Any]) -> Waker | None:
        """Take an event; returns what its sender has to wait for, if anything. Raises `BufferFull`."""
        if self._where is not None and not self._where(event):
            return None
        queue = self._queue
        with lock:
            if queue.is_closed:
                return None
            if not queue.is_full:
                queue.add(event)
            elif self._loop.has_ended():
                self._close()
            elif self._overflow == "wait":
                return queue.line_up(event)
            elif self._overflow == "error":
                raise BufferFull(event.signal, queue.size)
            else:
                self.dropped += 1
                if self._overflow == "drop_oldest":
                    queue.items.popleft()
                    queue.add(event)
        return None

    def report(self, signal: Signal[..., Any]) -> None:
        """Report a reader that makes a sender wait for long; if its loop has ended, close the stream."""
        if self._loop.has_ended():
            self._close()
        elif not self._was_reported:
            self._was_reported = True
            text = "the reader of the stream opened at %s does not read: %d senders wait, that of signal %r for %g s"
            opened_at, waiting = self._connections[0][1].connected_at, len(self._queue.waiting)
            logger.warning(text, opened_at, waiting, signal.name, STALLED_AFTER)


def check_count(name: str, value: object, least: int, unit: str) -> None:
    """Raise `TypeError` or `ValueError` if an option is not a number of so many."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a number of {unit}, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


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
        raise TypeError("stream() takes one or more signals")
    return Stream(signals, sender, where, buffer, overflow)
