"""What `pcapext filter -w` writes: of pcap files, byte for byte what tcpdump does; of pcapng, the packets that it and tshark keep."""

from __future__ import annotations

import gzip
import struct
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from capturefiles import (
    CUSTOM_NOT_TO_COPY,
    EPB,
    FORMS,
    MIXED_FORMS,
    MODIFIED,
    NANOSECONDS,
    PB,
    SHB,
    SPB,
    File,
    Packet,
    Pcapng,
    between,
    by_tshark,
    pcap,
    read,
    traffic,
)

import pcapext
from pcapext.cli import main

pytestmark = pytest.mark.tools("tcpdump", "tshark")

PACKETS = traffic(150, 1)
MIXED = sorted((packet for linktype in (1, 12, 113, 276) for packet in traffic(50, linktype, linktype)), key=lambda packet: packet.time)

EXPRESSIONS = [
    "",
    "ip",
    "ip6",
    "tcp",
    "udp",
    "icmp",
    "icmp6",
    "tcp port 80",
    "udp port 53",
    "src port 443",
    "dst portrange 1-1024",
    "host 10.0.0.1",
    "src host 10.0.0.2 and tcp",
    "net 10.0.0.0/8",
    "ip6 host 2001:db8::1",
    "dst net 224.0.0.0/4",
    "ip proto 132 or ip6 proto 132",
    "not tcp and not udp",
    "less 64",
    "greater 1000",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "ip[1] = 0xb8 or ip[6:2] & 0x4000 != 0",
    "icmp[icmptype] = icmp-echo",
    "len > 100 and udp",
]
#: For Ethernet alone.
ETHERNET = ["arp", "ether host 02:00:00:00:00:01", "ether broadcast", "ether[0] & 1 = 0", "vlan", "vlan 5 and tcp"]


def run(*arguments: str | Path) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def tcpdump(source: Path, target: Path, expression: str, precision: str = "micro") -> bytes:
    command = ["tcpdump", "-r", source, "-w", target, f"--time-stamp-precision={precision}", expression]
    subprocess.run(command, check=True, capture_output=True)
    return target.read_bytes()


# ---- pcap ----

PCAPS = {
    "micro little": pcap(PACKETS),
    "micro big": pcap(PACKETS, ">"),
    "nano little": pcap(PACKETS, "<", NANOSECONDS),
    "nano big": pcap(PACKETS, ">", NANOSECONDS),
    "modified little": pcap(PACKETS, "<", MODIFIED),
    "modified big": pcap(PACKETS, ">", MODIFIED),
    "2.3": pcap(PACKETS, "<", version=(2, 3)),
    "543.0 big": pcap(PACKETS, ">", version=(543, 0)),
    "no snap length": pcap(PACKETS, snaplen=0),
    "checked frames": pcap(PACKETS, extension=0x54000000),
    "raw IP big": pcap(traffic(100, 2, 12), ">"),
    "cooked": pcap(traffic(100, 3, 113)),
    "cooked 2 nano": pcap(traffic(100, 4, 276), "<", NANOSECONDS),
}


@pytest.mark.parametrize("name", PCAPS)
def test_pcap_is_that_of_tcpdump(name: str, tmp_path: Path) -> None:
    source, ours, theirs = (tmp_path / file for file in ("in", "out", "theirs"))
    source.write_bytes(PCAPS[name].octets)
    kept = set()
    for expression in EXPRESSIONS + ETHERNET if name in ("micro little", "nano big", "modified big") else EXPRESSIONS[::3]:
        run("filter", "-r", source, "-w", ours, expression)
        assert ours.read_bytes() == tcpdump(source, theirs, expression, "nano" if "nano" in name else "micro"), expression
        kept.add(len(read(ours.read_bytes()).packets))
    # The expressions are no idle ones.
    assert len(kept) > 5


