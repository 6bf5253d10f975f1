"""The engine: programs made ready to run in C, and the C functions that find and write the records of captures.

In:  instructions, and the table of the walk that their flow keys come from (engine/walk.py makes it).
Out: a `Matcher`; `matcher_of` makes one with the table that it needs. `ffi` and `lib` are cffi's; engine.h says what each function does.

What a program does is what `pcapext.machine` says. No call holds Python's lock, so that threads run side by side.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pcapext.bpf import U32, Instruction
from pcapext.errors import PcapextError, ProgramError
from pcapext.flowkeys import WALKED_K

try:
    from pcapext.engine import _engine  # type: ignore[attr-defined]
except ImportError as error:
    raise PcapextError(
        f"the engine of pcapext is not built ({error}); with a C compiler and Python's headers (on Debian: gcc, libc6-dev and "
        "python3-dev), 'pip install pcapext' or, in its sources, 'pip install -e .' builds it"
    ) from None

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pcapext.encapsulation import WalkSettings

ffi: Any = _engine.ffi
lib: Any = _engine.lib

STOPPED_WORDS = "the program was stopped: it jumps backwards and does not end"

#: Memory that is not filled with zeros first.
allocate = ffi.new_allocator(should_clear_after_alloc=False)


class Matcher:
    """A program in C. `pointer` is the `struct program *`, good as long as the matcher is.

    `walk` is the table of the walk, a `struct walk_table *`. Without one, loads of flow keys reject the packet, as those of other
    ancillary words do.

    >>> from pcapext.bpf import LD_B_ABS, RET_A
    >>> matcher = Matcher((Instruction(LD_B_ABS, k=2), Instruction(RET_A)))
    >>> matcher.run(bytes([1, 2, 3])), matcher.run(bytes([1, 2]))
    (3, 0)
    """

    __slots__ = ("_counts", "_walk", "instructions", "pointer")

    #: For whoever has bytes and counts nanoseconds: takes `pointer`, the bytes of a packet that was captured whole, and their number.
    run_whole = lib.program_run_whole

    def __init__(self, instructions: Sequence[Instruction], walk: Any = ffi.NULL) -> None:
        octets = b"".join(struct.pack("=HBBI", i.code, i.jt, i.jf, i.k) for i in instructions)
        fault, index = ffi.new("int *"), ffi.new("uint32_t *")
        pointer = lib.program_new(ffi.from_buffer("struct instruction[]", octets), len(instructions), walk, fault, index)
        if not pointer:
            if fault[0] == lib.FAULT_MEMORY:
                raise MemoryError
            raise ProgramError(f"instruction {index[0]}: the engine cannot run it")
        self.pointer = ffi.gc(pointer, lib.program_free)
        self.instructions = tuple(instructions)
        self._walk = walk  # which the program points to
        self._counts: Any = None

    def run(self, packet: Buffer, wirelen: int | None = None) -> int:
        """What the program returns for `packet`, any buffer of captured bytes, which had `wirelen` bytes on the wire."""
        value: int = lib.program_run(self.pointer, *_arguments(packet, wirelen))
        if value < 0:
            raise ProgramError(STOPPED_WORDS)
        return value

    @property
    def counters(self) -> Any:
        """A `uint64_t` for each instruction, for whoever counts how often it runs. At first they are 0."""
        if self._counts is None:
            self._counts = ffi.new("uint64_t[]", len(self.instructions))
        return self._counts

    @property
    def counts(self) -> list[int]:
        """What was counted: how often each instruction ran."""
        return ffi.unpack(self.counters, len(self.instructions))  # type: ignore[no-any-return]

    def count(self, packet: Buffer, wirelen: int | None = None) -> list[int]:
        """How often each instruction runs for a packet."""
        counts = ffi.new("uint64_t[]", len(self.instructions))
        if lib.program_run_counting(self.pointer, *_arguments(packet, wirelen), counts) < 0:
            raise ProgramError(STOPPED_WORDS)
        return ffi.unpack(counts, len(self.instructions))  # type: ignore[no-any-return]


def matcher_of(instructions: Sequence[Instruction], linktype: int, settings: WalkSettings | None = None) -> Matcher:
    """The matcher of instructions that may load flow keys, for packets of a link type, with `settings` of the walk or the usual ones.

    Raises `ProgramError` where they load some and the walk cannot start at the link type.
    """
    if not any(instruction.ancillary and instruction.k in WALKED_K for instruction in instructions):
        return Matcher(instructions)
    # Here, since most programs do without the table of encapsulations.
    from pcapext.encapsulation import LINK_LAYER_BY_NUMBER
    from pcapext.engine.walk import walk_table
    from pcapext.pcap_bridge import shown_linktype

    if linktype not in LINK_LAYER_BY_NUMBER:
        raise ProgramError(f"the program loads flow keys, and there are none on link type {shown_linktype(linktype)}")
    return Matcher(instructions, walk_table(linktype, settings))


def _arguments(packet: Buffer, wirelen: int | None) -> tuple[Any, int, int]:
    """The bytes of a packet, how many there are, and how many there were on the wire."""
    data: Any = packet
    # What is bytes already need not be asked for its buffer, which takes as long as a short program.
    if type(packet) is not bytes:
        view = memoryview(packet)
        data = ffi.from_buffer("uint8_t[]", view if view.c_contiguous else bytes(view))
    length = len(data)
    if wirelen is None:
        wirelen = length
    if length > U32 or not 0 <= wirelen <= U32:
        raise ValueError(f"wirelen {wirelen} is out of range, expected 0 to {U32}")
    return data, length, wirelen
