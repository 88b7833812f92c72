"""The README: its examples run in order as one program, and it is the short front page that it promises to be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_examples import examples

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDES = sorted((ROOT / "docs" / "from").glob("[!i]*.md"))  # not the index
LIBRARIES = {"django", "blinker", "pyee", "aiosignal", "celery", "fastapi_events", "broadcaster"}


def test_every_example_runs_as_it_stands(tmp_path: Path) -> None:
    """All Python examples of the tour run, one after the other, and their assertions hold."""
    script = Path(__file__).with_name("page_examples.py")
    done = subprocess.run(  # noqa: S603  our own script
        [sys.executable, str(script), str(README)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(each.language == "python" for each in examples(README)) >= 6


def test_it_is_a_front_page() -> None:
    """200 lines at most: what it is, the commands, one tour, one picture, and where to read on."""
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert len(re.findall(r"!\[", text)) == 1
    assert text.count("](docs/") >= 10


def test_the_commands_are_near_the_top() -> None:
    """A newcomer sees how to start the demo and the tests, and how to read the docs, before anything else."""
    head = "\n".join(README.read_text(encoding="utf-8").splitlines()[:35])
    assert "python3 -m venv .venv && .venv/bin/pip install -q -e '.[demo]' && .venv/bin/asignals demo" in head
    assert "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest" in head
    assert "python3 -m venv .venv && .venv/bin/pip install -q -e '.[docs]' && .venv/bin/python docs" in head


def test_what_it_links_to_is_there() -> None:
    """Each picture and each file that the README refers to."""
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README.read_text(encoding="utf-8"))
    assert ".github/inspector.png" in links
    assert [link for link in links if not (ROOT / link).is_file()] == []


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_a_guide_has_a_program_before_and_after(guide: Path) -> None:
    """Of its two programs the first imports the other library, and the second asignals alone."""
    before, after = (each.text for each in examples(guide) if each.language == "python" and each.file is None)
    assert LIBRARIES & imported(before) == {guide.stem.replace("-", "_")}
    assert not LIBRARIES & imported(after)
    assert "asignals" in imported(after)


def imported(code: str) -> set[str]:
    return set(re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE))


def test_there_is_a_guide_for_each_library() -> None:
    """No library is left out."""
    assert {guide.stem.replace("-", "_") for guide in GUIDES} == LIBRARIES
