"""`asignals check`: a program made for each finding, and layouts of real programs in which there is nothing to find."""

import gc
import json
import textwrap

import pytest

pytest.importorskip("typer", reason="needs asignals[cli]")

from project_support import check, run, write

from asignals.overview.findings import lost
from asignals.overview.watching import Watch

SIGNALS = """
from asignals import Signal, signal

@signal
def order_paid(sender: object, *, amount: int) -> None: ...

order_sent = Signal(["number"])
"""
CHECKOUT = """
from shop.signals import order_paid

async def pay():
    await order_paid.send("web", amount=1)
"""


def kinds(findings):
    return sorted(finding["kind"] for finding in findings)


def only(findings, kind):
    found = [finding for finding in findings if finding["kind"] == kind]
    assert len(found) == 1, findings
    return found[0]


def test_a_module_that_nobody_imports_is_found_with_the_send_that_it_should_hear(tmp_path):
    """The commonest bug: the receiver is there, and the program does not load it. The source is read, not imported."""
    write(
        tmp_path,
        {
            "shop/signals": SIGNALS,
            "shop/checkout": CHECKOUT,
            "shop/main": "import shop.checkout\napp = object()",
            "shop/receivers": """
            import shop.signals as s

            raise SystemExit("must not be imported")

            @s.order_paid.connect(sender="web")
            async def mail(amount): ...
            """,
        },
    )
    status, findings, notes = check(tmp_path, "shop.main:app")
    assert (status, kinds(findings), notes) == (1, ["not-loaded", "unheard"], [])
    missing, unheard = only(findings, "not-loaded"), only(findings, "unheard")
    assert missing["location"] == "shop/receivers.py:6"
    assert "shop.receivers connects mail to order_paid" in missing["message"]
    assert "import shop.receivers" in missing["advice"]
    assert unheard["location"] == "shop/checkout.py:5"
    assert unheard["signal"] == "shop.signals.order_paid"
    assert "shop.checkout.pay" in unheard["message"]
    assert "import shop.receivers" in unheard["advice"]


CONNECTING = [
    "from shop.signals import order_paid\ndef f(**_): ...\norder_paid.connect(f)",
    "from ..signals import order_paid as paid\n@paid.connect\ndef f(amount): ...",
    "from .. import signals\n@signals.order_paid.connect(priority=3)\ndef f(amount): ...",
    "from asignals import receiver\nfrom shop import signals\n@receiver([signals.order_paid])\ndef f(**_): ...",
    "import asignals\nimport shop.signals\n@asignals.receiver(shop.signals.order_paid, sender='x')\ndef f(**_): ...",
    "from shop.signals import order_paid\nfor each in (order_paid,):\n    each.connect(print)",
    "from shop.signals import order_paid\ndef setup():\n    order_paid.connect(print)\nsetup()",
    "from shop.signals import order_paid\nclass Mail:\n    @order_paid.connect\n    def f(amount): ...",
    "from shop.signals import order_paid\nif True:\n    try:\n        order_paid.connect(print)\n    finally: ...",
    "from shop.more import late\nlate.connect(print)",
    "from shop.more import typed\ntyped.connect(print)",
    "from shop.more import Order\nOrder.saved.connect(print)",
    "from asignals.asgi import request_finished\n@request_finished.connect\ndef f(status): ...",
    "from shop.signals import order_paid\n[each.connect(print) for each in [order_paid]]",
    "import asignals as a\nfrom shop import signals\n@a.receiver(signals.order_paid)\ndef f(**_): ...",
    "from asignals import receiver as on\nfrom shop.signals import order_paid\n@on([order_paid])\ndef f(**_): ...",
    "from shop.signals import *\norder_paid.connect(print)",
    "from shop.signals import order_paid\nfor each, f in [(order_paid, print)]:\n    each.connect(f)",
    "from shop.signals import order_paid\nfor each, f in {order_paid: print}.items():\n    each.connect(f)",
    "from shop.signals import order_paid\nMINE = {'paid': order_paid}\nMINE['paid'].connect(print)",
    "from shop.more import BY_NAME\nfor name, each in BY_NAME.items():\n    each.connect(print)",
    "from shop import signals\ngetattr(signals, 'order_paid').connect(print)",
    "from shop.signals import order_paid\ndef a():\n    b()\ndef b():\n    order_paid.connect(print)\na()",
    "from shop.signals import order_paid\nclass A:\n    def __init__(self):\n        order_paid.connect(print)\nA()",
    "import shop.signals as s\nclass A:\n    def __init_subclass__(c): s.order_paid.connect(print)\nclass B(A): ...",
    "from shop.signals import order_paid\ndef on(kind):\n    order_paid.connect(kind)\n@on\nclass A: ...",
    "import shop.more\ndef f(order: 'shop.more.Order | None'):\n    order.saved.connect(print)\nf(1)",
]


