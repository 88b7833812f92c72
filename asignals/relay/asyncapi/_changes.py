"""Which changes between two documents break which readers: new ones of old events, or old ones of new events."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from asignals.relay.asyncapi._document import EXTENSION
from asignals.relay.asyncapi._fits import Fit, Misfit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asignals.relay.asyncapi._schemas import Schema

Direction: TypeAlias = Literal["old readers, new events", "new readers, old events"]
_FORWARD: Final = "old readers, new events"
_BACKWARD: Final = "new readers, old events"


@dataclass(frozen=True, slots=True)
class Change:
    """A difference between two documents.

    `is_break` says whether readers can no longer do their work; otherwise it is something to know. `readers` says whose
    reading changes: that of programs which still run, of what is sent now (`"old readers, new events"`), or that of
    this program, of what was sent before (`"new readers, old events"`). `kind` is a short name, such as
    `field-missing`; `topic`, `signal` and `field` say where (`field` is `""` for the whole); `advice` what to do.
    """

    kind: str
    readers: Direction
    topic: str
    signal: str
    field: str
    message: str
    advice: str
    is_break: bool = True


@dataclass(frozen=True, slots=True)
class _Message:
    """What a document says of one operation."""

    kind: str
    topic: str
    signal: str
    payload: Schema | None
    details: dict[str, Any]

    @property
    def version(self) -> int:
        return int(self.details.get("version", 1))


class _Document:
    """The parts of a document that are compared; raises `ValueError` for what is no AsyncAPI 3 document."""

    def __init__(self, document: Any) -> None:
        version = document.get("asyncapi") if isinstance(document, dict) else None
        if not str(version).startswith("3."):
            raise ValueError(f"this is no AsyncAPI 3 document: its asyncapi is {version!r}")
        self._document = document
        self.service = str(document.get("info", {}).get("title", ""))
        self.messages: list[_Message] = []
        self.addresses: dict[str, str] = {}
        try:
            self._read()
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"this AsyncAPI document cannot be read: {type(error).__name__}: {error}") from error

    def _read(self) -> None:
        protocols = sorted({server["protocol"] for server in self._document.get("servers", {}).values()})
        for id_, operation in self._document.get("operations", {}).items():
            channel = operation["channel"]["$ref"].removeprefix("#/channels/").replace("~1", "/")
            address = self._document["channels"][channel].get("address")
            self.addresses[channel] = f"{' '.join(protocols)} {address}"
            kind = "broadcast" if any(tag.get("name") == "broadcast" for tag in operation.get("tags", ())) else ""
            for ref in operation.get("messages", ()):
                message = self.resolve(ref)
                payload = message.get("payload")
                self.messages.append(
                    _Message(
                        kind or operation["action"],
                        channel,
                        str(message.get("name", id_)),
                        payload,
                        message.get(EXTENSION, {}),
                    )
                )

    def resolve(self, schema: Any) -> Any:
        """Follow references inside the document."""
        seen: set[str] = set()
        while isinstance(schema, dict) and "$ref" in schema:
            ref = str(schema["$ref"])
            if ref in seen or not ref.startswith("#/"):
                raise ValueError(f"the reference {ref!r} leads nowhere in this document")
            seen.add(ref)
            found: Any = self._document
            for step in ref[2:].split("/"):
                found = found[step.replace("~1", "/").replace("~0", "~")]
            schema = found
        return schema

    def of(self, topic: str) -> tuple[list[_Message], list[_Message]]:
        """What is sent, and what is received, of a topic."""
        messages = [each for each in self.messages if each.topic == topic]
        sent = [each for each in messages if each.kind == "send"]
        return sent, [each for each in messages if each.kind != "send"]


def compare(old: Any, new: Any) -> list[Change]:
    """Say what has changed between two documents of `document`, breaks first.

    Events of each topic are compared with its readers, both ways: what is sent now with who read the old ones, and what
    was sent with who reads the new ones. Of a topic that a document only sends, its readers are taken to know the
    arguments as they are declared there; of one that it only receives, its senders to write them so. Readers ignore
    arguments that they do not know, and do without those that have a default. Of another service's document only what
    one of the two sends and the other one receives is compared.

    Raises `ValueError` for what is no AsyncAPI 3 document, or one that refers to others.
    """
    was, is_ = _Document(old), _Document(new)
    # What does not fit within the old document has not changed; such an event is refused where it is sent.
    before = {_key(each) for each in _pairs(was, was, _FORWARD)}
    pairs = [*_pairs(is_, was, _FORWARD), *_pairs(was, is_, _BACKWARD)]
    found = [*_moved(was, is_), *(each for each in pairs if not each.is_break or _key(each) not in before)]
    if was.service == is_.service:
        found += [*_gone(was, is_), *_keys(was, is_)]
    return sorted(dict.fromkeys(found), key=lambda change: (not change.is_break, change.topic, change.field))


def _key(change: Change) -> tuple[str, ...]:
    return change.kind, change.topic, change.field, change.message


def _gone(was: _Document, is_: _Document) -> Iterator[Change]:
    left = {(each.kind, each.topic) for each in is_.messages}
    for each in was.messages:
        if (each.kind, each.topic) in left:
            continue
        if each.kind == "send":
            text, advice = "is not exported any more", "export it until its readers have moved to another topic"
            yield _change("topic-removed", _FORWARD, each, text, advice)
        elif each.kind == "receive":
            text = "is not received any more: its events wait for this service for ever"
            advice = "if that is meant, run `asignals relay forget` for it after the deploy"
            yield _change("topic-not-received", _BACKWARD, each, text, advice)
        else:
            text, advice = "is not heard as a broadcast any more", "nothing, if that is meant"
            yield _change("topic-not-received", _BACKWARD, each, text, advice, is_break=False)


def _moved(was: _Document, is_: _Document) -> Iterator[Change]:
    for each in was.messages:
        old, new = was.addresses[each.topic], is_.addresses.get(each.topic, was.addresses[each.topic])
        if old.partition(" ")[0] == new.partition(" ")[0] and old != new:  # else it is another engine: of a developer
            text = f"has moved from {old.partition(' ')[2]!r} to {new.partition(' ')[2]!r}, where old programs are not"
            yield _change("address-changed", _FORWARD, each, text, "keep the engine's name, stream or prefix")


def _keys(was: _Document, is_: _Document) -> Iterator[Change]:
    for old in was.messages:
        for new in is_.of(old.topic)[0] if old.kind == "send" else ():
            before, now = old.details.get("key"), new.details.get("key")
            if new.signal == old.signal and before != now:
                text = (
                    f"has the key {now}, no more {before}: events of one {before} are not in order while both are sent"
                )
                advice = "export to a new topic with the new key"
                if before is None:
                    text, advice = f"has now the key {now}", "nothing: events get an order that they did not have"
                yield _change("key-changed", _FORWARD, new, text, advice, is_break=before is not None)


def _pairs(written: _Document, read: _Document, readers: Direction) -> Iterator[Change]:
    """Compare what one document writes with what the other one reads."""
    for topic in dict.fromkeys(each.topic for each in read.messages):
        (sent, accepted), (declared, received) = written.of(topic), read.of(topic)
        if written.service == read.service:  # programs elsewhere write what is accepted, and read what is declared
            sent, received = sent or accepted, received or declared
        for writer, reader in product(sent, received):
            yield from _pair(written, read, writer, reader, readers)


def _pair(
    written: _Document, read: _Document, writer: _Message, reader: _Message, readers: Direction
) -> Iterator[Change]:
    if writer.version > reader.version:
        yield _newer(writer, reader, readers)
        return
    oldest = reader.details.get("oldestVersion")
    if oldest is not None and writer.version < reader.version:  # upcasters decide
        if writer.version < oldest:
            text = f"of version {writer.version} is refused: upcasters begin with {oldest}"
            yield _change("version-refused", readers, reader, text, f"keep upcasters={{{writer.version}: …}}")
        return
    if writer.version < reader.version and reader.kind == "send":
        text = f"has now version {reader.version}: who receives it needs an upcaster of version {writer.version}"
        advice = f"receive(…, version={reader.version}, upcasters={{{writer.version}: …}}) in its readers, first"
        yield _change("version-raised", readers, reader, text, advice, is_break=False)
        return
    if writer.payload is None or reader.payload is None:
        yield from _codecs(writer, reader, readers)
        return
    if writer.details.get("senderCodec") != reader.details.get("senderCodec") and writer.kind == reader.kind:
        names = writer.details.get("senderCodec"), reader.details.get("senderCodec")
        text = f"has its sender written by {names[0] or 'the default'}, not {names[1] or 'the default'}"
        yield _change("sender-codec-changed", readers, reader, text, "see that both give the same text", is_break=False)
    for misfit in Fit(written.resolve, read.resolve).misfits(writer.payload, reader.payload):
        yield _misfit(writer, reader, readers, misfit)


def _newer(writer: _Message, reader: _Message, readers: Direction) -> Change:
    text = f"of version {writer.version} is newer than {reader.version}, the newest that is read"
    if readers == _FORWARD:
        advice = "deploy the readers first; old instances leave these events to new ones"
        return _change("version-raised", readers, writer, text, advice, is_break=False)
    return _change("version-lowered", readers, reader, text, f"receive(…, version={writer.version})")


def _codecs(writer: _Message, reader: _Message, readers: Direction) -> Iterator[Change]:
    names = writer.details.get("codec"), reader.details.get("codec")
    if names[0] == names[1]:
        text = f"is not compared: {names[0]} gives no schema"
        advice = "give the codec a method json_schema(*, written)"
        yield _change("not-compared", readers, reader, text, advice, is_break=False)
    else:
        text = f"is written by the codec {names[0]}, and read by {names[1]}"
        advice = "raise version, and let the codec of the readers read both: decode(body, version)"
        yield _change("codec-changed", readers, reader, text, advice)


_NAMES: Final = {"missing": "field-missing", "unknown": "field-refused", "type": "type-changed"}


def _misfit(writer: _Message, reader: _Message, readers: Direction, misfit: Misfit) -> Change:
    side = writer if readers == _FORWARD else reader
    newer = side.version + 1
    advice = f"raise it to version={newer}, and receive with version={newer}, upcasters={{{side.version}: …}}"
    if misfit.kind == "missing" and readers == _BACKWARD:
        advice = f"give it a default, or {advice}"
    elif misfit.kind == "missing":
        advice = f"keep it, or {advice}"
    field = misfit.path.removeprefix(".")
    return _change(_NAMES[misfit.kind], readers, side, misfit.reason, advice, field=field)


def _change(  # noqa: PLR0913  the parts of one line
    kind: str, readers: Direction, message: _Message, text: str, advice: str, *, field: str = "", is_break: bool = True
) -> Change:
    return Change(kind, readers, message.topic, message.signal, field, text, advice, is_break)
