"""What a send to the outbox costs a transaction on PostgreSQL, in the time that passes.

Beside a second INSERT, which is half of what a send does, stands a version by hand of all that a send promises: the row
by the session's connection, with a time limit, and after the commit whoever publishes is woken. Needs the server of the
tests (ASIGNALS_POSTGRES_URL).
"""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from sqlalchemy import delete, event, func, select, table, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from asignals import signal
from asignals.relay import Envelope, Memory, Relay, SQLAlchemyOutbox, table_metadata

from .cases import Case, Goal
from .timing import Round

POSTGRES = os.environ.get("ASIGNALS_POSTGRES_URL", "postgresql+asyncpg://postgres@127.0.0.1:5432/test").replace(
    "postgresql://", "postgresql+asyncpg://", 1
)
ALONE, BY_HAND, SEND = "INSERT, COMMIT", "two INSERTs, COMMIT", "INSERT, a send, COMMIT"
PROMISING = "by hand, the same promises"
WAKE = "wake"  # in a session's `info`: what the version by hand calls after the commit
TRANSACTIONS = 5  # of each task in a round
TOPIC = "bench"
NOTE = "x" * 89  # with its name and quotes a body of 100 bytes
BODY = b'{"note":"%b"}' % NOTE.encode()

Work = Callable[[AsyncSession], Awaitable[None]]


@signal
def order_paid(sender: str, *, note: str) -> None:
    """What is sent."""


@asynccontextmanager
async def with_schema() -> AsyncIterator[AsyncEngine]:
    """An engine on tables of its own."""
    schema = f"bench{secrets.token_hex(4)}"
    engine = create_async_engine(POSTGRES, pool_size=20, connect_args={"server_settings": {"search_path": schema}})
    async with engine.begin() as connection:
        await connection.execute(text(f"CREATE SCHEMA {schema}"))
    try:
        async with engine.begin() as connection:
            await connection.run_sync(table_metadata().create_all)
            await connection.execute(text("CREATE TABLE orders (id SERIAL PRIMARY KEY, note TEXT)"))
        yield engine
    finally:
        async with engine.begin() as connection:
            await connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        await engine.dispose()


async def prepare(stack: AsyncExitStack, *, at_once: int, drains: bool) -> dict[str, Round]:
    """Transactions alone, with a row in the outbox by hand, and with a send."""
    engine = await stack.enter_async_context(with_schema())
    box = SQLAlchemyOutbox(engine)
    relay = Relay(Memory(), "shop", outbox=box)
    relay.export(order_paid, TOPIC)
    stack.callback(relay.stop_exporting, order_paid)
    by_hand = box.tables.outbox.insert()

    async def nothing(session: AsyncSession) -> None: ...

    async def insert(session: AsyncSession) -> None:
        await session.execute(by_hand, {"key": None, "data": Envelope(TOPIC, BODY, sender="shop").encode()})

    async def insert_and_wake(session: AsyncSession) -> None:
        connection = await session.connection()
        async with asyncio.timeout(8):
            await connection.execute(by_hand, {"key": None, "data": Envelope(TOPIC, BODY, sender="shop").encode()})
        driver = (await connection.get_raw_connection()).driver_connection
        session.info[WAKE] = box._wake_here if drains else partial(_notify, driver, box._channel)

    async def send(session: AsyncSession) -> None:
        with relay.bind(session):
            await order_paid.send("shop", note=NOTE)

    works: dict[str, Work] = {ALONE: nothing, BY_HAND: insert, PROMISING: insert_and_wake, SEND: send}
    for name, work in works.items():
        await check(engine, box, work, 0 if name == ALONE else 1)
    if drains:
        group = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(group.create_task(box.drain_for_ever(_nowhere)).cancel)
    return {name: partial(one_round, engine, at_once, work) for name, work in works.items()}


@event.listens_for(Session, "after_commit")
def _wake(session: Session) -> None:
    if (wake := session.info.pop(WAKE, None)) is not None:
        wake()


def _notify(driver: Any, channel: str) -> None:
    await_only(asyncio.wait_for(driver.execute(f"NOTIFY {channel}"), 2))


async def _nowhere(_: Any) -> None:
    return


async def check(engine: AsyncEngine, box: SQLAlchemyOutbox, work: Work, events: int) -> None:
    """See that a transaction writes one order, and the same events as another contender's."""
    orders, outbox = table("orders"), box.tables.outbox
    async with engine.begin() as connection:
        await connection.execute(delete(orders))
        await connection.execute(delete(outbox))
    await transactions(engine, 1, work)
    async with engine.connect() as connection:
        assert (await connection.execute(select(func.count()).select_from(orders))).scalar_one() == 1
        found = [Envelope.decode(data) for (data,) in await connection.execute(select(outbox.c.data))]
    assert [(each.topic, each.body, each.sender) for each in found] == [(TOPIC, BODY, "shop")] * events


async def transactions(engine: AsyncEngine, count: int, more: Work) -> None:
    order = text("INSERT INTO orders (note) VALUES (:note)")
    for _ in range(count):
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(order, {"note": NOTE})
            await more(session)


async def one_round(engine: AsyncEngine, at_once: int, work: Work) -> float:
    start = time.perf_counter()
    await asyncio.gather(*(transactions(engine, TRANSACTIONS, work) for _ in range(at_once)))
    return (time.perf_counter() - start) / (TRANSACTIONS * at_once)


def _case(at_once: int, how: str, loop: str, *, drains: bool) -> Case:
    goals = (Goal(SEND, ALONE, 1 / 0.75), Goal(SEND, PROMISING, 1))
    return Case(f"outbox/{at_once} at once, {how}", partial(prepare, at_once=at_once, drains=drains), goals, loop)


CASES = [
    _case(at_once, how, loop, drains=drains)
    for loop in ("asyncio", "uvloop")
    for at_once in (1, 10)
    for how, drains in (("NOTIFY tells others", False), ("a relay here drains", True))
]
