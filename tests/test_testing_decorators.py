"""`muted`, `swap_receivers`, `restored` and `connected` as decorators: they work, or say why they don't."""

import asyncio
import contextlib
import functools
import sys
import unittest
from importlib.util import find_spec

import anyio
import pytest

from asignals import Signal
from asignals.testing import muted, restored, swap_receivers

pytest_plugins = ["pytester"]
PLAIN = ("-p", "no:randomly", "-p", "no:cacheprovider")
HAS_ASYNCIO = find_spec("pytest_asyncio") is not None
INI = "[pytest]\nmarkers = timing\n" + "asyncio_default_fixture_loop_scope = function\n" * HAS_ASYNCIO

SHOP = """
from asignals import Signal
from asignals.testing import muted, restored, swap_receivers

paid = Signal(["amount"], name="shop.paid")
calls = []

def ship(amount, **named):
    calls.append(amount)

def fake(**named):
    calls.append("fake")

paid.connect(ship)

def send(amount):
    try:
        paid.send("shop", amount=amount).send(None)
    except StopIteration:
        pass
"""


@pytest.fixture
def heard():
    """A signal whose only receiver notes the amounts, and the notes."""
    paid, notes = Signal(["amount"], name="shop.paid"), []
    paid.connect(lambda amount, **named: notes.append(amount), weak=False)
    return paid, notes


def send(paid, amount=1):
    asyncio.run(paid.send("shop", amount=amount))


class Callable:
    """An object whose class has an async `__call__`."""

    def __init__(self, paid):
        self.paid = paid

    async def __call__(self):
        await self.paid.send("shop", amount=1)


def async_functions(paid):
    async def function():
        await paid.send("shop", amount=1)

    return [function, functools.partial(function), Callable(paid)]


@pytest.mark.parametrize("which", range(3), ids=["function", "partial", "object"])
def test_async_functions_run_inside_of_the_block(heard, which):
    """Of every kind, each call anew, and nothing is left afterwards."""
    paid, notes = heard
    function = async_functions(paid)[which]
    wrapped = muted(paid)(function)
    for _ in range(2):
        asyncio.run(wrapped())
    assert notes == []
    asyncio.run(function())
    assert notes == [1]


def test_functions_keep_their_name_result_and_errors(heard):
    """A decorated function is called with its arguments; what it raises ends the block."""
    paid, notes = heard

    @muted(paid)
    def divide(by):
        """Divide."""
        send(paid)
        return 6 // by

    assert (divide(2), divide.__name__, divide.__doc__) == (3, "divide", "Divide.")
    with pytest.raises(ZeroDivisionError):
        divide(0)
    send(paid, 9)
    assert notes == [9]


@pytest.mark.parametrize("make", [swap_receivers, restored], ids=["swap_receivers", "restored"])
def test_swaps_and_restorations_end_with_the_call(heard, make):
    """Also of an async function: the connections are back when it has ended, not when it was called."""
    paid, notes = heard
    before = paid.connections

    @make(paid)
    async def replace_all():
        for each in paid.connections:
            paid.disconnect(each.receiver)
        await anyio.lowlevel.checkpoint()
        await paid.send("shop", amount=1)

    asyncio.run(replace_all())
    assert (notes, paid.connections) == ([], before)


def test_generators_are_surrounded_from_start_to_end(heard):
    """As fixtures are, in whatever context each step runs; values, errors and the return value pass."""
    paid, notes = heard

    @muted(paid)
    def fixture():
        got = yield 1
        try:
            yield got
        except KeyError:
            yield "thrown"
        return "returned"

    generator = fixture()
    assert next(generator) == 1
    send(paid)
    assert generator.send(2) == 2
    assert generator.throw(KeyError()) == "thrown"
    with pytest.raises(StopIteration, match="returned"):
        next(generator)
    assert notes == []
    send(paid)
    assert notes == [1]


def test_async_generators_are_surrounded_from_start_to_end(heard):
    """Values and errors pass into them, and closing them early runs their clean-up inside of the block."""
    paid, notes = heard
    ended = []

    @muted(paid)
    async def fixture():
        try:
            got = yield 1
            try:
                yield got
            except KeyError:
                yield "thrown"
            yield "last"
        finally:
            await paid.send("shop", amount=2)
            ended.append(True)

    async def use():
        generator = fixture()
        assert await anext(generator) == 1
        await paid.send("shop", amount=1)
        assert await generator.asend(2) == 2
        assert await generator.athrow(KeyError()) == "thrown"
        await generator.aclose()
        async for _ in fixture():
            pass
        await paid.send("shop", amount=3)

    asyncio.run(use())
    assert (notes, ended) == ([3], [True, True])


