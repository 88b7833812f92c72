"""How far an engine goes: `python -m benchmarks.growth [ENGINE …] [--events 10000] [--instances 1 2 4]`.

Events a second, with so many processes of one service, whose receivers do nothing; and, which a busy machine does not
change, the processor time that an event takes in a worker, in the publisher, and in the server where its process is
named (`--server redis=1234`; Linux). All processes share this machine, so more of them are faster only as long as there
are processors: on two, four processes show who is in whose way, not what four machines would do.

Needs the servers of the tests (ASIGNALS_NATS_URL, ASIGNALS_REDIS_URL, ASIGNALS_RABBITMQ_URL, ASIGNALS_POSTGRES_URL).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from asignals import signal
from asignals.relay import Envelope, Relay, SQLAlchemyOutbox, engine_from_url, table_metadata
from benchmarks.broadcast import URLS, clean

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POSTGRES = os.environ.get("ASIGNALS_POSTGRES_URL", "postgresql+asyncpg://postgres@127.0.0.1:5432/test").replace(
    "postgresql://", "postgresql+asyncpg://", 1
)
ENGINES = (*URLS, "postgres")
TOPIC = "numbers"
BATCH = 500
BODY = b'{"note":"%b"}' % (b"x" * 89)  # 100 bytes
DAY = 86_400  # seconds


@signal
def order_paid(sender: str, *, note: str) -> None:
    """What is handled."""


@asynccontextmanager
async def engine(name: str, prefix: str) -> AsyncIterator[Any]:
    """Make an engine with names of its own."""
    if name == "postgres":
        made: Any = engine_from_url(POSTGRES, schema=prefix)
    else:
        argument = {"jetstream": "stream", "redis": "prefix", "rabbitmq": "name"}[name]
        made = engine_from_url(URLS[name], **{argument: prefix})
    try:
        yield made
    finally:
        await made.aclose()


async def work(name: str, prefix: str) -> None:
    """Handle events from when a line comes in until the next; say now and then how many there were."""
    count, last = 0, 0.0

    async def receive(**_: Any) -> None:
        nonlocal count, last
        count += 1
        last = time.time()

    order_paid.connect(receive, weak=False)
    async with engine(name, prefix) as transport:
        relay = Relay(transport, "bench", grace=5)
        relay.receive(order_paid, TOPIC)
        print(flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        began, ending = time.process_time(), asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        async with relay:
            while not ending.done():
                await asyncio.wait([ending], timeout=0.1)
                print(json.dumps([count, last, time.process_time() - began]), flush=True)


class Workers:
    """The processes of a service."""

    def __init__(self) -> None:
        self._processes: list[asyncio.subprocess.Process] = []
        self.state: list[tuple[int, float, float]] = []

    async def start(self, name: str, prefix: str, count: int) -> None:
        command = [sys.executable, "-m", "benchmarks.growth", name, "--role", prefix]
        pipe = asyncio.subprocess.PIPE
        for _ in range(count):
            self._processes.append(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))
        self.state = [(0, 0.0, 0.0)] * count
        await asyncio.gather(*(self._line(number) for number in range(count)))  # all is imported

    async def handle(self, events: int) -> float:
        """Let them handle so many events; gives the seconds that it took."""
        began = time.time()
        for process in self._processes:
            self._stdin(process).write(b"\n")
        reading = [asyncio.create_task(self._read(number)) for number in range(len(self._processes))]
        async with asyncio.timeout(60 + events / 50):
            while sum(state[0] for state in self.state) < events:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        for process in self._processes:
            self._stdin(process).close()
        await asyncio.gather(*reading)
        return max(state[1] for state in self.state) - began

    async def _read(self, number: int) -> None:
        while line := await self._line(number):
            self.state[number] = json.loads(line)

    async def _line(self, number: int) -> bytes:
        stdout = self._processes[number].stdout
        assert stdout is not None
        return await stdout.readline()

    @staticmethod
    def _stdin(process: asyncio.subprocess.Process) -> asyncio.StreamWriter:
        assert process.stdin is not None
        return process.stdin

    async def close(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            await process.wait()


async def measure(name: str, events: int, instances: int, server: int | None) -> dict[str, Any]:
    """Publish so many events, and have so many processes handle them."""
    prefix = f"bench{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:
        stack.push_async_callback(remove, name, prefix)
        if name == "postgres":
            await execute(f"CREATE SCHEMA {prefix}")
        workers = Workers()
        stack.push_async_callback(workers.close)
        transport = await stack.enter_async_context(engine(name, prefix))
        await transport.init()
        await transport.add_service("bench", [TOPIC])
        envelopes = [Envelope(TOPIC, BODY, sender="shop", origin="shop/one") for _ in range(events)]
        began, cpu, server_cpu = time.time(), time.process_time(), used(server)
        for start in range(0, events, BATCH):
            await transport.publish_many(envelopes[start : start + BATCH])
        published, publisher_cpu, server_publish = (
            time.time() - began,
            time.process_time() - cpu,
            used(server) - server_cpu,
        )
        await workers.start(name, prefix, instances)
        server_cpu = used(server)
        seconds = await workers.handle(events)
        server_handle = used(server) - server_cpu
    found = {
        "engine": name,
        "instances": instances,
        "publish_per_s": round(events / published),
        "handle_per_s": round(events / seconds),
        "publisher_us": round(publisher_cpu / events * 1e6),
        "worker_us": round(sum(state[2] for state in workers.state) / events * 1e6),
        "share_of_worker_busy": round(sum(state[2] for state in workers.state) / seconds / instances, 2),
    }
    if server is not None:
        found["server_us"] = round((server_publish + server_handle) / events * 1e6)
    return found


async def drain(events: int) -> dict[str, Any]:
    """Take so many events from an outbox in PostgreSQL, and publish them nowhere."""
    schema = f"bench{secrets.token_hex(4)}"
    await execute(f"CREATE SCHEMA {schema}")
    database = create_async_engine(POSTGRES, connect_args={"server_settings": {"search_path": schema}})
    try:
        box = SQLAlchemyOutbox(database)
        async with database.begin() as connection:
            await connection.run_sync(table_metadata().create_all)
            rows = [{"key": None, "data": Envelope(TOPIC, BODY).encode()} for _ in range(events)]
            await connection.execute(box.tables.outbox.insert(), rows)
        began, cpu = time.time(), time.process_time()

        async def nowhere(_: Any) -> None:
            return

        while await box.drain_once(nowhere):
            pass
        took, cpu = time.time() - began, time.process_time() - cpu
    finally:
        await database.dispose()
        await execute(f"DROP SCHEMA {schema} CASCADE")
    return {"outbox": "postgres", "drain_per_s": round(events / took), "relay_us": round(cpu / events * 1e6)}


def used(process: int | None) -> float:
    """Give the seconds of processor time that a process has used, where Linux says so."""
    if process is None:
        return 0.0
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def execute(statement: str) -> None:
    database = create_async_engine(POSTGRES)
    async with database.begin() as connection:
        await connection.execute(text(statement))
    await database.dispose()


async def remove(name: str, prefix: str) -> None:
    """Remove what was made on the servers."""
    if name == "postgres":
        await execute(f"DROP SCHEMA IF EXISTS {prefix} CASCADE")
        return
    async with engine(name, prefix) as transport:
        await transport.forget_service("bench", [TOPIC])
    await clean(name, prefix)


def arithmetic(per_day: float, peak: float, worker_us: float) -> str:
    """Say what so many events a day are a second, and in processors for workers."""
    per_second = per_day / DAY
    processors = per_second * peak * worker_us / 1e6
    average = f"{per_day:,.0f} events a day are {per_second:,.0f}/s on average, {per_second * peak:,.0f}/s at the peak"
    return f"{average}; at {worker_us:.0f} µs an event {processors:.1f} processors for workers"


async def run(options: argparse.Namespace) -> None:
    """Run what was asked for."""
    servers = {name: int(process) for name, _, process in (one.partition("=") for one in options.server)}
    for name in options.engines or ENGINES:
        for instances in options.instances:
            found = await measure(name, options.events, instances, servers.get(name))
            print(json.dumps(found), flush=True)
        print(f"  {arithmetic(options.per_day, options.peak, found['worker_us'])}", flush=True)
    print(json.dumps(await drain(options.events)), flush=True)


def main(arguments: list[str]) -> None:
    """Run the engines that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=(__doc__ or "").split("`")[0])
    parser.add_argument("engines", nargs="*", choices=[[], *ENGINES], default=[])
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--instances", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--server", nargs="*", default=[], metavar="NAME=PID", help="the process of a server")
    parser.add_argument("--per-day", type=float, default=1e9)
    parser.add_argument("--peak", type=float, default=5.0, help="how many times the average the peak is")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.role:
        asyncio.run(work(options.engines[0], options.role))
        return
    asyncio.run(run(options))


if __name__ == "__main__":
    main(sys.argv[1:])
