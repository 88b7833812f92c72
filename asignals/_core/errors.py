"""The exceptions and warnings of the core, and what happens to an exception that a receiver raises."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import anyio

if TYPE_CHECKING:
    from asignals._core.signal import Signal

R = TypeVar("R")
Receiver: TypeAlias = Callable[..., Any]

logger = logging.getLogger("asignals")


class DocumentedError(Exception):
    """An error with a note: the place in the reference that has its cause and its cure."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.add_note(f"See docs/reference/messages.md#{type(self).__name__.lower()}")


class InvalidReceiverError(DocumentedError, ValueError):
    """A receiver, or an option given with it, does not fit the signal; nothing was connected.

    `signal` and `receiver` are what `connect` was called with, `reason` says what is wrong and what to write instead.
    """

    def __init__(self, signal: Signal[..., Any], receiver: Receiver, name: str, reason: str) -> None:
        super().__init__(f"cannot connect {name} to signal {signal.name!r}: {reason}")
        self.signal = signal
        self.receiver = receiver
        self.reason = reason


class DeclarationError(DocumentedError, TypeError, ValueError):
    """A signal was declared with argument names, or with a stub, that no send could have."""


class ReceiverLostWarning(UserWarning):
    """A weakly connected receiver (or the sender it listens to) was garbage-collected before any send reached it.

    Nothing but the signal referred to it, and the signal refers to it weakly. Connect with `weak=False`, or keep a
    reference to the receiver for as long as it is to be called.
    """


class BufferFull(DocumentedError):  # noqa: N818  the name says what the buffer is, as `queue.Full` and `anyio.WouldBlock` do
    """A stream with `overflow="error"` had no capacity for an event; raised, or returned, to the sender.

    `signal` is the event's signal, `size` is the number of events that the stream keeps.
    """

    def __init__(self, signal: Signal[..., Any], size: int) -> None:
        super().__init__(f"a stream of signal {signal.name!r} keeps {size} events already (overflow='error')")
        self.signal = signal
        self.size = size


def annotate(error: BaseException, connection: Any, signal: Signal[..., Any], _: object) -> None:
    """Add a note to an `Exception`: which connection's receiver, of which signal, raised it."""
    if not isinstance(error, Exception):
        return
    note = f"raised by {connection.describe()}, a receiver of signal {signal.name!r}"
    # A user's exception may be frozen or have broken notes. The same exception may be raised many times.
    with suppress(Exception):
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def is_receivers_error(error: BaseException) -> bool:
    """Whether a robust send returns this exception as the receiver's, instead of raising it.

    True for each `Exception`, and for a `CancelledError` that nobody caused: neither the task nor a scope around it is
    cancelled. A receiver that awaits a cancelled future raises one.
    """
    if isinstance(error, Exception):
        return True
    asyncio = sys.modules.get("asyncio")
    if asyncio is None or not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs: the collector closes the coroutine
        return False
    return task is not None and not task.cancelling() and anyio.current_effective_deadline() != float("-inf")


def catch(
    error: BaseException, connection: Any, signal: Signal[..., Any], sender: object
) -> tuple[Any, Exception] | None:
    """What a robust send does with an exception: gives the pair for the results, or `None` if it is to be raised."""
    if is_receivers_error(error):
        return log_failure(error, connection, signal, sender)
    annotate(error, connection, signal, sender)
    return None


def log_failure(
    error: BaseException, connection: Any, signal: Signal[..., Any], sender: object
) -> tuple[Any, Exception]:
    """Log an exception that a robust send returns; gives the pair for the results.

    The record has `signal`, `receiver`, `sender_type` and `location`, as strings. A `CancelledError` that nobody caused
    is returned as a `RuntimeError` with that cause, so that no caller takes it for a cancellation.
    """
    text = connection.describe()
    if not isinstance(error, Exception):
        cause, error = error, RuntimeError(f"{text} raised {type(error).__name__}, although nothing cancelled it")
        error.__cause__, error.__traceback__ = cause, cause.__traceback__
    name, _, where = text.partition(" (")
    facts = {"signal": signal.name, "receiver": name, "location": where.rstrip(")"), "sender_type": _type_name(sender)}
    traceback = type(error), error, error.__traceback__  # logging takes a falsy exception for none
    with suppress(Exception):  # an exception or a logging filter may be broken; the other receivers must run
        logger.error("%s failed as a receiver of signal %r", text, signal.name, exc_info=traceback, extra=facts)
    # The first frame is that of the sender's loop, whose results will hold the error: a reference cycle.
    if error.__traceback__ is not None:
        error.with_traceback(error.__traceback__.tb_next)  # an assignment fails for frozen exceptions
    return connection.target(), error


def _type_name(thing: object) -> str:
    kind = type(thing)  # asked past its metaclass, which may be anything
    return f"{type.__getattribute__(kind, '__module__')}.{type.__getattribute__(kind, '__qualname__')}"


def raise_errors(results: Iterable[tuple[Receiver, R | Exception]]) -> list[tuple[Receiver, R]]:
    """Raise the exceptions among the results of `send_robust` as one `ExceptionGroup`; without any, return the results.

    So every receiver runs, and the caller cannot miss a failure. The group has the exceptions in the order of the
    results. A receiver that *returns* an exception counts as failed: the results do not show the difference.
    """
    pairs = list(results)
    errors = [response for _, response in pairs if isinstance(response, Exception)]
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(pairs)} receivers failed", errors)
    return cast("list[tuple[Receiver, R]]", pairs)
