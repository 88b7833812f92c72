"""Captures of model signals: one event for each phase, whoever listens."""

import pytest

pytest.importorskip("sqlalchemy")

from sqlalchemy import insert, select
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy_support import (
    Base,
    Note,
    Pizza,
    Topping,
    User,
    anyio_backend,
    engine,
    maker,
    nobody_left,
    place,
)

from asignals import Signal, monitor
from asignals.sqlalchemy import (
    m2m_changed,
    post_bulk,
    post_delete,
    post_init,
    post_save,
    pre_init,
    pre_save,
    transaction_committed,
    transaction_rolled_back,
)
from asignals.testing import capture, muted, replaced, restored

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("place", ["aiosqlite"], indirect=True)]
__all__ = ["anyio_backend", "engine", "maker", "nobody_left", "place"]


def phases(sent):
    return [event.phase for event in sent]


@pytest.mark.parametrize("listening", [(), ("flush",), ("commit",), ("flush", "commit", "rollback")], ids=str)
async def test_one_event_for_each_phase_whoever_listens(maker, listening):
    """One INSERT is captured in the flush and after the commit, once each, with and without receivers there."""
    calls = []

    def note(**named):
        calls.append(named)

    with restored(post_save):
        for phase in listening:
            post_save.connect(note, sender=User, on=phase, weak=False)
        with capture(post_save) as sent:
            async with maker.begin() as session:
                session.add(User(name="ann"))
    assert phases(sent) == ["flush", "commit"]
    assert [(event.sender, event.instance.name, event.created) for event in sent] == [(User, "ann", True)] * 2
    assert sent[0] != sent[1]
    assert len(calls) == len({"flush", "commit"} & set(listening))


async def test_a_rollback_is_another_phase(maker):
    """And each can be asked for, in the capture and in what is asserted."""
    with capture(post_save) as all_phases, capture(post_save, phase="rollback") as rolled_back:
        async with maker() as session:
            session.add(User(name="ann"))
            await session.flush()
            await session.rollback()
    assert phases(all_phases) == ["flush", "rollback"]
    assert rolled_back.only.instance.name == "ann"
    assert all_phases.assert_sent(User, phase="rollback") is all_phases[1]
    all_phases.assert_not_sent(phase="commit")
    with pytest.raises(AssertionError, match=r"sender=asignals|sender=.*User.*\(flush\)"):
        all_phases.assert_not_sent(phase="flush")
    with pytest.raises(ValueError, match="only the phase 'rollback' is captured here"):
        rolled_back.assert_not_sent(phase="flush")
    with pytest.raises(ValueError, match="post_save cannot be sent with phase='comit', but in 'flush', 'commit'"):
        all_phases.assert_not_sent(phase="comit")
    with pytest.raises(ValueError, match="pre_save cannot be sent with phase='commit', but in 'flush'"):
        capture(pre_save, phase="commit")


async def test_a_capture_is_no_receiver_of_model_signals(maker):
    """Neither connections nor listeners show it; afterwards nothing is sent for it."""
    reports = []
    with capture(post_save):
        assert not post_save.has_listeners(User)
        assert post_save.connections == ()
    with monitor(reports.append):
        async with maker.begin() as session:
            session.add(User(name="ann"))
    assert reports == []


async def test_muted_model_events_are_captured(maker):
    """As those of other signals are."""
    calls = []
    heard = post_save.connected(lambda **named: calls.append(named), sender=User)
    with heard, capture(post_save) as sent, muted(post_save):
        async with maker.begin() as session:
            session.add(User(name="ann"))
    assert (phases(sent), calls) == (["flush", "commit"], [])


class Stamp:
    """No base of a model."""


async def test_senders_are_bases_and_names_as_for_connect(maker):
    """An assertion about a base class or a name is about the events of its models."""
    all_models, users, nobody = (capture(post_save, sender=each) for each in (Base, "User", Stamp))
    with all_models, users, nobody:
        async with maker.begin() as session:
            session.add_all([User(name="ann"), Note()])
    assert {event.sender for event in all_models} == {User, Note}
    assert {event.sender for event in users} == {User}
    assert nobody == []
    all_models.assert_sent("Note", phase="flush")
    all_models.assert_sent(Base)
    with pytest.raises(AssertionError):
        all_models.assert_not_sent("User")
    with pytest.raises(ValueError, match="only sends of 'User' are captured here"):
        users.assert_not_sent(Note)
    with pytest.raises(LookupError, match="no model goes by the name 'Usr'"):
        capture(post_save, sender="Usr")
    with pytest.raises(LookupError, match="no model goes by the name 'Usr'"):
        all_models.assert_not_sent("Usr")


async def test_relationships_are_senders_of_links(maker):
    """The relationship itself, as for `connect`."""
    with capture(m2m_changed, sender=Pizza.toppings) as toppings, capture(m2m_changed, sender=Pizza.shops) as shops:
        async with maker.begin() as session:
            session.add(Pizza(toppings=[Topping()]))
    toppings.assert_sent(Pizza.toppings, action="post_add", phase="commit")
    shops.assert_not_sent()


async def test_the_other_model_signals_are_captured_unheard(maker):
    """Deletions, links, statements, instances being made, and the ends of transactions."""
    signals = post_delete, m2m_changed, post_bulk, pre_init, post_init, transaction_committed, transaction_rolled_back
    with capture(*signals, everywhere=True) as sent:
        async with maker.begin() as session:
            session.add(Pizza(toppings=[Topping()]))
            await session.execute(insert(User), [{"name": "ann"}])
        async with maker() as session:
            await session.delete((await session.scalars(select(User))).one())
            await session.flush()
            await session.rollback()
    seen = [(event.signal, getattr(event, "phase", None)) for event in sent]
    for signal in (post_delete, m2m_changed, post_bulk, pre_init, post_init):
        assert (signal, "flush") in seen
    assert (post_delete, "rollback") in seen
    assert (post_bulk, "commit") in seen
    assert (transaction_committed, None) in seen
    assert (transaction_rolled_back, None) in seen
    assert seen.count((m2m_changed, "commit")) == seen.count((m2m_changed, "flush")) / 2


async def test_order_goes_across_model_signals_and_others(maker):
    """The sends of a receiver come after the event that it was called for."""
    saved = Signal(["name"], name="shop.saved")

    async def announce(instance):
        await saved.send("shop", name=instance.name)

    with post_save.connected(announce, sender=User, on="commit"), capture(post_save, saved, pre_save) as sent:
        async with maker.begin() as session:
            session.add(User(name="ann"))
    sent.assert_order(pre_save, post_save, post_save, saved)


def test_sync_sessions_are_captured(place, tmp_path):
    """The same in a plain session."""
    from sqlalchemy import create_engine

    from asignals.sqlalchemy import enable_signals

    made = create_engine(f"sqlite:///{tmp_path}/sync.sqlite")
    Base.metadata.create_all(made)
    sessions: sessionmaker[Session] = enable_signals(sessionmaker(made))
    with capture(post_save) as sent, sessions.begin() as session:
        session.add(User(name="ann"))
    made.dispose()
    assert phases(sent) == ["flush", "commit"]


async def test_receivers_of_each_phase_are_replaced(maker):
    """By one mock, in each phase that the receiver is connected for."""

    def note(**named):
        pytest.fail("is replaced")

    with restored(post_save):
        post_save.connect(note, sender=User, weak=False)
        post_save.connect(note, sender=User, on="commit", weak=False)
        with replaced(post_save, note) as mock:
            async with maker.begin() as session:
                session.add(User(name="ann"))
        assert mock.call_count == 2
        assert [each.receiver for each in post_save.connections] == [note, note]
