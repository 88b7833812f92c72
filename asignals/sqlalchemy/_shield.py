"""Work that a cancellation must not cut in two."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

R = TypeVar("R")


def shielded(work: Callable[[], R]) -> R:
    """Do sync work whose awaiting, inside of a greenlet, is not cancelled; raises the cancellation when it is done.

    It runs in a separate task, in a copy of the context, because that is all that keeps `task.cancel()` away; the
    exception being handled is known to it. Outside of greenlets it is just done.
    """
    if not in_greenlet():
        return work()
    handled = sys.exception()
    result: R = await_only(to_the_end(greenlet_spawn(_while_handling, handled, work)))
    return result


async def to_the_end(work: Coroutine[Any, Any, R]) -> R:
    """Await work to its end in a separate task; a cancellation that comes meanwhile is raised afterwards."""
    task = asyncio.get_running_loop().create_task(work)
    cancellation: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # else a cancelled scope around us would cancel this wait over and over
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancellation = error
    if cancellation is None:
        return task.result()
    raise cancellation from None if task.cancelled() else task.exception()


def _while_handling(handled: BaseException | None, work: Callable[[], R]) -> R:
    if handled is None:
        return work()
    traceback = handled.__traceback__
    try:
        raise handled  # noqa: TRY301  SQLAlchemy asks sys.exc_info() what a rollback is for
    except BaseException:  # noqa: BLE001  it goes on being handled where it was
        handled.__traceback__ = traceback
        return work()
