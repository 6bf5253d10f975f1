"""The bytes of captures, from wherever they come: files, standard input, pipes, buffers; compressed or not.

In:  a path, "-" for standard input, or a buffer that holds a whole capture file.
Out: a `Stream`: the bytes one after the other, decompressed.

Compression is told by the first bytes, never by the name. Whatever is wrong with a file is a `CaptureError` that names it; the
bytes before a fault have been given by then.
"""

from __future__ import annotations

import os
import select
import stat
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from pcapext.compression import LEGACY_LZ4, MAGIC_SIZE, DamagedError, Decoder, decoder, format_of
from pcapext.errors import CaptureError, naming, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Buffer

#: Bytes of a compressed file that are read at once, and the least that are decompressed at once.
_CHUNK = 1 << 17
#: Seconds between two looks at a file that may grow.
_POLL = 0.1


class Stream(AbstractContextManager["Stream"]):
    """Bytes to be read once, from the first to the last. Made by `open_stream`; not for several threads at a time.

    `name` is what messages call it. `descriptor` is that of a regular file that is not compressed, None otherwise: `os.pread`
    reads any part of it, whatever `readinto` does. `size` is that of the file in bytes (compressed, if it is) when it was opened,
    None where nobody can know. `compression` is "gzip", "zstd", "lz4" or None. `stat` tells which file it is, if it is one.
    """

    def __init__(self, source: _Source, head: bytes) -> None:
        self._source = source
        self._head = head  # read already
        self.name = source.name
        self.descriptor = source.descriptor
        self.size = source.size
        self.compression: str | None = None
        self.stat = source.stat
        #: Bytes of the file that are done with (compressed ones, if it is).
        self.position = 0

    def readinto(self, view: memoryview) -> int:
        """Read into `view`, which is of bytes and not empty. At least 1 byte as soon as there are some; 0 at the end only.

        When `stop` of `open_stream` is readable, the end is where there would be a wait for more.
        """
        count = self._read(view)
        self.position += count
        return count

    def _read(self, view: memoryview) -> int:
        if not self._head:
            return self._source.read(view)
        count = min(len(self._head), len(view))
        view[:count], self._head = self._head[:count], self._head[count:]
        return count

    def close(self) -> None:
        """Close the file. Closing twice is fine; reading on is an error."""
        self._head = b""
        self.descriptor = None
        self._source.close()

    def __exit__(self, *_: object) -> None:
        self.close()


class _CompressedStream(Stream):
    def __init__(self, source: _Source, head: bytes, compression: str) -> None:
        super().__init__(source, head)
        self.descriptor = None
        self.compression = compression
        self._chunk = memoryview(bytearray(_CHUNK))
        self._input = self._chunk[:0]  # what of the chunk is not decoded
        self._decoder: Decoder | None = None
        self._output = memoryview(b"")  # decoded and not given
        self._fault: CaptureError | None = None

    def close(self) -> None:
        super().close()
        self._decoder = None
        self._input = self._input[:0]
        self._output = memoryview(b"")

    def readinto(self, view: memoryview) -> int:
        if not self._output:
            if self._fault:
                raise self._fault
            try:
                self._output = memoryview(self._decode(max(len(view), _CHUNK)))
            except CaptureError as error:
                self._fault = error
                raise
        count = min(len(self._output), len(view))
        view[:count], self._output = self._output[:count], self._output[count:]
        return count

    def _decode(self, limit: int) -> bytes:
        """Some bytes, or none at the end."""
        try:
            while self._decoder or self._next_member():
                assert self._decoder
                output, count = self._decoder.decode(self._input, limit)
                self._skip(count)
                if self._decoder.done:
                    self._decoder = None
                if output:
                    return output
                if count == 0 and self._decoder and not self._fill(1):
                    if self._source.stopped:
                        break
                    raise CaptureError(f"{self.name}: the {self.compression} data ends early, after {self.position} bytes")
        except DamagedError as error:
            raise CaptureError(f"{self.name}: the {self.compression} data is damaged at byte {self.position}: {error}") from error
        return b""

    def _next_member(self) -> bool:
        """Begin with the next member or frame, if there is one. Zeros may follow on gzip's: a tape is full of them."""
        if self.position and self.compression == "gzip":
            while self._fill(1) and self._input[0] == 0:
                self._skip(len(self._input) - len(bytes(self._input).lstrip(b"\0")))
        if self._fill(MAGIC_SIZE) or (self._input and not self._source.stopped):
            self._decoder = decoder(bytes(self._input[:MAGIC_SIZE]))
        return self._decoder is not None

    def _skip(self, count: int) -> None:
        self._input = self._input[count:]
        self.position += count

    def _fill(self, least: int) -> bool:
        """Have some bytes at hand, if the file has as many."""
        while (have := len(self._input)) < least:
            self._chunk[:have] = bytes(self._input)
            count = self._read(self._chunk[have:])
            self._input = self._chunk[: have + count]
            if count == 0:
                return False
        return True


