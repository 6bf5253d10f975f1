"""Relocation: without the made-up header the verdict is the same, on a machine that is not ours, and in the kernel (test_attaching.py)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import pytest
from bpf_oracles import PROLOGUE, libpcap_run, libpcap_run_packed, packed, random_instructions
from everywhere import compiled, sample
from graphs import EFFORT
from oracle import NETMASK, libpcap_compile, text_of
from packets import LINUX_SLL, LINUX_SLL2

from pcapext import bpf
from pcapext.bpf import LD_B_ABS, LD_H_ABS, LD_H_IND, LD_IMM, LD_LEN, LD_W_ABS, RET_A, Instruction, Program
from pcapext.compiler import compile_live, for_kernel
from pcapext.errors import KernelLacksError
from pcapext.flowkeys import SKF_AD_OFF

LENGTHS = {LINUX_SLL: 16, LINUX_SLL2: 20}

#: Where the made-up headers have what the kernel has words for, by offset of the word: place and size.
WORDS = {LINUX_SLL: {0: (14, 2), 4: (0, 2), 28: (2, 2)}, LINUX_SLL2: {0: (0, 2), 4: (10, 1), 8: (4, 4), 28: (8, 2)}}


def packed_with_words(instructions: Sequence[Instruction], packet: bytes, linktype: int) -> bytes:
    """The program for one packet: with numbers from its header in place of the kernel's words."""
    code = bytearray(packed_once(tuple(instructions)))
    for index, instruction in enumerate(instructions):
        if instruction.k >= SKF_AD_OFF and instruction.ancillary:
            at, size = WORDS[linktype][instruction.ancillary.offset]
            word = Instruction(LD_IMM, k=int.from_bytes(packet[at : at + size], "big"))
            code[8 * index : 8 * index + 8] = packed([word])
    return bytes(code)


packed_once = lru_cache(maxsize=64)(packed)


def kept(instructions: Sequence[Instruction], packet: bytes, wirelen: int, linktype: int) -> int:
    """What libpcap's interpreter returns for a relocated program and what the kernel shows of a packet."""
    header = LENGTHS[linktype]
    return libpcap_run_packed(packed_with_words(instructions, packet, linktype), packet[header:], wirelen - header)


def cut(value: int, linktype: int) -> int:
    """How many bytes are kept behind the header, where `value` are with it; accepting stays accepting."""
    return max(value - LENGTHS[linktype], 1) if value else 0


TEMPLATES = """
{inner udp port 53} or {inner icmp}
{encap vxlan} and not {inner udp}
"len - {poff} > 20"
""".strip().splitlines()

STANDARD = """
tcp port 80
ip host 10.0.0.1 or ip6 host 2001:db8::1
not ip6
greater 100
less 90 and not tcp
len - ip[2:2] > 30
ip[ip[0] & 15] & 1 = 1
ip and ip[20] & 1 = 0
arp
inbound and ip
outbound or ip6
""".strip().splitlines()


@pytest.mark.parametrize("linktype", [LINUX_SLL, LINUX_SLL2])
@pytest.mark.parametrize("expression", [*map(text_of, TEMPLATES), *STANDARD])
def test_filters(expression: str, linktype: int) -> None:
    """Texts and programs, with flow keys and without: all do what the program does that sees the header."""
    plain = compiled(expression, linktype, NETMASK, True, "classic").instructions
    ways = {
        "text": compile_live(expression, linktype, netmask=NETMASK).instructions,
        "flow keys": for_kernel(compiled(expression, linktype, NETMASK, True, "flowkeys"), made_up=True).instructions,
    }
    if expression in STANDARD or linktype == LINUX_SLL:
        ways["classic"] = for_kernel(Program(plain, linktype), made_up=True).instructions
    verdicts = Counter[bool]()
    for packet in sample(60 * EFFORT, 7, [linktype]):
        if packet.captured < LENGTHS[linktype]:
            continue
        value = libpcap_run_packed(packed_once(plain), packet.data, packet.length)
        found = {way: kept(program, packet.data, packet.length, linktype) for way, program in ways.items()}
        assert found == dict.fromkeys(ways, cut(value, linktype)), packet.data.hex()
        verdicts[value != 0] += 1
    assert all(Program(program).kernel_refusal() is None for program in ways.values())
    assert len(verdicts) == 2


