"""Kafka as the engine, by confluent-kafka (extra: kafka).

A Kafka topic for each topic, and a consumer group for each service. A consumer handles many events at once, of each key
one, and commits for each partition the offset below which everything is done. A retry is kept here until it is due, and
blocks that offset and the later events of its key, not the other ones; when this process dies they are delivered again.
So is an event that is given back, as Kafka takes nothing back: it goes to another instance when this one leaves its
partition.

Tested against librdkafka's mock cluster only, not against a Kafka server.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from asignals.masking import redacted, said
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import DeadLetter, check_name
from asignals.relay._key_queues import KeyQueues
from asignals.relay._monitoring.figures import TopicFigures, backlog_of
from asignals.relay._places import Address, Server
from asignals.relay._pool import Pool
from asignals.relay._settings import check_servers
from asignals.relay._to_the_end import to_the_end
from asignals.relay._transport import Delivery, PublishRefusedError, delay_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence

    from confluent_kafka import Message

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle, Hear

T = TypeVar("T")
_Place: TypeAlias = tuple[str, int]  # a topic and the number of a partition
logger: logging.Logger = logging.getLogger("asignals.relay")

_DEFAULTS: Final = {
    "message.max.bytes": 1_048_588,  # what brokers take by default, and the largest dead letter needs
    "socket.timeout.ms": 8_000,  # a request that is not answered for so long ends its connection
    "socket.keepalive.enable": True,
    "reconnect.backoff.max.ms": 2_000,
}
# A broker that has said nothing for so long is asked, so that health shows within 10 seconds that it does not answer.
_QUIET: Final = 3.0  # seconds
_PROBE: Final = 2.0  # seconds that the answer may take
_DELIVERY: Final = 10.0  # seconds after which an event that was not acknowledged counts as not published
_TRIP: Final = 10.0  # seconds that asking a broker may take
_FIRST: Final = 3.0  # seconds that reading the oldest events may take
_POLL: Final = 0.1  # seconds that one look for events may take, and so the most that leaving waits for it
_FINISH: Final = 5.0  # seconds for which a partition is not handed on while its events are being handled
_FINISH_IN_ORDER: Final = 60.0  # and while some with a key are: those behind them must not begin elsewhere before
_NO_MEMBER: Final = (
    *(KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.FENCED_INSTANCE_ID),
    *(KafkaError._FENCED, KafkaError._STATE, KafkaError._ASSIGNMENT_LOST, KafkaError.REBALANCE_IN_PROGRESS),
)
_NO_ANSWER: Final = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)
_COMMITTED: Final = 5.0  # seconds after which a commit that is not answered shows
_COMMIT: Final = 0.5  # seconds between two commits
_MOST_HELD: Final = 10_000  # events beyond the first that is not done yet


_OURS: Final = frozenset(
    (
        *("bootstrap.servers", "metadata.broker.list", "group.id", "auto.offset.reset", "error_cb"),
        *("enable.auto.commit", "enable.auto.offset.store", "enable.idempotence", "acks", "request.required.acks"),
        *("delivery.timeout.ms", "message.timeout.ms"),
    )
)  # what the promises rest on
_WITH_UNDERSCORE: Final = ("_cb", "log_level", "default_topic_conf")  # all others of its names are written with dots
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
    text = ",".join(check_servers("Kafka", "host:9092", servers))
    if "://" in text or not all(text.split(",")):
        raise ValueError(
            f"Kafka takes servers such as 'host:9092', not {redacted(text)!r}; engine_from_url takes 'kafka://host:9092'"
        )
    return text


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Give settings by librdkafka's names; raises `ValueError` for those that the relay decides."""
    named = {
        name if name.endswith(_WITH_UNDERSCORE) else name.replace("_", "."): value for name, value in given.items()
    }
    if ours := sorted(_OURS & named.keys()):
        raise ValueError(f"Kafka decides over {', '.join(ours)} by itself, as its promises rest on it")
    return named


