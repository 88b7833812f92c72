"""The order test: relays, consumers and brokers are killed and frozen by turns, and then the order is looked at.

    python -m tests.relay_order                               every engine, 2,000 events of 40 keys, 30 faults
    python -m tests.relay_order jetstream --events 400 --faults 8

The whole chain: transactions in PostgreSQL, one after the other for each key, with an outbox; two relays, the engine,
three instances of a service. A receiver writes down when it begins an event and when it has ended; some fail. Whoever
is frozen stays so for longer than a lease, and then goes on. At the end the first handling of each key's events must be
in the order of their commits; and no two events of a key may have run at once, but for what a frozen instance was in.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

# ruff: noqa: E402  the path above is for the imports below, however this file is started
# ruff: noqa: S311  what is random is whom to kill
# ruff: noqa: S603  it starts nothing but servers and itself

from relay_kill import (
    LEASE,
    Mock,
    _Nowhere,
    _show_logs,
    broker_for,
    database_of,
    engine_for,
    run_relay,
    shared_url,
    transport_for,
)
from relay_residue import die_with_parent
from relay_support import unique
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from asignals import Signal
from asignals.relay import Database, Relay, SQLAlchemyInbox, SQLAlchemyOutbox, table_metadata
from asignals.relay.worker import run_worker

ENGINES = ("sqlite", "postgres", "jetstream", "redis", "rabbitmq", "kafka")
PATIENCE = 60.0  # seconds without anything new after which the rest counts as lost
FROZEN = {"rabbitmq": 22.0, "kafka": 9.0}  # seconds, longer than a lease; these go by heartbeats
ROLES = ("relay", "relay", "consumer", "consumer", "consumer")


async def run_consumer(config: dict[str, Any], name: str) -> None:
    """Write down when an event begins and ends; now and then fail."""
    engine = engine_for(config)
    changed = Signal(["key", "number"])
    relay = Relay(transport_for(config), "billing", inbox=SQLAlchemyInbox(engine), limit=20, grace=3)
    relay.receive(changed, "order.changed", retries=10_000, backoff=(0.05, 0.3))
    begin = text("INSERT INTO handled (instance, key, number) VALUES (:instance, :key, :number) RETURNING id")
    finish = text("UPDATE handled SET ended = clock_timestamp() WHERE id = :id")
    dice = random.Random(name)

    async def note(key: str, number: int, **_: Any) -> None:
        async with engine.begin() as connection:
            given = {"instance": name, "key": key, "number": number}
            place = (await connection.execute(begin, given)).scalar_one()
        await asyncio.sleep(dice.uniform(0.0, 0.03))
        fails = dice.random() < 0.03
        async with engine.begin() as connection:
            await connection.execute(finish, {"id": place})
        if fails:
            raise InterruptedError

    changed.connect(note, weak=False, dispatch_uid="note")
    await run_worker(relay)


@dataclass
class Findings:
    """What came out."""

    engine: str
    events: int
    lost: int
    out_of_place: int
    together: int
    together_beside_frozen: int
    duplicates: int
    faults: dict[str, int]
    seconds: float


class Faults:
    """Keeps the processes running, and kills or freezes them, one after the other."""

    def __init__(self, config: dict[str, Any], broker: Any, directory: Path, seed: int) -> None:
        self._config = config
        self._broker = broker
        self._directory = directory
        self._dice = random.Random(seed)
        self._deck: list[tuple[int, str]] = []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._frozen_for = FROZEN.get(config["engine"], LEASE * 2.5)
        self.frozen: list[str] = []  # the instances that were
        self.counts: Counter[str] = Counter()

    def start_all(self) -> None:
        """Start all processes."""
        for place in range(len(ROLES)):
            self._start(place)

    def _start(self, place: int) -> None:
        name = f"{ROLES[place]}-{place}-{time.monotonic_ns()}"
        with (self._directory / f"{ROLES[place]}-{place}.log").open("ab") as log:
            command = [sys.executable, __file__, "--role", ROLES[place], "--name", name]
            command += ["--config", json.dumps(self._config)]
            self._processes[place] = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)  # noqa: PLW1509
        self._processes[place].name = name  # type: ignore[attr-defined]  # a note of ours

    async def next(self) -> None:
        """Do harm to whoever is next."""
        if not self._deck:
            whom = [*range(len(ROLES)), *([-1] if self._broker is not None else [])]
            self._deck = [(place, how) for place in whom for how in ("kill", "freeze")]
            self._dice.shuffle(self._deck)
        place, how = self._deck.pop()
        self.counts[f"{how} {'broker' if place < 0 else ROLES[place]}"] += 1
        if place < 0:
            await self._harm_broker(how)
        elif how == "kill":
            self._processes[place].kill()
            self._processes[place].wait()
            self._start(place)
        else:
            process = self._processes[place]
            self.frozen.append(process.name)  # type: ignore[attr-defined]
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(self._frozen_for)
            process.send_signal(signal.SIGCONT)

    async def _harm_broker(self, how: str) -> None:
        if how == "kill":
            self._broker.kill()
            await asyncio.sleep(self._dice.uniform(0.1, 0.6))
            await self._broker.start()
        else:
            self._broker.signal(signal.SIGSTOP)
            await asyncio.sleep(LEASE * 2)
            self._broker.signal(signal.SIGCONT)

    def stop_all(self) -> None:
        """End all of them."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()


