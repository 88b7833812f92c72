"""The core against a model of plain lists, written from the design and not from the code.

Each step is done twice: by a signal, and by a model that keeps connections in a list, looks for them from its start to
its end, and says who is alive by asking who holds whom. What receivers do in the middle of a send is a script that
both sides follow, so changes, deaths and sends from within a send are steps like all others.
"""

import asyncio
import contextvars
import functools
import gc
import itertools
import logging
from contextlib import ExitStack

import anyio
import hypothesis.strategies as st
import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from asignals import Signal, signal

# -- the model ---------------------------------------------------------------------------------------------------------


class Life:
    """An object that lives while somebody holds it; one in a reference cycle, until the next collection."""

    def __init__(self, *, is_cyclic=False):
        self.is_cyclic = is_cyclic
        self.is_dead = False
        self.pooled = 1  # by how many slots of the test it is held


class ModelReceiver:
    def __init__(self, label, life, kind):
        self.label = label
        self.life = life
        self.is_async = "async" in kind
        self.is_picky = kind == "picky"
        self.is_slotted = kind == "slotted"


class ModelSender:
    def __init__(self, label, life, kind, base=None):
        self.label = label
        self.life = life
        self.is_class = kind in {"class", "subclass"}
        self.is_held = kind == "slotted"
        self.base = base

    def is_same(self, other):
        return self.label == other.label  # the label of a value is its type and itself

    def above(self):
        sender = self
        while sender is not None:
            yield sender
            sender = sender.base


PLACES = itertools.count()


class Entry:
    """A connection, or the listening end of a stream when there is no receiver."""

    def __init__(self, receiver, sender, uid, options):
        self.receiver = receiver
        self.sender = sender
        self.uid = uid
        self.options = options
        self.is_over = False
        self.events = []
        self.place = next(PLACES)


NO_OPTIONS = {"priority": 0, "once": False, "weak": True, "subclasses": False, "timeout": None}


class Block:
    """One `connected` block: who it holds, and what it is to restore."""

    def __init__(self, receiver, sender, uid, before):
        self.receiver = receiver
        self.sender = sender
        self.uid = uid
        self.before = before
        self.options = None if before is None else dict(before.options)


class Mute:
    def __init__(self, receiver, *, everywhere):
        self.receiver = receiver
        self.everywhere = everywhere


class Sending:
    """A send under way."""

    def __init__(self, sender):
        self.sender = sender
        self.called = []  # the results hold them


class Failure(Exception):  # noqa: N818  of the model's receivers
    pass


