"""`asignals relay asyncapi --check`: which change breaks which reader."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("typer")

from typer.testing import CliRunner

from asignals import Signal, signal
from asignals.cli import app
from asignals.relay import Memory, RedisStreams, Relay
from asignals.relay.asyncapi import Change, compare, document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

BOTH = {"old readers, new events", "new readers, old events"}
FORWARD = {"old readers, new events"}
BACKWARD = {"new readers, old events"}

PRELUDE = """\
import dataclasses, datetime as dt, decimal, enum, uuid
from typing import Annotated, Any, Literal, NotRequired
from typing_extensions import TypedDict
import pydantic
class Item(pydantic.BaseModel):
    name: str
    size: int = 1
class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"
"""


def declared(parameters: str, prelude: str = "") -> Signal[..., Any]:
    """Declare a signal of these parameters, as a module of a program does."""
    space: dict[str, Any] = {"__name__": "shop"}
    text = f"{PRELUDE}\n{prelude}\ndef paid(sender: str, *, {parameters}) -> None: ..."
    exec(compile(text, "shop", "exec", dont_inherit=True), space)  # noqa: S102  our own code
    return signal(space["paid"], name="shop.paid")


def written(parameters: str | Signal[..., Any], prelude: str = "", **options: Any) -> dict[str, Any]:
    """Document a service that only sends."""
    relayed = declared(parameters, prelude) if isinstance(parameters, str) else parameters
    relay = Relay(Memory(), "shop")
    relay.export(relayed, "paid", **options)
    made = document(relay)
    relay.stop_exporting(relayed)
    return made


def read(
    parameters: str | Signal[..., Any], prelude: str = "", service: str = "shop", **options: Any
) -> dict[str, Any]:
    """Document a service that only receives."""
    relay = Relay(Memory(), service)
    relay.receive(declared(parameters, prelude) if isinstance(parameters, str) else parameters, "paid", **options)
    return document(relay)


def breaks(changes: list[Change]) -> dict[str, set[str]]:
    """By field, whose reading a break concerns."""
    found: dict[str, set[str]] = {}
    for change in changes:
        if change.is_break:
            found.setdefault(change.field, set()).add(change.readers)
    return found


OLD_BLUE = 'class Color(enum.Enum):\n    RED = "red"'
NO_SIZE = "class Item(pydantic.BaseModel):\n    name: str"
MORE = "class Item(pydantic.BaseModel):\n    name: str\n    size: int = 1\n    weight: int"
FORBIDS = 'class Item(pydantic.BaseModel):\n    model_config = {"extra": "forbid"}\n    name: str\n    size: int = 1'
NUMBERED = "class Item(pydantic.BaseModel):\n    name: int\n    size: int = 1"
TREE = "class Tree(pydantic.BaseModel):\n    value: {}\n    inner: list['Tree'] = []"
LINE = "class Line(pydantic.BaseModel):\n    name: str"
PETS = "\n".join(
    f"class {name.title()}(pydantic.BaseModel):\n    kind: Literal[{name!r}] = {name!r}" for name in ("cat", "dog")
)

CHANGES: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, set[str]]]] = {
    "nothing": (("n: int, x: Any = 1",), ("n: int, x: Any = 1",), {}),
    "one more, with a default": (("n: int",), ("n: int, more: str = 'a'",), {}),
    "one more, needed": (("n: int",), ("n: int, more: str",), {"more": BACKWARD}),
    "one less": (("n: int, m: int",), ("n: int",), {"m": FORWARD}),
    "one less, which has a default": (("n: int, m: int = 1",), ("n: int",), {}),
    "renamed": (("amount: int",), ("cents: int",), {"amount": FORWARD, "cents": BACKWARD}),
    "wider": (("n: int",), ("n: float",), {"n": FORWARD}),
    "narrower": (("n: float",), ("n: int",), {"n": BACKWARD}),
    "another type": (("n: int",), ("n: str",), {"n": BOTH}),
    "may be None": (("n: int",), ("n: int | None",), {"n": FORWARD}),
    "may not be None": (("n: int | None",), ("n: int",), {"n": BACKWARD}),
    "a value more": (("c: Color", OLD_BLUE), ("c: Color",), {"c": FORWARD}),
    "a value less": (("c: Color",), ("c: Color", OLD_BLUE), {"c": BACKWARD}),
    "a literal more": (("c: Literal['a']",), ("c: Literal['a', 'b']",), {"c": FORWARD}),
    "a literal for a string": (("c: str",), ("c: Literal['a', 'b']",), {"c": BACKWARD}),
    "a text for a time": (("t: dt.datetime",), ("t: str",), {"t": FORWARD}),
    "a time for a text": (("t: str",), ("t: dt.datetime",), {"t": BACKWARD}),
    "a number for an id": (("i: uuid.UUID",), ("i: int",), {"i": BOTH}),
    "anything": (("x: Any",), ("x: int",), {"x": BACKWARD}),
    "a new limit": (("n: int",), ("n: Annotated[int, pydantic.Field(ge=0)]",), {"n": BACKWARD}),
    "a limit that is lower": (
        ("n: Annotated[int, pydantic.Field(ge=5)]",),
        ("n: Annotated[int, pydantic.Field(ge=0)]",),
        {"n": FORWARD},
    ),
    "longer": (
        ("s: Annotated[str, pydantic.Field(max_length=5)]",),
        ("s: Annotated[str, pydantic.Field(max_length=9)]",),
        {"s": FORWARD},
    ),
    "one for many": (("n: int",), ("n: list[int]",), {"n": BOTH}),
    "other items": (("n: list[int]",), ("n: list[str]",), {"n[]": BOTH}),
    "other values": (("n: dict[str, int]",), ("n: dict[str, str]",), {"n{}": BOTH}),
    "alternatives with a tag": (
        ("p: Line", LINE),
        ("p: Annotated[Cat | Dog, pydantic.Field(discriminator='kind')]", PETS),
        {"p.kind": BACKWARD, "p.name": FORWARD},
    ),
    "another place of a tuple": (("n: tuple[int, str]",), ("n: tuple[int, int]",), {"n[1]": BOTH}),
    "inside, one with a default less": (("i: Item",), ("i: Item", NO_SIZE), {}),
    "inside, one needed more": (("i: Item",), ("i: Item", MORE), {"i.weight": BACKWARD}),
    "inside, another type": (("i: Item",), ("i: Item", NUMBERED), {"i.name": BOTH}),
    "inside a list": (("i: list[Item | None]",), ("i: list[Item | None]", NUMBERED), {"i[].name": BOTH}),
    "inside itself": (
        ("t: Tree", TREE.format("int")),
        ("t: Tree", TREE.format("str")),
        {"t.value": BOTH},
    ),
    "what refuses more": (("i: Item", FORBIDS), ("i: Item", MORE), {"i.weight": BOTH}),
    "what refuses more, now": (("i: Item", MORE), ("i: Item", FORBIDS), {"i.weight": BOTH}),
    "a TypedDict's key may be absent": (
        ("d: T", "class T(TypedDict):\n    a: int"),
        ("d: T", "class T(TypedDict):\n    a: NotRequired[int]"),
        {"d.a": FORWARD},
    ),
    "a dataclass for a model of the same fields": (
        ("i: Item",),
        ("i: Item", "@dataclasses.dataclass\nclass Item:\n    name: str\n    size: int = 1"),
        {},
    ),
    "a union more": (("x: int | str",), ("x: int | str | None",), {"x": FORWARD}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changes_of_arguments(case: str) -> None:
    """What is sent by new programs, for those who know the old; what old ones sent, for those who know the new."""
    old, new, expected = CHANGES[case]
    assert breaks(compare(written(*old), written(*new))) == expected
    assert breaks(compare(read(*old), read(*new))) == expected


@pytest.mark.parametrize("case", CHANGES)
def test_the_way_back_is_the_same_the_other_way_round(case: str) -> None:
    """A rollback: what breaks old readers one way breaks new readers the other."""
    old, new, expected = CHANGES[case]
    turned = {field: {next(iter(BOTH - {each})) for each in sides} for field, sides in expected.items()}
    assert breaks(compare(written(*new), written(*old))) == turned


def test_a_default_that_goes() -> None:
    """`send` has always filled it in; but who receives from others does not know that they do."""
    assert compare(written("n: int = 1"), written("n: int")) == []
    assert breaks(compare(read("n: int = 1"), read("n: int"))) == {"n": BACKWARD}


def test_money_is_written_as_text_and_read_from_numbers_too() -> None:
    """So a relay that does both can read what it sent as a float."""
    relays = [Relay(Memory(), "shop"), Relay(Memory(), "shop")]
    for relay, parameters in zip(relays, ("m: float", "m: decimal.Decimal"), strict=True):
        relay.receive(paid := declared(parameters), "paid")
        relay.export(paid, "paid")
        relay.paid = paid  # type: ignore[attr-defined]  # kept alive
    assert breaks(compare(*map(document, relays))) == {"m": FORWARD}


def kinds(changes: list[Change]) -> set[tuple[str, bool]]:
    return {(change.kind, change.is_break) for change in changes}


def to_2(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments


def test_a_version_and_an_upcaster_mend_it() -> None:
    """The reader has upcasters; who sends alone is told of those that others need; deployment's order is said."""
    old = read("n: int")
    assert ("type-changed", True) in kinds(compare(old, read("n: str", version=2)))
    mended = compare(old, read("n: str", version=2, upcasters={1: to_2}))
    assert kinds(mended) == {("version-raised", False)}
    assert "deploy the readers first" in mended[0].advice
    assert kinds(compare(written("n: int"), written("n: str", version=2))) == {("version-raised", False)}
    late = compare(read("n: int"), read("n: str", version=3, upcasters={2: to_2}))
    assert ("version-refused", True) in kinds(late)


