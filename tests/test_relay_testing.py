"""Relays in a test: what is delivered when, and that nothing is delivered in silence."""

import asyncio
import random

import pytest

from asignals import Signal, signal
from asignals.relay import Relay
from asignals.relay.engines.memory import Memory
from asignals.relay.testing import RelayTest, redeliver
from asignals.testing import capture

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """Relays run on asyncio only."""
    return "asyncio"


class Shop:
    """Two services: what the shop sends, the mill receives."""

    def __init__(self, relays):
        self.relays = relays
        self.paid = Signal(["amount"], name="shop.paid")
        self.received = Signal(["amount"], name="mill.received")
        self.calls = []
        self.received.connect(self.grind)
        self.shop, self.mill = relays.service("shop"), relays.service("mill")
        self.shop.export(self.paid, "shop.paid")
        self.mill.receive(self.received, "shop.paid", retries=2)

    def grind(self, amount):
        self.calls.append(amount)

    async def send(self, *amounts):
        for amount in amounts:
            await self.paid.send("web", amount=amount)


@pytest.fixture
def shop(relay):
    """The two services on the engine of the fixture."""
    return Shop(relay)


async def test_nothing_is_delivered_before_deliver(shop, relay):
    """And all of it afterwards, once."""
    await shop.send(1, 2)
    await asyncio.sleep(0)
    assert (shop.calls, [each.topic for each in relay.waiting]) == ([], ["shop.paid"] * 2)
    assert relay.waiting[0].envelope.sender == "web"
    assert await relay.deliver() == 2
    assert (shop.calls, relay.waiting) == ([1, 2], ())
    assert await relay.deliver() == 0


async def test_what_receivers_send_is_delivered_too(shop, relay):
    """To the end of the chain, before `deliver` returns."""
    ground, noted = Signal(["amount"]), []
    shop.mill.export(ground, "mill.ground")
    back = Signal(["amount"])
    shop.shop.receive(back, "mill.ground")

    @back.connect
    def note(amount):
        noted.append(amount)

    @shop.received.connect
    async def answer(amount):
        await ground.send("mill", amount=amount + 1)

    await shop.send(1)
    assert await relay.deliver() == 2
    assert noted == [2]


async def test_captures_see_deliveries_each_attempt_once(shop, relay):
    """In the test's own context; a delivery is one send, with the sender and arguments as the receivers get them."""

    @shop.received.connect
    def fail(amount):
        if len(sent) < 2:
            raise ValueError

    with capture(shop.received) as sent:
        await shop.send(1)
        await relay.deliver()
    assert [(event.sender, event.amount) for event in sent] == [("web", 1)] * 2


async def test_failures_are_tried_again_at_once_and_dead_letters_are_no_success(shop, relay):
    """Without a pause; a test whose receivers never succeed fails, unless that is what it expects."""
    attempts = []

    @shop.received.connect
    def fail(amount):
        attempts.append(amount)
        raise ValueError(amount)

    await shop.send(1)
    with pytest.raises(AssertionError, match=r"expected 0 dead letters, there were 1:\n  mill: ValueError: 1"):
        await relay.deliver()
    assert (attempts, shop.calls) == ([1, 1, 1], [1])
    await shop.send(2)
    await relay.deliver(dead=1)
    assert [letter.error for letter in relay.dead_letters] == ["ValueError: 1", "ValueError: 2"]
    with pytest.raises(AssertionError, match="expected 1 dead letters, there were 0"):
        await relay.deliver(dead=1)


async def test_an_engine_that_repeats(shop, relay):
    """Each event comes once more, as if its acknowledgement had been lost."""
    await shop.send(1, 2)
    assert await relay.deliver(repeat=1) == 4
    assert shop.calls == [1, 1, 2, 2]
    await shop.send(3)
    assert await relay.deliver(repeat=5) == 6
    assert shop.calls[4:] == [3, 3]  # a repeated event whose receivers have succeeded is remembered


async def test_an_engine_that_reorders(shop, relay):
    """By any function of what waits."""
    await shop.send(1, 2, 3)
    await relay.deliver(order=reversed)
    assert shop.calls == [3, 2, 1]
    await shop.send(*range(10))
    await relay.deliver(order=lambda waiting: random.Random(1).sample(waiting, len(waiting)))  # noqa: S311
    assert sorted(shop.calls[3:]) == list(range(10))
    assert shop.calls[3:] != list(range(10))


async def test_an_engine_that_delays(shop, relay):
    """Some events, or all after the first ones, wait for another call."""
    await shop.send(1, 2, 3)
    assert await relay.deliver(limit=1) == 1
    assert await relay.deliver(where=lambda waiting: b'"amount":3' in waiting.data) == 1
    assert shop.calls == [1, 3]
    await relay.deliver()
    assert shop.calls == [1, 3, 2]


