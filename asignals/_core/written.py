"""Code that is written for the argument names of a signal, as `dataclasses` writes an `__init__`.

Arguments then travel as arguments: no dictionary is built and unpacked for each receiver. Three functions are written,
each when it is first needed, and shared by all signals with the same names:

- the *send method*, which checks the arguments and returns the coroutine of a loop;
- the *loop*, which calls the receivers of a plan. It is written for the arguments that most of the plan's receivers
  take, with a branch for each kind of receiver: async or not, a method or not. One that takes others is called by its
  `choose`; one that needs care (options, a stream, ended) by its `respond`;
- the *choose function*, which calls a receiver with the arguments that it takes.

Tracebacks show the written lines. Their file names are in angle brackets, which coverage and Sentry take for
generated code.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from inspect import Signature
from time import perf_counter
from types import FunctionType, MethodType
from typing import Any, TypeAlias

from asignals._core.connection import PLAIN_TYPES, is_awaitable
from asignals._core.dispatch import deliver
from asignals._core.errors import DeclarationError, annotate, is_receivers_error, log_failure
from asignals._core.monitor import surrounding, watchers
from asignals._core.objects import FORWARDS, Names, Shape, Stub, check_names, shared

if sys.version_info < (3, 12):
    from asyncio import coroutines


Loop: TypeAlias = Callable[..., Coroutine[Any, Any, list[tuple[Any, Any]]]]

# `@` marks what belongs to the template; it becomes a prefix that no declared name begins with.
_SEND = """\
def @send(@self, /, sender@parameters):
    @plan = @self._direct.plan
    if @plan is None or @watchers:
        @plan = @self._direct_plan_for(sender)
        if @plan is None:
            return @deliver(@self, sender, @arguments, robust=False)
    return (@plan.loop or @plan.write_loop(robust=False))(@plan.connections, @self, sender@positions)
"""
_BIND = """\
def @bind(@self, /, sender@parameters):
    return sender, @arguments
"""
_CHOOSE = """\
def @choose(@receiver, @self, sender, /@positions):
    return @receiver(@keywords)
"""
# Lines with `@send`, which is a `SendInfo`, are left out where no monitor watches; the others are for one kind of send.
_LOOP = """\
async def @loop(@connections, @self, sender@watch, /@positions):
    @results = []
    @response = @pair = None
    for @connection in @connections:
        @entered = None  # @send
        try:
            @branches
        except @BaseException as @error:
            if @entered is not None:  # @send
                @send.leave(@entered, @error)
            if not @is_receivers_error(@error):  # @robust
                raise  # @robust
            @results.append(@log_failure(@error, @connection, @self, sender))  # @robust
            @annotate(@error, @connection, @self)  # @plain
            raise  # @plain
        else:  # @send
            if @entered is not None:  # @send
                @send.leave(@entered, None)
    try:
        return @results
    finally:
        del @results, @response, @pair  # they may hold errors, whose frames lead back to this one
"""
# A method is called as the function of its class, with its object.
_CALL_FUNCTION = "@receiver(@keywords)", "@receiver"
_CALL_METHOD = "@connection.function(@receiver@more_keywords)", "@MethodType(@connection.function, @receiver)"
_ASYNC = """\
if @connection.style is @style:
    if (@receiver := @connection()) is not None:
        @entered = @send.enter(@answering) if @surrounding else (@answering, (), @perf_counter())
        @results.append((@answering, await @call))
"""
_SYNC = """\
if @connection.style is @style:
    if (@receiver := @connection()) is not None:
        @entered = @send.enter(@answering) if @surrounding else (@answering, (), @perf_counter())
        @response = @call
        if @type(@response) not in @PLAIN_TYPES and @is_awaitable(@response):
            @response = await @response
        @results.append((@answering, @response))
"""
_BRANCHES = {
    "coroutine_function": (True, False, _ASYNC, *_CALL_FUNCTION),
    "function": (False, False, _SYNC, *_CALL_FUNCTION),
    "coroutine_method": (True, True, _ASYNC, *_CALL_METHOD),
    "method": (False, True, _SYNC, *_CALL_METHOD),
}
_OTHER_ARGUMENTS = """\
elif (@choose := @connection.choose) is not None:
    if (@receiver := @connection() if @connection.method is None else @connection.target()) is not None:
        @entered = @send.enter(@receiver)
        @response = @choose(@receiver, @self, sender@positions)
        if @connection.shape.is_async or @is_awaitable(@response):
            @response = await @response
        @results.append((@receiver, @response))
