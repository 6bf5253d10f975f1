"""Whether the running Linux kernel takes a classic BPF program on a packet socket, and why not.

In:  a program.
Out: the reason, or None.

libpcap tells no caller that the kernel has refused a program: it writes a line on standard error and filters itself, at the cost of a
copy of every packet, and by an interpreter that lacks the kernel's ancillary words. So a program is tried before libpcap gets it.
"""

from __future__ import annotations

import socket
from errno import ENOMEM
from pathlib import Path

from pcapext.bpf import (
    LD_B_ABS,
    LD_B_IND,
    LD_H_ABS,
    LD_H_IND,
    LD_W_ABS,
    LD_W_IND,
    LDX_MSH,
    Program,
)
from pcapext.flowkeys import SKF_AD_OFF
from pcapext.sockets import set_filter

_OPTMEM_MAX = Path("/proc/sys/net/core/optmem_max")

#: What libpcap can give the kernel of the headers that it makes up before cooked packets, by link type: the header's length, and the
#: loads of its fields that become ancillary words (pcap-linux.c, fix_offset, which looks at the offset alone).
_COOKED: dict[int, tuple[int, frozenset[tuple[int, int]]]] = {
    113: (16, frozenset({(LD_H_ABS, 0), (LD_H_ABS, 14)})),  # LINUX_SLL: packet type, protocol
    276: (20, frozenset({(LD_H_ABS, 0), (LD_W_ABS, 4), (LD_B_ABS, 10)})),  # LINUX_SLL2: protocol, interface, packet type
}
#: The kernel's offsets relative to its own headers begin here (SKF_LL_OFF, SKF_NET_OFF): k is a signed number to it.
_NEGATIVE = 1 << 31
_PACKET_LOADS = (LD_W_ABS, LD_H_ABS, LD_B_ABS, LD_W_IND, LD_H_IND, LD_B_IND, LDX_MSH)


def no_memory(length: int) -> str:
    """The words for ENOMEM, when a program of so many instructions is set on a socket."""
    limit = f"{_OPTMEM_MAX.read_text().strip()} bytes" if _OPTMEM_MAX.exists() else "of unknown size"
    return f"no memory for {length} instructions in the kernel; the limit for a socket is net.core.optmem_max, {limit}"


def refusal(program: Program) -> str | None:
    """Why the running kernel does not take a program, or None: it is tried on a socket of no use."""
    if program.flow_keys:
        return f"it has no flow keys, and the program loads {', '.join(program.flow_keys)}: attach lowers such a program"
    if reason := program.kernel_refusal():
        return reason
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as scratch:
        try:
            set_filter(scratch.fileno(), bytes(program))
        except OSError as error:
            return no_memory(len(program)) if error.errno == ENOMEM else str(error.strerror)
    return None


def cooked_refusal(program: Program) -> str | None:
    """Why libpcap cannot give the kernel a program for cooked packets, or None.

    The kernel's packets begin behind the header that libpcap makes up. A load from the header becomes an ancillary word if there is one,
    a load from behind it is moved.

    >>> from pcapext.bpf import Instruction, RET_A
    >>> cooked_refusal(Program((Instruction(LD_H_ABS, k=14), Instruction(RET_A)), linktype=113))
    >>> cooked_refusal(Program((Instruction(LD_H_ABS, k=2), Instruction(RET_A)), linktype=113))
    'instruction 0: the kernel has no byte 2 of the header that libpcap makes up'
    """
    if program.linktype not in _COOKED:
        return None
    length, words = _COOKED[program.linktype]
    for index, instruction in enumerate(program):
        if instruction.code not in _PACKET_LOADS or instruction.k >= SKF_AD_OFF:
            continue
        if instruction.k < length and (instruction.code, instruction.k) not in words:
            return f"instruction {index}: the kernel has no byte {instruction.k} of the header that libpcap makes up"
        if instruction.k >= _NEGATIVE:
            return f"instruction {index}: libpcap moves the negative offset {instruction.k - (1 << 32)}, and its meaning is lost"
    return None
