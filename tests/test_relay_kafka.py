"""What is Kafka's own: offsets that are committed only when everything below them is done."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("confluent_kafka")  # an interpreter may have no wheel of it

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from relay_support import until, world

from asignals.relay import DeadLetter, Delivery, Envelope, PublishRefusedError, engine_from_url
from asignals.relay._connection_state import ConnectionState
from asignals.relay._envelope import MAX_BODY, MAX_HEADER, MAX_KEPT
from asignals.relay.engines._kafka import clients
from asignals.relay.engines._kafka.consumer import Consumer
from asignals.relay.engines._kafka.member import Member
from asignals.relay.engines._kafka.offsets import Offsets
from asignals.relay.engines._kafka.settings import CONSUMER_ONLY, DEFAULTS, PRODUCER_ONLY, without
from asignals.relay.engines.kafka import Kafka

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@given(st.permutations(range(12)), st.integers(0, 12))
def test_the_position_is_below_all_that_is_not_done(order: list[int], count: int) -> None:
    """However many have finished, in whatever order: the position is that of the first that is not done."""
    offsets = Offsets()
    for offset in range(12):
        offsets.take(100 + offset)
    finished = set()
    for offset in order[:count]:
        finished.add(offset)
        before = offsets.position
        assert offsets.finish(100 + offset) == (offsets.position != before)
    first_open = min(set(range(12)) - finished, default=12)
    assert (offsets.position or 100) == 100 + first_open
    assert len(offsets) == 12 - first_open


def test_what_another_may_have_begun_is_bounded() -> None:
    """Not what came after the partition was assigned, nor what lies too far above the first to have been taken."""
    offsets = Offsets(end=50_000)
    offsets.take(100)
    assert offsets.may_be_repeat(100)
    assert not offsets.may_be_repeat(20_000)
    assert not Offsets(end=100).may_be_repeat(100)


def test_gaps_between_offsets_do_no_harm() -> None:
    """Transactions and compaction leave offsets out; the position follows the ones that came."""
    offsets = Offsets()
    for offset in (3, 7, 20):
        offsets.take(offset)
    assert not offsets.finish(7)
    assert offsets.finish(3)
    assert offsets.position == 8


def test_settings_go_to_the_client_that_they_are_for() -> None:
    """Names may be written with `_`; what is the consumer's does not reach the producer, which would warn of it."""
    kafka = Kafka(["one:9092", "two:9092"], session_timeout_ms=6000, linger_ms=5, **{"sasl.mechanism": "PLAIN"})
    given = {"bootstrap.servers": "one:9092,two:9092", "session.timeout.ms": 6000, "linger.ms": 5}
    assert kafka._clients.settings == {**DEFAULTS, **given, "sasl.mechanism": "PLAIN"}
    assert "session.timeout.ms" not in without(kafka._clients.settings, CONSUMER_ONLY)
    assert "linger.ms" not in without(kafka._clients.settings, PRODUCER_ONLY)


def test_what_the_promises_rest_on_is_no_setting() -> None:
    """Whoever sets it is told that it has no effect, instead of finding out."""
    for setting in ({"enable.auto.commit": True}, {"acks": 1}, {"group_id": "mine"}):
        with pytest.raises(ValueError, match="by itself, as its promises rest on it"):
            Kafka("localhost:9092", **setting)


@pytest.mark.parametrize("servers", ["", "kafka://localhost:9092", "one:9092,,two:9092", []])
def test_what_names_no_server_is_refused(servers: Any) -> None:
    """At once, with what to write instead."""
    with pytest.raises(ValueError, match="Kafka takes servers such as 'host:9092'"):
        Kafka(servers)


def test_a_url_names_kafkas_servers() -> None:
    """For programs that get theirs from the environment."""
    kafka = engine_from_url("kafka://one:9092,two:9092", name="orders")
    assert isinstance(kafka, Kafka)
    assert (kafka._clients.settings["bootstrap.servers"], kafka.name) == ("one:9092,two:9092", "orders")


