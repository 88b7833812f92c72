"""What the signals did: counted and timed with `asignals.monitor`, and shown as a table or as JSON."""

from collections import deque
from statistics import median, quantiles
from typing import Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from asignals import Connection, Report, Signal
from asignals.asgi import request_finished, request_started

AnySignal: TypeAlias = Signal[..., Any]

_KEPT = 10_000  # durations of a receiver, the last so many, of which the percentiles are taken


class _Calls:
    """The calls of one receiver, or the sends of one signal."""

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.durations: deque[float] = deque(maxlen=_KEPT)

    def add(self, report: Report) -> None:
        """Count one more."""
        self.count += 1
        self.errors += report.error is not None
        self.durations.append(report.duration)

    def percentiles(self) -> dict[str, float | None]:
        """Median and 99th percentile of the durations, in seconds."""
        if len(self.durations) < 2:  # noqa: PLR2004  fewer have no percentiles
            only = self.durations[0] if self.durations else None
            return {"median": only, "p99": only}
        return {"median": median(self.durations), "p99": quantiles(self.durations, n=100, method="inclusive")[98]}


class Tally:
    """A monitor that counts and times; pass it to `asignals.monitor`."""

    def __init__(self) -> None:
        self._sends: dict[AnySignal, _Calls] = {}
        self._calls: dict[tuple[AnySignal, Any], _Calls] = {}

    def __call__(self, report: Report) -> None:
        """Take note of a send, or of a receiver's call."""
        if report.receiver is None:
            self._sends.setdefault(report.signal, _Calls()).add(report)
        else:
            self._calls.setdefault((report.signal, report.receiver), _Calls()).add(report)

    def sends(self, signal: AnySignal) -> int:
        """How often the signal was sent."""
        return self._sends[signal].count if signal in self._sends else 0

    @property
    def is_proven(self) -> bool:
        """Whether there were requests, and each that started has finished."""
        return 0 < self.sends(request_started) == self.sends(request_finished)

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; times in seconds."""
        return {
            "requests_started": self.sends(request_started),
            "requests_finished": self.sends(request_finished),
            "proven": self.is_proven,
            "signals": [self._signal(signal) for signal in self._sends],
        }

    def _signal(self, signal: AnySignal) -> dict[str, Any]:
        links = [link for link in signal.connections if link.receiver is not None]
        sends = self._sends[signal]
        return {
            "name": signal.name,
            "sends": sends.count,
            "errors": sends.errors,
            **sends.percentiles(),
            "receivers": [self._receiver(signal, link) for link in links],
        }

    def _receiver(self, signal: AnySignal, link: Connection) -> dict[str, Any]:
        calls = self._calls.get((signal, link.receiver), _Calls())
        return {
            "name": getattr(link.receiver, "__qualname__", repr(link.receiver)),
            "location": link.location,
            "kind": _kind(link),
            "calls": calls.count,
            "errors": calls.errors,
            **calls.percentiles(),
        }

    def table(self) -> Table:
        """A row for each signal, and one for each of its receivers in the order in which they are called."""
        # In a narrow terminal names and kinds are wrapped, and never a figure.
        table = Table(Column("signal / receiver", overflow="fold"), "kind", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for title in ("count", "errors", "median", "p99"):
            table.add_column(title, justify="right", no_wrap=True)
        for signal in self.as_dict()["signals"]:
            name = Text(signal["name"].rpartition(".")[2], "bold")
            table.add_row(name, "signal", Text(str(signal["sends"]), "bold"), *_figures(signal))
            for receiver in signal["receivers"]:
                name = Text(f"  {receiver['name']}")
                table.add_row(name, receiver["kind"], str(receiver["calls"]), *_figures(receiver))
            table.add_section()
        return table

    def proof(self) -> str:
        """The line that everything hangs on."""
        started, finished = self.sends(request_started), self.sends(request_finished)
        verdict = "[green]proven" if self.is_proven else "[red]NOT TRUE" if started != finished else "(no requests)"
        return f"requests started = finished: {started} = {finished} {verdict}"


def _kind(link: Connection) -> str:
    if link.in_thread:
        return "thread"
    if link.weak and hasattr(link.receiver, "__self__"):
        return "async weak method" if link.is_async else "weak method"
    return "async" if link.is_async else "sync"


def _figures(counted: dict[str, Any]) -> tuple[Text, str, str]:
    errors = Text(str(counted["errors"]), "red" if counted["errors"] else "dim")
    return errors, _milliseconds(counted["median"]), _milliseconds(counted["p99"])


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.2f} ms"
