"""Cancelling the relay's loops: however a client treats cancellations, they end, and nothing half done is left."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from relay_support import ENGINES, World, until, world

from asignals import Signal
from asignals.relay import Delivery, Envelope, Memory, MemoryInbox, Relay
from asignals.relay._batch import Batch, Coalescer
from asignals.relay._cancel import SelfCancelledError, end, heeding, limited, times_cancelled
from asignals.relay._connection_state import Attempts, ConnectionState
from asignals.relay._pool import Pool
from asignals.relay._to_the_end import to_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


async def swallowing() -> str:
    """Behave as `asyncio.wait_for` did before Python 3.12: when cancelled, give a result all the same."""
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    return "result"


async def turning_into_an_error() -> None:
    """Behave as clients do that report a cancellation as a loss."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ConnectionError from None


async def cancelling_itself() -> None:
    """Behave as clients do whose futures are cancelled with the connection."""
    raise asyncio.CancelledError


async def ended(task: asyncio.Task[Any]) -> bool:
    """Cancel a task once; tells whether it ended as cancelled, and soon."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait([task])
    return task.cancelled()


@pytest.mark.parametrize("call", [swallowing, turning_into_an_error])
async def test_a_cancellation_that_a_call_swallows_is_raised(call: Callable[[], Any]) -> None:
    """`heeding` and `limited` end as cancelled though the call returned, or raised something else."""
    assert await ended(asyncio.create_task(heeding(call())))
    assert await ended(asyncio.create_task(limited(call(), 60)))


async def test_a_cancellation_that_nobody_asked_for_is_an_error() -> None:
    """A `CancelledError` of the call's own is no cancellation of the caller."""
    with pytest.raises(SelfCancelledError):
        await heeding(cancelling_itself())


async def test_results_and_errors_pass_as_they_are() -> None:
    """Without a cancellation `heeding` changes nothing, also where a scope or a time limit inside has ended."""

    async def limits_itself() -> int:
        with anyio.move_on_after(0.001):
            await anyio.sleep_forever()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        return 7

    async def fails() -> None:
        raise LookupError

    assert await heeding(limits_itself()) == 7
    with pytest.raises(LookupError):
        await heeding(fails())


async def test_a_time_limit_holds_though_it_is_swallowed_once() -> None:
    """`limited` cancels until the call has ended, as a client may lose the first one."""

    async def stubborn() -> None:
        await swallowing()
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await limited(stubborn(), 0.01)


async def test_each_time_limit_ends_when_it_is_due() -> None:
    """One timer serves all limits of a loop: earlier, later and inner ones; the text says who gave no answer."""

    async def late(seconds: float) -> None:
        began = loop.time()
        with pytest.raises(TimeoutError, match=f"^it gave no answer within {seconds:g} s$"):
            await limited(limited(asyncio.Event().wait(), 60), seconds, "it")
        assert loop.time() - began > seconds - 0.005  # a clock of milliseconds

    loop = asyncio.get_running_loop()
    await asyncio.gather(*map(late, (0.03, 0.01, 0.02, 0.01)))
    assert times_cancelled() == 0
    assert await limited(asyncio.sleep(0.01, "done"), 60) == "done"


async def test_an_answer_that_comes_late_is_no_timeout() -> None:
    """A call that swallows the cancellation of a time limit and returns has answered; its errors are those of one."""
    assert await limited(swallowing(), 0.01) == "result"
    with pytest.raises(TimeoutError) as caught:
        await limited(turning_into_an_error(), 0.01)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert times_cancelled() == 0


async def test_a_cancellation_wins_over_a_time_limit() -> None:
    """A task that is cancelled while its time limit expires ends as cancelled."""

    async def both() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            task.cancel()  # as others do meanwhile
            raise

    task = asyncio.create_task(limited(both(), 0.01))
    await asyncio.wait([task])
    assert task.cancelled()


async def test_attempts_raise_what_their_block_swallows() -> None:
    """A loop of attempts ends when it is cancelled, though a client swallows that, or calls it a failure."""

    async def loop(call: Callable[[], Any]) -> None:
        attempts = Attempts(ConnectionState("x"))
        while True:
            async with attempts:
                await call()

    assert await ended(asyncio.create_task(loop(swallowing)))
    assert await ended(asyncio.create_task(loop(turning_into_an_error)))


