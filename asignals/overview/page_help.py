"""`help` of a package in one screen: the docstring lists the public names, and each name has its own help."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


def is_asked_by_help() -> bool:
    """Whether `help` asks the caller, a module's `__dir__`, for names: it would print each class of them in full."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") == "inspect":
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == "pydoc"
