"""What waits elsewhere: asked of outbox, engine and inbox at the same time, each with a limit."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, runtime_checkable

from asignals.masking import redacted, said
from asignals.relay._cancel import end, limited
from asignals.relay._connection_state import ConnectionState
from asignals.relay._dead_letters import REFUSED
from asignals.relay._monitoring.figures import Figures, TopicFigures, backlog_of
from asignals.relay._transport import Backlog, DeadLetters

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from asignals.relay._dead_letters import Letters
    from asignals.relay._parts import Parts

T = TypeVar("T")

TIMEOUT: Final = 10.0  # seconds that each of outbox, engine and inbox may take
_LETTERS: Final = 1_000  # dead letters whose errors are looked at
_BYTES: Final = 8_000_000  # and how many bytes of them
_READING: Final = 3.0  # and for how many seconds
_BATCH: Final = 50
_KIND: Final = 60  # characters of an error that letters are grouped by
_STALE: Final = 90.0  # seconds after which figures that could not be renewed are not shown any more


@runtime_checkable
class Counted(Protocol):
    """An inbox that can tell how many rows it has."""

    async def count(self) -> int | None:
        """Count them; `None` when that cannot be told."""
        ...


@runtime_checkable
class Aged(Protocol):
    """An outbox that can tell for how long its oldest event waits."""

    async def oldest(self) -> float:
        """Give its age in seconds, 0 when none waits."""
        ...


@dataclass(frozen=True, slots=True)
class Status:
    """What waits, asked of outbox, engine and inbox: `None` where there is none, or where it cannot tell.

    `outbox` counts the events that are not published yet; `outbox_oldest` is the age of the oldest in seconds.
    `backlog` is that of this service, and `topics` has the figures of each topic. `dead` counts dead letters by queue;
    those of the queue `outbox.refused` are events of this service that the engine will not take; `errors` groups the
    oldest thousand by the kind of their error, where that was asked for. `inbox` counts rows, of all services.
    `problems` says who did not answer, and why; what they know is then `None`, or missing.
    """

    outbox: int | None
    backlog: int | None
    dead: dict[str, int | None]
    topics: tuple[TopicFigures, ...] = ()
    outbox_oldest: float | None = None
    inbox: int | None = None
    errors: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


class Looker:
    """Asks the parts of one relay what waits."""

    def __init__(self, service: str, parts: Parts, letters: Letters, receives: Callable[[], object]) -> None:
        self._service = service
        self._receives = receives
        self._parts = parts
        self._letters = letters

    async def look(
        self,
        queues: Collection[str],
        topics: Collection[str] | None,
        *,
        all_services: bool = False,
        by_error: bool = False,
        timeout: float = TIMEOUT,  # noqa: ASYNC109  of each answer, and not of all
    ) -> Status:
        """Ask all at once; who does not answer within `timeout` seconds is named in `problems`.

        `topics` are those of this service to ask for, `None` for all that it was ever known to receive.
        """
        problems: dict[str, str] = {}
        transport, outbox, inbox = self._parts.transport, self._parts.outbox, self._parts.inbox
        queues = [queue for queue in queues if queue == REFUSED or isinstance(transport, DeadLetters)]

        async def ask(part: object, call: Awaitable[T]) -> T | None:
            begun = time.monotonic()
            name = server_of(part)
            try:
                return await limited(call, timeout, name)
            except Exception as error:  # noqa: BLE001  told
                problems.setdefault(name, f"{said(error)} (after {time.monotonic() - begun:.1f} s)")
                return None

        asked = asyncio.gather(
            ask(transport, self._figures(topics, all_services=all_services)),
            ask(outbox, _nothing() if outbox is None else outbox.count()),
            ask(outbox, outbox.oldest() if isinstance(outbox, Aged) else _nothing()),
            ask(inbox, _rows(inbox)),
        )
        places = [outbox if queue == REFUSED else transport for queue in queues]
        letters = asyncio.gather(
            *(ask(place, self._dead(queue, by_error=by_error)) for place, queue in zip(places, queues, strict=True))
        )
        (figures, waiting, age, rows), dead = await asyncio.gather(asked, letters)
        counts = dict(zip(queues, dead, strict=True))
        found_figures, backlog = figures or ((), None)
        return Status(
            waiting,
            backlog,
            {queue: None if found is None else found[0] for queue, found in counts.items()},
            tuple(found_figures),
            age,
            rows,
            {queue: found[1] for queue, found in counts.items() if found is not None and found[1]},
            problems,
        )

    async def _figures(
        self, topics: Collection[str] | None, *, all_services: bool
    ) -> tuple[list[TopicFigures], int | None]:
        """Give the figures, and what of it waits for this service; `None` where it receives nothing."""
        transport, is_known = self._parts.transport, self._receives()
        if isinstance(transport, Figures):
            found = await transport.figures(None if all_services else self._service, topics)
            mine = [one for one in found if one.service == self._service]
            return found, backlog_of(mine) if mine or is_known else None
        backlog = await transport.backlog(self._service) if is_known and isinstance(transport, Backlog) else None
        return [], backlog

    async def _dead(self, queue: str, *, by_error: bool) -> tuple[int | None, dict[str, int]]:
        count = (await self._letters.counts([queue])).get(queue)
        return count, await self._errors(queue) if by_error and count else {}

    async def _errors(self, queue: str) -> dict[str, int]:
        """Group the oldest letters by the kind of their error; stops when that takes too long, or too many bytes."""
        found: dict[str, int] = {}
        size = letters = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(_READING), aclosing(self._letters.scan(queue, _BATCH)) as batches:
                async for batch in batches:
                    for letter in batch:
                        kind = redacted(letter.error.partition(":")[0])[:_KIND]
                        found[kind] = found.get(kind, 0) + 1
                        size += len(letter.raw)
                    letters += len(batch)
                    if letters >= _LETTERS or size > _BYTES:
                        break
        return found


def server_of(part: object) -> str:
    """Say which server it is, without its password."""
    state, database = getattr(part, "connection_state", None), getattr(part, "database_name", None)
    name = state.name if isinstance(state, ConnectionState) else type(part).__name__
    return redacted(database or name)


async def _nothing() -> None:
    return None


async def _rows(inbox: object) -> int | None:
    return await inbox.count() if isinstance(inbox, Counted) else None


class Snapshot:
    """What waits, as it was told last: for those who look often, from any thread, and must not wait."""

    def __init__(self, look: Callable[[], Awaitable[Status]]) -> None:
        self._look = look
        self._status: Status | None = None
        self._at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._waited = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Belong to the event loop that runs now."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()

    async def aclose(self) -> None:
        """End what asks, and forget what was told."""
        self._loop = None
        if self._asking is not None:
            await end([self._asking])
        self._asking, self._status = None, None

    def latest(self, max_age: float, wait: float = 0.0) -> Status | None:
        """Give what was told last, if that was not long ago; have it renewed when it is older than `max_age` seconds.

        Other threads than that of the event loop may wait for that, `wait` seconds at most.
        """
        now, loop = time.monotonic(), self._loop
        if loop is not None and (self._status is None or now - self._at > max_age):
            with suppress(RuntimeError):  # the loop is closed
                if threading.get_ident() == self._thread or not wait or now - self._waited < max_age:
                    loop.call_soon_threadsafe(self._start)
                else:
                    self._waited = now  # who was not answered asks no more for a while
                    self._wait_for(loop, wait)
        return self._status if time.monotonic() - self._at < _STALE else None

    def _wait_for(self, loop: asyncio.AbstractEventLoop, wait: float) -> None:
        answered = threading.Event()

        def ask() -> None:  # no coroutine: a loop that is blocked or stopped would never await it
            self._start()
            if self._asking is not None:
                self._asking.add_done_callback(lambda _: answered.set())

        loop.call_soon_threadsafe(ask)
        answered.wait(wait)

    async def renewed(self, max_age: float) -> Status | None:
        """Give what is at most so many seconds old; those who ask at the same time share one answer."""
        if self._status is None or time.monotonic() - self._at > max_age:
            self._start()
            if self._asking is not None:
                await asyncio.wait([self._asking])
        return self._status if time.monotonic() - self._at < _STALE else None

    def _start(self) -> None:
        if self._loop is not None and (self._asking is None or self._asking.done()):
            self._asking = self._loop.create_task(self._ask())

    async def _ask(self) -> None:
        self._status = await self._look()
        self._at = time.monotonic()
