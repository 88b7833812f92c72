"""Programs written into a directory for the tests of the command line, and the command as a user runs it."""

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import asignals

ROOT = Path(asignals.__file__).parent.parent
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
LIMIT = 300  # seconds


def write(directory: Path, files: dict[str, str]) -> Path:
    """Write modules, `"shop/main"` and the like, with the `__init__.py` of their packages."""
    for name, text in files.items():
        path = directory / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in path.relative_to(directory).parents[:-1]:
            (directory / parent / "__init__.py").touch()
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return directory


def run(*arguments: str, directory: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own, which has loaded the command already where it can fork.

    The environment is what the command reads; that of the interpreter, `PYTHON…`, is the same for all.
    """
    place = str(directory or Path.cwd())
    if hasattr(os, "fork"):
        return _run_forked(arguments, place, {**os.environ, **ENVIRONMENT, **environment})
    return subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-c", "from asignals.cli import main; main()", *arguments],
        cwd=place,
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=LIMIT,
        check=False,
    )


_FORKING = """
import json, os, sys
import asignals.overview.check_command, asignals.overview.commands
from asignals.cli import app, main

sys.stdout = open(os.devnull, "w")
app(["--help"], standalone_mode=False)  # loads what is loaded when it is used
sys.stdout = sys.__stdout__
for line in sys.stdin:
    given = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.chdir(given["place"])
    os.environ.clear()
    os.environ.update(given["environment"])
    sys.argv[1:] = given["arguments"]
    for number, path in enumerate(given["files"]):
        os.dup2(os.open(path, os.O_RDWR), number)
    del given, line, number, path
    main()
"""
"""To load the command takes longer than most runs of it: this loads it once, and forks a process for each run."""


@functools.cache
def _forking() -> subprocess.Popen[str]:
    process = subprocess.Popen(  # noqa: S603  our own command
        [sys.executable, "-c", _FORKING],
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    atexit.register(process.communicate)  # which closes its input
    return process


def _run_forked(
    arguments: tuple[str, ...], place: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    process = _forking()
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory() as directory:
        output, errors = Path(directory, "output"), Path(directory, "errors")
        output.touch()
        errors.touch()
        files = [os.devnull, str(output), str(errors)]
        given = {"arguments": arguments, "place": place, "environment": environment, "files": files}
        process.stdin.write(f"{json.dumps(given)}\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], LIMIT)[0]:
            process.kill()
            _forking.cache_clear()
            raise subprocess.TimeoutExpired(arguments, LIMIT, output.read_text("utf-8"), errors.read_text("utf-8"))
        status = int(process.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, output.read_text("utf-8"), errors.read_text("utf-8"))


def check(directory: Path | None, *arguments: str) -> tuple[int, list[dict[str, object]], list[str]]:
    """Run `asignals check --json`: the exit status, the findings and the notes."""
    result = run("check", "--json", *arguments, directory=directory)
    assert result.stdout, result.stderr
    report = json.loads(result.stdout)
    return result.returncode, report["findings"], report["notes"]
