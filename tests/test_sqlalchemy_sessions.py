"""Which sessions announce: makers, classes, scoped and sync sessions, SQLModel's; and that sessions never mix."""

# ruff: noqa: F811  fixtures are imported, and parameters go by their names

import asyncio
import gc
import subprocess
import sys
import textwrap
import weakref
from uuid import uuid4

import pytest
import sqlmodel
import sqlmodel.ext.asyncio.session
from sqlalchemy import create_engine, delete, event, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy_support import (  # noqa: F401  fixtures
    DATABASES,
    Base,
    Cook,
    Log,
    Note,
    Pizza,
    Staff,
    Topping,
    User,
    anyio_backend,
    engine,
    listen,
    maker,
    nobody_left,
    place,
)

from asignals.sqlalchemy import (
    AsyncReceiverError,
    FlushInProgressError,
    SignalsNotEnabledError,
    enable_signals,
    m2m_changed,
    on_commit,
    post_bulk,
    post_init,
    post_save,
    pre_bulk,
    pre_init,
    pre_save,
    transaction_committed,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def sync_engine():
    """SQLite in memory, for sync sessions."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


async def use(maker):
    """Save a user in a session of this maker; returns the session."""
    async with maker() as session:
        session.add(User(name=uuid4().hex))
        await session.commit()
        return session


# -- enabling ----------------------------------------------------------------------------------------------------------


async def test_enabling_twice_announces_once(engine, listen):
    """Makers, classes and bases of classes in any order."""

    class MySession(Session):
        pass

    class MyAsyncSession(AsyncSession):
        sync_session_class = MySession

    heard = Log()
    listen(post_save, heard)
    maker = async_sessionmaker(engine, class_=MyAsyncSession)
    for target in (maker, maker, MyAsyncSession, MySession, MySession, maker):
        assert enable_signals(target) is target
        heard.clear()
        await use(maker)
        assert heard == ["post_save"]


@pytest.mark.parametrize("kind", ["AsyncSession", "Session"])
def test_a_whole_process_may_be_enabled(kind):
    """`AsyncSession` or `Session`: makers from before and after announce, those with a class of their own do not."""
    code = """
        import asyncio, sys
        from sqlalchemy import create_engine
        from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
        from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
        from asignals.sqlalchemy import enable_signals, post_save

        class Base(DeclarativeBase): ...
        class User(Base):
            __tablename__ = "users"
            id: Mapped[int] = mapped_column(primary_key=True)

        class Mine(AsyncSession):
            sync_session_class = type("MySession", (Session,), {})

        heard = []
        post_save.connect(lambda session, **_: heard.append(type(session).__name__), weak=False)

        async def in_async():
            engine = create_async_engine("sqlite+aiosqlite://")
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
            before = async_sessionmaker(engine)
            enable_signals(AsyncSession)
            for maker in (before, async_sessionmaker(engine), async_sessionmaker(engine, class_=Mine)):
                async with maker.begin() as session:
                    session.add(User())
            await engine.dispose()

        def in_sync():
            engine = create_engine("sqlite://")
            Base.metadata.create_all(engine)
            before = sessionmaker(engine)
            enable_signals(Session)
            for maker in (before, sessionmaker(engine)):
                with maker.begin() as session:
                    session.add(User())
            engine.dispose()

        asyncio.run(in_async()) if sys.argv[1] == "AsyncSession" else in_sync()
        print(heard)
    """
    result = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", textwrap.dedent(code), kind], capture_output=True, text=True, check=False, timeout=60
    )
    assert (result.stdout, result.stderr) == (f"{[kind] * 2}\n", "")


async def test_sessions_of_other_makers_stay_silent(engine, listen):
    """Enabling one maker touches neither `Session` nor `AsyncSession`."""
    heard = Log()
    listen(post_save, heard)
    enable_signals(async_sessionmaker(engine))
    await use(async_sessionmaker(engine))
    assert heard == []


async def test_a_sync_session_class_of_ones_own(engine, listen):
    """Its subclass is used, and its own hooks still work."""
    created = []

    class Counting(Session):
        pass

    event.listen(Counting, "after_flush", lambda session, unit: created.append(len(session.new)))
    heard = Log()
    listen(post_save, heard)
    maker = enable_signals(async_sessionmaker(engine, sync_session_class=Counting))
    session = await use(maker)
    assert isinstance(session.sync_session, Counting)
    assert heard == ["post_save"]
    assert created == [1]


async def test_scoped_sessions(engine, listen):
    """The maker inside is what is enabled; `on_commit` takes the scoped session itself."""
    heard = Log()
    listen(post_save, heard)
    scoped = enable_signals(async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task))
    scoped.add(User(name="ada"))
    on_commit(scoped, lambda: heard.append("called"))
    await scoped.commit()
    await scoped.remove()
    assert heard == ["post_save", "called"]


async def test_sqlmodel(engine, listen):
    """Its session, its `exec`, and its models."""

    class Hero(sqlmodel.SQLModel, table=True):
        __table_args__ = {"extend_existing": True}
        id: int | None = sqlmodel.Field(default=None, primary_key=True)
        name: str

    async with engine.begin() as connection:
        await connection.run_sync(Hero.metadata.create_all)
    heard = Log("sender", "created")
    listen(post_save, heard, sender=Hero)
    maker = enable_signals(async_sessionmaker(engine, class_=sqlmodel.ext.asyncio.session.AsyncSession))
    async with maker() as session:
        session.add(Hero(name="ada"))
        assert (await session.exec(sqlmodel.select(Hero.name))).all() == ["ada"]
        await session.commit()
    assert heard == [("post_save", Hero, True)]
    async with engine.begin() as connection:
        await connection.run_sync(Hero.metadata.drop_all)
    sqlmodel.SQLModel.metadata.remove(Hero.__table__)


def test_what_makes_no_sessions_is_refused():
    """A session is too late, and anything else is a mistake."""
    for target in (AsyncSession(), Session(), object()):
        with pytest.raises(TypeError, match="what makes sessions"):
            enable_signals(target)


async def test_on_commit_of_a_session_without_signals_is_refused(engine):
    """It would never be called."""
    async with async_sessionmaker(engine)() as session:
        with pytest.raises(SignalsNotEnabledError, match="enable_signals") as caught:
            on_commit(session, lambda: None)
        assert caught.value.session is session


async def test_sessions_and_instances_are_not_kept(maker, listen):
    """What was announced can be collected, with receivers in every phase."""
    listen(post_save, lambda **_: None)
    listen(post_save, lambda **_: None, on="commit")
    listen(pre_save, lambda **_: None)
    session = maker()
    user = User(name="ada")
    session.add(user)
    await session.commit()
    await session.close()
    remains = [weakref.ref(each) for each in (session, session.sync_session, user)]
    del session, user
    gc.collect()
    assert [each() for each in remains] == [None, None, None]


# -- together ----------------------------------------------------------------------------------------------------------


@pytest.mark.drivers(*DATABASES)
@pytest.mark.parametrize("place", ["asyncpg", "psycopg"], indirect=True)  # SQLite lets one transaction write at a time
async def test_concurrent_sessions_never_mix(maker, listen):
    """Each receiver gets its own session's instances, whatever others do while it waits."""
    arrived: dict[str, asyncio.Event] = {"ada": asyncio.Event(), "bob": asyncio.Event()}
    heard = []

    async def meet(instance, session, **_):
        arrived[instance.name].set()
        await arrived["bob" if instance.name == "ada" else "ada"].wait()
        assert instance in session
        heard.append((session.info["name"], instance.name))

    listen(post_save, meet, sender=User)
    listen(post_save, lambda instance, session, **_: heard.append((session.info["name"], instance.name)), on="commit")
    listen(transaction_committed, lambda session: heard.append((session.info["name"], "committed")))

    async def work(name):
        async with maker(info={"name": name}) as session:
            session.add(User(name=name))
            await session.commit()

    async with asyncio.TaskGroup() as group:
        for name in arrived:
            group.create_task(work(name))
    for name in arrived:
        assert [what for who, what in heard if who == name] == [name, name, "committed"]


@pytest.mark.drivers(*DATABASES)
@pytest.mark.parametrize("place", ["asyncpg", "psycopg"], indirect=True)
async def test_a_receiver_may_work_in_a_session_of_its_own(maker, listen):
    """Nested flushes of other sessions keep their own books."""
    heard = []

    async def log(instance, session, **_):
        heard.append(type(instance).__name__)
        if isinstance(instance, User):
            async with maker.begin() as other:
                assert other is not session
                other.add(Note())

    listen(post_save, log)
    async with maker.begin() as session:
        session.add_all([User(name="ada"), User(name="bob")])
    assert heard == ["User", "Note", "User", "Note"]


# -- sync sessions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["aiosqlite"], indirect=True)
@pytest.mark.parametrize("kind", ["maker", "scoped", "class"])
def test_sync_sessions_with_sync_receivers(place, sync_engine, listen, kind):
    """All of it works without asyncio."""
    if kind == "class":

        class MySession(Session):
            pass

        make = lambda: enable_signals(MySession)(sync_engine)  # noqa: E731
    else:
        make = enable_signals(sessionmaker(sync_engine))
        make = make if kind == "maker" else enable_signals(scoped_session(make))
    heard = []
    listen(pre_save, lambda instance, **_: heard.append("pre_save"), sender=User)
    listen(post_save, lambda instance, session, **_: heard.append(type(session).__mro__[-3:]), sender=User)
    listen(post_save, lambda instance, **_: heard.append(instance.name), sender=User, on="commit")
    session = make()
    session.add(User(name="ada"))
    on_commit(session, lambda: heard.append("called"))
    session.commit()
    session.close()
    assert heard[0] == "pre_save"
    assert heard[2:] == ["called", "ada"]


@pytest.mark.parametrize(
    ("signal", "on"),
    [(pre_save, "flush"), (post_save, "flush"), (post_save, "commit"), (post_save, "rollback")],
)
def test_a_sync_session_refuses_async_receivers_before_any_sql(sync_engine, listen, signal, on):
    """Nothing could await them, so nothing is written."""
    statements = []
    event.listen(sync_engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2]))

    async def hear(**_):
        raise AssertionError

    listen(signal, hear, sender=User, on=on)
    with enable_signals(sessionmaker(sync_engine))() as session:
        session.add(User(name="ada"))
        with pytest.raises(AsyncReceiverError, match=r"hear.*is async.*AsyncSession") as caught:
            session.commit()
        assert caught.value.signal is signal
        assert "hear" in caught.value.receiver
        assert statements == []
        with pytest.raises(AsyncReceiverError):
            session.flush()


