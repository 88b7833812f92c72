import copy
import inspect
import itertools
import keyword
import string
import sys
import types
import unicodedata
from enum import Enum

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asignals
from asignals import Background, DeclarationError, Signal, signal

pytestmark = pytest.mark.loops("asyncio")

at_module_level = Signal(["size"])

identifiers = st.text(
    st.characters(categories=["Lu", "Ll", "Lt", "Lm", "Lo", "Nl", "Mn", "Mc", "Nd", "Pc"]), min_size=1, max_size=6
).filter(lambda name: name.isidentifier() and not keyword.iskeyword(unicodedata.normalize("NFKC", name)))


@signal
def pizza_done(sender: object, *, toppings: list[str], size: int = 30) -> None:
    """A pizza left the oven."""


def test_a_signal_without_names_allows_any_keywords():
    """`providing_args` is None where nothing is declared."""
    assert Signal().providing_args is None


def test_declared_names_are_a_tuple_in_order():
    """`providing_args` gives what was declared, whatever kind of iterable it came in."""
    assert Signal(["b", "a"]).providing_args == ("b", "a")
    assert Signal(name for name in "xy").providing_args == ("x", "y")


def test_a_signal_may_declare_that_it_sends_nothing():
    """An empty list of names is not the same as none declared."""
    assert Signal([]).providing_args == ()


@pytest.mark.parametrize(
    "names",
    [
        ["1a"],
        ["a b"],
        ["a-b"],
        [""],
        ["class"],
        ["None"],
        ["await"],
        ["__debug__"],
        ["a", "a"],
        ["fi", "ﬁ"],
        ["a\n"],
        ["\U0001d41class"],
        ["\uff3f_debug__"],
    ],
    ids=repr,
)
def test_names_that_cannot_be_arguments_are_refused(names):
    """A name that Python would not take, or one given twice, is refused when it is declared."""
    with pytest.raises(DeclarationError, match=r"name of an argument|declared twice"):
        Signal(names)


@pytest.mark.parametrize("name", ["sender", "signal", "\u017fender", "\U0001d42cender"])
def test_reserved_names_are_refused_in_every_spelling(name):
    """`sender` and `signal` cannot be declared, nor what the compiler takes for them."""
    with pytest.raises(DeclarationError, match="reserved"):
        Signal([name])


@pytest.mark.parametrize("names", ["toppings", [b"a"], [1], [None], 5, b"ab"], ids=repr)
def test_what_is_no_list_of_strings_is_refused(names):
    """One string instead of a list, and names of other types, are refused."""
    with pytest.raises(TypeError):
        Signal(names)


@pytest.mark.parametrize("name", [b"a", 1, None], ids=repr)
def test_a_name_that_is_no_string_is_told(name):
    """What was given instead of a string is in the message."""
    with pytest.raises(DeclarationError, match=f"{name!r} cannot be the name of an argument"):
        Signal([name])


def test_a_declaration_error_is_both_a_type_error_and_a_value_error():
    """Whichever built-in error a caller expects, it catches this one."""
    assert issubclass(DeclarationError, TypeError)
    assert issubclass(DeclarationError, ValueError)


def test_names_from_an_enumeration_are_taken_by_their_value():
    """Members of a string enumeration declare their values, not what they are formatted as."""

    class Field(str, Enum):  # noqa: UP042  such enumerations exist, and format differently
        SIZE = "size"

    made = Signal([Field.SIZE])
    assert made.providing_args == ("size",)
    assert type(made.providing_args[0]) is str


def test_a_string_with_its_own_format_cannot_write_code():
    """Declared names reach the generated code as they are, not as they format themselves."""

    class Name(str):
        __slots__ = ()

        def __format__(self, spec):
            return "a, __import__('os')"

        def __str__(self):
            return "b"

    assert Signal([Name("a")]).providing_args == ("a",)


@given(identifiers)
def test_names_are_known_as_the_compiler_knows_them(name):
    """A name is normalised as Python normalises identifiers in source."""
    plain = unicodedata.normalize("NFKC", name)
    if plain in {"sender", "signal", "__debug__"}:
        with pytest.raises(DeclarationError):
            Signal([name])
    else:
        assert Signal([name]).providing_args == (plain,)


