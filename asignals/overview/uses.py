"""What a module does with signals, by its source: sends, connects, listens, hands to a relay; where, and when."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from types import FunctionType
from typing import Final, Literal, TypeAlias

import asignals
from asignals import Background, Signal
from asignals._core import is_a
from asignals.overview.source import (
    AnySignal,
    Declared,
    Instance,
    Many,
    Reader,
    SourceFile,
    StaticClass,
    called_on_import,
    is_for_type_checkers,
    is_main_test,
)
from asignals.overview.values import short_path

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
LISTENING: Final = frozenset(name for name, kind in METHODS.items() if kind in ("connect", "listen"))
COROUTINES: Final = frozenset({"send", "send_robust", "wait"})
"""Methods of a signal that do nothing until they are awaited."""


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


def uses_of(reader: Reader, source: SourceFile) -> list[Use]:
    """The places of a module that do something with signals, in order."""
    visitor = _Visitor(reader, source)
    visitor.read()
    return visitor.uses


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
        self._called_on_import = called_on_import(source.tree)
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
        if is_for_type_checkers(node.test):
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
        kind = None if annotation is None else self._value(_without_none(annotation))
        return Instance(kind) if is_a(kind, type) or is_a(kind, StaticClass) else None

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
        if isinstance(target, ast.Tuple | ast.List):
            self._unpack(target.elts, value, in_loop=in_loop)
        if not isinstance(target, ast.Name):
            return
        if self._scopes:
            self._scopes[-1][target.id] = value
        elif in_loop:
            # When the module is loaded its loops are over; while one runs, its variable is each of the items.
            self._loops[target.id] = value

    def _unpack(self, targets: list[ast.expr], value: object, *, in_loop: bool) -> None:
        rows = value.things if is_a(value, Many) else ()
        if not in_loop:
            rows = (value,)
        for number, target in enumerate(targets):
            columns = [_row(each) for each in rows]
            self._bind(target, Many(tuple(each[number] for each in columns if number < len(each))), in_loop=in_loop)

    def _item(self, node: ast.expr) -> object:
        match node:
            case ast.Call(func=ast.Attribute(value=inner, attr="items" | "values" | "keys" as method), args=[]):
                return self._of_mapping(inner, method)
            case ast.Dict():
                return self._of_mapping(node, "keys")
        value = self._value(node)
        if type(value) is dict:
            return Many(tuple(value))
        if is_a(value, Many):
            return value
        if type(value) in (list, tuple, set, frozenset):
            return Many(tuple(value))  # type: ignore[arg-type]  # narrowed by identity of the type
        return None

    def _of_mapping(self, node: ast.expr, method: str) -> object:
        """What a loop over the items, values or keys of a mapping gives, one that is written there or is loaded."""
        if isinstance(node, ast.Dict):
            pairs = [
                (self._value(key), self._value(each)) for key, each in zip(node.keys, node.values, strict=True) if key
            ]
        else:
            value = self._value(node)
            if is_a(value, Many):  # of a module that is not loaded: the values
                return Many(tuple(Many((None, each)) for each in value.things)) if method == "items" else value
            pairs = list(value.items()) if type(value) is dict else []
        columns: dict[str, tuple[object, ...]] = {
            "items": tuple(Many(pair) for pair in pairs),
            "keys": tuple(key for key, _ in pairs),
            "values": tuple(each for _, each in pairs),
        }
        return Many(columns[method])

    # -- values ----------------------------------------------------------------------------------------------------

    def _value(self, node: ast.expr) -> object:  # noqa: PLR0911  a table of expressions
        match node:
            case ast.Name(id=name):
                return self._named(name)
            case ast.Attribute(value=value, attr="__class__") | ast.Call(func=ast.Name(id="type"), args=[value]):
                return self._value(value)
            case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str() as attribute), *_]):
                return self._reader.member(self._value(value), attribute)
            case ast.Subscript(value=value, slice=key):
                return self._chosen(self._value(value), key)
            case ast.Attribute(value=value, attr=attribute):
                return self._reader.member(self._value(value), attribute)
            case ast.Call(func=ast.Attribute(value=value, attr="using")):
                return self._value(value)
            case ast.Call(func=func):
                kind = self._value(func)
                return Instance(kind) if is_a(kind, type) or is_a(kind, StaticClass) else None
            case ast.Await(value=value) | ast.NamedExpr(value=value):
                return self._value(value)
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return Many(tuple(self._value(item) for item in items))
        return None

    def _chosen(self, value: object, key: ast.expr) -> object:
        """One of the things in a container: that of a key that is written there, else any of them."""
        if type(value) is dict:
            is_known = isinstance(key, ast.Constant) and key.value in value
            return value[key.value] if is_known else Many(tuple(value.values()))  # type: ignore[attr-defined]
        return Many(_row(value)) if type(value) in (list, tuple) else value if is_a(value, Many) else None

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
        things = value.things if is_a(value, Many) else (value,)
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
        elif function is asignals.stream or _may_listen(function):
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
        return is_a(value, Background) or (is_a(value, Instance) and value.kind is Background)

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
        name = ".".join(name for name, _ in self._names)
        if self._scopes and not (len(self._scopes) == 1 and name in self._called_on_import):
            return False
        return not any(isinstance(each, ast.If) and is_main_test(each.test) for each in self._path)


def _may_listen(function: object) -> bool:
    """Whether a function of the program connects something: it may be the signal that it is given."""
    return is_a(function, FunctionType) and not LISTENING.isdisjoint(function.__code__.co_names)


def _without_none(annotation: ast.expr) -> ast.expr:
    """Of `Order | None` and `Optional[Order]`, the class."""
    match annotation:
        case ast.BinOp(left=kind, op=ast.BitOr(), right=ast.Constant(value=None)):
            return kind
        case ast.BinOp(left=ast.Constant(value=None), op=ast.BitOr(), right=kind):
            return kind
        case ast.Subscript(value=ast.Name(id="Optional") | ast.Attribute(attr="Optional"), slice=kind):
            return kind
    return annotation


def _row(thing: object) -> tuple[object, ...]:
    if is_a(thing, Many):
        return thing.things
    return tuple(thing) if type(thing) in (list, tuple) else ()  # type: ignore[arg-type]  # narrowed by identity


def _argument(call: ast.Call, position: int, name: str) -> ast.expr | None:
    if len(call.args) > position:
        return call.args[position]
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def _sender(call: ast.Call | None) -> str:
    given = None if call is None else _argument(call, 1, "sender")
    return "" if given is None else ast.unparse(given)


_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.Module)


def _wastes(parent: ast.AST, node: ast.AST) -> bool:
    """Whether what `node` gives is discarded, or used as what a coroutine is not, by what it stands in."""
    match parent:
        case ast.Expr() | ast.Subscript() | ast.Compare() | ast.FormattedValue():
            return True
        case ast.For(iter=value) | ast.comprehension(iter=value) | ast.If(test=value) | ast.While(test=value):
            return value is node
        case ast.Assert(test=value) | ast.IfExp(test=value) | ast.BoolOp(values=[value, *_]):
            return value is node
        case ast.UnaryOp(op=ast.Not()):
            return True
    return False


def _is_wasted(name: str, function: ast.AST) -> bool:
    """Whether a variable of a function is never used, or only as what a coroutine is not."""
    for parent in ast.walk(function):
        for node in ast.iter_child_nodes(parent):
            is_read = isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
            if is_read and not (_wastes(parent, node) and not isinstance(parent, ast.Expr)):
                return False
    return not (isinstance(function, ast.Module))
