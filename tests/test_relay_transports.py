"""One suite of behaviour that every transport runs."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import aclosing, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import ENGINES, World, until, world

from asignals import Signal
from asignals.relay import Backlog, DeadLetter, DeadLetters, Delivery, Envelope, Relay, Release, Transport
from asignals.relay._transport import Broadcasts, KnowsServices

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from asignals.relay._transport import Hear

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


# Joining a group takes the mock cluster three seconds, each time: the others are for the long run.
QUICK_ON_KAFKA = {
    "test_a_retry_comes_after_its_delay_and_blocks_nobody",
    "test_a_consumer_that_leaves_gives_back_what_it_holds",
    "test_dead_letters_are_kept_shown_and_removed",
}


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


def events(count: int, **fields: Any) -> list[Envelope]:
    """Make events whose bodies are their numbers."""
    return [Envelope("numbers", str(number).encode(), **fields) for number in range(count)]


class Heard:
    """A `handle` that acknowledges and keeps what came."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.bodies: list[bytes] = []
        self.attempts: list[int] = []

    async def __call__(self, delivery: Delivery) -> float | None:
        self.deliveries.append(delivery)
        self.bodies.append(Envelope.decode(delivery.data).body)
        self.attempts.append(delivery.attempt)
        return None

    @property
    def numbers(self) -> list[int]:
        return [int(body) for body in self.bodies]


@asynccontextmanager
async def consuming(  # noqa: PLR0913, PLR0917  what consume takes
    transport: Transport,
    service: str,
    handle: Callable[[Delivery], Awaitable[float | None]],
    instance: str = "one",
    limit: int = 100,
    topics: Sequence[str] = ("numbers",),
) -> AsyncIterator[asyncio.Task[None]]:
    """Consume for the length of a block."""
    task = asyncio.create_task(transport.consume(service, instance, topics, handle, limit=limit))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def known(engine: World, *services: str, topics: Sequence[str] = ("numbers",)) -> None:
    """Make services known to the engine, as some keep events only for those."""
    transport = engine.open()
    if isinstance(transport, KnowsServices):
        for service in services:
            await transport.add_service(service, topics)


async def letters_of(transport: DeadLetters, queue: str, batch: int = 500) -> list[DeadLetter]:
    """Read a queue of dead letters to its end."""
    async with aclosing(transport.scan_dead_letters(queue, batch=batch)) as batches:
        return [letter async for some in batches for letter in some]


async def test_every_transport_is_one(engine: World) -> None:
    """The engines satisfy the protocol, and those that keep dead letters and backlogs say so."""
    transport = engine.open()
    assert isinstance(transport, Transport)
    assert isinstance(transport, DeadLetters)
    assert isinstance(transport, Backlog)


async def test_each_service_gets_every_event(engine: World) -> None:
    """Two services both get all events; what comes is byte for byte what was published."""
    await known(engine, "first", "second")
    transport = engine.open()
    first, second = Heard(), Heard()
    body = bytes(range(256)) * 3 + b"\n{}\r\n"
    async with consuming(engine.open(), "first", first), consuming(engine.open(), "second", second):
        await transport.publish_many([Envelope("numbers", body)])
        await until(lambda: body in first.bodies and body in second.bodies)


async def test_instances_of_a_service_share(engine: World) -> None:
    """Two instances of one service get each event once between them."""
    await known(engine, "billing")
    one, two = Heard(), Heard()
    async with consuming(engine.open(), "billing", one, "one"), consuming(engine.open(), "billing", two, "two"):
        await engine.open().publish_many(events(200))
        await until(lambda: {*one.numbers, *two.numbers} >= set(range(200)))
    both = [number for number in one.numbers + two.numbers if number >= 0]
    assert sorted(both) == list(range(200))


async def test_one_consumer_hears_events_in_order(engine: World) -> None:
    """A single consumer that handles one at a time hears events of a key in the order of publishing."""
    await known(engine, "billing")
    heard = Heard()
    async with consuming(engine.open(), "billing", heard, limit=1):
        transport = engine.open()
        await transport.publish_many(events(50, key="one"))  # Kafka keeps order for a key
        await until(lambda: 49 in heard.numbers)
    assert [number for number in heard.numbers if number >= 0] == list(range(50))


