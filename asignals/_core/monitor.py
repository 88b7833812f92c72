"""Watching: a call for each send and for each receiver, which costs nothing while nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

from asignals._core.errors import Receiver, logger

if TYPE_CHECKING:
    from asignals._core.signal import Signal


class SendInfo:
    """One send under way, as monitors see it: the same object in all reports of the send.

    `arguments` is a read-only mapping. `parent` is the send whose receiver made this one, if that one was watched too.
    In its `with` block the send is under way, and is reported as a whole at the end.
    """

    __slots__ = ("__weakref__", "_entered", "_token", "arguments", "given", "parent", "sender", "signal")

    def __init__(self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any]) -> None:
        self.signal: Signal[..., Any] = signal
        self.sender: object = sender
        self.given: dict[str, Any] = arguments
        self.arguments: Mapping[str, Any] = MappingProxyType(arguments)
        self.parent: SendInfo | None = current_send.get()
        self._token: Any = None

    def __enter__(self) -> None:
        self._token = current_send.set(self)
        self._entered = self.enter(None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            current_send.reset(self._token)
        except ValueError:
            self._token = None  # the collector closes the send, in another context
        self.leave(self._entered, error)

    def enter(self, receiver: Receiver | None) -> Entered:
        """Begin to watch a receiver's call or, with `None`, the whole send; `leave` takes what this returns."""
        managers = []
        for watcher in tuple(surrounding):
            manager = watcher.surround(self, receiver)
            if manager is not None:
                managers.append((watcher, manager))
        return receiver, managers, time.perf_counter()

    def leave(self, entered: Entered, error: BaseException | None) -> None:
        """Report what has been watched."""
        receiver, managers, start = entered
        duration = time.perf_counter() - start
        facts = self.signal, self.sender, self.arguments, receiver, start, duration, error, self, self.parent
        try:
            for watcher in tuple(watchers):
                if watcher.callback is not None:
                    try:
                        watcher.callback(_new_report(Report, facts))
                    except Exception as raised:  # noqa: BLE001  logged
                        watcher.failed(raised)
        finally:
            for watcher, manager in managers and reversed(managers):
                watcher.leave(manager, error)


Entered: TypeAlias = "tuple[Receiver | None, Sequence[tuple[Watcher, AbstractContextManager[object]]], float]"
Around: TypeAlias = Callable[[SendInfo, Receiver | None], AbstractContextManager[object] | None]


class Report(NamedTuple):
    """What a monitor is given: one receiver's call or, with `None` for the receiver, a whole send.

    `start` and `duration` are seconds of `time.perf_counter()`. `error` is what the call or the send raised, a
    cancellation included; a robust send itself raises nothing of its receivers. `arguments` are read-only. `send` is
    one object for all reports of one send and differs between sends under way, so it groups them; it has `signal`,
    `sender`, `arguments` and `parent` too. `parent` is the `send` of the send whose receiver made this one, in its own
    task, in tasks that it started and in a `Background`; `None` for a send that no receiver made.
    """

    signal: Signal[..., Any]
    sender: object
    arguments: Mapping[str, Any]
    receiver: Receiver | None
    start: float
    duration: float
    error: BaseException | None
    send: SendInfo
    parent: SendInfo | None


_new_report: Callable[[type[Report], tuple[Any, ...]], Report] = tuple.__new__  # faster than its own


class Watcher:
    """One monitor; call it to stop watching, or leave its `with` block."""

    __slots__ = ("around", "callback")

    def __init__(self, callback: Callable[[Report], object] | None, around: Around | None) -> None:
        self.callback: Callable[[Report], object] | None = callback
        self.around: Around | None = around

    def __call__(self) -> None:
        """Stop watching; doing it again does nothing."""
        for each in (watchers, surrounding):
            with suppress(ValueError):
                each.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self()

    def failed(self, error: Exception) -> None:
        """Log what went wrong in this monitor and remove it, instead of disturbing the send."""
        self()
        traceback = type(error), error, error.__traceback__  # logging takes a falsy exception for none
        logger.error("asignals: a monitor failed and was removed", exc_info=traceback)

    def surround(self, send: SendInfo, receiver: Receiver | None) -> AbstractContextManager[object] | None:
        """Enter the context manager of a call, if there is one."""
        around: Any = self.around
        try:
            manager: AbstractContextManager[object] | None = around(send, receiver)
            if manager is not None:
                manager.__enter__()
        except Exception as raised:  # noqa: BLE001  logged
            self.failed(raised)
            return None
        return manager

    def leave(self, manager: AbstractContextManager[object], error: BaseException | None) -> None:
        """Leave the context manager of a call."""
        try:
            manager.__exit__(type(error) if error else None, error, getattr(error, "__traceback__", None))
        except Exception as raised:  # noqa: BLE001  logged
            if raised is not error:  # raising again what it was given is a way to leave, too
                self.failed(raised)


# Written code looks at these very lists, so they are changed in place and never replaced.
watchers: list[Watcher] = []
surrounding: list[Watcher] = []  # those of them with context managers to enter and leave in one task

# The send whose receiver runs in this context, while somebody watches.
current_send: ContextVar[SendInfo | None] = ContextVar("asignals_send", default=None)


def monitor(callback: Callable[[Report], object] | None = None, *, around: Around | None = None) -> Watcher:
    """Have `callback` called for every receiver's call and every send, of all signals, in this process.

    It gets one `Report`: those of the receivers as each ends, then that of the send, whose `receiver` is `None`. A
    send that nobody hears, or that is muted, is reported too; streams are no receivers and are not. Reports come in
    the sender's task (in a receiver's own, with a task group) and in any thread that sends, so a monitor should be
    quick and must not block. One that raises is logged to the logger `asignals` and removed; the send goes on. Sends
    that began before are not reported.

    Watching changes nothing for the receivers, with one exception: in a task group the awaitable that a sync receiver
    returns is awaited in the sender's task, instead of one of its own, while a monitor with `around` watches.

    Args:
        callback: Called with a `Report`.
        around: Called with the send (which has `signal`, `sender`, `arguments` and `parent`) and the receiver, or
            `None` for the send as a whole; may return a context manager that is entered before the call, in its task,
            and left after it, with its exception. What it returns on leaving is ignored: it cannot swallow an
            exception.

    Returns:
        What undoes it: call that, or use it in a `with` statement.

    Raises:
        TypeError: neither was given, or what was given cannot be called.
    """
    given = [each for each in (callback, around) if each is not None]
    if not given or not all(map(callable, given)):
        raise TypeError(
            f"monitor() takes a callable, as callback, around or both; not {callback!r:.80} and {around!r:.80}"
        )
    watcher = Watcher(callback, around)
    watchers.append(watcher)
    if around is not None:
        surrounding.append(watcher)
    return watcher


def is_watched() -> bool:
    """Whether a monitor watches sends now."""
    return bool(watchers)
