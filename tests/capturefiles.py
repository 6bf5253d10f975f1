"""Makes capture files of every form, and damages them; and reads them: a second, plain and slow reader.

In:  packets with times in nanoseconds, or the bytes of a file.
Out: `File`: the bytes, the packets that must be read from them, and where each record or block begins.
     `Reading`: the packets in a file, and where and why reading stopped. Beside it, the packets that tshark finds.

It shares nothing with pcapext: every number here is written down once more, from draft-ietf-opsawg-pcap (the header and the records),
draft-ietf-opsawg-pcapng (sections 3 and 4) and, for what these leave open, from libpcap's sf-pcap.c and sf-pcapng.c.
"""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

SECOND = 10**9
MICROSECONDS, NANOSECONDS, MODIFIED = 0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34
SHB, IDB, PB, SPB, NRB, ISB, EPB, DSB = 0x0A0D0D0A, 1, 2, 3, 4, 5, 6, 10
CUSTOM, CUSTOM_NOT_TO_COPY, UNKNOWN = 0x0BAD, 0x40000BAD, 0x7FFF1234
BYTE_ORDER_MAGIC = 0x1A2B3C4D
COMMENT, TSRESOL, TSOFFSET = 1, 9, 14

#: Link types with one number in programs and another in files (https://www.tcpdump.org/linktypes.html).
IN_FILES = {11: 100, 12: 101, 15: 102, 16: 103, 19: 106}
IN_PROGRAMS = {number: dlt for dlt, number in IN_FILES.items()}


class Packet(NamedTuple):
    """A packet: its time in ns since 1970, its length on the wire, the bytes captured, its link type as programs know it."""

    time: int
    wirelen: int
    data: bytes
    linktype: int = 1


@dataclass(frozen=True, slots=True)
class File:
    """A capture file. `packets` are what is to be read: times as fine as the file keeps them.

    `places` are the offsets of records or blocks, all of them, and the end. `holders` are those of `packets`.
    """

    octets: bytes
    packets: tuple[Packet, ...]
    places: tuple[int, ...]
    holders: tuple[int, ...]

    def before(self, length: int) -> tuple[Packet, ...]:
        """The packets that are whole in the first `length` bytes."""
        ends = dict(zip(self.places, self.places[1:], strict=False))
        return tuple(packet for packet, place in zip(self.packets, self.holders, strict=True) if ends[place] <= length)


# ---- Packets ----

