"""All signals there are, for tools that show or reset them; a send has no use for it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from asignals._signal import Signal

_lock = threading.RLock()
_signals: WeakValueDictionary[int, Signal[..., Any]] = WeakValueDictionary()  # by id: a subclass may compare equal


def remember(signal: Signal[..., Any]) -> None:
    """Count a signal among the live ones, for as long as somebody else refers to it."""
    with _lock:
        _signals[id(signal)] = signal


def signals() -> tuple[Signal[..., Any], ...]:
    """All signals that are alive in this process, by name; without their views."""
    with _lock:
        found = list(_signals.values())
    return tuple(sorted(found, key=lambda signal: signal.name))
