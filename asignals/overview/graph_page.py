"""The page of `asignals graph --format html`: one file with the picture in it, nothing loaded.

The picture is made of columns: who sends, the signals, who hears; topics of a relay stand where they come from or go
to. It is drawn here, by one small script in the page: only what is seen of it, so that hundreds of signals can be
searched, enlarged, and folded by package. Without JavaScript there is a table of all connections.
"""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from asignals.overview.values import shorten

if TYPE_CHECKING:
    from asignals.overview.graph import Edge, Graph, Kind, Node

_TITLES: Final[dict[Kind, str]] = {
    "sender": "senders",
    "signal": "signals",
    "receiver": "receivers",
    "topic": "topics",
    "service": "services",
}
FOLDED: Final = 60
"""From how many signals on the packages are folded at first."""


def page(graph: Graph, title: str) -> str:
    """Make the page."""
    kinds = [kind for kind in _TITLES if kind not in {"topic", "service"} or graph.of_kind(kind)]
    counts = ", ".join(_count(len(graph.of_kind(kind)), _TITLES[kind]) for kind in kinds)
    orphans = sum(node.orphan for node in graph.nodes.values())
    missing = sum(not node.loaded for node in graph.nodes.values())
    counts += f", {orphans} that nobody hears" + (f", {missing} not loaded" if missing else "")
    style, script = _part("graph.css"), _part("graph.js")
    policy = f"default-src 'none'; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'"
    body = _tools() + "<main><svg id=picture role=img></svg></main>" if graph.nodes else _EMPTY
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{counts}</p></header>{body}"
        f"<noscript>{_table(graph)}</noscript>"
        f'<script type="application/json" id="graph">{_json(graph)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


_EMPTY: Final = """<main class="empty"><p><strong>No signals here.</strong></p>
<p>The entry point loads no signal of its own, and connects no receiver to a library's. Name the module that your server
is given, such as <code>shop.main:app</code>, or try <code>--all</code>.</p></main>"""


def _tools() -> str:
    return (
        '<nav><label>Search <input id="search" type="search" placeholder="signal, sender, receiver" autocomplete="off">'
        '</label><button id="smaller" type="button" aria-label="smaller">−</button>'
        '<button id="larger" type="button" aria-label="larger">+</button><button id="fit" type="button">Fit</button>'
        '<button id="fold" type="button">Fold packages</button><span id="found" role="status"></span></nav>'
    )


def _count(number: int, name: str) -> str:
    return f"{number} {name[:-1] if number == 1 else name}"


def _json(graph: Graph) -> str:
    nodes = [_node(node) for node in graph.nodes.values()]
    numbers = {key: number for number, key in enumerate(graph.nodes)}
    edges = [[numbers[edge.start], numbers[edge.end], shorten(edge.label, 200)] for edge in graph.edges]
    folded = len(graph.of_kind("signal")) > FOLDED
    text = json.dumps({"nodes": nodes, "edges": edges, "folded": folded}, separators=(",", ":"))
    return text.replace("<", "\\u003c")  # nothing in it can end the script


def _node(node: Node) -> dict[str, Any]:
    known = {"kind": node.kind, "name": shorten(node.name, 300), "note": shorten(node.location or node.note, 300)}
    return {**known, "orphan": node.orphan, "loaded": node.loaded}


def _table(graph: Graph) -> str:
    rows = "".join(_row(edge, graph) for edge in graph.edges)
    return f"<table><tr><th>from</th><th>to</th><th></th></tr>{rows}</table>"


def _row(edge: Edge, graph: Graph) -> str:
    cells = (graph.nodes[edge.start].name, graph.nodes[edge.end].name, edge.label)
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _part(name: str) -> str:
    return files("asignals.overview").joinpath("static", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
