"""A skip is a skip on a developer's machine and a failure in CI, whatever it comes from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

SAMPLES = {
    "tests/test_module.py": "import pytest; pytest.importorskip('no_such_module')",
    "tests/test_functions.py": """
import pytest

@pytest.mark.tools("sh", "no-such-program")
def test_marker(): assert False, "was run"

def test_call(): pytest.skip("on a whim")

@pytest.mark.skip
def test_decorated(): assert False, "was run"

@pytest.mark.xfail(strict=True)
def test_expected_failure(): assert False

@pytest.mark.tools("sh")
def test_passes(): pass
""",
    "package/module.py": "'''\n>>> 1 + 1  # doctest: +SKIP\n3\n'''",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with this one's conftest and settings, and tests that are skipped in every way there is."""
    root = tmp_path_factory.mktemp("project")
    texts = {"tests/conftest.py": (HERE / "conftest.py").read_text(), "pyproject.toml": (HERE.parent / "pyproject.toml").read_text()}
    for name, text in (texts | SAMPLES).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("ci", "summary"),
    [
        # The module that cannot be imported counts twice: once for its tests, once for its doctests.
        pytest.param({}, "1 passed, 6 skipped, 1 xfailed", id="developer"),
        # pytest calls a test that fails before its body an error: the module, the marker and the decorator.
        pytest.param({"CI": "true"}, "2 failed, 1 passed, 1 xfailed, 4 errors", id="CI"),
    ],
)
def test_skips(project: Path, ci: dict[str, str], summary: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("PYTEST")} | ci
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--continue-on-collection-errors", "tests", "package"]
    run = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert run.stdout.splitlines()[-1].strip("= ").startswith(summary), run.stdout + run.stderr
    assert "needs no-such-program" in run.stdout
    assert (run.returncode == 0) == (not ci)
