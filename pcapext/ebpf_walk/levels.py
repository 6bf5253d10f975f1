"""Levels in eBPF: the loop, and the headers from the link layer, or the end of a tunnel's, to the transport header.

In:  what `Builder` is made of.
Out: `Levels`, all of the walk.
"""

from __future__ import annotations

from functools import partial

from pcapext import encapsulation as table
from pcapext.ebpf import LOAD_BYTES
from pcapext.ebpf_walk.builder import (
    DONE,
    END,
    FIRST_STATE,
    IN_IPV4,
    IN_IPV6,
    LEFT,
    LENGTH_OF_PACKET,
    LEVELS,
    NEXT,
    PLACE,
    PROTOCOL_OF_PACKET,
    WALK,
    WINDOW,
    WINDOW_BYTES,
    State,
    as_in_packet,
)
from pcapext.ebpf_walk.tunnels import FRAME, Tunnels
from pcapext.ebpf_writer import R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Label, Writer
from pcapext.encapsulation import IPV4, IPV6
from pcapext.flowkeys import NO_ETHERNET
from pcapext.layout import Always, ByEtherType, ByNibble, ByNumber, Counted, Encapsulation, Equals, Field, Length


class Levels(Tunnels):
    """The whole walk."""

    def written(self) -> Writer:
        self.start()
        begin = self.to
        while self.pending:
            label, write = self.pending.pop()
            self.write(label, write)
        whole = Writer()
        whole.label(WALK)
        whole.put(begin)
        # What the loop begins with most often stands before it.
        self.blocks[NEXT] = self.head()
        for label in self.order():
            whole.label(label)
            whole.put(self.blocks[label])
        return whole

    def order(self) -> list[Label]:
        """The blocks in an order in which many need no jump to the next one."""
        frame = ("step", self.states.get(State("frame", ())))
        waiting = [DONE, *[*([FRAME, frame] if FRAME in self.blocks else []), NEXT, *self.blocks][::-1]]
        order: dict[Label, None] = {}
        ends_there = False
        while waiting:
            label = waiting.pop()
            # The end waits for a block that leads nowhere else.
            if label in order or label not in self.blocks or (label == DONE and waiting and not ends_there):
                continue
            order[label] = None
            follows = self.blocks[label].leads_on_to()
            ends_there = follows == (DONE,)
            waiting += [other for other in follows if other != DONE or ends_there]
        return [*order]

    # --- the begin, the loop and the end

    def start(self) -> None:
        link = self.link_layer
        lhoff = 0 if link.is_ethernet else NO_ETHERNET - (1 << 32)
        self.to.move(R6, R1)
        self.to.move(R9, R2)
        # Without CAP_PERFMON the verifier lets nobody read what the load of a short header may leave unwritten.
        for place in range(WINDOW, WINDOW + WINDOW_BYTES, 8):
            self.to.store(8, R10, place, 0)
        self.to.store(1, R10, LEVELS, self.levels)
        # The walk sees the first 65535 bytes.
        short = object()
        self.to.load(R1, 4, R6, LENGTH_OF_PACKET)
        if link.made_up:
            self.to.compute(R1, "+=", link.made_up)
        self.to.jump(R1, "<=", table.WALKED_BYTES, short)
        self.to.move(R1, table.WALKED_BYTES)
        self.to.label(short)
        self.to.store(4, R10, END, R1)
        zero = self.zero()
        for name, place in self.findings.inner.items():
            self.to.store(4, R9, place, lhoff if lhoff and name == "lhoff" else zero)
        for place in self.findings.words:
            self.to.store(4, R9, place, zero)
        for place in self.pending_places:
            self.to.store(4, R10, place, zero)
        if self.copies_outer:
            # The verifier does not see that they are written in every case.
            for place in self.findings.outer.values():
                self.to.store(4, R9, place, zero)
        match link.next:
            case ByEtherType() if link.is_ethernet:
                self.to.move(R7, 0)
                self.to.goto(self.frame_here)
            case ByEtherType():
                # The kernel has no bytes of this header, but what libpcap makes of it.
                assert link.made_up
                self.to.move(R7, link.length)
                self.to.load(R8, 4, R6, PROTOCOL_OF_PACKET)
                self.to.from_network(R8, 2)
                self.to.goto(self.begin)
            case ByNibble(pairs):
                self.to.move(R7, link.length)
                self.step_to(self.first_nibble, pairs)
            case Always(ethertype):
                self.to.move(R7, link.length)
                self.to.move(R8, ethertype)
                self.to.goto(self.begin)
            case ByNumber():
                self.to.move(R7, 0)
                self.step_to(self.link_header)

    def link_header(self) -> None:
        """The link-layer header, which names what follows it in its own way."""
        link = self.link_layer
        assert isinstance(link.next, ByNumber)
        self.needs(link.length)
        self.read(R1, link.next.field)
        self.to.compute(R7, "+=", link.length)
        self.by_pairs(link.next.pairs, self.begin)

    def head(self) -> Writer:
        """Bring the window to r7, and go on at the code for the kind of header there."""
        self.to = to = Writer()
        short, there = object(), object()
        to.may_goto(self.done)
        to.store(4, R10, PLACE, R7)
        to.load(R7, 4, R10, PLACE)
        to.load(R4, 4, R10, END)
        to.compute(R4, "-=", R7)
        to.store(8, R10, LEFT, R4)
        to.jump(R4, "s<=", 0, there)
        to.jump(R4, "s<=", WINDOW_BYTES, short)
        to.move(R4, WINDOW_BYTES)
        to.label(short)
        to.move(R1, R6)
        to.move(R2, R7)
        if self.link_layer.made_up:
            to.compute(R2, "+=", -self.link_layer.made_up)
        to.move(R3, R10)
        to.compute(R3, "+=", WINDOW)
        to.call(LOAD_BYTES)
        to.jump(R0, "!=", 0, self.done)
        to.label(there)
        to.load(R0, 8, R10, LEFT)
        to.jump(R8, "<", IN_IPV4, self.block(State("ethertype", ()), self.ethertype))
        to.jump(R8, "<", FIRST_STATE, self.block(State("protocol", ()), self.protocol))
        while self.pending:
            label, write = self.pending.pop()
            self.write(label, write)
        for state, kind in self.states.items():
            to.jump(R8, "==", kind, state)
        to.goto(self.done)
        return to

    # --- between the Ethernet header and the network header

    def ethertype(self) -> None:
        """A header of the EtherType in r8, if the one before it was complete."""
        self.needs(0)
        if {"nproto", "nhoff"} & self.findings.inner.keys():
            named = object()
            self.to.jump(R8, ">=", table.FIRST_ETHERTYPE, named)
            self.put(0, "nproto", "nhoff")
            self.to.goto(self.done)
            self.to.label(named)
            self.put(R8, "nproto")
            self.put(R7, "nhoff")
        self.to.jump(R8, "==", IPV4, self.block("ipv4", self.ipv4))
        self.to.jump(R8, "==", IPV6, self.block("ipv6", self.ipv6))
        for number, row in table.BY_ETHERTYPE.items():
            if not row.begins_level:
                alike = self.like(row)
                target = self.block(("tag", alike), partial(self.tag, alike))
                if number == table.MPLS_MULTICAST and "nproto" in self.findings.inner:
                    target = self.block("multicast", partial(self.multicast, target))
                self.to.jump(R8, "==", number, target)
            elif self.levels > 1:
                self.to.jump(R8, "==", number, self.tunnel(self.like(row), 0))
        self.to.goto(self.done)

    def multicast(self, target: Label) -> None:
        """A multicast label goes for another label."""
        self.to.move(R8, table.MPLS)
        self.put(R8, "nproto")
        self.to.goto(target)

    def tag(self, row: Encapsulation) -> None:
        """A header that begins no level."""
        assert not row.length.parts
        size = row.length.base
        # If it is not complete, the next place is not in the packet, and that is looked at there.
        assert size >= row.length.fixed
        if self.is_asked(row):
            self.needs(row.length.fixed)
        if row.bound:
            self.counted(row.bound, self.done)
        self.passed(row, 0, R9, self.findings.words)
        self.to.compute(R7, "+=", size)
        if row.repeats:
            last = object()
            self.unless(row.repeats, 0, last)
            self.to.goto(NEXT)
            self.to.label(last)
        match row.next:
            case ByEtherType(field):
                self.read(R8, field)
                self.to.goto(NEXT)
            case ByNumber(field, pairs):
                self.load_raw(R1, field.size, field.offset)
                self.by_pairs([(as_in_packet(number, field.size), ethertype) for number, ethertype in pairs], NEXT)
            case ByNibble(pairs):
                self.needs(size + 1)
                self.read(R1, Field(size, 1, 0xF0, 4))
                if self.levels > 1:
                    for number, tunnel in table.BY_NIBBLE.items():
                        self.to.jump(R1, "==", number, self.block(("behind", tunnel), partial(self.header, tunnel, 0)))
                self.by_pairs(pairs, NEXT)
            case Always():
                raise AssertionError(f"{row.name} needs no code of its own")

    # --- IP

    def ipv4(self) -> None:
        self.needs(table.IPV4_LENGTH)
        self.read(R1, Field(0, 1, 0x0F))
        self.to.compute(R1, "<<=", 2)
        self.to.compute(R7, "+=", R1)
        self.load(R8, 1, 9)
        flags, mask = self.flags(Field(6, 2, 0x1FFF), 0)
        self.to.jump(flags, "&", mask, self.later)
        self.to.compute(R8, "|=", IN_IPV4)
        self.to.goto(NEXT)

    def ipv6(self) -> None:
        self.needs(table.IPV6_LENGTH)
        self.load(R8, 1, 6)
        self.to.compute(R8, "|=", IN_IPV6)
        self.to.compute(R7, "+=", table.IPV6_LENGTH)
        self.to.goto(NEXT)

    @property
    def later(self) -> Label:
        """The end of the walk in a later fragment: its data begins at r7, r8 is its protocol."""
        return self.block("later", self.write_later)

    def write_later(self) -> None:
        self.put(R8, "tproto")
        if "poff" in self.findings.inner:
            self.to.load(R1, 4, R10, END)
            self.to.jump(R7, ">", R1, self.done)
            self.put(R7, "poff")
        self.to.goto(self.done)

    def protocol(self) -> None:
        """A header of the IP protocol in r8."""
        self.to.move(R1, R8)
        self.to.compute(R1, "&=", 0xFF)
        self.put(R1, "tproto")
        transport = self.block("transport", self.transport)
        if self.settings.extension_headers:
            chain, in_both = self.block("extensions", self.extension_headers), object()
            self.to.jump(R8, "<", IN_IPV6, in_both)
            for row in table.EXTENSION_HEADERS:
                if not row.in_ipv4:
                    self.to.jump(R1, "==", row.protocol, chain)
            self.to.label(in_both)
            for row in table.EXTENSION_HEADERS:
                if row.in_ipv4:
                    self.to.jump(R1, "==", row.protocol, chain)
        self.to.goto(transport)

    def extension_headers(self) -> None:
        """An extension header of the protocol in r1, if it is not one too many."""
        to, more = self.to, object()
        to.load(R2, 1, R10, self.counts["extension_headers"])
        to.jump(R2, "==", 0, "transport")
        to.compute(R2, "+=", -1)
        to.store(1, R10, self.counts["extension_headers"], R2)
        ways: dict[tuple[Length, Field | None], list[int]] = {}
        for row in table.EXTENSION_HEADERS:
            ways.setdefault((row.length, row.fragment), []).append(row.protocol)
        counted = sorted((way for way in ways if way[0].parts), key=lambda way: len(ways[way]))
        fixed = [way for way in ways if not way[0].parts]
        labels = {way: object() for way in ways}
        for way in [*fixed, *counted[:-1]]:
            for protocol in ways[way]:
                to.jump(R1, "==", protocol, labels[way])
        to.goto(labels[counted[-1]])
        tails: dict[int, Label] = {}
        for length, fragment in counted:
            assert not fragment
            to.label(labels[length, fragment])
            self.needs(length.fixed)
            (part,) = length.parts
            assert isinstance(part, Counted)
            self.read(R2, part.count)
            to.compute(R2, "*=", part.unit)
            to.goto(tails.setdefault(length.base, object()))
        for base, tail in tails.items():
            to.label(tail)
            to.compute(R7, "+=", base)
            to.compute(R7, "+=", R2)
            to.goto(more)
        to.label(more)
        self.load(R1, 1, 0)
        to.compute(R8, "&=", IN_IPV4 | IN_IPV6)
        to.compute(R8, "|=", R1)
        to.goto(NEXT)
        for length, fragment in fixed:
            to.label(labels[length, fragment])
            self.needs(length.fixed)
            to.compute(R7, "+=", length.base)
            if fragment:
                self.in_r2 = None
                self.unless(Equals(fragment, 0), 0, self.block("later fragment", self.later_in_ipv6))
            to.goto(more)

    def later_in_ipv6(self) -> None:
        """Behind the fragment header of a later fragment."""
        self.load(R8, 1, 0)
        self.to.goto(self.later)

    def transport(self) -> None:
        """A transport header of the protocol in r1."""
        self.needs(0)
        self.put(R7, "thoff")
        if "poff" in self.findings.inner:
            self.payload()
        if self.levels > 1:
            self.to.jump(R1, "==", table.UDP, self.block("udp", self.udp))
            numbers = dict.fromkeys(number for _, number in table.BY_IP_PROTOCOL)
            for number in numbers:
                over_ipv4, over_ipv6 = (self.like(table.BY_IP_PROTOCOL[ip, number]) for ip in (IPV4, IPV6))
                if over_ipv4 != over_ipv6:
                    other = object()
                    self.to.jump(R1, "!=", number, other)
                    self.to.jump(R8, "<", IN_IPV6, self.tunnel(over_ipv4, 0))
                    self.to.goto(self.tunnel(over_ipv6, 0))
                    self.to.label(other)
                else:
                    self.to.jump(R1, "==", number, self.tunnel(over_ipv4, 0))
        self.to.goto(self.done)

    def payload(self) -> None:
        """Put the place of the payload down, if all of the transport header's fixed part is there."""
        to, cut, known, plain = self.to, object(), object(), object()
        by_length: dict[int, list[int]] = {}
        for protocol, length in table.TRANSPORT_LENGTHS.items():
            by_length.setdefault(length, []).append(protocol)
        for length, protocols in by_length.items():
            to.move(R2, length)
            for protocol in protocols:
                to.jump(R1, "==", protocol, known)
        to.move(R2, 0)
        to.label(known)
        to.jump(R0, "s<", R2, cut)
        to.jump(R1, "!=", table.TCP, plain)
        self.read(R3, Field(12, 1, 0xF0, 4))
        to.compute(R3, "<<=", 2)
        to.jump(R3, "<=", R2, plain)
        to.move(R2, R3)
        to.label(plain)
        to.compute(R2, "+=", R7)
        self.put(R2, "poff")
        to.label(cut)

    def udp(self) -> None:
        # If less of it is there, what begins behind it is not in the packet, and that is looked at.
        self.load_raw(R1, 2, 2)
        for port, row in self.settings.by_port.items():
            self.to.jump(R1, "==", as_in_packet(port, 2), self.tunnel(row, table.UDP_LENGTH))
        self.to.goto(self.done)
