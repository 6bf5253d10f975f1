"""The compiler: from the text of a filter to a program, step by step.

In:  an expression, and what it is compiled for: link type, snap length, netmask, target.
Out: a `Program`.

An expression without extension terms is libpcap's alone: its program is libpcap's, byte for byte. Otherwise libpcap
compiles the expression with markers in place of what it does not know, its program becomes a graph, and the
markers become blocks of ours.
"""

from __future__ import annotations

import re

from pcapext import pcap_bridge
from pcapext.bpf import MAX_INSTRUCTIONS, MAXIMUM_SNAPLEN, Instruction, Program
from pcapext.errors import FilterError, ProgramError, Span

#: The forms of program that `compile` makes (DESIGN.md 2).
TARGETS = ("flowkeys", "classic")


def compile(
    expression: str,
    *,
    linktype: str | int = "EN10MB",
    snaplen: int = MAXIMUM_SNAPLEN,
    netmask: int | None = None,
    optimize: bool = True,
    target: str = "flowkeys",
) -> Program:
    """Compile a filter.

    `linktype` is a name of libpcap's or a DLT number; `snaplen` the number of bytes that an accepted packet is cut to;
    `netmask` the network's, for `ip broadcast`, None if it is not known. `target` is "flowkeys", a short program that loads flow
    keys, or "classic", a long one that runs on every kernel and libpcap; a filter without extension terms is always "classic".
    An empty expression accepts everything.

    Raises `FilterError`, which shows the place, for an expression without a program, and `LibpcapError` where libpcap is
    missing or does not know the link type.

    >>> len(compile("inner tcp port 80"))
    11
    >>> compile("inner tcp port 80", target="classic").kernel_refusal() is None
    True
    """
    if target not in TARGETS:
        raise FilterError(f"unknown target '{target}', expected {' or '.join(TARGETS)}")
    number = pcap_bridge.linktype_number(linktype)
    if _may_extend(expression):
        instructions, made_for = _compile_extended(expression, number, snaplen, netmask, optimize, target)
    else:
        instructions, made_for = _compile_standard(expression, number, snaplen, netmask, optimize), "classic"
    if len(instructions) > MAX_INSTRUCTIONS:
        raise FilterError(f"the program would take {len(instructions)} instructions, and no kernel takes more than {MAX_INSTRUCTIONS}")
    return Program(instructions, number, snaplen, expression, made_for)


def _may_extend(expression: str) -> bool:
    """Whether one of pcapext's words is in an expression, perhaps only as a part of a name."""
    from pcapext.syntax import EXTENSION_WORDS  # here, since `import pcapext` has no use for the classes of the tree

    return re.search(rf"\b(?:{'|'.join(EXTENSION_WORDS)})\b", expression) is not None


def _compile_standard(expression: str, linktype: int, snaplen: int, netmask: int | None, optimize: bool) -> tuple[Instruction, ...]:
    try:
        return pcap_bridge.compile_expression(expression, linktype, snaplen, netmask, optimize)
    except FilterError as error:
        raise _placed(error, expression, linktype, snaplen, netmask) from None


def _compile_extended(
    expression: str, linktype: int, snaplen: int, netmask: int | None, optimize: bool, target: str
) -> tuple[tuple[Instruction, ...], str]:
    # Imported here: a standard expression needs neither our parser nor our passes.
    from pcapext.assemble import assemble
    from pcapext.cfg import REJECT
    from pcapext.codegen import generate
    from pcapext.encapsulation import DEFAULT_SETTINGS, LINK_LAYER_BY_NUMBER, LINK_LAYERS
    from pcapext.lift import lift
    from pcapext.locate import standard_terms
    from pcapext.lower import lower, lower_in_place
    from pcapext.mark import mark
    from pcapext.optimize import optimize as improve
    from pcapext.parser import parse
    from pcapext.resolve import resolve

    tree = parse(expression)
    extensions = resolve(expression, tree, netmask=netmask)
    if not extensions:
        return _compile_standard(expression, linktype, snaplen, netmask, optimize), "classic"
    if linktype not in LINK_LAYER_BY_NUMBER:
        names = ", ".join(row.name for row in LINK_LAYERS)
        shown = pcap_bridge.linktype_name(linktype) or linktype
        raise FilterError(f"no extension term on link type {shown}; there are some on {names}", expression, extensions[0].span)
    marked = mark(expression, extensions)
    try:
        standard = pcap_bridge.compile_expression(marked.text, linktype, snaplen, netmask, optimize=False)
    except FilterError as error:
        raise _placed(error, expression, linktype, snaplen, netmask) from None
    try:
        graph = lift(standard)
    except ProgramError:
        span = next(span for span, term in standard_terms(tree, expression) if "protochain" in term)
        raise FilterError("'protochain' makes a loop, and a filter with extension terms cannot have one", expression, span) from None
    cfg = generate(graph, marked)
    if optimize:
        cfg = improve(cfg)
        if cfg.blocks[cfg.entry] == REJECT:
            raise FilterError("expression rejects all packets", expression, Span(0, len(expression)))
    if target == "classic":
        # Not left to `optimize`: what `lower` makes is meant for the passes, and too long for any kernel without them.
        cfg = improve(lower(cfg, LINK_LAYER_BY_NUMBER[linktype], DEFAULT_SETTINGS))
    else:
        lowered = lower_in_place(cfg, LINK_LAYER_BY_NUMBER[linktype], DEFAULT_SETTINGS)
        cfg = cfg if lowered is cfg else improve(lowered)
    return assemble(cfg), target


def _placed(error: FilterError, expression: str, linktype: int, snaplen: int, netmask: int | None) -> FilterError:
    """An error of libpcap's with the place that it is about: libpcap says what is wrong, but not where."""
    from bisect import bisect_left

    from pcapext.locate import standard_terms
    from pcapext.parser import parse

    if error.span is not None:
        # A place in the text with markers is none for the user.
        return error if error.expression == expression else FilterError(error.message, expression, Span(0, len(expression)))
    if not expression.strip():
        return error
    tree = parse(expression)  # a syntax error is raised here, in our words
    terms = list(standard_terms(tree, expression))

    def refused(text: str) -> bool:
        """Whether libpcap has the same to say of a part of the filter."""
        try:
            pcap_bridge.compile_expression(text, linktype, snaplen, netmask, optimize=False)
        except FilterError as again:
            return again.message == error.message
        return False

    for span, term in terms:
        if refused(term):
            return FilterError(error.message, expression, span)
    # `vlan` behind `mpls`: what libpcap says of a term can depend on those before it.
    first = bisect_left(range(1, len(terms) + 1), True, key=lambda count: refused(" and ".join(term for _, term in terms[:count])))
    return FilterError(error.message, expression, terms[first][0] if first < len(terms) else tree.span)
