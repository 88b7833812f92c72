"""Ctrl-C in the middle of a change: whatever it leaves undone, no lock stays locked, so no other thread ever waits."""

import contextlib
import contextvars
import functools
import signal
import sys
import threading
from pathlib import Path

import anyio
import pytest

import asignals
from asignals import Background, Signal
from asignals._core.loops import Queue, lock

pytestmark = [
    pytest.mark.filterwarnings("ignore::asignals.ReceiverLostWarning"),
    # In the callback of a weak reference, an interruption goes no further.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CORE = str(Path(asignals.__file__).parent)
PATIENCE = 60  # seconds, after which a thread that waits for a lock waits for ever


class Interrupt(BaseException):
    """As `KeyboardInterrupt`, which pytest would take for its own."""


def interrupted_at(n, work):
    """Do `work` and interrupt it where an interpreter looks for signals the nth time; returns whether it came so far.

    That is at the beginning of a function, and after a call of one that is not written in Python: the `__enter__` of a
    `with` statement on 3.14 only (gh-148874).
    """
    left = n

    def look(frame, event, argument):
        nonlocal left
        is_enter = event == "c_return" and argument.__name__ == "__enter__"
        if event not in {"call", "c_return"} or (is_enter and sys.version_info[:2] != (3, 14)):
            return
        if frame.f_code.co_filename.startswith((CORE, "asignals ")):
            left -= 1
            if left == 0:
                raise Interrupt

    context = contextvars.copy_context()  # what is left in it is left there
    sys.setprofile(look)
    try:
        context.run(work)
    except Interrupt:
        pass
    finally:
        sys.setprofile(None)
    return left <= 0


def interrupt_everywhere(prepare, operation, use):
    """Interrupt `operation` at each place in turn, on what `prepare` made, and `use` that in another thread."""
    n = 0
    is_interrupted = True
    while is_interrupted:
        n += 1
        world = prepare()
        is_interrupted = interrupted_at(n, functools.partial(operation, world))
        thread = threading.Thread(target=functools.partial(use, world), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"a lock stays locked when interrupted at {n}"
        assert n < 1000
    assert n > 5


def drive(work):
    """Run a coroutine that suspends nowhere."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError


class Base:
    def hear(self, **named): ...


class Derived(Base): ...


class World:
    def __init__(self):
        self.tested = Signal()

        def first(**named): ...

        def second(**named): ...

        self.first, self.second = first, second
        self.thing, self.sender = Base(), Base()
        self.tested.connect(first)
        self.tested.connect(self.thing.hear, Base, subclasses=True)
        drive(self.tested.send(None))

    def use(self):
        """Whatever takes a lock; what an interrupted change has left undone may fail, but nothing waits."""
        for step in (
            lambda: self.tested.connect(self.second, Base, subclasses=True),
            lambda: self.tested.disconnect(self.second, Base),
            lambda: drive(self.tested.send(Derived)),
            lambda: Signal(["name"]),
        ):
            with contextlib.suppress(Exception):
                step()


def connect_for_a_sender(world):
    world.tested.connect(world.thing.hear, world.sender, dispatch_uid="uid")


def connect_for_subclasses(world):
    world.tested.connect(world.second, Base, subclasses=True, priority=1)


def connect_again(world):
    world.tested.connect(world.first, priority=3, weak=False)


def disconnect(world):
    world.tested.disconnect(world.first)


def connected(world):
    with world.tested.connected(world.second, world.sender):
        pass


def muted(world):
    with world.tested.muted(everywhere=True):
        pass


def die_and_send(world):
    world.first = None
    drive(world.tested.send(None))


def send(world):
    drive(world.tested.send(Derived))
    drive(world.tested.send_robust(world.sender))


def look(world):
    world.tested.has_listeners(Derived)
    world.tested.receivers_for(Derived)
    repr(world.tested)


@pytest.mark.parametrize(
    "operation",
    [
        connect_for_a_sender,
        connect_for_subclasses,
        connect_again,
        disconnect,
        connected,
        muted,
        die_and_send,
        send,
        look,
    ],
    ids=lambda operation: operation.__name__,
)
def test_an_interrupted_signal_is_not_locked(operation):
    """Wherever an operation on a signal is interrupted, other threads can connect, disconnect and send."""
    interrupt_everywhere(World, operation, World.use)


def test_an_interrupted_background_is_not_locked():
    """Wherever `send_nowait` is interrupted, other threads can give sends to that background."""
    tested = Signal()

    @tested.connect
    def receiver(**named): ...

    async def main():
        with anyio.CancelScope() as scope:
            async with Background(limit=1, buffer=1000) as background:

                def send_nowait(world=None):
                    background.send_nowait(tested, None)
                    background.statistics()

                interrupt_everywhere(lambda: None, send_nowait, send_nowait)
                scope.cancel()

    anyio.run(main)


def test_an_interrupted_stream_is_not_locked():
    """Wherever a send to a stream is interrupted, other threads can send to it."""
    tested = Signal()

    async def main():
        async with tested.stream(buffer=1, overflow="drop_oldest"):

            def send(world=None):
                drive(tested.send(None))

            interrupt_everywhere(lambda: None, send, send)

    anyio.run(main)


def test_a_sender_that_waits_is_woken_though_the_reader_is_interrupted():
    """Wherever taking an event is interrupted, whoever waits for its place is awake once the queue is closed."""

    async def main():
        n = 0
        is_interrupted = True
        while is_interrupted:
            n += 1
            queue = Queue(1)
            queue.add("first")
            waker = queue.line_up("second")
            is_interrupted = interrupted_at(n, lambda queue=queue: drive(queue.next()))
            queue.close()
            with anyio.fail_after(PATIENCE):
                await waker.wait()
        assert n > 5

    anyio.run(main)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that send signals")
@pytest.mark.parametrize("operation", [connect_again, connected, send], ids=lambda operation: operation.__name__)
def test_a_signal_handler_that_raises_leaves_no_lock_locked(operation):
    """Handlers of real signals, which come at any moment of a change, leave the lock as it was."""
    has_raised = False

    def handler(*_):
        nonlocal has_raised
        if not has_raised:  # this run of the loop was interrupted already
            has_raised = True
            raise Interrupt

    world = World()

    def work(seconds):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while not has_raised:  # in the callback of a weak reference, an interruption goes no further
            operation(world)

    context = contextvars.copy_context()  # a block that is not left stays in it
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for number in range(150):
            has_raised = False
            with contextlib.suppress(Interrupt):
                context.run(work, 0.0001 + number * 1e-6)
            assert not lock._is_owned(), f"locked at {number}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_sender_that_ends_as_it_is_woken_gives_its_place_to_the_next():
    """The collector may close it at that moment: it leaves the line, and its item goes nowhere."""
    queue = Queue(1)

    class Waiting:
        def __init__(self, wake):
            self.wake = lambda: wake(self)

    woken = []
    queue.waiting[Waiting(queue.leave)] = "of one that ends"
    queue.waiting[Waiting(woken.append)] = "of the next"
    with lock:
        queue.admit()
    assert list(queue.items) == ["of the next"]
    assert len(woken) == 1
