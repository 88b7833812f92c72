"""Servers of several machines, all of them here, whose leaders are killed under load; then the books are balanced.

    python tests/relay_clusters.py                          NATS, Redis and RabbitMQ, ten kills each
    python tests/relay_clusters.py nats --kills 60 --every 5
    python tests/relay_clusters.py redis --freeze --down 12

A sender with an outbox, its relay, and two instances of a service run in this process; each server has a process of its
own, on free ports, with temporary files. The leader is killed again and again, and started again after a moment.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

# ruff: noqa: E402  the path above is for the imports below, however this file is started

from relay_kill import Broker, Node, name_server
from relay_support import free_port, until

from asignals import Signal
from asignals.relay import Relay, SQLAlchemyOutbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE = 60.0  # seconds without anything new after which what is missing counts as lost


class Cluster(Protocol):
    """Some servers that act as one."""

    def transport(self, **options: Any) -> Any:
        """Make the engine that has this cluster."""

    async def leader(self) -> int:
        """Give the number of the server that leads."""

    def kill(self, number: int) -> None:
        """End a server without a word."""

    def signal(self, number: int, what: int) -> None:
        """Send a signal to a server."""

    async def start(self, number: int) -> None:
        """Start a server again; returns when it answers."""

    async def until_whole(self) -> None:
        """Wait until one more server may go without stopping the others."""


class NATS:
    """Three servers of NATS."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("nats-server") or ""
        self.ports = [free_port() for _ in range(3)]
        routes = [free_port() for _ in range(3)]
        self._brokers = []
        for number, (port, route) in enumerate(zip(self.ports, routes, strict=True)):
            here = directory / f"n{number}"
            here.mkdir()
            command = [program, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(here), "-n", f"n{number}"]
            command += ["--cluster_name", "c", "--cluster", f"nats://127.0.0.1:{route}"]
            command += ["--routes", ",".join(f"nats://127.0.0.1:{one}" for one in routes)]
            self._brokers.append(Broker(command, port, here))

    @property
    def urls(self) -> list[str]:
        return [f"nats://127.0.0.1:{port}" for port in self.ports]

    def transport(self, **options: Any) -> Any:
        from asignals.relay import JetStream

        return JetStream(self.urls, **{"stream": "cluster", "ack_wait": 2.0, "replicas": 3, **options})

    async def _infos(self, streams: list[str]) -> list[Any]:
        import nats

        client = await nats.connect(self.urls, max_reconnect_attempts=1, connect_timeout=1)
        try:
            return [(await client.jsm().stream_info(stream)) for stream in streams]
        finally:
            await client.close()

    async def leader(self) -> int:
        async with asyncio.timeout(60):
            while True:
                with suppress(Exception):
                    [info] = await self._infos(["cluster"])
                    if info.cluster.leader:
                        return int(info.cluster.leader[1:])
                await asyncio.sleep(0.1)

    def kill(self, number: int) -> None:
        self._brokers[number].kill()

    def signal(self, number: int, what: int) -> None:
        self._brokers[number].signal(what)

    async def start(self, number: int) -> None:
        await self._brokers[number].start()

    async def until_whole(self) -> None:
        async with asyncio.timeout(60):
            while True:
                with suppress(Exception):
                    infos = await self._infos(["cluster", "cluster-dead"])
                    replicas = [one for info in infos for one in info.cluster.replicas]
                    if len(replicas) == 4 and all(one.current and not one.offline for one in replicas):
                        return
                await asyncio.sleep(0.1)

    async def aopen(self) -> None:
        """Start all, and wait until they act as one."""
        import nats

        await asyncio.gather(*(broker.start() for broker in self._brokers))
        async with asyncio.timeout(60):
            client = await nats.connect(self.urls, connect_timeout=1)
            while True:
                with suppress(nats.errors.Error):
                    await client.jetstream(timeout=0.5).account_info()
                    break
                await asyncio.sleep(0.1)
            await client.close()

    def close(self) -> None:
        for broker in self._brokers:
            broker.close()


