"""A context manager that also decorates functions, generators and test classes, or refuses to.

Standard library only, and knows nothing of signals.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import unittest
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

T = TypeVar("T")
D = TypeVar("D", bound="Callable[..., Any]")

_BLOCKS: Final = "__asignals_blocks__"
_LATE: Final = (  # what runs when it is used, and not when it is made
    types.GeneratorType,
    types.AsyncGeneratorType,
    contextlib._GeneratorContextManager,
    contextlib._AsyncGeneratorContextManager,
)


class Block(Generic[T]):
    """What a function such as `muted` returns: use it in a `with` statement, or as a decorator.

    As a decorator it makes a new block for every call or test:

    - of a function or a coroutine function: around each call;
    - of a generator function, sync or async, as fixtures are: from its start to its end, for every context, because
      the code that runs between its `yield`s may be in another one;
    - of a subclass of `unittest.TestCase`: around each test, from before `setUp` to after the last cleanup;
    - of a test class of pytest: around each test, from before its fixtures and `setup_method` to after them, for every
      context. It needs pytest's plugin `asignals.pytest_plugin`; without it each test raises `RuntimeError`.

    In a `with` statement it may be used again after its end, but not while it is open.

    Raises:
        TypeError: it decorates what it can't surround: a fixture (put it below `@pytest.fixture`), a classmethod or
            staticmethod (below that too), a class without tests; or a decorated plain function returns a coroutine or
            a generator, which would run after the block.
        RuntimeError: entered while it is open.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], AbstractContextManager[T]],
        everywhere: Callable[[], AbstractContextManager[T]] | None = None,
    ) -> None:
        """Name the block for messages, as its users call it; `make` and `everywhere` make new context managers.

        `everywhere` is for generators and test classes of pytest; by default `make`.
        """
        self._name = name
        self._make = make
        self._everywhere = everywhere or make
        self._open: AbstractContextManager[T] | None = None
        self._open_tests = 0

    def __enter__(self) -> T:
        if self._open is not None:
            raise RuntimeError(f"this {self._name}() block is open already; call {self._name}() again for another one")
        manager = self._make()
        value = manager.__enter__()
        self._open = manager
        return value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        manager, self._open = self._open, None
        return None if manager is None else manager.__exit__(kind, error, traceback)

    def __call__(self, decorated: D) -> D:
        """Decorate a function or a test class."""
        wrapped: Any = decorated
        if isinstance(decorated, type):
            if issubclass(decorated, unittest.TestCase):
                _surround_unittest(decorated, self._make)
            else:
                self._surround_tests(decorated)
        else:
            wrapped = surround(decorated, self._name, self._make, self._everywhere)
        return cast("D", wrapped)

    @contextlib.contextmanager
    def around_test(self) -> Iterator[None]:
        """For the pytest plugin: the block of one test of a decorated class."""
        with self._everywhere():
            self._open_tests += 1
            try:
                yield
            finally:
                self._open_tests -= 1

    def _surround_tests(self, cls: type) -> None:
        """Leave the block in the class for the plugin, and let each test check that the plugin has entered it."""
        tests = [name for name in dir(cls) if name.startswith("test")]
        if not tests:
            raise TypeError(
                f"{self._name}() can't decorate {cls.__qualname__}: it has no method whose name starts with 'test'"
            )
        for name in tests:
            test = inspect.getattr_static(cls, name)
            if inspect.isfunction(test):
                setattr(cls, name, surround(test, self._name, self._checked))
        setattr(cls, _BLOCKS, (*vars(cls).get(_BLOCKS, ()), self))

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        if not self._open_tests:
            msg = (
                f"a class decorated with {self._name}() needs pytest with the plugin asignals.pytest_plugin, or must "
                "be a unittest.TestCase: nothing has entered the block before this test"
            )
            raise RuntimeError(msg)
        yield

    def __repr__(self) -> str:
        return f"<asignals {self._name}() block, {'closed' if self._open is None else 'open'}>"


def blocks_of(cls: type) -> list[Block[Any]]:
    """The blocks that decorate a test class of pytest and its base classes, the outermost first."""
    return [block for base in reversed(cls.__mro__) for block in reversed(vars(base).get(_BLOCKS, ()))]


