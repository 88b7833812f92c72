"""The events of topics as they come, for whoever looks: nothing is consumed, acknowledged or left behind."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from asignals.masking import Masker, redacted, said
from asignals.relay._cancel import end
from asignals.relay._envelope import Envelope, EnvelopeError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from asignals.relay._transport import Broadcasts, Delivery

_BEGIN: Final = 15.0  # seconds within which the engine has to answer at first
_BUFFER: Final = 10_000  # events that wait while the output is slow; then the oldest are dropped
_SHOWN: Final = 300  # characters of a body in a line for people

_mask: Final = Masker(None)


class EndOfTail(Exception):  # noqa: N818  no error
    """Raised by `show` to end it."""


async def tail(
    transport: Broadcasts, topics: Collection[str], show: Callable[[Delivery], object], tell: Callable[[str], object]
) -> None:
    """Call `show` for each event from now on, and `tell` with what a reader must know, until cancelled.

    Raises `TimeoutError` when the engine does not answer at first.
    """
    waiting: deque[Delivery] = deque()
    arrived, dropped, begun = asyncio.Event(), 0, 0

    def hear(delivery: Delivery) -> None:
        nonlocal dropped
        waiting.append(delivery)
        if len(waiting) > _BUFFER:
            waiting.popleft()
            dropped += 1
        arrived.set()

    def begin() -> None:
        nonlocal begun
        begun += 1
        tell("interrupted: events may have been missed" if begun > 1 else f"listening to {', '.join(topics)}")
        arrived.set()

    listening = asyncio.get_running_loop().create_task(transport.listen(topics, hear, begin))
    try:
        async with asyncio.timeout(_BEGIN) as limit:
            while True:
                await _first_of(listening, arrived)
                arrived.clear()
                if begun and limit.when() is not None:
                    limit.reschedule(None)
                while waiting:
                    show(waiting.popleft())
                if dropped:
                    tell(f"{dropped} events were dropped: they come faster than they can be written")
                    dropped = 0
    except TimeoutError as error:
        raise TimeoutError(f"{_name_of(transport)} did not answer within {_BEGIN:g} s") from error
    finally:
        await end([listening])


async def _first_of(listening: asyncio.Task[None], arrived: asyncio.Event) -> None:
    """Wait for events; raises what ended the listening."""
    waiter = asyncio.get_running_loop().create_task(arrived.wait())
    try:
        await asyncio.wait([listening, waiter], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end([waiter])
    if listening.done():
        listening.result()
        raise ConnectionError("the engine stopped listening")


def _name_of(transport: object) -> str:
    return str(getattr(getattr(transport, "connection_state", None), "name", type(transport).__name__))


def as_json(delivery: Delivery) -> str:
    """Write an event as one line of JSON, with the secrets in its body masked."""
    try:
        envelope = Envelope.decode(delivery.data)
    except EnvelopeError as error:
        return json.dumps({"topic": delivery.topic, "error": said(error), "bytes": len(delivery.data)})
    return json.dumps(
        {
            "topic": delivery.topic,
            "id": envelope.id,
            "time": envelope.time,
            "origin": envelope.origin,
            "version": envelope.version,
            "key": envelope.key,
            "sender": None if envelope.sender is None else _mask.text(envelope.sender),
            "hops": envelope.hops,
            "repeats": envelope.repeats,
            "bytes": len(envelope.body),
            "body": _body(envelope.body),
        }
    )


def as_line(delivery: Delivery) -> str:
    """Write an event in one line, with secrets masked and without characters that a terminal would obey."""
    try:
        envelope = Envelope.decode(delivery.data)
    except EnvelopeError as error:
        return redacted(f"{delivery.topic}  {len(delivery.data)} bytes: {said(error)}")
    when = time.strftime("%H:%M:%S", time.gmtime(envelope.time)) + f"{envelope.time % 1:.3f}Z"[1:]
    body = _body(envelope.body)
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    parts = [when, delivery.topic, envelope.id, envelope.origin]
    parts += [] if envelope.key is None else [f"key={envelope.key}"]
    return "  ".join(redacted(part) for part in [*parts, text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"])


def _body(body: bytes) -> Any:
    """Read a body, which may be anything, and mask what is secret in it."""
    text = body.decode(errors="backslashreplace")
    masked = _mask.json(text)
    try:
        value = json.loads(text if masked is None else masked, parse_constant=str, parse_float=_finite)
    except (ValueError, RecursionError):
        return _mask.text(text) if masked is None else masked
    return _mask.text(value) if isinstance(value, str) else value


def _finite(text: str) -> float | str:
    """Read a number as JSON can write it again."""
    number = float(text)
    return number if math.isfinite(number) else text
