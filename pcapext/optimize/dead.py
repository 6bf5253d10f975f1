"""Remove dead assignments: what nobody reads is not computed, unless computing it can reject the packet.

In:  a `Cfg`.
Out: the graph without assignments that have no effect. A load that is kept only because it can reject the packet is
     assigned to `VOID`; it goes where the same block does the same load anyway.
"""

from __future__ import annotations

from pcapext.cfg import VOID, Block, Cfg, Label, Local, Value, live_before, loads_of, locals_of


def remove_dead(cfg: Cfg) -> Cfg:
    """The graph without assignments that have no effect."""
    blocks: dict[Label, Block] = {}
    live: dict[Label, set[Local]] = {}
    for label in reversed(cfg.labels):
        block = cfg.blocks[label]
        blocks[label], live[label] = _block(block, set().union(*(live[target] for target in block.targets)))
    return Cfg(cfg.entry, blocks)


def _block(block: Block, live_after: set[Local]) -> tuple[Block, set[Local]]:
    """The block without what has no effect, and the locals that it then reads."""
    live = live_before(Block((), block.end), live_after)
    done = {load for value in Block((), block.end).values for load in loads_of(value)}  # from here on in the block
    kept: list[tuple[Local, Value]] = []
    for local, value in reversed(block.assignments):
        loads = loads_of(value)
        if local in live:
            kept.append((local, value))
            live = live - {local} | locals_of(value)
            # What is read of the old value of the local is something else.
            done = {load for load in done if local not in locals_of(load)}
        else:
            inner = {part for load in loads for part in loads_of(load) if part != load}
            for load in loads:
                if load not in done and load not in inner:
                    kept.append((VOID, load))
                    live |= locals_of(load)
        done.update(loads)
    return Block(tuple(reversed(kept)), block.end), live
