"""What a filter with extension terms must say of a packet, worked out without the passes under test.

In:  a filter in which each extension term stands in braces, and a generated packet, whole or cut.
Out: the verdict by LANGUAGE.md.

The terms are taken out: each is worked out alone, from the keys that the generator knows by construction and the bytes
of the packet, and replaced by a standard expression of the same truth, `greater 0` or `not greater 0`. What is left is
libpcap's: it is compiled by libpcap, unoptimized, and run by libpcap's interpreter. So what libpcap does from left to
right is libpcap's own here too.

    vlan 10 and {inner tcp} and ip host 10.0.0.1
    "ip[2:2] = {poff} - 14" and tcp
    {outer udp port 4789} and not {encap vlan 10}

A relation with numbers of pcapext's stands in quotes, and the numbers in it in braces. The numbers are written out, as
`(len - len + 54)`: libpcap refuses to divide by a 0 that it sees, but here it is the packet that brings it. Where the packet
lacks the bytes of a number, the relation is replaced whole, by one that is false.

`inner E` is worked out twice on packets that are whole: by the rules here and by libpcap's own program for E, run on
the packet that is left without its outer headers. The two must agree wherever LANGUAGE.md does not differ from libpcap.
"""

from __future__ import annotations

import ctypes
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from random import Random

import packets
from bpf_oracles import libpcap, libpcap_run_packed, packed
from packets import Generated

from pcapext import bpf
from pcapext.bpf import Instruction
from pcapext.flowkeys import NO_ETHERNET, FlowKeys

# ---- libpcap, on its own ----


class _Program(ctypes.Structure):
    """`struct bpf_program`."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.POINTER(ctypes.c_uint64)))


libpcap.pcap_open_dead.restype = ctypes.c_void_p
libpcap.pcap_geterr.restype = ctypes.c_char_p
libpcap.pcap_geterr.argtypes = [ctypes.c_void_p]
libpcap.pcap_close.argtypes = [ctypes.c_void_p]
libpcap.pcap_compile.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32]

UNKNOWN_NETMASK = 0xFFFF_FFFF


class Refused(Exception):
    """libpcap does not take an expression; the message has its words."""


@lru_cache(maxsize=1 << 12)
def libpcap_compile(
    expression: str, linktype: int, optimize: bool = False, snaplen: int = 262144, netmask: int = UNKNOWN_NETMASK
) -> tuple[Instruction, ...]:
    """libpcap's program for an expression."""
    handle = libpcap.pcap_open_dead(linktype, snaplen)
    program = _Program()
    try:
        if libpcap.pcap_compile(handle, program, expression.encode(), optimize, netmask) != 0:
            raise Refused(libpcap.pcap_geterr(handle).decode())
        array = ctypes.string_at(program.instructions, 8 * program.length)
        libpcap.pcap_freecode(ctypes.byref(program))
    finally:
        libpcap.pcap_close(handle)
    return tuple(Instruction(*fields) for fields in struct.iter_unpack("=HBBI", array))


#: M[] begins as whatever the stack held in libpcap's interpreter, and `geneve or ip` reads what `geneve` may not have
#: written. In pcapext it begins as 0.
_ZEROS = tuple(Instruction(bpf.ST, k=slot) for slot in range(bpf.MEMORY_SLOTS))


@lru_cache(maxsize=1 << 16)
def _packed(expression: str, linktype: int, netmask: int) -> bytes:
    return packed(_ZEROS + libpcap_compile(expression, linktype, netmask=netmask))


def libpcap_matches(expression: str, data: bytes, linktype: int, wirelen: int | None = None, netmask: int = UNKNOWN_NETMASK) -> bool:
    """libpcap's verdict on a packet."""
    return libpcap_run_packed(_packed(expression, linktype, netmask), data, len(data) if wirelen is None else wirelen) != 0


#: The network's, for `ip broadcast`.
NETMASK = 0xFFFF_FF00


# ---- Packets ----


