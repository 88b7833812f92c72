"""Headless Chromium, driven by Playwright.

Tests are skipped where there is none, unless ASIGNALS_REQUIRE_SERVICES is set: then it must be there.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

IS_REQUIRED = bool(os.environ.get("ASIGNALS_REQUIRE_SERVICES"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

FLAGS = [
    "--headless",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

if BROWSER is None and not IS_REQUIRED:
    pytest.skip("needs Chromium (Debian: apt-get install chromium)", allow_module_level=True)


@contextmanager
def launched() -> Iterator[Any]:
    """Run a browser for the length of a block."""
    from playwright.sync_api import expect, sync_playwright

    assert BROWSER is not None, "ASIGNALS_REQUIRE_SERVICES is set, but there is no Chromium"
    expect.set_options(timeout=15_000)  # milliseconds; the machine may be busy with other tests
    with sync_playwright() as playwright:
        # Without a directory of its own Playwright makes a new one, and removes it.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()
