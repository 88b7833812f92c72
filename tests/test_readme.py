"""The README's examples, run in order as one program, as a newcomer would type them."""

import ast
import re
import sys
from pathlib import Path
from types import CodeType

import anyio
import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def examples() -> list[CodeType]:
    """Each example, compiled so that a traceback shows the README's own line."""
    text = README.read_text()
    found = []
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        found.append(
            compile(
                "\n" * line + block[1], str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
            )
        )
    return found


@pytest.mark.filterwarnings("default::asignals.ReceiverLostWarning")
def test_every_example_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python examples of the README run, one after the other, and their assertions hold."""
    namespace = {"__name__": "readme"}

    async def run() -> None:
        for code in examples():
            outcome = eval(code, namespace)  # noqa: S307  the README is ours
            if outcome is not None:
                await outcome

    anyio.run(run)
    assert len(examples()) >= 7
    assert "results" in namespace


def test_the_two_commands_are_near_the_top() -> None:
    """A newcomer sees how to start the demo and the tests before anything else."""
    head = "\n".join(README.read_text().splitlines()[:30])
    assert "python3 -m venv .venv && .venv/bin/pip install -q -e '.[demo]' && .venv/bin/asignals demo" in head
    assert "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest" in head
    assert sys.version_info >= (3, 11)
