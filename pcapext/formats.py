"""What stands in a capture file beside its packets: the header of a pcap file, sections and interfaces of a pcapng file.

In:  the bytes of a header or of a whole block; or values.
Out: values that a reader of records goes by; or the bytes, in the byte order of this machine.

Facts are from draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng and libpcap's sf-pcap.c, sf-pcapng.c and pcap-common.c. Whatever is
wrong is a `CaptureError`, `NAME: byte OFFSET: what`; the offset is where the wrong field begins, counted from the file's first byte.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from enum import IntEnum

from pcapext.bpf import MAXIMUM_SNAPLEN
from pcapext.errors import CaptureError
from pcapext.slotted import dataclass

#: "<" or ">", as struct knows them: the order of this machine, in which files are written.
NATIVE = "<" if sys.byteorder == "little" else ">"


def damage(name: str, offset: int, what: str) -> CaptureError:
    """The error for something wrong in the file `name`, at the byte `offset`.

    >>> print(damage("x.pcap", 24, "a record that claims 4294967295 bytes"))
    x.pcap: byte 24: a record that claims 4294967295 bytes
    """
    return CaptureError(f"{name}: byte {offset}: {what}")


# --- link types

#: DLT numbers whose number in files is another one, on Linux (pcap-common.c, `map`): ATM_RFC1483, RAW, SLIP_BSDOS, PPP_BSDOS, ATM_CLIP.
_LINKTYPES = {11: 100, 12: 101, 15: 102, 16: 103, 19: 106}
_DLTS = {linktype: dlt for dlt, linktype in _LINKTYPES.items()}
#: Below 104, the DLT numbers that are the same in files. From 104 on all are, of systems that know nothing of 106 as a DLT.
_SAME = frozenset((*range(11), 32, 50, 51, 99))
_FIRST_OF_MATCHING, _LAST_LINKTYPE = 104, 0xFFFF

#: Packets longer than usual: D-Bus messages, USBPcap, EBHSCR (pcap-common.c, max_snaplen_for_dlt).
_LONGEST = {231: 128 << 20, 249: 1 << 20, 279: 8 << 20}


def dlt_of_linktype(linktype: int) -> int:
    """The DLT number, which programs use, of a link type number in a file.

    >>> dlt_of_linktype(101), dlt_of_linktype(113)
    (12, 113)
    """
    return _DLTS.get(linktype, linktype)


def linktype_of_dlt(dlt: int) -> int | None:
    """The number in files of a link type that programs know by a DLT number, or None if it has none.

    >>> linktype_of_dlt(12), linktype_of_dlt(113), linktype_of_dlt(13)
    (101, 113, None)
    """
    if dlt in _SAME or _FIRST_OF_MATCHING <= dlt <= _LAST_LINKTYPE:
        return dlt
    return _LINKTYPES.get(dlt)


def longest_packet(dlt: int) -> int:
    """The most bytes that a packet of a link type can sensibly have in a file; more is damage."""
    return _LONGEST.get(dlt, MAXIMUM_SNAPLEN)


def _snaplen(field: int, dlt: int) -> int:
    """A snap length as libpcap takes it: 0 is no limit, and so is what C's `int` cannot hold (savefile.c, pcap_adjust_snapshot)."""
    return field if 0 < field <= _INT_MAX else longest_packet(dlt)


_INT_MAX = 0x7FFF_FFFF


# --- pcap

PCAP_HEADER = 24
_PCAP = "IHHiIII"
_MICROSECONDS, _NANOSECONDS, _MODIFIED = 0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34
#: The first bytes of pcap files, and what they tell: the byte order and the number.
PCAP_MAGICS = {struct.pack(f"{order}I", magic): (order, magic) for order in "<>" for magic in (_MICROSECONDS, _NANOSECONDS, _MODIFIED)}

#: The field of the link type: its number in the low half; above what says how long frame check sequences are; zeros between.
_LINKTYPE_BITS, _RESERVED_BITS, _EXTENSION_BITS = 0x0000_FFFF, 0x03FF_0000, 0xFC00_0000


