"""Everything at once from many threads, each with its own event loop, while threads change places all the time."""

import contextlib
import gc
import itertools
import sys
import threading

import anyio
import pytest

from asignals import Background, Signal

THREADS = 8


@pytest.fixture
def hurried_switches():
    """Threads change places as often as the interpreter can; on a free-threaded one they run at once anyway."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Books:
    """Who sent what and who heard it. Each thread writes to its own lines only, so no lock hides a race."""

    def __init__(self):
        self.sent = [[] for _ in range(THREADS)]
        self.heard = [[] for _ in range(THREADS)]


class Passer:
    """A receiver that comes, is heard of or not, and dies."""

    def hear(self, **named): ...

    async def hear_async(self, **named): ...


def connect_for_no_time(tested):
    """Connect what dies at once, mostly before anybody sends."""

    def unheard(**named): ...

    tested.connect(unheard)


async def trouble(number, tested, books, stays, rounds):
    """One thread's life: send to those that stay, and connect, mute, listen and die around them."""
    senders = ["everyone", number, Passer()]
    counter = itertools.count()

    async def send(sending):
        item = (number, next(counter))
        books.sent[number].append(item)
        pairs = await sending(senders[item[1] % 3], item=item)
        heard = [pair[0] for pair in pairs]
        # In the order of their connection, each of them once, whatever else was connected meanwhile.
        assert [receiver for receiver in heard if receiver in stays] == stays

    async with Background(limit=4, buffer=4) as background:
        for _ in range(rounds):
            passer = Passer()
            tested.connect(passer.hear, priority=number % 3)
            await send(tested.send)
            tested.connect(passer.hear_async, senders[1])
            tested.connect(passer.hear, once=True)
            await send(tested.send_robust)
            with tested.connected(passer.hear_async, dispatch_uid=number), tested.muted(passer.hear):
                await send(tested.using(task_group=anyio.create_task_group).send)
            with tested.muted():
                assert await tested.send(None, item=None) == []
            assert tested.disconnect(passer.hear_async, senders[1])
            item = (number, next(counter))
            books.sent[number].append(item)
            await background.send(tested, senders[0], item=item)
            await background.drain()
            async with tested.stream(where=lambda event: event.item[0] == number, buffer=2) as events:
                await send(tested.send)
                await send(tested.send)
                assert [(await anext(events)).item, (await anext(events)).item] == books.sent[number][-2:]
            assert tested.has_listeners()
            senders[2] = Passer()
            del passer
            connect_for_no_time(tested)
        await background.drain()
        assert background.statistics().errors == 0


def _make_stays(books):
    def first(item, **named):
        if item is not None:
            books.heard[item[0]].append(("first", item))

    async def second(item, **named):
        books.heard[item[0]].append(("second", item))

    class Third:
        async def hear(self, item, **named):
            await anyio.lowlevel.checkpoint()
            books.heard[item[0]].append(("third", item))

    return [first, second, Third().hear]


@pytest.mark.filterwarnings("ignore::asignals.ReceiverLostWarning")
@pytest.mark.usefixtures("hurried_switches")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_threads_lose_and_double_nothing(backend, long):
    """Receivers that stay hear each send of each thread once and in order, whatever the threads do meanwhile."""
    tested = Signal()
    books = Books()
    stays = _make_stays(books)
    for receiver in stays:
        tested.connect(receiver)
    errors = []
    start = threading.Barrier(THREADS, timeout=60)

    def live(number):
        async def limited():
            with anyio.fail_after(120):
                await trouble(number, tested, books, stays, rounds=1000 if long else 40)

        try:
            start.wait()
            anyio.run(limited, backend=backend)
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    threads = [threading.Thread(target=live, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
    if errors:
        raise ExceptionGroup("in threads", errors) if all(isinstance(e, Exception) for e in errors) else errors[0]
    assert not any(thread.is_alive() for thread in threads)
    for number in range(THREADS):
        for name in ("first", "second", "third"):
            heard = [item for who, item in books.heard[number] if who == name]
            assert sorted(heard) == books.sent[number]
    gc.collect()
    assert [connection.receiver for connection in tested.connections] == stays
    assert len(tested._registry._senders) == 1  # of all senders
    assert not tested._registry.blocks


def _counting(calls):
    def receiver(n):
        calls.append(n)

    return receiver


@pytest.mark.usefixtures("hurried_switches")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_once_is_once_however_many_threads_send(backend):
    """Of sends that race in many threads, exactly one calls a receiver connected with `once`."""
    tested = Signal(["n"])
    rounds = 60
    start = threading.Barrier(THREADS, timeout=60)
    calls = []
    winners = [[] for _ in range(THREADS)]
    receivers = [_counting(calls) for _ in range(rounds)]

    def live(number):
        async def main():
            for n in range(rounds):
                if number == 0:
                    tested.connect(receivers[n], once=True)
                start.wait()
                winners[number] += await tested.send(None, n=n)
                start.wait()

        with contextlib.suppress(threading.BrokenBarrierError):
            anyio.run(main, backend=backend)

    threads = [threading.Thread(target=live, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert calls == list(range(rounds))
    assert sum(map(len, winners)) == rounds
    assert tested.connections == ()


@pytest.mark.usefixtures("hurried_switches")
def test_stream_reads_every_event_of_every_thread_once():
    """A stream that makes its senders wait loses no event of eight threads, and keeps each thread's order."""
    tested = Signal(["item"])
    count = 40
    opened = threading.Event()
    read = []

    async def listen():
        with anyio.fail_after(120):
            async with tested.stream(buffer=3) as events:
                opened.set()
                while len(read) < THREADS * count:
                    read.append((await anext(events)).item)

    def send(number):
        async def main():
            with anyio.fail_after(120):
                for n in range(count):
                    await tested.send(None, item=(number, n))

        assert opened.wait(60)
        anyio.run(main, backend=("asyncio", "trio")[number % 2])

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(THREADS)]
    reader = threading.Thread(target=anyio.run, args=(listen,), daemon=True)
    for thread in (reader, *threads):
        thread.start()
    for thread in (*threads, reader):
        thread.join(150)
    assert sorted(read) == [(number, n) for number in range(THREADS) for n in range(count)]
    for number in range(THREADS):
        assert [n for who, n in read if who == number] == list(range(count))
