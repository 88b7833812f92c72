"""A relay in OpenTelemetry: spans across processes, baggage, and the figures as gauges and on /metrics."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from relay_support import World, first, until, world

pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk")

from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from asignals import Signal
from asignals.opentelemetry import instrument, uninstrument
from asignals.overview.relay_metrics import Metric, Sample, prometheus_text
from asignals.relay import DeadLetter, Envelope, Memory, Relay, SQLAlchemyInbox, SQLAlchemyOutbox
from asignals.relay._monitoring.status import Snapshot
from asignals.relay.worker import _health_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """The relay is for asyncio only."""
    return "asyncio", {}


@pytest.fixture(params=first("memory", "postgres", "rabbitmq"))
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A world of its own for every test, on every engine."""
    async with world(request.param, tmp_path) as made:
        yield made


class Telemetry:
    """Instruments for the length of a test, and tells what was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = provider.get_tracer("test")
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        instrument(tracer_provider=provider, meter_provider=self.meters)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def values(self) -> dict[tuple[str, str | None], float]:
        """Collect, and give the values of a relay's metrics by name and destination."""
        data = self.reader.get_metrics_data()
        found = data.resource_metrics[0].scope_metrics[0].metrics if data else []
        return {
            (
                metric.name.removeprefix("asignals.relay."),
                point.attributes.get("messaging.destination.name"),
            ): point.value
            for metric in found
            if metric.name.startswith("asignals.relay.")
            for point in metric.data.data_points
        }


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    gc.collect()  # relays that other tests have left have figures, too
    made = Telemetry()
    yield made
    uninstrument()
    made.meters.shutdown()


def pair(shop_on: Any, billing_on: Any, **options: Any) -> tuple[Signal[..., Any], Signal[..., Any], Relay, Relay]:
    out, into = Signal(["amount"], name="out"), Signal(["amount"], name="into")
    shop, billing = Relay(shop_on, "shop"), Relay(billing_on, "billing")
    shop.export(out, "numbers")
    billing.receive(into, "numbers", backoff=(0.01, 0.02), **options)
    return out, into, shop, billing


SYSTEMS = {"memory": "asignals", "sqlite": "sqlite", "postgres": "postgresql", "jetstream": "nats"}


async def test_an_event_is_a_producers_span_and_a_consumers(engine: World, telemetry: Telemetry) -> None:
    """With the engine, the topic, the service and the event's id; the second is the first's child, and linked to it."""
    out, into, shop, billing = pair(engine.open(), engine.open())
    heard: list[Any] = []

    @into.connect
    async def charge(amount: int) -> None:
        heard.append((amount, baggage.get_baggage("tenant"), trace.get_current_span().get_span_context()))

    await billing.init()
    async with billing, shop:
        token = context.attach(baggage.set_baggage("tenant", "café 7"))
        with telemetry.tracer.start_as_current_span("buy") as buy:
            await out.send("web", amount=3)
        context.detach(token)
        await until(lambda: telemetry.named("process numbers"))
    [producer], [consumer] = telemetry.named("send numbers"), telemetry.named("process numbers")
    [receiver] = telemetry.named("process into")
    assert (producer.kind, consumer.kind, receiver.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.INTERNAL)
    assert producer.context.trace_id == consumer.context.trace_id == buy.get_span_context().trace_id
    assert consumer.parent.span_id == producer.context.span_id
    assert [link.context.span_id for link in consumer.links] == [producer.context.span_id]
    assert receiver.parent.span_id == consumer.context.span_id
    system = SYSTEMS.get(engine.name, engine.name)
    assert producer.attributes["messaging.system"] == consumer.attributes["messaging.system"] == system
    assert producer.attributes["messaging.destination.name"] == "numbers"
    assert producer.attributes["messaging.operation.type"] == "send"
    assert producer.attributes["code.function.name"] == "relay shop → numbers"
    assert producer.attributes["messaging.message.id"] == consumer.attributes["messaging.message.id"]
    assert dict(consumer.attributes) == {
        "messaging.system": system,
        "messaging.destination.name": "numbers",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "billing",
        "messaging.message.id": consumer.attributes["messaging.message.id"],
        "asignals.signal": "into",
        "asignals.attempt": 1,
    }
    assert heard == [(3, "café 7", receiver.context)]
    assert baggage.get_baggage("tenant") is None


