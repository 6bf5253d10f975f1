"""A veth pair in a network namespace of its own: what the running kernel does to frames that come in on a real interface.

In:  frames, and programs.
Out: which of the frames each program let through, in their order and as the kernel showed them.

The namespace has no name: it belongs to a thread, and it is gone when the thread has ended and the sockets are closed, whatever happened
in between. Nothing in it speaks but `Wire.send`: there is no IPv6 and no address.

Frames are sent in portions well below the receive buffers, each with a marker behind it. The thread stays on one processor, so that
one queue takes all frames and none overtakes another: when the marker has come out, all that will come has come.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import (
    CDLL,
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_int,
    c_long,
    c_ubyte,
    c_uint32,
    c_void_p,
    create_string_buffer,
    get_errno,
    string_at,
)
from itertools import islice
from pathlib import Path
from typing import TypeVar

from bpf_oracles import attach, libpcap, packed

from pcapext.bpf import Instruction

T = TypeVar("T")
S = TypeVar("S", bound="Tap")

libc = CDLL(None, use_errno=True)

CLONE_NEWNET = 0x40000000
ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_STATISTICS = 263, 6
#: include/uapi/linux/if_tun.h
TUNSETIFF, TUNSETLINK, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x400454CD, 0x0001, 0x1000
SO_RCVBUFFORCE, SO_GET_FILTER = 33, 26
BUFFER = 1 << 24

#: A frame that no generator makes: of EtherType 0x88b5, for local experiments (IEEE 802), and longer than the shortest frame.
MARKER = b"\x02\0\0\0\0\xee" * 2 + b"\x88\xb5" + b"marker".ljust(46, b"\0")

#: What the sender takes: a whole Ethernet header, and not more than the interface does.
SHORTEST, LONGEST = 14, 1514

PORTION = 200
SECONDS = 10.0


def seen(frame: bytes) -> bytes | None:
    """A frame as a socket on a live interface sees it: the outermost VLAN tag is gone into the packet's metadata.

    None where nobody sees it: the kernel drops a frame that ends in the tag or right behind it. (net/core/dev.c, __netif_receive_skb_core;
    net/core/skbuff.c, skb_vlan_untag, which wants the tag and 2 bytes more.)
    """
    if frame[12:14] not in (b"\x81\x00", b"\x88\xa8"):
        return frame
    return frame[:12] + frame[16:] if len(frame) >= 20 else None


class Tap:
    """A packet socket on the receiving interface, or on all for what comes in. `received` are the frames that its filter let through
    since they were taken last; those of a SOCK_DGRAM socket begin behind the Ethernet header.
    """

    def __init__(self, instructions: Sequence[Instruction] | None, kind: int = socket.SOCK_RAW, interface: str | None = "right"):
        # Without a protocol it receives nothing until it is bound.
        self.socket = socket.socket(socket.AF_PACKET, kind, 0 if interface else socket.htons(ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self.socket.setblocking(False)
        if instructions is not None:
            attach(self.socket, instructions)
        if interface:
            self.socket.bind((interface, ETH_P_ALL))
        self.received: list[bytes] = []
        self.is_open = True

    def drain(self) -> bool:
        """Take what has come; whether the marker has."""
        marked = False
        while True:
            try:
                frame, (_, _, direction, *_) = self.socket.recvfrom(1 << 16)
            except BlockingIOError:
                break
            if frame.endswith(MARKER[14:]):
                marked = True
            elif direction != socket.PACKET_OUTGOING:
                self.received.append(frame)
        _, dropped = struct.unpack("@II", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        assert dropped == 0
        return marked

    def take(self) -> list[bytes]:
        taken, self.received = self.received, []
        return taken

    def close(self) -> None:
        self.socket.close()
        self.is_open = False

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Wire:
    """The pair: frames go in at `left` and come out at `right`."""

    def __init__(self) -> None:
        self._inside = ThreadPoolExecutor(1)
        self._taps: list[Tap] = []
        self.do(self._set_up)
        #: Sees everything.
        self.control: Tap = self.tap(None)

    def do(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function inside of the namespace."""
        return self._inside.submit(function, *arguments).result()

    def _set_up(self) -> None:
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(get_errno(), os.strerror(get_errno()))
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        ipv6 = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")
        if ipv6.exists():
            ipv6.write_text("1")
        for command in ("link add left type veth peer name right", "link set left up", "link set right up"):
            subprocess.run(["ip", *command.split()], check=True)
        self._sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sender.bind(("left", 0))

    def tap(self, instructions: Sequence[Instruction] | None, kind: int = socket.SOCK_RAW, interface: str | None = "right") -> Tap:
        """A socket on the receiving end, or on all interfaces, that a program filters."""
        return self.add(self.do(Tap, instructions, kind, interface))

    def add(self, tap: S) -> S:
        """Have something else that receives drained when frames were sent."""
        self._taps.append(tap)
        return tap

    def any_handle(self, linktype: int, instructions: Sequence[Instruction] | None) -> AnyHandle:
        """libpcap's handle on all interfaces, with a filter set on it."""
        return self.add(self.do(AnyHandle, linktype, instructions))

    def send(self, frames: Iterable[bytes]) -> None:
        """Send frames of `SHORTEST` to `LONGEST` bytes. When it returns, every tap has received what it will."""
        source = iter(frames)
        while portion := list(islice(source, PORTION)):
            self.do(self._send, portion)

    def put(self, frames: Iterable[bytes]) -> None:
        """Put frames on the wire, inside of the namespace."""
        for frame in frames:
            assert self._sender.send(frame) == len(frame)

    def _send(self, frames: Sequence[bytes]) -> None:
        self.put((*frames, MARKER))
        deadline = time.monotonic() + SECONDS
        while not self.control.drain():
            assert time.monotonic() < deadline, "the marker was lost"
        self._taps = [tap for tap in self._taps if tap.is_open]
        for tap in self._taps:
            tap.drain()

    def close(self) -> None:
        for tap in self._taps:
            if tap.is_open:
                tap.close()
        self._sender.close()
        self._inside.shutdown()


