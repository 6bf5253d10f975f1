"""What runs the C that pcapext writes natively: a C compiler and dlopen. In the kernel, benchmarks/clang.py does.

In:  a C source of `compile(..., target="c")`.
Out: what its function returns for a packet.
"""

from __future__ import annotations

import ctypes
import mmap
import tempfile
from pathlib import Path

from benchmarks.clang import WARNINGS, run
from pcapext.csource import CSource

_libc = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Memory with a page behind it that nobody can read: there, packets end."""

    SIZE = 1 << 18

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self.SIZE + mmap.PAGESIZE)
        self.end = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) + self.SIZE
        if _libc.mprotect(ctypes.c_void_p(self.end), mmap.PAGESIZE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")


_GUARDED = Guarded()


class Native:
    """The function, compiled by a C compiler and loaded into this process."""

    def __init__(self, source: CSource, *compiler: str):
        with tempfile.TemporaryDirectory() as folder:
            file, library = Path(folder, "filter.c"), Path(folder, "filter.so")
            file.write_text(source.text)
            run(*(compiler or ("cc", "-std=c99", "-O1")), *WARNINGS, "-shared", "-fPIC", "-o", library, file)
            self.library = ctypes.CDLL(str(library))
        self._filter = self.library.filter
        self._filter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
        self._filter.restype = ctypes.c_uint32

    def __call__(self, data: bytes, wirelen: int) -> int:
        end = _GUARDED.end
        ctypes.memmove(end - len(data), data, len(data))
        return int(self._filter(end - len(data), end, wirelen))
