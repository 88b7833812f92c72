"""Users' objects: how they are identified, named, referred to and called, and when their death is a surprise.

How a receiver is called is found out once, when it is connected. Nothing here calls a user's `__eq__`, `__hash__`,
`__repr__` or `__getattr__`, nor believes an object's `__class__`: mocks and proxies lie about it.
"""

from __future__ import annotations

import functools
import inspect
import keyword
import math
import sys
import unicodedata
import warnings
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR, CO_ITERABLE_COROUTINE, CO_VARKEYWORDS, Parameter
from itertools import count, islice
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, MethodWrapperType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, TypeGuard, TypeVar
from weakref import ref

from asignals._core.errors import DeclarationError, ReceiverLostWarning
from asignals._core.errors import Receiver as Receiver  # noqa: PLC0414  it belongs here, but errors come first

T = TypeVar("T")
Names: TypeAlias = tuple[str, ...]
Place: TypeAlias = tuple[CodeType, int]
"""An instruction: the code and its offset there, as `frame.f_lasti`."""

# -- identity ----------------------------------------------------------------------------------------------------------

# Their ids, because a class may be unhashable by its metaclass.
_VALUE_TYPES = frozenset(map(id, (str, bytes, int, float, complex, bool)))


def is_a(thing: object, kind: type[T]) -> TypeGuard[T]:
    """Returns what `isinstance` returns for objects that do not lie about their class."""
    return issubclass(type(thing), kind)


def _is_proxy(thing: object, name: str = "__wrapped__") -> bool:
    """Whether the class of a thing has an attribute that those of proxies have, such as wrapt's."""
    if type(thing) is FunctionType or type(thing) is MethodType:
        return False
    # Where wrapt is not compiled, its classes have only `__object_proxy__`.
    return any({name, "__object_proxy__"} & kind.__dict__.keys() for kind in type(thing).__mro__)


def identify(receiver: Any) -> Hashable:
    """The identity of a receiver: equal for two accesses to one method of one object, and for nothing else.

    Bound methods of Python and C, those that wrapt wraps, and those of `functools.partialmethod` are new objects at
    each access.
    """
    if type(receiver) is not FunctionType:
        if is_a(receiver, MethodType):
            return id(receiver.__self__), id(receiver.__func__)
        # What wrapt keeps in the class.
        if _is_proxy(receiver, "_self_parent") and getattr(receiver, "_self_parent", None) is not None:
            return id(getattr(receiver, "__self__", None)), id(receiver._self_parent)
        if is_a(receiver, BuiltinFunctionType) or is_a(receiver, MethodWrapperType):
            return id(receiver.__self__), receiver.__name__
        # Descriptors make them: those of partialmethod, asgiref's.
        if is_a(receiver, functools.partial) and not {"__self__", "__wrapped__"}.isdisjoint(receiver.__dict__):
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

    An identity, unlike other weak references. `key` identifies the object, `held` is what it keeps alive, `code` and
    `offset` are the place that made it, and `order` is that of the latest connection for it.
    """

    __slots__ = ("code", "held", "is_easily_lost", "key", "offset", "order")
    code: CodeType
    held: Any
    is_easily_lost: bool
    key: Hashable
    offset: int
    order: int

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
        (self.code, self.offset), self.key, self.is_easily_lost = place, key, is_easily_lost(thing)
        return self

    def __init__(self, *_: object) -> None:
        """Does nothing: a weak reference gets its object in `__new__`."""

    def target(self) -> Any:
        """The object, while it lives."""
        found = self()
        return found.thing if type(found) is Holder else found

    @property
    def line(self) -> int:
        """The line of the call that made it."""
        return span_of(self.code, self.offset)[0][0]


# -- names for messages ------------------------------------------------------------------------------------------------


def _underlying(receiver: Any) -> Any:
    """What partials, bound methods and proxies call."""
    if is_a(receiver, functools.partial):
        return _underlying(receiver.func)
    if is_a(receiver, MethodType):
        return receiver.__func__ if type(receiver.__func__) is FunctionType else _underlying(receiver.__func__)
    with suppress(Exception):  # a proxy without an object, or one that stands for itself
        receiver = _underlying(receiver.__wrapped__) if _is_proxy(receiver) else receiver
    return receiver


def function_of(receiver: object) -> FunctionType | None:
    """The Python function that runs when a receiver is called: its own, or the `__call__` of its class."""
    target = receiver if type(receiver) is FunctionType else _underlying(receiver)
    if not is_a(target, FunctionType) and not is_a(target, type):
        target = next((each.__dict__["__call__"] for each in type(target).__mro__ if "__call__" in each.__dict__), None)
    return target if is_a(target, FunctionType) else None


def _named_after(receiver: object) -> Any:
    """What a receiver calls or, if that is an object that wraps a function, as class-based decorators make, that."""
    if is_a(receiver, functools.partial) and is_a(wrapped := receiver.__dict__.get("__wrapped__"), FunctionType):
        return wrapped
    called = _underlying(receiver)
    wrapped = None if is_a(called, FunctionType) else inspect.getattr_static(called, "__wrapped__", None)
    return wrapped if is_a(wrapped, FunctionType) else called


def locate(receiver: object) -> str | None:
    """Where a receiver is defined, as `file:line`; `None` where no Python code is found for it, or it is a label."""
    target = function_of(_named_after(receiver))
    with suppress(Exception):  # wrappers may wrap each other, or something that raises
        target = function_of(inspect.unwrap(target))  # type: ignore[arg-type]  # None is not wrapped
    if target is None or target.__module__ is None:
        return None
    return f"{target.__code__.co_filename}:{target.__code__.co_firstlineno}"


def name_of(receiver: object) -> str:
    """`module.qualname` of a receiver; runs none of its code.

    A function whose `__module__` is `None` goes by its `__qualname__` alone, and by the place that connected it: so a
    package around the core labels its own receiver.
    """
    named = _named_after(receiver)
    if not issubclass(type(named), FunctionType | BuiltinFunctionType | MethodWrapperType | type):
        named = type(named)
    module = getattr(named, "__module__", None)  # None for methods written in C
    return f"{module}.{named.__qualname__}" if module else named.__qualname__


def describe(receiver: object) -> str:
    """A receiver's name and, where it is known, the `file:line` of its definition in parentheses."""
    where = locate(receiver)
    return name_of(receiver) if where is None else f"{name_of(receiver)} ({where})"


