"""What crosses the wire: trace context everywhere it should, and nothing hostile any further than the dead letters."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from relay_support import ENGINES, World, until, world

from asignals import Signal, signal
from asignals.relay import (
    BodyError,
    DeadLetter,
    DeadLetters,
    Delivery,
    Envelope,
    EnvelopeError,
    Memo,
    Memory,
    PublishRefusedError,
    Relay,
    Transport,
)
from asignals.relay._codec import codec_for
from asignals.relay.engines._database import consumer
from asignals.relay.engines._jetstream.answers import place_of, problem_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world of its own for every test."""
    async with world(request.param, tmp_path) as made:
        yield made


def declared() -> Signal[..., Any]:
    """Make a signal with types; each process has its own, and here each relay."""

    @signal
    def order_paid(sender: str, *, amount: int) -> None:
        """An order was paid."""

    return order_paid


async def add_service(transport: Transport, service: str, topic: str) -> None:
    """Make a service known to engines that keep events only for those."""
    if hasattr(transport, "add_service"):
        await transport.add_service(service, [topic])


# -- trace context -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["memory", "jetstream"], indirect=True)
async def test_a_trace_goes_on_in_receivers_elsewhere_and_in_what_they_send(engine: World) -> None:
    """The sender's span is the parent of what receivers do in another process, and of what comes of their sends."""
    shop, billing, post = (Relay(engine.open(), name) for name in ("shop", "billing", "other"))
    order, order_there, bill, bill_there = declared(), declared(), declared(), declared()
    shop.export(order, "order")
    billing.receive(order_there, "order")
    billing.export(bill, "bill")
    post.receive(bill_there, "bill")
    tracer = TracerProvider().get_tracer("test")
    contexts: dict[str, Any] = {}

    @order_there.connect
    async def charge(sender: str, amount: int) -> None:
        contexts["charge"] = trace.get_current_span().get_span_context()
        with tracer.start_as_current_span("charge") as span:
            contexts["span"] = span.get_span_context()
            await bill.send(sender, amount=amount)

    @bill_there.connect
    async def mail(**_: Any) -> None:
        contexts["mail"] = trace.get_current_span().get_span_context()

    async with shop, billing, post:
        with tracer.start_as_current_span("buy") as span:
            await order.send("A-1", amount=1)
        await until(lambda: "mail" in contexts)
    begun = span.get_span_context()
    assert (contexts["charge"].trace_id, contexts["charge"].span_id) == (begun.trace_id, begun.span_id)
    assert (contexts["mail"].trace_id, contexts["mail"].span_id) == (begun.trace_id, contexts["span"].span_id)
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize("traceparent", [None, "", "00-zz-1-01", "x" * 900, "ff-" + "0" * 32, TRACEPARENT + "-more"])
async def test_a_malformed_trace_context_calls_receivers_all_the_same(traceparent: str | None) -> None:
    """What is no traceparent begins no trace and is no failure."""
    memory, into, contexts = Memory(), declared(), []
    billing = Relay(memory, "billing")
    billing.receive(into, "order")
    with into.connected(lambda **_: contexts.append(trace.get_current_span().get_span_context())):
        async with billing:
            await memory.publish_many([Envelope("order", b'{"amount": 1}', traceparent=traceparent)])
            await until(lambda: contexts)
    assert not contexts[0].is_valid
    assert billing.health().failed == 0


async def test_a_send_without_a_span_carries_no_trace() -> None:
    """Where no span is current nothing is written."""
    memory, out, seen = Memory(), declared(), []
    shop = Relay(memory, "shop")
    shop.export(out, "order")

    async def look(delivery: Delivery) -> None:
        seen.append(Envelope.decode(delivery.data))

    task = asyncio.create_task(memory.consume("audit", "one", ["order"], look))
    await out.send("A-1", amount=1)
    await until(lambda: seen)
    task.cancel()
    assert seen[0].traceparent is None


# -- hostile events, on every engine -----------------------------------------------------------------------------------


async def letters_of(transport: DeadLetters) -> list[DeadLetter]:
    """Read a queue of dead letters to its end."""
    async with aclosing(transport.scan_dead_letters("dlq.billing")) as batches:
        return [letter async for some in batches for letter in some]


class Raw(Envelope):
    """An envelope that writes what a program which is not ours might write."""

    data = b""

    def encode(self) -> bytes:
        return self.data


def raw(data: bytes) -> Envelope:
    """Make an event of any bytes."""
    return type("Raw", (Raw,), {"data": data})("order", b"")


