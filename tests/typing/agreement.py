"""Forty lines that are right and forty that are wrong, on which mypy, pyright, ty and pyrefly agree."""

from collections.abc import Awaitable
from typing import Any, assert_type

from asignals import Background, Connection, Event, Signal, monitor, receiver, signal, stream
from asignals.relay import Relay
from asignals.relay.engines.memory import Memory
from asignals.sqlalchemy import post_save
from asignals.testing import ANY, capture, muted, replaced, restored, swap_receivers


class Shop: ...


class Order: ...


class User: ...


@signal
def paid(sender: Shop, *, amount: int, currency: str = "EUR") -> bool:
    """An order was paid."""
    raise NotImplementedError


@signal(name="shop.shipped")
async def shipped(sender: Shop, *, order: Order) -> None: ...


loose = Signal()  # ok
declared = Signal(["amount"], name="shop.declared", limit=3)  # ok
Signal("amount", limit="3")  # E: not a number
Signal(name=3)  # E: not a name
Signal(task_group=3)  # E: no factory

shop = Shop()


def book(amount: int, **named: Any) -> None: ...


async def ship(sender: Shop, *, amount: int, currency: str = "EUR") -> int:
    return amount


async def sends() -> None:
    await paid.send(shop, amount=42)  # ok
    await paid.send(sender=shop, amount=42, currency="USD")  # ok
    await paid.send_robust(shop, amount=42)  # ok
    await paid.using(limit=3).send(shop, amount=42)  # ok
    await loose.send(None, anything=1)  # ok
    await declared.send("shop", amount=1)  # ok
    await shipped.send(shop, order=Order())  # ok
    responses: list[bool] = [response for _, response in await paid.send(shop, amount=1)]  # ok
    await paid.send(shop)  # E: no amount
    await paid.send(shop, amonut=42, amount=1)  # E: misspelt
    await paid.send(shop, amount="42")  # E: not a number
    await paid.send("shop", amount=42)  # E: not a shop
    await paid.send(shop, 42)  # E: by name only
    await paid.send_robust(shop, amount=42, currency=3)  # E: not a string
    await paid.using(limit=3).send(shop)  # E: no amount
    await shipped.send(shop, order=shop)  # E: not an order
    texts: list[str] = [response for _, response in await paid.send(shop, amount=1)]  # E: bools
    print(responses, texts)


paid.connect(book)  # ok
paid.connect(book, sender=shop, weak=False, dispatch_uid="book", priority=3)  # ok
paid.connect(ship, timeout=3.0, once=True)  # ok
paid.connect(book, in_thread=True, replace=True)  # ok
paid.connect(3)  # E: cannot be called
paid.connect(book, prioriti=3)  # E: (not ty) misspelt
paid.connect(book, priority="high")  # E: not a number
paid.connect(book, timeout="3")  # E: not a number
paid.connected(book, prority=1)  # E: (not ty) misspelt
paid.disconnect(book, shop, uid=3)  # E: misspelt


@receiver([paid, declared], sender=[shop], priority=2, weak=False)  # ok
def decorated(amount: int, **named: object) -> str:
    return str(amount)


@paid.connect(priority=1)  # ok
def with_options(amount: int) -> str:
    return str(amount)


assert_type(decorated(3), str)  # ok
assert_type(with_options(3), str)  # ok
decorated("3")  # E: not a number
with_options(amount="3")  # E: not a number
receiver(paid, prioriti=3)  # E: (not ty) misspelt
receiver("paid")  # E: not a signal


def checks_name(sender: Shop, *, amonut: int, currency: str = "EUR") -> None: ...


def checks_type(sender: Shop, *, amount: str, currency: str = "EUR") -> None: ...


def checks_default(sender: Shop, *, amount: int, currency: str) -> None: ...


def takes_the_rest(sender: object, *, amount: int, **named: Any) -> None: ...


paid.connect(paid.checked(ship), priority=3)  # ok
paid.connect(paid.checked(takes_the_rest))  # ok
loose.connect(loose.checked(book))  # ok
coming: Awaitable[int] = paid.checked(ship)(shop, amount=3)  # ok
paid.connect(paid.checked(checks_name))  # E: never sent
paid.connect(paid.checked(checks_type))  # E: another type
paid.connect(paid.checked(checks_default))  # E: always sent, but not known to be


def saved(sender: type[User], instance: User, created: bool, **named: Any) -> str:
    return ""


async def saved_later(instance: User, **named: Any) -> None: ...


def saved_another(instance: Order, **named: Any) -> None: ...


post_save.connect(saved, sender=User, on="commit", priority=1)  # ok
post_save.connected(saved, User, on="rollback")  # ok
post_save.of(User).connect(saved)  # ok
post_save.of(User).connect(saved_later, on="commit", timeout=3)  # ok
assert_type(post_save.of(User).connect(saved)(User()), str)  # ok
post_save.connect(saved, sender=User, on="comit")  # E: misspelt
post_save.connected(saved, prority=1)  # E: misspelt
post_save.of(User).connect(saved_another)  # E: instances of another class
post_save.of(User).connect(saved, on="comit")  # E: misspelt
post_save.of(User()).connect(saved)  # E: not a class

relay = Relay(Memory(), "shop", limit=3)  # ok
relay.export(paid, "shop.paid", key="amount", version=2)  # ok
relay.receive(paid, "shop.paid", retries=3, backoff=(1.0, 60.0))  # ok
Relay("memory", "shop")  # E: not an engine
relay.export(paid, "shop.paid", vresion=2)  # E: misspelt
relay.export("paid", "shop.paid")  # E: not a signal
relay.receive(paid, topic=3)  # E: not a name
relay.receive(paid, "shop.paid", backoff=1.0)  # E: not a pair

with capture(paid, shipped, sender=shop, where=lambda event: event.amount > 1) as sent:  # ok
    event: Event = sent.assert_sent(shop, amount=ANY, signal=paid)  # ok
    sent.assert_order(paid, shipped)  # ok
    sent.assert_order("paid")  # E: not a signal
    sent.assert_not_sent(signal="paid")  # E: not a signal
capture("paid", everywere=True)  # E: misspelt


@muted(paid, shipped)  # ok
async def test_muted(number: int) -> int:
    return number


async def uses() -> None:
    assert_type(await test_muted(3), int)  # ok
    await test_muted("3")  # E: not a number
    async with Background(limit=3) as background:  # ok
        await background.send(paid, shop, amount=3)  # ok
        await background.send(paid, shop, amount="3")  # E: not a number
    async with paid.stream(where=lambda event: event["amount"] > 1, overflow="error") as events:  # ok
        first: Event = await anext(events)  # ok
        number: int = await (await anext(events)).pass_to(ship)  # ok
        (await anext(events)).pass_to(checks_name)  # E: the signal has no such argument
        (await anext(events)).pass_to(checks_type)  # E: another type
        (await paid.wait(where=lambda event: event.amount > 1)).pass_to(takes_the_rest)  # ok
        (await shipped.wait()).pass_to(ship)  # E: the arguments of another signal
    paid.stream(overflow="eror")  # E: misspelt
    async with stream(paid, shipped, buffer=3) as merged:  # ok
        await first.pass_to(ship)  # ok
        print(first, merged, number)


with replaced(paid, ship) as mock, restored(paid), swap_receivers(paid, book):  # ok
    assert mock
with monitor(lambda report: print(report.duration)):  # ok
    connection: Connection = paid.connections[0]  # ok
monitor(3)  # E: cannot be called
connection.priority = 3  # E: read-only
