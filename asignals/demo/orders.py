"""The orders of the shop: a SQLAlchemy model in an SQLite file, and sessions that announce what they do with it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import aiosqlite  # noqa: F401  the driver: where it is missing, this import says so
import anyio
from sqlalchemy import JSON
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from asignals.sqlalchemy import enable_signals


class Base(MappedAsDataclass, DeclarativeBase):
    """What all models share."""


class Order(Base):
    """One pizza, on its way from `"ordered"` to `"done"`."""

    __tablename__ = "orders"

    number: Mapped[int] = mapped_column(primary_key=True, init=False)
    toppings: Mapped[list[str]] = mapped_column(JSON)
    size: Mapped[int]
    price: Mapped[int]
    state: Mapped[str] = mapped_column(default="ordered")


Orders: TypeAlias = async_sessionmaker[AsyncSession]


@asynccontextmanager
async def open_orders(path: Path) -> AsyncIterator[Orders]:
    """Open the file, or make it, for the length of an `async with` block, which gets what makes sessions."""
    # One connection, for which sessions queue: SQLite has one writer, and lets others try again and again.
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=1, max_overflow=0)
    try:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("PRAGMA synchronous = OFF")  # a demo may lose power
            await connection.run_sync(Base.metadata.create_all)
        # Its sessions send pre_save, post_save and the others; the rest is SQLAlchemy as it always is.
        yield enable_signals(async_sessionmaker(engine, expire_on_commit=False))
    finally:
        with anyio.CancelScope(shield=True):
            await engine.dispose()
