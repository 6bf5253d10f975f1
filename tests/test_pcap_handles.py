"""Handles and dumpers: what they own is closed, once and on every path, and a closed one says so."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from libpcaps import each_libpcap, no_descriptor_is_left

from pcapext.errors import LibpcapError
from pcapext.pcap_bridge import libpcap
from pcapext.pcap_handles import Dumper, open_dead, open_offline

__all__ = ["each_libpcap", "no_descriptor_is_left"]

pytestmark = pytest.mark.usefixtures("each_libpcap", "no_descriptor_is_left")

#: A capture of one packet.
CAPTURE = struct.pack("<IHHiIIIIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1, 7, 8, 3, 9) + b"abc"


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
