"""Hearing every event of some topics by reading the table of events, of which nothing is claimed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from asignals.relay._connected import connected
from asignals.relay._dialect import is_postgres
from asignals.relay._transport import Delivery
from asignals.relay.engines._deliveries import POLL

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncEngine

    from asignals.relay._transport import Hear

_AT_ONCE: Final = 500  # events that one statement reads
_LOOK_BACK: Final = 2_000  # numbers of events that a listener looks back, for those that were committed late


class Heard:
    """What a listener has read of the table of events."""

    def __init__(self, engine: AsyncEngine, event: Table, topics: list[str], hear: Hear) -> None:
        self._engine = engine
        self._event = event
        self._topics = topics
        self._hear = hear
        self._last: int | None = None
        self._recent: dict[int, None] = {}
        self._looked_back = 0.0

    async def begin(self) -> None:
        """Pass over all that is there, the first time."""
        if self._last is not None:
            return
        event = self._event
        async with connected(self._engine) as connection:
            self._last = (await connection.execute(select(func.max(event.c.seq)))).scalar() or 0
            before = select(event.c.seq).where(event.c.seq > self._last - _LOOK_BACK)
            self._recent = dict.fromkeys((await connection.execute(before)).scalars())

    async def read(self) -> None:
        """Hear what is new; now and then also what has a lower number, as its transaction took longer."""
        event = self._event
        last, is_look_back = self._last or 0, time.monotonic() - self._looked_back > POLL
        if is_look_back and is_postgres(self._engine):
            self._looked_back = time.monotonic()
            last -= _LOOK_BACK
        while True:
            query = select(event.c.seq).where(event.c.seq > last, event.c.topic.in_(self._topics))
            async with connected(self._engine) as connection:
                seqs = (await connection.execute(query.order_by(event.c.seq).limit(_LOOK_BACK))).scalars().all()
                fresh = [seq for seq in seqs if seq not in self._recent]
                for start in range(0, len(fresh), _AT_ONCE):
                    which = event.c.seq.in_(fresh[start : start + _AT_ONCE])
                    rows = select(event.c.seq, event.c.topic, event.c.data).where(which).order_by(event.c.seq)
                    for seq, topic, data in await connection.execute(rows):
                        self._recent[seq] = None
                        self._last = max(self._last or 0, seq)
                        self._hear(Delivery(topic, bytes(data)))
            while len(self._recent) > 2 * _LOOK_BACK:
                del self._recent[next(iter(self._recent))]
            if len(seqs) < _LOOK_BACK:
                return
            last = seqs[-1]
