"""What whoever is on call types: `asignals relay status`, `tail`, `purge` and `replay`, on every engine."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import pty
import signal as signals
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import ENGINES, World, free_port, until, world
from sqlalchemy import text
from typer.testing import CliRunner

from asignals import Signal
from asignals.cli import app
from asignals.relay import (
    Database,
    DeadLetter,
    Delivery,
    Envelope,
    JetStream,
    Memo,
    Memory,
    RabbitMQ,
    RedisStreams,
    Relay,
    SQLAlchemyInbox,
    SQLAlchemyOutbox,
    Status,
    TopicFigures,
)
from asignals.relay import _dead_letters as dead_letters
from asignals.relay import inbox as inboxes
from asignals.relay import outbox as outboxes
from asignals.relay._cli import progress, status_text, tail
from asignals.relay._cli.look import Look

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(params=[*ENGINES, "kafka"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world of its own for every test, on every engine."""
    async with world(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def on_target(monkeypatch: pytest.MonkeyPatch) -> Callable[[Relay], str]:
    """Make a relay a target of commands."""

    def add(relay: Relay) -> str:
        module: Any = ModuleType("oncall_target")
        module.relay = relay
        monkeypatch.setitem(sys.modules, "oncall_target", module)
        monkeypatch.setattr(sys, "path", list(sys.path))
        return "oncall_target:relay"

    return add


async def command(*arguments: str, code: int = 0, columns: int = 60) -> str:
    """Run one command, with a loop of its own in a thread, and give what it wrote to stdout."""
    result = await asyncio.to_thread(
        CliRunner().invoke, app, ["relay", *arguments], env={"COLUMNS": str(columns)}, catch_exceptions=False
    )
    assert result.exit_code == code, result.output
    return str(result.stdout)


def billing_on(transport: Any, **options: Any) -> Relay:
    relay = Relay(transport, "billing", **options)
    relay.receive(Signal(["amount"], name="into"), "numbers")
    return relay


async def test_status_shows_every_topic_in_sixty_columns_and_as_json(
    engine: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of all services, dead letters by error; what the engine cannot tell is a dash, and a line says so."""
    monkeypatch.setenv("COLUMNS", "60")
    transport = engine.open()
    await transport.add_service("billing", ["numbers"])
    await transport.add_service("shipping", ["numbers"])
    await transport.publish_many([Envelope("numbers", b"1"), Envelope("numbers", b"2")])
    for error in ("KeyError: a", "KeyError: b", "ValueError: \x1b[2J"):
        await transport.put_dead_letter("dlq.billing", DeadLetter(error.encode(), "billing", error))
    relay = billing_on(engine.open())
    # The mock cluster lists no groups without members.
    look = Look(relay, "billing" if engine.name == "kafka" else None, 10.0)
    status = await look.once()
    lines = look.lines(status, as_json=False)
    assert max(map(len, lines)) <= 60
    assert lines[:3] == ["service  billing", "outbox   –", "backlog  2"]  # noqa: RUF001  an en dash is meant
    assert lines[4:7] == ["dead     3 in dlq.billing", "            2  KeyError", "            1  ValueError"]
    [row, *_] = [line.split() for line in lines if line.startswith("numbers")]
    assert row[:2] == ["numbers", "2"]
    assert "\x1b" not in "".join(lines)
    missing = {"rabbitmq": "oldest, in flight", "kafka": "in flight, retries"}.get(engine.name)
    assert (f"does not tell: {missing}" in " ".join(lines)) is (missing is not None)
    [told] = map(json.loads, look.lines(status, as_json=True))
    found = {(one["service"], one["topic"]): one for one in told["topics"]}
    assert found["billing", "numbers"]["backlog"] == 2
    if engine.name != "kafka":
        assert found["shipping", "numbers"]["backlog"] == 2
    assert found["billing", "numbers"]["in_flight"] == (None if missing else 0)
    assert (told["service"], told["backlog"], told["outbox"], told["problems"]) == ("billing", 2, None, {})
    assert told["dead"] == {"dlq.billing": 3}
    assert told["errors"] == {"dlq.billing": {"KeyError": 2, "ValueError": 1}}
    assert told["ok"] is False


async def test_a_status_without_trouble_passes_its_check(on_target: Callable[[Relay], str]) -> None:
    """Exit status 0, though nothing runs: nothing waits."""
    memory = Memory()
    target = on_target(billing_on(memory))
    await command("init", target)
    await command("status", target, "--check")
    await memory.publish_many([Envelope("numbers", b"1")])
    await command("status", target, "--check", code=3)


@asynccontextmanager
async def silent() -> AsyncIterator[int]:
    """A server that takes connections and says nothing; gives its port."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield server.getsockname()[1]


# redis-py leaves the socket to the garbage collector when connecting is cut short.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("url", "make"),
    [
        ("nats://me:hunter2@127.0.0.1:{port}", JetStream),
        ("redis://me:hunter2@127.0.0.1:{port}/0", RedisStreams),
        ("amqp://me:hunter2@127.0.0.1:{port}/", RabbitMQ),
        ("postgresql+asyncpg://me:hunter2@127.0.0.1:{port}/test", Database),
    ],
    ids=["nats", "redis", "rabbitmq", "postgres"],
)
@pytest.mark.parametrize("is_there", [True, False], ids=["silent", "refused"])
async def test_a_server_that_does_not_answer_is_named(
    url: str, make: Any, is_there: Any, on_target: Callable[[Relay], str]
) -> None:
    """With its address, without its password, how long was waited; the exit status is 1, and the rest is shown."""
    pytest.importorskip("asyncpg")
    async with silent() as port:
        target = on_target(billing_on(make(url.format(port=port if is_there else free_port()))))
        begun = time.monotonic()
        shown = " ".join((await command("status", target, "--timeout", "2", code=1)).split())
    gc.collect()  # now, and not in another test
    assert time.monotonic() - begun < 60
    assert "? no answer from" in shown
    assert "127.0.0.1:" in shown
    assert "(after " in shown
    assert "hunter2" not in shown
    assert "backlog ?" in shown


async def test_a_long_topic_has_a_line_of_its_own(on_target: Callable[[Relay], str]) -> None:
    """The columns stay where they are."""
    memory, name = Memory(), "a.topic.that.is.much.longer.than.its.column"
    await memory.add_service("billing", [name, "b"])
    lines = (await command("status", on_target(billing_on(memory)))).splitlines()
    at = lines.index(name)
    assert lines[at + 1].split() == ["0", "0s", "0", "0", "0"]
    assert len(lines[at + 1]) == len(lines[at + 2]) <= 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.4, "59s"), (60, "1min"), (90, "1.5min"), (7_200, "2h"), (86_400 * 30, "30d")],
)
def test_ages_are_short(seconds: float, text: str) -> None:
    """One unit, two digits."""
    assert status_text.age(seconds) == text


