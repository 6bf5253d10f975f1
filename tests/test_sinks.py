"""Sinks: the file is the old one or the complete new one, whatever happens; special files; and what cannot be written."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from libpcaps import no_descriptor_is_left

from pcapext.errors import CaptureError
from pcapext.sinks import Sink, open_sink
from pcapext.streams import open_stream

__all__ = ["no_descriptor_is_left"]

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

ROOT = Path(__file__).parent.parent
SUFFIXES = ("", ".gz", ".zst", ".lz4")
DATA = bytes(range(256)) * 2000


def error(call: Callable[[], object]) -> str:
    with pytest.raises(CaptureError) as caught:
        call()
    return str(caught.value)


def content(path: Path) -> bytes:
    view, output = memoryview(bytearray(1 << 16)), bytearray()
    with open_stream(path) as stream:
        assert (stream.compression is None) == (path.suffix not in SUFFIXES[1:])
        while count := stream.readinto(view):
            output += view[:count]
    return bytes(output)


def put(path: Path | str, *parts: bytes) -> None:
    with open_sink(path) as sink:
        for part in parts:
            sink.write(part)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path for each compression."""
    return tmp_path / f"out.pcap{request.param}"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            assert descriptor == reading  # the test has closed it


# --- regular files


@pytest.mark.parametrize("old", [None, b"old"])
def test_file(path: Path, old: bytes | None) -> None:
    part = Path(f"{path}.part")
    if old:
        path.write_bytes(old)
    with open_sink(str(path)) as sink:
        assert sink.name == str(path)
        assert (sink.descriptor is None) == (path.suffix != ".pcap")
        sink.write(DATA[:1000])
        sink.write(memoryview(DATA)[1000:].cast("I"))
        sink.write(b"")
        assert part.exists()
        assert (path.read_bytes() if path.exists() else None) == old
    assert sink.descriptor is None
    assert content(path) == DATA
    assert names(path.parent) == [path.name]
    sink.close()
    sink.abandon()
    assert error(lambda: sink.write(b"x")) == f"{path}: it is closed"


def test_nothing(path: Path) -> None:
    """A file with nothing in it is one of its format all the same."""
    put(path)
    if path.suffix == ".pcap":
        assert path.read_bytes() == b""
    else:
        assert content(path) == b""


def test_flush(path: Path) -> None:
    """What was written can be read."""
    with open_sink(path) as sink:
        sink.write(b"captured")
        sink.flush()
        part = Path(f"{path}.part")
        view = memoryview(bytearray(100))
        with open_stream(part) as stream:
            assert bytes(view[: stream.readinto(view)]) + bytes(view[: stream.readinto(view)] if stream.descriptor else b"") == b"captured"
        sink.write(b"more")
    assert content(path) == b"capturedmore"


def test_growing(path: Path) -> None:
    """The file itself is written: by one at a time, through links, with the mode that it has. What is left, or abandoned, stays there."""
    path.write_bytes(b"old")
    path.chmod(0o604)
    link = path.with_name(f"link{path.suffix}")
    link.symlink_to(path)
    with open_sink(link, grows=True) as sink:
        assert path.read_bytes() == b""
        sink.write(DATA)
        sink.flush()
        assert names(path.parent) == sorted([path.name, link.name])
        begun = path.read_bytes()
        assert len(begun) > 100
        assert error(lambda: open_sink(path, grows=True)) == f"{path}: it is being written already"
        sink.write(DATA)
    assert content(path) == 2 * DATA
    assert path.read_bytes().startswith(begun)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    sink = open_sink(path, grows=True)
    sink.write(DATA)
    sink.flush()
    assert sink.abandon() is None
    assert path.read_bytes() == begun


def test_descriptor(tmp_path: Path) -> None:
    """Whoever has the descriptor writes in turn with `write`."""
    with open_sink(tmp_path / "out") as sink:
        sink.write(b"one ")
        assert sink.descriptor is not None
        os.write(sink.descriptor, b"two ")
        sink.write(b"three")
    assert (tmp_path / "out").read_bytes() == b"one two three"