async def test_acknowledged_events_do_not_come_again(engine: World) -> None:
    """A consumer that comes later gets nothing of what an earlier one has acknowledged, even after the leases end."""
    await known(engine, "billing")
    heard, later = Heard(), Heard()
    transport = engine.open()
    async with consuming(engine.open(), "billing", heard):
        await transport.publish_many(events(30))
        await until(lambda: len(set(heard.numbers)) == 30)
    async with consuming(engine.open(), "billing", later, "two"):
        await asyncio.sleep(engine.lease * 1.5)
        await transport.publish_many([Envelope("numbers", b"30")])
        await until(lambda: 30 in later.numbers)
    assert set(later.numbers) == {30}


async def test_a_retry_comes_after_its_delay_and_blocks_nobody(engine: World) -> None:
    """An event asked for again comes after the delay, counted; others pass it meanwhile."""
    await known(engine, "billing")
    times: dict[int, list[float]] = {}
    done: set[int] = set()

    async def handle(delivery: Delivery) -> float | None:
        number = int(Envelope.decode(delivery.data).body)
        times.setdefault(number, []).append(time.monotonic())
        # On a busy machine others may take longer than the delay to arrive: it comes again until they are there.
        if number == 0 and (len(times[0]) == 1 or len(times) < 20):
            return 0.4
        done.add(number)
        return None

    async with consuming(engine.open(), "billing", handle):
        await engine.open().publish_many(events(20))
        await until(lambda: 0 in done)
    assert times[0][1] - times[0][0] >= 0.35
    assert all(times[number][-1] < times[0][-1] for number in range(1, 20))


async def test_a_retry_is_counted(engine: World) -> None:
    """The second delivery of an event says that it is not the first."""
    await known(engine, "billing")
    attempts: list[int] = []

    async def handle(delivery: Delivery) -> float | None:
        attempts.append(delivery.attempt)
        return 0.01 if len(attempts) < 3 else None

    async with consuming(engine.open(), "billing", handle):
        await engine.open().publish_many(events(1))
        await until(lambda: len(attempts) == 3)
    assert attempts == [1, 2, 3]


async def test_a_consumer_that_leaves_gives_back_what_it_holds(engine: World) -> None:
    """Events whose handling is cancelled go to another instance, and at once, not after the lease."""
    await known(engine, "billing")
    begun: list[bytes] = []

    async def never(delivery: Delivery) -> float | None:
        begun.append(delivery.data)
        await asyncio.Event().wait()
        return None

    async with consuming(engine.open(), "billing", never, "one"):
        await engine.open().publish_many(events(20))
        await until(lambda: len(begun) == 20)
    heard = Heard()
    async with consuming(engine.open(), "billing", heard, "two"):
        await until(lambda: set(heard.numbers) >= set(range(20)), 30 if engine.name == "kafka" else 5)


async def test_a_long_receiver_keeps_its_lease(engine: World) -> None:
    """An event that takes three times as long as a lease lasts is not given to the idle instance."""
    await known(engine, "billing")
    calls: list[str] = []

    def handler(name: str) -> Callable[[Delivery], Awaitable[float | None]]:
        async def handle(_delivery: Delivery) -> float | None:
            calls.append(name)
            await asyncio.sleep(engine.lease * 3)
            calls.append(f"{name} done")
            return None

        return handle

    async with (
        consuming(engine.open(), "billing", handler("one"), "one"),
        consuming(engine.open(), "billing", handler("two"), "two"),
    ):
        await engine.open().publish_many(events(1))
        await until(lambda: len(calls) >= 2)
        await asyncio.sleep(engine.lease)
    assert calls in (["one", "one done"], ["two", "two done"])


async def test_one_that_hangs_does_not_stop_the_rest(engine: World) -> None:
    """While one event is being handled for ever, a thousand others pass."""
    await known(engine, "billing")
    passed: set[int] = set()

    async def handle(delivery: Delivery) -> float | None:
        number = int(Envelope.decode(delivery.data).body)
        if number == 0:
            await asyncio.Event().wait()
        passed.add(number)
        return None

    async with consuming(engine.open(), "billing", handle, limit=10):
        await engine.open().publish_many(events(1_000))
        await until(lambda: len(passed) == 999, 20)