def test_a_sync_session_refuses_async_receivers_of_links_statements_and_cascades(sync_engine, listen):
    """Also those that only a forecast can find."""

    async def hear(**_):
        raise AssertionError

    with enable_signals(sessionmaker(sync_engine))() as session:
        session.add(User(id=1, name="ada", orders=[]))
        session.commit()
        listen(m2m_changed, hear, sender=Pizza.toppings)
        session.add(Pizza(toppings=[Topping()]))
        with pytest.raises(AsyncReceiverError):
            session.flush()
        session.rollback()
        listen(post_bulk, hear, sender=User)
        with pytest.raises(AsyncReceiverError):
            session.execute(update(User).values(visits=1))
        assert session.scalar(select(User.visits)) == 0
        listen(post_save, hear, sender=Note)
        user = session.get_one(User, 1)
        user.notes.append(Note())
        with pytest.raises(AsyncReceiverError):
            session.flush()
        session.rollback()
        with pytest.raises(TypeError, match="async"):
            on_commit(session, hear)


def test_a_sync_session_finds_out_about_sync_receivers_that_return_awaitables(sync_engine, listen):
    """They cannot be told from sync ones before they are called; the flush fails."""

    async def hear():
        raise AssertionError

    listen(post_save, lambda **_: hear(), sender=User)
    with enable_signals(sessionmaker(sync_engine))() as session:
        session.add(User(name="ada"))
        with pytest.raises((AsyncReceiverError, AssertionError)):
            session.flush()


