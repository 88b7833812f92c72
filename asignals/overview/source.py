"""What the source of a program says about signals, read without running it.

A `Reader` is given the modules of a program, loaded or not, and finds the places that send signals, connect receivers
to them, listen to them, or hand them to a relay. A name is looked up as Python would do it: in the function, in what
it imports, in the class, in the module. In a loaded module names stand for the objects that are there. Of a module
that is not loaded only the text is known: its imports, `name = Signal(...)`, and functions under `@signal`.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import asignals
from asignals import Background, Signal
from asignals._core import is_a
from asignals.overview.values import short_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

AnySignal: TypeAlias = Signal[..., Any]
UseKind: TypeAlias = Literal["send", "connect", "listen", "export", "receive"]

SENDS: Final = frozenset({"send", "send_robust"})
BACKGROUND_SENDS: Final = frozenset({"send", "send_nowait"})
METHODS: Final[dict[str, UseKind]] = {
    "send": "send",
    "send_robust": "send",
    "connect": "connect",
    "connected": "connect",
    "stream": "listen",
    "wait": "listen",
}
"""Methods of a signal, and what using one means."""
RELAY_METHODS: Final[dict[str, UseKind]] = {"export": "export", "receive": "receive"}
"""Methods that take a signal first."""
COROUTINES: Final = frozenset({"send", "send_robust", "wait"})
"""Methods of a signal that do nothing until they are awaited."""


@dataclass(frozen=True)
class Declared:
    """A signal of a module that is not loaded; `name` is `module.attribute`."""

    name: str


@dataclass(frozen=True)
class Use:
    """A place in the source that does something with a signal."""

    kind: UseKind
    signal: AnySignal | Declared
    function: str
    """The function, class or module that it stands in, in full."""
    module: str
    file: str
    line: int
    on_import: bool
    """Whether it happens when the module is imported; otherwise, when something is called."""
    receiver: str = ""
    """For `connect`: the receiver, as the source has it."""
    sender: str = ""
    """For `connect`: the sender, as the source has it."""
    is_awaited: bool = True
    """For what must be awaited: whether it is, or may be."""

    @property
    def location(self) -> str:
        """The place as `file:line`."""
        return f"{self.file}:{self.line}"

    @property
    def signal_name(self) -> str:
        """The signal's name."""
        return str(self.signal.name)


@dataclass
class SourceFile:
    """A module's source; `module` is None where it is not loaded."""

    name: str
    path: Path
    is_package: bool
    module: ModuleType | None = None
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
        """Whether it is a program of its own: it has an `if __name__ == "__main__":` block."""
        return any(isinstance(node, ast.If) and _is_main_test(node.test) for node in self.tree.body)


@dataclass(frozen=True)
class _Class:
    """A class of a module that is not loaded."""

    source: SourceFile = field(hash=False, compare=False)
    node: ast.ClassDef = field(hash=False, compare=False)
    name: str = ""


@dataclass(frozen=True)
class _Instance:
    """Some instance of a class: what a parameter annotated with the class stands for."""

    kind: object


@dataclass(frozen=True)
class _Many:
    """One of several things: the variable of a loop."""

    things: tuple[object, ...]


