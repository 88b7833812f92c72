"""The commands `asignals worker` and `asignals relay …`, for `asignals/cli.py` (extra: cli, for typer)."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path  # noqa: TC003  typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from asignals.masking import said
from asignals.relay._cli.loading import Target, Yes, choosing_letters, load, run
from asignals.relay._cli.look import Look
from asignals.relay._cli.progress import Progress
from asignals.relay._cli.status_text import troubles_of
from asignals.relay._cli.tail import EndOfTail, tail
from asignals.relay._cli.tail import as_json as event_as_json
from asignals.relay._cli.tail import as_line as event_as_line
from asignals.relay._dead_letters import REFUSED
from asignals.relay._envelope import check_name
from asignals.relay._monitoring.status import TIMEOUT
from asignals.relay._runner import NoReceiversError
from asignals.relay._transport import Broadcasts, SchemaError
from asignals.relay.worker import JSONFormatter, TextFormatter, check_receivers, run_worker

if TYPE_CHECKING:
    from asignals.relay._envelope import DeadLetter
    from asignals.relay._transport import Delivery

Modules = Annotated[
    list[str] | None, typer.Option("--import", metavar="MODULE", help="Import this too: receivers are in it.")
]

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
    relay = load(target)
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
    relay, progress = load(target), Progress("init")
    run(relay, relay.init(progress.step), progress)
    typer.echo("ready")


@app.command()
def status(  # noqa: PLR0913  options of a command
    target: Target,
    *,
    service: Annotated[str | None, typer.Option(help="The topics of this service; by default of all.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 2.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds that each server may take to answer.")] = TIMEOUT,
    check: Annotated[bool, typer.Option("--check", help="Exit status 3 when somebody should look at it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each look; times in seconds.")] = False,
) -> None:
    """Show what waits: in the outbox, with the engine for each topic of each service, in the dead letter queues.

    The exit status is 1 when somebody did not answer. With --check it is 3 when there are dead letters, or events wait
    of which no instance of their service runs.
    """
    relay = load(target)
    look = Look(relay, service, timeout)
    if watch:
        run(relay, look.for_ever(every, as_json=as_json))
        return
    found = run(relay, look.once())
    typer.echo("\n".join(look.lines(found, as_json=as_json)))
    if found.problems:
        raise typer.Exit(1)
    if check and troubles_of(found):
        raise typer.Exit(3)


@app.command()
@choosing_letters
def dead(
    target: Target,
    which: dict[str, Any],
    *,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of dead letters.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with all of the error.")] = False,
) -> None:
    """Show dead letters, the oldest first."""
    relay = load(target)
    for letter in run(relay, relay.dead_letters(limit=limit, **which)):
        typer.echo(_as_json(letter) if as_json else _as_line(letter))


Most = Annotated[int | None, typer.Option(min=1, help="Maximum number of dead letters; by default all.")]


@app.command()
@choosing_letters
def replay(target: Target, which: dict[str, Any], *, limit: Most = None) -> None:
    """Send dead letters again, to the service that gave them up: only to receivers that had not succeeded."""
    relay, progress = load(target), Progress("replay")
    count = run(relay, relay.replay(limit=limit, **which, on_progress=progress.count), progress)
    typer.echo(f"{count} sent again")


@app.command()
@choosing_letters
def purge(
    target: Target,
    which: dict[str, Any],
    *,
    limit: Most = None,
    place: Annotated[
        Literal["dead", "outbox", "inbox"],
        typer.Option("--from", help="Dead letters, events that the engine refused, or rows of the inbox."),
    ] = "dead",
    yes: Yes = False,
) -> None:
    """Remove dead letters for good; or what the inbox remembers of events until a time.

    An event whose rows are gone from the inbox is handled again, should it ever come again.
    """
    relay, progress = load(target), Progress("purge")
    if place == "inbox":
        until = which.pop("until")
        if until is None or limit is not None or any(value is not None for value in which.values()):
            raise typer.BadParameter("purge --from inbox takes --until TIME, and no other choice")
        work = relay.purge_inbox(until, on_progress=progress.count)
        what = f"Remove what the inbox remembers until {_when(until)}?"
    else:
        if place == "outbox":
            which["queue"] = REFUSED
        work = relay.purge(limit=limit, **which, on_progress=progress.count)
        what = "Remove these dead letters for good?"
    if not yes:
        try:
            typer.confirm(what, abort=True)
        except typer.Abort:
            work.close()
            raise
    typer.echo(f"{run(relay, work, progress)} removed")


@app.command("tail")
def tail_(
    target: Target,
    topics: Annotated[list[str], typer.Argument(metavar="TOPIC…", help="Whose events.")],
    *,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many events.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show the events of topics as they come, until Ctrl-C; nothing is consumed, and nothing is left behind.

    Secrets in arguments are masked by their names.
    """
    relay = load(target)
    if not isinstance(relay.transport, Broadcasts):
        raise typer.BadParameter(
            f"{type(relay.transport).__name__} cannot show events as they come: it has no method listen"
        )
    for topic in topics:
        _check_topic(topic)
    run(relay, _tail(relay.transport, topics, limit, as_json=as_json))


async def _tail(transport: Broadcasts, topics: list[str], limit: int | None, *, as_json: bool) -> None:
    left = limit

    def show(delivery: Delivery) -> None:
        nonlocal left
        typer.echo(event_as_json(delivery) if as_json else event_as_line(delivery))
        if left is not None:
            left -= 1
            if left == 0:
                raise EndOfTail

    try:
        await tail(transport, topics, show, lambda text: typer.echo(text, err=True))
    except EndOfTail:
        return
    except BrokenPipeError:  # who read it has gone, as `head` does; nor is there anybody to flush to at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_topic(topic: str) -> None:
    try:
        check_name("topic", topic)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


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
    relay = load(target)
    if not yes:
        typer.confirm(f"Remove what waits for {service!r}?", abort=True)
    run(relay, relay.forget(service, topics or None))
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

    relay = load(target)
    _import(modules or [])
    try:
        made = document(relay, version=version_of(target))
        changes = [] if check is None else compare(read_document(check), made)  # before it is written over
        if check is None or output is not None:
            write_document(made, output)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise typer.BadParameter(said(error)) from error
    if check is not None:
        show_changes(changes, check)
    raise typer.Exit(any(change.is_break for change in changes))


def _import(modules: list[str]) -> None:
    for module in modules:
        try:
            import_module(module)
        except (Exception, SystemExit) as error:  # whatever the module runs into
            raise typer.BadParameter(f"--import {module}: {said(error)}") from error


def _log(form: str, level: str) -> None:
    if form not in ("json", "text"):
        raise typer.BadParameter(f"--log-format is json or text, not {form!r}")
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise typer.BadParameter(f"--log-level is debug, info, warning or error, not {level!r}")
    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=number, handlers=[handler], force=True)


def _as_line(letter: DeadLetter) -> str:
    envelope = letter.envelope
    what = f"{envelope.topic} {envelope.id}" if envelope else f"unreadable, {len(letter.raw)} bytes"
    return f"{_when(letter.time)}  {what}  {letter.attempts} attempts  {_printable(letter.error)}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


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
    """Show text from elsewhere on one line, with control characters escaped, which a terminal would obey."""
    escaped = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in text[:300])
    return "".join(escaped)
