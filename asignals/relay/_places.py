"""Where an engine's events are: servers, without user names and passwords, and the addresses of topics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from asignals.masking import redacted


@dataclass(frozen=True, slots=True)
class Server:
    """A server: what is spoken there, its host and port, and what is named on it (a database, a virtual host)."""

    protocol: str
    host: str
    pathname: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """What the engine calls a topic; `bindings` say more, as AsyncAPI's channel bindings do, and `note` in words."""

    text: str
    bindings: dict[str, Any] = field(default_factory=dict)
    note: str = ""


@runtime_checkable
class Located(Protocol):
    """A transport that can say where its events are; it asks nobody."""

    def servers(self) -> list[Server]:
        """List the servers that it was given."""
        ...

    def address(self, topic: str) -> Address:
        """Say what the engine calls a topic."""
        ...


def servers_of(*urls: str) -> list[Server]:
    """Read URLs, of one host or of several with commas; users, passwords and options are left out."""
    found: set[tuple[str, str, str]] = set()
    for url in urls:
        parts = urlsplit(redacted(url if "://" in url else f"nats://{url}"))
        path = parts.path if parts.path != "/" else ""
        for host in parts.netloc.rpartition("@")[2].split(","):
            found.add((parts.scheme, host or "localhost", path))
    return [Server(*each) for each in sorted(found)]
