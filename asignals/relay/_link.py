"""A connection that may be lost: whether it is, since when, and how long to wait before the next try."""

from __future__ import annotations

import logging
import random
import time

logger = logging.getLogger("asignals.relay")


class Link:
    """What is known about the way to an engine. One log record when it is lost, one when it is back."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error: BaseException | None = None
        self.since: float = time.monotonic()

    @property
    def is_up(self) -> bool:
        """Whether the last thing heard was good."""
        return self.error is None

    def lost(self, error: BaseException) -> None:
        """Note a failure."""
        if self.error is None:
            self.since = time.monotonic()
            logger.warning("lost %s (%s: %s); trying again until it is back", self.name, type(error).__name__, error)
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


def jittered(seconds: float) -> float:
    """Shorten a pause at random by up to a half, so that many who failed together do not come back together."""
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311  spreading load, no secret
