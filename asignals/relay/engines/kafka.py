"""Kafka as the engine, by confluent-kafka (extra: kafka).

A consumer handles many events at once, and commits for each partition the offset below which everything is done. A
retry is kept here until it is due, and blocks only that offset, not the events after it; when this process dies they
are delivered again.

Tested against librdkafka's mock cluster only, not against a Kafka server.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from asignals._to_the_end import to_the_end
from asignals.relay._connection_state import ConnectionState
from asignals.relay._envelope import DeadLetter, check_name
from asignals.relay._pool import Pool
from asignals.relay._redact import redacted
from asignals.relay._transport import Delivery, PublishRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confluent_kafka import Message

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle

T = TypeVar("T")
_Record: TypeAlias = "tuple[str, str | None, bytes | None]"
logger: logging.Logger = logging.getLogger("asignals.relay")

_DELIVERY: Final = 10.0  # seconds after which an event that was not acknowledged counts as not published
_TRIP: Final = 10.0  # seconds that asking a broker may take
_POLL: Final = 0.1  # seconds that one look for events may take, and so the most that leaving waits for it
_FINISH: Final = 5.0  # seconds for which a partition is not handed on while its events are being handled
_COMMIT: Final = 0.5  # seconds between two commits
_MOST_HELD: Final = 10_000  # events beyond the first that is not done yet


_OURS: Final = frozenset(
    (
        *("bootstrap.servers", "metadata.broker.list", "group.id", "auto.offset.reset", "error_cb"),
        *("enable.auto.commit", "enable.auto.offset.store", "enable.idempotence", "acks", "request.required.acks"),
        *("delivery.timeout.ms", "message.timeout.ms"),
    )
)  # what the promises rest on
# librdkafka warns of settings that are not for the kind of client that is made of them.
_CONSUMER_ONLY: Final = (
    *("group.", "session.timeout.", "heartbeat.", "max.poll.", "partition.assignment.", "fetch.", "queued."),
    *("isolation.", "check.crcs", "auto.commit.", "coordinator.", "consume.callback."),
)
_PRODUCER_ONLY: Final = (
    *("queue.buffering.", "linger.", "batch.", "compression.", "retries", "partitioner", "sticky.partitioning."),
    *("transactional.", "transaction.", "message.send.max.", "request.timeout.", "enable.gapless.", "dr_"),
)


def _servers(servers: str | Sequence[str]) -> str:
    """Write servers as librdkafka takes them; raises `ValueError` for what is a URL, or nothing."""
    text = servers if isinstance(servers, str) else ",".join(servers)
    if not text or "://" in text or any(not one.strip() for one in text.split(",")):
        msg = f"Kafka takes servers such as 'host:9092', not {redacted(text)!r}; engine_from_url takes 'kafka://host:9092'"
        raise ValueError(msg)
    return text


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Give settings by librdkafka's names; raises `ValueError` for those that the relay decides."""
    named = {name if name.endswith("_cb") else name.replace("_", "."): value for name, value in given.items()}
    if ours := sorted(_OURS & named.keys()):
        msg = f"Kafka decides over {', '.join(ours)} by itself, as its promises rest on it"
        raise ValueError(msg)
    return named


