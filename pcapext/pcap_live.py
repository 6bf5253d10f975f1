"""libpcap's handles on interfaces: capturing live.

In:  names of interfaces, and settings.
Out: packets as they come in. Errors are `LibpcapError` with the name of the interface and libpcap's words.

libpcap never waits here: its handles are made non-blocking, and Python waits for the descriptor. So Ctrl-C and other signals are heeded
on a silent interface, and another thread can end the waiting, or close the handle, at any time.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

from pcapext.bpf import MAXIMUM_SNAPLEN, RET_K, Instruction, Program
from pcapext.errors import CaptureWarning, LibpcapError, ProgramError, printable
from pcapext.kernel_filter import cooked_refusal, refusal
from pcapext.pcap_bridge import ERRBUF_SIZE, libpcap, linktype_number, string
from pcapext.pcap_handles import END, MICRO, NANO, CapturedPacket, Matches, Reader
from pcapext.sockets import packet_socket, read_filter

#: The link type of Ethernet, DLT_EN10MB.
_ETHERNET = 1

#: What `pcap_activate` returns (pcap/pcap.h): PCAP_ERROR and PCAP_WARNING, which stand for libpcap's words alone; PCAP_ERROR_PERM_DENIED
#: and PCAP_ERROR_PROMISC_PERM_DENIED; PCAP_WARNING_PROMISC_NOTSUP.
_ERROR, _WARNING = -1, 1
_PERM_DENIED = (-8, -11)
_PROMISCUOUS_NOT_SUPPORTED = 2

#: The directions (PCAP_D_INOUT and its like), as numbers of libpcap's.
_DIRECTIONS = {"inout": 0, "in": 1, "out": 2}

_INT = 0x7FFF_FFFF

#: Seconds: what `select.poll` takes at once.
_LONGEST_WAIT = 3600.0


@dataclass(frozen=True, slots=True)
class Stats:
    """What libpcap has counted since a handle was opened: packets, each number modulo 2^32.

    On Linux, `received` are those that the filter accepted, `dropped` those of them for which the buffer had no room, and
    `dropped_by_interface` those that the driver lost, counted in promiscuous mode alone (pcap-linux.c, pcap_stats_linux).
    """

    received: int
    dropped: int
    dropped_by_interface: int


class _Alarm:
    """A pipe that ends the waiting of `select.poll`, from any thread and from signal handlers."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)

    def ring(self) -> None:
        with suppress(BlockingIOError):  # it rings already
            os.write(self._writer, b"!")

    def silence(self) -> None:
        with suppress(BlockingIOError):
            os.read(self.reader, 4096)

    def __del__(self) -> None:
        if hasattr(self, "_writer"):
            os.close(self.reader)
            os.close(self._writer)


