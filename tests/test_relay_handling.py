"""Nothing is acknowledged that nobody handled: absent receivers, versions, crashes, busy keys, odd settings."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from relay_support import until

from asignals import Signal, signal
from asignals.relay import (
    BodyError,
    DeadLetter,
    Delivery,
    Envelope,
    JSONCodec,
    Memo,
    Memory,
    MemoryInbox,
    NoReceiversError,
    Relay,
    Release,
    _codec,
    _receive,
    _watchdog,
    current_event,
)
from asignals.relay.worker import check_receivers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.anyio
QUICK = (0.01, 0.02)
TOPIC = "order.paid"


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Expect warnings and errors in the log."""
    caplog.set_level(logging.WARNING, "asignals")


@pytest.fixture
def memory() -> Memory:
    """An engine."""
    return Memory()


def declared() -> Signal[..., Any]:
    """Make a signal with types; each process has its own, and here each relay."""

    @signal
    def order_paid(sender: str, *, amount: int, note: str = "none") -> None:
        """An order was paid."""

    return order_paid


def event(**options: Any) -> Envelope:
    """Make an event of another service."""
    return Envelope(TOPIC, b'{"amount": 1}', origin="shop/one", **options)


def delivery(envelope: Envelope, *, is_repeat: bool = False, topic: str = TOPIC) -> Delivery:
    """Hand an event over as an engine does."""
    return Delivery(topic, envelope.encode(), 2 if is_repeat else 1, is_repeat)


def receiving(memory: Any, into: Signal[..., Any], inbox: Any = None, **options: Any) -> Relay:
    """Make an instance of a service that receives."""
    relay = Relay(memory, "billing", inbox=inbox, grace=1)
    relay.receive(into, TOPIC, **{"backoff": QUICK, **options})
    return relay


def done(relay: Relay) -> Callable[[], bool]:
    """Whether an event was handled."""
    return lambda: relay.health().received == 1


# -- nobody is no success ---------------------------------------------------------------------------------------------


async def test_an_event_without_receivers_waits_and_becomes_a_dead_letter(memory: Memory) -> None:
    """It is logged, shown in health, tried again by the usual rules, and can be replayed when somebody is there."""
    into = declared()
    relay = receiving(memory, into, retries=1)
    calls = []
    async with relay:
        await memory.publish_many([event()])
        await until(lambda: relay.health().dead == 1)
        (problem,) = relay.health().problems.values()
        assert "no receiver is connected to signal" in problem
        assert (relay.health().received, relay.health().failed) == (0, 2)
        (letter,) = await relay.dead_letters()
        assert letter.error.startswith("NotHandledError")
        with into.connected(lambda **named: calls.append(named["amount"])):
            assert await relay.replay() == 1
            await until(done(relay))
    assert calls == [1]


async def test_an_event_waits_until_a_receiver_is_connected(memory: Memory) -> None:
    """Retries find the receiver that came late."""
    into, calls = declared(), []
    relay = receiving(memory, into, retries=1000)
    async with relay:
        await memory.publish_many([event()])
        await until(lambda: relay.health().failed > 0)
        with into.connected(lambda **_: calls.append(1)):
            await until(done(relay))
    assert calls == [1]
    assert await memory.backlog("billing") == 0


async def test_those_who_mean_it_may_have_no_receivers(memory: Memory) -> None:
    """`allow_no_receivers=True` acknowledges what nobody hears."""
    relay = receiving(memory, declared(), allow_no_receivers=True)
    async with relay:
        await memory.publish_many([event()])
        await until(done(relay))
    assert relay.unheard == []


async def test_a_muted_receiver_has_not_handled_anything(memory: Memory) -> None:
    """What came while all were muted is handled when they are back; one of two muted ones is waited for, too."""
    into, calls = declared(), []

    def first(**_: Any) -> None:
        calls.append("first")

    def second(**_: Any) -> None:
        calls.append("second")

    into.connect(first)
    into.connect(second)
    relay = receiving(memory, into, retries=1000)
    async with relay:
        with into.muted(first, everywhere=True):
            await memory.publish_many([event()])
            await until(lambda: relay.health().failed > 1)
            assert calls == ["second"]
        await until(done(relay))
    assert calls == ["second", "first"]


async def test_a_stream_hears_as_a_receiver_does(memory: Memory) -> None:
    """An event that only a stream gets is handled."""
    into = declared()
    relay = receiving(memory, into, retries=0)
    async with relay, into.stream() as events:
        await memory.publish_many([event()])
        assert (await anext(events)).amount == 1
        await until(done(relay))