def test_every_way_of_connecting_is_read(tmp_path):
    """As a decorator or a call, by any import, in loops and blocks, for signals of modules that are not loaded."""
    more = "import asignals\nlate = asignals.Signal()\n@asignals.signal\ndef typed(sender): ...\n"
    write(
        tmp_path,
        {
            "shop/signals": SIGNALS,
            "shop/more": more + "class Order:\n    saved = asignals.Signal()\nBY_NAME = {'late': late}",
            "shop/main": "import shop.signals, asignals.asgi\napp = 1",
            **{f"shop/deep/r{number}": source for number, source in enumerate(CONNECTING)},
        },
    )
    status, findings, _ = check(tmp_path, "shop.main:app")
    assert (status, set(kinds(findings))) == (1, {"not-loaded"})
    assert {finding["file"] for finding in findings} == {f"shop/deep/r{number}.py" for number in range(len(CONNECTING))}


def test_what_is_loaded_later_or_by_itself_or_is_no_signal_is_not_missing(tmp_path):
    """Imports in functions count; programs of their own and functions that connect when called are notes; tests not."""
    write(
        tmp_path,
        {
            "shop/signals": SIGNALS,
            "shop/checkout": CHECKOUT,
            "shop/main": """
            import importlib
            import shop.checkout

            def ready():
                from shop import receivers
                importlib.import_module(".more", __package__)

            def app(scope, receive, send): ...
            """,
            "shop/receivers": "from shop.signals import order_paid\nimport shop.third\norder_paid.connect(print)",
            "shop/more": "from shop.signals import order_paid\norder_paid.connect(print)",
            "shop/third": "from shop.signals import order_paid\norder_paid.connect(print)",
            "shop/database": "engine = make()\nengine.connect(print)\nsocket.connect(('x', 1))",
            "shop/script": """
            from shop.signals import order_paid
            order_paid.connect(print)
            if __name__ == '__main__':
                run()
            """,
            "shop/tool": "from shop.signals import order_paid\ndef watch():\n    order_paid.connect(print)",
            "shop/types": """
            from typing import TYPE_CHECKING
            from shop.signals import order_paid
            if TYPE_CHECKING:
                order_paid.connect(print)
            """,
            "shop/tests/test_mail": "from shop.signals import order_paid\norder_paid.connect(print)",
            "shop/broken": "def f(:",
            "shop/__main__": "from shop.signals import order_paid\norder_paid.connect(print)",
        },
    )
    status, findings, notes = check(tmp_path, "shop.main:app")
    assert (status, findings) == (0, [])
    assert len(notes) == 2
    assert "shop.script is a separate program" in notes[0]
    assert "shop.tool connects print to order_paid when shop.tool.watch is called" in notes[1]