async def test_attempts_note_losses_and_returns(caplog: pytest.LogCaptureFixture) -> None:
    """Failures are noted once on the link and followed by a pause, a success ends them."""
    link, failures = ConnectionState("the engine"), iter([ConnectionError("1"), OSError("2")])
    attempts, ups = Attempts(link), []
    for _ in range(3):
        async with attempts:
            for error in failures:
                raise error
        ups.append(link.is_up)
    assert ups == [False, False, True]
    lost, back = caplog.messages
    assert lost.startswith("lost the engine (ConnectionError: 1)")
    assert back.startswith("the engine is back")


async def test_work_goes_to_its_end_though_it_is_cancelled_again_and_again() -> None:
    """`to_the_end` finishes first and raises the cancellation then, natively cancelled or by a scope."""
    done = []

    async def work(name: str) -> str:
        for _ in range(20):
            await asyncio.sleep(0)
        done.append(name)
        return name

    task = asyncio.create_task(to_the_end(work("native")))
    for _ in range(5):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with anyio.CancelScope() as scope:
        scope.cancel()
        await to_the_end(work("scope"))
        await asyncio.sleep(0)
    assert scope.cancelled_caught
    assert await to_the_end(work("free")) == "free"
    assert done == ["native", "scope", "free"]


async def test_ending_tasks_waits_for_their_clean_up() -> None:
    """`end` comes back when all have ended, also when it is itself cancelled meanwhile."""
    cleaned, gate = [], asyncio.Event()

    async def cleans_up(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await gate.wait()
            cleaned.append(number)

    tasks = [asyncio.create_task(cleans_up(number)) for number in range(3)]
    await asyncio.sleep(0)
    ending = asyncio.create_task(end(tasks))
    await asyncio.sleep(0)
    ending.cancel()
    await asyncio.sleep(0)
    assert not ending.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert cleaned == [0, 1, 2]
    await end([])


@pytest.mark.parametrize("call", [swallowing, turning_into_an_error])
async def test_a_pool_ends_though_its_work_swallows_the_cancellation(call: Callable[[], Any]) -> None:
    """Leaving a pool ends workers that go on as if nothing had happened, and what is put later is left alone."""
    began: list[int] = []

    async def work(item: int) -> None:
        began.append(item)
        await call()

    async with asyncio.timeout(60):
        async with Pool(work, 3) as pool:
            for item in range(10):
                pool.put(item)
            await until(lambda: len(began) == 3)
    pool.put(99)
    await asyncio.sleep(0)
    assert began == [0, 1, 2]


@pytest.mark.parametrize("error", [LookupError(), asyncio.CancelledError()], ids=["error", "cancellation"])
async def test_work_that_raises_ends_the_block(error: BaseException) -> None:
    """Whoever waits in a pool's block hears of work that raised, or was cancelled by nobody: no event gets stuck."""

    async def work(_item: int) -> None:
        raise error

    async def run() -> None:
        async with Pool(work, 3) as pool:
            pool.put(1)
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    (found,) = caught.value.exceptions
    assert isinstance(found, LookupError | SelfCancelledError)


async def test_what_is_put_after_a_failure_is_left_alone() -> None:
    """Events that arrive while a pool ends because of a failure begin no more work, and raise nothing."""
    began: list[int] = []

    async def work(item: int) -> None:
        began.append(item)
        raise LookupError

    async def run() -> None:
        async with Pool(work, 3) as pool:
            pool.put(1)
            try:
                await asyncio.Event().wait()
            finally:
                pool.put(2)

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert [type(error) for error in caught.value.exceptions] == [LookupError]
    assert began == [1]


async def test_what_runs_beside_the_workers_ends_with_them() -> None:
    """`Pool.start` runs something for the length of the block, and its failure ends the block."""
    running: list[str] = []

    async def beside() -> None:
        running.append("began")
        try:
            await asyncio.Event().wait()
        finally:
            running.append("ended")

    async with Pool(lambda _item: asyncio.sleep(0), 1) as pool:
        pool.start(beside())
        await until(lambda: running)
    assert running == ["began", "ended"]

    async def fails() -> None:
        raise ConnectionError

    async def run() -> None:
        async with Pool(lambda _item: asyncio.sleep(0), 1) as pool:
            pool.start(fails())
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup):
        await run()


