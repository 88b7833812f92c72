"""The errors and warnings of the core, built from attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from asignals._signal import Signal


class InvalidReceiverError(ValueError):
    """A receiver, or an option given with it, does not fit the signal; nothing was connected.

    `signal` and `receiver` are what `connect` was called with, `reason` says what is wrong and what to do.
    """

    def __init__(self, signal: Signal[..., Any], receiver: Callable[..., Any], name: str, reason: str) -> None:
        super().__init__(f"cannot connect {name} to signal {signal.name!r}: {reason}")
        self.signal = signal
        self.receiver = receiver
        self.reason = reason


class DeclarationError(TypeError, ValueError):
    """A signal was declared with arguments, or a stub, that no send could be made of."""


class ReceiverLostWarning(UserWarning):
    """A weakly connected receiver vanished, or is about to, before any send could reach it.

    Nobody but the signal knew the receiver, and the signal holds it weakly. Connect with `weak=False`, or keep a
    reference for as long as the receiver is to be called.
    """


class BufferFull(Exception):  # noqa: N818  the name says what the buffer is, as `queue.Full` and `anyio.WouldBlock` do
    """A stream with `overflow="error"` had no room for an event; raised, or returned, to the sender.

    `signal` is the event's signal, `size` says how many events the stream keeps.
    """

    def __init__(self, signal: Signal[..., Any], size: int) -> None:
        super().__init__(f"a stream of signal {signal.name!r} holds {size} events already (overflow='error')")
        self.signal = signal
        self.size = size
