"""Headers of capture files: numbers and rules against libpcap itself, which opens what is made here by hand; and what is wrong."""

from __future__ import annotations

import os
import struct
import tempfile

import pytest
from libpcaps import each_libpcap

from pcapext import pcap_handles
from pcapext.errors import CaptureError, LibpcapError
from pcapext.formats import (
    NATIVE,
    PCAP_MAGICS,
    PCAPNG_MAGIC,
    Interface,
    Lengths,
    PcapHeader,
    block_length,
    check_section,
    dlt_of_linktype,
    linktype_of_dlt,
    longest_packet,
    pack_section,
    section_byteorder,
)

__all__ = ["each_libpcap"]

MICROSECONDS, NANOSECONDS, MODIFIED = 0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34


def pcap(
    order: str = "<", magic: int = MICROSECONDS, major: int = 2, minor: int = 4, snaplen: int = 65535, linktype: int = 1, zone: int = 0
) -> bytes:
    return struct.pack(f"{order}IHHiIII", magic, major, minor, zone, 0, snaplen, linktype)


def block(order: str, kind: int, body: bytes) -> bytes:
    length = struct.pack(f"{order}I", len(body) + 12)
    return struct.pack(f"{order}I", kind) + length + body + length


def section(order: str = "<", magic: int = 0x1A2B3C4D, major: int = 1, minor: int = 0, length: int = -1) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", magic, major, minor, length))


def interface(order: str = "<", linktype: int = 1, snaplen: int = 65535, options: bytes = b"") -> bytes:
    return block(order, 1, struct.pack(f"{order}HHI", linktype, 0, snaplen) + options)


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def opened(octets: bytes) -> pcap_handles.OfflineHandle:
    """A file of these bytes as libpcap opens it."""
    with tempfile.TemporaryFile() as file:
        file.write(octets)
        file.seek(0)
        return pcap_handles.open_offline(os.dup(file.fileno()))


def refused_by_libpcap(octets: bytes) -> bool:
    try:
        opened(octets).close()
    except LibpcapError:
        return True
    return False


def written(handle: pcap_handles.Handle) -> bytes:
    """The header that libpcap writes for what a handle reads."""
    with tempfile.TemporaryFile() as file:
        pcap_handles.Dumper(handle, os.dup(file.fileno())).close()
        file.seek(0)
        return file.read()


# --- link types

LINKTYPES = (*range(301), 1000, 0xFFFF)


@pytest.mark.usefixtures("each_libpcap")
def test_link_types_are_those_of_libpcap() -> None:
    for linktype in LINKTYPES:
        with_libpcap = opened(pcap(linktype=linktype)).linktype
        assert dlt_of_linktype(linktype) == with_libpcap, linktype
        assert PcapHeader.read(pcap(linktype=linktype), "x").linktype == with_libpcap
        assert Interface.read(interface(linktype=linktype), "<", "x", 0).linktype == with_libpcap


@pytest.mark.usefixtures("each_libpcap")
def test_numbers_in_files_are_those_of_libpcap() -> None:
    for dlt in LINKTYPES:
        try:
            theirs = struct.unpack_from("=I", written(pcap_handles.open_dead(dlt)), 20)[0]
        except LibpcapError:
            # It knows no numbers above those registered when it was made: 289 in version 1.10.3, which has no 32 either.
            assert dlt > 289 or dlt == 32 or linktype_of_dlt(dlt) is None, dlt
        else:
            assert linktype_of_dlt(dlt) == theirs
            assert PcapHeader(dlt).pack("x")[20:] == struct.pack("=I", theirs)


def test_a_number_in_a_file_is_read_back() -> None:
    numbers = {dlt: linktype_of_dlt(dlt) for dlt in range(0x10000)}
    assert all(dlt_of_linktype(linktype) == dlt for dlt, linktype in numbers.items() if linktype is not None and dlt != 106)
    assert linktype_of_dlt(0x10000) is None
    assert linktype_of_dlt(-1) is None


def test_a_link_type_without_a_number() -> None:
    for value in (PcapHeader(13), Interface(13)):
        with pytest.raises(CaptureError, match=r"^out: link type 13 has no number in capture files$"):
            value.pack("out")


