"""Tunnels: the headers that begin a level, from the carrier's last byte to the first header behind them.

In:  a row of the table, the place of its header, the end of the walk that the packet comes to if it is not entered.
Out: `Tunnels`, with the blocks that go into the next level or to that end.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from pcapext import encapsulation as table
from pcapext.cfg import Binary, Comparison, Const, Label, Operator, Test, Value
from pcapext.encapsulation import ETHERNET, IPV4
from pcapext.flowkeys import NO_ETHERNET
from pcapext.layout import Always, ByEtherType, ByNibble, ByNumber, Counted, Encapsulation, Field, IfSet
from pcapext.layout import Length as HeaderLength
from pcapext.unroll.builder import END, INSIDE, NUMBER, TUNNEL, TYPE, Builder, Place, nibble, size_if_set

#: GRE protocols whose header belongs to the GRE header's tunnel, but for Ethernet itself.
_IN_GRE = sorted({number for row in table.ENCAPSULATIONS for number in row.gre_protocols} - {ETHERNET})

#: A header that was passed: its row of the table and its place.
Header: TypeAlias = tuple[Encapsulation, Place]


def has_two_ways(row: Encapsulation) -> bool:
    """Whether a header is found behind IP and behind UDP: then the same blocks look at it."""
    return bool(row.ip_protocols and row.ports)


class Tunnels(Builder):
    """The part of the walk that goes from one level into the next."""

    @abstractmethod
    def dispatch(self, level: int, tags: int) -> Label:
        """A header of EtherType `TYPE` at H, behind so many VLAN tags."""

    @abstractmethod
    def ethertype(self, level: int, place: Place, number: int) -> Label:
        """A header of a known EtherType."""

    def goes_on(self, level: int) -> bool:
        return level < self.max_levels

    def tunnel(self, level: int, row: Encapsulation, place: Place, carrier: Label) -> Label:
        """A tunnel header at a place: into the next level, or to the carrier if it is not complete or not of its kind."""
        if not self.goes_on(level):
            return carrier
        if row.prefixes or has_two_ways(row):
            return self.assign(TUNNEL, place.at(-self.ahead), self.state(self.prefixed, level, row, carrier))
        return self.header(level, row, place, carrier)

    def prefixed(self, level: int, row: Encapsulation, carrier: Label) -> Label:
        """A tunnel header at `TUNNEL`, and what may stand before it."""
        then = self.header(level, row, self.tunnel_place, carrier)
        for prefix in reversed(row.prefixes):
            skipped = self.assign(TUNNEL, self.end(self.tunnel_place, prefix.length), self.in_packet(self.tunnel_place, then, carrier))
            skip = self.needs(self.tunnel_place, prefix.length.fixed, skipped, carrier)
            then = self.needs(
                self.tunnel_place, prefix.test.field.size, self.branch(self.tunnel_place.equals(prefix.test), skip, then), carrier
            )
        return then

    def header(self, level: int, row: Encapsulation, place: Place, carrier: Label) -> Label:
        """A header of a tunnel."""
        return self.complete(row, place, carrier, partial(self.behind_options, level, row, place, carrier))

    def complete(self, row: Encapsulation, place: Place, carrier: Label, behind: Callable[[Place], Label]) -> Label:
        """Go on behind the header at a place if it is there and of its kind."""
        then = self.behind_length(row.length, place, carrier, behind)
        if row.requires:
            then = self.branch(place.equals(row.requires), then, carrier)
        size = row.length.fixed
        if not row.length.parts and row.next == Always(ETHERNET):
            size += table.ETHERNET_LENGTH  # one test for both
        return self.needs(place, size, then, carrier) if size else then

    def behind_length(self, length: HeaderLength, place: Place, carrier: Label, then: Callable[[Place], Label]) -> Label:
        """Find the end of the header at a place, and go on there."""
        if not length.parts:
            return then(place.behind(length.base))
        behind = self.jumped(END, then(self.end_place), carrier)
        flags = [part for part in length.parts if isinstance(part, IfSet)]
        if len(flags) == len(length.parts) and len({(part.flag.offset, part.flag.size) for part in flags}) == 1:
            return self.by_flags(place, flags, length.base, behind)
        return self.assign(END, self.end(place, length), behind)

    def by_flags(self, place: Place, parts: Sequence[IfSet], size: int, then: Label) -> Label:
        """Find the end of a header whose optional parts are all told by flags in one field. None of them is the usual case."""
        sums: dict[tuple[int, int], Label] = {}

        def with_parts(index: int, size: int) -> Label:
            if (index, size) not in sums:
                if index == len(parts):
                    sums[index, size] = self.assign(END, place.at(size - self.ahead), then)
                else:
                    part = parts[index]
                    there, absent = with_parts(index + 1, size + part.length), with_parts(index + 1, size)
                    sums[index, size] = self.branch(place.has_bits(part.flag), there, absent)
            return sums[index, size]

        flag = parts[0].flag
        every = Field(flag.offset, flag.size, sum(part.flag.mask for part in parts))
        some, none = with_parts(0, size), with_parts(len(parts), size)
        return some if len(parts) == 1 else self.branch(place.has_bits(every), some, none)

    def end(self, place: Place, length: HeaderLength) -> Value:
        """The end of the header at a place, as `H` counts."""
        return self.with_parts(place.at(length.base - self.ahead), place, length)

    def with_parts(self, value: Value, place: Place, length: HeaderLength) -> Value:
        """A value plus what the header at a place is longer than its base."""
        for part in length.parts:
            match part:
                case Counted(count, unit):
                    more: Value = Binary(Operator.MUL, place.read(count), Const(unit))
                case IfSet():
                    more = size_if_set(place, part)
            value = Binary(Operator.ADD, value, more)
        return value

    def behind_options(self, level: int, row: Encapsulation, place: Place, carrier: Label, end: Place) -> Label:
        """Behind the header at a place and its optional parts: extension headers, then what follows."""
        then = self.behind_header(level, row, place, end, carrier)
        if not row.extensions:
            return then
        return self.branch(place.has_bits(row.extensions.flag), self.extension_chain(level, row, place, 0, carrier), then)

    def extension_chain(self, level: int, row: Encapsulation, place: Place, passed: int, carrier: Label) -> Label:
        """The extension headers of a tunnel header, at `END`."""
        chain = row.extensions
        assert chain is not None
        kind = place.read(chain.first) if passed == 0 else self.end_place.load(1, -1)
        done = self.behind_header(level, row, place, self.end_place, carrier)
        if passed == getattr(self.settings, chain.bound):
            more = carrier
        else:
            again = self.state(self.extension_chain, level, row, place, passed + 1, carrier)
            (part,) = chain.length.parts
            assert isinstance(part, Counted)
            skip = self.assign(END, self.end(self.end_place, chain.length), self.in_packet(self.end_place, again, carrier))
            empty = Test(Comparison.EQ, self.end_place.read(part.count), Const(0))
            more = self.needs(self.end_place, chain.length.fixed, self.branch(empty, carrier, skip), carrier)
        tested = self.equal(kind, 0, done, more)
        return self.in_packet(self.end_place, tested, carrier) if passed == 0 else tested

    def behind_header(self, level: int, row: Encapsulation, place: Place, end: Place, carrier: Label) -> Label:
        """What follows the header at a place, at `end`, into the next level."""
        header = (row, place)
        enter = partial(self.enter, level + 1, end, carrier, header)
        match row.next:
            case Always(ethertype):
                return enter(ethertype=ethertype)
            case ByNumber(field, pairs):
                told = place.read(field)
                if end.base == place.base and self.ahead >= end.offset - place.offset + end.least:
                    # The same for all that may follow: move to the end first, and look back for the number.
                    told = self.end_place.behind(place.offset - end.offset).read(field)
                    enter = partial(self.enter, level + 1, self.end_place, carrier, header)
                then = self.switch(NUMBER, [(number, enter(ethertype=known)) for number, known in pairs], carrier)
                then = self.assign(NUMBER, told, then)
                return self.needs(end, 0, then if end.base != place.base else self.assign(END, end.at(-self.ahead), then), carrier)
            case ByNibble(pairs):
                then = self.switch(nibble(end), [(number, enter(ethertype=known)) for number, known in pairs], carrier)
                return self.needs(end, 1, then, carrier)
            case ByEtherType(field):
                of_gre: list[tuple[int, Label]] = []
                ethernet = enter(ethertype=ETHERNET)
                if row.name == "gre":
                    of_gre = [(number, self.in_gre(level, header, end, carrier, number)) for number in _IN_GRE]
                    ethernet = self.in_gre(level, header, end, carrier, ETHERNET)
                others = self.passed_all([header], self.into_level(level + 1, end, self.state(self.dispatch, level + 1, 0)))
                cases = [(IPV4, enter(ethertype=IPV4)), *of_gre, (ETHERNET, ethernet)]
                return self.assign(TYPE, place.read(field), self.switch(TYPE, cases, self.needs(end, 0, others, carrier)))

    def in_gre(self, level: int, gre: Header, end: Place, carrier: Label, number: int) -> Label:
        """What follows a GRE header, at `end`, and belongs to the same tunnel: an Ethernet frame, perhaps behind one more header."""
        _, place = gre
        then = self.enter(level + 1, end, carrier, gre, ethertype=ETHERNET) if number == ETHERNET else carrier
        for row in table.ENCAPSULATIONS:
            # What adds no bytes matters only to whom asks for its name.
            if number in row.gre_protocols and (number != ETHERNET or any(asked.name in row.words for asked in self.asked)):
                inside = self.inside_gre(level, row, gre, end, carrier)
                then = inside if row.gre_test is None else self.branch(place.equals(row.gre_test), inside, then)
        return then

    def inside_gre(self, level: int, row: Encapsulation, gre: Header, end: Place, carrier: Label) -> Label:
        """A header behind a GRE header, at `end`, and an Ethernet frame behind it."""
        place = self.inside_place if row.length.parts else end
        then = self.complete(
            row, place, carrier, lambda behind: self.enter(level + 1, behind, carrier, (row, place), gre, ethertype=ETHERNET)
        )
        return then if place == end else self.assign(INSIDE, end.at(-self.ahead), then)

    def enter(self, level: int, end: Place, carrier: Label, *headers: Header, ethertype: int) -> Label:
        """The next level, behind headers that are passed: an Ethernet frame that must be complete, or a header of a known EtherType."""
        if ethertype != ETHERNET:
            then = self.into_level(level, end, self.state(self.ethertype, level, self.here, ethertype))
            return self.needs(end, 0, self.passed_all(headers, then), carrier)
        then = self.move(end.at(table.ETHERNET_LENGTH - self.ahead), self.state(self.ethernet, level))
        return self.needs(end, table.ETHERNET_LENGTH, self.passed_all(headers, then), carrier)

    def passed_all(self, headers: Sequence[Header], then: Label) -> Label:
        for row, place in headers:
            then = self.passed(row, place, then)
        return then

    def into_level(self, level: int, end: Place, then: Label) -> Label:
        """A tunnel without an Ethernet header."""
        return self.move(end.at(-self.ahead), self.keys(level, then, depth=Const(level - 1), lhoff=Const(NO_ETHERNET)))

    def ethernet(self, level: int) -> Label:
        """Behind a complete Ethernet header, in a tunnel."""
        then = self.assign(TYPE, self.here.load(2, -2), self.state(self.dispatch, level, 0))
        return self.keys(level, then, depth=Const(level - 1), lhoff=self.here.at(-table.ETHERNET_LENGTH))
