"""The control flow graph that programs are built and improved in: blocks of values, no registers.

In:  nothing; these are the types, and the check of a graph.
Out: a `Cfg`.

    Cfg        := entry: Label, blocks: {Label: Block}
    Block      := (Local := Value)*, End
    End        := Goto(Label) | Branch(Test, then: Label, otherwise: Label) | Return(Value) | Leave(number, Value*)
    Test       := EQ | GT | GE | SET  of two Values
    Value      := Const | Length | Load(size, offset, k) | Key | Passed | Ancillary | Local | Binary(operator, Value, Value)
                | Among(Value, ranges)

A value is a 32-bit unsigned number. All but `Local` are facts of the packet: the same value stands for the same number
wherever it is asked for. A `Load` past the end of the packet, and a division by zero, end the program: it rejects the
packet. Assignments happen in order. A graph has no loops, and every block can be reached.

Values, tests and blocks are interned: equal ones are the same object. So what is asked of one often is remembered
(up to `REMEMBERED` answers), and a pass gives back the very graph that it got where there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from enum import Enum
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import TypeAlias

from pcapext.flowkeys import FLOW_KEYS, KEY_BY_NAME
from pcapext.interned import Interned
from pcapext.slotted import dataclass

U32 = 0xFFFF_FFFF

#: No packet is longer, and a sum of two numbers up to here does not wrap around.
LONGEST_PACKET = 0x7FFF_FFFF

#: A k from here on is no offset in the packet (SKF_LL_OFF, SKF_NET_OFF and SKF_AD_OFF, include/uapi/linux/filter.h, are negative numbers).
FIRST_NEGATIVE = LONGEST_PACKET + 1

#: No place that the walk through the headers finds is farther on: 16 bits, and a few headers more.
FARTHEST_PLACE = 0x1FFFF

#: How many answers to one question about values, tests or blocks are remembered: more than one long filter asks for.
REMEMBERED = 1 << 13

Label: TypeAlias = int


@dataclass(frozen=True, slots=True, eq=False)
class Const(Interned):
    """A number below 2**32."""

    value: int

    def __post_init__(self) -> None:
        if not 0 <= self.value <= U32:
            raise ValueError(f"{self.value} is no 32-bit number")


@dataclass(frozen=True, slots=True, eq=False)
class Length(Interned):
    """The length of the packet on the wire."""


@dataclass(frozen=True, slots=True, eq=False)
class Load(Interned):
    """`size` bytes (1, 2 or 4) of the packet, the first one highest, from `offset` + `k` on.

    This sum is not cut to 32 bits, as in libpcap's interpreter (bpf_filter.c): where it is 2**32 or more, it lies behind
    every packet. An offset that is a constant takes k in.

    >>> Load(2, Const(14), 2) == Load(2, Const(16))
    True
    """

    size: int
    offset: Value
    k: int = 0

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 <= self.k <= U32:
            raise ValueError(f"k {self.k} is no 32-bit number")
        if isinstance(self.offset, Const) and self.k:
            object.__setattr__(self, "offset", Const(min(self.offset.value + self.k, U32)))
            object.__setattr__(self, "k", 0)


def _check_size(size: int) -> None:
    if size not in (1, 2, 4):
        raise ValueError(f"no load of {size} bytes")


@dataclass(frozen=True, slots=True, eq=False)
class Key(Interned):
    """A flow key, by name: of the innermost headers or, with `outer`, of the outermost ones."""

    name: str
    outer: bool = False

    def __post_init__(self) -> None:
        if self.name not in KEY_BY_NAME:
            raise ValueError(f"there is no flow key {self.name}")


@dataclass(frozen=True, slots=True, eq=False)
class Passed(Interned):
    """1 if the walk went through a header of this name, with this identifier if one is given; else 0 (`encap NAME ID`)."""

    name: str
    identifier: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Ancillary(Interned):
    """Another word that is not of the packet, by the k and the size of its load. A file has no such words: there it rejects."""

    size: int
    k: int

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not FIRST_NEGATIVE <= self.k <= U32:
            raise ValueError(f"k {self.k:#x} is a place in the packet")


@dataclass(frozen=True, slots=True, eq=False)
class Local(Interned):
    """A variable, and the largest number it ever holds."""

    name: str
    largest: int = U32


#: Takes a value that is computed only because that can reject the packet. Nothing reads it.
VOID = Local("void")


class Operator(Enum):
    """Arithmetic, modulo 2**32; a shift by 32 or more gives 0."""

    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"
    MOD = "mod"
    AND = "and"
    OR = "or"
    XOR = "xor"
    LSH = "lsh"
    RSH = "rsh"

    @property
    def commutes(self) -> bool:
        """Whether the operands can change places."""
        return self in (Operator.ADD, Operator.MUL, Operator.AND, Operator.OR, Operator.XOR)

    def __call__(self, left: int, right: int) -> int | None:
        """The result for two numbers; None for a division by zero."""
        match self:
            case Operator.ADD:
                return (left + right) & U32
            case Operator.SUB:
                return (left - right) & U32
            case Operator.MUL:
                return (left * right) & U32
            case Operator.DIV:
                return left // right if right else None
            case Operator.MOD:
                return left % right if right else None
            case Operator.AND:
                return left & right
            case Operator.OR:
                return left | right
            case Operator.XOR:
                return left ^ right
            case Operator.LSH:
                return (left << right) & U32 if right < 32 else 0
            case Operator.RSH:
                return left >> right if right < 32 else 0


@dataclass(frozen=True, slots=True, eq=False)
class Binary(Interned):
    """An operator and its operands."""

    operator: Operator
    left: Value
    right: Value


#: A set of numbers: the first and the last of each run of them, in order, at least one number between two runs.
Ranges: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Among(Interned):
    """1 where a value is one of a set of numbers, else 0. No instruction computes it: a pass makes a search of it."""

    value: Value
    ranges: Ranges

    def __post_init__(self) -> None:
        ends = [end for low, high in self.ranges for end in (low - 1, high)]
        if any(end >= following for end, following in pairwise(ends)) or (ends and not -1 <= ends[0] < ends[-1] <= U32):
            raise ValueError(f"{self.ranges} are no runs of 32-bit numbers in order")


Value: TypeAlias = Const | Length | Load | Key | Passed | Ancillary | Local | Binary | Among


class Comparison(Enum):
    """What a test asks of two values; SET: they have a bit in common."""

    EQ = "jeq"
    GT = "jgt"
    GE = "jge"
    SET = "jset"

    def __call__(self, left: int, right: int) -> bool:
        """Whether it holds for two numbers."""
        match self:
            case Comparison.EQ:
                return left == right
            case Comparison.GT:
                return left > right
            case Comparison.GE:
                return left >= right
            case Comparison.SET:
                return left & right != 0


@dataclass(frozen=True, slots=True, eq=False)
class Test(Interned):
    """A comparison and its operands."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    comparison: Comparison
    left: Value
    right: Value