@pytest.mark.usefixtures("each_libpcap")
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("linktype", [1, 101, 113, 231, 249, 279])
@pytest.mark.parametrize("snaplen", [0, 1, 65535, 0x7FFFFFF1, 0x7FFFFFF2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("magic", [MICROSECONDS, NANOSECONDS, MODIFIED])
def test_headers_are_those_of_libpcap(order: str, linktype: int, snaplen: int, magic: int) -> None:
    octets = pcap(order, magic, snaplen=snaplen, linktype=linktype, zone=3600)
    handle = opened(octets)
    header = PcapHeader.read(octets, "x")
    assert (header.linktype, header.snaplen, header.nanoseconds) == (handle.linktype, handle.snaplen, handle.nanoseconds)
    assert (header.byteorder, header.record_header) == (order, 24 if magic == MODIFIED else 16)
    assert header.pack("x") == written(handle)


@pytest.mark.usefixtures("each_libpcap")
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("linktype", [1, 101, 231, 249, 279])
@pytest.mark.parametrize("snaplen", [0, 1, 65535, 0x7FFFFFFF, 0x80000000])
def test_interfaces_are_those_of_libpcap(order: str, linktype: int, snaplen: int) -> None:
    handle = opened(section(order) + interface(order, linktype, snaplen))
    assert Interface.read(interface(order, linktype, snaplen), order, "x", 0) == Interface(handle.linktype, handle.snaplen)


def test_longest_packet() -> None:
    """What libpcap takes where a header has no limit."""
    assert all(longest_packet(handle.linktype) == handle.snaplen for handle in (opened(pcap(snaplen=0, linktype=n)) for n in LINKTYPES))


# --- pcap


@pytest.mark.usefixtures("each_libpcap")
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("major", "minor"), [(2, 0), (2, 1), (2, 2), (2, 3), (2, 4), (543, 0)])
def test_lengths(order: str, major: int, minor: int) -> None:
    """As libpcap reads records whose lengths are 2 and 4, and 4 and 2."""
    header = pcap(order, major=major, minor=minor)
    read = []
    for lengths in ((2, 4), (4, 2)):
        _, wirelen, data = next(iter(opened(header + struct.pack(f"{order}4I", 0, 0, *lengths) + bytes(4))))
        read.append((len(data), wirelen))
    assert {
        Lengths.CAPTURED_FIRST: [(2, 4), (4, 2)],
        Lengths.CAPTURED_SECOND: [(4, 2), (2, 4)],
        Lengths.SMALLER_CAPTURED: [(2, 4), (2, 4)],
    }[PcapHeader.read(header, "x").lengths] == read


@pytest.mark.parametrize("bits", [0x54000000, 0xFC000000, 0x04000000])
def test_extension(bits: int) -> None:
    """The length of a frame check sequence is kept in a copy, as libpcap keeps it."""
    octets = pcap(">", linktype=bits | 101)
    header = PcapHeader.read(octets, "x")
    assert (header.linktype, header.extension) == (12, bits)
    assert header.pack("x") == written(opened(octets)) == pcap(NATIVE, linktype=bits | 101)


@pytest.mark.usefixtures("each_libpcap")
@pytest.mark.parametrize("version", [(0, 0), (1, 4), (2, 5), (3, 0), (543, 1), (9, 9), (0xFFFF, 0xFFFF)])
@pytest.mark.parametrize("order", "<>")
def test_versions_that_libpcap_refuses(version: tuple[int, int], order: str) -> None:
    octets = pcap(order, major=version[0], minor=version[1])
    assert refused_by_libpcap(octets)
    assert (
        error(lambda: PcapHeader.read(octets, "x")) == f"x: byte 4: version {version[0]}.{version[1]} of the pcap format is not supported"
    )


@pytest.mark.usefixtures("each_libpcap")
@pytest.mark.parametrize("magic", [0, 0xA1B234CD, 0xA12B3C4D, 0x0A0D0D0A, 0x1F8B0800])
def test_no_magic(magic: int) -> None:
    octets = pcap(magic=magic)
    assert refused_by_libpcap(octets)
    assert error(lambda: PcapHeader.read(octets, "x")) == "x: byte 0: neither a pcap nor a pcapng file begins like this"


def test_magics() -> None:
    assert len(PCAP_MAGICS) == 6
    assert all(PcapHeader.read(magic + pcap(order)[4:], "x").byteorder == order for magic, (order, _) in PCAP_MAGICS.items())
    assert PCAPNG_MAGIC == section("<")[:4] == section(">")[:4]


@pytest.mark.parametrize("length", range(24))
def test_cut_pcap(length: int) -> None:
    message = error(lambda: PcapHeader.read(pcap()[:length], "x"))
    if length < 4:
        assert message == "x: byte 0: neither a pcap nor a pcapng file begins like this"
    else:
        assert message == f"x: byte {length}: the file ends within its header of 24 bytes"


def test_reserved_bits_of_the_link_type() -> None:
    """libpcap refuses them from version 1.10.5 on."""
    assert error(lambda: PcapHeader.read(pcap(linktype=0x10001), "x")) == "x: byte 20: no link type: 0x10001"
    assert error(lambda: PcapHeader.read(pcap(linktype=0x56000071), "x")) == "x: byte 20: no link type: 0x56000071"


@pytest.mark.parametrize(
    "values",
    [
        {"linktype": -1},
        {"linktype": 0x10000},
        {"snaplen": 0},
        {"snaplen": 1 << 31},
        {"byteorder": "="},
        {"record_header": 20},
        {"extension": 1},
    ],
)
def test_no_such_header(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"link type|snap length|header"):
        PcapHeader(**({"linktype": 1} | values))  # type: ignore[arg-type]


# --- pcapng

TSRESOL, TSOFFSET, NAME = 9, 14, 2


@pytest.mark.usefixtures("each_libpcap")
@pytest.mark.parametrize("order", "<>")
def test_sections(order: str) -> None:
    for octets in (section(order), section(order, length=1000), section(order, minor=2)):
        assert not refused_by_libpcap(octets + interface(order))
        assert section_byteorder(octets[:12], "x", 0) == check_section(octets, "x", 0) == order
        assert block_length(octets[:8], order, "x", 0) == 28


def test_packed_is_what_libpcap_opens() -> None:
    for value in (Interface(1), Interface(12, 1000, 10**9), Interface(113, 0x7FFFFFFF, 2**32, -1), Interface(249, 1, 1, 1 << 40)):
        handle = opened(pack_section() + value.pack("x"))
        assert (handle.linktype, handle.snaplen) == (value.linktype, value.snaplen)
        assert Interface.read(value.pack("x"), NATIVE, "x", 28) == value
    assert pack_section() == section(NATIVE)
    assert Interface(1, 65535).pack("x") == interface(NATIVE)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("octet", range(256))
def test_resolutions(order: str, octet: int) -> None:
    """What libpcap takes, it takes for the same number of ticks: a second and a half is 1.5 s."""
    ticks = 2 ** (octet & 0x7F) if octet & 0x80 else 10**octet
    block_ = interface(order, options=option(order, TSRESOL, bytes([octet])))
    # Where half a second is 2**35 ticks or more, libpcap's product of ticks and nanoseconds does not fit its 64 bits.
    fraction = 0 if octet > 0xA3 else ticks // 2
    time = ticks + fraction
    if ticks < 1 << 64:
        assert Interface.read(block_, order, "x", 0).resolution == ticks
        if time < 1 << 64:
            packet = block(order, 6, struct.pack(f"{order}5I", 0, time >> 32, time & 0xFFFFFFFF, 0, 0))
            assert [time for time, _, _ in opened(section(order) + block_ + packet)] == [10**9 + fraction * 10**9 // ticks]
    else:
        base = f"{2 if octet & 0x80 else 10}^-{octet & 0x7F}"
        assert refused_by_libpcap(section(order) + block_)
        assert error(lambda: Interface.read(block_, order, "x", 100)) == f"x: byte 120: times in units of {base} s are too fine for 64 bits"


@pytest.mark.parametrize("order", "<>")
def test_options_of_interfaces(order: str) -> None:
    options = b"".join(
        [
            option(order, NAME, b"eth0!"),
            option(order, 1, b""),
            option(order, TSOFFSET, struct.pack(f"{order}q", -5)),
            option(order, 2988, bytes(9)),
            option(order, TSRESOL, b"\x9e"),
            option(order, 0, b""),
        ]
    )
    expected = Interface(1, 65535, 1 << 30, -5)
    assert Interface.read(interface(order, options=options), order, "x", 0) == expected
    # Nothing counts behind the end, and the end may be missing.
    assert Interface.read(interface(order, options=options + b"\xff" * 8), order, "x", 0) == expected
    assert Interface.read(interface(order, options=options[:-4]), order, "x", 0) == expected
    time = 7 << 30
    packet = block(order, 6, struct.pack(f"{order}5I", 0, time >> 32, time & 0xFFFFFFFF, 0, 0))
    assert [time for time, _, _ in opened(section(order) + interface(order, options=options) + packet)] == [2 * 10**9]


def cut(order: str) -> bytes:
    """An interface whose block is too short for it."""
    return block(order, 1, bytes(4))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("make", "offset", "words"),
    [
        (lambda order: interface(order, options=option(order, TSRESOL, b"")), 18, "option 9 of an interface has 0 bytes, expected 1"),
        (lambda order: interface(order, options=option(order, TSRESOL, b"ab")), 18, "option 9 of an interface has 2 bytes, expected 1"),
        (
            lambda order: interface(order, options=option(order, TSOFFSET, bytes(4))),
            18,
            "option 14 of an interface has 4 bytes, expected 8",
        ),
        (lambda order: interface(order, options=2 * option(order, TSRESOL, b"\6")), 24, "option 9 of an interface a second time"),
        (lambda order: interface(order, options=2 * option(order, TSOFFSET, bytes(8))), 28, "option 14 of an interface a second time"),
        (lambda order: interface(order, options=struct.pack(f"{order}HH", 2, 1)), 16, "an option of 1 bytes is longer than its block"),
        (
            lambda order: interface(order, options=option(order, 1, b"abcd") + struct.pack(f"{order}HH", 2, 0xFFFF)),
            24,
            "an option of 65535 bytes is longer than its block",
        ),
        (lambda order: interface(order, options=option(order, 0, bytes(4))), 18, "the end of the options has 4 bytes"),
        (cut, 4, "a block of 16 bytes, too short for its type"),
        (lambda order: interface(order)[:-4] + bytes(4), 16, "a block of 20 bytes gives its length as 0 at its end"),
        (lambda order: interface(order)[:-1], 19, "the file ends within a block of 20 bytes"),
        (
            lambda order: interface(order)[:4] + struct.pack(f"{order}I", 22) + bytes(14),
            4,
            "a block of 22 bytes, expected 12 or more and a multiple of 4",
        ),
        (
            lambda order: interface(order)[:4] + struct.pack(f"{order}I", 8),
            4,
            "a block of 8 bytes, expected 12 or more and a multiple of 4",
        ),
    ],
)
def test_damaged_interfaces(order: str, make: object, offset: int, words: str) -> None:
    octets = make(order)  # type: ignore[operator]
    assert refused_by_libpcap(section(order) + octets)
    assert error(lambda: Interface.read(octets, order, "x", 1 << 40)) == f"x: byte {(1 << 40) + offset}: {words}"


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("make", "offset", "words"),
    [
        (lambda order: section(order, major=2), 12, "version 2.0 of the pcapng format is not supported"),
        (lambda order: section(order, minor=1), 12, "version 1.1 of the pcapng format is not supported"),
        (lambda order: section(order)[:11], 11, "the file ends within the header of a section"),
        (lambda order: section(order)[:20], 20, "the file ends within a block of 28 bytes"),
        (lambda order: section(order)[:-4] + bytes(4), 24, "a block of 28 bytes gives its length as 0 at its end"),
        (lambda order: block(order, 0x0A0D0D0A, section(order)[8:-8]), 4, "a block of 24 bytes, too short for its type"),
    ],
)
def test_damaged_sections(order: str, make: object, offset: int, words: str) -> None:
    octets = make(order)  # type: ignore[operator]
    assert error(lambda: check_section(octets, "x", 64)) == f"x: byte {64 + offset}: {words}"
    # It does not look at the length at the end of the first block.
    assert refused_by_libpcap(octets + interface(order)) or "at its end" in words


def test_no_byte_order() -> None:
    assert error(lambda: check_section(section(magic=0x04030201), "x", 64)) == "x: byte 72: no byte order of a section: 01 02 03 04"


@pytest.mark.parametrize(
    "values",
    [{"linktype": 0x10000}, {"snaplen": 0}, {"resolution": 3}, {"resolution": 1 << 64}, {"resolution": 10**20}, {"offset": 1 << 63}],
)
def test_no_such_interface(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"link type|snap length|ticks|offset"):
        Interface(**({"linktype": 1} | values))


def error(call: object) -> str:
    with pytest.raises(CaptureError) as caught:
        call()  # type: ignore[operator]
    return str(caught.value)
