"""Trace context and baggage across processes (W3C), for programs that have loaded OpenTelemetry."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from asignals.relay._envelope import MAX_BAGGAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from asignals.relay._envelope import Envelope

logger = logging.getLogger("asignals.relay")

_MAX_STATE: Final = 512  # characters, as W3C has it


def _propagators() -> list[Any]:
    if "opentelemetry.trace" not in sys.modules:
        return []
    from opentelemetry.baggage.propagation import W3CBaggagePropagator  # noqa: PLC0415  only for who has it
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    return [TraceContextTextMapPropagator(), W3CBaggagePropagator()]


def current_trace() -> Mapping[str, str]:
    """Give `traceparent`, `tracestate` and `baggage` of the current span and context, those that there are.

    Baggage that is too long does not cross, and is logged.
    """
    carrier: dict[str, str] = {}
    if not (propagators := _propagators()):
        return carrier
    for propagator in propagators:
        propagator.inject(carrier)
    if len(carrier.get("tracestate", "")) > _MAX_STATE:
        del carrier["tracestate"]
    if (size := len(carrier.get("baggage", ""))) > MAX_BAGGAGE:
        logger.warning("baggage of %d characters does not cross with an event: %d is the most", size, MAX_BAGGAGE)
        del carrier["baggage"]
    return carrier


@contextmanager
def following(envelope: Envelope) -> Iterator[None]:
    """Make spans of the block children of the sender's span, with its baggage; what is malformed is ignored."""
    found = {"traceparent": envelope.traceparent, "tracestate": envelope.tracestate, "baggage": envelope.baggage}
    carrier = {name: text for name, text in found.items() if text}
    propagators = _propagators() if carrier else []
    if not propagators:
        yield
        return
    from opentelemetry import context  # noqa: PLC0415  only for who has it

    inside = context.get_current()
    for propagator in propagators:
        inside = propagator.extract(carrier, inside)
    token = context.attach(inside)
    try:
        yield
    finally:
        context.detach(token)
