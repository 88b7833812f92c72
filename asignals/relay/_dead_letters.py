"""Looking at dead letters, sending them again and removing them: by queue, id, topic, time and error, in batches.

They are kept for as long as the relay was told.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from contextlib import aclosing
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, runtime_checkable

from asignals.relay._connection_state import Attempts, ConnectionState, jittered
from asignals.relay._envelope import DeadLetter, Envelope, check_name
from asignals.relay._transport import DeadLetters, PublishRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence

logger = logging.getLogger("asignals.relay")

REFUSED: Final = "outbox.refused"
"""The queue of events that the engine refused, which are still in the outbox of the service that sent them."""

_BATCH: Final = 500
_FEW: Final = 50  # letters that are looked at together to see whether they are old: most often none is

_OFTEN: Final = 1.0  # seconds between two looks at least
_SELDOM: Final = 3_600.0  # and at most

OnProgress: TypeAlias = "Callable[[int, int], object]"
"""Is called with how many dead letters were looked at, and how many there are."""


@runtime_checkable
class KeepsRefused(Protocol):
    """An outbox that keeps what the engine refused for ever, as dead letters of the sending side."""

    async def count_refused(self) -> int:
        """Count them."""
        ...

    def scan_refused(self, *, batch: int = 500) -> AsyncGenerator[list[DeadLetter], None]:
        """Read them in batches, the oldest first."""
        ...

    async def retry_refused(self, letters: Sequence[DeadLetter] | None = None) -> int:
        """Have some of them, or all, published once more; returns how many."""
        ...

    async def delete_refused(self, letters: Sequence[DeadLetter]) -> None:
        """Remove some of them."""
        ...


@dataclass(frozen=True, slots=True)
class Which:
    """Which letters are meant; what is `None` leaves none out.

    `ids` are of events; `since` and `until` are seconds since the epoch, of when the event was given up; `error` is a
    part of the error's text.
    """

    ids: frozenset[str] | None = None
    topic: str | None = None
    since: float | None = None
    until: float | None = None
    error: str | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Whether a letter is meant."""
        if self.since is not None and letter.time < self.since:
            return False
        if self.until is not None and letter.time > self.until:
            return False
        if self.error is not None and self.error not in letter.error:
            return False
        if self.ids is None and self.topic is None:
            return True
        envelope = letter.envelope
        if envelope is None:
            return False
        is_known = self.ids is None or envelope.id in self.ids or envelope.repeats in self.ids
        return is_known and self.topic in (None, envelope.topic)


def which(
    ids: Collection[str] | None, topic: str | None, since: float | None, until: float | None, error: str | None
) -> Which:
    """Check what was asked for; raises `TypeError` for a single id where a collection belongs."""
    if isinstance(ids, str):
        raise TypeError(f"ids is a collection of event ids: ids=[{ids!r}]")
    return Which(None if ids is None else frozenset(ids), topic, since, until, error)


