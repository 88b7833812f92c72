"""Relays with different engines share one outbox table."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import mariadb_database, postgres_schema
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from asignals import Signal
from asignals.relay import JetStream, Memory, RabbitMQ, Relay, SQLAlchemyOutbox, outbox
from asignals.relay._transport import SchemaError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

    from asignals.relay import Envelope

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


class Broker(Memory):
    """An engine with a name, which keeps what it is given."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.bodies: list[str] = []

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        self.bodies += [envelope.topic for envelope in envelopes]


@asynccontextmanager
async def _database(kind: str, directory: Path) -> AsyncIterator[AsyncEngine]:
    async with AsyncExitStack() as stack:
        if kind == "postgres":
            yield (await stack.enter_async_context(postgres_schema()))[0]
        elif kind == "mariadb":
            yield await stack.enter_async_context(mariadb_database())
        else:
            engine = create_async_engine(f"sqlite+aiosqlite:///{directory}/app.db")
            yield engine
            await engine.dispose()


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """A database of each kind."""
    async with _database(request.param, tmp_path) as engine:
        yield engine


@pytest.mark.parametrize("key", [None, "n"])
async def test_each_relay_publishes_what_was_sent_to_its_engine(database: AsyncEngine, key: str | None) -> None:
    """Whoever drains first, whichever order the rows are in, and also what a process without a running relay wrote."""
    brokers = [Broker("one"), Broker("two")]
    outboxes = [SQLAlchemyOutbox(database) for _ in brokers]
    relays = [Relay(broker, "shop", outbox=each) for broker, each in zip(brokers, outboxes, strict=True)]
    await relays[0].init()
    signals = [Signal(["n"]) for _ in relays]
    for number, (relay, signal) in enumerate(zip(relays, signals, strict=True)):
        relay.export(signal, f"topic.{number}", key=key)
    async with AsyncSession(database) as session, session.begin():
        for number in range(4):
            with relays[number % 2].bind(session):
                await signals[number % 2].send("x", n=number)
    for broker, each in zip(reversed(brokers), reversed(outboxes), strict=True):
        assert await each.count() == 2
        while await each.drain_once(broker.publish_many):
            pass
        assert await each.count() == 0
    assert [broker.bodies for broker in brokers] == [["topic.0"] * 2, ["topic.1"] * 2]


class Elsewhere:
    """A transport of a user's own, for a process that only writes; it has a name, too."""

    name = "nothing of the broker's"

    async def publish_many(self, _envelopes: Any) -> None:
        raise NotImplementedError

    consume = publish_many


@pytest.mark.parametrize("transport", [Memory(), Elsewhere()], ids=["memory", "of a user"])
async def test_who_only_writes_needs_no_engine(database: AsyncEngine, transport: Any) -> None:
    """The relay of another process publishes what it has written, whatever stood in the engine's place there."""
    writer, broker = Relay(transport, "shop", outbox=SQLAlchemyOutbox(database)), Broker("one")
    drained = SQLAlchemyOutbox(database)
    Relay(broker, "shop", outbox=drained)
    await drained.init()
    signal = Signal(["n"])
    writer.export(signal, "topic")
    with writer.own_transaction():
        await signal.send("x", n=1)
    assert await drained.drain_once(broker.publish_many) == 1


async def test_rows_that_name_no_engine_are_anybodys(database: AsyncEngine) -> None:
    """As those that were written before the column was there."""
    written, relay_outbox = SQLAlchemyOutbox(database), SQLAlchemyOutbox(database)
    await written.init()
    broker = Broker("one")
    relay = Relay(broker, "shop", outbox=relay_outbox)
    signal = Signal(["n"])
    relay.export(signal, "topic")
    with relay.own_transaction():
        await signal.send("x", n=1)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE asignals_outbox SET engine = NULL"))
    assert await relay_outbox.drain_once(broker.publish_many) == 1


async def test_events_that_no_relay_takes_show_in_health_and_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After an engine was exchanged for another one, what was sent to the first is neither published nor forgotten."""
    async with _database("sqlite", tmp_path) as database:
        before, after = (SQLAlchemyOutbox(database) for _ in range(2))
        relay = Relay(Broker("one"), "shop", outbox=before)
        Relay(Broker("two"), "shop", outbox=after)
        await before.init()
        signal = Signal(["n"])
        relay.export(signal, "topic")
        with relay.own_transaction():
            await signal.send("x", n=1)
        for patience in (60.0, 0.0):
            monkeypatch.setattr(outbox, "_PATIENCE", patience)
            monkeypatch.setattr(outbox, "_LOOK", -1.0)
            await after._look_for_refused()
            problems = after.problems
            assert (problems == {}) is (patience > 0)
        assert "no relay with that engine takes them" in problems["outbox for Memory 'one'"]
        await after._look_for_refused()
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.startswith("events for Memory 'one' wait in the outbox in sqlite")
        assert message.endswith("this one publishes those for Memory 'two'")


async def test_one_outbox_object_for_two_engines_is_refused(tmp_path: Path) -> None:
    """Its events are for one engine; relays with the same engine may share it."""
    async with _database("sqlite", tmp_path) as database:
        shared = SQLAlchemyOutbox(database)
        for _ in range(2):
            Relay(RabbitMQ("amqp://guest:guest@127.0.0.1/"), "shop", outbox=shared)
        with pytest.raises(ValueError, match=r"used for RabbitMQ 'asignals' already.*JetStream 'asignals' another one"):
            Relay(JetStream("nats://127.0.0.1"), "shop", outbox=shared)


async def test_a_table_of_an_earlier_release_gets_its_new_column(database: AsyncEngine) -> None:
    """What is missing is named at the start, and created by `init`."""
    of = SQLAlchemyOutbox(database)
    await of.init()
    async with database.begin() as connection:
        await connection.execute(text("ALTER TABLE asignals_outbox DROP COLUMN engine"))
    with pytest.raises(SchemaError, match=r"no such table, or column: asignals_outbox\.engine"):
        await of.check()
    await of.init()
    await of.check()
