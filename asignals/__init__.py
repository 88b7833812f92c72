"""Django's signals for async Python: typed, structured, durable.

    @signal
    def order_paid(sender: str, *, number: int) -> None: ...

    @order_paid.connect
    async def ship(number): ...

    await order_paid.send("web", number=7)

- Declare: `signal` (of a function's signature), `Signal`, `signals` (all that are alive).
- Hear: `Signal.connect`, `receiver`, `Connection`; or read a `Signal.stream`, `stream`, `Stream`, `Event`.
- Send: `Signal.send`, `Signal.send_robust`, `raise_errors`; or by a `Background`, `BackgroundStatistics`.
- Watch: `monitor`, `Report`.
- Errors: `DeclarationError`, `InvalidReceiverError`, `BufferFull`; the warning `ReceiverLostWarning`.

Each has its own help: `help(asignals.Signal.connect)`. So have the parts around the core: `asignals.asgi` (requests),
`asignals.sqlalchemy` (model signals), `asignals.relay` (other processes), `asignals.testing`, `asignals.inspector`,
`asignals.opentelemetry`. The command `asignals --help`. The docs: https://github.com/asignals/asignals/blob/main/docs/index.md
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asignals._core import Background as Background
    from asignals._core import BackgroundStatistics as BackgroundStatistics
    from asignals._core import BufferFull as BufferFull
    from asignals._core import Connection as Connection
    from asignals._core import DeclarationError as DeclarationError
    from asignals._core import Event as Event
    from asignals._core import InvalidReceiverError as InvalidReceiverError
    from asignals._core import ReceiverLostWarning as ReceiverLostWarning
    from asignals._core import Report as Report
    from asignals._core import Signal as Signal
    from asignals._core import Stream as Stream
    from asignals._core import monitor as monitor
    from asignals._core import raise_errors as raise_errors
    from asignals._core import receiver as receiver
    from asignals._core import signal as signal
    from asignals._core import signals as signals
    from asignals._core import stream as stream

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

if not TYPE_CHECKING:
    # Names are loaded when one is first used (PEP 562), as anyio does it; type checkers refuse a misspelt one.

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from asignals import _core  # noqa: PLC0415  with the first name, not with the package

        globals().update({each: getattr(_core, each) for each in __all__})
        return globals()[name]


def __dir__() -> list[str]:
    from asignals.overview.page_help import is_asked_by_help  # noqa: PLC0415  only those who look need it

    if is_asked_by_help():
        return ["__doc__", "__name__", "__path__"]
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})
