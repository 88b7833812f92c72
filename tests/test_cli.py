"""The command line itself: what is common to all commands, and what each loads."""

import os
import subprocess
import sys
from importlib.metadata import version

import pytest

pytest.importorskip("typer")

from typer.testing import CliRunner

from asignals import cli


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  our own code


def without(package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line where this package is not installed."""
    code = f"import sys; sys.modules[{package!r}] = None; from asignals.cli import main; main()"
    return python(code, *arguments)


def test_help_names_the_commands() -> None:
    """Each with a line of what it does."""
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    assert "demo" in result.output
    assert "Run a small pizza shop" in result.output


def test_without_arguments_it_shows_the_help() -> None:
    """Rather than an error message."""
    assert "Usage" in CliRunner().invoke(cli.app, []).output


def test_version() -> None:
    """That of the installed package."""
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"asignals {version('asignals')}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--requests", "0"], "--requests"),
        (["demo", "--requests", "many"], "--requests"),
        (["dance"], "dance"),
    ],
)
def test_a_wrong_use_is_status_2_and_a_message(arguments: list[str], message: str) -> None:
    """The message names what is wrong."""
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("typer", ["--help"], "cli"),
        ("rich", ["list", "asignals.asgi"], "cli"),
        ("uvicorn", ["demo"], "demo"),
        ("aiosqlite", ["demo"], "demo"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(package: str, arguments: list[str], extra: str) -> None:
    """And there is no traceback."""
    result = without(package, *arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    expected = f"asignals: {package} is not installed; get it with: pip install 'asignals[{extra}]'\n"
    assert result.stderr == expected


def test_a_command_needs_only_its_own_extra() -> None:
    """Help works, and other commands would, where what the demo needs is missing."""
    assert without("uvicorn", "--help").returncode == 0


def test_a_mistake_of_ours_is_no_missing_extra() -> None:
    """A module of the package itself that is not there is shown as the bug that it is."""
    with pytest.raises(ModuleNotFoundError, match="asignals"), cli.needs("demo"):
        raise ModuleNotFoundError("No module named 'asignals.oven'", name="asignals.oven")


def test_the_command_line_loads_no_command() -> None:
    """Each command loads what it needs when it is called."""
    code = (
        "import sys, asignals.cli\n"
        "print(*(name for name in ('uvicorn', 'starlette', 'sqlalchemy', 'httpx', 'asignals.demo', 'asignals.relay',"
        " 'asignals.inspector') if name in sys.modules))"
    )
    assert python(code).stdout == "\n"


def test_a_shell_completes_commands() -> None:
    """As after `asignals --install-completion`."""
    environment = {**os.environ, "_ASIGNALS_COMPLETE": "complete_bash", "COMP_WORDS": "asignals ch", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "asignals"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603  our own
    assert result.stdout.split() == ["check"]


def test_python_dash_m() -> None:
    """`python -m asignals` is the command, and calls itself so."""
    command = [sys.executable, "-m", "asignals", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  our own
    assert "Usage: asignals " in result.stdout