def test_the_name_is_found_at_the_module_that_assigns_the_signal():
    """A signal without a given name is called `module.attribute`."""
    assert at_module_level.using().name == at_module_level.name == f"{__name__}.at_module_level"


def test_the_name_is_found_in_a_class_body():
    """A signal that is a class attribute is called `module.Class.attribute`."""

    class Shop:
        opened = Signal()

    assert Shop.opened.name.endswith("Shop.opened")


def test_a_given_name_is_kept():
    """`name=` wins over what could be found."""

    class Shop:
        opened = Signal(name="shop/opened")

    assert Shop.opened.name == "shop/opened"


def test_a_signal_that_is_assigned_nowhere_is_named_by_its_line():
    """A local signal's name says where it was made."""
    local = Signal()
    module, _, line = local.name.rpartition(":")
    assert module == __name__
    assert int(line) == inspect.currentframe().f_lineno - 3


typed_at_module_level = Signal[[object], None](["a"])


def test_a_signal_that_is_given_its_types_is_named_and_located_where_it_is_made():
    """`Signal[..., None]()` is made by `typing`, which is not the user's code."""
    made = Signal[..., None]()
    assert made.location == f"{__file__}:{inspect.currentframe().f_lineno - 1}"
    assert typed_at_module_level.name == f"{__name__}.typed_at_module_level"


class Announced(Signal):
    """A user's subclass with an `__init__` of its own."""

    def __init__(self, names=None):
        super().__init__(names)


class AnnouncedTwice(Announced):
    """One further down."""

    def __init__(self):
        super().__init__(["a"])


announced, announced_twice = Announced(), AnnouncedTwice()


def test_a_subclass_with_its_own_init_is_named_and_located_where_it_is_used():
    """Signals of one subclass are told apart: what counts is who makes them, not the line that calls `super()`."""
    assert announced.name == f"{__name__}.announced"
    assert announced_twice.name == f"{__name__}.announced_twice"
    for make in (Announced, AnnouncedTwice):
        local = make()
        line = inspect.currentframe().f_lineno - 1
        assert local.name == f"{__name__}:{line}"
        assert local.location == f"{__file__}:{line}"


def test_a_module_without_a_namespace_does_not_break_the_name(monkeypatch):
    """An object in place of a module, as lazy importers put there, leaves the line for a name."""

    class Opaque:
        __slots__ = ()

    monkeypatch.setitem(sys.modules, "opaque_module", Opaque())
    namespace = {"__name__": "opaque_module", "Signal": Signal}
    exec("made = Signal()", namespace)  # noqa: S102  a namespace of its own is the case
    assert namespace["made"].name == "opaque_module:1"


def test_code_without_a_module_name_can_make_signals():
    """A namespace without `__name__` is no obstacle."""
    namespace = {"Signal": Signal}
    exec("made = Signal()", namespace)  # noqa: S102  a namespace of its own is the case
    assert namespace["made"].name.endswith(":1")


def test_doc_becomes_the_docstring():
    """`doc=` is the signal's `__doc__`."""
    assert Signal(doc="Told.").__doc__ == "Told."


def test_the_repr_names_the_public_class_the_signal_and_the_count():
    """The repr says what somebody would look for in a log."""
    made = Signal(["a", "b"], name="shop.sold")
    assert repr(made) == "<asignals.Signal 'shop.sold' (a, b), 0 receivers>"
    made.connect(print, weak=False)
    assert repr(made) == "<asignals.Signal 'shop.sold' (a, b), 1 receiver>"
    assert repr(made.using(limit=1)) == "<asignals.Signal 'shop.sold' (a, b) (a view), 1 receiver>"


