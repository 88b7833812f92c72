"""Cancellation in every phase: no event is lost or invented, no connection leaks, the session can be used again."""

# ruff: noqa: F811  fixtures are imported, and parameters go by their names
# ruff: noqa: PLR0913, PLR0917  and there are as many as a test needs

import asyncio

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import LOOPS
from sqlalchemy import event, func, select
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy_support import (  # noqa: F401  fixtures
    DATABASES,
    User,
    empty,
    engine,
    listen,
    make_engine,
    maker,
    nobody_left,
    place,
)

from asignals.sqlalchemy import enable_signals, on_commit, post_save, pre_save, transaction_committed

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio")]

ASYNCIO = {name: loop for name, loop in LOOPS.items() if name != "trio"}


@pytest.fixture(params=list(ASYNCIO.values()), ids=list(ASYNCIO))
def anyio_backend(request):
    """The loops of asyncio."""
    return request.param


async def by_cancelling_the_task(work):
    async def wrapped():
        await work(asyncio.current_task().cancel)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(wrapped())


async def by_timeout(work):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            await work(lambda: limit.reschedule(0))


async def by_wait_for(work):
    async def wrapped():
        await work(asyncio.current_task().cancel)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(wrapped(), 30)


async def by_scope(work):
    with anyio.CancelScope() as scope:
        await work(scope.cancel)
    assert scope.cancelled_caught


@pytest.fixture(params=[by_cancelling_the_task, by_timeout, by_wait_for, by_scope])
def cancelled(request):
    """Run `work(cancel)`, which calls `cancel()`, and see that it ends by that."""
    return request.param


@pytest.fixture
def connections(engine):
    """Counts the connections that are made: one that is thrown away has to be replaced."""
    made = []
    event.listen(engine.sync_engine, "connect", lambda connection, record: made.append(record))
    return made


async def forever():
    await asyncio.Event().wait()


async def count(maker):
    async with maker() as session:
        return await session.scalar(select(func.count(User.id)))


@pytest.mark.parametrize("signal", [pre_save, post_save])
@pytest.mark.parametrize("with_begin", [True, False], ids=["begin", "commit"])
async def test_cancelled_in_a_receiver_of_a_flush(maker, listen, cancelled, connections, signal, with_begin):
    """Its transaction is rolled back, and its connection goes back to the pool and is used again."""
    heard = []
    listen(post_save, lambda instance, **_: heard.append(instance.name), on="rollback")
    listen(post_save, lambda instance, **_: heard.append("never"), on="commit")

    async def work(cancel):
        async def hang(**_):
            cancel()
            await forever()

        with signal.connected(hang, sender=User):
            if with_begin:
                async with maker.begin() as session:
                    session.add(User(name="ada"))
                    await session.flush()
            else:
                async with maker() as session:
                    await session.connection()
                    session.add(User(name="ada"))
                    await session.commit()

    await cancelled(work)
    assert heard == (["ada"] if signal is post_save else [])
    assert await count(maker) == 0
    assert len(connections) == 1


async def test_the_same_session_after_a_cancelled_receiver(maker, listen, cancelled, connections):
    """After a rollback it is as good as new, also when that rollback is called in the cancelled scope."""
    session = maker()

    async def work(cancel):
        async def hang(**_):
            cancel()
            await forever()

        session.add(User(name="ada"))
        with post_save.connected(hang, sender=User):
            try:
                await session.commit()
            finally:
                await session.rollback()

    await cancelled(work)
    session.add(User(name="bob"))
    await session.commit()
    assert (await session.scalars(select(User.name))).all() == ["bob"]
    await session.close()
    assert len(connections) == 1


@pytest.mark.drivers(*DATABASES)
@pytest.mark.loops(*ASYNCIO)
@pytest.mark.parametrize("with_begin", [True, False], ids=["begin", "commit"])
async def test_cancelled_in_the_middle_of_the_commit(maker, engine, listen, cancelled, connections, with_begin):
    """The commit is carried through, its receivers hear of it, and the cancellation is raised after that."""
    heard = []

    async def hear(instance, **_):
        await checkpoint()
        heard.append(instance.name)

    listen(post_save, hear, sender=User, on="commit")
    listen(transaction_committed, lambda **_: heard.append("committed"))

    async def work(cancel):
        def in_the_middle(connection):
            cancel()

        if with_begin:
            async with maker.begin() as session:
                session.add(User(name="ada"))
                await session.flush()
                event.listen(engine.sync_engine, "commit", in_the_middle, once=True)
        else:
            async with maker() as session:
                session.add(User(name="ada"))
                await session.flush()
                event.listen(engine.sync_engine, "commit", in_the_middle, once=True)
                await session.commit()
        await checkpoint()

    await cancelled(work)
    assert heard == ["ada", "committed"]
    assert await count(maker) == 1
    assert len(connections) == 1


