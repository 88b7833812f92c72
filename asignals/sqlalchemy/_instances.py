"""`pre_init` and `post_init`: instances being made, in Python or from a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect

from asignals import InvalidReceiverError
from asignals._core import Send
from asignals._core import describe
from asignals.sqlalchemy._deliver import Call, run_here
from asignals.sqlalchemy._listening import ClassHooks
from asignals.sqlalchemy._signal import ModelSignal
from asignals.sqlalchemy._state import announced

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sqlalchemy.orm import ClassManager, QueryContext

    from asignals._core import Options
    from asignals._core import Receiver, Shape


class InitSignal(ModelSignal):
    """A model signal that is sent where nothing can be awaited."""

    def _examine(
        self, receiver: Receiver, sender: object, uid: Hashable | None, options: Options
    ) -> tuple[Options, Shape]:
        options, shape = super()._examine(receiver, sender, uid, options)
        if shape.is_async or options.in_thread:
            reason = "instances are made in plain Python calls, so its receivers must be sync functions"
            raise InvalidReceiverError(self, receiver, describe(receiver), reason)
        return options, shape

    def send_here(self, sender: type, arguments: dict[str, Any]) -> None:
        """Call the receivers on the spot."""
        send = Send(self, sender, arguments, robust=False)
        for link in self.registry("flush").plan_for(sender):
            run_here(send.to(link), Call(send, link))


class _Initialiser:
    """Takes the place of a class's own `__init__`, where SQLAlchemy looks it up, to tell when it is through."""

    def __init__(self, original: Callable[..., None]) -> None:
        self.original = original

    def __call__(self, instance: object, /, *args: Any, **kwargs: Any) -> None:
        self.original(instance, *args, **kwargs)
        post_init.send_here(type(instance), {"instance": instance, "session": None})


def _on_init(instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    model = type(instance)
    pre_init.send_here(model, {"args": args, "kwargs": kwargs, "session": None})
    # The class that is being made is only known now, and original_init is looked up right after this hook.
    manager: ClassManager[Any] = inspect(instance).manager
    if not isinstance(manager.original_init, _Initialiser):
        manager.original_init = _Initialiser(manager.original_init or model.__init__)


def _on_load(instance: object, context: QueryContext) -> None:
    session = announced(context.session)
    post_init.send_here(type(instance), {"instance": instance, "session": session})


_loaded = ClassHooks(raw=False, load=_on_load)
_made = ClassHooks(raw=False, init=_on_init)


def _listen_to_both(sender: Any) -> None:
    _made(sender)
    _loaded(sender)


pre_init: InitSignal = InitSignal(
    ("args", "kwargs", "session"),
    name="pre_init",
    listen=_made,
    phases=("flush",),
    doc="""An instance is about to be made by calling its class with `args` and `kwargs`; `session` is `None`.

    `kwargs` may be changed. Sync receivers only; an exception is raised from the call.
    """,
)
post_init: InitSignal = InitSignal(
    ("instance", "session"),
    name="post_init",
    listen=_listen_to_both,
    phases=("flush",),
    doc="""An instance has been made: by calling its class (`session` is `None`), or from a row that a session loaded.

    Sync receivers only. In a load nothing further may be loaded, SQLAlchemy forbids it; an exception is raised from the
    call or from the query.
    """,
)
