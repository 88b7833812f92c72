"""One receiver connected to one signal: the weak reference itself, and how to call what it refers to."""

from __future__ import annotations

from functools import partial
from inspect import isawaitable
from types import MethodType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

import anyio

from asignals._receivers import Mismatch, Shape
from asignals._refs import EVERYONE, describe, is_a, locate
from asignals._core.loops import in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from types import CodeType

    from asignals._receivers import Receiver
    from asignals._refs import HeldSender, WeakSender
    from asignals._signal import Signal


class Options(NamedTuple):
    """What `connect` was asked for, beside the receiver and the sender."""

    weak: bool = True
    priority: float = 0
    subclasses: bool = False
    in_thread: bool = False
    timeout: float | None = None
    once: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether a call needs nothing done around it."""
        return not self.in_thread and self.timeout is None and not self.once

    def checked(self, sender: object, *, is_async: bool) -> Options:
        """The same as plain values; raises `Mismatch` for one that does not fit the receiver or the sender."""
        plain = Options(*map(_plain, self._fields, self))
        if plain == PLAIN:
            return PLAIN  # one for all, as most are
        reason = plain.problem(sender, is_async=is_async)
        if reason is not None:
            raise Mismatch(reason)
        return plain

    def problem(self, sender: object, *, is_async: bool) -> str | None:
        """What is wrong with these options for a receiver and a sender, if anything."""
        if self.priority is None or self.priority != self.priority:
            return f"priority must be a number, not {self.priority!r}"
        if self.in_thread and is_async:
            return "in_thread=True is for sync receivers, and this one is async"
        if self.subclasses and not is_a(sender, type):
            return f"subclasses=True needs a class as the sender, not {type(sender).__name__!r}"
        if self.timeout is None:
            return None
        if self.timeout is True or not self.timeout > 0:
            return f"timeout must be a positive number of seconds, not {self.timeout!r}"
        return None if is_async else "timeout is for async receivers: nothing could stop a sync one"


PLAIN = Options()
_PLAIN = (bool, int, float, type(None))
_NUMBERS = {"priority": "a number", "timeout": "a positive number of seconds"}


def _plain(name: str, value: Any) -> Any:
    """An option's value without a class of its own, whose methods might fail where that helps nobody."""
    kind = type(value)
    if name not in _NUMBERS:
        try:
            return bool(value)
        except Exception as error:
            reason = f"{name} must be true or false, not {kind.__name__!r}"
            raise Mismatch(reason) from error
    if kind in _PLAIN:
        return value
    if is_a(value, int):
        return int.__pos__(value)
    if is_a(value, float):
        return float.__pos__(value)
    reason = f"{name} must be {_NUMBERS[name]}, not {kind.__name__!r}"
    raise Mismatch(reason)


class _Anchor:
    """Stands in for a receiver that cannot be weakly referenced, so that a connection always is a weak reference."""

    __slots__ = ("__weakref__", "receiver")

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver


