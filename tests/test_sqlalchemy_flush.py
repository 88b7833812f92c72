"""What a flush announces: which instances, with which arguments, and what receivers may do in it."""

# ruff: noqa: F811  fixtures are imported, and parameters go by their names

import warnings

import pytest
import sqlalchemy
from sqlalchemy import delete, func, inspect, select
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy_support import (  # noqa: F401  fixtures
    DATABASES,
    Cook,
    Draft,
    Log,
    Note,
    Order,
    Page,
    Pair,
    Staff,
    Stamped,
    User,
    Waiter,
    anyio_backend,
    engine,
    listen,
    maker,
    nobody_left,
    place,
)

from asignals.sqlalchemy import EndlessFlushError, FlushInProgressError, post_delete, post_save, pre_delete, pre_save

pytestmark = pytest.mark.anyio


@pytest.fixture
def saves(listen):
    """Every save that is announced, as (signal, class, created, update_fields)."""
    log = []

    def hear(signal, sender, created, update_fields, **_):
        log.append((signal.name[20:], sender, created, update_fields))

    for signal in (pre_save, post_save):
        listen(signal, hear)
    return log


@pytest.fixture
def deletes(listen):
    """Every deletion that is announced, as (signal, class, primary key)."""
    log = []

    def hear(signal, sender, instance, **_):
        log.append((signal.name[20:], sender, inspect(instance).identity))

    for signal in (pre_delete, post_delete):
        listen(signal, hear)
    return log


async def stored(maker, *instances):
    """Store instances without anybody being told."""
    with pre_save.muted(), post_save.muted():
        async with maker.begin() as session:
            session.add_all(instances)
    return instances


# -- what makes a session flush ----------------------------------------------------------------------------------------


async def by_flush(session, known):
    await session.flush()


async def by_commit(session, known):
    await session.commit()


async def by_autoflush_of_a_select(session, known):
    await session.execute(select(User))


async def by_scalar(session, known):
    await session.scalar(select(func.count(User.id)))


async def by_stream(session, known):
    async for _ in await session.stream(select(User)):
        pass


async def by_run_sync(session, known):
    await session.run_sync(lambda sync: sync.flush())


async def by_savepoint(session, known):
    await session.begin_nested()


async def by_refresh(session, known):
    await session.refresh(known)


async def by_awaitable_attrs(session, known):
    await known.awaitable_attrs.orders


async def by_merge(session, known):
    await session.merge(User(id=1, name="ada", orders=[]))
    await session.flush()


async def by_a_core_statement(session, known):
    await session.execute(sqlalchemy.text("select 1"))


TRIGGERS = [
    by_flush,
    by_commit,
    by_autoflush_of_a_select,
    by_scalar,
    by_stream,
    by_run_sync,
    by_savepoint,
    by_refresh,
    by_awaitable_attrs,
    by_merge,
]
if sqlalchemy.__version__ >= "2.1":  # where statements that are not of the ORM flush too
    TRIGGERS.append(by_a_core_statement)


@pytest.mark.drivers(*DATABASES)
@pytest.mark.parametrize("trigger", TRIGGERS)
async def test_every_way_to_flush_announces_what_it_writes(maker, listen, trigger):
    """Sync and async receivers are told of a save, however the flush comes about."""
    await stored(maker, User(id=1, name="ada"))
    heard = []
    sync = listen(post_save, lambda instance, **_: heard.append(("sync", instance.name)), sender=User)

    async def hear(sender, instance, created, update_fields, session):
        heard.append(("async", instance.name, created, await session.scalar(select(func.count(User.id)))))

    listen(post_save, hear, sender=User)
    async with maker() as session:
        known = await session.get_one(User, 1)
        session.add(User(id=2, name="bob"))
        await trigger(session, known)
        await session.rollback()
    assert heard == [("sync", "bob"), ("async", "bob", True, 2)]
    assert sync is not None


