"""Order by key in JetStream: partitions, each with a lease that one instance has.

Events with a key have subjects of their own, `<stream>.<topic>.~.<partition>`, by a checksum of the key, and a durable
consumer for each. Who may pull from it is who has its lease: the last message of a subject in `<stream>-owners`, which
expires unless it is renewed, each time by its sequence number, so that no two can. Instances count each other there,
too, and each takes its share.

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
from math import ceil
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from nats.js.errors import APIError, NotFoundError

from asignals.relay._cancel import heeding
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._keys import PARTITIONS
from asignals.relay._partitions import InPartition, PartitionWork, Turn
from asignals.relay._to_the_end import to_the_end
from asignals.relay.engines._jetstream_answers import place_of
from asignals.relay.engines._jetstream_pulls import SILENCE, request, unsubscribe

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from asignals.relay._batch import Batch
    from asignals.relay._pool import Pool
    from asignals.relay._transport import Handle
    from asignals.relay.engines.jetstream import JetStream

LANE: Final = "Asignals-Lane"  # the header with the number of an event's key
_MARK: Final = ".~."  # between a topic and a partition in a subject; no topic has it
_LOOK: Final = 2.0  # seconds between two looks at the leases, at most
_SURE: Final = 0.9  # of a lease: then nothing begins any more until it is renewed
_CLOSED: Final = 0.1  # seconds between two looks at whether all that is not acknowledged is here
_ANSWER: Final = 5.0  # seconds
_MOST: Final = 2_000  # events of a partition that an instance holds
_REMEMBERED: Final = 5_000
_WRONG_SEQUENCE: Final = 10071
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"

_Item: TypeAlias = "InPartition[_Place]"


def subject_of(subject: str, partition: int | str) -> str:
    """Name a partition of a topic's subject; `*` for all of them."""
    return f"{subject}{_MARK}{partition}"


def topic_of(subject: str) -> str:
    """Give the topic of what was published to it or to one of its partitions."""
    return subject.partition(_MARK)[0]


def durable_of(durable: str, partition: int) -> str:
    """Name a partition's consumer by that for events without a key."""
    return f"{durable}==p{partition}"  # no name has "==" but the one between service and topic


@dataclass(slots=True)
class _Place:
    """Where an event is in the stream, and where it is acknowledged."""

    sequence: int
    reply: str


@dataclass(slots=True, eq=False, kw_only=True)
class _Turn(Turn):
    """One time for which this instance has a partition's lease."""

    number: int
    lease: int  # the sequence number of its last renewal
    held: dict[int, _Item] = field(default_factory=dict)
    collected: dict[int, _Item] = field(default_factory=dict)  # what waits until all of it is here
    done: deque[int] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    is_complete: bool = False
    asked: int = 0
    arrived: int = 0
    trouble: Exception | None = None