async def test_a_batch_ends_though_its_flush_swallows_the_cancellation() -> None:
    """Leaving a batch repeats the trip that was under way, and ends."""
    trips: list[list[int]] = []

    async def flush(items: list[int]) -> None:
        trips.append(items)
        if len(trips) == 1:
            await turning_into_an_error()

    async with asyncio.timeout(60):
        async with Batch(flush, ConnectionState("x")) as batch:
            batch.add(1)
            await until(lambda: trips)
    assert trips == [[1], [1]]


async def test_a_trip_that_cancels_itself_leaves_nobody_waiting() -> None:
    """Those who share a trip hear of it when the client cancels its own futures, and the next trip is whole."""
    calls: list[list[int]] = []

    async def function(items: list[int]) -> list[int]:
        calls.append(items)
        if len(calls) == 1:
            raise asyncio.CancelledError
        return items

    together = Coalescer(function)
    async with asyncio.timeout(60):
        with pytest.raises(SelfCancelledError):
            await together(1)
        assert await together(2) == 2


async def test_closing_ends_the_trip_under_way() -> None:
    """`aclose` leaves no task behind, and who waited is cancelled."""

    async def function(items: list[int]) -> list[int]:
        await asyncio.Event().wait()
        return items

    together = Coalescer(function)
    waiting = asyncio.create_task(together(1))
    await asyncio.sleep(0)
    before = asyncio.all_tasks()
    await together.aclose()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert len(asyncio.all_tasks()) == len(before) - 2


# -- the relay ---------------------------------------------------------------------------------------------------------


class Swallowing(Memory):
    """An engine whose consuming swallows a cancellation and returns."""

    async def consume(self, *_: Any, **__: Any) -> None:
        await swallowing()


async def test_a_relay_ends_though_its_transport_swallows_the_cancellation() -> None:
    """Leaving does not wait for ever for a transport that returns instead of being cancelled."""
    relay = Relay(Swallowing(), "billing")
    relay.receive(Signal(), "numbers")
    async with asyncio.timeout(60), relay:
        await asyncio.sleep(0)


async def test_a_transport_that_stops_consuming_is_a_loss_and_no_busy_loop() -> None:
    """`consume` that returns at once is tried again after a pause, and `health` tells."""

    class Stopping(Memory):
        calls = 0

        async def consume(self, *_: Any, **__: Any) -> None:
            self.calls += 1

    transport = Stopping()
    relay = Relay(transport, "billing")
    relay.receive(Signal(), "numbers")
    async with relay:
        await until(lambda: not relay.health().ok)
        assert "stopped consuming" in str(relay.health().problems)
        for _ in range(50):
            await asyncio.sleep(0)
        assert transport.calls < 5


