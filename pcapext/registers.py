"""Registers: the code of one block, with A, X and M[] given out.

In:  a block; what A, X and M[] hold before it, where locals have their slots, and which are needed behind it.
Out: `Code`: instructions and a jump by labels, and what A, X and M[] hold behind them. A value that is already there is not
     computed again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from functools import lru_cache

from pcapext import bpf
from pcapext.bpf import MEMORY_SLOTS, Instruction
from pcapext.cfg import (
    FIRST_NEGATIVE,
    KEY_SLOTS,
    REMEMBERED,
    VOID,
    Among,
    Ancillary,
    Binary,
    Block,
    Branch,
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
    locals_of,
    parts,
    read_at_end,
)
from pcapext.errors import FilterError
from pcapext.flowkeys import KEY_BY_NAME, KEYS_K
from pcapext.slotted import dataclass, field

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

_NOTHING: frozenset[Value] = frozenset()

#: How many blocks' code is remembered: that of about two long filters, each written twice. And with how many plans.
_WRITTEN, _PLANS = 1 << 11, 16


@dataclass(frozen=True, slots=True)
class Jump:
    """A jump whose targets are blocks: conditional, or a `ja` where both are the same."""

    code: int
    k: int
    then: Label
    otherwise: Label


def in_order(locals_: Set[Local]) -> list[Local]:
    """Locals in an order that does not depend on their hashes."""
    return sorted(locals_, key=lambda local: local.name) if len(locals_) > 1 else [*locals_]


def slot_within(slot: int) -> int:
    if slot >= MEMORY_SLOTS:
        raise FilterError("too many registers needed to evaluate expression")
    return slot


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What all blocks of a graph are written with: slots of M[] for locals, the first slot behind them, and the locals to have in X."""

    slots: Mapping[Local, int]
    first_temporary: int
    bases: frozenset[Local]


@lru_cache(_PLANS)
def plan_for(slots: frozenset[tuple[Local, int]], bases: frozenset[Local]) -> Plan:
    """One object for equal plans, so that `write_block` knows it again."""
    return Plan(dict(slots), max((slot for _, slot in slots), default=-1) + 1, bases)


@dataclass(slots=True, eq=False)
class Code:
    """The code of a block, and what holds behind it.

    `a` and `x` are the values that the registers are known to hold, `memory` the locals whose slots of M[] hold their values.
    """

    slots: Mapping[Local, int]
    a: frozenset[Value]
    x: frozenset[Value]
    memory: frozenset[Local]
    code: list[Instruction | Jump] = field(default_factory=list)
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
            jump = [self.code.pop()] if self.code and isinstance(self.code[-1], Jump) else []
            self.save(local)
            self.code += jump


@lru_cache(_WRITTEN)
def write_block(
    block: Block,
    falls_through: bool,
    base_behind: Local | None,
    live_after: frozenset[Local],
    plan: Plan,
    a: frozenset[Value],
    x: frozenset[Value],
    memory: frozenset[Local],
) -> Code:
    """The code of a block, given what holds before it; not to be changed. `falls_through`: what it goes on at is written next, and
    the first load there is from `base_behind`.
    """
    writer = _Writer(plan, a, x, memory)
    writer.block(block, falls_through, base_behind, live_after)
    return writer


class _Writer(Code):
    """Writes the code of one block. A local is stored when the last register that holds it is about to change, if it is still
    needed then.
    """

    __slots__ = ("bases", "first_temporary", "live", "reads", "temporaries")

    def __init__(self, plan: Plan, a: frozenset[Value], x: frozenset[Value], memory: frozenset[Local]) -> None:
        super().__init__(plan.slots, a, x, memory)
        self.bases = plan.bases
        self.first_temporary = plan.first_temporary
        self.live: Set[Local] = frozenset()
        self.reads = Counter[Local]()
        self.temporaries = 0

    def set_a(self, code: int, k: int, values: frozenset[Value]) -> None:
        """Write an instruction that changes A, and know what A holds then."""
        for local in in_order(self.wanted & self.a - self.x - self.memory):
            self.save(local)
        self.emit(code, k)
        self.a = values

    def set_x(self, code: int, k: int, values: frozenset[Value]) -> None:
        """Write an instruction that changes X, and know what X holds then."""
        for local in in_order(self.wanted & self.x - self.a - self.memory):
            self.save(local)
        self.emit(code, k)
        self.x = values

    @property
    def wanted(self) -> Set[Local]:
        """The locals that are read later, or by what is still to be computed of the value at hand."""
        return self.live | {local for local, count in self.reads.items() if count > 0}

    def block(self, block: Block, falls_through: bool, base_behind: Local | None, live_after: Set[Local]) -> None:
        lives = [live_after | read_at_end(block)]  # behind each assignment
        bases = [next_base(block.end.values) or base_behind]
        for local, value in reversed(block.assignments[1:]):
            lives.append(lives[-1] - {local} | locals_of(value))
            bases.append(next_base((value,)) or bases[-1])
        keys = frozenset(local for local, _ in block.assignments if local in KEY_SLOTS)
        for local, value in block.assignments:
            self.live, self.reads = lives.pop() - {local}, _reads(value)
            base = bases.pop()
            if local not in keys:
                self.assign(local, value, base)
            elif local not in self.memory:
                self.load_keys(keys)
        self.live, self.reads = live_after, _reads(*block.end.values)
        match block.end:
            case Goto(target):
                if not falls_through:
                    self.code.append(Jump(bpf.JA, 0, target, target))
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

    def load_keys(self, keys: frozenset[Local]) -> None:
        """Load all keys that the block assigns to slots of M[]: the first ones of the table."""
        self.set_a(bpf.LD_IMM, len(keys), _NOTHING)
        self.set_a(bpf.LD_W_ABS, KEYS_K, frozenset({Const(len(keys))}))
        self.memory |= keys

    def branch(self, test: Test, then: Label, otherwise: Label) -> None:
        k, x = _JUMPS[test.comparison]
        match test.right:
            case Const(value):
                self.to_a(test.left)
                self.code.append(Jump(k, value, then, otherwise))
                return
        left, right = test.left, test.right
        if self.better_in_x(left, right):
            left, right = right, left
            if test.comparison in _SWAPPED:
                x = _JUMPS[_SWAPPED[test.comparison]][1]
                then, otherwise = otherwise, then
        self.to_both(left, right)
        self.code.append(Jump(x, 0, then, otherwise))

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
            case Load(size, Const(offset)) if offset < FIRST_NEGATIVE:
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
            self.reads -= _reads(right)
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
            slot = slot_within(self.first_temporary + self.temporaries)
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


def next_base(values: Iterable[Value]) -> Local | None:
    """The local that the first load among values is from, of those that are from one."""
    loads = (part for value in values for part in parts(value) if isinstance(part, Load))
    return next((load.offset for load in loads if isinstance(load.offset, Local)), None)


def _spares_x(value: Value, a: frozenset[Value], x: frozenset[Value]) -> bool:
    """Whether X keeps what it holds while a value is computed, when the registers hold these."""
    if value in a or value in x:
        return True
    match value:
        case Load(_, Const(offset)) if offset < FIRST_NEGATIVE:
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
        case Binary(Operator.LSH, Binary(Operator.AND, Load(1, Const(offset)), Const(0xF)), Const(2)) if offset < FIRST_NEGATIVE:
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
