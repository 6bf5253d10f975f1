"""Thread jumps: a test whose outcome is known on the way to it is not asked again.

In:  a `Cfg`.
Out: the same blocks, with jumps that go straight to where the tests passed before must lead.

What is known at a place are the outcomes of tests that every path to it passed, and numbers that were assigned. An edge also
knows the outcome of the test it comes from, and may pass blocks that only test what it knows, or whose tests make no
difference. Since a value stands for the same number until a local in it is assigned, and a known test's loads were done,
skipping the test changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import count

from pcapext.cfg import (
    REMEMBERED,
    U32,
    VOID,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    Goto,
    Label,
    Local,
    Test,
    Value,
    loads_of,
    locals_of,
)
from pcapext.interned import Interned
from pcapext.slotted import dataclass

#: How many numbers to remember that a value can be.
_FEW = 16


@dataclass(frozen=True, slots=True, eq=False)
class Known(Interned):
    """What tests told of one value: it is one of `among` or, where that is None, from `low` to `high` and none of `excluded`.

    `outcomes` are those of tests that do not compare it with a number, or only some of its bits.

    >>> from pcapext.cfg import Length
    >>> at_least_60 = Known().with_outcome(Test(Comparison.GE, Length(), Const(60)), True)
    >>> at_least_60.outcome(Test(Comparison.EQ, Length(), Const(14))), at_least_60.outcome(Test(Comparison.GT, Length(), Const(60)))
    (False, None)
    """

    among: frozenset[int] | None = None
    low: int = 0
    high: int = U32
    excluded: frozenset[int] = frozenset()
    outcomes: frozenset[tuple[Test, bool]] = frozenset()

    def with_outcome(self, test: Test, holds: bool) -> Known:
        """This, and the outcome of one more test of the value."""
        low, high, excluded = self.low, self.high, self.excluded
        match test:
            case Test(comparison, _, Const(number)) if self.among is not None:
                return one_of(frozenset(each for each in self.among if comparison(each, number) == holds), self.outcomes)
            case Test(Comparison.EQ, _, Const(number)) if holds:
                return one_of(frozenset({number}), self.outcomes)
            case Test(Comparison.EQ, _, Const(number)):
                excluded |= {number}
            case Test(Comparison.GT, _, Const(number)):
                low, high = (max(low, number + 1), high) if holds else (low, min(high, number))
            case Test(Comparison.GE, _, Const(number)):
                low, high = (max(low, number), high) if holds else (low, min(high, number - 1))
            case _:
                return Known(self.among, low, high, excluded, self.outcomes | {(test, holds)})
        while low in excluded:
            low += 1
        while high in excluded:
            high -= 1
        if low == high:
            return one_of(frozenset({low}), self.outcomes)
        return Known(None, low, high, excluded, self.outcomes)

    def without(self, local: Local) -> Known:
        """This, but for the outcomes of tests against a local."""
        outcomes = frozenset((test, holds) for test, holds in self.outcomes if local not in locals_of(test.right))
        return Known(self.among, self.low, self.high, self.excluded, outcomes)

    def common(self, other: Known) -> Known:
        """What this and the other both say."""
        outcomes = self.outcomes & other.outcomes
        numbers = (self.among or frozenset()) | (other.among or frozenset())
        ranges = [known for known in (self, other) if known.among is None]
        if not ranges and len(numbers) <= _FEW:
            return one_of(numbers, outcomes)
        low = min([*numbers, *(known.low for known in ranges)])
        high = max([*numbers, *(known.high for known in ranges)])
        excluded = frozenset.intersection(*(known.excluded for known in ranges)) - numbers if ranges else frozenset()
        return Known(None, low, high, excluded, outcomes)

    def outcome(self, test: Test) -> bool | None:
        """The outcome of a test of the value, if this tells it."""
        match test.right:
            case Const(number) if self.among is not None:
                possible = {test.comparison(each, number) for each in self.among}
                return possible.pop() if len(possible) == 1 else None
            case Const(number) if test.comparison is Comparison.EQ:
                return False if number in self.excluded or not self.low <= number <= self.high else None
            case Const(number) if test.comparison is Comparison.GT:
                return True if self.low > number else False if self.high <= number else None
            case Const(number) if test.comparison is Comparison.GE:
                return True if self.low >= number else False if self.high < number else None
        return True if (test, True) in self.outcomes else False if (test, False) in self.outcomes else None


def one_of(numbers: frozenset[int], outcomes: frozenset[tuple[Test, bool]] = frozenset()) -> Known:
    """That a value is one of these numbers."""
    return Known(numbers, 0, U32, frozenset(), outcomes)


#: What is known at a place, by the left side of tests. Each of these values was computed on every path to it.
Facts = Mapping[Value, Known]


def thread_jumps(cfg: Cfg) -> Cfg:
    """The graph with known tests skipped."""
    useful = _worth_knowing(cfg)
    later = _asked_later(cfg, useful)
    blocks = dict(cfg.blocks)
    ends: Ends = {}
    arriving: dict[Label, list[Facts]] = {label: [] for label in cfg.blocks}
    arriving[cfg.entry].append({})
    for label in cfg.labels:
        arrived = arriving.pop(label)
        if not arrived:
            continue  # every way to it was led elsewhere
        block = blocks[label]
        facts = reduce(_common, arrived)
        if block.assignments:
            facts = _behind(block.assignments, facts)
        match block.end:
            case Branch(test, then, otherwise):
                outcome = decide(test, facts)
                if outcome is not None:
                    target = then if outcome else otherwise
                    blocks[label] = Block(block.assignments, Goto(target))
                    arriving[target].append(facts)
                    continue
                targets = []
                for target, holds in ((then, True), (otherwise, False)):
                    known = _with(facts, test, holds) if test in useful and later(test.left, target) else facts
                    targets.append(_follow(blocks, target, known, ends))
                    arriving[targets[-1]].append(known)
                if targets != [then, otherwise]:
                    blocks[label] = Block(block.assignments, Branch(test, *targets))
            case Goto(next_label):
                target = _follow(blocks, next_label, facts, ends)
                if target != next_label:
                    blocks[label] = Block(block.assignments, Goto(target))
                arriving[target].append(facts)
    return cfg.with_blocks(blocks)


def _worth_knowing(cfg: Cfg) -> set[Test]:
    """Tests whose outcome can decide another test."""
    tests = [block.end.test for block in cfg.blocks.values() if isinstance(block.end, Branch)]
    same = Counter(tests)
    left = Counter(test.left for test in tests)

    def decides_others(test: Test) -> bool:
        match test:
            case Test(Comparison.GT | Comparison.GE, _, Const()):
                return left[test.left] > 1
            case Test(Comparison.EQ, _, Const()):
                # That a value is not one of many numbers decides only the same test again.
                return 1 < left[test.left] < 64
        return False

    return {test for test in same if same[test] > 1 or decides_others(test)}


def _asked_later(cfg: Cfg, tests: set[Test]) -> Callable[[Value, Label], bool]:
    """Whether a block or one behind it may test the left side of one of these tests again."""
    # A number with a bit for each left side stands for a set of them.
    bits = {left: 1 << index for index, left in enumerate(dict.fromkeys(test.left for test in tests))}
    tested: dict[Label, int] = {}
    for label in reversed(cfg.labels):
        end = cfg.blocks[label].end
        tested[label] = bits.get(end.test.left, 0) if isinstance(end, Branch) else 0
        for target in end.targets:
            tested[label] |= tested[target]
    return lambda left, label: tested[label] & bits[left] != 0


def _behind(assignments: Sequence[tuple[Local, Value]], facts: Facts) -> Facts:
    """What is known behind assignments: nothing of old values, and which local is which number."""
    for local, value in assignments:
        if local != VOID:
            facts = {
                left: known.without(local) if known.outcomes else known for left, known in facts.items() if local not in locals_of(left)
            }
            if isinstance(value, Const):
                facts[local] = one_of(frozenset({value.value}))
    return facts


def _common(facts: Facts, others: Facts) -> Facts:
    if facts is others:
        return facts
    return {
        value: known if known is other else _both(known, other)
        for value, known in facts.items()
        if (other := others.get(value)) is not None
    }


@lru_cache(REMEMBERED)
def _both(known: Known, other: Known) -> Known:
    return known.common(other)


def _with(facts: Facts, test: Test, holds: bool) -> Facts:
    return {**facts, test.left: _told(facts.get(test.left, _UNKNOWN), test, holds)}


@lru_cache(REMEMBERED)
def _told(known: Known, test: Test, holds: bool) -> Known:
    return known.with_outcome(test, holds)


#: What is known of a value that was not tested.
_UNKNOWN = Known()


#: How many tests to look ahead for a place where both outcomes meet.
_AHEAD = 2


#: Where a jump to a block ends, with facts about it known on the way.
Ends = dict[tuple[Label, frozenset[tuple[Value, Known]]], Label]

#: How many tests a jump must pass to be worth remembering.
_LONG = 8


def _follow(blocks: Mapping[Label, Block], target: Label, facts: Facts, ends: Ends) -> Label:
    """Where a jump to `target` ends, with these facts known on the way: past tests whose outcome is known, or does not matter.

    Many jumps go the same way to the end of a long list, so that it is remembered from each block on.
    """
    passed: list[tuple[Label, frozenset[tuple[Value, Known]]]] = []
    for steps in count():
        following = _next(blocks, target, facts)
        if following is None:
            break
        if steps >= _LONG:
            passed.append((target, passed[-1][1] if passed else frozenset(facts.items())))
            if passed[-1] in ends:
                target = ends[passed[-1]]
                break
        target = following
    for place in passed:
        ends[place] = target
    return target


def _next(blocks: Mapping[Label, Block], label: Label, facts: Facts) -> Label | None:
    """Where a jump to a block that does nothing of use can go instead."""
    block = blocks[label]
    if block.assignments:
        return None
    match block.end:
        case Goto(target):
            return target
        case Branch(test, then, otherwise):
            outcome = decide(test, facts)
            if outcome is not None:
                return then if outcome else otherwise
            meeting = None if _can_reject(test) else _meeting(blocks, label, facts, _AHEAD)
            return meeting if meeting != label else None
    return None


@lru_cache(REMEMBERED)
def _can_reject(test: Test) -> bool:
    return bool(loads_of(test.left) or loads_of(test.right))


def _meeting(blocks: Mapping[Label, Block], label: Label, facts: Facts, ahead: int) -> Label | None:
    """The one place to which all ways from a block on lead that are possible with these facts, at most so many tests on."""
    while not (block := blocks[label]).assignments and isinstance(block.end, Goto):
        label = block.end.target
    if block.assignments or not ahead:
        return label
    match block.end:
        case Branch(test, then, otherwise) if not _can_reject(test):
            outcome = decide(test, facts)
            if outcome is not None:
                return _meeting(blocks, then if outcome else otherwise, _with(facts, test, outcome), ahead - 1)
            meeting = _meeting(blocks, then, _with(facts, test, True), ahead - 1)
            if meeting is None or meeting != _meeting(blocks, otherwise, _with(facts, test, False), ahead - 1):
                return None
            return meeting
    return label


def decide(test: Test, facts: Facts) -> bool | None:
    """The outcome of a test, if what is known tells it."""
    known = facts.get(test.left)
    return None if known is None else known.outcome(test)
