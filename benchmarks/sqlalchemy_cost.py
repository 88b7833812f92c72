"""What model signals cost, beside plain SQLAlchemy: rows inserted and updated in one flush and commit.

SQLite in memory, where the database costs least and signals show most. Each contender runs alone against plain
SQLAlchemy, in turns; a figure is the ratio of the fastest turns, and "plain, again" tells how far to trust it. Times
are CPU time of the process, the database's thread included: signals add work, not waiting, and other processes disturb
it less. "one of 150" flushes one row at a time, of a model among 150 that are related to each other.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

from sqlalchemy import ForeignKey, StaticPool, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from asignals.sqlalchemy import enable_signals, post_save, pre_save

SIZES = (1_000, 10_000)
RELATED = 150


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    amount: Mapped[int]
    note: Mapped[str | None]


def _related(number: int) -> type[Any]:
    """A model whose parent is the one before it, and which has the columns of `Row`."""
    members: dict[str, Any] = {
        "__tablename__": f"related_{number}",
        "__annotations__": {"id": Mapped[int], "name": Mapped[str], "amount": Mapped[int], "note": Mapped[str | None]},
        "id": mapped_column(primary_key=True),
        "parent_id": mapped_column(ForeignKey(f"related_{max(number - 1, 0)}.id"), nullable=True),
    }
    if number:
        members["parent"] = relationship(f"Related{number - 1}", backref="children")
    return type(f"Related{number}", (Base,), members)


MODELS = [_related(number) for number in range(RELATED)]


class Contender(NamedTuple):
    name: str
    receivers: tuple[tuple[Any, Any, str], ...] = ()
    is_enabled: bool = True
    gone: tuple[tuple[Any, Any, str], ...] = ()  # receivers that were connected once
    goals: dict[str, float] = {}  # noqa: RUF012  by operation


async def hear_async(instance, **_):
    pass


def hear_sync(instance, **_):
    pass


CONTENDERS = (
    Contender("plain, again", is_enabled=False),
    Contender("enabled, no receivers", goals={"insert": 1.03, "update": 1.03, "one of 150": 1.03}),
    Contender(
        "no receivers any more",
        gone=((post_save, hear_sync, "flush"), (pre_save, hear_sync, "flush")),
        goals={"insert": 1.03, "update": 1.03},
    ),
    Contender("async post_save", ((post_save, hear_async, "flush"),), goals={"insert": 1.35, "update": 1.35}),
    Contender("sync post_save", ((post_save, hear_sync, "flush"),)),
    Contender("post_save on commit", ((post_save, hear_async, "commit"),)),
    Contender("async pre_save", ((pre_save, hear_async, "flush"),)),
    Contender("sync pre_save", ((pre_save, hear_sync, "flush"),), goals={"update": 1.5, "one of 150": 1.3}),
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


async def timed_single(maker: Any, model: Any, size: int) -> float:
    """Seconds for that many flushes of one row each."""
    gc.collect()
    async with maker() as session:
        start = time.process_time()
        for number in range(size):
            session.add(model(name=f"row {number}", amount=number))
            await session.flush()
        await session.commit()
        seconds = time.process_time() - start
    await _empty(maker, model)
    return seconds


async def _empty(maker: Any, model: Any) -> None:
    async with maker.begin() as session:
        await session.execute(delete(model.__table__))


OPERATIONS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "insert": (timed_insert, Row, SIZES),
    "update": (timed_update, Row, SIZES),
    "one of 150": (timed_single, MODELS[RELATED // 2], (200,)),
}


def _maker(engine: AsyncEngine, contender: Contender) -> Any:
    maker = async_sessionmaker(engine, expire_on_commit=False)
    return enable_signals(maker) if contender.is_enabled else maker


PLAIN = Contender("plain SQLAlchemy", is_enabled=False)


async def compare(contender: Contender, operation: str, size: int, turns: int) -> tuple[float, float]:
    """Seconds of plain SQLAlchemy, and the ratio to it of a contender."""
    measure, model, _ = OPERATIONS[operation]
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    seconds: dict[str, list[float]] = {PLAIN.name: [], contender.name: []}
    with ExitStack() as stack:
        for signal, receiver, on in contender.gone:
            with signal.connected(receiver, model, on=on):
                await measure(_maker(engine, contender), model, 10)
        for signal, receiver, on in contender.receivers:
            stack.enter_context(signal.connected(receiver, model, on=on))
        for turn in range(turns + 1):
            for each in (PLAIN, contender) if turn % 2 else (contender, PLAIN):
                took = await measure(_maker(engine, each), model, size)
                if turn:  # the first one fills caches
                    seconds[each.name].append(took)
    await engine.dispose()
    plain = min(seconds[PLAIN.name])
    return plain, min(seconds[contender.name]) / plain


def show(operation: str, size: int, turns: int) -> None:
    print(f"\n{operation}: {size:,} rows")
    for contender in CONTENDERS:
        plain, ratio = asyncio.run(compare(contender, operation, size, turns))
        goal = contender.goals.get(operation)
        verdict = "" if goal is None else f"  goal {goal:.2f}: {'reached' if ratio <= goal else 'missed'}"
        print(f"  {contender.name:<24}{ratio:6.3f}  of {plain * 1e3:.1f} ms{verdict}")


def main(arguments: list[str]) -> None:
    """Run all comparisons, or those asked for, and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks sqlalchemy", description=__doc__.partition("\n")[0])
    parser.add_argument("operations", nargs="*", choices=[*OPERATIONS, []], help=f"{', '.join(OPERATIONS)}; all")
    parser.add_argument("--size", type=int, action="append", help="rows; 1,000 and 10,000 by default, or 200 flushes")
    parser.add_argument("--turns", type=int, default=11, help="how often each contender runs; 11 by default")
    options = parser.parse_args(arguments)
    for operation in options.operations or OPERATIONS:
        for size in options.size or OPERATIONS[operation][2]:
            show(operation, size, options.turns)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
