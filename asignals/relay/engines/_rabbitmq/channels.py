"""RabbitMQ's channels: closing them, noticing that they were closed, and acknowledging what came on them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from asignals.masking import said
from asignals.relay._to_the_end import to_the_end

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

ANSWER_TIMEOUT: Final = 5.0  # seconds that an answer may take
CLOSE_TIMEOUT: Final = 2.0  # seconds that closing may take
# Seconds without a message after which a consumer begins again on another channel. A queue that is deleted and made
# again within 10 ms keeps its consumers, and gives them nothing (seen in 3.10); nothing that AMQP tells shows it.
IDLE: Final = 60.0
ATTEMPT: Final = "x-asignals-attempt"
REMEMBERED: Final = 10_000  # events that are done, whose acknowledgement was lost with the channel


async def close(what: AbstractChannel | AbstractConnection) -> None:
    """Close a channel or connection: what was not acknowledged goes back to the queue with it."""
    await to_the_end(_close_now(what))


async def _close_now(what: AbstractChannel | AbstractConnection) -> None:
    with suppress(Exception):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await what.close()


class Closing:
    """Notices that a channel is closed, and why: aio-pika's own way to wait for it closes it when cancelled."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._closed = asyncio.Event()
        self._reason: BaseException | None = None
        channel.close_callbacks.add(self.note)

    def note(self, _channel: object, reason: BaseException | None) -> None:
        """Take a channel as closed, so that `wait` raises."""
        self._reason = reason
        self._closed.set()

    async def wait(self, seconds: float) -> None:
        """Wait so long; raise `ConnectionError` as soon as the channel is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        if self._closed.is_set():
            raise ConnectionError(
                f"RabbitMQ closed the consumer channel ({said(self._reason or ConnectionError())})"
            ) from self._reason


class ConsumerEndedError(ConnectionError):
    """RabbitMQ has ended a consumer, as it does when a queue is deleted."""


async def check_consuming(channel: AbstractChannel, queue: str, tag: str) -> None:
    """Raise `ConsumerEndedError` for a consumer that has ended: a queue that is there may have been made again."""
    underlying: Any = await channel.get_underlay_channel()
    if tag not in underlying.consumers:
        raise ConsumerEndedError(f"RabbitMQ ended the consumer of {queue!r}: the queue was deleted")


class Acknowledgements:
    """Acknowledges messages, and remembers the events whose acknowledgement was lost with their channel."""

    def __init__(self) -> None:
        self.lost: dict[str, None] = {}

    async def acknowledge(self, id_: str, message: AbstractIncomingMessage) -> None:
        """Acknowledge a message; when its channel is lost, RabbitMQ delivers it again."""
        try:
            await message.ack()
        except Exception:  # noqa: BLE001  whatever it is, the event is done
            self.lost[id_] = None
            if len(self.lost) > REMEMBERED:  # RabbitMQ gave the oldest to another instance
                del self.lost[next(iter(self.lost))]

    async def acknowledge_again(self, id_: str, message: AbstractIncomingMessage) -> bool:
        """Acknowledge a message whose event is done already; tells whether it is."""
        if id_ not in self.lost:
            return False
        del self.lost[id_]
        await self.acknowledge(id_, message)
        return True


def number(message: AbstractIncomingMessage, header: str, otherwise: int) -> int:
    """Read a header that is a whole number."""
    value: Any = (message.headers or {}).get(header, otherwise)
    return value if isinstance(value, int) else otherwise


def attempt_of(message: AbstractIncomingMessage) -> int:
    """Count the deliveries of an event, those of its retries included."""
    return number(message, ATTEMPT, 1) + number(message, "x-delivery-count", 0)
