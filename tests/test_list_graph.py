"""`asignals list` and `asignals graph`: on the demo, on a package of fifty modules, and on what does not import."""

import functools
import json
import os
import re
import sys

import pytest
from project_support import run, write

from asignals.overview.discovery import Discovery, Found, describe, discover, is_orphan, notes_of
from asignals.overview.graph import build, dot, mermaid
from asignals.overview.graph_page import page
from asignals.overview.program import TargetError


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write modules into a directory that is importable until the test ends."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    yield functools.partial(write, tmp_path)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def shop(project):
    files = {
        "shop/signals": '''
        from asignals import Signal, signal

        @signal
        def order_paid(sender: object, *, amount: int, currency: str = "EUR", password: str = "hunter2") -> None:
            """An [red]order[/red] was <paid> "in full".

            More that is not shown.
            """

        class Order:
            saved = Signal(["created"])

            async def save(self):
                await self.saved.send(self, created=True)

        class Refund(Order):
            async def book(self):
                await self.saved.send_robust(self, created=False)

        never_heard = Signal()
        ''',
        "shop/receivers": """
        from shop.signals import Order, order_paid

        async def mail(amount, **named): ...
        def log(**named): ...
        class Ledger:
            def book(self, **named): ...

        ledger = Ledger()
        order_paid.connect(mail, "web", priority=-1, timeout=2.5)
        order_paid.connect(log, in_thread=True, once=True, weak=False)
        order_paid.connect(ledger.book, Order, subclasses=True, dispatch_uid="ledger", priority=3)
        Order.saved.connect(log)
        """,
        "shop/checkout": """
        import shop.signals as s

        async def pay(background):
            await s.order_paid.send("web", amount=1)
            await s.order_paid.using(limit=3).send("web", amount=2)
            await background.send(s.order_paid, "web", amount=3)
            background.send_nowait(s.order_paid, "web", amount=4)
            await background.send("not a signal")
            await unknown.send(1)

        def late():
            from .signals import never_heard

            async def inner():
                await never_heard.send(None)
            return inner
        """,
        "shop/__main__": "raise SystemExit('the program must not run')",
    }
    return project(files)


def test_list_shows_signals_arguments_and_receivers_in_order(shop):
    """The tree has each signal with its arguments and first line, and its receivers as they are called."""
    result = run("list", "--all", "shop", directory=shop)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.strip("│├└─ ") for line in result.stdout.splitlines()]
    assert lines[:2] == ["signals", "shop.signals"]
    assert lines[2].startswith("order_paid(amount: int, currency: str = 'EUR', password: str = ••••)")
    assert lines[2].endswith('An [red]order[/red] was <paid> "in full".')
    files = [re.sub(r"shop.receivers.py:\d+", "FILE", line) for line in lines[3:6]]
    assert files == [
        (
            "1. shop.receivers.Ledger.book  FILE  "
            "sender=shop.signals.Order  and subclasses  priority=3  uid='ledger'  sync  weak"
        ),
        "2. shop.receivers.log  FILE  thread  strong  once",
        "3. shop.receivers.mail  FILE  sender='web'  priority=-1  timeout=2.5  async  weak",
    ]
    assert lines[6] == "Order.saved(created)"
    assert lines[8] == "never_heard(**any)  nobody hears this"
    assert lines[9] == "3 signals, 4 receivers, 1 orphan"


def test_what_the_entry_point_does_not_load_is_marked(shop, capsys):
    """Without `--all` only the entry point is loaded: list, graph and JSON say so, and what more there would be."""
    (shop / "shop" / "main.py").write_text("import shop.signals\napp = 1")
    listed = run("list", "shop.main:app", directory=shop)
    assert "-  shop.receivers.mail  shop/receivers.py:10  not loaded" in listed.stdout
    assert "3 signals, 0 receivers, 3 orphans" in listed.stdout
    said = "asignals: loaded shop.main:app alone, as a server does\nasignals: not loaded, --all adds: shop.receivers\n"
    assert listed.stderr == said
    signals = {each["path"]: each for each in json.loads(run("list", "shop.main:app", "--json", directory=shop).stdout)}
    assert [each["name"] for each in signals["shop.signals:order_paid"]["not_loaded"]] == [
        "shop.receivers.mail",
        "shop.receivers.log",
        "shop.receivers.ledger.book",
    ]
    drawn = run("graph", "shop.main:app", directory=shop)
    assert drawn.stderr == said
    assert 'not loaded"]:::missing' in drawn.stdout
    everything = run("list", "shop.main:app", "--all", directory=shop)
    assert "3 signals, 4 receivers, 1 orphan" in everything.stdout
    assert "not loaded" not in everything.stdout


