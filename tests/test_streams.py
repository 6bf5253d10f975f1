"""Streams: files, standard input, pipes, FIFOs and buffers; waiting, stopping, following; and what cannot be read."""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from libpcaps import no_descriptor_is_left

from pcapext.compression import encoder
from pcapext.errors import CaptureError
from pcapext.streams import Stream, open_stream

__all__ = ["no_descriptor_is_left"]

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")

ROOT = Path(__file__).parent.parent
FORMATS = (None, "gzip", "zstd", "lz4")
DATA = bytes(range(256)) * 2000


def packed(compression: str | None, data: bytes) -> bytes:
    if compression is None:
        return data
    encode = encoder(compression)
    return encode.encode(data) + encode.finish()


def some(stream: Stream, size: int = 1 << 16) -> bytes:
    """What one read gives."""
    view = memoryview(bytearray(size))
    return bytes(view[: stream.readinto(view)])


def rest(stream: Stream, size: int = 1 << 16) -> bytes:
    return b"".join(iter(lambda: some(stream, size), b""))


def error(call: Callable[[], object]) -> str:
    with pytest.raises(CaptureError) as caught:
        call()
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            assert descriptor == writing  # the test has closed it


@pytest.fixture
def stop() -> Iterator[int]:
    """A descriptor that is readable, so that nothing waits."""
    reading, writing = os.pipe()
    os.close(writing)
    yield reading
    os.close(reading)


@pytest.fixture
def standard_input() -> Iterator[Callable[[int], None]]:
    """Makes a descriptor standard input."""
    before = os.dup(0)
    yield lambda descriptor: os.dup2(descriptor, 0) and None
    os.dup2(before, 0)
    os.close(before)


# --- regular files


@pytest.mark.parametrize("size", [1 << 10, 4099, 1 << 24])
@pytest.mark.parametrize("compression", FORMATS)
def test_file(path: Path, compression: str | None, size: int) -> None:
    path.write_bytes(data := packed(compression, DATA))
    with open_stream(path) as stream:
        assert stream.name == str(path)
        assert stream.compression == compression
        assert stream.size == len(data)
        assert stream.position == 0
        assert stream.stat is not None
        assert os.path.samestat(stream.stat, path.stat())
        if compression is None:
            assert stream.descriptor is not None
            assert os.pread(stream.descriptor, 1 << 20, 0) == DATA
            assert some(stream, 3) == DATA[:3]
            assert stream.position == 3
            assert os.pread(stream.descriptor, 4, 100) == DATA[100:104]
            assert rest(stream, size) == DATA[3:]
        else:
            assert stream.descriptor is None
            assert rest(stream, size) == DATA
        assert stream.position == len(data)
        assert some(stream) == b""


