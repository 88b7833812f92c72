"""What is called: receivers in two styles, each of several kinds.

*Named* receivers are written as people write them: they name the arguments that they take, and return something. The
others take `**kwargs` and return nothing; that is what every contender can call. All do nothing, so that only the way
to them is measured. Those made with `note` report their calls instead, for the check that all contenders call the same
receivers with the same arguments.
"""

from collections.abc import Callable
from itertools import cycle, islice
from typing import Any, TypeAlias

Note: TypeAlias = Callable[[object, object, object], None]
Receiver: TypeAlias = Callable[..., Any]


def coroutine_function(note: Note | None) -> Receiver:
    async def silent(sender=None, a=None, b=None, **kwargs):
        return None

    async def noting(sender=None, a=None, b=None, **kwargs):
        note(sender, a, b)

    return noting if note else silent


def function(note: Note | None) -> Receiver:
    def silent(sender=None, a=None, b=None, **kwargs):
        return None

    def noting(sender=None, a=None, b=None, **kwargs):
        note(sender, a, b)

    return noting if note else silent


class Silent:
    async def asynchronous(self, sender=None, a=None, b=None, **kwargs):
        return None

    def synchronous(self, sender=None, a=None, b=None, **kwargs):
        return None


class Noting:
    def __init__(self, note: Note) -> None:
        self.note = note

    async def asynchronous(self, sender=None, a=None, b=None, **kwargs):
        self.note(sender, a, b)

    def synchronous(self, sender=None, a=None, b=None, **kwargs):
        self.note(sender, a, b)


def method(note: Note | None) -> Receiver:
    return (Noting(note) if note else Silent()).asynchronous


def sync_method(note: Note | None) -> Receiver:
    return (Noting(note) if note else Silent()).synchronous


def named_coroutine_function(note: Note | None) -> Receiver:
    async def silent(sender, a, b):
        return a

    async def noting(sender, a, b):
        note(sender, a, b)

    return noting if note else silent


def named_function(note: Note | None) -> Receiver:
    def silent(sender, a, b):
        return a

    def noting(sender, a, b):
        note(sender, a, b)

    return noting if note else silent


class NamedSilent:
    async def asynchronous(self, sender, a, b):
        return a

    def synchronous(self, sender, a, b):
        return a


class NamedNoting:
    def __init__(self, note: Note) -> None:
        self.note = note

    async def asynchronous(self, sender, a, b):
        self.note(sender, a, b)

    def synchronous(self, sender, a, b):
        self.note(sender, a, b)


def named_method(note: Note | None) -> Receiver:
    return (NamedNoting(note) if note else NamedSilent()).asynchronous


def named_sync_method(note: Note | None) -> Receiver:
    return (NamedNoting(note) if note else NamedSilent()).synchronous


def choosy(note: Note | None) -> Receiver:
    """A receiver that names less than what a signal declares."""

    async def silent(sender, a):
        return None

    async def noting(sender, a):
        note(sender, a, 2)

    return noting if note else silent


KINDS: dict[str, list[Callable[[Note | None], Receiver]]] = {
    "named coroutines": [named_coroutine_function],
    "named functions": [named_function],
    "named methods": [named_method],
    "named sync methods": [named_sync_method],
    "named mix": [named_coroutine_function, named_function, named_method, named_sync_method],
    "coroutines": [coroutine_function],
    "functions": [function],
    "methods": [method],
    "mixed": [coroutine_function, function, method, sync_method],
    "choosy": [choosy],
    "by turns": [named_coroutine_function, choosy],
}


def make(kind: str, count: int) -> list[Receiver]:
    """Receivers that do nothing."""
    return [maker(None) for maker in islice(cycle(KINDS[kind]), count)]


def make_noting(kind: str, count: int, calls: list[tuple[Any, ...]]) -> list[Receiver]:
    """Receivers that append `(their number, sender, a, b)` to `calls`."""

    def note_as(number: int) -> Note:
        return lambda *arguments: calls.append((number, *arguments))

    return [maker(note_as(number)) for number, maker in enumerate(islice(cycle(KINDS[kind]), count))]