def test_a_relay_is_shown_as_services_and_topics(project):
    """`relay shop → order.paid`, and nothing of how it is done; both are nodes of the graph."""
    pytest.importorskip("pydantic")
    project(
        {
            "hub/main": """
            from asignals import Signal, signal
            from asignals.relay import Memory, Relay

            @signal
            def paid(sender: str, *, amount: int) -> None: ...
            @signal
            def sent(sender: str, *, number: int) -> None: ...
            relay = Relay(Memory(), "shop")
            relay.export(paid, "order.paid")
            relay.receive(sent, "order.sent")
            """
        }
    )
    found = discover(["hub.main"])
    described = describe(next(each for each in found.signals if each.name == "hub.main.paid"))
    assert described["receivers"][0]["name"] == "relay shop → order.paid"
    assert notes_of(described["receivers"][0]) == []
    text = mermaid(build(found))
    edges = {(edge.start, edge.label, edge.end) for edge in build(found).edges}
    assert edges == {
        ("signal:hub.main:paid", "exported to order.paid", "service:shop exports"),
        ("service:shop exports", "", "topic:order.paid"),
        ("topic:order.sent", "", "service:shop receives"),
        ("service:shop receives", "receives order.sent", "signal:hub.main:sent"),
    }
    assert '[["shop' in text
    for internal in ("Exporter", "ExportUid", "inf", "_Exporter", "uid"):
        assert internal not in text


def test_list_as_json(shop):
    """The same as data, one object a signal."""
    result = run("list", "--json", "shop.receivers", "shop.signals", directory=shop)
    signals = {each["path"]: each for each in json.loads(result.stdout)}
    assert set(signals) == {"shop.signals:order_paid", "shop.signals:Order.saved", "shop.signals:never_heard"}
    paid = signals["shop.signals:order_paid"]
    assert paid["arguments"][:2] == [
        {"name": "amount", "type": "int", "default": None},
        {"name": "currency", "type": "str", "default": "'EUR'"},
    ]
    assert not paid["orphan"]
    book, log, mail = paid["receivers"]
    assert (book["subclasses"], log["in_thread"], log["once"], mail["async"]) == (True, True, True, True)
    assert log["location"] == f"shop{os.sep}receivers.py:5"
    assert signals["shop.signals:never_heard"]["orphan"]
    assert signals["shop.signals:never_heard"]["arguments"] is None


def test_one_signal_or_class_may_be_the_target(shop):
    """`module:attribute` shows that signal, or the signals of that class."""
    assert [each.path for each in discover(["shop.signals:never_heard"]).signals] == ["shop.signals:never_heard"]
    assert [each.path for each in discover(["shop.signals:Order"]).signals] == ["shop.signals:Order.saved"]


def test_the_demo_is_listed_and_drawn():
    """The shop that comes with the library, as JSON and as Mermaid."""
    pytest.importorskip("aiosqlite")
    listed = json.loads(run("list", "asignals.demo.shop:asgi", "--json").stdout)
    assert {"asignals.demo.shop.order_paid", "asignals.demo.shop.pizza_done"} <= {each["name"] for each in listed}
    drawn = run("graph", "asignals.demo.shop:asgi")
    assert drawn.returncode == 0
    assert drawn.stdout.startswith("flowchart LR\n")
    assert "asignals.demo.shop.order_paid" in drawn.stdout


