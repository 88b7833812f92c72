"""The relays of a program, in the words of its author: services and topics, not the objects that do the work.

Nothing here loads `asignals.relay`: where it is not loaded there are no relays.
"""

from __future__ import annotations

import gc
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from asignals._core import is_a

if TYPE_CHECKING:
    from asignals import Connection, Signal


running: Final[dict[int, Any]] = {}
"""The relays whose blocks are open, by their ids. Other threads copy it: `tuple(running.values())`."""


producing: Final[ContextVar[Any]] = ContextVar("asignals.producing", default=None)
"""The span in which a relay makes an event, where there is one."""


def export_of(connection: Connection) -> tuple[str, str] | None:
    """The service and the topic that a relay's connection sends to; None for any other connection."""
    return export_of_uid(connection.dispatch_uid)


def export_of_uid(uid: object) -> tuple[str, str] | None:
    """The service and the topic in the `dispatch_uid` of a relay's connection; None for any other."""
    module = sys.modules.get("asignals.relay._export")
    if module is not None and is_a(uid, module.ExportUid):
        return str(uid.service), str(uid.topic)
    return None


def exporter_name(receiver: object) -> str | None:
    """`relay shop → order.paid` for the receiver by which a relay exports; None for any other receiver."""
    owner = exporter_of(receiver)
    return None if owner is None else f"relay {str(owner._origin).partition('/')[0]} → {owner.topic}"


def exporter_of(receiver: object) -> Any:
    """The exporter whose method a receiver is; None for any other receiver."""
    module = sys.modules.get("asignals.relay._export")
    owner = getattr(receiver, "__self__", None) if module is not None else None
    return owner if module is not None and is_a(owner, module.Exporter) else None


def delivered_now() -> Any:
    """The event whose send begins, where it is a relay that sends; None elsewhere."""
    module = sys.modules.get("asignals.relay._current")
    return None if module is None else module.delivering.get()


def live_relays() -> list[Any]:
    """Every `Relay` of this process."""
    module = sys.modules.get("asignals.relay._relay")
    return [] if module is None else [each for each in gc.get_objects() if type(each) is module.Relay]


def exports_of(relay: Any) -> list[tuple[Signal[..., Any], str]]:
    """The signals that a relay exports, with their topics."""
    return [(signal, uid.topic) for signal, uid in relay._exported]


def receives_of(relay: Any) -> list[tuple[Signal[..., Any], str]]:
    """The signals that a relay receives, with their topics."""
    both = {**relay._inbound.subscriptions, **relay._listener.subscriptions}
    return [(subscription.signal, topic) for topic, subscription in both.items()]