class LiveHandle(Reader):
    """A handle on an interface. Iterating it gives (time in ns since 1970, length on the wire, bytes captured), until `breakloop`.

    `nonblocking` may be set at any time: then reading gives what is there, and iterating ends where nothing is.

    While the interface is down, libpcap 1.10 and later wait for it to come up again. When it is gone, that is a `LibpcapError`.
    """

    def __init__(
        self, pcap: Any, nanoseconds: bool, device: str, nonblocking: bool = False, delay: float = 0.0, has_system_clock: bool = True
    ) -> None:
        #: How many seconds a packet may be in the kernel before it can be read, and whether its stamp is of the system's clock.
        self.delay = delay
        self.has_system_clock = has_system_clock
        #: The name of the interface, as a message shows it.
        self.device = printable(device)
        self.nonblocking = nonblocking
        self._direction = "inout"
        self._is_broken = False
        self._checked_until: int | None = 0
        self._matches: Matches = lambda data, wirelen: True
        #: Packets that were read before their time came, and are to be given.
        self._kept: deque[CapturedPacket] = deque()
        self._alarm = _Alarm()
        # For libpcap always, whatever `nonblocking` is: it is here that packets are waited for.
        errbuf = libpcap().ffi.new("char[]", ERRBUF_SIZE)
        if libpcap().lib.pcap_setnonblock(pcap, 1, errbuf) != 0:
            raise LibpcapError(f"{self.device}: {string(errbuf)}")
        super().__init__(pcap, nanoseconds)  # now it is this object that closes it

    # --- reading

    def __iter__(self) -> Iterator[CapturedPacket]:
        while (packet := self.read()) is not None:
            yield packet

    def read(self, timeout: float | None = None) -> CapturedPacket | None:
        """The next packet; None where none comes within `timeout` seconds, and where `breakloop` is called.

        Without a `timeout` it waits for ever, or not at all where the handle is `nonblocking`.
        """
        deadline = None
        if timeout is not None:
            deadline = monotonic() + timeout
        elif self.nonblocking:
            deadline = 0.0
        while True:
            if self._is_broken:
                self._is_broken = False
                self._alarm.silence()
                return None
            if self._kept:
                return self._kept.popleft()
            packet = self._next()
            if isinstance(packet, int):
                if packet == END:
                    return None
                if packet < 0:
                    raise self._failure()
                if deadline is not None and deadline <= monotonic():
                    return None
                self._wait(deadline)
            elif (self._checked_until is not None and packet[0] >= self._checked_until) or self._matches(packet[2], packet[1]):
                return packet

    def _wait(self, deadline: float | None) -> None:
        """Until there is something to read, or the alarm rings, or a signal handler has run, or a time of `monotonic` has come."""
        pcap = self.pcap  # kept, so that the descriptors stay what they are
        try:
            poll = select.poll()
            poll.register(self._alarm.reader, select.POLLIN)
            poll.register(self.selectable, select.POLLIN)
            seconds = min(_LONGEST_WAIT if deadline is None else deadline - monotonic(), self.required_timeout or _LONGEST_WAIT)
            ready = poll.poll(1000 * max(0, seconds))
            if any(descriptor == self._alarm.reader for descriptor, _ in ready):
                self._alarm.silence()
                if self._pcap is None:  # other readers want to know, too
                    self._alarm.ring()
        finally:
            del pcap

    def breakloop(self) -> None:
        """End the iteration or the waiting that is going on, or the next one if none is. Signal handlers and other threads may call it."""
        self.pcap  # noqa: B018  (an error where it is closed)
        self._is_broken = True
        self._alarm.ring()

    def close(self) -> None:
        """Close it: the packet socket is gone, and promiscuous mode with it. Whoever is reading gets an error that says so."""
        super().close()
        self._alarm.ring()

    def check_until(self, time_ns: int | None, matches: Matches) -> tuple[int | None, Matches]:
        """Give the packets stamped before `time_ns`, in ns since 1970, only if `matches(data, wirelen)`: all packets if it is None.

        It takes the place of what was told before, which is returned; 0 ends the checking. For what was let through before a new filter
        was in place.
        """
        self.pcap  # noqa: B018
        with self._lock:
            told = self._checked_until, self._matches
            self._checked_until, self._matches = time_ns, matches
            if not time_ns or self.has_system_clock:
                return told
            # Stamps of another clock do not say what was there before. All of that is read now.
            self._checked_until = None
            self._kept = deque(packet for packet in self._kept if matches(packet[2], packet[1]))
        self._keep_what_matches(monotonic() + self.delay)
        with self._lock:
            self._checked_until = 0
        return told

    def _keep_what_matches(self, deadline: float) -> None:
        """Read what there is, and what comes until a time of `monotonic`, to give later what is to be given of it."""
        while True:
            packet = self._next()
            if not isinstance(packet, int):
                if self._matches(packet[2], packet[1]):
                    self._kept.append(packet)
            elif packet < 0:
                raise self._failure()
            elif monotonic() >= deadline:
                return
            else:
                self._wait(deadline)

    def clear_filter(self) -> None:
        """Have libpcap and the kernel let everything through."""
        self._install(Program((Instruction(RET_K, k=self.snaplen),), self.linktype))

    # --- descriptors

    def fileno(self) -> int:
        """The descriptor that libpcap captures on: on Linux the packet socket, non-blocking."""
        return int(libpcap().lib.pcap_fileno(self.pcap))

    @property
    def selectable(self) -> int:
        """The descriptor to wait for, with select, poll or asyncio: it is readable when packets are there."""
        descriptor = int(libpcap().lib.pcap_get_selectable_fd(self.pcap))
        if descriptor < 0:
            raise LibpcapError(f"{self.device}: there is no descriptor to wait for")
        return descriptor

    @property
    def required_timeout(self) -> float | None:
        """The seconds after which to read even if the descriptor is not readable; None where it always tells.

        libpcap wants it while an interface is down, to see whether it is gone (since 1.10).
        """
        timeout = getattr(libpcap().lib, "pcap_get_required_select_timeout", lambda pcap: None)(self.pcap)
        return timeout.tv_sec + timeout.tv_usec / 1_000_000 if timeout else None

    # --- settings

    @property
    def direction(self) -> str:
        """Which packets are given: "in" for what the interface receives, "out" for what it sends, or "inout"."""
        return self._direction

    @direction.setter
    def direction(self, direction: str) -> None:
        if direction not in _DIRECTIONS:
            raise LibpcapError(f"unknown direction '{printable(direction)}', expected in, out or inout")
        with self._lock:
            self._check(libpcap().lib.pcap_setdirection(self.pcap, _DIRECTIONS[direction]))
            self._direction = direction

    def linktypes(self) -> tuple[int, ...]:
        """The link types that the interface has to choose from, as DLT numbers."""
        ffi, lib = libpcap().ffi, libpcap().lib
        found = ffi.new("int **")
        with self._lock:
            count = self._check(lib.pcap_list_datalinks(self.pcap, found))
        try:
            return tuple(ffi.unpack(found[0], count))
        finally:
            lib.pcap_free_datalinks(found[0])

    def set_linktype(self, linktype: str | int) -> None:
        """Have the packets with one of the `linktypes`: a name of libpcap's or a DLT number. A filter is to be set anew afterwards."""
        number = linktype_number(linktype)
        with self._lock:
            self._check(libpcap().lib.pcap_set_datalink(self.pcap, number))
            self.linktype = number

    def set_program(self, program: Program | Iterable[Instruction]) -> None:
        """Have the kernel give those packets alone that a program accepts: any that it takes, compiled or assembled or read.

        What was captured before is filtered by libpcap (pcap-linux.c, pcap_setfilter_linux); a packet that another processor puts into the
        buffer at this moment may escape that.

        Raises `ProgramError` for a program that is not valid, or of another link type, and for one that the kernel does not take, with its
        reason: then the filter stays as it was. It is not left to libpcap to filter every packet itself, except where it captures on
        something else than a Linux packet socket; there, a program with ancillary words is a `ProgramError`.
        """
        made = self._of_this_linktype(program)
        descriptor = self.fileno()
        seen = packet_socket(descriptor) if sys.platform == "linux" else None
        if seen and (reason := (seen.type == socket.SOCK_DGRAM and cooked_refusal(made)) or refusal(made)):
            raise ProgramError(f"{self.device}: the kernel does not take the program: {reason}")
        with self._lock:
            (self._install if seen else self._install_here)(made)
            # It takes the place of all filters before it.
            self.check_until(0, self._matches)
            # libpcap changes some of the instructions, but not how many there are.
            if seen and len(read_filter(descriptor)) != len(bytes(made)):
                raise ProgramError(f"{self.device}: the kernel took the program for a socket of no use, but not here; libpcap filters now")

    # --- the rest

    def stats(self) -> Stats:
        """What was counted since the handle was opened."""
        stats = libpcap().ffi.new("struct pcap_stat *")
        with self._lock:
            self._check(libpcap().lib.pcap_stats(self.pcap, stats))
        return Stats(stats.ps_recv, stats.ps_drop, stats.ps_ifdrop)

    def inject(self, data: bytes) -> int:
        """Send a frame, link-layer header and all, and return how many bytes of it were sent: all of them.

        It waits where there is no room for it now, except on a `nonblocking` handle.
        """
        if not data:
            raise LibpcapError(f"{self.device}: a frame of 0 bytes cannot be sent")
        while True:
            with self._lock:
                libpcap().ffi.errno = 0
                sent = int(libpcap().lib.pcap_inject(self.pcap, data, len(data)))
                if sent >= 0:
                    return sent
                if libpcap().ffi.errno != errno.EAGAIN or self.nonblocking:
                    raise self._failure()
            poll = select.poll()
            poll.register(self.fileno(), select.POLLOUT)
            poll.poll(100)  # not for ever: the handle may be closed meanwhile

    def _check(self, status: int) -> int:
        if status < 0:
            raise self._failure()
        return status

    def _failure(self) -> LibpcapError:
        return LibpcapError(f"{self.device}: {self.error()}")


