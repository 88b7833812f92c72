"""Who a relay is: its service, and the instance of it that this process is."""

from __future__ import annotations

import os
import socket
from typing import Final
from weakref import WeakSet

from asignals.relay._envelope import check_name, new_id


class Identity:
    """The names of one relay. In a forked child an instance that was not named by the user has its own name.

    A server that loads the application and then forks its workers makes each relay once: if they shared its instance,
    all of them would own what one of them may own, such as the order of a key.
    """

    def __init__(self, service: str, instance: str | None) -> None:
        self.service: Final = check_name("service", service)
        self.name(_made() if instance is None else check_name("instance", instance))
        if instance is None:
            _MADE_HERE.add(self)

    def name(self, instance: str) -> None:
        """Take another instance's name; `origin` is what envelopes say of where they come from."""
        self.instance = instance
        self.origin = f"{self.service}/{instance}"


_MADE_HERE: Final[WeakSet[Identity]] = WeakSet()  # and not named by the user


def _made() -> str:
    host = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in socket.gethostname())
    return f"{host[:40].strip('-') or 'host'}-{os.getpid()}-{new_id()[-6:]}"


def _rename_in_child() -> None:
    for identity in list(_MADE_HERE):
        identity.name(_made())


if hasattr(os, "register_at_fork"):  # there is no fork on Windows
    os.register_at_fork(after_in_child=_rename_in_child)
