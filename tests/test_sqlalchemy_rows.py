"""`enable_signals(…, bulk="rows")`: the rows of statements; and the parameters that `pre_bulk` and `post_bulk` get."""

# ruff: noqa: F811  fixtures are imported, and parameters go by their names

import pytest
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import LoaderCallableStatus, selectinload
from sqlalchemy_support import (  # noqa: F401  fixtures
    DATABASES,
    Cook,
    Log,
    Note,
    Staff,
    User,
    anyio_backend,
    engine,
    listen,
    nobody_left,
    place,
)
from sqlalchemy_support import maker as plain_maker  # noqa: F401

from asignals.sqlalchemy import enable_signals, post_bulk, post_delete, post_save, pre_bulk, pre_save

pytestmark = pytest.mark.anyio

NO_VALUE = LoaderCallableStatus.NO_VALUE


@pytest.fixture
def maker(engine):
    """Sessions that tell of rows."""
    return enable_signals(async_sessionmaker(engine, expire_on_commit=False), bulk="rows")


@pytest.fixture
def heard(listen):
    """What was told of users, in the flush and after the end."""
    log = []

    def hear_in(on):
        async def saved(instance, created, update_fields, changes, **_):
            log.append((on, instance.name, "created" if created else update_fields, changes.get("visits")))

        async def deleted(instance, **_):
            log.append((on, instance.name, "deleted", None))

        listen(post_save, saved, sender=User, on=on, weak=False)
        listen(post_delete, deleted, sender=User, on=on, weak=False)

    for on in ("flush", "commit", "rollback"):
        hear_in(on)
    return log


ROWS = [{"id": 1, "name": "ada", "visits": 1}, {"id": 2, "name": "bob", "visits": 2}]


@pytest.mark.drivers(*DATABASES)
async def test_inserts(maker, heard):
    """Each row in the statement, and after the commit; the caller gets a result with a count and keys."""
    async with maker() as session:
        result = await session.execute(insert(User), ROWS)
        assert result.rowcount == 2
        assert heard == [("flush", "ada", "created", (NO_VALUE, 1)), ("flush", "bob", "created", (NO_VALUE, 2))]
        await session.commit()
        assert [on for on, *_ in heard] == ["flush"] * 2 + ["commit"] * 2
        one = await session.execute(insert(User).values(id=9, name="eve"))
        assert one.rowcount == 1
        assert (await session.get_one(User, one.inserted_primary_key[0])).name == "eve"
        await session.rollback()
        assert heard[-1][:3] == ("rollback", "eve", "created")


@pytest.mark.drivers(*DATABASES)
async def test_updates(maker, heard, engine):
    """Each row that was matched, with the attributes set; old values are not known."""
    async with maker() as session:
        await session.execute(insert(User), ROWS)
        heard.clear()
        known = await session.get_one(User, 1)
        result = await session.execute(update(User).where(User.id == 1).values(visits=User.visits + 5))
        assert result.rowcount == 1
        if engine.dialect.update_returning:
            assert heard == [("flush", "ada", {"visits"}, (NO_VALUE, 6))]
        else:
            assert heard == []
        await session.refresh(known)
        assert known.visits == 6
        heard.clear()
        await session.execute(update(User), [{"id": 1, "visits": 8}, {"id": 2, "name": "rob"}])
        told = {(name, tuple(fields)): visits for _, name, fields, visits in heard}
        assert told == {("ada", ("visits",)): (NO_VALUE, 8), ("rob", ("name",)): None}


@pytest.mark.drivers(*DATABASES)
async def test_deletes(maker, heard):
    """Each row, with its last values; nothing of it stays in the session."""
    async with maker() as session:
        await session.execute(insert(User), ROWS)
        known = await session.get_one(User, 1)
        heard.clear()
        result = await session.execute(delete(User).where(User.visits < 5))
        assert result.rowcount == 2
        assert {(on, name, what) for on, name, what, _ in heard} == {
            ("flush", "ada", "deleted"),
            ("flush", "bob", "deleted"),
        }
        assert known not in session
        assert await session.get(User, 2) is None
        await session.commit()
        assert [on for on, *_ in heard] == ["flush"] * 2 + ["commit"] * 4


