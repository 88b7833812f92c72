"""Passwords stay in the configuration, whatever is logged, raised or shown."""

from __future__ import annotations

from typing import Any

import pytest

from asignals.masking import redacted, said
from asignals.relay import (
    Database,
    JetStream,
    RabbitMQ,
    RedisStreams,
    SQLAlchemyInbox,
    SQLAlchemyOutbox,
    engine_from_url,
)
from asignals.relay._connection_state import ConnectionState


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("amqp://guest:secret@127.0.0.1/", "amqp://guest:***@127.0.0.1/"),
        ("nats://secret@host:4222", "nats://***@host:4222"),
        ("redis://:se/cr@et@host/0", "redis://:***@host/0"),
        ("postgresql+asyncpg://u:secret@h/db?password=secret&x=1", "postgresql+asyncpg://u:***@h/db?password=***&x=1"),
        ("['nats://a:secret@c', 'nats://d:secret@e']", "['nats://a:***@c', 'nats://d:***@e']"),
        ("nats://a:secret@c,nats://d:secret@e", "nats://a:***@c,nats://d:***@e"),
        ("host=x password=secret dbname=y", "host=x password=*** dbname=y"),
        ("{'sasl.password': 'secret', 'a': 1}", "{'sasl.password': ***, 'a': 1}"),
        ('{"api_key": "secret"}', '{"api_key": ***}'),
        ("token=secret; next", "token=***; next"),
        ("{'password': b'secret'}", "{'password': ***}"),
        ("access_key=secret pass=secret", "access_key=*** pass=***"),
        ("Authorization: Bearer secret", "Authorization: ***"),
        ("asignals --password secret worker", "asignals --password *** worker"),
        ("//u:secret@h/db", "//u:***@h/db"),
        ("key sk_live_secret1234 refused", "key *** refused"),
        ("-----BEGIN PRIVATE KEY----- secret -----END PRIVATE KEY----- x", "*** x"),
        ("user:secret@127.0.0.1:4222", "user:***@127.0.0.1:4222"),
        ("compass=1 passed: 5, bypass=x a:b", "compass=1 passed: 5, bypass=x a:b"),
        ("at 12:30:05 asignals/x.py:5", "at 12:30:05 asignals/x.py:5"),
        ("Connect call failed ('127.0.0.1', 4222)", "Connect call failed ('127.0.0.1', 4222)"),
        ("redis://host/0 is away; user@mail says so", "redis://host/0 is away; user@mail says so"),
    ],
)
def test_what_is_secret_is_hidden_and_nothing_else(text: str, shown: str) -> None:
    """In URLs, settings and messages; hosts and names stay readable."""
    assert redacted(text) == shown


def test_control_characters_are_escaped() -> None:
    """One line stays one line, no terminal is told anything, and nothing turns the direction of writing."""
    assert redacted("a\nb\x1b[31m\u202ec\u2028\ud800\x9b") == "a\\nb\\x1b[31m\\u202ec\\u2028\\ud800\\x9b"


def test_an_error_without_a_text_is_named() -> None:
    """Its kind says more than nothing."""
    assert said(TimeoutError()) == "TimeoutError: no answer in time"
    assert said(ConnectionResetError()) == "ConnectionResetError"
    assert said(ValueError("at nats://a:b@c")) == "ValueError: at nats://a:***@c"


def test_what_is_known_of_a_connection_shows_no_password(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the log, nor what health is told."""
    state = ConnectionState("NATS (nats://a:secret@c)")
    state.lost(OSError("nats://a:secret@c is away"))
    state.restored()
    state.lost(OSError("nats://a:secret@c is away"))
    assert "secret" not in f"{caplog.text} {state.problem} {state.name}"
    assert "NATS (nats://a:***@c)" in caplog.text


ENGINES: list[tuple[Any, str]] = [
    (JetStream, "nats://user:secret@127.0.0.1:4222"),
    (RedisStreams, "redis://user:secret@127.0.0.1:6379"),
    (RabbitMQ, "amqp://user:secret@127.0.0.1:5672/"),
    (Database, "postgresql+asyncpg://user:secret@127.0.0.1/test"),
]
OTHERS: list[tuple[Any, Any]] = [
    (JetStream, "user:secret@127.0.0.1:4222"),
    (JetStream, ["nats://secret@127.0.0.1:4222", "user:secret@127.0.0.1:4223"]),
    (RedisStreams, "redis://127.0.0.1?password=secret"),
    (Database, "postgresql+asyncpg://127.0.0.1/test?user=u&password=secret"),
    (SQLAlchemyOutbox, "mariadb+aiomysql://user:secret@127.0.0.1/test"),
    (SQLAlchemyInbox, "mysql+asyncmy://user:secret@127.0.0.1/test"),
]


@pytest.mark.parametrize(("engine", "url"), ENGINES)
def test_no_engine_shows_its_password(engine: Any, url: str) -> None:
    """Neither its repr, nor the name of its connection."""
    made = engine(url)
    assert "secret" not in f"{made!r} {made} {made.connection_state.name}"
    assert type(made) is type(engine_from_url(url))


@pytest.mark.parametrize(("part", "url"), OTHERS)
def test_a_password_may_be_written_in_other_places(part: Any, url: Any) -> None:
    """In the query, before a host without a scheme, in a list, for the outbox and the inbox."""
    made = part(url)
    name = made.connection_state.name if hasattr(made, "connection_state") else ""
    assert "secret" not in f"{made!r} {made} {name}"


@pytest.mark.parametrize("url", ["mysql://u:secret@h/db", "nats", "http://u:secret@h", "", "://u:secret@h"])
def test_a_url_of_no_engine_is_refused_without_its_password(url: str) -> None:
    """With the schemes that there are."""
    with pytest.raises(ValueError, match="the known ones begin with") as caught:
        engine_from_url(url)
    assert "secret" not in str(caught.value)


def test_a_url_without_a_driver_gets_one() -> None:
    """The first that is installed."""
    made = engine_from_url("postgresql://user@127.0.0.1/test")
    assert isinstance(made, Database)
    assert made.engine.dialect.driver in ("asyncpg", "psycopg")


def test_a_url_is_a_string() -> None:
    """An engine that is given where a URL is wanted is refused by its kind."""
    with pytest.raises(TypeError, match="not RabbitMQ"):
        engine_from_url(RabbitMQ("amqp://h/"))  # type: ignore[arg-type]  # what is tested
