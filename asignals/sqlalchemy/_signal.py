"""`ModelSignal`: a signal whose senders are models, heard in the flush, after the commit or after the rollback."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload
from weakref import ref

from sqlalchemy import event
from sqlalchemy.orm import Mapper

from asignals import Connection, Signal
from asignals._core import Options
from asignals._core import Registry
from asignals.sqlalchemy._deliver import PHASES, Phase
from asignals.sqlalchemy._senders import Awaited, find_model, goes_by, hold

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Iterable

    from asignals._core import Receiver
    from asignals._core import ConnectOptions

F = TypeVar("F", bound="Callable[..., Any]")


class ModelSignal(Signal[..., Any]):
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
        listen: Callable[[Any], None],
        phases: tuple[Phase, ...] = PHASES,
    ) -> None:
        super().__init__(arguments, name=f"asignals.sqlalchemy.{name}", doc=doc)
        self._listen = listen
        self._awaited: list[Awaited] = []
        self._is_waiting = False
        self._phases: dict[Phase, ModelSignal] = {"flush": self}
        self._phases |= {phase: self._in_phase() for phase in phases if phase != "flush"}

    def _in_phase(self) -> ModelSignal:
        """The same signal with other receivers."""
        other: ModelSignal = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._origin = self
        other._registry = Registry(ref(self), self.providing_args)
        other._phases = {"flush": other}
        other._set_mode(None, None)
        return other

    def registry(self, phase: Phase) -> Registry:
        """Who is connected for a phase."""
        return self._phases[phase]._registry if phase in self._phases else _NOBODY

    @property
    def is_connected(self) -> bool:
        """Whether anybody is connected for any sender, in any phase."""
        return any(phase._registry.all_connections() for phase in self._phases.values())

    def is_heard(self, sender: object, *phases: Phase) -> bool:
        """Whether an event of this sender would reach anybody in one of these phases, muting minded."""
        return any(self.registry(phase).plan_for(sender).connections for phase in phases)

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
        **options: Unpack[ConnectOptions],
    ) -> F: ...

    @overload
    def connect(
        self,
        receiver: None = None,
        sender: object = None,
        weak: bool = True,  # noqa: FBT001, FBT002  Django's order of parameters
        dispatch_uid: Hashable | None = None,
        *,
        on: Phase = "flush",
        **options: Unpack[ConnectOptions],
    ) -> Callable[[F], F]: ...

    def connect(  # noqa: PLR0913  what Signal.connect takes, and the phase
        self,
        receiver: Receiver | None = None,
        sender: object = None,
        weak: bool = True,  # noqa: FBT001, FBT002  Django's order of parameters
        dispatch_uid: Hashable | None = None,
        *,
        on: Phase = "flush",
        priority: float = 0,
        subclasses: bool = True,
        in_thread: bool = False,
        timeout: float | None = None,
        once: bool = False,
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
        }
        if receiver is None:
            return lambda receiver: self._connect(self._callable(receiver), sender, on, options)
        return self._connect(receiver, sender, on, options)

    def _connect(self, receiver: F, sender: object, on: Phase, options: dict[str, Any]) -> F:
        target = self._phase(on)
        resolved = self._resolve(sender)
        if isinstance(resolved, str):
            self._await(receiver, resolved, on, options)
            return receiver
        Signal.connect(target, receiver, resolved, **self._fitting(resolved, options))
        self._listen(resolved)
        return receiver

    def _phase(self, on: Phase) -> ModelSignal:
        if on not in self._phases:
            listing = ", ".join(map(repr, self._phases))
            msg = f"signal {self.name!r} is not sent on {on!r}, only on {listing}"
            raise ValueError(msg)
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
        msg = f"signal {self.name!r} is sent by models: the sender must be a class or its name, not {sender!r}"
        raise TypeError(msg)

    # -- senders to come -------------------------------------------------------------------------------------------

    @property
    def awaited(self) -> tuple[str, ...]:
        """The names given as senders that no mapped class has had yet."""
        return tuple(dict.fromkeys(entry.name for entry in self._awaited if entry.receiver() is not None))

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
        return tuple(link for link in links if isinstance(link, Connection))

    def _registries(self) -> dict[str, Registry]:
        return {name: phase._registry for name, phase in self._phases.items()}

    def has_listeners(self, sender: object = None) -> bool:
        """Whether an event of this sender would reach anybody in any phase, muted or not."""
        return any(Signal.has_listeners(phase, sender) for phase in self._phases.values())

    def receivers_for(self, sender: object) -> list[Receiver]:
        """The receivers that an event of this sender would reach in any phase, muted or not."""
        return [found for phase in self._phases.values() for found in Signal.receivers_for(phase, sender)]

    @contextmanager
    def connected(
        self,
        receiver: F,
        sender: object = None,
        weak: bool = True,  # noqa: FBT001, FBT002  as for connect
        dispatch_uid: Hashable | None = None,
        *,
        on: Phase = "flush",
        **options: Any,
    ) -> Generator[F]:
        """Connect for the length of a `with` block; as `Signal.connected`, for one phase.

        Raises `LookupError` for a name that no mapped class has.
        """
        resolved = self._resolve(sender)
        if isinstance(resolved, str):
            msg = f"signal {self.name!r}: no model goes by the name {resolved!r} yet"
            raise LookupError(msg)  # noqa: TRY004  a name is a good sender
        target = self._phase(on)
        chosen = self._fitting(resolved, {"subclasses": True, **options})
        with Signal.connected(target, receiver, resolved, weak, dispatch_uid, **chosen) as given:
            yield given

    @contextmanager
    def muted(self, *receivers: Receiver, everywhere: bool = False) -> Generator[None]:
        """Mute for the length of a `with` block; as `Signal.muted`, for all phases.

        What is flushed inside of the block is not delivered after the commit either.
        """
        with ExitStack() as stack:
            for phase in self._phases.values():
                stack.enter_context(Signal.muted(phase, *receivers, everywhere=everywhere))
            yield


class SessionSignal(Signal[..., Any]):
    """A signal whose sender is a session; a plain `Signal` in all else."""

    def __init__(self, arguments: Iterable[str], *, name: str, doc: str) -> None:
        super().__init__(arguments, name=f"asignals.sqlalchemy.{name}", doc=doc)

    def registry(self, phase: Phase) -> Registry:
        """Who is connected: there is one phase only."""
        del phase
        return self._registry


_NOBODY = Registry(lambda: None, None)