HEARING = [
    "@paid.connect\ndef f(amount): ...",
    "def start():\n    paid.connect(print)",
    "class Mail:\n    def __init__(self):\n        paid.connect(self.f, weak=False)\n    def f(self, amount): ...",
    "async def follow():\n    async with paid.stream() as events: ...",
    "import asignals\nasync def follow():\n    async with asignals.stream(paid) as events: ...",
    "async def follow():\n    return await paid.wait()",
    "from asignals import Signal\nother = Signal(['amount'])\nother.connect(print)\npaid.connect(other.send)",
    "def test():\n    with paid.connected(print): ...",
    "def start():\n    for each, f in [(paid, print)]:\n        each.connect(f)",
    "BY_NAME = {'paid': paid}\ndef start(name):\n    BY_NAME[name].connect(print)",
    "BY_NAME = {'paid': paid}\ndef start():\n    for each in BY_NAME.values():\n        each.connect(print)",
    "def on(signal, f):\n    signal.connect(f)\ndef start():\n    on(paid, print)",
    "class Order:\n    saved = paid\ndef start(order: 'Order | None'):\n    order.saved.connect(print)",
]


def test_whoever_hears_a_send_sooner_or_later_is_seen(tmp_path):
    """A receiver that is connected at run time, a stream and `wait` hear, too."""
    begin = (
        "from asignals import Signal\npaid = Signal(['amount'])\nasync def pay():\n    await paid.send(1, amount=1)\n"
    )
    modules = {f"shop/m{number}": begin + source for number, source in enumerate(HEARING)}
    write(tmp_path, {**modules, "shop/main": "\n".join(f"import {name.replace('/', '.')}" for name in modules)})
    assert check(tmp_path, "shop.main")[:2] == (0, [])


SENDING = [
    "async def f():\n    await paid.send('web', amount=1)",
    "async def f():\n    await paid.using(limit=3).send_robust('web', amount=1)",
    "async def f(background):\n    await background.send(paid, 'web', amount=1)",
    "def f(background):\n    background.send_nowait(paid, 'web', amount=1)",
    "def f(group):\n    group.start_soon(paid.send, 'web')",
    "async def f():\n    alias = paid\n    await alias.send('web', amount=1)",
    "other = Signal()\nother.connect(paid.send, weak=False)",
    "async def f():\n    for each in [paid]:\n        await each.send('web', amount=1)",
    "async def f():\n    from shop import m8\n    await m8.paid.send('web', amount=1)",
    "f = lambda: paid.send('web', amount=1)",
]


def test_every_way_of_sending_is_read(tmp_path):
    """Directly, through a view, a background, an alias, as a callback, and by forwarding."""
    modules = {f"shop/m{n}": f"from asignals import Signal\npaid = Signal()\n{each}" for n, each in enumerate(SENDING)}
    write(tmp_path, {**modules, "shop/main": "\n".join(f"import {name.replace('/', '.')}" for name in modules)})
    status, findings, _ = check(tmp_path, "shop.main")
    assert (status, set(kinds(findings))) == (1, {"unheard"})
    assert {finding["signal"] for finding in findings} == {f"shop.m{number}.paid" for number in range(len(SENDING))}


def test_a_signal_of_a_class_is_found_through_self_and_annotations(tmp_path):
    """`self.saved.send` and `order.saved.send` with `order: Order` are sends of `Order.saved`."""
    write(
        tmp_path,
        {
            "shop/main": """
            from asignals import Signal

            class Order:
                saved = Signal()
                gone = Signal()
                loaded = Signal()
                done = Signal()
                async def save(self):
                    await self.saved.send(self)
                async def load(self):
                    await type(self).loaded.send(self)
                    await self.__class__.done.send(self)

            async def remove(order: "Order"):
                await order.gone.send(order)
            """
        },
    )
    _, findings, _ = check(tmp_path, "shop.main")
    assert [finding["line"] for finding in findings] == [10, 12, 13, 16]


