"""libpcap's handles: reading and writing captures.

In:  file descriptors.
Out: packets as libpcap gives them, and pcap files. Errors of libpcap's are `LibpcapError` with its words, those of the system
     are `OSError`; neither knows the name of the file.

A handle or a dumper takes the descriptor that it is given over: whatever happens, it is closed in the end. C streams are made of
descriptors, and that needs a POSIX system.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pcapext.bpf import MAXIMUM_SNAPLEN
from pcapext.errors import LibpcapError
from pcapext.pcap_bridge import ERRBUF_SIZE, c_stream, libpcap, linktype_number, os_error, string

_MICRO, _NANO = 0, 1
_NEXT_PACKET, _NEXT_END = 1, -2

#: The first bytes of captures with microseconds (sf-pcap.c): the usual format and Kuznetzov's variant.
_MICROSECOND_MAGICS = tuple(bytes.fromhex(magic) for magic in ("a1b2c3d4", "d4c3b2a1", "a1b2cd34", "34cdb2a1"))


class Handle:
    """A `pcap_t`. Closing it twice is fine; using it afterwards is a `LibpcapError`."""

    def __init__(self, pcap: Any, nanoseconds: bool) -> None:
        ffi, lib = libpcap().ffi, libpcap().lib
        self._pcap = ffi.gc(pcap, lib.pcap_close)
        #: Whether times have nanoseconds; otherwise they have microseconds.
        self.nanoseconds = nanoseconds
        #: The link type, as a DLT number, and the snap length in bytes.
        self.linktype = int(lib.pcap_datalink(pcap))
        self.snaplen = int(lib.pcap_snapshot(pcap))

    @property
    def pcap(self) -> Any:
        """The `pcap_t *`."""
        if self._pcap is None:
            raise LibpcapError("the handle is closed")
        return self._pcap

    def error(self) -> str:
        """libpcap's words on what went wrong last."""
        return string(libpcap().lib.pcap_geterr(self.pcap))

    def close(self) -> None:
        """Close it, and the file it reads."""
        if self._pcap is not None:
            libpcap().ffi.release(self._pcap)
            self._pcap = None


class OfflineHandle(Handle):
    """A handle that reads a capture. Iterating it gives (time in ns since 1970, length on the wire, bytes captured)."""

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        ffi, lib = libpcap().ffi, libpcap().lib
        header_, data_ = ffi.new("struct pcap_pkthdr **"), ffi.new("const unsigned char **")
        unit = 1 if self.nanoseconds else 1000
        while (status := lib.pcap_next_ex(self.pcap, header_, data_)) == _NEXT_PACKET:
            header = header_[0]
            seconds = header.ts.tv_sec
            if seconds < 0:  # A time after 2038: libpcap takes the 32 bits of the file for a signed number.
                seconds += 1 << 32
            time = seconds * 1_000_000_000 + (header.ts.tv_usec & 0xFFFF_FFFF) * unit
            yield time, header.len, bytes(ffi.buffer(data_[0], header.caplen))
        if status != _NEXT_END:
            raise LibpcapError(self.error())


def open_dead(linktype: int, snaplen: int = MAXIMUM_SNAPLEN, nanoseconds: bool = False) -> Handle:
    """A handle on nothing, to write captures with."""
    if not 1 <= snaplen <= 0x7FFF_FFFF:
        raise LibpcapError(f"snap length {snaplen} is out of range, expected 1 to {0x7FFF_FFFF}")
    pcap = libpcap().lib.pcap_open_dead_with_tstamp_precision(linktype_number(linktype), snaplen, _NANO if nanoseconds else _MICRO)
    if not pcap:
        raise MemoryError
    return Handle(pcap, nanoseconds)


