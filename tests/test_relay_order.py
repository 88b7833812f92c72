"""Order by key: one suite that every engine runs, with several instances of a service."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from aio_pika import Message
from relay_support import ENGINES, World, until, world
from test_relay_transports import consuming, known

from asignals import Signal
from asignals.relay import Envelope, Relay, Release, _held_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from asignals.relay import Delivery

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


# Joining a group takes Kafka's mock cluster three seconds, each time: the others are for the long run.
QUICK_ON_KAFKA = {"test_a_retry_holds_up_its_own_key_only"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test on every engine, and Kafka's in full where there is time."""
    if "engine" in metafunc.fixturenames:
        on_kafka = metafunc.config.getoption("--long") or metafunc.function.__name__ in QUICK_ON_KAFKA
        metafunc.parametrize("engine", [*ENGINES, "kafka"] if on_kafka else ENGINES, indirect=True)


@pytest.fixture
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world of its own for every test, on every engine."""
    async with world(request.param, tmp_path) as made:
        yield made


def keyed(keys: int, each: int, first: int = 0) -> list[Envelope]:
    """Make events of some keys by turns; the body is the place in the key."""
    return [
        Envelope("numbers", b"%d" % number, key=f"key {key}")
        for number in range(first, first + each)
        for key in range(keys)
    ]


class Ordered:
    """A `handle` that notes, for each key, what was handled in which order, and whether two ran at once."""

    def __init__(self, longest: float = 0.003, seed: int = 1) -> None:
        self.first: dict[str, list[int]] = {}
        self.together: list[str] = []
        self.calls: Counter[str] = Counter()
        self._running: set[str] = set()
        self._longest = longest
        self._dice = random.Random(seed)  # noqa: S311  no secret

    def by(self, instance: str) -> Any:
        """The handle of one instance."""

        async def handle(delivery: Delivery) -> float | Release | None:
            envelope = Envelope.decode(delivery.data)
            assert envelope.key is not None
            if envelope.key in self._running:
                self.together.append(envelope.key)
            self._running.add(envelope.key)
            self.calls[instance] += 1
            try:
                known = self.first.setdefault(envelope.key, [])
                if int(envelope.body) not in known:
                    known.append(int(envelope.body))
                await asyncio.sleep(self._dice.random() * self._longest)
                return await self.outcome(envelope, instance)
            finally:
                self._running.discard(envelope.key)

        return handle

    async def outcome(self, _envelope: Envelope, _instance: str) -> float | Release | None:
        """What becomes of it."""
        return None

    @property
    def count(self) -> int:
        """How many events were handled."""
        return sum(map(len, self.first.values()))

    def assert_in_order(self, keys: int, each: int) -> None:
        """Raise where events of a key were handled out of place, or two at once."""
        assert self.first == {f"key {key}": list(range(each)) for key in range(keys)}
        assert self.together == []


async def test_events_of_a_key_are_handled_in_order_whichever_instances_there_are(engine: World) -> None:
    """Three instances share the keys; of each key one event at a time, in the order of publishing."""
    await known(engine, "billing")
    ordered = Ordered()
    batch = keyed(30, 20)
    async with AsyncExitStack() as stack:
        for name in ("one", "two", "three"):
            await stack.enter_async_context(consuming(engine.open(), "billing", ordered.by(name), name, limit=20))
        publisher = engine.open()
        for start in range(0, len(batch), 75):
            await publisher.publish_many(batch[start : start + 75])
        await until(lambda: ordered.count == len(batch))
    ordered.assert_in_order(30, 20)


async def test_a_retry_holds_up_its_own_key_only(engine: World) -> None:
    """Later events of the key wait until the one that failed is done; other keys go on meanwhile."""
    await known(engine, "billing")
    passed: list[tuple[str, int]] = []

    async def handle(delivery: Delivery) -> float | None:
        envelope = Envelope.decode(delivery.data)
        if envelope.key == "key 0" and envelope.body == b"0" and len(set(passed)) < 40:
            return 0.05
        passed.append((envelope.key or "", int(envelope.body)))
        return None

    async with consuming(engine.open(), "billing", handle), consuming(engine.open(), "billing", handle, "two"):
        await engine.open().publish_many(keyed(5, 10))
        await until(lambda: len(set(passed)) >= 50)
    handled = list(dict.fromkeys(passed))  # Kafka delivers anew what was not committed when an instance joins
    assert [key for key, _ in handled].index("key 0") == 40
    assert handled[40:] == [("key 0", number) for number in range(10)]


async def test_an_instance_that_leaves_hands_its_keys_on_in_order(engine: World) -> None:
    """What it had begun and what waited behind that comes to another instance, the first of each key first."""
    await known(engine, "billing")
    begun: set[str] = set()

    async def never(delivery: Delivery) -> float | None:
        begun.add(Envelope.decode(delivery.data).key or "")
        await asyncio.Event().wait()
        return None

    await engine.open().publish_many(keyed(12, 8))
    async with consuming(engine.open(), "billing", never):
        await until(lambda: len(begun) == 12)
    ordered = Ordered()
    async with consuming(engine.open(), "billing", ordered.by("two"), "two"):
        await until(lambda: ordered.count == 12 * 8)
    ordered.assert_in_order(12, 8)


@pytest.mark.slow
async def test_instances_that_come_and_go_keep_the_order(engine: World) -> None:
    """Instances join and leave all the time while events are published; no key's events overtake each other."""
    await known(engine, "billing")
    ordered = Ordered()
    publisher = engine.open()
    running: list[AsyncExitStack] = []

    async def start(name: str) -> None:
        stack = AsyncExitStack()
        await stack.enter_async_context(consuming(engine.open(), "billing", ordered.by(name), name, limit=10))
        running.append(stack)

    await start("0")
    for turn in range(6):
        await start(str(turn + 1))
        await publisher.publish_many(keyed(20, 10, first=turn * 10))
        await until(lambda turn=turn: ordered.count > turn * 200 + 100)  # type: ignore[misc]
        if turn % 2:
            await running.pop(0).aclose()
    await until(lambda: ordered.count == 1_200)
    while running:
        await running.pop().aclose()
    ordered.assert_in_order(20, 60)


