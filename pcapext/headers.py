"""The headers that a scoped term can name: where each one begins, by flow keys, and what makes it that header.

In:  nothing.
Out: one table, `HEADERS`, by libpcap's word for the header.

`inner tcp` is a row's condition, `inner tcp[13]` a byte from the row's base on where the condition holds. Two rows are
no words of the language for a protocol: `transport`, the transport header whatever it is, and `payload`.
"""

from __future__ import annotations

from pcapext.flowkeys import NO_ETHERNET
from pcapext.slotted import dataclass

ETHERTYPE_IP = 0x0800
ETHERTYPE_ARP = 0x0806
ETHERTYPE_RARP = 0x8035
ETHERTYPE_IP6 = 0x86DD


@dataclass(frozen=True, slots=True)
class Header:
    """A row: the key that is the header's offset, and the EtherType and IP protocol that it must have, if any."""

    base: str
    ethertype: int | None = None
    protocol: int | None = None
    indexable: bool = True


# The restrictions to IPv4 or IPv6 are those of libpcap (gencode.c, gen_proto_abbrev_internal), which has no `ah[...]`
# and no `esp[...]` (gen_load_internal). The numbers are IANA's.
HEADERS = {
    "ether": Header("lhoff"),
    "ip": Header("nhoff", ETHERTYPE_IP),
    "ip6": Header("nhoff", ETHERTYPE_IP6),
    "arp": Header("nhoff", ETHERTYPE_ARP),
    "rarp": Header("nhoff", ETHERTYPE_RARP),
    "icmp": Header("thoff", ETHERTYPE_IP, 1),
    "igmp": Header("thoff", ETHERTYPE_IP, 2),
    "tcp": Header("thoff", protocol=6),
    "igrp": Header("thoff", ETHERTYPE_IP, 9),
    "udp": Header("thoff", protocol=17),
    "esp": Header("thoff", protocol=50, indexable=False),
    "ah": Header("thoff", protocol=51, indexable=False),
    "icmp6": Header("thoff", ETHERTYPE_IP6, 58),
    "pim": Header("thoff", protocol=103),
    "vrrp": Header("thoff", ETHERTYPE_IP, 112),
    "carp": Header("thoff", ETHERTYPE_IP, 112),
    "sctp": Header("thoff", protocol=132),
    "transport": Header("thoff"),
    "payload": Header("poff"),
}

#: The value of a base key that says that there is no such header. `nhoff` has none: offset 0 is a place.
ABSENT = {"lhoff": NO_ETHERNET, "thoff": 0, "poff": 0}

#: IP protocols that the walk steps over, so that `tproto` is one of them only where the walk ends on it: hop-by-hop options,
#: routing, fragment and destination options headers (RFC 8200 section 4) and AH (RFC 4302).
STEPPED_OVER = frozenset({0, 43, 44, 51, 60})

#: IP protocols whose header begins with a source and a destination port, of those that `port` is about.
WITH_PORTS = (6, 17, 132)
