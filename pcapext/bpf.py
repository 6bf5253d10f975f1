"""Classic BPF: the opcodes, the ancillary words, `Instruction`, `Program` and the rules that make a program valid.

In:  codes and operands, or the bytes of `struct sock_filter`.
Out: a `Program`: immutable, and valid by the rules of libpcap, so that whatever holds one can run it without looking
     at it again. What the Linux kernel asks beyond these rules is told by `Program.kernel_refusal`.

The opcodes are those of include/uapi/linux/bpf_common.h and libpcap's pcap/bpf.h. One table, `OPCODES`, drives the
dumps, the readers, the checks and the machine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, overload

from pcapext.errors import ProgramError
from pcapext.flowkeys import FLOW_KEYS, KEYS_ANCILLARY, KEYS_K, KEYS_NAME, SKF_AD_OFF
from pcapext.slotted import dataclass, field

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pcapext.attaching import Attachment
    from pcapext.encapsulation import WalkSettings

#: Instructions the kernel takes at most (BPF_MAXINSNS), and slots in the scratch memory M[] (BPF_MEMWORDS).
MAX_INSTRUCTIONS = 4096
MEMORY_SLOTS = 16

#: Operands and registers are 32 bits wide.
U32 = 0xFFFF_FFFF

#: The largest packet libpcap captures by default (MAXIMUM_SNAPLEN, pcap-int.h).
MAXIMUM_SNAPLEN = 262144

#: The targets whose programs are classic BPF.
CLASSIC_TARGETS = ("classic", "flowkeys", "keys")

LD_W_ABS, LD_H_ABS, LD_B_ABS = 0x20, 0x28, 0x30
LD_W_IND, LD_H_IND, LD_B_IND = 0x40, 0x48, 0x50
LD_IMM, LD_MEM, LD_LEN = 0x00, 0x60, 0x80
LDX_IMM, LDX_MEM, LDX_LEN, LDX_MSH = 0x01, 0x61, 0x81, 0xB1
ST, STX = 0x02, 0x03
ADD_K, SUB_K, MUL_K, DIV_K, OR_K, AND_K, LSH_K, RSH_K = 0x04, 0x14, 0x24, 0x34, 0x44, 0x54, 0x64, 0x74
ADD_X, SUB_X, MUL_X, DIV_X, OR_X, AND_X, LSH_X, RSH_X = 0x0C, 0x1C, 0x2C, 0x3C, 0x4C, 0x5C, 0x6C, 0x7C
NEG, MOD_K, MOD_X, XOR_K, XOR_X = 0x84, 0x94, 0x9C, 0xA4, 0xAC
JA = 0x05
JEQ_K, JGT_K, JGE_K, JSET_K = 0x15, 0x25, 0x35, 0x45
JEQ_X, JGT_X, JGE_X, JSET_X = 0x1D, 0x2D, 0x3D, 0x4D
RET_K, RET_A = 0x06, 0x16
TAX, TXA = 0x07, 0x87


class Operand(Enum):
    """What an instruction takes besides A, and what its k means."""

    NONE = "nothing"
    ABSOLUTE = "[k]"
    INDIRECT = "[x + k]"
    HEADER_LENGTH = "4*([k]&0xf)"
    LENGTH = "#pktlen"
    MEMORY = "M[k]"
    #: A constant that libpcap shows as an unsigned hexadecimal number, and one it shows as a signed decimal.
    HEX = "#0xk"
    DECIMAL = "#k"
    X = "x"
    A = "a"
    #: An unconditional jump; k is the distance.
    DISTANCE = "distance"


@dataclass(frozen=True, slots=True)
class Opcode:
    """A row of the table: the code, its mnemonic, its operand, and whether it jumps by jt and jf."""

    code: int
    mnemonic: str
    operand: Operand
    conditional: bool = False


OPCODES: tuple[Opcode, ...] = (
    Opcode(LD_W_ABS, "ld", Operand.ABSOLUTE),
    Opcode(LD_H_ABS, "ldh", Operand.ABSOLUTE),
    Opcode(LD_B_ABS, "ldb", Operand.ABSOLUTE),
    Opcode(LD_W_IND, "ld", Operand.INDIRECT),
    Opcode(LD_H_IND, "ldh", Operand.INDIRECT),
    Opcode(LD_B_IND, "ldb", Operand.INDIRECT),
    Opcode(LD_IMM, "ld", Operand.HEX),
    Opcode(LD_MEM, "ld", Operand.MEMORY),
    Opcode(LD_LEN, "ld", Operand.LENGTH),
    Opcode(LDX_IMM, "ldx", Operand.HEX),
    Opcode(LDX_MEM, "ldx", Operand.MEMORY),
    Opcode(LDX_LEN, "ldx", Operand.LENGTH),
    Opcode(LDX_MSH, "ldxb", Operand.HEADER_LENGTH),
    Opcode(ST, "st", Operand.MEMORY),
    Opcode(STX, "stx", Operand.MEMORY),
    Opcode(ADD_K, "add", Operand.DECIMAL),
    Opcode(SUB_K, "sub", Operand.DECIMAL),
    Opcode(MUL_K, "mul", Operand.DECIMAL),
    Opcode(DIV_K, "div", Operand.DECIMAL),
    Opcode(MOD_K, "mod", Operand.DECIMAL),
    Opcode(AND_K, "and", Operand.HEX),
    Opcode(OR_K, "or", Operand.HEX),
    Opcode(XOR_K, "xor", Operand.HEX),
    Opcode(LSH_K, "lsh", Operand.DECIMAL),
    Opcode(RSH_K, "rsh", Operand.DECIMAL),
    Opcode(ADD_X, "add", Operand.X),
    Opcode(SUB_X, "sub", Operand.X),
    Opcode(MUL_X, "mul", Operand.X),
    Opcode(DIV_X, "div", Operand.X),
    Opcode(MOD_X, "mod", Operand.X),
    Opcode(AND_X, "and", Operand.X),
    Opcode(OR_X, "or", Operand.X),
    Opcode(XOR_X, "xor", Operand.X),
    Opcode(LSH_X, "lsh", Operand.X),
    Opcode(RSH_X, "rsh", Operand.X),
    Opcode(NEG, "neg", Operand.NONE),
    Opcode(JA, "ja", Operand.DISTANCE),
    Opcode(JEQ_K, "jeq", Operand.HEX, conditional=True),
    Opcode(JGT_K, "jgt", Operand.HEX, conditional=True),
    Opcode(JGE_K, "jge", Operand.HEX, conditional=True),
    Opcode(JSET_K, "jset", Operand.HEX, conditional=True),
    Opcode(JEQ_X, "jeq", Operand.X, conditional=True),
    Opcode(JGT_X, "jgt", Operand.X, conditional=True),
    Opcode(JGE_X, "jge", Operand.X, conditional=True),
    Opcode(JSET_X, "jset", Operand.X, conditional=True),
    Opcode(RET_K, "ret", Operand.DECIMAL),
    Opcode(RET_A, "ret", Operand.A),
    Opcode(TAX, "tax", Operand.NONE),
    Opcode(TXA, "txa", Operand.NONE),
)

OPCODE_BY_CODE = {opcode.code: opcode for opcode in OPCODES}


@dataclass(frozen=True, slots=True)
class Ancillary:
    """A word that is not of the packet: an absolute load, of any size, from k = SKF_AD_OFF + `offset`.

    `name` is what libpcap calls it in a dump (`bpf_image`), `asm` what bpf_asm calls it (the kernel's
    tools/bpf/bpf_exp.l), its preferred name first; () where bpf_asm has no name.
    """

    offset: int
    name: str
    asm: tuple[str, ...]
    stock: bool = True

    @property
    def k(self) -> int:
        """The operand k of the load."""
        return SKF_AD_OFF + self.offset


#: The kernel's words (SKF_AD_*, include/uapi/linux/filter.h), then the flow keys that it lacks.
ANCILLARY: tuple[Ancillary, ...] = (
    Ancillary(0, "proto", ("proto",)),
    Ancillary(4, "type", ("type",)),
    Ancillary(8, "ifidx", ("ifidx",)),
    Ancillary(12, "nla", ("nla",)),
    Ancillary(16, "nlan", ("nlan",)),
    Ancillary(20, "mark", ("mark",)),
    Ancillary(24, "queue", ("queue",)),
    Ancillary(28, "hatype", ("hatype",)),
    Ancillary(32, "rxhash", ("rxhash",)),
    Ancillary(36, "cpu", ("cpu",)),
    Ancillary(40, "xor_x", ()),
    Ancillary(44, "vlan_tci", ("vlan_tci",)),
    Ancillary(48, "vlanp", ("vlan_avail", "vlan_pr")),
    Ancillary(52, "poff", ("poff",)),
    Ancillary(56, "random", ("rand",)),
    Ancillary(60, "vlan_tpid", ("vlan_tpid",)),
    *(Ancillary(key.ancillary, key.name, (key.name,), stock=False) for key in FLOW_KEYS if not key.stock),
    Ancillary(KEYS_ANCILLARY, KEYS_NAME, (KEYS_NAME,), stock=False),
)

ANCILLARY_BY_K = {word.k: word for word in ANCILLARY}

#: The k of the words that libpcap's made-up headers are filled from.
SKF_AD_PROTOCOL, SKF_AD_PKTTYPE, SKF_AD_IFINDEX, SKF_AD_HATYPE = (SKF_AD_OFF + offset for offset in (0, 4, 8, 28))

_ABSOLUTE_LOADS = (LD_W_ABS, LD_H_ABS, LD_B_ABS)
_MEMORY_LOADS = (LD_MEM, LDX_MEM)
_STORES = (ST, STX)
_RETURNS = (RET_K, RET_A)


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, the fields of `struct sock_filter`.

    `jt` and `jf` are the instructions to skip where a conditional jump's test holds or not. A field that the opcode
    does not use may hold anything, as libpcap leaves numbers there; dumps in words do not show it.

    >>> Instruction(LD_H_ABS, k=12)
    Instruction(code=40, jt=0, jf=0, k=12)
    """

    code: int
    jt: int = 0
    jf: int = 0
    k: int = 0

    def __post_init__(self) -> None:
        if 0 <= self.code <= 0xFFFF and 0 <= self.jt <= 0xFF and 0 <= self.jf <= 0xFF and 0 <= self.k <= U32:
            return
        for name, value, limit in (("code", self.code, 0xFFFF), ("jt", self.jt, 0xFF), ("jf", self.jf, 0xFF), ("k", self.k, U32)):
            if not 0 <= value <= limit:
                raise ProgramError(f"{name} {value} is out of range, expected 0 to {limit}")

    def targets(self, index: int) -> tuple[int, ...]:
        """Where it can jump to if it stands at `index`: (jt's, jf's), (ja's), or () where it is no jump.

        >>> Instruction(JEQ_K, 0, 3).targets(10)
        (11, 14)
        """
        if self.code == JA:
            return ((index + 1 + self.k) & U32,)
        opcode = OPCODE_BY_CODE.get(self.code)
        return (index + 1 + self.jt, index + 1 + self.jf) if opcode and opcode.conditional else ()

    @property
    def ancillary(self) -> Ancillary | None:
        """The ancillary word it loads, if it does."""
        return ANCILLARY_BY_K.get(self.k) if self.code in _ABSOLUTE_LOADS else None


