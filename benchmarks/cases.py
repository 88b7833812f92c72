"""What is compared, and the goals.

A case is a name (`group/case`) and a function that prepares one round per contender. The first contender is what all
are compared with.
"""

import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from time import process_time
from typing import Any, NamedTuple, TypeAlias

import blinker
import django.dispatch

import asignals

from . import contenders
from .contenders import CONTENDERS, LOOPS, Contender
from .receivers import KINDS, coroutine_function, make, make_noting
from .timing import Round, time_repeated

Prepare: TypeAlias = Callable[[AsyncExitStack], Awaitable[dict[str, Round]]]


class Goal(NamedTuple):
    """That one contender's cost over another's is at most this; with an empty `over`, the cost itself."""

    of: str
    over: str
    limit: float


@dataclass(frozen=True)
class Case:
    """One comparison; `prepare` may enter contexts that last until it is done."""

    name: str
    prepare: Prepare
    goals: tuple[Goal, ...] = ()
    loop: str = "asyncio"
    unit: str = "s"
    in_quick: bool = True

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]


# -- sends -------------------------------------------------------------------------------------------------------------

LOOP = "loop by hand"
COUNTS = (0, 1, 10, 100, 1000)

GOALS = {
    "named coroutines/1": [("asignals", LOOP, 1.35), ("asignals", "aiosignal bare", 1.0)],
    "named coroutines/10": [("asignals", LOOP, 1.20), ("asignals", "aiosignal bare", 1.0)],
    "named coroutines/100": [("asignals", "aiosignal bare", 1.0)],
    "named functions/10": [("asignals", LOOP, 1.60)],
    "named methods/10": [("asignals", LOOP, 1.70)],
    "named sync methods/10": [("asignals", LOOP, 2.40)],
    "named mix/10": [("asignals", LOOP, 1.65)],
    "by turns/10": [("asignals", LOOP, 1.60)],
    "coroutines/0": [("asignals", "aiosignal", 0.55)],
    "coroutines/1": [("asignals", "aiosignal", 0.85)],
    "coroutines/10": [
        ("asignals", LOOP, 1.12),
        ("asignals", "aiosignal", 0.92),
        ("asignals", "blinker", 0.30),
        ("asignals", "Django asend", 0.08),
        ("asignals any keywords", "aiosignal", 1.05),
        ("asignals robust", "asignals", 1.08),
    ],
    "coroutines/100": [("asignals", LOOP, 1.10), ("asignals robust", "asignals", 1.08)],
    "functions/10": [("asignals", LOOP, 1.25), ("asignals robust", "asignals", 1.08)],
    "methods/10": [("asignals", LOOP, 1.40), ("asignals robust", "asignals", 1.08)],
    "uvloop/10": [("asignals", LOOP, 1.15)],
    "uvloop/100": [("asignals", LOOP, 1.10)],
    "trio/10": [("asignals", LOOP, 1.15)],
    "trio/100": [("asignals", LOOP, 1.10)],
}


async def prepare_sends(stack: AsyncExitStack, *, kind: str, count: int, chosen: list[Contender]) -> dict[str, Round]:
    """Have every contender send to receivers of its own, after a look at whom it calls."""
    for one in chosen:
        await check(one, kind, count)
    sender = object()
    rounds = {}
    for one in chosen:
        receivers = make(kind, count)
        stack.callback(receivers.clear)  # holds them until then
        send = one.make(receivers)
        rounds[one.name] = await time_repeated(partial(one.repeat, send, sender))
    return rounds


async def check(one: Contender, kind: str, count: int) -> None:
    """See that a contender calls each receiver once, with the same arguments; in order, if it is one that has one."""
    calls: list[tuple[Any, ...]] = []
    receivers = make_noting(kind, count, calls)
    sender = object()
    await one.repeat(one.make(receivers), sender, 1)
    expected = [(number, sender, 1, 2) for number in range(count)]
    assert (calls if one.has_order else sorted(calls, key=lambda call: call[0])) == expected, one.name


def sends(group: str, kind: str, count: int, loop: str = "asyncio") -> Case:
    by_hand = Contender(LOOP, LOOPS[kind], asyncio_only=False)
    able = [one for one in CONTENDERS.values() if kind in one.kinds and not (one.asyncio_only and loop == "trio")]
    name = f"{group}/{count}"
    return Case(
        name,
        partial(prepare_sends, kind=kind, count=count, chosen=[by_hand, *able]),
        goals=tuple(Goal(*goal) for goal in GOALS.get(name, ())),
        loop=loop,
        in_quick=count <= 10,
    )


SENDS = [sends(kind, kind, count) for kind in KINDS for count in COUNTS if count or kind == "coroutines"]
LOOPS_OF_OTHERS = [sends(loop, "coroutines", count, loop) for loop in ("uvloop", "trio") for count in (1, 10, 100)]


# -- many senders ------------------------------------------------------------------------------------------------------


class Sender:
    """Somebody to listen to."""


SIGNALS: dict[str, Callable[[], Any]] = {
    "asignals": partial(asignals.Signal, ["a", "b"]),
    "blinker": blinker.Signal,
    "Django": django.dispatch.Signal,
}
SEND_NAMES = {"asignals": "send", "blinker": "send_async", "Django": "asend"}


