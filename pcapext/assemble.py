"""Assemble: a graph to instructions, with A, X and M[] given out.

In:  a `Cfg`.
Out: the instructions of a classic BPF program that does the same; jumps go forward, and each load of M[] has a store
     before it on every path, in the eyes of the kernel's check too, which runs straight on through a `ret`
     (net/core/filter.c, check_load_and_stores).

Blocks are written in an order in which each stands behind all that lead to it. So what A and X hold at a block's begin
is known: what they hold at the end of every block before it. A value that is already there is not computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from pcapext import bpf
from pcapext.bpf import MEMORY_SLOTS, Instruction, kernel_fault
from pcapext.cfg import (
    VOID,
    Ancillary,
    Binary,
    Block,
    Branch,
    Cfg,
    Comparison,
    Const,
    Goto,
    Key,
    Label,
    Length,
    Load,
    Local,
    Operator,
    Return,
    Test,
    Value,
    liveness,
    parts,
)
from pcapext.errors import FilterError
from pcapext.flowkeys import KEY_BY_NAME

_ABSOLUTE = {4: bpf.LD_W_ABS, 2: bpf.LD_H_ABS, 1: bpf.LD_B_ABS}
_INDIRECT = {4: bpf.LD_W_IND, 2: bpf.LD_H_IND, 1: bpf.LD_B_IND}
_ARITHMETIC = {
    Operator.ADD: (bpf.ADD_K, bpf.ADD_X),
    Operator.SUB: (bpf.SUB_K, bpf.SUB_X),
    Operator.MUL: (bpf.MUL_K, bpf.MUL_X),
    Operator.DIV: (bpf.DIV_K, bpf.DIV_X),
    Operator.MOD: (bpf.MOD_K, bpf.MOD_X),
    Operator.AND: (bpf.AND_K, bpf.AND_X),
    Operator.OR: (bpf.OR_K, bpf.OR_X),
    Operator.XOR: (bpf.XOR_K, bpf.XOR_X),
    Operator.LSH: (bpf.LSH_K, bpf.LSH_X),
    Operator.RSH: (bpf.RSH_K, bpf.RSH_X),
}
_JUMPS = {
    Comparison.EQ: (bpf.JEQ_K, bpf.JEQ_X),
    Comparison.GT: (bpf.JGT_K, bpf.JGT_X),
    Comparison.GE: (bpf.JGE_K, bpf.JGE_X),
    Comparison.SET: (bpf.JSET_K, bpf.JSET_X),
}
#: A comparison whose outcome is the opposite when its sides change places.
_SWAPPED = {Comparison.GT: Comparison.GE, Comparison.GE: Comparison.GT}

#: Constant offsets from here on are no offsets in the packet (SKF_LL_OFF, include/uapi/linux/filter.h).
_NEGATIVE = 0x8000_0000

_NOTHING: frozenset[Value] = frozenset()


@dataclass(frozen=True, slots=True)
class _Jump:
    """A jump whose targets are blocks: conditional, or a `ja` where both are the same."""

    code: int
    k: int
    then: Label
    otherwise: Label


def assemble(cfg: Cfg) -> tuple[Instruction, ...]:
    """The program of a graph. Raises `FilterError` where 16 slots of M[] are not enough."""
    slots = _allocate(cfg)
    predecessors = cfg.predecessors
    order = _layout(cfg)
    written: dict[Label, _Writer] = {}
    for label, following in zip(order, [*order[1:], None], strict=True):
        before = [written[other] for other in predecessors[label]]
        a, x = (frozenset.intersection(*held) if held else _NOTHING for held in ([w.a for w in before], [w.x for w in before]))
        written[label] = writer = _Writer(slots, max(slots.values(), default=-1) + 1, a, x)
        writer.block(cfg.blocks[label], following)
    return _write_before_reads(_resolve_jumps([(label, written[label].code) for label in order]))


def _layout(cfg: Cfg) -> list[Label]:
    """The blocks in the graph's order, those that return at the end, acceptance before rejection."""

    def key(label: Label) -> int:
        match cfg.blocks[label].end:
            case Return(Const(value)):
                return 2 if value == 0 else 1
            case Return():
                return 1
        return 0

    return sorted(cfg.labels, key=key)


def _allocate(cfg: Cfg) -> dict[Local, int]:
    """A slot of M[] for each local; two locals share one where no block needs both."""
    after = liveness(cfg)
    neighbours: dict[Local, set[Local]] = {}
    for label, block in cfg.blocks.items():
        assigned = {local for local, _ in block.assignments if local != VOID}
        read = {part for value in block.values for part in parts(value) if isinstance(part, Local)}
        together = after[label] | assigned | read
        for local in together:
            neighbours.setdefault(local, set()).update(together - {local})
    slots: dict[Local, int] = {}
    for local in sorted(neighbours, key=lambda local: local.name):
        taken = {slots[other] for other in neighbours[local] if other in slots}
        slots[local] = _slot(next(slot for slot in count() if slot not in taken))
    return slots


