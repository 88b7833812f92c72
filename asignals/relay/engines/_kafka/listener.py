"""One running `listen` on Kafka: a consumer that joins no group and commits nothing."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaException, TopicPartition

from asignals.relay._connection_state import Attempts
from asignals.relay._transport import Delivery
from asignals.relay.engines._kafka.clients import ANSWER_TIMEOUT, POLL, PROBE, QUIET, in_thread, partitions_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from confluent_kafka import Message

    from asignals.relay._transport import Hear
    from asignals.relay.engines._kafka.clients import Clients


class Listener:
    """Reads topics from where they end; `topics` are those of the relay by those of Kafka."""

    def __init__(self, clients: Clients, topics: dict[str, str], hear: Hear) -> None:
        self._state = clients.state
        self._topics = topics
        self._hear = hear
        self._attempts = Attempts(clients.state)
        self._thread = ThreadPoolExecutor(1, "asignals-kafka")
        self._consumer = clients.consumer(f"{clients.name}.listen.{secrets.token_hex(4)}")

    async def run(self, begun: Callable[[], object]) -> None:
        """Hear each event until cancelled."""
        try:
            positions: list[TopicPartition] = []
            while not positions:
                async with self._attempts:
                    positions = await in_thread(lambda: _ends(self._consumer, self._topics), self._thread)
            await in_thread(lambda: self._consumer.assign(positions), self._thread)
            begun()
            await self._read_for_ever()
        finally:
            await in_thread(self._consumer.close, self._thread)
            self._thread.shutdown(wait=False)

    async def _read_for_ever(self) -> None:
        answered = time.monotonic()
        while True:
            messages = await in_thread(lambda: _some(self._consumer), self._thread)
            if messages:
                answered = time.monotonic()
            elif not self._state.is_up or time.monotonic() - answered > QUIET:
                async with self._attempts:
                    await in_thread(lambda: self._consumer.list_topics(timeout=PROBE), self._thread)
                    answered = time.monotonic()
            for message in messages:
                self._take(message)

    def _take(self, message: Message) -> None:
        if message.error():
            self._state.lost(KafkaException(message.error()))
            return
        self._state.restored()
        self._hear(Delivery(self._topics[message.topic() or ""], message.value() or b""))


def _ends(consumer: Consumer, topics: Collection[str]) -> list[TopicPartition]:
    """Give where the partitions of topics end now."""
    found = [place for topic in topics for place in partitions_of(consumer, topic)]
    for place in found:
        place.offset = consumer.get_watermark_offsets(place, timeout=ANSWER_TIMEOUT)[1]
    return found


def _some(consumer: Consumer) -> list[Message]:
    """Give what has come, as soon as there is something; `consume` alone waits for as many as it may take."""
    first = consumer.poll(POLL)
    return [] if first is None else [first, *consumer.consume(500, 0)]
