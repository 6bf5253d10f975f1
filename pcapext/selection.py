"""Selection: which records of a capture a filter accepts.

In:  a filter: an expression, or a `Program`; batches of records.
Out: for each batch the indexes of the records that are accepted.

An expression is compiled for each link type whose packets are met, and not before. Where packets begin with an address family in the
byte order of the file, it is compiled for that order too.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

from pcapext import pcap_bridge
from pcapext.bpf import RET_K, U32, Instruction, Program
from pcapext.compiler import REJECTS_ALL, compile_to_run, settings_of
from pcapext.engine import STOPPED_WORDS, Matcher, allocate, ffi, lib, matcher_of
from pcapext.errors import FilterError, ProgramError
from pcapext.flowkeys import WALKED_K
from pcapext.formats import NATIVE
from pcapext.records import Batch, Chunk, Early, Kept, Layout
from pcapext.slotted import dataclass, replace

if TYPE_CHECKING:
    from pcapext.encapsulation import WalkSettings

_ETHERNET = 1
#: The program that accepts everything.
_ACCEPT = (Instruction(RET_K, k=U32),)
#: The program that accepts nothing.
_REJECT = (Instruction(RET_K),)


class Filter:
    """What to select. Threads may share it.

    `source` is an expression, compiled with `options`, those of `compile`; or a program, for packets of its own link type, unless
    `adapt` says to run it on those of any; or None, which accepts everything.

    An expression that can match no packet of a link type is a `FilterError`, as in tcpdump; in a pcapng file, which may have
    packets of several link types, only where it can match none of any.
    """

    def __init__(self, source: str | Program | None, *, adapt: bool = False, **options: Any) -> None:
        self.source = source
        #: What packets are run through, by link type and byte order of the capture.
        self.matchers: dict[tuple[int, str], Matcher] = {}
        self._adapt = adapt
        self._options = options
        self._lock = Lock()
        self._rejecting: list[FilterError] = []

    @property
    def settings(self) -> WalkSettings | None:
        """The settings of the walk, None for the usual ones."""
        if isinstance(self.source, Program):
            return self.source.settings
        return settings_of(**{name: value for name, value in self._options.items() if name not in ("netmask", "optimize")})

    def matcher(self, linktype: int, layout: Layout) -> Matcher:
        """The filter for packets of a link type in a capture. Raises what `compile` raises."""
        return self.matcher_in(linktype, layout.byteorder, is_only=layout.header is not None)

    def accepts(self, linktype: int, byteorder: str, data: bytes, wirelen: int | None = None, *, is_only: bool = True) -> bool:
        """Whether it accepts one packet, as it stands in a capture in byte order "<" or ">". For whoever reads captures in another way.

        `wirelen` None is the length of the packet. `is_only` as for `matcher_in`, which see for errors as well.

        >>> Filter("tcp or len > 1000").accepts(1, "<", bytes(60), 1500)
        True
        """
        matcher, wirelen = self.matcher_in(linktype, byteorder, is_only=is_only), len(data) if wirelen is None else wirelen
        swapped = byteorder != NATIVE
        if lib.is_corrected(linktype, swapped):
            buffer = ffi.new("uint8_t[]", data)
            record = ffi.new("struct record *", {"end": len(data), "caplen": len(data), "wirelen": wirelen})
            lib.correct_packets(ffi.new("uint32_t[]", [linktype]), swapped, buffer, record, 1)
            data, wirelen = bytes(ffi.buffer(buffer)), record.wirelen
        return matcher.run(data, wirelen) > 0

    def matcher_in(self, linktype: int, byteorder: str, *, is_only: bool) -> Matcher:
        """The same for packets in a capture in byte order "<" or ">". `is_only`: there can be packets of no other link type."""
        kind = linktype, byteorder if linktype in pcap_bridge.LOOPBACK_LINKTYPES else NATIVE
        with self._lock:  # so that two threads do not do the same work
            if kind not in self.matchers:
                try:
                    self.matchers[kind] = matcher_of(self._instructions(*kind), linktype, self.settings)
                except FilterError as error:
                    if is_only or error.message != REJECTS_ALL:
                        raise
                    self._rejecting.append(error)
                    self.matchers[kind] = Matcher(_REJECT)
            return self.matchers[kind]

    def check(self) -> None:
        """Raise what is wrong with the filter and was not told, since no packet came to it."""
        if not self.matchers:
            self.matcher_in(self.source.linktype if isinstance(self.source, Program) else _ETHERNET, NATIVE, is_only=True)
        if len(self._rejecting) == len(self.matchers):
            raise self._rejecting[0]

    def _instructions(self, linktype: int, byteorder: str) -> tuple[Instruction, ...]:
        match self.source:
            case None:
                return _ACCEPT
            case str():
                made = compile_to_run(self.source, linktype, byteorder, **self._options)
            case Program():
                program = replace(self.source, linktype=linktype) if self._adapt else self.source
                if program.linktype != linktype:
                    met, made_for = map(pcap_bridge.shown_linktype, (linktype, program.linktype))
                    raise ProgramError(f"a packet of link type {met}, and the filter is for {made_for}")
                made = program.instructions
        for instruction in made:
            if instruction.ancillary and instruction.k not in WALKED_K:
                raise FilterError(f"the filter asks for [{instruction.ancillary.name}], which no capture file holds")
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """The records of a batch that were selected: `length` of `indexes`; `packets` are how many of them are packets."""

    batch: Batch
    indexes: Any
    length: int
    packets: int

    def kept(self, with_records: bool) -> Selected:
        """The same in memory of its own; or only how many packets there are."""
        length = self.length if with_records else 0
        memory = Kept(self.batch.chunk, self.batch.first, self.indexes, length)
        return Selected(Batch(memory, self.batch.layout, 0, length), ffi.new("uint32_t[]", list(range(length))), length, self.packets)

    def first(self, packets: int) -> Selected:
        """The same up to and with so many packets."""
        if self.packets < packets:
            return self
        records, seen = self.batch.records, 0
        for length in range(self.length):
            if seen == packets:
                return Selected(self.batch, self.indexes, length, seen)
            seen += records[self.indexes[length]].interface != lib.NOT_A_PACKET
        return self


class Selector:
    """A filter and memory for what it selects of a chunk. For one thread.

    With `blocks`, blocks of pcapng without packets are selected too. With `is_profiled` the matchers count what they run.
    """

    def __init__(self, filter: Filter, blocks: bool = False, is_profiled: bool = False) -> None:
        self._filter = filter
        self._blocks = blocks
        self._is_profiled = is_profiled
        self._counters: Any = ffi.NULL
        self._layout: Layout | None = None
        self._programs: Any = None
        self._indexes: Any = None
        self._length = ffi.new("uint32_t *")

    def select(self, batch: Batch) -> Selected:
        """What the filter accepts of a batch. It is good until the next batch with the same first record."""
        if batch.layout is not self._layout:
            self._layout, count = batch.layout, len(batch.layout.interfaces) or 1
            self._programs = ffi.new("struct program *[]", count)
            if self._is_profiled:
                self._counters = ffi.new("uint64_t *[]", count)
        if self._indexes is None:
            self._indexes = allocate("uint32_t[]", batch.chunk.capacity)
        indexes = self._indexes + batch.first
        if batch.early and batch.early.indexes is self._indexes and batch.accepted >= 0:
            return Selected(batch, indexes, batch.accepted, batch.accepted)
        while (packets := self._match(batch, indexes)) == lib.NO_PROGRAM:
            interface = batch.records[self._length[0]].interface
            matcher = self._filter.matcher(batch.layout.interfaces[interface].linktype, batch.layout)
            self._programs[interface] = matcher.pointer
            if self._is_profiled:
                self._counters[interface] = matcher.counters
        if packets == lib.STOPPED:
            raise ProgramError(STOPPED_WORDS)
        self._ask_early(batch)
        return Selected(batch, indexes, self._length[0], packets)

    def _ask_early(self, batch: Batch) -> None:
        """Have packets asked when they are found, from the next time on that the chunk is filled. Not where they are corrected first."""
        chunk, layout = batch.chunk, batch.layout
        assert isinstance(chunk, Chunk)
        is_asked = chunk.early is not None and chunk.early.layout is layout
        if layout.header and layout.corrected is None and not self._is_profiled and not is_asked:
            chunk.early = Early(layout, self._filter.matcher(layout.header.linktype, layout), self._indexes)

    def _match(self, batch: Batch, indexes: Any) -> int:
        found: int = lib.match_records(
            self._programs, batch.chunk.buffer, batch.records, batch.count, self._blocks, indexes, self._length, self._counters
        )
        return found
