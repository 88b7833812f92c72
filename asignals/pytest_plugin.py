"""The pytest plugin of asignals: `capture_signals`, `no_signals`, and connections that end with their test.

pytest loads it by itself where asignals is installed. The fixtures work in sync and async tests, whatever runs these
(anyio's plugin, pytest-asyncio or another), and in each process of pytest-xdist.

- Fixture `capture_signals`: `sent = capture_signals(order_paid)`, the function `asignals.testing.capture` for the
  rest of the test. When the test fails, its report shows what was captured.
- Fixture `no_signals`: every signal there is when the test starts is muted until it ends; captures still see the sends.
- Marker `restore_signals`, or the ini option `restore_signals = true` for all tests (and then the marker with `False`
  for one that is not to be touched): the connections of every signal that was there before the test are put back
  after it: what the test and its function-scoped fixtures connected is disconnected, what they disconnected is back.
  A module that connects receivers when it is imported should be imported before such a test, for it is not imported
  again.
- Option `--signals-report`: at the end of the run, which receivers no test has called and which sends reached nobody;
  with `--signals-report=FILE` also as JSON, for `asignals list --counts FILE`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import pytest

from asignals import signals
from asignals.overview import pytest_report
from asignals.testing import Capture, capture, muted, restored

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from asignals import Event, Signal

__all__ = ["CaptureSignals", "capture_signals", "no_signals"]

_captured: Final = pytest.StashKey[list[Capture]]()
_OPTION: Final = "restore_signals"


class CaptureSignals:
    """What the fixture `capture_signals` gives: call it with signals, and get the list of their sends."""

    def __init__(self, stack: contextlib.ExitStack, captures: list[Capture]) -> None:
        """Captures are entered into `stack` and remembered in `captures`."""
        self._stack = stack
        self._captures = captures

    def __call__(
        self,
        signal: Signal[..., Any] | Iterable[Signal[..., Any]],
        sender: object = None,
        *,
        where: Callable[[Event], object] | None = None,
        everywhere: bool = True,
    ) -> Capture:
        """Capture the sends of signals from here to the end of the test, like `asignals.testing.capture`.

        Here every context is captured unless `everywhere` is false, because fixtures and tests may run in different
        ones.
        """
        captured = self._stack.enter_context(capture(signal, sender, where=where, everywhere=everywhere))
        self._captures.append(captured)
        return captured


@pytest.fixture
def capture_signals(request: pytest.FixtureRequest) -> Generator[CaptureSignals]:
    """Call it with signals to capture their sends until the test ends."""
    captures = request.node.stash.setdefault(_captured, [])
    with contextlib.ExitStack() as stack:
        yield CaptureSignals(stack, captures)


@pytest.fixture
def no_signals() -> Generator[None]:
    """Mute every signal there is, for every context, until the test ends."""
    with muted(*signals(), everywhere=True):
        yield


@pytest.fixture(autouse=True)
def _restore_signals(request: pytest.FixtureRequest) -> Generator[None]:
    """Put the connections back after a test that asks for it."""
    if not _is_asked(request.node, request.config):
        yield
        return
    with restored(*signals()):
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option, and `--signals-report`."""
    pytest_report.add_option(parser)
    parser.addini(_OPTION, "Undo every connection of a signal that a test makes, after it.", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker, so that strict markers know it; count, where `--signals-report` is given."""
    pytest_report.configure(config)
    config.addinivalue_line(
        "markers",
        f"{_OPTION}(enabled=True): undo every connection of a signal that the test makes, after it (asignals).",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what was captured in the report of a test that failed."""
    report = yield
    captures = item.stash.get(_captured, [])
    if report.when == "call" and report.failed and captures:
        text = "\n".join(each.describe() for each in captures)
        report.sections.append(("Captured signals", text))
    return report


def _is_asked(node: pytest.Item, config: pytest.Config) -> bool:
    marker = node.get_closest_marker(_OPTION)
    if marker is None:
        return bool(config.getini(_OPTION))
    return bool(marker.kwargs.get("enabled", marker.args[0] if marker.args else True))
