"""Publishing to the stream: many events at once, each with its id, in order."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from asignals.relay._keys import lane_of, partition_of
from asignals.relay._transport import PublishRefusedError
from asignals.relay.engines._jetstream.answers import Publishing, patiently
from asignals.relay.engines._jetstream.names import partition_subject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from asignals.relay._envelope import Envelope
    from asignals.relay.engines._jetstream.connection import NatsConnection

LANE: Final = "Asignals-Lane"  # the header with the number of an event's key
_AT_ONCE: Final = 1_000  # events under way to the server


class Publisher:
    """Publishes events, and waits for the acknowledgement of each by a subject for replies."""

    def __init__(self, connection: NatsConnection, stream: str, ack_timeout: float) -> None:
        self._connection = connection
        self._stream = stream
        self._ack_timeout = ack_timeout
        self._numbers = itertools.count()
        self._waiting: dict[str, tuple[str, Publishing]] = {}  # by the last token of the subject for the reply
        self._replies = ""
        connection.on_connect.append(self._subscribe)
        connection.on_loss.append(self._fail)

    async def _subscribe(self, client: Client) -> None:
        self._replies = client.new_inbox()
        await client.subscribe(f"{self._replies}.*", cb=self._on_reply)

    async def _on_reply(self, message: Msg) -> None:
        found = self._waiting.pop(message.subject.rpartition(".")[2], None)
        if found is not None:
            found[1].acknowledged(found[0], message)

    def _fail(self, client: Client) -> None:
        """End what waits for acknowledgements, as the connection is lost."""
        self._drop_unsent(client)
        for _, publishing in self._waiting.values():
            if not publishing.ended.done():
                msg = f"{self._connection.state.name} was lost before it had acknowledged"
                publishing.ended.set_exception(ConnectionError(msg))

    def _drop_unsent(self, client: Client) -> None:
        """Have events not be sent after a reconnection that were not yet: those before them may be lost, and all of a
        batch is published again, in order.
        """
        ours = f"HPUB {self._stream}.".encode()
        kept = [command for command in client._pending if not command.startswith(ours)]
        client._pending_data_size -= sum(map(len, client._pending)) - sum(map(len, kept))
        client._pending[:] = kept

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when the stream has stored all; raises `PublishRefusedError` for those that it never takes."""
        refused: dict[str, str] = {}
        for start in range(0, len(envelopes), _AT_ONCE):
            some = envelopes[start : start + _AT_ONCE]
            refused |= await patiently(lambda some=some: self._publish_some(some), self._ack_timeout)  # type: ignore[misc]
        if refused:
            raise PublishRefusedError(refused)

    async def _publish_some(self, envelopes: Sequence[Envelope]) -> dict[str, str]:
        client = await self._connection.open()
        publishing = Publishing([envelope.id for envelope in envelopes])
        numbers: list[str] = []
        try:
            for envelope in envelopes:
                if publishing.ended.done():
                    break  # the connection was lost: nothing may come before those that were
                await self._publish(client, envelope, publishing, numbers)
            if publishing.open:
                await self._connection.ask(client, publishing.ended, self._ack_timeout)
        finally:
            for number in numbers:
                self._waiting.pop(number, None)
            if not publishing.ended.cancel():
                publishing.ended.exception()  # seen: when publishing itself has failed, nobody waits for it
        return publishing.refused

    async def _publish(self, client: Client, envelope: Envelope, publishing: Publishing, numbers: list[str]) -> None:
        data = envelope.encode()
        if len(data) > client.max_payload:
            publishing.refused[envelope.id] = f"{len(data)} bytes are more than NATS takes"
            publishing.open.pop(envelope.id, None)
            return
        number = str(next(self._numbers))
        numbers.append(number)
        self._waiting[number] = envelope.id, publishing
        subject, headers = f"{self._stream}.{envelope.topic}", {"Nats-Msg-Id": envelope.id}
        if envelope.key is not None:
            subject = partition_subject(subject, partition_of(envelope.key))
            headers[LANE] = str(lane_of(envelope.key))
        await client.publish(subject, data, reply=f"{self._replies}.{number}", headers=headers)
