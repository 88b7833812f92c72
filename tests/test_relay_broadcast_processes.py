"""Broadcasts to several processes: each hears everything, soon; a killed one leaves nothing behind."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import require, unique

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

sys.path.insert(0, str(Path(__file__).parent.parent))
broadcast = pytest.importorskip("benchmarks.broadcast")

from asignals.relay import Envelope  # noqa: E402  the path above is for the benchmark

pytestmark = pytest.mark.anyio

SERVERS = {"jetstream": "nats", "redis": "redis", "rabbitmq": "rabbitmq"}
PROMISED = (
    20.0  # milliseconds from `send` to the receiver, for 99 of 100 events, where the machine has nothing else to do
)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.mark.parametrize("name", SERVERS)
async def test_four_processes_hear_every_event(name: str, long: bool) -> None:  # noqa: FBT001
    """Sent one by one by a fifth; how soon is judged where there is time, and nothing else runs."""
    require(SERVERS[name])
    events = 10_000 if long else 200
    found = await broadcast.run(name, processes=4, events=events, rate=200)
    assert found.heard == [events] * 4
    if long:
        assert found.p99 < PROMISED, found


@pytest.fixture
async def killed(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, Any, str]]:
    """The name of an engine, one like that of a process that was killed while it listened, and its prefix."""
    name: str = request.param
    require(SERVERS[name])
    prefix = unique("bench")
    engine = broadcast.engine(name, prefix)
    command = [sys.executable, "-m", "benchmarks.broadcast", name, "--role", prefix, "--events", "10"]
    root = Path(__file__).parent.parent
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=root)
    assert process.stdout is not None
    try:
        ready = asyncio.create_task(process.stdout.readline())
        async with asyncio.timeout(30):
            while not ready.done():
                await engine.publish_many([probe()])
                await asyncio.sleep(0.1)
        process.kill()
        await process.wait()
        yield name, engine, prefix
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await engine.aclose()
        await broadcast.clean(name, prefix)


def probe() -> Envelope:
    """Make an event by which a process knows that it hears."""
    return Envelope(broadcast.TOPIC, b'{"number": %d, "sent_at": 0.0}' % broadcast.PROBE, origin="shop/one")


@pytest.mark.parametrize("killed", SERVERS, indirect=True)
async def test_a_killed_listener_leaves_nothing_behind(killed: tuple[str, Any, str]) -> None:
    """No consumer, group or queue is left with the engine that would keep events for it."""
    name, engine, prefix = killed
    await _LEFT[name](engine, prefix)


async def _nats_has_no_consumer(engine: Any, prefix: str) -> None:
    client = await engine._connected()
    infos = await client.jsm().streams_info()
    found = {info.config.name: info.state.consumer_count for info in infos if info.config.name.startswith(prefix)}
    assert found[prefix] == 0
    assert not any(found.values())


async def _redis_has_no_group(engine: Any, prefix: str) -> None:
    client = engine._client()
    streams = [key async for key in client.scan_iter(f"{{{prefix}}}:events:*")]
    assert streams
    for stream in streams:
        assert await client.xinfo_groups(stream) == []


async def _rabbitmq_has_no_queue(engine: Any, prefix: str) -> None:
    """What is published is put where events go that nobody receives: no queue takes it any more."""
    unrouted = f"{prefix}.unrouted"

    async def count() -> int:
        return int(await engine._count(unrouted) or 0)

    async with asyncio.timeout(60):
        before = await count()
        while await count() == before:
            with suppress(ConnectionError):
                await engine.publish_many([probe()])


_LEFT: dict[str, Callable[[Any, str], Any]] = {
    "jetstream": _nats_has_no_consumer,
    "redis": _redis_has_no_group,
    "rabbitmq": _rabbitmq_has_no_queue,
}
