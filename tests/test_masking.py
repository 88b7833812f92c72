"""Secrets in many wrappings, names as people write them, and values that are hostile: none leaks, none takes long."""

import array
import collections
import dataclasses
import datetime as dt
import decimal
import fractions
import functools
import http.cookies
import io
import itertools
import json
import logging
import os
import pathlib
import random
import string
import time
import types
import urllib.parse
import weakref

import pytest

from asignals import Signal
from asignals.masking import MASK, MaskingFilter, is_secret_name, redacted
from asignals.overview.values import Shower

SECRET = "hUnt3r2x"  # noqa: S105  to be masked
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\nAB{SECRET}==\n-----END RSA PRIVATE KEY-----"
JWT = f"eyJhbGciOiJIUzI1NiJ9.eyJ{SECRET}.abc-{SECRET}"

show = Shower()


@pytest.mark.parametrize(
    "name",
    [
        *(
            [
                "password",
                "PASSWORD",
                "Password",
                "userPassword",
                "passwd",
                "pwd",
                "pass",
                "db_pass",
                "dbPass",
                "DB_PASS",
                "passphrase",
                "passcode",
            ]
        ),
        *(
            [
                "token",
                "access_token",
                "accessToken",
                "refreshToken",
                "X-Auth-Token",
                "csrf_token",
                "csrfToken",
                "jwt",
                "JWT",
                "id_jwt",
            ]
        ),
        *(
            [
                "secret",
                "client_secret",
                "clientSecret",
                "SECRET_KEY",
                "secretKey",
                "signing_key",
                "signingKey",
                "SIGNING-KEY",
            ]
        ),
        *(
            [
                "privateKey",
                "private_key",
                "PrivateKey",
                "private-key",
                "privatekey",
                "apiKey",
                "api_key",
                "APIKey",
                "X-API-Key",
                "apikey",
            ]
        ),
        *(
            [
                "otp",
                "otp_code",
                "totp",
                "pin",
                "user_pin",
                "cvv",
                "cvc",
                "cvv2",
                "ssn",
                "iban",
                "card_number",
                "cardNumber",
                "creditCard",
                "credit_card",
            ]
        ),
        *(
            [
                "Authorization",
                "Proxy-Authorization",
                "Cookie",
                "Set-Cookie",
                "sessionid",
                "session_id",
                "sessionId",
                "sid",
                "session_key",
            ]
        ),
        *(
            [
                "credentials",
                "aws_secret_access_key",
                "AWS_ACCESS_KEY_ID",
                "encryption_key",
                "encryptionKey",
                "salt",
                "signature",
            ]
        ),
        *(
            [
                "bearer",
                "auth",
                "basic_auth",
                "securityCode",
                "security_code",
                "mnemonic",
                "seedPhrase",
                "recovery_code",
                "hmacKey",
            ]
        ),
        b"authorization",
    ],
)
def test_a_secret_is_known_by_its_name_as_people_write_it(name):
    """Snake, camel, kebab and upper case, abbreviations, prefixes."""
    assert is_secret_name(name)
    assert show.arguments({str(name): "x"}) == {str(name): MASK} or isinstance(name, bytes)


@pytest.mark.parametrize(
    "name",
    [
        "name",
        "author",
        "authored",
        "key",
        "keys",
        "public_key",
        "passenger",
        "passed",
        "compass",
        "spin",
        "opinion",
        "shopping",
        "sender",
        "topic",
        "sort_key",
        "primary_key",
        "amount",
        "size",
        "signal",
        "session",
        "number",
        "description",
        "desk",
        "monkey",
        "pinned",
        "tokyo",
    ],
)
def test_what_only_looks_like_such_a_name_is_shown(name):
    """Words are compared, not letters."""
    assert not is_secret_name(name)


@dataclasses.dataclass
class Card:
    owner: str
    password: str


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    owner: str
    api_key: str


class Login(collections.namedtuple("Login", "user password")):  # noqa: PYI024  as users write them
    __slots__ = ()


class Redacted:
    def __init__(self):
        self.value = SECRET

    def __repr__(self):
        return f"Redacted({self.value})"


class Plain:
    def __init__(self):
        self.password = SECRET
        self.inner = {"a": SECRET}


class Token(str):
    __slots__ = ()


