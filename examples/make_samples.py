"""Writes the sample captures of this folder: `python examples/make_samples.py [FOLDER]`.

Every file holds the same two exchanges, a web page (TCP port 80) and a name (UDP port 53), each packet carried in one way or
another. Nothing is random and time stands still, so the files come out the same each time. Needs scapy.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from scapy.contrib.erspan import ERSPAN_I, ERSPAN_II, ERSPAN_III, ERSPAN_PlatformSpecific
from scapy.contrib.etherip import EtherIP
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.contrib.gtp import GTP_U_Header, GTPPDUSessionContainer
from scapy.contrib.mpls import MPLS
from scapy.contrib.nsh import NSH
from scapy.layers.inet import GRE, ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.ppp import PPP, PPPoE
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

#: 2024-01-01 00:00:00 UTC; a packet every 10 ms.
START, STEP = 1704067200, 10_000

GET = Raw(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
PAGE = Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
NAME = b"\x07example\x03com\0\0\x01\0\x01"
QUERY = Raw(b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0" + NAME)
ANSWER = Raw(b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0" + NAME + b"\xc0\x0c\0\x01\0\x01\0\0\x0e\x10\0\x04\x0a\0\0\x02")

#: A packet from client to server (True) or back, without what carries it.
Sent = tuple[bool, Packet]
#: Puts a packet that goes forward (or back) into something.
Carry = Callable[[Packet, bool], Packet]


# ---- What is said ----


def ip(forward: bool, net: str = "10.0.0") -> Packet:
    hosts = [f"{net}.1", f"{net}.2"] if forward else [f"{net}.2", f"{net}.1"]
    return IP(src=hosts[0], dst=hosts[1], id=1)


def ip6(forward: bool, net: str = "2001:db8") -> Packet:
    hosts = [f"{net}::1", f"{net}::2"] if forward else [f"{net}::2", f"{net}::1"]
    return IPv6(src=hosts[0], dst=hosts[1])


def exchange(network: Callable[[bool], Packet] = ip, port: int = 80) -> list[Sent]:
    """Four packets: a page asked for and sent, a name asked for and told."""
    return [
        (True, network(True) / TCP(sport=50000, dport=port, flags="PA", seq=1, ack=1) / GET),
        (False, network(False) / TCP(sport=port, dport=50000, flags="PA", seq=1, ack=40) / PAGE),
        (True, network(True) / UDP(sport=50001, dport=53) / QUERY),
        (False, network(False) / UDP(sport=53, dport=50001) / ANSWER),
    ]


def in_each(*carriers: Carry, network: Callable[[bool], Packet] = ip) -> Iterator[Packet]:
    """The exchange in one carrier after the other."""
    for carry in carriers:
        for forward, packet in exchange(network):
            yield carry(packet, forward)


# ---- What carries it ----


def ethernet(packet: Packet, forward: bool = True) -> Packet:
    hosts = ["02:42:0a:00:00:01", "02:42:0a:00:00:02"] if forward else ["02:42:0a:00:00:02", "02:42:0a:00:00:01"]
    return Ether(src=hosts[0], dst=hosts[1]) / packet


def behind(*headers: Packet) -> Carry:
    """In an Ethernet frame, behind these headers."""

    def carry(packet: Packet, forward: bool) -> Packet:
        for header in reversed(headers):
            packet = header.copy() / packet
        return ethernet(packet, forward)

    return carry


def over_ip(*headers: Packet, frame: bool = False, outer: Callable[[bool, str], Packet] = ip, net: str = "192.168.0") -> Carry:
    """In a tunnel with these headers over IP, bare or as an Ethernet frame."""

    def carry(packet: Packet, forward: bool) -> Packet:
        inside = ethernet(packet, forward) if frame else packet
        for header in reversed(headers):
            inside = header.copy() / inside
        return ethernet(outer(forward, net) / inside, forward)

    return carry


def over_ip6(*headers: Packet, frame: bool = False) -> Carry:
    return over_ip(*headers, frame=frame, outer=ip6, net="2001:db8:1")


def udp(port: int) -> Packet:
    return UDP(sport=49152, dport=port)


SESSION = GTPPDUSessionContainer(type=0, QFI=9)
OPTIONS = [GeneveOptions(classid=0x0102, type=1, data=b"abcd"), GeneveOptions(classid=0x0102, type=2, data=b"efghijkl")]
CONTROL_WORD = Raw(bytes(4))

vlan = behind(Dot1Q(vlan=10))
qinq = behind(Dot1AD(vlan=100), Dot1Q(vlan=10))
mpls = behind(MPLS(label=100, s=0), MPLS(label=200, s=1))
pppoe = behind(PPPoE(sessionid=7), PPP())
ipip = over_ip()
gre = over_ip(GRE(key_present=1, key=42))
nvgre = over_ip(GRE(proto=0x6558, key_present=1, key=42 << 8), frame=True)
vxlan = over_ip(udp(4789), VXLAN(vni=42), frame=True)
geneve = over_ip(udp(6081), GENEVE(vni=42, options=OPTIONS), frame=True)
gtpu = over_ip(udp(2152), GTP_U_Header(teid=42, E=1, next_ex=0x85), SESSION)
teredo = over_ip(udp(3544))


def pseudowire(packet: Packet, forward: bool) -> Packet:
    return ethernet(MPLS(label=300, s=1) / CONTROL_WORD / ethernet(packet, forward), forward)


def three_deep(packet: Packet, forward: bool) -> Packet:
    in_ip = ip(forward, "172.16.0") / packet
    in_gre = ip(forward, "172.17.0") / GRE(key_present=1, key=42) / in_ip
    in_vxlan = ip(forward, "192.168.0") / udp(4789) / VXLAN(vni=42) / ethernet(in_gre, forward)
    return mpls(in_vxlan, forward)


# ---- The files ----


def plain() -> Iterator[Packet]:
    yield ethernet(ARP(hwsrc="02:42:0a:00:00:01", psrc="10.0.0.1", pdst="10.0.0.2"))
    yield from in_each(ethernet)
    yield from in_each(ethernet, network=ip6)
    yield ethernet(ip(True) / ICMP(id=1, seq=1) / Raw(b"ping"))
    yield ethernet(ip6(True) / ICMPv6EchoRequest(id=1, seq=1, data=b"ping"))
    yield ethernet(IP(src="10.0.0.1", dst="10.0.0.2", id=1, options=IPOption_Router_Alert()) / UDP(sport=50001, dport=53) / QUERY)


def all_of_gre() -> Iterator[Packet]:
    for flags in range(8):
        header = GRE(chksum_present=flags >> 2, key_present=flags >> 1 & 1, seqnum_present=flags & 1)
        if flags & 2:
            header.key = 42
        if flags & 1:
            header.sequence_number = 1
        yield from in_each(over_ip(header))
    yield from in_each(over_ip6(GRE(proto=0x6558), frame=True), nvgre)
    third = GRE(proto=0x22EB, seqnum_present=1, sequence_number=1)
    yield from in_each(
        over_ip(GRE(proto=0x88BE), ERSPAN_I(), frame=True),
        over_ip(GRE(proto=0x88BE, seqnum_present=1, sequence_number=1), ERSPAN_II(session_id=5), frame=True),
        over_ip(third, ERSPAN_III(session_id=5), frame=True),
        over_ip(third, ERSPAN_III(session_id=5, o=1), ERSPAN_PlatformSpecific(), frame=True),
    )


def fragments() -> Iterator[Packet]:
    """A datagram in three fragments, over IPv4, over IPv6 and in IP in IP; then a carrier that is itself in two."""
    data = bytes(UDP(sport=50001, dport=5000, len=56, chksum=0) / Raw(b"x" * 48))
    cuts = (0, 24, 48)
    bare = [IP(src="10.0.0.1", dst="10.0.0.2", id=1, proto=17, frag=at // 8, flags="MF" * (at < 48)) / data[at : at + 24] for at in cuts]
    yield from map(ethernet, bare)
    for at in cuts:
        yield ethernet(ip6(True) / IPv6ExtHdrFragment(nh=17, id=1, m=at < 48, offset=at // 8) / data[at : at + 24])
    for packet in bare:
        yield ipip(packet, True)
    data = bytes(exchange()[0][1])
    yield ethernet(IP(src="192.168.0.1", dst="192.168.0.2", id=2, proto=4, flags="MF") / data[:48])
    yield ethernet(IP(src="192.168.0.1", dst="192.168.0.2", id=2, proto=4, frag=6) / data[48:])


def extension_headers() -> Iterator[Packet]:
    hop = IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
    destination = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))])
    routing = IPv6ExtHdrRouting(type=0, segleft=0, addresses=["2001:db8::9"])
    fragment = IPv6ExtHdrFragment(id=1)
    authentication = AH(payloadlen=4, spi=1, seq=1, icv=bytes(12))
    for chain in ([hop], [destination], [routing], [fragment], [authentication], [hop, destination, routing, authentication]):
        for forward, packet in exchange(ip6):
            transport = packet.payload
            # scapy knows the numbers of all but what AH is followed by.
            authentication.nh = 6 if TCP in transport else 17
            packet.remove_payload()
            for header in chain:
                packet = packet / header.copy()
            yield ethernet(packet / transport, forward)


def tunnels() -> Iterator[Packet]:
    """60 packets: 14 exchanges at the same time, each carried in another way, so 28 packets with an innermost TCP port 80."""
    yield ethernet(ARP(hwsrc="02:42:0a:00:00:01", psrc="10.0.0.1", pdst="10.0.0.2"))
    carriers = [ethernet, vlan, qinq, mpls, pseudowire, pppoe, ipip, teredo, gre, nvgre, vxlan, geneve, gtpu, three_deep]
    for number in range(4):
        for carry in carriers:
            forward, packet = exchange(ip6 if carry is teredo else ip)[number]
            yield carry(packet, forward)
    for carry in (ethernet, vxlan, gtpu):
        yield carry(ip(True) / ICMP(id=1, seq=1) / b"ping", True)


SAMPLES: dict[str, Callable[[], Iterable[Packet]]] = {
    "plain": plain,
    "vlan": lambda: in_each(vlan, qinq, behind(Dot1Q(vlan=1), Dot1Q(vlan=2), Dot1Q(vlan=3))),
    "mpls": lambda: in_each(behind(MPLS(label=100, s=1)), mpls, pseudowire, over_ip(udp(6635), MPLS(label=100, s=1))),
    "pppoe": lambda: in_each(pppoe, behind(Dot1Q(vlan=10), PPPoE(sessionid=7), PPP())),
    "gre": all_of_gre,
    "ipip": lambda: in_each(ipip, over_ip6()),
    "6in4": lambda: in_each(over_ip(), over_ip6(), teredo, network=ip6),
    "vxlan": lambda: in_each(vxlan, over_ip6(udp(8472), VXLAN(vni=43), frame=True)),
    "geneve": lambda: in_each(geneve, over_ip(udp(6081), GENEVE(vni=43, proto=0x0800))),
    "gtpu": lambda: in_each(gtpu, over_ip(udp(2152), GTP_U_Header(teid=43)), over_ip(udp(2152), GTP_U_Header(teid=44, S=1, seq=1))),
    "fragments": fragments,
    "extension-headers": extension_headers,
    "nested": lambda: in_each(three_deep),
    "others": lambda: in_each(
        behind(NSH(mdtype=2, nextproto=1, spi=1)),
        over_ip(EtherIP(), frame=True),
        over_ip(udp(4790), VXLAN(flags=0x0C, NextProtocol=1, vni=42)),
    ),
    "tunnels": tunnels,
}


def capture(packets: Iterable[Packet]) -> bytes:
    """A pcap file of Ethernet frames (draft-ietf-opsawg-pcap)."""
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    for number, packet in enumerate(packets):
        frame = bytes(packet)
        seconds, microseconds = divmod(number * STEP, 1_000_000)
        data += struct.pack("<IIII", START + seconds, microseconds, len(frame), len(frame)) + frame
    return data


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, packets in SAMPLES.items():
        (folder / f"{name}.pcap").write_bytes(capture(packets()))


if __name__ == "__main__":
    main()
