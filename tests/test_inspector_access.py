"""Who may look at the inspector: by its token, by `allow=`, behind a proxy, and from other sites."""

import contextlib
import logging
import shutil
import socket
import subprocess
import threading
import time
from http.client import HTTPConnection

import pytest

pytest.importorskip("starlette", reason="needs asignals[inspector]")
pytest.importorskip("jinja2", reason="needs asignals[inspector]")

import anyio
from starlette.applications import Starlette
from starlette.routing import Mount
from test_inspector import request, viewing

from asignals.inspector import Inspector, loopback_only

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio", "trio")]

PATHS = ("/", "/events", "/signals", "/static/inspector.js", "/nothing")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": "Basic right"},
        {"cookie": "asignals=right"},
        {"x-forwarded-for": "127.0.0.1"},
    ],
)
async def test_without_the_token_nobody_looks(path, headers):
    """Not from this machine either: a proxy on it looks like a browser on it. No watch is started."""
    inspector = Inspector(token="right")  # noqa: S106
    status, answer, body = await request(inspector, path, headers=headers)
    assert (status, answer["www-authenticate"]) == (401, 'Bearer realm="asignals inspector"')
    assert b"right" not in body
    assert "set-cookie" not in answer
    assert not inspector.is_watching


async def test_the_token_in_the_address_is_remembered_in_a_cookie():
    """After the first visit the browser's cookie opens the page, its files and its events; it is not the token."""
    inspector = Inspector(token="right/ü")  # noqa: S106
    status, answer, _ = await request(inspector, "/", query=b"token=right%2F%C3%BC")
    assert status == 200
    cookie, *attributes = answer["set-cookie"].split("; ")
    assert attributes == ["HttpOnly", "SameSite=Strict"]
    assert "right" not in cookie
    for path in ("/", "/signals", "/static/inspector.css"):
        assert (await request(inspector, path, headers={"cookie": f"other=1; {cookie}"}))[0] == 200
    async with viewing(inspector, cookie=cookie):
        assert inspector.is_watching
    assert (await request(Inspector(token="right/u"), headers={"cookie": cookie}))[0] == 401  # noqa: S106
    assert (await request(inspector, "/", query=b"token=right", headers={"cookie": cookie[:-1]}))[0] == 401


async def test_the_cookie_is_secure_where_the_page_is():
    """Over HTTPS the browser sends it over HTTPS only."""
    _, answer, _ = await request(Inspector(token="right"), "/", query=b"token=right", scheme="https")  # noqa: S106
    assert answer["set-cookie"].endswith("; Secure")


async def test_a_program_sends_the_token_as_a_header():
    """`Authorization: Bearer`, in any case of letters, without cookies."""
    for kind in ("Bearer", "bearer"):
        answer = await request(Inspector(token="right"), "/signals", headers={"authorization": f"{kind} right"})  # noqa: S106
        assert answer[0] == 200
        assert "set-cookie" not in answer[1]


async def test_the_way_to_the_slash_keeps_the_token():
    """`/signals?token=…` leads to `/signals/?token=…`."""
    app = Starlette(routes=[Mount("/signals", Inspector(token="right"))])  # noqa: S106
    status, answer, _ = await request(app, "/signals", query=b"token=right")
    assert status in (307, 308)
    assert answer["location"].endswith("/signals/?token=right")


async def test_a_random_token_is_in_the_attribute_and_in_the_log_once(caplog):
    """Nobody can guess it; whoever comes without it finds it in the program's log, which a given one never is in."""
    first, second = Inspector(), Inspector()
    assert first.token != second.token
    assert len(first.token) >= 20
    assert (await request(first, "/", query=f"token={first.token}".encode()))[0] == 200
    with caplog.at_level(logging.WARNING, "asignals.inspector"):
        for inspector in (first, first, Inspector(token="given")):  # noqa: S106
            assert (await request(inspector, "/"))[0] == 401
    assert [record.getMessage() for record in caplog.records] == [
        f"the inspector asks for its token: /?token={first.token}"
    ]


