"""What the outbox, the inbox and the `Database` transport share: engines, dialects, clocks, and hearing of new rows."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from asignals._to_the_end import to_the_end
from asignals.relay._cancel import end
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._tables import Tables

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy import Table
    from sqlalchemy.pool import PoolProxiedConnection

_CONNECT: Final = 10  # seconds that connecting may take; the drivers' own limits are a minute or none
_CONNECT_ARGUMENTS: Final = {"asyncpg": "timeout", "psycopg": "connect_timeout"}
_KEEPALIVE: Final = 10.0  # seconds after which a silent listening connection is asked whether it still lives
_CHANNEL = re.compile(r"[^a-z0-9_]")

PG_NOW: Final = "extract(epoch from clock_timestamp())::double precision"
# In the FROM of a statement: its transaction commits without waiting for the disk. For what is only done again when a
# server that loses its power forgets it, as taking and acknowledging are.
PG_NO_WAIT: Final = "set_config('synchronous_commit', 'off', true) AS no_wait"


class Stored:
    """What is kept in tables: the engine, made here or given, and the tables."""

    def __init__(self, database: str | AsyncEngine, schema: str | None) -> None:
        self.engine: AsyncEngine
        self.engine, self._owns_engine = as_engine(database)
        # For single statements, which PostgreSQL takes in one round trip instead of three.
        self._single: AsyncEngine = self.engine
        if is_postgres(self.engine):
            self._single = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.tables: Tables = Tables(schema)

    async def init(self) -> None:
        """Create the tables that are missing."""
        async with begun(self.engine) as connection:
            await connection.run_sync(self.tables.metadata.create_all)

    async def aclose(self) -> None:
        """Close the connections, if the engine was made here."""
        if self._owns_engine:
            await self.engine.dispose()


def as_engine(database: str | AsyncEngine) -> tuple[AsyncEngine, bool]:
    """Give an engine, and whether it was made here; raises `ValueError` for dialects that are not supported."""
    made = isinstance(database, str)
    engine = _made(database) if isinstance(database, str) else database
    if engine.dialect.name not in ("postgresql", "sqlite"):
        msg = f"the relay knows PostgreSQL and SQLite, not {engine.dialect.name}"
        raise ValueError(msg)
    if engine.dialect.name == "sqlite":
        if engine.url.database in (None, "", ":memory:"):
            msg = (
                "the relay needs a SQLite file: an in-memory database has one connection, and no other process sees it"
            )
            raise ValueError(msg)
        if made:
            event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    return engine, made


_DRIVERS: Final = {  # for URLs that name none, the first that is installed
    "postgresql": ("asyncpg", "psycopg"),
    "postgres": ("asyncpg", "psycopg"),
    "sqlite": ("aiosqlite",),
}


def _made(database: str) -> AsyncEngine:
    scheme, _, rest = database.partition("://")
    if drivers := _DRIVERS.get(scheme):
        driver = next((name for name in drivers if find_spec(name) is not None), drivers[0])
        database = f"{'sqlite' if scheme == 'sqlite' else 'postgresql'}+{driver}://{rest}"
    url = make_url(database)
    argument = _CONNECT_ARGUMENTS.get(url.get_driver_name())
    is_ours = argument is not None and argument not in url.query
    return create_async_engine(url, connect_args={argument: _CONNECT} if is_ours else {})


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # WAL: readers and the writer do not block each other. NORMAL: nothing is lost when the process dies; the last
    # commits may be when the machine loses power.
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()


@asynccontextmanager
async def connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """`engine.connect()`, whose opening and closing no cancellation cuts short: drivers leave half-open ones behind."""
    connection = engine.connect()
    try:
        await to_the_end(connection.start())
        yield connection
    finally:
        if connection.sync_connection is not None:
            await to_the_end(connection.close())


@asynccontextmanager
async def begun(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """`engine.begin()` by way of `connected`."""
    async with connected(engine) as connection, connection.begin():
        yield connection


def is_postgres(engine: AsyncEngine) -> bool:
    """Tell the two dialects apart."""
    return engine.dialect.name == "postgresql"


def quoted(engine: AsyncEngine, table: Table) -> str:
    """Write a table's name for SQL text; follows the engine's `schema_translate_map`."""
    mapping = engine.get_execution_options().get("schema_translate_map") or {}
    preparer = engine.dialect.identifier_preparer
    schema = mapping.get(table.schema, table.schema)
    name = preparer.quote(table.name)
    return f"{preparer.quote_schema(schema)}.{name}" if schema else name


def channel_of(name: str) -> str:
    """Make a NOTIFY channel of a quoted table name: an identifier that needs no quotes, unique by checksum."""
    plain = _CHANNEL.sub("_", name.lower())[:40].strip("_")
    return f"{plain}_{zlib.crc32(name.encode()):08x}"


def lock_of(name: str) -> int:
    """Make an advisory lock's number of a name."""
    return (0x61736967 << 32 | zlib.crc32(name.encode())) - (1 << 63)


