"""Something that happened to a session's objects, and its sends in each phase."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asignals._core import Send

if TYPE_CHECKING:
    from asignals._core import Connections
    from asignals.sqlalchemy._captured import Captured, Phase


class Event:
    """Something that happened: what a send would be given."""

    __slots__ = ("arguments", "named_only", "row", "sender", "signal")

    def __init__(
        self,
        signal: Captured,
        sender: object,
        arguments: dict[str, Any],
        row: Any = None,
        *,
        named_only: bool = False,
    ) -> None:
        self.signal = signal
        self.sender = sender
        self.arguments = arguments
        self.row = row  # the `InstanceState` of the instance, where a flush reports it
        self.named_only = named_only

    def plan(self, phase: Phase) -> Connections:
        """Who is to be called for it in a phase, with muting applied."""
        return self.among(self.signal.registry(phase).plan_for(self.sender).connections)

    def among(self, plan: Connections) -> Connections:
        """Those receivers of its sender's plan who are to be called for it."""
        return tuple(each for each in plan if each.sender is not None) if self.named_only else plan

    @property
    def waits(self) -> bool:
        """Whether somebody is to be called for it after the end of the transaction."""
        return self.is_captured or bool(self.plan("commit") or self.plan("rollback"))

    @property
    def is_captured(self) -> bool:
        """Whether monitors are to see it in each phase, whoever is connected."""
        return self.signal.is_captured

    def report(self, phase: Phase) -> None:
        """Report it to monitors as a send that nobody hears."""
        if self.is_captured:
            with PhaseSend(self, phase):
                pass


class PhaseSend(Send):
    """One event as it is sent in one phase."""

    __slots__ = ("phase",)

    def __init__(self, event: Event, phase: Phase) -> None:
        super().__init__(event.signal, event.sender, event.arguments)
        self.phase: Phase = phase
