"""Capture, mute, swap and restore: what test code does to signals, and that it is undone."""

import asyncio
import contextvars
import gc
import math
import threading
import time
import weakref

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from asignals import Background, Signal, signal
from asignals.testing import ANY, Capture, capture, muted, replaced, restored, swap_receivers
from asignals.testing._blocks import Restorer

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio", "trio")]


@signal
def order_paid(sender: object, *, amount: int, currency: str = "EUR") -> None:
    """An order was paid."""


def make(name="shop.paid"):
    return Signal(["amount"], name=name)


class Rude:
    def __repr__(self):
        raise ValueError


async def test_capture_lists_the_sends_in_order_with_their_defaults():
    """Each send is an event with the sender and the arguments, those that defaults filled in too."""
    shop = object()
    with capture(order_paid) as sent:
        await order_paid.send(shop, amount=1)
        await order_paid.send(sender="other", amount=2, currency="USD")
    assert [(event.sender, dict(event.arguments)) for event in sent] == [
        (shop, {"amount": 1, "currency": "EUR"}),
        ("other", {"amount": 2, "currency": "USD"}),
    ]
    assert all(event.signal is order_paid for event in sent)


async def test_capture_sees_nothing_outside_its_block():
    """A send before or after the block is not captured, and what was captured stays."""
    paid = make()
    await paid.send("shop", amount=1)
    with capture(paid) as sent:
        await paid.send("shop", amount=2)
    await paid.send("shop", amount=3)
    assert sent.only.amount == 2


async def test_a_capture_is_no_receiver(collect):
    """Connections, listeners and results are the same with and without a capture."""
    paid = make()
    with capture(paid):
        assert not paid.has_listeners()
        assert await paid.send("shop", amount=1) == []
    paid.connect(collect)
    with capture(paid):
        assert [each.receiver for each in paid.connections] == [collect]
        assert await paid.send("shop", amount=2) == [(collect, None)]


async def test_a_send_is_captured_before_its_receivers_run():
    """A receiver, also one that never ends, finds its own send in the capture."""
    paid = make()
    seen = []

    async def look(**named):
        seen.append(len(sent))
        await anyio.sleep_forever()

    paid.connect(look)
    with capture(paid) as sent, anyio.move_on_after(5) as scope:
        async with anyio.create_task_group() as group:

            async def send():
                await paid.send("shop", amount=1)

            group.start_soon(send)
            await sent.wait()
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert seen == [1]


async def test_failing_muted_and_orphaned_sends_are_captured_and_refused_ones_are_not():
    """Only a send that raises TypeError for its arguments leaves no event."""
    paid = make()

    def fail(**named):
        raise RuntimeError

    with capture(paid) as sent:
        await paid.send("nobody", amount=1)
        with muted(paid):
            await paid.send("muted", amount=2)
        with paid.connected(fail), pytest.raises(RuntimeError):
            await paid.send("failing", amount=3)
        with pytest.raises(TypeError):
            await paid.send("refused")
    assert [event.sender for event in sent] == ["nobody", "muted", "failing"]


async def test_capture_chooses_by_sender_as_connect_does():
    """Objects are compared by identity, strings and numbers by type and value."""
    paid = make()
    mine, other = [1], [1]
    with (
        capture(paid, sender=mine) as by_identity,
        capture(paid, sender="shop") as by_value,
        capture(paid, sender=1) as number,
    ):
        for sender in (mine, other, "shop!"[:4], 1, True, 1.0):
            await paid.send(sender, amount=1)
    assert [event.sender for event in by_identity] == [mine]
    assert by_identity[0].sender is mine
    assert [event.sender for event in by_value] == ["shop"]
    assert [type(event.sender) for event in number] == [int]


async def test_capture_chooses_by_where():
    """Only events for which `where` is true are captured."""
    with capture(order_paid, where=lambda event: event.amount > 1) as sent:
        await order_paid.send(None, amount=1)
        await order_paid.send(None, amount=2)
    assert sent.only.amount == 2


async def test_capture_takes_several_signals_and_keeps_their_common_order():
    """One list for several signals, in the order of the sends."""
    paid, shipped, lost = make("paid"), make("shipped"), make("lost")
    with capture([paid, shipped]) as sent:
        for each in (shipped, lost, paid, shipped):
            await each.send("shop", amount=1)
    assert [event.signal.name for event in sent] == ["shipped", "paid", "shipped"]


