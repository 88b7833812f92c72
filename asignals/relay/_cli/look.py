"""Looking at a relay's status, once or again and again, as text or as JSON."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import typer

from asignals.relay._cli.status_text import as_json as status_as_json
from asignals.relay._cli.status_text import as_text
from asignals.relay._envelope import check_name

if TYPE_CHECKING:
    from asignals.relay._monitoring.figures import TopicFigures
    from asignals.relay._monitoring.status import Status
    from asignals.relay._relay import Relay

_NARROWEST: Final = 40  # characters


class Look:
    """Asks a relay, for the topics of one service or of all."""

    def __init__(self, relay: Relay, service: str | None, timeout: float) -> None:
        if service is not None:
            try:
                check_name("service", service)
            except ValueError as error:
                raise typer.BadParameter(str(error)) from error
        self._relay = relay
        self._service = service
        self._timeout = timeout
        self._known: Status | None = None

    async def once(self) -> Status:
        """Ask. The errors of dead letters are read when their number has changed: that reads the letters."""
        everything = self._service != self._relay.service
        found = await self._relay.status(all_services=everything, timeout=self._timeout)
        known = self._known
        if known is not None and known.dead == found.dead:
            found = _with(found, known.errors)
        elif any(found.dead.values()):
            errors = (await self._relay.status(by_error=True, timeout=self._timeout)).errors
            found = _with(found, errors)
        self._known = found
        return found

    def lines(self, status: Status, *, as_json: bool) -> list[str]:
        """Write it."""
        topics = tuple(one for one in status.topics if self._service in (None, one.service))
        status = _with(status, status.errors, topics)
        if as_json:
            return [json.dumps(status_as_json(self._relay.service, status))]
        width = max(_NARROWEST, shutil.get_terminal_size().columns)
        return as_text(self._relay.service, status, type(self._relay.transport).__name__, width)

    async def for_ever(self, every: float, *, as_json: bool) -> None:
        """Show it again and again: on a terminal in one place, else one after the other."""
        if as_json or not sys.stdout.isatty():
            while True:
                lines = self.lines(await self.once(), as_json=as_json)
                typer.echo("\n".join(lines if as_json else [*lines, ""]))
                await asyncio.sleep(every)
        from rich.live import Live  # noqa: PLC0415  only here
        from rich.text import Text  # noqa: PLC0415

        with Live(Text(""), auto_refresh=False, vertical_overflow="visible") as live:
            while True:
                begun = time.monotonic()
                lines = self.lines(await self.once(), as_json=False)
                took = time.monotonic() - begun
                live.update(Text("\n".join([*lines, "", f"{time.strftime('%H:%M:%S')}, asked for {took:.1f} s"])))
                live.refresh()
                await asyncio.sleep(every)


def _with(status: Status, errors: dict[str, dict[str, int]], topics: tuple[TopicFigures, ...] | None = None) -> Status:
    return replace(status, errors=errors, topics=status.topics if topics is None else topics)
