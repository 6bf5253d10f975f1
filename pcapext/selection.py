"""Selection: which records of a capture a filter accepts.

In:  a filter: an expression, or a `Program`; batches of records.
Out: for each batch the indexes of the records that are accepted.

An expression is compiled for each link type whose packets are met, and not before. Where packets begin with an address family in the
byte order of the file, it is compiled for that order too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from pcapext import pcap_bridge
from pcapext.bpf import RET_K, U32, Instruction, Program
from pcapext.compiler import compile_to_run, lower_program
from pcapext.engine import Matcher, allocate, ffi, lib
from pcapext.errors import FilterError, ProgramError
from pcapext.formats import NATIVE
from pcapext.records import Batch, Layout

_ETHERNET = 1
#: The program that accepts everything.
_ACCEPT = (Instruction(RET_K, k=U32),)


class Filter:
    """What to select. Threads may share it.

    `source` is an expression, compiled with `options`, those of `compile`; or a program, for packets of its own link type, unless
    `adapt` says to run it on those of any; or None, which accepts everything.
    """

    def __init__(self, source: str | Program | None, *, adapt: bool = False, **options: Any) -> None:
        self.source = source
        self._adapt = adapt
        self._options = options
        self._lock = Lock()
        self._matchers: dict[tuple[int, str], Matcher] = {}

    def instructions(self, linktype: int, byteorder: str) -> tuple[Instruction, ...]:
        """The instructions for packets of a link type, of a file in a byte order. Raises what `compile` raises."""
        match self.source:
            case None:
                return _ACCEPT
            case str():
                made = compile_to_run(self.source, linktype, byteorder, **self._options)
            case Program():
                program = replace(self.source, linktype=linktype) if self._adapt else self.source
                if program.linktype != linktype:
                    raise ProgramError(f"a packet of link type {_shown(linktype)}, and the filter is for {_shown(program.linktype)}")
                made = lower_program(program)
        for instruction in made:
            if instruction.ancillary:
                raise FilterError(f"the filter asks for [{instruction.ancillary.name}], which no capture file holds")
        return made

    def check(self) -> None:
        """Raise what is wrong with the filter, if no packet has been there yet to compile it for."""
        if not self._matchers:
            self.matcher(self.source.linktype if isinstance(self.source, Program) else _ETHERNET, NATIVE)

    def matcher(self, linktype: int, byteorder: str) -> Matcher:
        """The filter for packets of a link type, of a file or a section in a byte order."""
        kind = linktype, byteorder if linktype in pcap_bridge.LOOPBACK_LINKTYPES else NATIVE
        with self._lock:  # so that two threads do not do the same work
            if kind not in self._matchers:
                self._matchers[kind] = Matcher(self.instructions(*kind))
            return self._matchers[kind]


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """The records of a batch that were selected: `length` of `indexes`; `packets` are how many of them are packets."""

    batch: Batch
    indexes: Any
    length: int
    packets: int

    def first(self, packets: int) -> Selected:
        """The same up to and with so many packets."""
        records, seen = self.batch.records, 0
        for length in range(self.length):
            if seen == packets:
                return Selected(self.batch, self.indexes, length, seen)
            seen += records[self.indexes[length]].interface != lib.NOT_A_PACKET
        return self


class Selector:
    """A filter and memory for what it selects of a chunk. For one thread.

    With `blocks`, blocks of pcapng without packets are selected too.
    """

    def __init__(self, filter: Filter, blocks: bool) -> None:
        self._filter = filter
        self._blocks = blocks
        self._layout: Layout | None = None
        self._programs: Any = None
        self._indexes: Any = None
        self._length = ffi.new("uint32_t *")

    def select(self, batch: Batch) -> Selected:
        """What the filter accepts of a batch. It is good until the next batch with the same first record."""
        if batch.layout is not self._layout:
            self._programs = ffi.new("struct program *[]", len(batch.layout.interfaces) or 1)
            self._layout = batch.layout
        if self._indexes is None:
            self._indexes = allocate("uint32_t[]", batch.chunk.capacity)
        indexes = self._indexes + batch.first
        while (packets := self._match(batch, indexes)) == lib.NO_PROGRAM:
            interface = batch.records[self._length[0]].interface
            linktype = batch.layout.interfaces[interface].linktype
            self._programs[interface] = self._filter.matcher(linktype, batch.layout.byteorder).pointer
        if packets == lib.STOPPED:
            raise ProgramError("the program was stopped: it jumps backwards and does not end")
        return Selected(batch, indexes, self._length[0], packets)

    def _match(self, batch: Batch, indexes: Any) -> int:
        found: int = lib.match_records(
            self._programs, batch.chunk.buffer, batch.records, batch.count, self._blocks, indexes, self._length, ffi.NULL
        )
        return found


def _shown(linktype: int) -> str:
    return pcap_bridge.linktype_name(linktype) or str(linktype)
