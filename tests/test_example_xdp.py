"""The example that counts in XDP: it counts what `pcapext filter` counts, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pcapext.filtering import count

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = [pytest.mark.root, pytest.mark.tools("clang", "ip", "bpftool")]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(EXAMPLES.parent), "TMPDIR": str(folder)}
    return subprocess.run([EXAMPLES / "xdp" / "count.sh", *arguments], capture_output=True, text=True, env=environment)


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("arguments", "counted"),
    [
        ((), "60 packets, 28 match"),
        ((str(EXAMPLES / "gre.pcap"), "encap erspan or inner udp"), None),
        ((str(EXAMPLES / "vlan.pcap"), "vlan and tcp"), None),
    ],
)
def test_counts(arguments: tuple[str, ...], counted: str | None, tmp_path: Path) -> None:
    done = run(tmp_path, *arguments)
    if counted is None:
        capture, expression = arguments
        counted = f"{count(capture)} packets, {count(capture, expression)} match"
    assert (done.stdout, done.stderr, done.returncode) == (f"{counted}\n", "", 0)
    assert list(tmp_path.iterdir()) == []
    assert "pcapext-xdp" not in namespaces()


def test_error_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run(tmp_path, str(EXAMPLES / "vlan.pcap"), "inner and")
    assert done.returncode == 1
    assert done.stderr.startswith("pcapext: unexpected 'and'")
    assert list(tmp_path.iterdir()) == []
    assert "pcapext-xdp" not in namespaces()
