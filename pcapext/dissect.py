"""The reference walk: from the bytes of a packet to its flow keys (LANGUAGE.md 5).

In:  a packet, its link type, the settings of the walk.
Out: `FlowKeys`; from `walk` also the keys of the outermost headers and the list of encapsulations passed.
     Any bytes give an answer.

It is plain on purpose: all other walks are tested against this one. What the headers look like is in encapsulation.py.

The walk reads one level after the other. A level is: an Ethernet header or none; VLAN tags, PPPoE, MPLS labels; an IP header with
what follows it up to the transport header; and at its end, perhaps, a tunnel that begins the next level. A tunnel is entered
whole or not at all. If it is not, the level's own keys are the answer.

Where LANGUAGE.md leaves a choice:

- `nhoff` of an EtherType that the walk ends on is the byte where that header should stand, whether anything stands there or not. So a
  fourth VLAN tag, a seventh label, or one that is cut gives the offset of that very tag or label, with nproto 0x8100 or 0x8847.
- `tproto` names the first header that was not walked. If it is an extension header beyond the bound, it is taken for an unknown
  transport: thoff and poff are its offset. If it is an extension header whose fixed part is cut, thoff and poff are 0.
- A header's length is what its length field says, even if the standard forbids it: an IPv4 header of 0 bytes, as in libpcap.
  Only a GTP-U extension header of 0 bytes is not walked.
- A tunnel whose header does not say a protocol that the walk knows (GTP-U with another nibble, NSH or VXLAN-GPE with another
  number, ERSPAN III with another frame type) is not entered. GRE and Geneve name any EtherType and are.
- GRE or Geneve with 0x6558 is one tunnel: the level it begins is the Ethernet frame. Behind another EtherType field,
  0x6558 itself is the tunnel.
- IP protocol 4, 41, 137 and UDP to the ports of MPLS add no header: they are entered where the IP (UDP) header is
  complete, even if nothing follows. Teredo needs the 2 bytes that tell an indication from an IPv6 header.
- `lhoff` of link type EN10MB is 0 in the outermost level, however short the packet is.
- Offsets have 16 bits: the walk sees the first 65535 bytes of a packet, as if it ended there.
- A VLAN tag, a label or a PPPoE header counts for `encap` when it is complete, also where the walk ends behind it.
"""

from __future__ import annotations

import mmap
from collections import Counter

from pcapext import encapsulation as table
from pcapext.encapsulation import DEFAULT_SETTINGS, ETHERNET, IPV4, IPV6, WalkSettings
from pcapext.flowkeys import NO_ETHERNET, FlowKeys
from pcapext.layout import Always, ByEtherType, ByNibble, ByNumber, Encapsulation, Extensions, Next
from pcapext.slotted import dataclass, replace

#: What a packet may come as.
Buffer = bytes | bytearray | memoryview | mmap.mmap


@dataclass(frozen=True, slots=True)
class Header:
    """An encapsulation that the walk went through: its name for `encap`, where it begins, its identifier, the level it stands in."""

    name: str
    offset: int
    identifier: int | None
    level: int


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk found: the keys of the innermost headers, those of the outermost, and the encapsulations in between.

    A header with two names (0x88a8: `qinq` and `vlan`) is there twice.
    """

    keys: FlowKeys
    outer: FlowKeys
    headers: tuple[Header, ...]


def dissect(packet: Buffer, linktype: int = 1, settings: WalkSettings | None = None) -> FlowKeys:
    """The flow keys of `packet`, whose link type is `linktype` (a DLT number of libpcap on Linux), with `settings` or the usual ones.

    Raises `FilterError` for a link type that the walk cannot start at, never for the bytes of a packet.

    >>> frame = bytes.fromhex("ffffffffffff 020000000001 0806 0001 0800 06 04 0001")
    >>> dissect(frame)
    FlowKeys(nhoff=14, nproto=2054, thoff=0, tproto=0, poff=0, depth=0, lhoff=0)
    """
    return walk(packet, linktype, settings).keys


def walk(packet: Buffer, linktype: int = 1, settings: WalkSettings | None = None) -> Walk:
    """The same walk with all that it met. Arguments and errors are those of `dissect`."""
    start = table.link_layer_of(linktype)
    data = memoryview(packet).tobytes()[: table.WALKED_BYTES]
    return _Walker(data, settings or DEFAULT_SETTINGS).run(start)


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a level begins: the EtherType of its first header, that header's offset, the Ethernet header before it."""

    nproto: int
    nhoff: int
    lhoff: int = NO_ETHERNET


