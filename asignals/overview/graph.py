"""Who sends what to whom: the graph behind `asignals graph`, as Mermaid, DOT, JSON or a page.

Receivers and signals are read from the imported modules. Senders are read from their source (`source`): every call of
`send`, `send_robust`, `send_nowait` or a background's `send` whose signal can be told from its name.
"""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass, field
from typing import Any, Literal

from asignals.overview.discovery import (
    Discovery,
    Found,
    arguments_of,
    connections_of,
    describe_connection,
    first_line,
    is_orphan,
    receivers_not_loaded,
)
from asignals.overview.relays import live_relays, receives_of

Kind = Literal["sender", "signal", "receiver", "topic", "service"]


@dataclass
class Node:
    """A function that sends, a signal, a receiver, a topic, or a service whose relay exports to topics and receives."""

    key: str
    kind: Kind
    name: str
    location: str = ""
    note: str = ""
    orphan: bool = False
    loaded: bool = True
    """Whether the entry point loads it."""


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
    for program in discovery.programs:
        for use in program.uses(loaded=True):
            node = signals.get(id(use.signal))
            if node is not None and use.kind == "send":
                sender = Node(f"sender:{use.function}", "sender", use.function, use.location)
                graph.connect(graph.add(sender), node)
    for found in discovery.signals:
        _add_receivers(graph, signals[id(found.signal)], found)
        for missing in receivers_not_loaded(found.signal, discovery.not_loaded):
            key = f"receiver:{missing['name']}@{missing['location']}"
            node = Node(key, "receiver", missing["name"], missing["location"], "not loaded", loaded=False)
            graph.connect(signals[id(found.signal)], graph.add(node), "not loaded")
    for relay in live_relays():
        for signal, topic in receives_of(relay):
            if id(signal) in signals:
                service = _service_node(graph, relay.service, "receives")
                graph.connect(_topic_node(graph, topic), service)
                graph.connect(service, signals[id(signal)], f"receives {topic}")
    return graph


def _topic_node(graph: Graph, topic: str) -> Node:
    return graph.add(Node(f"topic:{topic}", "topic", topic, note="topic"))


def _service_node(graph: Graph, service: str, does: Literal["exports", "receives"]) -> Node:
    """A service that does both is two nodes: what it receives does not follow from what it exports."""
    return graph.add(Node(f"service:{service} {does}", "service", service, note=f"service, {does}"))


def _signal_node(found: Found) -> Node:
    arguments = arguments_of(found.signal)
    names = "any" if arguments is None else ", ".join(argument["name"] for argument in arguments)
    note = textwrap.shorten(first_line(found.signal) or f"({names})", 80, placeholder="…")
    return Node(f"signal:{found.path}", "signal", found.name, note=note, orphan=is_orphan(found.signal))


def _add_receivers(graph: Graph, signal: Node, found: Found) -> None:
    for connection, phase in connections_of(found.signal):
        known = describe_connection(connection, phase)
        label = [f"on {known['on']}"] if known["on"] else []
        label += [f"from {known['sender']}"] if known["sender"] else []
        if known["relay"] is not None:
            topic = known["relay"]["topic"]
            service = _service_node(graph, known["relay"]["service"], "exports")
            graph.connect(signal, service, ", ".join([*label, f"exported to {topic}"]))
            graph.connect(service, _topic_node(graph, topic))
            continue
        key = f"receiver:{known['name']}@{known['location']}"
        node = graph.add(Node(key, "receiver", known["name"], known["location"]))
        label += [f"priority {known['priority']}"] if known["priority"] else []
        label += ["in a thread"] if known["in_thread"] else []
        graph.connect(signal, node, ", ".join(label))


def mermaid(graph: Graph) -> str:
    """Write the graph as a Mermaid flowchart."""
    ids = _ids(graph)
    shapes = {
        "sender": ('["', '"]'),
        "signal": ('(["', '"])'),
        "receiver": ('["', '"]'),
        "topic": ('[/"', '"/]'),
        "service": ('[["', '"]]'),
    }
    lines = ["flowchart LR"]
    for node in graph.nodes.values():
        opening, closing = shapes[node.kind]
        kind = "missing" if not node.loaded else "orphan" if node.orphan else node.kind
        lines.append(f"  {ids[node.key]}{opening}{_mermaid_text(_label(node, '<br>'))}{closing}:::{kind}")
    for edge in graph.edges:
        label = f'|"{_mermaid_text(edge.label)}"|' if edge.label else ""
        lines.append(f"  {ids[edge.start]} -->{label} {ids[edge.end]}")
    lines += [
        "  classDef sender fill:#eef2ff,stroke:#6366f1,color:#1e1b4b",
        "  classDef signal fill:#fef3c7,stroke:#d97706,color:#451a03",
        "  classDef receiver fill:#dcfce7,stroke:#16a34a,color:#052e16",
        "  classDef topic fill:#e0f2fe,stroke:#0284c7,color:#082f49",
        "  classDef service fill:#f3e8ff,stroke:#9333ea,color:#3b0764",
        "  classDef missing fill:#ffffff,stroke:#dc2626,color:#450a0a,stroke-dasharray:2 3",
        "  classDef orphan fill:#fee2e2,stroke:#dc2626,color:#450a0a,stroke-dasharray:4 3",
    ]
    return "\n".join(lines) + "\n"


def dot(graph: Graph) -> str:
    """Write the graph in the DOT language of Graphviz."""
    ids = _ids(graph)
    shapes = {"sender": "box", "signal": "oval", "receiver": "box", "topic": "parallelogram", "service": "component"}
    fills = {"sender": "#eef2ff", "signal": "#fef3c7", "receiver": "#dcfce7", "topic": "#e0f2fe", "service": "#f3e8ff"}
    lines = ["digraph signals {", "  rankdir=LR;", '  node [fontname="sans-serif", style="filled,rounded"];']
    for node in graph.nodes.values():
        fill = "#fee2e2" if node.orphan or not node.loaded else fills[node.kind]
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
    if not node.loaded:
        lines.append("not loaded")
    return newline.join(line for line in lines if line)


def _mermaid_text(text: str) -> str:
    kept = [line.replace("#", "#35;").replace('"', "#quot;") for line in text.split("<br>")]
    return "<br>".join(line.replace("<", "#lt;").replace(">", "#gt;") for line in kept)


def _dot_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
