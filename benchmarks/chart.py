"""The results as a picture for light and dark pages, with words for readers who cannot see it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from .timing import AGAIN

PANELS = {
    "named coroutines/10": "10 coroutine functions: async def serve(sender, toppings, size)",
    "named methods/10": "10 coroutine methods of that style",
    "named functions/10": "10 functions of that style",
    "coroutines/10": "10 coroutine functions with **kwargs",
}

WIDTH, LABELS, SCALE = 760, 170, 520  # pixels: the picture, the names at the left, the longest bar
BAR, STEP, TITLE = 12, 18, 34

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-weight: 600; fill: #24292f }
.name { text-anchor: end }
.ours { fill: #7c5cd6 } .base { fill: #4c9a62 } .theirs { fill: #9aa7b8 }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 } .title { fill: #f0f6fc }
  .ours { fill: #9f86ee } .base { fill: #5fb878 } .theirs { fill: #6e7b8c }
}
"""


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Write an SVG of the ratios over the loop by hand, with one panel for each kind of receiver."""
    cases = [case for case in results if case["name"] in PANELS] or results[:1]
    longest = max(found["ratio"] for case in cases for found in case["contenders"].values())
    shapes, top = [], 0
    for case in cases:
        shapes += _panel(case, top, SCALE / math.log(1.05 * longest + 1))
        top += TITLE + STEP * len(_ratios(case))
    title = "How long one send takes, as a multiple of a loop written by hand"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + STEP}" role="img" aria-labelledby="t d">',
        f'<title id="t">{title}</title>',
        f'<desc id="d">{escape(" ".join(map(_sentence, cases)))}</desc>',
        f"<style>{STYLE}</style>",
        *shapes,
        f'<text x="{LABELS}" y="{top + 10}">shorter is better; the scale is logarithmic</text>',
        "</svg>\n",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _panel(case: dict[str, Any], top: int, scale: float) -> Iterator[str]:
    yield f'<text class="title" x="{LABELS}" y="{top + TITLE - 12}">{escape(_title(case))}</text>'
    for row, (name, ratio) in enumerate(_ratios(case)):
        y = top + TITLE + row * STEP
        kind = "base" if name == case["over"] else "ours" if name.startswith("asignals") else "theirs"
        width = scale * math.log(ratio + 1)
        yield f'<text class="name" x="{LABELS - 8}" y="{y + 10}">{escape(name)}</text>'
        yield f'<rect class="{kind}" x="{LABELS}" y="{y}" width="{width:.0f}" height="{BAR}" rx="2"/>'
        yield f'<text x="{LABELS + width + 6:.0f}" y="{y + 10}">{_number(ratio)}</text>'


def _ratios(case: dict[str, Any]) -> list[tuple[str, float]]:
    shown = ((name, found["ratio"]) for name, found in case["contenders"].items() if name != AGAIN)
    return sorted(shown, key=lambda pair: pair[1])


def _sentence(case: dict[str, Any]) -> str:
    return f"{_title(case)}: {', '.join(f'{name} {_number(ratio)}' for name, ratio in _ratios(case))}."


def _title(case: dict[str, Any]) -> str:
    return PANELS.get(case["name"], case["name"])


def _number(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
