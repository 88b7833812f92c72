"""Signals that are sent for somebody only, in phases: what model signals and those of sessions have in common."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args
from weakref import WeakKeyDictionary

from asignals import Signal

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from asignals import Connection
    from asignals._core import Registry

Phase: TypeAlias = Literal["flush", "commit", "rollback"]
PHASES: tuple[Phase, ...] = get_args(Phase)


class Captured(Signal[..., Any]):
    """A signal that is sent for somebody only; a capture of a test is somebody, though it is no receiver."""

    names: tuple[str, ...]  # of the arguments
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

    def registry(self, phase: Phase) -> Registry:
        """Who is connected for a phase."""
        raise NotImplementedError

    def _on_connected(self) -> None:
        """Called when somebody begins to listen: signals whose events need hooks of SQLAlchemy register them here."""


class SessionSignal(Captured):
    """A signal whose sender is a session; a plain `Signal` in all else."""

    def __init__(self, arguments: Iterable[str], *, name: str, doc: str) -> None:
        self.names: tuple[str, ...] = tuple(arguments)
        super().__init__(self.names, name=f"asignals.sqlalchemy.{name}", doc=doc)

    def registry(self, phase: Phase) -> Registry:
        """Who is connected: there is one phase only."""
        del phase
        return self._registry


class Hearing:
    """Which models somebody listens to, muted or not; asked once for each, until anything changes."""

    def __init__(
        self, signal: Captured, at: int, everybody: Sequence[Connection], *, is_captured: bool = False
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
