"""Code that is written for the argument names of a signal, as `dataclasses` writes an `__init__`.

Arguments then travel as arguments: no dictionary is built and unpacked for each receiver. What is written is shared by
all signals with the same names. A *loop* calls the receivers of a plan: it has a branch for each of the commonest ways
in which these are called (async or not, a method or not, with these arguments or those), and for all others asks
`Connection.call`.

Tracebacks show the written lines. Their file names are in angle brackets, which coverage and Sentry take for
generated code.
"""

from __future__ import annotations

import functools
import linecache
import textwrap
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from inspect import CO_ITERABLE_COROUTINE, iscoroutine
from time import perf_counter
from types import FunctionType, GeneratorType, MethodType, coroutine
from typing import Any, TypeAlias

from asignals._core.errors import DeclarationError, annotate, catch
from asignals._core.objects import Names, Shape, check_names

Loop: TypeAlias = Callable[..., Coroutine[Any, Any, list[tuple[Any, Any]]]]

# Types of which no instance is awaitable: asking the type of a response takes a tenth of asking inspect.isawaitable.
PLAIN_TYPES = frozenset({type(None), bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset})


def is_awaitable(response: object) -> bool:
    """Whether a response is to be awaited; as `inspect.isawaitable`, which takes ten times as long."""
    kind = type(response)
    if kind is GeneratorType:  # of a function that types.coroutine marks
        return bool(response.gi_code.co_flags & CO_ITERABLE_COROUTINE)  # type: ignore[attr-defined]
    return kind not in PLAIN_TYPES and hasattr(kind, "__await__")


@coroutine
def later(response: Any) -> Generator[Any, Any, Any]:
    """Pause, and then await a response, in whatever task goes on with this."""
    try:
        yield
    except BaseException:
        if iscoroutine(response):
            response.close()
        raise
    return (yield from as_coroutine(response))


async def as_coroutine(work: Awaitable[Any]) -> Any:
    """Await any kind of awaitable."""
    return await work


# `@` marks what belongs to the template; it becomes a prefix that no declared name begins with. Lines with `@start` are
# written only for sends that a monitor watches; `@send` is their `Send`.
_LOOP = """\
async def @loop(@send, @plan, @self, sender, @on_error, @connections, @results, /, @positions):
    @response = @start = None
    for @connection in @connections:
        try:
            @branches
            else:
                if (@receiver := @connection.take(@self)) is None:
                    continue
                @asked = @connection.is_receiver and @send.around and @send.ask(@receiver)
                @start = @connection.is_receiver and @perf_counter()
                @response = @connection.call(@receiver, @self, sender, @arguments)
                if @is_awaitable(@response):
                    @response = await @response
                    if not @connection.is_receiver:
                        continue
        except @BaseException as @error:
            @start = @start and @send.end(@receiver, @start, @asked, @error)
            if (@response := @on_error(@error, @connection, @self, sender)) is None:
                raise
            @results.append(@response)
        else:
            @start = @start and @send.end(@receiver, @start, @asked, None)
            @results.append((@receiver, @response))
    try:
        return @results
    finally:
        del @results, @response  # they may hold errors, whose frames lead back to this one
"""
# An undeclared signal gives its arguments as one dict: `**` would build another one, and take twice as long.
_UNPACK = """\
@named):
    if @len(@named) != {count}{missing}:
        return await @plan.loop_for(@named)(@plan, @self, sender, @on_error, @connections, @results, @named)
{values}"""
_BRANCH = """\
if @connection.style == {number}:
    if (@receiver := @connection()) is None:
        continue
{method}    @asked = @send.around and @send.ask(@receiver)
    @start = @perf_counter()
    @response = {call}
"""
_IS_AWAITABLE = """\
    if @type(@response) not in @PLAIN_TYPES and @is_awaitable(@response):
        @response = await @response
"""
_METHOD = "    @receiver = @MethodType(@connection.function, @receiver)\n"
_FUNCTIONS = annotate, catch, is_awaitable, later, len, perf_counter
_NAMESPACE: dict[str, Any] = {each.__name__: each for each in (BaseException, type, *_FUNCTIONS)}
_NAMESPACE |= {"MethodType": MethodType, "PLAIN_TYPES": PLAIN_TYPES}


