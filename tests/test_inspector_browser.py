"""The inspector's page in a real browser: headless Chromium, driven by Playwright.

Skipped where there is no browser, unless ASIGNALS_REQUIRE_SERVICES is set: then it must be there. The page lists every
signal of its process, so the program that it belongs to runs in one of its own (`inspector_support`): signals of other
tests would be on it too.
"""

import multiprocessing
import os
import re
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import browser_support
import pytest

from asignals.overview.discovery import discover
from asignals.overview.graph import Graph, Node, build
from asignals.overview.graph_page import page as graph_page

try:
    import inspector_support as program
    from playwright.sync_api import expect
except ImportError as error:
    if browser_support.IS_REQUIRED:
        raise
    pytest.skip(f"needs {error.name}", allow_module_level=True)

pytestmark = [pytest.mark.once, pytest.mark.slow]
LAPTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
SCHEMES = ["light", pytest.param("dark", marks=pytest.mark.slow)]  # of tests of what lies where
WIDTHS = [390, 1280, *(pytest.param(width, marks=pytest.mark.slow) for width in (768, 1920))]


@pytest.fixture(scope="module")
def browser():
    with browser_support.launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def process():
    """The process of the program that is looked at."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


@pytest.fixture(scope="module")
def call(process):
    """Call a function of the program, in its process."""

    def call(function, *arguments, **named):
        return process.submit(function, *arguments, **named).result(60)

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
def shots():
    """Keep a picture of the page, where ASIGNALS_SCREENSHOTS names a directory for the artefacts of the run."""
    directory = os.environ.get("ASIGNALS_SCREENSHOTS")

    def shot(page, name):
        if directory:
            page.screenshot(path=Path(directory) / f"{name}.png")

    return shot


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


def test_a_send_stands_under_the_send_that_it_follows_from(visit, call):
    """As a tree, whatever ended first, with one time line for all of it; in the browser's list and in the detail."""
    page = visit()
    call(program.send_tree)
    expect(rows(page)).to_have_count(4)
    expect(page.locator("#sends > .thread")).to_have_count(1)
    root = page.locator("#sends > .thread > .send")
    expect(root).to_have_attribute("data-signal", "shop.orders.placed")
    names = page.eval_on_selector_all("#sends .follows .send", "all => all.map(each => each.dataset.signal)")
    assert names == ["shop.orders.charged", "shop.orders.mailed", "shop.orders.counted"]
    expect(
        page.locator('[data-signal="shop.orders.mailed"]').locator("xpath=ancestor::*[@class='follows']")
    ).to_have_count(2)
    root.locator("summary").click()
    lines = root.locator(".whole .who")
    expect(lines).to_have_text([f"shop.orders.{name}" for name in ("placed", "charged", "mailed", "counted")])
    bars = [each.bounding_box() for each in root.locator(".whole .track i").all()]
    assert all(each["x"] >= bars[0]["x"] - 1 for each in bars[1:])
    assert bars[3]["x"] >= bars[2]["x"]  # the background's send came after the receiver's
    page.fill("#filter", "mailed")
    expect(page.locator("#sends > .thread")).to_have_count(1)
    expect(rows(page)).to_have_count(1)


def test_the_filter_and_the_order_are_for_signals_too(visit, send, call):
    """What is typed hides signals that it does not match; they are sorted by name, use, time and failures."""
    page = visit()
    call(program.enlarge, 3, 3)
    expect(page.locator(".signal")).to_have_count(5)
    page.fill("#filter", "signal_2")
    expect(page.locator(".signal:visible")).to_have_count(1)
    page.fill("#filter", "shop.ship")
    expect(page.locator(".signal:visible")).to_have_count(2)  # one by its name, one by its receiver
    page.fill("#filter", "")
    expect(page.locator(".signal:visible")).to_have_count(5)
    for order in (1, 13):
        send("paid", order=order)
    expect(page.locator('.signal[data-signal="shop.paid"] .figures')).to_contain_text("2 sends")
    send("shipped")
    for order in ("busiest", "failing", "slowest"):
        page.select_option("#sort", order)
        expect(page.locator(".signal").first).to_have_attribute("data-signal", "shop.paid")
    expect(page.locator('.signal[data-signal="shop.shipped"] .figures')).to_contain_text("1 reached nobody")
    page.select_option("#sort", "unheard")
    expect(page.locator(".signal").first).to_have_attribute("data-signal", "shop.shipped")


def test_called_and_never_called_receivers_are_marked(visit, send, call):
    """Each receiver says how often it was called since somebody looks, and its signal how many were."""
    page = visit()
    send("paid", order=1)
    call(program.enlarge, 1, 2)
    card = page.locator('.signal[data-signal="shop.paid"]')
    expect(card.locator(".fold")).to_have_text("▾ 2 receivers, 2 called")
    expect(card.locator(".calls")).to_have_text(["called 1×", "called 1×"])
    card.locator(".fold").click()
    expect(card.locator(".receivers")).to_be_hidden()


