"""The ASGI app: the page, its static files, and the stream of events."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import secrets as random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from asignals import signals as live_signals
from asignals.overview.counts import key_of
from asignals.overview.discovery import (
    connections_of,
    describe_connection,
    first_line,
    is_orphan,
    notes_of,
    signature_of,
)
from asignals.overview.values import Shower, shorten

from ._access import Allow, Guard, Token, new_token
from ._recorder import Figures, Recorder, editor_link

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    import asignals

_HERE: Final = Path(__file__).parent

EDITORS: Final = {
    "vscode": "vscode://file{path}:{line}",
    "cursor": "cursor://file{path}:{line}",
    "zed": "zed://file{path}:{line}",
    "pycharm": "pycharm://open?file={path}&line={line}",
    "sublime": "subl://open?url=file://{path}&line={line}",
}
"""Names for `Inspector(editor=...)`, and the links they stand for."""

TICK: Final = 0.25  # seconds between looks for new sends
STATISTICS_EVERY: Final = 4  # ticks
SIGNALS_EVERY: Final = 8  # ticks
HEARTBEAT_EVERY: Final = 40  # ticks
LIFETIME: Final = (
    40  # ticks a stream lasts; servers wait for open responses when they shut down, so it must not be long
)
ROOM: Final = (
    48_000  # bytes a stream takes before it ends; a server holds back more than 64 KiB, and then cannot end it
)
RESERVE: Final = 6_000  # of these, bytes that are kept for statistics
FIGURE: Final = 100  # bytes that the statistics of a signal take
LINGER: Final = 3.0  # seconds that the watch goes on for a page whose stream has reached its end and will be back
STALLED: Final = 10.0  # seconds that a viewer may take no data
VIEWERS: Final = 16  # streams at once
SIGNALS: Final = 1000  # signals listed
FEW: Final = 50  # signals whose statistics are all sent each time
SIGNATURE: Final = 500  # characters


class Inspector:
    """An ASGI app that shows, live, what is connected and sent: `app.mount("/signals", Inspector())`.

    Only reads: nothing can be sent, connected or changed through it. While no page is open it watches nothing and costs
    nothing; the first page starts the watch (`asignals.monitor`) and the last one that is closed, or hidden, ends it.

    - `token`: what a visitor must know. Open the page once with `?token=…` at the end of its address; the browser then
      remembers it in a cookie. Programs send `Authorization: Bearer …`. None makes a random one: the attribute `token`
      has it, and it is logged when somebody comes without it. Several processes (`--workers 4`) need one that is given.
      Everybody else gets a 401. Serve the page by HTTPS where others can read what passes.
    - `allow`: instead of a token, a function, sync or async, that is given each connection (Starlette's
      `HTTPConnection`) and tells whether it may look: a session of your own, a client certificate. Access is then your
      responsibility. `loopback_only` is one for development without a proxy.
    - `keep`: how many sends are remembered, for pages that are opened or come back (items; their text is bounded to 8
      MB).
    - `limit`: the length of a value shown (characters).
    - `secrets`: parts of names whose values are masked, in any case: of arguments, keys, fields and headers, and in
      texts such as `token=…`; instead of the usual ones, from `password` to `cookie`.
    - `editor`: what a receiver's `file:line` opens: `"vscode"`, `"cursor"`, `"zed"`, `"pycharm"`, `"sublime"`, a link
      with `{path}` and `{line}`, or None for no links.
    - `title`: the page's title.

    Sends of every thread are shown. Beyond 100 sends a second the rest are counted and timed, but not shown, except 20
    failed ones a second. An inspector may be mounted several times, and in several apps. `ValueError` for an editor
    that is neither known nor a link, for a `keep` or `limit` below 1, for an empty token, and for both `token` and
    `allow`.
    """

    def __init__(  # noqa: PLR0913  options, each with a default
        self,
        *,
        token: str | None = None,
        allow: Allow | None = None,
        keep: int = 500,
        limit: int = 200,
        secrets: Iterable[str] | None = None,
        editor: str | None = "vscode",
        title: str = "asignals",
    ) -> None:
        """Prepare the app; nothing is watched yet."""
        if keep < 1 or limit < 1:
            raise ValueError("keep and limit must be at least 1")
        if token is not None and allow is not None:
            raise ValueError("give the inspector a token or allow, not both: one of them decides who may look")
        self._token = None if allow is not None else Token(new_token() if token is None else token)
        self._link = editor_link(_editor(editor))
        self._shower = Shower(limit, secrets)
        self._recorder = Recorder(keep=keep, shower=self._shower, link=self._link)
        # Numbers of sends of another process, or of this one before a reload, mean nothing here.
        self._run = random.token_hex(4)
        self._viewers = 0
        self._described: dict[tuple[int, tuple[int, ...]], str] = {}
        self._listed_state: list[tuple[int, tuple[int, ...]]] | None = None
        self._listed = ""
        self._page = _environment().get_template("inspector.html").render(title=title, version=_version())
        routes = [
            Route("/", self._index),
            Route("/events", self._events),
            Route("/signals", self._signals),
            Route("/counts", self._counts),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
        ]
        pages = Starlette(routes=routes)
        pages.router.redirect_slashes = (
            False  # there is nothing to find, and Starlette fails on queries that are no UTF-8
        )
        self._app = Guard(pages, allow, self._token, logs_token=token is None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await self._app(scope, receive, send)

    @property
    def token(self) -> str | None:
        """What a visitor must know; None where `allow` decides."""
        return None if self._token is None else self._token.value

    @property
    def is_watching(self) -> bool:
        """Whether sends are being recorded, because somebody looks."""
        return self._recorder.is_watching

    async def _index(self, request: Request) -> Response:
        # The page's links are relative, for it does not know where it is mounted.
        if not request.scope["path"].endswith("/"):
            name = request.scope["path"].rpartition("/")[2]
            query = f"?{request.url.query}" if request.url.query else ""
            return Response(status_code=307, headers={"Location": f"{name}/{query}"})
        return HTMLResponse(self._page)

    async def _events(self, request: Request) -> Response:
        if self._viewers >= VIEWERS:
            return PlainTextResponse("too many viewers", 503, headers={"Retry-After": "5"})
        run, _, number = request.headers.get("last-event-id", "").partition("-")
        seen = int(number) if run == self._run and number.isdecimal() and len(number) < 20 else 0  # noqa: PLR2004  # digits
        return _EventStream(self._watch(seen))

    async def _watch(self, seen: int) -> AsyncGenerator[str]:
        """Record, and give the events of one viewer, until its lifetime ends or it is closed."""
        self._viewers += 1
        self._recorder.start()
        linger = 0.0
        try:
            async with contextlib.aclosing(self._frames(seen)) as frames:
                async for event in frames:
                    yield event
            linger = LINGER
        finally:
            self._viewers -= 1
            self._recorder.stop(linger=linger)

    async def _frames(self, seen: int) -> AsyncGenerator[str]:
        """Give the events of one viewer, until they fill the room of one stream; the browser opens the next at once."""
        listed = ""
        measured: Figures = {}
        missed = 0
        room = ROOM
        yield f"retry: 300\n{_event('hello', json.dumps({'run': self._run}))}"
        for tick in range(LIFETIME):
            events = []
            if tick % SIGNALS_EVERY == 0 and (signals := self._list()) is not listed:
                listed = signals
                # A long list is fetched by the page in a separate request.
                short = signals if len(signals) < ROOM // 3 else json.dumps({"version": _digest(signals)})
                events.append(_event("signals", short))
            if tick % STATISTICS_EVERY == 0:
                text, figures = self._statistics(measured, missed, ROOM // 3)
                events.append(_event("statistics", text))
                measured |= figures
            room -= sum(map(len, events))
            number, sends, lost = self._recorder.since(seen, room - RESERVE)
            if sends:
                events.append(_event("sends", f"[{','.join(sends)}]", f"{self._run}-{number}"))
                room -= len(events[-1])
                missed += lost
                seen = number
            for event in events:
                yield event
            await anyio.sleep(TICK)
            if room < ROOM // 3:
                return

    async def _signals(self, _: Request) -> Response:
        return Response(self._list(), media_type="application/json")

    async def _counts(self, _: Request) -> Response:
        return JSONResponse(self._recorder.counts.as_dict())

    def _statistics(self, before: Figures, missed: int, room: int) -> tuple[str, Figures]:
        """The figures as JSON, and which they are: of many signals those that have changed, as many as have room."""
        figures = self._recorder.statistics()
        if len(figures) > FEW:
            changed = [(number, each) for number, each in figures.items() if before.get(number) != each]
            figures = dict(changed[: room // FIGURE])
        data = {
            "signals": {number: each for number, (each, _) in figures.items()},
            "reach": {number: each for number, (_, each) in figures.items()},
            "skipped": self._recorder.skipped + missed,
        }
        return json.dumps(data, separators=(",", ":")), figures

    def _list(self) -> str:
        """The signals and their receivers as JSON; the same text, not only an equal one, until something changes."""
        alive = live_signals()
        shown = alive if len(alive) <= SIGNALS else sorted(alive, key=self._importance)[:SIGNALS]
        state = [(self._recorder.number_of(signal), _changes_of(signal)) for signal in shown]
        if state != self._listed_state:
            known = self._described
            described = {
                each: known.get(each) or json.dumps(self._describe(signal))
                for each, signal in zip(state, shown, strict=True)
            }
            self._described = described
            self._listed_state = state
            self._listed = f'{{"signals": [{", ".join(described.values())}], "more": {len(alive) - len(shown)}}}'
        return self._listed

    def _importance(self, signal: asignals.Signal[..., Any]) -> tuple[bool, bool]:
        """Smaller for what somebody who looks would miss more: first those that are sent, then those that are heard."""
        return not self._recorder.was_sent(signal), is_orphan(signal)

    def _describe(self, signal: asignals.Signal[..., Any]) -> dict[str, Any]:
        clean = self._shower.clean
        return {
            "number": self._recorder.number_of(signal),
            "name": clean(str(signal.name)),
            "signature": shorten(signature_of(signal), SIGNATURE),
            "doc": clean(first_line(signal)),
            "orphan": is_orphan(signal),
            "receivers": [self._connection(connection, phase) for connection, phase in connections_of(signal)],
        }

    def _connection(self, connection: asignals.Connection, phase: str | None) -> dict[str, Any]:
        known = describe_connection(connection, phase)
        path, _, line = str(connection.location).rpartition(":")
        return {
            "name": self._shower.clean(known["name"]),
            "key": key_of(connection),
            "place": None if known["relay"] else known["location"],
            "link": self._link(path, int(line)) if path and line.isdecimal() and not known["relay"] else None,
            "notes": [self._shower.clean(note) for note in notes_of(known)],
        }


class _EventStream(Response):
    """Server-sent events, until they end or the client leaves.

    The format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html.
    """

    def __init__(self, events: AsyncGenerator[str]) -> None:
        super().__init__(media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": b""})
            return
        async with anyio.create_task_group() as group:

            async def leave() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(leave)
            await self._send_all(send)
            group.cancel_scope.cancel()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                with anyio.move_on_after(STALLED) as time_limit:
                    await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
                if time_limit.cancelled_caught:
                    return
        await send({"type": "http.response.body", "body": b""})


def _changes_of(signal: asignals.Signal[..., Any]) -> tuple[int, ...]:
    """What differs after each change of a signal's connections, streams included."""
    registries = signal._registries().values()
    for each in registries:
        each.purge()
    return tuple(each.changes for each in registries)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _event(kind: str, data: str, number: str = "") -> str:
    head = f"event: {kind}\n" + (f"id: {number}\n" if number else "")
    return f"{head}data: {data}\n\n"


def _editor(editor: str | None) -> str | None:
    template = EDITORS.get(editor, editor) if editor is not None else None
    scheme = (template or "").partition(":")[0].strip().lower()
    if template is not None and ("{path}" not in template or scheme in ("javascript", "data", "vbscript", "blob")):
        raise ValueError(
            f"editor must be one of {', '.join(EDITORS)}, or a link with {{path}} and {{line}}, not {editor!r}"
        )
    return template


def _environment() -> Environment:
    return Environment(loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined)


def _version() -> str:
    try:
        return importlib.metadata.version("asignals")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return ""
