"""gzip, zstd and lz4: against their own programs, in both directions; every way to cut or bend a file; memory."""

from __future__ import annotations

import random
import subprocess
import tracemalloc
from collections.abc import Callable

import pytest

from pcapext.compression import compression_of, encoder, format_of
from pcapext.errors import CaptureError
from pcapext.streams import open_stream

FORMATS = ("gzip", "zstd", "lz4")

_RANDOM = random.Random(1)
#: More than a block of any format, so that there are several.
DATA = b"".join(_RANDOM.randbytes(20) + b"abcdefgh" * _RANDOM.randrange(60) for _ in range(2000))


def read(data: bytes, size: int = 1 << 16) -> tuple[bytes, str]:
    """What a stream gives of compressed data, and the words of the error after that."""
    output, view = bytearray(), memoryview(bytearray(size))
    with open_stream(data) as stream:
        try:
            while count := stream.readinto(view):
                output += view[:count]
        except CaptureError as error:
            # It says so each time.
            with pytest.raises(CaptureError, match="the buffer: "):
                stream.readinto(view)
            return bytes(output), str(error)
        assert stream.position == stream.size == len(data)
        return bytes(output), ""


def encoded(compression: str, *parts: bytes) -> tuple[bytes, list[int]]:
    """A file with a flush after each part, and its length after each."""
    encode, data, ends = encoder(compression), b"", []
    for part in parts:
        data += encode.encode(part)
        data += encode.flush()
        ends.append(len(data))
    return data + encode.finish(), ends


def program(command: str, data: bytes) -> bytes:
    return subprocess.run(command.split(), input=data, capture_output=True, check=True).stdout


# --- the programs


@pytest.mark.tools("gzip", "zstd", "lz4")
@pytest.mark.parametrize("size", [1, 1000, 1 << 20])
@pytest.mark.parametrize(
    "command",
    [
        *("gzip -c", "gzip -c -1", "gzip -c -9"),
        *("zstd -c", "zstd -c -1 --no-check", "zstd -c -19", "zstd -c --long=27", "zstd -c -T2 -B100000"),
        *("lz4 -c", "lz4 -c -1 -B4 -BD", "lz4 -c -9 -B7 -BX", "lz4 -c --no-frame-crc", "lz4 -c -B5 --content-size"),
    ],
)
def test_what_programs_wrote(command: str, size: int) -> None:
    assert read(program(command, DATA), size if size > 1 else 7) == (DATA, "")


@pytest.mark.tools("gzip", "zstd", "lz4")
@pytest.mark.parametrize("compression", FORMATS)
def test_programs_read_what_is_written(compression: str) -> None:
    for parts in ((), (b"",), (DATA,), (DATA[:10], DATA[10:300_000], b"", DATA[300_000:])):
        assert program(f"{compression} -dc", encoded(compression, *parts)[0]) == b"".join(parts)


@pytest.mark.tools("gzip", "zstd", "lz4")
@pytest.mark.parametrize("compression", FORMATS)
def test_programs_find_a_checksum(compression: str) -> None:
    data = bytearray(encoded(compression, b"captured")[0])
    data[-6 if compression == "gzip" else -1] ^= 1  # gzip has a length behind it
    run = subprocess.run([compression, "-dc"], input=data, capture_output=True, check=False)
    assert run.returncode != 0
    assert b"check" in (words := run.stderr.lower()) or b"crc" in words


# --- members, frames, and what else there is


def skippable(number: int, content: bytes) -> bytes:
    return (0x184D2A50 + number).to_bytes(4, "little") + len(content).to_bytes(4, "little") + content


@pytest.mark.parametrize("compression", FORMATS)
def test_concatenated(compression: str) -> None:
    one, two, none = (encoded(compression, part)[0] for part in (b"one", b"two" * 100_000, b""))
    for size in (1, 4, 1 << 20):
        assert read(none + one + none + two + one, size) == (b"one" + b"two" * 100_000 + b"one", "")


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_skippable_frames(compression: str) -> None:
    frame = encoded(compression, b"data")[0]
    skipped = skippable(0, b"") + skippable(15, b"x" * 300_000)
    assert read(skipped + frame + skipped + frame + skipped) == (b"datadata", "")
    assert "ends early" in read(skipped[:-1])[1]


def test_zeros_behind_gzip() -> None:
    member = encoded("gzip", b"data")[0]
    assert read(member + bytes(300_000)) == (b"data", "")
    assert read(member + bytes(3) + member + bytes(2)) == (b"datadata", "")
    for compression in ("zstd", "lz4"):
        frame = encoded(compression, b"data")[0]
        assert read(frame + bytes(8))[1].endswith(f"damaged at byte {len(frame)}: neither gzip nor zstd nor lz4 data")


@pytest.mark.parametrize("compression", FORMATS)
@pytest.mark.parametrize("garbage", [b"x", b"garbage", b"\x1f", b"\x28\xb5"])
def test_garbage(compression: str, garbage: bytes) -> None:
    member = encoded(compression, b"data")[0]
    words = f"the buffer: the {compression} data is damaged at byte {len(member)}: neither gzip nor zstd nor lz4 data"
    assert read(member + garbage) == (b"data", words)


