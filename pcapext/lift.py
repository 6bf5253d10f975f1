"""Lift: a classic BPF program to a control flow graph.

In:  the instructions of a program without loops, as libpcap's code generator makes them.
Out: a `Cfg` that computes the same verdict for every packet.

Each basic block is run on symbols instead of numbers. What A, X and M[] hold at its end and a later block still reads
becomes an assignment to the local of that name. Loads whose value nobody reads are kept, assigned to `VOID`: they can
reject the packet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pcapext import bpf
from pcapext.bpf import Instruction
from pcapext.cfg import (
    FIRST_NEGATIVE,
    VOID,
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
    Length,
    Load,
    Local,
    Operator,
    Return,
    Test,
    Value,
    live_before,
    locals_of,
    parts,
    rewrite,
    rewrite_end,
)
from pcapext.errors import ProgramError
from pcapext.flowkeys import FLOW_KEYS, KEY_BY_K, KEYS_K

A, X = Local("A"), Local("X")
MEMORY = tuple(Local(f"M{slot}") for slot in range(bpf.MEMORY_SLOTS))

_LOADS = {
    bpf.LD_W_ABS: 4, bpf.LD_H_ABS: 2, bpf.LD_B_ABS: 1,
    bpf.LD_W_IND: 4, bpf.LD_H_IND: 2, bpf.LD_B_IND: 1,
}  # fmt: skip
_INDIRECT = (bpf.LD_W_IND, bpf.LD_H_IND, bpf.LD_B_IND)
_ARITHMETIC = {operator.value: operator for operator in Operator}
_COMPARISONS = {comparison.value: comparison for comparison in Comparison}


def lift(instructions: Sequence[Instruction]) -> Cfg:
    """The graph of a program. Raises `ProgramError` for a program that jumps backwards."""
    starts = {0}
    for index, instruction in enumerate(instructions):
        targets = instruction.targets(index)
        if any(target <= index for target in targets):
            raise ProgramError(f"instruction {index}: a jump backwards makes a loop")
        starts.update(targets)
        if (targets or instruction.code in (bpf.RET_K, bpf.RET_A)) and index + 1 < len(instructions):
            starts.add(index + 1)
    ends = dict(zip(sorted(starts), [*sorted(starts)[1:], len(instructions)], strict=True))

    live: dict[int, frozenset[Local]] = {}
    blocks: dict[int, Block] = {}
    for start in sorted(starts, reverse=True):
        block = _run(instructions, start, ends[start])
        needed = frozenset[Local]().union(*(live[target] for target in block.targets))
        blocks[start] = block = _keep(block, needed)
        live[start] = live_before(block, needed)
    entry = blocks[0]
    zeros = tuple((local, Const(0)) for local in (A, X, *MEMORY) if local in live[0])  # as they begin in the machine
    return Cfg(0, {**blocks, 0: Block((*zeros, *entry.assignments), entry.end)})


def name_keys(cfg: Cfg) -> Cfg:
    """The graph with flow keys in place of the ancillary words that they are loaded as."""

    def name(value: Value) -> Value:
        return Key(KEY_BY_K[value.k].name) if isinstance(value, Ancillary) and value.k in KEY_BY_K else value

    blocks = {
        label: Block(tuple((local, rewrite(value, name)) for local, value in block.assignments), rewrite_end(block.end, name))
        for label, block in cfg.blocks.items()
    }
    return Cfg(cfg.entry, blocks)


def _run(instructions: Sequence[Instruction], start: int, end: int) -> Block:
    """Run one basic block on symbols. Every register it changes is assigned, each value in terms of the block's entry."""
    state: dict[Local, Value] = {local: local for local in (A, X, *MEMORY)}
    loads: list[Value] = []
    last: End | None = None
    for index in range(start, end):
        instruction = instructions[index]
        match instruction.code:
            case bpf.RET_K:
                last = Return(Const(instruction.k))
            case bpf.RET_A:
                last = Return(state[A])
            case bpf.JA:
                last = Goto(index + 1 + instruction.k)
            case _ if bpf.OPCODE_BY_CODE[instruction.code].conditional:
                last = Branch(comparison_of(instruction, state), *instruction.targets(index))
            case _:
                loads += run_one(instruction, state)
    changed = [(local, value) for local, value in state.items() if value != local]
    return Block((*((VOID, load) for load in loads), *changed), last or Goto(end))


