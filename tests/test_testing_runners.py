"""`asignals.testing` under every runner of async tests: captures see, refuse and wait in the same way."""

import sys
import unittest
from importlib.util import find_spec

import pytest

from asignals import Signal
from asignals.testing import capture, muted, replaced

pytest_plugins = ["pytester"]
INI = "[pytest]\nmarkers = plain\nfilterwarnings = error\n"
if find_spec("pytest_asyncio"):  # which warns without it
    INI += "asyncio_default_fixture_loop_scope = function\n"
RUNNERS = {
    "anyio": ("anyio", "", "anyio", "'asyncio'"),
    "anyio on trio": ("anyio", "", "anyio", "'trio'"),
    "asyncio strict": ("pytest_asyncio", "asyncio_mode = strict", "asyncio", "None"),
    "asyncio auto": ("pytest_asyncio", "asyncio_mode = auto", "plain", "None"),
    "trio": ("pytest_trio", "", "trio", "None"),
    "trio mode": ("pytest_trio", "trio_mode = true", "plain", "None"),
}
SHOP = """
from asignals import Signal

paid = Signal(["amount"], name="shop.paid")
shipped = Signal(["amount"], name="shop.shipped")
calls = []

@paid.connect
async def ship(amount):
    calls.append(amount)
    await shipped.send("shop", amount=amount)
"""
TESTS = """
    import anyio, pytest, shop
    from asignals.testing import capture, muted, replaced

    pytestmark = pytest.mark.{mark}

    async def test_capture():
        with capture(shop.paid, shop.shipped) as sent:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: shop.paid.send("web", amount=1))
            assert (await sent.nth(1, shop.shipped)).amount == 1
        sent.assert_order(shop.paid, shop.shipped)
        sent.assert_not_sent(amount=2)
        with pytest.raises(TypeError):
            sent.assert_not_sent(amonut=1)
        with pytest.raises(RuntimeError):
            capture(shop.paid).assert_not_sent()
        assert shop.calls == [1]

    async def test_fixtures(capture_signals, no_signals):
        sent = capture_signals(shop.paid)
        await shop.paid.send("web", amount=2)
        assert (sent.only.amount, shop.calls) == (2, [1])

    async def test_blocks():
        with replaced(shop.paid, "ship") as mock:
            await shop.paid.send("web", amount=3)
            with muted(shop.paid):
                await shop.paid.send("web", amount=4)
        mock.assert_awaited_once_with(signal=shop.paid, sender="web", amount=3)

    @pytest.mark.restore_signals
    async def test_connects():
        shop.paid.disconnect(shop.ship)
        shop.paid.connect(print, weak=False)

    async def test_finds_what_was_there():
        assert [each.receiver for each in shop.paid.connections] == [shop.ship]

    async def test_fails(capture_signals):
        capture_signals(shop.paid)
        await shop.paid.send("web", amount=5)
        assert False
"""


@pytest.mark.parametrize("runner", RUNNERS)
def test_pytest_with(pytester, plugin, runner):
    """Anyio's plugin, pytest-asyncio in both modes, pytest-trio in both modes."""
    package, ini, mark, backend = RUNNERS[runner]
    pytest.importorskip(package)
    pytester.makefile(".ini", pytest=f"{INI}{ini}\n")
    conftest = f"import pytest\n@pytest.fixture(scope='module')\ndef anyio_backend(): return {backend}"
    pytester.makepyfile(shop=SHOP, test_it=TESTS.format(mark=mark), conftest=conftest)
    pytester.syspathinsert()
    sys.modules.pop("shop", None)
    try:
        result = pytester.runpytest_inprocess(*plugin, "-p", "no:randomly", "-p", "no:cacheprovider")
    finally:
        sys.modules.pop("shop", None)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*Captured signals*", "*sender='web', amount=5"])


def make():
    """Two signals, of which the first leads to the second."""
    paid, shipped = Signal(["amount"], name="shop.paid"), Signal(["amount"], name="shop.shipped")

    async def ship(amount):
        await shipped.send("shop", amount=amount)

    paid.connect(ship, weak=False)
    return paid, shipped, ship


def make_tests(case, paid, shipped, ship):
    class Test(case):
        def setUp(self):
            self.sent = self.enterContext(capture(paid, shipped))

        async def test_capture(self):
            await paid.send("web", amount=1)
            self.sent.assert_order(paid, shipped)
            assert (await self.sent.nth(1, shipped)).amount == 1
            with self.assertRaises(AssertionError):  # noqa: PT027  unittest's own way
                self.sent.assert_not_sent(amount=1)

        async def test_blocks(self):
            with replaced(paid, ship) as mock, capture(shipped) as sent:
                await paid.send("web", amount=1)
                with muted(paid):
                    await paid.send("web", amount=2)
            mock.assert_awaited_once()
            sent.assert_not_sent()

        @muted(paid)
        async def test_decorated(self):
            await paid.send("web", amount=1)
            self.sent.assert_not_sent(signal=shipped)

    return Test


def assert_all_pass(result):
    assert (result.errors, result.failures, result.testsRun) == ([], [], 3)


def test_unittest():
    """`IsolatedAsyncioTestCase`, run by unittest itself."""
    result = unittest.TestResult()
    loader = unittest.defaultTestLoader
    loader.loadTestsFromTestCase(make_tests(unittest.IsolatedAsyncioTestCase, *make())).run(result)
    assert_all_pass(result)


def test_django():
    """Django's test classes, run by Django's runner, which runs async tests on a loop of its own."""
    django_test = pytest.importorskip("django.test")
    from django.conf import settings
    from django.test.runner import DiscoverRunner

    if not settings.configured:
        settings.configure()
    case = make_tests(django_test.SimpleTestCase, *make())
    assert_all_pass(DiscoverRunner(verbosity=0).run_suite(unittest.defaultTestLoader.loadTestsFromTestCase(case)))
