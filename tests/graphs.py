"""Graphs for the tests of the passes: what a `Cfg` does to a packet, by its definition, and random ones to try.

`evaluate` is written from the definition in cfg.py and shares nothing with the passes or the machine. Random graphs
read no local that some path to them left unassigned.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from random import Random

from pcapext import bpf
from pcapext.bpf import OPCODE_BY_CODE, Instruction, Operand
from pcapext.cfg import (
    REJECT,
    VOID,
    Among,
    Ancillary,
    Binary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    End,
    Goto,
    Key,
    Leave,
    Length,
    Load,
    Local,
    Operator,
    Return,
    Test,
    Value,
)
from pcapext.flowkeys import FLOW_KEYS, KEY_BY_NAME, FlowKeys

#: How many times as many random cases to try as by default.
EFFORT = int(os.environ.get("PCAPEXT_TEST_EFFORT", "1"))

WRAP = 1 << 32

#: Where simplifications and range checks have their edges, and numbers that random packets hold.
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 14, 15, 16, 17, 20, 31, 32, 33, 40, 0x45, 0x80, 0xFF, 0x100, 0x0800, 0xFFFF, 0x1_0000,
           0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF0, 0xFFFF_FFFE, 0xFFFF_FFFF)  # fmt: skip
OCTETS = (0, 0, 1, 2, 3, 4, 5, 6, 8, 14, 15, 17, 20, 0x45, 0x80, 0xFF)


class Rejected(Exception):
    """A load past the end, or a division by zero."""


@dataclass
class State:
    """What values are computed from: a packet, its length on the wire, its flow keys, and the locals."""

    packet: bytes
    wirelen: int
    keys: FlowKeys
    variables: dict[Local, int] = field(default_factory=dict)

    def number(self, value: Value) -> int:
        """The number that a value is. An ancillary word is not known to a packet alone: it rejects."""
        match value:
            case Const():
                return value.value
            case Length():
                return self.wirelen
            case Local():
                return self.variables[value]
            case Key():
                return int(getattr(self.keys, value.name))
            case Ancillary():
                raise Rejected
            case Load():
                first = self.number(value.offset) + value.k
                if first + value.size > len(self.packet):
                    raise Rejected
                return int.from_bytes(self.packet[first : first + value.size], "big")
            case Binary():
                return arithmetic(value.operator.value, self.number(value.left), self.number(value.right))
            case Among():
                number = self.number(value.value)
                return int(any(low <= number <= high for low, high in value.ranges))

    def holds(self, test: Test) -> bool:
        """The outcome of a test."""
        return compare(test.comparison.value, self.number(test.left), self.number(test.right))


def evaluate(cfg: Cfg, packet: bytes, wirelen: int | None = None, keys: FlowKeys | None = None) -> int:
    """What the graph returns for a packet; a number of more than 32 bits where it leaves."""
    state = State(packet, len(packet) if wirelen is None else wirelen, keys or FlowKeys())
    label = cfg.entry
    try:
        while True:
            block = cfg.blocks[label]
            for local, value in block.assignments:
                number = state.number(value)
                if local != VOID:
                    state.variables[local] = number
            match block.end:
                case Goto():
                    label = block.end.target
                case Branch():
                    label = block.end.then if state.holds(block.end.test) else block.end.otherwise
                case Return():
                    return state.number(block.end.value)
                case Leave():
                    # One number made of all that it passes on; no other is that large.
                    return reduce(lambda all_, value: all_ * WRAP + state.number(value), block.end.values, WRAP + block.end.number)
    except Rejected:
        return 0


def arithmetic(operator: str, left: int, right: int) -> int:
    """An operation on two numbers of 32 bits."""
    if operator in ("div", "mod"):
        if right == 0:
            raise Rejected
        return left // right if operator == "div" else left % right
    if operator in ("lsh", "rsh"):
        return (left * 2**right % WRAP if operator == "lsh" else left // 2**right) if right < 32 else 0
    results = {
        "add": left + right, "sub": left - right, "mul": left * right, "and": left & right, "or": left | right, "xor": left ^ right,
    }  # fmt: skip
    return results[operator] % WRAP


def compare(comparison: str, left: int, right: int) -> bool:
    """The outcome of a test of two numbers."""
    return {"jeq": left == right, "jgt": left > right, "jge": left >= right, "jset": bool(left & right)}[comparison]


def random_packet(rng: Random, longest: int = 80) -> bytes:
    """Bytes that random graphs can tell apart: mostly small numbers."""
    length = rng.randrange(longest) if rng.random() < 0.3 else longest
    return bytes(rng.choice(OCTETS) if rng.random() < 0.8 else rng.randrange(256) for _ in range(length))


def random_keys(rng: Random) -> FlowKeys:
    """Flow keys, which need not belong to any packet but keep to the ranges of flowkeys.py."""
    numbers = {key.name: rng.choice((0, 14, rng.randrange(64), 0x800, 0xFFFF)) for key in FLOW_KEYS}
    if rng.random() < 0.5:
        numbers["lhoff"] = 0xFFFF_FFFF
    return FlowKeys(**numbers)


class RandomGraph:
    """Makes one random graph. Values come back, so that there is something to know, to share and to mix up."""

    def __init__(self, rng: Random, names: int = 5, depth: int = 3, keys: bool = True):
        self.rng = rng
        self.locals = [Local(f"L{number}") for number in range(names)]
        self.depth = depth
        self.keys = keys
        self.seen: list[Value] = [Load(2, Const(12)), Load(1, Const(23)), Length()]
        self.wanted: list[Value] = []  # to come next
        self.tested: list[Test] = []

    def graph(self, blocks: int) -> Cfg:
        rng = self.rng
        accept, other, reject = range(blocks, blocks + 3)
        made: dict[int, Block] = {accept: Block((), Return(Const(96))), other: Block((), Return(Const(1))), reject: REJECT}
        assigned: dict[int, set[Local]] = {0: set()}  # by block that can be reached: what every path to it assigned
        for label in range(blocks):
            if label not in assigned:
                continue
            readable = set(assigned[label])
            assignments = []
            for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
                local = rng.choice([*self.locals, VOID])
                assignments.append((local, self.value(readable)))
                if local != VOID:
                    readable.add(local)
            made[label] = block = Block(tuple(assignments), self.end(label, readable, accept, other, reject))
            for target in block.targets:
                assigned[target] = assigned[target] & readable if target in assigned else set(readable)
        return Cfg(0, made)

    def end(self, label: int, readable: set[Local], accept: int, other: int, reject: int) -> End:
        rng = self.rng
        kind = rng.random()
        near = range(label + 1, min(label + 4, accept + 1))
        if kind < 0.03 and label:
            return Return(self.value(readable))
        if kind < 0.12:
            return Goto(rng.choice(near))
        if kind < 0.25:
            return Branch(self.bounds_check(readable), rng.choice(near), reject)
        then, otherwise = rng.choice(near), rng.choice([*near, *near, accept, other, reject])
        if rng.random() < 0.5:
            then, otherwise = otherwise, then
        return Branch(self.test(readable), then, otherwise)

    def bounds_check(self, readable: set[Local]) -> Test:
        """Asks for bytes that the blocks to come may load, or nearly."""
        rng = self.rng
        base, k, size = self.offset(readable, 1), rng.choice((0, 1, 6)), rng.choice((1, 2, 4))
        index = rng.choice([Const(k), Binary(Operator.AND, Load(1, Const(rng.randrange(20))), Const(rng.choice((7, 0xFF))))])
        self.wanted += [Load(size, base, k), Load(size, Binary(Operator.ADD, base, index))]
        if rng.random() < 0.4:
            return Test(Comparison.GE, Length(), base)
        distance = rng.choice([Const(k + size), Binary(Operator.ADD, index, Const(size)), self.value(readable, 1)])
        return Test(Comparison.GE, Binary(Operator.SUB, Length(), base), distance)

    def test(self, readable: set[Local]) -> Test:
        rng = self.rng
        comparison = rng.choice(list(Comparison))
        if self.tested and rng.random() < 0.3:
            again = rng.choice(self.tested)
            if readable.issuperset(locals_in(again.left)) and readable.issuperset(locals_in(again.right)):
                return Test(rng.choice((comparison, again.comparison)), again.left, rng.choice((again.right, again.right, self.constant())))
        self.tested.append(self.new_test(comparison, readable))
        return self.tested[-1]

    def new_test(self, comparison: Comparison, readable: set[Local]) -> Test:
        match self.rng.randrange(6):
            case 0:
                return Test(comparison, self.value(readable), self.value(readable))
            case 1:
                return Test(comparison, self.constant(), self.value(readable))
        return Test(comparison, self.value(readable), self.constant())

    def constant(self) -> Const:
        return Const(self.rng.choice(NUMBERS))

    def value(self, readable: set[Local], depth: int | None = None) -> Value:
        rng = self.rng
        known = self.wanted.pop() if self.wanted and rng.random() < 0.6 else rng.choice(self.seen)
        if rng.random() < 0.4 and readable.issuperset(locals_in(known)):
            return known
        value = self.new_value(readable, self.depth if depth is None else depth)
        self.seen.append(value)
        return value

    def new_value(self, readable: set[Local], depth: int) -> Value:
        rng = self.rng
        kind = rng.random()
        if readable and kind < 0.2:
            return rng.choice(sorted(readable, key=lambda local: local.name))
        if depth <= 0 or kind < 0.45:
            leaves: list[Value] = [self.constant(), Length(), *(Load(size, Const(rng.randrange(40))) for size in (1, 1, 2, 4))]
            if self.keys:
                leaves.append(Key(rng.choice(FLOW_KEYS).name))
            return rng.choice(leaves)
        if kind < 0.55:
            return Load(rng.choice((1, 2, 4)), self.offset(readable, depth - 1), rng.choice((0, 1, 6, 14, 20)))
        left = self.constant() if rng.random() < 0.1 else self.value(readable, depth - 1)
        operator = rng.choice(list(Operator))
        right = self.constant() if rng.random() < 0.5 else self.value(readable, depth - 1)
        if operator in (Operator.DIV, Operator.MOD) and rng.random() < 0.8:
            right = Binary(Operator.OR, right, Const(1))
        return Binary(operator, left, right)

    def offset(self, readable: set[Local], depth: int) -> Value:
        """Mostly a place in the packet."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.2:
            return header_length(Load(1, Const(rng.randrange(20))))
        value = self.value(readable, depth)
        if kind < 0.3:
            return value
        if kind < 0.4:
            return Binary(Operator.SUB, Binary(Operator.AND, value, Const(31)), Const(rng.choice((1, 4, 14))))
        if kind < 0.5:
            return Binary(Operator.ADD, Binary(Operator.AND, value, Const(15)), Const(rng.choice((1, 4, 14))))
        return Binary(Operator.AND, value, Const(31))


