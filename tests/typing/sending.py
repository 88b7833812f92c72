"""Sends of typed signals are held to the stub; those of others take any keywords."""

from collections.abc import Callable
from typing import Any, TypeAlias, assert_type

from asignals import Signal, raise_errors, signal

Receiver: TypeAlias = Callable[..., Any]


class Store:
    pass


@signal
def done(sender: Store, *, toppings: list[str], size: int = 30) -> int:
    """A pizza left the oven."""
    raise NotImplementedError


@signal(name="late")
async def late(sender: object) -> str:
    raise NotImplementedError


async def sends() -> None:
    assert_type(await done.send(Store(), toppings=["olives"]), list[tuple[Receiver, int]])
    assert_type(await done.send_robust(sender=Store(), toppings=[], size=3), list[tuple[Receiver, int | Exception]])
    assert_type(raise_errors(await done.send_robust(Store(), toppings=[])), list[tuple[Receiver, int]])
    assert_type(await late.send(3), list[tuple[Receiver, str]])
    await done.using(limit=3).send(Store(), toppings=[])
    await done.send(Store())  # E: missing argument
    await done.send(Store(), toppings=[], price=3)  # E: wrong name
    await done.send(Store(), toppings=["a"], size="large")  # E: wrong type
    await done.send(3, toppings=["a"])  # E: wrong sender
    await done.send_robust(Store(), size=3)  # E: missing argument
    await done.using(limit=3).send(Store(), size=3)  # E: missing argument
    await late.send(3, anything=1)  # E: wrong name


async def sends_anything() -> None:
    await Signal().send(None, anything=1)
    await Signal(["size"]).send_robust("sender", size=1)
    Signal(3)  # E: not names
    Signal(limit="3")  # E: not a number
