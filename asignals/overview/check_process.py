"""The process in which `asignals check` loads a program: `python -m asignals.overview.check_process ENTRY`.

It writes what it found as JSON to its standard output; whatever the program prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys

from asignals.overview.check import check
from asignals.overview.program import TargetError


def main(entry: str, factory: str) -> None:
    """Check one entry point, and end the process, with whatever threads the program has started."""
    del sys.argv[1:]  # a program that reads its own arguments gets none
    output = os.dup(1)
    os.dup2(2, 1)  # of C libraries, too
    result: dict[str, object]
    try:
        result = check(entry, factory=factory == "factory").as_dict()
    except TargetError as error:
        result = {"error": str(error), "traceback": error.traceback}
    with os.fdopen(output, "w", encoding="utf-8") as file:
        json.dump(result, file)
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:3])
