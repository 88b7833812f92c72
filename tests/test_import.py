import subprocess
import sys
import types

import pytest

import asignals


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout  # noqa: S603


def test_all_is_what_is_exported():
    """`__all__` has every public name of the package that is no module, sorted, and nothing else."""
    public = {
        name
        for name in dir(asignals)
        if not name.startswith("_") and not isinstance(getattr(asignals, name), types.ModuleType)
    }
    assert set(asignals.__all__) == public
    assert list(asignals.__all__) == sorted(set(asignals.__all__))


def test_an_unknown_name_is_an_attribute_error():
    """A misspelt name is refused as by any module."""
    with pytest.raises(AttributeError, match="'asignals' has no attribute 'Signa'"):
        asignals.Signa  # noqa: B018  the access is what fails
    with pytest.raises(ImportError):
        from asignals import Signa  # noqa: F401


def test_exported_objects_say_where_they_are_imported_from():
    """Reprs and tracebacks of what is public do not send readers into private modules."""
    assert repr(asignals.Signal()).startswith("<asignals.Signal ")


def test_every_export_has_a_docstring():
    """`help` has something to say about each name."""
    for name in asignals.__all__:
        assert (getattr(asignals, name).__doc__ or "").strip(), name


def test_import_loads_the_standard_library_and_anyio_only():
    """`import asignals` loads no module that neither Python nor `import anyio` brings."""
    code = """
import sys
import anyio, anyio.to_thread, anyio.from_thread, anyio.lowlevel
before = set(sys.modules)
from asignals import *
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names) - {"anyio"}))
"""
    assert run(code) == "['asignals']\n"


def test_import_starts_nothing():
    """Importing makes no thread, no event loop and no output."""
    code = """
import asyncio, threading
import asignals
print(threading.active_count(), asyncio._get_running_loop())
"""
    assert run(code) == "1 None\n"