@dataclass(frozen=True, slots=True, eq=False)
class Goto(Interned):
    """Go on at a block."""

    target: Label

    @property
    def targets(self) -> tuple[Label, ...]:
        return (self.target,)

    @property
    def values(self) -> tuple[Value, ...]:
        return ()


@dataclass(frozen=True, slots=True, eq=False)
class Branch(Interned):
    """Go on at one of two blocks."""

    test: Test
    then: Label
    otherwise: Label

    @property
    def targets(self) -> tuple[Label, ...]:
        return (self.then, self.otherwise)

    @property
    def values(self) -> tuple[Value, ...]:
        return (self.test.left, self.test.right)


@dataclass(frozen=True, slots=True, eq=False)
class Return(Interned):
    """The verdict: how many bytes of the packet to keep, 0 to reject it."""

    value: Value

    @property
    def targets(self) -> tuple[Label, ...]:
        return ()

    @property
    def values(self) -> tuple[Value, ...]:
        return (self.value,)


@dataclass(frozen=True, slots=True, eq=False)
class Leave(Interned):
    """Go on behind a graph that is a part of one, at the exit of this number, which takes these values."""

    number: int
    values: tuple[Value, ...]

    @property
    def targets(self) -> tuple[Label, ...]:
        return ()


End: TypeAlias = Goto | Branch | Return | Leave


@dataclass(frozen=True, slots=True, eq=False)
class Block(Interned):
    """Assignments, in order, and where it goes from here."""

    assignments: tuple[tuple[Local, Value], ...]
    end: End

    @property
    def targets(self) -> tuple[Label, ...]:
        """The blocks that may follow."""
        return self.end.targets

    @property
    def values(self) -> tuple[Value, ...]:
        """The values it computes, in order."""
        return (*(value for _, value in self.assignments), *self.end.values)


