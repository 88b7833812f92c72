"""What the outbox, the inbox and the `Database` engine share: an engine of SQLAlchemy, and tables in its database."""

from __future__ import annotations

import time
from importlib.util import find_spec
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import anyio
from sqlalchemy import Connection, event, inspect, make_url, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    create_async_engine,
)
from sqlalchemy.pool import QueuePool, StaticPool
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from asignals.relay._connected import (
    CLOSE,
    OWN_LOOP,
    answered_in,
    at_level,
    begun,
    connected,
    enter_loop,
    note_when_made,
)
from asignals.relay._dialect import (
    channel_of,
    is_autocommit,
    is_missing_table,
    is_mysql,
    is_postgres,
    is_sqlite,
    level_of,
    lock_of,
    name_of,
    quoted,
)
from asignals.relay._loops import OwnLoop
from asignals.relay._mysql import check_version, create_missing, locked
from asignals.relay._settings import shown
from asignals.relay._tables import Tables, tables_of
from asignals.relay._transport import SchemaError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sqlalchemy import Column, CursorResult, Table
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import Pool

AnySession: TypeAlias = AsyncSession | async_scoped_session[Any] | AsyncConnection
"""In whose transaction something may be written."""

_CONNECT: Final = 10  # seconds that connecting may take at most in a driver; `LIMIT` ends the wait for it before that
_INIT: Final = 60.0  # seconds that creating tables may take, with other processes that do the same
_CONNECT_ARGUMENTS: Final = {
    "asyncpg": "timeout",
    **dict.fromkeys(("psycopg", "aiomysql", "asyncmy"), "connect_timeout"),
}


