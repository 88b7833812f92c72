"""Who sends what to whom: the graph behind `asignals graph`, as Mermaid, DOT, JSON or a page.

Receivers and signals are read from the imported modules. Senders are read from their source: every call of `send`,
`send_robust`, `send_nowait` or a background's `send` whose signal can be told from its name (`signals.order_paid.send`,
`self.saved.send`, `order_paid.using(limit=8).send`), for which no code runs.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import sys
import textwrap
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal

from asignals import Signal
from asignals._refs import is_a
from asignals.overview.values import short_path
from asignals.overview.discovery import (
    Discovery,
    Found,
    arguments_of,
    connections_of,
    describe_connection,
    first_line,
    is_orphan,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


AnySignal = Signal[..., Any]
Kind = Literal["sender", "signal", "receiver"]

SENDS: Final = frozenset({"send", "send_robust"})
BACKGROUND_SENDS: Final = frozenset({"send", "send_nowait"})


@dataclass
class Node:
    """A function that sends, a signal, or a receiver."""

    key: str
    kind: Kind
    name: str
    location: str = ""
    note: str = ""
    orphan: bool = False


@dataclass
class Edge:
    """From a sender to a signal, or from a signal to a receiver."""

    start: str
    end: str
    label: str = ""


@dataclass
class Graph:
    """Nodes by their keys, in order, and the edges between them."""

    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)

    def add(self, node: Node) -> Node:
        """Add a node unless it is there, and return the one that is there."""
        return self.nodes.setdefault(node.key, node)

    def connect(self, start: Node, end: Node, label: str = "") -> None:
        """Add an edge unless it is there."""
        edge = Edge(start.key, end.key, label)
        if edge not in self.edges:
            self.edges.append(edge)

    def of_kind(self, kind: Kind) -> list[Node]:
        """The nodes of a kind, in order."""
        return [node for node in self.nodes.values() if node.kind == kind]


def build(discovery: Discovery) -> Graph:
    """Build the graph of the signals found, with the calls that send them in the modules found."""
    graph = Graph()
    signals = {id(found.signal): graph.add(_signal_node(found)) for found in discovery.signals}
    for module in discovery.modules:
        for call in calls_in(module):
            node = signals.get(id(call.signal))
            if node is not None:
                sender = Node(f"sender:{call.name}", "sender", call.name, call.location)
                graph.connect(graph.add(sender), node)
    for found in discovery.signals:
        _add_receivers(graph, signals[id(found.signal)], found)
    return graph


def _signal_node(found: Found) -> Node:
    arguments = arguments_of(found.signal)
    names = "any" if arguments is None else ", ".join(argument["name"] for argument in arguments)
    note = textwrap.shorten(first_line(found.signal) or f"({names})", 80, placeholder="…")
    return Node(f"signal:{found.path}", "signal", found.name, note=note, orphan=is_orphan(found.signal))


def _add_receivers(graph: Graph, signal: Node, found: Found) -> None:
    for connection, phase in connections_of(found.signal):
        known = describe_connection(connection, phase)
        key = f"receiver:{known['name']}@{known['location']}"
        node = graph.add(Node(key, "receiver", known["name"], known["location"]))
        label = [f"on {known['on']}"] if known["on"] else []
        label += [f"from {known['sender']}"] if known["sender"] else []
        label += [f"priority {known['priority']}"] if known["priority"] else []
        label += ["in a thread"] if known["in_thread"] else []
        graph.connect(signal, node, ", ".join(label))


@dataclass(frozen=True)
class Call:
    """A place in the source that sends a signal."""

    signal: AnySignal
    name: str
    location: str


def calls_in(module: ModuleType) -> Iterator[Call]:
    """Find the calls in a module's source that send a signal; nothing for a module without source."""
    try:
        source = inspect.getsource(module)
        tree = ast.parse(source)
    except (OSError, TypeError, SyntaxError, ValueError):
        return
    finder = _Finder(module)
    finder.visit(tree)
    yield from finder.calls


