"""The outbox and the inbox in a database: nothing is lost, nothing that was rolled back is published."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import mariadb_database, postgres_schema, unique, until
from sqlalchemy import UpdateBase, text
from sqlalchemy.event import listens_for
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from asignals import Signal, signal
from asignals.relay import (
    Delivery,
    Envelope,
    Memo,
    Memory,
    NoSessionError,
    PublishRefusedError,
    Relay,
    SQLAlchemyInbox,
    SQLAlchemyOutbox,
    current_event,
    once,
    table_metadata,
)
from asignals.relay._sql import as_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(params=["sqlite", "postgres", "aiomysql", "asyncmy"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """A database with the tables and one of the application's own."""
    async with AsyncExitStack() as stack:
        if request.param == "postgres":
            made, _ = await stack.enter_async_context(postgres_schema())
        elif request.param != "sqlite":
            made = await stack.enter_async_context(mariadb_database(request.param))
        else:
            made, _ = as_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
            stack.push_async_callback(made.dispose)
        async with made.begin() as connection:
            await connection.run_sync(table_metadata().create_all)
            await connection.execute(text("CREATE TABLE orders (number INTEGER PRIMARY KEY)"))
        yield made


class Sink:
    """What `publish` was given."""

    def __init__(self) -> None:
        self.events: list[Envelope] = []

    async def __call__(self, envelopes: Sequence[Envelope]) -> None:
        self.events += envelopes

    @property
    def bodies(self) -> list[int]:
        return [int(event.body) for event in self.events]


def event(number: int, key: str | None = None) -> Envelope:
    """Make an event whose body is its number."""
    return Envelope("numbers", b"%d" % number, key=key)


async def drain(outbox: SQLAlchemyOutbox, publish: Any) -> int:
    """Drain until nothing more is found."""
    total = 0
    while count := await outbox.drain_once(publish):
        total += count
    return total


async def test_an_event_commits_with_the_callers_data(engine: AsyncEngine) -> None:
    """The row is in the session's transaction: what commits is published, once, and then gone."""
    outbox, sink = SQLAlchemyOutbox(engine), Sink()
    async with AsyncSession(engine) as session, session.begin():
        await session.execute(text("INSERT INTO orders VALUES (1)"))
        await outbox.put(event(1), session)
    assert await outbox.count() == 1
    assert await drain(outbox, sink) == 1
    assert sink.bodies == [1]
    assert await outbox.count() == 0


async def test_an_event_vanishes_with_a_rollback(engine: AsyncEngine) -> None:
    """No phantom: an event of a transaction that is rolled back never was."""
    outbox, sink = SQLAlchemyOutbox(engine), Sink()
    with suppress(RuntimeError):
        async with AsyncSession(engine) as session, session.begin():
            await outbox.put(event(1), session)
            raise RuntimeError
    async with AsyncSession(engine) as session, session.begin():
        savepoint = await session.begin_nested()
        await outbox.put(event(2), session)
        await savepoint.rollback()
        await outbox.put(event(3), session)
    await drain(outbox, sink)
    assert sink.bodies == [3]


async def test_a_send_uses_the_session_it_is_given_or_bound_to(engine: AsyncEngine) -> None:
    """`session=` and `relay.bind(session)` both write in the caller's transaction; others say that they mean it."""

    @signal
    def order_paid(sender: str, *, amount: int, session: Any = None) -> None:
        """An order was paid."""

    outbox, sink = SQLAlchemyOutbox(engine), Sink()
    relay = Relay(Memory(), "shop", outbox=outbox)
    relay.export(order_paid, "order.paid")
    with suppress(RuntimeError):
        async with AsyncSession(engine) as session, session.begin():
            await order_paid.send("A-1", amount=1, session=session)
            with relay.bind(session):
                await order_paid.send("A-1", amount=2)
            raise RuntimeError
    assert await outbox.count() == 0
    async with AsyncSession(engine) as session, session.begin():
        await order_paid.send("A-1", amount=3, session=session)
        with relay.bind(session):
            await order_paid.send("A-1", amount=4)
    with pytest.raises(NoSessionError, match="rolls back"):
        await order_paid.send("A-1", amount=6)
    with relay.own_transaction():
        await order_paid.send("A-1", amount=5)
    await drain(outbox, sink)
    assert [event.body for event in sink.events] == [b'{"amount":%d}' % n for n in (3, 4, 5)]


