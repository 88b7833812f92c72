"""The engines that `--relay URL` may name, each used under a name that is this run's own and is removed after it."""

import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import anyio

NOTHING = "sqlite"  # what to say for a file that is made, and removed, by the demo


_NAMED_BY = {"nats": "stream", "redis": "prefix", "amqp": "name", "sqlite": None, "postgresql": "schema"}


def transport_for(url: str, name: str) -> Any:
    """Choose the engine by a URL's scheme; raises `ValueError` for one that is not known."""
    from asignals.masking import redacted  # noqa: PLC0415
    from asignals.relay import engine_from_url  # noqa: PLC0415  not every run has a relay

    scheme = _scheme(url)
    if scheme not in _NAMED_BY:
        raise ValueError(
            f"--relay takes sqlite, or a URL of nats, redis, amqp, postgresql or sqlite, not {redacted(url)!r}"
        )
    option = _NAMED_BY[scheme]
    return engine_from_url(url, **({option: name} if option else {}))


def _scheme(url: str) -> str:
    """Give a URL's scheme without the driver, and without the mark of TLS."""
    scheme = urlsplit(url).scheme.partition("+")[0]
    return {"rediss": "redis", "amqps": "amqp"}.get(scheme, scheme)


@asynccontextmanager
async def own_place(url: str) -> AsyncIterator[str]:
    """Give a name that no other run uses, and remove at the end what was made under it; a file stays as it is."""
    from asignals.masking import redacted, said  # noqa: PLC0415  not every run has a relay

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
                    print(f"asignals: {name!r} stays at {redacted(url)} ({said(error)})", file=sys.stderr)  # noqa: T201


async def _remove_streams(url: str, name: str) -> None:
    import nats  # noqa: PLC0415
    from nats.js.errors import NotFoundError  # noqa: PLC0415

    client = await nats.connect(url, allow_reconnect=False)
    for stream in (name, f"{name}-dead", f"{name}-instances", f"{name}-owners", f"KV_{name}-inbox"):
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

    from asignals.relay import RabbitMQ  # noqa: PLC0415

    engine = RabbitMQ(url, name=name)
    await engine.forget_service("kitchen")
    await engine.aclose()
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in ("dead.dlq.kitchen", "services", "unrouted"):
            await channel.queue_delete(f"{name}.{queue}")
        for exchange in (name, f"{name}.unrouted"):
            await channel.exchange_delete(exchange)


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
