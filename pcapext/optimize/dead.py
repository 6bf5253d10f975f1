"""Remove dead assignments: what nobody reads is not computed, unless computing it can reject the packet.

In:  a `Cfg`.
Out: the graph without assignments that have no effect. A load that is kept only because it can reject the packet is
     assigned to `VOID`; it goes where the same block does the same load anyway.
"""

from __future__ import annotations

from functools import lru_cache

from pcapext.cfg import REMEMBERED, VOID, Block, Cfg, Label, Local, Value, live_before, loads_of, locals_of, read_at_end


def remove_dead(cfg: Cfg) -> Cfg:
    """The graph without assignments that have no effect."""
    blocks: dict[Label, Block] = {}
    live: dict[Label, frozenset[Local]] = {}
    for label in reversed(cfg.labels):
        block = cfg.blocks[label]
        live_after = frozenset[Local]().union(*(live[target] for target in block.end.targets))
        blocks[label] = block = _block(block, live_after) if block.assignments else block
        live[label] = live_before(block, live_after)
    return cfg.with_blocks(blocks)


@lru_cache(REMEMBERED)
def _block(block: Block, live_after: frozenset[Local]) -> Block:
    """The block without what has no effect."""
    live = live_after | read_at_end(block)
    done = {load for value in block.end.values for load in loads_of(value)}  # from here on in the block
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
    return Block(tuple(reversed(kept)), block.end)
