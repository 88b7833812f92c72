"""What all tests share: the event loops they run on."""

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import asignals

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
    """`--long`, or `ASIGNALS_LONG=1`: the sizes that the tests of trust are meant for, instead of those for CI."""
    parser.addoption("--long", action="store_true", default=os.environ.get("ASIGNALS_LONG") == "1")


def pytest_collection_finish() -> None:
    """Hide what imports have made from the garbage collector: some tests collect thousands of times."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether to take hours where minutes would do."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(params=list(LOOPS.values()), ids=list(LOOPS))
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every test marked `anyio` runs once on each loop."""
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
