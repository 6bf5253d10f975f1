"""pcapext compiles tcpdump's filter language, extended with the innermost headers of tunnelled packets, to BPF.

>>> import pcapext
>>> program = pcapext.compile("inner tcp port 80")
>>> print(program.dump("bytecode").split(",")[0], "instructions")
11 instructions
"""

from pcapext.bpf import Instruction, Program
from pcapext.compiler import compile
from pcapext.errors import (
    AttachError,
    AttachWarning,
    CaptureError,
    CaptureWarning,
    FilterError,
    LibpcapError,
    PcapextError,
    ProgramError,
    SettingsError,
    Span,
)

__all__ = [
    "AttachError",
    "AttachWarning",
    "Attachment",
    "CSource",
    "CaptureError",
    "CaptureWarning",
    "FilterError",
    "Instruction",
    "LibpcapError",
    "LiveCapture",
    "Packet",
    "PcapextError",
    "Program",
    "ProgramError",
    "SettingsError",
    "Span",
    "WalkSettings",
    "attach",
    "compile",
    "count",
    "filter_file",
    "open_live",
    "open_offline",
    "read_program",
]

__version__ = "0.1.0"

#: Names that load more than compiling needs, and the modules they are in.
_LAZY = {
    "Attachment": "pcapext.attaching",
    "CSource": "pcapext.csource",
    "LiveCapture": "pcapext.live",
    "Packet": "pcapext.capture",
    "WalkSettings": "pcapext.encapsulation",
    "attach": "pcapext.attaching",
    "count": "pcapext.filtering",
    "filter_file": "pcapext.filtering",
    "open_live": "pcapext.live",
    "open_offline": "pcapext.capture",
    "read_program": "pcapext.textforms",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pcapext' has no attribute {name!r}")
