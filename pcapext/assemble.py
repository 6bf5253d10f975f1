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
from collections.abc import Mapping, Sequence, Set
from functools import reduce
from itertools import chain, count
from operator import or_
from typing import TypeVar

from pcapext import bpf
from pcapext.bpf import MEMORY_SLOTS, Instruction, kernel_fault
from pcapext.cfg import (
    KEY_SLOTS,
    VOID,
    Block,
    Cfg,
    Const,
    Goto,
    Label,
    Load,
    Local,
    Return,
    Value,
    live_before,
    liveness,
    locals_of,
    parts,
)
from pcapext.registers import Code, Jump, in_order, next_base, plan_for, slot_within, write_block

V = TypeVar("V", bound=Value)


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
) -> dict[Label, Code]:
    """The code of each block. `early`: locals to store at the end of a block, since blocks behind it would do so."""
    plan = plan_for(frozenset(slots.items()), _bases(cfg))
    predecessors = cfg.predecessors
    written: dict[Label, Code] = {}
    for label, following in zip(order, [*order[1:], None], strict=True):
        block = cfg.blocks[label]
        before = [written[other] for other in predecessors[label]]
        a, x = _common([code.a for code in before]), _common([code.x for code in before])
        for local in in_order(live_before(block, after[label]) - a - x):
            for code in before:
                code.save_at_end(local)
        memory = _common([code.memory for code in before])
        base_behind = next_base(cfg.blocks[block.end.target].values) if isinstance(block.end, Goto) else None
        code = write_block(block, following in block.targets, base_behind, frozenset(after[label]), plan, a, x, memory)
        written[label] = Code(slots, code.a, code.x, code.memory, [*code.code])
        for local in in_order(early.get(label, frozenset())):
            written[label].save_at_end(local)
    return written


def _common(held: Sequence[frozenset[V]]) -> frozenset[V]:
    """What is in all sets, nothing where there are none."""
    return held[0].intersection(*held[1:]) if held else frozenset()


def _early(cfg: Cfg, written: Mapping[Label, Code]) -> dict[Label, set[Local]]:
    """The locals that are better stored at the end of a block than at the end of each of those behind it; nothing if none is."""
    stored: dict[Label, set[Local]] = {}
    # Of these, the ones that were there when the block began: so they can be stored before it.
    old: dict[Label, set[Local]] = {}
    predecessors, better = cfg.predecessors, False
    for label in reversed(cfg.labels):
        block, code = cfg.blocks[label], written[label]
        targets = set(block.targets)
        behind = set.intersection(*(old.get(target, set()) for target in targets)) if len(targets) > 1 else set()
        moved = {local for local in behind if local in code.a or local in code.x}
        if locals_ := code.stored_at_end | moved:
            stored[label], old[label] = locals_, locals_ - {local for local, _ in block.assignments}
            twice = old[label] & _common([written[before].memory for before in predecessors[label]])
            better = better or bool(twice or moved - code.stored_at_end)
    return stored if better else {}


def _bases(cfg: Cfg) -> frozenset[Local]:
    """The locals that are offsets of loads: X is the place for them."""
    loads = (part for block in cfg.blocks.values() for value in block.values for part in parts(value) if isinstance(part, Load))
    return frozenset(load.offset for load in loads if isinstance(load.offset, Local))


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
    """A slot of M[] for each local; two locals share one where no block needs both. Those of keys are given, and best left to them."""
    needed = set()
    for label, block in cfg.blocks.items():
        assigned = {local for local, _ in block.assignments if local != VOID}
        needed.add(frozenset(after[label]).union(assigned, *map(locals_of, block.values)))
    neighbours: dict[Local, set[Local]] = {}
    for together in needed:
        for local in together:
            neighbours.setdefault(local, set()).update(together - {local})
    slots = {local: slot for local, slot in KEY_SLOTS.items() if local in neighbours}
    keys = len(slots)
    for local in in_order(neighbours.keys() - slots.keys()):
        taken = {slots[other] for other in neighbours[local] if other in slots}
        order = chain(range(keys, MEMORY_SLOTS), range(keys), count(MEMORY_SLOTS))
        slots[local] = slot_within(next(slot for slot in order if slot not in taken))
    return slots


def _resolve_jumps(blocks: Sequence[tuple[Label, Sequence[Instruction | Jump]]]) -> tuple[Instruction, ...]:
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