def header_length(octet: Value) -> Value:
    return Binary(Operator.LSH, Binary(Operator.AND, octet, Const(15)), Const(2))


def locals_in(value: Value) -> Iterator[Local]:
    match value:
        case Local():
            yield value
        case Load():
            yield from locals_in(value.offset)
        case Binary():
            yield from locals_in(value.left)
            yield from locals_in(value.right)
        case Among():
            yield from locals_in(value.value)


def values_in(cfg: Cfg) -> Iterator[Value]:
    """Every value that stands in a graph, parts not counted."""
    for block in cfg.blocks.values():
        yield from block.values


def random_graphs(count: int, seed: int, sizes: Sequence[int] = (2, 5, 12, 12, 30), keys: bool = True) -> Iterator[tuple[Cfg, Random]]:
    """Graphs of many shapes, each with the generator that made it, for what is wanted next."""
    for number in range(count * EFFORT):
        rng = Random(f"{seed} {number}")
        yield RandomGraph(rng, rng.choice((1, 3, 5, 8)), rng.choice((1, 2, 3, 3, 4)), keys).graph(rng.choice(sizes)), rng


def random_inputs(rng: Random, count: int = 12) -> Iterator[tuple[bytes, FlowKeys]]:
    """Packets, long and short, with flow keys."""
    for _ in range(count):
        yield random_packet(rng), random_keys(rng)