async def test_capture_of_a_view_captures_the_signal():
    """Sends through views of `using`, and captures of views, are those of the signal."""
    paid = make()
    with capture(paid.using(task_group=None)) as sent:
        await paid.using(task_group=anyio.create_task_group).send("shop", amount=1)
        await paid.send("shop", amount=2)
    assert [event.amount for event in sent] == [1, 2]


@pytest.mark.parametrize("wrong", [None, "shop.paid", [make(), "paid"], [], 3])
def test_capture_refuses_what_is_no_signal(wrong):
    """Anything but a signal, or some signals, is a TypeError at once."""
    with pytest.raises(TypeError, match=r"capture\(\)|not iterable"):
        capture(wrong)


def test_a_where_that_cannot_be_called_is_refused():
    """At once, and not by the first send."""
    with pytest.raises(TypeError, match=r"where must be a sync function of an Event, not 3"):
        capture(make(), where=3)


@pytest.mark.parametrize("block", [muted, swap_receivers, restored])
def test_what_is_no_signal_is_refused(block):
    """By the blocks that change signals, too; the message names the block."""
    with pytest.raises(TypeError, match=rf"{block.__name__}\(\) takes signals, not 'shop.paid'"), block("shop.paid"):
        pytest.fail("the block must not be entered")


@pytest.mark.parametrize("block", [capture, muted, restored])
def test_blocks_without_signals_are_refused(block):
    """They would do nothing."""
    with pytest.raises(TypeError, match=rf"{block.__name__}\(\) needs a signal"):
        block()


async def test_only_says_what_was_sent_instead():
    """The message names the signal and lists the sends with sender and arguments."""
    paid = make()
    with capture(paid) as sent:
        with pytest.raises(AssertionError, match=r"expected one send of shop.paid, there was none"):
            _ = sent.only
        await paid.send("shop", amount=1)
        await paid.send("mill", amount=2)
        with pytest.raises(AssertionError) as caught:
            _ = sent.only
    assert "there were 2" in str(caught.value)
    assert "1. sender='shop', amount=1" in str(caught.value)
    assert "2. sender='mill', amount=2" in str(caught.value)


async def test_messages_survive_hostile_values_and_stay_short():
    """A repr that raises and a string of ten megabytes do no harm, and a thousand sends are cut to a few lines."""
    paid = make()
    long = "x" * 10_000_000
    with capture(paid) as sent:
        for _ in range(1000):
            await paid.send(Rude(), amount=long)
        with pytest.raises(AssertionError) as caught:
            _ = sent.only
    assert "whose repr raises ValueError" in str(caught.value)
    assert "990 more" in str(caught.value)
    assert len(str(caught.value)) < 10_000


async def test_assert_sent_finds_the_first_match_or_shows_all():
    """`assert_sent` compares the named arguments and returns the event."""
    with capture(order_paid) as sent:
        await order_paid.send("shop", amount=1)
        await order_paid.send("mill", amount=2)
        await order_paid.send("mill", amount=2, currency="USD")
        assert sent.assert_sent(amount=2) is sent[1]
        assert sent.assert_sent("mill", amount=ANY, currency="USD") is sent[2]
        sent.assert_not_sent(amount=3)
        sent.assert_not_sent("shop", amount=2)
        with pytest.raises(AssertionError, match=r"with sender=ANY, amount=3, there were 3"):
            sent.assert_sent(amount=3)
        with pytest.raises(AssertionError, match="expected no send"):
            sent.assert_not_sent()


async def test_assertions_compare_arguments_by_value_and_senders_as_connect_does():
    """Equal lists are the same argument, but not the same sender; 1 is not True."""
    paid = make()
    mine = [1]
    with capture(paid) as sent:
        await paid.send(mine, amount=[42])
        await paid.send(sender=True, amount=1)
        assert sent.assert_sent(mine, amount=[42]) is sent[0]
        sent.assert_not_sent([1])
        sent.assert_not_sent(1)
        assert sent.assert_sent(sender=True) is sent[1]


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (
            lambda sent: sent.assert_not_sent(amonut=1),
            TypeError,
            "order_paid has no argument 'amonut'",
        ),
        (lambda sent: sent.assert_sent(amonut=1), TypeError, "no argument 'amonut'"),
        (lambda sent: sent.assert_not_sent(phase="flush"), TypeError, "no argument 'phase'"),
        (lambda sent: sent.assert_not_sent(order_paid), TypeError, "a signal is no sender: write signal="),
        (lambda sent: sent.assert_not_sent(signal=make()), ValueError, "shop.paid is not captured here"),
        (lambda sent: sent.assert_not_sent(signal="shop.paid"), TypeError, "takes signals, not 'shop.paid'"),
        (
            lambda sent: sent.assert_not_sent("mill"),
            ValueError,
            "only sends of 'shop' are captured here",
        ),
        (lambda sent: sent.assert_order(), TypeError, "without any it could not fail"),
        (lambda sent: sent.assert_order(make()), ValueError, "not captured"),
        (lambda sent: sent.assert_order("shop.paid"), TypeError, "takes signals"),
    ],
)
def test_assertions_that_could_not_fail_are_refused(ask, error, words):
    """A misspelt argument, a signal in the wrong place, what is not captured: nothing passes by mistake."""
    with capture(order_paid, sender="shop") as sent, pytest.raises(error, match=words):
        ask(sent)


