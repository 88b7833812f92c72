"""The streams of the engine, and the durable consumers on them: made when missing, changed to what was asked for."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from typing import TYPE_CHECKING, Any, Final

from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, DiscardPolicy, RetentionPolicy, StreamConfig
from nats.js.errors import BadRequestError, NoStreamResponseError, NotFoundError

from asignals.relay._cancel import heeding
from asignals.relay._keys import PARTITIONS
from asignals.relay._monitoring.figures import EXPIRY
from asignals.relay.engines._jetstream.answers import patiently
from asignals.relay.engines._jetstream.connection import CONNECT
from asignals.relay.engines._jetstream.names import durable_of, partition_durable, partition_subject

if TYPE_CHECKING:
    from nats.aio.client import Client

    from asignals.relay.engines._jetstream.connection import NatsConnection

logger: logging.Logger = logging.getLogger("asignals.relay")

_ANSWER: Final = 1.0  # seconds after which a cluster that has no leader is asked again
_MOST_PENDING: Final = 1_000_000  # events of a topic that a service may hold or have waiting for their retry
_DEFAULTS: Final = {"max_age": 30 * 86_400.0, "duplicate_window": 120.0, "num_replicas": 1}
_IS_THERE: Final = 10058  # the server's code for a stream that exists with other settings
_DELETION: Final = 2.0  # seconds that the server may take to delete a stream
_LIMITS: Final = ("max_msgs", "max_bytes", "max_msgs_per_subject")
_CONSUMER_SETTINGS: Final = ("ack_wait", "max_deliver", "max_ack_pending", "filter_subject")


def stream_settings(max_age: float | None, dedup_window: float | None, replicas: int | None) -> dict[str, Any]:
    """Give what a stream is to have by JetStream's names, where it was asked for."""
    age = 0.0 if max_age is not None and math.isinf(max_age) else max_age
    given = {"max_age": age, "duplicate_window": dedup_window, "num_replicas": replicas}
    return {name: value for name, value in given.items() if value is not None}


async def until_deleted(waited: float = 0.0) -> None:
    """Wait until a deletion that is under way has surely ended; the server says to nobody else when it has.

    `waited` is how many seconds have passed since it was noticed.

    A stream has no name any more while the server still deletes its files. The files of one that is made meanwhile are
    deleted with them: it takes events, counts them, and can never deliver them.
    """
    await asyncio.sleep(max(0.0, _DELETION - waited))


