"""Who is who: identities that survive weak references, and names that are safe to print.

Everything here works on objects that users give, so nothing calls their `__eq__`, `__hash__`, `__repr__` or
`__getattr__`, nor believes their `__class__`, as `isinstance` does: mocks and proxies lie about it.
"""

from __future__ import annotations

import functools
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, MethodWrapperType, ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")

# Of ids, because a class may be unhashable by its metaclass.
_VALUE_TYPES = frozenset(map(id, (str, bytes, int, float, complex, bool)))


def is_a(thing: object, kind: type[T]) -> TypeGuard[T]:
    """What `isinstance` answers for objects that do not lie."""
    return issubclass(type(thing), kind)


def is_value(sender: object) -> bool:
    """Whether a sender is known by its type and value instead of its identity."""
    return id(type(sender)) in _VALUE_TYPES


def identify(receiver: Callable[..., Any]) -> Hashable:
    """The identity of a receiver: equal for two bound methods of one function and one object, and for nothing else.

    Bound methods, of Python and of C, are new objects at each access, so they are known by what they are bound to.
    """
    if is_a(receiver, MethodType):
        return id(receiver.__self__), id(receiver.__func__)
    if is_a(receiver, BuiltinFunctionType) or is_a(receiver, MethodWrapperType):
        return id(receiver.__self__), receiver.__name__
    return id(receiver)


def sender_key(sender: object) -> Hashable:
    """The identity of a sender: type and value for numbers, strings and the like, else the `id`.

    An `id` may be used again, so whoever finds something under it compares with `is` before trusting it.
    """
    return (type(sender), sender) if is_value(sender) else id(sender)


class WeakSender(ref[Any]):
    """A sender that is not kept alive, with the key it is filed under."""

    __slots__ = ("key",)

    key: Hashable


class HeldSender:
    """A sender that is kept: a value, or an object without support for weak references."""

    __slots__ = ("key", "sender")

    def __init__(self, sender: object, key: Hashable) -> None:
        self.sender: object = sender
        self.key: Hashable = key

    def __call__(self) -> object:
        return self.sender


EVERYONE = HeldSender(None, None)


def hold_sender(sender: object, on_death: Callable[[WeakSender], object]) -> WeakSender | HeldSender:
    """Refer to a sender, weakly where that is possible and an identity is meant."""
    key = sender_key(sender)
    if is_value(sender):
        return HeldSender(sender, key)
    try:
        weak = WeakSender(sender, on_death)
    except TypeError:
        return HeldSender(sender, key)
    weak.key = key
    return weak


def _underlying(receiver: object) -> object:
    while is_a(receiver, functools.partial):
        receiver = receiver.func
    return receiver.__func__ if is_a(receiver, MethodType) else receiver


def function_of(receiver: object) -> FunctionType | None:
    """The Python function that runs when a receiver is called: its own, or its class's `__call__`."""
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


def _code_of(receiver: object) -> CodeType | None:
    target = function_of(receiver)
    for _ in range(100):  # wrappers might wrap each other
        if target is None or "__wrapped__" not in target.__dict__:
            break
        target = function_of(target.__dict__["__wrapped__"])
    return None if target is None else target.__code__


def locate(receiver: object) -> str | None:
    """Where a receiver is defined, as `file:line`, or `None` when no Python code can be found for it."""
    code = _code_of(receiver)
    return None if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def name_of(receiver: object) -> str:
    """`module.qualname` of a receiver, without running any code of its own."""
    target = receiver
    while is_a(target, functools.partial):
        target = target.func
    if is_a(target, MethodType) and is_a(target.__func__, FunctionType):
        target = target.__func__
    if is_a(target, FunctionType):
        return f"{target.__module__}.{target.__qualname__}"
    if is_a(target, BuiltinFunctionType) or is_a(target, MethodWrapperType):
        owner = target.__self__
        where = owner.__name__ if is_a(owner, ModuleType) else type(owner).__qualname__
        return f"{where}.{target.__name__}"
    kind = target if is_a(target, type) else type(target)
    return f"{kind.__module__}.{kind.__qualname__}"


def describe(receiver: object) -> str:
    """A receiver for messages: its name, and where it is defined if that is known."""
    where = locate(receiver)
    return name_of(receiver) if where is None else f"{name_of(receiver)} ({where})"
