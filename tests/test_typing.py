import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once
FOLDER = Path(__file__).parent / "typing"
FILES = sorted(FOLDER.glob("*.py"))
ROOT = Path(__file__).parent.parent
# Pyright finds the packages of the first python on the path.
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


def expected(check):
    """The marked lines; `ty` does not check the keywords of an unpacked `TypedDict`."""
    return {
        (path.name, number)
        for path in FILES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if "# E: " in line and not (check is by_ty and "(not ty)" in line)
    }


def test_there_is_something_to_check():
    """Forty lines that are right and forty that are wrong, marked as such, and more in the other files."""
    text = (FOLDER / "agreement.py").read_text("utf-8")
    assert min(text.count("# ok"), text.count("# E: ")) >= 40
    assert len(FILES) >= 3


def by_mypy(files, cache):
    output = run("mypy", "--strict", f"--cache-dir={cache}", *files)
    return output, re.findall(r"^(\S+?\.py):(\d+)(?::\d+)?: error", output, flags=re.MULTILINE)


def by_pyright(files, cache):
    del cache
    output = run("pyright", "--outputjson", *files)
    found = json.loads(output[output.index("{") :])["generalDiagnostics"]
    return output, [(each["file"], each["range"]["start"]["line"] + 1) for each in found if each["severity"] == "error"]


def by_ty(files, cache):
    del cache
    paths = f"--python={sys.prefix}", f"--extra-search-path={ROOT}"
    output = run("ty", "check", *paths, "--output-format=concise", *files)
    return output, re.findall(r"^(\S+?\.py):(\d+):\d+: error", output, flags=re.MULTILINE)


def by_pyrefly(files, cache):
    (cache / "pyrefly.toml").touch()  # so that all of its rules are checked, not those for unconfigured projects
    paths = f"--python-interpreter-path={sys.executable}", f"--search-path={ROOT}"
    output = run("pyrefly", "check", f"--config={cache / 'pyrefly.toml'}", *paths, "--output-format=min-text", *files)
    return output, re.findall(r"^ERROR (\S+?\.py):(\d+):", output, flags=re.MULTILINE)


SLOW = [pytest.param(check, marks=pytest.mark.slow) for check in (by_mypy, by_pyright)]


@pytest.mark.parametrize("check", [by_ty, by_pyrefly, *SLOW])
def test_a_checker_finds_exactly_the_expected_errors(check, tmp_path):
    """Mypy (strict), pyright, ty and pyrefly complain of the marked lines and of no other."""
    output, found = check(list(map(str, FILES)), tmp_path)
    assert {(Path(file).name, int(line)) for file, line in found} == expected(check), output


@pytest.mark.slow
def test_every_public_name_has_a_type():
    """Pyright knows the type of all that the package exports, without inferring any."""
    output = run("pyright", "--verifytypes", "asignals", "--ignoreexternal", "--outputjson")
    found = json.loads(output[output.index("{") :])["typeCompleteness"]
    unknown = [each["name"] for each in found["symbols"] if each["isExported"] and not each["isTypeKnown"]]
    assert (unknown, found["completenessScore"]) == ([], 1)
