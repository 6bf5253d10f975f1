"""How often the program of a filter calls the dissector for a packet.

In:  an expression, a target.
Out: what counts the calls for a packet: the machine by itself; of C, a build whose walk counts; of eBPF, a program that counts in its
     context, in the running kernel, which takes root.

A classic program calls nothing. Its walk is written out once, behind every way to it, and no jump goes back (pcapext/lower.py).
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

from benchmarks.clang import run
from pcapext import compile, ebpf_select, machine
from pcapext.bpf_syscall import load, run_in_kernel

#: The targets whose programs call a dissector.
TARGETS = ("flowkeys", "keys", "c", "ebpf")

#: Where the numbers of `cb` begin in the context (struct __sk_buff, include/uapi/linux/bpf.h).
_CB = 48

_WALK = "static void walk(const uint8_t *data, const uint8_t *data_end, struct found *found)\n{\n"

#: What counts the calls for a packet.
Counter = Callable[[bytes], int]


def counter(stack: ExitStack, expression: str, target: str, optimize: bool = True, netmask: int | None = None) -> Counter:
    """What counts, as long as the stack is open, the calls of the dissector for packets of link type EN10MB."""
    match target:
        case "c":
            return _in_c(compile(expression, target="c", optimize=optimize, netmask=netmask).text)
        case "ebpf":
            with patch.object(ebpf_select, "select", partial(ebpf_select.select, counting=True)):
                descriptor = load(compile(expression, target="ebpf", optimize=optimize, netmask=netmask))
            stack.callback(os.close, descriptor)
            return lambda packet: int.from_bytes(run_in_kernel(descriptor, packet).context[_CB : _CB + 4], sys.byteorder)
    program = compile(expression, target=target, optimize=optimize, netmask=netmask)
    return lambda packet: machine.run(program, packet).dissected


def _in_c(text: str) -> Counter:
    if "struct found" not in text:
        return lambda packet: 0
    assert text.count(_WALK) == 1
    with tempfile.TemporaryDirectory() as folder:
        file, library = Path(folder, "filter.c"), Path(folder, "filter.so")
        file.write_text(text.replace(_WALK, f"extern uint32_t walks;\nuint32_t walks;\n{_WALK}    walks++;\n"))
        run("cc", "-O0", "-shared", "-fPIC", "-o", library, file)
        loaded = ctypes.CDLL(str(library))
    walks = ctypes.c_uint32.in_dll(loaded, "walks")
    loaded.filter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]

    def count(packet: bytes) -> int:
        data = ctypes.create_string_buffer(packet, max(len(packet), 1))
        walks.value = 0
        loaded.filter(ctypes.addressof(data), ctypes.addressof(data) + len(packet), len(packet))
        return walks.value

    return count
