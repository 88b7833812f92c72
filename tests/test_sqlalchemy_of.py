"""`post_save.of(User)`: the same connections, with types."""

import pytest

from asignals.testing import restored

post_save = pytest.importorskip("asignals.sqlalchemy").post_save


class User: ...


class Admin(User): ...


@pytest.fixture(autouse=True)
def _as_before():
    with restored(post_save):
        yield


def test_receivers_are_connected_for_the_model():
    """As the sender, with the options of `connect`."""

    @post_save.of(User).connect(weak=False)
    def index(instance: User, **named): ...

    @post_save.of(User).connect(on="commit", priority=2, subclasses=False, weak=False)
    async def mail(instance: User, **named): ...

    ours = [each for each in post_save.connections if each.sender in {User, Admin}]
    found = [(each.receiver, each.sender, each.priority, each.options.subclasses) for each in ours]
    assert found == [(index, User, 0, True), (mail, User, 2, False)]
    assert post_save.receivers_for(Admin) == [index]


def test_receivers_are_disconnected_for_the_model():
    """Of one phase or of all, and nobody else."""

    def index(instance, **named): ...

    post_save.connect(index, sender=Admin, weak=False)
    assert post_save.of(User).connect(index, on="commit", weak=False) is index
    assert not post_save.of(User).disconnect(index, on="flush")
    assert post_save.of(User).disconnect(index)
    assert [each.sender for each in post_save.connections if each.sender in {User, Admin}] == [Admin]


@pytest.mark.parametrize("wrong", [None, "User", User()])
def test_anything_but_a_class_is_refused(wrong):
    """Where it is written."""
    with pytest.raises(TypeError, match=r"of\(\) takes a mapped class"):
        post_save.of(wrong)