class PartitionedConsumer:
    """The part of one running `consume` that is for events with a key."""

    def __init__(  # noqa: PLR0913, PLR0917  parts of one consumer
        self,
        engine: JetStream,
        service: str,
        instance: str,
        topics: Sequence[str],
        handle: Handle,
        limit: int,
        pool: Pool[Any],
        answers: Batch[tuple[str, bytes]],
    ) -> None:
        self._engine = engine
        self._service = service
        self._topics = topics
        self._pool = pool
        self._answers = answers
        self._each = max(8, limit // 2)
        self._me = f"{instance}.{secrets.token_hex(8)}"
        self.are_made = asyncio.Event()  # the server's consumers of the partitions
        self._work: PartitionWork[_Place] = PartitionWork(handle, pool, self._finish, self._forget)
        self._turns: dict[tuple[str, int], _Turn] = {}
        self._idle: dict[tuple[str, int], float] = {}  # since when nothing is handled there

    async def work(self, item: _Item) -> None:
        """Handle one event, unless its partition may be another instance's by now."""
        await self._work.work(item)

    async def _finish(self, item: _Item) -> None:
        self._answers.add((item.place.reply, b"+ACK"))
        turn = item.turn
        if isinstance(turn, _Turn):
            turn.done.append(item.place.sequence)

    def _forget(self, item: _Item) -> None:
        turn = item.turn
        if isinstance(turn, _Turn):
            turn.held.pop(item.place.sequence, None)

    def count(self, topic: str) -> int:
        """Count the events of a topic that are here."""
        return sum(len(turn.held) for (of, _), turn in self._turns.items() if of == topic)

    # -- leases ----------------------------------------------------------------------------------------------------

    async def own_for_ever(self) -> None:
        """Have a share of the partitions, and consume from them, until cancelled; begins when `are_made` is set."""
        await self.are_made.wait()
        attempts = Attempts(ConnectionState(f"leases of partitions in {self._engine.connection_state.name}"))
        while True:
            async with attempts:
                client = await heeding(self._engine._connected())
                for topic in self._topics:
                    await heeding(self._own(client, topic))
            await asyncio.sleep(min(_LOOK, self._engine.ack_wait / 3) * random.uniform(0.8, 1.0))  # noqa: S311  no secret

    async def _own(self, client: Client, topic: str) -> None:
        """Renew what is ours of a topic, hand on what is more than our share, and take what is nobody's."""
        base = self._engine._owners(self._service, topic)
        await self._write(client, f"{base}.member.{self._me}", None)
        mine = [turn for turn in self._turns.values() if turn.topic == topic]
        await asyncio.gather(*(self._renew(client, turn) for turn in mine))
        subjects = await self._engine._subjects(client, f"{self._engine.stream}-owners", f"{base}.>")
        instances = max(1, sum(subject.startswith(f"{base}.member.") for subject in subjects))
        share = ceil(PARTITIONS / instances)
        mine = [turn for turn in self._turns.values() if turn.topic == topic]
        unable = [turn for turn in mine if turn.is_unable] if instances > 1 else []
        surplus = unable + [turn for turn in mine if turn not in unable][share:]
        for turn in mine:
            turn.is_unable = False
        await asyncio.gather(*(self._hand_on(client, turn) for turn in surplus))
        free = [number for number in range(PARTITIONS) if f"{base}.{number}" not in subjects]
        random.shuffle(free)
        room = max(0, share - len(mine))
        await asyncio.gather(*(self._take(client, topic, number) for number in free[:room]))
        self._look_for_idle(topic, free[room:])

    def _look_for_idle(self, topic: str, free: Sequence[int]) -> None:
        """Note, for health, partitions that nobody takes, and those here in which nothing begins."""
        now = time.monotonic()
        waiting = [turn.number for turn in self._turns.values() if turn.topic == topic and not turn.is_complete]
        idle = {(topic, number) for number in (*free, *waiting)}
        self._idle = {place: self._idle.get(place, now) for place in idle} | {
            place: since for place, since in self._idle.items() if place[0] != topic
        }
        limit = now - 3 * self._engine.ack_wait
        long = sorted(number for of, number in idle if self._idle[of, number] < limit)
        name = f"partitions of {topic!r} in {self._service!r}"
        if long:
            self._engine.problems[name] = f"{', '.join(map(str, long))}: no instance handles their events now"
        else:
            self._engine.problems.pop(name, None)

    async def _write(self, client: Client, subject: str, expected: int | None) -> int:
        """Write to the leases, if the last message of the subject is the one expected; gives the new one's number."""
        headers = {} if expected is None else {_EXPECTED: str(expected)}
        publishing = client.jetstream(timeout=_ANSWER).publish(subject, self._me.encode(), headers=headers)
        return (await self._engine._ask(client, publishing)).seq

    async def _renew(self, client: Client, turn: _Turn) -> None:
        sent = time.monotonic()
        subject = f"{self._engine._owners(self._service, turn.topic)}.{turn.number}"
        try:
            turn.lease = await self._write(client, subject, turn.lease)
        except APIError as error:
            if error.err_code != _WRONG_SEQUENCE:
                raise
            lease = await self._mine(client, subject)
            if lease is None:
                self._end(turn)
                return
            turn.lease = lease  # a renewal whose answer was lost
            return
        turn.until = sent + self._engine.ack_wait * _SURE
        for item in turn.held.values():
            self._answers.add((item.place.reply, b"+WPI"))

    async def _mine(self, client: Client, subject: str) -> int | None:
        """Give the number of a lease's last renewal, if it is ours."""
        try:
            getting = client.jetstream(timeout=_ANSWER).get_last_msg(f"{self._engine.stream}-owners", subject)
            found = await self._engine._ask(client, getting)
        except NotFoundError:
            return None
        return found.seq if found.data == self._me.encode() else None

    async def _take(self, client: Client, topic: str, number: int) -> None:
        sent = time.monotonic()
        subject = f"{self._engine._owners(self._service, topic)}.{number}"
        try:
            lease = await self._write(client, subject, 0)
        except APIError as error:
            if error.err_code != _WRONG_SEQUENCE:
                raise
            return  # another instance was quicker
        turn = _Turn(topic, until=sent + self._engine.ack_wait * _SURE, number=number, lease=lease)
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
        await self._release(client, turn)

    def _give_back(self, items: Sequence[_Item]) -> None:
        """Have events delivered to whoever is next, in the order of the stream."""
        for item in sorted(items, key=lambda item: item.place.sequence):
            self._answers.add((item.place.reply, b"-NAK"))

    async def _release(self, client: Client, turn: _Turn) -> None:
        base = self._engine._owners(self._service, turn.topic)
        if await self._mine(client, f"{base}.{turn.number}") is not None:
            await self._purge(client, f"{base}.{turn.number}")

    async def _purge(self, client: Client, subject: str) -> None:
        purging = client.jetstream(timeout=_ANSWER).purge_stream(f"{self._engine.stream}-owners", subject=subject)
        await self._engine._ask(client, purging)

    def stop(self) -> list[_Turn]:
        """Give back all that is here, as handling has ended; `leave` then gives up these."""
        self._engine.problems.clear()
        turns = list(self._turns.values())
        for turn in turns:
            held = list(turn.held.values())
            self._end(turn)
            self._give_back(held)
        return turns

    async def leave(self, turns: Sequence[_Turn]) -> None:
        """Give up leases, once the server has heard what was done."""
        client = self._engine._client
        if client is None or not client.is_connected:
            return  # they expire
        with suppress(Exception):
            async with asyncio.timeout(_ANSWER):
                await asyncio.gather(*(self._release(client, turn) for turn in turns))
                for topic in self._topics:
                    await self._purge(client, f"{self._engine._owners(self._service, topic)}.member.{self._me}")

    # -- consuming -------------------------------------------------------------------------------------------------

    async def _consume_for_ever(self, turn: _Turn) -> None:
        attempts = Attempts(self._engine.connection_state)
        while not turn.is_over:
            async with attempts:
                client = await heeding(self._engine._connected())
                await self._pull(client, turn)

    async def _pull(self, client: Client, turn: _Turn) -> None:
        """Keep asking for events, as many as there is room for, until something is wrong, or it is over."""
        inbox, silent = client.new_inbox(), 0.0
        turn.asked, turn.is_complete, turn.trouble = 0, False, None
        reconnects = client.stats["reconnects"]
        subscription = await heeding(client.subscribe(inbox, cb=self._taker(turn)))
        durable = durable_of(self._engine._durable(self._service, turn.topic), turn.number)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._engine.stream}.{durable}"
        try:
            while not turn.is_over and turn.trouble is None:
                count = self._room(turn) if turn.is_complete else await self._until_complete(client, turn, durable)
                if count > 0:
                    await heeding(client.publish(subject, request(count), reply=inbox))
                    turn.asked += count
                before = turn.arrived
                turn.changed.clear()
                began = time.monotonic()
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0 if turn.is_complete else _CLOSED):
                        await turn.changed.wait()
                if client is not self._engine._client or client.stats["reconnects"] != reconnects:
                    return  # the server has forgotten our requests
                waited = min(1.0, time.monotonic() - began)
                silent = silent + waited if turn.asked and turn.arrived == before else 0.0
                if silent > SILENCE:
                    raise ConnectionError(f"JetStream has said nothing for {SILENCE:g} s of the consumer {durable!r}")
            if turn.trouble is not None:
                raise turn.trouble
        finally:
            await to_the_end(unsubscribe(subscription))

    def _room(self, turn: _Turn) -> int:
        """How many events to ask for: those that wait for others of their key take no place."""
        room = min(self._each - turn.given, _MOST - len(turn.held)) - turn.asked
        return room if room >= self._each // 2 else 0

    async def _until_complete(self, client: Client, turn: _Turn, durable: str) -> int:
        """Begin with what has come when all that the server has delivered is here; else tell how many more to ask for.

        That is so when it counts as many as we do, and nothing has come meanwhile.
        """
        before = turn.arrived
        asking = client.jetstream(timeout=_ANSWER).consumer_info(self._engine.stream, durable)
        pending = (await self._engine._ask(client, asking)).num_ack_pending or 0
        if turn.arrived != before or pending > len(turn.held):
            return max(0, pending - len(turn.held) - turn.asked)
        turn.is_complete = True
        for sequence in sorted(turn.collected):
            self._work.add(turn.collected[sequence])
        turn.collected.clear()
        return self._room(turn)

    def _taker(self, turn: _Turn) -> Callable[[Msg], Awaitable[None]]:
        async def arrived(message: Msg) -> None:
            self._arrived(turn, message)

        return arrived

    def _arrived(self, turn: _Turn, message: Msg) -> None:
        turn.arrived += 1
        status = message.headers.get("Status") if message.headers else None
        if status is not None and not message.reply.startswith("$JS.ACK."):
            self._hear(status, message.headers or {}, turn)
        elif (place := place_of(message.reply)) is not None:
            turn.asked -= 1
            self._hold(turn, message, *place)
        if not turn.is_complete or self._room(turn):
            turn.changed.set()

    def _hold(self, turn: _Turn, message: Msg, attempt: int, sequence: int) -> None:
        if turn.is_over:
            self._answers.add((message.reply, b"-NAK"))
        elif sequence in turn.held:
            turn.held[sequence].place.reply = message.reply  # it took too long to keep, and is here already
        elif sequence in turn.done:
            self._answers.add((message.reply, b"+ACK"))  # the server has not heard of it
        else:
            lane = (message.headers or {}).get(LANE)
            item = turn.held[sequence] = InPartition(turn, lane, _Place(sequence, message.reply), message.data, attempt)
            if turn.is_complete:
                self._work.add(item)
            else:
                turn.collected[sequence] = item

    @staticmethod
    def _hear(status: str, headers: dict[str, str], turn: _Turn) -> None:
        """Take note of how a request ended."""
        if status in ("404", "408"):
            turn.asked = max(0, turn.asked - int(headers.get("Nats-Pending-Messages", turn.asked)))
        elif status == "409" and headers.get("Description") == "Leadership Change":
            turn.trouble = ConnectionError("JetStream: the consumer has a new leader")  # what it has sent is looked for
        elif status != "100":
            turn.trouble = ConnectionError(f"JetStream: {status} {headers.get('Description', '')}")
        turn.changed.set()