# -- death -------------------------------------------------------------------------------------------------------------


def calling_frame(kind: type) -> FrameType:
    """The frame of the user's code that called: outside of this package, its helpers and a subclass's methods."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        module, code = str(frame.f_globals.get("__name__")), frame.f_code
        if module not in {"asignals", "contextlib", "typing"} and not module.startswith(("asignals.", "<asignals ")):
            is_method = any(getattr(each.__dict__.get(code.co_name), "__code__", None) is code for each in kind.__mro__)
            # Before Python 3.12 comprehensions have frames, too. The last values in them die in the one around.
            if not is_method and code.co_name not in {"<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>"}:
                break
        frame = frame.f_back
    return frame


def span_of(code: CodeType, offset: int) -> tuple[tuple[int, int], tuple[int, float]]:
    """Line and column where the source of an instruction begins and ends; without columns, that is the whole line."""
    first, last, left, right = (each or 0 for each in next(islice(code.co_positions(), offset // 2, None)))
    return (first, left), (last or first, right or math.inf)


def is_dying_at(code: CodeType, offset: int) -> bool:
    """Whether the last reference was dropped by the call at this place, or by an expression around it.

    To be called in the callback of a weak reference.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") in _BETWEEN:
        frame = frame.f_back
    if frame.f_code is not code or frame.f_lasti < offset:
        return False
    (begin, end), (other_begin, other_end) = span_of(code, offset), span_of(code, frame.f_lasti)
    return begin < other_end and other_begin < end


_BETWEEN = frozenset({"weakref", "asignals._core.connection", "asignals._core.registry"})


def is_easily_lost(receiver: object) -> bool:
    """Whether a receiver that dies unheard is a surprise: a nested function, a lambda, a wrapper or a partial.

    An object that connects its methods and dies later is what weak references are for.
    """
    if is_a(receiver, FunctionType):  # by its code: functools.wraps copies the name of what it wraps
        return "<" in receiver.__code__.co_qualname  # <locals> or <lambda>
    if not callable(receiver):  # a sender
        return False
    is_wrapper = _is_proxy(receiver) or inspect.getattr_static(receiver, "__wrapped__", None) is not None
    return is_wrapper or is_a(receiver, functools.partial)


_warned: dict[str, dict[Any, Any]] = {}  # by file: Python's own record of the warnings that were shown


def warn_lost(text: str, file: str, line: int) -> None:
    """Show a `ReceiverLostWarning` at the line of a `connect`, once for each line; never raises."""
    lost = ReceiverLostWarning(f"{text} (docs/reference/messages.md#receiverlostwarning).")
    try:
        warnings.warn_explicit(lost, None, file, line, registry=_warned.setdefault(file, {}))
    except ReceiverLostWarning as error:  # a filter made it an error, and whoever runs now has not asked for it
        _Unraisable(error)