def _but(settings: dict[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.startswith(prefixes)}


class Offsets:
    """What has been taken of one partition, and up to where all of it is done."""

    def __init__(self) -> None:
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self.position: int | None = None
        self.running: int = 0
        self.is_over: bool = False  # the partition is another's now

    def __len__(self) -> int:
        """Offsets that hold the position up, or follow one that does."""
        return len(self._open)

    def take(self, offset: int) -> None:
        """Note the next offset; they come in order."""
        self._open.append(offset)

    def finish(self, offset: int) -> bool:
        """Note that one is done, in any order; tells whether the position moved, where a successor would begin."""
        self._done.add(offset)
        moved = False
        while self._open and self._open[0] in self._done:
            done = self._open.popleft()
            self._done.discard(done)
            self.position = done + 1
            moved = True
        return moved


class Kafka:
    """Carries events through one Kafka topic.

    Events of a key are in one partition, and so in order. An event id that comes twice is delivered twice (the
    producer is idempotent, but a relay that was killed publishes again); an inbox that is given to the relay skips
    the second.

    Args:
        servers: `host:9092`, several divided by commas or as a list.
        name: Names the topic; dead letters are in `<name>.dead.<queue>`, a service's group is `<name>.<service>`.
            Topics are made by the brokers when they are first written to, if they allow it.
        librdkafka: Settings of librdkafka, by their names with `_` for `.`: `security_protocol="SASL_SSL"`, or as they
            are: `**{"sasl.mechanism": "PLAIN"}`.

    Raises:
        ValueError: `servers` are no `host:port`, `name` cannot be used, or a setting is one that the relay decides.
    """

    def __init__(self, servers: str | Sequence[str], *, name: str = "asignals", **librdkafka: Any) -> None:
        self._servers = _servers(servers)
        self.name: str = check_name("name", name)
        self.connection_state: ConnectionState = ConnectionState(f"Kafka ({self._servers}, {name})")
        self._settings: dict[str, Any] = {"bootstrap.servers": self._servers, **_settings(librdkafka)}
        self._producer: Producer | None = None
        self._publishing = asyncio.Lock()

    async def aclose(self) -> None:
        """Let go of the producer."""
        self._producer = None
        self._publishing = asyncio.Lock()  # the next event loop may be another

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when all in-sync replicas have all events; raises `KafkaException`, at the latest after 10 s.

        Raises `PublishRefusedError` for events that are larger than the brokers or the producer's settings allow.
        """
        records = [(self.name, envelope.key, envelope.encode()) for envelope in envelopes]
        refused = await self._produce(records)
        if refused:
            raise PublishRefusedError({envelopes[place].id: reason for place, reason in refused.items()})

    async def _produce(self, records: Sequence[_Record]) -> dict[int, str]:
        """Publish; returns the places of records that are too large for Kafka, and what it says of them."""
        async with self._publishing:
            refused = await _in_thread(lambda: self._produce_now(records))
        self.connection_state.restored()
        return refused

    def _produce_now(self, records: Sequence[_Record]) -> dict[int, str]:
        if self._producer is None:
            safe = {"acks": "all", "enable.idempotence": True, "delivery.timeout.ms": int(_DELIVERY * 1000)}
            self._producer = Producer({**_but(self._settings, _CONSUMER_ONLY), **safe, "error_cb": self._on_error})
        refused = self._send(self._producer, dict(enumerate(records)))
        if len(records) == 1:
            return refused
        # A broker refuses a batch as a whole: whose fault it was shows when each goes alone.
        alone = [self._send(self._producer, {place: records[place]}) for place in refused]
        return {place: reason for one in alone for place, reason in one.items()}

    def _send(self, producer: Producer, records: dict[int, _Record]) -> dict[int, str]:
        refused: dict[int, str] = {}
        errors: list[KafkaError] = []

        def delivered(place: int, error: KafkaError | None, _message: object) -> None:
            if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                refused[place] = error.str()
            elif error is not None:
                errors.append(error)

        for place, (topic, key, value) in records.items():
            try:
                _put(producer, topic, value, key, partial(delivered, place))
            except KafkaException as error:
                delivered(place, error.args[0], None)
        if producer.flush(_DELIVERY + 5):
            msg = "Kafka did not acknowledge in time"
            raise TimeoutError(msg)
        if errors:
            raise KafkaException(errors[0])
        return refused

    def _on_error(self, error: Any) -> None:
        self.connection_state.lost(KafkaException(error))

    def consumer(self, group: str) -> Consumer:
        """Make a consumer that commits nothing by itself and begins with the first event there is."""
        exact = {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "error_cb": self._on_error,
        }
        return Consumer({**_but(self._settings, _PRODUCER_ONLY), **exact})

    async def consume(self, service: str, instance: str, handle: Handle, *, limit: int = 100) -> None:
        """Call `handle` for each event of the service until cancelled."""
        check_name("instance", instance)
        consumer = self.consumer(f"{self.name}.{check_name('service', service)}")
        await _Consumer(self, consumer, handle, limit).run()

    async def backlog(self, service: str) -> int:
        """Count the events above what the service has committed."""
        return await _in_thread(lambda: self._backlog_now(f"{self.name}.{service}"))

    def _backlog_now(self, group: str) -> int:
        consumer = self.consumer(group)
        try:
            total: int = 0
            for found in consumer.committed(_partitions(consumer, self.name), timeout=_TRIP):
                low, high = consumer.get_watermark_offsets(found, timeout=_TRIP)
                total += high - max(low, found.offset)
            return total
        finally:
            consumer.close()

    def _dead(self, queue: str) -> str:
        return f"{self.name}.dead.{check_name('queue', queue)}"

    async def bury(self, queue: str, letter: DeadLetter) -> None:
        """Write a letter to the queue's topic."""
        refused = await self._produce([(self._dead(queue), f"{letter.id}-{secrets.token_hex(4)}", letter.encode())])
        if refused:
            raise PublishRefusedError({letter.id: refused[0]})

    async def letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """Show the oldest letters; reads the whole topic."""
        found = await _in_thread(lambda: self._letters_now(self._dead(queue)))
        return sorted(found, key=lambda letter: letter.time)[:limit]

    def _letters_now(self, topic: str) -> list[DeadLetter]:
        letters: dict[str, DeadLetter] = {}
        consumer = self.consumer(f"{topic}.look.{secrets.token_hex(4)}")
        try:
            ends: dict[int, int] = {}
            starts = []
            for partition in _partitions(consumer, topic):
                low, high = consumer.get_watermark_offsets(partition, timeout=_TRIP)
                if low < high:
                    ends[partition.partition] = high
                    starts.append(TopicPartition(topic, partition.partition, low))
            consumer.assign(starts)
            while ends:
                for message in consumer.consume(500, 0.2):
                    if message.error():
                        raise KafkaException(message.error())
                    key = (message.key() or b"").decode()
                    value = message.value()
                    if value is None:
                        letters.pop(key, None)
                    else:
                        letters[key] = DeadLetter.read(value, key)
                    number, offset = _place(message)
                    if offset + 1 >= ends.get(number, 0):
                        ends.pop(number, None)
        finally:
            consumer.close()
        return list(letters.values())

    async def remove(self, queue: str, letter: DeadLetter) -> None:
        """Write that a letter is gone; a compacted topic then forgets it."""
        await self._produce([(self._dead(queue), letter.position, None)])


def _put(producer: Producer, topic: str, value: bytes | None, key: str | None, delivered: Callable[..., None]) -> None:
    """Queue a record, when there is room."""
    while True:
        try:
            return producer.produce(topic, value, key, on_delivery=delivered)
        except BufferError:
            producer.poll(0.1)


def _partitions(consumer: Consumer, topic: str) -> list[TopicPartition]:
    found = consumer.list_topics(topic, timeout=_TRIP).topics[topic]
    return [TopicPartition(topic, number) for number in found.partitions]


def _place(message: Message) -> tuple[int, int]:
    """Give partition and offset, which a message that was consumed always has."""
    return message.partition() or 0, message.offset() or 0


async def _in_thread(work: Callable[[], T]) -> T:
    """Run blocking work in a thread, to its end though we are cancelled: the client must not be used by two at once."""
    return await to_the_end(asyncio.to_thread(work))


@dataclass(slots=True, eq=False)
class _Held:
    """An event that is here."""

    data: bytes
    partition: int
    offset: int
    offsets: Offsets
    attempt: int = 1


@dataclass(slots=True)
class _Consumer:
    """One running `consume`."""

    engine: Kafka
    client: Consumer
    handle: Handle
    limit: int
    partitions: dict[int, Offsets] = field(default_factory=dict)
    moved: set[int] = field(default_factory=set)
    is_paused: bool | None = None  # None: not known of the partitions that are assigned now

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        pool: Pool[_Held]

        async def work(item: _Held) -> None:
            if item.offsets.is_over:
                return  # the partition was taken away meanwhile, and whoever has it now is given the event, too
            item.offsets.running += 1
            try:
                delay = await self.handle(Delivery(item.data, item.attempt))
            finally:
                item.offsets.running -= 1
            if delay is not None:
                item.attempt += 1
                loop.call_later(delay, pool.put, item)
            elif item.offsets.finish(item.offset) and self.partitions.get(item.partition) is item.offsets:
                self.moved.add(item.partition)

        pool = Pool(work, self.limit)
        try:
            async with pool:
                told = {"on_assign": self._assigned, "on_revoke": self._revoked, "on_lost": self._lost}
                self.client.subscribe([self.engine.name], **told)
                await self._read_for_ever(pool)
        finally:
            # The events that are not done lie above the committed offsets: leaving the group gives them back.
            await _in_thread(self._leave)

    async def _read_for_ever(self, pool: Pool[_Held]) -> None:
        committed = 0.0
        loop = asyncio.get_running_loop()
        while True:
            is_full = len(pool) >= self.limit * 2 or sum(map(len, self.partitions.values())) >= _MOST_HELD
            messages = await _in_thread(partial(self._poll, is_full=is_full))
            for message in messages:
                self._take(message, pool)
            if loop.time() - committed > _COMMIT:
                committed = loop.time()
                await _in_thread(self._commit)

    def _poll(self, *, is_full: bool) -> list[Message]:
        """Look for events. Also when there is no room: who does not look is taken for dead, so it looks at nothing."""
        if is_full != self.is_paused:
            self.is_paused = is_full
            (self.client.pause if is_full else self.client.resume)(self.client.assignment())
        return self.client.consume(self.limit * 2, _POLL)

    def _take(self, message: Message, pool: Pool[_Held]) -> None:
        if message.error():
            self.engine.connection_state.lost(KafkaException(message.error()))
            return
        self.engine.connection_state.restored()
        number, offset = _place(message)
        offsets = self.partitions.setdefault(number, Offsets())
        offsets.take(offset)
        pool.put(_Held(message.value() or b"", number, offset, offsets))

    def _commit(self) -> None:
        moved, self.moved = self.moved, set()
        positions = [
            TopicPartition(self.engine.name, number, offsets.position)
            for number, offsets in list(self.partitions.items())
            if number in moved and offsets.position is not None
        ]
        if not positions:
            return
        try:
            self.client.commit(offsets=positions, asynchronous=False)
        except KafkaException as error:  # the next commit says it again; until then a loss means a repetition
            self.moved |= moved
            logger.debug("Kafka did not take a commit (%s)", error)

    def _assigned(self, _client: Consumer, _partitions: list[TopicPartition]) -> None:
        self.is_paused = None  # a partition that was paused when it was taken away comes back paused

    def _revoked(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        """Let what runs come to its end before the next one begins there, so that little is done twice."""
        taken = [self.partitions[one.partition] for one in partitions if one.partition in self.partitions]
        for offsets in taken:
            offsets.is_over = True
        end = time.monotonic() + _FINISH
        while any(offsets.running for offsets in taken) and time.monotonic() < end:
            time.sleep(0.005)  # in a thread: the event loop goes on
        self._commit()
        self._lost(client, partitions)

    def _lost(self, _client: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self.moved.discard(partition.partition)
            if (offsets := self.partitions.pop(partition.partition, None)) is not None:
                offsets.is_over = True

    def _leave(self) -> None:
        with suppress(KafkaException, RuntimeError):
            self._commit()
            self.client.close()
