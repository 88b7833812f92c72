import asyncio
import contextlib
import functools
import gc
import inspect
import itertools
import keyword
import linecache
import pydoc
import sys
import traceback
import unicodedata

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asignals import Signal, monitor, signal
from asignals._core import written
from asignals._core.connection import Connection
from asignals._core.objects import Shape
from asignals._core.written import write_loop

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    """Nothing here waits: two loops will do."""
    return request.param


def is_possible(name):
    plain = unicodedata.normalize("NFKC", name)
    return name.isidentifier() and not keyword.iskeyword(plain) and plain not in {"sender", "signal", "__debug__"}


written_functions = [
    Signal(["a"]).send.__func__,
    Signal(["a"]).send_robust.__func__,
    write_loop(("a",), (Shape(is_async=True, wanted=None),)),
    write_loop(None, (), "watched"),
]

# Names that the code might use itself: builtins, everything in the template and in the modules around it, dunders.
suspects = sorted(
    {
        *dir(__builtins__ if not isinstance(__builtins__, dict) else __import__("builtins")),
        *(name.strip("_") for function in written_functions for name in function.__globals__),
        *(name for function in written_functions for name in function.__globals__),
        *(name for function in written_functions for name in function.__code__.co_varnames),
        *(name.strip("_") for function in written_functions for name in function.__code__.co_varnames),
        *dir(Signal),
        *[
            "self",
            "plan",
            "link",
            "receiver",
            "response",
            "results",
            "error",
            "pair",
            "named",
            "robust",
            "_",
            "__",
            "___",
        ],
        *["cls", "args", "kwargs", "await_", "match", "type", "case", "print", "weak", "func", "method", "arguments"],
    }
)
names = st.sampled_from([name for name in suspects if is_possible(name)]) | st.text(
    st.characters(categories=["Lu", "Ll", "Lt", "Lm", "Lo", "Nl", "Mn", "Nd", "Pc"]), min_size=1, max_size=5
).filter(is_possible)
sets_of_names = st.lists(names, max_size=6, unique_by=lambda name: unicodedata.normalize("NFKC", name))


async def slow(**named):
    return named


class Handler:
    def hear(self, /, **named):
        return named

    async def hear_async(self, /, **named):
        return named


# -- collisions --


@settings(max_examples=60, deadline=None)
@given(sets_of_names)
@example(["_", "__", "___self", "____send", "_results"])
@example(["Exception", "is_awaitable", "deliver", "watchers", "annotate", "log_failure"])
@example(["__class__", "__name__", "__loader__", "__builtins__", "__file__"])
@example(["self", "plan", "connection", "receiver", "error", "robust", "named"])
@example(["ﬁ", "ª", "\U0001d418"])
async def test_no_name_collides_with_the_generated_code(declared):
    """Whatever names a signal declares, every kind of receiver gets exactly what was sent under them."""
    made = Signal(declared)
    plain = [unicodedata.normalize("NFKC", name) for name in declared]
    sent = {name: object() for name in plain}
    handler = Handler()

    def hear(**named):
        return named

    for each in (hear, slow, handler.hear, handler.hear_async, functools.partial(hear)):
        made.connect(each, weak=False)
    made.connect(hear, weak=False, dispatch_uid="once", once=True)
    expected = {"signal": made, "sender": "s", **sent}
    assert [named for _, named in await made.send("s", **sent)] == [expected] * 6
    assert [named for _, named in await made.send_robust("s", **sent)] == [expected] * 5
    assert [named for _, named in await made.using().send("s", **sent)] == [expected] * 5
    loose = Signal()
    loose.connect(hear)
    assert await loose.send("s", **sent) == [(hear, {**expected, "signal": loose})]
    assert await loose.send_robust("s", **sent) == [(hear, {**expected, "signal": loose})]