class Model:
    def __init__(self, *, declared):
        self.declared = declared
        self.entries = []  # in order of connection
        self.receivers = {}
        self.senders = {}
        self.known_receivers = []
        self.known_senders = []
        self.blocks = []
        self.mutes = []
        self.sendings = []
        self.scripts = {}
        self.log = []

    # who is alive

    def holds_receiver(self, life):
        return (
            life.pooled > 0
            or any(e.receiver and e.receiver.life is life and not e.options["weak"] for e in self.entries)
            or any(r.life is life for s in self.sendings for r in s.called)
            or any(m.receiver and m.receiver.life is life for m in self.mutes)
            or any(b.receiver.life is life or (b.before and b.before.receiver.life is life) for b in self.blocks)
        )

    def holds_sender(self, sender):
        life = sender.life
        return (
            life.pooled > 0
            or any(s.sender is not None and s.sender.life is life for s in self.sendings)
            or any(b.sender is not None and b.sender.life is life for b in self.blocks)
            or any(
                e.sender is not None and e.sender.life is life and (e.receiver is None or sender.is_held)
                for e in self.entries
            )
            or any(s is not None and s.life is life for e in self.entries for s, _ in e.events)
            or any(not s.life.is_dead and s.base is sender for s in self.known_senders)
        )

    def settle(self, *, collected=False):
        again = True
        while again:
            again = False
            for receiver in self.known_receivers:
                life = receiver.life
                if not life.is_dead and not self.holds_receiver(life) and (collected or not life.is_cyclic):
                    life.is_dead = again = True
                    self.end(lambda e, life=life: e.receiver is not None and e.receiver.life is life)
            for sender in self.known_senders:
                life = sender.life
                if not life.is_dead and not self.holds_sender(sender) and (collected or not life.is_cyclic):
                    life.is_dead = again = True
                    self.end(lambda e, life=life: e.sender is not None and e.sender.life is life)
        self.known_receivers = [r for r in self.known_receivers if not r.life.is_dead]
        self.known_senders = [s for s in self.known_senders if not s.life.is_dead]

    def end(self, which):
        for entry in [e for e in self.entries if which(e)]:
            entry.is_over = True
            self.entries.remove(entry)

    # looking

    def find(self, receiver, sender, uid):
        for entry in self.entries:
            if entry.receiver is None or (entry.sender is None) != (sender is None):
                continue
            if sender is not None and not entry.sender.is_same(sender):
                continue
            if entry.uid == uid if uid is not None else entry.uid is None and entry.receiver is receiver:
                return entry
        return None

    def in_order(self):
        return sorted(self.entries, key=lambda e: -e.options["priority"])  # stable: then in order of connection

    def heard(self, sender):
        def hears(entry):
            if entry.sender is None:
                return True
            if sender is None:
                return False
            if entry.options["subclasses"]:
                return any(entry.sender.is_same(s) for s in sender.above())
            return entry.sender.is_same(sender)

        return [entry for entry in self.in_order() if hears(entry)]

    # steps

    def connect(self, slot, sender_slot, uid, options):
        receiver, sender = self.receivers[slot], self.senders.get(sender_slot)
        if (
            (receiver.is_picky and not self.declared)
            or (options["subclasses"] and (sender is None or not sender.is_class))
            or (options["timeout"] is not None and not receiver.is_async)
        ):
            return "refused"
        known = self.find(receiver, sender, uid)
        if known is not None and known.receiver is not receiver:
            return "connected"  # not so, but nobody says otherwise
        if receiver.is_slotted and options["weak"]:
            return "refused"
        if known is not None:
            known.options = options
        else:
            self.entries.append(Entry(receiver, sender, uid, options))
        return "connected"

    def disconnect(self, slot, sender_slot, uid):
        known = self.find(self.receivers[slot], self.senders.get(sender_slot), uid)
        self.end(lambda e: e is known)
        return known is not None

    def enter_block(self, slot, sender_slot, uid, options):
        receiver, sender = self.receivers[slot], self.senders.get(sender_slot)
        block = Block(receiver, sender, uid, self.find(receiver, sender, uid))
        outcome = self.connect(slot, sender_slot, uid, options)
        if outcome == "connected":
            self.blocks.append(block)
        return outcome

    def leave_block(self):
        block = self.blocks.pop()
        now = self.find(block.receiver, block.sender, block.uid)
        if now is not block.before:
            self.end(lambda e: e is now)
        if block.before is not None:
            block.before.options = block.options
            if now is not block.before:
                block.before.is_over = False
                self.entries.append(block.before)
                self.entries.sort(key=lambda e: e.place)

    def mute(self, slot, everywhere):
        self.mutes.append(Mute(None if slot is None else self.receivers[slot], everywhere=everywhere))

    def unmute(self, index):
        del self.mutes[index]

    def listen(self, sender_slot):
        entry = Entry(None, self.senders.get(sender_slot), None, NO_OPTIONS)
        self.entries.append(entry)
        return entry

    def hush(self, entry):
        self.end(lambda e: e is entry)
        kept, entry.events = entry.events, []
        return [(None if s is None else s.label, n) for s, n in kept]

    def is_muted(self, entry, *, here):
        return any((m.everywhere or here) and m.receiver in (None, entry.receiver) for m in self.mutes)

    def send(self, sender_slot, n, *, robust, here=True):
        sender = self.senders.get(sender_slot)
        plan = [entry for entry in self.heard(sender) if not self.is_muted(entry, here=here)]
        sending = Sending(sender)
        self.sendings.append(sending)
        pairs = []
        try:
            for entry in plan:
                if entry.is_over:
                    continue
                if entry.receiver is None:
                    entry.events.append((sender, n))
                    continue
                if entry.options["once"]:
                    sending.called.append(entry.receiver)  # held by the call
                    self.end(lambda e, entry=entry: e is entry)
                else:
                    sending.called.append(entry.receiver)
                self.log.append(("called", entry.receiver.label, None if sender is None else sender.label, n))
                try:
                    self.act(entry.receiver, here=here)
                except Failure:
                    if not robust:
                        return ("raised", entry.receiver.label)
                    pairs.append((entry.receiver.label, "failed"))
                else:
                    pairs.append((entry.receiver.label, f"answer of {entry.receiver.label}"))
            return pairs
        finally:
            self.sendings.remove(sending)
            self.settle()

    def act(self, receiver, *, here):
        script = self.scripts.get(receiver.label)
        step = script.pop(0) if script else None
        if step is None:
            return
        if step[0] == "fail":
            raise Failure
        if step[0] == "send":
            if receiver.is_async and self.senders.get(step[1], True) is not None:
                outcome = self.send(step[1], step[2], robust=step[3], here=here)
                self.log.append(("sent", outcome))
            return
        self.log.append((step[0], self.step(step)))

    def step(self, step):
        outcome = None
        if is_possible(self, step):
            outcome = getattr(self, step[0])(*step[1:])
        self.settle()
        return outcome

    def forget_receiver(self, slot):
        self.receivers[slot].life.pooled -= 1
        self.receivers[slot] = None

    def forget_sender(self, slot):
        self.senders[slot].life.pooled -= 1
        self.senders[slot] = None

    def collect(self):
        self.settle(collected=True)


