"""Drop bounds: a length check or a load is not needed where other loads reject the same packets.

In:  a `Cfg`.
Out: the graph without
     - checks of the length whose failure rejects the packet, where on every way on to acceptance a load reaches as far;
     - checks of the length that must hold, since a load before them reached as far;
     - loads assigned to `VOID` that reach no farther than others on all ways before, or on all ways on to acceptance;
     - tests with one target for both outcomes, when their loads cannot fail;
     - whatever is done on ways that all reject the packet.

How far a load reaches is told by a base and a distance: the load of 2 bytes at H + 12 reaches 14 behind H. On a packet
captured whole, a load fails exactly where the check of its reach does. On a packet that the snap length cut, the
length is not cut: a load may reject what a check lets pass, never the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache, reduce
from typing import TypeAlias

from pcapext.cfg import (
    LONGEST_PACKET,
    REJECT,
    REMEMBERED,
    VOID,
    Binary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Goto,
    Label,
    Length,
    Load,
    Local,
    Operator,
    Test,
    Value,
    loads_of,
    locals_of,
    maximum,
    parts,
)
from pcapext.optimize.places import Place, end_of, place_behind
from pcapext.optimize.simplify import simplify_part

#: How far behind each base the packet is known to reach.
Reach: TypeAlias = Mapping[Value | None, int]


def drop_bounds(cfg: Cfg) -> Cfg:
    """The graph without needless checks and loads."""
    return _drop_backward(_drop_forward(cfg))


def _drop_forward(cfg: Cfg) -> Cfg:
    """Drop what the loads before make needless."""
    arriving: dict[Label, list[Reach]] = {label: [] for label in cfg.blocks}
    arriving[cfg.entry].append({})
    blocks: dict[Label, Block] = {}
    for label, block in cfg.blocks.items():
        arrived = arriving.pop(label)
        if not arrived:
            continue  # its last way in was dropped
        reach = reduce(_common, arrived)
        kept = []
        for local, value in block.assignments:
            if local == VOID and _reaches(reach, value):
                continue
            kept.append((local, value))
            reach = _farther(reach, _ends(value))
            if local != VOID:
                reach = _behind(local, value, reach)
        end = block.end
        if isinstance(end, Branch):
            checked = _checked(end.test)
            same = end.then == end.otherwise and _reaches(reach, end.test.left) and _reaches(reach, end.test.right)
            if same or (checked is not None and reach.get(checked[0], -1) >= checked[1]):
                end = Goto(end.then)
            else:
                reach = _farther(_farther(reach, _ends(end.test.left)), _ends(end.test.right))
        if block.assignments or end is not block.end:
            block = Block(tuple(kept), end)
        blocks[label] = block
        for target in end.targets:
            arriving[target].append(reach)
    return cfg.with_blocks(blocks)


def _drop_backward(cfg: Cfg) -> Cfg:
    """Drop what the loads behind make needless."""
    # How far every way from a block on to acceptance reaches, None where there is no such way.
    reaches: dict[Label, Reach | None] = {}
    blocks: dict[Label, Block] = {}
    for label in reversed(cfg.labels):
        block = cfg.blocks[label]
        if block.end == REJECT.end:
            reaches[label], blocks[label] = None, REJECT
            continue
        end = block.end
        if isinstance(end, Branch) and blocks[end.otherwise] == REJECT:
            checked, behind = _checked(end.test), reaches[end.then]
            if checked is not None and behind is not None and behind.get(checked[0], -1) >= checked[1]:
                end = Goto(end.then)
        targets = end.targets
        ways = [way for target in targets if (way := reaches[target]) is not None]
        reach: Reach | None = reduce(_common, ways) if ways else None if targets else {}
        if reach is None:
            reaches[label], blocks[label] = None, REJECT
            continue
        for value in end.values:
            reach = _farther(reach, _ends(value))
        kept = []
        for local, value in reversed(block.assignments):
            if local == VOID and _reaches(reach, value):
                continue
            if local != VOID:
                reach = _before(local, value, reach)
            reach = _farther(reach, _ends(value))
            kept.append((local, value))
        reaches[label] = reach
        if block.assignments or end is not block.end:
            block = Block(tuple(reversed(kept)), end)
        blocks[label] = block
    return cfg.with_blocks(blocks)


@lru_cache(REMEMBERED)
def _ends(value: Value) -> tuple[Place, ...]:
    """The ends of the bytes that the loads in a value read."""
    return tuple(end_of(part) for part in parts(value) if isinstance(part, Load))


@lru_cache(REMEMBERED)
def _checked(test: Test) -> Place | None:
    """How far a packet reaches for which a check of its length holds."""
    match test:
        case Test(Comparison.GE, Length(), bound):
            return place_behind(bound, 0)
        case Test(Comparison.GE, Binary(Operator.SUB, Length(), base), distance) if maximum(distance) <= LONGEST_PACKET:
            index, more = place_behind(distance, 0)
            return place_behind(base if index is None else simplify_part(Binary(Operator.ADD, base, index)), more)
    return None


def _reaches(reach: Reach, value: Value) -> bool:
    """Whether no part of a value can reject a packet that reaches so far."""
    return all(isinstance(part, Load) for part in loads_of(value)) and all(reach.get(base, -1) >= end for base, end in _ends(value))


def _common(reach: Reach, other: Reach) -> Reach:
    if reach is other:
        return reach
    return {base: min(distance, other[base]) for base, distance in reach.items() if base in other}


def _farther(reach: Reach, places: Iterable[Place]) -> Reach:
    farther = {base: distance for place in places for base, distance in _up_to(place) if distance > reach.get(base, -1)}
    return {**reach, **farther} if farther else reach


@lru_cache(REMEMBERED)
def _up_to(place: Place) -> tuple[Place, ...]:
    """A place, and what is before it in every packet: a place that is behind a sum is behind its operands, and behind the begin."""
    base, distance = place
    match base:
        case Binary(Operator.ADD, left, right) if maximum(left) + maximum(right) <= LONGEST_PACKET:
            return (*_up_to(place_behind(left, distance)), place)
        case None:
            return (place,)
    return ((None, distance), place)


def _behind(local: Local, value: Value, reach: Reach) -> Reach:
    """What is known behind an assignment, in terms of the new value."""
    known = _without(local, reach)
    base, moved = place_behind(value, 0)
    return {**known, local: reach[base] - moved} if base in reach else known


def _before(local: Local, value: Value, reach: Reach) -> Reach:
    """What is known before an assignment, in terms of the old value."""
    known = _without(local, reach)
    base, moved = place_behind(value, 0)
    return _farther(known, [(base, reach[local] + moved)]) if local in reach else known


def _without(local: Local, reach: Reach) -> Reach:
    return {base: distance for base, distance in reach.items() if base is None or local not in locals_of(base)}