def test_a_package_of_fifty_modules(project):
    """All fifty are imported, in two levels, and each signal, sender and receiver is found once."""
    files = {
        f"big/part{number % 5}/m{number:02}": f"""
            from asignals import Signal
            from big.part{(number + 1) % 5} import m{(number + 1) % 50:02} as neighbour
            happened = Signal(["value"])

            def receiver(**named): ...
            async def announce():
                await neighbour.happened.send(None, value={number})
            happened.connect(receiver)
            """
        for number in range(50)
    }
    # Imports go around in a circle, as those of real programs do.
    project(files)
    found = discover(["big"], everything=True)
    assert len(found.modules) == 56  # the packages are modules, too
    assert sorted({each.name for each in found.signals}) == sorted(
        f"big.part{number % 5}.m{number:02}.happened" for number in range(50)
    )
    assert len(found.signals) == 50
    graph = build(found)
    assert [len(graph.of_kind(kind)) for kind in ("sender", "signal", "receiver")] == [50, 50, 50]
    assert len(graph.edges) == 100


def test_graph_finds_who_sends_what_to_whom(shop):
    """Sends through modules, views, backgrounds, methods, base classes and local imports are found, others not."""
    graph = build(discover(["shop"], everything=True))
    names = {key: node.name for key, node in graph.nodes.items()}
    edges = {(names[edge.start], names[edge.end]) for edge in graph.edges}
    assert edges == {
        ("shop.checkout.pay", "shop.signals.order_paid"),
        ("shop.checkout.late.inner", "shop.signals.never_heard"),
        ("shop.signals.Order.save", "shop.signals.Order.saved"),
        ("shop.signals.Refund.book", "shop.signals.Order.saved"),
        ("shop.signals.order_paid", "shop.receivers.mail"),
        ("shop.signals.order_paid", "shop.receivers.log"),
        ("shop.signals.order_paid", "shop.receivers.Ledger.book"),
        ("shop.signals.Order.saved", "shop.receivers.log"),
    }
    labels = {(names[edge.start], names[edge.end]): edge.label for edge in graph.edges}
    assert labels["shop.signals.order_paid", "shop.receivers.mail"] == "from 'web', priority -1"
    assert labels["shop.signals.order_paid", "shop.receivers.log"] == "in a thread"
    assert [node.name for node in graph.nodes.values() if node.orphan] == ["shop.signals.never_heard"]


def test_mermaid_and_dot_escape_what_they_hold(shop):
    """Quotes, angle brackets and backslashes of docstrings cannot end a label."""
    graph = build(discover(["shop"], everything=True))
    chart, digraph = mermaid(graph), dot(graph)
    assert "was #lt;paid#gt; #quot;in full#quot;." in chart
    assert 'was <paid> \\"in full\\".' in digraph
    for line in chart.splitlines():
        assert re.fullmatch(
            r"flowchart LR|  classDef .*|  n\d+(\[|\(\[)\"[^\"]*\"(\]|\]\)):::\w+|  n\d+ -->(\|\"[^\"]*\"\|)? n\d+",
            line,
        ), line


