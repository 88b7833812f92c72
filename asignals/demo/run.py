"""The command `asignals demo`: open the shop, send customers, and show what the signals did."""

import asyncio
import json
import logging
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import uvicorn
from anyio.abc import TaskStatus
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from asignals import monitor
from asignals.demo import shop
from asignals.demo.customers import send_customers
from asignals.demo.report import Tally

if TYPE_CHECKING:
    from asignals.demo.kitchen import NextDoor


def run(*, requests: int, serve: bool, as_json: bool, relay: str | None = None) -> int:
    """Run the demo; returns the exit status.

    `relay` is the URL of an engine, or `sqlite`: a kitchen in a separate process then hears of the pizzas.

    It is 0 if every request that started has finished, else 1. A `SIGINT` (Ctrl-C) or `SIGTERM` closes the shop in good
    order; where it interrupts the customers, the status is 128 plus its number, as shells have it.
    """
    try:
        return anyio.run(_Demo(requests, serve=serve, as_json=as_json, relay=relay).main)
    except BaseExceptionGroup as group:
        if group.split(SystemExit)[1] is not None:
            raise
        return 1  # nobody reads the output any more: rich then ends the program, from within the task group


class _Demo:
    def __init__(self, requests: int, *, serve: bool, as_json: bool, relay: str | None) -> None:
        self.requests = requests
        self.serve = serve
        self.as_json = as_json
        self.relay = relay
        self.kitchen: NextDoor | None = None
        self.output = Console()
        self.messages = Console(stderr=True) if as_json else self.output
        self.tally = Tally()
        self.ends: Counter[str] = Counter()
        self.interrupted_by = 0

    async def main(self) -> int:
        with monitor(self.tally):
            async with open_shop() as url, self.open_kitchen(), anyio.create_task_group() as tasks:
                await tasks.start(self.listen_for_signals, tasks.cancel_scope)
                await self.do_business(url)
                if self.kitchen is not None:
                    await self.kitchen.catch_up()
                tasks.cancel_scope.cancel()
        self.show()
        if self.interrupted_by and self.ends.total() < self.requests:
            return 128 + self.interrupted_by
        return 0 if self.tally.is_proven else 1

    @asynccontextmanager
    async def open_kitchen(self) -> AsyncIterator[None]:
        """Open the kitchen next door, if one is wanted."""
        if self.relay is None:
            yield
            return
        from asignals.demo.kitchen import next_door  # noqa: PLC0415  needs the extra of its engine

        async with next_door(self.relay) as self.kitchen:
            yield

    async def listen_for_signals(self, scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        if sys.platform == "win32":
            task_status.started()
            return  # no event loop can do this there; Ctrl-C then ends the demo without a table
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            task_status.started()
            async for number in received:
                self.interrupted_by = number
                scope.cancel()

    async def do_business(self, url: str) -> None:
        self.messages.print(f"The pizza shop is open at {url}")
        with self.progress() as progress:
            bar = progress.add_task("requests", total=self.requests)

            def served(end: str) -> None:
                self.ends[end] += 1
                progress.advance(bar)

            await send_customers(url, self.requests, served)
        if self.serve:
            self.messages.print(self.tally.table())
            self.messages.print(f"See its signals live at {url}/signals/?token={shop.inspector.token}", soft_wrap=True)
            self.messages.print(f"It stays open for you: visit {url} or curl it; Ctrl-C closes it.")
            await anyio.sleep_forever()

    def progress(self) -> Progress:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        return Progress(*columns, console=self.messages)

    def show(self) -> None:
        if self.as_json:
            print(json.dumps(self.as_dict(), indent=2))  # noqa: T201  whole lines, which rich would wrap
            return
        self.output.print(self.tally.table())
        ends = ", ".join(f"{end}: {count}" for end, count in sorted(self.ends.items()))
        self.output.print(f"how the customers' requests ended: {ends or 'there were none'}")
        self.output.print(self.tally.proof())
        if self.kitchen is not None:
            self.output.print(self.kitchen.proof())

    def as_dict(self) -> dict[str, Any]:
        figures = {"requests": self.ends.total(), "ends": dict(self.ends), **self.tally.as_dict()}
        if self.kitchen is not None:
            kitchen = self.kitchen
            figures["kitchen"] = {"name": kitchen.name, "sent": kitchen.sent, "heard": kitchen.heard}
        return figures


@asynccontextmanager
async def open_shop() -> AsyncIterator[str]:
    """Serve the shop on a free port of this machine, for a block, which gets its address.

    Leaving the block, whatever the reason, ends the requests under way, and waits until they and the shop's lifespan
    have ended. If the shop cannot open, the program ends.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Server(uvicorn.Config(shop.asgi, lifespan="on", log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.create_task(server.serve([listener]))
        while not (server.started or serving.done()):  # noqa: ASYNC110  uvicorn has no event for it
            await anyio.sleep(0.01)
        if not server.started:
            sys.exit("asignals: the pizza shop could not open")
        # Errors of receivers and of handlers are a part of the show, and counted in the table.
        with _quiet("asignals", "uvicorn.error"):
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                with anyio.CancelScope(shield=True):
                    await serving
                    while tasks := server.server_state.tasks:  # cancelled by now, but not all have come to their end
                        await asyncio.wait(tasks)


class _Server(uvicorn.Server):
    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `should_exit`; or not at all, and `started` stays false, when the shop cannot open."""
        with suppress(SystemExit):  # raised when the lifespan fails; in a task it would tear down the event loop
            await super().serve(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's signals to the demo, which has something to show after them."""
        yield


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    disabled = [logger for logger in map(logging.getLogger, loggers) if not logger.disabled]
    for logger in disabled:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in disabled:
            logger.disabled = False
