"""Captures: read and written, against scapy, tcpdump and files made by hand; and ways they can be broken.

All formats, and all ways to break them, are in test_capture_formats.py.
"""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import scapy.utils
from libpcaps import no_descriptor_is_left

from pcapext.capture import Packet, Writer, create, open_offline
from pcapext.errors import CaptureError

__all__ = ["no_descriptor_is_left"]

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

ROOT = Path(__file__).parent.parent

#: Time in ns, length on the wire, bytes. Among them an empty one, one cut short, and times after 2038.
PACKETS = [
    (1_700_000_000_123_456_789, 60, bytes(range(60))),
    (1_700_000_001_000_000_000, 0, b""),
    (1_700_000_001_999_999_999, 1500, b"\xff" * 96),
    (3_000_000_000_000_001_000, 4, b"late"),
    (0xFFFF_FFFF * 10**9, 1, b"x"),
]


def pcap(order: str = "<", nanoseconds: bool = False, linktype: int = 1, snaplen: int = 65535, magic: int | None = None) -> bytes:
    """A pcap file, made by hand."""
    unit = 1 if nanoseconds else 1000
    magic = magic or (0xA1B23C4D if nanoseconds else 0xA1B2C3D4)
    octets = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, linktype)
    for time, wirelen, data in PACKETS:
        seconds, fraction = divmod(time, 10**9)
        octets += struct.pack(order + "IIII", seconds, fraction // unit, len(data), wirelen)
        # Kuznetzov's variant has an interface, a protocol and a packet type here.
        octets += bytes(8) * (magic == 0xA1B2CD34) + data
    return octets


def pcapng(order: str = "<", resolution: int | None = None, linktypes: tuple[int, ...] = (1,)) -> bytes:
    """A pcapng file, made by hand: an interface for each link type, the packets on the last one."""

    def block(kind: int, body: bytes) -> bytes:
        length = len(body) + 12
        return struct.pack(order + "II", kind, length) + body + struct.pack(order + "I", length)

    options = b"" if resolution is None else struct.pack(order + "HHB3xHH", 9, 1, resolution, 0, 0)
    octets = block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    octets += b"".join(block(1, struct.pack(order + "HHI", linktype, 0, 65535) + options) for linktype in linktypes)
    for time, wirelen, data in PACKETS:
        time //= 10 ** (9 - (6 if resolution is None else resolution))
        head = struct.pack(order + "IIIII", len(linktypes) - 1, time >> 32, time & 0xFFFFFFFF, len(data), wirelen)
        octets += block(6, head + data + bytes(-len(data) % 4))
    return octets


def read(path: Path) -> list[tuple[int, int, bytes]]:
    with open_offline(path) as capture:
        return [(packet.timestamp_ns, packet.wirelen, packet.data) for packet in capture]


def rounded(unit: int) -> list[tuple[int, int, bytes]]:
    return [(time // unit * unit, wirelen, data) for time, wirelen, data in PACKETS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap())
    return path


# --- reading


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("nanoseconds", "magic"),
    [(False, None), (True, None), (False, 0xA1B2CD34)],
    ids=["micro", "nano", "modified"],
)
def test_pcap(path: Path, order: str, nanoseconds: bool, magic: int | None) -> None:
    path.write_bytes(pcap(order, nanoseconds, magic=magic))
    assert read(path) == rounded(1 if nanoseconds else 1000)
    with open_offline(path) as capture:
        assert (capture.linktype, capture.nanoseconds) == (1, nanoseconds)
        assert {packet.linktype for packet in capture} == {1}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("resolution", [None, 3, 6, 9])
def test_pcapng(path: Path, order: str, resolution: int | None) -> None:
    path.write_bytes(pcapng(order, resolution))
    assert read(path) == rounded(10 ** (9 - (resolution or 6)))
    with open_offline(path) as capture:
        assert (capture.linktype, capture.snaplen, capture.nanoseconds) == (1, 65535, True)


@pytest.mark.tools("editcap")
@pytest.mark.parametrize("kind", ["pcap", "nsecpcap", "modpcap", "pcapng"])
def test_what_wireshark_writes(path: Path, kind: str) -> None:
    path.write_bytes(pcap(nanoseconds=True))
    converted = path.with_name(kind)
    subprocess.run(["editcap", "-F", kind, path, converted], check=True)
    assert read(converted) == rounded(1 if kind in ("nsecpcap", "pcapng") else 1000)


@pytest.mark.parametrize("octets", [pcap(), pcap(">", nanoseconds=True), pcapng(), pcapng(">", 9)])
def test_scapy_reads_the_same(path: Path, octets: bytes) -> None:
    path.write_bytes(octets)
    with scapy.utils.RawPcapReader(str(path)) as reader:
        theirs = []
        for data, about in reader:
            if hasattr(about, "tslow"):  # pcapng: one number of 64 bits, in units of the resolution
                time = ((about.tshigh << 32) + about.tslow) * 10**9 // about.tsresol
            else:
                time = about.sec * 10**9 + about.usec * (1 if reader.nano else 1000)
            theirs.append((time, about.wirelen, data))
    assert read(path) == theirs


@pytest.mark.parametrize(("linktype", "number"), [(113, 113), (101, 12), (276, 276), (147, 147)])
def test_link_types_are_dlt_numbers(path: Path, linktype: int, number: int) -> None:
    """Some have another number in files: 101 there is 12, RAW."""
    path.write_bytes(pcap(linktype=linktype))
    with open_offline(path) as capture:
        assert capture.linktype == number
        assert next(iter(capture)).linktype == number
        with create(path.with_name("out"), like=capture) as output:
            assert output.linktype == number
    assert struct.unpack("<I", path.with_name("out").read_bytes()[20:24]) == (linktype,)


def test_reading_goes_on(path: Path) -> None:
    with open_offline(path) as capture:
        assert next(iter(capture)).data == PACKETS[0][2]
        assert [packet.data for packet in capture] == [data for _, _, data in PACKETS[1:]]
        assert list(capture) == []


def test_closed(path: Path) -> None:
    capture = open_offline(path)
    capture.close()
    capture.close()
    with pytest.raises(CaptureError, match=r"in\.pcap: the capture is closed"):
        list(capture)


# --- what is no capture, or not all of one


def error(call: object) -> str:
    with pytest.raises(CaptureError) as caught:
        call()  # type: ignore[operator]
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "byte 0: the file is empty"),
        (b"\xd4\xc3", "byte 0: neither a pcap nor a pcapng file begins like this"),
        (b"no capture at all", "byte 0: neither a pcap nor a pcapng file begins like this"),
        (gzip.compress(b"no capture at all", mtime=0), "byte 0: neither a pcap nor a pcapng file begins like this"),
        (pcap()[:16], "byte 16: the file ends within its header of 24 bytes"),
        (struct.pack("<IHH", 0xA1B2C3D4, 9, 9) + bytes(16), "byte 4: version 9.9 of the pcap format is not supported"),
    ],
)
def test_no_capture(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    assert error(lambda: open_offline(path)) == f"{path}: {words}"


def test_no_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert error(lambda: open_offline(missing)) == f"{missing}: No such file or directory"
    assert error(lambda: open_offline(tmp_path)).startswith(f"{tmp_path}: ")
    assert "null byte" in error(lambda: open_offline("a\0b"))
    assert error(lambda: create(missing / "out")) == f"{missing}/out.part: No such file or directory"
    assert error(lambda: create(tmp_path)) == f"{tmp_path}: Is a directory"
    assert "null byte" in error(lambda: create("a\0b"))
    # A name is shown on one line, whatever it holds.
    assert error(lambda: open_offline("no\nsuch\x1bfile\udcff")) == "no such?file?: No such file or directory"


def test_every_cut(path: Path) -> None:
    """A file cut anywhere gives the packets before the cut, then an error, unless it was cut between two."""
    octets = pcap()
    ends = [24]
    for _, _, data in PACKETS:
        ends.append(ends[-1] + 16 + len(data))
    for length in range(24, len(octets)):
        path.write_bytes(octets[:length])
        with open_offline(path) as capture:
            packets = iter(capture)
            whole = sum(end <= length for end in ends) - 1
            assert [next(packets).data for _ in range(whole)] == [data for _, _, data in PACKETS[:whole]]
            if length in ends:
                assert list(packets) == []
            else:
                assert error(lambda: next(packets)).startswith(f"{path}: byte {ends[whole]}: the file ends within a record")  # noqa: B023


def test_damage(path: Path) -> None:
    octets = bytearray(pcap())
    second = 24 + 16 + len(PACKETS[0][2])
    octets[second + 8 : second + 12] = b"\xff" * 4  # the length captured
    path.write_bytes(octets)
    with open_offline(path) as capture:
        packets = iter(capture)
        next(packets)
        assert (
            error(lambda: next(packets))
            == f"{path}: byte {second}: a record of a packet with 4294967295 bytes, more than the snap length allows"
        )


def test_several_link_types(path: Path) -> None:
    """libpcap has one link type for a capture and refuses files with more; here each packet has its own."""
    path.write_bytes(pcapng(linktypes=(1, 113)))
    with open_offline(path) as capture:
        assert capture.linktype == 1
        assert [packet.linktype for packet in capture] == [113] * len(PACKETS)


# --- writing


def copy(source: Path, target: Path) -> None:
    with open_offline(source) as capture, create(target, like=capture) as output:
        for packet in capture:
            output.write(packet)


@pytest.mark.tools("tcpdump")
@pytest.mark.parametrize("nanoseconds", [False, True])
@pytest.mark.parametrize(("linktype", "snaplen"), [(1, 65535), (113, 1500), (101, 262144), (1 | 5 << 28 | 1 << 26, 65535)])
def test_copies_are_those_of_tcpdump(path: Path, nanoseconds: bool, linktype: int, snaplen: int) -> None:
    """Byte for byte, the length of the frame check sequence in the header included."""
    path.write_bytes(pcap(">", nanoseconds, linktype, snaplen))
    copy(path, path.with_name("out"))
    precision = "nano" if nanoseconds else "micro"
    command = ["tcpdump", "-r", path, f"--time-stamp-precision={precision}", "-w", path.with_name("theirs")]
    subprocess.run(command, check=True, capture_output=True)
    assert path.with_name("out").read_bytes() == path.with_name("theirs").read_bytes() == pcap("<", nanoseconds, linktype, snaplen)


@pytest.mark.parametrize("resolution", [None, 9])
def test_copies_of_pcapng_keep_times(path: Path, resolution: int | None) -> None:
    path.write_bytes(pcapng(resolution=resolution))
    copy(path, path.with_name("out"))
    assert read(path.with_name("out")) == rounded(1 if resolution else 1000)
    assert path.with_name("out").read_bytes()[:4] == struct.pack("<I", 0xA1B23C4D)


def test_writing_from_nothing(path: Path) -> None:
    with create(path, linktype=113, snaplen=1000, nanoseconds=True) as output:
        assert (output.linktype, output.snaplen, output.nanoseconds) == (113, 1000, True)
        for time, wirelen, data in PACKETS:
            output.write(Packet(time, wirelen, data, 113))
    # The file that was there, longer, is gone.
    assert path.read_bytes() == pcap(nanoseconds=True, linktype=113, snaplen=1000)


def test_flush(path: Path) -> None:
    with create(path.with_name("out")) as output:
        output.write(Packet(0, 1, b"a", 1))
        output.flush()
        assert len(path.with_name("out.part").read_bytes()) == 24 + 16 + 1
    assert len(path.with_name("out").read_bytes()) == 24 + 16 + 1


def test_several_link_types_are_written(path: Path) -> None:
    """In pcapng."""
    written = [Packet(time, wirelen, data, (1, 113)[index % 2]) for index, (time, wirelen, data) in enumerate(PACKETS)]
    output = path.with_name("out.pcapng.zst")
    with create(output, nanoseconds=True) as writer:
        for packet in written:
            writer.write(packet)
    with open_offline(output) as capture:
        assert list(capture) == written


def test_packets_that_do_not_belong(path: Path) -> None:
    with create(path, linktype=1, snaplen=10) as output:
        assert error(lambda: output.write(Packet(0, 1, b"", 12))).startswith(f"{path}: a packet of link type 12")
        assert error(lambda: output.write(Packet(0, 1, bytes(11), 1))) == f"{path}: a packet of 11 bytes in a capture with snap length 10"
        assert error(lambda: output.write(Packet(-1, 1, b"", 1))).startswith(f"{path}: a capture cannot hold the time -1 ns")
    assert len(path.read_bytes()) == 24
    assert "closed" in error(lambda: output.write(Packet(0, 1, b"", 1)))


def test_what_cannot_be_written_destroys_nothing(path: Path) -> None:
    before = path.read_bytes()
    assert error(lambda: create(path, linktype=13)) == f"{path}: link type 13 has no number in capture files"
    assert "out of range" in error(lambda: create(path, linktype=-1))
    assert "out of range" in error(lambda: create(path, snaplen=0))
    assert path.read_bytes() == before


def test_output_is_not_the_input(path: Path) -> None:
    before = path.read_bytes()
    path.with_name("symlink").symlink_to(path)
    path.with_name("hardlink").hardlink_to(path)
    with open_offline(path) as capture:
        for name in (path.name, "symlink", "hardlink", "./in.pcap"):
            output = path.parent / name if name != "./in.pcap" else f"{path.parent}/./in.pcap"
            assert error(lambda: create(output, like=capture)) == f"{output}: the output is the same file as the input"  # noqa: B023
        assert len(list(capture)) == len(PACKETS)
    assert path.read_bytes() == before


def test_disk_full(path: Path) -> None:
    for count in (1, 1000):
        with pytest.raises(CaptureError, match="/dev/full: No space left on device"):
            fill(create("/dev/full"), count)


def fill(writer: Writer, count: int) -> None:
    with writer:
        for _ in range(count):
            writer.write(Packet(0, 100, bytes(100), 1))


def test_the_first_error_is_told() -> None:
    with pytest.raises(KeyError, match="mine"):
        fail_while_writing()


def fail_while_writing() -> None:
    with create("/dev/full") as output:
        output.write(Packet(0, 1, b"a", 1))
        raise KeyError("mine")


def test_broken_pipe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(CaptureError, match="Broken pipe") as caught:
        fill(create(f"/dev/fd/{writing}"), 1000)
    os.close(writing)
    assert isinstance(caught.value.__cause__, BrokenPipeError)


# --- standard streams

COPY = """
import sys
from pcapext.capture import create, open_offline
from pcapext.errors import CaptureError
try:
    with open_offline("-") as capture, create("-", like=capture) as output:
        for packet in capture:
            output.write(packet)
except CaptureError as error:
    print(error, file=sys.stderr)
print("text", flush=True)
"""


def run_copy(octets: bytes, **streams: object) -> tuple[bytes, str]:
    command = [sys.executable, "-c", COPY]
    run = subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.PIPE, **({"input": octets, "stdout": subprocess.PIPE} | streams))  # type: ignore[call-overload]
    return run.stdout or b"", run.stderr.decode()


