"""`asignals.asgi` with the test as application and server; the real servers are in `test_asgi_servers`."""

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import logging
import math
import subprocess
import sys
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
import pytest

from asignals import asgi
from asignals.asgi import ASGIApp, Message, Receive, Scope, Send, SignalMiddleware

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio", "trio")]

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"ciao"}
ACCEPT: Message = {"type": "websocket.accept"}
STARTED: Message = {"type": "lifespan.startup.complete"}
STOPPED: Message = {"type": "lifespan.shutdown.complete"}

SIGNALS = {
    name: getattr(asgi, name)
    for name in (
        "request_started",
        "request_finished",
        "got_request_exception",
        "websocket_connected",
        "websocket_disconnected",
        "lifespan_started",
        "lifespan_stopped",
    )
}


class Heard(list[tuple[str, dict[str, Any]]]):
    """What the signals of one application sent, in order."""

    def __init__(self, app: ASGIApp) -> None:
        for name, signal in SIGNALS.items():
            signal.connect(functools.partial(self.hear, name), sender=app, weak=False)

    def hear(self, name: str, **arguments: Any) -> None:
        self.append((name, arguments))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]

    def only(self, name: str) -> dict[str, Any]:
        (arguments,) = (arguments for heard, arguments in self if heard == name)
        return arguments


class Server:
    """A server that hands out the messages it is given, then waits for ever, and keeps what it is sent."""

    def __init__(self, *incoming: Message) -> None:
        self.incoming = list(incoming)
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        await anyio.lowlevel.checkpoint()
        if not self.incoming:
            await anyio.sleep_forever()
        return self.incoming.pop(0)

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        self.sent.append(message)


async def call(app: ASGIApp, kind: str = "http", *incoming: Message, **scope: Any) -> Server:
    server = Server(*incoming)
    await app({"type": kind, **scope}, server.receive, server.send)
    return server


def sending(*messages: Message, then: BaseException | None = None) -> ASGIApp:
    """An application that sends these messages and then raises."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        if then is not None:
            raise then

    return app


def waiting(*messages: Message) -> tuple[ASGIApp, anyio.Event]:
    """An application that sends these messages, sets the event and waits until it is cancelled."""
    reached = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)
        reached.set()
        await anyio.sleep_forever()

    return app, reached


async def cancel_scope_when(reached: anyio.Event, run: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run until `reached`, and cancel by an anyio scope."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await reached.wait()
        tasks.cancel_scope.cancel()


async def cancel_task_when(reached: anyio.Event, run: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run until `reached`, and cancel as asyncio does."""

    async def main() -> None:
        await run()

    task = asyncio.create_task(main())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture(params=[cancel_scope_when, cancel_task_when])
def cancel_when(request: pytest.FixtureRequest, anyio_backend_name: str) -> Any:
    if request.param is cancel_task_when and anyio_backend_name != "asyncio":
        pytest.skip("only asyncio cancels single tasks")
    return request.param


# The sender


class Framework:
    """An application that names itself in the scope and calls the middleware that was added to it, as Starlette."""

    def __init__(self, *messages: Message) -> None:
        self.handler: ASGIApp = sending(*messages)
        self.outer: ASGIApp = self.handler

    def add_middleware(self, middleware: Any) -> None:
        self.outer = middleware(self.outer)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = self
        await self.outer(scope, receive, send)


@pytest.mark.parametrize("kind", ["http", "websocket", "lifespan"])
@pytest.mark.parametrize("is_added", [True, False], ids=["added", "around"])
async def test_the_sender_is_the_application_in_both_ways_of_mounting(kind: str, *, is_added: bool) -> None:
    """`connect(f, sender=app)` hears the middleware that the framework runs inside, and the one around it."""
    messages = {"http": [START, BODY], "websocket": [ACCEPT], "lifespan": [STARTED, STOPPED]}[kind]
    app = Framework(*messages)
    heard = Heard(app)
    if is_added:
        app.add_middleware(SignalMiddleware)
        await call(app, kind)
    else:
        await call(SignalMiddleware(app), kind)
    assert len(heard.names) == 2


