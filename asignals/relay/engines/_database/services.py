"""The services that a database keeps events for: their subscriptions, what waits for them, and who is alive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from asignals.relay._connected import begun, connected
from asignals.relay._dialect import is_postgres
from asignals.relay._envelope import check_name
from asignals.relay._monitoring.figures import EXPIRY, TopicFigures
from asignals.relay.engines._deliveries import SWEEP

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.ext.asyncio import AsyncEngine

    from asignals.relay._tables import Tables
    from asignals.relay.engines._postgres import Postgres
    from asignals.relay.engines._sqlite import SQLite


class Services:
    """Makes services known, removes them, and gives their figures."""

    def __init__(self, engine: AsyncEngine, tables: Tables, sql: Postgres | SQLite) -> None:
        self.engine = engine
        self.tables = tables
        self.sql = sql

    async def add(self, service: str, topics: Collection[str]) -> None:
        """Keep events of these topics for a service, beginning with those that are still there."""
        check_name("service", service)
        for topic in topics:
            check_name("topic", topic)
        if len(await self.numbers(service, topics)) == len(set(topics)):
            return
        async with begun(self.engine) as connection:
            for topic in topics:
                await self.sql.register(connection, service, topic)

    async def forget(self, service: str, topics: Collection[str] | None) -> None:
        """Remove a service's deliveries, of some topics or of all, and make no more."""
        subscription, delivery, instance = self.tables.subscription, self.tables.delivery, self.tables.instance
        for number in await self.numbers(service, topics):
            async with begun(self.engine) as connection:
                await connection.execute(delete(subscription).where(subscription.c.id == number))
                await connection.execute(delete(delivery).where(delivery.c.subscription == number))
                await connection.execute(delete(instance).where(instance.c.subscription == number))

    async def numbers(self, service: str, topics: Collection[str] | None) -> list[int]:
        """Give the numbers of a service's subscriptions, to some topics or to all."""
        table = self.tables.subscription
        query = select(table.c.id).where(table.c.service == service)
        if topics is not None:
            query = query.where(table.c.topic.in_(list(topics)))
        async with connected(self.engine) as connection:
            return list((await connection.execute(query)).scalars())

    async def figures(self, service: str | None, topics: Collection[str] | None) -> list[TopicFigures]:
        """Give what waits, by service and topic; instances that stopped are known 20 seconds later at the latest."""
        event, delivery, subscription = self.tables.event, self.tables.delivery, self.tables.subscription
        instance, at = self.tables.instance, select(self.sql.now).scalar_subquery()  # once, and not for each row
        chosen = [] if service is None else [subscription.c.service == service]
        chosen += [] if topics is None else [subscription.c.topic.in_(list(topics))]
        is_later = delivery.c.available_at > at
        counts = (  # all in one pass
            select(
                delivery.c.subscription,
                func.count().label("backlog"),
                func.count().filter(is_later, delivery.c.is_held.is_(True)).label("in_flight"),
                func.count().filter(is_later, delivery.c.is_held.is_(False)).label("retries"),
            )
            .where(delivery.c.subscription.in_(select(subscription.c.id).where(*chosen)))
            .group_by(delivery.c.subscription)
            .subquery()
        )
        # Numbers and times of events go together but for a moment, and the index begins with the numbers.
        oldest = select(func.min(delivery.c.seq)).where(delivery.c.subscription == subscription.c.id, ~delivery.c.waits)
        first = oldest.correlate(subscription).scalar_subquery()
        age = select(at - event.c.time).where(event.c.seq == first)
        alive = select(func.count()).where(instance.c.subscription == subscription.c.id, instance.c.expires_at > at)
        query = (
            select(
                subscription.c.service,
                subscription.c.topic,
                func.coalesce(counts.c.backlog, 0),
                func.coalesce(age.correlate(subscription).scalar_subquery(), 0.0),
                func.coalesce(counts.c.in_flight, 0),
                func.coalesce(counts.c.retries, 0),
                alive.correlate(subscription).scalar_subquery(),
            )
            .select_from(subscription.outerjoin(counts, counts.c.subscription == subscription.c.id))
            .where(*chosen)
            .order_by(subscription.c.service, subscription.c.topic)
        )
        async with connected(self.engine) as connection:
            rows = (await connection.execute(query)).all()
        return [
            TopicFigures(name, topic, backlog, max(0.0, seconds), *others)
            for name, topic, backlog, seconds, *others in rows
        ]

    async def beat(self, numbers: Collection[int], instance: str) -> None:
        """Write that an instance is alive, and remove those that are not."""
        table, at = self.tables.instance, self.sql.now
        dialect = postgresql if is_postgres(self.engine) else sqlite
        async with begun(self.engine) as connection:
            await connection.execute(delete(table).where(table.c.expires_at < at))
            for number in sorted(numbers):
                row = {"subscription": number, "instance": instance, "expires_at": at + EXPIRY}
                write = dialect.insert(table).values(row)
                again = write.on_conflict_do_update(
                    index_elements=["subscription", "instance"], set_={"expires_at": write.excluded.expires_at}
                )
                await connection.execute(again)

    async def stop_beating(self, instance: str, numbers: Collection[int]) -> None:
        """Remove what says that an instance is alive."""
        table = self.tables.instance
        async with begun(self.engine) as connection:
            await connection.execute(
                delete(table).where(table.c.instance == instance, table.c.subscription.in_(list(numbers)))
            )

    async def sweep(self) -> None:
        """Forget events that all have acknowledged, in small transactions."""
        swept = SWEEP
        while swept >= SWEEP:
            async with begun(self.engine) as connection:
                swept = await self.sql.sweep(connection)
