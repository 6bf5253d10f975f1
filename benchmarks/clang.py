"""What clang makes of the C that pcapext writes, in the running kernel: its verifier and BPF_PROG_TEST_RUN. It takes root.

In:  a C source of `compile(..., target="c")`.
Out: `InKernel`: what its function returns for a packet, as XDP or as a classifier of tc, and how long it takes.

clang's object is loaded without a library: the program's section, and behind it `.text`, where the walk is if it is called from more
than one place. The only relocations are those calls.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import tempfile
from pathlib import Path

from pcapext.csource import CSource

#: The number of bpf(2), by machine; its commands, and types of programs (include/uapi/linux/bpf.h).
BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
BPF_PROG_LOAD, BPF_PROG_TEST_RUN = 5, 10
SCHED_CLS, XDP = 3, 6

#: Program types by name, with what makes a program of the filter: its first argument, of which only what is used is told.
WRAPPERS = {
    "xdp": (XDP, "struct xdp_md { uint32_t data, data_end; }", "xdp_md"),
    "tc": (SCHED_CLS, "struct __sk_buff { uint32_t before[19], data, data_end; }", "__sk_buff"),
}

#: What BPF_PROG_TEST_RUN takes: a whole Ethernet header, and not more than a page with room before and behind it.
SHORTEST, LONGEST = 14, 3000

_libc = ctypes.CDLL(None, use_errno=True)

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


def run(*command: str | Path) -> None:
    """Run a compiler; what it says is part of the error."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


class Refused(Exception):
    """The verifier's log."""


class InKernel:
    """The function as a program of the kernel. `verified` is how many instructions the verifier looked at."""

    def __init__(self, source: CSource, kind: str = "xdp"):
        number, context, struct_name = WRAPPERS[kind]
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "filter.c").write_text(source.text)
            wrapper, compiled = Path(folder, "program.c"), Path(folder, "program.o")
            wrapper.write_text(
                f'#include "filter.c"\n{context};\n'
                f'__attribute__((section("program"), used)) int entry(struct {struct_name} *context)\n{{\n'
                "    const uint8_t *data = (const uint8_t *)(uint64_t)context->data;\n"
                "    const uint8_t *end = (const uint8_t *)(uint64_t)context->data_end;\n"
                "    return filter(data, end, end - data);\n}\n"
            )
            run("clang", "-O2", "-target", "bpf", *WARNINGS, "-c", wrapper, "-o", compiled)
            instructions = linked(compiled.read_bytes(), "program")
        self.instructions = instructions
        self.length = len(instructions) // 8
        code, license, log = (ctypes.create_string_buffer(*size) for size in ((instructions, len(instructions)), (b"GPL", 4), (1 << 20,)))
        pointers = [ctypes.addressof(buffer) for buffer in (code, license, log)]
        fields = struct.pack("=IIQQIIQ", number, self.length, *pointers[:2], 4, len(log), pointers[2])  # 4: statistics alone
        self.descriptor, errno = _bpf(BPF_PROG_LOAD, ctypes.create_string_buffer(fields.ljust(120, b"\0"), 120))
        if self.descriptor < 0:
            raise Refused(f"{os.strerror(errno)}: {log.value.decode()[-400:]}")
        self.verified = int(log.value.decode().partition("processed ")[2].split()[0])

    def __call__(self, data: bytes) -> int:
        return self.run(data)[0]

    def run(self, data: bytes, repeat: int = 1) -> tuple[int, int]:
        """What the program returns for a packet, and the nanoseconds that a run takes, so many repeated."""
        assert SHORTEST <= len(data) <= LONGEST
        packet = ctypes.create_string_buffer(data, len(data))
        fields = struct.pack("=IIIIQQII", self.descriptor, 0, len(data), 0, ctypes.addressof(packet), 0, repeat, 0)
        attributes = ctypes.create_string_buffer(fields.ljust(80, b"\0"), 80)
        result, errno = _bpf(BPF_PROG_TEST_RUN, attributes)
        if result < 0:
            raise OSError(errno, os.strerror(errno))
        value, nanoseconds = struct.unpack_from("=I", attributes.raw, 4)[0], struct.unpack_from("=I", attributes.raw, 36)[0]
        return int(value), int(nanoseconds)

    def close(self) -> None:
        os.close(self.descriptor)


def _bpf(command: int, attributes: ctypes.Array[ctypes.c_char]) -> tuple[int, int]:
    """What bpf(2) returns, and the error number."""
    return _libc.syscall(BPF, command, attributes, len(attributes)), ctypes.get_errno()


def linked(elf: bytes, name: str) -> bytes:
    """The instructions of a section of an ELF file (64 bits, little-endian), with `.text` behind them and calls to there resolved."""
    offset = struct.unpack_from("<Q", elf, 0x28)[0]
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, offset + size * index) for index in range(count)]

    def named(header: tuple[int, ...]) -> str:
        return elf[headers[names][4] + header[0] :].split(b"\0")[0].decode()

    sections = {named(header): elf[header[4] : header[4] + header[5]] for header in headers}
    program = bytearray(sections[name] + sections[".text"])
    relocations = sections.get(f".rel{name}", b"")
    text = [named(header) for header in headers].index(".text")
    assert ".rel.text" not in sections
    for at, info in struct.iter_unpack("<QQ", relocations):
        _, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", sections[".symtab"], 24 * (info >> 32))
        assert (info & 0xFFFFFFFF, section) == (10, text), "a relocation that is no call"  # R_BPF_64_32
        target = len(sections[name]) // 8 + value // 8 + struct.unpack_from("<i", program, at + 4)[0] + 1
        struct.pack_into("<i", program, at + 4, target - at // 8 - 1)
    return bytes(program)
