"""What does not work and may pass by itself: shown in health for a while, and logged."""

from __future__ import annotations

import logging
import time
from typing import Final, NamedTuple

logger = logging.getLogger("asignals.relay")

_SHOWN: Final = 10.0  # seconds for which a note stays in health after it should have come again
_LOGGED: Final = 60.0  # seconds after which a note that still comes is logged once more


class _Note(NamedTuple):
    """Something that does not work, until when health shows it, and when it was last logged."""

    text: str
    until: float
    logged: float


class Notes:
    """Notes, each by what does not work."""

    def __init__(self) -> None:
        self._notes: dict[str, _Note] = {}

    def add(self, what: str, text: str, again: float = 0.0) -> None:
        """Show it in health until some seconds after it comes `again`, if it does; log it when it is new."""
        now = time.monotonic()
        known = self._notes.get(what)
        logged = known.logged if known is not None and now - known.logged < _LOGGED else now
        if logged == now:
            logger.warning("%s: %s", what, text)
        self._notes[what] = _Note(text, now + again + _SHOWN, logged)

    @property
    def problems(self) -> dict[str, str]:
        """What does not work, by what it is, as far as it was noticed of late."""
        now = time.monotonic()
        return {what: note.text for what, note in self._notes.items() if now < note.until}
