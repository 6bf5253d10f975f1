"""What the tests of BPF programs compare with: libpcap's validator, interpreter and printer, and the running kernel."""

from __future__ import annotations

import ctypes
import errno
import random
import socket
import struct
from collections.abc import Sequence

from pcapext import bpf
from pcapext.bpf import OPCODE_BY_CODE, OPCODES, Instruction, Operand

SO_ATTACH_FILTER = 26

#: `struct sock_fprog` in native layout: the number of instructions, then a pointer to them.
FPROG = "@HP"

libpcap = ctypes.CDLL("libpcap.so.0.8")
libpcap.bpf_filter.restype = ctypes.c_uint32
libpcap.bpf_filter.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32]
libpcap.bpf_image.restype = ctypes.c_char_p


def packed(instructions: Sequence[Instruction]) -> bytes:
    return b"".join(struct.pack("=HBBI", i.code, i.jt, i.jf, i.k) for i in instructions)


def libpcap_accepts(instructions: Sequence[Instruction]) -> bool:
    return bool(libpcap.bpf_validate(packed(instructions), len(instructions)))


def libpcap_run(instructions: Sequence[Instruction], packet: bytes, wirelen: int) -> int:
    return libpcap_run_packed(packed(instructions), packet, wirelen)


def libpcap_run_packed(code: bytes, packet: bytes, wirelen: int) -> int:
    """What libpcap's interpreter returns; the program as the bytes of `struct bpf_insn`s."""
    return int(libpcap.bpf_filter(code, packet, wirelen, len(packet)))


def libpcap_image(instruction: Instruction, index: int) -> str:
    image = libpcap.bpf_image(packed([instruction]), index)
    assert isinstance(image, bytes)
    return image.decode()


def attach(sock: socket.socket, instructions: Sequence[Instruction]) -> None:
    array = packed(instructions)
    buffer = ctypes.create_string_buffer(array, max(len(array), 1))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack(FPROG, len(instructions), ctypes.addressof(buffer)))


class Kernel:
    """The kernel's own check and interpreter, on a pair of connected datagram sockets."""

    def __init__(self) -> None:
        self._sender, self._receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def accepts(self, instructions: Sequence[Instruction]) -> bool:
        """Whether the kernel takes the program. Any answer but yes and EINVAL is an error."""
        try:
            attach(self._receiver, instructions)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def kept(self, packet: bytes) -> int:
        """The bytes of `packet` that the program accepted last lets through, 0 if it rejects the packet."""
        self._sender.send(packet)
        try:
            return len(self._receiver.recv(1 << 16, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self._sender.close()
        self._receiver.close()


NUMBERS = (0, 1, 2, 3, 4, 6, 8, 12, 14, 15, 20, 23, 31, 32, 0x40, 0xFF, 0x800, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

RETURNS = [opcode for opcode in OPCODES if opcode.mnemonic == "ret"]


def random_instruction(rng: random.Random, room: int) -> Instruction:
    """An instruction that is valid where `room` more follow it."""
    opcode = rng.choice(OPCODES if room else RETURNS)
    k = rng.choice(NUMBERS) if rng.random() < 0.8 else rng.getrandbits(32)
    match opcode.operand:
        case Operand.MEMORY:
            k = rng.randrange(4)
        case Operand.DISTANCE:
            k = rng.randrange(min(room, 6))
        case Operand.ABSOLUTE | Operand.HEADER_LENGTH | Operand.INDIRECT if rng.random() < 0.9:
            k = rng.randrange(40)
    if opcode.mnemonic in ("lsh", "rsh"):
        k %= 32
    if opcode.mnemonic in ("div", "mod"):
        k = k or 7
    if opcode.mnemonic == "ret" and room and rng.random() < 0.7:
        return random_instruction(rng, room)
    jt, jf = (rng.randrange(min(room, 6)), rng.randrange(min(room, 6))) if opcode.conditional else (0, 0)
    return Instruction(opcode.code, jt, jf, k)


def random_instructions(rng: random.Random, longest: int = 24) -> tuple[Instruction, ...]:
    """Instructions of a valid program that only jumps forward. Fields that an opcode does not use may hold anything."""
    length = rng.randrange(1, longest)
    return tuple(random_instruction(rng, length - index - 1) for index in range(length))


def shown(instruction: Instruction) -> Instruction:
    """The instruction without the fields that its opcode does not use, which dumps in words do not show."""
    opcode = OPCODE_BY_CODE[instruction.code]
    jt, jf = (instruction.jt, instruction.jf) if opcode.conditional else (0, 0)
    unused = (Operand.NONE, Operand.X, Operand.A, Operand.LENGTH)
    return Instruction(instruction.code, jt, jf, 0 if opcode.operand in unused else instruction.k)


#: Writes of M[0] to M[3], which is what random programs read, so that none reads a slot it did not write.
PROLOGUE = tuple(Instruction(bpf.ST, k=slot) for slot in range(4))