@pytest.mark.parametrize("synchronize", ["auto", "fetch", "evaluate", False])
async def test_deletes_leave_the_session_as_they_do_without_signals(plain_maker, maker, heard, synchronize):
    """Instances that the session had, and those that they refer to, stay in it or come back as SQLAlchemy has it."""
    seen = []
    for each in (plain_maker, maker):
        async with each() as session:
            session.add(User(id=1, name="ada", notes=[Note(id=1)]))
            await session.commit()
            known = await session.get_one(User, 1, options=[selectinload(User.notes)], populate_existing=True)
            (note,) = known.notes
            await session.execute(update(Note).values(user_id=None), execution_options={"synchronize_session": False})
            options = {"synchronize_session": synchronize}
            await session.execute(delete(User).where(User.id == 1), execution_options=options)
            now = known in session, note in session
            await session.rollback()
            seen.append((now, (known in session, note in session)))
            await session.execute(delete(Note))
            await session.execute(delete(User))
            await session.commit()
    assert seen[0] == seen[1]
    assert ("rollback", "ada", "deleted") in [each[:3] for each in heard]


@pytest.mark.drivers(*DATABASES)
async def test_statements_with_a_returning_of_their_own(maker, heard):
    """The caller gets what it asked for, and no more."""
    async with maker() as session:
        result = await session.execute(insert(User).returning(User.id, User.name), ROWS)
        assert set(result.keys()) == {"id", "name"}
        assert {tuple(row) for row in result} == {(1, "ada"), (2, "bob")}
        assert (await session.scalars(insert(User).returning(User), [{"id": 9, "name": "eve"}])).one().name == "eve"
        names = await session.scalars(delete(User).where(User.id == 2).returning(User.name))
        assert names.all() == ["bob"]
    assert len(heard) == 4 + 4


async def test_subclasses(maker, listen):
    """An instance of a subclass is told as one."""
    told = Log("sender")
    listen(post_save, told, sender=Staff)
    async with maker() as session:
        session.add(Cook(id=1, name="ada"))
        await session.flush()
        told.clear()
        await session.execute(update(Staff).where(Staff.id == 1).values(name="eve"))
        assert told in ([("post_save", Cook)], [])  # MariaDB has no UPDATE … RETURNING


async def test_errors_in_receivers(maker, listen):
    """Raised from `execute`; the transaction is the caller's to roll back."""

    def refuse(**_):
        raise LookupError

    listen(post_save, refuse, sender=User)
    async with maker() as session:
        with pytest.raises(LookupError):
            await session.execute(insert(User), ROWS)
        await session.rollback()
        assert await session.scalar(select(func.count(User.id))) == 0


async def test_off_by_default_and_for_each_maker(plain_maker, maker, engine, heard, listen):
    """Makers with and without it do not disturb each other, and one event comes once."""
    counts = Log("kind")
    listen(post_bulk, counts, sender=User)
    async with plain_maker() as session:
        await session.execute(insert(User), ROWS)
    assert heard == []
    async with enable_signals(maker)() as session:
        await session.execute(insert(User), ROWS)
    assert len(heard) == 4
    assert counts == [("post_bulk", "insert")] * 2


async def test_where_there_is_no_returning(maker, engine, heard, caplog):
    """A warning says that rows are not told."""
    async with maker() as session:
        await session.execute(insert(User), ROWS)
        heard.clear()
        engine.dialect.update_returning = False
        await session.execute(update(User).values(visits=3))
    assert [on for on, *_ in heard] == ["rollback", "rollback"]
    assert "RETURNING" in caplog.text


async def test_nonsense_is_refused(engine):
    """At once."""
    with pytest.raises(ValueError, match="rows"):
        enable_signals(async_sessionmaker(engine), bulk="row")


async def test_parameters_of_statements(plain_maker, listen):
    """A list for an executemany, a dict, or nothing."""
    told = Log("kind", "parameters")
    listen(pre_bulk, told, sender=User)
    listen(post_bulk, told, sender=User)
    listen(pre_save, told, sender=User)
    async with plain_maker() as session:
        await session.execute(insert(User), ROWS)
        await session.execute(update(User).where(User.id == 1), {"visits": 4})
        await session.execute(delete(User))
    assert told[::2] == [
        ("pre_bulk", "insert", ROWS),
        ("pre_bulk", "update", {"visits": 4}),
        ("pre_bulk", "delete", None),
    ]
