"""SQLAlchemy's own tests of its ORM, run with every signal connected: asignals changes nothing that they look at.

Not part of a usual run: `ASIGNALS_SQLALCHEMY_SUITE=sqlite pytest tests/test_sqlalchemy_suite.py`, or `postgresql`, or
both with a comma between them; `ASIGNALS_SQLALCHEMY_SUITE_TESTS="test/orm/test_session.py"` runs a part. pip fetches
the sources of the SQLAlchemy that is installed into a temporary directory. 20 minutes on two cores.
"""

import asyncio
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from uuid import uuid4
from xml.etree import ElementTree as ET

import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy_support import postgres_url

CHOSEN = [each for each in os.environ.get("ASIGNALS_SQLALCHEMY_SUITE", "").split(",") if each]
WORKERS = os.environ.get("ASIGNALS_SQLALCHEMY_SUITE_WORKERS", "2")

TESTS = os.environ.get("ASIGNALS_SQLALCHEMY_SUITE_TESTS", "test/orm test/ext").split()

# Tests that fail only with signals, and why: a part of the test's id, and the reason.
EXPECTED: dict[str, str] = {
    "::test_load_expired_on_pending": "counts SELECTs; what a flush has left to the database is loaded for receivers "
    "that are called after the end, where nothing could load it",
    "::ComputedDefaultsOnUpdateTest": "the same",
    "::TriggerDefaultsTest": "the same",
    "::ClauseAttributesTest": "the same",
    "test_unitofwork.py::DefaultTest": "the same",
    "::EagerDefaultsSettingTest": "the same",
    "::test_attr_not_inserted_fetched": "looks at what the flush has left to the database; loaded, as above",
    "::test_update_dont_fetch_nondefaults": "counts SELECTs; what was expired before the flush is loaded as well",
    "::test_load_only_relationships[autoflush-": "the same",
    "::BatchInsertsTest::test_batch_interaction": "the same",
    "::test_sessionmaker_gen_after_session_listen": "calls all hooks of the class Session without arguments, and finds "
    "those of enable_signals(Session)",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The sources of SQLAlchemy, tests included."""
    where = tmp_path_factory.mktemp("sqlalchemy")
    wanted = f"sqlalchemy=={sqlalchemy.__version__}"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-binary",
        "sqlalchemy",
        "-d",
        str(where),
        wanted,
    ]
    subprocess.run(pip, check=True, timeout=600)  # noqa: S603  our own command
    with tarfile.open(next(where.glob("*.tar.gz"))) as archive:
        archive.extractall(where, filter="data")
    return next(each for each in where.iterdir() if each.is_dir())


def run(sources: Path, database: str, tests: list[str], *, with_signals: bool) -> set[str]:
    """Run tests of the suite; returns the ids of those that failed."""
    report = sources / f"report-{uuid4().hex}.xml"
    options = ["-q", "-p", "no:cacheprovider", "--maxfail=1000000", "-n", WORKERS, f"--junitxml={report}"]
    options += ["-m", "not memory_intensive and not mypy and not timing_intensive"]
    if with_signals:
        options += ["-p", "sqlalchemy_orm_suite"]
    if database != "sqlite":
        options += ["--dburi", database]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    # -s: without it, the suite would use its own copy of SQLAlchemy, and not the one that asignals has imported.
    command = [sys.executable, "-s", "-m", "pytest", *options, *tests]
    done = subprocess.run(  # noqa: S603  our own command
        command, cwd=sources, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert report.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    failed = set()
    for case in ET.parse(report).iter("testcase"):  # noqa: S314  our own file
        if case.find("failure") is not None or case.find("error") is not None:
            failed.add(_id_of(case.get("classname", ""), case.get("name", ""), sources))
    return failed


def _id_of(classname: str, name: str, sources: Path) -> str:
    """A test's id from what JUnit's format has of it."""
    parts = classname.split(".")
    for length in range(len(parts), 0, -1):
        module = "/".join(parts[:length]) + ".py"
        if (sources / module).exists():
            return "::".join([module, *parts[length:], name])
    return f"{classname}::{name}"


@pytest.fixture(params=CHOSEN or [pytest.param(None, marks=pytest.mark.skip("ASIGNALS_SQLALCHEMY_SUITE is not set"))])
def database(request):
    """What the suite runs on; a database of its own on PostgreSQL."""
    if request.param == "sqlite":
        yield "sqlite"
        return
    name = f"asignals_suite_{uuid4().hex}"
    asyncio.run(_execute("test", f"create database {name}"))
    asyncio.run(_execute(name, "create schema test_schema", "create schema test_schema_2"))
    yield postgres_url("psycopg").set(database=name).render_as_string(hide_password=False)
    asyncio.run(_execute("test", f"drop database {name} with (force)"))


async def _execute(database: str, *statements: str) -> None:
    engine = create_async_engine(postgres_url("asyncpg").set(database=database), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in statements:
            await connection.execute(text(statement))
    await engine.dispose()


def test_the_suite_of_the_orm_with_every_signal_connected(sources, database):
    """What fails with signals fails without them, too, or is listed with its reason."""
    failed = run(sources, database, TESTS, with_signals=True)
    files = sorted({each.partition("::")[0] for each in failed})  # their classes have other names in pytest's own ids
    also_without = run(sources, database, files, with_signals=False) if failed else set()
    unexplained = {each for each in failed - also_without if not any(known in each for known in EXPECTED)}
    assert sorted(unexplained) == []
