"""At a damaged place, `filter --count` forgot what it had counted; and `-c N` read on behind the last packet it wanted."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pcapext.cli import main

HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
PACKET = struct.pack("<IIII", 0, 0, 60, 60) + bytes(60)


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    file = tmp_path / "damaged.pcap"
    file.write_bytes(HEADER + 3 * PACKET + PACKET[:30])
    return str(file)


def test_packets_before_it_are_counted(damaged: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "-r", damaged, "--count"]) == 1
    output = capsys.readouterr()
    assert output.out == "3 packets\n"
    assert output.err == f"pcapext: warning: {damaged}: byte {24 + 3 * 76}: the file ends within a record of 76 bytes or more\n"


def test_it_is_not_reached_without_need(damaged: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "-r", damaged, "--count", "-c", "3"]) == 0
    assert capsys.readouterr() == ("3 packets\n", "")
