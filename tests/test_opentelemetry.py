"""Spans and metrics of sends and receivers, as an OpenTelemetry SDK receives them."""

import contextvars
import threading
from types import SimpleNamespace

import anyio
import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk")

from opentelemetry import context, metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from asignals import Background, Signal, opentelemetry
from asignals._core.dispatch import watchers
from asignals.opentelemetry import instrument, uninstrument

pytestmark = [pytest.mark.anyio, pytest.mark.loops("asyncio", "trio")]


class Telemetry:
    """Instruments for the length of a test, and tells what was exported."""

    def __init__(self, **options):
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.running = instrument(tracer_provider=self.tracer_provider, meter_provider=self.meter_provider, **options)
        self.tracer = self.tracer_provider.get_tracer("test")

    @property
    def spans(self):
        return list(self.exporter.get_finished_spans())

    def span(self, name):
        found = [span for span in self.spans if span.name == name]
        assert len(found) == 1, [span.name for span in self.spans]
        return found[0]

    @property
    def metrics(self):
        data = self.reader.get_metrics_data()
        return data.resource_metrics[0].scope_metrics[0].metrics if data else []

    def points(self, name):
        return [point for metric in self.metrics if metric.name == name for point in metric.data.data_points]

    def units(self, *names):
        return {metric.unit for metric in self.metrics if metric.name in names}


@pytest.fixture
def telemetry():
    made = Telemetry()
    yield made
    uninstrument()
    made.meter_provider.shutdown()


def is_child(child, parent):
    return child.parent is not None and child.parent.span_id == parent.context.span_id


async def fail(**named):
    raise LookupError


async def test_a_send_is_a_span_with_a_child_for_each_receiver(telemetry):
    """The receivers' spans are children of the send's, and that of the caller's; attributes follow the conventions."""
    paid = Signal(["amount"], name="shop.paid")

    async def ship(**named): ...
    def book(**named): ...

    paid.connect(ship)
    paid.connect(book)
    with telemetry.tracer.start_as_current_span("request"):
        await paid.send("shop", amount=42)
    request, send = telemetry.span("request"), telemetry.span("send shop.paid")
    processed = [span for span in telemetry.spans if span.name == "process shop.paid"]
    assert is_child(send, request)
    assert all(is_child(span, send) for span in processed)
    assert {span.kind for span in (send, *processed)} == {SpanKind.INTERNAL}
    assert dict(send.attributes) == {
        "messaging.system": "asignals",
        "messaging.destination.name": "shop.paid",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
    }
    assert [span.attributes["code.function.name"].rpartition(".")[2] for span in processed] == ["ship", "book"]
    assert dict(processed[0].attributes) == {
        "messaging.system": "asignals",
        "messaging.destination.name": "shop.paid",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "code.function.name": processed[0].attributes["code.function.name"],
        "code.file.path": __file__,
        "code.line.number": ship.__code__.co_firstlineno,
    }


async def test_a_receivers_span_is_current_while_it_runs(telemetry):
    """What a receiver does, and sends, is inside its own span; after the send the caller's is current again."""
    outer, inner = Signal([], name="outer"), Signal([], name="inner")

    async def nested(**named):
        seen.append(trace.get_current_span().get_span_context().span_id)
        await anyio.lowlevel.checkpoint()
        await inner.send(None)
        seen.append(trace.get_current_span().get_span_context().span_id)

    seen = []
    outer.connect(nested)
    with telemetry.tracer.start_as_current_span("request") as request:
        await outer.send(None)
        assert trace.get_current_span() is request
    process = telemetry.span("process outer")
    assert seen == [process.context.span_id] * 2
    assert is_child(telemetry.span("send inner"), process)


