"""Scale: what a send costs beside very many connections, signals and sends, and what a connection weighs."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from itertools import cycle, islice
from time import process_time
from typing import Any

import asignals

from .cases import Case, Goal, prepare_work, weighing
from .contenders import SIGNAL, send_repeatedly
from .receivers import coroutine_function
from .timing import Round, time_repeated

CONNECTIONS = 1_000_000
SIGNALS = 10_000
SENDS = 100_000


class Sender:
    """Somebody to listen to."""


async def _connect(signal: asignals.Signal[..., Any], sender: object, receiver: Any, calls: list[Any]) -> None:
    """Connect, after a look that a send calls one receiver, and with what."""

    async def note(sender: object, a: int, b: int) -> None:
        calls.append((sender, a, b))

    calls.clear()
    with signal.connected(note, sender):
        await signal.send(sender, a=1, b=2)
    assert calls == [(sender, 1, 2)]
    signal.connect(receiver, sender)


async def prepare_others(stack: AsyncExitStack) -> dict[str, Round]:
    """Send to a sender with one receiver: alone, and while a million others are connected to the same signal."""
    receiver, sender = coroutine_function(None), Sender()
    crowd = [Sender() for _ in range(CONNECTIONS)]
    stack.callback(lambda: (receiver, crowd.clear()))
    rounds = {}
    for name, connected in ("alone", []), ("beside a million", crowd):
        signal = asignals.Signal(["a", "b"])
        for other in connected:
            signal.connect(receiver, sender=other)
        await _connect(signal, sender, receiver, [])
        assert len(signal.receivers_for(sender)) == 1
        rounds[name] = await time_repeated(partial(send_repeatedly, signal.send, sender))
    return rounds


async def prepare_signals(stack: AsyncExitStack) -> dict[str, Round]:
    """Send one signal again and again, and ten thousand of them by turns, each with its own receiver."""
    sender = Sender()
    signals = [asignals.Signal(["a", "b"]) for _ in range(SIGNALS)]
    receivers = [coroutine_function(None) for _ in range(SIGNALS)]
    stack.callback(lambda: (signals.clear(), receivers.clear()))
    for signal, receiver in zip(signals, receivers, strict=True):
        await _connect(signal, None, receiver, [])
        await signal.send(sender, a=1, b=2)
    turns = cycle(signals)

    async def by_turns(times: int) -> None:
        for signal in islice(turns, times):
            await signal.send(sender, a=1, b=2)

    async def by_hand(times: int) -> None:  # the same walk through memory, without signals
        for receiver in islice(turn_of_receivers, times):
            [(receiver, await receiver(signal=SIGNAL, sender=sender, a=1, b=2))]

    turn_of_receivers = cycle(receivers)
    return {
        "one signal": await time_repeated(partial(send_repeatedly, signals[0].send, sender)),
        "ten thousand by turns": await time_repeated(by_turns),
        "ten thousand receivers by hand": await time_repeated(by_hand),
    }


async def prepare_sends(stack: AsyncExitStack, *, in_group: bool) -> dict[str, Round]:
    """A hundred thousand sends at once, each in a task, to two receivers that wait for the same event."""
    called = 0
    gate = asyncio.Event()

    async def wait(sender: object, a: int, b: int) -> None:
        nonlocal called
        assert (a, b) == (1, 2)
        called += 1
        await gate.wait()

    async def wait_too(sender: object, a: int, b: int) -> None:
        await wait(sender, a, b)

    receivers = wait, wait_too
    signal = asignals.Signal(["a", "b"], task_group=asyncio.TaskGroup if in_group else None)
    for receiver in receivers:
        signal.connect(receiver)
    stack.callback(lambda: receivers)

    async def by_hand(sender: object, *, a: int, b: int) -> list[Any]:
        if not in_group:
            return [(each, await each(sender=sender, a=a, b=b)) for each in receivers]
        async with asyncio.TaskGroup() as group:
            tasks = [(each, group.create_task(each(sender=sender, a=a, b=b))) for each in receivers]
        return [(each, task.result()) for each, task in tasks]

    async def one_round(send: Callable[..., Awaitable[Any]]) -> float:
        nonlocal called
        called = 0
        gate.clear()
        gc.collect()
        start = process_time()
        tasks = [asyncio.create_task(_awaiting(send, number)) for number in range(SENDS)]
        while called < SENDS * (2 if in_group else 1):  # noqa: ASYNC110  until all have begun
            await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)
        took = process_time() - start
        assert called == 2 * SENDS
        return took / SENDS

    return {"by hand": partial(one_round, by_hand), "asignals": partial(one_round, signal.send)}


async def _awaiting(send: Callable[..., Awaitable[Any]], number: int) -> None:
    assert len(await send(number, a=1, b=2)) == 2


def weighing_senders(count: int) -> Callable[[], float]:
    """Bytes for a connection of one receiver, each to a sender of its own."""
    return weighing("asignals", count, senders=[Sender() for _ in range(count)])


CASES = [
    Case("scale/10⁶ connections of others", prepare_others, (Goal("beside a million", "alone", 1.10),), in_quick=False),
    Case("scale/10⁴ signals", prepare_signals, in_quick=False),
    *(
        Case(
            f"scale/10⁵ sends at once{' in groups' * in_group}",
            partial(prepare_sends, in_group=in_group),
            (Goal("asignals", "by hand", 1.20),),
            in_quick=False,
        )
        for in_group in (False, True)
    ),
    Case(
        "scale/memory of a connection",
        partial(
            prepare_work,
            works={
                "asignals": partial(weighing, "asignals", 10_000),
                "asignals, each to a sender of its own": partial(weighing_senders, 10_000),
            },
        ),
        (Goal("asignals", "", 300),),
        unit="bytes",
    ),
]
