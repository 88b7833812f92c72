"""Notes what leaves no trace once a program is loaded: receivers that are lost, and those that are not added."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, Self
from weakref import ref

from asignals import Connection, ReceiverLostWarning, Signal
from asignals._core import identify, is_a, sender_key
from asignals.overview.values import Shower, name_of, short_path

if TYPE_CHECKING:
    from types import TracebackType


_show: Final = Shower(limit=80)


@dataclass(frozen=True)
class Lost:
    """A `ReceiverLostWarning`, or a function that another one of its name has replaced, and where it was connected."""

    message: str
    file: str
    line: int
    advice: str = "connect it with weak=False, or keep a reference to it"


@dataclass(frozen=True)
class Refused:
    """A receiver that was not added, as another one has its `dispatch_uid`.

    Texts alone: what was connected must die here as it dies in the program.
    """

    signal: str
    receiver: str
    taken_by: str
    uid: str
    file: str
    line: int


class Watch:
    """While it is entered, warnings about lost receivers, and receivers that are not added, are noted.

    It replaces `warnings.warn_explicit` and `Signal.connect`, so it is for a process that does nothing else.
    """

    def __init__(self) -> None:
        self.lost: list[Lost] = []
        self.refused: list[Refused] = []
        self._functions: list[ref[FunctionType]] = []
        self._warn = warnings.warn_explicit
        self._connect: Any = Signal.connect

    def __enter__(self) -> Self:
        """Begin to watch."""
        watch = self

        def warn_explicit(message: Any, category: Any, filename: str, lineno: int, *args: Any, **kwargs: Any) -> None:
            if category is ReceiverLostWarning or is_a(message, ReceiverLostWarning):
                watch.lost.append(Lost(str(message), short_path(filename), lineno))
                return
            watch._warn(message, category, filename, lineno, *args, **kwargs)

        def connect(signal: Signal[..., Any], *args: Any, **options: Any) -> Any:
            given = watch._connect(signal, *args, **options)
            # Without a receiver it gives a decorator, which calls `connect` again.
            if args or "receiver" in options:
                watch._note(signal, *args, **options)
                watch._await_death(signal, given)
            return given

        warnings.warn_explicit = warn_explicit
        Signal.connect = connect  # type: ignore[method-assign, assignment]  # the same call
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Put everything back."""
        warnings.warn_explicit = self._warn
        Signal.connect = self._connect  # type: ignore[method-assign]  # as above

    def _note(
        self,
        signal: Signal[..., Any],
        receiver: Any,
        sender: object = None,
        weak: object = True,  # noqa: FBT002  Django's order of parameters
        dispatch_uid: Any = None,
        **_: Any,
    ) -> None:
        del weak
        if dispatch_uid is None:
            return
        same = [each for each in signal.connections if sender_key(each.sender) == sender_key(sender)]
        holder = next((each.receiver for each in same if each.dispatch_uid == dispatch_uid), None)
        if holder is not None and identify(holder) != identify(receiver):
            names = name_of(receiver), name_of(holder)
            self.refused.append(Refused(str(signal.name), *names, _show(dispatch_uid), *_caller()))

    def _await_death(self, signal: Signal[..., Any], receiver: object) -> None:
        """Note the death of a function of a module: a name that is defined twice lets go of the first."""
        if isinstance(receiver, FunctionType) and "<" not in receiver.__code__.co_qualname:
            found = [each for each in signal.connections if each.receiver is receiver]
            self._functions += [ref(receiver, partial(self._replaced, ref(signal), each)) for each in found]

    def _replaced(self, signal: ref[Signal[..., Any]], connection: Connection, _: object) -> None:
        sent = signal()
        if connection.is_live and sent is not None:
            path, _, line = connection.connected_at.rpartition(":")
            message = f"{connection.describe()} of signal {sent.name!r} is gone: its name was defined again, or deleted"
            self.lost.append(Lost(message, short_path(path), int(line), "give it its own name"))


_MACHINERY: Final = ("asignals.overview", "asignals.sqlalchemy", "asignals.relay", "asignals._core", "<asignals")


def _caller() -> tuple[str, int]:
    frame = sys._getframe(2)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith(_MACHINERY):
        frame = frame.f_back
    return short_path(frame.f_code.co_filename), frame.f_lineno
