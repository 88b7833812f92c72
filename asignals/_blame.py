"""What becomes of a receiver's exception: a note, a log line, a place among the results."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asignals._receivers import Receiver
    from asignals._registry import Link
    from asignals._signal import Signal

R = TypeVar("R")

_logger = logging.getLogger("asignals")


def blame(error: Exception, link: Link, signal: Signal[..., Any]) -> None:
    """Note on an exception which receiver of which signal raised it."""
    note = f"raised by {link.describe()}, a receiver of signal {signal.name!r}"
    # Users' exceptions may be frozen or have a broken __notes__; the error itself must come through. One that is
    # raised again and again collects no heap of equal notes.
    with suppress(Exception):
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def failed(error: Exception, link: Link, signal: Signal[..., Any]) -> tuple[Receiver, Exception]:
    """Log an error that a robust send hands back; returns its place in the results."""
    traceback = type(error), error, error.__traceback__  # logging would take a falsy exception for none
    with suppress(Exception):  # a user's exception or logging filter may break it; the other receivers must run
        _logger.error("%s failed as a receiver of signal %r", link.describe(), signal.name, exc_info=traceback)
    # The first frame is the sender's loop, whose results will hold the error: a reference cycle.
    if error.__traceback__ is not None:
        error.with_traceback(error.__traceback__.tb_next)  # an assignment would fail for frozen exceptions
    return link.target(), error


def raise_errors(results: Iterable[tuple[Receiver, R | Exception]]) -> list[tuple[Receiver, R]]:
    """Raise the errors among the results of `send_robust` as one `ExceptionGroup`; without any, return the results.

    So every receiver runs, and the caller still cannot miss a failure. The group holds the exceptions in order of
    the results. A receiver that *returns* an exception counts as failed, as the results do not tell the difference.
    """
    pairs = list(results)
    errors = [response for _, response in pairs if isinstance(response, Exception)]
    if errors:
        msg = f"{len(errors)} of {len(pairs)} receivers failed"
        raise ExceptionGroup(msg, errors)
    return cast("list[tuple[Receiver, R]]", pairs)
