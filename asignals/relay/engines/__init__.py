"""What carries events: one module for each engine, of one shape: connecting, publishing, consuming, dead letters.

`asignals.relay` gives the classes, each of which needs its own extra only. A further engine is a module with a class
that satisfies `asignals.relay.Transport`, and its line in `ENGINES`.

All of them carry events at least once, keep the topics of a service apart, give back what an instance cannot handle,
keep dead letters, count the backlog, and broadcast. What differs:

============  ====================  =====================  ============================================================
engine        an id that comes      retries wait           know this
              twice is
============  ====================  =====================  ============================================================
JetStream     taken once (120 s)    in the server          a stream's `max_age` removes events that nobody has handled
RedisStreams  taken once (60 s)     in the consumer        keeps all only with `appendfsync always`, and at a failover
                                                           with `replicas=1`; 10,000 retries
RabbitMQ      delivered twice       in the server          the backlog does not count what consumers hold
Kafka         delivered twice       in the consumer        what is given back stays until its instance leaves; 10,000
                                                           retries; tested on a mock cluster, which deletes no groups
Database      taken once (120 s)    in the table           SQLite has one writer at a time, on one machine
Memory        taken once            in this process        is gone with the process
============  ====================  =====================  ============================================================

All of them hand over the events of one key in a topic in the order of publishing, one at a time, whichever instances of
the service there are; a retry holds up its own key only. Of each, `docs/howto/order.md` says how. RabbitMQ and Kafka
need an inbox that is given to the relay to skip an id that comes twice.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from asignals.masking import redacted
from asignals.relay._extras import needs

if TYPE_CHECKING:
    from asignals.relay._transport import Transport


class Engine(NamedTuple):
    """Where an engine's class is, the extra that brings what it needs, and the schemes of its URLs."""

    module: str
    extra: str
    schemes: tuple[str, ...]


ENGINES: Final = {
    "Database": Engine("asignals.relay.engines.database", "sqlalchemy", ("postgresql", "postgres", "sqlite")),
    "JetStream": Engine("asignals.relay.engines.jetstream", "nats", ("nats", "tls", "ws", "wss")),
    "Kafka": Engine("asignals.relay.engines.kafka", "kafka", ("kafka",)),
    "Memory": Engine("asignals.relay.engines.memory", "", ("memory",)),
    "RabbitMQ": Engine("asignals.relay.engines.rabbitmq", "rabbitmq", ("amqp", "amqps")),
    "RedisStreams": Engine("asignals.relay.engines.redis", "redis", ("redis", "rediss", "unix")),
}


_SEVERAL: Final = ("JetStream", "RabbitMQ")  # that take several URLs


def engine_class(name: str) -> Any:
    """Import an engine's class; the `ModuleNotFoundError` of one whose package is missing names the extra."""
    engine = ENGINES[name]
    with needs(engine.extra):
        return getattr(import_module(engine.module), name)


def engine_from_url(url: str, **options: Any) -> Transport:
    """Make the engine that a URL names, for programs that get theirs from the environment.

    `nats://…`, `redis://…`, `amqp://…`, `kafka://host:9092,other:9092`, `postgresql://…`, `sqlite:///file`, `memory://`.
    Of a cluster of NATS or RabbitMQ several, with commas: `nats://host,nats://other`; Redis by Sentinel:
    `redis+sentinel://host:26379,other:26379/service`.
    `options` are those of the engine's class.

    Raises:
        TypeError: `url` is no string, or the engine has no such option.
        ValueError: no engine has such URLs.
        ModuleNotFoundError: the engine's package is not installed; the message names the extra.
    """
    if not isinstance(url, str):
        raise TypeError(f"engine_from_url takes a URL as a string, not {type(url).__name__}")
    scheme, is_url, rest = url.partition("://")
    plain = scheme.partition("+")[0].lower()  # without SQLAlchemy's driver
    for name, engine in ENGINES.items():
        if is_url and plain in engine.schemes:
            if name == "Memory":
                return engine_class(name)(**options)  # type: ignore[no-any-return]  # the class is found by its name
            servers = re.split(r",(?=\w+://)", url) if name in _SEVERAL else [url]
            address = rest.rstrip("/") if name == "Kafka" else servers if len(servers) > 1 else url
            return engine_class(name)(address, **options)  # type: ignore[no-any-return]
    known = ", ".join(f"{scheme}://" for engine in ENGINES.values() for scheme in engine.schemes)
    raise ValueError(f"no engine for {redacted(url)!r}: the known ones begin with {known}")