class MyDict(dict):
    pass


class MyList(list):
    def __repr__(self):
        return f"MyList({SECRET})"


def foreign():
    """What other libraries wrap a secret in, as far as they are installed."""
    wrapped = {}
    try:
        import attrs

        wrapped["attrs"] = attrs.make_class("A", ["user", "password"])("me", SECRET)
        wrapped["attrs slots"] = attrs.make_class("A", ["user", "api_key"], slots=True, frozen=True)("me", SECRET)
        hidden = {"user": attrs.field(), "note": attrs.field(repr=False)}
        wrapped["attrs without repr"] = attrs.make_class("A", hidden)("me", SECRET)
    except ImportError:
        pass
    try:
        import pydantic

        model = pydantic.create_model("M", user=(str, ...), db_pass=(str, ...))
        wrapped["pydantic"] = model(user="me", db_pass=SECRET)
        hidden = pydantic.create_model("M", user=(str, ...), note=(str, pydantic.Field(repr=False)))
        wrapped["pydantic without repr"] = hidden(user="me", note=SECRET)
        open_ = pydantic.create_model("M", __config__=pydantic.ConfigDict(extra="allow"), user=(str, ...))
        wrapped["pydantic extra"] = open_(user="me", password=SECRET)
        wrapped["pydantic SecretStr"] = pydantic.SecretStr(SECRET)
        wrapped["pydantic nested"] = [model(user="me", db_pass=SECRET)]
    except ImportError:
        pass
    try:
        import msgspec

        wrapped["msgspec"] = msgspec.defstruct("S", ["user", "jwt"])("me", SECRET)
    except ImportError:
        pass
    try:
        from sqlalchemy.engine import make_url

        wrapped["sqlalchemy URL"] = make_url(f"postgresql://me:{SECRET}@db/shop")
    except ImportError:
        pass
    try:
        from starlette.datastructures import Headers, QueryParams

        wrapped["starlette headers"] = Headers({"authorization": SECRET})
        wrapped["starlette query"] = QueryParams(f"token={SECRET}")
    except ImportError:
        pass
    try:
        import httpx

        wrapped["httpx headers"] = httpx.Headers({"authorization": f"Token {SECRET}"})
        wrapped["httpx URL"] = httpx.URL(f"https://me:{SECRET}@host/")
        wrapped["httpx request"] = httpx.Request("GET", f"https://me:{SECRET}@host/?token={SECRET}")
    except ImportError:
        pass
    return wrapped


cookie = http.cookies.SimpleCookie()
cookie["sessionid"] = SECRET

