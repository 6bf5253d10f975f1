"""Membership: sets of numbers, and tests that tell whether a value is in one.

In:  sets as `Ranges`; a value and where to go on.
Out: other sets; the blocks of a search.

A search halves the numbers until at most four tests are left. A run of numbers is a range, and costs two tests, or one where a
half before has told its other end. Runs that are all aligned, as lists of networks are, are compared without their low bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pcapext.cfg import U32, Binary, Block, Branch, Comparison, Const, Label, Operator, Ranges, Test, Value, maximum
from pcapext.slotted import dataclass

#: At most so many tests in a row are not halved.
LEAF = 4

#: So many numbers, a power of two times `LEAF`, fill the halves well. Of more, one half is too far behind the other for a conditional
#: jump: it is the smaller one, since each path to it takes an instruction more.
_NEAR = 128


def union(sets: Iterable[Ranges]) -> Ranges:
    """The numbers that are in any of the sets.

    >>> union([((80, 80),), ((1, 79), (443, 443))])
    ((1, 80), (443, 443))
    """
    joined: list[tuple[int, int]] = []
    for low, high in sorted(each for ranges in sets for each in ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return tuple(joined)


def complement(ranges: Ranges, low: int = 0, high: int = U32) -> Ranges:
    """The numbers from `low` to `high` that are not in a set, which has no others.

    >>> complement(((0, 79), (81, 442)))
    ((80, 80), (443, 4294967295))
    """
    gaps = []
    for first, last in ranges:
        if low < first:
            gaps.append((low, first - 1))
        low = last + 1
    return (*gaps, (low, high)) if low <= high else tuple(gaps)


def in_a_row(value: Value, ranges: Ranges) -> int:
    """How many tests tell whether the value is in the set if nothing is halved."""
    search = _Search.of(value, ranges)
    return min(search.cost(search.ranges), search.cost(complement(search.ranges, high=search.high)))


def write_search(value: Value, ranges: Ranges, then: Label, otherwise: Label, add: Callable[[Block], Label]) -> Label:
    """Blocks, given to `add`, that go to `then` where the value is in the set; the label of the first."""
    search = _Search.of(value, ranges)
    first = search.write(search.ranges, then, otherwise, add)
    if first in (then, otherwise):
        # There is nothing to tell, but computing the value may reject the packet.
        return add(Block((), Branch(Test(Comparison.EQ, value, Const(0)), first, first)))
    return first


def write_switch(
    value: Value, cases: Sequence[tuple[int, Label]], otherwise: Label, leaf: int, branch: Callable[[Test, Label, Label], Label]
) -> Label:
    """Blocks, made by `branch`, that go on at the label of the number that the value is; the label of the first.

    The numbers are in order. They are halved until no more than `leaf` are left.
    """
    if len(cases) <= leaf:
        for number, target in reversed(cases):
            otherwise = branch(Test(Comparison.EQ, value, Const(number)), target, otherwise)
        return otherwise
    middle = len(cases) // 2
    below, above = (write_switch(value, half, otherwise, leaf, branch) for half in (cases[:middle], cases[middle:]))
    return branch(Test(Comparison.GE, value, Const(cases[middle][0])), above, below)


@dataclass(frozen=True, slots=True)
class _Search:
    """A search for a value, which is from `low` to `high`; the numbers in `ranges` are multiples of `unit`, the ends of runs less 1."""

    value: Value
    unit: int
    ranges: Ranges
    low: int
    high: int

    @staticmethod
    def of(value: Value, ranges: Ranges) -> _Search:
        largest = maximum(value)
        inside = tuple((low, min(high, largest)) for low, high in ranges if low <= largest)
        ends = U32 + 1
        for low, high in inside:
            ends |= low | (high + 1 if high < largest else 0)
        unit = ends & -ends
        # Without the low bits, one test tells a run of `unit` numbers; but it takes an instruction to mask them.
        if unit > 1 and sum(high - low + 1 == unit and low > 0 and high < largest for low, high in inside) > (len(inside) > 1):
            return _Search(Binary(Operator.AND, value, Const(U32 + 1 - unit)), unit, inside, 0, largest)
        return _Search(value, 1, inside, 0, largest)

    def part(self, low: int, high: int) -> _Search:
        return _Search(self.value, self.unit, (), low, high)

    def cost(self, ranges: Ranges) -> int:
        """How many tests it takes to tell the numbers in a row."""
        return sum(1 if high - low < self.unit or low == self.low or high == self.high else 2 for low, high in ranges)

    def write(self, ranges: Ranges, then: Label, otherwise: Label, add: Callable[[Block], Label]) -> Label:
        """The blocks for the numbers of `ranges`, all of them from `low` to `high`."""
        gaps = complement(ranges, self.low, self.high)
        cost = self.cost(ranges)
        if self.cost(gaps) < cost:
            ranges, then, otherwise, cost = gaps, otherwise, then, self.cost(gaps)
        if cost > LEAF and len(ranges) > 1:
            middle = len(ranges) // 2 if len(ranges) <= _NEAR else max(1, round(len(ranges) * 3 / 8 / _NEAR)) * _NEAR
            (_, below), (above, last) = ranges[middle - 1], ranges[middle]
            # Split where that tells the end of a run.
            pivot = above if last - above >= self.unit else below + 1
            left = self.part(self.low, pivot - 1).write(ranges[:middle], then, otherwise, add)
            right = self.part(pivot, self.high).write(ranges[middle:], then, otherwise, add)
            return add(Block((), Branch(self.test(Comparison.GE, pivot), right, left)))
        following = otherwise
        for low, high in reversed(ranges):
            if low == self.low and high == self.high:
                following = then
            elif high - low < self.unit:
                following = add(Block((), Branch(self.test(Comparison.EQ, low), then, following)))
            elif high == self.high:
                following = add(Block((), Branch(self.test(Comparison.GE, low), then, following)))
            else:
                following = add(Block((), Branch(self.test(Comparison.GT, high), following, then)))
                if low > self.low:
                    following = add(Block((), Branch(self.test(Comparison.GE, low), following, otherwise)))
        return following

    def test(self, comparison: Comparison, number: int) -> Test:
        return Test(comparison, self.value, Const(number & -self.unit & U32))