def _slot(slot: int) -> int:
    if slot >= MEMORY_SLOTS:
        raise FilterError("too many registers needed to evaluate expression")
    return slot


@dataclass
class _Writer:
    """Writes the code of one block; `a` and `x` are the values that the registers are known to hold."""

    slots: Mapping[Local, int]
    first_temporary: int
    a: frozenset[Value]
    x: frozenset[Value]
    code: list[Instruction | _Jump] = field(default_factory=list)
    temporaries: int = 0

    def emit(self, code: int, k: int = 0) -> None:
        self.code.append(Instruction(code, k=k))

    def block(self, block: Block, following: Label | None) -> None:
        for local, value in block.assignments:
            self.assign(local, value)
        match block.end:
            case Goto(target):
                if target != following:
                    self.code.append(_Jump(bpf.JA, 0, target, target))
            case Branch(test, then, otherwise):
                self.branch(test, then, otherwise)
            case Return(Const(number)):
                self.emit(bpf.RET_K, number)
            case Return(value):
                self.to_a(value)
                self.emit(bpf.RET_A)

    def assign(self, local: Local, value: Value) -> None:
        if local == VOID:
            self.to_a(value)
            return
        from_x = value in self.x and value not in self.a
        if not from_x:
            self.to_a(value)
        self.emit(bpf.STX if from_x else bpf.ST, self.slots[local])
        # What was computed from the old value of the local is no longer its value.
        self.a, self.x = (frozenset(held for held in register if local not in parts(held)) for register in (self.a, self.x))
        if from_x:
            self.x |= {local}
        else:
            self.a |= {local}

    def branch(self, test: Test, then: Label, otherwise: Label) -> None:
        k, x = _JUMPS[test.comparison]
        match test.right:
            case Const(value):
                self.to_a(test.left)
                self.code.append(_Jump(k, value, then, otherwise))
                return
        left, right = test.left, test.right
        if self.better_in_x(left, right):
            left, right = right, left
            if test.comparison in _SWAPPED:
                x = _JUMPS[_SWAPPED[test.comparison]][1]
                then, otherwise = otherwise, then
        self.to_both(left, right)
        self.code.append(_Jump(x, 0, then, otherwise))

    def to_a(self, value: Value) -> None:
        """Code that puts a value into A, unless it is there."""
        if value in self.a:
            return
        if value in self.x:
            self.emit(bpf.TXA)
            self.a = self.x
            return
        match value:
            case Const(number):
                self.emit(bpf.LD_IMM, number)
            case Length():
                self.emit(bpf.LD_LEN)
            case Local():
                self.emit(bpf.LD_MEM, self.slots[value])
            case Key(name):
                self.emit(bpf.LD_W_ABS, KEY_BY_NAME[name].k)
            case Ancillary(size, k):
                self.emit(_ABSOLUTE[size], k)
            case Load(size, Const(offset)) if offset < _NEGATIVE:
                self.emit(_ABSOLUTE[size], offset)
            case Load(size, offset, k):
                self.to_x(offset)
                self.emit(_INDIRECT[size], k)
            case Binary(Operator.SUB, Const(0), right):
                self.to_a(right)
                self.emit(bpf.NEG)
            case Binary(operator, left, Const(number)) if _takes_constant(operator, number):
                self.to_a(left)
                self.emit(_ARITHMETIC[operator][0], number)
            case Binary(operator, left, right):
                if operator.commutes and self.better_in_x(left, right):
                    left, right = right, left
                self.to_both(left, right)
                self.emit(_ARITHMETIC[operator][1])
        self.a = frozenset({value})

    def to_x(self, value: Value) -> None:
        """Code that puts a value into X, unless it is there. A may change, unless `loads_x` can load it."""
        if value in self.x:
            return
        match value:
            case _ if value in self.a:
                self.emit(bpf.TAX)
                self.x = self.a
                return
            case Const(number):
                self.emit(bpf.LDX_IMM, number)
            case Length():
                self.emit(bpf.LDX_LEN)
            case Local():
                self.emit(bpf.LDX_MEM, self.slots[value])
            case _ if (offset := _header_length(value)) is not None:
                self.emit(bpf.LDX_MSH, offset)
            case _:
                self.to_a(value)
                self.emit(bpf.TAX)
                self.x = self.a
                return
        self.x = frozenset({value})

    def to_both(self, left: Value, right: Value) -> None:
        """Code that puts one value into A and another into X."""
        if right in self.x and _spares_x(left, self.a, self.x):
            self.to_a(left)
        elif loads_x(right):
            self.to_a(left)
            self.to_x(right)
        elif _spares_x(left, _NOTHING, frozenset({right})):
            self.to_x(right)
            self.to_a(left)
        else:
            # One is computed and set aside in a slot, then the other.
            left_first = _temporaries(left) > _temporaries(right)
            self.to_a(left if left_first else right)
            slot = _slot(self.first_temporary + self.temporaries)
            self.emit(bpf.ST, slot)
            self.temporaries += 1
            if left_first:
                self.to_x(right)
                self.emit(bpf.LD_MEM, slot)
                self.a = frozenset({left})
            else:
                self.to_a(left)
                self.emit(bpf.LDX_MEM, slot)
                self.x = frozenset({right})
            self.temporaries -= 1
        assert left in self.a
        assert right in self.x

    def better_in_x(self, left: Value, right: Value) -> bool:
        """Whether the left of two values is the one to have in X: it is there, or comes there at once."""
        return (left in self.x or left in self.a or loads_x(left)) and not (right in self.x or loads_x(right))