async def test_however_many_wait_for_their_retry_the_others_pass(engine: World) -> None:
    """Twelve hundred events that failed, and wait for long, stop neither the consumer nor those that come after."""
    await known(engine, "billing")
    failed, heard = set(), set()

    async def handle(delivery: Delivery) -> float | None:
        number = int(Envelope.decode(delivery.data).body)
        if number < 1_200:
            failed.add(number)
            return 300.0
        heard.add(number)
        return None

    transport = engine.open()
    async with consuming(engine.open(), "billing", handle, limit=20):
        await transport.publish_many(events(1_200))
        await until(lambda: len(failed) == 1_200)
        await transport.publish_many([Envelope("numbers", b"2000")])
        await until(lambda: 2_000 in heard, 5)


async def test_events_that_wait_for_others_of_their_key_take_no_place(engine: World) -> None:
    """Twelve hundred events of one busy key are parked; one of no key, far behind them, passes."""
    await known(engine, "billing")
    passed = asyncio.Event()
    parked = 0

    async def handle(delivery: Delivery) -> float | None:
        nonlocal parked
        if int(Envelope.decode(delivery.data).body) == 2_000:
            passed.set()
            return None
        parked += 1
        with delivery.park():
            await passed.wait()
        return None

    transport = engine.open()
    async with consuming(engine.open(), "billing", handle, limit=10):
        await transport.publish_many([*events(1_200), Envelope("numbers", b"2000")])
        async with asyncio.timeout(60):
            await passed.wait()
        await _until_backlog(transport, 0)


async def test_at_most_limit_events_are_handled_at_once(engine: World) -> None:
    """`limit` bounds how many handlers run together."""
    await known(engine, "billing")
    running, most, count = 0, 0, 0

    async def handle(_delivery: Delivery) -> float | None:
        nonlocal running, most, count
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        count += 1
        return None

    async with consuming(engine.open(), "billing", handle, limit=4):
        await engine.open().publish_many(events(60))
        await until(lambda: count >= 60)
    assert most <= 4


async def test_a_repeated_event_is_taken_once(engine: World) -> None:
    """Publishing the same envelopes again, as after a lost acknowledgement, delivers each once where the engine can."""
    await known(engine, "billing")
    transport, heard = engine.open(), Heard()
    batch = events(25)
    await transport.publish_many(batch)
    await transport.publish_many(batch)
    async with consuming(engine.open(), "billing", heard):
        await transport.publish_many([Envelope("numbers", b"25")])
        await until(lambda: 25 in heard.numbers)
        await until(lambda: len(heard.numbers) >= 26)
    if engine.name in ("rabbitmq", "kafka"):  # it recognises no repetition: an inbox does
        assert set(heard.numbers) == set(range(26))
    else:
        assert sorted(heard.numbers) == list(range(26))


async def test_dead_letters_are_kept_shown_and_removed(engine: World) -> None:
    """Letters of a queue come back whole and in order, one removed is gone, other queues are not touched."""
    transport = engine.open()
    assert isinstance(transport, DeadLetters)
    raws = [Envelope("numbers", b"%d" % number).encode() for number in range(3)] + [b"\x00\xff no envelope"]
    for raw in raws:
        await transport.put_dead_letter("dlq.billing", DeadLetter(raw, "billing", "ValueError: \u2028 'quoted'", 5))
    await transport.put_dead_letter("dlq.other", DeadLetter(raws[0], "other", "KeyError: 1"))
    assert await transport.count_dead_letters("dlq.billing") == 4
    letters = await letters_of(transport, "dlq.billing")
    assert [letter.raw for letter in letters] == raws
    assert letters[0].error == "ValueError: \u2028 'quoted'"
    assert (letters[0].service, letters[0].attempts) == ("billing", 5)
    assert [letter.raw for letter in await letters_of(transport, "dlq.billing", 2)] == raws
    await transport.delete_dead_letters("dlq.billing", [letters[1], letters[3]])
    assert [letter.raw for letter in await letters_of(transport, "dlq.billing")] == [raws[0], raws[2]]
    assert await transport.count_dead_letters("dlq.billing") == 2
    assert len(await letters_of(transport, "dlq.other")) == 1


