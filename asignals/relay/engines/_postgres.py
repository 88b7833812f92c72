"""The statements of the `Database` engine, for PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import ColumnElement, Double, TextClause, bindparam, literal_column, text
from sqlalchemy.dialects import postgresql

from asignals.relay._dialect import PG_IDLE, PG_NO_WAIT, PG_NOW, channel_of, lock_of, quoted
from asignals.relay._listening import notify
from asignals.relay.engines._deliveries import KEPT, SWEEP, Claimed, Place, Row

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from asignals.relay._tables import Tables

_LOCKS: Final = 64  # that the lanes share


class Postgres:
    """The statements, for PostgreSQL."""

    def __init__(self, engine: AsyncEngine, tables: Tables) -> None:
        event, delivery, subscription = (
            quoted(engine, table) for table in (tables.event, tables.delivery, tables.subscription)
        )
        self.channel = channel_of(event)
        self.now: ColumnElement[float] = literal_column(PG_NOW, Double)
        self._lock = lock_of(subscription)
        self._locks = [lock_of(f"{delivery} {number}") for number in range(_LOCKS)]
        numbers = postgresql.ARRAY(postgresql.BIGINT)
        texts = postgresql.ARRAY(postgresql.TEXT)
        is_later = "lane IS NOT NULL AND row_number() OVER (PARTITION BY {0}, lane ORDER BY seq) > 1"

        def publish(waits: str) -> TextClause:
            return text(
                f"WITH fresh AS (INSERT INTO {event} (event_id, topic, data, lane, time)"  # noqa: S608  names are quoted, values bound
                f" SELECT id, topic, data, lane, {PG_NOW}"
                f" FROM unnest(:ids, :topics, :datas, :lanes) WITH ORDINALITY AS given (id, topic, data, lane, place)"
                f" ORDER BY place ON CONFLICT (event_id) DO NOTHING RETURNING seq, topic, lane),"
                f" sent AS (INSERT INTO {delivery} (subscription, waits, seq, lane, available_at, attempts)"
                f" SELECT s.id, {waits}, seq, lane, 0, 0 FROM {subscription} AS s JOIN fresh USING (topic)) SELECT"
            ).bindparams(
                bindparam("ids", type_=texts),
                bindparam("topics", type_=texts),
                bindparam("datas", type_=postgresql.ARRAY(postgresql.BYTEA)),
                bindparam("lanes", type_=numbers),
            )

        of_lane = "d.subscription = s.id AND d.lane = fresh.lane"
        is_behind = f"EXISTS (SELECT 1 FROM {delivery} AS d WHERE {of_lane} AND NOT d.waits)"  # noqa: S608
        self._publish = publish("false")
        self._publish_in_lanes = publish(f"({is_later.format('s.id')}) OR {is_behind}")
        self._lock_lanes = text(
            f"SELECT {PG_IDLE}, pg_advisory_xact_lock(lock) FROM unnest(:locks) AS lock"  # noqa: S608
        ).bindparams(bindparam("locks", type_=numbers))
        self._register = text(
            f"WITH new AS (INSERT INTO {subscription} (service, topic) VALUES (:service, :topic)"  # noqa: S608
            f" ON CONFLICT DO NOTHING RETURNING id, topic)"
            f" INSERT INTO {delivery} (subscription, waits, seq, lane, available_at, attempts)"
            f" SELECT new.id, {is_later.format('new.id')}, seq, lane, 0, 0 FROM new JOIN {event} USING (topic)"
        )
        # Topic by topic, by the index, as rows of topics that this instance does not receive may lie between.
        self._claim = text(
            f"WITH next AS (SELECT found.* FROM unnest(:subscriptions) AS s (id), LATERAL"  # noqa: S608
            f" (SELECT subscription, seq FROM {delivery}"
            f" WHERE subscription = s.id AND NOT waits AND available_at <= {PG_NOW}"
            f" ORDER BY seq LIMIT :count FOR UPDATE SKIP LOCKED) AS found ORDER BY seq LIMIT :count)"
            f" UPDATE {delivery} AS d SET available_at = {PG_NOW} + :lease, attempts = attempts + 1, is_held = true"
            f" FROM next JOIN {event} AS e USING (seq), {PG_NO_WAIT}"
            f" WHERE d.subscription = next.subscription AND NOT d.waits AND d.seq = next.seq"
            f" RETURNING d.seq, d.subscription, d.attempts, d.lane, e.topic, e.data"
        ).bindparams(bindparam("subscriptions", type_=numbers))
        keys = bindparam("seqs", type_=numbers), bindparam("subscriptions", type_=numbers)
        self._finish = text(
            f"DELETE FROM {delivery} AS d USING unnest(:seqs, :subscriptions) AS k (seq, subscription), {PG_NO_WAIT}"  # noqa: S608
            f" WHERE d.subscription = k.subscription AND NOT d.waits AND d.seq = k.seq"
        ).bindparams(*keys)
        # A later attempt is another instance's: what this one then says of the event does not count, in a lane.
        is_there = "d.subscription = k.subscription AND NOT d.waits AND d.seq = k.seq"
        attempts = bindparam("attempts", type_=numbers)
        self._finish_in_lanes = text(
            f"WITH done AS (DELETE FROM {delivery} AS d"  # noqa: S608
            f" USING unnest(:seqs, :subscriptions, :attempts) AS k (seq, subscription, attempt), {PG_NO_WAIT}"
            f" WHERE {is_there} AND d.attempts = k.attempt RETURNING d.subscription, d.lane),"
            f" next AS (SELECT subscription, (SELECT seq FROM {delivery} AS w WHERE w.subscription = done.subscription"
            f" AND w.lane = done.lane AND w.waits ORDER BY seq LIMIT 1) AS seq FROM done)"
            f" UPDATE {delivery} AS d SET waits = false FROM next"
            f" WHERE d.subscription = next.subscription AND d.waits AND d.seq = next.seq"
        ).bindparams(*keys, attempts)
        self._postpone = text(
            f"UPDATE {delivery} AS d SET available_at = {PG_NOW} + k.delay, is_held = :is_held"  # noqa: S608
            f" FROM unnest(:seqs, :subscriptions, :attempts, :delays) AS k (seq, subscription, attempt, delay),"
            f" {PG_NO_WAIT} WHERE {is_there} AND (d.lane IS NULL OR d.attempts = k.attempt)"
            f" RETURNING d.seq, d.subscription"
        ).bindparams(
            *keys,
            attempts,
            bindparam("delays", type_=postgresql.ARRAY(postgresql.DOUBLE_PRECISION)),
            bindparam("is_held", type_=postgresql.BOOLEAN),
        )
        self._sweep = text(
            f"DELETE FROM {event} WHERE seq IN (SELECT seq FROM {event} AS e WHERE time < {PG_NOW} - {KEPT}"  # noqa: S608
            f" AND NOT EXISTS (SELECT 1 FROM {subscription} AS s JOIN {delivery} AS d ON d.subscription = s.id"
            f" AND d.waits IN (false, true) AND d.seq = e.seq WHERE s.topic = e.topic) ORDER BY time LIMIT {SWEEP})"
        )
        self._due = text(
            f"SELECT min(available_at) - {PG_NOW} FROM {delivery}"  # noqa: S608
            f" WHERE subscription = ANY(:subscriptions) AND NOT waits"
        ).bindparams(bindparam("subscriptions", type_=numbers))

    async def publish(self, connection: AsyncConnection, rows: list[Row]) -> None:
        await self._keep_subscriptions(connection)
        in_lanes = await self._lock_lanes_of(connection, [lane for _, _, _, lane in rows])
        statement = self._publish_in_lanes if in_lanes else self._publish
        names = "ids", "topics", "datas", "lanes"
        await connection.execute(statement, {name: [row[place] for row in rows] for place, name in enumerate(names)})
        await connection.commit()
        await notify((await connection.get_raw_connection()), self.channel)

    async def register(self, connection: AsyncConnection, service: str, topic: str) -> None:
        await connection.execute(text(f"SELECT {PG_IDLE}, pg_advisory_xact_lock({self._lock})"))
        await connection.execute(self._register, {"service": service, "topic": topic})

    async def claim(
        self, connection: AsyncConnection, subscriptions: list[int], count: int, lease: float
    ) -> list[Claimed]:
        given = {"subscriptions": subscriptions, "count": count, "lease": lease}
        found = await connection.execute(self._claim, given)
        return [
            Claimed((seq, number), attempts, lane, topic, bytes(data))
            for seq, number, attempts, lane, topic, data in found
        ]

    async def finish(self, connection: AsyncConnection, rows: list[Claimed]) -> None:
        await connection.execute(self._finish, _columns(rows))

    async def finish_in_lanes(self, connection: AsyncConnection, rows: list[Claimed]) -> None:
        """Finish deliveries, and let the next of each lane be claimed."""
        await self._lock_lanes_of(connection, [row.lane for row in rows])
        await connection.execute(self._finish_in_lanes, {**_columns(rows), "attempts": [row.attempt for row in rows]})

    async def postpone(self, connection: AsyncConnection, delays: list[tuple[Claimed, float]]) -> None:
        await self._move(connection, delays, is_held=False)

    async def renew(self, connection: AsyncConnection, rows: list[Claimed], lease: float) -> set[Place]:
        """Renew leases; returns where the deliveries are that still are this consumer's."""
        return await self._move(connection, [(row, lease) for row in rows], is_held=True)

    async def _move(
        self, connection: AsyncConnection, delays: list[tuple[Claimed, float]], *, is_held: bool
    ) -> set[Place]:
        rows = [row for row, _ in delays]
        given = {"attempts": [row.attempt for row in rows], "delays": [delay for _, delay in delays]}
        found = await connection.execute(self._postpone, {**_columns(rows), **given, "is_held": is_held})
        return {(seq, number) for seq, number in found}

    async def _lock_lanes_of(self, connection: AsyncConnection, lanes: Collection[int | None]) -> bool:
        """Let nobody else publish to these lanes, or finish there, until the transaction ends; whether there are any.

        So the numbers of a lane's events are in the order of the commits, and it is known which is the first. It is a
        statement before the one that looks: that sees what was committed until then.
        """
        numbers = sorted({lane % _LOCKS for lane in lanes if lane is not None})
        if numbers:
            await connection.execute(self._lock_lanes, {"locks": [self._locks[number] for number in numbers]})
        return bool(numbers)

    async def sweep(self, connection: AsyncConnection) -> int:
        await self._keep_subscriptions(connection)
        return (await connection.execute(self._sweep)).rowcount

    async def _keep_subscriptions(self, connection: AsyncConnection) -> None:
        # A service that registers now must see what we do to events, or we must see the service: registering takes the
        # lock alone. It is its own statement, as the next one sees only what was committed before it began.
        await connection.execute(text(f"SELECT {PG_IDLE}, pg_advisory_xact_lock_shared({self._lock})"))

    async def until_due(self, connection: AsyncConnection, subscriptions: list[int]) -> float | None:
        seconds: float | None = (await connection.execute(self._due, {"subscriptions": subscriptions})).scalar()
        return seconds


def _columns(rows: list[Claimed]) -> dict[str, list[int]]:
    return {"seqs": [row.key[0] for row in rows], "subscriptions": [row.key[1] for row in rows]}