async def test_begin_blocks_announce_although_they_commit_in_another_task(maker, saves):
    """`async with maker.begin()` flushes while it is left, and in a task that SQLAlchemy starts for it."""
    async with maker.begin() as session:
        session.add(User(name="ada"))
        assert saves == []
    assert saves == [("pre_save", User, True, None), ("post_save", User, True, None)]


async def test_session_among_the_arguments_is_the_async_session(maker, listen):
    """Sync receivers get the `AsyncSession` as well."""
    heard = []
    listen(post_save, lambda session, **_: heard.append(session))
    async with maker.begin() as session:
        session.add(User(name="ada"))
    assert heard == [session]


# -- errors ------------------------------------------------------------------------------------------------------------


async def test_an_error_that_surfaces_from_a_select_says_that_it_was_an_autoflush(maker, listen):
    """The query is not to blame, so the note tells who is."""

    async def refuse(sender, instance, **_):
        raise LookupError(instance.name)

    listen(pre_save, refuse)
    async with maker() as session:
        session.add(User(name="ada"))
        with pytest.raises(LookupError, match="ada") as caught:
            await session.execute(select(User))
    notes = "\n".join(caught.value.__notes__)
    assert "refuse" in notes
    assert "pre_save" in notes
    assert "by an autoflush" in notes


async def test_an_error_from_an_explicit_flush_says_nothing_of_autoflush(maker, listen):
    """Only what is true is noted."""

    def refuse(**_):
        raise LookupError

    listen(post_save, refuse)
    async with maker() as session:
        session.add(User(name="ada"))
        with pytest.raises(LookupError) as caught:
            await session.flush()
    assert "by an autoflush" not in "\n".join(caught.value.__notes__)


async def test_a_veto_in_pre_save_leaves_the_session_usable_for_the_rest(maker, listen):
    """Nothing has been written when pre_save raises, so nothing needs rolling back."""

    def veto(instance, **_):
        if instance.name == "bad":
            raise ValueError(instance.name)

    listen(pre_save, veto, sender=User)
    async with maker() as session:
        bad = User(name="bad")
        session.add_all([User(name="good"), bad])
        with pytest.raises(ValueError, match="bad"):
            await session.commit()
        session.expunge(bad)
        await session.commit()
        assert (await session.scalars(select(User.name))).all() == ["good"]


async def test_an_error_in_post_save_makes_the_flush_fail(maker, listen):
    """The row is not kept, and the session can be used again after a rollback, as SQLAlchemy has it."""

    async def refuse(**_):
        raise LookupError

    listen(post_save, refuse, sender=User)
    async with maker() as session:
        session.add(User(name="ada"))
        with pytest.raises(LookupError):
            await session.commit()
        await session.rollback()
        assert (await session.scalars(select(User))).all() == []


async def test_a_flush_that_fails_announces_no_post_save(maker, saves):
    """A row that the database refuses was foreseen, but not saved; the next flush starts afresh."""
    await stored(maker, User(name="ada"))
    async with maker() as session:
        session.add(User(name="ada"))
        with pytest.raises(IntegrityError):
            await session.flush()
        await session.rollback()
        session.add(User(name="bob"))
        await session.commit()
    assert [name for name, *_ in saves] == ["pre_save", "pre_save", "post_save"]


# -- what receivers may do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_what_pre_save_changes_is_persisted(maker, listen, is_async):
    """Changes by a receiver are part of the same INSERT or UPDATE."""

    def strip(instance, **_):
        instance.name = instance.name.strip()

    async def strip_async(instance, **_):
        strip(instance)

    listen(pre_save, strip_async if is_async else strip, sender=User)
    async with maker.begin() as session:
        user = User(name=" ada ")
        session.add(user)
    async with maker.begin() as session:
        user = await session.get_one(User, user.id)
        assert user.name == "ada"
        user.name = " eve "
    async with maker() as session:
        assert await session.scalar(select(User.name)) == "eve"


