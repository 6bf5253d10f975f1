"""open_offline on every form of capture file, whole, cut and damaged: against the second reader in capturefiles.py."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from capturefiles import (
    DISTINCT,
    FORMS,
    MIXED_FORMS,
    MODIFIED,
    NANOSECONDS,
    SECOND,
    File,
    Packet,
    absurd_lengths,
    noise,
    pcap,
    pcapng,
    read,
    traffic,
    with_other_blocks,
)
from libpcaps import no_descriptor_is_left

from pcapext.capture import open_offline
from pcapext.errors import CaptureError

__all__ = ["no_descriptor_is_left"]

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

PACKETS = traffic(40)
MIXED = sorted((packet for linktype in (1, 12, 113, 276) for packet in traffic(15, linktype, linktype)), key=lambda packet: packet.time)
FILES = {name: form(PACKETS) for name, form in FORMS.items()} | {name: form(MIXED) for name, form in MIXED_FORMS.items()}
SMALL = {name: FORMS[name](PACKETS[:4]) if name in FORMS else MIXED_FORMS[name](MIXED[::12]) for name in DISTINCT}


def by_pcapext(path: Path | str) -> tuple[list[Packet], str | None]:
    """The packets that open_offline gives, and the error that ends it."""
    packets: list[Packet] = []
    try:
        with open_offline(path) as capture:
            packets.extend(Packet(packet.timestamp_ns, packet.wirelen, packet.data, packet.linktype) for packet in capture)
    except CaptureError as error:
        return packets, str(error)
    return packets, None


def in_range(packets: Sequence[Packet]) -> list[Packet]:
    """Times held at the ends of 64 bits, as pcapext holds them: damage makes some that are beyond."""
    return [packet._replace(time=min(max(packet.time, -(1 << 63)), (1 << 63) - 1)) for packet in packets]


def check(path: Path, octets: bytes) -> None:
    """A file gives the packets up to where it is cut or damaged, then an error that names the file and a place in what is wrong there."""
    path.write_bytes(octets)
    reading, (packets, message) = read(octets), by_pcapext(path)
    assert packets == in_range(reading.packets), (reading.stopped, reading.reason, message)
    if reading.stopped is None:
        assert message is None
        return
    assert message is not None, (reading.stopped, reading.reason)
    place = re.match(rf"{re.escape(str(path))}: byte (\d+): \S", message)
    assert place is not None, message
    assert reading.stopped <= int(place[1]) <= len(octets), (reading.stopped, reading.reason, message)


# ---- Whole files ----


@pytest.mark.parametrize("name", FILES)
def test_every_form(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(FILES[name].octets)
    assert by_pcapext(path) == (list(FILES[name].packets), None)


@pytest.mark.parametrize("name", FILES)
def test_every_form_through_a_pipe(name: str) -> None:
    """In pieces of all sizes."""
    with pipe(FILES[name].octets, Random(name)) as path:
        assert by_pcapext(path) == (list(FILES[name].packets), None)


@contextmanager
def pipe(octets: bytes, random: Random) -> Iterator[str]:
    reading, writing = os.pipe()

    def write() -> None:
        at = 0
        while at < len(octets):
            at += os.write(writing, octets[at : at + random.choice((1, 7, 100, 4096, 50_000))])
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
        thread.join()


#: The most that a packet may have, and around what chunks and buffers may have.
SIZES = (262144, 1, 0, 65535, 262143, 4096, 100_000, 60, 131_072, 16)

LARGE: dict[str, Callable[[Sequence[Packet]], File]] = {
    "pcap": pcap,
    "pcap big nano": partial(pcap, order=">", magic=NANOSECONDS),
    "pcap modified": partial(pcap, magic=MODIFIED),
    "pcapng": pcapng,
    "pcapng other blocks": with_other_blocks,
    "pcapng sections": MIXED_FORMS["pcapng sections big"],
}


@pytest.mark.parametrize("name", LARGE)
def test_packets_of_all_sizes(name: str, tmp_path: Path) -> None:
    """Several megabytes, so that records lie across the ends of whatever is read at once."""
    random = Random(name)
    body = random.randbytes(262144)
    sizes = [random.choice(SIZES) for _ in range(80)]
    file = LARGE[name]([Packet(1_700_000_000 * SECOND + number * 1000, size, body[:size]) for number, size in enumerate(sizes)])
    check(tmp_path / "file", file.octets)
    check(tmp_path / "file", file.octets[: file.places[-2] + 20])
    assert len(file.octets) > 4_000_000


@pytest.mark.parametrize("name", LARGE)
def test_packets_that_hold_captures(name: str, tmp_path: Path) -> None:
    """Whoever begins to read anywhere finds records that are none: they are in a packet, in the format of the file."""
    form = LARGE[name]
    inner = form([Packet(1_700_000_000 * SECOND + number * 1000, 100, bytes(100)) for number in range(800)])
    records = inner.octets[inner.places[3] :]
    assert len(records) > 90_000
    packets = [Packet(1_700_000_000 * SECOND + number, len(records), records[number % 50 :]) for number in range(50)]
    file = form(packets)
    check(tmp_path / "file", file.octets)


# ---- Cut and damaged files ----


@pytest.mark.parametrize("name", SMALL)
def test_cuts(name: str, tmp_path: Path) -> None:
    """Cut off near the begin of every record and block, and here and there. What is left of the first bytes is no capture."""
    octets = SMALL[name].octets
    near = {place + more for place in SMALL[name].places for more in range(-5, 33)}
    for length in sorted({*range(0, len(octets), 13), *(length for length in near if 0 <= length <= len(octets))}):
        check(tmp_path / "file", octets[:length])


@pytest.mark.parametrize("name", SMALL)
def test_absurd_lengths(name: str, tmp_path: Path) -> None:
    for _, octets in islice(absurd_lengths(SMALL[name]), 0, None, 3):
        check(tmp_path / "file", octets)


@pytest.mark.parametrize("name", FILES)
def test_noise(name: str, tmp_path: Path) -> None:
    random = Random(name)
    for _ in range(20):
        check(tmp_path / "file", noise(FILES[name], random))
