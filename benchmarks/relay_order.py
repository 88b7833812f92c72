"""What order by key costs on each engine, in interleaved runs: `python -m benchmarks.relay_order [ENGINE …]`.

End to end in one process, events of 100 bytes: without keys, with 1,000 keys by turns, and all of one key. Needs the
servers of the tests; Kafka is librdkafka's mock cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import secrets
import statistics
import sys
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from confluent_kafka import Producer

from asignals.relay import Database, Envelope, JetStream, Kafka, Memory, RabbitMQ, RedisStreams, Relay
from benchmarks.relay import BATCH, BODY, NATS, REDIS, Counter, order_heard, with_schema

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RABBITMQ = os.environ.get("ASIGNALS_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/")
WAYS = {"without keys": 0, "1,000 keys": 1_000, "one key": 1}
GOAL = 0.5  # of 1,000 keys beside none


@asynccontextmanager
async def database(url: str) -> AsyncIterator[Any]:
    transport = Database(url)
    await transport.init()
    await transport.inbox().init()
    yield transport
    await transport.aclose()


@asynccontextmanager
async def transport_of(engine: str) -> AsyncIterator[Any]:
    """Make a transport with names of its own, and remove what it left."""
    name = f"bench{secrets.token_hex(4)}"
    if engine == "memory":
        yield Memory()
    elif engine == "sqlite":
        with tempfile.TemporaryDirectory() as directory:
            async with database(f"sqlite+aiosqlite:///{directory}/bench.db") as transport:
                yield transport
    elif engine == "jetstream":
        jetstream = JetStream(NATS, stream=name)
        yield jetstream
        client = await jetstream._connection.open()
        for stream in ("", "-dead", "-instances", "-owners"):
            await client.jetstream().delete_stream(f"{name}{stream}")
        await jetstream.aclose()
    elif engine == "redis":
        redis = RedisStreams(REDIS, prefix=name)
        yield redis
        keys = [key async for key in redis._connection.client().scan_iter(f"{{{name}}}*", count=1000)]
        await redis._connection.client().delete(*keys)
        await redis.aclose()
    elif engine == "rabbitmq":
        rabbitmq = RabbitMQ(RABBITMQ, name=name)
        yield rabbitmq
        await rabbitmq.forget_service("bench")
        async with rabbitmq._connection.channel() as channel:
            for queue in (f"{name}.unrouted", f"{name}.services"):
                await channel.queue_delete(queue)
            for exchange in (name, f"{name}.unrouted"):
                await channel.exchange_delete(exchange)
        await rabbitmq.aclose()
    else:
        cluster = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
        brokers = cluster.list_topics(timeout=10).brokers.values()
        yield Kafka([f"{broker.host}:{broker.port}" for broker in brokers], name=name, log_level=0)


async def through(transport: Any, count: int, keys: int, heard: Counter) -> float:
    """Publish and wait until all are heard; seconds."""
    made = [Envelope("bench", BODY, key=f"k{number % keys}" if keys else None) for number in range(count)]
    heard.expect(count)
    began = time.perf_counter()
    for start in range(0, count, BATCH):
        await transport.publish_many(made[start : start + BATCH])
    await heard.done.wait()
    return time.perf_counter() - began


async def measure(engine: str, transport: Any, events: int, rounds: int) -> None:
    """Take the ways by turns, and show the medians."""
    heard, relay = Counter(), Relay(transport, "bench")
    relay.receive(order_heard, "bench")
    await relay.init()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with order_heard.connected(heard):
        async with relay:
            for keys in WAYS.values():
                await through(transport, min(events, 500), keys, heard)
            for _ in range(rounds):
                for way, keys in WAYS.items():
                    count = events if keys != 1 else max(1, events // 10)
                    gc.collect()
                    seconds[way].append(await through(transport, count, keys, heard) * events / count)
    rates = {way: events / statistics.median(times) for way, times in seconds.items()}
    first = rates["without keys"]
    print(engine)
    for way, rate in rates.items():
        share = (
            ""
            if rate is first
            else f"  {rate / first:.2f} of that without" + (f" (goal: {GOAL})" if way == "1,000 keys" else "")
        )
        print(f"  {way:<20} {rate:>10,.0f}/s{share}", flush=True)


async def run(engine: str, events: int, rounds: int) -> None:
    """Measure one engine."""
    if engine == "postgres":

        async def work(made: Any) -> None:
            await measure(engine, Database(made), events, rounds)

        await with_schema(work)
        return
    async with transport_of(engine) as transport:
        await measure(engine, transport, events, rounds)


ENGINES = ("memory", "sqlite", "postgres", "jetstream", "redis", "rabbitmq", "kafka")


def main(arguments: list[str]) -> None:
    """Run the engines that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay_order", description="What order by key costs.")
    parser.add_argument("engines", nargs="*", choices=[[], *ENGINES], default=[])
    parser.add_argument("--events", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    for engine in options.engines or ENGINES:
        with suppress(KeyboardInterrupt):
            asyncio.run(run(engine, options.events, options.rounds))


if __name__ == "__main__":
    main(sys.argv[1:])
