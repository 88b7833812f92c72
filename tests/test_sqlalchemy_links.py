"""Many-to-many links: what m2m_changed tells, from which side, and how often."""

# ruff: noqa: F811  fixtures are imported, and parameters go by their names

import pytest
from sqlalchemy import Column, ForeignKey, ForeignKeyConstraint, Integer, String, Table, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, sessionmaker
from sqlalchemy_support import (  # noqa: F401  fixtures
    Label,
    Person,
    Pizza,
    Shop,
    Topping,
    User,
    anyio_backend,
    engine,
    listen,
    maker,
    nobody_left,
    pizza_topping,
    place,
)

from asignals.sqlalchemy import enable_signals, m2m_changed, post_save

pytestmark = pytest.mark.anyio


class Hearing(list):
    """A receiver that writes down what it hears of links."""

    def __hash__(self):
        return id(self)

    def __call__(self, sender, instance, action, reverse, model, pk_set, objects, **_):  # noqa: PLR0913, PLR0917
        assert {each.id for each in objects if each.id is not None} == set(pk_set)
        assert {type(each) for each in objects} == {model}
        self.append((sender.key, instance.id, action, reverse, sorted(pk_set)))


@pytest.fixture
def heard(listen):
    """What the forward side hears, and the reverse side, and who listens to all."""
    forward, reverse, everything = Hearing(), Hearing(), Hearing()
    listen(m2m_changed, forward, sender=Pizza.toppings)
    listen(m2m_changed, reverse, sender=Topping.pizzas)
    listen(m2m_changed, everything)
    return forward, reverse, everything


async def stored(maker, *instances):
    """Store instances without anybody being told."""
    with m2m_changed.muted():
        async with maker.begin() as session:
            session.add_all(instances)


def toppings_of(pizza, verb, *keys):
    return [("toppings", pizza, f"{when}_{verb}", False, list(keys)) for when in ("pre", "post")]


def pizzas_of(topping, verb, *keys):
    return [("pizzas", topping, f"{when}_{verb}", True, list(keys)) for when in ("pre", "post")]


@pytest.mark.parametrize("side", ["pizza", "topping"])
async def test_each_side_sees_its_own_perspective_of_a_link(maker, heard, side):
    """Whichever side was changed; and whoever listens to all hears of the link once."""
    forward, reverse, everything = heard
    await stored(maker, Pizza(id=1), Topping(id=2))
    async with maker() as session:
        pizza, topping = await session.get_one(Pizza, 1), await session.get_one(Topping, 2)
        owned = await (pizza.awaitable_attrs.toppings if side == "pizza" else topping.awaitable_attrs.pizzas)
        other = topping if side == "pizza" else pizza
        for change, verb in ((owned.append, "add"), (owned.remove, "remove")):
            change(other)
            await session.commit()
            assert forward == everything == toppings_of(1, verb, 2)
            assert reverse == pizzas_of(2, verb, 1)
            for each in heard:
                each.clear()


async def test_links_are_told_of_per_owner(maker, heard):
    """One event for all that one instance gains, and one for all it loses."""
    forward, reverse, _ = heard
    await stored(maker, Pizza(id=1, toppings=[Topping(id=1), Topping(id=2)]), Topping(id=3), Topping(id=4))
    async with maker.begin() as session:
        pizza = await session.get_one(Pizza, 1)
        toppings = await pizza.awaitable_attrs.toppings
        toppings[:] = [await session.get_one(Topping, key) for key in (2, 3, 4)]
    expected = [*toppings_of(1, "remove", 1), *toppings_of(1, "add", 3, 4)]
    assert sorted(forward) == sorted(expected)
    assert sorted(reverse) == sorted(
        [*pizzas_of(1, "remove", 1), *pizzas_of(3, "add", 1), *pizzas_of(4, "add", 1)],
    )


async def test_clearing_is_removing_all(maker, heard):
    """SQLAlchemy knows what was there, so there is no `clear` action."""
    await stored(maker, Pizza(id=1, toppings=[Topping(id=1), Topping(id=2)]))
    async with maker.begin() as session:
        pizza = await session.get_one(Pizza, 1)
        (await pizza.awaitable_attrs.toppings).clear()
    assert heard[0] == toppings_of(1, "remove", 1, 2)


async def test_pending_objects_have_no_key_in_pre_add(maker, heard):
    """They are among the objects, and by post_add they have one."""
    async with maker.begin() as session:
        session.add(Pizza(id=1, toppings=[Topping()]))
    (before, after), _, _ = heard
    assert before == ("toppings", 1, "pre_add", False, [])
    assert after[:4] == ("toppings", 1, "post_add", False)
    assert len(after[4]) == 1


async def test_collections_that_are_not_loaded(maker, heard):
    """A change through a backref is pending in the other side's collection, and told of once."""
    forward, reverse, everything = heard
    await stored(maker, Pizza(id=1, toppings=[Topping(id=1)]))
    async with maker.begin() as session:
        pizza = await session.get_one(Pizza, 1)
        session.add(Topping(id=2, pizzas=[pizza]))
    assert forward == everything == toppings_of(1, "add", 2)
    assert reverse == pizzas_of(2, "add", 1)


async def test_net_nothing_is_nothing(maker, heard):
    """Added and removed again, or the other way round, from one side or from both."""
    await stored(maker, Pizza(id=1, toppings=[Topping(id=1)]), Topping(id=2))
    async with maker.begin() as session:
        pizza, old, new = (
            await session.get_one(Pizza, 1),
            await session.get_one(Topping, 1),
            await session.get_one(Topping, 2),
        )
        toppings = await pizza.awaitable_attrs.toppings
        pizzas = await new.awaitable_attrs.pizzas  # loaded before, because a load flushes
        toppings.append(new)
        pizzas.remove(pizza)
        toppings.remove(old)
        toppings.append(old)
    assert heard == ([], [], [])


