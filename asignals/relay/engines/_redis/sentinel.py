"""Connections to the Redis that leads, as Sentinel says it: each new connection asks again."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelManagedConnection, SentinelManagedSSLConnection
from redis.backoff import NoBackoff

from asignals.masking import redacted

_PORT: Final = 26_379
_ANSWER: Final = 1.0  # seconds that one Sentinel may take before the next is asked


class _Leader:
    """What a connection asks for its address."""

    is_master = True
    check_connection = False

    def __init__(self, sentinel: Sentinel, service: str) -> None:
        self._sentinel = sentinel
        self._service = service

    async def get_master_address(self) -> tuple[str, int]:
        """Give host and port of the Redis that leads."""
        try:
            host, port = await self._sentinel.discover_master(self._service)
        finally:
            for sentinel in self._sentinel.sentinels:  # kept, they would have to be closed some time
                await sentinel.connection_pool.disconnect(inuse_connections=False)
        return host, port


def is_of_sentinels(url: str) -> bool:
    """Whether a URL names Sentinels."""
    return url.startswith(("redis+sentinel://", "rediss+sentinel://"))


def pool_by_sentinels(url: str, *, sentinel_kwargs: dict[str, Any] | None = None, **options: Any) -> Any:
    """Make a pool for `redis+sentinel://user:password@host:26379,host:26379/service/db`.

    User, password, database and settings are those of Redis; `sentinel_kwargs` are for connecting to the Sentinels.
    """
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    service, _, database = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError(f"the URL must name the service that the Sentinels watch: '…/mymaster', not {redacted(url)!r}")
    scheme = parts.scheme.partition("+")[0]
    plain = urlunsplit((scheme, f"{user}{at}leader", f"/{database}", parts.query, ""))
    limits = {"socket_connect_timeout": _ANSWER, "socket_timeout": _ANSWER, "retry": Retry(NoBackoff(), 0)}
    asking = {**limits, "protocol": 2, **(sentinel_kwargs or {})}
    pool = BlockingConnectionPool.from_url(plain, **options)
    pool.connection_class = SentinelManagedSSLConnection if scheme == "rediss" else SentinelManagedConnection
    make: Any = Sentinel  # whose arguments have no types
    sentinel = make([_address(host) for host in hosts.split(",")], sentinel_kwargs=asking)
    pool.connection_kwargs["connection_pool"] = _Leader(sentinel, service)
    return pool


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "127.0.0.1", parts.port or _PORT
