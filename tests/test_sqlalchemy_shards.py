"""Sessions that choose their databases: horizontal shards, `get_bind` of one's own, and two-phase commits."""

# ruff: noqa: F811  fixtures are imported, and parameters go by their names

from contextlib import suppress
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, delete, event, insert, select, text, update
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import StaticPool
from sqlalchemy_support import (  # noqa: F401  fixtures
    MARIADB,
    Log,
    anyio_backend,
    listen,
    mariadb_url,
    nobody_left,
    require_server,
)

from asignals.sqlalchemy import (
    enable_signals,
    on_commit,
    post_bulk,
    post_save,
    pre_bulk,
    transaction_committed,
    transaction_rolled_back,
)


class Base(DeclarativeBase):
    """Models of this file."""


class Parcel(Base):
    """In the shard of odd or even keys."""

    __tablename__ = "parcels"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    weight: Mapped[int] = mapped_column(default=0)


class Receipt(Base):
    """In another database."""

    __tablename__ = "receipts"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@pytest.fixture
def shards():
    """Two databases in memory."""
    engines = {name: create_engine("sqlite://", poolclass=StaticPool) for name in ("odd", "even")}
    for each in engines.values():
        Base.metadata.create_all(each)
    yield engines
    for each in engines.values():
        each.dispose()


def make_sharded(shards, **options):
    def choose(mapper, instance, clause=None):
        del mapper, clause
        if instance is None:
            msg = "asked without an instance"
            raise LookupError(msg)
        return "odd" if instance.id % 2 else "even"

    return enable_signals(
        sessionmaker(
            class_=type("Mine", (ShardedSession,), {}),
            shards=shards,
            shard_chooser=choose,
            identity_chooser=lambda *_, **__: list(shards),
            execute_chooser=lambda _: list(shards),
        ),
        **options,
    )


@pytest.fixture
def heard(listen):
    """Who was told of what after the end."""
    log = []
    for phase in ("commit", "rollback"):

        def hear(instance, phase=phase, **_):
            log.append((phase, type(instance), instance.id))

        listen(post_save, hear, on=phase, weak=False)
        listen(post_bulk, lambda kind, phase=phase, **_: log.append((phase, kind)), on=phase, weak=False)
    listen(transaction_committed, lambda **_: log.append("committed"), weak=False)
    listen(transaction_rolled_back, lambda **_: log.append("rolled back"), weak=False)
    return log


def refuse(*_):
    raise ConnectionResetError


@pytest.mark.filterwarnings("ignore:transaction already deassociated")  # SQLAlchemy, of what is committed already
@pytest.mark.parametrize("failing", ["odd", "even", None])
def test_rows_are_told_by_their_shard(shards, heard, failing):
    """One shard is committed and the other's COMMIT fails: each row is told by its own."""
    with make_sharded(shards)() as session:
        session.add_all([Parcel(id=1), Parcel(id=2), Parcel(id=3)])
        session.flush()
        if failing:
            event.listen(shards[failing], "commit", refuse)
        with suppress(ConnectionResetError):
            session.commit()
        if failing:
            event.remove(shards[failing], "commit", refuse)
        session.rollback()
    stored = set()
    for each in shards.values():
        with each.connect() as connection:
            stored.update(connection.scalars(select(Parcel.id)))
    expected = {("commit" if key in stored else "rollback", Parcel, key) for key in (1, 2, 3)}
    assert {each for each in heard if isinstance(each, tuple)} == expected
    assert ("committed" in heard) is (failing is None)


@pytest.mark.parametrize("bulk", [None, "rows"])
def test_statements_of_several_shards(shards, heard, listen, caplog, bulk):
    """They run as without signals, and are told by all shards; that their rows are not told is logged."""
    before = Log("kind")
    listen(pre_bulk, before, sender=Parcel)
    with make_sharded(shards, bulk=bulk)() as session:
        session.add_all([Parcel(id=1), Parcel(id=2)])
        session.commit()
        heard.clear()
        assert session.execute(update(Parcel).values(weight=5)).rowcount == 2
        session.commit()
        assert heard == [("commit", "update"), "committed"]
        heard.clear()
        session.scalars(select(Parcel)).all()
        with session.begin_nested() as savepoint:
            session.execute(delete(Parcel))
            savepoint.rollback()
        session.commit()
        assert heard == [("rollback", "delete"), "committed"]
        assert {each.weight for each in session.scalars(select(Parcel))} == {5}
    assert before == [("pre_bulk", "update"), ("pre_bulk", "delete")]
    assert ("several shards" in caplog.text) is (bulk == "rows")


@pytest.mark.parametrize("bulk", [None, "rows"])
def test_get_bind_as_in_the_recipes_of_sqlalchemy(shards, listen, bulk):
    """It takes a mapper and a clause, and nothing else; statements that are heard call it as others do."""

    class Routing(Session):
        def get_bind(self, mapper=None, clause=None):
            return shards["odd" if mapper is not None and mapper.class_ is Parcel else "even"]

    told = Log("kind")
    listen(post_bulk, told, sender=Parcel)
    with enable_signals(sessionmaker(class_=Routing), bulk=bulk)() as session:
        session.add_all([Parcel(id=9), Receipt(id=9)])
        session.execute(insert(Parcel), [{"id": 1}, {"id": 2}])
        session.execute(update(Parcel).values(weight=3))
        session.execute(update(Parcel), [{"id": 1, "weight": 4}])
        assert session.scalars(select(Parcel.weight).order_by(Parcel.id)).all() == [4, 3, 3]
        session.execute(delete(Parcel))
        session.commit()
    assert [kind for _, kind in told] == ["insert", "update", "update", "delete"]


