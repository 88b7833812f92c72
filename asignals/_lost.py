"""Warnings about receivers that nobody but the signal holds, and the signal only weakly."""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import warnings
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, cast

from asignals._exceptions import ReceiverLostWarning
from asignals._refs import is_a, name_of

if TYPE_CHECKING:
    from types import CodeType, FrameType
    from weakref import ref

    from asignals._connection import Connection
    from asignals._receivers import Receiver
    from asignals._signal import Signal

_ADVICE = "Connect it with weak=False, or keep a reference to it."


def _count(argument: object) -> int:
    return sys.getrefcount(argument)


def _temporary_count() -> int:
    """What `sys.getrefcount` tells a function of an argument that nothing but the call holds; 0 where it cannot tell.

    Interpreters that borrow references for calls count the same for a variable's object.
    """
    kept = object()
    temporary = _count(object())
    return temporary if _count(kept) > temporary else 0


_TEMPORARY = _temporary_count()


def is_fleeting(receiver: Receiver, count: int) -> bool:
    """Whether a receiver will be gone when `connect` returns, given what `sys.getrefcount` told `connect` of it.

    Functions made by `def` are left out: as a decorator, `connect` sees them before they get their name.
    """
    if count > _TEMPORARY or (is_a(receiver, FunctionType) and receiver.__name__ != "<lambda>"):
        return False
    if is_a(receiver, MethodType):
        # Two are the method's reference and getrefcount's own.
        return sys.getrefcount(receiver.__self__) <= 2 or sys.getrefcount(receiver.__func__) <= 2  # noqa: PLR2004
    return True


def may_get_lost(receiver: Receiver) -> bool:
    """Whether the death of this receiver would surprise: of a nested function, a lambda or a partial.

    Objects that connect their methods and die later are what weak references are for.
    """
    if is_a(receiver, FunctionType):
        return "<locals>" in receiver.__qualname__ or receiver.__name__ == "<lambda>"
    return is_a(receiver, functools.partial)


def warn_fleeting(signal: Signal[..., Any], receiver: Receiver, place: tuple[CodeType, int]) -> None:
    """Warn at the line that connects it; raises if the user turned warnings into errors."""
    _warn(
        f"{name_of(receiver)} will never be called by signal {signal.name!r}: nothing else holds it, so it dies "
        f"as soon as it is connected. {_ADVICE}",
        place,
    )


class LossReporter:
    """Tells of connections of one signal that died before any send could reach them, once for each line.

    Called from weak-reference callbacks, where the signal may be about to die too: then nothing is lost. Where that
    cannot be told, the registry asks again when the signal is next used.
    """

    __slots__ = ("_is_unsure", "_signal", "_told")

    def __init__(self, signal: ref[Signal[..., Any]]) -> None:
        self._signal = signal
        self._told: set[tuple[str, int]] = set()
        self._is_unsure = False

    def __call__(self, connection: Connection, *, certainly: bool) -> None:
        code, line = connection.place
        if connection.reached or connection.has_lost_its_sender or (code.co_filename, line) in self._told:
            return
        if sys.is_finalizing() or not (certainly or self._is_signal_held()):
            return
        self._is_unsure = False
        connection.reached = True  # once is enough
        self._told.add((code.co_filename, line))
        signal = self._signal()
        if signal is not None:
            text = f"a receiver of signal {signal.name!r} died before any send could reach it. {_ADVICE}"
            del signal  # a warning filter may raise, and its traceback would keep the signal
            try:
                _warn(text, connection.place)
            except ReceiverLostWarning as error:  # made an error by a filter; no caller asked for it, as in a finalizer
                sys.unraisablehook(cast("sys.UnraisableHookArgs", _Unraisable(error)))

    def _is_signal_held(self) -> bool:
        # The question costs a walk through the heap, so it is put once to a signal that is probably dying.
        if not self._is_unsure:
            self._is_unsure = not is_held(self._signal)
        return not self._is_unsure


class _Unraisable:
    """What `sys.unraisablehook` is given."""

    err_msg = "Warning turned into an error"
    object = None

    def __init__(self, error: BaseException) -> None:
        self.exc_type = type(error)
        self.exc_value = error
        self.exc_traceback = error.__traceback__


def _warn(text: str, place: tuple[CodeType, int]) -> None:
    code, line = place
    warnings.warn_explicit(text, ReceiverLostWarning, code.co_filename, line)


_LEVELS = 6  # of holders of holders: signal, namespace, instance, namespace, list, module
_MANY = 10_000  # objects that refer to one thing are not about to die together


def is_held(target: ref[Any]) -> bool:
    """Whether it is certain that something that stays refers to `target`, by way of whatever holds it.

    When a frame ends its variables die one by one, and their contents with them. What is still to die has holders, too,
    but at the end of their chain is neither a frame that a thread runs nor a module.
    """
    roots: set[int] = {id(vars(module)) for module in list(sys.modules.values()) if is_a(module, ModuleType)}
    own: FrameType | None = sys._getframe()
    frame: FrameType | None
    try:
        for frame in sys._current_frames().values():
            while frame is not None:
                if frame is not own:
                    roots.update((id(frame), id(frame.f_globals), *_ids_of_variables(frame)))
                frame = frame.f_back  # noqa: PLW2901  up the stack
        return _leads_to(roots, [target()], skip={id(own)})
    finally:
        del own, frame  # one of them is this frame, which would keep itself and the target


def _leads_to(roots: set[int], things: list[Any], skip: set[int]) -> bool:
    for _ in range(_LEVELS):
        if any(id(thing) in roots for thing in things) or len(things) > _MANY:
            return True
        skip.update(map(id, things))
        skip.add(id(things))
        things = [holder for holder in gc.get_referrers(*things) if id(holder) not in skip]
    return False


def _ids_of_variables(frame: FrameType) -> list[int]:
    variables = frame.f_locals
    ids = [id(value) for value in list(variables.values())]
    if sys.version_info < (3, 13):
        # Before PEP 667 this was a copy, which the frame keeps: it would keep the variables' objects alive. It is
        # emptied, unless somebody else has it from locals(), or a tracing function may be about to write it back.
        # Three references are the frame's, ours and getrefcount's.
        is_copy = frame.f_code.co_flags & inspect.CO_OPTIMIZED
        if is_copy and sys.gettrace() is None and sys.getrefcount(variables) <= 3:  # noqa: PLR2004
            variables.clear()
    return ids


def caller(kind: type[Signal[..., Any]]) -> FrameType:
    """The frame that is being run outside of this package, the `with` blocks it makes, and a subclass's methods."""
    frame = sys._getframe(1)
    while (_is_own(frame) or _is_of_method(frame.f_code, kind)) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_of_method(code: CodeType, kind: type) -> bool:
    found = [base.__dict__.get(code.co_name) for base in kind.__mro__]
    return any(is_a(method, FunctionType) and method.__code__ is code for method in found)


_OWN = ("asignals", "contextlib")


def _is_own(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__", "")
    return isinstance(module, str) and (module in _OWN or module.startswith(("asignals.", "asignals ")))
