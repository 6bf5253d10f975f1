"""Simplify: constants are folded, values and tests take one form, and tests with a known outcome go.

In:  a `Cfg`.
Out: the same graph with simpler values. A constant stands on the right; a sum has at most one constant, and it is added
     or subtracted; a load takes the constant of its offset in where the offset cannot wrap around; `x - y == 0` is
     `x == y`; a test for zero of a masked value is a SET; `x > 0` and `x >= 1` are `x == 0` the other way round. A part
     that can reject the packet is never lost.
"""

from __future__ import annotations

from functools import lru_cache

from pcapext.cfg import (
    REMEMBERED,
    U32,
    Among,
    Binary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    End,
    Goto,
    Leave,
    Load,
    Operator,
    Return,
    Test,
    Value,
    loads_of,
    maximum,
    rewrite,
)


def simplify(cfg: Cfg) -> Cfg:
    """The graph with every value and test simplified."""
    return cfg.with_blocks({label: _block(block) for label, block in cfg.blocks.items()})


@lru_cache(REMEMBERED)
def _block(block: Block) -> Block:
    assignments = tuple((local, simplify_value(value)) for local, value in block.assignments)
    return Block(assignments, _end(block.end))


@lru_cache(REMEMBERED)
def simplify_value(value: Value) -> Value:
    """A value, simplified from its innermost parts outwards."""
    return rewrite(value, simplify_part)


def _end(end: End) -> End:
    match end:
        case Branch(Test(comparison, left, right), then, otherwise):
            simpler, holds = simplify_test(Test(comparison, simplify_value(left), simplify_value(right)))
            if isinstance(simpler, bool):
                return Goto(then if simpler == holds else otherwise)
            if then == otherwise and not (loads_of(simpler.left) or loads_of(simpler.right)):
                return Goto(then)
            return Branch(simpler, then, otherwise) if holds else Branch(simpler, otherwise, then)
        case Return(value):
            return Return(simplify_value(value))
        case Leave(number, values):
            return Leave(number, tuple(map(simplify_value, values)))
        case Goto():
            return end


def simplify_part(value: Value) -> Value:
    """A value whose parts are simple already.

    >>> from pcapext.cfg import Length, show
    >>> show(simplify_part(Binary(Operator.ADD, Const(14), Length())))
    '(length add 14)'
    """
    match value:
        case Binary(operator, Const(left), Const(right)):
            result = operator(left, right)
            return value if result is None else Const(result)
        case Binary(operator, Const() as left, right) if operator.commutes:
            return simplify_part(Binary(operator, right, left))
        case Binary(Operator.ADD | Operator.SUB as operator, left, Const(right)):
            return _sum(left, right if operator is Operator.ADD else -right & U32)
        case Binary(Operator.ADD, Binary(Operator.ADD | Operator.SUB as inner, left, Const() as constant), right):
            return simplify_part(Binary(inner, simplify_part(Binary(Operator.ADD, left, right)), constant))
        case Binary(Operator.ADD, left, Binary(Operator.ADD | Operator.SUB as inner, right, Const() as constant)):
            return simplify_part(Binary(inner, simplify_part(Binary(Operator.ADD, left, right)), constant))
        case Binary(Operator.MUL, left, Const(1)) | Binary(Operator.DIV, left, Const(1)):
            return left
        case Binary(Operator.OR | Operator.XOR | Operator.LSH | Operator.RSH, left, Const(0)):
            return left
        case Binary(Operator.AND, left, Const(0xFFFF_FFFF)):
            return left
        case Binary(Operator.AND, Binary(Operator.AND, left, Const(inner_mask)), Const(mask)):
            return simplify_part(Binary(Operator.AND, left, Const(inner_mask & mask)))
        case Binary(Operator.MUL | Operator.AND, left, Const(0)) if not loads_of(left):
            return Const(0)
        case Binary(Operator.LSH | Operator.RSH, left, Const(count)) if count > 31 and not loads_of(left):
            return Const(0)
        case Load(size, Binary(Operator.ADD, left, Const(constant)), k) if max(maximum(left), k) + constant <= U32:
            return Load(size, left, k + constant)
        case Among(Const(number), ranges):
            return Const(int(any(low <= number <= high for low, high in ranges)))
    return value


def _sum(value: Value, constant: int) -> Value:
    """value + constant, as an addition or a subtraction of the smaller number."""
    match value:
        case Binary(Operator.ADD, left, Const(inner)):
            return _sum(left, (inner + constant) & U32)
        case Binary(Operator.SUB, left, Const(inner)):
            return _sum(left, (constant - inner) & U32)
    if constant == 0:
        return value
    if constant <= U32 >> 1:
        return Binary(Operator.ADD, value, Const(constant))
    return Binary(Operator.SUB, value, Const(-constant & U32))


_MIRRORED = {Comparison.GT: Comparison.GE, Comparison.GE: Comparison.GT}


def simplify_test(test: Test) -> tuple[Test | bool, bool]:
    """A test and whether it has the same outcome as the given one, or the opposite.

    >>> from pcapext.cfg import Length, show
    >>> simpler, same = simplify_test(Test(Comparison.GT, Length(), Const(0)))
    >>> show(simpler), same
    ('length eq 0', False)
    """
    match test:
        case Test(comparison, Const(left), Const(right)):
            return comparison(left, right), True
        case Test(Comparison.EQ | Comparison.SET as comparison, Const() as left, right):
            return simplify_test(Test(comparison, right, left))
        case Test(Comparison.GT | Comparison.GE as comparison, Const() as left, right):
            return _opposite(*simplify_test(Test(_MIRRORED[comparison], right, left)))
        case Test(Comparison.EQ, Binary(Operator.SUB, left, right), Const(0)):
            return simplify_test(Test(Comparison.EQ, left, right))
        case Test(Comparison.EQ, Binary(Operator.ADD, left, Const(constant)), Const(right)) if (
            right < constant and maximum(left) + constant <= U32 and not loads_of(left)
        ):
            return False, True
        case Test(Comparison.EQ, Binary(Operator.ADD, left, Const(constant)), Const(right)):
            return simplify_test(Test(Comparison.EQ, left, Const((right - constant) & U32)))
        case Test(Comparison.EQ, Binary(Operator.AND, left, right), Const(0)):
            return _opposite(*simplify_test(Test(Comparison.SET, left, right)))
        case Test(Comparison.EQ, Binary(Operator.AND, left, Const(mask)), Const(bits)) if mask == bits and mask & mask - 1 == 0:
            return simplify_test(Test(Comparison.SET, left, Const(mask)))
        case Test(Comparison.SET, Binary(Operator.AND, left, Const(mask)), Const(bits)):
            return simplify_test(Test(Comparison.SET, left, Const(mask & bits)))
        case Test(Comparison.GT, left, Const(0)) | Test(Comparison.GE, left, Const(1)):
            return _opposite(*simplify_test(Test(Comparison.EQ, left, Const(0))))
        case Test(Comparison.GE, left, Const(0)) if not loads_of(left):
            return True, True
        case Test(Comparison.GT, left, Const(0xFFFF_FFFF)) | Test(Comparison.SET, left, Const(0)) if not loads_of(left):
            return False, True
    return test, True


def _opposite(test: Test | bool, same: bool) -> tuple[Test | bool, bool]:
    return test, not same
