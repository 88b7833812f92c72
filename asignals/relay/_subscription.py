"""What `Relay.receive` was told about one topic, and whom to call for it, each by a name that outlasts the process."""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asignals._core import bind, registry_of
from asignals.relay._connection_state import jittered
from asignals.relay._export import ExportUid

if TYPE_CHECKING:
    from collections.abc import Callable

    from asignals import Signal
    from asignals._core import Connection, Plan
    from asignals.relay._codec import Codec
    from asignals.relay._envelope import Envelope

logger = logging.getLogger("asignals.relay")

_MAX_NAME: Final = 255  # what the inbox's table takes


class GivenUp(Exception):  # noqa: N818  not raised to anyone: why an event becomes a dead letter
    """No repetition can help."""


class Target(NamedTuple):
    """One that is to be called; `name` is `None` for a stream, which nobody remembers.

    `is_unique` says whether no other receiver of the signal has the name.
    """

    connection: Connection
    name: str | None
    is_unique: bool


class Targets(NamedTuple):
    """Whom of a plan to call for one sender, in order; `muted` counts those who are muted."""

    targets: list[Target]
    muted: int
    plan: Plan


@dataclass(slots=True)
class Subscription:
    """What `Relay.receive` was told about one topic."""

    signal: Signal[..., Any]
    topic: str
    retries: int
    backoff: tuple[float, float]
    dead_letter: str
    version: int
    newer_version_timeout: float
    codec: Codec
    load: Callable[[str | None], Any]
    include_own_service: bool
    allow_no_receivers: bool
    _targets: Targets | None = None
    _warned: set[str] = field(default_factory=set)

    def targets(self, sender: object) -> Targets:
        """Whom to call for a sender; exporting receivers are left out."""
        registry = registry_of(self.signal)
        plan, known = registry.plan or registry.plan_for(sender), self._targets
        if known is not None and known.plan is plan:
            return known
        named = [(each, _name_of(each)) for each in plan.connections if not is_exporter(each)]
        counts = Counter(name for _, name in named)
        here = [Target(each, name, counts[name] == 1) for each, name in named]
        reached = sum(each.is_receiver for each in plan.connections)
        muted = max(0, len(self.signal.receivers_for(sender)) - reached)
        self._warn_of_namesakes(counts)
        self._targets = Targets(here, muted, plan)
        return self._targets

    def read(self, envelope: Envelope) -> dict[str, Any]:
        """Read the arguments of an event; raises `GivenUp` when no repetition will make them readable."""
        try:
            arguments = self.codec.decode(envelope.body, envelope.version)
            return bind(self.signal, None, **arguments)[1]
        except Exception as error:
            raise GivenUp from error

    def pause(self, failures: int) -> float:
        """Seconds to wait after that many failures."""
        return jittered(self.longest_pause(failures))

    def longest_pause(self, failures: int) -> float:
        """Seconds to wait after that many failures, before they are shortened at random."""
        first, most = self.backoff
        return min(most, first * 2.0 ** min(failures - 1, 60))

    def _warn_of_namesakes(self, counts: Counter[str | None]) -> None:
        for name, count in counts.items():
            if count > 1 and name is not None and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "signal %r has %d receivers named %r, which a retry in another process cannot tell apart: when one "
                    "fails there, all are called again; connect each with its own dispatch_uid",
                    self.signal.name,
                    count,
                    name,
                )


def receiver_names(signal: Signal[..., Any]) -> list[str]:
    """Name the receivers that a signal has now, for whatever sender; exporting ones are left out."""
    return [_receiver_name(each) for each in signal.connections if not is_exporter(each)]


def names_for(signal: Signal[..., Any], sender: object) -> tuple[str, ...]:
    """Name the receivers that a send from this sender calls, without exporting ones and streams."""
    plan = registry_of(signal).plan_for(sender).connections
    return tuple(sorted({name for each in plan if not is_exporter(each) and (name := _name_of(each)) is not None}))


def is_exporter(connection: Connection) -> bool:
    """Whether a connection is one that `Relay.export` made."""
    return isinstance(connection.dispatch_uid, ExportUid)


def _name_of(connection: Connection) -> str | None:
    return _receiver_name(connection) if connection.is_receiver else None


def _receiver_name(connection: Connection) -> str:
    """Name a receiver as another process of the service would name it, too."""
    if isinstance(connection.dispatch_uid, str):
        name = connection.dispatch_uid
    else:
        receiver: Any = connection.target()
        named = receiver if hasattr(receiver, "__qualname__") else type(receiver)
        name = f"{named.__module__}.{named.__qualname__}"
    name = name.encode(errors="replace").decode().replace("\0", "?")
    return name if 0 < len(name) <= _MAX_NAME else f"{name[:200]}~{zlib.crc32(name.encode()):08x}"
