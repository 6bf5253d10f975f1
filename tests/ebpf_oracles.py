"""What the tests of eBPF programs run them with: the kernel, by BPF_PROG_TEST_RUN, and what the reference walk says.

A test run shows a program packets of 0 to about 3,500 bytes. Longer ones go through a pair of sockets.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pcapext.bpf import SKF_AD_OFF
from pcapext.bpf_syscall import attach_descriptor, load, run_in_kernel
from pcapext.cfg import Ancillary, Block, Branch, Cfg, Comparison, Const, Key, Passed, Return, Test
from pcapext.dissect import Walk
from pcapext.ebpf import EbpfProgram
from pcapext.ebpf_select import select
from pcapext.encapsulation import LINK_LAYER_BY_NUMBER, WalkSettings
from pcapext.flowkeys import FLOW_KEYS

#: The longest packet that a test run takes here.
LONGEST = 3500

KEYS = tuple(Key(key.name, outer) for key in FLOW_KEYS for outer in (False, True))

#: `ld #mark`.
MARK = Ancillary(4, SKF_AD_OFF + 20)


def chooser(values: Sequence[Key | Passed]) -> Cfg:
    """A graph that returns one of the values, the one that the packet's mark says."""
    # What the first test asks runs the walk.
    blocks = {-1: Block((), Branch(Test(Comparison.GE, values[0], Const(0)), 0, 0))} | {
        2 * index + 1: Block((), Return(value)) for index, value in enumerate(values)
    }
    for index in range(len(values)):
        otherwise = 2 * index + 2 if index + 1 < len(values) else 2 * index + 1
        blocks[2 * index] = Block((), Branch(Test(Comparison.EQ, MARK, Const(index)), 2 * index + 1, otherwise))
    return Cfg(-1, blocks)


class Findings:
    """All that the walk finds in a packet, as the kernel runs it: one program, of which each run asks for something else."""

    def __init__(self, linktype: int, settings: WalkSettings, values: Sequence[Key | Passed] = KEYS):
        self.link_layer = LINK_LAYER_BY_NUMBER[linktype]
        self.values = values
        self.descriptor = load(EbpfProgram(select(chooser(values), self.link_layer, settings), linktype))

    def of(self, data: bytes) -> dict[Key | Passed, int]:
        protocol = ethertype_of(data, self.link_layer.linktype)
        seen = data[self.link_layer.made_up :]
        return {value: run_in_kernel(self.descriptor, seen, protocol=protocol, mark=mark).value for mark, value in enumerate(self.values)}

    def close(self) -> None:
        os.close(self.descriptor)


def takes(linktype: int, data: bytes) -> bool:
    """Whether a test run can be made with a packet: the kernel gives the made-up header its own words, and wants a whole IP header."""
    made_up = LINK_LAYER_BY_NUMBER[linktype].made_up
    if not made_up:
        return len(data) <= LONGEST
    return made_up + 40 <= len(data) <= LONGEST and ethertype_of(data, linktype) >= 0x0600


def ethertype_of(data: bytes, linktype: int) -> int:
    """The EtherType in a header that libpcap makes up, 0 where it makes none."""
    if not LINK_LAYER_BY_NUMBER[linktype].made_up:
        return 0
    return int.from_bytes(data[14:16] if linktype == 113 else data[:2], "big")


def by_walk(walk: Walk, values: Sequence[Key | Passed]) -> dict[Key | Passed, int]:
    """The same, from the reference walk."""

    def of(value: Key | Passed) -> int:
        if isinstance(value, Key):
            return int(getattr(walk.outer if value.outer else walk.keys, value.name))
        return int(any(header.name == value.name and value.identifier in (None, header.identifier) for header in walk.headers))

    return {value: of(value) for value in values}


@contextmanager
def loaded(program: EbpfProgram) -> Iterator[int]:
    """The descriptor of a loaded program, as long as it is needed."""
    descriptor = load(program)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def accepts_on_socket(program: EbpfProgram, packet: bytes) -> bool:
    """Whether a packet of 1 byte or more comes through a socket with the program."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver, loaded(program) as descriptor:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        attach_descriptor(receiver.fileno(), descriptor)
        sender.send(packet)
        try:
            return receiver.recv(1 << 18, socket.MSG_DONTWAIT) == packet
        except BlockingIOError:
            return False
