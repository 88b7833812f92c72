"""Model signals as signals: phases, senders by name, muting, sending by hand."""

import subprocess
import sys

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy_support import Cook, Staff, User, nobody_left  # noqa: F401  a fixture

import asignals.sqlalchemy
from asignals import InvalidReceiverError, Signal, monitor
from asignals.sqlalchemy import m2m_changed, post_save, pre_save, transaction_committed

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """SQLAlchemy's asyncio extension runs on asyncio only."""
    return "asyncio"


def hear(**_):
    return "heard"


def test_all_is_what_is_exported():
    """`__all__` names everything public, in order."""
    public = {name for name in vars(asignals.sqlalchemy) if not name.startswith(("_", "@"))}
    assert sorted(asignals.sqlalchemy.__all__) == asignals.sqlalchemy.__all__
    assert set(asignals.sqlalchemy.__all__) == public


def test_importing_the_core_does_not_load_sqlalchemy():
    """The extra is loaded by whoever imports it."""
    code = "import sys, asignals; assert 'sqlalchemy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603  our own interpreter


def test_every_signal_is_declared_and_documented():
    """With the session among its arguments, and a name and a docstring of its own."""
    signals = {name: each for name, each in vars(asignals.sqlalchemy).items() if isinstance(each, Signal)}
    assert len(signals) == 11
    for name, each in signals.items():
        assert each.name == f"asignals.sqlalchemy.{name}"
        assert "session" in each.providing_args
        assert each.__doc__


async def test_sending_by_hand_reaches_the_receivers_of_the_flush():
    """As any declared signal: arguments are checked, responses come back."""
    with post_save.connected(hear, User), post_save.connected(hear, User, on="commit"):
        arguments = {"instance": User(), "created": True, "update_fields": None, "changes": {}, "session": None}
        assert await post_save.send(User, **arguments) == [(hear, "heard")]
        with pytest.raises(TypeError, match="created"):
            await post_save.send(User, instance=None)


def test_receivers_that_ask_for_what_is_never_sent_are_refused():
    """At connect, also for a model that is not there yet."""
    for sender in (User, "NoSuchModelYet"):
        with pytest.raises(InvalidReceiverError, match="raw"):
            post_save.connect(lambda raw: None, sender=sender, weak=False)


def test_phases_are_separate_connections():
    """The same receiver may hear both; `disconnect` ends one or all."""
    for on in ("flush", "commit", "rollback"):
        assert post_save.connect(hear, User, on=on) is hear
    assert [connection.receiver for connection in post_save.connections] == [hear] * 3
    assert post_save.receivers_for(User) == [hear] * 3
    assert post_save.disconnect(hear, User, on="commit")
    assert not post_save.disconnect(hear, User, on="commit")
    assert post_save.has_listeners(User)
    assert post_save.disconnect(hear, User)
    assert not post_save.has_listeners(User)


def test_phases_that_make_no_sense_are_refused():
    """There is no pre_save after the commit, and a phase is one of three."""
    with pytest.raises(ValueError, match=r"pre_save.*'commit'.*only on 'flush'"):
        pre_save.connect(hear, User, on="commit")
    with pytest.raises(ValueError, match="'later'"):
        post_save.connect(hear, User, on="later")


def test_connect_is_a_decorator_with_a_phase():
    """And gives the function back."""

    @post_save.connect(sender=User, on="commit")
    def receiver(instance, **_):
        raise AssertionError

    assert post_save.disconnect(receiver, User)


@pytest.mark.parametrize("wrong", [User(), 3, User.name, object()])
def test_senders_are_classes_or_names(wrong):
    """An instance as the sender would never be heard of."""
    with pytest.raises(TypeError, match="class or its name"):
        post_save.connect(hear, wrong)


def test_names_of_mapped_classes_are_resolved_at_once():
    """By the bare name, and with the module."""
    for name in ("Cook", "sqlalchemy_support.Cook"):
        post_save.connect(hear, name)
        (connection,) = post_save.connections
        assert connection.sender is Cook
        assert post_save.disconnect(hear, name)


def test_names_of_classes_to_come_are_resolved_when_they_are_mapped():
    """And forgotten with the receiver, or when disconnected before."""

    class Other(DeclarativeBase):
        pass

    def gone(**_):
        raise AssertionError

    post_save.connect(hear, "Comet", on="commit", priority=3, subclasses=False)
    post_save.connect(gone, "Comet")
    post_save.connect(hear, "Comet", dispatch_uid="twice")
    m2m_changed.connect(hear, f"{__name__}.test_names_of_classes.Comet.tails", dispatch_uid="no match")
    assert post_save.awaited == ("Comet",)
    assert post_save.disconnect(None, "Comet", dispatch_uid="twice")
    del gone
    assert post_save.connections == ()

    class Comet(Other):
        __tablename__ = "comets"
        id: Mapped[int] = mapped_column(primary_key=True)

    assert post_save.awaited == ()
    (connection,) = post_save.connections
    assert (connection.sender, connection.receiver, connection.priority) == (Comet, hear, 3)
    assert post_save.disconnect(hear, "Comet", on="commit")
    assert m2m_changed.disconnect(None, m2m_changed.awaited[0], dispatch_uid="no match")


