"""Signals across processes and machines, at least once: a `Relay`, an engine to carry events, and an outbox.

asyncio only. The engines and the outbox are imported when they are first asked for, so each needs its own extra only:
`asignals[nats]` (`JetStream`), `asignals[redis]` (`RedisStreams`), `asignals[faststream]` (`FastStreamTransport`),
`asignals[sqlalchemy]` (`Database`, `SQLAlchemyOutbox`, `SQLAlchemyInbox`, `metadata`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asignals._extra import needs as _needs
from asignals.relay._codec import BodyError as BodyError
from asignals.relay._codec import Codec as Codec
from asignals.relay._codec import JSONCodec as JSONCodec
from asignals.relay._codec import MsgspecCodec as MsgspecCodec
from asignals.relay._codec import PydanticCodec as PydanticCodec
from asignals.relay._envelope import DeadLetter as DeadLetter
from asignals.relay._envelope import Envelope as Envelope
from asignals.relay._envelope import EnvelopeError as EnvelopeError
from asignals.relay._export import HopLimitError as HopLimitError
from asignals.relay._inbox import Inbox as Inbox
from asignals.relay._inbox import Memo as Memo
from asignals.relay._inbox import MemoryInbox as MemoryInbox
from asignals.relay._relay import Health as Health
from asignals.relay._relay import Relay as Relay
from asignals.relay._relay import Status as Status
from asignals.relay._transport import Backlog as Backlog
from asignals.relay._transport import DeadLetters as DeadLetters
from asignals.relay._transport import Delivery as Delivery
from asignals.relay._transport import Handle as Handle
from asignals.relay._transport import PublishRefusedError as PublishRefusedError
from asignals.relay._transport import Transport as Transport
from asignals.relay.memory import Memory as Memory

if TYPE_CHECKING:
    from asignals.relay._tables import metadata as metadata
    from asignals.relay.database import Database as Database
    from asignals.relay.faststream import FastStreamTransport as FastStreamTransport
    from asignals.relay.inbox import SQLAlchemyInbox as SQLAlchemyInbox
    from asignals.relay.jetstream import JetStream as JetStream
    from asignals.relay.outbox import SQLAlchemyOutbox as SQLAlchemyOutbox
    from asignals.relay.redis import RedisStreams as RedisStreams

_LATE = {  # module, extra
    "Database": ("asignals.relay.database", "sqlalchemy"),
    "FastStreamTransport": ("asignals.relay.faststream", "faststream"),
    "JetStream": ("asignals.relay.jetstream", "nats"),
    "RedisStreams": ("asignals.relay.redis", "redis"),
    "SQLAlchemyInbox": ("asignals.relay.inbox", "sqlalchemy"),
    "SQLAlchemyOutbox": ("asignals.relay.outbox", "sqlalchemy"),
    "metadata": ("asignals.relay._tables", "sqlalchemy"),
}

__all__ = [
    "Backlog",
    "BodyError",
    "Codec",
    "Database",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "Envelope",
    "EnvelopeError",
    "FastStreamTransport",
    "Handle",
    "Health",
    "HopLimitError",
    "Inbox",
    "JSONCodec",
    "JetStream",
    "Memo",
    "Memory",
    "MemoryInbox",
    "MsgspecCodec",
    "PublishRefusedError",
    "PydanticCodec",
    "RedisStreams",
    "Relay",
    "SQLAlchemyInbox",
    "SQLAlchemyOutbox",
    "Status",
    "Transport",
    "metadata",
]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        module, extra = _LATE[name]
        with _needs(extra):
            return getattr(import_module(module), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