HOSTILE = {
    "no envelope": raw(b"\x00garbage"),
    "empty": raw(b""),
    "too large": raw(b'{"id":"a","topic":"order"}\n' + b"x" * 5_000_000),
    "wrong type": Envelope("order", b'{"amount": []}'),
    "sender with NUL": raw(b'{"id":"a1","topic":"order","sender":"a\\u0000b"}\n{"amount":1}'),
    "endless sender": raw(b'{"id":"a2","topic":"order","sender":"' + b"x" * 5_000 + b'"}\n{"amount":1}'),
    "another topic": raw(b'{"id":"a4","topic":"unknown.topic"}\n{"amount":1}'),
    "topic of elsewhere": raw(b'{"id":"a3","topic":"../../order"}\n{"amount":1}'),
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*ENGINES, "psycopg"], indirect=True)
async def test_hostile_events_are_refused_or_dead_letters_and_the_rest_flows(
    engine: World,
    caplog: pytest.LogCaptureFixture,
    long: bool,  # noqa: FBT001
) -> None:
    """On every engine, poison is refused or becomes a dead letter, topics nobody receives pass, good events arrive."""
    into, heard = declared(), set()
    billing, transport = Relay(engine.open(), "billing"), engine.open()
    billing.receive(into, "order")
    await add_service(billing.transport, "billing", "order")
    poison = dict(HOSTILE)
    if long or engine.name in ("memory", "redis", "rabbitmq"):  # databases take seconds for it
        poison["50 MB"] = raw(b"x" * 50_000_000)
    refused = 0
    with caplog.at_level(logging.CRITICAL, "asignals"), into.connected(lambda amount, **_: heard.add(amount)):
        async with billing:
            for number, event in enumerate(poison.values()):
                try:
                    await transport.publish_many([event])
                except PublishRefusedError:
                    refused += 1
                await transport.publish_many(
                    [Envelope("unknown.topic", b"{}"), Envelope("order", b'{"amount": %d}' % number)]
                )
            await until(lambda: len(heard) == len(poison) and billing.health().dead >= len(poison) - refused)
            async with asyncio.timeout(60):  # on a busy machine one is given up twice before another one is once
                while len({each.raw for each in await billing.dead_letters()}) < len(poison) - refused:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            letters = await billing.dead_letters()
    assert len({letter.raw for letter in letters}) == len(poison) - refused
    assert max(len(letter.raw) for letter in letters) < 1_100_000
    assert refused == (1 if engine.name == "jetstream" else 0)
    assert billing.final_status is not None
    assert billing.final_status.backlog == 0


@pytest.mark.parametrize("engine", [*ENGINES, "psycopg"], indirect=True)
async def test_what_is_no_letter_hides_no_letters(engine: World) -> None:
    """Something in a queue of dead letters that is none is shown as what it is, between the others, and removed."""

    class Junk(DeadLetter):
        def encode(self) -> bytes:
            return b"junk"

    transport = engine.open()
    letters = [kind(b"%d" % number, "billing", "1") for number, kind in enumerate([DeadLetter, Junk, DeadLetter])]
    for letter in letters:
        await transport.put_dead_letter("dlq.billing", letter)
    found = await letters_of(transport)
    if engine.name != "memory":  # which keeps the objects
        assert sorted(letter.raw for letter in found) == [b"0", b"2", b"junk"]
    junk = next(letter for letter in found if letter.raw not in (b"0", b"2"))
    await transport.delete_dead_letters("dlq.billing", [junk])
    assert [letter.raw for letter in await letters_of(transport)] == [b"0", b"2"]


def test_a_copy_of_a_letter_has_its_id() -> None:
    """An event that is given up twice, as its acknowledgement was lost, has one letter, readable or not."""
    for data in (b"garbage", Envelope("order", b"{}").encode()):
        assert DeadLetter(data, "billing", "1").id == DeadLetter(data, "billing", "2", 5).id
        assert DeadLetter(data, "billing", "1").id != DeadLetter(data, "other", "1").id
    assert DeadLetter(b"a", "billing", "").id != DeadLetter(b"b", "billing", "").id


