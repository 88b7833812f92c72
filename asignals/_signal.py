"""`Signal`: what a program declares, connects receivers to, and sends."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, Self, TypedDict, TypeVar, Unpack, cast, overload
from weakref import ref

from asignals._compile import check_names, choose, send_for, send_robust_for
from asignals._connection import Connection, Options
from asignals._core.stream import Event, Overflow, Stream, Where
from asignals._declare import class_for_names, class_for_stub, read_stub
from asignals._exceptions import InvalidReceiverError
from asignals._live import remember
from asignals._lost import LossReporter, caller, is_fleeting, may_get_lost, warn_fleeting
from asignals._monitor import watchers
from asignals._receivers import Mismatch, Receiver, Shape, examine
from asignals._refs import describe, is_a
from asignals._registry import Registry, Run
from asignals._scoped import connected, muted

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable
    from contextlib import AbstractContextManager

    from asignals._group import TaskGroupFactory

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound="Receiver")


class ConnectOptions(TypedDict, total=False):
    """What `connect` takes beside Django's parameters, for type checkers."""

    priority: float
    subclasses: bool
    in_thread: bool
    timeout: float | None
    once: bool


class _Detour:
    """Stands in for the registry where no send may take the generated loop."""

    run: Run | None = None


class _Unchanged:
    """The default of what `using` leaves as it is."""

    def __repr__(self) -> str:
        return "<unchanged>"


_DETOUR = _Detour()
_UNCHANGED: Any = _Unchanged()


