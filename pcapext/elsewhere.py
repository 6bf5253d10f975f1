"""Programs for what runs them on its own: the `bpf` match of iptables and the `bpf` classifier of tc.

In:  a `Program` of plain classic BPF.
Out: the text that the tool takes; or a ProgramError that says why the program cannot run there, and what can be done.

Both take one line of decimal numbers, the style `bytecode` of `pcapext.dump`. They differ in what they see of a packet, how long a
program may be, and what the value that it returns means there. That is one row of a table each, `PLACES`.
"""

from __future__ import annotations

from collections.abc import Mapping

from pcapext.bpf import RET_A, RET_K, U32, Instruction, Program
from pcapext.dump import dump
from pcapext.errors import ProgramError
from pcapext.slotted import dataclass, replace


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tool runs programs.

    `linktypes` are the link types whose packets are like those that the place sees, with libpcap's names on Linux; the first one is
    compiled for unless told. `sees` says so in words. A program has at most `longest` instructions, and `otherwise` is what to do about
    a longer one. An accepted packet is to be given the value `accepted`; None where any but 0 will do.
    """

    name: str
    linktypes: Mapping[int, str]
    sees: str
    longest: int
    otherwise: str
    accepted: int | None = None

    @property
    def linktype(self) -> int:
        """The link type to compile for unless told."""
        return next(iter(self.linktypes))


_SHORTER = "a walk is shorter with a smaller --max-levels or --extension-headers"

#: The places by the name of the tool.
#:
#: iptables: net/netfilter/xt_bpf.c runs a program on the packet from its network header on and takes any value but 0 for a match; its
#: programs have a fixed size (XT_BPF_MAX_NUM_INSTR, include/uapi/linux/netfilter/xt_bpf.h).
#:
#: tc: net/sched/cls_bpf.c runs it from the MAC header on, coming in and going out. There 0 is no match, 0xffffffff (-1) a match, and any
#: other value a match that replaces the class that the filter was given (tc-bpf(8)). A kernel takes 4096 instructions, but the
#: message in which tc sends them has 16384 bytes (iproute2, MAX_MSG): there is room for 2040, and for fewer with actions behind them.
PLACES: dict[str, Place] = {
    "iptables": Place(
        "iptables",
        {12: "RAW", 228: "IPV4", 229: "IPV6"},
        "packets from their network header on",
        64,
        f"tc takes up to 2000 (--format tc), and {_SHORTER}",
    ),
    "tc": Place(
        "tc",
        {1: "EN10MB", 12: "RAW", 228: "IPV4", 229: "IPV6"},
        "Ethernet frames, or bare IP packets on devices that have no link layer",
        2000,
        _SHORTER,
        accepted=U32,
    ),
}


def command_text(program: Program, place: str) -> str:
    """The argument of `iptables -m bpf --bytecode` (`place` "iptables"), or of `tc filter ... bpf bytecode` ("tc").

    Raises ProgramError for a program that would be refused there or see other packets than it was made for.

    >>> import pcapext
    >>> print(command_text(pcapext.compile("ip", linktype="RAW"), "iptables"), end="")
    5,48 0 0 0,84 0 0 240,21 0 1 64,6 0 0 262144,6 0 0 0
    >>> print(command_text(pcapext.compile("arp"), "tc"), end="")
    4,40 0 0 12,21 0 1 2054,6 0 0 4294967295,6 0 0 0
    """
    if place not in PLACES:
        raise ProgramError(f"unknown place {place!r}, expected one of {', '.join(PLACES)}")
    to = PLACES[place]
    if program.linktype not in to.linktypes:
        names = " or ".join(f"-y {name}" for name in to.linktypes.values())
        raise ProgramError(f"{to.name} sees {to.sees}, and the program is for link type {program.linktype}; compile it with {names}")
    if program.flow_keys:
        words = ", ".join(f"[{key}]" for key in program.flow_keys)
        raise ProgramError(f"{to.name} has no {words}; -t classic gives a program without them")
    if refusal := program.kernel_refusal():
        raise ProgramError(f"{to.name} would refuse the program: {refusal}")
    if len(program) > to.longest:
        raise ProgramError(f"{to.name} takes at most {to.longest} instructions, and the program has {len(program)}; {to.otherwise}")
    if to.accepted is not None:
        program = replace(program, instructions=tuple(_accepting(each, index, to) for index, each in enumerate(program)))
    return dump(program, "bytecode")


def _accepting(instruction: Instruction, index: int, to: Place) -> Instruction:
    """The instruction, returning the value of the place for an accepted packet."""
    if instruction.code == RET_A:
        raise ProgramError(f"instruction {index}: ret a, whose value {to.name} would take for a class; expected ret #k")
    assert to.accepted is not None
    return replace(instruction, k=to.accepted) if instruction.code == RET_K and instruction.k else instruction
