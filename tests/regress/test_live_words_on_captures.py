"""`outbound` and `ifindex` ask what no capture file holds: instead of an error, as in tcpdump, nothing matched."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcapext.cli import main

CAPTURE = str(Path(__file__).parents[2] / "examples" / "tunnels.pcap")


@pytest.mark.parametrize("command", ["filter", "keys"])
@pytest.mark.parametrize("text", ["outbound", "ifindex 3", "inner tcp and not inbound"])
def test_it_is_an_error(capsys: pytest.CaptureFixture[str], command: str, text: str) -> None:
    assert main([command, "-r", CAPTURE, text]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert "which no capture file holds" in output.err