class Signal(Generic[P, R]):
    """Something that happens, which receivers hear of.

    `Signal()` sends any keyword arguments, `Signal(["toppings", "size"])` exactly these. For types, defaults and a
    docstring, make one of a function with `@signal`.

    `connect`, `disconnect` and `send` may be called from any thread; a receiver runs in the sender's. A signal is an
    identity, as functions are: `copy.copy` and `copy.deepcopy` give it back as it is.

    Args:
        providing_args: The names of the arguments, checked by every `send`; `None` allows any.
        name: For messages; by default found where the signal is assigned: `module.attribute`.
        doc: Becomes the signal's `__doc__`.
        task_group: A factory of task groups (`anyio.create_task_group`, `asyncio.TaskGroup`, or one of the same
            shape) to run receivers concurrently; `None` runs one after the other.
        limit: How many receivers of one send run at once in a task group; `None` for all.

    Raises:
        DeclarationError: `providing_args` is one string, or has a name that is no identifier, a keyword, twice there,
            or reserved (`sender` and `signal`).
        TypeError, ValueError: `task_group` is not callable, `limit` is not a positive integer.
    """

    providing_args: tuple[str, ...] | None

    def __init__(
        self: Signal[..., Any],
        providing_args: Iterable[str] | None = None,
        *,
        name: str | None = None,
        doc: str | None = None,
        task_group: TaskGroupFactory | None = None,
        limit: int | None = None,
    ) -> None:
        names = None if providing_args is None else check_names(providing_args)
        _check_mode(task_group, limit)
        self.providing_args = names
        self.__doc__ = doc
        self._name = name
        frame = caller(type(self))
        self._home: tuple[str, int] = (str(frame.f_globals.get("__name__")), frame.f_lineno)
        self._file = frame.f_code.co_filename
        self._stub: Callable[..., Any] | None = None
        self._registry = Registry(LossReporter(ref(self)))
        self._origin: Signal[..., Any] | None = None
        self._set_mode(task_group, limit)
        remember(self)
        if names is not None:
            self.__class__ = class_for_names(cast("Any", type(self)), Signal, names)

    def _set_mode(self, task_group: TaskGroupFactory | None, limit: int | None) -> None:
        self._task_group = task_group
        self._limit = limit
        is_direct = task_group is None and self._origin is None
        self._plans: Registry | _Detour = self._registry if is_direct else _DETOUR

    def __set_name__(self, owner: type, name: str) -> None:
        if self._name is None:
            self._name = f"{owner.__module__}.{owner.__qualname__}.{name}"

    @property
    def location(self) -> str:
        """Where this signal was made, as `file:line`."""
        return f"{self._file}:{self._home[1]}"

    @property
    def name(self) -> str:
        """What messages call this signal."""
        if self._name is not None:
            return self._name
        module, line = self._home
        this = self if self._origin is None else self._origin
        for attribute, value in list(getattr(sys.modules.get(module), "__dict__", {}).items()):
            if value is this:
                self._name = f"{module}.{attribute}"
                return self._name
        return f"{module}:{line}"

    # -- sending ---------------------------------------------------------------------------------------------------

    if TYPE_CHECKING:

        async def send(self, *args: P.args, **kwargs: P.kwargs) -> list[tuple[Receiver, R]]: ...

        async def send_robust(self, *args: P.args, **kwargs: P.kwargs) -> list[tuple[Receiver, R | Exception]]: ...

    else:
        # The types are above: here a sender is just an object.

        async def send(self, /, sender: object, **named: Any) -> list[tuple[Receiver, Any]]:
            """Call the receivers connected for `sender`, and for all senders; returns `(receiver, response)` pairs.

            They are called in order: higher priority first, then in order of connection. `sender` may be given by
            position or by name. Receivers connected meanwhile hear the next send; ones that die or are disconnected
            meanwhile are left out.

            Sequentially (the default) each receiver ends before the next begins, in the caller's own task and
            context. The first exception propagates as it is, with a note that names the receiver and the signal, and
            the receivers after it are not called. Suspends only where a receiver does; cancelling it cancels the
            receiver that runs.

            In a task group (see `using`) they run concurrently, and are answered for in the same order; the first
            failure cancels the rest, and an `ExceptionGroup` is raised, for one error too. Nothing of a send outlives
            it, in either way.

            May be called in any thread's event loop, where the receivers then run.

            Raises:
                TypeError: the arguments are not those that the signal declares; no receiver was called.
            """
            return await send_for(tuple(named))(self, sender, **named)

        async def send_robust(self, /, sender: object, **named: Any) -> list[tuple[Receiver, Any]]:
            """Call every receiver, and return exceptions in place of the responses of those that failed.

            As `send`, but an `Exception` of one receiver does not keep the others from being called: it becomes the
            response in its pair, and is logged with its traceback to the logger `asignals`. Cancellation,
            `KeyboardInterrupt` and `SystemExit` pass through. See `raise_errors` to raise afterwards.

            Raises:
                TypeError: the arguments are not those that the signal declares; no receiver was called.
            """
            return await send_robust_for(tuple(named))(self, sender, **named)

    def _run_for(self, sender: object) -> Run | None:
        """What the generated loop walks along; `None` when the send must go the long way."""
        return None if watchers or self._plans is _DETOUR else self._registry.run_for(sender)

    def _bind(self, /, sender: object, **named: Any) -> tuple[object, dict[str, Any]]:
        """Check arguments as a send would; returns the sender and the complete arguments."""
        if "signal" in named:
            msg = f"'signal' is reserved and cannot be sent as an argument of signal {self.name!r}"
            raise TypeError(msg)
        return sender, named

    def using(
        self, *, task_group: TaskGroupFactory | None = _UNCHANGED, limit: int | None = _UNCHANGED
    ) -> Signal[P, R]:
        """A light view of this signal that sends in another way; an option left out keeps the signal's own.

        The view has the same receivers, and they get the signal itself, not the view. What they see of the sender's
        context, deadlines and shields in each mode is listed in the module `asignals._group`.

        Args:
            task_group: As for `Signal`; `None` for one receiver after the other.
            limit: How many receivers of one send run at once in the task group; `None` for all.

        Raises:
            TypeError, ValueError: `task_group` is not callable, `limit` is not a positive integer.
        """
        task_group = self._task_group if task_group is _UNCHANGED else task_group
        limit = self._limit if limit is _UNCHANGED else limit
        _check_mode(task_group, limit)
        view = self._copy()
        view._origin = self if self._origin is None else self._origin
        view._set_mode(task_group, limit)
        return view

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _find, (self.name,)

    def _copy(self) -> Self:
        copy = object.__new__(type(self))
        state = object.__getstate__(self)
        for values in state if isinstance(state, tuple) else (state,):  # of the dict, and of a subclass's slots
            for name, value in values.items():
                object.__setattr__(copy, name, value)
        return copy

    # -- connecting ------------------------------------------------------------------------------------------------

    @overload
    def connect(
        self,
        receiver: F,
        sender: object = None,
        weak: bool = True,  # noqa: FBT001, FBT002  Django's order of parameters
        dispatch_uid: Hashable | None = None,
        **options: Unpack[ConnectOptions],
    ) -> F: ...

    @overload
    def connect(
        self,
        receiver: None = None,
        sender: object = None,
        weak: bool = True,  # noqa: FBT001, FBT002  Django's order of parameters
        dispatch_uid: Hashable | None = None,
        **options: Unpack[ConnectOptions],
    ) -> Callable[[F], F]: ...

    def connect(  # noqa: PLR0913  Django's parameters, and the options
        self,
        receiver: Receiver | None = None,
        sender: object = None,
        weak: bool = True,  # noqa: FBT001, FBT002  Django's order of parameters
        dispatch_uid: Hashable | None = None,
        *,
        priority: float = 0,
        subclasses: bool = False,
        in_thread: bool = False,
        timeout: float | None = None,
        once: bool = False,
    ) -> Any:
        """Have a receiver called by every send; returns the receiver, so that this is a decorator too.

        A receiver is any callable, sync or async, and gets `signal`, `sender` and the sent arguments by name: all of
        them if it takes `**kwargs`, else those that it names.

        The same receiver and sender, or the same `dispatch_uid` and sender, is one connection: connecting it again
        keeps its place and takes the new options, for a send under way as well. A different receiver under a
        `dispatch_uid` that is taken is not added.

        Args:
            receiver: What to call; without one, a decorator is returned.
            sender: Hear only sends of this sender: the same object, or for `str`, `bytes`, `int`, `float`, `complex`
                and `bool` one of the same type and value. `None` hears all. The connection ends with the sender; one
                that cannot be weakly referenced is kept alive instead.
            weak: Let the receiver die (bound methods: the object); the connection then ends. Connecting what nothing
                else holds warns at once, and a nested function, a lambda or a partial that dies before any send could
                reach it warns then (`ReceiverLostWarning`); an object that dies with its methods does not.
            dispatch_uid: A hashable identity to use in place of the receiver's own.
            priority: Receivers with a higher one are called first.
            subclasses: With a class as the sender, hear its subclasses as well.
            in_thread: Call a sync receiver in a worker thread, with the sender's context.
            timeout: Seconds that an async receiver may take before it is cancelled and `TimeoutError` raised.
            once: Disconnect before the first call. However many sends race, there is one call at most.

        Raises:
            TypeError: the receiver is not callable; it is to be weak and does not support weak references; the
                `dispatch_uid` is not hashable.
            InvalidReceiverError: the receiver cannot be called with what the signal sends, or an option does not
                fit it. A `ValueError`. Nothing has been connected.
        """
        if receiver is None:
            again = partial(
                self.connect,
                sender=sender,
                weak=weak,
                dispatch_uid=dispatch_uid,
                priority=priority,
                subclasses=subclasses,
                in_thread=in_thread,
                timeout=timeout,
                once=once,
            )
            return lambda receiver: again(self._callable(receiver))
        count = sys.getrefcount(receiver)
        fleeting = is_fleeting(receiver, count)
        options = Options(weak, priority, subclasses, in_thread, timeout, once)
        options, shape = self._examine(receiver, sender, dispatch_uid, options)
        frame = caller(type(self))
        place = frame.f_code, frame.f_lineno
        if fleeting and options.weak:
            warn_fleeting(self, receiver, place)
        may_surprise = may_get_lost(receiver) and not fleeting
        self._registry.connect(receiver, sender, dispatch_uid, options, shape, place, may_surprise=may_surprise)
        return receiver

    def _callable(self, receiver: Receiver) -> Receiver:
        if callable(receiver):
            return receiver
        msg = f"cannot connect to signal {self.name!r}: a receiver must be callable, not {type(receiver).__name__!r}"
        raise TypeError(msg)

    def _examine(
        self, receiver: Receiver, sender: object, uid: Hashable | None, options: Options
    ) -> tuple[Options, Shape]:
        """Refuse what no send could call, before anything is changed."""
        self._callable(receiver)
        try:
            is_async, wanted = examine(receiver, self.providing_args)
            options = options.checked(sender, is_async=is_async)
        except Mismatch as mismatch:
            raise InvalidReceiverError(self, receiver, describe(receiver), str(mismatch)) from mismatch.__cause__
        try:
            hash(uid)
            if options.weak:
                for part in (receiver.__self__, receiver.__func__) if is_a(receiver, MethodType) else (receiver,):
                    ref(part)
        except Exception as error:
            hint = "; connect it with weak=False" if options.weak and "weak reference" in str(error) else ""
            msg = f"cannot connect {describe(receiver)} to signal {self.name!r}: {error}{hint}"
            raise TypeError(msg) from error
        return options, Shape(is_async, None if wanted is None else choose(self.providing_args or (), wanted))

    def disconnect(
        self, receiver: Receiver | None = None, sender: object = None, dispatch_uid: Hashable | None = None
    ) -> bool:
        """End a connection; returns whether there was one.

        Name it as it was connected: by the receiver or its `dispatch_uid`, and the sender. Once this has returned,
        sends do not come to the receiver any more, those under way included. A send of another thread that has come
        to it already calls it, at that moment or to the end: no lock makes this wait for that.

        Raises:
            TypeError: neither a receiver nor a `dispatch_uid` was given.
        """
        if receiver is None and dispatch_uid is None:
            msg = f"disconnect() from signal {self.name!r} needs the receiver or its dispatch_uid"
            raise TypeError(msg)
        return self._registry.disconnect(receiver, sender, dispatch_uid)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The live connections, for all senders and each single one, in order; the same objects each time."""
        return tuple(link for link in self._registry.all_links() if isinstance(link, Connection))

    def _registries(self) -> dict[str, Registry]:
        """Where the connections are; a subclass may keep those of several phases apart, and names them."""
        return {"": self._registry}

    def has_listeners(self, sender: object = None) -> bool:
        """Whether a send from this sender would reach a receiver or a stream, muted or not."""
        return self._registry.has_links(sender)

    def receivers_for(self, sender: object) -> list[Receiver]:
        """The receivers that a send from this sender would call, in order, muted or not."""
        links = self._registry.links_for(sender)
        found = [link.target() for link in links if isinstance(link, Connection)]
        return [receiver for receiver in found if receiver is not None]

    def connected(
        self,
        receiver: F,
        sender: object = None,
        weak: bool = True,  # noqa: FBT001, FBT002  as for connect
        dispatch_uid: Hashable | None = None,
        **options: Unpack[ConnectOptions],
    ) -> AbstractContextManager[F]:
        """Connect for the length of a `with` block; takes what `connect` takes, and gives the receiver.

        Afterwards there is exactly what was there before: a receiver that was connected already has its options and
        its place again. The receiver is kept alive meanwhile. Blocks may nest and overlap in any order.

        What `connect` refuses is refused as the block is entered.
        """
        return connected(self, receiver, sender, dispatch_uid, {"weak": weak, **options})

    def muted(self, *receivers: Receiver, everywhere: bool = False) -> AbstractContextManager[None]:
        """For the length of a `with` block, let sends reach nobody, no stream either; or, given receivers, not these.

        Only sends made in the current context notice (its task, and the tasks and `to_thread` calls started from it),
        or all sends of the process with `everywhere`. What a `Background` accepts inside the block stays muted, also
        when it runs later. Sends under way go on. Blocks may nest and overlap in any order.

        Raises:
            TypeError: one of the receivers is not callable.
        """
        for receiver in receivers:
            self._callable(receiver)
        return muted(self._registry, receivers, everywhere=everywhere)

    # -- listening -------------------------------------------------------------------------------------------------

    def stream(
        self, sender: object = None, *, where: Where | None = None, buffer: int = 64, overflow: Overflow = "wait"
    ) -> Stream:
        """The sends that begin in an `async with` block, as an async iterator of `Event`s.

        ```python
        async with pizza_done.stream() as events:
            async for event in events:
                print(event.sender, event.size)
        ```

        It listens in order of connection at priority 0, counts in `has_listeners`, and appears neither in
        `connections` nor in the results of a send. Senders may be in other threads and event loops.

        Args:
            sender: Whose sends; `None` for all.
            where: A sync function of an `Event`: only those for which it returns something true are kept. It runs in
                the sender, which gets its errors as a receiver's.
            buffer: How many events are kept that nobody has read.
            overflow: What happens to an event that finds the buffer full. `"wait"`: its sender waits for room, and
                nothing is lost. `"drop_oldest"`, `"drop_newest"`: an event is dropped, and counted in the stream's
                `dropped`. `"error"`: `BufferFull` is raised to the sender, or returned by `send_robust`.

        Raises:
            TypeError, ValueError: one of the arguments is of another kind.
        """
        return Stream((self,), sender, where, buffer, overflow)

    async def wait(self, sender: object = None, *, where: Where | None = None) -> Event:
        """Wait for the next send, of `sender` or of all, for which `where` is true; returns it as an `Event`.

        Put `anyio.fail_after` around it for a time limit. Cancelling it stops listening.

        Raises:
            TypeError: `where` is not a sync function.
        """
        async with self.stream(sender, where=where, buffer=1, overflow="drop_newest") as events:
            return await anext(events)

    def __repr__(self) -> str:
        arguments = "" if self.providing_args is None else f" ({', '.join(self.providing_args)})"
        view = "" if self._origin is None else " (a view)"
        count = len(self.connections)
        return f"<asignals.Signal {self.name!r}{arguments}{view}, {count} receiver{'' if count == 1 else 's'}>"


def _find(name: str) -> Any:
    """The signal that was pickled under a name."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:count]))
        for part in parts[count:]:
            found = getattr(found, part, None)
        if isinstance(found, Signal):
            return found
    msg = f"there is no signal {name!r}"
    raise LookupError(msg)


