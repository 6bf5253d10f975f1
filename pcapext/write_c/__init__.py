"""Write C: a graph as C source, with the walk as a function of its own.

In:  a graph as the optimizer leaves it, the link layer, the settings of the walk, and the expression that it was made from.
Out: the text of a C file; what it defines is told in pcapext/csource.py.

    pieces    what each file begins with: types, reading bytes
    walk      the walk through the headers, from the table of encapsulations
    graph     the filter itself
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping

from pcapext.cfg import Cfg, Key, Local, Passed, maximum
from pcapext.encapsulation import LinkLayer, WalkSettings
from pcapext.write_c.graph import FOUND, write_graph
from pcapext.write_c.pieces import HEAD, INDENT, helpers_for
from pcapext.write_c.walk import member, write_walk

NEWLINE = "\n"

__all__ = ["found_locals", "write_c"]


def found_locals(values: frozenset[Key | Passed]) -> Mapping[Key | Passed, Local]:
    """The locals for what the walk tells, as `write_c` knows them."""
    return {value: Local(FOUND + member(value), maximum(value)) for value in sorted(values, key=member)}


def write_c(
    cfg: Cfg, expression: str, linktype: str, wanted: frozenset[Key | Passed], link_layer: LinkLayer | None, settings: WalkSettings
) -> str:
    """The text of a C file. `wanted` is what the walk tells the graph; where that is nothing, there need be no link layer that it knows."""
    names, lines = write_graph(cfg)
    walk, start = "", []
    if wanted:
        assert link_layer is not None
        walk = write_walk(link_layer, settings, sorted(wanted, key=member)) + "\n"
        start = [f"struct found found = {{{', '.join('0' for _ in wanted)}}};"]
    if names:
        declared = textwrap.wrap(", ".join(f"{name}~=~0" for name in names), 120, subsequent_indent=INDENT)
        start += f"uint32_t {NEWLINE.join(declared)};".replace("~", " ").split(NEWLINE)
    used = "\n".join(lines)
    if "packet" in used:
        start += ["struct packet packet;", "packet.data = data;", "packet.end = data_end;"]
    else:
        start += ["(void)data;", "(void)data_end;"]
    start.append("wirelen = opaque(wirelen);" if "wirelen" in used else "(void)wirelen;")
    body = [line if line.endswith(":") else INDENT + line for line in [*start, *lines]]
    function = "\n".join([_FUNCTION, "{", *body, "}", ""])
    return _title(expression, linktype) + HEAD + helpers_for(walk + function) + walk + function


_FUNCTION = """\
/* ---- The filter ---- */

FILTER uint32_t filter(const uint8_t *data, const uint8_t *data_end, uint32_t wirelen)"""


def _title(expression: str, linktype: str) -> str:
    """The comment at the head of a file. What would end it, or begin another one, is spelled with a blank."""
    shown = re.sub(r"(?<=\*)/|(?<=/)\*", r" \g<0>", expression.strip() or "every packet").split("\n")
    return "\n".join(
        [
            "/* A packet filter, written by pcapext:",
            " *",
            *(f" *     {line.rstrip()}".rstrip() for line in shown),
            " *",
            f" * for packets of link type {linktype}. It returns how many bytes to keep of the packet from `data` to `data_end`,",
            " * which had `wirelen` bytes on the wire, and 0 where the packet does not match.",
            " */",
            "",
        ]
    )
