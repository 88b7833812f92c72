"""Broadcasts: every running instance hears every event, and nothing is left behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import ENGINES, World, until, world

from asignals import Signal
from asignals.relay import Envelope, Memory, NoReceiversError, Relay, _broadcast
from asignals.relay.worker import check_receivers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world of its own for every test, on every engine."""
    async with world(request.param, tmp_path) as made:
        yield made


def page(transport: Any, name: str, heard: list[int]) -> tuple[Relay, Signal[..., Any]]:
    """Make an instance of a web service: it sends orders, and shows those of every instance."""
    order = Signal(["n"], name="order")
    relay = Relay(transport, "web", instance=name, grace=1)
    relay.export(order, "order")
    relay.receive(order, "order", broadcast=True)
    order.connect(lambda n, **_: heard.append(n), weak=False)
    return relay, order


async def test_an_order_placed_through_one_instance_is_heard_by_all(engine: World) -> None:
    """Once by each, the one that sent it included, and once by the service that shares."""
    billing, paid, charged = Relay(engine.open(), "billing", grace=1), Signal(["n"]), []
    billing.receive(paid, "order")
    paid.connect(lambda n, **_: charged.append(n), weak=False)
    await billing.init()
    heard: list[list[int]] = [[], []]
    one, order = page(engine.open(), "one", heard[0])
    two, _ = page(engine.open(), "two", heard[1])
    async with billing, one, two:
        await until_listening(one, two)
        for n in range(30):
            await order.send(None, n=n)
        await until(lambda: len(heard[1]) == 30 and len(charged) == 30)
        await until(lambda: two.health().heard == 30)
    assert heard == [list(range(30))] * 2
    assert sorted(charged) == list(range(30))
    assert (two.health().missed, two.health().gaps, one.health().heard) == (0, 0, 0)


async def until_listening(*relays: Relay) -> None:
    """Wait until each would hear what is published now."""
    await until(lambda: all(relay._listener._begun for relay in relays))


async def test_a_receiver_that_fails_is_logged_and_the_next_event_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    """No retry, no dead letter, and no end."""
    memory, heard = Memory(), []
    into = Signal(["n"])
    relay = Relay(memory, "web")
    relay.receive(into, "order", broadcast=True)

    @into.connect
    def show(n: int, **_: Any) -> None:
        heard.append(n)
        if n == 0:
            msg = "no page"
            raise ValueError(msg)

    async with relay:
        await until_listening(relay)
        await memory.publish_many([Envelope("order", b'{"n":0}'), Envelope("order", b'{"n":1}')])
        await until(lambda: heard == [0, 1])
    assert "no page" in caplog.text
    assert await relay.dead_letters() == []
    assert await memory.backlog("web") == 0


async def test_what_cannot_be_read_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Newer versions, wrong types, and events that say that they are of another topic."""
    memory, heard = Memory(), []
    into = Signal(["n"])
    into.connect(lambda n, **_: heard.append(n), weak=False)
    relay = Relay(memory, "web")
    relay.receive(into, "order", broadcast=True)

    class Lying(Envelope):
        def encode(self) -> bytes:
            return Envelope("other", b'{"n":9}').encode()

    bad = [Envelope("order", b'{"n":1}', version=2), Envelope("order", b'{"m":1}'), Lying("order", b"")]
    async with relay:
        await until_listening(relay)
        await memory.publish_many([*bad, Envelope("order", b'{"n":5}')])
        await until(lambda: heard)
    assert heard == [5]
    assert relay.health().missed == 3
    assert caplog.text.count("cannot be read") == 3


async def test_one_that_is_slow_misses_the_oldest_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds up nobody: neither the sender, nor the service that shares, nor other instances."""
    monkeypatch.setattr(_broadcast, "_BUFFER", 10)
    memory, heard, may_go = Memory(), [], asyncio.Event()
    into = Signal(["n"])
    relay = Relay(memory, "web")
    relay.receive(into, "order", broadcast=True)

    @into.connect
    async def show(n: int, **_: Any) -> None:
        heard.append(n)
        await may_go.wait()

    async with relay:
        await until_listening(relay)
        await memory.publish_many([Envelope("order", b'{"n":0}')])
        await until(lambda: heard == [0])
        await memory.publish_many([Envelope("order", b'{"n":%d}' % n) for n in range(1, 31)])
        may_go.set()
        await until(lambda: relay.health().heard == 11)
    assert heard == [0, *range(21, 31)]
    assert relay.health().missed == 20
    assert caplog.text.count("come faster than the receivers") == 1


async def test_a_transport_that_cannot_broadcast_is_refused() -> None:
    """Where it is asked for, not when it should have been heard."""

    class Plain:
        async def publish_many(self, envelopes: Any) -> None: ...

        async def consume(self, *_: Any, **__: Any) -> None: ...

    with pytest.raises(TypeError, match="Plain cannot broadcast"):
        Relay(Plain(), "web").receive(Signal(), "order", broadcast=True)


async def test_a_worker_takes_a_broadcast_for_something_that_it_receives() -> None:
    """It starts with nothing else, and refuses to when nobody there would hear it."""
    into = Signal(["n"], name="order")
    relay = Relay(Memory(), "web")
    relay.receive(into, "order", broadcast=True)
    with pytest.raises(NoReceiversError, match="'order'"):
        check_receivers(relay)
    with into.connected(lambda **_: None):
        check_receivers(relay)
