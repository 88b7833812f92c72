"""The kitchen of the demo, a separate process: it hears `pizza_done` of the shop through a relay (`--relay URL`)."""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from asignals.demo.engines import NOTHING, own_place, transport_for
from asignals.demo.shop import Store, pizza_done
from asignals.relay import Relay
from asignals.relay.worker import run_worker

TOPIC = "pizza.done"
_TAKE_IN = 30.0  # seconds that the kitchen may take to hear of the last pizzas


def _senders() -> tuple[Any, Any]:
    """A shop crosses as its name."""

    def dump(store: Store) -> str:
        return store.name

    def load(name: str | None) -> str | None:
        return name

    return dump, load


class NextDoor:
    """The kitchen as the shop sees it; `name` is what this run calls itself on the engine."""

    def __init__(self, process: asyncio.subprocess.Process, relay: Relay, name: str) -> None:
        self._process = process
        self._relay = relay
        self.name = name
        self.heard: int = 0

    @property
    def sent(self) -> int:
        """How many pizzas were announced."""
        return self._relay.health().published

    async def listen(self) -> None:
        """Count the pizzas that the kitchen reports, until it has closed."""
        assert self._process.stdout is not None  # noqa: S101  it is a pipe
        async for line in self._process.stdout:
            self.heard += line.startswith(b"heard ")

    async def catch_up(self) -> None:
        """Wait until the kitchen has heard of all pizzas."""
        with anyio.move_on_after(_TAKE_IN):
            while self.heard < self.sent:  # noqa: ASYNC110  another process counts
                await anyio.sleep(0.02)

    def proof(self) -> str:
        """Say how many it heard of how many."""
        return f"the kitchen, process {self._process.pid}, heard of {self.heard} of {self.sent} pizzas"


@asynccontextmanager
async def next_door(url: str) -> AsyncIterator[NextDoor]:
    """Open the kitchen in a separate process for the length of a block; `sqlite` needs no server.

    A URL that no known engine can use ends the program, with status 2.
    """
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite+aiosqlite:///{directory}/relay.db" if url == NOTHING else url
        try:
            transport_for(url, "kitchen")
        except Exception as error:
            raise _refusal(error) from error
        async with own_place(url) as name:
            relay = Relay(transport_for(url, name), "shop", sender_codec=_senders())
            relay.export(pizza_done, TOPIC)
            try:
                async with _open(relay, url, name) as door:
                    yield door
            finally:
                relay.stop_exporting(pizza_done)


def _refusal(error: Exception) -> SystemExit:
    sys.stderr.write(f"asignals: the demo cannot use this --relay: {type(error).__name__}: {error}\n")
    return SystemExit(2)


@asynccontextmanager
async def _open(relay: Relay, url: str, name: str) -> AsyncIterator[NextDoor]:
    kitchen = Relay(relay.transport, "kitchen", sender_codec=_senders())
    kitchen.receive(pizza_done, TOPIC)
    try:
        await kitchen.init()  # before the first pizza: who is not known is not told
    except Exception as error:
        raise _refusal(error) from error
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    command = [sys.executable, "-m", "asignals.demo.kitchen", url, name]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env=environment, start_new_session=True
    )
    door = NextDoor(process, relay, name)
    listening = asyncio.create_task(door.listen())
    try:
        async with relay:
            yield door
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                process.terminate()
            await process.wait()
            await listening


async def cook(url: str, name: str) -> None:
    """Be the kitchen, until SIGTERM."""
    relay = Relay(transport_for(url, name), "kitchen", sender_codec=_senders())
    relay.receive(pizza_done, TOPIC)

    def put_on_the_pass(number: int, **_: Any) -> None:
        print("heard", number, flush=True)  # noqa: T201  the shop reads it

    for connection in pizza_done.connections:  # the shop's receivers are for the shop
        pizza_done.disconnect(connection.receiver, connection.sender, connection.dispatch_uid)
    with pizza_done.connected(put_on_the_pass):
        await run_worker(relay)


if __name__ == "__main__":
    asyncio.run(cook(*sys.argv[1:3]))
