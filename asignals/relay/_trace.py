"""Trace context across processes (W3C traceparent), for programs that have loaded OpenTelemetry."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def _propagator() -> Any:
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415  only for who has it
        TraceContextTextMapPropagator,
    )

    return TraceContextTextMapPropagator()


def current_traceparent() -> str | None:
    """Give the traceparent of the current span, if there is one."""
    propagator = _propagator()
    if propagator is None:
        return None
    carrier: dict[str, str] = {}
    propagator.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def following(traceparent: str | None) -> Iterator[None]:
    """Make spans of the block children of a span in another process; a malformed traceparent is ignored."""
    propagator = _propagator() if traceparent else None
    if propagator is None:
        yield
        return
    from opentelemetry import context  # noqa: PLC0415  only for who has it

    token = context.attach(propagator.extract({"traceparent": traceparent}))
    try:
        yield
    finally:
        context.detach(token)
