"""The keys of one engine in Redis. All begin with a prefix in braces, which keep them on one node of a cluster."""

from __future__ import annotations

from typing import Final

from asignals.relay._envelope import check_name

_ORDER: Final = ("heads", "held", "due", "behind")


class Keys:
    """Names the streams of topics and what else is kept."""

    def __init__(self, prefix: str) -> None:
        self.base: str = f"{{{check_name('prefix', prefix)}}}"
        self.events: str = f"{self.base}:events:"
        self.keyed: str = f"{self.base}:keyed:"
        self.topics: str = f"{self.base}:topics"  # the set of all streams of topics
        self.queues: str = f"{self.base}:queues"  # that of the streams of dead letters
        self.seen: str = f"{self.base}:seen:"  # begins the keys by which repeated events are known

    def stream(self, topic: str) -> str:
        """Name the stream of a topic's events without a key."""
        return f"{self.events}{check_name('topic', topic)}"

    def keyed_stream(self, topic: str) -> str:
        """Name the stream of a topic's events that have a key."""
        return f"{self.keyed}{check_name('topic', topic)}"

    def streams_of(self, topic: str) -> tuple[str, str]:
        """Name both streams of a topic."""
        return self.stream(topic), self.keyed_stream(topic)

    def topic_of(self, stream: str) -> str:
        """Give the topic of a stream."""
        return stream.removeprefix(self.events).removeprefix(self.keyed)

    def order(self, service: str, topic: str) -> list[str]:
        """Name the keys that hold the order of a topic in a service."""
        return [f"{self.base}:order:{service}:{topic}:{part}" for part in _ORDER]

    def instances(self, service: str) -> str:
        """Name the heartbeats of a service, which expire with the last of them."""
        return f"{self.base}:instances:{service}"

    def dead(self, queue: str) -> str:
        """Name the stream of a queue of dead letters."""
        return f"{self.base}:dead:{check_name('queue', queue)}"

    def inbox(self, service: str, event_id: str) -> str:
        """Name what is remembered of an event."""
        return f"{self.base}:inbox:{service}:{event_id}"


def order_of(id_: bytes) -> tuple[int, ...]:
    """Give the id of an entry so that ids are ordered as Redis orders them."""
    return tuple(map(int, id_.split(b"-")))
