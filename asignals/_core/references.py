"""Users' objects: how they are identified, named in messages and referred to, and when their death is a surprise.

Nothing here calls a user's `__eq__`, `__hash__`, `__repr__` or `__getattr__`, nor believes an object's `__class__`:
mocks and proxies lie about it.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Hashable
from contextlib import suppress
from itertools import islice
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, MethodWrapperType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeGuard, TypeVar
from weakref import ref

from asignals._core.errors import ReceiverLostWarning

T = TypeVar("T")
Place: TypeAlias = tuple[CodeType, int]
"""A place in the source: the code and a line of it."""

# -- identity ----------------------------------------------------------------------------------------------------------

# Their ids, because a class may be unhashable by its metaclass.
_VALUE_TYPES = frozenset(map(id, (str, bytes, int, float, complex, bool)))


def is_a(thing: object, kind: type[T]) -> TypeGuard[T]:
    """Returns what `isinstance` returns for objects that do not lie about their class."""
    return issubclass(type(thing), kind)


def method_of(receiver: object) -> MethodType | None:
    """The bound method that a receiver is, or that a proxy stands for: wrapt makes a new proxy at each access."""
    if is_a(receiver, MethodType):
        return receiver
    if any("__wrapped__" in kind.__dict__ for kind in type(receiver).__mro__):
        with suppress(Exception):  # a proxy without an object
            wrapped = receiver.__wrapped__  # type: ignore[attr-defined]
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
        kind = None if method is receiver else id(type(receiver))
        return id(method.__self__), id(method.__func__), kind
    if is_a(receiver, BuiltinFunctionType) or is_a(receiver, MethodWrapperType):
        return id(receiver.__self__), receiver.__name__
    if is_a(receiver, functools.partial) and "__self__" in receiver.__dict__:  # made by a partialmethod
        fixed = *map(id, receiver.args), *((name, id(value)) for name, value in receiver.keywords.items())
        return identify(receiver.func), fixed
    return id(receiver)


def sender_key(sender: object) -> Hashable:
    """The identity of a sender: type and value for numbers, strings and the like, else its `id`."""
    return (type(sender), sender) if id(type(sender)) in _VALUE_TYPES else id(sender)


# -- references --------------------------------------------------------------------------------------------------------


class Holder:
    """Refers to an object that is not to be weakly referenced, and is weakly referenced in its place."""

    def __init__(self, thing: object) -> None:
        self.thing = thing


class Reference(ref[Any]):
    """A weak reference to a user's object or, if it does not support that, to a `Holder` that keeps it.

    An identity, unlike other weak references. `key` identifies the object, `held` is what it keeps alive, and `code`
    and `line` are the place in the source that made it.
    """

    __slots__ = ("code", "held", "key", "line")
    code: CodeType
    held: Any
    key: Hashable
    line: int

    if not TYPE_CHECKING:
        __eq__, __ne__, __hash__ = object.__eq__, object.__ne__, object.__hash__

    def __new__(cls, thing: object, on_death: Callable[[Any], object], place: Place, key: Hashable) -> Self:
        """Refer to an object."""
        try:
            self = super().__new__(cls, thing, on_death)
        except TypeError:
            thing = Holder(thing)
            self = super().__new__(cls, thing, on_death)
        self.held = thing if type(thing) is Holder else None
        (self.code, self.line), self.key = place, key
        return self

    def __init__(self, *_: object) -> None:
        """Does nothing: a weak reference gets its object in `__new__`."""

    def target(self) -> Any:
        """The object, while it lives."""
        found = self()
        return found.thing if type(found) is Holder else found


# -- names for messages ------------------------------------------------------------------------------------------------


def _underlying(receiver: object) -> object:
    """What partials and bound methods call."""
    while is_a(receiver, functools.partial):
        receiver = receiver.func
    method = method_of(receiver)
    return receiver if method is None else method.__func__


def function_of(receiver: object) -> FunctionType | None:
    """The Python function that runs when a receiver is called: its own, or the `__call__` of its class."""
    target = receiver if type(receiver) is FunctionType else _underlying(receiver)
    if not is_a(target, FunctionType) and not is_a(target, type):
        target = next((each.__dict__["__call__"] for each in type(target).__mro__ if "__call__" in each.__dict__), None)
    return target if is_a(target, FunctionType) else None


def locate(receiver: object) -> str | None:
    """Where a receiver is defined, as `file:line`; `None` where no Python code is found for it, or it is a label."""
    target = function_of(receiver)
    with suppress(Exception):  # wrappers may wrap each other, or something that raises
        target = function_of(inspect.unwrap(target))  # type: ignore[arg-type]  # None is not wrapped
    code = None if target is None or target.__module__ is None else target.__code__
    return None if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def name_of(receiver: object) -> str:
    """`module.qualname` of a receiver; runs none of its code.

    A function whose `__module__` is `None` goes by its `__qualname__` alone, and by the place that connected it: so a
    package around the core labels a receiver of its own.
    """
    named: Any = _underlying(receiver)
    if not issubclass(type(named), FunctionType | BuiltinFunctionType | MethodWrapperType | type):
        named = type(named)
    module = getattr(named, "__module__", None)  # None for methods written in C
    return f"{module}.{named.__qualname__}" if module else named.__qualname__


def describe(receiver: object) -> str:
    """A receiver's name and, where it is known, the `file:line` of its definition in parentheses."""
    where = locate(receiver)
    return name_of(receiver) if where is None else f"{name_of(receiver)} ({where})"