def test_a_copy_of_a_signal_is_the_signal():
    """Whatever holds a signal can be copied, and its copy sends to the same receivers, connected later ones too."""

    class App:
        paid = Signal(["amount"])

        def __init__(self):
            self.signals = [Signal(), pizza_done, self.paid]

    app = App()
    assert copy.deepcopy(app).signals == app.signals
    assert [copy.copy(each) for each in app.signals] == app.signals


# -- stubs --


def test_a_stub_gives_names_docstring_and_name():
    """`@signal` takes the name, the arguments and the docstring from the function."""
    assert isinstance(pizza_done, Signal)
    assert pizza_done.name == f"{__name__}.pizza_done"
    assert pizza_done.providing_args == ("toppings", "size")
    assert pizza_done.__doc__ == "A pizza left the oven."


def test_a_stub_may_be_given_options():
    """`@signal(...)` makes a decorator, and its name wins."""

    @signal(name="pizza/done")
    def done(sender, *, size): ...

    assert done.name == "pizza/done"
    assert done.providing_args == ("size",)


@pytest.mark.anyio
async def test_a_stub_may_be_given_the_way_of_sending():
    """`@signal(task_group=..., limit=...)` is what `Signal` does with them."""
    log = []

    @signal(task_group=anyio.create_task_group, limit=2)
    def sold(sender): ...

    async def receives():
        log.append(1)
        await anyio.lowlevel.checkpoint()
        log.append(-1)

    for number in range(3):
        sold.connect(receives, dispatch_uid=number)
    with anyio.fail_after(60):
        await sold.send(None)
    assert max(itertools.accumulate(log)) == 2


def test_the_stub_is_never_called():
    """Declaring runs none of the stub's code."""

    @signal
    def done(sender):
        pytest.fail("called")

    assert done.providing_args == ()


def test_stubs_may_be_coroutine_functions_and_lambdas():
    """Any function with the right parameters can be a stub."""

    @signal
    async def done(sender, *, size): ...

    assert done.providing_args == ("size",)
    assert signal(lambda sender, *, a: a).providing_args == ("a",)


@pytest.mark.parametrize(
    ("stub", "reason"),
    [
        (lambda: None, "first parameter must be 'sender'"),
        (lambda instance, *, a: None, "first parameter must be 'sender'"),
        (lambda *, sender: None, "first parameter must be 'sender'"),
        (lambda *sender: None, "first parameter must be 'sender'"),
        (lambda **sender: None, "first parameter must be 'sender'"),
        (lambda sender, a: None, "keyword-only"),
        (lambda sender, a=1, *, b: None, "keyword-only"),
        (lambda sender, *args: None, "keyword-only"),
        (lambda sender, **kwargs: None, "keyword-only"),
        (lambda sender, *, signal: None, "reserved"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_stubs_of_another_shape_are_refused(stub, reason):
    """The error says which stub it is and what is wrong with it."""
    with pytest.raises(DeclarationError, match=reason) as caught:
        signal(stub)
    assert "test_declaring.<lambda>" in str(caught.value)


@pytest.mark.parametrize("stub", [print, object(), int, staticmethod(lambda sender: None), 3])
def test_only_functions_can_be_stubs(stub):
    """A class, a builtin or another object is refused with its type."""
    with pytest.raises(DeclarationError, match="takes a function"):
        signal(stub)


@pytest.mark.anyio
async def test_defaults_of_a_stub_are_filled_in(collect):
    """An argument that a send leaves out has the stub's default, in every way of sending."""
    with pizza_done.connected(collect):
        await pizza_done.send(None, toppings=["olives"])
        await pizza_done.send_robust(None, toppings=[])
        await pizza_done.using(task_group=anyio.create_task_group).send(None, toppings=[])
        async with Background() as background:
            await background.send(pizza_done, None, toppings=[])
        await pizza_done.send(None, toppings=[], size=40)
    assert [call["size"] for call in collect.calls] == [30, 30, 30, 30, 40]


@pytest.mark.anyio
async def test_a_stub_may_give_the_sender_a_default(collect):
    """A signal that has only one possible sender need not name it."""

    @signal
    def tick(sender=None, *, count): ...

    tick.connect(collect)
    await tick.send(count=1)
    await tick.send("clock", count=2)
    assert [call["sender"] for call in collect.calls] == [None, "clock"]


@pytest.mark.anyio
async def test_a_positional_only_sender_is_accepted(collect):
    """`def stub(sender, /, *, ...)` declares the same signal."""

    @signal
    def done(sender, /, *, size): ...

    done.connect(collect)
    await done.send("a", size=1)
    assert collect.calls == [{"signal": done, "sender": "a", "size": 1}]


def test_annotations_of_a_stub_are_not_evaluated():
    """A stub may name types that exist for type checkers only."""
    namespace = {"signal": signal, "__name__": __name__}
    code = """
from __future__ import annotations
@signal
def done(sender: NotThere, *, size: AlsoNot = 3) -> Nowhere: ...
"""
    exec(code, namespace)  # noqa: S102  a namespace of its own is the case
    assert namespace["done"].providing_args == ("size",)
    assert "size: 'AlsoNot' = 3" in str(inspect.signature(namespace["done"].send))


# -- checking what is sent --


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["send", "send_robust"])
@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({}, r"Signal\.METHOD\(\) missing 2 required keyword-only arguments: 'a' and 'b'"),
        ({"a": 1}, r"Signal\.METHOD\(\) missing 1 required keyword-only argument: 'b'"),
        ({"a": 1, "b": 2, "c": 3}, r"Signal\.METHOD\(\) got an unexpected keyword argument 'c'"),
        ({"a": 1, "b": 2, "signal": 3}, r"Signal\.METHOD\(\) got an unexpected keyword argument 'signal'"),
    ],
)
async def test_a_send_that_does_not_fit_is_refused_as_python_words_it(collect, method, named, message):
    """A missing or unknown argument is a TypeError before any receiver runs."""
    made = Signal(["a", "b"])
    made.connect(collect)
    with pytest.raises(TypeError, match=message.replace("METHOD", method)):
        await getattr(made, method)(None, **named)
    assert collect.calls == []


