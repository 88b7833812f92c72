"""`ModelSignal`: a signal whose senders are models, heard in the flush, after the commit or after the rollback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import ref

from asignals import Connection, Signal
from asignals._core import Registry, registry_of
from asignals.sqlalchemy._awaiting import Awaiting
from asignals.sqlalchemy._blocks import Blocks
from asignals.sqlalchemy._captured import PHASES, Hearing, Phase
from asignals.sqlalchemy._of import OfModel
from asignals.sqlalchemy._senders import find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from contextlib import AbstractContextManager

    from anyio import CapacityLimiter

    from asignals._core import Receiver

F = TypeVar("F", bound="Callable[..., Any]")
M = TypeVar("M")

_MISSING: Any = object()
_NOBODY = registry_of(Signal())  # of a phase that a signal does not have


class ModelSignal(Awaiting):
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
        return Blocks([Signal.muted(phase, *receivers, everywhere=everywhere) for phase in self._phases.values()])

    def of(self, model: type[M]) -> OfModel[M]:
        """The signal for one model, for receivers whose types are checked: `@post_save.of(User).connect`.

        Raises:
            TypeError: `model` is not a class.
        """
        if not isinstance(model, type):
            raise TypeError(f"signal {self.name!r}: of() takes a mapped class, or a base of some, not {model!r:.80}")
        return OfModel(self, model)
