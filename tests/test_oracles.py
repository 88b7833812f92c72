"""The same receivers, connected and sent to in the same way, through Django, blinker and asignals."""

import gc

import blinker
import pytest
from django.dispatch import Signal as DjangoSignal
from django.dispatch import receiver as django_receiver
from hypothesis import given, settings
from hypothesis import strategies as st

from asignals import Signal, receiver

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Nothing here waits: two loops will do."""
    return request.param


class Sender:
    pass


class Listener:
    def __init__(self, name):
        self.name = name

    def method(self, signal, sender, **named):
        return self.name, sorted(named)

    def fails(self, signal, sender, **named):
        raise ValueError(self.name)

    def __call__(self, **named):
        return self.name, named["sender"]


def shown(results):
    return [str(response) if isinstance(response, Exception) else response for _, response in results]


steps = st.lists(
    st.tuples(
        st.sampled_from(["connect", "connect", "disconnect"]),
        st.integers(0, 4),
        st.sampled_from([None, 0, 1]),
        st.sampled_from([None, None, "uid"]),
    ),
    max_size=15,
)


@settings(deadline=None)
@given(steps)
async def test_any_steps_give_what_django_gives(given_steps):
    """Connecting, uids, senders, disconnecting: results, order and answers are Django's."""
    ours, theirs = Signal(), DjangoSignal()
    senders = [Sender(), Sender()]
    listeners = [Listener(number) for number in range(4)]
    receivers = [listeners[0], listeners[1].method, listeners[2].method, listeners[3].fails, listeners[0].method]
    for step, index, which, uid in given_steps:
        sender = None if which is None else senders[which]
        if step == "connect":
            for each in (ours, theirs):
                each.connect(receivers[index], sender=sender, dispatch_uid=uid)
        else:
            # A uid of 0 is left out: Django takes it for none, and here it is one.
            answers = [each.disconnect(receivers[index], sender=sender, dispatch_uid=uid) for each in (ours, theirs)]
            assert answers[0] == answers[1]
        for who in (*senders, None, Sender()):
            expected = theirs.send_robust(who, size=1)
            assert shown(await ours.send_robust(who, size=1)) == shown(expected)
            assert ours.has_listeners(who) == theirs.has_listeners(who)


async def test_receivers_die_as_in_django():
    """Functions, callables and methods are forgotten with their objects, in both."""
    ours, theirs = Signal(), DjangoSignal()
    listeners = [Listener("a"), Listener("b")]
    for each in (ours, theirs):
        each.connect(listeners[0])
        each.connect(listeners[1].method)
    del listeners[0]
    gc.collect()
    assert shown(await ours.send(None)) == shown(theirs.send(None)) == [("b", [])]
    listeners.clear()
    gc.collect()
    assert await ours.send(None) == theirs.send(None) == []
    assert ours.has_listeners() is theirs.has_listeners() is False


async def test_the_receiver_decorator_is_djangos():
    """One signal or several, with a sender, works as there."""
    ours, theirs = [Signal(), Signal()], [DjangoSignal(), DjangoSignal()]

    def hear(sender, **named):
        return sender

    for decorate, signals in ((receiver, ours), (django_receiver, theirs)):
        assert decorate(signals, sender="s")(hear) is hear
    sender = "s"
    for mine, other in zip(ours, theirs, strict=True):
        assert await mine.send(sender) == other.send(sender) == [(hear, "s")]
        assert await mine.send(None) == other.send(None) == []


async def test_the_first_error_ends_a_send_as_in_django():
    """`send` raises the receiver's own exception, and those after it are not called."""
    listener = Listener("broken")
    calls = []

    def after(**named):
        calls.append(named)

    ours, theirs = Signal(), DjangoSignal()
    for each in (ours, theirs):
        each.connect(listener.fails)
        each.connect(after)
    with pytest.raises(ValueError, match="broken"):
        theirs.send(None)
    with pytest.raises(ValueError, match="broken"):
        await ours.send(None)
    assert calls == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([None, 0, 1])), max_size=8))
async def test_the_same_receivers_are_called_as_by_blinker(connects):
    """For every sender the receivers that blinker calls are called, once each where it calls once."""
    ours, theirs = Signal(), blinker.Signal()
    senders = [Sender(), Sender()]
    listeners = [Listener(number) for number in range(3)]

    def adapt(listener):
        return lambda sender, **named: listener.name

    adapted = [adapt(each) for each in listeners]
    for index, which in connects:
        ours.connect(listeners[index], sender=None if which is None else senders[which])
        theirs.connect(adapted[index], sender=blinker.ANY if which is None else senders[which])
    for who in senders:
        mine = {name for name, _ in shown(await ours.send(who))}
        assert mine == {response for _, response in theirs.send(who)}
