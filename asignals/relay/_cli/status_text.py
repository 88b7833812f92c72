"""A relay's status for people and for programs: `asignals relay status`."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from asignals.masking import redacted
from asignals.relay._dead_letters import REFUSED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asignals.relay._monitoring.figures import TopicFigures
    from asignals.relay._monitoring.status import Status

UNKNOWN: Final = "?"
"""Somebody did not answer."""
NOT_TOLD: Final = "–"  # noqa: RUF001  an en dash is meant
"""The engine cannot tell."""

_COLUMNS: Final = {
    "backlog": "backlog",
    "oldest": "oldest",
    "in_flight": "in flight",
    "retries": "retries",
    "instances": "instances",
}
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))  # seconds


def troubles_of(status: Status) -> list[str]:
    """Say what somebody should look at: dead letters, events that nobody handles, and who did not answer."""
    found = [f"{name}: {problem}" for name, problem in status.problems.items()]
    found += [f"{count} dead letters in {queue}" for queue, count in status.dead.items() if count]
    found += [
        f"{one.backlog} events of {one.topic} wait, and no instance of {one.service} runs"
        for one in status.topics
        if one.backlog and one.instances == 0
    ]
    return found


def as_json(service: str, status: Status) -> dict[str, Any]:
    """Give all of it as JSON has it; times in seconds, `null` for what is not known."""
    topics = [asdict(one) for one in status.topics]
    return {"service": service, **asdict(status), "topics": topics, "ok": not troubles_of(status)}


def as_text(service: str, status: Status, engine: str, width: int) -> list[str]:
    """Write it in lines of at most `width` characters, but for long names."""
    nothing = UNKNOWN if status.problems else NOT_TOLD
    lines = [f"service  {service}", f"outbox   {_number(status.outbox, nothing)}"]
    if status.outbox and status.outbox_oldest is not None:
        lines[-1] += f", the oldest {age(status.outbox_oldest)}"
    lines += [f"backlog  {_number(status.backlog, nothing)}", f"inbox    {_number(status.inbox, nothing)}"]
    for queue, count in status.dead.items():
        if queue != REFUSED or count or count is None:
            kind = "refused" if queue == REFUSED else "dead"
            lines.append(f"{kind:<8} {_number(count, UNKNOWN)} in {queue}")
            errors = status.errors.get(queue, {})
            lines += [f"{number:>13}  {error}" for error, number in sorted(errors.items(), key=lambda each: -each[1])]
            if count and errors and (left := count - sum(errors.values())) > 0:
                lines.append(f"{left:>13}  were not looked at")
    lines += _table(status, width)
    lines += _notes(status, engine, width)
    return lines


def _table(status: Status, width: int) -> Iterator[str]:
    """Write the figures of topics, in a table for each service."""
    if not status.topics:
        return
    sizes = {name: len(title) + 2 for name, title in _COLUMNS.items()}
    room = max(12, width - sum(sizes.values()))
    longest = max(len(one.topic) for one in status.topics)
    first = min(room, max(5, longest))
    head = "".join(f"{title:>{sizes[name]}}" for name, title in _COLUMNS.items())
    for service, rows in groupby(status.topics, attrgetter("service")):
        yield ""
        yield f"{redacted(service)} receives"
        yield f"{'topic':<{first}}{head}"
        for one in rows:
            topic = redacted(one.topic)
            if len(topic) > first:
                yield topic
                topic = ""
            yield f"{topic:<{first}}" + "".join(f"{_cell(one, name):>{sizes[name]}}" for name in _COLUMNS)


def _cell(one: TopicFigures, name: str) -> str:
    value = getattr(one, name)
    if value is None:
        return NOT_TOLD
    return age(value) if name == "oldest" else str(value)


def _notes(status: Status, engine: str, width: int) -> Iterator[str]:
    missing = [title for name, title in _COLUMNS.items() if any(getattr(one, name) is None for one in status.topics)]
    if missing:
        yield from ("", *textwrap.wrap(f"{NOT_TOLD} {engine} does not tell: {', '.join(missing)}", width))
    if status.problems:
        yield ""
    for name, problem in status.problems.items():
        yield from textwrap.wrap(f"{UNKNOWN} no answer from {name}: {problem}", width, subsequent_indent="  ")


def _number(number: int | None, otherwise: str) -> str:
    return otherwise if number is None else str(number)


def age(seconds: float) -> str:
    """Write a time shortly, as 12s, 3.5min, 2h or 4.1d."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.2g}{unit}" if seconds < 10 * size else f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
