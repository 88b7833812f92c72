"""The pytest option `--signals-report`: which receivers no test has called, and which sends reached nobody."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from asignals import monitor
from asignals.overview.counts import Counts, called, summary

if TYPE_CHECKING:
    from collections.abc import Callable

OPTION: Final = "--signals-report"
_OUTPUT: Final = "asignals_counts"
_LINES: Final = 50


def add_option(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("asignals").addoption(
        OPTION,
        nargs="?",
        const="",
        metavar="FILE",
        help="Say which receivers were never called and which sends reached nobody; write it to FILE as JSON, too.",
    )


def configure(config: pytest.Config) -> None:
    """Count, where the option is given."""
    file = config.getoption(OPTION)
    if file is not None:
        config.pluginmanager.register(SignalsReport(file), "asignals-signals-report")


class SignalsReport:
    """Counts while the tests run, those of pytest-xdist's processes together."""

    def __init__(self, file: str) -> None:
        """Write the counts to `file`, unless it is empty."""
        self._file = file
        self._counts = Counts()
        self._found: dict[str, dict[str, Any]] = {}
        self._end: Callable[[], object] = monitor(self._counts)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """End the count; a process of pytest-xdist gives it to the one that reports."""
        self._end()
        self._found = self._counts.as_dict()
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[_OUTPUT] = self._found
        elif self._file:
            Path(self._file).parent.mkdir(parents=True, exist_ok=True)
            self._counts.write(Path(self._file))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what a process of pytest-xdist has counted."""
        self._counts.add(getattr(node, "workeroutput", {}).get(_OUTPUT, {}))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say it at the end."""
        lines = summary(self._found)
        calls, never = called(self._found.values())
        terminalreporter.section("signals")
        for line in lines[:_LINES]:
            terminalreporter.write_line(line)
        if len(lines) > _LINES:
            terminalreporter.write_line(f"… and {len(lines) - _LINES} more")
        unheard = sum(counted["unheard"] for counted in self._found.values())
        terminalreporter.write_line(f"{calls} receivers called, {never} never; {unheard} sends reached nobody")
