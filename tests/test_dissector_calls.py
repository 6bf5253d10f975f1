"""No program calls the dissector twice for a packet, nor at all where what stands before decides: each target, on generated packets.

A classic program calls nothing: its walk is written out once, and classic BPF has no jumps back.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

import pytest
from ebpf_oracles import LONGEST
from everywhere import BOTH, TEMPLATES, sample
from graphs import EFFORT
from oracle import NETMASK, is_decided, libpcap_matches, text_of
from packets import EN10MB

from benchmarks.calls import TARGETS, counter

#: Filters that need the dissector for some packets only, and in several places.
MIXED = """
udp or not {inner tcp}
tcp port 80 or {inner host 10.0.0.1}
ip6 and {inner tcp} or arp and {inner udp} or "{depth} > 1"
host 10.0.0.1 and not {inner host 10.0.0.1} and not {inner ether multicast}
udp port 4789 and ({inner host 10.0.0.1} or "{depth} > 2" or {inner ip6} or {encap gre})
not ip6 and (arp or {outer udp} or {encap vlan 10})
""".strip().splitlines()

#: Compiling C and loading programs takes long.
FILTERS = [*MIXED, *TEMPLATES] if EFFORT > 1 else [*MIXED, *TEMPLATES[::9]]


MARKS = {"c": [pytest.mark.tools("cc")], "ebpf": [pytest.mark.root, pytest.mark.kernel]}


@pytest.mark.parametrize("target", [pytest.param(target, marks=MARKS.get(target, [])) for target in TARGETS])
@pytest.mark.parametrize("optimize", BOTH if EFFORT > 1 else (True,))
def test_calls(target: str, optimize: bool) -> None:
    made = [packet for packet in sample(100 * min(EFFORT, 50), 11, [EN10MB]) if packet.data and packet.captured == packet.length <= LONGEST]
    decided, counted = 0, Counter[int]()
    for template in FILTERS:
        with ExitStack() as stack:
            calls = counter(stack, text_of(template), target, optimize, NETMASK)
            for packet in made:
                count, needless = calls(packet.data), is_decided(template, packet, NETMASK)
                assert count <= (not needless), (template, packet.made.layers, packet.data.hex())
                counted[count] += 1
                decided += needless
    assert decided > len(made) // 2
    assert counted[1] > len(made)


#: Extension terms that every accepted packet must pass, and what else it must; by `and`, in this order.
CONJUNCTIONS = [
    (["inner port 80"], "tcp"),
    (["not inner tcp", "inner host 10.0.0.1"], "ip6 or udp"),
    (["encap vlan 10", "depth > 0"], "vlan and ip"),
    (["not (inner udp or encap gre)"], "not host 10.0.0.1 and len > 100"),
]


@pytest.mark.parametrize("target", [pytest.param(target, marks=MARKS.get(target, [])) for target in TARGETS])
@pytest.mark.parametrize(("terms", "rest"), CONJUNCTIONS, ids=str)
def test_terms_that_all_must_pass_are_asked_last(terms: list[str], rest: str, target: str) -> None:
    """Where the rest rejects, whatever the terms would say, nothing is called, though they come first."""
    made = [packet for packet in sample(100 * min(EFFORT, 50), 12, [EN10MB]) if packet.data and packet.captured == packet.length <= LONGEST]
    rejected = 0
    with ExitStack() as stack:
        calls = counter(stack, f"{' and '.join(terms)} and ({rest})", target, True, NETMASK)
        for packet in made:
            is_rejected = not libpcap_matches(rest, packet.data, packet.linktype, packet.length, NETMASK)
            assert calls(packet.data) <= (not is_rejected), (packet.made.layers, packet.data.hex())
            rejected += is_rejected
    assert len(made) // 10 < rejected < len(made)
