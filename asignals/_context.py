"""Awaiting something in another context, without a task for it."""

from __future__ import annotations

from types import coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from contextvars import Context

R = TypeVar("R")


@coroutine
def in_context(context: Context, work: Awaitable[R]) -> Generator[Any, Any, R]:
    """Await `work` with `context` as its current context; the caller's own context is untouched.

    Each step of it is run in the context, as an event loop does for a task; a task of its own would cost more than
    most receivers do. Cancellation and everything else that is thrown in reaches `work`.
    """
    steps: Any = work.__await__()  # a generator, or an iterator that is much like one
    step: Callable[..., Any] = steps.__next__
    value: tuple[Any, ...] = ()
    try:
        while True:
            try:
                trap = context.run(step, *value)
            except StopIteration as stop:
                result: R = stop.value
                return result
            try:
                answer = yield trap
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001  handed on to the work
                step, value = steps.throw, (error,)
            else:
                step, value = (steps.__next__, ()) if answer is None else (steps.send, (answer,))
    finally:
        value = ()  # an error kept here would hold this frame by its traceback
        close = getattr(steps, "close", None)
        if close is not None:
            context.run(close)
