"""What may be missing or wrong between a program's signals and its receivers: one function for each kind of finding."""

from __future__ import annotations

import ast
import difflib
import gc
import sys
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from asignals import Signal, signals
from asignals._core import is_a, locate, origin_of
from asignals.overview.relays import exports_of, live_relays, receives_of
from asignals.overview.source import Declared
from asignals.overview.uses import Use
from asignals.overview.values import name_of, short_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asignals.overview.program import Program
    from asignals.overview.watching import Watch

Kind: TypeAlias = Literal[
    "not-loaded",
    "unheard",
    "lost",
    "loaded-twice",
    "uid-taken",
    "relay-not-run",
    "received-unheard",
    "no-such-model",
    "not-awaited",
]

TITLES: Final[dict[Kind, str]] = {
    "not-loaded": "receivers that are not loaded",
    "unheard": "sent, and nobody hears",
    "lost": "receiver lost",
    "loaded-twice": "loaded twice",
    "uid-taken": "dispatch_uid taken",
    "relay-not-run": "relay that does not run",
    "received-unheard": "received, and nobody hears",
    "no-such-model": "no such model",
    "not-awaited": "never awaited",
}
"""What each kind of finding is called."""


@dataclass(frozen=True)
class Finding:
    """Something that is missing or wrong: where, what, and what to do."""

    kind: Kind
    message: str
    file: str
    line: int
    advice: str
    signal: str | None = None

    @property
    def location(self) -> str:
        """The place as `file:line`."""
        return f"{self.file}:{self.line}"

    def as_dict(self) -> dict[str, Any]:
        """All of it, in the types of JSON."""
        return {**asdict(self), "location": self.location}


# -- modules -------------------------------------------------------------------------------------------------------


def not_loaded(program: Program) -> Iterator[Finding]:
    """Modules that connect receivers when they are imported, and that nothing imports."""
    computed = program.imports_by_computed_name()
    for missing in program.not_loaded():
        if missing.is_certain and computed is None:
            use = missing.on_import[0]
            # Its package is imported by every module below it, so it is a place that cannot be forgotten.
            yield Finding(
                "not-loaded",
                f"{missing.source.name} {what_it_does(missing.on_import)}, but {program.entry} does not load it",
                use.file,
                use.line,
                f"import {missing.source.name} in a module that {program.entry} loads, such as {program.module}",
                use.signal_name,
            )


def what_it_does(uses: list[Use]) -> str:
    """Say what importing a module would do: `connects mail to order_paid and 2 more`."""
    use = uses[0]
    name = use.signal_name.rpartition(".")[2]
    more = f" (and {len(uses) - 1} more)" if len(uses) > 1 else ""
    if use.kind == "connect":
        return f"connects {use.receiver or 'a receiver'} to {name}{more}"
    verb = "exports" if use.kind == "export" else "receives"
    return f"{verb} {name}{more}"


def loaded_twice(program: Program) -> Iterator[Finding]:
    """Modules that are loaded under two names, and so connect their receivers twice."""
    by_file: dict[str, list[str]] = defaultdict(list)
    own = {str(source.path.resolve()) for source in program.sources}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        is_alias = getattr(module, "__name__", name) != name  # one module under two names is loaded once
        if isinstance(file, str) and name != "__main__" and not is_alias and str(Path(file).resolve()) in own:
            by_file[str(Path(file).resolve())].append(name)
    for file, names in by_file.items():
        if len(names) > 1:
            yield from _twice(file, sorted(names, key=len))


def _twice(file: str, names: list[str]) -> Iterator[Finding]:
    connected = [
        (signal, connection)
        for signal in signals()
        for connection in signal.connections
        if getattr(connection.receiver, "__module__", None) in names
    ]
    if not connected:
        # A partial or an instance names no module; connected at one place twice, it is of both.
        places = Counter((signal.name, each.connected_at) for signal in signals() for each in signal.connections)
        connected = [
            (signal, each)
            for signal in signals()
            for each in signal.connections
            if places[signal.name, each.connected_at] > 1 and each.connected_at.rpartition(":")[0] == file
        ]
    declared = [signal for signal in signals() if str(signal.name).rpartition(".")[0] in names]
    if connected:
        signal, connection = connected[0]
        path, _, line = connection.connected_at.rpartition(":")
        harm = f"{name_of(connection.receiver).rpartition('.')[2]} is connected to {signal.name} twice"
        place = (short_path(path), int(line)) if line.isdecimal() else (short_path(file), 1)
    elif declared:
        name = str(declared[0].name).rpartition(".")[2]
        harm = f"{name} is two signals, and a send of one misses receivers of the other"
        place = (short_path(file), 1)
    else:
        return
    listing = " and ".join(names)
    yield Finding(
        "loaded-twice",
        f"{short_path(file)} is loaded twice, as {listing}: {harm}",
        *place,
        f"import it by one name everywhere: {names[-1]}",
    )


