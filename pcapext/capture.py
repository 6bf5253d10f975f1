"""Captures: packets out of files, and into them.

In:  a capture: a pcap or pcapng file, compressed or not, standard input, or a buffer that holds one.
Out: `Packet`s; captures that hold packets with their times, lengths and bytes as they were.

Whatever is wrong with a file is a `CaptureError` that names it. Packets that stand before a fault have been given by then.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pcapext.bpf import MAXIMUM_SNAPLEN, U32, Program
from pcapext.engine import allocate, ffi, lib
from pcapext.errors import CaptureError
from pcapext.formats import PACKET, Interface, PcapHeader, pack_section
from pcapext.outputs import is_pcapng
from pcapext.records import Batch, Chunk, Input, Portion, open_input
from pcapext.selection import Filter, Selected, Selector
from pcapext.sinks import Sink, open_sink
from pcapext.slotted import dataclass

if TYPE_CHECKING:
    from pcapext.records import Origin

FilePath = str | os.PathLike[str]

#: struct record of engine.h: time, start, end, data, caplen, wirelen, interface.
_RECORD = struct.Struct("=Q6I")
_SECOND = 1_000_000_000
#: The last times that the formats hold, in nanoseconds: 32 bits of seconds, 64 bits of nanoseconds.
_LAST_IN_PCAP, _LAST_IN_PCAPNG = (1 << 32) * _SECOND - 1, (1 << 63) - 1
#: Bytes to gather before they are written.
_BUFFERED = 1 << 16


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet of a capture: its time in nanoseconds since 1970, its length on the wire, the bytes captured, its link type."""

    timestamp_ns: int
    wirelen: int
    data: bytes
    linktype: int


def packets_of(selected: Selected) -> Iterator[Packet]:
    """The packets among the records that were selected, which are all of packets."""
    batch, length = selected.batch, selected.length
    chunk, interfaces = batch.chunk, batch.layout.interfaces
    times = allocate("int64_t[]", length)
    lib.record_times(batch.layout.clocks, batch.records, selected.indexes, length, times)
    records = ffi.buffer(chunk.records + batch.first, batch.count * _RECORD.size)
    for index, time in zip(ffi.unpack(selected.indexes, length), ffi.unpack(times, length), strict=True):
        _, _, _, data, caplen, wirelen, interface = _RECORD.unpack_from(records, index * _RECORD.size)
        yield Packet(time, wirelen, bytes(chunk.view[data : data + caplen]), interfaces[interface].linktype)


