"""Search: a test whether a value is one of many numbers becomes a search by halves.

In:  a `Cfg`.
Out: the graph without `Among`: a search of about 1.3 instructions for each number, of which a path asks those of one half of one half.

Where several places search for values of their own among the same numbers, as for the addresses of IP and of ARP, and no path comes to
more than one of them, they share the search: each leaves its value in a local. If they do not go on at the same blocks, a second local
says where: it is the offset of what is searched for next, where only that differs, or else the number of the place to return to.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from pcapext.cfg import (
    U32,
    Among,
    Binary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    End,
    Goto,
    Label,
    Load,
    Local,
    Operator,
    Ranges,
    Test,
    Value,
    maximum,
)
from pcapext.optimize.membership import write_search
from pcapext.slotted import dataclass

#: A search for fewer runs of numbers is not shared: that costs a few instructions on each path.
_SHARED = 24


@dataclass(frozen=True, slots=True)
class _Site:
    """How a block ends that searches: for what, among which numbers, and where it goes on."""

    value: Value
    ranges: Ranges
    then: Label
    otherwise: Label

    @staticmethod
    def of(block: Block) -> _Site | None:
        match block.end:
            case Branch(Test(comparison, Among(value, ranges), Const(number)), then, otherwise):
                then, otherwise = (then if comparison(outcome, number) else otherwise for outcome in (1, 0))
                return _Site(value, ranges, then, otherwise)
        return None

    @property
    def end(self) -> End:
        return Branch(Test(Comparison.EQ, Among(self.value, self.ranges), Const(1)), self.then, self.otherwise)


def search(cfg: Cfg) -> Cfg:
    """The graph with every search written out."""
    sites = [site for block in cfg.blocks.values() if (site := _Site.of(block))]
    if not sites:
        return cfg
    for ranges in dict.fromkeys(site.ranges for site in sites if len(site.ranges) >= _SHARED):
        cfg = _share(cfg, ranges)
    blocks = dict(cfg.blocks)
    labels = count(max(blocks) + 1)

    def add(block: Block) -> Label:
        label = next(labels)
        blocks[label] = block
        return label

    for label, block in cfg.blocks.items():
        if site := _Site.of(block):
            blocks[label] = Block(block.assignments, Goto(write_search(site.value, site.ranges, site.then, site.otherwise, add)))
    return Cfg(cfg.entry, blocks)


def _share(cfg: Cfg, ranges: Ranges) -> Cfg:
    """The graph where the searches among these numbers are as few as can be: no path comes to two that become one."""
    while True:
        before = dict.fromkeys(cfg.blocks, 0)  # how many of them can be on a path to a block
        found: dict[int, list[Label]] = {}
        for label, block in cfg.blocks.items():
            site = _Site.of(block)
            searches = site is not None and site.ranges == ranges
            if searches:
                found.setdefault(before[label], []).append(label)
            for target in block.targets:
                before[target] = max(before[target], before[label] + searches)
        several = [labels for _, labels in sorted(found.items()) if len(labels) > 1]
        if not several:
            return cfg
        blocks = dict(cfg.blocks)
        _join(blocks, several[0])
        cfg = Cfg(cfg.entry, blocks)


def _join(blocks: dict[Label, Block], labels: Sequence[Label]) -> None:
    """Make one search of those of several blocks."""
    shared = max(blocks) + 1
    sites = [site for label in labels if (site := _Site.of(blocks[label]))]
    sought = Local(f"sought {shared}", max(maximum(site.value) for site in sites))
    same_then = len({site.then for site in sites}) == 1
    if same_then and (next_search := _next_search([blocks[site.otherwise] for site in sites], f"place {shared}")):
        blocks[shared + 1], places = next_search
        then, otherwise = sites[0].then, shared + 1
    else:
        resume = Local(f"resume {shared}")
        ways = list(dict.fromkeys((site.then, site.otherwise) for site in sites))
        places = [[(resume, Const(ways.index((site.then, site.otherwise))))] if len(ways) > 1 else [] for site in sites]
        then, otherwise = (_dispatch(blocks, resume, targets) for targets in zip(*ways, strict=True))
    for label, site, place in zip(labels, sites, places, strict=True):
        value = _from_place(site.value, place[0]) if place else site.value
        blocks[label] = Block((*blocks[label].assignments, *place, (sought, value)), Goto(shared))
    blocks[shared] = Block((), _Site(sought, sites[0].ranges, then, otherwise).end)


#: An assignment, or none.
_Assigned = list[tuple[Local, Value]]


def _next_search(blocks: Sequence[Block], name: str) -> tuple[Block, list[_Assigned]] | None:
    """One block for several that only search, and differ in no more than the offset of the load; for each the local with its offset."""
    sites = [site for block in blocks if not block.assignments and (site := _Site.of(block))]
    loads = [site.value for site in sites if isinstance(site.value, Load)]
    if len(loads) < len(blocks) or len(set(loads)) == 1 or len({load.size for load in loads}) > 1:
        return None
    if len({(site.ranges, site.then, site.otherwise) for site in sites}) > 1:
        return None
    k = min(load.k for load in loads)
    largest = max(maximum(load.offset) + load.k - k for load in loads)
    if largest > U32:
        return None
    place = Local(name, largest)
    places = [load.offset if load.k == k else Binary(Operator.ADD, load.offset, Const(load.k - k)) for load in loads]
    first = sites[0]
    block = Block((), _Site(Load(loads[0].size, place, k), first.ranges, first.then, first.otherwise).end)
    return block, [[(place, offset)] for offset in places]


def _from_place(value: Value, assigned: tuple[Local, Value]) -> Value:
    """The value, as a load from a place that has just been assigned if it can be: that is then in a register."""
    match value, assigned:
        case Load(size, offset, k), (place, Binary(Operator.ADD, base, Const(more))) if offset == base and k >= more:
            return Load(size, place, k - more)
        case Load(size, offset, k), (place, base) if offset == base and not isinstance(base, Const):
            return Load(size, place, k)
    return value


def _dispatch(blocks: dict[Label, Block], resume: Local, targets: Sequence[Label]) -> Label:
    """Where to go on: at the target whose number is in `resume`."""
    following = targets[0]
    for number, target in enumerate(targets):
        if target != targets[0]:
            label = max(blocks) + 2
            blocks[label] = Block((), Branch(Test(Comparison.EQ, resume, Const(number)), target, following))
            following = label
    return following
