"""In a file for -F, tcpdump takes # and the rest of the line for a comment; here it was a syntax error."""

from __future__ import annotations

from pathlib import Path

import pytest

import pcapext
from pcapext.cli import main


def test_they_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "filter"
    file.write_text("tcp # and udp\nport 80#\n#")
    assert main(["compile", "-F", str(file)]) == 0
    assert capsys.readouterr().out == pcapext.compile("tcp port 80").dump()
