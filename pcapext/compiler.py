"""The compiler: from the text of a filter to a program, step by step.

In:  an expression, and what it is compiled for: link type, snap length, netmask, target.
Out: a `Program`, an `EbpfProgram` or a `CSource`.

An expression without extension terms is libpcap's alone: its classic program is libpcap's, byte for byte, unless `optimize=2` asks
for more. Otherwise libpcap compiles the expression with markers in place of what it does not know, its program becomes a
graph, and the markers become blocks of ours (`_graph`). Each target makes of that graph what it runs: `_classic`, `_ebpf`, `_c`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from pcapext import pcap_bridge
from pcapext.bpf import MAX_INSTRUCTIONS, MAXIMUM_SNAPLEN, Instruction, Program
from pcapext.errors import FilterError, ProgramError, Span
from pcapext.flowkeys import EXTENSION_WORDS
from pcapext.request import Request
from pcapext.standard import compile_standard, placed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pcapext.cfg import Cfg
    from pcapext.csource import CSource
    from pcapext.ebpf import EbpfProgram
    from pcapext.encapsulation import LinkLayer, WalkSettings

    class Options(TypedDict, total=False):
        """The arguments of `compile` but for the expression and the target."""

        linktype: str | int
        snaplen: int
        netmask: int | None
        optimize: bool | int
        tunnel_ports: Mapping[str, Iterable[int]] | None
        max_levels: int | None
        vlan_tags: int | None
        mpls_labels: int | None
        extension_headers: int | None
        gtpu_extensions: int | None


#: How many levels an eBPF program walks unless told. A loop walks them: more of them take no more instructions.
EBPF_LEVELS = 16

#: libpcap's words, and ours, for a filter that can accept no packet.
REJECTS_ALL = "expression rejects all packets"


@overload
def compile(expression: str, *, target: Literal["ebpf"], **options: Unpack[Options]) -> EbpfProgram: ...  # type: ignore[overload-overlap]
@overload
def compile(expression: str, *, target: Literal["c"], **options: Unpack[Options]) -> CSource: ...  # type: ignore[overload-overlap]
@overload
def compile(expression: str, *, target: str = ..., **options: Unpack[Options]) -> Program: ...
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
) -> Program | EbpfProgram | CSource:
    """Compile a filter.

    `linktype` is a name of libpcap's or a DLT number; `snaplen` the number of bytes that an accepted packet is cut to;
    `netmask` the network's, for `ip broadcast`, None if it is not known. `target` is "flowkeys", a short program that loads flow
    keys, "keys", the same with one load of all of them into M[], or "classic", a long one that runs on every kernel and libpcap; for a
    filter without extension terms these three are the same. "ebpf" gives an `EbpfProgram`, which the Linux kernel runs, with the walk as a
    loop; "c" a `CSource`. An empty expression accepts everything.

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
    settings = settings_of(
        tunnel_ports=tunnel_ports,
        max_levels=EBPF_LEVELS if target == "ebpf" and max_levels is None else max_levels,
        vlan_tags=vlan_tags,
        mpls_labels=mpls_labels,
        extension_headers=extension_headers,
        gtpu_extensions=gtpu_extensions,
    )
    request = Request(expression, number, snaplen, netmask, optimize, target, settings)
    match target:
        case "ebpf":
            return _ebpf(request)
        case "c":
            return _c(request)
    return _classic(request)


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
    return _classic(Request(expression, linktype, snaplen, netmask, optimize, "classic", settings_of(**settings), live=True))


def compile_live_ebpf(
    expression: str,
    linktype: int,
    *,
    snaplen: int = MAXIMUM_SNAPLEN,
    netmask: int | None = None,
    optimize: bool | int = True,
    max_levels: int | None = None,
    **settings: Any,
) -> EbpfProgram:
    """The same as an eBPF program, which finds the fields of a made-up header itself."""
    chosen = settings_of(max_levels=EBPF_LEVELS if max_levels is None else max_levels, **settings)
    return _ebpf(Request(expression, linktype, snaplen, netmask, optimize, "ebpf", chosen, live=True))