async def test_the_backlog_counts_what_is_not_acknowledged(engine: World) -> None:
    """Events count from when they are published until they are acknowledged."""
    transport = engine.open()
    await known(engine, "billing")
    await _until_backlog(transport, 0)
    await transport.publish_many(events(15))
    await _until_backlog(transport, 15)
    heard = Heard()
    async with consuming(engine.open(), "billing", heard):
        await until(lambda: len(heard.numbers) == 15)
        await _until_backlog(transport, 0)


async def _until_backlog(transport: Backlog, count: int, service: str = "billing") -> None:
    async with asyncio.timeout(60):
        while await transport.backlog(service) != count:  # noqa: ASYNC110  the engine tells nobody
            await asyncio.sleep(0.02)


async def test_an_instance_gets_only_topics_that_it_asked_for(engine: World) -> None:
    """In a rolling deploy old and new instances receive different topics: none hears what it cannot handle.

    What nobody who runs asks for waits, and topics that the service does not receive are no backlog of its.
    """
    await known(engine, "billing", topics=["old", "both"])
    await known(engine, "shipping", topics=["new"])  # so that RabbitMQ takes it
    transport = engine.open()

    def some(topic: str, first: int) -> list[Envelope]:
        return [Envelope(topic, str(first + number).encode()) for number in range(20)]

    await transport.publish_many(some("old", 0) + some("both", 100) + some("new", 1000))
    await _until_backlog(transport, 40)
    newer, older = Heard(), Heard()
    async with consuming(engine.open(), "billing", newer, "new", topics=["both", "new"]):
        await until(lambda: set(newer.numbers) >= set(range(100, 120)))
        await transport.publish_many(some("new", 1020) + some("old", 20))
        await until(lambda: set(newer.numbers) >= set(range(1020, 1040)))
    assert {delivery.topic for delivery in newer.deliveries} == {"both", "new"}
    await _until_backlog(transport, 40)
    async with consuming(engine.open(), "billing", older, "old", topics=["old", "both"]):
        await until(lambda: set(older.numbers) == set(range(40)))
        await _until_backlog(transport, 0)
    assert {delivery.topic for delivery in older.deliveries} == {"old"}


async def test_an_event_that_is_given_back_goes_to_another_instance(engine: World) -> None:
    """One that this instance cannot handle, as its schema is too new, is another's after the pause."""
    await known(engine, "billing")
    refused: list[bytes] = []

    async def cannot(delivery: Delivery) -> Release:
        refused.append(delivery.data)
        return Release(0.05)

    able = Heard()
    async with consuming(engine.open(), "billing", cannot, "old"):
        await engine.open().publish_many(events(20))
        await until(lambda: len(set(refused)) == 20)
        if engine.name == "kafka":
            return  # there it stays until this instance leaves its partition
        async with consuming(engine.open(), "billing", able, "new"):
            await until(lambda: set(able.numbers) == set(range(20)), 20)


async def test_a_service_that_is_gone_is_forgotten(engine: World) -> None:
    """Nothing is kept for it any more, of one topic or of all; the others keep theirs."""
    await known(engine, "billing", topics=["numbers", "letters"])
    await known(engine, "shipping", topics=["numbers", "letters"])
    transport = engine.open()
    await transport.publish_many([*events(10), *(Envelope("letters", b"1") for _ in range(5))])
    await _until_backlog(transport, 15)
    await transport.forget_service("billing", ["letters"])
    await _until_backlog(transport, 10)
    if engine.name == "kafka":
        return  # its mock cluster deletes no groups
    await transport.forget_service("billing")
    await transport.publish_many(events(10))
    await _until_backlog(transport, 0)
    await _until_backlog(transport, 25, "shipping")
    await transport.forget_service("never-heard-of")


