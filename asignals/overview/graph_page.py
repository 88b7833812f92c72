"""The page of `asignals graph --format html`: one file with the picture in it, no script, nothing loaded."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from asignals.overview.values import shorten

if TYPE_CHECKING:
    from asignals.overview.graph import Edge, Graph, Kind, Node

# Pixels. A column is as wide as its longest line, within these bounds.
_ROW: Final = 64
_BOX: Final = 46
_GAP: Final = 180
_MARGIN: Final = 24
_TOP: Final = 56
_CHARACTER: Final = 7.3
_NARROWEST, _WIDEST = 160, 420

_TITLES: Final[dict[Kind, str]] = {"sender": "Senders", "signal": "Signals", "receiver": "Receivers"}

_STYLE: Final = """
:root { color-scheme: light dark; --back: #fbfbfd; --text: #1d2330; --soft: #667085; --line: #c3cad8;
  --sender: #eef2ff; --sender-line: #818cf8; --signal: #fff7db; --signal-line: #d9a514;
  --receiver: #e6f8ee; --receiver-line: #34b06f; --orphan: #fdecec; --orphan-line: #e25555; }
@media (prefers-color-scheme: dark) { :root { --back: #12151c; --text: #e6e9f0; --soft: #97a1b5; --line: #465066;
  --sender: #1f2440; --signal: #362d12; --receiver: #15301f; --orphan: #3a1b1e; } }
body { margin: 0; background: var(--back); color: var(--text); font: 14px/1.5 system-ui, sans-serif; } header {
padding: 20px 24px 0; } h1 { font-size: 20px; margin: 0; } header p { margin: 2px 0; color: var(--soft); } main {
overflow-x: auto; } svg { display: block; font: 12px ui-monospace, Menlo, Consolas, monospace; } rect { fill:
var(--fill); stroke: var(--edge); } text { fill: var(--text); } .soft, .title { fill: var(--soft); font-size: 11px; }
.title { font-family: system-ui, sans-serif; text-transform: uppercase; letter-spacing: .08em; font-size: 12px; } path
{ fill: none; stroke: var(--line); stroke-width: 1.5; } .label { stroke: var(--back); stroke-width: 3; paint-order:
stroke; } path:hover { stroke: var(--signal-line); stroke-width: 3; } .sender { --fill: var(--sender); --edge:
var(--sender-line); } .signal { --fill: var(--signal); --edge: var(--signal-line); } .receiver { --fill:
var(--receiver); --edge: var(--receiver-line); } .orphan { --fill: var(--orphan); --edge: var(--orphan-line); }
.orphan rect { stroke-dasharray: 5 3; }
"""


@dataclass
class _Placed:
    """Where a node's box is."""

    node: Node
    left: float
    top: float
    width: float


def page(graph: Graph, title: str) -> str:
    """Draw the graph in three columns, with as few crossings as a simple sort finds, as a page of HTML."""
    placed, width, height = _layout(graph)
    edges = "".join(_draw_edge(edge, placed) for edge in graph.edges)
    boxes = "".join(_draw_box(box) for box in placed.values())
    titles = "".join(_draw_title(kind, placed) for kind in _TITLES)
    counts = ", ".join(f"{len(graph.of_kind(kind))} {name.lower()}" for kind, name in _TITLES.items())
    orphans = sum(node.orphan for node in graph.nodes.values())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{counts}, {orphans} that nobody hears</p></header><main>"
        f'<svg role="img" aria-label="{escape(title)}" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}">{edges}{titles}{boxes}</svg></main></body></html>\n'
    )


def _layout(graph: Graph) -> tuple[dict[str, _Placed], float, float]:
    placed: dict[str, _Placed] = {}
    left: float = _MARGIN
    columns = {kind: nodes for kind in _TITLES if (nodes := graph.of_kind(kind))}
    _untangle(columns, graph.edges)
    tallest = max((len(nodes) for nodes in columns.values()), default=0)
    for nodes in columns.values():
        width = min(max(_NARROWEST, max(_longest(node) for node in nodes) * _CHARACTER + 24), _WIDEST)
        offset = _TOP + (tallest - len(nodes)) * _ROW / 2
        for row, node in enumerate(nodes):
            placed[node.key] = _Placed(node, left, offset + row * _ROW, width)
        left += width + _GAP
    return placed, left - _GAP + _MARGIN, _TOP + tallest * _ROW + _MARGIN


def _untangle(columns: dict[Kind, list[Node]], edges: list[Edge]) -> None:
    """Sort each column by the middle of what its nodes are connected with, a few times over."""
    for _ in range(4):
        for kind, nodes in columns.items():
            if kind == "signal" and len(columns) > 1:
                continue  # the signals keep their order, as `asignals list` shows them
            rows = {node.key: row for other in columns.values() for row, node in enumerate(other)}
            nodes.sort(key=lambda node: _middle(node, edges, rows))


def _middle(node: Node, edges: list[Edge], rows: dict[str, int]) -> float:
    others = [
        rows[edge.end if edge.start == node.key else edge.start] for edge in edges if node.key in (edge.start, edge.end)
    ]
    return sum(others) / len(others) if others else rows[node.key]


def _longest(node: Node) -> int:
    return max(len(_fit(node.name)), len(_fit(_second_line(node))))


def _second_line(node: Node) -> str:
    note = node.location or node.note
    return f"nobody hears this · {note}" if node.orphan else note


def _fit(text: str) -> str:
    most = int((_WIDEST - 24) / _CHARACTER)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _draw_box(box: _Placed) -> str:
    node = box.node
    kind = f"{node.kind} orphan" if node.orphan else node.kind
    x, y = box.left + 12, box.top
    radius = 22 if node.kind == "signal" else 8
    hint = escape(shorten(f"{node.name}\n{node.location}\n{node.note}".strip(), 1000))
    return (
        f'<g class="{kind}"><title>{hint}</title>'
        f'<rect x="{box.left:.0f}" y="{y:.0f}" width="{box.width:.0f}" height="{_BOX}" rx="{radius}"/>'
        f'<text x="{x:.0f}" y="{y + 19:.0f}">{escape(_fit(node.name))}</text>'
        f'<text class="soft" x="{x:.0f}" y="{y + 35:.0f}">{escape(_fit(_second_line(node)))}</text></g>'
    )


def _draw_edge(edge: Edge, placed: dict[str, _Placed]) -> str:
    start, end = placed[edge.start], placed[edge.end]
    x1, y1 = start.left + start.width, start.top + _BOX / 2
    x2, y2 = end.left, end.top + _BOX / 2
    bend = (x2 - x1) / 2
    names = escape(f"{start.node.name} → {end.node.name} {edge.label}".strip())
    curve = f"M{x1:.0f} {y1:.0f} C{x1 + bend:.0f} {y1:.0f} {x2 - bend:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"
    label = ""
    if edge.label:
        text = escape(shorten(edge.label, 24))
        label = f'<text class="soft label" text-anchor="end" x="{x2 - 6:.0f}" y="{y2 - 5:.0f}">{text}</text>'
    return f'<g><title>{names}</title><path d="{curve}"/>{label}</g>'


def _draw_title(kind: Kind, placed: dict[str, _Placed]) -> str:
    box = next((box for box in placed.values() if box.node.kind == kind), None)
    if box is None:
        return ""
    return f'<text class="title" x="{box.left:.0f}" y="32">{_TITLES[kind]}</text>'
