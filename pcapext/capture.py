"""Captures: packets out of files, and into them.

In:  the path of a capture in any format that libpcap reads, or "-" for standard input.
Out: `Packet`s; pcap files that hold packets with their times, lengths and bytes as they were.

Whatever is wrong with a file is a `CaptureError` that names it. Packets that stand before a fault have been given by then.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pcapext import pcap_handles
from pcapext.bpf import MAXIMUM_SNAPLEN
from pcapext.errors import CaptureError, LibpcapError, printable
from pcapext.pcap_handles import Dumper, Handle, open_dead

if TYPE_CHECKING:
    from typing_extensions import Self

FilePath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet of a capture: its time in nanoseconds since 1970, its length on the wire, the bytes captured, its link type."""

    timestamp_ns: int
    wirelen: int
    data: bytes
    linktype: int


class Capture:
    """An open capture: an iterable of packets. Made by `open_offline`.

    `linktype` is a DLT number, `snaplen` the most bytes that were captured of a packet; `nanoseconds` tells whether the
    times of the file are that precise, rather than in microseconds. A capture is read once: iterating it again goes
    on where it stopped.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self.name = name
        self._file = os.fstat(descriptor)
        with _named(name):
            self._handle = pcap_handles.open_offline(descriptor)
        self.linktype = self._handle.linktype
        self.snaplen = self._handle.snaplen
        self.nanoseconds = self._handle.nanoseconds

    def __iter__(self) -> Iterator[Packet]:
        with _named(self.name):
            for timestamp_ns, wirelen, data in self._handle:
                yield Packet(timestamp_ns, wirelen, data, self.linktype)

    def close(self) -> None:
        """Close it. Closing twice is fine; reading on is an error."""
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Writer:
    """A pcap file being written. Made by `create`.

    What cannot be written, for example to a full disk, is a `CaptureError` at the latest when it is closed. Where the
    reader of a pipe has gone, the error's `__cause__` is a `BrokenPipeError`.
    """

    def __init__(self, handle: Handle, descriptor: int, name: str) -> None:
        self.name = name
        self.linktype = handle.linktype
        self.snaplen = handle.snaplen
        self.nanoseconds = handle.nanoseconds
        with _named(name):
            self._dumper = Dumper(handle, descriptor)

    def write(self, packet: Packet) -> None:
        """Write a packet. It must be of the link type of the file, and no longer than its snap length."""
        if packet.linktype != self.linktype:
            raise CaptureError(f"{self.name}: a packet of link type {packet.linktype} in a capture of link type {self.linktype}")
        if len(packet.data) > self.snaplen:
            raise CaptureError(f"{self.name}: a packet of {len(packet.data)} bytes in a capture with snap length {self.snaplen}")
        with _named(self.name):
            self._dumper.write(packet.timestamp_ns, packet.wirelen, packet.data)

    def flush(self) -> None:
        """Hand what was written to the system, for whoever reads at the other end."""
        with _named(self.name):
            self._dumper.flush()

    def close(self) -> None:
        """Write what is left, and close the file. Closing twice is fine; writing on is an error."""
        with _named(self.name):
            self._dumper.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except CaptureError:
            if exception is None:  # else that one, which came first, is what went wrong
                raise


def open_offline(path: FilePath) -> Capture:
    """Open a capture to read; "-" is standard input.

    Raises `CaptureError` for a file that is missing or no capture. Reading raises it where the file is cut off or damaged,
    when the packets before that have been given.

    >>> from tempfile import NamedTemporaryFile
    >>> with NamedTemporaryFile(suffix=".pcap") as file:
    ...     with create(file.name) as output:
    ...         output.write(Packet(1_700_000_000_000_000_000, 64, bytes(60), linktype=1))
    ...     with open_offline(file.name) as capture:
    ...         [(packet.timestamp_ns, packet.wirelen, len(packet.data)) for packet in capture]
    [(1700000000000000000, 64, 60)]
    """
    name = "standard input" if path == "-" else printable(os.fspath(path))
    return Capture(_open(path, name, 0, os.O_RDONLY), name)


def create(
    path: FilePath, *, like: Capture | None = None, linktype: int = 1, snaplen: int = MAXIMUM_SNAPLEN, nanoseconds: bool = False
) -> Writer:
    """Open a pcap file to write; "-" is standard output. A file that exists is replaced.

    With `like` it gets the link type, the snap length and the precision of that capture, and must not be the file that
    this reads. Otherwise `linktype` is a DLT number, `snaplen` in bytes, and times are in microseconds unless told.
    """
    name = "standard output" if path == "-" else printable(os.fspath(path))
    with _named(name):
        handle = like._handle if like is not None else open_dead(linktype, snaplen, nanoseconds)
    # Not cut to nothing yet: first all must be well, and it must not be the input.
    descriptor = _open(path, name, 1, os.O_WRONLY | os.O_CREAT)
    file = os.fstat(descriptor)
    regular = stat.S_ISREG(file.st_mode)
    if like is not None and regular and os.path.samestat(file, like._file):
        os.close(descriptor)
        raise CaptureError(f"{name}: the output is the same file as the input")
    writer = Writer(handle, descriptor, name)
    if regular and path != "-":
        with _named(name):
            os.ftruncate(descriptor, 0)
    return writer


def _open(path: FilePath, name: str, standard: int, flags: int) -> int:
    """A descriptor of our own, of a standard stream or a file."""
    with _named(name):
        try:
            return os.dup(standard) if path == "-" else os.open(path, flags, 0o666)
        except ValueError as error:  # a NUL character in a path
            raise CaptureError(f"{name}: {error}") from error


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Make errors of libpcap and of the system ones that name the file."""
    try:
        yield
    except LibpcapError as error:
        raise CaptureError(f"{name}: {error}") from error
    except OSError as error:
        raise CaptureError(f"{name}: {error.strerror}") from error