async def test_a_retry_is_a_span_again_and_an_error_is_said(telemetry: Telemetry) -> None:
    """Each attempt has its span, linked to the sender's; the one that failed says with what."""
    memory = Memory()
    out, into, shop, billing = pair(memory, memory)
    attempts: list[int] = []

    @into.connect
    async def charge(amount: int) -> None:
        attempts.append(amount)
        if len(attempts) == 1:
            raise LookupError

    async with billing, shop:
        await out.send(None, amount=1)
        await until(lambda: len(telemetry.named("process numbers")) == 2)
    first, second = telemetry.named("process numbers")
    assert [span.attributes["asignals.attempt"] for span in (first, second)] == [1, 2]
    assert first.attributes["error.type"] == "LookupError"
    assert first.status.status_code is StatusCode.ERROR
    assert second.status.status_code is StatusCode.UNSET
    [producer] = telemetry.named("send numbers")
    assert {link.context.span_id for span in (first, second) for link in span.links} == {producer.context.span_id}


async def test_what_receivers_send_themselves_is_no_consumers_span(telemetry: Telemetry) -> None:
    """Only the relay's own send is; nested sends are as ever, below it."""
    memory, nested = Memory(), Signal([], name="nested")
    out, into, shop, billing = pair(memory, memory)

    @into.connect
    async def charge(amount: int) -> None:
        await nested.send(None)

    async with billing, shop:
        await out.send(None, amount=1)
        await until(lambda: telemetry.named("process numbers"))
    [inner] = telemetry.named("send nested")
    assert inner.kind is SpanKind.INTERNAL
    assert len(telemetry.named("process numbers")) == 1


async def test_a_broadcast_is_a_consumers_span_in_each_instance(telemetry: Telemetry) -> None:
    """As what services share is."""
    memory, into, out = Memory(), Signal(["amount"], name="into"), Signal(["amount"], name="out")
    shop = Relay(memory, "shop")
    shop.export(out, "numbers")
    webs = [Relay(memory, "web") for _ in range(2)]
    for web in webs:
        web.receive(into, "numbers", broadcast=True)
    into.connect(lambda amount: None, weak=False)
    async with webs[0], webs[1], shop:
        await until(lambda: len(memory._listeners) == 2)
        await out.send(None, amount=1)
        await until(lambda: len(telemetry.named("process numbers")) == 2)
    assert {span.kind for span in telemetry.named("process numbers")} == {SpanKind.CONSUMER}


async def test_baggage_that_is_too_long_stays_here(caplog: pytest.LogCaptureFixture) -> None:
    """The event goes without it, and the log says so."""
    memory, out = Memory(), Signal(["amount"], name="out")
    shop = Relay(memory, "shop")
    shop.export(out, "numbers")
    first = baggage.set_baggage("a", "x" * 3_000)
    token = context.attach(baggage.set_baggage("b", "y" * 3_000, first))
    async with shop:
        await out.send(None, amount=1)
    context.detach(token)
    [(_, _, data)] = memory._kept
    assert Envelope.decode(data).baggage is None
    assert "baggage of 6005 characters does not cross with an event: 4096 is the most" in caplog.text


@pytest.mark.parametrize("text", ["", "=", "a=%ff%zz,,;", "x" * 4_096, "a=b;c=d," * 200])
async def test_malformed_baggage_calls_receivers_all_the_same(text: str) -> None:
    """Whoever publishes may write what they like into it."""
    memory = Memory()
    _, into, _, billing = pair(memory, memory)
    into.connect(lambda amount: None, weak=False)
    async with billing:
        await memory.publish_many([Envelope("numbers", b'{"amount": 1}', baggage=text, tracestate=text[:500])])
        await until(lambda: billing.health().received == 1)


RECEIVING = """
import asyncio, json, sys
from opentelemetry import baggage
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from asignals import Signal, opentelemetry
from asignals.relay import Relay, engine_from_url

spans, tracing = InMemorySpanExporter(), TracerProvider()
tracing.add_span_processor(SimpleSpanProcessor(spans))
opentelemetry.instrument(tracer_provider=tracing)
into, done = Signal(["amount"], name="into"), asyncio.Event()
billing = Relay(engine_from_url(sys.argv[1]), "billing")
billing.receive(into, "numbers")

@into.connect
async def charge(amount):
    done.tenant = baggage.get_baggage("tenant")
    done.set()

async def main():
    await billing.init()
    async with billing:
        print("ready", flush=True)
        await done.wait()
    [span] = [span for span in spans.get_finished_spans() if span.name == "process numbers"]
    link = span.links[0].context
    print(json.dumps([span.kind.name, span.context.trace_id, link.trace_id, link.span_id, done.tenant]))

asyncio.run(main())
"""


