"""MariaDB and MySQL: named locks, and tables made under one."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import inspect, text
from sqlalchemy.schema import CreateIndex, CreateTable

from asignals.relay._cancel import limited
from asignals.relay._connected import CLOSE, throw_away
from asignals.relay._dialect import IDLE
from asignals.relay._to_the_end import to_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from sqlalchemy import Connection, Dialect, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

_SINCE: Final = {True: (10, 6), False: (8, 0, 4)}  # MariaDB and MySQL that know SKIP LOCKED and JSON_TABLE
# The server ends a connection that is silent for so long while it holds the lock, as one that is cut off: else the
# lock would be held for hours. Only then: the connection belongs to the pool, and may wait there for longer.
_LOCK: Final = text(
    f"SET @asignals_wait = @@SESSION.wait_timeout, SESSION wait_timeout = {int(IDLE)},"
    f" @asignals_turn = GET_LOCK(:name, :seconds)"
)
_UNLOCK: Final = text("SET @asignals_turn = RELEASE_LOCK(:name), SESSION wait_timeout = @asignals_wait")


def check_version(dialect: Dialect) -> None:
    """Raise `RuntimeError` for a server that is too old."""
    is_mariadb: bool = getattr(dialect, "is_mariadb", False)
    version: tuple[Any, ...] = dialect.server_version_info or ()
    if version < _SINCE[is_mariadb]:
        name, wanted, got = ("MariaDB" if is_mariadb else "MySQL"), _SINCE[is_mariadb], version
        raise RuntimeError(
            f"the relay needs {name} {'.'.join(map(str, wanted))} or newer, not {'.'.join(map(str, got))}"
        )


@asynccontextmanager
async def locked(connection: AsyncConnection, name: str, seconds: int = 0) -> AsyncIterator[None]:
    """Ask for the server's lock of a name and hold it in the block; `@asignals_turn` is 1 where it is ours.

    Leaving ends the transaction before the lock is given back, which is held by the connection, not by a transaction.
    """
    await connection.execute(_LOCK, {"name": name, "seconds": seconds})
    try:
        yield
    finally:
        await to_the_end(_unlock(connection, name))


async def _unlock(connection: AsyncConnection, name: str) -> None:
    try:
        await limited(connection.rollback(), CLOSE)
        await limited(connection.execute(_UNLOCK, {"name": name}), CLOSE)
    except Exception:  # noqa: BLE001  the lock goes with the connection
        await throw_away(connection)


def create_missing(connection: Connection, tables: Collection[tuple[Table, str | None]]) -> None:
    """Create what is not there, of tables in schemas; each thing commits by itself, and a process may have died."""
    check_version(connection.dialect)
    look = inspect(connection)
    for table, schema in tables:
        is_there = look.has_table(table.name, schema=schema)
        if not is_there:
            connection.execute(CreateTable(table))
        known = {index["name"] for index in look.get_indexes(table.name, schema=schema)} if is_there else set()
        for index in table.indexes:
            if index.name not in known:
                connection.execute(CreateIndex(index))
