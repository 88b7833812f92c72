"""The commands `asignals worker` and `asignals relay …`, for `asignals/cli.py` (extra: demo, for typer)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asignals.relay.worker import JSONFormatter, load_relay, run_worker

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from asignals.relay._relay import Relay

Target = Annotated[str, typer.Argument(metavar="TARGET", help="The relay, as package.module:attribute.")]
Queue = Annotated[str | None, typer.Option(help="One dead letter queue; by default all of the relay.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many.")]

_PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False}

app: typer.Typer = typer.Typer(
    help="Look after a relay: its tables, its backlog, its dead letters.", no_args_is_help=True, **_PLAIN
)
worker_app: typer.Typer = typer.Typer(**_PLAIN)


@worker_app.command()
def worker(
    target: Target,
    health_port: Annotated[int | None, typer.Option(help="Serve health as JSON on this port; 0 for any.")] = None,
    health_host: Annotated[str, typer.Option(help="The address for --health-port.")] = "127.0.0.1",
    log_format: Annotated[str, typer.Option(help="json or text.")] = "json",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the receiving side of a relay as a process, until SIGTERM or Ctrl-C.

    What runs may end within the relay's time of grace; a second signal cancels it, and the exit status is then 130.
    """
    _log(log_format, log_level)
    relay = _load(target)
    # A second signal cancels: the process ends as one that was interrupted.
    with suppress(asyncio.CancelledError, KeyboardInterrupt):
        asyncio.run(run_worker(relay, health_port=health_port, health_host=health_host))
        return
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
        typer.echo(f"dead     {count} in {queue}")


@app.command()
def dead(target: Target, queue: Queue = None, limit: Limit = 20) -> None:
    """Show dead letters, the oldest first."""
    relay = _load(target)
    for letter in _run(relay, relay.dead_letters(queue, limit)):
        envelope = letter.envelope
        what = f"{envelope.topic} {envelope.id}" if envelope else f"unreadable, {len(letter.raw)} bytes"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(letter.time))
        typer.echo(f"{when}Z  {what}  {letter.attempts} attempts  {_printable(letter.error)}")


@app.command()
def replay(target: Target, queue: Queue = None, limit: Limit = 100) -> None:
    """Send dead letters again, to the service that gave them up."""
    relay = _load(target)
    typer.echo(f"{_run(relay, relay.replay(queue, limit))} sent again")


def _load(target: str) -> Relay:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  as `python -m` does, so that the application is found
    try:
        return load_relay(target)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


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
        typer.echo(f"{type(error).__name__}: {error}", err=True)
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
    handler.setFormatter(
        JSONFormatter() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=number, handlers=[handler], force=True)


def _count(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def _printable(text: str) -> str:
    """Show text from elsewhere on one line, without control characters that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)[:300]
