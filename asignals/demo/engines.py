"""The engines that `--relay URL` may name, each used under a name that is this run's own and is removed after it."""

import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import anyio

NOTHING = "sqlite"  # what to say for a file that is made, and removed, by the demo


def transport_for(url: str, name: str) -> Any:
    """Choose the engine by a URL's scheme; raises `ValueError` for one that is not known."""
    scheme = _scheme(url)
    if scheme == "nats":
        from asignals.relay import JetStream  # noqa: PLC0415  each engine needs its own extra

        return JetStream(url, stream=name)
    if scheme == "redis":
        from asignals.relay import RedisStreams  # noqa: PLC0415

        return RedisStreams(url, prefix=name)
    if scheme == "amqp":
        from faststream.rabbit import RabbitBroker  # noqa: PLC0415

        from asignals.relay import FastStreamTransport  # noqa: PLC0415

        return FastStreamTransport(RabbitBroker(url), name=name)
    if scheme in ("sqlite", "postgresql"):
        from asignals.relay import Database  # noqa: PLC0415

        return Database(url, schema=name if scheme == "postgresql" else None)
    msg = f"--relay takes sqlite, or a URL of nats, redis, amqp, postgresql+asyncpg or sqlite+aiosqlite, not {url!r}"
    raise ValueError(msg)


def _scheme(url: str) -> str:
    """Give a URL's scheme without the driver, and without the mark of TLS."""
    scheme = urlsplit(url).scheme.partition("+")[0]
    return {"rediss": "redis", "amqps": "amqp"}.get(scheme, scheme)


@asynccontextmanager
async def own_place(url: str) -> AsyncIterator[str]:
    """Give a name that no other run uses, and remove at the end what was made under it; a file stays as it is."""
    name = f"asignals_demo_{secrets.token_hex(4)}"
    if _scheme(url) == "postgresql":
        await _execute(url, f"CREATE SCHEMA {name}")
    try:
        yield name
    finally:
        remove = _REMOVERS.get(_scheme(url))
        if remove is not None:
            with anyio.CancelScope(shield=True):
                try:
                    await remove(url, name)
                except Exception as error:  # noqa: BLE001  the show is over; whoever runs the server should know
                    print(f"asignals: {name!r} stays at {url} ({error})", file=sys.stderr)  # noqa: T201


async def _remove_streams(url: str, name: str) -> None:
    import nats  # noqa: PLC0415
    from nats.js.errors import NotFoundError  # noqa: PLC0415

    client = await nats.connect(url, allow_reconnect=False)
    for stream in (name, f"{name}-dead", f"KV_{name}-inbox"):
        with suppress(NotFoundError):
            await client.jsm().delete_stream(stream)
    await client.close()


async def _remove_keys(url: str, name: str) -> None:
    from redis.asyncio import Redis  # noqa: PLC0415

    async with Redis.from_url(url) as client:
        async for key in client.scan_iter(f"{{{name}}}:*", count=1000):
            await client.delete(key)


async def _remove_queues(url: str, name: str) -> None:
    import aio_pika  # noqa: PLC0415

    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in ("kitchen", "dead.dlq.kitchen"):
            await channel.queue_delete(f"{name}.{queue}")
        await channel.exchange_delete(name)


async def _remove_schema(url: str, name: str) -> None:
    await _execute(url, f"DROP SCHEMA {name} CASCADE")


async def _execute(url: str, statement: str) -> None:
    from sqlalchemy import text  # noqa: PLC0415
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


_REMOVERS: dict[str, Callable[[str, str], Awaitable[None]]] = {
    "nats": _remove_streams,
    "redis": _remove_keys,
    "amqp": _remove_queues,
    "postgresql": _remove_schema,
}
