"""The figures of a relay as metrics: for OpenTelemetry, and in Prometheus' text format.

Nothing here loads `asignals.relay`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asignals.relay._monitoring.health import Health
    from asignals.relay._monitoring.status import Status

MAX_AGE: Final = 5.0  # seconds for which what the servers said is used again, however many ask


class Metric(NamedTuple):
    """One metric; `name` is OpenTelemetry's, and `unit` is in its notation."""

    name: str
    kind: Literal["gauge", "counter"]
    unit: str
    help: str


_PREFIX: Final = "asignals.relay."

# What outbox, engine and inbox say. The same from every process that asks them.
_TOPIC: Final = {
    "backlog": Metric(f"{_PREFIX}backlog", "gauge", "{event}", "Events that a service has not acknowledged."),
    "oldest": Metric(f"{_PREFIX}backlog.age", "gauge", "s", "Age of the oldest event that is not acknowledged."),
    "in_flight": Metric(f"{_PREFIX}in_flight", "gauge", "{event}", "Events that instances of a service hold."),
    "retries": Metric(f"{_PREFIX}retries", "gauge", "{event}", "Events that wait to be delivered again."),
    "instances": Metric(f"{_PREFIX}instances", "gauge", "{instance}", "Instances of a service that run."),
}
_DEAD: Final = Metric(f"{_PREFIX}dead_letters", "gauge", "{letter}", "Dead letters in a queue.")
_OUTBOX: Final = Metric(f"{_PREFIX}outbox", "gauge", "{event}", "Events that wait to be published.")
_OUTBOX_AGE: Final = Metric(f"{_PREFIX}outbox.age", "gauge", "s", "Age of the oldest event that waits to be published.")
_INBOX: Final = Metric(f"{_PREFIX}inbox", "gauge", "{row}", "Rows of the inbox, of all services.")
_SILENT: Final = Metric(f"{_PREFIX}silent", "gauge", "{server}", "Servers that did not say their figures.")

# What this process knows by itself, since its start.
_PROBLEMS: Final = Metric(
    f"{_PREFIX}problems", "gauge", "{problem}", "What does not work now, as this process sees it."
)
_RUNNING: Final = Metric(f"{_PREFIX}handling", "gauge", "{event}", "Events that this process is handling.")
_COUNTS: Final = {
    name: Metric(f"{_PREFIX}{name}", "counter", "{event}", text)
    for name, text in {
        "published": "Events that the engine has acknowledged to this process.",
        "received": "Deliveries whose receivers have all succeeded.",
        "ignored": "Deliveries that were for nobody here.",
        "failed": "Deliveries in which a receiver failed.",
        "dead": "Deliveries that became dead letters.",
        "released": "Deliveries that were given back for other instances.",
        "heard": "Broadcasts whose receivers were called.",
        "missed": "Broadcasts that were dropped, or could not be read.",
        "gaps": "Interruptions in which broadcasts may have been missed.",
        "expired": "Dead letters, refused events and rows of the inbox that were removed for their age.",
    }.items()
}

METRICS: Final = (
    *_TOPIC.values(),
    _DEAD,
    _OUTBOX,
    _OUTBOX_AGE,
    _INBOX,
    _SILENT,
    _PROBLEMS,
    _RUNNING,
    *_COUNTS.values(),
)


class Sample(NamedTuple):
    """One value of a metric; `topic` and `queue` are `None` where it has none."""

    metric: Metric
    value: float
    service: str
    topic: str | None = None
    queue: str | None = None


def samples(service: str, health: Health, status: Status | None) -> Iterator[Sample]:
    """Give all that is known. What is not known has no sample, and never that of 0."""
    if status is not None:
        for one in status.topics:
            for name, metric in _TOPIC.items():
                if (value := getattr(one, name)) is not None:
                    yield Sample(metric, value, one.service, one.topic)
        for queue, count in status.dead.items():
            if count is not None:
                yield Sample(_DEAD, count, service, queue=queue)
        rows = (_OUTBOX, status.outbox), (_OUTBOX_AGE, status.outbox_oldest), (_INBOX, status.inbox)
        yield from (Sample(metric, value, service) for metric, value in rows if value is not None)
        yield Sample(_SILENT, len(status.problems), service)
    yield Sample(_PROBLEMS, len(health.problems), service)
    yield Sample(_RUNNING, health.in_flight, service)
    for name, metric in _COUNTS.items():
        yield Sample(metric, getattr(health, name), service)


def prometheus_text(found: Iterator[Sample]) -> str:
    """Write samples in Prometheus' text format, version 0.0.4: each metric's together, with its help and its kind."""
    lines: dict[Metric, list[str]] = {}
    for metric, value, *labels in found:
        names = zip(("service", "topic", "queue"), labels, strict=True)
        given = ",".join(f'{name}="{_escaped(label)}"' for name, label in names if label is not None)
        lines.setdefault(metric, []).append(f"{_prometheus_name(metric)}{{{given}}} {value!r}")
    text = []
    for metric, rows in lines.items():
        name = _prometheus_name(metric)
        text += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}", *rows]
    return "\n".join([*text, ""])


def _prometheus_name(metric: Metric) -> str:
    name = metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
    return f"{name}_total" if metric.kind == "counter" else name


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
