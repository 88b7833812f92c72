"""Users' objects: how they are identified, named in messages and referred to, and when their death is a surprise.

Nothing here calls a user's `__eq__`, `__hash__`, `__repr__` or `__getattr__`, nor believes an object's `__class__`:
mocks and proxies lie about it.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable, Hashable
from itertools import islice
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, MethodWrapperType, ModuleType
from typing import Any, TypeGuard, TypeVar
from weakref import ref

from asignals._core.errors import ReceiverLostWarning

T = TypeVar("T")

# -- identity ----------------------------------------------------------------------------------------------------------

# Their ids, because a class may be unhashable by its metaclass.
_VALUE_TYPES = frozenset(map(id, (str, bytes, int, float, complex, bool)))


def is_a(thing: object, kind: type[T]) -> TypeGuard[T]:
    """Returns what `isinstance` returns for objects that do not lie about their class."""
    return issubclass(type(thing), kind)


def method_of(receiver: object) -> MethodType | None:
    """The bound method that a receiver is, or that a proxy stands for: wrapt makes a new proxy at each access."""
    if type(receiver) is FunctionType:
        return None
    if is_a(receiver, MethodType):
        return receiver
    if any("__wrapped__" in kind.__dict__ for kind in type(receiver).__mro__):
        try:
            wrapped = receiver.__wrapped__  # type: ignore[attr-defined]
        except Exception:  # noqa: BLE001  a proxy without an object
            return None
        return wrapped if type(wrapped) is MethodType else None
    return None


def identify(receiver: Callable[..., Any]) -> Hashable:
    """The identity of a receiver: equal for two accesses to one method of one object, and for nothing else.

    Bound methods of Python and C, those that wrapt wraps, and those of `functools.partialmethod` are new objects at
    each access.
    """
    if type(receiver) is FunctionType:
        return id(receiver)
    method = method_of(receiver)
    if method is not None:
        kind = () if method is receiver else (id(type(receiver)),)
        return (id(method.__self__), id(method.__func__), *kind)
    if is_a(receiver, BuiltinFunctionType) or is_a(receiver, MethodWrapperType):
        return id(receiver.__self__), receiver.__name__
    if is_a(receiver, functools.partial) and "__self__" in receiver.__dict__:  # made by a partialmethod
        fixed = *map(id, receiver.args), *((name, id(value)) for name, value in receiver.keywords.items())
        return identify(receiver.func), fixed
    return id(receiver)


def sender_key(sender: object) -> Hashable:
    """The identity of a sender: type and value for numbers, strings and the like, else its `id`.

    An `id` may be used again: compare the sender that is found under it with `is`.
    """
    return (type(sender), sender) if id(type(sender)) in _VALUE_TYPES else id(sender)


# -- senders -----------------------------------------------------------------------------------------------------------


class WeakSender(ref[Any]):
    """A weak reference to a sender, with its key and the place of the `connect` that made it."""

    __slots__ = ("key", "place")

    key: Hashable
    place: tuple[CodeType, int] | None


class HeldSender:
    """A sender that is kept alive: a value, or an object without support for weak references."""

    __slots__ = ("key", "sender")

    def __init__(self, sender: object, key: Hashable) -> None:
        self.sender: object = sender
        self.key: Hashable = key

    def __call__(self) -> object:
        return self.sender


EVERYONE = HeldSender(None, None)


def refer_to_sender(
    sender: object, on_death: Callable[[WeakSender], object], place: tuple[CodeType, int] | None
) -> WeakSender | HeldSender:
    """Refers to a sender: weakly, unless it is a value or does not support weak references."""
    key = sender_key(sender)
    try:
        weak = None if type(key) is tuple else WeakSender(sender, on_death)
    except TypeError:
        weak = None
    if weak is None:
        return HeldSender(sender, key)
    weak.key, weak.place = key, place
    return weak


# -- names for messages ------------------------------------------------------------------------------------------------


def _underlying(receiver: object) -> object:
    if type(receiver) is FunctionType:
        return receiver
    while is_a(receiver, functools.partial):
        receiver = receiver.func
    method = method_of(receiver)
    return receiver if method is None else method.__func__


def function_of(receiver: object) -> FunctionType | None:
    """The Python function that runs when a receiver is called: its own, or the `__call__` of its class."""
    target = _underlying(receiver)
    if is_a(target, FunctionType):
        return target
    if is_a(target, type):
        return None
    for kind in type(target).__mro__:
        if "__call__" in kind.__dict__:
            called = kind.__dict__["__call__"]
            return called if is_a(called, FunctionType) else None
    return None


def locate(receiver: object) -> str | None:
    """Where a receiver is defined, as `file:line`; `None` where no Python code is found for it."""
    target = function_of(receiver)
    for _ in range(100):  # wrappers may wrap each other
        if target is None or "__wrapped__" not in target.__dict__:
            break
        target = function_of(target.__dict__["__wrapped__"])
    return None if target is None else f"{target.__code__.co_filename}:{target.__code__.co_firstlineno}"


def name_of(receiver: object) -> str:
    """`module.qualname` of a receiver; runs none of its code."""
    target = receiver
    while is_a(target, functools.partial):
        target = target.func
    method = method_of(target)
    if method is not None and is_a(method.__func__, FunctionType):
        target = method.__func__
    if is_a(target, FunctionType):
        return f"{target.__module__}.{target.__qualname__}"
    if is_a(target, BuiltinFunctionType) or is_a(target, MethodWrapperType):
        owner = target.__self__
        where = owner.__name__ if is_a(owner, ModuleType) else type(owner).__qualname__
        return f"{where}.{target.__name__}"
    kind = target if is_a(target, type) else type(target)
    return f"{kind.__module__}.{kind.__qualname__}"


def describe(receiver: object) -> str:
    """A receiver's name and, where it is known, the `file:line` of its definition in parentheses."""
    where = locate(receiver)
    return name_of(receiver) if where is None else f"{name_of(receiver)} ({where})"