@pytest.mark.parametrize("way", ["once", "disconnect"])
async def test_a_receiver_that_failed_and_left_leaves_the_event_undone(memory: Memory, way: str) -> None:
    """The others' success is no success of it: the event becomes a dead letter, which names the one that is missing."""
    into, calls = declared(), []

    async def fine(**_: Any) -> None:
        calls.append("fine")

    async def leaves(**_: Any) -> None:
        calls.append("leaves")
        into.disconnect(leaves)
        raise ConnectionError

    into.connect(fine)
    into.connect(leaves, once=way == "once")
    relay = receiving(memory, into, retries=2)
    async with relay:
        await memory.publish_many([event()])
        await until(lambda: relay.health().dead == 1)
        (letter,) = await relay.dead_letters()
    assert calls == ["fine", "leaves"]
    assert "leaves failed before, and is not connected any more" in letter.error
    assert [name.rpartition(".")[2] for name in letter.done] == ["fine"]


async def test_namesakes_are_told_apart_here_and_warned_of(memory: Memory, caplog: pytest.LogCaptureFixture) -> None:
    """The one that failed is called again, also when the other leaves; another process calls both: once too often."""

    class Desk:
        def __init__(self, failures: int) -> None:
            self.failures, self.calls = failures, 0

        async def on_paid(self, **_: Any) -> None:
            self.calls += 1
            if self.calls == 1:
                into.disconnect(good.on_paid)
            if self.calls <= self.failures:
                raise ConnectionError

    into, inbox = declared(), MemoryInbox()
    good, bad = Desk(0), Desk(2)
    into.connect(good.on_paid)
    into.connect(bad.on_paid)
    relay = receiving(memory, into, inbox)
    async with relay:
        await memory.publish_many([event()])
        await until(done(relay))
    assert (good.calls, bad.calls) == (1, 3)
    assert "dispatch_uid" in caplog.text


async def test_a_replay_spares_what_had_succeeded_without_any_memory(memory: Memory) -> None:
    """The letter itself knows, in whatever order the receivers connect then, and with an inbox that is new."""
    calls = []

    def relay_of(*names: str, failing: str = "") -> tuple[Relay, list[Any]]:
        into, keep = declared(), []
        for name in names:

            def receiver(name: str = name, **_: Any) -> None:
                calls.append(name)
                if name == failing:
                    raise ConnectionError

            keep.append(receiver)
            into.connect(receiver, dispatch_uid=name)
        return receiving(memory, into, MemoryInbox(), retries=0), keep

    first, keep = relay_of("a", "b", failing="b")
    async with first:
        await memory.publish_many([event()])
        await until(lambda: first.health().dead == 1)
    second, keep_too = relay_of("b", "a")
    async with second:
        await second.replay()
        await until(done(second))
    assert keep
    assert keep_too
    assert calls == ["a", "b", "b"]


async def test_a_service_that_exports_what_it_receives_handles_it_once(memory: Memory) -> None:
    """Receivers that `send` called in one instance are not called in the other; those it has not are."""
    calls: list[str] = []

    def instance(*names: str) -> tuple[Relay, Signal[..., Any], list[Any]]:
        shared, keep = declared(), []
        for name in names:

            def receiver(amount: int, name: str = name, **_: Any) -> None:
                calls.append(f"{name}{amount}")

            keep.append(receiver)
            shared.connect(receiver, dispatch_uid=name)
        relay = Relay(memory, "shop")
        relay.export(shared, TOPIC)
        relay.receive(shared, TOPIC)
        return relay, shared, keep

    (web, sent, keep), (worker, _, keep_too) = instance("audit"), instance("audit", "mail")
    async with web, worker:
        for amount in range(10):
            await sent.send("A-1", amount=amount)
        await until(lambda: web.health().ignored + worker.health().received == 10)
    assert keep
    assert keep_too
    assert sorted(call for call in calls if call.startswith("audit")) == [f"audit{n}" for n in range(10)]
    assert len([call for call in calls if call.startswith("mail")]) == worker.health().received


def test_a_relay_that_nobody_hears_is_refused_with_what_to_do(memory: Memory) -> None:
    """The signal, the topic, and what to write."""
    into = declared()
    with pytest.raises(NoReceiversError, match=r"receives nothing.*relay\.receive"):
        check_receivers(Relay(memory, "billing"))
    relay = receiving(memory, into)
    with pytest.raises(NoReceiversError, match=r"order_paid.*'order\.paid'.*Import.*--allow-no-receivers") as caught:
        check_receivers(relay)
    assert caught.value.unheard == ((into.name, TOPIC),)
    relay.export(into, "other.topic")  # an exporting receiver handles nothing
    with pytest.raises(NoReceiversError):
        check_receivers(relay)
    with into.connected(lambda **_: None):
        check_receivers(relay)


