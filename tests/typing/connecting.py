"""`connect` and `receiver` keep the type of what they decorate, and refuse what cannot be called."""

from asignals import Connection, Signal, receiver, signal

done = Signal(["size"])


@signal
def typed(sender: object, *, size: int) -> None:
    """Typed."""


@done.connect
def plain(sender: object, size: int, **named: object) -> int:
    return size


@done.connect(priority=3, weak=False)
def with_options(size: int) -> str:
    return str(size)


@receiver([done, typed], sender=["a", "b"], weak=False)
async def both(size: int) -> bytes:
    return bytes(size)


number: int = plain(None, 3)
text: str = with_options(3)


async def calls() -> None:
    data: bytes = await both(3)
    wrong: str = await both(3)  # E: the type is kept
    plain("sender", "size")  # E: the type is kept
    with done.connected(with_options, priority=3) as given:
        given(3)
        given("3")  # E: the type is kept
    assert (data, wrong) == (b"", "")


typed.connect(print, weak=False)
typed.connect(lambda **named: None, weak=False)
done.connect(3)  # E: not callable
done.connect(plain, priority="high")  # E: not a number
done.connect(plain, prioritty=3)  # E: (not ty) no such option
receiver(3)  # E: no signal
gone: bool = done.disconnect(plain)
connection: Connection = done.connections[0]
connection.priority = 3  # E: read-only
connection.is_async = True  # E: read-only