async def test_objects_that_pre_save_adds_are_saved_and_announced_too(maker, listen, saves):
    """Also what receivers add in reaction to these; each object once."""

    def add(instance, session, **_):
        session.add(Note(user_id=None) if isinstance(instance, User) else Draft())

    listen(pre_save, add, sender=User)
    listen(pre_save, add, sender=Note)
    async with maker.begin() as session:
        session.add(User(name="ada"))
    assert [each[:2] for each in saves[:3]] == [("pre_save", User), ("pre_save", Note), ("pre_save", Draft)]
    assert {each[1] for each in saves[3:]} == {User, Note, Draft}
    assert len(saves) == 6


async def test_endless_adding_in_pre_save_is_stopped(maker, listen):
    """With a clear error, nothing written, and the session usable."""
    listen(pre_save, lambda session, **_: session.add(Note()), sender=Note)
    async with maker() as session:
        session.add(Note())
        with pytest.raises(EndlessFlushError, match="100 rounds") as caught:
            await session.flush()
        assert caught.value.rounds == 100
        await session.rollback()
        assert await session.scalar(select(func.count(Note.id))) == 0


@pytest.mark.parametrize("signal", [pre_save, post_save])
async def test_receivers_may_query(maker, listen, signal):
    """Queries in receivers do not flush again, and see what post_save tells of."""
    counts = []

    async def count(session, **_):
        counts.append(await session.scalar(select(func.count(User.id))))

    listen(signal, count, sender=User)
    async with maker.begin() as session:
        session.add_all([User(name="ada"), User(name="bob")])
    assert counts == ([0, 0] if signal is pre_save else [2, 2])


async def test_sync_receivers_may_load_lazily(maker, listen):
    """They run inside of the session's greenlet."""
    await stored(maker, User(id=1, name="ada", orders=[Order(amount=7)]))
    amounts = []
    listen(post_save, lambda instance, **_: amounts.extend(order.amount for order in instance.orders), sender=User)
    async with maker.begin() as session:
        (await session.get_one(User, 1)).visits = 1
    assert amounts == [7]


async def test_mixed_receivers_are_called_in_one_order(maker, listen):
    """Sync and async, priorities first."""
    heard = []

    async def first(instance, **_):
        heard.append(("async", instance.name))

    async def last(instance, **_):
        heard.append(("late", instance.name))

    listen(post_save, lambda instance, **_: heard.append(("sync", instance.name)), sender=User)
    listen(post_save, last, sender=User, priority=-1)
    listen(post_save, first, sender=User, priority=1)
    async with maker.begin() as session:
        session.add_all([User(name="ada"), User(name="bob")])
    assert heard == [(kind, name) for name in ("ada", "bob") for kind in ("async", "sync", "late")]


async def test_what_post_save_adds_and_changes_goes_with_the_commit(maker, listen):
    """A commit flushes again until nothing is left; a plain flush leaves it pending."""

    async def follow(instance, session, **_):
        session.add(Note(user_id=instance.id))
        instance.visits = 5

    def once(instance, created, session, **_):
        if created:
            session.add(Draft(user_id=instance.id))

    listen(post_save, once, sender=User)
    with post_save.connected(follow, sender=User, once=True):
        async with maker.begin() as session:
            session.add(User(name="ada"))
    async with maker() as session:
        user = await session.scalar(select(User))
        assert user.visits == 5
        assert (await session.scalars(select(Note.user_id))).all() == [user.id]
        assert (await session.scalars(select(Draft.user_id))).all() == [user.id]


@pytest.mark.parametrize("signal", [pre_save, post_save])
async def test_a_flush_in_a_receiver_is_refused(maker, listen, signal):
    """With SQLAlchemy's error, and a note that tells what to do instead."""

    async def flush(session, **_):
        await session.flush()

    listen(signal, flush, sender=User)
    async with maker() as session:
        session.add(User(name="ada"))
        with pytest.raises(InvalidRequestError, match="already flushing") as caught:
            await session.commit()
    assert "inside of a flush" in "\n".join(caught.value.__notes__)


