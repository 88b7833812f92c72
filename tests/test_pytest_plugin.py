"""The pytest plugin, tried on projects that use it."""

import sys
from importlib.util import find_spec

import pytest

pytest_plugins = ["pytester"]
INI = "[pytest]\naddopts = --strict-markers --strict-config\n"
if find_spec("pytest_asyncio"):  # which warns without it
    INI += "asyncio_default_fixture_loop_scope = function\n"

SHOP = """
from asignals import Signal

paid = Signal(["amount"], name="shop.paid")
calls = []

def ship(amount, **named):
    calls.append(amount)

paid.connect(ship)

def one(**named): ...
def two(**named): ...
def three(**named): ...
def four(**named): ...
"""


@pytest.fixture
def project(pytester, plugin):
    """Make a project with a module `shop` and the given tests, and run them."""
    pytester.makepyfile(shop=SHOP)
    pytester.syspathinsert()

    def run(*arguments, ini="", **files):
        pytester.makefile(".ini", pytest=f"{INI}{ini}")
        pytester.makepyfile(**files)
        sys.modules.pop("shop", None)
        method = pytester.runpytest_subprocess if "-n" in arguments else pytester.runpytest_inprocess
        return method(*plugin, "-p", "no:cacheprovider", "-p", "no:randomly", *arguments)

    yield run
    sys.modules.pop("shop", None)


def test_captures_end_with_their_test_also_when_it_fails(project):
    """Each test sees its own sends only, after a test that failed or whose teardown failed as well."""
    result = project(
        test_it="""
        import anyio, pytest, shop
        from asignals._core.dispatch import watchers

        @pytest.fixture
        def broken():
            yield
            raise RuntimeError("teardown")

        @pytest.mark.parametrize("outcome", ["passes", "fails", "passes again"])
        def test_sends(capture_signals, outcome):
            sent = capture_signals(shop.paid)
            anyio.run(lambda: shop.paid.send("shop", amount=42))
            assert sent.only.amount == 42
            assert outcome != "fails"

        def test_with_a_broken_teardown(capture_signals, broken):
            capture_signals(shop.paid)

        def test_nothing_is_left():
            assert watchers == []
        """
    )
    result.assert_outcomes(passed=4, failed=1, errors=1)


