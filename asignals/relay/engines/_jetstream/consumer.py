"""One running `consume` on JetStream: asking for events as far as there is capacity, and acknowledging them."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from asignals.relay._batch import Batch
from asignals.relay._cancel import heeding
from asignals.relay._connection_state import Attempts
from asignals.relay._monitoring.figures import beat_for_ever
from asignals.relay._partitions import InPartition
from asignals.relay._pool import Pool
from asignals.relay._to_the_end import to_the_end
from asignals.relay._transport import Delivery, delay_of
from asignals.relay.engines._jetstream.answers import Position, place_of
from asignals.relay.engines._jetstream.names import durable_of
from asignals.relay.engines._jetstream.partitions import PartitionedConsumer
from asignals.relay.engines._jetstream.pulls import (
    DeletedError,
    NewLeaderError,
    Requests,
    is_end,
    unsubscribe,
    until_set,
)
from asignals.relay.engines._jetstream.streams import until_deleted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from asignals.relay._transport import Handle
    from asignals.relay.engines._jetstream.services import Services


@dataclass(slots=True)
class _Held:
    """An event that is here: where to acknowledge it, and its bytes."""

    position: Position
    reply: str
    attempt: int
    topic: str
    data: bytes
    pull: _Pull


@dataclass(slots=True, eq=False)
class _Pull:
    """The requests for events of one topic, and how many of them are here."""

    requests: Requests
    held: int = 0


class Consumer:
    """Handles the events without a key itself; those with one are the matter of a `PartitionedConsumer`."""

    def __init__(  # noqa: PLR0913, PLR0917  what `consume` was called with
        self, services: Services, service: str, instance: str, topics: Sequence[str], handle: Handle, limit: int
    ) -> None:
        self._services = services
        self._streams = services.streams
        self._connection = services.connection
        self._service = service
        self._instance = instance
        self._topics = topics
        self._handle = handle
        self._limit = limit
        self._held: dict[Position, _Held] = {}
        self._trouble: Exception | None = None
        self._changed = asyncio.Event()
        self._pool: Pool[_Held | InPartition[Any]] = Pool(self._work, limit, on_park=self._changed.set)
        self._answers: Batch[tuple[str, bytes]] = Batch(self._answer, self._connection.state)
        self._partitioned = PartitionedConsumer(
            self._streams, service, instance, topics, handle, limit, self._pool, self._answers, self._make_again
        )

    async def run(self) -> None:
        """Consume until cancelled."""
        with self._connection.watched(self._changed):
            try:
                async with self._answers:
                    await self._consume()
            finally:  # once the last answers are on their way
                await to_the_end(self._flush())
                await to_the_end(self._partitioned.leave())

    async def _consume(self) -> None:
        try:
            async with self._pool:
                self._pool.start(self._keep())
                self._pool.start(self._partitioned.own_for_ever())
                self._pool.start(beat_for_ever(self._connection.state.name, self._beat, self._stop_beating))
                await self._pull_for_ever()
        finally:
            for item in self._held.values():
                self._answers.add((item.reply, _answer(0.0)))
            self._partitioned.stop()

    async def _work(self, item: _Held | InPartition[Any]) -> None:
        if isinstance(item, InPartition):
            await self._partitioned.work(item)
            return
        delivery = Delivery(item.topic, item.data, item.attempt, item.attempt > 1, self._pool.park)
        outcome = await self._handle(delivery)
        del self._held[item.position]
        item.pull.held -= 1
        self._answers.add((item.reply, _answer(None if outcome is None else delay_of(outcome))))
        self._changed.set()

    async def _beat(self) -> None:
        held = Counter(item.topic for item in self._held.values())
        counts = {topic: held[topic] + self._partitioned.count(topic) for topic in self._topics}
        await self._services.beat(self._service, self._instance, counts)

    async def _stop_beating(self) -> None:
        await self._services.stop_beating(self._service, self._instance)

    async def _flush(self) -> None:
        """Wait until the last answers have left."""
        client = self._connection.client
        if client is not None and client.is_connected:
            with suppress(Exception):
                await client.flush(2)

    async def _answer(self, answers: list[tuple[str, bytes]]) -> None:
        client = await self._connection.open()
        for reply, answer in answers:
            await client.publish(reply, answer)

    async def _keep(self) -> None:
        """Say of all that is held that it is being worked on, until cancelled."""
        while True:
            await asyncio.sleep(self._streams.ack_wait / 3)
            for item in self._held.values():
                self._answers.add((item.reply, b"+WPI"))

    # -- asking for events -----------------------------------------------------------------------------------------

    def _make_again(self, error: Exception) -> None:
        """Make what somebody has deleted."""
        self._trouble = error
        self._changed.set()

    async def _pull_for_ever(self) -> None:
        attempts = Attempts(self._connection.state)
        while True:
            async with attempts:
                if isinstance(self._trouble, DeletedError):
                    self._partitioned.suspend()
                    await until_deleted()
                    self._trouble = None
                client = await heeding(self._connection.open())
                await heeding(self._streams.make(client))
                for topic in self._topics:
                    await heeding(self._streams.make_consumers(client, self._service, topic))
                self._partitioned.are_made.set()
                attempts.succeeded()
                await self._pull(client)

    async def _pull(self, client: Client) -> None:
        """Keep asking for events, of each topic as many as there is capacity for, until something is wrong."""
        self._trouble = None
        pulls = [
            _Pull(Requests(self._streams, durable_of(self._service, topic), client.new_inbox()))
            for topic in self._topics
        ]
        subscriptions: list[Subscription] = []
        reconnects = client.stats["reconnects"]
        try:
            for pull in pulls:
                subscribing = client.subscribe(pull.requests.inbox, cb=partial(self._arrived, pull))
                subscriptions.append(await heeding(subscribing))
            while self._trouble is None:
                for pull in pulls:
                    await self._ask_for_more(client, pull)
                waited = await until_set(self._changed, 1.0)
                if not self._connection.is_unbroken(client, reconnects):
                    return  # the server has forgotten our requests
                for pull in pulls:
                    await pull.requests.waited(client, waited)
            raise self._trouble
        finally:
            for subscription in subscriptions:
                await to_the_end(unsubscribe(subscription))

    def _room(self, pull: _Pull) -> int:
        each = max(1, self._limit * 4 // len(self._topics))
        most = self._limit * 4 + self._pool.parked - len(self._held)
        return min(each + self._pool.parked - pull.held, most) - pull.requests.asked

    async def _ask_for_more(self, client: Client, pull: _Pull) -> None:
        room = self._room(pull)
        if room > 0 and room >= self._limit // len(self._topics):
            await pull.requests.ask(client, room)

    async def _arrived(self, pull: _Pull, message: Msg) -> None:
        pull.requests.silence = 0.0
        if is_end(message):
            trouble = pull.requests.ended(message)
            if not isinstance(trouble, NewLeaderError):  # that one is asked again
                self._trouble = trouble or self._trouble
            self._changed.set()
        elif (place := place_of(message.reply)) is not None:
            self._hold(message, *place, pull)

    def _hold(self, message: Msg, attempt: int, position: Position, pull: _Pull) -> None:
        pull.requests.came()
        if position in self._held:
            self._held[position].reply = message.reply  # it took too long to keep, and runs here already
            return
        topic = message.subject.removeprefix(f"{self._streams.name}.")
        item = self._held[position] = _Held(position, message.reply, attempt, topic, message.data, pull)
        pull.held += 1
        self._pool.put(item)


def _answer(delay: float | None) -> bytes:
    if delay is None:
        return b"+ACK"
    return b'-NAK {"delay": %d}' % int(delay * 1e9) if delay > 0 else b"-NAK"
