"""Cancelling an awaitable at each of its checkpoints in turn."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Generator
from types import coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest

HOWS = ("scope", "scope from outside", "native", "native from outside")


def on_trio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def tasks_alive() -> int:
    """How many tasks there are, whoever made them."""
    if on_trio():
        import trio

        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


@coroutine
def stepped(work: Awaitable[Any], n: int, cancel: Callable[[], object]) -> Generator[Any, Any, Any]:
    """Await `work`, and call `cancel` as it suspends for the nth time."""
    inner = work.__await__()
    step, value = inner.send, None
    while True:
        try:
            trap = step(value)
        except StopIteration as stop:
            return stop.value
        if n == 0:
            cancel()
        n -= 1
        try:
            step, value = inner.send, (yield trap)
        except BaseException as error:  # noqa: BLE001  handed on to the work
            step, value = inner.throw, error


async def cancelled_at(make: Callable[[], Awaitable[Any]], n: int, how: str) -> bool:
    """Cancel what `make` makes at its nth checkpoint, or in the nth turn of the event loop; returns whether it was."""
    if how.startswith("scope"):
        with anyio.CancelScope() as scope:
            if how == "scope":
                await stepped(make(), n, scope.cancel)
            else:
                async with anyio.create_task_group() as group:
                    group.start_soon(after_turns, n, scope.cancel)
                    await make()
                    group.cancel_scope.cancel()
            return False
        return True
    if how == "native":
        task = asyncio.ensure_future(_awaiting(stepped(make(), n, _cancel_this_task)))
    else:
        task = asyncio.ensure_future(_calling(make))
        await after_turns(n, task.cancel)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return task.cancelled()


def _cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def _awaiting(work: Awaitable[Any]) -> Any:
    return await work


async def _calling(make: Callable[[], Awaitable[Any]]) -> Any:
    return await make()


async def after_turns(n: int, call: Callable[[], object]) -> None:
    for _ in range(n):
        await anyio.lowlevel.checkpoint()
    call()


async def cancel_everywhere(
    make: Callable[[], Awaitable[Any]], how: str, check: Callable[[], Awaitable[object]]
) -> None:
    """Cancel what `make` makes at its checkpoint 0, 1, 2, … until it ends uncancelled, and check after each."""
    if on_trio() and how.startswith("native"):
        pytest.skip("trio has no native cancellation")
    before = tasks_alive()
    was_cancelled, n = True, 0
    with anyio.fail_after(60):
        while was_cancelled:
            was_cancelled = await cancelled_at(make, n, how)
            await anyio.wait_all_tasks_blocked()
            assert tasks_alive() == before, f"a task was left by a cancellation at checkpoint {n}"
            await check()
            n += 1
    assert n > 1, "nothing was cancelled"
    gc.collect()  # coroutines that were never awaited warn now
