"""What helps type checkers, at run time: `Signal.checked` and `Event.pass_to`. The types are in tests/typing."""

import copy
import pickle

import anyio
import pytest

from asignals import Event, signal

pytestmark = pytest.mark.anyio


@signal
def paid(sender: str, *, amount: int, currency: str = "EUR") -> None:
    """An order was paid."""


def test_checked_gives_the_receiver_itself():
    """So that it may stand wherever a receiver may."""

    @paid.connect
    @paid.checked
    def ship(sender: str, *, amount: int, currency: str = "EUR") -> str:
        return currency

    assert [each.receiver for each in paid.connections] == [ship]
    assert paid.using(limit=2).checked(ship) is ship
    assert paid.disconnect(ship)


async def test_events_are_passed_to_functions():
    """With the sender by position, as receivers of typed signals have it first, and the arguments by name."""

    def ship(sender: str, *, amount: int, currency: str = "EUR") -> tuple[object, ...]:
        return sender, amount, currency

    async with paid.stream() as events:
        await paid.send("shop", amount=3)
        with anyio.fail_after(60):
            event = await anext(events)
    assert event.pass_to(ship) == ("shop", 3, "EUR")
    with pytest.raises(TypeError, match="unexpected keyword"):
        event.pass_to(lambda sender, *, amount: None)


def test_events_stay_plain_data():
    """An event is copied and pickled as before; `Event[...]` may be written in annotations."""
    event: Event[...] = Event(paid, "shop", {"amount": 3})
    assert copy.copy(event) == event == pickle.loads(pickle.dumps(event))  # noqa: S301  our own
    assert not hasattr(event, "__dict__")