async def test_cancelled_in_a_commit_receiver(maker, listen, cancelled, connections):
    """It is finished, the others run, and the cancellation is raised after that."""
    heard = []

    async def work(cancel):
        async def first(session, **_):
            cancel()
            for _ in range(3):
                await checkpoint()
            heard.append(await session.scalar(select(func.count(User.id))))

        async def second(instance, **_):
            await checkpoint()
            heard.append(instance.name)

        async def callback():
            await checkpoint()
            heard.append("callback")

        with (
            post_save.connected(first, sender=User, on="commit"),
            post_save.connected(second, sender=User, on="commit"),
        ):
            async with maker() as session:
                session.add(User(name="ada"))
                await session.flush()
                on_commit(session, callback)
                await session.commit()
        await checkpoint()

    await cancelled(work)
    assert heard == [1, "ada", "callback"]
    assert await count(maker) == 1
    assert len(connections) == 1


async def test_cancelled_in_a_rollback_receiver(maker, listen, cancelled, connections):
    """As with commit receivers."""
    heard = []

    async def work(cancel):
        async def first(**_):
            cancel()
            await checkpoint()
            heard.append("first")

        async def second(**_):
            await checkpoint()
            heard.append("second")

        with (
            post_save.connected(first, sender=User, on="rollback"),
            post_save.connected(second, sender=User, on="rollback"),
        ):
            async with maker() as session:
                session.add(User(name="ada"))
                await session.flush()
                await session.rollback()
        await checkpoint()

    await cancelled(work)
    assert heard == ["first", "second"]
    assert await count(maker) == 0
    assert len(connections) == 1


@pytest.mark.drivers(*DATABASES)
async def test_cancelled_in_the_middle_of_the_rollback(maker, engine, listen, cancelled, connections):
    """The rollback is carried through, and rollback receivers hear of it."""
    heard = []

    async def hear(instance, **_):
        await checkpoint()
        heard.append(instance.name)

    listen(post_save, hear, sender=User, on="rollback")

    async def work(cancel):
        def in_the_middle(connection):
            cancel()

        async with maker() as session:
            session.add(User(name="ada"))
            await session.flush()
            event.listen(engine.sync_engine, "rollback", in_the_middle, once=True)
            await session.rollback()
        await checkpoint()

    await cancelled(work)
    assert heard == ["ada"]
    assert await count(maker) == 0
    assert len(connections) == 1


@pytest.mark.drivers(*DATABASES)
async def test_cancelled_twice(maker, listen):
    """Whoever loses patience and cancels again changes nothing."""
    heard = []
    started = asyncio.Event()
    go_on = asyncio.Event()

    async def slow(**_):
        started.set()
        await go_on.wait()
        heard.append("done")

    listen(post_save, slow, sender=User, on="commit")

    async def work():
        async with maker.begin() as session:
            session.add(User(name="ada"))

    task = asyncio.create_task(work())
    await started.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard == ["done"]


async def test_a_timeout_bounds_a_commit_receiver(maker, listen, caplog):
    """It is the way to keep a receiver from holding up what waits for the commit."""
    heard = []
    listen(post_save, forever_for_receivers, sender=User, on="commit", timeout=0.01)
    listen(post_save, lambda **_: heard.append("next"), sender=User, on="commit")
    async with maker.begin() as session:
        session.add(User(name="ada"))
    assert heard == ["next"]
    assert "TimeoutError" in caplog.text


async def forever_for_receivers(**_):
    await forever()


@pytest.mark.parametrize("place", ["aiosqlite"], indirect=True)
def test_a_loop_that_shuts_down_is_not_held_up(place):
    """It cancels every task there is, so a receiver that hangs after a commit ends as well."""
    started = asyncio.Event()

    async def hang(**_):
        started.set()
        await forever()

    async def work(maker):
        async with maker.begin() as session:
            session.add(User(name="ada"))

    async def main():
        engine = make_engine(*place)
        left = asyncio.create_task(work(enable_signals(async_sessionmaker(engine))))
        await started.wait()
        return engine, left

    with post_save.connected(hang, sender=User, on="commit"), asyncio.Runner() as runner:
        engine, left = runner.run(main())
    assert left.cancelled()

    async def tidy():
        await empty(engine)
        await engine.dispose()

    asyncio.run(tidy())
