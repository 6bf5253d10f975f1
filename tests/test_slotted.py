"""What `slotted` makes of a class, beside what `dataclasses` makes of the same one."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcapext import slotted

FIELDS = st.lists(
    st.fixed_dictionaries(
        {"compare": st.booleans(), "repr": st.booleans(), "init": st.sampled_from([True, True, True, False])},
        optional={"default": st.sampled_from([0, True, False, "text", None])},
    ),
    max_size=5,
)
VALUES = st.sampled_from([0, 1, True, "", "text", None, float("nan"), (1, 2)])


def both(fields: list[dict[str, Any]], **options: Any) -> tuple[type, type]:
    """The class with these fields as `dataclasses` makes it, and ours."""
    # Fields without a default come first, and one that no call sets has one, so that it can be read.
    ordered = sorted(({"default": 7} | each if not each["init"] else each for each in fields), key=lambda each: "default" in each)
    made = []
    for module in (dataclasses, slotted):
        body = {f"f{index}": module.field(**each) for index, each in enumerate(ordered)}
        cls = type("Made", (), {"__annotations__": dict.fromkeys(body, "object"), **body})
        made.append(module.dataclass(slots=True, **options)(cls))
    return made[0], made[1]


def outcome(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What comes of a call, or the class of what it raises."""
    try:
        return call(*arguments, **named)
    except (AttributeError, TypeError) as error:
        return type(error)


@given(fields=FIELDS, frozen=st.booleans(), eq=st.booleans(), data=st.data())
def test_as_dataclasses_does(fields: list[dict[str, Any]], frozen: bool, eq: bool, data: st.DataObject) -> None:
    theirs, ours = both(fields, frozen=frozen, eq=eq)
    names = [f"f{index}" for index in range(len(fields))]
    assert ours.__match_args__ == theirs.__match_args__
    assert ours.__slots__ == theirs.__slots__
    assert inspect.signature(ours) == inspect.signature(theirs)

    pairs: list[tuple[Any, Any]] = []
    for _ in range(3):
        arguments = data.draw(st.lists(VALUES, max_size=len(fields) + 1))
        named = data.draw(st.dictionaries(st.sampled_from([*names, "other"]), VALUES, max_size=3))
        expected, made = outcome(theirs, *arguments, **named), outcome(ours, *arguments, **named)
        if isinstance(expected, type):
            assert made is expected
        else:
            pairs.append((expected, made))

    for expected, made in pairs:
        assert [getattr(made, name) for name in names] == [getattr(expected, name) for name in names]
        assert repr(made) == repr(expected)
        assert made != expected
        assert not hasattr(made, "__dict__")
        assert dataclasses.asdict(made) == dataclasses.asdict(expected)
        for other, other_made in pairs:
            assert (made == other_made) == (expected == other)
            if eq and frozen and expected == other:
                assert hash(made) == hash(other_made)
        assert isinstance(outcome(hash, made), type) == isinstance(outcome(hash, expected), type)
        for name in names:
            assert outcome(setattr, copy.copy(made), name, 5) == outcome(setattr, copy.copy(expected), name, 5)
            assert outcome(delattr, copy.copy(made), name) == outcome(delattr, copy.copy(expected), name)
        change = {data.draw(st.sampled_from([*names, "other"])): data.draw(VALUES)}
        # A field that no call sets is a ValueError for `dataclasses`, and for us a TypeError, as any other name that is no argument.
        if all(field["init"] for field in fields):
            assert repr(outcome(slotted.replace, made, **change)) == repr(outcome(dataclasses.replace, expected, **change))


@slotted.dataclass(frozen=True, slots=True)
class Point:
    """A point, never negative."""

    x: int
    y: int = 0
    marks: list[str] = slotted.field(default_factory=list, compare=False)
    length: int = slotted.field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError(f"{self.x} is negative")
        object.__setattr__(self, "length", self.x + self.y)


@slotted.dataclass(frozen=True, slots=True)
class OtherPoint:
    x: int
    y: int = 0


def test_copies_and_pickles() -> None:
    point = Point(3, 4, ["a"])
    for other in (copy.copy(point), copy.deepcopy(point), pickle.loads(pickle.dumps(point))):
        assert other == point
        assert (other.marks, other.length) == (["a"], 7)


def test_match() -> None:
    match Point(3, 4):
        case Point(x, y=4):
            assert x == 3
        case _:
            pytest.fail("it is one")


def test_what_a_class_has_stays() -> None:
    @slotted.dataclass(frozen=True, slots=True)
    class Loud:
        name: str

        def __repr__(self) -> str:
            return self.name.upper()

        def __hash__(self) -> int:
            return 5

        def __eq__(self, other: object) -> bool:
            return True

    assert (repr(Loud("a")), hash(Loud("b")), Loud("a") == Loud("b")) == ("A", 5, True)


def test_own_equality_does_not_take_the_hash_away() -> None:
    made = []
    for module in (dataclasses, slotted):

        class Equal:
            name: str

            def __eq__(self, other: object) -> bool:
                return True

        made.append(module.dataclass(frozen=True, slots=True)(Equal)("a"))
    assert [hash(each) == hash(type(each)("a")) for each in made] == [True, True]


def test_own_checks_and_factories() -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        Point(-1)
    with pytest.raises(ValueError, match="-1 is negative"):
        slotted.replace(Point(1), x=-1)
    assert Point(1).marks == []
    assert Point(1).marks is not Point(1).marks
    assert Point(3) != OtherPoint(3)
    assert slotted.replace(Point(3, 4), y=9).length == 12


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'x'"):
        Point(1).x = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'x'"):
        del Point(1).x


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Point(), "no argument for 'x'"),
        (lambda: Point(1, 2, [], 4), "takes 3 arguments, got 4"),
        (lambda: Point(1, x=1), "two arguments: 'x'"),
        (lambda: Point(1, z=1), "unexpected argument: 'z'"),
        (lambda: Point(1, length=1), "unexpected argument: 'length'"),
    ],
)
def test_wrong_calls(call: Callable[[], object], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        call()


def test_dataclasses_know_it() -> None:
    point = Point(3, 4)
    assert dataclasses.is_dataclass(point)
    assert [field.name for field in dataclasses.fields(point)] == ["x", "y", "marks", "length"]
    assert dataclasses.asdict(point) == {"x": 3, "y": 4, "marks": [], "length": 7}
    assert dataclasses.replace(point, x=1) == Point(1, 4)
    assert str(inspect.signature(Point)).startswith("(x: 'int', y: 'int' = 0")