@pytest.mark.parametrize("count", [1, 2, 30, 1000])
def test_first_ones_are_those_of_tcpdump(count: int, tmp_path: Path) -> None:
    source, ours, theirs = (tmp_path / file for file in ("in", "out", "theirs"))
    source.write_bytes(PCAPS["micro big"].octets)
    run("filter", "-r", source, "-w", ours, "-c", str(count), "tcp")
    subprocess.run(["tcpdump", "-r", source, "-w", theirs, "-c", str(count), "tcp"], check=True, capture_output=True)
    assert ours.read_bytes() == theirs.read_bytes()


def netfilter_log(order: str, body: bytes) -> bytes:
    options = struct.pack(f"{order}HHI", 8, 4, 0) + struct.pack(f"{order}HH", 4 + len(body), 9)
    return b"\2\0\0\5" + options + body + bytes(-len(body) % 4)


def usb(order: str, body: bytes) -> bytes:
    return struct.pack(f"{order}QBBBBHBBqiiII8s", 5, 0x53, 3, 0x81, 2, 7, 1, 0, 1, 2, -1, len(body), len(body), bytes(8)) + body


#: Packets that begin with numbers of the machine that captured, in its order: the link type, and one around other bytes.
HOST_ORDER: dict[str, tuple[int, Callable[[str, bytes], bytes]]] = {
    "loopback": (0, lambda order, body: struct.pack(f"{order}I", 2) + body),
    "netfilter log": (239, netfilter_log),
    "CAN": (113, lambda order, body: struct.pack("!HHH8sH", 0, 280, 0, b"", 0x000C) + struct.pack(f"{order}I", 0x123) + body[:12]),
    "USB": (189, usb),
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("name", HOST_ORDER)
def test_pseudo_headers_in_the_order_of_the_file(name: str, order: str, tmp_path: Path) -> None:
    """Where that machine's order is not this one's, libpcap turns them round, or compiles filters that know it."""
    linktype, frame = HOST_ORDER[name]
    bodies = [packet.data for packet in traffic(60, 5, 12) if packet.data[:1] == b"\x45"]
    frames = [frame(order, body) for body in bodies]
    packets = [Packet(1_700_000_000_000_001_000 + number, len(data), data, linktype) for number, data in enumerate(frames)]
    source, ours, theirs = (tmp_path / file for file in ("in", "out", "theirs"))
    source.write_bytes(pcap(packets, order).octets)
    for expression in ("", "ip and tcp", "less 100") if name == "loopback" else ("", "less 100"):
        run("filter", "-r", source, "-w", ours, expression)
        assert ours.read_bytes() == tcpdump(source, theirs, expression)
        assert len(read(ours.read_bytes()).packets) > 3


@pytest.mark.parametrize(
    ("suffix", "decompress"), [(".gz", ["gzip", "-dc"]), (".zst", ["zstd", "-dcq"]), (".lz4", ["lz4", "-dcq"])], ids=["gzip", "zstd", "lz4"]
)
@pytest.mark.tools("gzip", "zstd", "lz4")
def test_compressed(suffix: str, decompress: list[str], tmp_path: Path) -> None:
    """What is decompressed is that of tcpdump, from what is compressed and what is not."""
    source, ours, theirs = tmp_path / "in.gz", tmp_path / f"out{suffix}", tmp_path / "theirs"
    (tmp_path / "in").write_bytes(PCAPS["micro big"].octets)
    source.write_bytes(gzip.compress(PCAPS["micro big"].octets))
    expected = tcpdump(tmp_path / "in", theirs, "tcp port 80")
    for one in (source, tmp_path / "in"):
        run("filter", "-r", one, "-w", ours, "tcp port 80")
        assert subprocess.run([*decompress, ours], check=True, capture_output=True).stdout == expected


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("name", ["micro little", "micro big", "modified little"])
def test_workers(name: str, workers: str, tmp_path: Path) -> None:
    """Several megabytes, so that there is something to share; some packets hold records that are none."""
    inner = pcap(PACKETS, "<" if "little" in name else ">", MODIFIED if "modified" in name else 0xA1B2C3D4).octets[24:] * 3
    large = [packet._replace(data=packet.data + inner, wirelen=packet.wirelen + len(inner)) for packet in PACKETS[:40]]
    packets = [*PACKETS * 40, *large, *PACKETS * 20]
    source, ours, theirs = (tmp_path / file for file in ("in", "out", "theirs"))
    source.write_bytes(pcap(packets, "<" if "little" in name else ">", MODIFIED if "modified" in name else 0xA1B2C3D4).octets)
    assert source.stat().st_size > 5_000_000
    for expression in ("", "tcp port 80", "greater 10000"):
        run("filter", "-j", workers, "-r", source, "-w", ours, expression)
        assert ours.read_bytes() == tcpdump(source, theirs, expression)


def test_several_inputs(tmp_path: Path) -> None:
    """One after the other, in the order they are named."""
    for number in range(3):
        (tmp_path / f"{number}.pcap").write_bytes(pcap(PACKETS[number * 50 : number * 50 + 50], "<>"[number % 2]).octets)
    (tmp_path / "whole").write_bytes(pcap(PACKETS).octets)
    ours = tmp_path / "out"
    run("filter", "-r", tmp_path / "0.pcap", "-r", tmp_path / "1.pcap", "-r", tmp_path / "2.pcap", "-w", ours, "ip")
    assert ours.read_bytes() == tcpdump(tmp_path / "whole", tmp_path / "theirs", "ip")


# ---- pcapng ----

#: Files of one link type that libpcap reads, and those of several.
PCAPNGS = {name: form(PACKETS) for name, form in FORMS.items() if name.startswith("pcapng")}
MIXED_FILES = {name: form(MIXED) for name, form in MIXED_FORMS.items()}
SOME = ["", "tcp port 80", "less 64", "ip6 and not udp"]


def chosen(packets: Sequence[Packet], expression: str, folder: Path) -> list[Packet]:
    """The packets that tcpdump keeps, of each link type by itself, in the order they were. Each is known by its place, in its time."""
    kept = set()
    for linktype in {packet.linktype for packet in packets}:
        numbered = [packet._replace(time=number) for number, packet in enumerate(packets) if packet.linktype == linktype]
        (folder / "numbered").write_bytes(pcap(numbered, magic=NANOSECONDS).octets)
        kept |= {packet.time for packet in read(tcpdump(folder / "numbered", folder / "kept", expression, "nano")).packets}
    return [packet for number, packet in enumerate(packets) if number in kept]


@pytest.mark.parametrize("name", [*PCAPNGS, *MIXED_FILES])
def test_pcapng_keeps_what_tcpdump_keeps(name: str, tmp_path: Path) -> None:
    file = (PCAPNGS | MIXED_FILES)[name]
    source, ours = tmp_path / "in.pcapng", tmp_path / "out.pcapng"
    source.write_bytes(file.octets)
    for expression in SOME:
        run("filter", "-r", source, "-w", ours, expression)
        reading = read(ours.read_bytes())
        assert reading.stopped is None
        assert list(reading.packets) == chosen(file.packets, expression, tmp_path), expression


#: What tshark calls the same packets. It looks behind VLAN tags, where libpcap does not.
DISPLAY_FILTERS = {
    "tcp port 80": "tcp.port == 80 and not vlan",
    "ip src host 10.0.0.1": "ip.src == 10.0.0.1 and not vlan",
    "ip6 proto 17": "ipv6.nxt == 17 and not vlan",
}


@pytest.mark.parametrize("name", ["pcapng sections big", "pcapng link types little", "pcapng interfaces big"])
def test_pcapng_keeps_what_tshark_keeps(name: str, tmp_path: Path) -> None:
    """Time, length, link type and bytes; and tshark reads that from the output, too."""
    source, ours = tmp_path / "in.pcapng", tmp_path / "out.pcapng"
    source.write_bytes((PCAPNGS | MIXED_FILES)[name].octets)
    for expression, displayed in DISPLAY_FILTERS.items():
        run("filter", "-r", source, "-w", ours, expression)
        expected = by_tshark(source, displayed)
        assert list(read(ours.read_bytes()).packets) == by_tshark(ours) == expected
        assert len(expected) > 1


def blocks(octets: bytes) -> list[tuple[int, bytes]]:
    """Type and bytes of each block; the length that a section header gives is left out."""
    at, order, found = 0, "", []
    while at < len(octets):
        if octets[at : at + 4] == struct.pack(">I", SHB):
            order = "<" if octets[at + 8 : at + 12] == struct.pack("<I", 0x1A2B3C4D) else ">"
        kind, length = struct.unpack_from(f"{order}II", octets, at)
        whole = octets[at : at + length]
        found.append((kind, whole[:16] + bytes(8) + whole[24:] if kind == SHB else whole))
        at += length
    return found


def section_lengths(octets: bytes) -> list[tuple[int, int]]:
    """What each section header gives as the length of its section, and what it is."""
    starts, at, order, given = [], 0, "", []
    while at < len(octets):
        if octets[at : at + 4] == struct.pack(">I", SHB):
            order = "<" if octets[at + 8 : at + 12] == struct.pack("<I", 0x1A2B3C4D) else ">"
            (length,) = struct.unpack_from(f"{order}I", octets, at + 4)
            starts.append((at, at + length))
            given.append(struct.unpack_from(f"{order}q", octets, at + 16)[0])
        at += struct.unpack_from(f"{order}I", octets, at + 4)[0]
    ends = [*(start for start, _ in starts[1:]), len(octets)]
    return [(said, end - behind) for said, end, (_, behind) in zip(given, ends, starts, strict=True)]


def everything(order: str) -> File:
    """Sections of known lengths with all that can stand between packets, before the first and behind the last."""
    builder = Pcapng()
    for number in range(3):
        builder.section("<>"[(number + (order == ">")) % 2], sized=number != 1, options=b"")
        for kind in range(7):
            between(builder, kind)
        builder.interface(1)
        for packet in PACKETS[number * 50 : number * 50 + 50]:
            builder.packet(packet)
            between(builder, len(builder.places))
        builder.interface(1, 65535, 9)
        builder.packet(PACKETS[number], 1)
    return builder.file()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("expression", ["", "tcp port 80", "less 0"])
def test_other_blocks_are_kept(order: str, expression: str, tmp_path: Path) -> None:
    """As they were and where they were. But for the custom blocks that say that they are not to be copied: either way is right."""
    file = everything(order)
    source, ours = tmp_path / "in.pcapng", tmp_path / "out.pcapng"
    source.write_bytes(file.octets)
    run("filter", "-r", source, "-w", ours, expression)
    kept = chosen(file.packets, expression, tmp_path)
    packets = iter(kept)
    wanted, following = [], next(packets, None)
    for place, (kind, block) in zip(file.places, blocks(file.octets), strict=False):
        if kind in (EPB, PB, SPB):
            if following is None or file.packets[file.holders.index(place)] is not following:
                continue
            following = next(packets, None)
        if kind != CUSTOM_NOT_TO_COPY:
            wanted.append((kind, block))
    assert following is None
    assert [block for block in blocks(ours.read_bytes()) if block[0] != CUSTOM_NOT_TO_COPY] == wanted
    assert read(ours.read_bytes()).packets == tuple(kept)


@pytest.mark.parametrize("expression", ["", "tcp port 80", "less 0"])
def test_lengths_of_sections_are_right(expression: str, tmp_path: Path) -> None:
    """Or -1: a reader may use one to find the next section."""
    source, ours = tmp_path / "in.pcapng", tmp_path / "out.pcapng"
    source.write_bytes(everything("<").octets)
    assert all(said in (-1, actual) for said, actual in section_lengths(source.read_bytes()))
    run("filter", "-r", source, "-w", ours, expression)
    lengths = section_lengths(ours.read_bytes())
    assert len(lengths) == 3
    assert all(said in (-1, actual) for said, actual in lengths), lengths


@pytest.mark.tools("capinfos")
def test_what_is_written_is_read_by_wireshark(tmp_path: Path) -> None:
    for name, file in {**PCAPNGS, **MIXED_FILES, "all": everything("<")}.items():
        source, ours = tmp_path / "in.pcapng", tmp_path / "out.pcapng"
        source.write_bytes(file.octets)
        run("filter", "-r", source, "-w", ours, "ip")
        subprocess.run(["capinfos", "-M", "-c", ours], check=True, capture_output=True)
        assert read(ours.read_bytes()).stopped is None, name


# ---- From one format to the other ----


@pytest.mark.parametrize("name", PCAPNGS)
def test_pcapng_to_pcap(name: str, tmp_path: Path) -> None:
    """The packets that tcpdump writes, nanoseconds kept."""
    source, ours = tmp_path / "in.pcapng", tmp_path / "out.pcap"
    source.write_bytes(PCAPNGS[name].octets)
    for expression in SOME:
        run("filter", "-r", source, "-w", ours, expression)
        expected = read(tcpdump(source, tmp_path / "theirs", expression, "nano"))
        assert read(ours.read_bytes()).packets == expected.packets


@pytest.mark.parametrize("name", PCAPS)
def test_pcap_to_pcapng(name: str, tmp_path: Path) -> None:
    source, ours = tmp_path / "in.pcap", tmp_path / "out.pcapng"
    source.write_bytes(PCAPS[name].octets)
    for expression in SOME:
        run("filter", "-r", source, "-w", ours, expression)
        assert ours.read_bytes()[:4] == b"\n\r\r\n"
        reading = read(ours.read_bytes())
        assert reading.stopped is None
        assert list(reading.packets) == chosen(PCAPS[name].packets, expression, tmp_path)
        subprocess.run(["capinfos", "-M", "-c", ours], check=True, capture_output=True)


def test_several_link_types_do_not_fit_pcap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, ours = tmp_path / "in.pcapng", tmp_path / "out.pcap"
    source.write_bytes(MIXED_FILES["pcapng link types little"].octets)
    assert main(["filter", "-r", str(source), "-w", str(ours), ""]) == 1
    assert "link type" in capsys.readouterr().err
    assert not ours.exists()


@pytest.mark.parametrize("name", [*PCAPNGS, *MIXED_FILES])
def test_count(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = (PCAPNGS | MIXED_FILES)[name]
    source = tmp_path / "in.pcapng"
    source.write_bytes(file.octets)
    run("filter", "-r", source, "--count", "tcp port 80")
    assert capsys.readouterr().out == f"{len(chosen(file.packets, 'tcp port 80', tmp_path))} packets\n"


# ---- In Python ----


@pytest.mark.parametrize("name", ["pcapng link types little", "pcapng sections big", "pcapng interfaces big"])
def test_in_python(name: str, tmp_path: Path) -> None:
    file = (PCAPNGS | MIXED_FILES)[name]
    source, ours, theirs = tmp_path / "in.pcapng", tmp_path / "out.pcapng", tmp_path / "theirs.pcapng"
    source.write_bytes(file.octets)
    for expression in SOME:
        expected = chosen(file.packets, expression, tmp_path)
        with pcapext.open_offline(source, filter=expression) as capture:
            assert [Packet(packet.timestamp_ns, packet.wirelen, packet.data, packet.linktype) for packet in capture] == expected
        assert pcapext.count(source, expression) == len(expected)
        pcapext.filter_file(source, ours, expression)
        run("filter", "-r", source, "-w", theirs, expression)
        assert ours.read_bytes() == theirs.read_bytes()
