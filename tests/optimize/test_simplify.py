"""Simplifying: each rule by example, by numbers, and what holds of the result."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeVar

import pytest
from graphs import (
    NUMBERS,
    RandomGraph,
    Rejected,
    State,
    condition_of,
    evaluate,
    graph_of,
    random_graphs,
    random_inputs,
    value_of,
    values_in,
)

from pcapext.cfg import Binary, Branch, Cfg, Comparison, Const, Load, Operator, Test, Value, locals_of, parts, rewrite, show
from pcapext.optimize.simplify import simplify, simplify_part, simplify_test

T = TypeVar("T")

#: Values and what becomes of them; a value alone stays what it is.
VALUES = """
    constants: (5 add 7) -> 12
    constants wrap around: (5 sub 7) -> 4294967294
    (5 mul 0x80000001) -> 2147483653
    (0xffffffff lsh 4) -> 4294967280
    (1 lsh 32) -> 0
    (7 div 2) -> 3
    (7 mod 4) -> 3
    (12 xor 10) -> 6
    (443 among 80 400-443) -> 1
    (444 among 80 400-443) -> 0
    ((2 add 3) among 4 6-9) -> 0
    but not a division by zero: (7 div 0)
    (7 mod 0)
    parts first: ((2 add 3) mul (A or 0)) -> (A mul 5)
    a constant goes to the right: (14 add A) -> (A add 14)
    (15 and A) -> (A and 15)
    (3 mul A) -> (A mul 3)
    (3 or A) -> (A or 3)
    (3 xor A) -> (A xor 3)
    where the sides can change: (14 sub A)
    (14 lsh A)
    sums have one constant: ((A add 14) add 20) -> (A add 34)
    ((A add 14) sub 20) -> (A sub 6)
    ((A sub 14) add 20) -> (A add 6)
    ((A sub 14) sub 20) -> (A sub 34)
    ((A sub 14) add 14) -> A
    (A add 0) -> A
    (A sub 0) -> A
    (A add 0xffffffff) -> (A sub 1)
    (A sub 0xffffffff) -> (A add 1)
    (A add 0x7fffffff) -> (A add 2147483647)
    (A sub 0x80000000) -> (A sub 2147483648)
    (A add 0x80000000) -> (A sub 2147483648)
    ((A add 0x80000000) add 0x80000000) -> A
    at the end of the sum: ((A add 14) add X) -> ((A add X) add 14)
    ((A sub 14) add X) -> ((A add X) sub 14)
    (A add (X add 14)) -> ((A add X) add 14)
    (A add (X sub 14)) -> ((A add X) sub 14)
    ((A add 1) add (X add 2)) -> ((A add X) add 3)
    ((A sub 1) add (X add 1)) -> (A add X)
    ((14 add A) add (X add (6 add Y))) -> ((A add (X add Y)) add 20)
    a difference is no sum: ((A add 14) sub X)
    (A sub (X add 14))
    what changes nothing: (A mul 1) -> A
    (A div 1) -> A
    (A or 0) -> A
    (A xor 0) -> A
    (A lsh 0) -> A
    (A rsh 0) -> A
    (A and 0xffffffff) -> A
    (0 or A) -> A
    (A mod 1)
    (0 sub A)
    (0 lsh A)
    masks: ((A and 0xff) and 0x3c) -> (A and 60)
    ((A and 0xf0) and 15) -> 0
    (0xff and (A and 0x3c)) -> (A and 60)
    nothing is left: (A mul 0) -> 0
    (A and 0) -> 0
    (A lsh 32) -> 0
    (A rsh 33) -> 0
    (A lsh 31)
    (A rsh 31)
    (length mul 0) -> 0
    but the rejection is: (load1[0] mul 0)
    ((load1[0] and 15) and 0) -> (load1[0] and 0)
    (load1[0] lsh 32)
    ((A div X) and 0)
    loads take constants in: load1[(load1[0] add 14)] -> load1[load1[0] + 14]
    load1[(14 add load1[0]) + 6] -> load1[load1[0] + 20]
    load2[((nhoff add 20) sub 18)] -> load2[nhoff + 2]
    load2[((load2[0] add load2[2]) add 5)] -> load2[(load2[0] add load2[2]) + 5]
    load4[(0 add 14)] -> load4[14]
    load4[(14 add 6) + 2] -> load4[22]
    unless the sum could wrap around: load1[(A add 14)]
    load1[(lhoff add 6)]
    load1[(load1[0] sub 5) + 14]
    load1[((A and 0x80000000) add 0x7fffffff)] -> load1[(A and 2147483648) + 2147483647]
    load1[((A and 0xfffffff0) add 15)] -> load1[(A and 4294967280) + 15]
    load1[((A and 0xfffffff0) add 16)] -> load1[((A and 4294967280) add 16)]
    load1[((A and 15) add 1) + 0xffffffff] -> load1[((A and 15) add 1) + 4294967295]
