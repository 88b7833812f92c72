"""The inspector as a server sees it: what it records and keeps, and hostile input."""

import contextlib
import gc
import json
import math
import re
import sys
import threading
import time
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
import pytest

pytest.importorskip("starlette", reason="needs asignals[inspector]")
pytest.importorskip("jinja2", reason="needs asignals[inspector]")

from starlette.applications import Starlette
from starlette.routing import Mount

from asignals import Background, Signal
from asignals._core.dispatch import watchers
from asignals.inspector import Inspector as ProtectedInspector
from asignals.inspector import _app, _recorder
from asignals.inspector._recorder import Recorder, editor_link
from asignals.overview.values import Shower

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio", "trio")]

LOCAL = ("127.0.0.1", 50000)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Tick fast, so that no test waits for the next quarter of a second."""
    monkeypatch.setattr(_app, "TICK", 0.005)
    monkeypatch.setattr(_app, "LIFETIME", 100_000)


def Inspector(**options):  # noqa: N802  # as the class
    """An inspector that everybody may look at; who may is tested in `test_inspector_access`."""
    return ProtectedInspector(allow=lambda _: True, **options)


def scope_for(  # noqa: PLR0913  what a server says
    path="/", *, method="GET", client=LOCAL, headers=(), root_path="", query=b"", scheme="http"
):
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": scheme,
        "path": path,
        "raw_path": path.encode(),
        "root_path": root_path,
        "query_string": query,
        "headers": [(b"host", b"localhost:8000"), *((name.encode(), value.encode()) for name, value in headers)],
        "client": client,
        "server": ("127.0.0.1", 8000),
    }


async def request(app, path="/", **options):
    """Send one request, and give status, headers and body."""
    messages = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        messages.append(message)

    headers = dict(options.pop("headers", ()))
    scope = scope_for(path, headers=[item for item in headers.items() if item[0] != "host"], **options)
    if "host" in headers:
        scope["headers"][0] = (b"host", headers["host"].encode())
    with anyio.fail_after(60):
        await app(scope, receive, send)
    head = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return messages[0]["status"], head, b"".join(message.get("body", b"") for message in messages[1:])


class Viewer:
    """Looks at the event stream of an app, as a browser does."""

    def __init__(self, app, headers):
        self.app = app
        self.headers = headers
        self.events = []
        self._came = anyio.Event()
        self.left = anyio.Event()
        self.ended = anyio.Event()
        self.stalled = None

    async def look(self):
        await self.app(scope_for("/events", headers=list(self.headers.items())), self._receive, self._send)
        self.ended.set()

    async def _receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        if self.stalled is not None:
            await self.stalled.wait()
        for frame in message.get("body", b"").decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in frame.splitlines())
            if "event" in fields:
                self.events.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
        came, self._came = self._came, anyio.Event()
        came.set()

    @property
    def sends(self):
        return [send for kind, data, _ in self.events if kind == "sends" for send in data]

    async def wait_for(self, kind, count=1):
        """Wait until that many events of a kind have come from now on."""
        wanted = count + sum(each[0] == kind for each in self.events)
        with anyio.fail_after(60):
            while sum(each[0] == kind for each in self.events) < wanted:
                await self._came.wait()

    async def wait_for_sends(self, count):
        """Wait until that many sends have come since the beginning."""
        with anyio.fail_after(60):
            while len(self.sends) < count:
                await self._came.wait()
        return self.sends


@asynccontextmanager
async def viewing(app, **headers):
    """Look at the events of an app for the length of a block."""
    viewer = Viewer(app, headers)
    async with anyio.create_task_group() as group:
        group.start_soon(viewer.look)
        await viewer.wait_for("statistics")
        yield viewer
        viewer.left.set()


class Rude:
    def __repr__(self):
        raise ValueError


class Huge:
    def __repr__(self):
        return "<script>alert(1)</script>" * 400_000


class Liar:
    @property
    def __class__(self):
        raise RuntimeError


async def test_a_viewer_sees_each_send_with_its_receivers():
    """Signal, sender, arguments, order and times of receivers come as they happen."""
    paid = Signal(["amount"], name="shop.paid", doc="An order was paid.")

    async def ship(**named):
        await anyio.sleep(0.01)

    def book(**named): ...

    paid.connect(ship, priority=3)
    paid.connect(book)
    before = time.time()
    async with viewing(Inspector()) as viewer:
        await paid.send("the shop", amount=42)
        (send,) = await viewer.wait_for_sends(1)
    assert (send["name"], send["sender"], send["arguments"]) == ("shop.paid", "'the shop'", [["amount", "42"]])
    assert before <= send["at"] <= time.time()
    assert [receiver["name"].rpartition(".")[2] for receiver in send["receivers"]] == ["ship", "book"]
    first, second = send["receivers"]
    assert 0 < first["duration"] < second["start"] <= send["duration"]
    assert first["place"].endswith(f"test_inspector.py:{ship.__code__.co_firstlineno}")
    assert first["link"] == f"vscode://file{__file__}:{ship.__code__.co_firstlineno}"
    assert send["error"] is None


async def test_the_list_has_every_signal_with_its_receivers():
    """Declared arguments, first line, options and orphans, also of signals that were never sent."""
    paid = Signal(["amount"], name="listed.paid", doc="An order was paid.\n\nMore.")
    lost = Signal(name="listed.lost")

    def book(**named): ...

    paid.connect(book, "web", priority=3, in_thread=True)
    inspector = Inspector()

    def listed(signal):
        number = inspector._recorder.number_of(signal)
        newest = json.loads(inspector._list())["signals"]
        return next(each for each in newest if each["number"] == number)

    async with viewing(inspector) as viewer:
        assert listed(paid)["name"] == "listed.paid"
        assert listed(paid)["signature"] == "(amount)"
        assert listed(paid)["doc"] == "An order was paid."
        assert listed(paid)["receivers"][0]["notes"] == ["sender='web'", "priority=3", "thread", "weak"]
        assert listed(lost)["orphan"]
        assert not listed(paid)["orphan"]
        lost.connect(book)
        await viewer.wait_for("signals")
        assert not listed(lost)["orphan"]


async def test_errors_come_with_their_traceback_once():
    """A failed receiver has type, message and traceback; the send that failed of it refers to the same error."""
    paid = Signal([], name="shop.paid")

    def fail(**named):
        raise LookupError("no <b>stock</b>")

    paid.connect(fail)
    async with viewing(Inspector()) as viewer:
        with pytest.raises(LookupError):
            await paid.send(None)
        await paid.send_robust(None)
        raised, robust = await viewer.wait_for_sends(2)
    error = raised["receivers"][0]["error"]
    assert (error["type"], error["message"]) == ("LookupError", "no <b>stock</b>")
    assert 'raise LookupError("no <b>stock</b>")' in error["traceback"]
    assert raised["error"] == {"type": "LookupError", "message": "no <b>stock</b>", "traceback": ""}
    assert robust["error"] is None
    assert robust["receivers"][0]["error"]["type"] == "LookupError"


async def test_statistics_count_time_and_rank():
    """Sends, failures and percentiles of a signal, in seconds."""
    paid = Signal(["wait"], name="shop.paid")

    async def receiver(wait, **named):
        if wait is None:
            raise LookupError
        await anyio.sleep(wait)

    paid.connect(receiver)
    async with viewing(Inspector()) as viewer:
        for _ in range(9):
            await paid.send(None, wait=0)
        await paid.send(None, wait=0.05)
        await paid.send_robust(None, wait=None)
        await viewer.wait_for("statistics", 2)
        number = str(viewer.sends[0]["signal"])
        sends, errors, p50, p95, p99, most = [data for kind, data, _ in viewer.events if kind == "statistics"][-1][
            "signals"
        ][number]
    assert (sends, errors) == (11, 1)
    assert 0 < p50 <= p95 <= p99 <= most
    assert most >= 0.04  # of the send that waited; how long the others took on a busy machine is anybody's guess


async def test_nothing_is_watched_while_nobody_looks():
    """The monitor is there from the first viewer to the last, and not before, after, or for the page alone."""
    inspector = Inspector()
    paid = Signal([], name="shop.paid")
    assert (await request(inspector))[0] == 200
    await paid.send(None)
    assert watchers == []
    async with viewing(inspector), viewing(inspector) as second:
        assert len(watchers) == 1
        assert inspector.is_watching
        assert second.sends == []
    assert watchers == []
    assert not inspector.is_watching


async def test_a_stream_that_reaches_its_end_can_be_continued(monkeypatch):
    """The next one gives what was sent in between, nothing twice; if none comes, the next send ends the watch."""
    inspector = Inspector()
    paid = Signal(["number"], name="shop.paid")
    monkeypatch.setattr(_app, "LIFETIME", 40)
    async with viewing(inspector) as viewer:
        await paid.send(None, number=1)
        await viewer.wait_for_sends(1)
        with anyio.fail_after(60):
            await viewer.ended.wait()
    assert inspector.is_watching
    await paid.send(None, number=2)
    last = [number for kind, _, number in viewer.events if kind == "sends"][-1]
    async with viewing(inspector, **{"last-event-id": last}) as viewer:
        assert [send["arguments"] for send in await viewer.wait_for_sends(1)] == [[["number", "2"]]]
        with anyio.fail_after(60):
            await viewer.ended.wait()
    assert inspector.is_watching
    inspector._recorder._until = 0
    await paid.send(None, number=3)
    assert not inspector.is_watching
    assert watchers == []


@pytest.mark.parametrize("last", ["", "nonsense", "-1", "deadbeef-5", "x-" + "9" * 5000, "²-²"])
async def test_a_foreign_last_event_id_gives_what_is_kept(last):
    """An id of another process, or nonsense, is as good as none."""
    inspector = Inspector()
    paid = Signal(["number"], name="shop.paid")
    async with viewing(inspector) as viewer:
        await paid.send(None, number=1)
        await viewer.wait_for_sends(1)
        async with viewing(inspector, **{"last-event-id": last.encode("utf-8").decode("latin-1")}) as second:
            assert len(await second.wait_for_sends(1)) == 1


async def test_two_viewers_see_the_same():
    """Each has its own place in what is kept."""
    inspector = Inspector()
    paid = Signal(["number"], name="shop.paid")
    async with viewing(inspector) as first:
        await paid.send(None, number=1)
        await first.wait_for_sends(1)
        async with viewing(inspector) as second:
            await paid.send(None, number=2)
            assert await first.wait_for_sends(2) == await second.wait_for_sends(2)


async def test_sends_of_other_threads_are_shown():
    """A send in another thread's event loop is shown as well."""
    paid = Signal(["number"], name="shop.paid")

    def in_thread():
        anyio.run(lambda: paid.send("thread", number=1))

    async with viewing(Inspector()) as viewer:
        await anyio.to_thread.run_sync(in_thread)
        assert (await viewer.wait_for_sends(1))[0]["sender"] == "'thread'"


