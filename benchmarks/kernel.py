"""How long a program takes for a packet on packet sockets of the running kernel, the only place where a classic program can be timed.

It is attached to many sockets at a time, each of which sees every frame that is sent over the loopback interface of a network
namespace twice. It takes root.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack

from pcapext import Program
from pcapext.bpf_syscall import attach_descriptor, load
from pcapext.ebpf import EbpfProgram

#: How many sockets there are, how many packets are sent to be timed together, and how often that is done.
SOCKETS, SENT, ROUNDS = 200, 50, 7

_CLONE_NEWNET, _SIOCSIFFLAGS, _UP, _SO_ATTACH_FILTER, _EVERY_PROTOCOL = 0x40000000, 0x8914, 0x41, 26, 3


class Taps:
    """Many packet sockets on the loopback interface of a network namespace, which belongs to the thread that makes them."""

    def __init__(self, stack: ExitStack):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise SystemExit(f"this benchmark takes root: {os.strerror(ctypes.get_errno())}")
        with socket.socket() as sock:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", _UP, b""))
        self.taps = [stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)) for _ in range(SOCKETS)]
        self.sender = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        for sock in (*self.taps, self.sender):
            sock.bind(("lo", _EVERY_PROTOCOL if sock is not self.sender else 0))

    def time(self, program: Program | EbpfProgram, packet: bytes) -> float:
        """The least nanoseconds that a packet took a socket with the program."""
        with ExitStack() as stack:
            attach = _attacher(program, stack)
            for tap in self.taps:
                attach(tap)
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter_ns()
            for _ in range(SENT):
                self.sender.send(packet)
            times.append(time.perf_counter_ns() - start)
        return min(times) / SENT / SOCKETS / 2


def _attacher(program: Program | EbpfProgram, stack: ExitStack) -> Callable[[socket.socket], None]:
    """What attaches a program to a socket, as long as the stack is open."""
    if isinstance(program, EbpfProgram):
        descriptor = load(program)
        stack.callback(os.close, descriptor)
        return lambda sock: attach_descriptor(sock.fileno(), descriptor)
    code = ctypes.create_string_buffer(bytes(program))
    array = struct.pack("@HP", len(program), ctypes.addressof(code))
    # The array is nothing without the code, which must be held.
    return lambda sock: sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, array) if code else None