class Stored:
    """What is kept in tables: the engine, made here or given, and the tables.

    `parts` says which: `"outbox"`, `"inbox"`, `"engine"`.
    """

    def __init__(self, database: str | AsyncEngine, schema: str | None, parts: Collection[str]) -> None:
        self.engine: AsyncEngine
        self.engine, self._owns_engine = as_engine(database)
        if schema is not None and not (isinstance(schema, str) and schema and schema.isprintable()):
            raise ValueError(f"schema must be the name of a database schema, not {shown(schema)}")
        if "engine" in parts and is_mysql(self.engine):
            msg = (
                "the engine Database carries events in PostgreSQL or SQLite, not in MariaDB or MySQL: these keep the "
                "outbox and the inbox beside another engine, such as RabbitMQ(…)"
            )
            raise ValueError(msg)
        if not self._owns_engine:
            self.engine = _with_transactions(self.engine)
        # For single statements, which PostgreSQL takes in one round trip instead of three.
        self._single: AsyncEngine = self.engine
        # For transactions that lock rows: else MariaDB locks the gaps between them, and others cannot insert there.
        self._locking: AsyncEngine = self.engine
        if is_postgres(self.engine):
            self._single = at_level(self.engine, "AUTOCOMMIT")
        elif is_mysql(self.engine) and not self._owns_engine:
            self._locking = at_level(self.engine, "READ COMMITTED")
        self.database_name: str = name_of(self.engine)
        self.tables: Tables = Tables(schema)
        self._used = tables_of(self.tables, parts)
        self._writing = {table: update(table) for table in self._used}

    def check_pool_for(self, transport: object) -> None:
        """Raise `ValueError` where an engine publishes by the one connection on which the outbox waits for it."""
        pool = self.engine.sync_engine.pool
        if isinstance(transport, Stored) and transport.engine.sync_engine.pool is pool and _is_of_one(pool):
            raise ValueError(
                f"the outbox in {name_of(self.engine)} keeps a connection while the engine Database publishes by"
                f" another, and their pool has one only: give it pool_size=2 or more, or give one of them a URL"
            )

    async def init(self) -> None:
        """Create the tables and columns that are missing; any number of processes may do so at once."""
        if is_mysql(self.engine):
            await self._init_mysql()
            return
        async with begun(self.engine, _INIT) as connection:
            if is_postgres(self.engine):
                lock = lock_of(name_of(self.engine))
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({lock})"))
            for table in self._used:
                await connection.execute(CreateTable(table, if_not_exists=True))
                for index in sorted(table.indexes, key=attrgetter("name")):
                    await connection.execute(CreateIndex(index, if_not_exists=True))
            await connection.run_sync(self._add_columns)

    async def _init_mysql(self) -> None:
        lock = channel_of(name_of(self.engine))
        async with connected(self.engine, _INIT) as connection, locked(connection, lock, int(_INIT)):
            if not (await connection.execute(text("SELECT @asignals_turn"))).scalar():
                raise TimeoutError(
                    f"another process creates tables in {name_of(self.engine)}, for more than {_INIT:g} s"
                )
            await connection.run_sync(self._create_missing)

    def _create_missing(self, connection: Connection) -> None:
        create_missing(connection, [(table, self._schema_of(table)) for table in self._used])
        self._add_columns(connection)

    async def check(self) -> None:
        """Raise `SchemaError` for a missing table or column, and what the driver raises for a database out of reach.

        Raises `RuntimeError` for a server that is too old.
        """
        async with connected(self.engine) as connection:
            if is_mysql(self.engine):
                check_version(connection.dialect)
            missing = await connection.run_sync(self._missing)
        if missing:
            raise SchemaError(name_of(self.engine), missing)

    async def execute_in(
        self, session: AnySession, table: Table, statement: Any, row: dict[str, Any] | None = None
    ) -> CursorResult[Any]:
        """Execute a statement that writes to a table, in the transaction of a session.

        A connection that is silent is not waited for without a limit. Raises `RuntimeError` where there are no
        transactions, and `SchemaError` where the table is missing.
        """

        def execute(by: Session | Connection, begin: Callable[[], None]) -> CursorResult[Any]:
            # The connection, not the session: the row is no business of the unit of work, and nothing is flushed early.
            # A session with several engines may read from another one than it writes to.
            which = {"clause": self._writing[table]}
            connection = by if isinstance(by, Connection) else by.connection(bind_arguments=which)
            self.check_transactions(connection)
            begin()
            return connection.execute(statement, row, execution_options=self._translating(connection))

        within = session() if isinstance(session, async_scoped_session) else session
        try:
            return await answered_in(self.engine, within.run_sync, execute)
        except DBAPIError as error:
            if is_missing_table(error):
                raise SchemaError(name_of(self.engine), [table.name]) from error
            raise

    def _translating(self, connection: Connection) -> dict[str, Any]:
        """Give the option with which a session of another `schema_translate_map` writes where this engine reads."""
        ours = self.engine.get_execution_options().get("schema_translate_map") or {}
        theirs = connection.get_execution_options().get("schema_translate_map") or {}
        schema = self.tables.metadata.schema
        return {} if theirs.get(schema, schema) == ours.get(schema, schema) else {"schema_translate_map": ours}

    def check_transactions(self, connection: Connection) -> None:
        """Raise `RuntimeError` for a session's connection that has none."""
        if is_autocommit(connection):
            raise RuntimeError(
                f"the session's connection to {name_of(connection.engine)} is in AUTOCOMMIT, so nothing that is "
                f"written there is part of a transaction: give its engine another isolation_level"
            )

    def _missing(self, connection: Connection) -> list[str]:
        look = inspect(connection)
        tables = [table.name for table in self._used if not look.has_table(table.name, schema=self._schema_of(table))]
        columns = self._missing_columns(connection) if not tables else []
        return tables + [f"{column.table.name}.{column.name}" for column in columns]

    def _missing_columns(self, connection: Connection) -> list[Column[Any]]:
        """Give the columns that tables of an earlier release do not have."""
        look, found = inspect(connection), []
        for table in self._used:
            there = {column["name"] for column in look.get_columns(table.name, schema=self._schema_of(table))}
            found += [column for column in table.columns if column.name not in there]
        return found

    def _add_columns(self, connection: Connection) -> None:
        for column in self._missing_columns(connection):
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.execute(text(f"ALTER TABLE {quoted(self.engine, column.table)} ADD COLUMN {definition}"))

    def _schema_of(self, table: Table) -> str | None:
        schemas = self.engine.get_execution_options().get("schema_translate_map") or {}
        found: str | None = schemas.get(table.schema, table.schema)
        return found

    async def aclose(self) -> None:
        """Close the connections, if the engine was made here."""
        if self._owns_engine:
            enter_loop(self.engine)
            with anyio.move_on_after(CLOSE * 2):  # a half-open one would never be closed
                await self.engine.dispose()


