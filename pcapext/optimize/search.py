"""Search: a test whether a value is one of many numbers becomes a search by halves.

In:  a `Cfg`.
Out: the graph without `Among`: a search of about 1.3 instructions for each number, of which a path asks those of one half of one half.

Where several places search for values of their own among the same numbers, as for the addresses of IP and of ARP, and no path comes to
more than one of them, they share the search: each leaves its value in a local, and in another which of them it is, if they do not all go
on at the same blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from pcapext.cfg import Among, Block, Branch, Cfg, Comparison, Const, Goto, Label, Local, Ranges, Test, Value, maximum
from pcapext.optimize.membership import write_search

#: A search for fewer runs of numbers is not shared: that costs a few instructions on each path.
_SHARED = 24


def search(cfg: Cfg) -> Cfg:
    """The graph with every search written out."""
    for ranges in dict.fromkeys(found[1] for block in cfg.blocks.values() if (found := _sought(block)) and len(found[1]) >= _SHARED):
        cfg = _share(cfg, ranges)
    blocks = dict(cfg.blocks)
    labels = count(max(blocks) + 1)

    def add(block: Block) -> Label:
        label = next(labels)
        blocks[label] = block
        return label

    for label, block in cfg.blocks.items():
        match _sought(block):
            case value, ranges, then, otherwise:
                blocks[label] = Block(block.assignments, Goto(write_search(value, ranges, then, otherwise, add)))
    return Cfg(cfg.entry, blocks)


def _sought(block: Block) -> tuple[Value, Ranges, Label, Label] | None:
    """What a block searches for among which numbers, and where it goes on."""
    match block.end:
        case Branch(Test(comparison, Among(value, ranges), Const(number)), then, otherwise):
            return value, ranges, then if comparison(1, number) else otherwise, then if comparison(0, number) else otherwise
    return None


def _share(cfg: Cfg, ranges: Ranges) -> Cfg:
    """The graph where those that search among these numbers share the search, if no path comes to two of them."""
    before = dict.fromkeys(cfg.blocks, 0)  # so many of them can be on a path to a block
    sharing: dict[int, list[Label]] = {}
    for label, block in cfg.blocks.items():
        found = _sought(block)
        searches = found is not None and found[1] == ranges
        if searches:
            sharing.setdefault(before[label], []).append(label)
        for target in block.targets:
            before[target] = max(before[target], before[label] + searches)
    blocks = dict(cfg.blocks)
    for sites in sharing.values():
        if len(sites) > 1:
            _join(blocks, ranges, sites)
    return Cfg(cfg.entry, blocks)


def _join(blocks: dict[Label, Block], ranges: Ranges, sites: Sequence[Label]) -> None:
    """Join the searches of these blocks into one."""
    shared = max(blocks) + 1
    found = [each for site in sites if (each := _sought(blocks[site])) is not None]
    values = [value for value, *_ in found]
    sought, resume = Local(f"sought {shared}", max(map(maximum, values))), Local(f"resume {shared}")
    ways = list(dict.fromkeys((then, otherwise) for _, _, then, otherwise in found))
    for site, (value, _, then, otherwise) in zip(sites, found, strict=True):
        number = ((resume, Const(ways.index((then, otherwise)))),) if len(ways) > 1 else ()
        blocks[site] = Block((*blocks[site].assignments, *number, (sought, value)), Goto(shared))
    then, otherwise = (_dispatch(blocks, resume, targets) for targets in zip(*ways, strict=True))
    blocks[shared] = Block((), Branch(Test(Comparison.EQ, Among(sought, ranges), Const(1)), then, otherwise))


def _dispatch(blocks: dict[Label, Block], resume: Local, targets: Sequence[Label]) -> Label:
    """Where to go on: at the target whose number is in `resume`."""
    following = targets[0]
    for number, target in enumerate(targets):
        if target != targets[0]:
            label = max(blocks) + 2
            blocks[label] = Block((), Branch(Test(Comparison.EQ, resume, Const(number)), target, following))
            following = label
    return following