def open_live(
    device: str,
    *,
    snaplen: int = MAXIMUM_SNAPLEN,
    promiscuous: bool | None = None,
    timeout_ms: int = 100,
    immediate: bool = False,
    buffer_size: int | None = None,
    direction: str | None = None,
    nanoseconds: bool = True,
    timestamp_type: str | None = None,
    monitor: bool = False,
    linktype: str | int | None = None,
    nonblocking: bool = False,
) -> LiveHandle:
    """A handle on an interface, capturing.

    `device` is the name of an interface, or "any". `snaplen` is how many bytes are kept of a packet, 1 to 262144. `promiscuous` is whether
    to see frames for others too: None, the usual value, means yes where the interface can. The kernel delivers packets in batches, after
    `timeout_ms` ms at the latest (0: after a time of its own choice), or each at once if `immediate`. `buffer_size` is the kernel's buffer
    in bytes, None for libpcap's choice. `direction` is "in", "out" or "inout", None for both. Times have nanoseconds if `nanoseconds` is
    true and the platform has them. `timestamp_type` is one of `pcapext.pcap_devices.timestamp_types`, such as "adapter". `monitor` is
    monitor mode of wireless interfaces. `linktype` is one of the link types that the interface has to choose from. For `nonblocking` see
    `LiveHandle`.

    Raises `LibpcapError` with libpcap's words: no such interface, no privilege, a setting out of range or one that the interface
    does not have. Warns with a `CaptureWarning` where libpcap does.

    with open_live("lo") as handle:
        print(handle.read(timeout=1))
    """
    lib = libpcap().lib
    shown = printable(device)
    _check_range("snap length", snaplen, 1, MAXIMUM_SNAPLEN)
    _check_range("timeout", timeout_ms, 0, _INT)
    if buffer_size is not None:
        _check_range("buffer size", buffer_size, 1, _INT)
    stamps = None if timestamp_type is None else lib.pcap_tstamp_type_name_to_val(os.fsencode(timestamp_type))
    if stamps is not None and stamps < 0:
        raise LibpcapError(f"unknown type of time stamps '{printable(timestamp_type or '')}'")
    pcap = create(device)
    try:
        for setting, value in (
            (lib.pcap_set_snaplen, snaplen),
            (lib.pcap_set_promisc, promiscuous is not False),
            (lib.pcap_set_timeout, timeout_ms),
            (lib.pcap_set_immediate_mode, immediate),
            (lib.pcap_set_buffer_size, buffer_size or 0),
            (lib.pcap_set_rfmon, monitor),
        ):
            setting(pcap, value)
        nanoseconds = nanoseconds and lib.pcap_set_tstamp_precision(pcap, NANO) == 0
        if not nanoseconds:
            lib.pcap_set_tstamp_precision(pcap, MICRO)
        refused = lib.pcap_set_tstamp_type(pcap, stamps) if stamps is not None else 0
        status = lib.pcap_activate(pcap)
        if status < 0:
            raise LibpcapError(f"{shown}: {activation_words(pcap, status)}")
        if refused:  # told only now, since libpcap 1.10.3 leaves a descriptor open of a handle that was not activated
            raise LibpcapError(f"{shown}: {string(lib.pcap_statustostr(refused))}")
        if status > 0 and (status != _PROMISCUOUS_NOT_SUPPORTED or promiscuous):
            warnings.warn(f"{shown}: {activation_words(pcap, status)}", CaptureWarning, stacklevel=2)
        handle = LiveHandle(pcap, nanoseconds, device, nonblocking, _delay(timeout_ms, immediate), _is_of_system_clock(timestamp_type))
    except BaseException:
        lib.pcap_close(pcap)
        raise
    try:
        if linktype is not None:
            handle.set_linktype(linktype)
        if direction is not None:
            handle.direction = direction
    except BaseException:
        handle.close()
        raise
    return handle


