"""The relay beside the raw clients, in interleaved runs: `python -m benchmarks.relay [--events 5000] [--rounds 5]
[CASE …]`.

Needs the servers of the tests (ASIGNALS_NATS_URL, ASIGNALS_REDIS_URL, ASIGNALS_POSTGRES_URL); bodies have 100 bytes.
Every round runs each contender once, so that whatever else the machine does hits them alike; medians are shown. One
process is sender and receiver, so an end-to-end figure is the sum of the work of both.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import secrets
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any

import asyncpg
import nats
from nats.js.api import AckPolicy, ConsumerConfig
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from asignals import signal
from asignals.relay import Envelope, JetStream, Memory, RedisStreams, Relay, SQLAlchemyOutbox

from .outbox_cost import BODY, NOTE, POSTGRES, order_paid, with_schema

NATS = os.environ.get("ASIGNALS_NATS_URL", "nats://127.0.0.1:4222")
REDIS = os.environ.get("ASIGNALS_REDIS_URL", "redis://127.0.0.1:6379/0")
BATCH = 500
Contender = Callable[[int], Awaitable[float]]


@signal
def order_sent(sender: str, *, note: str) -> None:
    """What is sent where no relay runs."""


@signal
def order_heard(sender: str, *, note: str) -> None:
    """What is heard."""


class Counter:
    """A receiver that knows when it has been called often enough."""

    def __init__(self) -> None:
        self.left = 0
        self.done = asyncio.Event()

    def expect(self, count: int) -> None:
        self.left = count
        self.done.clear()

    async def __call__(self, **_: Any) -> None:
        self.left -= 1
        if not self.left:
            self.done.set()


def batches(count: int) -> list[list[Envelope]]:
    envelopes = [Envelope("bench", BODY, sender="shop") for _ in range(count)]
    return [envelopes[start : start + BATCH] for start in range(0, count, BATCH)]


async def through(transport: Any, count: int, heard: Counter) -> float:
    """Publish and wait until all are heard; seconds."""
    made = batches(count)
    heard.expect(count)
    began = time.perf_counter()
    for batch in made:
        await transport.publish_many(batch)
    await heard.done.wait()
    return time.perf_counter() - began


async def jetstream(run: Any) -> None:  # noqa: C901  both contenders, side by side
    """Publish in batches, and end to end, through JetStream."""
    name = f"bench{secrets.token_hex(4)}"
    client = await nats.connect(NATS)
    context = client.jetstream(publish_async_max_pending=BATCH)
    await context.add_stream(name=f"{name}-raw", subjects=[f"{name}-raw.>"], duplicate_window=120)
    transport, heard = JetStream(NATS, stream=name), Counter()
    await transport.init()

    async def raw_publish(count: int) -> float:
        began = time.perf_counter()
        for start in range(0, count, BATCH):
            sent = []
            for number in range(start, min(count, start + BATCH)):
                headers = {"Nats-Msg-Id": f"{began}{number}"}
                sent.append(await context.publish_async(f"{name}-raw.bench", BODY, headers=headers))
            await asyncio.gather(*sent)
        return time.perf_counter() - began

    async def our_publish(count: int) -> float:
        made = batches(count)
        began = time.perf_counter()
        for batch in made:
            await transport.publish_many(batch)
        return time.perf_counter() - began

    await run("jetstream publish", {"nats-py publish_async": raw_publish, "asignals publish_many": our_publish}, 0.8)
    for stream in (f"{name}-raw", name):
        await context.purge_stream(stream)
    config = ConsumerConfig(durable_name="bench", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=20_000)
    await context.add_consumer(f"{name}-raw", config)
    pull = await context.pull_subscribe_bind("bench", f"{name}-raw")

    async def raw_through(count: int) -> float:
        began = time.perf_counter()
        await raw_publish(count)
        left = count
        while left:
            for message in await pull.fetch(min(left, BATCH), timeout=5):
                json.loads(message.data)
                await message.ack()
                left -= 1
        return time.perf_counter() - began

    relay = Relay(transport, "bench")
    relay.receive(order_heard, "bench")
    with order_heard.connected(heard):
        async with relay:

            async def our_through(count: int) -> float:
                return await through(transport, count, heard)

            contenders = {"nats-py publish_async, fetch, ack": raw_through, "asignals": our_through}
            await run("jetstream end to end", contenders, 0.6)
    for stream in (name, f"{name}-raw", f"{name}-dead"):
        await context.delete_stream(stream)
    await client.close()


async def redis(run: Any) -> None:
    """End to end through Redis Streams."""
    name = f"bench{secrets.token_hex(4)}"
    client = Redis.from_url(REDIS, protocol=2)
    transport, heard = RedisStreams(REDIS, prefix=name), Counter()
    await client.xgroup_create(f"{name}-raw", "bench", id="0", mkstream=True)

    async def raw_through(count: int) -> float:
        began = time.perf_counter()
        for start in range(0, count, BATCH):
            pipeline = client.pipeline(transaction=True)
            for _ in range(start, min(count, start + BATCH)):
                pipeline.xadd(f"{name}-raw", {"d": BODY})
            await pipeline.execute()
        left = count
        while left:
            found = await client.xreadgroup("bench", "one", {f"{name}-raw": ">"}, count=BATCH)
            ids = []
            for id_, fields in found[0][1]:
                json.loads(fields[b"d"])
                ids.append(id_)
            await client.xack(f"{name}-raw", "bench", *ids)
            left -= len(ids)
        return time.perf_counter() - began

    relay = Relay(transport, "bench")
    relay.receive(order_heard, "bench")
    with order_heard.connected(heard):
        async with relay:

            async def our_through(count: int) -> float:
                return await through(transport, count, heard)

            await run("redis end to end", {"redis-py, batches of 500": raw_through, "asignals": our_through}, 0.6)
    keys = [key async for key in client.scan_iter(f"*{name}*", count=1000)]
    await client.delete(*keys)
    await client.aclose()


async def outbox(run: Any) -> None:
    """The outbox on PostgreSQL: how fast it drains, and how soon a receiver hears."""
    async with with_schema() as engine:
        await _outbox(run, engine)


async def _outbox(run: Any, engine: AsyncEngine) -> None:
    box = SQLAlchemyOutbox(engine)

    async def nowhere(_envelopes: Any) -> None:
        return

    async def drain(count: int) -> float:
        rows = [{"key": None, "data": Envelope("bench", BODY).encode()} for _ in range(count)]
        async with engine.begin() as connection:
            await connection.execute(text("TRUNCATE asignals_outbox"))
            await connection.execute(box.tables.outbox.insert(), rows)
        began = time.perf_counter()
        while await box.drain_once(nowhere):
            pass
        return time.perf_counter() - began

    await run("outbox drain", {"asignals": drain}, None)
    await _latency(engine)


async def _latency(engine: AsyncEngine) -> None:
    """From commit to receiver, 100 a second by turns: through outbox and JetStream, and what a program does by hand."""
    name = f"bench{secrets.token_hex(4)}"
    heard = asyncio.Event()
    async with AsyncExitStack() as stack:
        ways = await _by_hand(stack, engine, name, heard)
        shop = Relay(JetStream(NATS, stream=name), "shop", outbox=SQLAlchemyOutbox(engine))
        elsewhere = Relay(Memory(), "shop", outbox=SQLAlchemyOutbox(engine))  # it runs no relay, so NOTIFY tells
        billing = Relay(JetStream(NATS, stream=name), "billing")
        shop.export(order_paid, "bench")
        elsewhere.export(order_sent, "bench")
        billing.receive(order_heard, "bench")

        async def pay(relay: Relay, what: Any) -> float:
            async with AsyncSession(engine) as session, session.begin():
                with relay.bind(session):
                    await what.send("shop", note=NOTE)
            return time.perf_counter()

        ways["asignals, the relay in this process"] = partial(pay, shop, order_paid)
        ways["asignals, the relay elsewhere (NOTIFY)"] = partial(pay, elsewhere, order_sent)

        async def receiver(**_: Any) -> None:
            heard.set()

        waits: dict[str, list[float]] = {way: [] for way in ways}
        stack.enter_context(order_heard.connected(receiver))
        await stack.enter_async_context(shop)
        await stack.enter_async_context(billing)
        for number in range(550):
            for way, commit in ways.items():
                heard.clear()
                committed = await commit()
                await heard.wait()
                if number >= 50:
                    waits[way].append(max(0.0, time.perf_counter() - committed))
                await asyncio.sleep(0.005)
        shop.stop_exporting(order_paid)
        elsewhere.stop_exporting(order_sent)
    print("commit to receiver (goal: p99 of 10 ms)")
    for way, found in waits.items():
        found.sort()
        p50, p99 = found[len(found) // 2] * 1e3, found[int(len(found) * 0.99)] * 1e3
        print(f"  {way:<42} p50 {p50:>5.1f} ms, p99 {p99:>5.1f} ms")


async def _by_hand(
    stack: AsyncExitStack, engine: AsyncEngine, name: str, heard: asyncio.Event
) -> dict[str, Callable[[], Awaitable[float]]]:
    """LISTEN and NOTIFY alone; and the whole way with the raw clients, an outbox and a stream of their own."""
    async with engine.connect() as connection:
        schema = (await connection.execute(text("SELECT current_schema()"))).scalar_one()
    url = POSTGRES.replace("+asyncpg", "")
    settings = {"search_path": str(schema)}
    sender, relay, listener = [await asyncpg.connect(url, server_settings=settings) for _ in range(3)]
    for raw in (sender, relay, listener):
        stack.push_async_callback(raw.close)
    await sender.execute("CREATE TABLE raw_outbox (id SERIAL PRIMARY KEY, data BYTEA)")
    client = await nats.connect(NATS)
    context = client.jetstream()
    await context.add_stream(name=f"{name}-raw", subjects=[f"{name}-raw.>"], duplicate_window=120)
    stack.push_async_callback(_without_streams, client, name)
    arrived = asyncio.Event()

    async def drain() -> None:
        while True:
            await arrived.wait()
            arrived.clear()
            async with relay.transaction():
                for row in await relay.fetch("DELETE FROM raw_outbox RETURNING id, data"):
                    await context.publish(f"{name}-raw.bench", row["data"], headers={"Nats-Msg-Id": str(row["id"])})

    async def received(message: Any) -> None:
        await message.ack()
        heard.set()

    await context.subscribe(f"{name}-raw.bench", cb=received, manual_ack=True)
    draining = asyncio.create_task(drain())
    stack.callback(draining.cancel)
    await listener.add_listener(f"{name}_alone", lambda *_: heard.set())
    await listener.add_listener(name, lambda *_: arrived.set())

    async def commit(channel: str) -> float:
        async with sender.transaction():
            await sender.execute("INSERT INTO raw_outbox (data) VALUES ($1)", BODY)
            await sender.execute(f"NOTIFY {channel}")
        return time.perf_counter()

    return {
        "LISTEN, NOTIFY, nothing else": partial(commit, f"{name}_alone"),
        "asyncpg and nats-py by hand": partial(commit, name),
    }


async def _without_streams(client: Any, name: str) -> None:
    for stream in (name, f"{name}-dead", f"{name}-raw"):
        with suppress(nats.js.errors.NotFoundError):
            await client.jetstream().delete_stream(stream)
    await client.close()


CASES = {"jetstream": jetstream, "redis": redis, "outbox": outbox}


def main(arguments: list[str]) -> None:
    """Run the cases that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relay", description="The relay beside the raw clients.")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=[])
    parser.add_argument("--events", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)

    async def run(title: str, contenders: dict[str, Contender], goal: float | None) -> None:
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for contender in contenders.values():
            await contender(min(options.events, 1_000))  # everything is loaded and connected now
        for _ in range(options.rounds):
            for name, contender in contenders.items():
                gc.collect()
                seconds[name].append(await contender(options.events))
        rates = {name: options.events / statistics.median(times) for name, times in seconds.items()}
        print(title)
        first = next(iter(rates.values()))
        for name, rate in rates.items():
            share = f"  {rate / first:.2f} of raw" if rate is not first else ""
            wanted = f" (goal: {goal:.2f})" if share and goal else ""
            print(f"  {name:<40} {rate:>10,.0f}/s{share}{wanted}")

    async def run_cases() -> None:
        for name in options.cases or CASES:
            await CASES[name](run)

    asyncio.run(run_cases())


if __name__ == "__main__":
    main(sys.argv[1:])
