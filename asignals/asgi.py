"""Signals of an ASGI application: its requests, its websockets and its lifespan.

Wrap any ASGI 3 application, whatever its framework and its server::

    from asignals.asgi import SignalMiddleware, request_finished

    @request_finished.connect
    async def measure(scope, status, duration, **named): ...

    app = SignalMiddleware(app)

The sender of each signal is the wrapped application (`SignalMiddleware.app`). All are sent with `send_robust`: a
failing receiver is logged, and neither the application nor the client hears of it. A slow receiver does make them
wait; work that nobody has to wait for belongs in a `Background`. asyncio and trio.
"""

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

from anyio import CancelScope, Event, create_task_group, current_time, get_cancelled_exc_class

from asignals import Signal, signal
from asignals._core import Registry, is_watched, registry_of

__all__ = [
    "ASGIApp",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "SignalMiddleware",
    "got_request_exception",
    "lifespan_started",
    "lifespan_stopped",
    "request_finished",
    "request_started",
    "websocket_connected",
    "websocket_disconnected",
]

Scope: TypeAlias = MutableMapping[str, Any]
"""What a server says of a request, a websocket or the lifespan."""
Message: TypeAlias = MutableMapping[str, Any]
"""One event between server and application."""
Receive: TypeAlias = Callable[[], Awaitable[Message]]
"""Gives the next message from the server."""
Send: TypeAlias = Callable[[Message], Awaitable[None]]
"""Hands a message to the server."""
# Frameworks and servers type scopes and messages each in their own way (mappings, TypedDicts); all of them fit this.
ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI 3 application; called with a `Scope`, a `Receive` and a `Send`."""

# What ends a request is mostly done at once. To name a task is faster than to have asyncio number it.
_OPTIONS: dict[str, Any] = {"name": "asignals.asgi"}
if sys.version_info >= (3, 12):
    _OPTIONS["eager_start"] = True
_REPEAT_S = 0.1  # after the grace, a receiver that ignores its cancellation is cancelled again this often

_logger = logging.getLogger("asignals")


@signal
def request_started(sender: ASGIApp, *, scope: Scope) -> object:
    """An HTTP request came in; sent before the application is called, in the request's own task and context.

    A `ContextVar` that a receiver sets is seen by the application and by the receivers of `request_finished`.
    """


@signal
def request_finished(
    sender: ASGIApp,
    *,
    scope: Scope,
    status: int | None,
    duration: float,
    exception: BaseException | None,
) -> object:
    """The application is done with an HTTP request; sent exactly once for every `request_started`.

    `status` is that of the response, `None` when none was started: the server then answers 500 by itself, or nobody
    is left to answer. `duration` is in seconds, from just before `request_started` until the application returned;
    where the framework runs background tasks after the response, these count. `exception` is what left the application,
    the cancellation included.
    """


@signal
def got_request_exception(sender: ASGIApp, *, scope: Scope, exception: Exception) -> object:
    """An exception left the application while it served a request or a websocket; sent before the signal of its end.

    Cancellation, `KeyboardInterrupt` and `SystemExit` are no errors of a request, nor is what the framework answered by
    itself and raised no further.
    """


@signal
def websocket_connected(sender: ASGIApp, *, scope: Scope) -> object:
    """The application accepted a websocket; sent when the server has taken that, before the application goes on.

    A websocket that the application rejects sends neither this nor `websocket_disconnected`.
    """


@signal
def websocket_disconnected(
    sender: ASGIApp,
    *,
    scope: Scope,
    code: int | None,
    duration: float,
    exception: BaseException | None,
) -> object:
    """The application is done with a websocket; sent exactly once for every `websocket_connected`.

    `code` (RFC 6455, section 7.4) is that of whichever side closed first, as the application heard or said it; `None`
    when it ended without either, and the server closes the connection by itself. `duration` is in seconds, from the
    acceptance until the application returned. `exception` is what left the application, the cancellation included.
    """


@signal
def lifespan_started(sender: ASGIApp, *, scope: Scope) -> object:
    """The application has started up; sent before the server hears of it, so before the first request."""


@signal
def lifespan_stopped(sender: ASGIApp, *, scope: Scope) -> object:
    """The application has shut down, in order or not; sent exactly once for every `lifespan_started`.

    Where the application says goodbye, as it should, that is before the server hears of it.
    """


_started, _finished = registry_of(request_started), registry_of(request_finished)
_Sends: TypeAlias = list[tuple[Signal[..., object], dict[str, Any]]]


class SignalMiddleware:
    """Wrap `app`, any ASGI 3 application, so that it sends the signals of this module.

    Their sender is the application that the framework names in the scope (`scope["app"]`, as Starlette, FastAPI and
    Litestar do for middleware that was added to them), else `app`; the same one for all signals of a scope. So
    `connect(f, sender=app)` hears `app.add_middleware(SignalMiddleware)` and `app = SignalMiddleware(app)` alike.

    Everything passes through untouched: scopes, messages, unknown types of scope, and the application's exceptions.

    The receivers of `request_finished`, `websocket_disconnected` and `lifespan_stopped`, and of `got_request_exception`
    before them, run even if the task that serves the request is cancelled, before or meanwhile, by an anyio scope or by
    `asyncio.Task.cancel`. From then on they have `grace` seconds together, after which they are cancelled and a warning
    is logged; without a cancellation they may take as long as they like. To that end they run in a separate task,
    in a copy of the request's context; the request waits for it. Only a coroutine that is closed, as when a loop is
    discarded, sends nothing more: it can await nothing.

    An instance keeps nothing between calls, and may serve several event loops and threads at once.

    Args:
        app: The application.
        grace: Seconds, 0 or more; `math.inf` sets no limit.

    Raises:
        TypeError: `app` cannot be called; the string that a server imports it by is none.
        ValueError: `grace` is negative or not a number.
    """

    def __init__(self, app: ASGIApp, *, grace: float = 5.0) -> None:
        if not callable(app):
            raise TypeError(f"SignalMiddleware takes an ASGI application, not {app!r:.80}; pass the object itself")
        if not grace >= 0:  # put this way round, it refuses NaN too
            raise ValueError(f"SignalMiddleware: grace must be 0 or more seconds, not {grace!r}")
        self.app = app
        self.grace = grace

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.app!r}, grace={self.grace!r})"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Call the application, as a server does, and send the signals of this scope."""
        named = scope.get("app")  # by the framework that runs this middleware, as Starlette and Litestar do
        sender = self.app if named is None else named
        if scope["type"] != "http":
            await self._call_other(sender, scope, receive, send)
            return
        # Requests are served here and not in another coroutine, which would cost more than all the rest of this.
        started = time.perf_counter()
        status: int | None = None

        async def watched_send(message: Message) -> None:
            nonlocal status
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]

        try:
            if (_started.plan or _started.plan_for(sender)).connections or is_watched():
                await request_started.send_robust(sender, scope=scope)
            await self.app(scope, receive, watched_send)
        except BaseException as error:
            named = {"status": status, "duration": time.perf_counter() - started}
            await self._end(sender, scope, error, _last_sends(error, request_finished, **named))
            raise
        if (_finished.plan or _finished.plan_for(sender)).connections or is_watched():
            duration = time.perf_counter() - started
            sending = request_finished.send_robust(
                sender, scope=scope, status=status, duration=duration, exception=None
            )
            if (rest := _start(sending, None, self.grace, request_finished)) is not None:
                await rest

    async def _call_other(self, sender: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "websocket":
                await self._websocket(sender, scope, receive, send)
            case "lifespan":
                await self._lifespan(sender, scope, receive, send)
            case _:
                await self.app(scope, receive, send)

    async def _websocket(self, sender: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        connected: float | None = None
        code: int | None = None

        async def watched_receive() -> Message:
            nonlocal code
            message = await receive()
            if message["type"] == "websocket.disconnect" and code is None:
                code = message.get("code", 1005)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal connected, code
            await send(message)
            if message["type"] == "websocket.accept" and connected is None:
                connected = time.perf_counter()
                await websocket_connected.send_robust(sender, scope=scope)
            elif message["type"] == "websocket.close" and code is None:
                code = message.get("code", 1000)

        async def end(exception: BaseException | None) -> None:
            if connected is None:
                sends = _last_sends(exception)
            else:
                duration = time.perf_counter() - connected
                sends = _last_sends(exception, websocket_disconnected, code=code, duration=duration)
            await self._end(sender, scope, exception, sends)

        try:
            await self.app(scope, watched_receive, watched_send)
        except BaseException as error:
            await end(error)
            raise
        await end(None)

    async def _lifespan(self, sender: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def end(exception: BaseException | None) -> None:
            nonlocal has_started
            if has_started:
                has_started = False
                await self._end(sender, scope, exception, [(lifespan_stopped, {})])

        async def watched_send(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "lifespan.startup.complete":
                has_started = True
                await lifespan_started.send_robust(sender, scope=scope)
            elif message["type"] in {"lifespan.shutdown.complete", "lifespan.shutdown.failed"}:
                await end(None)  # now, as a server may end the event loop once it has the message
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        except BaseException as error:
            await end(error)
            raise
        await end(None)

    async def _end(self, sender: ASGIApp, scope: Scope, exception: BaseException | None, sends: _Sends) -> None:
        """Send the last signals of a scope."""
        heard = [(signal, named) for signal, named in sends if not _is_unheard(registry_of(signal), sender)]
        if heard and not isinstance(exception, GeneratorExit):  # a coroutine that is being closed can await nothing
            sending = _send_all(sender, scope, heard)
            if (rest := _start(sending, exception, self.grace, heard[-1][0])) is not None:
                await rest


def _last_sends(exception: BaseException | None, last: Signal[..., object] | None = None, **named: object) -> _Sends:
    sends: _Sends = []
    if isinstance(exception, Exception):
        sends.append((got_request_exception, {"exception": exception}))
    if last is not None:
        sends.append((last, {**named, "exception": exception}))
    return sends


async def _send_all(sender: ASGIApp, scope: Scope, sends: _Sends) -> None:
    (signal, named), *others = sends
    try:
        await signal.send_robust(sender, scope=scope, **named)
    finally:
        if others:
            await _send_all(sender, scope, others)


def _is_unheard(registry: Registry, sender: ASGIApp) -> bool:
    """Whether neither a receiver nor a monitor would notice a send."""
    plan = registry.plan or registry.plan_for(sender)
    return not plan.connections and not is_watched()


# These run what ends a scope in a separate task, out of reach of `asyncio.Task.cancel` and of the scopes of anyio.
# They wait for it without a shield, so that they notice a cancellation at once: it starts the time of grace.


def _start(
    sending: Coroutine[Any, Any, object], exception: BaseException | None, grace: float, last: Signal[..., object]
) -> Awaitable[None] | None:
    """Start `sending`; returns what is left to await, if it has not ended at once, as most receivers do.

    It runs to its end, or until `grace` seconds after a cancellation: `exception`, or one that comes.
    """
    if (host := _asyncio_task()) is None:
        return _run_on_trio(sending, exception, grace, last)
    task = asyncio.Task(sending, loop=host.get_loop(), **_OPTIONS)
    if not task.done():
        return _run_on_asyncio(task, exception, grace, last)
    _raise_if_failed(task)
    return None


async def _run_on_asyncio(
    task: asyncio.Task[object], exception: BaseException | None, grace: float, last: Signal[..., object]
) -> None:
    try:
        if not isinstance(exception, asyncio.CancelledError):
            await _end_of(task)
    finally:
        if not task.done():
            await _bound(task, grace, last)
        _raise_if_failed(task)


def _raise_if_failed(task: asyncio.Task[object]) -> None:
    if not task.cancelled():
        task.result()  # raises what is no Exception


def _asyncio_task() -> asyncio.Task[object] | None:
    """The task of asyncio that runs this, if it is one; much faster than to ask anyio."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


async def _bound(task: asyncio.Task[object], grace: float, last: Signal[..., object]) -> None:
    """Wait for a task, and cancel it when the grace is over."""
    deadline = current_time() + grace
    is_late = False
    while not task.done():
        # The shield keeps anyio from repeating its cancellation all the time; further native ones change nothing.
        with suppress(asyncio.CancelledError), CancelScope(shield=True, deadline=deadline) as shield:
            await _end_of(task)
        if shield.cancelled_caught and not task.done():
            if not is_late:
                _warn_of_grace(last, grace)
            is_late = True
            task.cancel()
            deadline = current_time() + _REPEAT_S


async def _end_of(task: asyncio.Task[object]) -> None:
    """Wait for a task; unlike `asyncio.shield`, raises nothing but a cancellation of this."""
    ended = asyncio.get_running_loop().create_future()

    def end(_: object) -> None:
        if not ended.done():
            ended.set_result(None)

    task.add_done_callback(end)
    await ended


async def _run_on_trio(
    sending: Coroutine[Any, Any, object], exception: BaseException | None, grace: float, last: Signal[..., object]
) -> None:
    cancelled = get_cancelled_exc_class()
    shield = CancelScope(shield=True)
    finished = Event()
    failure: BaseException | None = None

    async def run() -> None:
        nonlocal failure
        try:
            with shield:
                await sending
            if shield.cancelled_caught:
                _warn_of_grace(last, grace)
        except cancelled:
            raise
        except BaseException as error:  # noqa: BLE001  raised below as it is: a task group would wrap it
            failure = error
        finally:
            finished.set()

    if isinstance(exception, cancelled):
        shield.deadline = current_time() + grace
    try:
        async with create_task_group() as tasks:
            tasks.start_soon(run)
            try:
                await finished.wait()
            except cancelled:
                shield.deadline = min(shield.deadline, current_time() + grace)
                raise
    finally:
        if failure is not None:
            raise failure


def _warn_of_grace(signal: Signal[..., object], grace: float) -> None:
    _logger.warning("Receivers of %s were cancelled: the grace of %g s is over", signal.name, grace)
