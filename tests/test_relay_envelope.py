"""Envelopes, dead letters and codecs: what is written can be read, and nothing else is believed."""

from __future__ import annotations

import json
import math
import time
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypedDict

from asignals import Signal, signal
from asignals.relay import DeadLetter, Envelope, EnvelopeError, JSONCodec, MsgspecCodec, PydanticCodec
from asignals.relay._codec import codec_for
from asignals.relay._envelope import MAX_BODY, MAX_HEADER

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=50)
names = st.from_regex(r"[A-Za-z0-9_-]{1,20}(\.[A-Za-z0-9_-]{1,20}){0,3}", fullmatch=True)


@given(
    topic=names,
    body=st.binary(max_size=300),
    version=st.integers(1, 1000),
    origin=texts,
    hops=st.integers(0, 100),
    sender=st.none() | texts,
    key=st.none() | texts,
    target=st.none() | names,
)
def test_an_envelope_survives_the_wire(**fields: Any) -> None:
    """What `encode` writes, `decode` reads, whatever the texts and bytes are."""
    envelope = Envelope(**fields)
    assert Envelope.decode(envelope.encode()) == envelope


@given(st.binary(max_size=400))
def test_other_bytes_are_refused_and_nothing_worse(data: bytes) -> None:
    """Bytes that are no envelope raise `EnvelopeError`, nothing else."""
    with pytest.raises(EnvelopeError):
        Envelope.decode(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ["id", "topic", "version", "origin", "time", "hops", "sender", "key", "target", "traceparent", "repeats"]


@given(field=st.sampled_from(FIELDS), value=json_values)
def test_a_header_field_of_any_type_is_read_or_refused(field: str, value: Any) -> None:
    """A header with any JSON value in any field gives an envelope that can be sent again, or `EnvelopeError`."""
    header = {"id": "a", "topic": "t", "version": 1, "time": 0, field: value}
    try:
        envelope = Envelope.decode(json.dumps(header).encode() + b"\n{}")
    except EnvelopeError:
        return
    assert Envelope.decode(envelope.encode()) == envelope


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{}\n{}",
        b"[]\n",
        b"null\n",
        b'{"id":"a","topic":"t"' + b" " * MAX_HEADER + b"}\n",
        b"[" * 10_000 + b"\n",
        b'{"id":"a","topic":"t","hops":1e400}\n',
        b'{"id":"a","topic":"t","time":NaN}\n',
        b'{"id":"a","topic":"t","version":true}\n',
        b'{"id":"a\\n","topic":"t"}\n',
        b'{"id":"a","topic":"../x"}\n',
        b'{"id":"a","topic":"t","sender":"\\u0000"}\n',
        b'{"id":"a","topic":"t","sender":"\\ud800"}\n',
        b'{"id":"a","topic":"t","origin":null}\n',
        b'{"id":"a","topic":"t"}\n' + b"x" * (MAX_BODY + 1),
        b"x" * 50_000_000,
    ],
    ids=lambda data: repr(data[:24]),
)
def test_hostile_envelopes_are_refused(data: bytes) -> None:
    """Wrong types, depth, sizes, control characters and missing fields are refused, quickly."""
    with pytest.raises(EnvelopeError):
        Envelope.decode(data)


def test_unknown_header_fields_are_ignored() -> None:
    """A field of a later release does no harm."""
    assert Envelope.decode(b'{"id":"a","topic":"t","color":"red","time":1}\n{}').topic == "t"


def test_what_may_not_be_received_may_not_be_sent() -> None:
    """`encode` holds an envelope to the rules of `decode`."""
    long = dict.fromkeys(("sender", "key"), "\N{SLICE OF PIZZA}" * 1000)  # 12 bytes each, as JSON writes it
    for wrong in ({"topic": "a b"}, {"sender": "x" * 2000}, {"key": "\0"}, {"id": "a/b"}, {"version": 0}, long):
        with pytest.raises(EnvelopeError) as caught:
            Envelope(**{"topic": "t", "body": b"", **wrong}).encode()
        assert str(caught.value) == f"not an acceptable envelope: {caught.value.reason}"