async def test_a_scoped_session_stands_for_the_one_of_its_scope(engine: AsyncEngine) -> None:
    """For an outbox, and for `once`, as for `session.add`."""
    scoped = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
    memory, sink = Memory(), Sink()
    outbox = SQLAlchemyOutbox(engine)
    relay = Relay(memory, "shop", outbox=outbox, inbox=SQLAlchemyInbox(engine))
    paid, heard = Signal(["number", "session"]), Signal(["number"])
    relay.export(paid, "order.paid")
    for number in range(3):
        with relay.bind(scoped) if number else nullcontext():
            await paid.send("shop", number=number, session=None if number else scoped)
        await (scoped.rollback() if number == 1 else scoped.commit())
    await scoped.remove()
    assert await drain(outbox, sink) == 2
    assert [event.body for event in sink.events] == [b'{"number":0}', b'{"number":2}']
    numbers = []

    async def book(number: int, **_: Any) -> None:
        async with scoped.begin(), once(scoped):
            await scoped.execute(text("INSERT INTO orders VALUES (:number)"), {"number": number})
        await scoped.remove()
        numbers.append(number)

    heard.connect(book, weak=False, dispatch_uid="book")
    relay.receive(heard, "order.paid", retries=0)
    async with relay:
        await memory.publish_many(sink.events * 2)
        await until(lambda: len(numbers) == 2 and not relay.health().in_flight)
    assert sorted(numbers) == [0, 2]
    assert relay.health().dead == 0


async def test_rows_stay_until_they_are_acknowledged(engine: AsyncEngine) -> None:
    """An engine that fails leaves every row where it was; the next try has them all, in order."""
    outbox, sink = SQLAlchemyOutbox(engine), Sink()
    for number in range(5):
        await outbox.put(event(number))

    async def fail(_envelopes: Sequence[Envelope]) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await outbox.drain_once(fail)
    assert await outbox.count() == 5
    await drain(outbox, sink)
    assert sink.bodies == list(range(5))


async def test_cancelling_a_drain_loses_nothing(engine: AsyncEngine) -> None:
    """Rows that were being published when the relay was cancelled are free at once."""
    outbox, sink = SQLAlchemyOutbox(engine), Sink()
    await outbox.put(event(1))
    began = asyncio.Event()

    async def hang(_envelopes: Sequence[Envelope]) -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(outbox.drain_once(hang))
    await began.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await drain(outbox, sink)
    assert sink.bodies == [1]


async def test_an_earlier_row_that_commits_later_is_not_passed_over() -> None:
    """Ids are given out before commits: a smaller one that appears after a larger one is published, too."""
    async with postgres_schema() as (engine, _):
        outbox, sink = SQLAlchemyOutbox(engine), Sink()
        await outbox.init()
        async with AsyncSession(engine) as slow, slow.begin():
            await outbox.put(event(1), slow)
            await outbox.put(event(2))
            await drain(outbox, sink)
            assert sink.bodies == [2]
        await drain(outbox, sink)
    assert sink.bodies == [2, 1]


async def test_several_relays_share_the_rows(engine: AsyncEngine) -> None:
    """Relays that drain at the same time publish every row exactly once between them."""
    outboxes = [SQLAlchemyOutbox(engine, batch=20) for _ in range(3)]
    for number in range(200):
        await outboxes[0].put(event(number))
    sinks = [Sink() for _ in outboxes]
    all_have_some = asyncio.Barrier(len(outboxes))

    async def publish(sink: Sink, envelopes: Sequence[Envelope]) -> None:
        if not sink.events:
            async with asyncio.timeout(60):
                await all_have_some.wait()
        await sink(envelopes)

    async with asyncio.TaskGroup() as tasks:
        for outbox, sink in zip(outboxes, sinks, strict=True):
            tasks.create_task(drain(outbox, lambda envelopes, sink=sink: publish(sink, envelopes)))
    assert sorted(number for sink in sinks for number in sink.bodies) == list(range(200))
    assert all(sink.events for sink in sinks)


