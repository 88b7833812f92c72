"""Time limits whose common case, that they are not reached, costs next to nothing.

One timer of the event loop serves all of them. A timer and a cancel scope for each, as anyio has them, take longer than
the rest of what Python does for a row in the outbox.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final, Self
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from types import TracebackType

_AGAIN: Final = 0.05  # seconds between two cancellations of one task
_RESOLUTION: Final = 0.002  # seconds by which the clock of a loop may be behind its timers


class TimeLimit:
    """A `with` block that cancels what its task awaits, and raises `TimeoutError`, `seconds` after `begin`.

    Cancels again and again until the block ends, as clients swallow cancellations. A block that ends without an error
    is not late. For calls inside `heeding`, by which a cancellation from elsewhere wins. `who` names whose answer is
    waited for.
    """

    __slots__ = ("_seconds", "_task", "_timer", "_times", "_who", "deadline")

    def __init__(self, seconds: float, who: str = "") -> None:
        self._seconds, self._who = seconds, who

    def __enter__(self) -> Self:
        self._timer: _Timer | None = None
        self._times = 0
        self._task = _current_task()
        return self

    def begin(self) -> None:
        """Begin to count, once."""
        loop = asyncio.get_running_loop()
        timer = _timers.get(loop)
        if timer is None:
            timer = _timers[loop] = _Timer()
        self.deadline = loop.time() + self._seconds
        self._timer = timer
        timer.add(self, loop)

    @property
    def has_begun(self) -> bool:
        return self._timer is not None

    def expire(self) -> None:
        """Cancel the task; called by the timer."""
        self._times += 1
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.limits.discard(self)
        for _ in range(self._times):
            self._task.uncancel()
        if self._times and isinstance(error, Exception | asyncio.CancelledError):
            what = f"{self._who} gave no answer" if self._who else "no answer"
            raise TimeoutError(f"{what} within {self._seconds:g} s") from error


def _current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a time limit is for what a task awaits")
    return task


class _Timer:
    """The limits of one event loop; refers to the loop by nothing, as it is a value by the loop."""

    def __init__(self) -> None:
        self.limits: set[TimeLimit] = set()
        self._due = math.inf

    def add(self, limit: TimeLimit, loop: asyncio.AbstractEventLoop) -> None:
        self.limits.add(limit)
        if limit.deadline < self._due:
            self._due = limit.deadline
            loop.call_at(limit.deadline, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        late = loop.time() + _RESOLUTION
        if late < self._due:  # a timer of before an earlier one was set
            return
        for limit in tuple(self.limits):
            if limit.deadline <= late:
                limit.deadline = late + _AGAIN
                limit.expire()
        self._due = min((limit.deadline for limit in self.limits), default=math.inf)
        if self._due < math.inf:
            loop.call_at(self._due, self._look)


_timers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Timer] = WeakKeyDictionary()