@pytest.mark.parametrize("options", [{"token": ""}, {"token": "x", "allow": loopback_only}])
def test_a_choice_that_protects_nothing_is_refused(options):
    """An empty token, as an environment variable that is not set may be, and two that both would decide."""
    with pytest.raises(ValueError, match="token"):
        Inspector(**options)


async def test_tokens_are_compared_in_constant_time(monkeypatch):
    """By `hmac.compare_digest`, the token and the cookie alike."""
    from asignals.inspector import _access

    compared = []
    original = _access.hmac.compare_digest
    monkeypatch.setattr(_access.hmac, "compare_digest", lambda *pair: compared.append(pair) or original(*pair))
    await request(Inspector(token="right"), "/", query=b"token=wrong")  # noqa: S106
    assert (b"wrong", b"right") in compared
    assert len(compared) == 3


@pytest.mark.parametrize("path", ["/", "/events", "/static/inspector.css"])
@pytest.mark.parametrize(
    ("site", "mode", "status"),
    [
        ("cross-site", "no-cors", 403),
        ("same-site", "cors", 403),
        ("cross-site", "navigate", 403),
        ("same-site", "navigate", 403),
        ("none", "navigate", 200),
        ("same-origin", "cors", 200),
    ],
)
async def test_no_other_site_starts_the_watch_or_reads(path, site, mode, status):
    """Neither by loading a part of it nor by opening it, with the cookie or where `allow` lets everybody in."""
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode}
    method = "HEAD" if path == "/events" else "GET"
    inspector = Inspector(token="right")  # noqa: S106
    cookie = (await request(inspector, "/", query=b"token=right"))[1]["set-cookie"].partition(";")[0]
    assert (await request(inspector, path, method=method, headers={**headers, "cookie": cookie}))[0] == status
    assert (await request(Inspector(allow=lambda _: True), path, method=method, headers=headers))[0] == status
    assert not inspector.is_watching


async def test_allow_decides_instead_of_a_token():
    """A function, sync or async, may let others in or shut everybody out; there is no token then."""

    async def by_header(connection):
        await anyio.lowlevel.checkpoint()
        return connection.headers.get("x-user") == "ada"

    far = {"client": ("8.8.8.8", 1)}
    assert (await request(Inspector(allow=lambda connection: True), **far))[0] == 200
    assert (await request(Inspector(allow=by_header), headers={"x-user": "ada"}, **far))[0] == 200
    assert (await request(Inspector(allow=by_header), headers={"x-user": "eve"}, **far))[0] == 403
    assert (await request(Inspector(allow=lambda connection: False)))[0] == 403
    assert Inspector(allow=by_header).token is None


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        (("127.0.0.1", 1), {}, 200),
        (("127.8.8.8", 1), {"host": "127.0.0.1:8000"}, 200),
        (("::1", 1), {"host": "[::1]:8000"}, 200),
        (("::ffff:127.0.0.1", 1), {"host": "shop.localhost"}, 200),
        (("192.168.1.5", 1), {}, 403),
        (("8.8.8.8", 1), {"host": "127.0.0.1"}, 403),
        (("::ffff:8.8.8.8", 1), {}, 403),
        (None, {}, 403),
        (("testclient", 1), {}, 403),
        (("127.0.0.1", 1), {"host": "evil.example"}, 403),
        (("127.0.0.1", 1), {"host": "localhost.evil.example"}, 403),
        (("127.0.0.1", 1), {"host": "192.168.1.5:8000"}, 403),
        (("127.0.0.1", 1), {"host": ""}, 403),
        (("127.0.0.1", 1), {"x-forwarded-for": "8.8.8.8"}, 403),
        (("127.0.0.1", 1), {"forwarded": "for=8.8.8.8"}, 403),
        (("127.0.0.1", 1), {"x-real-ip": "8.8.8.8"}, 403),
        (("127.0.0.1", 1), {"via": "1.1 proxy"}, 403),
        (("127.0.0.1", 1), {"x-forwarded-proto": "https"}, 403),
    ],
)
async def test_loopback_only_allows_this_machine(client, headers, status):
    """The client must be on this machine, ask for it by name, and not come through a proxy."""
    for path in ("/", "/events" if status == 403 else "/", "/static/inspector.js"):
        assert (await request(Inspector(allow=loopback_only), path, client=client, headers=headers))[0] == status


