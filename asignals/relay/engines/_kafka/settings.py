"""The settings of librdkafka: which the relay decides, and which are for consumers or producers only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from asignals.masking import redacted
from asignals.relay._settings import check_servers

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULTS: Final = {
    "message.max.bytes": 1_048_588,  # what brokers take by default, and the largest dead letter needs
    "socket.timeout.ms": 8_000,  # a request that is not answered for so long ends its connection
    "socket.keepalive.enable": True,
    "reconnect.backoff.max.ms": 2_000,
}
_OURS: Final = frozenset(
    (
        *("bootstrap.servers", "metadata.broker.list", "group.id", "auto.offset.reset", "error_cb"),
        *("enable.auto.commit", "enable.auto.offset.store", "enable.idempotence", "acks", "request.required.acks"),
        *("delivery.timeout.ms", "message.timeout.ms"),
    )
)  # what the promises rest on
_WITH_UNDERSCORE: Final = ("_cb", "log_level", "default_topic_conf")  # all others of its names are written with dots
# librdkafka warns of settings that are not for the kind of client that is made of them.
CONSUMER_ONLY: Final = (
    *("group.", "session.timeout.", "heartbeat.", "max.poll.", "partition.assignment.", "fetch.", "queued."),
    *("isolation.", "check.crcs", "auto.commit.", "coordinator.", "consume.callback."),
)
PRODUCER_ONLY: Final = (
    *("queue.buffering.", "linger.", "batch.", "compression.", "retries", "partitioner", "sticky.partitioning."),
    *("transactional.", "transaction.", "message.send.max.", "request.timeout.", "enable.gapless.", "dr_"),
)


def check_brokers(servers: str | Sequence[str]) -> str:
    """Write servers as librdkafka takes them; raises `ValueError` for what is a URL, or nothing."""
    text = ",".join(check_servers("Kafka", "host:9092", servers))
    if "://" in text or not all(text.split(",")):
        raise ValueError(
            f"Kafka takes servers such as 'host:9092', not {redacted(text)!r}; engine_from_url takes 'kafka://host:9092'"
        )
    return text


def check_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Give settings by librdkafka's names; raises `ValueError` for those that the relay decides."""
    named = {
        name if name.endswith(_WITH_UNDERSCORE) else name.replace("_", "."): value for name, value in given.items()
    }
    if ours := sorted(_OURS & named.keys()):
        raise ValueError(f"Kafka decides over {', '.join(ours)} by itself, as its promises rest on it")
    return named


def without(settings: dict[str, Any], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """Leave out the settings whose names begin so."""
    return {name: value for name, value in settings.items() if not name.startswith(prefixes)}
