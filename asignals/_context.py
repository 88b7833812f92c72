"""Awaiting something in another context, without a task for it."""

from __future__ import annotations

from types import coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from contextvars import Context


@coroutine
def in_context(context: Context, work: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Await `work` with `context` as its current context; the caller's own context is untouched.

    Each step of it is run in the context, as an event loop does for a task; a task of its own would cost more than
    most receivers do. Cancellation and everything else that is thrown in reaches `work`.
    """
    step: Callable[..., Any] = work.send
    value: Any = None
    try:
        while True:
            try:
                trap = context.run(step, value)
            except StopIteration:
                return
            try:
                value = yield trap
                step = work.send
            except GeneratorExit:
                context.run(work.close)
                raise
            except BaseException as error:  # noqa: BLE001  handed on to the work
                step, value = work.throw, error
    finally:
        del value  # an error kept here would hold this frame by its traceback
