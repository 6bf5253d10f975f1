"""Conditions: what `and`, `or` and `not` said, read from the blocks that were made of it.

In:  a `Cfg` that no pass has changed.
Out: its conditions, each of any number of tests, and where they lead.

A block that only one other can reach, that assigns nothing and shares a target with it is the second operand of an `and` or an `or`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from pcapext.cfg import Block, Branch, Cfg, Goto, Label, Test
from pcapext.slotted import dataclass

#: How often `and` and `or` may alternate in one condition: blocks that would make it deeper stay outside.
_DEEPEST = 40


@dataclass(frozen=True, slots=True)
class Join:
    """Whether `left` or `right` holds, if `either`, or both of them. `depth`: how often that alternates in here."""

    either: bool
    left: Side
    right: Side
    depth: int


@dataclass(frozen=True, slots=True)
class Side:
    """A condition, or if `holds` is False the opposite."""

    condition: Condition
    holds: bool


Condition: TypeAlias = Test | Join


@dataclass(frozen=True, slots=True)
class Fork:
    """A condition and the blocks that its outcomes lead to."""

    condition: Condition
    then: Label
    otherwise: Label


def fold(cfg: Cfg) -> dict[Label, Fork]:
    """The blocks that begin a condition, each with all of it."""
    ahead: dict[Label, Label] = {}  # past blocks that do nothing
    ways_in = dict.fromkeys(cfg.blocks, 0)
    for label in reversed(cfg.labels):
        match cfg.blocks[label]:
            case Block((), Goto(target)):
                ahead[label] = ahead.get(target, target)
            case block:
                for target in block.targets:
                    ways_in[ahead.get(target, target)] += 1
    ways_in[ahead.get(cfg.entry, cfg.entry)] += 1
    forks: dict[Label, Fork] = {}
    for label in reversed(cfg.labels):
        match cfg.blocks[label].end:
            case Branch(test, then, otherwise):
                forks[label] = Fork(test, ahead.get(then, then), ahead.get(otherwise, otherwise))
                while joined := _joined(cfg, forks, ways_in, label):
                    second, shared, forks[label] = joined
                    ways_in[shared] -= 1
                    del forks[second]
    return forks


def _joined(cfg: Cfg, forks: dict[Label, Fork], ways_in: dict[Label, int], label: Label) -> tuple[Label, Label, Fork] | None:
    """The block that is the second operand of what begins at `label`, the target they share, and both as one."""
    first = forks[label]
    for either, second, shared in ((True, first.otherwise, first.then), (False, first.then, first.otherwise)):
        if ways_in[second] != 1 or second not in forks or cfg.blocks[second].assignments:
            continue
        match forks[second]:
            case Fork(condition, then, otherwise) if shared in (then, otherwise):
                # `a or b` where b leads there too if it holds, or `a or not b`; for `and` the other way round.
                holds = (then if either else otherwise) == shared
                further = otherwise if then == shared else then
                join = _join(either, Side(first.condition, True), Side(condition, holds))
                if join is not None:
                    return second, shared, Fork(join, shared, further) if either else Fork(join, further, shared)
    return None


def _join(either: bool, left: Side, right: Side) -> Join | None:
    depth = 1
    for side in (left, right):
        if isinstance(side.condition, Join):
            depth = max(depth, side.condition.depth + ((side.condition.either == side.holds) != either))
    return Join(either, left, right, depth) if depth <= _DEEPEST else None


def flatten(side: Side, either: bool) -> Iterator[Side]:
    """The operands, in order, of all the `or`s (if `either`, else `and`s) at the top of a condition."""
    pending = [side]
    while pending:
        side = pending.pop()
        match side:
            case Side(Join(kind, left, right), holds) if (kind == holds) == either:
                pending += (Side(right.condition, right.holds == holds), Side(left.condition, left.holds == holds))
            case _:
                yield side
