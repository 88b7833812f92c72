"""The benchmarks run and compare like with like; their times are not judged."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

pytestmark = [pytest.mark.once, pytest.mark.slow]
ROOT = Path(__file__).parent.parent
SVG = "http://www.w3.org/2000/svg"

pytest.importorskip("rich")
for peer in ("aiosignal", "asphalt", "blinker", "django", "psygnal", "pyee"):
    pytest.importorskip(peer)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603


SHAPED = ["coroutines/1", "functions/1", "methods/1", "mixed/10", "choosy/1", "trio/1", "groups/anyio 2"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of one run for all tests that look at its results."""
    file = tmp_path_factory.mktemp("benchmarks") / "results.json"
    ran = run(*SHAPED, "coroutines/10", "--quick", "--seconds", 0.01, "--json", file)
    assert ran.returncode == 0, ran.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", SHAPED)
def test_contenders_agree_and_the_json_has_the_documented_shape(name: str, results: dict[str, Any]) -> None:
    """Each run checks first that all contenders call the same receivers with the same arguments."""
    assert {"python", "implementation", "machine", "system", "libraries", "quick", "cases"} == set(results)
    assert results["quick"] is True
    [case] = [case for case in results["cases"] if case["name"] == name]
    assert {"name", "group", "loop", "unit", "rounds", "over", "contenders", "goals"} == set(case)
    assert case["rounds"] >= 3
    assert case["contenders"][case["over"]]["ratio"] == 1
    assert "asignals" in case["contenders"]
    assert all(found["cost"] > 0 and found["ratio"] > 0 for found in case["contenders"].values())


def test_goals_are_in_the_results_and_do_not_fail_the_run(results: dict[str, Any]) -> None:
    """A goal has what it compares, its limit, and what was seen."""
    [case] = [case for case in results["cases"] if case["name"] == "coroutines/10"]
    assert case["goals"]
    for goal in case["goals"]:
        assert set(goal) == {"of", "over", "limit", "seen", "met"}
        assert goal["met"] is (goal["seen"] <= goal["limit"])


def test_what_else_is_measured_runs() -> None:
    """Figures that are not of a send among others."""
    ran = run("senders", "listeners", "memory", "streams", "background/1", "monitor/1", "--quick", "--seconds", 0.01)

    assert ran.returncode == 0, ran.stderr
    assert "goals" in ran.stdout


def test_a_table_of_cases_is_markdown_with_the_noise() -> None:
    """A row for each contender, and one for the first of them once more."""
    ran = run("groups/anyio 2", "scale/memory*", "--table", "--seconds", 0.01)

    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[1] == "|---|---|---|---|---|---|"
    assert {line.split(" | ")[1] for line in lines if "groups/" in line} == {
        "task group by hand",
        "asignals",
        "the same again",
    }


def test_a_contender_that_calls_otherwise_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is no formality."""
    monkeypatch.syspath_prepend(str(ROOT))
    import anyio

    from benchmarks.cases import check
    from benchmarks.contenders import Contender

    def forgets_one(receivers):
        async def send(sender, *, a, b):
            for receiver in receivers[1:]:
                await receiver(sender=sender, a=a, b=b)

        return send

    with pytest.raises(AssertionError, match="forgetful"):
        anyio.run(check, Contender("forgetful", forgets_one), "coroutines", 2)


def test_an_unknown_name_lists_the_groups() -> None:
    """A typing error costs no minute."""
    ran = run("corotines")

    assert ran.returncode != 0
    assert "coroutines" in ran.stderr


def test_the_chart_is_small_and_says_in_words_what_it_shows(tmp_path: Path) -> None:
    """Well-formed, with every ratio as text, in a title and a description, and colours for dark pages."""
    file = tmp_path / "chart.svg"
    ran = run("coroutines/10", "--quick", "--seconds", 0.01, "--chart", file)
    assert ran.returncode == 0, ran.stderr
    svg = ET.fromstring(file.read_text())  # noqa: S314  it is ours
    found = {
        name: "".join(each.text or "" for each in svg.iter(f"{{{SVG}}}{name}")) for name in ("title", "desc", "text")
    }
    assert "multiple of a loop" in found["title"]
    assert "10 coroutine functions with **kwargs: " in found["desc"]
    assert "loop by hand 1.00" in found["desc"]
    assert "loop by hand" in found["text"]
    assert "prefers-color-scheme: dark" in file.read_text()
    assert file.stat().st_size < 10_000