# -- the same with asignals --------------------------------------------------------------------------------------------


def is_possible(world, step):
    """Whether the slots that a step names are filled, and whether there is something to leave."""
    kind, *rest = step
    if kind in {"connect", "disconnect", "enter_block"}:
        return world.receivers.get(rest[0]) is not None and (rest[1] is None or world.senders.get(rest[1]) is not None)
    if kind == "mute":
        return rest[0] is None or world.receivers.get(rest[0]) is not None
    if kind == "forget_receiver":
        return world.receivers.get(rest[0]) is not None
    if kind == "forget_sender":
        return world.senders.get(rest[0]) is not None
    if kind == "leave_block":
        return bool(world.blocks)
    return True


class Plain:
    """A sender, or an object with methods that are receivers."""

    def __init__(self, label, world=None):
        self.label = label
        self.world = world

    def method(self, **named):
        return self.world.run_script(f"{self.label}.method", named)

    async def async_method(self, **named):
        return await self.world.run_async_script(f"{self.label}.async_method", named)


class Callable:
    def __init__(self, label, world):
        self.label = label
        self.world = world

    def __call__(self, **named):
        return self.world.run_script(self.label, named)


class AsyncCallable:
    def __init__(self, label, world):
        self.label = label
        self.world = world

    async def __call__(self, **named):
        return await self.world.run_async_script(self.label, named)


class Slotted:
    __slots__ = ("label", "world")

    def __init__(self, label, world=None):
        self.label = label
        self.world = world

    def __call__(self, **named):
        return self.world.run_script(self.label, named)


def make_receiver(kind, label, world):
    def function(**named):
        return world.run_script(label, named)

    async def async_function(**named):
        return await world.run_async_script(label, named)

    def picky(sender, n):
        return world.run_script(label, {"sender": sender, "n": n})

    made = {
        "function": function,
        "async function": async_function,
        "picky": picky,
        "partial": functools.partial(function),
        "method": Plain(label, world),
        "async method": Plain(label, world),
        "cyclic method": Plain(label, world),
        "callable": Callable(label, world),
        "async callable": AsyncCallable(label, world),
        "slotted": Slotted(label, world),
    }[kind]
    if "cyclic" in kind:
        made.itself = made
    if "function" in kind or kind == "picky":
        made.__qualname__ = made.__name__  # as if of a module: to lose a nested one costs a search for its signal
    if kind != "slotted":
        made.label = label
    return made


def label_of(receiver):
    owner = getattr(receiver, "__self__", None)
    return receiver.label if owner is None else f"{owner.label}.{receiver.__name__}"


