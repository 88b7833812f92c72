import asyncio
import dis
import functools
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from asignals import Background, Signal, signals
from asignals._core import background as core_background
from asignals._core import loops
from asignals._core.registry import Registry

THREADS = 4
ROUNDS = 200


class Handler:
    def __init__(self):
        self.calls = 0

    def hear(self, **named):
        self.calls += 1


class Sender:
    pass


def step(coroutine):
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    raise AssertionError


@pytest.fixture(autouse=True)
def switch_often():
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*functions):
    """Run functions in threads that start together; raises what any of them raises."""
    barrier = threading.Barrier(len(functions))

    def run(function):
        barrier.wait(60)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, functions, timeout=60))


@pytest.mark.parametrize("names", [None, ()], ids=["any", "declared"])
def test_connecting_disconnecting_and_sending_at_once_loses_nothing(names):
    """Who is connected throughout hears every send, and in the end exactly who should be is connected."""
    made = Signal(names)
    steady = Handler()
    made.connect(steady.hear)
    lengths = []

    def comes_and_goes():
        mine = Handler()
        for number in range(ROUNDS):
            made.connect(mine.hear, sender="s" if number % 2 else None)
            assert made.disconnect(mine.hear, sender="s" if number % 2 else None)

    def sends():
        for _ in range(ROUNDS):
            results = step(made.send("s"))
            assert results[0] == (steady.hear, None)
            lengths.append(len(results))

    at_once(comes_and_goes, comes_and_goes, sends, sends)
    assert len(lengths) == 2 * ROUNDS
    assert max(lengths) <= 3
    assert [connection.receiver for connection in made.connections] == [steady.hear]
    assert len(made._registry._senders) == 1  # of all senders


@pytest.mark.parametrize("names", [None, ()], ids=["any", "declared"])
def test_a_receiver_that_another_thread_disconnects_is_not_called(names):
    """Once `disconnect` has returned in one thread, a send under way in another does not come to the receiver."""
    made = Signal(names)
    calls = []

    def leads(**named):
        assert at_once(lambda: made.disconnect(hears)) == [True]

    def hears(**named):
        calls.append(named)

    made.connect(leads, once=True)
    made.connect(hears)
    assert step(made.send(None)) == [(leads, None)]
    assert step(made.send(None)) == []
    assert calls == []


@pytest.mark.parametrize("is_once", [False, True])
@pytest.mark.parametrize("task_group", [None, asyncio.TaskGroup], ids=["sequential", "group"])
def test_no_lock_is_held_while_a_receiver_runs(is_once, task_group):
    """Other threads connect, disconnect, mute, look and send while a receiver waits for them to be done."""
    made, handler = Signal(), Handler()

    def uses():
        made.connect(handler.hear)
        with made.muted(waits):
            assert step(made.send(None)) == [(handler.hear, None)]
        assert handler.hear in [connection.receiver for connection in made.connections]
        return made.disconnect(handler.hear)

    def waits(**named):
        thread = threading.Thread(target=lambda: done.append(uses()))
        thread.start()
        thread.join(60)
        return list(done)

    done = []
    made.connect(waits, once=is_once)
    assert step(made.using(task_group=task_group).send(None)) == [(waits, [True])]  # a lone receiver needs no task


def test_the_same_receiver_connected_by_all_threads_is_one_connection():
    """Racing connects of one receiver make one connection."""
    for _ in range(30):
        made, handler = Signal(), Handler()
        at_once(*[lambda made=made, handler=handler: made.connect(handler.hear)] * THREADS)
        assert len(made.connections) == 1
        assert sorted(at_once(*[lambda made=made, handler=handler: made.disconnect(handler.hear)] * THREADS)) == [
            *[False] * (THREADS - 1),
            True,
        ]


def test_once_is_one_call_in_all_threads():
    """However many threads send, a receiver connected with `once` is called by one."""
    for names in (None, ()):
        for _ in range(30):
            made, handler = Signal(names), Handler()
            made.connect(handler.hear, once=True)
            results = at_once(*[lambda made=made: step(made.send(None))] * THREADS)
            assert handler.calls == 1
            assert sorted(map(len, results)) == [*[0] * (THREADS - 1), 1]


