"""What JetStream's answers mean, those of a cluster between two leaders included."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import nats.errors
from nats.js.errors import APIError, NoStreamResponseError, ServiceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nats.aio.msg import Msg

T = TypeVar("T")

_TOO_LARGE: Final = 10054
_UNAVAILABLE: Final = 503
_TEMPORARY: Final[frozenset[int | None]] = frozenset(
    {10005, 10008, 10009}
)  # no peers yet, no leader yet, asked of one that does not lead
_PAUSE: Final = 0.25  # seconds until the same is asked again


class NoLeaderError(ConnectionError):
    """JetStream cannot answer now: its cluster chooses a leader, or so many servers are down that it cannot."""


class Publishing:
    """The acknowledgements that one batch waits for."""

    def __init__(self, ids: list[str]) -> None:
        self.open = dict.fromkeys(ids)
        self.refused: dict[str, str] = {}
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def acknowledged(self, id_: str, answer: Msg) -> None:
        """Take note of one answer."""
        if id_ not in self.open or self.ended.done():
            return
        problem = problem_of(answer.data)
        if problem and problem.get("err_code") == _TOO_LARGE:
            self.refused[id_] = str(problem.get("description"))
        elif problem:
            kind = NoLeaderError if _is_temporary(problem) else ConnectionError
            self.ended.set_exception(kind(f"JetStream did not store an event: {problem.get('description')}"))
            return
        del self.open[id_]
        if not self.open:
            self.ended.set_result(None)


def problem_of(answer: bytes) -> dict[str, Any] | None:
    """Read what is wrong, if anything is, from the answer to a publication."""
    if not answer:
        return {"code": _UNAVAILABLE, "description": "no stream takes it"}
    try:
        found = json.loads(answer)
        is_stored = isinstance(found.get("stream"), str) and isinstance(found.get("seq"), int)
        problem = found.get("error") or (None if is_stored else {})
    except (ValueError, AttributeError, TypeError, RecursionError):
        problem = {}
    if problem is None or (isinstance(problem, dict) and problem):
        return problem
    return {"description": f"an answer that means nothing: {answer[:80]!r}"}


def _is_temporary(problem: dict[str, Any]) -> bool:
    return problem.get("code") == _UNAVAILABLE or problem.get("err_code") in _TEMPORARY


def _may_end(error: Exception) -> bool:
    """Whether the same request may be answered otherwise a little later."""
    return not isinstance(error, APIError) or isinstance(error, ServiceUnavailableError) or error.err_code in _TEMPORARY


Position: TypeAlias = tuple[int, int]
"""An event's sequence number in its stream, and when it came: the numbers of a stream that is made again begin at 1."""


def place_of(reply: str) -> tuple[int, Position] | None:
    """Read from the subject for the acknowledgement how often an event was delivered, and its position."""
    tokens = reply.split(".")
    first = 4 if len(tokens) == 9 else 6  # noqa: PLR2004  newer servers write domain and account before the stream
    try:
        return int(tokens[first]), (int(tokens[first + 1]), int(tokens[first + 3]))
    except (IndexError, ValueError):
        return None


async def patiently(ask: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Ask until there is an answer, for so many seconds: a cluster without a leader gives none, or one that says so.

    Raises `NoLeaderError` afterwards, and at once whatever else is answered.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return await ask()
        except (nats.errors.TimeoutError, NoLeaderError, NoStreamResponseError, APIError) as error:
            if not _may_end(error):
                raise
            if time.monotonic() + _PAUSE > end:
                raise NoLeaderError(
                    f"JetStream cannot answer now; a cluster needs a leader, and most of its servers ({error})"
                ) from error
        await asyncio.sleep(_PAUSE)
