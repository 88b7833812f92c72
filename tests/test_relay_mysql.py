"""What MariaDB does differently: texts, sizes, locks and versions."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import mariadb_database, require, until
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncSession

from asignals.relay import Database, Envelope, Memo, Memory, Relay, SQLAlchemyInbox, SQLAlchemyOutbox, _mysql
from asignals.relay._connected import repeated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(params=["aiomysql", "asyncmy"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[AsyncEngine]:
    """A database of MariaDB with the tables."""
    async with mariadb_database(request.param) as made:
        await SQLAlchemyOutbox(made).init()
        await SQLAlchemyInbox(made).init()
        yield made


async def test_bodies_of_all_bytes_and_any_size_come_back(engine: AsyncEngine) -> None:
    """A BLOB would end at 64 KB, and a text in the wrong character set at the first byte that it has not."""
    outbox, published = SQLAlchemyOutbox(engine), list[Envelope]()
    bodies = [bytes(range(256)), b"\x00" * 300_000, "🍕".encode(), b""]
    for body in bodies:
        await outbox.put(Envelope("numbers", body, key="🍕"))

    async def publish(envelopes: Sequence[Envelope]) -> None:
        published.extend(envelopes)

    await outbox.drain_once(publish)
    assert [(one.body, one.key) for one in published] == [(body, "🍕") for body in bodies]


async def test_receivers_whose_names_differ_by_case_or_accents_are_two(engine: AsyncEngine) -> None:
    """MariaDB's default collation takes them for one, and the second would never be called."""
    inbox = SQLAlchemyInbox(engine)
    await inbox.remember("e1", "billing", Memo({"a.Note"}))
    assert (await inbox.recall("e1", "billing")).done == {"a.Note"}
    await inbox.remember("e1", "billing", Memo({"a.note", "a.nöte"}))
    assert (await inbox.recall("e1", "billing")).done == {"a.Note", "a.note", "a.nöte"}
    assert (await inbox.recall("E1", "billing")).done == set()


async def test_a_deadlock_is_repeated(engine: AsyncEngine) -> None:
    """The transaction that MariaDB undoes is begun once more; other errors are raised at once."""
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE pairs (id INT PRIMARY KEY, n INT)"))
        await connection.execute(text("INSERT INTO pairs VALUES (1, 0), (2, 0)"))
    both, tries, update = asyncio.Barrier(2), list[int](), text("UPDATE pairs SET n = n + 1 WHERE id = :id")

    async def add(first: int, second: int) -> None:
        tries.append(first)
        async with engine.begin() as connection:
            await connection.execute(update, {"id": first})
            if len(tries) <= 2:
                await both.wait()
            await connection.execute(update, {"id": second})

    await asyncio.gather(repeated(lambda: add(1, 2)), repeated(lambda: add(2, 1)))
    assert len(tries) == 3
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT n FROM pairs ORDER BY id"))).scalars().all() == [2, 2]

    async def wrong() -> None:
        tries.append(0)
        async with engine.begin() as connection:
            await connection.execute(text("SELECT nothing"))

    with pytest.raises(Exception, match="nothing"):
        await repeated(wrong)
    assert tries.count(0) == 1


async def test_the_outbox_blocks_no_sender_and_leaves_its_connections_as_they_were(engine: AsyncEngine) -> None:
    """While a batch is published others insert at once; the server's lock and time limit are given back."""
    outbox, may_end, began = SQLAlchemyOutbox(engine), asyncio.Event(), asyncio.Event()
    await outbox.put(Envelope("numbers", b"1", key="k"))

    async def publish(_envelopes: Sequence[Envelope]) -> None:
        began.set()
        await may_end.wait()

    task = asyncio.create_task(outbox.drain_once(publish))
    await began.wait()
    async with asyncio.timeout(60), AsyncSession(engine) as session, session.begin():
        await outbox.put(Envelope("numbers", b"2", key="k"), session)
    assert await SQLAlchemyOutbox(engine).drain_once(publish) == 0  # the key is being published
    may_end.set()
    assert await task == 1
    async with engine.connect() as connection:
        same = "@@SESSION.wait_timeout = @@GLOBAL.wait_timeout"
        free = f"IS_FREE_LOCK('{outbox._rows._lock}')"  # type: ignore[attr-defined]
        assert (await connection.execute(text(f"SELECT {same}, {free}"))).one() == (1, 1)


async def test_a_relay_that_dies_with_the_lock_gives_it_back(engine: AsyncEngine) -> None:
    """The next one has the rows of its keys as soon as the server has seen that the connection is gone."""
    outbox, began = SQLAlchemyOutbox(engine), asyncio.Event()
    await outbox.put(Envelope("numbers", b"1", key="k"))
    taken: list[int] = []

    async def hang(_envelopes: Sequence[Envelope]) -> None:
        began.set()
        await asyncio.Event().wait()

    async def publish(envelopes: Sequence[Envelope]) -> None:
        taken.extend(int(one.body) for one in envelopes)

    dying = asyncio.create_task(outbox.drain_once(hang))
    await began.wait()
    lock = outbox._rows._lock  # type: ignore[attr-defined]
    async with engine.begin() as connection:
        holder = (await connection.execute(text(f"SELECT IS_USED_LOCK('{lock}')"))).scalar()
        await connection.execute(text(f"KILL CONNECTION {holder}"))
    other = SQLAlchemyOutbox(engine)
    task = asyncio.create_task(other.drain_for_ever(publish))
    await until(lambda: taken == [1], 10)
    for each in (task, dying):
        each.cancel()
    await asyncio.wait([task, dying])
    with suppress(Exception, asyncio.CancelledError):
        dying.result()


async def test_a_url_names_no_driver() -> None:
    """The one that is installed is taken, as for PostgreSQL."""
    url = make_url(require("mariadb"))
    for name in ("mariadb", "mysql"):
        outbox = SQLAlchemyOutbox(url.set(drivername=name).render_as_string(hide_password=False))
        assert outbox.engine.dialect.driver in ("aiomysql", "asyncmy")
        async with outbox.engine.connect() as connection:
            assert (await connection.execute(text("SELECT 1"))).scalar() == 1
        await outbox.aclose()


async def test_the_engine_database_is_refused_in_words() -> None:
    """It says where it can be, and what MariaDB is good for."""
    with pytest.raises(ValueError, match=r"PostgreSQL or SQLite, not in MariaDB.*outbox and the inbox"):
        Database("mariadb+aiomysql://root@127.0.0.1/test")


@pytest.mark.parametrize(
    ("is_mariadb", "version", "text"),
    [(True, (10, 5, 9), "MariaDB 10.6 or newer, not 10.5.9"), (False, (5, 7), "MySQL 8.0.4 or newer, not 5.7")],
)
async def test_a_server_that_is_too_old_is_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
    is_mariadb: bool,  # noqa: FBT001
    version: tuple[int, ...],
    text: str,
) -> None:
    """Not by a syntax error at the first event."""
    async with mariadb_database() as engine:
        outbox = SQLAlchemyOutbox(engine)
        await outbox.init()
        check = _mysql.check_version
        old: Any = SimpleNamespace(is_mariadb=is_mariadb, server_version_info=version)
        monkeypatch.setattr("asignals.relay._sql.check_version", lambda _dialect: check(old))
        with pytest.raises(RuntimeError, match=text):
            async with Relay(Memory(), "shop", outbox=outbox):
                pass