# -- behind a real nginx ---------------------------------------------------------------------------------------------

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")

LOCATIONS = {
    "proxy_pass alone": "location / { proxy_pass http://127.0.0.1:APP; }",
    "with the usual headers": """
        location / {
            proxy_pass http://127.0.0.1:APP;
            proxy_set_header Host $host;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }""",
    "below a prefix that it cuts off": "location /debug/ { proxy_pass http://127.0.0.1:APP/; proxy_http_version 1.1; }",
}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def get(port, path, **headers):
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


@pytest.fixture(scope="module")
def app_port():
    """An application with an inspector, behind uvicorn as it is started for a proxy."""
    uvicorn = pytest.importorskip("uvicorn")
    app = Starlette(routes=[Mount("/signals", Inspector(token="right"))])  # noqa: S106
    config = uvicorn.Config(app, lifespan="off", log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(60)


@pytest.mark.skipif(NGINX is None, reason="needs nginx (Debian: apt-get install nginx-light)")
@pytest.mark.parametrize("location", LOCATIONS)
def test_behind_nginx_the_token_is_asked_for(app_port, tmp_path, location):
    """In three usual configurations: 401 without the token, and with it the page, its files and its events."""
    port = free_port()
    prefix = "/debug" if "/debug/" in LOCATIONS[location] else ""
    config = tmp_path / "nginx.conf"
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\nevents {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port};"
        f"{LOCATIONS[location].replace('APP', str(app_port))} }} }}"
    )
    with subprocess.Popen([NGINX, "-c", str(config), "-e", str(tmp_path / "error.log")]) as nginx:  # noqa: S603
        try:
            _wait_for(port)
            for path in ("/signals/", "/signals/events", "/signals/signals", "/signals/static/inspector.js"):
                assert get(port, prefix + path)[0] == 401
            status, headers, body = get(port, f"{prefix}/signals/?token=right")
            assert (status, b"<title>" in body) == (200, True)
            cookie = headers["set-cookie"].partition(";")[0]
            assert "path" not in headers["set-cookie"].lower()  # the browser takes the address that it knows
            for path in ("/signals/", "/signals/signals", "/signals/static/inspector.js"):
                assert get(port, prefix + path, Cookie=cookie)[0] == 200
            connection = HTTPConnection("127.0.0.1", port, timeout=20)
            with contextlib.closing(connection):
                connection.request("GET", f"{prefix}/signals/events", headers={"Cookie": cookie})
                assert connection.getresponse().readline().startswith(b"retry:")  # at once: nothing holds it back
        finally:
            nginx.terminate()


def _wait_for(port):
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        else:
            return


# -- a viewer that stalls --------------------------------------------------------------------------------------------


def test_a_stalled_viewer_leaves_no_error_in_the_servers_log(tmp_path):
    """One that reads nothing while much is sent gets a stream that ends well; the watch ends, uvicorn is content."""
    uvicorn = pytest.importorskip("uvicorn")
    from asignals import Signal

    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("uvicorn.error").addHandler(handler)
    inspector = Inspector(token="right")  # noqa: S106
    app = Starlette(routes=[Mount("/signals", inspector)])
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            with socket.socket() as viewer:
                viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                viewer.connect(listener.getsockname())
                viewer.sendall(b"GET /signals/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer right\r\n\r\n")
                big = Signal(["text"], name="stall.big")
                deadline = time.monotonic() + 20
                while not inspector.is_watching:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)

                async def flood():
                    while inspector.is_watching:
                        await big.send(None, text="x" * 150)
                        assert time.monotonic() < deadline
                        await anyio.sleep(0.001)
                        inspector._recorder._until = 0  # it need not linger

                anyio.run(flood)
        finally:
            server.should_exit = True
            thread.join(60)
            logging.getLogger("uvicorn.error").removeHandler(handler)
    assert [record.getMessage() for record in records if record.levelno >= logging.ERROR] == []
