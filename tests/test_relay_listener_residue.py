"""A process that is killed while it listens leaves nothing with the engine: no consumer, queue, row, key or session."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import World, require, world
from sqlalchemy import func, inspect, select, text

from asignals.relay import Envelope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = [pytest.mark.anyio, pytest.mark.once, pytest.mark.slow]

PROMISED = 60.0  # seconds after which nothing may be left
ENGINES = ["sqlite", "postgres", "jetstream", "redis", "rabbitmq", "kafka"]
CLIENT = f"killed{os.getpid()}"

LISTENER = """
import asyncio, json, sys
from asignals import Signal
from asignals.relay import Relay, engine_from_url

url, options = json.loads(sys.argv[1])
heard = Signal(["n"])
relay = Relay(engine_from_url(url, **options), "web", instance="killed")
relay.receive(heard, "order", broadcast=True)
heard.connect(lambda n, **_: print("heard", flush=True), weak=False)

async def main():
    async with relay:
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(params=ENGINES)
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world of its own on every engine."""
    async with world(request.param, tmp_path) as made:
        yield made


def address_of(name: str, transport: Any) -> tuple[str, dict[str, Any]]:
    """Say how another process makes the same engine; where the server shows names of clients, it has ours."""
    if name == "sqlite":
        return str(transport.engine.url), {}
    if name == "postgres":
        url = f"{require('postgres')}?application_name={CLIENT}".replace("+asyncpg", "+psycopg")
        return url, {"schema": transport.tables.metadata.schema}
    if name == "jetstream":
        return require("nats"), {"stream": transport.stream}
    if name == "redis":
        return require("redis"), {"prefix": transport._connection.keys.base.strip("{}"), "client_name": CLIENT}
    if name == "rabbitmq":
        return require("rabbitmq"), {"name": transport.name}
    return f"kafka://{transport._clients.servers}", {"name": transport.name, "log_level": 0, "client_id": CLIENT}


async def test_a_killed_listener_leaves_nothing_behind(made: World) -> None:
    """What the engine keeps is the same as before it came, but for the events themselves; and the engine goes on."""
    transport = made.open()
    if made.name != "kafka":
        await transport.init()
    await transport.publish_many([event()])
    look = LOOK[made.name]
    before = await look(transport)
    listener = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", LISTENER, json.dumps(address_of(made.name, transport))),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert listener.stdout is not None
    try:
        hearing = asyncio.create_task(listener.stdout.readline())
        async with asyncio.timeout(60):
            while not hearing.done():
                await transport.publish_many([event()])
                await asyncio.wait([hearing], timeout=0.1)
        assert hearing.result() == b"heard\n"
        if made.name in SEEN:
            assert await look(transport) != before, "so a listener can be seen"
    finally:
        listener.kill()
        await listener.wait()
    async with asyncio.timeout(PROMISED):
        while await look(transport) != before:  # noqa: ASYNC110  what is waited for happens in a server
            await asyncio.sleep(0.1)
    await transport.publish_many([event()])


def event() -> Envelope:
    return Envelope("order", b'{"n":1}', origin="shop/one")


SEEN = ("postgres", "redis", "rabbitmq")
"""Engines that show a listener while it lives."""


async def rows(transport: Any) -> dict[str, int]:
    """Count the rows of each table, but for the events'."""
    metadata = transport.tables.metadata
    async with transport.engine.connect() as connection:
        there = await connection.run_sync(lambda made: inspect(made).get_table_names(schema=metadata.schema))
        found = {
            table.name: (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for table in metadata.sorted_tables
            if table.name in there and table.name != "asignals_event"
        }
        assert found
        if transport.engine.dialect.name == "postgresql":
            query = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :name")
            found["sessions"] = (await connection.execute(query, {"name": CLIENT})).scalar_one()
    return found


async def consumers(transport: Any) -> dict[str, list[str]]:
    """Name the streams, with their consumers."""
    manager = (await transport._connection.open()).jsm()
    names = [info.config.name for info in await manager.streams_info() if transport.stream in info.config.name]
    return {name: [each.name for each in await manager.consumers_info(name)] for name in names}


async def keys(transport: Any) -> dict[str, Any]:
    """Name the keys, but for those by which repeated events are known, with the groups of streams; and the clients."""
    client = transport._connection.client()
    found: dict[str, Any] = {"clients": sum(each["name"] == CLIENT for each in await client.client_list())}
    async for key in client.scan_iter(f"{transport._connection.keys.base}:*", count=1000):
        kind = (await client.type(key)).decode()
        if await client.ttl(key) < 0 or kind != "string":
            found[key.decode()] = await client.xinfo_groups(key) if kind == "stream" else kind
    return found


async def is_unrouted(transport: Any) -> bool:
    """Whether an event goes where those go that nobody receives: a queue of a listener would take it."""
    unrouted = f"{transport.name}.unrouted"
    before = await transport._queues.count(unrouted)
    await transport.publish_many([event()])
    async with asyncio.timeout(60):
        return bool(await transport._queues.count(unrouted) != before)


async def groups(transport: Any) -> Any:
    """Look for offsets that a group has committed; a listener is in none, and the mock cluster lists no groups."""
    from confluent_kafka import TopicPartition

    def committed(consumer: Any) -> list[int]:
        metadata = consumer.list_topics(timeout=10).topics
        return sorted(
            place.offset
            for name in metadata
            for place in consumer.committed([TopicPartition(name, number) for number in metadata[name].partitions])
        )

    return await transport._clients.with_consumer("web", committed)


LOOK: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "sqlite": rows,
    "postgres": rows,
    "jetstream": consumers,
    "redis": keys,
    "rabbitmq": is_unrouted,
    "kafka": groups,
}
