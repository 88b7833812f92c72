"""Capture, mute, swap and restore: what test code does to signals, and that it is undone."""

import asyncio
import contextvars
import gc
import math
import threading
import weakref

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from asignals import Background, Signal, signal
from asignals.testing import ANY, Capture, capture, muted, restored, swap_receivers

pytestmark = pytest.mark.anyio


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
    with capture(paid, mine) as by_identity, capture(paid, "shop") as by_value, capture(paid, 1) as number:
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
    with pytest.raises(TypeError, match=r"where must be a function of an Event, not 3"):
        capture(make(), where=3)


@pytest.mark.parametrize("block", [muted, swap_receivers, restored])
def test_what_is_no_signal_is_refused(block):
    """By the blocks that change signals, too; the message names the block."""
    with pytest.raises(TypeError, match=rf"{block.__name__}\(\) takes signals, not 'shop.paid'"), block("shop.paid"):
        pytest.fail("the block must not be entered")


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
        with pytest.raises(AssertionError, match="expected a send"):
            sent.assert_sent(unknown=1)
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


async def test_wait_returns_at_once_or_when_the_send_has_begun():
    """`wait` gives the first `count` events, whether they were sent before or are sent later."""
    paid = make()
    with capture(paid) as sent:
        await paid.send("shop", amount=1)
        assert [event.amount for event in await sent.wait()] == [1]
        async with anyio.create_task_group() as group:
            group.start_soon(_send_some, paid, 2, 3, 4)
            with anyio.fail_after(5):
                assert [event.amount for event in await sent.wait(3)] == [1, 2, 3]


async def test_several_tasks_may_wait():
    """Each waiter wakes at its own count, and a cancelled one disturbs no other."""
    paid = make()
    woken = []

    async def wait(count):
        await sent.wait(count, timeout=math.inf)
        woken.append(count)

    with capture(paid) as sent, anyio.fail_after(5):
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
        with anyio.fail_after(5):
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
