"""The commands `asignals worker` and `asignals relay …`, for `asignals/cli.py` (extra: cli, for typer)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path  # noqa: TC003  typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asignals.relay._dead_letters import REFUSED
from asignals.relay._redact import said
from asignals.relay._runner import NoReceiversError
from asignals.relay._transport import SchemaError
from asignals.relay.worker import JSONFormatter, TextFormatter, check_receivers, load_relay, run_worker

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from asignals.relay._envelope import DeadLetter
    from asignals.relay._relay import Relay


def _time(text: str) -> float:
    """Read a time: ISO 8601, seconds since the epoch, or how long ago, as 90s, 15m, 2h or 3d."""
    if ago := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return time.time() - float(ago[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[ago[2]]
    with suppress(ValueError):
        return float(text)
    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        msg = f"a time is 2026-01-31T12:00, or 15m, 2h, 3d ago, not {text!r}"
        raise typer.BadParameter(msg) from None
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


Target = Annotated[str, typer.Argument(metavar="TARGET", help="The relay, as package.module:attribute.")]
Queue = Annotated[str | None, typer.Option(help="One dead letter queue; by default all of the relay.")]
Limit = Annotated[int, typer.Option(min=1, help="Maximum number of dead letters.")]
Most = Annotated[int | None, typer.Option(min=1, help="Maximum number of dead letters; by default all.")]
Ids = Annotated[list[str] | None, typer.Option("--id", help="Events with this id; may be given several times.")]
Topic = Annotated[str | None, typer.Option(help="Events of this topic.")]
Since = Annotated[float | None, typer.Option(parser=_time, help="Given up since: 2026-01-31T12:00 (UTC), or 2h ago.")]
Until = Annotated[float | None, typer.Option(parser=_time, help="Given up until then.")]
Error = Annotated[str | None, typer.Option(help="A part of the error's text.")]
Modules = Annotated[
    list[str] | None, typer.Option("--import", metavar="MODULE", help="Import this too: receivers are in it.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

_PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False}

app: typer.Typer = typer.Typer(
    help="Look after a relay: its tables, its backlog, its dead letters.", no_args_is_help=True, **_PLAIN
)
worker_app: typer.Typer = typer.Typer(**_PLAIN)


@worker_app.command()
def worker(  # noqa: PLR0913  options of a command
    target: Target,
    *,
    modules: Modules = None,
    allow_no_receivers: Annotated[
        bool, typer.Option("--allow-no-receivers", help="Start though nobody handles what is received.")
    ] = False,
    health_port: Annotated[int | None, typer.Option(help="Serve health as JSON on this port; 0 for any.")] = None,
    health_host: Annotated[str, typer.Option(help="The address for --health-port.")] = "127.0.0.1",
    log_format: Annotated[str, typer.Option(help="json or text.")] = "json",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the receiving side of a relay as a process, until SIGTERM or Ctrl-C.

    It does not start when a signal that it receives has no receiver. Running receivers have the relay's grace period
    to finish; a second signal cancels them, and the exit status is then 130.
    """
    _log(log_format, log_level)
    relay = _load(target)
    _import(modules or [])
    try:
        if not allow_no_receivers:
            check_receivers(relay, target)
        # A second signal cancels: the process ends as one that was interrupted.
        with suppress(asyncio.CancelledError, KeyboardInterrupt):
            asyncio.run(run_worker(relay, health_port=health_port, health_host=health_host, allow_no_receivers=True))
            return
    except (NoReceiversError, SchemaError) as error:
        typer.echo(said(error), err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(130)


@app.command()
def init(target: Target) -> None:
    """Create the tables, streams and queues that the relay needs."""
    relay = _load(target)
    _run(relay, relay.init())
    typer.echo("ready")


@app.command()
def status(target: Target) -> None:
    """Show what waits in the outbox, in the engine, and in the dead letter queues."""
    relay = _load(target)
    found = _run(relay, relay.status())
    typer.echo(f"service  {relay.service}")
    typer.echo(f"outbox   {_count(found.outbox)}")
    typer.echo(f"backlog  {_count(found.backlog)}")
    for queue, count in found.dead.items():
        if queue != REFUSED:
            typer.echo(f"dead     {count} in {queue}")
        elif count:
            typer.echo(f"refused  {count} in {queue}")


@app.command()
def dead(  # noqa: PLR0913  options of a command
    target: Target,
    *,
    queue: Queue = None,
    limit: Limit = 20,
    ids: Ids = None,
    topic: Topic = None,
    since: Since = None,
    until: Until = None,
    error: Error = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with all of the error.")] = False,
) -> None:
    """Show dead letters, the oldest first."""
    relay = _load(target)
    which: dict[str, Any] = {"ids": ids or None, "topic": topic, "since": since, "until": until, "error": error}
    for letter in _run(relay, relay.dead_letters(queue, limit, **which)):
        typer.echo(_as_json(letter) if as_json else _as_line(letter))


@app.command()
def replay(  # noqa: PLR0913  options of a command
    target: Target,
    *,
    queue: Queue = None,
    limit: Most = None,
    ids: Ids = None,
    topic: Topic = None,
    since: Since = None,
    until: Until = None,
    error: Error = None,
) -> None:
    """Send dead letters again, to the service that gave them up: only to receivers that had not succeeded."""
    relay = _load(target)
    which: dict[str, Any] = {"ids": ids or None, "topic": topic, "since": since, "until": until, "error": error}
    typer.echo(f"{_run(relay, relay.replay(queue, limit, **which))} sent again")


@app.command()
def purge(  # noqa: PLR0913  options of a command
    target: Target,
    *,
    queue: Queue = None,
    limit: Most = None,
    ids: Ids = None,
    topic: Topic = None,
    since: Since = None,
    until: Until = None,
    error: Error = None,
    yes: Yes = False,
) -> None:
    """Remove dead letters for good."""
    relay = _load(target)
    if not yes:
        typer.confirm("Remove these dead letters for good?", abort=True)
    which: dict[str, Any] = {"ids": ids or None, "topic": topic, "since": since, "until": until, "error": error}
    typer.echo(f"{_run(relay, relay.purge(queue, limit, **which))} removed")


@app.command()
def forget(
    target: Target,
    service: Annotated[str, typer.Argument(help="The service that is gone.")],
    *,
    topics: Annotated[list[str] | None, typer.Option("--topic", help="Of this topic only; by default of all.")] = None,
    yes: Yes = False,
) -> None:
    """Remove what the engine keeps for a service that is gone, or for a topic that it receives no more.

    TARGET is any relay on the same engine. What waited for the service is lost.
    """
    relay = _load(target)
    if not yes:
        typer.confirm(f"Remove what waits for {service!r}?", abort=True)
    _run(relay, relay.forget(service, topics or None))
    typer.echo(f"{service} is forgotten")


@app.command()
def asyncapi(
    target: Target,
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file to write, instead of stdout.")] = None,
    check: Annotated[Path | None, typer.Option(help="An older document: say which change breaks which reader.")] = None,
    modules: Modules = None,
) -> None:
    """Write what the relay exports and receives as an AsyncAPI 3.0 document; or compare it with an older one.

    With --check, nothing is written to stdout but the changes, and the exit status is 1 if one of them is a break.
    """
    from asignals.relay.asyncapi import compare, document  # noqa: PLC0415  loads what only this command needs
    from asignals.relay.asyncapi._files import read_document, show_changes, version_of, write_document  # noqa: PLC0415

    relay = _load(target)
    _import(modules or [])
    try:
        made = document(relay, version=version_of(target))
        if check is None or output is not None:
            write_document(made, output)
        changes = [] if check is None else compare(read_document(check), made)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise typer.BadParameter(said(error)) from error
    if check is not None:
        show_changes(changes, check)
    raise typer.Exit(any(change.is_break for change in changes))


def _load(target: str) -> Relay:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  as `python -m` does, so that the application is found
    try:
        return load_relay(target)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _import(modules: list[str]) -> None:
    for module in modules:
        try:
            import_module(module)
        except (Exception, SystemExit) as error:  # whatever the module runs into
            msg = f"--import {module}: {said(error)}"
            raise typer.BadParameter(msg) from error


def _run(relay: Relay, work: Coroutine[Any, Any, Any]) -> Any:
    """Run one command's work, close what it opened, and turn failures into one line."""

    async def run() -> Any:
        try:
            return await work
        finally:
            await relay.aclose()

    try:
        return asyncio.run(run())
    except Exception as error:
        typer.echo(said(error), err=True)
        raise typer.Exit(1) from error


def _log(form: str, level: str) -> None:
    if form not in ("json", "text"):
        msg = f"--log-format is json or text, not {form!r}"
        raise typer.BadParameter(msg)
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        msg = f"--log-level is debug, info, warning or error, not {level!r}"
        raise typer.BadParameter(msg)
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=number, handlers=[handler], force=True)


def _count(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _as_line(letter: DeadLetter) -> str:
    envelope = letter.envelope
    what = f"{envelope.topic} {envelope.id}" if envelope else f"unreadable, {len(letter.raw)} bytes"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(letter.time))
    return f"{when}Z  {what}  {letter.attempts} attempts  {_printable(letter.error)}"


def _as_json(letter: DeadLetter) -> str:
    envelope = letter.envelope
    return json.dumps(
        {
            "queue": letter.queue,
            "id": envelope.id if envelope else None,
            "topic": envelope.topic if envelope else None,
            "service": letter.service,
            "time": letter.time,
            "attempts": letter.attempts,
            "error": letter.error,
            "done": letter.done,
            "bytes": len(letter.raw),
        }
    )


def _printable(text: str) -> str:
    """Show text from elsewhere on one line, without control characters that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)[:300]
