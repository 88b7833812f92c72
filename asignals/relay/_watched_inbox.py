"""The inbox as the receiving side asks it: each call has a limit of time, and health shows whether it answers."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio

from asignals.masking import said
from asignals.relay._cancel import limited
from asignals.relay._connection_state import ConnectionState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asignals.relay._inbox import Inbox, Memo

logger = logging.getLogger("asignals.relay")

_ANSWER_TIMEOUT: Final = 15.0  # seconds that one call of the inbox may take; the inboxes here have shorter limits
_CLOSE_TIMEOUT: Final = 2.0  # seconds that a call may take while the instance is being cancelled
# An idle inbox is asked whether it is there, so that health shows within 10 seconds that it is not.
_LOOK: Final = 3.0  # seconds between two of these questions
_LOOK_TRIP: Final = 5.0  # seconds after which one without an answer shows


class InboxLostError(Exception):
    """The inbox did not answer, or answered with an error; the event stays with the engine."""


class WatchedInbox:
    """The inbox for one service; its calls raise `InboxLostError`, whatever went wrong."""

    def __init__(self, inbox: Inbox, service: str) -> None:
        self.inbox = inbox
        self.state: ConnectionState = ConnectionState("the inbox")
        self._service = service

    async def recall(self, event_id: str) -> Memo:
        """Give what is remembered of an event."""
        memo: Memo = await self._ask(self.inbox.recall(event_id, self._service))
        return memo

    async def remember(self, event_id: str, change: Memo) -> None:
        """Merge a change into what is remembered."""
        await self._ask(self.inbox.remember(event_id, self._service, change))

    async def take_back(self, event_id: str, before: Memo) -> None:
        """Note that an event has not begun after all, though the instance is being cancelled."""
        with anyio.CancelScope(shield=True):
            try:
                await limited(self.inbox.remember(event_id, self._service, before), _CLOSE_TIMEOUT, "the inbox")
            except Exception as error:  # noqa: BLE001  logged
                logger.warning(
                    "event %s was cancelled, and may count as a crash of this process: %s", event_id, said(error)
                )

    async def _ask(self, call: Awaitable[Any]) -> Any:
        try:
            answer = await limited(call, _ANSWER_TIMEOUT)
        except Exception as error:
            self.state.lost(error)
            raise InboxLostError from error
        self.state.restored()
        return answer

    async def watch(self, check: Callable[[], Awaitable[None]]) -> None:
        """Ask the inbox now and then whether it is there, so that health knows before an event comes."""
        while True:
            silent = TimeoutError(f"no answer within {_LOOK_TRIP:g} s")
            late = asyncio.get_running_loop().call_later(_LOOK_TRIP, self.state.lost, silent)
            try:
                with suppress(InboxLostError):
                    await self._ask(check())
            finally:
                late.cancel()
            await asyncio.sleep(_LOOK)
