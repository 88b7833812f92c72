"""The results as data, and as tables."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .cases import Case, Goal
from .timing import AGAIN, Costs, ratio, spread

LIBRARIES = ("asignals", "aiosignal", "anyio", "asphalt", "blinker", "django", "psygnal", "pyee", "trio", "uvloop")


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "machine": platform.machine(),
        "system": platform.system(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def result(case: Case, costs: Costs) -> dict[str, Any]:
    """One case, as it stands in the JSON file beside what the figures depend on.

    `contenders` has for each name its `cost`, the median over the rounds of one operation's, in `unit` (seconds or
    bytes), its `ratio`, the median of those over the cost of the contender named by `over` in the same round, and the
    `spread` of the ratios. One contender is the first one again: its ratio and its spread are the machine's noise.
    `goals` has for each that the case has the ratio `seen` of two contenders, or with an empty `over` the cost.
    """
    base = next(iter(costs))
    return {
        "name": case.name,
        "group": case.group,
        "loop": case.loop,
        "unit": case.unit,
        "rounds": len(costs[base]),
        "over": base,
        "contenders": {
            name: {"cost": median(values), "ratio": ratio(costs, name, base), "spread": spread(costs, name, base)}
            for name, values in costs.items()
        },
        "goals": [_judged(goal, costs) for goal in case.goals if {goal.of, goal.over} <= {*costs, ""}],
    }


def _judged(goal: Goal, costs: Costs) -> dict[str, Any]:
    seen = ratio(costs, goal.of, goal.over) if goal.over else median(costs[goal.of])
    return {**goal._asdict(), "seen": seen, "met": seen <= goal.limit}


def show(results: list[dict[str, Any]], notes: dict[str, str], console: Console) -> None:
    """A table for each group, of ratios over its first contender, and tables of the contenders and of the goals."""
    for group in dict.fromkeys(each["group"] for each in results):
        console.print(_ratios([each for each in results if each["group"] == group]))
    seen = {name for each in results for name in each["contenders"]}
    console.print(_notes({name: note for name, note in notes.items() if name in seen}))
    if any(each["goals"] for each in results):
        console.print(_goals(results))


def _ratios(cases: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{cases[0]['group']}: ratios over {cases[0]['over']!r}", title_justify="left")
    table.add_column("contender")
    for case in cases:
        table.add_column(case["name"].partition("/")[2], justify="right")
    names = dict.fromkeys(name for case in cases for name in case["contenders"])
    for name in names:
        style = "bold" if name.startswith("asignals") else ""
        table.add_row(name, *(_cell(case, name) for case in cases), style=style)
    return table


def _notes(notes: dict[str, str]) -> Table:
    table = Table("contender", "what it is, or does not do", title="contenders", title_justify="left")
    for name, note in notes.items():
        table.add_row(name, note)
    return table


def _cell(case: dict[str, Any], name: str) -> str:
    found = case["contenders"].get(name)
    if found is None:
        return ""
    if name == AGAIN:
        return f"{found['ratio']:.2f} ± {found['spread']:.2f}"
    return amount(found["cost"], case["unit"]) if name == case["over"] else f"{found['ratio']:.2f}"


def amount(value: float, unit: str) -> str:
    """A cost, in the unit that suits it."""
    if unit != "s":
        return f"{value:,.0f} {unit}"
    for factor, name in (1e9, "ns"), (1e6, "µs"), (1e3, "ms"):
        if value * factor < 1000:
            return f"{value * factor:.3g} {name}" if value * factor < 100 else f"{value * factor:.0f} {name}"
    return f"{value:.2f} s"


def _goals(results: list[dict[str, Any]]) -> Table:
    table = Table(title="goals", title_justify="left")
    for heading in ("case", "of", "over"):
        table.add_column(heading)
    for heading in ("goal", "seen"):
        table.add_column(heading, justify="right")
    for case in results:
        for goal in case["goals"]:
            style = "green" if goal["met"] else "red"
            digits = ".2f" if goal["over"] else ",.0f"
            seen = Text(format(goal["seen"], digits if goal["met"] else digits.replace(".2", ".3")), style)
            over = goal["over"] or case["unit"]
            table.add_row(case["name"], goal["of"], over, f"≤ {format(goal['limit'], digits)}", seen)
    return table
