"""What an operator does with a relay: look at what waits, send dead letters again, create and remove what it needs."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from asignals.relay._dead_letters import REFUSED, KeepsRefused, Letters, OnProgress, which
from asignals.relay._envelope import check_name
from asignals.relay._inbox import Purged
from asignals.relay._monitoring.status import TIMEOUT, Looker, Status, server_of
from asignals.relay._transport import Closing, DeadLetters, KnowsServices, Prepared

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence

    from asignals.relay._envelope import DeadLetter, Envelope
    from asignals.relay._parts import Parts
    from asignals.relay._subscription import Subscription
    from asignals.relay._transport import Transport
    from asignals.relay.outbox import Outbox


class Operations:
    """The part of a relay that works whether or not it runs; connections are opened when they are needed."""

    def __init__(
        self,
        service: str,
        parts: Parts,
        publish: Callable[[Sequence[Envelope]], Awaitable[None]],
        subscriptions: dict[str, Subscription],
        default_queue: str,
    ) -> None:
        self.service: str = service
        self._parts = parts
        self._subscriptions = subscriptions
        self._default_queue = default_queue
        self._letters = Letters(parts.transport, parts.outbox, publish)
        self._looker = Looker(service, parts, self._letters, lambda: self._subscriptions)

    @property
    def transport(self) -> Transport:
        """The engine."""
        return self._parts.transport

    @property
    def outbox(self) -> Outbox | None:
        """Where events wait until the engine has acknowledged them."""
        return self._parts.outbox

    @property
    def topics(self) -> list[str]:
        """The topics that are received, but for broadcasts."""
        return sorted(self._subscriptions)

    async def status(
        self,
        *,
        all_services: bool = False,
        by_error: bool = False,
        timeout: float = TIMEOUT,  # noqa: ASYNC109  of each answer
    ) -> Status:
        """Ask outbox, engine and inbox what waits, all at once.

        A part that does not answer is named in `problems`; nothing is raised.

        Args:
            all_services: Whether to give the figures of all services that the engine knows, and not of this one alone.
            by_error: Whether to group dead letters by their errors, which reads up to a thousand of each queue.
            timeout: Seconds that each answer may take.
        """
        return await self._looker.look(
            self.dead_letter_queues, None, all_services=all_services, by_error=by_error, timeout=timeout
        )

    @property
    def dead_letter_queues(self) -> list[str]:
        """The queues that this relay's dead letters go to; `outbox.refused` has what the engine refused."""
        queues = {self._default_queue, *(s.dead_letter for s in self._subscriptions.values())}
        return [*sorted(queues), *([REFUSED] if isinstance(self.outbox, KeepsRefused) else [])]

    async def dead_letters(  # noqa: PLR0913  which letters, by name
        self,
        queue: str | None = None,
        limit: int = 100,
        *,
        ids: Collection[str] | None = None,
        topic: str | None = None,
        since: float | None = None,
        until: float | None = None,
        error: str | None = None,
    ) -> list[DeadLetter]:
        """Show dead letters, the oldest first, at most `limit`; of all the relay's queues by default.

        Args:
            queue: One queue only.
            limit: How many at most.
            ids: Ids of events; those of replays go by the id of the first event, too.
            topic: Events of this topic only.
            since: Given up at this time or later, in seconds since the epoch.
            until: Given up at this time or earlier.
            error: A part of the error's text.

        Raises `TypeError` when the transport keeps none, and what the engine raises.
        """
        return await self._letters.find(self._chosen(queue), which(ids, topic, since, until, error), limit)

    async def replay(  # noqa: PLR0913  which letters, by name
        self,
        queue: str | None = None,
        limit: int | None = None,
        *,
        ids: Collection[str] | None = None,
        topic: str | None = None,
        since: float | None = None,
        until: float | None = None,
        error: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> int:
        """Send dead letters again, to the service that gave them up, and remove them; returns how many.

        At most `limit`, chosen as by `dead_letters`. Receivers that had succeeded are not called again. Letters that
        cannot be sent stay, and are logged. `on_progress` is called after each batch with how many letters were looked
        at, and how many there are. Raises `TypeError` when the transport keeps none, and what the engine
        raises; what was sent until then stays sent.
        """
        wanted = which(ids, topic, since, until, error)
        return await self._letters.replay(self._chosen(queue), wanted, limit, on_progress)

    async def purge(  # noqa: PLR0913  which letters, by name
        self,
        queue: str | None = None,
        limit: int | None = None,
        *,
        ids: Collection[str] | None = None,
        topic: str | None = None,
        since: float | None = None,
        until: float | None = None,
        error: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> int:
        """Remove dead letters for good; returns how many. Chosen, and raises, as `replay`."""
        wanted = which(ids, topic, since, until, error)
        return await self._letters.purge(self._chosen(queue), wanted, limit, on_progress)

    async def purge_inbox(self, until: float, *, on_progress: OnProgress | None = None) -> int:
        """Remove what the inbox has remembered until a time, in seconds since the epoch; returns how many rows.

        In batches, so that nobody waits long; `on_progress` is called after each with how many are gone, and 0. An
        event whose rows are gone is handled again, should it ever come again. Raises `TypeError` when the inbox has no
        rows that could be removed, and what the database raises.
        """
        inbox = self._parts.inbox
        if not isinstance(inbox, Purged):
            raise TypeError(f"{type(inbox).__name__} has no rows that could be removed: they expire by themselves")
        return await inbox.purge(until, on_progress)

    def _chosen(self, queue: str | None) -> list[str]:
        if queue is not None:
            return [queue]
        if isinstance(self.transport, DeadLetters):
            return self.dead_letter_queues
        raise TypeError(f"{type(self.transport).__name__} keeps no dead letters that could be shown")

    async def init(self, on_step: Callable[[str], object] | None = None) -> None:
        """Create the tables, streams and queues that the parts need; harmless when they are there.

        `on_step` is called with what is about to be done.
        """
        tell = on_step or str
        for part in self._parts:
            if isinstance(part, Prepared):
                tell(server_of(part))
                await part.init()
        if self._subscriptions and isinstance(self.transport, KnowsServices):
            tell(f"service {self.service} on {server_of(self.transport)}")
            await self.transport.add_service(self.service, self.topics)

    async def forget(self, service: str, topics: Collection[str] | None = None) -> None:
        """Remove what the engine keeps for a service that is gone, or for topics that it receives no more.

        What waited there is lost. A service that comes back begins again. Raises `TypeError` when the transport keeps
        nothing for services, and what the engine raises.
        """
        check_name("service", service)
        if not isinstance(self.transport, KnowsServices):
            raise TypeError(f"{type(self.transport).__name__} keeps nothing for a service that could be forgotten")
        await self.transport.forget_service(service, topics)

    async def aclose(self) -> None:
        """Close the connections that `status`, `replay` and the like have opened outside of the relay's block.

        Each part is closed though another one fails; what is used again opens its connections again.
        """
        async with AsyncExitStack() as stack:
            for part in reversed(tuple(self._parts)):
                if isinstance(part, Closing):
                    stack.push_async_callback(part.aclose)