@pytest.mark.parametrize("signal", [pre_save, post_save])
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_a_commit_in_a_receiver_is_refused(maker, listen, signal, is_async):
    """It would commit half a flush."""

    async def commit(session, **_):
        await session.commit()

    listen(signal, commit if is_async else lambda session, **_: session.sync_session.commit(), sender=User)
    async with maker() as session:
        session.add(User(name="ada"))
        with pytest.raises(FlushInProgressError, match="on_commit") as caught:
            await session.flush()
        assert caught.value.operation == "commit"
        await session.rollback()
        assert await session.scalar(select(func.count(User.id))) == 0


@pytest.mark.parametrize("signal", [pre_save, post_save])
async def test_a_rollback_in_a_receiver_is_refused(maker, listen, signal):
    """An exception is the way to make the flush fail."""

    async def rollback(session, **_):
        await session.rollback()

    listen(signal, rollback, sender=User)
    async with maker() as session:
        session.add(User(name="ada"))
        with pytest.raises(FlushInProgressError, match="raise an exception"):
            await session.flush()
        await session.rollback()
        assert await session.scalar(select(func.count(User.id))) == 0


@pytest.mark.parametrize("signal", [pre_save, post_save])
async def test_a_receiver_that_closes_the_session_is_found_out(maker, listen, signal):
    """Close cannot be kept from happening, but the flush does not go on as if nothing had."""

    async def end(session, **_):
        await session.close()

    listen(signal, end, sender=User)
    async with maker() as session:
        await session.connection()
        session.add(User(name="ada"))
        with pytest.raises(FlushInProgressError, match=r"end.* cannot close the session"):
            await session.flush()
    async with maker() as session:
        assert await session.scalar(select(func.count(User.id))) == 0


async def test_receivers_of_post_save_may_use_savepoints(maker, listen):
    """What fails in one does no harm to the flush around it."""

    async def attempt(session, **_):
        with pytest.raises(sqlalchemy.exc.DBAPIError):
            async with session.begin_nested():
                await session.execute(sqlalchemy.text("select * from nonsense"))
        async with session.begin_nested():
            await session.execute(Note.__table__.insert())

    listen(post_save, attempt, sender=User)
    async with maker.begin() as session:
        session.add(User(name="ada"))
    async with maker() as session:
        assert await session.scalar(select(func.count(Note.id))) == 1
        assert await session.scalar(select(func.count(User.id))) == 1


async def test_savepoints_while_changes_wait_are_refused_and_those_of_the_connection_work(maker, listen):
    """A rollback to a savepoint of the session would drop what is not flushed yet, without a word."""

    async def attempt(session, **_):
        with pytest.raises(FlushInProgressError, match="savepoint"):
            await session.begin_nested()
        connection = await session.connection()
        with pytest.raises(sqlalchemy.exc.DBAPIError):
            async with connection.begin_nested():
                await connection.execute(sqlalchemy.text("select * from nonsense"))

    listen(pre_save, attempt, sender=User)
    async with maker.begin() as session:
        session.add(User(name="ada"))
    async with maker() as session:
        assert await session.scalar(select(func.count(User.id))) == 1


async def test_receivers_that_come_and_go_during_a_flush(maker, listen):
    """One that is disconnected is not called any more; one that is connected hears the instances after this one."""
    heard = []

    def late(instance, **_):
        heard.append(("late", instance.name))

    def gone(instance, **_):
        heard.append(("gone", instance.name))

    def change(instance, **_):
        if instance.name == "ada":
            post_save.disconnect(gone, User)
            post_save.connect(late, User)

    listen(post_save, change, sender=User)
    post_save.connect(gone, User)
    async with maker.begin() as session:
        session.add_all([User(name="ada"), User(name="bob")])
    post_save.disconnect(late, User)
    assert heard == [("late", "bob")]


# -- what is announced -------------------------------------------------------------------------------------------------


