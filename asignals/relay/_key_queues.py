"""Order by key inside one process, for engines that give a partition of the keys to one instance at a time."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")


class KeyQueues(Generic[T]):
    """Gives events to `put`, of each key one at a time, in the order in which they were added.

    An event that waits for the one before it takes no place of the pool, however long that is being retried.
    """

    def __init__(self, put: Callable[[T], object]) -> None:
        self._put = put
        self._behind: dict[Hashable, deque[T]] = {}

    def add(self, key: Hashable | None, item: T) -> None:
        """Add an event; without a key it waits for nothing."""
        if key is not None:
            if (behind := self._behind.get(key)) is not None:
                behind.append(item)
                return
            self._behind[key] = deque()
        self._put(item)

    def done(self, key: Hashable | None) -> None:
        """Note that the event that was given last is over with, and give the next one of its key."""
        if key is None or (behind := self._behind.get(key)) is None:
            return
        if behind:
            self._put(behind.popleft())
        else:
            del self._behind[key]
