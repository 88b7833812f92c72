"""NATS JetStream as the engine (extra: nats).

Events are published to the stream, not past it, with their id as `Nats-Msg-Id`, so a repetition within the stream's
window is recognised. A service is a durable pull consumer with explicit acknowledgement; `max_deliver` is unlimited,
as the relay counts failures by itself, and a retry is a NAK with a delay, which outlives this process.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, KeyValueConfig, StreamConfig
from nats.js.errors import BucketNotFoundError, KeyNotFoundError, NotFoundError

from asignals._to_the_end import to_the_end
from asignals.relay._batch import Batch
from asignals.relay._cancel import heeding, limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import DeadLetter, check_name
from asignals.relay._inbox import Memo
from asignals.relay._pool import Pool
from asignals.relay._transport import Delivery, PublishRefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.js.client import JetStreamContext

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle

_CONNECT: Final = 5.0  # seconds for connecting and for each request
_PULL: Final = 20.0  # seconds for which the server keeps a request for events
_AT_ONCE: Final = 1_000  # events under way to the server
_REMEMBERED: Final = 7 * 86_400


class _Publishing:
    """The acknowledgements that one batch waits for."""

    def __init__(self, ids: list[str]) -> None:
        self.open = dict.fromkeys(ids)
        self.refused: dict[str, str] = {}
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def acknowledged(self, id_: str, answer: Msg) -> None:
        if id_ not in self.open or self.ended.done():
            return
        problem = _problem(answer.data)
        if problem and problem.get("err_code") == _TOO_LARGE:
            self.refused[id_] = str(problem.get("description"))
        elif problem:
            self.ended.set_exception(ConnectionError(f"JetStream did not store an event: {problem.get('description')}"))
            return
        del self.open[id_]
        if not self.open:
            self.ended.set_result(None)


_TOO_LARGE: Final = 10054


def _problem(answer: bytes) -> dict[str, Any] | None:
    """Read what is wrong, if anything is, from the answer to a publication."""
    if not answer:
        return {"description": "no stream takes it"}
    try:
        found = json.loads(answer)
        problem = found.get("error") or (None if "stream" in found else {})
    except (ValueError, AttributeError, TypeError, RecursionError):
        problem = {}
    if problem is None or (isinstance(problem, dict) and problem):
        return problem
    return {"description": f"an answer that means nothing: {answer[:80]!r}"}


class JetStream:
    """Carries events through a JetStream stream.

    Args:
        servers: URLs of the servers, `nats://127.0.0.1:4222`.
        stream: The stream's name; its subjects are `<stream>.<topic>`, dead letters are in `<stream>-dead`. Both are
            made when they are missing; ones that exist are used as they are.
        ack_wait: Seconds after which an event of a consumer that does not renew it is delivered to another one.
        max_age: Seconds for which the stream keeps events, whether or not they were handled; `None` for ever.
        dedup_window: Seconds within which the server recognises a repetition.
        replicas: Copies in a cluster.
        ack_timeout: Seconds to wait for the server's acknowledgements.
        options: What else `nats.connect` takes.
    """

    def __init__(  # noqa: PLR0913  options by name
        self,
        servers: str | list[str],
        *,
        stream: str = "asignals",
        ack_wait: float = 30.0,
        max_age: float | None = 30 * 86_400.0,
        dedup_window: float = 120.0,
        replicas: int = 1,
        ack_timeout: float = 5.0,
        **options: Any,
    ) -> None:
        if "." in check_name("stream", stream):
            msg = f"a stream's name has no dots: {stream!r}"
            raise ValueError(msg)
        self.stream = stream
        self.ack_wait = ack_wait
        self.connection_state: ConnectionState = ConnectionState(f"NATS ({servers})")
        self._servers = servers
        self._max_age = max_age
        self._dedup_window = dedup_window
        self._replicas = replicas
        self._ack_timeout = ack_timeout
        self._options = options
        self._client: Client | None = None
        self._lock = asyncio.Lock()
        self._numbers = itertools.count()
        self._publishing: dict[str, tuple[str, _Publishing]] = {}
        self._replies = ""
        self._changed: set[asyncio.Event] = set()

    # -- connecting ------------------------------------------------------------------------------------------------

    async def init(self) -> None:
        """Create the streams that are missing."""
        await self._connected()

    async def aclose(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        self._lock = asyncio.Lock()  # the next event loop may be another
        if client is not None:
            await client.close()

    async def _connected(self) -> Client:
        if self._client is not None and self._client.is_connected:
            return self._client
        async with self._lock:
            if self._client is None or self._client.is_closed:
                self._client = await self._connect()
            if not self._client.is_connected:
                msg = "NATS is connecting again"
                raise ConnectionError(msg)
            return self._client

    async def _connect(self) -> Client:
        options = {"reconnect_time_wait": 0.25, "ping_interval": 10, "connect_timeout": 2, **self._options}
        connecting = nats.connect(
            self._servers,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            error_cb=self._on_error,
            disconnected_cb=self._on_loss,
            reconnected_cb=self._on_return,
            **options,
        )
        client: Client = await limited(connecting, _CONNECT)
        try:
            await self._make_streams(client.jetstream(timeout=_CONNECT))
            self._replies = client.new_inbox()
            await client.subscribe(f"{self._replies}.*", cb=self._on_reply)
        except BaseException:
            await client.close()
            raise
        self.connection_state.restored()
        return client

    async def _make_streams(self, jetstream: JetStreamContext) -> None:
        for name in (self.stream, f"{self.stream}-dead"):
            try:
                await jetstream.stream_info(name)
            except NotFoundError:
                config = StreamConfig(name=name, subjects=[f"{name}.>"], num_replicas=self._replicas)
                if name == self.stream:
                    config.max_age, config.duplicate_window = self._max_age, self._dedup_window
                await jetstream.add_stream(config)

    async def _on_error(self, error: Exception) -> None:
        if self._client is None or not self._client.is_connected:
            self.connection_state.lost(error)

    async def _on_loss(self) -> None:
        if self._client is None:
            return  # we are closing it
        self.connection_state.lost(ConnectionError("disconnected"))
        for _, publishing in self._publishing.values():
            if not publishing.ended.done():
                publishing.ended.set_exception(ConnectionError("NATS was lost before it had acknowledged"))

    async def _on_return(self) -> None:
        self.connection_state.restored()
        for event in self._changed:
            event.set()

    # -- publishing ------------------------------------------------------------------------------------------------

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when the stream has stored all of them.

        Raises `TimeoutError` and `ConnectionError`; repeating is safe within the window.
        """
        refused: dict[str, str] = {}
        for start in range(0, len(envelopes), _AT_ONCE):
            refused |= await self._publish_some(await self._connected(), envelopes[start : start + _AT_ONCE])
        if refused:
            raise PublishRefusedError(refused)

    async def _publish_some(self, client: Client, envelopes: Sequence[Envelope]) -> dict[str, str]:
        publishing = _Publishing([envelope.id for envelope in envelopes])
        numbers = []
        try:
            for envelope in envelopes:
                data = envelope.encode()
                if len(data) > client.max_payload:
                    publishing.refused[envelope.id] = f"{len(data)} bytes are more than NATS takes"
                    publishing.open.pop(envelope.id, None)
                    continue
                number = str(next(self._numbers))
                numbers.append(number)
                self._publishing[number] = envelope.id, publishing
                await client.publish(
                    f"{self.stream}.{envelope.topic}",
                    data,
                    reply=f"{self._replies}.{number}",
                    headers={"Nats-Msg-Id": envelope.id},
                )
            if publishing.open:
                async with asyncio.timeout(self._ack_timeout):
                    await publishing.ended
        finally:
            for number in numbers:
                self._publishing.pop(number, None)
            if not publishing.ended.cancel():
                publishing.ended.exception()  # seen: when publishing itself has failed, nobody waits for it
        return publishing.refused

    async def _on_reply(self, message: Msg) -> None:
        found = self._publishing.pop(message.subject.rpartition(".")[2], None)
        if found is not None:
            found[1].acknowledged(found[0], message)

    # -- consuming -------------------------------------------------------------------------------------------------

    async def consume(self, service: str, instance: str, handle: Handle, *, limit: int = 100) -> None:
        """Call `handle` for each event of the service until cancelled."""
        check_name("instance", instance)
        await _Consumer(self, check_name("service", service), handle, limit).run()

    def durable(self, service: str) -> str:
        """Name the consumer of a service: a durable's name has no dots."""
        return service.replace(".", "=")

    async def backlog(self, service: str) -> int:
        """Count the events that the service has not acknowledged."""
        jetstream = (await self._connected()).jetstream(timeout=_CONNECT)
        try:
            info = await jetstream.consumer_info(self.stream, self.durable(service))
        except NotFoundError:
            return int((await jetstream.stream_info(self.stream)).state.messages)
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    # -- dead letters ----------------------------------------------------------------------------------------------

    async def bury(self, queue: str, letter: DeadLetter) -> None:
        """Store a letter; the same one only once within the server's window."""
        jetstream = (await self._connected()).jetstream(timeout=_CONNECT)
        data = letter.encode()
        most = (await self._connected()).max_payload
        await jetstream.publish(
            f"{self.stream}-dead.{queue}", data[:most], timeout=_CONNECT, headers={"Nats-Msg-Id": letter.id}
        )

    async def letters(self, queue: str, limit: int = 100) -> list[DeadLetter]:
        """Show the oldest letters."""
        jetstream = (await self._connected()).jetstream(timeout=_CONNECT)
        found: list[DeadLetter] = []
        position = 1
        while len(found) < limit:
            try:
                raw = await jetstream.get_msg(f"{self.stream}-dead", position, f"{self.stream}-dead.{queue}", next=True)
            except NotFoundError:
                break
            found.append(DeadLetter.read(raw.data or b"", str(raw.seq)))
            position = (raw.seq or 0) + 1
        return found

    async def remove(self, queue: str, letter: DeadLetter) -> None:  # noqa: ARG002  positions are of the whole stream
        """Remove a letter."""
        jetstream = (await self._connected()).jetstream(timeout=_CONNECT)
        with suppress(NotFoundError):
            await jetstream.delete_msg(f"{self.stream}-dead", int(letter.position))

    def inbox(self) -> JetStreamInbox:
        """Give an inbox in a key-value bucket, `<stream>-inbox`."""
        return JetStreamInbox(self)