async def test_the_sender_stays_the_same_for_all_signals_of_a_scope() -> None:
    """An application below that names itself later does not become the sender of the last signals."""
    app = Framework(START, BODY)

    async def wrapper(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    heard = Heard(wrapper)
    await call(SignalMiddleware(wrapper))
    assert heard.names == ["request_started", "request_finished"]


@pytest.mark.parametrize("app", [None, "app:app", 3, {}])
def test_what_is_no_application_is_refused(app: Any) -> None:
    """The mistake is told where the middleware is made."""
    with pytest.raises(TypeError, match="takes an ASGI application, not"):
        SignalMiddleware(app)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_receiver_that_awaits_a_cancelled_future_keeps_no_other_from_hearing() -> None:
    """The others of `request_finished` run, and its error is logged."""
    app = sending(START, BODY)
    calls: list[str] = []

    @asgi.request_finished.connect(sender=app, priority=1)
    async def awaits(**_: Any) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    @asgi.request_finished.connect(sender=app)
    async def after(**_: Any) -> None:
        calls.append("after")

    await call(SignalMiddleware(app))
    assert calls == ["after"]


# HTTP


async def test_success_sends_started_and_finished_with_status_duration_and_no_exception() -> None:
    """A request that succeeds is heard twice, with the wrapped application as the sender."""
    app = sending({**START, "status": 201}, BODY)
    heard = Heard(app)
    server = await call(SignalMiddleware(app), path="/")
    assert server.sent == [{**START, "status": 201}, BODY]
    assert heard.names == ["request_started", "request_finished"]
    finished = heard.only("request_finished")
    assert finished["sender"] is app
    assert finished["signal"] is asgi.request_finished
    assert (finished["status"], finished["exception"]) == (201, None)
    assert 0 < finished["duration"] < 60
    assert finished["scope"] is heard.only("request_started")["scope"]


@pytest.mark.parametrize(("before", "status"), [((), None), ((START,), 200), ((START, BODY), 200)])
async def test_an_exception_of_the_application_is_raised_untouched(
    before: tuple[Message, ...], status: int | None
) -> None:
    """The very object arrives, without notes, context or a shortened traceback, and is heard before the end is."""
    error = RuntimeError("the oven is cold")
    app = sending(*before, then=error)
    heard = Heard(app)
    with pytest.raises(RuntimeError) as caught:
        await call(SignalMiddleware(app))
    assert caught.value is error
    assert (getattr(error, "__notes__", None), error.__context__, error.__cause__) == (None, None, None)
    assert traceback.extract_tb(error.__traceback__)[-1].line == "raise then"
    assert heard.names == ["request_started", "got_request_exception", "request_finished"]
    assert heard.only("got_request_exception")["exception"] is error
    assert heard.only("request_finished")["exception"] is error
    assert heard.only("request_finished")["status"] == status


class Clock:
    """Stands for the module `time`: its clock goes on only when somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def spend(self, seconds: float) -> Callable[..., None]:
        """Make a receiver that takes so long."""

        def receiver(**_: Any) -> None:
            self.now += seconds

        return receiver


async def test_the_duration_of_a_request_is_from_request_started_until_the_application_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In seconds; receivers of `request_started` count, those of `got_request_exception` do not."""
    clock = Clock()
    monkeypatch.setattr(asgi, "time", clock)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.now += 2
        raise RuntimeError

    heard = Heard(app)
    asgi.request_started.connect(clock.spend(1), sender=app, weak=False)
    asgi.got_request_exception.connect(clock.spend(4), sender=app, weak=False)
    with pytest.raises(RuntimeError):
        await call(SignalMiddleware(app))
    assert heard.only("request_finished")["duration"] == 3


@pytest.mark.parametrize("error", [SystemExit("closed"), KeyboardInterrupt("closed")])
async def test_what_ends_the_process_is_no_exception_of_a_request(error: BaseException) -> None:
    """It is told of as what left the application, and raised untouched."""
    app = sending(START, then=error)
    heard = Heard(app)
    with pytest.raises(type(error)) as caught:
        await call(SignalMiddleware(app))
    assert caught.value is error
    assert heard.names == ["request_started", "request_finished"]
    assert heard.only("request_finished")["exception"] is error


async def test_a_start_that_the_server_refuses_is_no_status() -> None:
    """A response counts as started once the server has taken it, not when the application tries."""
    app = sending(START)
    heard = Heard(app)

    async def send(message: Message) -> NoReturn:
        raise OSError(message["type"])

    with pytest.raises(OSError, match=r"http\.response\.start"):
        await SignalMiddleware(app)({"type": "http"}, Server().receive, send)
    assert heard.only("request_finished")["status"] is None


async def test_an_application_that_answers_nothing_has_no_status() -> None:
    """The 500 that a server then sends by itself is not the application's."""
    app = sending()
    heard = Heard(app)
    await call(SignalMiddleware(app))
    assert heard.only("request_finished")["status"] is None


async def test_cancellation_is_followed_by_one_request_finished(cancel_when: Any) -> None:
    """Whoever cancels, receivers that wait are run to their end, and no exception of a request is reported."""
    app, reached = waiting(START)
    heard = Heard(app)
    slow: list[int] = []

    @asgi.request_finished.connect(sender=app)
    async def receive_slowly(status: int, **_: Any) -> None:
        for _step in range(5):
            await anyio.lowlevel.checkpoint()
        slow.append(status)

    with anyio.fail_after(60):
        await cancel_when(reached, functools.partial(call, SignalMiddleware(app)))
    assert heard.names == ["request_started", "request_finished"]
    assert isinstance(heard.only("request_finished")["exception"], anyio.get_cancelled_exc_class())
    assert slow == [200]


async def test_cancellation_during_request_started_is_followed_by_request_finished(cancel_when: Any) -> None:
    """What was announced is ended, though the application was never called."""
    called: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        called.append(scope)

    heard = Heard(app)
    reached = anyio.Event()

    @asgi.request_started.connect(sender=app)
    async def wait(**_: Any) -> None:
        reached.set()
        await anyio.sleep_forever()

    with anyio.fail_after(60):
        await cancel_when(reached, functools.partial(call, SignalMiddleware(app)))
    assert (heard.names, called) == (["request_started", "request_finished"], [])


async def test_cancellation_during_request_finished_disturbs_no_receiver(cancel_when: Any) -> None:
    """The one that waits goes on and the one after it is called; then the cancellation goes on too."""
    app = sending(START, BODY)
    reached, ended = anyio.Event(), []

    @asgi.request_finished.connect(sender=app)
    async def wait(**_: Any) -> None:
        reached.set()
        for _step in range(5):
            await anyio.lowlevel.checkpoint()
        ended.append("first")

    @asgi.request_finished.connect(sender=app)
    async def follow(**_: Any) -> None:
        await anyio.lowlevel.checkpoint()
        ended.append("second")

    with anyio.fail_after(60):
        await cancel_when(reached, functools.partial(call, SignalMiddleware(app)))
    assert ended == ["first", "second"]


async def test_grace_bounds_what_receivers_do_after_a_cancellation(
    cancel_when: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """When it is over the receivers are cancelled, and the log says so."""
    app, reached = waiting()
    left: list[str] = []

    @asgi.request_finished.connect(sender=app)
    async def hang(**_: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            left.append("hang")

    with anyio.fail_after(60), caplog.at_level(logging.WARNING, logger="asignals"):
        await cancel_when(reached, functools.partial(call, SignalMiddleware(app, grace=0.01)))
    assert left == ["hang"]
    (record,) = caplog.records
    assert "request_finished" in record.getMessage()
    assert "0.01 s" in record.getMessage()


async def test_grace_bounds_what_receivers_do_when_the_cancellation_finds_them_at_it(cancel_when: Any) -> None:
    """The time counts from the cancellation, also when the application had succeeded before it."""
    app = sending(START, BODY)
    reached = anyio.Event()

    @asgi.request_finished.connect(sender=app)
    async def hang(**_: Any) -> None:
        reached.set()
        await anyio.sleep_forever()

    with anyio.fail_after(60):
        await cancel_when(reached, functools.partial(call, SignalMiddleware(app, grace=0.01)))


async def test_a_receiver_that_ignores_its_cancellation_is_cancelled_again(cancel_when: Any) -> None:
    """The request's task is not held up by one that swallows what should end it."""
    app, reached = waiting()
    ignored: list[BaseException] = []

    @asgi.request_finished.connect(sender=app)
    async def stubborn(**_: Any) -> None:
        while len(ignored) < 3:
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class() as error:
                ignored.append(error)

    with anyio.fail_after(60):
        await cancel_when(reached, functools.partial(call, SignalMiddleware(app, grace=0.01)))
    assert len(ignored) == 3


@pytest.mark.parametrize(("grace", "expected"), [(math.inf, ["application", "receiver"]), (60, [])])
async def test_an_infinite_grace_sets_no_limit(
    cancel_when: Any, monkeypatch: pytest.MonkeyPatch, grace: float, expected: list[str]
) -> None:
    """The clock is late, so that any other grace is over when it begins, whatever is cancelled."""
    monkeypatch.setattr(asgi, "current_time", lambda: anyio.current_time() - 3600)
    ended: list[str] = []
    for messages, name in (((), "application"), ((START, BODY), "receiver")):
        app, reached = waiting() if name == "application" else (sending(*messages), anyio.Event())

        @asgi.request_finished.connect(sender=app, weak=False)
        async def work(name: str = name, reached: anyio.Event = reached, **_: Any) -> None:
            reached.set()
            for _step in range(5):
                await anyio.lowlevel.checkpoint()
            await anyio.sleep(0.001)
            ended.append(name)

        with anyio.fail_after(60):
            await cancel_when(reached, functools.partial(call, SignalMiddleware(app, grace=grace)))
    assert ended == expected


async def test_without_a_cancellation_a_receiver_may_outlast_the_grace() -> None:
    """The grace is for requests that are cancelled; others wait for their receivers."""
    app = sending(START, BODY)
    ended: list[bool] = []

    @asgi.request_finished.connect(sender=app)
    async def work(**_: Any) -> None:
        for _step in range(10):
            await anyio.lowlevel.checkpoint()
        ended.append(True)

    await call(SignalMiddleware(app, grace=0))
    assert ended == [True]


async def test_when_the_grace_is_over_early_request_finished_is_still_sent() -> None:
    """A receiver of the exception that takes all the time there is cannot swallow the end of the request."""
    app = sending(then=RuntimeError("burnt"))
    heard = Heard(app)
    reached = anyio.Event()

    @asgi.got_request_exception.connect(sender=app)
    async def hang(**_: Any) -> None:
        reached.set()
        await anyio.sleep_forever()

    with anyio.fail_after(60):
        await cancel_scope_when(reached, functools.partial(call, SignalMiddleware(app, grace=0)))
    assert heard.names == ["request_started", "got_request_exception", "request_finished"]


@pytest.mark.parametrize("fails", [False, True])
async def test_cancelled_at_any_checkpoint_started_and_finished_stay_equal(cancel_when: Any, *, fails: bool) -> None:
    """At each checkpoint of receivers, application and server in turn, it leaves a whole pair or nothing."""
    pairs = 0
    for steps in range(60):
        app = sending(START, BODY, then=RuntimeError("burnt") if fails else None)
        heard = Heard(app)

        async def pause(**_: Any) -> None:
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()

        for signal in SIGNALS.values():
            signal.connect(pause, sender=app, weak=False)
            signal.connect(functools.partial(heard.hear, "after a pause"), sender=app, weak=False)

        async def run(app: ASGIApp = app) -> None:
            with contextlib.suppress(RuntimeError):
                await call(SignalMiddleware(app))
            await anyio.sleep_forever()

        countdown = anyio.Event()

        async def count(steps: int = steps, countdown: anyio.Event = countdown) -> None:
            for _step in range(steps):
                await anyio.lowlevel.checkpoint()
            countdown.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count)
            await cancel_when(countdown, run)
        started, finished = heard.names.count("request_started"), heard.names.count("request_finished")
        assert started == finished <= 1
        if finished:
            assert heard.names[-2:] == ["request_finished", "after a pause"]
        pairs += finished
    assert pairs > 50


@pytest.mark.parametrize("kind", ["http", "websocket", "lifespan"])
async def test_failing_receivers_reach_neither_client_nor_application(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each failure is logged; the application and the server see what they would have seen without it."""
    messages = {"http": [START, BODY], "websocket": [ACCEPT], "lifespan": [STARTED, STOPPED]}[kind]
    app = sending(*messages)

    def fail(**_: Any) -> NoReturn:
        raise RuntimeError

    for signal in SIGNALS.values():
        signal.connect(fail, sender=app, weak=False)
    server = await call(SignalMiddleware(app), kind)
    assert server.sent == messages
    assert len([record for record in caplog.records if record.name == "asignals"]) == 2


class Stop(BaseException):
    """Stands for `KeyboardInterrupt`, which the test runner would take for itself."""


async def test_a_base_exception_of_a_receiver_passes_as_it_is() -> None:
    """`KeyboardInterrupt` and the like are no failure of a receiver, and come out in no group."""
    app = sending(START, BODY)

    @asgi.request_finished.connect(sender=app)
    async def stop(**_: Any) -> NoReturn:
        await anyio.lowlevel.checkpoint()
        raise Stop

    with pytest.raises(Stop):
        await call(SignalMiddleware(app))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # on trio nobody can raise it by themselves
@pytest.mark.parametrize("kind", ["http", "websocket", "lifespan"])
@pytest.mark.parametrize("suspends", [False, True])
async def test_a_receiver_that_raises_the_cancellation_by_itself_cancels_nothing(
    kind: str, caplog: pytest.LogCaptureFixture, *, suspends: bool
) -> None:
    """As when it awaits a task that somebody else has cancelled: it is logged as other failures of receivers are."""
    messages = {"http": [START, BODY], "websocket": [ACCEPT], "lifespan": [STARTED, STOPPED]}[kind]
    app = sending(*messages)
    never = asyncio.get_running_loop().create_future()
    never.cancel()

    async def fail(**_: Any) -> NoReturn:
        if suspends:
            await anyio.lowlevel.checkpoint()
        await never
        raise AssertionError

    for signal in SIGNALS.values():
        signal.connect(fail, sender=app, weak=False)
    assert (await call(SignalMiddleware(app), kind)).sent == messages
    assert len([record for record in caplog.records if record.name == "asignals" and record.exc_info]) == 2


def test_a_coroutine_that_is_closed_ends_without_complaint() -> None:
    """Closing allows no awaiting, as when a loop is thrown away: no receiver is called and nothing is raised."""

    class Suspend:
        def __await__(self) -> Any:
            yield

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Suspend()

    heard = Heard(app)
    server = Server()
    coroutine = SignalMiddleware(app)({"type": "http"}, server.receive, server.send)
    coroutine.send(None)
    coroutine.close()
    assert heard.names == ["request_started"]


async def test_a_context_variable_of_request_started_is_seen_by_all_that_follows() -> None:
    """`request_started` runs in the context of the request."""
    number: contextvars.ContextVar[int] = contextvars.ContextVar("number")
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(number.get())
        raise RuntimeError

    @asgi.request_started.connect(sender=app)
    async def begin(**_: Any) -> None:
        number.set(7)

    def end(**_: Any) -> None:
        seen.append(number.get())

    asgi.got_request_exception.connect(end, sender=app)
    asgi.request_finished.connect(end, sender=app)
    with pytest.raises(RuntimeError):
        await call(SignalMiddleware(app))
    assert seen == [7, 7, 7]


async def test_the_first_receivers_run_in_the_requests_own_task_and_the_last_in_another() -> None:
    """What the last ones set stays in their copy of the request's context."""
    number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)
    tasks: list[object] = []
    app = sending(START, BODY)

    def note(signal: object, **_: Any) -> None:
        tasks.append(anyio.get_current_task().id)
        number.set(number.get() + 1)

    asgi.request_started.connect(note, sender=app)
    asgi.request_finished.connect(note, sender=app)
    await call(SignalMiddleware(app))
    assert [task == anyio.get_current_task().id for task in tasks] == [True, False]
    assert number.get() == 1


async def test_a_receiver_that_connects_during_a_request_hears_its_end() -> None:
    """Whether anybody listens is asked when there is something to hear, not before."""
    heard: list[int] = []

    def hear(status: int, **_: Any) -> None:
        heard.append(status)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        asgi.request_finished.connect(hear, sender=app)

    await call(SignalMiddleware(app))
    assert heard == [200]


async def test_without_receivers_no_task_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task group is for receivers that have to be protected."""
    monkeypatch.setattr(asgi, "create_task_group", None)
    app = sending(START, BODY)
    assert (await call(SignalMiddleware(app))).sent == [START, BODY]


async def test_concurrent_requests_do_not_mix() -> None:
    """Each request has its own status, exception and end, also when others fail or are cancelled beside it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**START, "status": 200 + scope["number"]})
        if scope["number"] % 3 == 1:
            raise LookupError(scope["number"])
        if scope["number"] % 3 == 2:
            await anyio.sleep_forever()

    heard = Heard(app)
    middleware = SignalMiddleware(app)

    async def request(number: int) -> None:
        failing = pytest.raises(LookupError, match=f"^{number}$") if number % 3 == 1 else contextlib.nullcontext()
        with failing:
            await call(middleware, number=number)

    async with anyio.create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(request, number)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    ends = {
        arguments["scope"]["number"]: (arguments["status"], type(arguments["exception"]))
        for name, arguments in heard
        if name == "request_finished"
    }
    kinds = [type(None), LookupError, anyio.get_cancelled_exc_class()]
    assert ends == {number: (200 + number, kinds[number % 3]) for number in range(60)}
    assert heard.names.count("request_started") == heard.names.count("request_finished") == 60