class Capture(AbstractContextManager["Capture"]):
    """An open capture: an iterable of packets, those that its filter accepts. Made by `open_offline`.

    It is read once: iterating it again goes on where it stopped.
    """

    def __init__(self, input: Input, filter: Filter) -> None:
        self.name = input.name
        self._input = input
        self._filter = filter
        self._chunk = Chunk()
        self._waiting: list[Portion] = []
        self._packets = self._selected()
        self._is_closed = False
        if input.is_pcapng:
            # The first interface is what there is to tell; it stands before all packets.
            while not self._input.layout.interfaces and (portion := self._next()):
                self._waiting.append(portion)
                if portion.fault or portion.packets:
                    break
        else:
            filter.matcher(self.linktype, input.layout)

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """What is known of the interfaces of a pcapng file, in the section that is being read; one for a pcap file."""
        return self._input.layout.interfaces

    @property
    def linktype(self) -> int:
        """The link type, a DLT number: that of the first interface. Each packet tells its own."""
        return self._first_interface.linktype

    @property
    def snaplen(self) -> int:
        """The most bytes that were captured of a packet."""
        return self._first_interface.snaplen

    @property
    def nanoseconds(self) -> bool:
        """Whether times may be that precise, rather than in microseconds. Those of a pcapng file may."""
        header = self._input.layout.header
        return header is None or header.nanoseconds

    @property
    def header(self) -> PcapHeader:
        """The header of a pcap file for packets like these."""
        header = self._input.layout.header
        extension = header.extension if header else 0
        return PcapHeader(self.linktype, self.snaplen, self.nanoseconds, extension=extension)

    @property
    def stat(self) -> os.stat_result | None:
        """What the system says of the file, if it is one."""
        return self._input.stream.stat

    @property
    def _first_interface(self) -> Interface:
        if not self.interfaces:
            raise CaptureError(f"{self.name}: no interface is described")
        return self.interfaces[0]

    def __iter__(self) -> Iterator[Packet]:
        if self._is_closed:
            raise CaptureError(f"{self.name}: the capture is closed")
        return self._packets

    def numbered(self) -> Iterator[tuple[int, Packet]]:
        """The same packets, each with its number among all of the capture, from 1 on."""
        everything, number = Selector(Filter(None)), 0
        for batch in self._batches():
            for packet in packets_of(everything.select(batch)):
                number += 1
                if self._filter.matcher(packet.linktype, batch.layout).run(packet.data, packet.wirelen):
                    yield number, packet

    def _selected(self) -> Iterator[Packet]:
        selector = Selector(self._filter)
        for batch in self._batches():
            yield from packets_of(selector.select(batch))

    def _batches(self) -> Iterator[Batch]:
        while portion := self._waiting.pop(0) if self._waiting else self._next():
            yield from portion.batches
            if portion.fault:
                raise portion.fault
        self._filter.check()

    def _next(self) -> Portion | None:
        # What waits is in a chunk, so the next portion needs another one.
        return self._input.read(self._chunk if not self._waiting else Chunk())

    def close(self) -> None:
        """Close it. Closing twice is fine; reading on is an error."""
        self._is_closed = True
        self._input.stream.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def open_offline(origin: Origin, filter: str | Program | Filter | None = None, *, follow: bool = False, **options: Any) -> Capture:
    """Open a capture to read: a path, "-" for standard input, or a buffer that holds one.

    With a `filter` only the packets that it accepts are given: an expression, compiled for the link types of the packets with
    `options`, those of `compile`; or a program. With `follow`, a file that grows is read on.

    Raises `CaptureError` for a file that is missing or no capture, and what `compile` raises. Reading raises it where the file
    is cut off or damaged, when the packets before that have been given.

    >>> from tempfile import NamedTemporaryFile
    >>> with NamedTemporaryFile(suffix=".pcap") as file:
    ...     with create(file.name) as output:
    ...         output.write(Packet(1_700_000_000_000_000_000, 64, bytes(60), linktype=1))
    ...     with open_offline(file.name, "len < 100") as capture:
    ...         [(packet.timestamp_ns, packet.wirelen, len(packet.data)) for packet in capture]
    [(1700000000000000000, 64, 60)]
    """
    input = open_input(origin, follow=follow)
    try:
        return Capture(input, filter if isinstance(filter, Filter) else Filter(filter, **options))
    except BaseException:
        input.stream.close()
        raise


