"""The source of a program, read without running it: its modules, what they import, and what their names stand for.

A `Reader` is given the modules of a program, loaded or not. A name is looked up as Python would do it. In a loaded
module names stand for the objects that are there; of one that is not loaded only the text is known: its imports,
`name = Signal(...)`, functions under `@signal`, and classes.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asignals
from asignals import Signal
from asignals._core import is_a

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

AnySignal: TypeAlias = Signal[..., Any]


@dataclass(frozen=True)
class Declared:
    """A signal of a module that is not loaded; `name` is `module.attribute`."""

    name: str


@dataclass
class SourceFile:
    """A module's source; `module` is None where it is not loaded."""

    name: str
    path: Path
    is_package: bool
    module: ModuleType | None = None
    is_served: bool = False
    """Whether the program's source hands it to a server by name, as `"shop.main:app"`."""
    _tree: ast.Module | None = field(default=None, repr=False)

    @property
    def tree(self) -> ast.Module:
        """The parsed source; empty for a file that cannot be read or parsed."""
        if self._tree is None:
            try:
                self._tree = ast.parse(self.path.read_bytes())
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
                self._tree = ast.Module([], [])
        return self._tree

    @property
    def package(self) -> str:
        """What relative imports start from."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @property
    def is_script(self) -> bool:
        """Whether it is run by itself: it has an `if __name__ == "__main__":` block."""
        return any(isinstance(node, ast.If) and is_main_test(node.test) for node in self.tree.body)

    def served_names(self) -> Iterator[str]:
        """Names of modules that it may hand to a server: strings such as `"shop.main:app"`."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = re.fullmatch(r"([\w.]+):[\w.]+(?:\(\))?", node.value)
                if found is not None:
                    yield found[1]


@dataclass(frozen=True)
class StaticClass:
    """A class of a module that is not loaded."""

    source: SourceFile = field(hash=False, compare=False)
    node: ast.ClassDef = field(hash=False, compare=False)
    name: str = ""


@dataclass(frozen=True)
class Instance:
    """Some instance of a class: what a parameter annotated with the class stands for."""

    kind: object


@dataclass(frozen=True)
class Many:
    """One of several things: the variable of a loop."""

    things: tuple[object, ...]


