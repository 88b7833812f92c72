"""Watching: a call for each send and for each receiver, and no cost while nobody watches."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import TypeAlias

    from asignals._dispatch import Send
    from asignals._receivers import Receiver
    from asignals._signal import Signal

    Around: TypeAlias = Callable[[Send, Receiver | None], AbstractContextManager[object] | None]

_logger = logging.getLogger("asignals")


class Report(NamedTuple):
    """What a monitor is told: one receiver's call or, with `None` for the receiver, a whole send.

    `start` and `duration` are seconds of `time.perf_counter()`. `error` is what the call or the send raised, a
    cancellation included; a robust send itself raises nothing of its receivers. `arguments` are read-only. `send` is
    one object for all reports of one send and differs between sends under way, so it groups them; it has `signal`,
    `sender` and `arguments` too.
    """

    signal: Signal[..., Any]
    sender: object
    arguments: Mapping[str, Any]
    receiver: Receiver | None
    start: float
    duration: float
    error: BaseException | None
    send: Send


class Watcher:
    """One monitor; call it to stop watching, or leave its `with` block."""

    __slots__ = ("around", "callback")

    def __init__(self, callback: Callable[[Report], object] | None, around: Around | None) -> None:
        self.callback: Callable[[Report], object] | None = callback
        self.around: Around | None = around

    def __call__(self) -> None:
        """Stop watching; doing it again does nothing."""
        with suppress(ValueError):
            watchers.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self()

    def failed(self, error: Exception) -> None:
        """Log what went wrong in this monitor, and remove it, instead of troubling the send."""
        self()
        traceback = type(error), error, error.__traceback__  # logging would take a falsy exception for none
        _logger.error("asignals: a monitor failed and was removed", exc_info=traceback)


# The one list that generated code looks at, so it is changed in place and never replaced.
watchers: list[Watcher] = []


def monitor(callback: Callable[[Report], object] | None = None, *, around: Around | None = None) -> Watcher:
    """Have `callback` called for every receiver's call and every send, of all signals, in this process.

    It gets one `Report`: those of the receivers as each ends, then that of the send, whose `receiver` is `None`. A
    send that nobody hears, or that is muted, is reported too; streams are no receivers and are not. Reports come in
    the sender's task (in a receiver's own, with a task group) and in any thread that sends, so a monitor should be
    quick and must not block. One that raises is logged to the logger `asignals` and removed; the send does not
    notice. Sends that began before are not reported.

    Watching changes nothing for the receivers, with one exception: in a task group the awaitable that a sync receiver
    returns is awaited in the sender's task, instead of one of its own, while a monitor with `around` watches.

    Args:
        callback: Called with a `Report`.
        around: Called with the send (which has `signal`, `sender` and `arguments`) and the receiver, or `None` for
            the send as a whole; may return a context manager that is entered before the call, in its task, and left
            after it, with its exception. What it returns on leaving is ignored: it cannot swallow an exception.

    Returns:
        What undoes it: call that, or use it in a `with` statement.

    Raises:
        TypeError: neither was given, or what was given cannot be called.
    """
    given = [each for each in (callback, around) if each is not None]
    if not given or not all(map(callable, given)):
        msg = f"monitor() takes a callable, as callback, around or both; not {callback!r:.80} and {around!r:.80}"
        raise TypeError(msg)
    watcher = Watcher(callback, around)
    watchers.append(watcher)
    return watcher


class _Around:
    """A monitor's context manager, kept from doing harm."""

    __slots__ = ("_manager", "_watcher")

    def __init__(self, watcher: Watcher, manager: AbstractContextManager[object]) -> None:
        self._watcher = watcher
        self._manager = manager

    def __enter__(self) -> None:
        self._manager.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._manager.__exit__(kind, error, traceback)
        except Exception as raised:  # noqa: BLE001  logged
            if raised is not error:  # re-raising what it was given is a way to leave, too
                self._watcher.failed(raised)


class Observed:
    """Reports what happens in a block, which calls a receiver or, with `None`, all of them."""

    __slots__ = ("_arounds", "_receiver", "_send", "_start")

    def __init__(self, send: Send, receiver: Receiver | None) -> None:
        self._send = send
        self._receiver = receiver
        self._arounds: ExitStack | None = None

    def __enter__(self) -> Self:
        for watcher in tuple(watchers):
            if watcher.around is not None:
                self._surround(watcher, watcher.around)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        duration = time.perf_counter() - self._start
        send = self._send
        report = Report(send.signal, send.sender, send.arguments, self._receiver, self._start, duration, error, send)
        try:
            for watcher in tuple(watchers):
                if watcher.callback is not None:
                    try:
                        watcher.callback(report)
                    except Exception as raised:  # noqa: BLE001  logged
                        watcher.failed(raised)
        finally:
            if self._arounds is not None:
                self._arounds.__exit__(kind, error, traceback)

    def _surround(self, watcher: Watcher, around: Around) -> None:
        try:
            manager = around(self._send, self._receiver)
            if manager is not None:
                self._arounds = self._arounds or ExitStack()
                self._arounds.enter_context(_Around(watcher, manager))
        except Exception as raised:  # noqa: BLE001  logged
            watcher.failed(raised)


def is_surrounded() -> bool:
    """Whether a monitor has context managers to enter and leave in one task."""
    return any(watcher.around is not None for watcher in watchers)
