"""The program that the browser's tests look at, in a process of its own: its page shows its own signals only.

The functions below are called in that process, by `concurrent.futures`; one browser's test after the other uses it.
"""

import gc
import itertools
import socket
import threading
import time
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from asignals import Background, Signal
from asignals.inspector import Inspector, _app

EVIL = "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"
LONG = f"shop.{'a_very_long_name' * 8}"


class Shop:
    """Two signals, one of which has a receiver that may fail."""

    def __init__(self) -> None:
        self.paid = Signal(["order"], name="shop.paid", doc="An order was paid, see `ship`.")
        self.shipped = Signal(name="shop.shipped")
        self.paid.connect(self.book, priority=2)
        self.paid.connect(self.ship)
        self.more: list[Signal] = []

    async def book(self, **named: Any) -> None:
        await anyio.sleep(0.01)

    async def ship(self, order: int, **named: Any) -> None:
        await anyio.sleep(0.02)
        if order == 13:
            message = "no parcel for thirteen"
            raise LookupError(message)

    def add(self, signal: Signal) -> Signal:
        """Keep a signal, with a receiver."""
        self.more.append(signal)
        signal.connect(self.ship)
        return signal


class Rude:
    def __repr__(self) -> str:
        raise ValueError


class Program:
    """A shop and an inspector, new for each test, behind one address."""

    def __init__(self) -> None:
        self.shop = Shop()
        self.inspector = Inspector(allow=lambda _: True)
        self.streams: list[int] = []
        app = Starlette(routes=[Mount("/signals", self.serve)])
        config = uvicorn.Config(app, lifespan="off", log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        await self.inspector(scope, receive, send)


_program: Program | None = None


def program() -> Program:
    assert _program is not None
    return _program


def start() -> str:
    """Serve, and return the page's address."""
    global _program  # noqa: PLW0603  one for the process
    _program = Program()
    _program.thread.start()
    _app.TICK = 0.05  # type: ignore[misc]  # for tests that wait for it
    return f"http://127.0.0.1:{_program.socket.getsockname()[1]}/signals/"


def stop() -> bool:
    """End the server; whether it ended."""
    program().server.should_exit = True
    program().thread.join(60)
    program().socket.close()
    return not program().thread.is_alive()


def renew(lifetime: int) -> None:
    """Open a new shop and a new inspector, whose streams last so many ticks; nothing of the old ones is left."""
    one = program()
    _app.LIFETIME = lifetime  # type: ignore[misc]  # as above
    one.shop = Shop()
    one.inspector = Inspector(allow=lambda _: True)
    one.streams = []
    watch = one.inspector._watch
    one.inspector._watch = lambda seen: one.streams.append(seen) or watch(seen)  # type: ignore[method-assign, func-returns-value]  # counts
    gc.collect()


def send(name: str, sender: object = "web", **arguments: object) -> None:
    """Send a signal of the shop."""
    anyio.run(lambda: getattr(program().shop, name).send_robust(sender, **arguments))


def send_hostile() -> None:
    """Send what is markup, what is ten megabytes long, and what cannot be shown."""
    signal = program().shop.add(Signal(name=f"shop.{EVIL}", doc=EVIL))
    values = {"order": 1, "markup": EVIL, "long": "x" * 10_000_000, "rude": Rude(), EVIL: EVIL}
    anyio.run(lambda: signal.send_robust(EVIL, **values))


def send_wide() -> None:
    """Send what has long names and fails."""
    signal = program().shop.add(Signal(name=LONG, doc="word " * 40))
    anyio.run(lambda: signal.send_robust("x" * 150, order=13, **{"b" * 100: "y" * 300}))


def crowd(count: int) -> None:
    """Make many signals that nobody sends."""
    program().shop.more += [Signal(name=f"crowd.{number}") for number in range(count)]


def restart() -> None:
    """Make the page believe that this is another run of the program, which has sent nothing yet."""
    program().inspector._run = "restarted"
    program().inspector._recorder._sends.clear()


def is_watching() -> bool:
    """Whether somebody looks."""
    return program().inspector.is_watching


def streams() -> list[int]:
    """The numbers after which the streams so far began."""
    return program().streams


def send_tree() -> None:
    """Send what leads to other sends: in a receiver, in a task group, and in a background after it has ended."""
    shop = program().shop
    more = {name: Signal([], name=f"shop.orders.{name}") for name in ("placed", "charged", "mailed", "counted")}
    shop.more += more.values()

    async def run() -> None:
        async with Background() as background:

            async def place(**_: Any) -> None:
                await more["charged"].send(None)
                await background.send(more["counted"], None)

            async def charge(**_: Any) -> None:
                await anyio.sleep(0.01)
                async with anyio.create_task_group() as group:
                    group.start_soon(more["mailed"].send, None)

            more["placed"].connect(place)
            more["charged"].connect(charge)
            await more["placed"].send(None)

    anyio.run(run)


def enlarge(signals: int, receivers: int) -> None:
    """Make a large program: so many signals with so many receivers altogether."""
    shop = program().shop

    def receiver_of(number: int) -> Any:
        def receiver(**_: Any) -> None: ...

        receiver.__qualname__ = f"Receiver.on_{number}"
        return receiver

    for number in range(signals):
        signal = Signal(["number"], name=f"large.part{number % 12}.module.signal_{number}", doc="Something happened.")
        for each in range(receivers // signals):
            signal.connect(receiver_of(each), weak=False)
        shop.more.append(signal)


def flood(per_second: int, duration: float) -> float:
    """Send that many a second, of all signals by turns; returns how many there were a second in fact."""
    signals = itertools.cycle(program().shop.more)

    async def run() -> float:
        start = time.perf_counter()
        count = 0
        while (passed := time.perf_counter() - start) < duration:
            while count < passed * per_second:
                await next(signals).send(None, number=count)
                count += 1
            await anyio.sleep(0.005)
        return count / duration

    return anyio.run(run)
