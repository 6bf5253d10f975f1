"""The reference interpreter of classic BPF, with the flow keys as ancillary words.

In:  a `Program`, the bytes captured of a packet, and its length on the wire.
Out: a `Result`: what the program returned, how many instructions ran, and how often the packet was dissected.

What an instruction does is what libpcap's interpreter does (`pcap_filter_with_aux_data`, bpf_filter.c). All numbers
are unsigned and 32 bits wide. Nothing outside the packet is ever read: a load that is not wholly inside rejects the
packet, and so does a division by X = 0. Three places where others differ:

- A shift by X >= 32 gives 0, as in libpcap. The kernel takes X modulo 32 on most processors.
- X + k is not cut to 32 bits where a load adds them, as in libpcap. The kernel wraps it, and takes a negative k for
  an offset from the network header; here that lies behind every packet.
- A, X and M[] begin as 0. In the kernel M[] does not, but it takes no program that could see that; in libpcap it is
  whatever the stack held. So that a program has one meaning, it is 0 here.

Of the ancillary words only the flow keys mean something for bytes alone. The others (protocol, interface, mark ...) are
loads from behind the packet and reject it, as in libpcap's interpreter where it reads from a file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from pcapext import bpf
from pcapext.bpf import OPCODES, U32, Instruction, Opcode, Operand, Program
from pcapext.errors import ProgramError
from pcapext.flowkeys import FLOW_KEYS, KEY_BY_K, KEYS_K, FlowKeys
from pcapext.slotted import dataclass

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Instructions that may run for one packet. Only a program that jumps backwards can come here: libpcap's
#: `ip6 protochain` takes one turn of 13 or a few more instructions for each extension header of at least 8 bytes, half a
#: million for a packet of the largest snap length, 262144 bytes. One that runs much longer will not end.
LIMIT = 2_000_000

#: The next instruction where there is none: the program has ended.
_END = -1

Dissector = Callable[[bytes, int], FlowKeys]


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to.

    `value` is what the program returned: 0 rejects the packet, anything else is the number of bytes to keep.
    `executed` counts the instructions that ran, the last one included. `dissected` is 1 where a flow key was loaded, and
    counts each `ld #keys`, which does not look whether there was one before.
    """

    value: int
    executed: int
    dissected: int


def run(program: Program, packet: Buffer, wirelen: int | None = None, dissect: Dissector | None = None) -> Result:
    """Run `program` on `packet`.

    `packet` is any buffer: the bytes captured. `wirelen` is the length on the wire, what `ld #pktlen` loads; unless
    told, all was captured. `dissect(packet, linktype)` gives the flow keys; unless told, `pcapext.dissect.dissect` with the
    settings of the program does. It is called at the first load of a key and never again for loads of one key, but for each `ld #keys`.
    Raises ProgramError where the program does not end.

    >>> run(Program((Instruction(bpf.LD_LEN), Instruction(bpf.RET_A))), b"abc")
    Result(value=3, executed=2, dissected=0)
    """
    octets = packet if isinstance(packet, bytes) else bytes(memoryview(packet))
    if wirelen is None:
        wirelen = len(octets)
    elif not 0 <= wirelen <= U32:
        raise ValueError(f"wirelen {wirelen} is out of range, expected 0 to {U32}")
    state = _State(octets, wirelen, program, dissect)
    steps = _decode(program)
    index = 0
    for executed in range(1, max(LIMIT, len(steps)) + 1):
        operation, k, if_true, if_false = steps[index]
        index = if_true if operation(state, k) else if_false
        if index == _END:
            return Result(state.value, executed, state.dissected)
    raise ProgramError(f"the program was stopped after {executed} instructions: it jumps backwards and does not end")


class _State:
    """The registers, and what the operations read."""

    __slots__ = ("A", "M", "X", "dissect", "dissected", "keys", "length", "packet", "program", "value", "wirelen")

    def __init__(self, packet: bytes, wirelen: int, program: Program, dissect: Dissector | None):
        self.packet = packet
        self.length = len(packet)
        self.wirelen = wirelen
        self.program = program
        self.dissect = dissect
        self.keys: FlowKeys | None = None
        self.dissected = 0
        self.A = 0
        self.X = 0
        self.M = [0] * bpf.MEMORY_SLOTS
        self.value = 0


# An operation does its work and says which way to go on. For a conditional jump that is the outcome of its test; for
# all others something true ends the program, something false goes on.
_Operation = Callable[[_State, int], object]
_Step = tuple[_Operation, int, int, int]


@lru_cache(maxsize=64)
def _decode(program: Program) -> tuple[_Step, ...]:
    return tuple(_step(index, instruction) for index, instruction in enumerate(program))


def _step(index: int, instruction: Instruction) -> _Step:
    """The operation, its k, and where to go on after True and after False."""
    operation, k = _OPERATIONS[instruction.code], instruction.k
    match instruction.targets(index):
        case if_true, if_false:
            return operation, k, if_true, if_false
        case (target,):
            return operation, k, _END, target
    if instruction.ancillary and k in KEY_BY_K:
        operation = _load_key(KEY_BY_K[k].name)
    elif instruction.ancillary and k == KEYS_K:
        operation = _load_keys
    return operation, k, _END, index + 1


