"""Models, databases and small helpers for the tests of model signals."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from relay_residue import NOTES
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    String,
    Table,
    event,
    func,
    make_url,
    text,
)
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    DynamicMapped,
    Mapped,
    WriteOnlyMapped,
    mapped_column,
    relationship,
)

from asignals.sqlalchemy import (
    enable_signals,
    m2m_changed,
    post_bulk,
    post_delete,
    post_init,
    post_save,
    pre_bulk,
    pre_delete,
    pre_init,
    pre_save,
    transaction_committed,
    transaction_rolled_back,
)
from asignals.testing import swap_receivers

ALL_SIGNALS = (
    pre_save,
    post_save,
    pre_delete,
    post_delete,
    m2m_changed,
    pre_bulk,
    post_bulk,
    pre_init,
    post_init,
    transaction_committed,
    transaction_rolled_back,
)

DEFAULT_URL = "postgresql://postgres@127.0.0.1:5432/test"
DEFAULT_MARIADB_URL = "mariadb://root@127.0.0.1:3306/test"


class Base(AsyncAttrs, DeclarativeBase):
    """All models of the tests."""

    type_annotation_map = {str: String(100)}  # noqa: RUF012  MariaDB needs lengths


class Stamped:
    """An unmapped mixin."""


class User(Stamped, Base):
    """A plain model, with a column that updates itself."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    visits: Mapped[int] = mapped_column(default=0)
    orders: Mapped[list["Order"]] = relationship(back_populates="user", cascade="all, delete-orphan")
    notes: Mapped[list["Note"]] = relationship()
    drafts: Mapped[list["Draft"]] = relationship(cascade="all, delete-orphan")


class Order(Base):
    """A child that knows its parent, and goes with it."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    amount: Mapped[int] = mapped_column(default=1)
    user: Mapped[User | None] = relationship(back_populates="orders")


class Note(Base):
    """A child that does not know its parent, and stays."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))


class Draft(Base):
    """A child that does not know its parent, and goes with it."""

    __tablename__ = "drafts"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))


class Page(Base):
    """Versioned, with an onupdate column."""

    __tablename__ = "pages"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    body: Mapped[str | None]
    revision: Mapped[int] = mapped_column()
    touched: Mapped[datetime | None] = mapped_column(onupdate=func.now())
    words: Mapped[list["Word"]] = relationship(cascade="all, delete-orphan")

    __mapper_args__ = {"version_id_col": revision}  # noqa: RUF012  as SQLAlchemy documents it


class Word(Base):
    """A part of a page."""

    __tablename__ = "words"

    id: Mapped[int] = mapped_column(primary_key=True)
    page_id: Mapped[int | None] = mapped_column(ForeignKey("pages.id"))
    text: Mapped[str]


class Pair(Base):
    """A composite primary key."""

    __tablename__ = "pairs"

    left: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    right: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    word: Mapped[str | None]


class Staff(Base):
    """The base of joined-table inheritance."""

    __tablename__ = "staff"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str]

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "staff"}  # noqa: RUF012


class Cook(Staff):
    """A joined table."""

    __tablename__ = "cooks"

    id: Mapped[int] = mapped_column(ForeignKey("staff.id"), primary_key=True)
    stars: Mapped[int] = mapped_column(default=0)

    __mapper_args__ = {"polymorphic_identity": "cook"}  # noqa: RUF012


class Waiter(Staff):
    """The same table."""

    tips: Mapped[int | None]

    __mapper_args__ = {"polymorphic_identity": "waiter"}  # noqa: RUF012


pizza_topping = Table(
    "pizza_topping",
    Base.metadata,
    Column("pizza_id", ForeignKey("pizzas.id"), primary_key=True),
    Column("topping_id", ForeignKey("toppings.id"), primary_key=True),
)
pizza_label = Table(
    "pizza_label",
    Base.metadata,
    Column("pizza_id", ForeignKey("pizzas.id"), primary_key=True),
    Column("label_id", ForeignKey("labels.id"), primary_key=True),
)
pizza_shop = Table(
    "pizza_shop",
    Base.metadata,
    Column("pizza_id", ForeignKey("pizzas.id"), primary_key=True),
    Column("shop_id", ForeignKey("shops.id"), primary_key=True),
)
friendship = Table(
    "friendship",
    Base.metadata,
    Column("fan_id", ForeignKey("people.id"), primary_key=True),
    Column("idol_id", ForeignKey("people.id"), primary_key=True),
)


