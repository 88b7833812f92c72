"""Whatever is written wrong is refused where it is written, for every parameter: no inside error, no password."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from asignals import Signal
from asignals.relay import (
    Database,
    JetStream,
    Memory,
    RabbitMQ,
    RedisStreams,
    Relay,
    SQLAlchemyInbox,
    SQLAlchemyOutbox,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PASSWORD = "nats://user:secret@host"  # noqa: S105  nobody.s
NO_NUMBERS: list[Any] = [object(), "5", "", b"5", [5], {}, str, True, math.nan, -1, lambda: 5, PASSWORD]
NO_OBJECTS: list[Any] = [5, 0, math.nan, b"x", ["a"], {}, True, False, lambda: 5, object()]
NO_TEXTS: list[Any] = [5, 0, b"x", "", " ", "a b", "a\0b", "\ud800", ["a"], {}, str, object(), PASSWORD]
NO_FLAGS: list[Any] = [5, 0, "", "false", None, [], object(), PASSWORD]
SQLITE = "sqlite+aiosqlite:///never-made.db"


def relay(**options: Any) -> Relay:
    """Make a relay."""
    return Relay(**{"transport": Memory(), "service": "shop", **options})


def export(**options: Any) -> None:
    """Export something."""
    relay().export(**{"signal": Signal(["n"]), "topic": "numbers", **options})


def receive(**options: Any) -> None:
    """Receive something."""
    relay().receive(**{"signal": Signal(["n"]), "topic": "numbers", **options})


def jetstream(**options: Any) -> JetStream:
    """Make an engine of NATS."""
    return JetStream(**{"servers": "nats://127.0.0.1", **options})


def redis(**options: Any) -> RedisStreams:
    """Make an engine of Redis."""
    return RedisStreams(**{"url": "redis://127.0.0.1", **options})


def kafka(**options: Any) -> Any:
    """Make an engine of Kafka; an interpreter may have no wheel of its client."""
    pytest.importorskip("confluent_kafka")
    from asignals.relay import Kafka

    return Kafka(**{"servers": "host:9092", **options})


def stored(kind: Any) -> Any:
    """Make what has tables."""

    def make(**options: Any) -> Any:
        return kind(**{"database": SQLITE, **options})

    make.__name__ = kind.__name__
    return make


NUMBERS: dict[Callable[..., Any], list[str]] = {
    relay: ["limit", "hop_limit", "grace", "publish_timeout"],
    export: ["version"],
    receive: ["retries", "version", "newer_version_timeout", "backoff"],
    jetstream: ["ack_wait", "ack_timeout", "max_age", "dedup_window", "replicas"],
    redis: ["lease", "dedup_window", "max_age", "replicas"],
    stored(Database): ["lease"],
    stored(SQLAlchemyOutbox): ["batch", "keep"],
    stored(SQLAlchemyInbox): ["keep"],
}
OBJECTS: dict[Callable[..., Any], list[str]] = {
    relay: ["transport", "outbox", "inbox"],
    export: ["signal", "codec", "sender_codec"],
    receive: ["signal", "codec", "sender_codec", "upcasters"],
    stored(Database): ["database"],
    stored(SQLAlchemyOutbox): ["database"],
    stored(SQLAlchemyInbox): ["database"],
}
TEXTS: dict[Callable[..., Any], list[str]] = {
    relay: ["service", "instance"],
    export: ["topic"],
    receive: ["topic", "dead_letter"],
    jetstream: ["servers", "stream"],
    redis: ["url", "prefix"],
    kafka: ["servers", "name"],
}
FLAGS: dict[Callable[..., Any], list[str]] = {
    relay: ["strict"],
    receive: ["include_own_service", "allow_no_receivers", "broadcast"],
}


ALLOWED: list[tuple[str, Any]] = [("strict", None), ("upcasters", {})]
ALLOWED += [(parameter, value) for parameter in ("servers", "url") for value in (["a"], PASSWORD)]


@pytest.mark.parametrize(
    ("make", "parameter", "values"),
    [
        pytest.param(make, parameter, values, id=f"{make.__name__}-{parameter}")
        for parameters, values in ((NUMBERS, NO_NUMBERS), (OBJECTS, NO_OBJECTS), (TEXTS, NO_TEXTS), (FLAGS, NO_FLAGS))
        for make, names in parameters.items()
        for parameter in names
    ],
)
def test_a_parameter_of_the_wrong_kind_is_refused(make: Callable[..., Any], parameter: str, values: list[Any]) -> None:
    """By a `TypeError` or `ValueError` of the relay's, in plain words."""
    for value in values:
        if (parameter, value) in ALLOWED:
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            make(**{parameter: value})
        text = str(caught.value)
        assert not isinstance(caught.value, UnicodeError)
        inside = ("not supported between", "not iterable", "has no attribute", "secret")
        assert not any(words in text for words in inside), (value, text)
        text.encode()


@pytest.mark.parametrize("value", [math.inf, 10.0, 1])
@pytest.mark.parametrize(("make", "parameter"), [(receive, "newer_version_timeout"), (jetstream, "max_age")])
def test_what_may_last_for_ever_may_be_infinite(make: Callable[..., Any], parameter: str, value: float) -> None:
    """Other times are finite: no event loop can wait until infinity."""
    make(**{parameter: value})
    with pytest.raises(ValueError, match="finite, not inf"):
        relay(grace=math.inf)


@pytest.mark.parametrize("schema", [5, "", "a\nb", "\ud800", b"x"])
@pytest.mark.parametrize("kind", [Database, SQLAlchemyOutbox, SQLAlchemyInbox])
def test_a_schema_is_a_name(kind: Any, schema: Any) -> None:
    """Of a database schema, and printable: it goes into statements."""
    with pytest.raises(ValueError, match="schema must be the name"):
        kind(SQLITE, schema=schema)


def test_a_sync_engine_is_refused() -> None:
    """With the name of what makes the right one."""
    with pytest.raises(TypeError, match="create_async_engine"):
        SQLAlchemyOutbox(create_engine("sqlite://"))  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(
    ("make", "error", "word"),
    [
        (lambda: RedisStreams("redis://127.0.0.1:6379/first"), ValueError, "number"),
        (lambda: RedisStreams("redis://127.0.0.1", single_connection_client=True), TypeError, "single_connection"),
        (lambda: JetStream("nats://127.0.0.1", allow_reconnect=False), ValueError, "allow_reconnect"),
        (lambda: JetStream("nats://127.0.0.1", max_retries=3), TypeError, "max_retries"),
        (lambda: RabbitMQ("amqp://127.0.0.1", login="app", password="p"), ValueError, "login, password"),  # noqa: S106
    ],
)
def test_options_of_a_client_are_refused_where_they_are_written(make: Any, error: type[Exception], word: str) -> None:
    """Those that it does not have, and those that the engine or its URL decides."""
    with pytest.raises(error, match=word):
        make()