def test_a_receiver_that_was_lost_is_found(tmp_path):
    """`ReceiverLostWarning` at the line of the `connect`, whatever the program does with warnings."""
    write(
        tmp_path,
        {
            "shop/main": """
            import warnings
            warnings.simplefilter("ignore")
            from asignals import Signal
            paid = Signal()

            def setup():
                def nested(**named): ...
                paid.connect(nested)

            setup()
            """
        },
    )
    status, findings, _ = check(tmp_path, "shop.main")
    assert (status, kinds(findings)) == (1, ["lost"])
    assert findings[0]["location"] == "shop/main.py:9"
    assert "weak=False" in findings[0]["advice"]


def test_a_signal_that_dies_with_its_receivers_loses_none(tmp_path):
    """To watch a program must keep nothing of it alive."""
    write(
        tmp_path,
        {
            "main": """
            from asignals import Signal
            class Job:
                def __init__(self):
                    self.done = Signal()
                    self.me = self
            def work():
                job = Job()
                def nested(**_): ...
                job.done.connect(nested, dispatch_uid="x")
                job.done.connect(nested)
            work()
            """
        },
    )
    assert check(tmp_path, "main")[:2] == (0, [])


def test_a_function_that_another_one_of_its_name_replaces_is_found():
    """As `def _` makes them, and copies of a function; what was disconnected, or is connected strongly, is not lost."""
    source = """
        from asignals import Signal, receiver
        paid = Signal()
        @paid.connect
        def _(**named): ...
        @receiver(paid, sender="web")
        def _(**named): ...
        @paid.connect(weak=False)
        def kept(**named): ...
        def kept(**named): ...
        @paid.connect
        def left(**named): ...
        paid.disconnect(left)
        def left(**named): ...
    """
    with Watch() as watch:
        exec(compile(textwrap.dedent(source), "main.py", "exec"), {"__name__": "main"})  # noqa: S102  the test's own
        gc.collect()
    (finding,) = lost(watch)
    assert (finding.location, finding.advice) == ("main.py:4", "give it its own name")


def test_what_dies_as_it_is_connected_is_found(tmp_path):
    """A lambda, a method of a temporary object, what `map` and a decorator are given, and a sender."""
    write(
        tmp_path,
        {
            "main": """
            import functools
            from asignals import Signal, receiver
            paid = Signal()
            class Mailer:
                def mail(self, **_): ...
            def kept(**_): ...
            paid.connect(lambda **_: None)
            paid.connect(Mailer().mail)
            list(map(paid.connect, [functools.partial(kept)]))
            receiver(paid)(lambda **_: None)
            paid.connect(kept, sender=Mailer())
            paid.connect(kept)
            """
        },
    )
    _, findings, _ = check(tmp_path, "main")
    assert [(finding["kind"], finding["line"]) for finding in findings] == [("lost", line) for line in range(8, 13)]


def test_a_module_that_is_loaded_under_two_names_is_found(tmp_path):
    """`receivers` and `shop.receivers` are one file, and its receivers hear every send twice."""
    write(
        tmp_path,
        {
            "shop/signals": SIGNALS,
            "shop/receivers": "from shop.signals import order_paid\n@order_paid.connect\ndef mail(amount): ...",
            "shop/main": """
            import sys, os
            sys.path.insert(0, os.path.dirname(__file__))
            import receivers
            import shop.receivers
            """,
        },
    )
    status, findings, _ = check(tmp_path, "shop.main")
    assert (status, kinds(findings)) == (1, ["loaded-twice"])
    assert "mail is connected to shop.signals.order_paid twice" in findings[0]["message"]
    assert findings[0]["location"] == "shop/receivers.py:2"
    assert "shop.receivers" in findings[0]["advice"]


def test_a_partial_of_such_a_module_is_found_by_its_place(tmp_path):
    """It names no module; what one place connects twice is of both. A builtin is one receiver all the same."""
    connect = "import functools\nfrom shop.signals import order_sent as s\ns.connect(print)\n"
    write(
        tmp_path,
        {
            "shop/signals": SIGNALS,
            "shop/receivers": connect + "s.connect(functools.partial(print, 1), weak=False)",
            "shop/harmless": connect,
            "shop/main": """
            import sys, os
            sys.path.insert(0, os.path.dirname(__file__))
            import receivers, harmless
            import shop.receivers, shop.harmless
            """,
        },
    )
    _, findings, _ = check(tmp_path, "shop.main")
    assert [(finding["kind"], finding["location"]) for finding in findings] == [("loaded-twice", "shop/receivers.py:4")]