def compile_to_run(
    expression: str, linktype: int, byteorder: str, *, netmask: int | None = None, optimize: bool | int = True, **settings: Any
) -> tuple[Instruction, ...]:
    """The instructions of a filter for the engine, which has the flow keys: more of them than a kernel takes if there have to be.

    The filter is for packets of a file in the byte order `byteorder`, "<" or ">". The other arguments and errors are those of `compile`.
    """
    chosen = settings_of(**settings)
    return compile_classic(Request(expression, linktype, MAXIMUM_SNAPLEN, netmask, optimize, "flowkeys", chosen, byteorder))[0]


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


# ---- Text to graph ----


def _graph(request: Request) -> Cfg | None:
    """The graph of a filter with extension terms, which reads what a walk tells; None for a filter that is libpcap's alone."""
    expression = request.expression
    if not _may_extend(expression):
        return None
    # Imported here: a standard expression needs neither our parser nor our passes.
    from pcapext.cfg import REJECT
    from pcapext.codegen import generate
    from pcapext.encapsulation import LINK_LAYERS
    from pcapext.lift import lift
    from pcapext.locate import standard_terms
    from pcapext.mark import mark
    from pcapext.optimize import improve
    from pcapext.optimize.gather import gather
    from pcapext.parser import parse
    from pcapext.postpone import postpone
    from pcapext.resolve import resolve

    tree = parse(expression)
    extensions = resolve(expression, tree, netmask=request.netmask)
    if not extensions:
        return None
    if request.link_layer is None:
        names = ", ".join(row.name for row in LINK_LAYERS)
        shown = pcap_bridge.shown_linktype(request.linktype)
        raise FilterError(f"no extension term on link type {shown}; there are some on {names}", expression, extensions[0].span)
    marked = mark(expression, extensions)
    try:
        standard = request.by_libpcap(marked.text, False)
    except FilterError as error:
        raise placed(error, request) from None
    try:
        graph = lift(standard)
    except ProgramError:
        span = next(span for span, term in standard_terms(tree, expression) if "protochain" in term)
        raise FilterError("'protochain' makes a loop, and a filter with extension terms cannot have one", expression, span) from None
    if request.optimize and request.target != "classic":  # a classic program has a walk in it that is remembered if it comes first
        graph = postpone(graph, marked)
    cfg = generate(graph, marked, request.link_layer.made_up if request.target in ("classic", "ebpf") else 0)
    if request.optimize:
        cfg = improve(gather(cfg))
        if cfg.blocks[cfg.entry] == REJECT:
            raise FilterError(REJECTS_ALL, expression, Span(0, len(expression)))
    return cfg


def _lifted(request: Request) -> Cfg:
    """The graph of a filter that is libpcap's alone, for a target that is not classic BPF."""
    from pcapext.lift import lift
    from pcapext.optimize import improve
    from pcapext.optimize.gather import gather

    try:
        cfg = lift(compile_standard(request))
    except ProgramError:
        start = request.expression.index("protochain")
        span, words = Span(start, start + len("protochain")), f"'protochain' makes a loop, and target '{request.target}' cannot have one"
        raise FilterError(words, request.expression, span) from None
    return improve(gather(cfg)) if request.optimize else cfg


# ---- Graph to program ----


def _classic(request: Request) -> Program:
    instructions, target, walk = compile_classic(request)
    checked = checked_length(instructions, walk)
    return Program(checked, request.linktype, request.snaplen, request.expression, target, request.settings)


