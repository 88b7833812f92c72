"""Order by key in JetStream: partitions, each with a lease that one instance has.

Events with a key have their own subjects, `<stream>.<topic>.~.<partition>`, by a checksum of the key, and a durable
consumer for each. Only the instance that has its lease may pull from it; each instance takes its share of the leases.

The server may still wait for what it has delivered before, to an instance that died or by a connection that was lost.
So nothing new begins until all that is not acknowledged is here: then it is handled in the order of the stream.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from nats.js.errors import NoStreamResponseError, NotFoundError

from asignals.masking import said
from asignals.relay._cancel import heeding
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._keys import PARTITIONS
from asignals.relay._partitions import InPartition, PartitionWork, Turn
from asignals.relay._to_the_end import to_the_end
from asignals.relay.engines._jetstream.answers import Position, place_of
from asignals.relay.engines._jetstream.leases import ANSWER, Leases
from asignals.relay.engines._jetstream.names import durable_of, partition_durable
from asignals.relay.engines._jetstream.publisher import LANE
from asignals.relay.engines._jetstream.pulls import (
    DeletedError,
    Requests,
    is_end,
    unsubscribe,
    until_set,
)
from asignals.relay.engines._jetstream.streams import until_deleted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from asignals.relay._batch import Batch
    from asignals.relay._pool import Pool
    from asignals.relay._transport import Handle
    from asignals.relay.engines._jetstream.streams import Streams

_LOOK: Final = 2.0  # seconds between two looks at the leases, at most
_SURE: Final = 0.9  # of a lease: then nothing begins any more until it is renewed
_CLOSED: Final = 0.1  # seconds between two looks at whether all that is not acknowledged is here
_MOST: Final = 2_000  # events of a partition that an instance holds
_REMEMBERED: Final = 5_000

_Item: TypeAlias = "InPartition[_Place]"


@dataclass(slots=True)
class _Place:
    """Where an event is in the stream, and where it is acknowledged."""

    position: Position
    reply: str


@dataclass(slots=True, eq=False, kw_only=True)
class _Turn(Turn):
    """One time for which this instance has a partition's lease."""

    number: int
    lease: int  # the sequence number of its last renewal
    attempts: Attempts  # to pull from it
    held: dict[Position, _Item] = field(default_factory=dict)
    collected: dict[Position, _Item] = field(default_factory=dict)  # what waits until all of it is here
    done: deque[Position] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    is_complete: bool = False
    requests: Requests = field(init=False)
    arrived: int = 0
    trouble: Exception | None = None


