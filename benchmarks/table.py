"""The project's goals in one table, on each event loop, in Markdown: `python -m benchmarks --table`."""

from collections.abc import Iterable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

from . import asgi_cost, outbox_cost
from .cases import LOOP, Case, prepare_sends
from .concurrency import (
    ANYIO,
    ASYNCIO,
    BARE,
    BY_HAND,
    KEPT,
    WATCHED_BY_HAND,
    prepare_background,
    prepare_groups,
    prepare_monitor,
)
from .contenders import CONTENDERS, Contender
from .contenders import LOOPS as LOOPS_BY_HAND
from .report import amount
from .timing import AGAIN, Costs, ratio, run, spread

ON_ASYNCIO = ("asyncio", "uvloop")
EVERYWHERE = (*ON_ASYNCIO, "trio")
KEYWORDS = "asignals any keywords"
WEAK = "loop by hand, weak"


class Row(NamedTuple):
    """What one contender of a case may cost at most, over another; `floor` is one by hand that promises as much."""

    what: str
    case: Case
    of: str
    over: str
    limit: float
    floor: str = ""
    is_rate: bool = False  # shown as the share of the other's rate, which `limit` is the least of


def _sends(kind: str, count: int, loop: str, *names: str) -> Case:
    chosen = [Contender(LOOP, LOOPS_BY_HAND[kind], asyncio_only=False), *(CONTENDERS[name] for name in names)]
    return Case(f"{kind}/{count}", partial(prepare_sends, kind=kind, count=count, chosen=chosen), loop=loop)


def rows() -> Iterator[Row]:
    """The rows of the table; those of one case follow each other."""
    for loop in EVERYWHERE:
        yield from _of_sends(loop)
    for loop in EVERYWHERE:
        chosen = [each for each in (ANYIO if loop == "trio" else ASYNCIO) if each.name in (BY_HAND, "asignals")]
        case = Case("groups/10", partial(prepare_groups, count=10, chosen=chosen), loop=loop)
        yield Row("a group of 10", case, "asignals", BY_HAND, 1.10)
    for loop in ON_ASYNCIO:
        yield from _of_background(loop)
    for loop in EVERYWHERE:
        for count in 1, 10:
            case = Case(f"monitor/{count}", partial(prepare_monitor, count=count), loop=loop)
            yield Row(
                f"a send that is watched, receivers: {count}",
                case,
                "asignals watched",
                "asignals",
                4.0,
                WATCHED_BY_HAND,
            )
    for case in asgi_cost.CASES:
        floor = "" if case.loop == "trio" else asgi_cost.PROMISING
        yield Row("the middleware, nobody hears", case, "nobody hears", asgi_cost.ALONE, 1.15, asgi_cost.BY_HAND)
        yield Row("the middleware, one receiver", case, "one receiver", asgi_cost.ALONE, 1.35, floor)
    for case in outbox_cost.CASES:
        what = f"a transaction with a send, {case.name.partition('/')[2]}"
        yield Row(what, case, outbox_cost.SEND, outbox_cost.ALONE, 0.75, outbox_cost.PROMISING, is_rate=True)


def _of_sends(loop: str) -> Iterator[Row]:
    for count, limit in (1, 1.35), (10, 1.20):
        case = _sends("named coroutines", count, loop, "asignals", WEAK)
        yield Row(f"a send, receivers: {count}", case, "asignals", LOOP, limit, WEAK)
    for count, limit in (1, 1.6), (10, 1.2):
        case = _sends("coroutines", count, loop, KEYWORDS, f"{LOOP}, any keywords")
        yield Row(f"any keywords, receivers: {count}", case, KEYWORDS, LOOP, limit, f"{LOOP}, any keywords")


def _of_background(loop: str) -> Iterator[Row]:
    for count, limit in (1, 2.0), (10, 1.7):
        case = Case(f"background/{count}", partial(prepare_background, count=count), loop=loop)
        yield Row(f"Background, receivers: {count}", case, "asignals", BARE, limit, KEPT)
        yield Row(f"Background, receivers: {count}", case, "asignals", KEPT, 1.0)


def show_table(seconds: float) -> None:
    """Run each case for so many seconds, and print its rows as they come."""
    print("| case | loop | over | ratio | by hand | noise | goal |\n|---|---|---|---|---|---|---|")
    case, costs = None, Costs()
    for row in rows():
        if row.case is not case:
            case, costs = row.case, run(row.case, seconds)
        print(_line(row, costs), flush=True)


def _line(row: Row, costs: Costs) -> str:
    def shown(name: str) -> str:
        found = ratio(costs, name, row.over)
        return f"{1 / found if row.is_rate else found:.2f}"

    goal = f"{'≥' if row.is_rate else '≤'} {row.limit:.2f}"
    cells = row.what, row.case.loop, row.over, shown(row.of), shown(row.floor) if row.floor else "", noise(costs), goal
    return f"| {' | '.join(cells)} |"


def noise(costs: Costs) -> str:
    """What the first contender costs over itself: the ratio, and how far it is spread over the rounds."""
    first = next(iter(costs))
    return f"{ratio(costs, AGAIN, first):.2f} ± {spread(costs, AGAIN, first):.2f}"


def show_cases(cases: Iterable[Case], seconds: float) -> None:
    """Run cases, and print a row for each contender."""
    print("| case | contender | cost | ratio | spread | goal |\n|---|---|---|---|---|---|")
    for case in cases:
        costs = run(case, seconds)
        first = next(iter(costs))
        for name, values in costs.items():
            goals = [
                f"≤ {goal.limit:,g} of {goal.over or case.unit}"
                for goal in case.goals
                if goal.of == name and goal.over in ("", *costs)
            ]
            found = f"{ratio(costs, name, first):.2f} | ± {spread(costs, name, first):.2f}"
            cost = amount(median(values), case.unit)
            print(f"| {case.name} | {name} | {cost} | {found} | {', '.join(goals)} |", flush=True)
