import collections
import dataclasses
import datetime as dt
import enum
import functools
import os
import types

import pytest

from asignals.overview import values as _show
from asignals.overview.values import MASK, Shower, name_of, short_path, shorten


@dataclasses.dataclass
class Card:
    owner: str
    password: str = "1234"  # noqa: S105  a value to hide
    number: int = dataclasses.field(default=0, repr=False)


@dataclasses.dataclass
class Private:
    owner: str

    def __repr__(self):
        return "hands off"


class Plain:
    def method(self): ...


class Rude:
    def __repr__(self):
        raise RuntimeError


class Word(str):
    __slots__ = ()


class Loud(str):
    __slots__ = ()

    def __repr__(self):
        return "pizza!"


class Crowd(list):
    def __repr__(self):
        return "a crowd"


class Colour(enum.Enum):
    RED = "s3cret"


def function(): ...


show = Shower(limit=60)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (1.5, "1.5"),
        (7, "7"),
        (1 << 511, "<int of 512 bits>"),
        (-(1 << 20_000), "<int of 20,001 bits>"),
        ([1 << 600], "[<int of 601 bits>]"),
        ([7, None, "a"], "[7, None, 'a']"),
        ("pizza", "'pizza'"),
        (b"pizza", "b'pizza'"),
        (bytearray(b"pizza"), "bytearray(b'pizza')"),
        ("x" * 61, f"'{'x' * 60}'… (61 characters)"),
        (b"x" * 61, f"b'{'x' * 60}'… (61 bytes)"),
        (bytearray(b"x" * 61), f"bytearray(b'{'x' * 60}')… (61 bytes)"),
        ("x" * 60, f"'{'x' * 60}'"),
        (Word("pizza"), "'pizza'"),
        (Word("x" * 61), f"'{'x' * 60}'… (61 characters)"),
        (Loud("x" * 61), f"'{'x' * 60}'… (61 characters)"),
        ([], "[]"),
        ((1,), "(1,)"),
        ((1, 2), "(1, 2)"),
        ({1}, "{1}"),
        (frozenset({1}), "frozenset({1})"),
        (list(range(10)), "[0, 1, 2, 3, 4, 5, 6, 7, … 2 more]"),
        ([[[[1]]]], "[[[[…]]]]"),
        ([[[[]]]], "[[[[]]]]"),
        ({}, "{}"),
        ({"size": 30}, "{'size': 30}"),
        ({("a", 1): 2}, "{(…): 2}"),
        ([[[{}]]], "[[[{}]]]"),
        ({"type": "http", "asgi": {}, "method": "GET", "path": "/pizzas"}, "<http GET /pizzas>"),
        ({"type": "lifespan", "asgi": {}}, "<lifespan>"),
        ([(b"cookie", b"a=1"), (b"accept", b"x")], f"[(b'cookie', {MASK}), (b'accept', b'x')]"),
        (["token", "abc"], f"['token', {MASK}]"),
        (["token", "abc", "d"], f"['token', {MASK}, {MASK}]"),
        ([[[{1: 2}]]], "[[[{…}]]]"),
        ({"user": {"password": "hunter2"}}, f"{{'user': {{'password': {MASK}}}}}"),
        ({b"Cookie": "a=1"}, f"{{b'Cookie': {MASK}}}"),
        (Card("Ada"), f"Card(owner='Ada', password={MASK})"),
        ([[[Card("Ada")]]], "[[[Card(…)]]]"),
        (Private("Ada"), "<Private>"),
        (Plain(), "<Plain>"),
        (Plain, f"{__name__}.Plain"),
        (Plain().method, f"{__name__}.Plain.method"),
        (function, f"{__name__}.function"),
        (functools.partial(function), f"{__name__}.function"),
        (len, "len"),
        (Crowd([1]), "<Crowd of 1 items>"),
        (Crowd(range(1234)), "<Crowd of 1,234 items>"),
        (collections.Counter(range(1000)), "Counter({0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, … 992 more})"),
        (Rude(), "<Rude>"),
        (Colour.RED, "Colour.RED"),
        (dt.date(2026, 1, 2), "datetime.date(2026, 1, 2)"),
        (ValueError("no stock"), "ValueError('no stock')"),
        (types.SimpleNamespace(a=1), "SimpleNamespace({'a': 1})"),
        (types.MappingProxyType({"a": 1}), "mappingproxy({'a': 1})"),
        ({}.keys(), "<dict_keys of 0 items>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_value_has_a_text(value, text):
    """Values are shown by their kind: what is long or deep is cut, what is secret masked, what raises named."""
    assert show(value) == text


def test_what_fails_inside_costs_its_own_text(monkeypatch):
    """An error on the way to a text is named in its place."""
    monkeypatch.setattr(Shower, "_text", None)
    assert show("pizza") == "<an object that cannot be shown: TypeError>"


def test_a_dataclass_without_a_value_for_a_field_is_shown():
    """A field that was deleted leaves a gap and no error."""
    card = Card("Ada")
    del card.owner
    assert show(card) == f"Card(owner=…, password={MASK})"


def test_a_container_that_changes_meanwhile_is_shown_without_its_items():
    """What another thread changes while it is looked at costs the items, not the text."""

    def changing():
        yield 1
        raise RuntimeError

    assert show._items([1], changing(), list, 1, 3) == "[… 1 more]"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("nothing to hide", "nothing to hide"),
        ("User(password='hunter2', size=3)", f"User(password={MASK}, size=3)"),
        ("token: abc", f"token: {MASK}"),
        ("Authorization: Bearer abc", f"Authorization: {MASK}"),
        ("redis://user:hunter2@host", f"redis://user:{MASK}@host"),
        ("[(b'cookie', b'abc'), (b'accept', b'x')]", f"[(b'cookie', {MASK}), (b'accept', b'x')]"),
        ("x" * 60, "x" * 60),
        ("x" * 100, "x" * 100),
        ("x" * 101, "x" * 60 + "… (101 characters)"),
        ("x" * 10_000, "x" * 60 + "… (10,000 characters)"),
        ("x" * 55 + " password=" + "y" * 60, "x" * 55 + f" password={MASK}"),
    ],
)
def test_texts_lose_their_secrets_before_they_are_cut(text, cleaned):
    """What looks like a secret is masked wherever the cut falls; a text a little over the limit stays whole."""
    assert show.clean(text) == cleaned


