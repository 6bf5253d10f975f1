"""Captures, read in chunks of about two megabytes: the records in a chunk are found and described in C.

In:  a `Stream`.
Out: `Portion`s: records one after the other, each in the memory of a `Chunk`.

A capture is an `Input`. Its records are read in two ways: from the first to the last (`read`), whatever the stream is; or, in a
regular file, from any place on (`read_region`), so that several threads can read one file. Where nobody knows yet
that a record begins, its begin is guessed, and the caller sees to it that the record before ends there.

What was found before a fault is always given first; then the `fault` of the portion is what to raise.
"""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from pcapext.engine import Matcher, allocate, ffi, lib
from pcapext.errors import CaptureError, CutShortError
from pcapext.formats import (
    NATIVE,
    PCAP_HEADER,
    PCAPNG_MAGIC,
    Interface,
    PcapHeader,
    check_section,
    damage,
    longest_packet,
)
from pcapext.slotted import dataclass, replace
from pcapext.streams import Stream, open_stream, read_first

if TYPE_CHECKING:
    from typing_extensions import Buffer

    #: Where a capture is: a path, "-" for standard input, or a buffer with the bytes of a file.
    Origin = str | os.PathLike[str] | Buffer

#: Bytes to read beyond a region, for its last record.
_MARGIN = 1 << 12
#: Bytes of a capture that are worked on at once: few enough for a cache, so many that Python's part in it is small. With the margin
#: they are a large page of memory.
CHUNK = (2 << 20) - _MARGIN
#: Blocks are no longer than this, but those of packets of the largest link types (libpcap sf-pcapng.c, INITIAL_MAX_BLOCKSIZE).
_LARGEST_BLOCK = 16 << 20
_SMALLEST_RECORD = 12
#: -1 in 64 bits, in both byte orders.
_UNKNOWN_LENGTH = b"\xff" * 8


class Chunk:
    """Memory for a piece of a capture and for the descriptions of its records. Used again and again, by one thread.

    `base` is the place in the capture of the first byte, `filled` how many there are. Packets in `buffer` are as filters and readers
    are to see them; `as_read` is the same memory, or, where that makes a difference, other memory that has the bytes of the capture.
    """

    def __init__(self, size: int = CHUNK + _MARGIN) -> None:
        self.capacity = size // _SMALLEST_RECORD + 1
        self.records = allocate("struct record[]", self.capacity)
        #: What to ask packets while they are found.
        self.early: Early | None = None
        self.base = self.filled = 0
        self._set_size(size)

    def _set_size(self, size: int) -> None:
        self.size = size
        memory = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # The system copies a file into a large page half as fast again as into small ones.
            with suppress(OSError):  # where the system has none
                memory.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(memory)
        self.buffer = ffi.from_buffer("uint8_t[]", memory)
        self.as_read = self.buffer

    def begin(self, base: int, octets: bytes = b"") -> None:
        """Start anew, at the place `base` of the capture, with some bytes of it."""
        self.base, self.filled, self.as_read = base, 0, self.buffer
        self.reserve(len(octets))
        self.view[: len(octets)] = octets
        self.filled = len(octets)

    def reserve(self, size: int) -> None:
        """Have room for so many bytes; what is there stays."""
        if size > self.size:
            old, filled = self.view, self.filled
            self._set_size(size)
            self.view[:filled] = old[:filled]

    def keep(self) -> None:
        """Keep the bytes as they were read: those in `buffer` are about to change."""
        if self.as_read == self.buffer:
            self.as_read = allocate("uint8_t[]", self.filled)
            ffi.memmove(self.as_read, self.buffer, self.filled)

    def place(self, index: int) -> int:
        """Where in the capture a record begins."""
        start: int = self.records[index].start
        return self.base + start

    def room(self) -> memoryview:
        """The memory that is not filled. There always is some."""
        if self.filled == self.size:
            self.reserve(2 * self.size)
        return self.view[self.filled :]


