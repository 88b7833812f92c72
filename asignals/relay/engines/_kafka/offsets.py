"""The offsets of one partition: what has been taken, and up to where all of it is done."""

from __future__ import annotations

from collections import deque
from typing import Final

MOST_HELD: Final = 10_000  # events beyond the first that is not done yet


class Offsets:
    """What has been taken of one partition, and up to where all of it is done."""

    def __init__(self, end: float = 0) -> None:
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self._begin: int | None = None
        self._end = end  # what was there when the partition was assigned
        self.position: int | None = None
        self.running: int = 0
        self.in_order: int = 0  # of those, how many have a key
        self.is_over: bool = False  # the partition is another's now

    def __len__(self) -> int:
        """Offsets that hold the position up, or follow one that does."""
        return len(self._open)

    @property
    def first(self) -> int:
        """The first offset that is not done, where a successor would begin; -1 where nothing has come yet."""
        if self.position is not None:
            return self.position
        return -1 if self._begin is None else self._begin

    def take(self, offset: int) -> None:
        """Note the next offset; they come in order."""
        if self._begin is None:
            self._begin = offset
        self._open.append(offset)

    def may_be_repeat(self, offset: int) -> bool:
        """Whether whoever had the partition before may have taken the event, too."""
        return offset < self._end and offset < (self._begin or 0) + MOST_HELD

    def finish(self, offset: int) -> bool:
        """Note that one is done, in any order; tells whether the position moved, where a successor would begin."""
        self._done.add(offset)
        moved = False
        while self._open and self._open[0] in self._done:
            done = self._open.popleft()
            self._done.discard(done)
            self.position = done + 1
            moved = True
        return moved