"""

#: Tests and what becomes of them: another test, with "not" before it where that has the opposite outcome, or an outcome.
TESTS = """
    5 eq 5 -> True
    5 gt 5 -> False
    5 ge 5 -> True
    4 set 3 -> False
    a constant goes to the right: 5 eq A -> A eq 5
    5 set A -> A set 5
    5 gt A -> not A ge 5
    5 ge A -> not A gt 5
    and further: 0 eq (A sub X) -> A eq X
    1 gt A -> A eq 0
    0 ge A -> A eq 0
    0 gt A -> False
    0xffffffff ge A -> True
    a difference: (A sub X) eq 0 -> A eq X
    (A sub X) eq 5
    (5 sub A) eq 0 -> A eq 5
    (0 sub A) eq 0 -> A eq 0
    (A sub 5) eq 0 -> A eq 5
    (A sub X) gt 0 -> not A eq X
    a sum: (A add 5) eq 7 -> A eq 2
    (A add 7) eq 5 -> A eq 4294967294
    (A add X) eq 5
    masks: (A and 15) eq 0 -> not A set 15
    (A and X) eq 0 -> not A set X
    (A and 15) eq 1
    (A and 15) set 3 -> A set 3
    (A and 15) set 0x30 -> False
    (A and 15) gt 0 -> A set 15
    (A and 15) ge 1 -> A set 15
    zero: A gt 0 -> not A eq 0
    A ge 1 -> not A eq 0
    A ge 0 -> True
    A gt 0xffffffff -> False
    A set 0 -> False
    A ge 2
    A gt 1
    but the rejection is left: load1[0] ge 0
    load1[0] gt 0xffffffff -> load1[0] gt 4294967295
    (load1[0] and 15) set 0x30 -> load1[0] set 0
    (A div X) ge 0
