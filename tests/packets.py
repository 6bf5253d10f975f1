"""Makes packets of every nesting, with the flow keys they must have.

In:  a seed.
Out: `Generated`: bytes that other tools parse too (lengths and checksums are right), and what a walk must find in them.

The builder goes from the outside in and notes what each header says about the keys, and how long the packet must be for that to be
known. So the keys are right by construction, for the whole packet and for every cut of it. It shares nothing with the walk but the
type of the keys: every number here is written down once more, from the standards.

`odd` packets hold what ends a walk early: more headers than the bounds, nesting below level 4, wrong versions, missing flags.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from pcapext.flowkeys import NO_ETHERNET, FlowKeys

EN10MB, RAW, IPV4, IPV6, LINUX_SLL, LINUX_SLL2, NULL, LOOP, PPP = 1, 12, 228, 229, 113, 276, 0, 108, 9
LINK_TYPES = (EN10MB, RAW, IPV4, IPV6, LINUX_SLL, LINUX_SLL2, NULL, LOOP, PPP)

MAX_LEVELS, MAX_TAGS, MAX_LABELS, MAX_EXTENSIONS, MAX_GTPU_EXTENSIONS = 4, 3, 6, 4, 2


@dataclass(frozen=True, slots=True)
class Generated:
    """A packet and what it is.

    `steps`: what a walk knows from which length on, as pairs in rising order. `passed`: names for `encap`, with identifiers, each
    with the length from which on a walk goes through that header. `layers`: what it was built from, `places`: where each of these
    begins. `decapsulated`: the packet that is left without its outer headers, as an Ethernet frame if it stands in one, else as
    bare IP, else behind a LINUX_SLL header.
    """

    data: bytes
    linktype: int
    steps: tuple[tuple[int, FlowKeys], ...]
    passed: tuple[tuple[int, str, int | None], ...]
    layers: tuple[str, ...]
    places: tuple[int, ...]
    odd: bool

    @property
    def keys(self) -> FlowKeys:
        return self.steps[-1][1]

    @property
    def outer(self) -> FlowKeys:
        """The keys of the outermost headers."""
        return self.outer_of(len(self.data))

    @property
    def headers(self) -> tuple[tuple[str, int | None], ...]:
        return self.headers_of(len(self.data))

    def keys_of(self, length: int) -> FlowKeys:
        """The keys of the packet cut to `length` bytes."""
        return next(keys for needed, keys in reversed(self.steps) if needed <= length)

    def outer_of(self, length: int) -> FlowKeys:
        """The keys of the outermost headers of the packet cut to `length` bytes."""
        return next(keys for needed, keys in reversed(self.steps) if needed <= length and keys.depth == 0)

    def headers_of(self, length: int) -> tuple[tuple[str, int | None], ...]:
        """What a walk goes through in the packet cut to `length` bytes."""
        return tuple((name, identifier) for needed, name, identifier in self.passed if needed <= length)

    def cuts(self) -> list[int]:
        """Lengths around each place where something changes, and a few between."""
        places = {needed for needed, *_ in (*self.steps, *self.passed)}
        near = {needed + more for needed in places for more in (-1, 0, 1)} | set(range(0, len(self.data), 7))
        return sorted(length for length in near if 0 <= length <= len(self.data))

    @property
    def decapsulated(self) -> tuple[bytes, int]:
        """The innermost packet and its link type."""
        keys = self.keys
        if keys.lhoff != NO_ETHERNET:
            addresses = self.data[keys.lhoff : keys.lhoff + 12]
            if keys.nproto == 0:
                return self.data[keys.lhoff :], EN10MB
            return addresses + u16(keys.nproto) + self.data[keys.nhoff :], EN10MB
        if keys.nproto == 0x0800:
            return self.data[keys.nhoff :], IPV4
        if keys.nproto == 0x86DD:
            return self.data[keys.nhoff :], IPV6
        return bytes(14) + u16(keys.nproto) + self.data[keys.nhoff :], LINUX_SLL


def truncations(data: bytes) -> Iterator[bytes]:
    """Every proper beginning of `data`, the empty one first."""
    for length in range(len(data)):
        yield data[:length]


def packets(count: int, seed: int = 0, *, odd: bool = True, linktypes: Sequence[int] = LINK_TYPES) -> Iterator[Generated]:
    """`count` packets, the same ones for the same arguments. Without `odd`, none that ends a walk early."""
    random = Random(seed)
    for _ in range(count):
        yield _Builder(random, odd).packet(random.choice(linktypes))


# ---- Bytes ----


def u8(number: int) -> bytes:
    return struct.pack("!B", number)


def u16(number: int) -> bytes:
    return struct.pack("!H", number)


def u32(number: int) -> bytes:
    return struct.pack("!I", number)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def with_checksum(data: bytes, at: int, before: bytes = b"") -> bytes:
    """`data` with the checksum of `before` and itself in place at `at`."""
    return data[:at] + u16(checksum(before + data) or 0xFFFF) + data[at + 2 :]


#: Makes a header around its payload; the second argument is the EtherType of the payload.
Build = Callable[[bytes, int], bytes]

PPP_NUMBERS = {0x0800: 0x0021, 0x86DD: 0x0057, 0x8847: 0x0281}
NEXT_PROTOCOLS = {0x0800: 1, 0x86DD: 2, 0x6558: 3, 0x894F: 4, 0x8847: 5}
#: The EtherType that stands for an 802.3 frame: its field is the length.
LENGTH = -1

TRANSPORTS = {
    "tcp": 6,
    "udp": 17,
    "udplite": 136,
    "sctp": 132,
    "dccp": 33,
    "icmp": 1,
    "icmp6": 58,
    "igmp": 2,
    "esp": 50,
    "ospf": 89,
    "none": 59,
    "experiment": 253,
}
TUNNELS = {"4": 4, "6": 41, "gre": 47, "etherip": 97, "ethernet": 143, "mpls": 137}
UDP_TUNNELS = {
    "vxlan": (4789, 8472),
    "vxlan-gpe": (4790,),
    "geneve": (6081,),
    "gtpu": (2152,),
    "mpls": (6635,),
    "gre": (4754,),
    "teredo": (3544,),
}
TUNNEL_PORTS = [port for ports in UDP_TUNNELS.values() for port in ports]

HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60


class _Builder:
    """One packet in the making.

    `layers` are headers yet without payload: name, EtherType if it has one, what makes it. `base` holds what the level began with.
    `ended`: the walk does not come here any more, so nothing is noted.
    """

    def __init__(self, random: Random, odd: bool):
        self.random = random
        self.odd = odd
        self.ended = False
        self.level = 1
        self.tags = 0
        self.offset = 0
        self.base = FlowKeys()
        self.keys = FlowKeys()
        self.steps: list[tuple[int, FlowKeys]] = []
        self.passed: list[tuple[int, str, int | None]] = []
        self.entered: list[tuple[str, int | None]] = []
        self.layers: list[tuple[str, int, Build]] = []
        self.places: list[int] = []

    # ---- What is noted ----

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def oddly(self, probability: float = 0.06) -> bool:
        """Whether something is to end the walk, which only odd packets have."""
        return self.odd and self.chance(probability)

    def note(self, needed: int, keys: FlowKeys) -> None:
        """From `needed` bytes on, the keys are these."""
        if not self.ended:
            self.keys = keys
            self.steps.append((needed, keys))
            self.passed += [(needed, *header) for header in self.entered]
            self.entered.clear()

    def network(self, ethertype: int, more: int = 0) -> None:
        """What stands at the offset reached is of this EtherType. `more` bytes of it must be there to know."""
        self.note(self.offset + more, replace(self.base, nproto=ethertype, nhoff=self.offset))

    def more(self, needed: int, **changes: int) -> None:
        self.note(needed, replace(self.keys, **changes))

    def end(self) -> None:
        """The walk ends here, whatever follows."""
        self.ended = True

    def label(self, name: str, identifier: int, length: int) -> None:
        """A header of `length` bytes comes that the walk goes through as soon as it is complete."""
        if not self.ended:
            self.passed.append((self.offset + length, name, identifier))

    def encap(self, name: str, identifier: int | None = None) -> None:
        """A tunnel header comes; the walk goes through it where it finds what the next level begins with."""
        if not self.ended:
            self.entered.append((name, identifier))

    def tunnel(self, enterable: bool = True) -> None:
        """A tunnel header comes, and with it the next level."""
        if self.level == MAX_LEVELS or not enterable:
            self.end()
        self.level += 1
        self.tags = 0
        self.base = FlowKeys(depth=self.level - 1)

    @property
    def deep(self) -> bool:
        """No more tunnels: they would end the walk, or did."""
        return self.level >= MAX_LEVELS + self.odd

    def layer(self, name: str, length: int, build: Build, ethertype: int = 0) -> None:
        self.layers.append((name, ethertype, build))
        self.places.append(self.offset)
        self.offset += length

    def header(self, name: str, data: bytes, ethertype: int = 0) -> None:
        """A header that does not depend on what follows."""
        self.layer(name, len(data), lambda payload, _: data + payload, ethertype)

    def data(self, at_least: int = 0) -> None:
        self.header("data", bytes(self.random.choices(b"abcdefghijklmnopqrstuvwxyz", k=at_least + self.random.randrange(24))))

    # ---- The whole ----

    def packet(self, linktype: int) -> Generated:
        if linktype == EN10MB:
            self.note(0, FlowKeys(lhoff=0))
            self.ethernet()
        else:
            self.note(0, FlowKeys())
            self.link_layer(linktype)
        data, ethertype = b"", 0
        for _, own, build in reversed(self.layers):
            data = build(data, len(data) if ethertype == LENGTH else ethertype)
            ethertype = own
        names = tuple(name for name, _, _ in self.layers)
        return Generated(data, linktype, tuple(self.steps), tuple(self.passed), names, tuple(self.places), self.ended)

    def link_layer(self, linktype: int) -> None:
        if linktype == RAW:
            self.ip(more=1)
        elif linktype == IPV4:
            self.ip(4)
        elif linktype == IPV6:
            self.ip(6)
        elif linktype == LINUX_SLL:
            head = u16(0) + u16(1) + u16(6) + self.mac() + bytes(2)
            self.layer("sll", 16, lambda payload, ethertype: head + u16(ethertype) + payload)
            self.by_ethertype()
        elif linktype == LINUX_SLL2:
            tail = bytes(2) + u32(2) + u16(1) + u8(0) + u8(6) + self.mac() + bytes(2)
            self.layer("sll2", 20, lambda payload, ethertype: u16(ethertype) + tail + payload)
            self.by_ethertype()
        elif linktype == PPP:
            self.layer("ppp", 4, lambda payload, ethertype: b"\xff\x03" + u16(PPP_NUMBERS.get(ethertype, ethertype)) + payload)
            self.by_ppp()
        else:
            families = {0x0800: 2, 0x86DD: self.random.choice((10, 24, 28, 30))}
            form = "!I" if linktype == LOOP else self.random.choice(("<I", ">I"))
            self.layer("loopback", 4, lambda payload, ethertype: struct.pack(form, families[ethertype]) + payload)
            self.ip()

    # ---- Below IP ----

    def mac(self) -> bytes:
        # Nobody's vendor prefix, neither at its beginning nor where tshark looks for one behind a control word.
        return b"\x02" + self.random.randbytes(1) + b"\x06" + self.random.randbytes(3)

    def ethernet(self) -> None:
        addresses = self.mac() + self.mac()
        self.base = replace(self.base, lhoff=self.offset)
        self.layer("eth", 14, lambda payload, ethertype: addresses + u16(ethertype) + payload, 0x6558)
        self.by_ethertype(in_frame=True)

    def by_ethertype(self, in_frame: bool = False) -> None:
        """What stands behind an EtherType."""
        kinds = ["ip"] * 12 + ["mpls"] * 2 + ["pppoe", "arp", "other"]
        if in_frame:
            kinds.append("802.3")
        if self.tags < MAX_TAGS + self.odd:
            kinds += ["vlan"] * 6
        if not self.deep:
            # Right behind GRE and Geneve, an Ethernet frame belongs to their own tunnel.
            kinds += ["nsh", "transparent"] if in_frame else ["nsh"]
        kind = self.random.choice(kinds)
        if kind == "ip":
            self.ip()
        elif kind == "vlan":
            self.vlan(in_frame)
        elif kind == "mpls":
            self.mpls(self.random.choice((0x8847, 0x8847, 0x8848)))
        elif kind == "pppoe":
            self.pppoe()
        elif kind == "nsh":
            self.nsh()
        elif kind == "transparent":
            self.network(0x6558)
            self.tunnel()
            self.ethernet()
        elif kind == "arp":
            name, ethertype, operation = self.random.choice((("arp", 0x0806, 1), ("rarp", 0x8035, 3)))
            self.network(ethertype)
            addresses = self.mac() + self.random.randbytes(4) + self.mac() + self.random.randbytes(4)
            self.header(name, u16(1) + u16(0x0800) + b"\6\4" + u16(operation) + addresses, ethertype)
        elif kind == "other":
            self.network(0x88CC)
            self.header("lldp", b"\x02\x07\x04" + self.mac() + b"\x04\x02\x07x\x06\x02\0\x78\0\0", 0x88CC)
        else:
            self.note(self.offset, self.base)
            self.header("802.3", b"\x42\x42\x03" + bytes(35), LENGTH)

    def vlan(self, in_frame: bool) -> None:
        tpid, tag = self.random.choice((0x8100, 0x8100, 0x88A8, 0x9100)), self.random.randrange(1 << 16)
        self.network(tpid)
        self.tags += 1
        if self.tags > MAX_TAGS:
            self.end()
        if tpid == 0x88A8:
            self.label("qinq", tag & 0x0FFF, 4)
        self.label("vlan", tag & 0x0FFF, 4)
        self.layer("vlan", 4, lambda payload, ethertype: u16(tag) + u16(ethertype) + payload, tpid)
        self.by_ethertype(in_frame)

    def mpls(self, ethertype: int = 0x8847) -> None:
        labels = self.random.randrange(1, 4) if not self.oddly() else self.random.randrange(5, 9)
        for number in range(1, labels + 1):
            self.network(0x8847)
            if number > MAX_LABELS:
                self.end()
            label = self.random.randrange(16, 1 << 20)
            self.label("mpls", label, 4)
            self.header("mpls", u32(label << 12 | (number == labels) << 8 | 64), ethertype)
        if self.chance(0.3) and not self.deep:
            self.tunnel()
            self.header("control word", bytes(4))
            self.ethernet()
        elif self.oddly():
            self.end()
            self.header("channel", b"\x10\0\0\x07")
        else:
            self.ip(more=1)

    def pppoe(self) -> None:
        session = self.random.randrange(1 << 16)
        self.network(0x8864)
        self.label("pppoe", session, 8)
        head = b"\x11\0" + u16(session)
        self.layer(
            "pppoe",
            8,
            lambda payload, ethertype: head + u16(len(payload) + 2) + u16(PPP_NUMBERS.get(ethertype, ethertype)) + payload,
            0x8864,
        )
        self.by_ppp()

    def by_ppp(self) -> None:
        kind = self.random.choice(("ip", "ip", "ip", "mpls", "lcp"))
        if kind == "ip":
            self.ip()
        elif kind == "mpls":
            self.mpls()
        else:
            self.header("lcp", b"\x09\x01\0\x08" + self.random.randbytes(4), 0xC021)

    def nsh(self) -> None:
        self.network(0x894F)
        unknown = self.oddly()
        self.tunnel(not unknown)
        self.encap("nsh")
        path = self.random.randbytes(4)
        if self.chance(0.5):
            kind, metadata = 1, self.random.randbytes(16)
        else:
            words = self.random.randrange(4)
            kind, metadata = 2, u16(0x0100) + u8(3) + u8(4 * words) + self.random.randbytes(4 * words) if words else b""
        words = 2 + len(metadata) // 4

        def build(payload: bytes, ethertype: int) -> bytes:
            return u16(0x0FC0 | words) + u8(kind) + u8(9 if unknown else NEXT_PROTOCOLS[ethertype]) + path + metadata + payload

        self.layer("nsh", 4 * words, build, 0x894F)
        self.by_next_protocol()

    def by_next_protocol(self) -> None:
        """What stands behind NSH and VXLAN-GPE."""
        kind = self.random.choice(("ip", "ip", "eth", "eth", "mpls", "nsh"))
        if kind == "eth":
            self.ethernet()
        elif kind == "mpls":
            self.mpls()
        elif kind == "nsh" and not self.deep:
            self.nsh()
        else:
            self.ip()

    # ---- IP ----

    def ip(self, version: int = 0, more: int = 0) -> None:
        version = version or self.random.choice((4, 6))
        self.network(0x0800 if version == 4 else 0x86DD, more)
        name = self.transport_name(version)
        final = TRANSPORTS.get(name) or TUNNELS.get(name) or 17
        extensions = self.extensions(version)
        protocols = [*extensions, final]
        later = self.ipv4(protocols[0]) if version == 4 else self.ipv6(protocols[0])
        for number, (protocol, following) in enumerate(zip(extensions, protocols[1:], strict=True)):
            if later:
                break
            if number == MAX_EXTENSIONS:
                self.more(self.offset, thoff=self.offset, poff=self.offset)
                self.end()
            self.more(self.offset + (12 if protocol == AH else 8), tproto=following)
            later = self.extension(protocol, following, version)
        if later:
            self.more(self.offset, poff=self.offset)
            self.data()
            return
        self.more(self.offset, thoff=self.offset)
        self.transport(name)

    def transport_name(self, version: int) -> str:
        if not self.deep and self.chance(0.62):
            return self.random.choice([*TUNNELS, *sorted(UDP_TUNNELS.keys() - TUNNELS.keys()), "udp/mpls", "udp/gre"])
        return self.random.choice([*TRANSPORTS, "tcp", "tcp", "tcp", "udp", "udp"])

    def extensions(self, version: int) -> list[int]:
        if version == 4:
            return [AH] * (1 if self.chance(0.08) else 0)
        if self.chance(0.6):
            return []
        if self.oddly(0.1):
            return self.random.choices((ROUTING, DESTINATION, AH, FRAGMENT), k=self.random.randrange(3, 7))
        chain = [number for number in (HOP_BY_HOP, DESTINATION, ROUTING, FRAGMENT, AH, DESTINATION) if self.chance(0.4)]
        return chain[:MAX_EXTENSIONS]

    def fragment(self) -> tuple[int, bool]:
        """Fragment offset and whether more follow; offset 0 with none more is a whole packet."""
        return self.random.choices(((0, False), (0, True), (self.random.randrange(1, 1 << 13), self.chance(0.5))), (6, 1, 1))[0]

    def ipv4(self, protocol: int) -> bool:
        options = b"\x94\x04\0\0" * self.random.randrange(1, 11) if self.chance(0.15) else b""
        offset, more = self.fragment() if self.chance(0.4) else (0, False)
        source, destination = self.random.randbytes(4), self.random.randbytes(4)
        self.pseudo = source + destination
        start, length = self.offset, 20 + len(options)
        self.more(start + 20, tproto=protocol)
        middle = self.random.randbytes(2) + u16(more << 13 | offset) + u8(64) + u8(protocol) + bytes(2) + source + destination + options

        def build(payload: bytes, _: int) -> bytes:
            return with_checksum(u8(0x40 | length // 4) + u8(0) + u16(length + len(payload)) + middle, 10) + payload

        self.layer("ip", length, build, 0x0800)
        return offset != 0

    def ipv6(self, protocol: int) -> bool:
        source, destination = b"\x20\x01" + self.random.randbytes(14), b"\x20\x01" + self.random.randbytes(14)
        self.pseudo = source + destination
        self.more(self.offset + 40, tproto=protocol)
        tail = u8(protocol) + u8(64) + source + destination
        self.layer("ip6", 40, lambda payload, _: u32(0x60000000) + u16(len(payload)) + tail + payload, 0x86DD)
        return False

    def extension(self, protocol: int, following: int, version: int) -> bool:
        """Adds an extension header; says whether it makes the packet a later fragment."""
        if protocol == FRAGMENT:
            offset, more = self.fragment()
            self.header("fragment", u8(following) + u8(0) + u16(offset << 3 | more) + self.random.randbytes(4))
            return offset != 0
        if protocol == AH:
            icv = self.random.randbytes(self.random.choice((12, 20) if version == 6 else (0, 4, 12)))
            self.header("ah", u8(following) + u8(1 + len(icv) // 4) + bytes(2) + self.random.randbytes(8) + icv)
        elif protocol == ROUTING:
            segments = self.random.randrange(1, 3)
            self.header("routing", u8(following) + u8(2 * segments) + b"\x04\0" + u8(segments - 1) + bytes(3) + self.pseudo[16:] * segments)
        else:
            words = self.random.randrange(4)
            self.header("options", u8(following) + u8(words) + b"\x01" + u8(8 * words + 4) + bytes(8 * words + 4))
        return False

    # ---- Transport ----

    def transport(self, name: str) -> None:
        start = self.offset
        fixed = {"tcp": 20, "udp": 8, "udplite": 8, "sctp": 12, "dccp": 12, "icmp": 8, "icmp6": 8, "igmp": 8}
        if name in TRANSPORTS and name != "tcp":
            self.more(start + fixed.get(name, 0), poff=start + fixed.get(name, 0))
        elif name in TUNNELS:
            self.more(start, poff=start)
        if name == "tcp":
            self.tcp()
        elif name in ("udp", "udplite"):
            source = self.random.choice(TUNNEL_PORTS) if self.oddly() else self.port()
            self.udp(TRANSPORTS[name], source, self.random.choice((53, 443, self.port())))
            self.data()
        elif name == "sctp":
            ports = u16(self.port()) + u16(self.random.choice((80, 36412, self.port())))
            self.header("sctp", ports + self.random.randbytes(4) + bytes(4) + b"\x04\0\0\x08\0\x01\0\x04")
        elif name == "dccp":
            # A Request: the generic header with a long sequence number, the service code.
            self.header(
                "dccp", u16(self.port()) + u16(self.port()) + b"\x05\0\0\0\x01\0" + self.random.randbytes(6) + self.random.randbytes(4)
            )
        elif name in ("icmp", "icmp6"):
            self.icmp(TRANSPORTS[name])
        elif name == "igmp":
            self.header("igmp", with_checksum(b"\x16\0\0\0" + b"\xe0" + self.random.randbytes(3), 2))
        elif name == "esp":
            self.header("esp", self.random.randbytes(8 + 4 * self.random.randrange(4, 8)))
        elif name == "ospf":
            self.header("ospf", with_checksum(b"\x02\x01\0\x2c" + self.random.randbytes(4) + bytes(36), 12))
        elif name in TUNNELS:
            self.ip_tunnel(name)
        elif name not in TRANSPORTS:
            self.udp_tunnel(name.removeprefix("udp/"))
        else:
            self.data()

    def port(self) -> int:
        return self.random.randrange(49152, 65536)

    def sum_behind_ip(self, name: str, length: int, protocol: int, at: int, build: Build) -> None:
        """A layer with a checksum over itself, its payload and the addresses of its IP header."""
        pseudo = self.pseudo

        def summed(payload: bytes, ethertype: int) -> bytes:
            data = build(payload, ethertype)
            return with_checksum(data, at, pseudo + u32(len(data)) + u32(protocol))

        self.layer(name, length, summed)

    def tcp(self) -> None:
        start = self.offset
        options = b"\x01" * 4 * self.random.randrange(1, 11) if self.chance(0.3) else b""
        claimed = self.random.randrange(5) if self.oddly() else 5 + len(options) // 4
        self.more(start + 20, poff=start + max(20, 4 * claimed))
        ports = [self.port(), self.random.choice((80, 443, 22, self.port()))]
        if self.chance(0.3):
            ports.reverse()
        head = u16(ports[0]) + u16(ports[1]) + self.random.randbytes(8) + u8(claimed << 4)
        head += u8(self.random.choice((2, 16, 18, 24))) + u16(8192) + bytes(4) + options
        self.sum_behind_ip("tcp", len(head), 6, 16, lambda payload, _: head + payload)
        self.data()

    def udp(self, protocol: int, source: int, destination: int) -> None:
        ports = u16(source) + u16(destination)
        self.sum_behind_ip(
            "udp" if protocol == 17 else "udplite", 8, protocol, 6, lambda payload, _: ports + u16(8 + len(payload)) + bytes(2) + payload
        )

    def icmp(self, protocol: int) -> None:
        if self.chance(0.3):  # An error, which quotes IPv4 in IPv4 in UDP to a VXLAN port: it encapsulates nothing.
            body = b"\3\3" if protocol == 1 else b"\1\4"
            body += bytes(6) + bytes.fromhex(
                "45000030000000004004000001020304050607084500001c00000000401100000a0000010a000002c35012b500080000"
            )
        else:
            body = (b"\x08\0" if protocol == 1 else b"\x80\0") + bytes(2) + self.random.randbytes(4) + b"ping"
        if protocol == 58:
            self.sum_behind_ip("icmp6", len(body), protocol, 2, lambda payload, _: body)
        else:
            self.header("icmp", with_checksum(body, 2))

    # ---- Tunnels ----

    def ip_tunnel(self, name: str) -> None:
        over = len(self.pseudo)
        if name == "gre":
            return self.gre()
        self.tunnel()
        if name in ("4", "6"):
            self.encap({("4", 8): "ipip", ("6", 8): "6in4", ("4", 32): "4in6", ("6", 32): "6in6"}[name, over])
            self.ip(int(name))
        elif name == "etherip":
            self.encap("etherip")
            self.header("etherip", b"\x30\0")
            self.ethernet()
        elif name == "ethernet":
            self.ethernet()
        else:
            self.mpls()
        return None

    def gre(self) -> None:
        content = self.random.choice(("ethertype", "ethertype", "ethernet", "nvgre", "erspan-1", "erspan-2", "erspan-3", "nhrp"))
        summed, keyed, numbered = self.chance(0.4), self.chance(0.5), self.chance(0.4)
        if content in ("erspan-1", "erspan-2"):
            numbered = content == "erspan-2"
        elif content == "nvgre":
            summed, keyed, numbered = False, True, False
        flags = summed << 15 | keyed << 13 | numbered << 12
        if self.oddly():
            flags |= self.random.choice((0x4000, 0x0001, 0x0007))
        frame_type = 2 if self.oddly() else 0
        self.tunnel(flags & 0x4007 == 0 and not (content == "erspan-3" and frame_type))
        key = self.random.randbytes(4) if keyed else b""
        identifier = int.from_bytes(key, "big")
        self.encap("gre", identifier if keyed else None)
        number = self.random.randbytes(4) if numbered else b""
        known = {"ethernet": 0x6558, "nvgre": 0x6558, "erspan-1": 0x88BE, "erspan-2": 0x88BE, "erspan-3": 0x22EB, "nhrp": 0x2001}

        def build(payload: bytes, ethertype: int) -> bytes:
            data = u16(flags) + u16(known.get(content, ethertype)) + (bytes(4) if summed else b"") + key + number + payload
            return with_checksum(data, 4) if summed else data

        self.layer("gre", 4 + 4 * (summed + keyed + numbered), build)
        session = self.random.randrange(1 << 10)
        if content == "ethertype":
            return self.by_ethertype()
        if content == "nhrp":
            self.network(0x2001)
            return self.data(at_least=20)
        if known[content] == 0x6558 and flags & 0xB000 == 0x2000:
            self.encap("nvgre", identifier >> 8)
        elif content == "erspan-1":
            self.encap("erspan")
        elif content == "erspan-2":
            self.encap("erspan", session)
            self.header("erspan", u16(0x1000) + u16(session) + bytes(4))
        elif content == "erspan-3":
            self.encap("erspan", session)
            more = self.chance(0.5)
            self.header("erspan", u16(0x2000) + u16(session) + bytes(6) + u16(frame_type << 10 | more) + bytes(8) * more)
        return self.ethernet()

    def udp_tunnel(self, name: str) -> None:
        start = self.offset
        self.more(start + 8, poff=start + 8)
        self.udp(17, self.port(), self.random.choice(UDP_TUNNELS[name]))
        if name == "vxlan":
            flag = 0 if self.oddly() else 8
            vni = self.random.randrange(1 << 24)
            self.tunnel(flag != 0)
            self.encap("vxlan", vni)
            self.header("vxlan", u8(flag) + bytes(3) + u32(vni << 8))
            self.ethernet()
        elif name == "vxlan-gpe":
            self.vxlan_gpe()
        elif name == "geneve":
            self.geneve()
        elif name == "gtpu":
            self.gtpu()
        elif name == "mpls":
            self.tunnel()
            self.mpls()
        elif name == "gre":
            self.gre()
        else:
            self.teredo()

    def vxlan_gpe(self) -> None:
        flags, vni = self.random.choice((0x04, 0x0C)), self.random.randrange(1 << 24)
        if self.oddly():
            flags = 0x08
        unknown = self.oddly()
        self.tunnel(flags & 4 != 0 and not unknown)
        self.encap("vxlan-gpe", vni if flags & 8 else None)

        def build(payload: bytes, ethertype: int) -> bytes:
            return u8(flags) + bytes(2) + u8(0x7F if unknown else NEXT_PROTOCOLS[ethertype]) + u32(vni << 8) + payload

        self.layer("vxlan-gpe", 8, build)
        self.by_next_protocol()

    def geneve(self) -> None:
        options = b""
        for _ in range(self.random.choice((0, 0, 1, 2, 3))):
            words = self.random.randrange(5)
            options += u16(0x0102) + u8(0x21) + u8(words) + self.random.randbytes(4 * words)
        version, vni = (1 if self.oddly() else 0), self.random.randrange(1 << 24)
        self.tunnel(version == 0)
        self.encap("geneve", vni)
        head = u8(version << 6 | len(options) // 4) + u8(0)
        self.layer("geneve", 8 + len(options), lambda payload, ethertype: head + u16(ethertype) + u32(vni << 8) + options + payload)
        if self.chance(0.6):
            self.ethernet()
        else:
            self.by_ethertype()

    def gtpu(self) -> None:
        flags = self.random.choice((0, 0, 1, 2, 3, 4, 5, 6, 7))
        most = MAX_GTPU_EXTENSIONS + (1 if self.oddly() else 0)
        kinds = [self.random.choice((0x40, 0x85, 0xC0)) for _ in range(self.random.randrange(most + 1))] if flags & 4 else []
        first, message = self.random.choice(((0x30, 1), (0x50, 255), (0x20, 255))) if self.oddly() else (0x30, 255)
        empty = self.oddly() and kinds != []
        teid = self.random.randrange(1 << 32)
        self.tunnel((first, message) == (0x30, 255) and len(kinds) <= MAX_GTPU_EXTENSIONS and not empty)
        self.encap("gtpu", teid)
        rest = b""
        if flags:
            rest = self.random.randbytes(2) + u8(0) + u8(kinds[0] if kinds else 0)
        for following in [*kinds[1:], 0][: len(kinds)]:
            rest += u8(0 if empty else 1) + b"\0\x09" + u8(following)
        head = u8(first | flags) + u8(message)
        self.layer("gtpu", 8 + len(rest), lambda payload, _: head + u16(len(rest) + len(payload)) + u32(teid) + rest + payload)
        self.ip(more=1)

    def teredo(self) -> None:
        self.tunnel()
        self.encap("teredo")
        if self.chance(0.4):
            client, value = self.random.randbytes(self.random.randrange(6)), self.random.randbytes(self.random.randrange(9))
            self.header("authentication", b"\0\1" + u8(len(client)) + u8(len(value)) + client + value + bytes(9))
        more = 2
        if self.chance(0.4):
            self.header("origin", bytes(2) + self.random.randbytes(6))
            more = 0
        self.ip(6, more)
