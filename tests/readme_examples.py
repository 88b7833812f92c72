"""The README's Python examples, run as a newcomer would type them; also a script: `readme_examples.py README.md`."""

import ast
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import anyio

_HEADING = re.compile(r"^(?:#+ |<summary>)(.*)$", re.MULTILINE)
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass
class Example:
    """A block of code, and the heading that it stands under."""

    title: str
    code: CodeType


def examples(readme: Path) -> list[Example]:
    """Each example, compiled so that a traceback shows the README's own line."""
    text = readme.read_text(encoding="utf-8")
    found = []
    for block in _BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile("\n" * line + block[1], str(readme), "exec", flags=flags, dont_inherit=True)
        headings = _HEADING.findall(text, 0, block.start())
        found.append(Example(re.sub("<.*?>", "", headings[-1]).strip(), code))
    return found


def is_guide(example: Example) -> bool:
    """Whether the example is of a guide for people who come from another library: those stand each for itself."""
    return example.title.startswith("From ")


async def run(code: CodeType, namespace: dict[str, object]) -> None:
    """Run one example, with `await` where it has it."""
    outcome = eval(code, namespace)  # noqa: S307  the README is ours
    if outcome is not None:
        await outcome


async def run_tour(found: list[Example]) -> dict[str, object]:
    """Run what is no guide, in order, as one program; return its names."""
    namespace: dict[str, object] = {"__name__": "readme"}
    for example in found:
        if not is_guide(example):
            await run(example.code, namespace)
    return namespace


if __name__ == "__main__":
    warnings.simplefilter("error")
    tour = examples(Path(sys.argv[1]))
    anyio.run(run_tour, tour)
    print(sum(not is_guide(example) for example in tour))  # noqa: T201  its output