async def test_the_context_goes_into_threads_task_groups_and_background_sends(telemetry):
    """A receiver in a worker thread, in a task group or in the background runs inside its own span."""
    seen = {}

    def note(key):
        seen[key] = trace.get_current_span().get_span_context()

    def in_thread(**named):
        seen["is another thread"] = threading.current_thread() is not threading.main_thread()
        note("thread")

    async def first(**named):
        await anyio.lowlevel.checkpoint()
        note("first")

    async def second(**named):
        note("second")

    threaded, grouped = Signal([], name="threaded"), Signal([], name="grouped", task_group=anyio.create_task_group)
    threaded.connect(in_thread, in_thread=True)
    grouped.connect(first)
    grouped.connect(second)
    with telemetry.tracer.start_as_current_span("request"):
        await grouped.send(None)
        async with Background() as background:
            await background.send(threaded, None)
    by_id = {span.context.span_id: span for span in telemetry.spans}
    assert by_id[seen["thread"].span_id].name == "process threaded"
    assert seen["is another thread"]
    assert {
        by_id[seen[key].span_id].attributes["code.function.name"].rpartition(".")[2] for key in ("first", "second")
    } == {
        "first",
        "second",
    }
    request = telemetry.span("request")
    assert is_child(telemetry.span("send grouped"), request)
    assert is_child(telemetry.span("send threaded"), request)
    assert len({span.context.trace_id for span in telemetry.spans}) == 1


async def test_an_error_marks_the_receiver_and_a_send_that_raises(telemetry):
    """The exception is an event of the span, with `error.type`; a robust send that returns it has not failed itself."""
    paid = Signal([], name="shop.paid")
    paid.connect(fail)
    with pytest.raises(LookupError):
        await paid.send(None)
    send, process = telemetry.span("send shop.paid"), telemetry.span("process shop.paid")
    for span in (send, process):
        assert span.status.status_code is StatusCode.ERROR
        assert span.attributes["error.type"] == "LookupError"
        assert [event.name for event in span.events] == ["exception"]
    telemetry.exporter.clear()
    await paid.send_robust(None)
    assert telemetry.span("process shop.paid").status.status_code is StatusCode.ERROR
    assert telemetry.span("send shop.paid").status.status_code is StatusCode.UNSET


async def test_cancellation_is_no_error(telemetry):
    """A receiver that is cancelled since another failed says so, and only the other counts as failed."""
    paid = Signal([], name="shop.paid", task_group=anyio.create_task_group)

    async def wait(**named):
        await anyio.sleep_forever()

    async def fail_later(**named):
        await anyio.wait_all_tasks_blocked()
        raise LookupError

    paid.connect(wait)
    paid.connect(fail_later)
    with anyio.fail_after(60), pytest.raises(ExceptionGroup):
        await paid.send(None)
    spans = {span.attributes.get("code.function.name", "").rpartition(".")[2]: span for span in telemetry.spans}
    assert "error.type" not in spans["wait"].attributes
    assert spans["wait"].status.status_code is StatusCode.UNSET
    assert "Cancelled" in spans["wait"].attributes["asignals.interrupted"]
    assert spans["fail_later"].attributes["error.type"] == "LookupError"


async def test_metrics_count_sends_calls_errors_and_durations(telemetry):
    """Counters and histograms by signal, receiver and kind of error, in seconds."""
    paid = Signal(["amount"], name="shop.paid")

    async def ship(**named):
        await anyio.sleep(0.02)

    paid.connect(ship)
    await paid.send("shop", amount=1)
    paid.connect(fail)
    await paid.send_robust("shop", amount=2)
    with pytest.raises(LookupError):
        await paid.send("shop", amount=3)
    sends = {
        point.attributes.get("error.type"): point.value for point in telemetry.points("messaging.client.sent.messages")
    }
    assert sends == {None: 2, "LookupError": 1}
    calls = {
        (point.attributes["code.function.name"].rpartition(".")[2], point.attributes.get("error.type")): point.value
        for point in telemetry.points("messaging.client.consumed.messages")
    }
    assert calls == {("ship", None): 3, ("fail", "LookupError"): 2}
    durations = {
        point.attributes["code.function.name"].rpartition(".")[2]: point
        for point in telemetry.points("messaging.process.duration")
    }
    assert durations["fail"].attributes["error.type"] == "LookupError"
    assert durations["ship"].count == 3
    assert 0.01 <= durations["ship"].min <= durations["ship"].max < 5
    assert durations["ship"].explicit_bounds[:3] == (0.0001, 0.0005, 0.001)
    sent = {
        point.attributes.get("error.type"): point for point in telemetry.points("messaging.client.operation.duration")
    }
    assert {error: point.count for error, point in sent.items()} == {None: 2, "LookupError": 1}
    assert 0.01 <= sent[None].min <= sent[None].max < 5
    assert telemetry.units("messaging.process.duration", "messaging.client.operation.duration") == {"s"}