def _check_mode(task_group: object, limit: object) -> None:
    if task_group is not None and not callable(task_group):
        msg = f"task_group must be a factory of task groups, such as anyio.create_task_group, not {task_group!r}"
        raise TypeError(msg)
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int):
        msg = f"limit must be a positive integer or None, not {limit!r}"
        raise TypeError(msg)
    if limit < 1:
        msg = f"limit must be at least 1, not {limit}"
        raise ValueError(msg)


@overload
def signal(stub: Callable[P, Coroutine[Any, Any, R]]) -> Signal[P, R]: ...


@overload
def signal(stub: Callable[P, R]) -> Signal[P, R]: ...


@overload
def signal(
    stub: None = None, *, name: str | None = None, task_group: TaskGroupFactory | None = None, limit: int | None = None
) -> _SignalMaker: ...


def signal(
    stub: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    task_group: TaskGroupFactory | None = None,
    limit: int | None = None,
) -> Any:
    """Declare a signal by a function's signature: names, types, defaults and docstring.

    ```python
    @signal
    def pizza_done(sender: PizzaStore, *, toppings: list[str], size: int = 30) -> None:
        \"\"\"A pizza left the oven.\"\"\"
    ```

    The function is never called. Its first parameter is `sender`, all others are keyword-only; its return type is
    that of the responses. `send` fills in the defaults, and type checkers hold every `send` to the types.

    Args:
        stub: The function; without one, a decorator is returned.
        name: By default `module.qualname` of the function.
        task_group: As for `Signal`.
        limit: As for `Signal`.

    Raises:
        DeclarationError: the function's parameters are of another kind. A `TypeError` and a `ValueError`.
        TypeError, ValueError: as for `Signal`.
    """
    if stub is None:
        return partial(signal, name=name, task_group=task_group, limit=limit)
    declared = read_stub(stub)
    made: Signal[..., Any] = Signal(
        name=name or f"{declared.module}.{declared.qualname}", doc=stub.__doc__, task_group=task_group, limit=limit
    )
    made.providing_args = declared.names
    made._stub = stub
    made.__class__ = class_for_stub(Signal, declared)
    return made


