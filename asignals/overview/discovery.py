"""Find the signals of programs, for `asignals list` and `asignals graph`."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from asignals import Connection, Signal, signals
from asignals._core import is_a
from asignals.overview.counts import key_of
from asignals.overview.program import NotLoaded, Program, TargetError, load, load_everything
from asignals.overview.relays import export_of
from asignals.overview.values import Shower, name_of, short_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import ModuleType

AnySignal = Signal[..., Any]

_show: Final = Shower(limit=80)
# Of any class, whatever its metaclass makes of these attributes.
_namespace: Final[Callable[[type], Mapping[str, Any]]] = type.__dict__["__dict__"].__get__
_qualname: Final[Callable[[type], str]] = type.__dict__["__qualname__"].__get__


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
    """What the targets hold: their modules, the signals in them, and what is not loaded but would connect receivers."""

    modules: list[ModuleType] = field(default_factory=list)
    signals: list[Found] = field(default_factory=list)
    broken: list[TargetError] = field(default_factory=list)
    programs: list[Program] = field(default_factory=list)
    not_loaded: list[NotLoaded] = field(default_factory=list)


def discover(targets: Iterable[str], *, everything: bool = False, skip_broken: bool = False) -> Discovery:
    """Load programs by their entry points and find their signals, and those of libraries that they connect to.

    A target is what a server is given (`shop.main:app`, `shop.relay:relay`), a module or package, or `module:attribute`
    for one signal or class. With `everything` each module of its packages is imported, too, except `__main__`, programs
    of their own, and tests; `TargetError` for one that does not import, or with `skip_broken` an entry in `broken`.
    """
    result = Discovery()
    only: list[Any] = []
    for target in targets:
        program = load(target)
        if everything:
            program = load_everything(program, result.broken if skip_broken else None)
        result.programs.append(program)
        result.modules += [module for module in program.modules if module not in result.modules]
        if is_a(program.thing, Signal) or (is_a(program.thing, type) and any(_class_members("", program.thing))):
            only.append(program.thing)
    result.signals = signals_of(result.modules)
    if only:
        result.signals = [found for found in result.signals if any(_is_in(found.signal, thing) for thing in only)]
    else:
        result.signals += _of_libraries(result.signals, result.programs)
    loaded = {module.__name__ for module in result.modules}
    missing = {each.source.name: each for program in result.programs for each in program.not_loaded()}
    result.not_loaded = [missing[name] for name in sorted(missing) if name not in loaded]
    return result


def describe(
    found: Found, not_loaded: Iterable[NotLoaded] = (), counts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Everything `asignals list` knows of a signal, in the types of JSON; with `counts`, how often it was sent."""
    signal = found.signal
    counted = None if counts is None else counts.get(str(signal.name), _NEVER)
    return {
        "name": found.name,
        "path": found.path,
        "doc": first_line(signal),
        "arguments": arguments_of(signal),
        "orphan": is_orphan(signal),
        "receivers": [
            {**describe_connection(connection, phase), **_calls_of(connection, counted)}
            for connection, phase in connections_of(signal)
        ],
        **({} if counted is None else {"sends": counted["sends"], "unheard": counted["unheard"]}),
        "not_loaded": receivers_not_loaded(signal, not_loaded),
    }


_NEVER: Final[Mapping[str, Any]] = {"sends": 0, "unheard": 0, "calls": {}}


def _calls_of(connection: Connection, counted: Mapping[str, Any] | None) -> dict[str, int]:
    return {} if counted is None else {"calls": counted["calls"].get(key_of(connection), 0)}


def receivers_not_loaded(signal: AnySignal, not_loaded: Iterable[NotLoaded]) -> list[dict[str, str]]:
    """The receivers that modules would connect to a signal if they were loaded: name, module and place."""
    return [
        {"name": f"{use.module}.{use.receiver}", "module": use.module, "location": use.location}
        for missing in not_loaded
        for use in missing.on_import
        if use.kind == "connect" and use.signal is signal
    ]


def connections_of(signal: AnySignal) -> list[tuple[Connection, str | None]]:
    """The live connections, each with its phase where the signal has several."""
    return [
        (connection, phase or None)
        for phase, registry in signal._registries().items()
        for connection in registry.all_connections()
        if connection.is_receiver
    ]


def describe_connection(connection: Connection, phase: str | None) -> dict[str, Any]:
    """Everything that is known of a connection, in the types of JSON."""
    sender = connection.sender
    uid = connection.dispatch_uid
    export = export_of(connection)
    return {
        "name": name_of(connection.receiver) if export is None else f"relay {export[0]} → {export[1]}",
        "location": location_of(connection),
        "on": phase,
        "relay": None if export is None else {"service": export[0], "topic": export[1]},
        "sender": None if sender is None else _show(sender),
        # How a relay sees to it that it is called first is nobody's business.
        "priority": connection.priority if export is None else None,
        "weak": connection.weak,
        "async": connection.is_async,
        "in_thread": connection.in_thread is not False,
        "dispatch_uid": None if uid is None or export is not None else _show(uid),
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
    if receiver["relay"] is None:
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
    return not any(registry.all_connections() for registry in signal._registries().values())


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


def _of_libraries(known: list[Found], programs: list[Program]) -> list[Found]:
    """The signals that no module of the programs holds, and to which one of their receivers is connected."""
    ids = {id(found.signal) for found in known}
    own = {str(source.path) for program in programs for source in program.sources}
    found = []
    for signal in signals():
        module, _, attribute = str(signal.name).rpartition(".")
        places = [connection.connected_at.rpartition(":")[0] for connection in signal.connections]
        if id(signal) not in ids and module in sys.modules and not own.isdisjoint(places):
            found.append(Found(signal, f"{module}:{attribute}", str(signal.name)))
    return found


def _is_in(signal: AnySignal, thing: object) -> bool:
    return signal is thing or (is_a(thing, type) and any(signal is value for value in _namespace(thing).values()))


def signals_of(modules: list[ModuleType]) -> list[Found]:
    """The signals that modules and their classes hold, each where it is declared."""
    best: dict[int, Found] = {}
    for module in modules:
        for path, signal in _members(module):
            found = Found(signal, f"{module.__name__}:{path}", _name(signal, module, path))
            known = best.get(id(signal))
            # Modules that import a signal hold it, too: the one that declares it is its home.
            if known is None or (_is_home(found) and not _is_home(known)):
                best[id(signal)] = found
    order = {module.__name__: number for number, module in enumerate(modules)}
    for found in best.values():
        _send_home(found)
    return sorted(best.values(), key=lambda found: order.get(found.module, len(order)))


def _send_home(found: Found) -> None:
    """Give the path in the module that declares a signal, where that is a library's."""
    module, _, attribute = str(found.signal.name).rpartition(".")
    if not _is_home(found) and vars(sys.modules.get(module, object)).get(attribute) is found.signal:
        found.path = f"{module}:{attribute}"


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
