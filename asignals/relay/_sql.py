"""What the outbox, the inbox and the `Database` transport share: engines, dialects, clocks, and hearing of new rows."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from contextlib import asynccontextmanager, nullcontext, suppress
from importlib.util import find_spec
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

import anyio
from sqlalchemy import event, inspect, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateIndex, CreateTable

from asignals._to_the_end import to_the_end
from asignals.relay._cancel import end, limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._tables import Tables, tables_of
from asignals.relay._transport import SchemaError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from sqlalchemy import Connection, Table
    from sqlalchemy.pool import Pool, PoolProxiedConnection

T = TypeVar("T")

LIMIT: Final = 8.0  # seconds that a transaction of a few statements may take; then its connection is thrown away
_CONNECT: Final = 10  # seconds that connecting may take at most in a driver; `LIMIT` ends the wait for it before that
_CLOSE: Final = 2.0  # seconds that closing may take
_INIT: Final = 60.0  # seconds that creating tables may take, with other processes that do the same
_CONNECT_ARGUMENTS: Final = {"asyncpg": "timeout", "psycopg": "connect_timeout"}
_KEEPALIVE: Final = 5.0  # seconds after which a silent listening connection is asked whether it still lives
_NO_TABLE = re.compile(r"""(?:no such table: |relation ["'])([\w.]+)""")
_CHANNEL = re.compile(r"[^a-z0-9_]")

PG_NOW: Final = "extract(epoch from clock_timestamp())::double precision"
# In the FROM of a statement: its transaction commits without waiting for the disk. For what is only done again when a
# server that loses its power forgets it, as taking and acknowledging are.
PG_NO_WAIT: Final = "set_config('synchronous_commit', 'off', true) AS no_wait"

IDLE: Final = 12.0  # seconds
# Beside a lock that a transaction takes: when we are silent for so long in it, as we are cut off, the server ends it.
# Else it would hold its locks for hours, until the server finds out by itself.
PG_IDLE: Final = f"set_config('idle_in_transaction_session_timeout', '{int(IDLE * 1000)}', true)"


class Stored:
    """What is kept in tables: the engine, made here or given, and the tables.

    `parts` says which: `"outbox"`, `"inbox"`, `"engine"`.
    """

    def __init__(self, database: str | AsyncEngine, schema: str | None, parts: Collection[str]) -> None:
        self.engine: AsyncEngine
        self.engine, self._owns_engine = as_engine(database)
        # For single statements, which PostgreSQL takes in one round trip instead of three.
        self._single: AsyncEngine = self.engine
        if is_postgres(self.engine):
            self._single = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.tables: Tables = Tables(schema)
        self._used = tables_of(self.tables, parts)

    async def init(self) -> None:
        """Create the tables that are missing; any number of processes may do so at once."""
        async with begun(self.engine, _INIT) as connection:
            if is_postgres(self.engine):
                lock = lock_of(name_of(self.engine))
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({lock})"))
            for table in self._used:
                await connection.execute(CreateTable(table, if_not_exists=True))
                for index in sorted(table.indexes, key=attrgetter("name")):
                    await connection.execute(CreateIndex(index, if_not_exists=True))

    async def check(self) -> None:
        """Raise `SchemaError` when a table is missing, and what the driver raises when the database is out of reach."""
        async with connected(self.engine) as connection:
            missing = await connection.run_sync(self._missing)
        if missing:
            raise SchemaError(name_of(self.engine), missing)

    def _missing(self, connection: Connection) -> list[str]:
        look = inspect(connection)
        schemas = self.engine.get_execution_options().get("schema_translate_map") or {}
        return [
            table.name
            for table in self._used
            if not look.has_table(table.name, schema=schemas.get(table.schema, table.schema))
        ]

    async def aclose(self) -> None:
        """Close the connections, if the engine was made here."""
        if self._owns_engine:
            with anyio.move_on_after(_CLOSE * 2):  # a half-open one would never be closed
                await self.engine.dispose()


def as_engine(database: str | AsyncEngine) -> tuple[AsyncEngine, bool]:
    """Give an engine, and whether it was made here; raises `ValueError` for dialects that are not supported."""
    made = isinstance(database, str)
    engine = _made(database) if isinstance(database, str) else database
    if engine.dialect.name not in ("postgresql", "sqlite"):
        msg = f"the relay keeps its tables in PostgreSQL or SQLite, not in {engine.dialect.name}"
        raise ValueError(msg)
    if engine.dialect.name == "sqlite":
        if engine.url.database in (None, "", ":memory:"):
            msg = (
                "the relay needs a SQLite file: an in-memory database has one connection, and no other process sees it"
            )
            raise ValueError(msg)
        if made:
            event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    elif not event.contains(engine.sync_engine, "connect", _note_when_made):
        event.listen(engine.sync_engine, "connect", _note_when_made)
    return engine, made


def name_of(engine: AsyncEngine) -> str:
    """Say which database it is."""
    url = engine.url
    where = f"{url.host}:{url.port or 5432}/" if url.host else ""
    return f"{engine.dialect.name} ({where}{url.database})"


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
    cursor.execute("PRAGMA busy_timeout=10000")
    # WAL: readers and the writer do not block each other. NORMAL: nothing is lost when the process dies; the last
    # commits may be when the machine loses power.
    _turn_on_wal(cursor)
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()


def _turn_on_wal(cursor: Any) -> None:
    """Have the file in WAL mode. Turning it on needs the file alone, and SQLite does not wait for that by itself."""
    end = time.monotonic() + _CONNECT
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.005)
        else:
            return


