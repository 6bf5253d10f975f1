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
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from pcapext import pcap_bridge
from pcapext.bpf import MAX_INSTRUCTIONS, MAXIMUM_SNAPLEN, Instruction, Program
from pcapext.errors import FilterError, ProgramError, Span
from pcapext.flowkeys import EXTENSION_WORDS
from pcapext.standard import compile_standard, placed

if TYPE_CHECKING:
    from pcapext.cfg import Cfg
    from pcapext.ebpf import EbpfProgram
    from pcapext.encapsulation import WalkSettings

#: The forms of program that `compile` makes (DESIGN.md 2), those of classic BPF and all of them.
Classic: TypeAlias = Literal["flowkeys", "classic"]
CLASSIC_TARGETS: tuple[Classic, ...] = ("flowkeys", "classic")
TARGETS = (*CLASSIC_TARGETS, "ebpf")

#: How many levels an eBPF program walks unless told. A loop walks them: more of them take no more instructions.
EBPF_LEVELS = 16

#: libpcap's words, and ours, for a filter that can accept no packet.
REJECTS_ALL = "expression rejects all packets"


@overload
def compile(
    expression: str,
    *,
    linktype: str | int = ...,
    snaplen: int = ...,
    netmask: int | None = ...,
    optimize: bool | int = ...,
    target: Classic = ...,
    tunnel_ports: Mapping[str, Iterable[int]] | None = ...,
    max_levels: int | None = ...,
    vlan_tags: int | None = ...,
    mpls_labels: int | None = ...,
    extension_headers: int | None = ...,
    gtpu_extensions: int | None = ...,
) -> Program: ...
@overload
def compile(
    expression: str,
    *,
    linktype: str | int = ...,
    snaplen: int = ...,
    netmask: int | None = ...,
    optimize: bool | int = ...,
    target: Literal["ebpf"],
    tunnel_ports: Mapping[str, Iterable[int]] | None = ...,
    max_levels: int | None = ...,
    vlan_tags: int | None = ...,
    mpls_labels: int | None = ...,
    extension_headers: int | None = ...,
    gtpu_extensions: int | None = ...,
) -> EbpfProgram: ...
@overload
def compile(
    expression: str,
    *,
    linktype: str | int = ...,
    snaplen: int = ...,
    netmask: int | None = ...,
    optimize: bool | int = ...,
    target: str,
    tunnel_ports: Mapping[str, Iterable[int]] | None = ...,
    max_levels: int | None = ...,
    vlan_tags: int | None = ...,
    mpls_labels: int | None = ...,
    extension_headers: int | None = ...,
    gtpu_extensions: int | None = ...,
) -> Program | EbpfProgram: ...
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
) -> Program | EbpfProgram:
    """Compile a filter.

    `linktype` is a name of libpcap's or a DLT number; `snaplen` the number of bytes that an accepted packet is cut to;
    `netmask` the network's, for `ip broadcast`, None if it is not known. `target` is "flowkeys", a short program that loads flow
    keys, or "classic", a long one that runs on every kernel and libpcap; a filter without extension terms is always "classic" where it
    is not "ebpf": an `EbpfProgram`, which the Linux kernel runs, with the walk as a loop. An empty expression accepts everything.

    `optimize` says how much: 0 or False, 1 or True, or 2. 1 and 2 differ for filters without extension terms alone: 1 gives
    libpcap's own program, as its optimizer leaves it; 2 gives one with the same verdicts that often executes fewer instructions.
    No packet executes more than by libpcap's program, and that is proved, except where long lists are searched by value: there
    the longest way through the program is at most half of libpcap's, and a packet that libpcap finds early in its list may
    take a few instructions more. Where neither can be shown, it is libpcap's own program again. A filter of more than 10,000
    instructions, too many for libpcap's optimizer, is compiled term by term and optimized by pcapext alone: there is no program of
    libpcap's to compare with.

    The others are settings of the walk through the headers (LANGUAGE.md 5), kept in the program; None is the usual value. `tunnel_ports`
    has UDP ports by the name of the tunnel: tunnels that it does not name keep theirs, an empty list turns one off.
    `max_levels` (4, for "ebpf" 16), 1 to 16, is how many levels are walked; `vlan_tags` (3), `mpls_labels` (6), `extension_headers` (4) and
    `gtpu_extensions` (2), each 0 to 16, are how many of these are walked in a level.

    Raises `FilterError`, which shows the place, for an expression without a program, `SettingsError` for a setting that is unknown or
    out of range, and `LibpcapError` where libpcap is missing or does not know the link type.

    >>> len(compile("inner tcp port 80"))
    11
    >>> compile("inner tcp port 80", target="classic").kernel_refusal() is None
    True
    >>> len(compile("inner tcp port 80", target="ebpf"))
    350
    >>> compile("inner tcp", tunnel_ports={"vxlan": (4789,), "teredo": ()}, max_levels=2).settings.max_levels
    2
    >>> len(compile("mpls and tcp port 80")), len(compile("mpls and tcp port 80", optimize=2))
    (28, 25)
    """
    number = pcap_bridge.linktype_number(linktype)
    if target == "ebpf" and max_levels is None:
        max_levels = EBPF_LEVELS
    settings = settings_of(
        tunnel_ports=tunnel_ports,
        max_levels=max_levels,
        vlan_tags=vlan_tags,
        mpls_labels=mpls_labels,
        extension_headers=extension_headers,
        gtpu_extensions=gtpu_extensions,
    )
    if target == "ebpf":
        assert settings is not None
        return _compile_ebpf(expression, number, snaplen, netmask, optimize, settings)
    instructions, made_for, walk = _compile(expression, number, snaplen, netmask, optimize, target, settings, None)
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


