"""Propagate: a local whose value is known where it is read is replaced by the value.

In:  a `Cfg`.
Out: the same graph with fewer reads of locals. A local is replaced where on every path to it the same value was assigned,
     what that is made of has not changed since, and computing it again costs no more than reading the local, or it is
     made of nothing but the packet and read only once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

from pcapext.cfg import (
    REMEMBERED,
    VOID,
    Ancillary,
    Binary,
    Block,
    Cfg,
    Const,
    Key,
    Label,
    Length,
    Load,
    Local,
    Operator,
    Value,
    locals_of,
    parts,
    reads_of,
    rewrite,
    rewrite_end,
)
from pcapext.optimize.simplify import simplify_value

#: The locals whose values are known at a place.
Known: TypeAlias = Mapping[Local, Value]


def propagate(cfg: Cfg) -> Cfg:
    """The graph with known locals replaced."""
    reads = Counter[Local]()
    for block in cfg.blocks.values():
        reads.update(_reads(block))
    predecessors = cfg.predecessors
    known_after: dict[Label, Known] = {}
    blocks: dict[Label, Block] = {}
    for label, block in cfg.blocks.items():
        known = _agreed([known_after[before] for before in predecessors[label]])
        blocks[label], known_after[label] = _block(block, known, reads)
    return cfg.with_blocks(blocks)


@lru_cache(REMEMBERED)
def _reads(block: Block) -> tuple[Local, ...]:
    """The locals that a block reads, each as often as it does."""
    return tuple(part for value in block.values for part in parts(value) if isinstance(part, Local))


def _agreed(knowledge: list[Known]) -> Known:
    if not knowledge:
        return {}
    first, *others = knowledge
    if all(other is first for other in others):
        return first
    return {local: value for local, value in first.items() if all(other.get(local) is value for other in others)}


def _block(block: Block, known: Known, reads: Counter[Local]) -> tuple[Block, Known]:
    if not block.assignments and known.keys().isdisjoint(reads_of(block)):
        return block, known

    def put(value: Value) -> Value:
        return known.get(value, value) if isinstance(value, Local) else value

    def put_base(value: Value) -> Value:
        # What a load that only asks for the packet's length is compared with are loads from the local: it stays.
        held = put(value)
        return value if isinstance(held, Binary) and not locals_of(held) else held

    assignments = []
    for local, value in block.assignments:
        if not locals_of(value).isdisjoint(known):
            value = rewrite(value, put_base if local == VOID else put)
        assignments.append((local, value))
        if local == VOID:
            continue
        known = {other: held for other, held in known.items() if other != local and local not in locals_of(held)}
        if local not in locals_of(value) and (is_cheap(value) or (reads[local] == 1 and not locals_of(value))):
            known[local] = value
        assignments[-1] = local, simplify_value(value)
    return Block(tuple(assignments), rewrite_end(block.end, put)), known


@lru_cache(REMEMBERED)
def is_cheap(value: Value) -> bool:
    """Whether one instruction computes it."""
    match value:
        case Const() | Length() | Key() | Ancillary() | Local() | Load(_, Const()):
            return True
        case Binary(Operator.ADD, Local(), Const()):
            return True  # a load from there takes the number as its k
        case Binary(Operator.LSH, Binary(Operator.AND, Load(1, Const()), Const(0xF)), Const(2)):
            return True  # ldxb 4*([k]&0xf)
    return False
