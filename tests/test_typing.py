import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "typing").glob("*.py"))
ROOT = Path(__file__).parent.parent
# pyright finds the packages of the first python on the path
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def run(*command):
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(  # noqa: S603  the type checkers
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    return done.stdout + done.stderr


def expected():
    return {
        (path.name, number)
        for path in FILES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if "# E: " in line
    }


def test_there_is_something_to_check():
    """The files hold lines that are errors, and more that are not."""
    assert len(FILES) >= 2
    assert len(expected()) >= 10


def test_mypy_finds_exactly_the_expected_errors(tmp_path):
    """`mypy --strict` complains of the marked lines and of no other."""
    output = run("mypy", "--strict", f"--cache-dir={tmp_path}", *map(str, FILES))
    found = re.findall(r"^(\S+?\.py):(\d+)(?::\d+)?: error", output, flags=re.MULTILINE)
    assert {(Path(file).name, int(line)) for file, line in found} == expected(), output


def test_pyright_finds_exactly_the_expected_errors():
    """Pyright complains of the same lines and of no other."""
    output = run("pyright", "--outputjson", *map(str, FILES))
    found = json.loads(output[output.index("{") :])["generalDiagnostics"]
    errors = {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in found if each["severity"] == "error"
    }
    assert errors == expected(), output


@pytest.mark.slow
def test_every_public_name_has_a_type():
    """Pyright knows the type of all that the package exports, without inferring any."""
    output = run("pyright", "--verifytypes", "asignals", "--ignoreexternal", "--outputjson")
    found = json.loads(output[output.index("{") :])["typeCompleteness"]
    unknown = [each["name"] for each in found["symbols"] if each["isExported"] and not each["isTypeKnown"]]
    assert (unknown, found["completenessScore"]) == ([], 1)
