"""Asking a pull consumer of JetStream for events."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

_PULL: Final = 20.0  # seconds for which the server keeps a request for events
_BEAT: Final = 2.0  # seconds without an event after which the server is to say that it keeps a request for events
SILENCE: Final = 3 * _BEAT  # seconds without either after which the request is known as lost


async def unsubscribe(subscription: Subscription) -> None:
    """End a subscription, whether or not the connection is there."""
    with suppress(Exception):  # the connection may be lost
        await subscription.unsubscribe()


def request(count: int) -> bytes:
    """Write a request for events."""
    return b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (count, int(_PULL * 1e9), int(_BEAT * 1e9))
