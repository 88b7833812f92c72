"""The docs: every example runs, every page is built without a warning, and every link leads somewhere."""

import ast
import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from page_examples import examples

from asignals import DeclarationError
from asignals._core import DocumentedError

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("the docs are not here", allow_module_level=True)
PAGES = sorted(DOCS.rglob("*.md"))
PAGES_WITH_EXAMPLES = [page for page in PAGES if any(each.reason is None for each in examples(page))]
LIMIT = 300  # seconds
MODULES = [
    "asignals",
    "asignals.asgi",
    "asignals.inspector",
    "asignals.opentelemetry",
    "asignals.pytest_plugin",
    "asignals.relay",
    "asignals.relay.asyncapi",
    "asignals.relay.testing",
    "asignals.sqlalchemy",
    "asignals.testing",
]

NOT_YET: dict[str, str] = {}
"""Pages whose examples need what is not here yet, with the reason. The aim is that it is empty."""

SLOW = {
    "howto/asyncapi",
    "howto/broadcast",
    "howto/engines",
    "howto/exactly-once",
    "howto/fastapi",
    "howto/find-unheard",
}
SLOW |= {"howto/frameworks", "howto/migrations", "howto/outbox", "howto/rolling-deploys", "howto/sync-code"}
SLOW |= {"howto/testing", "howto/testing-relay", "howto/typing", "howto/worker", "install"}
"""Pages that start servers, type checkers, programs or the demo."""

MISSING = [name for name in ("sphinx", "myst_parser", "furo") if find_spec(name) is None]
needs_sphinx = pytest.mark.skipif(
    bool(MISSING) and not os.environ.get("ASIGNALS_REQUIRE_SERVICES"), reason=f"needs {', '.join(MISSING)}"
)


SPARE = {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_PLUGINS": "anyio.pytest_plugin,asignals.pytest_plugin",
    "PYTEST_ADDOPTS": "--assert=plain",
}
"""A page's run of pytest loads the plugins that it is about, and not all those that are installed."""


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


def page_params() -> list[object]:
    return [pytest.param(page, id=name_of(page), marks=marks_of(name_of(page))) for page in PAGES_WITH_EXAMPLES]


def marks_of(page: str) -> list[pytest.MarkDecorator]:
    marks = [pytest.mark.slow] if page in SLOW else []
    return [*marks, pytest.mark.xfail(strict=True, reason=NOT_YET[page])] if page in NOT_YET else marks


