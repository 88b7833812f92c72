"""Signal classes for declared arguments: one per set of names, and one per stub for its types and defaults.

A class and not an attribute of the instance carries the generated methods, because a function that is stored on the
instance it is bound to makes a reference cycle.
"""

from __future__ import annotations

import functools
import inspect
from inspect import Parameter, Signature
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from asignals._compile import Names, Specialised, check_names, specialise
from asignals._exceptions import DeclarationError
from asignals._receivers import signature_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from asignals._signal import Signal

_METHODS = {"send": "send", "send_robust": "send_robust", "_bind": "bind"}


@functools.lru_cache(maxsize=1024)
def class_for_names(base: type[Signal[..., Any]], root: type[Signal[..., Any]], names: Names) -> type[Any]:
    """`base` with the methods specialised for `names`, below whatever `base` overrides itself."""
    specialised = _specialised(root, names)
    return specialised if base is root else _below(base, specialised)


def class_for_stub(root: type[Signal[..., Any]], stub: Stub) -> type[Any]:
    """`root` with the methods specialised for a stub, with its types and defaults."""
    return _specialised(root, stub.names, stub)


def _specialised(root: type[Any], names: Names, stub: Stub | None = None) -> type[Any]:
    methods = {name: _method(specialise(names), name, root, stub) for name in _METHODS}
    return type(root.__name__, (root,), _namespace(root, methods))


def _below(base: type[Any], specialised: type[Any]) -> type[Any]:
    silent = _silent(specialised.__base__)
    return type(base.__name__, (silent, base, specialised), _namespace(base, {}))


@functools.cache
def _silent(root: type[Any]) -> type[Any]:
    """Keeps a user's `__init_subclass__` from hearing of classes that the user did not write."""
    hook = classmethod(lambda cls: None)  # noqa: ARG005  the hook's parameter
    return type(root.__name__, (root,), _namespace(root, {"__init_subclass__": hook}))


def _namespace(like: type[Any], methods: dict[str, Any]) -> dict[str, Any]:
    names = {"__module__": like.__module__, "__qualname__": like.__qualname__, "__doc__": like.__doc__}
    return {**names, "__slots__": (), **methods}


def _method(written: Specialised, name: str, root: type[Any], stub: Stub | None = None) -> FunctionType:
    """A function of its own around the shared code."""
    shared: FunctionType = getattr(written, _METHODS[name])
    method = FunctionType(shared.__code__, shared.__globals__, name)
    shown = "send" if name == "_bind" else name  # in Python's own TypeError
    method.__qualname__ = f"{stub.qualname if stub else root.__qualname__}.{shown}"
    method.__module__ = stub.module if stub else root.__module__
    original = root.__dict__.get(name)
    method.__doc__ = getattr(original, "__doc__", None)
    if stub is not None:
        method.__defaults__ = stub.sender_default
        method.__kwdefaults__ = dict(stub.defaults)
        own = next(iter(inspect.signature(shared).parameters.values()))
        method.__signature__ = Signature([own, *stub.parameters])  # type: ignore[attr-defined]  # inspect reads it
    return method


class Stub(NamedTuple):
    """What a stub function declares."""

    module: str
    qualname: str
    names: Names
    parameters: list[Parameter]
    defaults: dict[str, Any]
    sender_default: tuple[Any, ...] | None


def read_stub(stub: Callable[..., Any]) -> Stub:
    """Read a stub; raises `DeclarationError` for one that no signal can be made of."""
    if not isinstance(stub, FunctionType):
        msg = f"@signal takes a function as a stub, not {type(stub).__name__}: {stub!r:.80}"
        raise DeclarationError(msg)
    where = f"@signal stub {stub.__module__}.{stub.__qualname__}"
    parameters = list(signature_of(stub).parameters.values())
    if not parameters or parameters[0].name != "sender" or parameters[0].kind not in _SENDER_KINDS:
        msg = f"{where}: its first parameter must be 'sender'"
        raise DeclarationError(msg)
    sender, *rest = parameters
    for parameter in rest:
        if parameter.kind is not Parameter.KEYWORD_ONLY:
            msg = f"{where}: {str(parameter)!r} must be keyword-only; write def {stub.__name__}(sender, *, ...)"
            raise DeclarationError(msg)
    try:
        names = check_names(parameter.name for parameter in rest)
    except DeclarationError as error:
        msg = f"{where}: {error}"
        raise DeclarationError(msg) from None
    return Stub(
        module=stub.__module__,
        qualname=stub.__qualname__,
        names=names,
        parameters=[sender.replace(kind=Parameter.POSITIONAL_OR_KEYWORD), *rest],
        defaults={p.name: p.default for p in rest if p.default is not Parameter.empty},
        sender_default=None if sender.default is Parameter.empty else (sender.default,),
    )


_SENDER_KINDS = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.POSITIONAL_ONLY)
