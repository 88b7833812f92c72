"""Every pair of public operations at once, with tasks that run in a shuffled order: one order for each seed."""

import asyncio
import gc
import itertools
import logging
import random
from contextlib import ExitStack
from weakref import ref

import anyio
import pytest
import trio

from asignals import Background, BufferFull, Signal, monitor, receiver, stream

SHARE = 16  # each seed is that of one pair in so many, so that all pairs are tried with many seeds


class ShuffledLoop(asyncio.SelectorEventLoop):
    """Runs what is ready in a random order, where asyncio would run it in the order of becoming ready."""

    chance = random.Random()  # noqa: S311  no secret

    def _run_once(self):
        ready = list(self._ready)
        self.chance.shuffle(ready)
        self._ready.clear()
        self._ready.extend(ready)
        super()._run_once()


@pytest.fixture(params=["asyncio", "trio"])
def run(request, monkeypatch):
    """Runs an async function to its end, in the order that belongs to a source of chance."""
    monkeypatch.setattr(logging.getLogger("asignals"), "disabled", True)
    if request.param == "trio":
        monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)

        def run(chance, main):
            monkeypatch.setattr(trio._core._run, "_r", chance)
            trio.run(main)

        yield run
    else:
        with asyncio.Runner(loop_factory=ShuffledLoop) as runner:

            def run(chance, main):
                runner.get_loop().chance = chance
                runner.run(main())

            yield run


class Being:
    """A sender or the owner of a receiver, which may die."""

    def __init__(self, world):
        self.world = world

    async def hear(self, item):
        await anyio.lowlevel.checkpoint()
        self.world.heard.append((id(self), item))


class World:
    """A signal with three receivers that stay, one that operations play with, and the books of who heard what."""

    def __init__(self):
        self.tested = Signal(["item"], name="tested")
        self.heard = []
        self.sent = []
        self.begun = []
        self.numbers = itertools.count()
        self.mortals = []
        self.background = None
        self.is_over = None

        def first(item):
            self.heard.append(("first", item))

        async def second(item):
            await anyio.lowlevel.checkpoint()
            self.heard.append(("second", item))

        async def third(item):
            self.heard.append(("third", item))
            await anyio.lowlevel.checkpoint()

        async def player(item):
            await anyio.lowlevel.checkpoint()
            self.heard.append(("player", item))

        self.stay = {"first": first, "second": second, "third": third}
        self.player = player
        for each in self.stay.values():
            self.tested.connect(each)

    def item(self):
        item = next(self.numbers)
        self.sent.append(item)
        return item

    async def send(self, sending, sender=None):
        item = self.item()
        pairs = await sending(sender, item=item)
        heard = [each for each, _ in pairs if each in self.stay.values()]
        assert heard == list(self.stay.values())
        return [each for each, _ in pairs]

    async def keep_background(self, *, task_status):
        async with Background(limit=1, buffer=1) as self.background:
            self.is_over = anyio.Event()
            task_status.started()
            await self.is_over.wait()
        counts = self.background.statistics()
        assert counts.accepted == counts.done
        assert counts.errors == counts.running == counts.waiting == counts.blocked == 0

    async def live(self, operations, chance):
        """Run operations at once, each of them some steps later than it could."""

        async def begin(operation):
            for _ in range(chance.randrange(4)):
                await anyio.lowlevel.checkpoint()
            await operation(self)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as outer:
                if SHARING & {*operations}:
                    await outer.start(self.keep_background)
                async with anyio.create_task_group() as group:
                    for operation in (*operations, send):
                        group.start_soon(begin, operation)
                if self.is_over is not None:
                    self.is_over.set()

    def balance(self):
        for name in self.stay:
            heard = [item for who, item in self.heard if who == name]
            assert sorted(item for item in heard if item not in self.begun) == sorted(self.sent)
        for name in {who for who, _ in self.heard}:
            items = [item for who, item in self.heard if who == name]
            assert len(items) == len(set(items))
        if any(mortal() for mortal in self.mortals):
            gc.collect()  # on asyncio, a task group of anyio's that was cancelled leaves a cycle of its own
        assert [mortal() for mortal in self.mortals] == [None] * len(self.mortals)
        registry = self.tested._registry
        assert registry.blocks == {}
        assert registry.mutes == frozenset()
        links = [link.target() for link in registry.all_connections() if link.target() is not self.player]
        assert links == list(self.stay.values())
        assert all(bucket.source() is not None for bucket in registry._senders.values())


async def send(world):
    await world.send(world.tested.send)


async def send_robust(world):
    await world.send(world.tested.send_robust)


async def send_in_a_group(world):
    await world.send(world.tested.using(task_group=anyio.create_task_group, limit=2).send)


