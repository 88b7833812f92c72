"""The leases of the partitions of topics: the last message of a subject, which expires unless it is renewed.

A lease is taken and renewed by the sequence number of that message, so that no two instances have it. Instances write
their own subject there, too, by which they count each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nats.js.errors import APIError, NotFoundError

from asignals.relay._keys import PARTITIONS
from asignals.relay.engines._jetstream.names import durable_of

if TYPE_CHECKING:
    from nats.aio.client import Client

    from asignals.relay.engines._jetstream.streams import Streams

ANSWER: Final = 5.0  # seconds
_WRONG_SEQUENCE: Final = 10071
_EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"


@dataclass(slots=True)
class Leased:
    """What is known of the leases of a topic."""

    instances: int
    free: list[int]  # partitions that nobody has


class Leases:
    """The leases of one instance of a service, whose name is `owner`."""

    def __init__(self, streams: Streams, service: str, owner: str) -> None:
        self._streams = streams
        self._connection = streams.connection
        self._service = service
        self._owner = owner

    def _subject(self, topic: str, what: int | str) -> str:
        return f"{self._streams.owners}.{durable_of(self._service, topic)}.{what}"

    async def look(self, client: Client, topic: str) -> Leased:
        """Give which partitions are free, and how many instances there are."""
        every = self._subject(topic, ">")
        subjects = await self._streams.subjects(client, self._streams.owners, every)
        members = self._subject(topic, "member.")
        instances = max(1, sum(subject.startswith(members) for subject in subjects))
        free = [number for number in range(PARTITIONS) if self._subject(topic, number) not in subjects]
        return Leased(instances, free)

    async def join(self, client: Client, topic: str) -> None:
        """Be counted as an instance."""
        await self._write(client, self._subject(topic, f"member.{self._owner}"), None)

    async def take(self, client: Client, topic: str, number: int) -> int | None:
        """Take a partition; gives the lease, and `None` when another instance was quicker."""
        return await self._write_if(client, self._subject(topic, number), 0)

    async def renew(self, client: Client, topic: str, number: int, lease: int) -> int | None:
        """Renew a lease; gives the new one, and `None` when that is not known: `find` tells then."""
        return await self._write_if(client, self._subject(topic, number), lease)

    async def _write_if(self, client: Client, subject: str, expected: int) -> int | None:
        try:
            return await self._write(client, subject, expected)
        except APIError as error:
            if error.err_code != _WRONG_SEQUENCE:
                raise
            return None

    async def _write(self, client: Client, subject: str, expected: int | None) -> int:
        """Write, if the last message of the subject is the one expected; gives the new one's number."""
        headers = {} if expected is None else {_EXPECTED: str(expected)}
        publishing = client.jetstream(timeout=ANSWER).publish(subject, self._owner.encode(), headers=headers)
        return (await self._connection.ask(client, publishing)).seq

    async def find(self, client: Client, topic: str, number: int) -> int | None:
        """Give a lease of ours, which may be a renewal whose answer was lost."""
        try:
            getting = client.jetstream(timeout=ANSWER).get_last_msg(self._streams.owners, self._subject(topic, number))
            found = await self._connection.ask(client, getting)
        except NotFoundError:
            return None
        return found.seq if found.data == self._owner.encode() else None

    async def release(self, client: Client, topic: str, number: int) -> None:
        """Give up a partition, if it is ours."""
        if await self.find(client, topic, number) is not None:
            await self._purge(client, self._subject(topic, number))

    async def leave(self, client: Client, topic: str) -> None:
        """Not be counted as an instance any more."""
        await self._purge(client, self._subject(topic, f"member.{self._owner}"))

    async def _purge(self, client: Client, subject: str) -> None:
        purging = client.jetstream(timeout=ANSWER).purge_stream(self._streams.owners, subject=subject)
        await self._connection.ask(client, purging)
