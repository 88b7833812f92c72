"""`pre_init` and `post_init`: instances being made, in Python or from a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event, inspect
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.base import LoaderCallableStatus

from asignals import InvalidReceiverError
from asignals._core import describe
from asignals.sqlalchemy._deliver import run_here
from asignals.sqlalchemy._errors import AsyncReceiverError
from asignals.sqlalchemy._event import Event, PhaseSend
from asignals.sqlalchemy._senders import mappers
from asignals.sqlalchemy._signal import ModelSignal
from asignals.sqlalchemy._state import public_session

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sqlalchemy.orm import ClassManager

    from asignals._core import Options, Receiver, Shape


class InitSignal(ModelSignal):
    """A model signal that is sent where nothing can be awaited."""

    def _examine(self, receiver: Receiver, sender: object, uid: Hashable | None, options: Options) -> Shape:
        shape = super()._examine(receiver, sender, uid, options)
        if shape.is_async or options.in_thread:
            reason = "instances are made in plain Python calls, so its receivers must be sync functions"
            raise InvalidReceiverError(self, receiver, describe(receiver), reason)
        return shape

    def _on_connected(self) -> None:
        _hook_all()

    def send_here(self, sender: type, arguments: dict[str, Any]) -> None:
        """Call the receivers on the spot."""
        event = Event(self, sender, arguments)
        links = event.plan("flush")
        if not links:
            event.report("flush")
            return
        send = PhaseSend(event, "flush")
        with send:
            for link in links:
                run_here(send.to(link), lambda link=link: AsyncReceiverError(self, link.describe()))  # type: ignore[misc]


pre_init: InitSignal = InitSignal(
    ("args", "kwargs", "session"),
    name="pre_init",
    phases=("flush",),
    doc="""An instance is about to be made by calling its class with `args` and `kwargs`; `session` is `None`.

    `kwargs` may be changed. Sync receivers only; an exception is raised from the call.
    """,
)
post_init: InitSignal = InitSignal(
    ("instance", "session"),
    name="post_init",
    phases=("flush",),
    doc="""An instance has been made: by calling its class (`session` is `None`), or from a row that a session loaded.

    Also by `session.merge()`, for an instance that was not in the session. Sync receivers only. In a load nothing
    further may be loaded, SQLAlchemy forbids it; an exception is raised from the call or from the query.
    """,
)


_DONT_SET = getattr(LoaderCallableStatus, "DONT_SET", object())  # SQLAlchemy 2.0 has none


class _Initialiser:
    """Takes the place of a class's own `__init__`, where SQLAlchemy looks it up, to tell when it is through."""

    def __init__(self, original: Callable[..., None]) -> None:
        self.original = original

    def __call__(self, instance: object, /, *args: Any, **kwargs: Any) -> None:
        self.original(instance, *args, **kwargs)
        post_init.send_here(type(instance), {"instance": instance, "session": None})


def _on_init(instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    model = type(instance)
    # What the constructor of a mapped dataclass fills in for what was not given is nobody's value.
    unset = {key: value for key, value in kwargs.items() if value is _DONT_SET}
    for key in unset:
        del kwargs[key]
    given = tuple(value for value in args if value is not _DONT_SET)
    try:
        pre_init.send_here(model, {"args": given, "kwargs": kwargs, "session": None})
    finally:
        kwargs.update((key, value) for key, value in unset.items() if key not in kwargs)
    # The class that is being made is only known now, and original_init is looked up right after this hook.
    manager: ClassManager[Any] = inspect(instance).manager
    if not isinstance(manager.original_init, _Initialiser):
        manager.original_init = _Initialiser(manager.original_init or model.__init__)


def _on_load(instance: object, context: object) -> None:
    del context  # None in a merge
    session = inspect(instance).session
    post_init.send_here(
        type(instance), {"instance": instance, "session": None if session is None else public_session(session)}
    )


# -- hooks, on the classes that need them ------------------------------------------------------------------------------

_HOOKED = "asignals.hooked"  # in `ClassManager.info`, which ends with the mapping of the class


def _hook_all() -> None:
    """Hook into all classes that somebody listens to, those mapped later as well."""
    if not event.contains(Mapper, "after_mapper_constructed", _hook):
        event.listen(Mapper, "after_mapper_constructed", _hook)
    for mapper in mappers():
        _hook(mapper, mapper.class_)


def _hook(mapper: Mapper[Any], model: type) -> None:
    is_loaded = post_init.is_wanted(model)
    manager = mapper.class_manager
    hooked: set[str] = manager.info.setdefault(_HOOKED, set())
    for name, hook, is_needed in (
        ("init", _on_init, is_loaded or pre_init.is_wanted(model)),
        ("load", _on_load, is_loaded),
    ):
        if is_needed and name not in hooked:
            hooked.add(name)
            event.listen(model, name, hook)