class Lengths(IntEnum):
    """Which of a record's two lengths is the captured one.

    Before version 2.3 it was the second. In files of version 2.3 it may be either: where the first is the larger, the second.
    """

    CAPTURED_FIRST = 0
    CAPTURED_SECOND = 1
    SMALLER_CAPTURED = 2


@dataclass(frozen=True, slots=True)
class PcapHeader:
    """The header of a pcap file.

    `byteorder` is "<" or ">". Times of records are seconds and then nano- or microseconds, as `nanoseconds` tells, both unsigned.
    `record_header` is the length of the header of a record: 16, or 24 in the format of Kuznetzov's patches, with 8 more bytes before
    the packet. `snaplen`, in bytes, and `linktype`, a DLT number, are as libpcap has them. `extension` holds the upper
    6 bits of the field that holds the link type in the file: whether there is a frame check sequence, and its length.
    """

    linktype: int
    snaplen: int = MAXIMUM_SNAPLEN
    nanoseconds: bool = False
    byteorder: str = NATIVE
    record_header: int = 16
    lengths: Lengths = Lengths.CAPTURED_FIRST
    extension: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.linktype <= _LAST_LINKTYPE:
            raise ValueError(f"link type {self.linktype} is out of range, expected 0 to {_LAST_LINKTYPE}")
        if not 1 <= self.snaplen <= _INT_MAX:
            raise ValueError(f"snap length {self.snaplen} is out of range, expected 1 to {_INT_MAX}")
        if self.byteorder not in ("<", ">") or self.record_header not in (16, 24) or self.extension & ~_EXTENSION_BITS:
            raise ValueError(f"no header of a pcap file: {self!r}")

    @classmethod
    def read(cls, octets: bytes, name: str) -> PcapHeader:
        """The header that a file begins with; `octets` are its first 24 bytes, or all of a shorter file."""
        if octets[:4] not in PCAP_MAGICS:
            raise damage(name, 0, "neither a pcap nor a pcapng file begins like this")
        if len(octets) < PCAP_HEADER:
            raise damage(name, len(octets), f"the file ends within its header of {PCAP_HEADER} bytes")
        order, magic = PCAP_MAGICS[octets[:4]]
        _, major, minor, _, _, snaplen, field = struct.unpack_from(order + _PCAP, octets)
        match major, minor:
            case 2, 4:
                lengths = Lengths.CAPTURED_FIRST
            case 2, 3:
                lengths = Lengths.SMALLER_CAPTURED
            case (2, 0 | 1 | 2) | (543, 0):  # 543.0 is DG/UX's
                lengths = Lengths.CAPTURED_SECOND
            case _:
                raise damage(name, 4, f"version {major}.{minor} of the pcap format is not supported")
        if field & _RESERVED_BITS:
            raise damage(name, 20, f"no link type: {field:#x}")
        linktype = dlt_of_linktype(field & _LINKTYPE_BITS)
        snaplen = _snaplen(snaplen, linktype)
        modified = magic == _MODIFIED
        if modified and linktype == 1:
            # The patched libpcap put an Ethernet header before what had been cut to the snap length (sf-pcap.c, pcap_check_header).
            snaplen = min(snaplen + 14, _INT_MAX)
        return cls(linktype, snaplen, magic == _NANOSECONDS, order, 24 if modified else 16, lengths, field & _EXTENSION_BITS)

    def pack(self, name: str) -> bytes:
        """The header of a new file `name` for the same packets: of version 2.4, in the byte order of this machine.

        >>> PcapHeader(linktype=1) == PcapHeader.read(PcapHeader(linktype=1).pack("x.pcap"), "x.pcap")
        True
        """
        magic = _NANOSECONDS if self.nanoseconds else _MICROSECONDS
        return struct.pack(f"={_PCAP}", magic, 2, 4, 0, 0, self.snaplen, _writable(self.linktype, name) | self.extension)


def _writable(dlt: int, name: str) -> int:
    linktype = linktype_of_dlt(dlt)
    if linktype is None:
        raise CaptureError(f"{name}: link type {dlt} has no number in capture files")
    return linktype


# --- pcapng