@pytest.mark.parametrize("data", [b"", b"\x1f", b"abc", b"\x28\xb5\x2f"])
def test_tiny(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with open_stream(path) as stream:
        assert rest(stream) == data
        assert stream.compression is None
    with open_stream(data) as stream:
        assert rest(stream) == data


def test_names_do_not_matter(path: Path) -> None:
    path.rename(path.with_suffix(".gz"))
    with open_stream(str(path.with_suffix(".gz"))) as stream:
        assert stream.compression is None
        assert rest(stream) == DATA


def test_growing(path: Path) -> None:
    with open_stream(path) as stream, path.open("ab") as file:
        some(stream)
        file.write(b"more")
        file.flush()
        assert (some(stream, 10) + rest(stream)).endswith(b"more")
        assert stream.size == len(DATA)
        assert stream.position == len(DATA) + 4


def test_position_of_compressed(path: Path) -> None:
    """It moves along with what is read: half of it stands for half of the file."""
    path.write_bytes(packed("gzip", b"".join(os.urandom(100) + bytes(1000) for _ in range(10_000))))
    with open_stream(path) as stream:
        assert stream.size
        for _ in range(42):
            some(stream, 1 << 17)
        assert 0.4 < stream.position / stream.size < 0.8


def test_closing(path: Path) -> None:
    with open_stream(path) as stream:
        some(stream, 2)
    stream.close()
    assert stream.descriptor is None
    assert error(lambda: some(stream)) == f"{path}: it is closed"
    stream = open_stream("/dev/null")
    stream.close()
    assert error(lambda: some(stream)) == "/dev/null: it is closed"
    with open_stream(DATA) as stream:
        pass
    assert error(lambda: some(stream)) == "the buffer: it is closed"


@pytest.mark.parametrize("compression", ["gzip", "zstd", "lz4"])
def test_closing_with_the_rest_unread(path: Path, compression: str) -> None:
    path.write_bytes(packed(compression, DATA))
    with open_stream(path) as stream:
        some(stream, 2)
    assert error(lambda: some(stream)) == f"{path}: it is closed"


# --- what cannot be read


def test_errors(path: Path) -> None:
    assert error(lambda: open_stream(path.with_name("no\nsuch"))) == f"{path.parent}/no such: No such file or directory"
    assert error(lambda: open_stream(path.parent)) == f"{path.parent}: Is a directory"
    assert error(lambda: open_stream(path / "in")) == f"{path}/in: Not a directory"
    assert error(lambda: open_stream("a\0b")).startswith("a?b: ")
    assert error(lambda: open_stream("")) == ": No such file or directory"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path.with_name("socket")))
        assert error(lambda: open_stream(path.with_name("socket"))) == f"{path.parent}/socket: No such device or address"


@pytest.mark.root
def test_permission(path: Path) -> None:
    """Asked as somebody else, for root may read everything."""
    path.chmod(0)
    os.seteuid(12345)
    try:
        assert error(lambda: open_stream(path)) == f"{path}: Permission denied"
    finally:
        os.seteuid(0)


def test_closed_standard_input(standard_input: Callable[[int], None]) -> None:
    os.close(0)
    assert error(lambda: open_stream("-")) == "standard input: Bad file descriptor"


def test_input_output_error() -> None:
    """A file that opens and cannot be read."""
    assert error(lambda: open_stream("/proc/self/mem")) == "/proc/self/mem: Input/output error"


@pytest.mark.parametrize("compression", ["gzip", "zstd", "lz4"])
def test_damage_names_the_file(path: Path, compression: str) -> None:
    path.write_bytes(data := packed(compression, b"captured")[:-1])
    with open_stream(path) as stream:
        assert some(stream) == b"captured"
        assert error(lambda: some(stream)) == f"{path}: the {compression} data ends early, after {len(data)} bytes"


# --- buffers


@pytest.mark.parametrize(
    "make",
    [bytes, bytearray, memoryview, lambda data: array.array("I", data), lambda data: memoryview(b"xx" + data)[2:]],
    ids=["bytes", "bytearray", "memoryview", "array", "slice"],
)
@pytest.mark.parametrize("compression", FORMATS)
def test_buffers(make: Callable[[bytes], bytes], compression: str | None) -> None:
    data = packed(compression, DATA)
    odd = -len(data) % 4  # an array has whole items
    if compression == "gzip":
        data += bytes(odd)
    elif compression:
        data += bytes.fromhex("502a4d18") + odd.to_bytes(4, "little") + bytes(odd)
    with open_stream(make(data)) as stream:
        assert (stream.name, stream.size, stream.descriptor, stream.stat) == ("the buffer", len(data), None, None)
        assert stream.compression == compression
        assert rest(stream) == DATA