OBSERVE = """() => {
    window.longest = 0;
    new PerformanceObserver(list => {
        for (const each of list.getEntries()) window.longest = Math.max(window.longest, each.duration);
    }).observe({type: 'longtask'});
}"""
FIXED_WORK = """() => {
    const start = performance.now();
    for (let each = 0; each < 3e6; each += 1) Math.sqrt(each);
    return performance.now() - start;
}"""
CLICK = """selector => new Promise(resolve => {
    const start = performance.now();
    document.querySelector(selector).click();
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - start)));
})"""


def test_three_hundred_signals_and_a_thousand_sends_a_second(visit, call, process, shots, full):
    """The page of a large program stays quick: no long task, clicks answered at once; cards are folded."""
    page = visit()
    quick = min(page.evaluate(FIXED_WORK) for _ in range(20))
    page.evaluate(OBSERVE)
    call(program.enlarge, 300, 5_000)
    expect(page.locator(".signal")).to_have_count(302)
    expect(page.locator(".receivers:visible")).to_have_count(0)
    tools = ("#errors", "#errors", "#pause", "#pause", "#fold", "#fold", ".signal-head", "#chosen button")
    clicks = {number: [] for number in range(len(tools))}
    tasks = []
    for _ in range(5):
        sending = process.submit(program.flood, 1_000, 8 if full else 3)
        expect(rows(page).first).to_be_visible()
        while not sending.done():
            slowness = max(1.0, page.evaluate(FIXED_WORK) / quick)
            page.evaluate("window.longest = 0")
            for number, selector in enumerate(tools):
                clicks[number].append(page.evaluate(CLICK, selector) / slowness)
            tasks.append(page.evaluate("window.longest") / slowness)
        if sending.result() > 500 and max(map(min, clicks.values())) < 200 and min(tasks) < 100:
            break
    # Whatever else runs on the machine makes some of them slow: what the page needs by itself is in the quickest click
    # of each tool, and in the quietest round, by the measure of how long fixed work took then. A page that is too slow
    # is so in all of them.
    if sending.result() <= 500 and not full:
        pytest.skip("the machine is too busy to send as much as the page is judged by")
    assert sending.result() > 500
    assert max(map(min, clicks.values())) < 200, clicks
    assert min(tasks) < 100, tasks
    shots(page, "inspector-large")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_or_leaves_the_page(visit, call, send, shots, width, scheme):  # noqa: PLR0913, PLR0917
    """At four widths, light and dark: with a tree, an error that is open, and many signals."""
    page = visit({"width": width, "height": 900}, scheme)
    call(program.enlarge, 8, 24)
    call(program.send_tree)
    send("paid", order=13)
    call(program.send_wide)
    expect(rows(page)).to_have_count(6)
    page.locator(".send.failed summary").first.click()
    page.locator('[data-signal="shop.orders.placed"] > summary').click()
    for view in ("signals", "sends") if width < 820 else ("sends",):
        if width < 820:
            page.click(f"[data-show={view}]")
        outside, overlaps = page.evaluate(LAYOUT)
        assert outside == []
        assert overlaps == []
        shots(page, f"inspector-{width}-{scheme}-{view}")


# Elements with text of their own that are outside of the page, or lie over each other.
LAYOUT = """() => {
    const width = document.documentElement.clientWidth;
    const hasText = each => [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    const isSeen = each => each.checkVisibility({contentVisibilityAuto: true});
    const shown = [...document.querySelectorAll('main *, header *')].filter(each =>
        isSeen(each) && !each.closest('.hidden, pre, svg, option, bdi') && hasText(each));
    const boxes = shown.map(each => [each, each.getBoundingClientRect()]).filter(([, box]) => box.width && box.height);
    const name = each => `${each.className || each.id || each.tagName}: ${each.textContent.slice(0, 40)}`;
    const outside = boxes.filter(([, box]) => box.left < -1 || box.right > width + 1).map(([each]) => name(each));
    if (document.documentElement.scrollWidth > width) outside.push('the page is too wide');
    const overlaps = [];
    const fixed = each => each.closest('header') || each.closest('section.signals');
    const isInline = each => getComputedStyle(each).display === 'inline';
    const shared = (p, q, from, to) => Math.min(p[to], q[to]) - Math.max(p[from], q[from]);
    for (let one = 0; one < boxes.length; one += 1) for (let other = one + 1; other < boxes.length; other += 1) {
        const [a, p] = boxes[one], [b, q] = boxes[other];
        if (a.contains(b) || b.contains(a) || fixed(a) !== fixed(b)) continue;
        const over = shared(p, q, 'left', 'right') > 2 && shared(p, q, 'top', 'bottom') > 3;
        if (over && !isInline(a) && !isInline(b)) overlaps.push(`${name(a)} / ${name(b)}`);
    }
    return [outside, overlaps];
}"""


