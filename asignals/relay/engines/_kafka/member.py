"""A client as a member of its group: which partitions it has, and what it has committed of them.

Its methods block, and are called in the client's own thread; those that the group calls run while it polls.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from asignals.relay.engines._kafka.clients import ANSWER_TIMEOUT, POLL, PROBE, QUIET
from asignals.relay.engines._kafka.offsets import Offsets

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from confluent_kafka import Message

    from asignals.relay._connection_state import ConnectionState

Place: TypeAlias = tuple[str, int]  # a topic and the number of a partition

_FINISH: Final = 5.0  # seconds for which a partition is not handed on while its events are being handled
_FINISH_IN_ORDER: Final = 60.0  # and while some with a key are: those behind them must not begin elsewhere before
_NO_MEMBER: Final = (
    *(KafkaError.ILLEGAL_GENERATION, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.FENCED_INSTANCE_ID),
    *(KafkaError._FENCED, KafkaError._STATE, KafkaError._ASSIGNMENT_LOST, KafkaError.REBALANCE_IN_PROGRESS),
)
_COMMITTED: Final = 5.0  # seconds after which a commit that is not answered shows


class Member:
    """One member of a group; `make_client` is given what the client calls when a commit is answered."""

    def __init__(
        self, make_client: Callable[[Callable[[KafkaError | None], None]], Consumer], state: ConnectionState
    ) -> None:
        self.partitions: dict[Place, Offsets] = {}
        self._state = state
        self._moved: set[Place] = set()  # the partitions whose positions are to be committed
        self._committing: set[Place] | None = None
        self._committing_since = 0.0
        self._answered = time.monotonic()  # when the broker last did
        self._is_paused: bool | None = None  # None: not known of the partitions that are assigned now
        self._client = make_client(self._note_commit)

    def join(self, topics: Collection[str]) -> None:
        """Join the group."""
        told = {"on_assign": self._assigned, "on_revoke": self._revoked, "on_lost": self._lost}
        self._client.subscribe(list(topics), **told)

    def leave(self) -> None:
        """Leave the group, which gives back the events above the committed offsets."""
        with suppress(KafkaException, RuntimeError):
            if self._state.is_up:  # else it would wait for a broker that does not answer
                self._commit()
            self._client.close()

    def poll(self, count: int, *, is_full: bool) -> list[Message]:
        """Look for events, with all partitions paused without capacity: a member that does not poll is dropped."""
        if is_full != self._is_paused:
            self._is_paused = is_full
            (self._client.pause if is_full else self._client.resume)(self._client.assignment())
        found: list[Message] = self._client.consume(count, POLL)
        return found

    def is_member(self) -> bool:
        """Ask whether the group still counts on us, and tell whether that is known; if not, the partitions are over."""
        places = [
            TopicPartition(*place, offsets.first)
            for place, offsets in list(self.partitions.items())
            if offsets.first >= 0
        ]
        try:
            if places:
                self._client.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() not in _NO_MEMBER:
                return False
            for offsets in list(self.partitions.values()):
                offsets.is_over = True
        return True

    def heard(self) -> None:
        """Note that the broker answers."""
        self._state.restored()
        self._answered = time.monotonic()

    def finish(self, place: Place, offsets: Offsets, offset: int) -> None:
        """Note that an event is done."""
        if offsets.finish(offset) and self.partitions.get(place) is offsets:
            self._moved.add(place)

    # -- committing ------------------------------------------------------------------------------------------------

    def _positions(self, moved: Collection[Place]) -> list[TopicPartition]:
        return [
            TopicPartition(*place, offsets.position)
            for place, offsets in list(self.partitions.items())
            if place in moved and offsets.position is not None
        ]

    def commit_soon(self) -> None:
        """Commit without waiting, which has no limit while a broker is silent; one commit at a time."""
        if self._committing is not None:
            if (seconds := time.monotonic() - self._committing_since) > _COMMITTED:
                self._state.lost(TimeoutError(f"a commit was not answered within {seconds:.0f} s"))
            return
        if positions := self._positions(self._moved):
            self._committing, self._moved, self._committing_since = self._moved, set(), time.monotonic()
            self._client.commit(offsets=positions, asynchronous=True)
        else:
            self._moved.clear()
            self._look()

    def _note_commit(self, error: KafkaError | None) -> None:
        """Note what became of a commit; called while the client looks for events."""
        committing, self._committing = self._committing or set(), None
        if error is not None:  # the next commit repeats it; until then a loss means a repetition
            self._moved |= committing & self.partitions.keys()
            self._state.lost(KafkaException(error))
            return
        self.heard()

    def _commit(self) -> None:
        """Commit and wait for it: before others have the partitions."""
        moved, self._moved, self._committing = self._moved | (self._committing or set()), set(), None
        if positions := self._positions(moved):
            try:
                self._client.commit(offsets=positions, asynchronous=False)
            except KafkaException as error:
                self._moved |= moved
                self._state.lost(error)

    def _look(self) -> None:
        """Ask a broker that has said nothing for a while: an idle client notices neither its loss nor its return."""
        if self._state.is_up and time.monotonic() - self._answered <= QUIET:
            return
        try:
            self._client.list_topics(timeout=PROBE)
        except KafkaException as error:
            self._state.lost(error)
        else:
            self.heard()

    # -- what the group calls --------------------------------------------------------------------------------------

    def _assigned(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        self._is_paused = None  # a partition that was paused when it was taken away comes back paused
        for partition in partitions:
            try:
                end: float = client.get_watermark_offsets(partition, timeout=ANSWER_TIMEOUT)[1]
            except KafkaException:
                end = float("inf")
            self.partitions[partition.topic, partition.partition] = Offsets(end)

    def _revoked(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        """Let what runs come to its end before the next one begins there, so that little is done twice."""
        places = [(one.topic, one.partition) for one in partitions]
        taken = [self.partitions[place] for place in places if place in self.partitions]
        for offsets in taken:
            offsets.is_over = True
        began = time.monotonic()
        while any(offsets.running for offsets in taken):
            waited = time.monotonic() - began
            if waited > _FINISH and (waited > _FINISH_IN_ORDER or not any(offsets.in_order for offsets in taken)):
                break
            time.sleep(0.005)  # in a thread: the event loop goes on
        self._commit()
        self._lost(client, partitions)

    def _lost(self, _client: Consumer, partitions: list[TopicPartition]) -> None:
        for one in partitions:
            self._moved.discard((one.topic, one.partition))
            if (offsets := self.partitions.pop((one.topic, one.partition), None)) is not None:
                offsets.is_over = True