#: The block that rejects the packet.
REJECT = Block((), Return(Const(0)))


@dataclass(frozen=True, slots=True)
class Cfg:
    """A graph that is whole: every target exists, every block can be reached, nothing loops."""

    entry: Label
    blocks: Mapping[Label, Block]

    def __post_init__(self) -> None:
        order = _order(self.entry, self.blocks)
        object.__setattr__(self, "blocks", MappingProxyType({label: self.blocks[label] for label in order}))

    def with_blocks(self, blocks: Mapping[Label, Block]) -> Cfg:
        """The graph with these blocks for their labels, new labels too; this very graph, if it has them all."""
        changed = {label: block for label, block in blocks.items() if self.blocks.get(label) is not block}
        if not changed:
            return self
        made = {**self.blocks, **changed}
        if any(label not in self.blocks or block.targets != self.blocks[label].targets for label, block in changed.items()):
            return Cfg(self.entry, made)
        # Nothing leads elsewhere, so that it is whole and in order as it was.
        cfg = object.__new__(Cfg)
        object.__setattr__(cfg, "entry", self.entry)
        object.__setattr__(cfg, "blocks", MappingProxyType(made))
        return cfg

    @property
    def labels(self) -> tuple[Label, ...]:
        """The labels in an order in which every jump goes forward."""
        return tuple(self.blocks)

    @property
    def predecessors(self) -> dict[Label, list[Label]]:
        """The blocks before each block; one that has it as both of its targets stands there twice."""
        found: dict[Label, list[Label]] = {label: [] for label in self.blocks}
        for label, block in self.blocks.items():
            for target in block.targets:
                found[target].append(label)
        return found

    def __str__(self) -> str:
        return "\n".join(f"{label}: {show(block)}" for label, block in self.blocks.items())


def _order(entry: Label, blocks: Mapping[Label, Block]) -> list[Label]:
    """The blocks that can be reached, each before those it goes to, and a `then` right behind its test if it can be."""
    order: list[Label] = []
    done: dict[Label, bool] = {}  # False: under way
    pending = [entry]
    while pending:
        label = pending[-1]
        if label in done:
            pending.pop()
            if not done[label]:
                done[label] = True
                order.append(label)
            continue
        if label not in blocks:
            raise ValueError(f"there is no block {label}")
        done[label] = False
        for target in blocks[label].end.targets:
            if target not in done:
                pending.append(target)
            elif not done[target]:
                raise ValueError(f"blocks {label} and {target} are on a loop")
    order.reverse()
    return order


@lru_cache(REMEMBERED)
def parts(value: Value) -> tuple[Value, ...]:
    """A value and all that it is made of."""
    found = []
    pending = [value]
    while pending:
        part = pending.pop()
        found.append(part)
        match part:
            case Load(_, offset, _):
                pending.append(offset)
            case Binary(_, left, right):
                pending += (right, left)
            case Among(among, _):
                pending.append(among)
    return tuple(found)


@lru_cache(REMEMBERED)
def locals_of(value: Value) -> frozenset[Local]:
    """The variables in a value."""
    return frozenset(part for part in parts(value) if isinstance(part, Local))


@lru_cache(REMEMBERED)
def loads_of(value: Value) -> tuple[Value, ...]:
    """The parts of a value that can reject the packet, each once: loads, and divisions by what may be zero."""
    return tuple(dict.fromkeys(part for part in parts(value) if _can_reject(part)))


def _can_reject(part: Value) -> bool:
    match part:
        case Load() | Ancillary():
            return True
        case Binary(Operator.DIV | Operator.MOD, _, right):
            return not isinstance(right, Const) or right.value == 0
    return False


def maximum(value: Value) -> int:
    """A number that a value never exceeds.

    >>> maximum(Binary(Operator.ADD, Load(1, Const(0)), Const(14)))
    269
    """
    match value:
        case Const(number):
            return number
        case Load(size):
            return (1 << 8 * size) - 1
        case Local(_, largest):
            return largest
        case Passed():
            return 1
        case Key(name) if name != "lhoff":
            return FARTHEST_PLACE
        case Binary(Operator.AND, left, right):
            return min(maximum(left), maximum(right))
        case Binary(Operator.ADD, left, right):
            return min(maximum(left) + maximum(right), U32)
        case Binary(Operator.MUL, left, right):
            return min(maximum(left) * maximum(right), U32)
        case Binary(Operator.LSH, left, Const(count)) if count < 32:
            return min(maximum(left) << count, U32)
        case Binary(Operator.DIV | Operator.RSH, left, _):
            return maximum(left)
        case Among():
            return 1
    return U32


