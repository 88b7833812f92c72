"""What a test does to signals for a block: mute them, swap or replace receivers, put connections back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from asignals import Connection
from asignals._block import Block
from asignals.testing._capture import AnySignal, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asignals._registry import Registry, Snapshot


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


@contextlib.contextmanager
def _restored(signals: tuple[AnySignal, ...]) -> Iterator[None]:
    before = [(registry, _snapshots(registry)) for signal in signals for registry in signal._registries().values()]
    try:
        yield
    finally:
        for registry, snapshots in before:
            _restore(registry, snapshots)


def _connections(registry: Registry) -> list[Connection]:
    return [link for link in registry.all_links() if isinstance(link, Connection)]


def _snapshots(registry: Registry) -> list[Snapshot]:
    with registry.lock:
        found = [(each.receiver, each.sender, each.dispatch_uid) for each in _connections(registry)]
        return [registry.snapshot(receiver, sender, uid) for receiver, sender, uid in found if receiver is not None]


def _restore(registry: Registry, before: list[Snapshot]) -> None:
    kept = {id(snapshot.connection) for snapshot in before}
    with registry.lock:
        for connection in _connections(registry):
            if id(connection) not in kept:
                registry.remove(connection)
        for snapshot in before:
            registry.restore(snapshot)
