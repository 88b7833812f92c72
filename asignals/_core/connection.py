"""One receiver connected to one signal: a weak reference to the receiver, and how it is called."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Hashable
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict
from weakref import WeakMethod

import anyio

from asignals._core.loops import in_thread
from asignals._core.objects import Holder, Place, Receiver, Reference, Shape, describe, identify, is_a, locate, name_of

if TYPE_CHECKING:
    from asignals._core.signal import Signal


class Options(NamedTuple):
    """The options that a connection was made with."""

    weak: bool = True
    priority: float = 0
    subclasses: bool = False
    in_thread: bool | anyio.CapacityLimiter = False
    timeout: float | None = None
    once: bool = False

    def problem(self, sender: object, *, is_async: bool) -> str | None:
        """What does not fit the receiver or the sender, if anything."""
        if not isinstance(self.priority, int | float) or self.priority != self.priority:  # NaN has no place in an order
            return f"priority must be a number, not {self.priority!r:.80}"
        if self.in_thread and is_async:
            return "in_thread=True is for sync receivers, and this one is async"
        if self.subclasses and not is_a(sender, type):
            return f"subclasses=True needs a class as the sender, not {type(sender).__name__!r}"
        if self.timeout is None:
            return None
        if self.timeout is True or not isinstance(self.timeout, int | float) or not self.timeout > 0:
            return f"timeout must be a positive number of seconds, not {self.timeout!r:.80}"
        return None if is_async else "timeout is for async receivers: nothing could stop a sync one"


DEFAULTS = Options()


class ConnectOptions(TypedDict, total=False):
    """The options that `connect` takes by name only."""

    priority: float
    subclasses: bool
    in_thread: bool | anyio.CapacityLimiter
    timeout: float | None
    once: bool
    replace: bool


class AllOptions(ConnectOptions, total=False):
    """All options of `connect`."""

    weak: bool
    dispatch_uid: Hashable | None


def _read(get: Callable[[Any], Any], doc: str) -> Any:
    """An attribute that cannot be set."""
    return property(get, doc=doc)


class Connection(Reference):
    """A receiver connected to a signal; read-only.

    `Signal.connections` gives the same object for as long as the connection lasts, so it may be compared with `is` and
    kept in sets. It is itself the weak reference to the receiver or, for a bound method, to the method's object,
    because following that reference is most of what a send does beside the call.
    """

    is_receiver = True  # a stream's connection has none
    # A send compares `style` with the numbers of the shapes that its loop is written for; else it asks `take`, and uses
    # `call`. For a receiver with options, and once the connection has ended, `style` is None.
    __slots__ = ("function", "is_live", "method", "name", "options", "shape", "source", "style")

    name: str
    source: Reference  # to the sender

    receiver: Final[Receiver | None] = _read(lambda self: self.target(), "What is connected; `None` once it has died.")
    sender: Final[object] = _read(lambda self: self.source.target(), "Its sender; `None` for all, and for a dead one.")
    weak: Final[bool] = _read(lambda self: self.options.weak, "Whether the signal lets the receiver die.")
    priority: Final[float] = _read(lambda self: self.options.priority, "Receivers with a higher one are called first.")
    is_async: Final[bool] = _read(lambda self: self.shape.is_async, "Whether calling the receiver gives a coroutine.")
    in_thread: Final[bool | anyio.CapacityLimiter] = _read(
        lambda self: self.options.in_thread, "Whether the receiver runs in a thread, or the limiter of those threads."
    )

    def __init__(self, *_: object) -> None:
        self.function: Any = None
        self.is_live: bool = False
        self.method: WeakMethod[Any] | None = None
        self.style: int | None = None

    @property
    def dispatch_uid(self) -> Hashable | None:
        """The identifier given to `connect`, if any."""
        return self.key[1] if isinstance(self.key, tuple) and self.key[0] == "uid" else None

    @property
    def location(self) -> str:
        """Where the receiver is defined, as `file:line`; without Python code, or dead, where it was connected."""
        return locate(self.target()) or self.connected_at

    @property
    def connected_at(self) -> str:
        """The line that called `connect`, as `file:line`."""
        return f"{self.code.co_filename}:{self.line}"

    def target(self) -> Any:
        """The receiver while it lives, connected or not."""
        return Reference.target(self) if self.method is None else self.method()

    def set_options(self, options: Options, shape: Shape) -> None:
        """Take new options in place, so that a send under way calls the receiver by them."""
        self.style = None
        self.options: Options = options
        self.shape: Shape = shape
        if type(self.held) is not Holder:
            self.held: Any = None if options.weak else self.target()
            needs_care = options.in_thread or options.once or options.timeout is not None
            self.style = shape.number if shape.is_method == bool(self.method) and not needs_care else None

    def end(self) -> None:
        """End the connection, for sends under way too, and let the receiver go."""
        self.is_live = False
        self.style = None
        if type(self.held) is not Holder:  # that one is kept, for `target` and for a block that restores it
            self.held = None

    def describe(self) -> str:
        """The receiver's name and `file:line`, also after its death."""
        receiver = self.target()
        return describe(receiver) if locate(receiver) else f"{self.name} (connected at {self.connected_at})"

    def take(self, signal: Signal[..., Any]) -> Any:
        """The receiver if it is to be called now, else `None`: at most one send gets it if it is connected `once`."""
        receiver, is_live = self.target(), self.is_live
        if is_live and self.options.once:
            is_live = any(each.remove(self) for each in signal._registries().values())
        return receiver if is_live else None

    def call(self, receiver: Receiver, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]) -> Any:
        """Call the receiver by its options, with the arguments that it takes; the response may be awaitable."""
        shape, options, given = self.shape, self.options, {"signal": signal, "sender": sender, **arguments}
        if not shape.takes_signal:
            del given["signal"]
        if shape.wanted is not None:
            given = {name: given[name] for name in shape.wanted}
        first = () if shape.by_position is None else (given.pop(shape.by_position),)
        call = functools.partial(receiver, *first, **given)
        if options.in_thread:
            return in_thread(call, None if options.in_thread is True else options.in_thread)
        return call() if options.timeout is None else _within(options.timeout, call)

    def __repr__(self) -> str:
        return f"<asignals.Connection of {self.describe()}>"


Connections = tuple[Connection, ...]


async def _within(seconds: float, call: Callable[[], Awaitable[Any]]) -> Any:
    with anyio.move_on_after(seconds):
        return await call()
    raise TimeoutError(f"the receiver took longer than its timeout of {seconds:g} s")


def key_of(receiver: Receiver | None, uid: Hashable) -> Hashable:
    """The key of a connection among those of its sender."""
    return ("uid", uid) if receiver is None or uid is not None else identify(receiver)


def connection_to(  # noqa: PLR0913, PLR0917  a connection has this many parts
    receiver: Any, uid: Hashable, on_death: Callable[[Any], object], place: Place, options: Options, shape: Shape
) -> Connection:
    """Make a connection to a receiver that the options allow to be referred to."""
    thing, method = receiver, None
    if is_a(receiver, MethodType):
        try:
            thing, method = receiver.__self__, WeakMethod(receiver)
        except TypeError:  # its object or its function does not support weak references
            thing = Holder(receiver)
    connection = Connection(thing, on_death, place, key_of(receiver, uid))
    connection.name = receiver.__qualname__ if type(receiver) is FunctionType else name_of(receiver)
    connection.method = method
    connection.function = receiver.__func__ if shape.is_method else None
    if method is not None and not shape.is_method:  # the function may die before the object
        connection.method = WeakMethod(receiver, lambda _: on_death(connection))
    connection.set_options(options, shape)
    return connection
