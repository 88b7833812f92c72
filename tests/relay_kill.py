"""The kill test: senders, relays, consumers and brokers under SIGKILL, and then the books are balanced.

    python tests/relay_kill.py                        every engine, 20,000 events each
    python tests/relay_kill.py jetstream --events 600 --kills 6

The whole chain: transactions in PostgreSQL (one in ten is rolled back) with an outbox, two relays, the engine, two
services of two instances with an inbox. Relays, consumers and the broker are killed at random and started again. At
the end each service must have called its receiver for every committed event, for no other, and hardly ever twice.

NATS, Redis and RabbitMQ are started here, on free ports, and killed too. PostgreSQL belongs to the machine and stays
up; so does Kafka's stand-in, librdkafka's mock cluster, which keeps everything in the memory of this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

# ruff: noqa: E402  the path above is for the imports below, however this file is started
# ruff: noqa: S311  what is random is whom to kill
# ruff: noqa: S603, ASYNC220  it starts nothing but servers and itself
# ruff: noqa: PLW1509  what runs before a program is one system call

from relay_residue import die_with_parent, record_queues, removed
from relay_support import free_port, mariadb_database, postgres_schema, require, unique, until
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from asignals import Signal
from asignals.relay import Relay, SQLAlchemyInbox, SQLAlchemyOutbox, once, table_metadata
from asignals.relay._sql import as_engine
from asignals.relay.worker import run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVICES = ("billing", "shipping")
LEASE = 2.0
PATIENCE = 60.0
ENGINES = ("sqlite", "postgres", "jetstream", "redis", "rabbitmq", "kafka")


def transport_for(config: dict[str, Any]) -> Any:
    """Make the transport in whichever process asks."""
    name, url = config["engine"], config["url"]
    if name in ("sqlite", "postgres"):
        from asignals.relay import Database

        if name == "postgres":
            return Database(engine_for(config), lease=LEASE)
        return Database(url, lease=LEASE)
    if name == "jetstream":
        from asignals.relay import JetStream

        return JetStream(url, stream=config["name"], ack_wait=LEASE)
    if name == "redis":
        from asignals.relay import RedisStreams

        return RedisStreams(url, prefix=config["name"], lease=LEASE)
    if name == "kafka":
        from asignals.relay import Kafka

        settings = {"heartbeat.interval.ms": 300, "session.timeout.ms": 6000, "log_level": 0}
        return Kafka(url, name=config["name"], **settings)
    from asignals.relay import RabbitMQ

    record_queues()
    return RabbitMQ(url, name=config["name"])


def engine_for(config: dict[str, Any]) -> Any:
    """Connect to the database of this run."""
    if config["database"].startswith("sqlite"):
        return as_engine(config["database"])[0]
    settings = {"server_settings": {"search_path": config["schema"]}} if config["schema"] else {}
    return create_async_engine(config["database"], pool_size=6, connect_args=settings)


@asynccontextmanager
async def database_of(kind: str, directory: Path) -> AsyncIterator[tuple[Any, str, str | None]]:
    """Give an engine of a database for outbox, inbox and books, its URL, and the schema."""
    if kind == "postgres":
        async with postgres_schema() as (engine, schema):
            yield engine, require("postgres"), schema
    elif kind == "sqlite":
        url = f"sqlite+aiosqlite:///{directory}/books.db"
        engine, _ = as_engine(url)
        yield engine, url, None
        await engine.dispose()
    else:
        async with mariadb_database() as engine:
            yield engine, engine.url.render_as_string(hide_password=False), None


# -- the processes that are killed ---------------------------------------------------------------------------------


async def run_relay(config: dict[str, Any]) -> None:
    """Publish what the outbox holds."""
    outbox = SQLAlchemyOutbox(engine_for(config), batch=100)
    await run_worker(Relay(transport_for(config), "shop", outbox=outbox, grace=3))


async def run_consumer(config: dict[str, Any], service: str) -> None:
    """Write down every event that is heard, in a transaction of its own."""
    engine = engine_for(config)
    heard = Signal(["number"])
    relay = Relay(transport_for(config), service, inbox=SQLAlchemyInbox(engine), limit=10, grace=3)
    relay.receive(heard, "order.paid", retries=10_000, backoff=(0.05, 0.5))
    write = text("INSERT INTO heard (service, number) VALUES (:service, :number)")

    async def book(number: int, **_: Any) -> None:
        await asyncio.sleep(config["work"] / 2)
        async with engine.begin() as connection, once(connection):
            await connection.execute(write, {"service": service, "number": number})
        await asyncio.sleep(config["work"] / 2)  # to be killed after the commit, before the acknowledgement

    heard.connect(book, weak=False, dispatch_uid="book")
    await run_worker(relay)


# -- the broker, where it is ours ----------------------------------------------------------------------------------


class Broker:
    """A server of our own on a free port, which keeps its files when it is killed."""

    def __init__(self, command: list[str], port: int, directory: Path, **environment: str) -> None:
        self._command = command
        self._port = port
        self._environment = {**os.environ, **environment}
        self._log = (directory / "broker.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    async def keeps(self, *_names: str) -> None:
        """Return when it would remember, though it were killed, that these queues exist: at once, most servers."""

    async def start(self) -> None:
        """Start it, and return when it answers."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=self._environment,
            preexec_fn=die_with_parent,
        )
        async with asyncio.timeout(90):
            while True:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    writer.close()
                    return
                await asyncio.sleep(0.05)

    def kill(self) -> None:
        """End it without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, what: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(what)

    def close(self) -> None:
        """End it for good."""
        self.kill()
        self._log.close()


class Node(Broker):
    """A RabbitMQ node, beside the name server that it cannot be without; in a cluster another one has started that."""

    def __init__(  # noqa: PLR0913  options by name
        self, command: str, port: int, directory: Path, *, name: str = "", names: int = 0, settings: str = ""
    ) -> None:
        self._directory = directory
        (directory / "rabbitmq.conf").write_text(f"listeners.tcp.local = 127.0.0.1:{port}\n{settings}")
        (directory / "plugins").write_text("[].\n")
        (directory / "nothing").touch()
        is_alone = not names
        names = names or free_port()
        super().__init__(
            [command],
            port,
            directory,
            HOME=str(directory if is_alone else directory.parent),
            ERL_EPMD_PORT=str(names),
            RABBITMQ_NODENAME=name or f"kill{port}@localhost",
            RABBITMQ_DIST_PORT=str(free_port()),
            RABBITMQ_MNESIA_BASE=str(directory / "rabbitmq"),
            RABBITMQ_LOG_BASE=str(directory),
            RABBITMQ_LOGS="-",
            RABBITMQ_CONFIG_FILE=str(directory / "rabbitmq.conf"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(directory / "plugins"),
            RABBITMQ_CONF_ENV_FILE=str(directory / "nothing"),
            # The script then becomes the server, instead of waiting for it: what is killed is the server itself.
            RABBITMQ_ALLOW_INPUT="true",
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-noinput -start_epmd false"
            " -kernel inet_dist_use_interface {127,0,0,1}",
        )
        self._names = None if not is_alone else name_server(names)

    async def keeps(self, *names: str) -> None:
        """Return when it would remember, though it were killed, that these queues exist.

        A new quorum queue is written to the directory of its logs some time after the declaration was confirmed. A node
        (3.10) that is killed before that makes it an empty log when it is started again, and never finds it a leader.
        """

        def written() -> bool:
            files = [file.read_bytes() for file in self._directory.rglob("names.dets")]
            return all(any(name.encode() in data for data in files) for name in names)

        await until(written)

    def close(self) -> None:
        """End it for good."""
        if self._names is not None:
            self._names.kill()
            self._names.wait()
        super().close()


def name_server(port: int) -> subprocess.Popen[bytes]:
    """Start what Erlang's nodes find each other by."""
    nothing = subprocess.DEVNULL
    command = ["epmd", "-port", str(port), "-address", "127.0.0.1"]
    return subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, preexec_fn=die_with_parent)


