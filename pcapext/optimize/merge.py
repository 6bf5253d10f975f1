"""Merge: blocks that do the same are one, and blocks that always follow each other are one.

In:  a `Cfg`.
Out: the graph with no two equal blocks, no empty block that only jumps on, and no block that is the only way to its only
     successor.
"""

from __future__ import annotations

from pcapext.cfg import Block, Branch, Cfg, End, Goto, Label, Return


def merge(cfg: Cfg) -> Cfg:
    """The graph with equal blocks and chains of blocks merged."""
    return _join_chains(_unify(cfg))


def _unify(cfg: Cfg) -> Cfg:
    representative: dict[Label, Label] = {}
    seen: dict[Block, Label] = {}
    blocks: dict[Label, Block] = {}
    for label in reversed(cfg.labels):  # a block's targets come before it
        block = Block(cfg.blocks[label].assignments, _retarget(cfg.blocks[label].end, representative))
        match block:
            case Block((), Goto(target)):
                representative[label] = target
                continue
        representative[label] = seen.setdefault(block, label)
        blocks[representative[label]] = block
    return Cfg(representative[cfg.entry], blocks)


def _retarget(end: End, representative: dict[Label, Label]) -> End:
    match end:
        case Goto(target):
            return Goto(representative[target])
        case Branch(test, then, otherwise):
            return Branch(test, representative[then], representative[otherwise])
        case Return():
            return end


def _join_chains(cfg: Cfg) -> Cfg:
    predecessors = cfg.predecessors
    blocks = dict(cfg.blocks)
    for label in reversed(cfg.labels):
        match blocks[label]:
            case Block(assignments, Goto(target)) if len(predecessors[target]) == 1:
                follower = blocks[target]
                blocks[label] = Block((*assignments, *follower.assignments), follower.end)
            case Block(assignments, Goto(target)) if isinstance(blocks[target].end, Return) and not blocks[target].assignments:
                blocks[label] = Block(assignments, blocks[target].end)
    return Cfg(cfg.entry, blocks)
