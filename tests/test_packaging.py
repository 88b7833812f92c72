"""What is published: the wheel and the source distribution, what they hold, and that they work away from here."""

import email
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.message import Message
from pathlib import Path

import pytest

MISSING = [name for name in ("build", "hatchling", "twine") if importlib.util.find_spec(name) is None]
if MISSING and not os.environ.get("ASIGNALS_REQUIRE_SERVICES"):
    pytest.skip(f"needs {', '.join(MISSING)}", allow_module_level=True)

pytestmark = [pytest.mark.once, pytest.mark.slow]
ROOT = Path(__file__).parent.parent
BUILT = "asignals-0.1.0"
DATA = {".py", ".typed", ".html", ".css", ".js", ".svg"}
QUICK = ["test_import.py", "test_send_robust.py", "test_readme.py"]
EXTRAS = {
    "all", "bench", "cli", "demo", "docs", "inspector", "kafka", "nats", "opentelemetry", "rabbitmq", "redis",
    "sqlalchemy", "test",
}  # fmt: skip


def run(*command: object, cwd: Path, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed, and that sees nothing of the checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    done = subprocess.run(  # noqa: S603  our own commands
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, "PYTHONDONTWRITEBYTECODE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def sources(*folders: str) -> set[str]:
    """The files below folders of the checkout that are no by-products of running it."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not any(part.endswith("_cache") for part in path.parts)
    }


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, as `python -m build` makes them: the wheel from the source distribution."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution's directory."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(dist / f"{BUILT}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / BUILT


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel in it, and the packages it needs from the one of the tests.

    Those by a path alone: a `.pth` file in there, such as that of an editable install, is not read.
    """
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=os.name != "nt")
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip()
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *filter(_is_site, sys.path)}
    (Path(site) / "others.pth").write_text("\n".join(sorted(others)), encoding="utf-8")
    options = "-q", "--no-deps", "--no-index", "--ignore-installed"  # the tests' own environment may have it, too
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=folder)
    return python


def _is_site(path: str) -> bool:
    return path.endswith(("site-packages", "dist-packages"))


def metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"{BUILT}.dist-info/{name}").decode()


def described(wheel: Path) -> Message:
    return email.message_from_string(metadata(wheel, "METADATA"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Every file of the package, its data too; no tests, no benchmarks, nothing that lay about."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = {
        f"{BUILT}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }
    assert names == sources("asignals") | info
    assert {Path(name).suffix for name in names - info} == DATA
    assert {"asignals/py.typed", "asignals/inspector/templates/inspector.html"} < names


def test_the_source_distribution_holds_what_its_tests_need_and_nothing_else(unpacked: Path) -> None:
    """The package, the tests, the benchmarks, the pages, and the pictures that the README shows."""
    names = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    files = {".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    assert names == sources("asignals", "tests", "benchmarks", "docs", ".github") | files
    assert {Path(name).suffix for name in names - files} == DATA | {".png", ".md", ".yml"}


def test_the_metadata_says_what_it_is(wheel: Path) -> None:
    """Name, version, licence, Python, the one dependency, the extras, and the README as description."""
    head = described(wheel)
    assert (head["Name"], head["Version"], head["Requires-Python"]) == ("asignals", "0.1.0", ">=3.11")
    assert (head["License-Expression"], head.get_all("License-File")) == ("MIT", ["LICENSE"])
    assert head["Summary"] == "Django's signals for async Python: typed, structured, durable."
    requirements = head.get_all("Requires-Dist") or []
    assert [each for each in requirements if "extra ==" not in each] == ["anyio>=4.15"]
    assert set(head.get_all("Provides-Extra") or []) == EXTRAS
    kafka = [each for each in requirements if each.startswith("confluent-kafka") and "== 'kafka'" not in each]
    assert kafka  # by `all` and `test`, which can be installed where it has no wheels
    assert all("python_version < '3.15'" in each for each in kafka)
    assert head["Description-Content-Type"] == "text/markdown"
    assert head.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    versions = {each.rpartition(" ")[2] for each in head.get_all("Classifier") or [] if re.search(r":: 3\.\d+$", each)}
    assert versions == {"3.11", "3.12", "3.13", "3.14", "3.15"}


def test_the_entry_points_are_the_command_and_the_plugin(wheel: Path) -> None:
    """`asignals`, and what pytest loads."""
    lines = [line for line in metadata(wheel, "entry_points.txt").splitlines() if line]
    assert lines == [
        "[console_scripts]",
        "asignals = asignals.cli:main",
        "[pytest11]",
        "asignals = asignals.pytest_plugin",
    ]


def test_twine_finds_nothing_to_complain_of(dist: Path) -> None:
    """The description renders, and the metadata is whole; warnings count."""
    files = sorted(dist.glob("asignals-*"))
    done = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files, cwd=dist)
    assert done.stdout.count("PASSED") == len(files) == 2


def test_the_installed_wheel_runs_the_readme(installed: Path, tmp_path: Path) -> None:
    """In a directory where nothing else is: each example of the README, from what is installed."""
    origin = run(installed, "-c", "import asignals; print(asignals.__file__)", cwd=tmp_path).stdout
    assert Path(origin).is_relative_to(installed.parent.parent)
    script = Path(__file__).with_name("page_examples.py")
    copy = tmp_path / script.name
    copy.write_bytes(script.read_bytes())
    done = run(installed, copy, ROOT / "README.md", cwd=tmp_path)
    assert int(done.stdout.splitlines()[-1]) >= 6
    assert done.stderr.count("Traceback") == 1  # of the receiver whose error `send_robust` logs


def test_the_installed_command_runs_the_demo(installed: Path, tmp_path: Path) -> None:
    """`asignals demo` proves its point, with the inspector's page from the wheel's data, and leaves nothing behind."""
    command = installed.with_name("asignals")
    figures = json.loads(run(command, "demo", "--requests", "40", "--json", cwd=tmp_path).stdout)
    assert figures["requests"] == 40
    assert "Usage: asignals" in run(installed, "-m", "asignals", "--help", cwd=tmp_path).stdout
    run(installed, "-c", "from asignals.inspector import Inspector; Inspector()", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_source_distributions_own_tests_pass(unpacked: Path, *, long: bool) -> None:
    """From its own directory: a quick part of them, and with `--long` all but this file."""
    origin = run(sys.executable, "-c", "import asignals; print(asignals.__file__)", cwd=unpacked).stdout
    assert Path(origin).is_relative_to(unpacked)
    what = ["--ignore=tests/test_packaging.py"] if long else [f"tests/{name}" for name in QUICK]
    limit = 3600 if long else 200
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *what, cwd=unpacked, timeout=limit)
    assert re.search(r"\b[1-9]\d+ passed", done.stdout)
