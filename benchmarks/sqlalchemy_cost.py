"""What model signals cost, beside plain SQLAlchemy: rows inserted and updated in one flush and commit.

SQLite in memory, where the database costs least and signals show most. Every contender has a model of its own, because
hooks that a receiver once needed stay. All contenders of a comparison run in turns, and a figure is the ratio of the
fastest turns; "plain, again" tells how far to trust it. Times are CPU time of the process, the database's thread
included: signals add work, not waiting, and other processes disturb it less.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

from sqlalchemy import StaticPool, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from asignals.sqlalchemy import enable_signals, post_save, pre_save

SIZES = (1_000, 10_000)


class Base(DeclarativeBase):
    pass


class Row:
    """What all models have."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    amount: Mapped[int]
    note: Mapped[str | None]


class Contender(NamedTuple):
    name: str
    model: Any
    is_enabled: bool
    receivers: tuple[tuple[Any, Any, str], ...]
    goals: dict[str, float]  # by operation


async def hear_async(instance, **_):
    pass


def hear_sync(instance, **_):
    pass


def _contender(name: str, *receivers: Any, is_enabled: bool = True, **goals: float) -> Contender:
    table = "".join(c if c.isalnum() else "_" for c in name)
    model = type(table.title(), (Row, Base), {"__tablename__": table})
    return Contender(name, model, is_enabled, receivers, goals)


PLAIN = _contender("plain SQLAlchemy", is_enabled=False)
CONTENDERS = (
    PLAIN,
    _contender("plain, again", is_enabled=False),
    _contender("enabled, no receivers", insert=1.03, update=1.03),
    _contender("async post_save", (post_save, hear_async, "flush"), insert=1.35),
    _contender("sync post_save", (post_save, hear_sync, "flush")),
    _contender("post_save on commit", (post_save, hear_async, "commit")),
    _contender("async pre_save", (pre_save, hear_async, "flush")),
)


async def timed_insert(maker: Any, model: Any, size: int) -> float:
    """Seconds for adding and committing new rows."""
    rows = [model(name=f"row {number}", amount=number) for number in range(size)]
    gc.collect()
    async with maker() as session:
        start = time.process_time()
        session.add_all(rows)
        await session.commit()
        seconds = time.process_time() - start
    await _empty(maker, model)
    return seconds


async def timed_update(maker: Any, model: Any, size: int) -> float:
    """Seconds for committing a change of rows that are loaded."""
    async with maker() as session:
        rows = [{"name": f"row {number}", "amount": number} for number in range(size)]
        await session.execute(insert(model.__table__), rows)
        await session.commit()
        loaded = (await session.scalars(select(model))).all()
        gc.collect()
        start = time.process_time()
        for row in loaded:
            row.amount += 1
        await session.commit()
        seconds = time.process_time() - start
    await _empty(maker, model)
    return seconds


async def _empty(maker: Any, model: Any) -> None:
    async with maker.begin() as session:
        await session.execute(delete(model.__table__))


OPERATIONS = {"insert": timed_insert, "update": timed_update}


def _maker(engine: AsyncEngine, contender: Contender) -> Any:
    maker = async_sessionmaker(engine, expire_on_commit=False)
    return enable_signals(maker) if contender.is_enabled else maker


async def compare(operation: str, size: int, turns: int) -> dict[str, float]:
    """Seconds of plain SQLAlchemy, and the ratio to it of every contender."""
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    makers = {contender.name: _maker(engine, contender) for contender in CONTENDERS}
    measure = OPERATIONS[operation]
    seconds: dict[str, list[float]] = {contender.name: [] for contender in CONTENDERS}
    with ExitStack() as stack:
        for contender in CONTENDERS:
            for signal, receiver, on in contender.receivers:
                stack.enter_context(signal.connected(receiver, contender.model, on=on))
        for turn in range(turns + 1):
            shift = turn % len(CONTENDERS)
            for contender in (*CONTENDERS[shift:], *CONTENDERS[:shift]):
                took = await measure(makers[contender.name], contender.model, size)
                if turn:  # the first one fills caches
                    seconds[contender.name].append(took)
    await engine.dispose()
    plain = seconds[PLAIN.name]
    return {name: min(each) / min(plain) for name, each in seconds.items()} | {PLAIN.name: min(plain)}


def show(operation: str, size: int, figures: dict[str, float]) -> None:
    print(f"\n{operation} of {size:,} rows: plain SQLAlchemy {figures[PLAIN.name] * 1e3:.1f} ms")
    for contender in CONTENDERS[1:]:
        ratio = figures[contender.name]
        goal = contender.goals.get(operation)
        verdict = "" if goal is None else f"  goal {goal:.2f}: {'reached' if ratio <= goal else 'missed'}"
        print(f"  {contender.name:<24}{ratio:6.3f}{verdict}")


def main(arguments: list[str]) -> None:
    """Run all comparisons, or those asked for, and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sqlalchemy", description=__doc__.partition("\n")[0])
    parser.add_argument("operations", nargs="*", choices=[*OPERATIONS, []], help="insert, update; both by default")
    parser.add_argument("--size", type=int, action="append", help="rows; 1,000 and 10,000 by default")
    parser.add_argument("--turns", type=int, default=11, help="how often each contender runs; 11 by default")
    options = parser.parse_args(arguments)
    for operation in options.operations or OPERATIONS:
        for size in options.size or SIZES:
            show(operation, size, asyncio.run(compare(operation, size, options.turns)))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