def test_what_is_not_known_is_a_sign_and_never_a_zero() -> None:
    """A question mark where somebody did not answer, a dash where nobody can tell."""
    asked = Status(None, None, {"dlq.billing": None}, problems={"NATS (nats://a)": "TimeoutError: …"})
    lines = status_text.as_text("billing", asked, "JetStream", 60)
    assert lines[:5] == ["service  billing", "outbox   ?", "backlog  ?", "inbox    ?", "dead     ? in dlq.billing"]
    told = Status(0, 0, {}, (TopicFigures("billing", "numbers"),))
    [row] = [line for line in status_text.as_text("billing", told, "Mine", 60) if line.startswith("numbers")]
    assert row.split()[1:] == ["–"] * 5  # noqa: RUF001  en dashes are meant


async def test_the_outbox_and_the_inbox_are_counted(tmp_path: Path, on_target: Callable[[Relay], str]) -> None:
    """How much waits and for how long, what was refused and why, and how many rows the inbox has."""
    url = f"sqlite+aiosqlite:///{tmp_path}/relay.db"
    outbox, inbox = SQLAlchemyOutbox(url), SQLAlchemyInbox(url)
    relay = billing_on(Database(url), outbox=outbox, inbox=inbox)
    await relay.init()
    await outbox.put(Envelope("numbers", b"1", time=time.time() - 90))
    await outbox.put(Envelope("numbers", b"2"))
    await inbox.remember("e1", "billing", Memo({"a", "b"}))
    async with outbox.engine.begin() as connection:
        await connection.execute(
            text("UPDATE asignals_outbox SET error = '99 bytes are too much', refused_at = 5 WHERE id = 2")
        )
    lines = (await command("status", on_target(relay))).splitlines()
    assert lines[1] == "outbox   1, the oldest 1.5min"
    assert lines[3] == "inbox    2"
    assert "refused  1 in outbox.refused" in lines
    assert "            1  99 bytes are too much" in lines
    await relay.aclose()