def test_one_instance_serves_several_threads_and_event_loops() -> None:
    """Loops of both kinds at once; each request has one end, with its own status, and receivers that wait."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**START, "status": scope["number"]})

    heard = Heard(app)
    middleware = SignalMiddleware(app)

    @asgi.request_finished.connect(sender=app)
    async def wait(**_: Any) -> None:
        await anyio.lowlevel.checkpoint()

    async def serve(start: int) -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(start, start + 25):
                tasks.start_soon(functools.partial(call, middleware, number=number))

    with ThreadPoolExecutor(4) as pool:
        backends = ["asyncio", "trio"] * 2
        for done in [pool.submit(anyio.run, serve, 100 * n, backend=backend) for n, backend in enumerate(backends)]:
            done.result()
    ends = [arguments for name, arguments in heard if name == "request_finished"]
    assert sorted(each["status"] for each in ends) == [100 * n + number for n in range(4) for number in range(25)]
    assert all(each["status"] == each["scope"]["number"] for each in ends)


async def test_nested_middlewares_send_for_their_own_application() -> None:
    """The outer one's application is the inner one."""
    app = sending(START, BODY)
    inner = SignalMiddleware(app)
    heard_inner, heard_outer = Heard(app), Heard(inner)
    await call(SignalMiddleware(inner))
    assert heard_inner.names == heard_outer.names == ["request_started", "request_finished"]


