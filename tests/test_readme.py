"""The README's examples, run in order as one program, as a newcomer would type them; and what else it promises."""

import re
from pathlib import Path

import anyio
import pytest
import readme_examples
from readme_examples import Example, examples, is_guide

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
FOUND = examples(README)
GUIDES = [example for example in FOUND if is_guide(example)]


def test_every_example_runs_as_it_stands() -> None:
    """All Python examples of the tour run, one after the other, and their assertions hold."""
    names = anyio.run(readme_examples.run_tour, FOUND)
    assert len(FOUND) - len(GUIDES) >= 7
    assert "results" in names


@pytest.mark.parametrize("example", GUIDES, ids=[f"{each.title}, line {each.code.co_firstlineno}" for each in GUIDES])
def test_every_guide_is_true_before_and_after(example: Example) -> None:
    """Each example of an upgrade guide is a program of its own, run with the library that it is about."""
    anyio.run(readme_examples.run, example.code, {"__name__": "readme"})


def test_there_is_a_before_and_an_after_for_each_library() -> None:
    """Two programs a guide, of which the first imports the other library and the second does not."""
    libraries = {
        "From Django signals": "django",
        "From blinker": "blinker",
        "From pyee": "pyee",
        "From aiosignal": "aiosignal",
    }
    for title, library in libraries.items():
        before, after = (each.code.co_names for each in GUIDES if each.title == title)
        assert any(name.partition(".")[0] == library for name in before)
        assert not any(name.partition(".")[0] == library for name in after)
        assert "asignals" in after
    assert len(GUIDES) == 2 * len(libraries)


def test_the_two_commands_are_near_the_top() -> None:
    """A newcomer sees how to start the demo and the tests before anything else."""
    head = "\n".join(README.read_text(encoding="utf-8").splitlines()[:30])
    assert "python3 -m venv .venv && .venv/bin/pip install -q -e '.[demo]' && .venv/bin/asignals demo" in head
    assert "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest" in head


def test_what_it_links_to_is_there() -> None:
    """Each picture and each file that the README refers to."""
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README.read_text(encoding="utf-8"))
    assert ".github/inspector.png" in links
    assert [link for link in links if not (ROOT / link).is_file()] == []
