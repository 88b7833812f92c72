"""RabbitMQ as the engine, by aio-pika (extra: rabbitmq). RabbitMQ 3.10 or newer.

Persistent messages, publisher confirms, a durable topic exchange, and a quorum queue for each topic of each service.
What no service receives is kept in a separate queue, for the first service that does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aio_pika import DeliveryMode, ExchangeType, Message
from aio_pika.exceptions import DeliveryError

from asignals.masking import redacted
from asignals.relay._cancel import limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._envelope import check_name
from asignals.relay._keys import partition_of
from asignals.relay._places import Address, Server, servers_of
from asignals.relay._settings import check_options
from asignals.relay._transport import Delivery, PublishRefusedError
from asignals.relay.engines._broker import BrokerEngine
from asignals.relay.engines._rabbitmq.channels import ANSWER_TIMEOUT, Closing
from asignals.relay.engines._rabbitmq.connection import BrokerConnection, MessageTooLargeError, OpenConnection
from asignals.relay.engines._rabbitmq.consumer import MOST_HELD, WATCH, Consumer
from asignals.relay.engines._rabbitmq.dead_letters import DeadLetterQueues
from asignals.relay.engines._rabbitmq.partitions import KEY
from asignals.relay.engines._rabbitmq.queues import Queues, routing_key, routing_keys, topic_of
from asignals.relay.engines._rabbitmq.services import Services

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle, Hear

_AT_ONCE: Final = 500
_UNDER_WAY: Final = 64  # more that begin at once would stall the event loop for what they take together

_OURS: Final = ("url", "host", "port", "login", "password", "virtualhost", "ssl")  # which aio-pika takes from the URL


class RabbitMQ(BrokerEngine):
    """Carries events through RabbitMQ.

    An event id that comes twice is delivered twice; an inbox that is given to the relay skips the second. Events of a
    topic that no service receives are kept for 30 days, and given to the first service that receives it. RabbitMQ gives
    an event to another instance when it was not acknowledged for its `consumer_timeout` (30 minutes by default).

    The protocol tells neither what consumers hold, so that `backlog` is without it, nor how old events are.

    RabbitMQ writes down that a new quorum queue exists some seconds after it has said so: a node (3.10) that is killed
    before that may never find the queue a leader. So make a service known (`Relay.init`) some time before its events.

    Args:
        urls: `amqp://user:password@host:5672/vhost`, or `amqps://…`; settings such as `heartbeat` go into its query. Of
            a cluster the URLs of several nodes: one at random is used, and the next where it cannot be reached.
        name: Names the exchange and begins the names of the queues: `<name>.<service>/<topic>`, `<name>.dead.<queue>`.
        options: What else `aio_pika.connect` takes, `ssl_context` for one.

    Raises:
        ValueError: the URL is not RabbitMQ's, `name` cannot be used, or an option is one that the URL has.
    """

    system: Final = "rabbitmq"  # as OpenTelemetry calls it

    def __init__(self, urls: str | Sequence[str], *, name: str = "asignals", **options: Any) -> None:
        nodes: list[str] = list(urls) if isinstance(urls, list | tuple) else [urls]  # type: ignore[list-item]  # seen below
        wrong = [url for url in nodes if not isinstance(url, str) or not url.startswith(("amqp://", "amqps://"))]
        if wrong or not nodes:
            found = redacted(wrong[0] if wrong else urls)
            raise ValueError(
                f"RabbitMQ takes a URL such as 'amqp://user:password@host/', or a list of them, not {found!r}"
            )
        check_options("RabbitMQ", options, _OURS)
        self.name: str = check_name("name", name)
        self._connection = BrokerConnection(nodes, name, options)
        self.connection_state: ConnectionState = self._connection.state
        self._queues = Queues(self._connection)
        self._known = Services(self._queues)
        super().__init__(self._known, DeadLetterQueues(self._queues))

    def servers(self) -> list[Server]:
        """List the servers."""
        return servers_of(*self._connection.urls)

    def address(self, topic: str) -> Address:
        """Give a topic's routing key, and the exchange."""
        exchange = {"name": self.name, "type": "topic", "durable": True}
        note = f"Events with a key are published to {routing_key(topic, '<partition>')}."
        return Address(check_name("topic", topic), {"amqp": {"is": "routingKey", "exchange": exchange}}, note)

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong beside the connection."""
        return {**self._connection.problems, **self._known.problems}

    async def init(self) -> None:
        """Create the exchange, if it is missing."""
        await self._known.ensure_bound()

    async def aclose(self) -> None:
        """Close the connection."""
        await self._connection.aclose()
        self._known.reset()

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when RabbitMQ has confirmed all.

        Raises `aio_pika.exceptions.AMQPError`, `ConnectionError` and `TimeoutError`; when all is then repeated, what
        was confirmed comes twice. Raises `PublishRefusedError` for events that are larger than RabbitMQ takes.
        """
        refused: dict[str, str] = {}
        for start in range(0, len(envelopes), _AT_ONCE):
            refused |= await self._publish_some(envelopes[start : start + _AT_ONCE])
        if refused:
            raise PublishRefusedError(refused)

    async def _publish_some(self, envelopes: Sequence[Envelope]) -> dict[str, str]:
        """Publish events at the same time; gives for those that RabbitMQ never takes the reason."""
        await self._known.ensure_bound()
        opened = await self._connection.open()
        turns = asyncio.Semaphore(_UNDER_WAY)
        publishing = [self._publish(opened, envelope, turns) for envelope in envelopes]
        results = await asyncio.gather(*publishing, return_exceptions=True)
        if any(isinstance(result, DeliveryError) for result in results):
            await self._connection.declare()  # somebody has deleted what keeps events that no service receives
        for result in results:
            if isinstance(result, MessageTooLargeError):  # which has closed the channel for the others, too
                refused = {each.id: str(result) for each in envelopes if len(each.encode()) > result.limit}
                failed = [each for each, of in zip(envelopes, results, strict=True) if isinstance(of, BaseException)]
                rest = [each for each in failed if each.id not in refused]
                if len(rest) < len(failed):
                    return refused | (await self._publish_some(rest) if rest else {})
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return {}

    async def _publish(self, opened: OpenConnection, envelope: Envelope, turns: asyncio.Semaphore) -> None:
        message = Message(envelope.encode(), delivery_mode=DeliveryMode.PERSISTENT, message_id=envelope.id)
        routing = envelope.topic
        if envelope.key is not None:
            message.headers[KEY] = envelope.key
            routing = routing_key(routing, partition_of(envelope.key))
        async with turns:
            if self._connection.current is not opened:
                raise ConnectionError("the connection to RabbitMQ was lost before the event could be published")
            with self._connection.giving_up(opened):
                await opened.exchange.publish(message, routing, mandatory=True, timeout=ANSWER_TIMEOUT)

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event of the topics until cancelled."""
        check_name("instance", instance)
        names = [check_name("topic", topic) for topic in topics]
        await Consumer(self._known, check_name("service", service), names, handle, limit).run()

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Hear each event of these topics by a queue of this connection's own, which goes with it.

        An event that somebody listens to counts as received: it is not kept for the first service that receives it.
        """
        names = [check_name("topic", topic) for topic in topics]
        attempts = Attempts(self.connection_state)
        while True:
            async with attempts:
                await self._known.ensure_bound()
                async with self._connection.channel(confirms=False) as channel:
                    closing = Closing(channel)
                    queue = await limited(self._declare_listener(channel, names, hear, closing), ANSWER_TIMEOUT)
                    attempts.succeeded()
                    begun()
                    while True:
                        await closing.wait(WATCH)
                        await limited(channel.declare_queue(queue.name, passive=True), ANSWER_TIMEOUT)
                        await self._known.ensure_bound(again=True)

    async def _declare_listener(
        self, channel: AbstractChannel, topics: Collection[str], hear: Hear, closing: Closing
    ) -> AbstractQueue:
        bounded: Any = {"x-max-length": MOST_HELD, "x-overflow": "drop-head"}
        queue = await channel.declare_queue(exclusive=True, auto_delete=True, arguments=bounded)

        async def bind() -> None:
            for routing in (routing for topic in topics for routing in (topic, *routing_keys(topic))):
                await queue.bind(self.name, routing)

        async def arrived(message: AbstractIncomingMessage) -> None:
            if message.exchange == self._connection.listeners:
                try:
                    await limited(bind(), ANSWER_TIMEOUT)
                except Exception as error:  # noqa: BLE001  the listener begins again, or has ended meanwhile
                    closing.note(channel, error)
            else:
                hear(Delivery(topic_of(message.routing_key or ""), message.body))

        await channel.declare_exchange(self._connection.listeners, ExchangeType.FANOUT, durable=True)
        await queue.bind(self._connection.listeners)  # first: nobody deletes ours after that without a word
        await bind()
        await queue.consume(arrived, no_ack=True)
        return queue
