"""Sockets as filters see them: what a descriptor is, the filter that it has, and emptying its queue.

In:  the number of a descriptor, which stays the caller's: nothing here opens or closes it, or changes whether it blocks.
Out: `Sight`, what the socket is; and the calls of Linux that set, read and remove a filter (socket(7), packet(7)). They raise `OSError`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

#: include/uapi/asm-generic/socket.h
_SO_ATTACH_FILTER, _SO_DETACH_FILTER, _SO_GET_FILTER = 26, 27, 26

#: include/uapi/linux/if_packet.h
_SOL_PACKET, _PACKET_VERSION = 263, 10

#: `struct sockaddr_ll` as far as it is needed: family, protocol, interface index, ARPHRD type; and the request for an interface's name.
_SOCKADDR_LL, _SIOCGIFNAME = "=HHiH10x", 0x8910

#: How long a `struct sock_filter` is, and how many a socket takes at most (BPF_MAXINSNS).
_INSTRUCTION, _MOST_INSTRUCTIONS = 8, 4096

#: How many packets are taken from a queue before it is asked again who filters it.
_DRAINED_AT_ONCE = 4096

#: The system call membarrier(2) by machine (arch/*/*/syscall*.tbl; asm-generic for the rest), and MEMBARRIER_CMD_GLOBAL.
_MEMBARRIER = {"x86_64": 324, "i686": 375, "armv7l": 389, "ppc64le": 365, "s390x": 356, "aarch64": 283, "riscv64": 283, "loongarch64": 283}
_MEMBARRIER_CMD_GLOBAL = 1


@dataclass(frozen=True, slots=True)
class Sight:
    """What a socket is: family, type and protocol; and of a packet socket the interface that it is bound to, "" if to none, with its
    ARPHRD type (include/uapi/linux/if_arp.h), and whether it has a ring buffer, which only its owner can read.
    """

    family: int
    type: int
    protocol: int
    interface: str = ""
    hatype: int = 0
    ring: bool = False

    def __str__(self) -> str:
        kind: dict[int, str] = {
            socket.SOCK_RAW: "packet socket",
            socket.SOCK_DGRAM: "packet socket without link-layer headers (SOCK_DGRAM)",
        }
        if self.family == socket.AF_PACKET and self.type in kind:
            return f"{kind[self.type]} on {self.interface or 'all interfaces'}"
        return f"socket of {_name(socket.AddressFamily, self.family)}, {_name(socket.SocketKind, self.type)}"


def _name(kind: Any, number: int) -> str:
    try:
        return str(kind(number).name)
    except ValueError:
        return f"{'family' if kind is socket.AddressFamily else 'type'} {number}"


def sight(descriptor: int) -> Sight:
    """What the socket is. Raises `OSError`, with ENOTSOCK where it is none."""
    family, type_, protocol = (
        struct.unpack("=i", _getsockopt(descriptor, socket.SOL_SOCKET, option, 4))[0]
        for option in (socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_PROTOCOL)
    )
    if family != socket.AF_PACKET or type_ not in (socket.SOCK_RAW, socket.SOCK_DGRAM):
        return Sight(family, type_, protocol)
    address, length = ctypes.create_string_buffer(32), ctypes.c_uint32(32)
    _check(_libc().getsockname(descriptor, address, ctypes.byref(length)))
    _, _, index, hatype = struct.unpack_from(_SOCKADDR_LL, address)
    return Sight(family, type_, protocol, _interface(descriptor, index), hatype, _has_ring(descriptor))


def packet_socket(descriptor: int) -> Sight | None:
    """What a packet socket is; None for every other descriptor."""
    try:
        seen = sight(descriptor)
    except OSError:
        return None
    return seen if seen.family == socket.AF_PACKET else None


def _interface(descriptor: int, index: int) -> str:
    """The name of an interface where the socket lives, which may be another network namespace; "" for none and for one that is gone."""
    import fcntl

    if index <= 0:
        return ""
    try:
        request = fcntl.ioctl(descriptor, _SIOCGIFNAME, struct.pack("=16si20x", b"", index))
    except OSError:
        return ""
    return os.fsdecode(request[:16].rstrip(b"\0"))


def _has_ring(descriptor: int) -> bool:
    """Whether a packet socket has a ring buffer: then the kernel lets nobody set the ring's version (net/packet/af_packet.c)."""
    version = _getsockopt(descriptor, _SOL_PACKET, _PACKET_VERSION, 4)
    try:
        _setsockopt(descriptor, _SOL_PACKET, _PACKET_VERSION, version)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False


def identity(descriptor: int) -> tuple[int, int] | None:
    """What tells a socket from the next one that gets its number; None for a closed one."""
    try:
        status = os.fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def read_filter(descriptor: int) -> bytes:
    """The filter, an array of `struct sock_filter`; empty if there is none. Raises `OSError`, with EACCES for an eBPF program."""
    array, count = ctypes.create_string_buffer(_MOST_INSTRUCTIONS * _INSTRUCTION), ctypes.c_uint32(_MOST_INSTRUCTIONS)
    _check(_libc().getsockopt(descriptor, socket.SOL_SOCKET, _SO_GET_FILTER, array, ctypes.byref(count)))
    return array.raw[: count.value * _INSTRUCTION]


def set_filter(descriptor: int, program: bytes) -> None:
    """Put a filter in the place of the one there is, at once: no packet meets neither. If it fails, the old one stays."""
    array = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("@HP", len(program) // _INSTRUCTION, ctypes.addressof(array))
    _setsockopt(descriptor, socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def remove_filter(descriptor: int) -> None:
    """Take the filter away. That there is none is no error."""
    try:
        _setsockopt(descriptor, socket.SOL_SOCKET, _SO_DETACH_FILTER, bytes(4))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def await_filters() -> None:
    """Return when no packet is any more on its way through a filter that was replaced before.

    Filters run in RCU read-side sections. Closing a packet socket waits for those under way (net/packet/af_packet.c, packet_release), and
    so does membarrier(2), which needs no privilege (kernel/sched/membarrier.c). It takes some 15 ms.
    """
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        if platform.machine() not in _MEMBARRIER:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
        _check(_libc().syscall(_MEMBARRIER[platform.machine()], _MEMBARRIER_CMD_GLOBAL, 0, 0))


def drain(descriptor: int, rejecting: bytes) -> None:
    """Take all packets out of the queue of a socket with the filter `rejecting`, which lets none in.

    Raises `OSError`: for an error that the socket had kept for whoever reads it next (the interface is down), and with EBUSY
    where another filter is in place meanwhile.
    """
    recv, buffer = _libc().recv, ctypes.create_string_buffer(1)
    while True:
        for _ in range(_DRAINED_AT_ONCE):
            if recv(descriptor, buffer, ctypes.c_size_t(1), socket.MSG_DONTWAIT | socket.MSG_TRUNC) < 0:
                if (number := ctypes.get_errno()) in (errno.EAGAIN, errno.EWOULDBLOCK):
                    return
                if number != errno.EINTR:
                    raise OSError(number, os.strerror(number))
        if read_filter(descriptor) != rejecting:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


@lru_cache(1)
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _getsockopt(descriptor: int, level: int, option: int, size: int) -> bytes:
    value, length = ctypes.create_string_buffer(size), ctypes.c_uint32(size)
    _check(_libc().getsockopt(descriptor, level, option, value, ctypes.byref(length)))
    return value.raw[: length.value]


def _setsockopt(descriptor: int, level: int, option: int, value: bytes) -> None:
    _check(_libc().setsockopt(descriptor, level, option, value, len(value)))