def test_a_taken_uid_is_found_and_the_same_receiver_again_is_not(tmp_path):
    """A receiver under a `dispatch_uid` that another one has is not added."""
    write(
        tmp_path,
        {
            "shop/main": """
            from asignals import Signal
            paid = Signal()
            @paid.connect(dispatch_uid="mail")
            def first(**named): ...
            @paid.connect(dispatch_uid="mail")
            def second(**named): ...
            def third(**named): ...
            paid.connect(third, None, True, "mail")
            paid.connect(first, dispatch_uid="mail")
            paid.connect(third, dispatch_uid="mail", sender="web")
            class Mailer:
                def send(self, **named): ...
            mailer = Mailer()
            paid.connect(mailer.send, dispatch_uid=0)
            paid.connect(mailer.send, dispatch_uid=0)
            """
        },
    )
    status, findings, _ = check(tmp_path, "shop.main")
    assert (status, kinds(findings)) == (1, ["uid-taken", "uid-taken"])
    assert "shop.main.second is not connected" in findings[0]["message"]
    assert "shop.main.first has dispatch_uid='mail'" in findings[0]["message"]
    assert [finding["line"] for finding in findings] == [6, 9]


WASTED = [
    "order_paid.send('web', amount=1)",
    "order_paid.send_robust('web', amount=1)",
    "order_paid.wait()",
    "results = order_paid.send('web', amount=1)",
    "for _, answer in order_paid.send('web', amount=1): ...",
    "if order_paid.send('web', amount=1): ...",
    "first = order_paid.send('web', amount=1)[0]",
    "first = order_paid.send('web', amount=1) or []",
    "first = 1 if order_paid.send('web', amount=1) else 2",
    "return not order_paid.send('web', amount=1)",
    "b = Background(); b.send(order_paid, 'web', amount=1)",
]
AWAITED = [
    "await order_paid.send('web', amount=1)",
    "return order_paid.send('web', amount=1)",
    "task = create_task(order_paid.send('web', amount=1))",
    "sending = order_paid.send('web', amount=1); await sending",
    "await gather(*[order_paid.send('web', amount=n) for n in range(3)])",
    "self.work.append(order_paid.send('web', amount=1))",
    "x = lambda: order_paid.send('web', amount=1); await x()",
    "order_paid.connect(print)",
    "background.send_nowait(order_paid, 'web', amount=1)",
    "with order_paid.muted(): ...",
    "yield order_paid.send('web', amount=1)",
    "return ready and order_paid.send('web', amount=1)",
    "return order_paid.send('web', amount=1) if ready else None",
]


def test_sends_that_are_never_awaited_are_found(tmp_path):
    """A coroutine that is thrown away, or used as a list, sends nothing; one that is handed on may be awaited there."""
    start = "from asignals import Background\nfrom shop.signals import order_paid\norder_paid.connect(print)\n"
    functions = [f"async def f{number}(self, background):\n    {body}" for number, body in enumerate(WASTED + AWAITED)]
    write(tmp_path, {"shop/signals": SIGNALS, "shop/main": start + "\n".join(functions)})
    _, findings, _ = check(tmp_path, "shop.main")
    assert set(kinds(findings)) == {"not-awaited"}
    assert [finding["line"] for finding in findings] == [5 + 2 * number for number in range(len(WASTED))]