async def test_events_of_a_key_keep_their_order_among_relays(engine: AsyncEngine) -> None:
    """However many relays drain, and though publishing fails now and then, a key's events are published in order."""
    outboxes = [SQLAlchemyOutbox(engine, batch=7) for _ in range(3)]
    for number in range(120):
        await outboxes[0].put(event(number, key=f"k{number % 3}" if number % 4 else None))
    published: list[Envelope] = []
    failures = iter(range(1_000))

    async def publish(envelopes: Sequence[Envelope]) -> None:
        await asyncio.sleep(0.002)
        if next(failures) % 4 == 1:
            raise ConnectionError
        published.extend(envelopes)

    async def drain_all(outbox: SQLAlchemyOutbox) -> None:
        while await outbox.count():
            with suppress(ConnectionError):
                await outbox.drain_once(publish)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for outbox in outboxes:
            tasks.create_task(drain_all(outbox))
    assert sorted(int(one.body) for one in published) == list(range(120))
    for key in ("k0", "k1", "k2"):
        order = [int(one.body) for one in published if one.key == key]
        assert order == sorted(order)


async def test_what_is_refused_for_ever_does_not_block_the_rest(engine: AsyncEngine) -> None:
    """A refused event is a dead letter of the sending side, with the reason, shown in health, and can be replayed."""
    outbox, sink = SQLAlchemyOutbox(engine), Sink()
    first, second = event(1), event(2)
    await outbox.put(first)
    await outbox.put(second)

    async def publish(envelopes: Sequence[Envelope]) -> None:
        await sink([one for one in envelopes if one.id != first.id])
        if any(one.id == first.id for one in envelopes):
            raise PublishRefusedError({first.id: "too large"})

    await drain(outbox, publish)
    assert sink.bodies == [2]
    assert await outbox.count() == 0
    relay = Relay(Memory(), "shop", outbox=outbox)
    assert (await relay.status()).dead == {"dlq.shop": 0, "outbox.refused": 1}
    assert "outbox.refused" in relay.health().problems
    (letter,) = await relay.dead_letters()
    assert letter.envelope == first
    assert (letter.error, letter.queue) == ("too large", "outbox.refused")
    assert await relay.replay(error="something else") == 0
    assert await relay.replay(ids=[first.id]) == 1
    await drain(outbox, sink)
    assert sink.bodies == [2, 1]


async def test_a_running_relay_hears_of_commits_of_others(engine: AsyncEngine) -> None:
    """A row that another process commits is published without waiting for the next look at the table."""
    relay_outbox, other = SQLAlchemyOutbox(engine), SQLAlchemyOutbox(engine)
    sink = Sink()
    task = asyncio.create_task(relay_outbox.drain_for_ever(sink))
    await other.put(event(0))
    await until(lambda: sink.bodies == [0])
    loop = asyncio.get_running_loop()
    waits = []
    for number in range(1, 6):
        await asyncio.sleep(0.03)
        began = loop.time()
        await other.put(event(number))
        await until(lambda number=number: number in sink.bodies)
        waits.append(loop.time() - began)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert min(waits) < 0.5


async def test_a_relay_with_an_outbox_sends_while_the_engine_is_away(engine: AsyncEngine) -> None:
    """`send` returns when the row is stored; the relay publishes when the engine is back; leaving waits for that."""
    memory, sent = Memory(), Signal(["n"])

    class Away:
        is_away = True

        async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
            if self.is_away:
                raise ConnectionError
            await memory.publish_many(envelopes)

        async def consume(self, *_: Any, **__: Any) -> None:
            await asyncio.Event().wait()

    transport = Away()
    relay = Relay(transport, "shop", outbox=SQLAlchemyOutbox(engine))
    relay.export(sent, "n")
    async with relay:
        for n in range(10):
            await sent.send("A-1", n=n)
        await until(lambda: not relay.health().ok)
        assert relay.health().published == 0
        transport.is_away = False
    assert relay.health().published == 10
    assert relay.final_status is not None
    assert relay.final_status.outbox == 0


async def test_a_row_that_is_no_envelope_is_put_aside(engine: AsyncEngine) -> None:
    """Something written into the table by hand is refused, and the rest flows."""
    outbox, sink = SQLAlchemyOutbox(engine), Sink()
    async with engine.begin() as connection:
        await connection.execute(outbox.tables.outbox.insert(), {"data": b"garbage"})
    await outbox.put(event(1))
    await drain(outbox, sink)
    assert sink.bodies == [1]


