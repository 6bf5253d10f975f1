"""Handles and dumpers: what they own is closed, once and on every path, and a closed one says so."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import packets
import pytest
from libpcaps import each_libpcap, no_descriptor_is_left

import pcapext
from pcapext import bpf
from pcapext.bpf import Instruction
from pcapext.errors import LibpcapError, ProgramError
from pcapext.pcap_bridge import libpcap
from pcapext.pcap_handles import Dumper, open_dead, open_offline

__all__ = ["each_libpcap", "no_descriptor_is_left"]

pytestmark = pytest.mark.usefixtures("each_libpcap", "no_descriptor_is_left")

#: A capture of one packet.
CAPTURE = struct.pack("<IHHiIIIIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1, 7, 8, 3, 9) + b"abc"

FRAMES = [packet.data for packet in packets.packets(200, 3, linktypes=[packets.EN10MB])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.pcap"
    path.write_bytes(CAPTURE)
    return path


def opened(path: Path, flags: int = os.O_RDONLY) -> int:
    return os.open(path, flags)


def test_reading(path: Path) -> None:
    handle = open_offline(opened(path))
    assert (handle.linktype, handle.snaplen, handle.nanoseconds) == (1, 65535, False)
    assert list(handle) == [(7_000_008_000, 9, b"abc")]
    assert list(handle) == []
    handle.close()
    handle.close()
    with pytest.raises(LibpcapError, match="the handle is closed"):
        list(handle)
    with pytest.raises(LibpcapError, match="the handle is closed"):
        handle.error()


def test_closing_between_packets(path: Path) -> None:
    path.write_bytes(CAPTURE + CAPTURE[24:])
    handle = open_offline(opened(path))
    packets = iter(handle)
    assert next(packets) == (7_000_008_000, 9, b"abc")
    handle.close()
    with pytest.raises(LibpcapError, match="the handle is closed"):
        next(packets)


def test_contexts(path: Path) -> None:
    with open_offline(opened(path)) as handle:
        assert list(handle) == [(7_000_008_000, 9, b"abc")]
    with pytest.raises(LibpcapError, match="the handle is closed"):
        handle.error()
    with open_dead(1, 65535) as dead, Dumper(dead, opened(path, os.O_WRONLY | os.O_TRUNC)) as dumper:
        dumper.write(7_000_008_000, 9, b"abc")
    assert path.read_bytes() == CAPTURE
    with pytest.raises(LibpcapError, match="the dumper is closed"):
        dumper.flush()


def test_closing_while_another_thread_reads() -> None:
    """It waits for a pipe: what it uses is freed when it is through."""
    reader, writer = os.pipe()
    os.write(writer, CAPTURE)
    handle = open_offline(reader)
    packets = iter(handle)
    assert next(packets) == (7_000_008_000, 9, b"abc")
    words: list[object] = []

    def read() -> None:
        try:
            words.extend(packets)
        except LibpcapError as error:
            words.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    handle.close()
    os.write(writer, CAPTURE[24:])
    os.close(writer)
    thread.join()
    assert words[-1] == "the handle is closed"
    assert words[:-1] in ([], [(7_000_008_000, 9, b"abc")])


def test_closing_while_another_thread_writes(path: Path) -> None:
    dumper = Dumper(open_dead(1, 65535), opened(path, os.O_WRONLY | os.O_TRUNC))
    started = threading.Event()

    words = []

    def write() -> None:
        try:
            while True:
                dumper.write(7_000_008_000, 9, b"abc")
                started.set()
        except LibpcapError as error:
            words.append(str(error))

    thread = threading.Thread(target=write)
    thread.start()
    started.wait()
    dumper.close()
    thread.join()
    assert words == ["the dumper is closed"]
    records, rest = divmod(len(path.read_bytes()) - 24, len(CAPTURE) - 24)
    assert records > 0
    assert rest == 0


# --- programs


def test_programs(path: Path) -> None:
    """libpcap filters, and the lengths on the wire are those of the file."""
    records = b"".join(struct.pack("<IIII", 7, 0, len(frame), 100) + frame for frame in FRAMES)
    path.write_bytes(CAPTURE[:24] + records)
    program = pcapext.compile("inner udp or less 20", target="classic")
    wanted = [frame for frame in FRAMES if program.matches(frame, 100)]
    assert 0 < len(wanted) < len(FRAMES)
    with open_offline(opened(path)) as handle:
        handle.set_program(program)
        assert [data for _, _, data in handle] == wanted
    with open_offline(opened(path)) as handle:
        assert next(iter(handle))[2] == FRAMES[0]
        handle.set_program([Instruction(bpf.RET_K)])
        assert list(handle) == []


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (pcapext.compile("inner udp"), "instruction 0: libpcap has no ancillary word tproto"),
        ([Instruction(bpf.LD_W_ABS, k=bpf.ANCILLARY[0].k), Instruction(bpf.RET_A)], "libpcap has no ancillary word proto"),
        (pcapext.compile("ip", linktype="RAW"), "for link type 12, and the handle has link type 1"),
        ([], "at least one instruction"),
        ([Instruction(bpf.LD_IMM)], "the last instruction must be a ret"),
    ],
)
def test_programs_that_cannot_be(path: Path, program: list[Instruction], words: str) -> None:
    with open_offline(opened(path)) as handle:
        with pytest.raises(ProgramError, match=words):
            handle.set_program(program)
        assert len(list(handle)) == 1


def test_a_forgotten_handle_is_closed(path: Path) -> None:
    for _ in range(3):
        open_offline(opened(path))


def test_a_handle_outlives_everything(path: Path) -> None:
    """One that is left is closed when Python ends, and then libpcap must still be there."""
    script = """