class _Finder(ast.NodeVisitor):
    """Collects the calls, and knows in which function and class it is, and what that function imported."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._file = short_path(module.__file__ or module.__name__)
        self._names: list[tuple[str, type[ast.AST]]] = []
        self._local: list[dict[str, object]] = []
        self.calls: list[Call] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._enter(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._enter(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._enter(node)

    def _enter(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._names.append((node.name, type(node)))
        self._local.append({})
        self.generic_visit(node)
        self._local.pop()
        self._names.pop()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names if self._local else ():
            top = alias.name.partition(".")[0]
            self._local[-1][alias.asname or top] = _imported(alias.name if alias.asname else top)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if not self._local:
            return
        module = _imported("." * node.level + (node.module or ""), self._module.__package__)
        for alias in node.names:
            value = _member(module, alias.name)
            if value is None and is_a(module, ModuleType):
                value = _imported(f"{module.__name__}.{alias.name}")
            self._local[-1][alias.asname or alias.name] = value

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        signal = self._sent_by(node)
        if signal is not None:
            name = ".".join([self._module.__name__, *(name for name, _ in self._names)])
            self.calls.append(Call(signal, name, f"{self._file}:{node.lineno}"))

    def _sent_by(self, node: ast.Call) -> AnySignal | None:
        if not isinstance(node.func, ast.Attribute):
            return None
        if node.func.attr in SENDS:
            signal = self._signal(node.func.value)
            if signal is not None:
                return signal
        if node.func.attr in BACKGROUND_SENDS and node.args:
            return self._signal(node.args[0])
        return None

    def _signal(self, node: ast.expr) -> AnySignal | None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "using":
            node = node.func.value
        value = self._value(node)
        return value if is_a(value, Signal) else None

    def _value(self, node: ast.expr) -> object:
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, ast.Attribute):
            return _member(self._value(node.value), node.attr)
        return None

    def _named(self, name: str) -> object:
        for local in reversed(self._local):
            if name in local:
                return local[name]
        if name in ("self", "cls"):
            return self._class()
        return vars(self._module).get(name)

    def _class(self) -> object:
        depth = max((number for number, (_, kind) in enumerate(self._names) if kind is ast.ClassDef), default=-1)
        value: object = self._module
        for name, _ in self._names[: depth + 1]:
            value = _member(value, name)
        return value if depth >= 0 else None


def _member(thing: object, name: str) -> object:
    # Statically: a property must not run. A signal of a base class counts.
    return None if thing is None else inspect.getattr_static(thing, name, None)


def _imported(name: str, package: str | None = None) -> object:
    # Only what the imports of the targets loaded already: to draw a graph runs no further code.
    try:
        return _loaded(importlib.util.resolve_name(name, package))
    except (ImportError, ValueError):
        return None


def _loaded(name: str) -> object:
    return sys.modules.get(name)


def mermaid(graph: Graph) -> str:
    """Write the graph as a Mermaid flowchart."""
    ids = _ids(graph)
    shapes = {"sender": ('["', '"]'), "signal": ('(["', '"])'), "receiver": ('["', '"]')}
    lines = ["flowchart LR"]
    for node in graph.nodes.values():
        opening, closing = shapes[node.kind]
        kind = "orphan" if node.orphan else node.kind
        lines.append(f"  {ids[node.key]}{opening}{_mermaid_text(_label(node, '<br>'))}{closing}:::{kind}")
    for edge in graph.edges:
        label = f'|"{_mermaid_text(edge.label)}"|' if edge.label else ""
        lines.append(f"  {ids[edge.start]} -->{label} {ids[edge.end]}")
    lines += [
        "  classDef sender fill:#eef2ff,stroke:#6366f1,color:#1e1b4b",
        "  classDef signal fill:#fef3c7,stroke:#d97706,color:#451a03",
        "  classDef receiver fill:#dcfce7,stroke:#16a34a,color:#052e16",
        "  classDef orphan fill:#fee2e2,stroke:#dc2626,color:#450a0a,stroke-dasharray:4 3",
    ]
    return "\n".join(lines) + "\n"


def dot(graph: Graph) -> str:
    """Write the graph in the DOT language of Graphviz."""
    ids = _ids(graph)
    shapes = {"sender": "box", "signal": "oval", "receiver": "box"}
    fills = {"sender": "#eef2ff", "signal": "#fef3c7", "receiver": "#dcfce7"}
    lines = ["digraph signals {", "  rankdir=LR;", '  node [fontname="sans-serif", style="filled,rounded"];']
    for node in graph.nodes.values():
        fill = "#fee2e2" if node.orphan else fills[node.kind]
        label = _dot_text(_label(node, "\n"))
        lines.append(f'  {ids[node.key]} [label="{label}", shape={shapes[node.kind]}, fillcolor="{fill}"];')
    for edge in graph.edges:
        label = f' [label="{_dot_text(edge.label)}"]' if edge.label else ""
        lines.append(f"  {ids[edge.start]} -> {ids[edge.end]}{label};")
    return "\n".join([*lines, "}"]) + "\n"


def as_json(graph: Graph) -> dict[str, Any]:
    """The graph in the types of JSON."""
    return {
        "nodes": [dataclasses.asdict(node) for node in graph.nodes.values()],
        "edges": [dataclasses.asdict(edge) for edge in graph.edges],
    }


def _ids(graph: Graph) -> dict[str, str]:
    return {key: f"n{number}" for number, key in enumerate(graph.nodes)}


def _label(node: Node, newline: str) -> str:
    lines = [node.name, node.location or node.note]
    if node.orphan:
        lines.append("nobody hears this")
    return newline.join(line for line in lines if line)


def _mermaid_text(text: str) -> str:
    kept = [line.replace("#", "#35;").replace('"', "#quot;") for line in text.split("<br>")]
    return "<br>".join(line.replace("<", "#lt;").replace(">", "#gt;") for line in kept)


def _dot_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