def surround(
    function: Callable[..., Any],
    name: str,
    make: Callable[[], AbstractContextManager[Any]],
    everywhere: Callable[[], AbstractContextManager[Any]] | None = None,
) -> Callable[..., Any]:
    """Put a new block around each call of a function, of whatever kind; `everywhere` makes those of generators."""
    _check(function, name)
    hypothesis: Any = getattr(function, "hypothesis", None)
    if hasattr(hypothesis, "inner_test"):  # around each example, for an async one runs in another context than `given`
        hypothesis.inner_test = surround(hypothesis.inner_test, name, make, everywhere)
        return function
    if _is(function, inspect.iscoroutinefunction):
        wrapper = _around_coroutine(function, make)
    elif _is(function, inspect.isasyncgenfunction):
        wrapper = _around_async_generator(function, everywhere or make)
    elif _is(function, inspect.isgeneratorfunction):
        wrapper = _around_generator(function, everywhere or make)
    else:
        wrapper = _around_function(function, name, make)
    return functools.wraps(function)(wrapper)


def _is(function: Callable[..., Any], kind: Callable[[Any], bool]) -> bool:
    """Whether a function, a partial of one, or the `__call__` of an object is of a kind."""
    return kind(function) or kind(getattr(function, "__call__", None))  # noqa: B004  its kind is asked for


def _around_function(
    function: Callable[..., Any], name: str, make: Callable[[], AbstractContextManager[Any]]
) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with make():
            result = function(*args, **kwargs)
            if inspect.isawaitable(result) or isinstance(result, _LATE):
                _refuse_late(function, name, result)
            return result

    return wrapper


def _around_coroutine(
    function: Callable[..., Any], make: Callable[[], AbstractContextManager[Any]]
) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        with make():
            return await function(*args, **kwargs)

    return wrapper


def _around_generator(
    function: Callable[..., Any], make: Callable[[], AbstractContextManager[Any]]
) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with make():
            return (yield from function(*args, **kwargs))

    return wrapper


def _around_async_generator(
    function: Callable[..., Any], make: Callable[[], AbstractContextManager[Any]]
) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        with make():
            generator = function(*args, **kwargs)
            step = generator.asend(None)
            while True:
                try:
                    item = await step
                except StopAsyncIteration:
                    return
                try:
                    step = generator.asend((yield item))
                except GeneratorExit:
                    await generator.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001  thrown into this one for that one
                    step = generator.athrow(error)

    return wrapper


def _check(function: object, name: str) -> None:
    """Refuse what a wrapper would hide or never be called for."""
    kind = type(function).__name__
    if isinstance(function, (classmethod, staticmethod)):
        hint = f": put it below @{kind}"
    elif kind == "FixtureFunctionDefinition" or hasattr(function, "_pytestfixturefunction"):
        hint = ": put it below @pytest.fixture"
    elif not callable(function):
        hint = ""
    else:
        return
    raise TypeError(f"{name}() decorates functions and test classes, not a {kind}{hint}")


def _refuse_late(function: object, name: str, result: Any) -> NoReturn:
    close = getattr(result, "close", None)
    if inspect.iscoroutine(result) and close is not None:
        close()  # so that Python does not warn of it, too
    msg = (
        f"{name}() decorates {getattr(function, '__qualname__', function)!r}, a plain function that returned a "
        f"{type(result).__name__}, which would run after the block: decorate the async or generator function itself"
    )
    raise TypeError(msg)


def _surround_unittest(cls: type[unittest.TestCase], make: Callable[[], AbstractContextManager[Any]]) -> None:
    """Enter a block before each test's `setUp`, and leave it as its last cleanup; `debug` runs tests, too."""
    for name in ("run", "debug"):
        setattr(cls, name, _running(cls, name, vars(cls).get(name), make))


def _running(
    cls: type[unittest.TestCase], name: str, own: Any, make: Callable[[], AbstractContextManager[Any]]
) -> Callable[..., Any]:
    def run(self: unittest.TestCase, *args: Any, **kwargs: Any) -> Any:
        run_test = getattr(super(cls, self), name) if own is None else own.__get__(self)
        set_up = self.setUp  # as the subclass defines it: one that does not call super().setUp() hides nothing

        def enter_and_set_up() -> None:
            self.enterContext(make())  # in the context that setUp runs in, which for an async test is its own
            set_up()

        before = vars(self).get("setUp")
        self.setUp = enter_and_set_up  # type: ignore[method-assign]
        try:
            return run_test(*args, **kwargs)
        finally:
            del self.setUp
            if before is not None:
                self.setUp = before  # type: ignore[method-assign]

    return functools.wraps(getattr(cls, name))(run)
