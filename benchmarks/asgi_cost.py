"""What `SignalMiddleware` costs a small Starlette application: `python -m benchmarks.asgi_cost`.

The application is called in this process with a scope and two callables, as a server calls it. Contenders: the
application alone, the same behind a middleware written by hand that notes the status and the duration, and behind
`SignalMiddleware` with no receiver, with one that returns at once, and with one that waits for the event loop once.
Every contender has to answer with the same messages, and each receiver has to be called.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from asignals import Report, monitor
from asignals.asgi import ASGIApp, SignalMiddleware, request_finished

from .timing import Round, compare, ratio, time_repeated

GOALS = {"nobody hears": 1.15, "one receiver": 1.35}
"""The most that these may cost beside the application alone."""

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


def make_app() -> ASGIApp:
    """A new application with one route, and the middleware that every Starlette application has."""
    return Starlette(routes=[Route("/", hello)])


def by_hand(app: ASGIApp, note: Callable[..., None]) -> ASGIApp:
    """A middleware that notes status and duration, and promises nothing else."""

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
            note(status, time.perf_counter() - started)

    return middleware


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


async def hears_at_once(status: int, duration: float) -> None:
    assert (status, duration > 0) == (200, True)


async def waits(status: int, duration: float) -> None:
    assert (status, duration > 0) == (200, True)
    await asyncio.sleep(0)


def note(status: int, duration: float) -> None:
    assert (status, duration > 0) == (200, True)


# The contenders, with the receivers that are connected while they run.
CONTENDERS: dict[str, tuple[ASGIApp, list[Callable[..., Awaitable[None]]]]] = {
    "the application": (make_app(), []),
    "the application again": (make_app(), []),  # the noise of the machine
    "by hand": (by_hand(make_app(), note), []),
    "nobody hears": (SignalMiddleware(make_app()), []),
    "one receiver": (SignalMiddleware(make_app()), [hears_at_once]),
    "one that waits": (SignalMiddleware(make_app()), [waits]),
}


async def prepare(name: str) -> Round:
    """A round of a contender, which connects its receivers before and disconnects them afterwards."""
    app, receivers = CONTENDERS[name]
    timed = await time_repeated(lambda times: serve(app, times))

    async def one_round() -> float:
        for receiver in receivers:
            request_finished.connect(receiver)
        try:
            return await timed()
        finally:
            for receiver in receivers:
                request_finished.disconnect(receiver)

    return one_round


async def check() -> None:
    """Every contender answers alike, and each receiver is called once for a request."""
    expected = await serve(make_app(), 1)
    for name, (app, receivers) in CONTENDERS.items():
        called: list[Report] = []
        with ExitStack() as stack:
            for receiver in receivers:
                stack.enter_context(request_finished.connected(receiver))
            stack.enter_context(monitor(called.append))
            assert await serve(app, 1) == expected, name
        assert [report.receiver for report in called if report.receiver is not None] == receivers, name


async def measure(seconds: float) -> dict[str, float]:
    """The ratio of each contender over the application alone."""
    await check()
    rounds = {name: await prepare(name) for name in CONTENDERS}
    costs = await compare(rounds, seconds)
    return {name: ratio(costs, name, "the application") for name in rounds}


def main() -> None:
    """Measure on asyncio and on uvloop."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks asgi", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="for each event loop (default: %(default)s)")
    options = parser.parse_args()
    table = Table("Over the application alone", "asyncio", "uvloop", "goal")
    found = [asyncio.run(measure(options.seconds)), uvloop.run(measure(options.seconds))]
    for name in found[0]:
        table.add_row(name, *(f"{each[name]:.2f}" for each in found), f"{GOALS[name]:.2f}" if name in GOALS else "")
    Console().print(table)


if __name__ == "__main__":
    main()
