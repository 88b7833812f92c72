"""One connection to RabbitMQ, given up for a new one when it is lost or something takes too long on it.

aio-pika's robust connection restores its channels without a limit of time, and a node that has just started takes
connections before its quorum queues answer.
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from aio_pika import ExchangeType, Message, connect
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from asignals.masking import redacted
from asignals.relay._cancel import end, limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._loops import OwnLoop
from asignals.relay.engines._rabbitmq.channels import ANSWER_TIMEOUT, close

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence

    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange

# Seconds; after twice that without a word the broker gives what a consumer holds to others, be it dead or cut off.
_HEARTBEAT: Final = 6
_KEPT: Final = 30 * 86_400  # seconds for which events are kept that no service receives
QUORUM: Final[dict[str, Any]] = {"x-queue-type": "quorum"}
# The relay counts failures itself; what RabbitMQ counts are deliveries, also of events that no receiver was called for.
UNLIMITED: Final[dict[str, Any]] = {**QUORUM, "x-delivery-limit": 1_000_000_000}


_TOO_LARGE: Final = re.compile(r"message size \d+ .*max size (\d+)")


class MessageTooLargeError(ValueError):
    """RabbitMQ has closed a channel, as a message is larger than its `max_message_size`."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"it takes more than the {limit} bytes of RabbitMQ's max_message_size")
        self.limit = limit


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """A connection, and on it what publishing needs."""

    connection: AbstractConnection
    channel: AbstractChannel
    exchange: AbstractExchange