async def test_the_inbox_remembers_by_event_service_and_receiver(engine: AsyncEngine) -> None:
    """What is done adds up, failures count, other events and services are not touched, many at once are kept apart."""
    inbox = SQLAlchemyInbox(engine)
    await inbox.remember("e1", "billing", Memo({"a"}, {"b"}, failures=1))
    await inbox.remember("e1", "billing", Memo({"b"}, {"c"}, failures=2, begun=1, begun_at=5.0))
    await inbox.remember("e1", "other", Memo({"c"}))
    assert await inbox.recall("e1", "billing") == Memo({"a", "b"}, {"c"}, 2, 1, 5.0)
    await inbox.remember("e1", "billing", Memo(begun_at=6.0))
    assert await inbox.recall("e1", "billing") == Memo({"a", "b"}, begun_at=6.0)
    assert (await inbox.recall("e1", "other")).done == {"c"}
    assert (await inbox.recall("e2", "billing")).done == set()
    await asyncio.gather(*(inbox.remember(f"m{n}", "billing", Memo({f"r{n}"}, failures=n)) for n in range(50)))
    memos = await asyncio.gather(*(inbox.recall(f"m{n}", "billing") for n in range(50)))
    assert [(memo.done, memo.failures) for memo in memos] == [({f"r{n}"}, n) for n in range(50)]


async def test_the_inbox_forgets_what_is_old(engine: AsyncEngine) -> None:
    """Rows older than `keep` go away."""
    inbox = SQLAlchemyInbox(engine)
    inbox.keep = -1
    for n in range(4):
        await inbox.remember(f"e{n}", "billing", Memo({"a", "b"}))
    inbox._swept = 0
    for n in range(5, 7):
        await inbox.remember(f"e{n}", "billing", Memo({"a"}))
    assert [(await inbox.recall(f"e{n}", "billing")).done for n in range(7)] == [set()] * 6 + [{"a"}]


async def test_a_receivers_changes_are_made_exactly_once(engine: AsyncEngine) -> None:
    """Though the process ends between commit and acknowledgement, and the event comes again, twice at once."""
    gate, calls = asyncio.Event(), []

    def instance() -> tuple[Relay, Any]:
        paid = Signal(["number"])
        relay = Relay(Memory(), "billing", inbox=SQLAlchemyInbox(engine))
        relay.receive(paid, "order.paid", retries=0)

        async def book(number: int, **_: Any) -> None:
            found = current_event()
            assert found is not None
            calls.append((found.id, found.topic, found.attempt, found.origin))
            async with AsyncSession(engine) as session, session.begin(), once(session):
                await session.execute(text("INSERT INTO orders VALUES (:number)"), {"number": number})
            await gate.wait()

        paid.connect(book, weak=False, dispatch_uid="book")
        return relay, paid

    data = Envelope("order.paid", b'{"number": 5}', id="e5", origin="shop/one").encode()
    first, one = instance()
    task = asyncio.create_task(first._inbound.handle(Delivery("order.paid", data)))  # type: ignore[arg-type]
    await until(lambda: calls)
    await until_booked(engine)
    task.cancel()  # killed between the commit and the acknowledgement: nothing was remembered but by the transaction
    await asyncio.wait([task])
    second, other = instance()
    third, another = instance()
    gate.set()
    repeats = [Delivery("order.paid", data, 2, is_repeat=True), Delivery("order.paid", data)]
    outcomes = [await relay._inbound.handle(one) for relay, one in zip((second, third), repeats, strict=True)]
    assert one and other and another  # noqa: PT018
    assert outcomes == [None, None]
    assert second.health().dead == third.health().dead == 0
    assert calls == [("e5", "order.paid", 1, "shop/one")]


async def until_booked(engine: AsyncEngine) -> None:
    """Wait for the row."""
    async with asyncio.timeout(60):
        while True:
            async with engine.connect() as connection:
                if (await connection.execute(text("SELECT count(*) FROM orders"))).scalar():
                    return
            await asyncio.sleep(0.005)