SECTION_HEADER, INTERFACE, OLD_PACKET, SIMPLE_PACKET, NAMES, STATISTICS, PACKET = 0x0A0D0D0A, 1, 2, 3, 4, 5, 6
SECRETS, CUSTOM, CUSTOM_NOT_TO_COPY = 10, 0x0BAD, 0x40000BAD

#: The first bytes of a pcapng file, and of every section: the type of the block reads the same in both byte orders.
PCAPNG_MAGIC = SECTION_HEADER.to_bytes(4, "big")
_BYTE_ORDER_MAGIC = 0x1A2B3C4D

#: Bytes that are enough to tell a section's byte order and the length of its first block.
SECTION_START = 12
#: Bytes around what a block holds: type and length before, the length again behind.
_HEAD, _TAIL = 8, 4
_SECTION, _INTERFACE, _OPTION = "IHHq", "HHI", "HH"

#: Options (draft-ietf-opsawg-pcapng, sections 3.5 and 4.2).
_END_OF_OPTIONS, _TSRESOL, _TSOFFSET = 0, 9, 14
_LENGTHS = {_TSRESOL: 1, _TSOFFSET: 8}
_MICROSECOND_TICKS = 10**6


def section_byteorder(start: bytes, name: str, offset: int) -> str:
    """The byte order of a section, "<" or ">"; `start` are the first 12 bytes of its first block, which is at `offset`."""
    for order in "<>":
        if start[8:12] == struct.pack(f"{order}I", _BYTE_ORDER_MAGIC):
            return order
    if len(start) < SECTION_START:
        raise damage(name, offset + len(start), "the file ends within the header of a section")
    raise damage(name, offset + 8, f"no byte order of a section: {start[8:12].hex(' ')}")


def block_length(start: bytes, byteorder: str, name: str, offset: int) -> int:
    """The length of a whole block by its first 8 bytes; the block is at `offset`."""
    (length,) = struct.unpack_from(f"{byteorder}I", start, 4)
    if length < _HEAD + _TAIL or length % 4:
        raise damage(name, offset + 4, f"a block of {length} bytes, expected {_HEAD + _TAIL} or more and a multiple of 4")
    return int(length)


def _body(block: bytes, shortest: int, byteorder: str, name: str, offset: int) -> bytes:
    """What a whole block holds, at least `shortest` bytes, when its lengths are right."""
    length = block_length(block, byteorder, name, offset)
    if length != len(block):
        raise damage(name, offset + len(block), f"the file ends within a block of {length} bytes")
    if length < _HEAD + shortest + _TAIL:
        raise damage(name, offset + 4, f"a block of {length} bytes, too short for its type")
    (again,) = struct.unpack_from(f"{byteorder}I", block, length - _TAIL)
    if again != length:
        raise damage(name, offset + length - _TAIL, f"a block of {length} bytes gives its length as {again} at its end")
    return block[_HEAD:-_TAIL]


def _block(kind: int, body: bytes) -> bytes:
    length = _HEAD + len(body) + _TAIL
    return struct.pack("=II", kind, length) + body + struct.pack("=I", length)


def check_section(block: bytes, name: str, offset: int) -> str:
    """The byte order of the section that a whole section header block begins, of a version that can be read.

    How long the section says to be is of no account: its end is the next section header, or the file's end.
    """
    order = section_byteorder(block, name, offset)
    _, major, minor, _ = struct.unpack_from(order + _SECTION, _body(block, struct.calcsize(order + _SECTION), order, name, offset))
    # Version 1.2 is what some wrote for 1.0 (section 4.1).
    if (major, minor) not in ((1, 0), (1, 2)):
        raise damage(name, offset + 12, f"version {major}.{minor} of the pcapng format is not supported")
    return order