def test_the_report_of_a_failed_test_shows_what_was_captured(project):
    """A failure lists the captured sends, a success does not."""
    result = project(
        test_it="""
        import anyio, shop

        def test_fails(capture_signals):
            capture_signals(shop.paid, sender="shop")
            anyio.run(lambda: shop.paid.send("shop", amount=4711))
            assert False

        def test_passes(capture_signals):
            capture_signals(shop.paid)
            anyio.run(lambda: shop.paid.send("shop", amount=815))
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Captured signals*", "shop.paid: there were 1:", "  1. sender='shop', amount=4711"])
    result.stdout.no_fnmatch_line("*amount=815*")


FAILURES = """
    import anyio, pytest, shop
    from asignals.testing import capture

    def send(amount):
        anyio.run(lambda: shop.paid.send("shop", amount=amount))

    @pytest.fixture
    def fails_at_once(capture_signals):
        capture_signals(shop.paid)
        send("in setup")
        raise RuntimeError

    @pytest.fixture
    def fails_at_last(capture_signals):
        sent = capture_signals(shop.paid)
        yield
        send("in teardown")
        raise RuntimeError

    def test_plain():
        with capture(shop.paid):
            send("in the test")
        assert False

    def test_setup(fails_at_once): ...

    def test_teardown(fails_at_last): ...

    def test_that_passes():
        with capture(shop.paid):
            send("in a test that passes")

    def test_that_captures_nothing():
        assert False
"""


@pytest.mark.parametrize(
    ("which", "shown"),
    [
        ("test_plain", "in the test"),
        ("test_setup", "in setup"),
        ("test_teardown", "in teardown"),
        ("test_that", None),
    ],
)
def test_whatever_fails_shows_what_was_captured(project, which, shown):
    """The test with a plain `capture`, its setup or its teardown; nothing of the tests before."""
    result = project("-k", f"passes or {which}", test_it=FAILURES)
    assert result.parseoutcomes().keys() & {"failed", "errors", "error"}
    if shown is None:
        result.stdout.no_fnmatch_line("*Captured signals*")
    else:
        result.stdout.fnmatch_lines(["*Captured signals*", "shop.paid: there were 1:", f"*amount='{shown}'"])
    result.stdout.no_fnmatch_line("*in a test that passes'")


@pytest.mark.parametrize("backend", [None, "asyncio", "trio"])
def test_a_failing_hypothesis_test_shows_its_last_example(project, backend):
    """Not the hundreds that led to it."""
    result = project(
        conftest=f"import pytest\n@pytest.fixture(scope='module')\ndef anyio_backend(): return {backend!r}",
        test_it=f"""
        import anyio, hypothesis, pytest, shop
        from hypothesis import strategies
        from asignals.testing import capture

        @{"hypothesis.seed(1)" if backend is None else "pytest.mark.anyio"}
        @hypothesis.settings(derandomize=True, database=None, deadline=None)
        @hypothesis.given(strategies.integers(0, 10_000))
        {"" if backend is None else "async "}def test_it(amount):
            with capture(shop.paid) as sent:
                work = shop.paid.send("shop", amount=amount)
                {"anyio.run(lambda: work)" if backend is None else "await work"}
            assert sent.only.amount < 100
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Captured signals*", "shop.paid: there were 1:", "  1. sender='shop', amount=100"])
    assert str(result.stdout).count("shop.paid: there were") == 1


def test_wider_fixtures_capture_for_their_scope(project):
    """Those of a module or a session see the sends of several tests, and failing ones show them."""
    result = project(
        test_it="""
        import anyio, pytest, shop

        @pytest.fixture(scope="session")
        def of_session(session_capture_signals):
            return session_capture_signals(shop.paid)

        @pytest.fixture(scope="package")
        def of_package(package_capture_signals):
            return package_capture_signals(shop.paid)

        @pytest.fixture(scope="module")
        def of_module(module_capture_signals):
            return module_capture_signals(shop.paid)

        @pytest.fixture(scope="class")
        def of_class(class_capture_signals):
            return class_capture_signals(shop.paid)

        class TestIt:
            @pytest.mark.parametrize("number", [1, 2])
            def test_it(self, number, of_session, of_package, of_module, of_class, capture_signals):
                of_test = capture_signals(shop.paid)
                anyio.run(lambda: shop.paid.send("shop", amount=number))
                assert len(of_test) == 1
                assert len(of_class) == len(of_module) == len(of_package) == len(of_session) == number

        def test_after(of_session, of_module, of_class):
            assert (len(of_class), len(of_module), len(of_session)) == (0, 2, 2)
            assert False, "show them"
        """
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*Captured signals*", "*  2. sender='shop', amount=2"])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_fixtures_reach_async_tests_in_whatever_context_they_run(project, backend):
    """Captures and mutes of sync and async fixtures, and of the test itself, work in async tests."""
    result = project(
        test_it=f"""
        import anyio, pytest, shop

        pytestmark = pytest.mark.anyio

        @pytest.fixture(scope="module")
        def anyio_backend():
            return {backend!r}

        @pytest.fixture(scope="module", autouse=True)
        async def runner_that_was_there_before():
            yield

        @pytest.fixture
        def sent_to_sync(capture_signals):
            return capture_signals(shop.paid)

        @pytest.fixture
        async def sent_to_async(capture_signals):
            return capture_signals(shop.paid)

        async def test_captures(sent_to_sync, sent_to_async, capture_signals):
            sent = capture_signals(shop.paid)
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: shop.paid.send("shop", amount=1))
            assert sent == sent_to_sync == sent_to_async
            assert len(await sent.wait()) == 1
            assert shop.calls == [1]

        async def test_mutes(no_signals, capture_signals):
            sent = capture_signals(shop.paid)
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: shop.paid.send("shop", amount=2))
            assert shop.calls == [1]
            assert sent.only.amount == 2

        async def test_mutes_no_more():
            await shop.paid.send("shop", amount=3)
            assert shop.calls == [1, 3]
        """
    )
    result.assert_outcomes(passed=3)


def test_fixtures_reach_async_tests_of_any_runner(project):
    """Also of one that runs each test in an event loop and a context of its own."""
    result = project(
        conftest="""
        import asyncio, contextvars, inspect, pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_pyfunc_call(pyfuncitem):
            if inspect.iscoroutinefunction(pyfuncitem.obj):
                given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
                contextvars.Context().run(asyncio.run, pyfuncitem.obj(**given))
                return True
        """,
        test_it="""
        import shop

        async def test_captures_and_mutes(capture_signals, no_signals):
            sent = capture_signals(shop.paid)
            await shop.paid.send("shop", amount=1)
            assert sent.only.amount == 1
            assert shop.calls == []

        async def test_mutes_no_more():
            await shop.paid.send("shop", amount=2)
            assert shop.calls == [2]
        """,
    )
    result.assert_outcomes(passed=2)


def test_captures_choose_by_sender_and_where(project):
    """As `asignals.testing.capture` does."""
    result = project(
        test_it="""
        import anyio, shop

        def test_it(capture_signals):
            from_mill = capture_signals(shop.paid, sender="mill")
            large = capture_signals(shop.paid, where=lambda event: event.amount > 1)
            for sender, amount in (("shop", 1), ("mill", 1), ("shop", 2)):
                anyio.run(lambda: shop.paid.send(sender, amount=amount))
            assert (from_mill.only.sender, large.only.amount) == ("mill", 2)
        """
    )
    result.assert_outcomes(passed=1)


def test_concurrent_threads_may_ask_for_their_own_sends(project):
    """With `everywhere=False` a capture holds the sends of its own context only."""
    result = project(
        test_it="""
        import anyio, contextvars, threading, shop

        def test_it(capture_signals):
            sent = capture_signals(shop.paid, everywhere=False)
            send = lambda: anyio.run(lambda: shop.paid.send("shop", amount=1))
            thread = threading.Thread(target=contextvars.Context().run, args=(send,))
            thread.start()
            thread.join()
            assert sent == []
        """
    )
    result.assert_outcomes(passed=1)


TESTS_THAT_CONNECT = """
    import pytest, shop

    @pytest.fixture
    def connected():
        shop.paid.connect(shop.one)

    @pytest.fixture(scope="module")
    def connected_for_the_module():
        shop.paid.connect(shop.two)
        yield
        shop.paid.disconnect(shop.two)

    {first}
    def test_connects(connected_for_the_module, connected):
        shop.paid.connect(shop.three)
        shop.paid.disconnect(shop.ship)
        assert [each.receiver for each in shop.paid.connections] == [shop.two, shop.one, shop.three]

    {second}
    def test_that_fails():
        shop.paid.connect(shop.four)
        assert False

    def test_sees(connected_for_the_module):
        assert [each.receiver for each in shop.paid.connections] == {expected}
"""


@pytest.mark.parametrize(
    ("ini", "first", "second", "expected"),
    [
        ("", "", "", "[shop.two, shop.one, shop.three, shop.four]"),
        ("", "@pytest.mark.restore_signals", "@pytest.mark.restore_signals(True)", "[shop.ship, shop.two]"),
        ("restore_signals = true", "", "", "[shop.ship, shop.two]"),
        (
            "restore_signals = true",
            "",
            "@pytest.mark.restore_signals(enabled=False)",
            "[shop.ship, shop.two, shop.four]",
        ),
        ("restore_signals = true", "", "@pytest.mark.restore_signals(False)", "[shop.ship, shop.two, shop.four]"),
    ],
    ids=["not asked", "marker", "ini", "ini and marker", "ini and a short marker"],
)
def test_connections_of_a_test_are_undone_when_asked(project, ini, first, second, expected):
    """The marker, or the ini option, puts back what a test and its fixtures changed, not what wider fixtures did."""
    tests = TESTS_THAT_CONNECT.format(first=first, second=second, expected=expected)
    result = project(ini=ini, test_it=tests)
    result.assert_outcomes(passed=2, failed=1)


def test_doctests_of_stubs_are_collected(project):
    """In the module that declares the signal, and only there; `python -m doctest` finds them as well."""
    result = project(
        "--doctest-modules",
        orders='''
        from asignals import signal

        @signal
        def paid(sender: object, *, amount: int) -> None:
            """An order was paid.

            >>> paid.providing_args
            ('amount',)
            """

        @signal(name="lost")
        def lost(sender: object) -> None:
            """
            >>> 1 + 1
            3
            """
        ''',
        test_it="""
        import doctest, orders
        from orders import lost, paid

        def test_it():
            assert doctest.testmod(orders, report=False) == (1, 2)
        """,
    )
    result.assert_outcomes(passed=2, failed=1)


@pytest.mark.slow
def test_under_xdist_each_process_has_its_own(project):
    """Forty tests in two processes, failing ones among them, capture, mute and connect without seeing one another."""
    pytest.importorskip("xdist")
    result = project(
        "-n",
        "2",
        ini="restore_signals = true",
        test_it="""
        import anyio, pytest, shop

        @pytest.mark.parametrize("number", range(20))
        def test_captures(capture_signals, number):
            calls = []
            receiver = lambda amount, **named: calls.append(amount)
            shop.paid.connect(receiver)
            sent = capture_signals(shop.paid)
            anyio.run(lambda: shop.paid.send("shop", amount=number))
            assert sent.only.amount == number
            assert calls == [number]
            assert len(shop.paid.connections) == 2
            assert number % 5

        @pytest.mark.parametrize("number", range(20))
        def test_mutes(no_signals, number):
            before = list(shop.calls)
            anyio.run(lambda: shop.paid.send("shop", amount=number))
            assert shop.calls == before
        """,
    )
    result.assert_outcomes(passed=36, failed=4)
