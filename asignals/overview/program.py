"""A program as its server loads it: by its entry point alone, and what else its packages hold without being loaded."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import sysconfig
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from asignals._core import is_a
from asignals.overview.source import Reader, SourceFile
from asignals.overview.uses import Use, uses_of
from asignals.overview.values import name_of, short_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FILES: Final = 5_000
"""How many files below a package are read at most."""
_NOT_THE_PROGRAM: Final = frozenset({"tests", "test", "testing", "conftest", "setup", "noxfile", "docs", "__main__"})
_NOT_SOURCE: Final = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist", "venv", "env"})


class TargetError(Exception):
    """A target could not be imported; `str` says why in a few lines, `traceback` is the whole of it."""

    def __init__(self, target: str, module: str, error: BaseException | None, reason: str = "") -> None:
        """Keep which `target` failed, in which `module` of it, and the error or another reason."""
        super().__init__(target, module, error, reason)
        self.target = target
        self.module = module
        self.error = error
        self.reason = reason

    @property
    def traceback(self) -> str:
        """The traceback of the failed import, without the frames of the import system and of this module."""
        return "" if self.error is None else "".join(traceback.format_exception(self.error))

    def __str__(self) -> str:
        """Name the module, the error, and the line of the target's own code that raised it."""
        inside = "" if self.module == self.target else f" (in {self.target!r})"
        if self.error is None:
            return f"cannot import {self.module!r}{inside}: {self.reason}"
        line = f"{type(self.error).__name__}: {self.error}".rstrip(": ")
        where = _raised_at(self.error)
        return f"cannot import {self.module!r}{inside}: {line}" + (f"\n  at {where}" if where else "")


@dataclass(frozen=True)
class NotLoaded:
    """A module that is not loaded, and what it would do with signals."""

    source: SourceFile
    uses: list[Use]

    @property
    def on_import(self) -> list[Use]:
        """What importing it would do, without calling anything in it."""
        return [use for use in self.uses if use.on_import]

    @property
    def is_certain(self) -> bool:
        """Whether the program lacks it: importing it does something, and it is no separate program."""
        return bool(self.on_import) and not self.source.is_script and not self.source.is_served


_WOULD_DO: Final = ("connect", "export", "receive")


@dataclass
class Program:
    """What one entry point loads, and the source of what it does not load."""

    entry: str
    module: str
    """The module of the entry point."""
    thing: object
    """What the entry point names in it: an application, a relay; the module itself where it names nothing."""
    modules: list[ModuleType] = field(default_factory=list)
    """The program's own modules that are loaded, in the order of their names."""
    reader: Reader = field(default_factory=lambda: Reader(()))
    _uses: dict[str, list[Use]] = field(default_factory=dict, repr=False)
    _not_loaded: list[NotLoaded] | None = field(default=None, repr=False)

    @property
    def sources(self) -> Iterable[SourceFile]:
        """The source of every own module, loaded or not."""
        return self.reader.sources.values()

    def loaded_later(self) -> set[str]:
        """Modules that functions of the program import when they are called, with what those import in turn."""
        found: set[str] = set()
        todo = [source for source in self.sources if source.module is not None]
        while todo:
            source = todo.pop()
            for name in self.reader.imports(source, in_functions=True) - found:
                imported = self.reader.sources[name]
                if imported.module is None:
                    found.add(name)
                    todo.append(imported)
        return found

    def uses_in(self, source: SourceFile) -> list[Use]:
        """What a module does with signals."""
        found = self._uses.get(source.name)
        if found is None:
            found = self._uses[source.name] = uses_of(self.reader, source)
        return found

    def uses(self, *, loaded: bool) -> Iterator[Use]:
        """The uses of signals in the own modules that are loaded, or in those that are not."""
        for source in self.sources:
            if (source.module is not None) is loaded:
                yield from self.uses_in(source)

    def not_loaded(self) -> list[NotLoaded]:
        """The modules that connect receivers, or hand signals to a relay, and that the entry point does not load."""
        if self._not_loaded is None:
            later = self.loaded_later()
            served = {name for source in self.sources for name in source.served_names()}
            missing = [source for source in self.sources if source.module is None and source.name not in later]
            for source in missing:
                source.is_served = source.name in served
            found = [
                NotLoaded(source, [use for use in self.uses_in(source) if use.kind in _WOULD_DO]) for source in missing
            ]
            self._not_loaded = [each for each in found if each.uses]
        return self._not_loaded

    def imports_by_computed_name(self) -> str | None:
        """Where a function imports modules by names that are not written there, as `file:line`; None if nowhere."""
        for source in self.sources:
            line = None if source.module is None else self.reader.imports_by_computed_name(source)
            if line is not None:
                return f"{short_path(str(source.path))}:{line}"
        return None


