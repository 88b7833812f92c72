"""The command `asignals demo --workers N`: so many processes serve the page of `live`, each at its own port."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio
import uvicorn

from asignals.demo.engines import NOTHING, own_place, transport_for
from asignals.demo.orders import open_orders
from asignals.masking import said

_PATIENCE = 5.0  # seconds that a worker may take to end, before it is killed
_AT_LEAST = 2.0  # seconds that a worker runs before it is started again when it dies


def run_workers(count: int, relay: str | None = None) -> int:
    """Serve until `SIGINT` (Ctrl-C) or `SIGTERM`; returns the exit status, 1 if a worker cannot start.

    A worker that dies is started again. `relay` is the URL of an engine; by default, an SQLite file.
    """
    return anyio.run(_run, count, relay or NOTHING)


async def _run(count: int, url: str) -> int:
    with tempfile.TemporaryDirectory(prefix="asignals-demo-") as directory:
        url = f"sqlite+aiosqlite:///{directory}/relay.db" if url == NOTHING else url
        async with _prepared(Path(directory) / "orders.db", url) as environment:
            stopped = asyncio.create_task(_stopped())
            print(f"{count} processes serve one shop. Open their pages, and order on one of them:")  # noqa: T201
            workers = [asyncio.create_task(_Worker(port, environment).run()) for port in _free_ports(count)]
            tasks = [stopped, *workers]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait(tasks)
            return 0 if stopped in done else 1


async def _stopped() -> None:
    """Wait for a signal; on Windows, where no event loop can do this, Ctrl-C ends the program by itself."""
    if sys.platform == "win32":
        await anyio.sleep_forever()
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        await anext(received)


@asynccontextmanager
async def _prepared(database: Path, url: str) -> AsyncIterator[dict[str, str]]:
    """Create what the workers need; gives the variables by which they know of it."""
    async with AsyncExitStack() as stack:
        with _refused():
            transport_for(url, "shop")
            name = await stack.enter_async_context(own_place(url))
            os.environ.update(ASIGNALS_DEMO_DATABASE=str(database), ASIGNALS_DEMO_RELAY=url, ASIGNALS_DEMO_NAME=name)
            from asignals.demo.live import relay  # noqa: PLC0415  it reads the environment

            stack.push_async_callback(relay.aclose)
            await relay.init()
        await stack.enter_async_context(open_orders(database))
        yield {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        sys.stderr.write(f"asignals: the demo cannot use this --relay: {said(error)}\n")
        raise SystemExit(2) from error


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in listeners]
    for each in listeners:
        each.close()
    return ports


class _Worker:
    """One process, started again whenever it dies."""

    def __init__(self, port: int, environment: dict[str, str]) -> None:
        self._port = port
        self._environment = environment

    async def run(self) -> None:
        """Keep it running until cancelled; returns if it cannot start."""
        while True:
            begun = anyio.current_time()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "asignals.demo.workers", str(self._port)),
                stdin=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
            try:
                if await self._is_open(process):
                    print(f"  http://127.0.0.1:{self._port}  process {process.pid}", flush=True)  # noqa: T201
                await process.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    await _stop(process)
            if anyio.current_time() - begun < _AT_LEAST:
                sys.stderr.write(f"asignals: the worker at port {self._port} ended at once ({process.returncode})\n")
                return

    async def _is_open(self, process: asyncio.subprocess.Process) -> bool:
        """Wait until the worker answers; false where it ends instead."""
        while process.returncode is None:
            with suppress(OSError):
                async with await anyio.connect_tcp("127.0.0.1", self._port):
                    return True
            await anyio.sleep(0.05)
        return False


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()  # by which it knows that it is to end
    with anyio.move_on_after(_PATIENCE):
        await process.wait()
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


class _Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the pages' streams first."""
        from asignals.demo.live import end_pages  # noqa: PLC0415  a worker's variables are not those of the demo

        await end_pages()
        await super().shutdown(sockets)


def serve(port: int) -> None:
    """Be one worker, until the standard input ends: so also when the demo itself was killed."""
    config = uvicorn.Config("asignals.demo.live:app", port=port, log_level="warning", timeout_graceful_shutdown=1)
    server = _Server(config)

    def end_with_the_demo() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=end_with_the_demo, daemon=True).start()
    server.run()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
