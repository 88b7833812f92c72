"""What a receiver accepts and whether it is awaited, found out once, when it is connected."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from inspect import (
    CO_ASYNC_GENERATOR,
    CO_COROUTINE,
    CO_GENERATOR,
    CO_ITERABLE_COROUTINE,
    CO_VARKEYWORDS,
    Parameter,
    Signature,
)
from types import FunctionType, MethodType
from typing import Any, NamedTuple, TypeAlias

from asignals._refs import function_of, is_a

Receiver: TypeAlias = Callable[..., Any]

_RESERVED = frozenset({"signal", "sender"})


class Shape(NamedTuple):
    """A receiver as the dispatcher sees it."""

    is_async: bool
    choose: Callable[..., Any] | None
    """Calls it with the arguments it names (`_compile.choose`), or `None` when it takes them all."""


class Mismatch(Exception):  # noqa: N818  never leaves the core: connect turns it into InvalidReceiverError
    """Why a receiver cannot be called with the arguments of a signal."""


def is_coroutine_function(receiver: Receiver) -> bool:
    """Whether calling the receiver gives a coroutine, also for objects with an `async def __call__`."""
    function = function_of(receiver)
    if function is not None and function.__code__.co_flags & CO_COROUTINE:
        return True
    return _is_marked(receiver) or inspect.iscoroutinefunction(function)


def _is_marked(receiver: Receiver) -> bool:
    try:
        if isinstance(receiver, FunctionType | MethodType) and type(receiver) not in (FunctionType, MethodType):
            return False  # a mock, whose code's flags would be a mock too
        return inspect.iscoroutinefunction(receiver)
    except Exception:  # noqa: BLE001  inspect asks for attributes, and those of proxies may raise anything
        return False


def examine(receiver: Receiver, names: tuple[str, ...] | None) -> tuple[bool, frozenset[str] | None]:
    """Find out how to call a receiver of a signal that sends `names` (`None`: any keywords).

    Returns whether it is async, and the arguments that it names (`None`: it takes them all).
    Raises `Mismatch`, with the reason, when no send could call it.
    """
    if _is_generator_function(receiver):
        reason = "it is a generator function, so calling it would run none of its code; make it a function"
        raise Mismatch(reason)
    parameters = _parameters(receiver)
    wanted = None if parameters is None else _wanted(parameters, names)
    return is_coroutine_function(receiver), wanted


def _is_generator_function(receiver: Receiver) -> bool:
    function = function_of(receiver)
    flags = 0 if function is None else function.__code__.co_flags
    # types.coroutine marks generator functions whose generators are awaitable; those are fine.
    return bool(flags & CO_ASYNC_GENERATOR) or flags & (CO_GENERATOR | CO_ITERABLE_COROUTINE) == CO_GENERATOR


class _Parameter(NamedTuple):
    name: str
    kind: Any
    is_required: bool


def _parameters(receiver: Receiver) -> list[_Parameter] | None:
    """The parameters that matter: a wrapper that passes everything on is as picky as what it wraps."""
    function = receiver.__func__ if type(receiver) is MethodType else receiver
    if type(function) is FunctionType and not function.__dict__:
        found = _parameters_of(function)
        if function is receiver:
            return found
        if function.__code__.co_argcount:
            return found[1:]
    # inspect compares the objects that it is asked about, so it is not asked about those with an __eq__ of their own.
    called = _plain_call_of(receiver)
    if called is not None:
        return _parameters_of(called)[1:]
    outer = _signature(receiver, follow_wrapped=False)
    if outer is not None and not _takes_all(outer):
        return outer
    return _signature(receiver, follow_wrapped=True)


def _plain_call_of(receiver: Receiver) -> FunctionType | None:
    """The `__call__` of an object's class, if that is all there is to know of its signature."""
    kinds = type(receiver).__mro__
    if not any("__eq__" in kind.__dict__ for kind in kinds[:-1]) or is_a(receiver, type):
        return None
    if any("__signature__" in kind.__dict__ for kind in kinds):
        return None
    called = function_of(receiver)
    return called if called is not None and not called.__dict__ and called.__code__.co_argcount else None


def _parameters_of(function: FunctionType) -> list[_Parameter]:
    """What `inspect.signature` would tell of a function without attributes, without what that costs."""
    code, defaults, keyword_defaults = function.__code__, function.__defaults__ or (), function.__kwdefaults__ or {}
    by_position = code.co_varnames[: code.co_argcount]
    by_keyword = code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]
    kinds: list[Any] = [Parameter.POSITIONAL_ONLY] * code.co_posonlyargcount
    kinds += [Parameter.POSITIONAL_OR_KEYWORD] * (code.co_argcount - len(kinds))
    required = code.co_argcount - len(defaults)
    found = [
        _Parameter(name, kind, i < required) for i, (name, kind) in enumerate(zip(by_position, kinds, strict=True))
    ]
    found += [_Parameter(name, Parameter.KEYWORD_ONLY, name not in keyword_defaults) for name in by_keyword]
    if code.co_flags & CO_VARKEYWORDS:
        found.append(_Parameter("", Parameter.VAR_KEYWORD, is_required=False))
    return found


# Annotations are never needed here, and from 3.14 on they are evaluated unless one asks not to, which could raise.
_UNEVALUATED: dict[str, Any] = (
    {"annotation_format": import_module("annotationlib").Format.FORWARDREF} if sys.version_info >= (3, 14) else {}
)


def signature_of(function: Callable[..., Any], *, follow_wrapped: bool = True) -> Signature:
    """What `inspect.signature` tells, without evaluating annotations."""
    return inspect.signature(function, follow_wrapped=follow_wrapped, **_UNEVALUATED)


def _signature(receiver: Receiver, *, follow_wrapped: bool) -> list[_Parameter] | None:
    try:
        parameters = signature_of(receiver, follow_wrapped=follow_wrapped).parameters.values()
    except Exception:  # noqa: BLE001  it has none, or is a mock that calls itself a function, or as above
        return None
    return [_Parameter(p.name, p.kind, p.default is Parameter.empty) for p in parameters]


def _takes_all(parameters: list[_Parameter]) -> bool:
    return any(p.kind is Parameter.VAR_KEYWORD for p in parameters)


def _wanted(parameters: list[_Parameter], names: tuple[str, ...] | None) -> frozenset[str] | None:
    by_name = {p.name for p in parameters if p.kind in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)}
    required = [p for p in parameters if p.is_required]
    for parameter in required:
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            reason = f"arguments go by name, and its parameter {parameter.name!r} can only be given by position"
            raise Mismatch(reason)
    takes_all = _takes_all(parameters)
    if names is None:
        if not takes_all:
            reason = "it must accept any keyword arguments: add **kwargs (or declare the signal's arguments)"
            raise Mismatch(reason)
        return None
    sent = _RESERVED.union(names)
    unsent = [p.name for p in required if p.name in by_name and p.name not in sent]
    if unsent:
        reason = f"it asks for {', '.join(map(repr, unsent))}, and the signal sends {_listing(names)}"
        raise Mismatch(reason)
    return None if takes_all else frozenset(by_name & sent)


def _listing(names: tuple[str, ...]) -> str:
    return ", ".join(["signal", "sender", *names])