class Kept:
    """Some records of a chunk, `length` of `indexes` from its record `first` on, copied to memory of their own: a small chunk.

    `size` is how many bytes it takes.
    """

    def __init__(self, chunk: Chunk | Kept, first: int, indexes: Any, length: int) -> None:
        self.base: int = chunk.base
        self.capacity = length
        described = chunk.records + first
        filled = lib.keep_records(chunk.buffer, described, indexes, length, ffi.NULL, ffi.NULL, ffi.NULL)
        self.records: Any = allocate("struct record[]", length)
        self.buffer: Any = allocate("uint8_t[]", filled)
        self.as_read: Any = self.buffer
        self.view = memoryview(ffi.buffer(self.buffer))
        self.size = filled + length * ffi.sizeof("struct record")
        self._starts = allocate("uint32_t[]", length)
        lib.keep_records(chunk.buffer, described, indexes, length, self.records, self._starts, self.buffer)
        if chunk.as_read != chunk.buffer:
            self.as_read = allocate("uint8_t[]", filled)
            lib.copy_records(chunk.as_read, described, indexes, length, self.as_read, filled)
            self.size += filled

    def place(self, index: int) -> int:
        """Where in the capture a record began."""
        start: int = self._starts[index]
        return self.base + start


@dataclass(frozen=True, slots=True, eq=False)
class Early:
    """A program that packets of a pcap file of this layout are asked as soon as they are found, when they have just come into the nearest
    cache: to find them first and to ask them then takes half as long again. `indexes`, a `uint32_t[]`, is for the records that it accepts.
    """

    layout: Layout
    matcher: Matcher
    indexes: Any


class Layout(Protocol):
    """What must be known to find records: the header of a pcap file, or sections and interfaces so far of a pcapng file.

    It never changes; behind a section or an interface there is another one.
    """

    interfaces: tuple[Interface, ...]
    #: "<" or ">", that of the file or the section.
    byteorder: str
    #: `uint32_t[]`, the link type of each interface, if packets of one are to be corrected; else None.
    corrected: Any
    #: `struct clock[]`, one for each interface.
    clocks: Any
    #: The header of the pcap file; None in a pcapng file.
    header: PcapHeader | None
    #: Bytes of a block at most.
    largest: int

    def scan(self, chunk: Chunk, start: int, before: int, first: int) -> Any:
        """Describe the records that begin in [start, before), from `chunk.records[first]` on: a `struct scanned`."""

    def guess(self, chunk: Chunk, before: int) -> int | None:
        """The first place before `before` where a record seems to begin."""


class PcapLayout:
    def __init__(self, header: PcapHeader) -> None:
        self.header: PcapHeader | None = header
        self.byteorder = header.byteorder
        self.interfaces: tuple[Interface, ...] = (Interface(header.linktype, header.snaplen),)
        self.corrected = _corrected(self.interfaces, header.byteorder)
        self.clocks = ffi.new("struct clock[]", [(0, 1 if header.nanoseconds else 1000, 0)])
        longest = self.largest = min(header.snaplen, longest_packet(header.linktype))
        self._layout = ffi.new("struct pcap_layout *", (header.byteorder != NATIVE, header.lengths, header.record_header, longest))

    def scan(self, chunk: Chunk, start: int, before: int, first: int) -> Any:
        early = chunk.early
        program, selected = (early.matcher.pointer, early.indexes + first) if early and early.layout is self else (ffi.NULL, ffi.NULL)
        records, room = chunk.records + first, chunk.capacity - first
        return lib.scan_pcap(self._layout, chunk.buffer, start, before, chunk.filled, records, room, program, selected)

    def guess(self, chunk: Chunk, before: int) -> int | None:
        place: int = lib.guess_pcap(self._layout, chunk.buffer, 0, before, chunk.filled)
        return place if place != lib.NOWHERE else None


class PcapngLayout:
    header: PcapHeader | None = None

    def __init__(self, byteorder: str = NATIVE, interfaces: tuple[Interface, ...] = ()) -> None:
        self.byteorder = byteorder
        self.interfaces: tuple[Interface, ...] = interfaces
        self.corrected = _corrected(interfaces, byteorder)
        self.clocks = ffi.new("struct clock[]", [(each.resolution, 0, each.offset) for each in interfaces] or 1)
        longest = [min(each.snaplen, longest_packet(each.linktype)) for each in interfaces]
        self._longest = ffi.new("uint32_t[]", longest or 1)
        self.largest = max([_LARGEST_BLOCK, *(2 * each for each in longest)])
        self._layout = ffi.new("struct pcapng_layout *", (byteorder != NATIVE, len(interfaces), self._longest, self.largest))

    def scan(self, chunk: Chunk, start: int, before: int, first: int) -> Any:
        return lib.scan_pcapng(self._layout, chunk.buffer, start, before, chunk.filled, chunk.records + first, chunk.capacity - first)

    def guess(self, chunk: Chunk, before: int) -> int | None:
        place: int = lib.guess_pcapng(self._layout, chunk.buffer, 0, before, chunk.filled)
        return place if place != lib.NOWHERE else None

    def after(self, block: bytes, name: str, offset: int) -> PcapngLayout:
        """The layout behind a section header or an interface description."""
        if block.startswith(PCAPNG_MAGIC):
            return PcapngLayout(check_section(block, name, offset))
        return PcapngLayout(self.byteorder, (*self.interfaces, Interface.read(block, self.byteorder, name, offset)))


