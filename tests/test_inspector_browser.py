"""The inspector's page in a real browser: headless Chromium, driven by Playwright.

Skipped where there is no browser, unless ASIGNALS_REQUIRE_SERVICES is set: then it must be there. The page lists every
signal of its process, so the program that it belongs to runs in one of its own (`inspector_support`): signals of other
tests would be on it too.
"""

import multiprocessing
import os
import re
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest

from asignals.overview.discovery import discover
from asignals.overview.graph import build
from asignals.overview.graph_page import page as graph_page

IS_REQUIRED = bool(os.environ.get("ASIGNALS_REQUIRE_SERVICES"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

try:
    import inspector_support as program
    from playwright.sync_api import expect, sync_playwright
except ImportError as error:
    if IS_REQUIRED:
        raise
    pytest.skip(f"needs {error.name}", allow_module_level=True)
if BROWSER is None and not IS_REQUIRED:
    pytest.skip("needs Chromium (Debian: apt-get install chromium)", allow_module_level=True)

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
LAPTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    assert BROWSER is not None, "ASIGNALS_REQUIRE_SERVICES is set, but there is no Chromium"
    expect.set_options(timeout=15_000)  # milliseconds; the machine may be busy with other tests
    with sync_playwright() as playwright:
        # Without a directory of its own Playwright makes a new one, and removes it.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def process():
    """The process of the program that is looked at."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


@pytest.fixture(scope="module")
def call(process):
    """Call a function of the program, in its process."""

    def call(function, *arguments, **named):
        return process.submit(function, *arguments, **named).result(30)

    return call


@pytest.fixture(scope="module")
def address(call):
    """Where the program shows its inspector."""
    yield call(program.start)
    assert call(program.stop)


@pytest.fixture
def visit(browser, address, call):
    """Open the page of a new shop; no test may cause an error in it, or a request to anybody else."""
    contexts, problems = [], []

    def visit(viewport=LAPTOP, scheme="light", lifetime=200):
        call(program.renew, lifetime)
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(address) or problems.append(f"to {request.url}"))
        page.goto(address)
        expect(page.locator("#state")).to_have_text("live")
        expect(page.locator(".signal")).to_have_count(2)
        page.problems = problems
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def send(call):
    """Send a signal of the shop."""

    def send(name, **arguments):
        call(program.send, name, **arguments)

    return send


def rows(page, text=None):
    found = page.locator("#sends .send")
    return found if text is None else found.filter(has_text=text)


def test_sends_appear_live(visit, send):
    """A send is on the page without a reload, the newest first, and the signal's figures follow."""
    page = visit()
    expect(page.locator("#empty")).to_be_visible()
    send("paid", order=1)
    expect(rows(page)).to_have_count(1)
    expect(rows(page).first).to_contain_text("paid")
    expect(rows(page).first).to_contain_text("order=1")
    expect(page.locator("#empty")).to_be_hidden()
    send("paid", order=2)
    expect(rows(page).first).to_contain_text("order=2")
    card = page.locator('.signal[data-signal="shop.paid"]')
    expect(card.locator(".figures")).to_contain_text("2 sends")
    expect(card.locator(".figures")).to_contain_text("p95")
    expect(card.locator(".receivers li")).to_have_count(2)
    expect(card.locator(".receivers li").first).to_contain_text("Shop.book")
    expect(page.locator('.signal[data-signal="shop.shipped"]')).to_contain_text("nobody hears")


def test_a_send_opens_to_a_waterfall_with_links(visit, send):
    """Opened, a send shows its arguments and a bar for each receiver, one after the other, with a link to its place."""
    page = visit()
    send("paid", order=1)
    rows(page).first.locator("summary").click()
    expect(rows(page).first.locator(".values")).to_contain_text("'web'")
    bars = rows(page).first.locator(".track i")
    expect(bars).to_have_count(2)
    first, second = bars.nth(0).bounding_box(), bars.nth(1).bounding_box()
    track = rows(page).first.locator(".track").first.bounding_box()
    assert first["x"] < second["x"]
    assert first["x"] + first["width"] <= second["x"] + 3
    assert first["width"] >= 3
    assert second["x"] + second["width"] <= track["x"] + track["width"] + 3
    code = program.Shop.ship.__code__
    link = rows(page).first.locator(".fall a").nth(1)
    expect(link).to_have_attribute("href", f"vscode://file{code.co_filename}:{code.co_firstlineno}")
    expect(link).to_have_text(re.compile(rf"inspector_support\.py:{code.co_firstlineno}$"))


def test_an_error_expands_to_its_traceback(visit, send):
    """A failed send is marked, and opens to the error's type, message and traceback."""
    page = visit()
    send("paid", order=1)
    send("paid", order=13)
    failed = page.locator(".send.failed")
    expect(failed).to_have_count(1)
    expect(failed.locator(".badge")).to_have_text("LookupError")
    expect(page.locator(".error")).to_have_count(0)
    failed.locator("summary").click()
    expect(failed.locator(".error p")).to_contain_text("no parcel for thirteen")
    expect(failed.locator(".error pre")).to_contain_text("raise LookupError(message)")
    expect(failed.locator(".track i.failed")).to_have_count(1)
    expect(page.locator("#total-errors")).to_have_text("1")
    failed.locator("summary").click()
    expect(failed.locator(".error")).to_be_hidden()


def test_filters_choose_among_the_sends(visit, send):
    """By text, by signal and by failure, for sends that are there and that come later, alone and together."""
    page = visit()
    for order in (1, 2, 13):
        send("paid", order=order)
    send("shipped", carrier="snail", order=2)
    expect(rows(page)).to_have_count(4)
    page.fill("#filter", "ORDER=2")
    expect(rows(page)).to_have_count(2)
    page.fill("#filter", "order=2 snail")
    expect(rows(page)).to_have_count(1)
    send("shipped", carrier="snail", order=2)
    expect(rows(page)).to_have_count(2)
    page.fill("#filter", "nothing like this")
    expect(page.locator("#empty")).to_contain_text("Nothing here matches")
    page.fill("#filter", "")
    expect(rows(page)).to_have_count(5)
    page.click("#errors")
    expect(rows(page)).to_have_count(1)
    page.click("#errors")
    page.locator('.signal[data-signal="shop.shipped"] .signal-head').click()
    expect(rows(page)).to_have_count(2)
    expect(page.locator("#chosen")).to_contain_text("shop.shipped")
    send("paid", order=4)
    expect(page.locator('.signal[data-signal="shop.paid"] .figures')).to_contain_text("4 sends")
    expect(rows(page)).to_have_count(2)
    page.click("#chosen button")
    expect(rows(page)).to_have_count(6)


def test_pause_holds_the_list_and_loses_nothing(visit, send):
    """Paused, the list stands still and counts what comes; resumed, it has everything. Clear empties it."""
    page = visit()
    send("paid", order=1)
    expect(rows(page)).to_have_count(1)
    page.click("#pause")
    send("paid", order=2)
    send("paid", order=3)
    expect(page.locator("#state")).to_have_text("paused, 2 new")
    expect(rows(page)).to_have_count(1)
    page.click("#pause")
    expect(rows(page)).to_have_count(3)
    expect(page.locator("#state")).to_have_text("live")
    page.click("#clear")
    expect(rows(page)).to_have_count(0)
    send("paid", order=4)
    expect(rows(page)).to_have_count(1)


def test_hostile_values_are_harmless(visit, call):
    """Markup is shown as text and runs nothing; a string of ten megabytes and a repr that raises are shown in short."""
    page = visit()
    evil = program.EVIL
    call(program.send_hostile)
    expect(rows(page)).to_have_count(1)
    rows(page).first.locator("summary").click()
    values = rows(page).first.locator(".values")
    expect(values).to_contain_text(evil)
    expect(values).to_contain_text("(10,000,000 characters)")
    expect(values).to_contain_text("<Rude>")
    expect(page.locator(".signal").filter(has_text="window.pwned")).to_be_visible()
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.scripts.length") == 1
    assert page.locator("main img, main script").count() == 0
    assert len(page.content()) < 200_000


def test_the_policy_is_in_force(visit):
    """Even a mistake in the page could not make markup of text, run an inline script, or talk to somebody else."""
    page = visit()
    attempts = """async () => {
        const results = {};
        const attempt = async (name, action) => {
            try { await action(); results[name] = 'possible'; } catch (error) { results[name] = error.name; }
        };
        await attempt('markup', () => { document.body.innerHTML = '<b>x</b>'; });
        await attempt('script', () => { document.createElement('script').textContent = 'window.pwned = 1'; });
        await attempt('fetch', () => fetch('http://127.0.0.1:9/'));
        return results;
    }"""
    results = page.evaluate(attempts)
    assert "possible" not in results.values()
    assert set(results) == {"markup", "script", "fetch"}
    # The browser reports each refusal in the console; nothing but refusals may be there.
    refusals = [
        problem for problem in page.problems if re.search("Content Security Policy|Trusted(HTML|Script)", problem)
    ]
    assert refusals
    page.problems[:] = [each for each in page.problems if each not in refusals and "127.0.0.1:9" not in each]


def test_a_hidden_page_ends_the_watch(visit, send, call):
    """Nobody looks at a hidden tab: its stream is closed, and opened again where it stopped when the tab is shown."""
    page = visit()
    send("paid", order=1)
    expect(rows(page)).to_have_count(1)
    assert call(program.is_watching)
    hide = """hidden => {
        Object.defineProperty(document, 'hidden', {value: Boolean(hidden), configurable: true});
        document.dispatchEvent(new Event('visibilitychange'));
    }"""
    page.evaluate(hide, 1)
    wait_until(page, lambda: not call(program.is_watching))
    send("paid", order=2)
    page.evaluate(hide, 0)
    wait_until(page, lambda: call(program.is_watching))
    send("paid", order=3)
    expect(rows(page)).to_have_count(2)
    page.context.close()
    wait_until(None, lambda: not call(program.is_watching))


def test_streams_that_end_are_continued_without_loss(visit, send, call):
    """The page opens the next stream by itself: nothing is lost or shown twice, and a restarted program starts anew."""
    page = visit(lifetime=4)
    order = 100
    while len(streams := call(program.streams)) < 4:
        send("paid", order=order)
        order += 1
        page.wait_for_timeout(20)
    expect(rows(page)).to_have_count(order - 100)
    assert streams[0] == 0 < streams[-1]
    expect(page.locator("#state")).to_have_text("live")
    call(program.restart)
    expect(rows(page)).to_have_count(0)


def test_of_very_many_signals_those_that_are_sent_are_listed(visit, send, call):
    """The page lists a thousand, the sent and the heard before others, and says how many more there are."""
    page = visit()
    send("paid", order=1)
    expect(rows(page)).to_have_count(1)
    call(program.crowd, 1200)
    expect(page.locator(".signal")).to_have_count(1000)
    expect(page.locator("#more-signals")).to_contain_text("202 more")
    expect(page.locator("#signal-count")).to_have_text("(1,202)")
    expect(page.locator('.signal[data-signal="shop.paid"]')).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [LAPTOP, PHONE], ids=["laptop", "phone"])
def test_it_fits_the_screen_in_light_and_dark(visit, call, viewport, scheme):
    """Nothing sticks out sideways, with long names and an open error either, and colours follow the system."""
    page = visit(viewport, scheme)
    call(program.send_wide)
    expect(rows(page)).to_have_count(1)
    rows(page).first.locator("summary").click()
    expect(rows(page).first.locator(".error pre")).to_be_visible()
    sticks_out = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(sticks_out) == 0
    if viewport is PHONE:
        expect(page.locator("section.signals")).to_be_hidden()
        page.click("[data-show=signals]")
        expect(page.locator("section.sends")).to_be_hidden()
        assert page.evaluate(sticks_out) == 0
    expect(page.locator("section.signals")).to_be_visible()
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back))) > 400) == (scheme == "light")