def _compile(
    expression: str,
    linktype: int,
    snaplen: int,
    netmask: int | None,
    optimize: int,
    target: str,
    settings: WalkSettings | None,
    byteorder: str | None,
) -> tuple[tuple[Instruction, ...], str, WalkSettings | None]:
    """The instructions, their target, and the settings of the walk if it is among them. `byteorder`: of the file, None outside of files."""
    _check_optimize(optimize)
    if target not in TARGETS:
        raise FilterError(f"unknown target '{target}', expected {', '.join(TARGETS[:-1])} or {TARGETS[-1]}")
    if _may_extend(expression):
        return _compile_extended(expression, linktype, snaplen, netmask, optimize, target, settings, byteorder)
    return compile_standard(expression, linktype, snaplen, netmask, optimize, byteorder), "classic", None


def _check_optimize(optimize: int) -> None:
    if optimize not in (0, 1, 2):
        raise FilterError(f"optimize is {optimize!r}, expected 0, 1 or 2")


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


def _compile_extended(
    expression: str,
    linktype: int,
    snaplen: int,
    netmask: int | None,
    optimize: int,
    target: str,
    settings: WalkSettings | None,
    byteorder: str | None,
) -> tuple[tuple[Instruction, ...], str, WalkSettings | None]:
    # Imported here: a standard expression needs neither our parser nor our passes.
    from pcapext.assemble import assemble
    from pcapext.encapsulation import DEFAULT_SETTINGS, LINK_LAYER_BY_NUMBER
    from pcapext.lower import lower, lower_in_place
    from pcapext.optimize import finish, improve
    from pcapext.optimize.gather import gather
    from pcapext.prepare import lower_improved

    cfg = _graph(expression, linktype, snaplen, netmask, optimize, byteorder, keeps_made_up=target != "classic")
    if cfg is None:
        return compile_standard(expression, linktype, snaplen, netmask, optimize, byteorder), "classic", None
    link_layer = LINK_LAYER_BY_NUMBER[linktype]
    walk = settings or DEFAULT_SETTINGS
    if optimize and target == "classic":
        lowered = lower_improved(cfg, link_layer, walk, improve)
    else:
        lowered = (lower if target == "classic" else lower_in_place)(cfg, link_layer, walk)
        if lowered is not cfg:
            # Not left to `optimize`: what `lower` makes is meant for the passes, and too long for any kernel without them.
            lowered = improve(lowered if optimize else gather(lowered))
    walks = lowered is not cfg
    return assemble(finish(lowered) if optimize or walks else lowered), target, walk if walks else None


def _graph(
    expression: str, linktype: int, snaplen: int, netmask: int | None, optimize: int, byteorder: str | None, *, keeps_made_up: bool
) -> Cfg | None:
    """The graph of a filter with extension terms, which reads flow keys; None for another filter.

    `keeps_made_up`: the packets have the header that libpcap makes up where the kernel has none.
    """
    from pcapext.cfg import REJECT
    from pcapext.codegen import generate
    from pcapext.encapsulation import LINK_LAYER_BY_NUMBER, LINK_LAYERS
    from pcapext.lift import lift
    from pcapext.locate import standard_terms
    from pcapext.mark import mark
    from pcapext.optimize import improve
    from pcapext.optimize.gather import gather
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
        standard = pcap_bridge.compile_expression(marked.text, linktype, snaplen, netmask, False, byteorder)
    except FilterError as error:
        raise placed(error, expression, linktype, snaplen, netmask, byteorder) from None
    try:
        graph = lift(standard)
    except ProgramError:
        span = next(span for span, term in standard_terms(tree, expression) if "protochain" in term)
        raise FilterError("'protochain' makes a loop, and a filter with extension terms cannot have one", expression, span) from None
    cfg = generate(graph, marked, 0 if keeps_made_up else LINK_LAYER_BY_NUMBER[linktype].made_up)
    if optimize:
        cfg = improve(gather(cfg))
        if cfg.blocks[cfg.entry] == REJECT:
            raise FilterError(REJECTS_ALL, expression, Span(0, len(expression)))
    return cfg


def _compile_ebpf(expression: str, linktype: int, snaplen: int, netmask: int | None, optimize: int, settings: WalkSettings) -> EbpfProgram:
    from pcapext.ebpf import EbpfProgram
    from pcapext.ebpf_select import select
    from pcapext.encapsulation import LINK_LAYER_BY_NUMBER
    from pcapext.lift import lift
    from pcapext.optimize import finish, improve
    from pcapext.optimize.gather import gather
    from pcapext.plain import needs_walk, plain_first

    _check_optimize(optimize)
    link_layer = LINK_LAYER_BY_NUMBER.get(linktype)
    cfg = None
    if _may_extend(expression):
        cfg = _graph(expression, linktype, snaplen, netmask, optimize, None, keeps_made_up=False)
    if cfg is None:
        try:
            cfg = lift(compile_standard(expression, linktype, snaplen, netmask, optimize))
        except ProgramError:
            raise FilterError("'protochain' makes a loop, and an eBPF program cannot have it", expression) from None
        cfg = improve(gather(cfg)) if optimize else cfg
    walks = any(map(needs_walk, cfg.blocks.values()))
    if optimize:
        if walks:
            assert link_layer is not None
            cfg = improve(plain_first(cfg, link_layer))
        cfg = finish(cfg)
    return EbpfProgram(select(cfg, link_layer, settings), linktype, snaplen, expression, settings if walks else None)
