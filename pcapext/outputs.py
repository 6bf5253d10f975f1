"""Outputs: what becomes of the packets that a filter accepts.

In:  selected records of one input after the other, in order.
Out: captures, or calls with the packets.

A capture is written in pcap, or in pcapng where its name says so. Records that are in this form already are written as they
stand; the others are converted, in C. Pcapng keeps everything: sections, interfaces, blocks that nobody knows. Pcap has one link
type, one snap length and one unit of time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from pcapext import pcap_bridge
from pcapext.compression import compression_of
from pcapext.engine import allocate, ffi, lib
from pcapext.errors import CaptureError
from pcapext.formats import NATIVE, Interface, Lengths, PcapHeader, longest_packet, pack_section
from pcapext.records import CHUNK, Input, Layout, PcapLayout
from pcapext.selection import Selected
from pcapext.sinks import Sink
from pcapext.slotted import dataclass

#: Bytes that a record takes at most besides its packet, in each form (engine.h, convert_records).
_AROUND = 36


def is_pcapng(path: str | os.PathLike[str]) -> bool:
    """Whether a name says that a file is to be written in pcapng.

    >>> is_pcapng("out.pcapng.gz"), is_pcapng("out.pcap"), is_pcapng("-")
    (True, False, False)
    """
    return compression_of(path)[0].lower().endswith(".pcapng")


class Counting:
    """An output of nothing: the packets are only counted."""

    blocks = False
    #: Whether it asks for more than how many there are.
    takes_records = False

    def begin(self, source: Input) -> None:
        """Another input follows."""

    def write(self, source: Input, selected: Selected) -> None:
        """Take what was selected of a batch."""

    def flush(self) -> None:
        """What was taken can be read by others."""

    def close(self) -> None:
        """The output is complete."""

    def abandon(self) -> str | None:
        """The output must not look complete. The name of the file that is left of it, if one is."""
        return None


class Calling(Counting):
    """An output that hands what was selected to a function."""

    takes_records = True

    def __init__(self, function: Callable[[Selected], None], flush: Callable[[], None]) -> None:
        self._function = function
        self._flush = flush

    def write(self, source: Input, selected: Selected) -> None:
        self._function(selected)

    def flush(self) -> None:
        self._flush()


@dataclass(frozen=True, slots=True)
class Precision:
    """What a pcap file of several inputs has of them: whether there are nanoseconds in one, and the largest snap length."""

    nanoseconds: bool
    snaplen: int


class _Writing(Counting):
    takes_records = True

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._memory = allocate("uint8_t[]", CHUNK)
        self._room = CHUNK

    def flush(self) -> None:
        # In a file it would only make the compression worse.
        if self._sink.is_stream:
            self._sink.flush()

    def close(self) -> None:
        self._sink.close()

    def abandon(self) -> str | None:
        return self._sink.abandon()

    def _as_it_stands(self, selected: Selected) -> None:
        chunk, records = selected.batch.chunk, selected.batch.records
        if self._sink.descriptor is None:
            self._piecewise(selected, lambda *where: lib.copy_records(chunk.as_read, records, *where))
        elif fault := lib.write_records(self._sink.descriptor, chunk.as_read, records, selected.indexes, selected.length):
            raise CaptureError(f"{self._sink.name}: {os.strerror(fault)}") from OSError(fault, os.strerror(fault))

    def _converted(self, source: Input, selected: Selected, form: Any) -> None:
        chunk, records, clocks = selected.batch.chunk, selected.batch.records, selected.batch.layout.clocks
        fault = self._piecewise(selected, lambda *where: lib.convert_records(form, clocks, chunk.buffer, records, *where))
        if fault is None:
            return
        index, reason = fault
        record = records[selected.indexes[index]]
        place = f"{source.name}: byte {chunk.place(selected.batch.first + selected.indexes[index])}"
        if reason == lib.CONVERT_SNAPLEN:
            what = f"a packet of {record.caplen} bytes, more than the snap length {form.snaplen} of {self._sink.name}"
        else:
            what = f"a packet whose time does not fit {self._sink.name}"
        raise CaptureError(f"{place}: {what}")

    def _piecewise(self, selected: Selected, convert: Callable[[Any, int, Any, int], Any]) -> tuple[int, int] | None:
        """Write what a function makes of the selected records, piece by piece. The index and the reason where one cannot be converted."""
        done = 0
        while done < selected.length:
            made = convert(selected.indexes + done, selected.length - done, self._memory, self._room)
            self._sink.write(memoryview(ffi.buffer(self._memory, made.length)))
            done += made.records
            if made.fault:
                return done, made.fault
            if made.records == 0:  # no room for one
                record = selected.batch.records[selected.indexes[done]]
                self._room = max(2 * self._room, record.end - record.start + _AROUND)
                self._memory = allocate("uint8_t[]", self._room)
        return None


class PcapOutput(_Writing):
    """A pcap file. Its header is that of the first input, but for what several inputs need: `precision`."""

    def __init__(self, sink: Sink, precision: Precision | None = None) -> None:
        super().__init__(sink)
        self._precision = precision
        self._header: PcapHeader | None = None
        self._form: Any = None
        #: The last layout that was looked at, and whether its records are in the form of the output.
        self._seen: tuple[Layout, bool] | None = None
        #: What the header is made of if there is no packet: the first layout with an interface, or where the last input ends.
        self._first: Layout | None = None
        self._last: Input | None = None

    def begin(self, source: Input) -> None:
        self._last = source
        if source.layout.header:
            self._begin(source.layout, 0)

    def write(self, source: Input, selected: Selected) -> None:
        layout, records = selected.batch.layout, selected.batch.records
        if selected.packets == 0:
            if self._first is None and layout.interfaces:
                self._first = layout
            return
        header = self._header or self._begin(layout, records[selected.indexes[0]].interface)
        if self._seen is None or self._seen[0] is not layout:
            self._seen = layout, self._is_same(layout, header)
        for interface in layout.interfaces:
            if interface.linktype != header.linktype:
                self._refuse_others(source, selected, header.linktype)
                break
        if self._seen[1]:
            self._as_it_stands(selected)
        else:
            self._converted(source, selected, self._form)

    def close(self) -> None:
        if self._header is None:
            layout = self._first or (self._last.layout if self._last else None)
            self._begin(layout if layout and layout.interfaces else PcapLayout(PcapHeader(linktype=1)), 0)
        super().close()

    def _begin(self, layout: Layout, interface: int) -> PcapHeader:
        """Write the header, unless it is written: for packets of an interface."""
        if self._header is not None:
            return self._header
        snaplen = max(interface.snaplen for interface in layout.interfaces)
        nanoseconds = layout.header is None or layout.header.nanoseconds
        if self._precision:
            snaplen, nanoseconds = self._precision.snaplen, self._precision.nanoseconds
        extension = layout.header.extension if layout.header else 0
        header = self._header = PcapHeader(layout.interfaces[interface].linktype, snaplen, nanoseconds, extension=extension)
        self._form = ffi.new("struct form *", (0, 1 if header.nanoseconds else 1000, header.snaplen, ffi.NULL))
        self._sink.write(header.pack(self._sink.name))
        return header

    @staticmethod
    def _is_same(layout: Layout, header: PcapHeader) -> bool:
        """Whether the records of a layout are in the form of the output."""
        theirs = layout.header
        return (
            theirs is not None
            and layout.corrected is None
            and (theirs.byteorder, theirs.record_header, theirs.lengths) == (NATIVE, 16, Lengths.CAPTURED_FIRST)
            and theirs.nanoseconds == header.nanoseconds
            and theirs.snaplen <= header.snaplen
        )

    def _refuse_others(self, source: Input, selected: Selected, linktype: int) -> None:
        records, interfaces = selected.batch.records, selected.batch.layout.interfaces
        for index in ffi.unpack(selected.indexes, selected.length):
            record = records[index]
            if record.interface != lib.NOT_A_PACKET and interfaces[record.interface].linktype != linktype:
                name, first = (pcap_bridge.shown_linktype(number) for number in (interfaces[record.interface].linktype, linktype))
                place = f"{source.name}: byte {selected.batch.chunk.place(selected.batch.first + index)}"
                raise CaptureError(f"{place}: a packet of link type {name}, and {self._sink.name} is of {first}; .pcapng can hold both")


class PcapngOutput(_Writing):
    """A pcapng file: of pcapng inputs everything but the packets that are not selected; of each pcap input a section of its own."""

    blocks = True

    def __init__(self, sink: Sink) -> None:
        super().__init__(sink)
        self._form: Any = None
        self._begun = False

    def begin(self, source: Input) -> None:
        self._form = None
        header = source.layout.header
        if header:
            interface = Interface(header.linktype, header.snaplen, 10**9 if header.nanoseconds else 10**6)
            self._interfaces = ffi.new("uint32_t[]", [0])
            self._form = ffi.new("struct form *", (1, 1 if header.nanoseconds else 1000, header.snaplen, self._interfaces))
            self._sink.write(pack_section() + interface.pack(self._sink.name))
            self._begun = True

    def write(self, source: Input, selected: Selected) -> None:
        if self._form:
            self._converted(source, selected, self._form)
        else:
            self._as_it_stands(selected)
            self._begun = True

    def close(self) -> None:
        if not self._begun:
            self._sink.write(pack_section())
        super().close()


def largest_of(layouts: Sequence[Layout]) -> Precision:
    """What a pcap file needs to hold the packets of inputs that begin so."""
    headers = [layout.header for layout in layouts]
    nanoseconds = any(header is None or header.nanoseconds for header in headers)
    return Precision(nanoseconds, max(header.snaplen if header else longest_packet(0) for header in headers))
