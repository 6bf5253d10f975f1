"""Unroll: the walk through the headers as a graph without loops, for programs that cannot load flow keys.

In:  a link layer, the settings of the walk, and the keys that are wanted.
Out: blocks that assign the wanted keys to locals of their names, whatever the packet, and then go on to one given block.

There is one set of blocks a level, shared by all ways into it; what differs between the ways is put into one form
first. In the form of all levels but the begin of the first, the local `H` is a place 14 bytes before the header at hand:
an Ethernet header at H has its EtherType at H + 12 and what follows it at H + 14, and so have a VLAN tag, a GRE header
without options and a PPPoE header when H has been moved to 14 bytes before what follows them. IP in IP costs nothing.
At the begin of the first level all offsets are constants.

A tunnel is entered only when all of it that must be there is there; until then `H` stays at the carrier's header. Every
load stands behind a test of the packet's length, as LANGUAGE.md 5 has it; the optimizer removes those that change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from pcapext import encapsulation as table
from pcapext.cfg import (
    VOID,
    Binary,
    Block,
    Branch,
    Comparison,
    Const,
    Goto,
    Key,
    Label,
    Length,
    Load,
    Local,
    Operator,
    Test,
    Value,
    maximum,
)
from pcapext.encapsulation import ETHERNET, IPV4, IPV6, LinkLayer, WalkSettings
from pcapext.flowkeys import NO_ETHERNET
from pcapext.layout import Always, ByEtherType, ByNibble, ByNumber, Counted, Encapsulation, Field, IfSet
from pcapext.layout import Length as HeaderLength

#: No place that the walk looks at is farther on: 16 bits, and a few headers of which only the lengths were read.
PLACES = 0x1FFFF

#: 14 bytes before the header at hand, and the same for a header in a tunnel that is not entered yet.
H, ENTERED = Local("H", PLACES), Local("E", PLACES)

#: An EtherType or IP protocol that no longer stands at a constant distance from `H`.
PROTOCOL = Local("protocol")


def key_local(key: str) -> Local:
    """The local that a key is assigned to."""
    return Local(key, maximum(Key(key)))


def add(value: Value, number: int) -> Value:
    """A value plus a number that may be negative."""
    if number < 0:
        return Binary(Operator.SUB, value, Const(-number))
    return value if number == 0 else Binary(Operator.ADD, value, Const(number))


@dataclass(frozen=True, slots=True)
class Place:
    """A header that begins `offset` bytes behind a base; the base None is the begin of the packet.

    Loads behind a base have a k of `least` or more. On a cooked handle libpcap takes the length of the pseudo header off each k
    (pcap-linux.c, fix_offset), and makes something else of a smaller one.
    """

    base: Local | None
    offset: int
    least: int = 0

    def at(self, distance: int) -> Value:
        """The offset of a byte of the header."""
        return Const(self.offset + distance) if self.base is None else add(self.base, self.offset + distance)

    def load(self, size: int, distance: int) -> Value:
        k = self.offset + distance
        if self.base is None:
            return Load(size, Const(k))
        if k >= self.least:
            return Load(size, self.base, k)
        return Load(size, add(self.base, k - self.least), self.least)

    def read(self, field: Field) -> Value:
        """The number in a field."""
        value = self.load(field.size, field.offset)
        if field.mask & (1 << 8 * field.size) - 1 != (1 << 8 * field.size) - 1:
            value = Binary(Operator.AND, value, Const(field.mask & (1 << 8 * field.size) - 1))
        return Binary(Operator.RSH, value, Const(field.shift)) if field.shift else value

    def behind(self, distance: int) -> Place:
        return Place(self.base, self.offset + distance, self.least)


class Unroller:
    """Builds the blocks of one walk. A state is a method with its arguments; each is built once."""

    def __init__(self, link_layer: LinkLayer, settings: WalkSettings, wanted: frozenset[str], first_label: Label, after: Label):
        self.link_layer = link_layer
        # The first header that H is used for stands behind the link-layer header: so H is never negative.
        self.ahead = link_layer.length
        least = link_layer.length if link_layer.is_cooked else 0
        self.here = Place(H, self.ahead, least)
        self.in_tunnel = Place(ENTERED, self.ahead, least)
        self.settings = settings
        self.wanted = wanted
        self.after = after
        self.next_label = first_label
        self.blocks: dict[Label, Block] = {}
        self.states: dict[tuple[object, ...], Label] = {}
        self.pending: list[tuple[Label, Callable[[], Label]]] = []

    def build(self) -> tuple[Label, Mapping[Label, Block]]:
        """The first block of the walk, and all of them."""
        first = self.start()
        while self.pending:
            label, state = self.pending.pop()
            self.blocks[label] = Block((), Goto(state()))
        return first, self.blocks

    # --- blocks

    def block(self, block: Block) -> Label:
        self.next_label += 1
        self.blocks[self.next_label - 1] = block
        return self.next_label - 1

    def state(self, method: Callable[..., Label], *arguments: object) -> Label:
        """The block of a state, which is built later if it was not yet."""
        key = (method.__name__, *arguments)
        if key not in self.states:
            self.next_label += 1
            self.states[key] = self.next_label - 1
            self.pending.append((self.next_label - 1, partial(method, *arguments)))
        return self.states[key]

    def branch(self, test: Test, then: Label, otherwise: Label) -> Label:
        return self.block(Block((), Branch(test, then, otherwise)))

    def equal(self, value: Value, number: int, then: Label, otherwise: Label) -> Label:
        return self.branch(Test(Comparison.EQ, value, Const(number)), then, otherwise)

    def switch(self, value: Value, cases: Sequence[tuple[int, Label]], otherwise: Label) -> Label:
        """Tests for the numbers, in their order."""
        for number, target in reversed(cases):
            otherwise = self.equal(value, number, target, otherwise)
        return otherwise

    def assign(self, local: Local, value: Value, then: Label) -> Label:
        return self.block(Block(((local, value),), Goto(then)))

    def keys(self, then: Label, **values: Value) -> Label:
        """Assign those keys that are wanted."""
        assignments = tuple((key_local(key), value) for key, value in values.items() if key in self.wanted)
        return self.block(Block(assignments, Goto(then))) if assignments else then

    def exit(self, **values: Value) -> Label:
        """The end of the walk: the keys that are not known to be set have their values here."""
        return self.keys(self.after, **values)

    def needs(self, place: Place, size: int, then: Label, otherwise: Label) -> Label:
        """`then` if the packet holds `size` bytes of the header at a place, and the base of the place is in the packet.

        A packet can be longer than what was captured of it. The load of the last byte asks for that.
        """
        if place.base is not None or place.offset + size:
            then = self.assign(VOID, place.load(1, size - 1), then)
        if place.base is None:
            return self.branch(Test(Comparison.GE, Length(), Const(place.offset + size)), then, otherwise)
        return self.branch(Test(Comparison.GE, Binary(Operator.SUB, Length(), place.base), Const(place.offset + size)), then, otherwise)

    def jumped(self, base: Local, then: Label, otherwise: Label) -> Label:
        """`then` if the base, moved by a length that the packet says, is in the packet: then `length - base` does not wrap around."""
        return self.branch(Test(Comparison.GE, Length(), base), then, otherwise)

    def move(self, value: Value, then: Label) -> Label:
        return self.assign(H, value, then)

    # --- the first header

    def start(self) -> Label:
        row = self.link_layer
        nothing = self.exit(nproto=Const(0), nhoff=Const(0), tproto=Const(0), thoff=Const(0), poff=Const(0))
        place = Place(None, row.length)
        match row.next:
            case Always(ethertype):
                first = self.state(self.ethertype, 1, place, ethertype)
            case ByEtherType(field) if field.offset == row.length - 2:
                first = self.state(self.dispatch, 1, place, 0, place.load(2, -2))
            case ByEtherType(field):
                first = self.state(self.dispatch, 1, place, 0, Place(None, 0).read(field))
            case ByNumber(field, pairs):
                cases = [(number, self.state(self.ethertype, 1, place, ethertype)) for number, ethertype in pairs]
                first = self.switch(Place(None, 0).read(field), cases, nothing)
            case ByNibble(pairs):
                cases = [(number, self.state(self.ethertype, 1, place, ethertype)) for number, ethertype in pairs]
                first = self.needs(place, 1, self.switch(_nibble(place), cases, nothing), nothing)
        lhoff = Const(0 if row.is_ethernet else NO_ETHERNET)
        return self.keys(self.needs(place, 0, first, nothing), depth=Const(0), lhoff=lhoff)

    # --- between the Ethernet header and the network header

    def ethernet(self, level: int) -> Label:
        """A complete Ethernet header at H, in a tunnel."""
        return self.keys(
            self.state(self.dispatch, level, self.here, 0, self.here.load(2, -2)),
            depth=Const(level - 1),
            lhoff=self.here.at(-table.ETHERNET_LENGTH),
        )

    def without_ethernet(self, level: int, then: Label) -> Label:
        """A tunnel without an Ethernet header."""
        return self.keys(then, depth=Const(level - 1), lhoff=Const(NO_ETHERNET))

    def dispatch(self, level: int, place: Place, tags: int, ethertype: Value) -> Label:
        """A header of whatever EtherType a value says."""
        vlan: dict[int, Label] = {}
        if tags < self.settings.vlan_tags:
            inside = self.local_form(place, self.state(self.vlan, level, tags, ethertype))
            vlan = {number: inside for number, row in table.BY_ETHERTYPE.items() if row.bound == "vlan_tags"}
        if tags:
            return self.switch(ethertype, sorted(vlan.items()), self.state(self.by_ethertype, level, place, ethertype))
        return self.by_ethertype(level, place, ethertype, vlan)

    def by_ethertype(self, level: int, place: Place, ethertype: Value, vlan: Mapping[int, Label] = MappingProxyType({})) -> Label:
        """A header of whatever EtherType a value says, VLAN tags going to where `vlan` says."""
        other = self.no_protocol(nproto=ethertype, nhoff=place.at(0))
        length = self.no_protocol(nproto=Const(0), nhoff=Const(0))
        ends = self.branch(Test(Comparison.GE, ethertype, Const(table.FIRST_ETHERTYPE)), other, length)
        numbers = [number for number, row in table.BY_ETHERTYPE.items() if row.bound != "vlan_tags"]
        rest = self.search(ethertype, {number: self.state(self.ethertype, level, place, number) for number in numbers} | dict(vlan), ends)
        return self.switch(ethertype, [(number, self.state(self.ethertype, level, place, number)) for number in (IPV4, IPV6)], rest)

    def no_protocol(self, nproto: Value, nhoff: Value) -> Label:
        """The end of the walk at a header that is not IP."""
        return self.exit(nproto=nproto, nhoff=nhoff, tproto=Const(0), thoff=Const(0), poff=Const(0))

    def local_form(self, place: Place, then: Label) -> Label:
        """Bring a place into the form of all levels: the header at hand 14 bytes behind H."""
        return then if place == self.here else self.move(place.at(-self.ahead), then)

    def ethertype(self, level: int, place: Place, number: int) -> Label:
        """A header of a known EtherType."""
        if number == IPV4:
            return self.ipv4(level, place)
        if number == IPV6:
            return self.ipv6(level, place)
        if place != self.here:
            return self.move(place.at(-self.ahead), self.state(self.ethertype, level, self.here, number))
        number = table.MPLS if number == table.MPLS_MULTICAST else number
        row = table.BY_ETHERTYPE.get(number)
        ends = self.no_protocol(nproto=Const(number), nhoff=self.here.at(0))
        if row is None:
            return ends
        if row.begins_level:
            return self.tunnel(level, row, self.here, ends)
        match row.name:
            case "mpls":
                return self.state(self.mpls, level, 0)
            case "pppoe":
                return self.pppoe(level, row, ends)
        raise AssertionError(f"{row.name} is for dispatch to look at")

    def vlan(self, level: int, tags: int, ethertype: Value) -> Label:
        """A VLAN tag, of a TPID that `ethertype` says."""
        ends = self.no_protocol(nproto=ethertype, nhoff=self.here.at(0))
        behind = self.state(self.dispatch, level, self.here, tags + 1, self.here.load(2, -2))
        return self.needs(self.here, 4, self.move(add(H, 4), behind), ends)

    def mpls(self, level: int, labels: int) -> Label:
        """An MPLS label, `labels` of them passed before it in this level."""
        ends = self.no_protocol(nproto=Const(table.MPLS), nhoff=self.here.at(0))
        if labels == self.settings.mpls_labels:
            return ends
        repeats = table.BY_ETHERTYPE[table.MPLS].repeats
        assert repeats is not None
        another = Test(Comparison.EQ, self.here.behind(-4).read(repeats.field), Const(repeats.value))
        following = self.branch(another, self.state(self.mpls, level, labels + 1), self.state(self.behind_labels, level))
        return self.needs(self.here, 4, self.move(add(H, 4), following), ends)

    def behind_labels(self, level: int) -> Label:
        """What follows the bottom of an MPLS stack; if that is nothing known, the walk ends on the last label."""
        ends = self.no_protocol(nproto=Const(table.MPLS), nhoff=self.here.at(-4))
        cases = [(number, self.state(self.ethertype, level, self.here, ethertype)) for number, ethertype in table.IP_BY_NIBBLE.pairs]
        cases += [(number, self.tunnel(level, row, self.here, ends)) for number, row in table.BY_NIBBLE.items()]
        return self.needs(self.here, 1, self.switch(_nibble(self.here), cases, ends), ends)

    def pppoe(self, level: int, row: Encapsulation, ends: Label) -> Label:
        size = row.length.base
        assert isinstance(row.next, ByNumber)
        cases = [(number, self.state(self.ethertype, level, self.here, ethertype)) for number, ethertype in row.next.pairs]
        unknown = self.no_protocol(nproto=Const(row.ethertypes[0]), nhoff=self.here.at(-size))
        return self.needs(
            self.here, size, self.move(add(H, size), self.switch(self.here.behind(-size).read(row.next.field), cases, unknown)), ends
        )

    # --- IP

    def ipv4(self, level: int, place: Place) -> Label:
        cut = self.exit(tproto=Const(0), thoff=Const(0), poff=Const(0))
        protocol = place.load(1, 9)
        cases = [(number, self.state(self.ipv4_carries, level, place, Const(number))) for number in (table.TCP, table.UDP, table.AH)]
        other = self.assign(PROTOCOL, protocol, self.state(self.ipv4_carries, level, place, PROTOCOL))
        complete = self.switch(protocol, cases, other)
        return self.keys(self.needs(place, table.IPV4_LENGTH, complete, cut), nproto=Const(IPV4), nhoff=place.at(0))

    def ipv4_carries(self, level: int, place: Place, tproto: Value) -> Label:
        """An IPv4 header whose protocol is known, or in `PROTOCOL`. Its length is what it says, even if it says 0."""
        octets = Binary(Operator.LSH, Binary(Operator.AND, place.load(1, 0), Const(0xF)), Const(2))
        behind = Binary(Operator.ADD, place.at(-self.ahead), octets)
        if tproto == Const(table.AH):
            follows = self.assign(PROTOCOL, tproto, self.state(self.behind_extension, level, IPV4, 0))
        else:
            follows = self.state(self.transport, level, IPV4, tproto)
        later = Test(Comparison.SET, place.load(2, 6), Const(0x1FFF))
        return self.branch(later, self.move(behind, self.state(self.later_fragment, tproto)), self.move(behind, follows))

    def later_fragment(self, tproto: Value) -> Label:
        """A fragment that is not the first: what stands behind the headers is all payload."""
        there = self.exit(tproto=tproto, thoff=Const(0), poff=self.here.at(0))
        return self.in_packet(self.here, there, self.exit(tproto=tproto, thoff=Const(0), poff=Const(0)))

    def in_packet(self, place: Place, then: Label, otherwise: Label) -> Label:
        """`then` if a place whose base was moved by a length that the packet says is in the packet."""
        assert place.base is not None
        return self.jumped(place.base, self.needs(place, 0, then, otherwise), otherwise)

    def ipv6(self, level: int, place: Place) -> Label:
        cut = self.exit(tproto=Const(0), thoff=Const(0), poff=Const(0))
        following = place.load(1, 6)
        behind = place.at(table.IPV6_LENGTH - self.ahead)
        cases = [(number, self.move(behind, self.state(self.transport, level, IPV6, Const(number)))) for number in (table.TCP, table.UDP)]
        other = self.assign(PROTOCOL, following, self.move(behind, self.state(self.behind_extension, level, IPV6, 0)))
        complete = self.switch(following, cases, other)
        return self.keys(self.needs(place, table.IPV6_LENGTH, complete, cut), nproto=Const(IPV6), nhoff=place.at(0))

    def behind_extension(self, level: int, ip: int, passed: int) -> Label:
        """A header of protocol `PROTOCOL` at H, after so many extension headers."""
        follows = self.state(self.transport, level, ip, PROTOCOL)
        if passed == self.settings.extension_headers:
            return follows
        rows = [row for row in table.EXTENSION_HEADERS if ip == IPV6 or row.in_ipv4]
        cases = [(row.protocol, self.state(self.extension, level, ip, passed, row.length, row.fragment)) for row in rows]
        cut = self.exit(tproto=PROTOCOL, thoff=Const(0), poff=Const(0))
        return self.jumped(H, self.switch(PROTOCOL, cases, follows), cut)

    def extension(self, level: int, ip: int, passed: int, length: HeaderLength, fragment: Field | None) -> Label:
        """An extension header. Its protocol is still in `PROTOCOL`, for the case that it is cut."""
        cut = self.exit(tproto=PROTOCOL, thoff=Const(0), poff=Const(0))
        then = self.move(self.end(self.here, length), self.state(self.behind_extension, level, ip, passed + 1))
        if fragment is not None:
            later = self.move(self.end(self.here, length), self.state(self.later_fragment, PROTOCOL))
            then = self.branch(Test(Comparison.SET, self.here.load(fragment.size, fragment.offset), Const(fragment.mask)), later, then)
        return self.needs(self.here, length.fixed, self.assign(PROTOCOL, self.here.load(1, 0), then), cut)

    def transport(self, level: int, ip: int, tproto: Value) -> Label:
        """The transport header at H: its protocol is known, or in `PROTOCOL`."""
        plain = self.state(self.plain, tproto)
        tunnels = {number: row for (over, number), row in table.BY_IP_PROTOCOL.items() if over == ip} if self.goes_on(level) else {}
        match tproto:
            case Const(table.UDP):
                then = self.state(self.udp, level)
            case Const():
                then = plain
            case _:
                rest = self.search(
                    tproto, {number: self.state(self.ip_tunnel, level, row, number) for number, row in tunnels.items()}, plain
                )
                then = self.switch(tproto, [(table.TCP, plain), (table.UDP, self.state(self.udp, level))], rest)
        return self.in_packet(self.here, then, self.exit(tproto=tproto, thoff=Const(0), poff=Const(0)))

    def plain(self, tproto: Value) -> Label:
        """The end of the walk at a transport header."""
        ends = partial(self.exit, tproto=tproto, thoff=self.here.at(0))
        if "poff" not in self.wanted:
            return ends()
        match tproto:
            case Const(number):
                length = table.TRANSPORT_LENGTHS.get(number, 0)
                there = ends(poff=self.here.at(length))
                if number == table.TCP:
                    offset = self.here.load(1, 12)
                    says = Binary(Operator.LSH, Binary(Operator.RSH, offset, Const(4)), Const(2))
                    longer = ends(poff=Binary(Operator.ADD, self.here.at(0), says))
                    there = self.branch(Test(Comparison.GE, offset, Const(length << 2)), longer, there)
                return self.needs(self.here, length, there, ends(poff=Const(0)))
        cases = [(number, self.state(self.plain, Const(number))) for number in table.TRANSPORT_LENGTHS]
        return self.switch(tproto, cases, ends(poff=self.here.at(0)))

    # --- tunnels

    def goes_on(self, level: int) -> bool:
        return level < self.settings.max_levels

    def ip_tunnel(self, level: int, row: Encapsulation, number: int) -> Label:
        return self.tunnel(level, row, self.here, self.state(self.plain, Const(number)))

    def udp(self, level: int) -> Label:
        carrier = self.state(self.plain, Const(table.UDP))
        if not self.goes_on(level):
            return carrier
        cases = {port: self.state(self.udp_tunnel, level, row) for port, row in self.settings.by_port.items()}
        return self.needs(self.here, table.UDP_LENGTH, self.search(self.here.load(2, 2), cases, carrier), carrier)

    def udp_tunnel(self, level: int, row: Encapsulation) -> Label:
        return self.tunnel(level, row, self.here.behind(table.UDP_LENGTH), self.state(self.plain, Const(table.UDP)))

    def search(self, value: Value, cases: Mapping[int, Label], otherwise: Label) -> Label:
        """Tests for several numbers, by halves. What is below all of them, the usual case, takes one test."""
        ordered = sorted(cases.items())
        first = Test(Comparison.GE, value, Const(ordered[0][0])) if ordered else None
        found = self.halves(value, ordered, otherwise)
        return self.branch(first, found, otherwise) if first and len(ordered) > 2 else found

    def halves(self, value: Value, cases: Sequence[tuple[int, Label]], otherwise: Label) -> Label:
        if len(cases) <= 2:
            return self.switch(value, cases, otherwise)
        middle = len(cases) // 2
        upper, lower = self.halves(value, cases[middle:], otherwise), self.halves(value, cases[:middle], otherwise)
        return self.branch(Test(Comparison.GE, value, Const(cases[middle][0])), upper, lower)

    def tunnel(self, level: int, row: Encapsulation, place: Place, carrier: Label) -> Label:
        """A tunnel header at a place: into the next level, or to the carrier if it is not complete or not of its kind."""
        if not self.goes_on(level):
            return carrier
        if not row.prefixes:
            return self.header(level, row, place, carrier)
        then = self.header(level, row, self.in_tunnel, carrier)
        for prefix in reversed(row.prefixes):
            skipped = self.assign(
                ENTERED,
                self.end(self.in_tunnel, prefix.length),
                self.in_packet(self.in_tunnel, then, carrier),
            )
            skip = self.needs(self.in_tunnel, prefix.length.fixed, skipped, carrier)
            test = self.branch(Test(Comparison.EQ, self.in_tunnel.read(prefix.test.field), Const(prefix.test.value)), skip, then)
            then = self.needs(self.in_tunnel, prefix.test.field.size, test, carrier)
        return self.assign(ENTERED, place.at(-self.ahead), then)

    def header(self, level: int, row: Encapsulation, place: Place, carrier: Label) -> Label:
        """A header of a tunnel, behind what may stand before it."""
        fixed = place.behind(row.length.base)
        behind = partial(self.behind_header, level, row, place, carrier=carrier)
        if not row.length.parts and not row.extensions:
            then = behind(fixed)
        else:
            then = self.jumped(ENTERED, behind(self.in_tunnel), carrier)
            if row.extensions:
                chain = self.state(self.extension_chain, level, row, place, 0, carrier)
                then = self.branch(Test(Comparison.SET, *_masked(place, row.extensions.flag)), chain, then)
            then = self.assign(ENTERED, self.end(place, row.length), then)
            flags = [part.flag for part in row.length.parts if isinstance(part, IfSet)]
            if len(flags) == len(row.length.parts) and not row.extensions and len({(flag.offset, flag.size) for flag in flags}) == 1:
                # No optional part is there, the usual case: all lengths are constants.
                every = Field(flags[0].offset, flags[0].size, sum(flag.mask for flag in flags))
                then = self.branch(Test(Comparison.SET, *_masked(place, every)), then, behind(fixed))
        if row.requires:
            then = self.branch(Test(Comparison.EQ, place.read(row.requires.field), Const(row.requires.value)), then, carrier)
        return self.needs(place, row.length.fixed, then, carrier) if row.length.fixed else then

    def end(self, place: Place, length: HeaderLength) -> Value:
        """14 bytes before the end of the header at a place."""
        value = place.at(length.base - self.ahead)
        for part in length.parts:
            match part:
                case Counted(count, unit):
                    more: Value = Binary(Operator.MUL, place.read(count), Const(unit))
                case IfSet(flag, size):
                    more = _size_if_set(place, flag, size)
            value = Binary(Operator.ADD, value, more)
        return value

    def extension_chain(self, level: int, row: Encapsulation, place: Place, passed: int, carrier: Label) -> Label:
        """The extension headers of a tunnel header, at `ENTERED`."""
        chain = row.extensions
        assert chain is not None
        kind = place.read(chain.first) if passed == 0 else self.in_tunnel.load(1, -1)
        done = self.behind_header(level, row, place, self.in_tunnel, carrier)
        if passed == getattr(self.settings, chain.bound):
            more = carrier
        else:
            again = self.state(self.extension_chain, level, row, place, passed + 1, carrier)
            moved = self.in_packet(self.in_tunnel, again, carrier)
            (part,) = chain.length.parts
            assert isinstance(part, Counted)
            skip = self.assign(ENTERED, self.end(self.in_tunnel, chain.length), moved)
            more = self.needs(self.in_tunnel, chain.length.fixed, self.equal(self.in_tunnel.read(part.count), 0, carrier, skip), carrier)
        tested = self.equal(kind, 0, done, more)
        return self.in_packet(self.in_tunnel, tested, carrier) if passed == 0 else tested

    def behind_header(self, level: int, row: Encapsulation, place: Place, end: Place, carrier: Label) -> Label:
        """What follows the header at a place, at `end`, into the next level."""
        enter = partial(self.enter, level + 1, end, carrier)
        match row.next:
            case Always(ethertype):
                return enter(ethertype)
            case ByNumber(field, pairs):
                return self.needs(
                    end, 0, self.switch(place.read(field), [(number, enter(known)) for number, known in pairs], carrier), carrier
                )
            case ByNibble(pairs):
                return self.needs(end, 1, self.switch(_nibble(end), [(number, enter(known)) for number, known in pairs], carrier), carrier)
            case ByEtherType(field):
                protocol = place.read(field)
                cases = [(ETHERNET, enter(ETHERNET))]
                cases += [
                    (number, self.in_gre(level, number, place, end, carrier)) for number in (_GRE_PROTOCOLS if row.name == "gre" else ())
                ]
                adjacent = end.base == place.base and end.offset - place.offset - field.offset == field.size
                known = self.here.load(2, -2) if adjacent else PROTOCOL
                then = self.move(
                    end.at(-self.ahead), self.without_ethernet(level + 1, self.state(self.dispatch, level + 1, self.here, 0, known))
                )
                if not adjacent:
                    then = self.assign(PROTOCOL, protocol, then)
                return self.switch(protocol, cases, self.needs(end, 0, then, carrier))

    def in_gre(self, level: int, number: int, gre: Place, end: Place, carrier: Label) -> Label:
        """A header behind a GRE header that belongs to the same tunnel."""
        then = carrier
        for row in table.ENCAPSULATIONS:
            if number in row.gre_protocols:
                inside = self.header(level, row, end, carrier)
                if row.gre_test is None:
                    return inside
                then = self.branch(Test(Comparison.EQ, gre.read(row.gre_test.field), Const(row.gre_test.value)), inside, then)
        return then

    def enter(self, level: int, end: Place, carrier: Label, ethertype: int) -> Label:
        """The next level: an Ethernet frame that must be complete, or a header of a known EtherType."""
        if ethertype == ETHERNET:
            return self.needs(
                end, table.ETHERNET_LENGTH, self.move(end.at(table.ETHERNET_LENGTH - self.ahead), self.state(self.ethernet, level)), carrier
            )
        then = self.without_ethernet(level, self.state(self.ethertype, level, self.here, ethertype))
        return self.needs(end, 0, self.move(end.at(-self.ahead), then), carrier)


#: GRE protocols whose header belongs to the GRE header's tunnel, but for Ethernet itself.
_GRE_PROTOCOLS = sorted({number for row in table.ENCAPSULATIONS for number in row.gre_protocols} - {ETHERNET})


def _nibble(place: Place) -> Value:
    return Binary(Operator.RSH, place.load(1, 0), Const(4))


def _masked(place: Place, flag: Field) -> tuple[Value, Value]:
    """The two sides of a SET test for a flag."""
    return place.load(flag.size, flag.offset), Const(flag.mask & (1 << 8 * flag.size) - 1)


def _size_if_set(place: Place, flag: Field, size: int) -> Value:
    """`size` if one of the bits of `flag` is set, else 0."""
    value = Binary(Operator.AND, place.load(flag.size, flag.offset), Const(flag.mask))
    highest = flag.mask.bit_length() - 1
    if flag.mask == 1 << highest and size & size - 1 == 0:
        shift = highest - (size.bit_length() - 1)
        return Binary(Operator.RSH, value, Const(shift)) if shift >= 0 else Binary(Operator.LSH, value, Const(-shift))
    # Of several bits: adding the mask carries into the bit above it if any of them is set.
    above = 1 << flag.mask.bit_length()
    carried = Binary(Operator.AND, add(value, flag.mask), Const(above))
    shift = flag.mask.bit_length() - (size.bit_length() - 1)
    return Binary(Operator.RSH, carried, Const(shift)) if shift >= 0 else Binary(Operator.LSH, carried, Const(-shift))
