"""Registering SQLAlchemy's own hooks on mapped classes, as few as the receivers need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.orm import Mapper

if TYPE_CHECKING:
    from collections.abc import Callable


class ClassHooks:
    """Some hooks, on each class that was asked for and on its subclasses, once.

    They stay when the receivers go: a hook that finds nobody to tell costs little, and finds out each time.
    """

    def __init__(self, *, raw: bool, **hooks: Callable[..., None]) -> None:
        self._hooks = hooks
        self._raw = raw
        self._known: WeakSet[type] = WeakSet()

    def __call__(self, sender: Any) -> None:
        """Have the hooks called for a class; `None` stands for all mapped classes."""
        target: type = Mapper if sender is None else sender
        if Mapper in self._known or any(base in self._known for base in target.__mro__):
            return
        for below in [known for known in self._known if target is Mapper or issubclass(known, target)]:
            self._remove(below)
        self._known.add(target)
        for name, hook in self._hooks.items():
            event.listen(target, name, hook, raw=self._raw, propagate=target is not Mapper)

    def _remove(self, target: type) -> None:
        self._known.discard(target)
        for name, hook in self._hooks.items():
            event.remove(target, name, hook)
