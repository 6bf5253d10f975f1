"""A sum of more than 17 bytes took a slot of M[] for each of them and was refused, where libpcap needs two registers."""

from __future__ import annotations

import pytest

from pcapext import compile
from pcapext.flowkeys import FlowKeys
from pcapext.machine import run


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("byte", ["ip[{}]", "inner ip[{}]"])
def test_forty_bytes(byte: str, optimize: bool) -> None:
    total = " + ".join(byte.format(number) for number in range(40))
    program = compile(f"{total} = poff", optimize=optimize)
    frame = bytes(12) + b"\x08\x00" + bytes(range(40))
    for poff, expected in ((sum(range(40)), 262144), (781, 0)):
        keys = FlowKeys(nhoff=14, nproto=0x0800, poff=poff)
        assert run(program, frame, None, lambda *_, keys=keys: keys).value == expected


def test_products_of_sums() -> None:
    program = compile(" * ".join(f"(ip[{number}] + poff)" for number in range(30)) + " = 1024")
    frame = bytes(12) + b"\x08\x00" + bytes([1] * 10) + bytes(30)
    keys = FlowKeys(poff=1)
    assert run(program, frame, None, lambda *_: keys).value == 262144