WRAPPED = {
    "dict": {"password": SECRET},
    "nested dict": {"user": {"login": {"apiKey": SECRET}}},
    "list of dicts": [{"id": 1}, {"access_token": SECRET}],
    "bytes key": {b"Cookie": SECRET.encode()},
    "OrderedDict": collections.OrderedDict(user="me", password=SECRET),
    "defaultdict": collections.defaultdict(str, {"secret": SECRET}),
    "ChainMap": collections.ChainMap({"password": SECRET}, {}),
    "UserDict": collections.UserDict(password=SECRET),
    "UserList": collections.UserList([{"password": SECRET}]),
    "mappingproxy": types.MappingProxyType({"password": SECRET}),
    "SimpleNamespace": types.SimpleNamespace(user="me", password=SECRET),
    "dict subclass": MyDict(password=SECRET),
    "list subclass": MyList([SECRET]),
    "namedtuple": Login("me", SECRET),
    "list of namedtuples": [Login("me", SECRET)],
    "dataclass": Card("me", SECRET),
    "slotted dataclass": Slotted("me", SECRET),
    "dataclass in dict in list": [{"card": Card("me", SECRET)}],
    "own repr": Redacted(),
    "no repr": Plain(),
    "class of a name": Token(SECRET),
    "pair": ("password", SECRET),
    "pairs": [(b"host", b"x"), (b"authorization", f"Bearer {SECRET}".encode())],
    "list pair": ["X-Api-Key", SECRET],
    "pair of many": ("set-cookie", "a=1", f"b={SECRET}"),
    "deque": collections.deque([{"password": SECRET}]),
    "frozenset": frozenset({("password", SECRET)}),
    "name and value": {"name": "password", "value": SECRET},
    "key and value": [{"key": "API_KEY", "value": SECRET}],
    "json": json.dumps({"user": "me", "password": SECRET}),
    "json list": json.dumps([["token", SECRET], {"jwt": SECRET}]),
    "json in json": json.dumps({"body": json.dumps({"otp": SECRET})}),
    "json in json in json": json.dumps([json.dumps({"body": json.dumps({"signing_key": SECRET})})]),
    "json bytes": json.dumps({"privateKey": SECRET}).encode(),
    "json with newlines": json.dumps({"db_pass": SECRET}, indent=2),
    "json that is cut": json.dumps({"db_pass": SECRET})[:-1],
    "header": f"Authorization: Token {SECRET}",
    "header bearer": f"GET / HTTP/1.1\r\nHost: x\r\nauthorization: Bearer {SECRET}\r\n\r\n",
    "header digest": f'Authorization: Digest username="me", response="{SECRET}"',
    "header bytes": f"Proxy-Authorization: Basic {SECRET}".encode(),
    "cookies": f"Cookie: theme=dark; session={SECRET}",
    "second cookie": f"theme=dark; sessionid={SECRET}; lang=en",
    "cookie of a dict": {"cookies": {"theme": SECRET}},
    "set-cookie": f"Set-Cookie: a=1\nSet-Cookie: b={SECRET}; Path=/",
    "SimpleCookie": cookie,
    "PEM": PEM,
    "PEM bytes": PEM.encode(),
    "PEM in dict": {"file": PEM},
    "PEM in JSON": json.dumps({"file": PEM}),
    "PEM that is cut": PEM[: PEM.index("-----END")],
    "JWT": f"the answer was {JWT}",
    "URL": f"postgresql://me:{SECRET}@db/shop",
    "URL with a slash": f"postgresql://me:a/{SECRET}@db/shop",
    "URL with an at": f"amqp://me:a@{SECRET}@db/shop",
    "URL with a colon": f"redis://:a:{SECRET}@db/0",
    "URL with a query": f"https://api/x?id=1&api_key={SECRET}&b=2",
    "URL in a text": f"cannot reach redis://me:{SECRET}@cache:6379/0 now",
    "split URL": urllib.parse.urlsplit(f"https://me:{SECRET}@host/"),
    "login": f"me:{SECRET}@host",
    "keyword": f"login failed for password={SECRET}, retrying",
    "keyword in quotes": f"User(name='me', password='{SECRET} {SECRET}')",
    "keyword in escaped quotes": repr(f"User(password='a \"{SECRET}')"),
    "keyword with a list": f"tokens=['a', '{SECRET}'] and more",
    "keyword with a call": f"secret=SecretStr('{SECRET}')",
    "yaml": f"host: x\npassword: two {SECRET}\nport: 1",
    "environment": f"PATH=/bin\nAWS_SECRET_ACCESS_KEY={SECRET}\nHOME=/",
    "repr of a dict": repr({"headers": {"Cookie": f"a=1; b={SECRET}"}}),
    "repr of a repr": repr(repr({"password": SECRET})),
    "exception": ValueError(f"bad password={SECRET}"),
    "exception with a dict": KeyError({"password": SECRET}),
    "exception group": ExceptionGroup("x", [ValueError(f"token={SECRET}")]),
    "partial": functools.partial(print, SECRET),
    "bytearray": bytearray(f"password={SECRET}", "ascii"),
    "UserString": collections.UserString(f"password={SECRET}"),
    "bearer": f"sent Bearer {SECRET} to x",
    "stripe": "sk_live_" + SECRET * 3,
    "github": "ghp_" + SECRET * 4,
    "aws": f"AKIA{'A' * 16} {{'secret': '{SECRET}'}}",
    "names and values by turns": ["Host", "x", "Authorization", SECRET],
    "login of three": ("login", "password", SECRET),
    "arguments of an exception": ValueError("password", SECRET),
    "command": ["psql", "--password", SECRET],
    "command with an equals sign": ["psql", f"--password={SECRET}"],
    "command as a text": f"psql --password {SECRET} -h x",
    "URL with a token alone": f"nats://{SECRET}@host:4222",
    "URL with a long password": f"postgresql://me:{'y' * 1_200}{SECRET}@db/shop",
    "XML": f"<login><Password type='x'>{SECRET}</Password></login>",
    "yaml block": f"db:\n  password: |\n    {SECRET}\n    {SECRET}\n  port: 1",
    "yaml that is indented": f"db:\n  password: two {SECRET}\n  port: 1",
    "triple quotes": f'[db]\npassword = """\n{SECRET}\n"""',
    "wide equals sign": f"password          =          {SECRET}",
    "SQL": f"ALTER USER me PASSWORD '{SECRET}'",
    "name of two words": f"wrong API key: {SECRET}",
    "bearer in small letters": f"sent bearer {SECRET} to x",
    "npm": "npm_" + SECRET * 5,
    "short name": {"dbpwd": SECRET},
    **foreign(),
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_no_secret_leaks_from_its_wrapping(wrapping):
    """Shown as a value, in a container, and as the text of either; whole values are masked, and it takes no time."""
    value = WRAPPED[wrapping]
    for shower in (show, Shower(60), Shower(2_000)):
        for each in (value, [value], {"x": value}, (1, [value])):
            assert SECRET not in shower(each)
    if type(value) is str:
        assert SECRET not in show.clean(value)
        assert SECRET not in show.clean(f"ValueError: {value}\n  and more", 1000)
        assert SECRET not in redacted(value)


def test_there_are_sixty_of_them():
    """As many as were asked for."""
    assert len(WRAPPED) >= 60


def test_what_is_no_secret_stays():
    """Masking leaves the rest of a value readable."""
    assert show({"user": "me", "password": SECRET}) == f"{{'user': 'me', 'password': {MASK}}}"
    assert show(WRAPPED["URL with an at"]) == f"'amqp://me:{MASK}@db/shop'"
    assert show(WRAPPED["second cookie"]) == f"'theme=dark; sessionid={MASK}; lang=en'"
    assert show(WRAPPED["keyword"]) == f"'login failed for password={MASK}, retrying'"
    assert show(WRAPPED["json"]) == f"""'{{"user": "me", "password": "{MASK}"}}'"""
    assert show(WRAPPED["namedtuple"]) == f"Login(user='me', password={MASK})"
    for text in ("https://x/y?a=b", "a: b, c=d", "12:30:00", "me@example.org", "x = {'a': 1}", "'a', 'b'"):
        assert show(text) == repr(text)


# -- hostile values --------------------------------------------------------------------------------------------------


def _raise(*_, **__):
    raise RuntimeError(SECRET)


def _sleep(*_, **__):
    time.sleep(5)
    return SECRET


def _kind(name, bases=(), **members):
    return type(name, bases, members)


MILLION = 1_000_000


@functools.cache
def hostile():
    """More than two hundred values that are long, deep, slow, rude or liars."""
    loop = []
    loop.append(loop)
    knot = {}
    knot["knot"] = [knot]
    deep = []
    for _ in range(5_000):
        deep = [deep]
    values = {
        "loop": loop,
        "knot": knot,
        "deep": deep,
        "long text": "x" * 10 * MILLION,
        "long bytes": b"x" * 10 * MILLION,
        "long bytearray": bytearray(10 * MILLION),
        "memoryview": memoryview(bytes(MILLION)),
        "long JSON": json.dumps(list(range(MILLION // 5))),
        "deep JSON": "[" * 9_000 + "]" * 9_000,
        "almost JSON": "{" * 9_000,
        "brackets": "token=" + "(" * 9_000,
        "equals": "=" * 9_000,
        "quotes": "password='" * 1_000,
        "names": "a" * 9_000 + "=",
        "many names": "a=1 " * 2_500,
        "many secrets": "pin=1 " * 2_000,
        "colons": "://" * 3_000,
        "logins": "a:b@" * 2_500,
        "ats": "a://b:" + "@" * 9_000,
        "begins": "-----BEGIN X-----" * 600,
        "JWTs": "eyJ" * 3_000,
        "backslashes": "\\" * 9_000 + "'",
        "commas": "'a', " * 2_000,
        "spaces": "token = " + " " * 9_000,
        "huge int": 1 << 3_000_000,
        "negative int": -(1 << 100_000),
        "list": list(range(MILLION)),
        "dict": dict.fromkeys(range(MILLION)),
        "set": set(range(MILLION)),
        "tuple": tuple(range(MILLION)),
        "deque": collections.deque(range(MILLION)),
        "Counter": collections.Counter(range(100_000)),
        "OrderedDict": collections.OrderedDict.fromkeys(range(100_000)),
        "array": array.array("q", range(MILLION)),
        "UserList": collections.UserList(range(MILLION)),
        "UserDict": collections.UserDict(dict.fromkeys(range(100_000))),
        "ChainMap": collections.ChainMap(dict.fromkeys(range(100_000))),
        "mappingproxy": types.MappingProxyType(dict.fromkeys(range(100_000))),
        "keys": dict.fromkeys(range(MILLION)).keys(),
        "range": range(10**100),
        "generator": (number for number in itertools.count()),
        "iterator": itertools.repeat(1),
        "surrogate": "\ud800",
        "controls": "".join(map(chr, range(32))),
        "weakref": weakref.ref(_kind("A")),
        "module": os,
        "frame": time,
        "nan": float("nan"),
        "code": _sleep.__code__,
        "class": type("<script>", (), {}),
    }
    # Every special method that might be asked, of every base that might be special, rude or slow.
    methods = (
        "__repr__",
        "__str__",
        "__len__",
        "__iter__",
        "__getitem__",
        "__hash__",
        "__eq__",
        "__bool__",
        "__format__",
    )
    more = ("__getattribute__", "__getattr__", "__contains__", "__sizeof__", "__reduce__", "__dir__", "__index__")
    for base in (object, list, dict, tuple, str, int, float, set, bytes, Exception):
        for method in (*methods, *more):
            members = {method: _raise if method in more or hash((base, method)) % 2 else _sleep}
            if method == "__eq__":
                members["__hash__"] = lambda _self: 7
            values[f"{base.__name__} with {method}"] = _kind("Rude", (base,), **members)()
    for name in ("__class__", "__dict__", "_fields", "__dataclass_fields__", "__attrs_attrs__", "__pydantic_fields__"):
        values[f"property {name}"] = _kind("Liar", (), **{name: property(_sleep)})()
        values[f"nonsense {name}"] = _kind("Liar", (), **({name: 7} if name != "__class__" else {}))()
    meta = _kind("Meta", (type,), __getattribute__=_raise, __eq__=_raise, __hash__=_raise, __instancecheck__=_sleep)
    values["metaclass"] = type.__call__(meta, "Odd", (), {})
    values["instance of it"] = object.__new__(values["metaclass"])
    basket = _kind(
        "Basket",
        (),
        __repr__=lambda self: repr(self.items),
        __init__=lambda s: setattr(s, "items", list(range(MILLION))),
    )
    values["foreign container"] = basket()
    values["sized container"] = _kind("Sized", (), __len__=_sleep, __repr__=_sleep)()
    try:
        import numpy as np

        values["numpy"] = np.zeros((1000, 1000))
    except ImportError:
        pass
    digits = fractions.Fraction(1, 2)
    digits._numerator = _kind("Rude", (int,), __repr__=_sleep, __str__=_sleep)(3)
    zone = _kind("Zone", (dt.tzinfo,), __repr__=_sleep, utcoffset=_sleep)()
    rude = _kind("Rude", (), __repr__=_sleep)()
    values |= {
        "slice": slice(rude, SECRET, rude),
        "time zone": dt.datetime(2020, 1, 1, tzinfo=zone),
        "time zone of a time": dt.time(1, tzinfo=zone),
        "fraction": digits,
        "long fraction": fractions.Fraction(10**50_000, 3),
        "long decimal": decimal.Decimal("1" * MILLION),
        "long path": pathlib.PurePosixPath("/a" * MILLION),
        "odd path": pathlib.PurePosixPath("a=" * MILLION),
        "long range": range(10**4_000),
        "texts in lists": [[["x" * 100_000] * 8] * 8] * 8,
        "JSON in lists": [[[json.dumps({"a": "x" * 9_000})] * 8] * 8] * 8,
        "secrets in lists": [[["pin=1 " * 100] * 8] * 8] * 8,
        "texts in dicts": {a: {b: dict.fromkeys(range(8), "a=1 " * 2_500) for b in range(8)} for a in range(8)},
    }
    chance = random.Random(7)  # noqa: S311  for variety
    for number in range(40):
        letters = "'\"\\=:,;@/{}[]() \n" + string.ascii_letters + "password token://"
        values[f"noise {number}"] = "".join(chance.choices(letters, k=chance.choice((50, 5_000, 200_000))))
    return values


def test_there_are_two_hundred_of_them():
    """As many as were asked for."""
    assert len(hostile()) >= 200


def _processor_time(work):
    start = time.thread_time()
    work()
    return time.thread_time() - start


def add_up(numbers):
    """Not `sum`, which is twice as fast on 3.14 as on 3.13, unlike Python code."""
    total = 0
    for number in numbers:
        total += number
    return total


@pytest.mark.parametrize("shower", [Shower(), Shower(2_000)], ids=["short", "long"])
def test_no_hostile_value_raises_or_takes_long_or_gets_long(shower):
    """Less of the processor each than a loop that adds up 250,000 numbers, and a bounded text."""
    unit = min(_processor_time(lambda: add_up(range(250_000))) for _ in range(5))
    for name, value in hostile().items():
        best, waited = 1.0, time.perf_counter()
        for _ in range(3):
            start = time.thread_time()
            text = shower(value)
            best = min(best, time.thread_time() - start)
        assert best < unit, name
        assert time.perf_counter() - waited < 1, name  # nothing slept
        assert len(text) <= shower.limit * 2 + 100, name
        assert SECRET not in text, name


def test_no_code_of_the_value_runs():
    """Not even what costs nothing: showing an instance must not load it from a database."""
    calls = []

    def note(*_):
        calls.append(1)
        return "x"

    methods = (
        "__repr__",
        "__str__",
        "__len__",
        "__iter__",
        "__getattr__",
        "__eq__",
        "__bool__",
        "__format__",
        "__getattribute__",
    )
    value = _kind("Spy", (), **dict.fromkeys(methods, note), label=property(note))()
    show(value)
    show([value])
    show({"a": value})
    assert calls == []


class MisspeltError(Exception):
    """An error whose message cannot be made."""

    def __str__(self):
        raise ValueError


@pytest.mark.parametrize("where", ["logger", "handler"])
def test_log_lines_of_receivers_errors_are_masked_by_a_filter(where):
    """The message and the traceback, of a logger or of a handler; the exception itself stays in the record."""
    records = []
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(lambda record: records.append(record) or True)
    logger = logging.Logger("filtered")  # noqa: LOG001  of nobody else
    logger.addHandler(handler)
    (logger if where == "logger" else handler).addFilter(MaskingFilter())
    error = ConnectionError(f"postgresql://root:{SECRET}@db/shop and Authorization: Bearer {SECRET}")
    logger.error("password=%s of %s", SECRET, "root", exc_info=error)
    logger.error("odd", exc_info=MisspeltError())
    assert MaskingFilter().filter(logging.makeLogRecord({"msg": "%d receivers", "args": ("no number",)}))
    text = stream.getvalue()
    assert SECRET not in text
    assert MASK in text
    assert "ConnectionError" in text
    assert "of root" in text
    assert records[0].exc_info[1] is error


@pytest.mark.anyio
async def test_a_filter_of_the_packages_logger_masks_what_receivers_raise(anyio_backend, caplog):
    """`send_robust` logs each error; a program adds the filter to the logger `asignals`."""
    signal = Signal(name="test.masked")

    async def fail(**_):
        msg = f"cannot log in with api_key={SECRET}"
        raise RuntimeError(msg)

    masking = MaskingFilter()
    logging.getLogger("asignals").addFilter(masking)
    try:
        with signal.connected(fail):
            await signal.send_robust(None)
    finally:
        logging.getLogger("asignals").removeFilter(masking)
    assert "api_key=" in caplog.text
    assert caplog.records[0].exc_text.count(MASK)
    assert SECRET not in caplog.text


def test_a_long_text_of_names_takes_a_relay_no_time():
    """Twice the text takes about twice the time, and not four times."""

    def cost(length):
        best = 10.0
        for _ in range(3):
            start = time.thread_time()
            redacted("password" * length)
            best = min(best, time.thread_time() - start)
        return best

    assert cost(4_000) < 8 * cost(1_000)
