"""`help()` of each public name: it says something, and shows no addresses of what is private."""

import importlib
import inspect
import pydoc
import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

MODULES = [
    "asignals",
    "asignals.asgi",
    "asignals.inspector",
    "asignals.opentelemetry",
    "asignals.pytest_plugin",
    "asignals.relay",
    "asignals.sqlalchemy",
    "asignals.testing",
]
NAMES = []
for each in MODULES:
    with suppress(ModuleNotFoundError):  # an interpreter may have no wheel of what it needs
        NAMES += [(each, name) for name in importlib.import_module(each).__all__]


@contextmanager
def skipped_without_extras() -> Iterator[None]:
    """Skips a test that finds that the package of an extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def members(kind: type) -> list[tuple[str, object]]:
    """A class's own functions and properties that are public."""
    functions = (property, staticmethod, classmethod)
    found = [(name, value) for name, value in vars(kind).items() if not name.startswith("_")]
    return [(name, value) for name, value in found if inspect.isfunction(value) or isinstance(value, functions)]


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_what_they_are_for(module: str) -> None:
    """In a docstring; and `__all__` is sorted and true."""
    with skipped_without_extras():
        loaded = importlib.import_module(module)
    assert loaded.__doc__
    assert loaded.__doc__.strip()
    assert list(loaded.__all__) == sorted(set(loaded.__all__))
    with skipped_without_extras():
        assert all(hasattr(loaded, name) for name in loaded.__all__)


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_help_is_of_help(module: str, name: str) -> None:
    """Each class, function and signal has a docstring, each public method and property too."""
    with skipped_without_extras():
        thing = getattr(importlib.import_module(module), name)
    if typing.get_origin(thing) is not None or isinstance(thing, str):
        return  # an alias of a type: `help` shows what it stands for
    assert (inspect.getdoc(thing) or "").strip()
    kind = thing if inspect.isclass(thing) else type(thing)
    if kind.__module__.startswith("asignals"):
        assert [member for member, value in members(kind) if not inspect.getdoc(value)] == []
    text = pydoc.render_doc(thing, renderer=pydoc.plaintext)
    assert re.findall(r"<(?:function|bound method) _[^>]*>|<object object", text) == []


IN_ONE_SCREEN = ["asignals", "asignals.relay"]


@pytest.mark.parametrize("module", IN_ONE_SCREEN)
def test_help_of_a_package_lists_every_name_in_one_screen(module: str) -> None:
    """`help(asignals)`: the docstring has all names; classes are not printed in full, though `dir` has them."""
    loaded = importlib.import_module(module)
    text = pydoc.render_doc(loaded, renderer=pydoc.plaintext)
    described, _, rest = text.partition("PACKAGE CONTENTS")
    files, _, _ = rest.partition("\n\n")  # pydoc's list of all modules, a line each
    assert len(described.splitlines()) <= 45
    assert len(text.splitlines()) - len(files.splitlines()) <= 60
    assert [name for name in loaded.__all__ if f"`{name}" not in text and f".{name}`" not in text] == []
    assert "docs/index.md" in text
    with skipped_without_extras():
        assert set(loaded.__all__) <= {*dir(loaded), *dict(inspect.getmembers(loaded))}


def test_help_of_a_send_shows_the_stubs_parameters() -> None:
    """With their types and defaults, and the promises of `send`."""
    from asignals import signal

    @signal
    def pizza_done(sender: str, *, toppings: list[str], size: int = 30) -> None:
        """A pizza left the oven."""

    text = pydoc.render_doc(pizza_done.send, renderer=pydoc.plaintext)
    assert "send(sender: str, *, toppings: list[str], size: int = 30)" in text
    assert "Raises:" in text
    assert "A pizza left the oven." in pydoc.render_doc(pizza_done, renderer=pydoc.plaintext)