async def test_hostile_values_are_harmless():
    """Markup stays text, ten megabytes become two hundred characters, and broken objects are named."""
    paid = Signal(name="shop.<b>paid</b>")
    loop = []
    loop.append(loop)
    hostile = {
        "markup": "</script><script>alert(1)</script>",
        "long": "x" * 10_000_000,
        "rude": Rude(),
        "huge": Huge(),
        "liar": Liar(),
        "loop": loop,
        "number": 10**10_000,
        "nan": math.nan,
        "surrogate": "\ud800",
        "bytes": b"\x00" * 1_000_000,
        "many": dict.fromkeys(range(100_000)),
        "name: evil\ndata: x\n\n" + "n" * 10_000: 1,
        "kind": type,
    }
    async with viewing(Inspector()) as viewer:
        assert await paid.send(Rude(), **hostile) == []
        (send,) = await viewer.wait_for_sends(1)
    shown = dict(send["arguments"])
    assert shown["markup"] == "'</script><script>alert(1)</script>'"
    assert shown["long"].endswith("(10,000,000 characters)")
    assert shown["rude"] == "<Rude>"
    assert shown["huge"] == "<Huge>"
    assert shown["number"] == "<int of 33,220 bits>"
    assert shown["many"].endswith("99,992 more}")
    assert len(json.dumps(send)) < 10_000


