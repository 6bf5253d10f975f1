"""bpf(2): load an eBPF program into the kernel, attach it to a socket, run it on a packet of ours.

In:  an `EbpfProgram`, descriptors.
Out: the descriptor of a loaded program, which whoever asked for it closes. A socket that it is attached to keeps it without.

The system call is made by ctypes: there is nothing that it needs of libbpf. Commands, structs and numbers are those of
include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pcapext.errors import LoadError

if TYPE_CHECKING:
    from pcapext.ebpf import EbpfProgram

_PROG_LOAD, _PROG_TEST_RUN, _SOCKET_FILTER = 5, 10, 1
_SOL_SOCKET, _SO_ATTACH_BPF = 1, 50

#: bpf(2) by machine; where it is not named, its number is that of include/uapi/asm-generic/unistd.h.
_NUMBERS = {"x86_64": 321, "i386": 357, "i686": 357, "armv7l": 386, "ppc64": 361, "ppc64le": 361, "s390x": 351}
_GENERIC = 280

#: How long the verifier's log may get: at first, and at most.
_LOG, _LONGEST_LOG = 1 << 20, 1 << 26

#: How many lines of the log a message has.
_LINES = 6

#: The system calls of the process itself.
_C = ctypes.CDLL(None, use_errno=True)


def load(program: EbpfProgram) -> int:
    """Load a program; its descriptor, which is closed by `os.close`.

    Raises `LoadError` where the kernel does not take it: it has no eBPF or one that is too old, the process may not, or the verifier
    refuses the program, whose log the error has then.
    """
    made, error, log = _load(program, 0)
    size = _LOG
    while made < 0 and error not in (errno.ENOSYS, errno.ENOMEM):
        # Once more for the log: with one, a load takes longer.
        again, reason, log = _load(program, size)
        if again >= 0:
            return again
        if reason != errno.ENOSPC or size >= _LONGEST_LOG:
            break
        size *= 4
    if made < 0:
        raise LoadError(_load_message(error, log), log)
    return made


def _load(program: EbpfProgram, log_size: int, level: int = 1) -> tuple[int, int, str]:
    """Ask the kernel to load a program: the descriptor or a negative number, the error, and the verifier's log."""
    code = ctypes.create_string_buffer(bytes(program))
    licence = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(max(log_size, 1))
    place = ctypes.addressof(log) if log_size else 0
    head = struct.pack("=IIQQ", _SOCKET_FILTER, len(program), ctypes.addressof(code), ctypes.addressof(licence))
    made, error, _ = _bpf(_PROG_LOAD, head + struct.pack("=IIQII", level if log_size else 0, log_size, place, 0, 0))
    return made, error, log.value.decode(errors="replace")


def attach_descriptor(sock: int, program: int) -> None:
    """Attach a loaded program to a socket, instead of the filter that it has. Both are descriptors, and stay open.

    Raises `LoadError` where one is not what it should be.
    """
    number = ctypes.c_int(program)
    if _C.setsockopt(sock, _SOL_SOCKET, _SO_ATTACH_BPF, ctypes.byref(number), ctypes.sizeof(number)) == 0:
        return
    error = ctypes.get_errno()
    match error:
        case errno.ENOTSOCK:
            message = f"descriptor {sock} is not a socket"
        case errno.EBADF:
            message = f"descriptor {program if _is_open(sock) else sock} is not open"
        case errno.EINVAL:
            message = f"descriptor {program} is not an eBPF socket filter"
        case errno.EPERM:
            message = f"the filter of socket {sock} is locked"
        case _:
            message = f"the program cannot be attached to socket {sock}: {os.strerror(error)}"
    raise LoadError(message)


@dataclass(frozen=True, slots=True)
class KernelRun:
    """What a loaded program did with a packet: what it returned, how many nanoseconds a run took, the context as it left it."""

    value: int
    nanoseconds: int
    context: bytes


#: The bytes of struct __sk_buff that a test run is given and gives back: all up to `hwtstamp`.
_CONTEXT_SIZE = 192


def run_in_kernel(program: int, packet: bytes, repeat: int = 1, protocol: int = 0, mark: int = 0) -> KernelRun:
    """Run a loaded program on bytes that it sees from the first to the last, so many times (BPF_PROG_TEST_RUN).

    `protocol` and `mark` are the EtherType and the mark that the context has of the packet.

    Raises `LoadError` where the kernel does not do so: it takes no packet of 0 bytes, and none that is longer than a page.
    """
    # The kernel takes an Ethernet header off, for its EtherType, and shows a socket filter what stands behind it.
    frame = bytes(12) + protocol.to_bytes(2, "big") + packet
    data = ctypes.create_string_buffer(frame, len(frame))
    given = ctypes.create_string_buffer(struct.pack("=8xI", mark).ljust(_CONTEXT_SIZE, b"\0"), _CONTEXT_SIZE)
    context = ctypes.create_string_buffer(_CONTEXT_SIZE)
    sizes = struct.pack("=IIII", program, 0, len(data), 0)
    contexts = struct.pack("=IIQQ", len(given), len(context), ctypes.addressof(given), ctypes.addressof(context))
    result, error, attributes = _bpf(_PROG_TEST_RUN, sizes + struct.pack("=QQII", ctypes.addressof(data), 0, repeat, 0) + contexts)
    if result < 0:
        raise LoadError(f"the program cannot be run on {len(packet)} bytes: {os.strerror(error)}")
    value, nanoseconds = struct.unpack_from("=I", attributes, 4)[0], struct.unpack_from("=I", attributes, 36)[0]
    return KernelRun(value, nanoseconds, context.raw)


def _bpf(command: int, attributes: bytes) -> tuple[int, int, bytes]:
    """Make the system call: its result, the error if that is negative, and the attributes as it left them."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    _C.syscall.restype = ctypes.c_long
    result = _C.syscall(ctypes.c_long(_NUMBERS.get(platform.machine(), _GENERIC)), command, buffer, len(attributes))
    return int(result), ctypes.get_errno(), buffer.raw


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _load_message(error: int, log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    shown = "".join(f"\n  {line}" for line in lines[-_LINES:])
    match error:
        case errno.ENOSYS:
            return "this kernel has no eBPF: it lacks bpf(2)"
        case errno.EPERM | errno.EACCES if not lines or "CAP_" in log:
            return f"no permission to load an eBPF program: it takes CAP_BPF, before Linux 5.8 CAP_SYS_ADMIN{_unprivileged()}{shown}"
        case errno.EINVAL if not lines:
            return "this kernel does not take eBPF programs of this kind: it is too old"
    if "unknown opcode e5" in log or "invalid BPF_JMP opcode" in log:
        return f"this kernel is too old: it has no may_goto, which came with Linux 6.9{shown}"
    if lines:
        return f"the kernel's verifier refused the program: {os.strerror(error)}{shown}"
    return f"the kernel did not take the program: {os.strerror(error)}"


def _unprivileged() -> str:
    """What the kernel lets processes without capabilities do."""
    try:
        with open("/proc/sys/kernel/unprivileged_bpf_disabled") as file:
            return f" (kernel.unprivileged_bpf_disabled is {file.read().strip()})"
    except OSError:
        return ""