class Reader:
    """Reads the modules of a program."""

    def __init__(self, sources: Iterable[SourceFile]) -> None:
        """Take the modules by their names."""
        self.sources: Mapping[str, SourceFile] = {source.name: source for source in sources}
        self._uses: dict[str, list[Use]] = {}
        self._namespaces: dict[str, dict[str, ast.AST]] = {}
        self._resolving: set[tuple[str, str]] = set()

    def uses(self, source: SourceFile) -> list[Use]:
        """The places of a module that do something with signals, in order."""
        found = self._uses.get(source.name)
        if found is None:
            visitor = _Visitor(self, source)
            visitor.read()
            found = self._uses[source.name] = visitor.uses
        return found

    # -- imports ---------------------------------------------------------------------------------------------------

    def imports(self, source: SourceFile, *, in_functions: bool) -> set[str]:
        """The modules of the program that a module imports when it is imported, or (also) when it is called."""
        found: set[str] = set()
        for node, is_inside in _walk(source.tree):
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
        for node, is_inside in _walk(source.tree):
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
        if is_a(thing, _Class):
            return self._member_of_class(thing, name)
        if is_a(thing, _Instance):
            found = self.member(thing.kind, name)
            return found if found is not None or not is_a(thing.kind, _Class) else None
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
            found = None if node is None else self._meaning(source, name, node)
        finally:
            self._resolving.discard(key)
        return found if found is not None else self.module(f"{source.name}.{name}")

    def _meaning(self, source: SourceFile, name: str, node: ast.AST) -> object:
        match node:
            case ast.ClassDef():
                return _Class(source, node, f"{source.name}.{name}")
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return self._decorated(source, f"{source.name}.{name}", node)
            case ast.Import() | ast.ImportFrom():
                return self.imported(source, node).get(name)
            case ast.expr():
                return self.evaluate(source, f"{source.name}.{name}", node)
        return None

    def _member_of_class(self, kind: _Class, name: str) -> object:
        full = f"{kind.name}.{name}"
        for node in kind.node.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                    return self.evaluate(kind.source, full, value)
                case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                    return self.evaluate(kind.source, full, value)
                case ast.ClassDef(name=found) if found == name:
                    return _Class(kind.source, node, full)
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
            case ast.List(elts=items) | ast.Tuple(elts=items):
                return _Many(tuple(self.evaluate(source, "", item) for item in items))
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
            for node, is_inside in _walk(source.tree, into_classes=False):
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