@pytest.mark.parametrize("linktype", [LINUX_SLL, LINUX_SLL2])
def test_random_programs(linktype: int) -> None:
    """What a program reads of the header at a place that only the packet tells rejects; all else is the same."""
    rng = random.Random(linktype)
    outcomes = Counter[str]()
    made = [packet for packet in sample(60, 3, [linktype]) if packet.captured >= LENGTHS[linktype]]
    while outcomes["same"] < 2000 * EFFORT:
        program = PROLOGUE + random_instructions(rng)
        if any(instruction.ancillary or instruction.k > bpf.SKF_AD_HATYPE for instruction in program):
            continue
        try:
            moved = for_kernel(Program(program, linktype), made_up=True).instructions
        except KernelLacksError:
            outcomes["no word"] += 1
            continue
        for packet in rng.sample(made, 5):
            value = cut(libpcap_run(program, packet.data, packet.length), linktype)
            found = kept(moved, packet.data, packet.length, linktype)
            if found != value:
                assert found == 0
                assert any(instruction.code in (bpf.LD_W_IND, bpf.LD_H_IND, bpf.LD_B_IND) for instruction in program)
            outcomes["same" if found == value else "rejected"] += 1
    assert outcomes["no word"] > 20
    assert outcomes["rejected"] < outcomes["same"] / 20


@pytest.mark.parametrize(
    ("linktype", "load", "expected"),
    [
        (LINUX_SLL, Instruction(LD_H_ABS, k=0), 0x0003),
        (LINUX_SLL, Instruction(LD_B_ABS, k=1), 0x03),
        (LINUX_SLL, Instruction(LD_W_ABS, k=0), 0x0003_0001),
        (LINUX_SLL, Instruction(LD_B_ABS, k=2), 0x00),
        (LINUX_SLL, Instruction(LD_H_ABS, k=1), 0x0300),
        (LINUX_SLL, Instruction(LD_H_ABS, k=14), 0x0800),
        (LINUX_SLL, Instruction(LD_W_ABS, k=14), 0x0800_4567),
        (LINUX_SLL, Instruction(LD_W_ABS, k=15), 0x0045_6789),
        (LINUX_SLL, Instruction(LD_H_ABS, k=15), 0x0045),
        (LINUX_SLL, Instruction(LD_H_ABS, k=16), 0x4567),
        (LINUX_SLL2, Instruction(LD_H_ABS, k=0), 0x0800),
        (LINUX_SLL2, Instruction(LD_W_ABS, k=0), 0x0800_0000),
        (LINUX_SLL2, Instruction(LD_W_ABS, k=1), 0x0000_0000),
        (LINUX_SLL2, Instruction(LD_W_ABS, k=4), 0x0001_0203),
        (LINUX_SLL2, Instruction(LD_W_ABS, k=6), 0x0203_0001),
        (LINUX_SLL2, Instruction(LD_H_ABS, k=9), 0x0103),
        (LINUX_SLL2, Instruction(LD_B_ABS, k=10), 0x03),
        (LINUX_SLL2, Instruction(LD_LEN), 23),
    ],
)
def test_fields(linktype: int, load: Instruction, expected: int) -> None:
    """Each field, and each load across two of them or across the end."""
    header = {
        LINUX_SLL: bytes.fromhex("0003 0001 0006 aabbccddeeff0000 0800"),
        LINUX_SLL2: bytes.fromhex("0800 0000 00010203 0001 03 06 aabbccddeeff0000"),
    }[linktype]
    packet = header + bytes.fromhex("456789")
    for value in (expected, expected ^ 1):
        program = (load, Instruction(bpf.JEQ_K, 0, 1, value), Instruction(bpf.RET_K, k=99), Instruction(bpf.RET_K))
        moved = for_kernel(Program(program, linktype), made_up=True).instructions
        assert kept(moved, packet, len(packet), linktype) == (99 - LENGTHS[linktype] if value == expected else 0)
        size = {LD_W_ABS: 4, LD_H_ABS: 2, LD_B_ABS: 1}.get(load.code, 0)
        if load.k + size > len(header):  # one byte less, and it rejects
            assert kept(moved, packet[: load.k + size - 1], len(packet), linktype) == 0


