"""What a relay promises, on the engine in memory: who is called, how often, and what becomes of failures."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import until

from asignals import Signal, signal
from asignals.relay import (
    BodyError,
    DeadLetter,
    Delivery,
    Envelope,
    HopLimitError,
    Memo,
    Memory,
    MemoryInbox,
    PublishRefusedError,
    Relay,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from asignals.relay import Handle

pytestmark = pytest.mark.anyio
QUICK = (0.01, 0.02)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture
def memory() -> Memory:
    """An engine."""
    return Memory()


def declared() -> Signal[..., Any]:
    """Make a signal with types; each process has its own, and here each relay."""

    @signal
    def order_paid(sender: str, *, amount: int, note: str = "none", session: Any = None) -> None:
        """An order was paid."""

    return order_paid


def pair(memory: Any, **options: Any) -> tuple[Relay, Signal[..., Any], Relay, Signal[..., Any]]:
    """Make two services: a shop that exports, and billing that receives."""
    shop, billing = Relay(memory, "shop"), Relay(memory, "billing", grace=2)
    out, into = declared(), declared()
    shop.export(out, "order.paid")
    billing.receive(into, "order.paid", **{"backoff": QUICK, **options})
    return shop, out, billing, into


@contextmanager
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Expect errors in the log."""
    with caplog.at_level(logging.CRITICAL, "asignals"):
        yield


async def test_a_send_reaches_the_receivers_of_another_service(memory: Memory) -> None:
    """Sender, arguments and defaults arrive as they were sent, in the types of the stub."""
    shop, out, billing, into = pair(memory)
    heard = []
    into.connect(heard_by := (lambda **named: heard.append(named)), weak=False)
    async with shop, billing:
        await out.send("A-1", amount=42)
        await until(lambda: heard)
    assert heard_by
    assert heard == [{"signal": into, "sender": "A-1", "amount": 42, "note": "none", "session": None}]


async def test_receivers_are_called_in_the_signals_order(memory: Memory) -> None:
    """Priority and order of connection hold for remote events, sync and async alike."""
    shop, out, billing, into = pair(memory)
    order = []

    @into.connect
    def second(**_: Any) -> None:
        order.append("second")

    @into.connect(priority=1)
    async def first(**_: Any) -> None:
        order.append("first")

    @into.connect(sender="somebody else", weak=False)
    def never(**_: Any) -> None:
        order.append("never")

    async with shop, billing:
        await out.send("A-1", amount=1)
        await until(lambda: len(order) == 2)
    assert order == ["first", "second"]


async def test_the_sending_process_does_not_get_its_event_back(memory: Memory) -> None:
    """A relay that exports and receives one signal calls each receiver once: `send` did."""
    relay, sent = Relay(memory, "shop"), declared()
    relay.export(sent, "order.paid")
    relay.receive(sent, "order.paid")
    calls = []
    sent.connect(receiver := (lambda **named: calls.append(named["amount"])), weak=False)
    async with relay:
        await sent.send("A-1", amount=1)
        await until(lambda: relay.health().ignored == 1)
    assert receiver
    assert calls == [1]


@pytest.mark.parametrize("own", [True, False])
async def test_another_instance_of_the_service_gets_it_if_wanted(memory: Memory, own: bool) -> None:  # noqa: FBT001
    """`include_own_service` decides whether a worker hears what the web processes of its own service send."""
    web, worker, out, into = Relay(memory, "shop"), Relay(memory, "shop"), declared(), declared()
    web.export(out, "order.paid")
    worker.receive(into, "order.paid", include_own_service=own)
    calls = []
    into.connect(receiver := (lambda **_: calls.append(1)), weak=False)
    async with web, worker:
        await out.send("A-1", amount=1)
        await until(lambda: worker.health().ignored + worker.health().received == 1)
    assert receiver
    assert calls == ([1] if own else [])


async def test_a_received_event_is_not_exported_again(memory: Memory) -> None:
    """A bridge that receives and exports the same signal sends only its own events on."""
    bridge, sent = Relay(memory, "bridge"), declared()
    other = Memory()
    onward = Relay(other, "bridge")
    bridge.receive(sent, "order.paid", allow_no_receivers=True)
    onward.export(sent, "order.paid")
    shop, out = Relay(memory, "shop"), declared()
    shop.export(out, "order.paid")
    async with bridge, onward, shop:
        await out.send("A-1", amount=1)
        await until(lambda: bridge.health().received == 1)
        assert onward.health().published == 0
        await sent.send("A-2", amount=2)
        assert onward.health().published == 1