async def test_hundreds_of_dead_letters_are_counted_read_and_removed_in_batches(engine: World) -> None:
    """Without holding more than a batch of them here; a scan that is left early takes none."""
    transport = engine.open()
    assert isinstance(transport, DeadLetters)
    letters = [DeadLetter(b"%d" % number, "billing", "ValueError: no", 5, time=float(number)) for number in range(300)]
    for start in range(0, 300, 50):
        await asyncio.gather(*(transport.put_dead_letter("dlq.billing", one) for one in letters[start : start + 50]))
    assert await transport.count_dead_letters("dlq.billing") == 300
    async with aclosing(transport.scan_dead_letters("dlq.billing", batch=70)) as batches:
        assert len(await anext(batches)) == 70
    async with asyncio.timeout(60):  # RabbitMQ puts back what was looked at when it has time for it
        while await transport.count_dead_letters("dlq.billing") != 300:  # noqa: ASYNC110  the engine tells nobody
            await asyncio.sleep(0.02)
    kept = 0
    async with aclosing(transport.scan_dead_letters("dlq.billing", batch=70)) as batches:
        async for some in batches:
            assert len(some) <= 70
            even = [letter for letter in some if int(letter.raw) % 2 == 0]
            await transport.delete_dead_letters("dlq.billing", even)
            kept += len(some) - len(even)
    assert kept == 150
    async with asyncio.timeout(60):
        while await transport.count_dead_letters("dlq.billing") != 150:  # noqa: ASYNC110  the engine tells nobody
            await asyncio.sleep(0.02)
    rest = await letters_of(transport, "dlq.billing")
    assert {int(letter.raw) for letter in rest} == set(range(1, 300, 2))


@asynccontextmanager
async def listening(transport: Broadcasts, hear: Hear, *topics: str) -> AsyncIterator[None]:
    """Listen for the length of a block."""
    begun = asyncio.Event()
    task = asyncio.create_task(transport.listen(topics, hear, begun.set))
    try:
        async with asyncio.timeout(60):
            await begun.wait()
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_every_listener_hears_every_event_beside_what_services_share(engine: World) -> None:
    """Of its topics, from when it began; it takes nothing from a service, and one that has left hears no more."""
    await known(engine, "billing")
    transport, shared = engine.open(), Heard()
    assert isinstance(transport, Broadcasts)
    heard: list[list[Delivery]] = [[], [], []]
    await transport.publish_many(events(5, key="one"))
    with_others = engine.open()
    async with (
        listening(engine.open(), heard[0].append, "numbers"),
        listening(engine.open(), heard[1].append, "numbers", "letters"),
    ):
        async with listening(with_others, heard[2].append, "letters"):
            await transport.publish_many([Envelope("letters", b"a")])
            await until(lambda: heard[1] and heard[2])
        batch = [Envelope("numbers", str(100 + number).encode(), key="one") for number in range(200)]
        for start in range(0, 200, 20):
            await transport.publish_many(batch[start : start + 20])
        await transport.publish_many([Envelope("letters", b"b")])
        await until(lambda: len(heard[0]) == 200 and len(heard[1]) == 202)
        async with consuming(engine.open(), "billing", shared):
            await until(lambda: len(set(shared.numbers)) == 205)
    numbers = [int(Envelope.decode(delivery.data).body) for delivery in heard[0]]
    assert sorted(numbers) == list(range(100, 300))
    if engine.name != "kafka":
        assert numbers == sorted(numbers)
    assert [Envelope.decode(delivery.data).body for delivery in heard[2]] == [b"a"]
    assert {delivery.topic for delivery in heard[1]} == {"numbers", "letters"}
    await _until_backlog(transport, 0)


async def test_publishing_nothing_is_fine(engine: World) -> None:
    """An empty batch is acknowledged."""
    await engine.open().publish_many([])


async def test_many_events_at_once_all_arrive(engine: World) -> None:
    """A batch larger than any internal one arrives whole."""
    await known(engine, "billing")
    heard = Heard()
    async with consuming(engine.open(), "billing", heard):
        await engine.open().publish_many(events(2_500))
        await until(lambda: len(set(heard.numbers)) == 2_500, 30)