class _SignalMaker(Protocol):
    """What `@signal(...)` with options returns."""

    @overload
    def __call__(self, stub: Callable[P, Coroutine[Any, Any, R]], /) -> Signal[P, R]: ...
    @overload
    def __call__(self, stub: Callable[P, R], /) -> Signal[P, R]: ...


def receiver(
    signals: Signal[..., Any] | Iterable[Signal[..., Any]], *, sender: object = None, **options: Any
) -> Callable[[F], F]:
    """Connect the decorated function to one or several signals, as Django's decorator of that name.

    Args:
        signals: A signal, or an iterable of them.
        sender: A sender, or a list, tuple or set of them; `None` hears all.
        options: What else `Signal.connect` takes.

    Raises:
        TypeError: `signals` is something else, or one of the two is empty.
        Others: what `connect` raises; then the function is connected to none of them.
    """
    chosen: list[Signal[..., Any]] = [signals] if isinstance(signals, Signal) else []
    if not chosen and isinstance(signals, Iterable):
        chosen = list(signals)
    senders = list(sender) if isinstance(sender, _SEVERAL) else [sender]
    if not chosen or not senders or not all(isinstance(one, Signal) for one in chosen):
        msg = f"receiver() takes a signal, or several, and at least one sender; not {signals!r:.80}"
        raise TypeError(msg)

    def connect_all(function: F) -> F:
        chosen[0]._callable(function)
        with ExitStack() as undo:
            for one in chosen:
                for each in senders:
                    was = one._registry.snapshot(function, each, options.get("dispatch_uid"))
                    one.connect(function, each, **options)
                    undo.callback(one._registry.restore, was)
            undo.pop_all()
        return function

    return connect_all


_SEVERAL = (list, tuple, set, frozenset)
