"""The table of encapsulations: every kind of header that the walk can go through (LANGUAGE.md 5).

In:  nothing, and for `WalkSettings` what the user chose.
Out: `LINK_LAYERS`, where a walk starts; `ENCAPSULATIONS`, one row a kind of header; `EXTENSION_HEADERS` and
     `TRANSPORT_LENGTHS`, what stands behind an IP header; `WalkSettings`, ports and bounds.

The rows are data in the words of layout.py. The walks (over bytes, unrolled into classic BPF, as eBPF), `encap NAME`, the documentation
and the tests read them; none of them knows a header of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from reprlib import repr as shortened
from types import MappingProxyType

from pcapext.errors import FilterError, SettingsError
from pcapext.layout import (
    Always,
    ByEtherType,
    ByNibble,
    ByNumber,
    Counted,
    Encapsulation,
    Equals,
    Extensions,
    Field,
    Identifier,
    IfSet,
    Length,
    Next,
    Prefix,
)
from pcapext.slotted import dataclass, field

IPV4, IPV6, MPLS, MPLS_MULTICAST, NSH = 0x0800, 0x86DD, 0x8847, 0x8848, 0x894F
ETHERNET = 0x6558

#: EtherTypes below this one are lengths: an 802.3 frame, which names no network protocol (IEEE 802.3-2018 3.2.6).
FIRST_ETHERTYPE = 0x0600
ETHERNET_LENGTH = 14
IPV4_LENGTH, IPV6_LENGTH, UDP_LENGTH = 20, 40, 8
AH, TCP, UDP = 51, 6, 17

#: The walk sees this many bytes of a packet, so that every offset fits in 16 bits.
WALKED_BYTES = 0xFFFF


# ---- Where a walk starts ----

IP_BY_NIBBLE = ByNibble(((4, IPV4), (6, IPV6)))


@dataclass(frozen=True, slots=True)
class LinkLayer:
    """A link-layer header that a walk can start at: its number and name in libpcap (pcap/dlt.h, for Linux), length and what follows.

    Its layout is that of the link-layer header types at tcpdump.org; where that leaves a choice, as libpcap's gencode.c has it.
    """

    linktype: int
    name: str
    length: int
    next: Next

    @property
    def is_ethernet(self) -> bool:
        return self.name == "EN10MB"

    @property
    def made_up(self) -> int:
        """How many bytes of the header libpcap makes up: the kernel, which runs filters, does not see them."""
        return self.length if self.name in ("LINUX_SLL", "LINUX_SLL2") else 0


PPP_PROTOCOLS = ((0x0021, IPV4), (0x0057, IPV6), (0x0281, MPLS))

#: Address families of loopback headers. IPv6 has another number on each system: Linux, NetBSD and OpenBSD, FreeBSD, macOS.
LOOPBACK_FAMILIES = ((2, IPV4), (10, IPV6), (24, IPV6), (28, IPV6), (30, IPV6))

LINK_LAYERS: tuple[LinkLayer, ...] = (
    LinkLayer(1, "EN10MB", ETHERNET_LENGTH, ByEtherType(Field(12, 2))),
    LinkLayer(12, "RAW", 0, IP_BY_NIBBLE),
    LinkLayer(228, "IPV4", 0, Always(IPV4)),
    LinkLayer(229, "IPV6", 0, Always(IPV6)),
    LinkLayer(113, "LINUX_SLL", 16, ByEtherType(Field(14, 2))),
    LinkLayer(276, "LINUX_SLL2", 20, ByEtherType(Field(0, 2))),
    # The family is in the byte order of the machine that captured: both are looked for.
    LinkLayer(0, "NULL", 4, ByNumber(Field(0, 4), LOOPBACK_FAMILIES + tuple((family << 24, ip) for family, ip in LOOPBACK_FAMILIES))),
    LinkLayer(108, "LOOP", 4, ByNumber(Field(0, 4), LOOPBACK_FAMILIES)),
    # As in libpcap, always behind an address and a control byte (RFC 1662 3.1).
    LinkLayer(9, "PPP", 4, ByNumber(Field(2, 2), PPP_PROTOCOLS)),
)

LINK_LAYER_BY_NUMBER = {row.linktype: row for row in LINK_LAYERS}


def link_layer_of(linktype: int) -> LinkLayer:
    """The row for a link type. Raises `FilterError` where the walk cannot start at it."""
    row = LINK_LAYER_BY_NUMBER.get(linktype)
    if row is None:
        names = ", ".join(row.name for row in LINK_LAYERS)
        raise FilterError(f"no walk through packets of link type {linktype}; there is one for {names}")
    return row


# ---- What the walk goes through ----

_CHECKSUM, _KEY, _SEQUENCE = Field(0, 2, 0x8000), Field(0, 2, 0x2000), Field(0, 2, 0x1000)
_VLAN_ID = Identifier("VLAN id", Field(0, 2, 0x0FFF))
_VNI = Field(4, 4, 0xFFFFFF00, 8)
#: Next Protocol of NSH (RFC 8300 2.2) and VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe 3.2, whose version 04 has MPLS, but not version 12).
_NEXT_PROTOCOLS = ((1, IPV4), (2, IPV6), (3, ETHERNET), (4, NSH), (5, MPLS))

ENCAPSULATIONS: tuple[Encapsulation, ...] = (
    # Between the Ethernet header and the network header: no new level.
    Encapsulation(
        "vlan",
        "VLAN tag",
        "IEEE 802.1Q-2018 9.6; 0x9100 by custom",
        words=("vlan",),
        ethertypes=(0x8100, 0x9100),
        length=Length(4),
        next=ByEtherType(Field(2, 2)),
        identifier=_VLAN_ID,
        begins_level=False,
        bound="vlan_tags",
    ),
    Encapsulation(
        "qinq",
        "service VLAN tag",
        "IEEE 802.1Q-2018 9.6",
        words=("qinq", "vlan"),
        ethertypes=(0x88A8,),
        length=Length(4),
        next=ByEtherType(Field(2, 2)),
        identifier=_VLAN_ID,
        begins_level=False,
        bound="vlan_tags",
    ),
    Encapsulation(
        "mpls",
        "MPLS label",
        "RFC 3032 2.1, 5; first nibble: RFC 4928 2, RFC 4385 3",
        words=("mpls",),
        ethertypes=(MPLS, MPLS_MULTICAST),
        length=Length(4),
        next=IP_BY_NIBBLE,
        identifier=Identifier("label", Field(0, 4, 0xFFFFF000, 12)),
        begins_level=False,
        repeats=Equals(Field(2, 1, 0x01), 0),
        bound="mpls_labels",
    ),
    Encapsulation(
        "pppoe",
        "PPPoE session",
        "RFC 2516 4; PPP protocols: RFC 1332 2, RFC 5072 2, RFC 3032 4.3",
        words=("pppoe",),
        ethertypes=(0x8864,),
        length=Length(8),
        next=ByNumber(Field(6, 2), PPP_PROTOCOLS),
        identifier=Identifier("session", Field(2, 2)),
        begins_level=False,
    ),
    # Behind an EtherType.
    Encapsulation(
        "transparent-ethernet",
        "transparent Ethernet",
        "RFC 1701, list of protocol types",
        ethertypes=(ETHERNET,),
        next=Always(ETHERNET),
    ),
    Encapsulation(
        "nsh",
        "NSH",
        "RFC 8300 2.2",
        words=("nsh",),
        ethertypes=(NSH,),
        length=Length(8, (Counted(Field(1, 1, 0x3F), 4),), base=0),
        next=ByNumber(Field(3, 1), _NEXT_PROTOCOLS),
    ),
    # Behind an MPLS stack.
    Encapsulation(
        "pseudowire",
        "Ethernet pseudowire with a control word",
        "RFC 4385 3, RFC 4448 4.6",
        nibbles=(0,),
        length=Length(4),
        next=Always(ETHERNET),
    ),
    # Behind an IP protocol.
    Encapsulation("ipip", "IPv4 in IPv4", "RFC 2003 3", words=("ipip",), ip_protocols=(4,), over=IPV4, next=Always(IPV4)),
    Encapsulation("6in4", "IPv6 in IPv4", "RFC 4213 3.5", words=("6in4",), ip_protocols=(41,), over=IPV4, next=Always(IPV6)),
    Encapsulation("4in6", "IPv4 in IPv6", "RFC 2473 3", words=("4in6",), ip_protocols=(4,), over=IPV6, next=Always(IPV4)),
    Encapsulation("6in6", "IPv6 in IPv6", "RFC 2473 3", words=("6in6",), ip_protocols=(41,), over=IPV6, next=Always(IPV6)),
    Encapsulation(
        "gre",
        "GRE",
        "RFC 2784 2, RFC 2890 2; routing: RFC 1701; in UDP: RFC 8086 3",
        words=("gre",),
        ip_protocols=(47,),
        ports="gre",
        # Version 0, no routing.
        requires=Equals(Field(0, 2, 0x4007), 0),
        length=Length(4, (IfSet(_CHECKSUM, 4), IfSet(_KEY, 4), IfSet(_SEQUENCE, 4))),
        next=ByEtherType(Field(2, 2)),
        identifier=Identifier("key", Field(4, 4), flag=_KEY, before=(IfSet(_CHECKSUM, 4),)),
    ),
    Encapsulation("etherip", "EtherIP", "RFC 3378 3", words=("etherip",), ip_protocols=(97,), length=Length(2), next=Always(ETHERNET)),
    Encapsulation("ethernet-in-ip", "Ethernet in IP", "RFC 8986 10.1", ip_protocols=(143,), next=Always(ETHERNET)),
    Encapsulation("mpls-in-ip", "MPLS in IP", "RFC 4023 3", ip_protocols=(137,), next=Always(MPLS)),
    # Behind a GRE header.
    Encapsulation(
        "nvgre",
        "NVGRE",
        "RFC 7637 3.2",
        words=("nvgre",),
        gre_protocols=(ETHERNET,),
        # A key, no checksum, no sequence number: the key is the word before the frame.
        gre_test=Equals(Field(0, 2, 0xB000), 0x2000),
        next=Always(ETHERNET),
        identifier=Identifier("VSID", Field(-4, 4, 0xFFFFFF00, 8)),
    ),
    Encapsulation(
        "erspan-1",
        "ERSPAN type I",
        "draft-foschiano-erspan-03 4.1",
        words=("erspan",),
        gre_protocols=(0x88BE,),
        gre_test=Equals(_SEQUENCE, 0),
        next=Always(ETHERNET),
    ),
    Encapsulation(
        "erspan-2",
        "ERSPAN type II",
        "draft-foschiano-erspan-03 4.2",
        words=("erspan",),
        gre_protocols=(0x88BE,),
        gre_test=Equals(_SEQUENCE, 0x1000),
        length=Length(8),
        next=Always(ETHERNET),
        identifier=Identifier("session", Field(2, 2, 0x03FF)),
    ),
    Encapsulation(
        "erspan-3",
        "ERSPAN type III",
        "draft-foschiano-erspan-03 4.3",
        words=("erspan",),
        gre_protocols=(0x22EB,),
        # Frame type 0: an Ethernet frame.
        requires=Equals(Field(10, 2, 0x7C00), 0),
        length=Length(12, (IfSet(Field(10, 2, 0x0001), 8),)),
        next=Always(ETHERNET),
        identifier=Identifier("session", Field(2, 2, 0x03FF)),
    ),
    # Behind UDP.
    Encapsulation(
        "vxlan",
        "VXLAN",
        "RFC 7348 5",
        words=("vxlan",),
        ports="vxlan",
        requires=Equals(Field(0, 1, 0x08), 0x08),
        length=Length(8),
        next=Always(ETHERNET),
        identifier=Identifier("VNI", _VNI),
    ),
    Encapsulation(
        "vxlan-gpe",
        "VXLAN-GPE",
        "draft-ietf-nvo3-vxlan-gpe-12 3.1, 3.2",
        words=("vxlan-gpe",),
        ports="vxlan-gpe",
        requires=Equals(Field(0, 1, 0x04), 0x04),
        length=Length(8),
        next=ByNumber(Field(3, 1), _NEXT_PROTOCOLS),
        identifier=Identifier("VNI", _VNI, flag=Field(0, 1, 0x08)),
    ),
    Encapsulation(
        "geneve",
        "Geneve",
        "RFC 8926 3.4",
        words=("geneve",),
        ports="geneve",
        # Version 0.
        requires=Equals(Field(0, 1, 0xC0), 0),
        length=Length(8, (Counted(Field(0, 1, 0x3F), 4),)),
        next=ByEtherType(Field(2, 2)),
        identifier=Identifier("VNI", _VNI),
    ),
    Encapsulation(
        "gtpu",
        "GTP-U",
        "3GPP TS 29.281 5.1, 5.2.1",
        words=("gtpu",),
        ports="gtpu",
        # Version 1, protocol type 1, message G-PDU (255).
        requires=Equals(Field(0, 2, 0xF0FF), 0x30FF),
        # One of the flags E, S and PN: sequence number, N-PDU number and next extension type are all there.
        length=Length(8, (IfSet(Field(0, 1, 0x07), 4),)),
        extensions=Extensions(Field(0, 1, 0x04), Field(11, 1), Length(4, (Counted(Field(0, 1), 4),), base=0), "gtpu_extensions"),
        next=IP_BY_NIBBLE,
        identifier=Identifier("TEID", Field(4, 4)),
    ),
    Encapsulation("mpls-in-udp", "MPLS in UDP", "RFC 7510 3", ports="mpls", next=Always(MPLS)),
    Encapsulation(
        "teredo",
        "Teredo",
        "RFC 4380 5.1.1",
        words=("teredo",),
        ports="teredo",
        prefixes=(
            # Authentication: client identifier, authentication value, 8 bytes of nonce, 1 of confirmation.
            Prefix(Equals(Field(0, 2), 1), Length(13, (Counted(Field(2, 1), 1), Counted(Field(3, 1), 1)))),
            # Origin: port and address.
            Prefix(Equals(Field(0, 2), 0), Length(8)),
        ),
        next=Always(IPV6),
    ),
)

#: The names that `encap` knows, in the order of the table.
ENCAPSULATION_NAMES: tuple[str, ...] = tuple(dict.fromkeys(word for row in ENCAPSULATIONS for word in row.words))

#: The rows by where they are found.
BY_ETHERTYPE = {number: row for row in ENCAPSULATIONS for number in row.ethertypes}
BY_IP_PROTOCOL = {
    (ip, number): row for row in ENCAPSULATIONS for number in row.ip_protocols for ip in (IPV4, IPV6) if row.over in (None, ip)
}
BY_NIBBLE = {number: row for row in ENCAPSULATIONS for number in row.nibbles}
BY_PORT_SETTING = {row.ports: row for row in ENCAPSULATIONS if row.ports is not None}


def in_gre(protocol: int, data: bytes, gre: int) -> Encapsulation | None:
    """The row for a header behind the GRE header at `gre`, whose protocol is `protocol`, or None: what follows is that protocol."""
    for row in ENCAPSULATIONS:
        if protocol in row.gre_protocols and (row.gre_test is None or row.gre_test.holds(data, gre)):
            return row
    return None


# ---- Behind an IP header ----


@dataclass(frozen=True, slots=True)
class ExtensionHeader:
    """A header between an IP header and the transport header. Its first byte is the protocol of the next one.

    `fragment`: the field that is not 0 in a later fragment. `in_ipv4`: it is also followed in IPv4.
    """

    protocol: int
    title: str
    standard: str
    length: Length
    fragment: Field | None = None
    in_ipv4: bool = False


_OPTIONS_LENGTH = Length(8, (Counted(Field(1, 1), 8),))

EXTENSION_HEADERS: tuple[ExtensionHeader, ...] = (
    ExtensionHeader(0, "hop-by-hop options", "RFC 8200 4.3", _OPTIONS_LENGTH),
    ExtensionHeader(43, "routing", "RFC 8200 4.4", _OPTIONS_LENGTH),
    ExtensionHeader(60, "destination options", "RFC 8200 4.6", _OPTIONS_LENGTH),
    ExtensionHeader(44, "fragment", "RFC 8200 4.5", Length(8), fragment=Field(2, 2, 0xFFF8)),
    ExtensionHeader(AH, "authentication", "RFC 4302 2", Length(12, (Counted(Field(1, 1), 4),), base=8), in_ipv4=True),
)

EXTENSION_BY_PROTOCOL = {row.protocol: row for row in EXTENSION_HEADERS}

#: The fixed part of transport headers by IP protocol; others count as 0 (`poff` in LANGUAGE.md 2).
#: ICMP, IGMP, TCP, UDP, DCCP, ICMPv6, SCTP, UDP-Lite.
TRANSPORT_LENGTHS = {1: 8, 2: 8, TCP: 20, UDP: 8, 33: 12, 58: 8, 132: 12, 136: 8}


# ---- Settings ----


class TunnelPorts(Mapping[str, tuple[int, ...]]):
    """The UDP ports of each tunnel: a mapping that cannot change and can be hashed.

    Tunnels that are not named keep their usual ports; an empty list turns one off.

    >>> TunnelPorts({"vxlan": [4789], "teredo": []})["gtpu"]
    (2152,)
    """

    #: IANA's registry of ports, and 8472, the first one that Linux used for VXLAN (drivers/net/vxlan).
    DEFAULTS: Mapping[str, tuple[int, ...]] = {
        "vxlan": (4789, 8472),
        "vxlan-gpe": (4790,),
        "geneve": (6081,),
        "gtpu": (2152,),
        "mpls": (6635,),
        "gre": (4754,),
        "teredo": (3544,),
    }

    __slots__ = ("_by_name", "by_port")

    def __init__(self, ports: Mapping[str, Iterable[int]] = MappingProxyType({})) -> None:
        if not isinstance(ports, Mapping):
            raise SettingsError(f"tunnel_ports is {shortened(ports)}, expected a mapping of tunnel names to lists of ports")
        chosen = {}
        for name, numbers in ports.items():
            if name not in self.DEFAULTS:
                raise SettingsError(f"no tunnel over UDP is called {shortened(name)}; there are {', '.join(self.DEFAULTS)}")
            if not isinstance(numbers, Iterable):
                raise SettingsError(f"ports of {name} are {shortened(numbers)}, expected a list of numbers")
            chosen[name] = tuple(numbers)
        self._by_name = {name: chosen.get(name, usual) for name, usual in self.DEFAULTS.items()}
        #: The row of the table for each port.
        self.by_port: dict[int, Encapsulation] = {}
        for name, numbers in self._by_name.items():
            for port in numbers:
                if type(port) is not int or not 1 <= port <= 0xFFFF:
                    raise SettingsError(f"tunnel port {shortened(port)} of {name} is not a number from 1 to 65535")
                row = self.by_port.setdefault(port, BY_PORT_SETTING[name])
                if row is not BY_PORT_SETTING[name]:
                    raise SettingsError(f"tunnel port {port} is given to both {row.ports} and {name}")

    def __getitem__(self, name: str) -> tuple[int, ...]:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __hash__(self) -> int:
        return hash(tuple(self._by_name.items()))

    def __repr__(self) -> str:
        return f"TunnelPorts({self._by_name})"

    def __reduce__(self) -> tuple[type[TunnelPorts], tuple[dict[str, tuple[int, ...]]]]:
        return TunnelPorts, (self._by_name,)


@dataclass(frozen=True, slots=True)
class WalkSettings:
    """What the walk takes for a tunnel and how far it goes.

    `tunnel_ports`: any mapping of tunnel names to ports (see `TunnelPorts`). `max_levels`: levels that are read, the
    outermost headers being the first, 1 to 16. The others bound a chain in each level, 0 to 16 headers. Raises `SettingsError`.

    >>> WalkSettings(tunnel_ports={"vxlan": [4789]}, max_levels=2).tunnel_ports["vxlan"]
    (4789,)
    """

    tunnel_ports: Mapping[str, tuple[int, ...]] = field(default_factory=TunnelPorts)
    max_levels: int = 4
    vlan_tags: int = 3
    mpls_labels: int = 6
    extension_headers: int = 4
    gtpu_extensions: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.tunnel_ports, TunnelPorts):
            object.__setattr__(self, "tunnel_ports", TunnelPorts(self.tunnel_ports))
        for name, number in self.bounds:
            least = 1 if name == "max_levels" else 0
            if type(number) is not int or not least <= number <= 16:
                raise SettingsError(f"{name} is {shortened(number)}, expected a number from {least} to 16")

    @property
    def bounds(self) -> tuple[tuple[str, int], ...]:
        """The settings that are numbers, by name, the one first that a classic program's length depends on most."""
        names = ("max_levels", "vlan_tags", "mpls_labels", "extension_headers", "gtpu_extensions")
        return tuple((name, getattr(self, name)) for name in names)

    @property
    def by_port(self) -> Mapping[int, Encapsulation]:
        """The row of the table for each UDP port that carries a tunnel."""
        assert isinstance(self.tunnel_ports, TunnelPorts)
        return self.tunnel_ports.by_port


DEFAULT_SETTINGS = WalkSettings()
