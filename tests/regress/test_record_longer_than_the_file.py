"""A last record that claims more bytes than the file has, and that has more of them than a chunk: reading it never ended."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from capturefiles import EPB, Packet, Pcapng

import pcapext


def test_it_is_cut_short(tmp_path: Path) -> None:
    builder = Pcapng()
    builder.section()
    builder.interface()
    builder.packet(Packet(0, 60, bytes(60)))
    path = tmp_path / "in.pcapng"
    path.write_bytes(builder.octets + struct.pack("<II", EPB, 8 << 20) + bytes(3 << 20))
    with pytest.warns(pcapext.CaptureWarning, match=f"byte {len(builder.octets)}: the file ends within a record of {8 << 20} bytes"):
        assert pcapext.filter_file(path, tmp_path / "out.pcapng").packets == 1
