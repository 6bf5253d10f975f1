"""Write docs/encapsulations.md, the table of encapsulations for readers, anew: after every change of pcapext/encapsulation.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pcapext import encapsulation as table
from pcapext.encapsulation import DEFAULT_SETTINGS, TunnelPorts
from pcapext.layout import (
    Always,
    ByEtherType,
    ByNibble,
    ByNumber,
    Counted,
    Encapsulation,
    Equals,
    Field,
    Identifier,
    IfSet,
    Length,
    Next,
)

NAME = "encapsulations.md"
PATH = Path(__file__).parent.parent / "docs" / NAME

#: What readers call the EtherTypes that a row can lead to.
ETHERTYPES = {
    table.IPV4: "IPv4",
    table.IPV6: "IPv6",
    table.MPLS: "MPLS",
    table.NSH: "NSH",
    table.ETHERNET: "an Ethernet frame",
}
COLUMNS = ("`encap`", "header", "found", "bytes", "followed by", "`encap NAME ID`", "level", "standard")
#: The fixed part of transport headers: who they are.
TRANSPORTS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 33: "DCCP", 58: "ICMPv6", 132: "SCTP", 136: "UDP-Lite"}


def generate(directory: Path) -> Path:
    """Write `encapsulations.md` into a directory."""
    path = directory / NAME
    path.write_text(page())
    return path


def page() -> str:
    bounds = [[f"`{name}`", number] for name, number in DEFAULT_SETTINGS.bounds]
    return f"""\
# The table of encapsulations

Written by `tools/generate_encapsulations.py` from `pcapext/encapsulation.py`, which drives every walk. What the walk does with it is in
[LANGUAGE.md](LANGUAGE.md), section 5.

`[i:n]` stands for the number in n bytes at offset i of the header, most significant byte first, as `ether[i:n]` does in a filter; offsets
below 0 are before the header. "4 if `[0:1] & 8`" means 4 bytes where that is not 0, else none.

## Where a walk starts

{rows(("link type", "number", "bytes", "followed by"), map(link_layer, table.LINK_LAYERS))}

## What it goes through

A header without a name in the first column has none in `encap NAME` either. It is entered where it is complete and what
the column "found" asks for holds. "Level": whether what follows begins the next level (`max_levels`).

{rows(COLUMNS, map(encapsulation, table.ENCAPSULATIONS))}

## Between an IP header and the transport header

{rows(("IP protocol", "header", "in", "bytes", "standard"), map(extension_header, table.EXTENSION_HEADERS))}

A fragment header with an offset that is not 0, `{field(fragment())}`, ends the walk. The first byte of each is the IP protocol of the next.

## Transport headers

What `poff` adds to `thoff`; TCP's is its data offset, and at least the number here. Other protocols add nothing.

{rows(("IP protocol", "header", "bytes"), ([number, TRANSPORTS[number], length] for number, length in table.TRANSPORT_LENGTHS.items()))}

## Settings

{rows(("`tunnel_ports`", "UDP ports"), ([f"`{name}`", numbers(ports)] for name, ports in TunnelPorts().items()))}

{rows(("bound", "headers at the most"), bounds)}
"""


def rows(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table."""
    cells = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in cells)


def numbers(ports: Iterable[int]) -> str:
    return ", ".join(map(str, ports)) or "none"


# ---- A row of each table ----


def link_layer(row: table.LinkLayer) -> list[object]:
    return [f"`{row.name}`", row.linktype, row.length, following(row.next)]


def encapsulation(row: Encapsulation) -> list[object]:
    names = ", ".join(f"`{word}`" for word in row.words)
    level = "next" if row.begins_level else f"same, at most `{row.bound}`" if row.bound else "same"
    return [names, row.title, found(row), length(row), behind(row), identifier(row.identifier), level, row.standard]


def extension_header(row: table.ExtensionHeader) -> list[object]:
    return [row.protocol, row.title, "IPv4, IPv6" if row.in_ipv4 else "IPv6", size(row.length), row.standard]


def fragment() -> Field:
    (found,) = [row.fragment for row in table.EXTENSION_HEADERS if row.fragment]
    return found


# ---- The columns ----


