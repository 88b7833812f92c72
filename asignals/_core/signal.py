"""`Signal`: what a program declares, connects receivers to, and sends."""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Callable, Coroutine, Hashable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial, wraps
from pkgutil import resolve_name
from types import MethodType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Protocol, Self, TypeVar, Unpack, cast, overload
from weakref import WeakValueDictionary, ref

from anyio import CapacityLimiter

from asignals._core.connection import DEFAULTS, AllOptions, Connection, ConnectOptions, Options, connection_to
from asignals._core.dispatch import TaskGroupFactory, deliver, watchers
from asignals._core.errors import InvalidReceiverError, annotate, catch
from asignals._core.methods import class_for, class_for_names, mark_as_send
from asignals._core.objects import Receiver, Shape, calling_frame, check_names, describe, examine, is_a, read_stub
from asignals._core.registry import Block, Registry
from asignals._core.stream import Event, Overflow, Stream, Where, check_count

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
X = TypeVar("X")
F = TypeVar("F", bound=Receiver)


_NO_PLAN: Any = SimpleNamespace(plan=SimpleNamespace(loop=None))  # for views and task groups, whose sends `deliver`
_MISSING: Any = ...  # `None` may be given


class Signal(Generic[P, R_co]):
    """Something that happens, which receivers hear of.

    `Signal()` sends any keyword arguments, `Signal(["toppings", "size"])` exactly these. For types, defaults and a
    docstring, make one of a function with `@signal`.

    `connect`, `disconnect` and `send` may be called from any thread; a receiver runs in the sender's. A signal is an
    identity, as functions are: `copy.copy` and `copy.deepcopy` give it back as it is, and it pickles by its name, where
    it can be found there again.

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

    _written_for: tuple[str, ...] | None = None

    def __init__(
        self: Signal[..., Any],
        providing_args: Iterable[str] | None = None,
        *,
        name: str | None = None,
        doc: str | None = None,
        task_group: TaskGroupFactory | None = None,
        limit: int | None = None,
    ) -> None:
        self.providing_args: tuple[str, ...] | None = None if providing_args is None else check_names(providing_args)
        self.__doc__ = doc
        self._name = name
        frame = calling_frame(type(self))
        self._module = str(frame.f_globals.get("__name__"))
        self.location: str = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        """Where this signal was made, as `file:line`."""
        self._stub: Callable[..., Any] | None = None
        self._origin: Signal[..., Any] | None = None
        self._registry = Registry(ref(self), self.providing_args)
        self._set_mode(task_group, limit)
        _signals[id(self)] = self
        if self.providing_args != self._written_for:
            self.__class__ = class_for_names(cast("Any", type(self)), Signal, self.providing_args)

    if not TYPE_CHECKING:

        @wraps(__init__)  # `help` shows its parameters
        def __new__(cls, providing_args: object = None, *_: object, **__: object) -> Self:
            # Of its final class at once, where that is known: a change of class makes finding methods slower.
            made, is_plain = cls, cls.__init__ is Signal.__init__ and cls._written_for is None
            if is_plain and isinstance(providing_args, list | tuple):
                made = class_for_names(cls, Signal, check_names(providing_args))
            return object.__new__(made)

    def _set_mode(self, task_group: TaskGroupFactory | None, limit: int | None) -> None:
        if task_group is not None and not callable(task_group):
            what = "a factory of task groups, such as anyio.create_task_group"
            raise TypeError(f"task_group must be {what}, not {task_group!r}")
        if limit is not None:
            check_count("limit", limit, 1, "receivers")
        self._task_group, self._limit = task_group, limit
        self._direct: Registry = self._registry if task_group is None and self._origin is None else _NO_PLAN

    def __set_name__(self, owner: type, name: str) -> None:
        if self._name is None:
            self._name = f"{owner.__module__}.{owner.__qualname__}.{name}"

    @property
    def name(self) -> str:
        """What messages call this signal."""
        if self._name is not None:
            return self._name
        this = self if self._origin is None else self._origin
        for attribute, value in list(getattr(sys.modules.get(self._module), "__dict__", {}).items()):
            if value is this:
                self._name = f"{self._module}.{attribute}"
                return self._name
        return f"{self._module}:{self.location.rpartition(':')[2]}"

    # -- sending ---------------------------------------------------------------------------------------------------

    if TYPE_CHECKING:

        async def send(self, *args: P.args, **kwargs: P.kwargs) -> list[tuple[Receiver, R_co]]: ...

        async def send_robust(self, *args: P.args, **kwargs: P.kwargs) -> list[tuple[Receiver, R_co | Exception]]: ...

    else:
        # The types are above: here a sender is just an object. A signal with declared arguments has written methods.

        def send(self, /, sender: object, **named: Any) -> Coroutine[Any, Any, list[tuple[Receiver, Any]]]:
            """Call the receivers connected for `sender`, and for all senders; returns `(receiver, response)` pairs.

            They are called in order: higher priority first, then in order of connection. `sender` may be given by
            position or by name. The arguments are checked, and it is settled who hears and what is muted, at the call,
            before the coroutine is awaited. Receivers connected meanwhile hear the next send; ones that die or are
            disconnected meanwhile are left out.

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
            plan = self._direct.plan or self._direct.plan_for(sender)
            if plan.loop is None or watchers or "signal" in named:
                return deliver(self, *self._bind(sender, **named), annotate)
            return plan.loop(plan, self, sender, annotate, plan.connections, [], named)

        def send_robust(self, /, sender: object, **named: Any) -> Coroutine[Any, Any, list[tuple[Receiver, Any]]]:
            """Call every receiver, and return exceptions in place of the responses of those that failed.

            As `send`, but an `Exception` of one receiver does not keep the others from being called: it becomes the
            response in its pair, and is logged with its traceback to the logger `asignals`. Cancellation,
            `KeyboardInterrupt` and `SystemExit` pass through. See `raise_errors` to raise afterwards.

            Raises:
                TypeError: the arguments are not those that the signal declares; no receiver was called.
            """
            plan = self._direct.plan or self._direct.plan_for(sender)
            if plan.loop is None or watchers or "signal" in named:
                return deliver(self, *self._bind(sender, **named), catch)
            return plan.loop(plan, self, sender, catch, plan.connections, [], named)

        mark_as_send(send)
        mark_as_send(send_robust)

    def _bind(self, /, sender: object, **named: Any) -> tuple[object, dict[str, Any]]:
        """Check arguments as a send does; returns the sender and the complete arguments."""
        if "signal" in named:
            raise TypeError(f"'signal' is reserved and cannot be sent as an argument of signal {self.name!r}")
        return sender, named

    def using(self, *, task_group: TaskGroupFactory | None = _MISSING, limit: int | None = _MISSING) -> Self:
        """A light view of this signal that sends in another way; an option left out keeps the signal's own.

        The view has the same receivers, and they get the signal itself, not the view. What they see of the sender's
        context, deadlines and shields in each mode is listed in the module `asignals._core.dispatch`.

        Args:
            task_group: As for `Signal`; `None` for one receiver after the other.
            limit: How many receivers of one send run at once in the task group; `None` for all.

        Raises:
            TypeError, ValueError: `task_group` is not callable, `limit` is not a positive integer.
        """
        task_group = self._task_group if task_group is _MISSING else task_group
        limit = self._limit if limit is _MISSING else limit
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._origin = self if self._origin is None else self._origin
        view._set_mode(task_group, limit)
        return view

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        with suppress(ImportError, AttributeError, ValueError):
            if resolve_name(self.name) is self:
                return resolve_name, (self.name,)
        advice = "assign it to a name of its module" if self._origin is None else "it is a view: pickle the signal"
        raise pickle.PicklingError(f"cannot pickle signal {self.name!r}: it is not found by that name; {advice}")

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
    def connect(self, *, sender: object = None, **options: Unpack[AllOptions]) -> Callable[[F], F]: ...

    def connect(  # noqa: PLR0913  Django's parameters, and the options
        self,
        receiver: Receiver = _MISSING,
        sender: object = None,
        weak: bool = True,  # noqa: FBT001, FBT002  Django's order of parameters
        dispatch_uid: Hashable | None = None,
        *,
        priority: float = 0,
        subclasses: bool = False,
        in_thread: bool | CapacityLimiter = False,
        timeout: float | None = None,
        once: bool = False,
        replace: bool = False,
    ) -> Any:
        """Have a receiver called by every send; returns the receiver, so that this is a decorator too.

        A receiver is any callable, sync or async, and gets `signal`, `sender` and the sent arguments by name: all of
        them if it takes `**kwargs`, else those that it names.

        The same receiver and sender, or the same `dispatch_uid` and sender, is one connection: connecting it again
        keeps its place and takes the new options, for a send under way as well. A different receiver under a
        `dispatch_uid` that is taken is not added, unless `replace` is true.

        A weakly connected receiver (or sender) that dies unheard is warned of at the line of this call, once: one that
        dies in the statement of this call, and a nested function, a lambda, a wrapper or a partial that dies before
        the signal is sent (`ReceiverLostWarning`, at the signal's next use). On free-threaded builds of Python,
        functions of modules and classes die when the garbage collector runs, not before.

        Args:
            receiver: What to call; without one, a decorator is returned.
            sender: Hear only sends of this sender: the same object, or for `str`, `bytes`, `int`, `float`, `complex`
                and `bool` one of the same type and value. `None` hears all. The connection ends with the sender; one
                that cannot be weakly referenced is kept alive instead.
            weak: Let the receiver die (for a bound method: its object or its function); the connection then ends.
            dispatch_uid: A hashable identity to use in place of the receiver's own.
            priority: Receivers with a higher one are called first.
            subclasses: With a class as the sender, hear its subclasses as well.
            in_thread: Call a sync receiver in a worker thread, with the sender's context. An `anyio.CapacityLimiter`
                limits how many run at once, instead of 40 for each event loop. A send from inside such a thread waits
                for no limiter.
            timeout: Seconds that an async receiver may take before it is cancelled and `TimeoutError` raised.
            once: Disconnect before the first call. However many sends race, there is one call at most.
            replace: Take the place of a different receiver that has the same `dispatch_uid` and sender.

        Raises:
            TypeError: the receiver is not callable; it is to be weak and does not support weak references; the
                `dispatch_uid` is not hashable.
            InvalidReceiverError: the receiver cannot be called with what the signal sends, or an option does not
                fit it. A `ValueError`. Nothing has been connected.
        """
        in_thread = in_thread if isinstance(in_thread, CapacityLimiter) else bool(in_thread)
        options = Options(bool(weak), priority, bool(subclasses), in_thread, timeout, bool(once))
        options = DEFAULTS if options == DEFAULTS else options  # one object, as most have these
        if receiver is _MISSING:
            return partial(self.connect, sender=sender, dispatch_uid=dispatch_uid, replace=replace, **options._asdict())
        shape = self._examine(receiver, sender, dispatch_uid, options)
        frame = calling_frame(type(self))
        place = frame.f_code, frame.f_lasti
        connection = connection_to(receiver, dispatch_uid, self._registry.on_death, place, options, shape)
        self._registry.connect(connection, sender, replace=replace)
        return receiver

    def checked(self, receiver: Callable[P, X]) -> Callable[P, X]:
        """The receiver as it is, for type checkers: its parameters are held to those that the signal declares.

        `order_paid.connect(order_paid.checked(ship))`, or as a decorator below `@order_paid.connect`. `sender` is its
        first parameter; it takes every argument, with defaults where the stub has some, or `**named: object` for those
        that it does not name. Types cannot say "names some of these": `connect` itself finds unknown names at run time.
        """
        return receiver

    def _callable(self, receiver: Receiver) -> Receiver:
        if callable(receiver):
            return receiver
        raise TypeError(
            f"cannot connect to signal {self.name!r}: a receiver must be callable, not {type(receiver).__name__!r}"
        )

    def _examine(self, receiver: Receiver, sender: object, uid: Hashable | None, options: Options) -> Shape:
        """Refuse what no send could call, before anything is changed."""
        self._callable(receiver)
        shape, problem = examine(receiver, self.providing_args)
        problem = problem or options.problem(sender, is_async=shape.is_async)
        if problem:
            raise InvalidReceiverError(self, receiver, describe(receiver), problem)
        try:
            hash(uid)
            if options.weak:
                for part in (receiver.__self__, receiver.__func__) if is_a(receiver, MethodType) else (receiver,):
                    ref(part)
        except Exception as error:
            hint = "; connect it with weak=False" if options.weak and "weak reference" in str(error) else ""
            raise TypeError(f"cannot connect {describe(receiver)} to signal {self.name!r}: {error}{hint}") from error
        return shape

    def disconnect(
        self, receiver: Receiver | None = None, sender: object = None, dispatch_uid: Hashable | None = None
    ) -> bool:
        """End a connection; returns whether there was one.

        Name it as it was connected: by the receiver or its `dispatch_uid`, and the sender. Afterwards no send calls the
        receiver, those under way included. A send in another thread that has already reached the receiver may still be
        calling it: this does not wait for that call.

        Raises:
            TypeError: neither a receiver nor a `dispatch_uid` was given.
        """
        if receiver is None and dispatch_uid is None:
            raise TypeError(f"disconnect() from signal {self.name!r} needs the receiver or its dispatch_uid")
        return self._registry.disconnect(receiver, sender, dispatch_uid)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The live connections, for all senders and each single one, in order; the same objects each time."""
        return tuple(each for each in self._registry.all_connections() if each.is_receiver)

    def _registries(self) -> dict[str, Registry]:
        """Where the connections are; a subclass may keep those of several phases apart, and names them."""
        return {"": self._registry}

    def has_listeners(self, sender: object = None) -> bool:
        """Whether a send from this sender would reach a receiver or a stream, muted or not."""
        return any(each.target() is not None for each in self._registry.connections_for(sender))

    def receivers_for(self, sender: object) -> list[Receiver]:
        """The receivers that a send from this sender would call, in order, muted or not."""
        found = (each.target() for each in self._registry.connections_for(sender) if each.is_receiver)
        return [receiver for receiver in found if receiver is not None]

    def connected(self, receiver: F, sender: object = None, **options: Unpack[AllOptions]) -> AbstractContextManager[F]:
        """Connect for the length of a `with` block; takes the options of `connect`, and gives the receiver.

        Afterwards there is exactly what was there before: a receiver that was connected already has its options and
        its place again. The receiver is kept alive meanwhile. Blocks may nest and overlap in any order.

        What `connect` refuses is refused as the block is entered. Not a decorator: that is refused with a `TypeError`.
        """
        connect = partial(cast("Any", self.connect), receiver, sender, **options)
        return Block(self._registry.connected(receiver, sender, options.get("dispatch_uid"), connect))

    def muted(self, *receivers: Receiver, everywhere: bool = False) -> AbstractContextManager[None]:
        """For the length of a `with` block, let sends reach nobody, no stream either; or, given receivers, not these.

        Only sends made in the current context notice (its task, and the tasks and `to_thread` calls started from it),
        or all sends of the process with `everywhere`. What a `Background` accepts inside the block stays muted, also
        when it runs later. Sends under way go on. Blocks may nest and overlap in any order.

        Raises:
            TypeError: one of the receivers is not callable; or used as a decorator (`asignals.testing.muted` is one).
        """
        for receiver in receivers:
            self._callable(receiver)
        return Block(self._registry.muted(receivers, everywhere=everywhere))

    # -- listening -------------------------------------------------------------------------------------------------

    def stream(
        self, sender: object = None, *, where: Where[P] | None = None, buffer: int = 64, overflow: Overflow = "wait"
    ) -> Stream[P]:
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
            overflow: What happens to an event that finds the buffer full. `"wait"`: its sender waits for capacity, and
                nothing is lost. `"drop_oldest"`, `"drop_newest"`: an event is dropped, and counted in the stream's
                `dropped`. `"error"`: `BufferFull` is raised to the sender, or returned by `send_robust`.

        Raises:
            TypeError, ValueError: one of the arguments is of another kind.
        """
        return Stream((self,), sender, where, buffer, overflow)

    async def wait(self, sender: object = None, *, where: Where[P] | None = None) -> Event[P]:
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


