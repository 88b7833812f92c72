"""The bus itself: signals, receivers and how a send reaches them. Imports the standard library and anyio only.

The modules, from the bottom up; each imports only those above it in this list:

- `errors`: exceptions and warnings, and what happens to an exception that a receiver raises;
- `references`: how users' objects are identified, named and referred to, and when their death is a surprise;
- `signatures`: what receivers and stubs take;
- `loops`: event loops as other threads see them, worker threads, cancellation, locks, forks;
- `queue`: a bounded queue between threads;
- `connection`: one receiver connected to one signal, and how it is called;
- `monitor`: watching sends;
- `dispatch`: one send under way, in a task group or watched;
- `written`: the loop of all other sends, written for the argument names of a signal;
- `registry`: who is connected to a signal, and the plan of a send;
- `stream`: listening instead of being called;
- `signal`: the class `Signal`;
- `background`: not waiting for receivers.

A send: `Signal.send` (a method that `written` has made) takes the plan of its `registry` and returns the coroutine of
the plan's written loop, which calls the `connection`s. A connect: `Signal.connect` asks `signatures` how the receiver
is called and has the `registry` add a `connection`.

**This module is the one interface for the packages around the core** (`asignals.relay`, `asignals.sqlalchemy`,
`asignals.testing`, ...). What it exports beside the public names of `asignals` is for them:

- `registry_of(signal)`: its `Registry`. `plan_for(sender).connections` are whom a send calls, muting applied;
  `connections_for(sender)` and `all_connections()` are for looking only; `snapshot` and `restore` put back
  connections; `changes` grows with every change. `origin_of(signal)`: the signal of a view.
- `bind(signal, sender, **arguments)`: checks arguments as a send does and fills in defaults.
- `Send`: one send under way; `await send.to(connection)` calls one connection and gives its `(receiver, response)`
  pair, or `None`; `send.watched()` reports the send as a whole. `is_watched()`: whether a monitor watches.
- `annotate`, `log_failure`, `is_receivers_error`: what a send does with a receiver's exception.
- `describe`, `name_of`, `locate`, `identify`, `sender_key`, `is_a`, `is_coroutine_function`: users' objects.
- `Loop`, `Waker`, `cancellation`, `is_cancelled`: waiting for what another thread may bring.
"""

from typing import Any

from asignals._core.background import Background as Background
from asignals._core.background import BackgroundStatistics as BackgroundStatistics
from asignals._core.connection import Connection as Connection
from asignals._core.connection import Connections as Connections
from asignals._core.connection import Options as Options
from asignals._core.dispatch import Send as Send
from asignals._core.errors import BufferFull as BufferFull
from asignals._core.errors import DeclarationError as DeclarationError
from asignals._core.errors import DocumentedError as DocumentedError
from asignals._core.errors import InvalidReceiverError as InvalidReceiverError
from asignals._core.errors import ReceiverLostWarning as ReceiverLostWarning
from asignals._core.errors import annotate as annotate
from asignals._core.errors import is_receivers_error as is_receivers_error
from asignals._core.errors import log_failure as log_failure
from asignals._core.errors import raise_errors as raise_errors
from asignals._core.loops import Loop as Loop
from asignals._core.loops import Waker as Waker
from asignals._core.loops import cancellation as cancellation
from asignals._core.loops import is_cancelled as is_cancelled
from asignals._core.monitor import Report as Report
from asignals._core.monitor import SendInfo as SendInfo
from asignals._core.monitor import is_watched as is_watched
from asignals._core.monitor import monitor as monitor
from asignals._core.references import describe as describe
from asignals._core.references import identify as identify
from asignals._core.references import is_a as is_a
from asignals._core.references import locate as locate
from asignals._core.references import name_of as name_of
from asignals._core.references import sender_key as sender_key
from asignals._core.registry import Plan as Plan
from asignals._core.registry import Registry as Registry
from asignals._core.registry import Snapshot as Snapshot
from asignals._core.signal import Signal as Signal
from asignals._core.signal import receiver as receiver
from asignals._core.signal import signal as signal
from asignals._core.signal import signals as signals
from asignals._core.signatures import Receiver as Receiver
from asignals._core.signatures import Shape as Shape
from asignals._core.signatures import is_coroutine_function as is_coroutine_function
from asignals._core.stream import Event as Event
from asignals._core.stream import Stream as Stream
from asignals._core.stream import stream as stream


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