def test_a_version_that_is_lowered_is_a_break() -> None:
    """What was sent as version 2 is left to instances that there will not be."""
    changes = compare(written("n: int", version=2), written("n: int"))
    assert ("version-lowered", True) in kinds(changes)


def test_topics_that_go() -> None:
    """One that is sent no more, one that is received no more, and a broadcast, which leaves nothing behind."""
    empty = document(Relay(Memory(), "shop"))
    gone = compare(written("n: int"), empty)
    assert (kinds(gone), gone[0].readers, gone[0].topic) == (
        {("topic-removed", True)},
        "old readers, new events",
        "paid",
    )
    assert kinds(compare(read("n: int"), empty)) == {("topic-not-received", True)}
    assert kinds(compare(read("n: int", broadcast=True), empty)) == {("topic-not-received", False)}
    assert compare(empty, written("n: int")) == []


def test_keys() -> None:
    """Another key or none breaks the order of those who rely on it; a first one breaks nothing."""
    plain, by_n, by_m = (written("n: int, m: int", key=key) for key in (None, "n", "m"))
    assert kinds(compare(by_n, by_m)) == kinds(compare(by_n, plain)) == {("key-changed", True)}
    assert kinds(compare(plain, by_n)) == {("key-changed", False)}
    assert compare(by_n, by_n) == []