def test_a_model_that_does_not_exist_is_found(tmp_path):
    """A name that no model has, with the one that was probably meant, or with the module that has it."""
    pytest.importorskip("sqlalchemy")
    write(
        tmp_path,
        {
            "shop/models": """
            from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
            class Base(DeclarativeBase): ...
            class Order(Base):
                __tablename__ = "orders"
                number: Mapped[int] = mapped_column(primary_key=True)
            """,
            "shop/unloaded": "from shop.models import Base\nclass Refund(Base): ...",
            "shop/main": """
            from asignals.sqlalchemy import post_save
            @post_save.connect(sender="Order")
            def fine(instance): ...
            @post_save.connect(sender="Ordre", on="commit")
            def wrong(instance): ...
            @post_save.connect(sender="Refund")
            def unloaded(instance): ...
            import shop.models
            """,
        },
    )
    status, findings, _ = check(tmp_path, "shop.main")
    assert (status, kinds(findings)) == (1, ["no-such-model"] * 2)
    by_line = {finding["line"]: finding for finding in findings}
    assert set(by_line) == {5, 7}
    assert "'Ordre'" in by_line[5]["message"]
    assert "did you mean 'Order'?" in by_line[5]["advice"]
    assert by_line[7]["advice"] == "import shop.unloaded, where class Refund is"


RELAY = """
from asignals.relay import Memory, Relay
from shop.signals import order_paid, order_sent

relay = Relay(Memory(), "shop")
relay.export(order_paid, "order.paid")
relay.receive(order_sent, "order.sent")
"""


def test_a_relay_that_does_not_run_and_one_that_has_no_receivers_are_found(tmp_path):
    """What is exported by a relay that nothing enters, and what is received while no receiver is connected."""
    pytest.importorskip("pydantic")
    write(
        tmp_path,
        {"shop/signals": SIGNALS, "shop/relay": RELAY, "shop/main": CHECKOUT + "import shop.relay\napp = 1"},
    )
    status, findings, _ = check(tmp_path, "shop.main:app")
    assert (status, kinds(findings)) == (1, ["received-unheard", "relay-not-run", "relay-not-run"])
    assert only(findings, "received-unheard")["location"] == "shop/relay.py:7"
    assert {finding["location"] for finding in findings} == {"shop/relay.py:6", "shop/relay.py:7"}
    # Its own process runs it.
    status, findings, _ = check(tmp_path, "shop.relay:relay")
    assert (status, kinds(findings)) == (1, ["received-unheard"])
    # Together, the relay is run by one of the two.
    assert kinds(check(tmp_path, "shop.main:app", "shop.relay:relay")[1]) == ["received-unheard"]


def test_exports_in_a_module_that_is_not_loaded_are_found(tmp_path):
    """The module that hands a signal to a relay is missing as one that connects receivers is."""
    pytest.importorskip("pydantic")
    write(tmp_path, {"shop/signals": SIGNALS, "shop/relay": RELAY, "shop/main": CHECKOUT})
    _, findings, _ = check(tmp_path, "shop.main")
    assert kinds(findings) == ["not-loaded", "unheard"]
    assert "shop.relay exports order_paid (and 1 more)" in only(findings, "not-loaded")["message"]


def test_a_module_that_one_of_several_programs_loads_is_not_missing(tmp_path):
    """A web process and a worker are checked together."""
    write(
        tmp_path,
        {
            "shop/signals": SIGNALS,
            "shop/web": "from shop.signals import order_paid\norder_paid.connect(print)",
            "shop/work": "from shop.signals import order_sent\norder_sent.connect(print)",
            "shop/nobody": "from shop.signals import order_sent\norder_sent.connect(print)",
        },
    )
    assert {finding["file"] for finding in check(tmp_path, "shop.web")[1]} == {"shop/work.py", "shop/nobody.py"}
    assert {finding["file"] for finding in check(tmp_path, "shop.web", "shop.work")[1]} == {"shop/nobody.py"}
    assert check(tmp_path, "shop.web", "shop.work", "--ignore", "shop/nob*")[:2] == (0, [])


