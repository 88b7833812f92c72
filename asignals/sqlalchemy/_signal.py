"""`ModelSignal`: a signal whose senders are models, heard in the flush, after the commit or after the rollback."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload
from weakref import WeakKeyDictionary, ref

from sqlalchemy import event
from sqlalchemy.orm import Mapper

from asignals import Connection, Signal
from asignals._core import Options, Registry, registry_of
from asignals.sqlalchemy._deliver import PHASES, Phase
from asignals.sqlalchemy._of import OfModel
from asignals.sqlalchemy._senders import Awaited, find_model, goes_by, hold

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
    from types import TracebackType

    from anyio import CapacityLimiter

    from asignals._core import Receiver

F = TypeVar("F", bound="Callable[..., Any]")
M = TypeVar("M")

_MISSING: Any = object()


class Hearing:
    """Which models somebody listens to, muted or not; asked once for each, until anything changes."""

    def __init__(
        self, signal: ModelSignal, at: int, everybody: Sequence[Connection], *, is_captured: bool = False
    ) -> None:
        self.at: int = at
        self.is_connected: bool = is_captured or bool(everybody)
        self.is_awaited: bool = any(each.is_async for each in everybody)
        self._signal = signal
        self._models: WeakKeyDictionary[type, bool] = WeakKeyDictionary()

    def __call__(self, model: type) -> bool:
        if not self.is_connected:
            return False
        known = self._models.get(model)
        if known is None:
            known = self._models[model] = self._signal.is_wanted(model)
        return known


class Captured(Signal[..., Any]):
    """A signal that is sent for somebody only; a capture of a test is somebody, though it is no receiver."""

    _captures: int = 0
    _capture_changes: int = 0  # how often a capture has begun or ended

    @property
    def is_captured(self) -> bool:
        """Whether events are reported to monitors in each phase, whoever is connected."""
        return self._captures > 0

    def is_wanted(self, sender: object) -> bool:
        """Whether events of a sender are for anybody: a receiver, a stream or a capture."""
        return self.is_captured or self.has_listeners(sender)

    @contextmanager
    def capturing(self) -> Generator[None]:
        """Report all events to monitors for the length of a block, once in each phase, whoever is connected."""
        self._captures += 1
        self._capture_changes += 1
        self._on_connected()
        try:
            yield
        finally:
            self._captures -= 1
            self._capture_changes += 1

    def _on_connected(self) -> None:
        """For signals whose events need hooks."""


class ModelSignal(Captured):
    """A signal that sessions send; a `Signal` in all else, `connect` excepted.

    Senders are mapped classes (or bases and mixins of them, mapped or not), whose subclasses are heard too unless
    `subclasses=False`; names of mapped classes; or `None` for all. Receivers are called one after the other, sync ones
    inside of the session's greenlet, async ones awaited in its task.

    Sending one by hand (`await post_save.send(User, instance=…, …)`) calls the receivers of the flush phase.
    """

    def __init__(
        self,
        arguments: Iterable[str],
        *,
        name: str,
        doc: str,
        phases: tuple[Phase, ...] = PHASES,
    ) -> None:
        self.names: tuple[str, ...] = tuple(arguments)
        super().__init__(self.names, name=f"asignals.sqlalchemy.{name}", doc=doc)
        self._awaited: list[Awaited] = []
        self._is_waiting = False
        self._hearing = Hearing(self, -1, [])
        self._phases: dict[Phase, ModelSignal] = {"flush": self}
        self._phases |= {phase: self._in_phase() for phase in phases if phase != "flush"}
        self._all_registries = [phase._registry for phase in self._phases.values()]

    def _in_phase(self) -> ModelSignal:
        """The same signal with other receivers."""
        other: ModelSignal = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._origin = self
        other._registry = Registry(ref(self), self.providing_args)
        other._phases = {"flush": other}
        other._all_registries = [other._registry]
        other._set_mode(None, None)
        return other

    def registry(self, phase: Phase) -> Registry:
        """Who is connected for a phase."""
        return self._phases[phase]._registry if phase in self._phases else _NOBODY

    def hearing(self) -> Hearing:
        """Who listens now, in any phase."""
        at = self._capture_changes
        for registry in self._all_registries:
            at += registry.changes  # each only grows
        if self._hearing.at != at:
            everybody = [each for registry in self._all_registries for each in registry.all_connections()]
            self._hearing = Hearing(self, at, everybody, is_captured=self.is_captured)
        return self._hearing

    @property
    def is_connected(self) -> bool:
        """Whether anybody is connected for any sender, in any phase, or captures what is sent."""
        return self.hearing().is_connected

    def would_hear(self, listened: object, sender: object) -> bool:
        """Whether a connection made for `listened`, a class or a name, hears the events of `sender`.

        Raises `LookupError` for a name that no mapped class has.
        """
        above, below = self._known(listened), self._known(sender)
        if isinstance(above, type) and isinstance(below, type):
            return issubclass(below, above)
        return above is None or above is below

    def _known(self, sender: object) -> object:
        resolved = self._resolve(sender)
        if isinstance(resolved, str):
            raise LookupError(f"signal {self.name!r}: no model goes by the name {resolved!r} yet")  # noqa: TRY004  a name is a good sender
        return resolved

    # -- connecting ------------------------------------------------------------------------------------------------

    @overload
    def connect(
        self,
        receiver: F,
        sender: object = None,
        weak: bool = True,  # noqa: FBT001, FBT002  Django's order of parameters
        dispatch_uid: Hashable | None = None,
        *,
        on: Phase = "flush",
        priority: float = 0,
        subclasses: bool = True,
        in_thread: bool | CapacityLimiter = False,
        timeout: float | None = None,
        once: bool = False,
        replace: bool = False,
    ) -> F: ...

    @overload
    def connect(
        self,
        *,
        sender: object = None,
        weak: bool = True,
        dispatch_uid: Hashable | None = None,
        on: Phase = "flush",
        priority: float = 0,
        subclasses: bool = True,
        in_thread: bool | CapacityLimiter = False,
        timeout: float | None = None,
        once: bool = False,
        replace: bool = False,
    ) -> Callable[[F], F]: ...

    def connect(  # noqa: PLR0913  what Signal.connect takes, and the phase
        self,
        receiver: Receiver = _MISSING,
        sender: object = None,
        weak: bool = True,  # noqa: FBT001, FBT002  Django's order of parameters
        dispatch_uid: Hashable | None = None,
        *,
        on: Phase = "flush",
        priority: float = 0,
        subclasses: bool = True,
        in_thread: bool | CapacityLimiter = False,
        timeout: float | None = None,
        once: bool = False,
        replace: bool = False,
    ) -> Any:
        """Have a receiver called; as `Signal.connect`, with these differences.

        A receiver that is connected for several phases, or as different senders, is as many connections.

        Args:
            receiver: What to call; without one, a decorator is returned.
            sender: A mapped class, a base class or a mixin of mapped classes, or a mapped class's name, alone or as
                `"module.Model"`: it is connected as soon as a class of that name is mapped, and no error if none ever
                is (see `awaited`). `None` hears all.
            weak: As for `Signal.connect`.
            dispatch_uid: As for `Signal.connect`.
            on: `"flush"`, inside of the flush, where an exception makes the flush fail; `"commit"` or `"rollback"`,
                once the outermost transaction has ended with the event in it or without, where exceptions are logged
                to the logger `asignals` and change nothing.
            priority: As for `Signal.connect`, among the receivers of one event and phase.
            subclasses: Whether to hear subclasses of the sender.
            in_thread: As for `Signal.connect`; the session waits meanwhile. Nothing can be loaded from a thread.
            timeout: As for `Signal.connect`.
            once: As for `Signal.connect`.
            replace: As for `Signal.connect`.

        Raises:
            TypeError: as `Signal.connect`; the sender is neither a class nor a name.
            ValueError: the signal is not sent in this phase; several models go by the name.
            InvalidReceiverError: as `Signal.connect`.
        """
        self._phase(on)
        options: dict[str, Any] = {
            "weak": weak,
            "dispatch_uid": dispatch_uid,
            "priority": priority,
            "subclasses": subclasses,
            "in_thread": in_thread,
            "timeout": timeout,
            "once": once,
            "replace": replace,
        }
        if receiver is _MISSING:
            return lambda receiver: self._connect(self._callable(receiver), sender, on, options)
        return self._connect(receiver, sender, on, options)

    def _connect(self, receiver: F, sender: object, on: Phase, options: dict[str, Any]) -> F:
        target = self._phase(on)
        resolved = self._resolve(sender)
        if isinstance(resolved, str):
            self._await(receiver, resolved, on, options)
            return receiver
        Signal.connect(target, receiver, resolved, **self._fitting(resolved, options))
        self._on_connected()
        return receiver

    def _phase(self, on: Phase) -> ModelSignal:
        if on not in self._phases:
            listing = ", ".join(map(repr, self._phases))
            raise ValueError(f"signal {self.name!r} is not sent on {on!r}, only on {listing}")
        return self._phases[on]

    def _fitting(self, sender: object, options: dict[str, Any]) -> dict[str, Any]:
        """The options as the core takes them: it refuses `subclasses` where there can be none."""
        return options if isinstance(sender, type) else {**options, "subclasses": False}

    def _resolve(self, sender: object) -> object:
        """The sender as the signal sends it, or its name while there is no such model."""
        if isinstance(sender, str):
            return find_model(sender) or sender
        if sender is None or isinstance(sender, type):
            return sender
        raise TypeError(
            f"signal {self.name!r} is sent by models: the sender must be a class or its name, not {sender!r}"
        )

    # -- senders to come -------------------------------------------------------------------------------------------

    @property
    def awaited(self) -> tuple[str, ...]:
        """The names given as senders that no mapped class has had yet."""
        return tuple(dict.fromkeys(entry.name for entry in self._awaited if entry.receiver() is not None))

    def keep_awaited(self) -> Callable[[], None]:
        """Remember what is to be connected once a model is there; the result puts that back."""
        before = list(self._awaited)

        def put_back() -> None:
            self._awaited[:] = before

        return put_back

    def _await(self, receiver: Receiver, name: str, on: Phase, options: dict[str, Any]) -> None:
        core = Options(**{key: value for key, value in options.items() if key in Options._fields})
        self._examine(receiver, object, options["dispatch_uid"], core)
        self._forget_awaited(receiver, name, options["dispatch_uid"], on)
        self._awaited.append(Awaited(name, hold(receiver, weak=bool(options["weak"])), options, on))
        if not self._is_waiting:
            self._is_waiting = True
            event.listen(Mapper, "after_mapper_constructed", self._on_mapped)

    def _forget_awaited(self, receiver: Receiver | None, name: object, uid: Hashable | None, on: Phase | None) -> bool:
        def is_meant(entry: Awaited) -> bool:
            known = entry.options["dispatch_uid"]
            same = known == uid if uid is not None else known is None and entry.receiver() == receiver
            return entry.name == name and on in (None, entry.phase) and same

        before = len(self._awaited)
        self._awaited[:] = [entry for entry in self._awaited if not is_meant(entry)]
        return len(self._awaited) < before

    def _on_mapped(self, mapper: Mapper[Any], model: type) -> None:
        del mapper
        due = [entry for entry in self._awaited if self._names(entry.name, model)]
        self._awaited[:] = [entry for entry in self._awaited if entry not in due]
        for entry in due:
            receiver = entry.receiver()
            if receiver is not None:
                self._connect(receiver, self._named(entry.name, model), cast("Phase", entry.phase), entry.options)

    def _names(self, name: str, model: type) -> bool:
        return goes_by(model, name)

    def _named(self, name: str, model: type) -> object:
        """The sender that a name means, now that its model is there."""
        del name
        return model

    # -- the rest of a signal, over all phases ---------------------------------------------------------------------

    def disconnect(
        self,
        receiver: Receiver | None = None,
        sender: object = None,
        dispatch_uid: Hashable | None = None,
        *,
        on: Phase | None = None,
    ) -> bool:
        """End a connection, of one phase or of all; as `Signal.disconnect` otherwise."""
        resolved = self._resolve(sender)
        phases = list(self._phases.values()) if on is None else [self._phase(on)]
        waited = isinstance(sender, str) and self._forget_awaited(receiver, sender, dispatch_uid, on)
        ended = [Signal.disconnect(phase, receiver, resolved, dispatch_uid) for phase in phases]  # of each phase
        return any(ended) or waited

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The live connections of all phases, those of the flush first."""
        links = [link for registry in self._registries().values() for link in registry.all_connections()]
        return tuple(link for link in links if link.is_receiver)

    def _registries(self) -> dict[str, Registry]:
        return {name: phase._registry for name, phase in self._phases.items()}

    def has_listeners(self, sender: object = None) -> bool:
        """Whether an event of this sender would reach anybody in any phase, muted or not."""
        return any(Signal.has_listeners(phase, sender) for phase in self._phases.values())

    def receivers_for(self, sender: object) -> list[Receiver]:
        """The receivers that an event of this sender would reach in any phase, muted or not."""
        return [found for phase in self._phases.values() for found in Signal.receivers_for(phase, sender)]

    def connected(  # noqa: PLR0913  as for connect
        self,
        receiver: F,
        sender: object = None,
        weak: bool = True,  # noqa: FBT001, FBT002  as for connect
        dispatch_uid: Hashable | None = None,
        *,
        on: Phase = "flush",
        priority: float = 0,
        subclasses: bool = True,
        in_thread: bool | CapacityLimiter = False,
        timeout: float | None = None,
        once: bool = False,
        replace: bool = False,
    ) -> AbstractContextManager[F]:
        """Connect for the length of a `with` block; as `Signal.connected`, for one phase. Not a decorator.

        Raises `LookupError` for a name that no mapped class has.
        """
        resolved = self._known(sender)
        target = self._phase(on)
        chosen = self._fitting(
            resolved,
            {
                "priority": priority,
                "subclasses": subclasses,
                "in_thread": in_thread,
                "timeout": timeout,
                "once": once,
                "replace": replace,
            },
        )
        return Signal.connected(target, receiver, resolved, weak=weak, dispatch_uid=dispatch_uid, **chosen)

    def muted(self, *receivers: Receiver, everywhere: bool = False) -> AbstractContextManager[None]:
        """Mute for the length of a `with` block; as `Signal.muted`, for all phases. Not a decorator.

        What is flushed inside of the block is not delivered after the commit either.
        """
        return _All([Signal.muted(phase, *receivers, everywhere=everywhere) for phase in self._phases.values()])

    def of(self, model: type[M]) -> OfModel[M]:
        """The signal for one model, for receivers whose types are checked: `@post_save.of(User).connect`.

        Raises:
            TypeError: `model` is not a class.
        """
        if not isinstance(model, type):
            raise TypeError(f"signal {self.name!r}: of() takes a mapped class, or a base of some, not {model!r:.80}")
        return OfModel(self, model)


class _All(AbstractContextManager[None]):
    """Several blocks at once; no decorator, which on an `async def` would end before the body runs."""

    def __init__(self, blocks: list[AbstractContextManager[None]]) -> None:
        self._blocks = blocks
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for block in self._blocks:
            self._stack.enter_context(block)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def __call__(self, function: object) -> None:
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"this is no decorator: write the `with` block inside of {name}, or decorate with asignals.testing.muted"
        )


class SessionSignal(Captured):
    """A signal whose sender is a session; a plain `Signal` in all else."""

    def __init__(self, arguments: Iterable[str], *, name: str, doc: str) -> None:
        self.names: tuple[str, ...] = tuple(arguments)
        super().__init__(self.names, name=f"asignals.sqlalchemy.{name}", doc=doc)

    def registry(self, phase: Phase) -> Registry:
        """Who is connected: there is one phase only."""
        del phase
        return self._registry


_NOBODY = registry_of(Signal())  # of a phase that a signal does not have
