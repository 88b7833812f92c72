"""Who may look, and the headers of every answer."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import ipaddress
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

Allow: TypeAlias = Callable[[HTTPConnection], bool | Awaitable[bool]]

logger = logging.getLogger("asignals.inspector")

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
_UNKNOWN: Final = """\
401: this inspector asks for a token.

Open it once with ?token=... at the end of its address; the browser then remembers it. The program sets the token,
Inspector(token=...), or prints it: Inspector().token. Where it does neither, its log has it (logger
asignals.inspector).
"""
_REFUSED: Final = "403: this inspector does not answer you: Inspector(allow=...) says no.\n"
_FOREIGN: Final = """\
403: a page of another site has sent you here.

To look at the inspector, type its address into the browser, or open it with ?token=... at the end.
"""


class Token:
    """What a visitor must know: given once in the address or by a program, and remembered by the browser."""

    def __init__(self, value: str) -> None:
        """Keep the value; `ValueError` for an empty one."""
        if not value:
            raise ValueError(
                "the inspector's token must not be empty: give a text that nobody can guess, or None for a random one"
            )
        self.value = value
        self._is_logged = False
        # Of programs on the ports of one host, which share their cookies, each has its own name.
        self._cookie = f"asignals-{self._derived(b'name')[:8]}"
        self._cookie_value = self._derived(b"cookie")

    def _derived(self, purpose: bytes) -> str:
        return hmac.new(self.value.encode(), purpose, hashlib.sha256).hexdigest()

    def is_given(self, connection: HTTPConnection) -> bool:
        """Whether the request itself names the token: in the address, or as `Authorization: Bearer`."""
        kind, _, bearer = connection.headers.get("authorization", "").partition(" ")
        given = [connection.query_params.get("token", ""), bearer if kind.lower() == "bearer" else ""]
        return any([_equal(each, self.value) for each in given])  # noqa: C419  each is compared, whatever the others are

    def is_remembered(self, connection: HTTPConnection) -> bool:
        """Whether the browser has kept the cookie of an earlier visit."""
        return _equal(connection.cookies.get(self._cookie, ""), self._cookie_value)

    def remember(self, connection: HTTPConnection, response: MutableHeaders) -> None:
        """Have the browser keep a cookie that stands for the token, until it is closed."""
        # Without a path it is for the directory of this request as the browser knows it, whatever proxies make of it.
        parts = [f"{self._cookie}={self._cookie_value}", "HttpOnly", "SameSite=Strict"]
        if connection.url.scheme == "https":
            parts.append("Secure")
        response.append("Set-Cookie", "; ".join(parts))

    def log_once(self, connection: HTTPConnection) -> None:
        """Write the address with the token into the program's log, at the first visit without it."""
        if not self._is_logged:
            self._is_logged = True
            path = str(connection.scope.get("root_path", "")).rstrip("/")
            logger.warning("the inspector asks for its token: %s/?token=%s", path, self.value)


class Guard:
    """ASGI middleware: refuses who may not look, and adds the headers to every answer."""

    def __init__(self, app: ASGIApp, allow: Allow | None, token: Token | None, *, logs_token: bool) -> None:
        """Ask `allow`, or for `token`, at every request to `app`; `logs_token` where nothing else says what it is."""
        self._app = app
        self._allow = allow
        self._token = token
        self._logs_token = logs_token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        is_given = self._token is not None and self._token.is_given(connection)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if is_given and self._token is not None and scope["path"].endswith("/"):
                    self._token.remember(connection, headers)
            await send(message)

        refusal = None if is_given else await self._refusal(connection)
        await (refusal or self._app)(scope, receive, send_with_headers)

    async def _refusal(self, connection: HTTPConnection) -> Response | None:
        if self._token is not None and not self._token.is_remembered(connection):
            if self._logs_token:
                self._token.log_once(connection)
            return PlainTextResponse(_UNKNOWN, 401, headers={"WWW-Authenticate": 'Bearer realm="asignals inspector"'})
        # No page of another site, or of another program on this host, may open this one, load a part of it or listen
        # to it: it would start the watch.
        if connection.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return PlainTextResponse(_FOREIGN, 403)
        if self._allow is not None:
            allowed = self._allow(connection)
            if not (await allowed if inspect.isawaitable(allowed) else allowed):
                return PlainTextResponse(_REFUSED, 403)
        return None


def new_token() -> str:
    """A token that nobody can guess: 128 bits."""
    return secrets.token_urlsafe(16)


def loopback_only(connection: HTTPConnection) -> bool:
    """Allow only a client on this machine that asks for this machine by name: for `Inspector(allow=loopback_only)`.

    **Not behind a proxy on this machine**: to a program it looks like a browser on this machine, unless it adds headers
    of its own. For development without one; the token, which is the default, holds everywhere.

    The client's address must be a loopback address and no proxy may have passed the request on, and the `Host` must be
    `localhost` or a loopback address too, so that a foreign web page whose name resolves to 127.0.0.1 reads nothing.
    """
    if connection.client is None or any(_tells_of_a_proxy(name) for name in connection.headers):
        return False
    return _is_loopback(connection.client.host) and _is_local_name(_host(connection.headers.get("host", "")))


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


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