def open_stream(source: str | os.PathLike[str] | Buffer, *, follow: bool = False, stop: int | None = None) -> Stream:
    """Open a file ("-": standard input), or a buffer that holds the bytes of one.

    A regular file is read up to where it ends when that is reached. With `follow` it ends no more: reading waits for what is
    added. `stop` is a descriptor; as soon as it is readable, nothing waits any longer, and what was there is the end.

    The first bytes are read to see what it is, and on a pipe waited for. Raises `CaptureError` for what cannot be read.

    >>> import gzip
    >>> with open_stream(gzip.compress(b"captured")) as stream:
    ...     view = memoryview(bytearray(100))
    ...     stream.compression, bytes(view[: stream.readinto(view)])
    ('gzip', b'captured')
    """
    raw: _Source = _File(source, follow, stop) if isinstance(source, str | os.PathLike) else _Memory(source)
    try:
        head = read_first(raw.read, MAGIC_SIZE)
        compression = format_of(head)
        if compression == LEGACY_LZ4:
            raise CaptureError(f"{raw.name}: lz4 data in the legacy format cannot be read; decompress it with lz4 -d")
        return _CompressedStream(raw, head, compression) if compression else Stream(raw, head)
    except BaseException:
        raw.close()
        raise


def read_first(read: Callable[[memoryview], int], size: int) -> bytes:
    """What `read`, called as often as it takes, puts into `size` bytes of memory; less where the end comes before."""
    view, have = memoryview(bytearray(size)), 0
    while have < size and (count := read(view[have:])):
        have += count
    return bytes(view[:have])


class _Source(Protocol):
    """Where the bytes of a file come from, as they are. The attributes are those of `Stream`."""

    name: str
    descriptor: int | None
    size: int | None
    stat: os.stat_result | None
    #: Whether it was stopped, rather than at its end.
    stopped: bool

    def read(self, view: memoryview) -> int: ...

    def close(self) -> None: ...


class _Memory:
    stopped = False

    def __init__(self, source: Buffer) -> None:
        self.name = "the buffer"
        self.descriptor: int | None = None
        self.stat: os.stat_result | None = None
        view = memoryview(source)
        if view.ndim != 1 or not view.c_contiguous:
            raise CaptureError(f"{self.name}: expected bytes in one dimension, without gaps")
        self._left = view.cast("B")
        self.size: int | None = len(self._left)
        self._closed = False

    def read(self, view: memoryview) -> int:
        if self._closed:
            raise CaptureError(f"{self.name}: it is closed")
        count = min(len(view), len(self._left))
        view[:count], self._left = self._left[:count], self._left[count:]
        return count

    def close(self) -> None:
        """Let it go: the owner of a buffer cannot change its size before."""
        self._left = memoryview(b"")
        self._closed = True


class _File:
    def __init__(self, path: str | os.PathLike[str], follow: bool, stop: int | None) -> None:
        self.name = "standard input" if path == "-" else printable(os.fsdecode(path))
        self.stopped = False
        self._stop = stop
        with naming(self.name):
            # Without O_NONBLOCK the open itself would wait for whoever writes to a FIFO, and `stop` would be of no use.
            self._file = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.descriptor: int | None = None
        try:
            with naming(self.name):
                status = os.fstat(self._file)
                self._regular = stat.S_ISREG(status.st_mode)
                # Somebody else may have read the beginning of standard input: that part is not ours.
                start = os.lseek(self._file, 0, os.SEEK_CUR) if self._regular else 0
        except CaptureError:
            self.close()
            raise
        self._follow = follow and self._regular
        self.stat: os.stat_result | None = status
        self.size: int | None = max(status.st_size - start, 0) if self._regular else None
        if self._regular and start == 0:
            self.descriptor = self._file

    def read(self, view: memoryview) -> int:
        if self._file < 0:
            raise CaptureError(f"{self.name}: it is closed")
        with naming(self.name):
            if self._regular:
                return self._read_regular(view)
            while True:
                ready = self._wait()
                try:
                    if ready:
                        return os.readv(self._file, [view])
                except BlockingIOError:  # somebody else was faster
                    continue
                self.stopped = True
                return 0

    def _read_regular(self, view: memoryview) -> int:
        while not (count := os.readv(self._file, [view])) and self._follow and not self.stopped:
            if os.fstat(self._file).st_size < os.lseek(self._file, 0, os.SEEK_CUR):
                raise CaptureError(f"{self.name}: the file became shorter while it was read")
            # Once stopped, read what came before that.
            self.stopped = self._stopped_within(_POLL)
        return count

    def _wait(self) -> bool:
        """Wait for something to read, or for the end of it; False if there is nothing and it is to stop."""
        poll = select.poll()
        poll.register(self._file, select.POLLIN)
        if self._stop is not None:
            poll.register(self._stop, select.POLLIN)
        return any(descriptor == self._file for descriptor, _ in poll.poll())

    def _stopped_within(self, seconds: float) -> bool:
        poll = select.poll()
        if self._stop is not None:
            poll.register(self._stop, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def close(self) -> None:
        self.descriptor = None
        # A number that is no file's, so that nothing reads what gets the number next.
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)
