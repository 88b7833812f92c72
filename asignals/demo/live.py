"""One page, several processes: an order that is placed through one of them appears at once on the pages of all.

`asignals demo --workers 2` runs it. So does any ASGI server, once `asignals relay init asignals.demo.live:relay` has
made the tables: `uvicorn asignals.demo.live:app --workers 4`.
"""

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from weakref import WeakSet

from sqlalchemy import select
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.routing import Route

from asignals import Stream, signal
from asignals.demo.engines import transport_for
from asignals.demo.orders import Order, open_orders
from asignals.relay import Relay

MENU = ["Margherita", "Marinara", "Capricciosa"]
HERE = Path(__file__).parent
DATABASE = Path(os.environ.get("ASIGNALS_DEMO_DATABASE", "orders.db"))
ENGINE = os.environ.get("ASIGNALS_DEMO_RELAY", "sqlite+aiosqlite:///relay.db")
NAME = os.environ.get("ASIGNALS_DEMO_NAME", "asignals_demo")


@signal
def order_placed(sender: str, *, number: int, pizza: str, process: int, time: float) -> None:
    """Somebody has ordered; `process` took the order, which was committed at `time`, in seconds since the epoch."""


relay: Relay = Relay(transport_for(ENGINE, NAME), "shop")
relay.export(order_placed, "order.placed")
relay.receive(order_placed, "order.placed", broadcast=True)


async def order(request: Request) -> JSONResponse:
    """`POST /orders` with a pizza: write it to the database, and tell every process."""
    pizza = (await request.json())["pizza"]
    entry = Order([pizza], size=30, price=8)
    async with request.app.state.orders.begin() as session:
        session.add(entry)
    await order_placed.send("web", number=entry.number, pizza=pizza, process=os.getpid(), time=time.time())
    return JSONResponse({"number": entry.number}, status_code=201)


pages: WeakSet[Stream] = WeakSet()


async def end_pages() -> None:
    """End the streams of all pages: a server that stops would wait for them."""
    for events in list(pages):
        await events.aclose()


async def live(_: Request) -> StreamingResponse:
    """`GET /live`: each order as it comes, as server-sent events. A slow page misses the oldest, and delays nobody."""

    async def lines() -> AsyncIterator[str]:
        async with order_placed.stream(buffer=16, overflow="drop_oldest") as events:
            pages.add(events)
            yield "retry: 500\n\n"  # milliseconds after which a browser connects again
            async for event in events:
                yield f"data: {json.dumps(event.as_dict()['arguments'])}\n\n"

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def latest(request: Request) -> JSONResponse:
    """`GET /orders`: the last ones. A page asks for them whenever it has connected, or has missed a number."""
    async with request.app.state.orders() as session:
        entries = await session.scalars(select(Order).order_by(Order.number.desc()).limit(10))
        orders = [{"number": entry.number, "pizza": entry.toppings[0]} for entry in entries]
    return JSONResponse({"process": os.getpid(), "menu": MENU, "orders": orders[::-1]})


async def page(_: Request) -> FileResponse:
    """`GET /`."""
    return FileResponse(HERE / "live.html")


@asynccontextmanager
async def lifespan(application: Starlette) -> AsyncIterator[None]:
    """Open the database, and listen for what the other processes send."""
    async with open_orders(DATABASE) as application.state.orders, relay:
        yield


app: Starlette = Starlette(
    routes=[
        Route("/", page),
        Route("/live", live),
        Route("/orders", latest),
        Route("/orders", order, methods=["POST"]),
    ],
    lifespan=lifespan,
)