def test_mmap(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        with open_stream(mapped) as stream:
            assert rest(stream) == DATA
        # Closed, the stream has let it go. Else this is a BufferError.
        mapped.close()


@pytest.mark.parametrize(
    "source",
    [memoryview(b"abcdefgh")[::2], memoryview(b"abcdefgh")[::-1], memoryview(b"abcdefgh").cast("B", [2, 4]), ctypes.c_int()],
    ids=["gaps", "reversed", "two dimensions", "none"],
)
def test_odd_buffers(source: memoryview) -> None:
    assert error(lambda: open_stream(source)) == "the buffer: expected bytes in one dimension, without gaps"


class Pair(ctypes.Structure):
    _fields_ = (("one", ctypes.c_uint8), ("two", ctypes.c_uint16.__ctype_be__))


def test_any_items() -> None:
    with open_stream((Pair * 2).from_buffer_copy(b"abcdefgh")) as stream:
        assert rest(stream) == b"abcdefgh"


# --- pipes and standard input


@pytest.mark.parametrize("compression", FORMATS)
def test_standard_input(pipe: tuple[int, int], standard_input: Callable[[int], None], compression: str | None) -> None:
    reading, writing = pipe
    data = packed(compression, DATA)
    standard_input(reading)
    thread = threading.Thread(target=lambda: write_all(writing, data))
    thread.start()
    with open_stream("-") as stream:
        assert (stream.name, stream.size, stream.descriptor) == ("standard input", None, None)
        assert stream.compression == compression
        assert rest(stream) == DATA
        assert stream.position == len(data)
    thread.join()
    os.fstat(0)  # it stays open


def write_all(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]


def test_standard_input_from_a_file(path: Path, standard_input: Callable[[int], None]) -> None:
    with path.open("rb", buffering=0) as file:
        standard_input(file.fileno())
        with open_stream("-") as stream:
            assert stream.descriptor is not None
            assert os.pread(stream.descriptor, 5, 0) == DATA[:5]
            assert stream.size == len(DATA)
            assert rest(stream) == DATA


def test_standard_input_that_somebody_has_read_from(path: Path, standard_input: Callable[[int], None]) -> None:
    with path.open("rb", buffering=0) as file:
        file.read(1000)
        standard_input(file.fileno())
        with open_stream("-") as stream:
            assert stream.descriptor is None
            assert stream.size == len(DATA) - 1000
            assert rest(stream) == DATA[1000:]
            assert stream.position == stream.size


@pytest.mark.parametrize("compression", FORMATS)
def test_data_comes_before_the_end(pipe: tuple[int, int], stop: int, compression: str | None) -> None:
    """What was flushed can be read while the writer goes on. With `stop`, waiting for more would be 0."""
    reading, writing = pipe
    data = b"first" * 10
    if compression:
        encode = encoder(compression)
        data = encode.encode(data) + encode.flush()
    os.write(writing, data)
    with open_stream(f"/dev/fd/{reading}", stop=stop) as stream:
        assert rest(stream) == b"first" * 10


@pytest.mark.parametrize("size", [0, 1, 3, 4])
def test_stop_at_the_first_bytes(pipe: tuple[int, int], stop: int, size: int) -> None:
    os.write(pipe[1], b"abcd"[:size])
    with open_stream(f"/dev/fd/{pipe[0]}", stop=stop) as stream:
        assert rest(stream) == b"abcd"[:size]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "lz4"])
def test_stop_anywhere_in_compressed_data(pipe: tuple[int, int], stop: int, compression: str) -> None:
    """Stopped in the midst of it, it is no error that it has no end."""
    reading, writing = pipe
    data = packed(compression, b"captured") * 2
    for length in range(4, len(data)):
        os.write(writing, data[:length])
        with open_stream(f"/dev/fd/{reading}", stop=stop) as stream:
            assert (b"captured" * 2).startswith(rest(stream))
            assert some(stream) == b""


def test_stop_wakes(pipe: tuple[int, int]) -> None:
    """A read that waits already ends when it is told to."""
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb", buffering=0) as stopping:
        os.write(pipe[1], b"abcd")
        with open_stream(f"/dev/fd/{pipe[0]}", stop=reading) as stream:
            assert some(stream) == b"abcd"
            threading.Timer(0.05, lambda: stopping.write(b"x")).start()
            assert some(stream) == b""