def _spares_x(value: Value, a: frozenset[Value], x: frozenset[Value]) -> bool:
    """Whether X keeps what it holds while a value is computed, when the registers hold these."""
    if value in a or value in x:
        return True
    match value:
        case Load(_, Const(offset)) if offset < _NEGATIVE:
            return True
        case Load(_, offset, _):
            return offset in x
        case Binary(Operator.SUB, Const(0), right):
            return _spares_x(right, a, x)
        case Binary(operator, left, Const(number)) if _takes_constant(operator, number):
            return _spares_x(left, a, x)
        case Binary(_, left, right):
            return right in x and _spares_x(left, a, x)
    return True


def _temporaries(value: Value) -> int:
    """About how many slots of M[] it takes to compute a value: of two operands the one that takes more goes first."""
    match value:
        case Load(_, offset, _):
            return _temporaries(offset)
        case Binary(_, left, right):
            of_left, of_right = _temporaries(left), _temporaries(right)
            return min(max(of_left, of_right + 1), max(of_left + 1, of_right))
    return 0


def loads_x(value: Value) -> bool:
    """Whether X can be loaded with a value without the use of A."""
    return isinstance(value, (Const, Length, Local)) or _header_length(value) is not None


def _header_length(value: Value) -> int | None:
    """The k of the `ldxb 4*([k]&0xf)` that loads a value, if one does."""
    match value:
        case Binary(Operator.LSH, Binary(Operator.AND, Load(1, Const(offset)), Const(0xF)), Const(2)) if offset < _NEGATIVE:
            return offset
    return None


def _takes_constant(operator: Operator, number: int) -> bool:
    """Whether an instruction with the constant is valid: no division by 0, no shift by more than 31."""
    match operator:
        case Operator.DIV | Operator.MOD:
            return number != 0
        case Operator.LSH | Operator.RSH:
            return number < 32
    return True


def _resolve_jumps(blocks: Sequence[tuple[Label, Sequence[Instruction | _Jump]]]) -> tuple[Instruction, ...]:
    """The instructions with jumps by distance. Where one is over 255, the jump goes to a `ja` behind it."""
    far: set[tuple[Label, int, Label]] = set()
    while True:
        places: dict[Label, int] = {}
        length = 0
        for label, code in blocks:
            places[label] = length
            length += len(code)
            length += sum((label, index, target) in far for index, item in enumerate(code) for target in _targets(item))
        program: list[Instruction] = []
        too_far: set[tuple[Label, int, Label]] = set()
        for label, code in blocks:
            for index, item in enumerate(code):
                at = len(program) + 1
                if isinstance(item, Instruction):
                    program.append(item)
                elif item.code == bpf.JA:
                    program.append(Instruction(bpf.JA, k=places[item.then] - at))
                else:
                    hops = [target for target in _targets(item) if (label, index, target) in far]
                    distances = {target: hops.index(target) if target in hops else places[target] - at for target in _targets(item)}
                    too_far |= {(label, index, target) for target, distance in distances.items() if distance > 255}
                    jt, jf = (min(distances[target], 255) for target in (item.then, item.otherwise))
                    program.append(Instruction(item.code, jt, jf, item.k))
                    program += [Instruction(bpf.JA, k=places[target] - at - hop - 1) for hop, target in enumerate(hops)]
        if not too_far:
            return tuple(program)
        far |= too_far


def _targets(item: Instruction | _Jump) -> tuple[Label, ...]:
    """The blocks that a conditional jump goes to, each once."""
    if isinstance(item, Instruction) or item.code == bpf.JA:
        return ()
    return tuple(dict.fromkeys((item.then, item.otherwise)))


def _write_before_reads(program: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    """The program with a store at its begin of each slot that the kernel's check takes for unwritten where it is read."""
    while (fault := kernel_fault(program, stock=False)) and fault.index is not None:
        read = program[fault.index]
        if read.code not in (bpf.LD_MEM, bpf.LDX_MEM):
            break
        program = (Instruction(bpf.ST, k=read.k), *program)
    return program
