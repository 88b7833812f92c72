"""What is Kafka's own: offsets that are committed only when everything below them is done."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asignals.relay import FastStreamTransport
from asignals.relay.kafka import Kafka, Offsets
from asignals.relay.rabbitmq import RabbitMQ


@given(st.permutations(range(12)), st.integers(0, 12))
def test_the_position_is_below_all_that_is_not_done(order: list[int], count: int) -> None:
    """However many have finished, in whatever order: the position is that of the first that is not done."""
    offsets = Offsets()
    for offset in range(12):
        offsets.take(100 + offset)
    finished = set()
    for offset in order[:count]:
        finished.add(offset)
        before = offsets.position
        assert offsets.finish(100 + offset) == (offsets.position != before)
    first_open = min(set(range(12)) - finished, default=12)
    assert (offsets.position or 100) == 100 + first_open
    assert len(offsets) == 12 - first_open


def test_gaps_between_offsets_do_no_harm() -> None:
    """Transactions and compaction leave offsets out; the position follows the ones that came."""
    offsets = Offsets()
    for offset in (3, 7, 20):
        offsets.take(offset)
    assert not offsets.finish(7)
    assert offsets.finish(3)
    assert offsets.position == 8


def test_the_broker_object_chooses_the_engine() -> None:
    """RabbitMQ and Kafka are told apart by the broker; another kind is refused by name."""
    from faststream.confluent import KafkaBroker
    from faststream.rabbit import RabbitBroker

    assert isinstance(FastStreamTransport(RabbitBroker()), RabbitMQ)
    assert isinstance(FastStreamTransport(KafkaBroker()), Kafka)
    with pytest.raises(TypeError, match="not str"):
        FastStreamTransport("amqp://")  # type: ignore[arg-type]  # what is tested
