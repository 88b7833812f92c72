"""OpenTelemetry: a span for each send, a child span for each receiver, and metrics.

    from asignals import opentelemetry

    opentelemetry.instrument()

Needs the extra `asignals[opentelemetry]` (the API alone; the program chooses the SDK). Names follow the semantic
conventions:

- Spans `send shop.signals.order_paid` and, inside it, `process shop.signals.order_paid`, of kind INTERNAL, since both
  ends are in this process. Attributes: `messaging.system` ("asignals"), `messaging.destination.name` (the signal),
  `messaging.operation.name` and `.type` ("send", "process"); on receivers `code.function.name`, `code.file.path`,
  `code.line.number`; `error.type` when it failed, with the exception as an event, whose
  text is masked as the inspector masks it. What is sent is not recorded.
- A relay's spans have the engine as `messaging.system` and the topic as `messaging.destination.name`: one of kind
  PRODUCER, `send order.paid`, in which an event is made, and in the receiving process one of kind CONSUMER, `process
  order.paid`, around its receivers' spans: a child of the first, linked to it, with the service as
  `messaging.consumer.group.name`, and `asignals.attempt`. Baggage crosses with the event, up to 4,096 characters.
- Figures of the relays that run, as `asignals relay status` shows them: `asignals.relay.backlog` and others, with
  the attributes `asignals.service` and `messaging.destination.name` (topic or queue). They are the same from every
  instance: take the largest, not the sum. What an engine cannot tell, or a server did not say, has no value. Servers
  are asked when metrics are collected, at most every five seconds; collecting waits up to two seconds for them, unless
  it is done in the event loop, where it gives what is known and has that renewed.
- Metrics `messaging.client.sent.messages` (sends), `messaging.client.consumed.messages` (receivers' calls),
  `messaging.client.operation.duration` (seconds of a send) and `messaging.process.duration` (seconds of a receiver),
  each with `error.type` where it failed: errors are counted by it.

A receiver's span is the current one while the receiver runs, in worker threads (`in_thread=True`) and in task groups
as well. A `Background` sends in a copy of the caller's context, so its spans are children of the span that was
current at the call.
"""

from __future__ import annotations

import importlib.metadata
import threading
import time
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from asignals import Signal, monitor
from asignals._core import locate, origin_of
from asignals.overview.extras import needs
from asignals.overview.relay_metrics import MAX_AGE, METRICS, samples
from asignals.overview.relays import delivered_now, exporter_of, producing, running
from asignals.overview.values import Shower, message_of, name_of, trace_of

with needs("opentelemetry"):
    from opentelemetry import context, metrics, trace
    from opentelemetry.trace import SpanKind, StatusCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from opentelemetry.metrics import Counter, Histogram, MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from asignals._core import Send
    from asignals.overview.relay_metrics import Metric, Sample

__all__ = ["Instrumentation", "instrument", "uninstrument"]

SYSTEM: Final = "asignals"
SCHEMA: Final = "https://opentelemetry.io/schemas/1.30.0"
# Seconds, as the conventions for messaging metrics ask, with three more at the start: receivers are often quick.
BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

Attributes = dict[str, str | int]

_WAIT: Final = 2.0  # seconds that collecting metrics waits for the servers of a relay, in a separate thread

_show: Final = Shower()
_TEXT: Final = 16_000  # characters of an exception's message or traceback


