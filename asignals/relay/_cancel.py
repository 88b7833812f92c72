"""Cancellations that clients lose, and work that a cancellation must not cut in two.

Clients swallow cancellations: before Python 3.12 `asyncio.wait_for` gives the result, if there is one by then, instead
of raising `CancelledError`, and nats-py catches it while it flushes. Who loops around such a call, or waits after it
for something that will not come, would never end. That a cancellation was asked for is still known to the task.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel

from asignals.relay._time_limit import TimeLimit
from asignals.relay._to_the_end import to_the_end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection

T = TypeVar("T")


class SelfCancelledError(RuntimeError):
    """A call raised `CancelledError` though nothing had cancelled its task."""

    def __init__(self) -> None:
        super().__init__("it raised CancelledError, though nothing cancelled its task")


def times_cancelled() -> int:
    """Count the cancellations that were asked of the current task and that nobody has taken back."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def heeding(call: Awaitable[T]) -> T:
    """Await a call; whether the task was cancelled is asked of the task, not of the call.

    Raises the cancellation that came meanwhile and that the call has swallowed, or turned into another error; and
    `SelfCancelledError` for a `CancelledError` that nobody asked for.
    """
    before = times_cancelled()
    try:
        result = await call
    except (Exception, asyncio.CancelledError) as error:
        await heed(before, error)
        raise
    if times_cancelled() > before:
        await heed(before)
    return result


async def heed(before: int, error: BaseException | None = None) -> None:
    """Raise what `heeding` raises for a call that has ended, with an error or without, if that is another error.

    `before` is how many cancellations were asked for when it began.
    """
    if isinstance(error, asyncio.CancelledError):
        if not times_cancelled():
            raise SelfCancelledError from error
    elif times_cancelled() > before:
        await anyio.lowlevel.checkpoint_if_cancelled()  # a scope takes no other cancellation than its own
        raise asyncio.CancelledError from error


async def limited(call: Awaitable[T], seconds: float, who: str = "") -> T:
    """Await a client's call as `heeding` does; raises `TimeoutError` after `seconds`, also when it swallows that.

    `who` names whose answer it is.
    """
    return await heeding(_within(call, seconds, who))


async def _within(call: Awaitable[T], seconds: float, who: str) -> T:
    with TimeLimit(seconds, who) as limit:
        limit.begin()
        return await call


async def end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended, also when we are cancelled meanwhile; their errors are theirs."""
    for task in tasks:
        task.cancel()
    if tasks:
        await to_the_end(_until_done(list(tasks)))


async def _until_done(tasks: list[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks)