class Slotted:
    """An application without `__weakref__`."""

    __slots__ = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)


@dataclasses.dataclass
class Unhashable:
    """An application without a hash, equal to others of its kind."""

    name: str = "shop"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)

    async def method(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(Slotted(), id="slotted"),
        pytest.param(Unhashable(), id="unhashable"),
        pytest.param(Unhashable().method, id="method of an unhashable"),
        pytest.param(functools.partial(Slotted.__call__, Slotted()), id="partial"),
    ],
)
async def test_any_callable_can_be_the_sender(app: ASGIApp) -> None:
    """Also what can be neither weakly referenced nor hashed."""
    middleware = SignalMiddleware(app)
    heard = Heard(middleware.app)
    await call(middleware)
    assert heard.names == ["request_started", "request_finished"]
    assert heard.only("request_finished")["sender"] is app


async def test_equal_applications_are_different_senders() -> None:
    """A receiver for one hears nothing of another that is equal to it."""
    one, other = Unhashable(), Unhashable()
    heard = Heard(one)
    await call(SignalMiddleware(other))
    assert heard.names == []


@pytest.mark.parametrize("kind", ["http", "websocket", "lifespan", "telepathy"])
async def test_scope_and_messages_are_the_same_objects(kind: str) -> None:
    """Nothing is copied or added, and an unknown type of scope gets the server's own callables."""
    message: Message = {"type": "anything", "unknown": object()}
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([scope, await receive(), receive, send])
        await send(message)

    heard = Heard(app)
    scope: Scope = {"type": kind}
    server = Server(message)
    receive, send = server.receive, server.send
    await SignalMiddleware(app)(scope, receive, send)
    assert seen[0] is scope
    assert scope == {"type": kind}
    assert seen[1] is server.sent[0] is message
    if kind == "telepathy":
        assert seen[2:] == [receive, send]
        assert heard == []


