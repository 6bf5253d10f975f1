"""The walk in C: from the rows of encapsulation.py to functions that go through headers.

In:  a link layer, the settings of the walk, and what is wanted of it: keys of the innermost and outermost headers, names that were passed.
Out: C text: `struct found`, which has what is wanted, and `walk`, which finds it. It calls helpers of pieces.py.

It is the walk of pcapext/dissect.py, step by step, with a function for each row of the table (`past_vxlan`) and for each part of that
walk. The levels are a loop. What no one wants is left to the C compiler to take out.

An offset is in the packet wherever it is kept: what is computed from the bytes of a packet is asked of `has` at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pcapext import encapsulation as table
from pcapext.cfg import Key, Passed
from pcapext.encapsulation import ETHERNET, IPV4, IPV6, MPLS, LinkLayer, WalkSettings
from pcapext.flowkeys import FLOW_KEYS, NO_ETHERNET
from pcapext.layout import Always, ByEtherType, ByNibble, ByNumber, Counted, Encapsulation, Equals, Field, IfSet, Length, Next
from pcapext.write_c.pieces import calls, identifier, indented

#: The headers of one level, IP apart; and those that begin the next one, but for those in GRE, which belong to it.
_TAGS = tuple(row for row in table.ENCAPSULATIONS if not row.begins_level)
_TUNNELS = tuple(row for row in table.ENCAPSULATIONS if row.begins_level and not row.gre_protocols)

_UNKNOWN = "UNKNOWN"


def member(value: Key | Passed) -> str:
    """The member of `struct found` that holds what the walk tells.

    >>> member(Key("thoff", True)), member(Passed("vxlan-gpe", 42))
    ('outer_thoff', 'encap_vxlan_gpe_42')
    """
    match value:
        case Key(name, outer):
            return f"outer_{name}" if outer else name
        case Passed(name, number):
            return f"encap_{identifier(name)}" if number is None else f"encap_{identifier(name)}_{number}"


def write_walk(link_layer: LinkLayer, settings: WalkSettings, wanted: Sequence[Key | Passed]) -> str:
    """The text of the walk."""
    return _Walk(link_layer, settings, wanted).text()


class _Walk:
    """Writes one walk."""

    def __init__(self, link_layer: LinkLayer, settings: WalkSettings, wanted: Sequence[Key | Passed]):
        self.link_layer = link_layer
        self.settings = settings
        self.wanted = wanted
        self.asked = [value for value in wanted if isinstance(value, Passed)]
        # The outermost headers stand in the first level.
        inner = [value for value in wanted if not (isinstance(value, Key) and value.outer)]
        self.levels = settings.max_levels if inner else 1

    def text(self) -> str:
        functions = [*self.ways_past(), self.tags(), self.extension(), self.ip(), self.tunnel(), self.walk()]
        kept = functions.pop()
        for function in reversed(functions):
            name = function.partition("(")[0].split()[-1]
            if calls(kept, name):
                kept = f"{function}\n{kept}"
        return f"{self.types()}\n{kept}"

    # --- types

    def types(self) -> str:
        found = "".join(f"    uint32_t {member(value)};\n" for value in self.wanted)
        passed = "".join(f"    uint32_t {member(value)};\n" for value in self.asked)
        tunnels = "".join(f"    {_tunnel(row)}, /* {row.title}: {row.standard} */\n" for row in _TUNNELS) if self.levels > 1 else ""
        keys = ", ".join(key.name for key in FLOW_KEYS)
        return f"""\
/* ---- The walk through the headers ---- */

/* What it finds: of the innermost headers where nothing else is said. */
struct found {{
{found}}};

/* The keys of one level of headers. */
struct keys {{
    uint32_t {keys};
}};

/* A header that comes next: its EtherType, where it is, and the Ethernet header before it; and what was passed by then. */
struct header {{
    uint32_t type;
    uint64_t offset;
    uint32_t lhoff;
{passed}}};

