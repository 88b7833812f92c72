"""What the inspector costs a shop under load: `python -m benchmarks.inspector_cost`.

Three processes serve the same shop over real HTTP on loopback: without the inspector, with it mounted and nobody
looking, and with one viewer of its event stream. What is compared is the processor time of the serving process per
request, so that neither the client nor whatever else runs on the machine counts; rounds alternate, and the figure is
the median of their ratios.

Beside that, in one process without a server: which share of a core one viewer costs at 1,000 sends a second.

There are two shops. The goals are for `demo`, the pizza shop of `asignals demo`: an order is written to its database,
baked, and announced. `bare` does nothing but send: what a request costs there is the web framework and seven
receivers and signals, so it shows the most that watching can cost.
"""

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator

import anyio.lowlevel
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from asignals import Signal, signal
from asignals.asgi import SignalMiddleware, request_finished
from asignals.inspector import Inspector

from .over_http import head, load, server

CASES = {"not mounted": 1.0, "mounted, nobody looking": 1.02, "one viewer": 1.3}
"""The cases, and the most that each may cost beside the first."""

SHARE = 0.05
"""The most of a core that one viewer may cost beside 1,000 sends a second."""

BODY = json.dumps({"order": 4711, "toppings": ["basil", "tomato"], "password": "hunter2"}).encode()


async def used_by_now(request: Request) -> JSONResponse:
    return JSONResponse(time.process_time())


def make_demo(*, is_mounted: bool) -> ASGIApp:
    """Take the pizza shop as it is, or without the inspector."""
    from asignals.demo import shop  # noqa: PLC0415  each process has one shop

    routes = shop.app.router.routes
    routes[:] = [route for route in routes if not isinstance(route, Mount)]
    if is_mounted:
        routes.append(Mount("/signals", Inspector(allow=lambda _: True)))
    routes.append(Route("/used", used_by_now))
    return shop.asgi


def make_bare(*, is_mounted: bool) -> ASGIApp:
    """Make a shop that only announces."""

    @signal
    def order_paid(sender: object, *, order: int, toppings: list[str], password: str) -> None:
        """An order was paid."""

    @order_paid.connect(priority=1)
    async def ship(order, **named):
        await anyio.lowlevel.checkpoint()

    @order_paid.connect
    async def book(order, **named): ...

    @order_paid.connect
    def count(**named): ...

    @request_finished.connect
    async def log(status, duration, **named): ...

    async def pay(request: Request) -> JSONResponse:
        order = await request.json()
        await order_paid.send("shop", **order)
        return JSONResponse({"paid": order["order"]})

    routes = [Route("/pizzas", pay, methods=["POST"]), Route("/used", used_by_now)]
    if is_mounted:
        routes.append(Mount("/signals", Inspector(allow=lambda _: True)))
    app = Starlette(routes=routes)
    app.state.receivers = ship, book, count, log
    return SignalMiddleware(app)


SHOPS = {"demo": make_demo, "bare": make_bare}


def serve(shop: str, port: int, *, is_mounted: bool) -> None:
    """Serve a shop until the process is ended."""
    uvicorn.run(SHOPS[shop](is_mounted=is_mounted), port=port, log_level="error", access_log=False)


@contextlib.asynccontextmanager
async def viewer(port: int) -> AsyncIterator[list[int]]:
    """Look at the events of a server for a block, as a page does, and count their bytes."""
    seen = [0]

    async def look() -> None:
        last = b""
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head("GET", "/signals/events", more=f"Last-Event-ID: {last.decode()}"))
            while data := await reader.read(65536):
                seen[0] += len(data)
                last = (re.findall(rb"^id: (\S+)$", data, re.MULTILINE) or [last])[-1]
                if data.endswith(b"0\r\n\r\n"):
                    break
            writer.close()
            await asyncio.sleep(0.3)  # as the stream asks for

    looking = asyncio.create_task(look())
    try:
        while not seen[0]:  # noqa: ASYNC110  what comes is only counted
            await asyncio.sleep(0.01)
        yield seen
    finally:
        looking.cancel()