# Websockets


def disconnect(**code: int) -> Message:
    return {"type": "websocket.disconnect", **code}


def websocket(*messages: Message) -> ASGIApp:
    """An application that accepts, sends these messages, and listens until the client has left."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        for message in (ACCEPT, *messages):
            await send(message)
        while (await receive())["type"] != "websocket.disconnect":
            pass

    return app


CONNECT: Message = {"type": "websocket.connect"}
CLOSE: Message = {"type": "websocket.close"}


@pytest.mark.parametrize(
    ("sent", "received", "code"),
    [
        pytest.param([], disconnect(code=1001), 1001, id="client"),
        pytest.param([], disconnect(code=1006), 1006, id="cut"),
        pytest.param([], disconnect(), 1005, id="client without a code"),
        pytest.param([{**CLOSE, "code": 4001}], disconnect(code=1006), 4001, id="application first"),
        pytest.param([CLOSE], disconnect(code=1006), 1000, id="application without a code"),
    ],
)
async def test_a_websocket_is_heard_with_the_code_of_whoever_closed_first(
    sent: list[Message], received: Message, code: int
) -> None:
    """Codes that are left out have the defaults of the ASGI specification."""
    app = websocket(*sent)
    heard = Heard(app)
    await call(SignalMiddleware(app), "websocket", CONNECT, {"type": "websocket.receive", "text": "hi"}, received)
    assert heard.names == ["websocket_connected", "websocket_disconnected"]
    disconnected = heard.only("websocket_disconnected")
    assert (disconnected["code"], disconnected["exception"]) == (code, None)
    assert 0 < disconnected["duration"] < 60


@pytest.mark.parametrize(
    "messages",
    [[CLOSE], [{"type": "websocket.http.response.start", "status": 403}, {"type": "websocket.http.response.body"}], []],
)
async def test_a_rejected_websocket_was_never_connected(messages: list[Message]) -> None:
    """It sends neither signal, whichever way the application rejects it."""
    app = sending(*messages)
    heard = Heard(app)
    await call(SignalMiddleware(app), "websocket", CONNECT)
    assert heard.names == []


async def test_an_acceptance_that_the_server_refuses_connects_nothing() -> None:
    """The client may have left before."""
    app = sending(ACCEPT)
    heard = Heard(app)

    async def send(message: Message) -> NoReturn:
        raise OSError(message["type"])

    with pytest.raises(OSError, match=r"websocket\.accept"):
        await SignalMiddleware(app)({"type": "websocket"}, Server().receive, send)
    assert heard.names == ["got_request_exception"]


@pytest.mark.parametrize(("before", "pair"), [([], []), ([ACCEPT], ["websocket_connected", "websocket_disconnected"])])
async def test_an_exception_in_a_websocket_is_heard_and_raised_untouched(
    before: list[Message], pair: list[str]
) -> None:
    """There is no code, as neither side has closed; the server does it now."""
    error = RuntimeError("burnt")
    app = sending(*before, then=error)
    heard = Heard(app)
    with pytest.raises(RuntimeError) as caught:
        await call(SignalMiddleware(app), "websocket")
    assert caught.value is error
    assert heard.names == [*pair[:1], "got_request_exception", *pair[1:]]
    if pair:
        assert heard.only("websocket_disconnected")["exception"] is error
        assert heard.only("websocket_disconnected")["code"] is None


async def test_the_duration_of_a_websocket_is_from_its_acceptance_until_the_application_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In seconds; receivers of `websocket_connected` count, those of `got_request_exception` do not."""
    clock = Clock()
    monkeypatch.setattr(asgi, "time", clock)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        clock.now += 1
        await send(ACCEPT)
        clock.now += 4
        raise RuntimeError

    heard = Heard(app)
    asgi.websocket_connected.connect(clock.spend(2), sender=app, weak=False)
    asgi.got_request_exception.connect(clock.spend(8), sender=app, weak=False)
    with pytest.raises(RuntimeError):
        await call(SignalMiddleware(app), "websocket")
    assert heard.only("websocket_disconnected")["duration"] == 6


