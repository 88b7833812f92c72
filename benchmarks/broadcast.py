"""How soon every process hears a broadcast: `python -m benchmarks.broadcast [ENGINE …] [--processes 4] [--events 10000]
[--rate 500]`.

One process sends events one by one, at an even rate; each of the others has a relay that receives the topic with
`broadcast=True`, and notes how long after its `send` was called each event came to its receiver. Needs the servers of
the tests (ASIGNALS_NATS_URL, ASIGNALS_REDIS_URL, …). All of them share this machine, so what one of them needs of its
processors is missing for the others: a rate that they cannot keep up with makes a queue, and the latency is that of the
queue. `late` is by how much the sender itself was behind its rate (99 of 100 events).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import aio_pika
import nats
from redis.asyncio import Redis

from asignals import signal
from asignals.relay import Relay, engine_from_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

URLS = {
    "jetstream": os.environ.get("ASIGNALS_NATS_URL", "nats://127.0.0.1:4222"),
    "redis": os.environ.get("ASIGNALS_REDIS_URL", "redis://127.0.0.1:6379/0"),
    "rabbitmq": os.environ.get("ASIGNALS_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672/"),
}
PLAIN = ("nats-py", "redis-py")  # the same by hand, to compare with
TOPIC = "changed"
PROBE = -1  # the number of events that are sent until every process hears


@signal
def changed(sender: str, *, number: int, sent_at: float) -> None:
    """What everybody is to hear."""


@dataclass
class Heard:
    """What came of one run; milliseconds, of the process that was worst."""

    engine: str
    processes: int
    events: int
    rate: int
    heard: list[int]
    """Events that each process has heard, once each."""
    p50: float
    p99: float
    most: float
    late: float
    cpu_us: int
    """Microseconds of a processor that hearing one event takes."""


def engine(name: str, prefix: str) -> Any:
    """Make the engine with names of its own."""
    argument = {"jetstream": "stream", "redis": "prefix", "rabbitmq": "name"}[name]
    return engine_from_url(URLS[name], **{argument: prefix})


class Hearer:
    """Notes how long each event took, and knows when all were heard."""

    def __init__(self, events: int) -> None:
        self.took: dict[int, float] = {}
        self.ready, self.done = asyncio.Event(), asyncio.Event()
        self._events = events

    async def __call__(self, number: int, sent_at: float, **_: Any) -> None:
        if number == PROBE:
            self.ready.set()
            return
        self.took.setdefault(number, time.time() - sent_at)
        if len(self.took) == self._events:
            self.done.set()


async def hear(name: str, prefix: str, events: int) -> None:
    """Hear so many events, and write how long they took."""
    hearer = Hearer(events)
    async with listening(name, prefix, hearer):
        await hearer.ready.wait()
        print("ready", flush=True)
        began = time.process_time()
        with suppress(TimeoutError):  # the count says it
            async with asyncio.timeout(60 + events / 100):
                await hearer.done.wait()
        cpu = time.process_time() - began
    print(json.dumps({"took": sorted(hearer.took.values()), "cpu": cpu}), flush=True)


@asynccontextmanager
async def listening(name: str, prefix: str, hearer: Hearer) -> AsyncIterator[None]:
    """Hear, with a relay or with the plain client."""
    if name in URLS:
        changed.connect(hearer, weak=False)
        relay = Relay(engine(name, prefix), "web", instance=f"w{os.getpid()}")
        relay.receive(changed, TOPIC, broadcast=True)
        async with relay:
            yield
    elif name == "nats-py":
        client = await nats.connect(URLS["jetstream"])

        async def arrived(message: Any) -> None:
            await hearer(**json.loads(message.data))

        await client.subscribe(f"{prefix}.{TOPIC}", cb=arrived)
        yield
        await client.close()
    else:
        async with Redis.from_url(URLS["redis"], protocol=2) as redis:

            async def read() -> None:
                last: Any = b"$"
                while True:
                    for _, entries in await redis.xread({prefix: last}, block=1000) or []:
                        for id_, fields in entries:
                            last = id_
                            await hearer(**json.loads(fields[b"d"]))

            reading = asyncio.create_task(read())
            yield
            reading.cancel()
            await asyncio.wait([reading])


@asynccontextmanager
async def sending(name: str, prefix: str) -> AsyncIterator[Callable[[int], Awaitable[object]]]:
    """Give what sends a number."""
    if name in URLS:
        relay = Relay(engine(name, prefix), "shop")
        relay.export(changed, TOPIC)
        async with relay:
            yield lambda number: changed.send("shop", number=number, sent_at=time.time())
        relay.stop_exporting(changed)
    elif name == "nats-py":
        client = await nats.connect(URLS["jetstream"])
        context = client.jetstream()
        await context.add_stream(name=prefix, subjects=[f"{prefix}.>"])

        async def publish(number: int) -> None:
            await context.publish(f"{prefix}.{TOPIC}", _plain(number))

        yield publish
        await client.close()
    else:
        async with Redis.from_url(URLS["redis"], protocol=2) as redis:
            yield lambda number: redis.xadd(prefix, {"d": _plain(number)})


def _plain(number: int) -> bytes:
    return json.dumps({"number": number, "sent_at": time.time()}).encode()


async def run(name: str, *, processes: int, events: int, rate: int) -> Heard:
    """Start the processes, send, and gather what they heard."""
    prefix = f"bench{secrets.token_hex(4)}"
    command = [sys.executable, "-m", __name__ if __name__ != "__main__" else "benchmarks.broadcast", name]
    command += ["--role", prefix, "--events", str(events)]
    pipe = asyncio.subprocess.PIPE
    limit = 64 * 1024 * 1024  # bytes of a line
    hearers = [await asyncio.create_subprocess_exec(*command, stdout=pipe, limit=limit) for _ in range(processes)]
    late: list[float] = []
    try:
        async with sending(name, prefix) as send:
            beginning = asyncio.gather(*(_line(one) for one in hearers))
            while not beginning.done():
                await send(PROBE)
                await asyncio.sleep(0.1)
            began = time.time()
            for number in range(events):
                due = began + number / rate
                await asyncio.sleep(max(0.0, due - time.time()))
                late.append(time.time() - due)
                await send(number)
            results = [json.loads(await _line(one)) for one in hearers]
            for one in hearers:
                await one.wait()
    finally:
        for one in hearers:
            if one.returncode is None:
                one.kill()
                await one.wait()
        await clean(name, prefix)
    took = [result["took"] for result in results]
    worst = max(took, key=lambda times: _at(times, 0.99))
    return Heard(
        name,
        processes,
        events,
        rate,
        heard=[len(times) for times in took],
        p50=_at(worst, 0.5),
        p99=_at(worst, 0.99),
        most=_at(worst, 1.0),
        late=_at(sorted(late), 0.99),
        cpu_us=round(max(result["cpu"] for result in results) / events * 1e6),
    )


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode()


def _at(times: list[float], share: float) -> float:
    """Give the time in milliseconds that this share of sorted times does not exceed."""
    return round(times[min(len(times) - 1, int(len(times) * share))] * 1000, 1) if times else float("inf")


async def clean(name: str, prefix: str) -> None:
    """Remove what was made on the servers."""
    if name in ("jetstream", "nats-py"):
        client = await nats.connect(URLS["jetstream"])
        for info in await client.jsm().streams_info():
            if info.config.name is not None and prefix in info.config.name:
                await client.jsm().delete_stream(info.config.name)
        await client.close()
    elif name in ("redis", "redis-py"):
        async with Redis.from_url(URLS["redis"]) as redis:
            keys = [key async for key in redis.scan_iter(f"*{prefix}*", count=1000)]
            await redis.delete(*keys, "")
    else:
        async with await aio_pika.connect(URLS[name]) as connection:
            channel = await connection.channel()
            for queue in ("unrouted", "services", "dead.dlq.shop"):
                await channel.queue_delete(f"{prefix}.{queue}")
            for exchange in (prefix, f"{prefix}.unrouted"):
                await channel.exchange_delete(exchange)


def main(arguments: list[str]) -> None:
    """Run the engines that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broadcast", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("engines", nargs="*", choices=[[], *URLS, *PLAIN], default=[])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=500)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.role:
        asyncio.run(hear(options.engines[0], options.role, options.events))
        return
    for name in options.engines or URLS:
        found = asyncio.run(run(name, processes=options.processes, events=options.events, rate=options.rate))
        print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
