"""Django's signals for async Python: typed, structured, durable."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from asignals._core.background import Background as Background
    from asignals._core.background import BackgroundStatistics as BackgroundStatistics
    from asignals._blame import raise_errors as raise_errors
    from asignals._connection import Connection as Connection
    from asignals._exceptions import BufferFull as BufferFull
    from asignals._exceptions import DeclarationError as DeclarationError
    from asignals._exceptions import InvalidReceiverError as InvalidReceiverError
    from asignals._exceptions import ReceiverLostWarning as ReceiverLostWarning
    from asignals._live import signals as signals
    from asignals._monitor import Report as Report
    from asignals._monitor import monitor as monitor
    from asignals._signal import Signal as Signal
    from asignals._signal import receiver as receiver
    from asignals._signal import signal as signal
    from asignals._core.stream import Event as Event
    from asignals._core.stream import Stream as Stream
    from asignals._core.stream import stream as stream

__all__ = [
    "Background",
    "BackgroundStatistics",
    "BufferFull",
    "Connection",
    "DeclarationError",
    "Event",
    "InvalidReceiverError",
    "ReceiverLostWarning",
    "Report",
    "Signal",
    "Stream",
    "monitor",
    "raise_errors",
    "receiver",
    "signal",
    "signals",
    "stream",
]

# Names are loaded when they are first used (PEP 562), as anyio does it: a program pays for what it has.
_HOMES = {
    "Background": "_core.background",
    "BackgroundStatistics": "_core.background",
    "BufferFull": "_exceptions",
    "Connection": "_connection",
    "DeclarationError": "_exceptions",
    "Event": "_core.stream",
    "InvalidReceiverError": "_exceptions",
    "ReceiverLostWarning": "_exceptions",
    "Report": "_monitor",
    "Signal": "_signal",
    "Stream": "_core.stream",
    "monitor": "_monitor",
    "raise_errors": "_blame",
    "receiver": "_signal",
    "signal": "_signal",
    "signals": "_live",
    "stream": "_core.stream",
}


def __getattr__(name: str) -> "Any":
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module  # noqa: PLC0415  with the first name, not with the package

    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})
