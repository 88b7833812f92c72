"""The one template of generated code: `send` and `send_robust`, specialised for the names a signal sends.

As `dataclasses` writes an `__init__`, a function is written once per set of names, so that arguments travel as
arguments and no dictionary is built and unpacked for each receiver. Tracebacks show its lines. What a receiver needs
beyond a plain call (options, a choice of arguments) and how a send runs in a task group or under a monitor is
ordinary code, in `_connection` and `_dispatch`; the generated function only steps aside for it.
"""

from __future__ import annotations

import functools
import keyword
import textwrap
import unicodedata
from inspect import isawaitable
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from asignals._blame import blame, failed
from asignals._dispatch import deliver
from asignals._exceptions import DeclarationError
from asignals._monitor import watchers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping

    from asignals._signal import Signal

    _Send: TypeAlias = Callable[..., Coroutine[Any, Any, Any]]

Names: TypeAlias = tuple[str, ...]

# `@` marks what belongs to the template; it becomes a prefix that no declared name begins with.
_HEAD = """\
async def @send(@self, /, sender@parameters):
    @run = @self._plans.run
    if @run is None or @watchers:
        @run = @self._run_for(sender)
        if @run is None:
            return await @deliver(@self, sender, @arguments, robust=@robust)
    if not @run.plan:
        return []
    @results = []
    @link = None
    @links = @run.links
    @runs
    if not @links:
        @rest
    try:
        return @results
    finally:
        del @results  # which holds errors, whose frames lead back to this one
"""
_LOOP = """\
for @link in @source:
    try:
        if (@receiver := @link()) is not None:
            @call
    except @Exception as @error:
        @handle
"""
# How a receiver without options is called, by the attribute of its link that says so. The ways differ in what an
# unneeded check would cost: a coroutine function's answer is awaited without a look, a function's is awaited if it can
# be, a bound method is made anew from its two references, and one that takes a choice of the arguments is called
# through `choose`.
_CALLS = {
    "is_coroutine": """\
@results.append((@receiver, await @receiver(@keywords)))
""",
    "is_function": """\
@response = @receiver(@keywords)
if @response is not None and @isawaitable(@response):
    @response = await @response
@results.append((@receiver, @response))
""",
    "is_method": """\
if (@function := @link.function()) is not None:
    @response = @function(@receiver, @keywords)
    if @link.awaited or (@response is not None and @isawaitable(@response)):
        @response = await @response
    @results.append((@Method(@function, @receiver), @response))
""",
    "is_choosy": """\
if @link.function is None or (@receiver := @link.target()) is not None:
    @response = @link.choose(@receiver, @self, sender@positions)
    if @link.awaited or (@response is not None and @isawaitable(@response)):
        @response = await @response
    @results.append((@receiver, @response))
""",
}
_ELSE = """\
elif (@pair := await @link.respond(@self, sender, @arguments)) is not None:
    @results.append(@pair)
"""


def _loop(source: str, call: str) -> str:
    return _LOOP.replace("@source", source).replace("@call", _indent(call, 3))


def _branches(subject: str, blocks: Mapping[str, str]) -> str:
    return "el".join(
        f"if {subject}.{attribute}:\n{' ' * 4}{_indent(block, 1)}\n" for attribute, block in blocks.items()
    )


def _indent(text: str, steps: int) -> str:
    return textwrap.indent(text, 4 * steps * " ").strip()


# The loops along a run ask no link whether it has ended or changed. Who ends or changes one empties the run, which ends
# its loop; the last loop, which does ask, then goes on behind that link. It is also the one for all other plans.
_RUNS = _branches("@run", {attribute: _loop("@links", call) for attribute, call in _CALLS.items()})
_REST = _loop("@run.plan if @link is None else @run.after(@link)", _branches("@link", _CALLS) + _ELSE)
_SEND = _HEAD.replace("@runs", _indent(_RUNS, 1)).replace("@rest", _indent(_REST, 2))
_RAISE = "@blame(@error, @link, @self); raise"
_COLLECT = "@results.append(@failed(@error, @link, @self))"
_BIND = """\
def @bind(@self, /, sender@parameters):
    return sender, @arguments
"""
_CHOOSE = """\
def @choose(@receiver, @self, sender, /@positions):
    return @receiver(@keywords)
"""

_NAMESPACE = {
    "watchers": watchers,
    "deliver": deliver,
    "isawaitable": isawaitable,
    "Method": MethodType,
    "Exception": Exception,
    "blame": blame,
    "failed": failed,
}


class Specialised(NamedTuple):
    """The functions that are written for one set of declared names."""

    send: FunctionType
    send_robust: FunctionType
    bind: FunctionType


