"""What the engines say of a topic that a service receives: how much waits, how old it is, and who is there."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal as signals
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import ENGINES, World, world

from asignals.relay import Delivery, Envelope, TopicFigures
from asignals.relay._monitoring import figures
from asignals.relay._monitoring.figures import Figures, held_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

NOT_TOLD = {  # by engine, what its protocol does not tell; the docs say so, too
    "rabbitmq": {"oldest", "in_flight"},
    "kafka": {"in_flight", "retries"},
}


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(params=[*ENGINES, "kafka"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world of its own for every test, on every engine."""
    async with world(request.param, tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def _quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats come every five seconds; the tests do not wait for them."""
    monkeypatch.setattr(figures, "BEAT", 0.05)


class Hands:
    """Holds what comes: `letters` until it is let go, others until they are told to come again after a minute."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.held = 0

    async def __call__(self, delivery: Delivery) -> float | None:
        if Envelope.decode(delivery.data).body == b"again":
            return 60.0
        self.held += 1
        await self.let_go.wait()
        return None


@asynccontextmanager
async def consuming(transport: Any, hands: Hands, instance: str) -> AsyncIterator[None]:
    """Consume two topics for the length of a block."""
    task = asyncio.create_task(transport.consume("billing", instance, ["numbers", "letters"], hands, limit=10))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def figures_when(
    transport: Any, is_it: Callable[[TopicFigures], object], topic: str = "numbers", within: float = 60.0
) -> TopicFigures:
    """Ask until the figures are as they must become: engines count with a delay."""
    found: Any = None
    try:
        async with asyncio.timeout(within):
            while True:
                found = {one.topic: one for one in await transport.figures("billing")}
                if topic in found and is_it(found[topic]):
                    return found[topic]
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"the figures stay {found}")


def told(engine: World, figure: str) -> bool:
    return figure not in NOT_TOLD.get(engine.name, ())


@pytest.mark.slow
async def test_figures_follow_what_happens(engine: World) -> None:
    """What waits, what is in flight, what waits for its retry, its age, and the instances, topic by topic."""
    transport = engine.open()
    assert isinstance(transport, Figures)
    await transport.add_service("billing", ["numbers", "letters"])
    empty = await figures_when(transport, lambda one: one.backlog == 0)
    assert empty.instances == 0 or (engine.name == "kafka" and empty.instances is None)
    assert empty.oldest == 0.0
    await transport.publish_many([Envelope("numbers", b"%d" % number) for number in range(3)])
    await transport.publish_many([Envelope("numbers", b"again"), Envelope("letters", b"a")])
    waiting = await figures_when(transport, lambda one: one.backlog == 4)
    if told(engine, "oldest"):
        assert waiting.oldest is not None
        assert 0.0 <= waiting.oldest < 60.0
        older = await figures_when(transport, lambda one: one.oldest > waiting.oldest)
        assert older.oldest < 60.0
    hands = Hands()
    other = engine.open()
    async with consuming(other, hands, "one"):
        full = await figures_when(
            transport,
            lambda one: (
                hands.held == 4
                and one.in_flight == (3 if told(engine, "in_flight") else None)
                and one.retries == (1 if told(engine, "retries") else None)
                and one.instances in (1, None)
            ),
        )
        assert full.backlog == (1 if engine.name == "rabbitmq" else 4)  # it does not tell what consumers hold
        if engine.name != "kafka":
            assert full.instances == 1
        async with consuming(engine.open(), hands, "two"):
            await figures_when(transport, lambda one: one.instances in (2, None))
        letters = await figures_when(transport, lambda one: one.in_flight in (1, None), "letters")
        assert letters.retries in (0, None)
        hands.let_go.set()
        done = await figures_when(
            transport, lambda one: one.in_flight in (0, None) and one.backlog in (1, 4), "numbers"
        )
        assert done.service == "billing"
    await figures_when(transport, lambda one: one.instances in (0, None))