def test_the_page_holds_the_graph_and_no_markup_of_the_program(shop):
    """One file, nothing loaded, no script but its own, every name escaped or data; its look is a browser's test."""
    (shop / "shop" / "signals.py").write_text(
        "from asignals import Signal\n"
        "x = Signal(name='</script><script>alert(1)</script>', doc='<img src=x onerror=y>')"
    )
    text = page(build(discover(["shop.signals"])), "<b>shop</b>")
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in text
    assert "<b>" not in text
    assert not re.search(r"<[^>]*(?:src|href)=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    data = json.loads(re.search(r'<script type="application/json" id="graph">(.*?)</script>', text)[1])
    assert [node["name"] for node in data["nodes"]] == ["</script><script>alert(1)</script>"]
    assert "unsafe" not in text


def test_the_page_has_a_table_where_there_is_no_script(shop):
    """Each connection is a row."""
    graph = build(discover(["shop"], everything=True))
    text = page(graph, "shop")
    table = text[text.index("<table>") : text.index("</table>")]
    assert table.count("<tr>") == 1 + len(graph.edges)
    assert "<td>shop.checkout.pay</td><td>shop.signals.order_paid</td>" in table


def test_a_program_without_signals(project):
    """An empty tree, an empty list and empty pictures, and no error."""
    directory = project({"empty": "x = 1"})
    assert run("list", "empty", directory=directory).stdout.strip() == "no signals found"
    graph = build(discover(["empty"]))
    assert mermaid(graph).startswith("flowchart LR\n")
    assert "0 signals" in page(graph, "empty")


@pytest.mark.parametrize("suffix", [".html", ".dot", ".mmd", ".json"])
def test_the_output_file_decides_the_form(shop, suffix):
    """`-o graph.html` writes a page, `.dot` DOT, and so on; stdout stays empty."""
    output = shop / f"graph{suffix}"
    result = run("graph", "--all", "shop", "-o", str(output), directory=shop)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    start = {".html": "<!doctype html>", ".dot": "digraph", ".mmd": "flowchart LR", ".json": "{"}[suffix]
    assert output.read_text(encoding="utf-8").startswith(start)


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (("-o", "graph.gv"), "digraph"),
        (("-o", "graph.HTM"), "<!doctype html>"),
        (("-o", "graph.txt"), "flowchart LR"),
        (("-o", "graph.html", "--format", "dot"), "digraph"),
        (("-f", "json"), "{"),
    ],
)
def test_the_form_may_be_named_and_is_mermaid_if_nothing_tells(shop, capsys, arguments, start):
    """`--format` goes before the name of the output."""
    from asignals import cli

    with pytest.raises(SystemExit) as ended:
        cli.app(["graph", "shop", *arguments])
    assert ended.value.code == 0
    written = [path.read_text(encoding="utf-8") for path in shop.glob("graph.*")] or [capsys.readouterr().out]
    assert [text.startswith(start) for text in written] == [True]


def test_a_file_that_cannot_be_written(shop):
    """A missing directory is one line on stderr and status 2."""
    result = run("graph", "--all", "shop", "-o", "missing/graph.html", directory=shop)
    assert result.returncode == 2
    assert re.fullmatch(r"asignals: cannot write 'missing.graph.html': .*\n", result.stderr)


BROKEN = {
    "no_such_module": (None, r"cannot import 'no_such_module': ModuleNotFoundError: No module named 'no_such_module'"),
    "raises": ("1 / 0", r"cannot import 'raises': ZeroDivisionError: division by zero\n  at raises.py:1"),
    "wrong": ("def f(:", r"cannot import 'wrong': SyntaxError: .*\n  at wrong.py:1"),
    "exits": ("import sys; sys.exit(0)", r"cannot import 'exits': SystemExit: 0\n  at exits.py:1"),
    "needs": (
        "import not_there",
        r"cannot import 'needs': ModuleNotFoundError: No module named 'not_there'\n  at needs.py:1",
    ),
    "raises:x": ("1 / 0", r"cannot import 'raises' \(in 'raises:x'\): ZeroDivisionError.*\n.*"),
    "fine:nope": ("x = 1", r"cannot import 'fine:nope': fine has no attribute 'nope'"),
    "shop/signals.py": (None, r"cannot import 'shop/signals.py': that is a path; did you mean 'shop.signals'\?"),
    "": (None, r"cannot import '': a target is a dotted module name such as shop.signals"),
    "a..b": (None, r"cannot import 'a..b': a target is .*"),
}


@pytest.mark.parametrize("target", BROKEN)
def test_a_target_that_does_not_import_is_explained(project, target):
    """The message names the module, the error and the line, in at most two lines."""
    source, message = BROKEN[target]
    if source is not None:
        project({target.partition(":")[0]: source})
    with pytest.raises(TargetError) as caught:
        discover([target])
    assert re.fullmatch(message, str(caught.value))


