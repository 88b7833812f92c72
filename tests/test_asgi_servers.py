"""`asignals.asgi` on real sockets: every server, whatever its clients do to it, and every framework."""

import asyncio
import contextlib
import functools
import http.client
import queue
import random
import socket
import struct
import sys
import threading
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest

from asignals import Signal, asgi
from asignals.asgi import ASGIApp, Receive, Scope, Send, SignalMiddleware

uvicorn = pytest.importorskip("uvicorn")
hypercorn = pytest.importorskip("hypercorn")
granian = pytest.importorskip("granian.server.embed")
websockets = pytest.importorskip("websockets")
ws_client = pytest.importorskip("websockets.sync.client")

PATIENCE = 60  # seconds, after which something that should have happened has failed to happen

SIGNALS: list[Signal[..., Any]] = [
    asgi.request_started,
    asgi.request_finished,
    asgi.got_request_exception,
    asgi.websocket_connected,
    asgi.websocket_disconnected,
    asgi.lifespan_started,
    asgi.lifespan_stopped,
]


class Heard:
    """What the signals of one application sent, handed from the server's thread to the test's."""

    def __init__(self, app: ASGIApp) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []
        self._new: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        for signal in SIGNALS:
            name = str(signal.name).rpartition(".")[2]
            signal.connect(functools.partial(self._hear, name), sender=app, weak=False)

    def _hear(self, name: str, **arguments: Any) -> None:
        self.all.append((name, arguments))
        self._new.put((name, arguments))

    def wait(self, name: str) -> dict[str, Any]:
        """The arguments of the next signal of this name."""
        while True:
            heard, arguments = self._new.get(timeout=PATIENCE)
            if heard == name:
                return arguments

    def names(self) -> list[str]:
        """All that was heard but the lifespan, which not every framework supports."""
        return [name for name, _ in self.all if not name.startswith("lifespan")]


# Servers: each an asynchronous function that serves on a port of the loopback until it is told to stop.

Serve: TypeAlias = Callable[[ASGIApp, int, anyio.Event], Awaitable[None]]
GRACE = 0.2  # seconds that a server gives a request when it shuts down


async def serve_uvicorn(app: ASGIApp, port: int, stop: anyio.Event, *, http: Any, ws: Any) -> None:
    config = uvicorn.Config(
        app, port=port, http=http, ws=ws, log_config=None, timeout_graceful_shutdown=GRACE, lifespan="auto"
    )
    server = uvicorn.Server(config)

    async def stop_server() -> None:
        await stop.wait()
        server.should_exit = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_server)
        await server.serve()


async def serve_hypercorn(app: ASGIApp, port: int, stop: anyio.Event, *, worker: str) -> None:
    from hypercorn.asyncio import serve as serve_asyncio
    from hypercorn.config import Config
    from hypercorn.trio import serve as serve_trio

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.graceful_timeout = GRACE
    serve: Any = {"asyncio": serve_asyncio, "trio": serve_trio}[worker]

    async def lose_patience() -> None:
        """From Python 3.12 on, its asyncio worker waits for ever for requests that do not end."""
        await stop.wait()
        await anyio.sleep(2 * GRACE)
        tasks.cancel_scope.cancel()

    if sys.version_info < (3, 12):
        await serve(app, config, shutdown_trigger=stop.wait)
        return
    # Up to Python 3.12 its own task group may leave a cancellation behind, which the scope then does not take for its.
    with contextlib.suppress(asyncio.CancelledError):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lose_patience)
            await serve(app, config, shutdown_trigger=stop.wait)
            tasks.cancel_scope.cancel()


async def serve_granian(app: ASGIApp, port: int, stop: anyio.Event) -> None:
    server = granian.Server(app, port=port, interface="asgi", log_enabled=False)

    async def stop_server() -> None:
        await stop.wait()
        server.stop()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_server)
        await server.serve()


UVICORN = functools.partial(serve_uvicorn, http="h11", ws="websockets-sansio")
HYPERCORN = functools.partial(serve_hypercorn, worker="asyncio")
SERVERS: dict[str, tuple[str, Serve]] = {
    "uvicorn-h11-websockets": ("asyncio", UVICORN),
    "uvicorn-httptools-wsproto": ("asyncio", functools.partial(serve_uvicorn, http="httptools", ws="wsproto")),
    "hypercorn-asyncio": ("asyncio", HYPERCORN),
    "hypercorn-trio": ("trio", functools.partial(serve_hypercorn, worker="trio")),
    "granian": ("asyncio", serve_granian),
}


