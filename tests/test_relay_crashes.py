"""An event that kills its process, in real processes: it becomes a dead letter, and its neighbours are handled."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from relay_residue import removed
from relay_support import URLS, mariadb_database, require, unique

from asignals.relay import Envelope, SQLAlchemyInbox, engine_from_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.once, pytest.mark.slow]
APPLICATION = """
import asyncio, os, signal
from asignals import Signal
from asignals.relay import Relay, SQLAlchemyInbox, engine_from_url

paid = Signal(["n"])
engine = engine_from_url(os.environ["ENGINE"], **eval(os.environ["OPTIONS"]))
inbox = SQLAlchemyInbox(os.environ["INBOX"]) if os.environ["INBOX"] else None
relay = Relay(engine, "billing", limit=30, grace=1, inbox=inbox)
relay.receive(paid, "order.paid", retries=2, backoff=(0.2, 0.5))

@paid.connect
async def book(n: int, **_: object) -> None:
    await asyncio.sleep(0.02)
    if n == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(0.02)
    with open(os.environ["BOOK"], "a") as book:
        book.write(f"{n}\\n")
"""
EVENTS = 30


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(params=["sqlite", "postgres", "redis", "jetstream", "rabbitmq"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[str, dict[str, Any], str]]:
    """A URL and options of each engine, in CI the one without a server; RabbitMQ has an inbox in MariaDB."""
    if request.param != "sqlite" and not request.config.getoption("--long"):
        pytest.skip("every engine by --long")
    name = unique()
    url, options = {
        "sqlite": (f"sqlite:///{tmp_path}/engine.db", {"lease": 1.0}),
        "postgres": (URLS["postgres"], {"lease": 1.0, "schema": name}),
        "redis": (URLS["redis"], {"lease": 1.0, "prefix": name}),
        "jetstream": (URLS["nats"], {"ack_wait": 1.0, "stream": name}),
        "rabbitmq": (URLS["rabbitmq"], {"name": name}),
    }[request.param]
    if request.param == "sqlite":
        yield url, options, ""
        return
    service = {"jetstream": "nats"}.get(request.param, request.param)
    require(service)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(removed(service, name))
        inbox = ""
        if service == "rabbitmq":
            database = await stack.enter_async_context(mariadb_database())
            await SQLAlchemyInbox(database).init()
            inbox = database.url.render_as_string(hide_password=False)
        yield url, options, inbox


@pytest.mark.anyio
async def test_a_killer_is_the_only_dead_letter_and_its_neighbours_are_handled(
    engine: tuple[str, dict[str, Any], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker is started again each time it dies, as a supervisor does, until all is done."""
    caplog.set_level(logging.CRITICAL, "asignals")
    url, options, inbox = engine
    (tmp_path / "application.py").write_text(APPLICATION)
    book = tmp_path / "book"
    transport: Any = engine_from_url(url, **options)
    if "schema" in options:
        async with transport.engine.begin() as connection:
            await connection.exec_driver_sql(f"CREATE SCHEMA {options['schema']}")
    if hasattr(transport, "init"):
        await transport.init()
    await transport.add_service("billing", ["order.paid"])
    await transport.publish_many([Envelope("order.paid", b'{"n":%d}' % n, origin="shop/1") for n in range(EVENTS)])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path.cwd()), *sys.path]),
        "ENGINE": url,
        "INBOX": inbox,
        "OPTIONS": repr(options),
        "BOOK": str(book),
    }
    command = [sys.executable, "-m", "asignals", "worker", "application:relay", "--log-level", "error"]
    crashes, end = 0, time.monotonic() + 120
    try:
        while True:
            process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)  # noqa: ASYNC220, S603
            while process.poll() is None:
                assert time.monotonic() < end, f"{crashes} crashes, backlog {await transport.backlog('billing')}"
                if await transport.backlog("billing") == 0:
                    process.terminate()
                    await asyncio.to_thread(process.wait, 30)
                    break
                await asyncio.sleep(0.05)
            if process.returncode == 0:
                break
            crashes += 1
        letters = [letter async for batch in transport.scan_dead_letters("dlq.billing") for letter in batch]
    finally:
        process.kill()
        await transport.aclose()
    assert [letter.envelope.body for letter in letters if letter.envelope] == [b'{"n":13}']
    assert letters[0].error.startswith("CrashedError")
    assert set(map(int, book.read_text().split())) == set(range(EVENTS)) - {13}
    assert crashes <= 4