def test_receivers_and_senders_may_die_in_any_thread():
    """Garbage collection in one thread while others use the signal neither blocks nor confuses it."""
    made = Signal()
    steady = Handler()
    made.connect(steady.hear)

    def lives_and_dies():
        for _ in range(ROUNDS):
            sender, handler = Sender(), Handler()
            sender.cycle = sender
            handler.cycle = handler
            made.connect(handler.hear, sender=sender)
            made.connect(handler.hear)
            step(made.send(sender))

    def collects():
        for _ in range(20):
            gc.collect()

    at_once(lives_and_dies, lives_and_dies, collects)
    gc.collect()
    assert [connection.receiver for connection in made.connections] == [steady.hear]
    assert len(made._registry._senders) == 1  # of all senders


class WatchedLock:
    """The lock of the core, which tells of a thread that has to wait for it, and of one that has left it."""

    def __init__(self, on_wait=bool, on_leave=bool):
        self.on_wait, self.on_leave = on_wait, on_leave

    def __enter__(self):
        if not loops.lock.acquire(blocking=False):
            self.on_wait()
            loops.lock.acquire()

    def __exit__(self, *_):
        loops.lock.release()
        self.on_leave()


def pausing_before(code, operation, name, pause):
    """A trace function that calls another one before a variable or an attribute is loaded or stored, once."""
    found = (each for each in dis.get_instructions(code) if operation in each.opname)
    places = {
        each.offset for each in found if name in (each.argval if isinstance(each.argval, tuple) else [each.argval])
    }

    def trace(frame, event, argument):
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in places:
            places.clear()
            pause()
        return trace

    return trace


def traced(trace, function):
    before = sys.gettrace()  # that of a measurement of coverage
    sys._getframe().f_trace_opcodes = True  # which Python 3.12 looks for in `settrace` only
    sys.settrace(trace)
    try:
        return function()
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("moment", [("LOAD", "_latest"), ("STORE", "_latest_sent")], ids=" ".join)
def test_a_slow_send_takes_nothing_back_that_a_faster_one_has_noted(monkeypatch, recwarn, moment):
    """A receiver that was called is not warned of, though a slower send notes the latest connection that it saw."""
    made = Signal(["n"], name="made")
    sender, other = Sender(), Handler()
    made.connect(other.hear, sender=sender)  # so every send looks for its plan
    paused, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(Registry, "lock", WatchedLock(on_wait=go_on.set))

    def wait():
        paused.set()
        assert go_on.wait(60)

    trace = pausing_before(Registry.plan_for.__code__, *moment, wait)
    slow = threading.Thread(target=traced, args=(trace, lambda: step(made.send(sender, n=1))))
    slow.start()
    assert paused.wait(60)
    temporary = functools.partial(Handler().hear)
    made.connect(temporary)
    assert step(made.send(None, n=2)) == [(temporary, None)]
    del temporary
    go_on.set()
    slow.join(60)
    assert len(made.connections) == 1
    assert not recwarn.list


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="CPython 3.12.1 crashes when weak references are traced")
def test_signals_are_listed_while_some_die_in_other_threads():
    """One that is about to be forgotten, while another thread lists them, does not disturb the list."""
    made = [Signal(name=f"listed {n}") for n in range(3)]
    registered = signals.__globals__["_signals"]
    paused, go_on = threading.Event(), threading.Event()

    def wait():
        paused.set()
        assert go_on.wait(60)

    trace = pausing_before(registered._remove.__code__, "LOAD", "_atomic_removal", wait)
    thread = threading.Thread(target=traced, args=(trace, lambda: bool(Signal(name="dying"))))

    def let_it_die():
        go_on.set()
        thread.join(60)

    thread.start()
    assert paused.wait(60)
    found = traced(pausing_before(type(registered).values.__code__, "STORE", "wr", let_it_die), signals)
    let_it_die()
    assert [each for each in found if each in made] == made
    assert "dying" not in [each.name for each in found]