class FirstGivesBack(Ordered):
    """Instance `old` gives back the first event of a key, as one with a schema that is too new."""

    async def outcome(self, envelope: Envelope, instance: str) -> float | Release | None:
        if instance == "old" and envelope.key == "key 0" and envelope.body == b"0":
            self.first["key 0"].remove(0)
            return Release(0.1)
        return None


async def test_an_event_that_is_given_back_holds_up_its_key_until_another_instance_has_it(engine: World) -> None:
    """In a rolling deploy the old instance handles no later event of the key before the new one had the first."""
    if engine.name == "kafka":
        return  # there it stays until this instance leaves its partition
    await known(engine, "billing")
    ordered = FirstGivesBack()
    async with consuming(engine.open(), "billing", ordered.by("old"), "old"):
        await engine.open().publish_many(keyed(10, 10))
        await until(lambda: ordered.count >= 90)
        async with consuming(engine.open(), "billing", ordered.by("new"), "new"):
            await until(lambda: ordered.count == 100)
    ordered.assert_in_order(10, 10)


async def test_keys_that_are_held_up_show_in_health(engine: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many there are at once, and which one when it lasts; both are gone when the event is done."""
    monkeypatch.setattr(_held_keys, "_LONG", 0.2)
    changed, mended = Signal(["number", "key"]), asyncio.Event()
    done: list[int] = []

    async def broken(number: int, key: str, **_: Any) -> None:
        if key == "a" and not mended.is_set():
            raise InterruptedError
        done.append(number)

    billing = Relay(engine.open(), "billing")
    billing.receive(changed, "numbers", retries=100, backoff=(0.1, 0.1))
    await billing.init()
    bodies = [(key, b'{"number":%d,"key":"%b"}' % (number, key.encode())) for number, key in enumerate("aabb")]
    await billing.transport.publish_many([Envelope("numbers", body, key=key) for key, body in bodies])
    with changed.connected(broken):
        async with billing:
            await until(lambda: billing.health().held_keys == 1 and sorted(done) == [2, 3])
            await until(lambda: "keys of 'numbers'" in billing.health().problems)
            assert "key 'a'" in billing.health().problems["keys of 'numbers'"]
            mended.set()
            await until(lambda: len(done) == 4 and billing.health().held_keys == 0)
            assert "keys of 'numbers'" not in billing.health().problems
    assert done[2:] == [0, 1]


async def test_instances_share_the_keys(engine: World) -> None:
    """One that comes when another one has all partitions gets its share of them, soon."""
    await known(engine, "billing")
    ordered, publisher, rounds = Ordered(), engine.open(), 0
    async with (
        consuming(engine.open(), "billing", ordered.by("one"), "one", limit=5),
        asyncio.timeout(60),
    ):
        await publisher.publish_many(keyed(40, 1))
        await until(lambda: ordered.count == 40)
        async with consuming(engine.open(), "billing", ordered.by("two"), "two", limit=5):
            while not ordered.calls["two"] or rounds < 3:
                rounds += 1
                await publisher.publish_many(keyed(40, 1, first=rounds))
                expected = 40 * (rounds + 1)
                await until(lambda expected=expected: ordered.count == expected)  # type: ignore[misc]
    ordered.assert_in_order(40, rounds + 1)


async def publish_as_before(transport: Any, envelope: Envelope) -> None:
    """Publish as a version that did not know of keys."""
    data, kind = envelope.encode(), type(transport).__name__
    if kind == "JetStream":
        client = await transport._connection.open()
        await client.jetstream().publish(f"{transport.stream}.{envelope.topic}", data)
    elif kind == "RedisStreams":
        await transport._connection.client().xadd(transport._connection.keys.stream(envelope.topic), {"d": data})
    else:
        line = await transport._connection.open()
        await line.exchange.publish(Message(data, message_id=envelope.id), envelope.topic)


async def test_events_of_an_older_publisher_are_handled_beside_those_of_a_newer_one(engine: World) -> None:
    """In a rolling deploy: those of the older one without an order, where it publishes to another place."""
    if engine.name not in ("jetstream", "redis", "rabbitmq"):
        return  # there is one place for both
    await known(engine, "billing")
    ordered, publisher = Ordered(), engine.open()
    async with consuming(engine.open(), "billing", ordered.by("one")):
        for number in range(5):
            await publish_as_before(publisher, Envelope("numbers", b"%d" % number, key="old"))
        await publisher.publish_many(keyed(4, 5))
        await until(lambda: ordered.count == 25)
    assert sorted(ordered.first.pop("old")) == list(range(5))
    assert ordered.first == {f"key {key}": list(range(5)) for key in range(4)}
