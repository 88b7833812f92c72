"""What is Redis's own."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from redis.exceptions import ReadOnlyError
from relay_support import World, engine_on, on_asyncio, until

from asignals.relay import Delivery, Envelope, RedisStreams

pytestmark = pytest.mark.anyio


anyio_backend = on_asyncio
engine = engine_on("redis")


def events(count: int) -> list[Envelope]:
    return [Envelope("numbers", b"%d" % number) for number in range(count)]


async def read(transport: RedisStreams, service: str, instance: str) -> list[bytes]:
    """Take what is new as a consumer would that says nothing any more."""
    ((_, entries),) = await transport._connection.client().xreadgroup(
        service, instance, {transport._connection.keys.stream("numbers"): ">"}
    )
    return [id_ for id_, _ in entries]


async def test_a_stream_is_trimmed_up_to_what_every_service_has_acknowledged(engine: World) -> None:
    """An event that one service holds stays, with all after it, whatever the others have done."""
    transport = engine.open()
    stream, client = transport._connection.keys.stream("numbers"), transport._connection.client()
    await transport.publish_many(events(6))
    assert await transport.trim() == 0
    held: dict[str, list[bytes]] = {}
    for service in ("quick", "slow"):
        await transport.add_service(service, ["numbers"])
        held[service] = await read(transport, service, "one")
    await client.xack(stream, "quick", *held["quick"])
    assert await transport.trim() == 0
    await client.xack(stream, "slow", *held["slow"][:3], *held["slow"][4:])
    assert await transport.trim() == 3
    assert [id_ for id_, _ in await client.xrange(stream)] == held["slow"][3:]
    await client.xack(stream, "slow", held["slow"][3])
    assert await transport.trim() == 2


async def test_events_that_no_service_receives_are_kept_for_a_time(engine: World) -> None:
    """Of a topic without groups, what is older than `max_age` is removed; `None` keeps all."""
    transport = engine.open()
    await transport.publish_many(events(5))
    transport._trimmer.max_age = None
    assert await transport.trim() == 0
    transport._trimmer.max_age = -1.0
    assert await transport.trim() == 5


async def test_consumers_that_hold_nothing_are_forgotten(engine: World) -> None:
    """After so many seconds without a word; those that hold events stay."""
    transport = engine.open()
    stream, client = transport._connection.keys.stream("numbers"), transport._connection.client()
    await transport.add_service("billing", ["numbers"])
    await transport.publish_many(events(1))
    await read(transport, "billing", "one")
    await client.xgroup_createconsumer(stream, "billing", "two")
    assert await transport.forget_consumers("billing") == 0
    forgotten = 0
    async with asyncio.timeout(60):
        while not forgotten:
            forgotten = await transport.forget_consumers("billing", 0.001)
    assert forgotten == 1
    assert [each["name"] for each in await client.xinfo_consumers(stream, "billing")] == [b"one"]


async def test_what_a_dead_consumer_held_is_found_behind_what_the_living_hold(engine: World) -> None:
    """However many events of others are pending before it: the look for it goes through all of them."""
    transport, heard = engine.open(), set()
    may_end = asyncio.Event()

    async def holds(delivery: Delivery) -> None:
        heard.add(int(Envelope.decode(delivery.data).body))
        await may_end.wait()

    await transport.add_service("billing", ["numbers"])
    running = asyncio.create_task(transport.consume("billing", "alive", ["numbers"], holds, limit=10))
    await transport.publish_many(events(40))  # four times the limit: all that it takes
    await until(lambda: len(heard) == 10)
    dead = engine.open()
    await dead.publish_many([Envelope("numbers", b"100")])
    await until_read(dead)
    others = asyncio.create_task(engine.open().consume("billing", "another", ["numbers"], holds, limit=10))
    await until(lambda: 100 in heard, 10)
    may_end.set()
    for task in (running, others):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until_read(transport: RedisStreams) -> None:
    """Take the newest event, as a consumer that then dies."""
    taking: Any = "billing", "dead", {transport._connection.keys.stream("numbers"): ">"}
    async with asyncio.timeout(60):
        while not await transport._connection.client().xreadgroup(*taking):  # noqa: ASYNC110  Redis tells nobody
            await asyncio.sleep(0.01)


async def test_many_at_once_wait_for_a_connection(engine: World) -> None:
    """Five hundred commands share the connections that there may be: none is told that there are too many."""
    transport = engine.open()
    inbox = transport.inbox()
    memos = await asyncio.gather(*(inbox.recall(f"e{number}", "billing") for number in range(500)))
    assert len(memos) == 500
    assert len(transport._connection.client().connection_pool._available_connections) <= 64


async def test_events_that_were_removed_before_they_were_acknowledged_are_told_of(
    engine: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody who trims the stream by hand takes events from a consumer that died: that is no silent loss."""
    transport = engine.open()
    await transport.add_service("billing", ["numbers"])
    await transport.publish_many(events(3))
    await read(transport, "billing", "dead")
    await transport._connection.client().xtrim(
        transport._connection.keys.stream("numbers"), maxlen=0, approximate=False
    )

    async def handle(_: Delivery) -> None:
        """Take it."""

    running = asyncio.create_task(transport.consume("billing", "alive", ["numbers"], handle))
    await until(lambda: "3 events of 'numbers' were removed" in caplog.text, 10)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("url", ["nats://127.0.0.1", "127.0.0.1:6379", "", None])
def test_what_is_no_url_of_redis_is_refused(url: Any) -> None:
    """At once, with what to write instead, and without its password."""
    with pytest.raises(ValueError, match="RedisStreams takes a URL such as"):
        RedisStreams(url)


@pytest.mark.parametrize("setting", ["protocol=3", "decode_responses=True", "socket_timeout=0.2"])
@pytest.mark.parametrize("is_in_url", [True, False])
async def test_settings_of_the_client_that_the_engine_rests_on_stay_its_own(
    engine: World,
    setting: str,
    is_in_url: bool,  # noqa: FBT001
) -> None:
    """Answers of another shape, and a limit shorter than a read waits, come neither by the URL nor by options."""
    made, (name, value) = engine.open(), setting.split("=")
    url, options = (
        (f"{made._connection.url}?{setting}&health_check_interval=9", {})
        if is_in_url
        else (made._connection.url, {name: value})
    )
    transport = RedisStreams(url, prefix=made._connection.keys.base.strip("{}"), **options)
    heard: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        heard.append(Envelope.decode(delivery.data).body)

    consuming = asyncio.create_task(transport.consume("s", "i", ["numbers"], handle))
    await transport.publish_many(events(2))
    await until(lambda: len(heard) == 2)
    await asyncio.sleep(0.3)  # longer than the limit: a read waits meanwhile
    assert transport.connection_state.is_up
    consuming.cancel()
    with suppress(asyncio.CancelledError):
        await consuming
    await transport.aclose()


async def test_connections_to_a_redis_that_has_become_a_replica_are_given_up(engine: World) -> None:
    """After a failover behind one address the pool still has connections to the Redis that led before."""
    transport = engine.open()
    await transport.publish_many(events(1))
    before = transport._connection.client()

    async def refuse(*_: object) -> None:
        raise ReadOnlyError("You can't write against a read only replica.")

    before.evalsha = refuse  # type: ignore[method-assign, assignment]
    with pytest.raises(ReadOnlyError):
        await transport.publish_many(events(1))
    assert transport._connection.client() is not before
    await transport.publish_many(events(1))