# -- watch and tail, as processes ------------------------------------------------------------------------------------

PROGRAM = """
from asignals import signal
from asignals.relay import Database, Relay

@signal
def order_paid(sender: str, *, amount: int) -> None:
    '''An order was paid.'''

relay = Relay(Database("sqlite+aiosqlite:///relay.db"), "billing")
relay.receive(order_paid, "order.paid")
"""


@pytest.fixture
async def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """A program in the current directory, and its engine."""
    (tmp_path / "oncall_program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/relay.db")
    await database.init()
    await database.add_service("billing", ["order.paid"])
    yield database
    await database.aclose()


class Process:
    """A command as a process, whose lines are read."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "60"}
        command = [sys.executable, "-m", "asignals", "relay", *arguments]
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        self.process = subprocess.Popen(command, text=True, env=environment, **given)  # noqa: S603  this very program

    async def line(self, start: str, stream: str = "stdout") -> str:
        """Wait for a line that begins so."""
        source = getattr(self.process, stream)
        while line := await asyncio.to_thread(source.readline):
            if line.startswith(start):
                return str(line).rstrip("\n")
        pytest.fail(f"it ended without {start!r}: {await asyncio.to_thread(self.process.stderr.read)}")

    async def end(self, number: int | None = None) -> tuple[int, str]:
        """Send it a signal, wait for it; gives its exit status and the rest of stderr."""
        try:
            if number is not None:
                self.process.send_signal(number)
            _, errors = await asyncio.to_thread(self.process.communicate, timeout=60)
            return self.process.returncode, errors
        finally:
            self.process.kill()


async def test_watching_goes_on_until_ctrl_c(program: Database) -> None:
    """Without a terminal one look follows the other, in text or JSON; Ctrl-C ends it without a traceback."""
    watching = Process("status", "oncall_program:relay", "--watch", "--every", "0.1", "--json")
    assert json.loads(await watching.line("{"))["backlog"] == 0
    await program.publish_many([Envelope("order.paid", b"1")])
    while json.loads(await watching.line("{"))["backlog"] != 1:
        pass
    status, errors = await watching.end(signals.SIGINT)
    assert (status, "Traceback" in errors) == (130, False)


async def test_watching_on_a_terminal_stays_in_its_place(program: Database) -> None:
    """The lines are written over; what is shown follows."""
    leader, follower = pty.openpty()
    watching = Process("status", "oncall_program:relay", "--watch", "--every", "0.1", stdout=follower)
    os.close(follower)
    seen = b""

    def read_until(wanted: bytes) -> None:
        nonlocal seen
        while wanted not in seen:
            seen += os.read(leader, 4_096)

    try:
        await asyncio.to_thread(read_until, b"backlog  0")
        await program.publish_many([Envelope("order.paid", b"1")])
        await asyncio.to_thread(read_until, b"backlog  1")
        drain = threading.Thread(target=lambda: suppress(OSError).__enter__() or _read_all(leader), daemon=True)
        drain.start()
        status, _ = await watching.end(signals.SIGINT)
    finally:
        watching.process.kill()
    assert status == 130
    assert b"\x1b[" in seen


def _read_all(descriptor: int) -> None:
    with suppress(OSError):
        while os.read(descriptor, 4_096):
            pass


SECRET = b'{"amount": 7, "password": "hunter2", "note": "\\u001b[2J"}'


async def test_tail_shows_events_as_they_come_and_leaves_nothing(program: Database) -> None:
    """Masked, without control characters; Ctrl-C ends it without a traceback, and no service knows of it."""
    tailing = Process("tail", "oncall_program:relay", "order.paid")
    await tailing.line("listening to order.paid", "stderr")
    await program.publish_many([Envelope("order.paid", SECRET, key="k\x1b", origin="shop/one")])
    line = await tailing.line("")
    assert "order.paid" in line
    assert "shop/one" in line
    assert r"key=k\x1b" in line
    assert '"amount": 7' in line
    assert "hunter2" not in line
    assert "\x1b" not in line
    status, errors = await tailing.end(signals.SIGINT)
    assert (status, "Traceback" in errors) == (130, False)
    assert [one.service for one in await program.figures()] == ["billing"]
    assert await program.backlog("billing") == 1


async def test_tail_ends_with_whoever_reads_it(program: Database) -> None:
    """As `| head -1` does: quietly, with exit status 0."""
    tailing = Process("tail", "oncall_program:relay", "order.paid", "--json")
    await tailing.line("listening to order.paid", "stderr")
    await program.publish_many([Envelope("order.paid", SECRET)])
    assert json.loads(await tailing.line("{"))["body"]["amount"] == 7
    assert tailing.process.stdout is not None
    tailing.process.stdout.close()
    tailing.process.stdout = None
    ended = asyncio.create_task(tailing.end())
    while not ended.done():
        await program.publish_many([Envelope("order.paid", b"1")])
        await asyncio.sleep(0.05)
    status, errors = await ended
    assert (status, errors) == (0, "")


async def test_tail_on_every_engine(engine: World) -> None:
    """It hears what is published from then on; the service has not lost any."""
    transport, shown = engine.open(), []
    await transport.add_service("billing", ["numbers"])
    tailing = asyncio.create_task(tail.tail(engine.open(), ["numbers"], shown.append, print))
    number = 0
    while len(shown) < 2:
        number += 1
        await transport.publish_many([Envelope("numbers", b'{"number": %d}' % number)])
        await asyncio.sleep(0.05)
    tailing.cancel()
    with suppress(asyncio.CancelledError):
        await tailing
    first, second = (json.loads(tail.as_json(delivery)) for delivery in shown[:2])
    assert first["topic"] == "numbers"
    assert first["body"]["number"] != second["body"]["number"]
    await until_backlog(transport, number)


async def test_tail_ends_after_so_many_events(program: Database) -> None:
    """By `--limit`, with exit status 0."""
    tailing = Process("tail", "oncall_program:relay", "order.paid", "--limit", "2", "--json")
    await tailing.line("listening to order.paid", "stderr")
    await program.publish_many([Envelope("order.paid", b"%d" % number) for number in range(3)])
    assert [json.loads(await tailing.line("{"))["body"] for _ in range(2)] == [0, 1]
    assert (await tailing.end())[0] == 0


async def until_backlog(transport: Any, count: int) -> None:
    async with asyncio.timeout(60):
        while await transport.backlog("billing") != count:  # noqa: ASYNC110  the engine tells nobody
            await asyncio.sleep(0.02)


# redis-py leaves the socket to the garbage collector when connecting is cut short.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
async def test_tail_says_that_the_engine_is_silent(
    on_target: Callable[[Relay], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for ever for the first word."""
    monkeypatch.setattr(tail, "_BEGIN", 1.0)
    async with silent() as port:
        target = on_target(billing_on(RedisStreams(f"redis://me:hunter2@127.0.0.1:{port}/0")))
        result = await asyncio.to_thread(CliRunner().invoke, app, ["relay", "tail", target, "numbers"])
    gc.collect()
    assert result.exit_code == 1
    assert "did not answer within 1 s" in result.output
    assert "hunter2" not in result.output


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        Envelope("numbers", b"\xff\x00\x1b").encode(),
        Envelope("numbers", b"[" * 9_999).encode(),
        Envelope("numbers", b"[NaN, 1e999]").encode(),
    ],
)
def test_tail_shows_whatever_comes(data: bytes) -> None:
    """What is no event, and bodies that are no text and no JSON."""
    delivery = Delivery("numbers", data)
    line = tail.as_line(delivery)
    assert line.isprintable()
    told = json.loads(tail.as_json(delivery), parse_constant=pytest.fail)
    assert told["topic"] == "numbers"


