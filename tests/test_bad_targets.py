"""Whatever is given as a target on the command line: status 2 and a message that names it, never a traceback."""

import sys

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, example, given, settings

pytest.importorskip("typer")
pytest.importorskip("sqlalchemy", reason="the commands of the relay need asignals[sqlalchemy]")

from typer.testing import CliRunner

from asignals import cli

COMMANDS = [["list"], ["graph"], ["worker"], *(["relay", each] for each in ("init", "status", "dead", "replay"))]
# Nothing that is there: a stray target must not be imported and run. What begins with a dash is an option.
PARTS = st.text(max_size=8).map(lambda text: f"no_{text}") | st.sampled_from(["", ".", "..", "no", "\0", "\ud800", " "])
TARGETS = st.lists(PARTS | st.sampled_from([".", ":", "/", ".py", "x"]), max_size=6).map("".join)


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Modules that cannot be imported, each in its own way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    texts = {
        "target_raises": "1 / 0",
        "target_ends": "import sys; sys.exit(0)",
        "target_is_wrong": "def",
        "target_needs_another": "import target_that_is_nowhere",
        "target_raises_several": "raise ExceptionGroup('', [ValueError()])",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    return list(texts)


def refused(command, target):
    result = CliRunner().invoke(cli.app, [*command, "--", target])
    assert isinstance(result.exception, SystemExit), (command, target, result.exception)
    assert result.exit_code == 2, (command, target, result.output)
    assert "Traceback" not in result.output
    return result.output


@pytest.mark.parametrize("command", COMMANDS, ids="-".join)
@settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(target=TARGETS.filter(bool))
@example("..no:x")
@example("no\0:x")
@example("sys:")
@example(":" * 5_000)
def test_a_strange_target_is_refused(command, target):
    """Arbitrary text is no module, and is told so."""
    if target == "sys:" and command[0] in {"list", "graph"}:
        return  # a module, and nothing in it is asked for
    assert refused(command, target)


@pytest.mark.parametrize("command", COMMANDS, ids="-".join)
def test_a_target_that_does_not_import_is_named(command, modules):
    """Whatever it does instead: the message says which target, and what it ran into."""
    for name in modules:
        output = refused(command, f"{name}:relay")
        assert name in "".join(output.split()).replace("│", "")


@pytest.mark.parametrize("url", ["", "x", "://", "\ud800", "sqlite:", "nats://:::", "redis://127.0.0.1:1"])
def test_a_demo_with_a_strange_engine_is_refused(url):
    """A URL of no engine, one that its engine cannot read, and one of a server that is not there."""
    pytest.importorskip("uvicorn", reason="needs asignals[demo]")
    if url.startswith(("nats", "redis")):
        pytest.importorskip(url.partition(":")[0])
    result = CliRunner().invoke(cli.app, ["demo", "--relay", url])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert "the demo cannot use this --relay: " in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--relay", "carrier-pigeon://coop"], "carrier-pigeon"),
        (["--relay", "postgresql+asyncpg://nobody:hush@127.0.0.1:1/none"], "cannot use this --relay"),
        (["--requests", "5"], "--workers goes with --relay only"),
        (["--serve"], "--workers goes with --relay only"),
    ],
)
def test_what_the_demos_workers_cannot_do_is_said_in_a_line(arguments, words):
    """With status 2, without a traceback, and without a password."""
    pytest.importorskip("uvicorn", reason="needs asignals[demo]")
    done = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["demo", "--workers", "2", *arguments])
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output
    assert "hush" not in done.output
