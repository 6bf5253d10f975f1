"""The scripts in examples/ run, and show what matches; a mistake is a message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bindings import HANDLES
from wire import Wire

ROOT = Path(__file__).parent.parent.parent
TUNNELS = "examples/tunnels.pcap"
#: Those of the libraries that there are for this Python.
BINDINGS = [f"{library.replace('-', '_')}_capture" for library in HANDLES]


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, f"examples/{script}.py", *arguments]


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(script, *arguments), capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("script", ["scapy_sniff", "dpkt_reader", *BINDINGS])
def test_captures(script: str) -> None:
    shown = run(script, TUNNELS, "inner tcp port 80")
    assert shown.returncode == 0
    assert len(shown.stdout.splitlines()) == 28  # examples/README.md


@pytest.mark.parametrize("script", ["scapy_sniff", "dpkt_reader", "packet_socket", *BINDINGS])
def test_mistakes(script: str) -> None:
    count = ["1"] if script == "packet_socket" else []
    for place, words in ((TUNNELS, "  inner tcp port\n                ^\n"), ("absent", "absent: ")):
        if place == TUNNELS and count:
            continue
        shown = run(script, place, "inner tcp port", *count)
        assert shown.returncode == 1
        assert words in shown.stderr
        assert "Traceback" not in shown.stderr
    assert f"python examples/{script}.py" in run(script).stderr


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.tools("ip")
@pytest.mark.parametrize(
    ("script", "arguments", "shown"),
    [
        ("packet_socket", ["2"], "right: 60 bytes 0200"),
        ("scapy_sniff", [], "Ether / IP / TCP 1.2.3.4:http > 5.6.7.8"),
        *((script, [], " 60 bytes") for script in BINDINGS),
    ],
)
def test_interfaces(script: str, arguments: list[str], shown: str) -> None:
    tcp = bytes.fromhex("0200000000010200000000020800450000280001000040060000010203040506070800500051") + bytes(22)
    wire = Wire()
    try:
        started = command(script, "right", "inner tcp port 80", *arguments)
        process = wire.do(lambda: subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT))
        with process:
            try:
                # It says so when the filter is in its place.
                first = (process.stdout if script == "packet_socket" else process.stderr).readline()
                assert "the kernel filters the packet socket on right" in first or first in ("sniffing right\n", "capturing on right\n")
                wire.send([tcp[:34] + bytes(26), tcp, tcp])
                lines = [process.stdout.readline() for _ in range(2)]
            finally:
                if script != "packet_socket":
                    process.terminate()
            assert [shown in line for line in lines] == [True, True], lines
    finally:
        wire.close()