@pytest.mark.anyio
async def test_the_sender_is_required_and_only_one(collect):
    """A send without a sender, with two, or with positional arguments is refused."""
    for made in (Signal(), Signal(["a"])):
        made.connect(collect)
        with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'sender'"):
            await made.send(a=1)
        with pytest.raises(TypeError, match=r"multiple values for argument 'sender'"):
            await made.send(None, sender=1, a=1)
        with pytest.raises(TypeError, match=r"positional argument"):
            await made.send(None, 1)
    assert collect.calls == []


@pytest.mark.anyio
async def test_what_does_not_fit_a_stub_is_refused_in_its_name():
    """Whichever way it is sent; a stub's sender is as required as it says."""
    for send in (pizza_done.send, pizza_done.send_robust):
        with pytest.raises(
            TypeError, match=r"^pizza_done\.send(_robust)?\(\) missing 1 required positional .*'sender'$"
        ):
            await send(toppings=[])
    async with Background() as background:
        with pytest.raises(TypeError, match=r"^pizza_done\.send_robust\(\) missing 1 .*keyword-only .*'toppings'$"):
            background.send_nowait(pizza_done, None)
    assert (pizza_done.send.__module__, pizza_done.send.__name__) == (__name__, "send")


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["send", "send_robust"])
async def test_signal_cannot_be_sent_as_an_argument(collect, method):
    """An undeclared signal refuses the keyword `signal` before any receiver runs, heard or not."""
    made = Signal()
    with pytest.raises(TypeError, match="reserved"):
        await getattr(made, method)(None, signal=1)
    made.connect(collect)
    with pytest.raises(TypeError, match="reserved"):
        await getattr(made, method)(None, signal=1)
    assert collect.calls == []


@pytest.mark.anyio
async def test_a_stub_words_its_errors_with_its_own_name():
    """The TypeError of a typed signal's send names the signal."""
    with pytest.raises(TypeError, match=r"pizza_done\.send\(\) missing 1 required keyword-only argument: 'toppings'"):
        await pizza_done.send(None)