async def test_nothing_is_announced_for_unchanged_and_reverted_objects(maker, saves):
    """Only net changes count: what was set back, replaced by itself, or only looked at was not saved."""
    await stored(maker, User(id=1, name="ada", orders=[Order(id=1)], notes=[Note(id=1)]), User(id=2, name="bob"))
    async with maker.begin() as session:
        user = await session.get_one(User, 1)
        order = await session.get_one(Order, 1)
        user.name = user.name
        user.visits = 9
        user.visits = 0
        other = await session.get_one(User, 2)
        await order.awaitable_attrs.user
        order.user = other
        order.user = user
        notes = await user.awaitable_attrs.notes
        notes.remove(note := notes[0])
        notes.append(note)
    assert saves == []


async def test_update_fields_name_what_the_update_sets(maker, saves):
    """Changed attributes, with SQL expressions, expired ones, version counters and onupdate columns."""
    await stored(maker, User(id=1, name="ada"), Page(id=1, title="a"))
    async with maker.begin() as session:
        user = await session.get_one(User, 1)
        user.visits = User.visits + 1
        await session.flush()
        session.expire(user)
        user.name = "eve"
        await session.flush()
        (await session.get_one(Page, 1)).title = "b"
    expected = [frozenset({"visits"}), frozenset({"name"}), frozenset({"title", "revision", "touched"})]
    assert [fields for name, _, _, fields in saves if name == "post_save"] == expected
    assert [fields for name, _, _, fields in saves if name == "pre_save"] == expected
    assert {created for _, _, created, _ in saves} == {False}


async def test_inheritance_tells_base_and_subclass_receivers_once_each(maker, listen):
    """A receiver of the base hears subclasses, joined and in one table, and one of the subclass only its own."""
    heard = []

    def hear(name):
        return lambda sender, instance, created, **_: heard.append((name, sender, created))

    for sender in (Staff, Cook, Waiter):
        listen(post_save, hear(sender.__name__), sender=sender)
    listen(post_save, hear("exactly"), sender=Staff, subclasses=False)
    async with maker.begin() as session:
        session.add_all([Staff(name="a"), Cook(name="b"), Waiter(name="c")])
    assert sorted(heard, key=str) == sorted(
        [
            ("Staff", Staff, True),
            ("exactly", Staff, True),
            ("Staff", Cook, True),
            ("Cook", Cook, True),
            ("Staff", Waiter, True),
            ("Waiter", Waiter, True),
        ],
        key=str,
    )


async def test_update_fields_of_joined_tables(maker, saves):
    """Columns of both tables go by their attributes, in one event."""
    await stored(maker, Cook(id=1, name="b"))
    async with maker.begin() as session:
        cook = await session.get_one(Cook, 1)
        cook.name, cook.stars = "c", 3
    assert saves == [(name, Cook, False, frozenset({"name", "stars"})) for name in ("pre_save", "post_save")]


async def test_an_unmapped_mixin_is_a_sender_too(maker, listen):
    """Receivers of a mixin hear the mapped classes that have it."""
    heard = Log("sender")
    listen(post_save, heard, sender=Stamped)
    async with maker.begin() as session:
        session.add_all([User(name="ada"), Note()])
    assert heard == [("post_save", User)]


async def test_a_deletion_announces_what_its_cascades_delete(maker, deletes, saves):
    """Children that go are deleted; children that stay lose their parent, which is an update."""
    await stored(maker, User(id=1, name="ada", orders=[Order(id=1)], notes=[Note(id=1)], drafts=[Draft(id=1)]))
    async with maker.begin() as session:
        await session.delete(await session.get_one(User, 1))
    expected = {(User, (1,)), (Order, (1,)), (Draft, (1,))}
    assert {each[1:] for each in deletes if each[0] == "pre_delete"} == expected
    assert {each[1:] for each in deletes if each[0] == "post_delete"} == expected
    assert len(deletes) == 6
    assert saves == [(name, Note, False, frozenset({"user_id"})) for name in ("pre_save", "post_save")]


