"""Hearing that another process may have committed something: NOTIFY, or a look at the file."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from asignals.relay._cancel import end, limited
from asignals.relay._connected import CLOSE, LIMIT, connected, throw_away
from asignals.relay._connection_state import Attempts
from asignals.relay._dialect import is_mysql, is_postgres
from asignals.relay._to_the_end import to_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import PoolProxiedConnection

    from asignals.relay._connection_state import ConnectionState

_KEEPALIVE: Final = 5.0  # seconds after which a silent listening connection is asked whether it still lives


async def notify(connection: PoolProxiedConnection, channel: str) -> None:
    """Have those who listen look, by a connection that has just committed. A hint: it is lost rather than raising.

    It is no part of the transaction, although that would be one round trip less: PostgreSQL lets transactions that
    notify commit one at a time, each with its own fsync, however many there are.
    """
    with suppress(Exception):
        await limited(_notify(connection.driver_connection, channel), CLOSE)


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

    PostgreSQL: LISTEN (asyncpg, psycopg). SQLite: the file's change counter, looked at 50 times a second. MariaDB has
    nothing to listen to. It is a hint: whoever uses it also looks by itself from time to time.
    """
    if is_mysql(engine):
        yield
        return
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
            driver = await _detached(connection)
            try:
                await listen(connection, driver, channel, wake)
            finally:
                await to_the_end(throw_away(connection, driver))


async def _detached(connection: AsyncConnection) -> Any:
    """Take a connection out of its pool, which may be of one connection, and makes another in its place."""
    raw = await connection.get_raw_connection()
    driver = raw.driver_connection
    raw.detach()
    return driver


async def _listen_sqlite(
    connection: AsyncConnection, _driver: object, _channel: str, wake: Callable[[], object]
) -> None:
    seen = None
    while True:
        version = (await connection.exec_driver_sql("PRAGMA data_version")).scalar()
        await connection.rollback()
        if version != seen:
            seen = version
            wake()
        await asyncio.sleep(0.02)


async def _listen_postgres(connection: AsyncConnection, driver: Any, channel: str, wake: Callable[[], object]) -> None:
    is_asyncpg = connection.dialect.driver == "asyncpg"
    if is_asyncpg:
        await limited(driver.add_listener(channel, lambda *_: wake()), LIMIT)
    else:
        await limited(connection.execute(text(f"LISTEN {channel}")), LIMIT)
    await limited(connection.commit(), LIMIT)
    wake()
    while True:
        if is_asyncpg:
            await asyncio.sleep(_KEEPALIVE)
        else:
            async for _ in driver.notifies(timeout=_KEEPALIVE):
                wake()
        await limited(connection.execute(text("SELECT 1")), LIMIT)
        await limited(connection.rollback(), LIMIT)