def label_of_sender(sender):
    if isinstance(sender, type):
        return sender.__name__
    return sender.label if isinstance(sender, (Plain, Slotted)) else (type(sender), sender)


class World:
    """The signal under test, and the objects that the test holds."""

    def __init__(self, signal):
        self.signal = signal
        self.receivers = {}
        self.senders = {}
        self.blocks = []
        self.mutes = []
        self.scripts = {}
        self.log = []
        self.in_groups = 0

    def receiver(self, slot):
        kind, made = self.receivers[slot]
        if kind == "async method":
            return made.async_method
        return made.method if "method" in kind else made

    def connect(self, slot, sender_slot, uid, options):
        receiver = self.receiver(slot)
        try:
            given = self.signal.connect(receiver, self.senders.get(sender_slot), dispatch_uid=uid, **options)
        except (TypeError, ValueError):
            return "refused"
        assert given is receiver
        return "connected"

    def disconnect(self, slot, sender_slot, uid):
        return self.signal.disconnect(self.receiver(slot), self.senders.get(sender_slot), dispatch_uid=uid)

    def enter_block(self, slot, sender_slot, uid, options):
        receiver, sender = self.receiver(slot), self.senders.get(sender_slot)
        block = ExitStack()
        try:
            block.enter_context(self.signal.connected(receiver, sender, dispatch_uid=uid, **options))
        except (TypeError, ValueError):
            return "refused"
        self.blocks.append(block)
        return "connected"

    def leave_block(self):
        self.blocks.pop().close()

    def mute(self, slot, everywhere):
        block = ExitStack()
        receivers = () if slot is None else (self.receiver(slot),)
        block.enter_context(self.signal.muted(*receivers, everywhere=everywhere))
        self.mutes.append(block)

    def unmute(self, index):
        self.mutes.pop(index).close()

    def forget_receiver(self, slot):
        self.receivers[slot] = None

    def forget_sender(self, slot):
        self.senders[slot] = None

    def collect(self):
        gc.collect()

    def step(self, step):
        return getattr(self, step[0])(*step[1:]) if is_possible(self, step) else None

    def run_script(self, label, named):
        step = self.begin(label, named)
        if step is not None and step[0] != "send":
            self.log.append((step[0], self.step(step)))
        return f"answer of {label}"

    async def run_async_script(self, label, named):
        step = self.begin(label, named)
        if step is not None and step[0] == "send":
            if step[1] is None or self.senders.get(step[1]) is not None:
                self.log.append(("sent", await self.send(step[1], step[2], robust=step[3])))
        elif step is not None:
            self.log.append((step[0], self.step(step)))
        if not self.in_groups:
            await anyio.lowlevel.checkpoint()
        return f"answer of {label}"

    def begin(self, label, named):
        sender = named["sender"]
        self.log.append(("called", label, None if sender is None else label_of_sender(sender), named["n"]))
        script = self.scripts.get(label)
        step = script.pop(0) if script else None
        if step is not None and step[0] == "fail":
            raise ValueError(label)
        return step

    async def send(self, sender_slot, n, *, robust, grouped=False):
        used = self.signal.using(task_group=anyio.create_task_group) if grouped else self.signal
        self.in_groups += grouped
        try:
            sender = self.senders.get(sender_slot)
            return self.shown(await (used.send_robust if robust else used.send)(sender, n=n))
        except ValueError as error:
            if grouped or self.signal.name not in error.__notes__[0]:
                raise
            return ("raised", error.args[0])
        except ExceptionGroup as group:
            (error,) = group.exceptions
            return ("raised", error.args[0])
        finally:
            self.in_groups -= grouped

    def shown(self, pairs):
        return [
            (label_of(receiver), "failed" if isinstance(response, ValueError) else response)
            for receiver, response in pairs
        ]


# -- the machine -------------------------------------------------------------------------------------------------------

