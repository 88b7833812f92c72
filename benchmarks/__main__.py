"""The command: `python -m benchmarks`."""

import argparse
import json
import runpy
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rich.console import Console

from . import cases as core
from . import concurrency, scale
from .cases import Case
from .chart import draw
from .contenders import CONTENDERS
from .report import environment, result, show
from .timing import run

# Benchmarks of what is not the core are programs of their own, which `python -m` runs as well.
PROGRAMS = {
    "asgi": "benchmarks.asgi_cost",
    "broadcast": "benchmarks.broadcast",
    "growth": "benchmarks.growth",
    "inspector": "benchmarks.inspector_cost",
    "relay": "benchmarks.relay",
    "sqlalchemy": "benchmarks.sqlalchemy_cost",
}

CASES = [*core.CASES, *concurrency.CASES, *scale.CASES]


def chosen_cases(patterns: Sequence[str], *, quick: bool) -> list[Case]:
    """The cases whose group or name matches a pattern, as of files; without patterns, all."""
    unknown = [pattern for pattern in patterns if not any(_matches(case, pattern) for case in CASES)]
    if unknown:
        groups = ", ".join(dict.fromkeys(case.group for case in CASES))
        sys.exit(f"no case is called {unknown[0]!r}; groups are {groups}; programs {', '.join(PROGRAMS)}")
    return [
        case
        for case in CASES
        if (case.in_quick or not quick) and (not patterns or any(_matches(case, pattern) for pattern in patterns))
    ]


def _matches(case: Case, pattern: str) -> bool:
    return fnmatch(case.name, pattern) or case.group == pattern


def run_all(cases: list[Case], seconds: float, console: Console) -> Iterator[dict[str, Any]]:
    """Run cases one after the other, and say which one is running."""
    with console.status("") as status:
        for number, case in enumerate(cases, 1):
            status.update(f"{number} of {len(cases)}: {case.name}")
            yield result(case, run(case, seconds))


def main(arguments: list[str]) -> None:
    """Run what was chosen."""
    if arguments and arguments[0] in PROGRAMS:
        run_program(*arguments)
        return
    options = _parser().parse_args(arguments)
    cases = chosen_cases(options.cases, quick=options.quick)
    if options.list:
        print(*(case.name for case in cases), sep="\n")
        return
    if options.table:
        show_markdown(cases if options.cases else None, options.seconds or 3)
        return
    console = Console()
    results = list(run_all(cases, options.seconds or (0.2 if options.quick else 3), console))
    show(results, {name: one.note for name, one in CONTENDERS.items()}, console)
    if options.json:
        data = {**environment(), "quick": options.quick, "cases": results}
        options.json.write_text(json.dumps(data, indent=2) + "\n")
    if options.chart:
        draw(results, options.chart)


def show_markdown(cases: list[Case] | None, seconds: float) -> None:
    """Print a table of cases, or that of the project's goals."""
    try:
        from .table import show_cases, show_table  # noqa: PLC0415  it needs a web framework and a database's driver
    except ModuleNotFoundError as missing:
        sys.exit(f"the table is not available: {missing}")
    if cases is None:
        show_table(seconds)
    else:
        show_cases(cases, seconds)


def run_program(name: str, *arguments: str) -> None:
    """Hand over to a benchmark that is a program of its own, when what it needs is installed."""
    sys.argv[1:] = arguments
    try:
        runpy.run_module(PROGRAMS[name], run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as missing:
        sys.exit(f"benchmark {name!r} is not available: {missing}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Compare what a send costs.")
    parser.add_argument(
        "cases",
        nargs="*",
        help="groups or cases, as in 'coroutines' or 'trio/*' (see --list), by default all; "
        f"or a program of its own, with its own options: {', '.join(PROGRAMS)}",
    )
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    parser.add_argument("--quick", action="store_true", help="the smaller cases, roughly, within a minute")
    parser.add_argument("--seconds", type=float, help="time for each case (3, or 0.2 with --quick)")
    parser.add_argument(
        "--table", action="store_true", help="print Markdown: of the given cases, or of the project's goals"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the results as an SVG")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
