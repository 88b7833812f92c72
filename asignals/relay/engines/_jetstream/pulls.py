"""Asking a pull consumer of JetStream for events, and knowing how many it still owes."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asignals.relay._cancel import heeding
from asignals.relay.engines._jetstream.connection import CONNECT

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from asignals.relay.engines._jetstream.streams import Streams

_PULL: Final = 20.0  # seconds for which the server keeps a request for events
_BEAT: Final = 2.0  # seconds without an event after which the server is to say that it keeps a request for events
SILENCE: Final = 3 * _BEAT  # seconds without either after which the request is known as lost
_AGAIN: Final = 2.0  # seconds until the server is asked again for events that it does not deliver


class NewLeaderError(ConnectionError):
    """The server's consumer has a new leader, which knows none of the requests."""


class DeletedError(ConnectionError):
    """Somebody deletes the server's consumer, or its whole stream."""


@dataclass(slots=True, eq=False)
class Requests:
    """The requests for events of one consumer of the server's, which answers to `inbox`."""

    streams: Streams
    durable: str
    inbox: str
    asked: int = 0  # events that the server still owes
    silence: float = 0.0  # seconds in which the server has said nothing; a loop that is blocked hears nothing
    idle: float = 0.0  # seconds in which no event has come, though some were asked for
    is_suspect: bool = False  # the server had events when it was asked, and none has come since

    async def ask(self, client: Client, count: int) -> None:
        """Ask for so many events."""
        data = b'{"batch":%d,"expires":%d,"idle_heartbeat":%d}' % (count, int(_PULL * 1e9), int(_BEAT * 1e9))
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.streams.name}.{self.durable}"
        await heeding(client.publish(subject, data, reply=self.inbox))
        self.asked += count

    def came(self) -> None:
        """Take note of an event."""
        self.asked -= 1
        self.idle, self.is_suspect = 0.0, False
        self.forget()

    def forget(self) -> None:
        """Have health say nothing of this consumer."""
        self.streams.connection.problems.pop(self.durable, None)

    async def waited(self, client: Client, seconds: float) -> None:
        """Raise `ConnectionError` for requests that were lost with the leader of their consumer, or are not answered:
        nobody says so.
        """
        self.silence = self.silence + seconds if self.asked else 0.0
        self.idle = self.idle + seconds if self.asked else 0.0
        if self.silence > SILENCE:
            raise ConnectionError(f"JetStream has said nothing for {SILENCE:g} s of the consumer {self.durable!r}")
        if self.idle > self.streams.ack_wait:
            await self._look(client)

    async def _look(self, client: Client) -> None:
        """Ask the server whether it has events; when it has some twice, and none has come meanwhile, that is wrong."""
        asking = client.jetstream(timeout=CONNECT).consumer_info(self.streams.name, self.durable)
        pending = (await self.streams.connection.ask(client, asking)).num_pending
        if not pending:
            self.idle, self.is_suspect = 0.0, False
            self.forget()
        elif self.idle and self.is_suspect:
            problem = f"the server has {pending} events for this consumer and does not deliver them; see its log"
            self.streams.connection.problems[self.durable] = problem
            raise ConnectionError(f"JetStream: {problem} ({self.durable!r})")
        else:
            self.idle, self.is_suspect = self.streams.ack_wait - _AGAIN, True

    def ended(self, message: Msg) -> ConnectionError | None:
        """Take note of how a request ended; gives what is wrong, if anything is."""
        headers = message.headers or {}
        status, description = headers.get("Status"), headers.get("Description", "")
        if status in ("404", "408"):
            self.asked = max(0, self.asked - int(headers.get("Nats-Pending-Messages", self.asked)))
        elif status == "409" and description == "Leadership Change":
            self.asked = 0
            return NewLeaderError("JetStream: the consumer has a new leader")
        elif status == "409" and description == "Consumer Deleted":
            return DeletedError(f"JetStream: somebody deletes the consumer {self.durable!r}, or its stream")
        elif status != "100":
            return ConnectionError(f"JetStream: {status} {description}")
        return None


def is_end(message: Msg) -> bool:
    """Whether a message is no event, but says how a request ended, or that it is kept."""
    return bool(message.headers and message.headers.get("Status")) and not message.reply.startswith("$JS.ACK.")


async def until_set(event: asyncio.Event, seconds: float) -> float:
    """Wait until an event is set, for so many seconds at most, and clear it; gives the seconds."""
    began = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    event.clear()
    return min(seconds, time.monotonic() - began)


async def unsubscribe(subscription: Subscription) -> None:
    """End a subscription, whether or not the connection is there."""
    with suppress(Exception):  # the connection may be lost
        await subscription.unsubscribe()
