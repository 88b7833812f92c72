"""The worker as a process, and the commands that look after a relay."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal as signals
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import until
from typer.testing import CliRunner

from asignals import Signal
from asignals.cli import app
from asignals.relay import Database, DeadLetter, Envelope, Memory, Relay
from asignals.relay.worker import JSONFormatter, TextFormatter, _health_server, load_relay

if TYPE_CHECKING:
    from collections.abc import Iterator

APPLICATION = """
import asyncio, os
from asignals import signal
from asignals.relay import Database, Memory, Relay, SQLAlchemyOutbox

@signal
def order_paid(sender: str, *, amount: int) -> None:
    '''An order was paid.'''

url = "sqlite+aiosqlite:///{path}/relay.db"
relay = Relay(Database(url), service="billing", outbox=SQLAlchemyOutbox(url))
relay.receive(order_paid, topic="order.paid", retries=1, backoff=(0.01, 0.02))
not_a_relay = 5
silent = Relay(Memory(), service="silent")

@order_paid.connect
async def heard(amount: int, **_: object) -> None:
    if amount == 13 and not os.path.exists("{path}/repaired"):
        raise ValueError("unlucky\\x1b[2J")
    if amount == 100:
        print("hangs", flush=True)
        await asyncio.Event().wait()
    if amount == 99:
        print("slow", flush=True)
        await asyncio.sleep(0.3)
    print("heard", amount, flush=True)
"""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An application with a relay over SQLite, in the current directory."""
    name = f"relay_application_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(APPLICATION.format(path=tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield name
    root.handlers[:], root.level = handlers, level
    sys.modules.pop(name, None)