# -- signals -------------------------------------------------------------------------------------------------------


def unheard(program: Program) -> Iterator[Finding]:
    """Signals that the program sends, and that nobody hears."""
    later = _heard_later(program)
    first: dict[object, Use] = {}
    for use in program.uses(loaded=True):
        if use.kind == "send":
            first.setdefault(_key(use), use)
    for signal, place in _forwarded():
        first.setdefault(id(signal), place)
    for key, use in first.items():
        if key in later or is_a(use.signal, Declared) or is_heard(use.signal):
            continue
        would = [
            other
            for missing in program.not_loaded()
            for other in missing.uses
            if _key(other) == key and other.kind == "connect"
        ]
        advice = "connect a receiver, or remove the send"
        if would:
            advice = (
                f"import {would[0].module}, which connects {would[0].receiver or 'a receiver'} ({would[0].location})"
            )
        message = f"{use.signal_name} is sent by {use.function}, and nobody hears it"
        yield Finding("unheard", message, use.file, use.line, advice, use.signal_name)


def _heard_later(program: Program) -> set[object]:
    """The signals that the program listens to, or hands to a relay, once it runs; by what `_key` gives."""
    later = program.loaded_later()
    found = set()
    for source in program.sources:
        is_later = source.module is None
        if not is_later or source.name in later:
            for use in program.uses_in(source):
                if use.kind in ("listen", "export") or (use.kind == "connect" and (is_later or not use.on_import)):
                    found.add(_key(use))
    return found


def is_heard(signal: Signal[..., Any] | Declared) -> bool:
    """Whether anybody hears the signal now, in any phase: a receiver, or a stream."""
    if not is_a(signal, Signal):
        return False
    return any(registry.all_connections() for registry in signal._registries().values())


def _forwarded() -> Iterator[tuple[Signal[..., Any], Use]]:
    """Signals that other signals forward to: `a.connect(b.send)` sends b."""
    for signal in signals():
        for connection in signal.connections:
            receiver: Any = connection.receiver
            target = getattr(receiver, "__self__", None)
            if is_a(target, Signal) and getattr(receiver, "__name__", "") in ("send", "send_robust"):
                path, _, line = connection.connected_at.rpartition(":")
                place = short_path(path), int(line) if line.isdecimal() else 1
                yield target, Use("send", target, str(signal.name), "", *place, on_import=True)


def _key(use: Use) -> object:
    return id(origin_of(use.signal)) if is_a(use.signal, Signal) else use.signal.name


def not_awaited(program: Program) -> Iterator[Finding]:
    """Sends that nothing awaits, and that therefore send nothing."""
    for use in program.uses(loaded=True):
        if not use.is_awaited:
            yield Finding(
                "not-awaited",
                f"{use.function} calls {use.signal_name} without awaiting it, so nothing is sent",
                use.file,
                use.line,
                "write await before it, or hand it to a Background",
                use.signal_name,
            )


# -- receivers -----------------------------------------------------------------------------------------------------


def lost(watch: Watch) -> Iterator[Finding]:
    """Receivers that died before they could be called."""
    for lost in dict.fromkeys(watch.lost):
        yield Finding("lost", lost.message, lost.file, lost.line, lost.advice)


def uid_taken(watch: Watch) -> Iterator[Finding]:
    """Receivers that were not added, as another one has their `dispatch_uid`."""
    for each in watch.refused:
        yield Finding(
            "uid-taken",
            f"{each.receiver} is not connected to {each.signal}: {each.taken_by} has dispatch_uid={each.uid}",
            each.file,
            each.line,
            "give each its own dispatch_uid, or say replace=True to put it in the other's place",
            each.signal,
        )


