"""A relay as an AsyncAPI document: valid, true of what is written and read, and without passwords."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import decimal
import enum
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import pytest

pytest.importorskip("pydantic")
pytest.importorskip("jsonschema")
pytest.importorskip("msgspec")
pytest.importorskip("hypothesis")

import jsonschema
import msgspec
import pydantic
import pydantic_core
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import TypedDict

from asignals import Signal, signal
from asignals.relay import (
    Envelope,
    Memory,
    MsgspecCodec,
    PydanticCodec,
    Relay,
    engine_from_url,
)
from asignals.relay.asyncapi import compare, document
from asignals.relay.asyncapi._fits import Fit

IS_REQUIRED = bool(os.environ.get("ASIGNALS_REQUIRE_SERVICES"))
PARSER = "@asyncapi/parser@3.6.6"


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Line:
    name: str
    price: decimal.Decimal = decimal.Decimal(1)
    tags: list[str] = dataclasses.field(default_factory=list)


class Node(pydantic.BaseModel):
    value: int
    next: Node | None = None


class Written(pydantic.BaseModel):
    """Another name on the wire, in both directions."""

    model_config = pydantic.ConfigDict(validate_by_name=True, serialize_by_alias=True)
    unit_price: int = pydantic.Field(alias="unitPrice")


class Taken(pydantic.BaseModel):
    """Another name that is only read."""

    model_config = pydantic.ConfigDict(validate_by_name=True)
    unit_price: int = pydantic.Field(alias="unitPrice")


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    number: Annotated[int, pydantic.Field(ge=0)] = 0


class Address(TypedDict):
    street: str
    floor: NotRequired[int]


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"


Pet = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]


@signal
def order_paid(  # noqa: PLR0913  one argument of each kind
    sender: str,
    *,
    number: int,
    lines: list[Line],
    node: Node,
    address: Address,
    pet: Pet,
    when: dt.datetime,
    id: uuid.UUID,  # noqa: A002  a usual name
    color: Color,
    pair: tuple[int, str],
    either: Literal["a", 1] | None = None,
    anything: Any = None,
    session: Any = None,
) -> None:
    """An order was paid.

    Its money is there.
    """


class Own:
    """A codec that nobody knows the schema of."""

    def encode(self, arguments: Any) -> bytes:
        return b""

    def decode(self, body: bytes, version: int) -> dict[str, Any]:
        return {}


named, free, own, dear = (
    Signal(["a", "b"], name="named"),
    Signal(name="free"),
    Signal(name="own"),
    Signal(name="dear <sir>"),
)


def shop(transport: Any = None) -> Relay:
    """Make a relay with everything in it."""
    relay = Relay(transport or Memory(), "shop", sender_codec=(str, str))
    relay.export(order_paid, "order.paid", key="number")
    relay.receive(order_paid, "order.paid", broadcast=True)
    relay.receive(order_paid, "order.paid", version=3, upcasters={2: dict})
    relay.export(named, "named")
    relay.export(free, "free", key=lambda *_: "1")
    relay.export(own, "own", codec=Own())
    relay.export(dear, "own")
    return relay


ENGINES = {
    "jetstream": ("nats://app:hush@nats.example:4222", {"stream": "bus"}),
    "redis": ("redis://:hush@redis.example:6379/2", {"prefix": "bus"}),
    "sentinel": ("redis+sentinel://:hush@one.example:1,two.example:2/main/0", {"prefix": "bus"}),
    "rabbitmq": ("amqp://app:hush@rabbit.example/shop", {"name": "bus"}),
    "kafka": ("kafka://one.example:9092,two.example:9092", {"name": "bus", "security_protocol": "SASL_SSL"}),
    "postgres": ("postgresql+asyncpg://app:hush@pg.example:5432/shop", {"schema": "bus"}),
    "sqlite": ("sqlite+aiosqlite:///some/where/bus.db", {}),
    "memory": ("memory://", {}),
}
PLACES = {
    "jetstream": ({("nats", "nats.example:4222", None)}, "bus.order.paid"),
    "redis": ({("redis", "redis.example:6379", "/2")}, "{bus}:events:order.paid"),
    "sentinel": (
        {("redis+sentinel", "one.example:1", "/main/0"), ("redis+sentinel", "two.example:2", "/main/0")},
        "{bus}:events:order.paid",
    ),
    "rabbitmq": ({("amqp", "rabbit.example", "/shop")}, "order.paid"),
    "kafka": (
        {("kafka-secure", "one.example:9092", None), ("kafka-secure", "two.example:9092", None)},
        "bus.order.paid",
    ),
    "postgres": ({("postgresql", "pg.example:5432", "/shop")}, "bus.asignals_event/order.paid"),
    "sqlite": ({("sqlite", "localhost", "/bus.db")}, "asignals_event/order.paid"),
    "memory": (set(), "order.paid"),
}


def engine(name: str) -> Any:
    """Make an engine, which connects to nothing."""
    if name == "kafka":
        pytest.importorskip("confluent_kafka")
    url, options = ENGINES[name]
    return engine_from_url(url, **options)


@pytest.mark.parametrize("name", ENGINES)
def test_servers_and_addresses_are_the_engines_without_passwords(name: str) -> None:
    """Nothing of the URL but protocol, host and what is named there; the addresses are those that the engine uses."""
    made = document(shop(engine(name)))
    servers, address = PLACES[name]
    found = {(each["protocol"], each["host"], each.get("pathname")) for each in made.get("servers", {}).values()}
    assert (found, made["channels"]["order.paid"]["address"]) == (servers, address)
    for secret in ("hush", "app:", "some/where"):
        assert secret not in json.dumps(made)


@pytest.fixture(scope="session")
def parser(request: pytest.FixtureRequest) -> Path:
    """AsyncAPI's parser, which npm installs into pytest's cache the first time."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        reason = f"AsyncAPI's parser, which validates the document, needs {' and '.join(missing)}"
        if IS_REQUIRED:
            pytest.fail(reason)
        pytest.skip(reason)
    cache = getattr(request.config, "cache", None)  # none with `-p no:cacheprovider`
    folder = cache.mkdir("asyncapi-parser") if cache else Path(__file__).parent.parent / ".cache" / "asyncapi-parser"
    folder.mkdir(parents=True, exist_ok=True)
    modules = folder / "node_modules"
    if not (modules / "@asyncapi" / "parser").is_dir():
        making = modules.with_name(f"making-{os.getpid()}")
        making.mkdir(exist_ok=True)
        command = ["npm", "install", "--prefix", str(making), "--no-audit", "--no-fund", "--ignore-scripts", PARSER]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603  npm
        if done.returncode == 0:
            with contextlib.suppress(OSError):  # another process of the tests was first
                (making / "node_modules").rename(modules)
        shutil.rmtree(making, ignore_errors=True)
        if done.returncode != 0:
            pytest.skip(f"the document is not validated: npm does not get {PARSER}: {done.stderr.strip()[-300:]}")
    return modules


