"""What `SignalMiddleware` costs a small Starlette application: `python -m benchmarks.asgi_cost [--sockets]`.

The application is called in this process with a scope and two callables, as a server calls it. Contenders: the
application alone; a middleware written by hand that notes the status and the duration; one that also keeps what
`SignalMiddleware` promises (its receiver runs to its end whoever cancels the request, and errors stay there); and
`SignalMiddleware` with no receiver, with one that returns at once, and with one that waits for the event loop once.

With `--sockets` servers on loopback, each in a process of its own, are asked in turns: the application alone, the same
once more (how far that is from 1 is the noise), and behind the middleware without and with a receiver.

Every contender has to answer alike, and each receiver has to be called once for a request.
"""

import argparse
import asyncio
import collections
import contextlib
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import anyio
import anyio.lowlevel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from asignals.asgi import ASGIApp, SignalMiddleware, request_finished

from .cases import Case, Goal
from .over_http import get, head, load, server
from .timing import AGAIN, Round, time_repeated

ALONE, BY_HAND, PROMISING = "the application", "by hand", "by hand, the same promises"
GOALS = (Goal("nobody hears", ALONE, 1.15), Goal("one receiver", ALONE, 1.35))

SCOPE: dict[str, Any] = {
    "type": "http",
    "http_version": "1.1",
    "method": "GET",
    "path": "/",
    "raw_path": b"/",
    "root_path": "",
    "scheme": "http",
    "query_string": b"",
    "headers": [(b"host", b"localhost")],
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 80),
}


async def hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def make_app(*more: Route) -> ASGIApp:
    """A new application with one route, and the middleware that every Starlette application has."""
    return Starlette(routes=[Route("/", hello), *more])


heard: collections.deque[int] = collections.deque(maxlen=100)
"""The statuses that receivers were last called with."""


def note(status: int, duration: float) -> None:
    assert duration > 0
    heard.append(status)


async def hears_at_once(status: int, duration: float) -> None:
    note(status, duration)


async def waits(status: int, duration: float) -> None:
    note(status, duration)
    await anyio.lowlevel.checkpoint()


def by_hand(app: ASGIApp, end: Callable[[int | None, float], Awaitable[object] | None]) -> ASGIApp:
    """A middleware that hands on status and duration when the application is done."""

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        started = time.perf_counter()
        status = None

        async def watched_send(message: Any) -> None:
            nonlocal status
            await send(message)
            if message["type"] == "http.response.start":
                status = message["status"]

        try:
            await app(scope, receive, watched_send)
        finally:
            if (ending := end(status, time.perf_counter() - started)) is not None:
                await ending

    return middleware


async def end_in_a_task(status: int | None, duration: float) -> None:
    """Call a receiver where no cancellation of the request reaches it; for asyncio."""

    async def call() -> None:
        with contextlib.suppress(Exception):
            await hears_at_once(status or 0, duration)

    options: Any = {"eager_start": True} if sys.version_info >= (3, 12) else {}
    task = asyncio.Task(call(), loop=asyncio.get_running_loop(), **options)
    if not task.done():
        await asyncio.shield(task)


# The contenders, with the receivers that are connected while they run.
CONTENDERS: dict[str, tuple[ASGIApp, list[Callable[..., Awaitable[None]]]]] = {
    ALONE: (make_app(), []),
    BY_HAND: (by_hand(make_app(), note), []),
    PROMISING: (by_hand(make_app(), end_in_a_task), []),
    "nobody hears": (SignalMiddleware(make_app()), []),
    "one receiver": (SignalMiddleware(make_app()), [hears_at_once]),
    "one that waits": (SignalMiddleware(make_app()), [waits]),
}
CALLS = {ALONE: 0, "nobody hears": 0}
"""How often somebody hears of a request, where that is not once."""


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def serve(app: ASGIApp, times: int) -> list[Any]:
    """Serve the same request so many times; returns the messages of the last one."""
    messages: list[Any] = []

    async def send(message: Any) -> None:
        messages.append(message)

    for _ in range(times):
        messages.clear()
        await app(dict(SCOPE), receive, send)
    return messages


async def prepare(_: AsyncExitStack) -> dict[str, Round]:
    """Check the contenders, and prepare their rounds, in which their receivers are connected."""
    chosen = {name: each for name, each in CONTENDERS.items() if _is_on_asyncio() or name != PROMISING}
    expected = await serve(make_app(), 1)
    return {name: await prepare_one(name, *each, expected) for name, each in chosen.items()}


def _is_on_asyncio() -> bool:
    try:
        return asyncio.get_running_loop() is not None
    except RuntimeError:
        return False