_TOKENS = re.compile(r"0x[0-9a-f]+|\w+|:=|[][():?;+-]")


def graph_of(text: str) -> Cfg:
    """The graph that `str` shows as this text. The first block is the entry; names that are no flow keys are locals."""
    blocks = {}
    for line in text.strip().splitlines():
        label, _, rest = line.strip().partition(": ")
        *assigned, end = rest.split("; ")
        pairs = [(tokens[0], _value(tokens[2:])) for tokens in map(_TOKENS.findall, assigned)]
        blocks[int(label)] = Block(tuple((Local(name), value) for name, value in pairs), _end(_TOKENS.findall(end)))
    return Cfg(next(iter(blocks)), blocks)


def value_of(text: str) -> Value:
    """The value that `show` shows as this text."""
    return _value(_TOKENS.findall(text))


def condition_of(text: str) -> Test:
    """The test that `show` shows as this text."""
    tokens = _TOKENS.findall(text)
    left = _parse(tokens)
    comparison = Comparison(f"j{tokens.pop(0)}")
    return Test(comparison, left, _value(tokens))


def _end(tokens: list[str]) -> End:
    match tokens:
        case ["goto", target]:
            return Goto(int(target))
        case ["return", *rest]:
            return Return(_value(rest))
        case [*condition, "?", then, ":", otherwise]:
            return Branch(condition_of(" ".join(condition)), int(then), int(otherwise))
    raise ValueError(tokens)


