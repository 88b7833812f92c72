"""What a relay works with: the engine, the outbox and the inbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asignals.relay._inbox import Inbox
    from asignals.relay._transport import Transport
    from asignals.relay.outbox import Outbox


@dataclass(slots=True)
class Parts:
    """What a relay works with; tests exchange the engine of a whole relay here."""

    transport: Transport
    outbox: Outbox | None
    inbox: Inbox

    def __iter__(self) -> Iterator[Transport | Outbox | Inbox | None]:
        return iter((self.transport, self.outbox, self.inbox))
