"""All signals there are, for tools that show or reset them; a send has no use for it."""

from __future__ import annotations

import os
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


def _renew_locks() -> None:
    """In a forked child, which has none of the threads that may have held one; registries mind what these left half."""
    global _lock  # noqa: PLW0603  a lock cannot be released for another thread
    _lock = threading.RLock()
    for signal in list(_signals.values()):
        for registry in signal._registries().values():
            registry.lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_locks)