def load(entry: str, *, factory: bool = False) -> Program:
    """Load a program by its entry point: `shop.main:app`, `shop.main:create_app()`, `shop.relay:relay`, `shop.main`.

    Only the module that is named is imported, as a server does it, with what it imports itself; a function that makes
    the application is called. Raises `TargetError` where that fails. What the program prints goes to stderr.
    """
    name, _, attribute = entry.partition(":")
    module = import_module(entry, name)
    thing: object = module
    if attribute:
        is_call = attribute.endswith("()")
        thing = attribute_of(entry, module, attribute.removesuffix("()"))
        if is_call or factory or _is_factory(thing):
            thing = _call(entry, name, thing)
    return survey(entry, module, thing)


def load_everything(program: Program, broken: list[TargetError] | None = None) -> Program:
    """Import the other modules of a program's packages; those that fail are put into `broken`, or raise."""
    for source in program.sources:
        if source.module is None and not source.is_script:
            try:
                import_module(program.entry, source.name)
            except TargetError as error:
                if broken is None:
                    raise
                broken.append(error)
    return survey(program.entry, sys.modules[program.module], program.thing)


def survey(entry: str, module: ModuleType, thing: object) -> Program:
    """Look at what is loaded."""
    roots = _roots(module)
    sources: dict[str, SourceFile] = {}
    for name, path in roots.items():
        for source in _files(name, path):
            sources.setdefault(source.name, source)
    modules = {}
    for name, each in list(sys.modules.items()):
        file = getattr(each, "__file__", None)
        if is_a(each, ModuleType) and isinstance(file, str) and any(_is_below(name, root) for root in roots):
            modules[name] = each
            source = sources.setdefault(name, SourceFile(name, Path(file), hasattr(each, "__path__")))
            source.module = each
    ordered = [sources[name] for name in sorted(sources)]
    return Program(entry, module.__name__, thing, [modules[name] for name in sorted(modules)], Reader(ordered))


def _is_factory(thing: object) -> bool:
    """Whether a server would call it for the application: a function that needs no argument."""
    if not is_a(thing, FunctionType) or inspect.iscoroutinefunction(thing):
        return False
    empty = inspect.Parameter.empty
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(thing).parameters.values()
    return all(each.default is not empty or each.kind in kinds for each in parameters)


def _call(entry: str, name: str, thing: Any) -> object:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return thing()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise TargetError(entry, name, error) from error


def import_module(target: str, name: str) -> ModuleType:
    """Import the module `name` of a target; raises `TargetError`. What it prints goes to stderr."""
    if not all(part.isidentifier() for part in name.split(".")):
        reason = "a target is a dotted module name such as shop.signals"
        if name.endswith(".py") or "/" in name:
            dotted = name.removesuffix(".py").strip("./").replace("/", ".")
            reason = f"that is a path; did you mean {dotted!r}?"
        raise TargetError(target, name, None, reason)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a script that calls sys.exit() when imported is a target that does not import
        raise TargetError(target, name, error) from error


