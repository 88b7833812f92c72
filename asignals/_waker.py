"""Waking a task that waits, from wherever; and whether it was cancelled."""

from __future__ import annotations

import math
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

if TYPE_CHECKING:
    from collections.abc import Callable


class Loop:
    """The event loop of the task that makes this, as other threads see it."""

    __slots__ = ("_is_asyncio", "_library", "_native", "_thread")

    def __init__(self) -> None:
        self._native: Any = anyio.lowlevel.current_token().native_token
        self._is_asyncio = hasattr(self._native, "call_soon_threadsafe")
        self._library: Any = sys.modules["asyncio" if self._is_asyncio else "trio"]  # loaded, as it runs
        self._thread = threading.get_ident()

    def event(self) -> Any:
        """Make an event for tasks of this loop, without asking once more which loop that is, as `anyio.Event` does."""
        return self._library.Event()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call a function in the loop: at once from inside, else soon, without waiting.

        Raises `RuntimeError` when the loop has ended.
        """
        if self._is_here():
            function(*arguments)
        elif self._is_asyncio:
            self._native.call_soon_threadsafe(function, *arguments)
        else:
            self._native.run_sync_soon(function, *arguments)

    def _is_here(self) -> bool:
        if not self._is_asyncio:
            return threading.get_ident() == self._thread
        try:  # an asyncio loop that is between two runs must be called from outside in its own thread, too
            return self._library.get_running_loop() is self._native
        except RuntimeError:
            return False


class Waker:
    """An event for one waiting task that any thread may set; an event alone is not thread-safe."""

    __slots__ = ("_event", "_loop")

    def __init__(self) -> None:
        self._loop = Loop()
        self._event = self._loop.event()

    async def wait(self) -> None:
        """Wait until `wake` was called."""
        await self._event.wait()

    def wake(self) -> None:
        """Let the waiting task go on; harmless when its loop has ended."""
        try:  # noqa: SIM105  a third cheaper
            self._loop.call(self._event.set)
        except RuntimeError:
            pass


def is_cancelled() -> bool:
    """Whether a scope around the current task is cancelled, so that the cancellation exception was not its own idea."""
    return anyio.current_effective_deadline() == -math.inf