async def connect(world):
    world.tested.connect(world.player, priority=1)


async def connect_once(world):
    world.tested.connect(world.player, once=True)


async def disconnect(world):
    world.tested.disconnect(world.player)


async def connected(world):
    with world.tested.connected(world.player, priority=2):
        await anyio.lowlevel.checkpoint()


async def muted(world):
    with world.tested.muted():
        await anyio.lowlevel.checkpoint()
        assert await world.tested.send(None, item=-1) == []


async def muted_everywhere(world):
    with world.tested.muted(world.player, everywhere=True):
        await anyio.lowlevel.checkpoint()
        pairs = await world.tested.send_robust(None, item=world.item())
        assert world.player not in [each for each, _ in pairs]


async def streamed(world):
    seen = []

    async def read(events):
        async for event in events:
            seen.append(event.item)  # noqa: PERF401  one by one, as they come

    async with anyio.create_task_group() as group:  # noqa: SIM117  one line would be too long to read
        async with world.tested.stream(buffer=1) as events:
            group.start_soon(read, events)
            await world.send(world.tested.send)
            while not seen:
                await anyio.lowlevel.checkpoint()
    assert len(seen) == len(set(seen))
    assert set(seen) <= {*world.sent, *world.begun}


async def two_readers(world):
    read = []
    items = world.item(), world.item()

    async def read_one(events):
        read.append((await anext(events)).item)

    listening = stream(world.tested, where=lambda event: event.item in items, buffer=1)
    async with listening as events, anyio.create_task_group() as group:
        group.start_soon(read_one, events)
        group.start_soon(read_one, events)
        for item in items:
            await world.tested.send(None, item=item)
    assert sorted(read) == sorted(items)


async def waited(world):
    async with anyio.create_task_group() as group:
        heard = []

        async def wait():
            heard.append((await world.tested.wait()).item)

        group.start_soon(wait)
        while not heard:
            await world.send(world.tested.send)
            await anyio.lowlevel.checkpoint()
    assert heard[0] in {*world.sent, *world.begun}


async def in_background(world):
    async with Background(limit=1, buffer=1) as background:
        for _ in range(3):
            await background.send(world.tested, None, item=world.item())
        assert await background.drain() == 0
        assert background.statistics().done == 3


async def watched(world):
    reports = []
    item = world.item()
    with monitor(reports.append):
        await world.tested.send(None, item=item)
    own = [report.receiver for report in reports if report.arguments["item"] == item]
    assert [each for each in own if each is None or each in world.stay.values()] == [*world.stay.values(), None]


async def robustly_in_a_group(world):
    await world.send(world.tested.using(task_group=anyio.create_task_group).send_robust)


async def cancelled(world):
    heard = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with world.tested.stream() as events:
            heard.append((await anext(events)).item)  # on a shuffled asyncio, it may come before the cancellation
    assert scope.cancelled_caught is not bool(heard)


async def send_and_be_cancelled(world):
    item = next(world.numbers)
    world.begun.append(item)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: world.tested.using(task_group=anyio.create_task_group).send(None, item=item))
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()


async def disconnect_by_uid(world):
    async def loner(item):
        await anyio.lowlevel.checkpoint()

    uid = object()
    world.tested.connect(loner, dispatch_uid=uid, priority=1)
    assert loner in await world.send(world.tested.send)
    assert world.tested.disconnect(dispatch_uid=uid)
    assert loner not in await world.send(world.tested.send)


async def once_for_two(world):
    called = []

    async def once(item):
        called.append(item)
        await anyio.lowlevel.checkpoint()

    world.tested.connect(once, once=True)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(world.send, world.tested.send)
    assert len(called) == 1


async def receiver_dies(world):
    being = Being(world)
    world.mortals.append(ref(being))
    world.tested.connect(being.hear, priority=1)
    await anyio.lowlevel.checkpoint()


async def sender_dies(world):
    sender = Being(world)
    world.mortals.append(ref(sender))

    async def loner(item):
        await anyio.lowlevel.checkpoint()

    world.tested.connect(loner, sender)
    assert loner in await world.send(world.tested.send, sender)
    await anyio.lowlevel.checkpoint()


async def subclasses(world):
    def loner(item): ...

    world.tested.connect(loner, Exception, subclasses=True)
    assert loner in await world.send(world.tested.send, ValueError)
    assert loner not in await world.send(world.tested.send)
    assert world.tested.disconnect(loner, Exception)
    assert loner not in await world.send(world.tested.send_robust, ValueError)


