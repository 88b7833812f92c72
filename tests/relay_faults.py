"""A TCP proxy between a relay and its servers that can be cut, silent and slow, as networks are."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_BLOCK = 65_536


class Proxy:
    """Passes bytes on to one server, until it is told otherwise; in the event loop of the test.

    - `cut()`: all connections are closed, and new ones refused;
    - `silence()`: connections stay open, and new ones are accepted, but nothing passes (half-open): what is sent
      meanwhile is lost for good, as after a router has forgotten its connections;
    - `slow(seconds)`: each piece takes so long;
    - `restore()`: all is well again. A connection that was silent stays so.

    A broker of Kafka tells its clients its own address, to which they then connect: `hide` puts that of the proxy in
    its place, in whatever the server says.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_silent = False
        self._delay = 0.0
        self._hidden: tuple[bytes, bytes] | None = None
        self.port = 0
        self.connections = 0

    def hide(self, host: str, port: int) -> None:
        """Write our port for the server's where it stands behind the host's name, as a number of four bytes."""
        self._hidden = host.encode() + port.to_bytes(4), host.encode() + self.port.to_bytes(4)

    async def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Close everything, and refuse what comes."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def silence(self) -> None:
        """Let nothing pass, without a word."""
        self._is_silent = True

    def slow(self, seconds: float) -> None:
        """Let each piece take so long."""
        self._delay = seconds

    async def restore(self) -> None:
        """Be a good network to new connections."""
        self._is_silent, self._delay = False, 0.0
        if self._server is None:
            await self.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        other: asyncio.StreamWriter | None = None
        try:
            with suppress(OSError):
                back, other = await asyncio.open_connection(*self._target)
                self._writers.add(other)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass(reader, other))
                    group.create_task(self._pass(back, writer))
        except asyncio.CancelledError:
            pass  # cut
        finally:
            self._tasks.discard(task)
            for end in (writer, other):
                if end is not None:
                    self._writers.discard(end)
                    end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_lost = False
        with suppress(OSError):
            while data := await reader.read(_BLOCK):
                is_lost = is_lost or self._is_silent
                if is_lost:
                    continue
                if self._delay:
                    await asyncio.sleep(self._delay)
                if self._hidden is not None:
                    data = data.replace(*self._hidden)
                writer.write(data)
                await writer.drain()
            if not is_lost and writer.can_write_eof():
                writer.write_eof()


@asynccontextmanager
async def proxied(url: str, default_port: int = 5432) -> AsyncIterator[tuple[str, Proxy]]:
    """Put a proxy before the server of a URL; gives the URL by way of it, and the proxy."""
    parts = urlsplit(url)
    proxy = Proxy(parts.hostname or "127.0.0.1", parts.port or default_port)
    await proxy.start()
    user, at, _ = parts.netloc.rpartition("@")
    try:
        yield urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{proxy.port}")), proxy
    finally:
        await proxy.cut()