"""


def cases(table: str) -> list[tuple[str, str]]:
    """What is before and behind the arrow of each line, after the comment."""
    lines = [line.strip().rpartition(": ")[2].partition(" -> ") for line in table.strip().splitlines()]
    return [(before, after or before) for before, _, after in lines]


def simplified(value: Value) -> Value:
    return rewrite(value, simplify_part)


def outcome(compute: Callable[[], T]) -> T | None:
    """What is computed, or None for a rejection."""
    try:
        return compute()
    except Rejected:
        return None


def states(rng: Random, count: int = 60) -> list[State]:
    """Packets with locals of any 32 bits, the edges of the rules among them."""
    names = [part for name in ("A", "X", "Y", *(f"L{number}" for number in range(8))) for part in parts(value_of(name))]
    return [
        State(packet, len(packet), keys, {name: rng.choice((rng.choice(NUMBERS), rng.getrandbits(32))) for name in names})  # type: ignore[misc]
        for packet, keys in random_inputs(rng, count)
    ]


@pytest.mark.parametrize(("before", "after"), cases(VALUES))
def test_value(before: str, after: str) -> None:
    value = value_of(before)
    assert show(simplified(value)) == after
    for state in states(Random(before)):
        assert outcome(lambda: state.number(simplified(value))) == outcome(lambda: state.number(value)), state  # noqa: B023


@pytest.mark.parametrize(("before", "after"), cases(TESTS))
def test_test(before: str, after: str) -> None:
    test = condition_of(before)
    simpler, same = simplify_test(test)
    given = (simpler if same else not simpler) if isinstance(simpler, bool) else ("" if same else "not ") + show(simpler)
    assert str(given) == after
    for state in states(Random(before)):
        expected = outcome(lambda: state.holds(test))  # noqa: B023
        found = simpler if isinstance(simpler, bool) else outcome(lambda: state.holds(simpler))  # noqa: B023
        assert (found if found is None or same else not found) == expected, state


def test_random_values() -> None:
    changed = 0
    for number in range(800):
        rng = Random(f"values {number}")
        maker = RandomGraph(rng, names=4, depth=4)
        value = Binary(rng.choice(list(Operator)), *(maker.value({*maker.locals}) for _ in range(2)))
        simpler = simplified(value)
        changed += simpler != value
        for state in states(rng, 12):
            assert outcome(lambda: state.number(simpler)) == outcome(lambda: state.number(value)), (show(value), state)  # noqa: B023
    assert changed > 150


def test_random_tests() -> None:
    """With constants next to each other on both sides, where the rules have their edges."""
    changed = 0
    for number in range(1000):
        rng = Random(f"tests {number}")
        maker = RandomGraph(rng, names=3, depth=2)
        left, right = maker.value({*maker.locals}), rng.choice([maker.constant(), maker.value({*maker.locals})])
        if rng.random() < 0.3:
            left = Binary(rng.choice((Operator.SUB, Operator.ADD, Operator.AND)), left, rng.choice([maker.constant(), right]))
        test = Test(rng.choice(list(Comparison)), *map(simplified, rng.sample((left, right), 2)))
        simpler, same = simplify_test(test)
        changed += simpler != test
        for state in states(rng, 12):
            expected = outcome(lambda: state.holds(test))  # noqa: B023
            found = simpler if isinstance(simpler, bool) else outcome(lambda: state.holds(simpler))  # noqa: B023
            assert (found if found is None or same else not found) == expected, (show(test), state)
    assert changed > 300


GRAPHS = [
    ("a test with a known outcome", "0: 5 gt 3 ? 1 : 2\n1: return 1\n2: return 0", "0: goto 1\n1: return 1"),
    ("and the other one", "0: 3 gt 5 ? 1 : 2\n1: return 1\n2: return 0", "0: goto 2\n2: return 0"),
    ("of a test turned round", "0: 0 gt A ? 1 : 2\n1: return 1\n2: return 0", "0: goto 2\n2: return 0"),
    ("a test turned round", "0: A gt 0 ? 1 : 2\n1: return 1\n2: return 0", "0: A eq 0 ? 2 : 1\n2: return 0\n1: return 1"),
    ("both ways the same", "0: A gt 5 ? 1 : 1\n1: return 1", "0: goto 1\n1: return 1"),
    ("both ways the same, but it can reject", "0: load1[0] gt 5 ? 1 : 1\n1: return 1", "0: load1[0] gt 5 ? 1 : 1\n1: return 1"),
    (
        "values everywhere",
        "0: A := (2 add 3); X := load1[(A or 0)]; goto 1\n1: return (X mul 1)",
        "0: A := 5; X := load1[A]; goto 1\n1: return X",
    ),
]


@pytest.mark.parametrize(("before", "after"), [case[1:] for case in GRAPHS], ids=[case[0] for case in GRAPHS])
def test_graph(before: str, after: str) -> None:
    assert str(simplify(graph_of(before))) == after


def test_random_graphs() -> None:
    for cfg, rng in random_graphs(400, seed=20):
        simpler = simplify(cfg)
        for packet, keys in random_inputs(rng):
            wirelen = len(packet) + rng.choice((0, 40))
            assert evaluate(simpler, packet, wirelen, keys) == evaluate(cfg, packet, wirelen, keys), (str(cfg), packet.hex(), keys)


def test_what_holds_of_the_result() -> None:
    seen = 0
    for cfg, _ in random_graphs(300, seed=21):
        simpler = simplify(cfg)
        assert simplify(simpler) == simpler
        for value in values_in(simpler):
            for part in parts(value):
                seen += 1
                check_part(part)
        for block in simpler.blocks.values():
            match block.end:
                case Branch(Test(_, Const(), _)):
                    raise AssertionError(f"a constant on the left: {block}")
                case Branch(Test(Comparison.GT, _, Const(0)) | Test(Comparison.GE, _, Const(1))):
                    raise AssertionError(f"more than nothing: {block}")
        assert_nothing_lost(cfg, simpler)
    assert seen > 1000


def check_part(part: Value) -> None:
    match part:
        case Binary(operator, Const(), _) if operator.commutes:
            raise AssertionError(f"a constant on the left: {show(part)}")
        case Binary(operator, Const(left), Const(right)):
            assert operator(left, right) is None, show(part)
        case Binary(Operator.ADD | Operator.SUB, Binary(Operator.ADD | Operator.SUB, _, Const()), Const()):
            raise AssertionError(f"two constants in a sum: {show(part)}")
        case Binary(Operator.ADD, Binary(Operator.ADD, _, Const()), _) | Binary(Operator.ADD, _, Binary(Operator.ADD, _, Const())):
            raise AssertionError(f"a constant inside a sum: {show(part)}")
        case Binary(Operator.ADD | Operator.SUB, _, Const(number)):
            assert 0 < number <= 0x8000_0000, show(part)
        case Load(_, Binary(Operator.ADD, Binary(Operator.AND, _, Const(mask)), Const(number))):
            assert mask + number >= 1 << 32, show(part)


def assert_nothing_lost(cfg: Cfg, simpler: Cfg) -> None:
    """Every local that is assigned still is, in the same blocks."""
    for label, block in simpler.blocks.items():
        assert [local for local, _ in block.assignments] == [local for local, _ in cfg.blocks[label].assignments]
        assert all(
            locals_of(after) <= locals_of(before)
            for (_, after), (_, before) in zip(block.assignments, cfg.blocks[label].assignments, strict=True)
        )
