"""Random units of work, savepoints, failures and cancellations: what is told after the end is what the tables hold."""

import asyncio
import logging
from contextlib import ExitStack, contextmanager, suppress

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy_support import Base, User, empty, make_engine

from asignals.sqlalchemy import enable_signals, on_commit, post_delete, post_save, pre_save

KEYS = st.integers(1, 3)
STEPS = st.one_of(
    st.tuples(st.just("add"), KEYS),
    st.tuples(st.just("rename"), KEYS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(
        st.sampled_from(
            [
                "flush",
                "commit",
                "rollback",
                "close",
                "savepoint",
                "release",
                "back",
                "core savepoint",
                "core back",
                "callback",
                "refuse before",
                "refuse after",
                "cancel before",
                "cancel after",
                "cancel in the commit",
                "commit fails",
                "listener fails",
                "receiver writes",
            ]
        ),
        st.just(0),
    ),
)


class Refused(Exception):  # noqa: N818
    """A receiver's, a listener's or the database's."""


class Player:
    """Plays a program, and keeps a copy of the table by what it is told."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.maker = enable_signals(async_sessionmaker(engine, expire_on_commit=False))
        self.session = self.maker()
        self.copy: dict[int, str] = {}
        self.callbacks: list[int] = []
        self.plans: set[str] = set()
        self.task: asyncio.Task[None] | None = None
        self.names = 0
        self.core = []

    # -- receivers -----------------------------------------------------------------------------------------------------

    async def before(self, **_: object) -> None:
        await self._maybe("before")

    async def after(self, **_: object) -> None:
        await self._maybe("after")

    async def _maybe(self, when: str) -> None:
        if f"refuse {when}" in self.plans:
            self.plans.discard(f"refuse {when}")
            raise Refused(when)
        if f"cancel {when}" in self.plans:
            self.plans.discard(f"cancel {when}")
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

    async def saved(self, instance, created, changes, session, **_):
        key = instance.id
        assert (key in self.copy) is not created
        if "name" in changes:
            self.copy[key] = changes["name"][1]
        if "receiver writes" in self.plans and not session.in_transaction():
            self.plans.discard("receiver writes")
            instance.visits += 1  # left to be committed

    def deleted(self, changes, **_):
        self.copy.pop(changes["id"][0])

    def lost(self, **_: object) -> None:
        """The copy stays as it is."""

    def on_commit(self, connection: object) -> None:
        if "cancel in the commit" in self.plans:
            self.plans.discard("cancel in the commit")
            self.task.cancel()
        if "commit fails" in self.plans:
            self.plans.discard("commit fails")
            raise Refused

    def after_commit(self, session: object) -> None:
        if "listener fails" in self.plans:
            self.plans.discard("listener fails")
            raise Refused

    # -- steps ---------------------------------------------------------------------------------------------------------

    async def change(self, name: str, key: int) -> None:
        self.names += 1
        found = await self.session.get(User, key)
        if name == "add" and found is None:
            self.session.add(User(id=key, name=str(self.names)))
        elif name == "rename" and found is not None:
            found.name = str(self.names)
        elif name == "delete" and found is not None:
            await self.session.delete(found)

    async def step(self, name: str, key: int) -> None:
        session = self.session
        if name in {"add", "rename", "delete"}:
            await self.change(name, key)
        elif name == "savepoint":
            await session.begin_nested()
        elif name in {"release", "back"}:
            nested = session.get_nested_transaction()
            if nested is not None:
                await (nested.commit() if name == "release" else nested.rollback())
        elif name == "core savepoint":
            await session.flush()
            self.core.append(await (await session.connection()).begin_nested())
        elif name == "core back":
            if self.core and self.core[-1].is_active and session.get_nested_transaction() is None:
                await self.core.pop().rollback()
                session.expunge_all()
        elif name == "callback":
            on_commit(session, lambda: self.callbacks.append(1))
        elif name in {"flush", "commit", "rollback", "close"}:
            await getattr(session, name)()
        else:
            self.plans.add(name)

    async def play(self, program) -> None:
        for name, key in [*program, ("commit", 0)]:
            self.task = asyncio.create_task(self.step(name, key))
            try:
                await self.task
            except (Exception, asyncio.CancelledError):  # noqa: BLE001  all that went wrong is rolled back
                with suppress(Exception):
                    await self.session.rollback()
                await self.session.close()
                self.session = self.maker()
                self.core.clear()
        await self.session.close()
        async with self.engine.connect() as connection:
            rows = dict(tuple(row) for row in await connection.execute(select(User.id, User.name)))
        assert self.copy == rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A SQLite file."""
    where = str(tmp_path_factory.mktemp("model") / "model.sqlite")

    async def create():
        engine = make_engine("aiosqlite", where)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await engine.dispose()

    asyncio.run(create())
    return where


async def run(place, program):
    engine = make_engine("aiosqlite", place)
    player = Player(engine)
    event.listen(engine.sync_engine, "commit", player.on_commit)
    event.listen(player.maker.kw["sync_session_class"], "after_commit", player.after_commit)
    try:
        with ExitStack() as stack:
            for signal, receiver, on in (
                (pre_save, player.before, "flush"),
                (post_save, player.after, "flush"),
                (post_delete, player.after, "flush"),
                (post_save, player.saved, "commit"),
                (post_delete, player.deleted, "commit"),
                (post_save, player.lost, "rollback"),
                (post_delete, player.lost, "rollback"),
            ):
                stack.enter_context(signal.connected(receiver, sender=User, on=on))
            await player.play(program)
    finally:
        event.remove(player.maker.kw["sync_session_class"], "after_commit", player.after_commit)
        event.remove(engine.sync_engine, "commit", player.on_commit)
        await empty(engine)
        await engine.dispose()


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(program=st.lists(STEPS, max_size=14))
@example(program=[("add", 1), ("listener fails", 0), ("commit", 0)])
@example(program=[("add", 1), ("flush", 0), ("cancel in the commit", 0), ("commit", 0)])
@example(program=[("add", 1), ("savepoint", 0), ("rename", 1), ("back", 0), ("commit", 0)])
@example(program=[("core savepoint", 0), ("add", 1), ("flush", 0), ("core back", 0), ("add", 2), ("commit", 0)])
def test_what_is_told_is_what_the_table_holds(place, program):
    """A copy of the table that is kept by receivers after the commit equals the table."""
    with without_errors():
        asyncio.run(run(place, program))


@contextmanager
def without_errors():
    """Receivers' errors after the end are only logged; here they are bugs, but for those that are planned."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("asignals").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("asignals").removeHandler(handler)
    unplanned = [record for record in records if not issubclass(record.exc_info[0], Refused)]
    assert [record.exc_info[1] for record in unplanned] == []


def test_what_is_told_is_what_the_table_holds_for_long(place, pytestconfig):
    """The same with a thousand programs, with `--long`."""
    if not pytestconfig.getoption("--long"):
        pytest.skip("--long was not given")
    longer = settings(max_examples=1000, suppress_health_check=list(HealthCheck))

    def play(program):
        with without_errors():
            asyncio.run(run(place, program))

    longer(given(program=st.lists(STEPS, max_size=40))(play))()