class BrokerConnection:
    """Opens the connection, and opens it again when it is lost; declares the exchange `name`, and marks it.

    AMQP does not list bindings. So a mark stands beside the exchange, which RabbitMQ deletes together with it: where it
    is missing, queues may be unbound.
    """

    def __init__(self, urls: Sequence[str], name: str, options: dict[str, Any]) -> None:
        self.name = name
        self.unrouted = f"{name}.unrouted"  # the queue of what no service receives
        self.listeners = f"{name}.listeners"  # an exchange that tells them to bind their queues again
        self._mark = f"{name}.bound"  # an exchange that leads to ours only, and goes with it
        self.state = ConnectionState(f"RabbitMQ ({', '.join(urls)}, {name})")
        self.urls = [_with_heartbeat(url) for url in random.sample(urls, len(urls))]  # so that load is spread
        self.current: OpenConnection | None = None
        self.parts: set[ConnectionState] = set()  # of consumers: their partitions, and their bindings
        self._options = options
        self._lock = asyncio.Lock()
        self._loop = OwnLoop()
        self._reopening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong though the connection is there: queues that cannot be consumed from, or bound."""
        if not self.state.is_up:
            return {}  # then that is what is wrong
        return {state.name: state.problem for state in self.parts if state.problem is not None}

    async def aclose(self) -> None:
        """Close the connection; it is opened again when it is used again."""
        self._loop.enter(self.state.name, self._forget)
        while self._tasks:
            await end(list(self._tasks))
        current, self.current = self.current, None
        if current is not None:
            await close(current.connection)
        self._lock = asyncio.Lock()  # the next event loop may be another

    def _forget(self) -> None:
        self.current, self._reopening, self._lock = None, None, asyncio.Lock()
        self._tasks.clear()

    async def open(self) -> OpenConnection:
        """Give the connection, a new one where it was lost."""
        self._loop.enter(self.state.name, self._forget)
        async with self._lock:
            if self.current is None or self.current.channel.is_closed:
                self.current = await limited(self._connect(self.current), ANSWER_TIMEOUT, self.state.name)
                self.state.restored()
            return self.current

    async def _connect(self, before: OpenConnection | None) -> OpenConnection:
        if before is not None and before.connection.connected.is_set():
            connection = before.connection  # only the channel was closed
        else:
            connection = await self._dial()
            connection.close_callbacks.add(self._lose)
        try:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            return OpenConnection(connection, channel, await channel.get_exchange(self.name, ensure=False))
        except BaseException:
            await close(connection)
            raise

    async def _dial(self) -> AbstractConnection:
        """Connect to the first node that answers, beginning with the one that did last."""
        for _ in self.urls[1:]:
            with suppress(Exception):
                return await self._dial_first()
        return await self._dial_first()

    async def _dial_first(self) -> AbstractConnection:
        connection: AbstractConnection
        try:
            connection = await connect(self.urls[0], **self._options)
        except BaseException:  # the limit of time included
            self._try_next_first()
            raise
        return connection

    def _try_next_first(self) -> None:
        self.urls.append(self.urls.pop(0))

    async def is_bound(self) -> bool:
        """Tell whether the exchange is still the one to which the queues of all services were bound."""
        async with self.channel(confirms=False) as channel:
            try:
                await limited(channel.declare_exchange(self._mark, passive=True), ANSWER_TIMEOUT)
            except ChannelNotFoundEntity:
                return False
            return True

    async def mark_bound(self) -> None:
        """Note with RabbitMQ, for as long as the exchange is there, that the queues of all services are bound to it.

        Listeners, who alone know their queues, are told to bind them.
        """
        async with self.channel() as channel:
            leading: Any = {"type": ExchangeType.FANOUT, "durable": True}
            listeners = await limited(channel.declare_exchange(self.listeners, **leading), ANSWER_TIMEOUT)
            await listeners.publish(Message(b""), "", mandatory=False, timeout=ANSWER_TIMEOUT)
            mark = await limited(channel.declare_exchange(self._mark, **leading, auto_delete=True), ANSWER_TIMEOUT)
            exchange = await channel.get_exchange(self.name, ensure=False)
            await limited(exchange.bind(mark), ANSWER_TIMEOUT)

    async def declare(self) -> None:
        """Create what is missing of the exchange and of what keeps the events that no service receives."""
        async with self.channel(confirms=False) as channel:
            await limited(self._declare(channel), ANSWER_TIMEOUT)

    async def _declare(self, channel: AbstractChannel) -> None:
        await channel.declare_exchange(self.unrouted, ExchangeType.FANOUT, durable=True)
        kept = {**UNLIMITED, "x-message-ttl": _KEPT * 1000}
        queue = await channel.declare_queue(self.unrouted, durable=True, arguments=kept)
        await queue.bind(self.unrouted)
        alternate: Any = {"alternate-exchange": self.unrouted}
        await channel.declare_exchange(self.name, ExchangeType.TOPIC, durable=True, arguments=alternate)

    def _lose(self, connection: AbstractConnection | None, error: BaseException | None) -> None:
        """Give up a connection that was closed or does not answer, and open a new one."""
        if self.current is None or connection is not self.current.connection:
            return
        self.current = None
        if isinstance(error, asyncio.CancelledError):
            return  # the event loop ends
        self.state.lost(error or ConnectionError("closed"))
        self._try_next_first()
        self._start(close(connection))
        if self._reopening is None or self._reopening.done():
            self._reopening = self._start(self._reopen())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _reopen(self) -> None:
        attempts = Attempts(self.state)
        while not self.state.is_up:
            async with attempts:
                await self.open()

    @contextmanager
    def giving_up(self, opened: OpenConnection) -> Iterator[None]:
        """Give up the connection when the block raises `TimeoutError`.

        Raises `RuntimeError` when a queue or exchange is there with other settings, and `MessageTooLargeError`.
        """
        try:
            yield
        except TimeoutError as error:
            silent = TimeoutError(f"{self.state.name} gave no answer within {ANSWER_TIMEOUT:g} s")
            self._lose(opened.connection, silent)
            raise silent from error
        except ChannelPreconditionFailed as error:
            if (found := _TOO_LARGE.search(str(error))) is not None:
                too_large = MessageTooLargeError(int(found[1]))
                self._lose(opened.connection, too_large)  # the server ends it for what is still sent on the channel
                raise too_large from error
            raise RuntimeError(
                f"{self.state.name} has a queue or exchange of other settings:"
                f" delete it when it is empty, or use another name ({redacted(error)})"
            ) from error

    @asynccontextmanager
    async def channel(self, *, confirms: bool = True, gives_up: bool = True) -> AsyncIterator[AbstractChannel]:
        """Open a channel for one purpose: an error closes its channel.

        `gives_up` says whether the connection is given up where no answer comes in time.
        """
        opened = await self.open()
        with self.giving_up(opened) if gives_up else nullcontext():
            channel = await limited(opened.connection.channel(publisher_confirms=confirms), ANSWER_TIMEOUT)
            try:
                yield channel
            finally:
                await close(channel)


def _with_heartbeat(url: str) -> str:
    parts = urlsplit(url)
    if "heartbeat=" in parts.query:
        return url
    return urlunsplit(parts._replace(query=f"{parts.query}&heartbeat={_HEARTBEAT}".lstrip("&")))
