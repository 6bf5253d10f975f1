"""What filters cost in the running kernel, a packet: on packet sockets, and by the kernel's own test runs.

A classic program can only be run on sockets. So all are measured there: on many sockets at a time, each of which sees every frame that
is sent over the loopback interface of a network namespace twice. What a program that rejects at once takes is taken off. The filters ask
for a port that no packet has: what they accept would be copied. It takes root.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pcapext
from benchmarks import reporting
from benchmarks.frames import frames
from pcapext import Program
from pcapext.bpf import RET_K, Instruction
from pcapext.bpf_syscall import attach_descriptor, load, run_in_kernel
from pcapext.ebpf import EbpfProgram

#: A port that no packet has.
PORT = 81

#: The packets: plain, in one tunnel, in three.
PACKETS = ("tcp", "vxlan", "deep")

SOCKETS, SENT, ROUNDS, RUNS = 200, 50, 7, 200_000

_CLONE_NEWNET, _SIOCSIFFLAGS, _UP, _SO_ATTACH_FILTER, _EVERY_PROTOCOL = 0x40000000, 0x8914, 0x41, 26, 3


def programs() -> dict[str, Program | EbpfProgram]:
    return {
        f"classic: 'tcp port {PORT}'": pcapext.compile(f"tcp port {PORT}", target="classic"),
        f"classic, unrolled: 'inner tcp port {PORT}'": pcapext.compile(f"inner tcp port {PORT}", target="classic"),
        f"ebpf: 'tcp port {PORT}'": pcapext.compile(f"tcp port {PORT}", target="ebpf"),
        f"ebpf: 'inner tcp port {PORT}'": pcapext.compile(f"inner tcp port {PORT}", target="ebpf"),
    }


@reporting
def ebpf() -> Iterable[str]:
    yield f"{'ebpf: ns a packet on sockets (in a test run)':<46} {'length':>6}" + "".join(f"{name:>16}" for name in PACKETS)
    packets = [frames("EN10MB")[name] for name in PACKETS]
    # The namespace goes with the thread.
    with ThreadPoolExecutor(1) as thread, ExitStack() as stack:
        taps = thread.submit(Taps, stack).result()
        nothing = [thread.submit(taps.time, Program((Instruction(RET_K),)), packet).result() for packet in packets]
        for name, program in programs().items():
            cells = []
            for packet, least in zip(packets, nothing, strict=True):
                on_sockets = thread.submit(taps.time, program, packet).result() - least
                tested = f" ({_tested(program, packet)})" if isinstance(program, EbpfProgram) else ""
                cells.append(f"{f'{on_sockets:.0f}{tested}':>16}")
            yield f"  {name:<44} {len(program):>6}" + "".join(cells)
    yield f"  a test run of 'less 1': {_tested(pcapext.compile('less 1', target='ebpf'), packets[0])} ns"


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


def _tested(program: EbpfProgram, packet: bytes) -> int:
    """The least nanoseconds of a test run, of which some are the kernel's own."""
    descriptor = load(program)
    try:
        return min(run_in_kernel(descriptor, packet, RUNS).nanoseconds for _ in range(3))
    finally:
        os.close(descriptor)