#: The locals that `ld #keys` writes, with their slots of M[]: `M thoff` is M[2].
KEY_SLOTS = {Local(f"M {key.name}", maximum(Key(key.name))): slot for slot, key in enumerate(FLOW_KEYS)}


def rewrite(value: Value, change: Callable[[Value], Value]) -> Value:
    """The value with `change` made to each of its parts, and last to the whole."""
    match value:
        case Load(size, offset, k):
            return change(Load(size, rewrite(offset, change), k))
        case Binary(operator, left, right):
            return change(Binary(operator, rewrite(left, change), rewrite(right, change)))
        case Among(among, ranges):
            return change(Among(rewrite(among, change), ranges))
    return change(value)


def rewrite_end(end: End, change: Callable[[Value], Value]) -> End:
    """The end of a block with `change` made to its values."""
    match end:
        case Goto():
            return end
        case Branch(Test(comparison, left, right), then, otherwise):
            return Branch(Test(comparison, rewrite(left, change), rewrite(right, change)), then, otherwise)
        case Return(value):
            return Return(rewrite(value, change))
        case Leave(number, values):
            return Leave(number, tuple(rewrite(value, change) for value in values))


def retarget(end: End, place: Callable[[Label], Label]) -> End:
    """The end of a block with other targets."""
    match end:
        case Goto(target):
            return Goto(place(target))
        case Branch(test, then, otherwise):
            return Branch(test, place(then), place(otherwise))
        case Return() | Leave():
            return end


@lru_cache(REMEMBERED)
def reads_of(block: Block) -> frozenset[Local]:
    """The locals that a block reads before it assigns them."""
    reads = read_at_end(block)
    for local, value in reversed(block.assignments):
        reads = reads - {local} | locals_of(value)
    return reads


def read_at_end(block: Block) -> frozenset[Local]:
    """The locals in the values of a block's end."""
    return frozenset[Local]().union(*map(locals_of, block.end.values))


def live_before(block: Block, live_after: Set[Local]) -> frozenset[Local]:
    """The locals whose values at the block's begin are read by it or, if it leaves them alone, after it."""
    assigned = {local for local, _ in block.assignments}
    return reads_of(block).union(live_after - assigned if assigned else live_after)


def liveness(cfg: Cfg) -> dict[Label, frozenset[Local]]:
    """For each block the locals that are read after it before they are assigned again."""
    after: dict[Label, frozenset[Local]] = {}
    before: dict[Label, frozenset[Local]] = {}
    for label in reversed(cfg.labels):
        block = cfg.blocks[label]
        after[label] = frozenset[Local]().union(*(before[target] for target in block.end.targets))
        before[label] = live_before(block, after[label])
    return after


def show(node: Value | Test | End | Block) -> str:
    """A node on one line, for error messages and for whoever looks at a graph.

    >>> show(Test(Comparison.EQ, Load(2, Const(12)), Const(0x800)))
    'load2[12] eq 2048'
    """
    match node:
        case Const(value):
            return str(value)
        case Length():
            return "length"
        case Load(size, offset, k):
            return f"load{size}[{show(offset)}{f' + {k}' if k else ''}]"
        case Key(name, outer):
            return f"outer {name}" if outer else name
        case Passed(name, identifier):
            return f"encap {name}" if identifier is None else f"encap {name} {identifier}"
        case Local(name):
            return name
        case Ancillary(size, k):
            return f"ancillary{size}[{k:#x}]"
        case Binary(operator, left, right):
            return f"({show(left)} {operator.value} {show(right)})"
        case Among(value, ranges):
            return f"({show(value)} among {' '.join(f'{low}-{high}' if low < high else str(low) for low, high in ranges)})"
        case Test(comparison, left, right):
            return f"{show(left)} {comparison.value[1:]} {show(right)}"
        case Goto(target):
            return f"goto {target}"
        case Branch(test, then, otherwise):
            return f"{show(test)} ? {then} : {otherwise}"
        case Return(value):
            return f"return {show(value)}"
        case Leave(number, values):
            return f"leave {number}{''.join(f' {show(value)}' for value in values)}"
        case Block(assignments, end):
            return "; ".join([f"{local.name} := {show(value)}" for local, value in assignments] + [show(end)])
