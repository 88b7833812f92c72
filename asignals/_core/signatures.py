"""What functions take: how a receiver is called, found out once, when it is connected; and what a stub declares."""

from __future__ import annotations

import inspect
import keyword
import sys
import unicodedata
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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from asignals._core.errors import DeclarationError
from asignals._core.references import function_of, is_a, method_of

if TYPE_CHECKING:
    from collections.abc import Iterable

Receiver: TypeAlias = Callable[..., Any]
Names: TypeAlias = tuple[str, ...]

RESERVED = frozenset({"signal", "sender"})


class Mismatch(Exception):  # noqa: N818  never leaves the core: connect turns it into InvalidReceiverError
    """Why a receiver cannot be called with the arguments of a signal."""


class Shape(NamedTuple):
    """How a receiver is called."""

    is_async: bool
    wanted: frozenset[str] | None
    """The names of the arguments that it takes; `None` when it takes all."""
    by_position: str | None = None
    """The parameter that is given by position: a `singledispatch` function chooses by it."""
    takes_signal: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether all its arguments go by name."""
        return self.by_position is None and (self.takes_signal or self.wanted is not None)

    def call(self, receiver: Receiver, signal: object, sender: object, arguments: dict[str, Any]) -> Any:
        """Call a receiver with the arguments that it takes."""
        given = {"sender": sender, **arguments}
        if self.takes_signal:
            given["signal"] = signal
        if self.wanted is not None:
            given = {name: given[name] for name in self.wanted}
        if self.by_position is None:
            return receiver(**given)
        return receiver(given.pop(self.by_position), **given)


def is_coroutine_function(receiver: Receiver) -> bool:
    """Whether calling a receiver gives a coroutine; also true for objects with an `async def __call__`."""
    function = function_of(receiver)
    if function is not None and (function.__code__.co_flags & CO_COROUTINE or function.__dict__.get(FORWARDS)):
        return True
    return _is_marked(receiver) or inspect.iscoroutinefunction(function)


def _is_marked(receiver: Receiver) -> bool:
    try:
        if isinstance(receiver, FunctionType | MethodType) and type(receiver) not in (FunctionType, MethodType):
            return False  # a mock, whose code's flags are mocks too
        return inspect.iscoroutinefunction(receiver)
    except Exception:  # noqa: BLE001  inspect asks for attributes, and those of proxies may raise anything
        return False


def examine(receiver: Receiver, names: Names | None) -> Shape:
    """Find out how to call a receiver of a signal that sends `names` (`None`: any keywords).

    Raises `Mismatch`, with the reason, when no send could call it.
    """
    if _is_generator_function(receiver):
        reason = "it is a generator function, so calling it would run none of its code; make it a function"
        raise Mismatch(reason)
    function = function_of(receiver)
    is_send = function is not None and FORWARDS in function.__dict__
    parameters = _parameters(receiver)
    if parameters is None:
        return Shape(is_coroutine_function(receiver), None, takes_signal=not is_send)
    wanted = _wanted(parameters, names)
    first = parameters[0].name if parameters and _is_single_dispatch(receiver) else None
    if wanted is not None and is_send:
        wanted -= {"signal"}
    if first is not None and first not in RESERVED.union(names or ()):
        reason = f"singledispatch chooses by the first parameter, and {first!r} is none of the sent arguments"
        raise Mismatch(reason)
    return Shape(is_coroutine_function(receiver), wanted, first, takes_signal=not is_send)


# The attribute of functions that send, which says whether they are to be awaited. As a receiver, such a function passes
# the event on: its signal is another.
FORWARDS = "_forwards"


def _is_generator_function(receiver: Receiver) -> bool:
    function = function_of(receiver)
    flags = 0 if function is None else function.__code__.co_flags
    # types.coroutine marks generator functions whose generators are awaitable; those are receivers.
    return bool(flags & CO_ASYNC_GENERATOR) or flags & (CO_GENERATOR | CO_ITERABLE_COROUTINE) == CO_GENERATOR


def _is_single_dispatch(receiver: Receiver) -> bool:
    return is_a(receiver, FunctionType) and {"dispatch", "registry", "register"} <= receiver.__dict__.keys()


# -- parameters --------------------------------------------------------------------------------------------------------


class _Parameter(NamedTuple):
    name: str
    kind: Any
    is_required: bool


def _parameters(receiver: Receiver) -> list[_Parameter] | None:
    """The parameters that matter: a wrapper that passes everything on takes what the wrapped function takes."""
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
    """The `__call__` of an object's class, if nothing else says what its signature is."""
    kinds = type(receiver).__mro__
    if not any("__eq__" in kind.__dict__ for kind in kinds[:-1]) or is_a(receiver, type):
        return None
    if method_of(receiver) is not None or any("__signature__" in kind.__dict__ for kind in kinds):
        return None
    called = function_of(receiver)
    return called if called is not None and not called.__dict__ and called.__code__.co_argcount else None


