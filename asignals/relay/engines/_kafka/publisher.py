"""Publishing to Kafka: records in batches, by one producer in a separate thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, KafkaException, Producer

from asignals.relay._loops import OwnLoop
from asignals.relay.engines._kafka.clients import DELIVERY, discard, in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asignals.relay.engines._kafka.clients import Clients


@dataclass(frozen=True, slots=True)
class Record:
    """What is to be written: `value` is `None` for the mark that a dead letter is gone."""

    topic: str
    key: str | bytes | None
    value: bytes | None
    partition: int = -1  # any, by the key


class Publisher:
    """Publishes records; the producer is made when it is first needed."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._producer: Producer | None = None
        self._publishing = asyncio.Lock()
        self._loop = OwnLoop()
        self._thread = ThreadPoolExecutor(1, "asignals-kafka")

    def close(self) -> None:
        """Let go of the producer."""
        held, self._producer = [self._producer], None
        discard(held)
        self._forget()

    def _forget(self) -> None:
        self._publishing = asyncio.Lock()  # the next event loop may be another

    async def produce(self, records: Sequence[Record]) -> dict[int, str]:
        """Publish; returns the places of records that are too large for Kafka, and what it says of them."""
        self._loop.enter(self._clients.state.name, self._forget)
        async with self._publishing:
            refused = await in_thread(lambda: self._produce_now(records), self._thread)
        self._clients.state.restored()
        return refused

    def _produce_now(self, records: Sequence[Record]) -> dict[int, str]:
        if self._producer is None:
            self._producer = self._clients.producer()
        refused = self._send(self._producer, dict(enumerate(records)))
        if len(records) == 1:
            return refused
        # A broker refuses a batch as a whole: whose fault it was shows when each goes alone.
        alone = [self._send(self._producer, {place: records[place]}) for place in refused]
        return {place: reason for one in alone for place, reason in one.items()}

    def _send(self, producer: Producer, records: dict[int, Record]) -> dict[int, str]:
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
        if producer.flush(DELIVERY + 1):
            raise TimeoutError(f"{self._clients.state.name} did not acknowledge within {DELIVERY + 1:g} s")
        if errors:
            raise KafkaException(errors[0])
        return refused


def _put(producer: Producer, record: Record, delivered: Callable[..., None]) -> None:
    """Queue a record, when there is capacity."""
    while True:
        try:
            producer.produce(record.topic, record.value, record.key, partition=record.partition, on_delivery=delivered)
        except BufferError:
            producer.poll(0.1)
        else:
            return