def compile_classic(request: Request) -> tuple[tuple[Instruction, ...], str, WalkSettings | None]:
    """Classic BPF: the instructions, their target, and the settings of the walk if it is among them."""
    cfg = _graph(request)
    if cfg is None:
        return _standard(request), "classic", None
    from pcapext.assemble import assemble
    from pcapext.lower import load_keys, lower, lower_in_place
    from pcapext.optimize import finish, improve
    from pcapext.optimize.gather import gather
    from pcapext.optimize.merge import merge

    link_layer, walk, target = request.link_layer, request.walk, request.target
    assert link_layer is not None
    if request.optimize and target == "classic":
        from pcapext.prepare import lower_improved

        lowered = lower_improved(cfg, link_layer, walk, improve)
    else:
        lowered = (lower if target == "classic" else lower_in_place)(cfg, link_layer, walk)
        if lowered is not cfg:
            # Not left to `optimize`: what `lower` makes is meant for the passes, and too long for any kernel without them.
            lowered = improve(lowered if request.optimize else gather(lowered))
    walks = lowered is not cfg
    if request.live and link_layer.made_up:
        lowered = relocated(lowered, link_layer)
    finished = finish(lowered) if request.optimize or walks else lowered
    if target == "keys":
        finished = merge(load_keys(finished))
    return assemble(finished), target, walk if walks else None


def _standard(request: Request) -> tuple[Instruction, ...]:
    """The instructions of a filter that is libpcap's alone."""
    instructions = compile_standard(request)
    if not request.live or request.link_layer is None or not request.link_layer.made_up:
        return instructions
    from pcapext.assemble import assemble
    from pcapext.lift import lift
    from pcapext.optimize import finish

    return assemble(finish(relocated(lift(instructions), request.link_layer)))


def relocated(cfg: Cfg, link_layer: LinkLayer) -> Cfg:
    """A graph for packets without the header that libpcap makes up for a link layer."""
    from pcapext.optimize import improve
    from pcapext.relocate import relocate

    # Before, so that what can be known of the places it reads is known.
    return improve(relocate(improve(cfg), link_layer.name))


def _ebpf(request: Request) -> EbpfProgram:
    from pcapext.ebpf import EbpfProgram
    from pcapext.ebpf_select import select
    from pcapext.optimize import finish, improve
    from pcapext.plain import needs_walk, plain_first

    cfg = _graph(request) or _lifted(request)
    walks = any(map(needs_walk, cfg.blocks.values()))
    if request.optimize:
        if walks:
            assert request.link_layer is not None
            cfg = improve(plain_first(cfg, request.link_layer))
        cfg = finish(cfg)
    instructions = select(cfg, request.link_layer, request.walk)
    return EbpfProgram(instructions, request.linktype, request.snaplen, request.expression, request.settings if walks else None)


def _c(request: Request) -> CSource:
    from pcapext.csource import CSource
    from pcapext.lower import load_once, wanted_of
    from pcapext.optimize import finish
    from pcapext.optimize.merge import merge
    from pcapext.write_c import found_locals, write_c

    cfg = _graph(request) or _lifted(request)
    if request.optimize:
        cfg = finish(cfg)
    wanted = wanted_of(cfg)
    placed_once = merge(load_once(cfg, found_locals(wanted)))
    name = pcap_bridge.shown_linktype(request.linktype)
    text = write_c(placed_once, request.expression, name, wanted, request.link_layer, request.walk)
    return CSource(text, request.linktype, request.snaplen, request.expression, request.settings)


# ---- Small steps ----


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


def checked_length(instructions: tuple[Instruction, ...], walk: WalkSettings | None = None) -> tuple[Instruction, ...]:
    """The instructions, if a kernel takes as many. `walk`: the settings of the walk that is among them."""
    if len(instructions) <= MAX_INSTRUCTIONS:
        return instructions
    message = f"the program would take {len(instructions)} instructions, and no kernel takes more than {MAX_INSTRUCTIONS}"
    bounds = [f"{name} (now {number})" for name, number in walk.bounds if number > 1] if walk else []
    raise FilterError(f"{message}; it is shorter with a smaller {', '.join(bounds)}" if bounds else message)