import gc, os, sys
from pcapext.pcap_bridge import libpcap
from pcapext.pcap_handles import open_offline
handle = open_offline(os.open(sys.argv[1], os.O_RDONLY))
libpcap.cache_clear()
gc.collect()
"""
    command = [sys.executable, "-c", script, str(path)]
    assert subprocess.run(command, cwd=Path(__file__).parent.parent).returncode == 0


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "got 0"), (b"\xd4", "got 1"), (bytes(100), "unknown file format"), (CAPTURE[:23], "truncated")]
)
def test_no_capture(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(LibpcapError, match=words):
        open_offline(opened(path))


def test_descriptors_of_the_wrong_kind(path: Path) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        open_offline(opened(path, os.O_WRONLY))
    with pytest.raises(OSError, match="Invalid argument"):
        Dumper(open_dead(1), opened(path))


def test_no_libpcap(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCAPEXT_LIBPCAP", "/no/such/libpcap.so")
    libpcap.cache_clear()
    with pytest.raises(LibpcapError, match=r"/no/such/libpcap\.so"):
        open_offline(opened(path))


def test_writing(path: Path) -> None:
    dumper = Dumper(open_dead(1, 65535), opened(path, os.O_WRONLY | os.O_TRUNC))
    dumper.write(7_000_008_999, 9, b"abc")
    assert path.read_bytes() == b""
    dumper.flush()
    assert path.read_bytes() == CAPTURE
    dumper.close()
    dumper.close()
    for call in (dumper.flush, lambda: dumper.write(0, 0, b"")):
        with pytest.raises(LibpcapError, match="the dumper is closed"):
            call()


def test_a_forgotten_dumper_is_written(path: Path) -> None:
    Dumper(open_dead(1, 65535), opened(path, os.O_WRONLY | os.O_TRUNC)).write(7_000_008_000, 9, b"abc")
    assert path.read_bytes() == CAPTURE


def test_dumpers_that_cannot_be(path: Path) -> None:
    closed = open_dead(1)
    closed.close()
    for handle, words in ((closed, "the handle is closed"), (open_dead(5000), "link-layer type 5000 isn't supported in savefiles")):
        with pytest.raises(LibpcapError, match=words):
            Dumper(handle, opened(path, os.O_WRONLY))
    assert path.read_bytes() == CAPTURE


@pytest.mark.parametrize(("time", "wirelen"), [(-1, 0), ((1 << 32) * 1_000_000_000, 0), (0, -1), (0, 1 << 32)])
def test_numbers_that_a_file_cannot_hold(path: Path, time: int, wirelen: int) -> None:
    dumper = Dumper(open_dead(1), opened(path, os.O_WRONLY))
    with pytest.raises(LibpcapError, match="a pcap file cannot hold"):
        dumper.write(time, wirelen, b"")
    dumper.close()


@pytest.mark.parametrize(("linktype", "snaplen"), [(-1, 1), (0x10000, 1), (1, 0), (1, -1), (1, 1 << 31)])
def test_dead_handles_that_cannot_be(linktype: int, snaplen: int) -> None:
    with pytest.raises(LibpcapError, match="out of range"):
        open_dead(linktype, snaplen)


def test_disk_full() -> None:
    dumper = Dumper(open_dead(1), opened(Path("/dev/full"), os.O_WRONLY))
    with pytest.raises(OSError, match="No space left on device"):
        write_much(dumper)
    with pytest.raises(OSError, match="No space left on device"):
        dumper.close()
    dumper = Dumper(open_dead(1), opened(Path("/dev/full"), os.O_WRONLY))
    with pytest.raises(OSError, match="No space left on device"):
        dumper.close()


def write_much(dumper: Dumper) -> None:
    """More than the buffer of the C library holds."""
    for _ in range(1000):
        dumper.write(0, 100, bytes(100))
