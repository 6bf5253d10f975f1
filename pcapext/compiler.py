"""The compiler: from the text of a filter to a program, step by step.

In:  an expression, and what it is compiled for: link type, snap length, netmask, target.
Out: a `Program`.

An expression without extension terms is libpcap's alone: its program is libpcap's, byte for byte, unless `optimize=2` asks
for more. Otherwise libpcap compiles the expression with markers in place of what it does not know, its program becomes a
graph, and the markers become blocks of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from pcapext import pcap_bridge
from pcapext.bpf import MAX_INSTRUCTIONS, MAXIMUM_SNAPLEN, Instruction, Program
from pcapext.errors import FilterError, PcapextError, ProgramError, Span
from pcapext.flowkeys import EXTENSION_WORDS
from pcapext.standard import compile_standard, placed

if TYPE_CHECKING:
    from pcapext.cfg import Cfg
    from pcapext.csource import CSource
    from pcapext.encapsulation import LinkLayer, WalkSettings

#: The forms of program that `compile` makes (DESIGN.md 2).
TARGETS = ("flowkeys", "classic", "keys", "c")

#: libpcap's words, and ours, for a filter that can accept no packet.
REJECTS_ALL = "expression rejects all packets"


@overload
def compile(  # type: ignore[overload-overlap]
    expression: str,
    *,
    target: Literal["c"],
    linktype: str | int = ...,
    snaplen: int = ...,
    netmask: int | None = ...,
    optimize: bool | int = ...,
    tunnel_ports: Mapping[str, Iterable[int]] | None = ...,
    max_levels: int | None = ...,
    vlan_tags: int | None = ...,
    mpls_labels: int | None = ...,
    extension_headers: int | None = ...,
    gtpu_extensions: int | None = ...,
) -> CSource: ...
@overload
def compile(
    expression: str,
    *,
    linktype: str | int = ...,
    snaplen: int = ...,
    netmask: int | None = ...,
    optimize: bool | int = ...,
    target: str = ...,
    tunnel_ports: Mapping[str, Iterable[int]] | None = ...,
    max_levels: int | None = ...,
    vlan_tags: int | None = ...,
    mpls_labels: int | None = ...,
    extension_headers: int | None = ...,
    gtpu_extensions: int | None = ...,
) -> Program: ...
def compile(
    expression: str,
    *,
    linktype: str | int = "EN10MB",
    snaplen: int = MAXIMUM_SNAPLEN,
    netmask: int | None = None,
    optimize: bool | int = True,
    target: str = "flowkeys",
    tunnel_ports: Mapping[str, Iterable[int]] | None = None,
    max_levels: int | None = None,
    vlan_tags: int | None = None,
    mpls_labels: int | None = None,
    extension_headers: int | None = None,
    gtpu_extensions: int | None = None,
) -> Program | CSource:
    """Compile a filter.

    `linktype` is a name of libpcap's or a DLT number; `snaplen` the number of bytes that an accepted packet is cut to;
    `netmask` the network's, for `ip broadcast`, None if it is not known. `target` is "flowkeys", a short program that loads flow
    keys, "keys", the same with one load of all of them into M[], or "classic", a long one that runs on every kernel and libpcap; a filter
    without extension terms is always "classic". With "c" it is C source, a `CSource` and no program (pcapext/csource.py).
    An empty expression accepts everything.

    `optimize` says how much: 0 or False, 1 or True, or 2. 1 and 2 differ for filters without extension terms alone: 1 gives
    libpcap's own program, as its optimizer leaves it; 2 gives one with the same verdicts that often executes fewer instructions.
    No packet executes more than by libpcap's program, and that is proved, except where long lists are searched by value: there
    the longest way through the program is at most half of libpcap's, and a packet that libpcap finds early in its list may
    take a few instructions more. Where neither can be shown, it is libpcap's own program again. A filter of more than 10,000
    instructions, too many for libpcap's optimizer, is compiled term by term and optimized by pcapext alone: there is no program of
    libpcap's to compare with.

    The others are settings of the walk through the headers (LANGUAGE.md 5), kept in the program; None is the usual value. `tunnel_ports`
    has UDP ports by the name of the tunnel: tunnels that it does not name keep theirs, an empty list turns one off.
    `max_levels` (4), 1 to 16, is how many levels are walked; `vlan_tags` (3), `mpls_labels` (6), `extension_headers` (4) and
    `gtpu_extensions` (2), each 0 to 16, are how many of these are walked in a level.

    Raises `FilterError`, which shows the place, for an expression without a program, `SettingsError` for a setting that is unknown or
    out of range, and `LibpcapError` where libpcap is missing or does not know the link type.

    >>> len(compile("inner tcp port 80"))
    11
    >>> compile("inner tcp port 80", target="classic").kernel_refusal() is None
    True
    >>> compile("inner tcp", tunnel_ports={"vxlan": (4789,), "teredo": ()}, max_levels=2).settings.max_levels
    2
    >>> len(compile("mpls and tcp port 80")), len(compile("mpls and tcp port 80", optimize=2))
    (28, 25)
    """
    number = pcap_bridge.linktype_number(linktype)
    settings = settings_of(
        tunnel_ports=tunnel_ports,
        max_levels=max_levels,
        vlan_tags=vlan_tags,
        mpls_labels=mpls_labels,
        extension_headers=extension_headers,
        gtpu_extensions=gtpu_extensions,
    )
    if target == "c":
        return _compile_c(expression, number, snaplen, netmask, optimize, settings)
    instructions, made_for, walk = _compile(expression, number, snaplen, netmask, optimize, target, settings)
    return Program(_checked_length(instructions, walk), number, snaplen, expression, made_for, settings)


def compile_to_run(
    expression: str,
    linktype: int,
    byteorder: str,
    *,
    netmask: int | None = None,
    optimize: bool | int = True,
    **settings: Any,
) -> tuple[Instruction, ...]:
    """The instructions of a filter for the engine, which has the flow keys: more of them than a kernel takes if there have to be.

    The filter is for packets of a file in the byte order `byteorder`, "<" or ">". The other arguments and errors are those of `compile`.
    """
    return _compile(expression, linktype, MAXIMUM_SNAPLEN, netmask, optimize, "flowkeys", settings_of(**settings), byteorder)[0]


def compile_live(
    expression: str,
    linktype: int,
    *,
    snaplen: int = MAXIMUM_SNAPLEN,
    netmask: int | None = None,
    optimize: bool | int = True,
    **settings: Any,
) -> Program:
    """A classic program for packets as a Linux kernel shows them to filters, which is not always how they are captured.

    The outermost VLAN tag of an Ethernet frame stands beside it, and `vlan` looks there too; before a packet of a cooked link type no
    header is made up (relocate.py). The arguments and errors are those of `compile`; `LibpcapError` also where libpcap cannot
    compile `vlan` so (`compile_expression`), and `KernelLacksError` where a filter reads of the header what a kernel does not tell.
    """
    chosen = settings_of(**settings)
    instructions, target, walk = _compile(expression, linktype, snaplen, netmask, optimize, "classic", chosen, live=True)
    return Program(_checked_length(instructions, walk), linktype, snaplen, expression, target, chosen)


def weaker(expression: str, *, netmask: int | None = None) -> str | None:
    """An expression without extension terms that accepts every packet that an expression accepts; None where that is every packet at all.

    One without extension terms is given back as it is. Raises the errors of `compile` for names and terms of pcapext's.

    >>> weaker("tcp port 80 or 443"), weaker("ip6 and inner tcp"), weaker("inner tcp port 80")
    ('tcp port 80 or 443', 'ip6 and (greater 0)', None)
    """
    if not _may_extend(expression):
        return expression
    from pcapext.parser import parse
    from pcapext.resolve import resolve
    from pcapext.weaken import weaken

    tree = parse(expression)
    extensions = resolve(expression, tree, netmask=netmask)
    return weaken(expression, tree, extensions) if extensions else expression


def for_kernel(program: Program, made_up: bool = False) -> Program:
    """A program that a stock kernel can run in place of another one: the walk written out where it loads flow keys.

    With `made_up`, it is for packets without the header that libpcap makes up for the program's link type. A program that needs neither is
    given back as it is. Raises `ProgramError` for one with a loop and where there is no walk on the link type, and `KernelLacksError` where
    it reads of the header what a kernel does not tell.

    >>> for_kernel(compile("inner tcp port 80")).kernel_refusal() is None
    True
    """
    keys = program.target == "flowkeys" or bool(program.flow_keys)
    if not keys and not made_up:
        return program
    instructions = (_compile_again(program, made_up) if keys else None) or _lowered(program, keys, made_up)
    return Program(instructions, program.linktype, program.snaplen, program.expression, "classic", program.settings)


def _compile_again(program: Program, made_up: bool) -> tuple[Instruction, ...] | None:
    """The classic program of the text that a program with flow keys was compiled from, where that has one walk less: the program has one
    in it for `outer` or `encap NAME`, and needs another one for its keys. None for others, and where the text gives another program.
    """
    if not re.search(r"\b(?:outer|encap)\b", program.expression or ""):
        return None
    text, linktype, snaplen, settings = str(program.expression), program.linktype, program.snaplen, program.settings
    try:
        made_for = "keys" if program.target == "keys" else "flowkeys"
        if _compile(text, linktype, snaplen, None, True, made_for, settings)[0] != program.instructions:
            return None
        return _checked_length(_compile(text, linktype, snaplen, None, True, "classic", settings, live=made_up)[0])
    except PcapextError:
        return None


def _lowered(program: Program, keys: bool, made_up: bool) -> tuple[Instruction, ...]:
    """The instructions of a program with the walk written out for its flow keys, and for packets without the made-up header."""
    from pcapext.assemble import assemble
    from pcapext.encapsulation import DEFAULT_SETTINGS, LINK_LAYER_BY_NUMBER
    from pcapext.lift import lift, name_keys
    from pcapext.optimize import finish, improve
    from pcapext.optimize.gather import gather
    from pcapext.prepare import lower_improved

    if program.linktype not in LINK_LAYER_BY_NUMBER:
        shown = pcap_bridge.linktype_name(program.linktype) or program.linktype
        raise ProgramError(f"the program loads flow keys, and there are none on link type {shown}")
    link_layer = LINK_LAYER_BY_NUMBER[program.linktype]
    walk = (program.settings or DEFAULT_SETTINGS) if keys else None
    cfg = lift(program)
    if walk:
        cfg = lower_improved(improve(gather(name_keys(cfg))), link_layer, walk, improve)
    if made_up:
        cfg = _relocated(cfg, link_layer)
    return _checked_length(assemble(finish(cfg)), walk)


def _relocated(cfg: Cfg, link_layer: LinkLayer) -> Cfg:
    """A graph for packets without the header that libpcap makes up for a link layer."""
    from pcapext.optimize import improve
    from pcapext.relocate import relocate

    # Before, so that what can be known of the places it reads is known.
    return improve(relocate(improve(cfg), link_layer.name))


def _compile(
    expression: str,
    linktype: int,
    snaplen: int,
    netmask: int | None,
    optimize: int,
    target: str,
    settings: WalkSettings | None,
    byteorder: str | None = None,
    live: bool = False,
) -> tuple[tuple[Instruction, ...], str, WalkSettings | None]:
    """The instructions, their target, and the settings of the walk if it is among them. `byteorder`: of the file, None outside of
    files; `live`: for packets as a Linux kernel shows them to filters (`compile_live`).
    """
    _check_optimize(optimize)
    if target not in TARGETS:
        raise FilterError(f"unknown target '{target}', expected one of {', '.join(TARGETS)}")
    extended = _extended_graph(expression, linktype, snaplen, netmask, optimize, target, settings, byteorder, live)
    if extended is None:
        return _compile_standard(expression, linktype, snaplen, netmask, optimize, byteorder, live), "classic", None
    from pcapext.assemble import assemble  # here, since a standard expression needs none of our passes

    cfg, walk = extended
    return assemble(cfg), target, walk


def _compile_c(expression: str, linktype: int, snaplen: int, netmask: int | None, optimize: int, settings: WalkSettings | None) -> CSource:
    """A filter as C source."""
    from pcapext.csource import CSource
    from pcapext.encapsulation import DEFAULT_SETTINGS, LINK_LAYER_BY_NUMBER
    from pcapext.lift import lift
    from pcapext.lower import load_once, wanted_of
    from pcapext.optimize import finish, improve
    from pcapext.optimize.merge import merge
    from pcapext.write_c import found_locals, write_c

    _check_optimize(optimize)
    extended = _extended_graph(expression, linktype, snaplen, netmask, optimize, "c", settings)
    if extended is None:
        try:
            cfg = lift(compile_standard(expression, linktype, snaplen, netmask, optimize, None))
        except ProgramError:
            start = expression.index("protochain")
            span = Span(start, start + len("protochain"))
            raise FilterError("'protochain' makes a loop, and a filter in C cannot have one", expression, span) from None
        cfg = finish(improve(cfg)) if optimize else cfg
    else:
        cfg, _ = extended
    wanted = wanted_of(cfg)
    placed_once = merge(load_once(cfg, found_locals(wanted)))
    name = pcap_bridge.linktype_name(linktype) or str(linktype)
    text = write_c(placed_once, expression, name, wanted, LINK_LAYER_BY_NUMBER.get(linktype), settings or DEFAULT_SETTINGS)
    return CSource(text, linktype, snaplen, expression, settings)


def _check_optimize(optimize: int) -> None:
    if optimize not in (0, 1, 2):
        raise FilterError(f"optimize is {optimize!r}, expected 0, 1 or 2")


def _compile_standard(
    expression: str, linktype: int, snaplen: int, netmask: int | None, optimize: int, byteorder: str | None, live: bool
) -> tuple[Instruction, ...]:
    """The instructions of a filter that is libpcap's alone."""
    instructions = compile_standard(expression, linktype, snaplen, netmask, optimize, byteorder, live)
    if live:
        from pcapext.encapsulation import LINK_LAYER_BY_NUMBER

        link_layer = LINK_LAYER_BY_NUMBER.get(linktype)
        if link_layer and link_layer.made_up:
            return for_kernel(Program(instructions, linktype), made_up=True).instructions
    return instructions