MACS = (b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2", b"\xff" * 6, b"\x01\0\x5e\0\0\1")
HOSTS = (b"\x0a\0\0\1", b"\x0a\0\0\2", b"\xc0\0\2\1", b"\xe0\0\0\1")
HOSTS6 = tuple(bytes.fromhex(f"20010db8{0:016x}{number:08x}") for number in (1, 2, 3))
PORTS = (22, 53, 80, 443, 8080, 50000)


def traffic(count: int, seed: int = 0, linktype: int = 1) -> list[Packet]:
    """Everyday packets, without tunnels: a few protocols, addresses and ports, some packets cut, some with nothing captured.

    Of the link types 1, 12, 113 and 276. Times rise, and the last ones are after 2038.
    """
    random = Random(seed)
    packets, time = [], 1_700_000_000 * SECOND
    for number in range(count):
        time += random.choice((1, 999, 1000, 123_456_789, 3 * SECOND))
        if number == count - 3:
            time = 3_000_000_000 * SECOND + 1_001_001
        ethertype, body = _network(random)
        match linktype:
            case 1:
                tag = struct.pack("!HH", 0x8100, random.choice((5, 6))) if random.random() < 0.2 else b""
                frame = random.choice(MACS) + random.choice(MACS[:2]) + tag + struct.pack("!H", ethertype) + body
                frame = frame.ljust(60, b"\0") if random.random() < 0.5 else frame
            case 113:
                frame = struct.pack("!HHH8sH", random.randrange(5), 1, 6, random.choice(MACS), ethertype) + body
            case 276:
                frame = struct.pack("!HHIHBB8s", ethertype, 0, 2, 1, random.randrange(5), 6, random.choice(MACS)) + body
            case _:
                frame = body
        captured = random.choice((len(frame),) * 6 + (0, 14, 34, random.randrange(len(frame) + 1)))
        packets.append(Packet(time, len(frame), frame[:captured], linktype))
    return packets


def _network(random: Random) -> tuple[int, bytes]:
    """A packet with its EtherType."""
    if random.random() < 0.1:
        return 0x0806, struct.pack("!HHBBH", 1, 0x0800, 6, 4, random.choice((1, 2))) + b"".join(
            (MACS[0], random.choice(HOSTS), MACS[1], random.choice(HOSTS))
        )
    six = random.random() < 0.3
    protocol = random.choice((6, 6, 6, 17, 17, 58 if six else 1, 132))
    ports = struct.pack("!HH", random.choice(PORTS), random.choice(PORTS))
    data = random.randbytes(random.choice((0, 1, 18, 100, 1400)))
    match protocol:
        case 6:
            body = ports + struct.pack("!IIBBHHH", 1, 2, 0x50, random.choice((0x02, 0x12, 0x10, 0x18, 0x11, 0x04)), 8192, 0, 0) + data
        case 17:
            body = ports + struct.pack("!HH", 8 + len(data), 0) + data
        case 132:
            body = ports + struct.pack("!II", 1, 0)
        case _:
            body = struct.pack("!BBHHH", random.choice((128, 129) if six else (0, 8)), 0, 0, 1, 7) + data
    if six:
        return 0x86DD, struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + random.choice(HOSTS6) + random.choice(HOSTS6) + body
    header = struct.pack(
        "!BBHHHBBH", 0x45, random.choice((0, 0xB8)), 20 + len(body), 1, random.choice((0, 0, 0, 0, 0x4000)), 64, protocol, 0
    )
    return 0x0800, header + random.choice(HOSTS) + random.choice(HOSTS) + body


# ---- What is written ----


def pcap(
    packets: Sequence[Packet],
    order: str = "<",
    magic: int = MICROSECONDS,
    version: tuple[int, int] = (2, 4),
    snaplen: int = 262144,
    linktype: int | None = None,
    extension: int = 0,
) -> File:
    """A pcap file. In version 2.3 every other record has its lengths in the old order."""
    dlt = packets[0].linktype if linktype is None else linktype
    octets = bytearray(struct.pack(f"{order}IHHiIII", magic, *version, 0, 0, snaplen, IN_FILES.get(dlt, dlt) | extension))
    unit = 1 if magic == NANOSECONDS else 1000
    places, kept = [], []
    for number, packet in enumerate(packets):
        places.append(len(octets))
        seconds, fraction = divmod(packet.time, SECOND)
        lengths = [len(packet.data), packet.wirelen]
        if version < (2, 3) or version == (543, 0) or (version == (2, 3) and number % 2):
            lengths.reverse()
        octets += struct.pack(f"{order}4I", seconds, fraction // unit, *lengths)
        if magic == MODIFIED:
            octets += struct.pack(f"{order}IHBx", 2, 0x0800, 4)
        octets += packet.data
        kept.append(packet._replace(time=packet.time // unit * unit, linktype=dlt))
    return File(bytes(octets), tuple(kept), (*places, len(octets)), tuple(places))


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


@dataclass(slots=True)
class Pcapng:
    """A pcapng file in the making, block after block."""

    order: str = "<"
    octets: bytearray = field(default_factory=bytearray)
    packets: list[Packet] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    holders: list[int] = field(default_factory=list)
    interfaces: list[tuple[int, int, int, int]] = field(default_factory=list)
    _sized: int | None = None

    def block(self, kind: int, body: bytes = b"") -> None:
        """A block of any type; what it holds is filled up to a multiple of 4 bytes."""
        body += bytes(-len(body) % 4)
        length = struct.pack(f"{self.order}I", len(body) + 12)
        self.places.append(len(self.octets))
        self.octets += struct.pack(f"{self.order}I", kind) + length + body + length

    def section(self, order: str = "<", *, sized: bool = False, minor: int = 0, options: bytes = b"") -> None:
        """A section header. With `sized` it says how long the section is, else that this is not known."""
        self._end_section()
        self.order, self.interfaces = order, []
        self.block(SHB, struct.pack(f"{order}IHHq", BYTE_ORDER_MAGIC, 1, minor, -1) + options)
        self._sized = self.places[-1] if sized else None

    def _end_section(self) -> None:
        if self._sized is not None:
            (header,) = struct.unpack_from(f"{self.order}I", self.octets, self._sized + 4)
            struct.pack_into(f"{self.order}q", self.octets, self._sized + 16, len(self.octets) - self._sized - header)
            self._sized = None

    def interface(
        self, linktype: int = 1, snaplen: int = 262144, tsresol: int | None = None, offset: int | None = None, options: bytes = b""
    ) -> None:
        """An interface. `tsresol` is the byte of that option, `offset` seconds, `linktype` as programs know it."""
        if tsresol is not None:
            options += option(self.order, TSRESOL, bytes([tsresol]))
        if offset is not None:
            options += option(self.order, TSOFFSET, struct.pack(f"{self.order}q", offset))
        if options:
            options += option(self.order, 0, b"")
        self.block(IDB, struct.pack(f"{self.order}HHI", IN_FILES.get(linktype, linktype), 0, snaplen) + options)
        self.interfaces.append((linktype, snaplen, ticks_a_second(6 if tsresol is None else tsresol), offset or 0))

    def packet(self, packet: Packet, interface: int = 0, *, old: bool = False, options: bytes = b"") -> None:
        """An enhanced packet block, or one of the obsolete packet blocks."""
        linktype, _, resolution, offset = self.interfaces[interface]
        ticks = (packet.time - offset * SECOND) * resolution // SECOND
        head = struct.pack(f"{self.order}HH", interface, 7) if old else struct.pack(f"{self.order}I", interface)
        head += struct.pack(f"{self.order}4I", ticks >> 32, ticks & 0xFFFFFFFF, len(packet.data), packet.wirelen)
        self.block(PB if old else EPB, head + packet.data + bytes(-len(packet.data) % 4) + options)
        self._holds(packet._replace(time=ticks * SECOND // resolution + offset * SECOND, linktype=linktype))

    def simple(self, wirelen: int, data: bytes) -> None:
        """A simple packet block: no time, which libpcap takes for one of 0 ticks; and no captured length, which is as
        much as the first interface captures."""
        linktype, snaplen, _, offset = self.interfaces[0]
        data = data[: min(wirelen, snaplen or 262144)]
        self.block(SPB, struct.pack(f"{self.order}I", wirelen) + data)
        self._holds(Packet(offset * SECOND, wirelen, data, linktype))

    def _holds(self, packet: Packet) -> None:
        self.packets.append(packet)
        self.holders.append(self.places[-1])

    def file(self) -> File:
        self._end_section()
        return File(bytes(self.octets), tuple(self.packets), (*self.places, len(self.octets)), tuple(self.holders))


def ticks_a_second(tsresol: int) -> int:
    return 1 << (tsresol & 0x7F) if tsresol & 0x80 else 10**tsresol


def pcapng(
    packets: Sequence[Packet],
    order: str = "<",
    tsresol: int | None = None,
    offset: int | None = None,
    snaplen: int = 262144,
    *,
    sized: bool = False,
    old: bool = False,
    options: bool = False,
) -> File:
    """A pcapng file of one section with an interface for each link type, in the order of their numbers. `options` gives everything some."""
    comment = option(order, COMMENT, b"odd") + option(order, COMMENT, b"") + option(order, 0, b"") if options else b""
    builder = Pcapng()
    builder.section(order, sized=sized, options=comment)
    linktypes = sorted({packet.linktype for packet in packets})
    for linktype in linktypes:
        builder.interface(linktype, snaplen, tsresol, offset, option(order, 2, b"eth0") if options else b"")
    for packet in packets:
        builder.packet(packet, linktypes.index(packet.linktype), old=old, options=comment)
    return builder.file()


def between(builder: Pcapng, number: int) -> None:
    """One of the blocks that are no packets, in turn: names, statistics, secrets, custom ones, unknown and empty ones."""
    order = builder.order
    names = struct.pack(f"{order}HH", 1, 8) + b"\x0a\0\0\1abc\0" + struct.pack(f"{order}HH", 0, 0)
    statistics = struct.pack(f"{order}III", 0, 0, number) + option(order, 4, struct.pack(f"{order}Q", number)) + option(order, 0, b"")
    bodies = [
        (NRB, names),
        (ISB, statistics),
        (DSB, struct.pack(f"{order}II", 0x544C534B, 5) + b"CLIEN"),
        (CUSTOM, struct.pack(f"{order}I", 32473) + b"kept, or not"),
        (CUSTOM_NOT_TO_COPY, struct.pack(f"{order}I", 32473)),
        (UNKNOWN, bytes(range(number % 251))),
        (UNKNOWN, b""),
    ]
    builder.block(*bodies[number % len(bodies)])


def with_other_blocks(packets: Sequence[Packet], order: str = "<", *, sized: bool = False) -> File:
    """A pcapng file with other blocks between the packets."""
    builder = Pcapng()
    builder.section(order, sized=sized)
    builder.interface(packets[0].linktype)
    for number, packet in enumerate(packets):
        between(builder, number)
        builder.packet(packet)
    between(builder, 2)
    return builder.file()


def several_interfaces(packets: Sequence[Packet], order: str = "<") -> File:
    """Interfaces of one link type, each with its own resolution and offset; some described only after packets of others."""
    builder = Pcapng()
    builder.section(order)
    times: list[tuple[int | None, int | None]] = [
        (None, None),
        (9, None),
        (3, None),
        (0x94, None),
        (0xA0, None),
        (9, 1_600_000_000),
        (0, -5),
    ]
    for number, packet in enumerate(packets):
        if number < 2 * len(times) and number % 2 == 0:
            builder.interface(packets[0].linktype, 262144, *times[number // 2])
        builder.packet(packet, number * 5 % len(builder.interfaces))
    return builder.file()


def simple_packets(packets: Sequence[Packet], order: str = "<", snaplen: int = 60) -> File:
    """Simple packet blocks, cut to the snap length by their reader, between enhanced ones of what is that short."""
    builder = Pcapng()
    builder.section(order)
    builder.interface(packets[0].linktype, snaplen)
    for number, packet in enumerate(packets):
        if number % 3 == 0:
            builder.packet(packet._replace(data=packet.data[:snaplen]))
        else:
            builder.simple(len(packet.data), packet.data)
    return builder.file()


def several_link_types(packets: Sequence[Packet], order: str = "<") -> File:
    """Interfaces with link types, snap lengths and resolutions of their own: what libpcap refuses."""
    builder = Pcapng()
    builder.section(order)
    linktypes = sorted({packet.linktype for packet in packets})
    for number, linktype in enumerate(linktypes):
        builder.interface(linktype, 65535 + number, (6, 9, 0x9E)[number % 3])
    for number, packet in enumerate(packets):
        builder.packet(packet, linktypes.index(packet.linktype), old=number % 4 == 3)
    return builder.file()


def several_sections(packets: Sequence[Packet], order: str = "<") -> File:
    """Sections of both byte orders, and of lengths known and not, each with interfaces of its own."""
    builder = Pcapng()
    linktypes = sorted({packet.linktype for packet in packets})
    orders = "<>" if order == "<" else "><"
    part = -(-len(packets) // 5)
    for number in range(5):
        builder.section(orders[number % 2], sized=number % 3 == 0, minor=2 if number == 2 else 0)
        own = linktypes[number % len(linktypes) :] + linktypes[: number % len(linktypes)]
        for linktype in own:
            builder.interface(linktype, 0 if number == 1 else 262144, (None, 9, 0x9E)[number % 3])
        for packet in packets[number * part : (number + 1) * part]:
            builder.packet(packet, own.index(packet.linktype))
        between(builder, number)
    return builder.file()


Form = Callable[[Sequence[Packet]], File]


def _forms() -> Iterator[tuple[str, Form]]:
    """Each form that libpcap reads, with its name."""
    for order, name in (("<", "little"), (">", "big")):
        for kind, magic in (("micro", MICROSECONDS), ("nano", NANOSECONDS), ("modified", MODIFIED)):
            yield f"pcap {kind} {name}", partial(pcap, order=order, magic=magic)
        for version in ((2, 3), (2, 2), (543, 0)):
            yield f"pcap {version[0]}.{version[1]} {name}", partial(pcap, order=order, version=version)
        for tsresol in (None, 0, 3, 6, 9, 0x94, 0x9E, 0xA0):
            resolution = "default" if tsresol is None else f"{2 if tsresol & 0x80 else 10}^-{tsresol & 0x7F}"
            yield f"pcapng {resolution} {name}", partial(pcapng, order=order, tsresol=tsresol)
        yield f"pcapng offset {name}", partial(pcapng, order=order, tsresol=9, offset=1_000_000_000)
        yield f"pcapng sized {name}", partial(pcapng, order=order, snaplen=0, sized=True, options=True)
        yield f"pcapng old {name}", partial(pcapng, order=order, old=True, options=True)
        yield f"pcapng other blocks {name}", partial(with_other_blocks, order=order)
        yield f"pcapng simple {name}", partial(simple_packets, order=order)
        yield f"pcapng interfaces {name}", partial(several_interfaces, order=order)


#: Forms by name: those that libpcap reads, for packets of one link type; and those that it refuses, for packets of any.
FORMS: dict[str, Form] = dict(_forms())
MIXED_FORMS: dict[str, Form] = {
    f"pcapng {kind} {name}": partial(form, order=order)
    for order, name in (("<", "little"), (">", "big"))
    for kind, form in (("link types", several_link_types), ("sections", several_sections))
}
#: Forms whose records do not look like those of any other: enough of them where it is not about times.
DISTINCT = [name for name in (*FORMS, *MIXED_FORMS) if "^" not in name and "2.2" not in name and "nano" not in name]


# ---- What is damaged ----


def absurd_lengths(file: File) -> Iterator[tuple[int, bytes]]:
    """The file with a length of a record or block that cannot be right, each with the place of that record or block.

    Of a pcap file it is the captured length, wherever it stands; of a pcapng file that of the block.
    """
    ng = file.octets[:4] == b"\x0a\x0d\x0d\x0a"
    for place in file.places[:-1]:
        for at in (place + 4,) if ng else (place + 8, place + 12):
            for length in (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, *((0, 3, 8, 13) if ng else ())):
                for order in "<>":
                    damaged = bytearray(file.octets)
                    struct.pack_into(f"{order}I", damaged, at, length)
                    yield place, bytes(damaged)


def noise(file: File, random: Random) -> bytes:
    """The file with a few bytes changed, taken out or put in."""
    octets = bytearray(file.octets)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(octets))
        # Lengths and the like are more telling than payload.
        if random.random() < 0.7:
            at = min(random.choice(file.places) + random.randrange(32), len(octets) - 1)
        match random.randrange(5):
            case 0:
                octets[at] ^= 1 << random.randrange(8)
            case 1:
                octets[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                octets[at : at + random.randrange(1, 9)] = b""
            case 3:
                octets[at:at] = random.randbytes(random.randrange(1, 9))
            case _:
                octets[at : at + 4] = random.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\1\0\0\0", b"\0\0\0\4", b"\0\0\1\0"))
    return bytes(octets) or b"\0"


# ---- What is read ----


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file holds: packets, where the records or blocks of each begin, and the place and reason of the end.

    `stopped` is None where the file ends as it should; else it is the place of the header, record or block that is cut or wrong,
    and `reason` says which: "cut", where the file ends within it, or what is wrong.
    """

    packets: tuple[Packet, ...]
    places: tuple[int, ...]
    stopped: int | None
    reason: str | None


class Stopped(Exception):
    """Reading cannot go on at a place, for a reason."""

    def __init__(self, place: int, reason: str):
        super().__init__(place, reason)
        self.place, self.reason = place, reason


def read(octets: bytes) -> Reading:
    """Read a whole file, as far as it goes."""
    packets: list[Packet] = []
    places: list[int] = []
    try:
        for place, packet in records(octets):
            packets.append(packet)
            places.append(place)
    except Stopped as stop:
        return Reading(tuple(packets), tuple(places), stop.place, stop.reason)
    return Reading(tuple(packets), tuple(places), None, None)


def records(octets: bytes) -> Iterator[tuple[int, Packet]]:
    """Each packet with its place."""
    if octets[:4] == struct.pack(">I", SHB):
        yield from _pcapng_records(octets)
        return
    for order in "<>":
        for magic in (MICROSECONDS, NANOSECONDS, MODIFIED):
            if octets[:4] == struct.pack(f"{order}I", magic):
                yield from _pcap_records(octets, order, magic)
                return
    raise Stopped(0, "no capture")


def _longest(linktype: int) -> int:
    return {231: 128 * 1024 * 1024, 249: 1024 * 1024, 279: 8 * 1024 * 1024}.get(linktype, 256 * 1024)


def _limit(snaplen: int, linktype: int) -> int:
    return _longest(linktype) if snaplen == 0 or snaplen >= 1 << 31 else snaplen


def _pcap_records(octets: bytes, order: str, magic: int) -> Iterator[tuple[int, Packet]]:
    if len(octets) < 24:
        raise Stopped(0, "cut")
    _, major, minor, _, _, snaplen, number = struct.unpack_from(f"{order}IHHiIII", octets)
    if (major, minor) not in ((2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (543, 0)):
        raise Stopped(0, "version")
    # Six bits about frame check sequences, ten that must be 0, the link type.
    if number >> 16 & 0x3FF:
        raise Stopped(0, "link type")
    linktype = IN_PROGRAMS.get(number & 0xFFFF, number & 0xFFFF)
    limit = _limit(snaplen, linktype)
    if magic == MODIFIED and linktype == 1:
        limit += 14
    at = 24
    while at < len(octets):
        start = at + (24 if magic == MODIFIED else 16)
        if start > len(octets):
            raise Stopped(at, "cut")
        seconds, fraction, captured, wirelen = struct.unpack_from(f"{order}4I", octets, at)
        if (major, minor) < (2, 3) or major == 543 or ((major, minor) == (2, 3) and captured > wirelen):
            captured, wirelen = wirelen, captured
        if captured > min(limit, _longest(linktype)):
            raise Stopped(at, "longer than the snap length")
        if start + captured > len(octets):
            raise Stopped(at, "cut")
        time = seconds * SECOND + fraction * (1 if magic == NANOSECONDS else 1000)
        yield at, Packet(time, wirelen, octets[start : start + captured], linktype)
        at = start + captured


def _pcapng_records(octets: bytes) -> Iterator[tuple[int, Packet]]:
    order, interfaces = "", list[tuple[int, int, int, int]]()
    at = 0
    while at < len(octets):
        if len(octets) - at < 8:
            raise Stopped(at, "cut")
        section = octets[at : at + 4] == struct.pack(">I", SHB)
        if section:
            if len(octets) - at < 12:
                raise Stopped(at, "cut")
            orders = [one for one in "<>" if octets[at + 8 : at + 12] == struct.pack(f"{one}I", BYTE_ORDER_MAGIC)]
            if not orders:
                raise Stopped(at, "byte order")
            order, interfaces = orders[0], []
        kind, length = struct.unpack_from(f"{order}II", octets, at)
        if length < 12 or length % 4:
            raise Stopped(at, "length of a block")
        if at + length > len(octets):
            raise Stopped(at, "cut")
        body = octets[at + 8 : at + length - 4]
        if struct.unpack_from(f"{order}I", octets, at + length - 4) != (length,):
            raise Stopped(at, "length at the end of a block")
        try:
            packet = _block(kind, body, order, interfaces)
        except struct.error:
            raise Stopped(at, "a block too short") from None
        except ValueError as error:
            raise Stopped(at, str(error)) from None
        if packet is not None:
            yield at, packet
        at += length


def _block(kind: int, body: bytes, order: str, interfaces: list[tuple[int, int, int, int]]) -> Packet | None:
    """The packet of a block, if it holds one; an interface is added to the others."""
    if kind == SHB:
        _, major, minor, _ = struct.unpack_from(f"{order}IHHq", body)
        if major != 1 or minor not in (0, 2):
            raise ValueError("version")
    elif kind == IDB:
        interfaces.append(_interface(body, order))
    elif kind == SPB:
        (wirelen,) = struct.unpack_from(f"{order}I", body)
        if not interfaces:
            raise ValueError("no such interface")
        linktype, snaplen, _, offset = interfaces[0]
        captured = min(wirelen, snaplen)
        if captured > len(body) - 4:
            raise ValueError("a packet longer than its block")
        return Packet(offset * SECOND, wirelen, body[4 : 4 + captured], linktype)
    elif kind in (EPB, PB):
        (interface,) = struct.unpack_from(f"{order}H" if kind == PB else f"{order}I", body)
        high, low, captured, wirelen = struct.unpack_from(f"{order}4I", body, 4)
        if interface >= len(interfaces):
            raise ValueError("no such interface")
        linktype, snaplen, resolution, offset = interfaces[interface]
        if captured > snaplen:
            raise ValueError("longer than the snap length")
        if captured > len(body) - 20:
            raise ValueError("a packet longer than its block")
        time = (high * 2**32 + low) * SECOND // resolution + offset * SECOND
        return Packet(time, wirelen, body[20 : 20 + captured], linktype)
    return None


def _interface(body: bytes, order: str) -> tuple[int, int, int, int]:
    """Link type, snap length, ticks a second, offset in seconds."""
    number, _, snaplen = struct.unpack_from(f"{order}HHI", body)
    linktype = IN_PROGRAMS.get(number, number)
    options: dict[int, bytes] = {}
    rest = body[8:]
    while rest:
        code, length = struct.unpack_from(f"{order}HH", rest)
        padded = (length + 3) // 4 * 4
        if 4 + padded > len(rest):
            raise ValueError("an option longer than its block")
        value, rest = rest[4 : 4 + length], rest[4 + padded :]
        if code == 0:
            if length:
                raise ValueError("an end of options that is not empty")
            break
        if code in (TSRESOL, TSOFFSET):
            if code in options:
                raise ValueError("an option twice")
            if length != {TSRESOL: 1, TSOFFSET: 8}[code]:
                raise ValueError("length of an option")
            options[code] = value
    resolution = ticks_a_second(options.get(TSRESOL, b"\6")[0])
    if resolution >= 1 << 64:
        raise ValueError("resolution")
    (offset,) = struct.unpack(f"{order}q", options.get(TSOFFSET, bytes(8)))
    return linktype, _limit(snaplen, linktype), resolution, offset


# ---- What tshark reads ----

#: What Wireshark calls link types (wiretap/wtap.h).
_ENCAPSULATIONS = {"1": 1, "7": 12, "25": 113, "210": 276}


def by_tshark(path: Path, displayed: str = "") -> list[Packet]:
    """The packets of a file that tshark shows, of the link types of `traffic`: all of them, or those of a display filter."""
    command = ["tshark", "-n", "-r", path, "-Y", displayed, "-T", "json", "-x", "-J", "frame", "--no-duplicate-keys"]
    packets = []
    for shown in json.loads(subprocess.run(command, capture_output=True, check=True).stdout):
        layers = shown["_source"]["layers"]
        frame = layers["frame"]
        if "frame.encap_type" not in frame:
            continue  # It shows custom blocks and unknown ones too, as packets without a link type.
        seconds, fraction = frame.get("frame.time_epoch", "0.000000000").split(".")
        data = bytes.fromhex(layers["frame_raw"][0]) if "frame_raw" in layers else b""
        time = int(seconds) * SECOND + int(fraction)
        packets.append(Packet(time, int(frame["frame.len"]), data, _ENCAPSULATIONS[frame["frame.encap_type"]]))
    return packets
