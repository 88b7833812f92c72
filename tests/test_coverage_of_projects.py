"""A project that uses asignals measures its own coverage: the code that signals write at run time is not in the way."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import asignals

pytest.importorskip("coverage")

SHOP = '''
from asignals import Signal, signal


@signal
def paid(sender: object, *, amount: int, currency: str = "EUR") -> None:
    """An order was paid."""


shipped = Signal(["order"])
anything = Signal()
heard = []


@paid.connect
async def note(amount, **named):
    if amount > 1:
        heard.append(amount)


@shipped.connect
def pack(order):
    heard.append(order)


@anything.connect
def listen(**named):
    heard.append(sorted(named))


async def sell():
    for amount in (1, 2):
        await paid.send("shop", amount=amount)
    await paid.send_robust("shop", amount=3, currency="USD")
    await shipped.using(limit=2).send("shop", order=7)
    for number in range(200):  # often enough for code that is only written for what comes again
        await anything.send("shop", number=number)
    async with paid.stream() as events:
        await paid.send("shop", amount=4)
        await anext(events)
'''
TESTS = """
import asyncio

import pytest

import shop


def test_all():
    asyncio.run(shop.sell())
    assert shop.heard[:4] == [2, 3, 7, ["number", "sender", "signal"]]


def test_wrong():
    with pytest.raises(TypeError):
        asyncio.run(shop.paid.send("shop"))
"""
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
ENVIRONMENT["PYTHONPATH"] = os.pathsep.join([str(Path(asignals.__file__).parent.parent), *sys.path[1:]])


@pytest.fixture
def project(tmp_path):
    """A directory with a module and its tests."""
    (tmp_path / "shop.py").write_text(SHOP, "utf-8")
    (tmp_path / "test_shop.py").write_text(TESTS, "utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider -p no:asyncio\n", "utf-8")
    return tmp_path


def run(project, *command):
    done = subprocess.run(  # noqa: S603  this interpreter
        [sys.executable, "-m", *command], cwd=project, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        pytest.param([], id="plain"),
        pytest.param(["--source=."], id="source", marks=pytest.mark.slow),
        pytest.param(["--branch"], id="branch", marks=pytest.mark.slow),
    ],
)
def test_coverage_runs_and_reports(project, monkeypatch, form):
    """In all forms, as text, HTML and XML, and the project's own code is covered."""
    from coverage.cmdline import main

    run(project, "coverage", "run", *form, "-m", "pytest", "-q")
    monkeypatch.chdir(project)
    # Without a source, all of asignals is measured that is not in site-packages: then its own lines are not covered.
    assert main(["report"]) == 0
    assert main(["report", "--include=shop.py,test_shop.py", "--fail-under=100"]) == 0
    assert main(["html", "-q"]) == 0
    assert main(["xml", "-q"]) == 0
    if "--source=." in form:
        assert main(["report", "--fail-under=100"]) == 0


@pytest.mark.slow
def test_pytest_cov_runs_and_reports(project):
    """The same by the plugin, which most projects use."""
    if importlib.util.find_spec("pytest_cov") is None:
        pytest.skip("pytest-cov is not installed")
    found = run(project, "pytest", "-q", "--cov=.", "--cov-branch", "--cov-report=term", "--cov-fail-under=100")
    assert "100%" in found
