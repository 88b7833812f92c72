"""The statements of the `Database` engine, for SQLite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import sqlite

from asignals.relay._dialect import now
from asignals.relay.engines._deliveries import KEPT, SWEEP, Claimed, Place, Row

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from asignals.relay._tables import Tables


class SQLite:
    """The statements, for SQLite.

    Publishing and registering begin with a write, so they wait for the lock at once: a transaction that reads first
    could not take it any more after another has written ("database is locked", without waiting).
    """

    channel = ""

    @property
    def now(self) -> ColumnElement[float]:
        return literal(now())

    def __init__(self, _engine: AsyncEngine, tables: Tables) -> None:
        self._tables = tables
        delivery = tables.delivery
        in_lane = (
            delivery.c.subscription == bindparam("number"),
            delivery.c.lane == bindparam("of_lane"),
            delivery.c.waits,
        )
        first = select(func.min(delivery.c.seq)).where(*in_lane).scalar_subquery()
        self._free = update(delivery).where(*in_lane, delivery.c.seq == first).values(waits=False)

    async def publish(self, connection: AsyncConnection, rows: list[Row]) -> None:
        event, delivery, subscription = self._tables.event, self._tables.delivery, self._tables.subscription
        time = now()
        fresh_ones = event.c.seq, event.c.topic, event.c.lane
        write = sqlite.insert(event).on_conflict_do_nothing().returning(*fresh_ones)
        values = [
            {"event_id": id_, "topic": topic, "data": data, "lane": lane, "time": time}
            for id_, topic, data, lane in rows
        ]
        fresh = sorted((await connection.execute(write, values)).all())
        known: dict[str, list[int]] = {}
        for number, topic in await connection.execute(select(subscription.c.id, subscription.c.topic)):
            known.setdefault(topic, []).append(number)
        busy = await self._busy(connection, {lane for _, _, lane in fresh if lane is not None})
        sent = []
        for seq, topic, lane in fresh:
            for number in known.get(topic, ()):
                waits = (number, lane) in busy
                if lane is not None:
                    busy.add((number, lane))
                sent.append(
                    {
                        "subscription": number,
                        "waits": waits,
                        "seq": seq,
                        "lane": lane,
                        "available_at": 0.0,
                        "attempts": 0,
                    }
                )
        if sent:
            await connection.execute(insert(delivery), sent)
        await connection.commit()

    async def _busy(self, connection: AsyncConnection, lanes: Collection[int]) -> set[tuple[int, int]]:
        """Give those of some lanes in which something is, with their subscriptions."""
        if not lanes:
            return set()
        delivery, subscription = self._tables.delivery.c, self._tables.subscription.c
        query = select(delivery.subscription, delivery.lane).where(
            delivery.subscription.in_(select(subscription.id)), delivery.lane.in_(lanes), ~delivery.waits
        )
        return {(number, lane) for number, lane in await connection.execute(query)}

    async def register(self, connection: AsyncConnection, service: str, topic: str) -> None:
        event, subscription = self._tables.event, self._tables.subscription
        write = sqlite.insert(subscription).values(service=service, topic=topic).on_conflict_do_nothing()
        if (number := (await connection.execute(write.returning(subscription.c.id))).scalar()) is not None:
            columns = ["subscription", "waits", "seq", "lane", "available_at", "attempts"]
            place = func.row_number().over(partition_by=event.c.lane, order_by=event.c.seq)
            waits = and_(event.c.lane.is_not(None), place > 1)
            kept = select(literal(number), waits, event.c.seq, event.c.lane, text("0"), text("0"))
            kept = kept.where(event.c.topic == topic)
            await connection.execute(insert(self._tables.delivery).from_select(columns, kept))

    async def claim(
        self, connection: AsyncConnection, subscriptions: list[int], count: int, lease: float
    ) -> list[Claimed]:
        delivery, event = self._tables.delivery, self._tables.event
        row = delivery.alias("row")
        due = select(row.c.subscription, row.c.waits, row.c.seq).where(~row.c.waits, row.c.available_at <= now())
        # An idle consumer takes no write lock, and so blocks nobody.
        if (await connection.execute(due.where(row.c.subscription.in_(subscriptions)).limit(1))).first() is None:
            return []
        each = (due.where(row.c.subscription == number).order_by(row.c.seq).limit(count) for number in subscriptions)
        first = union_all(*(select(one.subquery()) for one in each)).subquery()
        next_ = select(first.c.subscription, first.c.waits, first.c.seq).order_by(first.c.seq).limit(count)
        take = (
            update(delivery)
            .where(tuple_(delivery.c.subscription, delivery.c.waits, delivery.c.seq).in_(next_))
            .values(available_at=now() + lease, attempts=delivery.c.attempts + 1, is_held=True)
            .returning(delivery.c.seq, delivery.c.subscription, delivery.c.attempts, delivery.c.lane)
        )
        taken = (await connection.execute(take)).all()
        if not taken:
            return []
        query = select(event.c.seq, event.c.topic, event.c.data).where(event.c.seq.in_({row.seq for row in taken}))
        bodies = {seq: (topic, data) for seq, topic, data in await connection.execute(query)}
        return [Claimed((seq, number), attempts, lane, *bodies[seq]) for seq, number, attempts, lane in taken]

    async def finish(self, connection: AsyncConnection, rows: list[Claimed]) -> None:
        for number, some in _by_subscription(rows).items():
            which = self._which(number), self._tables.delivery.c.seq.in_([row.key[0] for row in some])
            await connection.execute(delete(self._tables.delivery).where(*which))

    async def finish_in_lanes(self, connection: AsyncConnection, rows: list[Claimed]) -> None:
        """Finish deliveries, and let the next of each lane be claimed."""
        delivery = self._tables.delivery
        for number, some in _by_subscription(rows).items():
            mine = tuple_(delivery.c.seq, delivery.c.attempts).in_([(row.key[0], row.attempt) for row in some])
            done = delete(delivery).where(self._which(number), mine).returning(delivery.c.lane)
            lanes = (await connection.execute(done)).scalars().all()
            if lanes:
                await connection.execute(self._free, [{"number": number, "of_lane": lane} for lane in lanes])

    async def postpone(self, connection: AsyncConnection, delays: list[tuple[Claimed, float]]) -> None:
        for delay in {delay for _, delay in delays}:
            rows = [row for row, one in delays if one == delay]
            await self._move(connection, rows, {"available_at": now() + delay, "is_held": False})

    async def renew(self, connection: AsyncConnection, rows: list[Claimed], lease: float) -> set[Place]:
        """Renew leases; returns where the deliveries are that still are this consumer's."""
        return await self._move(connection, rows, {"available_at": now() + lease})

    async def _move(self, connection: AsyncConnection, rows: list[Claimed], values: dict[str, object]) -> set[Place]:
        delivery = self._tables.delivery
        ours: set[Place] = set()
        for number, some in _by_subscription(rows).items():
            known = tuple_(delivery.c.seq, delivery.c.attempts).in_([(row.key[0], row.attempt) for row in some])
            alone = and_(delivery.c.lane.is_(None), delivery.c.seq.in_([row.key[0] for row in some]))
            moved = update(delivery).where(self._which(number), or_(alone, known)).values(values)
            found = await connection.execute(moved.returning(delivery.c.seq))
            ours.update((seq, number) for seq in found.scalars())
        return ours

    def _which(self, subscription: int) -> ColumnElement[bool]:
        delivery = self._tables.delivery
        return and_(delivery.c.subscription == subscription, ~delivery.c.waits)

    async def sweep(self, connection: AsyncConnection) -> int:
        event, delivery, subscription = self._tables.event, self._tables.delivery, self._tables.subscription
        # By way of the subscriptions, as the index of deliveries begins with them.
        held = select(delivery.c.seq).where(
            delivery.c.subscription == subscription.c.id,
            delivery.c.waits.in_([False, True]),
            delivery.c.seq == event.c.seq,
        )
        holder = select(subscription.c.id).where(
            subscription.c.topic == event.c.topic, held.correlate(subscription, event).exists()
        )
        free = select(event.c.seq).where(event.c.time < now() - KEPT, ~holder.correlate(event).exists())
        if (await connection.execute(free.limit(1))).first() is None:
            return 0
        oldest = free.order_by(event.c.time).limit(SWEEP).scalar_subquery()
        return (await connection.execute(delete(event).where(event.c.seq.in_(oldest)))).rowcount

    async def until_due(self, connection: AsyncConnection, subscriptions: list[int]) -> float | None:
        delivery = self._tables.delivery
        query = select(func.min(delivery.c.available_at)).where(
            delivery.c.subscription.in_(subscriptions), ~delivery.c.waits
        )
        first: float | None = (await connection.execute(query)).scalar()
        return None if first is None else first - now()


def _by_subscription(rows: list[Claimed]) -> dict[int, list[Claimed]]:
    found: dict[int, list[Claimed]] = {}
    for row in rows:
        found.setdefault(row.key[1], []).append(row)
    return found
