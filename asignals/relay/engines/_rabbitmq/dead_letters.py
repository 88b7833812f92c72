"""Dead letters in RabbitMQ: a durable queue for each queue of them."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing
from operator import attrgetter
from typing import TYPE_CHECKING

from aio_pika import Message

from asignals.relay._cancel import limited
from asignals.relay._envelope import DeadLetter, check_name, new_id
from asignals.relay.engines._rabbitmq.channels import ANSWER_TIMEOUT
from asignals.relay.engines._rabbitmq.connection import MessageTooLargeError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from aio_pika.abc import AbstractIncomingMessage

    from asignals.relay.engines._rabbitmq.queues import Queues


class DeadLetterQueues:
    """Keeps dead letters. Those that are being read are unacknowledged, and nobody else sees them."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._being_read: dict[tuple[str, str], AbstractIncomingMessage] = {}  # by queue and position

    def _queue(self, queue: str) -> str:
        return f"{self._queues.connection.name}.dead.{check_name('queue', queue)}"

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Put a letter into the queue, confirmed; one that is larger than RabbitMQ takes is cut."""
        data = letter.encode()
        try:
            await self._queues.put(self._queue(queue), Message(data, message_id=new_id()))
        except MessageTooLargeError as error:  # the event was not, but what the letter says of it comes on top
            await self._queues.put(self._queue(queue), Message(data[: error.limit], message_id=new_id()))

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue, but for those that are being read."""
        return await self._queues.count(self._queue(queue)) or 0

    async def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters in batches, the oldest of each first: quorum queues change the order of what is put back.

        They are taken, and put back when the generator is closed.
        """
        dead = self._queue(queue)
        left = await self._queues.count(dead) or 0
        seen: list[tuple[str, str]] = []
        async with AsyncExitStack() as channels:
            channels.push_async_callback(self._put_back, dead, seen)
            while left > 0:
                # Each channel holds one batch unacknowledged, so that the queue does not give it again.
                channel = await channels.enter_async_context(self._queues.connection.channel(confirms=False))
                messages = await self._queues.take_some(channel, dead, min(batch, left))
                if not messages:
                    return
                left -= len(messages)
                yield sorted((self._read(dead, message, seen) for message in messages), key=attrgetter("time"))

    def _read(self, dead: str, message: AbstractIncomingMessage, seen: list[tuple[str, str]]) -> DeadLetter:
        place = dead, message.message_id or new_id()
        seen.append(place)
        self._being_read[place] = message
        letter = DeadLetter.read(message.body, place[1])
        message.body = b""  # type: ignore[misc]  # it is the letter's now
        return letter

    async def _put_back(self, dead: str, seen: list[tuple[str, str]]) -> None:
        """Wait until what was read and not removed is in the queue again: a closed channel takes its time."""
        kept = [place for place in seen if self._being_read.pop(place, None) is not None]
        if kept:
            await self._queues.until_ready(dead, len(kept))

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Remove letters; without a scan that is open, the queue is looked through for them."""
        dead = self._queue(queue)
        missing = await self._delete(dead, {letter.position for letter in letters})
        if missing:
            async with aclosing(self.scan_dead_letters(queue)) as batches:
                async for _ in batches:
                    missing = await self._delete(dead, missing)
                    if not missing:
                        return

    async def _delete(self, dead: str, positions: set[str]) -> set[str]:
        """Remove the letters that are being read; gives the others."""
        for position in list(positions):
            message = self._being_read.pop((dead, position), None)
            if message is not None:
                await limited(message.ack(), ANSWER_TIMEOUT)
                positions = positions - {position}
        return positions
