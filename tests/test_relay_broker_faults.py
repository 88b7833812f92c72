"""Brokers that are cut off or silent: every wait has a limit, health sees it, and work goes on when they are back.

By default limits are shortened, so that a test takes seconds; `ASIGNALS_LONG=1` runs them as they are.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from relay_faults import Proxy, proxied
from relay_residue import removed
from relay_support import require, unique, until

from asignals import Signal
from asignals.relay import Envelope, JetStream, RabbitMQ, RedisStreams, Relay, _connection_state
from asignals.relay.engines import jetstream, rabbitmq, redis
from asignals.relay.engines._jetstream.connection import NatsConnection
from asignals.relay.engines._redis.connection import RedisConnection

try:
    from asignals.relay.engines import kafka
except ImportError:  # an interpreter may have no wheel of its client
    kafka = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

pytestmark = [pytest.mark.anyio, pytest.mark.once, pytest.mark.slow]
LONG = os.environ.get("ASIGNALS_LONG") == "1"
BACK_WITHIN = 15.0  # seconds after the network's return
SEEN_WITHIN = 10.0  # seconds after it went


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "asignals")
    if LONG:
        return
    for module, names in {
        redis: {"ANSWER_TIMEOUT": 0.6, "BLOCK": 0.2},
        rabbitmq: {"ANSWER_TIMEOUT": 0.6, "WATCH": 0.3, "CLOSE_TIMEOUT": 0.2, "_HEARTBEAT": 1},
        **({kafka: {"ANSWER_TIMEOUT": 1.0, "DELIVERY": 2.0}} if kafka is not None else {}),
        jetstream: {"CONNECT": 0.8, "_PING": 0.3, "CLOSE_TIMEOUT": 0.2},
    }.items():
        for part in _parts_of(module):
            for name in names.keys() & vars(part).keys():
                monkeypatch.setattr(part, name, names[name])
    monkeypatch.setattr(RedisConnection.ask, "__defaults__", (0.6,))
    monkeypatch.setattr(NatsConnection.ask, "__defaults__", (0.8,))
    monkeypatch.setattr(_connection_state.Backoff.__init__, "__defaults__", (0.05, 0.3))


def _parts_of(engine: ModuleType) -> list[ModuleType]:
    """The module of an engine, and those of its parts."""
    package, _, name = engine.__name__.rpartition(".")
    return [engine, *(module for path, module in sys.modules.items() if path.startswith(f"{package}._{name}."))]


@pytest.fixture(params=["jetstream", "redis", "rabbitmq", "kafka"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Any, Any, Proxy]]:
    """An engine by way of a proxy, one that has none, and the proxy."""
    async with _BROKERS[request.param](unique()) as made:
        yield made


@asynccontextmanager
async def _jetstream(name: str) -> AsyncIterator[tuple[Any, Any, Proxy]]:
    url = require("nats")
    async with removed("nats", name), proxied(url, 4222) as (by_proxy, proxy):
        direct, far = JetStream(url, stream=name, ack_wait=1.0), JetStream(by_proxy, stream=name, ack_wait=1.0)
        yield far, direct, proxy
        await direct.aclose()


@asynccontextmanager
async def _redis(name: str) -> AsyncIterator[tuple[Any, Any, Proxy]]:
    url = require("redis")
    async with removed("redis", name), proxied(url, 6379) as (by_proxy, proxy):
        direct, far = RedisStreams(url, prefix=name, lease=1.0), RedisStreams(by_proxy, prefix=name, lease=1.0)
        yield far, direct, proxy
        await direct.aclose()


@asynccontextmanager
async def _rabbitmq(name: str) -> AsyncIterator[tuple[Any, Any, Proxy]]:
    url = require("rabbitmq")
    async with removed("rabbitmq", name), proxied(url, 5672) as (by_proxy, proxy):
        direct, far = RabbitMQ(url, name=name), RabbitMQ(by_proxy, name=name)
        yield far, direct, proxy
        await direct.aclose()


@asynccontextmanager
async def _kafka(name: str) -> AsyncIterator[tuple[Any, Any, Proxy]]:
    confluent_kafka = pytest.importorskip("confluent_kafka")
    quick = {} if LONG else {"socket.timeout.ms": 1_000, "session.timeout.ms": 6_000}
    settings = {"log_level": 0, "heartbeat.interval.ms": 300, "reconnect.backoff.max.ms": 300, **quick}
    cluster = confluent_kafka.Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
    (server,) = cluster.list_topics(timeout=10).brokers.values()
    async with proxied(f"kafka://{server.host}:{server.port}") as (_, proxy):
        proxy.hide(server.host, server.port)
        direct = kafka.Kafka(f"{server.host}:{server.port}", name=name, **settings)
        yield kafka.Kafka(f"127.0.0.1:{proxy.port}", name=name, **settings), direct, proxy
    del cluster


_BROKERS = {"jetstream": _jetstream, "redis": _redis, "rabbitmq": _rabbitmq, "kafka": _kafka}


def event(n: int) -> Envelope:
    """Make an event of another service."""
    return Envelope("numbers", b'{"n":%d}' % n, origin="shop/one")


@pytest.mark.parametrize("fault", ["silence", "cut"])
async def test_consuming_and_publishing_go_on_when_the_broker_is_back(
    broker: tuple[Any, Any, Proxy], fault: str
) -> None:
    """Both ways stall neither for ever nor in silence: nothing is lost, and health tells of it while it lasts."""
    far, direct, proxy = broker
    heard: list[int] = []
    into, out = Signal(["n"]), Signal(["n"])
    into.connect(lambda n, **_: heard.append(n), weak=False)
    relay = Relay(far, "billing", grace=1, publish_timeout=2)
    relay.receive(into, "numbers", retries=100, backoff=(0.05, 0.3))
    relay.export(out, "numbers")
    if type(far).__name__ != "Kafka":  # which keeps what it was given for whoever comes
        await direct.add_service("billing", ["numbers"])
    async with relay:
        await direct.publish_many([event(0)])
        await until(lambda: heard == [0], 10)
        if fault == "silence":
            proxy.silence()
        else:
            await proxy.cut()
        await direct.publish_many([event(n) for n in range(1, 21)])
        await until(lambda: not relay.health().ok, SEEN_WITHIN)  # though nothing is sent from here
        with pytest.raises(Exception) as caught:  # noqa: PT011  each client has its own
            await out.send(None, n=-1)
        assert str(caught.value) or caught.value.args
        assert not relay.health().ok
        await proxy.restore()
        await until(lambda: set(range(21)) <= set(heard), BACK_WITHIN)
        await until(lambda: relay.health().ok, BACK_WITHIN)
        async with asyncio.timeout(BACK_WITHIN):
            await out.send(None, n=100)
    assert into


async def test_an_answer_that_does_not_come_is_told_of_by_name(broker: tuple[Any, Any, Proxy]) -> None:
    """Whoever asks hears who did not answer and for how long, and never a password."""
    far, _, proxy = broker
    await far.init()
    proxy.silence()
    with pytest.raises(TimeoutError, match=r"(NATS|Redis|RabbitMQ|Kafka) \(.*\) .* within .* s") as caught:
        await far.count_dead_letters("dlq.billing")
    assert "guest@" not in str(caught.value)
    assert ":guest" not in str(caught.value)
    with pytest.raises(Exception):  # noqa: B017, PT011  each client has its own
        await far.init()
    await far.aclose()


async def test_a_broker_that_is_not_there_is_told_of_when_it_is_asked_for(broker: tuple[Any, Any, Proxy]) -> None:
    """`init` of an engine whose server is down raises, instead of saying that all is ready."""
    far, _, proxy = broker
    await proxy.cut()
    with pytest.raises(Exception) as caught:  # noqa: PT011  each client has its own
        await far.init()
    assert str(caught.value)
    await far.aclose()


@pytest.mark.parametrize("fault", ["silence", "cut"])
async def test_a_listener_hears_on_when_the_broker_is_back_and_knows_of_the_gap(
    broker: tuple[Any, Any, Proxy], fault: str
) -> None:
    """What was published meanwhile may be missed, never in silence: that it listens again is told."""
    far, direct, proxy = broker
    heard: list[bytes] = []
    begun: list[int] = []
    task = asyncio.create_task(
        far.listen(["numbers"], lambda one: heard.append(Envelope.decode(one.data).body), lambda: begun.append(1))
    )
    await until(lambda: begun, 10)
    await direct.publish_many([Envelope("numbers", b"1")])
    await until(lambda: heard == [b"1"], 10)
    if fault == "silence":
        proxy.silence()
    else:
        await proxy.cut()
    await until(lambda: not far.connection_state.is_up, SEEN_WITHIN)
    await proxy.restore()
    if type(far).__name__ == "Kafka":  # goes on where it was, so there is no gap
        await until(lambda: far.connection_state.is_up, BACK_WITHIN)
    else:
        await until(lambda: len(begun) == 2, BACK_WITHIN)
    await direct.publish_many([Envelope("numbers", b"2")])
    await until(lambda: heard[-1] == b"2", 10)
    task.cancel()
    await asyncio.wait([task])
    await far.aclose()
