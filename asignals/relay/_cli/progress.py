"""How far a command is: one line that changes on a terminal, else a line every few seconds; on stderr."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import typer

from asignals.masking import redacted
from asignals.relay._cancel import end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_EVERY: Final = 5.0  # seconds between two plain lines


class Progress:
    """What a command is doing; nothing is shown of one that is quick."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._text = ""
        self._seen = 0
        self._total = 0

    def step(self, text: str) -> None:
        """Say what is being done now."""
        self._text = redacted(text)

    def count(self, seen: int, total: int) -> None:
        """Say how much of it is done."""
        self._seen, self._total = seen, total

    @property
    def line(self) -> str:
        """All of it in one line."""
        amount = f"{self._seen} of {self._total}" if self._total else ""
        return " ".join(filter(None, [f"{self._what}:", amount, self._text]))

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Show it for the length of a block."""
        show = self._on_terminal if sys.stderr.isatty() else self._in_lines
        task = asyncio.get_running_loop().create_task(show())
        try:
            yield
        finally:
            await end([task])

    async def _in_lines(self) -> None:
        begun = time.monotonic()
        while True:
            await asyncio.sleep(_EVERY)
            typer.echo(f"{self.line} ({time.monotonic() - begun:.0f} s)", err=True)

    async def _on_terminal(self) -> None:
        from rich.console import Console  # noqa: PLC0415  where nobody looks it is not needed
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
        from rich.progress import Progress as Line  # noqa: PLC0415

        columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20), TimeElapsedColumn()
        await asyncio.sleep(0.3)  # seconds; what is done by then needs no line
        with Line(*columns, console=Console(stderr=True), transient=True) as line:
            task = line.add_task(self.line, total=None)
            while True:
                line.update(task, description=self.line, completed=self._seen, total=self._total or None)
                await asyncio.sleep(0.1)