@pytest.mark.parametrize("old", [None, b"old"])
def test_abandon(path: Path, old: bytes | None) -> None:
    part = Path(f"{path}.part")
    if old:
        path.write_bytes(old)
    sink = open_sink(path)
    with pytest.raises(KeyError), sink:
        fail_after(sink, DATA)
    sink.abandon()
    sink.close()
    assert (path.read_bytes() if path.exists() else None) == old
    # What is in it can be read, to its end.
    part.rename(path)
    assert content(path) == DATA


def fail_after(sink: Sink, data: bytes) -> None:
    sink.write(data)
    raise KeyError


def test_abandon_nothing(path: Path) -> None:
    open_sink(path).abandon()
    assert names(path.parent) == []


def test_part_from_before(path: Path) -> None:
    part = Path(f"{path}.part")
    part.write_bytes(b"longer than what is written now" * 100)
    put(path, b"new")
    assert content(path) == b"new"
    assert names(path.parent) == [path.name]


def test_mode(path: Path) -> None:
    before = os.umask(0o027)
    try:
        put(path, b"new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o664, 0o444):
            path.chmod(mode)
            put(path, b"newer")
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_links(path: Path) -> None:
    """Links stay links, also one to a file that is to come. The part stands beside the file, not beside the link."""
    (path.parent / "folder").mkdir()
    link, target = path.with_name(f"link{path.suffix}"), path.parent / "folder" / path.name
    link.symlink_to(f"folder/{path.name}")
    for data in (b"new", b"newer"):
        with open_sink(link) as sink:
            sink.write(data)
            assert names(target.parent) == sorted([f"{path.name}.part"] + ([path.name] if data == b"newer" else []))
        assert link.is_symlink()
        assert content(target) == data


def test_working_folder_may_change(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with open_sink(path.name) as sink:
        sink.write(b"new")
        monkeypatch.chdir("/")
    assert content(path) == b"new"


def test_two_at_once(path: Path) -> None:
    with open_sink(path) as sink:
        assert error(lambda: open_sink(path)) == f"{path}.part: it is being written already"
        sink.write(b"first")
    assert content(path) == b"first"
    put(path, b"second")
    assert content(path) == b"second"


KILLED = """
import sys
from pcapext.sinks import open_sink
with open_sink(sys.argv[1]) as sink:
    sink.write(bytes(1000))
    sink.flush()
    print("written", flush=True)
    sys.stdin.read()
"""


def test_killed(path: Path) -> None:
    put(path, b"old")
    command = [sys.executable, "-c", KILLED, path]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"written\n"
        assert error(lambda: open_sink(path)) == f"{path}.part: it is being written already"
        process.send_signal(signal.SIGKILL)
    assert content(path) == b"old"
    assert names(path.parent) == [path.name, f"{path.name}.part"]
    put(path, b"new")
    assert content(path) == b"new"
    assert names(path.parent) == [path.name]


# --- outputs that are inputs


def test_output_is_not_the_input(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"data")
    (tmp_path / "symlink").symlink_to(path)
    (tmp_path / "hardlink").hardlink_to(path)
    (tmp_path / "out.part").hardlink_to(path)
    before = names(tmp_path)
    with path.open("ab") as file:
        for name in (path, f"{tmp_path}/./in", tmp_path / "symlink", tmp_path / "hardlink", f"/dev/fd/{file.fileno()}"):
            words = f"{name}: the output is the same file as the input"
            assert error(lambda: open_sink(name, inputs=[os.stat("/"), path.stat()])) == words  # noqa: B023
    # What is left of a run that failed may be read too, and must not be cut.
    words = f"{tmp_path}/out.part: the output is the same file as the input"
    assert error(lambda: open_sink(tmp_path / "out", inputs=[path.stat()])) == words
    assert names(tmp_path) == before
    assert path.read_bytes() == b"data"


def test_special_files_may_be_both() -> None:
    with open_sink("/dev/null", inputs=[os.stat("/dev/null")]) as sink:
        sink.write(DATA)


# --- special files


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "link"])
@pytest.mark.parametrize("end", ["close", "abandon"])
def test_descriptors(pipe: tuple[int, int], tmp_path: Path, name: str, end: str) -> None:
    reading, writing = pipe
    (tmp_path / "link").symlink_to(f"/dev/fd/{writing}")
    sink = open_sink(tmp_path / name.format(writing))
    assert sink.descriptor is not None
    sink.write(b"captured")
    assert os.read(reading, 100) == b"captured"
    getattr(sink, end)()
    os.write(writing, b"open")
    assert os.read(reading, 100) == b"open"


