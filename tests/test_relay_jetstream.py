"""What is JetStream's own."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import nats
import pytest
from nats.js.errors import NotFoundError
from relay_support import URLS, World, engine_on, on_asyncio, until

from asignals.relay import DeadLetter, Delivery, Envelope, JetStream
from asignals.relay._keys import partition_of
from asignals.relay.engines._jetstream import consumer, partitions, pulls, streams
from asignals.relay.engines._jetstream.names import durable_of, partition_durable
from asignals.relay.engines._jetstream.partitions import PartitionedConsumer
from asignals.relay.engines._jetstream.pulls import Requests, is_end

if TYPE_CHECKING:
    from nats.aio.client import Client

pytestmark = pytest.mark.anyio


anyio_backend = on_asyncio
engine = engine_on("jetstream")


async def test_a_stream_is_made_as_told_and_changed_where_it_is_told(
    engine: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Settings that are given reach a stream that exists, and the log; those that are not leave it as it is."""
    transport, found = engine.open(), []
    given: list[dict[str, Any]] = [
        {"max_age": 600.0, "dedup_window": 30.0},
        {},
        {"max_age": 1200.0, "name": "some name"},
        {"max_age": math.inf},
    ]
    for settings in given:
        one = JetStream(transport._connection.servers, stream=transport.stream, **settings)
        await one.init()
        client = await one._connection.open()
        config = (await client.jsm().stream_info(transport.stream)).config
        found.append((config.max_age or 0, config.duplicate_window, config.num_replicas))
        assert (await client.jsm().stream_info(f"{transport.stream}-dead")).config.max_age in (None, 0)
        assert client.options["name"] == settings.get("name")
        await one.aclose()
    assert found == [(600.0, 30.0, 1), (600.0, 30.0, 1), (1200.0, 30.0, 1), (0, 30.0, 1)]
    assert caplog.text.count("changed stream") == 2


async def test_instances_with_other_settings_may_make_the_streams_at_once(engine: World) -> None:
    """As in a deploy that changes a setting: none fails, and the streams have the settings of one of them."""
    transport = engine.open()
    waits = [1.0 + number for number in range(5)]
    instances = [JetStream(transport._connection.servers, stream=transport.stream, ack_wait=wait) for wait in waits]
    await asyncio.gather(*(each.init() for each in instances))
    client = await instances[0]._connection.open()
    found = (await client.jsm().stream_info(transport._streams.owners)).config.max_age
    for each in instances:
        await each.aclose()
    assert found in waits


async def test_a_consumer_that_exists_is_changed_to_what_is_asked_for(engine: World) -> None:
    """Keep-alives follow `ack_wait`, so the server must, too: an event that takes its time is called once."""
    transport = engine.open()
    short = JetStream(transport._connection.servers, stream=transport.stream, ack_wait=0.3)
    await short.add_service("billing", ["numbers"])
    await short.aclose()
    patient, calls = JetStream(transport._connection.servers, stream=transport.stream, ack_wait=6.0), []

    async def slowly(delivery: Delivery) -> None:
        calls.append(delivery.attempt)
        await asyncio.sleep(1.0)

    running = asyncio.create_task(patient.consume("billing", "one", ["numbers"], slowly))
    await until(lambda: patient._connection.watchers)
    await transport.publish_many([Envelope("numbers", b"1")])
    await until(lambda: calls)
    info = await (await transport._connection.open()).jsm().consumer_info(transport.stream, "billing==numbers")
    assert info.config.ack_wait == 6.0
    await asyncio.sleep(0.8)
    assert calls == [1]
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await patient.aclose()


async def test_an_instance_that_stops_releases_its_partitions_at_once(engine: World) -> None:
    """The next one need not wait for the end of a lease to handle events with a key."""
    transport = JetStream(engine.open()._connection.servers, stream=engine.open().stream, ack_wait=60.0)

    async def handle(delivery: Delivery) -> None:
        handled.set()

    handled = asyncio.Event()
    running = asyncio.create_task(transport.consume("billing", "one", ["numbers"], handle))
    await engine.open().publish_many([Envelope("numbers", b"1", key="a")])
    async with asyncio.timeout(10):
        await handled.wait()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    client, streams = await transport._connection.open(), transport._streams
    assert await streams.subjects(client, streams.owners, f"{streams.owners}.>") == {}
    await transport.aclose()


class Deletion:
    """What the engine waits for, in place of a time, when somebody deletes something."""

    def __init__(self) -> None:
        self.is_noticed = False
        self.ended = asyncio.Event()
        self.inboxes: dict[str, str] = {}  # by consumer

    async def until_ended(self) -> None:
        self.is_noticed = True
        await self.ended.wait()

    async def tell(self, client: Client, durable: str) -> None:
        """Tell of it as the server does, which may forget to."""
        told = {"Status": "409", "Description": "Consumer Deleted"}
        await client.publish(self.inboxes[durable], b"", headers=told)