# -- versions ---------------------------------------------------------------------------------------------------------


async def test_a_newer_version_is_left_to_instances_that_can_read_it(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a rolling deploy none is lost and none is a dead letter."""
    monkeypatch.setattr(_receive, "_ELSEWHERE", 0.01)
    calls = []
    old_signal, new_signal = declared(), declared()
    old, new = receiving(memory, old_signal), receiving(memory, new_signal, version=2)
    with (
        old_signal.connected(lambda amount, **_: calls.append(("old", amount))),
        new_signal.connected(lambda amount, **_: calls.append(("new", amount))),
    ):
        async with old:
            await memory.publish_many([event(version=2)])
            await until(lambda: old.health().released == 1)
            assert "schema version 2 is newer than 1" in str(old.health().problems)
            async with new:
                await until(done(new))
    assert calls == [("new", 1)]
    assert old.health().dead == 0


async def test_a_newer_version_is_given_up_after_its_time(memory: Memory) -> None:
    """`newer_version_timeout` seconds after this instance first saw it."""
    relay = receiving(memory, declared(), newer_version_timeout=1e-9)
    assert isinstance(await relay._inbound.handle(delivery(event(version=2, id="a"))), Release)
    assert await relay._inbound.handle(delivery(event(version=2, id="a"))) is None
    (letter,) = await relay.dead_letters()
    assert "its schema version is 2" in letter.error


async def test_old_versions_are_brought_up_to_the_newest(memory: Memory) -> None:
    """Upcasters run one after the other, before types are checked; one that fails makes a dead letter."""

    def rename(found: dict[str, Any]) -> dict[str, Any]:
        return {"amount": found["sum"]}

    def to_cents(found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "amount": found["amount"] * 100}

    into, calls = declared(), []
    relay = receiving(memory, into, version=3, upcasters={1: rename, 2: to_cents})
    with into.connected(lambda amount, **_: calls.append(amount)):
        for version, body in ((1, b'{"sum": 1}'), (2, b'{"amount": 2}'), (3, b'{"amount": 3}'), (1, b"{}"), (1, b"[]")):
            envelope = Envelope(TOPIC, body, origin="shop/one", version=version)
            assert await relay._inbound.handle(delivery(envelope)) is None
    assert calls == [100, 200, 3]
    assert relay.health().dead == 2


async def test_a_codec_is_told_the_version(memory: Memory) -> None:
    """One of the application's own can do what upcasters do."""

    class Both(JSONCodec):
        def decode(self, body: bytes, version: int = 1) -> dict[str, Any]:
            return {"amount": version}

    into, calls = declared(), []
    relay = receiving(memory, into, version=5, codec=Both())
    with into.connected(lambda amount, **_: calls.append(amount)):
        await relay._inbound.handle(delivery(event(version=4)))
    assert calls == [4]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"version": 3, "upcasters": {1: dict}}, ValueError),
        ({"version": 1, "upcasters": {1: dict}}, ValueError),
        ({"version": 2, "upcasters": {}}, ValueError),
        ({"version": 2, "upcasters": {0: dict, 1: dict}}, ValueError),
        ({"version": 2, "upcasters": {1: "dict"}}, TypeError),
        ({"version": 2, "upcasters": [dict]}, TypeError),
        ({"version": 2, "upcasters": {1: dict}, "codec": JSONCodec()}, ValueError),
    ],
)
def test_upcasters_that_lead_nowhere_are_refused(memory: Memory, options: dict[str, Any], error: Any) -> None:
    """Each old version leads to the next, up to the newest."""
    with pytest.raises(error, match="upcasters"):
        receiving(memory, declared(), **options)


# -- crashes ----------------------------------------------------------------------------------------------------------


async def test_only_what_began_and_never_ended_counts_as_a_crash(memory: Memory) -> None:
    """Deliveries that reached no receiver, however many, bury nothing."""

    class Away(MemoryInbox):
        async def recall(self, event_id: str, service: str) -> Memo:
            raise ConnectionError

    into, inbox, calls = declared(), Away(), []
    relay = receiving(memory, into, inbox, retries=1)
    with into.connected(lambda **_: calls.append(1)):
        for _ in range(100):
            assert await relay._inbound.handle(delivery(event(id="a"), is_repeat=True)) is not None
        assert "the inbox" in str(relay.health().problems)
        relay._inbound.inbox.inbox = MemoryInbox()
        assert await relay._inbound.handle(delivery(event(id="a"), is_repeat=True)) is None
    assert calls == [1]
    assert relay.health().dead == 0
    assert relay.health().ok


