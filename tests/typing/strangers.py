"""What people misspell is an error, and what they write is not."""

from typing import Any  # noqa: I001  the misspelt import stands alone

import asignals
from asignals import Sginal  # noqa: F401  # E: no such name
from asignals import Signal, receiver, signal


@signal
def price(sender: object, *, n: int) -> int:
    """What the order costs; receivers answer with a number."""
    raise NotImplementedError


class Loud(Signal[..., Any]):
    """A subclass."""

    def shout(self) -> str:
        return "!"


def hear(n: int) -> int:
    return n


def takes_any(some: Signal[..., object]) -> None:
    """Typed signals are signals of any responses."""


async def sends() -> None:
    results = await price.send(None, n=3)
    total: int = sum(response for _, response in results)
    text: str = Loud().using(limit=3).shout()
    assert total, text
    takes_any(price)
    takes_any(Loud())
    takes_any(3)  # E: no signal


receiver(price, prioriti=3)  # E: (not ty) no such option
receiver(price, priority=3, dispatch_uid="u", weak=False, replace=True)(hear)
receiver(price, on="comit")  # E: no such phase
price.connected(hear, prority=1)  # E: (not ty) no such option
price.connect(None)  # E: not callable
price.connect(hear, in_thread="yes")  # E: not a limiter
asignals.Sginal()  # E: no such name