async def measure(shop: str, rounds: int, requests: int) -> dict[str, list[float]]:
    """Measure each case in turn, round after round: processor seconds per request."""
    found: dict[str, list[float]] = {case: [] for case in CASES}
    serve = "benchmarks.inspector_cost", "--shop", shop
    with server(*serve) as bare, server(*serve, "--mount") as unwatched, server(*serve, "--mount") as watched:
        ports = dict(zip(CASES, (bare, unwatched, watched), strict=True))
        async with viewer(watched) as seen:
            for number in range(rounds + 1):
                for case, port in ports.items():
                    _, cost = await load(port, head("POST", "/pizzas", len(BODY)) + BODY, requests)
                    if number:  # the first round warms up
                        found[case].append(cost)
            assert seen[0] > 10_000, "the viewer saw nothing"
    return found


async def sending(per_second: int, seconds: float, *, is_viewed: bool) -> float:
    """Send at a rate, with one viewer or without an inspector; returns the share of a core that the process used."""
    order_paid = Signal(["order", "toppings", "password"], name="bench.order_paid")

    async def ship(order: int, **_: object) -> None:
        await anyio.lowlevel.checkpoint()

    async def book(order: int, **_: object) -> None: ...

    left = asyncio.Event()

    async def receive() -> dict[str, object]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: object) -> None: ...

    scope = {"type": "http", "method": "GET", "path": "/events", "root_path": "", "query_string": b"", "headers": []}
    app = Inspector(allow=lambda _: True)
    with order_paid.connected(ship), order_paid.connected(book):
        viewing = [asyncio.create_task(app(scope, receive, send))] if is_viewed else []
        await asyncio.sleep(0.5)
        before, start = time.process_time(), time.perf_counter()
        for number in range(int(per_second * seconds)):
            wait = start + number / per_second - time.perf_counter()
            if wait > 0.005:  # a timer's precision: a few sends follow each other at once
                await asyncio.sleep(wait)
            await order_paid.send("shop", order=number, toppings=["basil"], password="hunter2")  # noqa: S106
        used = (time.process_time() - before) / (time.perf_counter() - start)
        left.set()
        await asyncio.gather(*viewing)
    return used


def share(per_second: int = 1_000, seconds: float = 4, turns: int = 3) -> float:
    """The share of a core that one viewer costs beside the sends themselves, in the quietest turn."""
    found = []
    for _ in range(turns):
        with_viewer, without = (
            asyncio.run(sending(per_second, seconds, is_viewed=is_viewed)) for is_viewed in (True, False)
        )
        found.append(with_viewer - without)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--requests", type=int, default=2000, help="in a round")
    parser.add_argument("--shop", choices=SHOPS, help="only this one")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a goal is missed")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--mount", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.port:
        serve(options.shop, options.port, is_mounted=options.mount)
        return
    print("| shop | inspector | µs of the server per request | ratio | goal |\n|---|---|---|---|---|")
    missed = False
    for shop in [options.shop] if options.shop else SHOPS:
        missed |= report(shop, asyncio.run(measure(shop, options.rounds, options.requests)))
    if not options.shop:
        used = share()
        missed |= used > SHARE
        print(f"\n1,000 sends a second, one viewer: {used:.1%} of a core beside them; goal {SHARE:.0%}")
    if options.check and missed:
        sys.exit(1)


def report(shop: str, found: dict[str, list[float]]) -> bool:
    """Print the figures of a shop; tells whether a goal was missed."""
    base = next(iter(found.values()))
    missed = False
    for case, costs in found.items():
        ratio = statistics.median(cost / other for cost, other in zip(costs, base, strict=True))
        goal = f"{CASES[case]:.2f}" if shop == "demo" else ""
        missed |= bool(goal) and ratio > CASES[case]
        print(f"| {shop} | {case} | {statistics.median(costs) * 1e6:.0f} | {ratio:.3f} | {goal} |")
    return missed


if __name__ == "__main__":
    main()