@settings(max_examples=60, deadline=None)
@given(sets_of_names)
async def test_receivers_that_choose_get_what_they_name(declared):
    """A receiver that names one of the arguments gets that one, whatever it is called."""
    made = Signal(declared)
    for name in made.providing_args:
        namespace = {}
        exec(f"def hear({name}): return {name}", namespace)  # noqa: S102  a receiver for any name
        made.connect(namespace["hear"], weak=False)
    sent = {name: object() for name in made.providing_args}
    assert [response for _, response in await made.send("s", **sent)] == list(sent.values())


@pytest.mark.parametrize("mode", [{}, {"task_group": anyio.create_task_group}], ids=["sequential", "group"])
@pytest.mark.parametrize("is_watched", [False, True])
async def test_more_ways_to_call_receivers_than_a_loop_is_written_for(mode, is_watched):
    """Each gets the arguments that it takes, whether the loop has a branch for it or not."""
    made, other, expected = Signal([*"abcd"], **mode), Signal(), []
    for wanted in itertools.chain.from_iterable(itertools.combinations("abcd", count) for count in range(5)):
        namespace = {}
        exec(f"def hear({', '.join(wanted)}): return [{', '.join(wanted)}]", namespace)  # noqa: S102
        made.connect(namespace["hear"], weak=False)
        expected.append([name.upper() for name in wanted])

    @functools.singledispatch
    def hear(d, **named):
        return type(d), sorted(named)

    async def hear_forwarded(**named):
        return sorted(named)

    other.connect(hear_forwarded)
    made.connect(hear)
    made.connect(other.send)
    expected += [(str, ["a", "b", "c", "sender", "signal"]), [(hear_forwarded, [*"abcd", "sender", "signal"])]]
    with monitor(lambda report: None) if is_watched else contextlib.nullcontext():
        results = await made.send("s", a="A", b="B", c="C", d="D")
    assert [response for _, response in results] == expected


def test_every_suspect_is_really_tried():
    """The names that are tried include what the generated code uses."""
    for name in ("receiver", "results", "connection", "plan", "Exception", "self", "is_awaitable"):
        assert name in suspects


# -- shared and bounded --


async def test_signals_with_the_same_names_share_their_code():
    """The code is generated once for each set of names."""
    first, second = Signal(["a", "b"]), Signal(["a", "b"])
    assert first.send.__func__.__code__ is second.send.__func__.__code__
    assert first.send_robust.__func__.__code__ is second.send_robust.__func__.__code__
    assert type(first) is type(second)
    typed = signal(lambda sender, *, a, b=2: None)
    assert typed.send.__func__.__code__ is first.send.__func__.__code__


@pytest.mark.parametrize("names", [["sent_to_nobody_first"], None])
async def test_a_first_send_to_nobody_does_not_slow_down_later_ones(names, monkeypatch):
    """A receiver is called by the loop itself, also where the loop was written before anybody was connected."""

    async def hear(**named):
        """Hear everything."""

    write_loop.cache_clear()
    some = Signal(names)
    await some.send(None, sent_to_nobody_first=1)
    some.connect(hear)
    monkeypatch.setattr(Connection, "call", None)  # the slower way
    assert await some.send(None, sent_to_nobody_first=1) == [(hear, None)]


async def test_stubs_with_the_same_names_have_their_own_defaults():
    """Sharing the code shares no defaults."""
    one, two = signal(lambda sender, *, a=1: None), signal(lambda sender, *, a=2: None)

    def hear(a):
        return a

    one.connect(hear)
    two.connect(hear)
    assert await one.send(None) == [(hear, 1)]
    assert await two.send(None) == [(hear, 2)]
    with pytest.raises(TypeError):
        await Signal(["a"]).send(None)


def keywords(prefix, count=3):
    return {f"{prefix}_{number}": number for number in range(count)}


