"""The makers and the reader of capture files in capturefiles.py, against each other and against libpcap, tshark, capinfos and scapy."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import scapy.utils
from capturefiles import DISTINCT, FORMS, MIXED_FORMS, SECOND, Packet, absurd_lengths, by_tshark, noise, read, traffic

from pcapext import pcap_handles
from pcapext.errors import LibpcapError

PACKETS = traffic(25)
MIXED = sorted((packet for linktype in (1, 12, 113, 276) for packet in traffic(12, linktype, linktype)), key=lambda packet: packet.time)
FILES = {name: form(PACKETS) for name, form in FORMS.items()} | {name: form(MIXED) for name, form in MIXED_FORMS.items()}


def by_libpcap(octets: bytes) -> tuple[list[tuple[int, int, bytes]], str | None]:
    """What libpcap reads, and the words it stops with."""
    packets: list[tuple[int, int, bytes]] = []
    with tempfile.TemporaryFile() as file:
        file.write(octets)
        file.seek(0)
        try:
            handle = pcap_handles.open_offline(os.dup(file.fileno()))
        except LibpcapError as error:
            return packets, str(error)
    try:
        packets.extend(handle)
    except LibpcapError as error:
        return packets, str(error)
    finally:
        handle.close()
    return packets, None


def without_linktype(packets: Sequence[Packet]) -> list[tuple[int, int, bytes]]:
    return [(packet.time, packet.wirelen, packet.data) for packet in packets]


# ---- Whole files ----


@pytest.mark.parametrize("name", FILES)
def test_what_was_written_is_read(name: str) -> None:
    file, reading = FILES[name], read(FILES[name].octets)
    assert reading.stopped is None
    assert reading.packets == file.packets
    assert reading.places == file.holders
    assert len(file.packets) == len(MIXED if name in MIXED_FORMS else PACKETS)


@pytest.mark.parametrize("name", FORMS)
def test_libpcap_reads_the_same(name: str) -> None:
    file = FILES[name]
    assert by_libpcap(file.octets) == (without_linktype(file.packets), None)
    assert {packet.linktype for packet in file.packets} == {1}


@pytest.mark.parametrize("name", MIXED_FORMS)
def test_libpcap_refuses(name: str) -> None:
    assert by_libpcap(FILES[name].octets)[1] is not None


#: It takes a quarter of a second to start: forms of one byte order, and of the other where there is more to it.
FOR_TSHARK = [name for name in DISTINCT if name.endswith("big") and not name.startswith("pcap ")]


@pytest.mark.tools("tshark")
@pytest.mark.parametrize("name", [*FOR_TSHARK, "pcapng 2^-32 big", "pcapng sections little", "pcap modified big", "pcap 2.3 little"])
def test_tshark_reads_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES[name].octets)
    assert by_tshark(path) == list(FILES[name].packets)


@pytest.mark.tools("capinfos")
@pytest.mark.parametrize("name", [name for name in FILES if "other blocks" not in name and "sections" not in name])
def test_capinfos_counts_the_same(name: str, tmp_path: Path) -> None:
    """Packets, and bytes on the wire. It counts custom blocks and unknown ones too."""
    path = tmp_path / "file"
    path.write_bytes(FILES[name].octets)
    shown = subprocess.run(["capinfos", "-T", "-r", "-M", "-c", "-d", path], capture_output=True, text=True, check=True).stdout
    packets = FILES[name].packets
    assert shown.split("\t")[1:] == [str(len(packets)), f"{sum(packet.wirelen for packet in packets)}\n"]


@pytest.mark.parametrize(
    "name", [name for name in FILES if not any(word in name for word in ("modified", "2.", "543", "offset", "inter", "sect"))]
)
def test_scapy_reads_the_same(name: str, tmp_path: Path) -> None:
    """It knows no old versions, no offsets, and that interfaces are those of a section."""
    path = tmp_path / "file"
    path.write_bytes(FILES[name].octets)
    theirs = []
    with scapy.utils.RawPcapReader(str(path)) as reader:
        for data, about in reader:
            if hasattr(about, "tslow"):
                ticks = None if about.tshigh is None else about.tshigh << 32 | about.tslow
                time = 0 if ticks is None else ticks * SECOND // about.tsresol
            else:
                time = about.sec * SECOND + about.usec * (1 if reader.nano else 1000)
            theirs.append((time, about.wirelen, data))
    assert theirs == without_linktype(FILES[name].packets)


# ---- Damaged files ----

SMALL = {name: FORMS[name](PACKETS[:4]) for name in DISTINCT if name in FORMS}


def agree(octets: bytes) -> None:
    """libpcap and the reader here find the same packets, and both stop, or neither.

    But libpcap cuts packets of pcap files to the snap length, where the reader stops. It reads on only after sections and interfaces
    like the first ones, and after blocks of a certain size. It does not read the end of the first block, wants an interface, and
    before version 1.10.5 takes any link type.
    """
    reading, (theirs, words) = read(octets), by_libpcap(octets)
    mine = without_linktype(reading.packets)
    stricter = words is not None and words.startswith(("an interface has a", "the file has sections with", "pcapng block size"))
    if stricter:
        mine = mine[: len(theirs)]
    first_block = reading.stopped == 0 and reading.reason == "length at the end of a block"
    if first_block or reading.reason in ("longer than the snap length", "link type"):
        theirs = theirs[: len(mine)]
    elif not stricter and (words is None or not words.startswith("the capture file has no Interface")):
        assert (words is None) == (reading.stopped is None), (words, reading.reason)
    assert [packet[1:] for packet in mine] == [packet[1:] for packet in theirs]
    # Beyond, libpcap's numbers overflow.
    assert all(one[0] == other[0] for one, other in zip(mine, theirs, strict=True) if 0 <= one[0] < 1 << 62)


@pytest.mark.parametrize("name", SMALL)
def test_cuts(name: str) -> None:
    file = SMALL[name]
    for length in range(len(file.octets)):
        reading = read(file.octets[:length])
        assert reading.packets == file.before(length)
        first = file.places[0] if file.octets[:4] == b"\n\r\r\n" else 24
        assert (reading.stopped is None) == ((length in file.places and length >= 12) or length == first == 24)
        assert reading.reason in (None, "cut") or length < 4
    for length in range(0, len(file.octets), 5):
        agree(file.octets[:length])


@pytest.mark.parametrize("name", SMALL)
def test_absurd_lengths(name: str) -> None:
    for place, octets in absurd_lengths(SMALL[name]):
        reading = read(octets)
        assert reading.stopped is None or reading.stopped >= place
        agree(octets)


@pytest.mark.parametrize("name", FORMS)
def test_noise(name: str) -> None:
    random = Random(name)
    for _ in range(50):
        agree(noise(FILES[name], random))
