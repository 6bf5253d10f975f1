"""Assemble: a graph to instructions, with A, X and M[] given out.

In:  a `Cfg`.
Out: the instructions of a classic BPF program that does the same; jumps go forward, and each load of M[] has a store
     before it on every path, in the eyes of the kernel's check too, which runs straight on through a `ret`
     (net/core/filter.c, check_load_and_stores).

Blocks are written in an order in which each stands behind all that lead to it. So what A and X hold at a block's begin
is known: what they hold at the end of every block before it. A value that is already there is not computed again.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from itertools import count
from operator import or_
from typing import TypeVar

from pcapext import bpf
from pcapext.bpf import MEMORY_SLOTS, Instruction, kernel_fault
from pcapext.cfg import (
    REMEMBERED,
    VOID,
    Among,
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
    live_before,
    liveness,
    locals_of,
    parts,
    read_at_end,
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

V = TypeVar("V", bound=Value)

_NOTHING: frozenset[Value] = frozenset()

#: How many blocks' code is remembered: that of about two long filters, each written twice. And with how many plans.
_WRITTEN, _PLANS = 1 << 11, 16


@dataclass(frozen=True, slots=True)
class _Jump:
    """A jump whose targets are blocks: conditional, or a `ja` where both are the same."""

    code: int
    k: int
    then: Label
    otherwise: Label


def assemble(cfg: Cfg) -> tuple[Instruction, ...]:
    """The program of a graph. Raises `FilterError` where 16 slots of M[] are not enough."""
    after = liveness(cfg)
    slots, order = _allocate(cfg, after), _layout(cfg)
    written = _write(cfg, slots, order, after, {})
    if early := _early(cfg, written):
        written = _write(cfg, slots, order, after, early)
    return _write_before_reads(_resolve_jumps([(label, written[label].code) for label in order]))


def _write(
    cfg: Cfg, slots: Mapping[Local, int], order: Sequence[Label], after: Mapping[Label, Set[Local]], early: Mapping[Label, Set[Local]]
) -> dict[Label, _Code]:
    """The code of each block. `early`: locals to store at the end of a block, since blocks behind it would do so."""
    plan = _plan(frozenset(slots.items()), _bases(cfg))
    predecessors = cfg.predecessors
    written: dict[Label, _Code] = {}
    for label, following in zip(order, [*order[1:], None], strict=True):
        block = cfg.blocks[label]
        before = [written[other] for other in predecessors[label]]
        a, x = _common([code.a for code in before]), _common([code.x for code in before])
        for local in _in_order(live_before(block, after[label]) - a - x):
            for code in before:
                code.save_at_end(local)
        memory = _common([code.memory for code in before])
        base_behind = _next_base(cfg.blocks[block.end.target].values) if isinstance(block.end, Goto) else None
        code = _code(block, following in block.targets, base_behind, frozenset(after[label]), plan, a, x, memory)
        written[label] = _Code(slots, code.a, code.x, code.memory, [*code.code])
        for local in _in_order(early.get(label, frozenset())):
            written[label].save_at_end(local)
    return written


def _common(held: Sequence[frozenset[V]]) -> frozenset[V]:
    """What is in all sets, nothing where there are none."""
    return held[0].intersection(*held[1:]) if held else frozenset()


def _early(cfg: Cfg, written: Mapping[Label, _Code]) -> dict[Label, set[Local]]:
    """The locals that are better stored at the end of a block than at the end of each of those behind it."""
    stored: dict[Label, set[Local]] = {}
    for label in reversed(cfg.labels):
        writer, targets = written[label], set(cfg.blocks[label].targets)
        behind = set.intersection(*(stored.get(target, set()) for target in targets)) if len(targets) > 1 else set()
        locals_ = writer.stored_at_end | {local for local in behind if local in writer.a or local in writer.x}
        if locals_:
            stored[label] = locals_
    return stored


def _bases(cfg: Cfg) -> frozenset[Local]:
    """The locals that are offsets of loads: X is the place for them."""
    loads = (part for block in cfg.blocks.values() for value in block.values for part in parts(value) if isinstance(part, Load))
    return frozenset(load.offset for load in loads if isinstance(load.offset, Local))


def _in_order(locals_: Set[Local]) -> list[Local]:
    """Locals in an order that does not depend on their hashes."""
    return sorted(locals_, key=lambda local: local.name) if len(locals_) > 1 else [*locals_]


def _layout(cfg: Cfg) -> list[Label]:
    """The blocks in an order in which every jump goes forward, those that return at the end, acceptance before rejection.

    The order is made from its end. Before a block stands, if there is one, a block that goes on there without a test, so that it
    needs no `ja`; of several, the one that most ways lead to.
    """
    often = dict.fromkeys(cfg.labels, 0.0)
    often[cfg.entry] = 1.0
    for label, block in cfg.blocks.items():
        for target in block.targets:
            often[target] += often[label] / len(block.targets)
    predecessors, number = cfg.predecessors, {label: index for index, label in enumerate(cfg.labels)}
    to_place = {label: len(block.targets) for label, block in cfg.blocks.items()}
    order: list[Label] = []
    labels = cfg.labels
    # The numbers of the blocks whose followers are all placed; the next one is the last.
    ready = sorted((_rank(block), number[label]) for label, block in cfg.blocks.items() if not block.targets)
    while ready:
        followed = predecessors[order[-1]] if order else []
        before = [label for label in followed if to_place[label] == 0 and isinstance(cfg.blocks[label].end, Goto)]
        best = max(before, key=lambda label: (often[label], -number[label]), default=None)
        _, at = ready.pop(-1 if best is None else bisect_left(ready, (0, number[best])))
        label = labels[at]
        order.append(label)
        to_place[label] = -1
        for pred in predecessors[label]:
            to_place[pred] -= 1
            if to_place[pred] == 0:
                insort(ready, (0, number[pred]))
    return order[::-1]


def _rank(block: Block) -> int:
    """What returns stands at the end, acceptance before rejection."""
    match block.end:
        case Return(Const(0)):
            return 2
        case Return():
            return 1
    return 0


def _allocate(cfg: Cfg, after: Mapping[Label, Set[Local]]) -> dict[Local, int]:
    """A slot of M[] for each local; two locals share one where no block needs both."""
    needed = set()
    for label, block in cfg.blocks.items():
        assigned = {local for local, _ in block.assignments if local != VOID}
        needed.add(frozenset(after[label]).union(assigned, *map(locals_of, block.values)))
    neighbours: dict[Local, set[Local]] = {}
    for together in needed:
        for local in together:
            neighbours.setdefault(local, set()).update(together - {local})
    slots: dict[Local, int] = {}
    for local in _in_order(neighbours.keys()):
        taken = {slots[other] for other in neighbours[local] if other in slots}
        slots[local] = _slot(next(slot for slot in count() if slot not in taken))
    return slots


def _slot(slot: int) -> int:
    if slot >= MEMORY_SLOTS:
        raise FilterError("too many registers needed to evaluate expression")
    return slot


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What all blocks of a graph are written with: slots of M[] for locals, the first slot behind them, and the locals to have in X."""

    slots: Mapping[Local, int]
    first_temporary: int
    bases: frozenset[Local]


