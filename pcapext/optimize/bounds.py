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
            end = Binary(Operator.ADD, base, distance)
            return any(_same_sum(Binary(Operator.ADD, load.offset, Const(load.k + load.size & U32)), end) for load in loads)
    return False


def _is_behind(offset: Value, base: Value) -> bool:
    match offset:
        case Binary(Operator.ADD, left, right) if left == base:
            return maximum(left) + maximum(right) <= U32
    return offset == base


def _same_sum(value: Value, other: Value) -> bool:
    """Whether two values are sums of the same values and the same constants, in any order."""
    (values, constant), (others, other_constant) = _terms(value), _terms(other)
    return constant == other_constant and len(values) == len(others) and all(values.count(each) == others.count(each) for each in values)


def _terms(value: Value) -> tuple[list[Value], int]:
    """A sum, modulo 2**32: the values that are added, and the constant."""
    match value:
        case Const(number):
            return [], number
        case Binary(Operator.ADD, left, right):
            (values, constant), (others, more) = _terms(left), _terms(right)
            return values + others, constant + more & U32
        case Binary(Operator.SUB, left, Const(number)):
            values, constant = _terms(left)
            return values, constant - number & U32
    return [value], 0