@dataclass(frozen=True, slots=True)
class _Tunnel:
    """A tunnel header that may begin the next level, and its offset."""

    row: Encapsulation
    offset: int


class _Walker:
    """One walk through `data`. `level` counts from 1; `headers` grows as encapsulations are passed."""

    def __init__(self, data: bytes, settings: WalkSettings):
        self.data = data
        self.settings = settings
        self.level = 1
        self.headers: list[Header] = []

    def has(self, offset: int, size: int) -> bool:
        return offset + size <= len(self.data)

    def byte(self, offset: int) -> int:
        return self.data[offset]

    def half(self, offset: int) -> int:
        return self.data[offset] << 8 | self.data[offset + 1]

    def run(self, link_layer: table.LinkLayer) -> Walk:
        keys, tunnel = self.read(self.first_start(link_layer))
        outer = keys
        while tunnel is not None and self.level < self.settings.max_levels:
            start = self.enter(tunnel)
            if start is None:
                break
            self.level += 1
            keys, tunnel = self.read(start)
        return Walk(keys, outer, tuple(self.headers))

    def first_start(self, link_layer: table.LinkLayer) -> _Start:
        lhoff = 0 if link_layer.is_ethernet else NO_ETHERNET
        if self.has(0, link_layer.length):
            nproto = self.ethertype_behind(link_layer.next, 0, link_layer.length)
            if nproto is not None:
                return _Start(nproto, link_layer.length, lhoff)
        return _Start(0, 0, lhoff)

    def ethertype_behind(self, by: Next, header: int, end: int) -> int | None:
        """The EtherType of what stands at `end`, behind the complete header at `header`; None: no protocol that is known."""
        match by:
            case Always(ethertype):
                return ethertype
            case ByEtherType(field):
                return field.read(self.data, header)
            case ByNumber(field, pairs):
                return dict(pairs).get(field.read(self.data, header))
            case ByNibble(pairs):
                return dict(pairs).get(self.byte(end) >> 4) if self.has(end, 1) else None

    # ---- One level ----

    def read(self, start: _Start) -> tuple[FlowKeys, _Tunnel | None]:
        """The keys of a level if the walk ends in it, and the tunnel that may go on."""
        nproto, nhoff, tunnel = self.read_tags(start.nproto, start.nhoff)
        if nproto < table.FIRST_ETHERTYPE:
            nproto = nhoff = 0
        keys = FlowKeys(nhoff=nhoff, nproto=nproto, depth=self.level - 1, lhoff=start.lhoff)
        if nproto in (IPV4, IPV6):
            return self.read_ip(keys)
        return keys, tunnel

    def read_tags(self, nproto: int, nhoff: int) -> tuple[int, int, _Tunnel | None]:
        """Past VLAN tags, PPPoE and MPLS labels: the EtherType that is left, its offset, the tunnel that stands there."""
        walked: Counter[str] = Counter()
        while True:
            row = table.BY_ETHERTYPE.get(nproto)
            if row is None:
                return nproto, nhoff, None
            if nproto == table.MPLS_MULTICAST:
                nproto = table.MPLS
            if row.begins_level:
                return nproto, nhoff, _Tunnel(row, nhoff)
            end = self.end(row, nhoff)
            if end is None or (row.bound and walked[row.bound] == getattr(self.settings, row.bound)):
                return nproto, nhoff, None
            if row.bound:
                walked[row.bound] += 1
            self.passed(row, nhoff)
            if row.repeats and row.repeats.holds(self.data, nhoff):
                nhoff = end
                continue
            behind = self.ethertype_behind(row.next, nhoff, end)
            if behind is None:
                return nproto, nhoff, self.behind_labels(end) if nproto == table.MPLS else None
            nproto, nhoff = behind, end

    def behind_labels(self, offset: int) -> _Tunnel | None:
        row = table.BY_NIBBLE.get(self.byte(offset) >> 4) if self.has(offset, 1) else None
        return _Tunnel(row, offset) if row else None

    def read_ip(self, keys: FlowKeys) -> tuple[FlowKeys, _Tunnel | None]:
        """Adds the keys of the IP header at nhoff and of what follows it."""
        ip = keys.nhoff
        if keys.nproto == IPV4:
            if not self.has(ip, table.IPV4_LENGTH):
                return keys, None
            tproto, offset = self.byte(ip + 9), ip + 4 * (self.byte(ip) & 0x0F)
            later = self.half(ip + 6) & 0x1FFF != 0
        else:
            if not self.has(ip, table.IPV6_LENGTH):
                return keys, None
            tproto, offset, later = self.byte(ip + 6), ip + table.IPV6_LENGTH, False

        for _ in range(self.settings.extension_headers):
            row = table.EXTENSION_BY_PROTOCOL.get(tproto)
            if later or row is None or (keys.nproto == IPV4 and not row.in_ipv4):
                break
            end = row.length.end(self.data, offset)
            if end is None:
                return replace(keys, tproto=tproto), None
            later = row.fragment is not None and row.fragment.read(self.data, offset) != 0
            tproto, offset = self.byte(offset), end

        keys = replace(keys, tproto=tproto)
        if not self.has(offset, 0):
            return keys, None
        if later:
            return replace(keys, poff=offset), None
        return replace(keys, thoff=offset, poff=self.payload(tproto, offset)), self.behind_ip(keys.nproto, tproto, offset)

    def payload(self, tproto: int, thoff: int) -> int:
        """The offset behind the transport header, or 0 where its fixed part is not there."""
        length = table.TRANSPORT_LENGTHS.get(tproto, 0)
        if not self.has(thoff, length):
            return 0
        if tproto == table.TCP:
            length = max(length, 4 * (self.byte(thoff + 12) >> 4))
        return thoff + length

    def behind_ip(self, nproto: int, tproto: int, thoff: int) -> _Tunnel | None:
        if tproto == table.UDP:
            if not self.has(thoff, table.UDP_LENGTH):
                return None
            row, offset = self.settings.by_port.get(self.half(thoff + 2)), thoff + table.UDP_LENGTH
        else:
            row, offset = table.BY_IP_PROTOCOL.get((nproto, tproto)), thoff
        return _Tunnel(row, offset) if row else None

    # ---- From one level to the next ----

    def enter(self, tunnel: _Tunnel) -> _Start | None:
        """Where the level behind a tunnel header begins, or None where that is not complete or not of its kind."""
        row, offset = tunnel.row, tunnel.offset
        end = self.end(row, offset)
        if end is None:
            return None
        nproto = self.ethertype_behind(row.next, offset, end)
        if nproto is None:
            return None
        passed = [tunnel]
        if row.name == "gre":
            inside = table.in_gre(nproto, self.data, offset)
            if inside is not None:
                passed.append(_Tunnel(inside, end))
                end, nproto = self.end(inside, end), ETHERNET
                if end is None:
                    return None
        start = _Start(nproto, end)
        if nproto == ETHERNET:
            if not self.has(end, table.ETHERNET_LENGTH):
                return None
            start = _Start(self.half(end + 12), end + table.ETHERNET_LENGTH, lhoff=end)
        for header in passed:
            self.passed(header.row, header.offset)
        return start

    def end(self, row: Encapsulation, offset: int) -> int | None:
        """The byte behind the header at `offset`, or None where it is not complete or not of its kind."""
        for prefix in row.prefixes:
            if not self.has(offset, prefix.test.field.size):
                return None
            if prefix.test.holds(self.data, offset):
                behind = prefix.length.end(self.data, offset)
                if behind is None or not self.has(behind, 0):
                    return None
                offset = behind
        end = row.length.end(self.data, offset)
        if end is None or not self.has(end, 0):
            return None
        if row.requires and not row.requires.holds(self.data, offset):
            return None
        if row.extensions and row.extensions.flag.read(self.data, offset):
            return self.end_of_extensions(row.extensions, offset, end)
        return end

    def end_of_extensions(self, chain: Extensions, header: int, offset: int) -> int | None:
        kind = chain.first.read(self.data, header)
        for _ in range(getattr(self.settings, chain.bound)):
            if kind == 0:
                break
            end = chain.length.end(self.data, offset)
            if end is None or end == offset or not self.has(end, 0):
                return None
            kind, offset = self.byte(end - 1), end
        return offset if kind == 0 else None

    def passed(self, row: Encapsulation, offset: int) -> None:
        identifier = row.identifier.read(self.data, offset) if row.identifier else None
        self.headers.extend(Header(word, offset, identifier, self.level) for word in row.words)