@pytest.mark.parametrize("engine", ["postgres", "psycopg"], indirect=True)
async def test_notifications_wake_a_consumer(engine: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With either driver of PostgreSQL a consumer hears of an event by NOTIFY, long before it would look by itself."""
    monkeypatch.setattr(consumer, "POLL", 300.0)
    transport, bodies = engine.open(), []

    async def handle(delivery: Delivery) -> None:
        bodies.append(Envelope.decode(delivery.data).body)

    task = asyncio.create_task(engine.open().consume("billing", "one", ["order"], handle))
    for number in range(3):
        await transport.publish_many([Envelope("order", b"%d" % number)])
        await until(lambda number=number: len(bodies) == number + 1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert bodies == [b"0", b"1", b"2"]


# -- fuzz --------------------------------------------------------------------------------------------------------------

headers = st.dictionaries(
    st.sampled_from(["id", "topic", "version", "origin", "time", "hops", "sender", "key", "target", "traceparent"])
    | st.text(max_size=5),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["order", "billing", TRACEPARENT, "shop/one", "\ud800", "a" * 2_000])
    | st.lists(st.integers(), max_size=2),
    max_size=8,
)
bodies = st.binary(max_size=60) | st.sampled_from(
    [b'{"amount": 1}', b'{"amount": 1e400}', b'{"amount": 1' + b"0" * 5_000 + b"}", b"[" * 20_000, b'{"amount": NaN}']
)


@st.composite
def wires(draw: st.DrawFn) -> bytes:
    """Draw bytes as they may arrive: mostly a header line and a body, now and then cut or mixed up."""
    data = json.dumps(draw(headers)).encode() + b"\n" + draw(bodies)
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(data)))
        data = data[:cut] + draw(st.binary(max_size=3)) + data[cut:][draw(st.integers(0, 3)) :]
    return data


@given(data=wires() | st.binary(max_size=200))
@example(b'{"id":"a","topic":"order","time":0,"sender":"x"}\n{"amount":1' + b"0" * 5_000 + b"}")
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_arrives_is_handled_or_a_dead_letter(data: bytes) -> None:
    """Any bytes end in a receiver's call, in being passed over, or in a dead letter; nothing is raised or retried."""

    async def run() -> None:
        memory, into, heard = Memory(), declared(), []
        billing = Relay(memory, "billing")
        billing.receive(into, "order", retries=0)
        with into.connected(lambda amount, **_: heard.append(amount)):
            assert await billing._inbound.handle(Delivery("order", data)) is None
        counts = billing.health()
        assert counts.received + counts.ignored + counts.dead == 1
        assert len(heard) == counts.received
        assert all(type(amount) is int for amount in heard)
        for letter in await billing.dead_letters():
            assert letter.raw == data

    level = logging.getLogger("asignals").level
    logging.getLogger("asignals").setLevel(logging.CRITICAL)
    try:
        asyncio.run(run())
    finally:
        logging.getLogger("asignals").setLevel(level)


@given(data=wires() | st.binary(max_size=200), position=st.text(max_size=5))
def test_whatever_a_queue_of_dead_letters_holds_is_a_letter_or_refused(data: bytes, position: str) -> None:
    """Bytes in a dead letter queue are read or refused with `EnvelopeError`, and what is shown can be removed."""
    letter = DeadLetter.read(data, position)
    with suppress(EnvelopeError):
        assert DeadLetter.decode(data, position) == letter
    assert isinstance(letter.id, str)
    assert letter.position == position
    assert letter.envelope is None or isinstance(letter.envelope, Envelope)


json_texts = st.dictionaries(st.text(max_size=6), st.integers() | st.text() | st.none()).map(json.dumps).map(str.encode)
memos = st.dictionaries(st.sampled_from(["done", "failures"]), st.lists(st.text()) | st.integers() | st.none())


@given(data=st.binary() | st.text().map(str.encode) | memos.map(json.dumps).map(str.encode))
@example(b"[" * 20_000)
@example(b'{"done": [], "failures": 1e999}')
def test_whatever_an_inbox_holds_is_a_memo(data: bytes) -> None:
    """What was not written by an inbox is as good as nothing."""
    memo = Memo.decode(data)
    assert Memo.decode(memo.encode()) == memo


@given(reply=st.text() | st.lists(st.integers().map(str) | st.text(max_size=3), max_size=12).map(".".join))
def test_whatever_jetstream_is_said_to_deliver_is_placed_or_passed_over(reply: str) -> None:
    """A subject that is no acknowledgement's gives no place, and raises nothing."""
    place = place_of(f"$JS.ACK.{reply}")
    assert place is None or all(type(number) is int for number in (place[0], *place[1]))


@example(b'{"stream":0}')
@given(answer=st.binary() | json_texts | st.sampled_from([b'{"error": 7}', b'{"error": []}', b"null", b"[" * 20_000]))
def test_whatever_answers_a_publication_is_no_acknowledgement(answer: bytes) -> None:
    """Only JetStream's own acknowledgement counts as one; of others it is said what they were."""
    problem = problem_of(answer)
    assert problem is not None
    assert problem["description"]


def test_jetstreams_own_answers_are_understood() -> None:
    """An acknowledgement is no problem, and an error is the one that was told; both kinds of subjects are read."""
    assert problem_of(b'{"stream": "s", "seq": 1, "duplicate": true}') is None
    error = {"code": 400, "err_code": 10054, "description": "too large"}
    assert problem_of(json.dumps({"error": error}).encode()) == error
    assert place_of("$JS.ACK.stream.consumer.3.17.5.1700000000.0") == (3, (17, 1700000000))
    assert place_of("$JS.ACK.domain.account.stream.consumer.3.17.5.1700000000.0.x") == (3, (17, 1700000000))


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from([object(), 1j, "\ud800", {1, 2}, Envelope, ...]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@given(value=anything, sender=anything)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_whatever_is_sent_crosses_or_is_refused_by_name(value: Any, sender: Any) -> None:
    """Any argument and sender is published so that it can be read again, or refused by an error that says what."""

    async def run() -> None:
        memory, out, seen = Memory(), Signal(["value"], name="out"), []
        shop = Relay(memory, "shop")
        shop.export(out, "order")
        try:
            await out.send(sender, value=value)
        except (BodyError, EnvelopeError, TypeError) as error:
            named = "'out'" if isinstance(error, BodyError) else "sender"
            if named in str(error):
                return
            raise
        seen = [Envelope.decode(data) for _, _, data in memory._kept]
        assert [event.sender for event in seen] == [sender]
        assert set(codec_for(out, []).decode(seen[0].body)) == {"value"}

    asyncio.run(run())
