"""NATS JetStream as the engine (extra: nats). NATS 2.9 or newer.

Events are published to the stream, not past it, with their id as `Nats-Msg-Id`, so a repetition within the stream's
window is recognised. A service has a durable pull consumer for each topic, with explicit acknowledgement; `max_deliver`
is unlimited, as the relay counts failures by itself, and a retry is a NAK with a delay, which outlives this process.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from nats.aio.client import Client

from asignals.masking import redacted
from asignals.relay._cancel import heeding
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import check_name
from asignals.relay._places import Address, Server, servers_of
from asignals.relay._settings import check_numbers, check_options, check_servers, given
from asignals.relay._to_the_end import to_the_end
from asignals.relay._transport import Delivery
from asignals.relay.engines._broker import BrokerEngine
from asignals.relay.engines._jetstream.answers import NoLeaderError
from asignals.relay.engines._jetstream.connection import CONNECT, OURS, NatsConnection
from asignals.relay.engines._jetstream.consumer import Consumer
from asignals.relay.engines._jetstream.dead_letters import DeadLetterStream
from asignals.relay.engines._jetstream.inbox import JetStreamInbox
from asignals.relay.engines._jetstream.names import partition_subject, topic_of
from asignals.relay.engines._jetstream.publisher import Publisher
from asignals.relay.engines._jetstream.pulls import unsubscribe
from asignals.relay.engines._jetstream.services import Services
from asignals.relay.engines._jetstream.streams import Streams, stream_settings, until_deleted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle, Hear

_SCHEMES: Final = ("nats://", "tls://", "ws://", "wss://")


class JetStream(BrokerEngine):
    """Carries events through a JetStream stream.

    Of the figures, `in_flight` is what the instances said last, up to five seconds ago; those that were killed count as
    alive for up to twenty.

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
        options: What else `nats.connect` takes, but for how it connects again, and its callbacks.

    Raises:
        ValueError: the servers are not those of NATS, a name or number cannot be used, or an option is the engine's.
        TypeError: `nats.connect` has no such option.
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
        self.stream: str = stream
        self.ack_wait: float = ack_wait
        self.ack_timeout: float = ack_timeout
        check_options("JetStream", options, OURS, inspect.signature(Client.connect).parameters)
        self._connection = NatsConnection(servers, f"NATS ({', '.join(urls)})", options)
        self.connection_state: ConnectionState = self._connection.state
        self._streams = Streams(self._connection, stream, ack_wait, stream_settings(max_age, dedup_window, replicas))
        self._connection.on_connect.append(self._streams.make)
        self._publisher = Publisher(self._connection, stream, ack_timeout)
        self._known = Services(self._streams)
        super().__init__(self._known, DeadLetterStream(self._streams))

    def servers(self) -> list[Server]:
        """List the servers."""
        servers = self._connection.servers
        return servers_of(*([servers] if isinstance(servers, str) else servers))

    def address(self, topic: str) -> Address:
        """Give a topic's subject."""
        subject = self._subject(topic)
        return Address(subject, note=f"Events with a key are published to {partition_subject(subject, '<partition>')}.")

    def _subject(self, topic: str) -> str:
        return f"{self.stream}.{check_name('topic', topic)}"

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong beside the connection."""
        return self._connection.problems | self._streams.problems

    async def init(self) -> None:
        """Create the streams that are missing."""
        await self._connection.open()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._connection.aclose()

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when the stream has stored all of them.

        Raises `TimeoutError` and `ConnectionError`; repeating is safe within the window. While a cluster has no leader
        it is repeated here, for `ack_timeout` seconds.
        """
        try:
            await self._publisher.publish_many(envelopes)
        except NoLeaderError:  # or somebody has deleted the stream: then the next attempt finds it
            await until_deleted(self.ack_timeout)
            await heeding(self._streams.make(await self._connection.open()))
            raise

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event of the topics until cancelled."""
        check_name("instance", instance)
        names = [check_name("topic", topic) for topic in topics]
        await Consumer(self._known, check_name("service", service), instance, names, handle, limit).run()

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Hear each event of these topics by a subscription of core NATS, which nothing is kept for."""
        plain = [self._subject(topic) for topic in topics]
        subjects = [*plain, *(partition_subject(subject, "*") for subject in plain)]
        attempts = Attempts(self.connection_state)
        changed = asyncio.Event()
        with self._connection.watched(changed):
            while True:
                async with attempts:
                    client = await heeding(self._connection.open())
                    subscriptions: list[Subscription] = []
                    try:
                        for subject in subjects:
                            subscribing = client.subscribe(subject, cb=partial(self._heard, hear))
                            subscriptions.append(await heeding(subscribing))
                        await self._connection.ask(client, client.flush(int(CONNECT) or 1))
                        attempts.succeeded()
                        begun()
                        await self._connection.until_lost(client, changed)
                    finally:
                        for subscription in subscriptions:
                            await to_the_end(unsubscribe(subscription))

    async def _heard(self, hear: Hear, message: Msg) -> None:
        hear(Delivery(topic_of(message.subject.removeprefix(f"{self.stream}.")), message.data))

    def inbox(self) -> JetStreamInbox:
        """Give an inbox in a key-value bucket, `<stream>-inbox`."""
        return JetStreamInbox(self._streams)
