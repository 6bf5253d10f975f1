"""The machine that counts eBPF instructions returns what the kernel returns, for pcapext's programs and for clang's."""

from __future__ import annotations

import pytest
from ebpf_oracles import loaded

from benchmarks.clang import SHORTEST, InKernel
from benchmarks.ebpf_machine import run
from benchmarks.frames import frames
from pcapext import compile
from pcapext.bpf_syscall import run_in_kernel
from pcapext.ebpf import EXIT, EbpfInstruction

FILTERS = ["inner tcp port 80", "tcp port 80 or inner udp and not encap vxlan 42"]


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("clang")
@pytest.mark.parametrize("expression", FILTERS)
def test_as_the_kernel(expression: str) -> None:
    """On packets that end after each of their bytes."""
    program, in_xdp, returned = compile(expression, target="ebpf"), InKernel(compile(expression, target="c")), set()
    with loaded(program) as descriptor:
        for frame in frames("EN10MB").values():
            for packet in (frame[:length] for length in range(SHORTEST, len(frame) + 1)):
                value, _ = run(bytes(program), packet, xdp=False)
                assert value == run_in_kernel(descriptor, packet).value
                assert run(in_xdp.instructions, packet, xdp=True)[0] == in_xdp(packet) == value
                returned.add(value)
    in_xdp.close()
    assert returned == {0, 262144}


def test_counts() -> None:
    """By hand: a loop of two instructions that is run through three times, the number and the jump into it before, the exit behind it."""
    loop = [
        EbpfInstruction(0xB7, 0, imm=3),  # r0 = 3
        EbpfInstruction(0x05, off=0),  # goto pc+0
        EbpfInstruction(0x17, 0, imm=1),  # r0 -= 1
        EbpfInstruction(0x55, 0, off=-2),  # if r0 != 0 goto pc-2
        EbpfInstruction(EXIT),
    ]
    assert run(b"".join(map(bytes, loop)), b"", xdp=False) == (0, 2 + 3 * 2 + 1)