@dataclass(frozen=True, slots=True)
class Program(Sequence[Instruction]):
    """A valid classic BPF program: a sequence of `Instruction`, with what it was made from.

    `linktype` is a DLT number (1: EN10MB), `snaplen` the snap length in bytes, `expression` the text it was compiled
    from, `target` the form it was compiled to ("classic", "flowkeys" or "keys", DESIGN.md 2), `settings` those of the walk
    that its flow keys come from, None where they are the usual ones. Whatever libpcap's interpreter can run can be built;
    anything else is a ProgramError. `bytes(program)` is an array of `struct sock_filter` in host byte order.

    >>> program = Program((Instruction(LD_H_ABS, k=12), Instruction(JEQ_K, 0, 1, 0x806), Instruction(RET_K, k=64), Instruction(RET_K)))
    >>> len(program), program[0].k, program.matches(bytes(12) + b"\\x08\\x06")
    (4, 12, True)
    """

    instructions: tuple[Instruction, ...]
    linktype: int = 1
    snaplen: int = MAXIMUM_SNAPLEN
    expression: str | None = None
    target: str = "classic"
    settings: WalkSettings | None = None
    # Kept, because the machine looks a program up for every packet.
    _hash: int = field(init=False, repr=False, compare=False)
    # Made when it is first needed: what the engine runs, a `pcapext.engine.Matcher`.
    _matcher: Any = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "instructions", tuple(self.instructions))
        if self.settings is not None and self.settings == type(self.settings)():
            object.__setattr__(self, "settings", None)
        object.__setattr__(self, "_hash", hash(self._made_of))
        if not 0 <= self.linktype <= 0xFFFF:
            raise ProgramError(f"link type {self.linktype} is out of range, expected 0 to {0xFFFF}")
        if not 1 <= self.snaplen <= 0x7FFF_FFFF:
            raise ProgramError(f"snap length {self.snaplen} is out of range, expected 1 to {0x7FFF_FFFF}")
        if self.target not in CLASSIC_TARGETS:
            raise ProgramError(f"unknown target {self.target!r}, expected one of {', '.join(CLASSIC_TARGETS)}")
        fault = structural_fault(self.instructions)
        if fault:
            raise ProgramError(str(fault))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[Program], tuple[object, ...]]:
        # Strings hash differently in each process, so the kept hash must not travel.
        return Program, self._made_of

    @property
    def _made_of(self) -> tuple[object, ...]:
        return self.instructions, self.linktype, self.snaplen, self.expression, self.target, self.settings

    def __len__(self) -> int:
        return len(self.instructions)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions)

    @overload
    def __getitem__(self, index: int) -> Instruction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Instruction, ...]: ...
    def __getitem__(self, index: int | slice) -> Instruction | tuple[Instruction, ...]:
        return self.instructions[index]

    def __bytes__(self) -> bytes:
        return b"".join(struct.pack("=HBBI", i.code, i.jt, i.jf, i.k) for i in self.instructions)

    @classmethod
    def from_bytes(cls, data: Buffer, linktype: int = 1, snaplen: int = MAXIMUM_SNAPLEN, expression: str | None = None) -> Program:
        """The program of an array of `struct sock_filter` in host byte order; its target follows from its loads."""
        octets = bytes(memoryview(data))
        if len(octets) % 8:
            raise ProgramError(f"{len(octets)} bytes are no array of struct sock_filter, expected a multiple of 8")
        return program_of((Instruction(*fields) for fields in struct.iter_unpack("=HBBI", octets)), linktype, snaplen, expression)

    @property
    def flow_keys(self) -> tuple[str, ...]:
        """The names of the flow keys it loads that a stock kernel does not have, each once; `keys` for `ld #keys`.

        >>> Program((Instruction(LD_W_ABS, k=SKF_AD_OFF + 76), Instruction(RET_A))).flow_keys
        ('tproto',)
        """
        return _flow_keys(self.instructions)

    def kernel_refusal(self, stock: bool = True) -> str | None:
        """Why the Linux kernel would refuse it, or None if it would not.

        With `stock` false: a kernel that has the flow keys as ancillary words. See `kernel_fault` for the rules.
        """
        fault = kernel_fault(self.instructions, stock)
        return str(fault) if fault else None

    def matches(self, packet: Buffer, wirelen: int | None = None) -> bool:
        """Whether the program accepts `packet`, any buffer of captured bytes, which had `wirelen` bytes on the wire.

        `wirelen` is the number of captured bytes unless told. The engine runs it: what `pcapext.machine.run` tells, in C. Raises
        ProgramError where it loads flow keys and there are none on its link type.
        """
        matcher = self._matcher
        if matcher is None:
            from pcapext.engine import matcher_of

            matcher = matcher_of(self.instructions, self.linktype, self.settings)
            object.__setattr__(self, "_matcher", matcher)
        if wirelen is None and type(packet) is bytes and (length := len(packet)) <= U32:  # the quick way for what is usual
            value: int = matcher.run_whole(matcher.pointer, packet, length)
            if value >= 0:
                return value != 0
        return bool(matcher.run(packet, wirelen))

    def attach(self, place: object) -> Attachment:
        """Let the kernel filter a packet socket, a descriptor of one or a handle with it, as `pcapext.attaching.attach` does."""
        from pcapext.attaching import attach

        return attach(self, place)

    def dump(self, style: str = "d") -> str:
        """The program as text, in one of the styles of `pcapext.dump.dump`."""
        from pcapext.dump import dump

        return dump(self, style)


