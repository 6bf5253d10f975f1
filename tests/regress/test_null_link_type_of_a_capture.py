"""The link type of a capture on the loopback of BSD has the number 0, which `compile -r` took for none."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import pcapext
from pcapext.cli import main


def test_it_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "null.pcap"
    file.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1000, 0))
    assert main(["compile", "-r", str(file), "tcp"]) == 0
    assert capsys.readouterr().out == pcapext.compile("tcp", linktype="NULL", snaplen=1000).dump()
