"""Programs written into a directory for the tests of the command line, and the command as a user runs it."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import asignals

ROOT = Path(asignals.__file__).parent.parent


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
    """Run the command as a user does."""
    return subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-c", "from asignals.cli import main; main()", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def check(directory: Path | None, *arguments: str) -> tuple[int, list[dict[str, object]], list[str]]:
    """Run `asignals check --json`: the exit status, the findings and the notes."""
    result = run("check", "--json", *arguments, directory=directory)
    assert result.stdout, result.stderr
    report = json.loads(result.stdout)
    return result.returncode, report["findings"], report["notes"]
