"""What happens once a transaction has ended: commit, rollback, savepoints, on_commit."""

# ruff: noqa: F811  fixtures are imported, and parameters go by their names
# ruff: noqa: PT012  a transaction's block is what raises
# ruff: noqa: PLR0913, PLR0917  and there are as many as a test needs

import asyncio
import contextvars
import logging

import pytest
from sqlalchemy import event, func, insert, inspect, select
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import selectinload
from sqlalchemy_support import (  # noqa: F401  fixtures
    DATABASES,
    Label,
    Log,
    Note,
    Page,
    Pizza,
    Shop,
    Topping,
    User,
    Word,
    anyio_backend,
    engine,
    listen,
    maker,
    nobody_left,
    place,
)

from asignals.sqlalchemy import (
    enable_signals,
    on_commit,
    post_delete,
    post_save,
    pre_save,
    transaction_committed,
    transaction_rolled_back,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def heard(listen):
    """What happened after transactions, in order."""
    log = []

    def hear(phase):
        async def receiver(instance, **_):
            log.append((phase, instance.name))

        return receiver

    listen(post_save, hear("commit"), sender=User, on="commit")
    listen(post_save, hear("rollback"), sender=User, on="rollback")
    listen(transaction_committed, lambda **_: log.append("committed"))
    listen(transaction_rolled_back, lambda **_: log.append("rolled back"))
    return log


@pytest.mark.drivers(*DATABASES)
async def test_commit_receivers_run_when_the_connection_is_back_in_the_pool(maker, engine, listen):
    """Not in the flush, and not while the transaction holds anything."""
    heard = []

    async def hear(sender, instance, created, update_fields, session):
        heard.append((sender, instance.name, created, update_fields, engine.pool.checkedout()))

    listen(post_save, hear, sender=User, on="commit")
    async with maker() as session:
        session.add(User(name="ada"))
        await session.flush()
        assert heard == []
        await session.commit()
        assert heard == [(User, "ada", True, None, 0)]


async def test_receivers_run_in_the_sessions_task_until_the_commit_and_in_another_after_it(maker, listen):
    """What they set in the context stays there, and what is set after the commit in a copy of it."""
    number = contextvars.ContextVar("number", default=0)
    tasks = []

    async def note(**_):
        tasks.append(asyncio.current_task())
        number.set(number.get() + 1)

    for on in ("flush", "commit"):
        listen(post_save, note, sender=User, on=on)
    async with maker() as session:
        session.add(User(name="ada"))
        on_commit(session, note)
        await session.flush()
        assert number.get() == 1
        await session.commit()
    assert [task is asyncio.current_task() for task in tasks] == [True, False, False]
    assert number.get() == 1


@pytest.mark.drivers(*DATABASES)
async def test_commit_receivers_hear_each_event_in_order(maker, heard):
    """One for each save, however many flushes the transaction had."""
    async with maker.begin() as session:
        user = User(name="ada")
        session.add(user)
        await session.flush()
        user.visits = 1
        await session.flush()
        session.add(User(name="bob"))
    assert heard == [("commit", "ada"), ("commit", "ada"), ("commit", "bob"), "committed"]


async def test_a_rollback_tells_rollback_receivers_and_nobody_else(maker, heard):
    """By request, by an exception in a block, and by closing a session with flushed changes."""
    async with maker() as session:
        session.add(User(name="ada"))
        await session.flush()
        await session.rollback()
    assert heard == [("rollback", "ada"), "rolled back"]
    heard.clear()
    with pytest.raises(LookupError):
        async with maker.begin() as session:
            session.add(User(name="bob"))
            await session.flush()
            raise LookupError
    assert heard == [("rollback", "bob"), "rolled back"]
    heard.clear()
    async with maker() as session:
        session.add(User(name="eve"))
        await session.flush()
    assert heard == [("rollback", "eve"), "rolled back"]


async def test_sessions_that_only_read_announce_no_rollback(maker, heard):
    """Closing them rolls back, and means nothing; neither does a commit that never reached the database."""
    async with maker() as session:
        await session.scalars(select(User))
    async with maker() as session:
        await session.commit()
    async with maker() as session:
        await session.scalars(select(User))
        await session.commit()
    assert heard == ["committed"]


async def test_transaction_signals_are_sent_by_the_session(maker, listen):
    """Receivers may listen to one session only."""
    committed = Log("sender", "session")
    async with maker() as mine, maker() as other:
        listen(transaction_committed, committed, sender=mine)
        for session in (other, mine):
            await session.scalar(select(1))
            await session.commit()
        assert committed == [("transaction_committed", mine, mine)]


# -- savepoints --------------------------------------------------------------------------------------------------------


async def test_released_savepoints_deliver_with_the_outermost_commit(maker, heard):
    """A released savepoint is not committed yet."""
    async with maker() as session:
        async with session.begin_nested():
            session.add(User(name="ada"))
        assert heard == []
        await session.commit()
    assert heard == [("commit", "ada"), "committed"]


@pytest.mark.drivers(*DATABASES)
async def test_rolled_back_savepoints_lose_their_events_only(maker, heard):
    """What is before and after them stays; rollback receivers are told at the end of the outermost."""
    async with maker.begin() as session:
        session.add(User(name="before"))
        with pytest.raises(LookupError):
            async with session.begin_nested():
                async with session.begin_nested():
                    session.add(User(name="released inside"))
                session.add(User(name="inside"))
                await session.flush()
                raise LookupError
        session.add(User(name="after"))
        assert heard == []
    assert heard == [
        ("rollback", "released inside"),
        ("rollback", "inside"),
        ("commit", "before"),
        ("commit", "after"),
        "committed",
    ]


async def test_an_outer_rollback_takes_released_savepoints_with_it(maker, heard):
    """And those that are still open."""
    async with maker() as session:
        async with session.begin_nested():
            session.add(User(name="released"))
        await session.begin_nested()
        session.add(User(name="open"))
        await session.flush()
        await session.rollback()
    assert heard == [("rollback", "open"), ("rollback", "released"), "rolled back"]


async def test_a_commit_takes_open_savepoints_with_it(maker, heard):
    """`session.commit()` releases them first."""
    async with maker() as session:
        await session.begin_nested()
        session.add(User(name="open"))
        await session.commit()
    assert heard == [("commit", "open"), "committed"]


async def test_a_post_save_error_in_a_savepoint_leaves_the_outer_transaction_whole(maker, listen, heard):
    """Only the savepoint is rolled back."""

    async def refuse(instance, **_):
        if instance.name == "bad":
            raise LookupError

    listen(post_save, refuse, sender=User)
    async with maker.begin() as session:
        session.add(User(name="good"))
        with pytest.raises(LookupError):
            async with session.begin_nested():
                session.add(User(name="bad"))
        session.add(User(name="better"))
    assert heard == [("rollback", "bad"), ("commit", "good"), ("commit", "better"), "committed"]
    async with maker() as session:
        assert set(await session.scalars(select(User.name))) == {"good", "better"}


# -- failures ----------------------------------------------------------------------------------------------------------


async def test_a_commit_that_fails_delivers_nothing_and_its_retry_does(maker, heard):
    """A flush that fails within the commit, then a rollback, then the same again without the mistake."""
    async with maker.begin() as session:
        session.add(User(name="taken"))
    heard.clear()
    async with maker() as session:
        session.add(User(name="ada"))
        await session.flush()
        session.add(User(name="taken"))
        with pytest.raises(IntegrityError):
            await session.commit()
        assert heard == []
        await session.rollback()
        assert heard == [("rollback", "ada"), "rolled back"]
        heard.clear()
        session.add(User(name="ada"))
        await session.commit()
    assert heard == [("commit", "ada"), "committed"]


@pytest.mark.drivers(*DATABASES)
async def test_a_commit_that_the_database_refuses(maker, engine, heard):
    """The COMMIT itself fails, after the flush: nothing was committed, and rollback receivers are told."""

    def refuse(connection):
        raise ConnectionResetError

    async with maker() as session:
        session.add(User(name="ada"))
        await session.flush()
        event.listen(engine.sync_engine, "commit", refuse)
        with pytest.raises(ConnectionResetError):
            await session.commit()
        event.remove(engine.sync_engine, "commit", refuse)
        await session.rollback()
        assert heard == [("rollback", "ada"), "rolled back"]
        heard.clear()
        session.add(User(name="ada"))
        await session.commit()
    assert heard == [("commit", "ada"), "committed"]


async def test_errors_of_commit_receivers_are_logged_and_harm_nobody(maker, listen, heard, caplog):
    """The data is committed, so the others hear of it and the caller sees no error."""

    async def refuse(**_):
        raise LookupError

    def refuse_sync(**_):
        raise LookupError

    async def give_up(**_):
        import asyncio

        raise asyncio.CancelledError

    for receiver in (refuse, refuse_sync, give_up):
        listen(post_save, receiver, sender=User, on="commit", priority=1)
    async with maker() as session:
        session.add(User(name="ada"))
        on_commit(session, refuse_sync)
        await session.commit()
        assert await session.scalar(select(func.count(User.id))) == 1
    assert heard == [("commit", "ada"), "committed"]
    assert len(caplog.records) == 4
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert {record.name for record in caplog.records} == {"asignals"}


async def test_commit_receivers_may_use_the_session_and_commit(maker, listen):
    """Also inside of `async with begin()`, where SQLAlchemy forbids it until the block is left."""
    logged = []

    async def log(session, instance, **_):
        session.add(Note(user_id=instance.id))
        await session.commit()
        logged.append(await session.scalar(select(func.count(Note.id))))

    listen(post_save, log, sender=User, on="commit")
    async with maker.begin() as session:
        session.add_all([User(name="ada"), User(name="bob")])
    assert logged == [1, 2]
    async with maker() as session:
        session.add(User(name="eve"))
        await session.commit()
        async with session.begin():
            assert await session.scalar(select(func.count(Note.id))) == 3


async def test_what_commit_receivers_send_on_is_delivered_too(maker, listen):
    """Events of a commit in a commit receiver are delivered by that commit."""
    heard = []

    async def follow(session, instance, **_):
        heard.append(instance.name)
        if len(heard) < 3:
            session.add(User(name=f"{instance.name}'"))
            await session.commit()
        heard.append(f"/{instance.name}")

    listen(post_save, follow, sender=User, on="commit")
    async with maker.begin() as session:
        session.add(User(name="a"))
    assert heard == ["a", "a'", "a''", "/a''", "/a'", "/a"]


async def test_a_receiver_of_commits_that_commits_is_told_of_that_as_well(maker, listen):
    """`transaction_committed` is sent for each commit, and a failing receiver of it harms nobody."""
    heard = []

    async def again(session, **_):
        heard.append(session)
        if len(heard) < 3:
            session.add(User(name=f"user {len(heard)}"))
            await session.commit()
        raise LookupError

    listen(transaction_committed, again)
    async with maker.begin() as session:
        session.add(User(name="ada"))
    assert heard == [session] * 3


WRITES = {}


def writes(receiver):
    WRITES[receiver.__name__] = receiver
    return receiver


@writes
async def add(session, instance, **_):
    session.add(Note(user_id=instance.id))


@writes
async def flush(session, instance, **_):
    session.add(Note(user_id=instance.id))
    await session.flush()


@writes
async def execute(session, instance, **_):
    await session.execute(insert(Note), [{"user_id": instance.id}])


@writes
async def execute_core(session, instance, **_):
    await session.execute(Note.__table__.insert().values(user_id=instance.id))


@writes
def add_sync(session, instance, **_):
    session.sync_session.add(Note(user_id=instance.id))


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
async def test_what_receivers_leave_open_is_committed_or_rolled_back(maker, listen, engine, caplog, write, fails):
    """Committed when the receiver returns, so that nothing it wrote vanishes; rolled back when it raises."""
    ends = Log()
    listen(transaction_committed, ends)

    async def receiver(**named):
        response = write(**named)
        if asyncio.iscoroutine(response):
            await response
        if fails:
            raise LookupError

    listen(post_save, receiver, sender=User, on="commit")
    async with maker() as session:
        session.add(User(name="ada"))
        await session.commit()
        assert engine.pool.checkedout() == 0
        assert not session.in_transaction()
    async with maker() as session:
        assert await session.scalar(select(func.count(Note.id))) == (0 if fails else 1)
    assert ("LookupError" in caplog.text) is fails
    assert ends == ["transaction_committed"]  # not for what is left over: who writes there would never come to an end


@pytest.mark.parametrize("on", ["commit", "rollback"])
async def test_each_receiver_and_callback_finds_an_idle_session(maker, listen, on):
    """Whatever those before it have begun, left dirty or broken."""
    found = []

    async def read(session, **_):
        found.append(session.in_transaction())
        await session.scalar(select(func.count(User.id)))

    async def break_it(session, **_):
        found.append(session.in_transaction())
        session.add(User(id=1, name="taken"))
        await session.flush()

    async def write(session, **_):
        async with session.begin():
            session.add(Note())
            found.append("begun")

    for receiver in (read, break_it, write):
        listen(post_save, receiver, sender=User, on=on)
    with post_save.muted():
        async with maker.begin() as session:
            session.add(User(id=1, name="ada"))
    async with maker() as session:
        user = await session.get_one(User, 1)
        user.visits = 5
        await session.flush()
        on_commit(session, lambda: found.append(session.in_transaction()))
        await (session.commit() if on == "commit" else session.rollback())
    assert found == [False, False, "begun", *([False] if on == "commit" else [])]
    async with maker() as session:
        assert await session.scalar(select(func.count(Note.id))) == 1


async def test_what_a_receiver_leaves_to_be_committed_is_announced_in_its_turn(maker, listen):
    """Its rows are rows like others: their receivers are called before the next receiver of the first."""
    heard = []

    async def write(session, instance, **_):
        session.add(Note(user_id=instance.id))

    listen(post_save, write, sender=User, on="commit")
    listen(post_save, lambda **_: heard.append("note"), sender=Note, on="commit")
    listen(post_save, lambda **_: heard.append("next"), sender=User, on="commit")
    async with maker.begin() as session:
        session.add(User(name="ada"))
    assert heard == ["note", "next"]


async def test_a_leftover_that_cannot_be_committed_is_the_receivers_error(maker, listen, caplog):
    """Logged with its name, and the others go on."""
    heard = []

    async def duplicate(session, instance, **_):
        session.add(User(name=instance.name))

    listen(post_save, duplicate, sender=User, on="commit")
    listen(post_save, lambda instance, **_: heard.append(instance.name), sender=User, on="commit")
    async with maker.begin() as session:
        session.add(User(name="ada"))
    assert heard == ["ada"]
    assert "duplicate" in caplog.text
    assert "IntegrityError" in caplog.text


async def end_by_commit(session, page):
    await session.flush()
    await session.commit()


async def end_by_rollback(session, page):
    await session.flush()
    await session.rollback()


async def end_by_close(session, page):
    await session.flush()
    await session.close()


async def end_in_a_savepoint(session, page):
    await session.flush()
    await session.commit()


async def end_in_a_lost_savepoint(session, page):
    await session.flush()
    await session.get_nested_transaction().rollback()
    await session.commit()


async def end_after_a_lost_savepoint(session, page):
    await session.flush()
    async with session.begin_nested() as lost:
        if page in session:
            page.title = "lost"
            await session.flush()
        await lost.rollback()
    await session.commit()


@pytest.mark.drivers("aiosqlite", "asyncpg")
@pytest.mark.parametrize("expire", [True, False], ids=["expiring", "keeping"])
@pytest.mark.parametrize("kind", ["insert", "update", "delete"])
@pytest.mark.parametrize(
    ("end", "on"),
    [
        (end_by_commit, "flush"),
        (end_by_commit, "commit"),
        (end_by_rollback, "rollback"),
        (end_by_close, "rollback"),
        (end_in_a_savepoint, "commit"),
        (end_in_a_lost_savepoint, "rollback"),
        (end_after_a_lost_savepoint, "commit"),
    ],
)
async def test_what_was_loaded_is_readable_in_every_phase(engine, listen, expire, kind, end, on):
    """By async receivers, as it was in the flush, also what the database has set; and fresh for whoever goes on."""
    maker = enable_signals(async_sessionmaker(engine, expire_on_commit=expire))
    async with maker.begin() as session:
        session.add(Page(id=1, title="old", revision=1, words=[Word(text="a")]))
    seen = []

    async def read(instance, **_):
        words = [word.text for word in instance.__dict__["words"]] if kind == "update" else None
        seen.append((instance.id, instance.title, instance.body, instance.touched is None, words))

    async def disturb(session, **_):
        await session.scalar(select(1))

    signal = post_delete if kind == "delete" else post_save
    listen(signal, read, sender=Page, on=on, dispatch_uid=1)
    listen(signal, disturb, sender=Page, on=on)
    listen(signal, read, sender=Page, on=on, dispatch_uid=2)
    async with maker() as session:
        if kind == "insert":
            page = Page(id=2, title="new", body=None, touched=None)
        else:
            page = await session.get_one(Page, 1, options=[selectinload(Page.words)])
        if "in_a" in end.__name__:
            await session.begin_nested()
        if kind == "insert":
            session.add(page)
        elif kind == "update":
            page.title = "new"
        else:
            await session.delete(page)
        await end(session, page)
        expected = {
            "insert": (2, "new", None, True, None),
            "update": (1, "new", None, False, ["a"]),
            "delete": (1, "old", None, True, None),
        }
        assert seen == [expected[kind]] * 2
        if page in session:
            await session.refresh(page)
            assert page.title == ("new" if kind != "delete" and on != "rollback" else "old")


async def test_dynamic_and_write_only_collections_are_no_values(engine, listen):
    """They hold nothing that could be kept, before the end and after it."""
    heard = []

    async def hear(instance, **_):
        heard.append(instance.name)

    for on in ("commit", "rollback"):
        listen(post_save, hear, sender=Pizza, on=on)
    maker = enable_signals(async_sessionmaker(engine))
    async with maker() as session:
        pizza = Pizza(id=1, name="a", toppings=[Topping(id=1)])
        pizza.labels.add(Label(id=1))
        pizza.shops.append(Shop(id=1))
        session.add(pizza)
        await session.commit()
        await session.refresh(pizza)
        pizza.name = "b"
        pizza.shops.append(Shop(id=2))
        await session.flush()
        await session.rollback()
    assert heard == ["a", "b"]


async def test_values_put_back_for_receivers_are_expired_again(engine, listen):
    """Whoever goes on with the session gets what the database has; what receivers change is written."""

    async def rename(instance, **_):
        instance.visits += 10

    listen(post_save, rename, sender=User, on="commit", once=True)
    maker = enable_signals(async_sessionmaker(engine))
    async with maker() as session:
        user = User(id=1, name="ada", visits=1)
        session.add(user)
        await session.commit()
        assert "visits" in inspect(user).expired_attributes
        await session.refresh(user)
        assert user.visits == 11
        listen(post_save, lambda **_: None, sender=User, on="rollback")
        user.visits = 12
        await session.flush()
        await session.rollback()
        await session.refresh(user)
        assert user.visits == 11


async def test_expire_on_commit_off_keeps_what_was_written(maker, listen):
    """What SQLAlchemy recommends for asyncio: instances stay readable."""
    names = []

    async def hear(instance, **_):
        names.append(instance.name)

    listen(post_save, hear, sender=User, on="commit")
    listen(post_delete, hear, sender=User, on="commit")
    async with maker() as session:
        user = User(name="ada")
        session.add(user)
        await session.commit()
        await session.delete(user)
        await session.commit()
    assert names == ["ada", "ada"]


# -- on_commit ---------------------------------------------------------------------------------------------------------


async def test_on_commit_calls_back_in_order_with_the_receivers(maker, heard):
    """Sync and async callbacks, as they were registered."""
    async with maker.begin() as session:

        async def later():
            heard.append("async")

        on_commit(session, lambda: heard.append("sync"))
        session.add(User(name="ada"))
        await session.flush()
        on_commit(session, later)
        assert heard == []
    assert heard == ["sync", ("commit", "ada"), "async", "committed"]


async def test_on_commit_understands_savepoints(maker):
    """A callback goes with the savepoint that it was registered in."""
    called = []
    async with maker.begin() as session:
        on_commit(session, lambda: called.append("outer"))
        async with session.begin_nested():
            on_commit(session, lambda: called.append("released"))
        with pytest.raises(LookupError):
            async with session.begin_nested():
                on_commit(session, lambda: called.append("rolled back"))
                raise LookupError
    assert called == ["outer", "released"]


async def test_on_commit_without_a_transaction_waits_for_the_next(maker):
    """And once it has been called, or dropped by a rollback, it is gone."""
    called = []
    async with maker() as session:
        on_commit(session, lambda: called.append(1))
        assert called == []
        await session.commit()
        await session.commit()
        assert called == [1]
        on_commit(session, lambda: called.append(2))
        await session.scalar(select(1))
        await session.rollback()
        await session.commit()
    assert called == [1]


async def test_on_commit_refuses_what_cannot_be_called(maker):
    """At once, and not after the commit."""
    async with maker() as session:
        with pytest.raises(TypeError, match="callable"):
            on_commit(session, 3)


# -- SQLAlchemy's recipe for test suites -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_enabled_maker", [True, False], ids=["maker", "session"])
async def test_join_transaction_mode_for_tests(engine, heard, is_enabled_maker):
    """A session in an outer transaction that is rolled back after the test: its commits are commits to receivers."""
    async with engine.connect() as connection:
        outer = await connection.begin()
        options = {"bind": connection, "join_transaction_mode": "create_savepoint", "expire_on_commit": False}
        if is_enabled_maker:
            session = enable_signals(async_sessionmaker(**options))()
        else:
            enabled = enable_signals(async_sessionmaker()).kw["sync_session_class"]
            session = AsyncSession(sync_session_class=enabled, **options)
        async with session:
            session.add(User(name="ada"))
            await session.commit()
            assert heard == [("commit", "ada"), "committed"]
            session.add(User(name="bob"))
            await session.flush()
            await session.rollback()
            assert heard[2:] == [("rollback", "bob"), "rolled back"]
        await outer.rollback()
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.count(User.id))) == 0


async def test_a_wedged_session_is_not_what_errors_leave(maker, listen):
    """After an error in every phase, one after the other, the same session still commits."""

    def refuse(**_):
        raise LookupError

    async with maker() as session:
        for signal, on in ((pre_save, "flush"), (post_save, "flush"), (post_save, "commit"), (post_save, "rollback")):
            with signal.connected(refuse, sender=User, on=on):
                session.add(User(name="ada"))
                if on == "flush":
                    with pytest.raises(LookupError):
                        await session.commit()
                    await session.rollback()
                elif on == "rollback":
                    await session.flush()
                    await session.rollback()
                else:
                    await session.commit()
                    for user in await session.scalars(select(User)):
                        await session.delete(user)
                    await session.commit()
        session.add(User(name="last"))
        await session.commit()
        assert (await session.scalars(select(User.name))).all() == ["last"]


async def test_using_a_block_after_its_transaction_ended_stays_an_error(maker):
    """SQLAlchemy's own check is left alone."""
    async with maker() as session, session.begin():
        await session.commit()
        with pytest.raises(InvalidRequestError, match="closed transaction"):
            await session.scalar(select(1))