async def test_a_trace_crosses_processes(telemetry: Telemetry, tmp_path: Path) -> None:
    """The receiving process links its span to that of the sending one, and has its baggage."""
    url = f"sqlite:///{tmp_path}/bus.db"
    process = subprocess.Popen(  # noqa: ASYNC220, S603  this very program
        [sys.executable, "-c", RECEIVING, url],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "ready\n"
        from asignals.relay import engine_from_url

        out, shop = Signal(["amount"], name="out"), Relay(engine_from_url(url), "shop")
        shop.export(out, "numbers")
        token = context.attach(baggage.set_baggage("tenant", "7"))
        async with shop:
            await out.send(None, amount=1)
        context.detach(token)
        told, _ = await asyncio.to_thread(process.communicate, timeout=60)
    finally:
        process.kill()
    [producer] = telemetry.named("send numbers")
    trace_id, span_id = producer.context.trace_id, producer.context.span_id
    assert json.loads(told) == ["CONSUMER", trace_id, trace_id, span_id, "7"]


# -- figures ---------------------------------------------------------------------------------------------------------


async def test_figures_are_gauges(engine: World, telemetry: Telemetry) -> None:
    """Collected in a thread they are fresh; what the engine cannot tell has no value."""
    transport = engine.open()
    _, into, _, billing = pair(transport, transport)
    gate = asyncio.Event()

    @into.connect
    async def charge(amount: int) -> None:
        await gate.wait()

    await billing.init()
    async with billing:
        await transport.publish_many([Envelope("numbers", b'{"amount": 1}')])
        await until(lambda: billing.health().in_flight == 1)
        values = await asyncio.to_thread(telemetry.values)
        assert values["handling", None] == 1
        assert values["received", None] == 0
        assert values["dead_letters", "dlq.billing"] == 0
        assert values["silent", None] == 0
        assert ("backlog", "numbers") in values
        assert (("backlog.age", "numbers") in values) is (engine.name != "rabbitmq")
        assert (("in_flight", "numbers") in values) is (engine.name not in ("rabbitmq", "kafka"))
        gate.set()
    assert not [name for name in await asyncio.to_thread(telemetry.values) if name == "backlog"]


class Slow(Memory):
    """An engine that counts how often it is asked, and answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.open = asyncio.Event()

    async def figures(self, *which: Any) -> Any:
        self.asked += 1
        await self.open.wait()
        return await super().figures(*which)


async def test_collecting_blocks_no_loop_and_asks_no_more_than_needed(telemetry: Telemetry) -> None:
    """In the loop's own thread it gives what is known; all who collect within five seconds share one answer."""
    slow = Slow()
    _, _, _, billing = pair(slow, slow, allow_no_receivers=True)
    async with billing:
        assert ("backlog", "numbers") not in telemetry.values()  # asked for, but not waited for
        await until(lambda: slow.asked)
        slow.open.set()
        await until(lambda: ("backlog", "numbers") in telemetry.values())
        threads = [threading.Thread(target=telemetry.values) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert slow.asked == 1
    assert billing.final_status is not None


@pytest.mark.slow
async def test_a_silent_server_costs_a_collection_two_seconds_once(telemetry: Telemetry) -> None:
    """Whatever does not depend on it is there; the next collection does not wait for it again."""
    slow = Slow()
    _, _, _, billing = pair(slow, slow, allow_no_receivers=True)
    async with billing:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        values = await asyncio.to_thread(telemetry.values)
        assert loop.time() - begun < 15  # and not two seconds for each of the metrics, which are more than twenty
        assert values["problems", None] == 0
        assert ("backlog", "numbers") not in values
        slow.open.set()


async def fetch(relay: Relay, path: str, caplog: pytest.LogCaptureFixture) -> tuple[int, str, str]:
    """Get a page of the health server."""
    caplog.set_level(logging.INFO)
    async with _health_server(relay, "127.0.0.1", 0):
        url = re.search(r"http://\S+", caplog.messages[-1])
        assert url is not None

        def get() -> tuple[int, str, str]:
            with urllib.request.urlopen(f"{url[0].rstrip('/')}{path}", timeout=60) as answer:  # noqa: S310  our own
                return answer.status, answer.headers["Content-Type"], answer.read().decode()

        return await asyncio.to_thread(get)


async def test_the_health_port_serves_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All figures in Prometheus' text format, which its own parser reads; other paths still are health."""
    url, transport = f"sqlite+aiosqlite:///{tmp_path}/bus.db", Memory()
    outbox, inbox = SQLAlchemyOutbox(url), SQLAlchemyInbox(url)
    billing = Relay(transport, "billing", outbox=outbox, inbox=inbox)
    billing.receive(Signal(["amount"]), "numbers", allow_no_receivers=True)
    await billing.init()
    await transport.put_dead_letter("dlq.billing", DeadLetter(b"x", "billing", "E: e"))
    async with billing:
        status, kind, text = await fetch(billing, "/metrics?a=b", caplog)
        _, health_kind, health = await fetch(billing, "/metricsx", caplog)
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert (health_kind, json.loads(health)["ok"]) == ("application/json", True)
    found = parsed(text)
    assert found["asignals_relay_backlog", "billing", "numbers", None] == 0
    assert found["asignals_relay_backlog_age_seconds", "billing", "numbers", None] == 0
    assert found["asignals_relay_instances", "billing", "numbers", None] == 1
    assert found["asignals_relay_dead_letters", "billing", None, "dlq.billing"] == 1
    assert found["asignals_relay_dead_letters", "billing", None, "outbox.refused"] == 0
    assert found["asignals_relay_outbox", "billing", None, None] == 0
    assert found["asignals_relay_outbox_age_seconds", "billing", None, None] == 0
    assert found["asignals_relay_inbox", "billing", None, None] == 0
    assert found["asignals_relay_silent", "billing", None, None] == 0
    assert found["asignals_relay_received_total", "billing", None, None] == 0


@pytest.mark.slow
async def test_metrics_come_though_a_server_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    """After three seconds, without its figures."""
    slow = Slow()
    _, _, _, billing = pair(slow, slow, allow_no_receivers=True)
    async with billing:
        _, _, text = await fetch(billing, "/metrics", caplog)
        slow.open.set()
    names = {name for name, *_ in parsed(text)}
    assert "asignals_relay_problems" in names
    assert "asignals_relay_backlog" not in names


def parsed(text: str) -> dict[tuple[str, str | None, str | None, str | None], float]:
    """Read the text format strictly: each line is a comment or a sample, each metric has one help and one type."""
    found: dict[Any, float] = {}
    described: dict[str, list[str]] = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if comment := re.fullmatch(r"# (HELP|TYPE) ([a-z_]+) (.+)", line):
            described.setdefault(comment[2], []).append(comment[1])
            continue
        sample = re.fullmatch(r"([a-z_]+)\{((?:[a-z]+=\"(?:[^\"\\\n]|\\[\\\"n])*\",?)*)\} ([0-9.e+-]+)", line)
        assert sample, line
        labels = dict(re.findall(r"([a-z]+)=\"((?:[^\"\\]|\\.)*)\"", sample[2]))
        labels = {name: re.sub(r"\\(.)", lambda it: {"n": "\n"}.get(it[1], it[1]), one) for name, one in labels.items()}
        key = sample[1], labels.get("service"), labels.get("topic"), labels.get("queue")
        assert key not in found
        found[key] = float(sample[3])
        assert described[sample[1]] == ["HELP", "TYPE"]
    with_prometheus_client(text, len(found))
    return found


def with_prometheus_client(text: str, count: int) -> None:
    """Let Prometheus' own parser read it, where it is installed."""
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ModuleNotFoundError:
        return
    assert sum(len(family.samples) for family in text_string_to_metric_families(text)) == count


def test_labels_are_escaped_and_numbers_are_whole() -> None:
    """Whatever a queue is called; and large numbers keep all their digits."""
    metric, hostile = Metric("asignals.relay.x", "gauge", "{event}", "Help."), 'a"b\\c\nd} 1'
    text = prometheus_text(iter([Sample(metric, 12_345_678, "billing", queue=hostile), Sample(metric, 0.25, "b")]))
    assert parsed(text) == {
        ("asignals_relay_x", "billing", None, hostile): 12_345_678,
        ("asignals_relay_x", "b", None, None): 0.25,
    }


def test_a_loop_that_never_runs_again_is_asked_in_vain_and_in_silence() -> None:
    """As when a program is interrupted: no coroutine is left that nobody awaits."""

    async def look() -> Any:
        raise AssertionError

    async def begin() -> Snapshot:
        snapshot = Snapshot(look)
        snapshot.begin()
        return snapshot

    loop = asyncio.new_event_loop()
    snapshot = loop.run_until_complete(begin())
    with ThreadPoolExecutor() as threads:
        assert threads.submit(snapshot.latest, 0.0, 0.01).result() is None
    loop.close()
    del snapshot, loop
    gc.collect()
