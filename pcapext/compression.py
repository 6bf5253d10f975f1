"""Compressed data, piece by piece: gzip, zstd and lz4.

In:  the first bytes of a file, or the path of one to be; then its bytes, in pieces of any size.
Out: the format; decoders and encoders of it.

A decoder hands out no more than it is asked for at a time, so that no data, however well it is packed, needs much memory. What
it has not given when it meets a fault is no more than the piece of the format that has the fault: the block of zstd or lz4, the
bytes of gzip from the one that cannot be. The work itself is that of the libraries, which let other threads run meanwhile.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: What a format's first bytes are (RFC 1952 2.3.1, RFC 8878 3.1.1, the LZ4 frame format).
_GZIP, _ZSTD, _LZ4, _LEGACY_LZ4 = (bytes.fromhex(magic) for magic in ("1f8b", "28b52ffd", "04224d18", "02214c18"))
#: As many of them tell every format.
MAGIC_SIZE = 4

#: A format without checksums from before 2013, which only the program lz4 reads.
LEGACY_LZ4 = "legacy lz4"

_SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".lz4": "lz4"}

#: Bytes of a header that a generator of pieces may ask for at once.
_LONGEST_HEADER = 16


class DamagedError(Exception):
    """Compressed data that cannot be: the words of the library. What was decoded before has been given."""


class Decoder(Protocol):
    """Decodes one member (gzip) or frame (zstd, lz4)."""

    @property
    def done(self) -> bool:
        """Whether that was all of it. What follows is not its own."""

    def decode(self, data: memoryview, limit: int) -> tuple[bytes, int]:
        """What is decoded of `data`, `limit` bytes at the most, and how many bytes of `data` are done with.

        Without `data` it is what was held back for the limit; nothing, if nothing was. Raises `DamagedError` at the byte where
        the data cannot go on.
        """


class Encoder(Protocol):
    """Makes one member or frame. Each call returns bytes to be written."""

    def encode(self, data: Buffer) -> bytes: ...

    def flush(self) -> bytes:
        """All that whoever decodes it needs to have everything that was encoded until here."""

    def finish(self) -> bytes: ...


def format_of(head: bytes) -> str | None:
    """The format of what starts with these bytes, or None where it is none of ours. zstd and lz4 share the frames to be skipped.

    >>> format_of(b"\\x1f\\x8b\\x08\\0"), format_of(b"\\xa1\\xb2\\xc3\\xd4")
    ('gzip', None)
    """
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_ZSTD) or _is_skippable(head):
        return "zstd"
    if head.startswith(_LZ4):
        return "lz4"
    return LEGACY_LZ4 if head.startswith(_LEGACY_LZ4) else None


def compression_of(path: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The path without the suffix of a compression, and that compression.

    >>> compression_of("all.pcapng.zst"), compression_of("all.pcap")
    (('all.pcapng', 'zstd'), ('all.pcap', None))
    """
    stem, suffix = os.path.splitext(os.fspath(path))
    compression = _SUFFIXES.get(suffix.lower())
    return (stem if compression else os.fspath(path)), compression


def decoder(head: bytes) -> Decoder:
    """A decoder for the member or frame that starts with these bytes, which are of one of the formats."""
    if head.startswith(_GZIP):
        return _Gzip()
    if head.startswith(_ZSTD):
        return _Frame(_zstd().ZstdDecompressor(), _zstd_pieces(), _zstd().ZstdError)
    if head.startswith(_LZ4):
        import lz4.frame

        return _Frame(lz4.frame.LZ4FrameDecompressor(), _lz4_pieces(), RuntimeError)
    if _is_skippable(head):
        return _Frame(_zstd().ZstdDecompressor(), _skippable_pieces(), _zstd().ZstdError)
    raise DamagedError("neither gzip nor zstd nor lz4 data")


def encoder(compression: str) -> Encoder:
    """An encoder with the usual level of the format, and checksums."""
    encoders: dict[str, Callable[[], Encoder]] = {"gzip": _GzipEncoder, "zstd": _ZstdEncoder, "lz4": _Lz4Encoder}
    return encoders[compression]()


def _is_skippable(head: bytes) -> bool:
    """Whether it is a frame that holds no data (RFC 8878 3.1.2)."""
    return len(head) >= 4 and head[0] & 0xF0 == 0x50 and head[1:4] == b"\x2a\x4d\x18"


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def _words(error: Exception) -> str:
    """What a library says, without what it says each time."""
    return str(error).rpartition(": ")[2]


