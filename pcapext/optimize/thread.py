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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from pcapext.cfg import (
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

#: How many numbers to remember that a value can be.
_FEW = 16


@dataclass(frozen=True, slots=True)
class Known:
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
    outcomes: Mapping[Test, bool] = field(default_factory=dict)

    def with_outcome(self, test: Test, holds: bool) -> Known:
        """This, and the outcome of one more test of the value."""
        low, high, excluded = self.low, self.high, self.excluded
        match test:
            case Test(comparison, _, Const(number)) if self.among is not None:
                return replace(self, among=frozenset(each for each in self.among if comparison(each, number) == holds))
            case Test(Comparison.EQ, _, Const(number)) if holds:
                return Known(frozenset({number}), outcomes=self.outcomes)
            case Test(Comparison.EQ, _, Const(number)):
                excluded |= {number}
            case Test(Comparison.GT, _, Const(number)):
                low, high = (max(low, number + 1), high) if holds else (low, min(high, number))
            case Test(Comparison.GE, _, Const(number)):
                low, high = (max(low, number), high) if holds else (low, min(high, number - 1))
            case _:
                return replace(self, outcomes={**self.outcomes, test: holds})
        while low in excluded:
            low += 1
        while high in excluded:
            high -= 1
        if low == high:
            return Known(frozenset({low}), outcomes=self.outcomes)
        return Known(None, low, high, excluded, self.outcomes)

    def without(self, local: Local) -> Known:
        """This, but for the outcomes of tests against a local."""
        if not any(local in locals_of(test.right) for test in self.outcomes):
            return self
        return replace(self, outcomes={test: holds for test, holds in self.outcomes.items() if local not in locals_of(test.right)})

    def common(self, other: Known) -> Known:
        """What this and the other both say."""
        outcomes = {test: holds for test, holds in self.outcomes.items() if other.outcomes.get(test) == holds}
        numbers = (self.among or frozenset()) | (other.among or frozenset())
        ranges = [known for known in (self, other) if known.among is None]
        if not ranges and len(numbers) <= _FEW:
            return Known(numbers, outcomes=outcomes)
        low = min([*numbers, *(known.low for known in ranges)])
        high = max([*numbers, *(known.high for known in ranges)])
        excluded = frozenset.intersection(*(known.excluded for known in ranges)) - numbers if ranges else frozenset()
        return Known(None, low, high, excluded, outcomes)

    def outcome(self, test: Test) -> bool | None:
        """The outcome of a test of the value, if this tells it."""
        match test:
            case Test(comparison, _, Const(number)) if self.among is not None:
                possible = {comparison(each, number) for each in self.among}
                return possible.pop() if len(possible) == 1 else None
            case Test(Comparison.EQ, _, Const(number)):
                return False if number in self.excluded or not self.low <= number <= self.high else None
            case Test(Comparison.GT, _, Const(number)):
                return True if self.low > number else False if self.high <= number else None
            case Test(Comparison.GE, _, Const(number)):
                return True if self.low >= number else False if self.high < number else None
        return self.outcomes.get(test)


#: What is known at a place, by the left side of tests. Each of these values was computed on every path to it.
Facts = Mapping[Value, Known]


def thread_jumps(cfg: Cfg) -> Cfg:
    """The graph with known tests skipped."""
    useful = _worth_knowing(cfg)
    blocks = dict(cfg.blocks)
    arriving: dict[Label, list[Facts]] = {label: [] for label in cfg.blocks}
    arriving[cfg.entry].append({})
    for label in cfg.labels:
        arrived = arriving.pop(label)
        if not arrived:
            continue  # every way to it was led elsewhere
        block = blocks[label]
        facts = _behind(block.assignments, reduce(_common, arrived))
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
                    known = _with(facts, test, holds) if test in useful else facts
                    targets.append(_follow(blocks, target, known))
                    arriving[targets[-1]].append(known)
                blocks[label] = Block(block.assignments, Branch(test, *targets))
            case Goto(target):
                target = _follow(blocks, target, facts)
                blocks[label] = Block(block.assignments, Goto(target))
                arriving[target].append(facts)
    return Cfg(cfg.entry, blocks)


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


def _behind(assignments: Sequence[tuple[Local, Value]], facts: Facts) -> Facts:
    """What is known behind assignments: nothing of old values, and which local is which number."""
    for local, value in assignments:
        if local != VOID:
            facts = {left: known.without(local) for left, known in facts.items() if local not in locals_of(left)}
            if isinstance(value, Const):
                facts[local] = Known(frozenset({value.value}))
    return facts


def _common(facts: Facts, others: Facts) -> Facts:
    return {
        value: known if known is other else known.common(other)
        for value, known in facts.items()
        if (other := others.get(value)) is not None
    }


def _with(facts: Facts, test: Test, holds: bool) -> Facts:
    return {**facts, test.left: facts.get(test.left, Known()).with_outcome(test, holds)}


#: How many tests to look ahead for a place where both outcomes meet.
_AHEAD = 2


def _follow(blocks: Mapping[Label, Block], target: Label, facts: Facts) -> Label:
    """Where a jump to `target` ends, with these facts known on the way: past tests whose outcome is known, or does not matter."""
    while True:
        match blocks[target]:
            case Block((), Goto(further)):
                target = further
            case Block((), Branch(test, then, otherwise)):
                outcome = decide(test, facts)
                if outcome is not None:
                    target = then if outcome else otherwise
                elif (meeting := _meeting(blocks, target, facts)) is not None:
                    target = meeting
                else:
                    return target
            case _:
                return target


def _meeting(blocks: Mapping[Label, Block], label: Label, facts: Facts) -> Label | None:
    """Where both outcomes of the test of a block lead, if that is one place and no more than `_AHEAD` tests on."""
    ends = _ends(blocks, label, facts, _AHEAD)
    return ends.pop() if len(ends) == 1 and label not in ends else None


def _ends(blocks: Mapping[Label, Block], label: Label, facts: Facts, ahead: int) -> set[Label]:
    """Where the ways from a block on lead that are possible with these facts, at most so many tests on."""
    while (block := blocks[label]).assignments == () and isinstance(block.end, Goto):
        label = block.end.target
    match block:
        case Block((), Branch(test, then, otherwise)) if ahead and not loads_of(test.left) and not loads_of(test.right):
            outcome = decide(test, facts)
            ways = [(then, True), (otherwise, False)] if outcome is None else [(then if outcome else otherwise, outcome)]
            return set().union(*(_ends(blocks, way, _with(facts, test, holds), ahead - 1) for way, holds in ways))
    return {label}


def decide(test: Test, facts: Facts) -> bool | None:
    """The outcome of a test, if what is known tells it."""
    known = facts.get(test.left)
    return None if known is None else known.outcome(test)