async def test_many_arguments_and_receivers_are_cut():
    """A send with a thousand of each shows the first, and says how many there are."""
    paid = Signal(name="shop.paid")
    receivers = [lambda **named: None for _ in range(200)]
    for receiver in receivers:
        paid.connect(receiver)
    async with viewing(Inspector()) as viewer:
        await paid.send(None, **{f"a{number}": number for number in range(1000)})
        (send,) = await viewer.wait_for_sends(1)
    assert len(send["receivers"]) == _recorder.RECEIVERS
    assert send["more"] == 200 - _recorder.RECEIVERS
    assert send["arguments"][-1] == ["…", "970 more"]


async def test_a_hostile_exception_is_harmless():
    """An exception without a message, with a broken one, or a huge chain of causes is shown in bounds."""

    class BrokenError(Exception):
        def __str__(self):
            raise RuntimeError

    def fail(error, **named):
        raise error

    chain = ValueError("x" * 1_000_000)
    for _ in range(50):
        chain = _caused(chain)
    paid = Signal(["error"], name="shop.paid")
    paid.connect(fail)
    async with viewing(Inspector()) as viewer:
        for error in (BrokenError(), chain, ExceptionGroup("many", [ValueError(str(number)) for number in range(500)])):
            await paid.send_robust(None, error=error)
        shown = [send["receivers"][0]["error"] for send in await viewer.wait_for_sends(3)]
    assert shown[0]["message"] == "(its message cannot be shown)"
    assert all(len(json.dumps(each)) < 2 * _recorder.TRACEBACK_TEXT for each in shown)
    assert "characters left out" in shown[1]["traceback"]


