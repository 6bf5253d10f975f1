"""What the running kernel takes, asked by other ways: sockets of our own, and libpcap's fall-back."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from bpf_oracles import attach
from wire import SLL, SLL2, Wire

from pcapext import bpf
from pcapext.bpf import Instruction, Program
from pcapext.flowkeys import SKF_AD_OFF
from pcapext.kernel_filter import cooked_refusal, refusal

pytestmark = [pytest.mark.root, pytest.mark.kernel]


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


PROGRAMS = {
    "plain": [Instruction(bpf.LD_H_ABS, k=12), Instruction(bpf.RET_A)],
    "longest": [Instruction(bpf.LD_IMM)] * 4095 + [Instruction(bpf.RET_K)],
    "too long": [Instruction(bpf.LD_IMM)] * 4096 + [Instruction(bpf.RET_K)],
    "unwritten slot": [Instruction(bpf.LD_MEM), Instruction(bpf.RET_A)],
    "flow key": [Instruction(bpf.LD_W_ABS, k=SKF_AD_OFF + 76), Instruction(bpf.RET_A)],
    "payload offset": [Instruction(bpf.LD_W_ABS, k=SKF_AD_OFF + 52), Instruction(bpf.RET_A)],
    "unknown word": [Instruction(bpf.LD_W_ABS, k=SKF_AD_OFF + 2000), Instruction(bpf.RET_A)],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_refusals_are_those_of_a_socket(name: str) -> None:
    program = bpf.program_of(PROGRAMS[name])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as one:
        try:
            attach(one, program)
            taken = True
        except OSError:
            taken = False
    assert (refusal(program) is None) is taken


def test_the_kernel_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where our own rules would let a program pass."""
    monkeypatch.setattr(Program, "kernel_refusal", lambda program: None)
    assert refusal(Program(tuple(PROGRAMS["unwritten slot"]))) == "Invalid argument"
    assert refusal(Program(tuple(PROGRAMS["plain"]))) is None


@pytest.mark.parametrize("linktype", [SLL, SLL2])
def test_cooked_headers(wire: Wire, linktype: int) -> None:
    """What libpcap would filter itself is refused; what is taken, the kernel has."""
    taken = []
    for code, offsets in ((bpf.LD_H_ABS, range(24)), (bpf.LD_W_ABS, (0, 4, 20)), (bpf.LD_B_ABS, (0, 10, 14, 20))):
        for k in offsets:
            program = Program((Instruction(code, k=k), Instruction(bpf.RET_K, k=1)), linktype)
            handle = wire.any_handle(linktype, program.instructions)
            in_kernel = handle.filter_length() == len(program)
            handle.close()
            if cooked_refusal(program) is None:
                assert in_kernel
                taken.append((code, k))
    assert {k for _, k in taken} == ({0, 14, *range(16, 24)} if linktype == SLL else {0, 4, 10, *range(20, 24)})
    for code in (bpf.LD_W_IND, bpf.LDX_MSH):  # libpcap would make ancillary words of them, which they cannot be
        assert cooked_refusal(Program((Instruction(code), Instruction(bpf.RET_K)), linktype)) is not None


def test_offsets_from_the_headers_of_the_kernel() -> None:
    network = (Instruction(bpf.LD_B_ABS, k=(1 << 32) - 0x100000), Instruction(bpf.RET_A))
    assert refusal(Program(network)) is None
    assert "negative offset -1048576" in str(cooked_refusal(Program(network, SLL)))