class Mock:
    """Kafka's stand-in, which lives and dies with this process."""

    def __init__(self) -> None:
        from confluent_kafka import Producer

        self._cluster: Any = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1, "log_level": 0})
        brokers = self._cluster.list_topics(timeout=10).brokers.values()
        self.url = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


def broker_for(engine: str, directory: Path) -> tuple[Broker | None, str]:
    """Give a server of our own, not started yet, where its program is here and it is one to be killed; and the URL."""
    port = free_port()
    if engine == "jetstream" and (found := shutil.which("nats-server")):
        command = [found, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory / "nats")]
        return Broker(command, port, directory), f"nats://127.0.0.1:{port}"
    if engine == "redis" and (found := shutil.which("redis-server")):
        options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory), "--save", ""]
        return Broker(
            [found, *options, "--appendonly", "yes", "--appendfsync", "always"], port, directory
        ), f"redis://127.0.0.1:{port}"
    # Not the script in the PATH of Debian, which changes to a user who may not write here.
    if engine == "rabbitmq" and (found := shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin")):
        return Node(found, port, directory), f"amqp://guest:guest@127.0.0.1:{port}/"
    return None, shared_url(engine, directory)


def shared_url(engine: str, directory: Path) -> str:
    """Give the URL of what is not killed."""
    if engine == "sqlite":
        return f"sqlite+aiosqlite:///{directory}/engine.db"
    return require({"jetstream": "nats"}.get(engine, engine))


# -- the test ------------------------------------------------------------------------------------------------------


@dataclass
class Books:
    """What came out."""

    engine: str
    committed: int
    rolled_back: int
    lost: int
    phantoms: int
    duplicates: int
    kills: dict[str, int]
    seconds: float

    @property
    def balanced(self) -> bool:
        """Nothing lost, nothing made up."""
        return not self.lost and not self.phantoms


class Killer:
    """Keeps the processes running, and kills them."""

    def __init__(self, config: dict[str, Any], broker: Broker | None, directory: Path, seed: int) -> None:
        self._config = json.dumps(config)
        self._queues = [f"{config['name']}.{service}" for service in SERVICES]
        self._broker = broker
        self._directory = directory
        self._random = random.Random(seed)
        self._roles = ["relay", "relay", *(service for service in SERVICES for _ in range(2))]
        self._deck: list[int] = []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.kills: Counter[str] = Counter()

    def start_all(self) -> None:
        for place in range(len(self._roles)):
            self._start(place)

    def _start(self, place: int) -> None:
        with (self._directory / f"{self._roles[place]}-{place}.log").open("ab") as log:
            command = [sys.executable, __file__, "--role", self._roles[place], "--config", self._config]
            self._processes[place] = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)

    async def kill_one(self) -> None:
        """Kill one at random, a relay, a consumer or the broker, and start it again."""
        if not self._deck:  # by turns, in random order: whoever is few is not left out by chance
            self._deck = [*range(len(self._roles)), *([-1] if self._broker else [])]
            self._random.shuffle(self._deck)
        place = self._deck.pop()
        if place == -1:
            assert self._broker is not None
            self.kills["broker"] += 1
            await self._broker.keeps(*self._queues)
            self._broker.kill()
            await asyncio.sleep(self._random.uniform(0.1, 0.6))
            await self._broker.start()
            return
        self.kills["relay" if self._roles[place] == "relay" else "consumer"] += 1
        self._processes[place].kill()
        self._processes[place].wait()
        await asyncio.sleep(self._random.uniform(0.0, 0.2))
        self._start(place)

    def stop_all(self) -> None:
        """End all of them, as they have always been ended here."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()


@asynccontextmanager
async def run_of(  # noqa: PLR0913  options by name
    engine: str, directory: Path, seed: int, *, own: bool, books: str, work: float
) -> AsyncIterator[tuple[Any, Killer]]:
    """Set everything up, and take it down again whatever happens."""
    async with AsyncExitStack() as stack:
        database, where, schema = await stack.enter_async_context(database_of(books, directory))
        async with database.begin() as connection:
            await connection.run_sync(table_metadata().create_all)
            await connection.execute(text("CREATE TABLE orders (number INTEGER PRIMARY KEY)"))
            await connection.execute(text("CREATE TABLE heard (service VARCHAR(100), number INTEGER)"))
        broker = None
        if engine == "kafka":
            cluster = Mock()
            url = cluster.url
        elif own:
            broker, url = broker_for(engine, directory)
        else:
            url = shared_url(engine, directory)
        if broker is not None:
            stack.callback(broker.close)
            await broker.start()
        config = {
            "engine": engine,
            "url": url,
            "schema": schema,
            "name": unique("kill"),
            "database": where,
            "work": work,
        }
        service = {"jetstream": "nats"}.get(engine, engine)
        if broker is None and service in ("nats", "redis", "rabbitmq"):
            await stack.enter_async_context(removed(service, config["name"]))
        transport = transport_for(config)
        if hasattr(transport, "init"):
            await transport.init()
        if hasattr(transport, "add_service"):
            for service in SERVICES:
                await transport.add_service(service, ["order.paid"])
        if hasattr(transport, "aclose"):
            await transport.aclose()
        if engine == "postgres":
            await transport.engine.dispose()  # it was made here, not by the transport
        killer = Killer(config, broker, directory, seed)
        stack.callback(killer.stop_all)
        killer.start_all()
        yield database, killer


async def send_all(database: Any, events: int, seed: int) -> tuple[set[int], int]:
    """Pay orders, one transaction each; returns those that were committed, and how many were not."""
    paid = Signal(["number", "session"])
    relay = Relay(_Nowhere(), "shop", outbox=SQLAlchemyOutbox(database))
    relay.export(paid, "order.paid")
    chance = random.Random(seed)
    numbers = iter(range(10**9))
    committed: set[int] = set()
    rolled_back = 0

    async def pay_orders() -> None:
        nonlocal rolled_back
        while len(committed) < events:
            number = next(numbers)
            fails = chance.random() < 0.1
            try:
                async with AsyncSession(database) as session, session.begin():
                    await session.execute(text("INSERT INTO orders VALUES (:number)"), {"number": number})
                    await paid.send("shop", number=number, session=session)
                    if fails:
                        raise InterruptedError  # noqa: TRY301  how an application's transaction fails
                committed.add(number)
            except (InterruptedError, OperationalError):  # the latter: SQLite's lock was taken for too long
                rolled_back += 1

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(pay_orders())
    return committed, rolled_back


class _Nowhere:
    """The sending process publishes nothing itself: relays do."""

    async def publish_many(self, _envelopes: Any) -> None:
        raise NotImplementedError

    async def consume(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError


async def heard_by_now(database: Any) -> int:
    """Count the events that services have heard, each once for each service."""
    async with database.connect() as connection:
        query = text("SELECT count(*) FROM (SELECT DISTINCT service, number FROM heard) AS once_each")
        return int((await connection.execute(query)).scalar_one())


async def run(  # noqa: PLR0913  options by name
    engine: str,
    *,
    events: int,
    kills: int,
    seed: int,
    own: bool = True,
    books: str = "postgres",
    work: float = 0.0,
) -> Books:
    """Run the test on one engine; without `own` it is the machine's server, which stays up.

    `books` is the database of outbox, inbox and receivers; `work` is in seconds, for each call of a receiver.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        async with run_of(engine, Path(name), seed, own=own, books=books, work=work) as (database, killer):
            sending = asyncio.create_task(send_all(database, events, seed))
            try:
                # Spread over the whole run: each comes when so much was heard, in the middle of some batch.
                for heard in sorted(random.Random(seed).sample(range(1, events * len(SERVICES)), kills)):
                    await _until_heard(database, heard)
                    await killer.kill_one()
                committed, rolled_back = await sending
                await _until_heard(database, len(committed) * len(SERVICES))
            except TimeoutError:
                _show_logs(Path(name))
                committed, rolled_back = await sending
            async with database.connect() as connection:
                rows = (await connection.execute(text("SELECT service, number FROM heard"))).all()
    calls = Counter((service, number) for service, number in rows)
    due = {(service, number) for service in SERVICES for number in committed}
    return Books(
        engine,
        len(committed),
        rolled_back,
        lost=len(due - calls.keys()),
        phantoms=len(calls.keys() - due),
        duplicates=sum(calls.values()) - len(calls),
        kills=dict(killer.kills),
        seconds=round(time.monotonic() - began, 1),
    )


