"""Who may look, and the headers of every answer."""

from __future__ import annotations

import inspect
import ipaddress
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Allow = Callable[[HTTPConnection], bool | Awaitable[bool]]

# Scripts and styles only from the package's own files; the browser refuses to make markup from text (trusted types),
# to send a form, to be framed, and to talk to anybody else.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_FORWARDED: Final = ("forwarded", "via", "x-real-ip", "true-client-ip", "cf-connecting-ip")
_REFUSED: Final = """\
403: this inspector does not answer you.

It serves this machine only (http://localhost or http://127.0.0.1, not through a proxy), unless the program that
mounts it says otherwise: Inspector(allow=...), with a function that is given the connection and tells whether it may
look.
"""


def loopback_only(connection: HTTPConnection) -> bool:
    """Allow only a client on this machine that asks for this machine by name: the inspector's default `allow`.

    The client's address must be a loopback address and no proxy may have passed the request on, and the `Host` must be
    `localhost` or a loopback address too, so that a foreign web page whose name resolves to 127.0.0.1 reads nothing.
    A proxy on this machine that hides itself, with neither a header of its own nor the client's `Host`, cannot be told
    from a browser: do not let one serve the path that the inspector is mounted at.
    """
    if connection.client is None or any(_tells_of_a_proxy(name) for name in connection.headers):
        return False
    return _is_loopback(connection.client.host) and _is_local_name(_host(connection.headers.get("host", "")))


class Guard:
    """ASGI middleware: refuses who may not look, and adds the headers to every answer."""

    def __init__(self, app: ASGIApp, allow: Allow) -> None:
        """Ask `allow` for every request to `app`."""
        self._app = app
        self._allow = allow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self._app if await self._may_look(HTTPConnection(scope)) else PlainTextResponse(_REFUSED, 403)
        await app(scope, receive, send_with_headers)

    async def _may_look(self, connection: HTTPConnection) -> bool:
        # A page of another site may open this one, as a link does, but not load its parts or listen to its events.
        site = connection.headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") and connection.headers.get("sec-fetch-mode") != "navigate":
            return False
        allowed = self._allow(connection)
        return bool(await allowed if inspect.isawaitable(allowed) else allowed)


def _tells_of_a_proxy(header: str) -> bool:
    return header in _FORWARDED or header.startswith("x-forwarded-")


def _host(header: str) -> str:
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _is_local_name(host: str) -> bool:
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