async def receiver_fails(world):
    sender = object()

    async def loner(item):
        await anyio.lowlevel.checkpoint()
        raise ValueError

    item = next(world.numbers)
    world.begun.append(item)
    with world.tested.connected(loner, sender, priority=-1, weak=False):
        with pytest.raises(ValueError, match="a receiver of signal 'tested'"):
            await world.tested.send(sender, item=item)
        answers = dict(await world.tested.send_robust(sender, item=world.item()))
    assert type(answers.pop(loner)) is ValueError  # which would lead to this frame, and that back to it


async def muted_out_of_order(world):
    first, second = ExitStack(), ExitStack()
    first.enter_context(world.tested.muted(world.player))
    await anyio.lowlevel.checkpoint()
    second.enter_context(world.tested.muted(everywhere=False))
    first.close()
    await anyio.lowlevel.checkpoint()
    assert await world.tested.send_robust(None, item=-1) == []
    second.close()


async def decorate(world):
    other = Signal(["item"])

    @receiver([world.tested, other], sender="decorated")
    async def loner(item):
        await anyio.lowlevel.checkpoint()

    assert loner in await world.send(world.tested.send, "decorated")
    assert [each for each, _ in await other.send("decorated", item=-1)] == [loner]
    assert world.tested.disconnect(loner, "decorated")


async def look(world):
    for _ in range(2):
        assert world.tested.has_listeners()
        heard = [each for each in world.tested.receivers_for(None) if each in world.stay.values()]
        assert heard == list(world.stay.values())
        assert len(world.tested.connections) >= len(heard)
        assert "tested" in repr(world.tested)
        await anyio.lowlevel.checkpoint()


async def leave_unread(world):
    async with world.tested.stream(buffer=1):
        for _ in range(3):
            await anyio.lowlevel.checkpoint()


async def drop(world):
    async with world.tested.stream(buffer=1, overflow="drop_oldest") as newest:
        async with world.tested.stream(buffer=1, overflow="drop_newest") as oldest:
            await world.send(world.tested.send)
            await world.send(world.tested.send)
            assert newest.dropped >= 1 <= oldest.dropped
            assert (await anext(oldest)).item in {*world.sent, *world.begun}
        assert (await anext(newest)).item in {*world.sent, *world.begun}


async def overflow(world):
    sender = object()
    async with world.tested.stream(sender, buffer=1, overflow="error"):
        await world.send(world.tested.send, sender)
        item = next(world.numbers)
        world.begun.append(item)
        with pytest.raises(BufferFull):
            await world.tested.send(sender, item=item)


async def to_the_background(world):
    for _ in range(2):
        item = world.item()
        try:
            await world.background.send(world.tested, None, item=item)
        except anyio.ClosedResourceError:
            world.sent.remove(item)


async def to_the_background_at_once(world):
    for _ in range(2):
        item = world.item()
        try:
            world.background.send_nowait(world.tested, None, item=item)
        except (anyio.WouldBlock, anyio.ClosedResourceError):
            world.sent.remove(item)
        await anyio.lowlevel.checkpoint()


async def drain(world):
    before = world.background.statistics().accepted
    left = await world.background.drain()
    counts = world.background.statistics()
    assert counts.done >= before
    assert left <= counts.limit + counts.buffer


async def close_the_background(world):
    world.is_over.set()


SHARING = {to_the_background, to_the_background_at_once, drain, close_the_background}
OPERATIONS = [
    send,
    send_robust,
    send_in_a_group,
    robustly_in_a_group,
    send_and_be_cancelled,
    connect,
    connect_once,
    once_for_two,
    disconnect,
    disconnect_by_uid,
    connected,
    decorate,
    receiver_dies,
    sender_dies,
    subclasses,
    receiver_fails,
    muted,
    muted_everywhere,
    muted_out_of_order,
    streamed,
    two_readers,
    leave_unread,
    drop,
    overflow,
    waited,
    cancelled,
    in_background,
    *SHARING,
    watched,
    look,
]
PAIRS = list(itertools.combinations_with_replacement(sorted(OPERATIONS, key=lambda each: each.__name__), 2))


def test_pairs_of_operations_do_not_disturb_each_other(run, full, long):
    """Whatever two operations do at once, in whatever order, those that stay hear each send once, and nobody waits."""
    for seed in range(10_000 if long else 300 if full else 2 * SHARE):
        for pair in PAIRS[seed % SHARE :: SHARE]:
            world, chance = World(), random.Random(seed)  # noqa: S311  no secret

            async def main(world=world, pair=pair, chance=chance):
                await world.live(pair, chance)

            try:
                run(chance, main)
                world.balance()
            except BaseException as error:
                error.add_note(f"{pair[0].__name__} and {pair[1].__name__}, seed {seed}")
                raise
