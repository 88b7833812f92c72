"""What runs while a relay's block is open: draining, consuming, listening; how it starts and how it stops."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from asignals._core import DocumentedError
from asignals.masking import said
from asignals.relay._cancel import end, limited
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._subscription import receiver_names
from asignals.relay._transport import Broadcasts, Checked, OwnInbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from asignals.relay._broadcast import Listener
    from asignals.relay._identity import Identity
    from asignals.relay._monitoring.status import Status
    from asignals.relay._parts import Parts
    from asignals.relay._publisher import Publisher
    from asignals.relay._receive import Inbound
    from asignals.relay._subscription import Subscription

logger = logging.getLogger("asignals.relay")

_CHECK: Final = 5.0  # seconds that starting waits for a database to say whether its tables are there
LAST_LOOK: Final = 2.0  # seconds that stopping waits for each figure of the final status


class NoReceiversError(DocumentedError, RuntimeError):
    """A relay was to handle events, and signals that it receives have no receivers, or it receives nothing."""

    def __init__(self, service: str, unheard: Sequence[tuple[str, str]], hint: str = "") -> None:
        if unheard:
            what = ", ".join(f"signal {signal!r} (topic {topic!r})" for signal, topic in unheard)
            text = f"nobody would handle what service {service!r} receives: no receiver is connected to {what}"
        else:
            text = f"service {service!r} receives nothing: call relay.receive(signal, topic) before it starts"
        super().__init__(f"{text}. {hint}" if hint else text)
        self.service = service
        self.unheard: tuple[tuple[str, str], ...] = tuple(unheard)


def unheard(subscriptions: dict[str, Subscription]) -> list[tuple[str, str]]:
    """Name the signals that are received and have no receiver now, each with its topic."""
    return [
        (subscription.signal.name, topic)
        for topic, subscription in subscriptions.items()
        if not subscription.allow_no_receivers and not receiver_names(subscription.signal)
    ]


class Runner:
    """Runs the parts of one relay."""

    def __init__(  # noqa: PLR0913  parts of one relay
        self,
        identity: Identity,
        parts: Parts,
        inbound: Inbound,
        listener: Listener,
        publisher: Publisher,
        *,
        limit: int,
        grace: float,
    ) -> None:
        self.is_running = False
        self.tasks: list[asyncio.Task[None]] = []
        self.also: list[Callable[[], Coroutine[Any, Any, None]]] = []  # what else runs for as long
        self.consuming = ConnectionState(f"consuming as {inbound.service!r}")
        self.limit = limit
        self.grace = grace
        self._identity = identity
        self._parts = parts
        self._inbound = inbound
        self._listener = listener
        self._publisher = publisher

    async def begin(self) -> None:
        """Start everything; raises `SchemaError` when tables are missing."""
        self.is_running = True
        try:
            await self._check_parts()
        except BaseException:
            self.is_running = False
            raise
        transport, outbox, inbox = self._parts.transport, self._parts.outbox, self._parts.inbox
        self._inbound.begin(self.limit)
        if outbox is not None:
            self._start(outbox.drain_for_ever(self._publisher.publish))
        if self._inbound.subscriptions:
            self._start(self._consume_for_ever())
            self._start(self._inbound.watchdog.run())
            if isinstance(inbox, Checked):
                self._start(self._inbound.inbox.watch(inbox.check))
        if self._listener.subscriptions and isinstance(transport, Broadcasts):
            self._start(self._listener.run(transport))
        for work in self.also:
            self._start(work())
        if self._inbound.subscriptions and not self._inbound.always_remember and not isinstance(transport, OwnInbox):
            logger.warning(
                "%s keeps no notes of what has begun: an event that kills the process of %r is redelivered for ever,"
                " and what was done is forgotten with the process; give the relay an inbox=SQLAlchemyInbox(…)",
                type(transport).__name__,
                self._inbound.service,
            )
        for signal, topic in unheard(self._inbound.subscriptions):
            logger.warning("signal %r has no receiver yet: events of %r wait until one is connected", signal, topic)

    async def settle(self) -> None:
        """Wait until what has begun is done, for the time of grace."""
        self._inbound.stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self.grace):
                await self._inbound.idle.wait()
                while await self.waiting_in_outbox():  # noqa: ASYNC110  the rows may be another process's work
                    await asyncio.sleep(0.05)

    async def end(self) -> None:
        """Stop everything."""
        await end(self.tasks)
        await self._publisher.aclose()
        self.tasks.clear()
        self.is_running = False

    async def _check_parts(self) -> None:
        """Raise `SchemaError` when tables are missing; a database that does not answer is no reason not to start.

        Raises `RuntimeError` for a server or a driver that will not do.
        """
        parts: list[object] = [self._parts.transport, self._parts.outbox]
        if self._inbound.subscriptions:
            parts.append(self._parts.inbox)
        checks = [limited(part.check(), _CHECK) for part in parts if isinstance(part, Checked)]
        for outcome in await asyncio.gather(*checks, return_exceptions=True):
            if isinstance(outcome, RuntimeError):
                raise outcome
            if isinstance(outcome, Exception):
                logger.warning("whether all tables are there is not known yet (%s)", said(outcome))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._look_at_end)
        self.tasks.append(task)

    def _look_at_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a part of the relay of %r has ended (%s): start it again", self._inbound.service, said(error))

    async def _consume_for_ever(self) -> None:
        attempts = Attempts(self.consuming)
        inbound, consume = self._inbound, self._parts.transport.consume
        topics = sorted(inbound.subscriptions)
        while True:
            # consume() never reports success, so it is assumed to work after one second.
            assumed = asyncio.get_running_loop().call_later(1.0, attempts.succeeded)
            try:
                async with attempts:
                    await consume(inbound.service, self._identity.instance, topics, inbound.handle, limit=self.limit)
                    raise ConnectionError("the transport stopped consuming")
            finally:
                assumed.cancel()

    async def waiting_in_outbox(self) -> int:
        """Count the events that are not published yet; one when the outbox does not answer."""
        try:
            return 0 if (outbox := self._parts.outbox) is None else await outbox.count()
        except Exception:  # noqa: BLE001  the outbox reports its loss itself; here it means that something may wait
            return 1


async def last_look(service: str, status: Awaitable[Status]) -> Status | None:
    """Find out, shortly, what is left when a relay stops, and log it."""
    left = await status
    if left.problems:
        reason = "; ".join(f"{name}: {problem}" for name, problem in left.problems.items())
        logger.warning(
            "relay of %r stopped; what is left is not known (%s), and is done by the next instance", service, reason
        )
        return None
    dead = sum(count or 0 for count in left.dead.values())
    figures = {"outbox": left.outbox, "backlog": left.backlog, "dead letters": dead}
    text = ", ".join(f"{name}: {count}" for name, count in figures.items() if count is not None)
    logger.info("relay of %r stopped; left in %s", service, text)
    return left