def test_sync_sessions_log_async_receivers_of_the_transaction_itself(sync_engine, listen, caplog):
    """It has ended by then: the error is one of theirs."""

    async def hear(session):
        raise AssertionError

    listen(transaction_committed, hear)
    with enable_signals(sessionmaker(sync_engine))() as session:
        session.add(User(name="ada"))
        session.commit()
    assert "is async" in caplog.text


def test_objects_saved_in_bulk_are_not_seen(sync_engine, listen):
    """As the module's docstring says: neither as saves nor as statements."""
    heard = Log()
    for signal in (pre_save, post_save, pre_bulk, post_bulk):
        listen(signal, heard)
    with enable_signals(sessionmaker(sync_engine)).begin() as session:
        session.bulk_save_objects([User(name="ada")])
        assert session.scalar(select(func.count(User.id))) == 1
    assert heard == []


async def test_sync_receivers_in_a_thread(maker, listen):
    """`in_thread` receivers are awaited; the session waits for them."""
    import threading

    heard = []
    for on in ("flush", "commit"):
        listen(
            post_save,
            lambda instance, **_: heard.append(threading.current_thread() is threading.main_thread()),
            sender=User,
            on=on,
            in_thread=True,
        )
    async with maker.begin() as session:
        session.add(User(name="ada"))
    assert heard == [False, False]