async def test_two_that_handle_one_event_at_once_change_things_once(engine: AsyncEngine) -> None:
    """The later one waits for the earlier one's transaction, changes nothing, and counts as success."""
    relays, keep = [], []
    for _ in range(2):
        paid = Signal(["number"])
        relay = Relay(Memory(), "billing", inbox=SQLAlchemyInbox(engine))
        relay.receive(paid, "order.paid", retries=0)

        async def book(number: int, **_: Any) -> None:
            async with AsyncSession(engine) as session, session.begin(), once(session):
                await session.execute(text("INSERT INTO orders VALUES (:number)"), {"number": number})
                await asyncio.sleep(0.05)

        paid.connect(book, weak=False, dispatch_uid="book")
        keep.append(paid)
        relays.append(relay)
    data = Envelope("order.paid", b'{"number": 5}', id="e5", origin="shop/one").encode()
    outcomes = await asyncio.gather(*(relay._inbound.handle(Delivery("order.paid", data)) for relay in relays))
    assert outcomes == [None, None]
    assert [relay.health().dead for relay in relays] == [0, 0]


async def test_once_says_what_it_needs(engine: AsyncEngine) -> None:
    """An inbox in the database, and a receiver that can be told from others; a local send just runs."""
    paid, errors = Signal(["number"]), []

    async def book(**_: Any) -> None:
        try:
            async with engine.begin() as connection, once(connection):
                errors.append("ran")
        except RuntimeError as error:
            errors.append(str(error))

    paid.connect(book, dispatch_uid="a")
    await paid.send("shop", number=1)
    data = Envelope("order.paid", b'{"number": 5}', origin="shop/one").encode()
    relay = Relay(Memory(), "billing")
    relay.receive(paid, "order.paid", retries=0)
    await relay._inbound.handle(Delivery("order.paid", data))
    paid.disconnect(book, dispatch_uid="a")
    paid.connect(book)
    paid.connect(book, sender="shop")
    relay = Relay(Memory(), "billing", inbox=SQLAlchemyInbox(engine))
    relay.receive(paid, "order.paid", retries=0)
    data = Envelope("order.paid", b'{"number": 5}', sender="shop", origin="shop/one").encode()
    await relay._inbound.handle(Delivery("order.paid", data))
    assert [error.partition(",")[0] for error in errors] == [
        "ran",
        "once(session) needs Relay(inbox=SQLAlchemyInbox(…))",
        *["once(session) needs a receiver with its own name: connect it with a dispatch_uid"] * 2,
    ]
    assert current_event() is None


async def test_init_creates_the_tables_and_may_be_repeated(tmp_path: Path) -> None:
    """`Relay.init` prepares engine, outbox and inbox."""
    from asignals.relay import Database

    url = f"sqlite+aiosqlite:///{tmp_path}/new.db"
    relay = Relay(Database(url), "shop", outbox=SQLAlchemyOutbox(url), inbox=SQLAlchemyInbox(url))
    await relay.init()
    await relay.init()
    async with relay:
        assert (await relay.status()).outbox == 0


@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:"])
async def test_a_database_in_memory_is_refused(url: str) -> None:
    """An in-memory SQLite would be another database for each connection."""
    with pytest.raises(ValueError, match="needs a SQLite file"):
        SQLAlchemyOutbox(url)


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE"])
async def test_rows_wait_for_the_engine_whatever_the_isolation_level_of_the_database(
    engine: AsyncEngine, level: str
) -> None:
    """What cannot be published stays, also where the application's connections commit each statement by themselves."""
    outbox, sink = SQLAlchemyOutbox(engine.execution_options(isolation_level=level)), Sink()
    for number in range(3):
        await outbox.put(event(number, key="k" if number else None))

    async def fail(_envelopes: Sequence[Envelope]) -> None:
        raise ConnectionError("the broker is down")

    for _ in range(2):
        with pytest.raises(ConnectionError, match="the broker is down"):
            await outbox.drain_once(fail)
    assert await outbox.count() == 3
    assert await drain(outbox, sink) == 3
    assert sink.bodies == [0, 1, 2]