class Sentinels:
    """A Redis with two replicas, and three Sentinels that choose another leader after a second."""

    def __init__(self, directory: Path) -> None:
        program = shutil.which("redis-server") or ""
        self.ports = [free_port() for _ in range(3)]
        self.sentinel_ports = [free_port() for _ in range(3)]
        self._brokers, self._sentinels = [], []
        for number, port in enumerate(self.ports):
            here = directory / f"r{number}"
            here.mkdir()
            options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(here), "--save", ""]
            options += ["--appendonly", "yes", "--appendfsync", "always", "--repl-diskless-sync-delay", "0"]
            if number:
                options += ["--replicaof", "127.0.0.1", str(self.ports[0])]
            self._brokers.append(Broker([program, *options], port, here))
        for number, port in enumerate(self.sentinel_ports):
            here = directory / f"s{number}"
            here.mkdir()
            settings = here / "sentinel.conf"
            settings.write_text(
                f"bind 127.0.0.1\nport {port}\ndir {here}\nsentinel monitor one 127.0.0.1 {self.ports[0]} 2\n"
                "sentinel down-after-milliseconds one 1000\nsentinel failover-timeout one 5000\n"
            )
            self._sentinels.append(Broker([program, str(settings), "--sentinel"], port, here))

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.sentinel_ports)}/one"

    def transport(self, **options: Any) -> Any:
        from asignals.relay import RedisStreams

        return RedisStreams(self.url, **{"prefix": "cluster", "lease": 2.0, "replicas": 1, **options})

    async def _leader_address(self) -> tuple[str, int]:
        from redis.asyncio import Sentinel

        limits: Any = {"socket_connect_timeout": 1, "socket_timeout": 1}
        sentinel = Sentinel([("127.0.0.1", port) for port in self.sentinel_ports], sentinel_kwargs=limits)
        try:
            host, port = await sentinel.discover_master("one")
            return host, port
        finally:
            await sentinel.aclose()

    async def leader(self) -> int:
        async with asyncio.timeout(60):
            while True:
                with suppress(Exception):
                    return self.ports.index((await self._leader_address())[1])
                await asyncio.sleep(0.1)

    def kill(self, number: int) -> None:
        self._brokers[number].kill()

    def signal(self, number: int, what: int) -> None:
        self._brokers[number].signal(what)

    async def start(self, number: int) -> None:
        await self._brokers[number].start()

    async def until_whole(self) -> None:
        from redis.asyncio import Redis

        async with asyncio.timeout(60):
            while True:
                with suppress(Exception):
                    async with Redis(port=(await self._leader_address())[1], socket_timeout=1) as client:
                        info = await client.info("replication")
                        replicas = [value for name, value in info.items() if name.startswith("slave")]
                        online = [one for one in replicas if isinstance(one, dict) and one["state"] == "online"]
                        if info["role"] == "master" and len(online) == 2:
                            return
                await asyncio.sleep(0.1)

    async def aopen(self) -> None:
        """Start all, and wait until they act as one."""
        await asyncio.gather(*(broker.start() for broker in self._brokers))
        await asyncio.gather(*(broker.start() for broker in self._sentinels))
        await self.until_whole()

    def close(self) -> None:
        for broker in [*self._sentinels, *self._brokers]:
            broker.close()