def found(row: Encapsulation) -> str:
    places = [f"EtherType {hexadecimals(row.ethertypes)}"] if row.ethertypes else []
    if row.ip_protocols:
        over = f" in {ETHERTYPES[row.over]}" if row.over else ""
        places.append(f"IP protocol {numbers(row.ip_protocols)}{over}")
    if row.ports:
        places.append(f"UDP to a port of `{row.ports}` ({numbers(TunnelPorts.DEFAULTS[row.ports])})")
    if row.gre_protocols:
        test = f" if the GRE header's {equals(row.gre_test)}" if row.gre_test else ""
        places.append(f"GRE protocol {hexadecimals(row.gre_protocols)}{test}")
    if row.nibbles:
        places.append(f"first nibble {numbers(row.nibbles)} behind the bottom of an MPLS stack")
    requires = f"; if {equals(row.requires)}" if row.requires else ""
    return "; ".join(places) + requires


def length(row: Encapsulation) -> str:
    before = [f"before it {size(prefix.length)} if {equals(prefix.test)}" for prefix in row.prefixes]
    chain = []
    if row.extensions:
        each = size(row.extensions.length)
        chain = [
            f"if `{field(row.extensions.flag)}` extension headers, at most `{row.extensions.bound}`: the first of type "
            f"`{field(row.extensions.first)}`, each {each} with the type of the next in its last byte; type 0 ends the chain"
        ]
    return "; ".join([size(row.length), *before, *chain])


def behind(row: Encapsulation) -> str:
    if row.repeats:
        others = ", ".join(f"{nibble} {other.title}" for nibble, other in table.BY_NIBBLE.items())
        return f"another one if {equals(row.repeats)}, else {following(row.next)}, {others}"
    return following(row.next)


def identifier(of: Identifier | None) -> str:
    if of is None:
        return ""
    later = "".join(f", {part.length} bytes on if `{field(part.flag)}`" for part in of.before)
    only = f"; only if `{field(of.flag)}`" if of.flag else ""
    return f"{of.name}: `{field(of.field)}`{later}{only}"


# ---- The words of layout.py ----


def following(by: Next) -> str:
    match by:
        case Always(ethertype):
            return ETHERTYPES[ethertype]
        case ByEtherType(place):
            return f"the EtherType `{field(place)}`"
        case ByNumber(place, pairs):
            return f"by `{field(place)}`: {choices(pairs, 2 * place.size if place.size > 1 else 0)}"
        case ByNibble(pairs):
            return f"by its first nibble: {choices(pairs)}"


def choices(pairs: Iterable[tuple[int, int]], digits: int = 0) -> str:
    """Numbers, with so many hexadecimal digits if that is not 0, and what they lead to; those that lead to the same together."""
    together: dict[int, list[str]] = {}
    for number, ethertype in pairs:
        together.setdefault(ethertype, []).append(f"{number:#0{2 + digits}x}" if digits else str(number))
    return ", ".join(f"{'/'.join(each)} {ETHERTYPES[ethertype]}" for ethertype, each in together.items())


def hexadecimals(ethertypes: Iterable[int]) -> str:
    return ", ".join(f"{number:#06x}" for number in ethertypes)


def field(of: Field) -> str:
    text = f"[{of.offset}:{of.size}]"
    full = (1 << 8 * of.size) - 1
    if of.mask & full != full:
        text += f" & {of.mask & full:#0{2 + 2 * of.size}x}"
    return f"({text}) >> {of.shift}" if of.shift else text


def equals(test: Equals) -> str:
    value = f"{test.value:#0{2 + 2 * test.field.size}x}" if test.value else 0
    return f"`{field(test.field)} = {value}`"


def size(of: Length) -> str:
    parts = [str(of.base)] if of.base or not of.parts else []
    for part in of.parts:
        match part:
            case IfSet(flag, more):
                parts.append(f"{more} if `{field(flag)}`")
            case Counted(count, unit):
                number = field(count) if unit == 1 or "&" not in field(count) else f"({field(count)})"
                parts.append(f"`{number}`" if unit == 1 else f"`{unit} * {number}`")
    return " + ".join(parts)


if __name__ == "__main__":
    print(generate(PATH.parent))