async def test_nothing_that_is_sent_is_exported(telemetry):
    """Neither senders nor arguments are in any attribute."""
    login = Signal(["password"], name="login")
    login.connect(lambda **named: None, weak=False)
    await login.send("the sender", password="hunter2")  # noqa: S106  that is the point
    exported = str([dict(span.attributes) for span in telemetry.spans])
    assert "hunter2" not in exported
    assert "the sender" not in exported


async def test_signals_may_be_excluded(collect):
    """By the signal itself, by one of its views, or by a pattern of names; their receivers are left out too."""
    shown, hidden, seen = Signal([], name="shop.shown"), Signal([], name="shop.hidden"), Signal([], name="seen")
    internal = Signal([], name="internal.tick")
    made = Telemetry(exclude=[hidden, "internal.*", seen.using(task_group=None)])
    try:
        for each in (shown, hidden, internal, seen):
            each.connect(collect)
            await each.send(None)
    finally:
        uninstrument()
    assert [span.name for span in made.spans] == ["process shop.shown", "send shop.shown"]
    assert len(collect.calls) == 4


def test_exclude_takes_signals_and_strings_only():
    """Anything else is a TypeError, and nothing is watched then."""
    with pytest.raises(TypeError, match="exclude takes signals and patterns of names, not 'int'"):
        instrument(exclude=[3])
    assert watchers == []


async def test_instrument_twice_is_refused_and_uninstrument_may_be_repeated(telemetry):
    """A second call raises RuntimeError; after `uninstrument` nothing is traced, and it can begin again."""
    paid = Signal([], name="shop.paid")
    with pytest.raises(RuntimeError, match="instrumented already"):
        instrument()
    uninstrument()
    uninstrument()
    await paid.send(None)
    assert telemetry.spans == []
    assert watchers == []
    with instrument(tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider):
        await paid.send(None)
    await paid.send(None)
    telemetry.span("send shop.paid")
    instrument()()
    assert watchers == []


async def test_an_instrumentation_that_has_ended_ends_no_other(telemetry):
    """Calling it once more does nothing, also when another one has begun meanwhile."""
    paid = Signal([], name="shop.paid")
    telemetry.running()
    with instrument(tracer_provider=telemetry.tracer_provider):
        telemetry.running()
        with pytest.raises(RuntimeError, match="instrumented already"):
            instrument()
        await paid.send(None)
    telemetry.span("send shop.paid")


async def test_without_providers_the_global_ones_are_used(telemetry, monkeypatch):
    """Those that the program has set by then."""
    paid = Signal([], name="shop.paid")
    telemetry.running()
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: telemetry.tracer_provider)
    monkeypatch.setattr(metrics._internal, "get_meter_provider", lambda: telemetry.meter_provider)
    with instrument():
        await paid.send(None)
    telemetry.span("send shop.paid")
    assert [point.value for point in telemetry.points("messaging.client.sent.messages")] == [1]


async def test_sends_under_way_are_not_traced(telemetry):
    """Neither they nor their receivers get spans from an instrumentation that begins meanwhile."""
    paid, later = Signal([], name="shop.paid"), Signal([], name="later")
    telemetry.running()

    async def begin(**named):
        instrument(tracer_provider=telemetry.tracer_provider)

    async def follow(**named):
        await later.send(None)

    paid.connect(begin)
    paid.connect(follow)
    await paid.send(None)
    assert [span.name for span in telemetry.spans] == ["send later"]


@pytest.mark.parametrize("kind", ["receiver", "exporter"])
async def test_a_send_that_is_closed_in_another_context_ends_its_spans(telemetry, caplog, monkeypatch, kind):
    """By a thread, or by the collector after a generator was left: nothing fails, and later sends are traced."""
    abandoned = Signal([], name="shop.abandoned")

    @abandoned.connect
    async def waits():
        await anyio.sleep_forever()

    if kind == "exporter":
        monkeypatch.setattr(opentelemetry, "exporter_of", lambda _: SimpleNamespace(system="memory", topic="topic"))
    with telemetry.tracer.start_as_current_span("request") as request:
        for close in contextvars.Context().run, contextvars.copy_context().run:
            sending = abandoned.send(None)
            sending.send(None)
            close(sending.close)
            context.attach(trace.set_span_in_context(request))  # the task that was left goes on
    assert caplog.messages == []
    abandoned.disconnect(waits)
    await abandoned.send(None)
    assert len([span for span in telemetry.spans if span.name == "send shop.abandoned"]) == 3
    assert not trace.get_current_span().get_span_context().is_valid


