"""The walk on packets written by hand: every row of LANGUAGE.md 5, every rule about short packets, any bytes.

The expected keys were worked out on paper, header by header. tests/test_packets.py has generated packets and other dissectors.
"""

from __future__ import annotations

import array
import mmap
import tempfile

import packets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcapext import encapsulation as table
from pcapext.dissect import Header, Walk, dissect, walk
from pcapext.encapsulation import WalkSettings
from pcapext.errors import FilterError
from pcapext.flowkeys import NO_ETHERNET, FlowKeys
from pcapext.layout import Encapsulation

NO = NO_ETHERNET
EN10MB, RAW, IPV4, IPV6, SLL, SLL2, NULL, LOOP, PPP = 1, 12, 228, 229, 113, 276, 0, 108, 9

# Headers in hexadecimal. Ethernet: 14 bytes with an EtherType.
MACS = "020000000001 020000000002"
TCP = "c000 0050 00000001 00000002 5010 2000 0000 0000"
TAIL = "00" * 20
IP6_ADDRESSES = "20010db8000000000000000000000001 20010db8000000000000000000000002"


def ip(protocol: int, options: str = "", fragment: str = "0000") -> str:
    words = 5 + len(options) // 8
    return f"4{words:x}00 0000 0000 {fragment} 40 {protocol:02x} 0000 0a000001 0a000002 {options}"


def ip6(following: int) -> str:
    return f"60000000 0000 {following:02x} 40 {IP6_ADDRESSES}"


def udp(port: int) -> str:
    return f"c000 {port:04x} 0000 0000"


ETH_IP = f"{MACS} 0800"
ETH_IP6 = f"{MACS} 86dd"
#: An inner frame: Ethernet 14, IPv4 20, TCP 20.
FRAME = f"{ETH_IP} {ip(6)} {TCP}"
IP_TCP = f"{ip(6)} {TCP}"
IP6_TCP = f"{ip6(6)} {TCP}"
#: Ethernet, IPv4: what follows stands at 34; with UDP at 42.
GRE = f"{ETH_IP} {ip(47)}"


def over_udp(port: int) -> str:
    return f"{ETH_IP} {ip(17)} {udp(port)}"


CARRIER_UDP = (14, 0x0800, 34, 17, 42, 0, 0)
CARRIER_GRE = (14, 0x0800, 34, 47, 34, 0, 0)