class _Gzip:
    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=31)

    @property
    def done(self) -> bool:
        return self._inflate.eof

    def decode(self, data: memoryview, limit: int) -> tuple[bytes, int]:
        before = self._inflate.copy()
        try:
            return self._decode(data, limit)
        except zlib.error as error:
            # zlib keeps what it had when it met the fault. So look for as much input as goes well.
            good, bad = 0, len(data)
            while bad - good > 1:
                middle = (good + bad) // 2
                try:
                    before.copy().decompress(data[:middle], limit)
                    good = middle
                except zlib.error:
                    bad = middle
            if good == 0:
                raise DamagedError(_words(error)) from error
            self._inflate = before
            return self._decode(data[:good], limit)

    def _decode(self, data: memoryview, limit: int) -> tuple[bytes, int]:
        output = self._inflate.decompress(data, limit)
        # At the end unconsumed_tail is what it was before.
        left = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        return output, len(data) - len(left)


class _Frame:
    """A frame of zstd or lz4. Its library is given one piece at a time, so that it has no more than that to lose in a fault."""

    def __init__(self, decompressor: Any, pieces: Generator[int, bytes, None], error: type[Exception]) -> None:
        self._decompressor = decompressor
        self._pieces = pieces
        self._error = error
        self._left = next(pieces)  # of the piece
        self._head = b""  # of the piece
        self._full = False
        self.done = False

    def decode(self, data: memoryview, limit: int) -> tuple[bytes, int]:
        piece = data[:0] if self._full else data[: self._left]
        try:
            output: bytes = self._decompressor.decompress(piece, limit)
        except (self._error, EOFError) as error:  # EOFError: the frame has ended before
            raise DamagedError(_words(error)) from error
        self._full = not self._decompressor.eof and (len(output) == limit or not self._decompressor.needs_input)
        self._head += piece[: _LONGEST_HEADER - len(self._head)]
        self._left -= len(piece)
        try:
            while self._left == 0:
                self._left, self._head = self._pieces.send(self._head), b""
        except StopIteration:
            if not self._full and not self._decompressor.eof:
                raise DamagedError("the end of the frame is not where it should be") from None
            self.done = not self._full
        return output, len(piece)


# The sizes of the pieces of a frame. What is sent is the piece, if it is short. What is wrong with it the library will say.


def _zstd_pieces() -> Generator[int, bytes, None]:
    """RFC 8878 3.1.1: a header; blocks of 3 bytes and their content; a checksum."""
    yield 4
    descriptor = (yield 1)[0]
    single_segment, has_checksum = bool(descriptor & 0x20), bool(descriptor & 0x04)
    content_size = (1 if single_segment else 0, 2, 4, 8)[descriptor >> 6]
    yield (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3] + content_size
    last = 0
    while not last:
        block = int.from_bytes((yield 3), "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        yield 1 if kind == 1 else size  # kind 1 is one byte, repeated
    yield 4 if has_checksum else 0


def _lz4_pieces() -> Generator[int, bytes, None]:
    """A header; blocks of 4 bytes, their content and a checksum; 4 bytes of 0; a checksum."""
    yield 4
    flags = (yield 2)[0]
    yield (8 if flags & 0x08 else 0) + (4 if flags & 0x01 else 0) + 1
    while block := int.from_bytes((yield 4), "little"):
        yield (block & 0x7FFF_FFFF) + (4 if flags & 0x10 else 0)
    yield 4 if flags & 0x04 else 0


def _skippable_pieces() -> Generator[int, bytes, None]:
    yield 4
    yield int.from_bytes((yield 4), "little")


class _GzipEncoder:
    def __init__(self) -> None:
        self._deflate = zlib.compressobj(wbits=31)

    def encode(self, data: Buffer) -> bytes:
        return self._deflate.compress(data)

    def flush(self) -> bytes:
        return self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._deflate.flush()


class _ZstdEncoder:
    def __init__(self) -> None:
        zstd = _zstd()
        self._compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.checksum_flag: 1})

    def encode(self, data: Buffer) -> bytes:
        return bytes(self._compressor.compress(data))

    def flush(self) -> bytes:
        return bytes(self._compressor.flush(self._compressor.FLUSH_BLOCK))

    def finish(self) -> bytes:
        return bytes(self._compressor.flush())


class _Lz4Encoder:
    def __init__(self) -> None:
        import lz4.frame

        self._frame = lz4.frame
        self._context = lz4.frame.create_compression_context()
        self._begin: bytes = lz4.frame.compress_begin(self._context, content_checksum=True)

    def encode(self, data: Buffer) -> bytes:
        return self._begun(self._frame.compress_chunk(self._context, data))

    def flush(self) -> bytes:
        return self._begun(self._frame.compress_flush(self._context, end_frame=False))

    def finish(self) -> bytes:
        return self._begun(self._frame.compress_flush(self._context))

    def _begun(self, data: bytes) -> bytes:
        begin, self._begin = self._begin, b""
        return begin + data