async def test_figures_of_all_services_or_of_some_topics(engine: World) -> None:
    """By default of all that the engine knows; else of one service, and of some of its topics."""
    transport = engine.open()
    await transport.add_service("first", ["numbers", "letters"])
    await transport.add_service("second", ["numbers"])
    await transport.publish_many([Envelope("numbers", b"1")])

    async def names(*which: Any) -> list[tuple[str, str]]:
        return [(one.service, one.topic) for one in await transport.figures(*which)]

    assert await names("first") == [("first", "letters"), ("first", "numbers")]
    assert await names("first", ["numbers"]) == [("first", "numbers")]
    assert await names("nobody") == []
    if engine.name != "kafka":  # the mock cluster lists no groups that have no members
        assert await names() == [("first", "letters"), ("first", "numbers"), ("second", "numbers")]
    assert await transport.backlog("second") == 1


BEATING = (
    "_database.services",
    "_jetstream.streams",
    "_redis.services",
)  # the instances send heartbeats
KILLED = """
import asyncio, importlib, sys
from asignals import relay
from asignals.relay._monitoring import figures

for name in {beating}:
    importlib.import_module("asignals.relay.engines." + name).EXPIRY = {expiry}
figures.BEAT = {expiry} / 4

async def main():
    transport = {make}
    async def handle(delivery):
        print("held", flush=True)
        await asyncio.Event().wait()
    await transport.consume("billing", "killed", ["numbers"], handle)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_an_instance_that_is_killed_is_gone_soon(
    engine: World,
    monkeypatch: pytest.MonkeyPatch,
    long: bool,  # noqa: FBT001
) -> None:
    """After kill -9 its heartbeat expires by itself, or the broker notices that its connection is gone."""
    if engine.name in ("memory", "kafka"):
        pytest.skip("in one process; the mock cluster's group coordinator needs its own time")
    expiry = figures.EXPIRY if long else 2.0  # seconds
    for name in BEATING:
        monkeypatch.setattr(importlib.import_module(f"asignals.relay.engines.{name}"), "EXPIRY", expiry)
    transport = engine.open()
    await transport.add_service("billing", ["numbers"])
    await transport.publish_many([Envelope("numbers", b"1")])
    source = KILLED.format(make=remade(transport), beating=BEATING, expiry=expiry)
    process = subprocess.Popen(  # noqa: ASYNC220, S603  this very program
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        await figures_when(transport, lambda one: one.instances == 1)
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"held\n"
        process.send_signal(signals.SIGKILL)
        await asyncio.to_thread(process.wait)
        begun = asyncio.get_running_loop().time()
        await figures_when(transport, lambda one: one.instances == 0, within=55)
        assert asyncio.get_running_loop().time() - begun < 55
    finally:
        process.kill()
        process.communicate()


def remade(transport: Any) -> str:
    """Write the expression that makes the same transport in another process."""
    name = type(transport).__name__
    if name == "Database":
        url, schema = transport.engine.url.render_as_string(hide_password=False), transport.tables.metadata.schema
        return f"relay.Database({url!r}, schema={schema!r})"
    if name == "JetStream":
        return f"relay.JetStream({transport._connection.servers!r}, stream={transport.stream!r}, ack_wait=0.6)"
    if name == "RedisStreams":
        prefix = transport._connection.keys.base.strip("{}")
        return f"relay.RedisStreams({transport._connection.url!r}, prefix={prefix!r})"
    return f"relay.RabbitMQ({transport._connection.urls[0]!r}, name={transport.name!r})"


@pytest.mark.parametrize("beat", [b"", b"[]", b"\xff", b'{"a": "x"}', b'{"a": 1e999}', b"[" * 100_000])
async def test_a_heartbeat_that_is_none_harms_nobody(beat: bytes) -> None:
    """Whoever may write to the engine may write one."""
    assert held_of(beat) == {}
