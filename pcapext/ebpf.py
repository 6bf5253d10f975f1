"""eBPF: instructions, `EbpfProgram`, and the forms that one is shown and handed on in.

In:  opcodes and operands.
Out: an `EbpfProgram`: a socket filter for the kernel, which checks it when it is loaded (`pcapext.bpf_syscall.load`).

An instruction is a `struct bpf_insn` (include/uapi/linux/bpf.h). Registers: r0 takes results, r1 to r5 arguments, which every call
clobbers, r6 to r9 are kept, r10 points behind the stack. The text is what the kernel's verifier prints (kernel/bpf/disasm.c), so
that a line of its log is found in the dump.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, overload

from pcapext.bpf import MAXIMUM_SNAPLEN, U32
from pcapext.errors import ProgramError

if TYPE_CHECKING:
    from pcapext.attaching import Attachment
    from pcapext.encapsulation import WalkSettings

#: The classes of instructions: the low three bits of an opcode.
LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)

#: Where the last operand is: the number imm or the register src.
K, X = 0x00, 0x08

#: The sizes of loads and stores in bytes, with the bits for each and the verifier's word.
SIZES = {4: 0x00, 2: 0x08, 1: 0x10, 8: 0x18}
_SIZE_WORDS = {0x00: "u32", 0x08: "u16", 0x10: "u8", 0x18: "u64"}
MEM, ABS, IND = 0x60, 0x20, 0x40

#: Arithmetic and jumps by the operator that the verifier shows, with the high four bits of the opcode.
ARITHMETIC = {
    "+=": 0x00,
    "-=": 0x10,
    "*=": 0x20,
    "/=": 0x30,
    "|=": 0x40,
    "&=": 0x50,
    "<<=": 0x60,
    ">>=": 0x70,
    "%=": 0x90,
    "^=": 0xA0,
    "=": 0xB0,
}
COMPARISONS = {
    "==": 0x10,
    ">": 0x20,
    ">=": 0x30,
    "&": 0x40,
    "!=": 0x50,
    "s>": 0x60,
    "s>=": 0x70,
    "<": 0xA0,
    "<=": 0xB0,
    "s<": 0xC0,
    "s<=": 0xD0,
}
_ARITHMETIC_WORDS = {code: word for word, code in ARITHMETIC.items()}
_COMPARISON_WORDS = {code: word for word, code in COMPARISONS.items()}
JA, CALL, EXIT = 0x00 | JMP, 0x80 | JMP, 0x90 | JMP
#: Leaves a loop that has gone round too often. With it, the verifier need not see how often that is (BPF_JCOND, BPF_MAY_GOTO; Linux 6.9).
MAY_GOTO = 0xE0 | JMP
#: To the byte order of the network; imm is the number of bits.
TO_BE = 0xD0 | ALU | X

#: `src` of a call to a function of the program itself (BPF_PSEUDO_CALL); imm is the distance.
PSEUDO_CALL = 1


@dataclass(frozen=True, slots=True)
class Helper:
    """A function of the kernel's: the number it is called by, and its name."""

    number: int
    name: str


#: The helpers that programs call (include/uapi/linux/bpf.h, __BPF_FUNC_MAPPER).
RANDOM, PROCESSOR, LOAD_BYTES = Helper(7, "bpf_get_prandom_u32"), Helper(8, "bpf_get_smp_processor_id"), Helper(26, "bpf_skb_load_bytes")
_HELPER_NAMES = {helper.number: helper.name for helper in (RANDOM, PROCESSOR, LOAD_BYTES)}


@dataclass(frozen=True, slots=True)
class EbpfInstruction:
    """One instruction, the fields of `struct bpf_insn`: `dst` and `src` are registers, `off` has 16 bits and `imm` 32, both signed.

    >>> EbpfInstruction(LDX | MEM | SIZES[2], dst=0, src=10, off=-48)
    EbpfInstruction(opcode=105, dst=0, src=10, off=-48, imm=0)
    """

    opcode: int
    dst: int = 0
    src: int = 0
    off: int = 0
    imm: int = 0

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("opcode", self.opcode, 0, 0xFF),
            ("dst", self.dst, 0, 10),
            ("src", self.src, 0, 10),
            ("off", self.off, -0x8000, 0x7FFF),
            ("imm", self.imm, -0x8000_0000, 0x7FFF_FFFF),
        ):
            if not low <= value <= high:
                raise ProgramError(f"{name} {value} is out of range, expected {low} to {high}")

    def __bytes__(self) -> bytes:
        # The two registers are bit fields: which of them has the low bits is up to the byte order (include/uapi/linux/bpf.h).
        registers = self.dst | self.src << 4 if sys.byteorder == "little" else self.dst << 4 | self.src
        return struct.pack("=BBhi", self.opcode, registers, self.off, self.imm)

    def __str__(self) -> str:
        """The words of the kernel's verifier.

        >>> print(EbpfInstruction(JMP | COMPARISONS["=="] | K, dst=0, off=4, imm=0x800))
        (15) if r0 == 0x800 goto pc+4
        """
        return f"({self.opcode:02x}) {self._words}"

    @property
    def _words(self) -> str:
        operation, by_register = self.opcode & 0xF0, bool(self.opcode & X)
        size, place = _SIZE_WORDS[self.opcode & 0x18], f"{self.off:+}"
        match self.opcode & 0x07, self.opcode & 0xE0:
            case _ if self.opcode == TO_BE:
                return f"r{self.dst} = be{self.imm} r{self.dst}"
            case (klass, _) if klass in (ALU, ALU64) and operation in _ARITHMETIC_WORDS:
                letter = "w" if klass == ALU else "r"
                operand = f"{letter}{self.src}" if by_register else str(self.imm)
                return f"{letter}{self.dst} {_ARITHMETIC_WORDS[operation]} {operand}"
            case (klass, _) if klass in (JMP, JMP32) and operation in _COMPARISON_WORDS:
                letter = "w" if klass == JMP32 else "r"
                operand = f"{letter}{self.src}" if by_register else f"{self.imm & U32:#x}"
                return f"if {letter}{self.dst} {_COMPARISON_WORDS[operation]} {operand} goto pc{place}"
            case 1, 0x60:  # LDX, MEM
                return f"r{self.dst} = *({size} *)(r{self.src} {place})"
            case 3, 0x60:  # STX, MEM
                return f"*({size} *)(r{self.dst} {place}) = r{self.src}"
            case 2, 0x60:  # ST, MEM
                return f"*({size} *)(r{self.dst} {place}) = {self.imm}"
            case 0, 0x20:  # LD, ABS
                return f"r0 = *({size} *)skb[{self.imm}]"
            case 0, 0x40:  # LD, IND
                return f"r0 = *({size} *)skb[r{self.src} + {self.imm}]"
        if self.opcode == CALL:
            return f"call pc{self.imm:+}" if self.src == PSEUDO_CALL else f"call {_HELPER_NAMES.get(self.imm, 'unknown')}#{self.imm}"
        if self.opcode in (JA, MAY_GOTO):
            return f"{'goto' if self.opcode == JA else 'may_goto'} pc{place}"
        return "exit" if self.opcode == EXIT else "unknown"


