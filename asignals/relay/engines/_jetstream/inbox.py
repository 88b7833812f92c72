"""An inbox in a key-value bucket of JetStream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from nats.js.api import KeyValueConfig
from nats.js.errors import BucketNotFoundError, KeyNotFoundError

from asignals.relay._inbox import Memo
from asignals.relay.engines._jetstream.connection import CONNECT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nats.aio.client import Client
    from nats.js.kv import KeyValue

    from asignals.relay.engines._jetstream.streams import Streams

T = TypeVar("T")

_REMEMBERED: Final = 7 * 86_400


class JetStreamInbox:
    """Remembers in a key-value bucket for a week what was done of events that failed."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def _with_bucket(self, work: Callable[[KeyValue], Awaitable[T]]) -> T:
        client = await self._streams.connection.open()
        return await self._streams.connection.ask(client, self._work_on(client, work))

    async def _work_on(self, client: Client, work: Callable[[KeyValue], Awaitable[T]]) -> T:
        jetstream, name = client.jetstream(timeout=CONNECT), f"{self._streams.name}-inbox"
        try:
            bucket = await jetstream.key_value(name)
        except BucketNotFoundError:
            config = KeyValueConfig(bucket=name, ttl=_REMEMBERED, history=1, replicas=self._streams.replicas)
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
