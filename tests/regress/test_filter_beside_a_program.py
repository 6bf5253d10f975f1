"""With --program, a filter on the command line was silently ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcapext.cli import main

CAPTURE = str(Path(__file__).parents[2] / "examples" / "tunnels.pcap")


@pytest.mark.parametrize("more", [["tcp"], ["-F", "filter"]])
def test_it_is_wrong_usage(capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["filter", "-r", CAPTURE, "--program", "program", *more])
    assert caught.value.code == 2
    assert "argument --program: not allowed with a filter" in capsys.readouterr().err