SLOTS = st.integers(0, 3)
SENDER_SLOTS = st.sampled_from([None, None, 0, 1, 2, 3])
UIDS = st.sampled_from([None, None, None, None, 0, "uid"])
OPTIONS = st.fixed_dictionaries(
    {
        "priority": st.sampled_from([0, 0, 0, 1, -1, 0.5]),
        "once": st.sampled_from([False, False, False, True]),
        "weak": st.sampled_from([True, True, False]),
        "subclasses": st.sampled_from([False, False, True]),
        "timeout": st.sampled_from([None, None, None, 1000]),
    }
)
NUMBERS = st.integers(0, 99)
RECEIVER_KINDS = st.sampled_from(
    [
        "function",
        "async function",
        "picky",
        "partial",
        "method",
        "async method",
        "cyclic method",
        "callable",
        "async callable",
        "slotted",
    ]
)
SENDER_KINDS = st.sampled_from(
    ["plain", "plain", "slotted", "class", "subclass", "subclass", "text", 1, 1.0, True, b"text"]
)
INNER = st.one_of(
    st.tuples(st.just("fail")),
    st.tuples(st.just("fail")),
    st.tuples(st.just("connect"), SLOTS, SENDER_SLOTS, UIDS, OPTIONS),
    st.tuples(st.just("connect"), SLOTS, SENDER_SLOTS, UIDS, OPTIONS),
    st.tuples(st.just("disconnect"), SLOTS, SENDER_SLOTS, UIDS),
    st.tuples(st.just("disconnect"), SLOTS, SENDER_SLOTS, UIDS),
    st.tuples(st.just("enter_block"), SLOTS, SENDER_SLOTS, UIDS, OPTIONS),
    st.tuples(st.just("leave_block")),
    st.tuples(st.just("forget_receiver"), SLOTS),
    st.tuples(st.just("forget_sender"), SLOTS),
    st.tuples(st.just("collect")),
    st.tuples(st.just("send"), SENDER_SLOTS, NUMBERS, st.booleans()),
)


KINDS_OF_STEPS = st.lists(
    st.sampled_from(["connect", "disconnect", "enter_block", "enter_block", "leave_block", "send"]),
    min_size=3,
    max_size=8,
)


