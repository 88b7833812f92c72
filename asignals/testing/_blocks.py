"""What a test does to signals for a block: mute them, swap or replace receivers, put connections back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from asignals import Connection
from asignals._block import Block
from asignals._registry import Registry, Snapshot
from asignals.testing._capture import AnySignal, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


def muted(*signals: AnySignal, everywhere: bool = False) -> Block[None]:
    """Let sends of these signals reach nobody inside a block: `Signal.muted` for several at once.

    As there, only the current context is muted unless `everywhere` is true. A capture sees muted sends. Decorates
    functions, fixtures and test classes, too: see `Block`. `TypeError` for what is not a signal.
    """
    signals = checked("muted", signals)
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


def restored(*signals: AnySignal) -> Block[None]:
    """Put the connections of these signals back at the end of a block, exactly as they were at its start.

    What was connected inside is disconnected; what was disconnected, used up (`once=True`) or connected again with
    other options is as before, at its place. Receivers that were connected at the start are kept alive by the block.
    Seen by everyone. Decorates functions, fixtures and test classes, too: see `Block`. `TypeError` for what is not a
    signal.
    """
    signals = checked("restored", signals)
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
        kept = []
        for signal in signals:
            for registry in signal._registries().values():
                known = self._look(registry)
                kept.append((registry, known, known.hold()))  # the block may drop the last reference to them
        try:
            yield
        finally:
            for registry, known, (_, senders) in kept:
                if registry._changes != known.changes:
                    known.restore(registry, senders)

    def _look(self, registry: Registry) -> _Connected:
        known = self._known.get(registry)
        if known is None or known.changes != registry._changes:
            known = self._known[registry] = _Connected(registry)
        return known


class _Connected:
    """Who was connected in a registry, with what options, when it had counted so many changes."""

    __slots__ = ("changes", "connections")

    def __init__(self, registry: Registry) -> None:
        with registry.lock:
            self.connections = {each: (each.facts, each.sender is None) for each in _connections(registry)}
            self.changes = registry._changes

    def hold(self) -> tuple[list[object], list[object]]:
        """What the connections refer to, receivers (methods: their objects) and senders; `None` for what has died."""
        return [each() for each in self.connections], [each.source() for each in self.connections]

    def restore(self, registry: Registry, senders: list[object]) -> None:
        """Make it so again, where receiver and sender were alive."""
        with registry.lock:
            for connection in _connections(registry):
                if connection not in self.connections:
                    registry.remove(connection)
            for (connection, (state, is_for_all)), sender in zip(self.connections.items(), senders, strict=True):
                receiver = connection.target()
                if receiver is not None and (is_for_all or sender is not None):
                    registry.restore(Snapshot(connection.key, sender, connection, receiver, state))
            self.changes = registry._changes


def _connections(registry: Registry) -> list[Connection]:
    return [link for link in registry.all_links() if isinstance(link, Connection)]
