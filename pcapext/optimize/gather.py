"""Gather: tests of one value that are scattered over a condition come together, as one set of numbers.

In:  a `Cfg` as `lift` and `generate` make it, where what `and`, `or` and `not` said is still to be seen.
Out: a graph with the same verdicts. Where a condition, of any number of tests that assign nothing in between, compared a value with
     several numbers for the same purpose, there is one test for all of them: an `Among`, or a few tests where that is enough.
     Where the numbers decide what is asked next, there are halves.

`and` is seen as `not or not`, so that there is one case to put in order: alternatives, each a conjunction. Those that begin with the
same test become one, which asks the rest of them behind it:

    ip and src 1 or ip and dst 1 or arp or ip and src 2    ->    ip and (src 1 or dst 1 or src 2) or arp
                                                           ->    ip and (src among 1 2 or dst 1) or arp

This changes the order of alternatives. It may, where none of them can reject the packet: each of their loads was done before, or a
check of the length guards it. It also may where they exclude each other, since they compare the same value with different numbers.
Alternatives are split into windows, in which one or the other holds for all but the first, and stay in their windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

from pcapext.cfg import (
    U32,
    Among,
    Binary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    Goto,
    Key,
    Label,
    Length,
    Load,
    Operator,
    Ranges,
    Test,
    Value,
    loads_of,
    maximum,
)
from pcapext.optimize.conditions import Join, Side, flatten, fold
from pcapext.optimize.membership import LEAF, complement, in_a_row, union, write_search, write_switch
from pcapext.optimize.places import Place, end_of
from pcapext.slotted import dataclass, field

#: How often a condition may be split further before it stays as it was: each time, Python is a few calls deeper.
_DEEPEST_SPLIT = 60

#: How many tests of a conjunction to remember, with what was loaded where they hold.
_LONGEST_PATH = 4

#: From how many different continuations on it is worth to halve them.
_MANY = 5


def gather(cfg: Cfg) -> Cfg:
    """The graph with the tests of each condition gathered."""
    gatherer = _Gatherer(max(cfg.blocks) + 1)
    blocks = dict(cfg.blocks)
    for label, fork in fold(cfg).items():
        tree = gatherer.tree(fork.condition) if isinstance(fork.condition, Join) else None
        if tree is not None:
            blocks[label] = Block(cfg.blocks[label].assignments, Goto(gatherer.write(tree, fork.then, fork.otherwise)))
    return Cfg(cfg.entry, {**blocks, **gatherer.blocks})


# Conditions in order: alternatives, each of which is a conjunction.


_Reach: TypeAlias = dict[Value | None, int]


@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """A value that is tested; there is one object for each. `reads` are the ends of the bytes that it loads, None if it can also
    reject a packet otherwise."""

    value: Value
    reads: tuple[Place, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class _Literal:
    """A test: whether a value is among some numbers or, if `ranges` is None, whether `test` has the outcome `holds`.

    There is one object for each. `checks` is how far a packet reaches for which it holds, `denies` one for which it does not.
    """

    test: Test
    holds: bool
    subject: _Subject
    ranges: Ranges | None
    checks: tuple[Place, ...]
    denies: tuple[Place, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Either:
    """Alternatives inside of a conjunction."""

    alternatives: tuple[_Conjunction, ...]


_Part: TypeAlias = _Literal | _Either
_Conjunction: TypeAlias = tuple[_Part, ...]


# What comes out of it: trees to write.


@dataclass(frozen=True, slots=True)
class _Any:
    trees: tuple[_Tree, ...]


@dataclass(frozen=True, slots=True)
class _Behind:
    """A tree to ask where a literal holds."""

    literal: _Literal
    tree: _Tree


@dataclass(frozen=True, slots=True)
class _Not:
    tree: _Tree


@dataclass(frozen=True, slots=True)
class _Switch:
    """The tree to ask for each number that the value may be."""

    value: Value
    cases: tuple[tuple[int, _Tree], ...]


_Tree: TypeAlias = _Literal | _Any | _Behind | _Not | _Switch


@dataclass(slots=True)
class _Group:
    """Alternatives that are asked as one: the rest of each, and what is known to be loaded before the first.

    `moved`: others stood between them.
    """

    first: _Part
    rests: list[_Conjunction] = field(default_factory=list)
    sets: list[Ranges] = field(default_factory=list)
    reach: _Reach = field(default_factory=dict)
    moved: bool = False


@dataclass(slots=True)
class _Window:
    """Groups of alternatives that may change places: either none but the first can reject, or all compare `subject` with a number."""

    subject: _Subject | None
    safe: bool = True
    groups: dict[object, _Group] = field(default_factory=dict)
    latest: _Group | None = None


class _Gatherer:
    """Puts conditions in order and writes them.

    `united` is set where numbers of a condition came together, and `gained` where not all was in order already; `deepest` counts how
    often it was split.
    """

    def __init__(self, next_label: Label):
        self.next_label = next_label
        self.blocks: dict[Label, Block] = {}
        self.united = self.gained = False
        self.depth = self.deepest = 0
        self.literals: dict[tuple[Test, bool], _Literal] = {}
        self.subjects: dict[Value, _Subject] = {}

    def tree(self, condition: Join) -> _Tree | None:
        """A condition in order, or None where it is best left as it was written."""
        self.united = self.gained = False
        self.depth = self.deepest = 0
        tree = self.alternatives(self.parse(Side(condition, True)), {})
        return tree if self.united and self.gained and self.deepest <= _DEEPEST_SPLIT else None

    # Parsing.

    def parse(self, side: Side) -> tuple[_Conjunction, ...]:
        """The alternatives of a condition."""
        return tuple(tuple(self.part(part) for part in flatten(alternative, False)) for alternative in flatten(side, True))

    def part(self, side: Side) -> _Part:
        if isinstance(side.condition, Test):
            return self.literal(side.condition, side.holds)
        alternatives = self.parse(side)
        literals = [each[0] for each in alternatives if len(each) == 1 and isinstance(each[0], _Literal)]
        subjects = {literal.subject for literal in literals}
        sets = [literal.ranges for literal in literals if literal.ranges is not None]
        if len(sets) == len(alternatives) and len(subjects) == 1:
            return self.unite(subjects.pop(), sets)
        return _Either(alternatives)

    def unite(self, subject: _Subject, sets: list[Ranges]) -> _Literal:
        """One test for several sets of numbers."""
        ranges = union(sets)
        cost = in_a_row(subject.value, ranges)
        self.united = True
        self.gained |= cost < len(sets) or cost > LEAF
        return self.among(subject, ranges)

    def among(self, subject: _Subject, ranges: Ranges) -> _Literal:
        return self.literal(Test(Comparison.EQ, Among(subject.value, ranges), Const(1)), True)

    def literal(self, test: Test, holds: bool) -> _Literal:
        literal = self.literals.get((test, holds))
        if literal is None:
            value, ranges = _numbers(test)
            checks, denies = tuple(_checked(test, holds)), tuple(_checked(test, not holds))
            if checks or denies:
                ranges = None  # one check does not become another: that would be for `drop_bounds`
            if ranges is None:
                value = Binary(Operator.AND, test.left, test.right)  # what loads all that both load
            elif not holds:
                ranges = complement(ranges)
            subject = self.subject(value)
            literal = _Literal(test, holds, subject, ranges, checks, denies)
            self.literals[test, holds] = literal
        return literal

    def subject(self, value: Value) -> _Subject:
        subject = self.subjects.get(value)
        if subject is None:
            loads = loads_of(value)
            ends = tuple(end_of(load) for load in loads if isinstance(load, Load))
            subject = self.subjects[value] = _Subject(value, ends if len(ends) == len(loads) else None)
        return subject

    def opposite(self, part: _Part) -> _Conjunction:
        """The opposite of a part of a conjunction, as a conjunction."""
        match part:
            case _Literal():
                return (self.literal(part.test, not part.holds),)
            case _Either(alternatives):
                return tuple(
                    self.opposite(each[0])[0] if len(each) == 1 and isinstance(each[0], _Literal) else _Either(self.opposites(each))
                    for each in alternatives
                )

    def opposites(self, conjunction: _Conjunction) -> tuple[_Conjunction, ...]:
        """The opposite of a conjunction, as alternatives."""
        return tuple(self.opposite(part) for part in conjunction)

    # Gathering.

    def alternatives(self, given: Iterable[_Conjunction], reach: _Reach) -> _Tree:
        """Alternatives in order. `reach` is how far the packet is known to reach where the first is asked."""
        known: dict[tuple[_Part, ...], _Reach] = {(): dict(reach)}  # where these parts hold
        windows: list[_Window] = []
        pending = [*given][::-1]
        while pending:
            conjunction = pending.pop()
            match conjunction:
                case (_Either(inner),):
                    pending += inner[::-1]
                    continue
            subject = _switched(conjunction)
            safe = _is_safe(conjunction, (), {}, known)
            if not windows or (not (windows[-1].safe and safe) and (subject is None or windows[-1].subject is not subject)):
                windows.append(_Window(subject))
            else:
                windows[-1].safe &= safe
                if windows[-1].subject is not subject:
                    windows[-1].subject = None
            _add(windows[-1], conjunction, known[()])
            _record(conjunction, (), known)
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        trees = [tree for window in windows for tree in self.trees(window)] if self.depth <= _DEEPEST_SPLIT else []
        self.depth -= 1
        return trees[0] if len(trees) == 1 else _Any(tuple(trees))

    def trees(self, window: _Window) -> Iterator[_Tree]:
        """The groups of a window."""
        groups = list(window.groups.values())
        if window.subject is not None and len(groups) >= _MANY:
            self.united = self.gained = True
            yield _Switch(window.subject.value, tuple((group.sets[0][0][0], self.rest(group)) for group in groups))
            return
        for group in groups:
            match group:
                case _Group(_Literal(subject=subject, ranges=ranges) as literal, [(), *more]):
                    if more and ranges is not None:
                        literal = self.unite(subject, group.sets)
                        self.gained |= group.moved
                    yield literal
                case _Group(first, [rest]):
                    # A conjunction: no alternative to its opposite holds.
                    yield _Not(self.alternatives(self.opposites((first, *rest)), group.reach))
                case _Group(_Literal() as first):
                    self.gained = True
                    yield _Behind(first, self.rest(group))

    def rest(self, group: _Group) -> _Tree:
        """What is to be asked behind the first test of a group."""
        assert isinstance(group.first, _Literal)
        return self.alternatives(group.rests, _farther(group.reach, (*(group.first.subject.reads or ()), *group.first.checks)))

    # Writing.

    def add_block(self, block: Block) -> Label:
        self.blocks[self.next_label] = block
        self.next_label += 1
        return self.next_label - 1

    def branch(self, test: Test, then: Label, otherwise: Label) -> Label:
        return self.add_block(Block((), Branch(test, then, otherwise)))

    def write(self, tree: _Tree, then: Label, otherwise: Label) -> Label:
        """Blocks for a tree; the first of them."""
        match tree:
            case _Literal(Test(_, Among(value, ranges), _)) if in_a_row(value, ranges) <= LEAF:
                then, otherwise = (then, otherwise) if tree.holds else (otherwise, then)
                return write_search(value, ranges, then, otherwise, self.add_block)
            case _Literal(test, holds):
                return self.branch(test, then, otherwise) if holds else self.branch(test, otherwise, then)
            case _Any(trees):
                for each in reversed(trees):
                    otherwise = self.write(each, then, otherwise)
                return otherwise
            case _Behind(literal, behind):
                return self.write(literal, self.write(behind, then, otherwise), otherwise)
            case _Not(opposite):
                return self.write(opposite, otherwise, then)
            case _Switch(value, cases):
                targets = sorted((number, self.write(case, then, otherwise)) for number, case in cases)
                return write_switch(value, targets, otherwise, _MANY - 1, self.branch)


def _numbers(test: Test) -> tuple[Value, Ranges | None]:
    """The value that a test compares with numbers, and those for which it holds; None for another test."""
    match test:
        case Test(Comparison.EQ, Among(value, ranges), Const(1)):
            return value, ranges
        case Test(Comparison.EQ, Binary(Operator.AND, value, Const(mask)), Const(number)):
            rest = maximum(value) & ~mask
            if rest & (rest + 1) == 0 and number & ~mask == 0:
                return value, ((number, number | rest),)  # all that begin with these bits
            return test.left, ((number, number),)
        case Test(Comparison.EQ, value, Const(number)):
            return value, ((number, number),)
        case Test(Comparison.GE, value, Const(number)):
            return value, ((number, U32),)
        case Test(Comparison.GT, value, Const(number)):
            return value, ((number + 1, U32),) if number < U32 else ()
    return test.left, None


def _add(window: _Window, conjunction: _Conjunction, reach: _Reach) -> None:
    """Add an alternative to its group."""
    first, *rest = conjunction
    key: object = first, bool(rest)
    if isinstance(first, _Literal) and first.ranges is not None:
        key = (first.subject, first.ranges) if rest else first.subject
    group = window.groups.get(key)
    if group is None:
        group = window.groups[key] = _Group(first, reach=dict(reach))
    group.moved |= bool(group.rests) and window.latest is not group
    window.latest = group
    group.rests.append(tuple(rest))
    if isinstance(first, _Literal) and first.ranges is not None:
        group.sets.append(first.ranges)


def _is_safe(conjunction: _Conjunction, path: tuple[_Part, ...], more: _Reach, known: Mapping[tuple[_Part, ...], _Reach]) -> bool:
    """Whether a conjunction cannot reject a packet that reaches so far, when `path` holds and all before it failed."""
    for part in conjunction:
        match part:
            case _Literal(subject=_Subject(reads=reads), checks=checks):
                if reads is None:
                    return False
                for base, end in reads:
                    before = (path[:length] for length in range(min(len(path), _LONGEST_PATH) + 1))
                    reaches = (known[part_of_path].get(base, -1) for part_of_path in before if part_of_path in known)
                    if max(reaches) < end > more.get(base, -1):
                        return False
                path = (*path, part)
                if checks:
                    more = _farther(more, checks)
            case _Either(alternatives):
                if not all(_is_safe(each, path, more, known) for each in alternatives):
                    return False
    return True


def _switched(conjunction: _Conjunction) -> _Subject | None:
    """The value that a conjunction of several parts compares with one number before all else."""
    match conjunction:
        case (_Literal(subject=subject, ranges=((low, high),)), _, *_) if low == high:
            return subject
    return None


def _record(conjunction: _Conjunction, path: tuple[_Part, ...], known: dict[tuple[_Part, ...], _Reach]) -> None:
    """Add what was loaded when a conjunction failed."""
    for index, part in enumerate(conjunction):
        if len(path) > _LONGEST_PATH:
            return
        match part:
            case _Literal(subject=_Subject(reads=reads), denies=denies):
                failed = denies if index + 1 == len(conjunction) else ()
                if reads or failed:
                    known[path] = _farther(known.get(path, {}), (*(reads or ()), *failed))
                path = (*path, part)
            case _Either(alternatives):
                if index + 1 == len(conjunction):
                    for each in alternatives:
                        _record(each, path, known)
                return  # what is behind an alternative that may have held, and in it, may not have been asked


def _farther(reach: _Reach, places: Iterable[Place]) -> _Reach:
    farther = dict(reach)
    for base, end in places:
        farther[base] = max(farther.get(base, end), end)
    return farther


#: Keys that are places in the packet where they are what a length is checked from, so that `length - key` does not wrap around.
_PLACES = ("lhoff", "nhoff", "thoff")


def _checked(test: Test, holds: bool) -> Iterator[Place]:
    """How far a packet reaches for which a check of its length holds, as extension terms make it.

    A filter's own `len >= 60` is none: on a packet that was cut, standard loads behind it reject.
    """
    match test:
        case Test(Comparison.GE, Binary(Operator.SUB, Length(), Key(name) as base), Const(distance)) if holds and name in _PLACES:
            yield base, distance
