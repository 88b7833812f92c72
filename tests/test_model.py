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
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

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
            or (options["weak"] and receiver.is_slotted)
        ):
            return "refused"
        known = self.find(receiver, sender, uid)
        if known is not None and known.receiver is not receiver:
            return "connected"  # not so, but nobody says otherwise
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
        receivers = () if slot is None else (self.receiver(slot),)
        muted = functools.partial(self.signal.muted, *receivers, everywhere=everywhere)
        block = ExitStack()
        block.enter_context(muted())
        self.mutes.append((block, muted))

    def unmute(self, index):
        block, _ = self.mutes.pop(index)
        block.close()

    def leave_mutes(self):
        for block, _ in self.mutes:
            block.close()

    def enter_mutes(self):
        for block, muted in self.mutes:
            block.enter_context(muted())

    def forget_receiver(self, slot):
        self.receivers[slot] = None

    def forget_sender(self, slot):
        self.senders[slot] = None

    def collect(self):
        left = None
        while left != (now := len(self.signal.connections)):  # lets go of what was held for dead senders
            left = now
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

SLOTS = range(4)
SENDER_SLOTS = [None, None, *SLOTS]
UIDS = [None, None, None, None, 0, "uid"]
NUMBERS = range(100)
BOTH = [False, True]
RECEIVER_KINDS = [
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
SENDER_KINDS = ["plain", "plain", "slotted", "class", "subclass", "subclass", "text", 1, 1.0, True, b"text"]
KINDS_OF_INNER_STEPS = [
    "fail",
    "fail",
    "connect",
    "connect",
    "disconnect",
    "disconnect",
    "enter_block",
    "leave_block",
    "forget_receiver",
    "forget_sender",
    "collect",
    "send",
]
KINDS_OF_REPEATED_STEPS = ["connect", "disconnect", "enter_block", "enter_block", "leave_block", "send"]


class Chance:
    """Chooses by the bytes that hypothesis draws for many steps at once: each draw costs it more than a step costs.

    The first of the choices is what a failure is shrunk to.
    """

    def __init__(self, drawn):
        self._bytes = iter(drawn)

    def __call__(self, choices):
        return choices[next(self._bytes) % len(choices)]

    def kind(self, kinds):
        byte = next(self._bytes)
        return kinds[byte % len(kinds)] if byte else None  # nothing: to that steps shrink that a failure does not need

    def filled(self, slots):
        """One of the slots that have something in them, if there are any."""
        full = [slot for slot, content in slots.items() if content is not None]
        return self(full) if full else None

    def sender(self, slots):
        return self([None, None, *(slot for slot, content in slots.items() if content is not None)])

    def options(self):
        return {
            "priority": self([0, 0, 0, 1, -1, 0.5]),
            "once": self([False, False, False, True]),
            "weak": self([True, True, False]),
            "subclasses": self([False, False, True]),
            "timeout": self([None, None, None, 1000]),
        }

    def inner_step(self):
        kind = self(KINDS_OF_INNER_STEPS)
        if kind in {"connect", "enter_block"}:
            return kind, self(SLOTS), self(SENDER_SLOTS), self(UIDS), self.options()
        if kind == "disconnect":
            return kind, self(SLOTS), self(SENDER_SLOTS), self(UIDS)
        if kind == "send":
            return kind, self(SENDER_SLOTS), self(NUMBERS), self(BOTH)
        return (kind, self(SLOTS)) if kind.startswith("forget") else (kind,)


KINDS = [
    "new_receiver",
    "connect",
    "send",
    "send_once_more",
    "new_sender",
    "new_method_of_the_same_object",
    "connect_plainly",
    "the_same_again_and_again",
    "disconnect",
    "disconnect_what_is_connected",
    "enter_block",
    "leave_block",
    "mute",
    "unmute",
    "forget_receiver",
    "forget_sender",
    "collect",
    "script",
    "send_in_another_context",
    "open_stream",
    "close_stream",
]
INDISPENSABLE = KINDS[:3]
MOST_BYTES = 20  # of the longest step, `the_same_again_and_again`
STEPS = 12  # in a row, for one draw and one run of the event loop


class Machine(RuleBasedStateMachine):
    run = None  # what runs an async function on the loop to test
    steps = 0

    @initialize(
        how=st.sampled_from(["undeclared", "declared", "stub"]),
        swarm=st.binary(min_size=len(KINDS), max_size=len(KINDS)),
    )
    def begin(self, how, swarm):
        gc.collect()
        gc.freeze()  # collections of this example look at nothing that was there before
        if how == "stub":

            @signal(name="tested")
            def tested(sender, *, n=0): ...

        else:
            tested = Signal(None if how == "undeclared" else ["n"], name="tested")
        self.world = World(tested)
        self.model = Model(declared=how != "undeclared")
        for slots in (self.model.receivers, self.model.senders, self.world.receivers, self.world.senders):
            slots.update(dict.fromkeys(SLOTS))
        self.counter = itertools.count()
        self.streams = []
        self.last = 0, None, None
        # Each example leaves out some kinds of steps, some many: what they would undo, lasts.
        least = swarm[0] * 3 // 4
        self.kinds = [kind for kind, byte in zip(KINDS, swarm, strict=True) if kind in INDISPENSABLE or byte >= least]

    @rule(drawn=st.binary(min_size=STEPS * 8, max_size=STEPS * 8))
    def some_steps(self, drawn):
        drawn += bytes(MOST_BYTES)  # for the last one of them

        async def do():
            self.world.enter_mutes()  # again, in the context of this run
            for i in range(STEPS):
                await self.do_one(Chance(drawn[i * 8 :]))
            self.world.leave_mutes()

        self.run(do)

    async def do_one(self, chance):
        kind = chance.kind(self.kinds)
        if kind is not None:
            await getattr(self, kind)(chance)
            self.looks_the_same()

    def told(self, *step):
        """Count what is really done, and show it in case it fails."""
        type(self).steps += 1
        note(step)

    def both(self, *step):
        if step[0] in {"connect", "disconnect", "enter_block"}:
            self.last = step[1:4]
        if is_possible(self.model, step):
            self.told(*step)
            wanted, got = self.model.step(step), self.world.step(step)
            assert got == wanted, step

    async def new_receiver(self, chance):
        slot, kind = chance(SLOTS), chance(RECEIVER_KINDS)
        if self.model.receivers[slot] is not None:
            return
        self.told("new_receiver", slot, kind)
        label = f"receiver {next(self.counter)}"
        made = make_receiver(kind, label, self.world)
        self.world.receivers[slot] = kind, made
        name = {"async method": ".async_method", "method": ".method", "cyclic method": ".method"}.get(kind, "")
        model = ModelReceiver(label + name, Life(is_cyclic="cyclic" in kind), kind)
        self.model.receivers[slot] = model
        self.model.known_receivers.append(model)

    async def new_method_of_the_same_object(self, chance):
        slot, other = chance(SLOTS), chance.filled(self.model.receivers)
        if self.model.receivers[slot] is not None or other is None:
            return
        kind, made = self.world.receivers[other]
        if "method" not in kind:
            return
        self.told("new_method_of_the_same_object", slot, other)
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

    async def new_sender(self, chance):
        slot, kind, other = chance(SLOTS), chance(SENDER_KINDS), chance(SLOTS)
        if self.model.senders[slot] is not None:
            return
        label = f"Sender{next(self.counter)}"
        life, base = Life(is_cyclic=kind in {"class", "subclass"}), None
        if kind == "subclass":
            base = self.model.senders[other]
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
        self.told("new_sender", slot, kind, other)
        self.world.senders[slot] = made
        model = ModelSender(label, life, kind, base)
        if isinstance(label, str):
            self.model.known_senders.append(model)
        self.model.senders[slot] = model

    def place(self, chance):
        """A receiver and a sender that there are."""
        return chance.filled(self.model.receivers), chance.sender(self.model.senders)

    async def connect(self, chance):
        self.both("connect", *self.place(chance), chance(UIDS), chance.options())

    async def connect_plainly(self, chance):
        self.both("connect", *self.place(chance), None, dict(NO_OPTIONS))

    async def the_same_again_and_again(self, chance):
        options, other_options = chance.options(), chance.options()
        for _ in range(chance(range(3, 9))):
            kind = chance(KINDS_OF_REPEATED_STEPS)
            if kind == "send":
                await self.send_here(self.last[1], 100, robust=True, grouped=False)
            elif kind == "leave_block":
                self.both("leave_block")
            elif kind == "disconnect":
                self.both("disconnect", *self.last)
            else:
                options, other_options = other_options, options
                self.both(kind, *self.last, options)
            self.looks_the_same()

    async def disconnect(self, chance):
        self.both("disconnect", *self.place(chance), chance(UIDS))

    async def disconnect_what_is_connected(self, chance):
        connected = [entry for entry in self.model.entries if entry.receiver is not None]
        places = [
            (slot, sender_slot, entry.uid)
            for entry in connected
            for slot, receiver in self.model.receivers.items()
            if receiver is entry.receiver
            for sender_slot, sender in [(None, None), *self.model.senders.items()]
            if sender is entry.sender and (sender_slot is None or sender is not None)
        ]
        if places:
            self.both("disconnect", *chance(places))

    async def enter_block(self, chance):
        self.both("enter_block", *self.place(chance), chance(UIDS), chance.options())

    async def leave_block(self, chance):
        del chance
        self.both("leave_block")

    async def mute(self, chance):
        everyone, slot = chance(BOTH), chance.filled(self.model.receivers)
        self.both("mute", None if everyone else slot, chance(BOTH))

    async def unmute(self, chance):
        if self.model.mutes:
            self.both("unmute", chance(range(len(self.model.mutes))))

    async def forget_receiver(self, chance):
        self.both("forget_receiver", chance.filled(self.model.receivers))

    async def forget_sender(self, chance):
        self.both("forget_sender", chance.filled(self.model.senders))

    async def collect(self, chance):
        del chance
        self.both("collect")

    async def script(self, chance):
        slot, step = chance.filled(self.model.receivers), chance.inner_step()
        if slot is not None:
            label = self.model.receivers[slot].label
            self.told("script", label, step)
            self.model.scripts.setdefault(label, []).append(step)
            self.world.scripts.setdefault(label, []).append(step)

    async def send(self, chance):
        sender, n, robust = chance.sender(self.model.senders), chance(NUMBERS), chance(BOTH)
        await self.send_here(sender, n, robust=robust, grouped=chance([False, False, True]))

    async def send_once_more(self, chance):
        sender = chance.sender(self.model.senders)
        await self.send_here(sender, chance(NUMBERS), robust=chance(BOTH), grouped=False)

    async def send_here(self, sender, n, *, robust, grouped):
        if sender is not None and self.model.senders[sender] is None:
            return
        self.told("send", sender, n, robust, grouped)
        wanted = self.model.send(sender, n, robust=robust)
        assert await self.world.send(sender, n, robust=robust, grouped=grouped) == wanted
        if grouped:  # what a task group raised may be in a cycle of its own
            self.model.collect()
            self.world.collect()

    async def send_in_another_context(self, chance):
        sender, n = chance.sender(self.model.senders), chance(NUMBERS)
        self.told("send_in_another_context", sender, n)
        wanted = self.model.send(sender, n, robust=True, here=False)
        got = []

        async def send():
            got.append(await self.world.send(sender, n, robust=True))

        async with anyio.create_task_group() as group:
            contextvars.Context().run(group.start_soon, send)
        assert got == [wanted]

    async def open_stream(self, chance):
        sender = chance.sender(self.model.senders)
        if len(self.streams) < 2:
            self.told("open_stream", sender)
            stream = self.world.signal.stream(self.world.senders.get(sender), buffer=10_000)
            await stream.__aenter__()
            self.streams.append((self.model.listen(sender), stream))

    async def close_stream(self, chance):
        del chance
        if self.streams:
            self.told("close_stream")
            entry, stream = self.streams.pop()
            wanted = self.model.hush(entry)
            assert await read(stream, len(wanted)) == wanted
            del stream
            self.model.settle()

    def looks_the_same(self):
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
                {name: getattr(c.options, name) for name in NO_OPTIONS},
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


async def read(stream, count):
    with anyio.fail_after(60):
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
def test_signal_does_what_the_model_does(loop, full, long):
    """Whatever is connected, sent, muted, ended, forgotten and collected, in whatever order, the model foresaw it."""
    with asyncio.Runner() as runner:
        run = trio.run if loop == "trio" else functools.partial(run_on_asyncio, runner)
        machine = type("MachineOnALoop", (Machine,), {"run": staticmethod(run), "steps": 0})
        for _ in range(72 if long else 1):
            gc.unfreeze()  # what hypothesis has left in cycles is gigabytes in the long run
            gc.collect()
            run_state_machine_as_test(
                machine if long else seed(loop)(machine),
                settings=settings(
                    max_examples=560 if full else 80,
                    stateful_step_count=8,
                    deadline=None,
                    database=None,
                    print_blob=True,
                    phases=[Phase.generate, Phase.shrink],
                    suppress_health_check=list(HealthCheck),
                ),
            )
    # 50,000 in CI, on the two loops together. Only those count that found something to do.
    assert machine.steps >= (1_500_000 if long else 25_000 if full else 3_000)


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