# -- death -------------------------------------------------------------------------------------------------------------


def calling_frame(kind: type) -> FrameType:
    """The frame of the user's code that called: outside of this package, `contextlib` and a subclass's methods."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module, code = str(frame.f_globals.get("__name__", "")), frame.f_code
        if module not in {"asignals", "contextlib"} and not module.startswith(("asignals.", "<asignals ")):
            methods = [base.__dict__.get(code.co_name) for base in kind.__mro__]
            if not any(is_a(method, FunctionType) and method.__code__ is code for method in methods):
                break
        frame = frame.f_back
    return frame


def place_of(frame: FrameType) -> tuple[CodeType, int]:
    """The code and the instruction that a frame runs: a place in the source."""
    if sys.version_info < (3, 12):  # a comprehension has a frame of its own, and its values die in the one around it
        while frame.f_code.co_name in {"<listcomp>", "<setcomp>", "<dictcomp>"} and frame.f_back is not None:
            frame = frame.f_back
    return frame.f_code, frame.f_lasti


def _position(code: CodeType, instruction: int) -> tuple[int, int, int, int]:
    """First and last line, first and last column; 0 for what the interpreter does not know."""
    first, last, column, end = next(islice(code.co_positions(), instruction // 2, None), (0, 0, 0, 0))
    return first or 0, last or 0, column or 0, end or 0


def line_of(code: CodeType, instruction: int) -> int:
    """The line of a place."""
    return _position(code, instruction)[0] or code.co_firstlineno


def is_running(frame: FrameType, code: CodeType, instruction: int) -> bool:
    """Whether a frame runs the expression of a place, or one around it."""
    if frame.f_code is not code:
        return False
    first, last, column, end = _position(code, frame.f_lasti)
    line, _, start, _ = _position(code, instruction)
    return (first, column) <= (line, start) < (last, end or math.inf)  # -X no_debug_ranges keeps no columns


_CACHED = type(functools.cache(len))


def is_easily_lost(receiver: object) -> bool:
    """Whether a receiver that dies unheard is a surprise: a nested function, a lambda, a wrapper or a partial.

    An object that connects its methods and dies later is what weak references are for.
    """
    if is_a(receiver, FunctionType):  # by its code: functools.wraps copies the name of what it wraps
        return "<locals>" in receiver.__code__.co_qualname or receiver.__code__.co_name == "<lambda>"
    return is_a(receiver, functools.partial) or is_a(receiver, _CACHED)


# For each file, as each module has one: Python's own record of the warnings that were shown.
_warned: dict[str, dict[Any, Any]] = {}


def warn_lost(text: str, code: CodeType, instruction: int) -> None:
    """Show a `ReceiverLostWarning` at the line of a `connect`, once for each line; never raises."""
    text += " Connect with weak=False, or keep a reference to it (docs/reference/messages.md#receiverlostwarning)."
    file, line = code.co_filename, line_of(code, instruction)
    try:
        warnings.warn_explicit(text, ReceiverLostWarning, file, line, registry=_warned.setdefault(file, {}))
    except ReceiverLostWarning as error:  # a filter made it an error, and whoever runs now has not asked for it
        _Unraisable(error)


class _Unraisable:
    """Dies at once and raises then: so Python reports an exception that has no caller, to `sys.unraisablehook`."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __del__(self) -> None:
        raise self._error