async def test_sync_receivers_that_return_awaitables_are_awaited(maker, listen):
    """Also when they really wait."""
    heard = []

    async def later(instance):
        await asyncio.sleep(0)
        heard.append(instance.name)

    listen(post_save, lambda instance, **_: later(instance), sender=User)
    listen(post_save, lambda instance, **_: later(instance), sender=User, on="commit")
    async with maker.begin() as session:
        session.add(User(name="ada"))
    assert heard == ["ada", "ada"]


# -- statements --------------------------------------------------------------------------------------------------------


@pytest.mark.drivers(*DATABASES)
async def test_statements_that_bypass_the_unit_of_work(maker, listen):
    """INSERT, UPDATE and DELETE of a model, with how many rows they matched."""
    heard = Log("sender", "kind", "rowcount")
    saved, given, statements = Log(), update(User).where(User.name == "bob").values(visits=5), []
    listen(pre_bulk, heard, sender=User)
    listen(post_bulk, heard, sender=User)
    listen(post_bulk, lambda statement, **_: statements.append(statement))
    listen(post_save, saved)
    async with maker.begin() as session:
        await session.execute(insert(User), [{"name": "ada"}, {"name": "bob"}])
        await session.execute(given)
        await session.execute(delete(User))
        await session.execute(select(User))
        await session.execute(User.__table__.insert(), [{"name": "core"}])
    assert [each for each in heard if each[0] == "pre_bulk"] == [
        ("pre_bulk", User, kind, None) for kind in ("insert", "update", "delete")
    ]
    told = [each[1:] for each in heard if each[0] == "post_bulk"]
    assert told[1:] == [(User, "update", 1), (User, "delete", 2)]
    assert told[0][:2] == (User, "insert")
    assert [(each.is_insert, each.is_update) for each in statements] == [(True, False), (False, True), (False, False)]
    assert statements[1].compare(given)
    assert saved == []


async def test_statements_with_returning_still_return(maker, listen):
    """The result is handed through; entities that an INSERT returns are not counted."""
    heard = Log("kind", "rowcount")
    listen(post_bulk, heard, sender=User)
    async with maker.begin() as session:
        users = (await session.scalars(insert(User).returning(User), [{"name": "ada"}, {"name": "bob"}])).all()
        assert {user.name for user in users} == {"ada", "bob"}
        names = await session.scalars(delete(User).returning(User.name))
        assert set(names) == {"ada", "bob"}
    assert heard[0] == ("post_bulk", "insert", None)
    assert heard[1][:2] == ("post_bulk", "delete")
    assert heard[1][2] in (2, None)  # by driver


async def test_statements_follow_transactions_and_can_be_vetoed(maker, listen):
    """`on` as for the other signals; an exception in pre_bulk keeps the statement from running."""
    heard = []
    listen(post_bulk, lambda kind, **_: heard.append(f"commit {kind}"), sender=User, on="commit")
    listen(post_bulk, lambda kind, **_: heard.append(f"rollback {kind}"), sender=User, on="rollback")
    async with maker() as session:
        await session.execute(insert(User).values(name="ada"))
        await session.rollback()
        await session.execute(insert(User).values(name="bob"))
        await session.commit()
        assert heard == ["rollback insert", "commit insert"]

        async def veto(statement, **_):
            raise LookupError

        with pre_bulk.connected(veto, sender=User), pytest.raises(LookupError):
            await session.execute(delete(User))
        assert await session.scalar(select(func.count(User.id))) == 1