@dataclass(slots=True)
class _Held:
    """An event that is here: where to acknowledge it, and its bytes."""

    sequence: int
    reply: str
    attempt: int
    data: bytes


@dataclass(slots=True)
class _Consumer:
    """One running `consume`."""

    engine: JetStream
    service: str
    handle: Handle
    limit: int
    held: dict[int, _Held] = field(default_factory=dict)
    asked: int = 0  # events that the server still owes for our requests
    asked_at: float = 0.0
    trouble: Exception | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        engine = self.engine
        engine._changed.add(self.changed)
        try:
            async with Batch(self._answer, engine.connection_state) as answers:

                async def work(item: _Held) -> None:
                    delay = await self.handle(Delivery(item.data, item.attempt))
                    del self.held[item.sequence]
                    answers.add((item.reply, _answer(delay)))
                    self.changed.set()

                try:
                    async with Pool(work, self.limit) as pool:
                        pool.start(self._keep(answers))
                        await self._pull_for_ever(pool)
                finally:
                    for item in self.held.values():
                        answers.add((item.reply, _answer(0.0)))
            await to_the_end(self._flush())
        finally:
            engine._changed.discard(self.changed)

    async def _flush(self) -> None:
        """Wait until the last answers have left."""
        client = self.engine._client
        if client is not None and client.is_connected:
            with suppress(Exception):
                await client.flush(2)

    async def _answer(self, answers: list[tuple[str, bytes]]) -> None:
        client = await self.engine._connected()
        for reply, answer in answers:
            await client.publish(reply, answer)

    async def _keep(self, answers: Batch[tuple[str, bytes]]) -> None:
        """Say of all that is held that it is being worked on, until cancelled."""
        while True:
            await asyncio.sleep(self.engine.ack_wait / 3)
            for item in self.held.values():
                answers.add((item.reply, b"+WPI"))

    async def _pull_for_ever(self, pool: Pool[_Held]) -> None:
        attempts = Attempts(self.engine.connection_state)
        while True:
            async with attempts:
                client = await heeding(self.engine._connected())
                await heeding(self._make_consumer(client))
                attempts.succeeded()
                await self._pull(client, pool)

    async def _make_consumer(self, client: Client) -> None:
        jetstream = client.jetstream(timeout=_CONNECT)
        await self.engine._make_streams(jetstream)
        config = ConsumerConfig(
            durable_name=self.engine.durable(self.service),
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self.engine.ack_wait,
            max_deliver=-1,
            max_ack_pending=20_000,
        )
        try:
            await jetstream.consumer_info(self.engine.stream, self.engine.durable(self.service))
        except NotFoundError:
            await jetstream.add_consumer(self.engine.stream, config)

    async def _pull(self, client: Client, pool: Pool[_Held]) -> None:
        """Keep asking for events, as many as there is room for, until something is wrong."""
        inbox = client.new_inbox()
        self.asked, self.trouble = 0, None
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.engine.stream}.{self.engine.durable(self.service)}"

        async def arrived(message: Msg) -> None:
            self._take(message, pool)

        subscription = await heeding(client.subscribe(inbox, cb=arrived))
        reconnects = client.stats["reconnects"]
        try:
            while self.trouble is None:
                room = self.limit * 4 - len(self.held) - self.asked
                if self.asked and time.monotonic() - self.asked_at > _PULL + 5:
                    self.asked = 0  # neither events nor the end of the request came: it is lost
                elif room >= self.limit:
                    await heeding(client.publish(subject, _request(room), reply=inbox))
                    self.asked += room
                    self.asked_at = time.monotonic()
                self.changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self.changed.wait()
                if client.stats["reconnects"] != reconnects:
                    return  # the server has forgotten our requests
            raise self.trouble
        finally:
            await to_the_end(_unsubscribe(subscription))

    def _take(self, message: Msg, pool: Pool[_Held]) -> None:
        status = message.headers.get("Status") if message.headers else None
        if status is not None and not message.reply.startswith("$JS.ACK."):
            self._hear(status, message)
            return
        place = _place(message.reply)
        if place is None:
            return  # nothing that JetStream delivers
        self.asked -= 1
        attempt, sequence = place
        if sequence in self.held:
            self.held[sequence].reply = message.reply  # it took too long to keep, and runs here already
            return
        item = _Held(sequence, message.reply, attempt, message.data)
        self.held[sequence] = item
        pool.put(item)
        if self.limit * 4 - len(self.held) - self.asked >= self.limit:
            self.changed.set()

    def _hear(self, status: str, message: Msg) -> None:
        """Take note of how a request ended."""
        headers = message.headers or {}
        if status in ("404", "408"):
            self.asked = max(0, self.asked - int(headers.get("Nats-Pending-Messages", self.asked)))
        elif status != "100":
            self.trouble = ConnectionError(f"JetStream: {status} {headers.get('Description', '')}")
        self.changed.set()


