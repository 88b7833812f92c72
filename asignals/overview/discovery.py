"""Find the signals of modules and packages, for `asignals list` and `asignals graph`."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import re
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from asignals import Connection, Signal
from asignals._core import is_a
from asignals._show import Shower, name_of, short_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import ModuleType

AnySignal = Signal[..., Any]

_show: Final = Shower(limit=80)
# Of any class, whatever its metaclass makes of these attributes.
_namespace: Final[Callable[[type], Mapping[str, Any]]] = type.__dict__["__dict__"].__get__
_qualname: Final[Callable[[type], str]] = type.__dict__["__qualname__"].__get__


class TargetError(Exception):
    """A target could not be imported; `str` says why in a few lines, `traceback` is the whole of it."""

    def __init__(self, target: str, module: str, error: BaseException | None, reason: str = "") -> None:
        """Keep which `target` failed, in which `module` of it, and the error or another reason."""
        super().__init__(target, module, error, reason)
        self.target = target
        self.module = module
        self.error = error
        self.reason = reason

    @property
    def traceback(self) -> str:
        """The traceback of the failed import, without the frames of the import system and of this module."""
        return "" if self.error is None else "".join(traceback.format_exception(self.error))

    def __str__(self) -> str:
        """Name the module, the error, and the line of the target's own code that raised it."""
        inside = "" if self.module == self.target else f" (in {self.target!r})"
        if self.error is None:
            return f"cannot import {self.module!r}{inside}: {self.reason}"
        line = f"{type(self.error).__name__}: {self.error}".rstrip(": ")
        where = _raised_at(self.error)
        return f"cannot import {self.module!r}{inside}: {line}" + (f"\n  at {where}" if where else "")


@dataclass
class Found:
    """A signal, and where it was found: `path` is `module:attribute`."""

    signal: AnySignal
    path: str
    name: str

    @property
    def module(self) -> str:
        """The module of the path."""
        return self.path.partition(":")[0]


@dataclass
class Discovery:
    """What the targets hold: their modules, and the signals in them."""

    modules: list[ModuleType] = field(default_factory=list)
    signals: list[Found] = field(default_factory=list)
    broken: list[TargetError] = field(default_factory=list)


def discover(targets: Iterable[str], *, skip_broken: bool = False) -> Discovery:
    """Import modules and packages (with everything in them, save `__main__`) and find their signals.

    A target is a dotted name, or `module:attribute` for one signal or class. What the modules print while they are
    imported goes to stderr. `TargetError` for one that does not import; with `skip_broken` a broken module inside a
    package is listed in `broken` and left out instead.
    """
    result = Discovery()
    only: list[Any] = []
    for target in targets:
        name, _, attribute = target.partition(":")
        for module in _modules(target, name, result.broken if skip_broken else None):
            if module not in result.modules:
                result.modules.append(module)
        if attribute:
            only.append(_attribute(target, sys.modules[name], attribute))
    result.signals = _signals(result.modules)
    if only:
        result.signals = [found for found in result.signals if any(_is_in(found.signal, thing) for thing in only)]
    return result


def describe(found: Found) -> dict[str, Any]:
    """Everything `asignals list` knows of a signal, in the types of JSON."""
    signal = found.signal
    return {
        "name": found.name,
        "path": found.path,
        "doc": first_line(signal),
        "arguments": arguments_of(signal),
        "orphan": is_orphan(signal),
        "receivers": [describe_connection(connection, phase) for connection, phase in connections_of(signal)],
    }


def connections_of(signal: AnySignal) -> list[tuple[Connection, str | None]]:
    """The live connections, each with its phase where the signal has several."""
    return [
        (link, phase or None)
        for phase, registry in signal._registries().items()
        for link in registry.all_connections()
        if is_a(link, Connection)
    ]


def describe_connection(connection: Connection, phase: str | None) -> dict[str, Any]:
    """Everything that is known of a connection, in the types of JSON."""
    sender = connection.sender
    return {
        "name": name_of(connection.receiver),
        "location": location_of(connection),
        "on": phase,
        "sender": None if sender is None else _show(sender),
        "priority": connection.priority,
        "weak": connection.weak,
        "async": connection.is_async,
        "in_thread": connection.in_thread,
        "dispatch_uid": None if connection.dispatch_uid is None else _show(connection.dispatch_uid),
        "subclasses": connection.options.subclasses,
        "timeout": connection.options.timeout,
        "once": connection.options.once,
    }


def notes_of(receiver: dict[str, Any]) -> list[str]:
    """What is worth a word about a described connection, in a fixed order."""
    notes = [f"on {receiver['on']}"] if receiver["on"] is not None else []
    if receiver["sender"] is not None:
        notes.append(f"sender={receiver['sender']}")
    if receiver["subclasses"]:
        notes.append("and subclasses")
    if receiver["priority"]:
        notes.append(f"priority={receiver['priority']}")
    if receiver["timeout"] is not None:
        notes.append(f"timeout={receiver['timeout']}")
    if receiver["dispatch_uid"] is not None:
        notes.append(f"uid={receiver['dispatch_uid']}")
    notes.append("async" if receiver["async"] else "thread" if receiver["in_thread"] else "sync")
    notes.append("weak" if receiver["weak"] else "strong")
    if receiver["once"]:
        notes.append("once")
    return notes


