"""What functions take: how a receiver is called, found out once, when it is connected; and what a stub declares."""

from __future__ import annotations

import functools
import inspect
import keyword
import sys
import unicodedata
from collections.abc import Callable, Iterable
from importlib import import_module
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_ITERABLE_COROUTINE, CO_VARKEYWORDS, Parameter
from types import FunctionType, MethodType
from typing import Any, NamedTuple, TypeAlias

from asignals._core.errors import DeclarationError
from asignals._core.errors import Receiver as Receiver  # noqa: PLC0414  it belongs here, but errors come first
from asignals._core.references import function_of, is_a

Names: TypeAlias = tuple[str, ...]

RESERVED = frozenset({"signal", "sender"})

# The attribute of functions that send, which says whether they are to be awaited. As a receiver, such a function passes
# the event on: its signal is another.
FORWARDS = "_forwards"


class Shape(NamedTuple):
    """How a receiver is called; one object for all receivers that are called alike (`shared`)."""

    is_async: bool
    wanted: frozenset[str] | None
    """The names of the arguments that it takes; `None` when it takes all."""
    is_method: bool = False
    """Whether it is a bound method whose function is kept alive by its class."""
    by_position: str | None = None
    """The argument that is given by position: a `singledispatch` function chooses by it."""
    takes_signal: bool = True

    def call(self, receiver: Receiver, signal: object, sender: object, arguments: dict[str, Any]) -> Any:
        """Call a receiver with the arguments that it takes."""
        given = {"sender": sender, **arguments}
        if self.takes_signal:
            given["signal"] = signal
        if self.wanted is not None:
            given = {name: given[name] for name in self.wanted}
        first = () if self.by_position is None else (given.pop(self.by_position),)
        return receiver(*first, **given)


@functools.lru_cache(maxsize=4096)
def shared(shape: Shape) -> Shape:
    """The one object for all equal shapes: a send compares them with `is`."""
    return shape


def is_coroutine_function(receiver: Receiver) -> bool:
    """Whether calling a receiver gives a coroutine; also true for objects with an `async def __call__`."""
    function = function_of(receiver)
    if function is not None and (function.__code__.co_flags & CO_COROUTINE or function.__dict__.get(FORWARDS)):
        return True
    if function is receiver and not receiver.__dict__:  # nor can it be marked as one
        return False
    try:
        # A mock lies about its class, and its code's flags are mocks too.
        lies = isinstance(receiver, FunctionType | MethodType) and type(receiver) not in (FunctionType, MethodType)
        return inspect.iscoroutinefunction(function) or (not lies and inspect.iscoroutinefunction(receiver))
    except Exception:  # noqa: BLE001  inspect asks for attributes, and those of proxies may raise anything
        return False


def examine(receiver: Receiver, names: Names | None) -> tuple[Shape, str | None]:
    """How a receiver of a signal that sends `names` (`None`: any keywords) is called, and why it cannot be, if so."""
    function = function_of(receiver)
    parameters = _parameters_of(receiver, function)
    sent = RESERVED.union(names or ())
    by_position = None
    if is_a(receiver, FunctionType) and {"dispatch", "registry", "register"} <= receiver.__dict__.keys():
        by_position = next(iter(parameters.by_name), "")
    wanted = None if parameters.takes_all else frozenset(parameters.by_name.keys() & sent)
    takes_signal = function is None or wanted is not None or FORWARDS not in function.__dict__
    is_method = is_a(receiver, MethodType) and _is_of_class(receiver)
    shape = Shape(is_coroutine_function(receiver), wanted, is_method, by_position, takes_signal)
    problem = parameters.problem(sent, names)
    flags = 0 if function is None else function.__code__.co_flags
    # types.coroutine marks generator functions whose generators are awaitable; those are receivers.
    if flags & CO_ASYNC_GENERATOR or flags & (CO_GENERATOR | CO_ITERABLE_COROUTINE) == CO_GENERATOR:
        problem = "it is a generator function, so calling it would run none of its code; make it a function"
    elif by_position is not None and by_position not in sent:
        problem = f"singledispatch chooses by its first parameter, and {by_position!r} is none of the sent arguments"
    return shared(shape), problem


def _is_of_class(method: MethodType) -> bool:
    """Whether the function of a method lives as long as the class of its object: only then it may be referred to."""
    function, owner = method.__func__, method.__self__
    for kind in owner.__mro__ if is_a(owner, type) else type(owner).__mro__:
        found = kind.__dict__.get(getattr(function, "__name__", ""))
        if found is function or (is_a(found, classmethod) and found.__func__ is function):
            return is_a(function, FunctionType)
    return False


