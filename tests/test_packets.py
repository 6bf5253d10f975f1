"""Generated packets: the walk finds what they were built to have, and tshark and scapy see the same headers in them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import packets
import pytest
import scapy.all as scapy
from scapy.contrib.erspan import ERSPAN_II
from scapy.contrib.etherip import EtherIP
from scapy.contrib.geneve import GENEVE
from scapy.contrib.gtp import GTP_U_Header
from scapy.contrib.mpls import MPLS
from scapy.contrib.nsh import NSH
from tshark import keys_by_tshark

from pcapext.dissect import dissect, walk
from pcapext.encapsulation import ENCAPSULATION_NAMES
from pcapext.flowkeys import NO_ETHERNET, FlowKeys


@pytest.mark.parametrize("seed", range(4))
def test_keys_by_construction(seed: int) -> None:
    for packet in packets.packets(2500, seed):
        found = walk(packet.data, packet.linktype)
        assert (found.keys, found.outer) == (packet.keys, packet.outer), packet
        assert tuple((header.name, header.identifier) for header in found.headers) == packet.headers, packet


def test_keys_of_cut_packets() -> None:
    for packet in packets.packets(1500, seed=4):
        for length in packet.cuts():
            found = walk(packet.data[:length], packet.linktype)
            assert (found.keys, found.outer) == (packet.keys_of(length), packet.outer_of(length)), (length, packet)
            assert tuple((header.name, header.identifier) for header in found.headers) == packet.headers_of(length), (length, packet)


def test_generator_makes_everything() -> None:
    """Every link type, level and encapsulation, in numbers that mean something; the same for the same seed."""
    made = list(packets.packets(5000, seed=5))
    assert made == list(packets.packets(5000, seed=5))
    assert made[:100] != list(packets.packets(100, seed=6))
    linktypes = Counter(packet.linktype for packet in made)
    assert len(linktypes) == 9
    assert min(linktypes.values()) > 400
    depths = Counter(packet.keys.depth for packet in made)
    assert sorted(depths) == [0, 1, 2, 3]
    assert min(depths.values()) > 400
    names = Counter(name for packet in made for name, _ in packet.headers)
    assert set(names) == set(ENCAPSULATION_NAMES)
    assert min(names.values()) > 50
    assert sum(packet.odd for packet in made) > 500
    assert not any(packet.odd for packet in packets.packets(1000, seed=5, odd=False))


def test_decapsulated_packet_has_the_same_keys() -> None:
    """Without outer headers, the innermost ones are the only ones, a fixed distance nearer to the start."""
    for packet in packets.packets(2000, seed=6, odd=False):
        data, linktype = packet.decapsulated
        keys, inner = packet.keys, dissect(data, linktype)
        assert (inner.nproto, inner.tproto, inner.depth) == (keys.nproto, keys.tproto, 0)
        moved = keys.nhoff - inner.nhoff
        assert inner.thoff == (keys.thoff and keys.thoff - moved)
        assert inner.poff == (keys.poff and keys.poff - moved)
        assert (inner.lhoff == 0) == (keys.lhoff != NO_ETHERNET)


def test_truncations() -> None:
    assert list(packets.truncations(b"abc")) == [b"", b"a", b"ab"]


# ---- tshark ----


def beyond_tshark(packet: packets.Generated) -> str | None:
    """Why tshark 4.0 goes through other headers than LANGUAGE.md 5, if it does. All of it was seen in its output."""
    pairs = set(zip(packet.layers, packet.layers[1:], strict=False))
    if packet.linktype in (packets.NULL, packets.LOOP) and packet.data[:4] in (b"\0\0\0\x0a", b"\x0a\0\0\0"):
        return "it does not know Linux's number for IPv6"
    if pairs & {("gre", "vlan"), ("gre", "pppoe"), ("gre", "lldp"), ("gre", "rarp")}:
        return "it knows few protocols behind GRE"
    if ("vlan", "802.3") in pairs:
        return "behind a service tag, it does not look for 802.3"
    if ("gtpu", "ip") in pairs and b"\x4f\x00" in packet.data:
        return "in GTP-U, it does not take a header of 60 bytes for IPv4"
    return None


@pytest.mark.tools("tshark")
def test_tshark_sees_the_same(tmp_path: Path) -> None:
    made = list(packets.packets(4000, seed=7, odd=False))
    compared = [packet for packet in made if beyond_tshark(packet) is None]
    assert len(compared) > 0.93 * len(made)
    views = keys_by_tshark([(packet.data, packet.linktype) for packet in compared], tmp_path)
    assert len(views) == len(compared)
    for packet, view in zip(compared, views, strict=True):
        assert dissect(packet.data, packet.linktype) == view, packet


# ---- scapy ----

ETHERNET = scapy.Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
IP, IP6 = scapy.IP(), scapy.IPv6()
FRAME = ETHERNET / IP / scapy.TCP(options=[("MSS", 1460)]) / b"payload"

#: Depth and layers.
STACKS = {
    "plain": (0, FRAME),
    "udp": (0, ETHERNET / IP6 / scapy.UDP(dport=53) / b"payload"),
    "sctp": (0, ETHERNET / IP / scapy.SCTP() / b"payload"),
    "icmp": (0, ETHERNET / IP / scapy.ICMP() / b"payload"),
    "options": (0, ETHERNET / scapy.IP(options=scapy.IPOption_Router_Alert()) / scapy.UDP(dport=53) / b"payload"),
    "vlan": (0, ETHERNET / scapy.Dot1Q(vlan=5) / IP / scapy.TCP()),
    "qinq": (0, ETHERNET / scapy.Dot1AD(vlan=7) / scapy.Dot1Q(vlan=5) / IP6 / scapy.TCP()),
    "mpls": (0, ETHERNET / MPLS(label=16, s=0) / MPLS(label=17, s=1) / IP / scapy.TCP()),
    "pppoe": (0, ETHERNET / scapy.PPPoE(sessionid=5) / scapy.PPP() / IP / scapy.TCP()),
    "ipip": (1, ETHERNET / IP / IP / scapy.TCP()),
    "6in4": (1, ETHERNET / IP / IP6 / scapy.TCP()),
    "4in6": (1, ETHERNET / IP6 / IP / scapy.TCP()),
    "6in6": (1, ETHERNET / IP6 / IP6 / scapy.TCP()),
    "gre": (1, ETHERNET / IP / scapy.GRE(chksum_present=1, key_present=1, key=5, seqnum_present=1) / IP / scapy.TCP()),
    "gre ethernet": (1, ETHERNET / IP6 / scapy.GRE(proto=0x6558) / FRAME),
    "erspan": (1, ETHERNET / IP / scapy.GRE(proto=0x88BE, seqnum_present=1) / ERSPAN_II(session_id=5) / FRAME),
    "etherip": (1, ETHERNET / IP / EtherIP() / FRAME),
    "vxlan": (1, ETHERNET / IP / scapy.UDP(dport=4789) / scapy.VXLAN(vni=5) / FRAME),
    "geneve": (1, ETHERNET / IP / scapy.UDP(dport=6081) / GENEVE(vni=5) / FRAME),
    "gtpu": (1, ETHERNET / IP / scapy.UDP(dport=2152) / GTP_U_Header(teid=5, S=1) / IP / scapy.TCP()),
    "nsh": (1, ETHERNET / NSH(mdtype=1, nextproto=3) / FRAME),
    "hop-by-hop": (0, ETHERNET / IP6 / scapy.IPv6ExtHdrHopByHop() / scapy.IPv6ExtHdrRouting(addresses=["::1"]) / scapy.TCP()),
    "fragment": (0, ETHERNET / IP6 / scapy.IPv6ExtHdrDestOpt() / scapy.IPv6ExtHdrFragment(m=1) / scapy.UDP(dport=53) / b"payload"),
    "ah": (0, ETHERNET / IP / scapy.AH(nh=6, payloadlen=4, icv=b"x" * 12) / scapy.TCP()),
    "vlan in vxlan": (
        1,
        ETHERNET / IP / scapy.UDP(dport=4789) / scapy.VXLAN() / ETHERNET / scapy.Dot1Q() / IP6 / scapy.TCP(),
    ),
}
NETWORK = {scapy.IP: 0x0800, scapy.IPv6: 0x86DD}
TRANSPORT = {scapy.TCP: 6, scapy.UDP: 17, scapy.SCTP: 132, scapy.ICMP: 1}


@pytest.mark.parametrize(("depth", "stack"), STACKS.values(), ids=STACKS)
def test_scapy_builds_the_same(depth: int, stack: scapy.Packet) -> None:
    """A layer of scapy begins where what it and all behind it make up begins, counted from the end."""
    data = bytes(stack)
    layers = [stack]
    while not isinstance(layers[-1].payload, scapy.NoPayload):
        layers.append(layers[-1].payload)
    begins = [(type(layer), len(data) - len(bytes(layer))) for layer in layers]
    networks = [(kind, place) for kind, place in begins if kind in NETWORK]
    network, nhoff = networks[-1]
    transport, thoff = [(kind, place) for kind, place in begins if kind in TRANSPORT][-1]
    poff = next((place for _, place in begins if place > thoff), len(data))
    frame = [place for kind, place in begins if kind is scapy.Ether][-1]
    alone = len(networks) == 1 or networks[-2][1] < frame
    keys = FlowKeys(nhoff, NETWORK[network], thoff, TRANSPORT[transport], poff, depth, frame if alone else NO_ETHERNET)
    assert dissect(data) == keys
