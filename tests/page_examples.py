"""Runs the examples of a page, the README or one of the docs, as one program; also a script: `page_examples.py PAGE`.

- A block of Python is run, with `await` where it has it.
- One with a `:caption:` is written to the file of that name; so is any other language's. A file of Python is compiled.
- A block of `sh` is run by bash, and has to succeed.
- A block of `console` has commands, each after `$ `, and what they print.
- A block of `text` is what the block before it has printed. `...` stands for anything.
- TOML, JSON and INI are parsed.
- `<!-- not run: reason -->` before a block says why it is not run; `<!-- run` ... `-->` holds Python that readers need
  not see.
"""

import ast
import configparser
import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tomllib
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio

_BLOCK = re.compile(
    r"(?P<excuse>^<!-- not run: (?P<reason>[^\n]+) -->\n\n?)?"
    r"^(?P<fence>```+)(?:\{code-block\} )?(?P<language>[a-z]+)\n(?P<options>(?::[a-z-]+:[^\n]*\n)*)"
    r"\n?(?P<text>.*?)^(?P=fence)$"
    r"|^<!-- run\n(?P<hidden>.*?)^-->$",
    re.DOTALL | re.MULTILINE,
)
_CAPTION = re.compile(r"^:caption: (\S+)$", re.MULTILINE)
_SHELL_LIMIT = 300  # seconds


@dataclass(frozen=True)
class Example:
    """A block of a page."""

    language: str
    text: str
    line: int
    file: str | None = None
    reason: str | None = None
    """Why it is not run."""


def examples(page: Path) -> list[Example]:
    """Find the blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [_example(found, text) for found in _BLOCK.finditer(text)]


def _example(found: re.Match[str], text: str) -> Example:
    group = "text" if found["hidden"] is None else "hidden"
    line = text.count("\n", 0, found.start(group))
    if group == "hidden":
        return Example("python", found["hidden"], line)
    caption = _CAPTION.search(found["options"])
    return Example(found["language"], found["text"], line, caption and caption[1], found["reason"])


class Program:
    """The examples of one page, as they are run: their names, and what the last one has printed."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.names: dict[str, object] = {}
        self.printed = ""
        self.ran = 0
        self.unraisable: list[str] = []

    async def run(self) -> None:
        """Run all of them; the first that fails raises."""
        module = types.ModuleType("__page__")  # so that signals find their names
        sys.modules["__page__"] = module
        self.names = vars(module)
        sys.unraisablehook = lambda found: self.unraisable.append(f"{found.exc_value!r} {found.err_msg or ''}")
        for example in examples(self.page):
            if example.reason is None:
                await self._run(example)
                assert self.unraisable == [], f"{self.page}:{example.line}"

    async def _run(self, example: Example) -> None:
        if example.file is not None:
            self._write(example)
        elif example.language == "python":
            await self._run_python(example)
        elif example.language == "sh":
            self.printed = self._run_shell(example.text, example)
        elif example.language == "console":
            self._run_console(example)
        elif example.language == "text":
            self._compare(example.text, self.printed, example)
        else:
            _parse(example.language, example.text)
            return
        self.ran += 1

    def _write(self, example: Example) -> None:
        path = Path(example.file or "")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(example.text, encoding="utf-8")
        if path.suffix == ".py":
            compile(example.text, str(path), "exec", dont_inherit=True)
        else:
            _parse(example.language, example.text)

    async def _run_python(self, example: Example) -> None:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        source = "\n" * example.line + example.text  # so that a traceback shows the page's own line
        code = compile(source, str(self.page), "exec", flags=flags, dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            outcome = eval(code, self.names)  # noqa: S307  the page is ours
            if outcome is not None:
                await outcome
        self.printed = printed.getvalue()

    def _run_shell(self, command: str, example: Example) -> str:
        done = subprocess.run(  # noqa: S603  the page is ours
            ["bash", "-euo", "pipefail", "-c", command],  # noqa: S607  bash is found by PATH
            capture_output=True,
            text=True,
            timeout=_SHELL_LIMIT,
            check=False,
        )
        assert done.returncode == 0, f"{self.page}:{example.line + 1}: {command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def _run_console(self, example: Example) -> None:
        for part in re.split(r"^\$ ", example.text, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            while command.endswith("\\"):
                more, _, expected = expected.partition("\n")
                command = f"{command}\n{more}"
            self._compare(expected, self._run_shell(command, example), example)

    def _compare(self, expected: str, printed: str, example: Example) -> None:
        pattern = re.escape(_plain(expected)).replace(r"\.\.\.", ".*?")
        fits = re.fullmatch(pattern, _plain(printed), re.DOTALL)
        assert fits, f"{self.page}:{example.line + 1} shows\n{expected}\nbut it is\n{printed}"


def _plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def _parse(language: str, text: str) -> None:
    if language == "toml":
        tomllib.loads(text)
    elif language == "json":
        json.loads(text)
    elif language == "ini":
        configparser.ConfigParser(strict=False, interpolation=None).read_string(text)


@contextlib.contextmanager
def _in_directory(directory: Path) -> Iterator[None]:
    with contextlib.chdir(directory):
        sys.path.insert(0, str(directory))
        yield


def main(page: Path) -> int:
    """Run a page in the current directory; returns how many of its blocks ran."""
    warnings.simplefilter("error")
    logging.basicConfig(level=logging.WARNING)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = Program(page)
    with _in_directory(Path.cwd()):
        anyio.run(program.run)
    return program.ran


if __name__ == "__main__":
    print(main(Path(sys.argv[1]).resolve()))  # noqa: T201  its output