"""
_WITH_CARE = """\
elif (@pair := await @connection.respond(@self, sender, @arguments@watch)) is not None:
    @results.append(@pair)
"""

_FUNCTIONS = annotate, deliver, is_awaitable, is_receivers_error, log_failure, perf_counter
_NAMESPACE: dict[str, Any] = {each.__name__: each for each in (BaseException, type, *_FUNCTIONS)}
_NAMESPACE |= {"MethodType": MethodType, "PLAIN_TYPES": PLAIN_TYPES, "surrounding": surrounding, "watchers": watchers}


def _loop(first: str, *, robust: bool, watched: bool) -> str:
    """The text of a loop whose first branch is for one kind: a plan's most common kind is found without a look."""
    branches = []
    for kind in sorted(_BRANCHES, key=lambda kind: kind != first):
        _, _, text, call, answering = _BRANCHES[kind]
        text = text.replace("@style", f"@{kind}").replace("@call", call).replace("@answering", answering)
        branches.append(text)
    text = branches[0] + _OTHER_ARGUMENTS + "".join(f"el{branch}" for branch in branches[1:]) + _WITH_CARE
    loop = _LOOP.replace("@branches", textwrap.indent(text, 12 * " ").strip())
    dropped = ["@plain" if robust else "@robust", *([] if watched else ["@send"])]
    lines = [line for line in loop.splitlines(keepends=True) if not any(mark in line for mark in dropped)]
    return "".join(lines).replace("@watch", ", @send" if watched else "")


def _write(
    template: str, title: str, names: Names | None, wanted: Collection[str] | None = None, **objects: Any
) -> FunctionType:
    """Compile a template for argument names, or for any (`None`); `objects` are for its namespace."""
    prefix = "_"
    while any(name.startswith(prefix) for name in names or ()):
        prefix += "_"
    values = {"signal": f"{prefix}self", **{name: name for name in ("sender", *(names or ()))}}
    keywords = "".join(f", {name}={value}" for name, value in values.items() if wanted is None or name in wanted)
    text = template
    for mark, meaning in {
        "@parameters": "".join([", *", *(f", {name}" for name in names)] if names else []),
        "@arguments": "@named" if names is None else f"{{{', '.join(f'{name!r}: {name}' for name in names)}}}",
        "@positions": ", **@named" if names is None else "".join(f", {name}" for name in names),
        "@more_keywords": keywords + ("" if names is not None else ", **@named"),
        "@keywords": keywords.removeprefix(", ") + ("" if names is not None else ", **@named"),
        "@": prefix,
    }.items():
        text = text.replace(mark, meaning)
    filename = f"<asignals {title}({'**' if names is None else ', '.join(names)})>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {prefix + name: thing for name, thing in {**_NAMESPACE, **objects}.items()}
    namespace["__name__"] = filename
    before = {*namespace, "__builtins__"}
    exec(compile(text, filename, "exec"), namespace)  # noqa: S102  the names were checked; nothing else is from users
    (made,) = namespace.keys() - before
    function: FunctionType = namespace[made]
    return function


def _choice(wanted: Collection[str] | None) -> str:
    return "" if wanted is None else f" to {', '.join(sorted(wanted))} of"


@functools.lru_cache(maxsize=4096)
def write_loop(names: Names | None, style: Shape, robust: bool, watched: bool) -> Loop:  # noqa: FBT001  a key
    """The loop over receivers of which most are called in one style.

    It takes `(connections, signal, sender, /, *values)`; one that is watched takes the `SendInfo` after the sender.
    """
    kinds = {kind: Shape(each[0], style.wanted, each[1]) for kind, each in _BRANCHES.items()}
    first = next(kind for kind, each in kinds.items() if each == style)
    title = f"{'watched ' * watched}{'robust ' * robust}loop over {first.replace('_', ' ')}s"
    styles = {kind: shared(each) for kind, each in kinds.items()}
    text = _loop(first, robust=robust, watched=watched)
    loop = _write(text, title + _choice(style.wanted), names, style.wanted, **styles)
    # So Python calls a send that is not awaited.
    loop.__qualname__ = "Signal.send_robust" if robust else "Signal.send"
    return loop


