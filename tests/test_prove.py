"""Proving that one program can stand for another: against both of them run on packets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

import pytest
from filters import compiled, words
from graphs import EFFORT, NUMBERS, random_graphs, random_packet, steered_packet

from pcapext import bpf
from pcapext.assemble import assemble
from pcapext.bpf import Instruction, Program, structural_fault
from pcapext.errors import FilterError, ProgramError
from pcapext.lift import lift
from pcapext.machine import run
from pcapext.optimize import optimize
from pcapext.prove import longest_way, never_worse
from pcapext.textforms import read_program

ENDS = "yes: ret #96\nno: ret #0"
PAIRS = [
    ("the same", "ldh [12]; jeq #0x800, yes, no", "ldh [12]; jeq #0x800, yes, no", True, True),
    ("other numbers", "ldh [12]; jeq #0x800, yes, no", "ldh [12]; jeq #0x806, yes, no", False, False),
    ("another place", "ldh [12]; jeq #0x800, yes, no", "ldh [14]; jeq #0x800, yes, no", False, False),
    ("another size", "ldh [12]; jeq #0x800, yes, no", "ld [12]; jeq #0x800, yes, no", False, False),
    ("other verdicts", "ld len; jgt #9, yes, no", "ld len; jgt #9, no, yes", False, False),
    ("another verdict", "ret #96", "ret #95", False, False),
    ("what is returned", "ld len; ret a", "ld len; tax; txa; ret a", True, False),
    ("something else is returned", "ld len; ret a", "ldb [0]; ret a", False, False),
    ("fewer instructions", "ld len; jgt #9, yes, no", "ld len; jgt #9, again, no; again: jgt #9, yes, no", True, False),
    ("a question the other way round", "ld len; jgt #9, yes, no", "ld len; jge #10, yes, no", True, True),
    ("fewer on one way only", "ld len; jgt #9, yes, more; more: ja no", "ld len; jgt #9, less, no; less: ja yes", False, False),
    ("one that asks more", "ld len; jgt #9, yes, no", "ld len; jgt #9, more, no; more: ldb [0]; jeq #1, yes, yes", False, False),
    ("a load that must succeed first", "ldb [9]; ldb [0]; jeq #1, yes, no", "ldb [9]; ldb [9]; ldb [0]; jeq #1, yes, no", True, False),
    ("a load that is not done", "ldb [0]; jeq #1, yes, no", "ldb [9]; ldb [0]; jeq #1, yes, no", False, False),
    ("a load that ends sooner", "ldb [9]; ldb [9]; jeq #1, yes, no", "ldb [0]; ldb [9]; jeq #1, yes, no", True, False),
    ("or not at all", "ldb [9]; jeq #1, yes, no", "ldb [0]; ldb [9]; jeq #1, yes, no", True, False),
    (
        "a load behind a base",
        "ldxb 4*([0]&0xf); ldb [x+9]; jeq #1, yes, no",
        "ldxb 4*([0]&0xf); ldb [9]; ldb [x+9]; jeq #1, yes, no",
        True,
        False,
    ),
    (
        "a load before the farthest place behind a base",
        "ldb [80]; ldxb 4*([0]&0xf); ldb [x+9]; jeq #1, yes, no",
        "ldb [80]; ldb [80]; ldxb 4*([0]&0xf); ldb [x+9]; jeq #1, yes, no",
        True,
        False,
    ),
    ("the sum in k or in X", "ldx #4; ldb [x+9]; jeq #1, yes, no", "ldx #6; ldb [x+7]; jeq #1, yes, no", True, True),
    ("a division", "ldb [0]; tax; ldb [1]; div x; jeq #1, yes, no", "ldb [0]; tax; ldb [1]; jeq #1, yes, no", False, False),
    ("a division by a number", "ldb [0]; div #4; jeq #1, yes, no", "ldb [0]; tax; txa; div #4; jeq #1, yes, no", True, False),
    ("through M[]", "ldb [0]; jeq #1, yes, no", "ldb [0]; st M[3]; ld #5; ld M[3]; jeq #1, yes, no", True, False),
    ("M[] begins as 0", "ld #0; jeq #0, yes, no", "ld M[3]; jeq #0, yes, no", True, True),
    ("a question with a bit less", "ldb [0]; jset #2, yes, no", "ldb [0]; and #2; jeq #0, no, yes", True, False),
    ("ancillary words are for nobody to know", "ld #4294963204; ret a", "ld #4294963204; ret a", True, True),
    ("not even themselves", "ld #proto; jeq #1, yes, no", "ld #proto; jeq #1, yes, no", False, False),
]  # fmt: skip


def program(text: str) -> Program:
    lines = text.replace("; ", "\n")
    return read_program(f"{lines}\n{ENDS}" if "yes" in lines else lines, "asm")


@pytest.mark.parametrize(("text", "other", "may", "may_the_other"), [case[1:] for case in PAIRS], ids=[case[0] for case in PAIRS])
def test_pair(text: str, other: str, may: bool, may_the_other: bool) -> None:
    assert (never_worse(program(text), program(other)), never_worse(program(other), program(text))) == (may, may_the_other)


def check(made: Sequence[Instruction], other: Sequence[Instruction], packets: list[bytes]) -> None:
    """What is proved, on packets."""
    for packet in packets:
        for wirelen in (len(packet), len(packet) + 40):
            ours, theirs = run(Program(tuple(made)), packet, wirelen), run(Program(tuple(other)), packet, wirelen)
            assert ours.value == theirs.value, (Program(tuple(made)).dump(), Program(tuple(other)).dump(), packet.hex(), wirelen)
            assert ours.executed <= theirs.executed, (Program(tuple(made)).dump(), Program(tuple(other)).dump(), packet.hex(), wirelen)


def mutated(instructions: tuple[Instruction, ...], rng: Random) -> tuple[Instruction, ...]:
    """The program with an instruction changed, put in or left out."""
    changed = list(instructions)
    at = rng.randrange(len(changed))
    match rng.randrange(4):
        case 0:
            changed[at] = replace(changed[at], k=rng.choice((*NUMBERS[:8], changed[at].k ^ 1)))
        case 1:
            changed[at] = replace(changed[at], jt=changed[at].jf, jf=changed[at].jt)
        case 2:
            changed[at] = rng.choice(changed)
        case _:
            changed[at] = rng.choice((Instruction(bpf.TAX), Instruction(bpf.TXA), Instruction(bpf.LD_B_ABS, k=rng.randrange(20))))
    return tuple(changed) if structural_fault(changed) is None else instructions


def test_random_programs() -> None:
    """Whatever is proved holds: of the passes' programs, and of programs with mistakes in them."""
    proved = refused = 0
    for cfg, rng in random_graphs(150, seed=90, sizes=(2, 5, 12), keys=False):
        try:
            plain, improved = assemble(cfg), assemble(optimize(cfg))
        except FilterError:
            continue
        packets = [random_packet(rng) for _ in range(12)]
        for made, other in (
            (improved, plain),
            (mutated(improved, rng), plain),
            (mutated(plain, rng), plain),
            (plain, mutated(improved, rng)),
        ):
            if never_worse(made, other):
                proved += 1
                check(made, other, packets)
            else:
                refused += 1
    assert proved > 150 * EFFORT
    assert refused > 100 * EFFORT


