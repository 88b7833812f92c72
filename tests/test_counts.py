"""Called, not called, reached nobody: by a monitor, by pytest's option, and shown by `asignals list --counts`."""

import json

import pytest
from project_support import run, write

from asignals import Signal, monitor
from asignals.overview.counts import Counts, called, receiver_key, summary

pytest_plugins = ["pytester"]


def book(**named): ...


def mail(**named): ...


@pytest.mark.anyio
async def test_calls_and_sends_that_reach_nobody_are_counted():
    """Of each receiver how often it was called, of each signal how often it was sent, and how often to nobody."""
    paid, sent, followed = Signal(name="c.paid"), Signal(name="c.sent"), Signal(name="c.followed")
    paid.connect(book)
    paid.connect(mail, "web")
    sent.connect(book, "web")
    with monitor(Counts()) as watcher:
        counts = watcher.callback
        await paid.send("shop")
        await paid.send_robust("shop")
        await sent.send("shop")
        await sent.send("web")
        async with followed.stream():
            await followed.send("shop")
        await followed.send("shop")
    found = {name: each for name, each in counts.as_dict().items() if name.startswith("c.")}
    assert found == {
        "c.followed": {"sends": 2, "unheard": 1, "calls": {}},
        "c.paid": {"sends": 2, "unheard": 0, "calls": {receiver_key(book): 2, receiver_key(mail): 0}},
        "c.sent": {"sends": 2, "unheard": 1, "calls": {receiver_key(book): 1}},
    }
    assert summary(found) == [
        f"never called: {receiver_key(mail)} (of c.paid)",
        "reached nobody: 1 of 2 sends of c.followed",
        "reached nobody: 1 of 2 sends of c.sent",
    ]
    assert called(found.values()) == (2, 1)
    assert Counts().add(found).add(found).as_dict()["c.paid"]["sends"] == 4


@pytest.mark.anyio
async def test_a_receiver_that_is_called_once_has_heard():
    """It is disconnected before its call; the send has reached it all the same."""
    paid = Signal(name="c.once")
    paid.connect(book, once=True)
    counts = Counts()
    with monitor(counts):
        await paid.send("shop")
        await paid.send("shop")
    assert counts.as_dict()["c.once"] == {"sends": 2, "unheard": 1, "calls": {receiver_key(book): 1}}


PROGRAM = {
    "shop/main": """
    from asignals import Signal
    paid = Signal()
    sent = Signal()
    @paid.connect
    def book(**named): ...
    @paid.connect(sender="web")
    def mail(**named): ...
    """,
    "test_shop": """
    import anyio, pytest
    from shop.main import paid, sent

    @pytest.mark.parametrize("number", range(4))
    def test_it(number):
        anyio.run(lambda: paid.send("shop"))
        anyio.run(lambda: sent.send("shop"))
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [(), ("-n2", "-pxdist")], ids=["alone", "xdist"])
def test_pytest_reports_what_no_test_has_called(pytester, monkeypatch, processes):
    """`--signals-report` at the end of the run, in several processes too; `asignals list --counts` reads its file."""
    pytest.importorskip("typer", reason="needs asignals[cli]")
    if processes:
        pytest.importorskip("xdist")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # to load all takes longer than the tests
    write(pytester.path, PROGRAM)
    options = ("-p", "asignals.pytest_plugin", "-p", "no:cacheprovider", "--assert=plain")
    result = pytester.runpytest_subprocess("--signals-report=out/counts.json", *options, *processes)
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "*= signals =*",
            "never called: shop.main.mail shop/main.py:7 (of shop.main.paid)",
            "reached nobody: 4 of 4 sends of shop.main.sent",
            "1 receivers called, 1 never; 4 sends reached nobody",
        ]
    )
    listed = run("list", "shop.main", "--counts", "out/counts.json", directory=pytester.path)
    assert "paid(**any)  sent 4×" in listed.stdout
    assert "sent(**any)  nobody hears this  sent 4×, 4 reached nobody" in listed.stdout
    assert "called 4×" in listed.stdout
    assert "never called" in listed.stdout
    assert "1 called, 1 never called, 4 sends that reached nobody" in listed.stdout
    found = json.loads(
        run("list", "shop.main", "--counts", "out/counts.json", "--json", directory=pytester.path).stdout
    )
    assert [(each["sends"], each["unheard"]) for each in found] == [(4, 0), (4, 4)]
    assert [receiver["calls"] for receiver in found[0]["receivers"]] == [4, 0]


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}'])
def test_a_file_that_holds_no_counts_is_explained(tmp_path, text):
    """In one line, and status 2."""
    write(tmp_path, PROGRAM)
    (tmp_path / "counts.json").write_text(text)
    result = run("list", "shop.main", "--counts", "counts.json", directory=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("asignals: cannot read counts from 'counts.json': ")