@pytest.mark.parametrize("count", [0, -1, True, "1", 1.0])
async def test_waiting_for_nothing_is_refused(count):
    """It would return at once, whatever was sent."""
    with capture(order_paid) as sent, pytest.raises((TypeError, ValueError), match="count must be"):
        await sent.wait(count)


def test_signals_without_declared_arguments_may_be_asked_for_any():
    """Also together with others that declare theirs."""
    with capture(Signal(), order_paid) as sent:
        sent.assert_not_sent(anything=1)


async def test_a_capture_that_was_not_entered_says_nothing():
    """Whatever is read or asked, for it could only ever say that nothing was sent."""
    paid = make()
    sent = capture(paid)
    await paid.send("shop", amount=1)
    reads = [
        lambda: sent == [],
        lambda: sent != [1],
        lambda: [1].__eq__(sent) is NotImplemented and sent == [1],
        lambda: not sent,
        lambda: len(sent),
        lambda: list(sent),
        lambda: 1 in sent,
        lambda: sent[:],
        lambda: sent.only,
        lambda: sent.count(1),
        lambda: list(reversed(sent)),
        sent.assert_sent,
        sent.assert_not_sent,
        lambda: sent.assert_order(paid),
    ]
    for read in reads:
        with pytest.raises(RuntimeError, match=r"shop.paid was not entered: write `with capture"):
            read()
    with pytest.raises(RuntimeError, match="not entered"):
        await sent.wait()
    assert repr(sent) == "<asignals.testing.Capture of shop.paid, not entered>"


def test_a_capture_is_entered_once():
    """What one block captured is not taken for another block's."""
    sent = capture(make())
    with sent, pytest.raises(RuntimeError, match="entered before"), sent:
        pytest.fail("must not be entered")
    with pytest.raises(RuntimeError, match="entered before"), sent:
        pytest.fail("must not be entered")


async def test_a_capture_is_a_sequence_that_equals_lists():
    """It is read as a list is; two captures of the same sends are equal."""
    paid = make()
    with capture(paid) as sent, capture(paid) as also:
        await _send_some(paid, 1, 2)
    assert sent == also == list(sent)
    assert list(sent) == sent
    assert sent != []
    assert (sent[0].amount, [event.amount for event in sent[1:]], sent.index(sent[1])) == (1, [2], 1)
    assert [event.amount for event in reversed(sent)] == [2, 1]


async def test_assert_not_sent_warns_of_sends_that_it_could_not_see():
    """A send of a context that is in no capture is perhaps the one that must not be."""
    paid = make()
    elsewhere = contextvars.copy_context()
    with capture(paid) as sent:
        await _run_in(elsewhere, paid)
        with pytest.warns(UserWarning, match=r"1 sends of shop.paid were made outside .*everywhere=True"):
            sent.assert_not_sent()


async def test_a_capture_whose_filter_fails_says_so_at_the_first_question():
    """Not only at the end of its block: until then every assertion would be about nothing."""
    paid = make()
    with pytest.raises(ZeroDivisionError), capture(paid, where=lambda event: 1 / 0) as sent:  # noqa: PT012  see below
        await paid.send("shop", amount=1)
        with pytest.raises(ZeroDivisionError):
            sent.assert_not_sent()


def test_an_async_where_is_refused():
    """What it returns would be true for every event."""

    async def where(event): ...

    with pytest.raises(TypeError, match="where must be a sync function"):
        capture(make(), where=where)


@pytest.mark.parametrize("wrong", ["shop", 3, [1]])
def test_a_sender_is_given_by_name(wrong):
    """Among the signals it is refused, with what to write."""
    with pytest.raises(TypeError, match=r"capture\(\) takes signals, not .*; write sender=… for a sender"):
        capture(make(), wrong)


def test_a_phase_is_for_model_signals():
    """Other signals have none, and capturing one would capture nothing."""
    with pytest.raises(ValueError, match=r"shop.paid cannot be sent with phase='flush', but in no phase"):
        capture(make(), phase="flush")