@pytest.fixture
def deletion(monkeypatch: pytest.MonkeyPatch) -> Deletion:
    """Make the order of a deletion and of what the engine does explicit."""
    made = Deletion()
    for module in (consumer, partitions, streams):
        monkeypatch.setattr(module, "until_deleted", made.until_ended)
    ask = Requests.ask

    async def remember(self: Requests, client: Client, count: int) -> None:
        made.inboxes[self.durable] = self.inbox
        await ask(self, client, count)

    monkeypatch.setattr(Requests, "ask", remember)
    return made


@pytest.fixture
def deaf_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have partitions hear nothing but events, as a server may forget to tell a request that its consumer is gone."""
    arrived = PartitionedConsumer._arrived

    async def hear(self: PartitionedConsumer, turn: Any, message: Any) -> None:
        if not is_end(message):
            await arrived(self, turn, message)

    monkeypatch.setattr(PartitionedConsumer, "_arrived", hear)
    monkeypatch.setattr(pulls, "SILENCE", math.inf)
    monkeypatch.setattr(Requests, "_look", AsyncMock())


@pytest.mark.usefixtures("deaf_partitions")
async def test_partitions_ask_a_stream_that_was_made_anew_though_nobody_tells_them(
    engine: World, deletion: Deletion
) -> None:
    """Their consumers are others, which know none of their requests."""
    await handle_events_of_a_stream_that_is_made_anew(engine, deletion, "a")


@pytest.mark.parametrize("key", [None, "a"])
async def test_events_of_a_stream_that_was_made_anew_are_not_taken_for_others(
    engine: World, deletion: Deletion, key: str | None
) -> None:
    """Its sequence numbers begin again, and say nothing of what was handled, or is, before somebody deleted it; it is
    not made while the server deletes the files of the one before: it would lose its own.
    """
    await handle_events_of_a_stream_that_is_made_anew(engine, deletion, key)


async def handle_events_of_a_stream_that_is_made_anew(engine: World, deletion: Deletion, key: str | None) -> None:
    """Delete a stream while one of its events is handled, and have those of the next one be handled."""
    transport, handled, may_end = engine.open(), [], asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        body = Envelope.decode(delivery.data).body
        handled.append(body)
        if body == b"held":
            await may_end.wait()

    running = asyncio.create_task(transport.consume("billing", "one", ["numbers"], handle))
    sender = engine.open()
    for body in (b"done", b"held"):
        await sender.publish_many([Envelope("numbers", body, key=key)])
        await until(lambda body=body: body in handled)
    client = await nats.connect(URLS["nats"])
    await client.jsm().delete_stream(transport.stream)
    await deletion.tell(client, durable_of("billing", "numbers"))
    await until(lambda: deletion.is_noticed)
    with pytest.raises(NotFoundError):
        await client.jsm().stream_info(transport.stream)
    deletion.ended.set()
    await client.close()
    for body in (b"first", b"second"):
        await until_published(sender, Envelope("numbers", body, key=key))
    may_end.set()
    await until(lambda: {b"first", b"second"} <= set(handled))
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("key", [None, "a"])
async def test_a_consumer_that_somebody_deletes_is_made_anew(
    engine: World, deletion: Deletion, key: str | None
) -> None:
    """Also when it is only that of one partition, whose events nobody else would ask for."""
    transport, handled = engine.open(), []

    async def handle(delivery: Delivery) -> None:
        handled.append(Envelope.decode(delivery.data).body)

    running = asyncio.create_task(transport.consume("billing", "one", ["numbers"], handle))
    await transport.publish_many([Envelope("numbers", b"before", key=key)])
    await until(lambda: handled)
    durable = durable_of("billing", "numbers")
    client = await transport._connection.open()
    name = durable if key is None else partition_durable(durable, partition_of(key))
    await client.jsm().delete_consumer(transport.stream, name)
    deletion.ended.set()
    await transport.publish_many([Envelope("numbers", b"after", key=key)])
    await until(lambda: b"after" in handled)
    await until(lambda: not (transport.connection_state.problem or transport.problems))
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_the_stream_of_leases_is_made_anew_and_health_says_that_it_is_missing(
    engine: World, deletion: Deletion
) -> None:
    """Without a lease nothing begins in a partition, and no consumer notices."""
    transport, handled = engine.open(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        handled.set()

    running = asyncio.create_task(transport.consume("billing", "one", ["numbers"], handle))
    await transport.publish_many([Envelope("numbers", b"before", key="a")])
    await handled.wait()
    client = await transport._connection.open()
    await client.jsm().delete_stream(transport._streams.owners)
    await until(lambda: any("leases" in name for name in transport.problems))
    deletion.ended.set()
    handled.clear()
    await transport.publish_many([Envelope("numbers", b"after", key="a")])
    await handled.wait()
    await until(lambda: not transport.problems)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_the_streams_of_letters_and_heartbeats_are_made_anew(engine: World, deletion: Deletion) -> None:
    """A letter that cannot be kept would be tried for ever, and an instance would count as dead."""
    transport = engine.open()
    await transport.add_service("billing", ["numbers"])
    client = await transport._connection.open()
    deletion.ended.set()
    await client.jsm().delete_stream(transport._streams.dead)
    await transport.put_dead_letter("dlq", DeadLetter(b"{}", "billing", "ValueError"))
    assert await transport.count_dead_letters("dlq") == 1
    await client.jsm().delete_stream(transport._streams.instances)
    await transport._known.beat("billing", "one", {"numbers": 3})
    (figures,) = await transport.figures("billing", ["numbers"])
    assert (figures.instances, figures.in_flight) == (1, 3)


async def test_who_only_publishes_makes_a_deleted_stream_anew(engine: World) -> None:
    """No consumer may be there to do so."""
    transport = engine.open()
    await transport.publish_many([Envelope("numbers", b"1")])
    client = await transport._connection.open()
    await client.jsm().delete_stream(transport.stream)
    transport._publisher._ack_timeout = transport.ack_timeout = 0.5
    with pytest.raises(ConnectionError):
        await transport.publish_many([Envelope("numbers", b"2")])
    await transport.publish_many([Envelope("numbers", b"2")])
    assert (await client.jsm().stream_info(transport.stream)).state.messages == 1


async def test_a_server_that_does_not_deliver_the_events_it_has_is_a_problem(engine: World) -> None:
    """They are asked for again, and health says so until one comes; events that have only just come are no problem."""
    transport = engine.open()
    await transport.add_service("billing", ["numbers"])
    await transport.publish_many([Envelope("numbers", b"1")])
    client, durable = await transport._connection.open(), durable_of("billing", "numbers")
    requests = Requests(transport._streams, durable, "nowhere", asked=1)
    await requests.waited(client, transport.ack_wait * 1.1)
    assert not transport.problems
    with pytest.raises(ConnectionError, match="1 events"):
        await requests.waited(client, transport.ack_wait + 2.0)
    assert "does not deliver them" in transport.problems[durable]
    requests.came()
    assert not transport.problems


async def test_a_consumer_without_events_is_no_problem(engine: World) -> None:
    """However long nothing comes."""
    transport = engine.open()
    await transport.add_service("billing", ["numbers"])
    client, durable = await transport._connection.open(), durable_of("billing", "numbers")
    requests = Requests(transport._streams, durable, "nowhere", asked=1)
    for _ in range(3):
        requests.silence = 0.0
        await requests.waited(client, transport.ack_wait + 2.0)
    assert not transport.problems


async def until_published(transport: Any, envelope: Envelope) -> None:
    """Publish as the outbox does: again where it failed."""
    async with asyncio.timeout(20):
        while True:
            with suppress(Exception):
                await transport.publish_many([envelope])
                return
            await asyncio.sleep(0.05)


def test_consumers_have_names_that_nats_takes() -> None:
    """However long service and topic are, and different for different ones."""
    assert durable_of("a.b", "c") != durable_of("a", "b.c")
    long = durable_of("s" * 200, "t" * 200)
    assert len(long) <= 200
    assert long != durable_of("s" * 200, "t" * 199 + "u")


@pytest.mark.parametrize("servers", ["redis://127.0.0.1", ["nats://127.0.0.1", "amqp://user:secret@h"], None, [7]])
def test_what_is_no_server_of_nats_is_refused(servers: Any) -> None:
    """At once, with what to write instead, and without its password."""
    with pytest.raises((ValueError, TypeError)) as caught:
        JetStream(servers)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"max_msgs": 2}, "max_msgs=2"),
        ({"max_bytes": 100_000}, "max_bytes=100000"),
        ({"retention": "interest"}, "retention=interest"),
        ({"max_msgs": 2, "discard": "new"}, None),
        ({}, None),
    ],
)
async def test_a_stream_that_drops_events_by_itself_is_a_problem(
    engine: World, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], word: str | None
) -> None:
    """Somebody made it with a limit at which the server drops what nobody has handled: health and the log say so."""
    transport = engine.open()
    client = await nats.connect(URLS["nats"])
    await client.jetstream().add_stream(name=transport.stream, subjects=[f"{transport.stream}.>"], **settings)
    await client.close()
    await transport.init()
    found = " ".join(transport.problems.values())
    assert (word is None and not found) or (word is not None and word in found)
    assert (found in caplog.text) if found else "drops" not in caplog.text