async def _unsubscribe(subscription: Subscription) -> None:
    with suppress(Exception):  # the connection may be lost
        await subscription.unsubscribe()


def _place(reply: str) -> tuple[int, int] | None:
    """Read from the subject for the acknowledgement how often an event was delivered, and its sequence number."""
    tokens = reply.split(".")
    first = 4 if len(tokens) == 9 else 6  # noqa: PLR2004  newer servers write domain and account before the stream
    try:
        return int(tokens[first]), int(tokens[first + 1])
    except (IndexError, ValueError):
        return None


def _request(count: int) -> bytes:
    return b'{"batch":%d,"expires":%d}' % (count, int(_PULL * 1e9))


def _answer(delay: float | None) -> bytes:
    if delay is None:
        return b"+ACK"
    return b'-NAK {"delay": %d}' % int(delay * 1e9) if delay > 0 else b"-NAK"


class JetStreamInbox:
    """Remembers in a key-value bucket for a week what was done of events that failed."""

    def __init__(self, engine: JetStream) -> None:
        self._engine = engine

    async def _bucket(self) -> Any:
        jetstream = (await self._engine._connected()).jetstream(timeout=_CONNECT)
        name = f"{self._engine.stream}-inbox"
        try:
            return await jetstream.key_value(name)
        except BucketNotFoundError:
            return await jetstream.create_key_value(KeyValueConfig(bucket=name, ttl=_REMEMBERED, history=1))

    async def recall(self, event_id: str, service: str) -> Memo:
        """Give what is remembered."""
        try:
            entry = await (await self._bucket()).get(f"{service}.{event_id}")
        except KeyNotFoundError:
            return Memo()
        return Memo.decode(entry.value or b"")

    async def remember(self, event_id: str, service: str, change: Memo) -> None:
        """Merge a change into what is remembered."""
        memo = await self.recall(event_id, service)
        memo.merge(change)
        await (await self._bucket()).put(f"{service}.{event_id}", memo.encode())
