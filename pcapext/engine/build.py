"""How the engine is built: setup.py names `builder`, and pip does the rest.

In:  the C files beside this one. What Python sees of them stands between two marks in engine.h.
Out: the extension module `pcapext.engine._engine`, for the stable interface of Python: one build serves every version.
"""

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
SOURCES = ("walk.c", "program.c", "records.c", "pseudo.c", "write.c")


def declarations() -> str:
    """What Python sees of engine.h. The values of constants are left to the compiler."""
    text = (HERE / "engine.h").read_text()
    seen = text.partition("/* For Python: begin */")[2].partition("/* For Python: end */")[0]
    return re.sub(r"^(#define \w+) .*", r"\1 ...", seen, flags=re.MULTILINE)


builder = FFI()
builder.cdef(declarations())
builder.set_source(
    "pcapext.engine._engine",
    '#include "engine.h"',
    sources=[f"pcapext/engine/{name}" for name in SOURCES],  # from where setup.py stands, as setuptools wants it
    include_dirs=["pcapext/engine"],
    depends=["pcapext/engine/engine.h"],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
