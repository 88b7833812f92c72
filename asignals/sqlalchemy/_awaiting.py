"""Signals whose senders can be named before they exist: a connection is made once a model of that name is mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import event
from sqlalchemy.orm import Mapper

from asignals._core import Options
from asignals.sqlalchemy._captured import Captured
from asignals.sqlalchemy._senders import Awaited, goes_by, hold

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from asignals._core import Receiver
    from asignals.sqlalchemy._captured import Phase


class Awaiting(Captured):
    """A signal that waits for models."""

    def __init__(self, arguments: tuple[str, ...], *, name: str, doc: str) -> None:
        super().__init__(arguments, name=name, doc=doc)
        self._awaited: list[Awaited] = []
        self._is_waiting = False

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

    def _connect(self, receiver: Any, sender: object, on: Phase, options: dict[str, Any]) -> Any:
        raise NotImplementedError