async def test_keywords_that_never_come_again_write_no_code():
    """An undeclared signal that a client sends ever new keywords keeps nothing of them."""
    made = Signal()
    made.connect(slow)
    for method in (made.send, made.send_robust):
        await method(None, **keywords("first"))
    before = len(written._often_sent), len(linecache.cache)
    for number in range(2000):
        for method in (made.send, made.send_robust):
            assert await method(None, **keywords(f"name{number}")) == [
                (slow, {"signal": made, "sender": None, **keywords(f"name{number}")})
            ]
    assert (len(written._often_sent), len(linecache.cache)) == before
    assert len(written._uses) <= 256


async def test_keywords_that_fail_keep_nothing_in_linecache():
    """A traceback of a send with new keywords leaves no lines behind."""
    made = Signal()

    def fails(**named):
        raise ValueError

    made.connect(fails)

    async def fail(number):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  what it raises
            await made.send(None, **keywords(f"failing{number}"))
        traceback.format_exception(caught.value)

    await fail(0)
    before = len(linecache.cache)
    for number in range(1, 50):
        await fail(number)
    assert len(linecache.cache) == before


async def test_keywords_that_come_again_are_written_once():
    """The send of the same keywords is written after some uses, and its responses stay the same."""
    made = Signal()
    made.connect(slow)
    for _ in range(30):
        (pair,) = await made.send(None, often=1, again=2)
        assert pair == (slow, {"signal": made, "sender": None, "often": 1, "again": 2})
    assert ("often", "again") in written._often_sent


@pytest.mark.parametrize("method", ["send", "send_robust"])
async def test_other_keywords_than_those_that_come_again_arrive(method):
    """A loop that is written for some keywords is left for a send of others, which arrive as well."""
    made = Signal()
    made.connect(slow)
    send = getattr(made, method)
    for named in [{"same": 1}] * 30 + [{"other": 2}, {"same": 3, "more": 4}, {}]:
        assert (await send(None, **named))[0][1] == {"signal": made, "sender": None, **named}


@pytest.mark.parametrize("method", ["send", "send_robust"])
async def test_a_reserved_name_is_refused_at_the_call_as_often_as_it_comes(method):
    """A send of `signal` raises before it is awaited, also where the loop is written for other keywords."""
    made = Signal()
    made.connect(slow)
    send = getattr(made, method)
    for _ in range(30):
        await send(None, kept=1)
        with pytest.raises(TypeError, match="'signal' is reserved"):
            send(None, signal=1)


async def test_who_hears_keywords_by_turns_is_settled_at_the_call():
    """A loop that leaves a send to another one calls the receivers that were connected at the call, and no others."""
    made = Signal()
    made.connect(slow)
    for _ in range(30):
        await made.send(None, turn=1)

    def late(**named):
        raise AssertionError

    sending = made.send(None, turn=1, other=2)
    made.connect(late)
    assert await sending == [(slow, {"signal": made, "sender": None, "turn": 1, "other": 2})]


async def test_names_that_hash_as_they_like_arrive():
    """A name of a subclass of `str` that equals no other arrives, however often the plain name was sent before."""

    class Odd(str):
        __slots__ = ()

        def __eq__(self, other):
            return self is other

        def __hash__(self):
            return 1

    made, odd = Signal(), Odd("odd")
    made.connect(slow)
    for _ in range(30):
        await made.send(None, odd=1)
        (pair,) = await made.send(None, **{odd: 2})
        assert list(pair[1].values()) == [made, None, 2]
        assert list(map(str.__str__, pair[1])) == ["signal", "sender", "odd"]


async def test_long_and_impossible_names_are_never_written():
    """Names of many characters, and names that Python cannot have, are sent as they are."""
    made = Signal()
    made.connect(slow)
    for named in ({"x" * 2000: 1}, {"not a name": 1}, {"class": 1}, {"\ufb01": 1}):
        for _ in range(30):
            assert (await made.send(None, **named))[0][1] == {"signal": made, "sender": None, **named}
        assert tuple(named) not in written._often_sent


async def test_the_number_of_written_sets_is_bounded(monkeypatch):
    """After the first sets of keywords no more are written."""
    made = Signal()
    made.connect(slow)
    monkeypatch.setattr(written, "_often_sent", set())
    monkeypatch.setattr(written, "_MOST_SETS", 3)
    for number in range(6):
        for _ in range(30):
            await made.send(None, **{f"bounded_{number}": 1})
    assert len(written._often_sent) == 3