async def test_an_engine_that_fails(shop, relay):
    """The send raises, as often as it was asked to, and its event is not delivered."""
    relay.fail(2)
    for _ in range(2):
        with pytest.raises(ConnectionError, match="as the test asked"):
            await shop.send(1)
    relay.fail(error=TimeoutError("slow"))
    with pytest.raises(TimeoutError, match="slow"):
        await shop.send(2)
    await shop.send(3)
    await relay.deliver()
    assert shop.calls == [3]


async def test_outboxes_are_published_by_deliver(relay, tmp_path):
    """Also those whose engine fails at first; an inbox keeps repeated events from the receivers."""
    pytest.importorskip("aiosqlite")
    from asignals.relay import SQLAlchemyInbox, SQLAlchemyOutbox, table_metadata
    from asignals.relay._sql import as_engine

    engine, _ = as_engine(f"sqlite+aiosqlite:///{tmp_path}/app.db")
    async with engine.begin() as connection:
        await connection.run_sync(table_metadata().create_all)
    paid, received, calls = Signal(["amount"]), Signal(["amount"]), []
    received.connect(lambda amount: calls.append(amount), weak=False)  # noqa: PLW0108  by its name
    relay.service("shop", outbox=SQLAlchemyOutbox(engine)).export(paid, "shop.paid")
    relay.service("mill", inbox=SQLAlchemyInbox(engine)).receive(received, "shop.paid")
    relay.fail()
    await paid.send("web", amount=1)
    assert relay.waiting == ()
    assert await relay.deliver(repeat=1) == 2
    assert calls == [1]
    await engine.dispose()


async def test_a_topic_that_nobody_receives_is_warned_of(relay):
    """For then nothing was delivered, and a test of what does not happen would pass."""
    paid = Signal(["amount"])
    relay.service("shop").export(paid, "shop.paid")
    await paid.send("web", amount=1)
    with pytest.warns(UserWarning, match=r"events of 'shop.paid' were published, and no service of this test receives"):
        await relay.deliver()


async def test_instances_share_and_late_services_get_what_was_published(shop, relay):
    """A second instance of the mill takes its part; a service that comes later gets all."""
    late, again = Signal(["amount"]), []
    late.connect(lambda amount: again.append(amount), weak=False)  # noqa: PLW0108  by its name
    await shop.send(1, 2)
    relay.service("mill").receive(shop.received, "shop.paid")
    relay.service("late").receive(late, "shop.paid")
    assert await relay.deliver() == 4
    assert (sorted(shop.calls), again) == ([1, 2], [1, 2])


async def test_relays_of_the_application_are_adopted_and_given_back():
    """With what they export and receive; their own engine sees nothing of it."""
    engine, calls = Memory(), []
    paid, received = Signal(["amount"]), Signal(["amount"])
    received.connect(lambda amount: calls.append(amount), weak=False)  # noqa: PLW0108  by its name
    shop, mill = Relay(engine, "shop"), Relay(engine, "mill")
    shop.export(paid, "shop.paid")
    mill.receive(received, "shop.paid")
    with RelayTest() as relays:
        relays.adopt(shop)
        relays.adopt(mill)
        await paid.send("web", amount=1)
        await relays.deliver()
        assert await engine.backlog("mill") == 0
    assert calls == [1]
    assert (shop.transport, mill.transport) == (engine, engine)
    async with mill:
        with pytest.raises(RuntimeError, match="adopt it before it starts"):
            RelayTest().adopt(mill)
        await paid.send("web", amount=2)
        while len(calls) < 2:  # noqa: ASYNC110  another task's work
            await asyncio.sleep(0)


async def test_exports_end_with_the_test():
    """What the services of one test export is not exported in the next one."""
    paid = Signal(["amount"])
    with RelayTest() as relays:
        relays.service("shop").export(paid, "shop.paid")
        assert paid.has_listeners()
    assert not paid.has_listeners()


@signal
def order_paid(sender: str, *, amount: int, currency: str = "EUR") -> None:
    """An order was paid."""


async def test_redelivery_in_one_line():
    """Receivers are called twice, with what has crossed the wire."""
    calls = []

    def note(signal, sender, **named):
        calls.append((sender, named))

    with order_paid.connected(note):
        await redeliver(order_paid, "web", amount=42)
    assert calls == [("web", {"amount": 42, "currency": "EUR"})] * 2
    assert order_paid.connections == ()


async def test_redelivery_finds_receivers_that_cannot_stand_it():
    """One that fails the second time, and arguments that cannot cross."""
    seen = set()

    def once(amount):
        if amount in seen:
            raise KeyError(amount)
        seen.add(amount)

    with order_paid.connected(once), pytest.raises(AssertionError, match="KeyError: 42"):
        await redeliver(order_paid, "web", amount=42)
    with order_paid.connected(once), pytest.raises(TypeError, match="unexpected keyword"):
        await redeliver(order_paid, "web", amonut=42)
    loose = Signal(["thing"])
    with loose.connected(lambda thing: None), pytest.raises(ValueError, match="cannot be written"):
        await redeliver(loose, "web", thing=object())