@pytest.mark.parametrize("command", ["list", "graph"])
def test_a_broken_target_ends_with_status_2_and_without_a_traceback(project, command):
    """Its explanation is on stderr, with `--traceback` the traceback before it, and stdout is empty."""
    directory = project({"raises": "def f():\n    print('noise')\n    return 1 / 0\nf()"})
    result = run(command, "raises", directory=directory)
    assert (result.returncode, result.stdout) == (2, "")
    assert (
        result.stderr
        == "noise\nasignals: cannot import 'raises': ZeroDivisionError: division by zero\n  at raises.py:3\n"
    )
    result = run(command, "--traceback", "raises", directory=directory)
    assert result.returncode == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert "return 1 / 0" in result.stderr


def test_a_broken_module_inside_a_package(project):
    """It is named, and with `--skip-broken` the rest is shown all the same."""
    directory = project(
        {
            "pack/good": "from asignals import Signal\nx = Signal(name='pack.good.x')",
            "pack/bad": "raise RuntimeError('no')",
        }
    )
    result = run("list", "--all", "pack", directory=directory)
    assert result.returncode == 2
    assert f"cannot import 'pack.bad' (in 'pack'): RuntimeError: no\n  at pack{os.sep}bad.py:1" in result.stderr
    for command in ("list", "graph"):
        result = run(command, "--skip-broken", "pack", directory=directory)
        assert result.returncode == 0
        assert "pack.good" in result.stdout
        assert "cannot import 'pack.bad'" in result.stderr


def test_what_targets_print_does_not_spoil_the_output(project):
    """Output of an import goes to stderr, so that `--json` on stdout is JSON."""
    directory = project({"loud": "print('hello')\nfrom asignals import Signal\nx = Signal()"})
    result = run("list", "--json", "loud", directory=directory)
    assert result.stderr == "hello\n"
    assert [each["name"] for each in json.loads(result.stdout)] == ["loud.x"]


def test_hostile_modules_do_no_harm(project):
    """Objects that lie about their class, and senders whose repr raises, are no obstacle."""
    project(
        {
            "hostile": """
        from asignals import Signal

        class Liar:
            @property
            def __class__(self):
                raise RuntimeError

            def __getattr__(self, name):
                raise RuntimeError(name)

            def __repr__(self):
                raise RuntimeError

        class Many(type):
            def __getattribute__(cls, name):
                if name == "trap":
                    raise RuntimeError
                return super().__getattribute__(name)

        class Trap(metaclass=Many):
            trap = 1

        liar = Liar()
        x = Signal()
        def receiver(**named): ...
        x.connect(receiver, liar)
        async def send():
            await liar.send(1)
            await Trap.trap.send(1)
            await (lambda: x)().send(1)
        """
        }
    )
    found = discover(["hostile"])
    assert [each.path for each in found.signals] == ["hostile:x"]
    graph = build(found)
    assert "Liar" in next(edge.label for edge in graph.edges)
    assert graph.of_kind("sender") == []


def test_a_model_signals_receivers_are_shown_with_their_phase():
    """Those that are called after the commit stand behind those of the flush, and say so; they are no orphans."""
    models = pytest.importorskip("asignals.sqlalchemy")

    class Order: ...

    def book(instance): ...

    def mail(instance): ...

    def of_order(described):
        return [each for each in described["receivers"] if "Order" in (each["sender"] or "")]

    found = Found(models.post_delete, "asignals.sqlalchemy:post_delete", "post_delete")
    was_orphan = is_orphan(models.post_delete)
    with models.post_delete.connected(mail, sender=Order, on="commit"):
        assert not is_orphan(models.post_delete)
        with models.post_delete.connected(book, sender=Order):
            receivers = of_order(describe(found))
            edges = [edge.label for edge in build(Discovery([], [found])).edges]
    assert [(each["name"].rpartition(".")[2], each["on"]) for each in receivers] == [
        ("book", "flush"),
        ("mail", "commit"),
    ]
    assert [notes_of(each)[0] for each in receivers] == ["on flush", "on commit"]
    assert [label.partition(",")[0] for label in edges][-2:] == ["on flush", "on commit"]
    assert is_orphan(models.post_delete) == was_orphan
