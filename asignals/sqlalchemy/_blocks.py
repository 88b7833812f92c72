"""Several context managers as one."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType


class Blocks(AbstractContextManager[None]):
    """Several blocks at once; no decorator, which on an `async def` would end before the body runs."""

    def __init__(self, blocks: list[AbstractContextManager[None]]) -> None:
        self._blocks = blocks
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for block in self._blocks:
            self._stack.enter_context(block)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def __call__(self, function: object) -> None:
        name = getattr(function, "__qualname__", repr(function))
        raise TypeError(
            f"this is no decorator: write the `with` block inside of {name}, or decorate with asignals.testing.muted"
        )