def _load_key(name: str) -> _Operation:
    def load(s: _State, k: int) -> bool:
        keys = s.keys or _walked(s)
        s.A = getattr(keys, name)
        return False

    return load


def _load_keys(s: _State, k: int) -> bool:
    keys = _walked(s)
    s.A = min(s.A, len(FLOW_KEYS))
    s.M[: s.A] = [getattr(keys, key.name) for key in FLOW_KEYS[: s.A]]
    return False


def _walked(s: _State) -> FlowKeys:
    s.keys = s.dissect(s.packet, s.program.linktype) if s.dissect else _reference_walk(s.packet, s.program)
    s.dissected += 1
    return s.keys


def _reference_walk(packet: bytes, program: Program) -> FlowKeys:
    # Imported where it is first needed: most programs load no key.
    from pcapext.dissect import dissect

    return dissect(packet, program.linktype, program.settings)


def _load_word(s: _State, at: int) -> bool:
    if at + 4 > s.length:
        return True
    packet = s.packet
    s.A = packet[at] << 24 | packet[at + 1] << 16 | packet[at + 2] << 8 | packet[at + 3]
    return False


def _load_half(s: _State, at: int) -> bool:
    if at + 2 > s.length:
        return True
    s.A = s.packet[at] << 8 | s.packet[at + 1]
    return False


def _load_byte(s: _State, at: int) -> bool:
    if at + 1 > s.length:
        return True
    s.A = s.packet[at]
    return False


def _load_header_length(s: _State, at: int) -> bool:
    if at + 1 > s.length:
        return True
    s.X = (s.packet[at] & 0xF) << 2
    return False


def _from_x(load: _Operation) -> _Operation:
    return lambda s, k: load(s, s.X + k)


def _set_a(value: Callable[[_State, int], int]) -> _Operation:
    def operation(s: _State, k: int) -> bool:
        s.A = value(s, k)
        return False

    return operation


def _set_x(value: Callable[[_State, int], int]) -> _Operation:
    def operation(s: _State, k: int) -> bool:
        s.X = value(s, k)
        return False

    return operation


def _store_a(s: _State, k: int) -> bool:
    s.M[k] = s.A
    return False


def _store_x(s: _State, k: int) -> bool:
    s.M[k] = s.X
    return False


def _return_k(s: _State, k: int) -> bool:
    s.value = k
    return True


def _return_a(s: _State, k: int) -> bool:
    s.value = s.A
    return True


#: What the arithmetic instructions make of A and their operand. Results are cut to 32 bits where they can be longer.
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: (a + b) & U32,
    "sub": lambda a, b: (a - b) & U32,
    "mul": lambda a, b: (a * b) & U32,
    "div": operator.floordiv,
    "mod": operator.mod,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "lsh": lambda a, b: (a << b) & U32 if b < 32 else 0,
    "rsh": operator.rshift,
}

#: What the conditional jumps ask of A and their operand.
_TESTS: dict[str, Callable[[int, int], object]] = {
    "jeq": operator.eq,
    "jgt": operator.gt,
    "jge": operator.ge,
    "jset": operator.and_,
}


def _arithmetic(opcode: Opcode) -> _Operation:
    compute = _ARITHMETIC[opcode.mnemonic]
    if opcode.operand is not Operand.X:
        return _set_a(lambda s, k: compute(s.A, k))
    set_a = _set_a(lambda s, k: compute(s.A, s.X))
    if opcode.mnemonic in ("div", "mod"):
        return lambda s, k: s.X == 0 or set_a(s, k)
    return set_a


def _test(opcode: Opcode) -> _Operation:
    holds = _TESTS[opcode.mnemonic]
    if opcode.operand is Operand.X:
        return lambda s, k: holds(s.A, s.X)
    return lambda s, k: holds(s.A, k)


_OPERATIONS: dict[int, _Operation] = {
    bpf.LD_W_ABS: _load_word,
    bpf.LD_H_ABS: _load_half,
    bpf.LD_B_ABS: _load_byte,
    bpf.LD_W_IND: _from_x(_load_word),
    bpf.LD_H_IND: _from_x(_load_half),
    bpf.LD_B_IND: _from_x(_load_byte),
    bpf.LD_IMM: _set_a(lambda s, k: k),
    bpf.LD_MEM: _set_a(lambda s, k: s.M[k]),
    bpf.LD_LEN: _set_a(lambda s, k: s.wirelen),
    bpf.LDX_IMM: _set_x(lambda s, k: k),
    bpf.LDX_MEM: _set_x(lambda s, k: s.M[k]),
    bpf.LDX_LEN: _set_x(lambda s, k: s.wirelen),
    bpf.LDX_MSH: _load_header_length,
    bpf.ST: _store_a,
    bpf.STX: _store_x,
    bpf.NEG: _set_a(lambda s, k: -s.A & U32),
    bpf.JA: lambda s, k: False,
    bpf.TAX: _set_x(lambda s, k: s.A),
    bpf.TXA: _set_a(lambda s, k: s.X),
    bpf.RET_K: _return_k,
    bpf.RET_A: _return_a,
    **{opcode.code: _arithmetic(opcode) for opcode in OPCODES if opcode.mnemonic in _ARITHMETIC},
    **{opcode.code: _test(opcode) for opcode in OPCODES if opcode.mnemonic in _TESTS},
}
