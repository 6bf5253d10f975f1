"""Packets that filters are measured on: always the same ones, each of another kind.

In:  a link type.
Out: packets by name, from Ethernet's destination address (or what the link type has in its place) to the payload.

Lengths are right and checksums are 0. Addresses of the innermost headers are 10.0.0.1 and 10.0.0.2, or 2001:db8::1 and ::2,
those of the outer ones 192.0.2.1 and .2, or 2001:db8:1::1 and ::2. The numbers are those of the protocols' standards, written out
once more: nothing here comes from pcapext's own table.
"""

from __future__ import annotations

import struct

IPV4, IPV6, ARP, VLAN, SERVICE_VLAN, MPLS, PPPOE, ETHERNET = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x8847, 0x8864, 0x6558
TCP, UDP, IPIP, GRE, HOP_BY_HOP, DESTINATION_OPTIONS = 6, 17, 4, 47, 0, 60

MACS = bytes.fromhex("020000000001 020000000002")
INNER, OUTER = bytes.fromhex("0a000001 0a000002"), bytes.fromhex("c0000201 c0000202")
INNER6, OUTER6 = (bytes.fromhex(f"20010db8{net}{1:020x} 20010db8{net}{2:020x}") for net in ("0000", "0001"))

PAYLOAD = b"GET / HTTP/1.1\r\n\r\n"


def ethernet(ethertype: int, payload: bytes) -> bytes:
    return MACS + struct.pack("!H", ethertype) + payload


def tag(identifier: int, ethertype: int, payload: bytes) -> bytes:
    return struct.pack("!HH", identifier, ethertype) + payload


def labels(*numbers: int, payload: bytes) -> bytes:
    stack = [number << 12 | (place == len(numbers)) << 8 | 64 for place, number in enumerate(numbers, 1)]
    return struct.pack(f"!{len(stack)}I", *stack) + payload


def ipv4(protocol: int, payload: bytes, addresses: bytes = INNER, fragment: int = 0) -> bytes:
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, fragment, 64, protocol, 0) + addresses + payload


def ipv6(following: int, payload: bytes, addresses: bytes = INNER6) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 64) + addresses + payload


def options(following: int, payload: bytes) -> bytes:
    """An IPv6 header of hop-by-hop or destination options, of 8 bytes: padding alone."""
    return struct.pack("!BB", following, 0) + b"\1\4\0\0\0\0" + payload


def tcp(port: int, payload: bytes = PAYLOAD, source: int = 50000) -> bytes:
    return struct.pack("!HHIIHHHH", source, port, 1, 2, 0x5018, 8192, 0, 0) + payload


def udp(port: int, payload: bytes = PAYLOAD, source: int = 50000) -> bytes:
    return struct.pack("!HHHH", source, port, 8 + len(payload), 0) + payload


def arp(addresses: bytes) -> bytes:
    return struct.pack("!HHBBH", 1, IPV4, 6, 4, 1) + MACS[6:] + addresses[:4] + bytes(6) + addresses[4:]


def vxlan(vni: int, payload: bytes) -> bytes:
    return udp(4789, struct.pack("!II", 1 << 27, vni << 8) + payload)


def geneve(vni: int, payload: bytes) -> bytes:
    """With one option of 8 bytes."""
    return udp(6081, struct.pack("!BBHI", 2, 0, ETHERNET, vni << 8) + struct.pack("!HBBI", 0x0100, 1, 1, 0) + payload)


def gtpu(teid: int, payload: bytes) -> bytes:
    """With a sequence number and the extension header of a PDU session (type 0x85)."""
    head = struct.pack("!BBHIHBB", 0x36, 255, 8 + len(payload), teid, 1, 0, 0x85)
    return udp(2152, head + bytes.fromhex("01 10 05 00") + payload)


_WEB, _WEB6 = ipv4(TCP, tcp(80)), ipv6(TCP, tcp(80))
_FRAME = ethernet(IPV4, _WEB)

#: EtherType and what follows it, by name.
_PACKETS: dict[str, tuple[int, bytes]] = {
    "tcp": (IPV4, _WEB),
    "tcp6": (IPV6, _WEB6),
    "udp": (IPV4, ipv4(UDP, udp(53))),
    "arp": (ARP, arp(INNER)),
    "fragment": (IPV4, ipv4(TCP, PAYLOAD, fragment=185)),
    "options6": (IPV6, ipv6(HOP_BY_HOP, options(DESTINATION_OPTIONS, options(TCP, tcp(80))))),
    "vlan": (VLAN, tag(10, IPV4, _WEB)),
    "qinq-mpls": (SERVICE_VLAN, tag(10, VLAN, tag(20, MPLS, labels(100, 200, payload=_WEB)))),
    "pppoe": (PPPOE, struct.pack("!BBHHH", 0x11, 0, 5, 2 + len(_WEB), 0x0021) + _WEB),
    "ipip": (IPV4, ipv4(IPIP, _WEB, OUTER)),
    "gre": (IPV4, ipv4(GRE, struct.pack("!HH", 0, IPV4) + _WEB, OUTER)),
    "vxlan": (IPV4, ipv4(UDP, vxlan(42, _FRAME), OUTER)),
    "geneve": (IPV4, ipv4(UDP, geneve(42, _FRAME), OUTER)),
    "gtpu": (IPV4, ipv4(UDP, gtpu(7, _WEB), OUTER)),
    # Three tunnels: NVGRE over IPv6, in it VXLAN, in that IP in IP.
    "deep": (
        IPV6,
        ipv6(
            GRE,
            struct.pack("!HHI", 0x2000, ETHERNET, 7 << 8)
            + ethernet(IPV4, ipv4(UDP, vxlan(42, ethernet(IPV4, ipv4(IPIP, _WEB, OUTER))), OUTER)),
            OUTER6,
        ),
    ),
}

NAMES: tuple[str, ...] = tuple(_PACKETS)


def frames(linktype: str) -> dict[str, bytes]:
    """The packets by name on a link type: EN10MB, LINUX_SLL2, or RAW, which has only those that begin with IP."""
    match linktype:
        case "EN10MB":
            return {name: ethernet(ethertype, rest) for name, (ethertype, rest) in _PACKETS.items()}
        case "LINUX_SLL2":
            tail = struct.pack("!HIHBB", 0, 2, 1, 0, 6) + MACS[:6] + bytes(2)
            return {name: struct.pack("!H", ethertype) + tail + rest for name, (ethertype, rest) in _PACKETS.items()}
        case "RAW":
            return {name: rest for name, (ethertype, rest) in _PACKETS.items() if ethertype in (IPV4, IPV6)}
    raise ValueError(f"no frames of link type {linktype}")