async def test_suppressed_instrumentation_is_respected(telemetry):
    """Inside OpenTelemetry's own suppression nothing is traced or measured."""
    paid = Signal([], name="shop.paid")
    token = context.attach(context.set_value(context._SUPPRESS_INSTRUMENTATION_KEY, "yes"))
    try:
        await paid.send(None)
    finally:
        context.detach(token)
    assert telemetry.spans == []


async def test_a_send_under_way_ends_its_spans_after_uninstrument(telemetry):
    """What had begun is exported although the instrumentation has ended."""
    paid = Signal([], name="shop.paid")

    async def stop(**named):
        uninstrument()

    paid.connect(stop)
    await paid.send(None)
    assert [span.name for span in telemetry.spans] == ["process shop.paid", "send shop.paid"]


async def test_concurrent_sends_keep_their_spans_apart(telemetry):
    """Fifty sends at once, each inside its own request's span."""
    paid = Signal(["number"], name="shop.paid")

    async def ship(**named):
        await anyio.lowlevel.checkpoint()

    paid.connect(ship)

    async def request(number):
        with telemetry.tracer.start_as_current_span(f"request {number}"):
            await paid.send(None, number=number)

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(request, number)
    spans = {span.context.span_id: span for span in telemetry.spans}
    roots = []
    for span in spans.values():
        if span.name == "process shop.paid":
            send = spans[span.parent.span_id]
            roots.append(spans[send.parent.span_id].name)
    assert sorted(roots) == sorted(f"request {number}" for number in range(50))


@pytest.mark.parametrize("part", ["tracer_provider", "meter_provider"])
async def test_telemetry_that_fails_harms_no_send(caplog, collect, part):
    """It is logged once and ended; receivers are called once, and what they return or raise is what the sender gets."""

    class Broken:
        def __getattr__(self, name):
            raise OSError(name)

    class Provider(TracerProvider if part == "tracer_provider" else MeterProvider):
        def get_tracer(self, *args, **options):
            return Broken()

        def get_meter(self, *args, **options):
            meter = super().get_meter(*args, **options)
            meter.create_counter = meter.create_histogram = lambda *args, **options: Broken()
            return meter

    paid = Signal([], name="shop.paid")
    paid.connect(collect)
    paid.connect(fail)
    with instrument(**{part: Provider(shutdown_on_exit=False)}):
        with pytest.raises(LookupError):
            await paid.send(None)
        assert len(collect.calls) == 1
        assert type((await paid.send_robust(None))[1][1]) is LookupError
    assert len(collect.calls) == 2
    assert "a monitor failed and was removed" in caplog.text
    assert watchers == []


async def test_what_an_exception_says_is_masked(telemetry):
    """Its event has type, message and traceback as the conventions ask, without the secrets in them."""
    paid = Signal([], name="shop.paid")

    async def receiver(**named):
        raise LookupError("no login for me with password=hunter2")

    paid.connect(receiver)
    await paid.send_robust(None)
    (span,) = [span for span in telemetry.spans if span.name == "process shop.paid"]
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "LookupError"
    assert event.attributes["exception.message"] == "no login for me with password=••••"
    assert "LookupError: no login" in event.attributes["exception.stacktrace"]
    assert "hunter2" not in str(event.attributes)


async def test_a_relays_span_says_service_and_topic(telemetry):
    """`relay shop → order.paid`, and no file of the library."""
    relays = pytest.importorskip("asignals.relay")
    paid = Signal(["amount"], name="shop.relayed")
    relay = relays.Relay(relays.Memory(), "shop")
    relay.export(paid, "order.paid")
    await paid.send_robust("web", amount=1)
    relay.stop_exporting(paid)
    span = telemetry.span("send order.paid")
    attributes = span.attributes
    assert span.kind is SpanKind.PRODUCER
    assert attributes["code.function.name"] == "relay shop → order.paid"
    assert "code.file.path" not in attributes