@pytest.mark.parametrize("octets", [pcap(), pcap(nanoseconds=True), pcap()[:-1], pcapng(), b"", b"\n\n"])
def test_standard_streams(path: Path, octets: bytes) -> None:
    """Through pipes it goes as through files; and standard output stays open."""
    out, err = run_copy(octets)
    path.write_bytes(octets)
    words = ""
    try:
        copy(path, path.with_name("out"))
    except CaptureError as caught:
        words = str(caught).replace(str(path), "standard input") + "\n"
    assert err == words
    expected = path.with_name("out").read_bytes() if path.with_name("out").exists() else b""
    assert out == expected + b"text\n"


def test_standard_streams_of_one_file(path: Path) -> None:
    before = path.read_bytes()
    with path.open("rb") as reading, path.open("ab") as appending:
        _, err = run_copy(b"", input=None, stdin=reading, stdout=appending)
    assert err == "standard output: the output is the same file as the input\n"
    assert path.read_bytes() == before + b"text\n"


def test_standard_output_is_added_to(path: Path) -> None:
    """What stands before is whoever opened the file's; it is not cut off."""
    path.with_name("out").write_bytes(b"before")
    with path.with_name("out").open("ab") as appending:
        run_copy(pcap(), stdout=appending)
    assert path.with_name("out").read_bytes() == b"before" + pcap() + b"text\n"
