"""What the command `asignals check` does: each entry point in its own process, and a report for people or tools."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asignals.overview.findings import TITLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOUND = 1
"""The exit status when something was found."""
FAILED = 2
"""The exit status when a program does not load."""


def check_programs(
    entries: Sequence[str], *, to_json: bool, factory: bool, ignore: Sequence[str], tracebacks: bool
) -> int:
    """Check programs, each loaded by its entry point alone, and print what was found; returns the exit status."""
    results = []
    for entry in entries:
        with _progress(f"loading {entry}"):
            result = run_check(entry, factory=factory)
        if "error" in result:
            if tracebacks:
                sys.stderr.write(result["traceback"])
            sys.stderr.write(f"asignals: {result['error']}\n")
            return FAILED
        results.append(result)
    findings = _merge(results, ignore)
    report = {
        "entries": [
            {name: result[name] for name in ("entry", "modules", "signals", "receivers")} for result in results
        ],
        "findings": findings,
        "notes": list(dict.fromkeys(note for result in results for note in result["notes"])),
    }
    if to_json:
        print(json.dumps(report, indent=2))  # noqa: T201  a command prints
    else:
        _write(report)
    return FOUND if findings else 0


def run_check(entry: str, *, factory: bool) -> dict[str, Any]:
    """Check one program in a separate process; gives what `Checked.as_dict` does, or `error` and `traceback`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}
    command = [sys.executable, "-m", "asignals.overview.check_process", entry, "factory" if factory else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:  # noqa: S603  our own module
        try:
            output, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
    try:
        result: dict[str, Any] = json.loads(output)
    except ValueError:
        how = f"status {process.returncode}" if process.returncode >= 0 else f"signal {-process.returncode}"
        return {"error": f"cannot load {entry!r}: its process ended with {how}", "traceback": ""}
    return result


def _merge(results: list[dict[str, Any]], ignore: Sequence[str]) -> list[dict[str, Any]]:
    """Put the findings of several entry points together: a module that one of them loads is not missing."""
    findings: list[dict[str, Any]] = []
    for result in results:
        for finding in result["findings"]:
            is_everywhere = all(_has(other, finding) for other in results)
            is_known = any(_is_same(finding, known) for known in findings)
            if (
                not is_known
                and (is_everywhere or finding["kind"] not in _OF_ONE_PROGRAM)
                and not _is_ignored(finding, ignore)
            ):
                findings.append(finding)
    return findings


_OF_ONE_PROGRAM = ("not-loaded", "relay-not-run")
"""What is no finding where another entry point is without it."""


def _has(result: dict[str, Any], finding: dict[str, Any]) -> bool:
    return any(_is_same(finding, other) for other in result["findings"])


def _is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("kind", "file", "line", "signal"))


def _is_ignored(finding: dict[str, Any], patterns: Sequence[str]) -> bool:
    names = [finding["kind"], finding["signal"] or "", Path(finding["file"]).as_posix()]
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _write(report: dict[str, Any]) -> None:
    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))
    for entry in report["entries"]:
        counts = ", ".join(_count(entry[f"{name}s"], name) for name in ("module", "signal", "receiver"))
        print(f"{entry['entry']}: {counts}")  # noqa: T201
    for finding in report["findings"]:
        print(f"\n{finding['location']}: {TITLES[finding['kind']]} [{finding['kind']}]")  # noqa: T201  for editors: at the start
        print(_indented(finding["message"], width))  # noqa: T201
        print(_indented(f"-> {finding['advice']}", width))  # noqa: T201
    for note in report["notes"]:
        print(_indented(f"note: {note}", width, "\n"))  # noqa: T201
    found = len(report["findings"])
    print(f"\n{_count(found, 'finding')}" if found else "\nnothing is missing")  # noqa: T201


def _indented(text: str, width: int, before: str = "") -> str:
    # Names and paths are never broken: they are to be found again, and copied.
    lines = textwrap.wrap(text, width - 2, break_long_words=False, break_on_hyphens=False)
    return before + "\n".join(f"  {line}" for line in lines)


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """Show that something goes on, where somebody looks at stderr."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console  # noqa: PLC0415  only where it shows

    with Console(stderr=True).status(what):
        yield