async def test_a_reader_that_is_slow_is_told_what_was_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go; how many is said."""
    monkeypatch.setattr(tail, "_BUFFER", 3)
    shown: list[bytes] = []
    told: list[str] = []

    class Burst(Memory):
        async def listen(self, topics: Any, hear: Any, begun: Any) -> None:
            begun()
            for number in range(5):
                hear(Delivery("numbers", b"%d" % number))
            await asyncio.Event().wait()

    def show(delivery: Delivery) -> None:
        shown.append(delivery.data)
        if len(shown) == 3:
            asyncio.get_running_loop().call_soon(task.cancel)

    task = asyncio.create_task(tail.tail(Burst(), ["numbers"], show, told.append))
    with suppress(asyncio.CancelledError):
        await task
    assert shown == [b"2", b"3", b"4"]
    assert told == [
        "listening to numbers",
        "2 events were dropped: they come faster than they can be written",
    ]


# -- retention -------------------------------------------------------------------------------------------------------


async def test_dead_letters_are_kept_for_as_long_as_they_should(
    engine: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Older ones are removed, counted and logged; unreadable ones and younger ones stay."""
    monkeypatch.setattr(dead_letters, "_OFTEN", 0.05)
    caplog.set_level(logging.INFO)
    transport, day = engine.open(), 86_400.0
    if hasattr(transport, "init"):
        await transport.init()
    now = time.time()
    for number in range(7):
        letter = DeadLetter(b"%d" % number, "billing", "KeyError", time=now - (2 * day if number < 5 else 0))
        await transport.put_dead_letter("dlq.billing", letter)
    billing = Relay(transport, "billing", keep_dead_letters=day)
    monkeypatch.setattr(billing._retention, "_keep", day)
    monkeypatch.setattr(dead_letters, "_SELDOM", 0.1)
    billing.receive(Signal(["amount"]), "numbers", allow_no_receivers=True)
    async with billing:
        await until(lambda: billing.health().expired == 5)
        left = [letter.raw for letter in await billing.dead_letters()]
    assert sorted(left) == [b"5", b"6"]
    assert "removed 5 dead letters of 'dlq.billing': older than 86400 s" in caplog.text