@pytest.mark.parametrize(("attribute", "model"), [("orders", Order), ("drafts", Draft)])
async def test_orphans_are_deleted_with_and_without_a_backref(maker, deletes, attribute, model):
    """Without a backref the session does not even know that the orphan has changed, until the flush."""
    await stored(maker, User(id=1, name="ada", **{attribute: [model(id=1)]}))
    async with maker.begin() as session:
        user = await session.get_one(User, 1)
        children = await getattr(user.awaitable_attrs, attribute)
        children.clear()
    assert deletes == [(name, model, (1,)) for name in ("pre_delete", "post_delete")]


async def test_children_without_a_backref_are_updated(maker, saves):
    """Adding one to a collection, moving it and taking it out sets its foreign key."""
    ada, bob, _ = await stored(maker, User(id=1, name="ada", notes=[]), User(id=2, name="bob", notes=[]), Note(id=1))
    fields = frozenset({"user_id"})
    async with maker() as session:
        ada, bob = [await session.get_one(User, key) for key in (1, 2)]
        note = await session.get_one(Note, 1)
        mine, yours = await ada.awaitable_attrs.notes, await bob.awaitable_attrs.notes
        for change in (lambda: mine.append(note), lambda: (mine.remove(note), yours.append(note)), yours.clear):
            saves.clear()
            change()
            await session.commit()
            assert saves == [("pre_save", Note, False, fields), ("post_save", Note, False, fields)]
        assert note.user_id is None


async def test_a_many_to_one_that_is_set_is_an_update_of_its_key(maker, saves):
    """Although the foreign key itself is only set while the flush runs."""
    await stored(maker, User(id=1, name="ada"), Order(id=1))
    async with maker.begin() as session:
        order = await session.get_one(Order, 1)
        order.user = await session.get_one(User, 1)
    fields = frozenset({"user_id"})
    assert saves == [("pre_save", Order, False, fields), ("post_save", Order, False, fields)]


async def test_a_row_that_changes_hands_is_an_update(maker, saves, deletes):
    """An instance that is deleted while a new one takes its primary key: its row is not deleted, nor is one created."""
    await stored(maker, Pair(left=1, right=2, word="old"))
    async with maker.begin() as session:
        await session.delete(await session.get_one(Pair, (1, 2)))
        session.add(Pair(left=1, right=2, word="new"))
    assert [each[:3] for each in saves] == [("pre_save", Pair, False), ("post_save", Pair, False)]
    assert all("word" in each[3] for each in saves)
    assert deletes == []


async def test_composite_and_changed_primary_keys(maker, saves, deletes):
    """A change of a key is an update that names it; the deletion has the new key."""
    await stored(maker, Pair(left=1, right=2))
    async with maker.begin() as session:
        pair = await session.get_one(Pair, (1, 2))
        pair.right = 3
        await session.flush()
        await session.delete(pair)
    fields = frozenset({"right"})
    assert saves == [("pre_save", Pair, False, fields), ("post_save", Pair, False, fields)]
    assert deletes == [("pre_delete", Pair, (1, 3)), ("post_delete", Pair, (1, 3))]


async def test_objects_that_a_receiver_deletes_are_announced_as_deleted(maker, listen, deletes):
    """pre_save may change another object's fate."""
    await stored(maker, Note(id=1), User(id=1, name="ada"))

    async def delete(session, **_):
        await session.delete(await session.get_one(Note, 1))

    listen(pre_save, delete, sender=User)
    async with maker.begin() as session:
        (await session.get_one(User, 1)).visits = 1
    assert deletes == [("pre_delete", Note, (1,)), ("post_delete", Note, (1,))]


async def test_muted_signals_tell_nobody(maker, saves, listen):
    """Neither then nor later, also where the transaction ends after the block."""
    ended = []
    for on in ("commit", "rollback"):
        listen(post_save, lambda instance, on=on, **_: ended.append((on, instance.name)), on=on)
    async with maker() as session:
        for end in (session.commit, session.rollback):
            with post_save.muted():
                session.add(User(name="muted"))
                await session.flush()
            session.add(User(name="heard"))
            await end()
            await session.execute(delete(User))
            await session.commit()
    assert [name for name, *_ in saves] == ["pre_save", "pre_save", "post_save", "pre_save"]
    assert ended == [("commit", "heard")]


