"""The demo with its kitchen in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import nats
import pytest
from relay_support import require


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo as a user does."""
    command = [sys.executable, "-m", "asignals", "demo", "--requests", "40", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.run(  # noqa: S603  this very program
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )


async def remove_streams(url: str) -> None:
    """Delete what the demo leaves on a server."""
    client = await nats.connect(url)
    for stream in ("asignals-demo", "asignals-demo-dead"):
        await client.jetstream().delete_stream(stream)
    await client.close()


@pytest.mark.parametrize("engine", ["sqlite", "nats"])
def test_the_kitchen_hears_every_pizza(engine: str, request: pytest.FixtureRequest) -> None:
    """`--relay` announces each pizza to a second process, over SQLite without a server or over a broker."""
    if engine == "nats":
        engine = require("nats")
        request.addfinalizer(lambda: asyncio.run(remove_streams(engine)))
    done = demo("--json", "--relay", engine)
    assert done.returncode == 0, done.stderr
    kitchen = json.loads(done.stdout)["kitchen"]
    assert kitchen["sent"] == kitchen["heard"] == 20


def test_an_engine_that_is_not_known_is_named() -> None:
    """A URL that means nothing ends the demo with one line."""
    done = demo("--relay", "carrier-pigeon://coop")
    assert done.returncode != 0
    assert "carrier-pigeon" in done.stderr
    assert "Traceback" not in done.stderr