async def test_refused_events_are_kept_for_as_long_as_they_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What waits to be published is never removed."""
    monkeypatch.setattr(outboxes, "_LOOK", 0.0)
    caplog.set_level(logging.INFO)
    outbox = SQLAlchemyOutbox(f"sqlite+aiosqlite:///{tmp_path}/relay.db", keep=60.0)
    await outbox.init()
    for number in range(4):
        await outbox.put(Envelope("numbers", b"%d" % number))
    async with outbox.engine.begin() as connection:
        refuse = "UPDATE asignals_outbox SET error = 'no', refused_at = :at WHERE id = :id"
        for number, age in ((1, 120), (2, 0), (3, 90)):
            await connection.execute(text(refuse), {"at": time.time() - age, "id": number})

    async def publish(envelopes: Any) -> None:
        await asyncio.Event().wait()

    draining = asyncio.create_task(outbox.drain_for_ever(publish))
    await until(lambda: outbox.expired == 2)
    draining.cancel()
    with suppress(asyncio.CancelledError):
        await draining
    assert (await outbox.count(), await outbox.count_refused()) == (1, 1)
    assert "removed 2 refused events from the outbox in sqlite" in caplog.text
    await outbox.aclose()


async def test_the_inbox_is_purged_until_a_time(
    tmp_path: Path, on_target: Callable[[Relay], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches; other choices are refused, and so is an inbox that has no rows."""
    monkeypatch.setattr(inboxes, "_SWEPT", 3)
    url = f"sqlite+aiosqlite:///{tmp_path}/relay.db"
    inbox = SQLAlchemyInbox(url)
    target = on_target(billing_on(Memory(), inbox=inbox))
    await inbox.init()
    for number in range(10):
        await inbox.remember(f"e{number}", "billing", Memo({"a"}))
    async with inbox.engine.begin() as connection:
        await connection.execute(text("UPDATE asignals_inbox SET time = 1000 WHERE event_id < 'e8'"))
    assert await command("purge", target, "--from", "inbox", "--until", "1h", "--yes") == "8 removed\n"
    assert await inbox.count() == 2
    await command("purge", target, "--from", "inbox", "--yes", code=2)
    await command("purge", target, "--from", "inbox", "--until", "1h", "--topic", "a", "--yes", code=2)
    result = await asyncio.to_thread(
        CliRunner().invoke,
        app,
        ["relay", "purge", on_target(billing_on(Memory())), "--from", "inbox", "--until", "1h", "--yes"],
    )
    assert (result.exit_code, "no rows that could be removed" in result.output) == (1, True)
    await inbox.aclose()


