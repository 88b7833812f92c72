"""The sending side: how events come to the engine, or to the outbox first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from asignals.relay._batch import Coalescer
from asignals.relay._connection_state import ConnectionState
from asignals.relay._envelope import Envelope
from asignals.relay._transport import DeadLetters, PublishRefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from asignals.relay._envelope import DeadLetter
    from asignals.relay._identity import Identity
    from asignals.relay._parts import Parts


class Publisher:
    """Publishes for one relay, and counts what the engine has acknowledged.

    Sends that wait for the engine at the same time share its round trips.
    """

    def __init__(self, parts: Parts, identity: Identity, timeout: float) -> None:
        self.published = 0
        self._parts = parts
        self._identity = identity
        self._timeout = timeout
        self._publish_soon = Coalescer(self._publish_all)

    def hand_on(self, envelope: Envelope, session: Any) -> Awaitable[None]:
        """Take an event from an exporting receiver, to the outbox or to the engine."""
        outbox = self._parts.outbox
        return self._publish_now(envelope) if outbox is None else outbox.put(envelope, session)

    async def _publish_now(self, envelope: Envelope) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                refusal = await self._publish_soon(envelope)
        except TimeoutError as error:
            if str(error):
                raise
            msg = (
                f"{self._engine_name} did not acknowledge an event of {envelope.topic!r} within "
                f"{self._timeout:g} s; it may have been stored all the same"
            )
            raise TimeoutError(msg) from error
        if refusal is not None:
            raise PublishRefusedError({envelope.id: refusal})

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        """Have the engine acknowledge events; raises `PublishRefusedError` for those that it will never take."""
        try:
            await self._parts.transport.publish_many(envelopes)
        except PublishRefusedError as error:
            self.published += len(envelopes) - len(error.refused)
            raise
        self.published += len(envelopes)

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Keep a letter with the engine; one that keeps none gets an event."""
        if isinstance(transport := self._parts.transport, DeadLetters):
            await transport.put_dead_letter(queue, letter)
        else:
            await transport.publish_many([Envelope(queue, letter.encode(), origin=self._identity.origin)])

    async def aclose(self) -> None:
        """End what is under way; sends that wait are cancelled."""
        await self._publish_soon.aclose()

    async def _publish_all(self, envelopes: list[Envelope]) -> list[str | None]:
        """Publish what several sends have put together; gives for each why it was refused."""
        refused: dict[str, str] = {}
        try:
            await self.publish(envelopes)
        except PublishRefusedError as error:
            refused = error.refused
        return [refused.get(envelope.id) for envelope in envelopes]

    @property
    def _engine_name(self) -> str:
        state = getattr(self._parts.transport, "connection_state", None)
        return state.name if isinstance(state, ConnectionState) else type(self._parts.transport).__name__
