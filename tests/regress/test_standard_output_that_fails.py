"""A full disk behind standard output had a message without a name, and a closed one a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")])
def test_it_is_named(redirection: str, reason: str) -> None:
    line = f"{sys.executable} -m pcapext compile tcp {redirection}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (1, f"pcapext: standard output: {reason}\n")
