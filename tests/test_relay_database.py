"""What is the databases' own: who is woken by a commit, and how long SQLite's one lock is held."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import pytest
from relay_support import mariadb_database, on_asyncio, postgres_schema, require, until
from sqlalchemy import event, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import StaticPool

from asignals.relay import Database, Envelope, Relay, SQLAlchemyOutbox, _outbox_rows, outbox
from asignals.relay._sql import as_engine
from asignals.relay.engines._database import consumer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.anyio


anyio_backend = on_asyncio


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays look only when this process wakes them: they hear nobody else, and not by themselves within the test."""

    @asynccontextmanager
    async def hears_nobody(*_: object) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(outbox, "listening", hears_nobody)
    never_poll(monkeypatch)


def never_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the outbox look at its table only when it is told to."""
    for kind in vars(_outbox_rows).values():
        if isinstance(kind, type) and isinstance(vars(kind).get("poll"), float):
            monkeypatch.setattr(kind, "poll", 3600.0)


class Draining:
    """A relay's drain in a task of its own, and what it has published."""

    def __init__(self, of: SQLAlchemyOutbox) -> None:
        self.bodies: list[bytes] = []
        self.looks = 0
        self._outbox = of

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        self.bodies += [envelope.body for envelope in envelopes]

    async def __aenter__(self) -> Self:
        take = self._outbox.drain_once

        async def counted(publish: Any) -> int:
            count = await take(publish)
            self.looks += 1
            return count

        self._outbox.drain_once = counted  # type: ignore[method-assign]  # counts what it does
        self._task = asyncio.create_task(self._outbox.drain_for_ever(self.publish))
        await until(lambda: self.looks)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


async def make_tables(engine: AsyncEngine) -> None:
    """Make those of an outbox and of the engine."""
    for part in (SQLAlchemyOutbox(engine), Database(engine)):
        await part.init()


@asynccontextmanager
async def database(name: str, directory: Path) -> AsyncIterator[AsyncEngine]:
    """A database with the tables: a file, or a schema of its own by one of the two drivers."""
    if name == "sqlite":
        engine, _ = as_engine(f"sqlite+aiosqlite:///{directory}/app.db")
        try:
            await make_tables(engine)
            yield engine
        finally:
            await engine.dispose()
        return
    async with postgres_schema() as (engine, schema):
        await make_tables(engine)
        if name == "asyncpg":
            yield engine
            return
        url = require("postgres").replace("asyncpg", "psycopg")
        other = create_async_engine(url, connect_args={"options": f"-csearch_path={schema}"})
        try:
            yield other
        finally:
            await other.dispose()


@pytest.mark.parametrize("name", ["sqlite", "asyncpg", "psycopg"])
@pytest.mark.usefixtures("deaf")
async def test_a_commit_wakes_the_relay_of_this_process(name: str, tmp_path: Path) -> None:
    """Commits of sessions, with savepoints and again and again, and puts without a session; rollbacks wake nobody."""
    async with database(name, tmp_path) as engine:
        box = SQLAlchemyOutbox(engine)
        async with Draining(box) as draining, AsyncSession(engine) as session:
            for number in range(3):
                async with session.begin():
                    async with session.begin_nested():
                        await box.put(Envelope("numbers", b"%d" % number), session)
                    assert len(draining.bodies) == number
                await until(lambda number=number: len(draining.bodies) == number + 1, 10)
            looks = draining.looks
            with suppress(InterruptedError):
                async with session.begin():
                    await box.put(Envelope("numbers", b"rolled back"), session)
                    raise InterruptedError
            await box.put(Envelope("numbers", b"alone"))
            await until(lambda: len(draining.bodies) == 4, 10)
            assert draining.looks <= looks + 2  # one for the put; and one that came too late for the put before
        assert draining.bodies == [b"0", b"1", b"2", b"alone"]


