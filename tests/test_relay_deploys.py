"""Deploying, on every engine: topics and versions that only some instances know, receivers that are not there yet."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import ENGINES, World, until, world

from asignals import Signal
from asignals.relay import DeadLetter, Envelope, MemoryInbox, Relay, _receive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.once, pytest.mark.slow]
COUNT = 40


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """Every engine in turn."""
    async with world(request.param, tmp_path) as made:
        yield made


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "asignals")
    monkeypatch.setattr(_receive, "_ELSEWHERE", 0.05)


class Instance:
    """One instance of a service, which receives some topics in some version and notes what it has handled."""

    def __init__(self, engine: World, *topics: str, version: int = 1, has_receivers: bool = True) -> None:
        self.heard: list[tuple[str, int]] = []
        self.relay = Relay(engine.open(), "billing", grace=5, limit=10)
        self._keep = []
        for topic in topics:
            into, receiver = Signal(["n"]), self._receiver(topic)
            self._keep += [into, receiver]
            if has_receivers:
                into.connect(receiver)
            self.relay.receive(into, topic, version=version, retries=100_000, backoff=(0.02, 0.1))

    def _receiver(self, topic: str) -> Any:
        async def note(n: int, **_: Any) -> None:
            await asyncio.sleep(0.001)
            self.heard.append((topic, n))

        return note


def events(topic: str, numbers: range, **options: Any) -> list[Envelope]:
    """Make events of another service."""
    return [Envelope(topic, b'{"n":%d}' % n, origin="shop/one", **options) for n in numbers]


async def test_a_topic_that_a_new_version_adds_waits_for_it(engine: World) -> None:
    """While the old one runs, and goes; 0 of the new topic's events are lost, and the old topic goes on."""
    publisher = engine.open()
    old, new = Instance(engine, "order.paid"), Instance(engine, "order.paid", "order.refunded")
    await new.relay.init()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(old.relay)
        await publisher.publish_many(events("order.refunded", range(COUNT)))
        await publisher.publish_many(events("order.paid", range(COUNT)))
        await until(lambda: len(old.heard) == COUNT)
        async with new.relay:
            await publisher.publish_many(events("order.refunded", range(COUNT, 2 * COUNT)))
            await until(lambda: len([1 for topic, _ in new.heard if topic == "order.refunded"]) == 2 * COUNT)
            await stack.aclose()
            await publisher.publish_many(events("order.paid", range(COUNT, 2 * COUNT)))
            await until(lambda: len(set(old.heard + new.heard)) == 4 * COUNT)
    assert {topic for topic, _ in old.heard} == {"order.paid"}
    assert new.relay.health().dead == old.relay.health().dead == 0


async def test_a_topic_that_a_new_version_removes_is_left_to_the_old_one(engine: World) -> None:
    """What nobody receives any more waits where `status` counts it, until an old one is back or it is forgotten."""
    publisher = engine.open()
    old, new = Instance(engine, "order.paid", "order.refunded"), Instance(engine, "order.paid")
    await old.relay.init()
    async with new.relay:
        async with old.relay:
            await publisher.publish_many(events("order.refunded", range(COUNT)))
            await until(lambda: len(old.heard) == COUNT and not old.relay.health().in_flight)
        await publisher.publish_many(events("order.refunded", range(COUNT, 2 * COUNT)))
        await publisher.publish_many(events("order.paid", range(COUNT)))
        await until(lambda: len(new.heard) == COUNT)
        async with asyncio.timeout(60):
            while (await new.relay.status()).backlog != COUNT:  # noqa: ASYNC110  engines count with a delay
                await asyncio.sleep(0.05)
        back = Instance(engine, "order.refunded")
        async with back.relay:
            await until(lambda: len(back.heard) == COUNT)
    assert {topic for topic, _ in new.heard} == {"order.paid"}
    assert new.relay.health().dead == 0


async def test_versions_that_are_too_new_reach_the_instance_that_can_read_them(engine: World) -> None:
    """Whichever instance gets them first, none is lost, and none is a dead letter."""
    publisher = engine.open()
    old, new = Instance(engine, "order.paid"), Instance(engine, "order.paid", version=2)
    await new.relay.init()
    async with old.relay:
        await publisher.publish_many(events("order.paid", range(COUNT), version=2))
        await until(lambda: old.relay.health().released > 0)
        async with new.relay:
            await publisher.publish_many(events("order.paid", range(COUNT, 2 * COUNT), version=1))
            await until(lambda: len(set(old.heard + new.heard)) == 2 * COUNT)
            await until(lambda: not new.relay.health().in_flight)
    assert {n for _, n in old.heard} <= set(range(COUNT, 2 * COUNT))
    assert old.relay.health().dead == new.relay.health().dead == 0


async def test_events_wait_for_the_instance_that_has_the_receivers(engine: World) -> None:
    """One that was started without them acknowledges nothing."""
    publisher = engine.open()
    empty, whole = Instance(engine, "order.paid", has_receivers=False), Instance(engine, "order.paid")
    await whole.relay.init()
    async with empty.relay:
        await publisher.publish_many(events("order.paid", range(5)))
        await until(lambda: empty.relay.health().failed > 0)
        async with whole.relay:
            await until(lambda: len(whole.heard) == 5)
    assert empty.relay.health().received == empty.heard.count(0) == 0


async def test_many_letters_are_counted_replayed_and_removed_by_the_engine(engine: World) -> None:
    """In batches, by what they are; a replay calls no receiver that had succeeded, though nothing else remembers it."""
    billing = Instance(engine, "order.paid")
    billing.relay._inbound.inbox.inbox = MemoryInbox()
    await billing.relay.init()
    keeper = engine.open()
    names = ("KeyError", "OSError")
    done = (f"{__name__}.Instance._receiver.<locals>.note",)
    for n, event in enumerate(events("order.paid", range(COUNT))):
        letter = DeadLetter(event.encode(), "billing", names[n % 2], time=1_000.0 + n, done=done if n % 4 == 0 else ())
        await keeper.put_dead_letter("dlq.billing", letter)
    assert (await billing.relay.status()).dead == {"dlq.billing": COUNT}
    found = await billing.relay.dead_letters(error="Key", since=1_010.0, limit=3)
    assert [letter.time for letter in found] == [1_010.0, 1_012.0, 1_014.0]
    async with billing.relay:
        assert await billing.relay.replay(error="KeyError") == COUNT // 2
        await until(lambda: billing.relay.health().received == COUNT // 2)
    assert {n for _, n in billing.heard} == {n for n in range(0, COUNT, 2) if n % 4}
    assert await billing.relay.purge(until=1_001.0) == 1
    assert (await billing.relay.status()).dead == {"dlq.billing": COUNT // 2 - 1}
    await billing.relay.aclose()
