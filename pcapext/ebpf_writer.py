"""Writing eBPF: instructions in order, with jumps to labels.

In:  instructions, one method call each.
Out: the instructions with every jump a distance, none of which leads to the next instruction.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

from pcapext import ebpf
from pcapext.ebpf import EbpfInstruction, Helper
from pcapext.errors import FilterError

#: The comparison that holds where another one does not.
NEGATED = {"==": "!=", "!=": "==", ">": "<=", ">=": "<", "<": ">=", "<=": ">", "s>": "s<=", "s>=": "s<", "s<": "s>=", "s<=": "s>"}
_NEGATED_CODES = {ebpf.COMPARISONS[word]: ebpf.COMPARISONS[negated] for word, negated in NEGATED.items()}

#: A place to jump to.
Label = Hashable


@dataclass(frozen=True, slots=True)
class Register:
    """A register, r0 to r10."""

    number: int


R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = map(Register, range(11))

#: The last operand of an instruction: a register, or a number of 32 bits.
Operand = Register | int


@dataclass(frozen=True, slots=True)
class _Jump:
    """A jump or a call that leads to a label."""

    instruction: EbpfInstruction
    target: Label

    @property
    def is_goto(self) -> bool:
        return self.instruction.opcode == ebpf.JA

    @property
    def negated(self) -> EbpfInstruction | None:
        """The jump for where this one does not; None where there is none."""
        opcode = self.instruction.opcode
        operation = _NEGATED_CODES.get(opcode & 0xF0) if opcode & 0x07 in (ebpf.JMP, ebpf.JMP32) else None
        return None if operation is None else replace(self.instruction, opcode=operation | opcode & 0x0F)


@dataclass(frozen=True, slots=True)
class _Here:
    """The place of a label."""

    label: Label


class Writer:
    """Instructions as they are written."""

    def __init__(self) -> None:
        self._items: list[EbpfInstruction | _Jump | _Here] = []

    # --- places

    def label(self, label: Label) -> None:
        """The next instruction is where jumps to the label lead."""
        self._items.append(_Here(label))

    def leads_to(self, label: Label) -> bool:
        """Whether a jump to the label was written."""
        return any(isinstance(item, _Jump) and item.target == label for item in self._items)

    def goto(self, target: Label) -> None:
        self._items.append(_Jump(EbpfInstruction(ebpf.JA), target))

    def may_goto(self, target: Label) -> None:
        """Go to the label if a loop has gone round too often."""
        self._items.append(_Jump(EbpfInstruction(ebpf.MAY_GOTO), target))

    def jump(self, left: Register, comparison: str, right: Operand, target: Label) -> None:
        """Go to the label if the comparison holds; numbers are those of 32 bits, registers are compared whole."""
        klass, number = ebpf.JMP, right
        if isinstance(right, int) and right > 0x7FFF_FFFF:
            klass, number = ebpf.JMP32, right - (1 << 32)  # the other class would extend the sign
        self._items.append(_Jump(_operation(klass | ebpf.COMPARISONS[comparison], left, number), target))

    def call(self, helper: Helper) -> None:
        self._items.append(EbpfInstruction(ebpf.CALL, imm=helper.number))

    def call_function(self, target: Label) -> None:
        self._items.append(_Jump(EbpfInstruction(ebpf.CALL, src=ebpf.PSEUDO_CALL), target))

    def exit(self) -> None:
        self._items.append(EbpfInstruction(ebpf.EXIT))

    def leads_on_to(self) -> tuple[Label, ...]:
        """The labels that the last jumps lead to, of which one may as well follow: that of the `goto`, and of a jump before it."""
        last = self._items[-1] if self._items else None
        before = self._items[-2] if len(self._items) > 1 else None
        if not isinstance(last, _Jump) or not last.is_goto:
            return ()
        return (last.target, before.target) if isinstance(before, _Jump) and before.negated else (last.target,)

    def put(self, other: Writer) -> None:
        """What another one has written."""
        self._items += other._items

    # --- numbers

    def move(self, to: Register, value: Operand) -> None:
        """A whole register, or a number below 2**32."""
        self.compute(to, "=", value, whole=isinstance(value, Register) or value <= 0x7FFF_FFFF)

    def compute(self, to: Register, operator: str, operand: Operand, *, whole: bool = True) -> None:
        """Arithmetic on whole registers, or on their low 32 bits, the others becoming 0."""
        number = operand - (1 << 32) if isinstance(operand, int) and operand > 0x7FFF_FFFF else operand
        self._items.append(_operation((ebpf.ALU64 if whole else ebpf.ALU) | ebpf.ARITHMETIC[operator], to, number))

    def from_network(self, register: Register, size: int) -> None:
        """`size` bytes as they stand in a packet, to a number."""
        if size > 1:
            self._items.append(EbpfInstruction(ebpf.TO_BE, register.number, imm=8 * size))

    # --- memory

    def load(self, to: Register, size: int, base: Register, offset: int) -> None:
        self._items.append(EbpfInstruction(ebpf.LDX | ebpf.MEM | ebpf.SIZES[size], to.number, base.number, offset))

    def store(self, size: int, base: Register, offset: int, value: Operand) -> None:
        if isinstance(value, Register):
            self._items.append(EbpfInstruction(ebpf.STX | ebpf.MEM | ebpf.SIZES[size], base.number, value.number, offset))
        else:
            self._items.append(EbpfInstruction(ebpf.ST | ebpf.MEM | ebpf.SIZES[size], base.number, off=offset, imm=value))

    def load_packet(self, size: int, offset: Register | None, k: int) -> None:
        """`size` bytes of the packet into r0, or the end of the program, with 0. r6 must be the context; r1 to r5 are lost."""
        mode, source = (ebpf.ABS, 0) if offset is None else (ebpf.IND, offset.number)
        self._items.append(EbpfInstruction(ebpf.LD | mode | ebpf.SIZES[size], src=source, imm=k))

    # --- all of it

    def finish(self) -> tuple[EbpfInstruction, ...]:
        """The instructions. Raises `FilterError` where a jump is longer than an instruction can say."""
        items = self._items
        while (simpler := _without_needless_jumps(items)) != items:
            items = simpler
        places: dict[Label, int] = {}
        count = 0
        for item in items:
            if isinstance(item, _Here):
                places[item.label] = count
            else:
                count += 1
        written: list[EbpfInstruction] = []
        for item in items:
            match item:
                case EbpfInstruction():
                    written.append(item)
                case _Jump(instruction, target):
                    distance = places[target] - len(written) - 1
                    if instruction.opcode == ebpf.CALL:
                        written.append(replace(instruction, imm=distance))
                    elif abs(distance) > 0x7FFF:
                        raise FilterError(f"the program would take {count} instructions, and no jump of eBPF reaches farther than {0x7FFF}")
                    else:
                        written.append(replace(instruction, off=distance))
        return tuple(written)


def _operation(opcode: int, to: Register, operand: Operand) -> EbpfInstruction:
    if isinstance(operand, Register):
        return EbpfInstruction(opcode | ebpf.X, to.number, operand.number)
    return EbpfInstruction(opcode | ebpf.K, to.number, imm=operand)


#: An item of a program.
_Item = EbpfInstruction | _Jump | _Here


def _without_needless_jumps(items: list[_Item]) -> list[_Item]:
    """The items without jumps to what follows them or to other jumps, and without what nothing leads to."""
    aliases: dict[Label, Label] = {}
    for index, item in enumerate(items):
        if isinstance(item, _Here):
            following = next((other for other in items[index:] if not isinstance(other, _Here)), None)
            if isinstance(following, _Jump) and following.is_goto and following.target != item.label:
                aliases[item.label] = following.target
    items = [_Jump(item.instruction, aliases.get(item.target, item.target)) if isinstance(item, _Jump) else item for item in items]
    wanted = {item.target for item in items if isinstance(item, _Jump)}
    kept: list[_Item] = []
    reached = True
    for item in items:
        match item:
            case _Here(label):
                if label not in wanted:
                    continue
                reached = True
            case _ if not reached:
                continue
            case _Jump() if item.is_goto:
                reached = False
            case EbpfInstruction(ebpf.EXIT):
                reached = False
        kept.append(item)
    backwards: list[_Item] = []
    following_labels: set[Label] = set()
    for item in reversed(kept):
        match item:
            case _Here(label):
                following_labels.add(label)
            case _Jump() if item.is_goto and item.target in following_labels:
                continue
            case _:
                following_labels = set()
        backwards.append(item)
    return _turned(backwards[::-1])


def _turned(items: list[_Item]) -> list[_Item]:
    """The items with one jump for each that leads over a `goto`."""
    turned: list[_Item] = []
    for index, item in enumerate(items):
        before = turned[-1] if turned else None
        if isinstance(item, _Jump) and item.is_goto and isinstance(before, _Jump) and (negated := before.negated):
            behind = []
            for other in items[index + 1 :]:
                if not isinstance(other, _Here):
                    break
                behind.append(other.label)
            if before.target in behind:
                turned[-1] = _Jump(negated, item.target)
                continue
        turned.append(item)
    return turned
