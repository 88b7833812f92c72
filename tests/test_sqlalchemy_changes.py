"""Old and new values in every phase, attributes of every kind, and classes that are mapped again."""

# ruff: noqa: F811  fixtures are imported, and parameters go by their names

from contextlib import suppress

import pytest
from sqlalchemy import JSON, ForeignKey, String, case, create_engine, event, func, select
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.ext.declarative import AbstractConcreteBase
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    LoaderCallableStatus,
    Mapped,
    MappedAsDataclass,
    Session,
    clear_mappers,
    column_property,
    composite,
    deferred,
    mapped_column,
    query_expression,
    registry,
    relationship,
    selectinload,
    sessionmaker,
    synonym,
    with_expression,
)
from sqlalchemy_support import (  # noqa: F401  fixtures
    DATABASES,
    Log,
    Order,
    Page,
    Pizza,
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
    FlushInProgressError,
    enable_signals,
    m2m_changed,
    post_delete,
    post_init,
    post_save,
    pre_delete,
    pre_init,
    pre_save,
)

pytestmark = pytest.mark.anyio

NO_VALUE = LoaderCallableStatus.NO_VALUE


@pytest.fixture
def changes(listen):
    """The changes of users, pages and orders by signal and phase."""
    log = {}
    for signal, phases in ((pre_save, ["flush"]), (post_save, ["flush", "commit", "rollback"])):
        for on in phases:
            for model in (User, Page, Order):

                async def hear(sender, changes, key=(signal, on), **_):
                    log[(*key, sender)] = changes

                listen(signal, hear, sender=model, on=on, weak=False)
    return log


async def test_changes_of_an_update(engine, changes):
    """Old and new values of what the UPDATE sets, before, after, and after the end, though all is expired then."""
    maker = enable_signals(async_sessionmaker(engine))
    async with maker.begin() as session:
        session.add(User(id=1, name="ada", visits=1))
    async with maker.begin() as session:
        user = await session.get_one(User, 1)
        user.visits = 2
    for key in ((pre_save, "flush", User), (post_save, "flush", User), (post_save, "commit", User)):
        assert changes[key] == {"visits": (1, 2)}
    async with maker() as session:
        user = await session.get_one(User, 1)
        user.visits = 3
        await session.flush()
        await session.rollback()
    assert changes[post_save, "rollback", User] == {"visits": (2, 3)}


async def test_changes_of_an_insert(maker, changes):
    """Old values are `NO_VALUE`; the key is known after it."""
    async with maker.begin() as session:
        session.add(User(name="ada"))
    assert changes[pre_save, "flush", User] == {"name": (NO_VALUE, "ada")}
    told = changes[post_save, "commit", User]
    assert told["name"] == (NO_VALUE, "ada")
    assert told["visits"] == (NO_VALUE, 0)
    assert told["id"][0] is NO_VALUE
    assert isinstance(told["id"][1], int)


@pytest.mark.drivers(*DATABASES)
async def test_changes_that_the_flush_makes(maker, changes):
    """Version counters and `onupdate` columns; SQL expressions; foreign keys of relationships."""
    async with maker.begin() as session:
        session.add(Page(id=1, title="old", revision=1))
        session.add_all([User(id=1, name="ada"), User(id=2, name="bob"), Order(id=1, user_id=1)])
    async with maker.begin() as session:
        page = await session.get_one(Page, 1)
        page.title = func.upper("new")
        order = await session.get_one(Order, 1)
        order.user = await session.get_one(User, 2)
    before = changes[pre_save, "flush", Page]
    assert before.keys() == {"title", "revision", "touched"}
    assert before["title"][0] == "old"
    assert before["revision"] == (1, NO_VALUE)
    assert before["touched"] == (None, NO_VALUE)
    for on in ("flush", "commit"):
        after = changes[post_save, on, Page]
        assert after["title"] == ("old", "NEW")
        assert after["revision"] == (1, 2)
        assert after["touched"][0] is None
        assert after["touched"][1] is not None
        assert changes[post_save, on, Order] == {"user_id": (1, 2)}
    assert changes[pre_save, "flush", Order] == {"user_id": (1, 2)}