def _parameters_of(function: FunctionType) -> list[_Parameter]:
    """What `inspect.signature` says of a function without attributes, in a tenth of the time."""
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


# Annotations are never needed here. From 3.14 on they are evaluated unless one asks not to, and that may raise.
_UNEVALUATED: dict[str, Any] = (
    {"annotation_format": import_module("annotationlib").Format.FORWARDREF} if sys.version_info >= (3, 14) else {}
)


def _signature_of(function: Callable[..., Any], *, follow_wrapped: bool = True) -> Signature:
    return inspect.signature(function, follow_wrapped=follow_wrapped, **_UNEVALUATED)


def _signature(receiver: Receiver, *, follow_wrapped: bool) -> list[_Parameter] | None:
    try:
        parameters = _signature_of(receiver, follow_wrapped=follow_wrapped).parameters.values()
    except Exception:  # noqa: BLE001  it has none, or is a mock that calls itself a function, or as above
        return None
    return [_Parameter(p.name, p.kind, p.default is Parameter.empty) for p in parameters]


def _takes_all(parameters: list[_Parameter]) -> bool:
    return any(p.kind is Parameter.VAR_KEYWORD for p in parameters)


def _wanted(parameters: list[_Parameter], names: Names | None) -> frozenset[str] | None:
    by_name = {p.name for p in parameters if p.kind in (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)}
    required = [p for p in parameters if p.is_required]
    for parameter in required:
        if parameter.kind is Parameter.POSITIONAL_ONLY:
            reason = f"arguments go by name, and its parameter {parameter.name!r} can only be given by position"
            raise Mismatch(reason)
    sent = RESERVED.union(names or ())
    if required and required[0] is parameters[0] and required[0].name in {"self", "cls"} - sent:
        reason = f"it asks for {required[0].name!r}: connect the method of an object, not the function of its class"
        raise Mismatch(reason)
    takes_all = _takes_all(parameters)
    if names is None:
        if not takes_all:
            reason = "it must accept any keyword arguments: add **kwargs (or declare the signal's arguments)"
            raise Mismatch(reason)
        return None
    unsent = [p.name for p in required if p.name in by_name and p.name not in sent]
    if unsent:
        listing = ", ".join(["signal", "sender", *names])
        reason = f"it asks for {', '.join(map(repr, unsent))}, and the signal sends {listing}"
        raise Mismatch(reason)
    return None if takes_all else frozenset(by_name & sent)


# -- declarations ------------------------------------------------------------------------------------------------------


def check_names(names: Iterable[str]) -> Names:
    """The argument names as the compiler reads them; raises `DeclarationError` for what cannot be one."""
    if isinstance(names, str):
        msg = f"providing_args must be an iterable of names, not the string {names!r}"
        raise DeclarationError(msg)
    checked: list[str] = []
    for name in names:
        if not isinstance(name, str):
            msg = f"an argument's name must be a string, not {name!r}"
            raise DeclarationError(msg)
        # Plain strings, because enumerations are formatted in their own ways.
        plain = unicodedata.normalize("NFKC", str.__str__(name))
        if not name.isidentifier() or keyword.iskeyword(plain) or plain == "__debug__":
            msg = f"{name!r} cannot be the name of an argument"
            raise DeclarationError(msg)
        if plain in RESERVED:
            msg = f"{plain!r} is reserved: every receiver gets it anyway"
            raise DeclarationError(msg)
        if plain in checked:
            msg = f"argument {plain!r} is declared twice"
            raise DeclarationError(msg)
        checked.append(plain)
    return tuple(checked)


class Stub(NamedTuple):
    """What a stub function declares."""

    module: str
    qualname: str
    names: Names
    parameters: list[Parameter]
    defaults: dict[str, Any]
    sender_default: tuple[Any, ...] | None


def read_stub(stub: Callable[..., Any]) -> Stub:
    """Read a stub; raises `DeclarationError` for a function that no signal can be made of."""
    if not isinstance(stub, FunctionType):
        msg = f"@signal takes a function as a stub, not {type(stub).__name__}: {stub!r:.80}"
        raise DeclarationError(msg)
    where = f"@signal stub {stub.__module__}.{stub.__qualname__}"
    parameters = list(_signature_of(stub).parameters.values())
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