async def test_a_signal_and_its_methods_make_no_reference_cycle():
    """A declared signal is freed when its last reference goes."""
    import weakref

    gc.disable()
    try:
        made = Signal(["a"])
        alive = weakref.ref(made)
        await made.send(None, a=1)
        del made
        assert alive() is None
    finally:
        gc.enable()


# -- what a reader sees --


@pytest.mark.parametrize("method", ["send", "send_robust"])
@pytest.mark.parametrize("declared", [("odd_a", "odd_b"), None], ids=["declared", "any"])
async def test_tracebacks_show_the_generated_lines(method, declared, caplog):
    """Every frame of a failing send has its source line, also where other code was made for the same names."""
    made = Signal(declared)
    robust = method == "send_robust"

    def fails(**named):
        raise KeyboardInterrupt if robust else ValueError

    for other in (Signal(["odd_a", "odd_b"]), Signal()):
        other.connect(fails)
        with pytest.raises((ValueError, KeyboardInterrupt)) as caught:
            await getattr(other, method)(None, odd_a=1, odd_b=2)
        traceback.format_exception(caught.value)
    made.connect(fails)
    with pytest.raises((ValueError, KeyboardInterrupt)) as caught:
        await getattr(made, method)(None, odd_a=1, odd_b=2)
    frames = traceback.extract_tb(caught.value.__traceback__)
    generated = [frame for frame in frames if frame.filename.startswith("<asignals ")]
    assert [frame.name for frame in generated] == ["_loop"]
    assert ("odd_a=" if declared else "**_named") in generated[0].line
    assert "receiver(" in generated[0].line
    assert all(frame.line for frame in frames)


async def test_different_code_never_has_the_same_file_name():
    """Tracebacks tell generated functions apart by name, so names differ wherever lines do."""
    made = [
        Signal(["q", "r"]).send.__func__,
        Signal(["q", "r"]).send_robust.__func__,
        Signal(["q_r"]).send.__func__,
        Signal(["q", "r"])._bind.__func__,
        *[write_loop(("q", "r"), (Shape(is_async=False, wanted=frozenset(wanted)),)) for wanted in ("", "q", "r")],
        write_loop(("q", "r"), (Shape(is_async=False, wanted=frozenset("q"), by_position="q"),)),
        write_loop(("q", "r"), (Shape(is_async=False, wanted=None, takes_signal=False),)),
        *[write_loop(("q", "r"), (Shape(is_async=True, wanted=wanted),)) for wanted in (None, frozenset("q"))],
        *[write_loop(("q", "r"), (Shape(is_async=False, wanted=None, is_method=is_method),)) for is_method in (0, 1)],
    ]
    names = {function.__code__.co_filename for function in made}
    assert len(names) == len(made)
    assert all(name.startswith("<") and name.endswith(">") for name in names)


def test_code_is_written_at_the_first_send():
    """Declaring many signals with different arguments writes nothing: 300 take no time."""
    made = [Signal([f"later_{number}", "other"]) for number in range(300)]
    assert not [name for name in linecache.cache if "later_" in name]
    made[0].send(None, later_0=1, other=2).close()
    assert {name for name in linecache.cache if "later_" in name} == {
        "<asignals send(later_0, other)>",
        "<asignals loop(later_0, other) of await _receiver(signal=_self, sender=sender, later_0=later_0, other=other)>",
    }


async def test_the_signature_is_the_real_one():
    """`inspect.signature` of send and send_robust shows the declared arguments."""
    for method in ("send", "send_robust"):
        assert str(inspect.signature(getattr(Signal(["size", "toppings"]), method))) == "(sender, *, size, toppings)"
        assert str(inspect.signature(getattr(Signal([]), method))) == "(sender)"
        assert list(inspect.signature(getattr(Signal(), method)).parameters) == ["sender", "named"]