def test_a_reader_of_tests_sees_what_the_author_wrote():
    """With `runs_repr` an object shows itself, its secrets masked; one that cannot is named."""
    told = Shower(runs_repr=True)
    assert told(Private("Ada")) == "hands off"
    assert told(Rude()) == "<Rude, whose repr raises RuntimeError>"
    assert told(Plain()) == "<Plain>"


def test_a_limit_may_be_given_for_one_text():
    """The limit of a call goes before that of the shower."""
    assert show.clean("x" * 100, 10) == "x" * 10 + "… (100 characters)"


def test_arguments_are_masked_by_their_names():
    """An argument with the name of a secret shows a mask, in any case of letters."""
    assert show.arguments({"size": 1, "API_KEY": "abc"}) == {"size": "1", "API_KEY": MASK}
    assert show.named(7, "abc") == "'abc'"
    assert show.named(b"API_KEY", 7) == MASK


def test_the_names_of_secrets_are_the_callers():
    """Other names replace the usual ones, and none means that nothing is masked."""
    assert Shower(secrets=("shoe",)).arguments({"password": 1, "shoe_size": 2}) == {"password": "1", "shoe_size": MASK}
    bare = Shower(secrets=())
    assert bare.arguments({"password": "a"}) == {"password": "'a'"}
    assert bare.clean("password='a'") == "password='a'"


def test_a_text_is_shortened_with_its_length():
    """What is cut says how long it was; what fits is left alone."""
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdef", 5) == "abcde… (6 characters)"
    assert shorten("abc", 5, 1000) == "abc… (1,000 characters)"


def test_names_are_as_a_module_spells_them():
    """Builtins go without the name of their module."""
    assert name_of(len) == "len"
    assert name_of(int) == "int"
    assert name_of(Plain) == f"{__name__}.Plain"


def test_paths_below_the_working_directory_are_short(monkeypatch, tmp_path):
    """A path is relative where it is below the working directory, and absolute elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert short_path(str(tmp_path / "shop" / "mail.py")) == os.path.join("shop", "mail.py")  # noqa: PTH118
    assert short_path(str(tmp_path.parent / "mail.py")) == str(tmp_path.parent / "mail.py")


def test_a_path_on_another_drive_stays_as_it_is(monkeypatch):
    """Windows has no relative path from one drive to another."""

    def refuse(path):
        raise ValueError

    monkeypatch.setattr(_show.os.path, "relpath", refuse)
    assert short_path("D:\\shop\\mail.py") == "D:\\shop\\mail.py"