@pytest.mark.drivers(*DATABASES)
async def test_what_the_database_sets_is_loaded_by_one_query(maker, engine, listen):
    """For all rows of a flush, where async receivers may read it; and none where nobody may."""
    seen = []

    async def read(instance, **_):
        seen.append(instance.touched is not None)

    statements = []

    def count(connection, cursor, statement, *_):
        if statement.startswith("SELECT"):
            statements.append(statement)

    async with maker() as session:
        pages = [Page(title="a", revision=1) for _ in range(20)]
        session.add_all(pages)
        await session.flush()
        event.listen(engine.sync_engine, "before_cursor_execute", count)
        for title in ("b", "c"):
            for page in pages:
                page.title = title
            with post_save.connected(read if title == "b" else lambda **_: None, sender=Page):
                await session.flush()
            assert len(statements) == 1
    assert seen == [True] * 20


async def test_changes_of_what_was_not_loaded(engine, changes):
    """`NO_VALUE`: nobody asks the database for it."""
    maker = enable_signals(async_sessionmaker(engine))
    async with maker.begin() as session:
        user = User(id=1, name="ada", visits=1)
        session.add(user)
        await session.flush()
        session.expire(user)
        user.visits = 7
    assert changes[post_save, "commit", User] == {"visits": (NO_VALUE, 7)}


def test_changes_of_a_post_update_and_of_values_changed_in_place(listen):
    """One event with the foreign key that a second statement sets; no old value where SQLAlchemy keeps none."""

    class Base(DeclarativeBase):
        pass

    class Box(Base):
        __tablename__ = "boxes"
        id: Mapped[int] = mapped_column(primary_key=True)
        best_id: Mapped[int | None] = mapped_column(ForeignKey("boxes.id"))
        best: Mapped["Box | None"] = relationship(remote_side="Box.id", post_update=True)
        labels = mapped_column(MutableDict.as_mutable(JSON))

    heard = []
    listen(post_save, lambda changes, **_: heard.append(changes), sender=Box, on="commit", weak=False)
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with enable_signals(sessionmaker(engine, class_=type("Mine", (Session,), {})))() as session:
        box, other = Box(id=1, labels={}), Box(id=2)
        session.add_all([box, other])
        session.commit()
        heard.clear()
        session.refresh(box)
        box.best = other
        session.commit()
        assert heard == [{"best_id": (None, 2)}]
        heard.clear()
        box.labels["size"] = 3
        session.commit()
        assert heard == [{"labels": (NO_VALUE, {"size": 3})}]
    engine.dispose()


async def test_the_last_values_of_what_was_deleted(engine, listen):
    """Those of the row: what was changed and never written is not among them."""
    heard = []
    for on in ("flush", "commit", "rollback"):
        listen(post_delete, lambda changes, **_: heard.append(changes), sender=User, on=on, weak=False)
    maker = enable_signals(async_sessionmaker(engine))
    async with maker.begin() as session:
        session.add(User(id=1, name="ada", visits=1))
    async with maker() as session:
        for end in (session.rollback, session.commit):
            user = await session.get_one(User, 1)
            user.name = "never written"
            with session.no_autoflush:
                await session.delete(user)
            await session.flush()
            await end()
    assert heard == [{"id": (1, NO_VALUE), "name": ("ada", NO_VALUE), "visits": (1, NO_VALUE)}] * 4


