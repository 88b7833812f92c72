"""NATS JetStream as the engine (extra: nats). NATS 2.9 or newer.

Events are published to the stream, not past it, with their id as `Nats-Msg-Id`, so a repetition within the stream's
window is recognised. A service has a durable pull consumer for each topic, with explicit acknowledgement; `max_deliver`
is unlimited, as the relay counts failures by itself, and a retry is a NAK with a delay, which outlives this process.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import time
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import nats.errors
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, KeyValueConfig, StreamConfig
from nats.js.errors import BucketNotFoundError, KeyNotFoundError, NotFoundError

from asignals.masking import redacted
from asignals.relay._batch import Batch
from asignals.relay._cancel import heeding, limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import DeadLetter, check_name
from asignals.relay._inbox import Memo
from asignals.relay._keys import PARTITIONS, lane_of, partition_of
from asignals.relay._monitoring.figures import EXPIRY, TopicFigures, backlog_of, beat_for_ever, held_of
from asignals.relay._partitions import InPartition
from asignals.relay._places import Address, Server, servers_of
from asignals.relay._pool import Pool
from asignals.relay._settings import check_numbers, check_servers, given
from asignals.relay._to_the_end import to_the_end
from asignals.relay._transport import Delivery, PublishRefusedError, delay_of
from asignals.relay.engines._jetstream_answers import Publishing, patiently, place_of
from asignals.relay.engines._jetstream_order import LANE, PartitionedConsumer, durable_of, subject_of, topic_of
from asignals.relay.engines._jetstream_pulls import SILENCE, request, unsubscribe

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.js.api import ConsumerInfo
    from nats.js.kv import KeyValue

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle, Hear

T = TypeVar("T")
logger: logging.Logger = logging.getLogger("asignals.relay")

_SCHEMES: Final = ("nats://", "tls://", "ws://", "wss://")
_CONNECT: Final = 5.0  # seconds for connecting and for each request
_ANSWER: Final = 1.0  # seconds after which a cluster that has no leader is asked again
_PING: Final = 3  # seconds between two looks at whether the server still answers
_FAREWELL: Final = 2.0  # seconds that closing may take
_LOOK: Final = 1.0  # seconds between two looks at whether a connection is still there
_PONG: Final = 1.0  # seconds that a server may take to say that it is there
_AT_ONCE: Final = 1_000  # events under way to the server
_UNDER_WAY: Final = 64  # requests to delete
_MOST_PENDING: Final = 1_000_000  # events of a topic that a service may hold or have waiting for their retry
_MAX_DURABLE: Final = 200
_REMEMBERED: Final = 7 * 86_400
_DEFAULTS: Final = {"max_age": 30 * 86_400.0, "duplicate_window": 120.0, "num_replicas": 1}
_CONSUMER_SETTINGS: Final = ("ack_wait", "max_deliver", "max_ack_pending", "filter_subject")


def _stream_settings(max_age: float | None, dedup_window: float | None, replicas: int | None) -> dict[str, Any]:
    """Give what a stream is to have by JetStream's names, where it was asked for."""
    age = 0.0 if max_age is not None and math.isinf(max_age) else max_age
    given = {"max_age": age, "duplicate_window": dedup_window, "num_replicas": replicas}
    return {name: value for name, value in given.items() if value is not None}


