"""Connections to a database with a limit for every wait: one that is connected and silent stops nothing for ever."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

import anyio
from sqlalchemy.exc import DBAPIError

from asignals.relay._cancel import heeding, limited
from asignals.relay._dialect import is_missing_table, is_read_only, is_sqlite, is_undone, missing_table, name_of
from asignals.relay._time_limit import TimeLimit
from asignals.relay._to_the_end import to_the_end
from asignals.relay._transport import SchemaError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import Pool

    from asignals.relay._loops import OwnLoop

T = TypeVar("T")

LIMIT: Final = 8.0  # seconds that a transaction of a few statements may take; then its connection is closed
CLOSE: Final = 2.0  # seconds that closing may take
_REPEATS: Final = 5  # times that a transaction is begun which the database undoes, to end a deadlock

# When a connection of a pool last did not answer: what was made before that is not trusted any more.
_TROUBLES: WeakKeyDictionary[Pool, float] = WeakKeyDictionary()
_MADE: Final = "asignals_made"
OWN_LOOP: Final = "asignals_loop"  # the execution option of an engine that is made here
_LEVEL: Final = "asignals_isolation_level"


def at_level(engine: AsyncEngine, level: str) -> AsyncEngine:
    """Give the engine whose connections `connected` opens with an isolation level.

    The level of an engine that has itself been made by `execution_options` would win over another such call.
    """
    return engine.execution_options(**{_LEVEL: level})


def enter_loop(engine: AsyncEngine) -> None:
    """Let go of the connections of an event loop that has ended, of an engine that is made here."""
    own: OwnLoop | None = engine.get_execution_options().get(OWN_LOOP)
    if own is not None:
        own.enter(name_of(engine), partial(engine.sync_engine.dispose, close=False))


def note_when_made(_connection: Any, record: Any) -> None:
    """Note when the pool has made a connection; a listener of its event `connect`."""
    record.info[_MADE] = time.monotonic()


@asynccontextmanager
async def connected(engine: AsyncEngine, seconds: float | None = LIMIT) -> AsyncIterator[AsyncConnection]:
    """`engine.connect()`, with a limit for the block: a database that is connected and silent stops nothing for ever.

    After `seconds` the block is cancelled, its connection closed, and with it all that were made before; raises
    `TimeoutError`. They are closed, too, where the server has become read-only, as after a failover. Opening and
    closing are cut short by no cancellation: drivers leave half-open ones behind. Raises `SchemaError` where a table is
    missing. On SQLite, whose file answers, the limit is that for its lock.
    """
    seconds = None if is_sqlite(engine) else seconds
    opened: list[AsyncConnection] = []
    is_silent = False  # or of no use any more
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
            raise SchemaError(name_of(engine), [missing_table(error)]) from error
        if is_read_only(error) and not is_sqlite(engine):
            is_silent = True
            _distrust(engine)
        raise
    finally:
        if opened:  # also when we were cancelled meanwhile
            await to_the_end(_closed(opened[0], is_silent=is_silent))


async def answered(engine: AsyncEngine, call: Awaitable[T], seconds: float = LIMIT) -> T:
    """Await one call of a connection, with its own limit inside of that of the whole block."""
    try:
        return await limited(call, seconds)
    except TimeoutError as error:
        raise _silent(engine, seconds) from error


async def answered_in(
    engine: AsyncEngine, run_sync: Callable[..., Awaitable[T]], work: Callable[[Any, Callable[[], None]], T]
) -> T:
    """Have `run_sync` of a session or a connection run work, with a limit as in `answered`.

    The limit begins when the work calls the function that it is given: connecting is the session's own matter.
    """
    limit = TimeLimit(LIMIT)

    async def within() -> T:
        with limit:
            return await run_sync(work, limit.begin)

    try:
        return await heeding(within())
    except TimeoutError as error:
        if not limit.has_begun:
            raise
        raise _silent(engine, LIMIT) from error


def _silent(engine: AsyncEngine, seconds: float | None) -> TimeoutError:
    """Trust no connection any more that was made until now, and say who did not answer."""
    _distrust(engine)
    return TimeoutError(f"{name_of(engine)} did not answer within {seconds:g} s; its connections are closed")


def _distrust(engine: AsyncEngine) -> None:
    _TROUBLES[engine.sync_engine.pool] = time.monotonic()


@asynccontextmanager
async def begun(engine: AsyncEngine, seconds: float | None = LIMIT) -> AsyncIterator[AsyncConnection]:
    """`engine.begin()` by way of `connected`: the limit holds for the commit, too."""
    async with connected(engine, seconds) as connection, connection.begin():
        yield connection


async def repeated(work: Callable[[], Awaitable[T]]) -> T:
    """Call something that is one transaction, once more where the database has undone it, to end a deadlock."""
    for _ in range(_REPEATS - 1):
        try:
            return await work()
        except DBAPIError as error:
            if not is_undone(error):
                raise
    return await work()


async def _open(engine: AsyncEngine, opened: list[AsyncConnection]) -> None:
    opened.append(await _opened(engine))


async def _opened(engine: AsyncEngine) -> AsyncConnection:
    enter_loop(engine)
    while True:
        connection = engine.connect()
        # One cancellation first, after which the pool closes what it has begun; then again and again.
        with anyio.move_on_after(LIMIT + CLOSE), suppress(TimeoutError):
            async with asyncio.timeout(LIMIT):
                await connection.start()
        if connection.sync_connection is None:
            raise TimeoutError(f"{name_of(engine)} could not be connected to within {LIMIT:g} s")
        if (level := connection.sync_connection.get_execution_options().get(_LEVEL)) is not None:
            await connection.execution_options(isolation_level=level)
        trouble = _TROUBLES.get(engine.sync_engine.pool)
        if trouble is None or connection.sync_connection.info.get(_MADE, 0.0) > trouble:
            return connection
        await throw_away(connection)


async def _closed(connection: AsyncConnection, *, is_silent: bool) -> None:
    """Give it back to the pool; one that is silent, or takes too long for that, goes away."""
    if is_sqlite(connection.engine):
        await connection.close()
        return
    if not is_silent:
        with anyio.move_on_after(CLOSE):
            await connection.close()
            return
    await throw_away(connection)


async def throw_away(connection: AsyncConnection, driver: Any = None) -> None:
    """End a connection without a word to the server, which may not answer; `driver` is that of a detached one."""
    with anyio.move_on_after(CLOSE), suppress(Exception):
        if driver is None and not connection.invalidated:
            driver = (await connection.get_raw_connection()).driver_connection
        if driver is not None:
            closing = driver.terminate() if hasattr(driver, "terminate") else driver.close()  # asyncpg has the former
            if isawaitable(closing):
                await closing
        if not connection.invalidated:
            await connection.invalidate()
    with anyio.move_on_after(CLOSE), suppress(Exception):
        await connection.close()