def _value(tokens: list[str]) -> Value:
    parsed = _parse(tokens)
    if tokens:
        raise ValueError(f"{tokens} is left")
    return parsed


def _parse(tokens: list[str]) -> Value:
    """The value at the begin of the tokens, which are used up."""
    token = tokens.pop(0)
    if token == "(":
        left = _parse(tokens)
        if tokens[0] == "among":
            numbers = " ".join(tokens[1 : tokens.index(")")]).replace(" - ", "-").split()
            del tokens[: tokens.index(")") + 1]
            return Among(left, tuple((int(low), int(high or low)) for low, _, high in (number.partition("-") for number in numbers)))
        operator, right = Operator(tokens.pop(0)), _parse(tokens)
        assert tokens.pop(0) == ")"
        return Binary(operator, left, right)
    if token[0].isdigit():
        return Const(int(token, 0))
    if tokens[:1] == ["["]:
        del tokens[0]
        inside, k = _parse(tokens), 0
        if tokens[0] == "+":
            k = int(tokens[1], 0)
            del tokens[:2]
        assert tokens.pop(0) == "]"
        kind, size = token[:-1], int(token[-1])
        if kind == "ancillary":
            assert isinstance(inside, Const)
            return Ancillary(size, inside.value)
        return Load(size, inside, k)
    if token == "length":
        return Length()
    return Key(token) if token in KEY_BY_NAME else Local(token)