async def test_a_large_body_passes(engine: World) -> None:
    """The largest body that an envelope may have is carried whole."""
    await known(engine, "billing")
    heard = Heard()
    body = b"\x00" * 1_000_000
    async with consuming(engine.open(), "billing", heard):
        await engine.open().publish_many([Envelope("numbers", body)])
        await until(lambda: any(len(got) == len(body) for got in heard.bodies))


def test_a_relay_may_run_in_one_event_loop_after_another(engine_name: str, tmp_path: Path) -> None:
    """A relay made at import serves several event loops in turn, as test suites and commands run them."""

    async def opened() -> tuple[World, Any]:
        manager = world(engine_name, tmp_path)
        return await manager.__aenter__(), manager

    with asyncio.Runner() as runner:
        made, manager = runner.run(opened())
        out, into, heard = Signal(["n"]), Signal(["n"]), []
        shop, billing = Relay(made.open(), "shop"), Relay(made.open(), "billing")
        shop.export(out, "numbers")
        billing.receive(into, "numbers")

        async def init() -> None:
            await billing.init()
            await billing.transport.aclose() if hasattr(billing.transport, "aclose") else None

        async def once(number: int) -> None:
            async with shop, billing:
                await asyncio.gather(*(out.send("x", n=number + part) for part in range(20)))
                await until(lambda: len(heard) == number + 20)

        asyncio.run(init())
        with into.connected(lambda n, **_: heard.append(n)):
            asyncio.run(once(0))
            asyncio.run(once(20))
        assert sorted(heard) == list(range(40))
        runner.run(manager.__aexit__(None, None, None))


@pytest.fixture(params=[name for name in ENGINES if name not in ("memory", "postgres")])
def engine_name(request: pytest.FixtureRequest) -> str:
    """Engines that are not given an open connection of one event loop."""
    name: str = request.param
    return name


async def test_names_that_an_engine_might_misread_are_refused(engine: World) -> None:
    """Services with names that mean something to a broker are refused before anything is asked of it."""
    for name in ("", "a b", "a/b", "a*", "a>", "x" * 201, ".a", "a..b", "a\n"):
        with pytest.raises(ValueError, match="service must be"):
            await engine.open().consume(name, "one", ["numbers"], Heard())


# A database of the application's own belongs to one loop, as SQLAlchemy says: that of "psycopg" is made by its URL.
BOUND_TO_LOOPS = ["sqlite", "psycopg", "jetstream", "redis", "rabbitmq", "kafka"]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", BOUND_TO_LOOPS)
async def test_sync_code_publishes_in_one_event_loop_after_the_other(name: str, tmp_path: Path) -> None:
    """Connections of a loop that has ended (`asyncio.run`, `async_to_sync`) are let go of, and new ones are made."""
    async with world(name, tmp_path) as made:
        transport, heard = made.open(), Heard()
        for event in events(3):
            await asyncio.to_thread(asyncio.run, transport.publish_many([event]))
        if hasattr(transport, "aclose"):
            await transport.aclose()  # lets go of the last loop's
        gc.collect()  # what clients say of their connections is said here, and in no later test
        consuming = asyncio.create_task(made.open().consume("s", "i", ["numbers"], heard))
        await until(lambda: len(heard.numbers) == 3)
        consuming.cancel()
        await asyncio.wait([consuming])
        assert sorted(heard.numbers) == [0, 1, 2]


@pytest.mark.parametrize("name", [name for name in BOUND_TO_LOOPS if name != "sqlite"])
async def test_an_engine_that_another_threads_loop_uses_says_so(name: str, tmp_path: Path) -> None:
    """A send from the loop of another thread waits for no answer that comes in this one; the next one here goes on."""
    signal = Signal(["number"], name="threads")
    async with world(name, tmp_path) as made:
        relay = Relay(made.open(), "shop", grace=1)
        relay.export(signal, "numbers")
        async with relay:
            await signal.send("here", number=1)
            with pytest.raises(RuntimeError, match="another thread"):
                await asyncio.to_thread(asyncio.run, signal.send("there", number=2))
            await signal.send("here", number=3)
        assert relay.health().published == 2