@pytest.mark.parametrize("name", ["asyncpg", "psycopg"])
async def test_a_commit_tells_relays_elsewhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no relay runs, NOTIFY follows the commit of a session, of a connection, and of a put without either."""
    never_poll(monkeypatch)
    async with database(name, tmp_path) as engine:
        here, there = SQLAlchemyOutbox(engine), SQLAlchemyOutbox(engine)
        async with Draining(there) as draining:
            await until(lambda: draining.looks >= 2)  # the second, when it has begun to listen
            async with AsyncSession(engine) as session, session.begin():
                await here.put(Envelope("numbers", b"session"), session)
            await until(lambda: draining.bodies == [b"session"], 10)
            async with engine.begin() as connection:
                await here.put(Envelope("numbers", b"connection"), connection)
            await until(lambda: draining.bodies[1:] == [b"connection"], 10)
            await here.put(Envelope("numbers", b"alone"))
            await until(lambda: draining.bodies[2:] == [b"alone"], 10)


@pytest.mark.parametrize("name", ["asyncpg", "psycopg"])
async def test_no_notification_is_part_of_a_sessions_transaction(name: str, tmp_path: Path) -> None:
    """PostgreSQL lets transactions that notify commit one at a time; those of sessions that send do not."""
    async with database(name, tmp_path) as engine:
        box, statements = SQLAlchemyOutbox(engine), []
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *found: statements.append(found[2].upper()))
        async with AsyncSession(engine) as session, session.begin():
            await box.put(Envelope("numbers", b"0"), session)
        assert sum("INSERT" in statement for statement in statements) == 1
        assert not any("NOTIFY" in statement for statement in statements)


async def test_a_lost_connection_after_a_commit_does_not_undo_it() -> None:
    """What is committed is committed: the sender is not told of a hint that could not be given."""
    async with postgres_schema() as (engine, _):
        box = SQLAlchemyOutbox(engine)
        await box.init()
        async with AsyncSession(engine) as session, session.begin():
            await box.put(Envelope("numbers", b"0"), session)
            raw = await (await session.connection()).get_raw_connection()
            event.listen(session.sync_session, "after_commit", lambda _: raw.driver_connection.terminate(), insert=True)
        await engine.dispose()  # the pool does not know yet that the connection has ended
        assert await box.count() == 1


@pytest.mark.parametrize("name", ["sqlite", "asyncpg"])
async def test_old_events_are_forgotten_when_all_services_have_them(name: str, tmp_path: Path) -> None:
    """Sweeping removes what is old and acknowledged by all, and nothing else."""
    async with database(name, tmp_path) as engine:
        transport = Database(engine)
        for service in ("billing", "shipping"):
            await transport.add_service(service, ["numbers"])
        await transport.publish_many([Envelope("numbers", b"%d" % number) for number in range(8)])
        async with engine.begin() as connection:
            await connection.execute(text("UPDATE asignals_event SET time = time - 1000 WHERE seq <= 6"))
            await connection.execute(text("DELETE FROM asignals_delivery WHERE subscription = 1 AND seq <> 3"))
            await connection.execute(text("DELETE FROM asignals_delivery WHERE subscription = 2 AND seq <> 4"))
        async with engine.begin() as connection:
            await transport._sql.sweep(connection)
        async with engine.connect() as connection:
            kept = (await connection.execute(text("SELECT seq FROM asignals_event ORDER BY seq"))).scalars().all()
        assert kept == [3, 4, 7, 8]


async def test_forgetting_looks_at_no_delivery_twice_in_sqlite(tmp_path: Path) -> None:
    """Who sweeps holds the only lock: the index of deliveries is searched for each event, and never read through."""
    async with database("sqlite", tmp_path) as engine:
        transport, plans = Database(engine), []
        await transport.add_service("billing", ["numbers"])
        await transport.publish_many([Envelope("numbers", b"0")])
        async with engine.begin() as connection:
            await connection.execute(text("DELETE FROM asignals_delivery"))
            await connection.execute(text("UPDATE asignals_event SET time = 0"))
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *found: plans.append(found[2:4]))
        async with engine.begin() as connection:
            await transport._sql.sweep(connection)
        [(statement, parameters)] = [plan for plan in plans if plan[0].startswith("DELETE")]
        async with engine.connect() as connection:
            steps = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)).all()
        assert any("SEARCH asignals_delivery" in step[-1] for step in steps)
        assert not any("SCAN asignals_delivery" in step[-1] for step in steps)


async def test_a_consumer_with_nothing_to_do_takes_no_lock(tmp_path: Path) -> None:
    """Looking for work in SQLite writes nothing while there is none: neither the consumer nor the outbox."""
    async with database("sqlite", tmp_path) as engine:
        transport, box = Database(engine), SQLAlchemyOutbox(engine)
        await transport.add_service("billing", ["numbers"])
        statements: list[str] = []
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *found: statements.append(found[2].upper()))
        async with engine.begin() as connection:
            assert await transport._sql.claim(connection, [1], 10, 1.0) == []
        assert await box.drain_once(Draining(box).publish) == 0
        assert statements
        assert all(statement.startswith("SELECT") for statement in statements)


@pytest.mark.parametrize(
    ("url", "argument", "seconds"),
    [
        ("postgresql+asyncpg://nobody@127.0.0.1/none", "timeout", "10"),
        ("postgresql+asyncpg://nobody@127.0.0.1/none?timeout=3", "timeout", "3"),
        ("postgresql+psycopg://nobody@127.0.0.1/none", "connect_timeout", "10"),
        ("postgresql+psycopg://nobody@127.0.0.1/none?connect_timeout=3", "connect_timeout", "3"),
    ],
)
async def test_connecting_has_a_limit_of_time(url: str, argument: str, seconds: str) -> None:
    """Ten seconds in engines that are made here, unless the URL says another."""
    given: dict[str, Any] = {}

    def asked(_dialect: object, _record: object, _arguments: object, options: dict[str, Any]) -> None:
        given.update(options)
        raise InterruptedError

    engine, _ = as_engine(url)
    event.listen(engine.sync_engine, "do_connect", asked)
    with pytest.raises(InterruptedError):
        await engine.connect()
    assert str(given[argument]) == seconds


async def test_a_claim_that_is_not_answered_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a time, which is logged as a loss, so that no consumer waits for ever."""
    monkeypatch.setattr(consumer, "_ANSWER_TIMEOUT", 0.1)
    transport = Database(f"sqlite+aiosqlite:///{tmp_path}/relay.db")
    await transport.init()
    claim, asked, heard = transport._sql.claim, [], asyncio.Event()

    async def silent_once(*arguments: Any) -> Any:
        asked.append(1)
        if len(asked) == 1:
            monkeypatch.setattr(consumer, "_ANSWER_TIMEOUT", 20.0)  # a busy machine may need it for the next one
            await asyncio.Event().wait()
        return await claim(*arguments)

    async def handle(_: object) -> None:
        heard.set()

    monkeypatch.setattr(transport._sql, "claim", silent_once)
    await transport.add_service("billing", ["numbers"])
    await transport.publish_many([Envelope("numbers", b"1")])
    task = asyncio.create_task(transport.consume("billing", "one", ["numbers"], handle))
    async with asyncio.timeout(60):
        await heard.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert "TimeoutError: no answer within 0.1 s" in caplog.text
    await transport.aclose()


