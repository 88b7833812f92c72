"""Signals across processes and machines, at least once: a `Relay`, an engine to carry events, and an outbox.

    relay = Relay(RabbitMQ("amqp://guest:guest@localhost/"), "shop", outbox=SQLAlchemyOutbox(engine))
    relay.export(order_paid, "order.paid")      # and in another process: relay.receive(order_paid, "order.paid")

- Carry: `Relay`, `Health`, `Status`, `TopicFigures`; `current_event`, `ReceivedEvent` and `once`, for receivers.
- Engines, each with its extra: `JetStream` [nats], `RedisStreams` [redis], `RabbitMQ` [rabbitmq], `Kafka` [kafka],
  `Database` [sqlalchemy], `Memory`; `engine_from_url`. For another: `Transport`, `Delivery`, `Handle`, `Release`,
  `Backlog`, `Figures`, `DeadLetters`.
- Store, [sqlalchemy]: `SQLAlchemyOutbox`, `SQLAlchemyInbox`, `table_metadata`; also `Inbox`, `Memo`, `MemoryInbox`.
- On the wire: `Envelope`, `DeadLetter`; `Codec`, `JSONCodec`, `MsgspecCodec`, `PydanticCodec`, `Upcaster`.
- Errors: `AlreadyHandledError`, `BodyError`, `CrashedError`, `EnvelopeError`, `HopLimitError`, `NoReceiversError`,
  `NoSessionError`, `NotHandledError`, `PublishRefusedError`, `SchemaError`.

- Schemas: `asignals.relay.asyncapi` writes them as a document, and says what a change breaks.

asyncio only. Engines and stores are imported when they are first asked for. Each name has its own help:
`help(asignals.relay.Relay.receive)`. The commands: `asignals relay --help`, `asignals worker --help`. Tests:
`asignals.relay.testing`. The docs: https://github.com/asignals/asignals/blob/main/docs/index.md

Whom a relay trusts: whoever may write to the outbox's tables, or publish a topic on the engine, may have that topic's
receivers called, with arguments of their declared types, and nothing else. An event is handled as the topic that the
engine says it came by, never as the one that it names itself. A body is data: nothing is imported or unpickled. What
cannot be read, or says what cannot be, is a dead letter, shown without control characters. Who may publish is the
engine's business: give each service an account that may publish its own topics only. Passwords of URLs are in no log,
error, health or `repr`. Dead letters and the outbox hold arguments as they were sent.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asignals.relay._caller import NotHandledError as NotHandledError
from asignals.relay._codec import BodyError as BodyError
from asignals.relay._codec import Codec as Codec
from asignals.relay._codec import JSONCodec as JSONCodec
from asignals.relay._codec import MsgspecCodec as MsgspecCodec
from asignals.relay._codec import PydanticCodec as PydanticCodec
from asignals.relay._codec import Upcaster as Upcaster
from asignals.relay._current import AlreadyHandledError as AlreadyHandledError
from asignals.relay._current import ReceivedEvent as ReceivedEvent
from asignals.relay._current import current_event as current_event
from asignals.relay._envelope import DeadLetter as DeadLetter
from asignals.relay._envelope import Envelope as Envelope
from asignals.relay._envelope import EnvelopeError as EnvelopeError
from asignals.relay._export import HopLimitError as HopLimitError
from asignals.relay._export import NoSessionError as NoSessionError
from asignals.relay._extras import needs as _needs
from asignals.relay._handler import CrashedError as CrashedError
from asignals.relay._inbox import Inbox as Inbox
from asignals.relay._inbox import Memo as Memo
from asignals.relay._inbox import MemoryInbox as MemoryInbox
from asignals.relay._monitoring.figures import Figures as Figures
from asignals.relay._monitoring.figures import TopicFigures as TopicFigures
from asignals.relay._monitoring.health import Health as Health
from asignals.relay._monitoring.status import Status as Status
from asignals.relay._relay import Relay as Relay
from asignals.relay._runner import NoReceiversError as NoReceiversError
from asignals.relay._transport import Backlog as Backlog
from asignals.relay._transport import DeadLetters as DeadLetters
from asignals.relay._transport import Delivery as Delivery
from asignals.relay._transport import Handle as Handle
from asignals.relay._transport import PublishRefusedError as PublishRefusedError
from asignals.relay._transport import Release as Release
from asignals.relay._transport import SchemaError as SchemaError
from asignals.relay._transport import Transport as Transport
from asignals.relay.engines import ENGINES as _ENGINES
from asignals.relay.engines import engine_from_url as engine_from_url
from asignals.relay.engines.memory import Memory as Memory

if TYPE_CHECKING:
    from asignals.relay._tables import table_metadata as table_metadata
    from asignals.relay.engines.database import Database as Database
    from asignals.relay.engines.jetstream import JetStream as JetStream
    from asignals.relay.engines.kafka import Kafka as Kafka
    from asignals.relay.engines.rabbitmq import RabbitMQ as RabbitMQ
    from asignals.relay.engines.redis import RedisStreams as RedisStreams
    from asignals.relay.inbox import SQLAlchemyInbox as SQLAlchemyInbox
    from asignals.relay.inbox import once as once
    from asignals.relay.outbox import SQLAlchemyOutbox as SQLAlchemyOutbox

_LATE = {  # module, extra
    **{name: (engine.module, engine.extra) for name, engine in _ENGINES.items()},
    "SQLAlchemyInbox": ("asignals.relay.inbox", "sqlalchemy"),
    "SQLAlchemyOutbox": ("asignals.relay.outbox", "sqlalchemy"),
    "once": ("asignals.relay.inbox", "sqlalchemy"),
    "table_metadata": ("asignals.relay._tables", "sqlalchemy"),
}

__all__ = [
    "AlreadyHandledError",
    "Backlog",
    "BodyError",
    "Codec",
    "CrashedError",
    "Database",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "Envelope",
    "EnvelopeError",
    "Figures",
    "Handle",
    "Health",
    "HopLimitError",
    "Inbox",
    "JSONCodec",
    "JetStream",
    "Kafka",
    "Memo",
    "Memory",
    "MemoryInbox",
    "MsgspecCodec",
    "NoReceiversError",
    "NoSessionError",
    "NotHandledError",
    "PublishRefusedError",
    "PydanticCodec",
    "RabbitMQ",
    "ReceivedEvent",
    "RedisStreams",
    "Relay",
    "Release",
    "SQLAlchemyInbox",
    "SQLAlchemyOutbox",
    "SchemaError",
    "Status",
    "TopicFigures",
    "Transport",
    "Upcaster",
    "current_event",
    "engine_from_url",
    "once",
    "table_metadata",
]


if not TYPE_CHECKING:  # a misspelt name is a type checker's error

    def __getattr__(name: str) -> Any:
        if name in _LATE:
            module, extra = _LATE[name]
            with _needs(extra):
                return getattr(import_module(module), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    from asignals.overview.page_help import is_asked_by_help  # noqa: PLC0415  only those who look need it

    if is_asked_by_help():
        return ["__doc__", "__name__", "__path__"]
    return sorted({*globals(), *__all__} - {"TYPE_CHECKING"})