def _caused(error):
    try:
        raise RuntimeError from error  # noqa: TRY301  to have a traceback
    except RuntimeError as caught:
        return caught


@pytest.mark.parametrize(
    ("arguments", "secret"),
    [
        ({"password": "hunter2"}, "hunter2"),
        ({"API_KEY": "k3y"}, "k3y"),
        ({"headers": {"Authorization": "Bearer abcdef", "X": 1}}, "abcdef"),
        ({"user": [{"name": "me", "access_token": "t0ken"}]}, "t0ken"),
        ({"url": "postgresql://me:s3same@db/shop"}, "s3same"),
        ({"text": "login password=hunter2, ok"}, "hunter2"),
        ({"text": "'Authorization': 'Bearer abcdef'"}, "abcdef"),
        ({"payload": '{"client_secret": "s3cret"}'}, "s3cret"),
        ({"headers": [(b"accept", b"*/*"), (b"cookie", b"s3ssion")]}, "s3ssion"),
        ({"headers": [["X-Api-Key", "k3y"]]}, "k3y"),
        ({"environ": {b"AUTHORIZATION": b"Bearer abcdef"}}, "abcdef"),
        ({"note": "x" * 190 + " token=t0ken" + "y" * 500}, "t0ken"),
    ],
)
async def test_secrets_are_masked_by_name(arguments, secret):
    """An argument, a key, a field, a URL's password, and what a text says after such a name are not recorded."""
    signal = Signal(name="login")
    inspector = Inspector()

    def fail(**named):
        raise LookupError(str(arguments))

    signal.connect(fail)
    async with viewing(inspector) as viewer:
        await signal.send_robust(str(arguments), **arguments)
        await viewer.wait_for_sends(1)
        kept = inspector._recorder.since(0)
    assert secret not in json.dumps(viewer.events)
    assert secret not in str(kept)
    assert "••••" in json.dumps(viewer.events, ensure_ascii=False)


async def test_the_scope_of_a_request_is_shown_as_its_request_line():
    """What else is in it is long, the same each time, and nobody's business."""
    signal = Signal(["scope"], name="shop.request")
    async with viewing(Inspector()) as viewer:
        await signal.send(None, scope=scope_for("/pizzas/7", method="POST", headers=[("cookie", "s3ssion")]))
        await signal.send(None, scope={"type": "lifespan", "asgi": {"version": "3.0"}})
        first, second = await viewer.wait_for_sends(2)
    assert first["arguments"] == [["scope", "<http POST /pizzas/7>"]]
    assert second["arguments"] == [["scope", "<lifespan>"]]


