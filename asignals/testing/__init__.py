"""Test code that sends: see what was sent, keep receivers out of it, and leave no connection behind.

    with capture(order_paid) as sent:
        await checkout(basket)
    assert sent.only.amount == 42

Everything here is undone at the end of its block, also when the block raises, nests, and is safe in concurrent tasks
and in threads. What changes signals for a block (`muted`, `replaced`, `swap_receivers`, `restored`) decorates tests as
well. The fixtures of `asignals.pytest_plugin` are the same for pytest.
"""

from asignals.testing._block import Block as Block
from asignals.testing._blocks import muted as muted
from asignals.testing._blocks import replaced as replaced
from asignals.testing._blocks import restored as restored
from asignals.testing._blocks import swap_receivers as swap_receivers
from asignals.testing._capture import ANY as ANY
from asignals.testing._capture import Capture as Capture
from asignals.testing._capture import ModelEvent as ModelEvent
from asignals.testing._capture import capture as capture

__all__ = ["ANY", "Block", "Capture", "ModelEvent", "capture", "muted", "replaced", "restored", "swap_receivers"]
