"""The demo with its kitchen in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nats
import pytest
from redis.asyncio import Redis
from relay_support import require
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the demo as a user does."""
    command = [sys.executable, "-m", "asignals", "demo", "--requests", "20", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(  # noqa: S603  this very program
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Wait for a demo's end; gives what it wrote."""
    try:
        return process.communicate(timeout=90)
    finally:
        process.kill()


async def left_behind(engine: str, url: str) -> set[str]:
    """List what demos have made on a server."""
    if engine == "nats":
        client = await nats.connect(url)
        names = [info.config.name for info in await client.jsm().streams_info()]
        await client.close()
    elif engine == "redis":
        async with Redis.from_url(url) as redis:
            names = [key.decode() async for key in redis.scan_iter("{asignals_demo_*", count=1000)]
    else:
        database = create_async_engine(url)
        async with database.connect() as connection:
            names = (await connection.execute(text("SELECT nspname FROM pg_namespace"))).scalars().all()
        await database.dispose()
    return {name for name in names if "asignals_demo_" in name}


def kitchen_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a demo's end, and give what it says of its kitchen, which heard of every pizza."""
    output, errors = finished(process)
    assert process.returncode == 0, errors
    assert "stays at" not in errors
    kitchen: dict[str, Any] = json.loads(output)["kitchen"]
    assert kitchen["sent"] == kitchen["heard"] > 0
    return kitchen


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["nats", "postgres", "rabbitmq"])
def test_the_kitchen_hears_every_pizza_over_a_server(engine: str) -> None:
    """`--relay URL` announces each pizza to a second process, under names of its own, and leaves nothing there."""
    url = require(engine)
    name = kitchen_of(start("--json", "--relay", url))["name"]
    if engine != "rabbitmq":  # only its management plugin lists queues; that removing them failed would be said
        assert not {left for left in asyncio.run(left_behind(engine, url)) if name in left}


@pytest.mark.slow
def test_two_demos_at_once_do_not_hear_each_other() -> None:
    """Each run has a place of its own on the server, and removes only that."""
    url = require("redis")
    names = [kitchen_of(process)["name"] for process in [start("--json", "--relay", url) for _ in range(2)]]
    assert names[0] != names[1]
    assert not {left for left in asyncio.run(left_behind("redis", url)) for name in names if name in left}


def test_the_kitchen_hears_every_pizza_without_a_server(tmp_path: Path) -> None:
    """`--relay sqlite` needs nothing at all, and a file may be named, which then stays."""
    file = tmp_path / "own.db"
    for process in [start("--json", "--relay", "sqlite"), start("--json", "--relay", f"sqlite+aiosqlite:///{file}")]:
        kitchen_of(process)
    assert file.exists()


def test_an_engine_that_is_not_known_is_named() -> None:
    """A URL that means nothing ends the demo with one line."""
    process = start("--relay", "carrier-pigeon://coop")
    _, errors = finished(process)
    assert process.returncode != 0
    assert "carrier-pigeon" in errors
    assert "Traceback" not in errors
