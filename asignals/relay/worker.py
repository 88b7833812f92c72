"""The receiving side as a separate process: `asignals worker TARGET`.

SIGTERM and SIGINT stop it gently: nothing new is begun, running receivers have the relay's grace period to finish. A
second signal cancels what still runs; the engine then gives it to another instance.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import sys
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from importlib import import_module
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asignals.masking import redacted, without_passwords
from asignals.overview.relay_metrics import MAX_AGE, prometheus_text, samples
from asignals.relay._relay import Relay
from asignals.relay._runner import NoReceiversError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from asignals.relay._monitoring.health import Health

logger: logging.Logger = logging.getLogger("asignals.relay")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_MAX_REQUEST = 8_192
_METRICS = 3.0  # seconds that /metrics waits for servers
_METRICS_REQUEST = re.compile(rb"(?:GET|HEAD) /metrics/?(?:\?[^ ]*)? ")
_MAX_FILES = 2_000  # of a package, that are searched for who connects to a signal
_HOW_TO_ALLOW = "Where that is meant, say --allow-no-receivers"


class JSONFormatter(logging.Formatter):
    """One JSON object a line: `time` (seconds since the epoch), `level`, `logger`, `message`, `error`, and `extra`.

    Passwords of URLs and settings are hidden.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_passwords(record.getMessage()),
        }
        if record.exc_info:
            line["error"] = without_passwords(self.formatException(record.exc_info))
        line.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """A line for people, and tracebacks below it. Passwords are hidden, and control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        lines = [f"{self.formatTime(record)} {record.levelname} {redacted(record.getMessage())}"]
        if record.exc_info:
            lines += map(redacted, self.formatException(record.exc_info).split("\n"))
        return "\n".join(lines)


def load_relay(target: str) -> Relay:
    """Import the relay that `package.module:attribute` names; raises `ValueError` when there is none."""
    module, colon, attribute = target.partition(":")
    if not colon or not module or not attribute or module.startswith("."):
        raise ValueError(f"name a relay as package.module:attribute, not {target!r}")
    try:
        found = attrgetter(attribute)(import_module(module))
    except (Exception, SystemExit) as error:  # whatever the module runs into, or a script that ends when imported
        raise ValueError(f"cannot load {target!r}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Relay):
        raise ValueError(f"{target!r} is a {type(found).__name__}, not a Relay")  # noqa: TRY004  what the user wrote names the wrong thing
    return found


def check_receivers(relay: Relay, target: str = "") -> None:
    """Raise `NoReceiversError` when a relay receives nothing, or what nobody here would handle.

    `target` is where the relay was found: modules beside it that connect to such a signal are named.
    """
    unheard = relay.unheard
    if not relay.topics and not relay.broadcast_topics:
        raise NoReceiversError(relay.service, (), _HOW_TO_ALLOW)
    if unheard:
        names = {name.rpartition(".")[2] for name, _ in unheard}
        found = _connecting_modules(target.partition(":")[0], names)
        where = f"Import {' and '.join(found)}, which" if found else "Import the module that connects them, which"
        hint = (
            f"{where} nobody has imported: in {target.partition(':')[0] or 'the module of the relay'}, or with --import"
        )
        raise NoReceiversError(relay.service, unheard, f"{hint}. {_HOW_TO_ALLOW}")


def _connecting_modules(module: str, signals: Collection[str]) -> list[str]:
    """Find modules near one, not imported yet, whose source connects something to signals of these names."""
    names = "|".join(map(re.escape, signals))
    connects = re.compile(rf"\b(?:{names})\.connect\b|\breceiver\([^)]*\b(?:{names})\b")
    top = module.partition(".")[0]
    file = getattr(sys.modules.get(top), "__file__", None)
    if not file:
        return []
    path = Path(file)
    root = path.parent.parent if path.name == "__init__.py" else path.parent
    files = path.parent.rglob("*.py") if path.name == "__init__.py" else root.glob("*.py")
    found = []
    for source in islice(files, _MAX_FILES):
        name = ".".join(source.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        with suppress(OSError):
            if name not in sys.modules and connects.search(source.read_text(errors="replace")):
                found.append(name)
    return sorted(found)[:5]


async def run_worker(
    relay: Relay,
    *,
    health_port: int | None = None,
    health_host: str = "127.0.0.1",
    allow_no_receivers: bool = False,
) -> None:
    """Run a relay until SIGTERM or SIGINT; returns when what had begun is done or the grace period is over.

    `health_port` serves `GET /` with the relay's health as JSON: 200 when it is well, 503 when it is not; and
    `GET /metrics` with all figures in Prometheus' text format. Port 0 takes a free one, and the log says which. Must
    run in the main thread.

    Raises `NoReceiversError` when the relay receives a signal that has no receiver, or nothing at all and has no outbox
    that it could publish from, unless `allow_no_receivers`.
    """
    if not allow_no_receivers and (relay.topics or relay.outbox is None):
        check_receivers(relay)
    task = asyncio.current_task()
    stop = asyncio.Event()

    def stop_or_cancel(name: str) -> None:
        if stop.is_set() and task is not None:
            logger.warning("%s again: cancelling what still runs", name)
            task.cancel()
        logger.info("%s: stopping", name)
        stop.set()

    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop_or_cancel, signal.Signals(number).name)
    try:
        async with _health_server(relay, health_host, health_port), relay:
            logger.info("worker of %r runs as instance %r", relay.service, relay.instance)
            await stop.wait()
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _metrics(relay: Relay, health: Health) -> str:
    """Give the figures in Prometheus' text format; those of a silent server are older, or missing."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_METRICS):
            await relay._snapshot.renewed(MAX_AGE)
    status = relay._snapshot.latest(MAX_AGE)
    return prometheus_text(samples(relay.service, health, status))


@asynccontextmanager
async def _health_server(relay: Relay, host: str, port: int | None) -> AsyncIterator[None]:
    if port is None:
        yield
        return
    started = time.monotonic()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            async with asyncio.timeout(5):
                request = await reader.readuntil(b"\r\n\r\n")
                health = relay.health()
                if _METRICS_REQUEST.match(request):
                    kind, line = b"text/plain; version=0.0.4; charset=utf-8", b"200 OK"
                    body = (await _metrics(relay, health)).encode()
                else:
                    kind, line = b"application/json", b"200 OK" if health.ok else b"503 Service Unavailable"
                    facts = {"ok": health.ok, "uptime": time.monotonic() - started, **asdict(health)}
                    body = json.dumps(facts).encode()
                writer.write(
                    b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
                    % (line, kind, len(body), body)
                )
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, host, port, limit=_MAX_REQUEST)
    logger.info("health at http://%s:%d/", host, server.sockets[0].getsockname()[1])
    async with server:
        yield
