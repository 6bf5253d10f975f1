"""How many eBPF instructions run on a packet: a machine for what pcapext and clang make of filters.

In:  instructions, as bytes in the byte order of a little-endian machine; a packet; whether they are a socket filter or XDP.
Out: what the program returns, and how many instructions it executed. A call of one of its functions is an instruction, and so is one
     of the kernel's, whose own do not count.

Instructions are those of the kernel's Documentation/bpf/standardization/instruction-set.rst and, for loads from the packet,
Documentation/bpf/classic_vs_extended.rst. An address is a number whose upper half says what memory it is in.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from pcapext.ebpf import LOAD_BYTES, MAY_GOTO, PSEUDO_CALL, TO_BE

_U32, _U64 = (1 << 32) - 1, (1 << 64) - 1

#: The upper half of an address: the packet's, the context's, and the stack's of the main function, to which its callees' are added.
_PACKET, _CONTEXT, _STACK = 1, 2, 3
_STACK_SIZE = 512

_SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}

_ARITHMETIC: Mapping[int, Callable[[int, int, int], int]] = {
    0x00: lambda a, b, bits: a + b,
    0x10: lambda a, b, bits: a - b,
    0x20: lambda a, b, bits: a * b,
    0x30: lambda a, b, bits: a // b if b else 0,
    0x40: lambda a, b, bits: a | b,
    0x50: lambda a, b, bits: a & b,
    0x60: lambda a, b, bits: a << (b % bits),
    0x70: lambda a, b, bits: a >> (b % bits),
    0x80: lambda a, b, bits: -a,
    0x90: lambda a, b, bits: a % b if b else a,
    0xA0: lambda a, b, bits: a ^ b,
    0xB0: lambda a, b, bits: b,
    0xC0: lambda a, b, bits: _signed(a, bits) >> (b % bits),
}
_COMPARISONS: Mapping[int, Callable[[int, int, int], bool]] = {
    0x10: lambda a, b, bits: a == b,
    0x20: lambda a, b, bits: a > b,
    0x30: lambda a, b, bits: a >= b,
    0x40: lambda a, b, bits: a & b != 0,
    0x50: lambda a, b, bits: a != b,
    0x60: lambda a, b, bits: _signed(a, bits) > _signed(b, bits),
    0x70: lambda a, b, bits: _signed(a, bits) >= _signed(b, bits),
    0xA0: lambda a, b, bits: a < b,
    0xB0: lambda a, b, bits: a <= b,
    0xC0: lambda a, b, bits: _signed(a, bits) < _signed(b, bits),
    0xD0: lambda a, b, bits: _signed(a, bits) <= _signed(b, bits),
}


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) & 1 else number


def run(code: bytes, packet: bytes, xdp: bool) -> tuple[int, int]:
    """What a program returns for a packet, and how many instructions it executed."""
    machine = _Machine(code, packet, xdp)
    try:
        machine.function(0, [0, _CONTEXT << 32, 0, 0, 0, 0, 0, 0, 0, 0, 0], _STACK)
    except _TooShort:
        return 0, machine.executed
    return machine.result & _U32, machine.executed


class _TooShort(Exception):
    """A load past the end of the packet, which ends the program."""


class _Machine:
    def __init__(self, code: bytes, packet: bytes, xdp: bool):
        self.code = list(struct.iter_unpack("<BBhi", code))
        self.packet = packet
        context = {0: _PACKET << 32, 4: (_PACKET << 32) + len(packet)} if xdp else {0: len(packet)}
        self.context: Mapping[int, int] = context
        self.memory: dict[int, bytearray] = {_PACKET: bytearray(packet)}
        self.executed = 0
        self.result = 0

    def function(self, at: int, r: list[int], stack: int) -> None:
        """Run a function to its end; its result is r0."""
        self.memory[stack] = bytearray(_STACK_SIZE)
        r[10] = (stack << 32) + _STACK_SIZE
        while True:
            opcode, registers, off, imm = self.code[at]
            dst, src = registers & 15, registers >> 4
            self.executed += 1
            at += 1
            match opcode & 7:
                case 0 if opcode == 0x18:  # a number of 64 bits, in two instructions
                    r[dst] = (imm & _U32) | (self.code[at][3] & _U32) << 32
                    at += 1
                case 0:
                    r[0] = self.from_packet((r[src] & _U32 if opcode & 0xE0 == 0x40 else 0) + imm, _SIZES[opcode & 0x18])
                case 1:
                    r[dst] = self.load(r[src] + off, _SIZES[opcode & 0x18])
                case 2 | 3 as kind:
                    self.store(r[dst] + off, _SIZES[opcode & 0x18], r[src] if kind == 3 else imm)
                case 4 | 7 as kind:
                    operand = r[src] if opcode & 8 else imm
                    if opcode & 0xF0 == 0xD0:
                        number = (r[dst] & ((1 << imm) - 1)).to_bytes(imm // 8, "little")
                        assert opcode in (TO_BE, 0xD7), f"opcode {opcode:#x}"  # to big-endian, or swapped: the same here
                        r[dst] = int.from_bytes(number, "big")
                    else:
                        assert off == 0, "a signed division or move"
                        bits = 64 if kind == 7 else 32
                        mask = (1 << bits) - 1
                        r[dst] = _ARITHMETIC[opcode & 0xF0](r[dst] & mask, operand & mask, bits) & mask
                case 5 if opcode == 0x95:
                    self.result = r[0]
                    return
                case 5 if opcode == 0x85 and src == PSEUDO_CALL:
                    callee = list(r)
                    self.function(at + imm, callee, stack + 1)
                    r[0] = self.result
                case 5 if opcode == 0x85:
                    assert imm == LOAD_BYTES.number, f"helper {imm}"
                    r[0] = self.load_bytes(r[2] & _U32, r[3], r[4] & _U32)
                case 5 if opcode == 0x05:
                    at += off
                case 6 if opcode == 0x06:  # a far jump
                    at += imm
                case 5 if opcode == MAY_GOTO:
                    pass
                case kind:
                    bits = 64 if kind == 5 else 32
                    mask = (1 << bits) - 1
                    operand = r[src] if opcode & 8 else imm
                    if _COMPARISONS[opcode & 0xF0](r[dst] & mask, operand & mask, bits):
                        at += off

    def from_packet(self, offset: int, size: int) -> int:
        if offset + size > len(self.packet):
            raise _TooShort
        return int.from_bytes(self.packet[offset : offset + size], "big")

    def load_bytes(self, offset: int, address: int, size: int) -> int:
        """bpf_skb_load_bytes."""
        if offset + size > len(self.packet):
            return -14 & _U64
        place = address & _U32
        self.memory[address >> 32][place : place + size] = self.packet[offset : offset + size]
        return 0

    def load(self, address: int, size: int) -> int:
        region, place = address >> 32, address & _U32
        if region == _CONTEXT:
            return self.context[place]
        assert place + size <= len(self.memory[region]), "a load from outside"
        return int.from_bytes(self.memory[region][place : place + size], "little")

    def store(self, address: int, size: int, value: int) -> None:
        region, place = address >> 32, address & _U32
        assert region >= _STACK, "a store outside of the stack"
        assert place + size <= _STACK_SIZE, "a store outside of the stack"
        self.memory[region][place : place + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