@contextlib.contextmanager
def serving(server: str, app: ASGIApp) -> Iterator[int]:
    """Serve `app` in a thread on a free port of the loopback, and stop it at the end of the block."""
    backend, serve = SERVERS[server]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with anyio.from_thread.start_blocking_portal(backend) as portal:
        stop = portal.call(anyio.Event)
        running = portal.start_task_soon(serve, app, port, stop)
        try:
            deadline = time.monotonic() + PATIENCE
            while not running.done():
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
                assert time.monotonic() < deadline, f"{server} does not listen"
            yield port
        finally:
            portal.call(stop.set)
            running.result(timeout=PATIENCE)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    if "httptools" in request.param:
        pytest.importorskip("httptools")
    return str(request.param)


# The application, and what clients do to it


def make_shop() -> ASGIApp:
    """An application of its own for each test, so that each has its own sender."""

    async def shop(scope: Scope, receive: Receive, send: Send) -> None:
        handler: Any = {"http": serve_http, "websocket": serve_websocket, "lifespan": serve_lifespan}[scope["type"]]
        await handler(scope, receive, send)

    return shop


async def serve_http(scope: Scope, receive: Receive, send: Send) -> None:
    match scope["path"]:
        case "/pizza":
            await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"5")]})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else b"pizza"})
        case "/burnt":
            raise LookupError
        case "/half":
            await start(send)
            raise LookupError
        case "/endless":
            await start(send)
            await until_gone(receive)
        case "/stream":
            await start(send)
            await stream(receive, send)
        case "/order":
            await until_gone(receive)
        case "/stuck":
            await start(send)
            await anyio.sleep_forever()


async def start(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"slice", "more_body": True})


async def until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def stream(receive: Receive, send: Send) -> None:
    """Send for ever, and end as the specification allows it: by `http.disconnect` or by an `OSError` of `send`."""

    async def listen() -> None:
        await until_gone(receive)
        tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        with contextlib.suppress(OSError):
            while True:
                await send({"type": "http.response.body", "body": b"slice" * 100, "more_body": True})
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