async def test_the_application_goes_on_when_websocket_connected_has_been_sent() -> None:
    """The server has taken the acceptance by then."""
    server, order = Server(), []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(ACCEPT)
        order.append("application")

    @asgi.websocket_connected.connect(sender=app)
    async def hear(**_: Any) -> None:
        await anyio.lowlevel.checkpoint()
        order.append("receiver" if server.sent == [ACCEPT] else "receiver, too early")

    await SignalMiddleware(app)({"type": "websocket"}, server.receive, server.send)
    assert order == ["receiver", "application"]


async def test_a_cancelled_websocket_is_disconnected_once(cancel_when: Any) -> None:
    """As when a server shuts down."""
    app, reached = waiting(ACCEPT)
    heard = Heard(app)
    with anyio.fail_after(60):
        await cancel_when(reached, functools.partial(call, SignalMiddleware(app), "websocket"))
    assert heard.names == ["websocket_connected", "websocket_disconnected"]
    assert heard.only("websocket_disconnected")["code"] is None


async def test_cancellation_during_websocket_connected_is_followed_by_its_end(cancel_when: Any) -> None:
    """The server had accepted, so there is an end to tell."""
    app = sending(ACCEPT)
    heard = Heard(app)
    reached = anyio.Event()

    @asgi.websocket_connected.connect(sender=app)
    async def wait(**_: Any) -> None:
        reached.set()
        await anyio.sleep_forever()

    with anyio.fail_after(60):
        await cancel_when(reached, functools.partial(call, SignalMiddleware(app), "websocket"))
    assert heard.names == ["websocket_connected", "websocket_disconnected"]


