"""How is compared: many short rounds, all contenders in turn in each, and the median of the ratios within rounds.

A round of one contender takes about a millisecond. What else the machine does meanwhile is not counted (processor time
of this process), and where it slows the processor down it slows neighbouring rounds alike; the median drops the rest.
The garbage collector runs between rounds, not in them.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

if TYPE_CHECKING:
    from .cases import Case

# Runs one round, and returns the cost of one operation, in seconds or whatever the case's unit is.
Round: TypeAlias = Callable[[], Awaitable[float]]
Costs: TypeAlias = dict[str, list[float]]

AGAIN = "the same again"
"""The first contender once more in each round: how far its ratio is from 1 is the noise of the machine (A/A)."""

ROUND_SECONDS = 0.001
MIN_ROUNDS = 3


async def time_repeated(repeat: Callable[[int], Awaitable[object]], seconds: float = ROUND_SECONDS) -> Round:
    """A round that repeats an operation as often as takes about `seconds`."""
    for _ in range(2):  # the first pass fills caches, and has code written for what comes often
        times, took = 1, 0.0
        while times < 1_000_000:
            start = process_time()
            await repeat(times)
            took = process_time() - start
            if took >= seconds / 2:
                break
            times *= 2

    times = max(1, round(times * seconds / took)) if took else times

    async def one_round() -> float:
        start = process_time()
        await repeat(times)
        return (process_time() - start) / times

    return one_round


async def compare(rounds: Mapping[str, Round], seconds: float) -> Costs:
    """Run rounds of all contenders in turn for about `seconds`; returns each one's costs, round by round."""
    first = next(iter(rounds))
    order = [*rounds.items(), (AGAIN, rounds[first])]
    costs: Costs = {name: [] for name, _ in order}
    end = perf_counter() + seconds
    was_enabled = gc.isenabled()
    try:
        done = 0
        while done < MIN_ROUNDS or perf_counter() < end:
            gc.collect(0)
            gc.disable()
            for name, one_round in order:
                costs[name].append(await one_round())
            gc.enable()
            order.append(order.pop(0))  # nobody always runs after the same neighbour's traces in the caches
            done += 1
    finally:
        if was_enabled:
            gc.enable()
    return costs


LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}


def run(case: Case, seconds: float) -> Costs:
    """Compare the contenders of one case, on its event loop."""

    async def prepared() -> Costs:
        async with AsyncExitStack() as stack:
            return await compare(await case.prepare(stack), seconds)

    return anyio.run(prepared, **LOOPS[case.loop])


def ratio(costs: Costs, of: str, over: str) -> float:
    """How many times the cost of another contender one has: the median over the rounds."""
    return median(_ratios(costs, of, over))


def spread(costs: Costs, of: str, over: str) -> float:
    """How far the ratio of a round is from the median, in the middle 80 % of the rounds."""
    found = sorted(_ratios(costs, of, over))
    tenth = len(found) // 10
    return (found[-1 - tenth] - found[tenth]) / 2


def _ratios(costs: Costs, of: str, over: str) -> list[float]:
    return [mine / theirs for mine, theirs in zip(costs[of], costs[over], strict=True)]