async def serve_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if scope["path"] == "/reject":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    if scope["path"] == "/burnt":
        raise LookupError
    if scope["path"] == "/close":
        await send({"type": "websocket.close", "code": 4001})
    while (message := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": message["text"]})


async def serve_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    for event in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{event}"
        await send({"type": f"lifespan.{event}.complete"})


@contextlib.contextmanager
def talking(port: int, request: str) -> Iterator[socket.socket]:
    """A client on a bare socket, which has sent `request` and can go away as rudely as it likes."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        client.sendall(request.replace("\n", "\r\n").encode())
        yield client


def read_until(client: socket.socket, end: bytes) -> None:
    data = b""
    while end not in data:
        data += (chunk := client.recv(65536))
        assert chunk, f"closed before {end!r}: {data!r}"


def reset(client: socket.socket) -> None:
    """Close with RST instead of FIN: what a crashed client or a firewall does."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def leave(client: socket.socket) -> None:
    client.close()


def get(port: int, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()


REQUEST = ["request_started", "request_finished"]
FAILED_REQUEST = ["request_started", "got_request_exception", "request_finished"]
WEBSOCKET = ["websocket_connected", "websocket_disconnected"]
FAILED_WEBSOCKET = ["websocket_connected", "got_request_exception", "websocket_disconnected"]


# Every server


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_success(server: str, method: str) -> None:
    """The client gets the response unchanged, and each request is heard twice."""
    app = make_shop()
    heard = Heard(app)
    with serving(server, SignalMiddleware(app)) as port:
        assert get(port, "/pizza", method) == (201, b"" if method == "HEAD" else b"pizza")
        finished = heard.wait("request_finished")
    assert (finished["status"], finished["exception"], finished["scope"]["method"]) == (201, None, method)
    assert heard.names() == REQUEST


def test_keep_alive_and_pipelining(server: str) -> None:
    """Each request on a connection has its own pair; a server may start one before the last has its end."""
    app = make_shop()
    heard = Heard(app)
    request = "GET /pizza HTTP/1.1\nHost: shop\n\n"
    with serving(server, SignalMiddleware(app)) as port, talking(port, request * 3) as client:
        for _ in range(3):
            heard.wait("request_finished")
        leave(client)
    assert sorted(heard.names()) == sorted(REQUEST * 3)


def test_lifespan_surrounds_the_requests(server: str) -> None:
    """Started before the first request, stopped after the last, once each."""
    app = make_shop()
    heard = Heard(app)
    with serving(server, SignalMiddleware(app)) as port:
        get(port, "/pizza")
    assert [name for name, _ in heard.all] == ["lifespan_started", *REQUEST, "lifespan_stopped"]


@pytest.mark.parametrize(("path", "status"), [("/burnt", None), ("/half", 200)])
def test_error_before_and_after_the_first_byte(server: str, path: str, status: int | None) -> None:
    """The server sees the application's own exception and answers, or breaks off, as it does without the middleware."""
    app = make_shop()
    heard = Heard(app)
    with serving(server, SignalMiddleware(app)) as port:
        if path == "/burnt":
            assert get(port, path)[0] == 500
        else:
            with contextlib.suppress(http.client.IncompleteRead, ConnectionResetError):
                assert get(port, path)[0] == 200
        finished = heard.wait("request_finished")
    assert isinstance(finished["exception"], LookupError)
    assert finished["status"] == status
    assert heard.names() == FAILED_REQUEST


@pytest.mark.parametrize("go", [leave, reset])
@pytest.mark.parametrize("path", ["/endless", "/stream"])
def test_client_gone_in_the_middle_of_a_response(server: str, path: str, go: Callable[[socket.socket], None]) -> None:
    """Whether the application waits or sends at that moment, and whether the connection is closed or reset."""
    app = make_shop()
    heard = Heard(app)
    with serving(server, SignalMiddleware(app)) as port:
        with talking(port, f"GET {path} HTTP/1.1\nHost: shop\n\n") as client:
            read_until(client, b"slice")
            go(client)
        assert heard.wait("request_finished")["status"] == 200
    assert heard.names() == REQUEST


@pytest.mark.parametrize("go", [leave, reset])
def test_client_gone_in_the_middle_of_a_request(server: str, go: Callable[[socket.socket], None]) -> None:
    """An upload that breaks off ends without a status, as nothing was answered."""
    app = make_shop()
    heard = Heard(app)
    with serving(server, SignalMiddleware(app)) as port:
        with talking(port, "POST /order HTTP/1.1\nHost: shop\nContent-Length: 100\n\nhalf an order") as client:
            heard.wait("request_started")
            go(client)
        assert heard.wait("request_finished")["status"] is None
    assert heard.names()[-1] == "request_finished"
    assert heard.names().count("request_finished") == 1


@pytest.mark.parametrize("go", [leave, reset])
@pytest.mark.parametrize("signal", [asgi.request_started, asgi.request_finished], ids=["started", "finished"])
def test_client_gone_while_receivers_run(
    server: str, signal: Signal[..., Any], go: Callable[[socket.socket], None]
) -> None:
    """A receiver is not disturbed by a client that leaves meanwhile, and one `request_finished` follows in any case."""
    app = make_shop()
    heard = Heard(app)
    entered, gate, left = threading.Event(), threading.Event(), threading.Event()

    @signal.connect(sender=app)
    async def linger(**_: Any) -> None:
        entered.set()
        await anyio.to_thread.run_sync(gate.wait, PATIENCE)
        left.set()

    with serving(server, SignalMiddleware(app)) as port:
        with talking(port, "GET /pizza HTTP/1.1\nHost: shop\n\n") as client:
            assert entered.wait(PATIENCE)
            go(client)
        if signal is asgi.request_started:
            assert heard.names() == ["request_started"]
        gate.set()
        heard.wait("request_finished")
        assert left.wait(PATIENCE)
    assert heard.names().count("request_finished") == heard.names().count("request_started") == 1


def test_shutdown_in_the_middle_of_a_response(server: str) -> None:
    """A request that the server cancels when it stops has its end, heard before the server is gone."""
    app = make_shop()
    heard = Heard(app)
    ended: list[bool] = []

    @asgi.request_finished.connect(sender=app)
    async def save(**_: Any) -> None:
        await anyio.lowlevel.checkpoint()
        ended.append(True)

    with contextlib.ExitStack() as stack:
        port = stack.enter_context(serving(server, SignalMiddleware(app)))
        client = stack.enter_context(talking(port, "GET /stuck HTTP/1.1\nHost: shop\n\n"))
        read_until(client, b"slice")
        stack.pop_all().__exit__(None, None, None)
    assert heard.names() == REQUEST
    assert ended == [True]


def websocket(port: int, path: str) -> Any:
    return ws_client.connect(f"ws://127.0.0.1:{port}{path}", open_timeout=PATIENCE, proxy=None)


def test_websocket_closed_by_the_client(server: str) -> None:
    """The code is the one that the server tells the application: the client's, or for hypercorn always 1006."""
    app = make_shop()
    heard = Heard(app)
    with serving(server, SignalMiddleware(app)) as port:
        with websocket(port, "/") as client:
            client.send("ciao")
            assert client.recv(timeout=PATIENCE) == "ciao"
            client.close(code=4000)
        disconnected = heard.wait("websocket_disconnected")
    code = 1006 if server.startswith("hypercorn") else 4000
    assert (disconnected["code"], disconnected["exception"]) == (code, None)
    assert heard.names() == WEBSOCKET


def test_websocket_closed_by_the_application(server: str) -> None:
    """The code is the application's, on both sides."""
    app = make_shop()
    heard = Heard(app)
    with serving(server, SignalMiddleware(app)) as port:
        with websocket(port, "/close") as client, pytest.raises(Exception, match="4001"):
            client.recv(timeout=PATIENCE)
        disconnected = heard.wait("websocket_disconnected")
    assert (disconnected["code"], disconnected["exception"]) == (4001, None)
    assert heard.names() == WEBSOCKET


def test_websocket_of_an_application_that_fails(server: str) -> None:
    """The server closes, with a code of its own."""
    app = make_shop()
    heard = Heard(app)
    with serving(server, SignalMiddleware(app)) as port:
        with websocket(port, "/burnt") as client, pytest.raises(websockets.ConnectionClosed):
            client.recv(timeout=PATIENCE)
        disconnected = heard.wait("websocket_disconnected")
    assert isinstance(disconnected["exception"], LookupError)
    assert disconnected["code"] is None
    assert heard.names() == FAILED_WEBSOCKET


def test_websocket_that_is_rejected(server: str) -> None:
    """It was never connected."""
    app = make_shop()
    heard = Heard(app)
    with serving(server, SignalMiddleware(app)) as port, pytest.raises(websockets.InvalidStatus, match="403"):
        websocket(port, "/reject")
    assert heard.names() == []


UPGRADE = """\
GET / HTTP/1.1
Host: shop
Connection: Upgrade
Upgrade: websocket
Sec-WebSocket-Version: 13
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==

"""


@pytest.mark.parametrize("go", [leave, reset])
def test_websocket_that_is_cut(server: str, go: Callable[[socket.socket], None]) -> None:
    """Without a closing frame the code is one of those that are never sent (RFC 6455, section 7.4.1)."""
    app = make_shop()
    heard = Heard(app)
    with serving(server, SignalMiddleware(app)) as port:
        with talking(port, UPGRADE) as client:
            read_until(client, b"\r\n\r\n")
            heard.wait("websocket_connected")
            go(client)
        assert heard.wait("websocket_disconnected")["code"] in {1005, 1006}
    assert heard.names() == WEBSOCKET


def test_websocket_open_at_shutdown(server: str) -> None:
    """Server and application end it, and that is heard before the server is gone."""
    app = make_shop()
    heard = Heard(app)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(serving(server, SignalMiddleware(app)))
        client = stack.enter_context(talking(port, UPGRADE))
        read_until(client, b"\r\n\r\n")
        heard.wait("websocket_connected")
        stack.pop_all().__exit__(None, None, None)
    assert heard.names() == WEBSOCKET


def test_http_2() -> None:
    """The streams of a connection are requests like others, also one that breaks off with the connection."""
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("h2")
    app = make_shop()
    heard = Heard(app)
    with serving("hypercorn-asyncio", SignalMiddleware(app)) as port:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, http1=False, http2=True, trust_env=False) as client:
            response = client.get("/pizza")
            assert (response.http_version, response.status_code) == ("HTTP/2", 201)
            assert client.get("/burnt").status_code == 500
            with client.stream("GET", "/endless") as response:
                next(response.iter_raw())
        for status in (201, None, 200):
            assert heard.wait("request_finished")["status"] == status
    assert sorted(heard.names()) == sorted([*REQUEST * 2, *FAILED_REQUEST])


def storm(port: int, seed: int) -> None:
    """Fifteen clients, one after the other, who each leave at a moment of their own."""
    chance = random.Random(seed)  # noqa: S311  nothing secret
    for _ in range(15):
        path = chance.choice(["/pizza", "/burnt", "/half", "/endless", "/stream", "/order", "/talk"])
        method = "POST" if path == "/order" else "GET"
        request = f"{method} {path} HTTP/1.1\nHost: shop\nContent-Length: {50 * (path == '/order')}\n\n"
        with contextlib.suppress(OSError), talking(port, UPGRADE if path == "/talk" else request) as client:
            if chance.random() < 0.5:
                client.settimeout(0.02)
                client.recv(chance.choice([1, 65536]))
            if chance.random() < 0.5:
                reset(client)


def test_a_storm_of_rude_clients(server: str) -> None:
    """Whatever arrives, whole or not, and whenever they leave: what was begun is ended, once."""
    if server == "granian":
        pytest.skip("granian itself takes over ten seconds to stop after this")
    app = make_shop()
    heard = Heard(app)
    with serving(server, SignalMiddleware(app)) as port, ThreadPoolExecutor(8) as pool:
        list(pool.map(functools.partial(storm, port), range(8)))
    names = heard.names()
    assert names.count("request_started") == names.count("request_finished") > 0
    assert names.count("websocket_connected") == names.count("websocket_disconnected")
    for kind in ("request_finished", "websocket_disconnected"):
        scopes = [id(arguments["scope"]) for name, arguments in heard.all if name == kind]
        assert len(set(scopes)) == len(scopes)


# Every framework: the same shop, with a page, an error and a stream without end


class BurntError(Exception):
    """The shop's own error."""


def starlette() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, StreamingResponse
    from starlette.routing import Route, WebSocketRoute

    async def pizza(_: Any) -> Any:
        return PlainTextResponse("pizza", 201)

    async def burnt(_: Any) -> Any:
        raise BurntError

    async def endless(_: Any) -> Any:
        return StreamingResponse(slices())

    async def talk(websocket: Any) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close(4002)

    routes = [Route("/pizza", pizza), Route("/burnt", burnt), Route("/endless", endless)]
    return Starlette(routes=[*routes, WebSocketRoute("/talk", talk)])


def fastapi() -> Any:
    from fastapi import FastAPI, WebSocket
    from fastapi.responses import StreamingResponse

    app = FastAPI()

    @app.get("/pizza", status_code=201)
    async def pizza() -> str:
        return "pizza"

    @app.get("/burnt")
    async def burnt() -> None:
        raise BurntError

    @app.get("/endless")
    async def endless() -> Any:
        return StreamingResponse(slices())

    @app.websocket("/talk")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close(4002)

    return app


def litestar() -> Any:
    from litestar import Litestar, WebSocket, get, websocket
    from litestar.response import Stream

    @get("/pizza", status_code=201)
    async def pizza() -> str:
        return "pizza"

    @get("/burnt")
    async def burnt() -> None:
        raise BurntError

    @get("/endless")
    async def endless() -> Stream:
        return Stream(slices())

    @websocket("/talk")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close(4002)

    return Litestar([pizza, burnt, endless, talk], openapi_config=None, logging_config=None)


def quart() -> Any:
    from quart import Quart, websocket

    app = Quart("shop")

    @app.get("/pizza")
    async def pizza() -> Any:
        return "pizza", 201

    @app.get("/burnt")
    async def burnt() -> None:
        raise BurntError

    @app.get("/endless")
    async def endless() -> Any:
        return slices()

    @app.websocket("/talk")
    async def talk() -> None:
        await websocket.send(await websocket.receive())
        await websocket.close(4002)

    return app


def django() -> Any:
    from django.conf import settings
    from django.core.handlers.asgi import ASGIHandler
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path

    async def pizza(_: Any) -> Any:
        return HttpResponse("pizza", status=201)

    async def burnt(_: Any) -> Any:
        raise BurntError

    async def endless(_: Any) -> Any:
        return StreamingHttpResponse(slices())

    urls = types.ModuleType("urls")
    urls.__dict__["urlpatterns"] = [path("pizza", pizza), path("burnt", burnt), path("endless", endless)]
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["127.0.0.1", "shop"])
    settings.ROOT_URLCONF = urls
    return ASGIHandler()


