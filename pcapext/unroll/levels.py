"""Levels: the walk from the link-layer header, or the end of a tunnel's, to the transport header.

In:  what `Builder` is made of.
Out: `Levels`, all of the walk.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from pcapext import encapsulation as table
from pcapext.cfg import Binary, Block, Comparison, Const, Goto, Label, Local, Operator, Test, Value
from pcapext.encapsulation import IPV4, IPV6, ExtensionHeader
from pcapext.flowkeys import NO_ETHERNET
from pcapext.layout import Always, ByEtherType, ByNibble, ByNumber, Encapsulation
from pcapext.unroll.builder import NETWORK, NEXT, OCTETS, PROTOCOL, TYPE, VERSION, H, Place, add, local_for, nibble
from pcapext.unroll.tunnels import Tunnels, has_two_ways

#: The EtherTypes of VLAN tags, each with its row, and the others that are walked through, IP apart.
_TAGS = {number: row for number, row in table.BY_ETHERTYPE.items() if row.bound == "vlan_tags"}
_OTHERS = {number: row for number, row in table.BY_ETHERTYPE.items() if number not in _TAGS}

#: IP protocols that have code of their own where offsets are constants: what most packets carry.
_USUAL = (table.TCP, table.UDP, 47)

#: MPLS labels that are looked at before `H` moves.
_LABELS = 2


def _not_ip(nproto: Value, nhoff: Value) -> dict[str, Value]:
    """The keys of a header that is not IP."""
    return {"nproto": nproto, "nhoff": nhoff, "tproto": Const(0), "thoff": Const(0), "poff": Const(0)}


def _usual(place: Place) -> tuple[int, ...]:
    """The protocols of an IP header at a place that have code of their own."""
    return _USUAL if place.base is None else (table.TCP,)


class Levels(Tunnels):
    """The whole walk."""

    def build(self) -> tuple[Label, Mapping[Label, Block]]:
        return self.whole(self.start())

    # --- the first header

    def start(self) -> Label:
        row = self.link_layer
        nothing = self.no_protocol(1, Const(0), Const(0))
        place, header = Place(None, row.length), Place(None, 0)
        known = partial(self.state, self.ethertype, 1, place)
        match row.next:
            case Always(ethertype):
                first = known(ethertype)
            case ByEtherType(field):
                first = self.dispatch_at(1, place, header.read(field))
            case ByNumber(field, pairs):
                first = self.switch(header.read(field), [(number, known(ethertype)) for number, ethertype in pairs], nothing)
            case ByNibble(pairs):
                cases = [(number, known(ethertype)) for number, ethertype in pairs]
                first = self.needs(place, 1, self.switch(nibble(place), cases, nothing), nothing)
        lhoff = Const(0 if row.is_ethernet else NO_ETHERNET)
        first = self.keys(1, self.needs(place, 0, first, nothing), depth=Const(0), lhoff=lhoff)
        zeros: tuple[tuple[Local, Value], ...] = tuple((local_for(asked), Const(0)) for asked in self.asked)
        return self.block(Block(zeros, Goto(first))) if zeros else first

    # --- between the Ethernet header and the network header

    def dispatch_at(self, level: int, place: Place, ethertype: Value) -> Label:
        """A header of whatever EtherType a value says, behind no VLAN tag."""
        ends = self.unknown(level, place, ethertype)
        rest = self.local_form(place, self.with_type(ethertype, self.state(self.untagged, level)))
        tagged = self.switch(ethertype, self.tags(level, 0, place, ethertype), rest)
        others = self.branch(Test(Comparison.GE, ethertype, Const(min(table.BY_ETHERTYPE))), tagged, ends)
        return self.switch(ethertype, [(number, self.state(self.ethertype, level, place, number)) for number in (IPV4, IPV6)], others)

    def with_type(self, ethertype: Value, then: Label) -> Label:
        return then if ethertype == TYPE else self.assign(TYPE, ethertype, then)

    def tags(self, level: int, tags: int, place: Place, ethertype: Value) -> list[tuple[int, Label]]:
        """The cases of a VLAN tag."""
        if tags == self.settings.vlan_tags:
            return []

        def tag(row: Encapsulation) -> Label:
            # Which kind it is matters only to whom asks for its name.
            words = tuple(word for word in row.words if any(asked.name == word for asked in self.asked))
            return self.local_form(place, self.with_type(ethertype, self.state(self.vlan, level, tags, row if words else None)))

        return [(number, tag(row)) for number, row in _TAGS.items()]

    def dispatch(self, level: int, tags: int) -> Label:
        if tags == 0:
            return self.dispatch_at(level, self.here, TYPE)
        then = self.state(self.untagged, level)
        if tags == self.settings.vlan_tags:
            return then
        # Behind one tag there may well be another; a third one is rare.
        first = (IPV4,) if tags == 1 else (IPV4, IPV6, table.MPLS)
        cases = [(number, self.state(self.ethertype, level, self.here, number)) for number in first]
        return self.switch(TYPE, [*cases, *self.tags(level, tags, self.here, TYPE)], then)

    def untagged(self, level: int) -> Label:
        """A header of EtherType `TYPE` at H that is no VLAN tag, or one too many."""
        ends = self.unknown(level, self.here, TYPE)
        known = partial(self.state, self.ethertype, level, self.here)
        rest = self.search(TYPE, {number: known(number) for number in _OTHERS}, ends)
        return self.switch(TYPE, [(number, known(number)) for number in (IPV4, IPV6, table.MPLS)], rest)

    def unknown(self, level: int, place: Place, ethertype: Value) -> Label:
        """The end of the walk at a header of an EtherType that it does not know, or an 802.3 frame."""
        other, length = self.no_protocol(level, ethertype, place.at(0)), self.no_protocol(level, Const(0), Const(0))
        return self.branch(Test(Comparison.GE, ethertype, Const(table.FIRST_ETHERTYPE)), other, length)

    def no_protocol(self, level: int, nproto: Value, nhoff: Value) -> Label:
        """The end of the walk at a header that is not IP."""
        return self.exit(level, **_not_ip(nproto, nhoff))

    def ethertype(self, level: int, place: Place, number: int) -> Label:
        if number == IPV4:
            return self.ipv4(level, place)
        if number == IPV6:
            return self.ipv6(level, place)
        if place != self.here:
            return self.local_form(place, self.state(self.ethertype, level, self.here, number))
        number = table.MPLS if number == table.MPLS_MULTICAST else number
        row = table.BY_ETHERTYPE.get(number)
        keys = _not_ip(Const(number), self.here.at(0))
        ends = self.exit(level, **keys)
        if row is None:
            return ends
        if row.begins_level:
            return self.leave(level, self.tunnel(level, row, self.here, ends), **keys)
        match row.name:
            case "mpls":
                return self.state(self.mpls, level, 0)
            case "pppoe":
                return self.pppoe(level, row, ends)
        raise AssertionError(f"{row.name} is for dispatch to look at")

    def vlan(self, level: int, tags: int, row: Encapsulation | None) -> Label:
        """A VLAN tag at H, of the TPID in `TYPE`, behind so many others."""
        ends = self.no_protocol(level, TYPE, self.here.at(0))
        behind = self.assign(TYPE, self.here.load(2, -2), self.state(self.dispatch, level, tags + 1))
        then = self.move(add(H, 4), behind)
        return self.needs(self.here, 4, then if row is None else self.passed(row, self.here, then), ends)

    def mpls(self, level: int, labels: int) -> Label:
        """MPLS labels, `labels` of them passed before H in this level."""
        row = table.BY_ETHERTYPE[table.MPLS]
        assert row.repeats is not None
        here = [self.here.behind(4 * number) for number in range(_LABELS + 1)]
        left = min(_LABELS, self.settings.mpls_labels - labels)
        if left == _LABELS:
            then = self.move(add(H, 4 * left), self.state(self.mpls, level, labels + left))
        else:
            then = self.ends_on_label(level, here[left])
        for number in reversed(range(left)):
            bottom = self.state(self.bottom_of_stack, level, 4 * (number + 1))
            then = self.branch(here[number].equals(row.repeats), then, bottom)
            then = self.needs(here[number], 4, self.passed(row, here[number], then), self.ends_on_label(level, here[number]))
        return then

    def ends_on_label(self, level: int, label: Place) -> Label:
        return self.no_protocol(level, Const(table.MPLS), label.at(0))

    def bottom_of_stack(self, level: int, distance: int) -> Label:
        return self.move(add(H, distance), self.state(self.behind_labels, level))

    def behind_labels(self, level: int) -> Label:
        """What follows the bottom of an MPLS stack; if that is nothing known, the walk ends on the last label."""
        last = self.here.behind(-4)
        ends = self.ends_on_label(level, last)
        cases = [(number, self.state(self.ethertype, level, self.here, ethertype)) for number, ethertype in table.IP_BY_NIBBLE.pairs]
        keys = _not_ip(Const(table.MPLS), last.at(0))
        cases += [(number, self.leave(level, self.tunnel(level, row, self.here, ends), **keys)) for number, row in table.BY_NIBBLE.items()]
        return self.needs(self.here, 1, self.switch(nibble(self.here), cases, ends), ends)

    def pppoe(self, level: int, row: Encapsulation, ends: Label) -> Label:
        size = row.length.base
        assert isinstance(row.next, ByNumber)
        cases = [(number, self.state(self.ethertype, level, self.here, ethertype)) for number, ethertype in row.next.pairs]
        header = self.here.behind(-size)
        unknown = self.no_protocol(level, Const(row.ethertypes[0]), header.at(0))
        behind = self.move(add(H, size), self.switch(header.read(row.next.field), cases, unknown))
        return self.needs(self.here, size, self.passed(row, self.here, behind), ends)

    # --- IP

    def ipv4(self, level: int, place: Place) -> Label:
        cut = self.exit(level, tproto=Const(0), thoff=Const(0), poff=Const(0))
        protocol = place.load(1, 9)
        complete = partial(self.needs, place, table.IPV4_LENGTH)
        known = [(number, self.ipv4_carries(level, place, Const(number))) for number in _usual(place)]
        other = self.ipv4_carries(level, place, PROTOCOL)
        if cut == self.reject:
            # One load, and for what is a tunnel none, since more is read behind it. So not before the protocol is known.
            other = self.assign(PROTOCOL, protocol, complete(other, cut))
            then = self.switch(protocol, [(number, complete(carries, cut)) for number, carries in known], other)
        else:
            then = complete(self.switch(protocol, known, self.assign(PROTOCOL, protocol, other)), cut)
        return self.network(level, IPV4, place, then)

    def ipv4_carries(self, level: int, place: Place, tproto: Value) -> Label:
        """An IPv4 header whose protocol is known, or in `PROTOCOL`. Its length is what it says, even if it says 0."""
        octets = Binary(Operator.LSH, Binary(Operator.AND, place.load(1, 0), Const(0xF)), Const(2))
        behind = Binary(Operator.ADD, place.at(-self.ahead), octets)
        first = self.state(self.transport, level, tproto) if tproto != PROTOCOL else self.state(self.ipv4_chain, level)
        later = Test(Comparison.SET, place.load(2, 6), Const(0x1FFF))
        return self.branch(
            later, self.move(behind, self.once(self.later_fragment, self.outermost(level), tproto)), self.move(behind, first)
        )

    def outermost(self, level: int) -> int:
        """The level, where it matters whether that is the first one: 1, or 2 for any other."""
        return 1 if level == 1 and self.outer else 2

    def later_fragment(self, level: int, tproto: Value) -> Label:
        """A fragment that is not the first: what stands behind the headers is all payload."""
        there = self.exit(level, tproto=tproto, thoff=Const(0), poff=self.here.at(0))
        return self.in_packet(self.here, there, self.exit(level, tproto=tproto, thoff=Const(0), poff=Const(0)))

    def ipv6(self, level: int, place: Place) -> Label:
        cut = self.exit(level, tproto=Const(0), thoff=Const(0), poff=Const(0))
        following = place.load(1, 6)
        behind = place.at(table.IPV6_LENGTH - self.ahead)
        cases = [(number, self.move(behind, self.state(self.transport, level, Const(number)))) for number in _usual(place)]
        chain = self.assign(VERSION, Const(0), self.state(self.chain, level, 0))
        other = self.assign(PROTOCOL, following, self.move(behind, chain))
        complete = self.switch(following, cases, other)
        return self.network(level, IPV6, place, self.needs(place, table.IPV6_LENGTH, complete, cut))

    def chain(self, level: int, passed: int) -> Label:
        """A header of protocol `PROTOCOL` at H, after so many extension headers; `VERSION` is 0 in IPv6."""
        follows = self.state(self.transport, level, PROTOCOL)
        if passed == self.settings.extension_headers:
            return follows
        cases = []
        for row in table.EXTENSION_HEADERS:
            header = self.state(self.extension, level, passed, row)
            known = (
                header
                if row.in_ipv4 or passed == 0
                else self.equal(VERSION, 0, header, self.state(self.transport, level, Const(row.protocol)))
            )
            cases.append((row.protocol, known))
        return self.switch(PROTOCOL, cases, follows)

    def ipv4_chain(self, level: int) -> Label:
        """A header of protocol `PROTOCOL` at H, behind an IPv4 header."""
        follows = self.state(self.transport, level, PROTOCOL)
        if not self.settings.extension_headers:
            return follows
        cases = []
        for row in table.EXTENSION_HEADERS:
            if row.in_ipv4:
                header = self.state(self.extension, level, 0, row)
                cases.append((row.protocol, self.assign(VERSION, PROTOCOL, header)))  # not 0, and at hand
        return self.switch(PROTOCOL, cases, follows)

    def extension(self, level: int, passed: int, row: ExtensionHeader) -> Label:
        """An extension header. Its protocol is still in `PROTOCOL`, for the case that it is cut."""
        cut = self.exit(level, tproto=PROTOCOL, thoff=Const(0), poff=Const(0))
        behind = self.state(self.behind_extension, level, passed, row.length.base)
        then = self.assign(OCTETS, self.with_parts(Const(0), self.here, row.length), behind)
        if row.fragment is not None:
            ends = self.once(self.later_fragment, self.outermost(level), PROTOCOL)
            later = self.assign(PROTOCOL, self.here.load(1, 0), self.move(self.end(self.here, row.length), ends))
            then = self.branch(self.here.has_bits(row.fragment), later, then)
        then = self.needs(self.here, row.length.fixed, then, cut)
        # Only the first one of IPv6 stands where its place is known to be in the packet.
        return self.jumped(H, then, cut) if passed or row.in_ipv4 else then

    def behind_extension(self, level: int, passed: int, base: int) -> Label:
        """An extension header at H of `base` + `OCTETS` bytes. Its first byte says what follows (RFC 8200 4, RFC 4302 2.1)."""
        then = self.move(NEXT, self.state(self.chain, level, passed + 1))
        then = self.assign(PROTOCOL, self.here.load(1, 0), then)
        return self.assign(NEXT, add(Binary(Operator.ADD, H, OCTETS), base), then)

    def transport(self, level: int, tproto: Value) -> Label:
        """The transport header at H: its protocol is known, or in `PROTOCOL`."""
        tunnels = {number for _, number in table.BY_IP_PROTOCOL} if self.goes_on(level) else set()
        plain = partial(self.once, self.plain, self.outermost(level))
        match tproto:
            case Const(table.UDP):
                then = self.state(self.udp, level)
            case Const(number):
                then = self.state(self.ip_tunnel, level, number) if number in tunnels else plain(tproto)
            case _:
                rest = self.search(tproto, {number: self.state(self.ip_tunnel, level, number) for number in tunnels}, plain(tproto))
                then = self.switch(tproto, [(table.TCP, plain(Const(table.TCP))), (table.UDP, self.state(self.udp, level))], rest)
        return self.in_packet(self.here, then, self.exit(level, tproto=tproto, thoff=Const(0), poff=Const(0)))

    def plain(self, level: int, tproto: Value) -> Label:
        """The end of the walk at a transport header."""
        ends = partial(self.exit, level, tproto=tproto, thoff=self.here.at(0))
        if "poff" not in self.inner and "poff" not in self.outer:
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
        cases = [(number, self.once(self.plain, level, Const(number))) for number in table.TRANSPORT_LENGTHS]
        return self.switch(tproto, cases, ends(poff=self.here.at(0)))

    def ip_tunnel(self, level: int, number: int) -> Label:
        over_ipv4, over_ipv6 = (self.carried(level, table.BY_IP_PROTOCOL[ip, number], self.here, number) for ip in (IPV4, IPV6))
        then = self.equal(NETWORK, IPV6, over_ipv6, over_ipv4) if self.names_network else over_ipv4
        return self.leave(level, then, tproto=Const(number), thoff=self.here.at(0), poff=self.here.at(0))

    def carried(self, level: int, row: Encapsulation, place: Place, number: int) -> Label:
        """A tunnel header behind IP protocol `number`, or UDP."""
        plain = partial(self.once, self.plain, self.outermost(level))
        if has_two_ways(row) and len({plain(Const(carrier)) for carrier in (table.UDP, *row.ip_protocols)}) > 1:
            return self.assign(PROTOCOL, Const(number), self.tunnel(level, row, place, plain(PROTOCOL)))
        return self.tunnel(level, row, place, plain(Const(number)))

    @property
    def names_network(self) -> bool:
        """Whether somebody asks for a name that stands for a tunnel in IPv4 only, or in IPv6 only."""
        return any(asked.name in row.words for asked in self.asked for row in table.ENCAPSULATIONS if row.over)

    def network(self, level: int, ip: int, place: Place, then: Label) -> Label:
        """An IP header at a place."""
        then = self.assign(NETWORK, Const(ip), then) if self.names_network else then
        return self.keys(level, then, nproto=Const(ip), nhoff=place.at(0))

    def udp(self, level: int) -> Label:
        carrier = self.once(self.plain, self.outermost(level), Const(table.UDP))
        if not self.goes_on(level):
            return carrier
        header = self.here.behind(table.UDP_LENGTH)
        ports = {port: self.carried(level, row, header, table.UDP) for port, row in self.settings.by_port.items()}
        found = self.search(self.here.load(2, 2), ports, carrier)
        if ports:
            usual = next(iter(ports))
            found = self.equal(self.here.load(2, 2), usual, ports[usual], found)
        found = self.leave(level, found, tproto=Const(table.UDP), thoff=self.here.at(0), poff=header.at(0))
        return self.needs(self.here, table.UDP_LENGTH, found, carrier)
