"""The pizza shop: a web application that announces what happens in it, and code that listens.

Any ASGI server runs it: `uvicorn asignals.demo.shop:asgi`.
"""

import tempfile
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from asignals import Background, signal
from asignals.asgi import Scope, SignalMiddleware, got_request_exception, lifespan_started, request_finished
from asignals.demo.orders import Order, Orders, open_orders
from asignals.inspector import Inspector
from asignals.sqlalchemy import post_save

# What the shop announces. The stubs are never called: they say what each signal sends.


class Store:
    """A pizza shop with its order book and its papers; the sender of its signals."""

    def __init__(self, name: str, orders: Orders, directory: Path) -> None:
        self.name = name
        self.orders = orders
        self.directory = directory


@signal
def pizza_done(sender: Store, *, number: int, toppings: list[str], size: int = 30) -> None:
    """A pizza left the oven."""


@signal
def order_paid(sender: Store, *, number: int, price: float) -> None:
    """An order is paid for. Sent in the background: no customer waits for what follows from it."""


# The application. It sends, and knows nothing of who listens.


class OvenError(Exception):
    """The oven refuses."""


async def bake(toppings: list[str]) -> None:
    """Take a pizza through the oven."""
    if "pineapple" in toppings:
        raise OvenError("not in this oven")
    await anyio.sleep(0.002)


async def order(request: Request) -> Response:
    """`POST /pizzas` with toppings and size, as JSON."""
    store: Store = request.app.state.store
    background: Background = request.app.state.background
    wish = await request.json()
    entry = Order(wish["toppings"], wish.get("size", 30), price=5 + len(wish["toppings"]))
    async with store.orders.begin() as session:
        session.add(entry)
    await bake(entry.toppings)
    await pizza_done.send(store, number=entry.number, toppings=entry.toppings, size=entry.size)
    await background.send(order_paid, store, number=entry.number, price=entry.price)
    return JSONResponse({"number": entry.number}, status_code=201)


async def look(request: Request) -> Response:
    """`GET /pizzas/7`."""
    store: Store = request.app.state.store
    async with store.orders() as session:
        entry = await session.get(Order, request.path_params["number"])
    return JSONResponse(asdict(entry)) if entry else JSONResponse({"error": "no such pizza"}, status_code=404)


async def watch(_: Request) -> Response:
    """`GET /oven`: look through the oven's window, for as long as you like."""

    async def temperatures() -> AsyncIterator[str]:
        for degrees in count(200):
            yield f"{degrees} °C\n"
            await anyio.sleep(0.02)

    return StreamingResponse(temperatures(), media_type="text/plain; charset=utf-8")


async def welcome(_: Request) -> Response:
    """`GET /`."""
    return HTMLResponse(_WELCOME)


@asynccontextmanager
async def lifespan(application: Starlette) -> AsyncIterator[None]:
    """Open the shop; leaving waits for what is still under way in the background."""
    with tempfile.TemporaryDirectory(prefix="asignals-demo-") as name:
        directory = Path(name)
        async with open_orders(directory / "orders.db") as orders, Background(limit=4) as background:
            application.state.store = Store("Napoli", orders, directory)
            application.state.background = background
            yield


inspector: Inspector = Inspector()  # asks for a token, which `asignals demo --serve` shows with its link

app: Starlette = Starlette(
    routes=[
        Route("/", welcome),
        Route("/pizzas", order, methods=["POST"]),
        Route("/pizzas/{number:int}", look),
        Route("/oven", watch),
        Mount("/signals", inspector),
    ],
    lifespan=lifespan,
)
asgi: SignalMiddleware = SignalMiddleware(app)


# Who listens. All of this could be in other modules, and the application would not change.


@pizza_done.connect(priority=10)
async def note_done(sender: Store, number: int) -> None:
    """An async receiver: it is awaited, before those with a lower priority are called."""
    async with sender.orders.begin() as session:
        entry = await session.get_one(Order, number)
        entry.state = "done"


popularity: Counter[str] = Counter()


@pizza_done.connect
def count_toppings(toppings: list[str]) -> None:
    """A sync receiver: it takes of the arguments those that it names."""
    popularity.update(toppings)


class Display:
    """The display over the counter, with the numbers that were ready last."""

    def __init__(self) -> None:
        self.numbers: deque[int] = deque(maxlen=5)
        pizza_done.connect(self.show)  # a weak reference: a display that dies is disconnected

    def show(self, number: int) -> None:
        """A method as a receiver."""
        self.numbers.append(number)


display: Display = Display()


@order_paid.connect(in_thread=True)
def print_receipt(sender: Store, number: int, price: float) -> None:
    """A receiver that blocks, and so runs in a worker thread."""
    with (sender.directory / "receipts.txt").open("a", encoding="utf-8") as receipts:
        receipts.write(f"{sender.name}, pizza {number}: {price:.2f}\n")


earnings: Counter[int] = Counter()


@post_save.connect(sender=Order, on="commit")
async def book(instance: Order) -> None:
    """Hears of every order that is written, once the transaction is committed: what is rolled back earns nothing."""
    if instance.state == "done":
        earnings[instance.size] += instance.price


@lifespan_started.connect(sender=app)
def open_book(**_: object) -> None:
    """Runs before the first request."""
    popularity.clear()
    earnings.clear()


answers: Counter[int | None] = Counter()


@request_finished.connect(sender=app)
def count_answers(status: int | None) -> None:
    """Hears of every request, also of those that fail and those whose client has left."""
    answers[status] += 1


slowest: list[tuple[float, str]] = []


@request_finished.connect(sender=app)
async def find_slowest(scope: Scope, duration: float) -> None:
    """Keeps the three requests that took longest."""
    slowest.append((duration, scope["path"]))
    slowest.sort(reverse=True)
    del slowest[3:]


complaints: Iterator[int] = count(1)


@got_request_exception.connect(sender=app)
async def apologise(exception: Exception) -> None:
    """A receiver that fails now and then: the log and the table below know, the customer does not."""
    if next(complaints) % 3 == 0:
        raise OSError(f"no ink left to write down {exception!r}")


_WELCOME = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Pizza</title>
<style>
:root { color-scheme: light dark }
body { font: 1.1rem/1.6 system-ui; max-width: 40rem; margin: 2rem auto; padding: 0 1rem }
</style>
<h1>Pizza</h1>
<p><button data-toppings='["basil", "tomato"]'>Order a Margherita</button>
   <button data-toppings='["pineapple"]'>Order a Hawaii</button> <output></output>
<p><a href="/pizzas/1">The first pizza</a> · <a href="/pizzas/0">One that never was</a> · <a href="/oven">The oven</a>
<p><a href="/signals/">What the signals do, live</a> (the terminal shows the link with its token)
<script>
document.onclick = async event => {
  if (!event.target.dataset.toppings) return
  const answer = await fetch("/pizzas", {method: "POST", body: `{"toppings": ${event.target.dataset.toppings}}`})
  document.querySelector("output").value = answer.ok ? `Pizza ${(await answer.json()).number} is ready.` : answer.status
}
</script>
"""