@pytest.mark.slow
def test_it_is_valid_by_asyncapis_own_parser(parser: Path) -> None:
    """Schema and rules of AsyncAPI 3.0, on every engine, with every kind of argument."""
    names = [name for name in ENGINES if name != "kafka" or importlib.util.find_spec("confluent_kafka")]
    done = subprocess.run(  # noqa: S603  our own script
        [str(shutil.which("node")), str(Path(__file__).with_name("asyncapi_validate.js"))],
        input=json.dumps({name: json.dumps(document(shop(engine(name)))) for name in names}),
        env={**os.environ, "NODE_PATH": str(parser)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {name: [] for name in names}


def test_every_reference_leads_somewhere_and_every_schema_is_one() -> None:
    """By the library `jsonschema`, for those who have no npm."""
    made = document(shop())

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                found: Any = made
                for step in value["$ref"].removeprefix("#/").split("/"):
                    found = found[step]
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(made)
    for message in made["components"]["messages"].values():
        jsonschema.Draft7Validator.check_schema(message["headers"])
        jsonschema.Draft7Validator.check_schema(message.get("payload", {}))
    for schema in made["components"]["schemas"].values():
        jsonschema.Draft7Validator.check_schema(schema)


def test_what_it_says_of_messages() -> None:
    """Docstrings, keys, versions, sender codecs, what does not cross, broadcasts, and codecs without a schema."""
    made = document(shop(), version="1.2.3")
    messages, operations = made["components"]["messages"], made["operations"]
    assert (made["asyncapi"], made["info"]["title"], made["info"]["version"]) == ("3.0.0", "shop", "1.2.3")
    sent = messages["send.order.paid"]
    assert (sent["name"], sent["summary"]) == (f"{__name__}.order_paid", "An order was paid.")
    assert sent["description"] == "An order was paid.\n\nIts money is there."
    assert "session" not in sent["payload"]["properties"]
    assert "either" in sent["payload"]["required"]
    assert "either" not in messages["receive.order.paid"]["payload"]["required"]
    assert sent["x-asignals"]["key"] == "number"
    assert sent["headers"]["required"] == ["key"]
    assert sent["x-asignals"]["senderCodec"].endswith("str")
    assert messages["send.free"]["x-asignals"]["key"].endswith("<lambda>()")
    assert messages["receive.order.paid"]["headers"]["properties"]["version"] == {"maximum": 3, "minimum": 2}
    assert messages["send.named"]["payload"] == {
        "type": "object",
        "properties": {"a": {}, "b": {}},
        "required": ["a", "b"],
    }
    assert messages["send.free"]["payload"] == {"type": "object"}
    assert "payload" not in messages["send.own"]
    assert "Own gives no schema of the payload: it has no method" in messages["send.own"]["description"]
    assert messages["send.own.dear__sir_"]["payload"] == {"type": "object"}
    assert {name: each["action"] for name, each in operations.items() if "order" in name} == {
        "send.order.paid": "send",
        "receive.order.paid": "receive",
        "broadcast.order.paid": "receive",
    }
    assert operations["broadcast.order.paid"]["tags"] == [{"name": "broadcast"}]
    assert "tags" not in operations["receive.order.paid"]


def test_what_is_exported_no_more_is_not_in_it() -> None:
    """The document is of now."""
    relay = shop()
    relay.stop_exporting(free)
    assert "free" not in document(relay)["channels"]


def test_the_headers_are_the_envelopes_fields() -> None:
    """Each field of `Envelope` but the body, and an envelope that is full of them is valid."""
    made = document(shop())
    schema = made["components"]["schemas"]["asignals.envelope"]
    fields = {field.name for field in dataclasses.fields(Envelope)} - {"body"}
    assert set(schema["properties"]) == fields
    least = Envelope("order.paid", b"{}", origin="shop/one", key="7")
    full = dataclasses.replace(
        least,
        hops=1,
        sender="web",
        target="shop",
        traceparent="00-1-1-01",
        repeats="a",
        done=("m.f",),
        tracestate="a=b",
        baggage="c=d",
    )
    for envelope in (least, full):
        header = json.loads(envelope.encode().partition(b"\n")[0])
        validator("send.order.paid", made, "headers").validate(header)
    assert set(header) == fields
    with pytest.raises(jsonschema.ValidationError):
        validator("send.order.paid", made, "headers").validate({**header, "version": 2})


def validator(message: str, made: dict[str, Any], part: str = "payload") -> Any:
    """Make a validator of a message's payload, or headers."""
    return jsonschema.Draft7Validator(
        {"$ref": f"#/components/messages/{message}/{part}", "components": made["components"]}
    )


# -- true of what is written and read --------------------------------------------------------------------------------

PLAIN: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers(-5, 5)),
    (bool, st.booleans()),
    (float, st.floats(-9, 9)),
    (str, st.text("ab", max_size=3)),
    (decimal.Decimal, st.decimals(-9, 9, places=2)),
    (dt.datetime, st.datetimes(timezones=st.just(dt.UTC))),
    (dt.date, st.dates()),
    (uuid.UUID, st.uuids()),
    (Color, st.sampled_from(Color)),
    (Literal["red", "blue", "green"], st.sampled_from(["red", "blue", "green"])),
    (Literal["red", 1], st.sampled_from(["red", 1])),
    (Annotated[int, pydantic.Field(ge=0, le=3)], st.integers(0, 3)),
    (Annotated[str, pydantic.Field(min_length=1)], st.text("ab", min_size=1, max_size=3)),
    (Line, st.builds(Line, st.just("pen"), st.decimals(0, 9, places=1), st.lists(st.just("x"), max_size=2))),
    (Node, st.builds(lambda a, b: Node(value=a, next=Node(value=b)), st.integers(0, 9), st.integers(0, 9))),
    (Written, st.builds(lambda a: Written(unitPrice=a), st.integers(0, 9))),
    (Taken, st.builds(lambda a: Taken(unit_price=a), st.integers(0, 9))),
    (Strict, st.builds(Strict, number=st.integers(0, 9))),
    (Address, st.fixed_dictionaries({"street": st.text("ab")}, optional={"floor": st.integers(0, 9)})),
    (Pet, st.sampled_from([Cat(), Dog()])),
    (Any, st.one_of(st.none(), st.integers(), st.text("ab"), st.lists(st.integers(0, 1)))),
]