def _corrected(interfaces: tuple[Interface, ...], byteorder: str) -> Any:
    linktypes = [interface.linktype for interface in interfaces]
    if any(lib.is_corrected(linktype, byteorder != NATIVE) for linktype in linktypes):
        return ffi.new("uint32_t[]", linktypes)
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Records in a row that one layout describes: `count` of `chunk.records` from `first` on.

    `early`: what was asked when they were found, and it accepts `accepted` of them.
    """

    chunk: Chunk | Kept
    layout: Layout
    first: int
    count: int
    early: Early | None = None
    accepted: int = 0

    @property
    def records(self) -> Any:
        """The first of them, a `struct record *`."""
        return self.chunk.records + self.first


@dataclass(frozen=True, slots=True, eq=False)
class Portion:
    """Records of a capture, from the place `start` up to `end`.

    `before` and `after` are the layouts there. `fault` is what keeps the next record from being read, if it is not merely not all
    there: then `needed` bytes of it would be. `packets` are how many of the records are packets.
    """

    batches: tuple[Batch, ...]
    start: int
    end: int
    before: Layout
    after: Layout
    fault: CaptureError | None = None
    needed: int = 0
    packets: int = 0


class Input:
    """A capture being read. `offset` is the place of the next record, `layout` what was learned before it; both are the caller's
    to set who reads regions."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.name = stream.name
        head = read_head(stream)
        self.layout: Layout
        if head.startswith(PCAPNG_MAGIC):
            self.layout, self.offset, self._carry = PcapngLayout(), 0, head
        else:
            if not head:
                raise damage(self.name, 0, "the file is empty")
            self.layout, self.offset, self._carry = PcapLayout(PcapHeader.read(head, self.name)), PCAP_HEADER, b""

    @property
    def is_pcapng(self) -> bool:
        return self.layout.header is None

    def read(self, chunk: Chunk) -> Portion | None:
        """The next records; None at the end. A last record that is cut short is a fault."""
        chunk.begin(self.offset, self._carry)
        while True:
            portion = self._scan(chunk, 0, chunk.filled, self.layout)
            if portion.batches or portion.fault:
                break
            count = self.stream.readinto(chunk.room())
            if count == 0:
                if chunk.filled == 0:
                    return None
                portion = replace(portion, fault=self.cut_short(portion), needed=0)
                break
            chunk.filled += count
        self._carry = bytes(chunk.view[portion.end - chunk.base : chunk.filled])
        self.offset, self.layout = portion.end, portion.after
        _correct(portion)
        return portion

    def cut_short(self, portion: Portion) -> CutShortError:
        """The fault that the file ends within the record behind a portion."""
        return CutShortError(f"{self.name}: byte {portion.end}: the file ends within a record of {portion.needed} bytes or more")

    def read_region(self, chunk: Chunk, start: int, end: int, layout: Layout | None = None) -> Portion | None:
        """The records that begin in [start, end) of a regular file. Without a `layout`, the one of the input holds, and
        whether a record begins at `start` is not known: None if no begin of one can be guessed."""
        chunk.begin(start)
        at_end = not self._fill(chunk, end - start + _MARGIN)
        at = 0
        if layout is None:
            layout = self.layout
            guess = layout.guess(chunk, min(end - start, chunk.filled))
            if guess is None:
                return None
            at = guess
        while True:
            portion = self._scan(chunk, at, min(end - start, chunk.filled) if at_end else end - start, layout)
            if not portion.needed or at_end:
                _correct(portion)
                return portion
            # Once more, with all of the last record.
            at_end = not self._fill(chunk, portion.end - start + portion.needed)

    def _fill(self, chunk: Chunk, size: int) -> bool:
        """Have so many bytes of a regular file in the chunk; whether there are as many."""
        assert self.stream.descriptor is not None
        wanted = size
        if size > chunk.size:  # what a damaged file says may be more than it has
            size = min(size, max(chunk.size, os.fstat(self.stream.descriptor).st_size - chunk.base))
        chunk.reserve(size)
        try:
            while chunk.filled < size:
                view = chunk.view[chunk.filled : size]
                count = os.preadv(self.stream.descriptor, [view], chunk.base + chunk.filled)
                if count == 0:
                    return False
                chunk.filled += count
        except OSError as error:
            raise CaptureError(f"{self.name}: {error.strerror}") from error
        return size == wanted

    def _scan(self, chunk: Chunk, at: int, before: int, layout: Layout) -> Portion:
        """What the chunk holds from `at` to `before`, places in it."""
        start, begin, first, packets = chunk.base + at, layout, 0, 0
        batches: list[Batch] = []
        fault: CaptureError | None = None
        while True:
            scanned = layout.scan(chunk, at, before, first)
            at, count = scanned.end, scanned.count
            if scanned.stop == lib.STOP_SECTION:
                place = chunk.records[first + count - 1].start
                assert isinstance(layout, PcapngLayout)
                try:
                    following = layout.after(bytes(chunk.view[place:at]), self.name, chunk.base + place)
                except CaptureError as error:
                    following, at, count, fault = layout, place, count - 1, error
                else:
                    if not following.interfaces:
                        # The length of a section, which would be wrong when packets are left out: it is not known.
                        chunk.view[place + 16 : place + 24] = _UNKNOWN_LENGTH
            elif scanned.stop not in _NO_FAULTS:
                fault = damage(self.name, chunk.base + at, _words(scanned, layout))
            if count:
                early = chunk.early if chunk.early and chunk.early.layout is layout else None
                batches.append(Batch(chunk, layout, first, count, early, scanned.accepted))
                first += count
                packets += scanned.packets
            if scanned.stop != lib.STOP_SECTION or fault:
                needed = scanned.needed if scanned.stop == lib.STOP_PARTIAL else 0
                return Portion(tuple(batches), start, chunk.base + at, begin, layout, fault, needed, packets)
            layout = following