def _but(settings: dict[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.startswith(prefixes)}


@dataclass(frozen=True, slots=True)
class _Record:
    """What is to be written: `value` is `None` for the mark that a dead letter is gone."""

    topic: str
    key: str | bytes | None
    value: bytes | None
    partition: int = -1  # any, by the key


class Offsets:
    """What has been taken of one partition, and up to where all of it is done."""

    def __init__(self, end: float = 0) -> None:
        self._open: deque[int] = deque()
        self._done: set[int] = set()
        self._begin: int | None = None
        self._end = end  # what was there when the partition was assigned
        self.position: int | None = None
        self.running: int = 0
        self.in_order: int = 0  # of those, how many have a key
        self.is_over: bool = False  # the partition is another's now

    def __len__(self) -> int:
        """Offsets that hold the position up, or follow one that does."""
        return len(self._open)

    @property
    def first(self) -> int:
        """The first offset that is not done, where a successor would begin; -1 where nothing has come yet."""
        if self.position is not None:
            return self.position
        return -1 if self._begin is None else self._begin

    def take(self, offset: int) -> None:
        """Note the next offset; they come in order."""
        if self._begin is None:
            self._begin = offset
        self._open.append(offset)

    def may_be_repeat(self, offset: int) -> bool:
        """Whether whoever had the partition before may have taken the event, too."""
        return offset < self._end and offset < (self._begin or 0) + _MOST_HELD

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
    """Carries events through Kafka topics.

    Events of a key are in one partition, and are handled in order, one at a time, as long as the topic's number of
    partitions stays the same. An event id that comes twice is delivered twice (the
    producer is idempotent, but a relay that was killed publishes again); an inbox that is given to the relay skips
    the second.

    Args:
        servers: `host:9092`, several divided by commas or as a list.
        name: Begins all names: the topics are `<name>.<topic>`, those of dead letters `<name>-dead.<queue>`, and the
            group of a service is `<name>.<service>`. Topics are made by the brokers when they are first asked for, if
            they allow it.
        librdkafka: Settings of librdkafka, by their names with `_` for `.`: `security_protocol="SASL_SSL"`, or as they
            are: `**{"sasl.mechanism": "PLAIN"}`.

    Raises:
        ValueError: `servers` are no `host:port`, `name` cannot be used, or a setting is one that the relay decides.
    """

    system: Final = "kafka"  # as OpenTelemetry calls it

    def __init__(self, servers: str | Sequence[str], *, name: str = "asignals", **librdkafka: Any) -> None:
        self._servers = _servers(servers)
        self.name: str = check_name("name", name)
        self.connection_state: ConnectionState = ConnectionState(f"Kafka ({self._servers}, {name})")
        self._settings: dict[str, Any] = {"bootstrap.servers": self._servers, **_DEFAULTS, **_settings(librdkafka)}
        # Seconds without a poll after which a group may have given our partitions to others.
        self.away: float = float(self._settings.get("session.timeout.ms", 45_000)) / 2_000
        self._producer: Producer | None = None
        self._publishing = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "asignals-kafka")

    # -- connecting ------------------------------------------------------------------------------------------------

    async def init(self) -> None:
        """See whether Kafka answers: topics are made when they are first asked for."""
        await self._with_consumer("init", lambda consumer: consumer.list_topics(timeout=_TRIP))

    async def aclose(self) -> None:
        """Let go of the producer."""
        self._producer = None
        self._publishing = asyncio.Lock()  # the next event loop may be another

    def _on_error(self, error: Any) -> None:
        self.connection_state.lost(KafkaException(error))

    def consumer(self, group: str, committed: Callable[[KafkaError | None], None] | None = None) -> Consumer:
        """Make a consumer that commits nothing by itself and begins with the first event there is.

        `committed` is called with what became of a commit that nobody waits for.
        """
        exact = {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "error_cb": self._on_error,
            **({} if committed is None else {"on_commit": lambda error, _places: committed(error)}),
        }
        return Consumer({"allow.auto.create.topics": True, **_but(self._settings, _PRODUCER_ONLY), **exact})

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Say who did not answer, and for how long."""
        try:
            yield
        except KafkaException as error:
            if error.args[0].code() not in _NO_ANSWER:
                raise
            raise TimeoutError(
                f"{self.connection_state.name} gave no answer within {_TRIP:g} s ({said(error)})"
            ) from error

    async def _with_consumer(self, group: str, work: Callable[[Consumer], T]) -> T:
        """Do something with a consumer that is made for it, in a thread."""

        def now() -> T:
            consumer = self.consumer(f"{self.name}.{group}")
            try:
                with self._answering():
                    return work(consumer)
            finally:
                consumer.close()

        return await _in_thread(now)

    # -- publishing ------------------------------------------------------------------------------------------------

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when all in-sync replicas have all events; raises `KafkaException`, at the latest after 10 s.

        Raises `PublishRefusedError` for events that are larger than the brokers or the producer's settings allow.
        """
        records = [_Record(self._topic(one.topic), one.key, one.encode()) for one in envelopes]
        refused = await self._produce(records)
        if refused:
            raise PublishRefusedError({envelopes[place].id: reason for place, reason in refused.items()})

    async def _produce(self, records: Sequence[_Record]) -> dict[int, str]:
        """Publish; returns the places of records that are too large for Kafka, and what it says of them."""
        async with self._publishing:
            refused = await _in_thread(lambda: self._produce_now(records), self._thread)
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

        for place, record in records.items():
            try:
                _put(producer, record, partial(delivered, place))
            except KafkaException as error:
                delivered(place, error.args[0], None)
        if producer.flush(_DELIVERY + 1):
            raise TimeoutError(f"{self.connection_state.name} did not acknowledge within {_DELIVERY + 1:g} s")
        if errors:
            raise KafkaException(errors[0])
        return refused

    def servers(self) -> list[Server]:
        """List the servers."""
        is_plain = str(self._settings.get("security.protocol", "plaintext")).lower() in ("plaintext", "sasl_plaintext")
        protocol = "kafka" if is_plain else "kafka-secure"
        return [Server(protocol, server.strip()) for server in self._servers.split(",")]

    def address(self, topic: str) -> Address:
        """Give what Kafka calls a topic."""
        return Address(self._topic(topic))

    def _topic(self, topic: str) -> str:
        return f"{self.name}.{check_name('topic', topic)}"

    # -- consuming -------------------------------------------------------------------------------------------------

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event of the topics until cancelled."""
        check_name("instance", instance)
        names = {self._topic(topic): topic for topic in topics}
        group = f"{self.name}.{check_name('service', service)}"
        client = self.consumer(group, lambda error: running.note(error))  # noqa: PLW0108  it is made below
        running = _Consumer(self, client, names, handle, limit)
        await running.run()

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Hear each event of these topics by a consumer that joins no group and commits nothing."""
        names = {self._topic(topic): topic for topic in topics}
        attempts = Attempts(self.connection_state)
        thread = ThreadPoolExecutor(1, "asignals-kafka")
        consumer = self.consumer(f"{self.name}.listen.{secrets.token_hex(4)}")
        try:
            positions: list[TopicPartition] = []
            while not positions:
                async with attempts:
                    positions = await _in_thread(lambda: _ends(consumer, names), thread)
            await _in_thread(lambda: consumer.assign(positions), thread)
            begun()
            answered = time.monotonic()
            while True:
                messages = await _in_thread(lambda: _some(consumer), thread)
                if messages:
                    answered = time.monotonic()
                elif not self.connection_state.is_up or time.monotonic() - answered > _QUIET:
                    async with attempts:
                        await _in_thread(lambda: consumer.list_topics(timeout=_PROBE), thread)
                        answered = time.monotonic()
                for message in messages:
                    if message.error():
                        self.connection_state.lost(KafkaException(message.error()))
                        continue
                    self.connection_state.restored()
                    hear(Delivery(names[message.topic() or ""], message.value() or b""))
        finally:
            await _in_thread(consumer.close, thread)
            thread.shutdown(wait=False)

    async def add_service(self, service: str, topics: Collection[str]) -> None:
        """Commit for the service where each topic begins, so that it counts as one that receives it."""
        names = [self._topic(topic) for topic in topics]

        def commit(consumer: Consumer) -> None:
            places = [place for name in names for place in _partitions(consumer, name)]
            starts = _starts(consumer, consumer.committed(places, timeout=_TRIP))
            if starts:
                consumer.commit(offsets=starts, asynchronous=False)

        await self._with_consumer(check_name("service", service), commit)

    async def forget_service(self, service: str, topics: Collection[str] | None = None) -> None:
        """Delete the service's group, or skip what there is of some topics. Kafka keeps the events for its own time."""
        if topics is None:
            group = f"{self.name}.{check_name('service', service)}"
            await _in_thread(lambda: _delete_group(AdminClient(_but(self._settings, _CONSUMER_ONLY)), group))
            return
        names = [self._topic(topic) for topic in topics]

        def skip(consumer: Consumer) -> None:
            places = [place for name in names for place in _partitions(consumer, name)]
            known = [place for place in consumer.committed(places, timeout=_TRIP) if place.offset >= 0]
            for place in known:
                place.offset = consumer.get_watermark_offsets(place, timeout=_TRIP)[1]
            if known:
                consumer.commit(offsets=known, asynchronous=False)

        await self._with_consumer(service, skip)

    async def backlog(self, service: str) -> int:
        """Count the events above what the service has committed, of all topics of which it has committed anything."""
        return backlog_of(await self.figures(service))

    async def figures(self, service: str | None = None, topics: Collection[str] | None = None) -> list[TopicFigures]:
        """Give what waits above what services have committed, by service and topic.

        Kafka knows neither what instances hold nor what waits for its retry. Instances that were killed count as alive
        until `session.timeout.ms` is over, 45 seconds by default.
        """
        names = None if topics is None else {self._topic(topic) for topic in topics}
        admin = AdminClient(_but(self._settings, _CONSUMER_ONLY))
        services = await _in_thread(lambda: self._services(admin)) if service is None else [service]
        found: list[TopicFigures] = []
        for one in services:
            group = f"{self.name}.{check_name('service', one)}"
            waiting = await self._with_consumer(one, lambda consumer: _waiting(consumer, f"{self.name}.", names))
            members = await _in_thread(partial(_members, admin, group))
            for name, (backlog, oldest) in sorted(waiting.items()):
                topic = name.removeprefix(f"{self.name}.")
                found.append(TopicFigures(one, topic, backlog, oldest, instances=members))
        return found

    def _services(self, admin: AdminClient) -> list[str]:
        """Give the services whose groups Kafka knows."""
        groups = admin.list_consumer_groups(request_timeout=_TRIP).result(_TRIP).valid
        names = (
            group.group_id.removeprefix(f"{self.name}.")
            for group in groups
            if group.group_id.startswith(f"{self.name}.")
        )
        return sorted(names)

    # -- dead letters ----------------------------------------------------------------------------------------------

    def _dead(self, queue: str) -> str:
        return f"{self.name}-dead.{check_name('queue', queue)}"

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Write a letter to the queue's topic."""
        # All in one partition, so that they have an order.
        record = _Record(self._dead(queue), f"{letter.id}-{secrets.token_hex(4)}", letter.encode(), 0)
        refused = await self._produce([record])
        if refused:
            raise PublishRefusedError({letter.id: refused[0]})

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue: reads the whole topic, as Kafka cannot tell letters from marks of removal."""
        total = 0
        async with aclosing(self.scan_dead_letters(queue, batch=1_000)) as batches:
            async for some in batches:
                total += len(some)
        return total

    async def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters in batches, the oldest first; reads twice, as marks of removal come after their letters."""
        topic = self._dead(queue)
        consumer = await _in_thread(lambda: self.consumer(f"{self.name}.look.{secrets.token_hex(4)}"))
        try:
            with self._answering():
                extent = await _in_thread(lambda: _extent(consumer, topic))
            gone: set[bytes] = set()
            async for messages in _all_of(consumer, topic, extent, 1_000):
                gone.update(key for message in messages if message.value() is None and (key := _key(message)))
            found: list[DeadLetter] = []
            async for messages in _all_of(consumer, topic, extent, batch):
                for message in messages:
                    value, mark = message.value(), _mark(message)
                    if value is not None and mark not in gone and _key(message) not in gone:
                        number, offset = _place(message)
                        found.append(DeadLetter.read(value, f"{number}:{offset}:{(_key(message) or b'').hex()}"))
                while len(found) >= batch:
                    some, found = found[:batch], found[batch:]
                    yield some
            if found:
                yield found
        finally:
            await _in_thread(consumer.close)

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Write that letters are gone; a compacted topic then forgets them."""
        topic = self._dead(queue)
        records = []
        for letter in letters:
            number, offset, key = letter.position.split(":")
            mark = bytes.fromhex(key) or _mark_of(int(number), int(offset))
            records.append(_Record(topic, mark, None, int(number)))
        if records:
            await self._produce(records)


def _put(producer: Producer, record: _Record, delivered: Callable[..., None]) -> None:
    """Queue a record, when there is room."""
    while True:
        try:
            return producer.produce(
                record.topic, record.value, record.key, partition=record.partition, on_delivery=delivered
            )
        except BufferError:
            producer.poll(0.1)


def _partitions(consumer: Consumer, topic: str) -> list[TopicPartition]:
    found = consumer.list_topics(topic, timeout=_TRIP).topics[topic]
    return [TopicPartition(topic, number) for number in found.partitions]


def _starts(consumer: Consumer, committed: list[TopicPartition]) -> list[TopicPartition]:
    """Give where partitions begin of which nothing is committed."""
    starts = []
    for place in committed:
        if place.offset < 0:
            low, _ = consumer.get_watermark_offsets(place, timeout=_TRIP)
            starts.append(TopicPartition(place.topic, place.partition, low))
    return starts


def _members(admin: AdminClient, group: str) -> int | None:
    """Count the members of a group; `None` where the broker does not say."""
    try:
        found = admin.describe_consumer_groups([group], request_timeout=_TRIP)[group].result(_TRIP)
    except KafkaException:
        return None
    return len(found.members)


def _waiting(consumer: Consumer, prefix: str, names: Collection[str] | None) -> dict[str, tuple[int, float | None]]:
    """Give, of each topic of which a group has committed anything, how many events wait and the age of the oldest."""
    counts: dict[str, int] = {}
    firsts: list[TopicPartition] = []
    for name in consumer.list_topics(timeout=_TRIP).topics:
        if name.startswith(prefix) and (names is None or name in names):
            for place in consumer.committed(_partitions(consumer, name), timeout=_TRIP):
                if place.offset >= 0:
                    low, high = consumer.get_watermark_offsets(place, timeout=_TRIP)
                    place.offset = max(low, place.offset)
                    counts[name] = counts.get(name, 0) + high - place.offset
                    if high > place.offset:
                        firsts.append(place)
    oldest = _times(consumer, firsts)
    return {name: (count, _age(count, oldest.get(name))) for name, count in counts.items()}


def _age(count: int, since: float | None) -> float | None:
    if not count:
        return 0.0
    return None if since is None else max(0.0, time.time() - since)


def _times(consumer: Consumer, places: list[TopicPartition]) -> dict[str, float]:
    """Give when the oldest event at some places was published, by topic; without those that do not come in time."""
    found: dict[str, float] = {}
    end, missing = time.monotonic() + _FIRST, {(place.topic, place.partition) for place in places}
    if places:
        consumer.assign(places)
    while missing and time.monotonic() < end:
        message = consumer.poll(_POLL)
        if message is None or message.error():
            continue
        place = message.topic() or "", message.partition() or 0
        if place in missing:
            missing.discard(place)
            consumer.pause([TopicPartition(*place)])
            found[place[0]] = min(found.get(place[0], time.time()), message.timestamp()[1] / 1000)
    for topic, _ in missing:  # one that did not come may be the oldest
        found.pop(topic, None)
    return found


def _ends(consumer: Consumer, topics: Collection[str]) -> list[TopicPartition]:
    """Give where the partitions of topics end now."""
    found = [place for topic in topics for place in _partitions(consumer, topic)]
    for place in found:
        place.offset = consumer.get_watermark_offsets(place, timeout=_TRIP)[1]
    return found


def _some(consumer: Consumer) -> list[Message]:
    """Give what has come, as soon as there is something; `consume` alone waits for as many as it may take."""
    first = consumer.poll(_POLL)
    return [] if first is None else [first, *consumer.consume(500, 0)]


def _delete_group(admin: AdminClient, group: str) -> None:
    try:
        admin.delete_consumer_groups([group], request_timeout=_TRIP)[group].result(_TRIP)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
            raise


def _extent(consumer: Consumer, topic: str) -> dict[int, tuple[int, int]]:
    """Give where the partitions of a topic begin and end that are not empty."""
    found = {one.partition: consumer.get_watermark_offsets(one, timeout=_TRIP) for one in _partitions(consumer, topic)}
    return {number: (low, high) for number, (low, high) in found.items() if low < high}


async def _all_of(
    consumer: Consumer, topic: str, extent: dict[int, tuple[int, int]], count: int
) -> AsyncGenerator[list[Message], None]:
    """Read a part of a topic."""
    await _in_thread(lambda: consumer.assign([TopicPartition(topic, one, low) for one, (low, _) in extent.items()]))
    ends = {number: high for number, (_, high) in extent.items()}
    while ends:
        messages = await _in_thread(lambda: consumer.consume(count, 0.05))
        for message in messages:
            if message.error():
                raise KafkaException(message.error())
            number, offset = _place(message)
            if offset + 1 >= ends.get(number, 0):
                ends.pop(number, None)
        yield messages


def _key(message: Message) -> bytes | None:
    key: Any = message.key()
    return key.encode() if isinstance(key, str) else key


def _mark(message: Message) -> bytes:
    """Give the key of the record that says that a letter without a key is gone."""
    return _mark_of(*_place(message))


def _mark_of(partition: int, offset: int) -> bytes:
    return b"gone %d %d" % (partition, offset)


def _place(message: Message) -> tuple[int, int]:
    """Give partition and offset, which a message that was consumed always has."""
    return message.partition() or 0, message.offset() or 0


async def _in_thread(work: Callable[[], T], thread: ThreadPoolExecutor | None = None) -> T:
    """Run blocking work in a thread, to its end though we are cancelled: the client must not be used by two at once.

    What goes on for ever has a thread of its own, as those of the loop's are few.
    """
    context = copy_context()
    return await to_the_end(_future(asyncio.get_running_loop().run_in_executor(thread, lambda: context.run(work))))


async def _future(future: asyncio.Future[T]) -> T:
    return await future


@dataclass(slots=True, eq=False)
class _Held:
    """An event that is here."""

    data: bytes
    place: _Place
    offset: int
    offsets: Offsets
    key: bytes | None
    attempt: int = 1

    @property
    def queue(self) -> tuple[Offsets, bytes] | None:
        """Whose turn it is to wait for whom."""
        return None if self.key is None else (self.offsets, self.key)


@dataclass(slots=True)
class _Consumer:
    """One running `consume`; `topics` are those of the relay by those of Kafka."""

    engine: Kafka
    client: Consumer
    topics: dict[str, str]
    handle: Handle
    limit: int
    going: set[_Place] | None = None  # what is being committed
    began: float = 0.0  # when that was asked for
    partitions: dict[_Place, Offsets] = field(default_factory=dict)
    moved: set[_Place] = field(default_factory=set)
    polled: float = field(default_factory=time.monotonic)
    answered: float = field(default_factory=time.monotonic)  # when the broker last did
    is_paused: bool | None = None  # None: not known of the partitions that are assigned now
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "asignals-kafka"))

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        pool: Pool[_Held]
        queues: KeyQueues[_Held]

        async def work(item: _Held) -> None:
            if item.key is not None and self._was_away:
                await self._until_ours(item)
            if item.offsets.is_over:  # the partition was taken away, and whoever has it now is given the event, too
                queues.done(item.queue)
                return
            item.offsets.running += 1
            item.offsets.in_order += item.key is not None
            is_repeat = item.attempt > 1 or item.offsets.may_be_repeat(item.offset)
            delivery = Delivery(self.topics[item.place[0]], item.data, item.attempt, is_repeat, pool.park)
            try:
                outcome = await self.handle(delivery)
            finally:
                item.offsets.running -= 1
                item.offsets.in_order -= item.key is not None
            if outcome is not None:
                item.attempt += 1
                loop.call_later(delay_of(outcome), pool.put, item)
                return
            if item.offsets.finish(item.offset) and self.partitions.get(item.place) is item.offsets:
                self.moved.add(item.place)
            queues.done(item.queue)

        pool = Pool(work, self.limit)
        queues = KeyQueues(pool.put)
        try:
            async with pool:
                told = {"on_assign": self._assigned, "on_revoke": self._revoked, "on_lost": self._lost}
                self.client.subscribe(list(self.topics), **told)
                await self._read_for_ever(pool, queues)
        finally:
            # The events that are not done lie above the committed offsets: leaving the group gives them back.
            await _in_thread(self._leave, self.thread)
            self.thread.shutdown(wait=False)

    async def _until_ours(self, item: _Held) -> None:
        """Wait while it is not known whether the group still counts on us: this process may have been frozen."""
        while self._was_away and not item.offsets.is_over:  # noqa: ASYNC110  a thread finds it out
            await asyncio.sleep(_POLL)

    @property
    def _was_away(self) -> bool:
        return time.monotonic() - self.polled > self.engine.away

    async def _read_for_ever(self, pool: Pool[_Held], queues: KeyQueues[_Held]) -> None:
        committed = 0.0
        loop = asyncio.get_running_loop()
        while True:
            is_full = len(pool) >= self.limit * 2 or sum(map(len, self.partitions.values())) >= _MOST_HELD
            messages = await _in_thread(partial(self._poll, is_full=is_full), self.thread)
            if not self._was_away or await _in_thread(self._is_member, self.thread):
                self.polled = time.monotonic()
            for message in messages:
                self._take(message, queues)
            if loop.time() - committed > _COMMIT:
                committed = loop.time()
                await _in_thread(self._commit_soon, self.thread)

    def _poll(self, *, is_full: bool) -> list[Message]:
        """Look for events. Also when there is no room: who does not look is taken for dead, so it looks at nothing."""
        if is_full != self.is_paused:
            self.is_paused = is_full
            (self.client.pause if is_full else self.client.resume)(self.client.assignment())
        return self.client.consume(self.limit * 2, _POLL)

    def _is_member(self) -> bool:
        """Ask the group whether it still counts on us; when it does not, the partitions are others'."""
        places = [
            TopicPartition(*place, offsets.first)
            for place, offsets in list(self.partitions.items())
            if offsets.first >= 0
        ]
        try:
            if places:
                self.client.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() not in _NO_MEMBER:
                return False
            for offsets in list(self.partitions.values()):
                offsets.is_over = True
        return True

    def _take(self, message: Message, queues: KeyQueues[_Held]) -> None:
        if message.error():
            self.engine.connection_state.lost(KafkaException(message.error()))
            return
        self.engine.connection_state.restored()
        self.answered = time.monotonic()
        number, offset = _place(message)
        place = message.topic() or "", number
        offsets = self.partitions.setdefault(place, Offsets())
        offsets.take(offset)
        held = _Held(message.value() or b"", place, offset, offsets, _key(message))
        queues.add(held.queue, held)

    def _positions(self, moved: Collection[_Place]) -> list[TopicPartition]:
        return [
            TopicPartition(*place, offsets.position)
            for place, offsets in list(self.partitions.items())
            if place in moved and offsets.position is not None
        ]

    def _commit_soon(self) -> None:
        """Commit without waiting, which has no limit while a broker is silent; one commit at a time."""
        if self.going is not None:
            if (seconds := time.monotonic() - self.began) > _COMMITTED:
                self.engine.connection_state.lost(TimeoutError(f"a commit was not answered within {seconds:.0f} s"))
            return
        if positions := self._positions(self.moved):
            self.going, self.moved, self.began = self.moved, set(), time.monotonic()
            self.client.commit(offsets=positions, asynchronous=True)
        else:
            self.moved.clear()
            self._look()

    def note(self, error: KafkaError | None) -> None:
        """Note what became of a commit; called while the client looks for events."""
        going, self.going = self.going or set(), None
        if error is not None:  # the next commit says it again; until then a loss means a repetition
            self.moved |= going & self.partitions.keys()
            self.engine.connection_state.lost(KafkaException(error))
            return
        self.answered = time.monotonic()
        self.engine.connection_state.restored()

    def _commit(self) -> None:
        """Commit and wait for it: before others have the partitions."""
        moved, self.moved, self.going = self.moved | (self.going or set()), set(), None
        if positions := self._positions(moved):
            try:
                self.client.commit(offsets=positions, asynchronous=False)
            except KafkaException as error:
                self.moved |= moved
                self.engine.connection_state.lost(error)

    def _look(self) -> None:
        try:
            if not self.engine.connection_state.is_up or time.monotonic() - self.answered > _QUIET:
                self.client.list_topics(timeout=_PROBE)  # who has nothing to do hears of no loss, and of no return
            else:
                return
            self.answered = time.monotonic()
        except KafkaException as error:
            self.engine.connection_state.lost(error)
        else:
            self.engine.connection_state.restored()

    def _assigned(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        self.is_paused = None  # a partition that was paused when it was taken away comes back paused
        for partition in partitions:
            try:
                end: float = client.get_watermark_offsets(partition, timeout=_TRIP)[1]
            except KafkaException:
                end = float("inf")
            self.partitions[partition.topic, partition.partition] = Offsets(end)

    def _revoked(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        """Let what runs come to its end before the next one begins there, so that little is done twice."""
        places = [(one.topic, one.partition) for one in partitions]
        taken = [self.partitions[place] for place in places if place in self.partitions]
        for offsets in taken:
            offsets.is_over = True
        began = time.monotonic()
        while any(offsets.running for offsets in taken):
            waited = time.monotonic() - began
            if waited > _FINISH and (waited > _FINISH_IN_ORDER or not any(offsets.in_order for offsets in taken)):
                break
            time.sleep(0.005)  # in a thread: the event loop goes on
        self._commit()
        self._lost(client, partitions)

    def _lost(self, _client: Consumer, partitions: list[TopicPartition]) -> None:
        for one in partitions:
            self.moved.discard((one.topic, one.partition))
            if (offsets := self.partitions.pop((one.topic, one.partition), None)) is not None:
                offsets.is_over = True

    def _leave(self) -> None:
        with suppress(KafkaException, RuntimeError):
            if self.engine.connection_state.is_up:  # else it would wait for a broker that does not answer
                self._commit()
            self.client.close()
