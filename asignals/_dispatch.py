"""Delivering an event to the links of a plan; knows nothing of how they were connected.

Most sends never come here: the generated loop (`_compile`) does the same for a sequential send that nobody watches.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from inspect import isawaitable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from asignals._blame import blame, failed
from asignals._connection import Connection
from asignals._group import Begun, in_task_group
from asignals._monitor import Observed, watchers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from asignals._receivers import Receiver
    from asignals._registry import Link, Plan
    from asignals._signal import Signal


_UNWATCHED = nullcontext()


class Send:
    """One send under way: what is sent to whom, and what becomes of a receiver's error."""

    __slots__ = ("_named", "arguments", "is_watched", "robust", "sender", "signal")

    def __init__(self, signal: Signal[..., Any], sender: object, arguments: dict[str, Any], *, robust: bool) -> None:
        self.signal: Signal[..., Any] = signal
        self.sender: object = sender
        self.arguments: Mapping[str, Any] = MappingProxyType(arguments)
        self.robust: bool = robust
        self.is_watched: bool = bool(watchers)  # one that begins to watch later sees nothing of this send
        self._named = arguments

    async def to(self, link: Link) -> tuple[Receiver, Any] | None:
        """Call one link; its pair for the results, or `None` when it has none."""
        try:
            if link.is_coroutine and not self.is_watched:  # nothing to be done around the call
                receiver = link()
                if receiver is None:
                    return None
                return receiver, await receiver(signal=self.signal, sender=self.sender, **self._named)
            if not self.is_watched or not isinstance(link, Connection):
                return await link.respond(self.signal, self.sender, self._named)
            receiver = link.claim(self.signal)
            if receiver is None:
                return None
            with Observed(self, receiver):
                response = link.call(receiver, self.signal, self.sender, self._named)
                return receiver, await response if isawaitable(response) else response
        except Exception as error:
            if self.robust:
                return failed(error, link, self.signal)
            blame(error, link, self.signal)
            raise

    def begin(self, link: Connection) -> tuple[Receiver, Any] | Begun | None:
        """Call one connection, and leave an awaitable response to be awaited, by `finish`."""
        try:
            receiver = link.claim(self.signal)
            if receiver is None:
                return None
            if not self.is_watched:
                response = link.call(receiver, self.signal, self.sender, self._named)
                return Begun(receiver, response, _UNWATCHED) if isawaitable(response) else (receiver, response)
            with ExitStack() as watch:
                watch.enter_context(Observed(self, receiver))
                response = link.call(receiver, self.signal, self.sender, self._named)
                return Begun(receiver, response, watch.pop_all()) if isawaitable(response) else (receiver, response)
        except Exception as error:
            if self.robust:
                return failed(error, link, self.signal)
            blame(error, link, self.signal)
            raise

    async def finish(self, link: Link, begun: Begun) -> tuple[Receiver, Any]:
        """Await what a call has left."""
        try:
            with begun.watch:
                return begun.receiver, await begun.response
        except Exception as error:
            if self.robust:
                return failed(error, link, self.signal)
            blame(error, link, self.signal)
            raise

    def watched(self) -> AbstractContextManager[object]:
        """What reports the send as a whole."""
        return Observed(self, None)


async def deliver(
    signal: Signal[..., Any], sender: object, arguments: dict[str, Any], *, robust: bool
) -> list[tuple[Receiver, Any]]:
    """Send in any mode, watched or not."""
    origin = signal if signal._origin is None else signal._origin
    send = Send(origin, sender, arguments, robust=robust)
    plan = origin._registry.plan_for(sender)
    factory = signal._task_group
    work = _one_by_one(send, plan) if factory is None else in_task_group(send, plan, factory, signal._limit)
    if not send.is_watched:
        return await work
    with send.watched():
        return await work


async def _one_by_one(send: Send, plan: Plan) -> list[tuple[Receiver, Any]]:
    results = []
    pair = None
    for link in plan:
        pair = await send.to(link)
        if pair is not None:
            results.append(pair)
    try:
        return results
    finally:
        del results, pair  # which hold errors, whose frames lead back to this one