async def test_write_only_and_dynamic_collections(maker, listen):
    """They know what is added and removed, without the rest."""
    heard = Hearing()
    for sender in (Pizza.labels, Pizza.shops):
        listen(m2m_changed, heard, sender=sender)
    await stored(maker, Pizza(id=1), Label(id=2), Shop(id=3))
    async with maker() as session:
        pizza, label, shop = (
            await session.get_one(Pizza, 1),
            await session.get_one(Label, 2),
            await session.get_one(Shop, 3),
        )
        for verb in ("add", "remove"):
            getattr(pizza.labels, verb)(label)
            getattr(pizza.shops, verb)(shop)
            await session.commit()
    assert sorted(heard) == sorted(
        (key, 1, f"{when}_{verb}", False, [other])
        for key, other in (("labels", 2), ("shops", 3))
        for when in ("pre", "post")
        for verb in ("add", "remove")
    )


async def test_a_relationship_of_a_class_with_itself(maker, listen):
    """The association table tells which side is forward."""
    heard = Hearing()
    listen(m2m_changed, heard, sender=Person.idols)
    listen(m2m_changed, heard, sender=Person.fans)
    await stored(maker, Person(id=1), Person(id=2))
    async with maker.begin() as session:
        fan, idol = await session.get_one(Person, 1), await session.get_one(Person, 2)
        (await idol.awaitable_attrs.fans).append(fan)
    assert sorted(heard) == sorted(
        (*each, when, *rest)
        for each, rest in ((("idols", 1), (False, [2])), (("fans", 2), (True, [1])))
        for when in ("pre_add", "post_add")
    )


async def test_deleting_an_instance_is_no_event_of_its_links(maker, heard):
    """As in Django: its rows go with it, and the deletion is what is told of."""
    await stored(maker, Pizza(id=1, toppings=[Topping(id=1)]))
    async with maker.begin() as session:
        await session.delete(await session.get_one(Pizza, 1))
    assert heard == ([], [], [])
    async with maker() as session:
        assert (await session.execute(select(pizza_topping))).all() == []


async def test_post_actions_come_after_the_saves_and_follow_transactions(maker, listen):
    """With `on` as for the other signals, and rolled back links are not committed ones."""
    heard = []
    listen(post_save, lambda sender, **_: heard.append(sender.__name__))
    listen(m2m_changed, lambda action, **_: heard.append(action))
    listen(m2m_changed, lambda action, **_: heard.append(f"commit {action}"), on="commit")
    listen(m2m_changed, lambda action, **_: heard.append(f"rollback {action}"), on="rollback")
    async with maker() as session:
        session.add(Pizza(toppings=[Topping()]))
        await session.flush()
        await session.rollback()
    assert heard[0] == "pre_add"
    assert sorted(heard[1:3]) == ["Pizza", "Topping"]
    assert heard[3:] == ["post_add", "rollback post_add"]
    heard.clear()
    async with maker.begin() as session:
        session.add(Pizza(toppings=[Topping()]))
    assert heard[-1] == "commit post_add"


async def test_a_veto_of_a_link(maker, listen):
    """An exception in a pre_ action keeps the flush from beginning."""

    async def veto(**_):
        raise LookupError

    listen(m2m_changed, veto, sender=Pizza.toppings)
    async with maker() as session:
        session.add(Pizza(toppings=[Topping()]))
        with pytest.raises(LookupError):
            await session.flush()
        await session.rollback()
        assert (await session.scalars(select(Pizza))).all() == []


async def test_links_that_receivers_make_are_told_of_too(maker, heard, listen):
    """In the same flush, before it writes."""

    def garnish(instance, created, session, **_):
        if created:
            instance.toppings.append(Topping(id=9))

    from asignals.sqlalchemy import pre_save

    listen(pre_save, garnish, sender=Pizza)
    async with maker.begin() as session:
        session.add(Pizza(id=1))
    assert heard[0] == toppings_of(1, "add", 9)


def test_composite_keys_are_tuples(listen):
    """As many as there are columns."""

    class Plain(DeclarativeBase): ...

    class Box(Plain):
        __tablename__ = "boxes"
        row: Mapped[int] = mapped_column(primary_key=True)
        place: Mapped[str] = mapped_column(primary_key=True)

    linked = Table(
        "linked",
        Plain.metadata,
        Column("shelf_id", ForeignKey("shelves.id")),
        Column("row", Integer),
        Column("place", String),
        ForeignKeyConstraint(["row", "place"], ["boxes.row", "boxes.place"]),
    )

    class Shelf(Plain):
        __tablename__ = "shelves"
        id: Mapped[int] = mapped_column(primary_key=True)
        boxes = relationship(Box, secondary=linked)

    heard = []
    listen(m2m_changed, lambda action, pk_set, **_: heard.append((action, pk_set)), sender=Shelf.boxes)
    engine = create_engine("sqlite://")
    Plain.metadata.create_all(engine)
    with enable_signals(sessionmaker(engine)).begin() as session:
        session.add(Shelf(boxes=[Box(row=1, place="a"), Box(row=1, place="b")]))
    engine.dispose()
    Plain.registry.dispose()
    assert heard == [(action, {(1, "a"), (1, "b")}) for action in ("pre_add", "post_add")]


@pytest.mark.parametrize("wrong", [Pizza, Pizza.name, User.orders.expression, "Pizza", 3])
def test_other_senders_are_refused(wrong):
    """A sender of m2m_changed is a relationship, or the name of one."""
    with pytest.raises((TypeError, ValueError), match="relationship"):
        m2m_changed.connect(lambda **_: None, sender=wrong, weak=False)