async def test_changes_of_links(maker, listen):
    """The collection before and after, from each side, as far as it is loaded."""
    heard = []
    for sender in (Pizza.toppings, Topping.pizzas):
        for on in ("flush", "commit"):
            listen(
                m2m_changed,
                lambda action, changes, on=on, **_: heard.append((action, on, changes)),
                sender=sender,
                on=on,
                weak=False,
            )
    async with maker() as session:
        basil, salami = Topping(id=1), Topping(id=2)
        session.add_all([Pizza(id=1, toppings=[basil]), salami])
        with m2m_changed.muted():
            await session.commit()
        pizza = await session.get_one(Pizza, 1, options=[selectinload(Pizza.toppings)], populate_existing=True)
        pizza.toppings = [salami]
        await session.commit()
    whole = {"toppings": ((basil,), (salami,))}
    assert ("pre_add", "flush", whole) in heard
    assert ("post_remove", "commit", whole) in heard
    assert all(told == whole for _, _, told in heard if "toppings" in told)
    assert any("pizzas" in told for _, _, told in heard)


# -- attributes of every kind ------------------------------------------------------------------------------------------


def make_models():
    class Base(DeclarativeBase):
        pass

    class Point:
        def __init__(self, x, y):
            self.x, self.y = x, y

        def __composite_values__(self):
            return self.x, self.y

        def __eq__(self, other):
            return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

        __hash__ = None

    class Thing(Base):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column("thing_id", primary_key=True)
        a: Mapped[int] = mapped_column("column_a", default=0)
        b: Mapped[int] = mapped_column(default=0)
        total: Mapped[int] = column_property(a + b)
        counted: Mapped[int | None] = query_expression()
        x: Mapped[int] = mapped_column(default=0)
        y: Mapped[int] = mapped_column(default=0)
        point: Mapped[Point] = composite(Point, "x", "y")
        notes: Mapped[str | None] = deferred(mapped_column(String(20)))
        other: Mapped[int] = synonym("b")

    class Shape(Base):
        __tablename__ = "shapes"
        id: Mapped[int] = mapped_column(primary_key=True)
        corners: Mapped[int] = mapped_column()
        kind = column_property(case((corners == 3, "triangle"), else_="shape"))
        parent_id: Mapped[int | None] = mapped_column(ForeignKey("shapes.id"))
        children: Mapped[list["Shape"]] = relationship()
        __mapper_args__ = {  # noqa: RUF012
            "polymorphic_on": case((corners == 3, "triangle"), else_="shape"),
            "polymorphic_identity": "shape",
        }

    class Triangle(Shape):
        __mapper_args__ = {"polymorphic_identity": "triangle"}  # noqa: RUF012

    return Base, Thing, Shape, Triangle, Point


@pytest.fixture(params=["pre", "post", "both"])
def connected(request, listen):
    """Receivers of saves, of one kind or of both."""
    log = []
    for signal, name in ((pre_save, "pre"), (post_save, "post")):
        if request.param in {name, "both"}:

            async def hear(created, update_fields, changes, name=name, **_):
                log.append((name, created, update_fields, changes))

            listen(signal, hear, weak=False)
    return log


async def test_attributes_that_are_no_columns(maker, engine, connected):
    """`column_property`, `query_expression`, `polymorphic_on`, composites, synonyms and columns of other names."""
    base, thing_class, shape_class, triangle, point = make_models()
    async with engine.begin() as connection:
        await connection.run_sync(base.metadata.drop_all)
        await connection.run_sync(base.metadata.create_all)
    async with maker() as session:
        session.add_all([thing_class(id=1), shape_class(id=1, corners=4), triangle(id=2, corners=3)])
        await session.commit()
        connected.clear()
        query = select(thing_class).options(with_expression(thing_class.counted, thing_class.a))
        thing = (await session.scalars(query.execution_options(populate_existing=True))).one()
        thing.a = 5
        await session.commit()
        thing.other = 6
        await session.commit()
        thing.point = point(1, 2)
        await session.commit()
        thing.notes = "text"
        await session.commit()
        shape = await session.get_one(shape_class, 2)
        shape.corners = 3
        await session.flush()
        shape.parent_id = 1
        await session.commit()
    fields = [set(fields) for _, _, fields, _ in connected]
    expected = [{"a"}, {"b"}, {"x", "y"}, {"notes"}, {"parent_id"}]
    if len(fields) > len(expected):
        expected = [each for each in expected for _ in range(2)]
    assert fields == expected
    assert [set(each) for _, _, _, each in connected] == expected
    async with engine.begin() as connection:
        await connection.run_sync(base.metadata.drop_all)