class RabbitNodes:
    """Three nodes of RabbitMQ that find each other by their settings."""

    def __init__(self, directory: Path) -> None:
        # Not the scripts in the PATH of Debian, which change to a user who may not write here.
        self._program = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin") or "rabbitmq-server"
        self._directory = directory
        self.ports = [free_port() for _ in range(3)]
        self._names_port = free_port()
        self._names = name_server(self._names_port)
        (directory / ".erlang.cookie").write_text("asignals")
        (directory / ".erlang.cookie").chmod(0o400)
        names = [f"n{number}of{self._names_port}@localhost" for number in range(3)]
        settings = "cluster_formation.peer_discovery_backend = classic_config\n"
        settings += "".join(f"cluster_formation.classic_config.nodes.{n} = {name}\n" for n, name in enumerate(names, 1))
        self.names, self._brokers = names, []
        for number, (port, name) in enumerate(zip(self.ports, names, strict=True)):
            here = directory / f"n{number}"
            here.mkdir()
            self._brokers.append(Node(self._program, port, here, name=name, names=self._names_port, settings=settings))

    @property
    def urls(self) -> list[str]:
        return [f"amqp://guest:guest@127.0.0.1:{port}/" for port in self.ports]

    def transport(self, **options: Any) -> Any:
        from asignals.relay import RabbitMQ

        return RabbitMQ(self.urls, **{"name": "cluster", **options})

    async def _ask(self, *command: str) -> Any:
        """Ask whichever node answers."""
        environment = {**os.environ, "HOME": str(self._directory), "ERL_EPMD_PORT": str(self._names_port)}
        program = str(Path(self._program).with_name("rabbitmqctl"))
        for name in [*self.names, *self.names]:
            options = [program, "-n", name, "-q", *command, "--formatter", "json"]
            pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(
                *options, env=environment, stdin=nothing, stdout=pipe, stderr=nothing
            )
            out, _ = await process.communicate()
            if process.returncode == 0:
                return json.loads(out)
        raise ConnectionError

    async def _queues(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._ask("list_queues", "name", "leader", "online")
        return [queue for queue in found if queue["name"].startswith("cluster.billing/")]

    async def leader(self) -> int:
        """Give the node that leads the queue of events without a key."""
        leaders = {queue["name"]: queue["leader"] for queue in await self._queues()}
        return self.names.index(leaders["cluster.billing/order.paid"])

    def kill(self, number: int) -> None:
        self._brokers[number].kill()

    def signal(self, number: int, what: int) -> None:
        self._brokers[number].signal(what)

    async def start(self, number: int) -> None:
        await self._brokers[number].start()

    async def until_whole(self) -> None:
        async with asyncio.timeout(90):
            while True:
                with suppress(ConnectionError):
                    queues = await self._queues()
                    if queues and all(len(queue["online"]) == len(self.names) for queue in queues):
                        return
                await asyncio.sleep(0.2)

    async def aopen(self) -> None:
        """Start all, and wait until they act as one."""
        await asyncio.gather(*(broker.start() for broker in self._brokers))
        async with asyncio.timeout(90):
            while len((await self._ask("cluster_status"))["running_nodes"]) < len(self.names):  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    def close(self) -> None:
        for broker in self._brokers:
            broker.close()
        self._names.kill()
        self._names.wait()


CLUSTERS: dict[str, Any] = {"nats": NATS, "redis": Sentinels, "rabbitmq": RabbitNodes}


@asynccontextmanager
async def cluster(name: str) -> AsyncIterator[Any]:
    """Start a cluster, and end it whatever happens."""
    with tempfile.TemporaryDirectory(prefix="asignals", ignore_cleanup_errors=True) as directory:
        made = CLUSTERS[name](Path(directory))
        try:
            await made.aopen()
            yield made
        finally:
            made.close()


@dataclass
class Books:
    """What came of a run under load."""

    cluster: str
    sent: int
    lost: int
    phantoms: int
    duplicates: int
    out_of_place: int
    kills: int
    longest_silence: float
    """Seconds in which nothing was heard."""
    seconds: float

    @property
    def balanced(self) -> bool:
        return not self.lost and not self.phantoms and not self.out_of_place


class Load:
    """Sends events with an outbox at an even pace, and notes what two instances of a service hear."""

    def __init__(self, make: Any, directory: Path, pause: float = 0.01) -> None:
        self.sent = 0
        self._is_over = False
        self.heard: Counter[int] = Counter()
        self.longest_silence = 0.0
        self._heard_at = time.monotonic()
        self._outbox = SQLAlchemyOutbox(f"sqlite+aiosqlite:///{directory}/outbox.db")
        self._pause = pause
        self.shop = Relay(make(), "shop", outbox=self._outbox, grace=2, publish_timeout=60)
        self.instances = [Relay(make(), "billing", instance=f"i{n}", grace=2) for n in range(2)]
        self._order: dict[str, list[int]] = {}
        self._paid, self._hear = Signal(["number", "lane"]), Signal(["number", "lane"])
        self._hear.connect(self._note, weak=False, dispatch_uid="note")
        self.shop.export(self._paid, "order.paid", key=lambda _, arguments: arguments["lane"])
        for instance in self.instances:
            instance.receive(self._hear, "order.paid", retries=1000, backoff=(0.05, 0.5))

    def _note(self, number: int, lane: str | None, **_: Any) -> None:
        now = time.monotonic()
        self.longest_silence = max(self.longest_silence, now - self._heard_at)
        self._heard_at = now
        if lane is not None and not self.heard[number]:
            self._order.setdefault(lane, []).append(number)
        self.heard[number] += 1

    @property
    def out_of_place(self) -> int:
        """Count the events with a key that were first heard after a later one of the same key."""
        return sum(a > b for heard in self._order.values() for a, b in itertools.pairwise(heard))

    async def __aenter__(self) -> Self:
        await self._outbox.init()
        await self.instances[0].init()
        self._stack = AsyncExitStack()
        for relay in (self.shop, *self.instances):
            await self._stack.enter_async_context(relay)
        self._heard_at = time.monotonic()
        self._sending = asyncio.create_task(self._send())
        return self

    async def _send(self) -> None:
        while not self._is_over:  # a send that is cancelled may have committed
            lane = f"lane {self.sent % 7}" if self.sent % 2 else None  # half of them have a key
            await self._paid.send("shop", number=self.sent, lane=lane)
            self.sent += 1
            await asyncio.sleep(self._pause)

    async def until_heard(self) -> None:
        """Stop sending, and wait for what is still to come."""
        self._is_over = True
        await self._sending
        while len(self.heard) < self.sent and time.monotonic() - self._heard_at < PATIENCE:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await asyncio.wait([self._sending])
        await self._stack.aclose()

    def is_well(self) -> bool:
        return all(relay.health().ok for relay in (self.shop, *self.instances))


async def run(name: str, *, kills: int, every: float, down: float = 3.0, freeze: bool = False, **options: Any) -> Books:
    """Kill the leader so often under load, each time so many seconds after it was all there; or freeze it."""
    began = time.monotonic()
    async with cluster(name) as servers:
        with tempfile.TemporaryDirectory(prefix="asignals") as directory:
            async with Load(lambda: servers.transport(**options), Path(directory)) as load:
                await until(lambda: load.heard, 60)
                for _ in range(kills):
                    await servers.until_whole()
                    await asyncio.sleep(every)
                    number = await servers.leader()
                    if freeze:
                        servers.signal(number, signal.SIGSTOP)
                        await asyncio.sleep(down)
                        servers.signal(number, signal.SIGCONT)
                    else:
                        servers.kill(number)
                        await asyncio.sleep(down)
                        await servers.start(number)
                await load.until_heard()
    return Books(
        name,
        load.sent,
        lost=len(set(range(load.sent)) - load.heard.keys()),
        # One that was cut off while it was sent may have been sent.
        phantoms=len(load.heard.keys() - set(range(load.sent + 1))),
        duplicates=sum(load.heard.values()) - len(load.heard),
        out_of_place=load.out_of_place,
        kills=kills,
        longest_silence=round(load.longest_silence, 1),
        seconds=round(time.monotonic() - began, 1),
    )


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("clusters", nargs="*", default=list(CLUSTERS))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--down", type=float, default=3.0)
    parser.add_argument("--freeze", action="store_true", help="stop the leader for that time instead")
    options = parser.parse_args()
    failed = False
    for name in options.clusters:
        books = asyncio.run(
            run(name, kills=options.kills, every=options.every, down=options.down, freeze=options.freeze)
        )
        failed = failed or not books.balanced
        sys.stdout.write(json.dumps(asdict(books)) + "\n")
        sys.stdout.flush()
    sys.exit(failed)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