def test_codecs_without_a_schema() -> None:
    """Another one is a break, as nobody can tell; of the same one it is said that nothing was compared."""

    class One:
        def encode(self, arguments: Any) -> bytes:
            return b""

        def decode(self, body: bytes, version: int) -> dict[str, Any]:
            return {}

    class Two(One): ...

    plain, one, two = written(Signal(["n"])), written(Signal(["n"]), codec=One()), written(Signal(["n"]), codec=Two())
    assert kinds(compare(one, two)) == kinds(compare(plain, one)) == {("codec-changed", True)}
    assert kinds(compare(one, one)) == {("not-compared", False)}


def test_a_sender_that_is_written_otherwise_is_noted() -> None:
    """Only its author knows whether the texts are the same."""
    one, two = written("n: int"), written("n: int", sender_codec=(repr, str))
    assert kinds(compare(one, two)) == {("sender-codec-changed", False)}


def test_an_address_that_moves_is_a_break_and_another_engine_is_not() -> None:
    """A developer's machine has another engine than production."""

    def at(prefix: str) -> dict[str, Any]:
        relay = Relay(RedisStreams("redis://127.0.0.1:1", prefix=prefix), "shop")
        paid = Signal(["n"])
        relay.export(paid, "paid")
        return document(relay)

    assert kinds(compare(at("one"), at("two"))) == {("address-changed", True)}
    assert compare(at("one"), written(Signal(["n"], name="paid"))) == compare(at("one"), at("one")) == []


def test_signals_without_types() -> None:
    """Names are compared, where they are declared."""
    assert breaks(compare(written(Signal(["a", "b"])), written(Signal(["a", "c"])))) == {"b": FORWARD, "c": BACKWARD}
    assert breaks(compare(written(Signal(["a"])), written(Signal()))) == {"a": FORWARD}
    assert breaks(compare(written(Signal()), written(Signal()))) == {}


