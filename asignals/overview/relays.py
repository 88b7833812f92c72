"""The relays of a program, in the words of its author: services and topics, not the objects that do the work.

Nothing here loads `asignals.relay`: where it is not loaded there are no relays.
"""

from __future__ import annotations

import gc
import sys
from contextvars import ContextVar
from types import FunctionType
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


def exporter_of(receiver: object) -> Any:
    """The exporter that a relay has connected by this receiver; None for any other receiver."""
    module = sys.modules.get("asignals.relay._export")
    if module is None or type(receiver) is not FunctionType:
        return None
    found = receiver.__dict__.get("exporter")
    return found if is_a(found, module.Exporter) else None


def exported_event(receiver: object) -> str | None:
    """The id of the event that a call of a relay's receiver has just exported; None for any other receiver.

    To be asked in the context of the call, as monitors are.
    """
    if exporter_of(receiver) is None:
        return None
    event: str | None = sys.modules["asignals.relay._export"].exported.get()
    return event


def handled_event() -> tuple[str, str] | None:
    """The event whose receivers a relay calls in this context: its id, and `relay shop → order.paid → mail`."""
    module = sys.modules.get("asignals.relay._current")
    call = None if module is None else module.calling.get()
    if call is None:
        return None
    envelope = call.envelope
    service = str(envelope.origin).partition("/")[0]
    return str(envelope.repeats or envelope.id), f"relay {service} → {envelope.topic} → {call.service}"


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