# -- two-phase commits -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=MARIADB)
def driver(request):
    """A driver of MariaDB, whose server answers."""
    require_server(request.param)
    return request.param


@pytest.fixture
async def pair(driver, anyio_backend):
    """Two databases that can prepare transactions."""
    names = [f"asignals_{uuid4().hex}" for _ in range(2)]
    admin = create_async_engine(mariadb_url(driver), isolation_level="AUTOCOMMIT")
    async with admin.connect() as connection:
        for name in names:
            await connection.execute(text(f"create database {name}"))
    engines = [create_async_engine(mariadb_url(driver).set(database=name)) for name in names]
    for each in engines:
        async with each.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
    yield engines
    for each in engines:
        await each.dispose()
    async with admin.connect() as connection:
        for name in names:
            await connection.execute(text(f"drop database {name}"))
    await admin.dispose()


@pytest.mark.anyio
@pytest.mark.parametrize("failing", [0, 1, None])
async def test_two_phase_commits(pair, heard, failing):
    """When one database does not prepare its transaction, both are rolled back, and so it is told."""
    maker = enable_signals(
        async_sessionmaker(binds={Parcel: pair[0], Receipt: pair[1]}, twophase=True, expire_on_commit=False)
    )
    async with maker() as session:
        session.add_all([Parcel(id=1), Receipt(id=1)])
        await session.flush()
        on_commit(session, lambda: heard.append("callback"))
        if failing is not None:
            event.listen(pair[failing].sync_engine, "prepare_twophase", refuse)
        with suppress(ConnectionResetError):
            await session.commit()
        await session.rollback()
    stored = []
    for engine, model in zip(pair, (Parcel, Receipt), strict=True):
        async with engine.connect() as connection:
            stored += await connection.scalars(select(model.id))
    phase = "commit" if failing is None else "rollback"
    assert stored == ([1, 1] if failing is None else [])
    end = ["callback", "committed"] if failing is None else ["rolled back"]
    assert heard == [(phase, Parcel, 1), (phase, Receipt, 1), *end]


@pytest.mark.anyio
@pytest.mark.parametrize("failing", [0, 1])
async def test_a_two_phase_commit_that_fails_after_it_was_prepared_is_in_doubt(pair, heard, caplog, failing):
    """It is prepared, and somebody may commit it yet: neither end is told of it, and the log says so."""
    maker = enable_signals(
        async_sessionmaker(binds={Parcel: pair[0], Receipt: pair[1]}, twophase=True, expire_on_commit=False)
    )
    prepared = []

    def lose(connection, xid, is_prepared):
        prepared.append(xid)
        connection.invalidate()
        raise ConnectionResetError

    async with maker() as session:
        session.add_all([Parcel(id=1), Receipt(id=1)])
        await session.flush()
        on_commit(session, lambda: heard.append("callback"))
        event.listen(pair[failing].sync_engine, "commit_twophase", lose)
        with suppress(ConnectionResetError):
            await session.commit()
        event.remove(pair[failing].sync_engine, "commit_twophase", lose)
        with suppress(Exception):
            await session.rollback()
    model = (Parcel, Receipt)[failing]
    async with pair[failing].execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text(f"XA COMMIT '{prepared[0]}'"))
        assert (await connection.scalars(select(model.id))).all() == [1]  # "rolled back" would have been wrong
    assert ("rollback", model, 1) not in heard
    assert ("commit", model, 1) not in heard
    assert not {"callback", "committed", "rolled back"} & set(heard)
    assert f"neither commit nor rollback is told (asignals.sqlalchemy.post_save of {model.__name__}, " in caplog.text


# -- commits without an answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False], ids=["carried out", "not carried out"])
def test_a_commit_whose_answer_is_lost_is_in_doubt(tmp_path, heard, caplog, stored, monkeypatch):
    """Nobody can tell whether it was carried out, so neither commit nor rollback is told, and the log says of what."""
    engine = create_engine(f"sqlite:///{tmp_path}/one.db")
    Base.metadata.create_all(engine)

    def lose(connection):
        if stored:
            connection.commit()
        raise engine.dialect.dbapi.ProgrammingError("Cannot operate on a closed database.")  # as when it is gone

    with enable_signals(sessionmaker(engine))() as session:
        session.add(Parcel(id=1))
        session.flush()
        on_commit(session, lambda: heard.append("callback"))
        monkeypatch.setattr(engine.dialect, "do_commit", lose)
        with pytest.raises(ProgrammingError):
            session.commit()
        session.rollback()
        monkeypatch.undo()
    with engine.connect() as connection:
        assert connection.scalars(select(Parcel.id)).all() == ([1] if stored else [])
    engine.dispose()
    assert heard == []
    assert "a COMMIT failed and may have been carried out all the same" in caplog.text
    assert "post_save of Parcel" in caplog.text


@pytest.mark.parametrize("ending", [transaction_committed, transaction_rolled_back])
def test_who_listens_for_ends_only_reads_of_a_doubt_in_the_log(tmp_path, listen, caplog, monkeypatch, ending):
    """A transaction in which nobody heard of anything is told of in neither way either."""
    engine, ended = create_engine(f"sqlite:///{tmp_path}/one.db"), []
    Base.metadata.create_all(engine)
    listen(ending, lambda **_: ended.append("ended"), weak=False)

    def lose(_connection):
        raise engine.dialect.dbapi.ProgrammingError("Cannot operate on a closed database.")

    with enable_signals(sessionmaker(engine))() as session:
        session.add(Parcel(id=1))
        monkeypatch.setattr(engine.dialect, "do_commit", lose)
        with pytest.raises(ProgrammingError):
            session.commit()
    monkeypatch.undo()
    engine.dispose()
    assert ended == []
    assert "neither commit nor rollback is told" in caplog.text