class _Parameters(NamedTuple):
    """The parameters of a receiver: those required by position only, those by name (and whether required)."""

    by_position: list[str]
    by_name: dict[str, bool]
    takes_all: bool

    def problem(self, sent: frozenset[str], names: Names | None) -> str | None:
        """Why no send could call it with the arguments that are sent, if anything."""
        if self.by_position:
            return f"arguments go by name, and its parameter {self.by_position[0]!r} can only be given by position"
        first = next(iter(self.by_name), "")
        if first in {"self", "cls"} - sent and self.by_name[first]:
            return f"it asks for {first!r}: connect the method of an object, not the function of its class"
        if names is None and not self.takes_all:
            return "it must accept any keyword arguments: add **kwargs (or declare the signal's arguments)"
        unsent = [repr(name) for name, is_required in self.by_name.items() if is_required and name not in sent]
        if names is None or not unsent:
            return None
        return f"it asks for {', '.join(unsent)}, and the signal sends {', '.join(['signal', 'sender', *names])}"


def _parameters_of(receiver: Receiver, function: FunctionType | None) -> _Parameters:
    """The parameters that matter: a wrapper that passes everything on takes what the wrapped function takes."""
    skipped = 0 if function is receiver else 1
    # inspect takes ten times as long, and compares the objects that it is asked about with their own __eq__.
    if function is not None and not function.__dict__ and function.__code__.co_argcount >= skipped:
        kinds = () if function is receiver else type(receiver).__mro__
        if functools.partial not in kinds and not any({"__signature__", "__wrapped__"} & vars(k).keys() for k in kinds):
            return _read_function(function, skipped)
    outer = _read_signature(receiver, follow_wrapped=False)
    return _read_signature(receiver, follow_wrapped=True) if outer.takes_all else outer


def _read_function(function: FunctionType, skipped: int) -> _Parameters:
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    optional = {*names[code.co_argcount - len(defaults) : code.co_argcount], *(function.__kwdefaults__ or ())}
    by_position = [name for name in names[skipped : code.co_posonlyargcount] if name not in optional]
    by_name = {name: name not in optional for name in names[max(skipped, code.co_posonlyargcount) :]}
    return _Parameters(by_position, by_name, bool(code.co_flags & CO_VARKEYWORDS))


# Annotations are never needed here. From 3.14 on they are evaluated unless one asks not to, and that may raise.
_UNEVALUATED: dict[str, Any] = (
    {"annotation_format": import_module("annotationlib").Format.FORWARDREF} if sys.version_info >= (3, 14) else {}
)


def _read_signature(receiver: Receiver, *, follow_wrapped: bool) -> _Parameters:
    try:
        found = inspect.signature(receiver, follow_wrapped=follow_wrapped, **_UNEVALUATED).parameters.values()
    except Exception:  # noqa: BLE001  it has none, or is a mock that calls itself a function, or as above
        return _Parameters([], {}, takes_all=True)
    named = (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return _Parameters(
        [p.name for p in found if p.kind is Parameter.POSITIONAL_ONLY and p.default is p.empty],
        {p.name: p.default is p.empty for p in found if p.kind in named},
        any(p.kind is Parameter.VAR_KEYWORD for p in found),
    )


# -- declarations ------------------------------------------------------------------------------------------------------


def check_names(names: Iterable[str]) -> Names:
    """The argument names as the compiler reads them; raises `DeclarationError` for what cannot be one."""
    if isinstance(names, str):
        raise DeclarationError(f"providing_args must be an iterable of names, not the string {names!r}")
    checked: list[str] = []
    for name in names:
        is_name = isinstance(name, str) and name.isidentifier()
        # Plain strings, because enumerations are formatted in their own ways.
        plain = unicodedata.normalize("NFKC", str.__str__(name)) if is_name else ""
        is_taken = plain in RESERVED or plain in checked
        if not is_name or is_taken or keyword.iskeyword(plain) or plain == "__debug__":
            reason = "is reserved or declared twice" if is_taken else "cannot be the name of an argument"
            raise DeclarationError(
                f"{name!r} {reason}: names are identifiers, and 'sender' and 'signal' are given to every receiver"
            )
        checked.append(plain)
    return tuple(checked)


class Stub(NamedTuple):
    """What a stub function declares: its parameters, of which `names` are the arguments."""

    function: Any
    names: Names
    parameters: list[Parameter]


def read_stub(stub: Callable[..., Any]) -> Stub:
    """Read a stub; raises `DeclarationError` for a function that no signal can be made of."""
    if not isinstance(stub, FunctionType):
        raise DeclarationError(f"@signal takes a function as a stub, not {type(stub).__name__}: {stub!r:.80}")
    where = f"@signal stub {stub.__module__}.{stub.__qualname__}"
    parameters = list(inspect.signature(stub, **_UNEVALUATED).parameters.values())
    others = [each.name for each in parameters if each.kind is not Parameter.KEYWORD_ONLY]
    if others != ["sender"] or not stub.__code__.co_argcount:
        extra = ", ".join(map(repr, others[1:])) if others[:1] == ["sender"] else ""
        rule = f"{extra} must be keyword-only" if extra else "its first parameter must be 'sender'"
        raise DeclarationError(f"{where}: {rule}; write def {stub.__name__}(sender, *, ...)")
    try:
        names = check_names(each.name for each in parameters[1:])
    except DeclarationError as error:
        raise DeclarationError(f"{where}: {error}") from None
    return Stub(stub, names, [parameters[0].replace(kind=Parameter.POSITIONAL_OR_KEYWORD), *parameters[1:]])
