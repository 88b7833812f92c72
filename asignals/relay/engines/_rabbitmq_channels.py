"""RabbitMQ's channels: closing them, noticing that they were closed, and what the headers of a message say."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from asignals.masking import said
from asignals.relay._to_the_end import to_the_end

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

ATTEMPT: Final = "x-asignals-attempt"
_FAREWELL: Final = 2.0  # seconds that closing may take


async def close(what: AbstractChannel | AbstractConnection) -> None:
    """Close a channel or connection: what was not acknowledged goes back to the queue with it."""
    await to_the_end(_close_now(what))


async def _close_now(what: AbstractChannel | AbstractConnection) -> None:
    with suppress(Exception):
        async with asyncio.timeout(_FAREWELL):
            await what.close()


class Closing:
    """Notices that a channel is closed, and why: aio-pika's own way to wait for it closes it when cancelled."""

    def __init__(self, channel: AbstractChannel) -> None:
        self._closed = asyncio.Event()
        self._reason: BaseException | None = None
        channel.close_callbacks.add(self._note)

    def _note(self, _channel: object, reason: BaseException | None) -> None:
        self._reason = reason
        self._closed.set()

    async def wait(self, seconds: float) -> None:
        """Wait so long; raise `ConnectionError` as soon as the channel is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        if self._closed.is_set():
            raise ConnectionError(
                f"RabbitMQ closed the channel that events come by ({said(self._reason or ConnectionError())})"
            ) from self._reason


def number(message: AbstractIncomingMessage, header: str, otherwise: int) -> int:
    """Read a header that is a whole number."""
    value: Any = (message.headers or {}).get(header, otherwise)
    return value if isinstance(value, int) else otherwise