def test_draining_overlooks_no_send_that_is_just_being_taken(monkeypatch):
    """What a worker takes from the queue at this moment, in another thread, counts as not done."""
    made = Signal()
    may_end, taking, was_drained = threading.Event(), threading.Event(), threading.Event()
    main = threading.current_thread()

    class Taken(dict):
        def __setitem__(self, key, value):
            if may_end.is_set():
                taking.set()
                assert was_drained.wait(60)
            super().__setitem__(key, value)

    left_the_lock = []

    def on_leave():
        if threading.current_thread() is main:
            left_the_lock.append(1)
            if len(left_the_lock) == 2:  # after the waiting
                may_end.set()
                assert taking.wait(60)

    @made.connect
    async def wait(**named):
        await anyio.to_thread.run_sync(may_end.wait)

    started = threading.Event()

    async def work():
        async with Background(limit=1) as background:
            background._queue.taken = Taken()
            places.append(background)
            background.send_nowait(made, None)
            background.send_nowait(made, None)
            while background.statistics().running != 1:
                await anyio.lowlevel.checkpoint()
            started.set()

    places = []
    worker = threading.Thread(target=anyio.run, args=(work,))
    worker.start()
    assert started.wait(60)
    monkeypatch.setattr(core_background, "lock", WatchedLock(on_leave=on_leave))
    try:
        assert anyio.run(places[0].drain, 0) == 2
    finally:
        may_end.set()
        was_drained.set()
        worker.join(60)


def test_a_collection_inside_the_lock_does_not_deadlock():
    """A finalizer that uses the signal may run in the middle of a connect, in the thread that holds the lock."""
    made = Signal()
    kept = Handler()
    finalized = []

    class Final:
        def __init__(self):
            self.cycle = self

        def hear(self, **named): ...

        def __del__(self):
            made.connect(kept.hear)
            made.disconnect(kept.hear)
            finalized.append(made.has_listeners())

    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(50):
            final = Final()
            made.connect(final.hear)
            del final
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert len(finalized) == 50
    assert made.connections == ()


def use_at_call(made, use, operation, n):
    """Run an operation, and `use` at its nth call in the core, as a finalizer does; returns whether it has so many."""
    calls = itertools.count(1)

    def on_event(frame, event, _):
        if event == "call" and "_core" in frame.f_code.co_filename and next(calls) == n:
            sys.setprofile(None)
            use()

    before = sys.getprofile()
    sys.setprofile(on_event)
    try:
        operation(made)
    finally:
        sys.setprofile(before)
    return next(calls) > n


def hear(**named): ...


def hear_more(**named): ...


class Parent: ...


class Child(Parent): ...


@pytest.mark.parametrize(
    ("prepare", "operation"),
    [
        (lambda _: None, lambda made: made.connect(hear, Child)),
        (lambda made: made.connect(hear, Child), lambda made: made.disconnect(hear, Child)),
        (lambda made: made.connect(hear, Parent, subclasses=True), lambda made: made.has_listeners(Child)),
    ],
    ids=["connect", "disconnect", "has_listeners"],
)
def test_what_a_finalizer_connects_in_a_locked_section_is_not_lost(prepare, operation):
    """A finalizer that connects to the sender that an operation is at work on is heard, wherever it runs."""
    for n in itertools.count(1):
        made = Signal()
        prepare(made)
        if not use_at_call(made, lambda made=made: made.connect(hear_more, Child), operation, n):
            break
        assert hear_more in made.receivers_for(Child), f"lost at call {n}"
        assert hear_more in [connection.receiver for connection in made.connections], f"lost at call {n}"
    assert n > 3


def test_what_a_finalizer_connects_as_a_plan_is_dropped_is_not_lost():
    """The last reference to a receiver may be in the plan that a disconnect drops."""
    made = Signal()
    sender = Child()

    class Final:
        __slots__ = ()

        def __call__(self, **named): ...

        def __del__(self):
            made.connect(hear, sender)
            made.disconnect(hear, sender)
            made.connect(hear_more, sender)

    made.connect(Final(), weak=False, dispatch_uid="final")
    made.connect(hear, sender)
    step(made.send(sender))
    made.disconnect(dispatch_uid="final")
    made.disconnect(hear, sender)
    gc.collect()
    assert made.receivers_for(sender) == [hear_more]


def test_every_thread_may_have_a_loop_of_its_own():
    """One signal is sent from several event loops at once, and each send runs in its own."""
    made = Signal()

    async def hears(**named):
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    made.connect(hears)

    async def sends():
        return [response for _ in range(20) for _, response in await made.send(None)], asyncio.get_running_loop()

    for responses, loop in at_once(*[lambda: asyncio.run(sends())] * THREADS):
        assert responses == [loop] * 20