def graph_of(signals):
    """A graph of so many signals with senders, receivers of long labels, services and topics, and what is missing."""
    graph = Graph()
    for number in range(signals):
        part = f"shop.part{number % 10}.orders"
        signal = graph.add(
            Node(f"s{number}", "signal", f"{part}.signal_{number}", note="Something.", orphan=number % 7 == 0)
        )
        for _ in range(1 + number % 2):
            sender = graph.add(
                Node(f"f{number // 2}", "sender", f"{part}.Checkout.send_{number // 2}", f"shop/part.py:{number}")
            )
            graph.connect(sender, signal)
        for each in range(number % 4):
            name = f"{part}.receivers.on_{number}_{each}"
            receiver = graph.add(Node(f"r{name}", "receiver", name, "shop/receivers.py:7", loaded=number % 11 != 0))
            graph.connect(signal, receiver, f"from shop.models.Order, priority {each}" if each else "")
        if number % 4 == 3:
            service = graph.add(Node("out", "service", "shop", note="service, exports"))
            topic = graph.add(Node(f"t{number % 5}", "topic", f"order.{number % 5}", note="topic"))
            graph.connect(signal, service, f"exported to {topic.name}")
            graph.connect(service, topic)
    service = graph.add(Node("in", "service", "shop", note="service, receives"))
    graph.connect(graph.add(Node("t", "topic", "user.created", note="topic")), service)
    graph.connect(service, graph.nodes["s0"], "receives user.created")
    return graph


@pytest.fixture
def picture(browser, tmp_path):
    """Open the page of a graph from its file; it may load nothing and say nothing."""
    contexts, requests, problems = [], [], []

    def picture(graph, width=1440, scheme="light"):
        file = tmp_path / "graph.html"
        file.write_text(graph_page(graph, "shop.main:app"), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: request.url.startswith("file:") or requests.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(file.as_uri())
        return page

    yield picture
    for context in contexts:
        context.close()
    assert (requests, problems) == ([], [])


GRAPH = """() => {
    const width = document.documentElement.clientWidth;
    const frame = document.querySelector('main').getBoundingClientRect();
    const found = [...document.querySelectorAll('[data-key] rect, .label rect')];
    const boxes = found.map(each => each.getBoundingClientRect());
    const shared = (p, q, from, to) => Math.min(p[to], q[to]) - Math.max(p[from], q[from]);
    let over = 0;
    boxes.forEach((p, one) => boxes.forEach((q, other) => {
        if (one < other && shared(p, q, 'left', 'right') > 0.5 && shared(p, q, 'top', 'bottom') > 0.5) over += 1;
    }));
    const outside = boxes.filter(box => box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1).length;
    const right = each => each.getBoundingClientRect().right;
    const texts = [...document.querySelectorAll('[data-key]')].filter(each =>
        [...each.querySelectorAll('text')].some(text => right(text) > right(each.querySelector('rect')))).length;
    return {over, outside, texts, wide: document.documentElement.scrollWidth > width};
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_graph_fits_and_nothing_overlaps(picture, shots, width, scheme):
    """No label is under a node or another label, no text leaves its box, and all of it is on the page."""
    graph = graph_of(12)
    page = picture(graph, width, scheme)
    expect(page.locator(".node")).to_have_count(len(graph.nodes))
    assert page.evaluate(GRAPH) == {"over": 0, "outside": 0, "texts": 0, "wide": False}
    shots(page, f"graph-{width}-{scheme}")


def test_the_graph_of_the_demo(picture, shots):
    """The shop that comes with the library."""
    pytest.importorskip("aiosqlite")
    page = picture(build(discover(["asignals.demo.shop:asgi"])))
    expect(page.locator("svg text", has_text="asignals.demo.shop.order_paid")).to_be_visible()
    assert page.evaluate(GRAPH) == {"over": 0, "outside": 0, "texts": 0, "wide": False}
    shots(page, "graph-demo")


def test_three_hundred_signals_are_folded_searched_and_enlarged(picture, shots):
    """Packages are folded at first; a search shows what it finds with its neighbours; a click unfolds or chooses."""
    page = picture(graph_of(300))
    expect(page.locator(".node.signal")).to_have_count(0)
    packages = page.locator(".package", has_text="signals, click to unfold")
    expect(packages).to_have_count(10)
    shots(page, "graph-large")
    packages.filter(has_text="shop.part3").click()
    expect(page.locator(".node.signal")).to_have_count(30)
    page.fill("#search", "signal_123")
    expect(page.locator("#found")).to_have_text("1 found")
    expect(page.locator(".node")).to_have_count(1 + 1 + 3 + 1)
    page.locator(".node.signal").click()
    expect(page.locator("path.hot")).to_have_count(5)
    zoom = "document.getElementById('world').getAttribute('transform')"
    before = page.evaluate(zoom)
    page.click("#larger")
    assert page.evaluate(zoom) != before
    page.fill("#search", "")
    page.click("#fold")
    expect(packages).to_have_count(10)
    page.click("#fold")
    expect(page.locator(".node.signal")).to_have_count(300)
    assert page.evaluate(GRAPH)["over"] == 0


def test_the_graph_of_a_program_without_signals_says_so(picture):
    """Rather than an empty page."""
    page = picture(Graph())
    expect(page.locator("main")).to_contain_text("No signals here")


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