async def slices() -> AsyncIterator[bytes]:
    while True:
        yield b"slice"
        await anyio.sleep(0.001)


FRAMEWORKS = [starlette, fastapi, litestar, quart, django]


@pytest.fixture(params=FRAMEWORKS, ids=lambda framework: framework.__name__)
def framework(request: pytest.FixtureRequest) -> ASGIApp:
    pytest.importorskip(request.param.__name__)
    app: ASGIApp = request.param()
    return app


@pytest.mark.filterwarnings(
    "ignore:The 'warn' method:DeprecationWarning"
)  # granian, of an application without lifespan
def test_frameworks(framework: ASGIApp, server: str) -> None:
    """A page, an error that the framework answers, a page that is not there, and a stream that the client leaves."""
    if server == "hypercorn-trio" and type(framework).__module__.split(".")[0] in {"quart", "django", "litestar"}:
        pytest.skip("this framework is for asyncio only")
    heard = Heard(framework)
    with serving(server, SignalMiddleware(framework)) as port:
        assert get(port, "/pizza")[0] == heard.wait("request_finished")["status"] == 201
        assert get(port, "/burnt")[0] == heard.wait("request_finished")["status"] == 500
        assert get(port, "/none")[0] == heard.wait("request_finished")["status"] == 404
        with talking(port, "GET /endless HTTP/1.1\nHost: shop\n\n") as client:
            read_until(client, b"slice")
            leave(client)
        assert heard.wait("request_finished")["status"] == 200
    assert heard.names().count("request_started") == heard.names().count("request_finished") == 4


