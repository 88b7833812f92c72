"""Everything at once: rolling deploys under load, while the networks to the broker and to the inbox come and go.

Small here; `ASIGNALS_LONG=1` takes the limits as they are, and many more faults.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from relay_faults import Proxy, proxied
from relay_support import postgres_schema, require, until
from sqlalchemy.ext.asyncio import create_async_engine
from test_relay_broker_faults import BACK_WITHIN, LONG, _short_limits, broker  # noqa: F401  fixtures
from test_relay_faults import _short_limits as _short_database_limits  # noqa: F401  a fixture

from asignals import Signal
from asignals.relay import Envelope, Relay, SQLAlchemyInbox, _receive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.once,
    pytest.mark.slow,
    pytest.mark.usefixtures("_short_database_limits"),
    # Clients drop connections that were cut while they were opened, and leave them to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FAULTS = 40 if LONG else 3
WITHIN = BACK_WITHIN * 3


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture
async def inbox() -> AsyncIterator[tuple[SQLAlchemyInbox, Proxy]]:
    """An inbox by way of a proxy, and that."""
    async with postgres_schema() as (engine, schema), proxied(require("postgres")) as (url, proxy):
        await SQLAlchemyInbox(engine).init()
        far = create_async_engine(url, connect_args={"server_settings": {"search_path": schema}})
        yield SQLAlchemyInbox(far), proxy
        await proxy.cut()
        await far.dispose()


class Instances:
    """The instances of one service that run now; each release of it receives other topics."""

    def __init__(self, transport: Any, inbox: SQLAlchemyInbox) -> None:
        self.heard: Counter[tuple[str, int]] = Counter()
        self.relays: list[Relay] = []
        self._transport = transport
        self._inbox = inbox
        self._running: list[AsyncExitStack] = []

    async def start(self, *topics: str, version: int) -> None:
        """Start one more."""
        relay = Relay(self._transport, "billing", inbox=self._inbox, grace=1, limit=10)
        for topic in topics:
            into = Signal(["n"])

            async def note(n: int, topic: str = topic, **_: Any) -> None:
                await asyncio.sleep(0.005)
                self.heard[topic, n] += 1

            into.connect(note, weak=False, dispatch_uid="note")
            relay.receive(into, topic, version=version, retries=1_000, backoff=(0.05, 0.3))
        self.relays.append(relay)
        stack = AsyncExitStack()
        await stack.enter_async_context(relay)
        self._running.append(stack)

    async def stop(self, place: int = 0) -> None:
        """End the oldest, or another one."""
        await self._running.pop(place).aclose()

    @property
    def problems(self) -> list[str]:
        """What is wrong with those that run."""
        return [
            problem for relay in self.relays if relay._runner.is_running for problem in relay.health().problems.values()
        ]


async def test_nothing_is_lost_whatever_the_networks_do_while_a_service_is_deployed(
    broker: tuple[Any, Any, Proxy],  # noqa: F811
    inbox: tuple[SQLAlchemyInbox, Proxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All committed events are heard, of topics and versions that only some instances know, too; none is buried."""
    monkeypatch.setattr(_receive, "_ELSEWHERE", 0.1)
    # Nor does anybody ask for what became of those connections: asyncpg's futures of them keep their errors.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    seed = int(time.time())
    dice = random.Random(seed)  # noqa: S311  no secret
    far, direct, to_broker = broker
    memory, to_inbox = inbox
    await direct.add_service("billing", ["order.paid", "order.refunded"])
    instances = Instances(far, memory)
    due: set[tuple[str, int]] = set()

    async def publish(topic: str, count: int, version: int = 1) -> None:
        numbers = range(len(due), len(due) + count)
        events = [Envelope(topic, b'{"n":%d}' % n, version=version, origin="shop/one") for n in numbers]
        await direct.publish_many(events)
        due.update((topic, n) for n in numbers)

    kinds = [(proxy, kind) for kind in ("silence", "cut", "slow") for proxy in (to_broker, to_inbox)]
    await instances.start("order.paid", version=1)
    await instances.start("order.paid", "order.refunded", version=2)
    for number in range(FAULTS):
        await publish("order.paid", 10)
        proxy, kind = kinds[number % 2] if number < 2 else dice.choice(kinds)
        if kind == "cut":
            await proxy.cut()
        elif kind == "slow":
            proxy.slow(0.02)
        else:
            proxy.silence()
        await publish("order.refunded", 5, dice.choice((1, 2)))
        await publish("order.paid", 5, dice.choice((1, 2)))
        await asyncio.sleep(10 if LONG else 1)
        await proxy.restore()
        await instances.start("order.paid", "order.refunded", version=2)
        await instances.stop()
        await until(lambda: not instances.problems, WITHIN)
    slow = (
        6 if type(direct).__name__ == "Kafka" else 1
    )  # its groups take their time, the more the more instances came and went
    await until(lambda: set(instances.heard) >= due, WITHIN * slow)
    while instances._running:
        await instances.stop()
    assert set(instances.heard) == due, f"seed {seed}"
    assert sum(relay.health().dead for relay in instances.relays) == 0, f"seed {seed}"