POOLS = ("aiosqlite", "asyncpg", "psycopg", "aiomysql")


@asynccontextmanager
async def pool_of_one(driver: str, directory: Path) -> AsyncIterator[AsyncEngine]:
    """An application's engine that has one connection, as one that connects through a small pooler has."""
    async with AsyncExitStack() as stack:
        options: dict[str, Any] = {}
        if driver == "aiosqlite":
            url = make_url(f"sqlite+aiosqlite:///{directory}/one.db")
        elif driver == "aiomysql":
            url = (await stack.enter_async_context(mariadb_database())).url
        else:
            made, schema = await stack.enter_async_context(postgres_schema())
            url = made.url.set(drivername=f"postgresql+{driver}")
            path = {"server_settings": {"search_path": schema}} if driver == "asyncpg" else {}
            options = {"connect_args": path or {"options": f"-csearch_path={schema}"}}
        engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=2, **options)
        yield engine
        await engine.dispose()


@pytest.mark.parametrize("driver", POOLS)
async def test_a_relay_leaves_the_only_connection_of_a_pool_to_others(driver: str, tmp_path: Path) -> None:
    """Listening takes none of the pool's connections, and whoever needs the only one waits for a statement at most."""
    async with pool_of_one(driver, tmp_path) as engine:
        of = SQLAlchemyOutbox(engine)
        await of.init()
        async with Draining(of) as draining:
            for number in range(3):
                async with AsyncSession(engine) as session, session.begin():
                    await session.execute(text("SELECT 1"))
                    await of.put(Envelope("numbers", b"%d" % number), session)
            await until(lambda: len(draining.bodies) == 3)
            assert of.connection_state.is_up
            assert engine.sync_engine.pool.checkedout() <= 1  # type: ignore[attr-defined]  # a QueuePool


async def test_an_outbox_and_an_engine_that_share_one_connection_are_refused(tmp_path: Path) -> None:
    """Publishing would wait for the connection on which the outbox waits for publishing."""
    async with pool_of_one("aiosqlite", tmp_path) as engine:
        with pytest.raises(ValueError, match=r"their pool has one only: give it pool_size=2"):
            Relay(Database(engine), "shop", outbox=SQLAlchemyOutbox(engine))
        Relay(Database(engine), "shop", outbox=SQLAlchemyOutbox(f"sqlite+aiosqlite:///{tmp_path}/one.db"))
        Relay(Database(engine), "shop")


def test_a_connection_that_all_share_is_refused(tmp_path: Path) -> None:
    """On it a transaction of the relay would commit what somebody else has just begun."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db", poolclass=StaticPool)
    with pytest.raises(ValueError, match=r"one connection for all \(StaticPool\)"):
        SQLAlchemyOutbox(engine)


_CUT_SHORT = """
import asyncio, sys
from sqlalchemy import text
from asignals.relay._cancel import limited
from asignals.relay._connected import connected
from asignals.relay._sql import as_engine

SLOW = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 2000000) SELECT count(*) FROM n"

async def main():
    engine, _ = as_engine("sqlite+aiosqlite:///" + sys.argv[1])
    try:
        async with connected(engine) as connection:
            await limited(connection.execute(text(SLOW)), 0.05)
    except TimeoutError:
        print("too late")

asyncio.run(main())
"""


@pytest.mark.once
async def test_an_event_loop_ends_though_a_statement_of_sqlite_was_cut_short(tmp_path: Path) -> None:
    """SQLAlchemy stops the thread of such a connection twice, and the second time would be waited for, for ever."""
    if not hasattr(pytest.importorskip("aiosqlite").Connection, "stop"):
        pytest.skip("this aiosqlite stops its thread in another way")
    command = [sys.executable, "-c", _CUT_SHORT, str(tmp_path / "app.db")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "too late\n"), done.stderr
