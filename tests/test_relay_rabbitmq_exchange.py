"""RabbitMQ's exchange is deleted, with all bindings, while it is in use."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from aio_pika.exceptions import AMQPError, DeliveryError
from relay_support import World, engine_on, on_asyncio, until

from asignals.relay import Delivery, Envelope
from asignals.relay._keys import partition_of
from asignals.relay.engines import rabbitmq
from asignals.relay.engines._rabbitmq import consumer, partitions
from asignals.relay.engines._rabbitmq.connection import UNLIMITED
from asignals.relay.engines._rabbitmq.queues import partition_queues

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio


anyio_backend = on_asyncio
engine = engine_on("rabbitmq")


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look whether the exchange is still there as often as can be."""
    for module in (rabbitmq, consumer):
        monkeypatch.setattr(module, "WATCH", 0.01)
    monkeypatch.setattr(consumer, "_GROW", 0.01)


async def delete(transport: Any, *exchanges: str) -> None:
    """Delete exchanges as an operator does."""
    async with transport._connection.channel() as channel:
        for exchange in exchanges or (transport.name,):
            await channel.exchange_delete(exchange)


async def publish(transport: Any, *envelopes: Envelope) -> None:
    """Publish as the outbox does: again where it failed."""
    for envelope in envelopes:
        async with asyncio.timeout(20):
            while True:
                with suppress(Exception):
                    await transport.publish_many([envelope])
                    break


@asynccontextmanager
async def consuming(transport: Any, service: str, *topics: str) -> AsyncIterator[list[bytes]]:
    """Run a service; gives the bodies that come."""
    bodies: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        bodies.append(Envelope.decode(delivery.data).body)

    task = asyncio.create_task(transport.consume(service, "one", topics, handle))
    try:
        await until(lambda: len(transport._connection.parts) > 1)  # that of bindings is there at once
        yield bodies
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("key", [None, "k"])
async def test_who_publishes_to_an_exchange_that_was_deleted_makes_it_with_all_bindings(
    engine: World, key: str | None
) -> None:
    """The next events reach services that run and services that do not, whether the events have a key or not."""
    sender = engine.open()
    await sender.add_service("resting", ["numbers"])
    async with consuming(engine.open(), "billing", "numbers") as bodies:
        await publish(sender, Envelope("numbers", b"0", key=key))
        await until(lambda: bodies)
        await delete(sender)
        await publish(sender, *(Envelope("numbers", str(number).encode(), key=key) for number in (1, 2)))
        await until(lambda: len(bodies) == 3)
    assert await sender.backlog("resting") == 3
    assert sender.problems == {}


@pytest.mark.usefixtures("_often")
async def test_a_service_binds_its_queues_to_an_exchange_that_others_made_anew(engine: World) -> None:
    """Events that came before that wait in no queue for ever: they are published again."""
    transport, stranger = engine.open(), engine.open()
    async with consuming(transport, "billing", "numbers") as bodies:
        await until(lambda: transport.connection_state.is_up)
        await delete(transport)
        await stranger._connection.declare()  # as an earlier release does it
        async with stranger._connection.channel() as channel:
            exchange = await channel.get_exchange(transport.name, ensure=False)
            message = rabbitmq.Message(Envelope("numbers", b"1").encode())
            await exchange.publish(message, "numbers")
        await until(lambda: bodies == [b"1"])
    assert await transport._queues.count(f"{transport.name}.unrouted") == 0


@pytest.mark.usefixtures("_often")
async def test_a_service_makes_an_exchange_that_nobody_else_makes(engine: World) -> None:
    """A process that only receives waits for no publisher."""
    transport = engine.open()
    async with consuming(transport, "billing", "numbers") as bodies:
        await delete(transport)
        sender = engine.open()
        await publish(sender, Envelope("numbers", b"1"))
        await until(lambda: bodies == [b"1"])


