"""Drop bounds: a length check is not needed where the load behind it would reject the packet just as well.

In:  a `Cfg`.
Out: the graph without the checks `length >= base` and `length - base >= n` whose failure rejects the packet and whose
     success leads, without another test, to a load that ends n bytes behind the base, or anywhere behind it. On a packet
     captured whole the load fails wherever the check does; on others it may reject what the check let pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pcapext.cfg import (
    REJECT,
    U32,
    Binary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    Goto,
    Label,
    Length,
    Load,
    Operator,
    Test,
    Value,
    locals_of,
    maximum,
    parts,
)
from pcapext.optimize.simplify import simplify_part

#: No packet is longer, and a sum of two numbers up to here does not wrap around.
_LONGEST = 0x7FFF_FFFF


def drop_bounds(cfg: Cfg) -> Cfg:
    """The graph without length checks that a load makes needless."""
    blocks = dict(cfg.blocks)
    for label in reversed(cfg.labels):  # the last of a chain of checks first: the loads behind it then follow the one before
        block = blocks[label]
        match block.end:
            case Branch(test, then, otherwise) if cfg.blocks[otherwise] == REJECT and _is_needless(test, _loads(blocks, then)):
                blocks[label] = Block(block.assignments, Goto(then))
    return Cfg(cfg.entry, blocks)


def _loads(blocks: Mapping[Label, Block], label: Label) -> Iterator[Load]:
    """The loads that are done from a block on, whatever way it goes."""
    while True:
        block = blocks[label]
        yield from (part for value in block.values for part in parts(value) if isinstance(part, Load))
        match block.end:
            case Goto(target):
                label = target
            case _:
                return


def _is_needless(test: Test, loads: Iterable[Load]) -> bool:
    """Whether one of these loads fails where the test does not hold."""
    if locals_of(test.left) | locals_of(test.right):
        return False  # they may be assigned before the load
    match test:
        case Test(Comparison.GE, Length(), base):
            return any(_is_behind(load.offset, base) for load in loads)
        case Test(Comparison.GE, Binary(Operator.SUB, Length(), base), distance) if maximum(distance) <= _LONGEST:
            end = simplify_part(Binary(Operator.ADD, base, distance))
            return any(_end(load) == end for load in loads)
    return False


def _is_behind(offset: Value, base: Value) -> bool:
    match offset:
        case Binary(Operator.ADD, left, right) if left == base:
            return maximum(left) + maximum(right) <= U32
    return offset == base


def _end(load: Load) -> Value:
    return simplify_part(Binary(Operator.ADD, load.offset, Const(load.k + load.size & U32)))
