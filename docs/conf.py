"""How Sphinx builds these pages: MyST for the pages, autodoc for the reference, furo for the looks."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import Directive, directives
from docutils.statemachine import StringList

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

project = "asignals"
author = "The asignals developers"
project_copyright = "The asignals developers"
try:
    version = release = version_of("asignals")
except Exception:  # noqa: BLE001  built from a checkout that is not installed
    version = release = ""

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["build"]
myst_heading_anchors = 3
default_role = "code"
pygments_style = "friendly"
pygments_dark_style = "github-dark"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "asignals"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "sidebar_hide_name": False,
    "light_css_variables": {"color-brand-primary": "#0b6e4f", "color-brand-content": "#0b6e4f"},
    "dark_css_variables": {"color-brand-primary": "#5fd3a4", "color-brand-content": "#5fd3a4"},
}
html_static_path = ["static"]
html_css_files = ["docs.css"]


# -- docstrings are Markdown, autodoc reads reStructuredText ----------------------------------------------------------

_CODE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
_INDENT = 4


def _inline(line: str) -> str:
    # A literal ends before a letter only with a backslash and a space.
    return re.sub(_CODE.pattern + r"(?=(\w?))", lambda found: f"``{found[1]}``" + ("\\ " if found[2] else ""), line)


def _table(rows: list[str]) -> list[str]:
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip().strip("|"))] for row in rows]
    made = [".. list-table::", "   :header-rows: 1", ""]
    for row in cells[:1] + cells[2:]:
        made += [f"   {'*' if number == 0 else ' '} - {_inline(cell)}" for number, cell in enumerate(row)]
    return [*made, ""]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def to_rst(lines: list[str]) -> list[str]:
    """Turn the little Markdown that our docstrings use into reStructuredText."""
    made: list[str] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if line.strip().startswith("```"):
            end = next(at for at in range(number + 1, len(lines)) if lines[at].strip() == "```")
            made += ["", f"{' ' * _indent(line)}.. code-block:: {line.strip()[3:] or 'text'}", ""]
            made += [f"   {each}" for each in lines[number + 1 : end]] + [""]
            number = end + 1
        elif line.startswith("|"):
            end = next((at for at in range(number, len(lines)) if not lines[at].startswith("|")), len(lines))
            made += ["", *_table(lines[number:end])]
            number = end
        elif _begins_code(lines, number):
            end = next(
                (at for at in range(number, len(lines)) if lines[at] and _indent(lines[at]) < _INDENT), len(lines)
            )
            made += [".. code-block:: python", "", *lines[number:end], ""]
            number = end
        else:
            made.append(_inline(line))
            number += 1
    return made


def _begins_code(lines: list[str], number: int) -> bool:
    """Whether a block indented by four follows a paragraph that is not indented."""
    if number < 2 or _indent(lines[number]) != _INDENT or not lines[number].strip() or lines[number - 1].strip():  # noqa: PLR2004
        return False
    before = next((each for each in reversed(lines[:number]) if each.strip()), "")
    return _indent(before) == 0 and not before.startswith(("-", "*")) and not before.rstrip().endswith("::")


def _process_docstring(_app: Any, _what: str, _name: str, _thing: Any, _options: Any, lines: list[str]) -> None:
    text = "\n".join(lines)
    lines[:] = to_rst(_CODE.sub(lambda found: "`" + found[1].replace("\n", " ") + "`", text).split("\n"))


# What the core itself calls of classes whose other members are public.
_INTERNAL = {
    "asignals.Connection": {"code", "function", "method", "shape", "is_easily_lost", "target", "set_options", "end"}
    | {"describe", "take", "call", "is_live", "key", "options", "order", "source", "style"},
    "asignals.Stream": {"put", "report"},
}


def _skip_member(app: Any, _what: str, name: str, _thing: Any, skip: Any, _options: Any) -> bool | None:
    document = app.env.temp_data.get("autodoc:class")
    return True if not skip and name in _INTERNAL.get(f"asignals.{document}", ()) else None


# Bases that are not public themselves: what they define is described with each class that has it from them.
_SHARED = {"BrokerEngine", "Operations"}


class PublicNames(Directive):
    """`.. public-names:: module`: each name of its `__all__`, those of `:first:` before the others, errors last."""

    required_arguments = 1
    option_spec: ClassVar = {"first": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Write a directive of autodoc for each name, and have it read."""
        module = import_module(self.arguments[0])
        first = [name for name in self.options.get("first", "").split() if name in module.__all__]
        names = sorted(module.__all__, key=lambda name: first.index(name) if name in first else len(first))
        things = [(name, _load(module, name)) for name in names]
        things.sort(key=lambda each: _is_error(each[1]))
        lines = [line for name, thing in things for line in _describe(module.__name__, name, thing)]
        node = nodes.section()
        self.state.nested_parse(StringList(lines, module.__name__), self.content_offset, node)
        return node.children


class _Missing:
    """Stands for a class whose extra is not installed where the pages are built."""


def _load(module: Any, name: str) -> Any:
    try:
        return getattr(module, name)
    except ModuleNotFoundError:
        return _Missing()


def _is_error(thing: Any) -> bool:
    return isinstance(thing, type) and issubclass(thing, BaseException)


def _describe(module: str, name: str, thing: Any) -> list[str]:
    full = f"{module}.{name}"
    if isinstance(thing, _Missing):
        return ["", f".. py:class:: {name}", f"   :module: {module}", "", "   Its extra was not installed here.", ""]
    if _is_error(thing):
        return ["", f".. autoexception:: {full}"]
    if isinstance(thing, type):
        has_shared = any(base.__name__ in _SHARED for base in thing.__bases__)
        return ["", f".. autoclass:: {full}", "   :members:", *(["   :inherited-members:"] if has_shared else [])]
    if inspect.isroutine(thing):
        return ["", f".. autofunction:: {full}"]
    if hasattr(thing, "send_robust"):  # a signal
        text = to_rst(inspect.cleandoc(thing.__doc__ or "").split("\n"))
        arguments = ", ".join(thing.providing_args or ()) or "any"
        body = ["", ":Arguments: " + arguments, "", *text]
        return [
            "",
            f".. py:data:: {name}",
            f"   :module: {module}",
            "   :type: Signal",
            *(f"   {line}".rstrip() for line in body),
            "",
        ]
    return ["", f".. autodata:: {full}", "   :no-value:"]


def setup(app: Any) -> None:
    """Convert before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)
    app.connect("autodoc-skip-member", _skip_member)
    app.add_directive("public-names", PublicNames)
