"""Who calls the receivers: each contender connects them and gives an async function `send(sender, a=…, b=…)`."""

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from inspect import isawaitable, iscoroutinefunction, ismethod
from itertools import repeat
from types import MethodType
from typing import Any, TypeAlias

import aiosignal
import asphalt.core
import blinker
import django.dispatch
from psygnal import SignalInstance
from pyee.asyncio import AsyncIOEventEmitter

import asignals

from .receivers import Receiver

Send: TypeAlias = Callable[..., Awaitable[Any]]

Maker: TypeAlias = Callable[[list[Receiver]], Send]
Repeat: TypeAlias = Callable[[Send, object, int], Awaitable[None]]

SIGNAL = object()  # what is passed as the signal by those that have none to pass


async def send_repeatedly(send: Send, sender: object, times: int) -> None:
    for _ in repeat(None, times):
        await send(sender, a=1, b=2)


async def send_all_by_name(send: Send, sender: object, times: int) -> None:
    for _ in repeat(None, times):
        await send(signal=SIGNAL, sender=sender, a=1, b=2)


EVERY_KIND = frozenset({"coroutines", "functions", "methods", "mixed"})
ASYNC = frozenset({"coroutines", "methods"})
NAMED = frozenset({"named coroutines", "named functions", "named methods", "named sync methods", "named mix"})
NAMED_ASYNC = frozenset({"named coroutines", "named methods"})
DECLARED = EVERY_KIND | NAMED | {"choosy", "by turns"}


@dataclass(frozen=True)
class Contender:
    """A way to call all receivers; the note says what it does less, or otherwise, than `asignals`."""

    name: str
    make: Maker
    kinds: frozenset[str] = EVERY_KIND
    asyncio_only: bool = True
    has_order: bool = True
    repeat: Repeat = send_repeatedly
    note: str = ""


CONTENDERS: dict[str, Contender] = {}


def contender(name: str, **differing: Any) -> Callable[[Maker], Maker]:
    """Enter a function that connects receivers and returns the `send`, with the fields of its `Contender`."""

    def enter(make: Maker) -> Maker:
        CONTENDERS[name] = Contender(name, make, **differing)
        return make

    return enter


# The loop that a person would write for receivers of this kind; the first that fits is what others are compared with.


def loop_over_coroutines(receivers: list[Receiver]) -> Send:
    async def send(sender, *, a, b):
        return [(r, await r(signal=SIGNAL, sender=sender, a=a, b=b)) for r in receivers]

    return send


def loop_over_functions(receivers: list[Receiver]) -> Send:
    async def send(sender, *, a, b):
        return [(r, r(signal=SIGNAL, sender=sender, a=a, b=b)) for r in receivers]

    return send


def loop_over_any(receivers: list[Receiver]) -> Send:
    async def send(sender, *, a, b):
        results = []
        for receiver in receivers:
            response = receiver(signal=SIGNAL, sender=sender, a=a, b=b)
            if isawaitable(response):
                response = await response
            results.append((receiver, response))
        return results

    return send


def loop_over_choosy(receivers: list[Receiver]) -> Send:
    async def send(sender, *, a, b):
        return [(r, await r(sender=sender, a=a)) for r in receivers]

    return send


def loop_over_named_coroutines(receivers: list[Receiver]) -> Send:
    async def send(sender, *, a, b):
        return [(r, await r(sender=sender, a=a, b=b)) for r in receivers]

    return send


def loop_over_named_functions(receivers: list[Receiver]) -> Send:
    async def send(sender, *, a, b):
        return [(r, r(sender=sender, a=a, b=b)) for r in receivers]

    return send


def loop_over_a_named_mix(receivers: list[Receiver]) -> Send:
    pairs = [(receiver, iscoroutinefunction(receiver)) for receiver in receivers]

    async def send(sender, *, a, b):
        return [
            (r, await r(sender=sender, a=a, b=b) if is_async else r(sender=sender, a=a, b=b)) for r, is_async in pairs
        ]

    return send


def loop_by_turns(receivers: list[Receiver]) -> Send:
    pairs = [(receiver, number % 2) for number, receiver in enumerate(receivers)]

    async def send(sender, *, a, b):
        return [(r, await r(sender=sender, a=a) if few else await r(sender=sender, a=a, b=b)) for r, few in pairs]

    return send


LOOPS = {
    "named coroutines": loop_over_named_coroutines,
    "named functions": loop_over_named_functions,
    "named methods": loop_over_named_coroutines,
    "named sync methods": loop_over_named_functions,
    "named mix": loop_over_a_named_mix,
    "by turns": loop_by_turns,
    "coroutines": loop_over_coroutines,
    "functions": loop_over_functions,
    "methods": loop_over_coroutines,
    "mixed": loop_over_any,
    "choosy": loop_over_choosy,
}


# asignals


def connect_all(signal: Any, receivers: list[Receiver]) -> Any:
    for receiver in receivers:
        signal.connect(receiver)
    return signal


@contender("asignals", kinds=DECLARED, asyncio_only=False, note="declared arguments")
def declared(receivers: list[Receiver]) -> Send:
    return connect_all(asignals.Signal(["a", "b"]), receivers).send


