"""dpkt's readers of captures, with a filter.

In:  a `dpkt.pcap.Reader` or `dpkt.pcapng.Reader`, or what `dpkt.pcap.UniversalReader` gives; an expression or a `Program`.
Out: what the reader gives, times and bytes, of the packets that match.

dpkt tells neither how long a packet was on the wire, so `len` is what was captured of it, nor, in pcapng, which interface it is from. A
file with interfaces of several link types is therefore an error; `pcapext.open_offline` reads such files, and tells lengths.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from pcapext.bpf import Program
from pcapext.errors import CaptureError, printable
from pcapext.formats import dlt_of_linktype
from pcapext.integrations import missing
from pcapext.selection import Filter

try:
    from dpkt import pcap, pcapng
except ImportError as error:
    raise missing("dpkt", error) from error

__all__ = ["FilteredReader", "filtered"]


def filtered(reader: Any, filter: str | Program, **options: Any) -> FilteredReader:
    """A reader that gives what `reader` gives of the packets that match.

    `filter` is an expression, compiled for the link type of the capture with `options`, those of `compile`, or a program for it. Raises
    what `compile` raises; `ProgramError` for a program that is for another link type; `CaptureError` for what is no reader of dpkt's.

    >>> with open("examples/tunnels.pcap", "rb") as file:
    ...     for time, data in filtered(pcap.Reader(file), "encap gtpu and inner tcp port 80"):
    ...         print(time, len(data))
    ...         break
    1704067200.13 135
    """
    made = FilteredReader(reader)
    made.setfilter(filter, **options)
    return made


class FilteredReader:
    """A reader of dpkt's with a filter that can be set, which dpkt's own cannot. It has what they have.

    >>> with open("examples/tunnels.pcap", "rb") as file:
    ...     reader = FilteredReader(pcap.UniversalReader(file))
    ...     reader.setfilter("inner tcp port 80")
    ...     len(reader.readpkts())
    28
    """

    def __init__(self, reader: Any) -> None:
        # The byte order of the file and its linktype are what the filter goes by; dpkt has the order for itself alone.
        match reader:
            case pcap.Reader():
                is_little = isinstance(reader._Reader__fh, pcap.LEFileHdr)
            case pcapng.Reader():
                is_little = reader._Reader__le
            case _:
                raise CaptureError(f"a reader of type {type(reader).__name__}, expected a dpkt.pcap.Reader or dpkt.pcapng.Reader")
        self._reader = reader
        self._byteorder = "<" if is_little else ">"
        self._filter = Filter(None)
        self._packets = self._accepted()
        if isinstance(reader, pcapng.Reader):
            reader._Reader__f = _Interfaces(reader._Reader__f, self._byteorder, reader.datalink(), reader.name)

    def setfilter(self, value: str | Program, optimize: bool | int = True, **options: Any) -> None:
        """Set the filter, for the packets that are read from now on. `optimize` and `options` are those of `compile`."""
        filter = Filter(value, optimize=optimize, **options)
        filter.matcher_in(self._linktype, self._byteorder, is_only=True)
        self._filter = filter

    @property
    def _linktype(self) -> int:
        return dlt_of_linktype(self._reader.datalink() & 0xFFFF)

    def _accepted(self) -> Iterator[tuple[float, bytes]]:
        for time, data in self._reader:
            if self._filter.accepts(self._linktype, self._byteorder, data):
                yield time, data

    def __iter__(self) -> Iterator[tuple[float, bytes]]:
        return self._packets

    def __next__(self) -> tuple[float, bytes]:
        return next(self._packets)

    def readpkts(self) -> list[tuple[float, bytes]]:
        """All packets that match, from where it is."""
        return list(self)

    def dispatch(self, cnt: int, callback: Callable[..., Any], *args: Any) -> int:
        """Call `callback(time, data, *args)` for `cnt` packets that match, or all if it is not above 0. Returns how many there were."""
        processed = 0
        for time, data in islice(self, cnt if cnt > 0 else None):
            callback(time, data, *args)
            processed += 1
        return processed

    def loop(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call `callback(time, data, *args)` for all packets that match."""
        self.dispatch(0, callback, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


class _Interfaces:
    """The file under a reader of pcapng, which sees that all interfaces have the link type of the first.

    The reader asks for the first 8 bytes of a block, and then for the rest.
    """

    def __init__(self, file: Any, byteorder: str, linktype: int, name: str) -> None:
        self._file = file
        self._byteorder = byteorder
        self._linktype = linktype
        self._name = printable(str(name))
        self._is_interface = False

    def read(self, size: int) -> Any:
        octets = self._file.read(size)
        if self._is_interface and len(octets) >= 2:
            linktype = struct.unpack_from(f"{self._byteorder}H", octets)[0]
            if linktype != self._linktype:
                raise CaptureError(
                    f"{self._name}: interfaces of link types {self._linktype} and {linktype}, which dpkt does not tell apart; "
                    "pcapext.open_offline does"
                )
        self._is_interface = size == 8 and octets[:4] == struct.pack(f"{self._byteorder}I", pcapng.PCAPNG_BT_IDB)
        return octets

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
