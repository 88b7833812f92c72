"""A connection that may be lost: whether it is, since when, and how long to wait before the next try."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

from asignals.masking import redacted, said
from asignals.relay._cancel import times_cancelled

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger("asignals.relay")


class ConnectionState:
    """What is known about the connection to a server. One log record when it is lost, one when it is back.

    `name` says what is connected to what, and is redacted.
    """

    def __init__(self, name: str) -> None:
        self.name: str = redacted(name)
        self.error: BaseException | None = None
        self.since: float = time.monotonic()

    @property
    def is_up(self) -> bool:
        """Whether the last thing heard was good."""
        return self.error is None

    @property
    def problem(self) -> str | None:
        """What is wrong, for people, without passwords; `None` when all is well."""
        return None if self.error is None else f"{said(self.error)} (for {time.monotonic() - self.since:.0f} s)"

    def lost(self, error: BaseException) -> None:
        """Note a failure."""
        if self.error is None:
            self.since = time.monotonic()
            logger.warning("lost %s (%s); trying again until it is back", self.name, said(error))
        self.error = error

    def restored(self) -> None:
        """Note a success."""
        if self.error is not None:
            logger.warning("%s is back after %.1f s", self.name, time.monotonic() - self.since)
            self.error = None
            self.since = time.monotonic()


class Backoff:
    """Pauses in seconds that double from `first` to `most`, each shortened at random by up to a half."""

    def __init__(self, first: float = 0.05, most: float = 5.0) -> None:
        self._first = first
        self._most = most
        self._next = first

    def reset(self) -> None:
        """Begin again with the shortest."""
        self._next = self._first

    def pause(self) -> float:
        """Give the next pause."""
        pause = self._next
        self._next = min(self._most, pause * 2)
        return jittered(pause)


class Attempts:
    """Something that is done over and over, though it may fail: `while True: async with attempts: ...`.

    An `Exception` of the block is noted in the state, and the block ends after a pause that grows from failure to
    failure. A block that succeeds notes that the connection is up, unless `is_proof` is false. A cancellation that the
    block has swallowed is raised at its end. Blocks of one object do not nest.
    """

    def __init__(self, state: ConnectionState, *, is_proof: bool = True) -> None:
        self._state = state
        self._is_proof = is_proof
        self._backoff = Backoff()
        self._cancelled = 0

    async def __aenter__(self) -> None:
        self._cancelled = times_cancelled()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False
        if times_cancelled() > self._cancelled:
            raise asyncio.CancelledError from error
        if error is None:
            self.succeeded()
        else:
            self._state.lost(error)
            await asyncio.sleep(self._backoff.pause())
        return True

    def succeeded(self) -> None:
        """Note a success, where it is known before the block ends."""
        self._backoff.reset()
        if self._is_proof:
            self._state.restored()


def jittered(seconds: float) -> float:
    """Shorten a pause at random by up to a half, so that many who failed together do not come back together."""
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311  spreading load, no secret