async def test_objects_that_a_receiver_takes_away_are_not_announced(maker, listen, saves):
    """Expunged or deleted by the receiver of another one, before it was their turn."""
    await stored(maker, Note(id=1))

    async def take_away(session, **_):
        for found in list(session.new):
            if isinstance(found, Draft):
                session.expunge(found)
        await session.delete(note)

    listen(pre_save, take_away, sender=User, priority=1)
    async with maker.begin() as session:
        note = await session.get_one(Note, 1)
        note.user_id = None
        session.add_all([User(name="ada"), Draft()])
    assert [each[:2] for each in saves] == [("pre_save", User), ("post_save", User)]


async def test_pre_save_comes_in_order_also_where_a_flush_inserts_and_updates(maker, listen):
    """What is inserted as it was added, then what is updated by primary key; `post_save` in the same order."""
    names = []
    async with maker() as session:
        session.add_all([User(id=id_, name=f"old {id_}") for id_ in (3, 1, 2)])
        await session.commit()
        old = {id_: await session.get_one(User, id_) for id_ in (2, 3, 1)}
        for signal in (pre_save, post_save):
            listen(signal, lambda instance, **_: names.append(instance.name), sender=User)
        old[3].name, old[1].name, old[2].name = "updated 3", "updated 1", "updated 2"
        session.add_all([User(id=9, name="new 9"), User(id=7, name="new 7")])
        await session.commit()
    assert names == ["new 9", "new 7", "updated 1", "updated 2", "updated 3"] * 2


async def test_pre_save_tells_each_instance_as_receivers_before_it_have_left_it(maker, listen):
    """Its changes are those that it has when it is its turn; what has none any more is not announced."""
    told = []

    async def hear(instance, changes, session, **_):
        told.append((instance.id, changes["visits"]))
        if instance.id == 1:
            second, third = [each for each in session.dirty if each.id in {2, 3}]
            if second.id == 3:
                second, third = third, second
            second.visits = 20
            third.visits = 0

    async with maker() as session:
        session.add_all([User(id=id_, name=f"user {id_}", visits=0) for id_ in (1, 2, 3)])
        await session.commit()
        users = [await session.get_one(User, id_) for id_ in (1, 2, 3)]
        listen(pre_save, hear, sender=User)
        for user in users:
            user.visits = 1
        await session.commit()
        await session.refresh(users[2])
        assert users[2].visits == 0
    assert told == [(1, (0, 1)), (2, (0, 20))]


async def test_a_flush_of_some_objects_announces_these(maker, saves):
    """SQLAlchemy's (deprecated) `flush(objects)`."""
    async with maker() as session:
        ada, bob = User(name="ada"), User(name="bob")
        session.add_all([ada, bob])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await session.flush([bob])
        assert [name for name, *_ in saves] == ["pre_save", "post_save"]
        assert inspect(ada).pending
        await session.rollback()


@pytest.mark.parametrize("on", ["flush", "commit"])
async def test_once_is_once(maker, listen, on):
    """However many instances the flush has, and nothing of the connection stays."""
    heard = []
    listen(post_save, lambda instance, **_: heard.append(instance.name), sender=User, on=on, once=True)
    async with maker.begin() as session:
        session.add_all([User(name="ada"), User(name="bob")])
    assert heard == ["ada"]
    assert post_save.connections == ()
    assert not post_save.registry(on).all_connections()


async def test_receivers_that_die_are_forgotten(maker):
    """Weakly connected, as everywhere: also while something waits for the commit."""
    heard = []

    class Listener:
        def hear(self, instance, **_):
            heard.append(instance.name)

    listener = Listener()
    post_save.connect(listener.hear, User, on="commit")
    async with maker() as session:
        session.add(User(name="ada"))
        await session.flush()
        del listener
        await session.commit()
    assert heard == []
