"""Which receivers were called and which never, and which sends reached nobody: counted, kept in a file, compared.

with monitor(Counts()) as ...            # while a program or its tests run
pytest --signals-report=counts.json      # for a test run
asignals list shop.main:app --counts counts.json
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Self

from asignals import signals
from asignals._core import Connection, locate, origin_of
from asignals.overview.values import name_of, short_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from asignals import Report, Signal


@dataclass
class SignalCounts:
    """What happened to one signal."""

    sends: int = 0
    unheard: int = 0
    """Sends for whose sender nobody was connected, no stream either."""
    calls: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """How often each receiver was called, by what `receiver_key` gives."""


class Counts:
    """A monitor that counts; pass it to `asignals.monitor`. Safe to use from any thread; keeps no object alive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_signal: dict[str, SignalCounts] = defaultdict(SignalCounts)
        self._heard: set[int] = set()  # sends under way that have called a receiver
        self._keys: dict[CodeType, str] = {}

    def __call__(self, report: Report) -> None:
        """Count a send, or a receiver's call."""
        name = str(report.signal.name)
        key = "" if report.receiver is None else self._key(report.receiver)
        with self._lock:
            counted = self._by_signal[name]
            if report.receiver is not None:
                counted.calls[key] += 1
                self._heard.add(id(report.send))
                return
            counted.sends += 1
            was_heard = id(report.send) in self._heard
            self._heard.discard(id(report.send))
        if not was_heard and not _is_heard(report.signal, report.sender):
            with self._lock:
                counted.unheard += 1

    def _key(self, receiver: object) -> str:
        """What `receiver_key` gives, remembered by the code that is called."""
        code = code_of(receiver)
        if code is None:
            return receiver_key(receiver)
        found = self._keys.get(code)
        if found is None:
            found = self._keys[code] = receiver_key(receiver)
        return found

    def figures(self, signal: Signal[..., Any]) -> tuple[int, int]:
        """How many sends of a signal reached nobody, and how many of its receivers were called."""
        with self._lock:
            counted = self._by_signal.get(str(signal.name))
            return (0, 0) if counted is None else (counted.unheard, len(counted.calls))

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """All of it in the types of JSON: by the names of signals, `sends`, `unheard` and `calls` of receivers."""
        with self._lock:
            found = {name: _as_dict(each) for name, each in self._by_signal.items()}
        for signal in signals():
            for connection in signal.connections:
                counted = found.setdefault(str(signal.name), _as_dict(SignalCounts()))
                if connection.receiver is not None:
                    counted["calls"].setdefault(receiver_key(connection.receiver), 0)
        return dict(sorted(found.items()))

    def write(self, path: Path) -> None:
        """Write it to a file, for `asignals list --counts`."""
        path.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")

    def add(self, other: Mapping[str, Mapping[str, Any]]) -> Self:
        """Add what another process has counted, as `as_dict` gave it."""
        with self._lock:
            for name, counted in other.items():
                own = self._by_signal[name]
                own.sends += counted["sends"]
                own.unheard += counted["unheard"]
                for key, calls in counted["calls"].items():
                    own.calls[key] += calls
        return self


def code_of(receiver: object) -> CodeType | None:
    """The code of a function or a method, by which what is known of it may be kept; None for anything else."""
    function = receiver.__func__ if type(receiver) is MethodType else receiver
    if type(function) is not FunctionType or function.__module__ is None:  # a label, as each topic of a relay has one
        return None
    return function.__code__


def receiver_key(receiver: object) -> str:
    """What a receiver is called in counts: its name and place, the same in every process."""
    path, _, line = (locate(receiver) or "").rpartition(":")
    return f"{name_of(receiver)} {short_path(path)}:{line}" if path else name_of(receiver)


def key_of(connection: Connection) -> str:
    """The same for a connection."""
    return "" if connection.receiver is None else receiver_key(connection.receiver)


def summary(counts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in lines which receivers were never called and which sends reached nobody; empty where there are none."""
    lines = []
    for name, counted in counts.items():
        lines += [f"never called: {key} (of {name})" for key, calls in counted["calls"].items() if not calls]
        if counted["unheard"]:
            lines.append(f"reached nobody: {counted['unheard']} of {counted['sends']} sends of {name}")
    return sorted(lines)


def called(counts: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """How many receivers were called, and how many were not."""
    calls = [number for counted in counts for number in counted["calls"].values()]
    return sum(map(bool, calls)), sum(not number for number in calls)


def _as_dict(counted: SignalCounts) -> dict[str, Any]:
    return {"sends": counted.sends, "unheard": counted.unheard, "calls": dict(counted.calls)}


def _is_heard(signal: Signal[..., Any], sender: object) -> bool:
    return any(registry.connections_for(sender) for registry in origin_of(signal)._registries().values())
