"""Keeps what the monitor tells: as text, bounded in number and size, without a reference to anything that was sent."""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote

from asignals import monitor
from asignals._core import locate
from asignals.overview.counts import Counts, code_of
from asignals.overview.relays import exported_event, handled_event
from asignals.overview.values import TRACEBACK_TEXT, Shower, message_of, name_of, short_path, trace_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import CodeType

    from asignals import Report, Signal
    from asignals._core import Send

    AnySignal = Signal[..., Any]

DURATIONS: Final = 512  # latest durations of a signal that percentiles are taken from
ARGUMENTS: Final = 30  # arguments of a send that are shown
RECEIVERS: Final = 50  # receivers of a send that are shown
TRACEBACKS: Final = 5  # errors of a send that are shown with their traceback
KNOWN: Final = 10_000  # receivers whose names and places are remembered
UNFINISHED: Final = 10_000  # sends under way whose receivers are remembered
EXPORTED: Final = 10_000  # events of relays that are remembered with their sends
BYTES: Final = 8_000_000  # of everything kept
SEND_BYTES: Final = 24_000  # of one send: a viewer's stream has room for two
PER_SECOND: Final = 100  # sends shown in a second; those above are counted only
ERRORS_PER_SECOND: Final = 20  # failed sends shown in a second beside those


Figures: TypeAlias = dict[str, tuple[list[float], tuple[int, int]]]
"""By a signal's number: what `Statistics.summary` and `Counts.figures` give."""


class Allowance:
    """So many a second, and as many at once after a quiet second."""

    def __init__(self, per_second: float) -> None:
        """Start full."""
        self._per_second = self._left = per_second
        self._at = time.monotonic()

    def take(self) -> bool:
        """Take one, if there is one left."""
        now = time.monotonic()
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def wait(self) -> float:
        """How many seconds it takes until there is one again."""
        return max(0.0, 1 - self._left) / self._per_second


class Statistics:
    """How often a signal was sent since somebody looks, how often that failed, and how long it took."""

    __slots__ = ("_summary", "durations", "errors", "number", "sends", "signal")

    def __init__(self, signal: AnySignal, number: int) -> None:
        """Start at nothing; `number` stands for the signal on the page."""
        self.signal = weakref.ref(signal)
        self.number = number
        self.sends = 0
        self.errors = 0
        self.durations: deque[float] = deque(maxlen=DURATIONS)
        self._summary: list[float] | None = None

    def add(self, duration: float, *, failed: bool) -> None:
        """Count one send."""
        self.sends += 1
        self.errors += failed
        self.durations.append(duration)
        self._summary = None

    def summary(self) -> list[float]:
        """Sends, errors, and the 50th, 95th and 99th percentile and the maximum of the durations in seconds."""
        if self._summary is None:
            ordered = sorted(self.durations)
            parts = (float(f"{_percentile(ordered, part):.3g}") for part in (0.5, 0.95, 0.99, 1.0))
            self._summary = [self.sends, self.errors, *parts]
        return self._summary


