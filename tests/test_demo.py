"""`asignals demo`, run as a user runs it: a process of its own, on real sockets."""

import contextlib
import functools
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("aiosqlite")
pytest.importorskip("uvicorn")

from asignals import Report, Signal
from asignals.asgi import request_finished, request_started
from asignals.demo import run, shop
from asignals.demo.report import Tally

PATIENCE = 60  # seconds, after which a process that should have ended has not

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to stop a process in good order")


@contextlib.contextmanager
def demo(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The demo in a process of its own, which is ended with the block; `directory` is where its temporary files go."""
    environment = os.environ | {"TMPDIR": str(directory), "COLUMNS": "100"}
    command = [sys.executable, "-W", "error", "-m", "asignals", "demo", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:  # noqa: S603  our own
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, output, errors


def opened(process: subprocess.Popen[str]) -> str:
    """The address that the demo prints when the shop is open."""
    return line_of(process, r"open at (http://127\.0\.0\.1:\d+)")


def line_of(process: subprocess.Popen[str], pattern: str) -> str:
    """Read on until the output has this pattern, and return what its group has."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found.group(1)
    raise AssertionError(process.stderr and process.stderr.read())


def request(address: str, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()


def test_it_proves_that_every_request_that_started_has_finished(tmp_path: Path) -> None:
    """It ends with status 0, a row for each signal and receiver, and the line that proves it; and leaves no files."""
    with demo(tmp_path, "--requests", "48") as process:
        status, output, errors = finish(process)
    assert (status, errors) == (0, "")
    assert "requests started = finished: 48 = 48 proven" in output.splitlines()
    for name in ("request_finished", "got_request_exception", "post_save", "pizza_done", "order_paid"):
        assert re.search(rf"^ +{name} +signal +[1-9]", output, re.MULTILINE)
    for kind, name in (("async", "note_done"), ("sync", "count_toppings"), ("thread", "print_receipt")):
        assert re.search(rf"^ +{name} +{kind} +24 +0 +[\d.]+ ms +[\d.]+ ms", output, re.MULTILINE)
    assert re.search(r"^ +Display.show +weak method +24 ", output, re.MULTILINE)
    assert re.search(r"^ +book +async +52 +0 ", output, re.MULTILINE)  # 28 orders, of which 24 are also noted as done
    assert list(tmp_path.iterdir()) == []


def test_json_has_every_figure(tmp_path: Path) -> None:
    """The standard output is one JSON document; what is meant for eyes goes to the standard error."""
    with demo(tmp_path, "--requests", "36", "--json") as process:
        status, output, errors = finish(process)
    assert status == 0
    assert "open at http://127.0.0.1:" in errors
    result = json.loads(output)
    # Twelve kinds of visits in turn: six orders, two looks, a peep, an order that fails, and two that hang up.
    assert result["ends"] == {"200": 6, "201": 18, "404": 3, "500": 3, "hung up": 6}
    assert (result["requests"], result["requests_started"], result["requests_finished"]) == (36, 36, 36)
    assert result["proven"] is True
    signals = {each["name"].rpartition(".")[2]: each for each in result["signals"]}
    assert {name: each["sends"] for name, each in signals.items()} == {
        "lifespan_started": 1,
        "request_started": 36,
        "request_finished": 36,
        "got_request_exception": 6,
        "post_save": 39,  # 21 orders are committed, and 18 again when they are done
        "pizza_done": 18,
        "order_paid": 18,
        "lifespan_stopped": 1,
    }
    receivers = {receiver["name"]: receiver for each in result["signals"] for receiver in each["receivers"]}
    assert receivers["apologise"]["errors"] == 2
    assert sum(receiver["errors"] for receiver in receivers.values()) == 2
    assert {receiver["kind"] for receiver in receivers.values()} == {"async", "sync", "thread", "weak method"}
    assert receivers["book"]["calls"] == 39
    assert all(0 <= receiver["median"] <= receiver["p99"] < PATIENCE for receiver in receivers.values())
    assert all(re.fullmatch(r".*shop\.py:\d+", receiver["location"]) for receiver in receivers.values())


@pytest.mark.slow
@posix
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_serve_stays_open_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """A browser's or curl's requests count too, and closing the shop in good order is status 0."""
    with demo(tmp_path, "--requests", "12", "--serve") as process:
        address = opened(process)
        assert request(address, "POST", "/pizzas", '{"toppings": ["basil"]}')[0] == 201
        assert request(address, "GET", "/pizzas/1")[0] == 200
        status, page = request(address, "GET", "/")
        assert (status, b"<h1>Pizza</h1>" in page) == (200, True)
        live = line_of(process, r"signals live at http://127\.0\.0\.1:\d+(/signals/\?token=\S+)")
        assert request(address, "GET", live)[0] == 200
        assert request(address, "GET", "/signals/")[0] == 401
        line_of(process, "(stays open)")
        process.send_signal(number)
        status, output, errors = finish(process)
    assert status == 0
    assert errors == f"the inspector asks for its token: {live}\n"
    assert "requests started = finished: 17 = 17 proven" in output.splitlines()


@pytest.mark.slow
@posix
def test_serve_ends_what_is_under_way(tmp_path: Path) -> None:
    """A client that watches the oven for ever does not keep the shop open, and its request has its end."""
    with demo(tmp_path, "--requests", "1", "--serve") as process:
        address = urlsplit(opened(process)).netloc
        with contextlib.closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
            connection.request("GET", "/oven")
            response = connection.getresponse()
            response.readline()
            line_of(process, "(stays open)")
            process.send_signal(signal.SIGINT)
            status, output, _ = finish(process)
            response.close()
    assert status == 0
    assert "requests started = finished: 2 = 2 proven" in output.splitlines()


@pytest.mark.slow
@posix
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_an_interruption_ends_it_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    """The customers are sent away, what was under way is ended and shown, and the status is that of the signal."""
    with demo(tmp_path, "--requests", "1000000") as process:
        assert request(opened(process), "GET", "/")[0] == 200
        before = time.monotonic()
        process.send_signal(number)
        status, output, errors = finish(process)
    assert time.monotonic() - before < PATIENCE / 2
    assert (status, errors) == (128 + number, "")
    assert re.search(r"^requests started = finished: (\d+) = \1 proven$", output, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@posix
def test_nobody_has_to_read_to_the_end(tmp_path: Path) -> None:
    """As with `asignals demo | head -1`: it ends, without a traceback."""
    with demo(tmp_path, "--requests", "1000000") as process:
        opened(process)
        assert process.stdout is not None
        process.stdout.close()
        process.send_signal(signal.SIGTERM)  # now it wants to show the table
        assert process.wait(timeout=PATIENCE) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_the_status_is_1_when_it_is_not_proven(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the shop is served without the middleware, and nothing starts or finishes."""
    monkeypatch.setattr(shop, "asgi", shop.app)
    assert run.run(requests=2, serve=False, as_json=True) == 1
    output = json.loads(capsys.readouterr().out)
    assert output["ends"] == {"200": 1, "201": 1}
    assert (output["requests_started"], output["requests_finished"], output["proven"]) == (0, 0, False)


def report(sent: Signal[..., Any], receiver: Any = None, duration: float = 0.0) -> Report:
    return Report(sent, None, {}, receiver, 0.0, duration, None, object(), None)


@pytest.mark.parametrize(
    ("started", "finished", "verdict"),
    [(2, 2, "[green]proven"), (2, 1, "[red]NOT TRUE"), (1, 2, "[red]NOT TRUE"), (0, 0, "(no requests)")],
)
def test_only_equal_numbers_prove_anything(started: int, finished: int, verdict: str) -> None:
    """Neither a missing end nor a second one is overlooked, nor that there were no requests at all."""
    tally = Tally()
    for sent, times in ((request_started, started), (request_finished, finished)):
        for _ in range(times):
            tally(report(sent))
    assert tally.is_proven is ("proven" in verdict)
    assert tally.proof() == f"requests started = finished: {started} = {finished} {verdict}"


def test_percentiles() -> None:
    """In seconds, over the calls of each receiver; one that was never called has none."""
    pizza_done = Signal(["size"], name="pizza_done")
    called, idle = (lambda size: size), functools.partial(print)
    pizza_done.connect(called, weak=False)
    pizza_done.connect(idle, weak=False)
    tally = Tally()
    tally(report(pizza_done))
    for milliseconds in range(1, 102):
        tally(report(pizza_done, called, milliseconds / 1000))
    (first, second) = tally.as_dict()["signals"][0]["receivers"]
    assert first["calls"] == 101
    assert first["median"] == pytest.approx(0.051)
    assert first["p99"] == pytest.approx(0.100)
    assert (second["calls"], second["median"], second["p99"]) == (0, None, None)
    assert tally.table().row_count == 3


def test_a_shop_that_cannot_open_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The demo ends with a message, and the log tells the reason; no customer waits before closed doors."""

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no flour"})

    monkeypatch.setattr(shop, "asgi", fail)
    with pytest.raises(SystemExit, match="asignals: the pizza shop could not open"):
        run.run(requests=2, serve=False, as_json=True)
    assert "no flour" in caplog.text
