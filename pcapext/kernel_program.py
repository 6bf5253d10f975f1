"""A program for a stock kernel in place of another one.

In:  a classic BPF program, which may load flow keys, or be for packets with a header that libpcap makes up.
Out: one with the same verdicts that a stock Linux kernel can run.
"""

from __future__ import annotations

import re

from pcapext.assemble import assemble
from pcapext.bpf import Instruction, Program
from pcapext.compiler import checked_length, compile_classic, relocated
from pcapext.encapsulation import DEFAULT_SETTINGS, LINK_LAYER_BY_NUMBER
from pcapext.errors import PcapextError, ProgramError
from pcapext.lift import lift, name_keys
from pcapext.optimize import finish, improve
from pcapext.optimize.gather import gather
from pcapext.pcap_bridge import shown_linktype
from pcapext.prepare import lower_improved
from pcapext.request import Request


def for_kernel(program: Program, made_up: bool = False) -> Program:
    """A program that a stock kernel can run in place of another one: the walk written out where it loads flow keys.

    With `made_up`, it is for packets without the header that libpcap makes up for the program's link type. A program that needs neither is
    given back as it is. Raises `ProgramError` for one with a loop and where there is no walk on the link type, and `KernelLacksError` where
    it reads of the header what a kernel does not tell.

    >>> from pcapext.compiler import compile
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
        if compile_classic(Request(text, linktype, snaplen, target=made_for, settings=settings))[0] != program.instructions:
            return None
        return checked_length(compile_classic(Request(text, linktype, snaplen, target="classic", settings=settings, live=made_up))[0])
    except PcapextError:
        return None


def _lowered(program: Program, keys: bool, made_up: bool) -> tuple[Instruction, ...]:
    """The instructions of a program with the walk written out for its flow keys, and for packets without the made-up header."""
    if program.linktype not in LINK_LAYER_BY_NUMBER:
        shown = shown_linktype(program.linktype)
        raise ProgramError(f"the program loads flow keys, and there are none on link type {shown}")
    link_layer = LINK_LAYER_BY_NUMBER[program.linktype]
    walk = (program.settings or DEFAULT_SETTINGS) if keys else None
    cfg = lift(program)
    if walk:
        cfg = lower_improved(improve(gather(name_keys(cfg))), link_layer, walk, improve)
    if made_up:
        cfg = relocated(cfg, link_layer)
    return checked_length(assemble(finish(cfg)), walk)
