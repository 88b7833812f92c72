"""SIGKILL at random, and a broker that goes away: nothing is lost, nothing is made up."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from relay_kill import ENGINES, LEASE, broker_for, run, transport_for
from relay_support import require, until
from sqlalchemy import text

from asignals import Signal
from asignals.relay import Relay, SQLAlchemyOutbox
from asignals.relay._sql import as_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from relay_kill import Broker

pytestmark = [pytest.mark.anyio, pytest.mark.once, pytest.mark.slow]
QUICK = {"postgres", "jetstream", "redis"}  # each way to lose something: by rows, by consumers, by groups


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.mark.parametrize(
    "engine", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in ENGINES]
)
async def test_nothing_is_lost_however_often_processes_are_killed(engine: str, long: bool) -> None:  # noqa: FBT001
    """Relays, consumers and brokers of our own are killed mid-batch; each service books every event exactly once."""
    require("postgres")
    events, kills = (20_000, 30) if long else (150, 2)
    seed = int(time.time())
    books = await run(engine, events=events, kills=kills, seed=seed, own=long or engine != "rabbitmq")
    assert books.balanced, f"{books}, seed {seed}"
    assert books.committed >= events
    assert books.rolled_back > 0
    assert sum(books.kills.values()) == kills
    assert books.duplicates == 0, f"{books}, seed {seed}"


@pytest.mark.parametrize("books", ["sqlite", "mariadb"])
async def test_effects_are_made_exactly_once_in_the_receivers_own_database(books: str, long: bool) -> None:  # noqa: FBT001
    """Receivers that are killed in the middle of their work have one row for each event, no more and no less."""
    if books == "mariadb":
        require("mariadb")
    seed = int(time.time())
    events, kills, work = (20_000, 30, 0.05) if long else (60, 2, 0.01)
    kept = await run("sqlite", events=events, kills=kills, seed=seed, own=False, books=books, work=work)
    assert kept.balanced, f"{kept}, seed {seed}"
    assert kept.committed >= events
    assert kept.duplicates == 0, f"{kept}, seed {seed}"


@pytest.fixture
async def own_broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Broker, Any]]:
    """A server of our own, and how to make a transport to it."""
    engine: str = request.param
    broker, url = broker_for(engine, tmp_path)
    if broker is None:
        pytest.fail(f"the server of {engine} is elsewhere, and cannot be stopped for this test")
    try:
        await broker.start()
        yield broker, lambda: transport_for({"engine": engine, "url": url, "name": "outage"})
    finally:
        broker.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have every broker go away that can; RabbitMQ, which takes long to come back, where there is time."""
    if "own_broker" in metafunc.fixturenames:
        brokers = ["jetstream", "redis", *(["rabbitmq"] if metafunc.config.getoption("--long") else [])]
        metafunc.parametrize("own_broker", brokers, indirect=True)


async def test_sending_goes_on_while_the_broker_is_away(
    own_broker: tuple[Broker, Any],
    tmp_path: Path,
    long: bool,  # noqa: FBT001
) -> None:
    """Sends do not wait for a broker that is down; when it is back, receivers catch up and miss nothing.

    A send takes as long as its row in the database. How long that takes on this machine now, beside whatever else it
    does, a plain transaction between every two sends tells.
    """
    broker, transport = own_broker
    paid, heard_signal = Signal(["number"]), Signal(["number"])
    outbox = SQLAlchemyOutbox(f"sqlite+aiosqlite:///{tmp_path}/outbox.db")
    await outbox.init()
    shop = Relay(transport(), "shop", outbox=outbox)
    billing = Relay(transport(), "billing")
    shop.export(paid, "order.paid")
    billing.receive(heard_signal, "order.paid")
    await billing.init()
    await broker.keeps("outage.billing", "outage.dead.dlq.billing")
    heard: set[int] = set()
    waits: list[float] = []
    plain_waits: list[float] = []
    sent = 0
    plain, _ = as_engine(f"sqlite+aiosqlite:///{tmp_path}/plain.db")
    async with plain.begin() as connection:
        await connection.execute(text("CREATE TABLE orders (number INTEGER)"))

    async def send_for(seconds: float) -> None:
        nonlocal sent
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            await paid.send("shop", number=sent)
            waits.append(time.monotonic() - began)
            sent += 1
            began = time.monotonic()
            async with plain.begin() as connection:
                await connection.execute(text("INSERT INTO orders VALUES (1)"))
            plain_waits.append(time.monotonic() - began)
            await asyncio.sleep(0.01)

    with heard_signal.connected(lambda number, **_: heard.add(number)):
        async with shop, billing:
            await send_for(0.5)
            await until(lambda: len(heard) == sent)
            assert shop.health().ok
            waits.clear()
            broker.kill()
            await send_for(10 if long else 2)
            assert not shop.health().ok
            assert not billing.health().ok
            assert len(heard) < sent
            await broker.start()
            async with asyncio.timeout(60):
                await send_for(0.5)
                await until(lambda: len(heard) == sent and shop.health().ok and billing.health().ok)
    assert heard == set(range(sent))
    await plain.dispose()
    # Far below the time of the outage, on a machine of any speed; the bound that is promised, where it is measured.
    bound = max(0.05, 3 * max(plain_waits)) if long else 1.0
    assert max(waits) < bound, f"sends took {max(waits):.3f} s, plain transactions {max(plain_waits):.3f} s"


async def test_what_is_being_handled_outlasts_the_broker(own_broker: tuple[Broker, Any]) -> None:
    """Receivers that were called before the broker went, and end after it is back, are called once and acknowledged."""
    broker, transport = own_broker
    paid, heard_signal = Signal(["number"]), Signal(["number"])
    shop, billing = Relay(transport(), "shop"), Relay(transport(), "billing")
    shop.export(paid, "order.paid")
    billing.receive(heard_signal, "order.paid")
    await billing.init()
    await broker.keeps("outage.billing", "outage.dead.dlq.billing")
    begun: list[int] = []
    may_end = asyncio.Event()

    async def slow(number: int, **_: Any) -> None:
        begun.append(number)
        await may_end.wait()

    async def send(number: int) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    await paid.send("shop", number=number)
                except Exception:  # noqa: BLE001  each engine has its own for being away
                    await asyncio.sleep(0.1)
                else:
                    return

    with heard_signal.connected(slow):
        async with shop, billing:
            for number in range(5):
                await send(number)
            await until(lambda: len(begun) == 5)
            broker.kill()
            await until(lambda: not billing.health().ok)
            await broker.start()
            await until(lambda: billing.health().ok)
            await send(5)
            await until(lambda: 5 in begun)
            await asyncio.sleep(1.5 * LEASE)  # whoever had lost its claim would hear of it
            may_end.set()
            await until(lambda: not billing.health().in_flight)
    assert sorted(begun) == list(range(6))
    probe = transport()
    assert await probe.backlog("billing") == 0
    await probe.aclose()