enum {{ {_UNKNOWN} = 0x10000 }}; /* no EtherType */

/* Headers that begin the next level. */
enum tunnel_kind {{
    NO_TUNNEL,
{tunnels}}};

struct tunnel {{
    enum tunnel_kind kind;
    uint64_t offset;
}};
"""

    # --- past one header

    def ways_past(self) -> Iterator[str]:
        for row in table.ENCAPSULATIONS:
            if row.gre_protocols:
                yield self.past(row)
        for row in table.ENCAPSULATIONS:
            if not row.gre_protocols:
                yield self.past(row)

    def is_plain(self, row: Encapsulation) -> bool:
        """Whether there is nothing to look at: what a tunnel carries stands where it begins, and no one asks for its name."""
        alone = Encapsulation(row.name, "", "", row.next, words=row.words)
        same = (row.length, row.prefixes, row.requires, row.extensions) == (alone.length, alone.prefixes, alone.requires, alone.extensions)
        return same and isinstance(row.next, Always) and not any(value.name in row.words for value in self.asked)

    def past(self, row: Encapsulation) -> str:
        """A function that goes past a header: 0 where it is not complete or not of its kind. `next` has the EtherType behind it."""
        lines = [*self.prefixes(row)]
        lines += self.length(row)
        if row.requires:
            lines += [f"if ({_differs(row.requires)})", "    return 0;"]
        # Where the header is not entered after all, no one looks at `next`.
        lines += [line for value in self.asked if value.name in row.words for line in self.passes(row, value)]
        if row.extensions:
            lines += self.extensions(row)
        lines += self.following(row)
        if row.name == "gre":
            lines += self.inside_gre()
        lines.append("return 1;")
        declared = "const uint8_t *at;" if any(re.search(r"\bat\b", line) for line in lines) else "(void)packet;"
        head = f"INLINE int {_past(row)}(struct packet packet, uint64_t offset, struct header *next)"
        return _function(f"{row.title}: {row.standard}", head, [declared, *lines])

    def prefixes(self, row: Encapsulation) -> Iterator[str]:
        for prefix in row.prefixes:
            field = prefix.test.field
            yield f"if (!has(packet, offset, {field.offset + field.size}, &at))"
            yield "    return 0;"
            yield f"if ({_read(field)} == {prefix.test.value:#x}) {{"
            yield f"    if (!has(packet, offset, {prefix.length.fixed}, &at))"
            yield "        return 0;"
            yield f"    offset += {_length(prefix.length)};"
            yield "    if (!within(packet, offset))"
            yield "        return 0;"
            yield "}"

    def length(self, row: Encapsulation) -> Iterator[str]:
        """To the end of the header: `next->offset`. `at` is the header then, of which the fixed part can be read."""
        length = row.length
        if length.fixed:
            yield f"if (!has(packet, offset, {length.fixed}, &at))"
            yield "    return 0;"
        yield f"next->offset = offset + {_length(length)};" if length.parts or length.base else "next->offset = offset;"
        if length.parts:
            yield "if (!within(packet, next->offset))"
            yield "    return 0;"

    def extensions(self, row: Encapsulation) -> list[str]:
        chain = row.extensions
        assert chain is not None
        bound = getattr(self.settings, chain.bound)
        return [
            f"if ({_read(chain.flag)}) {{",
            "    uint32_t kind;",
            f"    if (!has(packet, offset, {chain.first.offset + chain.first.size}, &at))",
            "        return 0;",
            f"    kind = {_read(chain.first)};",
            f"    for (int passed = 0; kind && passed < {bound}; passed++) {{",
            "        uint64_t size;",
            f"        if (!has(packet, next->offset, {chain.length.fixed}, &at))",
            "            return 0;",
            f"        size = {_length(chain.length)};",
            "        if (size == 0 || !has(packet, next->offset + size - 1, 1, &at))",
            "            return 0;",
            "        kind = at[0];",
            "        next->offset = forget(packet, next->offset + size);",
            "    }",
            "    if (kind)",
            "        return 0;",
            "}",
        ]

    def following(self, row: Encapsulation) -> list[str]:
        """What stands behind a header that ends at `next->offset`, in `next->type`."""
        unknown = [f"next->type = {_UNKNOWN};"] if not row.begins_level else ["return 0;"]
        if row.repeats:
            stays = [f"if ({_read(row.repeats.field)} == {row.repeats.value:#x})", f"    next->type = {row.ethertypes[0]:#06x};", "else {"]
            return [*stays, *indented(_next(row.next, unknown)), "}"]
        return _next(row.next, unknown)

    def passes(self, row: Encapsulation, value: Passed) -> list[str]:
        """Notes that a header was passed that an `encap` term asks for."""
        note = f"next->{member(value)} = (uint32_t)forget(packet, 1);"
        if value.identifier is None:
            return [note]
        named = row.identifier
        if named is None or value.identifier > named.field.largest:
            return []
        assert not row.prefixes, "an identifier is behind the offset that the header began at"
        field = named.field
        size = field.offset + field.size
        flag = f"{_read(named.flag)} && " if named.flag else ""
        if not named.before and field.offset >= 0 and size <= row.length.fixed:
            return [f"if ({flag}{_read(field)} == {value.identifier})", f"    {note}"]
        before = "".join(f" + ({_read(part.flag)} ? {part.length} : 0)" for part in named.before)
        sign = "-" if field.offset < 0 else "+"
        there = f"has(packet, offset {sign} {abs(field.offset)}{before}, {field.size}, &id)"
        return [
            "{",
            "    const uint8_t *id;",
            f"    if ({flag}{there} && {_read(field, 'id', -field.offset)} == {value.identifier})",
            f"        {note}",
            "}",
        ]

    def inside_gre(self) -> Iterator[str]:
        """A header that belongs to the GRE header before it."""
        for row in table.ENCAPSULATIONS:
            for protocol in row.gre_protocols:
                test = f" && {_equals(row.gre_test)}" if row.gre_test else ""
                yield f"{'' if row is _IN_GRE[0] else '} else '}if (next->type == {protocol:#06x}{test}) {{"
                yield f"    if (!{_past(row)}(packet, next->offset, next))"
                yield "        return 0;"
        yield "}"

    # --- one level

    def tags(self) -> str:
        counted = list(dict.fromkeys(row.bound for row in _TAGS if row.bound))
        # A header without a bound is not behind an EtherType field, which could name it again.
        unbounded = [row for row in _TAGS if not row.bound]
        assert not any(isinstance(row.next, ByEtherType) for row in unbounded)
        turns = sum(getattr(self.settings, bound) for bound in counted) + len(unbounded) + 1
        cases: list[str] = []
        for row in _TAGS:
            names = [f"case {number:#06x}:" for number in row.ethertypes]
            names[0] += f" /* {row.title} */"
            cases += names
            stops = f"{row.bound}++ == {getattr(self.settings, row.bound)} || " if row.bound else ""
            if MPLS in row.ethertypes:
                cases.append(f"    header->type = next.type = {MPLS:#06x};")
            cases += [f"    if ({stops}!{_past(row)}(packet, header->offset, &next))", "        return none;", "    break;"]
        if self.levels > 1:
            for row in _TUNNELS:
                for number in row.ethertypes:
                    cases += [f"case {number:#06x}: /* {row.title} */", f"    none.kind = {_tunnel(row)};", "    return none;"]
        nibbles = [row for row in _TUNNELS if row.nibbles] if self.levels > 1 else []
        behind: list[str] = []
        if nibbles:
            numbers = [(number, row) for row in nibbles for number in row.nibbles]
            behind = [
                f"if (header->type == {MPLS:#06x} && has(packet, next.offset, 1, &at)) {{",
                "    none.offset = next.offset;",
                *(f"    if (at[0] >> 4 == {number}) none.kind = {_tunnel(row)}; /* {row.title} */" for number, row in numbers),
                "}",
            ]
        lines = [
            "struct header next = *header;",
            "struct tunnel nowhere = {NO_TUNNEL, 0};",
            f"uint32_t {', '.join(f'{name} = 0' for name in counted)};",
            *(["const uint8_t *at;"] if nibbles else []),
            f"for (int turn = 0; turn < {turns}; turn++) {{",
            "    struct tunnel none = {NO_TUNNEL, header->offset};",
            "    switch (header->type) {",
            *indented(cases),
            "    default:",
            "        return none;",
            "    }",
            f"    if (next.type == {_UNKNOWN}) {{ /* the walk ends at this header */",
            *indented(behind, 2),
            "        next.type = header->type;",
            "        next.offset = header->offset;",
            "        *header = next;",
            "        return none;",
            "    }",
            "    next.offset = forget(packet, next.offset);",
            "    *header = next;",
            "}",
            "return nowhere;",
        ]
        return _function(
            "Past VLAN tags, PPPoE and MPLS labels, to another header; the tunnel that stands there",
            "INLINE struct tunnel past_tags(struct packet packet, struct header *header)",
            lines,
        )

    def extension(self) -> str:
        by_length: dict[tuple[Length, Field | None, bool], list[table.ExtensionHeader]] = {}
        for row in table.EXTENSION_HEADERS:
            by_length.setdefault((row.length, row.fragment, row.in_ipv4), []).append(row)
        cases: list[str] = []
        for (length, fragment, in_ipv4), rows in by_length.items():
            cases += [f"case {row.protocol}: /* {row.title}: {row.standard} */" for row in rows]
            if not in_ipv4:
                cases += [f"    if (nproto == {IPV4:#06x})", "        return 0;"]
            cases += [f"    if (!has(packet, *offset, {length.fixed}, &at))", "        return -1;", f"    *offset += {_length(length)};"]
            if fragment:
                cases.append(f"    *later = {_read(fragment)} != 0;")
            cases.append("    break;")
        return _function(
            "Past a header between an IP header and the transport header: 0 where there is none, -1 where it is cut",
            "INLINE int past_extension(struct packet packet, uint32_t nproto, uint32_t *tproto, uint64_t *offset, int *later)",
            [
                "const uint8_t *at;",
                "switch (*tproto) {",
                *cases,
                "default:",
                "    return 0;",
                "}",
                "*tproto = at[0];",
                "return 1;",
            ],
        )

    def ip(self) -> str:
        lines = [
            "struct tunnel tunnel = {NO_TUNNEL, 0};",
            f"uint32_t tproto{', length = 0' if self.wants('poff') else ''};",
            "uint64_t offset = header->offset;",
            "int later = 0;",
            "const uint8_t *at;",
            f"if (header->type == {IPV4:#06x}) {{",
            f"    if (!has(packet, offset, {table.IPV4_LENGTH}, &at))",
            "        return tunnel;",
            "    tproto = at[9];",
            "    later = (half_at(at + 6) & 0x1fff) != 0;",
            "    offset += 4 * (at[0] & 0x0f);",
            "} else {",
            f"    if (!has(packet, offset, {table.IPV6_LENGTH}, &at))",
            "        return tunnel;",
            "    tproto = at[6];",
            f"    offset += {table.IPV6_LENGTH};",
            "}",
        ]
        if self.settings.extension_headers:
            lines += [
                f"for (int passed = 0; passed < {self.settings.extension_headers} && !later; passed++) {{",
                "    int more = past_extension(packet, header->type, &tproto, &offset, &later);",
                "    if (more == 0)",
                "        break;",
                "    if (more < 0) {",
                "        keys->tproto = tproto;",
                "        return tunnel;",
                "    }",
                "    if (!within(packet, offset))",
                "        break;",
                "    offset = forget(packet, offset);",
                "}",
            ]
        lines += [
            "tproto = (uint32_t)forget(packet, tproto);",
            "keys->tproto = tproto;",
            "if (!within(packet, offset))",
            "    return tunnel;",
            "offset = forget(packet, offset);",
        ]
        lines += ["if (later) {", "    keys->poff = (uint32_t)offset;", "    return tunnel;", "}", "keys->thoff = (uint32_t)offset;"]
        if self.wants("poff"):
            lines += self.payload()
        if self.levels > 1:
            lines += self.carried()
        lines.append("return tunnel;")
        return _function(
            "Past an IP header and what follows it; the keys of both, and the tunnel that stands there",
            "INLINE struct tunnel past_ip(struct packet packet, const struct header *header, struct keys *keys)",
            lines,
        )

    def wants(self, key: str) -> bool:
        return any(isinstance(value, Key) and value.name == key for value in self.wanted)

    def payload(self) -> list[str]:
        cases: list[str] = []
        by_length: dict[int, list[int]] = {}
        for protocol, length in table.TRANSPORT_LENGTHS.items():
            by_length.setdefault(length, []).append(protocol)
        tcp = table.TRANSPORT_LENGTHS[table.TCP]
        for length, protocols in by_length.items():
            cases += [f"case {protocol}:" for protocol in protocols]
            cases += [f"    length = {length};", "    break;"]
        return [
            "/* The fixed part of the transport header; TCP says how long it is. */",
            "switch (tproto) {",
            *cases,
            "}",
            "if (has(packet, offset, length, &at)) {",
            f"    if (tproto == {table.TCP} && has(packet, offset, {tcp}, &at) && 4u * (at[12] >> 4) > length)",
            "        length = 4u * (at[12] >> 4);",
            "    keys->poff = (uint32_t)offset + length;",
            "}",
        ]

    def carried(self) -> list[str]:
        """The tunnel behind an IP header that ends at `offset`."""
        cases: list[str] = []
        for protocol in dict.fromkeys(protocol for _, protocol in table.BY_IP_PROTOCOL):
            four, six = (table.BY_IP_PROTOCOL.get((ip, protocol)) for ip in (IPV4, IPV6))
            kinds = [_tunnel(row) if row else "NO_TUNNEL" for row in (four, six)]
            kind = kinds[0] if kinds[0] == kinds[1] else f"header->type == {IPV4:#06x} ? {kinds[0]} : {kinds[1]}"
            cases += [f"case {protocol}:", f"    tunnel.kind = {kind};", "    break;"]
        ports: dict[str, list[int]] = {}
        for port, row in self.settings.by_port.items():
            ports.setdefault(_tunnel(row), []).append(port)
        by_port: list[str] = []
        for kind, numbers in ports.items():
            by_port += [*(f"case {port}:" for port in numbers), f"    tunnel.kind = {kind};", "    break;"]
        udp = [
            f"case {table.UDP}:",
            f"    if (!has(packet, offset, {table.UDP_LENGTH}, &at))",
            "        break;",
            f"    tunnel.offset += {table.UDP_LENGTH};",
            "    switch (half_at(at + 2)) {",
            *indented(by_port),
            "    }",
            "    break;",
        ]
        return ["tunnel.offset = offset;", "switch (tproto) {", *(udp if by_port else []), *cases, "}"]

    # --- from one level to the next

    def tunnel(self) -> str:
        found = [row for row in _TUNNELS if not row.ports or row.ip_protocols or row in self.settings.by_port.values()]
        cases: list[str] = []
        plain: dict[int, list[Encapsulation]] = {}
        for row in found:
            if self.is_plain(row) and isinstance(row.next, Always):
                plain.setdefault(row.next.ethertype, []).append(row)
                continue
            cases += [f"case {_tunnel(row)}:", f"    entered = {_past(row)}(packet, tunnel.offset, &next);", "    break;"]
        for ethertype, rows in plain.items():
            cases += [f"case {_tunnel(row)}:" for row in rows]
            cases += [f"    next.type = {ethertype:#06x};", "    break;"]
        return _function(
            "Past a tunnel's header to the first header of the next level; 0 where it is not complete or not of its kind",
            "INLINE int past_tunnel(struct packet packet, struct tunnel tunnel, struct header *header)",
            [
                "struct header next = *header;",
                "const uint8_t *at;",
                "int entered = 1;",
                "next.offset = tunnel.offset;",
                "switch (tunnel.kind) {",
                *cases,
                "default:",
                "    return 0;",
                "}",
                "if (!entered)",
                "    return 0;",
                f"next.lhoff = {NO_ETHERNET:#x};",
                f"if (next.type == {ETHERNET:#06x}) {{ /* an Ethernet frame */",
                f"    if (!has(packet, next.offset, {table.ETHERNET_LENGTH}, &at))",
                "        return 0;",
                "    next.lhoff = (uint32_t)next.offset;",
                "    next.type = half_at(at + 12);",
                f"    next.offset += {table.ETHERNET_LENGTH};",
                "}",
                "next.type = (uint32_t)forget(packet, next.type);",
                "next.offset = forget(packet, next.offset);",
                "next.lhoff = (uint32_t)forget(packet, next.lhoff);",
                "*header = next;",
                "return 1;",
            ],
        )

    def walk(self) -> str:
        row = self.link_layer
        lhoff = 0 if row.is_ethernet else NO_ETHERNET
        first = _next(row.next, [f"next->type = {_UNKNOWN};"])
        first = [line.replace("next->", "header.") for line in first]
        start = [
            f"header.lhoff = {lhoff:#x};",
            *(f"found->{member(value)} = header.lhoff;" for value in self.wanted if isinstance(value, Key) and value.name == "lhoff"),
            f"if (has(packet, 0, {row.length}, &at)) {{",
            f"    header.offset = {row.length};",
            *indented(first),
            f"    if (header.type == {_UNKNOWN})",
            "        header.type = 0;",
            "}",
        ]
        inner = [value for value in self.wanted if isinstance(value, Key) and not value.outer]
        outer = [value for value in self.wanted if isinstance(value, Key) and value.outer]
        last = self.levels - 1
        level = [
            "struct tunnel tunnel = past_tags(packet, &header);",
            "struct keys keys = {0, 0, 0, 0, 0, 0, 0};",
            "header.type = (uint32_t)forget(packet, header.type);",
            "header.offset = forget(packet, header.offset);",
            f"if (header.type < {table.FIRST_ETHERTYPE:#06x}) /* a length */",
            "    header.type = 0, header.offset = 0;",
            "keys.nhoff = (uint32_t)header.offset;",
            "keys.nproto = header.type;",
            "keys.lhoff = header.lhoff;",
            "keys.depth = depth;",
            f"if (header.type == {IPV4:#06x} || header.type == {IPV6:#06x})",
            "    tunnel = past_ip(packet, &header, &keys);",
            *(f"found->{member(value)} = keys.{value.name};" for value in inner),
        ]
        if outer:
            level += ["if (depth == 0) {", *(f"    found->{member(value)} = keys.{value.name};" for value in outer), "}"]
        if last:
            level += [f"if (depth == {last} || !past_tunnel(packet, tunnel, &header))", "    break;"]
        else:
            level.append("(void)tunnel;")
        lines = [
            f"struct header header = {{{', '.join(['0'] * (3 + len(self.asked)))}}};",
            "const uint8_t *at;",
            "struct packet packet;",
            "packet.data = data;",
            "packet.end = data_end;",
            *start,
            "#ifdef __bpf__",
            "if (!has(packet, 0, 1, &at))",
            "    return;",
            "packet.any = at[0] * 0x0101010101010101;",
            *(f"header.{member(value)} = (uint32_t)forget(packet, 0);" for value in self.asked),
            "#else",
            f"if (packet.end - packet.data > {table.WALKED_BYTES:#x})",
            f"    packet.end = packet.data + {table.WALKED_BYTES:#x};",
            "#endif",
            f"for (uint32_t depth = 0; depth < {self.levels}; depth++) {{",
            *indented(level),
            "}",
            *(f"found->{member(value)} = header.{member(value)};" for value in self.asked),
        ]
        return _function(
            "From the link-layer header to the innermost headers. It runs once for a packet at the most.",
            "static void walk(const uint8_t *data, const uint8_t *data_end, struct found *found)",
            lines,
        )


_IN_GRE = tuple(row for row in table.ENCAPSULATIONS if row.gre_protocols)


# ---- The words of layout.py ----


def _tunnel(row: Encapsulation) -> str:
    return f"TUNNEL_{identifier(row.name).upper()}"


def _past(row: Encapsulation) -> str:
    return f"past_{identifier(row.name)}"


def _function(comment: str, head: str, lines: Iterable[str]) -> str:
    body = [line if line.startswith("#") else "".join(indented([line])) for line in lines]
    return "\n".join([f"/* {comment.removesuffix('.')}. */", head, "{", *body, "}", ""])


def _read(field: Field, at: str = "at", moved: int = 0) -> str:
    """The number in a field of the header at `at`, which was moved by so many bytes."""
    offset = field.offset + moved
    match field.size:
        case 1:
            value = f"{at}[{offset}]"
        case 2:
            value = f"half_at({at} + {offset})" if offset else f"half_at({at})"
        case _:
            value = f"word_at({at} + {offset})" if offset else f"word_at({at})"
    whole = (1 << 8 * field.size) - 1
    if field.mask & whole != whole and (field.mask & whole) >> field.shift << field.shift == field.mask & whole:
        kept = field.mask & whole
        if kept >> field.shift != whole >> field.shift:
            value = f"({value} & {kept:#x})"
    return f"({value} >> {field.shift})" if field.shift else value


def _equals(test: Equals) -> str:
    return f"{_read(test.field)} == {test.value:#x}"


def _differs(test: Equals) -> str:
    return f"{_read(test.field)} != {test.value:#x}"


def _length(length: Length) -> str:
    """The length of the header at `at`, of which the fixed part can be read."""
    parts = [str(length.base)] if length.base or not length.parts else []
    for part in length.parts:
        match part:
            case IfSet(flag, more):
                parts.append(f"({_read(flag)} ? {more} : 0)")
            case Counted(count, unit):
                parts.append(f"{unit} * {_read(count)}" if unit != 1 else _read(count))
    return " + ".join(parts)


def _next(by: Next, unknown: list[str]) -> list[str]:
    """Sets `next->type` to the EtherType of what stands behind the header at `at`, at `next->offset`."""

    def choice(value: str, pairs: Iterable[tuple[int, int]]) -> list[str]:
        cases: dict[int, list[int]] = {}
        for number, ethertype in pairs:
            cases.setdefault(ethertype, []).append(number)
        lines = [f"switch ({value}) {{"]
        for ethertype, numbers in cases.items():
            lines += [*(f"case {number:#x}:" for number in numbers), f"    next->type = {ethertype:#06x};", "    break;"]
        return [*lines, "default:", *indented([*unknown, *(["break;"] if "return" not in unknown[-1] else [])]), "}"]

    match by:
        case Always(ethertype):
            return [f"next->type = {ethertype:#06x};"]
        case ByEtherType(field):
            return [f"next->type = {_read(field)};"]
        case ByNumber(field, pairs):
            return choice(_read(field), pairs)
        case ByNibble(pairs):
            missing = "if (!has(packet, next->offset, 1, &at))"
            if "return" in unknown[-1]:
                return [missing, *indented(unknown), *choice("at[0] >> 4", pairs)]
            return [missing, *indented(unknown), "else", *indented(choice("at[0] >> 4", pairs))]
