"""From a commit in one process to a page of the other one, in Chromium: `python -m benchmarks.live [--orders 200]
[--rounds 3] [URL …]`, by default with SQLite.

Each round starts `asignals demo --workers 2`, opens the page of the second worker, and places orders through the first,
one after the other. The page takes the time at which the event arrives, on the same clock as the commit. The round with
the lowest 99th percentile is shown: the machine does other things as well.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import time

import httpx
from playwright.sync_api import Browser, sync_playwright

_LISTEN = """() => {
  window.delays = []
  live.addEventListener("message", event => {
    delays.push(performance.timeOrigin + performance.now() - JSON.parse(event.data).time * 1000)
  })
}"""


def measure(browser: Browser, relay: str, orders: int) -> list[float]:
    """Give the delay of each order in milliseconds."""
    command = [sys.executable, "-m", "asignals", "demo", "--workers", "2", "--relay", relay]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:  # noqa: S603  our own
        try:
            assert demo.stdout is not None
            found = (re.search(r"http://[\d.:]+", line) for line in demo.stdout)
            one, two = next(filter(None, found))[0], next(filter(None, found))[0]
            page = browser.new_page()
            page.goto(two)
            page.get_by_text("connected", exact=True).wait_for()
            page.evaluate(_LISTEN)
            with httpx.Client(base_url=one) as client:
                for number in range(1, orders + 1):
                    client.post("/orders", json={"pizza": "Margherita"}).raise_for_status()
                    time.sleep(0.037)  # in step with nothing
                    page.wait_for_function(f"delays.length >= {number}")
            delays: list[float] = page.evaluate("delays")
            page.close()
            return delays
        finally:
            demo.terminate()


def main() -> None:
    """Measure, and print a line for each engine."""
    parser = argparse.ArgumentParser(prog="benchmarks.live")
    parser.add_argument("relays", nargs="*", default=["sqlite"], metavar="URL")
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=next(filter(None, browsers)), args=["--no-sandbox"])
        for relay in options.relays:
            rounds = [measure(browser, relay, options.orders) for _ in range(options.rounds)]
            figures = [(statistics.quantiles(each, n=100)[98], statistics.median(each)) for each in rounds]
            p99, median = min(figures)
            print(f"{relay.partition(':')[0]:12} median {median:5.1f} ms, p99 {p99:5.1f} ms")
        browser.close()


if __name__ == "__main__":
    main()
