"""Every pair of public operations at once, with tasks that run in a shuffled order: one order for each seed."""

import asyncio
import itertools
import random

import anyio
import pytest
import trio

from asignals import Background, Signal, monitor, stream

SEEDS = 2  # for each of the pairs and each loop


class ShuffledLoop(asyncio.SelectorEventLoop):
    """Runs what is ready in a random order, where asyncio would run it in the order of becoming ready."""

    def __init__(self, seed):
        super().__init__()
        self._chance = random.Random(seed)  # noqa: S311  no secret

    def _run_once(self):
        ready = list(self._ready)
        self._chance.shuffle(ready)
        self._ready.clear()
        self._ready.extend(ready)
        super()._run_once()


def run(loop, seed, main):
    """Run `main` to its end in the order that belongs to the seed."""
    if loop == "trio":
        before = trio._core._run._r
        trio._core._run._r = random.Random(seed)  # noqa: S311  no secret
        try:
            trio.run(main)
        finally:
            trio._core._run._r = before
    else:
        with asyncio.Runner(loop_factory=lambda: ShuffledLoop(seed)) as runner:
            runner.run(main())


class World:
    """A signal with three receivers that stay, one that operations play with, and the books of who heard what."""

    def __init__(self):
        self.tested = Signal(["item"], name="tested")
        self.heard = []
        self.sent = []
        self.numbers = itertools.count()

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
        for receiver in self.stay.values():
            self.tested.connect(receiver)

    def item(self):
        item = next(self.numbers)
        self.sent.append(item)
        return item

    async def send(self, sending):
        item = self.item()
        pairs = await sending(None, item=item)
        heard = [receiver for receiver, _ in pairs if receiver is not self.player]
        assert heard == list(self.stay.values())

    def balance(self):
        for name in self.stay:
            assert sorted(item for who, item in self.heard if who == name) == sorted(self.sent)
        players = [item for who, item in self.heard if who == "player"]
        assert len(players) == len(set(players))
        assert self.tested._registry.overlaps == {}
        links = [link.target() for link in self.tested._registry.all_links() if link.target() is not self.player]
        assert links == list(self.stay.values())


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
        assert world.player not in [receiver for receiver, _ in pairs]


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
    assert set(seen) <= set(world.sent)


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
    assert heard[0] in world.sent


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
    assert [receiver for receiver in own if receiver is not world.player] == [*world.stay.values(), None]


async def cancelled(world):
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with world.tested.stream() as events:
            await anext(events)
    assert scope.cancelled_caught


OPERATIONS = [
    send,
    send_robust,
    send_in_a_group,
    connect,
    connect_once,
    disconnect,
    connected,
    muted,
    muted_everywhere,
    streamed,
    two_readers,
    waited,
    in_background,
    watched,
    cancelled,
]


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_pairs_of_operations_do_not_disturb_each_other(loop, long):
    """Whatever two operations do at once, in whatever order, those that stay hear each send once, and nobody waits."""
    seeds = 10_000 // 120 + 1 if long else SEEDS
    for seed in range(seeds):
        for pair in itertools.combinations_with_replacement(OPERATIONS, 2):
            world = World()

            async def main(world=world, pair=pair):
                with anyio.fail_after(30):
                    async with anyio.create_task_group() as group:
                        for operation in pair:
                            group.start_soon(operation, world)
                        group.start_soon(send, world)

            try:
                run(loop, seed, main)
                world.balance()
            except BaseException as error:
                error.add_note(f"{pair[0].__name__} and {pair[1].__name__}, seed {seed}")
                raise