def attribute_of(target: str, module: ModuleType, attribute: str) -> object:
    """What `attribute`, which may have dots, names in a module; raises `TargetError`. No property runs."""
    thing: object = module
    for part in attribute.split("."):
        try:
            thing = inspect.getattr_static(thing, part)
        except AttributeError:
            reason = f"{name_of(thing) if thing is not module else module.__name__} has no attribute {part!r}"
            raise TargetError(target, target, None, reason) from None
    return thing


def _raised_at(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{short_path(error.filename)}:{error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
    # What the program wrote says more than the library that refused it.
    own = [frame for frame in frames if not frame.filename.startswith("<") and not _is_library(Path(frame.filename))]
    frames = own or frames
    return f"{short_path(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename in (__file__, importlib.__file__)


def _is_library(path: Path) -> bool:
    package = Path(__file__).parent.parent
    return _is_installed(path) or (path.is_relative_to(package) and not path.is_relative_to(package / "demo"))


# -- what belongs to the program -----------------------------------------------------------------------------------


def _roots(module: ModuleType) -> dict[str, Path]:
    """The topmost packages and modules that are the program's own, with where they are."""
    own = _root_of(module.__name__)
    path = _place_of(own)
    if path is None:
        return {}
    roots = {own: path}
    base = path.parent
    if _is_installed(base) or own.partition(".")[0] == "asignals":
        return roots
    if not path.is_dir():
        roots[""] = base  # a module beside others: the directory is the program
    for name in list(sys.modules):
        other = _root_of(name)
        place = None if name == "__main__" or other.partition(".")[0] == "asignals" else _place_of(other)
        if place is not None and place.is_relative_to(base) and not _is_installed(place):
            roots.setdefault(other, place)
    return roots


def _root_of(name: str) -> str:
    """The topmost package that holds a module, without namespace packages, which many programs may share."""
    parts = name.split(".")
    if parts[0] == "asignals":  # the library is no part of the program, but its demo is one
        return ".".join(parts[:2])
    for length in range(1, len(parts)):
        package = sys.modules.get(".".join(parts[:length]))
        if getattr(package, "__file__", None) is not None:
            return ".".join(parts[:length])
    # Directories without __init__.py all the way: the one that holds the module.
    return ".".join(parts[:-1]) or name


def _place_of(name: str) -> Path | None:
    module = sys.modules.get(name)
    if not is_a(module, ModuleType):
        return None
    file = getattr(module, "__file__", None)
    if isinstance(file, str):
        path = Path(file).resolve()
        return path.parent if path.stem == "__init__" else path
    places = list(getattr(module, "__path__", ()))
    return Path(places[0]).resolve() if places else None


def _is_installed(path: Path) -> bool:
    if "site-packages" in path.parts or "dist-packages" in path.parts:
        return True
    return any(path == place or path.is_relative_to(place) for place in _installed())


def _installed() -> list[Path]:
    return [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]


def _is_below(name: str, root: str) -> bool:
    return name == root or name.startswith(f"{root}.")


def _files(root: str, path: Path) -> Iterator[SourceFile]:
    """The modules below a package, or in a directory (whose name is empty)."""
    if path.is_file():
        yield SourceFile(root, path, is_package=False)
        return
    count = 0
    todo = [(root, path)]
    while todo:
        name, directory = todo.pop()
        for entry in sorted(_entries(directory)):
            inner = f"{name}.{entry.stem}" if name else entry.stem
            if entry.is_dir():
                if _may_be_package(entry):
                    todo.append((inner, entry))
            elif entry.suffix == ".py" and _may_be_module(entry.stem):
                count += 1
                if count > FILES:
                    return
                is_package = entry.stem == "__init__"
                if not (is_package and not name):
                    yield SourceFile(name if is_package else inner, entry, is_package)


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _may_be_module(name: str) -> bool:
    is_test = name.startswith("test_") or name.endswith("_test")
    return name.isidentifier() and name not in _NOT_THE_PROGRAM and not is_test


def _may_be_package(directory: Path) -> bool:
    name = directory.name
    if not name.isidentifier() or name in _NOT_SOURCE or name in _NOT_THE_PROGRAM:
        return False
    return not (directory / "pyvenv.cfg").exists()