async def test_assert_order_compares_the_sends_of_the_named_signals():
    """As many as named and in that order; other signals may be between; the events are returned."""
    paid, made, lost = make("paid"), make("made"), make("lost")
    with capture(paid, made, lost) as sent:
        for each in (paid, lost, paid, made):
            await each.send("shop", amount=1)
    assert sent.assert_order(paid, paid, made) == [sent[0], sent[2], sent[3]]
    assert sent.assert_order(lost) == [sent[1]]
    for wrong in ([made, paid], [paid, made], [paid, made, paid], [paid], [lost, lost], [paid, lost, made]):
        with pytest.raises(AssertionError, match=r"expected the sends .* in this order, there were 4:\n  1. paid:"):
            sent.assert_order(*wrong)


async def test_assertions_may_ask_for_one_of_several_signals():
    """By the signal, or by a view of it."""
    paid, made = make("paid"), make("made")
    with capture(paid, made) as sent:
        await made.send("shop", amount=1)
    assert sent.assert_sent(signal=made, amount=1) is sent[0]
    assert sent.assert_sent(signal=made.using(limit=3)) is sent[0]
    sent.assert_not_sent(signal=paid)
    with pytest.raises(AssertionError, match="with signal=paid, sender=ANY, amount=1, there were 1"):
        sent.assert_sent(signal=paid, amount=1)


async def test_the_nth_send_may_be_waited_for():
    """Of all the captured signals, or of one."""
    paid, made = make("paid"), make("made")
    with capture(paid, made) as sent:
        await made.send("shop", amount=1)
        async with anyio.create_task_group() as group:
            group.start_soon(_send_some, paid, 2, 3, 4)
            with anyio.fail_after(60):
                assert (await sent.nth(2)).amount == 2
                assert (await sent.nth(2, paid)).amount == 3
                assert (await sent.nth(1, signal=made)).amount == 1
        with pytest.raises(AssertionError, match=r"expected 2 sends of made in 0.01 s, there were 4"):
            await sent.nth(2, made, timeout=0.01)


async def test_wait_returns_at_once_or_when_the_send_has_begun():
    """`wait` gives the first `count` events, whether they were sent before or are sent later."""
    paid = make()
    with capture(paid) as sent:
        await paid.send("shop", amount=1)
        assert [event.amount for event in await sent.wait()] == [1]
        async with anyio.create_task_group() as group:
            group.start_soon(_send_some, paid, 2, 3, 4)
            with anyio.fail_after(60):
                assert [event.amount for event in await sent.wait(3)] == [1, 2, 3]


async def test_several_tasks_may_wait():
    """Each waiter wakes at its own count, and a cancelled one disturbs no other."""
    paid = make()
    woken = []

    async def wait(count):
        await sent.wait(count, timeout=math.inf)
        woken.append(count)

    with capture(paid) as sent, anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for count in (1, 2, 3):
                group.start_soon(wait, count)
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as inner:
                    inner.start_soon(wait, 2)
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()
            await _send_some(paid, 1, 2)
            await anyio.wait_all_tasks_blocked()
            assert sorted(woken) == [1, 2]
            await _send_some(paid, 3)
    assert sorted(woken) == [1, 2, 3]


async def test_wait_fails_with_what_was_sent_instead():
    """When the time is up the error says how many were expected and lists those that came."""
    paid = make()
    with capture(paid) as sent:
        await paid.send("shop", amount=1)
        with pytest.raises(
            AssertionError, match=r"expected 2 sends of shop.paid in 0.01 s, there were 1:\n  1. sender='shop'"
        ):
            await sent.wait(2, timeout=0.01)


async def test_a_callers_time_limit_is_its_own():
    """`fail_after` around `wait` raises TimeoutError, not the capture's AssertionError."""
    with capture(make()) as sent, pytest.raises(TimeoutError):
        with anyio.fail_after(0.01):
            await sent.wait()


async def test_wait_hears_sends_of_other_threads():
    """A send in another thread and another event loop wakes the waiting task."""
    paid = make()
    with capture(paid, everywhere=True) as sent:
        thread = threading.Thread(target=asyncio.run, args=(_send_some(paid, 7),))
        thread.start()
        try:
            assert (await sent.wait())[0].amount == 7
        finally:
            await anyio.to_thread.run_sync(thread.join)


