"""The fuzz targets of the engine, for a short while: all seeds, all that was once found, and a fixed number of inputs made from them.

`make fuzz` runs them for longer. What they check is said at the head of each.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: Inputs tried of each target: seconds, and as many as reach what the seeds do not.
RUNS = {"programs": 100_000, "captures": 20_000, "walk": 200_000}


def test_every_target_has_a_run() -> None:
    assert set(RUNS) == {path.stem for path in (ROOT / "fuzz").glob("*.c")}


@pytest.mark.tools("clang", "make")
@pytest.mark.parametrize("target", RUNS)
def test_fuzz(target: str, tmp_path: Path) -> None:
    # Neither the flags of the make that runs this test, nor where `make sanitize` has its reports put.
    foreign = ("MAKE", "MFLAGS", "ASAN_", "UBSAN_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment["TABLES_PYTHON"] = sys.executable
    program = Path("build", "fuzz", target)
    subprocess.run(["make", "--silent", program], cwd=ROOT, env=environment, check=True)
    seeds = [folder for folder in (ROOT / "fuzz" / "corpus" / target, ROOT / "fuzz" / "regressions" / target) if folder.exists()]
    command = [ROOT / program, f"-runs={RUNS[target]}", "-seed=1", "-timeout=30", f"-artifact_prefix={tmp_path}/", tmp_path, *seeds]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-8000:]
    assert f"Done {RUNS[target]} runs" in done.stdout