async def test_the_signature_of_a_typed_signal_has_types_and_defaults():
    """A stub's annotations and defaults are those of send."""

    @signal
    def done(sender: str, *, toppings: list[str], size: int = 30) -> None: ...

    for method in (done.send, done.send_robust):
        parameters = inspect.signature(method).parameters
        assert list(parameters) == ["sender", "toppings", "size"]
        assert parameters["size"].annotation is int
        assert parameters["size"].default == 30
        assert parameters["toppings"].kind is inspect.Parameter.KEYWORD_ONLY


async def test_help_shows_the_parameters_and_the_promises():
    """`help(sig.send)` has the real parameters and the docstring of `Signal.send`."""
    made = Signal(["size", "toppings"])
    text = pydoc.plain(pydoc.render_doc(made.send))
    assert "(sender, *, size, toppings)" in text
    assert inspect.getdoc(Signal.send).splitlines()[0] in text
    assert made.send.__name__ == "send"
    assert made.send.__qualname__ == "Signal.send"


async def test_send_is_a_coroutine_function():
    """Frameworks that ask see what send is."""
    ask = inspect.iscoroutinefunction if sys.version_info >= (3, 12) else asyncio.iscoroutinefunction
    for made in (Signal(), Signal(["a"]), signal(lambda sender: None)):
        assert ask(made.send)
        assert ask(made.send_robust)


# -- subclasses --


class Loud(Signal):
    """Counts its sends."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.sends = []

    async def send(self, sender, **named):
        self.sends.append(named)
        return await super().send(sender, **named)


class Polite(Signal):
    async def send(self, sender, **named):
        return [("polite", None), *await super().send(sender, **named)]

    async def send_robust(self, sender, **named):
        return await self.send(sender, **named)


class Both(Loud, Polite):
    pass


@pytest.mark.parametrize("declared", [None, ["a"]], ids=["any", "declared"])
async def test_a_subclass_may_override_send(declared, collect):
    """An overridden send is what is called, and `super().send` does the work."""
    made = Loud(declared)
    made.connect(collect)
    await made.send("s", a=1)
    await made.send_robust("s", a=2)
    assert made.sends == [{"a": 1}]
    assert [call["a"] for call in collect.calls] == [1, 2]
    assert collect.calls[0] == {"signal": made, "sender": "s", "a": 1}


@pytest.mark.parametrize("declared", [None, ["a"]], ids=["any", "declared"])
async def test_a_diamond_of_subclasses_calls_each_send_once(declared, collect):
    """Overrides of several bases run in the order of the classes."""
    made = Both(declared)
    made.connect(collect)
    results = await made.send("s", a=1)
    assert results == [("polite", None), (collect, None)]
    assert made.sends == [{"a": 1}]
    assert await made.send_robust("s", a=1) == results
    assert len(made.sends) == 2


async def test_super_checks_declared_arguments(collect):
    """`super().send` of a declared signal refuses what does not fit."""
    made = Loud(["a"])
    made.connect(collect)
    with pytest.raises(TypeError, match="'b'"):
        await made.send(None, a=1, b=2)
    assert collect.calls == []


async def test_views_of_a_subclass_are_of_the_subclass():
    """`using` keeps class, overrides and attributes."""
    made = Loud(["a"])
    view = made.using(limit=3)
    assert isinstance(view, Loud)
    await view.send(None, a=1)
    assert made.sends == [{"a": 1}]


async def test_a_subclass_may_override_connect():
    """`connected`, `receiver` and decorators go through an overridden connect."""
    from asignals import receiver

    class Strong(Signal):
        def connect(self, *args, weak=False, **options):
            return super().connect(*args, weak=weak, **options)

    made = Strong()
    made.connect(lambda **named: 1)
    receiver(made)(lambda **named: 2)
    made.connect()(lambda **named: 3)
    assert [response for _, response in await made.send(None)] == [1, 2, 3]