class Instrumentation:
    """One running instrumentation: call it, or leave its `with` block, to end it. Made by `instrument`."""

    def __init__(
        self,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        exclude: tuple[Signal[..., Any] | str, ...],
    ) -> None:
        """Make the instruments and start to watch."""
        self._tracer = trace.get_tracer(SYSTEM, _version(), tracer_provider, schema_url=SCHEMA)
        meter = metrics.get_meter(SYSTEM, _version(), meter_provider, schema_url=SCHEMA)
        self._send = _Instruments(
            meter.create_counter("messaging.client.sent.messages", "{message}", "Sends of signals."),
            _histogram(meter, "messaging.client.operation.duration", "Duration of a send, all its receivers included."),
        )
        self._process = _Instruments(
            meter.create_counter("messaging.client.consumed.messages", "{message}", "Calls of receivers."),
            _histogram(meter, "messaging.process.duration", "Duration of a receiver's call."),
        )
        self._is_on = True
        for metric in METRICS:
            make = meter.create_observable_gauge if metric.kind == "gauge" else meter.create_observable_counter
            make(metric.name, [partial(self._observe, metric)], metric.unit, metric.help)
        signals = [origin_of(each) for each in exclude if isinstance(each, Signal)]
        self._excluded = {id(signal): signal for signal in signals}
        self._patterns = [name for name in exclude if isinstance(name, str)]
        self._undo: Callable[[], object] = monitor(around=self._around)

    def __call__(self) -> None:
        """End it; spans under way end as usual. Doing it again does nothing."""
        with _lock:
            self._end()
            _running[:] = [each for each in _running if each is not self]

    def __enter__(self) -> Self:
        """Go on."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """End it."""
        self()

    def _end(self) -> None:
        self._is_on = False
        self._undo()

    def _observe(self, metric: Metric, _options: metrics.CallbackOptions) -> Iterator[metrics.Observation]:
        """Give the figures of the relays that run now; called in whichever thread collects."""
        for relay in tuple(running.values()) if self._is_on else ():
            status = relay._snapshot.latest(MAX_AGE, _WAIT)
            for sample in samples(relay.service, relay.health(), status):
                if sample.metric is metric:
                    yield metrics.Observation(sample.value, _labels(sample))

    def _around(self, send: Send, receiver: Any) -> Callable[[BaseException | None], object] | None:
        span = self._span(send, receiver)
        if span is None:
            return None
        span.__enter__()
        return partial(_leave, span)

    def _span(self, send: Send, receiver: Any) -> AbstractContextManager[object] | None:
        if context.get_value(_SUPPRESS) or self._is_excluded(send.signal):
            return None
        name = send.signal.name
        if receiver is None:
            delivered = delivered_now()
            if delivered is None:
                return self._observed(self._send, _about(SYSTEM, name, "send"), {})
            return self._consumed(delivered, name)
        exporter = exporter_of(receiver)
        if exporter is not None:
            return self._produced(exporter, receiver)
        return self._observed(self._process, _about(SYSTEM, name, "process"), _code(receiver))

    @contextmanager
    def _produced(self, exporter: Any, receiver: object) -> Iterator[None]:
        """A span in which an event is made, and stored or published: the one that its receivers' spans follow."""
        about = _about(exporter.system, exporter.topic, "send")
        with self._observed(self._send, about, _code(receiver), kind=SpanKind.PRODUCER) as span:
            before = producing.get()
            producing.set(span)
            try:
                yield
            finally:
                if producing.get() is span:
                    producing.set(before)

    @contextmanager
    def _consumed(self, delivered: Any, signal: str) -> Iterator[None]:
        """A span around all receivers of an event, a child of its sender's span and linked to it."""
        envelope = delivered.envelope
        about = _about(delivered.system, envelope.topic, "process")
        about["messaging.consumer.group.name"] = delivered.service
        facts: Attributes = {
            "messaging.message.id": envelope.id,
            "asignals.signal": signal,
            "asignals.attempt": delivered.attempt,
        }
        sender = trace.get_current_span().get_span_context()
        links = [trace.Link(sender)] if sender.is_valid and sender.is_remote else []
        failed = partial(getattr, delivered, "error")
        with self._observed(self._process, about, facts, kind=SpanKind.CONSUMER, links=links, failed=failed):
            yield

    def _is_excluded(self, signal: Signal[..., Any]) -> bool:
        if id(signal) in self._excluded:
            return True
        return any(fnmatchcase(signal.name, pattern) for pattern in self._patterns)

    @contextmanager
    def _observed(  # noqa: PLR0913  what differs between the kinds of spans
        self,
        instruments: _Instruments,
        about: Attributes,
        facts: Attributes,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: Sequence[trace.Link] = (),
        failed: Callable[[], BaseException | None] = lambda: None,
    ) -> Iterator[Span]:
        """A span with its measurements; `facts` are of the span alone; `failed` gives an error that is not raised."""
        attributes = dict(about)
        name = f"{attributes['messaging.operation.name']} {attributes['messaging.destination.name']}"
        span = self._tracer.start_span(name, kind=kind, links=links, attributes={**attributes, **facts})
        # The function is known from few values, its place in a file is not worth its own time series.
        if "code.function.name" in facts:
            attributes["code.function.name"] = facts["code.function.name"]
        start = time.perf_counter()
        try:
            with _current(span):
                yield span
            if isinstance(error := failed(), Exception):
                attributes["error.type"] = _kind(error)
                _fail(span, error)
        except Exception as error:
            attributes["error.type"] = _kind(error)
            _fail(span, error)
            raise
        except BaseException as error:
            # Cancellation and interrupts are no errors: a task group cancels the receivers beside one that failed.
            span.set_attribute("asignals.interrupted", _kind(error))
            raise
        finally:
            span.end()
            instruments.counter.add(1, attributes)
            instruments.duration.record(time.perf_counter() - start, attributes)