def _show_logs(directory: Path) -> None:
    for log in sorted(directory.glob("*.log")):
        sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}\n")


async def _until_heard(database: Any, count: int) -> None:
    """Wait until so many were heard; `TimeoutError` when nothing new has come for `PATIENCE` seconds."""
    before, since = -1, time.monotonic()
    while (now := await heard_by_now(database)) < count:
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise TimeoutError
        await asyncio.sleep(0.1)


def main() -> None:
    """Run as a command, or as one of the processes that are killed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("engines", nargs="*", default=ENGINES)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--books", choices=("postgres", "sqlite", "mariadb"), default="postgres")
    parser.add_argument("--work", type=float, default=0.0, help="seconds that a receiver takes")
    parser.add_argument("--role")
    parser.add_argument("--config")
    options = parser.parse_args()
    if options.role:
        config = json.loads(options.config)
        work = run_relay(config) if options.role == "relay" else run_consumer(config, options.role)
        asyncio.run(work)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C does: everything that was started is ended
    failed = False
    for engine in options.engines:
        size = {"events": options.events, "kills": options.kills, "seed": options.seed}
        books = asyncio.run(run(engine, **size, books=options.books, work=options.work))
        share = 100 * books.duplicates / (books.committed * len(SERVICES))
        failed = failed or not books.balanced or share >= 0.5
        sys.stdout.write(
            json.dumps({**asdict(books), "duplicates_percent": round(share, 3), "seed": options.seed}) + "\n"
        )
        sys.stdout.flush()
    sys.exit(failed)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
