import contextvars
import gc
import threading
import weakref

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asignals import InvalidReceiverError, Signal
from asignals._core import registry as _scoped

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio", "trio")]


class Slotted:
    """A receiver that cannot be weakly referenced."""

    __slots__ = ()

    def __call__(self, **named):
        return "slotted"


def greet(**named):
    return "greet"


def other(**named):
    return "other"


@pytest.fixture
def made():
    return Signal(name="shop.sold")


def answers(results):
    return [response for _, response in results]


def state(made):
    return [
        (c, c.receiver, c.sender, c.weak, c.priority, c.in_thread, c.dispatch_uid, c.options) for c in made.connections
    ]


# -- connected --


async def test_connected_connects_for_a_block(made):
    """Inside the block the receiver is connected, after it it is not, and the block is given the receiver."""
    with made.connected(greet) as given:
        assert given is greet
        assert await made.send(None) == [(greet, "greet")]
    assert await made.send(None) == []
    assert made.connections == ()


async def test_connected_takes_what_connect_takes(made):
    """Sender, uid and all options count inside the block."""
    with made.connected(greet, "a", dispatch_uid="u", priority=2, in_thread=True):
        (connection,) = made.connections
        assert (connection.sender, connection.dispatch_uid, connection.priority) == ("a", "u", 2)
        assert connection.in_thread
    assert made.connections == ()


async def test_connected_ends_with_an_exception(made):
    """A block that raises leaves nothing connected."""
    with pytest.raises(KeyError), made.connected(greet):
        raise KeyError
    assert made.connections == ()


async def test_a_refused_receiver_is_not_connected(made):
    """What `connect` refuses, `connected` refuses, and what was there stays."""
    made.connect(greet, priority=4)
    before = state(made)
    with pytest.raises(InvalidReceiverError), made.connected(greet, timeout=3):
        pytest.fail("entered")
    assert state(made) == before
    with made.connected(greet):
        pass
    assert state(made) == before


async def test_connected_keeps_a_receiver_that_nobody_holds(made):
    """A lambda lives as long as the block."""
    with made.connected(lambda **named: "lambda"):
        gc.collect()
        assert answers(await made.send(None)) == ["lambda"]
    assert made.connections == ()


@pytest.mark.parametrize(
    "options", [{}, {"weak": False}, {"priority": 3}, {"once": True}, {"in_thread": True}], ids=str
)
async def test_what_was_connected_before_is_restored_exactly(made, options):
    """A receiver that was connected already has its options and its place again, as the same connection."""
    made.connect(other)
    made.connect(greet, **options)
    made.connect(last := Slotted(), weak=False)
    before = state(made)
    with made.connected(greet, priority=-1, weak=False):
        assert state(made) != before
    assert state(made) == before
    assert last is not None


async def test_restoring_undoes_what_happened_inside(made):
    """Even a receiver that was disconnected inside the block is back at its place."""
    made.connect(greet)
    made.connect(other)
    before = state(made)
    with made.connected(greet):
        assert made.disconnect(greet)
        assert answers(await made.send(None)) == ["other"]
    assert state(made) == before
    assert answers(await made.send(None)) == ["greet", "other"]


async def test_restoring_brings_back_the_only_receiver_of_a_sender(made):
    """The connection of a sender that had no other one is back, as the same object."""
    made.connect(greet, "a", priority=2)
    before = state(made)
    with made.connected(greet, "a"):
        made.disconnect(greet, "a")
    assert state(made) == before
    assert answers(await made.send("a")) == ["greet"]


async def test_once_that_is_used_up_inside_is_restored(made):
    """A connection with `once` from before the block is there again after it."""
    made.connect(greet, once=True)
    with made.connected(greet, once=True):
        assert len(await made.send(None)) == 1
        assert await made.send(None) == []
    assert len(await made.send(None)) == 1
    assert await made.send(None) == []


async def test_a_slotted_receiver_that_left_inside_is_restored(made):
    """A receiver that cannot be weakly referenced comes back, too."""
    slotted = Slotted()
    made.connect(slotted, weak=False)
    with made.connected(slotted, weak=False):
        made.disconnect(slotted)
    assert await made.send(None) == [(slotted, "slotted")]
    assert made.disconnect(slotted)


async def test_a_strong_receiver_from_before_survives(made):
    """A receiver that only its connection held is restored as a strong one."""
    made.connect(lambda **named: "lambda", weak=False)
    receiver = made.connections[0].receiver
    with made.connected(receiver):
        pass
    alive = weakref.ref(receiver)
    del receiver
    gc.collect()
    assert alive() is not None
    assert answers(await made.send(None)) == ["lambda"]


async def test_blocks_nest(made):
    """The inner block's options count inside it, the outer ones after it."""
    with made.connected(greet, priority=1):
        with made.connected(greet, priority=2):
            assert [c.priority for c in made.connections] == [2]
        assert [c.priority for c in made.connections] == [1]
    assert made.connections == ()


