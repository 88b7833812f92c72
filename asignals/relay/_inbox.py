"""The inbox remembers which receivers have handled which event, so that no repetition calls them again."""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, Protocol

_MAX_RECEIVER: Final = 255


@dataclass(slots=True)
class Memo:
    """What is remembered of one event in one service: the receivers that are done, and how often it failed."""

    done: set[str] = field(default_factory=set)
    failures: int = 0

    def encode(self) -> bytes:
        """Write it down, for an engine that keeps bytes."""
        return json.dumps({"done": sorted(self.done), "failures": self.failures}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Memo:
        """Read the bytes of `encode`; others are as good as forgotten: receivers are then called again."""
        try:
            found = json.loads(data)
            return cls(set(map(str, found["done"])), int(found["failures"]))
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            return cls()

    def add(self, done: set[str], failures: int | None) -> None:
        """Add receivers that are done, and set the number of failures unless it is `None`."""
        self.done |= done
        if failures is not None:
            self.failures = failures


class Inbox(Protocol):
    """Remembers by (event id, service, receiver)."""

    async def recall(self, event_id: str, service: str) -> Memo:
        """Give what is remembered; an empty memo when nothing is."""
        ...

    async def remember(self, event_id: str, service: str, done: set[str], failures: int | None = None) -> None:
        """Add receivers that are done, and set the number of failures unless it is `None`; returns when it is safe."""
        ...


class MemoryInbox:
    """Remembers the last `size` events, in this process: other instances know nothing of what was done here."""

    def __init__(self, size: int = 100_000) -> None:
        self._memos: OrderedDict[tuple[str, str], Memo] = OrderedDict()
        self._size = size

    async def recall(self, event_id: str, service: str) -> Memo:
        """Give what is remembered."""
        memo = self._memos.get((event_id, service))
        return Memo() if memo is None else Memo(set(memo.done), memo.failures)

    async def remember(self, event_id: str, service: str, done: set[str], failures: int | None = None) -> None:
        """Add receivers that are done, and set the number of failures unless it is `None`."""
        memo = self._memos.setdefault((event_id, service), Memo())
        memo.add(done, failures)
        self._memos.move_to_end((event_id, service))
        if len(self._memos) > self._size:
            self._memos.popitem(last=False)


def receiver_name(name: str, taken: set[str]) -> str:
    """Make a receiver's name fit the table and differ from those taken before it; adds it to them."""
    if len(name) > _MAX_RECEIVER - 10:
        name = f"{name[:200]}~{zlib.crc32(name.encode()):08x}"
    count, unique = 1, name
    while unique in taken:
        count += 1
        unique = f"{name}#{count}"
    taken.add(unique)
    return unique
