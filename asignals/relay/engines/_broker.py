"""What engines have in common that keep services and dead letters in separate classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from asignals.relay._monitoring.figures import backlog_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from asignals.relay._envelope import DeadLetter
    from asignals.relay._monitoring.figures import TopicFigures
    from asignals.relay._transport import DeadLetters


class Services(Protocol):
    """The services that an engine keeps events for."""

    async def add(self, service: str, topics: Collection[str]) -> None:
        """Keep events of these topics for a service from now on."""
        ...

    async def forget(self, service: str, topics: Collection[str] | None) -> None:
        """Remove what is kept for a service, of some topics or of all."""
        ...

    async def figures(self, service: str | None, topics: Collection[str] | None) -> list[TopicFigures]:
        """Give what waits, by service and topic."""
        ...


class BrokerEngine:
    """An engine whose services and dead letters are kept by separate classes."""

    def __init__(self, services: Services, dead_letters: DeadLetters) -> None:
        self._services = services
        self._dead_letters = dead_letters

    async def add_service(self, service: str, topics: Collection[str]) -> None:
        """Keep events of these topics for a service from now on; harmless when it is known."""
        await self._services.add(service, topics)

    async def forget_service(self, service: str, topics: Collection[str] | None = None) -> None:
        """Remove what is kept for a service, of some topics or of all."""
        await self._services.forget(service, topics)

    async def backlog(self, service: str) -> int:
        """Count the events that a service has not acknowledged, as `figures` gives them."""
        return backlog_of(await self.figures(service))

    async def figures(self, service: str | None = None, topics: Collection[str] | None = None) -> list[TopicFigures]:
        """Give what waits, by service and topic; what the broker does not tell is `None`."""
        return await self._services.figures(service, topics)

    async def put_dead_letter(self, queue: str, letter: DeadLetter) -> None:
        """Keep a letter; returns when it is safe."""
        await self._dead_letters.put_dead_letter(queue, letter)

    async def count_dead_letters(self, queue: str) -> int:
        """Count the letters of a queue."""
        return await self._dead_letters.count_dead_letters(queue)

    def scan_dead_letters(self, queue: str, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters of a queue in batches, the oldest first; close the generator."""
        return self._dead_letters.scan_dead_letters(queue, batch=batch)

    async def delete_dead_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Remove letters that `scan_dead_letters` gave; best while that is still open."""
        await self._dead_letters.delete_dead_letters(queue, letters)