class Reader:
    """Reads the modules of a program."""

    def __init__(self, sources: Iterable[SourceFile]) -> None:
        """Take the modules by their names."""
        self.sources: Mapping[str, SourceFile] = {source.name: source for source in sources}
        self._namespaces: dict[str, dict[str, ast.AST]] = {}
        self._resolving: set[tuple[str, str]] = set()

    # -- imports ---------------------------------------------------------------------------------------------------

    def imports(self, source: SourceFile, *, in_functions: bool) -> set[str]:
        """The modules of the program that a module imports when it is imported, or (also) when it is called."""
        found: set[str] = set()
        for node, is_inside in walk(source.tree):
            if is_inside and not in_functions:
                continue
            for name in _imported_names(node, source):
                # `from shop import mail` may name a module, or something in one.
                while name and name not in self.sources:
                    name = name.rpartition(".")[0]  # noqa: PLW2901  shortened until it is a module
                while name in self.sources:
                    found.add(name)
                    name = name.rpartition(".")[0]  # noqa: PLW2901  its packages are imported with it
        return found

    def imports_by_computed_name(self, source: SourceFile) -> int | None:
        """The first line that imports a module whose name is not written there, inside a function; else None."""
        for node, is_inside in walk(source.tree):
            if is_inside and isinstance(node, ast.Call) and _is_import_call(node) and _constant_name(node) is None:
                return node.lineno
        return None

    # -- names -----------------------------------------------------------------------------------------------------

    def module(self, name: str) -> object:
        """The module of this name: as it is loaded, else its source."""
        source = self.sources.get(name)
        # Only what is loaded already: to read a program runs none of its code.
        return sys.modules.get(name) or source

    def member(self, thing: object, name: str) -> object:  # noqa: PLR0911  a table of kinds
        """What `thing.name` stands for; None where that cannot be told."""
        if thing is None:
            return None
        if is_a(thing, SourceFile):
            return self._member_of_source(thing, name)
        if is_a(thing, StaticClass):
            return self._member_of_class(thing, name)
        if is_a(thing, Instance):
            found = self.member(thing.kind, name)
            return found if found is not None or not is_a(thing.kind, StaticClass) else None
        if thing is asignals:  # it loads its names when they are asked for
            return getattr(asignals, name, None)
        if is_a(thing, ModuleType):
            found = vars(thing).get(name)
            return found if found is not None else self.sources.get(f"{thing.__name__}.{name}")
        # Statically: a property must not run. A signal of a base class counts.
        return inspect.getattr_static(thing, name, None)

    def _member_of_source(self, source: SourceFile, name: str) -> object:
        key = (source.name, name)
        if key in self._resolving:  # modules that import each other's names
            return None
        self._resolving.add(key)
        try:
            node = self._namespace(source).get(name)
            found = self._starred(source, name) if node is None else self._meaning(source, name, node)
        finally:
            self._resolving.discard(key)
        return found if found is not None else self.module(f"{source.name}.{name}")

    def _starred(self, source: SourceFile, name: str) -> object:
        """What a name stands for that `from module import *` may have brought."""
        for node, is_inside in walk(source.tree, into_classes=False):
            if not is_inside and isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                origin = self.module(_resolved("." * node.level + (node.module or ""), source.package))
                found = None if name.startswith("_") else self.member(origin, name)
                if found is not None:
                    return found
        return None

    def _meaning(self, source: SourceFile, name: str, node: ast.AST) -> object:
        match node:
            case ast.ClassDef():
                return StaticClass(source, node, f"{source.name}.{name}")
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return self._decorated(source, f"{source.name}.{name}", node)
            case ast.Import() | ast.ImportFrom():
                return self.imported(source, node).get(name)
            case ast.expr():
                return self.evaluate(source, f"{source.name}.{name}", node)
        return None

    def _member_of_class(self, kind: StaticClass, name: str) -> object:
        full = f"{kind.name}.{name}"
        for node in kind.node.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                    return self.evaluate(kind.source, full, value)
                case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                    return self.evaluate(kind.source, full, value)
                case ast.ClassDef(name=found) if found == name:
                    return StaticClass(kind.source, node, full)
                case ast.FunctionDef(name=found) | ast.AsyncFunctionDef(name=found) if found == name:
                    return self._decorated(kind.source, full, node)
        for base in kind.node.bases:
            inherited = self.member(self.evaluate(kind.source, "", base), name)
            if inherited is not None:
                return inherited
        return None

    def _decorated(self, source: SourceFile, name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> object:
        for decorator in node.decorator_list:
            maker = decorator.func if isinstance(decorator, ast.Call) else decorator
            if self.evaluate(source, "", maker) is asignals.signal:
                return Declared(name)
        return None

    def evaluate(self, source: SourceFile, name: str, node: ast.expr) -> object:
        """What an expression at the top of a module stands for; a signal made there is called `name`."""
        match node:
            case ast.Name(id=found):
                return self.top_level(source, found)
            case ast.Attribute(value=value, attr=attribute):
                return self.member(self.evaluate(source, "", value), attribute)
            case ast.Call(func=func):
                maker = self.evaluate(source, "", func)
                makes_signal = maker is asignals.signal or (is_a(maker, type) and issubclass(maker, Signal))
                return Declared(name) if name and makes_signal else None
            case ast.Dict(values=items):
                return Many(tuple(self.evaluate(source, "", item) for item in items))
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return Many(tuple(self.evaluate(source, "", item) for item in items))
        return None

    def top_level(self, source: SourceFile, name: str) -> object:
        """What a name at the top of a module stands for."""
        return self.member(source if source.module is None else source.module, name)

    def imported(self, source: SourceFile, node: ast.Import | ast.ImportFrom) -> dict[str, object]:
        """The names that an import statement binds, and what they stand for."""
        if isinstance(node, ast.Import):
            tops = {alias.asname or alias.name.partition(".")[0]: alias for alias in node.names}
            return {name: self.module(alias.name if alias.asname else name) for name, alias in tops.items()}
        origin = self.module(_resolved("." * node.level + (node.module or ""), source.package))
        return {alias.asname or alias.name: self.member(origin, alias.name) for alias in node.names}

    def _namespace(self, source: SourceFile) -> dict[str, ast.AST]:
        """The names bound at the top of a module: by which statement, or to which expression."""
        found = self._namespaces.get(source.name)
        if found is None:
            found = self._namespaces[source.name] = {}
            for node, is_inside in walk(source.tree, into_classes=False):
                if not is_inside:
                    found.update(_bindings(node))
        return found


def _bindings(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Assign(targets=targets, value=value):
            yield from ((target.id, value) for target in targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            yield name, value
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield name, node
        case ast.Import(names=names):
            yield from ((alias.asname or alias.name.partition(".")[0], node) for alias in names)
        case ast.ImportFrom(names=names):
            yield from ((alias.asname or alias.name, node) for alias in names)


def walk(tree: ast.AST, *, into_classes: bool = True, is_inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it is inside of a function; not what only type checkers or the main program see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and (is_for_type_checkers(node.test) or is_main_test(node.test)):
            for other in node.orelse:
                yield other, is_inside
                yield from walk(other, into_classes=into_classes, is_inside=is_inside)
            continue
        yield node, is_inside
        if isinstance(node, ast.ClassDef) and not into_classes:
            continue
        yield from walk(node, into_classes=into_classes, is_inside=is_inside or isinstance(node, _BODIES))


def called_on_import(tree: ast.Module) -> set[str]:
    """The functions of a module that importing it calls, as far as its text shows: `setup`, `Mailer.__init__`.

    Those that are called at its top, or decorate something there, and what they call; of a class of which an instance
    is made, its `__init__`; of one that has subclasses, its `__init_subclass__`.
    """
    bodies: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            bodies[node.name] = node
        elif isinstance(node, ast.ClassDef):
            inner = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            bodies |= {f"{node.name}.{each.name}": each for each in inner}
    called: set[str] = set()
    todo = [node for node, is_inside in walk(tree) if not is_inside]
    while todo:
        for name in _called_by(todo.pop()):
            if name in bodies and name not in called:
                called.add(name)
                todo += [node for node, is_inside in walk(bodies[name]) if not is_inside]
    return called


def _called_by(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            yield from (name, f"{name}.__init__", f"{name}.__post_init__")
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)):
            yield f"{owner}.{name}"
        case ast.ClassDef(bases=bases, decorator_list=decorators):
            yield from (f"{base.id}.__init_subclass__" for base in bases if isinstance(base, ast.Name))
            yield from (each.id for each in decorators if isinstance(each, ast.Name))
        case ast.FunctionDef(decorator_list=decorators) | ast.AsyncFunctionDef(decorator_list=decorators):
            yield from (each.id for each in decorators if isinstance(each, ast.Name))


_BODIES: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def is_for_type_checkers(test: ast.expr) -> bool:
    """Whether an `if` is `if TYPE_CHECKING`."""
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def is_main_test(test: ast.expr) -> bool:
    """Whether an `if` is `if __name__ == "__main__"`."""
    match test:
        case ast.Compare(left=ast.Name(id="__name__"), comparators=[ast.Constant(value="__main__")]):
            return True
        case ast.Compare(left=ast.Constant(value="__main__"), comparators=[ast.Name(id="__name__")]):
            return True
    return False


def _imported_names(node: ast.AST, source: SourceFile) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(names=names, level=level, module=module):
            origin = _resolved("." * level + (module or ""), source.package)
            yield from (f"{origin}.{alias.name}" for alias in names)
        case ast.Call() if _is_import_call(node):
            name = _constant_name(node)
            if name is not None:
                yield _resolved(name, source.package)


def _is_import_call(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in ("import_module", "__import__")


def _constant_name(node: ast.Call) -> str | None:
    if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
        return node.args[0].value
    return None


def _resolved(name: str, package: str) -> str:
    try:
        return importlib.util.resolve_name(name, package)
    except (ImportError, ValueError):
        return ""