class _Instruments:
    """What one kind of operation is measured with."""

    __slots__ = ("counter", "duration")

    def __init__(self, counter: Counter, duration: Histogram) -> None:
        self.counter = counter
        self.duration = duration


_lock: Final = threading.Lock()
_running: list[Instrumentation] = []  # one at most
# What opentelemetry.instrumentation's suppress_instrumentation() sets; the API has it under this name only.
_SUPPRESS: Final = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")


def instrument(
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    exclude: Iterable[Signal[..., Any] | str] = (),
) -> Instrumentation:
    """Trace and measure every send of this process, until `uninstrument()`; also a context manager.

    Signals in `exclude`, or whose names match a pattern in it (`"shop.internal.*"`, as `fnmatch` reads it), are left
    out: neither they nor their receivers get spans or metrics. Without providers the global ones are used. Sends
    under way are not traced. Nothing is done inside `suppress_instrumentation()`.

    Raises:
        RuntimeError: it is on already; call `uninstrument` first to change options.
        TypeError: something in `exclude` is neither a signal nor a string.
    """
    excluded = tuple(exclude)
    for each in excluded:
        if not isinstance(each, (Signal, str)):
            raise TypeError(f"exclude takes signals and patterns of names, not {type(each).__name__!r}")
    with _lock:
        if _running:
            raise RuntimeError("signals are instrumented already: call uninstrument() first")
        _running.append(Instrumentation(tracer_provider, meter_provider, excluded))
        return _running[0]


def uninstrument() -> None:
    """End what `instrument` began; does nothing where it is not on. Spans under way end as usual."""
    with _lock:
        while _running:
            _running.pop()._end()


def _leave(span: AbstractContextManager[object], error: BaseException | None) -> None:
    span.__exit__(None if error is None else type(error), error, None if error is None else error.__traceback__)


@contextmanager
def _current(span: Span) -> Iterator[None]:
    """Makes a span the current one.

    Without a token, unlike `trace.use_span`: a send that nobody awaits any more is closed in another context, by the
    garbage collector or another task, and a token is of no use there.
    """
    before = context.get_current()
    context.attach(trace.set_span_in_context(span))
    try:
        yield
    finally:
        if trace.get_current_span() is span:
            context.attach(before)


def _about(system: str, destination: str, operation: str) -> Attributes:
    return {
        "messaging.system": system,
        "messaging.destination.name": destination,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }


def _labels(sample: Sample) -> dict[str, str]:
    labels = {"asignals.service": sample.service}
    if (destination := sample.topic or sample.queue) is not None:
        labels["messaging.destination.name"] = destination
    return labels


def _histogram(meter: metrics.Meter, name: str, description: str) -> Histogram:
    return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS)


def _code(receiver: object) -> Attributes:
    attributes: Attributes = {"code.function.name": name_of(receiver)}
    path, _, line = (locate(receiver) or "").rpartition(":")
    if path:
        attributes["code.file.path"] = path
        attributes["code.line.number"] = int(line)
    return attributes


def _kind(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _fail(span: Span, error: Exception) -> None:
    span.set_attribute("error.type", _kind(error))
    # As `Span.record_exception` does it, but for the secrets that a message may hold.
    event = {
        "exception.type": _kind(error),
        "exception.message": message_of(error),
        "exception.stacktrace": trace_of(error),
    }
    span.add_event("exception", {name: _show.clean(text, _TEXT) for name, text in event.items()})
    span.set_status(StatusCode.ERROR, type(error).__name__)


def _version() -> str:
    try:
        return importlib.metadata.version("asignals")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return ""
