"""RabbitMQ and Kafka by way of a FastStream broker object (extra: faststream)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faststream.confluent import KafkaBroker
    from faststream.rabbit import RabbitBroker

    from asignals.relay.kafka import Kafka
    from asignals.relay.rabbitmq import RabbitMQ


def FastStreamTransport(  # noqa: N802  stands where the other engines have their classes
    broker: RabbitBroker | KafkaBroker, *, name: str = "asignals"
) -> RabbitMQ | Kafka:
    """Make the transport for a `faststream.rabbit.RabbitBroker` or a `faststream.confluent.KafkaBroker`.

    The broker object gives the connection's settings; `RabbitMQ` and `Kafka` tell what is made of them. `name` begins
    the names of whatever is made there. Raises `TypeError` for brokers of another kind.
    """
    kinds = {
        kind.__module__.split(".")[1] for kind in type(broker).__mro__ if kind.__module__.startswith("faststream.")
    }
    if "rabbit" in kinds:
        from asignals.relay.rabbitmq import RabbitMQ  # noqa: PLC0415  needs aio-pika, which Kafka does not

        return RabbitMQ(broker, name=name)  # type: ignore[arg-type]  # told apart above, without importing either
    if "confluent" in kinds:
        from asignals.relay.kafka import Kafka  # noqa: PLC0415  needs confluent-kafka, which RabbitMQ does not

        return Kafka(broker, name=name)  # type: ignore[arg-type]  # told apart above, without importing either
    msg = f"FastStreamTransport takes a RabbitBroker or a confluent KafkaBroker, not {type(broker).__name__}"
    raise TypeError(msg)
