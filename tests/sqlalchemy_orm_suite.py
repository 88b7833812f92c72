"""A plugin for SQLAlchemy's own test suite: all sessions announce, and somebody listens to everything, in every phase.

`test_sqlalchemy_suite.py` runs the suite with and without it. The receivers do nothing, so what fails only with them is
what announcing changes.
"""

from typing import Any

from sqlalchemy.orm import Session

from asignals.sqlalchemy import (
    enable_signals,
    m2m_changed,
    post_bulk,
    post_delete,
    post_init,
    post_save,
    pre_bulk,
    pre_delete,
    pre_init,
    pre_save,
    transaction_committed,
    transaction_rolled_back,
)

PHASES = ("flush", "commit", "rollback")


def hear(**_: Any) -> None:
    """Do nothing."""


for signal in (pre_init, post_init, pre_save, pre_delete, pre_bulk):
    signal.connect(hear)
for signal in (post_save, post_delete, post_bulk, m2m_changed):
    for phase in PHASES:
        signal.connect(hear, on=phase)  # type: ignore[call-overload]
transaction_committed.connect(hear)
transaction_rolled_back.connect(hear)
enable_signals(Session)