@pytest.mark.parametrize("how", ["native", "scope"])
async def test_a_relay_that_is_cancelled_leaves_nothing_running(how: str) -> None:
    """Cancelled inside its block, natively or by a scope, a relay ends its tasks and closes its transport."""
    closed: list[bool] = []

    class Closable(Memory):
        async def aclose(self) -> None:
            await asyncio.sleep(0)
            closed.append(True)

    relay, into = Relay(Closable(), "billing"), Signal(["n"])
    relay.receive(into, "numbers")
    cleaned: list[bool] = []

    @into.connect
    async def stuck(**_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    before = asyncio.all_tasks()

    async def run() -> None:
        async with relay:
            await relay.transport.publish_many([Envelope("numbers", b'{"n": 1}')])
            await until(lambda: relay.health().in_flight)
            if how == "scope":
                scope.cancel()
            await asyncio.Event().wait()

    if how == "scope":
        with anyio.CancelScope() as scope:
            await run()
    else:
        task = asyncio.create_task(run())
        await until(lambda: relay.health().in_flight)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert (cleaned, closed) == ([True], [True])
    assert asyncio.all_tasks() == before
    assert relay.final_status is not None
    assert relay.final_status.backlog == 1


async def test_a_cancellation_lost_in_the_inbox_calls_no_receiver() -> None:
    """Leaving while the inbox is asked ends the handling there, though the inbox's client swallows it."""

    class Lossy(MemoryInbox):
        asked = False

        async def recall(self, event_id: str, service: str) -> Any:
            self.asked = True
            await swallowing()
            return await super().recall(event_id, service)

    inbox, calls = Lossy(), []
    relay, into = Relay(Memory(), "billing", inbox=inbox, grace=0.01), Signal(["n"])
    relay.receive(into, "numbers")
    with into.connected(lambda **_: calls.append(1)):
        async with asyncio.timeout(60), relay:
            await relay.transport.publish_many([Envelope("numbers", b'{"n": 1}')])
            await until(lambda: inbox.asked)
    assert calls == []
    assert relay.final_status is not None
    assert relay.final_status.backlog == 1


async def test_a_sender_that_cannot_be_loaded_by_its_own_cancellation_has_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`CancelledError` out of a loading function counts as a failure, and the event does not get stuck."""

    async def load(_text: str | None) -> None:
        raise asyncio.CancelledError

    relay = Relay(Memory(), "billing", sender_codec=(str, load))
    relay.receive(Signal(["n"]), "numbers", retries=0)
    async with asyncio.timeout(60), relay:
        await relay.transport.publish_many([Envelope("numbers", b'{"n": 1}')])
        await until(lambda: relay.health().dead == 1)
    assert "SelfCancelledError" in caplog.text


# -- every engine ------------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run on every engine; on Kafka, where joining a group takes seconds, only in the long run."""
    if "engine" in metafunc.fixturenames:
        names = [*ENGINES, "kafka"] if metafunc.config.getoption("--long") else ENGINES
        metafunc.parametrize("engine", names, indirect=True)


@pytest.fixture
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world of its own for every test, on every engine."""
    async with world(request.param, tmp_path) as made:
        yield made


class Ledger:
    """Which events were handled to the end; some take a few turns of the loop, and, if wanted, every tenth for ever."""

    def __init__(self, *, hangs: bool) -> None:
        self.handled: set[int] = set()
        self.begun = 0
        self._hangs = hangs

    async def __call__(self, delivery: Delivery) -> float | None:
        number = int(Envelope.decode(delivery.data).body)
        self.begun += 1
        for _ in range(number % 4):
            await asyncio.sleep(0)
        if self._hangs and number % 10 == 9:
            await asyncio.Event().wait()
        self.handled.add(number)
        return None


def parts_running() -> list[str]:
    """Name the tasks that belong to some consumer."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in names if name.startswith(("Consumer.", "Pool.", "Batch.", "_listen", "_give"))]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["native", "scope"])
async def test_a_consumer_ends_whenever_it_is_cancelled(engine: World, how: str, long: bool) -> None:  # noqa: FBT001
    """Cancelled at any turn of the loop it ends soon, leaves no task, and what was not handled comes again."""
    transport, ledger = engine.open(), Ledger(hangs=True)
    if hasattr(transport, "add_service"):
        await transport.add_service("billing", ["numbers"])
    scopes: list[anyio.CancelScope] = []

    async def consume(instance: str) -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await transport.consume("billing", instance, ["numbers"], ledger)

    turns = 200 if long else 14
    for turn in range(turns):
        await transport.publish_many([Envelope("numbers", b"%d" % (turn * 10 + place)) for place in range(10)])
        begun = ledger.begun
        task = asyncio.create_task(consume(f"i{turn}"))
        await asyncio.sleep(0)
        if turn % 2:
            await until(lambda begun=begun: ledger.begun > begun)
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel() if how == "native" else scopes[-1].cancel()
        async with asyncio.timeout(60):
            await asyncio.wait([task])
        assert task.cancelled() == (how == "native"), task
        assert parts_running() == []
    rest = Ledger(hangs=False)
    task = asyncio.create_task(engine.open().consume("billing", "last", ["numbers"], rest))
    await until(lambda: rest.handled | ledger.handled >= set(range(turns * 10)))
    assert {number for number in ledger.handled if number % 10 == 9} == set()
    await end([task])