class Recorder:
    """Watches all signals between `start` and `stop`, and remembers the latest sends. Safe to use from any thread."""

    def __init__(self, *, keep: int, shower: Shower, link: Callable[[str, int], str | None]) -> None:
        """Keep at most `keep` sends; values become text through `shower`, and places in files links through `link`."""
        self._shower = shower
        self._link = link
        self._lock = threading.Lock()
        self._watch: Callable[[], object] | None = None
        self._watchers = 0
        self._until = 0.0
        # Sends that begin before this time, of perf_counter, are counted only: there are too many at once.
        self._quiet_until = 0.0
        self._unfinished: dict[int, list[Report]] = {}
        self._sends: deque[tuple[int, str]] = deque(maxlen=keep)
        self._bytes = 0
        self._number = 0
        self._signals: dict[int, Statistics] = {}
        self._signal_numbers = 0
        # What stands for a send on the page, before and after it has ended: for those that follow from it.
        self._ids: weakref.WeakKeyDictionary[Send, int] = weakref.WeakKeyDictionary()
        self._last_id = 0
        self._exported: dict[str, int] = {}  # the send that an event of a relay was exported by
        self._known: dict[CodeType, dict[str, str | None]] = {}
        self.counts = Counts()
        self._allowance = Allowance(PER_SECOND)
        self._error_allowance = Allowance(ERRORS_PER_SECOND)
        self.skipped = 0

    @property
    def is_watching(self) -> bool:
        """Whether sends are being recorded now."""
        return self._watch is not None

    def start(self) -> None:
        """Somebody looks."""
        with self._lock:
            self._watchers += 1
            if self._watch is None:
                self._unfinished.clear()
                self._watch = monitor(self._told)

    def stop(self, *, linger: float = 0.0) -> None:
        """Somebody stops looking, but may be back within `linger` seconds; the last one ends the watch."""
        with self._lock:
            self._watchers -= 1
            self._until = max(self._until, time.monotonic() + linger)
            if self._watchers == 0 and linger <= 0:
                self._end()

    def since(self, number: int, room: int | None = None) -> tuple[int, list[str], int]:
        """The sends after a number: the number of the last, their JSON, and how many before them were forgotten.

        One, or as many as have room (bytes).
        """
        with self._lock:
            found: list[str] = []
            last = number
            lost = 0
            for each, text in self._sends:
                if each > number:
                    if number and not found:
                        lost = each - number - 1
                    if room is not None:
                        room -= len(text)
                        if room < 0 and found:
                            break
                    found.append(text)
                    last = each
            return last, found, lost

    def was_sent(self, signal: AnySignal) -> bool:
        """Whether a send of the signal was seen."""
        with self._lock:
            found = self._signals.get(id(signal))
            return found is not None and found.signal() is signal and found.sends > 0

    def number_of(self, signal: AnySignal) -> int:
        """The number that stands for a signal on the page."""
        with self._lock:
            return self._statistics(signal).number

    def statistics(self) -> Figures:
        """Of all signals that were sent, by their numbers: the statistics, and whom their sends have reached."""
        with self._lock:
            for key in [key for key, each in self._signals.items() if each.signal() is None]:
                del self._signals[key]
            alive = [(each, signal) for each in self._signals.values() if each.sends and (signal := each.signal())]
            return {str(each.number): (each.summary(), self.counts.figures(signal)) for each, signal in alive}

    def _told(self, report: Report) -> None:
        self.counts(report)
        if report.receiver is None:
            self._send_ended(report)
        # Most of a flood ends here: the receivers of a send that will not be shown.
        elif report.start >= self._quiet_until or report.error is not None:
            self._receiver_ended(report)

    def _receiver_ended(self, report: Report) -> None:
        with self._lock:
            # A send that was cut off without a report must not stay here for ever.
            if len(self._unfinished) >= UNFINISHED:
                del self._unfinished[next(iter(self._unfinished))]
            self._unfinished.setdefault(id(report.send), []).append(report)
            event = exported_event(report.receiver)
            if event is not None:
                if len(self._exported) >= EXPORTED:
                    del self._exported[next(iter(self._exported))]
                self._exported[event] = self._id(report.send)

    def _send_ended(self, report: Report) -> None:
        with self._lock:
            if self._watchers == 0 and time.monotonic() > self._until:
                self._end()
                return
            receivers = self._unfinished.pop(id(report.send), None) or ()
            failed = report.error is not None or any(each.error is not None for each in receivers)
            statistics = self._statistics(report.signal)
            statistics.add(report.duration, failed=failed)
            was_quiet = report.start < self._quiet_until
            if not self._may_show(report, failed=failed):
                self.skipped += 1
                return
        # Outside the lock: what the `repr` of a sent object does is not known.
        shown = self._show(report, receivers, statistics.number)
        shown["partial"] = was_quiet
        with self._lock:
            shown["id"] = self._id(report.send)
            shown["parent"], shown["event"] = self._cause(report)
            self._keep(shown)

    def _cause(self, report: Report) -> tuple[int | None, str | None]:
        """What a send follows from: another send, which may have exported the event that a relay handles here."""
        if report.parent is not None:
            return self._id(report.parent), None
        handled = handled_event()
        return (None, None) if handled is None else (self._exported.get(handled[0]), handled[1])

    def _id(self, send: Send) -> int:
        found = self._ids.get(send)
        if found is None:
            self._last_id += 1
            found = self._ids[send] = self._last_id
        return found

    def _may_show(self, report: Report, *, failed: bool) -> bool:
        # A send that began before the flood was over lacks the receivers that ended meanwhile: it is not for show.
        if report.start >= self._quiet_until:
            if self._allowance.take():
                return True
            self._quiet_until = time.perf_counter() + self._allowance.wait()
        return failed and self._error_allowance.take()

    def _keep(self, shown: dict[str, Any]) -> None:
        self._number += 1
        shown["number"] = self._number
        text = _fitting(shown)
        if len(self._sends) == self._sends.maxlen:
            self._forget_oldest()
        self._sends.append((self._number, text))
        self._bytes += len(text)
        while self._bytes > BYTES and len(self._sends) > 1:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        if self._sends:
            self._bytes -= len(self._sends.popleft()[1])

    def _end(self) -> None:
        if self._watch is not None:
            self._watch()
            self._watch = None
        self._unfinished.clear()

    def _statistics(self, signal: AnySignal) -> Statistics:
        found = self._signals.get(id(signal))
        if found is None or found.signal() is not signal:
            self._signal_numbers += 1
            found = self._signals[id(signal)] = Statistics(signal, self._signal_numbers)
        return found

    def _show(self, report: Report, receivers: Sequence[Report], number: int) -> dict[str, Any]:
        shower = self._shower
        errors: dict[int, dict[str, str]] = {}
        return {
            "at": round(time.time() - (time.perf_counter() - report.start), 6),
            "signal": number,
            "name": shower.clean(str(report.signal.name)),
            "sender": shower.named("sender", report.sender),
            "arguments": self._arguments(report.arguments),
            "duration": report.duration,
            "receivers": [self._receiver(each, report.start, errors) for each in receivers[:RECEIVERS]],
            "more": max(0, len(receivers) - RECEIVERS),
            "error": self._error(report.error, errors),
        }

    def _arguments(self, arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
        named = self._shower.named
        shown = [(self._shower.clean(name), named(name, arguments[name])) for name in list(arguments)[:ARGUMENTS]]
        if len(arguments) > ARGUMENTS:
            shown.append(("…", f"{len(arguments) - ARGUMENTS} more"))
        return shown

    def _receiver(self, report: Report, start: float, errors: dict[int, dict[str, str]]) -> dict[str, Any]:
        return {
            **self._described(report.receiver),
            "start": max(0.0, report.start - start),
            "duration": report.duration,
            "error": self._error(report.error, errors),
        }

    def _described(self, receiver: object) -> dict[str, str | None]:
        """A receiver's name and place, remembered by its code: most of the time of a send would go there."""
        code = code_of(receiver)
        found = None if code is None else self._known.get(code)
        if found is not None:
            return found
        path, _, line = _place(receiver).rpartition(":")
        described = {
            "name": self._shower.clean(name_of(receiver)),
            "place": f"{short_path(path)}:{line}" if path else None,
            "link": self._link(path, int(line)) if path else None,
        }
        if code is not None:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[code] = described
        return described

    def _error(self, error: BaseException | None, known: dict[int, dict[str, str]]) -> dict[str, str] | None:
        if error is None:
            return None
        # The error of a receiver is also that of its send: its traceback is shown once, with the receiver.
        if id(error) in known:
            return {**known[id(error)], "traceback": ""}
        text = trace_of(error) if len(known) < TRACEBACKS else ""
        shown = known[id(error)] = {
            "type": type(error).__qualname__,
            "message": self._shower.clean(message_of(error)),
            "traceback": self._shower.clean(text, TRACEBACK_TEXT),
        }
        return shown


def _fitting(shown: dict[str, Any]) -> str:
    """Write a send as JSON; what is too long loses the starts of tracebacks, and then receivers."""
    text = json.dumps(shown, separators=(",", ":"))
    for length, receivers in ((4_000, RECEIVERS), (1_000, 20), (0, 5)):
        if len(text) <= SEND_BYTES:
            break
        shown["more"] += len(shown["receivers"][receivers:])
        del shown["receivers"][receivers:]
        for error in [shown["error"], *(each["error"] for each in shown["receivers"])]:
            if error and len(error["traceback"]) > length:
                error["traceback"] = f"…{error['traceback'][-length:]}" if length else ""
        text = json.dumps(shown, separators=(",", ":"))
    return text


def editor_link(template: str | None) -> Callable[[str, int], str | None]:
    """Make links to places in files from a template with `{path}` and `{line}`."""

    def link(path: str, line: int) -> str | None:
        # <string> and the like are not files.
        if template is None or path.startswith("<"):
            return None
        return template.replace("{path}", quote(path)).replace("{line}", str(line))

    return link


def _place(receiver: object) -> str:
    try:
        return locate(receiver) or ""
    except Exception:  # noqa: BLE001  # a hostile __getattr__ costs its own place, nothing else
        return ""


def _percentile(ordered: list[float], part: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0
