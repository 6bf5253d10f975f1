"""Sets of numbers and the search for a value among them, against Python's own sets."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from graphs import evaluate
from hypothesis import given
from hypothesis import strategies as st

from pcapext.cfg import U32, Binary, Block, Branch, Cfg, Const, Length, Load, Operator, Ranges, Return, Value
from pcapext.optimize.membership import complement, in_a_row, union, write_search

#: Runs in a domain so small that they meet, touch and lie in each other.
RUNS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)).map(lambda run: ((run[0], run[0] + run[1]),)), max_size=8)


def numbers(ranges: Ranges) -> set[int]:
    return {number for low, high in ranges for number in range(low, high + 1)}


@given(RUNS)
def test_union(sets: list[Ranges]) -> None:
    ranges = union(sets)
    assert numbers(ranges) == set().union(*map(numbers, sets))
    assert all(high + 1 < low for (_, high), (low, _) in pairwise(ranges))


@given(RUNS, st.integers(46, 60))
def test_complement(sets: list[Ranges], high: int) -> None:
    ranges = union(sets)
    gaps = complement(ranges, high=high)
    assert numbers(gaps) == set(range(high + 1)) - numbers(ranges)
    assert complement(gaps, high=high) == ranges


def test_complement_of_nothing_and_all() -> None:
    assert complement(()) == ((0, U32),)
    assert complement(((0, U32),)) == ()


def written(value: Value, ranges: Ranges) -> Cfg:
    """A graph that returns whether a value is in a set."""
    blocks = [Block((), Return(Const(0))), Block((), Return(Const(1)))]

    def add(block: Block) -> int:
        blocks.append(block)
        return len(blocks) - 1

    first = write_search(value, ranges, 1, 0, add)
    return Cfg(first, dict(enumerate(blocks)))


def branches(cfg: Cfg) -> int:
    return sum(isinstance(block.end, Branch) for block in cfg.blocks.values())


def longest(cfg: Cfg) -> int:
    """The tests on the longest path."""
    after: dict[int, int] = {}
    for label in reversed(cfg.labels):
        block = cfg.blocks[label]
        after[label] = max((after[target] + isinstance(block.end, Branch) for target in block.targets), default=0)
    return after[cfg.entry]


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 1, 4, 256, 1 << 16]), st.booleans(), st.data())
def test_search(size: int, unit: int, opposite: bool, data: st.DataObject) -> None:
    """Near each end of each run: alone, in rows, aligned, at both ends of what can be loaded, and all but those."""
    top = 1 << 8 * size
    unit = min(unit, top)
    starts = st.sampled_from([0, top - unit]) | st.integers(0, top // unit - 1).map(unit.__mul__)
    runs = data.draw(st.lists(st.tuples(starts, st.sampled_from([1, 1, 1, 2, 5])), max_size=20))
    ranges = union([((start, min(start + count * unit, top) - 1),) for start, count in runs])
    if opposite:
        ranges = complement(ranges, high=top - 1)
    cfg = written(Load(size, Const(3)), ranges)
    for near in {0, top - 1, *(end + more for run in ranges for end in run for more in (-1, 0, 1))}:
        if 0 <= near < top:
            expected = any(low <= near <= high for low, high in ranges)
            assert evaluate(cfg, b"abc" + near.to_bytes(size, "big")) == expected, near
    assert evaluate(cfg, b"abc") == 0


@pytest.mark.parametrize("ranges", [(), ((0, U32),)])
@pytest.mark.parametrize("reads", [True, False])
def test_nothing_to_tell(ranges: Ranges, reads: bool) -> None:
    """A load must be done all the same: it can reject the packet."""
    cfg = written(Load(4, Const(0)) if reads else Length(), ranges)
    assert evaluate(cfg, b"1234") == (ranges != ())
    assert evaluate(cfg, b"123") == (ranges != () and not reads)


@pytest.mark.parametrize(
    ("ranges", "count"),
    [
        (((7, 7),), 1),
        (((0, 9),), 1),
        (((7, 9),), 2),
        (((7, U32),), 1),
        (((0, 6), (8, U32)), 1),
        (((0, 6), (8, 9), (11, U32)), 2),
        (((0x0A00_0000, 0x0A00_00FF), (0x0B00_0000, 0x0B00_00FF)), 2),
        (((0x0A00_0000, 0x0A00_00FF), (0x0B00_0000, 0x0B00_0000)), 3),
    ],
)
def test_tests_in_a_row(ranges: Ranges, count: int) -> None:
    value = Load(4, Const(0))
    assert in_a_row(value, ranges) == count
    assert branches(written(value, ranges)) == count


def test_networks_are_told_without_their_low_bits() -> None:
    cfg = written(Load(4, Const(0)), ((0x0A00_0000, 0x0A00_00FF), (0x0B00_0000, 0x0B00_02FF), (0x0D00_0100, 0x0D00_01FF)))
    left = {block.end.test.left for block in cfg.blocks.values() if isinstance(block.end, Branch)}
    assert left == {Binary(Operator.AND, Load(4, Const(0)), Const(0xFFFF_FF00))}


@pytest.mark.parametrize(
    ("count", "most", "path"),
    [(1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4), (10, 13, 5), (100, 140, 9), (1000, 1260, 13), (10_000, 12_900, 18)],
)
def test_cost(count: int, most: int, path: int) -> None:
    rng = Random(count)
    cfg = written(Load(4, Const(0)), union([((number, number),) for number in rng.sample(range(0, 1 << 32, 2), count)]))
    assert branches(cfg) <= most
    assert longest(cfg) <= path