def test_the_keyboard_reaches_everything(visit, send):
    """Tools, signals and sends take the focus, and Enter opens a send."""
    page = visit()
    send("paid", order=1)
    expect(rows(page)).to_have_count(1)
    rows(page).first.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(rows(page).first.locator(".detail")).to_be_visible()
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, a')].filter(e => !(e.textContent || e.labels?.length)).length"
    )
    assert unnamed == 0


def test_the_graph_is_a_picture_without_a_server(browser, tmp_path):
    """The page of `asignals graph` shows its picture from a file, with nothing loaded and nothing run."""
    pytest.importorskip("aiosqlite")
    file = tmp_path / "graph.html"
    file.write_text(graph_page(build(discover(["asignals.demo"])), "asignals.demo"), encoding="utf-8")
    context = browser.new_context(viewport=LAPTOP)
    page = context.new_page()
    requests, problems = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text))
    page.goto(file.as_uri())
    expect(page.locator("svg")).to_be_visible()
    expect(page.locator("svg text", has_text="asignals.demo.shop.order_paid")).to_be_visible()
    assert requests == [file.as_uri()]
    assert problems == []
    context.close()


def wait_until(page, condition):
    """Wait for something on the server's side."""
    for _ in range(1000):
        if condition():
            return
        if page is None:
            threading.Event().wait(0.01)
        else:
            page.wait_for_timeout(10)
    pytest.fail("it did not come true in time")