def check_names(names: Iterable[str]) -> Names:
    """The names as Python would read them; raises `DeclarationError` for what cannot be an argument."""
    if isinstance(names, str):
        msg = f"providing_args must be an iterable of names, not the string {names!r}"
        raise DeclarationError(msg)
    checked: list[str] = []
    for name in names:
        if not isinstance(name, str):
            msg = f"an argument's name must be a string, not {name!r}"
            raise DeclarationError(msg)
        # As the compiler does; and plain strings, because enumerations are formatted in their own ways.
        plain = unicodedata.normalize("NFKC", str.__str__(name))
        if not name.isidentifier() or keyword.iskeyword(plain) or plain == "__debug__":
            msg = f"{name!r} cannot be the name of an argument"
            raise DeclarationError(msg)
        if plain in {"sender", "signal"}:
            msg = f"{plain!r} is reserved: every receiver gets it anyway"
            raise DeclarationError(msg)
        if plain in checked:
            msg = f"argument {plain!r} is declared twice"
            raise DeclarationError(msg)
        checked.append(plain)
    return tuple(checked)


class _Source:
    """Serves `linecache`, so that tracebacks show the generated lines without keeping them elsewhere."""

    def __init__(self, text: str) -> None:
        self._text = text

    def get_source(self, name: str) -> str:
        """The generated module's text, as PEP 302 loaders give it."""
        del name
        return self._text


def _write(  # noqa: PLR0913  what varies in the template
    template: str,
    names: Names,
    function: str,
    title: str,
    *,
    robust: bool = False,
    wanted: Collection[str] | None = None,
) -> FunctionType:
    prefix = "_"
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    values = {"signal": f"{prefix}self", **{name: name for name in ("sender", *names)}}
    keywords = [f"{name}={value}" for name, value in values.items() if wanted is None or name in wanted]
    text = template
    for mark, meaning in {
        "@handle": _COLLECT if robust else _RAISE,
        "@parameters": "".join([", *", *(f", {name}" for name in names)] if names else []),
        "@arguments": "{" + ", ".join(f"{name!r}: {name}" for name in names) + "}",
        "@positions": "".join(f", {name}" for name in names),
        "@keywords": ", ".join(keywords),
        "@robust": str(robust),
        "@": prefix,
    }.items():
        text = text.replace(mark, meaning)
    # Differs wherever the text does, for linecache, which takes <...> for no file at all.
    filename = f"asignals {title}({', '.join(names)})"
    namespace: dict[str, Any] = {prefix + name: value for name, value in _NAMESPACE.items()}
    namespace |= {"__name__": filename, "__loader__": _Source(text)}
    exec(compile(text, filename, "exec"), namespace)  # noqa: S102  the names were checked; nothing else is from users
    written: FunctionType = next(
        value for name, value in namespace.items() if isinstance(value, FunctionType) and name == prefix + function
    )
    return written


@functools.lru_cache(maxsize=1024)
def specialise(names: Names) -> Specialised:
    """The functions for a signal that declares these names."""
    return Specialised(
        _write(_SEND, names, "send", "send"),
        _write(_SEND, names, "send", "send_robust", robust=True),
        _write(_BIND, names, "bind", "bind"),
    )


@functools.lru_cache(maxsize=1024)
def choose(names: Names, wanted: frozenset[str]) -> FunctionType:
    """Calls a receiver with those arguments that it wants: `(receiver, signal, sender, /, *values of the names)`."""
    return _write(_CHOOSE, names, "choose", f"choose {', '.join(sorted(wanted))} of ", wanted=wanted)


@functools.lru_cache(maxsize=256)
def send_for(names: Names) -> _Send:
    """The `send` of an undeclared signal with these keywords, whatever they are."""
    return _write_at_need(names, robust=False)


@functools.lru_cache(maxsize=256)
def send_robust_for(names: Names) -> _Send:
    """The `send_robust` of an undeclared signal with these keywords."""
    return _write_at_need(names, robust=True)


def _write_at_need(names: Names, *, robust: bool) -> _Send:
    try:
        plain = check_names(names)
    except DeclarationError:
        plain = ()
    if plain != names:
        return functools.partial(_send_unwritten, robust)
    title = "send_robust to any keywords" if robust else "send to any keywords"
    return _write(_SEND, plain, "send", title, robust=robust)


async def _send_unwritten(robust: bool, signal: Signal[..., Any], /, sender: object, **named: Any) -> Any:  # noqa: FBT001
    """The way of keywords that no function can have as parameters."""
    return await deliver(signal, *signal._bind(sender, **named), robust=robust)
