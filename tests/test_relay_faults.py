"""Networks and databases that are cut, slow, or up and silent: every wait has a limit, and health sees it.

Limits are shortened here, so that a test takes a second; `ASIGNALS_LONG=1` runs them as they are.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from relay_faults import proxied
from relay_support import mariadb_database, postgres_schema, require, until
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from asignals import Signal
from asignals.relay import (
    Database,
    Envelope,
    Memo,
    Memory,
    Relay,
    SchemaError,
    SQLAlchemyInbox,
    SQLAlchemyOutbox,
    _connected,
    _connection_state,
    _dialect,
    _listening,
    _mysql,
    _outbox_rows,
    _sql,
    _watched_inbox,
    table_metadata,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from relay_faults import Proxy
    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = [pytest.mark.anyio, pytest.mark.once, pytest.mark.slow]
LONG = os.environ.get("ASIGNALS_LONG") == "1"
# The second driver of each database.
OTHERS = ["psycopg", "asyncmy"]
BACK_WITHIN = 15.0  # seconds after the network's return
SEEN_WITHIN = 10.0  # seconds after it went


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "asignals")
    caplog.set_level(logging.CRITICAL, "sqlalchemy.pool")


@pytest.fixture
def _short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    if LONG:
        return
    monkeypatch.setattr(_watched_inbox, "_LOOK", 0.2)
    monkeypatch.setattr(_watched_inbox, "_LOOK_TRIP", 1.0)
    for module in (_connected, _listening, _outbox_rows):
        monkeypatch.setattr(module, "LIMIT", 1.0)
    for name in ("connected", "begun", "answered"):
        function = getattr(_connected, name)
        wrapped = getattr(function, "__wrapped__", function)
        monkeypatch.setattr(wrapped, "__defaults__", (1.0,))
    for module in (_connected, _listening, _mysql, _sql):
        monkeypatch.setattr(module, "CLOSE", 0.3)
    monkeypatch.setattr(_outbox_rows, "PG_IDLE", _dialect.PG_IDLE.replace("12000", "1000"))
    monkeypatch.setattr(_mysql, "_LOCK", text(_mysql._LOCK.text.replace("= 12,", "= 1,")))
    monkeypatch.setattr(_listening, "_KEEPALIVE", 0.3)
    monkeypatch.setattr(_connection_state.Backoff.__init__, "__defaults__", (0.05, 0.3))


class Place(NamedTuple):
    """A URL by way of a proxy, the schema of the tables, the proxy, and an engine without one."""

    url: str
    schema: str | None
    proxy: Proxy
    direct: AsyncEngine


@asynccontextmanager
async def _postgres(driver: str) -> AsyncIterator[Place]:
    url = require("postgres").replace("+asyncpg", f"+{driver}")
    async with postgres_schema() as (engine, schema), proxied(url) as (by_proxy, proxy):
        async with engine.begin() as connection:
            await connection.run_sync(table_metadata(schema).create_all)
        yield Place(by_proxy, schema, proxy, engine)


@asynccontextmanager
async def _mariadb(driver: str) -> AsyncIterator[Place]:
    async with mariadb_database(driver) as engine:
        async with engine.begin() as connection:
            await connection.run_sync(table_metadata().create_all)
        async with proxied(engine.url.render_as_string(hide_password=False), 3306) as (by_proxy, proxy):
            yield Place(by_proxy, None, proxy, engine)


@pytest.fixture(params=["asyncpg", OTHERS[0], "aiomysql", OTHERS[1]])
async def database(request: pytest.FixtureRequest, _short_limits: None) -> AsyncIterator[Place]:
    """A database for the outbox and the inbox."""
    async with (_mariadb if "my" in request.param else _postgres)(request.param) as place:
        yield place


@pytest.fixture(params=["asyncpg", OTHERS[0]])
async def carrying_database(request: pytest.FixtureRequest, _short_limits: None) -> AsyncIterator[Place]:
    """A database that can be the engine."""
    async with _postgres(request.param) as place:
        yield place


def receiving(transport: Any, heard: list[int], **options: Any) -> tuple[Relay, Signal[..., Any]]:
    """Make a relay that notes what it handles."""
    into = Signal(["n"])

    async def note(n: int, **_: Any) -> None:
        heard.append(n)

    into.connect(note, weak=False)
    relay = Relay(transport, "billing", grace=2, **options)
    relay.receive(into, "numbers", retries=100, backoff=(0.05, 0.3))
    return relay, into


def event(n: int) -> Envelope:
    """Make an event of another service."""
    return Envelope("numbers", b'{"n":%d}' % n, origin="shop/one")


@pytest.mark.parametrize("fault", ["silence", "cut"])
async def test_an_engine_whose_database_goes_away_works_on_when_it_is_back(
    carrying_database: Place, fault: str
) -> None:
    """Consuming stalls neither for ever nor in silence, and nothing is lost."""
    url, schema, proxy, direct = carrying_database
    heard: list[int] = []
    transport = Database(url, schema=schema, lease=1.0)
    relay, into = receiving(transport, heard)
    publisher = Database(direct, schema=schema)
    async with relay:
        await publisher.publish_many([event(0)])
        await until(lambda: heard == [0])
        await go_away(proxy, fault)
        await publisher.publish_many([event(n) for n in range(1, 21)])
        await until(lambda: not relay.health().ok, SEEN_WITHIN)
        await proxy.restore()
        await until(lambda: set(heard) == set(range(21)), BACK_WITHIN)
        await until(lambda: relay.health().ok, BACK_WITHIN)
    assert into


@pytest.mark.parametrize("fault", ["silence", "cut"])
async def test_an_outbox_whose_database_goes_away_works_on_when_it_is_back(database: Place, fault: str) -> None:
    """What other processes commit meanwhile is published within seconds of its return."""
    url, schema, proxy, direct = database
    memory = Memory()
    relay = Relay(memory, "shop", outbox=SQLAlchemyOutbox(url, schema=schema), grace=2)
    writer = SQLAlchemyOutbox(direct, schema=schema)
    async with relay:
        await writer.put(event(0))
        await until(lambda: relay.health().published == 1)
        await go_away(proxy, fault)
        for n in range(1, 6):
            await writer.put(event(n))
        await until(lambda: not relay.health().ok, SEEN_WITHIN)
        assert direct.url.get_backend_name() in str(relay.health().problems)
        await proxy.restore()
        await until(lambda: relay.health().published >= 6, BACK_WITHIN)
        await until(lambda: relay.health().ok, BACK_WITHIN)
        # What the cut-off transaction had taken is free when the server has ended it.
        async with asyncio.timeout(BACK_WITHIN):
            while await writer.count():  # noqa: ASYNC110  the server does it
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("fault", ["silence", "cut"])
async def test_an_inbox_whose_database_goes_away_makes_events_wait(database: Place, fault: str) -> None:
    """Health shows it, no event becomes a dead letter, and no receiver is called twice by one process."""
    url, schema, proxy, _ = database
    heard: list[int] = []
    memory = Memory()
    relay, into = receiving(memory, heard, inbox=SQLAlchemyInbox(url, schema=schema))
    async with relay:
        await memory.publish_many([event(0)])
        await until(lambda: relay.health().received == 1)
        await go_away(proxy, fault)
        await until(lambda: "the inbox" in relay.health().problems, SEEN_WITHIN)  # though nothing comes
        await memory.publish_many([event(n) for n in range(1, 51)])
        await proxy.restore()
        await until(lambda: relay.health().received == 51, BACK_WITHIN * 2)
        await until(lambda: relay.health().ok, BACK_WITHIN)
        assert relay.health().dead == 0
    assert into
    assert sorted(heard) == list(range(51))


async def test_a_send_with_a_silent_database_raises_in_time(database: Place) -> None:
    """In the session of the caller, and in a transaction of its own; the error says who did not answer."""
    url, schema, proxy, _ = database
    engine = create_async_engine(url)
    sender = SQLAlchemyOutbox(engine, schema=schema)
    try:
        async with AsyncSession(engine) as session:
            await session.execute(text("SELECT 1"))
            proxy.silence()
            began = time.monotonic()
            for where in (session, None):
                with pytest.raises(TimeoutError, match=r"(postgresql|mariadb) \(127\.0\.0\.1:\d+/\w+\)"):
                    await sender.put(event(1), where)
            assert time.monotonic() - began < (30 if LONG else 5)
            await session.invalidate()
    finally:
        await proxy.cut()
        await engine.dispose()


async def test_a_slow_database_is_no_lost_one(database: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that take their time are waited for."""
    monkeypatch.undo()  # the short limits: on a busy machine, answers take longer still
    url, schema, proxy, _ = database
    inbox = SQLAlchemyInbox(url, schema=schema)
    await inbox.recall("a", "billing")  # connecting takes many trips
    proxy.slow(0.02)
    await inbox.remember("a", "billing", Memo({"r"}))
    assert (await inbox.recall("a", "billing")).done == {"r"}
    await inbox.aclose()