def invoke(*arguments: str, code: int = 0) -> str:
    """Run one command in this process."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def publish(path: Path, *amounts: int) -> None:
    """Publish events as another service would."""

    async def work() -> None:
        database = Database(f"sqlite+aiosqlite:///{path}/relay.db")
        await database.publish_many([Envelope("order.paid", b'{"amount": %d}' % amount) for amount in amounts])
        await database.aclose()

    asyncio.run(work())


class Worker:
    """A worker process, whose lines are read."""

    def __init__(self, target: str, *options: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
        command = [sys.executable, "-m", "asignals", "worker", target, *options]
        self.process = subprocess.Popen(  # noqa: S603  this very program
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def heard(self, line: str) -> None:
        """Wait until the receiver has printed a line."""
        assert self.process.stdout is not None
        for found in self.process.stdout:
            if found.strip() == line:
                return
        pytest.fail(f"the worker ended without {line!r}: {self.process.stderr.read() if self.process.stderr else ''}")

    def logged(self, start: str) -> str:
        """Wait for a log record whose message starts so."""
        assert self.process.stderr is not None
        for found in self.process.stderr:
            message: str = json.loads(found)["message"]
            if message.startswith(start):
                return message
        pytest.fail(f"the worker ended without logging {start!r}")

    def stop(self) -> int:
        """Ask it to stop, and give its exit status."""
        self.process.send_signal(signals.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode


def test_a_worker_handles_events_until_it_is_told_to_stop(module: str, tmp_path: Path) -> None:
    """It serves its health, logs JSON, and on SIGTERM lets what runs end before it exits with 0."""
    invoke("relay", "init", f"{module}:relay")
    worker = Worker(f"{module}:relay", "--health-port", "0")
    try:
        url = worker.logged("health at").removeprefix("health at ")
        worker.logged("worker of 'billing' runs")
        with urllib.request.urlopen(url, timeout=60) as answer:  # noqa: S310  our own
            health = json.load(answer)
        assert health["ok"] is True
        assert health["problems"] == {}
        publish(tmp_path, 1, 99)
        worker.heard("slow")
        worker.process.send_signal(signals.SIGTERM)
        worker.heard("heard 99")
        _, log = worker.process.communicate(timeout=60)
    finally:
        worker.process.kill()
    assert worker.process.returncode == 0
    assert json.loads(log.strip().splitlines()[-1])["message"].startswith("relay of 'billing' stopped; left")


@pytest.mark.slow
def test_a_second_signal_cancels_what_still_runs(module: str) -> None:
    """The exit status says so, and the event waits for another instance."""
    invoke("relay", "init", f"{module}:relay")
    worker = Worker(f"{module}:relay")
    try:
        worker.logged("worker of 'billing' runs")
        publish(Path.cwd(), 100)
        worker.heard("hangs")
        worker.process.send_signal(signals.SIGINT)
        worker.logged("SIGINT: stopping")
        worker.process.send_signal(signals.SIGTERM)
        worker.logged("SIGTERM again")
        worker.process.communicate(timeout=60)
    finally:
        worker.process.kill()
    assert worker.process.returncode == 130
    assert "backlog  1" in invoke("relay", "status", f"{module}:relay")


@pytest.mark.slow
def test_a_worker_logs_and_listens_as_it_is_told(module: str) -> None:
    """Text instead of JSON, health at another address, and nothing below a level."""
    invoke("relay", "init", f"{module}:relay")
    worker = Worker(f"{module}:relay", "--log-format", "text", "--health-port", "0", "--health-host", "localhost")
    try:
        assert worker.process.stderr is not None
        assert re.search(r"^[\d-]+ [\d:,]+ INFO health at http://localhost:\d+/$", worker.process.stderr.readline())
        assert "INFO worker of 'billing' runs" in worker.process.stderr.readline()
        assert worker.stop() == 0
    finally:
        worker.process.kill()
    worker = Worker(f"{module}:relay", "--log-level", "error")
    try:
        publish(Path.cwd(), 1)
        worker.heard("heard 1")
        worker.process.send_signal(signals.SIGTERM)
        assert worker.process.communicate(timeout=60)[1] == ""
    finally:
        worker.process.kill()


@pytest.mark.parametrize(("option", "value"), [("--log-format", "xml"), ("--log-level", "loud")])
def test_a_log_option_that_is_not_known_is_named(module: str, option: str, value: str) -> None:
    """The message says what there is instead, before anything runs."""
    output = invoke("worker", f"{module}:relay", option, value, code=2)
    assert option in output
    assert repr(value) in output


def test_one_queue_and_so_many_letters_may_be_chosen(module: str, tmp_path: Path) -> None:
    """`--queue` and `--limit` of `dead` and `replay`."""
    target = f"{module}:relay"
    invoke("relay", "init", target)

    async def bury() -> None:
        database = Database(f"sqlite+aiosqlite:///{tmp_path}/relay.db")
        for queue, error in (("dlq.billing", "first"), ("dlq.other", "second"), ("dlq.other", "third")):
            data = Envelope("order.paid", b'{"amount": 1}').encode()
            await database.put_dead_letter(queue, DeadLetter(data, "billing", error))
        await database.aclose()

    asyncio.run(bury())

    def errors(*options: str) -> list[str]:
        return [line.rpartition(" ")[2] for line in invoke("relay", "dead", target, *options).splitlines()]

    assert errors() == ["first"]
    assert errors("--queue", "dlq.other") == ["second", "third"]
    assert errors("--queue", "dlq.other", "--limit", "1") == ["second"]
    assert invoke("relay", "replay", target, "--queue", "dlq.other", "--limit", "1") == "1 sent again\n"
    assert errors("--queue", "dlq.other") == ["third"]
    assert errors() == ["first"]


def test_a_status_that_nobody_can_tell_is_unknown(module: str) -> None:
    """Without an outbox, and where nothing is received."""
    output = invoke("relay", "status", f"{module}:silent")
    assert output.splitlines()[1:3] == ["outbox   –", "backlog  –"]  # noqa: RUF001  en dashes are meant


def test_dead_letters_are_shown_and_sent_again(module: str, tmp_path: Path) -> None:
    """`status` counts, `dead` shows errors without obeying them, `replay` sends again what then succeeds."""
    target = f"{module}:relay"
    assert invoke("relay", "init", target) == "ready\n"
    worker = Worker(target)
    try:
        publish(tmp_path, 13, 1)
        worker.heard("heard 1")
        worker.logged("an event went to 'dlq.billing'")
        assert worker.stop() == 0
    finally:
        worker.process.kill()
    assert invoke("relay", "status", target).splitlines() == [
        "service  billing",
        "outbox   0",
        "backlog  0",
        "inbox    1",
        "dead     1 in dlq.billing",
        "            1  ValueError",
        "",
        "billing receives",
        "topic       backlog  oldest  in flight  retries  instances",
        "order.paid        0      0s          0        0          0",
    ]
    shown = invoke("relay", "dead", target)
    assert "order.paid" in shown
    assert r"2 attempts  ValueError: unlucky\x1b[2J" in shown
    assert "\x1b" not in shown
    (tmp_path / "repaired").touch()
    assert invoke("relay", "replay", target) == "1 sent again\n"
    worker = Worker(target)
    try:
        worker.heard("heard 13")
        assert worker.stop() == 0
    finally:
        worker.process.kill()
    assert "dead     0 in dlq.billing" in invoke("relay", "status", target)


@pytest.mark.slow
def test_a_command_closes_all_that_it_opened(module: str, tmp_path: Path) -> None:
    """An inbox with a database of its own does not keep the command's process from ending."""
    source = (tmp_path / f"{module}.py").read_text()
    source = source.replace("Relay, SQL", "Relay, SQLAlchemyInbox, SQL").replace(
        "outbox=SQLAlchemyOutbox(url)", "inbox=SQLAlchemyInbox(url)"
    )
    (tmp_path / f"{module}.py").write_text(source)
    command = [sys.executable, "-W", "error", "-m", "asignals", "relay", "init", f"{module}:relay"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(  # noqa: S603  this very program
        command, capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ready\n", "")


@pytest.mark.parametrize(
    "target", ["nothing", "no.such.module:relay", "{module}:missing", "{module}:not_a_relay", ":x"]
)
def test_a_target_that_is_no_relay_is_named(module: str, target: str) -> None:
    """A wrong TARGET ends the command with what is wrong with it."""
    with pytest.raises(ValueError, match=r"relay|load|Relay"):
        load_relay(target.format(module=module))
    output = invoke("relay", "status", target.format(module=module), code=2)
    assert "Invalid value" in output


RECEIVERS = """
from {module} import other_signal

@other_signal.connect
def heard(**_: object) -> None:
    print("heard elsewhere", flush=True)
"""


@pytest.fixture
def unheard(module: str, tmp_path: Path) -> Iterator[str]:
    """A relay whose receivers are in a module that nobody imports, beside it."""
    name = f"unheard_{module}"
    source = """
from asignals import Signal
from asignals.relay import Memory, Relay

other_signal = Signal(name="shop.other_signal")
relay = Relay(Memory(), service="billing")
relay.receive(other_signal, topic="order.paid")
"""
    (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / f"{name}_receivers.py").write_text(RECEIVERS.format(module=name))
    yield name
    sys.modules.pop(name, None)


def test_a_worker_that_nobody_hears_does_not_start(unheard: str) -> None:
    """It names signal and topic, the module that connects to it, and how to import that or to mean it."""
    output = " ".join(invoke("worker", f"{unheard}:relay", code=1).split())
    assert "NoReceiversError: nobody would handle what service 'billing' receives" in output
    assert "'shop.other_signal' (topic 'order.paid')" in output
    assert f"Import {unheard}_receivers, which nobody has imported: in {unheard}, or with --import" in output
    assert "--allow-no-receivers" in output
    assert f"{unheard}_receivers" not in sys.modules


@pytest.mark.parametrize("option", ["--import", "--allow-no-receivers"])
def test_a_worker_starts_when_receivers_are_there_or_not_wanted(unheard: str, option: str) -> None:
    """`--import MODULE` brings them; `--allow-no-receivers` does without."""
    options = (option, f"{unheard}_receivers") if option == "--import" else (option,)
    worker = Worker(f"{unheard}:relay", *options)
    try:
        worker.logged("worker of 'billing' runs")
        assert worker.stop() == 0
    finally:
        worker.process.kill()


def test_a_worker_whose_relay_receives_nothing_does_not_start(module: str) -> None:
    """It says what to write."""
    assert "call relay.receive(signal, topic)" in invoke("worker", f"{module}:silent", code=1)


def test_a_module_that_cannot_be_imported_is_named(module: str) -> None:
    """By `--import`, with what is wrong."""
    assert "no_such_module" in invoke("worker", f"{module}:relay", "--import", "no_such_module", code=2)


def test_a_worker_without_tables_does_not_start(module: str) -> None:
    """It says which command makes them."""
    assert "asignals relay init" in invoke("worker", f"{module}:relay", code=1)


def test_letters_are_chosen_by_what_they_are(module: str, tmp_path: Path) -> None:
    """`--id`, `--topic`, `--since`, `--until` and `--error` of `dead`, `replay` and `purge`; `--json` tells all."""
    target = f"{module}:relay"
    invoke("relay", "init", target)

    async def put() -> None:
        database = Database(f"sqlite+aiosqlite:///{tmp_path}/relay.db")
        for number, (topic, error) in enumerate([("order.paid", "KeyError: a"), ("order.sent", "KeyError: b")] * 2):
            data = Envelope(topic, b"{}", id=f"e{number}").encode()
            letter = DeadLetter(data, "billing", error, time=86_400.0 * (number + 1))
            await database.put_dead_letter("dlq.billing", letter)
        await database.aclose()

    asyncio.run(put())

    def ids(*options: str) -> list[str]:
        return [json.loads(line)["id"] for line in invoke("relay", "dead", target, "--json", *options).splitlines()]

    assert ids() == ["e0", "e1", "e2", "e3"]
    assert ids("--topic", "order.sent") == ["e1", "e3"]
    assert ids("--since", "1970-01-03", "--until", "1970-01-04T00:00") == ["e1", "e2"]
    assert ids("--since", "1d") == []
    assert ids("--id", "e3", "--id", "e0") == ["e0", "e3"]
    assert "a time is" in invoke("relay", "dead", target, "--since", "yesterday", code=2)
    assert invoke("relay", "replay", target, "--topic", "order.sent", "--limit", "1") == "1 sent again\n"
    assert "Aborted" in invoke("relay", "purge", target, code=1)
    assert invoke("relay", "purge", target, "--error", "KeyError: a", "--yes") == "2 removed\n"
    assert ids() == ["e3"]


def test_a_service_that_is_gone_is_forgotten(module: str, tmp_path: Path) -> None:
    """Nothing is kept for it any more."""
    target = f"{module}:relay"
    invoke("relay", "init", target)
    publish(tmp_path, 1, 2)
    assert "backlog  2" in invoke("relay", "status", target)
    assert "is forgotten" in invoke("relay", "forget", target, "billing", "--yes")
    assert "backlog  0" in invoke("relay", "status", target)


def test_a_database_without_tables_is_one_line(module: str) -> None:
    """A failing engine gives an error and an exit status, not a traceback."""
    result = CliRunner().invoke(app, ["relay", "status", f"{module}:relay"])
    assert result.exit_code == 1
    assert "no such table" in result.output
    assert "Traceback" not in result.output


@pytest.mark.anyio
async def test_health_says_503_while_something_is_wrong(caplog: pytest.LogCaptureFixture) -> None:
    """The health page follows the relay, and bad requests do it no harm."""

    class Away(Memory):
        async def consume(self, *_: Any, **__: Any) -> None:
            msg = "away"
            raise ConnectionError(msg)

    relay = Relay(Away(), "billing")
    relay.receive(Signal(), "order.paid")
    caplog.set_level(logging.INFO)
    async with _health_server(relay, "127.0.0.1", 0), relay:
        await until(lambda: not relay.health().ok)
        port = int(caplog.messages[0].rstrip("/").rpartition(":")[2])
        for request in (b"\x00" * 20_000, b"", b"GET / HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            writer.write_eof()
            answer = await reader.read()
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    problem = json.loads(body)["problems"]["consuming as 'billing'"]
    assert problem.startswith("ConnectionError: away")


def test_passwords_and_control_characters_stay_out_of_the_log() -> None:
    """Of URLs in messages and tracebacks, in both formats; an escape sequence is shown, and not obeyed."""
    try:
        raise ConnectionError("nats://me:hunter2@host\x1b[2J")  # noqa: TRY301
    except ConnectionError:
        record = logging.makeLogRecord(
            {"msg": "lost %s\r\n%s", "args": ("redis://u:hunter2@h", "\x1b[1m"), "levelname": "INFO", "name": "x"}
        )
        record.exc_info = sys.exc_info()
    for formatter in (JSONFormatter(), TextFormatter()):
        line = formatter.format(record)
        assert "hunter2" not in line
        assert "\x1b" not in line
    head, *trace = TextFormatter().format(record).split("\n")
    assert head.endswith(r"INFO lost redis://u:***@h\r\n\x1b[1m")
    assert trace[0] == "Traceback (most recent call last):"


def test_log_records_are_json_whatever_they_hold() -> None:
    """Objects, line ends and exceptions do not break the line."""
    record = logging.makeLogRecord(
        {"msg": "a\n%s", "args": ("\x1b",), "levelname": "INFO", "name": "x", "order": {1, 2}}
    )
    line = JSONFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "a\n\x1b"
    assert "order" in json.loads(line)