#: What it shows: link type, packet, (nhoff, nproto, thoff, tproto, poff, depth, lhoff), encapsulations.
CASES = {
    # Transport headers and their lengths.
    "tcp": (EN10MB, f"{ETH_IP} {IP_TCP}", (14, 0x0800, 34, 6, 54, 0, 0), []),
    "tcp over ip6": (EN10MB, f"{ETH_IP6} {IP6_TCP}", (14, 0x86DD, 54, 6, 74, 0, 0), []),
    "tcp options": (EN10MB, f"{ETH_IP} {ip(6)} {TCP.replace('5010', '8010')} {'01' * 12}", (14, 0x0800, 34, 6, 66, 0, 0), []),
    "tcp data offset 4": (EN10MB, f"{ETH_IP} {ip(6)} {TCP.replace('5010', '4010')}", (14, 0x0800, 34, 6, 54, 0, 0), []),
    "tcp options cut": (EN10MB, f"{ETH_IP} {ip(6)} {TCP.replace('5010', 'f010')}", (14, 0x0800, 34, 6, 94, 0, 0), []),
    "udp": (EN10MB, f"{ETH_IP} {ip(17)} {TAIL}", (14, 0x0800, 34, 17, 42, 0, 0), []),
    "udp-lite": (EN10MB, f"{ETH_IP} {ip(136)} {TAIL}", (14, 0x0800, 34, 136, 42, 0, 0), []),
    "icmp": (EN10MB, f"{ETH_IP} {ip(1)} {TAIL}", (14, 0x0800, 34, 1, 42, 0, 0), []),
    "igmp": (EN10MB, f"{ETH_IP} {ip(2)} {TAIL}", (14, 0x0800, 34, 2, 42, 0, 0), []),
    "icmp6": (EN10MB, f"{ETH_IP6} {ip6(58)} {TAIL}", (14, 0x86DD, 54, 58, 62, 0, 0), []),
    "dccp": (EN10MB, f"{ETH_IP} {ip(33)} {TAIL}", (14, 0x0800, 34, 33, 46, 0, 0), []),
    "sctp": (EN10MB, f"{ETH_IP} {ip(132)} {TAIL}", (14, 0x0800, 34, 132, 46, 0, 0), []),
    "esp": (EN10MB, f"{ETH_IP} {ip(50)} {TAIL}", (14, 0x0800, 34, 50, 34, 0, 0), []),
    "ospf": (EN10MB, f"{ETH_IP} {ip(89)} {TAIL}", (14, 0x0800, 34, 89, 34, 0, 0), []),
    "no next header": (EN10MB, f"{ETH_IP6} {ip6(59)}", (14, 0x86DD, 54, 59, 54, 0, 0), []),
    "icmp error": (EN10MB, f"{ETH_IP} {ip(1)} 0303000000000000 {ip(4)} {IP_TCP}", (14, 0x0800, 34, 1, 42, 0, 0), []),
    # Not IP.
    "arp": (EN10MB, f"{MACS} 0806 {TAIL}", (14, 0x0806, 0, 0, 0, 0, 0), []),
    "lldp": (EN10MB, f"{MACS} 88cc {TAIL}", (14, 0x88CC, 0, 0, 0, 0, 0), []),
    "first EtherType": (EN10MB, f"{MACS} 0600 {TAIL}", (14, 0x0600, 0, 0, 0, 0, 0), []),
    "last length": (EN10MB, f"{MACS} 05ff {TAIL}", (0, 0, 0, 0, 0, 0, 0), []),
    "802.3": (EN10MB, f"{MACS} 0026 424203 {TAIL}", (0, 0, 0, 0, 0, 0, 0), []),
    "802.3 behind vlan": (EN10MB, f"{MACS} 8100 0005 0026 424203 {TAIL}", (0, 0, 0, 0, 0, 0, 0), [("vlan", 5)]),
    # VLAN tags.
    "vlan": (EN10MB, f"{MACS} 8100 e005 0800 {IP_TCP}", (18, 0x0800, 38, 6, 58, 0, 0), [("vlan", 5)]),
    "vlan 0x9100": (EN10MB, f"{MACS} 9100 0fff 86dd {IP6_TCP}", (18, 0x86DD, 58, 6, 78, 0, 0), [("vlan", 4095)]),
    "qinq": (
        EN10MB,
        f"{MACS} 88a8 0007 8100 0005 0800 {IP_TCP}",
        (22, 0x0800, 42, 6, 62, 0, 0),
        [("qinq", 7), ("vlan", 7), ("vlan", 5)],
    ),
    "3 vlans": (
        EN10MB,
        f"{MACS} 8100 0001 8100 0002 8100 0003 0800 {IP_TCP}",
        (26, 0x0800, 46, 6, 66, 0, 0),
        [("vlan", 1), ("vlan", 2), ("vlan", 3)],
    ),
    "4 vlans": (
        EN10MB,
        f"{MACS} 8100 0001 8100 0002 8100 0003 88a8 0004 0800 {IP_TCP}",
        (26, 0x88A8, 0, 0, 0, 0, 0),
        [("vlan", 1), ("vlan", 2), ("vlan", 3)],
    ),
    # MPLS.
    "mpls": (EN10MB, f"{MACS} 8847 00064140 {IP_TCP}", (18, 0x0800, 38, 6, 58, 0, 0), [("mpls", 100)]),
    "mpls multicast": (EN10MB, f"{MACS} 8848 00064140 {IP6_TCP}", (18, 0x86DD, 58, 6, 78, 0, 0), [("mpls", 100)]),
    "6 labels": (
        EN10MB,
        f"{MACS} 8847 {'00010040' * 5} 00011140 {IP_TCP}",
        (38, 0x0800, 58, 6, 78, 0, 0),
        [("mpls", 16)] * 5 + [("mpls", 17)],
    ),
    "7 labels": (EN10MB, f"{MACS} 8847 {'00010040' * 6} 00011140 {IP_TCP}", (38, 0x8847, 0, 0, 0, 0, 0), [("mpls", 16)] * 6),
    "mpls nibble 1": (EN10MB, f"{MACS} 8848 00010040 00011140 10000007", (18, 0x8847, 0, 0, 0, 0, 0), [("mpls", 16), ("mpls", 17)]),
    "pseudowire": (EN10MB, f"{MACS} 8847 00064140 00000001 {FRAME}", (36, 0x0800, 56, 6, 76, 1, 22), [("mpls", 100)]),
    # PPPoE.
    "pppoe": (EN10MB, f"{MACS} 8864 1100 1234 0000 0021 {IP_TCP}", (22, 0x0800, 42, 6, 62, 0, 0), [("pppoe", 0x1234)]),
    "pppoe ip6": (EN10MB, f"{MACS} 8864 1100 1234 0000 0057 {IP6_TCP}", (22, 0x86DD, 62, 6, 82, 0, 0), [("pppoe", 0x1234)]),
    "pppoe mpls": (
        EN10MB,
        f"{MACS} 8864 1100 1234 0000 0281 00064140 {IP_TCP}",
        (26, 0x0800, 46, 6, 66, 0, 0),
        [("pppoe", 0x1234), ("mpls", 100)],
    ),
    "pppoe lcp": (EN10MB, f"{MACS} 8864 1100 1234 0000 c021 09010004", (14, 0x8864, 0, 0, 0, 0, 0), [("pppoe", 0x1234)]),
    "pppoe discovery": (EN10MB, f"{MACS} 8863 1109 0000 0000", (14, 0x8863, 0, 0, 0, 0, 0), []),
    "vlan pppoe": (
        EN10MB,
        f"{MACS} 8100 0005 8864 1100 0001 0000 0021 {IP_TCP}",
        (26, 0x0800, 46, 6, 66, 0, 0),
        [("vlan", 5), ("pppoe", 1)],
    ),
    # Transparent Ethernet and NSH.
    "0x6558": (EN10MB, f"{MACS} 6558 {FRAME}", (28, 0x0800, 48, 6, 68, 1, 14), []),
    "nsh ip": (EN10MB, f"{MACS} 894f 0fc2 02 01 00000100 {IP_TCP}", (22, 0x0800, 42, 6, 62, 1, NO), [("nsh", None)]),
    "nsh ip6": (EN10MB, f"{MACS} 894f 0fc2 02 02 00000100 {IP6_TCP}", (22, 0x86DD, 62, 6, 82, 1, NO), [("nsh", None)]),
    "nsh ethernet": (EN10MB, f"{MACS} 894f 0fc6 01 03 00000100 {'00' * 16} {FRAME}", (52, 0x0800, 72, 6, 92, 1, 38), [("nsh", None)]),
    "nsh nsh": (
        EN10MB,
        f"{MACS} 894f 0fc2 02 04 00000100 0fc3 02 01 00000100 01000300 {IP_TCP}",
        (34, 0x0800, 54, 6, 74, 2, NO),
        [("nsh", None)] * 2,
    ),
    "nsh mpls": (
        EN10MB,
        f"{MACS} 894f 0fc2 02 05 00000100 00064140 {IP_TCP}",
        (26, 0x0800, 46, 6, 66, 1, NO),
        [("nsh", None), ("mpls", 100)],
    ),
    "nsh unknown": (EN10MB, f"{MACS} 894f 0fc2 02 06 00000100 {IP_TCP}", (14, 0x894F, 0, 0, 0, 0, 0), []),
    # IPv4.
    "ip options": (EN10MB, f"{ETH_IP} {ip(6, '94040000')} {TCP}", (14, 0x0800, 38, 6, 58, 0, 0), []),
    "ip 40 bytes of options": (EN10MB, f"{ETH_IP} {ip(17, '94040000' * 10)} {TAIL}", (14, 0x0800, 74, 17, 82, 0, 0), []),
    "ip header of 0 bytes": (EN10MB, f"{ETH_IP} {ip(17).replace('45', '40')} {TAIL}", (14, 0x0800, 14, 17, 22, 0, 0), []),
    "ip any version": (EN10MB, f"{ETH_IP} {ip(6).replace('45', '65')} {TCP}", (14, 0x0800, 34, 6, 54, 0, 0), []),
    "first fragment": (EN10MB, f"{ETH_IP} {ip(6, fragment='2000')} {TCP}", (14, 0x0800, 34, 6, 54, 0, 0), []),
    "do not fragment": (EN10MB, f"{ETH_IP} {ip(6, fragment='4000')} {TCP}", (14, 0x0800, 34, 6, 54, 0, 0), []),
    "later fragment": (EN10MB, f"{ETH_IP} {ip(6, fragment='2001')} {TCP}", (14, 0x0800, 0, 6, 34, 0, 0), []),
    "later fragment, options": (EN10MB, f"{ETH_IP} {ip(17, '94040000', '1fff')} {TCP}", (14, 0x0800, 0, 17, 38, 0, 0), []),
    "later fragment of ip in ip": (EN10MB, f"{ETH_IP} {ip(4, fragment='0001')} {IP_TCP}", (14, 0x0800, 0, 4, 34, 0, 0), []),
    "first fragment of ip in ip": (
        EN10MB,
        f"{ETH_IP} {ip(4, fragment='2000')} {ip(6, fragment='0001')} {TCP}",
        (34, 0x0800, 0, 6, 54, 1, NO),
        [("ipip", None)],
    ),
    "ah over ip": (EN10MB, f"{ETH_IP} {ip(51)} 06040000 {'00' * 20} {TCP}", (14, 0x0800, 58, 6, 78, 0, 0), []),
    "options are no headers of ip": (EN10MB, f"{ETH_IP} {ip(60)} {TAIL}", (14, 0x0800, 34, 60, 34, 0, 0), []),
    "options behind ah over ip": (EN10MB, f"{ETH_IP} {ip(51)} 3c010000 {'00' * 8} {TAIL}", (14, 0x0800, 46, 60, 46, 0, 0), []),
    # IPv6 extension headers.
    "hop-by-hop": (EN10MB, f"{ETH_IP6} {ip6(0)} 0600 0104 00000000 {TCP}", (14, 0x86DD, 62, 6, 82, 0, 0), []),
    "routing": (EN10MB, f"{ETH_IP6} {ip6(43)} 0602 0400 00000000 {'00' * 16} {TCP}", (14, 0x86DD, 78, 6, 98, 0, 0), []),
    "destination": (EN10MB, f"{ETH_IP6} {ip6(60)} 1101 010c {'00' * 12} {TAIL}", (14, 0x86DD, 70, 17, 78, 0, 0), []),
    "ah": (EN10MB, f"{ETH_IP6} {ip6(51)} 06040000 {'00' * 20} {TCP}", (14, 0x86DD, 78, 6, 98, 0, 0), []),
    "whole packet with fragment header": (EN10MB, f"{ETH_IP6} {ip6(44)} 0600 0000 00000001 {TCP}", (14, 0x86DD, 62, 6, 82, 0, 0), []),
    "first fragment ip6": (EN10MB, f"{ETH_IP6} {ip6(44)} 0600 0001 00000001 {TCP}", (14, 0x86DD, 62, 6, 82, 0, 0), []),
    "fragment's length field is reserved": (EN10MB, f"{ETH_IP6} {ip6(44)} 06ff 0006 00000001 {TCP}", (14, 0x86DD, 62, 6, 82, 0, 0), []),
    "later fragment ip6": (EN10MB, f"{ETH_IP6} {ip6(44)} 0600 0008 00000001 {TCP}", (14, 0x86DD, 0, 6, 62, 0, 0), []),
    "later fragment, options inside": (EN10MB, f"{ETH_IP6} {ip6(44)} 3c00 0009 00000001 {TCP}", (14, 0x86DD, 0, 60, 62, 0, 0), []),
    "4 extension headers": (
        EN10MB,
        f"{ETH_IP6} {ip6(0)} 3c00 0104 00000000 2b00 0104 00000000 2c00 0400 00000000 0600 0001 00000001 {TCP}",
        (14, 0x86DD, 86, 6, 106, 0, 0),
        [],
    ),
    "5 extension headers": (
        EN10MB,
        f"{ETH_IP6} {ip6(0)} 3c00 0104 00000000 2b00 0104 00000000 2c00 0400 00000000 3c00 0001 00000001 0600 0104 00000000 {TCP}",
        (14, 0x86DD, 86, 60, 86, 0, 0),
        [],
    ),
    "mobility is no extension header": (EN10MB, f"{ETH_IP6} {ip6(135)} {TAIL}", (14, 0x86DD, 54, 135, 54, 0, 0), []),
    # IP in IP.
    "ipip": (EN10MB, f"{ETH_IP} {ip(4)} {IP_TCP}", (34, 0x0800, 54, 6, 74, 1, NO), [("ipip", None)]),
    "6in4": (EN10MB, f"{ETH_IP} {ip(41)} {IP6_TCP}", (34, 0x86DD, 74, 6, 94, 1, NO), [("6in4", None)]),
    "4in6": (EN10MB, f"{ETH_IP6} {ip6(4)} {IP_TCP}", (54, 0x0800, 74, 6, 94, 1, NO), [("4in6", None)]),
    "6in6": (EN10MB, f"{ETH_IP6} {ip6(41)} {IP6_TCP}", (54, 0x86DD, 94, 6, 114, 1, NO), [("6in6", None)]),
    "4 levels": (EN10MB, f"{ETH_IP} {ip(4) * 3} {IP_TCP}", (74, 0x0800, 94, 6, 114, 3, NO), [("ipip", None)] * 3),
    "5 levels": (EN10MB, f"{ETH_IP} {ip(4) * 4} {IP_TCP}", (74, 0x0800, 94, 4, 94, 3, NO), [("ipip", None)] * 3),
    # GRE.
    "gre": (EN10MB, f"{GRE} 0000 0800 {IP_TCP}", (38, 0x0800, 58, 6, 78, 1, NO), [("gre", None)]),
    "gre checksum": (EN10MB, f"{GRE} 8000 0800 00000000 {IP_TCP}", (42, 0x0800, 62, 6, 82, 1, NO), [("gre", None)]),
    "gre key": (EN10MB, f"{GRE} 2000 86dd 0000002a {IP6_TCP}", (42, 0x86DD, 82, 6, 102, 1, NO), [("gre", 42)]),
    "gre sequence": (EN10MB, f"{GRE} 1000 0800 0000002a {IP_TCP}", (42, 0x0800, 62, 6, 82, 1, NO), [("gre", None)]),
    "gre all": (EN10MB, f"{GRE} b000 0800 00000000 0000002a 00000001 {IP_TCP}", (50, 0x0800, 70, 6, 90, 1, NO), [("gre", 42)]),
    "gre over ip6": (EN10MB, f"{ETH_IP6} {ip6(47)} 0000 0800 {IP_TCP}", (58, 0x0800, 78, 6, 98, 1, NO), [("gre", None)]),
    "gre version 1": (EN10MB, f"{GRE} 2001 880b 00000000 {IP_TCP}", CARRIER_GRE, []),
    "gre routing": (EN10MB, f"{GRE} 4000 0800 00000000 00000000 {IP_TCP}", CARRIER_GRE, []),
    "gre nhrp": (EN10MB, f"{GRE} 0000 2001 {TAIL}", (38, 0x2001, 0, 0, 0, 1, NO), [("gre", None)]),
    "gre protocol 0": (EN10MB, f"{GRE} 0000 0000", (0, 0, 0, 0, 0, 1, NO), [("gre", None)]),
    "gre mpls": (EN10MB, f"{GRE} 0000 8847 00064140 {IP_TCP}", (42, 0x0800, 62, 6, 82, 1, NO), [("gre", None), ("mpls", 100)]),
    "gre mpls multicast": (EN10MB, f"{GRE} 0000 8848 00", (38, 0x8847, 0, 0, 0, 1, NO), [("gre", None)]),
    "gre vlan": (EN10MB, f"{GRE} 0000 8100 0005 0800 {IP_TCP}", (42, 0x0800, 62, 6, 82, 1, NO), [("gre", None), ("vlan", 5)]),
    "gre ethernet": (EN10MB, f"{GRE} 0000 6558 {FRAME}", (52, 0x0800, 72, 6, 92, 1, 38), [("gre", None)]),
    "gre 802.3": (EN10MB, f"{GRE} 0000 6558 {MACS} 0026 424203", (0, 0, 0, 0, 0, 1, 38), [("gre", None)]),
    "gre ethernet 0x6558": (EN10MB, f"{GRE} 0000 6558 {MACS} 6558 {FRAME}", (66, 0x0800, 86, 6, 106, 2, 52), [("gre", None)]),
    "gre nsh": (
        EN10MB,
        f"{GRE} 0000 894f 0fc2 02 03 00000100 {FRAME}",
        (60, 0x0800, 80, 6, 100, 2, 46),
        [("gre", None), ("nsh", None)],
    ),
    "nvgre": (EN10MB, f"{GRE} 2000 6558 00002a07 {FRAME}", (56, 0x0800, 76, 6, 96, 1, 42), [("gre", 0x2A07), ("nvgre", 42)]),
    "keyed and numbered is not nvgre": (
        EN10MB,
        f"{GRE} 3000 6558 00002a07 00000001 {FRAME}",
        (60, 0x0800, 80, 6, 100, 1, 46),
        [("gre", 0x2A07)],
    ),
    "erspan 1": (EN10MB, f"{GRE} 0000 88be {FRAME}", (52, 0x0800, 72, 6, 92, 1, 38), [("gre", None), ("erspan", None)]),
    "erspan 2": (
        EN10MB,
        f"{GRE} 1000 88be 00000001 1000fc05 00000000 {FRAME}",
        (64, 0x0800, 84, 6, 104, 1, 50),
        [("gre", None), ("erspan", 5)],
    ),
    "erspan 3": (
        EN10MB,
        f"{GRE} 1000 22eb 00000001 2000ffff 00000000 00000000 {FRAME}",
        (68, 0x0800, 88, 6, 108, 1, 54),
        [("gre", None), ("erspan", 1023)],
    ),
    "erspan 3, O bit": (
        EN10MB,
        f"{GRE} 1000 22eb 00000001 20000007 00000000 000083ff 0000000000000000 {FRAME}",
        (76, 0x0800, 96, 6, 116, 1, 62),
        [("gre", None), ("erspan", 7)],
    ),
    "erspan 3, frame type 2": (EN10MB, f"{GRE} 1000 22eb 00000001 20000007 00000000 00000800 {FRAME}", CARRIER_GRE, []),
    # Other IP protocols.
    "etherip": (EN10MB, f"{ETH_IP} {ip(97)} 3000 {FRAME}", (50, 0x0800, 70, 6, 90, 1, 36), [("etherip", None)]),
    "ethernet in ip6": (EN10MB, f"{ETH_IP6} {ip6(143)} {FRAME}", (68, 0x0800, 88, 6, 108, 1, 54), []),
    "mpls in ip": (EN10MB, f"{ETH_IP} {ip(137)} 00064140 {IP_TCP}", (38, 0x0800, 58, 6, 78, 1, NO), [("mpls", 100)]),
    "etherip over ip6": (EN10MB, f"{ETH_IP6} {ip6(97)} 3000 {FRAME}", (70, 0x0800, 90, 6, 110, 1, 56), [("etherip", None)]),
    "ethernet in ip4": (EN10MB, f"{ETH_IP} {ip(143)} {FRAME}", (48, 0x0800, 68, 6, 88, 1, 34), []),
    "mpls in ip6": (EN10MB, f"{ETH_IP6} {ip6(137)} 00064140 {IP_TCP}", (58, 0x0800, 78, 6, 98, 1, NO), [("mpls", 100)]),
    "behind extension headers": (
        EN10MB,
        f"{ETH_IP6} {ip6(60)} 2f00 0104 00000000 0000 0800 {IP_TCP}",
        (66, 0x0800, 86, 6, 106, 1, NO),
        [("gre", None)],
    ),
    # UDP tunnels.
    "vxlan": (EN10MB, f"{over_udp(4789)} 08000000 00002a00 {FRAME}", (64, 0x0800, 84, 6, 104, 1, 50), [("vxlan", 42)]),
    "vxlan 8472": (EN10MB, f"{over_udp(8472)} 08000000 00002aff {FRAME}", (64, 0x0800, 84, 6, 104, 1, 50), [("vxlan", 42)]),
    "vxlan without I": (EN10MB, f"{over_udp(4789)} f7000000 00002a00 {FRAME}", CARRIER_UDP, []),
    "vxlan by source port": (EN10MB, f"{ETH_IP} {ip(17)} 12b5 c000 0000 0000 08000000 00002a00 {FRAME}", CARRIER_UDP, []),
    "udp-lite carries nothing": (EN10MB, f"{ETH_IP} {ip(136)} {udp(4789)} 08000000 00002a00 {FRAME}", (14, 0x0800, 34, 136, 42, 0, 0), []),
    "vxlan-gpe ip": (EN10MB, f"{over_udp(4790)} 0c000001 00002a00 {IP_TCP}", (50, 0x0800, 70, 6, 90, 1, NO), [("vxlan-gpe", 42)]),
    "vxlan-gpe ip6": (EN10MB, f"{over_udp(4790)} 04000002 00002a00 {IP6_TCP}", (50, 0x86DD, 90, 6, 110, 1, NO), [("vxlan-gpe", None)]),
    "vxlan-gpe ethernet": (EN10MB, f"{over_udp(4790)} 0c000003 00002a00 {FRAME}", (64, 0x0800, 84, 6, 104, 1, 50), [("vxlan-gpe", 42)]),
    "vxlan-gpe nsh": (
        EN10MB,
        f"{over_udp(4790)} 0c000004 00002a00 0fc2 02 01 00000100 {IP_TCP}",
        (58, 0x0800, 78, 6, 98, 2, NO),
        [("vxlan-gpe", 42), ("nsh", None)],
    ),
    "vxlan-gpe mpls": (
        EN10MB,
        f"{over_udp(4790)} 0c000005 00002a00 00064140 {IP_TCP}",
        (54, 0x0800, 74, 6, 94, 1, NO),
        [("vxlan-gpe", 42), ("mpls", 100)],
    ),
    "vxlan-gpe unknown": (EN10MB, f"{over_udp(4790)} 0c000006 00002a00 {IP_TCP}", CARRIER_UDP, []),
    "vxlan-gpe without P": (EN10MB, f"{over_udp(4790)} 08000001 00002a00 {IP_TCP}", CARRIER_UDP, []),
    "geneve ethernet": (EN10MB, f"{over_udp(6081)} 0000 6558 00002a00 {FRAME}", (64, 0x0800, 84, 6, 104, 1, 50), [("geneve", 42)]),
    "geneve options": (
        EN10MB,
        f"{over_udp(6081)} 0240 0800 00002a00 0102210100000000 {IP_TCP}",
        (58, 0x0800, 78, 6, 98, 1, NO),
        [("geneve", 42)],
    ),
    "geneve unknown": (EN10MB, f"{over_udp(6081)} 0000 2001 00002a00 {TAIL}", (50, 0x2001, 0, 0, 0, 1, NO), [("geneve", 42)]),
    "geneve version 1": (EN10MB, f"{over_udp(6081)} 4000 6558 00002a00 {FRAME}", CARRIER_UDP, []),
    "gtpu": (EN10MB, f"{over_udp(2152)} 30ff 0000 0000002a {IP_TCP}", (50, 0x0800, 70, 6, 90, 1, NO), [("gtpu", 42)]),
    "gtpu ip6": (EN10MB, f"{over_udp(2152)} 30ff 0000 0000002a {IP6_TCP}", (50, 0x86DD, 90, 6, 110, 1, NO), [("gtpu", 42)]),
    "gtpu sequence": (EN10MB, f"{over_udp(2152)} 32ff 0000 0000002a 00010040 {IP_TCP}", (54, 0x0800, 74, 6, 94, 1, NO), [("gtpu", 42)]),
    "gtpu n-pdu": (EN10MB, f"{over_udp(2152)} 31ff 0000 0000002a 00000100 {IP_TCP}", (54, 0x0800, 74, 6, 94, 1, NO), [("gtpu", 42)]),
    "gtpu no extension": (EN10MB, f"{over_udp(2152)} 34ff 0000 0000002a 00000000 {IP_TCP}", (54, 0x0800, 74, 6, 94, 1, NO), [("gtpu", 42)]),
    "gtpu extension": (
        EN10MB,
        f"{over_udp(2152)} 34ff 0000 0000002a 00000085 01000900 {IP_TCP}",
        (58, 0x0800, 78, 6, 98, 1, NO),
        [("gtpu", 42)],
    ),
    "gtpu 2 extensions": (
        EN10MB,
        f"{over_udp(2152)} 37ff 0000 0000002a 00010285 020009000000 00c0 01000100 {IP_TCP}",
        (66, 0x0800, 86, 6, 106, 1, NO),
        [("gtpu", 42)],
    ),
    "gtpu 3 extensions": (EN10MB, f"{over_udp(2152)} 34ff 0000 0000002a 00000085 010009c0 010001c0 01000100 {IP_TCP}", CARRIER_UDP, []),
    "gtpu empty extension": (EN10MB, f"{over_udp(2152)} 34ff 0000 0000002a 00000085 00000900 {IP_TCP}", CARRIER_UDP, []),
    "gtpu echo": (EN10MB, f"{over_udp(2152)} 3201 0004 00000000 00010000 {IP_TCP}", CARRIER_UDP, []),
    "gtpu version 2": (EN10MB, f"{over_udp(2152)} 50ff 0000 0000002a {IP_TCP}", CARRIER_UDP, []),
    "gtp'": (EN10MB, f"{over_udp(2152)} 20ff 0000 0000002a {IP_TCP}", CARRIER_UDP, []),
    "gtpu neither ip": (EN10MB, f"{over_udp(2152)} 30ff 0000 0000002a 50000000 {TAIL}", CARRIER_UDP, []),
    "mpls in udp": (EN10MB, f"{over_udp(6635)} 00064140 {IP_TCP}", (46, 0x0800, 66, 6, 86, 1, NO), [("mpls", 100)]),
    "gre in udp": (EN10MB, f"{over_udp(4754)} 2000 0800 0000002a {IP_TCP}", (50, 0x0800, 70, 6, 90, 1, NO), [("gre", 42)]),
    "gre in udp, version 1": (EN10MB, f"{over_udp(4754)} 2001 0800 0000002a {IP_TCP}", CARRIER_UDP, []),
    "teredo": (EN10MB, f"{over_udp(3544)} {IP6_TCP}", (42, 0x86DD, 82, 6, 102, 1, NO), [("teredo", None)]),
    "teredo origin": (EN10MB, f"{over_udp(3544)} 0000 1234 0a000001 {IP6_TCP}", (50, 0x86DD, 90, 6, 110, 1, NO), [("teredo", None)]),
    "teredo authentication": (
        EN10MB,
        f"{over_udp(3544)} 0001 0102 aa bbbb 0000000000000001 00 {IP6_TCP}",
        (58, 0x86DD, 98, 6, 118, 1, NO),
        [("teredo", None)],
    ),
    "teredo both": (
        EN10MB,
        f"{over_udp(3544)} 0001 0000 0000000000000001 00 0000 1234 0a000001 {IP6_TCP}",
        (63, 0x86DD, 103, 6, 123, 1, NO),
        [("teredo", None)],
    ),
    # Through several.
    "vlan in vxlan in mpls": (
        EN10MB,
        f"{MACS} 8847 00064140 {ip(17)} {udp(4789)} 08000000 00002a00 {MACS} 8100 0009 0800 {IP_TCP}",
        (72, 0x0800, 92, 6, 112, 1, 54),
        [("mpls", 100), ("vxlan", 42), ("vlan", 9)],
    ),
    "ip in frame in ip": (
        EN10MB,
        f"{GRE} 0000 6558 {ETH_IP} {ip(4)} {IP_TCP}",
        (72, 0x0800, 92, 6, 112, 2, NO),
        [("gre", None), ("ipip", None)],
    ),
    # Other link types.
    "raw ip": (RAW, IP_TCP, (0, 0x0800, 20, 6, 40, 0, NO), []),
    "raw ip6": (RAW, IP6_TCP, (0, 0x86DD, 40, 6, 60, 0, NO), []),
    "raw neither": (RAW, f"50000000 {TAIL}", (0, 0, 0, 0, 0, 0, NO), []),
    "IPV4": (IPV4, IP_TCP, (0, 0x0800, 20, 6, 40, 0, NO), []),
    "IPV4 any version": (IPV4, IP_TCP.replace("45", "05"), (0, 0x0800, 20, 6, 40, 0, NO), []),
    "IPV6": (IPV6, IP6_TCP, (0, 0x86DD, 40, 6, 60, 0, NO), []),
    "sll": (SLL, f"0000 0001 0006 0200000000010000 0800 {IP_TCP}", (16, 0x0800, 36, 6, 56, 0, NO), []),
    "sll vlan": (SLL, f"0000 0001 0006 0200000000010000 8100 0005 0800 {IP_TCP}", (20, 0x0800, 40, 6, 60, 0, NO), [("vlan", 5)]),
    "sll 802.2": (SLL, f"0000 0001 0006 0200000000010000 0004 {TAIL}", (0, 0, 0, 0, 0, 0, NO), []),
    "sll 0x6558": (SLL, f"0000 0001 0006 0200000000010000 6558 {FRAME}", (30, 0x0800, 50, 6, 70, 1, 16), []),
    "sll2": (SLL2, f"86dd 0000 00000002 0001 00 06 0200000000010000 {IP6_TCP}", (20, 0x86DD, 60, 6, 80, 0, NO), []),
    "null, little end": (NULL, f"02000000 {IP_TCP}", (4, 0x0800, 24, 6, 44, 0, NO), []),
    "null, big end": (NULL, f"00000002 {IP_TCP}", (4, 0x0800, 24, 6, 44, 0, NO), []),
    "null ip6 Linux": (NULL, f"0a000000 {IP6_TCP}", (4, 0x86DD, 44, 6, 64, 0, NO), []),
    "null ip6 OpenBSD": (NULL, f"18000000 {IP6_TCP}", (4, 0x86DD, 44, 6, 64, 0, NO), []),
    "null ip6 FreeBSD": (NULL, f"0000001c {IP6_TCP}", (4, 0x86DD, 44, 6, 64, 0, NO), []),
    "null ip6 macOS": (NULL, f"1e000000 {IP6_TCP}", (4, 0x86DD, 44, 6, 64, 0, NO), []),
    "null other": (NULL, f"03000000 {IP_TCP}", (0, 0, 0, 0, 0, 0, NO), []),
    "loop": (LOOP, f"00000002 {IP_TCP}", (4, 0x0800, 24, 6, 44, 0, NO), []),
    "loop ip6": (LOOP, f"00000018 {IP6_TCP}", (4, 0x86DD, 44, 6, 64, 0, NO), []),
    "loop, little end": (LOOP, f"02000000 {IP_TCP}", (0, 0, 0, 0, 0, 0, NO), []),
    "ppp": (PPP, f"ff03 0021 {IP_TCP}", (4, 0x0800, 24, 6, 44, 0, NO), []),
    "ppp ip6": (PPP, f"ff03 0057 {IP6_TCP}", (4, 0x86DD, 44, 6, 64, 0, NO), []),
    "ppp mpls": (PPP, f"ff03 0281 00064140 {IP_TCP}", (8, 0x0800, 28, 6, 48, 0, NO), [("mpls", 100)]),
    "ppp lcp": (PPP, f"ff03 c021 {TAIL}", (0, 0, 0, 0, 0, 0, NO), []),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_packet(case: tuple[int, str, tuple[int, ...], list[tuple[str, int | None]]]) -> None:
    linktype, text, keys, headers = case
    found = walk(bytes.fromhex(text), linktype)
    assert found.keys == FlowKeys(*keys)
    assert [(header.name, header.identifier) for header in found.headers] == headers
    assert dissect(bytes.fromhex(text), linktype) == found.keys


def outcome(case: tuple[int, str, tuple[int, ...], list[tuple[str, int | None]]]) -> Walk | str:
    linktype, text, _, _ = case
    try:
        return walk(bytes.fromhex(text), linktype)
    except FilterError as error:
        return error.message


LOOK_UPS = {
    "link type": table.LINK_LAYER_BY_NUMBER,
    "EtherType": table.BY_ETHERTYPE,
    "IP protocol": table.BY_IP_PROTOCOL,
    "nibble": table.BY_NIBBLE,
    "port": table.DEFAULT_SETTINGS.by_port,
    "extension header": table.EXTENSION_BY_PROTOCOL,
    "transport length": table.TRANSPORT_LENGTHS,
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, rows in LOOK_UPS.items() for key in rows], ids=str)
def test_every_place_has_a_case(name: str, key: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what is found at a place, some case comes out differently."""
    before = [outcome(case) for case in CASES.values()]
    monkeypatch.delitem(LOOK_UPS[name], key)
    assert [outcome(case) for case in CASES.values()] != before


@pytest.mark.parametrize("row", [row for row in table.ENCAPSULATIONS if row.gre_protocols], ids=lambda row: row.name)
def test_every_row_in_gre_has_a_case(row: Encapsulation, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [outcome(case) for case in CASES.values()]
    monkeypatch.setattr(table, "ENCAPSULATIONS", [other for other in table.ENCAPSULATIONS if other is not row])
    assert [outcome(case) for case in CASES.values()] != before


def test_headers_have_place_and_level() -> None:
    linktype, text, _, _ = CASES["vlan in vxlan in mpls"]
    assert walk(bytes.fromhex(text), linktype).headers == (Header("mpls", 14, 100, 1), Header("vxlan", 46, 42, 1), Header("vlan", 68, 9, 2))


# Rules 1 to 5 of LANGUAGE.md 5: a packet, and the keys from which length on. The last keys hold to its end.
CUTS = {
    "frame": (
        EN10MB,
        f"{ETH_IP} {IP_TCP}",
        {0: (0, 0, 0, 0, 0, 0, 0), 14: (14, 0x0800, 0, 0, 0, 0, 0), 34: (14, 0x0800, 34, 6, 0, 0, 0), 54: (14, 0x0800, 34, 6, 54, 0, 0)},
    ),
    "udp": (EN10MB, f"{ETH_IP} {ip(17)} {udp(53)}", {34: (14, 0x0800, 34, 17, 0, 0, 0), 42: (14, 0x0800, 34, 17, 42, 0, 0)}),
    "sctp": (EN10MB, f"{ETH_IP} {ip(132)} {TAIL}", {34: (14, 0x0800, 34, 132, 0, 0, 0), 46: (14, 0x0800, 34, 132, 46, 0, 0)}),
    "others": (EN10MB, f"{ETH_IP} {ip(50)} {TAIL}", {14: (14, 0x0800, 0, 0, 0, 0, 0), 34: (14, 0x0800, 34, 50, 34, 0, 0)}),
    "ip options": (
        EN10MB,
        f"{ETH_IP} {ip(6, '94040000')} {TCP}",
        {
            14: (14, 0x0800, 0, 0, 0, 0, 0),
            34: (14, 0x0800, 0, 6, 0, 0, 0),
            38: (14, 0x0800, 38, 6, 0, 0, 0),
            58: (14, 0x0800, 38, 6, 58, 0, 0),
        },
    ),
    "later fragment, options": (
        EN10MB,
        f"{ETH_IP} {ip(6, '94040000', '0001')} {TCP}",
        {34: (14, 0x0800, 0, 6, 0, 0, 0), 38: (14, 0x0800, 0, 6, 38, 0, 0)},
    ),
    "vlan": (EN10MB, f"{MACS} 8100 0005 88cc {TAIL}", {14: (14, 0x8100, 0, 0, 0, 0, 0), 18: (18, 0x88CC, 0, 0, 0, 0, 0)}),
    "vlan 802.3": (EN10MB, f"{MACS} 8100 0005 0026 {TAIL}", {14: (14, 0x8100, 0, 0, 0, 0, 0), 18: (0, 0, 0, 0, 0, 0, 0)}),
    "mpls": (
        EN10MB,
        f"{MACS} 8848 00010040 00011140 60",
        {14: (14, 0x8847, 0, 0, 0, 0, 0), 18: (18, 0x8847, 0, 0, 0, 0, 0), 23: (22, 0x86DD, 0, 0, 0, 0, 0)},
    ),
    "pseudowire": (
        EN10MB,
        f"{MACS} 8847 00011140 00000000 {FRAME}",
        {
            14: (14, 0x8847, 0, 0, 0, 0, 0),
            36: (36, 0x0800, 0, 0, 0, 1, 22),
            56: (36, 0x0800, 56, 6, 0, 1, 22),
            76: (36, 0x0800, 56, 6, 76, 1, 22),
        },
    ),
    "pppoe": (EN10MB, f"{MACS} 8864 1100 1234 0000 0021 45", {14: (14, 0x8864, 0, 0, 0, 0, 0), 22: (22, 0x0800, 0, 0, 0, 0, 0)}),
    "0x6558": (EN10MB, f"{MACS} 6558 {MACS} 88cc", {14: (14, 0x6558, 0, 0, 0, 0, 0), 28: (28, 0x88CC, 0, 0, 0, 1, 14)}),
    "nsh": (EN10MB, f"{MACS} 894f 0fc3 02 01 00000100 01000300 45", {14: (14, 0x894F, 0, 0, 0, 0, 0), 26: (26, 0x0800, 0, 0, 0, 1, NO)}),
    "nsh ethernet": (
        EN10MB,
        f"{MACS} 894f 0fc2 02 03 00000100 {MACS} 0806",
        {14: (14, 0x894F, 0, 0, 0, 0, 0), 36: (36, 0x0806, 0, 0, 0, 1, 22)},
    ),
    "ip6": (
        EN10MB,
        f"{ETH_IP6} {IP6_TCP}",
        {14: (14, 0x86DD, 0, 0, 0, 0, 0), 54: (14, 0x86DD, 54, 6, 0, 0, 0), 74: (14, 0x86DD, 54, 6, 74, 0, 0)},
    ),
    "extension header": (
        EN10MB,
        f"{ETH_IP6} {ip6(60)} 1101 010c {'00' * 12} {TAIL}",
        {
            54: (14, 0x86DD, 0, 60, 0, 0, 0),
            62: (14, 0x86DD, 0, 17, 0, 0, 0),
            70: (14, 0x86DD, 70, 17, 0, 0, 0),
            78: (14, 0x86DD, 70, 17, 78, 0, 0),
        },
    ),
    "chain": (
        EN10MB,
        f"{ETH_IP6} {ip6(0)} 3c01 010c {'00' * 12} 3b00 0104 00000000",
        {54: (14, 0x86DD, 0, 0, 0, 0, 0), 62: (14, 0x86DD, 0, 60, 0, 0, 0), 78: (14, 0x86DD, 78, 59, 78, 0, 0)},
    ),
    "chain too long": (
        EN10MB,
        f"{ETH_IP6} {ip6(60)} {'3c00 0104 00000000' * 5} {TCP}",
        {54: (14, 0x86DD, 0, 60, 0, 0, 0), 86: (14, 0x86DD, 86, 60, 86, 0, 0)},
    ),
    "ah": (
        EN10MB,
        f"{ETH_IP} {ip(51)} 06040000 {'00' * 20} {TCP}",
        {
            34: (14, 0x0800, 0, 51, 0, 0, 0),
            46: (14, 0x0800, 0, 6, 0, 0, 0),
            58: (14, 0x0800, 58, 6, 0, 0, 0),
            78: (14, 0x0800, 58, 6, 78, 0, 0),
        },
    ),
    "later fragment ip6": (
        EN10MB,
        f"{ETH_IP6} {ip6(44)} 0600 0008 00000001",
        {54: (14, 0x86DD, 0, 44, 0, 0, 0), 62: (14, 0x86DD, 0, 6, 62, 0, 0)},
    ),
    "ipip": (
        EN10MB,
        f"{ETH_IP} {ip(4)} {ip(17)}",
        {14: (14, 0x0800, 0, 0, 0, 0, 0), 34: (34, 0x0800, 0, 0, 0, 1, NO), 54: (34, 0x0800, 54, 17, 0, 1, NO)},
    ),
    "ipip, options": (
        EN10MB,
        f"{ETH_IP} {ip(4, '94040000')} {ip(17)}",
        {34: (14, 0x0800, 0, 4, 0, 0, 0), 38: (38, 0x0800, 0, 0, 0, 1, NO), 58: (38, 0x0800, 58, 17, 0, 1, NO)},
    ),
    "gre": (EN10MB, f"{GRE} 2000 0800 0000002a 45", {34: CARRIER_GRE, 42: (42, 0x0800, 0, 0, 0, 1, NO)}),
    "gre ethernet": (EN10MB, f"{GRE} 0000 6558 {MACS} 0806", {34: CARRIER_GRE, 52: (52, 0x0806, 0, 0, 0, 1, 38)}),
    "erspan": (
        EN10MB,
        f"{GRE} 1000 22eb 00000001 20000007 00000000 00000001 0000000000000000 {MACS} 0806",
        {34: CARRIER_GRE, 76: (76, 0x0806, 0, 0, 0, 1, 62)},
    ),
    "etherip": (EN10MB, f"{ETH_IP} {ip(97)} 3000 {MACS} 0806", {34: (14, 0x0800, 34, 97, 34, 0, 0), 50: (50, 0x0806, 0, 0, 0, 1, 36)}),
    "vxlan": (
        EN10MB,
        f"{over_udp(4789)} 08000000 00002a00 {MACS} 0026",
        {34: (14, 0x0800, 34, 17, 0, 0, 0), 42: CARRIER_UDP, 64: (0, 0, 0, 0, 0, 1, 50)},
    ),
    "vxlan-gpe": (EN10MB, f"{over_udp(4790)} 0c000001 00002a00 45", {42: CARRIER_UDP, 50: (50, 0x0800, 0, 0, 0, 1, NO)}),
    "geneve": (EN10MB, f"{over_udp(6081)} 0240 0800 00002a00 0102210100000000 45", {42: CARRIER_UDP, 58: (58, 0x0800, 0, 0, 0, 1, NO)}),
    "gtpu": (
        EN10MB,
        f"{over_udp(2152)} 34ff 0000 0000002a 00000085 02000900 00000000 45",
        {42: CARRIER_UDP, 63: (62, 0x0800, 0, 0, 0, 1, NO)},
    ),
    "mpls in udp": (
        EN10MB,
        f"{over_udp(6635)} 00064140 45",
        {34: (14, 0x0800, 34, 17, 0, 0, 0), 42: (42, 0x8847, 0, 0, 0, 1, NO), 47: (46, 0x0800, 0, 0, 0, 1, NO)},
    ),
    "gre in udp": (EN10MB, f"{over_udp(4754)} 0000 0800 45", {42: CARRIER_UDP, 46: (46, 0x0800, 0, 0, 0, 1, NO)}),
    "teredo": (EN10MB, f"{over_udp(3544)} 6000", {42: CARRIER_UDP, 44: (42, 0x86DD, 0, 0, 0, 1, NO)}),
    "teredo authentication": (
        EN10MB,
        f"{over_udp(3544)} 0001 0100 aa 0000000000000001 00 6000",
        {42: CARRIER_UDP, 58: (56, 0x86DD, 0, 0, 0, 1, NO)},
    ),
    "teredo origin": (EN10MB, f"{over_udp(3544)} 0000 1234 0a000001 60", {42: CARRIER_UDP, 50: (50, 0x86DD, 0, 0, 0, 1, NO)}),
    "raw": (RAW, "45", {0: (0, 0, 0, 0, 0, 0, NO), 1: (0, 0x0800, 0, 0, 0, 0, NO)}),
    "IPV4": (IPV4, "45", {0: (0, 0x0800, 0, 0, 0, 0, NO)}),
    "IPV6": (IPV6, "60", {0: (0, 0x86DD, 0, 0, 0, 0, NO)}),
    "sll": (SLL, "0000 0001 0006 0200000000010000 0800 45", {0: (0, 0, 0, 0, 0, 0, NO), 16: (16, 0x0800, 0, 0, 0, 0, NO)}),
    "sll2": (SLL2, "0800 0000 00000002 0001 00 06 0200000000010000 45", {0: (0, 0, 0, 0, 0, 0, NO), 20: (20, 0x0800, 0, 0, 0, 0, NO)}),
    "null": (NULL, "02000000 45", {0: (0, 0, 0, 0, 0, 0, NO), 4: (4, 0x0800, 0, 0, 0, 0, NO)}),
    "ppp": (PPP, "ff03 0021 45", {0: (0, 0, 0, 0, 0, 0, NO), 4: (4, 0x0800, 0, 0, 0, 0, NO)}),
}


@pytest.mark.parametrize("case", CUTS.values(), ids=CUTS)
def test_cut_packet(case: tuple[int, str, dict[int, tuple[int, ...]]]) -> None:
    linktype, text, keys_from = case
    data, keys = bytes.fromhex(text), None
    for length in range(len(data) + 1):
        keys = keys_from.get(length, keys)
        if keys is not None:
            assert dissect(data[:length], linktype) == FlowKeys(*keys), f"{length} bytes"


def test_offsets_have_16_bits() -> None:
    # 16 extension headers of 2048 bytes a level: the second level's last one ends behind byte 65535, and the walk with it.
    settings = WalkSettings(extension_headers=16)
    level = ip6(60) + ("3cff" + "00" * 2046) * 15 + ("29ff" + "00" * 2046)
    data = bytes.fromhex(level * 2 + IP6_TCP)
    assert dissect(data, IPV6, settings) == FlowKeys(32808, 0x86DD, 0, 41, 0, 1, NO)
    assert dissect(data[:65535], IPV6, settings) == FlowKeys(32808, 0x86DD, 0, 41, 0, 1, NO)


# ---- Settings ----


def test_ports_are_settings() -> None:
    frame = bytes.fromhex(f"{over_udp(5000)} 08000000 00002a00 {FRAME}")
    assert dissect(frame) == FlowKeys(*CARRIER_UDP)
    assert dissect(frame, settings=WalkSettings(tunnel_ports={"vxlan": (5000,)})).depth == 1
    usual = bytes.fromhex(f"{over_udp(4789)} 08000000 00002a00 {FRAME}")
    assert dissect(usual, settings=WalkSettings(tunnel_ports={"vxlan": (5000,)})) == FlowKeys(*CARRIER_UDP)
    assert dissect(usual, settings=WalkSettings(tunnel_ports={"vxlan": ()})) == FlowKeys(*CARRIER_UDP)
    assert dissect(usual, settings=WalkSettings(tunnel_ports={"teredo": ()})).depth == 1


@pytest.mark.parametrize("levels", range(1, 17))
def test_levels_are_a_setting(levels: int) -> None:
    data = bytes.fromhex(ip(4) * 20 + IP_TCP)
    expected = FlowKeys(20 * (levels - 1), 0x0800, 20 * levels, 4, 20 * levels, levels - 1, NO)
    assert dissect(data, RAW, WalkSettings(max_levels=levels)) == expected


def test_bounds_are_settings() -> None:
    tags = bytes.fromhex(f"{MACS} {'8100 0001' * 4} 0800 {IP_TCP}")
    assert dissect(tags, settings=WalkSettings(vlan_tags=4)).nproto == 0x0800
    assert dissect(tags, settings=WalkSettings(vlan_tags=0)) == FlowKeys(14, 0x8100, lhoff=0)
    labels = bytes.fromhex(f"{MACS} 8847 {'00010040' * 6} 00011140 {IP_TCP}")
    assert dissect(labels, settings=WalkSettings(mpls_labels=7)).nproto == 0x0800
    assert dissect(labels, settings=WalkSettings(mpls_labels=0)) == FlowKeys(14, 0x8847, lhoff=0)
    options = bytes.fromhex(f"{ETH_IP6} {ip6(0)} 0600 0104 00000000 {TCP}")
    assert dissect(options, settings=WalkSettings(extension_headers=0)) == FlowKeys(14, 0x86DD, 54, 0, 54, 0, 0)
    extension = bytes.fromhex(f"{over_udp(2152)} 34ff 0000 0000002a 00000085 01000900 {IP_TCP}")
    assert dissect(extension, settings=WalkSettings(gtpu_extensions=1)).depth == 1
    assert dissect(extension, settings=WalkSettings(gtpu_extensions=0)) == FlowKeys(*CARRIER_UDP)


# ---- Any packet ----


def test_unknown_link_type() -> None:
    with pytest.raises(FilterError, match=r"link type 105; .*EN10MB, RAW, .*PPP"):
        dissect(b"", 105)


def test_any_buffer() -> None:
    frame = bytes.fromhex(f"{ETH_IP} {IP_TCP}")
    expected = FlowKeys(14, 0x0800, 34, 6, 54, 0, 0)
    with tempfile.TemporaryFile() as file:
        file.write(frame)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert dissect(mapped) == expected
    for buffer in (bytearray(frame), memoryview(frame), memoryview(b"x" + frame)[1:], array.array("H", frame)):
        assert dissect(buffer) == expected
    assert dissect(memoryview(bytes(b for byte in frame for b in (byte, 0)))[::2]) == expected


def check_any(data: bytes, linktype: int) -> None:
    """What holds for the keys of every packet."""
    found = walk(data, linktype)
    keys = found.keys
    assert 0 <= keys.depth < 4
    assert max(keys.nhoff, keys.thoff) <= len(data)
    assert keys.poff <= len(data) + 40
    assert keys.lhoff == NO or keys.lhoff + 14 <= len(data) or (keys.lhoff, linktype) == (0, EN10MB)
    assert keys.nproto in (0x0800, 0x86DD) or (keys.thoff, keys.tproto, keys.poff) == (0, 0, 0)
    assert keys.nproto >= 0x0600 or (keys.nproto, keys.nhoff) == (0, 0)
    assert found.outer == dissect(data, linktype, WalkSettings(max_levels=1))
    assert (keys == found.outer) == (keys.depth == 0)
    assert all(header.level <= keys.depth + 1 for header in found.headers)


@given(st.binary(max_size=200), st.sampled_from(packets.LINK_TYPES))
def test_any_bytes(data: bytes, linktype: int) -> None:
    check_any(data, linktype)


BEGINNINGS = sorted({bytes.fromhex(text) for linktype, text, _, _ in CASES.values() if linktype == EN10MB})


@given(st.sampled_from(BEGINNINGS), st.integers(0, 200), st.binary(max_size=100))
def test_any_bytes_behind_a_good_beginning(beginning: bytes, length: int, data: bytes) -> None:
    check_any(beginning[:length] + data, EN10MB)


@given(st.integers(0, 2**32), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4))
def test_any_damage(seed: int, damage: list[tuple[int, int]]) -> None:
    (packet,) = packets.packets(1, seed)
    data = bytearray(packet.data)
    for place, byte in damage:
        data[place % len(data)] = byte
    check_any(bytes(data), packet.linktype)