async def test_queues_that_cannot_be_bound_again_are_named(
    engine: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until they are, the engine tells whose they are, and nothing is published; afterwards the log does."""
    sender = engine.open()
    await sender.add_service("billing", ["numbers"])
    await delete(sender)

    async def fails() -> None:
        raise ConnectionError

    monkeypatch.setattr(sender._connection, "declare", fails)
    for _ in range(2):  # the first finds its channel closed
        with pytest.raises((ConnectionError, AMQPError)):
            await sender.publish_many([Envelope("numbers", b"1")])
    (name, problem), *others = sender.problems.items()
    assert sender.name in name
    assert "the queues of billing/numbers are not bound to it yet" in problem
    assert not others
    monkeypatch.undo()
    await sender.publish_many([Envelope("numbers", b"1")])
    assert sender.problems == {}
    assert "bound the queues of billing/numbers to it" in caplog.text
    assert await sender.backlog("billing") == 1


@pytest.mark.usefixtures("_often")
async def test_a_listener_hears_what_is_published_to_an_exchange_made_anew(engine: World) -> None:
    """Its queue is known to nobody else: it is told to bind it again."""
    transport, sender, heard, begun = engine.open(), engine.open(), [], asyncio.Event()
    task = asyncio.create_task(transport.listen(["numbers"], heard.append, begun.set))
    await begun.wait()
    await delete(transport)
    async with asyncio.timeout(20):
        while not heard:
            await publish(sender, Envelope("numbers", b"1"))
            await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("which", ["one", "all"])
async def test_a_queue_that_is_deleted_while_it_is_consumed_is_made_again(
    engine: World, monkeypatch: pytest.MonkeyPatch, key: str | None, which: str
) -> None:
    """Also where another part of the same process makes it anew first; what comes meanwhile is not left behind."""
    monkeypatch.setattr(partitions, "_LOOK", 0.05)
    transport, sender = engine.open(), engine.open()
    async with consuming(transport, "billing", "numbers") as bodies:
        await publish(sender, Envelope("numbers", b"0", key=key))
        await until(lambda: bodies)
        own = transport._queues.of("billing", "numbers")
        names = [own, *partition_queues(own)]
        the_one = own if key is None else names[1 + partition_of(key)]
        async with transport._connection.channel() as channel:
            for name in names if which == "all" else [the_one]:
                await channel.queue_delete(name)
        await publish(sender, Envelope("numbers", b"1", key=key))
        await until(lambda: len(bodies) == 2)


async def unbind(transport: Any, service: str, topic: str, key: str | None) -> None:
    """Remove the binding by which an event reaches a service, as an operator does."""
    routing, queue = transport._known._bindings(service, topic)[0 if key is None else 1 + partition_of(key)]
    async with transport._connection.channel() as channel:
        await (await channel.get_queue(queue, ensure=False)).unbind(transport.name, routing)


@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize("key", [None, "k"])
async def test_a_binding_that_somebody_has_removed_is_made_again(
    engine: World, key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Events that reached nobody meanwhile are published again, and the log says so."""
    transport, sender = engine.open(), engine.open()
    async with consuming(transport, "billing", "letters", "numbers") as bodies:
        await publish(sender, Envelope("numbers", b"0", key=key))
        await until(lambda: bodies)
        for number in range(1, 4):
            await unbind(sender, "billing", "numbers", key)
            await publish(sender, Envelope("numbers", str(number).encode(), key=key))
            await until(lambda number=number: len(bodies) == number + 1)
        async with asyncio.timeout(20):  # by chance, each was bound again before the event came
            while "events of 'numbers' had reached no queue" not in caplog.text:
                await unbind(sender, "billing", "numbers", key)
                await publish(sender, Envelope("numbers", b"more", key=key))
                await asyncio.sleep(0.01)


@pytest.mark.usefixtures("_often")
async def test_bindings_that_get_no_answer_stop_no_consumer(engine: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a cluster that waits for a node that is gone: the connection is kept, and health says it."""
    transport, sender = engine.open(), engine.open()
    async with consuming(transport, "billing", "numbers") as bodies:
        await publish(sender, Envelope("numbers", b"0"))
        await until(lambda: bodies)
        opened = transport._connection.current

        async def silent(*_: Any) -> None:
            raise TimeoutError

        monkeypatch.setattr(transport._known, "_bind", silent)
        await until(lambda: any("binding the queues of 'billing'" in name for name in transport.problems))
        await publish(sender, Envelope("numbers", b"1"))
        await until(lambda: len(bodies) == 2)
        assert transport._connection.current is opened
        assert transport.connection_state.is_up
        monkeypatch.undo()
        await until(lambda: not transport.problems)


async def test_looking_for_events_that_reached_nobody_leaves_those_of_other_topics(engine: World) -> None:
    """They are looked through when there are others than before, and rarely."""
    transport = engine.open()
    await transport.add_service("billing", ["numbers"])
    known = transport._known
    looks: list[list[str]] = []
    publish_kept = known._publish_kept

    async def look(topics: list[str]) -> int:
        looks.append(topics)
        return await publish_kept(topics)

    known._publish_kept = look
    await known.bind_again("billing", "numbers")
    assert not looks
    for number in (1, 2):
        await publish(transport, Envelope("unknown", b"1"))
        for _ in range(3):
            known._look_for_kept = 0.0
            await known.bind_again("billing", "numbers")
        assert len(looks) == number
    await publish(transport, Envelope("unknown", b"1"))
    known._look_for_kept = float("inf")
    await known.bind_again("billing", "numbers")
    assert len(looks) == 2
    assert await transport._queues.count(f"{transport.name}.unrouted") == 3


@pytest.mark.parametrize("key", [None, "k"])
async def test_a_queue_that_somebody_makes_again_at_once_gives_its_events(
    engine: World, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """RabbitMQ then keeps the consumers, and gives them nothing: they begin anew after a while without events."""
    monkeypatch.setattr(partitions, "_LOOK", 0.05)
    for module in (partitions, consumer):
        monkeypatch.setattr(module, "IDLE", 0.5)
    transport, stranger = engine.open(), engine.open()
    async with consuming(transport, "billing", "letters", "numbers") as bodies:
        await publish(stranger, Envelope("numbers", b"0", key=key))
        await until(lambda: bodies)
        routing, queue = stranger._known._bindings("billing", "numbers")[0 if key is None else 1 + partition_of(key)]
        alone = {} if key is None else {"x-single-active-consumer": True}
        async with stranger._connection.channel() as channel:
            await channel.queue_delete(queue)
            again = await channel.declare_queue(queue, durable=True, arguments={**UNLIMITED, **alone})
            await again.bind(stranger.name, routing)
        await publish(stranger, Envelope("numbers", b"1", key=key))
        await until(lambda: len(bodies) == 2)


async def test_a_service_that_many_make_known_at_once_is_written_down_once(engine: World) -> None:
    """The partitions that miss a deleted queue do so at the same time."""
    transport = engine.open()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(9):
            tasks.create_task(transport.add_service("billing", ["numbers"]))
    assert await transport._queues.count(f"{transport.name}.services") == 1
    assert transport._known.times_made("billing", ["numbers"]) == 1


@pytest.mark.parametrize("kind", ["exchange", "queue"])
async def test_what_keeps_unrouted_events_is_made_again(engine: World, kind: str) -> None:
    """An event that nobody could keep is an error, and the next attempt finds everything in its place."""
    sender = engine.open()
    await sender.publish_many([Envelope("letters", b"1")])
    unrouted = f"{sender.name}.unrouted"
    async with sender._connection.channel() as channel:
        await (channel.exchange_delete(unrouted) if kind == "exchange" else channel.queue_delete(unrouted))
    with pytest.raises(DeliveryError):
        await sender.publish_many([Envelope("letters", b"2")])
    await sender.publish_many([Envelope("letters", b"2")])