def test_websockets_of_frameworks(framework: ASGIApp) -> None:
    """The close code is the one that the framework's user gave."""
    if type(framework).__module__.startswith("django"):
        pytest.skip("Django's handler has no websockets")
    heard = Heard(framework)
    with serving("uvicorn-h11-websockets", SignalMiddleware(framework)) as port:
        with websocket(port, "/talk") as client:
            client.send("ciao")
            assert client.recv(timeout=PATIENCE) == "ciao"
        assert heard.wait("websocket_disconnected")["code"] == 4002
    assert heard.names() == WEBSOCKET


def test_amid_the_middlewares_of_a_framework() -> None:
    """Also between ones that run what they wrap in a task of their own and cancel it; the sender is the application."""
    middleware = pytest.importorskip("starlette.middleware")
    base = pytest.importorskip("starlette.middleware.base")
    app = starlette()
    heard: list[tuple[str, ASGIApp]] = []

    async def pass_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    def hear(name: str, sender: ASGIApp, **_: Any) -> None:
        heard.append((name.rpartition(".")[2], sender))

    for signal in (asgi.request_started, asgi.request_finished):
        signal.connect(functools.partial(hear, signal.name), sender=app, weak=False)
    outer = middleware.Middleware(base.BaseHTTPMiddleware, dispatch=pass_on)
    app.user_middleware = [outer, middleware.Middleware(SignalMiddleware), outer]
    with serving("uvicorn-h11-websockets", app) as port:
        assert get(port, "/burnt")[0] == 500
        with talking(port, "GET /endless HTTP/1.1\nHost: shop\n\n") as client:
            read_until(client, b"slice")
            leave(client)
    assert [name for name, _ in heard] == REQUEST * 2
    assert len({id(sender) for _, sender in heard}) == 1
