"""The results as a picture, for light and dark pages."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANELS = {
    "named coroutines/10": "10 coroutine functions: async def serve(sender, toppings, size)",
    "named methods/10": "10 coroutine methods of that style",
    "named functions/10": "10 functions of that style",
    "coroutines/10": "10 coroutine functions with **kwargs",
}
INK, OURS, THEIRS, BASE = "#808890", "#7c5cd6", "#8fa3b8", "#5b9e6f"

# Text stays text, ids are the same each time, and nothing is drawn behind the chart.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "asignals",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the ratios over the loop by hand, one panel for each kind of receiver."""
    cases = [case for case in results if case["name"] in PANELS] or results[:1]
    heights = [len(case["contenders"]) for case in cases]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.24 * sum(heights) + 0.55 * len(cases)), layout="constrained")
        figure.patch.set_alpha(0)
        panels = figure.subplots(len(cases), 1, sharex=True, squeeze=False, height_ratios=heights)
        for axes, case in zip(panels[:, 0], cases, strict=True):
            _panel(axes, case)
        # Room for the label of the longest bar.
        longest = max(found["ratio"] for case in cases for found in case["contenders"].values())
        panels[-1, 0].set_xlim(0.5, 1.5 * longest)
        panels[-1, 0].set_xlabel("time of a send, over a loop written by hand (logarithmic; shorter is better)")
        figure.savefig(path, metadata={"Date": None})


def _panel(axes: Axes, case: dict[str, Any]) -> None:
    ratios = {name: found["ratio"] for name, found in case["contenders"].items()}
    names = sorted(ratios, key=lambda name: -ratios[name])
    bars = axes.barh(names, [ratios[name] for name in names], color=[_color(name, case["over"]) for name in names])
    axes.bar_label(
        bars, [f"{ratios[name]:.2f}" if ratios[name] < 10 else f"{ratios[name]:.0f}" for name in names], padding=3
    )
    axes.set_title(PANELS.get(case["name"], case["name"]), loc="left", fontweight="bold", fontsize=10)
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.tick_params(length=0)


def _color(name: str, base: str) -> str:
    return BASE if name == base else OURS if name.startswith("asignals") else THEIRS