async def test_a_capture_sees_its_own_tasks_and_threads():
    """Tasks, worker threads and background sends started inside the block belong to it."""
    paid = make()

    def in_thread():
        anyio.from_thread.run(_send_some, paid, 2)

    with capture(paid) as sent:
        async with anyio.create_task_group() as group:
            group.start_soon(_send_some, paid, 1)
        await anyio.to_thread.run_sync(in_thread)
        async with Background() as background:
            await background.send(paid, "shop", amount=3)
    assert [event.amount for event in sent] == [1, 2, 3]


async def test_concurrent_tasks_do_not_see_each_others_sends():
    """Fifty tasks that capture the same signal at once each see exactly their own sends."""
    paid = make()
    captured = {}

    async def one_test(number):
        with capture(paid) as sent:
            for _ in range(3):
                await paid.send("shop", amount=number)
                await anyio.lowlevel.checkpoint()
            captured[number] = [event.amount for event in sent]

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(one_test, number)
    assert captured == {number: [number] * 3 for number in range(50)}


async def test_a_capture_says_that_sends_were_made_elsewhere():
    """A send of another context is not captured, but the message tells of it and what to do."""
    paid = make()
    elsewhere = contextvars.copy_context()
    with capture(paid) as sent:
        await _run_in(elsewhere, paid)
        with pytest.raises(AssertionError, match=r"1 more outside this context: capture\(…, everywhere=True\)"):
            _ = sent.only
    with capture(paid, everywhere=True) as sent:
        await _run_in(elsewhere, paid)
        assert sent.only.amount == 9


async def test_captures_nest_and_overlap():
    """Every capture sees the sends of its own time, in whatever order they are left."""
    paid = make()
    first, second = capture(paid), capture(paid)
    first.__enter__()
    await paid.send("shop", amount=1)
    second.__enter__()
    await paid.send("shop", amount=2)
    first.__exit__(None, None, None)
    await paid.send("shop", amount=3)
    second.__exit__(None, None, None)
    await paid.send("shop", amount=4)
    assert [[event.amount for event in each] for each in (first, second)] == [[1, 2], [2, 3]]


async def test_a_capture_may_be_left_in_another_context():
    """A fixture may enter in one context and leave in another."""
    paid = make()
    captured = Capture((paid,))
    contextvars.copy_context().run(captured.__enter__)
    await paid.send("shop", amount=1)
    contextvars.copy_context().run(captured.__exit__, None, None, None)
    await paid.send("shop", amount=2)
    assert list(captured) == []


async def test_nothing_is_left_after_a_failing_block(collect):
    """After a block that raised, no capture, mute, swap or connection is left."""
    paid = make()
    paid.connect(collect)
    before = paid.connections
    with pytest.raises(ZeroDivisionError), capture(paid) as sent, muted(paid), swap_receivers(paid), restored(paid):  # noqa: PT012  the block is tested
        paid.connect(lambda **named: 1 / 0, weak=False)
        raise ZeroDivisionError
    await paid.send("shop", amount=1)
    assert list(sent) == []
    assert paid.connections == before
    assert len(collect.calls) == 1


async def test_a_failing_where_is_raised_where_the_block_ends():
    """It troubles no sender, and does not hide the block's own error."""
    paid = make()
    with pytest.raises(ZeroDivisionError), capture(paid, where=lambda event: 1 / 0) as sent:
        assert await paid.send("shop", amount=1) == []
    assert list(sent) == []
    with pytest.raises(LookupError), capture(paid, where=lambda event: 1 / 0):  # noqa: PT012  which error is raised
        await paid.send("shop", amount=1)
        raise LookupError


async def test_muted_silences_several_signals_here_only(collect):
    """The current context reaches nobody, another context reaches everybody."""
    paid, shipped = make("paid"), make("shipped")
    paid.connect(collect)
    shipped.connect(collect)
    elsewhere = contextvars.copy_context()
    with muted(paid, shipped):
        await paid.send("shop", amount=1)
        await shipped.send("shop", amount=1)
        assert collect.calls == []
        await _run_in(elsewhere, paid)
        assert len(collect.calls) == 1
        with muted(paid, everywhere=True):
            await _run_in(contextvars.copy_context(), paid)
            await _run_in(elsewhere, paid)
        assert len(collect.calls) == 1
    await paid.send("shop", amount=2)
    assert len(collect.calls) == 2