class Letters:
    """The dead letters of one relay: those of the engine, and those of its outbox."""

    def __init__(self, transport: Any, outbox: Any, publish: Callable[[Sequence[Envelope]], Awaitable[None]]) -> None:
        self._transport = transport
        self._outbox = outbox
        self._publish = publish

    async def counts(self, queues: Sequence[str]) -> dict[str, int]:
        """Count the letters of each queue, by the engine itself; none where it cannot."""
        found = {}
        for queue in queues:
            if queue == REFUSED:
                found[queue] = await self._outbox.count_refused()
            elif isinstance(self._transport, DeadLetters):
                found[queue] = await self._transport.count_dead_letters(queue)
        return found

    async def find(self, queues: Sequence[str], wanted: Which, limit: int) -> list[DeadLetter]:
        """Show the oldest letters that are meant."""
        found: list[DeadLetter] = []
        for queue in queues:
            left = limit
            async with aclosing(self.scan(queue)) as batches:
                async for batch in batches:
                    some = [letter for letter in batch if wanted.matches(letter)][:left]
                    found += [replace(letter, queue=queue) for letter in some]
                    left -= len(some)
                    if left <= 0:
                        break
        return sorted(found, key=attrgetter("time"))[:limit]

    async def replay(
        self, queues: Sequence[str], wanted: Which, limit: int | None, on_progress: OnProgress | None = None
    ) -> int:
        """Send letters again and remove them; returns how many."""
        return await self._each(queues, wanted, limit, self._replay, on_progress)

    async def purge(
        self, queues: Sequence[str], wanted: Which, limit: int | None, on_progress: OnProgress | None = None
    ) -> int:
        """Remove letters; returns how many."""
        return await self._each(queues, wanted, limit, self._delete, on_progress)

    async def expire(self, queue: str, before: float) -> int:
        """Remove the letters that were given up before a time, in seconds since the epoch; returns how many."""
        done = 0
        async with aclosing(self.scan(queue, _FEW)) as batches:
            async for batch in batches:
                old = [letter for letter in batch if 0 < letter.time < before]
                if old:
                    done += await self._delete(queue, old, len(old))
                elif any(letter.time > 0 for letter in batch):
                    break  # the oldest come first
        return done

    async def _each(
        self,
        queues: Sequence[str],
        wanted: Which,
        limit: int | None,
        work: Callable[[str, list[DeadLetter], int], Awaitable[int]],
        on_progress: OnProgress | None,
    ) -> int:
        done = seen = 0
        counts = await self.counts(queues)  # what comes while we work is for the next time
        for queue in queues:
            left = counts[queue]
            async with aclosing(self.scan(queue)) as batches:
                async for batch in batches:
                    some = [letter for letter in batch[:left] if wanted.matches(letter)]
                    left -= len(batch)
                    seen += len(batch)
                    most = len(some) if limit is None else min(len(some), limit - done)
                    if most > 0:
                        done += await work(queue, some, most)
                    if on_progress is not None:
                        on_progress(seen, sum(counts.values()))
                    if left <= 0 or done == limit:
                        break
        return done

    def scan(self, queue: str, batch: int = _BATCH) -> AsyncGenerator[list[DeadLetter], None]:
        """Read the letters of a queue in batches, the oldest first; close the generator."""
        if queue == REFUSED:
            refused: AsyncGenerator[list[DeadLetter], None] = self._outbox.scan_refused(batch=batch)
            return refused
        if isinstance(self._transport, DeadLetters):
            return self._transport.scan_dead_letters(check_name("queue", queue), batch=batch)
        raise TypeError(f"{type(self._transport).__name__} keeps no dead letters that could be shown")

    async def _delete(self, queue: str, letters: list[DeadLetter], most: int) -> int:
        if queue == REFUSED:
            await self._outbox.delete_refused(letters[:most])
        else:
            await self._transport.delete_dead_letters(queue, letters[:most])
        return most

    async def _replay(self, queue: str, letters: list[DeadLetter], most: int) -> int:
        if queue == REFUSED:
            count: int = await self._outbox.retry_refused(letters[:most])
            return count
        events: dict[str, tuple[Envelope, DeadLetter]] = {}
        for letter in letters:
            event = _repeated(letter)
            if event is not None and len(events) < most:
                events[event.id] = event, letter
        if not events:
            return 0
        try:
            await self._publish([event for event, _ in events.values()])
        except PublishRefusedError as error:
            for event_id, reason in error.refused.items():
                logger.warning("dead letter %s of %r cannot be sent again: %s", event_id, queue, reason)
                events.pop(event_id, None)
        return await self._delete(queue, [letter for _, letter in events.values()], len(events))


class Retention:
    """Removes the dead letters of one relay that are older than `keep` seconds."""

    def __init__(self, letters: Letters, keep: float | None) -> None:
        self.expired = 0
        self._letters = letters
        self._keep = keep or 0.0

    async def run(self, queues: Sequence[str]) -> None:
        """Look now and then, until cancelled; an engine that is away is asked the next time."""
        attempts = Attempts(ConnectionState("removing old dead letters"))
        pause = min(_SELDOM, max(_OFTEN, self._keep / 10))
        while True:
            await asyncio.sleep(jittered(pause))
            for queue in queues:
                if queue != REFUSED:  # those are the outbox's
                    async with attempts:
                        await self._expire(queue)

    async def _expire(self, queue: str) -> None:
        gone = await self._letters.expire(queue, time.time() - self._keep)
        if gone:
            self.expired += gone
            logger.info("removed %d dead letters of %r: older than %g s", gone, queue, self._keep)


def _repeated(letter: DeadLetter) -> Envelope | None:
    """Make the event that a replay sends: a new id, as the engine knows the old one; the same for the same letter.

    `None` for a letter that holds no event, or that another program has written with what no event may have.
    """
    envelope = letter.envelope
    if envelope is None:
        return None
    first = envelope.repeats or envelope.id
    suffix = f"{zlib.crc32(f'{letter.service} {letter.time}'.encode()):08x}"
    event = replace(
        envelope,
        id=f"{first[:50]}-r{suffix}",
        target=letter.service,
        repeats=first,
        origin="",
        hops=0,
        done=letter.done,
    )
    try:
        event.encode()
    except ValueError as error:
        logger.warning("dead letter %s cannot be sent again: %s", first, error)
        return None
    return event