def settings_of(**given: Any) -> WalkSettings | None:
    """The settings that are not None with the usual ones for the others; None where all are."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if not chosen:
        return None
    from pcapext.encapsulation import WalkSettings  # here, since most filters are compiled without

    return WalkSettings(**chosen)


def _may_extend(expression: str) -> bool:
    """Whether one of pcapext's words is in an expression, perhaps only as a part of a name."""
    return re.search(rf"\b(?:{'|'.join(EXTENSION_WORDS)})\b", expression) is not None


def _checked_length(instructions: tuple[Instruction, ...], walk: WalkSettings | None = None) -> tuple[Instruction, ...]:
    """The instructions, if a kernel takes as many. `walk`: the settings of the walk that is among them."""
    if len(instructions) <= MAX_INSTRUCTIONS:
        return instructions
    message = f"the program would take {len(instructions)} instructions, and no kernel takes more than {MAX_INSTRUCTIONS}"
    bounds = [f"{name} (now {number})" for name, number in walk.bounds if number > 1] if walk else []
    raise FilterError(f"{message}; it is shorter with a smaller {', '.join(bounds)}" if bounds else message)


def _extended_graph(
    expression: str,
    linktype: int,
    snaplen: int,
    netmask: int | None,
    optimize: int,
    target: str,
    settings: WalkSettings | None,
    byteorder: str | None = None,
    live: bool = False,
) -> tuple[Cfg, WalkSettings | None] | None:
    """The graph of a filter with extension terms, and the settings of the walk if it is in the graph; None for any other filter."""
    if not _may_extend(expression):
        return None
    # Imported here: a standard expression needs neither our parser nor our passes.
    from pcapext.cfg import REJECT
    from pcapext.codegen import generate
    from pcapext.encapsulation import DEFAULT_SETTINGS, LINK_LAYER_BY_NUMBER, LINK_LAYERS
    from pcapext.lift import lift
    from pcapext.locate import standard_terms
    from pcapext.lower import load_keys, lower, lower_in_place
    from pcapext.mark import mark
    from pcapext.optimize import finish, improve
    from pcapext.optimize.gather import gather
    from pcapext.optimize.merge import merge
    from pcapext.parser import parse
    from pcapext.resolve import resolve

    tree = parse(expression)
    extensions = resolve(expression, tree, netmask=netmask)
    if not extensions:
        return None
    if linktype not in LINK_LAYER_BY_NUMBER:
        names = ", ".join(row.name for row in LINK_LAYERS)
        shown = pcap_bridge.linktype_name(linktype) or linktype
        raise FilterError(f"no extension term on link type {shown}; there are some on {names}", expression, extensions[0].span)
    marked = mark(expression, extensions)
    try:
        standard = pcap_bridge.compile_expression(marked.text, linktype, snaplen, netmask, False, byteorder, live)
    except FilterError as error:
        raise placed(error, expression, linktype, snaplen, netmask, byteorder, live) from None
    try:
        graph = lift(standard)
    except ProgramError:
        span = next(span for span, term in standard_terms(tree, expression) if "protochain" in term)
        raise FilterError("'protochain' makes a loop, and a filter with extension terms cannot have one", expression, span) from None
    link_layer = LINK_LAYER_BY_NUMBER[linktype]
    cfg = generate(graph, marked, link_layer.made_up if target == "classic" else 0)
    if optimize:
        cfg = improve(gather(cfg))
        if cfg.blocks[cfg.entry] == REJECT:
            raise FilterError(REJECTS_ALL, expression, Span(0, len(expression)))
    walk = settings or DEFAULT_SETTINGS
    if optimize and target == "classic":
        from pcapext.prepare import lower_improved

        lowered = lower_improved(cfg, link_layer, walk, improve)
    elif target == "c":
        lowered = cfg  # in C the walk tells everything
    else:
        lowered = (lower if target == "classic" else lower_in_place)(cfg, link_layer, walk)
        if lowered is not cfg:
            # Not left to `optimize`: what `lower` makes is meant for the passes, and too long for any kernel without them.
            lowered = improve(lowered if optimize else gather(lowered))
    walks = lowered is not cfg
    if live and link_layer.made_up:
        lowered = _relocated(lowered, link_layer)
    finished = finish(lowered) if optimize or walks else lowered
    if target == "keys":
        finished = merge(load_keys(finished))
    return finished, walk if walks else None