def test_filters() -> None:
    """libpcap's programs of random filters, and the passes' ones, on packets that go all ways."""
    proved = count = 0
    for seed in range(150 * EFFORT):
        rng = Random(f"prove {seed}")
        theirs = compiled(" ".join(words(rng, 1)))
        if isinstance(theirs, str):
            continue
        try:
            improved = assemble(optimize(lift(theirs)))
        except (ProgramError, FilterError):
            continue
        count += 1
        if never_worse(improved, theirs):
            proved += 1
            packets = [steered_packet(theirs, rng) for _ in range(8)]
            check(improved, theirs, packets + [packet[: rng.randrange(len(packet) + 1)] for packet in packets])
    assert proved > 0.8 * count > 40


def ways(instructions: Sequence[Instruction], index: int = 0) -> Iterator[int]:
    """The instructions on every way from one to a `ret`."""
    match instructions[index]:
        case Instruction(bpf.RET_K | bpf.RET_A):
            yield 1
            return
        case Instruction(bpf.JA, k=k):
            following = {index + 1 + k}
        case Instruction(code, jt, jf):
            following = {index + 1 + jt, index + 1 + jf} if code & 7 == 5 else {index + 1}  # 5: BPF_JMP
    for each in following:
        yield from (1 + executed for executed in ways(instructions, each))


@pytest.mark.parametrize(
    ("text", "longest"),
    [
        ("ret #1", 1),
        ("ldb [0]; jeq #1, yes, no", 3),
        ("ldb [0]; jeq #1, more, no; more: ldb [1]; jeq #1, yes, no", 5),
        ("ldb [0]; jeq #1, more, less; less: ja no; more: ldb [1]; tax; ja yes", 6),
        ("ldb [0]; jeq #1, yes, less; less: ja over; ldb [1]; over: jeq #2, yes, no", 5),
    ],
)
def test_longest_way(text: str, longest: int) -> None:
    assert longest_way(program(text)) == longest


def test_longest_way_of_random_programs() -> None:
    """The longest of all ways; and no packet takes a longer one."""
    for cfg, rng in random_graphs(60, seed=91, sizes=(2, 5, 8), keys=False):
        try:
            made = assemble(cfg)
        except FilterError:
            continue
        longest = longest_way(made)
        assert longest == max(ways(made))
        assert all(run(Program(made), random_packet(rng)).executed <= longest for _ in range(6))


def test_a_bound() -> None:
    """What would take too long is not proved."""
    long = "\n".join(["ldb [0]", *(f"jeq #{number}, yes, l{number}\nl{number}: ldb [{number}]" for number in range(60)), "ret a", ENDS])
    made = read_program(long, "asm")
    assert never_worse(made, made)
    assert not never_worse(made, made, most_pairs=20)