async def test_a_session_in_autocommit_is_refused(engine: AsyncEngine) -> None:
    """There is no transaction that an event, or the note of `once`, could be part of, so neither is written."""
    outbox = SQLAlchemyOutbox(engine)
    automatic = engine.execution_options(isolation_level="AUTOCOMMIT")
    for make in (lambda: AsyncSession(automatic), automatic.connect):
        async with make() as session:
            with pytest.raises(RuntimeError, match="AUTOCOMMIT"):
                await outbox.put(event(1), session)
    assert await outbox.count() == 0

    errors = []
    signal_ = Signal([], name="autocommit_once")

    @signal_.connect(weak=False)
    async def receiver() -> None:
        try:
            async with AsyncSession(automatic) as session, once(session):
                raise AssertionError("nothing keeps the note and the changes together")
        except RuntimeError as error:
            errors.append(str(error))

    memory = Memory()
    relay = Relay(memory, "s", inbox=SQLAlchemyInbox(engine))
    relay.receive(signal_, "autocommit.once")
    async with relay:
        await memory.publish_many([Envelope("autocommit.once", b"{}")])
        await until(lambda: errors)
    assert "AUTOCOMMIT" in errors[0]


async def test_an_event_goes_by_the_engine_that_a_session_writes_with(engine: AsyncEngine, tmp_path: Path) -> None:
    """A session that reads from a replica and writes elsewhere has the row written where it writes."""
    replica, _ = as_engine(f"sqlite+aiosqlite:///{tmp_path}/replica.db")

    class Routing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **_options: Any) -> Any:
            return (engine if self._flushing or isinstance(clause, UpdateBase) else replica).sync_engine

    outbox = SQLAlchemyOutbox(engine)
    async with AsyncSession(sync_session_class=Routing) as session, session.begin():
        await session.execute(text("SELECT 1"))
        await outbox.put(event(1), session)
    assert await outbox.count() == 1
    await replica.dispose()


