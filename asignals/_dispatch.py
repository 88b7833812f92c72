"""Delivering an event to the links of a plan; knows nothing of how they were connected.

Most sends never come here: the generated loop (`_compile`) does the same for a sequential send that nobody watches.
"""

from __future__ import annotations

from inspect import isawaitable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from asignals._blame import blame, failed
from asignals._connection import Connection
from asignals._group import in_task_group
from asignals._monitor import observed, watchers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from asignals._receivers import Receiver
    from asignals._registry import Link, Plan
    from asignals._signal import Signal


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
            with observed(self, receiver):
                return receiver, await _answer(self._call(link, receiver))
        except Exception as error:
            if self.robust:
                return failed(error, link, self.signal)
            blame(error, link, self.signal)
            raise

    def start(self, link: Connection) -> tuple[Receiver, Any] | None:
        """Call one connection, and leave an awaitable response to be awaited."""
        try:
            receiver = link.claim(self.signal)
            return None if receiver is None else (receiver, self._call(link, receiver))
        except Exception as error:
            if self.robust:
                return failed(error, link, self.signal)
            blame(error, link, self.signal)
            raise

    def _call(self, link: Connection, receiver: Receiver) -> Any:
        return link.call(receiver, self.signal, self.sender, self._named)

    def watched(self) -> AbstractContextManager[None]:
        """What reports the send as a whole."""
        return observed(self, None)


async def _answer(response: Any) -> Any:
    return await response if response is not None and isawaitable(response) else response


async def deliver(
    signal: Signal[..., Any], sender: object, arguments: dict[str, Any], *, robust: bool
) -> list[tuple[Receiver, Any]]:
    """Send in any mode, watched or not."""
    origin = signal if signal._origin is None else signal._origin
    send = Send(origin, sender, arguments, robust=robust)
    plan = origin._registry.plan_for(sender)
    if not send.is_watched:
        return await _run(send, plan, signal)
    with send.watched():
        return await _run(send, plan, signal)


async def _run(send: Send, plan: Plan, signal: Signal[..., Any]) -> list[tuple[Receiver, Any]]:
    factory, limit = signal._task_group, signal._limit
    if factory is not None:
        return await in_task_group(send, plan, factory, limit)
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