class Streams:
    """The stream of events, and those of dead letters, heartbeats and leases, whose names begin with its own."""

    def __init__(self, connection: NatsConnection, name: str, ack_wait: float, settings: dict[str, Any]) -> None:
        self.connection = connection
        self.name = name
        self.ack_wait = ack_wait
        self.dead: str = f"{name}-dead"
        self.instances: str = f"{name}-instances"
        self.owners: str = f"{name}-owners"
        self.replicas: int = settings.get("num_replicas", 1)
        self.problems: dict[str, str] = {}
        self._settings = settings

    async def make(self, client: Client) -> None:
        """Create what is missing, and change what is there where it was asked for."""
        settings = self._settings
        copies = {setting: value for setting, value in settings.items() if setting == "num_replicas"}
        others = {"num_replicas": 1, **copies}
        beats = {"max_age": EXPIRY, "max_msgs_per_subject": 1, "duplicate_window": EXPIRY}
        leases = {"max_age": self.ack_wait, "duplicate_window": self.ack_wait}
        await self._make(client, self.name, settings, {**_DEFAULTS, **settings})
        await self._make(client, self.dead, copies, others)
        await self._make(client, self.instances, copies, {**others, **beats})
        await self._make(client, self.owners, {**copies, **leases}, {**others, **leases, "max_msgs_per_subject": 1})
        if copies:
            await self._make(client, f"KV_{self.name}-inbox", copies, None)  # the inbox makes it

    async def _make(self, client: Client, name: str, given: dict[str, Any], defaults: dict[str, Any] | None) -> None:
        jetstream = client.jetstream(timeout=_ANSWER)
        try:
            config = (await patiently(lambda: jetstream.stream_info(name), CONNECT - _ANSWER)).config
        except NotFoundError:
            if defaults is None:
                return
            made = StreamConfig(name=name, subjects=[f"{name}.>"], **defaults)
            try:
                await patiently(lambda: jetstream.add_stream(made), CONNECT - _ANSWER)
            except BadRequestError as error:
                if error.err_code != _IS_THERE:
                    raise
                await self._make(client, name, given, defaults)  # made meanwhile, by an instance with other settings
            return
        if name in (self.name, self.dead):
            self._look_for_limits(name, config)
        changed = {field: value for field, value in given.items() if (getattr(config, field) or 0) != value}
        if changed:
            await patiently(lambda: jetstream.update_stream(config.evolve(**changed)), CONNECT - _ANSWER)
            logger.warning("changed stream %r of %s: %s", name, self.connection.state.name, changed)

    def _look_for_limits(self, name: str, config: StreamConfig) -> None:
        """Say when a stream that somebody else has made drops events that nobody has handled."""
        limits = [f"{limit}={getattr(config, limit)}" for limit in _LIMITS if (getattr(config, limit) or -1) > 0]
        if config.discard == DiscardPolicy.NEW:
            limits = []  # then publishing fails instead
        if config.retention == RetentionPolicy.INTEREST:
            limits.append("retention=interest")
        what = f"stream {name!r}"
        problem = f"{', '.join(limits)}: the server drops events of it that no service has handled"
        if limits and self.problems.get(what) != problem:
            logger.warning("%s of %s has %s", what, self.connection.state.name, problem)
        self.problems.pop(what, None)
        if limits:
            self.problems[what] = problem

    async def make_consumers(self, client: Client, service: str, topic: str) -> None:
        """Make a service's consumers of a topic: of its partitions, and of the events without a key."""
        name, subject = durable_of(service, topic), f"{self.name}.{topic}"
        await self._make_consumer(client, (service, topic), name, subject)
        for number in range(PARTITIONS):
            partition = partition_subject(subject, number)
            await self._make_consumer(client, (service, topic), partition_durable(name, number), partition)

    async def _make_consumer(self, client: Client, whose: tuple[str, str], name: str, subject: str) -> None:
        jetstream = client.jetstream(timeout=_ANSWER)
        config = self._consumer_config(whose, name, subject)
        try:
            found = (await patiently(lambda: jetstream.consumer_info(self.name, name), CONNECT - _ANSWER)).config
        except NotFoundError:
            await patiently(lambda: jetstream.add_consumer(self.name, config), CONNECT - _ANSWER)
            return
        wrong = [setting for setting in _CONSUMER_SETTINGS if getattr(found, setting) != getattr(config, setting)]
        if wrong:
            changed = found.evolve(**{setting: getattr(config, setting) for setting in wrong})
            await patiently(lambda: jetstream.add_consumer(self.name, changed), CONNECT - _ANSWER)
            logger.warning("changed %s of the consumer of %r by %r", ", ".join(wrong), whose[1], whose[0])

    def _consumer_config(self, whose: tuple[str, str], name: str, subject: str) -> ConsumerConfig:
        return ConsumerConfig(
            durable_name=name,
            description=" ".join(whose),
            filter_subject=subject,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self.ack_wait,
            max_deliver=-1,
            max_ack_pending=_MOST_PENDING,
        )

    async def publish(self, client: Client, subject: str, data: bytes, headers: dict[str, str]) -> None:
        """Publish to one of the other streams; it is made again where somebody has deleted it."""
        jetstream = client.jetstream(timeout=CONNECT)
        try:
            await self.connection.ask(client, jetstream.publish(subject, data, headers=headers))
        except NoStreamResponseError:
            await until_deleted()
            await heeding(self.make(client))
            await self.connection.ask(client, jetstream.publish(subject, data, headers=headers))

    async def subjects(self, client: Client, stream: str, pattern: str) -> dict[str, int]:
        """Count the messages of each subject of a stream."""
        asking = json.dumps({"subjects_filter": pattern}).encode()
        answer = await self.connection.ask(client, client.request(f"$JS.API.STREAM.INFO.{stream}", asking, CONNECT))
        found: dict[str, int] = json.loads(answer.data).get("state", {}).get("subjects") or {}
        return found