def wider(inner: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    """Make types of types."""
    return st.one_of(
        inner.map(lambda one: (list[one[0]], st.lists(one[1], max_size=2))),
        inner.map(lambda one: (dict[str, one[0]], st.dictionaries(st.text("ab", max_size=2), one[1], max_size=2))),
        inner.map(lambda one: (one[0] | None, st.one_of(st.none(), one[1]))),
        st.tuples(inner, inner).map(lambda two: (tuple[two[0][0], two[1][0]], st.tuples(two[0][1], two[1][1]))),
        inner.map(lambda one: (tuple[one[0], ...], st.lists(one[1], max_size=2).map(tuple))),
    )


TYPES = st.recursive(st.sampled_from(PLAIN), wider, max_leaves=3)
QUIET = settings(
    max_examples=1_000 if os.environ.get("ASIGNALS_LONG") else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def declared(hints: dict[str, Any], defaults: dict[str, Any] | None = None) -> Signal[..., Any]:
    """Declare a signal, as `@signal` does for a function in a module."""
    inside = ", ".join(f"{name}=None" if name in (defaults or {}) else name for name in hints)
    space: dict[str, Any] = {}
    exec(f"def changed(sender, *, {inside}): ...", space)  # noqa: S102  written here
    space["changed"].__annotations__ = hints
    return signal(space["changed"], name="changed")


def both_ways(relayed: Signal[..., Any], codec: Any = None) -> dict[str, Any]:
    relay = Relay(Memory(), "shop")
    relay.export(relayed, "topic", codec=codec)
    relay.receive(relayed, "topic", codec=codec)
    made = document(relay)
    relay.stop_exporting(relayed)
    return made


@given(TYPES, st.data())
@QUIET
def test_what_is_written_is_valid_by_both_schemas_and_a_document_breaks_nothing_of_itself(
    one: tuple[Any, st.SearchStrategy[Any]], data: st.DataObject
) -> None:
    """For every kind of type: the schema of what is sent, and of what is received, is true of what crosses."""
    hint, values = one
    made = both_ways(declared({"a": hint}))
    written = json.loads(PydanticCodec(TypedDict("T", {"a": hint})).encode({"a": data.draw(values)}))  # type: ignore[operator]  # made when it runs
    validator("send.topic", made).validate(written)
    validator("receive.topic", made).validate(written)
    messages = made["components"]["messages"]
    fit = fitting(made, made)
    assert fit.misfits(messages["send.topic"]["payload"], messages["receive.topic"]["payload"]) == []
    assert compare(made, made) == []
    assert compare(made, json.loads(json.dumps(made))) == []


def fitting(written: dict[str, Any], read: dict[str, Any]) -> Fit:
    from asignals.relay.asyncapi._changes import _Document

    return Fit(_Document(written).resolve, _Document(read).resolve)


@given(TYPES, TYPES, st.data())
@QUIET
def test_what_breaks_nothing_can_be_read(
    old: tuple[Any, st.SearchStrategy[Any]], new: tuple[Any, st.SearchStrategy[Any]], data: st.DataObject
) -> None:
    """Of any two types: where no break is found, the one reads whatever is written as the other."""
    was, now = both_ways(declared({"a": old[0]})), both_ways(declared({"a": new[0]}))
    breaks = {change.readers for change in compare(was, now) if change.is_break}
    codecs = {name: PydanticCodec(TypedDict("T", {"a": hint})) for name, hint in (("old", old[0]), ("new", new[0]))}  # type: ignore[operator]  # as above
    if "old readers, new events" not in breaks:
        codecs["old"].decode(codecs["new"].encode({"a": data.draw(new[1])}))
    if "new readers, old events" not in breaks:
        codecs["new"].decode(codecs["old"].encode({"a": data.draw(old[1])}))


class Struct(msgspec.Struct, rename="camel"):
    unit_price: int
    when: dt.datetime
    node: Struct | None = None


def test_msgspecs_schema_is_that_of_its_codec() -> None:
    """Its own names, and types that refer to themselves."""

    class Arguments(TypedDict):
        a: Struct
        pair: tuple[int, str]

    codec = MsgspecCodec(Arguments)
    made = both_ways(declared({"a": Struct, "pair": tuple[int, str]}, {}), codec)
    written = codec.encode(
        {"a": Struct(1, dt.datetime.now(dt.UTC), Struct(2, dt.datetime.now(dt.UTC))), "pair": (1, "a")}
    )
    validator("send.topic", made).validate(json.loads(written))
    with pytest.raises(jsonschema.ValidationError):
        validator("receive.topic", made).validate({**json.loads(written), "pair": ["a", 1]})
    assert "unitPrice" in json.dumps(made)
    assert compare(made, made) == []


def test_a_codec_of_your_own_may_have_a_schema() -> None:
    """By a method that says what is written, or read."""

    class Told(Own):
        def json_schema(self, *, written: bool) -> dict[str, Any]:
            return {"type": "object", "title": "written" if written else "read"}

    made = both_ways(Signal(["a"]), Told())["components"]["messages"]
    assert [made[f"{kind}.topic"]["payload"]["title"] for kind in ("send", "receive")] == ["written", "read"]


def test_a_type_that_cannot_be_described_is_said_to_be_one() -> None:
    """With pydantic's reason, and all else is described."""

    class Opaque:
        @classmethod
        def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
            return pydantic_core.core_schema.is_instance_schema(cls)

    messages = both_ways(declared({"a": Opaque}))["components"]["messages"]
    assert "payload" not in messages["receive.topic"]
    assert "asignals.relay.PydanticCodec gives no schema" in messages["receive.topic"]["description"]


def test_names_that_mean_two_things_are_kept_apart() -> None:
    """Two types called `Line`, and what is read of one that has defaults, are four schemas."""

    def make(hint: Any) -> Any:
        class Line(pydantic.BaseModel):
            thing: hint = 1

        return Line

    relay = Relay(Memory(), "shop")
    one, two = declared({"line": make(int)}), declared({"line": make(float)})
    for number, each in enumerate((one, two)):
        relay.export(each, f"topic{number}")
        relay.receive(each, f"topic{number}")
    schemas = document(relay)["components"]["schemas"]
    types = {
        name: (each["properties"]["thing"]["type"], "required" in each)
        for name, each in schemas.items()
        if "Line" in name
    }
    assert types == {
        "Line": ("integer", True),
        "send.Line": ("number", True),
        "receive.Line": ("integer", False),
        "receive.topic1.Line": ("number", False),
    }


def test_yaml_without_pyyaml_says_what_to_install(tmp_path: Path) -> None:
    """No extra brings it."""
    (tmp_path / "program.py").write_text(
        "from asignals import Signal\nfrom asignals.relay import Memory, Relay\n"
        "paid = Signal(['n'])\nrelay = Relay(Memory(), 'shop')\nrelay.export(paid, 'paid')\n"
    )
    (tmp_path / "yaml.py").write_text("raise ModuleNotFoundError(name='yaml')\n")
    done = subprocess.run(
        [sys.executable, "-m", "asignals", "relay", "asyncapi", "program:relay", "-o", "api.yaml"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install pyyaml" in " ".join(done.stderr.split())