def steered_packet(instructions: Sequence[Instruction], rng: Random) -> bytes:
    """A packet that takes a random way through a program without loops, and is mostly accepted in the end.

    The program is run, and where it compares bytes with a constant, they become what makes the test come out as wished.
    Bytes that a test before saw may change: then the packet goes another way than the one that it was made on.
    """
    accepting = [False] * len(instructions)  # whether a `ret` other than `ret #0` can follow
    for index in reversed(range(len(instructions))):
        instruction = instructions[index]
        if instruction.code in (bpf.RET_K, bpf.RET_A):
            accepting[index] = instruction.code == bpf.RET_A or instruction.k != 0
        else:
            accepting[index] = any(accepting[target] for target in instruction.targets(index) or (index + 1,))

    packet = bytearray(octet if rng.random() < 0.5 else 0 for octet in random_packet(rng, 64))
    zero = _Word(0)
    a, x, memory = zero, zero, [zero] * bpf.MEMORY_SLOTS
    index = 0
    while True:
        instruction = instructions[index]
        code, k = instruction.code, instruction.k
        index += 1
        match OPCODE_BY_CODE[code].mnemonic, OPCODE_BY_CODE[code].operand:
            case "ret", _:
                return bytes(packet)
            case "ld" | "ldh" | "ldb" | "ldxb" as mnemonic, (Operand.ABSOLUTE | Operand.INDIRECT | Operand.HEADER_LENGTH) as operand:
                first = k + (x.number if operand is Operand.INDIRECT else 0)
                size = {"ld": 4, "ldh": 2}.get(mnemonic, 1)
                if first + size > len(packet):
                    if first + size > 400:
                        return bytes(packet)
                    packet += random_packet(rng, 20).ljust(first + size - len(packet), b"\0")
                word = _Word(int.from_bytes(packet[first : first + size], "big"), (first, size))
                if operand is Operand.HEADER_LENGTH:
                    x = _Word((word.number & 15) << 2)
                else:
                    a = word
            case "ld", Operand.HEX:
                a = _Word(k)
            case "ldx", Operand.HEX:
                x = _Word(k)
            case "ld", Operand.LENGTH:
                a = _Word(len(packet))
            case "ldx", Operand.LENGTH:
                x = _Word(len(packet))
            case "ld", Operand.MEMORY:
                a = memory[k]
            case "ldx", Operand.MEMORY:
                x = memory[k]
            case "st", _:
                memory[k] = a
            case "stx", _:
                memory[k] = x
            case "tax", _:
                x = a
            case "txa", _:
                a = x
            case "neg", _:
                a = _Word(-a.number % WRAP)
            case "ja", _:
                index += k
            case ("jeq" | "jgt" | "jge" | "jset") as comparison, operand:
                right = x.number if operand is Operand.X else k
                then, otherwise = instruction.targets(index - 1)
                wish = accepting[then] if accepting[then] != accepting[otherwise] and rng.random() < 0.9 else rng.random() < 0.5
                if a.place is not None:
                    first, size = a.place
                    raw = int.from_bytes(packet[first : first + size], "big") & ~a.mask | wished(comparison, right, wish, rng) & a.mask
                    packet[first : first + size] = (raw % 256**size).to_bytes(size, "big")
                    a = _Word(raw % 256**size & a.mask, a.place, a.mask)
                index = then if compare(comparison, a.number, right) else otherwise
            case mnemonic, operand:
                right = x.number if operand is Operand.X else k
                try:
                    number = arithmetic(mnemonic, a.number, right)
                except Rejected:
                    return bytes(packet)
                a = _Word(number, a.place, a.mask & right) if mnemonic == "and" else _Word(number)


@dataclass(frozen=True)
class _Word:
    """A number, and where in the packet it is from if it is just these bytes, masked."""

    number: int
    place: tuple[int, int] | None = None
    mask: int = 0xFFFF_FFFF


def wished(comparison: str, right: int, wish: bool, rng: Random) -> int:
    """A number for which the comparison comes out as wished, where there is one."""
    match comparison, wish:
        case ("jeq", True) | ("jge", True) | ("jgt", False):
            return right
        case "jgt", True:
            return min(right + 1, WRAP - 1)
        case "jge", False:
            return max(right - 1, 0)
        case "jset", True:
            return rng.getrandbits(32) | right & -right
        case "jset", False:
            return rng.getrandbits(32) & ~right
    return rng.choice((right ^ 1, rng.getrandbits(32), rng.choice(NUMBERS)))
