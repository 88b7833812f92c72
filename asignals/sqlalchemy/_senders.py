"""Senders that are given by name, before their model exists: finding models, and waiting for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakMethod, ref

from sqlalchemy.orm.mapper import _all_registries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import MethodType

    from sqlalchemy.orm import Mapper

    Receiver = Callable[..., Any]


def goes_by(model: type, name: str) -> bool:
    """Whether a model is meant by a name: its own, or `module.Model` in full."""
    return name in (model.__name__, f"{model.__module__}.{model.__qualname__}")


def find_model(name: str) -> type | None:
    """The one mapped class of this name, or `None` while there is none.

    Raises `ValueError` when several go by it.
    """
    found = {mapper.class_ for mapper in mappers() if goes_by(mapper.class_, name)}
    if len(found) > 1:
        listing = ", ".join(sorted(f"{model.__module__}.{model.__qualname__}" for model in found))
        raise ValueError(f"several models go by the name {name!r}: {listing}; give one of these instead")
    return next(iter(found), None)


def mappers() -> Iterator[Mapper[Any]]:
    """All mappers of this process."""
    for registry in _all_registries():  # private, but the only list of what is mapped in this process
        for manager in list(registry._managers):  # registry.mappers fails for an AbstractConcreteBase to be mapped
            if manager.is_mapped:
                yield manager.mapper


class Awaited(NamedTuple):
    """A connection to be made once its model is there."""

    name: str
    receiver: Callable[[], Receiver | None]
    options: dict[str, Any]
    phase: str


def hold(receiver: Receiver, *, weak: bool) -> Callable[[], Receiver | None]:
    """Refer to a receiver as a connection would."""
    if not weak:
        return lambda: receiver
    if hasattr(receiver, "__self__") and hasattr(receiver, "__func__"):
        method: MethodType = receiver  # type: ignore[assignment]  # what has both is bound, as for inspect.ismethod
        return WeakMethod(method)
    return ref(receiver)


def relationship_name(name: str) -> tuple[str, str]:
    """Split `Model.relationship`; raises `ValueError` for a name without a dot."""
    model, dot, attribute = name.rpartition(".")
    if not dot:
        raise ValueError(f"m2m_changed needs the name of a relationship, as 'Model.relationship', not {name!r}")
    return model, attribute