class JetStream:
    """Carries events through a JetStream stream.

    Args:
        servers: URLs of the servers, `nats://127.0.0.1:4222`; of a cluster, some of them.
        stream: The stream's name; its subjects are `<stream>.<topic>`. Dead letters are in `<stream>-dead`, and which
            instances run in `<stream>-instances`. They are made when they are missing.
        ack_wait: Seconds after which an event of a consumer that does not renew it is delivered to another one.
        max_age: Seconds for which the stream keeps events, whether or not they were handled; `math.inf` for ever.
        dedup_window: Seconds within which the server recognises a repetition.
        replicas: Copies in a cluster, of dead letters and the inbox, too. This and the two before change a stream that
            exists; `None` leaves it as it is, and makes a new one with 30 days, 120 seconds and one copy.
        ack_timeout: Seconds to wait for the server's acknowledgements.
        options: What else `nats.connect` takes.

    Raises:
        ValueError: the servers are not those of NATS, or a name or number cannot be used.
    """

    system: Final = "nats"  # as OpenTelemetry calls it

    def __init__(  # noqa: PLR0913  options by name
        self,
        servers: str | list[str],
        *,
        stream: str = "asignals",
        ack_wait: float = 30.0,
        max_age: float | None = None,
        dedup_window: float | None = None,
        replicas: int | None = None,
        ack_timeout: float = 5.0,
        **options: Any,
    ) -> None:
        if "." in check_name("stream", stream):
            raise ValueError(f"a stream's name has no dots: {stream!r}")
        urls = check_servers("JetStream", "nats://127.0.0.1:4222", servers)
        for server in urls:
            if "://" in server and not server.startswith(_SCHEMES):
                raise ValueError(f"JetStream takes servers such as 'nats://127.0.0.1:4222', not {redacted(server)!r}")
        check_numbers(ack_wait=ack_wait, ack_timeout=ack_timeout)
        check_numbers(**given(max_age=max_age, dedup_window=dedup_window, replicas=replicas))
        self.stream = stream
        self.ack_wait = ack_wait
        self.problems: dict[str, str] = {}  # what is wrong beside the connection
        self.connection_state: ConnectionState = ConnectionState(f"NATS ({', '.join(urls)})")
        self._servers = servers
        self._settings = _stream_settings(max_age, dedup_window, replicas)
        self._ack_timeout = ack_timeout
        self._options = options
        self._client: Client | None = None
        self._down_since: float | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()
        self._numbers = itertools.count()
        self._publishing: dict[str, tuple[str, Publishing]] = {}
        self._replies = ""
        self._changed: set[asyncio.Event] = set()

    # -- places ----------------------------------------------------------------------------------------------------

    def servers(self) -> list[Server]:
        """List the servers."""
        return servers_of(*([self._servers] if isinstance(self._servers, str) else self._servers))

    def address(self, topic: str) -> Address:
        """Give a topic's subject."""
        subject = f"{self.stream}.{check_name('topic', topic)}"
        return Address(subject, note=f"Events with a key are published to {subject_of(subject, '<partition>')}.")

    # -- connecting ------------------------------------------------------------------------------------------------

    async def init(self) -> None:
        """Create the streams that are missing."""
        await self._connected()

    async def aclose(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        self._lock = asyncio.Lock()  # the next event loop may be another
        if client is not None:
            await _close(client)
        if self._leaving:
            await asyncio.wait(self._leaving)

    async def _connected(self) -> Client:
        if self._client is not None and self._client.is_connected:
            self._down_since = None
            return self._client
        async with self._lock:
            if self._client is None or self._client.is_closed:
                self._client = await self._connect()
            if not self._client.is_connected:
                self._give_up_if_slow(self._client)
                raise ConnectionError(f"{self.connection_state.name} is connecting again")
            return self._client

    def _give_up_if_slow(self, client: Client) -> None:
        """Give up a client that does not come back by itself: it waits for the end of a half-open connection."""
        now = time.monotonic()
        self._down_since = self._down_since or now
        if now - self._down_since > _CONNECT:
            self._give_up(client)

    def _give_up(self, client: Client) -> None:
        """Throw a connection away that does not answer, and let the next who asks have a new one."""
        if client is not self._client:
            return
        self._client, self._down_since = None, None
        closing = asyncio.get_running_loop().create_task(_close(client))
        self._leaving.add(closing)
        closing.add_done_callback(self._leaving.discard)
        for event in self._changed:
            event.set()

    async def _ask(self, client: Client, request: Awaitable[T], seconds: float = _CONNECT) -> T:
        """Await an answer; a connection on which none comes in time is given up, unless its server is there."""
        try:
            return await limited(request, seconds, self.connection_state.name)
        except (TimeoutError, nats.errors.TimeoutError) as error:
            msg = f"{self.connection_state.name} gave no answer within {seconds:g} s"
            try:
                await limited(client.flush(int(_PONG) or 1), _PONG)
            except Exception:  # noqa: BLE001  whatever it is: the server does not answer
                self._give_up(client)
            else:
                msg += ", though the server is there: JetStream has no leader, or too few of its servers"
            raise TimeoutError(msg) from error

    async def _connect(self) -> Client:
        # Three seconds twice without an answer, and a connection that is half open is known as lost.
        waits = {"reconnect_time_wait": 0.25, "ping_interval": _PING, "max_outstanding_pings": 2, "connect_timeout": 2}
        client = Client()
        connecting = client.connect(
            self._servers,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            error_cb=self._on_error,
            disconnected_cb=self._on_loss,
            reconnected_cb=self._on_return,
            **{**waits, **self._options},
        )
        try:
            await limited(connecting, _CONNECT, self.connection_state.name)
            await limited(self._make_streams(client), 3 * _CONNECT, self.connection_state.name)
            self._replies = client.new_inbox()
            await client.subscribe(f"{self._replies}.*", cb=self._on_reply)
        except BaseException:
            await _close(client)
            raise
        self.connection_state.restored()
        return client

    async def _make_streams(self, client: Client) -> None:
        """Create what is missing, and change what is there where it was asked for."""
        name, settings = self.stream, self._settings
        copies = {setting: value for setting, value in settings.items() if setting == "num_replicas"}
        others = {"num_replicas": 1, **copies}
        beats = {"max_age": EXPIRY, "max_msgs_per_subject": 1, "duplicate_window": EXPIRY}
        await self._make_stream(client, name, settings, {**_DEFAULTS, **settings})
        await self._make_stream(client, f"{name}-dead", copies, others)
        await self._make_stream(client, f"{name}-instances", copies, {**others, **beats})
        leases = {"max_age": self.ack_wait, "duplicate_window": self.ack_wait}
        owners = {**copies, **leases}
        await self._make_stream(client, f"{name}-owners", owners, {**others, **leases, "max_msgs_per_subject": 1})
        if copies:
            await self._make_stream(client, f"KV_{name}-inbox", copies, None)  # made by the first who needs it

    async def _make_stream(
        self, client: Client, name: str, given: dict[str, Any], defaults: dict[str, Any] | None
    ) -> None:
        jetstream = client.jetstream(timeout=_ANSWER)
        try:
            config = (await patiently(lambda: jetstream.stream_info(name), _CONNECT - _ANSWER)).config
        except NotFoundError:
            if defaults is not None:
                made = StreamConfig(name=name, subjects=[f"{name}.>"], **defaults)
                await patiently(lambda: jetstream.add_stream(made), _CONNECT - _ANSWER)
            return
        changed = {field: value for field, value in given.items() if (getattr(config, field) or 0) != value}
        if changed:
            await patiently(lambda: jetstream.update_stream(config.evolve(**changed)), _CONNECT - _ANSWER)
            logger.warning("changed stream %r of %s: %s", name, self.connection_state.name, changed)

    async def _on_error(self, error: Exception) -> None:
        if self._client is None or not self._client.is_connected:
            self.connection_state.lost(error)

    async def _on_loss(self) -> None:
        if self._client is None:
            return  # we are closing it
        self.connection_state.lost(ConnectionError("disconnected"))
        self._drop_unsent(self._client)
        for _, publishing in self._publishing.values():
            if not publishing.ended.done():
                msg = f"{self.connection_state.name} was lost before it had acknowledged"
                publishing.ended.set_exception(ConnectionError(msg))

    def _drop_unsent(self, client: Client) -> None:
        """Have events not be sent after a reconnection that were not yet: those before them may be lost, and all of a
        batch is published again, in order.
        """
        ours = f"HPUB {self.stream}.".encode()
        kept = [command for command in client._pending if not command.startswith(ours)]
        client._pending_data_size -= sum(map(len, client._pending)) - sum(map(len, kept))
        client._pending[:] = kept

    async def _on_return(self) -> None:
        self.connection_state.restored()
        for event in self._changed:
            event.set()

    # -- publishing ------------------------------------------------------------------------------------------------

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when the stream has stored all of them.

        Raises `TimeoutError` and `ConnectionError`; repeating is safe within the window. While a cluster has no leader
        it is repeated here, for `ack_timeout` seconds.
        """
        refused: dict[str, str] = {}
        for start in range(0, len(envelopes), _AT_ONCE):
            some = envelopes[start : start + _AT_ONCE]
            refused |= await patiently(lambda some=some: self._publish_some(some), self._ack_timeout)  # type: ignore[misc]
        if refused:
            raise PublishRefusedError(refused)

    async def _publish_some(self, envelopes: Sequence[Envelope]) -> dict[str, str]:
        client = await self._connected()
        publishing = Publishing([envelope.id for envelope in envelopes])
        numbers = []
        try:
            for envelope in envelopes:
                if publishing.ended.done():
                    break  # the connection was lost: nothing may come before those that were
                data = envelope.encode()
                if len(data) > client.max_payload:
                    publishing.refused[envelope.id] = f"{len(data)} bytes are more than NATS takes"
                    publishing.open.pop(envelope.id, None)
                    continue
                number = str(next(self._numbers))
                numbers.append(number)
                self._publishing[number] = envelope.id, publishing
                subject, headers = f"{self.stream}.{envelope.topic}", {"Nats-Msg-Id": envelope.id}
                if envelope.key is not None:
                    subject = subject_of(subject, partition_of(envelope.key))
                    headers[LANE] = str(lane_of(envelope.key))
                sending = client.publish(
                    subject,
                    data,
                    reply=f"{self._replies}.{number}",
                    headers=headers,
                )
                await sending
            if publishing.open:
                await self._ask(client, publishing.ended, self._ack_timeout)
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

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event of the topics until cancelled."""
        check_name("instance", instance)
        names = [check_name("topic", topic) for topic in topics]
        await _Consumer(self, check_name("service", service), instance, names, handle, limit).run()

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Hear each event of these topics by a subscription of core NATS, which nothing is kept for."""
        plain = [f"{self.stream}.{check_name('topic', topic)}" for topic in topics]
        subjects = [*plain, *(subject_of(subject, "*") for subject in plain)]
        attempts = Attempts(self.connection_state)
        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            while True:
                async with attempts:
                    client = await heeding(self._connected())
                    subscriptions: list[Subscription] = []
                    try:
                        for subject in subjects:
                            subscribing = client.subscribe(subject, cb=self._hearer(hear))
                            subscriptions.append(await heeding(subscribing))
                        await self._ask(client, client.flush(int(_CONNECT) or 1))
                        attempts.succeeded()
                        begun()
                        await self._until_lost(client, changed)
                    finally:
                        for subscription in subscriptions:
                            await to_the_end(unsubscribe(subscription))
        finally:
            self._changed.discard(changed)

    def _hearer(self, hear: Hear) -> Callable[[Msg], Awaitable[None]]:
        async def arrived(message: Msg) -> None:
            hear(Delivery(topic_of(message.subject.removeprefix(f"{self.stream}.")), message.data))

        return arrived

    async def _until_lost(self, client: Client, changed: asyncio.Event) -> None:
        reconnects = client.stats["reconnects"]
        while client is self._client and client.stats["reconnects"] == reconnects:
            if client.is_connected:
                self._down_since = None
            else:
                self._give_up_if_slow(client)
            changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await changed.wait()

    async def add_service(self, service: str, topics: Collection[str]) -> None:
        """Create the service's consumer of each topic, from the first event that is there, where it is missing."""
        check_name("service", service)
        client = await self._connected()
        for topic in topics:
            await self._make_consumers(client, service, check_name("topic", topic))

    async def _make_consumers(self, client: Client, service: str, topic: str) -> None:
        """Make a service's consumers of a topic: of its partitions, and of the events without a key."""
        name, subject = _durable(service, topic), f"{self.stream}.{topic}"
        await self._make_consumer(client, (service, topic), name, subject)
        for number in range(PARTITIONS):
            partition = subject_of(subject, number)
            await self._make_consumer(client, (service, topic), durable_of(name, number), partition)

    async def _make_consumer(self, client: Client, whose: tuple[str, str], name: str, subject: str) -> None:
        jetstream = client.jetstream(timeout=_ANSWER)
        config = ConsumerConfig(
            durable_name=name,
            description=" ".join(whose),
            filter_subject=subject,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self.ack_wait,
            max_deliver=-1,
            max_ack_pending=_MOST_PENDING,
        )
        try:
            found = (await patiently(lambda: jetstream.consumer_info(self.stream, name), _CONNECT - _ANSWER)).config
        except NotFoundError:
            await patiently(lambda: jetstream.add_consumer(self.stream, config), _CONNECT - _ANSWER)
            return
        wrong = [setting for setting in _CONSUMER_SETTINGS if getattr(found, setting) != getattr(config, setting)]
        if wrong:
            changed = found.evolve(**{setting: getattr(config, setting) for setting in wrong})
            await patiently(lambda: jetstream.add_consumer(self.stream, changed), _CONNECT - _ANSWER)
            logger.warning("changed %s of the consumer of %r by %r", ", ".join(wrong), whose[1], whose[0])

    async def forget_service(self, service: str, topics: Collection[str] | None = None) -> None:
        """Delete the service's consumers, of some topics or of all."""
        client = await self._connected()
        for info in await self._consumers(client, service):
            if topics is None or (info.config.description or "").partition(" ")[2] in topics:
                with suppress(NotFoundError):
                    deleting = client.jetstream(timeout=_CONNECT).delete_consumer(self.stream, info.name)
                    await self._ask(client, deleting)

    async def _consumers(self, client: Client, service: str | None) -> list[ConsumerInfo]:
        """Give the consumers of all topics, of one service or of all."""
        jetstream = client.jetstream(timeout=_CONNECT)
        found: list[ConsumerInfo] = []
        seen = 0
        while page := await self._ask(client, jetstream.consumers_info(self.stream, offset=seen)):
            seen += len(page)
            names = [(info.config.description or "").partition(" ")[0] for info in page]
            found += [info for info, name in zip(page, names, strict=True) if service in (None, name)]
        return found

    async def backlog(self, service: str) -> int:
        """Count the events that the service has not acknowledged."""
        return backlog_of(await self.figures(service))

    async def figures(self, service: str | None = None, topics: Collection[str] | None = None) -> list[TopicFigures]:
        """Give what waits, by service and topic.

        `in_flight` is what the instances said last, up to five seconds ago; those that were killed count as alive for
        up to twenty.
        """
        client = await self._connected()
        beats = await self._beats(client)
        found: dict[tuple[str, str], list[ConsumerInfo]] = {}
        for info in await self._consumers(client, service):
            name, _, topic = (info.config.description or "").partition(" ")
            if topic and (topics is None or topic in topics):
                found.setdefault((name, topic), []).append(info)
        return [
            await self._figures_of(client, infos, whose, [held for name, held in beats if name == whose[0]])
            for whose, infos in sorted(found.items())
        ]

    async def _figures_of(
        self, client: Client, infos: list[ConsumerInfo], whose: tuple[str, str], beats: list[dict[str, int]]
    ) -> TopicFigures:
        mine = [held[whose[1]] for held in beats if whose[1] in held]
        pending = sum(info.num_ack_pending or 0 for info in infos)
        backlog, in_flight = pending + sum(info.num_pending or 0 for info in infos), sum(mine)
        ages = [
            await self._age_after(client, info)
            for info in infos
            if (info.num_ack_pending or 0) + (info.num_pending or 0)
        ]
        age = max((one for one in ages if one is not None), default=None if ages else 0.0)
        return TopicFigures(*whose, backlog, age, in_flight, max(0, pending - in_flight), len(mine))

    async def _age_after(self, client: Client, info: ConsumerInfo) -> float | None:
        """Give the age of the first event that a consumer has not acknowledged."""
        done = info.ack_floor.stream_seq if info.ack_floor else 0
        asking = json.dumps({"seq": done + 1, "next_by_subj": info.config.filter_subject}).encode()
        answer = await self._ask(client, client.request(f"$JS.API.STREAM.MSG.GET.{self.stream}", asking, _CONNECT))
        text = json.loads(answer.data).get("message", {}).get("time")
        return None if text is None else max(0.0, time.time() - _seconds(text))

    async def _beats(self, client: Client) -> list[tuple[str, dict[str, int]]]:
        """Give the heartbeats of all instances: the service, and how many events it holds of which topic."""
        name = f"{self.stream}-instances"
        subjects = await self._subjects(client, name, f"{name}.>")
        jetstream = client.jetstream(timeout=_CONNECT)
        found = []
        for subject in subjects:
            with suppress(NotFoundError):  # it has expired meanwhile
                message = await self._ask(client, jetstream.get_last_msg(name, subject))
                service = (message.headers or {}).get("Service", "")
                found.append((service, held_of(message.data or b"")))
        return found

    async def _subjects(self, client: Client, stream: str, pattern: str) -> dict[str, int]:
        """Count the messages of each subject of a stream."""
        asking = json.dumps({"subjects_filter": pattern}).encode()
        answer = await self._ask(client, client.request(f"$JS.API.STREAM.INFO.{stream}", asking, _CONNECT))
        found: dict[str, int] = json.loads(answer.data).get("state", {}).get("subjects") or {}
        return found

    def _durable(self, service: str, topic: str) -> str:
        return _durable(service, topic)

    def _owners(self, service: str, topic: str) -> str:
        """Name the leases of a topic's partitions in a service."""
        return f"{self.stream}-owners.{_durable(service, topic)}"

    def _beat_subject(self, service: str, instance: str) -> str:
        return f"{self.stream}-instances.{service}.{instance}"

    async def _beat(self, service: str, instance: str, held: dict[str, int]) -> None:
        client = await self._connected()
        subject, jetstream = self._beat_subject(service, instance), client.jetstream(timeout=_CONNECT)
        headers = {"Service": service}
        await self._ask(client, jetstream.publish(subject, json.dumps(held).encode(), headers=headers))

    async def _stop_beating(self, service: str, instance: str) -> None:
        client = await self._connected()
        purging = client.jetstream(timeout=_CONNECT).purge_stream(
            f"{self.stream}-instances", subject=self._beat_subject(service, instance)
        )
        await self._ask(client, purging)

    # -- dead letters ----------------------------------------------------------------------------------------------

    def _dead(self, queue: str) -> str:
        return f"{self.stream}-dead.{check_name('queue', queue)}"

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Store a letter; the same one only once within the server's window."""
        client = await self._connected()
        data, headers = letter.encode()[: client.max_payload], {"Nats-Msg-Id": f"{queue} {letter.id}"}
        jetstream = client.jetstream(timeout=_CONNECT)
        await self._ask(client, jetstream.publish(self._dead(queue), data, timeout=_CONNECT, headers=headers))

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue."""
        client = await self._connected()
        return (await self._subjects(client, f"{self.stream}-dead", self._dead(queue))).get(self._dead(queue), 0)

    async def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters in batches, the oldest first."""
        client = await self._connected()
        jetstream = client.jetstream(timeout=_CONNECT)
        config = ConsumerConfig(
            filter_subject=self._dead(queue),
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            inactive_threshold=_CONNECT * 12,
        )
        dead = f"{self.stream}-dead"
        info = await self._ask(client, jetstream.add_consumer(dead, config))
        left = info.num_pending or 0
        reading = await jetstream.pull_subscribe_bind(consumer=info.name, stream=dead)
        try:
            while left > 0:
                messages = await self._ask(client, reading.fetch(min(batch, left), timeout=_CONNECT), _CONNECT + 1)
                left -= len(messages)
                yield [DeadLetter.read(one.data, str(one.metadata.sequence.stream)) for one in messages]
        finally:
            with suppress(Exception):
                async with asyncio.timeout(_FAREWELL):
                    await reading.unsubscribe()
                    await jetstream.delete_consumer(dead, info.name)

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:  # noqa: ARG002  positions are of the whole stream
        """Remove letters."""
        client = await self._connected()
        jetstream = client.jetstream(timeout=_CONNECT)

        async def delete(letter: DeadLetter) -> None:
            with suppress(NotFoundError):
                await self._ask(client, jetstream.delete_msg(f"{self.stream}-dead", int(letter.position)))

        for start in range(0, len(letters), _UNDER_WAY):
            await asyncio.gather(*(delete(letter) for letter in letters[start : start + _UNDER_WAY]))

    def inbox(self) -> JetStreamInbox:
        """Give an inbox in a key-value bucket, `<stream>-inbox`."""
        return JetStreamInbox(self)


@dataclass(slots=True)
class _Held:
    """An event that is here: where to acknowledge it, and its bytes."""

    sequence: int
    reply: str
    attempt: int
    topic: str
    data: bytes
    pull: _Pull


@dataclass(slots=True, eq=False)
class _Pull:
    """The requests for events of one topic."""

    topic: str
    held: int = 0
    asked: int = 0  # events that the server still owes for our requests
    silence: float = 0.0  # seconds in which the server has said nothing; a loop that is blocked hears nothing


_Pool: TypeAlias = "Pool[_Held | InPartition[Any]]"


@dataclass(slots=True)
class _Consumer:
    """One running `consume`."""

    engine: JetStream
    service: str
    instance: str
    topics: list[str]
    handle: Handle
    limit: int
    held: dict[int, _Held] = field(default_factory=dict)
    trouble: Exception | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    partitioned: PartitionedConsumer = field(init=False)

    async def run(self) -> None:
        engine = self.engine
        pool: _Pool
        engine._changed.add(self.changed)
        try:
            async with Batch(self._answer, engine.connection_state) as answers:

                async def work(item: _Held | InPartition[Any]) -> None:
                    if isinstance(item, InPartition):
                        await self.partitioned.work(item)
                        return
                    delivery = Delivery(item.topic, item.data, item.attempt, item.attempt > 1, pool.park)
                    outcome = await self.handle(delivery)
                    del self.held[item.sequence]
                    item.pull.held -= 1
                    answers.add((item.reply, _answer(None if outcome is None else delay_of(outcome))))
                    self.changed.set()

                pool = Pool(work, self.limit, on_park=self.changed.set)
                self.partitioned = PartitionedConsumer(
                    *(engine, self.service, self.instance, self.topics, self.handle, self.limit, pool, answers)
                )
                turns: Sequence[Any] = ()
                try:
                    async with pool:
                        pool.start(self._keep(answers))
                        pool.start(self.partitioned.own_for_ever())
                        pool.start(beat_for_ever(engine.connection_state.name, self._beat, self._stop_beating))
                        await self._pull_for_ever(pool)
                finally:
                    for item in self.held.values():
                        answers.add((item.reply, _answer(0.0)))
                    turns = self.partitioned.stop()
            await to_the_end(self._flush())
            await to_the_end(self.partitioned.leave(turns))
        finally:
            engine._changed.discard(self.changed)

    async def _beat(self) -> None:
        held = Counter(item.topic for item in self.held.values())
        counts = {topic: held[topic] + self.partitioned.count(topic) for topic in self.topics}
        await self.engine._beat(self.service, self.instance, counts)

    async def _stop_beating(self) -> None:
        await self.engine._stop_beating(self.service, self.instance)

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

    async def _pull_for_ever(self, pool: _Pool) -> None:
        attempts = Attempts(self.engine.connection_state)
        while True:
            async with attempts:
                client = await heeding(self.engine._connected())
                await heeding(self.engine._make_streams(client))
                for topic in self.topics:
                    await heeding(self.engine._make_consumers(client, self.service, topic))
                self.partitioned.are_made.set()
                attempts.succeeded()
                await self._pull(client, pool)

    async def _pull(self, client: Client, pool: _Pool) -> None:
        """Keep asking for events, of each topic as many as there is room for, until something is wrong."""
        self.trouble = None
        pulls = {client.new_inbox(): _Pull(topic) for topic in self.topics}
        subscriptions: list[Subscription] = []
        reconnects = client.stats["reconnects"]
        try:
            for inbox, pull in pulls.items():
                subscriptions.append(await heeding(client.subscribe(inbox, cb=self._taker(pull, pool))))
            while self.trouble is None:
                for inbox, pull in pulls.items():
                    await self._ask_for_more(client, inbox, pull, pool)
                self.changed.clear()
                began = time.monotonic()
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self.changed.wait()
                if client is not self.engine._client or client.stats["reconnects"] != reconnects:
                    return  # the server has forgotten our requests
                self._look_for_silence(pulls.values(), min(1.0, time.monotonic() - began))
            raise self.trouble
        finally:
            for subscription in subscriptions:
                await to_the_end(unsubscribe(subscription))

    def _look_for_silence(self, pulls: Collection[_Pull], seconds: float) -> None:
        """Find requests that were lost with the leader of their consumer: nobody says so."""
        for pull in pulls:
            pull.silence = pull.silence + seconds if pull.asked else 0.0
            if pull.silence > SILENCE:
                msg = f"JetStream has said nothing for {SILENCE:g} s of the consumer of {pull.topic!r}"
                self.trouble = ConnectionError(msg)

    def _room(self, pull: _Pull, pool: _Pool) -> int:
        each = max(1, self.limit * 4 // len(self.topics))
        most = self.limit * 4 + pool.parked - len(self.held)
        return min(each + pool.parked - pull.held, most) - pull.asked

    async def _ask_for_more(self, client: Client, inbox: str, pull: _Pull, pool: _Pool) -> None:
        room = self._room(pull, pool)
        if room > 0 and room >= self.limit // len(self.topics):
            durable = _durable(self.service, pull.topic)
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.engine.stream}.{durable}"
            await heeding(client.publish(subject, request(room), reply=inbox))
            pull.asked += room

    def _taker(self, pull: _Pull, pool: _Pool) -> Callable[[Msg], Awaitable[None]]:
        async def arrived(message: Msg) -> None:
            self._take(message, pull, pool)

        return arrived

    def _take(self, message: Msg, pull: _Pull, pool: _Pool) -> None:
        pull.silence = 0.0
        status = message.headers.get("Status") if message.headers else None
        if status is not None and not message.reply.startswith("$JS.ACK."):
            self._hear(status, message, pull)
            return
        place = place_of(message.reply)
        if place is None:
            return  # nothing that JetStream delivers
        pull.asked -= 1
        attempt, sequence = place
        if sequence in self.held:
            self.held[sequence].reply = message.reply  # it took too long to keep, and runs here already
            return
        topic = message.subject.removeprefix(f"{self.engine.stream}.")
        item = _Held(sequence, message.reply, attempt, topic, message.data, pull)
        self.held[sequence] = item
        pull.held += 1
        pool.put(item)

    def _hear(self, status: str, message: Msg, pull: _Pull) -> None:
        """Take note of how a request ended."""
        headers = message.headers or {}
        if status in ("404", "408"):
            pull.asked = max(0, pull.asked - int(headers.get("Nats-Pending-Messages", pull.asked)))
        elif status == "409" and headers.get("Description") == "Leadership Change":
            pull.asked = 0  # the new leader knows none of our requests
        elif status != "100":
            self.trouble = ConnectionError(f"JetStream: {status} {headers.get('Description', '')}")
        self.changed.set()


async def _close(client: Client) -> None:
    """Close a connection, which may be half open, or was never made: then the client itself does not close it."""
    with suppress(Exception):
        await limited(client.close(), _FAREWELL)
    transport: Any = client._transport
    if transport is not None:
        with suppress(Exception):
            transport.close()


def _seconds(text: str) -> float:
    """Read a time as the server writes it, with up to nine digits after the point."""
    whole, _, rest = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{rest or 0}")


def _durable(service: str, topic: str) -> str:
    """Name the consumer of a topic by a service: a durable's name has no dots, and 255 characters at most."""
    name = f"{service}=={topic}".replace(".", "=")
    return name if len(name) <= _MAX_DURABLE else f"{name[: _MAX_DURABLE - 9]}={zlib.crc32(name.encode()):08x}"


def _answer(delay: float | None) -> bytes:
    if delay is None:
        return b"+ACK"
    return b'-NAK {"delay": %d}' % int(delay * 1e9) if delay > 0 else b"-NAK"


class JetStreamInbox:
    """Remembers in a key-value bucket for a week what was done of events that failed."""

    def __init__(self, engine: JetStream) -> None:
        self._engine = engine

    async def _with_bucket(self, work: Callable[[KeyValue], Awaitable[T]]) -> T:
        client = await self._engine._connected()
        return await self._engine._ask(client, self._work_on(client, work))

    async def _work_on(self, client: Client, work: Callable[[KeyValue], Awaitable[T]]) -> T:
        jetstream, name = client.jetstream(timeout=_CONNECT), f"{self._engine.stream}-inbox"
        try:
            bucket = await jetstream.key_value(name)
        except BucketNotFoundError:
            copies = self._engine._settings.get("num_replicas", 1)
            config = KeyValueConfig(bucket=name, ttl=_REMEMBERED, history=1, replicas=copies)
            bucket = await jetstream.create_key_value(config)
        return await work(bucket)

    async def count(self) -> int:
        """Count the events that it remembers, of all services."""

        async def ask(bucket: KeyValue) -> int:
            return int((await bucket.status()).values)

        return await self._with_bucket(ask)

    async def recall(self, event_id: str, service: str) -> Memo:
        """Give what is remembered."""
        try:
            entry = await self._with_bucket(lambda bucket: bucket.get(f"{service}.{event_id}"))
        except KeyNotFoundError:
            return Memo()
        return Memo.decode(entry.value or b"")

    async def remember(self, event_id: str, service: str, change: Memo) -> None:
        """Merge a change into what is remembered."""
        memo = await self.recall(event_id, service)
        memo.merge(change)
        await self._with_bucket(lambda bucket: bucket.put(f"{service}.{event_id}", memo.encode()))