async def test_swap_receivers_replaces_all_and_restores_exactly():
    """Inside the block only the given receivers are called; afterwards all is as before, order and options included."""
    paid = make()
    called = []
    make_receiver = lambda name: lambda **named: called.append(name)  # noqa: E731
    first, second, fake = make_receiver("first"), make_receiver("second"), make_receiver("fake")
    paid.connect(first, weak=False)
    paid.connect(second, "shop", weak=False, priority=5, dispatch_uid="uid")
    before = [(each, each.options) for each in paid.connections]
    with swap_receivers(paid, fake):
        await paid.send("shop", amount=1)
        paid.connect(make_receiver("late"), weak=False)
        await paid.send("mill", amount=1)
    assert called == ["fake", "fake", "late"]
    assert [(each, each.options) for each in paid.connections] == before
    await paid.send("shop", amount=1)
    assert called[3:] == ["second", "first"]


async def test_swap_receivers_with_none_and_for_a_sender(collect):
    """Without receivers nobody hears; with a sender the receivers hear only that one."""
    paid = make()
    paid.connect(collect)
    with swap_receivers(paid):
        await paid.send("shop", amount=1)
    assert collect.calls == []
    fake = type(collect)(collect.__code__, collect.__globals__, closure=collect.__closure__)
    with swap_receivers(paid, fake, sender="shop"):
        await paid.send("mill", amount=2)
        assert collect.calls == []
        await paid.send("shop", amount=3)
    assert len(collect.calls) == 1


async def test_swapped_receivers_are_held_and_called_as_given(collect):
    """In this order and strongly connected; a stream goes on listening."""
    paid, fakes = make(), [lambda **named: None for _ in range(3)]
    paid.connect(collect)
    async with paid.stream() as events:
        with swap_receivers(paid, *fakes):
            assert [(each.receiver, each.weak) for each in paid.connections] == [(fake, False) for fake in fakes]
        with swap_receivers(paid):
            await paid.send("shop", amount=7)
        with anyio.fail_after(60):
            assert (await anext(events)).amount == 7
    assert collect.calls == []


def test_swap_receivers_that_refuses_a_receiver_changes_nothing(collect):
    """A receiver that the signal could not call is refused, and the old ones are connected as before."""
    paid = make()
    paid.connect(collect)
    before = paid.connections
    with pytest.raises(ValueError, match="cannot connect"), swap_receivers(paid, lambda nonsense: None):
        pytest.fail("the block must not be entered")
    assert paid.connections == before


async def test_restored_revives_what_was_used_up_changed_or_disconnected():
    """A fired `once`, changed options and a disconnection are as before, at their places."""
    paid = make()
    calls = []
    receivers = [lambda number=number, **named: calls.append(number) for number in range(4)]
    for receiver in receivers:
        paid.connect(receiver, weak=False, once=receiver is receivers[1])
    with restored(paid):
        paid.disconnect(receivers[0])
        paid.connect(receivers[2], weak=False, priority=9)
        await paid.send("shop", amount=1)
        assert calls == [2, 1, 3]
        await paid.send("shop", amount=1)
        assert calls == [2, 1, 3, 2, 3]
    calls.clear()
    await paid.send("shop", amount=1)
    assert calls == [0, 1, 2, 3]


def test_restoring_what_has_not_changed_costs_next_to_nothing():
    """A hundred signals, three receivers each: it takes about as long as looking at their connections."""
    sigs = tuple(make(f"signal {number}") for number in range(100))
    receivers = [lambda **named: None for _ in range(3)]
    for each in sigs:
        for receiver in receivers:
            each.connect(receiver)
    restorer = Restorer()

    def restoring():
        with restorer.block(sigs):
            pass

    def looking():
        for each in sigs:
            _ = each.connections

    def cost(work):
        start = time.thread_time()
        work()
        return time.thread_time() - start

    restoring()
    assert min(cost(restoring) for _ in range(200)) < 3 * min(cost(looking) for _ in range(200))


async def test_a_restorer_notices_what_happens_between_its_blocks(collect):
    """What is connected, disconnected or dies there is not undone, nor is it held."""
    paid, restorer = make(), Restorer()
    mortal, late = (lambda number=number, **named: collect(by=number) for number in range(2))
    paid.connect(mortal, weak=True)
    await paid.send("shop", amount=1)
    for _ in range(2):
        with restorer.block((paid,)):
            paid.connect(collect)
    alive = weakref.ref(mortal)
    del mortal
    gc.collect()
    assert alive() is None
    with restorer.block((paid,)):
        paid.disconnect(collect)
    assert paid.connections == ()
    paid.connect(late)
    with restorer.block((paid,)):
        paid.disconnect(late)
    assert [each.receiver for each in paid.connections] == [late]


