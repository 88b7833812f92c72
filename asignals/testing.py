"""Test code that sends: see what was sent, keep receivers out of it, and leave no connection behind.

    with capture(order_paid) as sent:
        await checkout(basket)
    assert sent.only.amount == 42

Everything here is undone at the end of its block, also when the block raises, nests, and is safe in concurrent tasks
and in threads. The fixtures of `asignals.pytest_plugin` are the same for pytest.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import anyio

from asignals import Connection, Event, Signal, monitor
from asignals._core import sender_key
from asignals._show import Shower
from asignals._core import Waker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from asignals._core import Registry, Snapshot

__all__ = ["ANY", "Capture", "capture", "muted", "restored", "swap_receivers"]

AnySignal = Signal[..., Any]


class _Any:
    """Stands for a sender or an argument that may be anything."""

    def __repr__(self) -> str:
        return "ANY"


ANY: Final[Any] = _Any()
"""Matches everything: `sent.assert_sent(sender=ANY)`."""

_SHOWN: Final = 10  # sends in an assertion message
_show: Final = Shower(limit=120, secrets=())
_numbers: Final = itertools.count(1)
# Numbers and not captures: contexts are copied into tasks that may live long, and would keep the events alive.
_open_here: Final[contextvars.ContextVar[frozenset[int]]] = contextvars.ContextVar(
    "asignals.testing.captures", default=frozenset()
)


class Capture(list[Event]):
    """The sends of some signals, as a list of `Event`s in the order in which the sends began.

    A send is in the list before its first receiver runs, so also when a receiver fails, when the signal is muted, and
    when nobody hears it; a send that is refused (`TypeError`) is not. A capture is no receiver: `connections`,
    `has_listeners` and results are what they are without it. May be read from any thread. Made by `capture`.
    """

    def __init__(
        self,
        signals: tuple[AnySignal, ...],
        sender: object = None,
        *,
        where: Callable[[Event], object] | None = None,
        everywhere: bool = False,
    ) -> None:
        """Prepare; nothing is captured before `__enter__`."""
        super().__init__()
        self._signals = signals
        self._sender = sender
        self._where = where
        self._everywhere = everywhere
        self._number = next(_numbers)
        self._lock = threading.Lock()
        self._waiting: list[Waker] = []
        self._elsewhere = 0
        self._error: Exception | None = None
        self._undo: contextlib.AbstractContextManager[object] | None = None

    @property
    def only(self) -> Event:
        """The one send there was; `AssertionError` with all of them where there were none or several."""
        if len(self) != 1:
            msg = f"expected one send of {self._names()}, {self._what_was_sent()}"
            raise AssertionError(msg)
        return self[0]

    async def wait(self, count: int = 1, *, timeout: float = 5.0) -> list[Event]:  # noqa: ASYNC109  # bounds the test, see below
        """Wait until `count` sends have begun, and return the first `count` of them; at once where they have already.

        Sends in other threads and other event loops count too. `AssertionError`, with what was sent instead, after
        `timeout` seconds (`math.inf` to wait for ever), so that a test that waits for a send that never comes says
        so.
        """
        with anyio.move_on_after(timeout):
            await self._until(count)
        if len(self) < count:
            msg = f"expected {count} sends of {self._names()} in {timeout:g} s, {self._what_was_sent()}"
            raise AssertionError(msg)
        return self[:count]

    def assert_sent(self, /, sender: object = ANY, **arguments: object) -> Event:
        """Return the first send by `sender` with at least these arguments; `AssertionError` where there is none.

        The sender is compared as `connect` compares it, arguments with `==`.
        """
        for event in list(self):
            if _matches(event, sender, arguments):
                return event
        wanted = _description(sender, arguments)
        msg = f"expected a send of {self._names()} with {wanted}, {self._what_was_sent()}"
        raise AssertionError(msg)

    def assert_not_sent(self, /, sender: object = ANY, **arguments: object) -> None:
        """Raise `AssertionError` where there was a send by `sender` with at least these arguments."""
        found = [event for event in list(self) if _matches(event, sender, arguments)]
        if found:
            wanted = _description(sender, arguments)
            msg = f"expected no send of {self._names()} with {wanted}, {self._what_was_sent()}"
            raise AssertionError(msg)

    def describe(self) -> str:
        """Say what was sent as the assertion messages do: a line for each send, of the first ten, and how many more."""
        return f"{self._names()}: {self._what_was_sent()}"

    def __enter__(self) -> Self:
        """Start to capture."""
        if not self._everywhere:
            _open_here.set(_open_here.get() | {self._number})
        self._undo = monitor(around=self._around)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        """Stop; what was captured stays. Raises what `where` raised, unless the block itself raised."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.__exit__(None, None, None)
        # Set, not reset with a token: a fixture may be left in another context than it was entered in.
        _open_here.set(_open_here.get() - {self._number})
        failed, self._error = self._error, None
        if failed is not None and error is None:
            raise failed
        return False

    def _around(self, send: Any, receiver: object) -> None:
        if receiver is not None or not any(send.signal is signal for signal in self._signals):
            return
        event = Event(send.signal, send.sender, send.arguments)
        if not _hears(self._sender, event.sender) or not self._is_wanted(event):
            return
        if not self._everywhere and self._number not in _open_here.get():
            self._elsewhere += 1
            return
        with self._lock:
            self.append(event)
            waiting = list(self._waiting)
        for waker in waiting:
            waker.wake()

    def _is_wanted(self, event: Event) -> bool:
        try:
            return self._where is None or bool(self._where(event))
        except Exception as error:  # noqa: BLE001  raised when the block ends: it is the test's mistake, not the sender's
            self._error = self._error or error
            return False

    async def _until(self, count: int) -> None:
        while True:
            waker = Waker()
            with self._lock:
                if len(self) >= count:
                    return
                self._waiting.append(waker)
            try:
                await waker.wait()
            finally:
                with self._lock:
                    self._waiting.remove(waker)

    def _names(self) -> str:
        return " or ".join(str(signal.name) for signal in self._signals)

    def _what_was_sent(self) -> str:
        events = list(self)
        lines = [f"there were {len(events)}:" if events else "there was none"]
        for number, event in enumerate(events[:_SHOWN], 1):
            name = f"{event.signal.name}: " if len(self._signals) > 1 else ""
            lines.append(f"  {number}. {name}{_description(event.sender, event.arguments)}")
        if len(events) > _SHOWN:
            lines.append(f"  … and {len(events) - _SHOWN} more")
        if self._elsewhere:
            lines.append(f"  ({self._elsewhere} more outside this context: capture(…, everywhere=True) sees them)")
        return "\n".join(lines)


