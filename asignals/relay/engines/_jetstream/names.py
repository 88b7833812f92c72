"""How subjects and consumers are named, those of a topic's partitions included."""

from __future__ import annotations

import zlib
from typing import Final

_PARTITION: Final = ".~."  # between a topic and a partition in a subject; no topic has it
_MAX_DURABLE: Final = 200


def partition_subject(subject: str, partition: int | str) -> str:
    """Name a partition of a topic's subject; `*` for all of them."""
    return f"{subject}{_PARTITION}{partition}"


def topic_of(subject: str) -> str:
    """Give the topic of what was published to it or to one of its partitions."""
    return subject.partition(_PARTITION)[0]


def durable_of(service: str, topic: str) -> str:
    """Name the consumer of a topic by a service: a durable's name has no dots, and 255 characters at most."""
    name = f"{service}=={topic}".replace(".", "=")
    return name if len(name) <= _MAX_DURABLE else f"{name[: _MAX_DURABLE - 9]}={zlib.crc32(name.encode()):08x}"


def partition_durable(durable: str, partition: int) -> str:
    """Name a partition's consumer by that for events without a key."""
    return f"{durable}==p{partition}"  # no name has "==" but the one between service and topic