@dataclass(frozen=True, slots=True)
class EbpfProgram(Sequence[EbpfInstruction]):
    """An eBPF socket filter: a sequence of `EbpfInstruction`, with what it was made from.

    `linktype`, `snaplen` and `expression` are those of `pcapext.Program`. `settings` are those of the walk, all of them, None where there
    is no walk. The program returns how many bytes of the packet to keep, 0 to reject it. It sees what the kernel has: of the link types
    LINUX_SLL and LINUX_SLL2 the packet from its network header on. `bytes(program)` is an array of `struct bpf_insn` in host byte
    order. `pcapext.bpf_syscall` loads it.

    >>> accept = EbpfProgram((EbpfInstruction(ALU64 | ARITHMETIC["="], imm=64), EbpfInstruction(EXIT)))
    >>> print(accept.dump(), end="")
       0: (b7) r0 = 64
       1: (95) exit
    """

    instructions: tuple[EbpfInstruction, ...]
    linktype: int = 1
    snaplen: int = MAXIMUM_SNAPLEN
    expression: str | None = None
    settings: WalkSettings | None = None

    target: ClassVar[str] = "ebpf"

    def __post_init__(self) -> None:
        object.__setattr__(self, "instructions", tuple(self.instructions))
        if not self.instructions or self.instructions[-1].opcode not in (EXIT, JA):
            raise ProgramError("the last instruction must be an exit or a goto")
        for index, instruction in enumerate(self.instructions):
            target = _target(instruction, index)
            if not 0 <= target < len(self.instructions):
                raise ProgramError(f"instruction {index}: a jump to instruction {target}, but the program has {len(self.instructions)}")

    def __len__(self) -> int:
        return len(self.instructions)

    def __iter__(self) -> Iterator[EbpfInstruction]:
        return iter(self.instructions)

    @overload
    def __getitem__(self, index: int) -> EbpfInstruction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[EbpfInstruction, ...]: ...
    def __getitem__(self, index: int | slice) -> EbpfInstruction | tuple[EbpfInstruction, ...]:
        return self.instructions[index]

    def __bytes__(self) -> bytes:
        return b"".join(map(bytes, self.instructions))

    def attach(self, place: object) -> Attachment:
        """Let the kernel filter a packet socket, a descriptor of one or a handle with it, as `pcapext.attach` does."""
        from pcapext.attaching import attach

        return attach(self, place)

    def dump(self, style: str = "d") -> str:
        """The program as text: `d`, one line an instruction as the kernel's verifier prints it, or `c`, an array of `struct bpf_insn`.

        Raises `ProgramError` for another style.
        """
        writer = STYLES.get(style)
        if writer is None:
            raise ProgramError(f"unknown style {style!r}, expected one of {', '.join(STYLES)}")
        return writer(self)


def _target(instruction: EbpfInstruction, index: int) -> int:
    """Where an instruction can jump or call to within the program; the instruction itself if it does not."""
    if instruction.opcode == CALL:
        return index + 1 + instruction.imm if instruction.src == PSEUDO_CALL else index
    is_jump = instruction.opcode & 0x07 in (JMP, JMP32) and instruction.opcode != EXIT
    return index + 1 + instruction.off if is_jump else index


def _d(program: EbpfProgram) -> str:
    return "".join(f"{index:4}: {instruction}\n" for index, instruction in enumerate(program))


def _c(program: EbpfProgram) -> str:
    rows = (
        f"\t{{ .code = {i.opcode:#04x}, .dst_reg = {i.dst}, .src_reg = {i.src}, .off = {i.off}, .imm = {i.imm} }},\t/* {index}: {i} */\n"
        for index, i in enumerate(program)
    )
    return f"struct bpf_insn filter[{len(program)}] = {{\n{''.join(rows)}}};\n"


#: The styles of `EbpfProgram.dump` by name.
STYLES: dict[str, Callable[[EbpfProgram], str]] = {"d": _d, "c": _c}
