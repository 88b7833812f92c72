"""Broadcasts to several processes: each hears everything, soon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from relay_support import require

sys.path.insert(0, str(Path(__file__).parent.parent))
broadcast = pytest.importorskip("benchmarks.broadcast")

pytestmark = [pytest.mark.anyio, pytest.mark.once, pytest.mark.slow]

SERVERS = {"jetstream": "nats", "redis": "redis", "rabbitmq": "rabbitmq"}
PROMISED = (
    20.0  # milliseconds from `send` to the receiver, for 99 of 100 events, where the machine has nothing else to do
)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.mark.parametrize("name", SERVERS)
async def test_four_processes_hear_every_event(name: str, long: bool) -> None:  # noqa: FBT001
    """Sent one by one by a fifth; how soon is judged where there is time, and nothing else runs."""
    require(SERVERS[name])
    events = 10_000 if long else 200
    found = await broadcast.run(name, processes=4, events=events, rate=200)
    assert found.heard == [events] * 4
    if long:
        assert found.p99 < PROMISED, found