class Pizza(Base):
    """Many-to-many in four ways."""

    __tablename__ = "pizzas"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="margherita")
    toppings: Mapped[list["Topping"]] = relationship(secondary=pizza_topping, back_populates="pizzas")
    labels: WriteOnlyMapped["Label"] = relationship(secondary=pizza_label, passive_deletes=True)
    shops: DynamicMapped["Shop"] = relationship(secondary=pizza_shop)


class Topping(Base):
    """The other side."""

    __tablename__ = "toppings"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="basil")
    pizzas: Mapped[list[Pizza]] = relationship(secondary=pizza_topping, back_populates="toppings")


class Label(Base):
    """Behind a write-only collection."""

    __tablename__ = "labels"

    id: Mapped[int] = mapped_column(primary_key=True)


class Shop(Base):
    """Behind a dynamic collection."""

    __tablename__ = "shops"

    id: Mapped[int] = mapped_column(primary_key=True)


class Person(Base):
    """Many-to-many with itself."""

    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    idols: Mapped[list["Person"]] = relationship(
        secondary=friendship,
        primaryjoin=lambda: Person.id == friendship.c.fan_id,
        secondaryjoin=lambda: Person.id == friendship.c.idol_id,
        back_populates="fans",
    )
    fans: Mapped[list["Person"]] = relationship(
        secondary=friendship,
        primaryjoin=lambda: Person.id == friendship.c.idol_id,
        secondaryjoin=lambda: Person.id == friendship.c.fan_id,
        back_populates="idols",
    )


# -- databases ---------------------------------------------------------------------------------------------------------

DATABASES = ("aiosqlite", "asyncpg", "psycopg", "aiomysql", "asyncmy")
MARIADB = ("aiomysql", "asyncmy")


def postgres_url(driver: str) -> Any:
    """Where PostgreSQL is, for a driver."""
    url = make_url(os.environ.get("ASIGNALS_POSTGRES_URL", DEFAULT_URL))
    return url.set(drivername=f"postgresql+{driver}")


def mariadb_url(driver: str) -> Any:
    """Where MariaDB is, for a driver."""
    url = make_url(os.environ.get("ASIGNALS_MARIADB_URL", DEFAULT_MARIADB_URL))
    return url.set(drivername=f"mariadb+{driver}")


def require_server(database: str) -> None:
    """Skip, or fail where services are required, when no server answers."""
    try:
        asyncio.run(_ask_server(database))
    except Exception as error:
        if os.environ.get("ASIGNALS_REQUIRE_SERVICES") == "1":
            raise
        name = "MARIADB" if database in MARIADB else "POSTGRES"
        pytest.skip(f"no server answers {database} (ASIGNALS_{name}_URL): {error!r}")


async def _ask_server(database: str) -> None:
    is_mariadb = database in MARIADB
    url = mariadb_url(database) if is_mariadb else postgres_url(database)
    engine = create_async_engine(url, connect_args={"timeout" if database == "asyncpg" else "connect_timeout": 5})
    try:
        async with engine.connect() as connection:
            await connection.execute(text("select 1"))
    finally:
        await engine.dispose()


def make_engine(database: str, place: str, **options: Any) -> AsyncEngine:
    """An engine for a SQLite file, a schema of the PostgreSQL database, or a database of MariaDB."""
    if database == "aiosqlite":
        engine = create_async_engine(f"sqlite+aiosqlite:///{place}", **options)
        _repair_savepoints(engine.sync_engine)
        return engine
    if database in MARIADB:
        return create_async_engine(mariadb_url(database).set(database=place), **options)
    connect_args: dict[str, Any] = (
        {"server_settings": {"search_path": place}} if database == "asyncpg" else {"options": f"-csearch_path={place}"}
    )
    return create_async_engine(postgres_url(database), connect_args=connect_args, **options)