@pytest.mark.parametrize("was_connected", [False, True])
async def test_blocks_may_end_in_another_order(made, was_connected):
    """The first of two overlapping blocks may end first; when the last ends there is what was there before."""
    if was_connected:
        made.connect(greet, priority=7)
    before = state(made)
    first, second = made.connected(greet, priority=1), made.connected(greet, priority=2)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert [c.priority for c in made.connections] == [2]
    second.__exit__(None, None, None)
    assert state(made) == before


async def test_overlapping_tasks_leave_nothing_connected(made):
    """Blocks of concurrent tasks overlap freely."""

    async def use(priority, hold, then):
        with made.connected(greet, priority=priority):
            await hold.wait()
        then.set()

    first, second, third = (anyio.Event() for _ in range(3))
    async with anyio.create_task_group() as group:
        group.start_soon(use, 1, first, second)
        group.start_soon(use, 2, second, third)
        group.start_soon(use, 3, third, anyio.Event())
        await anyio.wait_all_tasks_blocked()
        first.set()
    assert made.connections == ()
    assert made._registry.blocks == {}


async def test_a_uid_that_is_taken_keeps_its_receiver(made):
    """Under a taken uid the block's receiver is not added, and the one that has it is as before."""
    made.connect(greet, dispatch_uid="u", priority=2)
    before = state(made)
    with made.connected(other, dispatch_uid="u"):
        assert answers(await made.send(None)) == ["greet"]
    assert state(made) == before


# -- muted --


@pytest.mark.parametrize("method", ["send", "send_robust"])
@pytest.mark.parametrize("names", [None, ()], ids=["any", "declared"])
async def test_a_muted_signal_reaches_nobody(method, names):
    """Inside the block sends return an empty list, after it they are heard again."""
    made = Signal(names)
    made.connect(greet)
    made.connect(other, sender="a")
    with made.muted():
        assert await getattr(made, method)("a") == []
        assert await getattr(made.using(), method)("a") == []
    assert answers(await getattr(made, method)("a")) == ["greet", "other"]


async def test_arguments_are_checked_while_muted():
    """A muted send that does not fit is a TypeError still."""
    made = Signal(["a"])
    with made.muted(), pytest.raises(TypeError, match="'a'"):
        await made.send(None)


async def test_single_receivers_can_be_muted(made):
    """Given receivers, these are left out, whatever they are connected for."""

    class Handler:
        def hear(self, **named):
            return "method"

    handler = Handler()
    made.connect(greet)
    made.connect(greet, sender="a", dispatch_uid=3)
    made.connect(handler.hear)
    made.connect(other)
    with made.muted(greet, handler.hear):
        assert answers(await made.send("a")) == ["other"]
    assert answers(await made.send("a")) == ["greet", "greet", "method", "other"]


async def test_a_receiver_that_is_disconnected_while_others_are_muted_is_not_called(made):
    """A send that leaves out muted receivers notices at once, too, that a later one has been disconnected."""

    def leads(**named):
        made.disconnect(greet)
        return "leads"

    made.connect(leads)
    made.connect(greet)
    made.connect(other)
    with made.muted(other):
        assert answers(await made.send(None)) == ["leads"]


async def test_muting_is_not_disconnecting(made):
    """Muted receivers are still connected and listening."""
    made.connect(greet)
    with made.muted(everywhere=True):
        assert made.has_listeners()
        assert made.receivers_for(None) == [greet]
        assert len(made.connections) == 1


async def test_receivers_connected_inside_are_muted_too(made):
    """The whole signal is muted, not who was there."""
    with made.muted():
        made.connect(greet)
        assert await made.send(None) == []
    assert len(await made.send(None)) == 1


async def test_only_receivers_can_be_muted(made):
    """What cannot be called is a TypeError at once, in place of a block that mutes nobody."""
    for thing in (3, "greet", None):
        with pytest.raises(TypeError, match="must be callable"):
            made.muted(greet, thing)


async def test_muting_nests(made):
    """Leaving an inner block does not end the outer one; single receivers add up."""
    made.connect(greet)
    made.connect(other)
    with made.muted():
        with made.muted(), made.muted(greet):
            assert await made.send(None) == []
        assert await made.send(None) == []
    with made.muted(greet):
        with made.muted(other):
            assert await made.send(None) == []
        assert answers(await made.send(None)) == ["other"]
    assert answers(await made.send(None)) == ["greet", "other"]


async def test_muted_blocks_may_end_in_another_order(made):
    """Of two overlapping blocks the first may end first."""
    made.connect(greet)
    first, second = made.muted(), made.muted(greet)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert await made.send(None) == []
    second.__exit__(None, None, None)
    assert len(await made.send(None)) == 1