@overload
def signal(stub: Callable[P, Coroutine[Any, Any, R_co]]) -> Signal[P, R_co]: ...


@overload
def signal(stub: Callable[P, R_co]) -> Signal[P, R_co]: ...


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
    that of the responses. `send` fills in the defaults, and type checkers hold every `send` to the types. Where the
    return type is not `None`, end the body with `raise NotImplementedError`: mypy and pyright accept that, and
    refuse a body that returns nothing.

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
    name = name or f"{stub.__module__}.{stub.__qualname__}"
    kind = class_for(Signal, declared.names, declared)
    made: Signal[..., Any] = kind(declared.names, name=name, doc=stub.__doc__, task_group=task_group, limit=limit)
    made._stub = stub
    made.__wrapped__ = stub  # type: ignore[attr-defined]  # so that doctest finds the examples in its docstring
    made.__module__ = stub.__module__
    return made


class _SignalMaker(Protocol):
    """What `@signal(...)` with options returns."""

    @overload
    def __call__(self, stub: Callable[P, Coroutine[Any, Any, R_co]], /) -> Signal[P, R_co]: ...
    @overload
    def __call__(self, stub: Callable[P, R_co], /) -> Signal[P, R_co]: ...


class _ReceiverOptions(AllOptions, total=False):
    on: Literal["flush", "commit", "rollback"]