def test_a_module_that_the_program_hands_to_a_server_by_name_is_a_program_of_its_own(tmp_path):
    """It is noted, not missed: `uvicorn.run("shop.live:app")` starts it elsewhere. One that nobody names is missed."""
    hearing = "from shop.signals import order_paid\norder_paid.connect(print)\ndef app(scope, receive, send): ..."
    write(
        tmp_path,
        {
            "shop/signals": SIGNALS,
            "shop/main": CHECKOUT,
            "shop/start": "def start(uvicorn):\n    uvicorn.run('shop.live:app', workers=2)",
            "shop/live": hearing,
            "shop/other": hearing,
        },
    )
    _, findings, notes = check(tmp_path, "shop.main")
    assert [finding["file"] for finding in findings if finding["kind"] == "not-loaded"] == ["shop/other.py"]
    assert ["shop.live is a separate program" in note for note in notes] == [True]


def test_the_report_is_for_people_and_editors(tmp_path):
    """Each finding starts with `file:line`, says what to do, and no line is wider than the terminal."""
    write(
        tmp_path,
        {
            "shop/signals": SIGNALS,
            "shop/main": CHECKOUT,
            "shop/r": "from shop.signals import order_paid\norder_paid.connect(print)",
        },
    )
    result = run("check", "shop.main", directory=tmp_path, COLUMNS="60")
    assert (result.returncode, result.stderr) == (1, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "shop.main: 3 modules, 2 signals, 0 receivers"
    assert any(line.startswith("shop/r.py:2: ") for line in lines)
    assert any(line.startswith("  -> import shop.r") for line in lines)
    assert lines[-1] == "2 findings"
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "1 / 0",
            "cannot import 'shop.main' (in 'shop.main:app'): ZeroDivisionError: division by zero\n  at shop/main.py:1",
        ),
        ("x = 1", "cannot import 'shop.main:app': shop.main has no attribute 'app'"),
        (
            "from asignals import Signal\npaid = Signal()\npaid.connect(7)",
            "a receiver must be callable, not 'int'\n  at shop/main.py:3",
        ),
        ("import os; os._exit(3)", "cannot load 'shop.main:app': its process ended with status 3"),
        ("import os; os.abort()", "cannot load 'shop.main:app': its process ended with signal 6"),
    ],
)
def test_a_program_that_does_not_load_is_status_2(tmp_path, source, message):
    """The message names what failed and where."""
    write(tmp_path, {"shop/main": source})
    result = run("check", "shop.main:app", directory=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr


def test_what_a_program_prints_and_starts_is_kept_out_of_the_report(tmp_path):
    """Prints, of C libraries too, go to stderr; a thread that never ends does not keep the check from ending.

    A program that reads its arguments has none.
    """
    write(
        tmp_path,
        {
            "main": """
            import argparse, os, threading
            argparse.ArgumentParser().parse_args()
            print("hello")
            os.write(1, b"hello from C\\n")
            threading.Thread(target=threading.Event().wait).start()
            """
        },
    )
    result = run("check", "--json", "main", directory=tmp_path)
    assert json.loads(result.stdout)["findings"] == []
    assert sorted(result.stderr.splitlines()) == ["hello", "hello from C"]


# -- layouts of real programs, in which there is nothing to find ------------------------------------------------------

FASTAPI = {
    "app/signals": "from asignals import signal\n@signal\ndef order_paid(sender: object, *, number: int) -> None: ...",
    "app/receivers/__init__": "from app.receivers import mail, stock",
    "app/receivers/mail": "from app.signals import order_paid\n@order_paid.connect\nasync def send_mail(number): ...",
    "app/receivers/stock": """
    from asignals import receiver
    from ..signals import order_paid
    @receiver(order_paid, sender='web')
    def book(number, **_): ...
    """,
    "app/routers/orders": """
    from fastapi import APIRouter, BackgroundTasks
    from app.signals import order_paid

    router = APIRouter()

    @router.post("/orders")
    async def order(tasks: BackgroundTasks):
        await order_paid.send("web", number=1)
        tasks.add_task(order_paid.send, "web", number=2)
        return {}
    """,
    "app/db/session": "def make(): ...",
    "app/main": """
    from contextlib import asynccontextmanager
    from fastapi import FastAPI
    from asignals.asgi import SignalMiddleware, request_finished
    from app.routers import orders

    @asynccontextmanager
    async def lifespan(app):
        import app.receivers
        yield

    def create_app() -> FastAPI:
        app = FastAPI(lifespan=lifespan)
        app.add_middleware(SignalMiddleware)
        app.include_router(orders.router)
        return app

    app = create_app()

    @request_finished.connect
    def log(status): ...
    """,
    "tests/test_orders": "from app.signals import order_paid\norder_paid.connect(print)",
    "scripts/backfill": "from app.signals import order_paid\norder_paid.connect(print)",
}
LITESTAR = {
    "signals": "from asignals import Signal\nuser_created = Signal(['user'])\nuser_seen = Signal(['user'])",
    "controllers/users": """
    from litestar import Controller, get
    import signals

    class Users(Controller):
        path = "/users"

        @get()
        async def all(self) -> list[str]:
            await signals.user_created.send(self, user="Ada")
            return []

        @get("/seen")
        async def seen(self) -> None:
            async with signals.user_seen.stream() as events:
                async for event in events:
                    return
    """,
    "listeners": """
    import signals
    @signals.user_created.connect
    async def greet(user):
        await signals.user_seen.send(None, user=user)
    """,
    "main": """
    from litestar import Litestar
    import listeners
    from controllers.users import Users

    app = Litestar([Users])
    """,
    "test_users": "import signals\nsignals.user_seen.connect(print)",
}
WORKER = {
    "src/shop/__init__": "",
    "src/shop/signals": SIGNALS,
    "src/shop/relay": """
    from asignals.relay import Memory, Relay
    from shop.signals import order_paid, order_sent
    import shop.handlers

    relay = Relay(Memory(), "shop")
    relay.receive(order_paid, "order.paid")
    relay.export(order_sent, "order.sent")
    """,
    "src/shop/handlers/__init__": """
    from importlib import import_module
    for name in ('mail',):
        import_module(f'{__name__}.{name}')
    """,
    "src/shop/handlers/mail": """
    from shop.signals import order_paid, order_sent

    class Mailer:
        def __init__(self):
            order_paid.connect(self.mail)
        async def mail(self, amount):
            await order_sent.send(self, number=amount)

    mailer = Mailer()
    """,
    "src/shop/cli": """
    from shop.relay import relay
    async def init():
        await relay.init()
    if __name__ == '__main__':
        init()
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "entries", "needs"),
    [
        (FASTAPI, ["app.main:app"], "fastapi"),
        (FASTAPI, ["app.main:create_app()"], "fastapi"),
        (FASTAPI, ["app.main:create_app", "--factory"], "fastapi"),
        (LITESTAR, ["main:app"], "litestar"),
        (WORKER, ["shop.relay:relay"], "pydantic"),
    ],
    ids=["fastapi", "factory", "factory-option", "litestar", "worker"],
)
def test_there_is_no_false_alarm_in_real_layouts(tmp_path, monkeypatch, files, entries, needs):
    """FastAPI with routers and a lifespan, Litestar with modules beside each other, a worker with a `src` directory."""
    pytest.importorskip(needs)
    write(tmp_path, files)
    directory = tmp_path / "src" if files is WORKER else tmp_path
    (tmp_path / "src" / "__init__.py").unlink(missing_ok=True)
    status, findings, _ = check(directory, *entries)
    assert (status, findings) == (0, [])


def test_there_is_no_false_alarm_in_the_demo():
    """The pizza shop."""
    pytest.importorskip("aiosqlite")
    status, findings, _ = check(None, "asignals.demo.shop:asgi")
    assert (status, findings) == (0, [])
