"""What differs between the databases that the relay keeps its tables in."""

from __future__ import annotations

import re
import time
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.ext.asyncio import AsyncEngine

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


def name_of(engine: AsyncEngine) -> str:
    """Say which database it is."""
    url = engine.url
    where = f"{url.host}:{url.port or 5432}/" if url.host else ""
    return f"{engine.dialect.name} ({where}{url.database})"


def is_missing_table(error: DBAPIError) -> bool:
    """Whether a statement failed because a table is not there."""
    return getattr(error.orig, "sqlstate", None) == "42P01" or "no such table" in str(error.orig)


def missing_table(error: DBAPIError) -> str:
    """Name it."""
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
