"""What differs between the databases that the relay keeps its tables in."""

from __future__ import annotations

import re
import time
import zlib
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.dialects import mysql, postgresql, sqlite

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection, Dialect, Engine, Table
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import AsyncEngine

_NO_TABLE = re.compile(r"""(?:no such table: |relation ["']|Table '(?:[^'.]+\.)?)([\w.]+)""")
_MYSQL: Final = ("mysql", "mariadb")
_CHANNEL = re.compile(r"[^a-z0-9_]")

PG_NOW: Final = "extract(epoch from clock_timestamp())::double precision"
# In the FROM of a statement: its transaction commits without waiting for the disk. For what is only done again when a
# server that loses its power forgets it, as taking and acknowledging are.
PG_NO_WAIT: Final = "set_config('synchronous_commit', 'off', true) AS no_wait"

IDLE: Final = 12.0  # seconds
# Beside a lock that a transaction takes: when we are silent for so long in it, as we are cut off, the server ends it.
# Else it would hold its locks for hours, until the server finds out by itself.
PG_IDLE: Final = f"set_config('idle_in_transaction_session_timeout', '{int(IDLE * 1000)}', true)"


def name_of(engine: AsyncEngine | Engine) -> str:
    """Say which database it is."""
    url = engine.url
    port = url.port or (3306 if engine.dialect.name in _MYSQL else 5432)
    where = f"{url.host}:{port}/" if url.host else ""
    return f"{engine.dialect.name} ({where}{url.database})"


def is_missing_table(error: DBAPIError) -> bool:
    """Whether a statement failed because a table is not there."""
    return "42P01" in _codes(error) or 1146 in _codes(error) or "no such table" in str(error.orig)  # noqa: PLR2004


def is_duplicate(error: DBAPIError) -> bool:
    """Whether MariaDB or MySQL refused a row, as there is one with its key."""
    return 1062 in _codes(error)  # noqa: PLR2004  ER_DUP_ENTRY


def is_undone(error: DBAPIError) -> bool:
    """Whether the database has undone a transaction that may succeed when it is repeated: a deadlock."""
    # 1213 ER_LOCK_DEADLOCK, 1205 ER_LOCK_WAIT_TIMEOUT, 1020 ER_CHECKREAD; deadlock_detected, serialization_failure
    return not _codes(error).isdisjoint((1213, 1205, 1020, "40P01", "40001"))


def is_read_only(error: DBAPIError) -> bool:
    """Whether the server takes no writes: another one leads now, and this connection is still to the one that did."""
    # read_only_sql_transaction; ER_OPTION_PREVENTS_STATEMENT, ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION and
    # ER_READ_ONLY_MODE
    return not _codes(error).isdisjoint(("25006", 1290, 1792, 1836))


def _codes(error: DBAPIError) -> set[object]:
    """Give what a driver says that it is: the SQLSTATE of PostgreSQL, the number of MariaDB."""
    number = next(iter(getattr(error.orig, "args", ())), None)
    return {getattr(error.orig, "sqlstate", None), number if isinstance(number, int) else None}


def missing_table(error: DBAPIError) -> str:
    """Name it."""
    found = _NO_TABLE.search(str(error.orig))
    return found[1] if found else "one that it needs"


def is_postgres(engine: AsyncEngine) -> bool:
    """Whether it is PostgreSQL."""
    return engine.dialect.name == "postgresql"


def is_sqlite(engine: AsyncEngine) -> bool:
    """Whether it is SQLite: a file that always answers, with one writer at a time."""
    return engine.dialect.name == "sqlite"


def is_mysql(engine: AsyncEngine) -> bool:
    """Whether it is MariaDB or MySQL."""
    return engine.dialect.name in _MYSQL


def level_of(made: Engine | Connection) -> str | None:
    """Give the isolation level that an engine or a connection was made with, where it was given one."""
    level: str | None = made.get_execution_options().get("isolation_level", made.dialect._on_connect_isolation_level)
    return level


def is_autocommit(connection: Connection) -> bool:
    """Whether each statement commits by itself, so that there is no transaction to be part of."""
    if level_of(connection) == "AUTOCOMMIT":
        return True
    if connection.dialect.name == "sqlite":  # whose driver may do so: SQLAlchemy's recipe begins transactions by hand
        return False
    driver: Any = connection.connection.dbapi_connection
    return connection.dialect.detect_autocommit_setting(driver)


def upsert(dialect: Dialect, table: Table, keys: Collection[str], column: str) -> Any:
    """Write the statement that inserts rows, or sets one column of those whose keys are there."""
    if dialect.name in _MYSQL:
        write = mysql.insert(table)
        return write.on_duplicate_key_update({column: write.inserted[column]})
    insert = (postgresql if dialect.name == "postgresql" else sqlite).insert(table)
    return insert.on_conflict_do_update(index_elements=keys, set_={column: insert.excluded[column]})


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
