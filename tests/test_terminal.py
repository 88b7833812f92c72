"""What the commands print in a narrow terminal."""

import io

import pytest

pytest.importorskip("rich", reason="needs asignals[cli]")
pytest.importorskip("aiosqlite", reason="needs asignals[demo]")

from rich.console import Console

from asignals import monitor
from asignals.demo import shop
from asignals.demo.report import Tally
from asignals.overview.discovery import discover
from asignals.overview.listing import write

pytestmark = pytest.mark.anyio


def console(width):
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def test_the_list_reads_at_60_columns():
    """Names and places are never cut: they are to be found again."""
    output = console(60)
    write(output, discover(["asignals.demo.shop:asgi"]))
    text = output.file.getvalue()
    assert max(map(len, text.splitlines())) <= 60
    assert "…" not in text
    for whole in ("asignals.demo.shop.count_toppings", "asignals.demo.shop.Display.show", "sender=<Starlette>"):
        assert whole in text


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_table_of_the_demo_reads_at_60_columns(anyio_backend):
    """No heading and no figure is cut or broken."""
    tally, output = Tally(), console(60)
    with monitor(tally):
        await shop.order_paid.send_robust(None, number=1, price=2.0)
    output.print(tally.table())
    text = output.file.getvalue()
    assert max(map(len, text.splitlines())) <= 60
    assert "…" not in text
    for title in ("count", "errors", "median", "p99"):
        assert title in text