@dataclass(frozen=True)
class Packet:
    """A generated packet, cut to `length` bytes, of which only `captured` were kept."""

    made: Generated
    length: int
    captured: int

    @classmethod
    def whole(cls, made: Generated) -> Packet:
        return cls(made, len(made.data), len(made.data))

    def cut(self, length: int) -> Packet:
        """A packet that ended early on the wire."""
        return replace(self, length=length, captured=length)

    def snapped(self, captured: int) -> Packet:
        """A packet of which less was captured than there was."""
        return replace(self, captured=captured)

    @cached_property
    def data(self) -> bytes:
        return self.made.data[: self.captured]

    @cached_property
    def keys(self) -> FlowKeys:
        return self.made.keys_of(self.captured)

    @cached_property
    def outer(self) -> FlowKeys:
        """The keys of the outermost headers."""
        return self.made.outer_of(self.captured)

    @cached_property
    def headers(self) -> tuple[tuple[str, int | None], ...]:
        """What `encap` can name, each with its identifier."""
        return self.made.headers_of(self.captured)

    @property
    def linktype(self) -> int:
        return self.made.linktype

    def number(self, at: int, size: int) -> int | None:
        """`size` bytes from `at` on as a number, None where one of them is missing."""
        return int.from_bytes(self.data[at : at + size], "big") if at + size <= len(self.data) else None


# What filters name is there more often than the rest.
POOL4 = [socket.inet_aton(f"10.0.0.{host}") for host in (1, 1, 1, 1, 2, 2, 255)]
POOL4 += [socket.inet_aton(text) for text in ("10.1.2.3", "192.168.1.1", "224.0.0.5", "255.255.255.255")]
POOL6 = [socket.inet_pton(socket.AF_INET6, f"2001:db8::{host}") for host in (1, 1, 1, 2)]
POOL6 += [socket.inet_pton(socket.AF_INET6, text) for text in ("2001:db8:1::1", "ff02::1", "fe80::1")]
POOL_MAC = [bytes.fromhex(text) for text in ("020000000001", "020000000002", "ffffffffffff", "01005e000005", "333300000001")]
POOL_PORT = [80, 80, 443, 22, 50000]


def with_known_values(made: Generated, seed: int) -> Generated:
    """The packet with addresses, ports and identifiers that filters can name; its keys stay what they are.

    Its innermost and outermost headers get them; checksums are wrong then. Which ones it gets, `seed` alone decides.
    """
    random = Random(seed)
    data = bytearray(made.data)

    def put(at: int, value: bytes) -> None:
        if at + len(value) <= len(data):
            data[at : at + len(value)] = value

    for keys in (made.outer, made.keys):
        ip = keys.nhoff
        if keys.nproto == 0x0800:
            put(ip + 8, random.randbytes(1))
            put(ip + 12, random.choice(POOL4) + random.choice(POOL4))
        elif keys.nproto == 0x86DD:
            put(ip + 7, random.randbytes(1) + random.choice(POOL6) + random.choice(POOL6))
        elif keys.nproto in (0x0806, 0x8035):
            put(ip + 7, bytes([random.choice((1, 2, 3, 4))]))
            put(ip + 14, random.choice(POOL4))
            put(ip + 24, random.choice(POOL4))
        if keys.lhoff != NO_ETHERNET:
            put(keys.lhoff, random.choice(POOL_MAC) + random.choice(POOL_MAC[:2]))
        # Ports of UDP say what follows.
        if keys.thoff and keys.tproto in (6, 132) and random.random() < 0.5:
            put(keys.thoff, packets.u16(random.choice(POOL_PORT)) + packets.u16(random.choice(POOL_PORT)))
    passed = made.passed
    if made.linktype == packets.EN10MB and random.random() < 0.7:
        ethertype = data[12:14]
        first = 0
        if ethertype in (b"\x81\x00", b"\x88\xa8", b"\x91\x00"):
            first = 10
            put(14, packets.u16(first))
        elif ethertype in (b"\x88\x47", b"\x88\x48"):
            first = 1024
            put(14, packets.u32(first << 12 | int.from_bytes(data[14:18], "big") & 0xFFF))
        elif ethertype == b"\x88\x64":
            first = 7
            put(16, packets.u16(first))
        if first:
            passed = tuple((needed, name, first if needed == passed[0][0] else identifier) for needed, name, identifier in passed)
    made = replace(made, data=bytes(data), passed=passed)
    return with_protocol(made, random.choice(RARE)) if made.layers[-2:-1] in (("ip",), ("ip6",)) else made


#: IP protocols that libpcap has words for and the generator does not make: IGRP, PIM, VRRP.
RARE = (9, 103, 112)


def with_protocol(made: Generated, protocol: int) -> Generated:
    """The packet with another IP protocol right behind its innermost IP header, if it has the experimental one there."""
    if made.keys.tproto != packets.TRANSPORTS["experiment"]:
        return made
    data = bytearray(made.data)
    data[made.keys.nhoff + (9 if made.keys.nproto == 0x0800 else 6)] = protocol
    steps = tuple(
        (needed, replace(keys, tproto=protocol) if keys.tproto == made.keys.tproto and keys.nhoff == made.keys.nhoff else keys)
        for needed, keys in made.steps
    )
    return replace(made, data=bytes(data), steps=steps)


