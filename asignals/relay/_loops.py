"""Which event loop an object's connections, locks and tasks belong to."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class OwnLoop:
    """Finds out that an object is used in another event loop than the last time.

    Sync code that sends (`asyncio.run`, `async_to_sync`) has a new loop each time, and tests often have one each.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self, name: str, forget: Callable[[], object]) -> None:
        """Call `forget` where the loop of the last time has ended: what belonged to it can be neither used nor closed.

        Raises `RuntimeError` where it still runs, in another thread.
        """
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and self._loop.is_running():
            raise RuntimeError(
                f"{name} is in use in an event loop that runs in another thread: call it there, with "
                f"asyncio.run_coroutine_threadsafe or anyio.from_thread.run, or make another one for this loop"
            )
        if self._loop is not None:
            forget()
        self._loop = loop
