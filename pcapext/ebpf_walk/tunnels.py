"""Tunnels in eBPF: the headers that begin a level, and the begin of one.

In:  a row of the table, the place of its header in the window.
Out: `Tunnels`, with the code that goes into the next level, or to an end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from pcapext import encapsulation as table
from pcapext.ebpf_walk.builder import COUNTS, END, LEVELS, NEXT, Builder, State
from pcapext.ebpf_writer import R1, R2, R3, R4, R7, R8, R9, R10, Label
from pcapext.encapsulation import ETHERNET
from pcapext.flowkeys import NO_ETHERNET
from pcapext.layout import Always, ByEtherType, ByNibble, ByNumber, Counted, Encapsulation, Equals, Field, IfSet, Length

_ENTER, FRAME, _BEGIN, _COMMIT = "enter", "frame", "begin", "commit"


class Tunnels(Builder):
    """The part of the walk that goes from one level into the next."""

    @property
    def enter(self) -> Label:
        return self.block(_ENTER, self.write_enter)

    @property
    def frame_here(self) -> Label:
        return self.block(FRAME, partial(self.step_to, self.frame))

    @property
    def begin(self) -> Label:
        return self.block(_BEGIN, self.write_begin)

    @property
    def commit(self) -> Label:
        return self.block(_COMMIT, self.write_commit)

    # --- into a level

    def write_enter(self) -> None:
        """The next level begins at r7 with the EtherType in r8."""
        self.to.jump(R8, "!=", ETHERNET, self.begin)
        self.to.goto(self.frame_here)

    def enter_as(self, ethertype: int) -> Label:
        """The next level begins at r7 with this EtherType."""
        if ethertype == ETHERNET:
            return self.frame_here
        return self.block(("enter", ethertype), partial(self.write_enter_as, ethertype))

    def write_enter_as(self, ethertype: int) -> None:
        self.to.move(R8, ethertype)
        self.to.goto(self.begin)

    def enter_by(self, pairs: Sequence[tuple[int, int]]) -> Label:
        """The next level begins at r7 with the EtherType that the number in r1 stands for."""
        return self.block(("enter by", pairs), partial(self.by_pairs, pairs, self.enter))

    def frame(self) -> None:
        """An Ethernet header, which begins a level."""
        self.needs(table.ETHERNET_LENGTH)
        if "lhoff" in self.findings.inner:
            self.to.move(R4, R7)
        self.read(R8, Field(12, 2))
        self.to.compute(R7, "+=", table.ETHERNET_LENGTH)
        self.to.goto(self.commit)

    def write_begin(self) -> None:
        """A level begins at r7 with a header of the EtherType in r8, if that place is in the packet."""
        self.to.load(R1, 4, R10, END)
        self.to.jump(R7, ">", R1, self.done)
        if "lhoff" in self.findings.inner:
            self.to.move(R4, NO_ETHERNET)
        self.to.goto(self.commit)

    def write_commit(self) -> None:
        """A level is entered, unless it is one too many: what it has of keys is put down from here on. r4: its Ethernet header."""
        self.to.load(R2, 1, R10, LEVELS)
        self.to.jump(R2, "==", 0, self.done)
        if self.copies_outer:
            first = object()
            self.to.jump(R2, "!=", self.levels - 1, first)
            self.copy_outer()
            self.to.label(first)
        self.to.compute(R2, "+=", -1)
        self.to.store(1, R10, LEVELS, R2)
        if "depth" in self.findings.inner:
            self.to.move(R1, self.levels - 1)
            self.to.compute(R1, "-=", R2)
            self.put(R1, "depth")
        self.put(R4, "lhoff")
        zero = self.zero()
        self.put(zero, "tproto", "thoff", "poff")
        for word, waiting in zip(self.findings.words, self.pending_places, strict=True):
            self.to.load(R3, 4, R10, waiting)
            self.to.load(R2, 4, R9, word)
            self.to.compute(R2, "|=", R3)
            self.to.store(4, R9, word, R2)
            self.to.store(4, R10, waiting, zero)
        bounds = dict(self.settings.bounds)
        numbers = bytes(bounds[name] for name in self.counts).ljust(4, b"\0")
        self.to.store(4, R10, COUNTS, _signed(numbers))
        self.to.goto(NEXT)

    # --- tunnels

    def tunnel(self, row: Encapsulation, base: int) -> Label:
        """The header of a tunnel, `base` bytes into the window."""
        if row.prefixes:
            return self.block(State("prefixed", (row, base, 0)), partial(self.prefixed, row, base, 0))
        if row.ports and row.ip_protocols:
            if base:
                return self.block(("moved", row, base), partial(self.moved, row, base))
            return self.block(State("header", (row,)), partial(self.header, row))
        return self.block(("header", row, base), partial(self.header, row, base))

    def moved(self, row: Encapsulation, base: int) -> None:
        """A header that gets a window of its own."""
        self.to.compute(R7, "+=", base)
        self.step_to(self.header, row)

    def prefixed(self, row: Encapsulation, base: int, index: int) -> None:
        """A tunnel header and what may stand before it, so many parts of which were looked at."""
        prefix, absent = row.prefixes[index], object()
        self.needs(base + prefix.test.field.size)
        self.unless(prefix.test, base, absent)
        assert prefix.length.base >= prefix.length.fixed
        self.move_behind(prefix.length, base, ahead=base)
        if index + 1 < len(row.prefixes):
            self.step_to(self.prefixed, row, base, index + 1)
            self.to.label(absent)
            self.to.goto(self.block(State("prefixed", (row, base, index + 1)), partial(self.prefixed, row, base, index + 1)))
        else:
            # Nothing is read of the header itself.
            assert row.length == Length(0)
            assert isinstance(row.next, Always)
            self.to.label(absent)
            self.header(row, base)

    def header(self, row: Encapsulation, base: int = 0) -> None:
        """The header of a tunnel in the window, and on to what follows it.

        If not all of it is there, what begins behind it is not in the packet. That is looked at before the next level is entered, and
        what was read here that is not of the packet has changed nothing by then.
        """
        if row.length.base < row.length.fixed:
            self.needs(base + row.length.fixed)
        if row.requires:
            self.unless(row.requires, base, self.done)
        self.passed(row, base, R10, self.pending_places)
        if row.extensions:
            self.chain(row, base)
        self.move_behind(row.length, base)
        match row.next:
            case Always(ethertype):
                self.to.goto(self.enter_as(ethertype))
            case ByEtherType(field):
                self.read(R8, field, base)
                if row.name == "gre":
                    self.in_gre(base)
                self.to.goto(self.enter)
            case ByNumber(field, pairs):
                self.read(R1, field, base)
                self.to.goto(self.enter_by(pairs))
            case ByNibble(pairs):
                self.step_to(self.first_nibble, pairs)

    def first_nibble(self, pairs: tuple[tuple[int, int], ...]) -> None:
        """What follows a tunnel header, or begins the packet, and is told by its own first four bits."""
        self.needs(1)
        self.read(R1, Field(0, 1, 0xF0, 4))
        self.by_pairs(pairs, self.begin)

    def in_gre(self, base: int) -> None:
        """Behind a GRE header, of the protocol in r8, may stand one that belongs to the same tunnel."""
        rows: dict[int, list[Encapsulation]] = {}
        for row in table.ENCAPSULATIONS:
            for number in row.gre_protocols:
                # What adds no bytes matters only to whom asks for its name.
                if number != ETHERNET or self.is_asked(row):
                    rows.setdefault(number, []).append(row)
        for number, found in rows.items():
            other, in_r2 = object(), self.in_r2
            self.to.jump(R8, "!=", number, other)
            for index, row in enumerate(found):
                following = object()
                if row.gre_test and not (index and _complementary(found[index - 1].gre_test, row.gre_test)):
                    self.unless(row.gre_test, base, following)
                self.inside_gre(row)
                self.to.label(following)
            self.to.label(other)
            self.in_r2 = in_r2 if self.in_r2 == in_r2 else None

    def inside_gre(self, row: Encapsulation) -> None:
        """A header behind a GRE header, which ends at r7."""
        if not self.is_asked(row) and not row.requires and not row.length.parts:
            self.move_behind(row.length, 0)
            assert row.next == Always(ETHERNET)
            self.to.goto(self.frame_here)
            return
        # The identifier may stand before the header.
        lead = max(0, -row.identifier.field.offset) if row.identifier and self.is_asked(row) else 0
        if lead:
            self.to.compute(R7, "-=", lead)
        self.step_to(self.header, row, lead)

    def chain(self, row: Encapsulation, base: int) -> None:
        """Extension headers of a tunnel header in the window: the type of the first one is the header's last byte."""
        extensions = row.extensions
        assert extensions is not None
        assert extensions.first.size == 1
        there = [part for part in row.length.parts if isinstance(part, IfSet) and part.flag.mask & extensions.flag.mask]
        assert row.length.base + sum(part.length for part in there) == extensions.first.offset + 1
        flags, mask = self.flags(extensions.flag, base)
        self.to.jump(flags, "&", mask, self.block(("chain", row, base), partial(self.first_extension, row, base)))

    def first_extension(self, row: Encapsulation, base: int) -> None:
        assert row.extensions is not None
        self.to.compute(R7, "+=", base + row.extensions.first.offset)
        self.step_to(self.next_extension, row)

    def next_extension(self, row: Encapsulation) -> None:
        """The last byte of a header or an extension header is the type of the extension header behind it."""
        extensions = row.extensions
        assert extensions is not None
        assert isinstance(row.next, ByNibble)
        last = object()
        self.needs(1)
        self.load(R1, 1, 0)
        self.to.jump(R1, "==", 0, last)
        self.counted(extensions.bound, self.done)
        # Go to the last byte of this one: as far behind its begin as its length, less the byte at hand.
        (part,) = extensions.length.parts
        assert isinstance(part, Counted)
        assert extensions.length.base == 0
        # If its begin is not there, neither is its end.
        assert part.unit >= extensions.length.fixed
        self.read(R1, part.count, 1)
        self.to.jump(R1, "==", 0, self.done)
        self.to.compute(R1, "*=", part.unit)
        self.to.compute(R7, "+=", R1)
        self.step_to(self.next_extension, row)
        self.to.label(last)
        self.to.compute(R7, "+=", 1)
        self.step_to(self.first_nibble, row.next.pairs)


def _complementary(one: Equals | None, other: Equals) -> bool:
    """Whether exactly one of two tests holds."""
    if one is None or one.field != other.field or one.field.mask & one.field.mask - 1:
        return False
    return {one.value, other.value} == {0, one.field.mask >> one.field.shift}


def _signed(octets: bytes) -> int:
    """What a store of 4 bytes takes to put these bytes down."""
    return int.from_bytes(octets, sys.byteorder, signed=True)