class Process:
    """One life of an instance in which the event `poison` never comes to an end, and takes all others with it."""

    def __init__(self, memory: Memory, inbox: MemoryInbox, retries: int) -> None:
        self.into = declared()
        self.relay = receiving(memory, self.into, inbox, retries=retries, backoff=(0.001, 0.001))
        self.crashed = asyncio.Event()
        self.handled: set[str] = set()
        self.into.connect(self.on_paid)

    async def on_paid(self, **_: Any) -> None:
        found = current_event()
        assert found is not None
        await asyncio.sleep(0.001)
        if found.id == "poison":
            self.crashed.set()
            await asyncio.Event().wait()
        self.handled.add(found.id)

    async def deliver(self, envelope: Envelope, *, is_repeat: bool) -> None:
        while (pause := await self.relay._inbound.handle(delivery(envelope, is_repeat=is_repeat))) is not None:
            assert isinstance(pause, float)
            await asyncio.sleep(min(pause, 0.002))

    async def live(self, events: list[Envelope], *, is_repeat: bool) -> list[Envelope]:
        """Handle the events until the process is killed, or all are done; gives those that are not."""
        self.relay._inbound.begin(100)
        tasks = {asyncio.create_task(self.deliver(one, is_repeat=is_repeat)): one for one in events}
        death = asyncio.create_task(self.crashed.wait())
        open_tasks = set(tasks)
        while open_tasks and not death.done():
            _, open_tasks = await asyncio.wait([*open_tasks, death], return_when=asyncio.FIRST_COMPLETED)
            open_tasks.discard(death)
        left = [one for task, one in tasks.items() if not task.done()]
        self.relay._inbound.inbox.inbox = MemoryInbox()  # a process that is killed writes nothing on its way out
        for task in (*tasks, death):
            task.cancel()
        await asyncio.wait([*tasks, death])
        return left


async def test_an_event_that_kills_its_process_is_found_and_its_neighbours_are_handled(memory: Memory) -> None:
    """It is the only dead letter, after as many crashes as it has tries, and nobody else is lost."""
    inbox, retries, crashes, handled = MemoryInbox(), 3, 0, set()
    left = [event(id=name) for name in ("a", "b", "poison", "c", "d", "e")]
    while left:
        process = Process(memory, inbox, retries)
        left = await process.live(left, is_repeat=crashes > 0)
        crashes += process.crashed.is_set()
        handled |= process.handled
    letters = await receiving(memory, declared()).dead_letters()
    assert [letter.envelope.id for letter in letters if letter.envelope] == ["poison"]
    assert letters[0].error.startswith("CrashedError")
    assert handled == set("abcde")
    assert crashes == 1 + retries


async def test_a_repeat_that_succeeds_is_no_crash_when_it_comes_again(memory: Memory) -> None:
    """An acknowledgement may be lost as often as it likes; receivers are not called again after a repeat."""
    into, calls = declared(), []
    relay = receiving(memory, into, retries=1)
    with into.connected(lambda **_: calls.append(1)):
        for _ in range(5):
            assert await relay._inbound.handle(delivery(event(id="a"), is_repeat=True)) is None
    assert (calls, relay.health().dead) == ([1], 0)