class Connection(ref[Any]):
    """A receiver connected to a signal; read-only.

    It *is* the weak reference to the receiver (to the object, for a bound method), because following a reference is
    most of what a send does beside calling. `Signal.connections` gives the same object for as long as the connection
    lasts, so it may be compared with `is` and kept in sets.
    """

    # is_coroutine, is_function, is_method and is_choosy select the branch of the generated loop (_compile). All are
    # False when the call needs care (options) or the connection has ended: then respond() is asked. They are set
    # together in restyle() and end(), so that a send under way sees a change at once.
    __slots__ = (
        "_code",
        "_held",
        "_line",
        "awaited",
        "choose",
        "function",
        "is_choosy",
        "is_coroutine",
        "is_function",
        "is_method",
        "key",
        "live",
        "options",
        "order",
        "reached",
        "source",
    )

    if not TYPE_CHECKING:  # an identity, unlike other weak references
        __eq__ = object.__eq__
        __ne__ = object.__ne__
        __hash__ = object.__hash__

    is_choosy: bool
    is_coroutine: bool
    is_function: bool
    is_method: bool
    awaited: bool
    live: bool
    reached: bool
    order: int
    key: Hashable
    source: WeakSender | HeldSender
    function: ref[Any] | None
    options: Options
    choose: Callable[..., Any] | None

    @property
    def receiver(self) -> Receiver | None:
        """The connected callable, or `None` once it has died."""
        return self.target()

    @property
    def sender(self) -> object:
        """The sender that is listened to; `None` stands for all senders, and for one that has died."""
        return self.source()

    @property
    def weak(self) -> bool:
        """Whether the signal lets the receiver die."""
        return self.options.weak

    @property
    def priority(self) -> float:
        """Higher ones are called first."""
        return self.options.priority

    @property
    def is_async(self) -> bool:
        """Whether the receiver is a coroutine function, or an object with an `async def __call__`."""
        return self.awaited

    @property
    def in_thread(self) -> bool:
        """Whether the receiver runs in a worker thread."""
        return self.options.in_thread

    @property
    def timeout(self) -> float | None:
        """Seconds that an async receiver may take."""
        return self.options.timeout

    @property
    def once(self) -> bool:
        """Whether the first call ends the connection."""
        return self.options.once

    @property
    def subclasses(self) -> bool:
        """Whether the sender's subclasses are listened to as well."""
        return self.options.subclasses

    @property
    def dispatch_uid(self) -> Hashable | None:
        """The identifier given to `connect`, if any."""
        return self.key[1] if isinstance(self.key, tuple) and self.key[0] == "uid" else None

    @property
    def location(self) -> str:
        """Where the receiver is defined, as `file:line`; without Python code, or dead, where it was connected."""
        return locate(self.target()) or self.connected_at

    @property
    def place(self) -> tuple[CodeType, int]:
        """The code and the line that called `connect`."""
        return self._code, self._line

    @property
    def connected_at(self) -> str:
        """The line that called `connect`, as `file:line`."""
        return f"{self._code.co_filename}:{self._line}"

    _code: CodeType
    _line: int
    _held: object

    def target(self) -> Receiver | None:
        """The receiver itself while it lives, connected or not."""
        found = self()
        if found is None or self.function is None:
            return found.receiver if type(found) is _Anchor else found
        function = self.function()
        return None if function is None else MethodType(function, found)

    @property
    def facts(self) -> tuple[Options, Shape]:
        """What `restyle` was given last."""
        return self.options, Shape(self.awaited, self.choose)

    @property
    def has_lost_its_sender(self) -> bool:
        """Whether the connection has ended with its sender, noticed or not."""
        return self.source is not EVERYONE and self.source() is None

    @property
    def is_anchored(self) -> bool:
        """Whether the receiver does not support weak references."""
        return type(self()) is _Anchor

    def restyle(self, options: Options, shape: Shape) -> None:
        """Take new options, in place, so that a send under way calls the receiver by them."""
        if not self.is_anchored:
            # Not the given receiver: a builtin's method is another object at each access, and one is referred to.
            self._held = None if options.weak else self.target()
        self._be_careful()
        self.options = options
        self.awaited = shape.is_async
        self.choose = shape.choose
        self.live = True
        if not options.is_plain or self.is_anchored:
            return
        if shape.choose is not None:
            self.is_choosy = True
        elif self.function is not None:
            self.is_method = True
        elif shape.is_async:
            self.is_coroutine = True
        else:
            self.is_function = True

    def end(self) -> None:
        """Make this connection call nobody any more, in sends under way too."""
        self.live = False
        self._be_careful()
        if not self.is_anchored:  # for then it could not be restored, nor tell its receiver
            self._held = None

    def _be_careful(self) -> None:
        self.is_coroutine = self.is_function = self.is_method = self.is_choosy = False

    def describe(self) -> str:
        """The receiver for messages."""
        receiver = self.target()
        if receiver is None:
            return f"a receiver connected at {self.connected_at}"
        return describe(receiver) if locate(receiver) else f"{describe(receiver)} (connected at {self.connected_at})"

    def claim(self, signal: Signal[..., Any]) -> Receiver | None:
        """The receiver if it may be called now; one connected with `once` is disconnected by this."""
        receiver = self.target()
        if receiver is None or not self.live:
            return None
        if self.options.once and not signal._registry.remove(self):
            return None
        return receiver

    def call(self, receiver: Receiver, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]) -> Any:
        """Call what `claim` gave; returns the response or an awaitable of it."""
        if self.choose is None:
            work = partial(receiver, signal=signal, sender=sender, **arguments)
        else:
            work = partial(self.choose, receiver, signal, sender, **arguments)
        if self.options.in_thread:
            return in_thread(work)
        if self.options.timeout is not None:
            return _within(self.options.timeout, work())
        return work()

    async def respond(
        self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]
    ) -> tuple[Receiver, Any] | None:
        """Call the receiver the long way, whatever its options; `None` when it is not to be called."""
        receiver = self.claim(signal)
        if receiver is None:
            return None
        response = self.call(receiver, signal, sender, arguments)
        if response is not None and isawaitable(response):
            response = await response
        return receiver, response

    def __repr__(self) -> str:
        return f"<asignals.Connection of {self.describe()}>"


async def _within(seconds: float, response: Awaitable[Any]) -> Any:
    with anyio.move_on_after(seconds):
        return await response
    msg = f"the receiver took longer than its timeout of {seconds:g} s"
    raise TimeoutError(msg)


def make_connection(  # noqa: PLR0913, PLR0917  the one place that knows all parts of a connection
    receiver: Receiver,
    options: Options,
    shape: Shape,
    key: Hashable,
    place: tuple[CodeType, int],
    on_death: Callable[[Connection], object],
    *,
    may_surprise: bool,
) -> Connection:
    """Make a connection to a receiver that may be referred to as the options ask for."""
    held: object = None
    try:
        if is_a(receiver, MethodType):
            function: ref[Any] | None = ref(receiver.__func__)
            connection = Connection(receiver.__self__, on_death)
        else:
            function = None
            connection = Connection(receiver, on_death)
    except TypeError:  # it cannot be referred to weakly, and need not be
        held, function = _Anchor(receiver), None
        connection = Connection(held, on_death)
    connection._held = held
    connection.function = function
    connection.key = key
    connection._code, connection._line = place
    connection.reached = not may_surprise
    connection.restyle(options, shape)
    return connection
