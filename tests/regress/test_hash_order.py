"""The loads that are kept of a dead value came in the order of a set, so that programs were not the same in each process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
from graphs import graph_of
from pcapext.optimize.dead import remove_dead
loads = " add ".join(f"(load1[(thoff and {number})]" for number in range(1, 9)) + " add 0" + ")" * 8
print(remove_dead(graph_of(f"0: A := {loads}; return 1")))
"""


def test_the_same_in_every_process() -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    printed = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": path},
        ).stdout
        for seed in range(3)
    }
    assert len(printed) == 1
    assert printed.pop().count("void := load1") == 8
