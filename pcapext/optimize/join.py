"""Join: blocks that always follow each other are one.

In:  a `Cfg`.
Out: the graph with no block that is the only way to its only successor. A block that only jumps to a verdict has it itself.

What was joined is seldom equal to another block any more, so this comes after `merge` has done all it can.
"""

from __future__ import annotations

from pcapext.cfg import Block, Cfg, Goto, Return


def join(cfg: Cfg) -> Cfg:
    """The graph with chains of blocks joined."""
    predecessors = cfg.predecessors
    blocks = dict(cfg.blocks)
    for label in reversed(cfg.labels):
        match blocks[label]:
            case Block(assignments, Goto(target)) if len(predecessors[target]) == 1:
                follower = blocks[target]
                blocks[label] = Block((*assignments, *follower.assignments), follower.end)
            case Block(assignments, Goto(target)) if isinstance(blocks[target].end, Return) and not blocks[target].assignments:
                blocks[label] = Block(assignments, blocks[target].end)
    return cfg.with_blocks(blocks)