# ---- Terms ----

ETHERTYPES = {"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806, "rarp": 0x8035}
#: Protocol numbers (IANA), and the network protocol that libpcap's word is restricted to, if it is.
PROTOCOLS = {
    "icmp": (1, "ip"), "igmp": (2, "ip"), "tcp": (6, None), "igrp": (9, "ip"), "udp": (17, None), "esp": (50, None), "ah": (51, None),
    "icmp6": (58, "ip6"), "pim": (103, None), "vrrp": (112, "ip"), "carp": (112, "ip"), "sctp": (132, None),
}  # fmt: skip
#: Protocols by the names of /etc/protocols.
NAMED = {**{word: number for word, (number, _) in PROTOCOLS.items()}, "gre": 47, "udplite": 136, "dccp": 33, "ospf": 89, "ipv6-icmp": 58}
INDEX_NAMES = {"tcpflags": 13, "icmptype": 0, "icmp6type": 0}
SERVICES = {"http": 80, "https": 443, "ssh": 22, "domain": 53}
#: What the walk steps over, so that tproto is never one of them.
STEPPED_OVER = (0, 43, 44, 51, 60)

#: The standard words behind the extensions' own: "tcp dst port 80" as protocol, direction, kind, value.
TERM = re.compile(
    r"(?:(?P<protocol>ether|link|ip6|ip|arp|rarp|tcp|udp|sctp) )?"
    r"(?:(?P<direction>src or dst|src and dst|src|dst) )?"
    r"(?:(?P<kind>host|net|portrange|port|proto) )?(?P<value>\S+(?: mask \S+)?)"
)


class Term:
    """One extension term on one packet, by the words of LANGUAGE.md. `keys` are those of the headers that it is about."""

    def __init__(self, packet: Packet, netmask: int = UNKNOWN_NETMASK, keys: FlowKeys | None = None):
        self.packet = packet
        self.keys = packet.keys if keys is None else keys
        self.netmask = netmask

    @property
    def outer(self) -> Term:
        """The same for terms about the outermost headers."""
        return Term(self.packet, self.netmask, self.packet.outer)

    def holds(self, text: str) -> bool:
        """Whether the term holds: `inner ...`, `outer ...`, `tproto P`, `nproto P`, `encap`, `encap NAME`, `encap NAME ID`."""
        if text.startswith("outer "):
            return self.outer.holds(text.removeprefix("outer "))
        words = text.replace("\\", "").removeprefix("inner ").split()
        match words:
            case ["encap"]:
                return self.packet.keys.depth > 0
            case ["encap", name]:
                return any(name == word for word, _ in self.packet.headers)
            case ["encap", name, identifier]:
                return (name, int(identifier, 0)) in self.packet.headers
            case ["tproto", protocol]:
                return self.keys.tproto == (NAMED[protocol] if protocol in NAMED else int(protocol, 0))
            case ["nproto", protocol]:
                return self.keys.nproto == (ETHERTYPES[protocol] if protocol in ETHERTYPES else int(protocol, 0))
            case [*protocol, "multicast" | "broadcast" as cast]:
                return self.cast("ether" if protocol in ([], ["link"]) else protocol[0], cast)
            case [word] if word in ETHERTYPES:
                return self.keys.nproto == ETHERTYPES[word]
            case [word] if word in PROTOCOLS:
                number, network = PROTOCOLS[word]
                return self.carries(number, network)
        match = TERM.fullmatch(" ".join(words))
        assert match, text
        protocol, direction, kind, value = match.groups()
        protocol = "ether" if protocol == "link" else protocol
        if kind == "proto":
            return self.proto(protocol, value)
        if kind in ("port", "portrange"):
            return self.port(protocol, direction, value)
        if protocol == "ether":
            return self.ethernet(direction, bytes.fromhex(value.replace(":", "")))
        return self.network(protocol, direction, network_of(value))

    def carries(self, number: int, network: str | None) -> bool:
        """Whether the innermost network header, of the kind given or IPv4 or IPv6, carries a protocol."""
        if network is not None and self.keys.nproto != ETHERTYPES[network]:
            return False
        if number not in STEPPED_OVER:
            return self.keys.tproto == number and self.keys.nproto in (0x0800, 0x86DD)
        # As libpcap, which looks at the header's own field, and behind a fragment header that comes first.
        ip = self.keys.nhoff
        if self.keys.nproto == 0x0800:
            return self.packet.number(ip + 9, 1) == number
        first = self.packet.number(ip + 6, 1)
        return self.keys.nproto == 0x86DD and (first == number or (first == 44 and self.packet.number(ip + 40, 1) == number))

    def proto(self, protocol: str | None, value: str) -> bool:
        if protocol == "ether":
            return self.keys.nproto == (ETHERTYPES[value] if value in ETHERTYPES else int(value, 0))
        return self.carries(NAMED[value] if value in NAMED else int(value, 0), protocol)

    def cast(self, protocol: str, cast: str) -> bool:
        number, at = self.packet.number, self.keys.nhoff
        match protocol, cast:
            case "ether", "multicast":
                first = number(self.keys.lhoff, 1)
                return first is not None and first & 1 == 1
            case "ether", "broadcast":
                return self.ethernet("dst", b"\xff" * 6)
            case "ip", "multicast":
                return self.keys.nproto == 0x0800 and (number(at + 16, 1) or 0) >= 224
            case "ip6", "multicast":
                return self.keys.nproto == 0x86DD and number(at + 24, 1) == 255
            case "ip", "broadcast":
                hosts = ~self.netmask & 0xFFFF_FFFF
                address = number(at + 16, 4)
                return self.keys.nproto == 0x0800 and address is not None and address & hosts in (0, hosts)
        raise AssertionError((protocol, cast))

    def sides(self, direction: str | None, matches: Callable[[int], bool], source: int, destination: int) -> bool:
        """What a direction asks of the things at two places."""
        found = matches(source), matches(destination)
        return {"src": found[0], "dst": found[1], "src and dst": all(found)}.get(direction or "", any(found))

    def ethernet(self, direction: str | None, address: bytes) -> bool:
        frame = self.keys.lhoff
        return frame != NO_ETHERNET and self.sides(direction, lambda at: self.packet.data[at : at + 6] == address, frame + 6, frame)

    def network(self, protocol: str | None, direction: str | None, network: IPv4Network | IPv6Network) -> bool:
        places = {0x0800: ("ip", 12, 16), 0x0806: ("arp", 14, 24), 0x8035: ("rarp", 14, 24), 0x86DD: ("ip6", 8, 24)}
        if self.keys.nproto not in places:
            return False
        word, source, destination = places[self.keys.nproto]
        if protocol not in (None, word) or (word == "ip6") != (network.version == 6):
            return False

        # As much of an address as the mask asks for must be there, in words of 4 bytes; IPv4 has but one.
        size = max(4 * (network.version == 4), 4 * -(-network.prefixlen // 32))

        def matches(at: int) -> bool:
            place = self.keys.nhoff + at
            address = self.packet.data[place : place + size]
            return len(address) == size and int.from_bytes(address, "big") & mask == wanted

        mask, wanted = (int(number) >> network.max_prefixlen - 8 * size for number in (network.netmask, network.network_address))

        return self.sides(direction, matches, source, destination)

    def port(self, protocol: str | None, direction: str | None, value: str) -> bool:
        low, _, high = (str(SERVICES.get(value, value))).partition("-")

        def matches(at: int) -> bool:
            port = self.packet.number(at, 2)
            return port is not None and int(low) <= port <= int(high or low)

        wanted = [PROTOCOLS[word][0] for word in ([protocol] if protocol else ["tcp", "udp", "sctp"])]
        transport = self.keys.thoff
        return transport != 0 and self.keys.tproto in wanted and self.sides(direction, matches, transport, transport + 2)

    def number(self, text: str) -> int | None:
        """A flow key, or bytes of a header; None where they are missing."""
        scope = self.outer if text.startswith("outer ") else self
        words = text.removeprefix("inner ").removeprefix("outer ")
        if words in ("nhoff", "nproto", "thoff", "tproto", "poff", "depth"):
            value: int = getattr(scope.keys, words)
            return value
        match = re.fullmatch(r"(\w+)\[([^:]+)(?::([124]))?\]", words)
        assert match, text
        header, index, size = match.groups()
        base = scope.base(header)
        at = self.index(index)
        return None if base is None or at is None else self.packet.number(base + at, int(size or 1))

    def index(self, text: str) -> int | None:
        """A small sum: numbers, flow keys and bytes with `+`, `-`, `*`, `&` between, from left to right."""
        total: int | None = None
        operator = "+"
        for part in re.findall(r"[-+*&]|(?:inner |outer )?\w+\[[^]]*\]|\w+", text):
            if part in "+-*&":
                operator = part
                continue
            value = int(part, 0) if part[0].isdigit() else INDEX_NAMES[part] if part in INDEX_NAMES else self.number(part)
            if value is None:
                return None
            before = total or 0
            total = {"+": before + value, "-": before - value, "*": before * value, "&": before & value}[operator] & 0xFFFF_FFFF
        return total

    def base(self, header: str) -> int | None:
        """Where a header begins, None where the innermost one is another."""
        keys = self.keys
        if header == "payload":
            return keys.poff or None
        if header in ("ether", "link"):
            return None if keys.lhoff == NO_ETHERNET else keys.lhoff
        if header in ETHERTYPES:
            return keys.nhoff if keys.nproto == ETHERTYPES[header] else None
        number, network = PROTOCOLS[header]
        return keys.thoff or None if keys.tproto == number and (network is None or keys.nproto == ETHERTYPES[network]) else None


def network_of(value: str) -> IPv4Network | IPv6Network:
    """A network, or a host as the network that it is alone in. Parts that are not written are 0."""
    address, _, mask = value.partition(" mask ")
    address, _, prefix = address.partition("/")
    if ":" in address:
        return ip_network(f"{address}/{prefix or 128}")
    parts = address.split(".")
    whole = ".".join(parts + ["0"] * (4 - len(parts)))
    return ip_network(f"{whole}/{mask or prefix or 8 * len(parts)}")


# ---- Filters ----

_TERM = re.compile(r'"(?P<relation>[^"]*)"|\{(?P<term>[^}]*)\}')
_NUMBER = re.compile(r"\{([^}]*)\}")
TRUE, FALSE = "greater 0", "not greater 0"


def text_of(template: str) -> str:
    """The filter as a user writes it."""
    return re.sub('[{}"]', "", template)


def expected(template: str, packet: Packet, netmask: int = UNKNOWN_NETMASK) -> bool:
    """The verdict that a filter must have on a packet."""
    term = Term(packet, netmask)

    def replacement(match: re.Match[str]) -> str:
        if match["term"] is not None:
            return TRUE if term.holds(match["term"]) else FALSE
        numbers = [term.number(text) for text in _NUMBER.findall(match["relation"])]
        if None in numbers:
            return FALSE
        left = iter(numbers)
        return _NUMBER.sub(lambda _: f"(len - len + {next(left)})", match["relation"])

    plain = _TERM.sub(replacement, template)
    return libpcap_matches(plain, packet.data, packet.linktype, packet.length, netmask)


#: A load past the end of every packet, which rejects it.
REJECTING = "link[100000] = 0"


def is_decided(template: str, packet: Packet, netmask: int = UNKNOWN_NETMASK) -> bool:
    """Whether a filter, read from left to right, has a verdict on a packet before any of its extension terms is asked.

    Where it has not, the filter and its opposite both reject, with terms that do so wherever they are asked. A packet that a standard
    term rejects by its end counts as undecided.
    """
    plain = _TERM.sub(REJECTING, template)
    return any(libpcap_matches(text, packet.data, packet.linktype, packet.length, netmask) for text in (plain, f"not ({plain})"))


#: Extension headers, behind which libpcap does not look for a transport protocol, and terms that do not ask for one.
EXTENSION_HEADERS = {"fragment", "ah", "routing", "options"}
NO_TRANSPORT = re.compile(r"inner (ip|ip6|arp|rarp)|inner [^[]*(host|net|ether|cast|[.:])[^[]*|inner (ah|[^[]*proto (0|43|44|51|60))")
NO_TRANSPORT_RELATION = re.compile(r"inner (ip|ip6|arp|rarp|icmp6)\[")


def without_outer_headers(packet: Packet, text: str) -> bool | None:
    """libpcap's verdict on the packet that is left without its outer headers, which `inner E` must have.

    None where LANGUAGE.md differs from libpcap, and for a packet that ends early.
    """
    layers = packet.made.layers
    if packet.captured < len(packet.made.data) or packet.made.odd:
        return None
    last = max((place for place, layer in enumerate(layers) if layer in ("ip", "ip6")), default=0)
    plain = EXTENSION_HEADERS.isdisjoint(layers[last:])
    if "[" in text:
        # libpcap has tcp[...], udp[...] and so on in IPv4 alone.
        if not plain or (packet.keys.nproto != 0x0800 and not NO_TRANSPORT_RELATION.match(text)):
            return None
    elif not plain and not NO_TRANSPORT.fullmatch(text):
        return None
    data, linktype = packet.made.decapsulated
    standard = re.sub("^inner (?=[0-9])", "host ", text).replace("inner ", "")
    try:
        return libpcap_matches(standard, data, linktype, netmask=NETMASK)
    except Refused:
        assert linktype != packets.EN10MB  # It is about Ethernet, and the packet is in none.
        return False