def _correct(portion: Portion) -> None:
    """Make the packets what libpcap makes of them. It must not happen twice, nor before it is clear that they are not scanned again."""
    for batch in portion.batches:
        layout, chunk = batch.layout, batch.chunk
        if layout.corrected is not None:
            is_swapped = layout.byteorder != NATIVE
            # Pcapng is written in the byte order of its sections, and pcap in that of this machine.
            if is_swapped and layout.header is None:
                assert isinstance(chunk, Chunk)
                chunk.keep()
            lib.correct_packets(layout.corrected, is_swapped, chunk.buffer, batch.records, batch.count)


def open_input(origin: Origin, *, follow: bool = False, stop: int | None = None) -> Input:
    """Open a capture: a path, "-" for standard input, or a buffer that holds one. `follow` and `stop` are those of `open_stream`."""
    stream = open_stream(origin, follow=follow, stop=stop)
    try:
        return Input(stream)
    except BaseException:
        stream.close()
        raise


_NO_FAULTS = (lib.STOP_END, lib.STOP_FULL, lib.STOP_PARTIAL)


def _words(scanned: Any, layout: Layout) -> str:
    """What is wrong with the record that a scan stopped at."""
    number = scanned.needed
    match scanned.stop:
        case lib.STOP_TOO_LONG:
            return f"a record of a packet with {number} bytes, more than the snap length allows"
        case lib.STOP_BLOCK:
            return f"a block of {number} bytes, expected a multiple of 4 from {_SMALLEST_RECORD} to {layout.largest}"
        case lib.STOP_TRAILER:
            return f"a block that gives its length as {number} at its end, and as another at its begin"
        case lib.STOP_MAGIC:
            return f"a section whose byte order cannot be told: {number:#010x}"
        case lib.STOP_OVERRUN:
            return f"a packet of {number} bytes in a block that is shorter"
    return f"a packet of interface {number}, of which the section has not told"


def read_head(stream: Stream) -> bytes:
    """The first 24 bytes, or all there are."""
    return read_first(stream.readinto, PCAP_HEADER)
