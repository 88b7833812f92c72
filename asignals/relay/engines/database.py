"""PostgreSQL and SQLite as the engine: no broker to run, and on SQLite no server at all.

Publishing writes an event once, and a *delivery* for each subscription (a service and a topic) that it concerns. A
consumer claims deliveries by moving their `available_at` to when its lease ends; acknowledging deletes them, retrying
moves `available_at` to when it is due, and a consumer that died is found out by the time alone. PostgreSQL's consumers
share by FOR UPDATE SKIP LOCKED and hear of new events by NOTIFY; SQLite has one writer at a time, and the file's change
counter.

Deliveries of one key form a *lane*. All but the first of a lane wait: nobody claims them, or even looks at them, until
that is done. Publishing to a lane and finishing there exclude each other, so it is always known which is the first.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from asignals.relay._connected import connected
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._dialect import is_postgres, name_of
from asignals.relay._envelope import check_name
from asignals.relay._keys import lane_of
from asignals.relay._listening import listening
from asignals.relay._places import Address, Server
from asignals.relay._settings import check_numbers
from asignals.relay._sql import Stored
from asignals.relay.engines._broker import BrokerEngine
from asignals.relay.engines._database.consumer import Consumer
from asignals.relay.engines._database.dead_letters import DeadLetterTable
from asignals.relay.engines._database.listener import Heard
from asignals.relay.engines._database.services import Services
from asignals.relay.engines._deliveries import POLL
from asignals.relay.engines._postgres import Postgres
from asignals.relay.engines._sqlite import SQLite
from asignals.relay.inbox import SQLAlchemyInbox

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle, Hear


class Database(Stored, BrokerEngine):
    """Carries events through tables, with SQLAlchemy: `postgresql+asyncpg://…`, `postgresql+psycopg://…`,
    `sqlite+aiosqlite:///file`.

    `lease` is in seconds: events of a consumer that does not renew its lease for so long, as a killed one, are
    redelivered. An event is kept until all services that are known to receive its topic have acknowledged it, and two
    minutes at least; a service is known once it has consumed, and the first time it is given all that is kept of the
    topic. An event id is taken once for at least two minutes.
    """

    def __init__(self, database: str | AsyncEngine, *, schema: str | None = None, lease: float = 30.0) -> None:
        Stored.__init__(self, database, schema, ("engine", "inbox"))  # it is its own inbox, too
        check_numbers(lease=lease)
        self.lease = lease
        self.system: str = self.engine.dialect.name  # as OpenTelemetry calls it
        self.connection_state: ConnectionState = ConnectionState(name_of(self.engine))
        self._sql: Postgres | SQLite = (Postgres if is_postgres(self.engine) else SQLite)(self.engine, self.tables)
        self._known = Services(self.engine, self.tables, self._sql)
        BrokerEngine.__init__(self, self._known, DeadLetterTable(self.engine, self.tables))

    # -- places ----------------------------------------------------------------------------------------------------

    def servers(self) -> list[Server]:
        """List the server; of an SQLite file, its name."""
        url = self.engine.url
        name = (url.database or "").replace("\\", "/").rpartition("/")[2]
        host = url.host or "localhost"
        return [Server(url.get_backend_name(), f"{host}:{url.port}" if url.port else host, f"/{name}" if name else "")]

    def address(self, topic: str) -> Address:
        """Give the table of events, and the topic that rows have in it."""
        return Address(f"{self.tables.event.fullname}/{check_name('topic', topic)}")

    # -- publishing ------------------------------------------------------------------------------------------------

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Write the events and commit."""
        if not envelopes:
            return
        rows = [(one.id, one.topic, one.encode(), None if one.key is None else lane_of(one.key)) for one in envelopes]
        async with connected(self.engine) as connection:
            await self._sql.publish(connection, rows)
        self.connection_state.restored()

    # -- consuming -------------------------------------------------------------------------------------------------

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event of the topics until cancelled."""
        check_name("instance", instance)
        await self.add_service(service, topics)
        run = (service, instance, tuple(topics), handle, limit)
        await Consumer(self._known, self._single, self.connection_state, self.lease, *run).run()

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Hear each event of these topics by reading the table of events, of which nothing is claimed.

        On PostgreSQL an event whose transaction is committed after that of a later one is heard up to a second later.
        """
        names = [check_name("topic", topic) for topic in topics]
        wake = asyncio.Event()
        attempts = Attempts(self.connection_state)
        heard = Heard(self.engine, self.tables.event, names, hear)
        is_heard = False
        async with listening(self.engine, self._sql.channel, wake.set, self.connection_state):
            while True:
                async with attempts:
                    if not is_heard:
                        await heard.begin()
                        attempts.succeeded()
                        begun()
                    wake.clear()
                    is_heard = False  # until it is read
                    await heard.read()
                    is_heard = True
                    attempts.succeeded()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(POLL):
                            await wake.wait()

    def inbox(self) -> SQLAlchemyInbox:
        """Give an inbox in the same database."""
        return SQLAlchemyInbox(self.engine, schema=self.tables.metadata.schema)