async def test_what_is_connected_strongly_or_for_a_sender_survives_its_disconnection(collect):
    """Nothing but the connection refers to the receiver; a sender that dies takes its connection with it."""
    paid = make()

    class Shop: ...

    shop, gone = Shop(), Shop()
    paid.connect(lambda **named: collect(**named), sender=shop, weak=False)  # noqa: PLW0108  nothing else holds it
    paid.connect(collect, sender=gone)
    restorer = Restorer()
    with restorer.block((paid,)):
        for each in paid.connections:
            paid.disconnect(each.receiver, sender=each.sender)
    assert len(paid.connections) == 2
    del gone
    gc.collect()
    with restorer.block((paid,)):
        paid.connect(print, weak=False)
    gc.collect()
    assert [each.sender for each in paid.connections] == [shop]
    await paid.send("somebody else", amount=1)
    assert collect.calls == []
    await paid.send(shop, amount=2)
    assert len(collect.calls) == 1


async def test_restored_keeps_no_receiver_alive_afterwards():
    """The block holds the receivers it found; after it they may die as before."""
    paid = make()

    def receiver(**named):
        pass

    paid.connect(receiver)
    await paid.send("shop", amount=1)
    alive = weakref.ref(receiver)
    with restored(paid):
        del receiver
        gc.collect()
        assert alive() is not None
    gc.collect()
    assert alive() is None
    assert paid.connections == ()


async def test_captures_may_be_read_while_threads_send():
    """Sends from several threads at once are all there, each once."""
    paid = make()

    def send(number):
        asyncio.run(_send_some(paid, *range(number * 100, number * 100 + 100)))

    with capture(paid, everywhere=True) as sent:
        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(anyio.to_thread.run_sync, send, number)
            await sent.wait(400)
    assert sorted(event.amount for event in sent) == list(range(400))


async def _send_some(sig, *amounts):
    for amount in amounts:
        await sig.send("shop", amount=amount)


async def _run_in(context, sig):
    """Send in another context, without leaving this task."""
    coroutine = context.run(sig.send, "shop", amount=9)
    with pytest.raises(StopIteration):
        context.run(coroutine.send, None)


async def test_replaced_keeps_the_place_and_the_options():
    """The mock is called where the receiver was; priority, sender, subclasses and uid are those of the receiver."""
    paid, called = make(), []

    class Shop: ...

    class Mill(Shop): ...

    def note(name):
        def receiver(**named):
            called.append(name)

        return receiver

    first, ship, last, loud = (note(name) for name in ("first", "ship", "last", "loud"))
    paid.connect(first)
    paid.connect(ship, sender=Shop, subclasses=True, dispatch_uid="ship")
    paid.connect(last)
    paid.connect(loud, priority=1)
    before = paid.connections
    with replaced(paid, ship, note("mock")) as mock:
        await paid.send(Mill, amount=1)
        assert called == ["loud", "first", "mock", "last"]
        (connection,) = (each for each in paid.connections if each.receiver is mock)
        assert (connection.sender, connection.dispatch_uid, connection.options.subclasses) == (Shop, "ship", True)
        assert len(paid.connections) == 4
    called.clear()
    await paid.send(Mill, amount=1)
    assert (called, paid.connections) == (["loud", "first", "ship", "last"], before)


async def test_replaced_makes_a_mock_that_fits():
    """An `AsyncMock` for an async receiver, also of a `timeout`; else a `Mock`, also `in_thread`."""
    paid, depot = make(), Depot()
    paid.connect(depot.ship_later, timeout=1)
    paid.connect(depot.ship, in_thread=True)
    with replaced(paid, depot.ship_later) as shipped, replaced(paid, "ship") as booked:
        assert await paid.send("shop", amount=1) == [(shipped, None), (booked, None)]
    shipped.assert_awaited_once_with(signal=paid, sender="shop", amount=1)
    booked.assert_called_once_with(signal=paid, sender="shop", amount=1)


def replaceable():
    def ship(amount): ...

    return ship


class Depot:
    def ship(self, amount): ...

    async def ship_later(self, amount): ...


@pytest.mark.parametrize(
    "name", ["replaceable.<locals>.ship", f"{__name__}.replaceable.<locals>.ship", "ship", "ship-uid"], ids=str
)
def test_replaced_finds_receivers_by_their_names(name):
    """By qualified name, with the module or without, by the last part of it, or by the `dispatch_uid`."""
    paid, ship = make(), replaceable()
    paid.connect(ship, dispatch_uid="ship-uid")
    paid.connect(print, weak=False)
    with replaced(paid, name, print) as mock:
        assert [each.receiver for each in paid.connections] == [print, print]
        assert mock is print
    assert [each.receiver for each in paid.connections] == [ship, print]