def _with_transactions(engine: AsyncEngine) -> AsyncEngine:
    """Give an engine that is not in AUTOCOMMIT, where rows would be gone before they are published.

    PostgreSQL's is in READ COMMITTED: above that it undoes one of two transactions that take rows.
    """
    if is_postgres(engine):
        return at_level(engine, "READ COMMITTED")
    if level_of(engine.sync_engine) == "AUTOCOMMIT":
        return at_level(engine, "SERIALIZABLE" if is_sqlite(engine) else "READ COMMITTED")
    return engine


def as_engine(database: str | AsyncEngine) -> tuple[AsyncEngine, bool]:
    """Give an engine, and whether it was made here; raises `ValueError` for dialects that are not supported."""
    made = isinstance(database, str)
    if not made and not isinstance(database, AsyncEngine):
        wanted = "a URL, or an engine that create_async_engine has made"
        raise TypeError(f"a database is {wanted}, not {shown(database)}")
    engine = _made(database) if isinstance(database, str) else database
    if not (is_postgres(engine) or is_sqlite(engine) or is_mysql(engine)):
        raise ValueError(
            f"the relay keeps its tables in PostgreSQL, SQLite, MariaDB or MySQL, not in {engine.dialect.name}"
        )
    if is_sqlite(engine):
        if engine.url.database in (None, "", ":memory:"):
            msg = (
                "the relay needs a SQLite file: an in-memory database has one connection, and no other process sees it"
            )
            raise ValueError(msg)
        if not event.contains(engine.sync_engine, "connect", _stop_once):
            event.listen(engine.sync_engine, "connect", _stop_once)
        if made:
            event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    elif not event.contains(engine.sync_engine, "connect", note_when_made):
        event.listen(engine.sync_engine, "connect", note_when_made)
    if isinstance(engine.sync_engine.pool, StaticPool):
        raise ValueError(  # noqa: TRY004  the engine is one, and made in an unfit way
            f"the engine of {name_of(engine)} has one connection for all (StaticPool), on which the relay's"
            f" transactions would mix with others: make it with another poolclass"
        )
    return engine, made


def _is_of_one(pool: Pool) -> bool:
    """Whether a pool has one connection only; those that are not bounded tell no size."""
    return isinstance(pool, QueuePool) and pool.size() == 1 and pool._max_overflow == 0


_DRIVERS: Final = {  # for URLs that name none, the first that is installed
    "postgresql": ("asyncpg", "psycopg"),
    "postgres": ("asyncpg", "psycopg"),
    "sqlite": ("aiosqlite",),
    "mariadb": ("aiomysql", "asyncmy"),
    "mysql": ("aiomysql", "asyncmy"),
}


def _made(database: str) -> AsyncEngine:
    scheme, _, rest = database.partition("://")
    if drivers := _DRIVERS.get(scheme):
        driver = next((name for name in drivers if find_spec(name) is not None), drivers[0])
        database = f"{'postgresql' if scheme == 'postgres' else scheme}+{driver}://{rest}"
    url = make_url(database)
    argument = _CONNECT_ARGUMENTS.get(url.get_driver_name())
    is_ours = argument is not None and argument not in url.query
    options: dict[str, Any] = {"connect_args": {argument: _CONNECT}} if is_ours else {}
    if url.get_backend_name() in ("mysql", "mariadb"):  # see `Stored`; its server ends connections that are long idle
        options |= {"isolation_level": "READ COMMITTED", "pool_recycle": 3_600}
    if url.get_backend_name() != "sqlite":  # whose driver works in any loop
        options["execution_options"] = {OWN_LOOP: OwnLoop()}
    return create_async_engine(url, **options)


def _stop_once(connection: Any, _record: object) -> None:
    """Have aiosqlite's thread stopped once only; a listener of the pool's event `connect`.

    A connection that is cancelled twice while it is closed, as SQLAlchemy does with one whose statement was cancelled,
    is stopped twice, and then waits for an answer of the thread that has ended: the event loop could not be left.
    """
    driver = connection.driver_connection
    stop = getattr(driver, "stop", None)  # older ones have none
    if stop is not None:
        driver.stop = lambda: stop() if driver._running else None


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
