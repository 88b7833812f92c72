"""Calling sync receivers in worker threads, and leaving none behind."""

from __future__ import annotations

import threading
from inspect import isawaitable, iscoroutine
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from asignals._waker import Waker, cancellation

if TYPE_CHECKING:
    from collections.abc import Callable


async def in_thread(call: Callable[[], Any]) -> Any:
    """Make a call in a worker thread, in a copy of the current context; an awaitable response is awaited here.

    Nothing can stop a thread, so whoever is cancelled meanwhile waits for its end. anyio does that for cancelled
    scopes, but asyncio's `Task.cancel()` would leave the thread running.
    """
    work = _Work(call)
    try:
        await anyio.to_thread.run_sync(work.run)
    except cancellation():
        await work.end()
        raise
    return await work.response if isawaitable(work.response) else work.response


class _Work:
    """A call that is either made by the thread or withdrawn before, whoever is first."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._claim = threading.Lock()
        self.response: Any = None
        self._is_done = False
        self._done: Waker | None = None

    def run(self) -> None:
        """Make the call; its response is kept here, because trio refuses coroutines from threads."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self.response = self._call()
        finally:
            self._is_done = True
            if self._done is not None:
                self._done.wake()

    async def end(self) -> None:
        """Withdraw the call or wait for its end, however often this is cancelled; nobody awaits the response then."""
        if self._claim.acquire(blocking=False):
            return
        with anyio.CancelScope(shield=True):
            while True:
                self._done = Waker()  # each is waited for once
                if self._is_done:
                    break
                try:
                    await self._done.wait()
                except cancellation():
                    continue
        if iscoroutine(self.response):
            self.response.close()