def test_replaced_replaces_every_connection_of_the_receiver():
    """For each sender, and methods too."""
    paid, depot = make(), Depot()
    for sender in ("shop", "mill"):
        paid.connect(depot.ship, sender=sender)
    with replaced(paid, depot.ship) as mock:
        assert [(each.receiver, each.sender) for each in paid.connections] == [(mock, "shop"), (mock, "mill")]
    assert [each.receiver for each in paid.connections] == [depot.ship] * 2
    assert [each.sender for each in paid.connections] == ["shop", "mill"]


def test_replaced_says_whom_it_could_replace():
    """When nobody or several different ones go by the name; a mock that is connected already is refused."""
    paid, ship, other = make(), replaceable(), Depot()
    paid.connect(ship)
    with pytest.raises(LookupError, match=r"'shipp' is not connected to shop.paid, but .*replaceable.<locals>.ship"):
        replaced(paid, "shipp").__enter__()
    with pytest.raises(LookupError, match=r"Depot.ship is not connected to shop.paid"):
        replaced(paid, other.ship).__enter__()
    paid.connect(other.ship)
    with pytest.raises(LookupError, match=r"several receivers .* go by the name 'ship'"):
        replaced(paid, "ship").__enter__()
    with pytest.raises(ValueError, match=r"is connected to shop.paid already"):
        replaced(paid, ship, other.ship).__enter__()
    with pytest.raises(TypeError, match="must be callable"):
        replaced(paid, ship, 3)
    with pytest.raises(TypeError, match=r"replaced\(\) takes signals"):
        replaced("paid", ship)
    with pytest.raises(ValueError, match="cannot connect"), replaced(paid, ship, lambda nonsense: None):
        pytest.fail("must not be entered")
    assert [each.receiver for each in paid.connections] == [ship, other.ship]


async def test_replaced_leaves_alone_what_else_changes(collect):
    """What the block connects stays; a receiver that is used up once is there again."""
    paid, ship = make(), Depot().ship
    paid.connect(ship, once=True)
    with replaced(paid, ship) as mock:
        paid.connect(collect)
        await paid.send("shop", amount=1)
        await paid.send("shop", amount=2)
    assert mock.call_count == 1
    assert [each.receiver for each in paid.connections] == [ship, collect]


def test_replaced_nests_and_decorates():
    """The outer mock is back when the inner block ends."""
    paid, ship = make(), replaceable()
    paid.connect(ship)
    with replaced(paid, ship) as outer:
        with replaced(paid, outer) as inner:
            assert [each.receiver for each in paid.connections] == [inner]
        assert [each.receiver for each in paid.connections] == [outer]

    @replaced(paid, ship, print)
    async def look():
        return [each.receiver for each in paid.connections]

    assert asyncio.run(look()) == [print]
    assert [each.receiver for each in paid.connections] == [ship]


def test_model_signals_are_restored_in_all_their_phases():
    """Receivers of the commit, too, are swapped, and are afterwards what they were."""
    post_save = pytest.importorskip("asignals.sqlalchemy").post_save

    class Order: ...

    def ship(instance): ...

    def book(instance): ...

    def log(instance): ...

    def phases():
        return {phase: post_save.registry(phase).all_connections() for phase in ("flush", "commit", "rollback")}

    with restored(post_save):
        post_save.connect(ship, sender=Order)
        post_save.connect(book, sender=Order, on="commit")
        before = phases()
        with restored(post_save):
            post_save.connect(log, sender=Order, on="rollback")
            post_save.disconnect(book, sender=Order)
        assert phases() == before
        with swap_receivers(post_save, log):
            assert [each.receiver for each in post_save.connections] == [log]
        assert phases() == before
    assert not {ship, book, log} & {each.receiver for each in post_save.connections}


def test_connections_to_models_that_are_still_to_come_are_undone():
    """By the name of a model that is mapped after the block."""
    post_save = pytest.importorskip("asignals.sqlalchemy").post_save
    with restored(post_save):
        post_save.connect(print, sender="NeverMapped", weak=False)
        assert post_save.awaited == ("NeverMapped",)
    assert post_save.awaited == ()


def test_assertions_hide_their_own_frames():
    """Pytest shows the line of the test that fails, and not that of the assertion inside."""
    paid = make()
    with capture(paid) as sent:
        pass
    for fails in (lambda: sent.only, sent.assert_sent, lambda: sent.assert_order(paid)):
        with pytest.raises(AssertionError) as caught:
            fails()
        assert caught.traceback[-1].ishidden(caught)