async def test_statements_of_sessions_enabled_before_and_after(engine, listen):
    """The hook that statements need is registered with the first receiver, for all enabled classes."""

    class Early(Session):
        pass

    class Late(Session):
        pass

    enable_signals(Early)
    heard = Log("sender")
    listen(post_bulk, heard, sender=Staff)
    enable_signals(Late)
    for session_class in (Early, Late):
        async with async_sessionmaker(engine, sync_session_class=session_class)() as session:
            await session.execute(update(Cook).values(stars=1))
    assert heard == [("post_bulk", Cook)] * 2


# -- instances ---------------------------------------------------------------------------------------------------------


async def test_instances_being_made_and_loaded(maker, listen):
    """pre_init may change the arguments; post_init sees the finished instance, from a call or from a row."""
    heard = []

    def before(sender, args, kwargs, session):
        kwargs.setdefault("name", "nobody")
        heard.append(("pre", sender, args, dict(kwargs), session))

    def after(sender, instance, session, **_):
        heard.append(("post", sender, instance.name, session))

    listen(pre_init, before, sender=Staff)
    listen(post_init, after, sender=Staff)
    cook = Cook(stars=1)
    assert cook.name == "nobody"
    assert heard == [("pre", Cook, (), {"stars": 1, "name": "nobody"}, None), ("post", Cook, "nobody", None)]
    async with maker() as session:
        session.add(cook)
        await session.commit()
    heard.clear()
    async with maker() as session:
        await session.get_one(Staff, cook.id)
        assert heard == [("post", Cook, "nobody", session)]


async def test_constructors_tell_once_however_many_listen(listen):
    """For a class, its base and all: the hooks are one, the receivers each their own."""
    heard = []
    for sender in (Cook, Staff, None):
        listen(pre_init, lambda sender=None, **_: heard.append("pre"), sender=sender)
        listen(post_init, lambda sender=None, **_: heard.append("post"), sender=sender)
        heard.clear()
        Cook(name="b")
        assert len(heard) == 2 * {Cook: 1, Staff: 2, None: 3}[sender]


def test_async_receivers_of_constructors_are_refused():
    """Nothing could await them."""

    async def hear(**_):
        raise AssertionError

    for signal in (pre_init, post_init):
        with pytest.raises(ValueError, match="sync functions"):
            signal.connect(hear, sender=User)
        with pytest.raises(ValueError, match="sync functions"):
            signal.connect(Log(), sender=User, in_thread=True)


def test_an_error_in_a_constructors_receiver_is_raised_from_the_call(listen):
    """As if the constructor had raised it."""

    def refuse(**_):
        raise LookupError

    for signal in (pre_init, post_init):
        with signal.connected(refuse, sender=User), pytest.raises(LookupError):
            User(name="ada")


async def test_a_class_that_is_enabled_while_its_session_is_in_a_transaction(engine, listen):
    """From then on it announces; the transaction that is open already delivers too."""

    class Late(Session):
        pass

    heard = []
    listen(post_save, lambda instance, **_: heard.append(instance.name))
    listen(post_save, lambda instance, **_: heard.append(f"commit {instance.name}"), on="commit")
    async with async_sessionmaker(engine, sync_session_class=Late)() as session:
        session.add(User(name="ada"))
        await session.flush()
        await session.begin_nested()
        enable_signals(Late)
        on_commit(session, lambda: heard.append("called"))
        session.add(User(name="bob"))
        await session.commit()
    assert heard == ["bob", "called", "commit bob"]


@pytest.mark.parametrize("signal", [pre_bulk, post_bulk])
async def test_a_commit_in_a_statements_receiver_is_refused(maker, listen, signal):
    """The transaction belongs to whoever executes the statement."""

    async def commit(session, **_):
        await session.commit()

    listen(signal, commit, sender=User)
    async with maker() as session:
        with pytest.raises(FlushInProgressError, match="commit"):
            await session.execute(update(User).values(visits=1))