def test_another_services_document_is_a_contract() -> None:
    """Only what the one sends and the other receives is compared: nothing else of the two is the other's business."""
    billing = read("n: int, more: int = 1", service="billing")
    assert compare(billing, written("n: int, less: str")) == []
    assert breaks(compare(billing, written("n: str"))) == {"n": FORWARD}
    assert breaks(compare(written("n: str"), billing)) == {"n": BACKWARD}


@pytest.mark.parametrize("what", [{}, [], "text", {"asyncapi": "2.6.0"}, {"asyncapi": "3.0.0", "operations": {"a": 1}}])
def test_what_is_no_document_is_refused(what: Any) -> None:
    """With a word on why."""
    with pytest.raises(ValueError, match="AsyncAPI"):
        compare(what, written("n: int"))


# -- the command -----------------------------------------------------------------------------------------------------

PROGRAM = """\
from asignals import signal
from asignals.relay import Memory, Relay


@signal
def order_paid(sender: str, *, number: int, {argument}) -> None:
    \"\"\"An order was paid.\"\"\"


relay = Relay(Memory(), "shop")
relay.export(order_paid, "order.paid")
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run the command in this process, beside a program that is imported anew each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(*arguments: str) -> Result:
        sys.modules.pop("shop", None)
        gc.collect()  # the signals of the program that ran before
        importlib.invalidate_caches()
        return CliRunner().invoke(app, ["relay", "asyncapi", "shop:relay", *arguments])

    yield run
    sys.modules.pop("shop", None)
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("name", ["api.json", "api.yaml"])
def test_the_command_names_signal_topic_field_and_place_and_says_what_to_do(
    tmp_path: Path, run: Callable[..., Result], name: str
) -> None:
    """Status 1 on a break, 0 on none; a file's name says its format."""
    if name.endswith(".yaml"):
        pytest.importorskip("yaml")
    program = tmp_path / "shop.py"
    program.write_text(PROGRAM.format(argument="amount: float"))
    assert run("-o", name).exit_code == 0
    same = run("--check", name)
    assert (same.exit_code, same.stdout, same.stderr) == (0, f"0 breaks, 0 notes, compared with {name}\n", "")
    program.write_text(PROGRAM.format(argument="cents: int"))
    broken = run("--check", name)
    assert broken.exit_code == 1
    place, what = "shop.py:5", "field-missing: shop.order_paid, topic 'order.paid'"
    assert broken.stdout.splitlines() == [
        f"{place}: break (old readers, new events) {what}, field 'amount': it is demanded, and not written",
        "    to do: keep it, or raise it to version=2, and receive with version=2, upcasters={1: …}",
        f"{place}: break (new readers, old events) {what}, field 'cents': it is demanded, and not written",
        "    to do: give it a default, or raise it to version=2, and receive with version=2, upcasters={1: …}",
        f"2 breaks, 0 notes, compared with {name}",
    ]


def test_an_old_document_may_be_written_over(tmp_path: Path, run: Callable[..., Result]) -> None:
    """It is compared first."""
    program = tmp_path / "shop.py"
    program.write_text(PROGRAM.format(argument="amount: float"))
    run("-o", "api.json")
    program.write_text(PROGRAM.format(argument="cents: int"))
    assert run("-o", "api.json", "--check", "api.json").exit_code == 1
    assert run("-o", "api.json", "--check", "api.json").exit_code == 0


def test_the_command_writes_json_to_stdout(tmp_path: Path) -> None:
    """Nothing else, so that it can be piped."""
    (tmp_path / "shop.py").write_text(PROGRAM.format(argument="amount: float"))
    done = subprocess.run(
        [sys.executable, "-m", "asignals", "relay", "asyncapi", "shop:relay"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["channels"]["order.paid"]["address"] == "order.paid"


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_an_old_document_that_cannot_be_read_is_status_2(
    tmp_path: Path, run: Callable[..., Result], text: str | None
) -> None:
    """Missing, no JSON, or no document: never taken for one without breaks."""
    (tmp_path / "shop.py").write_text(PROGRAM.format(argument="amount: float"))
    if text is not None:
        (tmp_path / "old.json").write_text(text)
    done = run("--check", "old.json")
    assert done.exit_code == 2
    assert "Traceback" not in done.stderr
    assert isinstance(done.exception, SystemExit)
