"""A delivery of the `Database` engine, as its statements give it and take it back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, TypeAlias

KEPT: Final = 120.0  # seconds for which an event is remembered at least, so that a repetition is recognised
POLL: Final = 1.0  # seconds after which a consumer looks by itself, should a notification have been lost
SWEEP: Final = 1_000  # events that are forgotten at once

Place: TypeAlias = tuple[int, int]  # where a delivery is: the number of its event, and of its subscription
Row: TypeAlias = "tuple[str, str, bytes, int | None]"  # of an event: id, topic, data, lane


@dataclass(slots=True)
class Claimed:
    """A delivery that is this consumer's until its lease ends."""

    key: Place
    attempt: int
    lane: int | None
    topic: str
    data: bytes
    until: float = 0.0  # of this machine's clock, a bit before the lease ends in the database

    @property
    def is_lost(self) -> bool:
        """Whether it may be another instance's by now, which then is the one to handle its lane."""
        return self.lane is not None and time.monotonic() > self.until