# -- death -------------------------------------------------------------------------------------------------------------

# Before Python 3.12 they have frames. The values in them die in the one around.
_COMPREHENSIONS = frozenset({"<listcomp>", "<setcomp>", "<dictcomp>"})


def calling_frame(kind: type) -> FrameType:
    """The frame of the user's code that called: outside of this package, `contextlib` and a subclass's methods."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module, code = str(frame.f_globals.get("__name__")), frame.f_code
        if module not in {"asignals", "contextlib"} and not module.startswith(("asignals.", "<asignals ")):
            methods = [base.__dict__.get(code.co_name) for base in kind.__mro__]
            is_method = any(type(method) is FunctionType and method.__code__ is code for method in methods)
            if not is_method and code.co_name not in _COMPREHENSIONS:
                break
        frame = frame.f_back
    return frame


def is_dying_at(code: CodeType, line: int) -> bool:
    """Whether the frame that dropped the last reference runs a statement on this line.

    To be called in the callback of a weak reference.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _BETWEEN:
        frame = frame.f_back
    if frame.f_code is not code:
        return False
    first, last, _, _ = next(islice(code.co_positions(), frame.f_lasti // 2, None))
    return frame.f_lineno == line or (first is not None and last is not None and first <= line <= last)


_BETWEEN = frozenset({"weakref", "asignals._core.connection", "asignals._core.registry"})
_CACHED = type(functools.cache(len))


def is_easily_lost(receiver: object) -> bool:
    """Whether a receiver that dies unheard is a surprise: a nested function, a lambda, a wrapper or a partial.

    An object that connects its methods and dies later is what weak references are for.
    """
    if is_a(receiver, FunctionType):  # by its code: functools.wraps copies the name of what it wraps
        return "<locals>" in receiver.__code__.co_qualname or receiver.__code__.co_name == "<lambda>"
    return is_a(receiver, functools.partial) or is_a(receiver, _CACHED)


_warned: dict[str, dict[Any, Any]] = {}  # by file: Python's own record of the warnings that were shown


def warn_lost(text: str, file: str, line: int) -> None:
    """Show a `ReceiverLostWarning` at the line of a `connect`, once for each line; never raises."""
    text += " Connect with weak=False, or keep a reference to it (docs/reference/messages.md#receiverlostwarning)."
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