def test_muted_blocks_of_threads_do_not_disturb_each_other():
    """Each thread mutes its own context only."""
    made, handler = Signal(), Handler()
    made.connect(handler.hear)

    def mutes():
        for _ in range(ROUNDS):
            with made.muted():
                assert step(made.send(None)) == []
            assert len(step(made.send(None))) == 1

    def hears():
        for _ in range(ROUNDS):
            assert len(step(made.send(None))) == 1

    at_once(mutes, mutes, hears)
    assert made._registry.mutes == frozenset()


def test_connected_blocks_of_threads_leave_nothing():
    """Overlapping blocks for one receiver in several threads end with what was there before."""
    made, handler = Signal(), Handler()
    made.connect(handler.hear, priority=9)
    before = made.connections

    def uses(priority):
        for _ in range(ROUNDS):
            with made.connected(handler.hear, priority=priority):
                assert len(made.connections) == 1

    at_once(*[lambda p=p: uses(p) for p in range(THREADS)])
    assert made.connections == before
    assert made.connections[0].priority == 9
    assert made._registry.blocks == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_waits_for_no_thread_that_it_does_not_have():
    """A process that forks while another of its threads connects has a child that can connect and send."""
    inside, leave = threading.Event(), threading.Event()

    class Uid:
        def __hash__(self):
            return 1

        def __eq__(self, other):  # compared while the signal's lock is held
            inside.set()
            leave.wait(60)
            return False

    made = Signal()
    handler, other = Handler(), Handler()
    made.connect(handler.hear, dispatch_uid=Uid())
    thread = threading.Thread(target=made.disconnect, kwargs={"dispatch_uid": Uid()})
    thread.start()
    assert inside.wait(60)
    threading.Timer(0.1, leave.set).start()  # forking waits for that
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(10)  # which ends a child that waits
            made.connect(other.hear)
            step(made.send(None))
            os._exit(0 if made.disconnect(other.hear) and (handler.calls, other.calls) == (1, 1) else 1)
        finally:
            os._exit(2)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_locks_that_a_child_gets_are_free():
    """Whoever holds one of the parent's keeps nobody in the child from it, whatever the signal."""
    made, named = Signal(), Signal(["a"])
    held, release = threading.Event(), threading.Event()

    def hold():
        with made._registry.lock, named._registry.lock:
            held.set()
            release.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    threading.Timer(0.1, release.set).start()  # forking waits for that
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(10)
            handler = Handler()
            made.connect(handler.hear)
            named.connect(handler.hear)
            step(made.send(None))
            os._exit(0 if handler.calls == 1 and made in signals() else 2)
        finally:
            os._exit(1)
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_dies_with_a_thread_as_a_child_is_made_may_disconnect():
    """Finalizers run in the child before anybody can free its locks there."""
    made, handler = Signal(), Handler()
    made.connect(handler.hear)
    variable = ContextVar("variable")
    ready, held, end = threading.Semaphore(0), threading.Event(), threading.Event()

    class Dying:
        def __del__(self):
            made.disconnect(handler.hear)

    def have_something_that_dies_with_this_thread():
        variable.set(Dying())
        ready.release()
        end.wait(60)

    def hold_the_lock():
        with made._registry.lock:
            ready.release()
            held.wait(60)

    threads = [threading.Thread(target=each) for each in (have_something_that_dies_with_this_thread, hold_the_lock)]
    for thread in threads:
        thread.start()
        assert ready.acquire(timeout=60)
    threading.Timer(0.1, held.set).start()
    child = os.fork()
    if child == 0:
        os._exit(made.has_listeners())
    limit = threading.Timer(10, os.kill, (child, signal.SIGKILL))
    limit.start()
    assert os.waitpid(child, 0)[1] == 0
    limit.cancel()
    end.set()
    for thread in threads:
        thread.join(60)


def test_a_system_without_fork_needs_no_new_locks():
    """As Windows."""
    program = "import os; vars(os).pop('register_at_fork', None); import asignals; print(asignals.Signal(name='made'))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert (run.stdout, run.stderr) == ("<asignals.Signal 'made', 0 receivers>\n", "")
