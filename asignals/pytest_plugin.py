"""The pytest plugin of asignals: `capture_signals`, `no_signals`, and connections that end with their test.

pytest loads it by itself where asignals is installed. The fixtures work in sync and async tests, whatever runs these
(anyio's plugin, pytest-asyncio, pytest-trio or another), and in each process of pytest-xdist.

- Fixture `capture_signals`: `sent = capture_signals(order_paid)`, the function `asignals.testing.capture` for the
  rest of the test; `class_capture_signals`, `module_capture_signals`, `package_capture_signals` and
  `session_capture_signals` for fixtures of these scopes.
- When a test fails, or its setup or teardown, its report shows what was captured, by these fixtures or by
  `asignals.testing.capture`; of a hypothesis test, what the last example captured.
- Fixture `no_signals`: every signal there is when the test starts is muted until it ends; captures still see the sends.
- Marker `restore_signals`, or the ini option `restore_signals = true` for all tests (and then the marker with `False`
  for one that is not to be touched): the connections of every signal that was there before the test are put back
  after it: what the test and its function-scoped fixtures connected is disconnected, what they disconnected is back.
  A module that connects receivers when it is imported should be imported before such a test, for it is not imported
  again.
- Fixture `relay`: services in one process whose events are delivered by `await relay.deliver()`; see
  `asignals.relay.testing`.
- Test classes that are decorated with `muted` and the like: their blocks are entered before each test's fixtures.
- Option `--signals-report`: at the end of the run, which receivers no test has called and which sends reached nobody;
  with `--signals-report=FILE` also as JSON, for `asignals list --counts FILE`.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from asignals import signals
from asignals.overview import pytest_report
from asignals.testing import Capture, capture, muted
from asignals.testing._block import blocks_of
from asignals.testing._blocks import Restorer
from asignals.testing._capture import entered

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from asignals import Event, Signal
    from asignals.relay.testing import RelayTest

__all__ = [
    "CaptureSignals",
    "capture_signals",
    "class_capture_signals",
    "module_capture_signals",
    "no_signals",
    "package_capture_signals",
    "relay",
    "session_capture_signals",
]

_OPTION: Final = "restore_signals"


class CaptureSignals:
    """What the fixture `capture_signals` gives: call it with signals, and get the list of their sends."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        """Captures are entered into `stack`."""
        self._stack = stack

    def __call__(
        self,
        *signals: Signal[..., Any] | Iterable[Signal[..., Any]],
        sender: object = None,
        where: Callable[[Event], object] | None = None,
        phase: str | None = None,
        everywhere: bool = True,
    ) -> Capture:
        """Capture the sends of signals from here to the end of the scope, like `asignals.testing.capture`.

        Here every context is captured unless `everywhere` is false, because fixtures and tests may run in different
        ones.
        """
        captured = capture(*signals, sender=sender, where=where, phase=phase, everywhere=everywhere)
        return self._stack.enter_context(captured)


def _captures() -> Generator[CaptureSignals]:
    """Call it with signals to capture their sends until the scope ends."""
    with contextlib.ExitStack() as stack:
        yield CaptureSignals(stack)


capture_signals: Any = pytest.fixture(_captures, name="capture_signals")
class_capture_signals: Any = pytest.fixture(_captures, scope="class", name="class_capture_signals")
module_capture_signals: Any = pytest.fixture(_captures, scope="module", name="module_capture_signals")
package_capture_signals: Any = pytest.fixture(_captures, scope="package", name="package_capture_signals")
session_capture_signals: Any = pytest.fixture(_captures, scope="session", name="session_capture_signals")


@pytest.fixture
def no_signals() -> Generator[None]:
    """Mute every signal there is, for every context, until the test ends."""
    found = signals()
    with muted(*found, everywhere=True) if found else contextlib.nullcontext():
        yield


@pytest.fixture
def relay() -> Generator[RelayTest]:
    """Wire services in one process, for the test: see `asignals.relay.testing`."""
    from asignals.relay.testing import RelayTest  # noqa: PLC0415  only where it is asked for

    with RelayTest() as relays:
        yield relays


@pytest.fixture(autouse=True)
def _around_each_test(request: pytest.FixtureRequest) -> Generator[None]:
    """Put the connections back after a test that asks for it, and enter the blocks that decorate its class."""
    with contextlib.ExitStack() as stack:
        if _is_asked(request.node, request.config):
            stack.enter_context(request.config.stash[_session].restorer.block(signals()))
        for node in request.node.listchain():
            if isinstance(node, pytest.Class):
                for block in blocks_of(node.obj):
                    stack.enter_context(block.around_test())
        yield


class _Session:
    """What the plugin remembers from test to test."""

    def __init__(self) -> None:
        self.restorer = Restorer()
        self._captures: list[tuple[Capture, object]] = []

    def note(self, captured: Capture) -> None:
        """Remember a capture that is entered; of the examples that hypothesis makes, those of the last one."""
        example = _hypothesis_example()
        if example is not None:
            self._captures = [each for each in self._captures if each[1] is None or each[1] is example]
        self._captures.append((captured, example))

    def describe(self) -> str:
        """What was captured, for the report of a failed test."""
        return "\n".join(each.describe() for each, _ in self._captures)

    def forget(self) -> None:
        """After a test: keep what fixtures of wider scopes go on capturing."""
        self._captures = [each for each in self._captures if each[0].is_open]


_session: Final = pytest.StashKey[_Session]()


def _hypothesis_example() -> object:
    """What is the same for all that one example of a hypothesis test does; `None` elsewhere."""
    control = sys.modules.get("hypothesis.control")
    if control is None or not control.currently_in_test_context():
        return None
    example: object = control.current_build_context()  # the object, not its id: a later one's may be the same
    return example


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option, and `--signals-report`."""
    pytest_report.add_option(parser)
    parser.addini(_OPTION, "Undo every connection of a signal that a test makes, after it.", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Add the marker, so that strict markers know it; learn of captures; count, if `--signals-report` is given."""
    pytest_report.configure(config)
    config.addinivalue_line(
        "markers",
        f"{_OPTION}(enabled=True): undo every connection of a signal that the test makes, after it (asignals).",
    )
    session = config.stash[_session] = _Session()
    entered.append(session.note)
    config.add_cleanup(lambda: entered.remove(session.note))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what was captured in the report of what failed: the test, its setup or its teardown."""
    report = yield
    text = item.config.stash[_session].describe() if report.failed else ""
    if text:
        report.sections.append(("Captured signals", text))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Forget the captures of a test after its teardown."""
    try:
        return (yield)
    finally:
        item.config.stash[_session].forget()


def _is_asked(node: pytest.Item, config: pytest.Config) -> bool:
    marker = node.get_closest_marker(_OPTION)
    if marker is None:
        return bool(config.getini(_OPTION))
    return bool(marker.kwargs.get("enabled", marker.args[0] if marker.args else True))
