"""A relay as an AsyncAPI 3.0 document: what it sends and receives, where, and by which schemas. Asks no server."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final

from asignals._core import is_a, name_of
from asignals.masking import said
from asignals.relay._codec import UpcastingCodec
from asignals.relay._envelope import MAX_BAGGAGE
from asignals.relay._export import Exporter, dump_sender, load_sender
from asignals.relay._places import Address, Located
from asignals.relay.asyncapi._components import ROOT, Components
from asignals.relay.asyncapi._schemas import schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asignals import Signal
    from asignals.relay._codec import Codec
    from asignals.relay._relay import Relay
    from asignals.relay._subscription import Subscription
    from asignals.relay.asyncapi._schemas import Schema

EXTENSION: Final = "x-asignals"

_ID: Final = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}
_TEXT: Final = {"type": "string", "maxLength": 1000}
_ENVELOPE: Final = {
    "type": "object",
    "required": ["id", "topic", "version", "time", "origin"],
    "properties": {
        "id": {**_ID, "description": "Unique; the same in every repetition of the event."},
        "topic": {"type": "string", "maxLength": 200},
        "version": {"type": "integer", "minimum": 1, "description": "The schema version of the payload."},
        "time": {"type": "number", "description": "When it was sent, in seconds since the epoch."},
        "origin": {**_TEXT, "description": "The service and the instance that sent it, with a slash between them."},
        "sender": {**_TEXT, "description": "The signal's sender, as text."},
        "key": {**_TEXT, "description": "Events of one key are handled in order."},
        "hops": {"type": "integer", "minimum": 0, "description": "How many events of other processes led to it."},
        "target": {"type": "string", "description": "The only service that is to handle it; a replay."},
        "traceparent": {**_TEXT, "description": "The trace that it belongs to (W3C Trace Context)."},
        "tracestate": {**_TEXT, "description": "What vendors add to the trace (W3C Trace Context)."},
        "baggage": {
            "type": "string",
            "maxLength": MAX_BAGGAGE,
            "description": "What the sender passes on (W3C).",
        },
        "repeats": {**_ID, "description": "The id of the event that it replays."},
        "done": {
            "type": "array",
            "items": _TEXT,
            "description": "Receivers that need not be called: the sender's own, or those that had succeeded.",
        },
    },
}
_WIRE: Final = "On the wire a message is one line of JSON, its headers; then a line feed; then the payload."


def document(relay: Relay, *, version: str = "0.0.0") -> dict[str, Any]:
    """Write down what a relay exports and receives now, as an AsyncAPI 3.0 document, ready for `json.dumps`.

    A message that is sent has the schema of what is written, in which all arguments are there; one that is received has
    the schema of what is accepted. Signals without types have schemas without types; codecs without a method
    `json_schema` have none, nor do types that their library cannot describe, and the message says so. Passwords are
    left out. Nothing is connected to.

    Args:
        relay: What to describe.
        version: The version of the program, for `info`.
    """
    return _Writer(relay).write(version)


class _Writer:
    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._components = Components()
        self._servers: dict[str, Any] = {}
        self._channels: dict[str, Any] = {}
        self._operations: dict[str, Any] = {}
        self._messages: dict[str, Any] = {}

    def write(self, version: str) -> dict[str, Any]:
        relay = self._relay
        if isinstance(relay.transport, Located):
            for number, server in enumerate(relay.transport.servers(), 1):
                path = {"pathname": server.pathname} if server.pathname else {}
                name = f"{server.protocol}-{number}"
                self._servers[name] = {"host": server.host, "protocol": server.protocol, **path}
        for signal, exporter in exports(relay):
            self._add_export(signal, exporter)
        for subscription in relay._inbound.subscriptions.values():
            self._add_subscription(subscription, "receive")
        for subscription in relay._listener.subscriptions.values():
            self._add_subscription(subscription, "broadcast")
        components = {
            "messages": self._messages,
            "schemas": {"asignals.envelope": _ENVELOPE, **self._components.schemas},
        }
        return {
            "asyncapi": "3.0.0",
            "info": {"title": relay.service, "version": version, "description": _WIRE},
            **({"servers": self._servers} if self._servers else {}),
            "channels": self._channels,
            "operations": self._operations,
            "components": components,
        }

    def _add_export(self, signal: Signal[..., Any], exporter: Exporter) -> None:
        details: dict[str, Any] = {"version": exporter._version}
        if exporter._key is not None:
            details["key"] = exporter._key.__qualname__
        if exporter._dump is not dump_sender:
            details["senderCodec"] = name_of(exporter._dump)
        self._add("send", signal, exporter.topic, exporter._codec, details)

    def _add_subscription(self, subscription: Subscription, kind: str) -> None:
        details: dict[str, Any] = {"version": subscription.version}
        if isinstance(subscription.codec, UpcastingCodec):
            details["oldestVersion"] = min(subscription.codec._upcasters)
        if subscription.load is not load_sender:
            details["senderCodec"] = name_of(subscription.load)
        self._add(kind, subscription.signal, subscription.topic, subscription.codec, details)

    def _add(self, kind: str, signal: Signal[..., Any], topic: str, codec: Codec, details: dict[str, Any]) -> None:
        id_ = f"{kind}.{topic}"
        while id_ in self._messages:  # another signal is exported to this topic, too
            id_ = f"{id_}.{re.sub(r'[^A-Za-z0-9_.-]', '_', str(signal.name))}"
        inner = codec._codec if isinstance(codec, UpcastingCodec) else codec
        payload, note = _payload(inner, signal, written=kind == "send")
        self._messages[id_] = {
            "name": str(signal.name),
            **_told(signal, note),
            "contentType": "application/json" if payload is not None else "application/octet-stream",
            "headers": self._headers(topic, kind, details),
            **({} if payload is None else {"payload": self._components.add(payload, id_)}),
            EXTENSION: {**details, "codec": _name_of_codec(inner)},
        }
        channel = self._channels.setdefault(topic, self._channel(topic))
        channel["messages"][id_] = {"$ref": f"#/components/messages/{id_}"}
        self._operations[id_] = {
            "action": "send" if kind == "send" else "receive",
            "channel": {"$ref": f"#/channels/{topic}"},
            "messages": [{"$ref": f"#/channels/{topic}/messages/{id_}"}],
            **_BROADCAST.get(kind, {}),
        }

    def _channel(self, topic: str) -> dict[str, Any]:
        transport = self._relay.transport
        address = transport.address(topic) if isinstance(transport, Located) else Address(topic)
        channel: dict[str, Any] = {"address": address.text, "messages": {}}
        if address.text.startswith("{"):  # the braces are Redis Cluster's; here they would be a parameter's
            tag = address.text[: address.text.index("}") + 1]
            channel["parameters"] = {tag[1:-1]: {"enum": [tag], "default": tag}}
        if address.note:
            channel["description"] = address.note
        return {**channel, **({"bindings": address.bindings} if address.bindings else {})}

    def _headers(self, topic: str, kind: str, details: dict[str, Any]) -> dict[str, Any]:
        version = {"const": details["version"]} if kind == "send" else {"maximum": details["version"]}
        if "oldestVersion" in details:
            version["minimum"] = details["oldestVersion"]
        keyed = {"required": ["key"]} if "key" in details and not details["key"].endswith("()") else {}
        return {
            "type": "object",
            "allOf": [{"$ref": f"{ROOT}asignals.envelope"}],
            "properties": {"topic": {"const": topic}, "version": version},
            **keyed,
        }


_BROADCAST: Final = {
    "broadcast": {
        "summary": "Every running instance hears every event; nothing is kept or repeated for one.",
        "tags": [{"name": "broadcast"}],
    }
}


def exports(relay: Relay) -> Iterator[tuple[Signal[..., Any], Exporter]]:
    """Find what a relay exports."""
    for signal, uid in relay._exported:
        for connection in signal.connections:
            exporter = getattr(connection.receiver, "exporter", None)
            if connection.dispatch_uid == uid and is_a(exporter, Exporter):
                yield signal, exporter


def _payload(codec: Codec, signal: Signal[..., Any], *, written: bool) -> tuple[Schema | None, str]:
    """Give the schema, or why there is none."""
    try:
        payload = schema_of(codec, signal, written=written)
        reason = "it has no method json_schema"
    except Exception as error:  # noqa: BLE001  whatever a library says of a type that it writes and cannot describe
        payload, reason = None, said(error)
    return payload, "" if payload is not None else f"{_name_of_codec(codec)} gives no schema of the payload: {reason}."


def _name_of_codec(codec: Codec) -> str:
    return name_of(codec).replace("asignals.relay._codec.", "asignals.relay.")


def _told(signal: Signal[..., Any], note: str) -> dict[str, str]:
    text = inspect.cleandoc(signal.__doc__ or "") if signal.__doc__ != type(signal).__doc__ else ""
    summary = text.partition("\n")[0]
    described = "\n\n".join(filter(None, [text, note]))
    return {**({"summary": summary} if summary else {}), **({"description": described} if described else {})}
