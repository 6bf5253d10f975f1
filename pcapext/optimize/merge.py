"""Merge: blocks that do the same are one.

In:  a `Cfg`.
Out: the graph with no two equal blocks, and no empty block that only jumps on.
"""

from __future__ import annotations

from pcapext.cfg import Block, Cfg, Goto, Label, retarget


def merge(cfg: Cfg) -> Cfg:
    """The graph with equal blocks merged."""
    representative: dict[Label, Label] = {}
    seen: dict[Block, Label] = {}
    blocks: dict[Label, Block] = {}
    for label in reversed(cfg.labels):  # a block's targets come before it
        block = cfg.blocks[label]
        if any(representative[target] != target for target in block.end.targets):
            block = Block(block.assignments, retarget(block.end, representative.__getitem__))
        match block:
            case Block((), Goto(target)):
                representative[label] = target
                continue
        representative[label] = seen.setdefault(block, label)
        blocks[representative[label]] = block
    return Cfg(representative[cfg.entry], blocks) if len(blocks) < len(cfg.blocks) else cfg