def comparison_of(instruction: Instruction, state: Mapping[Local, Value]) -> Test:
    """What a conditional jump asks, with these values in the registers."""
    opcode = bpf.OPCODE_BY_CODE[instruction.code]
    return Test(_COMPARISONS[opcode.mnemonic], state[A], state[X] if opcode.operand is bpf.Operand.X else Const(instruction.k))


def run_one(instruction: Instruction, state: dict[Local, Value]) -> tuple[Value, ...]:
    """Run an instruction that is no jump and no `ret` on symbols: `state` changes. The values in it that can reject the packet."""
    opcode, k = bpf.OPCODE_BY_CODE[instruction.code], instruction.k
    match instruction.code:
        case code if code in _LOADS and code not in _INDIRECT and k == KEYS_K:
            _load_keys(state)
        case code if code in _LOADS:
            size = _LOADS[code]
            if code in _INDIRECT:
                state[A] = Load(size, state[X], k)
            else:
                state[A] = Ancillary(size, k) if k >= FIRST_NEGATIVE else Load(size, Const(k))
            return (state[A],)
        case bpf.LD_IMM:
            state[A] = Const(k)
        case bpf.LDX_IMM:
            state[X] = Const(k)
        case bpf.LD_MEM:
            state[A] = state[MEMORY[k]]
        case bpf.LDX_MEM:
            state[X] = state[MEMORY[k]]
        case bpf.LD_LEN:
            state[A] = Length()
        case bpf.LDX_LEN:
            state[X] = Length()
        case bpf.LDX_MSH:
            state[X] = header_length(Load(1, Const(k)))
            return (Load(1, Const(k)),)
        case bpf.ST:
            state[MEMORY[k]] = state[A]
        case bpf.STX:
            state[MEMORY[k]] = state[X]
        case bpf.TAX:
            state[X] = state[A]
        case bpf.TXA:
            state[A] = state[X]
        case bpf.NEG:
            state[A] = Binary(Operator.SUB, Const(0), state[A])
        case _:
            right = state[X] if opcode.operand is bpf.Operand.X else Const(k)
            state[A] = Binary(_ARITHMETIC[opcode.mnemonic], state[A], right)
            if opcode.mnemonic in ("div", "mod"):
                return (state[A],)
    return ()


def _load_keys(state: dict[Local, Value]) -> None:
    """Run `ld #keys` on symbols: as loads of the keys one by one."""
    match state[A]:
        case Const(asked):
            keys = FLOW_KEYS[:asked]
            state.update({MEMORY[slot]: Ancillary(4, key.k) for slot, key in enumerate(keys)})
            state[A] = Const(len(keys))
        case _:
            raise ProgramError("how many keys 'ld #keys' loads is not known: there is no 'ld #' right before it")


def header_length(octet: Value) -> Value:
    """What `ldxb 4*([k]&0xf)` loads: the length in bytes of the IPv4 header that begins with `octet`."""
    return Binary(Operator.LSH, Binary(Operator.AND, octet, Const(0xF)), Const(2))


def _keep(block: Block, needed: frozenset[Local]) -> Block:
    """The block without what nobody reads, its assignments in an order in which they do not disturb each other."""
    pending = {local: value for local, value in block.assignments if local in needed}
    end = block.end
    ordered: list[tuple[Local, Value]] = []
    while pending:
        reads = {local: set().union(*(locals_of(value) for other, value in pending.items() if other != local)) for local in pending}
        reads_at_end = set().union(*map(locals_of, Block((), end).values))
        free = [local for local in pending if local not in reads[local] | reads_at_end]
        if free:
            ordered.append((free[0], pending.pop(free[0])))
            continue
        # Each is read after it would be assigned: set one aside.
        local = next(iter(pending))
        aside = Local(f"{local.name}'")

        def put_aside(value: Value, local: Local = local, aside: Local = aside) -> Value:
            return aside if value == local else value

        ordered.append((aside, local))
        pending = {other: rewrite(value, put_aside) for other, value in pending.items()}
        end = rewrite_end(end, put_aside)
    computed = {part for _, value in ordered for part in parts(value)}.union(*(parts(value) for value in Block((), end).values))
    silent = tuple((VOID, value) for local, value in block.assignments if local == VOID and value not in computed)
    return Block((*silent, *ordered), end)