# Lifespan


def follow(app: ASGIApp, server: Server) -> list[tuple[str, int]]:
    """Which signals of the lifespan were sent, and how many messages the server had by then."""
    heard: list[tuple[str, int]] = []
    for name in ("lifespan_started", "lifespan_stopped"):

        def hear(name: str = name, **_: Any) -> None:
            heard.append((name, len(server.sent)))

        SIGNALS[name].connect(hear, sender=app, weak=False)
    return heard


@pytest.mark.parametrize("stopped", ["lifespan.shutdown.complete", "lifespan.shutdown.failed"])
async def test_lifespan_signals_come_before_the_server_is_told(stopped: str) -> None:
    """So that no request comes before the start, and no loop ends before the end."""
    app = sending(STARTED, {"type": stopped})
    server = Server()
    heard = follow(app, server)
    await SignalMiddleware(app)({"type": "lifespan"}, server.receive, server.send)
    assert heard == [("lifespan_started", 0), ("lifespan_stopped", 1)]
    assert len(server.sent) == 2


@pytest.mark.parametrize(
    ("before", "error", "names"),
    [
        pytest.param([{"type": "lifespan.startup.failed"}], None, [], id="failed start"),
        pytest.param([], KeyError("lifespan"), [], id="unsupported"),
        pytest.param([STARTED], None, ["lifespan_started", "lifespan_stopped"], id="no farewell"),
        pytest.param([STARTED], RuntimeError(), ["lifespan_started", "lifespan_stopped"], id="failed while running"),
        pytest.param([STARTED, STOPPED], RuntimeError(), ["lifespan_started", "lifespan_stopped"], id="failed after"),
    ],
)
async def test_lifespan_stopped_once_for_each_lifespan_started(
    before: list[Message], error: Exception | None, names: list[str]
) -> None:
    """However the application leaves; its exceptions go on untouched and are no exceptions of a request."""
    app = sending(*before, then=error)
    heard = Heard(app)
    with pytest.raises(type(error)) if error else contextlib.nullcontext() as caught:
        await call(SignalMiddleware(app), "lifespan")
    assert caught is None or caught.value is error
    assert heard.names == names