def _delay(timeout_ms: int, immediate: bool) -> float:
    """How many seconds a packet may be in the kernel before it can be read.

    A block of the ring buffer is given out when it is full, or when a timer has found it twice (net/packet/af_packet.c,
    prb_retire_rx_blk_timer_expired).
    """
    return 0.0 if immediate else 2 * (timeout_ms or 100) / 1000 + 0.05


def _is_of_system_clock(timestamp_type: str | None) -> bool:
    """Whether time stamps of a type are of the system's clock (pcap-tstamp(7))."""
    return timestamp_type is None or (timestamp_type.startswith("host") and not timestamp_type.endswith("unsynced"))


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise LibpcapError(f"{name} {value} is out of range, expected {least} to {most}")


def create(device: str) -> Any:
    """A `pcap_t *` for an interface, not activated."""
    errbuf = libpcap().ffi.new("char[]", ERRBUF_SIZE)
    name = os.fsencode(device)
    if not name or b"\0" in name:
        raise LibpcapError(f"'{printable(device)}' is no name of an interface")
    pcap = libpcap().lib.pcap_create(name, errbuf)
    if not pcap:
        raise LibpcapError(f"{printable(device)}: {string(errbuf)}")
    return pcap


def activation_words(pcap: Any, status: int) -> str:
    """What libpcap says of the status that `pcap_activate` returned: its words for the status, and those for the case."""
    lib = libpcap().lib
    words, case = string(lib.pcap_statustostr(status)), string(lib.pcap_geterr(pcap))
    if status in (_ERROR, _WARNING) and case:
        return case
    if case and case not in words:
        words = f"{words}: {case}"
    if status in _PERM_DENIED and sys.platform == "linux" and "CAP_NET_RAW" not in words:
        words += " (it takes the capability CAP_NET_RAW)"
    return words


def open_ethernet(snaplen: int) -> Any:
    """An activated `pcap_t *` on any interface with Ethernet frames, the loopback first: something to compile on."""
    lib = libpcap().lib
    words = "there is no interface"
    for name in sorted((name for _, name in socket.if_nameindex()), key="lo".__ne__):
        pcap = create(name)
        lib.pcap_set_snaplen(pcap, snaplen)
        lib.pcap_set_buffer_size(pcap, 1)  # it becomes the least that there can be
        status = lib.pcap_activate(pcap)
        if status >= 0 and lib.pcap_datalink(pcap) == _ETHERNET:
            return pcap
        words = f"{name}: " + (activation_words(pcap, status) if status < 0 else "it has no Ethernet frames")
        lib.pcap_close(pcap)
        if status in _PERM_DENIED:
            break
    raise LibpcapError(f"'vlan' for a live capture is compiled on a live interface, and none can be opened: {words}")
