"""The inbox remembers which receivers have handled which event, so that no repetition calls them again."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True)
class Memo:
    """What is remembered of one event in one service.

    `done` and `failed` name receivers, `failures` counts deliveries in which a receiver failed. `begun` counts those
    whose receivers were called since the last one that came to an end, so those that ended with their process;
    `begun_at` is when the last of them began, in seconds since the epoch.
    """

    done: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    failures: int = 0
    begun: int = 0
    begun_at: float = 0.0

    def encode(self) -> bytes:
        """Write it down, for an engine that keeps bytes."""
        facts = {"done": sorted(self.done), "failed": sorted(self.failed), "failures": self.failures}
        return json.dumps({**facts, "begun": self.begun, "begun_at": self.begun_at}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Memo:
        """Read the bytes of `encode`; others are as good as forgotten: receivers are then called again."""
        try:
            found = json.loads(data)
            return cls(
                set(map(str, found["done"])),
                set(map(str, found["failed"])),
                int(found["failures"]),
                int(found["begun"]),
                float(found["begun_at"]),
            )
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError, AttributeError):
            return cls()

    def merge(self, change: Memo) -> None:
        """Add the receivers that another one knows to be done, and take everything else as it says."""
        self.done |= change.done
        self.failed = change.failed - self.done
        self.failures, self.begun, self.begun_at = change.failures, change.begun, change.begun_at

    @property
    def is_plain(self) -> bool:
        """Whether it only names receivers that are done."""
        return not (self.failed or self.failures or self.begun or self.begun_at)

    def copy(self) -> Memo:
        """Give one that can be changed."""
        return Memo(set(self.done), set(self.failed), self.failures, self.begun, self.begun_at)


class Inbox(Protocol):
    """Remembers by event id and service."""

    async def recall(self, event_id: str, service: str) -> Memo:
        """Give what is remembered; an empty memo when nothing is."""
        ...

    async def remember(self, event_id: str, service: str, change: Memo) -> None:
        """Merge a change into what is remembered (`Memo.merge`); returns when it is safe."""
        ...


@runtime_checkable
class Purged(Protocol):
    """An inbox whose rows are kept for a time, and can be removed before that."""

    async def purge(self, until: float, on_progress: Callable[[int, int], object] | None = None) -> int:
        """Remove the rows of up to a time, in batches; returns how many."""
        ...


class MemoryInbox:
    """Remembers the last `size` events, in this process: other instances do not see it."""

    def __init__(self, size: int = 100_000) -> None:
        self._memos: OrderedDict[tuple[str, str], Memo] = OrderedDict()
        self._size = size

    async def count(self) -> int:
        """Count the events that it remembers."""
        return len(self._memos)

    async def recall(self, event_id: str, service: str) -> Memo:
        """Give what is remembered."""
        memo = self._memos.get((event_id, service))
        return Memo() if memo is None else memo.copy()

    async def remember(self, event_id: str, service: str, change: Memo) -> None:
        """Merge a change into what is remembered."""
        self._memos.setdefault((event_id, service), Memo()).merge(change)
        self._memos.move_to_end((event_id, service))
        if len(self._memos) > self._size:
            self._memos.popitem(last=False)