class _Visitor(ast.NodeVisitor):
    """Walks through one module, and knows what the names in the function at hand stand for."""

    def __init__(self, reader: Reader, source: SourceFile) -> None:
        self._reader = reader
        self._source = source
        self._file = short_path(str(source.path))
        self._path: list[ast.AST] = []  # the nodes that the one at hand is in
        self._scopes: list[dict[str, object]] = []  # of functions
        self._loops: dict[str, object] = {}  # variables of loops outside of functions
        self._names: list[tuple[str, type[ast.AST]]] = []  # of functions and classes
        # What a function of this module does that the module itself calls, it does when it is imported.
        self._called_on_import = {
            node.func.id
            for node, is_inside in _walk(source.tree)
            if not is_inside and isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        self.uses: list[Use] = []

    def read(self) -> None:
        """Find the uses."""
        try:
            self.visit(self._source.tree)
        except RecursionError:
            return

    def visit(self, node: ast.AST) -> None:
        """Visit a node, and remember the way to it."""
        self._path.append(node)
        try:
            super().visit(node)
        finally:
            self._path.pop()

    # -- scopes ----------------------------------------------------------------------------------------------------

    def visit_If(self, node: ast.If) -> None:
        if _is_for_type_checkers(node.test):
            for statement in node.orelse:
                self.visit(statement)
            return
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.decorator_list, *node.bases):
            self.visit(part)
        self._names.append((node.name, ast.ClassDef))
        for statement in node.body:
            self.visit(statement)
        self._names.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_function(node)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, node.args):
            self.visit(part)
        self._names.append((node.name, type(node)))
        self._scopes.append(self._parameters(node.args))
        for statement in node.body:
            self.visit(statement)
        self._scopes.pop()
        self._names.pop()

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._scopes.append(self._parameters(node.args))
        self.visit(node.body)
        self._scopes.pop()

    def _parameters(self, arguments: ast.arguments) -> dict[str, object]:
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        scope = {each.arg: self._annotated(each.annotation) for each in every if each is not None}
        return {name: value for name, value in scope.items() if name not in ("self", "cls")}

    def _annotated(self, annotation: ast.expr | None) -> object:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            try:
                annotation = ast.parse(annotation.value, mode="eval").body
            except SyntaxError:
                return None
        kind = None if annotation is None else self._value(annotation)
        return _Instance(kind) if is_a(kind, type) or is_a(kind, _Class) else None

    def visit_Import(self, node: ast.Import) -> None:
        if self._scopes:
            self._scopes[-1].update(self._reader.imported(self._source, node))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if self._scopes:
            self._scopes[-1].update(self._reader.imported(self._source, node))

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, self._value(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        self._bind(node.target, self._annotated(node.annotation) if node.value is None else self._value(node.value))

    def visit_For(self, node: ast.For) -> None:
        self._bind(node.target, self._item(node.iter), in_loop=True)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind(node.target, self._item(node.iter), in_loop=True)
        self.generic_visit(node)

    def _visit_comprehension_expression(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> None:
        for generator in node.generators:
            self.visit(generator)
        self.visit(node.elt)

    visit_ListComp = _visit_comprehension_expression  # noqa: N815  the names that ast gives
    visit_SetComp = _visit_comprehension_expression  # noqa: N815
    visit_GeneratorExp = _visit_comprehension_expression  # noqa: N815

    def visit_withitem(self, node: ast.withitem) -> None:
        self.generic_visit(node)
        if node.optional_vars is not None:
            self._bind(node.optional_vars, self._value(node.context_expr))

    def _bind(self, target: ast.expr, value: object, *, in_loop: bool = False) -> None:
        if not isinstance(target, ast.Name):
            return
        if self._scopes:
            self._scopes[-1][target.id] = value
        elif in_loop:
            # When the module is loaded its loops are over; while one runs, its variable is each of the items.
            self._loops[target.id] = value

    def _item(self, node: ast.expr) -> object:
        value = self._value(node)
        if is_a(value, _Many):
            return value
        if type(value) in (list, tuple, set, frozenset):
            return _Many(tuple(value))  # type: ignore[arg-type]  # narrowed by identity of the type
        return None

    # -- values ----------------------------------------------------------------------------------------------------

    def _value(self, node: ast.expr) -> object:  # noqa: PLR0911  a table of expressions
        match node:
            case ast.Name(id=name):
                return self._named(name)
            case ast.Attribute(value=value, attr=attribute):
                return self._reader.member(self._value(value), attribute)
            case ast.Call(func=ast.Attribute(value=value, attr="using")):
                return self._value(value)
            case ast.Call(func=func):
                kind = self._value(func)
                return _Instance(kind) if is_a(kind, type) or is_a(kind, _Class) else None
            case ast.Await(value=value) | ast.NamedExpr(value=value):
                return self._value(value)
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return _Many(tuple(self._value(item) for item in items))
        return None

    def _named(self, name: str) -> object:
        for scope in reversed(self._scopes):
            if name in scope:
                return scope[name]
        if name in self._loops:
            return self._loops[name]
        if self._names and name in ("self", "cls"):
            return self._class()
        if self._names and self._names[-1][1] is ast.ClassDef:
            own = self._reader.member(self._class(), name)
            if own is not None:
                return own
        return self._reader.top_level(self._source, name)

    def _class(self) -> object:
        depth = max((number for number, (_, kind) in enumerate(self._names) if kind is ast.ClassDef), default=-1)
        value: object = self._source if self._source.module is None else self._source.module
        for name, _ in self._names[: depth + 1]:
            value = self._reader.member(value, name)
        return value if depth >= 0 else None

    def _signals(self, node: ast.expr) -> list[AnySignal | Declared]:
        value = self._value(node)
        things = value.things if is_a(value, _Many) else (value,)
        return [thing for thing in things if is_a(thing, Signal) or is_a(thing, Declared)]

    # -- uses ------------------------------------------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        kind = METHODS.get(node.attr)
        if kind is None or not isinstance(node.ctx, ast.Load):
            return
        parent = self._path[-2]
        call = parent if isinstance(parent, ast.Call) and parent.func is node else None
        for signal in self._signals(node.value):
            if kind == "connect":
                self._add(kind, signal, node, receiver=self._receiver(call, parent), sender=_sender(call))
            else:
                is_lost = call is not None and node.attr in COROUTINES and self._is_never_awaited()
                self._add(kind, signal, node, is_awaited=not is_lost)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.args:
            self._visit_method(node, node.func)
        function = self._value(node.func)
        if function is asignals.receiver and node.args:
            for signal in self._signals(node.args[0]):
                self._add("connect", signal, node, receiver=self._receiver(None, self._path[-2]), sender=_sender(node))
        elif function is asignals.stream:
            for argument in node.args:
                for signal in self._signals(argument):
                    self._add("listen", signal, node)

    def _visit_method(self, node: ast.Call, function: ast.Attribute) -> None:
        kind = RELAY_METHODS.get(function.attr)
        if kind is None and function.attr not in BACKGROUND_SENDS:
            return
        if self._signals(function.value):  # a signal's own send, whose first argument is the sender
            return
        for signal in self._signals(node.args[0]):
            if kind is not None:
                self._add(kind, signal, node)
            else:
                is_lost = function.attr == "send" and self._is_background(function.value) and self._is_never_awaited(1)
                self._add("send", signal, node, is_awaited=not is_lost)

    def _is_background(self, node: ast.expr) -> bool:
        value = self._value(node)
        return is_a(value, Background) or (is_a(value, _Instance) and value.kind is Background)

    def _receiver(self, call: ast.Call | None, parent: ast.AST) -> str:
        """Who is connected: the first argument, or the function that is decorated."""
        given = None if call is None else _argument(call, 0, "receiver")
        if given is not None:
            return ast.unparse(given)
        decorated: ast.AST = self._path[-3] if call is not None and len(self._path) > 2 else parent  # noqa: PLR2004
        if isinstance(decorated, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return decorated.name
        return ""

    def _is_never_awaited(self, depth: int = 2) -> bool:
        """Whether the call at hand makes a coroutine that nobody can await; `depth` is where it is in the path."""
        node, parent = self._path[-depth], self._path[-depth - 1]
        if isinstance(parent, ast.Assign) and isinstance(parent.targets[0], ast.Name) and len(parent.targets) == 1:
            function = next((each for each in reversed(self._path) if isinstance(each, _FUNCTIONS)), None)
            return function is not None and _is_wasted(parent.targets[0].id, function)
        return _wastes(parent, node)

    def _add(  # noqa: PLR0913  a use has many sides
        self,
        kind: UseKind,
        signal: AnySignal | Declared,
        node: ast.expr,
        *,
        receiver: str = "",
        sender: str = "",
        is_awaited: bool = True,
    ) -> None:
        function = ".".join([self._source.name, *(name for name, _ in self._names)])
        on_import = self._happens_on_import()
        line = self._line(node)
        use = Use(kind, signal, function, self._source.name, self._file, line, on_import, receiver, sender, is_awaited)
        if use not in self.uses:
            self.uses.append(use)

    def _line(self, node: ast.expr) -> int:
        # In a chain of calls over several lines, the line of the method's name.
        return node.end_lineno or node.lineno if isinstance(node, ast.Attribute) else node.lineno

    def _happens_on_import(self) -> bool:
        functions = [name for name, kind in self._names if kind is not ast.ClassDef]
        if self._scopes and not (len(functions) == 1 == len(self._scopes) and functions[0] in self._called_on_import):
            return False
        return not any(isinstance(each, ast.If) and _is_main_test(each.test) for each in self._path)


def _argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    if len(call.args) > position:
        return call.args[position]
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _sender(call: ast.Call | None) -> str:
    given = None if call is None else _argument(call, 1, "sender")
    return "" if given is None else ast.unparse(given)


_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Module)


def _wastes(parent: ast.AST, node: ast.AST) -> bool:
    """Whether what `node` gives is thrown away, or used as what a coroutine is not, by what it stands in."""
    match parent:
        case ast.Expr() | ast.Subscript() | ast.Compare() | ast.FormattedValue():
            return True
        case ast.For(iter=value) | ast.comprehension(iter=value) | ast.If(test=value) | ast.While(test=value):
            return value is node
        case ast.Assert(test=value):
            return value is node
    return False


def _is_wasted(name: str, function: ast.AST) -> bool:
    """Whether a variable of a function is never used, or only as what a coroutine is not."""
    for parent in ast.walk(function):
        for node in ast.iter_child_nodes(parent):
            is_read = isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
            if is_read and not (_wastes(parent, node) and not isinstance(parent, ast.Expr)):
                return False
    return not (isinstance(function, ast.Module))


def _walk(tree: ast.AST, *, into_classes: bool = True, is_inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it is inside of a function; not what only type checkers or the main program see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and (_is_for_type_checkers(node.test) or _is_main_test(node.test)):
            for other in node.orelse:
                yield other, is_inside
                yield from _walk(other, into_classes=into_classes, is_inside=is_inside)
            continue
        yield node, is_inside
        if isinstance(node, ast.ClassDef) and not into_classes:
            continue
        yield from _walk(node, into_classes=into_classes, is_inside=is_inside or isinstance(node, _BODIES))


_BODIES: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _is_for_type_checkers(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _is_main_test(test: ast.expr) -> bool:
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
