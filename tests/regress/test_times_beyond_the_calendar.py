"""A pcapng file can hold times in the year 586524; printing such a packet ended with a traceback."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from pcapext.cli import main


def block(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)


@pytest.mark.parametrize("microseconds", [1 << 58, (1 << 64) - 1])
def test_packets_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str], microseconds: int) -> None:
    file = tmp_path / "far.pcapng"
    section = block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1)) + block(1, struct.pack("<HHI", 1, 0, 0))
    file.write_bytes(section + block(6, struct.pack("<5I", 0, microseconds >> 32, microseconds & 0xFFFFFFFF, 60, 60) + bytes(60)))
    assert main(["filter", "-r", str(file)]) == 0
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{6} no network header, length 60\n", capsys.readouterr().out)
