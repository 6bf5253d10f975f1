"""Merge: blocks that do the same are one.

In:  a `Cfg`.
Out: the graph with no two equal blocks, and no empty block that only jumps on.
"""

from __future__ import annotations

from pcapext.cfg import Block, Branch, Cfg, Goto, Label, Return


def merge(cfg: Cfg) -> Cfg:
    """The graph with equal blocks merged."""
    representative: dict[Label, Label] = {}
    seen: dict[Block, Label] = {}
    blocks: dict[Label, Block] = {}
    for label in reversed(cfg.labels):  # a block's targets come before it
        block = _retarget(cfg.blocks[label], representative)
        match block:
            case Block((), Goto(target)):
                representative[label] = target
                continue
        representative[label] = seen.setdefault(block, label)
        blocks[representative[label]] = block
    return Cfg(representative[cfg.entry], blocks) if len(blocks) < len(cfg.blocks) else cfg


def _retarget(block: Block, representative: dict[Label, Label]) -> Block:
    if all(representative[target] == target for target in block.end.targets):
        return block
    match block.end:
        case Goto(target):
            return Block(block.assignments, Goto(representative[target]))
        case Branch(test, then, otherwise):
            return Block(block.assignments, Branch(test, representative[then], representative[otherwise]))
        case Return():
            return block
