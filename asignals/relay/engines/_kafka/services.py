"""The services that Kafka knows: by their groups, and the offsets that those have committed."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from asignals.relay._envelope import check_name
from asignals.relay._monitoring.figures import TopicFigures
from asignals.relay.engines._kafka.clients import ANSWER_TIMEOUT, POLL, in_thread, partitions_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from confluent_kafka.admin import AdminClient

    from asignals.relay.engines._kafka.clients import Clients

_FIRST: Final = 3.0  # seconds that reading the oldest events may take


class Services:
    """Makes services known, removes them, and gives their figures."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    async def add(self, service: str, topics: Collection[str]) -> None:
        """Commit for the service where each topic begins, so that it counts as one that receives it."""
        names = [self._clients.topic(topic) for topic in topics]

        def commit(consumer: Consumer) -> None:
            places = [place for name in names for place in partitions_of(consumer, name)]
            starts = _starts(consumer, consumer.committed(places, timeout=ANSWER_TIMEOUT))
            if starts:
                consumer.commit(offsets=starts, asynchronous=False)

        await self._clients.with_consumer(check_name("service", service), commit)

    async def forget(self, service: str, topics: Collection[str] | None) -> None:
        """Delete the service's group, or skip what there is of some topics. Kafka keeps the events for its own time."""
        if topics is None:
            admin, group = self._clients.admin(), self._clients.group(service)
            await in_thread(lambda: _delete_group(admin, group))
            return
        names = [self._clients.topic(topic) for topic in topics]

        def skip(consumer: Consumer) -> None:
            places = [place for name in names for place in partitions_of(consumer, name)]
            known = [place for place in consumer.committed(places, timeout=ANSWER_TIMEOUT) if place.offset >= 0]
            for place in known:
                place.offset = consumer.get_watermark_offsets(place, timeout=ANSWER_TIMEOUT)[1]
            if known:
                consumer.commit(offsets=known, asynchronous=False)

        await self._clients.with_consumer(service, skip)

    async def figures(self, service: str | None, topics: Collection[str] | None) -> list[TopicFigures]:
        """Give what waits above what services have committed, by service and topic."""
        names = None if topics is None else {self._clients.topic(topic) for topic in topics}
        admin, prefix = self._clients.admin(), f"{self._clients.name}."
        services = await in_thread(lambda: self._services(admin)) if service is None else [service]
        found: list[TopicFigures] = []
        for one in services:
            group = self._clients.group(one)
            waiting = await self._clients.with_consumer(one, lambda consumer: _waiting(consumer, prefix, names))
            members = await in_thread(partial(_members, admin, group))
            for name, (backlog, oldest) in sorted(waiting.items()):
                topic = name.removeprefix(prefix)
                found.append(TopicFigures(one, topic, backlog, oldest, instances=members))
        return found

    def _services(self, admin: AdminClient) -> list[str]:
        """Give the services whose groups Kafka knows."""
        groups = admin.list_consumer_groups(request_timeout=ANSWER_TIMEOUT).result(ANSWER_TIMEOUT).valid
        names = (
            group.group_id.removeprefix(f"{self._clients.name}.")
            for group in groups
            if group.group_id.startswith(f"{self._clients.name}.")
        )
        return sorted(names)


def _starts(consumer: Consumer, committed: list[TopicPartition]) -> list[TopicPartition]:
    """Give where partitions begin of which nothing is committed."""
    starts = []
    for place in committed:
        if place.offset < 0:
            low, _ = consumer.get_watermark_offsets(place, timeout=ANSWER_TIMEOUT)
            starts.append(TopicPartition(place.topic, place.partition, low))
    return starts


def _members(admin: AdminClient, group: str) -> int | None:
    """Count the members of a group; `None` where the broker does not say."""
    try:
        found = admin.describe_consumer_groups([group], request_timeout=ANSWER_TIMEOUT)[group].result(ANSWER_TIMEOUT)
    except KafkaException:
        return None
    return len(found.members)


def _waiting(consumer: Consumer, prefix: str, names: Collection[str] | None) -> dict[str, tuple[int, float | None]]:
    """Give, of each topic of which a group has committed anything, how many events wait and the age of the oldest."""
    counts: dict[str, int] = {}
    firsts: list[TopicPartition] = []
    for name in consumer.list_topics(timeout=ANSWER_TIMEOUT).topics:
        if name.startswith(prefix) and (names is None or name in names):
            for place in consumer.committed(partitions_of(consumer, name), timeout=ANSWER_TIMEOUT):
                if place.offset >= 0:
                    low, high = consumer.get_watermark_offsets(place, timeout=ANSWER_TIMEOUT)
                    place.offset = max(low, place.offset)
                    counts[name] = counts.get(name, 0) + high - place.offset
                    if high > place.offset:
                        firsts.append(place)
    oldest = _times(consumer, firsts)
    return {name: (count, _age(count, oldest.get(name))) for name, count in counts.items()}


def _age(count: int, since: float | None) -> float | None:
    if not count:
        return 0.0
    return None if since is None else max(0.0, time.time() - since)


def _times(consumer: Consumer, places: list[TopicPartition]) -> dict[str, float]:
    """Give when the oldest event at some places was published, by topic; without those that do not come in time."""
    found: dict[str, float] = {}
    end, missing = time.monotonic() + _FIRST, {(place.topic, place.partition) for place in places}
    if places:
        consumer.assign(places)
    while missing and time.monotonic() < end:
        message = consumer.poll(POLL)
        if message is None or message.error():
            continue
        place = message.topic() or "", message.partition() or 0
        if place in missing:
            missing.discard(place)
            consumer.pause([TopicPartition(*place)])
            found[place[0]] = min(found.get(place[0], time.time()), message.timestamp()[1] / 1000)
    for topic, _ in missing:  # one that did not come may be the oldest
        found.pop(topic, None)
    return found


def _delete_group(admin: AdminClient, group: str) -> None:
    try:
        admin.delete_consumer_groups([group], request_timeout=ANSWER_TIMEOUT)[group].result(ANSWER_TIMEOUT)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
            raise
