"""What a module says that needs an extra which is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager


def advice(package: str, extra: str) -> str:
    """Say that a package is missing, and how to get it."""
    return f"{package.partition('.')[0]} is not installed; get it with: pip install 'asignals[{extra}]'"


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """A block of imports: the `ModuleNotFoundError` of one whose package is not installed names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "asignals":
            raise  # not a missing extra but a mistake of ours
        raise ModuleNotFoundError(advice(error.name, extra), name=error.name, path=error.path) from error
