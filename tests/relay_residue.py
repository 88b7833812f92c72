"""What tests make on shared servers: removed behind each test, and after a killed run by the next session.

What is made is noted in a file first. A note whose process is gone means that nobody has removed it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NOTES: Final = Path(os.environ.get("ASIGNALS_TEST_NOTES", f"{tempfile.gettempdir()}/asignals-tests-{os.getuid()}"))
_LIMIT: Final = 20.0  # seconds that removing one thing may take


@asynccontextmanager
async def removed(service: str, name: str) -> AsyncIterator[None]:
    """Remove what a service has of this name when the block is left: a schema, a database, streams, keys, queues."""
    note = NOTES / f"{os.getpid()}.{service}.{name}"
    NOTES.mkdir(exist_ok=True)
    note.touch()
    if service == "rabbitmq":
        record_queues()
    try:
        yield
    finally:
        await _REMOVE[service](name, note)
        note.unlink(missing_ok=True)


async def sweep() -> list[str]:
    """Remove what processes that are gone have left; returns the names."""
    swept = []
    for note in sorted(NOTES.glob("*.*.*")):
        pid, service, name = note.name.split(".", 2)
        if _is_alive(int(pid)):
            continue
        with suppress(Exception):  # a server that is not there now: the next session tries again
            async with asyncio.timeout(_LIMIT):
                await _REMOVE[service](name, note)
            note.unlink(missing_ok=True)
            swept.append(name)
    return swept


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def die_with_parent() -> None:
    """Have a child process end when its parent is killed (Linux); for `preexec_fn`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def record_queues() -> None:
    """Write the queues that this process declares into the notes: RabbitMQ does not list them to its clients."""
    from aio_pika import Channel

    declare: Any = Channel.declare_queue
    if hasattr(declare, "before"):
        return

    async def declare_queue(self: Any, name: Any = None, **options: Any) -> Any:
        for note in NOTES.glob(f"*.rabbitmq.{str(name).partition('.')[0]}"):
            with note.open("a") as file:
                file.write(f"{name}\n")
        return await declare(self, name, **options)

    declare_queue.before = declare  # type: ignore[attr-defined]
    Channel.declare_queue = declare_queue  # type: ignore[method-assign]


async def _remove_schema(name: str, _note: Path) -> None:
    await _run("postgres", f'DROP SCHEMA IF EXISTS "{name}" CASCADE')


async def _remove_database(name: str, _note: Path) -> None:
    await _run("mariadb", f"DROP DATABASE IF EXISTS {name}")


async def _run(service: str, statement: str) -> None:
    from relay_support import require
    from sqlalchemy import make_url, text
    from sqlalchemy.ext.asyncio import create_async_engine

    url = make_url(require(service))
    engine = create_async_engine(url.set(drivername="mariadb+aiomysql") if service == "mariadb" else url)
    async with engine.begin() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


async def _remove_streams(name: str, _note: Path) -> None:
    import nats
    from relay_support import require

    client = await nats.connect(require("nats"))
    manager = client.jsm()
    for stream in (name, f"{name}-dead", f"{name}-instances", f"{name}-owners", f"KV_{name}-inbox"):
        with suppress(nats.js.errors.NotFoundError):
            await manager.delete_stream(stream)
    await client.close()


async def _remove_keys(name: str, _note: Path) -> None:
    from redis.asyncio import Redis
    from relay_support import require

    async with Redis.from_url(require("redis")) as client:
        keys = [key async for key in client.scan_iter(f"{{{name}}}:*", count=1000)]
        if keys:
            await client.delete(*keys)


async def _remove_queues(name: str, note: Path) -> None:
    import aio_pika
    from relay_support import require

    queues = {*note.read_text().split(), f"{name}.unrouted"}  # noqa: ASYNC240  a few names
    async with await aio_pika.connect(require("rabbitmq")) as connection:
        channel = await connection.channel()
        for queue in sorted(queues):
            await channel.queue_delete(queue)
        for exchange in (name, f"{name}.unrouted", f"{name}.listeners"):
            await channel.exchange_delete(exchange)


_REMOVE: Final = {
    "postgres": _remove_schema,
    "mariadb": _remove_database,
    "nats": _remove_streams,
    "redis": _remove_keys,
    "rabbitmq": _remove_queues,
}