async def test_what_is_kept_and_shown_of_values_and_places_may_be_chosen(collect):
    """`keep` sends are there for a page that comes later; a value has `limit` characters, and a receiver no link."""
    signal = Signal(["text"], name="shop.paid")
    signal.connect(collect)
    inspector = Inspector(keep=2, limit=10, editor=None)
    async with viewing(inspector):
        for text in ("first", "second", "x" * 1000):
            await signal.send(None, text=text)
        async with viewing(inspector) as later:
            second, third = await later.wait_for_sends(2)
    assert second["arguments"] == [["text", "'second'"]]
    assert 5 <= third["arguments"][0][1].count("x") <= 10
    assert third["receivers"][0]["place"]
    assert third["receivers"][0]["link"] is None


async def test_the_names_of_secrets_may_be_chosen():
    """`secrets` replaces the usual names; with none of them nothing is masked."""
    signal = Signal(name="login")
    async with viewing(Inspector(secrets=["shoe"])) as viewer, viewing(Inspector(secrets=[])) as bare:
        await signal.send(None, password="hunter2", shoe_size=42)  # noqa: S106  not masked here
        assert (await viewer.wait_for_sends(1))[0]["arguments"] == [["password", "'hunter2'"], ["shoe_size", "••••"]]
        assert (await bare.wait_for_sends(1))[0]["arguments"][1] == ["shoe_size", "42"]


async def test_memory_is_bounded_in_number_and_size(monkeypatch):
    """However much is sent, at most `keep` sends and a fixed number of bytes are kept, and no sent object."""
    monkeypatch.setattr(_recorder, "PER_SECOND", 10**9)
    monkeypatch.setattr(_recorder, "BYTES", 20_000)
    recorder = Recorder(keep=50, shower=Shower(), link=editor_link(None))
    paid = Signal(["text"], name="shop.paid")
    recorder.start()
    try:
        for number in range(500):
            await paid.send(None, text=str(number))
        number, kept, _ = recorder.since(0)
        assert (number, len(kept)) == (500, 50)
        for _ in range(500):
            await paid.send(None, text="x" * 10_000)
        assert sum(map(len, recorder.since(0)[1])) <= 20_000
        assert recorder._bytes == sum(map(len, recorder.since(0)[1]))
        assert recorder._unfinished == {}
    finally:
        recorder.stop()
    assert watchers == []


async def test_sends_that_end_without_a_report_are_forgotten(monkeypatch):
    """Receivers' reports of sends that never end do not pile up."""
    monkeypatch.setattr(_recorder, "UNFINISHED", 10)
    recorder = Recorder(keep=5, shower=Shower(), link=editor_link(None))
    paid = Signal([], name="shop.paid")

    def quick(**named): ...
    async def never(**named):
        await anyio.sleep_forever()

    paid.connect(quick)
    paid.connect(never)
    recorder.start()
    try:
        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(paid.send, None)
            await anyio.wait_all_tasks_blocked()
            assert len(recorder._unfinished) == 10
            group.cancel_scope.cancel()
    finally:
        recorder.stop()
    assert recorder._unfinished == {}


async def test_signals_that_are_gone_are_forgotten():
    """Statistics do not keep signals alive, nor grow with signals that come and go."""
    recorder = Recorder(keep=5, shower=Shower(), link=editor_link(None))
    recorder.start()
    try:
        for number in range(100):
            await Signal([], name=f"s{number}").send(None)
        kept = Signal([], name="kept")
        await kept.send(None)
        assert len(recorder.statistics()) == 1
        assert len(recorder._signals) == 1
    finally:
        recorder.stop()


async def test_a_flood_is_counted_but_not_shown_in_full(monkeypatch):
    """Above the allowance sends are counted and timed only; failed ones have an allowance of their own."""
    paid = Signal([], name="shop.paid")

    def fail(**named):
        raise LookupError

    monkeypatch.setattr(_recorder.time, "monotonic", lambda: 1000.0)
    recorder = Recorder(keep=500, shower=Shower(), link=editor_link(None))
    recorder.start()
    try:
        for _ in range(150):
            await paid.send(None)
        paid.connect(fail)
        for _ in range(50):
            await paid.send_robust(None)
        shown = [json.loads(text) for text in recorder.since(0)[1]]
        ((figures, _),) = recorder.statistics().values()
    finally:
        recorder.stop()
    assert len(shown) == 120
    assert sum(bool(each["receivers"]) for each in shown) == 20
    assert figures[:2] == [200, 50]
    assert recorder.skipped == 80


