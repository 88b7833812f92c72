"""Servers in processes of their own on loopback, and a client that asks them over real sockets."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

CONNECTIONS = 4


@contextlib.contextmanager
def server(module: str, *arguments: str) -> Iterator[int]:
    """Run a module that serves on the port of its option `--port`, for a block; gives the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", module, *arguments, "--port", str(port)])  # noqa: S603  ours
    try:
        while True:
            assert process.poll() is None, f"{module} has ended"
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def head(method: str, path: str, length: int = 0, more: str = "X-Nothing: more") -> bytes:
    """The head of a request, with one more header."""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\nContent-Length: {length}\r\n\r\n".encode()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Send a request on an open connection, and return the body of the answer."""
    writer.write(request)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 20"), answer
    length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return await reader.readexactly(int(length.partition(b":")[2]))


async def get(port: int, path: str) -> bytes:
    """The body of one page."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = await exchange(reader, writer, head("GET", path))
    writer.close()
    return body


async def load(port: int, request: bytes, requests: int, answer: bytes | None = None) -> tuple[float, float]:
    """Ask so often, on some connections at once; returns the seconds, and the server's processor seconds, per request.

    Every answer has to be `answer`. The server says at `/used` what processor time it has used.
    """

    async def client(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count):
            body = await exchange(reader, writer, request)
            assert answer in (None, body), body
        writer.close()

    before, start = float(await get(port, "/used")), time.perf_counter()
    await asyncio.gather(*(client(requests // CONNECTIONS) for _ in range(CONNECTIONS)))
    took = time.perf_counter() - start
    return took / requests, (float(await get(port, "/used")) - before) / requests