def program_of(
    instructions: Iterable[Instruction],
    linktype: int = 1,
    snaplen: int = MAXIMUM_SNAPLEN,
    expression: str | None = None,
) -> Program:
    """A program made elsewhere: its target is `keys` where it has an `ld #keys`, `flowkeys` where it loads another key that a stock
    kernel lacks, else `classic`.
    """
    loaded = tuple(instructions)
    words = _flow_keys(loaded)
    return Program(loaded, linktype, snaplen, expression, "keys" if KEYS_NAME in words else "flowkeys" if words else "classic")


def _flow_keys(instructions: Sequence[Instruction]) -> tuple[str, ...]:
    words = (instruction.ancillary for instruction in instructions)
    return tuple(dict.fromkeys(word.name for word in words if word and not word.stock))


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a program: the reason, and the index of the instruction, None where it is the whole program."""

    reason: str
    index: int | None = None

    def __str__(self) -> str:
        return self.reason if self.index is None else f"instruction {self.index}: {self.reason}"


def structural_fault(instructions: Sequence[Instruction]) -> Fault | None:
    """What is wrong with a program by libpcap's rules, or None.

    These are the rules of `pcap_validate_filter` (libpcap, bpf_filter.c), made exact in two places where that accepts
    what its interpreter cannot run: an opcode must be one of the table (it calls abort() on others), and a constant
    shift must be below 32 (undefined in C). An unconditional jump may go backwards: libpcap's `ip6 protochain` does.

    >>> print(structural_fault((Instruction(LD_IMM), Instruction(JA, k=7))))
    instruction 1: ja to instruction 9, but the program has 2
    """
    if not instructions:
        return Fault("a program needs at least one instruction")
    for index, instruction in enumerate(instructions):
        reason = _instruction_fault(instruction, index, len(instructions))
        if reason:
            return Fault(reason, index)
    if instructions[-1].code not in _RETURNS:
        return Fault("the last instruction must be a ret", len(instructions) - 1)
    return None


def _instruction_fault(instruction: Instruction, index: int, count: int) -> str | None:
    opcode, k = OPCODE_BY_CODE.get(instruction.code), instruction.k
    if opcode is None:
        return f"unknown opcode {instruction.code:#x}"
    if opcode.operand is Operand.MEMORY and k >= MEMORY_SLOTS:
        return f"{opcode.mnemonic} M[{k}], expected M[0] to M[{MEMORY_SLOTS - 1}]"
    if opcode.code in (DIV_K, MOD_K) and k == 0:
        return f"{opcode.mnemonic} by zero"
    if opcode.code in (LSH_K, RSH_K) and k >= 32:
        return f"{opcode.mnemonic} by {k}, expected 0 to 31"
    for target in instruction.targets(index):
        if target >= count:
            return f"{opcode.mnemonic} to instruction {target}, but the program has {count}"
    return None


def kernel_fault(instructions: Sequence[Instruction], stock: bool = True) -> Fault | None:
    """Why the Linux kernel would answer EINVAL to these instructions, or None if it takes them.

    The rules are those of `bpf_check_classic` and `check_load_and_stores` (net/core/filter.c). With `stock` false the
    flow keys of the proposal count as known ancillary words. Two limits of particular kernels are not foreseen: memory
    (ENOMEM, net.core.optmem_max) and jumps of more than 32767 instructions in its translation to eBPF.

    >>> tproto = (Instruction(LD_W_ABS, k=SKF_AD_OFF + 76), Instruction(RET_A))
    >>> print(kernel_fault(tproto))
    instruction 0: a stock kernel has no ancillary word tproto
    >>> print(kernel_fault(tproto, stock=False))
    None
    """
    fault = structural_fault(instructions)
    if fault:
        return fault
    if len(instructions) > MAX_INSTRUCTIONS:
        return Fault(f"{len(instructions)} instructions, the kernel takes at most {MAX_INSTRUCTIONS}")
    for index, instruction in enumerate(instructions):
        if instruction.code == JA and instruction.k >= len(instructions):
            return Fault("ja jumps backwards", index)
        if instruction.code in _ABSOLUTE_LOADS and instruction.k >= SKF_AD_OFF:
            word = instruction.ancillary
            if word is None:
                return Fault(f"there is no ancillary word at offset {instruction.k - SKF_AD_OFF}", index)
            if stock and not word.stock:
                return Fault(f"a stock kernel has no ancillary word {word.name}", index)
    return _unwritten_read(instructions)


def _unwritten_read(instructions: Sequence[Instruction]) -> Fault | None:
    """The first load of an M[] slot that the kernel's one pass from top to bottom does not see written on every path.

    The kernel's pass runs straight on through a `ret`: it takes what a jump brings to the instruction behind and what
    was written before the `ret` together, and refuses a load where either lacks the slot. Jumps must go forward.

    `ld #keys` counts as a write of as many slots as an `ld #k` right before it says; without one, or where a jump may come between
    the two, of none.
    """
    everything = (1 << MEMORY_SLOTS) - 1
    brought = [everything] * len(instructions)
    joined = {target for index, instruction in enumerate(instructions) for target in instruction.targets(index)}
    written = 0
    for index, instruction in enumerate(instructions):
        written &= brought[index]
        if instruction.code in _ABSOLUTE_LOADS and instruction.k == KEYS_K:
            before = instructions[index - 1] if index and index not in joined else None
            if before and before.code == LD_IMM:
                written |= (1 << min(before.k, len(FLOW_KEYS))) - 1
        elif instruction.code in _STORES:
            written |= 1 << instruction.k
        elif instruction.code in _MEMORY_LOADS and not written >> instruction.k & 1:
            return Fault(f"M[{instruction.k}] is read, but not written on every path before", index)
        targets = instruction.targets(index)
        for target in targets:
            brought[target] &= written
        if targets:
            written = everything
    return None