@pytest.mark.tools("lz4")
def test_legacy_lz4() -> None:
    with pytest.raises(CaptureError, match="the buffer: lz4 data in the legacy format cannot be read; decompress it with lz4 -d"):
        open_stream(program("lz4 -l -c", b"captured"))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", None),
        (b"\x1f", None),
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x50\x2a\x4d\x18", "zstd"),
        (b"\x5f\x2a\x4d\x18", "zstd"),
        (b"\x60\x2a\x4d\x18", None),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"\x02\x21\x4c\x18", "legacy lz4"),
        (b"\xd4\xc3\xb2\xa1", None),
        (b"\x0a\x0d\x0d\x0a", None),
    ],
)
def test_format_of(head: bytes, expected: str | None) -> None:
    assert format_of(head) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.pcap.gz", ("a.pcap", "gzip")),
        ("a/b.pcapng.ZST", ("a/b.pcapng", "zstd")),
        ("a.lz4", ("a", "lz4")),
        ("a.pcap", ("a.pcap", None)),
        ("a.gz/b", ("a.gz/b", None)),
        (".gz", (".gz", None)),
        ("-", ("-", None)),
    ],
)
def test_compression_of(path: str, expected: tuple[str, str | None]) -> None:
    assert compression_of(path) == expected


# --- damage

#: Parts that are whole in the file from their flush on.
PARTS = (b"one, " * 30, bytes(range(64)), b"three" * 100)
WHOLE = b"".join(PARTS)


def least(ends: list[int], position: int) -> int:
    """The bytes that can be had from what stands before `position`."""
    return sum(len(part) for part, end in zip(PARTS, ends, strict=True) if end <= position)


@pytest.mark.parametrize("compression", FORMATS)
def test_every_truncation(compression: str) -> None:
    data, ends = encoded(compression, *PARTS)
    assert read(data) == (WHOLE, "")
    for length in range(4, len(data)):
        output, words = read(data[:length])
        assert words == f"the buffer: the {compression} data ends early, after {length} bytes"
        assert WHOLE.startswith(output)
        assert len(output) >= least(ends, length)
        # The second member likewise.
        if length > 8:
            assert read(data + data[:length]) == (WHOLE + output, words.replace(f"after {length}", f"after {len(data) + length}"))


@pytest.mark.parametrize("compression", FORMATS)
def test_every_bit(compression: str) -> None:
    """Whatever bit is wrong: the data is right, or there is an error after all that stands before the damage."""
    data, ends = encoded(compression, *PARTS)
    found = 0
    for bit in range(8 * len(data)):
        bent = bytearray(data)
        bent[bit // 8] ^= 1 << bit % 8
        if format_of(bent) is None:
            assert bit < 32
            continue
        output, words = read(bytes(bent))
        if words:
            found += 1
            right = least(ends, bit // 8)
            assert output[:right] == WHOLE[:right]
            assert len(output) >= right
        else:
            assert output == WHOLE
    assert found > 8 * len(data) * 0.8


@pytest.mark.parametrize(
    ("compression", "at"),
    # What has the checksum: 8 bytes before the end of gzip, 4 before the others'.
    [("gzip", -8), ("zstd", -4), ("lz4", -4)],
)
def test_checksum(compression: str, at: int) -> None:
    """All is given before a checksum that is wrong, and the message says where that stands."""
    data = bytearray(encoded(compression, DATA)[0])
    data[at] ^= 1
    output, words = read(bytes(data), 1 << 22)
    assert output == DATA
    position = int(words.removeprefix(f"the buffer: the {compression} data is damaged at byte ").partition(":")[0])
    assert len(data) + at <= position < len(data) + at + 4
    assert "check" in words.rpartition(":")[2].lower()


# --- memory


def gzip_bomb(size: int) -> bytes:
    encode = encoder("gzip")
    return b"".join(encode.encode(bytes(1 << 20)) for _ in range(size >> 20)) + encode.finish()


def program_bomb(command: str) -> Callable[[int], bytes]:
    return lambda size: program(command, bytes(size))


@pytest.mark.tools("zstd", "lz4")
@pytest.mark.parametrize(
    ("bomb", "factor"),
    [(gzip_bomb, 900), (program_bomb("zstd -c"), 10_000), (program_bomb("lz4 -c"), 200)],
    ids=FORMATS,
)
def test_bombs(bomb: Callable[[int], bytes], factor: int) -> None:
    """However much there comes out, no more is held than is asked for."""
    size = 1 << 26
    data = bomb(size)
    assert len(data) * factor < size
    view, total = memoryview(bytearray(1 << 18)), 0
    with open_stream(data) as stream:
        tracemalloc.start()
        try:
            while count := stream.readinto(view):
                total += count
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert total == size
    assert peak < 1 << 21
