"""Headers with numbers in the byte order of the machine that captured: packets are what libpcap makes of them, whole or cut anywhere."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from capturefiles import SECOND, File, Packet, Pcapng, pcap, pcapng, read, traffic

import pcapext
from pcapext.pcap_handles import open_offline

NULL, LOOP, ENC = 0, 108, 109
LINUX_SLL, PFLOG, USB_LINUX, USB_MMAPPED, NFLOG, LINUX_SLL2 = 113, 117, 189, 220, 239, 276
CORRECTED = (LINUX_SLL, PFLOG, USB_LINUX, USB_MMAPPED, NFLOG, LINUX_SLL2)
SYSTEM, OTHER = "<>" if sys.byteorder == "little" else "><"


# ---- Packets, each with its length on the wire ----

Made = tuple[bytes, int]


def usb(
    order: str,
    descriptors: list[tuple[int, int]],
    *,
    event: str = "C",
    transfer: int = 0,
    endpoint: int = 0x81,
    no_data: int = 0,
    urb_length: int = 0x01020304,
    count: int | None = None,
    wirelen: int | None = None,
) -> Made:
    """A packet of USB_LINUX_MMAPPED; the first 48 bytes are the header of USB_LINUX. `descriptors` are offset and length."""
    count = len(descriptors) if count is None else count
    head = struct.pack(f"{order}QcBBBHBB", 0x0102030405060708, event.encode(), transfer, endpoint, 7, 0x0102, 0, no_data)
    head += struct.pack(f"{order}qiiII", 0x01020304050607, 0x010203, -2, urb_length, 0x0A0B0C0D)
    head += struct.pack(f"{order}ii", 3, 5) if transfer == 0 else bytes(range(8))
    head += struct.pack(f"{order}iiII", 1, 0x010203, 0x0200, count)
    for offset, length in descriptors:
        head += struct.pack(f"{order}iII4s", -18, offset, length, b"pad!")
    head += b"what was transferred"
    return head, 64 + 16 * count + urb_length & 0xFFFFFFFF if wirelen is None else wirelen


def usbs(order: str) -> Iterator[Made]:
    some = [(0, 192), (192, 0), (384, 100), (200, 10)]
    yield usb(order, some)
    yield usb(order, some, wirelen=5000)
    yield usb(order, some, event="S")
    yield usb(order, some, transfer=3)
    yield usb(order, some, endpoint=1)
    yield usb(order, some, no_data=1)
    yield usb(order, some, count=2)
    yield usb(order, some, count=0x10000001, urb_length=9)
    yield usb(order, some, count=0xFFFFFFFF, wirelen=64)
    yield usb(order, [])
    yield usb(order, [(0, 1)], urb_length=0)
    yield usb(order, [(0xFFFFFFFF, 3), (4, 5)])


def pflogs(order: str) -> Iterator[Made]:
    for length in (61, 0, 44, 48, 50, 52, 56, 60, 100, 255):
        packet = struct.pack(">BBBB16s16sII", length, 2, 0, 0, b"em0", b"", 1, 2) + struct.pack(f"{order}IiIi", 501, -2, 0x01020304, 5)
        yield packet + b"\1\0\0\0" + bytes(range(20)), 84


def cooked(order: str) -> Iterator[Made]:
    for protocol in (0x000C, 0x000D, 0x0800, 0x0C00, 0x010C):
        frame = struct.pack(f"{order}I", 0x80000123) + bytes(range(12))
        yield struct.pack(">HHH8sH", 0, 280, 0, b"", protocol) + frame, 32


def cooked2(order: str) -> Iterator[Made]:
    for protocol in (0x000C, 0x000D, 0x0800, 0x0C00, 0x010C):
        frame = struct.pack(f"{order}I", 0x80000123) + bytes(range(12))
        yield struct.pack(">HHIHBB8s", protocol, 0, 3, 280, 0, 0, b"") + frame, 36


def nflogs(order: str) -> Iterator[Made]:
    def attribute(length: int, kind: int, value: bytes) -> bytes:
        return struct.pack(f"{order}HH", length, kind) + value + bytes(-len(value) % 4)

    whole = attribute(8, 1, b"\x08\0\1\0") + attribute(5, 10, b"x") + attribute(4, 7, b"") + attribute(24, 9, bytes(range(20)))
    yield b"\2\0\0\5" + whole, 4 + len(whole)
    yield b"\2\1\0\5" + whole, 4 + len(whole)
    for length in (0, 1, 3, 4, 6, 32, 33, 0x1000, 0xFFFC, 0xFFFD, 0xFFFF):
        packet = b"\2\0\0\5" + attribute(8, 1, b"\x08\0\1\0") + attribute(length, 9, b"abcdefgh") + attribute(8, 1, b"mark") + whole
        yield packet, len(packet)


MADE = {LINUX_SLL: cooked, PFLOG: pflogs, USB_LINUX: usbs, USB_MMAPPED: usbs, NFLOG: nflogs, LINUX_SLL2: cooked2}


def cut(linktype: int, order: str) -> list[Packet]:
    """Each packet cut to every length, with lengths on the wire of all sorts."""
    packets = []
    for data, wirelen in MADE[linktype](order):
        for length in range(len(data) + 1):
            for on_wire in (wirelen, wirelen - 1, length, length // 2):
                packets.append(Packet((1_700_000_000 + len(packets)) * SECOND, on_wire, data[:length], linktype))
    return packets


def at_random(linktype: int, order: str, seed: int) -> list[Packet]:
    """Packets with some bytes changed."""
    random, made, packets = Random(seed), list(MADE[linktype](order)), []
    for number in range(1500):
        data, wirelen = random.choice(made)
        octets = bytearray(data)
        for _ in range(random.randrange(4)):
            octets[random.randrange(len(octets))] = random.choice((0, 1, 2, 4, 12, 64, 128, 255, random.randrange(256)))
        octets = octets[: random.choice((len(octets), random.randrange(len(octets) + 1)))]
        on_wire = random.choice((wirelen, len(data), random.randrange(200), random.randrange(1 << 32)))
        packets.append(Packet((1_700_000_000 + number) * SECOND, on_wire, bytes(octets), linktype))
    return packets


# ---- What libpcap and tcpdump make of them ----


def by_libpcap(path: Path) -> list[tuple[int, int, bytes]]:
    with path.open("rb") as file:
        handle = open_offline(os.dup(file.fileno()))
    try:
        return list(handle)
    finally:
        handle.close()


def by_pcapext(path: Path, expression: str | None = None) -> list[tuple[int, int, bytes]]:
    with pcapext.open_offline(path, expression) as capture:
        return [(packet.timestamp_ns, packet.wirelen, packet.data) for packet in capture]


def tcpdump(source: Path, target: Path, expression: str) -> bytes:
    subprocess.run(["tcpdump", "-r", source, "-w", target, expression], check=True, capture_output=True)
    return target.read_bytes()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("linktype", CORRECTED)
def test_packets_are_those_of_libpcap(linktype: int, order: str, tmp_path: Path) -> None:
    path, changed = tmp_path / "in", 0
    for packets in (cut(linktype, order), at_random(linktype, order, 1)):
        for file in (pcap(packets, order), pcapng(packets, order)):
            path.write_bytes(file.octets)
            expected = by_libpcap(path)
            assert by_pcapext(path) == expected
            before = [(packet.wirelen, packet.data) for packet in packets]
            changed += sum(one != packet[1:] for one, packet in zip(before, expected, strict=True))
    assert (changed > 100) == (order == OTHER or linktype == USB_MMAPPED)


def loaded(number: int, size: int = 4) -> str:
    """What a program loads where the packet has a number in the byte order of this machine."""
    return hex(int.from_bytes(number.to_bytes(size, sys.byteorder), "big"))


#: Filters for bytes that are turned, in packets whose numbers are as above.
LOOKING = {
    LINUX_SLL: f"link[16:4] = {loaded(0x80000123)}",
    PFLOG: f"link[52:4] = {loaded(0x01020304)}",
    USB_LINUX: f"link[32:4] = {loaded(0x01020304)}",
    USB_MMAPPED: f"link[60:4] = {loaded(4)} or len = 612",
    NFLOG: f"link[4:2] = {loaded(8, 2)}",
    LINUX_SLL2: f"link[20:4] = {loaded(0x80000123)}",
}


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("linktype", CORRECTED)
def test_outputs_are_those_of_tcpdump(linktype: int, order: str, tmp_path: Path) -> None:
    source, ours, theirs = (tmp_path / name for name in ("in", "out", "theirs"))
    packets = cut(linktype, order)
    for octets in (pcap(packets, order).octets, pcapng(packets, order).octets):
        source.write_bytes(octets)
        for expression in ("", LOOKING[linktype], f"less 50 and not ({LOOKING[linktype]})"):
            pcapext.filter_file(source, ours, expression)
            expected = read(tcpdump(source, theirs, expression)).packets
            assert read(ours.read_bytes()).packets == expected
            if octets[:4] != b"\n\r\r\n":  # else we write nanoseconds
                assert ours.read_bytes() == theirs.read_bytes()
            assert len(expected) > 5 or "not" in expression


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("linktype", CORRECTED)
def test_pcapng_is_written_as_it_was(linktype: int, suffix: str, order: str, tmp_path: Path) -> None:
    """In the byte order of the section, and with the lengths that stood there; but it is the corrected packets that are selected."""
    source, ours = tmp_path / "in.pcapng", tmp_path / f"out.pcapng{suffix}"
    packets = cut(linktype, order)
    file = pcapng(packets, order)
    source.write_bytes(file.octets)
    ends = dict(zip(file.places, file.places[1:], strict=False))
    for expression in ("", LOOKING[linktype]):
        pcapext.filter_file(source, ours, expression)
        selected = {time for time, _, _ in by_pcapext(source, expression)}
        kept = [
            file.octets[place : ends[place]]
            for place, packet in zip(file.holders, file.packets, strict=True)
            if packet.time in selected or not expression
        ]
        written = subprocess.run(["gzip", "-dc", ours], check=True, capture_output=True).stdout if suffix else ours.read_bytes()
        assert written == file.octets[: file.holders[0]] + b"".join(kept)


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("workers", [1, 2])
def test_regions(workers: int, tmp_path: Path) -> None:
    """A file of several regions, whose records lie across their ends, and are scanned again where a begin was guessed wrong."""
    records = pcap([Packet(1_700_000_000 * SECOND, 60, bytes(60), USB_MMAPPED)] * 60, OTHER).octets[24:]
    packets = [packet._replace(data=packet.data + records * (number % 7)) for number, packet in enumerate(cut(USB_MMAPPED, OTHER)[::8])]
    packets = [packet._replace(time=packet.time + number) for number, packet in enumerate(packets)]
    source, ours, theirs = tmp_path / "in", tmp_path / "out", tmp_path / "theirs"
    source.write_bytes(pcap(packets, OTHER).octets)
    assert source.stat().st_size > 4 << 20
    pcapext.filter_file(source, ours, LOOKING[USB_MMAPPED], workers=workers)
    assert ours.read_bytes() == tcpdump(source, theirs, LOOKING[USB_MMAPPED])
    source.write_bytes(pcapng(packets, OTHER).octets)
    pcapext.filter_file(source, tmp_path / "out.pcapng", workers=workers)
    assert (tmp_path / "out.pcapng").read_bytes() == source.read_bytes()


def test_sections_of_both_orders(tmp_path: Path) -> None:
    """libpcap refuses such a file; each section is as in a file of its own."""
    path, builder, expected = tmp_path / "in", Pcapng(), []
    for order in (OTHER, SYSTEM, OTHER):
        packets = [packet for linktype in (NFLOG, USB_LINUX) for packet in cut(linktype, order)]
        builder.section(order)
        builder.interface(NFLOG)
        builder.interface(USB_LINUX)
        for packet in packets:
            builder.packet(packet, packet.linktype != NFLOG)
        for linktype in (NFLOG, USB_LINUX):
            path.write_bytes(pcap([packet for packet in packets if packet.linktype == linktype], order).octets)
            expected += by_libpcap(path)
    file = builder.file()
    path.write_bytes(file.octets)
    assert by_pcapext(path) == expected
    pcapext.filter_file(path, tmp_path / "out.pcapng")
    assert (tmp_path / "out.pcapng").read_bytes() == file.octets


# ---- Address families ----


def loopback(linktype: int) -> list[Packet]:
    """IP behind each family that some system has for it, and others, in both byte orders."""
    packets = []
    for number, packet in enumerate(traffic(300, 7, 12)):
        family = (2, 10, 24, 28, 30, 7)[number % 6]
        head = struct.pack(f"{'<>'[number // 6 % 2]}I", family)
        data = head + (b"spi and flags"[:8] if linktype == ENC else b"") + packet.data
        packets.append(packet._replace(data=data, wirelen=len(data), linktype=linktype))
    return packets


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("linktype", [NULL, LOOP, ENC])
def test_address_families_are_those_of_tcpdump(linktype: int, order: str, tmp_path: Path) -> None:
    source, ours, theirs = (tmp_path / name for name in ("in", "out", "theirs"))
    packets = loopback(linktype)
    expressions = ["ip", "ip6", "tcp", "udp port 53 or host 10.0.0.1", "not ip and not ip6", "len < 100"]
    for octets in (pcap(packets, order).octets, pcapng(packets, order).octets):
        source.write_bytes(octets)
        for expression in expressions:
            pcapext.filter_file(source, ours, expression)
            expected = read(tcpdump(source, theirs, expression)).packets
            assert [packet[1:] for packet in read(ours.read_bytes()).packets] == [packet[1:] for packet in expected], expression
            assert len(expected) > 5


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("linktype", [NULL, LOOP])
def test_address_families_with_extension_terms(linktype: int, order: str, tmp_path: Path) -> None:
    """The walk takes families of any order; what libpcap compiles stays what it is beside an extension term."""
    source = tmp_path / "in"
    source.write_bytes(pcap(loopback(linktype), order).octets)
    tcp = by_pcapext(source, "tcp")
    assert len(tcp) > 5
    assert by_pcapext(source, "tcp and not inner tcp port 1") == tcp
    assert set(tcp) <= set(by_pcapext(source, "inner tcp"))


@pytest.mark.parametrize("optimize", [0, 1, 2])
def test_a_filter_that_is_compiled_term_by_term(optimize: int, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(pcap(loopback(NULL), OTHER).octets)
    several = " or ".join(f"host 10.9.{number // 200}.{number % 200}" for number in range(10 if optimize < 2 else 1000))
    with pcapext.open_offline(source, f"host 10.0.0.1 or {several}", optimize=optimize) as capture:
        assert [(packet.timestamp_ns, packet.wirelen, packet.data) for packet in capture] == by_pcapext(source, "host 10.0.0.1")


# ---- pcapng ----


def test_length_of_a_section_is_unknown(tmp_path: Path) -> None:
    """What a section says of its length would be wrong when packets are left out."""
    builder = Pcapng()
    for order in (SYSTEM, OTHER, SYSTEM):
        builder.section(order, sized=True)
        builder.interface(1)
        for packet in traffic(20):
            builder.packet(packet)
    source, ours = tmp_path / "in.pcapng", tmp_path / "out.pcapng"
    file = builder.file()
    expected = bytearray(file.octets)
    for place in file.places[:-1]:
        if file.octets[place : place + 4] == b"\n\r\r\n":
            assert expected[place + 16 : place + 24] != b"\xff" * 8
            expected[place + 16 : place + 24] = b"\xff" * 8
    source.write_bytes(file.octets)
    pcapext.filter_file(source, ours)
    assert ours.read_bytes() == expected


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("offset", [0, 5, 1_700_000_000])
def test_time_of_a_simple_packet(offset: int, order: str, tmp_path: Path) -> None:
    """It has none. To libpcap these are 0 ticks, and the offset of the interface is added."""
    builder = Pcapng()
    builder.section(order)
    builder.interface(1, offset=offset)
    builder.simple(60, bytes(60))
    file: File = builder.file()
    path = tmp_path / "in"
    path.write_bytes(file.octets)
    expected = [(offset * SECOND, 60, bytes(60))]
    assert by_libpcap(path) == by_pcapext(path) == expected
    assert [packet[:3] for packet in read(file.octets).packets] == [packet[:3] for packet in file.packets] == expected
