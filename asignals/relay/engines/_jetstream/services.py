"""The services that JetStream keeps events for, by their durable consumers; and the heartbeats of their instances."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

from nats.js.errors import NotFoundError

from asignals.relay._envelope import check_name
from asignals.relay._monitoring.figures import TopicFigures, held_of
from asignals.relay.engines._jetstream.connection import CONNECT

if TYPE_CHECKING:
    from collections.abc import Collection

    from nats.aio.client import Client
    from nats.js.api import ConsumerInfo

    from asignals.relay.engines._jetstream.streams import Streams


class Services:
    """Makes services known, removes them, and gives their figures."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.connection = streams.connection

    async def add(self, service: str, topics: Collection[str]) -> None:
        """Create the service's consumers of each topic, from the first event that is there, where they are missing."""
        check_name("service", service)
        client = await self.connection.open()
        for topic in topics:
            await self.streams.make_consumers(client, service, check_name("topic", topic))

    async def forget(self, service: str, topics: Collection[str] | None) -> None:
        """Delete the service's consumers, of some topics or of all."""
        client = await self.connection.open()
        for info in await self._consumers(client, service):
            if topics is None or _whose(info)[1] in topics:
                with suppress(NotFoundError):
                    deleting = client.jetstream(timeout=CONNECT).delete_consumer(self.streams.name, info.name)
                    await self.connection.ask(client, deleting)

    async def _consumers(self, client: Client, service: str | None) -> list[ConsumerInfo]:
        """Give the consumers of all topics, of one service or of all."""
        jetstream = client.jetstream(timeout=CONNECT)
        found: list[ConsumerInfo] = []
        seen = 0
        while page := await self.connection.ask(client, jetstream.consumers_info(self.streams.name, offset=seen)):
            seen += len(page)
            found += [info for info in page if service in (None, _whose(info)[0])]
        return found

    async def figures(self, service: str | None, topics: Collection[str] | None) -> list[TopicFigures]:
        """Give what waits, by service and topic."""
        client = await self.connection.open()
        beats = await self._beats(client)
        found: dict[tuple[str, str], list[ConsumerInfo]] = {}
        for info in await self._consumers(client, service):
            name, topic = _whose(info)
            if topic and (topics is None or topic in topics):
                found.setdefault((name, topic), []).append(info)
        return [
            await self._figures_of(client, infos, whose, [held for name, held in beats if name == whose[0]])
            for whose, infos in sorted(found.items())
        ]

    async def _figures_of(
        self, client: Client, infos: list[ConsumerInfo], whose: tuple[str, str], beats: list[dict[str, int]]
    ) -> TopicFigures:
        mine = [held[whose[1]] for held in beats if whose[1] in held]
        pending = sum(info.num_ack_pending or 0 for info in infos)
        backlog, in_flight = pending + sum(info.num_pending or 0 for info in infos), sum(mine)
        ages = [
            await self._age_after(client, info)
            for info in infos
            if (info.num_ack_pending or 0) + (info.num_pending or 0)
        ]
        age = max((one for one in ages if one is not None), default=None if ages else 0.0)
        return TopicFigures(*whose, backlog, age, in_flight, max(0, pending - in_flight), len(mine))

    async def _age_after(self, client: Client, info: ConsumerInfo) -> float | None:
        """Give the age of the first event that a consumer has not acknowledged."""
        done = info.ack_floor.stream_seq if info.ack_floor else 0
        asking = json.dumps({"seq": done + 1, "next_by_subj": info.config.filter_subject}).encode()
        getting = client.request(f"$JS.API.STREAM.MSG.GET.{self.streams.name}", asking, CONNECT)
        text = json.loads((await self.connection.ask(client, getting)).data).get("message", {}).get("time")
        return None if text is None else max(0.0, time.time() - _seconds(text))

    async def _beats(self, client: Client) -> list[tuple[str, dict[str, int]]]:
        """Give the heartbeats of all instances: the service, and how many events it holds of which topic."""
        name = self.streams.instances
        jetstream = client.jetstream(timeout=CONNECT)
        found = []
        for subject in await self.streams.subjects(client, name, f"{name}.>"):
            with suppress(NotFoundError):  # it has expired meanwhile
                message = await self.connection.ask(client, jetstream.get_last_msg(name, subject))
                service = (message.headers or {}).get("Service", "")
                found.append((service, held_of(message.data or b"")))
        return found

    async def beat(self, service: str, instance: str, held: dict[str, int]) -> None:
        """Write the heartbeat of an instance: how many events it holds, by topic."""
        client = await self.connection.open()
        subject, headers = self._beat_subject(service, instance), {"Service": service}
        await self.streams.publish(client, subject, json.dumps(held).encode(), headers)

    async def stop_beating(self, service: str, instance: str) -> None:
        """Remove the heartbeat of an instance."""
        client = await self.connection.open()
        subject = self._beat_subject(service, instance)
        purging = client.jetstream(timeout=CONNECT).purge_stream(self.streams.instances, subject=subject)
        await self.connection.ask(client, purging)

    def _beat_subject(self, service: str, instance: str) -> str:
        return f"{self.streams.instances}.{service}.{instance}"


def _whose(info: ConsumerInfo) -> tuple[str, str]:
    """Read the service and the topic of a consumer."""
    service, _, topic = (info.config.description or "").partition(" ")
    return service, topic


def _seconds(text: str) -> float:
    """Read a time as the server writes it, with up to nine digits after the point."""
    whole, _, rest = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{rest or 0}")
