"""Documents as files, and changes as lines: what `asignals relay asyncapi` reads and prints."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asignals import signals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asignals.relay.asyncapi._changes import Change


def version_of(target: str) -> str:
    """Give the version of the distribution that a target is in; 0.0.0 where it is in none."""
    found = packages_distributions().get(target.partition(":")[0].partition(".")[0], ())
    return version(found[0]) if found else "0.0.0"


def write_document(document: dict[str, Any], file: Path | None) -> None:
    """Write a document to a file, as its name says, or to stdout, as JSON.

    Raises `OSError`, and `ModuleNotFoundError` for YAML without PyYAML.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if file is None:
        sys.stdout.write(text)
        return
    if _is_yaml(file):
        text = _yaml().safe_dump(document, sort_keys=False, allow_unicode=True)
    file.write_text(text, encoding="utf-8")


def read_document(file: Path) -> Any:
    """Read what `write_document` wrote; raises its errors, and `ValueError` for what is neither JSON nor YAML."""
    text = file.read_text(encoding="utf-8")
    if not _is_yaml(file):
        return json.loads(text)
    yaml = _yaml()
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _is_yaml(file: Path) -> bool:
    return file.suffix.lower() in (".yaml", ".yml")


def _yaml() -> Any:
    try:
        return import_module("yaml")
    except ModuleNotFoundError as error:
        msg = "YAML is written and read by PyYAML: pip install pyyaml, or give a file that ends in .json"
        raise ModuleNotFoundError(msg, name="yaml") from error


def show_changes(changes: Sequence[Change], file: Path) -> None:
    """Print changes, each with the place where its signal is declared, and how many of them are breaks."""
    for change in changes:
        where = f"{change.topic!r}, field {change.field!r}" if change.field else f"{change.topic!r}"
        sys.stdout.write(
            f"{_place(change.signal)}: {'break' if change.is_break else 'note'} ({change.readers}) {change.kind}: "
            f"{change.signal}, topic {where}: {change.message}\n    to do: {change.advice}\n"
        )
    breaks = sum(change.is_break for change in changes)
    sys.stdout.write(f"{breaks} breaks, {len(changes) - breaks} notes, compared with {file}\n")


def _place(name: str) -> str:
    """Say where a signal is declared, `file:line`; `-` for one that there is no more."""
    for signal in signals():
        if signal.name == name:
            path, _, line = signal.location.rpartition(":")
            here = Path.cwd()
            return f"{Path(path).relative_to(here) if Path(path).is_relative_to(here) else path}:{line}"
    return "-"
