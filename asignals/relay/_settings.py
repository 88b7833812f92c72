"""What a relay was told, checked where it is written: each error says what to write instead."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from asignals import Signal
from asignals.masking import redacted

SenderCodec: TypeAlias = "tuple[Callable[[Any], str | None], Callable[[str | None], Any]]"
"""A sender's way to a string and back."""

_NAME = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]+")  # of a server: whatever else its client makes of it
_ZERO = ("hop_limit", "grace", "retries", "replicas")  # all others are more than 0
_ENDLESS = ("newer_version_timeout", "keep", "keep_dead_letters", "max_age")  # seconds that may be infinite
_WHOLE = ("limit", "hop_limit", "retries", "version", "batch", "replicas")


def check_transport(transport: object) -> None:
    """Raise `TypeError` for what is no engine."""
    if isinstance(transport, str):
        url = redacted(transport)
        raise TypeError(
            f"Relay takes an engine, not a URL: Relay(engine_from_url({url!r}), …), or JetStream(…), RedisStreams(…)"
        )
    _check_object("an engine, such as JetStream(…)", transport, ("publish_many", "consume"))


def check_outbox(outbox: object, inbox: object) -> None:
    """Raise `TypeError` for a URL, a database engine or a class where an outbox or an inbox belongs."""
    for name, made, value, methods in (
        ("outbox", "SQLAlchemyOutbox", outbox, ("put", "drain_for_ever", "count")),
        ("inbox", "SQLAlchemyInbox", inbox, ("recall", "remember")),
    ):
        if value is None:
            continue
        if isinstance(value, str):
            msg = f"{name} must be an object, not a URL: {name}={made}({redacted(value)!r})"
        elif isinstance(value, type):
            msg = f"{name} must be an object, not the class: {name}={value.__name__}(…)"
        elif type(value).__name__ in ("AsyncEngine", "Engine", "URL"):
            msg = f"{name} must be made of the database engine: {name}={made}(engine)"
        else:
            _check_object(f"{name}={made}(…)", value, methods)
            continue
        raise TypeError(msg)


def _check_object(wanted: str, value: object, methods: tuple[str, ...]) -> None:
    if isinstance(value, type):
        raise TypeError(f"give an object, not the class {value.__name__}: {value.__name__}(…)")
    missing = [name for name in methods if not callable(getattr(value, name, None))]
    if missing:
        raise TypeError(f"{shown(value)} has no {missing[0]}(): give {wanted}")


def check_sender_codec(pair: object) -> None:
    """Raise `TypeError` for what is no pair of functions."""
    if pair is None:
        return
    if not isinstance(pair, tuple) or len(pair) != 2 or not all(map(callable, pair)):  # noqa: PLR2004  a pair
        raise TypeError(f"sender_codec is a pair of functions, (dump, load), not {shown(pair)}")


def check_numbers(**settings: Any) -> None:
    """Raise `TypeError` or `ValueError` for a setting that is no number, or out of range."""
    for name, value in settings.items():
        if name == "backoff":
            _check_backoff(value)
            continue
        kinds = int if name in _WHOLE else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool):
            kind = "a whole number" if name in _WHOLE else "a number of seconds"
            raise TypeError(f"{name} must be {kind}, not {shown(value)}")
        is_endless = value == math.inf and name in _ENDLESS
        if not is_endless and (not math.isfinite(value) or value < 0 or (value == 0 and name not in _ZERO)):
            bound = "not negative" if name in _ZERO else "at least 1" if name in _WHOLE else "more than 0"
            raise ValueError(f"{name} must be {bound}{'' if name in _WHOLE else ', and finite'}, not {value}")


def given(**settings: Any) -> dict[str, Any]:
    """Leave out what is `None`: settings that need not be there."""
    return {name: value for name, value in settings.items() if value is not None}


def check_flags(**flags: object) -> None:
    """Raise `TypeError` for what is neither `True` nor `False`: the text "false" of an environment would be true."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} is True or False, not {shown(value)}")


def check_signal(method: str, signal: object) -> None:
    """Raise `TypeError` for what is no signal."""
    if not isinstance(signal, Signal):
        raise TypeError(f"{method} takes a signal, made by Signal(…) or @signal, not {shown(signal)}")


def check_options(engine: str, options: Mapping[str, Any], ours: Collection[str], known: Collection[str] = ()) -> None:
    """Refuse options of a client that the engine decides, and those that the client does not have."""
    if decided := sorted(options.keys() & set(ours)):
        raise ValueError(f"{engine} decides over {', '.join(decided)} by itself, or by its URL")
    if known and (unknown := sorted(options.keys() - set(known))):
        raise TypeError(f"the client of {engine} has no option {', '.join(unknown)}")


def check_servers(engine: str, example: str, servers: object) -> list[str]:
    """Give the servers' names as a list; raises `ValueError` where one could not be a server's."""
    names: list[Any] = list(servers) if isinstance(servers, list | tuple) else [servers]
    if not names or not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise ValueError(f"{engine} takes servers such as {example!r}, or a list of them, not {shown(servers)}")
    return names


def shown(value: object) -> str:
    """Write a value that is wrong, shortened, and without a password that it may hold."""
    return redacted(repr(value))[:80]


def _check_backoff(backoff: Any) -> None:
    try:
        first, most = backoff
        is_right = 0 < first <= most < math.inf and not {bool, str} & {type(first), type(most)}
    except (TypeError, ValueError):
        is_right = False
    if not is_right:
        raise ValueError(f"backoff is two numbers of seconds, 0 < first <= most, not {shown(backoff)}")


def check_excluded(signal: Signal[..., Any], names: Collection[str]) -> None:
    """Raise for names that a signal's arguments do not have; `session` is left out where there is one."""
    if isinstance(names, str) or not isinstance(names, Collection):
        raise TypeError(f"exclude_args is a collection of names: exclude_args=({shown(names)},)")
    known = signal.providing_args
    for name in names:
        if known is not None and name != "session" and name not in known:
            raise ValueError(
                f"exclude_args: {shown(name)} is no argument of signal {signal.name!r}, which has {', '.join(known)}"
            )


def check_receivable(signal: Signal[..., Any], names: Collection[str]) -> None:
    """Raise `ValueError` where events cannot bring an argument that the signal demands."""
    check_excluded(signal, names)
    stub = getattr(signal, "_stub", None)
    defaults = (stub.__kwdefaults__ or {}) if stub is not None else {}
    for name in names:
        if name in (signal.providing_args or ()) and name not in defaults:
            msg = (
                f"events of signal {signal.name!r} never bring argument {name!r}, which does not cross: "
                f"give it a default in the stub of @signal, to be received with"
            )
            raise ValueError(msg)


def check_upcasters(upcasters: object, version: int, codec: object) -> None:
    """Raise for upcasters that do not lead, version by version, to the newest one."""
    if codec is not None:
        raise ValueError("upcasters and codec exclude each other: the codec is told the version, decode(body, version)")
    if not isinstance(upcasters, Mapping) or not all(map(callable, upcasters.values())):
        raise TypeError(f"upcasters maps versions to functions: upcasters={{1: from_1_to_2}}, not {shown(upcasters)}")
    known = sorted(upcasters)
    if not known or known != list(range(known[0], version)) or known[0] < 1:
        wanted = ", ".join(map(str, range(known[0] if known else 1, version))) or "none, as version is 1"
        raise ValueError(f"upcasters lead from each old version to the next, up to {version}: {wanted}, not {known}")
