"""What a test does to signals for a block: mute them, swap or replace receivers, put connections back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from asignals._core import Registry, identify, key_of, name_of
from asignals.testing._block import Block
from asignals.testing._capture import AnySignal, checked, some

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from asignals import Connection


def muted(*signals: AnySignal, everywhere: bool = False) -> Block[None]:
    """Let sends of these signals reach nobody inside a block: `Signal.muted` for several at once.

    As there, only the current context is muted unless `everywhere` is true. A capture sees muted sends. Decorates
    functions, fixtures and test classes, too: see `Block`. `TypeError` for what is not a signal.
    """
    signals = some("muted", signals)
    return Block("muted", lambda: _muted(signals, everywhere), lambda: _muted(signals, True))  # noqa: FBT003


@contextlib.contextmanager
def _muted(signals: tuple[AnySignal, ...], everywhere: bool) -> Iterator[None]:  # noqa: FBT001  its caller names it
    with contextlib.ExitStack() as stack:
        for signal in signals:
            stack.enter_context(signal.muted(everywhere=everywhere))
        yield


def swap_receivers(signal: AnySignal, *receivers: Callable[..., object], sender: object = None) -> Block[None]:
    """Let only these receivers hear the signal inside a block, then restore exactly what was connected before.

    They are connected strongly, in this order, for `sender` (to a model signal: for its flush). What the block itself
    connects or disconnects is undone as well. Seen by everyone, not only by this context: do not use it in tests that
    run at once in one process. Decorates functions, fixtures and test classes, too: see `Block`.

    `ValueError` or `TypeError` for a receiver that `connect` refuses, or what is not a signal, and then nothing has
    changed. Streams go on listening.
    """
    (signal,) = checked("swap_receivers", (signal,))
    for each in receivers:
        signal._callable(each)
    return Block("swap_receivers", lambda: _swapped(signal, receivers, sender))


@contextlib.contextmanager
def _swapped(signal: AnySignal, receivers: tuple[Callable[..., object], ...], sender: object) -> Iterator[None]:
    with _restored((signal,)):
        for registry in signal._registries().values():
            for connection in _connections(registry):
                registry.remove(connection)
        for each in receivers:
            signal.connect(each, sender, weak=False)
        yield


def replaced(signal: AnySignal, receiver: Callable[..., Any] | str, mock: Any = None) -> Block[Any]:
    """Have `mock` called in the place of one connected receiver inside a block; the block gives the mock.

    It takes the receiver's place, priority, sender and other options, for each sender that the receiver is connected
    for, and in each phase of a model signal; then the receiver is back, exactly as it was. What else the block connects
    or disconnects stays. Seen by everyone. Decorates functions, fixtures and test classes, too: see `Block`.

    Args:
        signal: Whose receiver to replace.
        receiver: The receiver, or its name: `module.qualname`, an end of that (`"ship"`), or its `dispatch_uid`.
        mock: What to call instead; by default a new `unittest.mock.AsyncMock` for an async receiver, or `Mock`, which
            returns `None`.

    Raises:
        TypeError: what is not a signal or cannot be called.
        LookupError: as the block is entered: the receiver is not connected, or several go by the name.
        ValueError: then too: the mock is connected for the same sender already, or cannot be called as the receiver is.
    """
    (signal,) = checked("replaced", (signal,))
    if mock is not None:
        signal._callable(mock)
    return Block("replaced", lambda: _replaced(signal, receiver, mock))


@contextlib.contextmanager
def _replaced(signal: AnySignal, receiver: Callable[..., Any] | str, mock: Any) -> Iterator[Any]:
    found = _find(signal, receiver)
    if mock is None:
        from unittest.mock import AsyncMock, Mock  # noqa: PLC0415  which load all of asyncio

        mock = AsyncMock(return_value=None) if found[0][1].is_async else Mock(return_value=None)
    with contextlib.ExitStack() as stack:
        for phase, connection in found:
            stack.enter_context(_in_place_of(signal, phase, connection, mock))
        yield mock


def _find(signal: AnySignal, receiver: Callable[..., Any] | str) -> list[tuple[str, Connection]]:
    """The connections of one receiver, with their phases."""
    connected = [(phase, each) for phase, registry in signal._registries().items() for each in _connections(registry)]
    found = [(phase, each) for phase, each in connected if _is_meant(each, receiver)]
    if not found:
        asked = repr(receiver) if isinstance(receiver, str) else name_of(receiver)
        there = ", ".join(each.describe() for _, each in connected) or "nobody is"
        raise LookupError(f"{asked} is not connected to {signal.name}, but {there}")
    if len({identify(target) for _, each in found if (target := each.target())}) > 1:
        names = ", ".join(each.describe() for _, each in found)
        raise LookupError(f"several receivers of {signal.name} go by the name {receiver!r}: {names}")
    return found


def _is_meant(connection: Connection, receiver: Callable[..., Any] | str) -> bool:
    target = connection.target()
    if target is None:
        return False
    if not isinstance(receiver, str):
        return identify(target) == identify(receiver)
    full = name_of(target)
    return receiver in {connection.dispatch_uid, full} or full.endswith(f".{receiver}")


@contextlib.contextmanager
def _in_place_of(signal: AnySignal, phase: str, connection: Connection, mock: Any) -> Iterator[None]:
    registry, receiver = signal._registries()[phase], connection.target()
    sender, uid = connection.sender, connection.dispatch_uid
    if receiver is None:  # it has just died, and nobody can be put back
        yield
        return
    with registry.lock:
        put_back = registry.remember(receiver, sender, uid)
        if uid is None and registry.find(key_of(mock, None), sender)[0] is not None:
            raise ValueError(
                f"{name_of(mock)} is connected to {signal.name} already and cannot replace {connection.describe()}"
            )
        registry.remove(connection)
        try:
            _connect_like(signal, phase, connection, mock)
            instead, _ = registry.find(key_of(mock, uid), sender)
            if instead is not None:  # gets the place of the other
                registry.add(instead, sender, connection.order)
        except BaseException:
            put_back()
            raise
    try:
        yield
    finally:
        with registry.lock:
            if instead is not None:
                registry.remove(instead)
            put_back()


def _connect_like(signal: AnySignal, phase: str, connection: Connection, mock: Any) -> None:
    """Connect a mock with the sender and the options of a connection."""
    options = {**connection.options._asdict(), "weak": False}
    if phase:
        options["on"] = phase
    signal.connect(mock, connection.sender, dispatch_uid=connection.dispatch_uid, **options)


def restored(*signals: AnySignal) -> Block[None]:
    """Put the connections of these signals back at the end of a block, exactly as they were at its start.

    What was connected inside is disconnected; what was disconnected, used up (`once=True`) or connected again with
    other options is as before, at its place. Receivers that were connected at the start are kept alive by the block.
    Seen by everyone. Decorates functions, fixtures and test classes, too: see `Block`. `TypeError` for what is not a
    signal.
    """
    signals = some("restored", signals)
    return Block("restored", lambda: _restored(signals))


def _restored(signals: tuple[AnySignal, ...]) -> AbstractContextManager[None]:
    return Restorer().block(signals)


class Restorer:
    """Puts connections back, block after block; what has not changed since the last block costs almost nothing."""

    def __init__(self) -> None:
        # Connections refer to receivers weakly, so this keeps nobody alive between blocks.
        self._known: WeakKeyDictionary[Registry, _Connected] = WeakKeyDictionary()

    @contextlib.contextmanager
    def block(self, signals: tuple[AnySignal, ...]) -> Iterator[None]:
        """Restore these signals at the end of a block."""
        kept, put_back = [], []
        for signal in signals:
            keep_awaited: Any = getattr(signal, "keep_awaited", None)  # of model signals: senders to come
            if keep_awaited is not None:
                put_back.append(keep_awaited())
            for registry in signal._registries().values():
                known = self._look(registry)
                kept.append((registry, known, known.hold()))  # the block may drop the last reference to them
        try:
            yield
        finally:
            for registry, known, (_, senders) in kept:
                if registry.changes != known.changes:
                    known.restore(registry, senders)
            for each in put_back:
                each()

    def _look(self, registry: Registry) -> _Connected:
        known = self._known.get(registry)
        if known is None or known.changes != registry.changes:
            known = self._known[registry] = _Connected(registry)
        return known


class _Connected:
    """Who was connected in a registry, with what options, when it had counted so many changes."""

    __slots__ = ("changes", "connections")

    def __init__(self, registry: Registry) -> None:
        with registry.lock:
            found = _connections(registry)
            self.connections = {each: ((each.options, each.shape), each.sender is None) for each in found}
            self.changes = registry.changes

    def hold(self) -> tuple[list[object], list[object]]:
        """What the connections refer to, receivers (methods: their objects) and senders; `None` for what has died."""
        return [each() for each in self.connections], [each.sender for each in self.connections]

    def restore(self, registry: Registry, senders: list[object]) -> None:
        """Make it so again, where receiver and sender were alive."""
        with registry.lock:
            found = _connections(registry)
            if self._is(found):  # a mute counts as a change, too, and so does a stream
                self.changes = registry.changes
                return
            for connection in found:
                if connection not in self.connections:
                    registry.remove(connection)
            for (connection, (state, is_for_all)), sender in zip(self.connections.items(), senders, strict=True):
                receiver = connection.target()
                if receiver is not None and (is_for_all or sender is not None):
                    registry.put_back(connection, receiver, sender, *state)
            self.changes = registry.changes

    def _is(self, found: list[Connection]) -> bool:
        """Whether these are the same connections, with the same options."""
        known = self.connections
        return len(found) == len(known) and all(
            each in known and known[each][0] == (each.options, each.shape) for each in found
        )


def _connections(registry: Registry) -> list[Connection]:
    return [each for each in registry.all_connections() if each.is_receiver]