def receiver(
    signals: Signal[..., Any] | Iterable[Signal[..., Any]],
    *,
    sender: object = None,
    **options: Unpack[_ReceiverOptions],
) -> Callable[[F], F]:
    """Connect the decorated function to one or several signals, as Django's decorator of that name.

    Args:
        signals: A signal, or an iterable of them.
        sender: A sender, or a list, tuple or set of them; `None` hears all.
        options: As for `connect` of the signal, which has its own default for what is left out, and for model signals
            `on`, the phase.

    Raises:
        TypeError: `signals` is something else, or one of the two is empty.
        Others: what `connect` raises; then the function is connected to none of them.
    """
    chosen = [signals] if isinstance(signals, Signal) or not isinstance(signals, Iterable) else list(signals)
    senders = list(sender) if isinstance(sender, list | tuple | set | frozenset) else [sender]
    if not chosen or not senders or not all(isinstance(one, Signal) for one in chosen):
        raise TypeError(f"receiver() takes a signal, or several, and at least one sender; not {signals!r:.80}")

    def connect_all(function: F) -> F:
        chosen[0]._callable(function)
        with ExitStack() as undo:
            for one, each in itertools.product(chosen, senders):
                put_back = one._registry.remember(function, each, options.get("dispatch_uid"))
                one.connect(function, each, **cast("Any", options))
                undo.callback(put_back)
            undo.pop_all()
        return function

    return connect_all


# -- all signals -------------------------------------------------------------------------------------------------------

_signals: WeakValueDictionary[int, Signal[..., Any]] = WeakValueDictionary()  # by id: a subclass may compare equal


def signals() -> tuple[Signal[..., Any], ...]:
    """All signals that are alive in this process, by name; without their views."""
    found = [each() for each in _signals.valuerefs()]  # iterating is not safe: some may die in other threads
    return tuple(sorted((each for each in found if each is not None), key=lambda signal: signal.name))