@pytest.mark.parametrize("page", page_params())
def test_the_examples_of_a_page_run_as_they_stand(page: Path, tmp_path: Path) -> None:
    """In order, as one program in a process and a directory of its own; what they print is what the page shows."""
    process = subprocess.Popen(  # noqa: S603  our own script
        [sys.executable, str(Path(__file__).with_name("page_examples.py")), str(page)],
        cwd=tmp_path,
        env={**os.environ, **SPARE, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what the page has started, too
    missing = re.search(r"^ModuleNotFoundError: No module named '(\w+)", output, re.MULTILINE)
    if missing and missing[1] != "asignals" and not os.environ.get("ASIGNALS_REQUIRE_SERVICES"):
        pytest.skip(f"needs {missing[1]}")
    assert process.returncode == 0, output


def test_what_is_not_run_says_why() -> None:
    """Python is always run; of the rest, only what needs another machine, a network or a service is not."""
    left_out = [(name_of(page), each) for page in PAGES for each in examples(page) if each.reason is not None]
    assert [where for where, each in left_out if each.language == "python"] == []
    assert set(NOT_YET) <= {name_of(page) for page in PAGES}


def test_every_page_has_one_title_and_is_not_too_long() -> None:
    """A page answers one question; a reader should not have to search in it."""
    for page in PAGES:
        text = re.sub(r"^(```+).*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert len(re.findall(r"^# ", text, re.MULTILINE)) <= 1, page
        assert len(text.splitlines()) < 400, page


class _Page(HTMLParser):
    """What a built page links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors.update(filter(None, [given.get("id"), given.get("name") if tag == "a" else None]))
        for name in ("href", "src"):
            link = given.get(name)
            if link and tag in ("a", "img", "link", "script"):
                self.links.append(link)


def local(link: str, page: str) -> tuple[str, str] | None:
    """The file and the anchor that a link of a page leads to; `None` for other hosts."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = os.path.normpath(Path(page).parent / unquote(parts.path)) if parts.path else page
    return Path(path).as_posix(), unquote(parts.fragment)


@needs_sphinx
@pytest.mark.slow
def test_the_site_is_built_and_whole(tmp_path: Path) -> None:
    """Without a warning, by the README's command; no link is broken, no page is far away, and search works."""
    done = subprocess.run(  # noqa: S603  our own script
        [sys.executable, str(DOCS), "--no-open", "--output", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT * 2,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): _Page(path.read_text("utf-8")) for path in tmp_path.rglob("*.html")}
    assert broken_links(tmp_path, pages) == []
    assert {page: clicks for page, clicks in clicks_from_the_front(pages).items() if clicks > 3} == {}
    documented = {anchor for page in pages.values() for anchor in page.anchors}
    for module in MODULES:
        missing = [name for name in importlib.import_module(module).__all__ if f"{module}.{name}" not in documented]
        assert f"module-{module}" in documented
        assert missing == [] or module == "asignals.pytest_plugin", module  # its docstring tells of the fixtures
    index = (tmp_path / "searchindex.js").read_text("utf-8").lower()
    for stem in ("outbox", "roll", "deploy", "receiverlostwarn"):  # outbox, rolling deploy, ReceiverLostWarning
        assert re.search(rf'[{{,"]{stem}\w*"?:', index), stem
    for name in pages:
        text = (tmp_path / name).read_text("utf-8")
        elsewhere = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:)?//[^\"]+\"", text)
        assert elsewhere == [], f"{name} loads something from another host"


def broken_links(site: Path, pages: dict[str, _Page]) -> list[tuple[str, str]]:
    """Links of a page to a file or an anchor that is not there."""
    broken = []
    for name, page in pages.items():
        for link in page.links:
            target, anchor = local(link, name) or (name, "")
            if not (site / target).exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                broken.append((name, link))
    return broken


def clicks_from_the_front(pages: dict[str, _Page]) -> dict[str, float]:
    """How many links lead from the front page to each page."""
    clicks = dict.fromkeys((f"{name_of(page)}.html" for page in PAGES), float("inf"))
    clicks["index.html"] = 0
    waiting = deque(["index.html"])
    while waiting:
        name = waiting.popleft()
        for target, _ in filter(None, (local(link, name) for link in pages[name].links)):
            if clicks.get(target, 0) == float("inf"):
                clicks[target] = clicks[name] + 1
                waiting.append(target)
    return clicks


def test_the_reference_has_every_command_and_option() -> None:
    """Those that the command line knows now."""
    main = pytest.importorskip("typer.main")
    from asignals.cli import app
    from asignals.relay.commands import app as relay
    from asignals.relay.commands import worker_app

    text = (DOCS / "reference" / "commands.md").read_text("utf-8")
    for prefix, program in (("asignals", app), ("asignals relay", relay), ("asignals worker", worker_app)):
        group = main.get_command(program)
        commands = {f"{prefix} {name}": each for name, each in getattr(group, "commands", {}).items()}
        for name, command in {prefix: group, **commands}.items():
            assert f"`{name} " in text or f"`{name}`" in text, name
            for option in (option for parameter in command.params for option in parameter.opts):
                assert not option.startswith("--") or option in text, f"{name} {option}"


def test_the_reference_has_every_log_message() -> None:
    """Each warning and error that is logged, with its cause and its cure."""
    text = " ".join((DOCS / "reference" / "messages.md").read_text("utf-8").split())
    logged = {
        (path.name, message)
        for path in (ROOT / "asignals").rglob("*.py")
        if "demo" not in path.parts
        for message in messages(ast.parse(path.read_text("utf-8")))
    }
    assert logged
    missing = [each for each in sorted(logged) if each[1] not in text]
    assert missing == []


def messages(module: ast.Module) -> Iterator[str]:
    """The texts that a module logs as warnings or errors, `…` for what is filled in."""
    for node in ast.walk(module):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"warning", "error", "exception", "critical"}
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id.endswith("logger")
            and isinstance(node.args[0], ast.Constant)
        ):
            found = re.sub(r"%[.\d]*[a-z]", "…", node.args[0].value)
            if re.search(r"\w", found):
                yield found


def test_the_reference_has_every_error() -> None:
    """Each public exception and warning."""
    text = (DOCS / "reference" / "messages.md").read_text("utf-8")
    for module in MODULES:
        loaded = importlib.import_module(module)
        for name in loaded.__all__:
            thing = None
            with contextlib.suppress(ModuleNotFoundError):  # an interpreter may have no wheel of an engine's client
                thing = getattr(loaded, name)
            if isinstance(thing, type) and issubclass(thing, BaseException):
                assert name in text, name


def test_the_notes_of_errors_lead_somewhere() -> None:
    """Each public error has a note with an anchor of the reference, and the lost receiver's warning names its own."""
    text = (DOCS / "reference" / "messages.md").read_text("utf-8")
    documented = [DocumentedError]
    for module in MODULES:
        importlib.import_module(module)
    for each in documented:
        documented += each.__subclasses__()
    names = {each.__name__ for each in documented[1:] if each.__module__.startswith("asignals")}
    assert {"InvalidReceiverError", "NoSessionError", "AsyncReceiverError"} <= names
    assert [name for name in sorted(names) if f'id="{name.lower()}"' not in text] == []
    assert "### ReceiverLostWarning" in text
    assert DeclarationError("text").__notes__ == ["See docs/reference/messages.md#declarationerror"]


@pytest.mark.parametrize("page", sorted((ROOT / ".github").glob("*.md")), ids=lambda path: path.name)
def test_what_the_repositorys_pages_link_to_is_there(page: Path) -> None:
    """CONTRIBUTING and SECURITY."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).resolve().is_file()] == []