def no_such_model(program: Program) -> Iterator[Finding]:
    """Receivers of models' signals that wait for a model that there is not."""
    for signal in signals():
        for name in getattr(signal, "awaited", ()):
            use = _awaiting(program, signal, name)
            file, line = (use.file, use.line) if use is not None else _place(program, "connect", signal)
            who = use.receiver if use is not None and use.receiver else "a receiver"
            yield Finding(
                "no-such-model",
                f"{who} waits for a model {name!r} of {signal.name}, and no model that is loaded has this name",
                file,
                line,
                _model_advice(program, name),
                str(signal.name),
            )


def _awaiting(program: Program, signal: Signal[..., Any], name: str) -> Use | None:
    for use in program.uses(loaded=True):
        if use.kind == "connect" and use.signal is signal and repr(name) in use.sender:
            return use
    return None


def _model_advice(program: Program, name: str) -> str:
    own = name.rpartition(".")[2]
    for source in program.sources:
        classes = {node.name for node in source.tree.body if isinstance(node, ast.ClassDef)}
        if source.module is None and own in classes:
            return f"import {source.name}, where class {own} is"
    close = difflib.get_close_matches(own, _models(), 1)
    return f"did you mean {close[0]!r}?" if close else "import the module of the model, or correct the name"


def _models() -> list[str]:
    orm = sys.modules.get("sqlalchemy.orm")
    registries = [] if orm is None else [each for each in gc.get_objects() if type(each) is orm.registry]
    return sorted({mapper.class_.__name__ for registry in registries for mapper in registry.mappers})


# -- relays --------------------------------------------------------------------------------------------------------

# What a program that does not run a relay may use of it, too.
_CONFIGURING: Final = frozenset(
    {"export", "receive", "stop_exporting", "bind", "own_transaction", "health", "status", "init", "topics", "unheard"}
)


def relays(program: Program) -> Iterator[Finding]:
    """Relays that nothing runs, and topics that are received while no receiver is connected."""
    for relay in live_relays():
        names = _names_of(program, relay)
        if names and relay is not program.thing and not _is_used(program, names):
            yield from _not_run(program, relay, names)
        later = _heard_later(program)
        for signal, topic in receives_of(relay):
            if (signal.name, topic) in relay.unheard and id(signal) not in later:
                yield Finding(
                    "received-unheard",
                    f"relay {relay.service} receives {topic!r} for {signal.name}, and no receiver is connected",
                    *_place(program, "receive", signal),
                    "import the module that connects its receivers, or do not receive the topic",
                    str(signal.name),
                )


def _not_run(program: Program, relay: Any, names: set[str]) -> Iterator[Finding]:
    name = min(names)
    handled = [("export", signal, topic) for signal, topic in exports_of(relay)]
    handled += [("receive", signal, topic) for signal, topic in receives_of(relay)]
    for kind, signal, topic in handled:
        file, line = _place(program, kind, signal)
        verb = "exports" if kind == "export" else "receives"
        yield Finding(
            "relay-not-run",
            f"relay {relay.service} {verb} {signal.name} as {topic!r}, and nothing runs the relay {name!r}",
            file,
            line,
            f"enter it where the program starts (async with {name}:), or check the entry point that does",
            str(signal.name),
        )


def _place(program: Program, kind: str, signal: Signal[..., Any]) -> tuple[str, int]:
    for use in program.uses(loaded=True):
        if use.kind == kind and use.signal is signal:
            return use.file, use.line
    path, _, line = (locate(program.thing) or "").rpartition(":")
    return (short_path(path), int(line)) if line.isdecimal() else (program.module, 1)


def _names_of(program: Program, thing: object) -> set[str]:
    return {name for module in program.modules for name, value in list(vars(module).items()) if value is thing}


def _is_used(program: Program, names: Iterable[str]) -> bool:
    """Whether any loaded module mentions one of the names otherwise than to set it up."""
    return any(_mentions(source.tree, frozenset(names)) for source in program.sources if source.module is not None)


def _mentions(tree: ast.AST, names: frozenset[str]) -> bool:
    configured = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in _CONFIGURING
    }
    for node in ast.walk(tree):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
        is_read = isinstance(getattr(node, "ctx", None), ast.Load)
        if name in names and is_read and id(node) not in configured:
            return True
    return False