@lru_cache(_PLANS)
def _plan(slots: frozenset[tuple[Local, int]], bases: frozenset[Local]) -> _Plan:
    """One object for equal plans, so that `_code` knows it again."""
    return _Plan(dict(slots), max((slot for _, slot in slots), default=-1) + 1, bases)


@dataclass
class _Code:
    """The code of a block, and what holds behind it.

    `a` and `x` are the values that the registers are known to hold, `memory` the locals whose slots of M[] hold their values.
    """

    slots: Mapping[Local, int]
    a: frozenset[Value]
    x: frozenset[Value]
    memory: frozenset[Local]
    code: list[Instruction | _Jump] = field(default_factory=list)
    stored_at_end: set[Local] = field(default_factory=set)

    def emit(self, code: int, k: int = 0) -> None:
        self.code.append(Instruction(code, k=k))

    def save(self, local: Local) -> None:
        """Store a local in its slot unless it is there."""
        if local not in self.memory:
            self.memory |= {local}
            self.emit(bpf.STX if local in self.x else bpf.ST, self.slots[local])

    def save_at_end(self, local: Local) -> None:
        """The same when the block is written, before it jumps."""
        if local not in self.memory:
            self.stored_at_end.add(local)
            jump = [self.code.pop()] if self.code and isinstance(self.code[-1], _Jump) else []
            self.save(local)
            self.code += jump


@lru_cache(_WRITTEN)
def _code(
    block: Block,
    falls_through: bool,
    base_behind: Local | None,
    live_after: frozenset[Local],
    plan: _Plan,
    a: frozenset[Value],
    x: frozenset[Value],
    memory: frozenset[Local],
) -> _Code:
    """The code of a block, given what holds before it; not to be changed. `falls_through`: what it goes on at is written next, and
    the first load there is from `base_behind`.
    """
    writer = _Writer(plan.slots, a, x, memory, bases=plan.bases, first_temporary=plan.first_temporary)
    writer.block(block, falls_through, base_behind, live_after)
    return writer


