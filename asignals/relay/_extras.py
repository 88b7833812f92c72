"""What an engine says whose package is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """A block of imports: the `ModuleNotFoundError` of one whose package is not installed names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in {"", "asignals"}:
            raise  # not a missing extra but a mistake of ours
        msg = f"{name} is not installed; get it with: pip install 'asignals[{extra}]'"
        raise ModuleNotFoundError(msg, name=error.name, path=error.path) from error
