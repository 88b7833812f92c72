"""Ctrl-C in the middle of a change: a signal that was interrupted anywhere is whole, and the next change of it too."""

import functools
import sys
import threading
from pathlib import Path

import pytest

import asignals
from asignals import Signal

pytestmark = [
    pytest.mark.filterwarnings("ignore::asignals.ReceiverLostWarning"),
    # In the callback of a weak reference, an interruption goes no further.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CORE = str(Path(asignals.__file__).parent)


class Interrupt(BaseException):
    """As `KeyboardInterrupt`, which pytest would take for its own."""


def interrupted_at(n, work):
    """Do `work` and interrupt it where an interpreter looks for signals the nth time; returns whether it came so far.

    That is at the beginning of a function, and after a call of one that is not written in Python.
    """
    left = n

    def look(frame, event, argument):
        nonlocal left
        if event in {"call", "c_return"} and frame.f_code.co_filename.startswith((CORE, "asignals ")):
            left -= 1
            if left == 0:
                raise Interrupt

    sys.setprofile(look)
    try:
        work()
    except Interrupt:
        pass
    finally:
        sys.setprofile(None)
    return left <= 0


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
        self.blocks = []
        self.tested.connect(first)
        drive(self.tested.send(None))

    def senders(self):
        return [None, self.sender, Base, Derived, "text"]

    def heard(self):
        return [[each for each, _ in drive(self.tested.send(sender))] for sender in self.senders()]

    def check(self):
        """Nothing is locked, muted or half there; and all of it can be taken back."""
        for block in self.blocks:
            block.__exit__(None, None, None)
        registry = self.tested._registry
        is_free = []

        def try_lock():
            is_free.append(registry.lock.acquire(timeout=5))
            registry.lock.release()

        thread = threading.Thread(target=try_lock)
        thread.start()
        thread.join()
        assert is_free == [True]
        assert registry.mutes == ()
        assert [self.tested.receivers_for(sender) for sender in self.senders()] == self.heard()
        listed = [connection.receiver for connection in self.tested.connections]
        assert {each for heard in self.heard() for each in heard} <= {*listed}
        for connection in self.tested.connections:
            if connection.sender is not None or not connection.has_lost_its_sender:
                assert self.tested.disconnect(connection.receiver, connection.sender, connection.dispatch_uid)
        assert all(connection.has_lost_its_sender for connection in self.tested.connections)
        assert self.heard() == [[]] * len(self.senders())
        assert registry.overlaps == {}
        self.tested.connect(self.second, Base, subclasses=True)
        assert self.heard() == [[], [], [self.second], [self.second], []]


def connect(world):
    world.tested.connect(world.second)


def connect_for_a_sender(world):
    world.tested.connect(world.thing.hear, world.sender, dispatch_uid="uid")


def connect_for_subclasses(world):
    world.tested.connect(world.second, Base, subclasses=True, priority=1)


def connect_for_text(world):
    world.tested.connect(world.second, "text", weak=False)


def connect_again(world):
    world.tested.connect(world.first, priority=3, weak=False)


def disconnect(world):
    world.tested.disconnect(world.first)


def disconnect_for_subclasses(world):
    world.tested.disconnect(world.second, Base)


def connected(world):
    block = world.tested.connected(world.second, world.sender)
    block.__enter__()
    world.blocks.append(block)


def connected_again(world):
    block = world.tested.connected(world.first, priority=2)
    block.__enter__()
    world.blocks.append(block)


def muted(world):
    block = world.tested.muted(everywhere=True)
    block.__enter__()
    world.blocks.append(block)


def die_and_send(world):
    world.first = None
    drive(world.tested.send(None))


def sender_dies_and_send(world):
    world.sender = Base()
    drive(world.tested.send(world.sender))


def send(world):
    drive(world.tested.send(Derived))
    drive(world.tested.send_robust(world.sender))


def look(world):
    world.tested.has_listeners(Derived)
    world.tested.receivers_for(Derived)
    repr(world.tested)


PREPARE = {
    disconnect_for_subclasses: connect_for_subclasses,
    sender_dies_and_send: connect_for_a_sender,
    send: connect_for_subclasses,
    look: connect_for_subclasses,
}
OPERATIONS = [
    connect,
    connect_for_a_sender,
    connect_for_subclasses,
    connect_for_text,
    connect_again,
    disconnect,
    disconnect_for_subclasses,
    connected,
    connected_again,
    muted,
    die_and_send,
    sender_dies_and_send,
    send,
    look,
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_an_interrupted_signal_is_whole(operation):
    """Wherever an operation is interrupted, the signal is not locked, listens as it says, and can be changed."""
    n = 0
    is_interrupted = True
    while is_interrupted:
        n += 1
        world = World()
        if operation in PREPARE:
            PREPARE[operation](world)
        is_interrupted = interrupted_at(n, functools.partial(operation, world))
        try:
            world.check()
        except AssertionError as error:
            error.add_note(f"interrupted at {n}")
            raise
    assert n > 5