@dataclass(kw_only=True)
class _Writer(_Code):
    """Writes the code of one block. A local is stored when the last register that holds it is about to change, if it is still
    needed then.
    """

    bases: Set[Local]
    first_temporary: int
    live: Set[Local] = frozenset()
    reads: Counter[Local] = field(default_factory=Counter)
    temporaries: int = 0

    def set_a(self, code: int, k: int, values: frozenset[Value]) -> None:
        """Write an instruction that changes A, and know what A holds then."""
        for local in _in_order(self.wanted & self.a - self.x - self.memory):
            self.save(local)
        self.emit(code, k)
        self.a = values

    def set_x(self, code: int, k: int, values: frozenset[Value]) -> None:
        """Write an instruction that changes X, and know what X holds then."""
        for local in _in_order(self.wanted & self.x - self.a - self.memory):
            self.save(local)
        self.emit(code, k)
        self.x = values

    @property
    def wanted(self) -> Set[Local]:
        """The locals that are read later, or by what is still to be computed of the value at hand."""
        return self.live | {local for local, count in self.reads.items() if count > 0}

    def block(self, block: Block, falls_through: bool, base_behind: Local | None, live_after: Set[Local]) -> None:
        lives = [live_after | read_at_end(block)]  # behind each assignment
        bases = [_next_base(block.end.values) or base_behind]
        for local, value in reversed(block.assignments[1:]):
            lives.append(lives[-1] - {local} | locals_of(value))
            bases.append(_next_base((value,)) or bases[-1])
        for local, value in block.assignments:
            self.live, self.reads = lives.pop() - {local}, _reads(value)
            self.assign(local, value, bases.pop())
        self.live, self.reads = live_after, _reads(*block.end.values)
        match block.end:
            case Goto(target):
                if not falls_through:
                    self.code.append(_Jump(bpf.JA, 0, target, target))
            case Branch(test, then, otherwise):
                self.branch(test, then, otherwise)
            case Return(Const(number)):
                self.emit(bpf.RET_K, number)
            case Return(value):
                self.to_a(value)
                self.emit(bpf.RET_A)

    def assign(self, local: Local, value: Value, next_base: Local | None) -> None:
        if local == VOID:
            self.to_a(value)
            return
        # X is the place for it, unless what X holds is wanted first.
        through_x = local in self.bases and (next_base == local or next_base not in self.x)
        if not (through_x and (value in self.x or loads_x(value))):
            self.to_a(value)
            self.reads.clear()
        # Now the old value of the local is needed no more, and what was computed from it is not computed from the new one.
        if through_x:
            self.to_x(value)
        self.memory -= {local}
        self.a, self.x = (
            frozenset(held for held in register if local not in locals_of(held)) | ({local} if value in register else _NOTHING)
            for register in (self.a, self.x)
        )

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
            self.reads -= _reads(value)
            return
        holds = frozenset({value})
        match value:
            case _ if value in self.x:
                self.reads -= _reads(value)
                self.set_a(bpf.TXA, 0, self.x)
            case Const(number):
                self.set_a(bpf.LD_IMM, number, holds)
            case Length():
                self.set_a(bpf.LD_LEN, 0, holds)
            case Local():
                assert value in self.memory
                self.set_a(bpf.LD_MEM, self.slots[value], holds)
            case Key(name):
                self.set_a(bpf.LD_W_ABS, KEY_BY_NAME[name].k, holds)
            case Ancillary(size, k):
                self.set_a(_ABSOLUTE[size], k, holds)
            case Load(size, Const(offset)) if offset < _NEGATIVE:
                self.set_a(_ABSOLUTE[size], offset, holds)
            case Load(size, offset, k):
                self.to_x(offset)
                self.set_a(_INDIRECT[size], k, holds)
            case Binary(Operator.SUB, Const(0), right):
                self.to_a(right)
                self.set_a(bpf.NEG, 0, holds)
            case Binary(operator, left, Const(number)) if _takes_constant(operator, number):
                self.to_a(left)
                self.set_a(_ARITHMETIC[operator][0], number, holds)
            case Binary(operator, left, right):
                if operator.commutes and self.better_in_x(left, right):
                    left, right = right, left
                self.to_both(left, right)
                self.set_a(_ARITHMETIC[operator][1], 0, holds)
            case Among():
                raise AssertionError("a search is for the passes to write")

    def to_x(self, value: Value) -> None:
        """Code that puts a value into X, unless it is there. A may change, unless `loads_x` can load it."""
        if value in self.x:
            self.reads -= _reads(value)
            return
        holds = frozenset({value})
        match value:
            case _ if value in self.a:
                self.reads -= _reads(value)
                self.set_x(bpf.TAX, 0, self.a)
            case Const(number):
                self.set_x(bpf.LDX_IMM, number, holds)
            case Length():
                self.set_x(bpf.LDX_LEN, 0, holds)
            case Local():
                assert value in self.memory
                self.set_x(bpf.LDX_MEM, self.slots[value], holds)
            case _ if (offset := _header_length(value)) is not None:
                self.set_x(bpf.LDX_MSH, offset, holds)
            case _:
                self.to_a(value)
                self.set_x(bpf.TAX, 0, self.a)

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
                self.set_a(bpf.LD_MEM, slot, frozenset({left}))
            else:
                self.to_a(left)
                self.set_x(bpf.LDX_MEM, slot, frozenset({right}))
            self.temporaries -= 1
        assert left in self.a
        assert right in self.x

    def better_in_x(self, left: Value, right: Value) -> bool:
        """Whether the left of two values is the one to have in X: it is there, or comes there at once."""
        if left in self.x and right in self.a:
            return True
        return (left in self.x or left in self.a or loads_x(left)) and not (right in self.x or loads_x(right))


