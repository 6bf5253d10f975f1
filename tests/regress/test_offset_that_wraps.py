"""The offset of a load was folded as if it were computed modulo 2**32: `ip[ip[0] - 70]` then read before the IP header.

libpcap's interpreter does not cut X + k to 32 bits: where X is a negative number, the load is behind every packet.
"""

from __future__ import annotations

import pytest
from bpf_oracles import libpcap_run

from pcapext.assemble import assemble
from pcapext.bpf import Program
from pcapext.lift import lift
from pcapext.machine import run
from pcapext.optimize import optimize
from pcapext.pcap_bridge import compile_expression

FRAME = bytes(12) + b"\x08\x00" + b"\x45" + bytes(39)


@pytest.mark.parametrize("expression", ["ip[ip[0] - 70] = 0", "ip[ip[0] - 70 : 2] < 5", "ip[5 - ip[0]] = 0", "ip[ip[0] - 65] = 0"])
def test_offset_below_the_header(expression: str) -> None:
    instructions = compile_expression(expression, "EN10MB", 96, None, optimize=False)
    improved = assemble(optimize(lift(instructions)))
    expected = libpcap_run(instructions, FRAME, len(FRAME))
    assert expected == (96 if expression == "ip[ip[0] - 65] = 0" else 0)
    assert libpcap_run(improved, FRAME, len(FRAME)) == expected
    assert run(Program(improved), FRAME).value == expected