def write(template: str, title: str, names: Names | None, **objects: Any) -> FunctionType:
    """Compile a template for argument names, or for any (`None`); `objects` are for its namespace."""
    prefix = "_"
    while any(name.startswith(prefix) for name in names or ()):
        prefix += "_"
    positions = ["@named"] if names is None else names
    text, filename = template, f"<asignals {title}>"
    for mark, meaning in {
        "@parameters": ", ".join(["*", *names] if names else ()),
        "@arguments": "@named" if names is None else f"{{{', '.join(f'{name!r}: {name}' for name in names)}}}",
        "@positions": ", ".join(positions),
        "@": prefix,
    }.items():
        text, filename = text.replace(mark, meaning), filename.replace(mark, meaning)
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {prefix + name: thing for name, thing in {**_NAMESPACE, **objects}.items()}
    made: dict[str, FunctionType] = {}
    exec(compile(text, filename, "exec"), {**namespace, "__name__": filename}, made)  # noqa: S102  names were checked
    return made.popitem()[1]


def _call(shape: Shape, names: Names | None) -> str:
    """The call of a receiver with the arguments that it takes."""
    values = {"signal": "@self", "sender": "sender", **{name: name for name in names or ()}}
    taken = [name for name in values if shape.wanted is None or name in shape.wanted]
    if not shape.takes_signal:
        taken.remove("signal")
    arguments = [values[name] for name in taken if name == shape.by_position]
    arguments += [f"{name}={values[name]}" for name in taken if name != shape.by_position]
    return f"@receiver({', '.join(arguments + ['**@named'] * (names is None))})"


@functools.lru_cache(maxsize=4096)
def write_loop(names: Names | None, shapes: tuple[Shape, ...], kind: str = "") -> Loop:
    """The loop of a send: `(plan, signal, sender, on_error, connections, results, /, *values of the names)`.

    It adds a pair for each receiver to the list `results`, and returns that. `on_error` is called with an exception,
    the connection, the signal and the sender; it gives the pair for the results, or `None` if it is to be raised.

    It has a branch for the receivers of each of these shapes, the first of which is found soonest. Without names it
    takes the arguments as one dict. One of the kind "unpacking" does so, too, and leaves a send of other names to the
    loop that the plan has for those. One that is "watched" takes a `Send` before all else, and reports to it. One that
    is "pausing" pauses when a receiver outside of the branches has returned an awaitable, before it awaits that.
    """
    branches, calls = [], []
    for shape in shapes or (Shape(is_async=True, wanted=None),):
        is_awaited = shape.is_async and not shape.is_proxy
        call = "await " * is_awaited + _call(shape, names)
        text = _BRANCH.format(number=shape.number, method=_METHOD * shape.is_method, call=call)
        branches.append(text + _IS_AWAITABLE * (not is_awaited))
        calls.append("method " * shape.is_method + call)
    template = _LOOP.replace("@branches", textwrap.indent("el".join(branches), 12 * " ").strip())
    if kind == "unpacking" and names is not None:
        missing = "".join(f" or {name!r} not in @named" for name in names)
        values = "".join(f"    {name} = @named[{name!r}]\n" for name in names)
        template = template.replace("@positions):\n", _UNPACK.format(count=len(names), missing=missing, values=values))
    if "pausing" in kind:
        template = template.replace("await @response", "await @later(@response)")
    if "watched" not in kind:
        lines = template.replace("@send, ", "").replace(" = @start", "").splitlines()
        template = "\n".join(line for line in lines if "@start" not in line and "@asked" not in line)
    loop = write(template, f"{kind} loop(@positions) of {'; '.join(calls)}".lstrip(), names)
    loop.__qualname__ = "Signal.send"  # so Python calls a send that is not awaited
    return loop


# A client may choose the names of an undeclared signal: code is written for the first sets that come again and again,
# and for no others.
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