async def test_a_session_of_another_database_is_warned_of(
    engine: AsyncEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An event that a session writes to an outbox that nobody here reads is said once, with both databases."""
    other, _ = as_engine(f"sqlite+aiosqlite:///{tmp_path}/other.db")
    outbox = SQLAlchemyOutbox(engine)
    async with other.begin() as connection:
        await connection.run_sync(table_metadata().create_all)
    if engine.dialect.name == "sqlite":  # the statement is the dialect's
        for _ in range(2):
            async with AsyncSession(other) as session, session.begin():
                await outbox.put(event(1), session)
        (message,) = [record.getMessage() for record in caplog.records]
        assert f"a session writes events to the outbox in sqlite ({tmp_path}/other.db)" in message
        assert f"and this relay publishes those in sqlite ({tmp_path}/app.db)" in message
    await other.dispose()


@pytest.mark.parametrize("is_known", [True, False], ids=["checked", "only written to"])
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_session_with_another_search_path_is_warned_of(
    driver: str,
    is_known: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where each customer has a schema: an event in a table that the relay does not read is said once, with both."""
    async with postgres_schema() as (engine, ours), postgres_schema() as (other, theirs):
        for each in (engine, other):
            async with each.begin() as connection:
                await connection.run_sync(table_metadata(only=["outbox"]).create_all)
        options = {"server_settings": {"search_path": ours}}
        if driver == "psycopg":
            options = {"options": f"-csearch_path={ours}"}
        made = create_async_engine(engine.url.set(drivername=f"postgresql+{driver}"), connect_args=options)
        outbox = SQLAlchemyOutbox(made)
        if is_known:
            await outbox.check()
        else:
            async with AsyncSession(made) as session, session.begin():
                await outbox.put(event(0), session)
        for make in (lambda: AsyncSession(made), made.connect):
            async with make() as session, session.begin():
                await session.execute(text(f"SET LOCAL search_path = {theirs}"))
                await outbox.put(event(1), session)
        (message,) = [record.getMessage() for record in caplog.records]
        assert f"the outbox in schema {theirs} of postgresql" in message
        assert f"others are in schema {ours}" in message
        named = SQLAlchemyOutbox(made, schema=ours)
        before = await named.count()
        async with AsyncSession(made) as session, session.begin():
            await session.execute(text(f"SET LOCAL search_path = {theirs}"))
            await named.put(event(2), session)
        assert await named.count() == before + 1
        assert len(caplog.records) == 1
        await made.dispose()


async def test_an_outbox_that_is_made_anew_is_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """As by a migration, or by tests that each make the tables."""
    async with postgres_schema() as (engine, _):
        outbox = SQLAlchemyOutbox(engine)
        for number in range(3):
            async with engine.begin() as connection:
                await connection.run_sync(table_metadata(only=["outbox"]).drop_all)
                await connection.run_sync(table_metadata(only=["outbox"]).create_all)
            for _ in range(2):
                async with AsyncSession(engine) as session, session.begin():
                    await outbox.put(event(number), session)
            assert await outbox.count() == 2
        assert not caplog.records


async def test_who_only_writes_needs_no_right_to_read() -> None:
    """INSERT, and USAGE of the sequence, are all that PostgreSQL's role of a process that only writes has to have."""
    async with postgres_schema() as (engine, schema):
        role = unique("r")
        outbox = SQLAlchemyOutbox(engine)
        await outbox.init()
        async with engine.begin() as connection:
            for statement in (
                f"CREATE ROLE {role}",
                f"GRANT USAGE ON SCHEMA {schema} TO {role}",
                f"GRANT INSERT ON asignals_outbox TO {role}",
                f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
            ):
                await connection.execute(text(statement))
        try:
            for make in (lambda: AsyncSession(engine), engine.connect):
                async with make() as session, session.begin():
                    await session.execute(text(f"SET LOCAL ROLE {role}"))
                    await outbox.put(event(1), session)
            assert await outbox.count() == 2
        finally:
            async with engine.begin() as connection:
                await connection.execute(text(f"DROP OWNED BY {role}"))
                await connection.execute(text(f"DROP ROLE {role}"))


async def test_a_partitioned_outbox_is_one(caplog: pytest.LogCaptureFixture) -> None:
    """Its rows are in tables of other numbers."""
    async with postgres_schema() as (engine, _):
        async with engine.begin() as connection:
            await connection.run_sync(table_metadata(only=["outbox"]).create_all)
            for statement in (
                "ALTER TABLE asignals_outbox RENAME TO one",
                "CREATE TABLE asignals_outbox (LIKE one INCLUDING DEFAULTS) PARTITION BY RANGE (id)",
                "ALTER TABLE asignals_outbox ATTACH PARTITION one DEFAULT",
            ):
                await connection.execute(text(statement))
        outbox = SQLAlchemyOutbox(engine)
        await outbox.check()
        async with AsyncSession(engine) as session, session.begin():
            await outbox.put(event(1), session)
        assert await outbox.count() == 1
        assert not caplog.records


async def test_an_event_goes_where_the_relay_reads_whatever_the_sessions_translate_map(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    """As where each customer has a schema, and sessions say which by `schema_translate_map`."""
    outbox = SQLAlchemyOutbox(engine)
    async with AsyncExitStack() as stack:
        schema = "other"
        if engine.dialect.name == "postgresql":
            other, schema = await stack.enter_async_context(postgres_schema())
        elif engine.dialect.name != "sqlite":
            other = await stack.enter_async_context(mariadb_database())
            schema = str(other.url.database)
        else:
            other, _ = as_engine(f"sqlite+aiosqlite:///{tmp_path}/other.db")
            stack.push_async_callback(other.dispose)
        async with other.begin() as connection:
            await connection.run_sync(table_metadata().create_all)
        translated = engine.execution_options(schema_translate_map={None: schema})
        async with AsyncSession(translated) as session:
            if engine.dialect.name == "sqlite":
                await (await session.connection()).exec_driver_sql(f"ATTACH DATABASE '{tmp_path}/other.db' AS other")
            await outbox.put(event(1), session)
            await session.commit()
            assert await outbox.count() == 1
            assert await SQLAlchemyOutbox(other).count() == 0


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_connections_to_a_server_that_has_become_read_only_are_given_up(driver: str) -> None:
    """After a failover the pool still has connections to the server that led before: the next try goes by a new one."""
    async with postgres_schema() as (engine, schema):
        made = create_async_engine(engine.url.set(drivername=f"postgresql+{driver}"))
        behind, outbox, sink = [True], SQLAlchemyOutbox(made, schema=schema), Sink()

        @listens_for(made.sync_engine, "connect")
        def set_up(connection: Any, _record: object) -> None:
            if behind:
                cursor = connection.cursor()
                cursor.execute("SET default_transaction_read_only = on")
                cursor.close()
                connection.commit()

        writing = SQLAlchemyOutbox(engine, schema=schema)
        await writing.init()
        await writing.put(event(1))
        with pytest.raises(DBAPIError, match="read-only"):
            await outbox.drain_once(sink)
        behind.clear()
        assert await drain(outbox, sink) == 1
        await made.dispose()