def test_what_would_run_after_the_block_is_refused(heard):
    """A plain function that gives back a coroutine or a generator has done nothing yet."""
    paid, _ = heard

    async def coroutine():
        pytest.fail("must not run")

    loop = asyncio.new_event_loop()
    partial = functools.partial(coroutine)
    make_future = loop.create_future
    managers = contextlib.contextmanager(lambda: iter([])), contextlib.asynccontextmanager(lambda: iter([]))
    for late in (*managers, lambda: partial(), lambda: iter(each for each in "ab"), make_future):  # noqa: PLW0108  plain
        with pytest.raises(TypeError, match=r"muted\(\) decorates .*would run after the block"):
            muted(paid)(late)()
    loop.close()


@pytest.mark.parametrize("name", ["muted", "connected"])
def test_blocks_of_signals_are_refused_as_decorators(heard, name):
    """Where they stand, those of model signals too: `asignals.testing` has what decorates."""
    model_signals = pytest.importorskip("asignals.sqlalchemy")
    for each in (heard[0], model_signals.post_save, model_signals.transaction_committed):
        block = getattr(each, name)(*[print] * (name == "connected"))

        async def test(): ...

        with pytest.raises(TypeError, match=r"no decorator: write the `with` block inside of .*test"):
            block(test)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (classmethod(print), "put it below @classmethod"),
        (staticmethod(print), "put it below @staticmethod"),
        (pytest.fixture(lambda: None), r"put it below @pytest\.fixture"),
        (3, r"muted\(\) decorates functions and test classes, not a int"),
        (property(print), "not a property"),
        (type("Helper", (), {}), "no method whose name starts with 'test'"),
    ],
    ids=["classmethod", "staticmethod", "fixture", "number", "property", "class without tests"],
)
def test_what_cannot_be_surrounded_is_refused(heard, wrong, words):
    """Where it is decorated, and with what to write instead."""
    paid, _ = heard
    with pytest.raises(TypeError, match=words):
        muted(paid)(wrong)


def test_a_block_is_open_once_at_a_time(heard):
    """It may be used again afterwards."""
    paid, notes = heard
    block = muted(paid)
    for _ in range(2):
        with block:
            send(paid)
            with pytest.raises(RuntimeError, match=r"muted\(\) block is open already"):
                block.__enter__()
    assert notes == []
    assert repr(block) == "<asignals muted() block, closed>"


def run_unittest(case):
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert (result.errors, result.failures) == ([], [])
    return result.testsRun


def test_unittest_classes_are_surrounded_from_setup_to_cleanup(heard):
    """Each test anew; subclasses that hide `setUp` are surrounded as well."""
    paid, notes = heard

    @muted(paid)
    class Test(unittest.TestCase):
        def setUp(self):
            send(paid)
            self.addCleanup(send, paid)

        def tearDown(self):
            send(paid)

        def test_one(self):
            send(paid)

        def test_two(self):
            send(paid)

    class Sub(Test):
        def setUp(self):
            send(paid)

    assert (run_unittest(Test), run_unittest(Sub), notes) == (2, 2, [])
    Test("test_one").debug()
    assert notes == []
    send(paid)
    assert notes == [1]


def test_asyncio_unittest_classes_are_surrounded_in_their_own_context(heard):
    """Whose context was copied when the test was made."""
    paid, notes = heard

    @muted(paid)
    class Test(unittest.IsolatedAsyncioTestCase):
        async def asyncSetUp(self):
            await paid.send("shop", amount=1)
            self.addAsyncCleanup(self.clean_up)

        async def clean_up(self):
            await paid.send("shop", amount=4)

        async def asyncTearDown(self):
            await paid.send("shop", amount=3)

        async def test_it(self):
            await paid.send("shop", amount=2)

    class Method(unittest.IsolatedAsyncioTestCase):
        @muted(paid)
        async def test_it(self):
            await paid.send("shop", amount=2)

    assert (run_unittest(Test), run_unittest(Method), notes) == (1, 1, [])


