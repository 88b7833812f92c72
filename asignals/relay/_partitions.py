"""A partition of a topic's keys, for as long as it is this instance's: what may begin there, and what ends.

For engines in which each partition belongs to one instance at a time. The engine says until when it surely does, and
when it is over; meanwhile events of a key are handled one at a time, in the order in which they came.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from asignals.relay._key_queues import KeyQueues
from asignals.relay._transport import Delivery, Release, delay_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from asignals.relay._pool import Pool
    from asignals.relay._transport import Handle

T = TypeVar("T")

_FINISH: Final = 5.0  # seconds for which a partition that is to be handed on begins nothing


@dataclass(slots=True, eq=False)
class Turn:
    """One time for which a partition is this instance's."""

    topic: str
    until: float = 0.0  # of this machine's clock: it surely is until then
    given: int = 0  # events that do not wait for others of their key
    running: int = 0
    is_over: bool = False  # what is not begun yet is not ours any more
    is_unable: bool = False  # an event was given back, for an instance that can handle it
    paused: list[InPartition[Any]] | None = None  # what came to be handled while nothing may begin
    changed: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class InPartition(Generic[T]):
    """An event with a key that is here; `place` is the engine's, by which it is acknowledged."""

    turn: Turn
    key: Hashable
    place: T
    data: bytes
    attempt: int


class PartitionWork(Generic[T]):
    """Handles the events of partitions. `finish` acknowledges one; `forget` is called for each that is over."""

    def __init__(
        self,
        handle: Handle,
        pool: Pool[Any],
        finish: Callable[[InPartition[T]], Awaitable[object]],
        forget: Callable[[InPartition[T]], object],
    ) -> None:
        self._handle = handle
        self._pool = pool
        self._finish = finish
        self._forget = forget
        self._queues: KeyQueues[InPartition[T]] = KeyQueues(self._give)

    def _give(self, item: InPartition[T]) -> None:
        item.turn.given += 1
        self._pool.put(item)

    def add(self, item: InPartition[T]) -> None:
        """Have an event handled after those of its key that were added before."""
        self._queues.add((item.turn.topic, item.key), item)

    async def work(self, item: InPartition[T]) -> None:
        """Handle one event, unless its partition may be another instance's by now."""
        turn = item.turn
        while time.monotonic() > turn.until and not turn.is_over:  # noqa: ASYNC110  we were frozen, or are cut off
            await asyncio.sleep(0.05)
        if turn.is_over:
            self.skip(item)
        elif turn.paused is not None:
            turn.paused.append(item)
        else:
            await self._work(item)

    async def _work(self, item: InPartition[T]) -> None:
        turn = item.turn
        turn.running += 1
        try:
            delivery = Delivery(turn.topic, item.data, item.attempt, item.attempt > 1, self._pool.park)
            outcome = await self._handle(delivery)
            if outcome is None:
                await self._finish(item)
        finally:
            turn.running -= 1
            turn.changed.set()
        if outcome is None:
            self.skip(item)
            return
        item.attempt += 1
        turn.is_unable = turn.is_unable or isinstance(outcome, Release)
        asyncio.get_running_loop().call_later(delay_of(outcome), self._pool.put, item)

    def skip(self, item: InPartition[T]) -> None:
        """Be done with an event that need not be handled, and go on with the next of its key."""
        item.turn.given -= 1
        self._forget(item)
        self._queues.done((item.turn.topic, item.key))

    def end(self, turn: Turn) -> None:
        """Begin nothing more in a partition."""
        turn.is_over = True
        self._resume(turn)
        turn.changed.set()

    async def is_idle_soon(self, turn: Turn) -> bool:
        """Begin nothing until all that runs in a partition has ended; go on, and say no, when that takes long."""
        turn.paused = []
        with suppress(TimeoutError):
            async with asyncio.timeout(_FINISH):
                while turn.running and not turn.is_over:
                    turn.changed.clear()
                    await turn.changed.wait()
                return True
        self._resume(turn)
        return False

    def _resume(self, turn: Turn) -> None:
        paused, turn.paused = turn.paused or (), None
        for item in paused:
            self._pool.put(item)