@pytest.mark.parametrize("on", ["commit", "rollback"])
async def test_attributes_of_every_kind_are_readable_after_the_end(engine, listen, on):
    """By async receivers, where nothing could be loaded; composites are made of the columns again."""
    base, thing_class, _, _, point = make_models()
    async with engine.begin() as connection:
        await connection.run_sync(base.metadata.drop_all)
        await connection.run_sync(base.metadata.create_all)
    heard = []

    async def read(instance, **_):
        heard.append((instance.a, instance.total, instance.point, instance.other))

    maker = enable_signals(async_sessionmaker(engine))
    async with maker.begin() as session:
        session.add(thing_class(id=1, a=1, b=2, point=point(3, 4)))
    listen(post_save, read, sender=thing_class, on=on)
    async with maker() as session:
        thing = await session.get_one(thing_class, 1)
        assert thing.point == point(3, 4)
        thing.point = point(5, 6)
        await session.flush()
        assert thing.point == point(5, 6)
        await (session.commit() if on == "commit" else session.rollback())
        assert heard == [(1, 3, point(5, 6), 2)]
        await session.refresh(thing)
        assert thing.point == (point(5, 6) if on == "commit" else point(3, 4))
    async with engine.begin() as connection:
        await connection.run_sync(base.metadata.drop_all)


class PickyList(list):
    """Refuses its members while `is_closed`."""

    is_closed = False

    def append(self, member):
        if PickyList.is_closed:
            msg = "closed"
            raise ValueError(msg)
        super().append(member)


async def test_a_collection_that_refuses_its_members_keeps_no_receiver_from_hearing(engine, listen, caplog):
    """It can't be shown as it was, which is logged with its name; the commit is no failure for that."""

    class Base(DeclarativeBase):
        pass

    class Parent(Base):
        __tablename__ = "picky_parents"
        id: Mapped[int] = mapped_column(primary_key=True)
        children: Mapped[PickyList["Child"]] = relationship()

    class Child(Base):
        __tablename__ = "picky_children"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int] = mapped_column(ForeignKey("picky_parents.id"))

    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    heard = []

    async def hear(instance, **_):
        heard.append(instance.id)

    listen(post_save, hear, sender=Parent, on="commit")
    maker = enable_signals(async_sessionmaker(engine))
    async with maker() as session:
        session.add(Parent(id=1, children=PickyList([Child(id=1)])))
        await session.flush()
        PickyList.is_closed = True
        try:
            await session.commit()
        finally:
            PickyList.is_closed = False
    assert heard == [1]
    assert "receivers do not find Parent.children as it was" in caplog.text
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)


@pytest.mark.parametrize("load", [True, False])
async def test_merging_what_is_not_loaded(maker, listen, load):
    """`post_init` hears of the instance, with the session that it is merged into."""
    heard = []
    listen(post_init, lambda instance, session, **_: heard.append((type(instance), session)), sender=User)
    async with maker.begin() as session:
        session.add(User(id=1, name="ada"))
    async with maker() as session:
        user = await session.get_one(User, 1)
    heard.clear()
    async with maker() as session:
        merged = await session.merge(user, load=load)
        assert merged is not user
        assert (User, session) in heard


def test_pre_init_sees_what_was_given(listen):
    """Not what a mapped dataclass fills in for the rest."""

    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = "dataclass_things"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        name: Mapped[str] = mapped_column(default="unnamed")
        size: Mapped[int] = mapped_column(default=1)
        parts: Mapped[list["Part"]] = relationship(default_factory=list)

    class Part(Base):
        __tablename__ = "dataclass_parts"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        thing_id: Mapped[int | None] = mapped_column(ForeignKey("dataclass_things.id"), default=None)

    seen = []

    def look(kwargs, **_):
        seen.append({key: value for key, value in kwargs.items() if isinstance(value, LoaderCallableStatus)})
        kwargs["size"] = 7

    listen(pre_init, look, sender=Thing)
    thing = Thing(name="given")
    assert seen == [{}]
    assert (thing.name, thing.size) == ("given", 7)
    assert Thing().name == "unnamed"