async def prepare_senders(stack: AsyncExitStack, *, others: int) -> dict[str, Round]:
    """Send to a sender with one receiver, alone and while others are connected."""
    receiver, sender = coroutine_function(None), Sender()
    crowd = [Sender() for _ in range(others)]
    stack.callback(lambda: (receiver, crowd.clear()))
    rounds = {}
    for library in ("asignals", "blinker"):
        for name, connected in (f"{library} alone", []), (library, crowd):
            signal = SIGNALS[library]()
            for other in connected:
                signal.connect(receiver, sender=other)
            signal.connect(receiver, sender=sender)
            send = getattr(signal, SEND_NAMES[library])
            rounds[name] = await time_repeated(partial(contenders.send_repeatedly, send, sender))
    return rounds


SENDERS = [
    Case(
        f"senders/1 of {others:,}",
        partial(prepare_senders, others=others),
        goals=(Goal("asignals", "asignals alone", 1.10),),
        in_quick=others < 10_000,
    )
    for others in (1_000, 100_000)
]


# -- connecting --------------------------------------------------------------------------------------------------------

Work: TypeAlias = Callable[[], float]


def connecting(library: str, count: int) -> Work:
    receivers = make("coroutines", count)

    def work() -> float:
        connect = SIGNALS[library]().connect
        start = process_time()
        for receiver in receivers:
            connect(receiver)
        return (process_time() - start) / count

    return work


def disconnecting(library: str, count: int) -> Work:
    receivers = make("coroutines", count)

    def work() -> float:
        signal = contenders.connect_all(SIGNALS[library](), receivers)
        start = process_time()
        for receiver in receivers:
            signal.disconnect(receiver)
        return (process_time() - start) / count

    return work


def weighing(library: str, count: int, senders: list[Any] | None = None) -> Work:
    """Bytes for a connection: of different receivers, or of one to each sender."""
    receivers = make("coroutines", 1 if senders else count)

    def work() -> float:
        gc.collect()
        tracemalloc.start()
        try:
            signal = SIGNALS[library]()
            before, _ = tracemalloc.get_traced_memory()
            if senders is None:
                contenders.connect_all(signal, receivers)
            for sender in senders or ():
                signal.connect(receivers[0], sender=sender)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return (after - before) / count

    return work


async def prepare_work(stack: AsyncExitStack, *, works: dict[str, Callable[[], Work]]) -> dict[str, Round]:
    """Rounds that are work of their own and measure themselves."""

    def as_round(work: Work) -> Round:
        async def one_round() -> float:
            return work()

        return one_round

    return {name: as_round(prepare()) for name, prepare in works.items()}


def per_receiver(name: str, measure: Callable[[str, int], Work], few: int, many: int, goal: float | None) -> Case:
    """The cost per receiver of many over that of few. Django looks through a list, so it gets no more than a few."""
    works = {
        f"asignals {few:,}": partial(measure, "asignals", few),
        "asignals": partial(measure, "asignals", many),
        f"blinker {few:,}": partial(measure, "blinker", few),
        "blinker": partial(measure, "blinker", many),
        f"Django {few:,}": partial(measure, "Django", few),
    }
    goals = () if goal is None else (Goal("asignals", f"asignals {few:,}", goal),)
    return Case(f"{name}/{many:,}", partial(prepare_work, works=works), goals, in_quick=many < 100_000)


CONNECTING = [
    per_receiver("connect", connecting, 1_000, 10_000, None),
    per_receiver("connect", connecting, 1_000, 100_000, 1.25),
    per_receiver("disconnect", disconnecting, 1_000, 10_000, None),
    per_receiver("disconnect", disconnecting, 1_000, 100_000, None),
    Case(
        "memory/connection",
        partial(
            prepare_work,
            works={library: partial(weighing, library, 1_000) for library in ("asignals", "blinker", "Django")},
        ),
        goals=(Goal("asignals", "", 300),),
        unit="bytes",
    ),
]


# -- what programs do beside sending -----------------------------------------------------------------------------------


async def prepare_churn(stack: AsyncExitStack, *, others: int) -> dict[str, Round]:
    """Connect, send to nobody but it, and disconnect, while others listen to other senders."""
    receiver, sender = coroutine_function(None), Sender()
    crowd = [Sender() for _ in range(others)]
    stack.callback(lambda: (receiver, crowd.clear()))
    rounds = {}
    for library, make_signal in SIGNALS.items():
        signal = make_signal()
        for other in crowd:
            signal.connect(receiver, sender=other)
        send = getattr(signal, SEND_NAMES[library])

        async def churn(times, signal=signal, send=send):
            for _ in repeat(None, times):
                signal.connect(receiver, sender=sender)
                await send(sender, a=1, b=2)
                signal.disconnect(receiver, sender=sender)

        rounds[library] = await time_repeated(churn)
    return rounds


async def prepare_listeners(stack: AsyncExitStack) -> dict[str, Round]:
    """Ask whether anybody listens, where ten do."""
    receivers = make("coroutines", 10)
    stack.callback(receivers.clear)
    rounds = {}
    names = {"asignals": "has_listeners", "blinker": "has_receivers_for", "Django": "has_listeners"}
    for library, name in names.items():
        ask = getattr(contenders.connect_all(SIGNALS[library](), receivers), name)

        async def ask_repeatedly(times, ask=ask):
            for _ in repeat(None, times):
                ask(None)

        rounds[library] = await time_repeated(ask_repeatedly)
    return rounds


USES = [
    Case("churn/10 others", partial(prepare_churn, others=10)),
    Case("churn/1,000 others", partial(prepare_churn, others=1_000), in_quick=False),
    Case("listeners/10", prepare_listeners),
]

CASES: list[Case] = [*SENDS, *LOOPS_OF_OTHERS, *SENDERS, *CONNECTING, *USES]
