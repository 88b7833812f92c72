"""A run of the tests that is killed leaves nothing on the servers for longer than until the next one starts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import require, until
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.once, pytest.mark.slow]
HANGING = """
import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from relay_support import mariadb_database, world

from asignals.relay import Envelope, SQLAlchemyInbox


@pytest.mark.anyio
async def test_that_is_killed(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        for name in ("postgres", "jetstream", "redis", "rabbitmq"):
            engine = (await stack.enter_async_context(world(name, tmp_path))).open()
            await engine.add_service("a-service-of-its-own", ["a-topic"])
            await engine.publish_many([Envelope("a-topic", b"1")])
        await SQLAlchemyInbox(await stack.enter_async_context(mariadb_database())).init()
        Path("ready").touch()
        await asyncio.Event().wait()
"""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The servers' clients are for asyncio."""
    return "asyncio", {}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is closed at the end."""
    with ExitStack() as made:
        yield made


async def test_what_a_killed_run_leaves_is_removed_by_the_next(tmp_path: Path, stack: ExitStack) -> None:
    """Schemas, databases, streams, keys and queues: all that was made is there after the kill, and gone afterwards."""
    for service in ("postgres", "mariadb", "nats", "redis", "rabbitmq"):
        require(service)
    here = Path(__file__).parent
    notes = tmp_path / "notes"
    (tmp_path / "test_hanging.py").write_text(HANGING)
    (tmp_path / "conftest.py").write_text((here / "conftest.py").read_text())
    path = os.pathsep.join([str(here), str(here.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "ASIGNALS_TEST_NOTES": str(notes)}
    environment.pop("PYTEST_XDIST_WORKER", None)
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # most of the time would go into loading them
    command = [sys.executable, "-m", "pytest", "-q", "-p", "anyio", "-p", "no:cacheprovider", "-o", "addopts="]
    log = stack.enter_context((tmp_path / "log").open("wb"))
    process = subprocess.Popen(  # noqa: ASYNC220, S603  pytest itself
        [*command, "test_hanging.py", "-k", "asyncio"], cwd=tmp_path, env=environment, stdout=log, stderr=log
    )
    try:
        await until((tmp_path / "ready").exists, 60)
    except TimeoutError:
        pytest.fail((tmp_path / "log").read_text())
    finally:
        process.kill()
        process.wait()
    left = {note.name.split(".")[1]: note.name.split(".")[2] for note in notes.iterdir()}
    assert sorted(left) == ["mariadb", "nats", "postgres", "rabbitmq", "redis"]
    queues = [queue for note in notes.glob("*.rabbitmq.*") for queue in note.read_text().split()]
    assert [await _is_there(service, left[service], queues) for service in sorted(left)] == [True] * 5
    # The next session finds no test to run, and removes what is there when it starts.
    next_run = [*command, "--deselect", "test_hanging.py", "test_hanging.py"]
    await asyncio.to_thread(
        subprocess.run, next_run, cwd=tmp_path, env=environment, stdout=log, stderr=log, check=False, timeout=120
    )
    assert not list(notes.iterdir()), (tmp_path / "log").read_text()
    assert [await _is_there(service, left[service], queues) for service in sorted(left)] == [False] * 5


async def _is_there(service: str, name: str, queues: list[str]) -> bool:
    if service in ("postgres", "mariadb"):
        url = make_url(require(service))
        engine = create_async_engine(url.set(drivername="mariadb+aiomysql") if service == "mariadb" else url)
        query = text("SELECT count(*) FROM information_schema.schemata WHERE schema_name = :name")
        async with engine.connect() as connection:
            found = (await connection.execute(query, {"name": name})).scalar()
        await engine.dispose()
        return bool(found)
    if service == "nats":
        import nats

        client = await nats.connect(require("nats"))
        names = [info.config.name for info in await client.jsm().streams_info() if name in str(info.config.name)]
        await client.close()
        return bool(names)
    if service == "redis":
        from redis.asyncio import Redis

        async with Redis.from_url(require("redis")) as client:
            return bool([key async for key in client.scan_iter(f"{{{name}}}:*", count=1000)])
    import aio_pika

    async with await aio_pika.connect(require("rabbitmq")) as connection:
        for queue in queues:
            channel = await connection.channel()
            try:
                await channel.declare_queue(queue, passive=True)
            except aio_pika.exceptions.ChannelNotFoundEntity:
                continue
            return True
    return False