def _repair_savepoints(engine: Engine) -> None:
    """SQLAlchemy's recipe: the driver would begin transactions when it likes."""

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


@asynccontextmanager
async def _disposing(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    try:
        yield engine
    finally:
        await engine.dispose()


async def create_place(database: str, place: str) -> None:
    """Make the schema, if it takes one, and the tables."""
    if database in MARIADB:
        async with _disposing(create_async_engine(mariadb_url(database))) as engine, engine.begin() as connection:
            await connection.execute(text(f"create database {place}"))
    elif database != "aiosqlite":
        async with _disposing(make_engine(database, "public")) as engine, engine.begin() as connection:
            await connection.execute(text(f'create schema "{place}"'))
    async with _disposing(make_engine(database, place)) as engine, engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


async def drop_place(database: str, place: str) -> None:
    """Remove a schema, or database, with all that is in it."""
    if database in MARIADB:
        async with _disposing(create_async_engine(mariadb_url(database))) as engine, engine.begin() as connection:
            await connection.execute(text(f"drop database if exists {place}"))
        return
    async with _disposing(make_engine("asyncpg", "public")) as engine, engine.begin() as connection:
        await connection.execute(text(f'drop schema if exists "{place}" cascade'))


async def empty(engine: AsyncEngine) -> None:
    """Delete all rows; to ask first takes less time than to delete from tables that have none."""
    tables = list(reversed(Base.metadata.sorted_tables))
    whether_filled = ", ".join(f"exists (select 1 from {table.name})" for table in tables)  # noqa: S608  our own
    async with engine.begin() as connection:
        filled = (await connection.execute(text(f"select {whether_filled}"))).one()
        for table, is_filled in zip(tables, filled, strict=True):
            if is_filled:
                await connection.execute(table.delete())


@pytest.fixture(scope="module", params=DATABASES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A database of this module's own, on each driver."""
    database = request.param
    if database == "aiosqlite":
        where = str(tmp_path_factory.mktemp("models") / "test.sqlite")
    else:
        require_server(database)
        where = f"asignals_{uuid4().hex}"
    NOTES.mkdir(exist_ok=True)
    note = NOTES / f"{os.getpid()}.{'mariadb' if database in MARIADB else 'postgres'}.{where}"
    if database != "aiosqlite":
        note.touch()
    asyncio.run(create_place(database, where))
    yield database, where
    if database != "aiosqlite":
        asyncio.run(drop_place(database, where))
        note.unlink()


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """SQLAlchemy's asyncio extension runs on asyncio only."""
    return "asyncio", {"use_uvloop": False}


@pytest.fixture
async def engine(place: tuple[str, str], anyio_backend: Any) -> AsyncIterator[AsyncEngine]:
    """An engine whose pool has all its connections back at the end."""
    async with _disposing(make_engine(*place, pool_size=2, max_overflow=0, pool_timeout=60)) as made:
        yield made
        assert made.pool.checkedout() == 0, "a connection leaked"
        await empty(made)


@pytest.fixture
def maker(engine: AsyncEngine) -> async_sessionmaker[Any]:
    """What most tests make sessions with."""
    return enable_signals(async_sessionmaker(engine, expire_on_commit=False))


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    """Receivers of one test never hear another, nor those that modules connect when other tests import them."""
    with ExitStack() as stack:
        for signal in ALL_SIGNALS:
            stack.enter_context(swap_receivers(signal))
        yield
        assert [connection for signal in ALL_SIGNALS for connection in signal.connections] == []


@pytest.fixture
def listen() -> Iterator[Callable[..., Any]]:
    """Connect a receiver for the test: `listen(signal, receiver, sender=…)`."""
    with ExitStack() as stack:

        def connect(signal: Any, receiver: Any, **options: Any) -> Any:
            return stack.enter_context(signal.connected(receiver, **options))

        yield connect


class Log(list[Any]):
    """A receiver that writes down what it hears, as tuples of the arguments asked for."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, signal: Any, **named: Any) -> None:
        name = signal.name.rpartition(".")[2]
        self.append((name, *(named.get(each) for each in self.names)) if self.names else name)