class Message:
    """One event of partition 0."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return "asignals.numbers"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._offset

    def value(self) -> bytes:
        return b"%d" % self._offset

    def key(self) -> None:
        return None


class Client:
    """A client of a group: `on_look` happens in its thread, while it looks for events."""

    def __init__(self) -> None:
        self.partitions: list[TopicPartition] = []
        self.paused: set[int] = set()  # outlives a rebalance, as librdkafka's does
        self.committed: list[int] = []
        self.on_look: list[Any] = []
        self.told: dict[str, Any] = {}

    def subscribe(self, _topics: list[str], **told: Any) -> None:
        self.told = told

    def assign(self, *numbers: int) -> None:
        partitions = [TopicPartition("asignals.numbers", number) for number in numbers]
        self.told["on_assign"](self, partitions)
        self.partitions = partitions

    def revoke(self) -> None:
        self.told["on_revoke"](self, self.partitions)
        self.partitions = []

    def get_watermark_offsets(self, _partition: TopicPartition, **_: Any) -> tuple[int, int]:
        return 0, 8

    def assignment(self) -> list[TopicPartition]:
        return self.partitions

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused |= {partition.partition for partition in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.paused -= {partition.partition for partition in partitions}

    def consume(self, _count: int, _timeout: float) -> list[Message]:
        return self.on_look.pop(0)() or [] if self.on_look else []

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        assert not asynchronous
        self.committed += [partition.offset for partition in offsets]

    def close(self) -> None:
        """Leave the group."""


def member(client: Client) -> Member:
    """Make a member of a group by a client of ours."""
    return Member(lambda _: client, ConnectionState("Kafka"))  # type: ignore[arg-type, return-value]  # what it needs of one


def consumer(client: Client, handle: Any) -> Consumer:
    """Make one running `consume` on a client of ours."""
    topics = {"asignals.numbers": "numbers"}
    return Consumer(member(client), ConnectionState("Kafka"), topics, handle, limit=1, away=22.5)


def test_a_partition_that_was_taken_away_while_paused_is_resumed_when_it_comes_back() -> None:
    """Whether partitions are paused is not known any more after a rebalance, however often was looked in between."""
    client = Client()
    one = member(client)
    one.join([])
    client.assign(0, 1)
    one.poll(1, is_full=True)
    assert client.paused == {0, 1}
    client.revoke()
    one.poll(1, is_full=False)  # while the group finds out who gets what
    client.assign(0, 1)
    one.poll(1, is_full=False)
    assert client.paused == set()


async def _hand_over() -> tuple[list[Delivery], list[int], bool]:
    client, begun, go_on = Client(), [], asyncio.Event()
    handed_over = False

    async def handle(delivery: Delivery) -> float | None:
        begun.append(delivery)
        await go_on.wait()
        return None

    def hand_over() -> None:
        nonlocal handed_over
        while not begun:
            time.sleep(0.001)  # in the client's thread
        client.revoke()
        handed_over = True

    client.on_look = [lambda: client.assign(0), lambda: [Message(7), Message(8)], hand_over]
    one = consumer(client, handle)
    running = asyncio.create_task(one.run())
    await until(lambda: begun and any(offsets.is_over for offsets in list(one._member.partitions.values())))
    was_too_soon = handed_over
    go_on.set()
    await until(lambda: handed_over)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return begun, client.committed, was_too_soon


def test_what_runs_is_finished_before_its_partition_is_handed_over() -> None:
    """The event that is being handled is committed for the successor; the one after it is left to it, unbegun."""
    begun, committed, was_too_soon = asyncio.run(_hand_over())
    assert [delivery.data for delivery in begun] == [b"7"]
    assert begun[0].is_repeat  # it was there when the partition was assigned: another may have begun it
    assert committed == [8]
    assert not was_too_soon


async def _publish_large(path: Path) -> tuple[dict[str, str], list[int], int]:
    sender, sizes = "s" * 1_000, []

    async def handle(delivery: Delivery) -> float | None:
        sizes.append(len(delivery.data))
        return None

    async with world("kafka", path) as made:
        transport = made.open()
        await transport.publish_many([largest := Envelope("large", b"x" * MAX_BODY, sender=sender)])
        await transport.put_dead_letter("dlq", DeadLetter(b"x" * MAX_KEPT, "billing", "e" * 1_000))
        async with aclosing(transport.scan_dead_letters("dlq")) as batches:
            letter = (await anext(batches))[0]
        too_large = Envelope("large", b"x" * (MAX_BODY + 3 * MAX_HEADER))
        with pytest.raises(PublishRefusedError) as caught:
            await transport.publish_many([Envelope("small", b"1"), too_large, Envelope("small", b"2")])
        running = asyncio.create_task(transport.consume("billing", "one", ["large", "small"], handle))
        await until(lambda: len(sizes) >= 3)
        running.cancel()
        await asyncio.wait([running])
    assert caught.value.refused.keys() == {too_large.id}
    assert max(sizes) == len(largest.encode())
    return caught.value.refused, sizes, len(letter.raw)


def test_what_is_too_large_is_refused_and_nothing_else(tmp_path: Path) -> None:
    """The largest event and dead letter go through; a larger one is refused, and those beside it are published."""
    refused, sizes, kept = asyncio.run(_publish_large(tmp_path))
    assert "too large" in next(iter(refused.values()))
    assert len(sizes) == 3
    assert kept == MAX_KEPT


class Batching:
    """A producer whose broker refuses a batch as a whole when one of its records is too large."""

    def __init__(self, error: int) -> None:
        self._error = error
        self._batch: list[tuple[bytes, Callable[..., None]]] = []
        self.kept: list[bytes] = []

    def produce(self, _topic: str, value: bytes, _key: object, *, on_delivery: Callable[..., None], **_: int) -> None:
        self._batch.append((value, on_delivery))

    def flush(self, _seconds: float) -> int:
        batch, self._batch = self._batch, []
        error = KafkaError(self._error) if any(len(value) > 500 for value, _ in batch) else None
        if error is None:
            self.kept += [value for value, _ in batch]
        for _, delivered in batch:
            delivered(error, None)
        return 0


def _with(producer: Batching) -> Kafka:
    transport = Kafka("localhost:9092")
    transport._publisher._producer = producer  # type: ignore[assignment]  # what it needs of one
    return transport


def test_a_batch_that_the_broker_refuses_is_taken_apart() -> None:
    """Only the event that is too large is refused; the others of its batch are published alone."""
    producer = Batching(KafkaError.MSG_SIZE_TOO_LARGE)
    events = [Envelope("n", b"1"), Envelope("n", b"x" * 600), Envelope("n", b"2")]
    with pytest.raises(PublishRefusedError) as caught:
        asyncio.run(_with(producer).publish_many(events))
    assert caught.value.refused.keys() == {events[1].id}
    assert producer.kept == [events[0].encode(), events[2].encode()]
    with pytest.raises(PublishRefusedError, match="too large"):
        asyncio.run(_with(producer).put_dead_letter("dlq", DeadLetter(b"x" * 600, "billing", "error")))


def test_another_error_is_raised_to_have_all_repeated() -> None:
    """What may pass refuses nothing for ever."""
    with pytest.raises(KafkaException):
        asyncio.run(_with(Batching(KafkaError.NOT_LEADER_FOR_PARTITION)).publish_many([Envelope("n", b"x" * 600)]))


def test_the_event_loop_destroys_no_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for ever for the threads of librdkafka: figures share a client, and a separate thread destroys it."""
    made: list[object] = []
    ended: list[threading.Thread] = []

    class Noted(clients.AdminClient):
        def __init__(self, settings: dict[str, Any]) -> None:
            made.append(settings)
            super().__init__(settings)

        def __del__(self) -> None:
            ended.append(threading.current_thread())

    async def ask_twice() -> None:
        async with world("kafka", tmp_path) as engine:
            transport = engine.open()
            await transport.publish_many([Envelope("numbers", b"1")])
            await transport.add_service("billing", ["numbers"])
            for _ in range(2):
                assert [each.service for each in await transport.figures("billing")] == ["billing"]
            await transport.aclose()
            await until(lambda: ended)

    monkeypatch.setattr(clients, "AdminClient", Noted)
    asyncio.run(ask_twice())
    assert len(made) == 1
    assert ended != [threading.current_thread()]