def test_fifo(path: Path, stop: int) -> None:
    """Nobody may ever write to it: even then it can be stopped."""
    os.mkfifo(fifo := path.with_name("fifo"))
    with open_stream(fifo, stop=stop) as stream:
        assert some(stream) == b""
    writer = threading.Thread(target=lambda: fifo.write_bytes(DATA))
    writer.start()
    with open_stream(fifo) as stream:
        assert rest(stream) == DATA
    writer.join()


def test_socket(standard_input: Callable[[int], None]) -> None:
    here, there = socket.socketpair()
    with here:
        with there:
            standard_input(here.fileno())
            there.sendall(b"captured")
        with open_stream("-") as stream:
            assert rest(stream) == b"captured"


def test_terminal(standard_input: Callable[[int], None], stop: int) -> None:
    master, slave = pty.openpty()
    with open(master, "wb", buffering=0) as keyboard, open(slave, "rb", buffering=0) as terminal:
        standard_input(terminal.fileno())
        keyboard.write(b"line\n")
        with open_stream("-", stop=stop) as stream:
            assert rest(stream) == b"line\n"


def test_nonblocking(pipe: tuple[int, int], standard_input: Callable[[int], None]) -> None:
    reading, writing = pipe
    os.set_blocking(reading, False)
    standard_input(reading)
    threading.Timer(0.05, lambda: os.write(writing, b"abcd")).start()
    with open_stream("-") as stream:
        assert some(stream) == b"abcd"
        timer = threading.Timer(0.05, lambda: (os.write(writing, b"efgh"), os.close(writing)))
        timer.start()
        assert rest(stream) == b"efgh"
        timer.join()
    assert not os.get_blocking(reading)


# --- following


@pytest.mark.parametrize("compression", FORMATS)
def test_follow(path: Path, compression: str | None) -> None:
    """It waits for the first bytes, for more, and on `stop` gives all that came before."""
    path.write_bytes(b"")
    reading, writing = os.pipe()
    data = packed(compression, b"one" * 100) + packed(compression, b"two" * 100)

    def append() -> None:
        with path.open("ab", buffering=0) as file, open(writing, "wb", buffering=0) as stopping:
            for start in range(0, len(data), len(data) // 3):
                file.write(data[start : start + len(data) // 3])
            stopping.write(b"x")

    timer = threading.Timer(0.05, append)
    timer.start()
    with open(reading, "rb"), open_stream(path, follow=True, stop=reading) as stream:
        assert stream.compression == compression
        assert rest(stream) == b"one" * 100 + b"two" * 100
        timer.join()


@pytest.mark.parametrize("compression", ["gzip", "zstd", "lz4"])
def test_follow_and_stop_within(path: Path, stop: int, compression: str) -> None:
    path.write_bytes(packed(compression, b"captured") * 2)
    os.truncate(path, path.stat().st_size - 2)
    with open_stream(path, follow=True, stop=stop) as stream:
        assert rest(stream) == b"captured" * 2


def test_follow_what_becomes_shorter(path: Path) -> None:
    with open_stream(path, follow=True) as stream:
        assert some(stream) + some(stream) == DATA[: (1 << 16) + 4]
        os.truncate(path, 10)
        assert error(lambda: rest(stream)) == f"{path}: the file became shorter while it was read"


def test_follow_a_pipe(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.write(writing, b"captured")
    os.close(writing)
    with open_stream(f"/dev/fd/{reading}", follow=True) as stream:
        assert rest(stream) == b"captured"


# --- what it costs


def test_libraries_are_loaded_when_they_are_needed(path: Path) -> None:
    script = """
import sys
from pcapext.streams import open_stream
open_stream(sys.argv[1]).close()
print(*(name for name in ("lz4", "lz4.frame", "backports.zstd", "compression.zstd") if name in sys.modules))
"""

    def loaded() -> str:
        return subprocess.run([sys.executable, "-c", script, path], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    assert loaded() == ""
    path.write_bytes(packed("gzip", DATA))
    assert loaded() == ""