class PartitionedConsumer:
    """The part of one running `consume` that is for events with a key."""

    def __init__(  # noqa: PLR0913, PLR0917  parts of one consumer
        self,
        streams: Streams,
        service: str,
        instance: str,
        topics: Sequence[str],
        handle: Handle,
        limit: int,
        pool: Pool[Any],
        answers: Batch[tuple[str, bytes]],
        make_again: Callable[[Exception], object],
    ) -> None:
        self._streams = streams
        self._connection = streams.connection
        self._service = service
        self._topics = topics
        self._pool = pool
        self._answers = answers
        self._make_again = make_again
        self._each = max(8, limit // 2)
        self._leases = Leases(streams, service, f"{instance}.{secrets.token_hex(8)}")
        self.are_made = asyncio.Event()  # the server's consumers of the partitions
        self._work: PartitionWork[_Place] = PartitionWork(handle, pool, self._finish, self._forget)
        self._turns: dict[tuple[str, int], _Turn] = {}
        self._left: list[_Turn] = []  # of which the lease is still to be released
        self._idle: dict[tuple[str, int], float] = {}  # since when nothing is handled there

    async def work(self, item: _Item) -> None:
        """Handle one event, unless its partition may be another instance's by now."""
        await self._work.work(item)

    async def _finish(self, item: _Item) -> None:
        self._answers.add((item.place.reply, b"+ACK"))
        turn = item.turn
        if isinstance(turn, _Turn):
            turn.done.append(item.place.position)

    def _forget(self, item: _Item) -> None:
        turn = item.turn
        if isinstance(turn, _Turn):
            turn.held.pop(item.place.position, None)

    def count(self, topic: str) -> int:
        """Count the events of a topic that are here."""
        return sum(len(turn.held) for (of, _), turn in self._turns.items() if of == topic)

    # -- leases ----------------------------------------------------------------------------------------------------

    async def own_for_ever(self) -> None:
        """Have a share of the partitions, and consume from them, until cancelled; begins when `are_made` is set."""
        await self.are_made.wait()
        state = ConnectionState(f"leases of partitions in {self._connection.state.name}")
        attempts = Attempts(state)
        while True:
            async with attempts:
                client = await heeding(self._connection.open())
                if isinstance(state.error, NoStreamResponseError):  # somebody has deleted the stream of leases
                    await until_deleted()
                    await heeding(self._streams.make(client))
                for topic in self._topics:
                    await heeding(self._own(client, topic))
            self._note(state.name, state.problem)
            await asyncio.sleep(min(_LOOK, self._streams.ack_wait / 3) * random.uniform(0.8, 1.0))  # noqa: S311  no secret

    async def _own(self, client: Client, topic: str) -> None:
        """Renew the leases of a topic, release those beyond the share of this instance, and take free ones."""
        await self._leases.join(client, topic)
        await asyncio.gather(*(self._renew(client, turn) for turn in self._turns_of(topic)))
        leased = await self._leases.look(client, topic)
        share = ceil(PARTITIONS / leased.instances)
        mine = self._turns_of(topic)
        unable = [turn for turn in mine if turn.is_unable] if leased.instances > 1 else []
        surplus = unable + [turn for turn in mine if turn not in unable][share:]
        for turn in mine:
            turn.is_unable = False
        await asyncio.gather(*(self._hand_on(client, turn) for turn in surplus))
        random.shuffle(leased.free)
        room = max(0, share - len(mine))
        await asyncio.gather(*(self._take(client, topic, number) for number in leased.free[:room]))
        self._look_for_idle(topic, leased.free[room:])

    def _turns_of(self, topic: str) -> list[_Turn]:
        return [turn for turn in self._turns.values() if turn.topic == topic]

    def _look_for_idle(self, topic: str, free: Sequence[int]) -> None:
        """Note, for health, partitions that nobody takes, and those here in which nothing begins."""
        now = time.monotonic()
        waiting = [turn.number for turn in self._turns.values() if turn.topic == topic and not turn.is_complete]
        idle = {(topic, number) for number in (*free, *waiting)}
        self._idle = {place: self._idle.get(place, now) for place in idle} | {
            place: since for place, since in self._idle.items() if place[0] != topic
        }
        limit = now - 3 * self._streams.ack_wait
        long = sorted(number for of, number in idle if self._idle[of, number] < limit)
        problem = f"{', '.join(map(str, long))}: no instance handles their events now" if long else None
        self._note(f"partitions of {topic!r} in {self._service!r}", problem)

    def _note(self, name: str, problem: str | None) -> None:
        """Have health say what is wrong, or that it is not any more."""
        self._connection.problems.pop(name, None)
        if problem is not None:
            self._connection.problems[name] = problem

    async def _renew(self, client: Client, turn: _Turn) -> None:
        sent = time.monotonic()
        lease = await self._leases.renew(client, turn.topic, turn.number, turn.lease)
        if lease is not None:
            turn.lease = lease
            turn.until = sent + self._streams.ack_wait * _SURE
            for item in turn.held.values():
                self._answers.add((item.place.reply, b"+WPI"))
        elif (found := await self._leases.find(client, turn.topic, turn.number)) is not None:
            turn.lease = found  # a renewal whose answer was lost
        else:
            self._end(turn)

    async def _take(self, client: Client, topic: str, number: int) -> None:
        sent = time.monotonic()
        lease = await self._leases.take(client, topic, number)
        if lease is not None:
            until = sent + self._streams.ack_wait * _SURE
            attempts = Attempts(self._connection.state)
            turn = _Turn(topic, until=until, number=number, lease=lease, attempts=attempts)
            self._turns[topic, number] = turn
            self._pool.start(self._consume_for_ever(turn))

    def _end(self, turn: _Turn) -> None:
        """Begin nothing more in a partition."""
        if self._turns.get((turn.topic, turn.number)) is turn:
            del self._turns[turn.topic, turn.number]
        self._work.end(turn)

    async def _hand_on(self, client: Client, turn: _Turn) -> None:
        """Let another instance have a partition, if what runs there ends soon."""
        if not await self._work.is_idle_soon(turn):
            return
        held = list(turn.held.values())
        self._end(turn)
        self._give_back(held)
        await self._leases.release(client, turn.topic, turn.number)

    def _give_back(self, items: Sequence[_Item]) -> None:
        """Have events delivered to whoever is next, in the order of the stream."""
        for item in sorted(items, key=lambda item: item.place.position):
            self._answers.add((item.place.reply, b"-NAK"))

    def stop(self) -> None:
        """Give back all that is here, as handling has ended."""
        self._connection.problems.clear()
        for turn in list(self._turns.values()):
            self._left.append(turn)
            held = list(turn.held.values())
            self._end(turn)
            self._give_back(held)

    async def leave(self) -> None:
        """Release what `stop` has left, once the server has heard what was done."""
        client = self._connection.client
        if client is None or not client.is_connected:
            return  # the leases expire
        with suppress(Exception):
            async with asyncio.timeout(ANSWER):
                await asyncio.gather(*(self._leases.release(client, turn.topic, turn.number) for turn in self._left))
                for topic in self._topics:
                    await self._leases.leave(client, topic)

    # -- consuming -------------------------------------------------------------------------------------------------

    async def _consume_for_ever(self, turn: _Turn) -> None:
        durable = partition_durable(durable_of(self._service, turn.topic), turn.number)
        while not turn.is_over:
            async with turn.attempts:
                await self.are_made.wait()
                client = await heeding(self._connection.open())
                try:
                    await self._pull(client, turn, durable)
                except (DeletedError, NotFoundError) as error:
                    self.are_made.clear()
                    self._make_again(DeletedError(f"JetStream: the consumer {durable!r} is missing ({said(error)})"))
                    raise
        self._connection.problems.pop(durable, None)

    def suspend(self) -> None:
        """Ask for nothing until `are_made` is set again: the server does not tell each request that it is lost."""
        self.are_made.clear()
        for turn in self._turns.values():
            turn.trouble = ConnectionError("JetStream: the consumers of partitions are made again")
            turn.changed.set()

    async def _pull(self, client: Client, turn: _Turn, durable: str) -> None:
        """Keep asking for events, as many as it has capacity for, until something is wrong, or it is over."""
        turn.requests = Requests(self._streams, durable, client.new_inbox())
        turn.trouble = None
        reconnects = client.stats["reconnects"]
        subscription = await heeding(client.subscribe(turn.requests.inbox, cb=partial(self._arrived, turn)))
        try:
            while not turn.is_over and turn.trouble is None:
                count = self._room(turn) if turn.is_complete else await self._until_complete(client, turn)
                if count > 0:
                    await turn.requests.ask(client, count)
                waited = await until_set(turn.changed, 1.0 if turn.is_complete else _CLOSED)
                if not self._connection.is_unbroken(client, reconnects):
                    return  # the server has forgotten our requests
                await turn.requests.waited(client, waited)
            if turn.trouble is not None:
                raise turn.trouble
        finally:
            turn.is_complete = False
            await to_the_end(unsubscribe(subscription))

    def _room(self, turn: _Turn) -> int:
        """How many events to ask for: those that wait for others of their key take no place."""
        room = min(self._each - turn.given, _MOST - len(turn.held)) - turn.requests.asked
        return room if room >= self._each // 2 else 0

    async def _until_complete(self, client: Client, turn: _Turn) -> int:
        """Begin with what has come when all that the server has delivered is here; else tell how many more to ask for.

        That is so when it counts as many as we do, and nothing has come meanwhile.
        """
        before = turn.arrived
        asking = client.jetstream(timeout=ANSWER).consumer_info(self._streams.name, turn.requests.durable)
        pending = (await self._connection.ask(client, asking)).num_ack_pending or 0
        if turn.arrived != before or pending > len(turn.held):
            return max(0, pending - len(turn.held) - turn.requests.asked)
        turn.is_complete = True
        turn.attempts.succeeded()
        for position in sorted(turn.collected):
            self._work.add(turn.collected[position])
        turn.collected.clear()
        return self._room(turn)

    async def _arrived(self, turn: _Turn, message: Msg) -> None:
        turn.arrived += 1
        turn.requests.silence = 0.0
        if is_end(message):
            turn.trouble = turn.requests.ended(message) or turn.trouble
            turn.changed.set()
        elif (place := place_of(message.reply)) is not None:
            turn.requests.came()
            self._hold(turn, message, *place)
        if not turn.is_complete or self._room(turn):
            turn.changed.set()

    def _hold(self, turn: _Turn, message: Msg, attempt: int, position: Position) -> None:
        if turn.is_over:
            self._answers.add((message.reply, b"-NAK"))
        elif position in turn.held:
            turn.held[position].place.reply = message.reply  # it took too long to keep, and is here already
        elif position in turn.done:
            self._answers.add((message.reply, b"+ACK"))  # the server has not heard of it
        else:
            lane = (message.headers or {}).get(LANE)
            item = turn.held[position] = InPartition(turn, lane, _Place(position, message.reply), message.data, attempt)
            if turn.is_complete:
                self._work.add(item)
            else:
                turn.collected[position] = item
