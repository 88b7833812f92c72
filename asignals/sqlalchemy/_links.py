"""`m2m_changed`: links of many-to-many relationships, from the histories of both sides.

A link between two instances is recorded in the history of the side that was changed and, where the relationship has
two sides, usually in that of the other. So links are gathered in one form first, as pairs in the direction of the
forward side, and then reported for each side that somebody listens to.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

from sqlalchemy import inspect
from sqlalchemy.orm import (
    InstanceState,
    InstrumentedAttribute,
    PassiveFlag,
    RelationshipDirection,
    RelationshipProperty,
)

from asignals.sqlalchemy._changes import NO_VALUE
from asignals.sqlalchemy._event import Event
from asignals.sqlalchemy._senders import find_model, goes_by, relationship_name
from asignals.sqlalchemy._signal import ModelSignal
from asignals.sqlalchemy._state import public_session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy.orm import Mapper, Session

Row: TypeAlias = InstanceState[Any]
Relationship: TypeAlias = RelationshipProperty[Any]
When: TypeAlias = Literal["pre", "post"]


class LinkSignal(ModelSignal):
    """A model signal whose senders are relationships."""

    def _resolve(self, sender: object) -> object:
        if sender is None:
            return None
        if isinstance(sender, str):
            model, attribute = relationship_name(sender)
            found = find_model(model)
            return sender if found is None else self._attribute(getattr(found, attribute))
        return self._attribute(sender)

    def _attribute(self, sender: object) -> object:
        """The attribute of the class that defines the relationship: subclasses have their own for the same one."""
        prop = getattr(getattr(sender, "comparator", None), "prop", None)  # .property would configure all mappers
        if not isinstance(sender, InstrumentedAttribute) or not isinstance(prop, RelationshipProperty):
            raise TypeError(f"signal {self.name!r} is sent by relationships, as Pizza.toppings is: {sender!r} is none")
        return prop.class_attribute

    def _names(self, name: str, model: type) -> bool:
        return goes_by(model, relationship_name(name)[0])

    def _named(self, name: str, model: type) -> object:
        return getattr(model, relationship_name(name)[1])


m2m_changed: LinkSignal = LinkSignal(
    ("instance", "action", "reverse", "model", "pk_set", "objects", "changes", "session"),
    name="m2m_changed",
    doc="""Links of a many-to-many relationship are about to be, or have been, added or removed.

    The sender is the relationship (`Pizza.toppings`), and each side of it sees its own perspective: `instance` owns the
    collection, `model` is the class at the other end, `objects` the instances there and `pk_set` their primary keys
    (tuples for composite ones; those not yet inserted have none in a `pre_` action). `action` is `"pre_add"`,
    `"post_add"`, `"pre_remove"` or `"post_remove"`. `reverse` tells whether this is the side that the association table
    names second. `changes` maps the name of the collection to the `(old, new)` instances in it, as tuples, or to
    `(NO_VALUE, NO_VALUE)` if it was not loaded.

    Who listens to all relationships hears of each link once, from the forward side.
    """,
)


class Side(NamedTuple):
    """A relationship as seen from one of its ends."""

    prop: Relationship
    other: Relationship | None
    is_reverse: bool

    @property
    def forward(self) -> Relationship:
        """The relationship that stands for both sides."""
        return self.other if self.is_reverse and self.other is not None else self.prop

    @property
    def sender(self) -> object:
        """What receivers connect to."""
        return self.prop.class_attribute


def _side(prop: Relationship) -> Side:
    other = next(iter(prop._reverse_property), None)  # `back_populates` may be a name, an attribute, a callable
    return Side(prop, other, other is not None and not _comes_first(prop))


def _comes_first(prop: Relationship) -> bool:
    """Whether the association table's first column refers to this side."""
    secondary = prop.secondary
    near = {column for _, column in prop.synchronize_pairs}
    far = {column for _, column in prop.secondary_synchronize_pairs or ()}
    first = next((c for c in cast("Any", secondary).c if c in near or c in far), None)
    return first in near


Links: TypeAlias = "dict[Relationship, dict[tuple[Row, Row], bool]]"


def link_events(session: Session, when: When) -> list[Event]:
    """What the current histories have to tell, for the sides that somebody listens to."""
    if not m2m_changed.is_connected:
        return []
    links: Links = {}
    heard: dict[Mapper[Any], list[Side]] = {}
    for row in chain(session._new, session._dirty_states):  # new and dirty make copies
        mapper = row.manager.mapper
        if mapper not in heard:
            heard[mapper] = list(_heard_sides(mapper))
        for side in heard[mapper]:
            _gather(links, side, row)
    gone = set(session._deleted)
    return [
        told
        for forward, pairs in links.items()
        for side in _both(forward)
        if _is_heard(side)
        for told in _told(session, side, pairs, gone, when)
    ]


def _heard_sides(mapper: Mapper[Any]) -> Iterator[Side]:
    for prop in mapper.relationships:
        if prop.direction is RelationshipDirection.MANYTOMANY and not prop.viewonly:
            side = _side(prop)
            if any(_is_heard(each) for each in _both(side.forward)):
                yield side


def _both(forward: Relationship) -> Iterator[Side]:
    side = _side(forward)
    yield side
    if side.other is not None and not side.other.viewonly:
        yield Side(side.other, forward, is_reverse=not side.is_reverse)


def _is_heard(side: Side) -> bool:
    return m2m_changed.is_wanted(side.sender)


def _gather(links: Links, side: Side, row: Row) -> None:
    history = row.get_history(side.prop.key, PassiveFlag.PASSIVE_NO_INITIALIZE)
    for others, is_added in ((history.added, True), (history.deleted, False)):
        for other in others or ():
            if other is not None:
                far: Row = inspect(other)
                pair = (far, row) if side.is_reverse else (row, far)
                links.setdefault(side.forward, {})[pair] = is_added


def _told(
    session: Session, side: Side, pairs: dict[tuple[Row, Row], bool], gone: set[Row], when: When
) -> Iterator[Event]:
    near, far = (1, 0) if side.is_reverse else (0, 1)
    for verb, is_added in (("remove", False), ("add", True)):
        owners: dict[Row, list[Row]] = {}
        for pair, added in pairs.items():
            if added is is_added and pair[near] not in gone:
                owners.setdefault(pair[near], []).append(pair[far])
        for owner, others in owners.items():
            yield _event(session, side, owner, others, f"{when}_{verb}")


def _event(session: Session, side: Side, owner: Row, others: list[Row], action: str) -> Event:
    arguments = {
        "instance": owner.obj(),
        "action": action,
        "reverse": side.is_reverse,
        "model": side.prop.mapper.class_,
        "pk_set": _keys(others),
        "objects": tuple(other.obj() for other in others),
        "changes": {side.prop.key: _before_and_after(owner, side.prop.key)},
        "session": public_session(session),
    }
    return Event(m2m_changed, side.sender, arguments, owner, named_only=side.is_reverse)


def _before_and_after(owner: Row, key: str) -> tuple[Any, Any]:
    if key not in owner.dict:
        return NO_VALUE, NO_VALUE
    added, unchanged, deleted = owner.get_history(key, PassiveFlag.PASSIVE_NO_INITIALIZE)
    return (*(unchanged or ()), *(deleted or ())), (*(unchanged or ()), *(added or ()))


def _keys(rows: Iterable[Row]) -> frozenset[Any]:
    keys = (tuple(row.mapper.primary_key_from_instance(row.obj())) for row in rows)
    return frozenset(key[0] if len(key) == 1 else key for key in keys if None not in key)
