"""What is RabbitMQ's own."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from relay_kill import Node
from relay_support import World, engine_on, free_port, on_asyncio, until

from asignals.relay import DeadLetter, Delivery, Envelope, PublishRefusedError, RabbitMQ
from asignals.relay.engines import rabbitmq
from asignals.relay.engines._rabbitmq import channels
from asignals.relay.engines._rabbitmq.channels import Acknowledgements
from asignals.relay.engines._rabbitmq.connection import OpenConnection
from asignals.relay.engines._rabbitmq.consumer import Consumer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio


anyio_backend = on_asyncio
engine = engine_on("rabbitmq")


class Slowly:
    """A `handle` that waits before it acknowledges."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.may_end = asyncio.Event()

    async def __call__(self, delivery: Delivery) -> float | None:
        self.begun.append(Envelope.decode(delivery.data).body)
        await self.may_end.wait()
        return None


@asynccontextmanager
async def consuming(transport: Any, handle: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(transport.consume("billing", "one", ["numbers"], handle, limit=10))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("ends", ["while it is away", "when it is back"])
async def test_an_event_that_outlasts_its_connection_is_handled_once_and_acknowledged(engine: World, ends: str) -> None:
    """What is being handled when the connection is lost is neither handled again nor left with the broker."""
    transport, handle = engine.open(), Slowly()
    await transport.add_service("billing", ["numbers"])
    async with consuming(transport, handle):
        await engine.open().publish_many([Envelope("numbers", b"1")])
        await until(lambda: handle.begun)
        line = transport._connection
        before = line.current.connection
        await before.close()
        if ends == "while it is away":
            handle.may_end.set()
        await until(
            lambda: transport._connection.current is not None and transport._connection.current.connection is not before
        )
        await engine.open().publish_many([Envelope("numbers", b"2")])  # comes after what is delivered again
        await until(lambda: len(handle.begun) == 2)
        handle.may_end.set()
    assert handle.begun == [b"1", b"2"]
    assert await engine.open().backlog("billing") == 0  # with nobody consuming, what was not acknowledged counts


async def test_messages_without_an_id_are_not_taken_for_each_other() -> None:
    """Numbers of deliveries begin again with each connection: the same one then is another message."""
    taken: list[str] = []
    services: Any = SimpleNamespace(connection=None, queues=None)  # it asks no broker
    consumer = Consumer(services, "billing", ["numbers"], Slowly(), 10)
    consumer.pool = SimpleNamespace(put=taken.append)  # type: ignore[assignment]  # all it needs
    for body in (b"before", b"after"):
        message: Any = SimpleNamespace(message_id=None, delivery_tag=2, headers={}, body=body)
        channel: Any = object()
        await consumer._take("numbers", channel, message)
    assert [consumer.held[id_].message.body for id_ in taken] == [b"before", b"after"]


async def test_what_could_not_be_acknowledged_is_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are forgotten first: the broker may have given those to another instance."""

    async def fails() -> None:
        raise ConnectionError

    monkeypatch.setattr(channels, "REMEMBERED", 2)
    acknowledgements = Acknowledgements()
    for id_ in ("a", "b", "c"):
        await acknowledgements.acknowledge(id_, SimpleNamespace(ack=fails))  # type: ignore[arg-type]
    assert list(acknowledgements.lost) == ["b", "c"]


async def test_a_server_that_does_not_answer_is_waited_for_once(engine: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the batch, its first event that is not confirmed in time ends it, and the next has a new line."""
    transport = engine.open()
    begun = 0

    class Silent:
        async def publish(self, *_: Any, timeout: float, **__: Any) -> None:  # noqa: ASYNC109  aio-pika has it
            nonlocal begun
            begun += 1
            async with asyncio.timeout(timeout):
                await asyncio.Event().wait()

    await transport.add_service("billing", ["numbers"])
    line = transport._connection.current
    transport._connection.current = OpenConnection(line.connection, line.channel, Silent())  # type: ignore[arg-type]  # all it needs
    events = [Envelope("numbers", str(number).encode()) for number in range(400)]
    monkeypatch.setattr(rabbitmq, "ANSWER_TIMEOUT", 0.1)
    with pytest.raises(TimeoutError):
        await transport.publish_many(events)
    assert begun == rabbitmq._UNDER_WAY
    monkeypatch.undo()
    await transport.publish_many(events)
    assert await transport.backlog("billing") == 400


async def test_what_no_service_receives_is_kept_for_the_first_that_does(engine: World) -> None:
    """An event that is published before any service receives its topic is not lost, and stops no other event."""
    transport, bodies = engine.open(), []
    await transport.publish_many([Envelope("letters", b"early"), Envelope("numbers", b"1")])

    async def handle(delivery: Delivery) -> None:
        bodies.append((delivery.topic, Envelope.decode(delivery.data).body))

    running = asyncio.create_task(transport.consume("billing", "one", ["letters"], handle))
    await until(lambda: bodies)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert bodies == [("letters", b"early")]
    assert await transport._queues.count(f"{transport.name}.unrouted") == 1


async def test_a_queue_of_other_settings_is_named(engine: World) -> None:
    """What cannot be changed is an error that says what to do, not a channel that was closed."""
    transport = engine.open()
    async with transport._connection.channel() as channel:
        await channel.declare_queue(f"{transport.name}.billing/numbers", durable=True)
    with pytest.raises(RuntimeError, match=r"has a queue or exchange of other settings: delete it .*inequivalent arg"):
        await transport.add_service("billing", ["numbers"])


async def test_a_retry_outlives_the_process_and_its_attempts_are_counted(engine: World) -> None:
    """It waits with the broker, and whoever gets it knows how often it was tried."""
    transport, attempts = engine.open(), []

    async def handle(delivery: Delivery) -> float | None:
        attempts.append(delivery.attempt)
        return 4.0 if len(attempts) == 1 else None  # the first process has ended by then: what it gives back counts

    await transport.add_service("billing", ["numbers"])
    await transport.publish_many([Envelope("numbers", b"1")])
    while len(attempts) < 2:  # on a busy machine the first process may live until the retry
        async with consuming(engine.open(), handle):
            before = len(attempts)
            await until(lambda before=before: len(attempts) > before)
            await until_backlog(transport, lambda: 2 - len(attempts))
    assert attempts == [1, 2]


async def until_backlog(transport: Any, count: Callable[[], int]) -> None:
    async with asyncio.timeout(60):
        while await transport.backlog("billing") != count():  # noqa: ASYNC110  the broker tells nobody
            await asyncio.sleep(0.02)


@pytest.mark.once
@pytest.mark.slow
async def test_an_event_that_the_server_finds_too_large_stops_no_others(tmp_path: Path) -> None:
    """The server closes the channel for all that are under way; those are published again, and the one is refused."""
    port = free_port()
    program = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin")
    if program is None:
        pytest.skip("a server of our own is needed, with another limit")
    node = Node(program, port, tmp_path, settings="max_message_size = 100000\n")
    transport = RabbitMQ(f"amqp://guest:guest@127.0.0.1:{port}/")
    try:
        await node.start()
        async with asyncio.timeout(60):
            while True:  # it takes connections before it has quorum queues
                with suppress(Exception):
                    await transport.add_service("billing", ["numbers"])
                    break
        large = [Envelope("numbers", b"x" * 200_000) for _ in range(2)]
        fitting = [Envelope("numbers", b"%d" % number) for number in range(20)]
        with pytest.raises(PublishRefusedError) as raised:
            await transport.publish_many([large[0], *fitting, large[1]])
        assert set(raised.value.refused) == {each.id for each in large}
        assert "100000 bytes of RabbitMQ's max_message_size" in raised.value.refused[large[0].id]
        assert await transport.backlog("billing") >= 20
        await transport.put_dead_letter("dlq", DeadLetter(b"x" * 99_990, "billing", "ValueError"))
        assert await transport.count_dead_letters("dlq") == 1
    finally:
        await transport.aclose()
        node.close()