class Writer(AbstractContextManager["Writer"]):
    """A capture being written. Made by `create`.

    The file is there when it is closed; until then, and if an exception ends it, there is only OUT.part, unless it `grows`. What cannot be
    written, for example to a full disk, is a `CaptureError` at the latest when it is closed. Where the reader of a pipe has gone, the
    error's `__cause__` is a `BrokenPipeError`.
    """

    def __init__(self, sink: Sink, header: PcapHeader, as_pcapng: bool) -> None:
        self.name = sink.name
        self.linktype = header.linktype
        self.snaplen = header.snaplen
        self.nanoseconds = header.nanoseconds
        self._sink = sink
        self._unit = 1 if header.nanoseconds else 1000
        self._is_closed = False
        #: The numbers of interfaces by link type, in pcapng.
        self._interfaces: dict[int, int] | None = {} if as_pcapng else None
        self._buffer = bytearray()
        if as_pcapng:
            self._buffer += pack_section()
            self._interface(header.linktype)
        else:
            self._buffer += header.pack(self.name)

    def write(self, packet: Packet) -> None:
        """Write a packet, no longer than the snap length. In pcap it must be of the link type of the file."""
        if self._is_closed:
            raise CaptureError(f"{self.name}: the capture is closed")
        if len(packet.data) > self.snaplen:
            raise CaptureError(f"{self.name}: a packet of {len(packet.data)} bytes in a capture with snap length {self.snaplen}")
        if not 0 <= packet.wirelen <= U32:
            raise CaptureError(f"{self.name}: a capture cannot hold the length {packet.wirelen}, expected 0 to {U32}")
        last = _LAST_IN_PCAP if self._interfaces is None else _LAST_IN_PCAPNG
        if not 0 <= packet.timestamp_ns <= last:
            raise CaptureError(f"{self.name}: a capture cannot hold the time {packet.timestamp_ns} ns, expected 0 to {last}")
        self._buffer += self._pcap_record(packet) if self._interfaces is None else self._pcapng_record(packet)
        if len(self._buffer) >= _BUFFERED:
            self._write()

    def _pcap_record(self, packet: Packet) -> bytes:
        if packet.linktype != self.linktype:
            raise CaptureError(f"{self.name}: a packet of link type {packet.linktype} in a capture of link type {self.linktype}")
        seconds, nanoseconds = divmod(packet.timestamp_ns, _SECOND)
        return struct.pack("=4I", seconds, nanoseconds // self._unit, len(packet.data), packet.wirelen) + packet.data

    def _pcapng_record(self, packet: Packet) -> bytes:
        ticks, caplen = packet.timestamp_ns // self._unit, len(packet.data)
        length = 32 + caplen + -caplen % 4
        head = (PACKET, length, self._interface(packet.linktype), ticks >> 32, ticks & U32, caplen, packet.wirelen)
        return struct.pack("=7I", *head) + packet.data + bytes(-caplen % 4) + struct.pack("=I", length)

    def _interface(self, linktype: int) -> int:
        assert self._interfaces is not None
        if linktype not in self._interfaces:
            self._buffer += Interface(linktype, self.snaplen, _SECOND // self._unit).pack(self.name)
            self._interfaces[linktype] = len(self._interfaces)
        return self._interfaces[linktype]

    def flush(self) -> None:
        """Hand what was written to the system, for whoever reads at the other end."""
        self._write()
        self._sink.flush()

    def _write(self) -> None:
        buffer, self._buffer = self._buffer, bytearray()
        if buffer:
            self._sink.write(buffer)

    def close(self) -> None:
        """Complete the file. Closing twice is fine; writing on is an error."""
        self._is_closed = True
        try:
            self._write()
            self._sink.close()
        except CaptureError:
            self._sink.abandon()
            raise

    def __exit__(self, exception: type[BaseException] | None, *_: object) -> None:
        if exception is None:
            self.close()
        else:
            self._is_closed = True
            self._sink.abandon()


def create(
    path: FilePath,
    *,
    like: Capture | None = None,
    linktype: int = 1,
    snaplen: int = MAXIMUM_SNAPLEN,
    nanoseconds: bool = False,
    grows: bool = False,
) -> Writer:
    """Open a capture to write; "-" is standard output. A file that exists is replaced when all is written, or now if the new one `grows`:
    then others can read it while it is written, up to where it was flushed.

    The name says whether it is pcapng (.pcapng) or pcap, and how it is compressed (.gz, .zst, .lz4). With `like` it gets the link
    type, the snap length and the precision of that capture, and must not be the file that this reads. Otherwise `linktype` is a
    DLT number, `snaplen` in bytes, and times are in microseconds unless told.
    """
    inputs: list[os.stat_result] = []
    if like is not None:
        header = like.header
        inputs = [like.stat] if like.stat else []
    else:
        header = _header(linktype, snaplen, nanoseconds)
    sink = open_sink(path, inputs=inputs, grows=grows)
    try:
        return Writer(sink, header, is_pcapng(path))
    except BaseException:
        sink.abandon()
        raise


def _header(linktype: int, snaplen: int, nanoseconds: bool) -> PcapHeader:
    try:
        return PcapHeader(linktype, snaplen, nanoseconds)
    except ValueError as error:
        raise CaptureError(str(error)) from error