def location_of(connection: Connection) -> str:
    """The `file:line` of a connection, with a path from the working directory where it is below it."""
    path, _, line = str(connection.location).rpartition(":")
    return f"{short_path(path)}:{line}" if path else line


def is_orphan(signal: AnySignal) -> bool:
    """Whether nobody hears the signal, whoever sends it: no receiver, and no stream."""
    return not (signal.connections or signal._registry.all_connections())


def arguments_of(signal: AnySignal) -> list[dict[str, Any]] | None:
    """The declared arguments with their types and defaults as text; None for a signal that takes any."""
    if signal.providing_args is None:
        return None
    parameters = _parameters(signal)
    return [_argument(name, parameters.get(name)) for name in signal.providing_args]


def signature_of(signal: AnySignal) -> str:
    """The declared arguments as in a `def`: `(toppings: list[str], size: int = 30)`; `(**any)` where any are sent."""
    arguments = arguments_of(signal)
    if arguments is None:
        return "(**any)"
    return f"({', '.join(_argument_text(argument) for argument in arguments)})"


def first_line(signal: AnySignal) -> str:
    """The first line of a signal's own docstring, or nothing."""
    # Signal() without doc shows the docstring of the class, which says nothing of this signal.
    doc = signal.__doc__
    return "" if not doc or doc == type(signal).__doc__ else inspect.cleandoc(doc).partition("\n")[0]


def _modules(target: str, name: str, broken: list[TargetError] | None) -> Iterator[ModuleType]:
    module = _import(target, name)
    yield module
    for inner in sorted(info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}.")):
        # Importing __main__ would run the program.
        if inner.rpartition(".")[2] == "__main__":
            continue
        try:
            yield from _modules(target, inner, broken)
        except TargetError as error:
            if broken is None:
                raise
            broken.append(error)


def _import(target: str, name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        reason = "a target is a dotted module name such as shop.signals"
        if name.endswith(".py") or "/" in name:
            dotted = name.removesuffix(".py").strip("./").replace("/", ".")
            reason = f"that is a path; did you mean {dotted!r}?"
        raise TargetError(target, name, None, reason)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a script that calls sys.exit() when imported is a target that does not import
        raise TargetError(target, name, error) from error


def _attribute(target: str, module: ModuleType, attribute: str) -> object:
    thing: object = module
    for part in attribute.split("."):
        try:
            thing = inspect.getattr_static(thing, part)
        except AttributeError:
            reason = f"{name_of(thing) if thing is not module else module.__name__} has no attribute {part!r}"
            raise TargetError(target, target, None, reason) from None
    return thing


def _is_in(signal: AnySignal, thing: object) -> bool:
    return signal is thing or (is_a(thing, type) and any(signal is value for value in _namespace(thing).values()))


def _signals(modules: list[ModuleType]) -> list[Found]:
    best: dict[int, Found] = {}
    for module in modules:
        for path, signal in _members(module):
            found = Found(signal, f"{module.__name__}:{path}", _name(signal, module, path))
            known = best.get(id(signal))
            # Modules that import a signal hold it, too: the one that declares it is its home.
            if known is None or (_is_home(found) and not _is_home(known)):
                best[id(signal)] = found
    order = {module.__name__: number for number, module in enumerate(modules)}
    return sorted(best.values(), key=lambda found: order[found.module])


def _members(module: ModuleType) -> Iterator[tuple[str, AnySignal]]:
    for name, value in list(vars(module).items()):
        if is_a(value, Signal):
            yield name, value
        elif is_a(value, type) and _namespace(value).get("__module__") == module.__name__:
            yield from _class_members(name, value)


def _class_members(path: str, kind: type) -> Iterator[tuple[str, AnySignal]]:
    for name, value in list(_namespace(kind).items()):
        if is_a(value, Signal):
            yield f"{path}.{name}", value
        elif is_a(value, type) and _qualname(value).startswith(f"{_qualname(kind)}."):
            yield from _class_members(f"{path}.{name}", value)


def _is_home(found: Found) -> bool:
    return found.path.replace(":", ".") == str(found.signal.name)


def _name(signal: AnySignal, module: ModuleType, path: str) -> str:
    # One that its module does not hold itself, but a class of it, may be called by its line.
    name = str(signal.name)
    return f"{module.__name__}.{path}" if re.search(r":\d+$", name) else name


def _parameters(signal: AnySignal) -> dict[str, inspect.Parameter]:
    # The send of a declared signal has the real parameters.
    try:
        return dict(inspect.signature(signal.send).parameters)
    except (TypeError, ValueError, NameError):
        return {}


def _argument(name: str, parameter: inspect.Parameter | None) -> dict[str, Any]:
    empty = inspect.Parameter.empty
    annotation = None if parameter is None or parameter.annotation is empty else parameter.annotation
    default = None if parameter is None or parameter.default is empty else _show.named(name, parameter.default)
    return {
        "name": name,
        "type": annotation if annotation is None else _type_text(annotation),
        "default": default,
    }


def _type_text(annotation: object) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    # As one would write it after `from typing import Any`: the modules are noise.
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", text)


def _argument_text(argument: dict[str, Any]) -> str:
    typed = f"{argument['name']}: {argument['type']}" if argument["type"] else str(argument["name"])
    if argument["default"] is None:
        return typed
    return f"{typed} = {argument['default']}" if argument["type"] else f"{typed}={argument['default']}"


def _raised_at(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{short_path(error.filename)}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    return f"{short_path(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename in (__file__, importlib.__file__)