def test_decorators_of_unittest_classes_nest(heard):
    """The outer block is entered first, and each ends with the test."""
    paid, notes = heard

    @muted(paid)
    @swap_receivers(paid, lambda **named: notes.append("fake"))
    class Test(unittest.TestCase):
        def test_it(self):
            self.assertEqual(len(paid.connections), 1)  # noqa: PT009  unittest's own test
            send(paid)

    class Sub(Test):
        def run(self, result=None):
            notes.append("run")
            return super().run(result)

    before = paid.connections
    assert (run_unittest(Test), run_unittest(Sub), notes, paid.connections) == (1, 1, ["run"], before)


CLASS = """
    import pytest, shop

    {mark}
    @shop.muted(shop.paid)
    class TestPaid:
        def setup_method(self):
            shop.send("setup")

        def teardown_method(self, method):
            shop.send("teardown")

        @pytest.fixture
        def order(self):
            yield shop.send("fixture")
            shop.send("end of fixture")

        {test} test_one(self, order):
            shop.send(1)

        @pytest.mark.parametrize("amount", [2, 3])
        {test} test_more(self, amount):
            shop.send(amount)
            assert shop.calls == []

    {mark}
    class TestSub(TestPaid):
        def setup_method(self):
            pass

        {test} test_new(self):
            shop.send(5)

    @shop.muted(shop.paid)
    class TestOuter:
        def test_outer(self):
            shop.send(4)

        {mark}
        class TestNested:
            {test} test_it(self):
                shop.send(5)

    {mark}
    @shop.muted(shop.paid)
    {test} test_function():
        shop.send(6)

    {mark}
    {test} test_nobody_heard():
        assert shop.calls == []
        shop.send(7)
        assert shop.calls == [7]
"""
RUNNERS = {
    "anyio": ("anyio", "", "pytest.mark.anyio", "def anyio_backend(): return 'asyncio'"),
    "anyio on trio": ("anyio", "", "pytest.mark.anyio", "def anyio_backend(): return 'trio'"),
    "asyncio strict": ("pytest_asyncio", "asyncio_mode = strict", "pytest.mark.asyncio", ""),
    "asyncio auto": ("pytest_asyncio", "asyncio_mode = auto", "pytest.mark.timing", ""),
    "trio": ("pytest_trio", "", "pytest.mark.trio", ""),
    "trio mode": ("pytest_trio", "trio_mode = true", "pytest.mark.timing", ""),
}


@pytest.fixture
def project(pytester, monkeypatch, plugin):
    """Make a project with a module `shop` and the given tests, and run them."""
    pytester.makepyfile(shop=SHOP)
    pytester.syspathinsert()

    def run(*arguments, ini="", test_it, conftest="", plugin=plugin):
        pytester.makefile(".ini", pytest=f"{INI}{ini}")
        pytester.makepyfile(test_it=test_it, conftest=conftest)
        sys.modules.pop("shop", None)
        return pytester.runpytest_inprocess(*arguments, *plugin, *PLAIN)

    yield run
    sys.modules.pop("shop", None)


@pytest.mark.parametrize("runner", RUNNERS)
def test_pytest_classes_are_surrounded_from_setup_to_teardown(project, runner):
    """Their fixtures, setup methods, nested and derived classes too, whoever runs the tests in which context."""
    package, ini, mark, fixture = RUNNERS[runner]
    pytest.importorskip(package)
    conftest = f"import pytest\n@pytest.fixture(scope='module')\n{fixture}" if fixture else ""
    tests = CLASS.format(mark=f"@{mark}", test="async def")
    project(ini=ini, test_it=tests, conftest=conftest).assert_outcomes(passed=11)


def test_pytest_classes_of_sync_tests_are_surrounded(project):
    """The same without an event loop."""
    project(test_it=CLASS.format(mark="@pytest.mark.timing", test="def")).assert_outcomes(passed=11)