async def test_other_tasks_are_not_muted(made):
    """A block is seen by its own context only: parallel tasks go on."""
    made.connect(greet)
    results = {}

    async def use(name, muting):
        if muting:
            with made.muted():
                await both.wait()
                results[name] = await made.send(None)
        else:
            await both.wait()
            results[name] = await made.send(None)

    both = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(use, "muted", "muting")
        group.start_soon(use, "heard", "")
        await anyio.wait_all_tasks_blocked()
        both.set()
    assert results == {"muted": [], "heard": [(greet, "greet")]}


async def test_tasks_and_threads_started_inside_are_muted(made):
    """What is started from the muted context inherits it, for as long as the block lasts."""
    made.connect(greet)
    results = []

    async def sends(event):
        await event.wait()
        results.append(await made.send(None))

    inside, after = anyio.Event(), anyio.Event()
    async with anyio.create_task_group() as group:
        with made.muted():
            group.start_soon(sends, inside)
            group.start_soon(sends, after)
            await anyio.wait_all_tasks_blocked()
            inside.set()
            await anyio.wait_all_tasks_blocked()
            assert results == [[]]
            assert await anyio.to_thread.run_sync(lambda: step(made.send(None))) == []
        after.set()
    assert results == [[], [(greet, "greet")]]


def step(coroutine):
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError


async def test_everywhere_mutes_all_contexts(made):
    """With `everywhere` other tasks and other threads reach nobody either."""
    made.connect(greet)
    results = []

    def in_thread():
        results.append(step(made.send(None)))

    async def sends():
        await event.wait()
        results.append(await made.send(None))

    event = anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(sends)
        await anyio.wait_all_tasks_blocked()
        with made.muted(everywhere=True):
            event.set()
            await anyio.wait_all_tasks_blocked()
            thread = threading.Thread(target=in_thread)
            thread.start()
            thread.join()
    assert results == [[], []]
    assert len(await made.send(None)) == 1


async def test_a_block_that_was_left_is_forgotten_by_its_context(made):
    """A task that mutes again and again keeps nothing of the blocks it has left, nor the block around them less."""
    made.connect(greet)
    with made.muted():
        before = _scoped._entered.get()
        for _ in range(3):
            with made.muted(greet):
                assert len(_scoped._entered.get()) == len(before) + 1
        assert _scoped._entered.get() == before
        assert await made.send(None) == []


async def test_a_block_may_be_left_in_another_context(made):
    """As fixtures do: entered in one context and left in another, it is over, in both."""
    made.connect(greet)
    block = made.muted()
    entered = contextvars.copy_context()
    entered.run(block.__enter__)
    assert entered.run(lambda: step(made.send(None))) == []
    assert len(await made.send(None)) == 1
    block.__exit__(None, None, None)
    assert len(entered.run(lambda: step(made.send(None)))) == 1


async def test_other_signals_are_not_muted(made):
    """Muting is about one signal."""
    second = Signal()
    second.connect(greet)
    with made.muted():
        assert len(await second.send(None)) == 1


async def test_a_send_under_way_goes_on(made):
    """Muting during a send does not shorten it."""
    blocks = []

    async def mutes(**named):
        blocks.append(made.muted(everywhere=True))
        blocks[0].__enter__()
        await checkpoint()

    made.connect(mutes)
    made.connect(greet)
    assert len(await made.send(None)) == 2
    blocks[0].__exit__(None, None, None)


async def test_what_was_replaced_in_a_block_comes_back(made):
    """A connection that the block's body ended and made anew is the one from before again, at its old place."""
    made.connect(greet, priority=3)
    (before,) = made.connections
    with made.connected(greet):
        made.disconnect(greet)
        made.connect(greet, priority=-1)
        assert made.connections != (before,)
    assert made.connections == (before,)
    assert before.priority == 3
    assert len(await made.send(None)) == 1


async def test_a_place_whose_holder_has_died_counts_as_free(made):
    """A block under the uid of a receiver that has died leaves nothing there."""

    def dies(**named): ...

    made.connect(dies, dispatch_uid="place")
    await made.send(None)
    del dies
    with made.connected(greet, dispatch_uid="place"):
        assert [receiver for receiver, _ in await made.send(None)] == [greet]
    assert made.connections == ()


@pytest.mark.parametrize("first", [0, 1], ids=["as entered", "reversed"])
async def test_blocks_of_different_receivers_overlap(made, first):
    """Each block's end disconnects its own receiver, whichever is left first."""
    receivers = [greet, other]
    blocks = [made.connected(each) for each in receivers]
    for block in blocks:
        block.__enter__()
    blocks[first].__exit__(None, None, None)
    assert made.receivers_for(None) == [receivers[1 - first]]
    blocks[1 - first].__exit__(None, None, None)
    assert made.receivers_for(None) == []