def test_an_envelope_cannot_be_changed_and_its_id_sorts_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has an id of its own, later ones after earlier ones."""
    ids = []
    for second in range(1_000, 1_100):
        monkeypatch.setattr(time, "time_ns", lambda second=second: second * 10**9)
        ids += [Envelope("t", b"").id]
    assert sorted(set(ids)) == ids
    with pytest.raises(AttributeError):
        Envelope("t", b"").topic = "other"  # type: ignore[misc]


def test_a_reader_may_set_a_limit_to_the_body() -> None:
    """`decode` refuses a body of more than `max_body` bytes."""
    data = Envelope("t", b"12345").encode()
    assert Envelope.decode(data, max_body=5).body == b"12345"
    with pytest.raises(EnvelopeError, match="its body has 5 bytes, more than 4"):
        Envelope.decode(data, max_body=4)


def test_a_dead_letter_keeps_a_megabyte() -> None:
    """What was larger is cut, and the error is cut as well."""
    letter = DeadLetter(b"x" * 5_000_000, "billing", "e" * 5_000_000)
    read = DeadLetter.decode(letter.encode(), "")
    assert set(read.raw) == set(b"x")
    assert 1_000_000 <= len(read.raw) < 1_100_000
    assert read.error == "e" * 1000


@given(raw=st.binary(max_size=200), error=st.text(max_size=50), attempts=st.integers(1, 10))
def test_a_dead_letter_keeps_the_bytes_as_they_came(raw: bytes, error: str, attempts: int) -> None:
    """Raw bytes, error and attempts survive, whatever they are."""
    letter = DeadLetter(raw, "billing", error, attempts)
    read = DeadLetter.decode(letter.encode(), "7")
    assert (read.raw, read.error, read.attempts, read.position) == (raw, error, attempts, "7")


@signal
def typed(  # noqa: PLR0913  types of several kinds
    sender: str, *, at: datetime, price: Decimal, tags: list[str], note: str = "none", session: Any = None
) -> None:
    """A signal whose arguments JSON does not know."""


ARGUMENTS = {"at": datetime(2026, 1, 2, tzinfo=UTC), "price": Decimal("1.10"), "tags": ["a"], "note": "n"}


def test_a_stub_gives_its_types_to_the_codec() -> None:
    """Dates and decimals come back as what the stub says."""
    codec = codec_for(typed, ["session"])
    assert isinstance(codec, PydanticCodec)
    assert codec.decode(codec.encode(ARGUMENTS)) == ARGUMENTS


def test_msgspec_does_the_same_without_pydantic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pydantic is not installed, msgspec reads the stub's types."""
    from asignals.relay import _codec

    find = _codec.find_spec
    monkeypatch.setattr(_codec, "find_spec", lambda name: None if name == "pydantic" else find(name))
    codec = codec_for(typed, ["session"])
    assert isinstance(codec, MsgspecCodec)
    assert codec.decode(codec.encode(ARGUMENTS)) == ARGUMENTS


def test_plain_json_is_for_signals_without_types() -> None:
    """A signal of names takes those names from a body, and one without takes all."""
    named = codec_for(Signal(["a", "b"]), [])
    assert isinstance(named, JSONCodec)
    assert named.decode(b'{"a": 1, "b": [2], "c": 3}') == {"a": 1, "b": [2]}
    assert codec_for(Signal(), []).decode(b'{"z": null}') == {"z": None}
    with pytest.raises(ValueError, match="JSON"):
        named.encode({"a": math.nan})


@pytest.mark.parametrize("kind", [PydanticCodec, MsgspecCodec])
def test_arguments_that_are_not_known_are_left_out(kind: Any) -> None:
    """A later version of the sender may send more."""
    codec = kind(TypedDict("Arguments", {"amount": int}))
    assert codec.decode(b'{"amount": 1, "tip": 2}') == {"amount": 1}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b'"x"', b"\xff", b'{"a": NaN}', b"[" * 100_000, b'{"a":' * 50_000, b"x" * 100_000]
)
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    """Every codec refuses what is no JSON object with `ValueError`, deep nesting included."""
    for codec in (JSONCodec(), codec_for(typed, ["session"])):
        with pytest.raises(ValueError):  # noqa: PT011  pydantic words its own messages
            codec.decode(body)


def test_arguments_that_do_not_fit_their_types_are_refused_when_sent() -> None:
    """The sender hears of a wrong type, not the receivers."""
    codec = codec_for(typed, ["session"])
    with pytest.raises(Exception, match="datetime"):
        codec.encode({**ARGUMENTS, "at": "yesterday"})


def test_types_that_cannot_be_found_are_an_error_at_once() -> None:
    """A stub with types of a local scope needs a codec, and the message says so."""

    @signal
    def local(sender: str, *, value: Unknown) -> None:  # type: ignore[name-defined]  # noqa: F821  what is tested
        """Cannot be resolved."""

    with pytest.raises(TypeError, match="give codec="):
        codec_for(local, [])
