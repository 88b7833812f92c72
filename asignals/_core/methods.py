"""The methods `send` and `send_robust` of signals with declared arguments, in classes that are made for their names."""

from __future__ import annotations

import functools
import inspect
import sys
from inspect import Signature
from types import FunctionType, MethodType
from typing import Any

from asignals._core.dispatch import deliver, watchers
from asignals._core.objects import FORWARDS, Names, Stub
from asignals._core.written import write

if sys.version_info < (3, 12):
    from asyncio import coroutines

_SEND = """\
def @send(@self, /, sender, @parameters):
    @plan = @self._direct.plan or @self._direct.plan_for(sender)
    if @plan.loop is None or @watchers:
        return @deliver(@self, sender, @arguments, @on_error)
    return @plan.loop(@plan, @self, sender, @on_error, @plan.connections, [], @positions)
"""
_BIND = """\
def @bind(@self, /, sender, @parameters):
    return sender, @arguments
"""
_METHODS = {"send": _SEND.replace("on_error", "annotate"), "send_robust": _SEND.replace("on_error", "catch")}
_METHODS["_bind"] = _BIND


@functools.lru_cache(maxsize=4096)
def _write_method(name: str, names: Names) -> FunctionType:
    return write(_METHODS[name], f"{name}(@positions)", names, deliver=deliver, watchers=watchers)


# A class, and not an attribute of the instance, carries the written methods: a function that is stored on the instance
# that it is bound to makes a reference cycle.
class _WrittenMethod:
    """A method that is written when it is first asked for."""

    def __init__(self, name: str, names: Names, root: type[Any], stub: Stub | None) -> None:
        self._facts = name, names, root, stub

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._owner = owner

    def __get__(self, instance: object, owner: type[Any] | None = None) -> Any:
        method = self._make(*self._facts)
        setattr(self._owner, self._facts[0], method)
        return method if instance is None else MethodType(method, instance)

    @staticmethod
    def _make(name: str, names: Names, root: type[Any], stub: Stub | None) -> FunctionType:
        """A separate function around the shared code."""
        shared = _write_method(name, names)
        method = FunctionType(shared.__code__, shared.__globals__, name)
        like = stub.function if stub else root
        method.__qualname__ = f"{like.__qualname__}.{name.replace('_bind', 'send')}"  # in Python's own TypeError
        method.__module__, method.__doc__ = like.__module__, root.__dict__[name].__doc__
        mark_as_send(method)
        if stub is not None:
            method.__defaults__ = stub.function.__defaults__
            method.__kwdefaults__ = dict(stub.function.__kwdefaults__ or {})
            own = next(iter(inspect.signature(shared).parameters.values()))
            method.__signature__ = Signature([own, *stub.parameters])  # type: ignore[attr-defined]  # inspect reads it
        return method


def mark_as_send(function: Any) -> None:
    """Mark a function as one that passes an event on and returns an awaitable, for `connect` and for frameworks."""
    setattr(function, FORWARDS, True)
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(function)
    if sys.version_info < (3, 12):
        function._is_coroutine = coroutines._is_coroutine  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=4096)
def class_for_names(base: type[Any], root: type[Any], names: Names) -> type[Any]:
    """`base` with methods written for `names`, below whatever `base` overrides itself."""
    made = class_for(root, names)
    if base is root:
        return made
    # A user's `__init_subclass__` is not to be called for a class that the user did not write.
    silent = _subclass((root,), root, __init_subclass__=classmethod(lambda cls: None))  # noqa: ARG005
    return _subclass((silent, base, made), base)


def class_for(root: type[Any], names: Names, stub: Stub | None = None) -> type[Any]:
    """`root` with methods written for `names`, with the types and defaults of a stub."""
    methods = {name: _WrittenMethod(name, names, root, stub) for name in _METHODS}
    return _subclass((root,), root, _written_for=names, **methods)


def _subclass(bases: tuple[type[Any], ...], like: type[Any], **attributes: Any) -> type[Any]:
    named = {"__module__": like.__module__, "__qualname__": like.__qualname__, "__doc__": like.__doc__}
    return type(like.__name__, bases, {**named, "__slots__": (), **attributes})