def open_offline(descriptor: int) -> OfflineHandle:
    """A handle on a capture, any that libpcap reads. The handle takes the descriptor over: whatever happens, it is closed.

    Times are kept exactly, down to a nanosecond. A pcap file says whether it has micro- or nanoseconds; a pcapng file,
    whose packets may differ in that, counts as one with nanoseconds.

    Raises `LibpcapError` for what is no capture, and `OSError`.
    """
    file = c_stream(descriptor, b"rb")
    ffi, lib = libpcap().ffi, libpcap().lib
    try:
        nanoseconds = _peek(file) not in _MICROSECOND_MAGICS
        errbuf = ffi.new("char[]", ERRBUF_SIZE)
        pcap = lib.pcap_fopen_offline_with_tstamp_precision(file, _NANO if nanoseconds else _MICRO, errbuf)
        if not pcap:
            raise LibpcapError(string(errbuf))
    except LibpcapError:
        lib.fclose(file)
        raise
    return OfflineHandle(pcap, nanoseconds)


def _peek(file: Any) -> bytes:
    """The first 4 bytes of a C stream, or those there are; they stay unread. It may be a pipe, so there is no way back."""
    lib = libpcap().lib
    octets: list[int] = []
    while len(octets) < 4 and (octet := lib.getc(file)) >= 0:
        octets.append(octet)
    for octet in reversed(octets):
        # C promises to take one back; the C libraries take back what their buffer has given.
        if lib.ungetc(octet, file) < 0:
            raise LibpcapError("the C library does not take back the first bytes of a capture")
    return bytes(octets)


class Dumper:
    """A pcap file being written, with link type, snap length and precision of times from a handle.

    It takes the descriptor over: whatever happens, it is closed. Every failure to write is an `OSError`, at the latest
    when it is closed. Closing twice is fine; writing afterwards is a `LibpcapError`.
    """

    def __init__(self, handle: Handle, descriptor: int) -> None:
        file = c_stream(descriptor, b"wb")
        ffi, lib = libpcap().ffi, libpcap().lib
        try:
            dumper = lib.pcap_dump_fopen(handle.pcap, file)
            if not dumper:
                raise LibpcapError(handle.error().removeprefix("stream: "))
        except LibpcapError:
            lib.fclose(file)
            raise
        self._dumper = ffi.gc(dumper, lib.pcap_dump_close)
        self._unit = 1 if handle.nanoseconds else 1000
        self._header = ffi.new("struct pcap_pkthdr *")

    def write(self, time: int, wirelen: int, data: bytes) -> None:
        """Write a packet: its time in ns since 1970 (to 2106), its length on the wire, the bytes captured."""
        ffi, lib, dumper, header = libpcap().ffi, libpcap().lib, self._open(), self._header
        seconds, nanoseconds = divmod(time, 1_000_000_000)
        if not 0 <= seconds <= 0xFFFF_FFFF:
            raise LibpcapError(f"a pcap file cannot hold the time {time} ns, expected 0 to {(1 << 32) * 1_000_000_000 - 1}")
        if not 0 <= wirelen <= 0xFFFF_FFFF:
            raise LibpcapError(f"a pcap file cannot hold the length {wirelen}, expected 0 to {0xFFFF_FFFF}")
        header.ts.tv_sec, header.ts.tv_usec = seconds, nanoseconds // self._unit
        header.len, header.caplen = wirelen, len(data)
        lib.pcap_dump(ffi.cast("unsigned char *", dumper), header, data)
        # It tells no errors, but the stream does.
        if lib.ferror(dumper):
            raise os_error()

    def flush(self) -> None:
        """Hand what was written to the system."""
        lib, dumper = libpcap().lib, self._open()
        if lib.pcap_dump_flush(dumper) != 0 or lib.ferror(dumper):
            raise os_error()

    def _open(self) -> Any:
        if self._dumper is None:
            raise LibpcapError("the dumper is closed")
        return self._dumper

    def close(self) -> None:
        """Write what is left, and close the file."""
        if self._dumper is not None:
            try:
                self.flush()
            finally:
                # It tells no errors: all there can be came with the flush.
                libpcap().ffi.release(self._dumper)
                self._dumper = None
