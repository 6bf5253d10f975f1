"""Reading a program from a closed standard input ended with a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_it_is_an_error() -> None:
    line = f"{sys.executable} -m pcapext check <&-"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (1, "pcapext: standard input: Bad file descriptor\n")
