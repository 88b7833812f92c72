"""What an event's key comes to in an engine: a number, the same in every process."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

PARTITIONS: Final = 8
"""How many partitions RabbitMQ and JetStream have for the events of a topic that have a key. It is a part of what is on
the wire, the same for every publisher and every service, so no two processes can disagree about it."""


def lane_of(key: str) -> int:
    """Give a number of 64 bits with a sign; two keys that share one only wait for each other."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)


def partition_of(key: str) -> int:
    """Give the partition in which the events of a key are."""
    return lane_of(key) % PARTITIONS