async def test_an_instance_that_stops_leaves_no_crash_behind(memory: Memory) -> None:
    """A cancelled attempt is put down as one that never began."""
    into, inbox = declared(), MemoryInbox()
    relay = receiving(memory, into, inbox)
    began = asyncio.Event()

    async def hangs(**_: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    with into.connected(hangs):
        task = asyncio.create_task(relay._inbound.handle(delivery(event(id="a"), is_repeat=True)))  # type: ignore[arg-type]
        await began.wait()
        assert (await inbox.recall("a", "billing")).begun == 1
        task.cancel()
        await asyncio.wait([task])
    assert (await inbox.recall("a", "billing")).begun == 0


async def test_an_instance_that_stops_while_the_inbox_is_away_says_what_may_follow(
    memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    """That the attempt is not put down as one that never began is logged, with the event; the stop goes on."""
    into, inbox = declared(), MemoryInbox()
    relay = receiving(memory, into, inbox)
    began = asyncio.Event()

    async def hangs(**_: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    async def is_away(*_: Any) -> None:
        raise ConnectionError("gone")

    with into.connected(hangs):
        task = asyncio.create_task(relay._inbound.handle(delivery(event(id="a"), is_repeat=True)))  # type: ignore[arg-type]
        await began.wait()
        inbox.remember = is_away  # type: ignore[method-assign]
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled()
    assert any("event a was cancelled" in message and "gone" in message for message in caplog.messages)


async def test_a_receiver_that_blocks_the_loop_is_named(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events would be redelivered without anybody knowing why; health and the log say who it is."""
    monkeypatch.setattr(_watchdog, "_LEAST", 0.05)
    monkeypatch.setattr(memory, "lease", 0.1, raising=False)
    into = declared()
    relay = receiving(memory, into)

    def blocks(**_: Any) -> None:
        end = time.monotonic() + 5
        while "the event loop" not in relay.health().problems and time.monotonic() < end:
            time.sleep(0.01)

    with into.connected(blocks):
        async with relay:
            await memory.publish_many([event()])
            await until(done(relay))
    assert "blocks" in relay.health().problems["the event loop"]
    assert "in_thread=True" in relay.health().problems["the event loop"]


# -- busy keys --------------------------------------------------------------------------------------------------------


async def test_a_busy_key_holds_up_nobody_else(memory: Memory) -> None:
    """Many more events of one key than there are places wait, in order, and an unrelated one passes them."""
    into, order, gate = Signal(["n"]), [], asyncio.Event()
    relay = Relay(memory, "billing", limit=4)
    relay.receive(into, TOPIC)

    async def slow(n: int, **_: Any) -> None:
        if n >= 0:
            await gate.wait()
        order.append(n)

    with into.connected(slow):
        async with relay:
            busy = [Envelope(TOPIC, b'{"n":%d}' % n, origin="shop/1", key="busy") for n in range(100)]
            await memory.publish_many([*busy, Envelope(TOPIC, b'{"n":-1}', origin="shop/1")])
            await until(lambda: order == [-1])
            assert relay.health().in_flight == 1
            gate.set()
            await until(lambda: len(order) == 101)
    assert order == [-1, *range(100)]


# -- the envelope and the letters are not believed ---------------------------------------------------------------------


async def test_an_event_that_came_by_another_topic_is_a_dead_letter(memory: Memory) -> None:
    """Who may publish one topic cannot have another one's receivers called."""
    into, calls = declared(), []
    relay = receiving(memory, into)
    with into.connected(lambda **_: calls.append(1)):
        assert await relay._inbound.handle(delivery(event(), topic="metrics")) is None
    (letter,) = await relay.dead_letters()
    assert "came as an event of 'metrics'" in letter.error
    assert calls == []


HEADERS = [
    b'{"service":"billing","error":"x","attempts":1e999,"time":1}',
    b'{"service":"billing","error":"x","attempts":1,"time":1' + b"0" * 400 + b"}",
    b'{"service":"bad name!","error":"x","attempts":1,"time":1}',
    b'{"service":"billing","error":"\\ud800","attempts":1,"time":1}',
    b'{"service":"billing","error":"x","attempts":1,"time":NaN}',
    b'{"service":["a"],"error":{"b":1},"attempts":"many","time":null,"done":[1,"a",null]}',
    b'{"service":"billing","error":"x","done":"a"}',
    b"\xff\xfe",
    b"[" * 100_000,
    b"",
]


@pytest.mark.parametrize("header", HEADERS)
async def test_an_odd_letter_is_in_nobodys_way(memory: Memory, header: bytes) -> None:
    """Whatever is in the queue, the others are shown, counted, replayed and removed."""
    body = event(id="odd").encode()
    odd = DeadLetter.read(header + b"\n" + body, "7")
    odd.error.encode()
    odd.service.encode()
    assert math.isfinite(odd.time)
    await memory.put_dead_letter("dlq.billing", odd)
    await memory.put_dead_letter("dlq.billing", DeadLetter(event(id="good").encode(), "billing", "x"))
    relay = Relay(memory, "billing")
    assert len(await relay.dead_letters()) == 2
    assert await relay.replay(ids=["good"]) == 1
    await relay.replay()
    left = len(await relay.dead_letters())
    assert await relay.purge() == left


async def test_letters_are_chosen_by_id_topic_time_and_error(memory: Memory) -> None:
    """By all of them together, for looking, replaying and purging."""
    for number, (topic, error) in enumerate([("a", "KeyError: x"), ("a", "OSError"), ("b", "KeyError: y")] * 2):
        data = Envelope(topic, b"{}", id=f"e{number}").encode()
        await memory.put_dead_letter("dlq.billing", DeadLetter(data, "billing", error, time=float(number)))
    relay = Relay(memory, "billing")

    async def ids(**which: Any) -> list[str]:
        return [letter.envelope.id for letter in await relay.dead_letters(**which) if letter.envelope]

    assert await ids(topic="a") == ["e0", "e1", "e3", "e4"]
    assert await ids(error="KeyError", topic="a") == ["e0", "e3"]
    assert await ids(since=2, until=4) == ["e2", "e3", "e4"]
    assert await ids(ids=["e5", "e1", "other"]) == ["e1", "e5"]
    assert await relay.purge(topic="b") == 2
    assert await relay.replay(error="KeyError", limit=1) == 1
    assert await ids() == ["e1", "e3", "e4"]
    assert (await relay.status()).dead == {"dlq.billing": 3}
    with pytest.raises(TypeError, match="collection"):
        await relay.purge(ids="e1")


# -- refused where it is written ---------------------------------------------------------------------------------------


class Connection:
    """What cannot cross."""


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda _: Relay("nats://me:secret@host", "x"), TypeError, "engine_from_url"),  # type: ignore[arg-type]
        (lambda _: Relay(Memory, "x"), TypeError, r"Memory\(…\)"),  # type: ignore[arg-type]
        (lambda _: Relay(None, "x"), TypeError, "JetStream"),  # type: ignore[arg-type]
        (lambda m: Relay(m, "x", outbox="postgresql://h"), TypeError, "outbox=SQLAlchemyOutbox"),  # type: ignore[arg-type]
        (lambda m: Relay(m, "x", inbox="sqlite:///f"), TypeError, "inbox=SQLAlchemyInbox"),  # type: ignore[arg-type]
        (lambda m: Relay(m, "x", inbox=MemoryInbox), TypeError, "not the class"),  # type: ignore[arg-type]
        (lambda m: Relay(m, "x", strict=True), ValueError, "outbox"),
        (lambda m: Relay(m, "x", limit=0), ValueError, "limit"),
        (lambda m: Relay(m, "x", limit=2.5), TypeError, "limit"),  # type: ignore[arg-type]
        (lambda m: Relay(m, "x", grace=-1), ValueError, "grace"),
        (lambda m: Relay(m, "x", publish_timeout=math.nan), ValueError, "publish_timeout"),
        (lambda m: Relay(m, "x", sender_codec=str), TypeError, "pair"),  # type: ignore[arg-type]
        (lambda m: Relay(m, "x").export(declared(), TOPIC, key="nn"), ValueError, "'nn'.*amount, note"),
        (lambda m: Relay(m, "x").export(declared(), TOPIC, key=5), TypeError, "key"),  # type: ignore[arg-type]
        (lambda m: Relay(m, "x").export(declared(), TOPIC, codec=JSONCodec), TypeError, r"JSONCodec\(\)"),  # type: ignore[arg-type]
        (lambda m: Relay(m, "x").export(declared(), TOPIC, codec=object()), TypeError, "encode"),  # type: ignore[arg-type]
        (lambda m: Relay(m, "x").export(declared(), TOPIC, exclude_args="note"), TypeError, "exclude_args"),
        (lambda m: Relay(m, "x").export(declared(), TOPIC, exclude_args=["nite"]), ValueError, "nite"),
        (lambda m: Relay(m, "x").export(declared(), TOPIC, version=0), ValueError, "version"),
        (lambda m: Relay(m, "x").export(declared(), TOPIC, version="1"), TypeError, "version"),  # type: ignore[arg-type]
        (lambda m: Relay(m, "x").receive(declared(), TOPIC, backoff=5), ValueError, "backoff"),  # type: ignore[arg-type]
        (lambda m: Relay(m, "x").receive(declared(), TOPIC, retries=-1), ValueError, "retries"),
        (lambda m: Relay(m, "x").receive(declared(), TOPIC, exclude_args=["amount"]), ValueError, "default"),
        (lambda m: Relay(m, "x").receive(Signal(["session"]), TOPIC), ValueError, "session"),
    ],
)
def test_mistakes_are_named_where_they_are_written(memory: Memory, make: Any, error: Any, words: str) -> None:
    """With what to write instead, and no password."""
    with pytest.raises(error, match=words) as caught:
        make(memory)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("library", ["pydantic", "msgspec"])
def test_an_argument_that_cannot_cross_is_named(memory: Memory, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the library's words about schemas, but the argument, and `exclude_args`."""
    monkeypatch.setattr(_codec, "find_spec", lambda name: name == library or None)

    @signal
    def placed(sender: str, *, amount: int, db: Connection) -> None:
        """An order was placed."""

    with pytest.raises(TypeError, match=r"argument 'db' of signal .*placed.* Connection.*exclude_args=\('db',\)"):
        Relay(memory, "shop").export(placed, TOPIC)
    Relay(memory, "shop").export(placed, TOPIC, exclude_args=["db"])


def test_types_without_a_library_are_refused(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain JSON would take anything for an int; it is there for those who ask for it, and where there are no types."""
    monkeypatch.setattr(_codec, "find_spec", lambda _name: None)
    relay = Relay(memory, "shop")
    with pytest.raises(ModuleNotFoundError, match=r"pydantic or msgspec.*codec=JSONCodec\(\)"):
        relay.export(declared(), TOPIC)
    with pytest.raises(ModuleNotFoundError):
        relay.receive(declared(), TOPIC)
    relay.export(declared(), TOPIC, codec=JSONCodec())
    relay.export(Signal(["amount"]), "plain")


@pytest.mark.parametrize("way", ["bind", "own_transaction"])
def test_a_block_may_be_left_in_another_context(memory: Memory, way: str) -> None:
    """As by a pytest fixture, or a sync dependency of FastAPI, whose ends run in two copies of a context."""
    relay = Relay(memory, "billing")
    block = relay.bind(object()) if way == "bind" else relay.own_transaction()
    copied = contextvars.copy_context()
    contextvars.copy_context().run(block.__enter__)
    copied.run(block.__exit__, None, None, None)
    assert copied.run(relay._session.get) is None
    with block, relay.bind(inner := object()):
        assert relay._session.get() is inner
    assert relay._session.get() is None


@pytest.mark.parametrize("way", ["bind", "own_transaction"])
def test_a_session_is_not_bound_by_a_decorator(memory: Memory, way: str) -> None:
    """An async function would run when the block is over."""
    relay = Relay(memory, "shop")
    block = relay.bind(object()) if way == "bind" else relay.own_transaction()
    with block, block:
        pass

    async def pay() -> None:
        """Would send."""

    with pytest.raises(TypeError, match=r"inside of .*pay"):
        block(pay)  # type: ignore[operator]


async def test_a_topic_cannot_be_added_while_the_relay_runs(memory: Memory) -> None:
    """Its events would come to nobody."""
    relay = receiving(memory, declared(), allow_no_receivers=True)
    async with relay:
        with pytest.raises(RuntimeError, match="before it starts"):
            relay.receive(declared(), "other")
    relay.receive(declared(), "other")


# -- values that change on the way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", ["pydantic", "msgspec"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"price": math.nan},
        {"price": math.inf},
        {"price": None},
        {"maybe": math.nan},
        {"deep": {"a": [1.0, -math.inf]}},
        {"count": "not an int"},
        {"count": 1.5},
        {"at": "yesterday"},
    ],
)
async def test_values_that_would_not_arrive_are_refused_when_sent(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, library: str, arguments: dict[str, Any]
) -> None:
    """Not-a-number, infinities, None for a float and wrong types are the sender's error, wherever they are."""
    monkeypatch.setattr(_codec, "find_spec", lambda name: name == library or None)

    @signal
    def measured(  # noqa: PLR0913  one of each kind
        sender: str,
        *,
        price: float = 1.0,
        maybe: float | None = None,
        deep: dict[str, list[float]] = {},  # noqa: B006  nobody changes it
        count: int = 0,
        at: datetime | None = None,
    ) -> None:
        """Something was measured."""

    relay = Relay(memory, "shop")
    relay.export(measured, TOPIC)
    with pytest.raises(BodyError, match="measured"):
        await measured.send("A-1", **arguments)
    assert relay.health().published == 0
    await measured.send("A-1", maybe=None, price=0.5)
    assert relay.health().published == 1


@dataclass
class Place:
    """A value of its own."""

    name: str


@dataclass
class Hall(Place):
    """One with more than its declared type tells."""

    seats: int = 100


@pytest.mark.parametrize("library", ["pydantic", "msgspec"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"data": {"at": date(2026, 1, 1)}},
        {"data": {"ids": [UUID(int=1)]}},
        {"data": {1: "one"}},
        {"place": Hall("opera")},
        {"places": [Place("park"), Hall("opera")]},
        {"either": b"abc"},
    ],
)
async def test_values_that_would_arrive_as_others_are_refused_when_sent(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, library: str, arguments: dict[str, Any]
) -> None:
    """A date that nobody declares would come as text, a subclass without its own fields: that is the sender's error."""
    if library == "msgspec" and "either" in arguments:
        pytest.skip("msgspec refuses to tell str from bytes when it is exported")
    monkeypatch.setattr(_codec, "find_spec", lambda name: name == library or None)

    def stub(
        sender: str,
        *,
        data: dict[Any, Any] = {},  # noqa: B006  nobody changes it
        place: Place | None = None,
        places: list[Place] = [],  # noqa: B006
        either: str | bytes = "",
    ) -> None:
        """Something was found."""

    if library == "msgspec":
        stub.__annotations__["either"] = str
    found = signal(stub)
    relay = Relay(memory, "shop")
    relay.export(found, TOPIC)
    with pytest.raises(BodyError, match=r"would (be|not be) read"):
        await found.send("A-1", **arguments)
    assert relay.health().published == 0
    await found.send("A-1", data={"a": (1, [2.0])}, place=Place("park"), places=[Place("opera")], either="abc")
    assert relay.health().published == 1


async def test_a_masked_secret_is_refused_when_sent(memory: Memory) -> None:
    """Pydantic writes asterisks for a `SecretStr`: the receiver would take them for the secret."""
    secret_str = pytest.importorskip("pydantic").SecretStr

    def stub(sender: str, *, password: Any) -> None:
        """Somebody has registered."""

    stub.__annotations__["password"] = secret_str
    registered = signal(stub)
    Relay(memory, "shop").export(registered, TOPIC)
    with pytest.raises(BodyError, match="password would be read as another SecretStr") as caught:
        await registered.send("A-1", password=secret_str("hunter2"))
    assert "hunter2" not in str(caught.value)


async def test_keys_of_plain_json_are_strings(memory: Memory) -> None:
    """A number as a key would arrive as a string."""
    sent = Signal(["found"])
    Relay(memory, "shop").export(sent, TOPIC)
    with pytest.raises(BodyError, match="no key 1"):
        await sent.send("A-1", found=[{1: 2}])


@pytest.mark.parametrize("key", [None, 1.5, True, object(), b"x"])
async def test_a_key_that_is_none_is_refused_when_sent(memory: Memory, key: Any) -> None:
    """`None` is no order's number, and an object's address no key."""
    sent = Signal(["order"])
    relay = Relay(memory, "shop")
    relay.export(sent, TOPIC, key="order", exclude_args=["order"])
    relay.export(sent, "by.function", key=lambda _sender, arguments: arguments["order"], exclude_args=["order"])
    with pytest.raises(TypeError, match="key"):
        await sent.send("A-1", order=key)
    assert relay.health().published == 0


class _NoNotes:
    """An engine that keeps no notes, as RabbitMQ and Kafka."""

    async def publish_many(self, _envelopes: object) -> None:
        """Take nothing."""

    async def consume(self, *_: object, **__: object) -> None:
        """Give nothing."""
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("engine", "options", "is_warned"),
    [
        (_NoNotes(), {}, True),
        (_NoNotes(), {"inbox": MemoryInbox()}, False),
        (Memory(), {}, False),
    ],
    ids=["none", "meant", "own"],
)
async def test_a_relay_that_cannot_find_out_crashes_says_so_when_it_starts(
    caplog: pytest.LogCaptureFixture,
    engine: Any,
    options: dict[str, Any],
    is_warned: bool,  # noqa: FBT001
) -> None:
    """Once, with what to give it; not where it receives nothing, nor where it is meant."""
    caplog.set_level(logging.WARNING, "asignals.relay")
    async with Relay(engine, "billing", grace=0.1, **options):
        pass
    assert "keeps no notes" not in caplog.text
    relay, into = Relay(engine, "billing", grace=0.1, **options), Signal(["n"])
    into.connect(lambda **_: None, weak=False)
    relay.receive(into, "numbers")
    async with relay:
        pass
    assert caplog.text.count("_NoNotes keeps no notes") == is_warned
    assert caplog.text.count("inbox=SQLAlchemyInbox") == is_warned


class Odd(BaseException):
    """An error that is no `Exception`, as those of test frameworks and of gevent are."""


async def _cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def _is_odd() -> None:
    raise Odd


async def _groups_odd_errors() -> None:
    raise BaseExceptionGroup("odd", [Odd()])


@pytest.mark.parametrize("misbehave", [_cancels_itself, _is_odd, _groups_odd_errors])
async def test_a_receiver_that_ends_oddly_has_failed_and_stops_nothing_else(
    memory: Memory, misbehave: Callable[[], Awaitable[None]]
) -> None:
    """It is tried again, then its event is a dead letter; other receivers and events are not concerned."""
    sent = Signal(["number"])
    calls, heard = [], []

    @sent.connect(dispatch_uid="odd")
    async def odd(number: int) -> None:
        calls.append(number)
        if number == 1:
            await misbehave()

    @sent.connect(dispatch_uid="well")
    async def well(number: int) -> None:
        heard.append(number)

    relay = receiving(memory, sent, retries=1, backoff=(0.01, 0.01))
    async with relay:
        await memory.publish_many([Envelope(TOPIC, b'{"number":%d}' % number) for number in range(4)])
        await until(lambda: relay.health().dead == 1 and len(heard) == 4)
        assert relay.health().problems == {}
    assert calls.count(1) == 2
    assert sorted(heard) == [0, 1, 2, 3]
