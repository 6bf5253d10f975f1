"""libpcap's handles: reading and writing captures.

In:  file descriptors.
Out: packets as libpcap gives them, and pcap files. Errors of libpcap's are `LibpcapError` with its words, those of the system
     are `OSError`; neither knows the name of the file.

A handle or a dumper takes the descriptor that it is given over: whatever happens, it is closed in the end. C streams are made of
descriptors, and that needs a POSIX system.

Any thread, and any signal handler, may close a handle or a dumper at any time. libpcap knows no threads, so one call is made at a time;
and closing only gives up a reference: what a call still uses is freed when that has returned.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from threading import RLock
from typing import TYPE_CHECKING, Any

from pcapext.bpf import MAXIMUM_SNAPLEN, Instruction, Program, program_of
from pcapext.errors import LibpcapError, ProgramError
from pcapext.pcap_bridge import ERRBUF_SIZE, c_stream, libpcap, linktype_number, os_error, string

if TYPE_CHECKING:
    from typing_extensions import Self

#: The precisions of times (PCAP_TSTAMP_PRECISION_MICRO and _NANO, pcap/pcap.h).
MICRO, NANO = 0, 1

#: What `pcap_next_ex` returns at the end of a file, and where the loop is to be left (PCAP_ERROR_BREAK).
END = -2
_NEXT_PACKET = 1

#: `struct pcap_pkthdr`: seconds, micro- or nanoseconds, bytes captured, length on the wire. Reading it so takes half the time that
#: cffi's fields take.
_PKTHDR = struct.Struct("@llII")

#: A packet: its time in ns since 1970, its length on the wire, the bytes captured.
CapturedPacket = tuple[int, int, bytes]

#: Whether to give a packet: its bytes, and its length on the wire.
Matches = Callable[[bytes, int], bool]

#: The first bytes of captures with microseconds (sf-pcap.c): the usual format and Kuznetzov's variant.
_MICROSECOND_MAGICS = tuple(bytes.fromhex(magic) for magic in ("a1b2c3d4", "d4c3b2a1", "a1b2cd34", "34cdb2a1"))


class Handle:
    """A `pcap_t`. Closing it twice is fine; using it afterwards is a `LibpcapError`. Left as a context, it is closed."""

    def __init__(self, pcap: Any, nanoseconds: bool) -> None:
        ffi, lib = libpcap().ffi, libpcap().lib
        self._pcap = ffi.gc(pcap, lib.pcap_close)
        self._lock = RLock()
        #: Whether times have nanoseconds; otherwise they have microseconds.
        self.nanoseconds = nanoseconds
        #: The link type, as a DLT number, and the snap length in bytes.
        self.linktype = int(lib.pcap_datalink(pcap))
        self.snaplen = int(lib.pcap_snapshot(pcap))

    @property
    def pcap(self) -> Any:
        """The `pcap_t *`. Whoever keeps what this returns keeps it from being freed."""
        pcap = self._pcap
        if pcap is None:
            raise LibpcapError("the handle is closed")
        return pcap

    def error(self) -> str:
        """libpcap's words on what went wrong last."""
        pcap = self.pcap  # they are in its memory
        return string(libpcap().lib.pcap_geterr(pcap))

    def close(self) -> None:
        """Close it, and what it reads from."""
        self._pcap = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _install(self, program: Program) -> None:
        """pcap_setfilter, which makes a copy of the program."""
        ffi, octets = libpcap().ffi, bytes(program)
        instructions = ffi.from_buffer("struct bpf_insn[]", octets)
        with self._lock:
            if libpcap().lib.pcap_setfilter(self.pcap, ffi.new("struct bpf_program *", [len(program), instructions])) != 0:
                raise LibpcapError(self.error())