async def test_what_the_engine_refused_is_purged(tmp_path: Path, on_target: Callable[[Relay], str]) -> None:
    """By `--from outbox`; dead letters stay."""
    url, memory = f"sqlite+aiosqlite:///{tmp_path}/relay.db", Memory()
    outbox = SQLAlchemyOutbox(url)
    await outbox.init()
    for number in range(3):
        await outbox.put(Envelope("numbers", b"%d" % number))
    async with outbox.engine.begin() as connection:
        await connection.execute(text("UPDATE asignals_outbox SET error = 'no', refused_at = 5 WHERE id < 3"))
    await memory.put_dead_letter("dlq.billing", DeadLetter(b"x", "billing", "E"))
    target = on_target(billing_on(memory, outbox=outbox))
    assert await command("purge", target, "--from", "outbox", "--yes") == "2 removed\n"
    assert (await outbox.count(), await memory.count_dead_letters("dlq.billing")) == (1, 1)
    await outbox.aclose()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Relay(Memory(), "billing", keep_dead_letters=0),
        lambda: Relay(Memory(), "billing", keep_dead_letters=-1),
        lambda: SQLAlchemyOutbox("sqlite+aiosqlite:///x.db", keep=0),
    ],
)
def test_to_keep_something_for_no_time_is_refused(make: Callable[[], object]) -> None:
    """`None` is for ever; seconds are more than 0."""
    with pytest.raises(ValueError, match="keep"):
        make()


# -- progress --------------------------------------------------------------------------------------------------------


async def test_a_long_replay_says_how_far_it_is(
    on_target: Callable[[Relay], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal a plain line on stderr now and then; one that is quick says nothing."""
    memory, told = Memory(), asyncio.Event()
    for number in range(1_200):
        data = Envelope("numbers", b"1", id=f"e{number}").encode()
        await memory.put_dead_letter("dlq.billing", DeadLetter(data, "billing", "E"))
    target = on_target(billing_on(memory))
    quick = await asyncio.to_thread(CliRunner().invoke, app, ["relay", "replay", target, "--limit", "1"])
    assert (quick.stdout, quick.stderr) == ("1 sent again\n", "")
    monkeypatch.setattr(progress, "_EVERY", 0.01)
    publish = memory.publish_many

    async def slowly(envelopes: Any) -> None:
        await asyncio.sleep(0.1)
        await publish(envelopes)

    monkeypatch.setattr(memory, "publish_many", slowly)
    result = await asyncio.to_thread(CliRunner().invoke, app, ["relay", "replay", target])
    assert result.stdout == "1199 sent again\n"
    lines = result.stderr.splitlines()
    assert any(line.startswith("replay: 500 of 1199 ") for line in lines), lines
    told.set()


# redis-py leaves the socket to the garbage collector when connecting is cut short.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
async def test_a_slow_init_says_for_whom_it_waits(
    on_target: Callable[[Relay], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's name, without its password."""
    monkeypatch.setattr(progress, "_EVERY", 0.1)
    async with silent() as port:
        target = on_target(billing_on(RedisStreams(f"redis://me:hunter2@127.0.0.1:{port}/0")))
        result = await asyncio.to_thread(CliRunner().invoke, app, ["relay", "init", target])
    gc.collect()
    assert result.exit_code == 1
    assert f"init: Redis (redis://me:***@127.0.0.1:{port}/0" in result.stderr
    assert "hunter2" not in result.output


async def test_progress_on_a_terminal_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is gone when the work is done."""
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    shown = progress.Progress("replay")
    async with shown.shown():
        shown.count(500, 1_200)
        await until(lambda: "replay: 500 of 1200" in terminal.getvalue())
    assert terminal.getvalue().count("\n") <= 1
