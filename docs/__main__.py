"""Build the docs and open them: `python docs`. Nothing is fetched; a warning is an error."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Build; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python docs", description=__doc__)
    parser.add_argument("--no-open", action="store_true", help="do not open a browser")
    parser.add_argument("--output", type=Path, default=HERE.parent / "build" / "docs", help="where the HTML goes")
    options = parser.parse_args()
    from sphinx.cmd.build import build_main  # noqa: PLC0415  --help works without it

    sources, output = str(HERE), str(options.output)
    # Everything again: Sphinx would keep the old menu on pages that have not changed.
    status = build_main(["-b", "html", "-E", "-a", "-W", "--keep-going", "-q", sources, output])
    page = options.output / "index.html"
    print(page)  # noqa: T201  a command prints
    if status == 0 and not options.no_open:
        webbrowser.open(page.as_uri())
    return status


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != HERE]  # the directory of conf.py
    sys.exit(main())
