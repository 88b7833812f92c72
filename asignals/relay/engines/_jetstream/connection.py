"""One connection to NATS, given up for a new one when its server does not answer."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import nats.errors
from nats.aio.client import Client

from asignals.relay._cancel import limited
from asignals.relay._connection_state import ConnectionState
from asignals.relay._loops import OwnLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

T = TypeVar("T")

CONNECT: Final = 5.0  # seconds for connecting and for each request
CLOSE_TIMEOUT: Final = 2.0  # seconds that closing may take
OURS: Final = ("servers", "allow_reconnect", "max_reconnect_attempts", "error_cb", "disconnected_cb", "reconnected_cb")
_PING: Final = 3  # seconds between two looks at whether the server still answers
_PONG: Final = 1.0  # seconds that a server may take to say that it is there
_LOOK: Final = 1.0  # seconds between two looks at whether a connection is still there


class NatsConnection:
    """Connects when it is first used, and again when the connection was given up.

    `on_connect` are called with each new client before it is used; `on_loss` with one that is connecting again.
    """

    def __init__(self, servers: str | list[str], name: str, options: dict[str, Any]) -> None:
        self.servers = servers
        self.state: ConnectionState = ConnectionState(name)
        self.problems: dict[str, str] = {}  # what is wrong though the connection is there
        self.client: Client | None = None
        self.on_connect: list[Callable[[Client], Awaitable[None]]] = []
        self.on_loss: list[Callable[[Client], None]] = []
        self.watchers: set[asyncio.Event] = set()
        self._options = options
        self._down_since: float | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()
        self._loop = OwnLoop()

    async def aclose(self) -> None:
        """Close the connection; it is opened again when it is used again."""
        self._loop.enter(self.state.name, self._forget)
        client, self.client = self.client, None
        self._lock = asyncio.Lock()  # the next event loop may be another
        if client is not None:
            await _close(client)
        if self._closing:
            await asyncio.wait(self._closing)

    def _forget(self) -> None:
        self.client, self._down_since, self._lock = None, None, asyncio.Lock()
        self._closing.clear()
        self.watchers.clear()

    async def open(self) -> Client:
        """Give a client that is connected; raises `ConnectionError` while it is connecting again."""
        self._loop.enter(self.state.name, self._forget)
        if self.client is not None and self.client.is_connected:
            self._down_since = None
            return self.client
        async with self._lock:
            if self.client is None or self.client.is_closed:
                self.client = await self._connect()
            if not self.client.is_connected:
                self._give_up_if_slow(self.client)
                raise ConnectionError(f"{self.state.name} is connecting again")
            return self.client

    async def _connect(self) -> Client:
        # Three seconds twice without an answer, and a connection that is half open is known as lost.
        waits = {"reconnect_time_wait": 0.25, "ping_interval": _PING, "max_outstanding_pings": 2, "connect_timeout": 2}
        client = Client()
        connecting = client.connect(
            self.servers,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            error_cb=self._on_error,
            disconnected_cb=self._on_loss,
            reconnected_cb=self._on_return,
            **{**waits, **self._options},
        )
        try:
            await limited(connecting, CONNECT, self.state.name)
            for prepare in self.on_connect:
                await limited(prepare(client), 3 * CONNECT, self.state.name)
        except BaseException:
            await _close(client)
            raise
        self.state.restored()
        return client

    async def ask(self, client: Client, request: Awaitable[T], seconds: float = CONNECT) -> T:
        """Await an answer; a connection on which none comes in time is given up, unless its server is there."""
        try:
            return await limited(request, seconds, self.state.name)
        except (TimeoutError, nats.errors.TimeoutError) as error:
            msg = f"{self.state.name} gave no answer within {seconds:g} s"
            try:
                await limited(client.flush(int(_PONG) or 1), _PONG)
            except Exception:  # noqa: BLE001  whatever it is: the server does not answer
                self._give_up(client)
            else:
                msg += ", though the server is there: JetStream has no leader, or too few of its servers"
            raise TimeoutError(msg) from error

    def _give_up_if_slow(self, client: Client) -> None:
        """Give up a client that does not come back by itself: it waits for the end of a half-open connection."""
        now = time.monotonic()
        self._down_since = self._down_since or now
        if now - self._down_since > CONNECT:
            self._give_up(client)

    def _give_up(self, client: Client) -> None:
        """Close a connection that does not answer; the next call of `open` makes a new one."""
        if client is not self.client:
            return
        self.client, self._down_since = None, None
        closing = asyncio.get_running_loop().create_task(_close(client))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._wake_watchers()

    def _wake_watchers(self) -> None:
        for event in self.watchers:
            event.set()

    async def _on_error(self, error: Exception) -> None:
        if self.client is None or not self.client.is_connected:
            self.state.lost(error)

    async def _on_loss(self) -> None:
        if self.client is None:
            return  # we are closing it
        self.state.lost(ConnectionError("disconnected"))
        for lost in self.on_loss:
            lost(self.client)

    async def _on_return(self) -> None:
        self.state.restored()
        self._wake_watchers()

    @contextmanager
    def watched(self, changed: asyncio.Event) -> Iterator[None]:
        """A block in which an event is set whenever the connection is given up, or is back."""
        self.watchers.add(changed)
        try:
            yield
        finally:
            self.watchers.discard(changed)

    def is_unbroken(self, client: Client, reconnects: int) -> bool:
        """Whether it is the same connection as when the client had reconnected so many times."""
        return client is self.client and client.stats["reconnects"] == reconnects

    async def until_lost(self, client: Client, changed: asyncio.Event) -> None:
        """Wait until it is another connection; `changed` is being `watched`."""
        reconnects = client.stats["reconnects"]
        while self.is_unbroken(client, reconnects):
            if client.is_connected:
                self._down_since = None
            else:
                self._give_up_if_slow(client)
            changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await changed.wait()


async def _close(client: Client) -> None:
    """Close a connection, which may be half open, or was never made: then the client itself does not close it."""
    with suppress(Exception):
        await limited(client.close(), CLOSE_TIMEOUT)
    transport: Any = client._transport
    if transport is not None:
        with suppress(Exception):
            transport.close()
