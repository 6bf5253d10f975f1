"""How the engine gets to where it runs: what a release holds, what a wheel holds, what is said where there is no engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from pcapext.engine.build import SOURCES

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "examples" / "tunnels.pcap"


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # Neither warnings, which Python of other versions may have more of, nor another folder's pcapext.
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    return subprocess.run(command, cwd=cwd, env=inherited | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a release is made from, without anything built."""
    copy = tmp_path_factory.mktemp("checkout") / "pcapext"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "pcapext", copy / "pcapext", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return copy


def test_every_c_file_is_built() -> None:
    assert sorted(SOURCES) == sorted(path.name for path in (ROOT / "pcapext" / "engine").glob("*.c"))


@pytest.mark.tools("cc")
def test_release(checkout: Path, tmp_path: Path) -> None:
    """The wheel is made from the source release alone. It is unpacked elsewhere, and its engine filters."""
    built = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ".", cwd=checkout)
    assert built.returncode == 0, built.stderr
    (release,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")

    with tarfile.open(release) as archive:
        released = {Path(*Path(name).parts[1:]).as_posix() for name in archive.getnames()}
    assert {"setup.py", "pyproject.toml", "pcapext/py.typed", "LICENSE"} <= released
    assert {path.relative_to(checkout).as_posix() for kind in ("*.py", "*.c", "*.h") for path in checkout.rglob(kind)} <= released

    with zipfile.ZipFile(wheel) as archive:
        shipped = [name for name in archive.namelist() if ".dist-info/" not in name]
        archive.extractall(tmp_path / "installed")
    others = {name for name in shipped if not name.endswith(".py")}
    engine = {name for name in others if name.startswith("pcapext/engine/_engine.") and name.endswith(".so")}
    assert len(engine) == 1
    assert others - engine == {"pcapext/py.typed"}
    if "abi3" in str(engine):
        assert "-cp310-abi3-" in wheel.name

    script = "import pcapext.engine as engine; print(engine.lib and engine._engine.__file__)"
    found = run(sys.executable, "-c", script, cwd=tmp_path / "installed", PYTHONPATH=str(tmp_path / "installed"))
    assert found.stdout.strip() == str(tmp_path / "installed" / engine.pop()), found.stderr
    arguments = ("filter", "-r", SAMPLE, "--count", "inner tcp port 80")
    counted = run(sys.executable, "-m", "pcapext", *arguments, cwd=tmp_path / "installed")
    assert (counted.stdout.split()[0], counted.returncode) == ("28", 0), counted.stderr


@pytest.mark.parametrize("compiler", ["/nonexistent", "false"])
def test_build_without_compiler(checkout: Path, tmp_path: Path, compiler: str) -> None:
    failed = run(sys.executable, "setup.py", "build_ext", "--build-temp", tmp_path, "--build-lib", tmp_path, cwd=checkout, CC=compiler)
    assert failed.returncode != 0
    assert "error: pcapext's engine is written in C, and could not be built: " in failed.stderr
    assert "apt install gcc libc6-dev python3-dev" in failed.stderr
    assert "Traceback" not in failed.stderr


def not_built(checkout: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, *arguments, cwd=checkout, PYTHONPATH=str(checkout))


def test_compile_without_engine(checkout: Path) -> None:
    script = "import pcapext; print(pcapext.__file__, len(pcapext.compile('tcp port 80')), len(pcapext.compile('inner tcp port 80')))"
    done = not_built(checkout, "-c", script)
    assert done.stdout.split()[0] == str(checkout / "pcapext" / "__init__.py"), done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize(
    "use",
    [
        "pcapext.compile('tcp').matches(bytes(60))",
        "pcapext.open_offline(sys.argv[1])",
        "pcapext.count(sys.argv[1], 'tcp')",
        "pcapext.filter_file(sys.argv[1], sys.argv[2], 'tcp')",
    ],
)
def test_use_without_engine(checkout: Path, tmp_path: Path, use: str) -> None:
    script = f"import pcapext, sys\ntry: {use}\nexcept pcapext.PcapextError as error: print(error)"
    done = not_built(checkout, "-c", script, SAMPLE, tmp_path / "out.pcap")
    assert done.stdout.startswith("the engine of pcapext is not built ("), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [("filter", "--count", "tcp"), ("filter", "-w", "out.pcap", "tcp"), ("keys", "tcp")],
    ids=lambda arguments: " ".join(arguments),
)
def test_command_without_engine(checkout: Path, arguments: Sequence[str]) -> None:
    done = not_built(checkout, "-m", "pcapext", *arguments, "-r", SAMPLE)
    assert done.returncode == 1
    assert done.stderr.startswith("pcapext: the engine of pcapext is not built ("), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (checkout / "out.pcap").exists()
