"""The walk in plain classic BPF: every key on packets of every nesting, as tests/packets.py knows them by construction.

The verdicts of whole filters are for test_everywhere.py.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import reduce
from random import Random

import pytest
from bpf_oracles import attach
from graphs import EFFORT
from packets import EN10MB, Generated, packets

import pcapext
from pcapext.assemble import assemble
from pcapext.bpf import MAX_INSTRUCTIONS, Instruction
from pcapext.cfg import Binary, Block, Cfg, Const, Key, Operator, Return, Value
from pcapext.encapsulation import DEFAULT_SETTINGS, LINK_LAYER_BY_NUMBER, LINK_LAYERS
from pcapext.flowkeys import FLOW_KEYS, FlowKeys
from pcapext.lower import lower
from pcapext.machine import run
from pcapext.optimize import optimize
from pcapext.pcap_bridge import run_filter

OTHER_LINKTYPES = [row.linktype for row in LINK_LAYERS if row.linktype != EN10MB]


def sample(count: int, seed: int, linktype: int) -> Iterator[tuple[Generated, int]]:
    """Packets of a link type, each whole and cut at three of the places where something changes."""
    rng = Random(seed)
    for packet in packets(count * EFFORT, seed, linktypes=[linktype]):
        for length in (len(packet.data), *rng.choices(packet.cuts(), k=3)):
            yield packet, length


def walk_for(linktype: int, value: Value) -> tuple[Instruction, ...]:
    """A program that returns a value made of keys."""
    cfg = lower(Cfg(0, {0: Block((), Return(value))}), LINK_LAYER_BY_NUMBER[linktype], DEFAULT_SETTINGS)
    return assemble(optimize(cfg))


@pytest.mark.parametrize("key", [key.name for key in FLOW_KEYS])
def test_keys_are_those_of_the_packet(key: str) -> None:
    program = walk_for(EN10MB, Key(key))
    seen = set()
    for packet, length in sample(250, seed=len(key), linktype=EN10MB):
        wanted = getattr(packet.keys_of(length), key)
        seen.add(wanted)
        assert run_filter(program, packet.data[:length]) == wanted, (packet.layers, length)
    assert len(seen) > 2


@pytest.mark.parametrize("linktype", OTHER_LINKTYPES)
def test_all_keys_at_once(linktype: int) -> None:
    """One number made of all keys, of which each change makes another one."""

    def mixed(keys: FlowKeys) -> int:
        return reduce(lambda total, key: (total * 0x01000193 + getattr(keys, key.name)) & 0xFFFF_FFFF, FLOW_KEYS, 0)

    total: Value = Const(0)
    for key in FLOW_KEYS:
        total = Binary(Operator.ADD, Binary(Operator.MUL, total, Const(0x01000193)), Key(key.name))
    program = walk_for(linktype, total)
    seen = set()
    for packet, length in sample(120, seed=linktype, linktype=linktype):
        keys = packet.keys_of(length)
        seen.add(keys)
        assert run_filter(program, packet.data[:length]) == mixed(keys), (packet.layers, length)
    assert len(seen) > 50


def test_walk_runs_only_where_a_key_is_needed() -> None:
    """Plain UDP is decided before any key: as many instructions run as libpcap's own program of the first term takes."""
    program = pcapext.compile("udp or inner tcp", target="classic")
    standard = pcapext.compile("udp")
    compared = 0
    for packet, _ in sample(200, seed=3, linktype=EN10MB):
        executed = run(standard, packet.data)
        if executed.value:
            compared += 1
            assert run(program, packet.data).executed <= executed.executed + 3, packet.layers
    assert compared > 20


#: Every kind of term there is, one a line. Those that ask for the same keys have the same walk.
TERMS = """
    payload[0:4] = 0x47455420
    len - poff > 0
    inner tcp[13] & 2 != 0
    inner ether multicast
    inner icmp6[0] = 135
    depth > 0
    nhoff > 14
    nproto > 0x800
    thoff > 40
    tproto > 17
    poff > 54
    tproto tcp
    inner tproto 47
    nproto ip6
    inner nproto 0x88cc
    inner ip
    inner ip6
    inner arp
    inner rarp
    inner tcp
    inner udp
    inner sctp
    inner icmp
    inner igmp
    inner igrp
    inner pim
    inner vrrp
    inner carp
    inner esp
    inner icmp6
    inner proto 50
    inner ip proto 50
    inner ip6 proto 50
    inner ether proto 0x88cc
    inner host 10.0.0.1
    inner ip src host 10.0.0.1
    inner ip6 dst host 2001:db8::1
    inner arp src or dst host 10.0.0.1
    inner rarp src and dst host 10.0.0.1
    inner 10.0.0.1
    inner net 10.0.0.0/8
    inner dst net 2001:db8::/32
    inner src net 10.1.0.0 mask 255.255.0.0
    inner port 53
    inner tcp dst port 80
    inner udp src port 53
    inner sctp portrange 1-100
    inner ip broadcast
    inner ip multicast
    inner ip6 multicast
    inner ether src host 02:00:00:00:00:01
    inner ether broadcast
    inner ip[8] < 5
    inner ip6[7] < 5
    inner arp[6:2] = 1
    inner udp[4:2] > 100
    inner icmp[0] = 8
    inner sctp[0:2] = 5
    inner igmp[0] = 17
    inner ether[0] & 1 = 0
    inner (tcp or udp port 53)
"""
ALL_TERMS = [line.strip() for line in TERMS.strip().splitlines()]


@pytest.mark.kernel
@pytest.mark.parametrize("negation", ["", "not "])
@pytest.mark.parametrize("term", ALL_TERMS if EFFORT > 1 else ALL_TERMS[:2])
def test_every_term_has_a_program_that_a_stock_kernel_takes(term: str, negation: str) -> None:
    """With PCAPEXT_TEST_EFFORT=2 all of them, which takes a minute; otherwise those with the longest programs."""
    program = pcapext.compile(negation + term, target="classic", netmask=0xFFFFFF00)
    assert len(program) <= MAX_INSTRUCTIONS
    assert program.kernel_refusal() is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        attach(sock, program.instructions)
