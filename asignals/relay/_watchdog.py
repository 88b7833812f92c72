"""Noticing that the event loop is blocked: then nobody renews the leases of events, and they are redelivered."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from asignals._core import Connection

_LEAST: Final = 1.0  # seconds; a shorter stall may be a busy machine's


class Watchdog:
    """Calls `blocked(receiver, seconds)` from a separate thread when the loop has not run for half of a lease.

    `receiver` names what the loop is in, if that is a receiver: the one that blocks. Once for each stall.
    """

    def __init__(self, lease: float, blocked: Callable[[str | None, float], None]) -> None:
        self._limit = max(_LEAST, lease / 2)
        self._blocked = blocked
        self.running: dict[asyncio.Task[Any] | None, Connection] = {}  # which receiver each task calls now
        self._ended = threading.Event()

    async def run(self) -> None:
        """Watch the loop that runs this, until cancelled."""
        self._beat = time.monotonic()
        self._ended.clear()
        thread = threading.Thread(target=self._watch, args=(asyncio.get_running_loop(),), daemon=True)
        thread.start()
        try:
            while True:
                await asyncio.sleep(self._limit / 4)
                self._beat = time.monotonic()
        finally:
            self._ended.set()
            thread.join()

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        reported = 0.0
        while not self._ended.wait(self._limit / 4):
            beat = self._beat
            late = time.monotonic() - beat
            if late > self._limit and beat != reported:
                reported = beat
                receiver = self.running.get(asyncio.current_task(loop))
                self._blocked(None if receiver is None else receiver.describe(), late)