@pytest.mark.usefixtures("_short_limits")
async def test_a_database_that_never_was_there_is_in_health() -> None:
    """From the first try on; the relay starts none the less."""
    url = "postgresql+asyncpg://nobody:secret@127.0.0.1:9/nothing"
    relay = Relay(Memory(), "shop", outbox=SQLAlchemyOutbox(url), grace=0.1)
    async with relay:
        await until(lambda: not relay.health().ok, SEEN_WITHIN)
        assert "secret" not in str(relay.health())


async def test_a_missing_table_is_an_error_at_the_start(tmp_path: Path) -> None:
    """Not at the first send; it says which command makes it, and so does every statement."""
    url = f"sqlite+aiosqlite:///{tmp_path}/app.db"
    relay = Relay(Memory(), "shop", outbox=SQLAlchemyOutbox(url), inbox=SQLAlchemyInbox(url))
    with pytest.raises(SchemaError, match=r"asignals_outbox.*asignals relay init") as caught:
        async with relay:
            pass
    assert caught.value.tables == ("asignals_outbox",)
    with pytest.raises(SchemaError, match="asignals_outbox"):
        await SQLAlchemyOutbox(url).put(event(1))
    await relay.init()
    async with relay:
        pass
    await relay.outbox.aclose()  # type: ignore[union-attr]