@pytest.mark.parametrize(
    ("linktype", "load", "title"),
    [
        (LINUX_SLL, Instruction(LD_H_ABS, k=4), "length of the link-layer address"),
        (LINUX_SLL, Instruction(LD_B_ABS, k=6), "link-layer address"),
        (LINUX_SLL, Instruction(LD_W_ABS, k=12), "link-layer address"),
        (LINUX_SLL, Instruction(LD_W_ABS, k=2), "length of the link-layer address"),
        (LINUX_SLL2, Instruction(LD_B_ABS, k=11), "length of the link-layer address"),
        (LINUX_SLL2, Instruction(LD_W_ABS, k=17), "link-layer address"),
    ],
)
def test_fields_without_a_word(linktype: int, load: Instruction, title: str) -> None:
    name = {LINUX_SLL: "LINUX_SLL", LINUX_SLL2: "LINUX_SLL2"}[linktype]
    with pytest.raises(KernelLacksError) as caught:
        for_kernel(Program((load, Instruction(RET_A)), linktype), made_up=True)
    assert str(caught.value) == (
        f"the filter reads the {title} in the header of link type {name}, and the kernel has no word for it: "
        "it does not show the header to filters"
    )
    # Where nobody reads what was loaded, it is not missed: the header is always there.
    moved = for_kernel(Program((load, Instruction(LD_IMM, k=50), Instruction(RET_A)), linktype), made_up=True).instructions
    assert kept(moved, bytes(40), 40, linktype) == 50 - LENGTHS[linktype]


@pytest.mark.parametrize("value", [0, 1, 15, 16, 17, 20, 21, 70000])
@pytest.mark.parametrize("linktype", [LINUX_SLL, LINUX_SLL2])
def test_bytes_kept(linktype: int, value: int) -> None:
    for program in (
        (Instruction(bpf.RET_K, k=value),),
        # By way of the packet, so that nobody knows the number.
        (Instruction(LD_W_ABS, k=LENGTHS[linktype]), Instruction(RET_A)),
    ):
        moved = for_kernel(Program(program, linktype), made_up=True).instructions
        packet = bytes(LENGTHS[linktype]) + value.to_bytes(4, "big")
        assert kept(moved, packet, len(packet), linktype) == cut(value, linktype)


def test_places_that_the_packet_tells() -> None:
    """Behind the header they are exact; in it they reject."""
    program = (Instruction(LD_B_ABS, k=16), Instruction(bpf.TAX), Instruction(LD_H_IND, k=14), Instruction(RET_A))
    moved = for_kernel(Program(program, LINUX_SLL), made_up=True).instructions
    for first, wanted in ((2, 0x0201), (3, 0x0102), (4, 0), (1, 0), (0, 0), (255, 0)):
        packet = bytes(16) + bytes([first, 1, 2])
        assert kept(moved, packet, len(packet), LINUX_SLL) == cut(wanted, LINUX_SLL)
        if first >= 2:
            assert cut(libpcap_run(program, packet, len(packet)), LINUX_SLL) == cut(wanted, LINUX_SLL)


def test_libpcap_has_the_same_fields() -> None:
    """What libpcap's own names load from the made-up headers: packet type and protocol, and the interface by number."""
    assert libpcap_compile("inbound", LINUX_SLL, optimize=True)[0] == Instruction(LD_H_ABS, k=0)
    assert libpcap_compile("ip", LINUX_SLL, optimize=True)[0] == Instruction(LD_H_ABS, k=14)
    assert libpcap_compile("inbound", LINUX_SLL2, optimize=True)[0] == Instruction(LD_B_ABS, k=10)
    assert libpcap_compile("ifindex 3", LINUX_SLL2, optimize=True)[0] == Instruction(LD_W_ABS, k=4)