def _reads(*values: Value) -> Counter[Local]:
    """How often each local is read to compute some values."""
    return Counter(part for value in values for part in parts(value) if isinstance(part, Local))


def _next_base(values: Iterable[Value]) -> Local | None:
    """The local that the first load among values is from, of those that are from one."""
    loads = (part for value in values for part in parts(value) if isinstance(part, Load))
    return next((load.offset for load in loads if isinstance(load.offset, Local)), None)


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


@lru_cache(REMEMBERED)
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
    """The instructions with jumps by distance.

    A conditional jump reaches 255 instructions. Where that is not enough, it goes to a `ja` behind it, or a copy of the `ret`
    that it wants, which all jumps to the same place share that reach it. The program is written from its end, so that every
    distance is known at once.
    """
    backwards: list[Instruction] = []
    # The slots of M[] that are read from each instruction on before they are written, as bits.
    needed: list[int] = []
    places: dict[Label, int] = {}
    hops: dict[Label, int] = {}
    verdicts = {
        label: code[0] for label, code in blocks if len(code) == 1 and isinstance(code[0], Instruction) and code[0].code == bpf.RET_K
    }

    def distance(target: Label) -> int:
        direct = len(backwards) - places[target]
        return direct if direct <= 255 or target not in hops else len(backwards) - hops[target]

    def put(instruction: Instruction) -> None:
        following = () if instruction.code in (bpf.RET_K, bpf.RET_A) else instruction.targets(0) or (1,)
        slots = reduce(or_, (needed[-target] for target in following), 0)
        match instruction.code:
            case bpf.LD_MEM | bpf.LDX_MEM:
                slots |= 1 << instruction.k
            case bpf.ST | bpf.STX:
                slots &= ~(1 << instruction.k)
        backwards.append(instruction)
        needed.append(slots)

    def put_hop(target: Label) -> None:
        if target in verdicts:
            if needed[-1]:
                # The kernel's check runs straight on through a `ret`, but not through a jump.
                put(Instruction(bpf.JA, k=len(backwards) - 1))
            put(verdicts[target])
        else:
            put(Instruction(bpf.JA, k=len(backwards) - places[target]))
        hops[target] = len(backwards)

    for label, code in reversed(blocks):
        for item in reversed(code):
            if isinstance(item, Instruction):
                put(item)
            elif item.code == bpf.JA:
                put(Instruction(bpf.JA, k=len(backwards) - places[item.then]))
            else:
                while far := [target for target in (item.then, item.otherwise) if distance(target) > 255]:
                    put_hop(far[0])
                put(Instruction(item.code, distance(item.then), distance(item.otherwise), item.k))
        places[label] = len(backwards)
    return tuple(reversed(backwards))


def _write_before_reads(program: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    """The program with a store at its begin of each slot that the kernel's check takes for unwritten where it is read."""
    while (fault := kernel_fault(program, stock=False)) and fault.index is not None:
        read = program[fault.index]
        if read.code not in (bpf.LD_MEM, bpf.LDX_MEM):
            break
        program = (Instruction(bpf.ST, k=read.k), *program)
    return program