async def test_only_the_tables_that_are_used_are_made(tmp_path: Path) -> None:
    """An outbox makes one."""
    made = SQLAlchemyOutbox(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    await made.init()
    async with made.engine.connect() as connection:
        names = (await connection.execute(text("SELECT name FROM sqlite_master WHERE name LIKE 'asignals%'"))).scalars()
        assert set(names) == {"asignals_outbox", "asignals_outbox_refused"}
    await made.aclose()


async def _init(url: str, schema: str | None) -> None:
    """Create all tables as one process does; MariaDB is no engine."""
    engine = Memory() if url.startswith("mariadb") else Database(url, schema=schema)
    outbox, inbox = SQLAlchemyOutbox(url, schema=schema), SQLAlchemyInbox(url, schema=schema)
    relay = Relay(engine, "shop", outbox=outbox, inbox=inbox)
    relay.receive(Signal(), "numbers")
    try:
        await relay.init()
        await outbox.check()
        await inbox.check()
    finally:
        await relay.aclose()


@pytest.mark.parametrize("kind", ["postgres", "sqlite", "aiomysql", "asyncmy"])
async def test_any_number_of_processes_may_create_the_tables_at_once(tmp_path: Path, kind: str) -> None:
    """`relay.init()` of eight relays on an empty database, each with its own connections, succeeds in all of them."""
    for attempt in range(100 if LONG else 2):
        async with AsyncExitStack() as stack:
            url, schema = f"sqlite+aiosqlite:///{tmp_path}/{attempt}.db", None
            if kind == "postgres":
                url, (_, schema) = require("postgres"), await stack.enter_async_context(postgres_schema())
            elif kind != "sqlite":
                made = await stack.enter_async_context(mariadb_database(kind))
                url = made.url.render_as_string(hide_password=False)
            await asyncio.gather(*(_init(url, schema) for _ in range(8)))


async def go_away(proxy: Proxy, fault: str) -> None:
    """Do one of the faults."""
    if fault == "cut":
        await proxy.cut()
    else:
        proxy.silence()


@pytest.fixture(autouse=True)
def _no_leak(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    yield
    assert not [str(one.message) for one in recwarn if "unclosed" in str(one.message)]