class Machine(RuleBasedStateMachine):
    run = None  # what runs an async function on the loop to test
    steps = 0

    @initialize(how=st.sampled_from(["undeclared", "declared", "stub"]))
    def begin(self, how):
        if how == "stub":

            @signal(name="tested")
            def tested(sender, *, n=0): ...

        else:
            tested = Signal(None if how == "undeclared" else ["n"], name="tested")
        self.world = World(tested)
        self.model = Model(declared=how != "undeclared")
        self.counter = itertools.count()
        self.streams = []
        self.last = 0, None, None

    def both(self, *step):
        if step[0] in {"connect", "disconnect", "enter_block"}:
            self.last = step[1:4]
        if is_possible(self.model, step):
            wanted, got = self.model.step(step), self.world.step(step)
            assert got == wanted, step

    @rule(slot=SLOTS, kind=RECEIVER_KINDS)
    def new_receiver(self, slot, kind):
        if self.model.receivers.get(slot) is not None:
            return
        label = f"receiver {next(self.counter)}"
        made = make_receiver(kind, label, self.world)
        self.world.receivers[slot] = kind, made
        name = {"async method": ".async_method", "method": ".method", "cyclic method": ".method"}.get(kind, "")
        model = ModelReceiver(label + name, Life(is_cyclic="cyclic" in kind), kind)
        self.model.receivers[slot] = model
        self.model.known_receivers.append(model)

    @rule(slot=SLOTS, other=SLOTS)
    def new_method_of_the_same_object(self, slot, other):
        if self.model.receivers.get(slot) is not None or self.model.receivers.get(other) is None:
            return
        kind, made = self.world.receivers[other]
        if "method" not in kind:
            return
        kind = "cyclic method" if "async" in kind else "async method"
        self.world.receivers[slot] = kind, made
        life = self.model.receivers[other].life
        life.pooled += 1
        model = ModelReceiver(label_of(self.world.receiver(slot)), life, kind)
        known = [r for r in self.model.known_receivers if r.label == model.label]
        if known:  # that method is in another slot already, or was
            model = known[0]
        else:
            self.model.known_receivers.append(model)
        self.model.receivers[slot] = model

    @rule(slot=SLOTS, kind=SENDER_KINDS, other=SLOTS)
    def new_sender(self, slot, kind, other):
        if self.model.senders.get(slot) is not None:
            return
        label = f"Sender{next(self.counter)}"
        life, base = Life(is_cyclic=kind in {"class", "subclass"}), None
        if kind == "subclass":
            base = self.model.senders.get(other)
            if base is None or not base.is_class:
                return
            made = type(label, (self.world.senders[other],), {})
        elif kind == "class":
            made = type(label, (), {})
        elif kind == "plain":
            made = Plain(label)
        elif kind == "slotted":
            made = Slotted(label)
        else:
            made = str(b"text", "ascii") if kind == "text" else kind  # another object each time
            label = (type(made), made)
        self.world.senders[slot] = made
        model = ModelSender(label, life, kind, base)
        if isinstance(label, str):
            self.model.known_senders.append(model)
        self.model.senders[slot] = model

    @rule(slot=SLOTS, sender=SENDER_SLOTS, uid=UIDS, options=OPTIONS)
    def connect(self, slot, sender, uid, options):
        self.both("connect", slot, sender, uid, options)

    @rule(kinds=KINDS_OF_STEPS, options=OPTIONS, other_options=OPTIONS)
    def the_same_again_and_again(self, kinds, options, other_options):
        for kind in kinds:
            if kind == "send":
                self.send_here(self.last[1], 100, robust=True, grouped=False)
            elif kind == "leave_block":
                self.both("leave_block")
            elif kind == "disconnect":
                self.both("disconnect", *self.last)
            else:
                options, other_options = other_options, options
                self.both(kind, *self.last, options)
            self.looks_the_same()

    @rule(slot=SLOTS, sender=SENDER_SLOTS)
    def connect_plainly(self, slot, sender):
        self.both("connect", slot, sender, None, dict(NO_OPTIONS))

    @rule(slot=SLOTS, sender=SENDER_SLOTS, uid=UIDS)
    def disconnect(self, slot, sender, uid):
        self.both("disconnect", slot, sender, uid)

    @rule(slot=SLOTS, sender=SENDER_SLOTS, uid=UIDS, options=OPTIONS)
    def enter_block(self, slot, sender, uid, options):
        self.both("enter_block", slot, sender, uid, options)

    @rule()
    def leave_block(self):
        self.both("leave_block")

    @rule(slot=st.none() | SLOTS, everywhere=st.booleans())
    def mute(self, slot, everywhere):
        self.both("mute", slot, everywhere)

    @rule(index=SLOTS)
    def unmute(self, index):
        if self.model.mutes:
            self.both("unmute", index % len(self.model.mutes))

    @rule(slot=SLOTS)
    def forget_receiver(self, slot):
        self.both("forget_receiver", slot)

    @rule(slot=SLOTS)
    def forget_sender(self, slot):
        self.both("forget_sender", slot)

    @rule()
    def collect(self):
        self.both("collect")

    @rule(slot=SLOTS, step=INNER)
    def script(self, slot, step):
        receiver = self.model.receivers.get(slot)
        if receiver is not None:
            self.model.scripts.setdefault(receiver.label, []).append(step)
            self.world.scripts.setdefault(receiver.label, []).append(step)

    @rule(sender=SENDER_SLOTS, n=NUMBERS, robust=st.booleans(), grouped=st.sampled_from([False, False, True]))
    def send(self, sender, n, robust, grouped):
        self.send_here(sender, n, robust=robust, grouped=grouped)

    @rule(sender=SENDER_SLOTS, n=NUMBERS, robust=st.booleans())
    def send_once_more(self, sender, n, robust):
        self.send_here(sender, n, robust=robust, grouped=False)

    def send_here(self, sender, n, *, robust, grouped):
        if sender is not None and self.model.senders.get(sender) is None:
            return
        wanted = self.model.send(sender, n, robust=robust)
        got = self.run(functools.partial(self.world.send, sender, n, robust=robust, grouped=grouped))
        assert got == wanted
        if grouped:  # what a task group raised may be in a cycle of its own
            self.both("collect")

    @rule(sender=SENDER_SLOTS, n=NUMBERS)
    def send_in_another_context(self, sender, n):
        if sender is not None and self.model.senders.get(sender) is None:
            return
        wanted = self.model.send(sender, n, robust=True, here=False)
        sending = functools.partial(self.world.send, sender, n, robust=True)
        assert contextvars.Context().run(self.run, sending) == wanted

    @rule(sender=SENDER_SLOTS)
    def open_stream(self, sender):
        if len(self.streams) < 2 and (sender is None or self.model.senders.get(sender) is not None):
            stream = self.world.signal.stream(self.world.senders.get(sender), buffer=10_000)
            self.run(stream.__aenter__)
            self.streams.append((self.model.listen(sender), stream))

    @rule()
    def close_stream(self):
        if self.streams:
            entry, stream = self.streams.pop()
            wanted = self.model.hush(entry)
            assert self.run(functools.partial(read, stream, len(wanted))) == wanted
            del stream
            self.model.settle()

    @invariant()
    def looks_the_same(self):
        type(self).steps += 1
        model, signal = self.model, self.world.signal
        wanted = [
            (e.receiver.label, None if e.sender is None else e.sender.label, e.uid, e.options)
            for e in model.in_order()
            if e.receiver is not None
        ]
        got = [
            (
                label_of(c.receiver),
                None if c.sender is None else label_of_sender(c.sender),
                c.dispatch_uid,
                {name: getattr(c, name) for name in NO_OPTIONS},
            )
            for c in signal.connections
        ]
        assert got == wanted
        assert self.world.log == model.log
        model.log.clear()
        self.world.log.clear()
        slot = type(self).steps % 5
        if slot == 4 or model.senders.get(slot) is not None:
            sender = self.world.senders.get(slot)
            heard = model.heard(model.senders.get(slot))
            assert signal.has_listeners(sender) is bool(heard)
            assert [label_of(r) for r in signal.receivers_for(sender)] == [
                e.receiver.label for e in heard if e.receiver is not None
            ]

    def teardown(self):
        if hasattr(self, "world"):
            while self.world.mutes:
                self.world.unmute(0)