def now() -> float:
    """Seconds since the epoch, for SQLite, where all processes share this machine's clock."""
    return time.time()


async def announce(connection: PoolProxiedConnection, channel: str) -> None:
    """Have those who listen look, by a connection that has just committed. A hint: it is lost rather than raising.

    It is no part of the transaction, although that would be one round trip less: PostgreSQL lets transactions that
    notify commit one at a time, each with its own fsync, however many there are.
    """
    driver: Any = connection.driver_connection
    with suppress(Exception):
        if not hasattr(driver, "set_autocommit"):  # asyncpg
            await driver.execute(f"NOTIFY {channel}")
            return
        before = driver.autocommit
        await driver.set_autocommit(True)
        try:
            await driver.execute(f"NOTIFY {channel}")
        finally:
            await driver.set_autocommit(before)


@asynccontextmanager
async def listening(
    engine: AsyncEngine, channel: str, wake: Callable[[], object], state: ConnectionState
) -> AsyncIterator[None]:
    """Call `wake` when another process may have committed something, for as long as the block runs.

    PostgreSQL: LISTEN (asyncpg, psycopg). SQLite: the file's change counter, looked at 50 times a second. It is a hint:
    whoever uses it also looks by itself from time to time.
    """
    task = asyncio.get_running_loop().create_task(_listen_for_ever(engine, channel, wake, state))
    try:
        yield
    finally:
        await end([task])


async def _listen_for_ever(
    engine: AsyncEngine, channel: str, wake: Callable[[], object], state: ConnectionState
) -> None:
    attempts = Attempts(state, is_proof=False)
    listen = _listen_sqlite if not is_postgres(engine) else _listen_postgres
    while True:
        async with attempts, connected(engine) as connection:
            attempts.succeeded()
            await listen(connection, channel, wake)


async def _listen_sqlite(connection: AsyncConnection, _channel: str, wake: Callable[[], object]) -> None:
    seen = None
    while True:
        version = (await connection.exec_driver_sql("PRAGMA data_version")).scalar()
        await connection.rollback()
        if version != seen:
            seen = version
            wake()
        await asyncio.sleep(0.02)


async def _listen_postgres(connection: AsyncConnection, channel: str, wake: Callable[[], object]) -> None:
    connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
    # A connection that listens must not go back to the pool, where its notifications would reach nobody.
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    try:
        if connection.dialect.driver == "asyncpg":
            await driver.add_listener(channel, lambda *_: wake())
        else:
            await connection.execute(text(f"LISTEN {channel}"))
        wake()
        while True:
            if connection.dialect.driver == "asyncpg":
                await asyncio.sleep(_KEEPALIVE)
            else:
                async for _ in driver.notifies(timeout=_KEEPALIVE):
                    wake()
            await connection.execute(text("SELECT 1"))
    finally:
        await connection.invalidate()