async def prepare_one(
    name: str, app: ASGIApp, receivers: list[Callable[..., Awaitable[None]]], expected: list[Any]
) -> Round:
    timed = await time_repeated(lambda times: serve(app, times))

    async def one_round() -> float:
        with ExitStack() as stack:
            for receiver in receivers:
                stack.enter_context(request_finished.connected(receiver))
            heard.clear()
            assert await serve(app, 1) == expected, name  # the first send after a connect makes the plan
            assert list(heard) == [200] * CALLS.get(name, 1), name
            return await timed()

    return one_round


CASES = [Case(f"asgi/{loop}", prepare, GOALS, loop) for loop in ("asyncio", "uvloop", "trio")]


# -- over real sockets -------------------------------------------------------------------------------------------------

SOCKETS = (ALONE, AGAIN, "nobody hears", "one receiver")
SERVERS = ("uvicorn", "hypercorn")


def serve_sockets(name: str, contender: str, port: int) -> None:
    """Serve a contender until the process is ended."""

    async def used(_: Request) -> JSONResponse:
        return JSONResponse(time.process_time())

    count = 0

    async def hear(status: int) -> None:
        nonlocal count
        count += status == 200

    async def tell(_: Request) -> JSONResponse:
        return JSONResponse(count)

    app = make_app(Route("/used", used), Route("/heard", tell))
    if contender not in (ALONE, AGAIN):
        app = SignalMiddleware(app)
    if contender == "one receiver":
        request_finished.connect(hear)
    if name == "uvicorn":
        import uvicorn  # noqa: PLC0415  only one of the two is needed

        uvicorn.run(app, port=port, log_level="error", access_log=False)
    else:
        from hypercorn.asyncio import serve as serve_hypercorn  # noqa: PLC0415
        from hypercorn.config import Config  # noqa: PLC0415

        config = Config()
        config.bind, config.errorlog = [f"127.0.0.1:{port}"], None
        asyncio.run(serve_hypercorn(app, config))  # type: ignore[arg-type]  its own types of scopes


async def measure_sockets(name: str, rounds: int, requests: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds, and processor seconds of the server, per request: each contender in turn, round after round."""
    found: dict[str, list[tuple[float, float]]] = {contender: [] for contender in SOCKETS}
    with ExitStack() as stack:
        serving = ("benchmarks.asgi_cost", "--server", name, "--contender")
        ports = {each: stack.enter_context(server(*serving, each)) for each in SOCKETS}
        turns = list(SOCKETS)
        for number in range(rounds + 1):
            for contender in turns:
                port = ports[contender]
                before = int(await get(port, "/heard"))
                costs = await load(port, head("GET", "/"), requests, b"hello")
                # `/used` is asked before and after, and `/heard` before.
                calls = requests + 3 if contender == "one receiver" else 0
                assert int(await get(port, "/heard")) - before == calls, contender
                if number:  # the first round warms up
                    found[contender].append(costs)
            turns.append(turns.pop(0))
    return found


def show_sockets(name: str, found: dict[str, list[tuple[float, float]]]) -> None:
    """A row for each contender: medians over the rounds, and the middle 80 % of the ratios."""
    for contender, costs in found.items():
        cells = []
        for kind in (0, 1):
            ratios = sorted(mine[kind] / other[kind] for mine, other in zip(costs, found[ALONE], strict=True))
            tenth = len(ratios) // 10
            cells.append(f"{statistics.median(cost[kind] for cost in costs) * 1e6:.0f} µs")
            cells.append(f"{statistics.median(ratios):.2f} ({ratios[tenth]:.2f} to {ratios[-1 - tenth]:.2f})")
        print(f"| {name} | {contender} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Measure in this process, or over sockets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks asgi", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="for each event loop (default: %(default)s)")
    parser.add_argument("--sockets", action="store_true", help="ask servers over sockets instead")
    parser.add_argument("--rounds", type=int, default=150, help="with --sockets (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=80, help="in a round (default: %(default)s)")
    parser.add_argument("--server", choices=SERVERS, help="only this one")
    parser.add_argument("--contender", choices=SOCKETS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.port:
        serve_sockets(options.server, options.contender, options.port)
    elif options.sockets:
        print("| server | | per request | ratio | its processor | ratio |\n|---|---|---|---|---|---|")
        for name in [options.server] if options.server else SERVERS:
            show_sockets(name, asyncio.run(measure_sockets(name, options.rounds, options.requests)))
    else:
        from .table import show_cases  # noqa: PLC0415  it imports this module

        show_cases(CASES, options.seconds)


if __name__ == "__main__":
    main()
