"""`ModelSignal.of(User)`: connecting receivers whose `instance` is known to be a `User`, to type checkers too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    import anyio

    from asignals import Signal
    from asignals.sqlalchemy._captured import Phase

M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)
X = TypeVar("X")
X_co = TypeVar("X_co", covariant=True)


class InstanceReceiver(Protocol[M_contra, X_co]):
    """A receiver of a model's events: it names what it wants, and takes the rest by `**named: Any`."""

    def __call__(  # noqa: PLR0913  what model signals send
        self,
        *,
        signal: Any,
        sender: type[M_contra],
        instance: M_contra,
        created: bool,
        update_fields: frozenset[str] | None,
        changes: Mapping[str, tuple[Any, Any]],
        session: Any,
    ) -> X_co:
        """Receive one event."""
        ...


class OfModel(Generic[M]):
    """A model signal for one model: what `ModelSignal.of` gives."""

    def __init__(self, signal: Signal[..., Any], model: type[M]) -> None:
        """Connect for `model`, as the sender, by `connect`."""
        self.signal: Any = signal
        self.model = model

    @overload
    def connect(
        self,
        receiver: InstanceReceiver[M, X],
        *,
        on: Phase = "flush",
        weak: bool = True,
        dispatch_uid: Hashable | None = None,
        priority: float = 0,
        subclasses: bool = True,
        in_thread: bool | anyio.CapacityLimiter = False,
        timeout: float | None = None,
        once: bool = False,
    ) -> Callable[..., X]: ...

    @overload
    def connect(
        self,
        *,
        on: Phase = "flush",
        weak: bool = True,
        dispatch_uid: Hashable | None = None,
        priority: float = 0,
        subclasses: bool = True,
        in_thread: bool | anyio.CapacityLimiter = False,
        timeout: float | None = None,
        once: bool = False,
    ) -> Callable[[InstanceReceiver[M, X]], Callable[..., X]]: ...

    def connect(self, *receiver: Any, **options: Any) -> Any:
        """Connect a receiver with the model as the sender; otherwise as `ModelSignal.connect`.

        Type checkers hold the types of what the receiver names to what the signal sends: `instance` is one of the
        model. Types cannot say "names some of these", so to them it takes `**named: Any` beside what it names.
        """
        return self.signal.connect(*receiver, sender=self.model, **options)

    def disconnect(
        self,
        receiver: Callable[..., Any] | None = None,
        dispatch_uid: Hashable | None = None,
        *,
        on: Phase | None = None,
    ) -> bool:
        """End a connection for the model; otherwise as `ModelSignal.disconnect`."""
        return bool(self.signal.disconnect(receiver, self.model, dispatch_uid, on=on))
