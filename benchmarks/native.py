"""How fast filters run as native code, beside the engine's interpreter: nothing but matching, one core, packets in memory.

In:  the packets that the captures of captures.py are made of.
Out: benchmarks.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pcapext
from benchmarks import EXTENDED, LINKTYPE, PLAIN, SNAPLEN, Contestants, process, race
from benchmarks.captures import FOLDER, PLAIN_MIX, POOL, TUNNELS_MIX, Capture
from pcapext import engine
from pcapext.engine import ffi, lib, matcher_of

#: How often all packets are matched.
TIMES = 20


class Packets:
    """Packets, one behind the other, with records that say where they are."""

    def __init__(self, pool: Sequence[bytes]):
        self.number = len(pool)
        self.buffer = b"".join(pool)
        self.records = ffi.new("struct record[]", len(pool))
        place = 0
        for record, packet in zip(self.records, pool, strict=True):
            record.data, record.caplen, record.wirelen = place, len(packet), len(packet)
            place += len(packet)
        self.selected = ffi.new("uint32_t[]", len(pool))

    def by_engine(self, expression: str, target: str = "flowkeys") -> Callable[[], int]:
        program = pcapext.compile(expression, linktype=LINKTYPE, snaplen=SNAPLEN, target=target)
        matcher = matcher_of(program.instructions, program.linktype)
        programs, length = ffi.new("struct program *[]", [matcher.pointer]), ffi.new("uint32_t *")

        def run() -> int:
            matching = 0
            for _ in range(TIMES):
                # `matcher` owns the program.
                assert matcher.pointer == programs[0]
                matching += lib.match_records(programs, self.buffer, self.records, self.number, 0, self.selected, length, ffi.NULL)
            return matching

        return run

    def by_native(self, expression: str, compiler: str) -> Callable[[], int]:
        count = compiled(expression, compiler)
        address = int(ffi.cast("uintptr_t", self.records))
        return lambda: sum(count(self.buffer, address, self.number) for _ in range(TIMES))


def compiled(expression: str, compiler: str) -> Any:
    """The function of native.c, with this filter."""
    folder = FOLDER / "native" / f"{compiler}-{expression.replace(' ', '-')}"
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "filter.c"
    written.write_text(pcapext.compile(expression, target="c", linktype=LINKTYPE, snaplen=SNAPLEN).text)
    source, library = Path(__file__).with_suffix(".c"), folder / "native.so"
    includes = f"-I{Path(engine.__file__).parent}"
    process(compiler, "-O2", "-shared", "-fPIC", includes, "-o", str(library), str(source), str(written))()
    count = ctypes.CDLL(str(library)).count
    count.argtypes, count.restype = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint32], ctypes.c_uint32
    return count


def contest(capture: Capture, expression: str) -> Contestants:
    packets = Packets(capture.pool(Random(0)))
    contestants: dict[str, Callable[[], object]] = {f"the engine, '{expression}'": packets.by_engine(expression)}
    if expression != PLAIN:
        contestants[f"the engine, classic, '{expression}'"] = packets.by_engine(expression, "classic")
    return contestants | {f"native C, {compiler} -O2": packets.by_native(expression, compiler) for compiler in ("gcc", "clang")}


@race(rounds=31, each=POOL * TIMES)
def native_plain() -> Contestants:
    return contest(PLAIN_MIX, PLAIN)


@race(rounds=31, each=POOL * TIMES)
def native_inner() -> Contestants:
    return contest(PLAIN_MIX, EXTENDED)


@race(rounds=31, each=POOL * TIMES)
def native_tunnels() -> Contestants:
    return contest(TUNNELS_MIX, EXTENDED)
