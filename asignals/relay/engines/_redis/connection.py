"""The connections to Redis: commands with a limit of time, and scripts."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ReadOnlyError

from asignals.relay._cancel import limited
from asignals.relay._connection_state import ConnectionState
from asignals.relay._loops import OwnLoop
from asignals.relay._to_the_end import to_the_end
from asignals.relay.engines._redis.keys import Keys
from asignals.relay.engines._redis.sentinel import is_of_sentinels, pool_by_sentinels

ANSWER_TIMEOUT: Final = 5.0  # seconds that a command may take, waiting for a free connection included
BLOCK: Final = 1.0  # seconds that a read waits for new events
AT_ONCE: Final = 500  # events in one command
_WAIT: Final = 4.0  # seconds in which the replicas must have what was written
_CLOSE_TIMEOUT: Final = 2.0  # seconds that closing may take
# One shape of answers, whatever the version of client and server. No time limit of the client's: each command has ours,
# reading waits for longer, and before Python 3.12 the client's loses cancellations (`asyncio.wait_for`).
_OURS: Final = {"protocol": 2, "decode_responses": False, "socket_timeout": None}
_CONNECTIONS: Final = 64  # most at once; a command that finds none free waits for one


def _without_ours(url: str) -> str:
    """Leave out of a URL what the engine decides: the settings of a URL win over options."""
    parts = urlsplit(url)
    kept = [setting for setting in parts.query.split("&") if setting.partition("=")[0] not in _OURS]
    return urlunsplit(parts._replace(query="&".join(kept)))


class RedisConnection:
    """A client of Redis, given up for a new one when a command is not answered in time."""

    def __init__(self, url: str, prefix: str, lease: float, options: dict[str, Any]) -> None:
        self.url = url
        self.keys: Keys = Keys(prefix)
        self.lease = lease  # seconds after which a consumer's events are redelivered unless it renews its lease
        self.state: ConnectionState = ConnectionState(f"Redis ({url}, {prefix})")
        # No repetition of the client's: it would go on with connections that are given up.
        self._options: dict[str, Any] = {
            "socket_connect_timeout": 2.0,
            "retry": Retry(NoBackoff(), 0),
            **options,
        }
        self._made: Redis | None = None
        self._loop = OwnLoop()
        pool = self._make().connection_pool
        pool.connection_class(**pool.connection_kwargs)  # so that options that Redis does not have are refused here

    def client(self) -> Redis:
        """Give the client; it connects when it is used."""
        self._loop.enter(self.state.name, self._forget)
        return self._make()

    def _forget(self) -> None:
        self._made = None

    def _make(self) -> Redis:
        if self._made is None:
            options = {"max_connections": _CONNECTIONS, "timeout": ANSWER_TIMEOUT, **self._options, **_OURS}
            make: Any = pool_by_sentinels if is_of_sentinels(self.url) else BlockingConnectionPool.from_url
            self._made = Redis.from_pool(make(_without_ours(self.url), **options))
        return self._made

    async def aclose(self) -> None:
        """Close the connections."""
        self._loop.enter(self.state.name, self._forget)
        client, self._made = self._made, None  # the next event loop may be another
        if client is not None:
            await to_the_end(_close(client))

    async def ask(self, command: Any, seconds: float = ANSWER_TIMEOUT) -> Any:
        """Await a command; when none is answered in time, all connections are given up for new ones.

        They may be half open as well, and each would cost the same time again.
        """
        client = self._made
        try:
            return await limited(command, seconds, self.state.name)
        except (TimeoutError, ReadOnlyError):  # or another Redis leads now, and these are to the one that did
            if client is not None and client is self._made:
                self._made = None
                await to_the_end(_close(client))
            raise

    async def script(self, script: str, keys: list[str], arguments: list[Any], replicas: int = 0) -> Any:
        """Run a script by its digest; raises `ConnectionError` when too few replicas have what it wrote."""
        try:
            return await self._run("evalsha", _sha(script), keys, arguments, replicas)
        except NoScriptError:  # the first time, and after a restart
            return await self._run("eval", script, keys, arguments, replicas)

    async def _run(self, command: str, script: str, keys: list[str], arguments: list[Any], replicas: int) -> Any:
        """Run a script; return when so many replicas have what it wrote."""
        client = self.client()
        if not replicas:
            return await self.ask(getattr(client, command)(script, len(keys), *keys, *arguments))
        pipeline = client.pipeline(transaction=False)  # WAIT goes by what its connection has written
        getattr(pipeline, command)(script, len(keys), *keys, *arguments)
        pipeline.wait(replicas, int(_WAIT * 1000))
        result, count = await self.ask(pipeline.execute())
        if count < replicas:
            raise ConnectionError(
                f"only {count} of {replicas} replicas of {self.state.name} have the events after {_WAIT:g} s"
            )
        return result


async def _close(client: Redis) -> None:
    with suppress(Exception):
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await client.aclose()
            await asyncio.sleep(0)  # the sockets are closed in the loop's next turn


@lru_cache
def _sha(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