class Tun:
    """An interface `tun0` for bare IP packets, or one that claims to be of another ARPHRD type; what is written comes in on it."""

    def __init__(self, hatype: int | None = None) -> None:
        self._file = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._file, TUNSETIFF, struct.pack("=16sH22x", b"tun0", IFF_TUN | IFF_NO_PI))
        if hatype is not None:
            fcntl.ioctl(self._file, TUNSETLINK, hatype)
        subprocess.run(["ip", "link", "set", "tun0", "up"], check=True)

    def write(self, packet: bytes) -> None:
        assert os.write(self._file, packet) == len(packet)

    def __enter__(self) -> Tun:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


# ---- libpcap's handle on all interfaces ----

SLL, SLL2 = 113, 276


class _Program(Structure):
    """`struct bpf_program`."""

    _fields_ = (("length", c_uint32), ("instructions", c_char_p))


class _Header(Structure):
    """`struct pcap_pkthdr`."""

    _fields_ = (("seconds", c_long), ("fraction", c_long), ("captured", c_uint32), ("length", c_uint32))


libpcap.pcap_create.restype = c_void_p
libpcap.pcap_create.argtypes = [c_char_p, c_char_p]
libpcap.pcap_geterr.restype = c_char_p
libpcap.pcap_geterr.argtypes = [c_void_p]
for _name in ("snaplen", "timeout", "immediate_mode", "buffer_size", "datalink"):
    getattr(libpcap, f"pcap_set_{_name}").argtypes = [c_void_p, c_int]
libpcap.pcap_setdirection.argtypes = [c_void_p, c_int]
libpcap.pcap_setnonblock.argtypes = [c_void_p, c_int, c_char_p]
libpcap.pcap_setfilter.argtypes = [c_void_p, POINTER(_Program)]
libpcap.pcap_next_ex.argtypes = [c_void_p, POINTER(POINTER(_Header)), POINTER(POINTER(c_ubyte))]
for _name in ("activate", "fileno", "close"):
    getattr(libpcap, f"pcap_{_name}").argtypes = [c_void_p]

PCAP_D_IN = 1


def cooked(frame: bytes, linktype: int) -> bytes:
    """A frame, as a live interface shows it, behind the header that a filter on a cooked handle sees; the interface has number 0.

    The protocol is that of the packet in the kernel, which makes one up for an 802.3 frame (net/ethernet/eth.c, eth_type_trans). What
    libpcap delivers can have another: after the filter it puts the tag back (LINUX_SLL), and newer kernels look behind tags that are
    left (net/packet/af_packet.c, vlan_get_protocol_dgram).
    """
    destination, source, protocol, payload = frame[:6], frame[6:12], frame[12:14], frame[14:]
    if protocol < b"\x06":
        protocol = b"\0\1" if payload[:2] == b"\xff\xff" else b"\0\4"
    kind = 1 if destination == b"\xff" * 6 else 2 if destination[0] & 1 else 3
    if linktype == SLL:
        return struct.pack("!HHH", kind, 1, 6) + source + bytes(2) + protocol + payload
    return protocol + struct.pack("!HIHBB", 0, 0, 1, kind, 6) + source + bytes(2) + payload


class AnyHandle(Tap):
    """libpcap's `any` in the namespace, with a cooked link type, for what comes in. `received` are packets as libpcap gives them."""

    def __init__(self, linktype: int, instructions: Sequence[Instruction] | None):
        self.error = create_string_buffer(256)
        self.pcap = libpcap.pcap_create(b"any", self.error)
        assert self.pcap, self.error.value
        for name, value in (("snaplen", LONGEST + 20), ("immediate_mode", 1), ("buffer_size", BUFFER)):
            self.call(f"set_{name}", value)
        self.call("activate")
        self.call("set_datalink", linktype)
        self.call("setdirection", PCAP_D_IN)
        self.call("setnonblock", 1, self.error)
        if instructions is not None:
            self.call("setfilter", byref(_Program(len(instructions), packed(instructions))))
        self.received = []
        self.is_open = True

    def call(self, name: str, *arguments: object) -> int:
        result = int(getattr(libpcap, f"pcap_{name}")(self.pcap, *arguments))
        assert result >= 0, (name, result, libpcap.pcap_geterr(self.pcap))
        return result

    def filter_length(self) -> int:
        """The instructions of the filter in the kernel; 0 where libpcap runs it itself."""
        count = c_int(0)
        assert libc.getsockopt(self.call("fileno"), socket.SOL_SOCKET, SO_GET_FILTER, None, byref(count)) == 0
        return count.value

    def drain(self) -> bool:
        marked = False
        header, data = POINTER(_Header)(), POINTER(c_ubyte)()
        while self.call("next_ex", byref(header), byref(data)) == 1:
            packet = string_at(data, header.contents.captured)
            if packet.endswith(MARKER[14:]):
                marked = True
            else:
                self.received.append(packet)
        return marked

    def close(self) -> None:
        libpcap.pcap_close(self.pcap)
        self.is_open = False
