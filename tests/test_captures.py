"""The captures of benchmarks/captures.py, as tcpdump, tshark and scapy see them."""

from __future__ import annotations

import statistics
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from scapy.utils import RawPcapReader

from benchmarks.captures import POOL, STEP, Capture

#: A capture of each kind, with how many packets match `tcp port 80` anywhere, and how many outside of tunnels.
KINDS = [
    (Capture("plain", POOL), 1100, 1100),
    (Capture("short", 2 * POOL, mean=200), 2200, 2200),
    (Capture("tunnels", POOL, tunnelled=40), 1100, 660),
]
NAMES = [capture.name for capture, *_ in KINDS]
#: What stands in the list of a packet's protocols, as tshark calls them, if it is in a tunnel.
TUNNELS = ("vxlan", "geneve", "gre", "gtp", "mpls", "ip:ip", "ip:ipv6")


@pytest.mark.tools("tcpdump", "tshark")
@pytest.mark.parametrize(("capture", "matching", "outside"), KINDS, ids=NAMES)
def test_shares_are_those_wanted(capture: Capture, matching: int, outside: int, tmp_path: Path) -> None:
    file = capture.file(tmp_path)
    counted = subprocess.run(["tcpdump", "-r", file, "--count", "tcp port 80"], capture_output=True, text=True, check=True)
    assert counted.stdout == f"{outside} packets\n"

    command = ["tshark", "-n", "-r", file, "-T", "fields", "-e", "frame.protocols", "-e", "tcp.port"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    packets = [line.split("\t") for line in lines]
    assert len(packets) == capture.packets
    assert sum("80" in ports.split(",") for _, ports in packets) == matching
    assert sum(any(tunnel in protocols for tunnel in TUNNELS) for protocols, _ in packets) == capture.packets * capture.tunnelled // 100


@pytest.mark.parametrize("capture", [capture for capture, *_ in KINDS], ids=NAMES)
def test_records_are_whole(capture: Capture, tmp_path: Path) -> None:
    with RawPcapReader(str(capture.file(tmp_path))) as reader:
        assert (reader.endian, reader.nano, reader.linktype, reader.snaplen) == ("<", False, 1, 262144)
        packets = list(reader)
    assert all(len(data) == about.wirelen == about.caplen and 60 <= len(data) <= 1514 for data, about in packets)
    assert statistics.mean(len(data) for data, _ in packets) == pytest.approx(capture.mean, rel=0.05)
    assert len({data for data, _ in packets}) > 0.95 * POOL
    times = [about.sec * 1_000_000 + about.usec for _, about in packets]
    assert {after - before for before, after in pairwise(times)} == {STEP}


def test_a_capture_is_kept_until_it_changes(tmp_path: Path) -> None:
    file = Capture("same", POOL).file(tmp_path)
    first, made = file.read_bytes(), file.stat().st_ino
    assert Capture("same", POOL).file(tmp_path).stat().st_ino == made
    assert Capture("same", POOL, tunnelled=40).file(tmp_path) == file
    assert file.read_bytes() != first
    assert Capture("same", POOL).file(tmp_path).read_bytes() == first


@pytest.mark.parametrize("wrong", [{"packets": 1}, {"mean": 300}, {"tunnelled": 101}])
def test_what_cannot_be_made_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no capture is like this"):
        Capture("wrong", **{"packets": POOL, **wrong})
