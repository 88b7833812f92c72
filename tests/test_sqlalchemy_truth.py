"""What is told after the end is what the tables hold, whoever ends the transaction and whatever fails meanwhile."""

# ruff: noqa: F811  fixtures are imported, and parameters go by their names

import asyncio

import pytest
from sqlalchemy import event, func, insert, select
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session
from sqlalchemy_support import (  # noqa: F401  fixtures
    DATABASES,
    Base,
    Log,
    Note,
    Order,
    User,
    anyio_backend,
    empty,
    engine,
    listen,
    make_engine,
    maker,
    nobody_left,
    place,
)

from asignals.sqlalchemy import (
    enable_signals,
    on_commit,
    post_bulk,
    post_save,
    pre_save,
    transaction_committed,
    transaction_rolled_back,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def heard(listen):
    """Who was told of what after the end."""
    log = []
    for phase in ("commit", "rollback"):

        def hear(instance, phase=phase, **_):
            log.append((phase, instance.name))

        listen(post_save, hear, sender=User, on=phase, weak=False)
    listen(transaction_committed, lambda **_: log.append("committed"), weak=False)
    listen(transaction_rolled_back, lambda **_: log.append("rolled back"), weak=False)
    return log


async def names(engine):
    async with engine.connect() as connection:
        return set(await connection.scalars(select(User.name)))


# -- others' listeners -------------------------------------------------------------------------------------------------

HOOKS = ("after_transaction_create", "after_begin", "before_commit", "after_commit", "after_transaction_end")


@pytest.mark.parametrize("hook", [*HOOKS, "after_rollback", "after_soft_rollback"])
@pytest.mark.parametrize("ends", ["commit", "begin"])
async def test_listeners_that_raise_keep_nobody_from_the_truth(engine, heard, hook, ends):
    """Whatever hook of SQLAlchemy's raises, and though it is called first, what is told is what the table holds."""

    class Mine(Session):
        pass

    armed = []

    def fail(*_):
        if armed:
            armed.clear()
            raise LookupError(hook)

    event.listen(Mine, hook, fail)
    maker = enable_signals(async_sessionmaker(engine, sync_session_class=Mine, expire_on_commit=False))
    try:
        async with maker() as session:
            if ends == "begin":
                async with session.begin():
                    session.add(User(name="ada"))
                    await session.flush()
                    armed.append(True)
                    if "rollback" in hook:
                        raise ZeroDivisionError  # noqa: TRY301  for the block
            else:
                session.add(User(name="ada"))
                await session.flush()
                armed.append(True)
                await (session.rollback() if "rollback" in hook else session.commit())
    except (LookupError, ZeroDivisionError):
        pass
    stored = await names(engine)
    assert heard[0] == ("commit" if stored else "rollback", "ada")
    assert len(heard) == 2
    assert heard[1] == ("committed" if stored else "rolled back")


@pytest.mark.parametrize("hook", ["commit", "rollback", "savepoint", "release_savepoint", "rollback_savepoint"])
async def test_listeners_of_connections_that_raise_keep_nobody_from_the_truth(engine, maker, heard, hook):
    """The COMMIT, RELEASE or ROLLBACK is not sent, and so it has not happened."""
    armed = []

    def fail(*_):
        if armed:
            armed.clear()
            raise LookupError(hook)

    event.listen(engine.sync_engine, hook, fail)
    try:
        async with maker() as session:
            session.add(User(name="ada"))
            await session.flush()
            if "savepoint" in hook:
                if hook == "savepoint":
                    armed.append(True)
                async with session.begin_nested() as savepoint:
                    session.add(User(name="bob"))
                    await session.flush()
                    armed.append(True)
                    if hook == "rollback_savepoint":
                        await savepoint.rollback()
            armed.append(True)
            try:
                await (session.rollback() if hook == "rollback" else session.commit())
            finally:
                await session.rollback()  # or SQLAlchemy gives the connection back in the middle of its transaction
    except LookupError:
        pass
    finally:
        event.remove(engine.sync_engine, hook, fail)
    told = {name for phase, name in (each for each in heard if isinstance(each, tuple)) if phase == "commit"}
    assert told == await names(engine)


@pytest.mark.drivers(*DATABASES)
async def test_transactions_ended_behind_the_sessions_back(maker, engine, heard):
    """By its connection: the rows are there or not, whatever the session says."""
    async with maker() as session:
        session.add(User(name="ada"))
        await session.flush()
        await (await session.connection()).commit()
        with pytest.raises(InvalidRequestError):
            await session.commit()
    assert heard[0] == ("commit", "ada")
    heard.clear()
    async with maker() as session:
        session.add(User(name="bob"))
        await session.flush()
        await (await session.connection()).rollback()
        await session.close()
    assert heard[0] == ("rollback", "bob")
    assert await names(engine) == {"ada"}


@pytest.mark.drivers(*DATABASES)
async def test_savepoints_of_the_connection(maker, engine, heard):
    """Savepoints that the session does not know of take what was flushed in them with them."""
    async with maker() as session:
        connection = await session.connection()
        async with connection.begin_nested():
            session.add(User(id=1, name="released"))
            await session.flush()
        outer = await connection.begin_nested()
        async with connection.begin_nested():
            session.add(User(id=2, name="released inside"))
            await session.flush()
        await outer.rollback()
        await connection.begin_nested()
        session.add(User(id=3, name="left open"))
        await session.flush()
        await session.commit()
    assert await names(engine) == {"released", "left open"}
    told = [("rollback", "released inside"), ("commit", "released"), ("commit", "left open"), "committed"]
    assert heard == told


async def test_statements_are_told_by_their_own_truth(maker, engine, listen):
    """As rows are."""
    told = Log("kind")
    listen(post_bulk, told, sender=User, on="commit")
    lost = Log("kind")
    listen(post_bulk, lost, sender=User, on="rollback")
    async with maker() as session:
        connection = await session.connection()
        async with connection.begin_nested() as savepoint:
            await session.execute(insert(User), [{"name": "ada"}])
            await savepoint.rollback()
        await session.execute(insert(User), [{"name": "bob"}])
        await session.commit()
    assert (len(lost), len(told)) == (1, 1)
    assert await names(engine) == {"bob"}


# -- several databases -------------------------------------------------------------------------------------------------


@pytest.fixture
async def second(tmp_path, anyio_backend):
    """Another database."""
    made = make_engine("aiosqlite", str(tmp_path / "second.sqlite"))
    async with made.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield made
    await made.dispose()


@pytest.mark.filterwarnings("ignore:transaction already deassociated")  # SQLAlchemy, of what is committed already
@pytest.mark.parametrize("failing", ["first", "second", None])
async def test_several_databases_are_told_of_one_by_one(engine, second, listen, failing):
    """One is committed, the other's COMMIT fails: each is told by its own truth, callbacks and the end by both."""
    heard = []
    for phase in ("commit", "rollback"):
        for model in (User, Note):

            def hear(phase=phase, model=model, **_):
                heard.append((phase, model))

            listen(post_save, hear, sender=model, on=phase, weak=False)
    listen(transaction_committed, lambda **_: heard.append("committed"), weak=False)
    listen(transaction_rolled_back, lambda **_: heard.append("rolled back"), weak=False)
    maker = enable_signals(async_sessionmaker(binds={User: engine, Note: second}, expire_on_commit=False))

    def refuse(connection):
        raise ConnectionResetError

    target = {"first": engine, "second": second}.get(failing)
    async with maker() as session:
        session.add_all([User(name="ada"), Note()])
        await session.flush()
        on_commit(session, lambda: heard.append("callback"))
        if target is None:
            await session.commit()
        else:
            event.listen(target.sync_engine, "commit", refuse)
            with pytest.raises(ConnectionResetError):
                await session.commit()
            event.remove(target.sync_engine, "commit", refuse)
            await session.rollback()
    for model, where in ((User, engine), (Note, second)):
        async with where.connect() as connection:
            stored = await connection.scalar(select(func.count()).select_from(model))
        assert ("commit" if stored else "rollback", model) in heard
        assert ("rollback" if stored else "commit", model) not in heard
    assert ("callback" in heard) is (failing is None)
    assert ("committed" if failing is None else "rolled back") in heard


# -- callbacks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["rollback", "close", "reset"])
@pytest.mark.parametrize("begun", [False, True], ids=["idle", "begun"])
async def test_callbacks_are_gone_with_their_transaction(maker, end, begun):
    """However it ends without a commit, and whether or not anything was done in it."""
    called = []
    async with maker() as session:
        if begun:
            await session.scalar(select(1))
        on_commit(session, lambda: called.append("never"))
        await getattr(session, end)()
        async with session.begin():
            session.add(User(name="ada"))
        assert called == []


async def test_callbacks_are_gone_with_their_savepoint(maker):
    """Also when nothing in it reached the database."""
    called = []
    async with maker.begin() as session:
        savepoint = await session.begin_nested()
        on_commit(session, lambda: called.append("never"))
        await savepoint.rollback()
        on_commit(session, lambda: called.append("called"))
    assert called == ["called"]


@pytest.mark.parametrize("signal", [pre_save, post_save])
@pytest.mark.parametrize("is_nested", [False, True], ids=["outermost", "savepoint"])
async def test_callbacks_registered_in_a_flush(maker, listen, signal, is_nested):
    """They belong to the transaction, or the savepoint, that the flush is part of."""
    called = []

    async def register(session, instance, **_):
        on_commit(session, lambda: called.append(instance.name))

    listen(signal, register, sender=User)
    async with maker.begin() as session:
        if is_nested:
            async with session.begin_nested() as lost:
                session.add(User(name="lost"))
                await session.flush()
                await lost.rollback()
            async with session.begin_nested():
                session.add(User(name="kept"))
        else:
            session.add(User(name="kept"))
        assert called == []
    assert called == ["kept"]


async def test_callbacks_registered_in_callbacks_are_called_after_them(maker):
    """They belong to the transaction that the callback leaves open; those of one that fails are gone."""
    called = []
    async with maker.begin() as session:

        def first():
            called.append("first")
            on_commit(session, second)

        async def second():
            called.append("second")
            on_commit(session, lambda: called.append("third"))

        def failing():
            on_commit(session, lambda: called.append("never"))
            raise LookupError

        on_commit(session, first)
        on_commit(session, failing)
        on_commit(session, lambda: called.append("last"))
    assert called == ["first", "second", "third", "last"]


async def test_callbacks_leave_an_idle_session(maker, engine):
    """What they write is committed when they return, and rolled back when they raise."""
    async with maker() as session:

        def write():
            session.add(User(name="written"))

        def fail():
            session.add(User(name="lost"))
            raise LookupError

        for callback in (write, fail, write_nothing):
            on_commit(session, callback)
        await session.commit()
        assert not session.in_transaction()
    assert await names(engine) == {"written"}


def write_nothing():
    """Nothing."""


async def test_a_session_that_may_not_begin_by_itself_says_so(engine):
    """A callback needs a transaction to belong to."""
    maker = enable_signals(async_sessionmaker(engine, autobegin=False))
    async with maker() as session:
        with pytest.raises(InvalidRequestError, match="begin"):
            on_commit(session, write_nothing)
        called = []
        async with session.begin():
            on_commit(session, lambda: called.append(1))
        assert called == [1]


# -- blocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
@pytest.mark.parametrize("nested", [False, True], ids=["begin", "savepoint"])
async def test_an_end_inside_of_a_block_is_told_when_the_block_has_ended(maker, listen, caplog, end, nested):
    """Until then SQLAlchemy lets nobody use the session."""
    heard = []

    async def use(session, **_):
        heard.append(await session.scalar(select(func.count(User.id))))

    listen(post_save, use, sender=User, on="commit")
    listen(post_save, use, sender=User, on="rollback")
    async with maker() as session:
        async with session.begin_nested() if nested else session.begin():
            session.add(User(name="ada"))
            await session.flush()
            await getattr(session, end)()
            assert heard == []
        assert heard == [1 if end == "commit" else 0]
    assert caplog.records == []


async def test_a_cancelled_block_still_tells(maker, listen):
    """Committed inside of the block, cancelled before its end."""
    heard = []
    listen(post_save, lambda **_: heard.append("told"), sender=User, on="commit", weak=False)

    async def work():
        async with maker() as session, session.begin():
            session.add(User(name="ada"))
            await session.commit()
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())
    assert heard == ["told"]


async def test_a_related_instance_is_readable_after_the_commit_too(engine, listen):
    """What an instance had loaded in its relationships goes with it."""
    heard = []

    async def hear(instance, **_):
        heard.append((instance.amount, instance.user.name))

    listen(post_save, hear, sender=Order, on="commit")
    maker = enable_signals(async_sessionmaker(engine))
    async with maker.begin() as session:
        session.add(User(name="ada", orders=[Order(amount=3)]))
    assert heard == [(3, "ada")]


async def test_sessions_of_one_connection(engine, heard):
    """`rollback_only`: a session's commit is its last word; who ends the outer transaction later does not tell."""
    async with engine.connect() as connection:
        outer = await connection.begin()
        maker = enable_signals(async_sessionmaker())
        async with AsyncSession(
            connection,
            sync_session_class=maker.kw["sync_session_class"],
            join_transaction_mode="rollback_only",
            expire_on_commit=False,
        ) as session:
            session.add(User(name="ada"))
            await session.commit()
            assert heard == [("commit", "ada"), "committed"]
            session.add(User(name="bob"))
            await session.flush()
            await session.rollback()
            assert heard[2:] == [("rollback", "bob"), "rolled back"]
        await outer.close()
    await empty(engine)