async def test_a_cancelled_lifespan_is_stopped_once(cancel_when: Any) -> None:
    """Hypercorn, for one, cancels it in the end."""
    app, reached = waiting(STARTED)
    heard = Heard(app)
    with anyio.fail_after(60):
        await cancel_when(reached, functools.partial(call, SignalMiddleware(app), "lifespan"))
    assert heard.names == ["lifespan_started", "lifespan_stopped"]


async def test_cancellation_while_lifespan_stopped_is_sent_disturbs_no_receiver(cancel_when: Any) -> None:
    """A server that is in a hurry does not cut off the last farewell."""
    app = sending(STARTED, STOPPED)
    reached, ended = anyio.Event(), []

    @asgi.lifespan_stopped.connect(sender=app)
    async def wait(**_: Any) -> None:
        reached.set()
        for _step in range(5):
            await anyio.lowlevel.checkpoint()
        ended.append(True)

    with anyio.fail_after(60):
        await cancel_when(reached, functools.partial(call, SignalMiddleware(app), "lifespan"))
    assert ended == [True]


# The rest


@pytest.mark.parametrize("grace", [-1, -0.001, math.nan])
def test_a_negative_grace_is_refused(grace: float) -> None:
    """With a message that names the class, the argument and the value."""
    with pytest.raises(ValueError, match=rf"SignalMiddleware: grace must be 0 or more seconds, not {grace!r}"):
        SignalMiddleware(sending(), grace=grace)


@pytest.mark.parametrize("grace", [0, 0.5, math.inf])
def test_any_other_grace_is_taken(grace: float) -> None:
    """None at all, some, or no limit; the representation shows it."""
    app = sending()
    assert repr(SignalMiddleware(app, grace=grace)) == f"SignalMiddleware({app!r}, grace={grace!r})"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("request_started", ("scope",)),
        ("request_finished", ("scope", "status", "duration", "exception")),
        ("got_request_exception", ("scope", "exception")),
        ("websocket_connected", ("scope",)),
        ("websocket_disconnected", ("scope", "code", "duration", "exception")),
        ("lifespan_started", ("scope",)),
        ("lifespan_stopped", ("scope",)),
    ],
)
def test_the_signals_are_declared(name: str, arguments: tuple[str, ...]) -> None:
    """Each knows its arguments, its name and its documentation."""
    signal = SIGNALS[name]
    assert signal.providing_args == arguments
    assert signal.name == f"asignals.asgi.{name}"
    assert signal.__doc__


def test_importing_it_loads_no_framework() -> None:
    """Only the standard library, anyio and the core are loaded."""
    code = "import sys; site = set(sys.modules); import asignals.asgi; print(*sorted(set(sys.modules) - site))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603  our own code
    packages = {name.partition(".")[0] for name in loaded.stdout.split()}
    of_anyio = {"anyio", "sniffio", "typing_extensions"}
    of_python = sys.stdlib_module_names | {"_missing_stdlib_info"}  # which 3.15 has, but does not name there
    assert packages - of_python - of_anyio == {"asignals"}
