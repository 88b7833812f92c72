"""What all tests share: the event loops they run on, and the workers that share them."""

import asyncio
import gc
import os
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import asignals

# The workers, and the processes of tests, read what one of them has compiled; else each compiles everything anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if sysconfig.get_config_var("Py_GIL_DISABLED") and sys.version_info < (3, 13, 1):
    gc.freeze = gc.unfreeze = lambda: None  # there, a later collection destroys what is in use (gh-126312)

# A machine that is busy with something else is no failure; in CI a failure can be made again.
settings.register_profile("asignals", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("asignals")

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "asyncio+uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


if sys.version_info >= (3, 12):
    LOOPS["asyncio+eager"] = ("asyncio", {"loop_factory": _eager_loop})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options for what a newcomer does not wait for; environment variables hand some on to the tests' own processes."""
    parser.addoption("--slow", action="store_true", help="the tests too that take seconds each")
    parser.addoption(
        "--full",
        action="store_true",
        default=os.environ.get("ASIGNALS_FULL") == "1",
        help="every test on every event loop and driver, and the slow tests",
    )
    parser.addoption(
        "--everywhere", action="store_true", help="every test on every event loop and driver, without the slow tests"
    )
    parser.addoption(
        "--long",
        action="store_true",
        default=os.environ.get("ASIGNALS_LONG") == "1",
        help="--full, and campaigns of hours where minutes would do",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers of this directory."""
    config.addinivalue_line("markers", "loops(*names): the event loops that the tests run on without `--full`")
    config.addinivalue_line("markers", "drivers(*names): the databases' drivers, likewise")
    config.addinivalue_line("markers", "slow: takes seconds, and runs with `--slow` or `--full` only")
    once = "once: of servers, processes, browsers or tools: `.ci/run` leaves it out where the interpreter is one more"
    config.addinivalue_line("markers", once)
    # On free-threaded builds some packages turn the GIL on, at their import.
    config.addinivalue_line("filterwarnings", "ignore:The global interpreter lock .* has been enabled:RuntimeWarning")
    # On 3.15 Hypothesis does not find what refers to its own generator, in the frozen heap.
    config.addinivalue_line("filterwarnings", "ignore:It looks like `register_random` was passed")
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as in a script's background; processes of tests inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart() -> None:
    """Remove what a killed run has left on the servers."""
    from relay_residue import NOTES, sweep

    if "PYTEST_XDIST_WORKER" not in os.environ and next(NOTES.glob("*"), None):
        asyncio.run(sweep())


def is_full(config: pytest.Config) -> bool:
    return bool(config.getoption("--full") or config.getoption("--long"))


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Iterator[None]:
    """Share the tests of a directory among workers, if xdist is there and the command says nothing else."""
    options = config.option
    is_worker = "PYTEST_XDIST_WORKER" in os.environ  # without this, workers would start workers, and so on
    is_silent = getattr(options, "numprocesses", 0) is None
    if is_silent and not is_worker and all(Path(argument).is_dir() for argument in config.args):
        options.numprocesses = "auto"
        options.dist = "worksteal"
    return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: many tests wait for a server or a process."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(trylast=True)  # others put together what shares a fixture
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without options, leave out the loops and drivers that no marker names, and skip what is slow."""
    if not is_full(config):
        left_out = [item for item in items if not config.getoption("--everywhere") and not _is_to_try(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if config.getoption("--everywhere") or _is_to_try(item)]
    if not is_full(config) and not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: runs with --slow"))
    items[:] = _long_ones_first(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def _long_ones_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Begin each worker's part with tests that take long, so that no worker ends with one while the others wait.

    So do those of the inspector: it shows all signals of the process, and other tests leave thousands.
    """

    def is_long(item: pytest.Item) -> bool:
        return any(item.get_closest_marker(name) for name in ("once", "slow")) or item.path.name == "test_inspector.py"

    long = [item for item in items if is_long(item)]
    short = [item for item in items if not is_long(item)]
    shares = ((kind, number) for number in range(workers) for kind in (long, short))
    return [each for kind, n in shares for each in kind[len(kind) * n // workers : len(kind) * (n + 1) // workers]]


DRIVERS = ("aiosqlite", "asyncpg", "aiomysql")
"""One of each database: what a driver does differently is tried by the tests that a marker `drivers` gives more."""


def _is_to_try(item: pytest.Item) -> bool:
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    loops, drivers = item.get_closest_marker("loops"), item.get_closest_marker("drivers")
    loop = next((name for name, found in LOOPS.items() if found == parameters.get("anyio_backend")), None)
    is_loop_tried = loops is None or loop is None or loop in loops.args
    return is_loop_tried and parameters.get("place", DRIVERS[0]) in (drivers.args if drivers else DRIVERS)


@pytest.fixture(scope="session", autouse=True)
def _stopped_once() -> None:
    """Stop a connection of aiosqlite once only: the second time it waits for a thread that has ended, for ever.

    SQLAlchemy stops it twice when closing takes over two seconds, as on a busy machine.
    """
    if find_spec("aiosqlite") is None:
        return
    from aiosqlite import Connection

    stop = getattr(Connection, "stop", None)
    if stop is not None:  # older ones have none
        Connection.stop = lambda self: stop(self) if self._running else None


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> None:
    """Hide what was there before from the garbage collector: some tests collect thousands of times."""
    gc.collect()
    if hasattr(gc, "freeze"):  # PyPy has none
        gc.freeze()


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether to take hours where minutes would do."""
    return bool(request.config.getoption("--long"))


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to try all cases, where a newcomer's run tries a part of them."""
    return is_full(request.config)


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every test marked `anyio` runs once on each loop, or on those of its nearest marker `loops`."""
    if request.param[1].get("use_uvloop") and find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    return request.param


@pytest.fixture
def collect() -> Callable[..., Any]:
    """A receiver that keeps what it was called with, in its attribute `calls`."""

    def receiver(**named: Any) -> None:
        receiver.calls.append(named)

    receiver.calls = []
    return receiver


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """What loads the pytest plugin in a project's own run: installed, it loads itself."""
    monkeypatch.setenv("PYTHONPATH", str(Path(asignals.__file__).parent.parent), prepend=os.pathsep)
    is_installed = any(each.name == "asignals" for each in entry_points(group="pytest11"))
    return () if is_installed else ("-p", "asignals.pytest_plugin")
