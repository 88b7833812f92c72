"""What the commands of a relay share: loading it, running their work, and options that several of them have."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import sys
import time
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asignals.masking import said
from asignals.relay.worker import load_relay

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from asignals.relay._cli.progress import Progress
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
        raise typer.BadParameter(f"a time is 2026-01-31T12:00, or 15m, 2h, 3d ago, not {text!r}") from None
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


Target = Annotated[str, typer.Argument(metavar="TARGET", help="The relay, as package.module:attribute.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def _chosen(  # noqa: PLR0913  options
    *,
    queue: Annotated[str | None, typer.Option(help="One dead letter queue; by default all of the relay.")] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Events with this id; may be given several times.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Events of this topic.")] = None,
    since: Annotated[
        float | None, typer.Option(parser=_time, help="Given up since: 2026-01-31T12:00 (UTC), or 2h ago.")
    ] = None,
    until: Annotated[float | None, typer.Option(parser=_time, help="Given up until then.")] = None,
    error: Annotated[str | None, typer.Option(help="A part of the error's text.")] = None,
) -> dict[str, Any]:
    return {"queue": queue, "ids": ids or None, "topic": topic, "since": since, "until": until, "error": error}


def choosing_letters(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that choose dead letters; it gets them as `which`, the arguments of the relay."""
    own, options = (inspect.signature(each, eval_str=True).parameters for each in (command, _chosen))

    def run(**given: Any) -> None:
        which = _chosen(**{name: given.pop(name) for name in options})
        command(**given, which=which)

    parameters = [*(each for name, each in own.items() if name != "which"), *options.values()]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def load(target: str) -> Relay:
    """Import the relay that a target names; a wrong one is a wrong usage."""
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  as `python -m` does, so that the application is found
    try:
        return load_relay(target)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def run(relay: Relay, work: Coroutine[Any, Any, Any], progress: Progress | None = None) -> Any:
    """Run one command's work, close what it opened, and turn failures into one line."""

    async def to_its_end() -> Any:
        try:
            async with nullcontext() if progress is None else progress.shown():
                return await work
        finally:
            await relay.aclose()

    try:
        return asyncio.run(to_its_end())
    except Exception as error:
        typer.echo(said(error), err=True)
        raise typer.Exit(1) from error
