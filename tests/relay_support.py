"""What the relay's tests share: reaching servers, and one way to make every engine."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from relay_residue import removed
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

URLS = {
    "postgres": os.environ.get("ASIGNALS_POSTGRES_URL", "postgresql+asyncpg://postgres@127.0.0.1:5432/test"),
    "mariadb": os.environ.get("ASIGNALS_MARIADB_URL", "mariadb://root@127.0.0.1:3306/test"),
    "redis": os.environ.get("ASIGNALS_REDIS_URL", "redis://127.0.0.1:6379/0"),
    "rabbitmq": os.environ.get("ASIGNALS_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/"),
    "nats": os.environ.get("ASIGNALS_NATS_URL", "nats://127.0.0.1:4222"),
}
LEASE = 0.6  # seconds: short, so that tests of lost consumers are


def require(service: str) -> str:
    """Give the URL of a server; skip the test without it, or fail if ASIGNALS_REQUIRE_SERVICES is set."""
    url = URLS[service]
    if service == "postgres" and url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+asyncpg://", 1)
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 5432), timeout=2).close()
    except OSError as error:
        reason = f"no {service} at {parts.hostname}:{parts.port} ({error}); set ASIGNALS_{service.upper()}_URL"
        if os.environ.get("ASIGNALS_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return url


def unique(prefix: str = "t") -> str:
    """Make a name that no other test uses, now or in parallel."""
    return f"{prefix}{os.getpid()}_{secrets.token_hex(4)}"


def free_port() -> int:
    """Find a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def postgres_schema() -> AsyncIterator[tuple[AsyncEngine, str]]:
    """Give an engine whose tables go to a schema that is dropped afterwards, and the schema's name."""
    url = require("postgres")
    schema = unique("s")
    async with removed("postgres", schema):
        engine = create_async_engine(url, pool_size=10, connect_args={"server_settings": {"search_path": schema}})
        async with engine.begin() as connection:
            await connection.execute(text(f"CREATE SCHEMA {schema}"))
        try:
            yield engine, schema
        finally:
            await engine.dispose()


@asynccontextmanager
async def mariadb_database(driver: str = "aiomysql") -> AsyncIterator[AsyncEngine]:
    """Give an engine of a database of MariaDB that is dropped afterwards."""
    url, name = make_url(require("mariadb")).set(drivername=f"mariadb+{driver}"), unique("s")
    async with removed("mariadb", name):
        server = create_async_engine(url)
        async with server.begin() as connection:
            await connection.execute(text(f"CREATE DATABASE {name}"))
        await server.dispose()
        engine = create_async_engine(url.set(database=name), pool_size=10)
        try:
            yield engine
        finally:
            await engine.dispose()


class World:
    """One engine, on which a test may open as many transports as it likes."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.name = name
        self.lease = 0.02 if name in ("memory", "rabbitmq", "kafka") else LEASE  # those go by connections, not by time
        self._make = make
        self._opened: list[Any] = []

    def open(self) -> Any:
        """Open one more transport, as another process would."""
        transport = self._make()
        self._opened.append(transport)
        return transport

    async def close(self) -> None:
        for transport in self._opened:
            if hasattr(transport, "aclose"):
                await transport.aclose()


@asynccontextmanager
async def world(name: str, tmp_path: Path) -> AsyncIterator[World]:
    """Make an engine's world with names of its own, and clean up behind it."""
    async with _WORLDS[name](tmp_path) as made:
        try:
            yield made
        finally:
            await made.close()


async def init(transport: Any) -> None:
    """Create the tables of a database, those of its inbox too."""
    await transport.init()
    await transport.inbox().init()


@asynccontextmanager
async def _memory(_path: Path) -> AsyncIterator[World]:
    from asignals.relay import Memory

    shared = Memory()
    yield World("memory", lambda: shared)


@asynccontextmanager
async def _sqlite(path: Path) -> AsyncIterator[World]:
    from asignals.relay import Database

    made = World("sqlite", lambda: Database(f"sqlite+aiosqlite:///{path}/relay.db", lease=LEASE))
    await init(made.open())
    yield made


@asynccontextmanager
async def _postgres(_path: Path) -> AsyncIterator[World]:
    from asignals.relay import Database

    async with postgres_schema() as (engine, schema):
        made = World("postgres", lambda: Database(engine, schema=schema, lease=LEASE))
        await init(made.open())
        yield made


@asynccontextmanager
async def _psycopg(_path: Path) -> AsyncIterator[World]:
    from asignals.relay import Database

    url = require("postgres").replace("+asyncpg", "+psycopg")
    async with postgres_schema() as (_, schema):
        made = World("psycopg", lambda: Database(url, schema=schema, lease=LEASE))
        await init(made.open())
        try:
            yield made
        finally:
            await made.close()  # before its schema goes


@asynccontextmanager
async def _jetstream(_path: Path) -> AsyncIterator[World]:
    from asignals.relay import JetStream

    url, stream = require("nats"), unique()
    async with removed("nats", stream):
        yield World("jetstream", lambda: JetStream(url, stream=stream, ack_wait=LEASE))


@asynccontextmanager
async def _redis(_path: Path) -> AsyncIterator[World]:
    from asignals.relay import RedisStreams

    url, prefix = require("redis"), unique()
    async with removed("redis", prefix):
        yield World("redis", lambda: RedisStreams(url, prefix=prefix, lease=LEASE))


@asynccontextmanager
async def _rabbitmq(_path: Path) -> AsyncIterator[World]:
    from asignals.relay import RabbitMQ

    url, name = require("rabbitmq"), unique()
    async with removed("rabbitmq", name):
        yield World("rabbitmq", lambda: RabbitMQ(url, name=name))


@asynccontextmanager
async def _kafka(_path: Path) -> AsyncIterator[World]:
    confluent_kafka = pytest.importorskip("confluent_kafka")  # an interpreter may have no wheel of it
    from asignals.relay import Kafka

    quiet, name = {"log_level": 0}, unique()
    cluster = confluent_kafka.Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, **quiet})
    brokers = cluster.list_topics(timeout=10).brokers.values()
    servers = [f"{broker.host}:{broker.port}" for broker in brokers]
    settings = {"heartbeat.interval.ms": 300, "session.timeout.ms": 6000, **quiet}
    yield World("kafka", lambda: Kafka(servers, name=name, **settings))
    del cluster


_WORLDS = {
    "memory": _memory,
    "sqlite": _sqlite,
    "postgres": _postgres,
    "psycopg": _psycopg,
    "jetstream": _jetstream,
    "redis": _redis,
    "rabbitmq": _rabbitmq,
    "kafka": _kafka,
}

ENGINES = [name for name in _WORLDS if name not in ("kafka", "psycopg")]


@pytest.fixture
def on_asyncio() -> tuple[str, dict[str, Any]]:
    """A module's `anyio_backend`: the relay is for asyncio only."""
    return "asyncio", {}


def engine_on(name: str) -> Any:
    """Make a module's fixture `engine`: names of its own on one server."""

    @pytest.fixture
    async def engine(tmp_path: Path) -> AsyncIterator[World]:
        async with world(name, tmp_path) as made:
            yield made

    return engine


def first(*names: str) -> list[Any]:
    """Parameters for what is above the engines, and the same on each: the others are for `--full`."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in [*ENGINES, "kafka"]]


async def until(condition: Callable[[], object], within: float = 60.0) -> None:
    """Wait until something that happens elsewhere has become true."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110  what is waited for happens in servers and other processes
            await asyncio.sleep(0.005)
