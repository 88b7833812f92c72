"""Changes for the length of a block: connected, and muted."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from asignals._refs import identify

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator
    from contextvars import Context

    from asignals._receivers import Receiver
    from asignals._registry import Plan, Registry, Snapshot
    from asignals._signal import Signal

F = TypeVar("F", bound="Receiver")

# Which mutes the current context is inside of. Contexts are copied, so a task may keep a mute that has ended: it then
# restricts nothing any more, because the registry has forgotten it. Tokens are not used: a pytest fixture leaves its
# block in another context than it entered it in.
_entered: ContextVar[tuple[Mute, ...]] = ContextVar("asignals_muted", default=())


class Mute:
    """One muted block: hides receivers from the plans made inside it."""

    __slots__ = ("_everywhere", "_is_of_all", "_kept", "_keys")

    def __init__(self, receivers: Iterable[Receiver], *, everywhere: bool) -> None:
        self._kept = tuple(receivers)  # their ids are compared below, so they must not be used again
        self._is_of_all = not self._kept
        self._keys: frozenset[Hashable] = frozenset(map(identify, self._kept))
        self._everywhere = everywhere

    def is_in_force(self) -> bool:
        """Whether this mute concerns the current context."""
        return self._everywhere or self in _entered.get()

    def __call__(self, plan: Plan) -> Plan:
        """What is left of a plan in the current context."""
        if not self.is_in_force():
            return plan
        if self._is_of_all:
            return ()
        return tuple(link for link in plan if identify(link.target()) not in self._keys)

    def enter(self) -> None:
        """Take effect in the current context."""
        _entered.set((*_entered.get(), self))

    def enter_also(self, context: Context) -> Mute:
        """A mute of the same receivers in one other context, which outlasts this one."""
        other = Mute(self._kept, everywhere=False)
        context.run(other.enter)
        return other

    def leave(self) -> None:
        """Forget this block in the current context, if it was entered in it."""
        _entered.set(tuple(mute for mute in _entered.get() if mute is not self))

    def end(self) -> None:
        """Keep nothing alive any more: copies of a context that was in the block may last long."""
        self._keys, self._kept = frozenset(), ()


@contextmanager
def muted(registry: Registry, receivers: Iterable[Receiver], *, everywhere: bool) -> Iterator[None]:
    """Restrict a registry's plans for a block."""
    mute = Mute(receivers, everywhere=everywhere)
    try:  # before anything is done, for Ctrl-C may come between any two calls
        mute.enter()
        registry.restrict(mute)
        yield
    finally:
        if mute in registry.filters:
            registry.unrestrict(mute)
        mute.leave()
        mute.end()


def stay_muted(registry: Registry, context: Context) -> Callable[[], None]:
    """Keep what is muted now muted in a copy of the current context, until the returned function is called."""
    mutes = [mute.enter_also(context) for mute in registry.filters if mute.is_in_force()]
    for mute in mutes:
        registry.restrict(mute)

    def end() -> None:
        for mute in mutes:
            registry.unrestrict(mute)
            mute.end()

    return end


class _Block:
    """One `connected` block under way, and what it is to restore."""

    __slots__ = ("before",)

    def __init__(self) -> None:
        self.before: Snapshot | None = None


@contextmanager
def connected(
    signal: Signal[..., Any], receiver: F, sender: object, uid: Hashable, options: dict[str, Any]
) -> Iterator[F]:
    """Connect for a block."""
    registry = signal._registry
    block = _Block()
    try:  # as above
        with registry.lock:
            block.before = before = registry.snapshot(receiver, sender, uid)
            signal.connect(receiver, sender, dispatch_uid=uid, **options)
            registry.overlaps[before.place] = [*registry.overlaps.get(before.place, ()), block]
        yield receiver
    finally:
        _leave(registry, block)


def _leave(registry: Registry, block: _Block) -> None:
    with registry.lock:
        before = block.before
        if before is None:
            return
        blocks = registry.overlaps.get(before.place, [])
        if block not in blocks:  # it was not entered: connecting was refused or interrupted
            registry.restore(before)
            return
        index = blocks.index(block)
        del blocks[index]
        if index < len(blocks):
            blocks[index].before = before  # the block entered next leaves what was there before this one
            return
        if not blocks:
            del registry.overlaps[before.place]
        registry.restore(before)