class _Unraisable:
    """Dies at once and raises then: so Python reports an exception that has no caller, to `sys.unraisablehook`."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __del__(self) -> None:
        raise self.error


# -- calls -------------------------------------------------------------------------------------------------------------

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
    is_proxy: bool = False
    """Whether it stands for what is called, and may return something else."""
    number: int = 0
    """Given by `shared`."""


_numbers = count(1)


@functools.lru_cache(maxsize=4096)
def shared(shape: Shape) -> Shape:
    """The one object for all equal shapes, with a number.

    Written code compares that: on free-threaded builds a small number is shared by all threads at no cost.
    """
    return shape._replace(number=next(_numbers))


def is_coroutine_function(receiver: Receiver) -> bool:
    """Whether calling a receiver gives a coroutine; also true for objects with an `async def __call__`."""
    function = function_of(receiver)
    if function is not None and (function.__code__.co_flags & CO_COROUTINE or function.__dict__.get(FORWARDS)):
        return True
    if function is receiver and not receiver.__dict__:  # nor can it be marked as one
        return False
    with suppress(Exception):  # inspect asks for attributes, and those of proxies may raise anything
        # A mock lies about its class, and its code's flags are mocks too.
        lies = isinstance(receiver, FunctionType | MethodType) and type(receiver) not in (FunctionType, MethodType)
        return inspect.iscoroutinefunction(function) or (not lies and inspect.iscoroutinefunction(receiver))
    return False


def examine(receiver: Receiver, names: Names | None) -> tuple[Shape, str | None]:
    """How a receiver of a signal that sends `names` (`None`: any keywords) is called, and why it cannot be, if so."""
    function = function_of(receiver)
    parameters = _parameters_of(receiver, function)
    sent = RESERVED.union(names or ())
    is_generic = is_a(receiver, FunctionType) and {"dispatch", "registry", "register"} <= receiver.__dict__.keys()
    by_position = next(iter(parameters.by_name), "") if is_generic else None
    wanted = None if parameters.takes_all else frozenset(parameters.by_name.keys() & sent)
    takes_signal = function is None or wanted is not None or FORWARDS not in function.__dict__
    is_method = is_a(receiver, MethodType) and _is_of_class(receiver)
    shape = Shape(is_coroutine_function(receiver), wanted, is_method, by_position, takes_signal, _is_proxy(receiver))
    problem = parameters.problem(sent, names)
    if twice := sent & _given_twice(receiver, function, parameters):
        rule = "the first parameter of a method is self, and a partial gives by name what is sent"
        problem = f"it cannot be given {min(twice)!r} by name: {rule}"
    flags = 0 if function is None or shape.is_proxy else function.__code__.co_flags
    # types.coroutine marks generator functions whose generators are awaitable; those are receivers.
    if flags & CO_ASYNC_GENERATOR or flags & (CO_GENERATOR | CO_ITERABLE_COROUTINE) == CO_GENERATOR:
        problem = "it is a generator function, so calling it would run none of its code; make it a function"
    elif by_position is not None and by_position not in sent:
        problem = f"singledispatch chooses by its first parameter, and {by_position!r} is none of the sent arguments"
    return shared(shape), problem


def _is_of_class(method: MethodType) -> bool:
    """Whether the function of a method lives as long as the class of its object: only then it may be referred to."""
    function, owner = method.__func__, method.__self__
    kinds = (owner if is_a(owner, type) else type(owner)).__mro__
    found = [kind.__dict__.get(getattr(function, "__name__", "")) for kind in kinds]
    is_found = any(each is function or (is_a(each, classmethod) and each.__func__ is function) for each in found)
    return is_found and is_a(function, FunctionType)


class _Parameters(NamedTuple):
    """The parameters of a receiver: those required by position only, those by name (and whether required)."""

    by_position: list[str]
    by_name: dict[str, bool]
    takes_all: bool

    def problem(self, sent: frozenset[str], names: Names | None) -> str | None:
        """Why no send could call it with the arguments that are sent, if anything."""
        if self.by_position:
            return f"arguments go by name, and its parameter {self.by_position[0]!r} can only be given by position"
        unsent = [name for name, is_required in self.by_name.items() if is_required and name not in sent]
        if unsent[:1] in (["self"], ["cls"]):
            return f"it asks for {unsent[0]!r}: connect the method of an object, not the function of its class"
        if names is None and not self.takes_all:
            return "it must accept any keyword arguments: add **kwargs (or declare the signal's arguments)"
        if names is None or not unsent:
            return None
        asked, given = ", ".join(map(repr, unsent)), ", ".join(["signal", "sender", *names])
        return f"it asks for {asked}, and the signal sends {given}"


def _parameters_of(receiver: Receiver, function: FunctionType | None) -> _Parameters:
    """The parameters that matter: a wrapper that passes everything on takes what the wrapped function takes."""
    skipped = 0 if function is receiver else 1
    called = receiver.__func__ if is_a(receiver, MethodType) else receiver
    told = (inspect.getattr_static(called, name, None) for name in ("__signature__", "__wrapped__"))
    is_odd = called is not function and (is_a(called, functools.partial) or any(each is not None for each in told))
    if function is None or is_odd or function.__dict__ or function.__code__.co_argcount < skipped:
        outer = _read_signature(receiver, follow_wrapped=False)
        found = _read_signature(receiver, follow_wrapped=True) if outer.takes_all else outer
        if outer.takes_all and not is_a(receiver, FunctionType):  # which has the object, where it stands for a method
            found = found._replace(by_name={name: found.by_name[name] for name in found.by_name if name != "self"})
        return found
    # As inspect reads it, in a tenth of the time. And inspect compares objects with their own `__eq__`.
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    optional = {*names[code.co_argcount - len(defaults) : code.co_argcount], *(function.__kwdefaults__ or ())}
    by_position = [name for name in names[skipped : code.co_posonlyargcount] if name not in optional]
    by_name = {name: name not in optional for name in names[max(skipped, code.co_posonlyargcount) :]}
    return _Parameters(by_position, by_name, bool(code.co_flags & CO_VARKEYWORDS))


def _given_twice(receiver: Receiver, function: FunctionType | None, found: _Parameters) -> frozenset[str]:
    """The parameters that its object, or a partial, gives by position, and that a send would give by name as well."""
    if function is None or function is receiver or (is_a(receiver, functools.partial) and not found.takes_all):
        return frozenset()
    code = function.__code__
    if not code.co_argcount and is_a(receiver, MethodType) and not code.co_flags & inspect.CO_VARARGS:
        return RESERVED  # as it cannot be given its object
    named = code.co_varnames[code.co_posonlyargcount : code.co_argcount]
    given = frozenset(named).difference(found.by_name, {"self", "cls"})
    return given.difference(_read_signature(receiver, follow_wrapped=False).by_name) if given else given


# Annotations are never needed here. From 3.14 on they are evaluated unless one asks not to, and that may raise.
_UNEVALUATED: dict[str, Any] = {"annotation_format": 3} if sys.version_info >= (3, 14) else {}  # Format.FORWARDREF


def _read_signature(receiver: Receiver, *, follow_wrapped: bool) -> _Parameters:
    try:
        found = inspect.signature(receiver, follow_wrapped=follow_wrapped, **_UNEVALUATED).parameters.values()
    except Exception:  # noqa: BLE001  it has none, or is a mock that calls itself a function, or as above
        return _Parameters([], {}, takes_all=True)
    by_position = [each.name for each in found if each.kind is each.POSITIONAL_ONLY and each.default is each.empty]
    named = [each for each in found if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)]
    takes_all = any(each.kind is each.VAR_KEYWORD for each in found)
    return _Parameters(by_position, {each.name: each.default is each.empty for each in named}, takes_all)


# -- declarations ------------------------------------------------------------------------------------------------------


def check_names(names: Iterable[str], where: str = "") -> Names:
    """The argument names as the compiler reads them; raises `DeclarationError` for what cannot be one."""
    if isinstance(names, str):
        raise DeclarationError(f"providing_args must be an iterable of names, not the string {names!r}; use name=")
    checked: list[str] = []
    for name in names:
        is_name = isinstance(name, str) and name.isidentifier()
        # Plain strings, because enumerations are formatted in their own ways.
        plain = unicodedata.normalize("NFKC", str.__str__(name)) if is_name else ""
        is_taken = plain in RESERVED or plain in checked
        if not is_name or is_taken or keyword.iskeyword(plain) or plain == "__debug__":
            reason = "is reserved or declared twice" if is_taken else "cannot be the name of an argument"
            rule = "names are identifiers, and 'sender' and 'signal' are given to every receiver"
            raise DeclarationError(f"{where}{name!r} {reason}: {rule}")
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
    where = f"@signal stub {stub.__module__}.{stub.__qualname__}: "
    parameters = list(inspect.signature(stub, **_UNEVALUATED).parameters.values())
    others = [each.name for each in parameters if each.kind is not Parameter.KEYWORD_ONLY]
    if others != ["sender"] or not stub.__code__.co_argcount:
        extra = ", ".join(map(repr, others[1:])) if others[:1] == ["sender"] else ""
        rule = f"{extra} must be keyword-only" if extra else "its first parameter must be 'sender'"
        raise DeclarationError(f"{where}{rule}; write def {stub.__name__}(sender, *, ...)")
    names = check_names((each.name for each in parameters[1:]), where)
    return Stub(stub, names, [parameters[0].replace(kind=Parameter.POSITIONAL_OR_KEYWORD), *parameters[1:]])
