"""Dead letters in JetStream: a stream with a subject for each queue of them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

from asignals.relay._envelope import DeadLetter, check_name
from asignals.relay.engines._jetstream.connection import CLOSE_TIMEOUT, CONNECT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from asignals.relay.engines._jetstream.streams import Streams

_UNDER_WAY: Final = 64  # requests to delete


class DeadLetterStream:
    """Keeps dead letters, the same one only once within the server's window."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._connection = streams.connection

    def _subject(self, queue: str) -> str:
        return f"{self._streams.dead}.{check_name('queue', queue)}"

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Store a letter."""
        client = await self._connection.open()
        data, headers = letter.encode()[: client.max_payload], {"Nats-Msg-Id": f"{queue} {letter.id}"}
        await self._streams.publish(client, self._subject(queue), data, headers)

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue."""
        client, subject = await self._connection.open(), self._subject(queue)
        return (await self._streams.subjects(client, self._streams.dead, subject)).get(subject, 0)

    async def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters in batches, the oldest first."""
        client = await self._connection.open()
        jetstream, dead, ask = client.jetstream(timeout=CONNECT), self._streams.dead, self._connection.ask
        config = ConsumerConfig(
            filter_subject=self._subject(queue),
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            inactive_threshold=CONNECT * 12,
        )
        info = await ask(client, jetstream.add_consumer(dead, config))
        left = info.num_pending or 0
        reading = await jetstream.pull_subscribe_bind(consumer=info.name, stream=dead)
        try:
            while left > 0:
                messages = await ask(client, reading.fetch(min(batch, left), timeout=CONNECT), CONNECT + 1)
                left -= len(messages)
                yield [DeadLetter.read(one.data, str(one.metadata.sequence.stream)) for one in messages]
        finally:
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await reading.unsubscribe()
                    await jetstream.delete_consumer(dead, info.name)

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:  # noqa: ARG002  positions are of the whole stream
        """Remove letters."""
        client = await self._connection.open()
        jetstream = client.jetstream(timeout=CONNECT)

        async def delete(letter: DeadLetter) -> None:
            with suppress(NotFoundError):
                deleting = jetstream.delete_msg(self._streams.dead, int(letter.position))
                await self._connection.ask(client, deleting)

        for start in range(0, len(letters), _UNDER_WAY):
            await asyncio.gather(*(delete(letter) for letter in letters[start : start + _UNDER_WAY]))
