"""Kafka as the engine, by confluent-kafka (extra: kafka).

A Kafka topic for each topic, and a consumer group for each service. A consumer handles many events at once, of each key
one, and commits for each partition the offset below which everything is done. A retry is kept here until it is due, and
blocks that offset and the later events of its key, not the other ones; when this process dies they are delivered again.
So is an event that is given back, as Kafka takes nothing back: it goes to another instance when this one leaves its
partition.

Tested against librdkafka's mock cluster only, not against a Kafka server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from asignals.relay._envelope import check_name
from asignals.relay._places import Address, Server
from asignals.relay._transport import PublishRefusedError
from asignals.relay.engines._broker import BrokerEngine
from asignals.relay.engines._kafka.clients import ANSWER_TIMEOUT, Clients
from asignals.relay.engines._kafka.consumer import Consumer
from asignals.relay.engines._kafka.dead_letters import DeadLetterTopics
from asignals.relay.engines._kafka.listener import Listener
from asignals.relay.engines._kafka.member import Member
from asignals.relay.engines._kafka.publisher import Publisher, Record
from asignals.relay.engines._kafka.services import Services
from asignals.relay.engines._kafka.settings import check_brokers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from asignals.relay._connection_state import ConnectionState
    from asignals.relay._envelope import Envelope
    from asignals.relay._transport import Handle, Hear


class Kafka(BrokerEngine):
    """Carries events through Kafka topics.

    Events of a key are in one partition, and are handled in order, one at a time, as long as the topic's number of
    partitions stays the same. An event id that comes twice is delivered twice (the
    producer is idempotent, but a relay that was killed publishes again); an inbox that is given to the relay skips
    the second.

    Kafka knows neither what instances hold nor what waits for its retry. Instances that were killed count as alive
    until `session.timeout.ms` is over, 45 seconds by default.

    Args:
        servers: `host:9092`, several divided by commas or as a list.
        name: Begins all names: the topics are `<name>.<topic>`, those of dead letters `<name>-dead.<queue>`, and the
            group of a service is `<name>.<service>`. Topics are made by the brokers when they are first asked for, if
            they allow it.
        librdkafka: Settings of librdkafka, by their names with `_` for `.`: `security_protocol="SASL_SSL"`, or as they
            are: `**{"sasl.mechanism": "PLAIN"}`.

    Raises:
        ValueError: `servers` are no `host:port`, `name` cannot be used, or a setting is one that the relay decides.
    """

    system: Final = "kafka"  # as OpenTelemetry calls it

    def __init__(self, servers: str | Sequence[str], *, name: str = "asignals", **librdkafka: Any) -> None:
        brokers = check_brokers(servers)
        self.name: str = check_name("name", name)
        self._clients = Clients(brokers, name, librdkafka)
        self.connection_state: ConnectionState = self._clients.state
        self._publisher = Publisher(self._clients)
        super().__init__(Services(self._clients), DeadLetterTopics(self._clients, self._publisher))

    def servers(self) -> list[Server]:
        """List the servers."""
        security = str(self._clients.settings.get("security.protocol", "plaintext")).lower()
        protocol = "kafka" if security in ("plaintext", "sasl_plaintext") else "kafka-secure"
        return [Server(protocol, server.strip()) for server in self._clients.servers.split(",")]

    def address(self, topic: str) -> Address:
        """Give what Kafka calls a topic."""
        return Address(self._clients.topic(topic))

    async def init(self) -> None:
        """See whether Kafka answers: topics are made when they are first asked for."""
        await self._clients.with_consumer("init", lambda consumer: consumer.list_topics(timeout=ANSWER_TIMEOUT))

    async def aclose(self) -> None:
        """Let go of the clients."""
        self._publisher.close()
        self._clients.close()

    async def publish_many(self, envelopes: Sequence[Envelope]) -> None:
        """Return when all in-sync replicas have all events; raises `KafkaException`, at the latest after 10 s.

        Raises `PublishRefusedError` for events that are larger than the brokers or the producer's settings allow.
        """
        records = [Record(self._clients.topic(one.topic), one.key, one.encode()) for one in envelopes]
        refused = await self._publisher.produce(records)
        if refused:
            raise PublishRefusedError({envelopes[place].id: reason for place, reason in refused.items()})

    async def consume(
        self, service: str, instance: str, topics: Collection[str], handle: Handle, *, limit: int = 100
    ) -> None:
        """Call `handle` for each event of the topics until cancelled."""
        check_name("instance", instance)
        clients, group = self._clients, self._clients.group(service)
        member = Member(lambda committed: clients.consumer(group, committed), clients.state)
        await Consumer(member, clients.state, self._names(topics), handle, limit=limit, away=clients.away).run()

    async def listen(self, topics: Collection[str], hear: Hear, begun: Callable[[], object]) -> None:
        """Hear each event of these topics by a consumer that joins no group and commits nothing."""
        await Listener(self._clients, self._names(topics), hear).run(begun)

    def _names(self, topics: Collection[str]) -> dict[str, str]:
        return {self._clients.topic(topic): topic for topic in topics}
