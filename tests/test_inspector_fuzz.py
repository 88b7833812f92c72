"""Arbitrary requests to the inspector, as a server would pass them on: never a failure of its own."""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

pytest.importorskip("starlette", reason="needs asignals[inspector]")
pytest.importorskip("jinja2", reason="needs asignals[inspector]")

import anyio

from asignals.inspector import Inspector, _app

NAMES = st.sampled_from(
    b"host origin last-event-id sec-fetch-site sec-fetch-mode range if-none-match if-modified-since cookie forwarded "
    b"x-forwarded-for accept-encoding content-length".split()
)
VALUES = st.binary(max_size=20) | st.sampled_from(
    b"localhost localhost:8000 127.0.0.1 [::1]:1 [ :: same-origin cross-site navigate bytes=0-1 bytes=9-1,5- - * "
    b"0-99999999999999999999 0-\xb2 99999999999999999999".split()
)
PATHS = st.lists(
    st.sampled_from(["/", "events", "static", "inspector.js", "..", "%2e%2e", "\0", "//", "\ud800", "é", " ", "\\"])
    | st.text(max_size=4),
    max_size=5,
).map(lambda parts: "/" + "/".join(parts))
CLIENTS = st.sampled_from([("127.0.0.1", 1), ("::1", 1), ("192.0.2.1", 1), ("", 0), ("fe80::1%eth0", 1), None])


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(_app, "TICK", 0)
    monkeypatch.setattr(_app, "LIFETIME", 2)
    monkeypatch.setattr(_app, "LINGER", 0)


async def serve(inspector, scope):
    messages = []

    async def receive():
        await anyio.sleep_forever()

    async def send(message):
        messages.append(message)

    with anyio.fail_after(60):
        await inspector(scope, receive, send)
    return messages


@settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    path=PATHS,
    query=st.binary(max_size=20),
    headers=st.lists(st.tuples(NAMES, VALUES), max_size=5),
    method=st.sampled_from(["GET", "GET", "HEAD", "POST", "OPTIONS", "", "BREW"]),
    client=CLIENTS,
    is_allowed=st.booleans(),
)
@example(path="/events/", query=b"\x80", headers=[], method="GET", client=("127.0.0.1", 1), is_allowed=True)
@example(
    path="/events",
    query=b"",
    headers=[(b"host", b"["), (b"last-event-id", b"\xff")],
    method="GET",
    client=("127.0.0.1", 1),
    is_allowed=True,
)
def test_no_request_makes_it_fail(path, query, headers, method, client, is_allowed):  # noqa: PLR0913, PLR0917  all of a request
    """One complete answer, that is none of a failure, for every path, query, header, method and client."""
    inspector = Inspector(allow=lambda connection: True) if is_allowed else Inspector()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "root_path": "",
        "query_string": query,
        "headers": headers,
        "client": client,
        "server": ("127.0.0.1", 8000),
    }
    start, *bodies = anyio.run(serve, inspector, scope)
    assert start["type"] == "http.response.start"
    assert 200 <= start["status"] < 500
    assert [body.get("more_body", False) for body in bodies] == [True] * (len(bodies) - 1) + [False]
    assert not inspector.is_watching