async def test_concurrent_threads_are_recorded_without_loss(monkeypatch):
    """Sends of four threads at once are all counted, each with its own receivers."""
    monkeypatch.setattr(_recorder, "PER_SECOND", 10**9)
    recorder = Recorder(keep=10_000, shower=Shower(), link=editor_link(None))
    paid = Signal(["number"], name="shop.paid")

    def one(**named): ...
    def two(**named): ...

    paid.connect(one)
    paid.connect(two)

    def run(start):
        async def send():
            for number in range(start, start + 200):
                await paid.send(None, number=number)

        anyio.run(send)

    recorder.start()
    threads = [threading.Thread(target=run, args=(number * 200,)) for number in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join)
        shown = [json.loads(text) for text in recorder.since(0)[1]]
    finally:
        recorder.stop()
    assert sorted(int(each["arguments"][0][1]) for each in shown) == list(range(800))
    assert {len(each["receivers"]) for each in shown} == {2}
    assert [each["number"] for each in shown] == list(range(1, 801))


@pytest.mark.parametrize("path", ["/", "/static/inspector.js", "/static/nothing", "/nothing"])
async def test_every_answer_has_the_strict_headers(path):
    """Pages, files, errors and refusals: only own scripts and styles, no markup from text, no frames, no referrer."""
    for app in (Inspector(), ProtectedInspector(), ProtectedInspector(allow=lambda _: False)):
        _, headers, _ = await request(app, path)
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/events", "/static/inspector.js"])
async def test_nothing_can_be_changed(method, path):
    """Only GET and HEAD are answered."""
    status, _, body = await request(Inspector(), path, method=method)
    assert status == 405
    assert b"shop" not in body


@pytest.mark.parametrize(
    "path", ["/static/../_app.py", "/static/%2e%2e/_app.py", "/static/..%2f_app.py", "/static//etc/passwd"]
)
async def test_static_files_end_at_their_directory(path):
    """No path leads out of the package's own files."""
    assert (await request(Inspector(), path))[0] == 404


async def test_head_opens_no_stream():
    """HEAD of the events is answered and starts no watch."""
    inspector = Inspector()
    status, headers, body = await request(inspector, "/events", method="HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-type"].startswith("text/event-stream")
    assert not inspector.is_watching


async def test_the_page_is_self_contained():
    """It refers to the package's own files only, has no inline script or style, and shows its title as text."""
    _, headers, body = await request(Inspector(title='<Shop> & "Co"'))
    page = body.decode()
    assert headers["content-type"].startswith("text/html")
    assert "&lt;Shop&gt; &amp; &#34;Co&#34;" in page
    assert "<Shop>" not in page
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {
        "static/icon.svg",
        "static/inspector.css",
        "static/inspector.js",
    }
    assert not re.search(r"<script[^>]*>[^<]|<style|\sstyle=|\son\w+=", page)
    for name in ("icon.svg", "inspector.css", "inspector.js"):
        status, _, body = await request(Inspector(), f"/static/{name}")
        assert status == 200
        assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in body
    assert b"innerHTML" not in (await request(Inspector(), "/static/inspector.js"))[2]


async def test_it_is_found_below_where_it_is_mounted():
    """`app.mount("/signals", …)`, with and without the slash at the end, twice and in another app as well."""
    inspector = Inspector()
    several = Starlette(routes=[Mount("/signals", inspector), Mount("/also", inspector)])
    for app, path in ((several, "/signals"), (several, "/also"), (Starlette(routes=[Mount("/x", inspector)]), "/x")):
        status, headers, _ = await request(app, path)
        assert status in (301, 302, 307, 308)
        assert headers["location"].endswith(f"{path}/")
        assert (await request(app, f"{path}/"))[0] == 200
        assert (await request(app, f"{path}/static/inspector.css"))[0] == 200