@contender("asignals robust", kinds=DECLARED, asyncio_only=False, note="send_robust, declared arguments")
def robust(receivers: list[Receiver]) -> Send:
    return connect_all(asignals.Signal(["a", "b"]), receivers).send_robust


@contender("asignals any keywords", asyncio_only=False, note="no declared arguments")
def undeclared(receivers: list[Receiver]) -> Send:
    return connect_all(asignals.Signal(), receivers).send


@contender(
    "loop by hand, any keywords",
    kinds=frozenset({"coroutines"}),
    asyncio_only=False,
    note="as one has to write it then",
)
def loop_over_any_keywords(receivers: list[Receiver]) -> Send:
    async def send(sender, **named):
        return [(r, await r(signal=SIGNAL, sender=sender, **named)) for r in receivers]

    return send


@contender(
    "loop by hand, weak",
    kinds=NAMED,
    asyncio_only=False,
    note="weak references, receivers of every kind, errors that name them; for these very arguments",
)
def loop_that_keeps_promises(receivers: list[Receiver]) -> Send:
    parts = [(r.__self__, r.__func__) if ismethod(r) else (r, None) for r in receivers]
    connected = [
        (weakref.ref(thing), function, iscoroutinefunction(r))
        for r, (thing, function) in zip(receivers, parts, strict=True)
    ]
    plain = frozenset({type(None), bool, int, float, str, bytes, list, tuple, dict, set})

    async def send(sender, *, a, b):
        results = []
        for find, function, is_async in connected:
            if (receiver := find()) is None:
                continue
            if function is not None:
                receiver = MethodType(function, receiver)
            try:
                if is_async:
                    response = await receiver(sender=sender, a=a, b=b)
                else:
                    response = receiver(sender=sender, a=a, b=b)
                    if type(response) not in plain and isawaitable(response):
                        response = await response
            except Exception as error:
                error.add_note(f"raised by {receiver!r}")
                raise
            results.append((receiver, response))
        return results

    return send


# peers


AIOSIGNAL_LACKS = "no weak references, senders, sync receivers or results"


@contender("aiosignal", kinds=ASYNC, asyncio_only=False, repeat=send_all_by_name, note=AIOSIGNAL_LACKS)
def aiosignal_with_the_same_keywords(receivers: list[Receiver]) -> Send:
    signal = aiosignal.Signal(None)
    signal.extend(receivers)
    signal.freeze()
    return signal.send


CONTENDERS["aiosignal bare"] = Contender(
    "aiosignal bare",
    aiosignal_with_the_same_keywords,
    ASYNC | NAMED_ASYNC,
    asyncio_only=False,
    note=f"{AIOSIGNAL_LACKS}, nor the signal",
)


def _awaitable(receiver: Receiver) -> Receiver:
    async def call(*args, **named):
        return receiver(*args, **named)

    return call


@contender(
    "blinker",
    kinds=EVERY_KIND | NAMED,
    asyncio_only=False,
    has_order=False,
    note="no order; its receivers do not get the signal",
)
def blinker_send_async(receivers: list[Receiver]) -> Send:
    signal = connect_all(blinker.Signal(), receivers)
    if all(map(asyncio.iscoroutinefunction, receivers)):
        return signal.send_async
    return partial(signal.send_async, _sync_wrapper=_awaitable)


@contender("Django asend", has_order=False, note="sync receivers first, in a thread; a task for each async one")
def django_asend(receivers: list[Receiver]) -> Send:
    return connect_all(django.dispatch.Signal(), receivers).asend


@contender("Django asend_robust", has_order=False, note="as asend")
def django_asend_robust(receivers: list[Receiver]) -> Send:
    return connect_all(django.dispatch.Signal(), receivers).asend_robust


@contender(
    "pyee",
    kinds=EVERY_KIND | NAMED,
    has_order=False,
    note="no weak references, senders or results; a task for each async receiver",
)
def pyee_emit(receivers: list[Receiver]) -> Send:
    emitter = AsyncIOEventEmitter()
    for receiver in receivers:
        emitter.add_listener("event", receiver)

    async def send(sender, **named):
        emitter.emit("event", sender, **named)
        await emitter.wait_for_complete()

    return send


@contender(
    "psygnal", kinds=frozenset({"functions"}), asyncio_only=False, note="sync receivers only, no senders or results"
)
def psygnal_emit(receivers: list[Receiver]) -> Send:
    signal = SignalInstance((object, int, int))
    for receiver in receivers:
        signal.connect(receiver)

    async def send(sender, *, a, b):
        signal.emit(sender, a, b)

    return send


class OrderPaid(asphalt.core.Event):
    def __init__(self, source, topic, sender, *, a, b) -> None:
        super().__init__(source, topic)
        self.sender, self.a, self.b = sender, a, b


class Source:
    order_paid = asphalt.core.Signal(OrderPaid)


def _unpacking(receiver: Receiver) -> Receiver:
    return lambda event: receiver(sender=event.sender, a=event.a, b=event.b)


@contender(
    "asphalt", has_order=False, note="receivers get an event; a task for each async one; no weak references or results"
)
def asphalt_dispatch(receivers: list[Receiver]) -> Send:
    source = Source()
    signal = source.order_paid
    for receiver in receivers:
        signal.connect(_unpacking(receiver))

    async def send(sender, *, a, b):
        await signal.dispatch(sender, a=a, b=b)
        return source

    return send