def test_descriptor_of_a_file(tmp_path: Path) -> None:
    """A shell has opened it, perhaps to append: it is written as it is."""
    path = tmp_path / "out"
    path.write_bytes(b"before ")
    with path.open("ab") as file:
        put(f"/dev/fd/{file.fileno()}", b"captured")
    assert path.read_bytes() == b"before captured"
    assert names(tmp_path) == ["out"]


def test_no_such_descriptor() -> None:
    assert error(lambda: open_sink("/dev/fd/987")) == "/dev/fd/987: Bad file descriptor"
    assert error(lambda: open_sink("/dev/fd/9876543210")) == "/dev/fd/9876543210.part: No such file or directory"


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_standard_output(tmp_path: Path, name: str) -> None:
    script = f"from pcapext.sinks import open_sink\nwith open_sink({name!r}) as sink: sink.write(b'captured ')\nprint('text')"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout == b"captured text\n"
    with (tmp_path / "out").open("wb") as file:
        subprocess.run(command, cwd=ROOT, stdout=file, check=True)
    assert (tmp_path / "out").read_bytes() == b"captured text\n"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fifo(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(fifo := tmp_path / f"fifo{suffix}")
    writer = threading.Thread(target=lambda: put(fifo, DATA))
    writer.start()
    assert content(fifo) == DATA
    writer.join()
    assert names(tmp_path) == [fifo.name]


def test_abandoned_fifo_is_not_complete(tmp_path: Path) -> None:
    """Whoever reads it must see that there should be more."""
    os.mkfifo(fifo := tmp_path / "fifo.gz")

    def write() -> None:
        sink = open_sink(fifo)
        sink.write(DATA)
        sink.flush()
        sink.abandon()

    writer = threading.Thread(target=write)
    writer.start()
    assert "ends early" in error(lambda: content(fifo))
    writer.join()


def test_nonblocking(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    received = bytearray()

    def read() -> None:
        while len(received) < len(DATA):
            received.extend(os.read(reading, 1 << 20))

    reader = threading.Timer(0.05, read)
    reader.start()
    put(f"/dev/fd/{writing}", DATA)
    reader.join()
    assert received == DATA


# --- what cannot be written


def test_errors(tmp_path: Path) -> None:
    assert error(lambda: open_sink(tmp_path)) == f"{tmp_path}: Is a directory"
    assert error(lambda: open_sink(tmp_path / "no" / "such\n")) == f"{tmp_path}/no/such .part: No such file or directory"
    assert error(lambda: open_sink(f"{tmp_path}/new/")) == f"{tmp_path}/new/: No such file or directory"
    assert error(lambda: open_sink("")) == ": No such file or directory"
    assert error(lambda: open_sink("a\0b")).startswith("a?b: ")
    assert error(lambda: open_sink(tmp_path / ("x" * 255))).endswith("x.part: File name too long")
    (tmp_path / "loop").symlink_to("loop")
    assert error(lambda: open_sink(tmp_path / "loop")) == f"{tmp_path}/loop: Too many levels of symbolic links"


def test_something_else_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "one.part").mkdir()
    assert error(lambda: open_sink(tmp_path / "one")) == f"{tmp_path}/one.part: Is a directory"
    (tmp_path / "two.part").symlink_to("victim")
    (tmp_path / "victim").write_bytes(b"data")
    assert error(lambda: open_sink(tmp_path / "two")) == f"{tmp_path}/two.part: Too many levels of symbolic links"
    os.mkfifo(fifo := tmp_path / "three.part")
    assert error(lambda: open_sink(tmp_path / "three")) == f"{tmp_path}/three.part: No such device or address"
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert error(lambda: open_sink(tmp_path / "three")) == f"{tmp_path}/three.part: the file is in the way"
    os.close(reading)
    assert (tmp_path / "victim").read_bytes() == b"data"


@pytest.mark.root
def test_permission(tmp_path: Path) -> None:
    """In a folder of ours a file that is only to be read stays; in a folder of others nothing is made."""
    path = tmp_path / "mine" / "out"
    path.parent.mkdir()
    path.write_bytes(b"old")
    path.chmod(0o444)
    os.chown(path.parent, 12345, 12345)
    os.chown(path, 12345, 12345)
    # Not pytest's own folders above it, which only root may enter. `os.access` asks for the real user.
    script = f"""
import os
from pcapext.errors import CaptureError
from pcapext.sinks import open_sink
os.chdir({str(tmp_path)!r})
os.setuid(12345)
for path in ("mine/out", "theirs"):
    try:
        open_sink(path)
    except CaptureError as error:
        print(error)
"""
    tmp_path.chmod(0o755)
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "mine/out: Permission denied\ntheirs.part: Permission denied\n"
    assert names(tmp_path) == ["mine"]
    assert names(path.parent) == ["out"]


def test_full_device() -> None:
    with pytest.raises(CaptureError, match=r"^/dev/full: No space left on device$") as caught:
        put("/dev/full", b"captured")
    assert isinstance(caught.value.__cause__, OSError)


def test_full_at_the_end(tmp_path: Path) -> None:
    """Compressed, it all may be written only when it is closed."""
    (tmp_path / "full.zst").symlink_to("/dev/full")
    sink = open_sink(tmp_path / "full.zst")
    sink.write(b"captured")
    assert error(sink.close) == f"{tmp_path}/full.zst: No space left on device"
    sink.close()


def test_broken_pipe(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.close(reading)
    with pytest.raises(CaptureError, match="Broken pipe") as caught:
        put(f"/dev/fd/{writing}", b"captured")
    assert isinstance(caught.value.__cause__, BrokenPipeError)


def test_the_first_error_is_told() -> None:
    with pytest.raises(KeyError, match="mine"), open_sink("/dev/full"):
        raise KeyError("mine")


@pytest.fixture
def limit() -> Iterator[int]:
    """No file may become longer than this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_file_size_limit(path: Path, limit: int) -> None:
    """What was written is left, as a part."""
    path.write_bytes(b"old")
    with pytest.raises(CaptureError, match=f"^{path}: File too large$"):
        put(path, os.urandom(limit // 2), os.urandom(limit))
    assert path.read_bytes() == b"old"
    assert Path(f"{path}.part").stat().st_size == limit


def test_what_failed_does_not_become_complete(tmp_path: Path, limit: int) -> None:
    """Also if whoever writes goes on as if nothing had been."""
    path = tmp_path / "out"
    sink = open_sink(path)
    assert error(lambda: sink.write(bytes(limit + 1))) == f"{path}: File too large"
    assert sink.descriptor is not None
    os.ftruncate(sink.descriptor, 0)
    assert error(sink.close) == f"{path}: File too large"
    # There was nothing left of it.
    assert names(tmp_path) == []


#: Run where 64 KB are all there is.
FULL_DISK = """
import os, sys
from pcapext.errors import CaptureError
from pcapext.sinks import open_sink
path = sys.argv[1]
with open_sink(path) as sink:
    sink.write(b"old")
old = open(path, "rb").read()
try:
    with open_sink(path) as sink:
        for _ in range(100):
            sink.write(os.urandom(1000))
except CaptureError as error:
    print(error)
assert open(path, "rb").read() == old
assert os.path.getsize(path + ".part") > 50_000
# Compressed, only the end fails: what is written before it is held back for a block.
sink = open_sink(path)
compressed = sink.descriptor is None
if compressed:
    sink.write(os.urandom(5000))
with open(os.path.dirname(path) + "/filler", "wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
try:
    sink.close() if compressed else sink.write(b"new")
except CaptureError as error:
    print(error)
sink.abandon()
assert open(path, "rb").read() == old
os.unlink(os.path.dirname(path) + "/filler")
with open_sink(path) as sink:
    sink.write(b"new")
assert sorted(os.listdir(os.path.dirname(path))) == [os.path.basename(path)]
"""


@pytest.mark.root
@pytest.mark.tools("unshare", "mount")
def test_full_disk(path: Path) -> None:
    """In a private mount namespace, on a small file system."""
    script = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$4"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", path.parent, sys.executable, FULL_DISK, path]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout == f"{path}: No space left on device\n" * 2


def test_gzip_header(tmp_path: Path) -> None:
    """The same data makes the same file: there is no time in it, and no name."""
    put(tmp_path / "out.gz", b"captured")
    data = (tmp_path / "out.gz").read_bytes()
    assert data[3:8] == bytes(5)
    assert gzip.decompress(data) == b"captured"