# -- classes -----------------------------------------------------------------------------------------------------------


class Plain:
    """Mapped by the test."""


def map_plain():
    from sqlalchemy import Column, Integer, Table

    mappings = registry()
    table = Table("plain", mappings.metadata, Column("id", Integer, primary_key=True), Column("size", Integer))
    mappings.map_imperatively(Plain, table)
    return mappings


@pytest.fixture
def restored_mappers():
    """Only the class of the test is unmapped: `clear_mappers` would take those of all modules."""
    made = []
    yield made
    for mappings in made:
        mappings.dispose()


@pytest.mark.parametrize("reconnect", [False, True])
def test_classes_mapped_again_are_heard_again(listen, restored_mappers, reconnect):
    """Receivers belong to the class, and its mapping may come and go."""
    heard = Log()
    signals = (pre_init, post_init, pre_save, post_save, pre_delete, post_delete)

    def use():
        heard.clear()
        mappings = map_plain()
        restored_mappers.append(mappings)
        engine = create_engine("sqlite://")
        mappings.metadata.create_all(engine)
        with enable_signals(sessionmaker(engine, class_=type("Mine", (Session,), {})))() as session:
            plain = Plain()
            session.add(plain)
            session.commit()
            session.delete(plain)
            session.commit()
        engine.dispose()
        mappings.dispose()
        return [str(name) for name in heard]

    for signal in signals:
        listen(signal, heard, sender=Plain)
    expected = [signal.name.rpartition(".")[2] for signal in signals]
    for _ in range(3):
        assert use() == expected
        if reconnect:
            for signal in signals:
                signal.connect(heard, sender=Plain)
    assert clear_mappers  # what is tested is what it does to each registry


kept_alive: list[type] = []  # SQLAlchemy 2.0 stumbles over deferred classes that have died


def test_abstract_concrete_bases_before_they_are_mapped(listen):
    """Connecting to one, or to any class that is not mapped yet, leaves nothing half done."""
    from sqlalchemy.orm import configure_mappers

    class Base(DeclarativeBase):
        pass

    class Animal(AbstractConcreteBase, Base):
        strict_attrs = True
        id: Mapped[int] = mapped_column(primary_key=True)

    heard = Log("sender")
    signals = (pre_init, post_init, pre_save, post_save, post_delete)
    for signal in signals:
        listen(signal, heard, sender=Animal)

    class Cat(Animal):
        __tablename__ = "cats"
        id: Mapped[int] = mapped_column(primary_key=True)
        __mapper_args__ = {"polymorphic_identity": "cat", "concrete": True}  # noqa: RUF012

    configure_mappers()
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with enable_signals(sessionmaker(engine, class_=type("Mine", (Session,), {})))() as session:
        session.add(Cat(id=1))
        session.commit()
    assert heard == [(name, Cat) for name in ("pre_init", "post_init", "pre_save", "post_save")]
    engine.dispose()
    kept_alive.append(Animal)


# -- receivers that hide what they have done ---------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["flush", "commit", "query"])
@pytest.mark.parametrize("close", ["close", "reset", "invalidate"])
async def test_a_receiver_cannot_hide_that_it_closed_the_session(maker, listen, end, close):
    """The changes have gone with the session's objects, so the flush fails, whatever the receiver swallows."""

    async def hide(session, **_):
        with suppress(BaseException):
            await getattr(session, close)()

    async with maker.begin() as session:
        session.add(User(id=1, name="ada"))
    listen(pre_save, hide, sender=User)
    async with maker() as session:
        (await session.get_one(User, 1)).name = "eve"
        with pytest.raises(FlushInProgressError, match="hide"):
            await (session.scalar(select(func.count(User.id))) if end == "query" else getattr(session, end)())
        await session.rollback()
