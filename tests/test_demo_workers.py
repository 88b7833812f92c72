"""`asignals demo --workers 2` in a real browser: two processes, a page of each, and one order on both."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import browser_support
import pytest
from relay_support import require

pytest.importorskip("aiosqlite")
pytest.importorskip("playwright")

from playwright.sync_api import expect

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.once, pytest.mark.slow]
PATIENCE = 60  # seconds; the machine may be busy with other tests
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to stop a process in good order")


class Demo:
    """A running demo: its process, and what it has printed of its workers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.addresses: list[str] = []
        self.workers: dict[str, int] = {}
        while len(self.workers) < 2:
            self.read_worker()

    def read_worker(self) -> None:
        """Read on until a worker is said to run."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"(http://127\.0\.0\.1:\d+)  process (\d+)", line):
                self.workers[found[1]] = int(found[2])
                self.addresses = list(self.workers)
                return
        raise AssertionError(self.process.stderr and self.process.stderr.read())

    def is_free(self) -> bool:
        """Whether nobody listens at the workers' ports any more."""
        for address in self.addresses:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0:
                    return False
        return True


@contextlib.contextmanager
def demo(directory: Path, *arguments: str) -> Iterator[Demo]:
    """Run the demo as a user does; it and its workers have ended after the block."""
    environment = os.environ | {"TMPDIR": str(directory), "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "asignals", "demo", "--workers", "2", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:  # noqa: S603  our own
        running: Demo | None = None
        try:
            running = Demo(process)
            yield running
        finally:
            process.send_signal(signal.SIGTERM if process.poll() is None else 0)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
            assert running is None or until(running.is_free)


def until(condition: Any, within: float = PATIENCE) -> bool:
    """Wait until something that happens in other processes has become true."""
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browser_support.launched() as browser:
        expect.set_options(timeout=PATIENCE * 1000)
        yield browser


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One demo for the tests that leave it running: to start its processes takes longer than to look at their pages."""
    with demo(tmp_path_factory.mktemp("demo")) as running:
        yield running


def opened(browser: Any, address: str, **options: Any) -> Any:
    """Open a worker's page, and wait until it listens."""
    page = browser.new_page(**options)
    page.goto(address)
    expect(page.get_by_text("connected", exact=True)).to_be_visible()
    return page


def orders(page: Any) -> Any:
    return page.get_by_role("list", name="The last orders").get_by_role("listitem")


def test_an_order_placed_through_one_worker_appears_on_the_page_of_the_other(browser: Any, shop: Demo) -> None:
    """On both pages, once, and with the process that took it; without a server by default."""
    order_at_both(browser, shop)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["nats", "redis", "postgres", "rabbitmq"])
def test_orders_go_over_any_server_by_its_url(browser: Any, tmp_path: Path, engine: str) -> None:
    """As they do without one."""
    with demo(tmp_path, "--relay", require(engine)) as running:
        order_at_both(browser, running)


def order_at_both(browser: Any, running: Demo) -> None:
    """Place two orders through one worker and one through the other, in a shop that had none; both pages show all."""
    one, two = (opened(browser, address) for address in running.addresses)
    for number, pizza in enumerate(("Margherita", "Marinara"), 1):
        one.get_by_role("button", name=pizza).click()
        for page in (one, two):
            expect(orders(page)).to_have_count(number)
            expect(orders(page).last).to_contain_text(pizza)
            expect(orders(page).last).to_contain_text(f"by process {running.workers[running.addresses[0]]}")
    two.get_by_role("button", name="Capricciosa").press("Enter")
    for page in (one, two):
        expect(orders(page)).to_have_count(3)
    for page in (one, two):
        page.close()


@posix
def test_the_page_of_a_killed_worker_comes_back_with_what_it_missed(browser: Any, tmp_path: Path) -> None:
    """The worker is started again at its port; the browser connects by itself, and the page reads what is new."""
    with demo(tmp_path) as running:
        one, two = (opened(browser, address) for address in running.addresses)
        killed = running.addresses[1]
        before = running.workers[killed]
        time.sleep(2)  # one that dies sooner is taken for one that cannot start
        os.kill(before, signal.SIGKILL)
        expect(two.get_by_role("status")).to_contain_text("away")
        one.get_by_role("button", name="Margherita").click()
        expect(orders(one)).to_have_count(1)
        running.read_worker()
        assert running.workers[killed] != before
        expect(two.get_by_text("connected", exact=True)).to_be_visible()
        expect(two.locator("#process")).to_have_text(str(running.workers[killed]))
        expect(orders(two)).to_have_count(1)
        one.get_by_role("button", name="Marinara").click()
        expect(orders(two)).to_have_count(2)
        one.close()
        two.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable_for_everyone(browser: Any, shop: Demo, scheme: str) -> None:
    """Light or dark as the reader has it; headings, names and live regions for those who do not see it; no overflow."""
    page = opened(browser, shop.addresses[0], color_scheme=scheme, viewport={"width": 320, "height": 640})
    color = page.evaluate("getComputedStyle(document.body).color")
    assert color == ("rgb(0, 0, 0)" if scheme == "light" else "rgb(255, 255, 255)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("document.documentElement.lang") == "en"
    expect(page.get_by_role("group", name="Order a pizza").get_by_role("button")).to_have_count(3)
    expect(page.get_by_role("heading", name="Orders, live")).to_be_visible()
    assert page.get_by_role("list", name="The last orders").get_attribute("aria-live") == "polite"
    page.close()


@posix
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM, signal.SIGKILL]
)
def test_however_it_is_stopped_nothing_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """The workers end and the ports are free, also after kill -9; in good order the status is 0, and no file stays."""
    with demo(tmp_path) as running, urlopen(f"{running.addresses[0]}/live", timeout=PATIENCE) as page:  # noqa: S310  ours
        assert page.readline().startswith(b"retry")
        running.process.send_signal(number)
        assert until(running.is_free)
        assert until(lambda: not any(map(is_alive, running.workers.values())))
        status = running.process.wait(PATIENCE)
        assert running.process.stderr is not None
        assert running.process.stderr.read() == ""
    if number != signal.SIGKILL:
        assert status == 0
        assert list(tmp_path.iterdir()) == []


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended counts as ended, also while nobody has asked for its status."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return not Path("/proc").is_dir() or ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    return False
