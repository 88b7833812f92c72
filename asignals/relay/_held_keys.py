"""Which keys are held up here, as an event of theirs waits for its retry and the later ones wait for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from asignals.masking import redacted
from asignals.relay._transport import delay_of

if TYPE_CHECKING:
    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Release

_LONG: Final = 60.0  # seconds after which it is a problem, and no usual retry any more
_SHOWN: Final = 10.0  # seconds for which it is shown after the retry was due, as another instance may have it


class _Held(NamedTuple):
    """The event that holds a key up, since when, and until when that is assumed."""

    event_id: str
    since: float
    until: float


class HeldKeys:
    """Notes keys as this instance sees them."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], _Held] = {}

    def note(self, envelope: Envelope, outcome: float | Release | None) -> None:
        """Note what `handle` has returned for an event that has a key: that it is done, or comes again later."""
        now, place = time.monotonic(), (envelope.topic, str(envelope.key))
        if outcome is None:
            self._held.pop(place, None)
            return
        known = self._held.get(place)
        since = known.since if known is not None and known.event_id == envelope.id else now
        self._held[place] = _Held(envelope.id, since, now + delay_of(outcome) + _SHOWN)

    def _now(self) -> dict[tuple[str, str], _Held]:
        now = time.monotonic()
        self._held = {place: held for place, held in self._held.items() if now < held.until}
        return self._held

    @property
    def count(self) -> int:
        """How many keys are held up now."""
        return len(self._now())

    @property
    def problems(self) -> dict[str, str]:
        """Those that have been held up for long, topic by topic, each with its oldest key."""
        now = time.monotonic()
        worst: dict[str, tuple[float, str, str]] = {}
        for (topic, key), held in self._now().items():
            if now - held.since > _LONG and (topic not in worst or held.since < worst[topic][0]):
                worst[topic] = held.since, key, held.event_id
        return {
            f"keys of {topic!r}": f"later events of key {redacted(key)[:80]!r} have waited for event {event_id}, which"
            f" fails, for {now - since:.0f} s"
            for topic, (since, key, event_id) in worst.items()
        }