async def test_there_is_a_limit_of_viewers(monkeypatch):
    """One viewer too many is told to come back later; when one leaves there is room again."""
    monkeypatch.setattr(_app, "VIEWERS", 1)
    inspector = Inspector()
    async with viewing(inspector):
        status, headers, _ = await request(inspector, "/events")
        assert (status, headers["retry-after"]) == (503, "5")
    async with viewing(inspector):
        assert inspector.is_watching


async def test_a_viewer_that_takes_no_data_is_given_up(monkeypatch):
    """A stalled connection does not keep the watch on for ever."""
    monkeypatch.setattr(_app, "STALLED", 0.05)
    inspector = Inspector()
    async with viewing(inspector) as viewer:
        viewer.stalled = anyio.Event()
        with anyio.fail_after(60):
            await viewer.ended.wait()
        assert not inspector.is_watching


async def test_a_cancelled_stream_ends_the_watch():
    """A server that cancels the request leaves nothing behind."""
    inspector = Inspector()
    with anyio.CancelScope() as scope:
        async with viewing(inspector):
            assert inspector.is_watching
            scope.cancel()
    assert not inspector.is_watching
    assert watchers == []


@pytest.mark.parametrize(
    ("editor", "link"),
    [
        ("vscode", "vscode://file/a%20b/c.py:7"),
        ("cursor", "cursor://file/a%20b/c.py:7"),
        ("zed", "zed://file/a%20b/c.py:7"),
        ("sublime", "subl://open?url=file:///a%20b/c.py&line=7"),
        ("pycharm", "pycharm://open?file=/a%20b/c.py&line=7"),
        ("my://{path}#{line}", "my:///a%20b/c.py#7"),
    ],
)
def test_links_open_the_editor(editor, link):
    """A known editor, or a template of one's own; paths are quoted."""
    assert editor_link(_app._editor(editor))("/a b/c.py", 7) == link
    assert editor_link(None)("/a b/c.py", 7) is None
    assert editor_link(_app._editor(editor))("<string>", 7) is None


@pytest.mark.parametrize("editor", ["emacs", "", "javascript:alert({path})", " JavaScript:{path}", "data:{path}"])
def test_an_editor_must_be_known_or_a_link(editor):
    """A name that is not known, and a link that would run a script, are refused."""
    with pytest.raises(ValueError, match="editor must be one of"):
        Inspector(editor=editor)


@pytest.mark.parametrize("options", [{"keep": 0}, {"limit": 0}])
def test_limits_must_be_positive(options):
    """A buffer or a text of no length is refused."""
    with pytest.raises(ValueError, match="at least 1"):
        Inspector(**options)


async def test_a_failing_inspector_does_not_trouble_the_sender(monkeypatch):
    """If recording fails, the send goes on as if nobody looked."""
    paid = Signal([], name="shop.paid")

    def broken(*arguments):
        raise RuntimeError

    async with viewing(Inspector()):
        monkeypatch.setattr(Recorder, "_show", broken)
        assert await paid.send(None) == []
        assert watchers == []


def test_importing_the_library_loads_no_toolkit():
    """Starlette and Jinja2 are loaded by `asignals.inspector` only."""
    import subprocess

    code = "import sys, asignals; print([name for name in ('starlette', 'jinja2', 'rich') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert result.stdout.strip() == "[]"


async def test_a_send_names_the_send_that_it_follows_from():
    """One that a receiver makes, in its own task, in a task group and in a background, has it as its parent."""
    outer, inner, late = Signal([], name="shop.outer"), Signal([], name="shop.inner"), Signal([], name="shop.late")

    async def receiver(**named):
        await inner.send(None)
        async with anyio.create_task_group() as group:
            group.start_soon(inner.send, None)
        await background.send(late, None)

    outer.connect(receiver)
    async with Background() as background, viewing(Inspector()) as viewer:
        await outer.send(None)
        await background.drain(5)
        sends = await viewer.wait_for_sends(4)
    (root,) = [send for send in sends if send["name"] == "shop.outer"]
    assert root["parent"] is None
    assert [(send["name"], send["parent"]) for send in sends if send is not root] == [
        ("shop.inner", root["id"]),
        ("shop.inner", root["id"]),
        ("shop.late", root["id"]),
    ]
    assert len({send["id"] for send in sends}) == 4


