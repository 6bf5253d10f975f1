"""Code generation: what the markers in libpcap's program stand for, as blocks over flow keys.

In:  the graph of libpcap's program, and what its markers stand for.
Out: the graph with each marker replaced. It computes the filter's verdict wherever the flow keys can be loaded.

A relation over headers becomes a chain of tests: the packet has the header (a key says so), the bytes are in the packet
(its length says so), and the comparison holds. Each test that fails makes the relation false: bytes that are not
there never reject a packet, as a load of libpcap's does. Tests that are not needed here are for the optimizer to take out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from pcapext.cfg import (
    LONGEST_PACKET,
    U32,
    Binary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    End,
    Goto,
    Key,
    Label,
    Length,
    Load,
    Operator,
    Passed,
    Test,
    Value,
    maximum,
    rewrite,
    rewrite_end,
)
from pcapext.extension import Marked
from pcapext.headers import ABSENT, HEADERS
from pcapext.syntax import (
    Access,
    And,
    Arithmetic,
    ArithmeticOperator,
    Encap,
    Expression,
    KeyValue,
    Negate,
    Not,
    Number,
    Or,
    Relation,
    RelationOperator,
)
from pcapext.syntax import Binary as BinaryArithmetic
from pcapext.syntax import Length as LengthOfPacket

_OPERATORS: dict[ArithmeticOperator, Operator] = {
    "+": Operator.ADD,
    "-": Operator.SUB,
    "*": Operator.MUL,
    "/": Operator.DIV,
    "%": Operator.MOD,
    "&": Operator.AND,
    "|": Operator.OR,
    "^": Operator.XOR,
    "<<": Operator.LSH,
    ">>": Operator.RSH,
}

#: The test for each comparison, and whether the relation holds where the test does.
_COMPARISONS: dict[RelationOperator, tuple[Comparison, bool]] = {
    "=": (Comparison.EQ, True),
    "!=": (Comparison.EQ, False),
    ">": (Comparison.GT, True),
    "<=": (Comparison.GT, False),
    ">=": (Comparison.GE, True),
    "<": (Comparison.GE, False),
}

#: A test that must have an outcome.
Guard: TypeAlias = tuple[Test, bool]


def generate(cfg: Cfg, marked: Marked, least: int = 0) -> Cfg:
    """Replace every marker. Loads from a header have a k of `least` or more, no header beginning before that place.

    On a cooked handle libpcap takes the length of the header that it makes up off each k (pcap-linux.c, fix_offset), and makes
    something else of a smaller one.
    """
    return _Generator(cfg, marked, least).graph()


class _Generator:
    """Builds one graph."""

    def __init__(self, cfg: Cfg, marked: Marked, least: int):
        self.given = cfg
        self.marked = marked
        self.least = least
        self.blocks: dict[Label, Block] = {}
        self.next_label = max(cfg.blocks) + 1

    def graph(self) -> Cfg:
        found: set[int] = set()
        numbers = {number: self.value(meaning) for number, meaning in self.marked.numbers.items()}

        def put_number(value: Value) -> Value:
            match value:
                case Binary(Operator.MUL, Const(1), Const(marker)) if marker in numbers:
                    found.add(marker)
                    return numbers[marker]
            return value

        for label, block in self.given.blocks.items():
            assignments = tuple((local, rewrite(value, put_number)) for local, value in block.assignments)
            match block.end:
                case Branch(Test(Comparison.GE, Length(), Const(marker)), then, otherwise) if marker in self.marked.terms:
                    found.add(marker)
                    first = self.new_label()
                    self.condition(self.marked.terms[marker], first, then, otherwise)
                    end: End = Goto(first)
                case Branch(Test(Comparison.GE, Length(), Const(marker)), then, otherwise) if marker in self.marked.relations:
                    found.add(marker)
                    end = Goto(
                        self.chain([guard for part in self.marked.relations[marker] for guard in self.guards(part)], then, otherwise)
                    )
                case _:
                    end = rewrite_end(block.end, put_number)
            self.blocks[label] = Block(assignments, end)
        missing = (self.marked.terms.keys() | self.marked.relations.keys() | numbers.keys()) - found
        if missing:
            raise AssertionError(f"libpcap left out {sorted(missing)} of {self.marked.text!r}")
        return Cfg(self.given.entry, self.blocks)

    def new_label(self) -> Label:
        self.next_label += 1
        return self.next_label - 1

    def condition(self, condition: Expression, label: Label, then: Label, otherwise: Label) -> None:
        """Blocks, the first of them `label`, that go to `then` where the condition holds and else to `otherwise`."""
        pending = [(condition, label, then, otherwise)]
        while pending:
            node, label, then, otherwise = pending.pop()
            match node:
                case And(left, right):
                    middle = self.new_label()
                    pending += [(right, middle, then, otherwise), (left, label, middle, otherwise)]
                case Or(left, right):
                    middle = self.new_label()
                    pending += [(right, middle, then, otherwise), (left, label, then, middle)]
                case Not(operand):
                    pending.append((operand, label, otherwise, then))
                case Relation(operator, left, right):
                    comparison, holds = _COMPARISONS[operator]
                    test = Test(comparison, self.value(left), self.value(right))
                    final = self.new_label()
                    self.blocks[final] = Block((), Branch(test, then, otherwise) if holds else Branch(test, otherwise, then))
                    self.blocks[label] = Block((), Goto(self.chain([*self.guards(left), *self.guards(right)], final, otherwise)))
                case Encap(str(name), identifier):
                    self.blocks[label] = Block((), Branch(Test(Comparison.EQ, Passed(name, identifier), Const(1)), then, otherwise))
                case _:
                    raise AssertionError(f"{type(node).__name__} is left after resolving")

    def chain(self, guards: Sequence[Guard], then: Label, otherwise: Label) -> Label:
        """Blocks that go to `then` where all guards hold, asked in their order; the first of them."""
        for test, wanted in reversed(guards):
            label = self.new_label()
            self.blocks[label] = Block((), Branch(test, then, otherwise) if wanted else Branch(test, otherwise, then))
            then = label
        return then

    def value(self, arithmetic: Arithmetic) -> Value:
        match arithmetic:
            case Number(number):
                return Const(number)
            case LengthOfPacket():
                return Length()
            case KeyValue(scope, key):
                return Key(key, scope == "outer")
            case Access(scope, protocol, index, size, span):
                base, offset = self.value(KeyValue(scope, HEADERS[protocol].base, span)), self.value(index)
                if isinstance(offset, Const) and offset.value >= self.least:
                    return Load(size, base, offset.value)
                at = Binary(Operator.ADD, base, offset)
                return Load(size, Binary(Operator.SUB, at, Const(self.least)), self.least) if self.least else Load(size, at)
            case Negate(operand):
                return Binary(Operator.SUB, Const(0), self.value(operand))
            case BinaryArithmetic(operator, left, right):
                return Binary(_OPERATORS[operator], self.value(left), self.value(right))
        raise AssertionError(f"{type(arithmetic).__name__} is left after resolving")

    def guards(self, arithmetic: Arithmetic) -> Iterator[Guard]:
        """What must hold for the bytes in some arithmetic to be there, in an order in which each can be asked."""
        match arithmetic:
            case Access(scope, protocol, index, size):
                header = HEADERS[protocol]
                outer = scope == "outer"
                base, offset = Key(header.base, outer), self.value(index)
                if header.ethertype is not None:
                    yield Test(Comparison.EQ, Key("nproto", outer), Const(header.ethertype)), True
                if header.protocol is not None:
                    yield Test(Comparison.EQ, Key("tproto", outer), Const(header.protocol)), True
                if header.base in ABSENT:
                    yield Test(Comparison.EQ, base, Const(ABSENT[header.base])), False
                yield from self.guards(index)
                if header.base == "poff":
                    # TCP's data offset can point past the end. All other keys are places in the packet.
                    yield Test(Comparison.GE, Length(), base), True
                behind_base = Binary(Operator.SUB, Length(), base)
                if maximum(offset) > LONGEST_PACKET:
                    # An index past the end, before the sum below can wrap around.
                    yield Test(Comparison.GE, behind_base, offset), True
                end = Const(offset.value + size & U32) if isinstance(offset, Const) else Binary(Operator.ADD, offset, Const(size))
                yield Test(Comparison.GE, behind_base, end), True
            case BinaryArithmetic(_, left, right):
                yield from self.guards(left)
                yield from self.guards(right)
            case Negate(operand):
                yield from self.guards(operand)
