"""Terms asked last: the order of questions, by the dissector's calls; tests/everywhere.py has the verdicts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcapext import FilterError, compile
from pcapext.compiler import REJECTS_ALL
from pcapext.flowkeys import FlowKeys
from pcapext.machine import run

ARP = bytes(12) + b"\x08\x06" + bytes(46)
UDP = bytes(12) + b"\x08\x00" + b"\x45" + bytes(8) + b"\x11" + bytes(10) + bytes(8)


@pytest.mark.parametrize(
    ("expression", "packet", "calls"),
    [
        ("inner tcp and tcp", UDP, 0),
        ("not inner tcp and tcp", UDP, 0),
        ("inner udp and udp", UDP, 1),
        ("vlan and inner tcp and udp", UDP, 0),
        ("(inner udp and ip) and not arp", ARP, 0),
        ("inner udp and depth = 0", ARP, 1),
        # No term that every accepted packet must pass: each may be asked where it stands.
        ("inner tcp and tcp or arp", UDP, 1),
        ("(inner tcp or arp) and ip6", UDP, 1),
        ("inner udp or ip", UDP, 1),
    ],
    ids=str,
)
def test_order(expression: str, packet: bytes, calls: int) -> None:
    def dissect(packet: bytes, linktype: int) -> FlowKeys:
        return FlowKeys(nhoff=14, nproto=0x0800, thoff=34, tproto=17, poff=42)

    assert run(compile(expression), packet, dissect=dissect).dissected == calls


def test_not_optimized_terms_stay_where_they_are() -> None:
    assert run(compile("inner tcp and tcp", optimize=False), UDP).dissected == 1


TERMS = st.sampled_from(
    ["inner tcp", "inner udp", "encap vlan 5", "depth = 0", "tcp", "udp", "ip6", "arp", "vlan", "len > 60", "ip[100] = 0"]
)
EXPRESSIONS = st.recursive(
    TERMS, lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["and", "and", "or"]), inner) | inner.map("not {}".format)
)


@given(EXPRESSIONS, st.sampled_from([ARP, UDP, UDP + bytes(100), ARP[:13], bytes(12) + b"\x81\x00\x00\x05" + UDP[12:]]))
def test_verdicts_stay(expression: str, packet: bytes) -> None:
    """Loads behind the end of a packet included."""
    try:
        made = compile(expression)
    except FilterError as error:
        assert error.message == REJECTS_ALL  # noqa: PT017
        return
    assert made.matches(packet) == compile(expression, optimize=False).matches(packet)