async def send_all(database: Any, events: int, keys: int) -> None:
    """Change orders, one transaction each, those of a key one after the other."""
    changed = Signal(["key", "number", "session"])
    relay = Relay(_Nowhere(), "shop", outbox=SQLAlchemyOutbox(database))
    relay.export(changed, "order.changed", key="key")

    async def change(mine: list[int]) -> None:
        for number in range(events // keys):
            for key in mine:
                async with AsyncSession(database) as session, session.begin():
                    await changed.send("shop", key=f"k{key}", number=number, session=session)
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as tasks:
        for first in range(4):
            tasks.create_task(change(list(range(first, keys, 4))))


async def handled_by_now(database: Any) -> int:
    """Count the events that have been handled to their end."""
    query = "SELECT count(DISTINCT (key, number)) FROM handled WHERE ended IS NOT NULL"
    async with database.connect() as connection:
        return int((await connection.execute(text(query))).scalar_one())


async def _until_handled(database: Any, count: int) -> None:
    before, since = -1, time.monotonic()
    while (now := await handled_by_now(database)) < count:
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise TimeoutError
        await asyncio.sleep(0.1)


async def run(engine: str, *, events: int, keys: int, faults: int, seed: int, own: bool = True) -> Findings:  # noqa: PLR0913
    """Run the test on one engine; without `own` it is the machine's server, which is left in peace."""
    began = time.monotonic()
    events -= events % keys
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        database, url, schema = await stack.enter_async_context(database_of("postgres", directory))
        await _make_tables(database)
        broker: Any = None
        if engine == "kafka":
            cluster = Mock()
            place = cluster.url
        elif own:
            broker, place = broker_for(engine, directory)
        else:
            place = shared_url(engine, directory)
        if broker is not None:
            stack.callback(broker.close)
            await broker.start()
        name = unique("order")
        config = {"engine": engine, "url": place, "schema": schema, "name": name, "database": url, "work": 0.0}
        await _make_known(config)
        if broker is not None:
            await broker.keeps(f"{name}.billing")
        harm = Faults(config, broker, directory, seed)
        stack.callback(harm.stop_all)
        harm.start_all()
        sending = asyncio.create_task(send_all(database, events, keys))
        try:
            for handled in sorted(random.Random(seed).sample(range(1, events), faults)):
                await _until_handled(database, handled)
                await harm.next()
            await sending
            await _until_handled(database, events)
        except TimeoutError:
            _show_logs(directory)
            await sending
        rows = await _rows(database)
    return _look_at(engine, rows, events, keys, harm, time.monotonic() - began)


async def _make_tables(database: Any) -> None:
    async with database.begin() as connection:
        await connection.run_sync(table_metadata().create_all)
        columns = "id SERIAL PRIMARY KEY, instance TEXT, key TEXT, number INTEGER"
        times = "began TIMESTAMPTZ DEFAULT clock_timestamp(), ended TIMESTAMPTZ"
        await connection.execute(text(f"CREATE TABLE handled ({columns}, {times})"))


async def _make_known(config: dict[str, Any]) -> None:
    transport = transport_for(config)
    if hasattr(transport, "init"):
        await transport.init()
    await transport.add_service("billing", ["order.changed"])
    if hasattr(transport, "aclose"):
        await transport.aclose()
    if isinstance(transport, Database):
        await transport.engine.dispose()


async def _rows(database: Any) -> list[Any]:
    query = "SELECT key, number, instance, began, ended FROM handled ORDER BY id"
    async with database.connect() as connection:
        return list((await connection.execute(text(query))).all())


def _look_at(engine: str, rows: list[Any], events: int, keys: int, harm: Faults, seconds: float) -> Findings:  # noqa: PLR0913, PLR0917
    """Find what was lost, out of place, or together."""
    firsts: dict[str, list[int]] = {}
    for key, number, *_ in rows:
        known = firsts.setdefault(key, [])
        if number not in known:
            known.append(number)
    out = sum(
        number < max(known[:place], default=-1) for known in firsts.values() for place, number in enumerate(known)
    )
    lost = events - sum(map(len, firsts.values()))
    together, beside_frozen = 0, 0
    for key in firsts:
        ended = [row for row in rows if row.key == key and row.ended is not None]
        for one, two in pairwise(ended):
            if two.began < one.ended and one.number != two.number:
                if {one.instance, two.instance} & set(harm.frozen):
                    beside_frozen += 1
                else:
                    together += 1
    return Findings(
        engine,
        events,
        lost,
        out,
        together,
        beside_frozen,
        len(rows) - sum(map(len, firsts.values())),
        dict(harm.counts),
        round(seconds, 1),
    )


def main() -> None:
    """Run as a command, or as one of the processes that are killed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("engines", nargs="*", default=ENGINES)
    parser.add_argument("--events", type=int, default=2_000)
    parser.add_argument("--keys", type=int, default=40)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--role")
    parser.add_argument("--name")
    parser.add_argument("--config")
    options = parser.parse_args()
    if options.role:
        config = json.loads(options.config)
        asyncio.run(run_relay(config) if options.role == "relay" else run_consumer(config, options.name))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C does: everything that was started is ended
    failed = False
    for engine in options.engines:
        found = asyncio.run(
            run(engine, events=options.events, keys=options.keys, faults=options.faults, seed=options.seed)
        )
        failed = failed or bool(found.lost or found.out_of_place or found.together)
        sys.stdout.write(json.dumps({**asdict(found), "seed": options.seed}) + "\n")
        sys.stdout.flush()
    sys.exit(failed)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