def test_without_the_plugin_a_pytest_class_says_so(project):
    """No test of it passes without having been muted."""
    tests = CLASS.format(mark="@pytest.mark.timing", test="def")
    result = project("-k", "TestPaid and test_one", test_it=tests, plugin=("-p", "no:asignals"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*needs pytest with the plugin asignals.pytest_plugin*"])


FIXTURES = """
    import pytest, shop

    @{fixture}
    @shop.muted(shop.paid)
    {maybe}def quiet():
        yield 4711

    {mark}
    async def test_muted(quiet):
        await shop.paid.send("shop", amount=1)
        assert (shop.calls, quiet) == ([], 4711)

    {mark}
    async def test_muted_no_more():
        await shop.paid.send("shop", amount=2)
        assert shop.calls == [2]
"""


@pytest.mark.parametrize("maybe", ["", "async "], ids=["sync", "async"])
@pytest.mark.parametrize("runner", RUNNERS)
def test_fixtures_are_surrounded_until_their_teardown(project, runner, maybe):
    """Sync and async ones, and the test sees it in whatever context it runs."""
    package, ini, mark, anyio_fixture = RUNNERS[runner]
    pytest.importorskip(package)
    is_asyncio = bool(maybe) and package == "pytest_asyncio"
    test = FIXTURES.format(
        maybe=maybe,
        mark=f"@{mark}",
        fixture="__import__('pytest_asyncio').fixture" if is_asyncio else "pytest.fixture",
    )
    conftest = f"import pytest\n@pytest.fixture(scope='module')\n{anyio_fixture}" if anyio_fixture else ""
    project(ini=ini, test_it=test, conftest=conftest).assert_outcomes(passed=2)


def test_unittest_classes_are_surrounded_under_pytest(project):
    """By unittest's own means, with and without pytest's plugin; skipped tests too are none of the block's business."""
    tests = """
    import unittest, shop

    @shop.muted(shop.paid)
    class Test(unittest.IsolatedAsyncioTestCase):
        def setUp(self):
            shop.send("setup")

        async def asyncSetUp(self):
            await shop.paid.send("shop", amount="async setup")

        async def test_it(self):
            await shop.paid.send("shop", amount=1)
            for number in range(2):
                with self.subTest(number):
                    shop.send(number)

        @unittest.skip("not now")
        def test_skipped(self): ...

        @unittest.expectedFailure
        def test_that_fails(self):
            assert False

    def test_nobody_heard():
        assert shop.calls == []
    """
    project(test_it=tests).assert_outcomes(passed=2, skipped=1, xfailed=1)


def test_every_block_decorates_classes(project):
    """What replaces, swaps and restores receivers does so for each test of a class."""
    project(
        test_it="""
        import pytest, shop
        from asignals.testing import replaced

        @shop.swap_receivers(shop.paid, shop.fake)
        class TestSwapped:
            @pytest.mark.parametrize("number", [1, 2])
            def test_it(self, number):
                shop.send(number)
                assert shop.calls == ["fake"] * number

        @replaced(shop.paid, "ship", shop.fake)
        class TestReplaced:
            def setup_method(self):
                shop.calls.clear()

            def test_it(self):
                shop.send(1)
                assert shop.calls == ["fake"]

        @shop.restored(shop.paid)
        class TestRestored:
            @pytest.mark.parametrize("number", [1, 2])
            def test_it(self, number):
                shop.paid.disconnect(shop.ship)
                assert shop.paid.connections == ()

        def test_afterwards():
            assert [each.receiver for each in shop.paid.connections] == [shop.ship]
        """
    ).assert_outcomes(passed=6)


@pytest.mark.parametrize("order", ["above", "below"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_hypothesis_tests_are_surrounded_in_either_order(project, backend, order):
    """Each example of an async test is muted, in the task that runs it."""
    decorators = ["@shop.muted(shop.paid)", "@hypothesis.given(hypothesis.strategies.integers())"]
    above, below = decorators if order == "above" else decorators[::-1]
    result = project(
        conftest=f"import pytest\n@pytest.fixture(scope='module')\ndef anyio_backend(): return {backend!r}",
        test_it=f"""
        import hypothesis, hypothesis.strategies, pytest, shop

        @pytest.mark.anyio
        @hypothesis.settings(max_examples=5, database=None, deadline=None)
        {above}
        {below}
        async def test_it(amount):
            await shop.paid.send("shop", amount=amount)
            assert shop.calls == []
        """,
    )
    result.assert_outcomes(passed=1)


def test_django_tests_are_surrounded(heard):
    """By Django's runner: classes and async methods."""
    django_test = pytest.importorskip("django.test")
    from django.conf import settings

    if not settings.configured:
        settings.configure()
    paid, notes = heard

    @muted(paid)
    class Test(django_test.SimpleTestCase):
        def setUp(self):
            send(paid)

        async def test_it(self):
            await paid.send("shop", amount=2)

    class Method(django_test.SimpleTestCase):
        @muted(paid)
        async def test_it(self):
            await paid.send("shop", amount=3)

    assert (run_unittest(Test), run_unittest(Method), notes) == (1, 1, [])
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(Test)
    from django.test.runner import DiscoverRunner

    result = DiscoverRunner(verbosity=0).run_suite(suite)
    assert (result.testsRun, result.errors, result.failures, notes) == (1, [], [], [])