class Reader(Handle):
    """A handle that packets are read from."""

    def __init__(self, pcap: Any, nanoseconds: bool) -> None:
        super().__init__(pcap, nanoseconds)
        self._header = libpcap().ffi.new("struct pcap_pkthdr **")
        self._data = libpcap().ffi.new("const unsigned char **")
        self._unit = 1 if nanoseconds else 1000
        self._next_ex, self._buffer = libpcap().lib.pcap_next_ex, libpcap().ffi.buffer

    def _next(self) -> CapturedPacket | int:
        """The next packet, or what `pcap_next_ex` returned instead of one."""
        with self._lock:
            pcap = self.pcap
            try:
                status: int = self._next_ex(pcap, self._header, self._data)
                if status != _NEXT_PACKET:
                    return status
                seconds, fraction, caplen, wirelen = _PKTHDR.unpack(self._buffer(self._header[0], _PKTHDR.size))
                if seconds < 0:  # A time after 2038: libpcap takes the 32 bits of the file for a signed number.
                    seconds += 1 << 32
                time = seconds * 1_000_000_000 + (fraction & 0xFFFF_FFFF) * self._unit
                return time, wirelen, self._buffer(self._data[0], caplen)[:]
            finally:
                del pcap  # an exception would keep this frame, and so the handle

    def _of_this_linktype(self, program: Program | Iterable[Instruction]) -> Program:
        """A program for this handle's packets, from one or from its instructions."""
        if not isinstance(program, Program):
            return program_of(program, self.linktype)
        if program.linktype != self.linktype:
            raise ProgramError(f"the program is for link type {program.linktype}, and the handle has link type {self.linktype}")
        return program

    def _install_here(self, program: Program) -> None:
        """Set a program that libpcap runs, not the kernel."""
        for index, instruction in enumerate(program):
            if word := instruction.ancillary:
                raise ProgramError(f"instruction {index}: libpcap has no ancillary word {word.name}, the kernel alone has some")
        self._install(program)


class OfflineHandle(Reader):
    """A handle that reads a capture. Iterating it gives (time in ns since 1970, length on the wire, bytes captured)."""

    def __iter__(self) -> Iterator[CapturedPacket]:
        while not isinstance(packet := self._next(), int):
            yield packet
        if packet != END:
            raise LibpcapError(self.error())

    def set_program(self, program: Program | Iterable[Instruction]) -> None:
        """From now on, give the packets that a program accepts; libpcap runs it.

        Raises `ProgramError` for a program that is not valid, one of another link type, and one that loads what packets of a file do not
        have beside them: flow keys and the kernel's ancillary words.
        """
        self._install_here(self._of_this_linktype(program))


def open_dead(linktype: int, snaplen: int = MAXIMUM_SNAPLEN, nanoseconds: bool = False) -> Handle:
    """A handle on nothing, to write captures with."""
    if not 1 <= snaplen <= 0x7FFF_FFFF:
        raise LibpcapError(f"snap length {snaplen} is out of range, expected 1 to {0x7FFF_FFFF}")
    pcap = libpcap().lib.pcap_open_dead_with_tstamp_precision(linktype_number(linktype), snaplen, NANO if nanoseconds else MICRO)
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
        pcap = lib.pcap_fopen_offline_with_tstamp_precision(file, NANO if nanoseconds else MICRO, errbuf)
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
        self._lock = RLock()
        self._unit = 1 if handle.nanoseconds else 1000
        self._header = ffi.new("struct pcap_pkthdr *")

    def write(self, time: int, wirelen: int, data: bytes) -> None:
        """Write a packet: its time in ns since 1970 (to 2106), its length on the wire, the bytes captured."""
        ffi, lib, header = libpcap().ffi, libpcap().lib, self._header
        seconds, nanoseconds = divmod(time, 1_000_000_000)
        if not 0 <= seconds <= 0xFFFF_FFFF:
            raise LibpcapError(f"a pcap file cannot hold the time {time} ns, expected 0 to {(1 << 32) * 1_000_000_000 - 1}")
        if not 0 <= wirelen <= 0xFFFF_FFFF:
            raise LibpcapError(f"a pcap file cannot hold the length {wirelen}, expected 0 to {0xFFFF_FFFF}")
        with self._lock:
            dumper = self._open()
            try:
                header.ts.tv_sec, header.ts.tv_usec = seconds, nanoseconds // self._unit
                header.len, header.caplen = wirelen, len(data)
                lib.pcap_dump(ffi.cast("unsigned char *", dumper), header, data)
                # It tells no errors, but the stream does.
                if lib.ferror(dumper):
                    raise os_error()
            finally:
                del dumper  # an exception would keep this frame, and so the file

    def flush(self) -> None:
        """Hand what was written to the system."""
        lib = libpcap().lib
        with self._lock:
            if lib.pcap_dump_flush(self._open()) != 0 or lib.ferror(self._open()):
                raise os_error()

    def _open(self) -> Any:
        dumper = self._dumper
        if dumper is None:
            raise LibpcapError("the dumper is closed")
        return dumper

    def close(self) -> None:
        """Write what is left, and close the file."""
        with self._lock:
            if self._dumper is not None:
                try:
                    self.flush()
                finally:
                    # Closing the stream tells no errors: all there can be came with the flush.
                    self._dumper = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