def capture(
    signal: AnySignal | Iterable[AnySignal],
    sender: object = None,
    *,
    where: Callable[[Event], object] | None = None,
    everywhere: bool = False,
) -> Capture:
    """Make a list of the sends of one or several signals, for a `with` block.

    `sender` and `where` choose among them as in `Signal.stream`. Only the sends of the current context are captured: of
    this task, and of what takes a copy of its context inside the block, as tasks and worker threads (`to_thread`) do,
    so that tests that run at once do not see each other's. `everywhere=True` captures those of a bare
    `threading.Thread`, of a server elsewhere or of a task that was there before, too. Captures nest and overlap; each
    sees everything. `TypeError` for what is not a signal, or a `where` that cannot be called.
    """
    is_one = isinstance(signal, Signal) or not isinstance(signal, Iterable)
    given: Any = (signal,) if is_one else signal
    signals = _checked("capture", tuple(given))
    if not signals:
        msg = "capture() needs a signal"
        raise TypeError(msg)
    if where is not None and not callable(where):
        msg = f"where must be a function of an Event, not {_show(where)}"
        raise TypeError(msg)
    signals = tuple(each._origin or each for each in signals)
    return Capture(signals, sender, where=where, everywhere=everywhere)


@contextlib.contextmanager
def muted(*signals: AnySignal, everywhere: bool = False) -> Iterator[None]:
    """Let sends of these signals reach nobody inside the block: `Signal.muted` for several at once.

    As there, only the current context is muted unless `everywhere` is true. A capture sees muted sends. `TypeError` for
    what is not a signal.
    """
    with contextlib.ExitStack() as stack:
        for signal in _checked("muted", signals):
            stack.enter_context(signal.muted(everywhere=everywhere))
        yield


@contextlib.contextmanager
def swap_receivers(signal: AnySignal, *receivers: Callable[..., object], sender: object = None) -> Iterator[None]:
    """Let only these receivers hear the signal inside the block, then restore exactly what was connected before.

    They are connected strongly, in this order, for `sender` (to a model signal: for its flush). What the block itself
    connects or disconnects is undone as well. Seen by everyone, not only by this context: do not use it in tests that
    run at once in one process.
    `ValueError` or `TypeError` for a receiver that `connect` refuses, or what is not a signal, and then nothing has
    changed. Streams go on listening.
    """
    _checked("swap_receivers", (signal,))
    for each in receivers:
        signal._callable(each)
    with restored(signal):
        for registry in signal._registries().values():
            for connection in _connections(registry):
                registry.remove(connection)
        for each in receivers:
            signal.connect(each, sender, weak=False)
        yield


@contextlib.contextmanager
def restored(*signals: AnySignal) -> Iterator[None]:
    """Put the connections of these signals back at the end of the block, exactly as they were at its start.

    What was connected inside is disconnected; what was disconnected, used up (`once=True`) or connected again with
    other options is as before, at its place. Receivers that were connected at the start are kept alive by the block.
    Seen by everyone. `TypeError` for what is not a signal.
    """
    _checked("restored", signals)
    before = [(registry, _snapshots(registry)) for signal in signals for registry in signal._registries().values()]
    try:
        yield
    finally:
        for registry, snapshots in before:
            _restore(registry, snapshots)


def _checked(what: str, signals: tuple[AnySignal, ...]) -> tuple[AnySignal, ...]:
    for each in signals:
        if not isinstance(each, Signal):
            msg = f"{what}() takes signals, not {_show(each)}"
            raise TypeError(msg)
    return signals


def _connections(registry: Registry) -> list[Connection]:
    return [each for each in registry.all_connections() if each.is_receiver]


def _snapshots(registry: Registry) -> list[Snapshot]:
    with registry.lock:
        found = [(each.receiver, each.sender, each.dispatch_uid) for each in _connections(registry)]
        return [registry.snapshot(receiver, sender, uid) for receiver, sender, uid in found if receiver is not None]


def _restore(registry: Registry, before: list[Snapshot]) -> None:
    kept = {id(snapshot.connection) for snapshot in before}
    with registry.lock:
        for connection in _connections(registry):
            if id(connection) not in kept:
                registry.remove(connection)
        for snapshot in before:
            registry.restore(snapshot)


def _hears(sender: object, sent_by: object) -> bool:
    return sender is None or sender is ANY or sender is sent_by or sender_key(sender) == sender_key(sent_by)


def _matches(event: Event, sender: object, arguments: Mapping[str, object]) -> bool:
    sent = event.arguments
    return _hears(sender, event.sender) and all(
        name in sent and (value is ANY or sent[name] == value) for name, value in arguments.items()
    )


def _description(sender: object, arguments: Mapping[str, object]) -> str:
    return ", ".join([f"sender={_show(sender)}", *(f"{name}={_show(value)}" for name, value in arguments.items())])
