"""The bus itself: signals, receivers and how a send reaches them. Imports the standard library and anyio only.

The modules, from the bottom up; each imports only those above it in this list:

- `errors`: exceptions and warnings, and what happens to an exception that a receiver raises;
- `objects`: users' objects: how they are identified, named, referred to and called;
- `loops`: the lock, event loops as other threads see them, a bounded queue between them, worker threads, forks;
- `written`: the loop of a send, written for the argument names of a signal;
- `connection`: one receiver connected to one signal, and how it is called by its options;
- `dispatch`: monitors, and the sends that they watch or that are made in a task group;
- `methods`: `send` and `send_robust`, written for the argument names of a signal;
- `registry`: who is connected to a signal, and the plan of a send;
- `stream`: listening instead of being called;
- `signal`: the class `Signal`;
- `background`: not waiting for receivers.

A send: `Signal.send` (which `methods` has made) takes the plan of its `registry` and returns the coroutine of
the plan's written loop, which calls the `connection`s. A connect: `Signal.connect` asks `objects` how the receiver
is called and has the `registry` add a `connection`.

**This module is the one interface for the packages around the core** (`asignals.relay`, `asignals.sqlalchemy`,
`asignals.testing`, ...). What it exports beside the public names of `asignals` is for them:

- `registry_of(signal)`: its `Registry`. `plan_for(sender).connections` are whom a send calls, muting applied;
  `connections_for(sender)` and `all_connections()` are for looking only; `remember` and `put_back` restore
  connections; `changes` grows with every change. `origin_of(signal)`: the signal of a view.
- `bind(signal, sender, **arguments)`: checks arguments as a send does and fills in defaults.
- `Send`: one send under way; `await send.to(connection)` calls one connection and gives a list of its `(receiver,
  response)` pair, or an empty one; `with send:` reports the send as a whole, if a monitor watches: `is_watched()`.
- `annotate`, `log_failure`, `is_receivers_error`: what a send does with a receiver's exception.
- `describe`, `name_of`, `locate`, `identify`, `key_of`, `sender_key`, `is_a`, `is_coroutine_function`: users' objects.
- `Waker`: waiting for what another thread may bring.
"""

from typing import Any

from asignals._core.background import Background, BackgroundStatistics
from asignals._core.connection import Connection, Connections, Options, key_of
from asignals._core.dispatch import Report, Send, monitor, watchers
from asignals._core.errors import (
    BufferFull,
    DeclarationError,
    DocumentedError,
    InvalidReceiverError,
    Receiver,
    ReceiverLostWarning,
    annotate,
    is_receivers_error,
    log_failure,
    raise_errors,
)
from asignals._core.loops import Waker
from asignals._core.objects import Shape, describe, identify, is_a, is_coroutine_function, locate, name_of, sender_key
from asignals._core.registry import Plan, Registry
from asignals._core.signal import Signal, receiver, signal, signals
from asignals._core.stream import Event, Stream, stream

# The public names of `asignals`; then, for the packages around the core: signals and sends, users' objects.
__all__ = ["Background", "BackgroundStatistics", "BufferFull", "Connection", "DeclarationError", "Event"]
__all__ += ["InvalidReceiverError", "ReceiverLostWarning", "Report", "Signal", "Stream", "monitor", "raise_errors"]
__all__ += ["receiver", "signal", "signals", "stream"]
__all__ += ["Connections", "DocumentedError", "Options", "Plan", "Receiver", "Registry", "Send", "Shape", "Waker"]
__all__ += ["annotate", "bind", "is_receivers_error", "is_watched", "key_of", "log_failure", "origin_of", "registry_of"]
__all__ += ["describe", "identify", "is_a", "is_coroutine_function", "locate", "name_of", "sender_key"]


def origin_of(signal: Signal[..., Any]) -> Signal[..., Any]:
    """The signal that a view (`Signal.using`) belongs to; a signal itself is its own."""
    return signal if signal._origin is None else signal._origin


def registry_of(signal: Signal[..., Any]) -> Registry:
    """The registry of a signal, and of its views."""
    return signal._registry


def bind(signal: Signal[..., Any], /, *args: Any, **kwargs: Any) -> tuple[object, dict[str, Any]]:
    """Check the arguments of a send; returns the sender and the arguments, defaults filled in.

    Raises `TypeError` for arguments that the signal does not declare, worded as by `send`.
    """
    return signal._bind(*args, **kwargs)


def is_watched() -> bool:
    """Whether a monitor watches sends now."""
    return bool(watchers)
