"""Dead letters are kept for as long as the relay was told, and then removed: in batches, counted and logged."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from asignals.relay._connection_state import Attempts, ConnectionState, jittered
from asignals.relay._dead_letters import REFUSED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asignals.relay._dead_letters import Letters

logger = logging.getLogger("asignals.relay")

_OFTEN: Final = 1.0  # seconds between two looks at least
_SELDOM: Final = 3_600.0  # and at most


class Retention:
    """Removes the dead letters of one relay that are older than `keep` seconds."""

    def __init__(self, letters: Letters, keep: float | None) -> None:
        self.expired = 0
        self._letters = letters
        self._keep = keep or 0.0

    async def run(self, queues: Sequence[str]) -> None:
        """Look now and then, until cancelled; an engine that is away is asked the next time."""
        attempts = Attempts(ConnectionState("removing old dead letters"))
        pause = min(_SELDOM, max(_OFTEN, self._keep / 10))
        while True:
            await asyncio.sleep(jittered(pause))
            for queue in queues:
                if queue != REFUSED:  # those are the outbox's
                    async with attempts:
                        await self._expire(queue)

    async def _expire(self, queue: str) -> None:
        gone = await self._letters.expire(queue, time.time() - self._keep)
        if gone:
            self.expired += gone
            logger.info("removed %d dead letters of %r: older than %g s", gone, queue, self._keep)