async def test_called_and_not_called_receivers_are_told_apart(collect):
    """The figures say how many sends reached nobody and how many receivers were called; `/counts` says which."""
    paid = Signal([], name="inspected.paid")
    never = Signal([], name="inspected.never")
    paid.connect(collect)
    never.connect(collect)
    heard = Signal([], name="inspected.nobody")
    inspector = Inspector()
    async with viewing(inspector) as viewer:
        await paid.send(None)
        await heard.send(None)
        await viewer.wait_for("statistics", 2)
        number = str(inspector._recorder.number_of(heard))
        reach = [data for kind, data, _ in viewer.events if kind == "statistics"][-1]["reach"]
        counts = json.loads((await request(inspector, "/counts"))[2])
    assert reach[number] == [1, 0]
    assert list(counts["inspected.paid"]["calls"].values()) == [1]
    assert list(counts["inspected.never"]["calls"].values()) == [0]
    assert counts["inspected.nobody"] == {"sends": 1, "unheard": 1, "calls": {}}


async def test_a_long_list_is_fetched_by_itself_and_made_once():
    """What fits into the stream comes with it; a long list is a request of its own, and not made anew each time."""
    crowd = [Signal(["value"], name=f"crowd.s{number}", doc="word " * 20) for number in range(300)]
    inspector = Inspector()
    async with viewing(inspector) as viewer:
        listed = [data for kind, data, _ in viewer.events if kind == "signals"][-1]
        assert set(listed) == {"version"}
        whole = json.loads((await request(inspector, "/signals"))[2])
        assert {each["name"] for each in whole["signals"]} >= {signal.name for signal in crowd}
        gc.collect()  # else a signal that another test has left might be collected, and so change the list
        assert inspector._list() is inspector._list()


async def test_a_relay_is_shown_as_its_topic():
    """`relay shop → order.paid`, and nothing of how it is done."""
    relays = pytest.importorskip("asignals.relay")
    paid = Signal(["amount"], name="relayed.paid")
    relay = relays.Relay(relays.Memory(), "shop")
    relay.export(paid, "order.paid", sender_codec=(str, str))
    with contextlib.suppress(Exception):  # the relay does not run
        await paid.send("web", amount=1)
    inspector = Inspector()
    async with viewing(inspector) as viewer:
        await paid.send_robust("web", amount=1)
        (send,) = await viewer.wait_for_sends(1)
        listed = json.loads(inspector._list())["signals"]
    relay.stop_exporting(paid)
    (info,) = [each for each in listed if each["number"] == inspector._recorder.number_of(paid)]
    assert [(each["name"], each["notes"]) for each in info["receivers"]] == [("relay shop → order.paid", [])]
    assert send["receivers"][0]["name"] == "relay shop → order.paid"
    assert send["receivers"][0]["place"] is None


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_relay_brings_stands_under_the_send_that_exported_it(anyio_backend):
    """In one process a trace goes through the relay; the receiving send says by which topic and service it came."""
    relays = pytest.importorskip("asignals.relay")
    testing = pytest.importorskip("asignals.relay.testing")
    paid, heard, noted = Signal(["amount"], name="r.paid"), Signal(["amount"], name="r.heard"), Signal(name="r.noted")

    async def note(amount, **_):
        await noted.send("mail", amount=amount)

    inspector = Inspector()
    with heard.connected(note), testing.RelayTest() as test:
        shop, mail = test.service("shop"), test.service("mail")
        shop.export(paid, "order.paid")
        mail.receive(heard, "order.paid")
        async with viewing(inspector) as viewer:
            await paid.send("web", amount=1)
            await test.deliver()
            sends = {each["name"]: each for each in await viewer.wait_for_sends(3)}
    assert relays.current_event() is None
    assert [sends["r.paid"][each] for each in ("parent", "event")] == [None, None]
    assert sends["r.heard"]["parent"] == sends["r.paid"]["id"]
    assert sends["r.heard"]["event"] == "relay shop → order.paid → mail"
    assert [sends["r.noted"][each] for each in ("parent", "event")] == [sends["r.heard"]["id"], None]
