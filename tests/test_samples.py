"""The captures in examples/: made by their script, described by their README, seen the same by the walk and by tshark."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tshark import keys_by_tshark

from pcapext.dissect import dissect, walk
from pcapext.encapsulation import ENCAPSULATION_NAMES

EXAMPLES = Path(__file__).parent.parent / "examples"
CAPTURES = sorted(EXAMPLES.glob("*.pcap"))


def frames(capture: Path) -> list[bytes]:
    """The frames of a pcap file of Ethernet, as written by make_samples.py."""
    data = capture.read_bytes()
    assert data[:24] == struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    offset, found = 24, []
    while offset < len(data):
        captured, length = struct.unpack_from("<II", data, offset + 8)
        assert captured == length
        found.append(data[offset + 16 : offset + 16 + captured])
        offset += 16 + captured
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    subprocess.run([sys.executable, EXAMPLES / "make_samples.py", folder], check=True)
    return folder


def test_script_makes_the_files(made: Path) -> None:
    assert {file.name: file.read_bytes() for file in made.iterdir()} == {file.name: file.read_bytes() for file in CAPTURES}
    assert sum(file.stat().st_size for file in CAPTURES) < 100_000


def test_readme_counts_the_packets() -> None:
    rows = re.findall(r"^\| `(\S+)` \| (\d+) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert {name: int(count) for name, count in rows} == {file.name: len(frames(file)) for file in CAPTURES}


@pytest.mark.tools("tshark")
def test_tshark_sees_the_same(tmp_path: Path) -> None:
    packets = [(capture.name, packet) for capture in CAPTURES for packet in frames(capture)]
    views = keys_by_tshark([(packet, 1) for _, packet in packets], tmp_path)
    assert [(name, dissect(packet)) for name, packet in packets] == [(name, view) for (name, _), view in zip(packets, views, strict=True)]


def test_every_encapsulation_is_there() -> None:
    names = {header.name for capture in CAPTURES for packet in frames(capture) for header in walk(packet).headers}
    assert names == set(ENCAPSULATION_NAMES)


def test_tunnels_have_28_packets_of_a_web_server() -> None:
    packets = frames(EXAMPLES / "tunnels.pcap")
    ports = Counter(
        80 in struct.unpack_from("!HH", packet, keys.thoff) for packet in packets for keys in [dissect(packet)] if keys.tproto == 6
    )
    assert ports == {True: 28}


def test_nested_is_three_deep() -> None:
    assert {dissect(packet).depth for packet in frames(EXAMPLES / "nested.pcap")} == {3}
