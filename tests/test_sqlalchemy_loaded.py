"""What instances show to receivers after the end, beyond what was loaded into them."""

# ruff: noqa: F811  fixtures are imported, and parameters go by their names

import pytest
from sqlalchemy import ForeignKey, String
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, deferred, mapped_column, relationship
from sqlalchemy_support import User, anyio_backend, engine, listen, nobody_left, place  # noqa: F401  fixtures

from asignals.sqlalchemy import enable_signals, post_save

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    """Models of this file."""

    type_annotation_map = {str: String(20)}  # noqa: RUF012  MariaDB needs lengths


class Member(Base):
    """A model with attributes that need not be set; the database sets none, or one query would load them all."""

    __tablename__ = "loaded_members"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str | None]
    email: Mapped[str | None] = mapped_column("mail")
    logins: Mapped[int | None] = mapped_column(onupdate=1)
    biography: Mapped[str | None] = deferred(mapped_column(String(20)))
    sponsor_id: Mapped[int | None] = mapped_column(ForeignKey("loaded_members.id"))
    sponsor: Mapped["Member | None"] = relationship(remote_side="Member.id")

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "member"}  # noqa: RUF012


class Guest(Member):
    """In the same table."""

    until: Mapped[int | None]

    __mapper_args__ = {"polymorphic_identity": "guest"}  # noqa: RUF012


@pytest.fixture
async def tables(engine):
    """The tables of this file."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)


@pytest.mark.parametrize("expire", [True, False], ids=["expiring", "keeping"])
@pytest.mark.parametrize("on", ["flush", "commit", "rollback"])
async def test_what_nobody_has_set_reads_as_in_the_flush(engine, tables, listen, expire, on):
    """Columns of a new instance that were left out are `None`, by async receivers too; so are those it refers to."""
    seen = []

    async def read(instance, **_):
        if type(instance) is Guest:
            seen.extend((each.email, each.logins) for each in (instance, instance.sponsor))
            seen.append(instance.until)

    async def disturb(session, **_):
        await session.get(Member, 5)

    for uid, receiver in enumerate((read, disturb, read)):
        listen(post_save, receiver, sender=Member, on=on, dispatch_uid=uid)
    maker = enable_signals(async_sessionmaker(engine, expire_on_commit=expire))
    async with maker() as session:
        guest = Guest(id=2, sponsor=Member(id=1))
        session.add(guest)
        await session.flush()
        await (session.rollback() if on == "rollback" else session.commit())
        assert seen == [(None, None), (None, None), None] * 2
        if on == "commit" and not expire:
            assert (guest.email, guest.logins) == (None, None)  # nothing was expired that was not
        if on == "commit":
            await session.refresh(guest)
            assert guest.email is None


async def test_what_a_receiver_takes_out_of_the_session_stays_readable(engine, listen):
    """Whoever it is handed to finds the values, and no session to ask for them."""
    kept = []

    async def keep(instance, session, **_):
        session.expunge(instance)
        kept.append(instance)

    listen(post_save, keep, sender=User, on="commit")
    maker = enable_signals(async_sessionmaker(engine))
    async with maker.begin() as session:
        session.add(User(name="ada"))
    assert [each.name for each in kept] == ["ada"]
