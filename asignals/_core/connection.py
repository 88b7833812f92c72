"""One receiver connected to one signal: a weak reference to the receiver, and how it is called."""

from __future__ import annotations

import functools
from enum import Enum
from functools import partial
from inspect import CO_ITERABLE_COROUTINE
from types import FunctionType, GeneratorType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypedDict
from weakref import WeakMethod, ref

import anyio

from asignals._core.loops import in_thread
from asignals._core.references import describe, is_a, is_easily_lost, line_of, locate, method_of, name_of
from asignals._core.signatures import Mismatch, Receiver, Shape

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from types import CodeType

    from asignals._core.references import HeldSender, WeakSender
    from asignals._core.signal import Signal


class ConnectOptions(TypedDict, total=False):
    """The options of `connect` beside Django's parameters, for type checkers."""

    priority: float
    subclasses: bool
    in_thread: bool | anyio.CapacityLimiter
    timeout: float | None
    once: bool
    replace: bool


class Options(NamedTuple):
    """The options that a connection was made with."""

    weak: bool = True
    priority: float = 0
    subclasses: bool = False
    in_thread: bool | anyio.CapacityLimiter = False
    timeout: float | None = None
    once: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the receiver is called without anything around the call."""
        return not self.in_thread and self.timeout is None and not self.once

    def given(self) -> dict[str, Any]:
        """The options beside Django's parameters, by name."""
        return {name: value for name, value in self._asdict().items() if name != "weak"}

    def check(self, sender: object, *, is_async: bool) -> None:
        """Raise `Mismatch` for an option that does not fit the receiver or the sender."""
        if self == DEFAULTS:
            return
        reason = self._problem(sender, is_async=is_async)
        if reason is not None:
            raise Mismatch(reason)

    def _problem(self, sender: object, *, is_async: bool) -> str | None:
        if not _is_number(self.priority):
            return f"priority must be a number, not {self.priority!r:.80}"
        if self.in_thread and is_async:
            return "in_thread=True is for sync receivers, and this one is async"
        if self.subclasses and not is_a(sender, type):
            return f"subclasses=True needs a class as the sender, not {type(sender).__name__!r}"
        if self.timeout is None:
            return None
        if self.timeout is True or not _is_number(self.timeout) or self.timeout <= 0:
            return f"timeout must be a positive number of seconds, not {self.timeout!r:.80}"
        return None if is_async else "timeout is for async receivers: nothing could stop a sync one"


DEFAULTS = Options()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and value == value  # NaN has no place in an order


class Kind(Enum):
    """The kinds of call that the written loop makes by itself."""

    COROUTINE_FUNCTION = 1
    FUNCTION = 2
    COROUTINE_METHOD = 3
    METHOD = 4


class Style(NamedTuple):
    """How the written loop calls a receiver: its kind, and the arguments that it takes (`None`: all)."""

    kind: Kind
    wanted: frozenset[str] | None


@functools.lru_cache(maxsize=4096)
def style_of(kind: Kind, wanted: frozenset[str] | None) -> Style:
    """The one style object for each kind and each set of arguments: the written loop compares with `is`."""
    return Style(kind, wanted)


class Subscriber(ref[Any]):
    """One element of a plan: a weak reference to whoever hears of a send, with its place in the order.

    The subclasses are `Connection` and the end of a stream. Where `style` and `choose` are `None`, a send awaits
    `respond`; both are so for a subscriber that has ended, whose `respond` then does nothing.
    """

    __slots__ = ("choose", "is_live", "key", "options", "order", "source", "style")

    if not TYPE_CHECKING:  # an identity, unlike other weak references
        __eq__ = object.__eq__
        __ne__ = object.__ne__
        __hash__ = object.__hash__

    code: CodeType | None = None
    """With `instruction`: where the connection was made."""
    instruction: int = 0
    choose: Callable[..., Any] | None
    is_live: bool
    key: Hashable
    options: Options
    order: int
    source: WeakSender | HeldSender
    style: Style | None

    @property
    def is_async(self) -> bool:
        """Whether a send awaits it."""
        return True

    def target(self) -> Any:
        """Whoever hears, or `None` once it is gone."""
        return self()

    def describe(self) -> str:
        """A name for messages."""
        raise NotImplementedError

    def end(self) -> None:
        """Hear of no more sends, nor of the rest of one under way."""
        self.is_live = False
        self.style = self.choose = None

    async def respond(
        self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]
    ) -> tuple[Receiver, Any] | None:
        """Hear of a send; gives the pair for the results, if there is one."""
        raise NotImplementedError


Subscribers: TypeAlias = "tuple[Subscriber, ...]"


class _Holder:
    """Refers to a receiver that does not support weak references, in the place of which it is weakly referenced."""

    __slots__ = ("__weakref__", "receiver")

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver


class Connection(Subscriber):
    """A receiver connected to a signal; read-only.

    `Signal.connections` gives the same object for as long as the connection lasts, so it may be compared with `is` and
    kept in sets. It is itself the weak reference to the receiver or, for a bound method, to the method's object,
    because following that reference is most of what a send does beside the call.
    """

    __slots__ = ("_held", "_name", "code", "function", "instruction", "is_easily_lost", "method", "shape")

    code: CodeType
    function: FunctionType | None
    instruction: int
    is_easily_lost: bool
    method: WeakMethod[Any] | None
    shape: Shape
    _held: object
    _name: str

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
        """Receivers with a higher one are called first."""
        return self.options.priority

    @property
    def is_async(self) -> bool:
        """Whether the receiver is a coroutine function, or an object with an `async def __call__`."""
        return self.shape.is_async

    @property
    def in_thread(self) -> bool | anyio.CapacityLimiter:
        """Whether the receiver runs in a worker thread, or the limiter of those threads."""
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
    def connected_at(self) -> str:
        """The line that called `connect`, as `file:line`."""
        return f"{self.code.co_filename}:{line_of(self.code, self.instruction)}"

    def target(self) -> Receiver | None:
        """The receiver while it lives, connected or not."""
        if self.method is not None:
            return self.method()
        found = self()
        return found.receiver if type(found) is _Holder else found

    def set_options(self, options: Options, shape: Shape) -> None:
        """Take new options in place, so that a send under way calls the receiver by them."""
        is_held = type(self()) is _Holder
        if not is_held:
            self._held = self.target() if not options.weak else None
        self.choose = self.style = None
        self.options = options
        self.shape = shape
        self.is_live = True
        if is_held or not options.is_plain or not shape.is_plain:
            return
        if self.method is None:
            kind = Kind.COROUTINE_FUNCTION if shape.is_async else Kind.FUNCTION
        elif self.function is not None:
            kind = Kind.COROUTINE_METHOD if shape.is_async else Kind.METHOD
        else:
            return
        self.style = style_of(kind, shape.wanted)

    def end(self) -> None:
        """End the connection, for sends under way too, and let the receiver go."""
        super().end()
        if type(self()) is not _Holder:  # that one is kept, for `target` and for a block that restores it
            self._held = None

    def describe(self) -> str:
        """The receiver's name and `file:line`, also after its death."""
        receiver = self.target()
        if receiver is None:
            return f"{self._name} (connected at {self.connected_at})"
        return describe(receiver) if locate(receiver) else f"{describe(receiver)} (connected at {self.connected_at})"

    def claim(self, signal: Signal[..., Any]) -> Receiver | None:
        """The receiver if it may be called now; disconnects one that was connected with `once`."""
        receiver = self.target()
        if receiver is None or not self.is_live:
            return None
        if self.options.once and not signal._registry.remove(self):
            return None
        return receiver

    def call(self, receiver: Receiver, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]) -> Any:
        """Call what `claim` gave; returns the response or an awaitable of it."""
        if self.options.in_thread:
            work = partial(self.shape.call, receiver, signal, sender, arguments)
            return in_thread(work, None if self.options.in_thread is True else self.options.in_thread)
        response = self.shape.call(receiver, signal, sender, arguments)
        return response if self.options.timeout is None else _within(self.options.timeout, response)

    async def respond(
        self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]
    ) -> tuple[Receiver, Any] | None:
        """Call the receiver, whatever its options; `None` when it is not to be called any more."""
        receiver = self.claim(signal)
        if receiver is None:
            return None
        response = self.call(receiver, signal, sender, arguments)
        return receiver, await response if is_awaitable(response) else response

    def __repr__(self) -> str:
        return f"<asignals.Connection of {self.describe()}>"


# Types of which no instance is awaitable: asking the type of a response takes a tenth of asking inspect.isawaitable.
PLAIN_TYPES = frozenset({type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset})


def is_awaitable(response: object) -> bool:
    """Whether a response is to be awaited; as `inspect.isawaitable`, which takes ten times as long."""
    kind = type(response)
    if kind in PLAIN_TYPES:
        return False
    if isinstance(response, GeneratorType):  # one of a function that types.coroutine marks
        return bool(response.gi_code.co_flags & CO_ITERABLE_COROUTINE)
    return hasattr(kind, "__await__")


async def _within(seconds: float, response: Awaitable[Any]) -> Any:
    with anyio.move_on_after(seconds):
        return await response
    msg = f"the receiver took longer than its timeout of {seconds:g} s"
    raise TimeoutError(msg)


def make_connection(
    receiver: Receiver,
    options: Options,
    shape: Shape,
    place: tuple[CodeType, int],
    on_death: Callable[[Connection], object],
) -> Connection:
    """Connect a receiver that the options allow to be referred to."""
    held: object = None
    method: WeakMethod[Any] | None = None
    try:
        method = WeakMethod(receiver) if is_a(receiver, MethodType) else None
        connection = Connection(receiver if method is None else receiver.__self__, on_death)
    except TypeError:  # it does not support weak references, and is not to be weak
        held, method = _Holder(receiver), None
        connection = Connection(held, on_death)
    connection._held = held
    connection._name = _short_name(receiver)
    connection.method = method
    connection.function = None if method is None else _function_of_class(receiver)
    if method is not None and connection.function is None:  # the function may die before the object
        connection.method = WeakMethod(receiver, partial(_function_died, on_death, connection))
    connection.code, connection.instruction = place
    connection.is_easily_lost = is_easily_lost(receiver)
    connection.set_options(options, shape)
    return connection


def _function_died(on_death: Callable[[Connection], object], connection: Connection, _: object) -> None:
    on_death(connection)


def _function_of_class(method: Any) -> FunctionType | None:
    """The function of a method, if its object's class keeps it alive: only then a connection may refer to it, too."""
    function, owner = method.__func__, method.__self__
    for kind in owner.__mro__ if is_a(owner, type) else type(owner).__mro__:
        found = kind.__dict__.get(getattr(function, "__name__", ""))
        if found is function or (is_a(found, classmethod) and found.__func__ is function):
            return function if is_a(function, FunctionType) else None
    return None


def _short_name(receiver: Receiver) -> str:
    method = method_of(receiver)
    named = receiver if method is None else method.__func__
    return named.__qualname__ if is_a(named, FunctionType) else name_of(receiver)
