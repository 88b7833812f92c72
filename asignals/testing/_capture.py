"""`Capture`: the sends of some signals as a list, and assertions about them that can fail."""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import itertools
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, TypeAlias, overload

import anyio

from asignals import Event, Signal, monitor
from asignals._core import Waker, origin_of, sender_key
from asignals.overview.values import Shower

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

AnySignal: TypeAlias = Signal[..., Any]
Where: TypeAlias = Callable[[Event], object]


class _Any:
    """Stands for a sender or an argument that may be anything."""

    def __repr__(self) -> str:
        return "ANY"


ANY: Final[Any] = _Any()
"""Matches everything: `sent.assert_sent(sender=ANY)`."""

entered: Final[list[Callable[[Capture], object]]] = []
"""Called with each capture that is entered: what the pytest plugin learns of captures by."""

_SHOWN: Final = 10  # sends in an assertion message
_show: Final = Shower(limit=120, runs_repr=True)
_numbers: Final = itertools.count(1)
# Numbers and not captures: contexts are copied into tasks that may live long, and would keep the events alive.
_open_here: Final[contextvars.ContextVar[frozenset[int]]] = contextvars.ContextVar(
    "asignals.testing.captures", default=frozenset()
)


@dataclass(frozen=True, slots=True, init=False)
class ModelEvent(Event):
    """One send of a model signal, and its phase: `"flush"`, `"commit"` or `"rollback"`."""

    phase: str

    def __init__(self, signal: AnySignal, sender: object, arguments: Mapping[str, Any], phase: str) -> None:
        """Make an event as the capture does."""
        Event.__init__(self, signal, sender, arguments)
        object.__setattr__(self, "phase", phase)

    def __hash__(self) -> int:
        return Event.__hash__(self)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, as of any event, and the phase."""
        return {**Event.as_dict(self), "phase": self.phase}


@dataclass(frozen=True, slots=True)
class _Filter:
    """Which sends are meant: what `capture` and the assertions are asked for."""

    sender: object = ANY
    signal: AnySignal | None = None
    arguments: Mapping[str, object] | None = None

    def matches(self, event: Event) -> bool:
        if self.signal is not None and event.signal is not self.signal:
            return False
        return hears(event.signal, self.sender, event.sender) and all(
            _has(event, name, value) for name, value in (self.arguments or {}).items()
        )

    def __str__(self) -> str:
        signal = [] if self.signal is None else [f"signal={self.signal.name}"]
        return ", ".join([*signal, _description(self.sender, self.arguments or {})])


class Capture(Sequence[Event]):
    """The sends of some signals, as a sequence of `Event`s in the order in which the sends began.

    A send is there before its first receiver runs, so also when a receiver fails, when the signal is muted, and when
    nobody hears it; a send that is refused (`TypeError`) is not. What a relay delivers is a send, too, each time that
    it is delivered. A model signal is sent once in each of its phases, and its events are `ModelEvent`s with that
    phase. A capture is no receiver: `connections`, `has_listeners` and results are what they are without it. May be
    read from any thread, and compared with lists. Made by `capture`.

    Raises:
        RuntimeError: read or asked before it was entered, for then nothing could have been captured; or entered twice.
        What `where` raised: by whatever is read or asked inside of the block, and at its end.
    """

    __hash__: ClassVar[None]  # type: ignore[assignment]  # it changes

    def __init__(
        self,
        signals: tuple[AnySignal, ...],
        sender: object = None,
        *,
        where: Where | None = None,
        phase: str | None = None,
        everywhere: bool = False,
    ) -> None:
        """Prepare; nothing is captured before `__enter__`."""
        self._signals = signals
        self._sender = sender
        self._where = where
        self._phase = phase
        self._everywhere = everywhere
        self._number = next(_numbers)
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._waiting: list[Waker] = []
        self._elsewhere = 0
        self._error: Exception | None = None
        self._state: Literal["new", "open", "closed"] = "new"
        self._undo: contextlib.ExitStack | None = None

    # -- reading ---------------------------------------------------------------------------------------------------

    def _seen(self) -> list[Event]:
        """What was captured so far; raises where that says nothing."""
        if self._state == "new":
            raise RuntimeError(f"the capture of {self._names()} was not entered: write `with capture(…) as sent:`")
        if self._error is not None:
            raise self._error
        return self._events

    def __len__(self) -> int:
        return len(self._seen())

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> list[Event]: ...
    def __getitem__(self, index: int | slice) -> Event | list[Event]:
        return self._seen()[index]

    def __iter__(self) -> Iterator[Event]:
        return iter(self._seen())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Capture):
            return self._seen() == other._seen()
        return self._seen() == other if isinstance(other, list) else NotImplemented

    @property
    def only(self) -> Event:
        """The one send there was; `AssertionError` with all of them where there were none or several."""
        events = self._seen()
        if len(events) != 1:
            msg = f"expected one send of {self._names()}, {self._what_was_sent()}"
            __tracebackhide__ = True  # pytest shows the line of the test
            raise AssertionError(msg)
        return events[0]

    @property
    def is_open(self) -> bool:
        """Whether its block has begun and not ended."""
        return self._state == "open"

    def describe(self) -> str:
        """Say what was sent as the assertion messages do: a line for each send, of the first ten, and how many more."""
        return f"{self._names()}: {self._what_was_sent()}"

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def wait(self, count: int = 1, *, signal: AnySignal | None = None, timeout: float = 5.0) -> list[Event]:  # noqa: ASYNC109  bounds the test, see below
        """Wait until `count` sends have begun, and return the first `count` of them; at once where they have already.

        With `signal`, which is one of those captured, its sends are counted. Sends in other threads and other event
        loops count too. `AssertionError`, with what was sent instead, after `timeout` seconds (`math.inf` to wait for
        ever), so that a test that waits for a send that never comes says so. `TypeError` or `ValueError` for a count
        that is not a positive number, which needs no waiting, and for a signal that is not captured.
        """
        self._seen()
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"count must be a number of sends, not {_show(count)}")
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}: there is nothing to wait for")
        wanted = _Filter(signal=self._captured(signal))
        with anyio.move_on_after(timeout):
            await self._until(count, wanted)
        found = self._matching(wanted)
        if len(found) < count:
            names = self._names() if wanted.signal is None else wanted.signal.name
            msg = f"expected {count} sends of {names} in {timeout:g} s, {self._what_was_sent()}"
            __tracebackhide__ = True  # pytest shows the line of the test
            raise AssertionError(msg)
        return found[:count]

    async def nth(self, number: int, signal: AnySignal | None = None, *, timeout: float = 5.0) -> Event:  # noqa: ASYNC109  as above
        """Wait for the send of this number, counted from 1, and return it; otherwise as `wait`."""
        return (await self.wait(number, signal=signal, timeout=timeout))[-1]

    # -- asserting -------------------------------------------------------------------------------------------------

    def assert_sent(self, /, sender: object = ANY, *, signal: AnySignal | None = None, **arguments: object) -> Event:
        """Return the first send by `sender` with at least these arguments; `AssertionError` where there is none.

        Senders are compared as `connect` compares them, arguments with `==`. `signal` is one of the captured signals.
        For model signals, `phase` is compared as an argument is. See `assert_not_sent` for what is refused.
        """
        wanted = self._asked(sender, signal, arguments)
        found = self._matching(wanted)
        if not found:
            msg = f"expected a send of {self._names()} with {wanted}, {self._what_was_sent()}"
            __tracebackhide__ = True  # pytest shows the line of the test
            raise AssertionError(msg)
        return found[0]

    def assert_not_sent(self, /, sender: object = ANY, *, signal: AnySignal | None = None, **arguments: object) -> None:
        """Raise `AssertionError` where there was a send by `sender` with at least these arguments.

        An assertion that could not fail is refused: `TypeError` for an argument that no captured signal declares, for a
        signal as the sender (name it: `signal=…`); `ValueError` for a signal, sender or phase that is not captured
        here. Warns (`UserWarning`) where it holds, but signals were sent in contexts that are in no capture.
        """
        wanted = self._asked(sender, signal, arguments)
        if self._matching(wanted):
            msg = f"expected no send of {self._names()} with {wanted}, {self._what_was_sent()}"
            __tracebackhide__ = True  # pytest shows the line of the test
            raise AssertionError(msg)
        if self._elsewhere:
            msg = (
                f"{self._elsewhere} sends of {self._names()} were made outside of this context and are not captured: "
                "capture(…, everywhere=True) sees them"
            )
            warnings.warn(msg, UserWarning, stacklevel=2)

    def assert_order(self, /, *signals: AnySignal) -> list[Event]:
        """Return the sends of these signals, which are exactly as many as named and in this order.

        `sent.assert_order(paid, paid, shipped)`: of these two signals there were three sends, of which the last was
        that of `shipped`. Sends of other captured signals may be between them. `AssertionError` otherwise, `TypeError`
        without signals, `ValueError` for one that is not captured here.
        """
        if not signals:
            raise TypeError("assert_order() needs signals: without any it could not fail")
        wanted = [self._captured(signal) for signal in checked("assert_order", signals)]
        found = [event for event in self._seen() if any(event.signal is signal for signal in wanted)]
        if [id(event.signal) for event in found] != list(map(id, wanted)):
            names = ", ".join(signal.name for signal in wanted if signal is not None)
            msg = f"expected the sends {names} in this order, {self._what_was_sent()}"
            __tracebackhide__ = True  # pytest shows the line of the test
            raise AssertionError(msg)
        return found

    def _asked(self, sender: object, signal: AnySignal | None, arguments: Mapping[str, object]) -> _Filter:
        """Check what an assertion asks for; raises where no send could be like it."""
        self._seen()
        if isinstance(sender, Signal):
            raise TypeError(
                f"a signal is no sender: write signal={sender.name} to ask for the sends of one captured signal"
            )
        chosen = self._captured(signal)
        signals = self._signals if chosen is None else (chosen,)
        _check_names(signals, arguments)
        if not any(self._may_be_from(each, sender) for each in signals):
            raise ValueError(f"only sends of {_show(self._sender)} are captured here, none of {_show(sender)}")
        if any(map(phases_of, signals)):
            self._check_phase(arguments.get("phase", ANY), signals)
        return _Filter(sender, chosen, arguments)

    def _may_be_from(self, signal: AnySignal, sender: object) -> bool:
        return hears(signal, sender, self._sender) or hears(signal, self._sender, sender) or sender is None

    def _check_phase(self, phase: object, signals: tuple[AnySignal, ...]) -> None:
        if phase is ANY:
            return
        check_phase(phase, signals)
        if self._phase not in {None, phase}:
            raise ValueError(f"only the phase {self._phase!r} is captured here, not {_show(phase)}")

    def _captured(self, signal: AnySignal | None) -> AnySignal | None:
        """The captured signal that is meant; raises for another one."""
        if signal is None:
            return None
        (signal,) = checked("this", (signal,))
        if any(signal is each for each in self._signals):
            return signal
        raise ValueError(f"signal {signal.name} is not captured here, only {self._names()}")

    def _matching(self, wanted: _Filter) -> list[Event]:
        return [event for event in list(self._seen()) if wanted.matches(event)]

    # -- capturing -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start to capture."""
        if self._state != "new":
            raise RuntimeError(f"the capture of {self._names()} was entered before; make another one")
        with contextlib.ExitStack() as stack:
            for signal in self._signals:
                report_all: Any = getattr(signal, "capturing", None)  # model signals: also those nobody listens to
                if report_all is not None:
                    stack.enter_context(report_all())
            stack.enter_context(monitor(around=self._around))
            self._undo = stack.pop_all()
        if not self._everywhere:
            _open_here.set(_open_here.get() | {self._number})
        self._state = "open"
        for each in tuple(entered):
            each(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        """Stop; what was captured stays. Raises what `where` raised, unless the block itself raises."""
        if self._undo is not None:
            self._undo.close()
        # Set, not reset with a token: a fixture may be left in another context than it was entered in.
        _open_here.set(_open_here.get() - {self._number})
        self._state = "closed"
        failed, self._error = self._error, None
        if failed is not None and error is None:
            raise failed
        return False

    def _around(self, send: Any, receiver: object) -> None:
        """Note a send; called before its receivers are."""
        if receiver is not None or not any(send.signal is signal for signal in self._signals):
            return
        try:
            event = _event_of(send)
            is_wanted = self._is_wanted(event)
        except Exception as error:  # noqa: BLE001  raised when the block ends: it is the test's mistake, not the sender's
            self._error = self._error or error
            return
        if is_wanted:
            self._note(event)

    def _is_wanted(self, event: Event) -> bool:
        if self._phase is not None and (not isinstance(event, ModelEvent) or event.phase != self._phase):
            return False
        if not hears(event.signal, self._sender, event.sender):
            return False
        return self._where is None or bool(self._where(event))

    def _note(self, event: Event) -> None:
        here = _open_here.get()
        if not self._everywhere and self._number not in here:
            if not here:  # else it belongs to another test that runs at the same time
                self._elsewhere += 1
            return
        with self._lock:
            self._events.append(event)
            waiting = list(self._waiting)
        for waker in waiting:
            waker.wake()

    async def _until(self, count: int, wanted: _Filter) -> None:
        while True:
            waker = Waker()
            with self._lock:
                if sum(map(wanted.matches, self._events)) >= count:
                    return
                self._waiting.append(waker)
            try:
                await waker.wait()
            finally:
                with self._lock:
                    self._waiting.remove(waker)

    # -- messages --------------------------------------------------------------------------------------------------

    def _names(self) -> str:
        return " or ".join(str(signal.name) for signal in self._signals)

    def _what_was_sent(self) -> str:
        events = list(self._events)
        lines = [f"there were {len(events)}:" if events else "there was none"]
        for number, event in enumerate(events[:_SHOWN], 1):
            name = f"{event.signal.name}: " if len(self._signals) > 1 else ""
            phase = f" ({event.phase})" if isinstance(event, ModelEvent) else ""
            lines.append(f"  {number}. {name}{_description(event.sender, event.arguments)}{phase}")
        if len(events) > _SHOWN:
            lines.append(f"  … and {len(events) - _SHOWN} more")
        if self._elsewhere:
            lines.append(f"  ({self._elsewhere} more outside this context: capture(…, everywhere=True) sees them)")
        return "\n".join(lines)

    def __repr__(self) -> str:
        if self._state == "new":
            return f"<asignals.testing.Capture of {self._names()}, not entered>"
        return repr(self._events)


def capture(
    *signals: AnySignal | Iterable[AnySignal],
    sender: object = None,
    where: Where | None = None,
    phase: str | None = None,
    everywhere: bool = False,
) -> Capture:
    """Make a list of the sends of one or several signals, for a `with` block.

    `sender` and `where` choose among them as in `Signal.stream`, and `phase` among those of model signals. Only the
    sends of the current context are captured: of this task, and of what takes a copy of its context inside the block,
    as tasks and worker threads (`to_thread`) do, so that tests that run at once do not see each other's.
    `everywhere=True` captures those of a bare `threading.Thread`, of a server elsewhere or of a task that was there
    before, too. Captures nest and overlap; each sees everything.

    Raises:
        TypeError: what is given is not a signal (a sender is given by name), or `where` is not a sync function.
        ValueError: none of the signals is sent in this phase.
        LookupError: no mapped class has the name that is given as the sender of a model signal.
    """
    given: list[Any] = []
    for each in signals:
        if isinstance(each, Iterable) and not isinstance(each, (Signal, str)):
            given.extend(each)
        else:
            given.append(each)
    if where is not None and (not callable(where) or inspect.iscoroutinefunction(where)):
        raise TypeError(f"where must be a sync function of an Event, not {_show(where)}")
    chosen = some("capture", tuple(given))
    if phase is not None:
        check_phase(phase, chosen)
    for signal in chosen:
        hears(signal, sender, None)  # raises for a sender that the signal cannot have
    return Capture(chosen, sender, where=where, phase=phase, everywhere=everywhere)


def checked(what: str, signals: tuple[AnySignal, ...]) -> tuple[AnySignal, ...]:
    """The signals themselves where views are given; raises `TypeError` for anything else."""
    for each in signals:
        if not isinstance(each, Signal):
            hint = "; write sender=… for a sender" if what == "capture" else ""
            raise TypeError(f"{what}() takes signals, not {_show(each)}{hint}")
    return tuple(map(origin_of, signals))


def some(what: str, signals: tuple[AnySignal, ...]) -> tuple[AnySignal, ...]:
    """The same; raises `TypeError` for none, too, as a block without any would do nothing."""
    if not signals:
        raise TypeError(f"{what}() needs a signal")
    return checked(what, signals)


def phases_of(signal: AnySignal) -> tuple[str, ...]:
    """The phases that a model signal is sent in; none for other signals."""
    return tuple(name for name in signal._registries() if name)


def check_phase(phase: object, signals: tuple[AnySignal, ...]) -> None:
    """Raise `ValueError` for a phase in which none of the signals is sent."""
    known = {name: None for signal in signals for name in phases_of(signal)}
    if phase not in known:
        names = ", ".join(signal.name for signal in signals)
        phases = ", ".join(map(repr, known)) or "no phase: only model signals have phases"
        raise ValueError(f"{names} cannot be sent with phase={_show(phase)}, but in {phases}")


def hears(signal: AnySignal, listened: object, sender: object) -> bool:
    """Whether who listens to the sends of `listened` hears one of `sender`; `None` and `ANY` stand for all."""
    if listened is None or listened is ANY or listened is sender:
        return True
    would_hear: Any = getattr(signal, "would_hear", None)  # model signals: of base classes and names, too
    if would_hear is not None:
        return bool(would_hear(listened, sender))
    return sender_key(listened) == sender_key(sender)


def _event_of(send: Any) -> Event:
    if not phases_of(send.signal):
        return Event(send.signal, send.sender, send.arguments)
    # What is sent by hand reaches the receivers of the flush.
    return ModelEvent(send.signal, send.sender, send.arguments, getattr(send, "phase", "flush"))


def _has(event: Event, name: str, value: object) -> bool:
    if name == "phase" and isinstance(event, ModelEvent):
        return value is ANY or event.phase == value
    return name in event.arguments and (value is ANY or bool(event.arguments[name] == value))


def _check_names(signals: tuple[AnySignal, ...], arguments: Mapping[str, object]) -> None:
    if any(signal.providing_args is None for signal in signals):
        return
    known = {name: None for signal in signals for name in signal.providing_args or ()}
    for name in arguments:
        if name not in known and not (name == "phase" and any(map(phases_of, signals))):
            names = " or ".join(signal.name for signal in signals)
            raise TypeError(
                f"{names} has no argument {name!r}, but {', '.join(known) or 'none'}: no send could be like this"
            )


def _description(sender: object, arguments: Mapping[str, object]) -> str:
    return ", ".join([f"sender={_show(sender)}", *(f"{name}={_show(value)}" for name, value in arguments.items())])
