"""Order by key under SIGKILL and SIGSTOP: of relays, instances and brokers."""

from __future__ import annotations

import time
from typing import Any

import pytest
from relay_order import ENGINES, run
from relay_support import require

pytestmark = [pytest.mark.anyio, pytest.mark.once, pytest.mark.slow]
QUICK = {"postgres", "jetstream"}  # partitions by rows with leases, and by the broker


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.mark.parametrize(
    "engine", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in ENGINES]
)
async def test_no_key_is_out_of_place_whoever_is_killed_and_frozen(engine: str, long: bool) -> None:  # noqa: FBT001
    """The first handling of a key's events is in the order of their commits, and none of them run at once."""
    require("postgres")
    if engine == "kafka" and not long:
        pytest.skip("its groups take their time to notice: run with --long")
    events, keys, faults = (2_000, 40, 30) if long else (100, 20, 2)
    seed = int(time.time())
    found = await run(engine, events=events, keys=keys, faults=faults, seed=seed, own=long or engine != "rabbitmq")
    assert found.lost == 0, f"{found}, seed {seed}"
    assert found.out_of_place == 0, f"{found}, seed {seed}"
    assert found.together == 0, f"{found}, seed {seed}"
    assert sum(found.faults.values()) == faults
