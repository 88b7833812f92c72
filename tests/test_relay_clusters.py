"""Engines on several machines: leaders are killed under load, and nothing is lost.

NATS runs always; Redis with Sentinel and RabbitMQ take longer: `ASIGNALS_CLUSTERS=redis,rabbitmq`, or `--long` for all.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from relay_clusters import Load, cluster, run
from relay_support import until

from asignals.relay import Envelope, JetStream, RabbitMQ, RedisStreams, engine_from_url

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.once]

PROGRAMS = {"nats": "nats-server", "redis": "redis-server", "rabbitmq": "epmd"}
ASKED_FOR = os.environ.get("ASIGNALS_CLUSTERS", "").split(",")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


def need(name: str, *, long: bool) -> None:
    """Skip the test where the cluster was not asked for, or its program is missing."""
    if name != "nats" and name not in ASKED_FOR and not long:
        pytest.skip(f"takes long: ASIGNALS_CLUSTERS={name}, or --long")
    if shutil.which(PROGRAMS[name]) is None:
        pytest.skip(f"no {PROGRAMS[name]} here")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
async def test_nothing_is_lost_when_leaders_are_killed(name: str, long: bool) -> None:  # noqa: FBT001
    """Another server takes over what was acknowledged; what was not is sent again, and recognised."""
    need(name, long=long)
    books = await run(name, kills=12 if long else 1, every=5.0 if long else 0.5, down=3.0)
    assert books.balanced, books
    assert books.sent > 50


@pytest.mark.filterwarnings(
    "ignore:unclosed <StreamWriter", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # nats-py
@pytest.mark.parametrize("name", PROGRAMS)
async def test_nothing_is_lost_when_a_leader_is_frozen(name: str, long: bool) -> None:  # noqa: FBT001
    """Its connections stay open, and when it wakes up it still takes itself for the leader."""
    if not long and name not in ASKED_FOR:
        pytest.skip(f"takes long: ASIGNALS_CLUSTERS={name}, or --long")
    need(name, long=long)
    books = await run(name, kills=2, every=1.0, down=15.0, freeze=True)
    assert books.balanced, books


@pytest.mark.slow
async def test_a_cluster_of_nats_without_a_quorum_shows_in_health_and_comes_back(tmp_path: Path) -> None:
    """What is sent meanwhile waits in the outbox."""
    need("nats", long=False)
    async with cluster("nats") as servers, Load(servers.transport, tmp_path) as load:
        await until(lambda: load.heard)
        assert load.is_well()
        for number in (0, 1):
            servers.kill(number)
        await until(lambda: not any(relay.health().ok for relay in (load.shop, *load.instances)), 60)
        before = load.sent
        for number in (0, 1):
            await servers.start(number)
        await until(load.is_well, 120)
        await load.until_heard()
    assert load.sent > before
    assert set(load.heard) == set(range(load.sent))


async def test_what_was_made_with_one_copy_is_given_more(caplog: pytest.LogCaptureFixture) -> None:
    """A stream that grows to three copies takes its dead letters and its inbox with it."""
    need("nats", long=False)
    async with cluster("nats") as servers:
        old = servers.transport(replicas=None)
        inbox = old.inbox()
        await inbox.remember("one", "billing", await inbox.recall("one", "billing"))
        await old.aclose()
        assert await _copies(servers) == [1] * 5
        new = servers.transport(replicas=3)
        await new.init()
        await new.aclose()
        assert await _copies(servers) == [3] * 5
    assert caplog.text.count("changed stream") == 5


async def _copies(servers: Any) -> list[int]:
    infos = await servers._infos(["cluster", "cluster-dead", "cluster-instances", "cluster-owners", "KV_cluster-inbox"])
    return [info.config.num_replicas for info in infos]


@pytest.mark.parametrize(("replicas", "is_lost"), [(0, True), (1, False)])
async def test_redis_loses_what_no_replica_has_unless_it_is_asked_to_wait(
    replicas: int,
    is_lost: bool,  # noqa: FBT001
    long: bool,  # noqa: FBT001
) -> None:
    """Replicas that lag behind when the leader dies: with `replicas=1` what they miss was not acknowledged.

    Frozen, a replica still has what the sockets hold, so there is more.
    """
    need("redis", long=long)
    async with cluster("redis") as servers:
        engine = servers.transport(replicas=replicas)
        acknowledged: list[str] = []

        async def publish() -> None:
            while True:
                event = Envelope("order.paid", b'"%b"' % (b"x" * 200_000))
                await engine.publish_many([event])
                acknowledged.append(event.id)

        await engine.publish_many([Envelope("order.paid", b"{}")])
        leader = await servers.leader()
        replicas_of = [number for number in range(3) if number != leader]
        for number in replicas_of:
            servers.signal(number, signal.SIGSTOP)
        publishing = asyncio.create_task(publish())
        with suppress(TimeoutError):
            await until(lambda: len(acknowledged) > 300, 3)
        servers.kill(leader)
        await asyncio.wait([publishing])
        for number in replicas_of:
            servers.signal(number, signal.SIGCONT)
        async with asyncio.timeout(60):
            while await servers.leader() == leader:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        entries: Any = await engine._connection.client().xrange(engine._connection.keys.stream("order.paid"))
        kept = {Envelope.decode(fields[b"d"]).id for _, fields in entries}
        await engine.aclose()
    lost = set(acknowledged) - kept
    assert bool(lost) == is_lost, f"{len(lost)} of {len(acknowledged)}"


def test_urls_of_clusters_make_engines() -> None:
    """Several servers with commas; Sentinels with the service that they watch."""
    nats = engine_from_url("nats://one:4222,nats://two:4222", replicas=3)
    assert isinstance(nats, JetStream)
    assert nats.connection_state.name == "NATS (nats://one:4222, nats://two:4222)"
    rabbit = engine_from_url("amqp://me:pass,word@one/,amqp://me:secret@two/")
    assert isinstance(rabbit, RabbitMQ)
    assert rabbit.connection_state.name == "RabbitMQ (amqp://me:***@one/, amqp://me:***@two/, asignals)"
    redis = engine_from_url("redis+sentinel://me:secret@one:1,two/main/3?health_check_interval=5", replicas=1)
    assert isinstance(redis, RedisStreams)
    assert "secret" not in redis.connection_state.name
    options = redis._connection._make().connection_pool.connection_kwargs  # a client, outside of a loop
    assert (options["username"], options["password"], options["db"]) == ("me", "secret", 3)
    assert options["health_check_interval"] == 5
    sentinels = options["connection_pool"]._sentinel.sentinels
    found = [
        (one.connection_pool.connection_kwargs["host"], one.connection_pool.connection_kwargs["port"])
        for one in sentinels
    ]
    assert found == [("one", 1), ("two", 26_379)]


def test_what_no_cluster_can_have_is_refused() -> None:
    """Where it is written, with what to write instead."""
    with pytest.raises(ValueError, match="must name the service that the Sentinels watch"):
        RedisStreams("redis+sentinel://one:1,two:2")
    with pytest.raises(ValueError, match="not negative, not -1"):
        RedisStreams("redis://one", replicas=-1)
    with pytest.raises(ValueError, match="or a list of them"):
        RabbitMQ(["amqp://one/", "redis://two/"])
    with pytest.raises(ValueError, match="or a list of them"):
        RabbitMQ([])
