"""Dead letters in Kafka: a topic for each queue of them, with marks for the letters that were removed."""

from __future__ import annotations

import secrets
from contextlib import aclosing
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, KafkaException, TopicPartition

from asignals.relay._envelope import DeadLetter, check_name
from asignals.relay._transport import PublishRefusedError
from asignals.relay.engines._kafka.clients import ANSWER_TIMEOUT, in_thread, key_of, partitions_of, place_of
from asignals.relay.engines._kafka.publisher import Record

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from confluent_kafka import Message

    from asignals.relay.engines._kafka.clients import Clients
    from asignals.relay.engines._kafka.publisher import Publisher


class DeadLetterTopics:
    """Keeps dead letters. Kafka cannot tell letters from marks of removal, so that counting reads them all."""

    def __init__(self, clients: Clients, publisher: Publisher) -> None:
        self._clients = clients
        self._publisher = publisher

    def _topic(self, queue: str) -> str:
        return f"{self._clients.name}-dead.{check_name('queue', queue)}"

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Write a letter to the queue's topic."""
        # All in one partition, so that they have an order.
        record = Record(self._topic(queue), f"{letter.id}-{secrets.token_hex(4)}", letter.encode(), 0)
        refused = await self._publisher.produce([record])
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
        topic = self._topic(queue)
        consumer = await in_thread(lambda: self._clients.consumer(f"{self._clients.name}.look.{secrets.token_hex(4)}"))
        try:
            with self._clients.answering():
                extent = await in_thread(lambda: _extent(consumer, topic))
            gone: set[bytes] = set()
            async for messages in _all_of(consumer, topic, extent, 1_000):
                gone.update(key for message in messages if message.value() is None and (key := key_of(message)))
            found: list[DeadLetter] = []
            async for messages in _all_of(consumer, topic, extent, batch):
                for message in messages:
                    value, mark = message.value(), _mark(message)
                    if value is not None and mark not in gone and key_of(message) not in gone:
                        number, offset = place_of(message)
                        found.append(DeadLetter.read(value, f"{number}:{offset}:{(key_of(message) or b'').hex()}"))
                while len(found) >= batch:
                    some, found = found[:batch], found[batch:]
                    yield some
            if found:
                yield found
        finally:
            await in_thread(consumer.close)

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Write that letters are gone; a compacted topic then forgets them."""
        topic = self._topic(queue)
        records = []
        for letter in letters:
            number, offset, key = letter.position.split(":")
            mark = bytes.fromhex(key) or _mark_of(int(number), int(offset))
            records.append(Record(topic, mark, None, int(number)))
        if records:
            await self._publisher.produce(records)


def _extent(consumer: Consumer, topic: str) -> dict[int, tuple[int, int]]:
    """Give where the partitions of a topic begin and end that are not empty."""
    found = {
        one.partition: consumer.get_watermark_offsets(one, timeout=ANSWER_TIMEOUT)
        for one in partitions_of(consumer, topic)
    }
    return {number: (low, high) for number, (low, high) in found.items() if low < high}


async def _all_of(
    consumer: Consumer, topic: str, extent: dict[int, tuple[int, int]], count: int
) -> AsyncGenerator[list[Message], None]:
    """Read a part of a topic."""
    await in_thread(lambda: consumer.assign([TopicPartition(topic, one, low) for one, (low, _) in extent.items()]))
    ends = {number: high for number, (_, high) in extent.items()}
    while ends:
        messages = await in_thread(lambda: consumer.consume(count, 0.05))
        for message in messages:
            if message.error():
                raise KafkaException(message.error())
            number, offset = place_of(message)
            if offset + 1 >= ends.get(number, 0):
                ends.pop(number, None)
        yield messages


def _mark(message: Message) -> bytes:
    """Give the key of the record that says that a letter without a key is gone."""
    return _mark_of(*place_of(message))


def _mark_of(partition: int, offset: int) -> bytes:
    return b"gone %d %d" % (partition, offset)