def _note_when_made(_connection: Any, record: Any) -> None:
    record.info[_MADE] = time.monotonic()


@asynccontextmanager
async def connected(engine: AsyncEngine, seconds: float | None = LIMIT) -> AsyncIterator[AsyncConnection]:
    """`engine.connect()`, with a limit for the block: a database that is connected and silent stops nothing for ever.

    After `seconds` the block is cancelled, its connection thrown away, and with it all that were made before; raises
    `TimeoutError`. Opening and closing are cut short by no cancellation: drivers leave half-open ones behind. Raises
    `SchemaError` where a table is missing. On SQLite, whose file answers, the limit is that for its lock.
    """
    seconds = seconds if is_postgres(engine) else None
    opened: list[AsyncConnection] = []
    is_silent = False
    try:
        await to_the_end(_open(engine, opened))
        connection = opened[0]
        with anyio.move_on_after(seconds) if seconds is not None else nullcontext() as scope:
            yield connection
        if scope is not None and scope.cancelled_caught:
            raise _silent(engine, seconds)
    except TimeoutError:
        is_silent = True
        raise
    except DBAPIError as error:
        if is_missing_table(error):
            raise SchemaError(name_of(engine), [_missing_table(error)]) from error
        raise
    finally:
        if opened:  # also when we were cancelled meanwhile
            await to_the_end(_closed(opened[0], is_silent=is_silent))


async def answered(engine: AsyncEngine, call: Awaitable[T], seconds: float = LIMIT) -> T:
    """Await one call of a connection, with a limit of its own inside of that of the whole block."""
    try:
        return await limited(call, seconds)
    except TimeoutError as error:
        raise _silent(engine, seconds) from error


def _silent(engine: AsyncEngine, seconds: float | None) -> TimeoutError:
    """Trust no connection any more that was made until now, and say who did not answer."""
    _TROUBLES[engine.sync_engine.pool] = time.monotonic()
    return TimeoutError(f"{name_of(engine)} did not answer within {seconds:g} s; its connections are thrown away")


@asynccontextmanager
async def begun(engine: AsyncEngine, seconds: float | None = LIMIT) -> AsyncIterator[AsyncConnection]:
    """`engine.begin()` by way of `connected`: the limit holds for the commit, too."""
    async with connected(engine, seconds) as connection, connection.begin():
        yield connection


# When a connection of a pool last did not answer: what was made before that is not trusted any more.
_TROUBLES: WeakKeyDictionary[Pool, float] = WeakKeyDictionary()
_MADE: Final = "asignals_made"


async def _open(engine: AsyncEngine, opened: list[AsyncConnection]) -> None:
    opened.append(await _opened(engine))


async def _opened(engine: AsyncEngine) -> AsyncConnection:
    while True:
        connection = engine.connect()
        # One cancellation first, after which the pool closes what it has begun; then again and again.
        with anyio.move_on_after(LIMIT + _CLOSE), suppress(TimeoutError):
            async with asyncio.timeout(LIMIT):
                await connection.start()
        if connection.sync_connection is None:
            msg = f"{name_of(engine)} could not be connected to within {LIMIT:g} s"
            raise TimeoutError(msg)
        trouble = _TROUBLES.get(engine.sync_engine.pool)
        if trouble is None or connection.sync_connection.info.get(_MADE, 0.0) > trouble:
            return connection
        await throw_away(connection)


async def _closed(connection: AsyncConnection, *, is_silent: bool) -> None:
    """Give it back to the pool; one that is silent, or takes too long for that, goes away."""
    if not is_postgres(connection.engine):
        await connection.close()
        return
    if not is_silent:
        with anyio.move_on_after(_CLOSE):
            await connection.close()
            return
    await throw_away(connection)


async def throw_away(connection: AsyncConnection) -> None:
    """End a connection without a word to the server, which may not answer."""
    with anyio.move_on_after(_CLOSE), suppress(Exception):
        if not connection.invalidated:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            if hasattr(driver, "terminate"):  # asyncpg
                driver.terminate()
            else:
                await driver.close()
            await connection.invalidate()
    with anyio.move_on_after(_CLOSE), suppress(Exception):
        await connection.close()


def is_missing_table(error: DBAPIError) -> bool:
    """Whether a statement failed because a table is not there."""
    return getattr(error.orig, "sqlstate", None) == "42P01" or "no such table" in str(error.orig)


def _missing_table(error: DBAPIError) -> str:
    found = _NO_TABLE.search(str(error.orig))
    return found[1] if found else "one that it needs"


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
    with suppress(Exception):
        await limited(_notify(connection.driver_connection, channel), _CLOSE)


async def _notify(driver: Any, channel: str) -> None:
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
        async with attempts, connected(engine, None) as connection:
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
    # A connection that listens does not go back to the pool, where its notifications would reach nobody.
    try:
        await limited(connection.execution_options(isolation_level="AUTOCOMMIT"), LIMIT)
        driver: Any = (await connection.get_raw_connection()).driver_connection
        is_asyncpg = connection.dialect.driver == "asyncpg"
        if is_asyncpg:
            await limited(driver.add_listener(channel, lambda *_: wake()), LIMIT)
        else:
            await limited(connection.execute(text(f"LISTEN {channel}")), LIMIT)
        wake()
        while True:
            if is_asyncpg:
                await asyncio.sleep(_KEEPALIVE)
            else:
                async for _ in driver.notifies(timeout=_KEEPALIVE):
                    wake()
            await limited(connection.execute(text("SELECT 1")), LIMIT)
    finally:
        await to_the_end(throw_away(connection))
