"""Clients of Kafka: made of the same settings, and used in threads, as they block."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from contextvars import copy_context
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from asignals.masking import said
from asignals.relay._connection_state import ConnectionState
from asignals.relay._envelope import check_name
from asignals.relay._to_the_end import to_the_end
from asignals.relay.engines._kafka.settings import CONSUMER_ONLY, DEFAULTS, PRODUCER_ONLY, check_settings, without

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import ThreadPoolExecutor

    from confluent_kafka import Message

T = TypeVar("T")

ANSWER_TIMEOUT: Final = 10.0  # seconds that asking a broker may take
POLL: Final = 0.1  # seconds that one look for events may take, and so the most that leaving waits for it
# A broker that has said nothing for so long is asked, so that health shows within 10 seconds that it does not answer.
QUIET: Final = 3.0  # seconds
PROBE: Final = 2.0  # seconds that the answer may take
DELIVERY: Final = 10.0  # seconds after which an event that was not acknowledged counts as not published
_NO_ANSWER: Final = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN)


class Clients:
    """Makes the clients of one engine; `name` begins the names of its topics and groups."""

    def __init__(self, servers: str, name: str, librdkafka: dict[str, Any]) -> None:
        self.servers = servers
        self.name = name
        self.state = ConnectionState(f"Kafka ({servers}, {name})")
        self.settings: dict[str, Any] = {"bootstrap.servers": servers, **DEFAULTS, **check_settings(librdkafka)}
        # Seconds without a poll after which a group may have given our partitions to others.
        self.away = float(self.settings.get("session.timeout.ms", 45_000)) / 2_000
        self._admin: AdminClient | None = None

    def topic(self, topic: str) -> str:
        """Give what Kafka calls a topic."""
        return f"{self.name}.{check_name('topic', topic)}"

    def group(self, service: str) -> str:
        """Name the group of a service."""
        return f"{self.name}.{check_name('service', service)}"

    def _on_error(self, error: Any) -> None:
        self.state.lost(KafkaException(error))

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
        return Consumer({"allow.auto.create.topics": True, **without(self.settings, PRODUCER_ONLY), **exact})

    def producer(self) -> Producer:
        """Make a producer that waits for all in-sync replicas."""
        safe = {"acks": "all", "enable.idempotence": True, "delivery.timeout.ms": int(DELIVERY * 1000)}
        return Producer({**without(self.settings, CONSUMER_ONLY), **safe, "error_cb": self._on_error})

    def admin(self) -> AdminClient:
        """The client that manages groups, made when it is first needed."""
        if self._admin is None:
            self._admin = AdminClient(without(self.settings, CONSUMER_ONLY))
        return self._admin

    def close(self) -> None:
        """Let go of the client that manages groups."""
        held, self._admin = [self._admin], None
        discard(held)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Raise `TimeoutError`, which says who did not answer, for librdkafka's own errors of that kind."""
        try:
            yield
        except KafkaException as error:
            if error.args[0].code() not in _NO_ANSWER:
                raise
            raise TimeoutError(
                f"{self.state.name} gave no answer within {ANSWER_TIMEOUT:g} s ({said(error)})"
            ) from error

    async def with_consumer(self, group: str, work: Callable[[Consumer], T]) -> T:
        """Do something with a consumer that is made for it, in a thread."""

        def now() -> T:
            consumer = self.consumer(f"{self.name}.{group}")
            try:
                with self.answering():
                    return work(consumer)
            finally:
                consumer.close()

        return await in_thread(now)


def discard(held: list[Any]) -> None:
    """Empty a list that has the last reference to a client, in a separate thread.

    librdkafka waits for its own threads then, and some of its versions (2.6 was seen) do so for ever now and then.
    """
    Thread(target=held.clear, name="asignals-kafka-end", daemon=True).start()


async def in_thread(work: Callable[[], T], thread: ThreadPoolExecutor | None = None) -> T:
    """Run blocking work in a thread, to its end though we are cancelled: the client must not be used by two at once.

    What never ends has its own thread, as the threads of the loop are few.
    """
    context = copy_context()
    return await to_the_end(_future(asyncio.get_running_loop().run_in_executor(thread, lambda: context.run(work))))


async def _future(future: asyncio.Future[T]) -> T:
    return await future


def partitions_of(consumer: Consumer, topic: str) -> list[TopicPartition]:
    """Give the partitions of a topic."""
    found = consumer.list_topics(topic, timeout=ANSWER_TIMEOUT).topics[topic]
    return [TopicPartition(topic, number) for number in found.partitions]


def place_of(message: Message) -> tuple[int, int]:
    """Give partition and offset, which a message that was consumed always has."""
    return message.partition() or 0, message.offset() or 0


def key_of(message: Message) -> bytes | None:
    """Give the key of a message."""
    key: Any = message.key()
    return key.encode() if isinstance(key, str) else key
