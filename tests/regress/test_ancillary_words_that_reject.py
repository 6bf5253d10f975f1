"""A load of an ancillary word whose value nobody reads was dropped, although it rejects every packet that comes from a file."""

from __future__ import annotations

from bpf_oracles import libpcap_run

from pcapext import bpf
from pcapext.assemble import assemble
from pcapext.bpf import Instruction
from pcapext.lift import lift
from pcapext.optimize import optimize

PROGRAM = (
    Instruction(bpf.LD_B_ABS, k=0xFFFF_F030),  # SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT
    Instruction(bpf.JGE_K, 0, 0, 0),
    Instruction(bpf.RET_K, k=96),
)


def test_it_still_rejects() -> None:
    assert libpcap_run(PROGRAM, bytes(60), 60) == 0
    assert libpcap_run(assemble(optimize(lift(PROGRAM))), bytes(60), 60) == 0
