"""The tables of the outbox, the inbox and the `Database` transport, for Alembic and for `asignals relay init`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    func,
)
from sqlalchemy.dialects.mysql import LONGBLOB

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.types import TypeEngine

# Tables with transactions, and texts in which "A" and "a" are two.
_MYSQL: Final[dict[str, Any]] = {
    f"{name}_{option}": value
    for name in ("mysql", "mariadb")
    for option, value in {"engine": "InnoDB", "charset": "utf8mb4", "collate": "utf8mb4_bin"}.items()
}


class _Blob(TypeDecorator[bytes]):
    """Bytes of any length in MariaDB. They are sent as text, for aiomysql 0.3 cannot send bytes with PyMySQL 1.2."""

    impl = LONGBLOB
    cache_ok = True

    def bind_processor(self, _dialect: object) -> Any:
        """Leave out that of the driver, which wants bytes."""
        return lambda value: None if value is None else value.hex()

    def bind_expression(self, bindparam: Any) -> Any:
        return func.unhex(bindparam)


_Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts by itself only in an INTEGER primary key


class Tables:
    """All tables, in one `MetaData`; `schema` is the database schema that holds them (MariaDB: the database).

    `blob` is the type of bytes in MariaDB. Alembic is given one that it can write down without a type of ours.
    """

    def __init__(self, schema: str | None = None, *, blob: type[TypeEngine[bytes]] = _Blob) -> None:
        data = LargeBinary().with_variant(blob(), "mysql", "mariadb")
        self.metadata: MetaData = MetaData(schema=schema)
        self.outbox: Table = Table(
            "asignals_outbox",
            self.metadata,
            Column("id", _Serial, primary_key=True, autoincrement=True),
            Column("key", Text, nullable=True),
            Column("data", data, nullable=False),
            Column("claimed_until", Double, nullable=False, server_default="0"),
            Column("error", Text, nullable=True),
            Column("refused_at", Double, nullable=True),
            # The engine that it is for: relays of several may share the table. `None`: any.
            Column("engine", String(200), nullable=True),
            sqlite_autoincrement=True,
            **_MYSQL,
        )
        # Of refused rows only (MariaDB: all), so that counting them costs nothing and inserting the others no more.
        refused_at = self.outbox.c.refused_at
        is_refused = refused_at.is_not(None)
        Index("asignals_outbox_refused", refused_at, postgresql_where=is_refused, sqlite_where=is_refused)
        self.inbox: Table = Table(
            "asignals_inbox",
            self.metadata,
            Column("event_id", String(64), primary_key=True),
            Column("service", String(200), primary_key=True),
            Column("receiver", String(255), primary_key=True),
            Column("data", data, nullable=True),
            Column("time", Double, nullable=False),
            **_MYSQL,
        )
        Index("asignals_inbox_time", self.inbox.c.time)
        self.subscription: Table = Table(
            "asignals_subscription",
            self.metadata,
            Column("id", _Serial, primary_key=True, autoincrement=True),
            Column("service", String(200), nullable=False),
            Column("topic", String(200), nullable=False),
            UniqueConstraint("service", "topic"),
            sqlite_autoincrement=True,
            **_MYSQL,
        )
        self.event: Table = Table(
            "asignals_event",
            self.metadata,
            Column("seq", _Serial, primary_key=True, autoincrement=True),
            Column("event_id", String(64), nullable=False, unique=True),
            Column("topic", String(200), nullable=False),
            Column("lane", BigInteger, nullable=True),
            Column("data", data, nullable=False),
            Column("time", Double, nullable=False),
            sqlite_autoincrement=True,
            **_MYSQL,
        )
        Index("asignals_event_time", self.event.c.time)
        # No index on available_at: an update of it alone then rewrites no index (PostgreSQL's HOT).
        # A lane is a key's number. Of the deliveries of one lane the first does not wait, all others do; the index for
        # claiming begins with that, so those that wait are not even looked at.
        self.delivery: Table = Table(
            "asignals_delivery",
            self.metadata,
            Column("subscription", BigInteger, primary_key=True, autoincrement=False),
            Column("waits", Boolean, primary_key=True),
            Column("seq", BigInteger, primary_key=True, autoincrement=False),
            Column("lane", BigInteger, nullable=True),
            Column("available_at", Double, nullable=False),
            Column("attempts", Integer, nullable=False),
            # Whether a consumer holds it until then; else it is a retry that is due then.
            Column("is_held", Boolean, nullable=False, server_default=false()),
            **_MYSQL,
        )
        delivery = self.delivery.c
        has_lane = delivery.lane.is_not(None)
        lane = delivery.subscription, delivery.lane, delivery.waits, delivery.seq
        Index("asignals_delivery_lane", *lane, postgresql_where=has_lane, sqlite_where=has_lane)
        self.instance: Table = Table(
            "asignals_instance",
            self.metadata,
            Column("subscription", BigInteger, primary_key=True, autoincrement=False),
            Column("instance", String(200), primary_key=True),
            Column("expires_at", Double, nullable=False),
            **_MYSQL,
        )
        self.dead: Table = Table(
            "asignals_dead",
            self.metadata,
            Column("id", _Serial, primary_key=True, autoincrement=True),
            Column("queue", String(200), nullable=False),
            Column("letter_id", String(300), nullable=False),
            Column("data", data, nullable=False),
            UniqueConstraint("queue", "letter_id"),
            sqlite_autoincrement=True,
            **_MYSQL,
        )


PARTS: Final = {
    "outbox": ("outbox",),
    "inbox": ("inbox",),
    "engine": ("subscription", "event", "delivery", "instance", "dead"),
}


def tables_of(tables: Tables, parts: Collection[str]) -> list[Table]:
    """Give the tables that some parts need: of `"outbox"`, `"inbox"`, `"engine"`."""
    return [getattr(tables, name) for part in parts for name in PARTS[part]]


def table_metadata(schema: str | None = None, *, only: Collection[str] | None = None) -> MetaData:
    """Give a `MetaData` with the tables, for the `target_metadata` of Alembic.

    Alembic takes a list: `target_metadata = [Base.metadata, asignals.relay.table_metadata(only=["outbox", "inbox"])]`.
    `only` names the parts whose tables are wanted: `"outbox"`, `"inbox"`, and `"engine"` for the `Database` engine.

    Raises `ValueError` for another part.
    """
    if only is None:
        return Tables(schema, blob=LONGBLOB).metadata
    if isinstance(only, str) or not set(only) <= set(PARTS):
        raise ValueError(f"only is a collection of {', '.join(map(repr, PARTS))}, not {only!r}")
    made = Tables(schema, blob=LONGBLOB)
    wanted = tables_of(made, only)
    for table in list(made.metadata.tables.values()):
        if table not in wanted:
            made.metadata.remove(table)
    return made.metadata
