"""How Sphinx builds these pages: MyST for the pages, autodoc for the reference, furo for the looks."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

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


def setup(app: Any) -> None:
    """Convert before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)