@pytest.mark.anyio
@pytest.mark.parametrize("made", [Signal(), Signal(["a"])], ids=["any", "declared"])
async def test_the_sender_may_be_given_by_name(collect, made):
    """`send(sender=...)` is the same as giving it by position."""
    made.connect(collect)
    await made.send(sender="s", a=1)
    assert collect.calls == [{"signal": made, "sender": "s", "a": 1}]


# -- modes --


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    """A limit that would start nothing is a ValueError."""
    with pytest.raises(ValueError, match="at least 1"):
        Signal(limit=limit)
    with pytest.raises(ValueError, match="at least 1"):
        Signal().using(limit=limit)


@pytest.mark.parametrize("limit", [True, 1.5, "3"])
def test_a_limit_of_another_type_is_refused(limit):
    """A limit counts receivers, so it is an integer."""
    with pytest.raises(TypeError, match="limit must be a number of receivers"):
        Signal(limit=limit)


@pytest.mark.parametrize("task_group", [3, "anyio", object()], ids=["int", "str", "object"])
def test_a_task_group_that_is_no_factory_is_refused(task_group):
    """What cannot be called cannot make task groups."""
    with pytest.raises(TypeError, match="factory"):
        Signal(task_group=task_group)
    with pytest.raises(TypeError, match="factory"):
        signal(task_group=task_group)(lambda sender: None)


# -- subclasses --


def test_a_declared_signal_stays_an_instance_of_its_class():
    """Specialising keeps class, name and module of what was constructed."""

    class Loud(Signal):
        """Loud."""

    for made in (Signal(["a"]), pizza_done):
        assert isinstance(made, Signal)
        assert type(made).__name__ == "Signal"
        assert type(made).__module__ == Signal.__module__
    made = Loud(["a"])
    assert isinstance(made, Loud)
    assert type(made).__qualname__ == Loud.__qualname__


def test_subclass_hooks_hear_only_of_classes_that_somebody_wrote():
    """Declaring names does not run `__init_subclass__` of the signal's class."""
    heard = []

    class Tagged(Signal):
        def __init_subclass__(cls, *, tag):
            heard.append(tag)

    class Blue(Tagged, tag="blue"):
        pass

    assert Blue(["a"]).providing_args == ("a",)
    assert Tagged(["a", "b"]).providing_args == ("a", "b")
    assert heard == ["blue"]


def test_a_subclass_with_a_metaclass_can_declare_names():
    """A metaclass of the user's own is kept."""

    class Meta(type):
        pass

    class Made(Signal, metaclass=Meta):
        pass

    made = Made(["a"])
    assert isinstance(made, Made)
    assert type(type(made)) is Meta


def test_a_subclass_with_slots_can_declare_names():
    """Slots of a subclass work beside the specialised methods."""

    class Slotted(Signal):
        __slots__ = ("tag",)

    made = Slotted(["a"])
    made.tag = 1
    assert made.tag == 1


def test_every_letter_is_a_fine_name():
    """Names of one letter, and the underscore, can be declared all together."""
    names = [*string.ascii_letters, "_", "__", "___"]
    assert Signal(names).providing_args == tuple(names)


def test_signals_are_made_of_public_types_only():
    """What `@signal` returns is what `Signal` makes."""
    assert asignals.signal is signal
    assert isinstance(signal(lambda sender: None), asignals.Signal)
    assert not isinstance(signal, types.ModuleType)


@pytest.mark.anyio
async def test_a_subclass_may_take_other_parameters_first() -> None:
    """What a subclass takes first is not read as argument names: those that it hands on count."""

    class Labelled(Signal[..., object]):
        def __init__(self, labels: list[str]) -> None:
            super().__init__(["amount"])
            self.labels = labels

    signal = Labelled(["new", "urgent"])
    assert (signal.providing_args, signal.labels) == (("amount",), ["new", "urgent"])
    with signal.connected(lambda amount: amount) as receiver:
        assert await signal.send(None, amount=3) == [(receiver, 3)]
    with pytest.raises(TypeError, match="new"):
        await signal.send(None, new=1)