@functools.lru_cache(maxsize=4096)
def write_choose(names: Names, wanted: frozenset[str] | None) -> FunctionType:
    """Calls a receiver with the arguments that it takes: `(receiver, signal, sender, /, *values of the names)`."""
    return _write(_CHOOSE, f"choose{_choice(wanted)}", names, wanted)


@functools.lru_cache(maxsize=4096)
def _write_method(name: str, names: Names) -> FunctionType:
    if name == "_bind":
        return _write(_BIND, "bind", names)
    text = _SEND
    if name == "send_robust":
        text = text.replace("plan.loop", "plan.robust_loop").replace("robust=False", "robust=True")
    return _write(text, name, names)


# -- any keywords ------------------------------------------------------------------------------------------------------

# A client may have chosen the names: code is written for the first sets that come again and again, and for no others.
_MOST_SETS = 256
_LONGEST_SET = 1000  # characters
_USES_BEFORE_WRITING = 16
_uses: dict[Names, int] = {}
_often_sent: set[Names] = set()


def is_often_sent(names: Names) -> bool:
    """Whether a loop is to be written for keywords of an undeclared signal."""
    if names in _often_sent or len(_often_sent) >= _MOST_SETS or sum(map(len, names)) > _LONGEST_SET:
        return names in _often_sent
    if len(_uses) >= _MOST_SETS:
        _uses.clear()
    uses = _uses[names] = _uses.get(names, 0) + 1
    with suppress(DeclarationError):
        if uses >= _USES_BEFORE_WRITING and check_names(names) == names:  # as Python spells them
            _often_sent.add(names)
    return names in _often_sent


# -- classes -----------------------------------------------------------------------------------------------------------

# A class, and not an attribute of the instance, carries the written methods: a function that is stored on the instance
# that it is bound to makes a reference cycle.
_METHODS = ("send", "send_robust", "_bind")


class _WrittenMethod:
    """A method that is written when it is first asked for."""

    def __init__(self, name: str, names: Names, root: type[Any], stub: Stub | None) -> None:
        self._name = name
        self._names = names
        self._root = root
        self._stub = stub

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._owner = owner

    def __get__(self, instance: object, owner: type[Any] | None = None) -> Any:
        method = self._make()
        setattr(self._owner, self._name, method)
        return method if instance is None else MethodType(method, instance)

    def _make(self) -> FunctionType:
        """A function of its own around the shared code."""
        stub, name, root = self._stub, self._name, self._root
        shared = _write_method(name, self._names)
        method = FunctionType(shared.__code__, shared.__globals__, name)
        shown = "send" if name == "_bind" else name  # in Python's own TypeError
        method.__qualname__ = f"{stub.function.__qualname__ if stub else root.__qualname__}.{shown}"
        method.__module__ = stub.function.__module__ if stub else root.__module__
        method.__doc__ = root.__dict__[name].__doc__
        if name != "_bind":
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
    specialised = _specialised(root, names, None)
    if base is root:
        return specialised
    return type(base.__name__, (_silent(root), base, specialised), _namespace(base))


def class_for_stub(root: type[Any], stub: Stub) -> type[Any]:
    """`root` with methods written for a stub, with its types and defaults."""
    return _specialised(root, stub.names, stub)


def _specialised(root: type[Any], names: Names, stub: Stub | None) -> type[Any]:
    methods = {name: _WrittenMethod(name, names, root, stub) for name in _METHODS}
    return type(root.__name__, (root,), {**_namespace(root), **methods})


def _silent(root: type[Any]) -> type[Any]:
    """Keeps a user's `__init_subclass__` from being called for classes that the user did not write."""
    hook = classmethod(lambda cls: None)  # noqa: ARG005  the hook's parameter
    return type(root.__name__, (root,), {**_namespace(root), "__init_subclass__": hook})


def _namespace(like: type[Any]) -> dict[str, Any]:
    return {"__module__": like.__module__, "__qualname__": like.__qualname__, "__doc__": like.__doc__, "__slots__": ()}