def test_bound_methods_wait_for_their_model_too():
    """Weakly, as connections hold them."""

    class Other(DeclarativeBase):
        pass

    class Listener:
        def hear(self, **_):
            raise AssertionError

    listener = Listener()
    post_save.connect(listener.hear, "Meteor")
    assert post_save.awaited == ("Meteor",)

    class Meteor(Other):
        __tablename__ = "meteors"
        id: Mapped[int] = mapped_column(primary_key=True)

    assert post_save.has_listeners(Meteor)
    del listener
    assert not post_save.has_listeners(Meteor)


def test_names_of_relationships():
    """`Model.relationship`, now or later."""

    class Other(DeclarativeBase):
        pass

    m2m_changed.connect(hear, "Pizza.toppings")
    assert m2m_changed.disconnect(hear, "Pizza.toppings")
    m2m_changed.connect(hear, "Planet.moons")

    class Moon(Other):
        __tablename__ = "moons"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Planet(Other):
        __tablename__ = "planets"
        id: Mapped[int] = mapped_column(primary_key=True)
        moons: Mapped[list[Moon]] = relationship(secondary="planet_moon")

    (connection,) = m2m_changed.connections
    assert connection.sender is Planet.moons
    assert m2m_changed.disconnect(hear, Planet.moons)


def test_a_name_that_several_models_go_by_is_refused():
    """With the names that would do."""

    class One(DeclarativeBase):
        pass

    def make():
        class Cook(One):
            __tablename__ = "cooks"
            id: Mapped[int] = mapped_column(primary_key=True)

        return Cook

    kept = make()
    with pytest.raises(ValueError, match=r"sqlalchemy_support\.Cook"):
        post_save.connect(hear, "Cook")
    assert kept is not Cook
    One.registry.dispose()


def test_connected_blocks_take_phases_and_resolve_names():
    """What is connected for a block is gone after it."""
    with post_save.connected(hear, "Cook", on="commit"):
        (connection,) = post_save.connections
        assert connection.sender is Cook
        with post_save.muted():
            assert post_save.has_listeners(Cook)
            assert post_save.receivers_for(Cook) == [hear]
        assert not post_save.has_listeners(Staff)
    assert post_save.connections == ()
    with pytest.raises(LookupError, match="NoSuchModel"), post_save.connected(hear, "NoSuchModel"):
        raise AssertionError


def test_priorities_and_subclasses():
    """The options are those of any signal, and subclasses are heard unless that is switched off."""
    with (
        post_save.connected(hear, Staff),
        post_save.connected(hear, Cook, priority=1),
        post_save.connected(test_priorities_and_subclasses, Staff, subclasses=False),
    ):
        assert post_save.receivers_for(Cook) == [hear, hear]
        assert post_save.receivers_for(Staff) == [hear, test_priorities_and_subclasses]


def test_transaction_signals_take_sessions_as_senders():
    """Any object, as a plain signal does."""
    session = Staff()
    with transaction_committed.connected(hear, session):
        assert transaction_committed.has_listeners(session)
        assert not transaction_committed.has_listeners(Cook())


async def test_monitors_are_told_of_model_signals(listen_to_users):
    """Of each receiver's call, and of each event as a whole with its error."""
    reports = []
    with monitor(reports.append), pytest.raises(LookupError):
        await listen_to_users()
    told = [(report.signal.name[20:], report.receiver is None, type(report.error)) for report in reports]
    assert told == [
        ("pre_save", False, type(None)),
        ("pre_save", True, type(None)),
        ("post_save", False, type(None)),
        ("post_save", False, LookupError),
        ("post_save", True, LookupError),
    ]


@pytest.fixture
async def listen_to_users():
    """Save a user in memory, with three receivers, of which the last fails."""
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
    from sqlalchemy_support import Base

    async def refuse(**_):
        raise LookupError

    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)

    async def save():
        async with asignals.sqlalchemy.enable_signals(async_sessionmaker(engine))() as session:
            session.add(User(name="ada"))
            await session.commit()

    with (
        pre_save.connected(hear, User),
        post_save.connected(hear, User),
        post_save.connected(refuse, User),
    ):
        yield save
    await engine.dispose()