async def read(stream, count):
    with anyio.fail_after(30):
        events = [await anext(stream) for _ in range(count)]
        await stream.__aexit__(None, None, None)
    return [(None if e.sender is None else label_of_sender(e.sender), e.n) for e in events]


def run_on_asyncio(runner, function):
    return runner.run(function(), context=contextvars.copy_context())


@pytest.fixture
def quick_collections():
    """No collection by itself, and quick ones on demand, as they look at nothing that was there before."""
    gc.collect()
    gc.disable()
    gc.freeze()
    yield
    gc.unfreeze()
    gc.enable()


@pytest.fixture
def silent_log(monkeypatch):
    monkeypatch.setattr(logging.getLogger("asignals"), "disabled", True)


@pytest.mark.filterwarnings("ignore::asignals.ReceiverLostWarning")
@pytest.mark.usefixtures("quick_collections", "silent_log")
@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_signal_does_what_the_model_does(loop, long):
    """Whatever is connected, sent, muted, ended, forgotten and collected, in whatever order, the model foresaw it."""
    examples = 20_000 if long else 125
    with asyncio.Runner() as runner:
        run = trio.run if loop == "trio" else functools.partial(run_on_asyncio, runner)
        machine = type("MachineOnALoop", (Machine,), {"run": staticmethod(run), "steps": 0})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=50,
                deadline=None,
                database=None,
                derandomize=not long,
                print_blob=True,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
    assert machine.steps >= 50 * examples


def test_block_within_a_block_restores_what_was_changed_in_between():
    """A `connected` block restores what was there before it, not what another block around it had connected."""
    tested = Signal()

    def receiver(**named): ...

    with tested.connected(receiver, priority=1):
        tested.disconnect(receiver)
        with tested.connected(receiver):
            pass
        assert tested.connections == ()
        tested.connect(receiver, priority=2)
        with tested.connected(receiver, priority=3):
            pass
        assert [connection.priority for connection in tested.connections] == [2]
    assert tested.connections == ()