async def test_services_that_answer_each_other_for_ever_are_stopped(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop of events ends at the hop limit, as an error of the receiver that sent once more."""
    ping, pong = declared(), declared()
    left, right = Relay(memory, "left", hop_limit=4), Relay(memory, "right", hop_limit=4)
    ping_there, pong_here = declared(), declared()
    left.export(ping, "ping")
    right.receive(ping_there, "ping", retries=0)
    right.export(pong, "pong")
    left.receive(pong_here, "pong", retries=0)
    errors = []

    @ping_there.connect
    async def answer(sender: str, amount: int, **_: Any) -> None:
        try:
            await pong.send(sender, amount=amount + 1)
        except HopLimitError as error:
            errors.append(error)
            raise

    @pong_here.connect
    async def ask(sender: str, amount: int, **_: Any) -> None:
        await ping.send(sender, amount=amount + 1)

    with quiet(caplog):
        async with left, right:
            await ping.send("A-1", amount=0)
            await until(lambda: left.health().dead + right.health().dead == 1)
    assert left.health().published + right.health().published == 5  # the first, and four that follow from one another
    assert [(error.signal, error.topic, error.hops) for error in errors] == [(pong.name, "pong", 5)]


async def test_a_failed_receiver_alone_is_called_again(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    """All receivers run though one fails, and the retry calls only that one."""
    shop, out, billing, into = pair(memory)
    calls = []

    @into.connect
    def before(**_: Any) -> None:
        calls.append("before")

    @into.connect
    async def failing(**_: Any) -> None:
        calls.append("failing")
        if calls.count("failing") < 3:
            raise ConnectionError

    @into.connect
    async def after(**_: Any) -> None:
        calls.append("after")

    with quiet(caplog):
        async with shop, billing:
            await out.send("A-1", amount=1)
            await until(lambda: billing.health().received == 1)
    assert calls == ["before", "failing", "after", "failing", "failing"]
    assert billing.health().failed == 2


async def test_two_receivers_with_one_name_are_told_apart(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    """Methods of two objects share a name; the failing one is called again, not passed over for the other."""
    shop, out, billing, into = pair(memory)

    class Desk:
        def __init__(self, failures: int) -> None:
            self.failures = failures
            self.calls = 0

        async def on_paid(self, **_: Any) -> None:
            self.calls += 1
            if self.calls <= self.failures:
                raise ConnectionError

    good, bad = Desk(0), Desk(1)
    into.connect(good.on_paid)
    into.connect(bad.on_paid)
    with quiet(caplog):
        async with shop, billing:
            await out.send("A-1", amount=1)
            await until(lambda: billing.health().received == 1)
    assert (good.calls, bad.calls) == (1, 2)


async def test_after_its_retries_an_event_is_a_dead_letter(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    """It is tried once and `retries` times more, then kept with the error; others go on."""
    shop, out, billing, into = pair(memory, retries=2, dead_letter="dlq.special")
    calls = []

    @into.connect
    async def fails(amount: int, **_: Any) -> None:
        calls.append(amount)
        if amount == 13:
            msg = "unlucky"
            raise ValueError(msg)

    with quiet(caplog):
        async with shop, billing:
            for amount in (13, 14, 15):
                await out.send("A-1", amount=amount)
            await until(lambda: billing.health().dead == 1)
            letters = await billing.dead_letters()
    assert calls.count(13) == 3
    assert (calls.count(14), calls.count(15)) == (1, 1)
    assert [(letter.error, letter.attempts, letter.service) for letter in letters] == [
        ("ValueError: unlucky", 3, "billing")
    ]
    assert await memory.count_dead_letters("dlq.special") == 1


async def test_a_replayed_letter_calls_what_had_failed(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    """Replay sends a letter to its own service again, calls no receiver that had succeeded, and removes it."""
    shop, out, billing, into = pair(memory, retries=0)
    other, elsewhere = Relay(memory, "other"), declared()
    other.receive(elsewhere, "order.paid")
    calls, broken = [], True

    @into.connect
    async def fine(**_: Any) -> None:
        calls.append("fine")

    @into.connect
    async def repaired(**_: Any) -> None:
        calls.append("repaired")
        if broken:
            raise ConnectionError

    @elsewhere.connect
    async def stranger(**_: Any) -> None:
        calls.append("stranger")

    with quiet(caplog):
        async with shop, billing, other:
            await out.send("A-1", amount=1)
            await until(lambda: billing.health().dead == 1 and "stranger" in calls)
            broken = False
            calls.clear()
            assert await billing.replay() == 1
            await until(lambda: billing.health().received == 1 and other.health().ignored == 1)
            assert await billing.dead_letters() == []
    assert calls == ["repaired"]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"garbage", id="no envelope"),
        pytest.param(b"x" * 50_000_000, id="50 MB"),
        pytest.param(Envelope("order.paid", b"{}").encode(), id="missing argument"),
        pytest.param(Envelope("order.paid", b"\x80\x04K\x01.").encode(), id="a pickle"),
        pytest.param(Envelope("order.paid", b'{"amount": "much"}').encode(), id="wrong type"),
        pytest.param(b'{"id":"a","topic":"order.paid","sender":"' + b"x" * 5000 + b'"}\n{"amount":1}', id="sender"),
    ],
)
async def test_what_cannot_be_read_is_a_dead_letter_at_once(
    memory: Memory, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """Hostile, invalid and newer events are never tried twice, call nobody, and hold nobody up."""
    shop, out, billing, into = pair(memory)
    calls = []
    into.connect(receiver := (lambda **named: calls.append(named["amount"])), weak=False)

    class Raw(Envelope):
        def encode(self) -> bytes:
            return data

    with quiet(caplog):
        async with shop, billing:
            await memory.publish_many([Raw("order.paid", b"")])
            await out.send("A-1", amount=7)
            await until(lambda: billing.health().dead == 1 and billing.health().received == 1)
            (letter,) = await billing.dead_letters("dlq.billing")
    assert receiver
    assert calls == [7]
    assert letter.attempts == 1
    assert data.startswith(letter.raw)
    assert len(letter.raw) <= min(len(data), 1_100_000)


async def test_events_of_other_topics_cost_nothing(memory: Memory) -> None:
    """A topic that a service does not receive never comes to it, and waits nowhere."""
    shop, out, billing, into = pair(memory)
    into.connect(receiver := (lambda **_: None), weak=False)
    async with shop, billing:
        await memory.publish_many([Envelope("something.else", b"{}")])
        await out.send("A-1", amount=1)
        await until(lambda: billing.health().received == 1)
    assert receiver
    assert (billing.health().ignored, billing.health().released) == (0, 0)
    assert billing.final_status is not None
    assert billing.final_status.backlog == 0


@pytest.mark.parametrize("sender", ["x" * 5000, "a\0b", "\ud800", object(), 7])
async def test_a_sender_that_cannot_cross_is_refused_when_sent(memory: Memory, sender: Any) -> None:
    """Hostile or unconvertible senders are the sender's error; nothing is published."""
    shop, out, _, _ = pair(memory)
    with pytest.raises((TypeError, ValueError)):
        await out.send(sender, amount=1)
    assert shop.health().published == 0


async def test_messages_name_the_relay_by_its_service_and_topic(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    """In notes, log lines and `connections`, with the line that exported the signal; nothing of how it is done."""
    shop, order_paid = Relay(memory, "shop"), Signal(["amount"], name="shop.order_paid")
    shop.export(order_paid, "order.paid")
    with pytest.raises(BodyError) as caught:
        await order_paid.send("web", amount=object())
    await order_paid.send_robust("web", amount=object())
    (connection,) = order_paid.connections
    label = f"relay shop → order.paid (connected at {__file__}:"
    for text in (caught.value.__notes__[-1], caplog.records[-1].getMessage(), repr(connection)):
        assert label in text
        assert "Exporter" not in text
    assert caplog.records[-1].__dict__["receiver"] == "relay shop → order.paid"


async def test_a_sender_with_odd_characters_arrives_as_it_is(memory: Memory) -> None:
    """Quotes, line ends and names of things to import are only text."""
    shop, out, billing, into = pair(memory)
    heard = []
    into.connect(receiver := (lambda sender, **_: heard.append(sender)), weak=False)
    names = ['a"b', "a\nb\r\n{}", "__import__('os')", "\u2028", "é" * 1000, ""]
    async with shop, billing:
        for name in names:
            await out.send(name, amount=1)
        await until(lambda: len(heard) == len(names))
    assert receiver
    assert heard == names


async def test_senders_cross_through_a_pair_of_functions(memory: Memory) -> None:
    """Objects are written by the first function, and read by the second, which may be async."""

    class Order:
        def __init__(self, number: int) -> None:
            self.number = number

    async def load(text: str | None) -> Order:
        assert text is not None
        return Order(int(text))

    senders = (lambda order: str(order.number), load)
    shop, billing = Relay(memory, "shop", sender_codec=senders), Relay(memory, "billing")
    out, into = Signal(["x"]), Signal(["x"])
    shop.export(out, "order")
    billing.receive(into, "order", sender_codec=senders)
    heard = []
    into.connect(receiver := (lambda sender, **_: heard.append(sender)), weak=False)
    async with shop, billing:
        await out.send(Order(5), x=1)
        await until(lambda: heard)
    assert receiver
    assert heard[0].number == 5


async def test_a_body_that_is_too_large_is_refused_when_sent(memory: Memory) -> None:
    """More than a megabyte of arguments is the sender's error."""
    shop, out, _, _ = pair(memory)
    with pytest.raises(BodyError, match="more than") as caught:
        await out.send("A-1", amount=1, note="x" * 1_000_001)
    assert (caught.value.signal, caught.value.reason) == (out.name, "they take 1000023 bytes, more than 1000000")
    assert shop.health().published == 0


async def test_local_arguments_stay_here(memory: Memory) -> None:
    """A session among the arguments is not written anywhere."""
    shop, out, billing, into = pair(memory)
    heard = []
    into.connect(receiver := (lambda session, **_: heard.append(session)), weak=False)
    async with shop, billing:
        await out.send("A-1", amount=1, session=None)
        await until(lambda: heard)
    assert receiver
    assert heard == [None]


async def test_an_event_that_comes_twice_is_handled_once_with_an_inbox(memory: Memory) -> None:
    """An inbox that is given remembers successes; another instance with the same inbox skips them."""
    inbox = MemoryInbox()
    calls = []
    for _ in range(2):
        billing, into = Relay(memory, "billing", inbox=inbox), declared()
        billing.receive(into, "order.paid")
        into.connect(receiver := (lambda **named: calls.append(named["amount"])), weak=False)
        async with billing:
            memory._ids.clear()  # the engine's own recognition of repetitions is not what is tested
            await memory.publish_many([Envelope("order.paid", b'{"amount": 1}', id="same")])
            await until(lambda billing=billing: billing.health().received == 1)
        assert receiver
    assert calls == [1]


async def test_an_inbox_out_of_reach_makes_events_wait(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    """While the inbox fails nobody is called and nothing becomes a dead letter; then all goes on."""

    class Away(MemoryInbox):
        away = 5

        async def recall(self, event_id: str, service: str) -> Any:
            self.away -= 1
            if self.away > 0:
                raise ConnectionError
            return await super().recall(event_id, service)

    billing, into = Relay(memory, "billing", inbox=Away()), declared()
    billing.receive(into, "order.paid", retries=0, backoff=QUICK)
    calls = []
    into.connect(receiver := (lambda **_: calls.append(1)), weak=False)
    with quiet(caplog):
        async with billing:
            await memory.publish_many([Envelope("order.paid", b'{"amount": 1}')])
            await until(lambda: calls)
    assert receiver
    assert billing.health().dead == 0


async def test_a_receiver_that_raises_cancellation_itself_has_failed(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    """`CancelledError` out of a receiver that nobody cancelled is a failure like another; the relay goes on."""
    shop, out, billing, into = pair(memory, retries=1)
    calls = []

    @into.connect
    async def odd(**_: Any) -> None:
        calls.append(1)
        raise asyncio.CancelledError

    with quiet(caplog):
        async with shop, billing:
            await out.send("A-1", amount=1)
            await until(lambda: billing.health().dead == 1)
    assert calls == [1, 1]


async def test_events_of_one_key_are_handled_one_after_the_other(memory: Memory) -> None:
    """Within an instance, events of a key do not overtake each other; other keys do not wait for them."""
    shop, billing = Relay(memory, "shop"), Relay(memory, "billing")
    out, into = Signal(["n"]), Signal(["n"])
    shop.export(out, "n", key=lambda sender, _arguments: sender)
    billing.receive(into, "n")
    order = []
    gate = asyncio.Event()

    @into.connect
    async def slow(sender: str, n: int, **_: Any) -> None:
        if sender == "a":
            await gate.wait()
        order.append((sender, n))

    async with shop, billing:
        for n in range(3):
            await out.send("a", n=n)
        await out.send("b", n=0)
        await until(lambda: order == [("b", 0)])
        gate.set()
        await until(lambda: len(order) == 4)
    assert order == [("b", 0), ("a", 0), ("a", 1), ("a", 2)]


async def test_leaving_waits_for_receivers_and_says_what_is_left(memory: Memory) -> None:
    """What runs may end; what has not begun stays with the engine for the next instance."""
    shop, out, billing, into = pair(memory)
    billing._runner.limit = 1
    began, gate, done = asyncio.Event(), asyncio.Event(), []

    @into.connect
    async def slow(amount: int, **_: Any) -> None:
        began.set()
        await gate.wait()
        done.append(amount)

    async with shop:
        async with billing:
            for amount in (1, 2):
                await out.send("A-1", amount=amount)
            await began.wait()
            asyncio.get_running_loop().call_later(0.05, gate.set)
        assert done == [1]
        assert billing.final_status is not None
        assert billing.final_status.backlog == 1
        async with billing:
            await until(lambda: len(done) == 2)
    assert done == [1, 2]


async def test_leaving_gives_up_waiting_after_the_time_of_grace(memory: Memory) -> None:
    """A receiver that does not end is cancelled, and its event stays."""
    shop, out, billing, into = pair(memory)
    billing._runner.grace = 0.05
    began = asyncio.Event()

    @into.connect
    async def stuck(**_: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    async with shop, billing:
        await out.send("A-1", amount=1)
        await began.wait()
    assert billing.final_status is not None
    assert billing.final_status.backlog == 1


class Flaky:
    """An engine whose publishing and consuming fail for a while."""

    def __init__(self, memory: Memory, failures: int) -> None:
        self.memory = memory
        self.failures = failures

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        self._maybe()
        await self.memory.publish_many(envelopes)

    async def consume(self, service: str, instance: str, topics: Any, handle: Handle, *, limit: int = 100) -> None:
        self._maybe()
        await self.memory.consume(service, instance, topics, handle, limit=limit)

    def _maybe(self) -> None:
        self.failures -= 1
        if self.failures >= 0:
            msg = "away"
            raise ConnectionError(msg)


async def test_a_lost_engine_is_tried_until_it_is_back(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    """Consuming is taken up again by itself, and `health` tells meanwhile."""
    billing, into = Relay(Flaky(memory, 3), "billing"), declared()
    billing.receive(into, "order.paid")
    calls = []
    into.connect(receiver := (lambda **_: calls.append(1)), weak=False)
    async with billing:
        await until(lambda: not billing.health().ok)
        assert "ConnectionError: away" in str(billing.health().problems)
        await memory.publish_many([Envelope("order.paid", b'{"amount": 1}')])
        await until(lambda: calls)
        await until(lambda: billing.health().ok)
    assert receiver
    assert [record.levelname for record in caplog.records if "lost" in record.message] == ["WARNING"]


async def test_without_an_outbox_the_sender_hears_of_a_lost_engine(memory: Memory) -> None:
    """`send` raises what the engine raised; no receiver here was called, however early it connected."""
    relay, sent = Relay(Flaky(memory, 1), "shop"), declared()
    calls = []
    sent.connect(receiver := (lambda **_: calls.append(1)), weak=False, priority=1e9)
    relay.export(sent, "order.paid")
    with pytest.raises(ConnectionError, match="away"):
        await sent.send("A-1", amount=1)
    assert receiver
    assert calls == []
    await sent.send("A-1", amount=1)
    assert calls == [1]


async def test_an_engine_that_does_not_answer_is_waited_for_so_long(memory: Memory) -> None:
    """`send` without an outbox raises `TimeoutError` after `publish_timeout` seconds."""

    class Silent(Memory):
        async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
            await asyncio.Event().wait()

    relay, sent = Relay(Silent(), "shop", publish_timeout=0.01), declared()
    relay.export(sent, "order.paid")
    async with asyncio.timeout(3) as patience:
        with pytest.raises(TimeoutError):
            await sent.send("A-1", amount=1)
    assert not patience.expired()
    await relay.aclose()


class Kept(Memory):
    """Keeps what is published."""

    def __init__(self) -> None:
        super().__init__()
        self.published: list[Envelope] = []

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        self.published += envelopes
        await super().publish_many(envelopes)


async def test_an_envelope_says_what_export_was_told() -> None:
    """Key, version, origin, sender and body are those of the options; arguments in `exclude_args` are left out."""

    class Amounts:
        def encode(self, arguments: Any) -> bytes:
            assert list(arguments) == ["amount"]
            return b"%d" % arguments["amount"]

        def decode(self, body: bytes, version: int) -> dict[str, Any]:
            assert version == 1
            return {"amount": int(body)}

    memory, sent, into, heard = Kept(), declared(), declared(), []
    relay, billing = Relay(memory, "shop", instance="one"), Relay(memory, "billing")
    relay.export(sent, "plain")
    relay.export(sent, "by.name", key="amount", version=3, exclude_args=("session", "note"))
    relay.export(sent, "by.function", key=lambda sender, arguments: f"{sender}-{arguments['amount']}")
    relay.export(sent, "other", codec=Amounts(), sender_codec=(str.lower, str.upper), exclude_args=("session", "note"))
    billing.receive(into, "other", codec=Amounts())
    async with billing:
        with into.connected(lambda sender, amount, **_: heard.append((sender, amount))):
            await sent.send("A-1", amount=7, note="hi", session=object())
            await until(lambda: heard)
    assert heard == [("a-1", 7)]
    found = {event.topic: event for event in memory.published}
    assert {topic: event.key for topic, event in found.items()} == {
        "plain": None,
        "by.name": "7",
        "by.function": "A-1-7",
        "other": None,
    }
    assert (found["plain"].version, found["by.name"].version) == (1, 3)
    assert {event.origin for event in memory.published} == {relay.origin} == {"shop/one"}
    assert (found["plain"].sender, found["other"].sender) == ("A-1", "a-1")
    assert found["plain"].body == b'{"amount":7,"note":"hi"}'
    assert found["by.name"].body == b'{"amount":7}'
    assert found["other"].body == b"7"


async def test_at_most_limit_events_are_handled_at_once(memory: Memory) -> None:
    """The others wait with the engine, and `health` says how many are being handled."""
    shop, out, _, _ = pair(memory)
    billing, into = Relay(memory, "slow", limit=2), declared()
    billing.receive(into, "order.paid")
    gate, running, most = asyncio.Event(), [], []

    @into.connect
    async def slow(amount: int, **_: Any) -> None:
        running.append(amount)
        most.append(len(running))
        await gate.wait()
        running.remove(amount)

    async with shop, billing:
        for amount in range(6):
            await out.send("A-1", amount=amount)
        await until(lambda: len(running) == 2)
        assert billing.health().in_flight == 2
        gate.set()
        await until(lambda: billing.health().received == 6)
    assert max(most) == 2


async def test_retries_wait_twice_as_long_each_time_and_never_longer_than_the_most() -> None:
    """Each pause is shortened at random by up to a half; after the last failure there is none."""
    asked: list[Any] = []

    class Asked(Memory):
        async def consume(self, service: str, instance: str, topics: Any, handle: Handle, *, limit: int = 100) -> None:
            data = Envelope("order.paid", b'{"amount": 1}').encode()
            asked.extend([await handle(Delivery("order.paid", data, attempt)) for attempt in range(1, 7)])
            await asyncio.Event().wait()

    relay, into = Relay(Asked(), "billing"), declared()
    relay.receive(into, "order.paid", retries=5, backoff=(100.0, 500.0))

    def fail(**_: Any) -> None:
        raise LookupError

    with into.connected(fail):
        async with relay:
            await until(lambda: len(asked) == 6)
    *pauses, last = asked
    assert last is None
    for pause, longest in zip(pauses, (100, 200, 400, 500, 500), strict=True):
        assert pause is not None
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) > 1


async def test_dead_letters_of_all_queues_are_shown_by_age_and_chosen_by_queue(memory: Memory) -> None:
    """At most `limit` of them, the oldest first; so does `replay`, which leaves what it cannot read."""
    relay, into = Relay(memory, "billing"), declared()
    relay.receive(into, "order.paid", dead_letter="dlq.a")
    relay.receive(into, "order.sent", dead_letter="dlq.b")
    events = [Envelope(topic, b'{"amount": 1}').encode() for topic in ("order.paid", "order.sent") * 2]
    letters = [DeadLetter(data, "billing", f"{number}", time=number) for number, data in enumerate([*events, b"?"], 1)]
    for letter, queue in zip(letters, ("dlq.b", "dlq.a", "dlq.b", "dlq.a", "dlq.a"), strict=True):
        await memory.put_dead_letter(queue, letter)
    assert (await relay.status()).dead == {"dlq.a": 3, "dlq.b": 2, "dlq.billing": 0}

    async def errors(*arguments: Any) -> list[str]:
        return [letter.error for letter in await relay.dead_letters(*arguments)]

    assert await errors() == ["1", "2", "3", "4", "5"]
    assert await errors(None, 3) == ["1", "2", "3"]
    assert await errors("dlq.b") == ["1", "3"]
    assert await errors("dlq.b", 1) == ["1"]
    assert await relay.replay("dlq.b", 1) == 1
    assert await errors() == ["2", "3", "4", "5"]
    assert await relay.replay("dlq.a") == 2
    assert await relay.replay() == 1
    assert await errors() == ["5"]


async def test_letters_that_cannot_be_read_are_in_nobodys_way(memory: Memory) -> None:
    """A replay reaches the readable ones behind them, however small its limit, and leaves them."""
    relay = Relay(memory, "billing")
    paid = Envelope("order.paid", b'{"amount": 1}').encode()
    for number, data in enumerate([b"?"] * 5 + [paid] * 2):
        await memory.put_dead_letter("dlq.billing", DeadLetter(data, "billing", "", time=number))
    assert [await relay.replay(limit=1) for _ in range(3)] == [1, 1, 0]
    assert [letter.raw for letter in await relay.dead_letters()] == [b"?"] * 5
    assert await relay.replay(limit=0) == 0


async def test_init_makes_the_service_known_to_an_engine_that_asks_for_it() -> None:
    """Only where the relay receives something; doing it again is harmless."""
    known = []

    class Knowing(Memory):
        async def add_service(self, service: str, topics: Any) -> None:
            known.append((service, *topics))

    relay = Relay(Knowing(), "billing")
    await relay.init()
    assert known == []
    relay.receive(declared(), "order.paid")
    await relay.init()
    await relay.init()
    assert known == [("billing", "order.paid")] * 2


async def test_a_new_service_gets_the_last_events_of_the_engine_in_memory(memory: Memory) -> None:
    """10,000 of them; and what a consumer that leaves has not done comes first again, in order."""
    await memory.publish_many([Envelope("order.paid", b"%d" % number) for number in range(10_001)])
    await memory.add_service("billing", ["order.paid"])
    assert await memory.backlog("billing") == 10_000
    seen: list[int] = []

    async def hold(delivery: Delivery) -> None:
        seen.append(int(Envelope.decode(delivery.data).body))
        await asyncio.Event().wait()

    for limit in (3, 1):
        task = asyncio.create_task(memory.consume("billing", "one", ["order.paid"], hold, limit=limit))
        await until(lambda limit=limit: len(seen) == limit)
        task.cancel()
        await asyncio.wait([task])
        assert seen == [1, 2, 3][:limit]
        seen.clear()


async def test_the_inbox_in_memory_remembers_the_last_events() -> None:
    """`size` of them, by when they were last written."""
    inbox = MemoryInbox(size=2)
    for event_id in ("a", "b", "a", "c"):
        await inbox.remember(event_id, "billing", Memo({f"receiver of {event_id}"}, failures=1))
    found = {event_id: await inbox.recall(event_id, "billing") for event_id in "abc"}
    assert {event_id: memo.done for event_id, memo in found.items()} == {
        "a": {"receiver of a"},
        "b": set(),
        "c": {"receiver of c"},
    }
    assert (found["a"].failures, found["b"].failures) == (1, 0)


async def test_a_transport_of_two_methods_gets_dead_letters_as_events(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    """Where an engine keeps no dead letters, they are published on the topic of that name."""
    billing, into = Relay(Flaky(memory, 0), "billing"), declared()
    billing.receive(into, "order.paid")
    audit, seen = Signal(), []

    async def look(delivery: Delivery) -> None:
        seen.append(Envelope.decode(delivery.data))

    task = asyncio.create_task(memory.consume("audit", "one", ["order.paid", "dlq.billing"], look))
    with quiet(caplog):
        async with billing:
            await memory.publish_many([Envelope("order.paid", b"poison")])
            await until(lambda: [event.topic for event in seen] == ["order.paid", "dlq.billing"])
            with pytest.raises(TypeError, match="keeps no dead letters"):
                await billing.dead_letters()
    task.cancel()
    assert b"poison" in seen[1].body
    assert audit.connections == ()


async def test_a_dead_letter_that_cannot_be_kept_is_not_lost(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    """While the queue of dead letters is out of reach the event stays unacknowledged."""

    class NoQueue(Memory):
        async def put_dead_letter(self, queue: str, letter: Any) -> None:
            raise ConnectionError

    billing = Relay(NoQueue(), "billing")
    billing.receive(declared(), "order.paid")
    with quiet(caplog):
        delay = await billing._inbound.handle(Delivery("order.paid", b"garbage"))
    assert isinstance(delay, float)
    assert delay > 0


async def test_configuration_mistakes_are_named_at_once(memory: Memory) -> None:
    """Bad names, numbers and repetitions are refused where they are written."""
    relay, sent = Relay(memory, "shop"), declared()
    with pytest.raises(ValueError, match="service"):
        Relay(memory, "a shop")
    with pytest.raises(ValueError, match="topic"):
        relay.export(sent, "order paid")
    relay.export(sent, "order.paid")
    with pytest.raises(ValueError, match="already"):
        relay.export(sent, "order.paid")
    with pytest.raises(ValueError, match="backoff"):
        relay.receive(sent, "order.paid", backoff=(5, 1))
    relay.receive(sent, "order.paid")
    with pytest.raises(ValueError, match="already"):
        relay.receive(sent, "order.paid")


async def test_a_signal_that_is_no_longer_exported_stays_here(memory: Memory) -> None:
    """`stop_exporting` disconnects what `export` connected."""
    relay, sent = Relay(memory, "shop"), declared()
    relay.export(sent, "order.paid", sender="A-1")
    relay.stop_exporting(sent)
    await sent.send("A-1", amount=1)
    assert relay.health().published == 0
    assert sent.connections == ()


async def test_only_the_chosen_senders_events_are_exported(memory: Memory) -> None:
    """`export(sender=...)` leaves other senders' events here."""
    relay, sent = Relay(memory, "shop"), declared()
    relay.export(sent, "order.paid", sender="A-1")
    await sent.send("A-1", amount=1)
    await sent.send("A-2", amount=1)
    assert relay.health().published == 1


async def test_a_relay_runs_once(memory: Memory) -> None:
    """Entering a relay that runs is an error; leaving and entering again is not."""
    relay = Relay(memory, "shop")
    async with relay:
        with pytest.raises(RuntimeError, match="running already"):
            await relay.__aenter__()
    async with relay:
        pass


async def test_a_refusal_concerns_only_the_send_that_was_refused(memory: Memory) -> None:
    """Sends that shared a publication with a refused one have succeeded, and their receivers here are called."""

    class Picky(Memory):
        async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
            refused = {event.id: "unlucky" for event in envelopes if b"13" in event.body}
            await super().publish_many([event for event in envelopes if event.id not in refused])
            if refused:
                raise PublishRefusedError(refused)

    relay, sent, calls = Relay(Picky(), "shop"), declared(), []
    relay.export(sent, "order.paid")
    with sent.connected(lambda amount, **_: calls.append(amount)):
        sends = [sent.send("A-1", amount=amount) for amount in (12, 13, 14)]
        results = await asyncio.gather(*sends, return_exceptions=True)
    assert [type(result) for result in results] == [list, PublishRefusedError, list]
    assert list(results[1].refused.values()) == ["unlucky"]
    assert sorted(calls) == [12, 14]
    assert relay.health().published == 2


async def test_closing_closes_every_part_though_one_fails() -> None:
    """Transport, outbox and inbox are all closed, and the error is raised."""
    closed = []

    class Part(Memory, MemoryInbox):
        def __init__(self, name: str) -> None:
            Memory.__init__(self)
            MemoryInbox.__init__(self)
            self.name = name
            self.put = self.drain_for_ever = self.count = self.backlog  # an outbox has these

        async def aclose(self) -> None:
            closed.append(self.name)
            if self.name == "outbox":
                raise ConnectionError

    relay = Relay(Part("transport"), "shop", outbox=Part("outbox"), inbox=Part("inbox"))  # type: ignore[arg-type]
    with pytest.raises(ConnectionError):
        await relay.aclose()
    assert closed == ["transport", "outbox", "inbox"]


def test_refusals_name_what_was_refused() -> None:
    """The error keeps all ids, and its message does not grow with them."""
    error = PublishRefusedError({str(number): "too large" for number in range(1000)})
    assert len(error.refused) == 1000
    assert len(str(error)) < 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_an_instance_of_its_own() -> None:
    """A server that forks after loading the application has workers of different names, but for one that was given."""
    program = """
import os
from asignals import Signal
from asignals.relay import Memory, Relay
made, named = Relay(Memory(), "shop"), Relay(Memory(), "shop", instance="pod-0")
made.export(Signal([], name="s"), "t")
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, f"{made.instance} {made.origin} {named.instance}".encode())
    os._exit(0)
os.wait()
print(made.instance, made.origin, named.instance)
print(os.read(reading, 1000).decode())
"""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    parent, child = (line.split() for line in done.stdout.splitlines())
    assert child[0] != parent[0]
    assert child[1] == f"shop/{child[0]}"
    assert (child[2], parent[2]) == ("pod-0", "pod-0")