def pack_section() -> bytes:
    """A section header block, in the byte order of this machine, for a section of unknown length.

    >>> check_section(pack_section(), "x.pcapng", 0) == NATIVE
    True
    """
    return _block(SECTION_HEADER, struct.pack(f"={_SECTION}", _BYTE_ORDER_MAGIC, 1, 0, -1))


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a section: what the packets captured on it have in common.

    `linktype` is a DLT number, `snaplen` in bytes, as libpcap has them. A packet's time is a number of ticks, `resolution`
    of them a second, a power of 10 or of 2 below 2**64, and `offset` seconds are added to it.
    """

    linktype: int
    snaplen: int = MAXIMUM_SNAPLEN
    resolution: int = _MICROSECOND_TICKS
    offset: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.linktype <= _LAST_LINKTYPE:
            raise ValueError(f"link type {self.linktype} is out of range, expected 0 to {_LAST_LINKTYPE}")
        if not 1 <= self.snaplen <= _INT_MAX:
            raise ValueError(f"snap length {self.snaplen} is out of range, expected 1 to {_INT_MAX}")
        if self.resolution not in _RESOLUTIONS:
            raise ValueError(f"{self.resolution} ticks a second, expected a power of 10 or of 2 below 2**64")
        if not -(1 << 63) <= self.offset < 1 << 63:
            raise ValueError(f"an offset of {self.offset} seconds does not fit 64 bits")

    @classmethod
    def read(cls, block: bytes, byteorder: str, name: str, offset: int) -> Interface:
        """The interface of a whole interface description block, which is at `offset`."""
        fixed = struct.calcsize(byteorder + _INTERFACE)
        body = _body(block, fixed, byteorder, name, offset)
        linktype, _, snaplen = struct.unpack_from(byteorder + _INTERFACE, body)
        linktype = dlt_of_linktype(linktype)
        found: dict[int, int] = {}
        for place, code, value in _options(body, fixed, byteorder, name, offset + _HEAD):
            if code not in _LENGTHS:
                continue
            if code in found:
                raise damage(name, place, f"option {code} of an interface a second time")
            if len(value) != _LENGTHS[code]:
                raise damage(name, place + 2, f"option {code} of an interface has {len(value)} bytes, expected {_LENGTHS[code]}")
            if code == _TSOFFSET:
                (found[code],) = struct.unpack(f"{byteorder}q", value)
            elif value[0] in _TICKS:
                found[code] = _TICKS[value[0]]
            else:
                base = 2 if value[0] & _BINARY else 10
                raise damage(name, place + 4, f"times in units of {base}^-{value[0] & ~_BINARY} s are too fine for 64 bits")
        return cls(linktype, _snaplen(snaplen, linktype), found.get(_TSRESOL, _MICROSECOND_TICKS), found.get(_TSOFFSET, 0))

    def pack(self, name: str) -> bytes:
        """An interface description block, in the byte order of this machine, for the file `name`.

        >>> Interface.read(Interface(113, resolution=10**9).pack("x.pcapng"), NATIVE, "x.pcapng", 28)
        Interface(linktype=113, snaplen=262144, resolution=1000000000, offset=0)
        """
        body = struct.pack(f"={_INTERFACE}", _writable(self.linktype, name), 0, self.snaplen)
        options = b""
        if self.resolution != _MICROSECOND_TICKS:
            options += struct.pack(f"={_OPTION}B3x", _TSRESOL, 1, _RESOLUTIONS[self.resolution])
        if self.offset:
            options += struct.pack(f"={_OPTION}q", _TSOFFSET, 8, self.offset)
        return _block(INTERFACE, body + options + (struct.pack(f"={_OPTION}", _END_OF_OPTIONS, 0) if options else b""))


#: What the option if_tsresol can say: n for 10**n ticks a second, with the highest bit 2**n, as far as 64 bits go.
_BINARY = 0x80
_TICKS = {n: 10**n for n in range(20)} | {_BINARY | n: 2**n for n in range(64)}
_RESOLUTIONS = {ticks: octet for octet, ticks in reversed(_TICKS.items())}


def _options(body: bytes, start: int, byteorder: str, name: str, offset: int) -> Iterator[tuple[int, int, bytes]]:
    """The options of a block from `start` in its body on, each with its place in the file; the body is at `offset`."""
    while start < len(body):
        code, length = struct.unpack_from(byteorder + _OPTION, body, start)
        if code == _END_OF_OPTIONS:
            if length:
                raise damage(name, offset + start + 2, f"the end of the options has {length} bytes")
            return
        end = start + 4 + length
        if end + -length % 4 > len(body):
            raise damage(name, offset + start, f"an option of {length} bytes is longer than its block")
        yield offset + start, code, body[start + 4 : end]
        start = end + -length % 4
